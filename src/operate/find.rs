//! Finds what happened to data, and the target that comes just before it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::cloned_names::{self, Place};
use super::listed_names::{Listed, Lists};
use super::live_names;
use super::reading::Reading;
use super::session::Session;
use super::target::{AskedTarget, Point};
use crate::config;
use crate::err;
use crate::error::Result;
use crate::find::catalogs::CatalogFiles;
use crate::find::event::{Event, Kind, Relation};
use crate::find::names::{self, Names};
use crate::find::scan::{Found, Request, Scan, Unread};
use crate::find::walk::{FOLLOWED_BYTES, NameWalk, Told};
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::plan::target::Target;
use crate::plan::target_time::WrittenTime;
use crate::wal::inventory::Inventory;

/// Fewer rows than this are no event, where neither a table nor a transaction is named.
pub const ROWS_MIN: u64 = 1000;

/// The request.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// A table, with or without its schema.
    pub table: Option<String>,
    /// Kinds of events; none = all that the indexes show, and with a beginning or a transaction those of rows, too.
    pub kinds: BTreeSet<Kind>,
    /// Nothing before.
    pub since: Option<WrittenTime>,
    /// Nothing after.
    pub until: Option<WrittenTime>,
    /// One transaction.
    pub xid: Option<u32>,
    /// Fewer rows are no event.
    pub rows_min: Option<u64>,
    /// The place of clones for names that nothing else tells; none where no clone is wanted.
    pub clones: Option<Place>,
}

/// An event, and the command that leads to the moment before it.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// The event.
    #[serde(flatten)]
    pub event: Event,
    pub command: String,
}

/// The answer.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// The cluster's name.
    pub cluster: String,
    pub system_identifier: String,
    /// The timeline that was followed.
    pub timeline: u32,
    /// The kinds that were looked for.
    pub kinds: Vec<Kind>,
    /// Fewer rows are no event of kind `delete` or `update`.
    pub rows_min: u64,
    /// As it was asked.
    pub since: Option<TimestampTz>,
    /// As it was asked.
    pub until: Option<TimestampTz>,
    /// Events, in the order of the WAL.
    pub events: Vec<Shown>,
    /// Events of relations without a known name: where a table is asked for, they are counted and not shown.
    pub nameless_count: u64,
    /// WAL that was not looked at.
    pub unread: Vec<Unread>,
    /// The end of the last archived segment of the timeline: later WAL was not looked at.
    pub archived_lsn: Option<Lsn>,
    /// The time of the newest transaction that ended before it.
    pub archived_time: Option<TimestampTz>,
    /// Whether the question reaches beyond that: what happened later is not in the answer.
    pub reaches_beyond: bool,
    /// Segments that are stored.
    pub segment_count: u64,
    /// Segments that were decoded.
    pub decoded_count: u64,
    /// Meaning of the table's name, where no event was found.
    #[serde(skip)]
    pub table: Option<AskedTable>,
}

/// The table that was asked for, by the lists of backups.
#[derive(Debug, PartialEq, Eq)]
pub enum AskedTable {
    /// It has rows.
    Known,
    /// Its partitions have its rows.
    Partitioned,
    /// No list names it; the nearest name of them, if one is near.
    Unknown(Option<String>),
}

impl AskedTable {
    /// Looks for a table in the lists; none where they name nothing.
    fn look(listed: &BTreeMap<String, char>, table: &str) -> Option<AskedTable> {
        if listed.is_empty() {
            return None;
        }
        let mut kinds = listed.iter().filter(|(name, _)| is_name(name, table));
        let first = kinds.next().map(|(_, kind)| *kind);
        Some(match first {
            Some('p') if kinds.all(|(_, kind)| *kind == 'p') => AskedTable::Partitioned,
            Some(_) => AskedTable::Known,
            None => AskedTable::Unknown(near(listed, table)),
        })
    }
}

/// The name of the lists that is nearest to `table`, compared with or without its schema, as it is asked for.
fn near(listed: &BTreeMap<String, char>, table: &str) -> Option<String> {
    let has_schema = table.contains('.');
    let short = |name: &str| match name.split_once('.') {
        Some((_, own)) if !has_schema => own.to_owned(),
        _ => name.to_owned(),
    };
    let shorts: Vec<(String, &String)> = listed.keys().map(|name| (short(name), name)).collect();
    let nearest = config::nearest(table, shorts.iter().map(|(own, _)| own.as_str()))?;
    let found = shorts.iter().find(|(own, _)| own == nearest);
    found.map(|(_, name)| (*name).clone())
}

/// Looks for events.
///
/// # Errors
/// Errors of the repository; `Refused` while it is undecided which timeline is the cluster; `Usage` for words that mean nothing.
pub fn look(session: &Session, question: &Question) -> Result<Answer> {
    let reading = Reading::open(session)?;
    let inventory = reading.inventory(session)?;
    let cluster = reading.decide(session, &inventory, &[])?;
    let timeline = cluster.decided("Nothing was looked at.")?;
    let moment = |written: &Option<WrittenTime>| match written {
        Some(written) => time(session, &reading, &inventory, written).map(Some),
        None => Ok(None),
    };
    let kinds = question.kinds();
    let is_narrow = question.table.is_some() || question.xid.is_some();
    let request = Request {
        counts_rows: kinds.iter().any(|kind| kind.needs_rows()),
        rows_min: question
            .rows_min
            .unwrap_or(if is_narrow { 1 } else { ROWS_MIN }),
        since: moment(&question.since)?,
        until: moment(&question.until)?,
        xid: question.xid,
        finds_attempts: !is_narrow && kinds.contains(&Kind::Database),
    };
    let rollup = reading.rollup(session, &inventory)?;
    let scan = Scan::new((&inventory, &rollup), timeline, &session.host, &request)?;
    let mut lists = Lists::new(session, &reading, &inventory, timeline)?;
    let mut found = scan.run(&mut |lsn| lists.files_at(lsn))?;
    found.events.retain(|event| is_of_kind(&kinds, event.kind));
    let live = live(session, &reading, &inventory, question, &found);
    let mut more = CatalogFiles::default();
    for event in found.events.iter().filter(|event| is_vague(event)) {
        more.add_all(&lists.files_at(event.target_lsn).0);
    }
    if let Some(live) = &live
        && found.events.iter().any(is_vague)
    {
        more.add_all(&live.files);
    }
    if found.files.clone().add_all(&more) {
        // The catalogs have other files than WAL told: with them it tells more.
        found = scan.run(&mut |lsn| {
            let (mut files, from) = lists.files_at(lsn);
            files.add_all(&more);
            (files, from)
        })?;
        found.events.retain(|event| is_of_kind(&kinds, event.kind));
    }
    name_relations(&scan, &mut lists, live.as_ref(), &mut found)?;
    name_by_wal(&scan, &mut lists, live.as_ref(), &mut found)?;
    found.events.retain_mut(|event| lists.complete(event));
    if let Some(live) = &live {
        found.events.retain_mut(|event| live.complete(event));
        let named = found.events.iter_mut();
        named.for_each(|event| add_newer_name(event, live));
    }
    if let Some(place) = &question.clones {
        // A clone knows the names of that moment.
        let relations = found.events.iter_mut().filter_map(|e| e.relation.as_mut());
        relations.for_each(|relation| relation.is_unsure = false);
        let asked = (place, inventory.system_identifier);
        cloned_names::complete(session, asked, &mut found.events)?;
    }
    let is_nameless = |e: &Event| e.relation.as_ref().is_some_and(|r| r.name.is_none());
    let nameless_count = found.events.iter().filter(|e| is_nameless(e)).count() as u64;
    if let Some(table) = &question.table {
        found.events.retain(|event| is_table(event, table));
    }
    let table = question.table.as_ref().filter(|_| found.events.is_empty());
    let table = table.and_then(|table| AskedTable::look(&lists.tables(request.since), table));
    let order = |e: &Event| (e.commit_lsn.unwrap_or(e.first_lsn), e.kind, e.target_lsn);
    found.events.sort_by_key(order);
    let archived_time = scan.newest_end()?;
    let options = session.options(session.flags.cluster.as_deref());
    let shown = |event: Event| Shown {
        command: command(&options, event.target_lsn),
        event,
    };
    let reaches_beyond = question.xid.is_none_or(|_| found.events.is_empty())
        && request
            .until
            .is_none_or(|until| archived_time.is_none_or(|newest| until > newest));
    Ok(Answer {
        cluster: inventory.cluster.clone(),
        system_identifier: inventory.system_identifier.to_string(),
        timeline: timeline.decimal(),
        kinds: kinds.into_iter().collect(),
        rows_min: request.rows_min,
        since: request.since,
        until: request.until,
        events: found.events.into_iter().map(shown).collect(),
        nameless_count,
        unread: found.unread,
        archived_lsn: archived_end(&inventory, timeline),
        archived_time,
        reaches_beyond,
        segment_count: found.segments,
        decoded_count: found.decoded,
        table,
    })
}

/// The end of a timeline's last segment, or of what increments bring of a later one.
fn archived_end(inventory: &Inventory, timeline: TimelineId) -> Option<Lsn> {
    let stored = inventory.timelines.get(&timeline)?;
    let (_, last) = stored.segments.iter().last()?;
    let whole = last.range(inventory.segment_size).end;
    Some(stored.tails.values().copied().fold(whole, Lsn::max))
}

impl Question {
    /// The kinds that are looked for.
    fn kinds(&self) -> BTreeSet<Kind> {
        if !self.kinds.is_empty() {
            return self.kinds.clone();
        }
        let mut kinds = BTreeSet::from([
            Kind::Drop,
            Kind::Truncate,
            Kind::Rewrite,
            Kind::Database,
            Kind::Tablespace,
        ]);
        // Rows take every segment of the window: without a beginning that is the whole archive.
        if self.since.is_some() || self.xid.is_some() {
            kinds.extend([Kind::Delete, Kind::Update]);
        }
        kinds
    }
}

/// Whether an event is of a kind that is looked for; a removed file may have been any of three.
fn is_of_kind(kinds: &BTreeSet<Kind>, kind: Kind) -> bool {
    let files = [Kind::Drop, Kind::Truncate, Kind::Rewrite];
    kinds.contains(&kind) || (kind == Kind::Unclear && files.iter().any(|k| kinds.contains(k)))
}

fn is_table(event: &Event, table: &str) -> bool {
    let Some(relation) = &event.relation else {
        return false;
    };
    let then = relation.full_name();
    [then.as_deref(), relation.name_now.as_deref()]
        .into_iter()
        .flatten()
        .any(|name| is_name(name, table))
}

/// Whether a name is that of the table that is asked for. One whose schema is not known may be.
fn is_name(name: &str, table: &str) -> bool {
    match (name.rsplit_once('.'), table.rsplit_once('.')) {
        (Some((_, own)), None) => own == table,
        (None, Some((_, wanted))) => name == wanted,
        _ => name == table,
    }
}

/// Whether something of an event is not known that the server may know.
fn is_vague(event: &Event) -> bool {
    let is_named = event.relation.as_ref().is_none_or(Relation::is_named);
    event.kind == Kind::Unclear || !is_named
}

/// Gives relations of which no row stands near their event the names that WAL tells from the last list before it on. Those of which it does not
/// tell all stay nameless.
fn name_relations(
    scan: &Scan<'_>,
    lists: &mut Lists<'_>,
    live: Option<&Names>,
    found: &mut Found,
) -> Result<()> {
    let mut unsure: Vec<(Listed, &mut Event)> = Vec::new();
    for event in &mut found.events {
        let listed = unsure_since(lists, live, event);
        unsure.extend(listed.map(|listed| (listed, event)));
    }
    let show = &mut |relation: &mut Relation, told: Told<'_>| match told {
        Told::Row(row) | Told::Shown(row) => relation.take(row),
        Told::Same => {}
        Told::Unknown => relation.is_unsure = true,
    };
    let mut left = FOLLOWED_BYTES;
    follow(scan, &found.files, unsure, &mut left, show)?;
    let is_table = |e: &Event| e.relation.as_ref().is_none_or(|r| names::is_table(r.kind));
    found.events.retain(is_table);
    Ok(())
}

/// Shows what WAL tells of relations from the last list before their event on, those of the newest list first. `left` is how many bytes of it may
/// be decoded.
fn follow(
    scan: &Scan<'_>,
    files: &CatalogFiles,
    mut events: Vec<(Listed, &mut Event)>,
    left: &mut u64,
    show: &mut dyn FnMut(&mut Relation, Told<'_>),
) -> Result<()> {
    events.sort_by_key(|(listed, event)| (Reverse(listed.from), end_of(event)));
    let databases: BTreeSet<u32> = events.iter().map(|(listed, _)| listed.database).collect();
    let mut last: Option<(Lsn, NameWalk<'_>)> = None;
    for (listed, event) in events {
        let walk = match last.take() {
            Some((from, walk)) if from == listed.from => walk,
            _ => scan.relations(files, databases.clone(), listed.from),
        };
        let (_, walk) = last.insert((listed.from, walk));
        walk.names_at(end_of(event), left)?;
        if let Some(relation) = &mut event.relation {
            let told = walk.told(listed.database, relation, listed.oid);
            show(relation, told);
        }
    }
    Ok(())
}

/// The last list before an event whose relation has no name, where what was kept before and behind the event does not name it alike.
fn unsure_since(lists: &mut Lists<'_>, live: Option<&Names>, event: &Event) -> Option<Listed> {
    event.relation.as_ref().filter(|r| r.name.is_none())?;
    let listed = lists.last_before(event)?;
    if lists.agree(event, live) {
        return None;
    }
    // Indexes and the like are no events, and what nothing names is nameless anyway.
    let mut named = event.clone();
    let is_table = lists.complete(&mut named) && live.is_none_or(|l| l.complete(&mut named));
    let is_named = named.relation.is_some_and(|r| r.name.is_some());
    (is_table && is_named).then_some(listed)
}

/// Adds the names of schemas and databases that what was kept before and behind an event does not tell alike: the WAL before it knows which was
/// that of then.
fn name_by_wal(
    scan: &Scan<'_>,
    lists: &mut Lists<'_>,
    live: Option<&Names>,
    found: &mut Found,
) -> Result<()> {
    let lacks =
        |e: &Event| e.database.as_ref().is_some_and(|d| d.name.is_none()) || lacks_schema(e);
    let events = found.events.iter_mut();
    let mut unsure: Vec<&mut Event> = events.filter(|e| lacks(e)).collect();
    unsure.retain(|event| !lists.agree(event, live));
    unsure.sort_by_key(|event| end_of(event));
    let mut walk = scan.names(&found.files);
    let mut left = FOLLOWED_BYTES;
    let mut unmoved = Vec::new();
    for event in unsure {
        let names = walk.names_at(end_of(event), &mut left)?;
        let Some(database) = &mut event.database else {
            continue;
        };
        if database.name.is_none() {
            let name = names.and_then(|names| names.database(database.oid));
            database.name = name.cloned();
        }
        if let Some(relation) = &mut event.relation
            && relation.schema.is_none()
        {
            let schema = names.and_then(|n| n.schema(database.oid, relation.namespace));
            relation.schema = schema.cloned();
            add_own_schema(relation);
            // A table that was moved has another schema in the lists.
            relation.is_unsure |= relation.schema.is_none() && relation.namespace != 0;
            let namespace = relation.namespace;
            let is_changed = names.is_none_or(|n| n.has_changed_schema(database.oid, namespace));
            let listed = lists.last_before(event).filter(|_| !is_changed);
            if let Some(listed) = listed.filter(|l| l.oid.is_some() && lacks_schema(event)) {
                unmoved.push((listed, event));
            }
        }
    }
    let show = &mut |relation: &mut Relation, told: Told<'_>| {
        relation.is_unsure = !matches!(told, Told::Same | Told::Shown(_));
    };
    follow(scan, &found.files, unmoved, &mut left, show)?;
    take_schemas_of_now(&mut walk, live, found, &mut left)?;
    let relations = found.events.iter_mut().filter_map(|e| e.relation.as_mut());
    relations.for_each(add_own_schema);
    Ok(())
}

/// Takes the server's names of schemas that WAL before an event does not tell, where WAL behind it changes none.
fn take_schemas_of_now(
    walk: &mut NameWalk<'_>,
    live: Option<&Names>,
    found: &mut Found,
    bytes: &mut u64,
) -> Result<()> {
    let is_left =
        |e: &&mut Event| lacks_schema(e) && e.relation.as_ref().is_some_and(|r| r.is_unsure);
    let mut left = found.events.iter_mut().filter(is_left).peekable();
    let Some((live, _)) = live.zip(left.peek()) else {
        return Ok(());
    };
    let Some(names) = walk.names_at(Lsn(u64::MAX), bytes)? else {
        return Ok(());
    };
    for event in left {
        if let Some((database, relation)) = event.database.as_ref().zip(event.relation.as_mut())
            && !names.has_changed_schema(database.oid, relation.namespace)
        {
            relation.schema = live.schema(database.oid, relation.namespace).cloned();
        }
    }
    Ok(())
}

/// Whether the schema of a relation is known by its oid alone.
fn lacks_schema(event: &Event) -> bool {
    let relation = event.relation.as_ref();
    relation.is_some_and(|r| r.schema.is_none() && r.namespace != 0)
}

/// The end of an event's transaction, or what comes nearest.
fn end_of(event: &Event) -> Lsn {
    event.commit_lsn.unwrap_or(event.target_lsn)
}

/// Asks the server, where it can tell something.
fn live(
    session: &Session,
    reading: &Reading,
    inventory: &Inventory,
    question: &Question,
    found: &Found,
) -> Option<Names> {
    let lacks_database = |e: &&Event| e.database.as_ref().is_some_and(|d| d.name.is_none());
    let wanted = |e: &&Event| is_vague(e) || lacks_database(e) || question.table.is_some();
    let wanted = found.events.iter().filter(wanted);
    let databases: BTreeSet<u32> = wanted
        .filter_map(|e| Some(e.database.as_ref()?.oid))
        .collect();
    if databases.is_empty() {
        return None;
    }
    let conninfo = reading.cluster.as_ref()?.conninfo.as_ref()?;
    match live_names::ask(conninfo.expose(), inventory.system_identifier, &databases) {
        Ok(names) => Some(names),
        Err(e) => {
            session.note(&format!(
                "names that only the server knows are missing: {e}"
            ));
            None
        }
    }
}

/// Takes the name that a relation has on the server.
fn add_newer_name(event: &mut Event, live: &Names) {
    let Some((database, relation)) = event.database.as_ref().zip(event.relation.as_mut()) else {
        return;
    };
    let now = live.full_name(database.oid, relation);
    if let Some(now) = now.filter(|now| Some(now) != relation.full_name().as_ref()) {
        relation.name_now = Some(now);
    }
}

/// Takes the name of a schema that has had its oid from initdb on; a new name would stand in the WAL, or on the server.
///
/// PostgreSQL: src/include/catalog/pg_namespace.dat.
fn add_own_schema(relation: &mut Relation) {
    if relation.schema.is_none() {
        relation.schema = match relation.namespace {
            2200 => Some("public".to_owned()),
            11 => Some("pg_catalog".to_owned()),
            _ => None,
        };
    }
}

fn command(options: &str, target_lsn: Lsn) -> String {
    format!("pitr plan{options} --target-lsn {target_lsn} --exclusive")
}

fn time(
    session: &Session,
    reading: &Reading,
    inventory: &Inventory,
    written: &WrittenTime,
) -> Result<TimestampTz> {
    let asked = AskedTarget::at(Point::Time(written.clone()));
    match reading.resolve(session, inventory, &asked)?.target.target {
        Target::Time(at) => Ok(at),
        other => Err(err!(Internal, "a time became {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_list_has_is_told_from_a_table_without_events() {
        let listed = [
            ("app.orders", 'r'),
            ("public.parts", 'p'),
            ("public.customers", 'r'),
        ];
        let listed = listed.map(|(name, kind)| (name.to_owned(), kind));
        let listed = BTreeMap::from(listed);
        let look = |table| AskedTable::look(&listed, table);
        let near = |name: &str| Some(AskedTable::Unknown(Some(name.to_owned())));
        assert_eq!(look("orders"), Some(AskedTable::Known));
        assert_eq!(look("app.orders"), Some(AskedTable::Known));
        assert_eq!(look("parts"), Some(AskedTable::Partitioned));
        assert_eq!(look("order"), near("app.orders"));
        assert_eq!(look("app.order"), near("app.orders"));
        assert_eq!(look("public.customer"), near("public.customers"));
        assert_eq!(look("nosuchtable"), Some(AskedTable::Unknown(None)));
        assert_eq!(AskedTable::look(&BTreeMap::new(), "orders"), None);
    }
}
