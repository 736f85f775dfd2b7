//! Rows alone, by COPY, in one transaction of the live server.

use super::large_objects::{self, Carried, Columns};
use super::tables::{REFERENCED, Table, identifier, literal, set_config};
use super::{Mode, Rescued};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::operate::server::Server;
use crate::operate::session::Session;
use crate::wire::client::Rows;
use crate::wire::server_error::sqlstate;

/// Settings under which text means the same on both sides, whatever roles and databases have set.
pub(super) const OF_BOTH: [&str; 7] = [
    "extra_float_digits = 3",
    "datestyle = 'ISO, YMD'",
    "intervalstyle = 'postgres'",
    "bytea_output = 'hex'",
    "lc_monetary = 'C'",
    "timezone = 'UTC'",
    "xmloption = 'content'",
];
/// Others who want the live table wait behind this. A row that a policy hides must not be taken for one that is missing.
const OF_LIVE: [&str; 2] = ["lock_timeout = '10s'", "row_security = off"];

/// One statement for each setting.
pub(super) fn set(word: &str, settings: &[&str]) -> String {
    let all: Vec<String> = settings.iter().map(|s| format!("{word} {s}")).collect();
    all.join("; ")
}

/// A column that is carried.
struct Column {
    name: String,
    definition: String,
    /// The type as SQL writes it.
    type_name: String,
    /// A name for the plain types that may take each other's values.
    family: Option<String>,
}

/// The type of a column, and its family: int8, int2, int4, float4, float8 and numeric; text, bpchar and varchar. A time keeps its text and changes
/// its meaning with another type, so times have none.
///
/// PostgreSQL: src/include/catalog/pg_type.dat.
const TYPE: &str = "pg_catalog.format_type(a.atttypid, a.atttypmod), case when a.atttypid in (20, 21, 23, 700, 701, 1700) then 'number' when a.atttypid in (25, 1042, 1043) then 'text' end";

/// Asks a server under a search path that has it write the schema of every type and collation that is not its own.
fn with_schemas(server: &mut Server, sql: &str) -> Result<Rows> {
    let path = "select pg_catalog.current_setting('search_path')";
    let path: String = server.query(path)?.value(0, 0)?;
    set_config(server, "search_path", "pg_catalog")?;
    let rows = server.query(sql)?;
    set_config(server, "search_path", &path)?;
    Ok(rows)
}

/// Carries the rows of tables, and the large objects that those name in the end; each session has its own connection for the stream.
///
/// # Errors
/// `Refused` where the tables do not fit; `Server`.
pub fn carry(
    session: &Session,
    (source, from): (&mut Server, &str),
    live: &mut Server,
    (tables, mode): (&[Table], &Mode),
) -> Result<(Vec<Rescued>, Carried, Vec<String>)> {
    let [table] = tables else {
        return Err(not_one(tables.len()));
    };
    if table.is_unlogged && !matches!(mode, Mode::As(_)) {
        return Err(err!(
            Refused,
            "{} is unlogged at that moment: its rows are in no backup",
            table.shown()
        )
        .hint("Nothing was changed. Rows of an unlogged table come from a dump alone."));
    }
    let columns = columns_of(source, table)?;
    let rows = table.count(source)?;
    // Older servers, and some systems, do not know it: there a statement that is given up goes on to its end, and is not committed.
    let _ = live.query("set client_connection_check_interval = '1s'");
    live.query("begin")?;
    let asked = (table, &columns[..], rows);
    let done = one(session, from, live, asked, mode).and_then(|(rescued, notes)| {
        let arrived = match mode {
            Mode::As(name) => name.clone(),
            _ => table.quoted(),
        };
        let named = Columns::of(source, tables)?;
        let named = (&named, Some(arrived.as_str()));
        let carried = large_objects::carry(session, (source, from), live, named)?;
        Ok((rescued, carried, notes))
    });
    match done {
        Ok((rescued, carried, notes)) => {
            live.query("commit")?;
            Ok((vec![rescued], carried, notes))
        }
        Err(e) => {
            // The connection may be gone: then the server has done it.
            let _ = live.query("rollback");
            Err(e)
        }
    }
}

/// The error for something else than one table that is not partitioned.
pub(super) fn not_one(count: usize) -> Error {
    err!(Usage, "--as, --rows-missing-only and --replace take one table that is not partitioned, {count} were found")
        .hint("Nothing was done. Name one table, or a single partition.")
}

fn columns_of(source: &mut Server, table: &Table) -> Result<Vec<Column>> {
    let sql = format!(
        "select a.attname, pg_catalog.format('%I %s%s', a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), case when a.attcollation <> t.typcollation and a.attcollation <> 0 then ' collate ' || a.attcollation::pg_catalog.regcollation else '' end), {TYPE} from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid where a.attrelid = {} and a.attnum > 0 and not a.attisdropped order by a.attnum",
        table.oid
    );
    let rows = with_schemas(source, &sql)?;
    let read = (0..rows.rows.len()).map(|row| {
        Ok(Column {
            name: rows.value(row, 0)?,
            definition: rows.value(row, 1)?,
            type_name: rows.value(row, 2)?,
            family: rows.text(row, 3)?.map(str::to_owned),
        })
    });
    read.collect()
}

fn list(columns: &[&Column]) -> String {
    let names: Vec<String> = columns.iter().map(|c| identifier(&c.name)).collect();
    names.join(", ")
}

fn one(
    session: &Session,
    from: &str,
    live: &mut Server,
    (table, columns, rows): (&Table, &[Column], u64),
    mode: &Mode,
) -> Result<(Rescued, Vec<String>)> {
    live.query(&set("set local", &[&OF_BOTH[..], &OF_LIVE].concat()))?;
    let there = match mode {
        Mode::As(_) => Vec::new(),
        _ => check_columns(live, table, columns)?,
    };
    // A column that the live table generates takes no value. One that was generated at the moment, and is plain now, has its value from there.
    let is_generated = |column: &&Column| {
        let mut there = there.iter();
        there.any(|l| l.is_generated && l.name == column.name)
    };
    let carried: Vec<&Column> = columns.iter().filter(|c| !is_generated(c)).collect();
    check_types(&carried, &there)?;
    let mut notes = match mode {
        Mode::As(_) => Vec::new(),
        _ => own_ways(live, table, (columns, &there), mode)?,
    };
    notes.iter().for_each(|note| session.note(note));
    let names = list(&carried);
    let defined: Vec<&str> = carried.iter().map(|c| c.definition.as_str()).collect();
    let defined = defined.join(", ");
    let arrives = match mode {
        Mode::As(name) => {
            live.query(&format!("create table {name} ({defined})"))?;
            name.clone()
        }
        _ => {
            live.query(&format!(
                "create temporary table pitr_rescued ({defined}) on commit drop"
            ))?;
            "pg_temp.pitr_rescued".to_owned()
        }
    };
    let live_name = table.quoted();
    let out = format!("copy (select {names} from only {live_name}) to stdout");
    let into = format!("copy {arrives} ({names}) from stdin");
    let mut stream = live.beside(from, None, true)?;
    live.ask_beside(&mut stream, &set("set", &OF_BOTH))?;
    let tick = &mut || session.host.check_stop();
    let copied = live.copy_from(&mut stream, (&out, &into), tick)?;
    if copied != rows {
        return Err(err!(Server, "{copied} rows arrived of {rows}"));
    }
    check_values(live, (&carried, &there), &arrives)?;
    let all = format!(
        "insert into {live_name} ({names}) overriding system value select {names} from {arrives}"
    );
    let compared = Compared::of(&carried, &there, &arrives);
    let added = match mode {
        Mode::As(_) | Mode::Create => None,
        Mode::MissingRows => {
            let key = key_of(live, table)?;
            let key = key.iter().map(|name| identifier(name));
            let is_same: Vec<String> = key.map(|name| format!("l.{name} = r.{name}")).collect();
            let is_same = is_same.join(" and ");
            // A table that was plain then may be partitioned by now: its rows lie in its partitions.
            let only = match is_partitioned(live, &live_name)? {
                true => "",
                false => "only ",
            };
            // Rows that are there go, so that all that is left is missing.
            live.query(&format!(
                "delete from {arrives} r using {only}{live_name} l where {is_same}"
            ))?;
            let missing = live.query(&format!("select count(*) from {arrives}"))?;
            let missing = missing.value(0, 0)?;
            let added = count_of(live, &all)?;
            let is_added = format!(
                "{only}{live_name} l where exists (select from {arrives} r where {is_same})"
            );
            compared.check(live, (added, missing), &is_added)?;
            Some(added)
        }
        Mode::Replace => {
            let emptied = live.query(&format!("truncate only {live_name}"));
            emptied.map_err(|e| not_emptied(e, &live_name))?;
            let added = count_of(live, &all)?;
            compared.check(live, (added, rows), &format!("only {live_name} l"))?;
            Some(added)
        }
    };
    if added.is_some() {
        let left = advance_sequences(live, &live_name)?;
        left.iter().for_each(|note| session.note(note));
        notes.extend(left);
    }
    let rescued = Rescued {
        table: table.shown(),
        new_name: match mode {
            Mode::As(name) => Some(name.clone()),
            _ => None,
        },
        rows,
        added_rows: added,
    };
    Ok((rescued, notes))
}

fn is_partitioned(live: &mut Server, name: &str) -> Result<bool> {
    let kind = live.query(&format!(
        "select relkind = 'p' from pg_catalog.pg_class where oid = pg_catalog.to_regclass({})",
        literal(name)
    ))?;
    Ok(kind.text(0, 0)? == Some("t"))
}

/// Rows that a live table took, held against those that arrived.
struct Compared {
    /// The columns as the live table has them.
    live: String,
    /// The same of what arrived, with the types of the live table.
    arrived: String,
    /// The table that has what arrived.
    arrives: String,
}

impl Compared {
    /// Values are compared as text: some types have no equality, and of others different values are equal.
    fn of(carried: &[&Column], there: &[LiveColumn], arrives: &str) -> Compared {
        let type_of = |column: &Column| {
            let live = there.iter().find(|live| live.name == column.name);
            live.map_or(String::new(), |live| format!("::{}", live.type_name))
        };
        let each = |of: &dyn Fn(&Column) -> String| {
            let values = carried.iter().map(|column| {
                let value = of(column);
                format!("({value})::pg_catalog.text collate \"C\"")
            });
            values.collect::<Vec<_>>().join(", ")
        };
        Compared {
            live: each(&|column| format!("l.{}", identifier(&column.name))),
            arrived: each(&|column| format!("r.{}{}", identifier(&column.name), type_of(column))),
            arrives: arrives.to_owned(),
        }
    }

    /// Requires that the live table took all rows, as they are; `added` are those of it that were put in, as `l`.
    fn check(&self, live: &mut Server, (took, all): (u64, u64), added: &str) -> Result<()> {
        if took != all {
            return Err(own_way(format!(
                "the live table took {took} of {all} rows: a trigger or a rule of it leaves rows out"
            )));
        }
        // Triggers that wait for the end of the transaction run now.
        live.query("set constraints all immediate")?;
        let Compared {
            live: now,
            arrived,
            arrives,
        } = self;
        let different = live.query(&format!(
            "with now as materialized (select {now} from {added}), arrived as materialized (select {arrived} from {arrives} r) \
             select (select count(*) from (select * from arrived except all select * from now) lost), (select count(*) from (select * from now except all select * from arrived) more)"
        ))?;
        match (different.value(0, 0)?, different.value(0, 1)?) {
            (0, 0) => Ok(()),
            (lost, more) => Err(own_way(format!(
                "the live table does not have {lost} of {all} rows as they were, and has {more} others: a trigger of it changes them"
            ))),
        }
    }
}

/// The error for a live table that does not take rows as they are.
fn own_way(message: String) -> Error {
    Error::new(Code::Server, message)
        .hint("Nothing was changed. Disable what does it, or put the table beside it: --as NAME")
}

/// Triggers of the live table that run as rows arrive: 4 is INSERT, and 32 TRUNCATE.
///
/// PostgreSQL: src/include/catalog/pg_trigger.h.
const TRIGGERS: &str = "select pg_catalog.quote_ident(t.tgname) from pg_catalog.pg_trigger t where t.tgrelid = pg_catalog.to_regclass({table}) and not t.tgisinternal and t.tgenabled in ('O', 'A') and (t.tgtype & {events}) <> 0 order by 1";

/// Tells what the live table does by itself with the rows, as lines for people.
fn own_ways(
    live: &mut Server,
    table: &Table,
    (columns, there): (&[Column], &[LiveColumn]),
    mode: &Mode,
) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let events = if *mode == Mode::Replace { "36" } else { "4" };
    let triggers = TRIGGERS.replace("{table}", &literal(&table.quoted()));
    let found = live.query(&triggers.replace("{events}", events))?;
    let triggers = (0..found.rows.len()).filter_map(|row| found.text(row, 0).ok()?);
    let triggers: Vec<&str> = triggers.collect();
    if !triggers.is_empty() {
        let triggers = triggers.join(", ");
        notes.push(format!(
            "triggers of the live table run as rows arrive: {triggers}"
        ));
    }
    let is_known = |live: &LiveColumn| columns.iter().any(|c| c.name == live.name);
    let own = there
        .iter()
        .filter(|live| !live.is_generated && !is_known(live));
    let own: Vec<String> = own.map(|live| identifier(&live.name)).collect();
    if !own.is_empty() {
        let lose = match mode {
            Mode::Replace => "lose their values, and ",
            _ => "",
        };
        let own = own.join(", ");
        notes.push(format!(
            "columns that the moment lacks {lose}get their defaults: {own}"
        ));
    }
    Ok(notes)
}

/// Says what an operator can do about a live table that could not be emptied, by the server's reason.
fn not_emptied(e: Error, table: &str) -> Error {
    match sqlstate(&e) {
        // A lock that another session holds; a cursor or a trigger of this one.
        Some("55P03" | "55006") => e.hint("Nothing was changed. Other sessions use the table: end them (pg_locks names them), or try again."),
        // A foreign key that came meanwhile.
        Some("0A000") => e.hint(REFERENCED),
        Some("42501") => e.hint(format!("Nothing was changed. Connect as the owner of the table, or let this role empty it: grant truncate on {table} to ROLE")),
        _ => e.hint("Nothing was changed."),
    }
}

/// Lets the sequences of a table's columns go on behind the greatest value within their limits, so that the next row finds its number free. Returns
/// those that are left as they are, as lines for people: nothing tells the number in a text.
fn advance_sequences(live: &mut Server, table: &str) -> Result<Vec<String>> {
    // A domain may stand upon a domain: the last type below decides. Money (790) is of the category of numbers, and no number of a sequence. A column
    // may hold numbers to which the sequence never comes, and `setval` refuses these. The limits are bigint, so that an index still gives the last one.
    let owned = live.query(&format!(
        "with recursive base (declared, plain) as (select oid, oid from pg_catalog.pg_type where typtype <> 'd' union all select d.oid, b.plain from base b join pg_catalog.pg_type d on d.typbasetype = b.declared where d.typtype = 'd') \
         select pg_catalog.quote_ident(a.attname), s.sequence::text, q.seqincrement > 0, y.typcategory = 'N' and y.oid <> 790, \
         pg_catalog.format(' where %I%s between %L::pg_catalog.int8 and %L::pg_catalog.int8', a.attname, case when y.oid in (20, 21, 23, 700, 701, 1700) then '' else '::pg_catalog.int8' end, q.seqmin, q.seqmax) \
         from pg_catalog.pg_attribute a join base b on b.declared = a.atttypid join pg_catalog.pg_type y on y.oid = b.plain, lateral (select pg_catalog.pg_get_serial_sequence({}, a.attname)::pg_catalog.regclass) s (sequence), pg_catalog.pg_sequence q where a.attrelid = {}::pg_catalog.regclass and a.attnum > 0 and not a.attisdropped and q.seqrelid = s.sequence",
        literal(table), literal(table)
    ))?;
    let mut left = Vec::new();
    for row in 0..owned.rows.len() {
        let (column, sequence): (String, String) = (owned.value(row, 0)?, owned.value(row, 1)?);
        if owned.text(row, 3)? != Some("t") {
            left.push(format!(
                "sequence {sequence} stays as it is: column {column} is no number"
            ));
            continue;
        }
        let (last, is_beyond) = match owned.text(row, 2)? {
            Some("t") => ("max", ">"),
            _ => ("min", "<"),
        };
        let within = owned.text(row, 4)?.unwrap_or_default();
        live.query(&format!(
            "select pg_catalog.setval({}::pg_catalog.regclass, t.last) from (select {last}({column})::pg_catalog.int8 from {table}{within}) t (last), {sequence} s where t.last {is_beyond} s.last_value or (t.last = s.last_value and not s.is_called)",
            literal(&sequence)
        ))?;
    }
    Ok(left)
}

/// Runs an INSERT, and returns how many rows it has put in.
fn count_of(live: &mut Server, insert: &str) -> Result<u64> {
    let rows = live.query(&format!(
        "with added as ({insert} returning 1) select count(*) from added"
    ))?;
    rows.value(0, 0)
}

/// A column of the live table.
struct LiveColumn {
    name: String,
    type_name: String,
    family: Option<String>,
    is_generated: bool,
}

/// Requires that the live table has the columns of the moment; returns all that it has.
fn check_columns(live: &mut Server, table: &Table, columns: &[Column]) -> Result<Vec<LiveColumn>> {
    let sql = format!(
        "select a.attname, {TYPE}, a.attgenerated <> '' from pg_catalog.pg_attribute a where a.attrelid = pg_catalog.to_regclass({}) and a.attnum > 0 and not a.attisdropped order by a.attnum",
        literal(&table.quoted())
    );
    let rows = with_schemas(live, &sql)?;
    let there = (0..rows.rows.len()).map(|row| {
        Ok(LiveColumn {
            name: rows.value(row, 0)?,
            type_name: rows.value(row, 1)?,
            family: rows.text(row, 2)?.map(str::to_owned),
            is_generated: rows.text(row, 3)? == Some("t"),
        })
    });
    let there = there.collect::<Result<Vec<_>>>()?;
    let names = columns.iter().map(|c| c.name.as_str());
    let missing: Vec<&str> = names
        .filter(|name| !there.iter().any(|live| live.name == *name))
        .collect();
    match missing.is_empty() {
        true => Ok(there),
        false => Err(err!(Refused, "the live table {} has no column {}", table.shown(), missing.join(", "))
            .hint("Nothing was changed. Put the table beside it, and carry the rows over by SQL: --as NAME")),
    }
}

/// Pairs of a column that is carried and the live table's one, where their types differ.
fn changed<'c>(
    carried: &'c [&Column],
    there: &'c [LiveColumn],
) -> impl Iterator<Item = (&'c Column, &'c LiveColumn)> {
    carried.iter().filter_map(|column| {
        let live = there.iter().find(|live| live.name == column.name)?;
        (live.type_name != column.type_name).then_some((*column, live))
    })
}

/// Requires that the values of columns can be what they were: a live column of another type may be of the same family alone.
fn check_types(carried: &[&Column], there: &[LiveColumn]) -> Result<()> {
    let mut changed = changed(carried, there);
    let strange = changed.find(|(was, is)| was.family.is_none() || was.family != is.family);
    strange.map_or(Ok(()), |(was, is)| Err(other_type(was, is)))
}

/// Requires that all rows that arrived stay as they are in the types of the live table.
fn check_values(
    live: &mut Server,
    (carried, there): (&[&Column], &[LiveColumn]),
    arrives: &str,
) -> Result<()> {
    for (was, is) in changed(carried, there) {
        let (name, then, now) = (identifier(&was.name), &was.type_name, &is.type_name);
        let differs = live.query(&format!(
            "select count(*) from {arrives} r where r.{name}::{now}::{then}::pg_catalog.text collate \"C\" is distinct from r.{name}::pg_catalog.text collate \"C\""
        ));
        // A number that is out of range ends the query.
        let differs = differs.map_err(|e| match sqlstate(&e) {
            Some(state) if state.starts_with("22") => other_type(was, is).source(e),
            _ => e,
        })?;
        if differs.value::<u64>(0, 0)? > 0 {
            return Err(other_type(was, is));
        }
    }
    Ok(())
}

fn other_type(was: &Column, is: &LiveColumn) -> Error {
    err!(
        Refused,
        "column {} was {} at that moment, and is {} in the live table: values would be others",
        was.name,
        was.type_name,
        is.type_name
    )
    .hint("Nothing was changed. Put the table beside it, and carry the rows over by SQL: --as NAME")
}

/// The columns of the live table's primary key.
fn key_of(live: &mut Server, table: &Table) -> Result<Vec<String>> {
    let rows = live.query(&format!(
        "select a.attname from pg_catalog.pg_index i join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = any ((i.indkey::pg_catalog.int2[])[0:i.indnkeyatts - 1]) where i.indisprimary and i.indrelid = pg_catalog.to_regclass({})",
        literal(&table.quoted())
    ))?;
    let key = rows.texts(0)?;
    match key.is_empty() {
        false => Ok(key),
        true => Err(err!(
            Refused,
            "{} has no primary key, so it cannot be said which rows are missing",
            table.shown()
        )
        .hint("Nothing was changed. Put the table beside it: --as NAME")),
    }
}
