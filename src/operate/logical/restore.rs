//! Dumps put back: as files, or into a database of a live server.

use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{Stored, data, find, folders, publications};
use crate::config::{self, LogicalContent};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::logical::kind::put_back;
use crate::logical::member::{DatabaseMember, Member};
use crate::logical::read_check::{contents, printed};
use crate::logical::rows::{self, TableRows};
use crate::logical::source::{SqlSession, write_service};
use crate::logical::spool::Spool;
use crate::logical::tool::{self, Tool};
use crate::operate::archive_command::shell_word;
use crate::operate::human;
use crate::operate::session::Session;
use crate::pg::version::Major;
use crate::repo::id::BackupId;
use crate::restore::content;
use crate::wire::conninfo::{ConnInfo, Environment, HostAddress};
use crate::wire::server_error::sqlstate;
use crate::wire::service_file::in_database;

/// The section of a dump with everything that rows need.
const PRE_DATA: &str = "pre-data";

/// `undefined_database`.
const NO_DATABASE: &str = "3D000";

/// The section with indexes, constraints and triggers.
const POST_DATA: &str = "post-data";

/// Dumps that were put back.
pub struct Restored {
    pub id: BackupId,
    /// The repository that gave it.
    pub repository: String,
    /// The facts of its dumps.
    pub member: Member,
    /// The database of the server that was filled; none of files.
    pub database: Option<String>,
    /// How many entries of the dump were selected; none where all of it was restored.
    pub selected: Option<u64>,
}

/// The operator's request for a restore into a server.
#[derive(Debug, Clone, Default)]
pub struct Into {
    /// How the server is reached, and its database.
    pub conninfo: String,
    /// The database of the backup.
    pub database: Option<String>,
    /// Schemas that are restored; none: all.
    pub schemas: Vec<String>,
    /// Tables that are restored, each `schema.table`.
    pub tables: Vec<String>,
    /// Connections; none: one, and all of it in one transaction.
    pub jobs: Option<u16>,
    /// Whether the database is created.
    pub create: bool,
    /// Whether what the dump names is dropped first.
    pub replace: bool,
    /// Whether the operator confirms that.
    pub is_confirmed: bool,
    /// Whether everything belongs to the role that restores.
    pub no_owner: bool,
    /// Whether grants are left out.
    pub no_privileges: bool,
    /// The folder of PostgreSQL's programs.
    pub bin: Option<PathBuf>,
}

/// Puts the dumps into a directory that is empty or does not exist.
///
/// # Errors
/// `Refused` when it is not empty; those of [`content::read`] and [`put_back`].
pub fn to_directory(
    session: &Session,
    name: &str,
    backup: Option<&BackupId>,
    to: &Path,
) -> Result<Restored> {
    let to = session.environment.absolute(to);
    if to.exists() {
        content::check_empty(&to)?;
    }
    let stored = find(session, name, backup)?;
    if !to.exists() {
        let made = std::fs::DirBuilder::new().mode(0o700).create(&to);
        made.map_err(|e| content::not_made(&to, e))?;
    }
    extract(session, &stored, &to)?;
    Ok(Restored {
        id: stored.backup.id,
        repository: stored.backup.configured.name,
        member: stored.member,
        database: None,
        selected: None,
    })
}

/// Puts the dumps of a backup below a directory that is empty.
///
/// # Errors
/// Those of [`content::read`] and [`put_back`].
pub(super) fn extract(session: &Session, stored: &Stored, to: &Path) -> Result<()> {
    let host = &session.host;
    host.progress.phase("read the dumps", None);
    stored.backup.read(session, |open| {
        put_back(open.snapshot, open.member, to, (host, open.tick)).map(|_| ())
    })
}

/// Restores one database of a backup into a database of a live server.
///
/// # Errors
/// `Usage`; `Refused` when the database is not empty, or exists already, for data alone when a table is missing or has rows, and for a partitioned table
/// without its partitions; `Server` when `pg_restore` fails; those of [`content::read`].
pub fn to_server(
    session: &Session,
    name: &str,
    backup: Option<&BackupId>,
    asked: &Into,
) -> Result<Restored> {
    check_conninfo(&asked.conninfo)?;
    if asked.replace && !asked.tables.is_empty() {
        return Err(err!(Usage, "--replace does not go with --table").hint(
            "Nothing was done: pg_restore would drop the table with its indexes, constraints and triggers, and bring back definition and rows alone.\nRestore the table into another database, and copy its rows from there.",
        ));
    }
    let stored = find(session, name, backup)?;
    if stored.member.content == LogicalContent::Data {
        data::check_options(asked)?;
    }
    let database = stored.member.database(asked.database.as_deref())?.clone();
    let least = Major::from_number(stored.member.pg_dump_major)?;
    let pg_restore = Tool::find("pg_restore", least, &folders(session, asked.bin.as_deref()))?;
    let target = Target::open(session, asked, &stored.member, &database)?;
    let spool = Spool::new(&session.host.scratch)?;
    let dumps = spool.directory("dumps")?;
    extract(session, &stored, &dumps)?;
    let directory = dumps.join(database.directory());
    let service = write_service(&asked.conninfo, &target.info, &spool)?;
    let mut tick = || session.host.check_stop();
    let selection = Selection {
        session,
        asked,
        existing: &target.schemas,
        publications: &target.publications,
        content: stored.member.content,
    };
    let selected = selection.lines(&pg_restore, &directory, &spool, &mut tick)?;
    if selected.is_some() && database.large_objects.is_some_and(|had| had.count > 0) {
        session.note(
            "large objects of the dump belong to no schema and no table: a part of it brings none",
        );
    }
    if stored.member.content == LogicalContent::Data {
        let tables = rows::read(&dumps.join(database.rows_file()))?;
        target.require_empty_tables(session, asked, (&database, tables))?;
    }
    let steps = match (&selected, asked.jobs) {
        (None, None) => vec![Step::default()],
        (Some(lines), None) => vec![Step::of(None, lines.clone())],
        (Some(lines), Some(_)) => steps(lines),
        (None, Some(_)) => {
            let file = spool.file("list", b"")?;
            // Without it grants, comment and label of the database itself are no part of the list.
            let creates: Vec<String> = asked
                .create
                .then(|| "--create".to_owned())
                .into_iter()
                .collect();
            let all = contents(&pg_restore, &directory, &creates, &file, &mut tick)?;
            steps(&entries(&all).map(str::to_owned).collect::<Vec<_>>())
        }
    };
    let phase = format!("restore database \"{}\"", database.name);
    session.host.progress.phase(&phase, None);
    for step in &steps {
        // The first step makes the database.
        let creates = asked.create && step.section.is_none_or(|section| section == PRE_DATA);
        let into = match asked.create && !creates {
            true => &database.name,
            false => &target.database,
        };
        let mut command = pg_restore.command(Some(&service));
        command.args(["--exit-on-error", "--no-password"]);
        command.arg(format!("--dbname={}", in_database(into)));
        for (is_wanted, option) in [
            (asked.no_owner, "--no-owner"),
            (asked.no_privileges, "--no-privileges"),
            (creates, "--create"),
            (asked.replace, "--clean"),
            (asked.replace, "--if-exists"),
            (asked.is_whole(), "--single-transaction"),
        ] {
            if is_wanted {
                command.arg(option);
            }
        }
        command.args(asked.jobs.map(|jobs| format!("--jobs={jobs}")));
        command.args(step.section.map(|name| format!("--section={name}")));
        if let Some(lines) = &step.entries {
            let list = spool.file("selected", (lines.join("\n") + "\n").as_bytes())?;
            command.arg("-L").arg(list);
        }
        command.arg(&directory);
        let warnings = tool::run(&mut command, &mut tick);
        let warnings = warnings.map_err(|e| asked.explained(e, &database))?;
        warnings.iter().for_each(|line| session.warn(line));
    }
    let filled = match asked.create {
        true => database.name,
        false => target.database,
    };
    Ok(Restored {
        id: stored.backup.id,
        repository: stored.backup.configured.name,
        member: stored.member,
        database: Some(filled),
        selected: selected.map(|lines| lines.len() as u64),
    })
}

/// Command lines are seen by everybody.
fn check_conninfo(conninfo: &str) -> Result<()> {
    match config::holds_password(conninfo) {
        true => Err(err!(Usage, "--into holds a password or another secret")
            .hint("Nothing was done. Put it into a password file, and add passfile=FILE instead.")),
        false => Ok(()),
    }
}

/// A run of `pg_restore`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Step {
    /// The section of the dump; none: all.
    section: Option<&'static str>,
    /// Lines of the dump's contents; none: all.
    entries: Option<Vec<String>>,
}

impl Step {
    fn of(section: Option<&'static str>, entries: Vec<String>) -> Step {
        Step {
            section,
            entries: Some(entries),
        }
    }
}

/// Orders what `pg_restore` does not with several connections: rows of partitions before the constraints of their root, and foreign keys after the
/// indexes of partitions, with which they deadlock. Event triggers come with the keys, which else would fire them; `pg_restore` makes them last.
fn steps(entries: &[String]) -> Vec<Step> {
    let (mut last, mut others) = (Vec::new(), Vec::new());
    let mut is_last = false;
    for line in entries {
        // The comment on an object follows it.
        let kind = kind_of(line);
        let starts = |names: &[&str]| names.iter().any(|name| kind.starts_with(name));
        is_last = starts(&["FK CONSTRAINT ", "EVENT TRIGGER "])
            || is_last && starts(&["COMMENT ", "SECURITY LABEL "]);
        let part = if is_last { &mut last } else { &mut others };
        part.push(line.clone());
    }
    let mut steps: Vec<Step> = [PRE_DATA, "data", POST_DATA]
        .map(|section| Step::of(Some(section), others.clone()))
        .into();
    if !last.is_empty() {
        steps.push(Step::of(Some(POST_DATA), last));
    }
    steps
}

impl Into {
    /// Whether it is one transaction.
    fn is_whole(&self) -> bool {
        self.jobs.is_none() && !self.create
    }

    /// Whether a part of the dump is selected.
    pub(super) fn is_part(&self) -> bool {
        !self.schemas.is_empty() || !self.tables.is_empty()
    }

    fn explained(&self, e: Error, database: &DatabaseMember) -> Error {
        let state = match (self.is_whole(), self.create) {
            (true, _) => "The database is as it was.".to_owned(),
            (false, true) => format!(
                "Database \"{}\" may exist in part: drop it before the next try.",
                database.name
            ),
            (false, false) => {
                "The database has a part of the dump. Without --jobs a restore is one transaction."
                    .to_owned()
            }
        };
        let next = match e.to_string() {
            _ if e.code() == Code::Interrupted => "",
            text if text.contains("role \"") => {
                "\nCreate the roles from globals.sql of pitr logical restore --to DIR, or add --no-owner --no-privileges."
            }
            _ if self.is_part() => {
                "\nTypes, functions and tables outside of the selected part are not restored with it: select their schemas, too. Whatever lies in no schema has to be there before: extensions, foreign servers and their user mappings."
            }
            _ => "\nMend what the server names, then run the same command again.",
        };
        e.hint(format!("{state}{next}"))
    }
}

/// The server that is restored into.
struct Target {
    /// How it is reached: the one host that answered.
    info: ConnInfo,
    /// The database that `pg_restore` connects to.
    database: String,
    /// Schemas that are there.
    schemas: BTreeSet<String>,
    /// Publications that are there, and take tables.
    publications: BTreeSet<String>,
}

impl Target {
    fn open(
        session: &Session,
        asked: &Into,
        member: &Member,
        database: &DatabaseMember,
    ) -> Result<Target> {
        let mut info = ConnInfo::resolve(&asked.conninfo, &Environment::of_process())?;
        let named = match (&info.dbname, asked.create) {
            (Some(name), _) => name.clone(),
            (None, true) => "postgres".to_owned(),
            (None, false) => {
                return Err(err!(Usage, "--into names no database").hint(
                    "Nothing was done. Add dbname=NAME, a database that is empty, or --create.",
                ));
            }
        };
        info.dbname = Some(named.clone());
        let host = &session.host;
        let connected = SqlSession::connect(&info, &host.progress, &host.stop);
        let mut sql = connected.map_err(|e| match sqlstate(&e) {
            Some(NO_DATABASE) => e.hint(no_database(&info, &named, asked.create)),
            _ => e,
        })?;
        info.hosts = vec![sql.session().place().clone()];
        let major = sql.session().major()?;
        if major.number() < member.server_major {
            return Err(err!(
                Refused,
                "the server runs PostgreSQL {major}, the dump is of PostgreSQL {}",
                member.server_major
            )
            .hint("Nothing was done: a dump is restored into its own major or a newer one."));
        }
        if asked.create {
            check_absent(&mut sql, &database.name)?;
        } else {
            check_primary(&mut sql)?;
            // Data alone needs tables. They are looked at once the dump has told which.
            if member.content != LogicalContent::Data {
                check_contents(&mut sql, asked, &named)?;
            }
        }
        let rows = sql.query("select nspname from pg_catalog.pg_namespace")?;
        Ok(Target {
            schemas: rows.texts(0)?.into_iter().collect(),
            publications: publications::there(&mut sql)?,
            database: named,
            info,
        })
    }

    /// Requires that the tables which data goes into are there, and have no rows.
    fn require_empty_tables(
        &self,
        session: &Session,
        asked: &Into,
        (dumped, tables): (&DatabaseMember, Vec<TableRows>),
    ) -> Result<()> {
        let host = &session.host;
        let mut sql = SqlSession::connect(&self.info, &host.progress, &host.stop)?;
        data::check_tables(&mut sql, &self.database, &data::selected(tables, asked))?;
        match asked.is_part() {
            true => Ok(()),
            false => data::check_large_objects(&mut sql, &self.database, dumped.large_objects),
        }
    }
}

/// The hint where the server has no database of the name.
fn no_database(info: &ConnInfo, name: &str, creates: bool) -> String {
    if creates {
        return "Nothing was done.\n--create is begun from a database that is there: name one with --into, such as dbname=postgres.".to_owned();
    }
    let server = info.hosts.first().map(|host| {
        let place = match &host.address {
            HostAddress::Socket(directory) => directory.display().to_string(),
            HostAddress::Tcp { name, .. } => name.clone(),
        };
        format!(" -h {} -p {}", shell_word(&place), host.port)
    });
    format!(
        "Nothing was done.\ncreatedb{} -U {} -T template0 {} makes it; then run the same command again.",
        server.unwrap_or_default(),
        shell_word(&info.user),
        shell_word(name)
    )
}

fn check_absent(sql: &mut SqlSession, name: &str) -> Result<()> {
    let literal = name.replace('\'', "''");
    let rows = sql.query(&format!(
        "select count(*) from pg_catalog.pg_database where datname = '{literal}'"
    ))?;
    match rows.value::<u64>(0, 0)? {
        0 => Ok(()),
        _ => Err(err!(Refused, "database \"{name}\" exists").hint(
            "Nothing was done. Without --create the database of --into is filled, when it is empty.",
        )),
    }
}

/// Requires that the server takes writes.
fn check_primary(sql: &mut SqlSession) -> Result<()> {
    let rows = sql.query("select pg_catalog.pg_is_in_recovery()")?;
    match rows.text(0, 0)? {
        Some("t") => Err(
            err!(Refused, "the server is a standby, and takes no writes")
                .hint("Nothing was done. Name its primary with --into."),
        ),
        _ => Ok(()),
    }
}

/// Requires that the database is empty, or that what the dump names may be dropped.
fn check_contents(sql: &mut SqlSession, asked: &Into, name: &str) -> Result<()> {
    // The contents that initdb and extensions made do not count.
    let rows = sql.query(
        "with own as (select oid from pg_catalog.pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema'), \
         member as (select classid, objid from pg_catalog.pg_depend where deptype = 'e') \
         select (select count(*) from pg_catalog.pg_class c where relnamespace in (select oid from own) and relkind in ('r', 'p', 'v', 'm', 'S', 'f', 'c') \
           and not exists (select from member m where m.classid = 'pg_catalog.pg_class'::regclass and m.objid = c.oid)), \
         (select count(*) from pg_catalog.pg_proc p where pronamespace in (select oid from own) \
           and not exists (select from member m where m.classid = 'pg_catalog.pg_proc'::regclass and m.objid = p.oid)), \
         (select count(*) from pg_catalog.pg_type t where typnamespace in (select oid from own) and typrelid = 0 and typelem = 0 \
           and not exists (select from member m where m.classid = 'pg_catalog.pg_type'::regclass and m.objid = t.oid)), \
         (select count(*) from own where oid >= 16384), (select count(*) from pg_catalog.pg_largeobject_metadata)",
    )?;
    let mut found = Vec::new();
    let nouns = ["relation", "function", "type", "schema", "large object"];
    for (column, noun) in nouns.into_iter().enumerate() {
        let count: u64 = rows.value(0, column)?;
        if count > 0 {
            found.push(human::count(count, noun));
        }
    }
    if found.is_empty() || (asked.replace && asked.is_confirmed) {
        return Ok(());
    }
    let found = found.join(", ");
    let e = err!(Refused, "database \"{name}\" is not empty: {found}");
    Err(match asked.replace {
        true => e.hint("Nothing was done. With --confirm whatever the dump has under the same name is dropped first (pg_restore --clean --if-exists), in the same transaction."),
        false => e.hint("Nothing was done. Name an empty database, add --create for a new one, or --replace --confirm to drop what the dump has under the same name."),
    })
}

/// The entries of a dump that are restored.
struct Selection<'a> {
    session: &'a Session,
    asked: &'a Into,
    existing: &'a BTreeSet<String>,
    publications: &'a BTreeSet<String>,
    content: LogicalContent,
}

impl Selection<'_> {
    /// Returns the lines of the dump's contents that are restored; none where all are.
    fn lines(
        &self,
        pg_restore: &Tool,
        directory: &Path,
        spool: &Spool,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Option<Vec<String>>> {
        if !self.asked.is_part() {
            return Ok(None);
        }
        let file = spool.file("list", b"")?;
        let all = contents(pg_restore, directory, &[], &file, tick)?;
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        let mut schemas: BTreeSet<&str> = BTreeSet::new();
        let of_schemas = self.asked.schemas.iter().map(|s| (s.as_str(), None));
        let of_tables = self.asked.tables.iter().map(|t| match t.split_once('.') {
            Some((schema, table)) => Ok((schema, Some(table))),
            None => Err(err!(Usage, "\"{t}\" is not schema.table")
                .hint("Nothing was done. Write the schema as well: --table public.orders")),
        });
        for wish in of_schemas.map(Ok).chain(of_tables) {
            let (schema, table) = wish?;
            let mut options = vec![format!("--schema={schema}")];
            options.extend(table.map(|t| format!("--table={t}")));
            let list = contents(pg_restore, directory, &options, &file, tick)?;
            let found: Vec<&str> = entries(&list).collect();
            if found.is_empty() {
                let what = table.map_or(format!("schema \"{schema}\""), |t| {
                    format!("table \"{schema}\".\"{t}\"")
                });
                return Err(err!(NotFound, "the dump has nothing of {what}")
                    .hint("Nothing was done. Names are taken as they are, without quotes."));
            }
            if let Some(table) = table {
                let of = (pg_restore, directory, spool);
                self.check_has_rows((schema, table), &found, &all, of, tick)?;
                self.warn_of_row_security((schema, table), &found, &all);
            }
            schemas.insert(schema);
            wanted.extend(found.into_iter().map(str::to_owned));
        }
        self.check_partitions((&all, &wanted), (pg_restore, directory, spool), tick)?;
        // pg_restore takes the schema's own entries for no part of it.
        schemas.retain(|schema| !self.existing.contains(*schema));
        let mut lines = Vec::new();
        for line in entries(&all) {
            let is_of_schema = |schema: &&str| may_be_of_schema(kind_of(line), schema);
            let is_needed = wanted.contains(line)
                || schemas.iter().any(is_of_schema) && {
                    let one = spool.file("one", line.as_bytes())?;
                    let options = ["-L".to_owned(), one.display().to_string()];
                    let head = head(pg_restore, directory, &options, &file, tick)?;
                    let mut schemas = schemas.iter();
                    schemas.any(|schema| is_head_of_schema(&head, schema))
                };
            lines.extend(is_needed.then(|| line.to_owned()));
        }
        let of = (pg_restore, directory, spool);
        self.without_lacking_publications(lines, of, tick).map(Some)
    }

    /// Warns of a table whose rows everybody sees who has a grant: `pg_restore --table` brings grants, and no policies.
    fn warn_of_row_security(&self, (schema, table): (&str, &str), found: &[&str], all: &str) {
        let has_schema = self.asked.schemas.iter().any(|asked| asked == schema);
        if !has_schema && loses_row_security(found, all) {
            self.session.warn(&format!(
                "table \"{schema}\".\"{table}\" comes without its row security and its policies, which --table leaves out: whoever may read it sees all rows. --schema {} brings them; --no-privileges leaves grants out, too",
                shell_word(schema)
            ));
        }
    }

    /// Leaves out what adds tables to publications that the target lacks.
    fn without_lacking_publications(
        &self,
        lines: Vec<String>,
        (pg_restore, directory, spool): (&Tool, &Path, &Spool),
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<String>> {
        let adding = lines.iter().map(String::as_str);
        let adding: Vec<&str> = adding.filter(|line| publications::adds(line)).collect();
        if adding.is_empty() {
            return Ok(lines);
        }
        let some = spool.file("some", adding.join("\n").as_bytes())?;
        let file = spool.file("definition", b"")?;
        let options = ["-L".to_owned(), some.display().to_string()];
        let commands = printed(pg_restore, directory, &options, &file, tick)?;
        let (kept, lacking) = publications::kept(lines, &commands, self.publications);
        if !lacking.is_empty() {
            let names: Vec<String> = lacking.into_iter().collect();
            self.session.note(&format!(
                "nothing is added to publications that the database lacks, or that have all tables: {}",
                names.join(", ")
            ));
        }
        Ok(kept)
    }

    /// Refuses a schema with a partitioned table of which partitions lie in schemas that are not asked for. Their rows would be missing, and
    /// `--clean` drops them with the table.
    fn check_partitions(
        &self,
        (all, wanted): (&str, &BTreeSet<String>),
        (pg_restore, directory, spool): (&Tool, &Path, &Spool),
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let is_left =
            |line: &&str| kind_of(line).starts_with("TABLE ATTACH ") && !wanted.contains(*line);
        let left: Vec<&str> = entries(all).filter(is_left).collect();
        let is_full = self.content == LogicalContent::Full;
        if !is_full || self.asked.schemas.is_empty() || left.is_empty() {
            return Ok(());
        }
        let some = spool.file("some", left.join("\n").as_bytes())?;
        let file = spool.file("definition", b"")?;
        let options = ["-L".to_owned(), some.display().to_string()];
        let commands = printed(pg_restore, directory, &options, &file, tick)?;
        for schema in &self.asked.schemas {
            if let Some((table, partition)) = partition_elsewhere(&commands, schema) {
                return Err(err!(
                    Refused,
                    "table {table} has partition {partition} in a schema that is not restored"
                )
                .hint("Nothing was done. The rows of such partitions would be missing, and --replace would drop them with the table. Name their schemas as well, each with --schema."));
            }
        }
        Ok(())
    }

    /// Refuses a table whose rows the dump has under the names of its partitions, where those do not come with it.
    fn check_has_rows(
        &self,
        (schema, table): (&str, &str),
        found: &[&str],
        all: &str,
        (pg_restore, directory, spool): (&Tool, &Path, &Spool),
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let has_schema = self.asked.schemas.iter().any(|asked| asked == schema);
        if self.content != LogicalContent::Full || has_schema || has_rows(found) {
            return Ok(());
        }
        // Older dumps have in the definition of a partition what leads it to its table.
        let is_led_apart = entries(all).any(|line| kind_of(line).starts_with("TABLE ATTACH "));
        if !is_led_apart && self.asked.tables.len() > 1 {
            return Ok(());
        }
        let one = spool.file("one", found.join("\n").as_bytes())?;
        let file = spool.file("definition", b"")?;
        let options = ["-L".to_owned(), one.display().to_string()];
        let definition = printed(pg_restore, directory, &options, &file, tick)?;
        if !is_partitioned(&definition) {
            return Ok(());
        }
        let partitions = match is_led_apart {
            true => {
                "Or name its partitions alone, which then are tables of their own: --table SCHEMA.PARTITION"
            }
            false => "Or name its partitions as well: --table SCHEMA.PARTITION",
        };
        Err(err!(
            Refused,
            "table \"{schema}\".\"{table}\" is partitioned: its rows are those of its partitions, which --table leaves out"
        )
        .hint(format!(
            "Nothing was done. Restore its whole schema: --schema {}\n{partitions}",
            shell_word(schema)
        )))
    }
}

/// Pure: whether a list has the rows of a table, or what is no table at all.
fn has_rows(found: &[&str]) -> bool {
    let starts = |name: &str| found.iter().any(|line| kind_of(line).starts_with(name));
    starts("TABLE DATA ") || !starts("TABLE ")
}

/// Pure: whether a table has row security which is not among its own entries. That entry has the number of the table.
fn loses_row_security(found: &[&str], all: &str) -> bool {
    let tables = found
        .iter()
        .filter(|line| kind_of(line).starts_with("TABLE "));
    let tables: Vec<_> = tables.map(|line| number_of(line)).collect();
    entries(all)
        .filter(|line| kind_of(line).starts_with("ROW SECURITY "))
        .any(|line| tables.contains(&number_of(line)))
}

/// Pure: whether the definition of a table without rows, as `pg_dump` writes it, is that of a partitioned one.
fn is_partitioned(definition: &str) -> bool {
    let mut lines = definition.lines();
    lines.any(|line| line.starts_with("PARTITION BY "))
}

/// Pure: the first table of a schema to which these commands attach a partition, and that partition.
fn partition_elsewhere<'c>(commands: &'c str, schema: &str) -> Option<(&'c str, &'c str)> {
    let starts = names_of_schema(schema).map(|name| format!("{name}."));
    commands.lines().find_map(|line| {
        let (table, partition) = line
            .strip_prefix("ALTER TABLE ONLY ")?
            .split_once(" ATTACH PARTITION ")?;
        let name = partition
            .split_once(" FOR VALUES")
            .map_or_else(|| partition.trim_end_matches(" DEFAULT;"), |(name, _)| name);
        let is_of_schema = starts.iter().any(|start| table.starts_with(start));
        is_of_schema.then_some((table, name))
    })
}

/// The kinds of entries that a schema itself has, beside its own.
const OF_SCHEMA: [&str; 3] = ["ACL", "COMMENT", "SECURITY LABEL"];

/// The name of a schema as `pg_dump` writes it into entries about it: with quotes where SQL needs them.
fn names_of_schema(schema: &str) -> [String; 2] {
    [
        schema.to_owned(),
        format!("\"{}\"", schema.replace('"', "\"\"")),
    ]
}

/// Pure: whether an entry may be about a schema. Its owner follows without a mark where the name ends, so "a" with the owner "b c" looks like "a b".
fn may_be_of_schema(kind: &str, schema: &str) -> bool {
    kind.starts_with(&format!("SCHEMA - {schema} "))
        || names_of_schema(schema).iter().any(|name| {
            let mut kinds = OF_SCHEMA.iter();
            kinds.any(|of| kind.starts_with(&format!("{of} - SCHEMA {name} ")))
        })
}

/// Pure: whether the head of an entry says that it is about a schema.
fn is_head_of_schema(head: &str, schema: &str) -> bool {
    head.starts_with(&format!("-- Name: {schema}; Type: SCHEMA; "))
        || names_of_schema(schema).iter().any(|name| {
            let mut kinds = OF_SCHEMA.iter();
            kinds.any(|of| head.starts_with(&format!("-- Name: SCHEMA {name}; Type: {of}; ")))
        })
}

/// The line above the commands of an entry, with its name and kind apart.
fn head(
    pg_restore: &Tool,
    directory: &Path,
    options: &[String],
    file: &Path,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<String> {
    let text = printed(pg_restore, directory, options, file, tick)?;
    let head = text.lines().find(|line| line.starts_with("-- Name: "));
    Ok(head.unwrap_or_default().to_owned())
}

/// The number of an entry's object in its catalog.
fn number_of(line: &str) -> Option<&str> {
    line.split(' ').nth(2)
}

/// The kind of an entry, with its names: before it come its number and the two of its object.
pub(super) fn kind_of(line: &str) -> &str {
    line.splitn(4, ' ').nth(3).unwrap_or_default()
}

fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.lines()
        .filter(|line| !line.starts_with(';') && !line.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::{
        ConnInfo, Environment, POST_DATA, PRE_DATA, Step, has_rows, is_head_of_schema,
        is_partitioned, loses_row_security, may_be_of_schema, no_database, steps,
    };

    #[test]
    fn u111_a_table_without_rows_of_its_own_is_told_from_others() {
        let table = "215; 1259 16385 TABLE app parts me";
        let data = "3425; 0 16385 TABLE DATA app parts me";
        let view = "216; 1259 16390 VIEW app seen me";
        assert!(!has_rows(&[table]) && has_rows(&[table, data]) && has_rows(&[view]));
        let definition = "CREATE TABLE app.parts (\n    k integer\n)\nPARTITION BY RANGE (k);\n\n";
        assert!(is_partitioned(definition));
        assert!(!is_partitioned("CREATE TABLE app.t (\n    k integer\n);\n"));
    }

    #[test]
    fn k67_row_security_is_that_of_the_table_of_its_number() {
        let all = "203; 1259 16388 TABLE s t me\n3013; 0 16388 TABLE DATA s t me\n204; 1259 16392 TABLE s t x me\n3005; 0 16388 ROW SECURITY s t me";
        let own = ["203; 1259 16388 TABLE s t me"];
        assert!(loses_row_security(&own, all));
        let other = ["204; 1259 16392 TABLE s t x me"];
        assert!(!loses_row_security(&other, all));
    }

    #[test]
    fn a_database_that_the_server_lacks_comes_with_the_command_that_makes_it() {
        let given = "host=/run/postgresql port=5433 user=app dbname='my shop'";
        let info = ConnInfo::resolve(given, &Environment::default()).unwrap();
        let hint = no_database(&info, "my shop", false);
        let command = "createdb -h /run/postgresql -p 5433 -U app -T template0 'my shop'";
        assert!(hint.contains(command), "{hint}");
        let hint = no_database(&info, "my shop", true);
        assert!(hint.contains("dbname=postgres"), "{hint}");
    }

    #[test]
    fn a_schema_is_told_from_one_whose_name_goes_on() {
        let heads = [
            "-- Name: a; Type: SCHEMA; Schema: -; Owner: b c",
            "-- Name: SCHEMA a; Type: ACL; Schema: -; Owner: b c",
            "-- Name: SCHEMA a; Type: COMMENT; Schema: -; Owner: b c",
        ];
        for head in heads {
            assert!(is_head_of_schema(head, "a"), "{head}");
            assert!(!is_head_of_schema(head, "a b"), "{head}");
        }
        let odd = "-- Name: SCHEMA \"a b\"; Type: ACL; Schema: -; Owner: me";
        assert!(is_head_of_schema(odd, "a b") && !is_head_of_schema(odd, "a"));
        for kind in [
            "SCHEMA - a b c",
            "ACL - SCHEMA a me",
            "ACL - SCHEMA \"a\" me",
        ] {
            assert!(may_be_of_schema(kind, "a"), "{kind}");
        }
        for kind in ["SCHEMA - ab me", "ACL a TABLE t me", "ACL - SCHEMA ab me"] {
            assert!(!may_be_of_schema(kind, "a"), "{kind}");
        }
    }

    #[test]
    fn foreign_keys_event_triggers_and_their_comments_come_last() {
        let entries = [
            "1; 1259 16385 TABLE public orders me",
            "2; 0 0 COMMENT public TABLE orders me",
            "3; 2606 16390 CONSTRAINT FK CONSTRAINT orders pkey me",
            "4; 2606 16391 FK CONSTRAINT public lines of me",
            "5; 0 0 COMMENT public CONSTRAINT of ON lines me",
            "6; 2606 16392 FK CONSTRAINT public lines other me",
            "7; 2620 16393 TRIGGER public orders t me",
            "8; 0 0 COMMENT public TRIGGER t ON orders me",
            "9; 3466 16393 EVENT TRIGGER - guard me",
            "10; 0 0 COMMENT - EVENT TRIGGER guard me",
        ]
        .map(str::to_owned);
        let at = |numbers: &[usize]| numbers.iter().map(|n| entries[n - 1].clone()).collect();
        let others: Vec<String> = at(&[1, 2, 3, 7, 8]);
        let mut expected = vec![
            Step::of(Some(PRE_DATA), others.clone()),
            Step::of(Some("data"), others.clone()),
            Step::of(Some(POST_DATA), others),
        ];
        assert_eq!(steps(&at(&[1, 2, 3, 7, 8])), expected);
        expected.push(Step::of(Some(POST_DATA), at(&[4, 5, 6, 9, 10])));
        assert_eq!(steps(&entries), expected);
    }
}
