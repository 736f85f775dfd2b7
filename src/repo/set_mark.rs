//! Marks of recovery sets: one point in every member (format, section 16.8).
//!
//! A mark is an event of its set's scope. It names positions and stores no data: a reader proves anew that every member has stored what the mark names.
//! A mark that does not count, or that is not as the format says, is no target, and hides no other one.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::event::{self, Event, Recorded, Writer};
use super::id::BackupId;
use super::log_keys::is_replid;
use super::runbook;
use super::scope::{AUX, CLUSTERS, Scope, prefix_of};
use crate::error::{Code, Result};
use crate::fault;
use crate::host::Host;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::store::Store;

/// The kind of content that sets are.
pub const KIND: &str = "sets";
/// The kind of event.
pub const MARK: &str = "mark";
/// The beginning of the subjects: one for each day.
const SUBJECT: &str = "marks-";
/// More members no mark has.
pub const MEMBERS_MAX: usize = 64;
/// Longest label, in bytes.
pub const LABEL_MAX: usize = 100;
/// Events among which the newest marks are looked for: those of a week, one each minute.
const READ_MAX: usize = 10_080;
/// So many events are read at once.
const READERS: usize = 16;
/// A runbook that was stored so lately may belong to a mark that is being written.
const NEW: Duration = Duration::from_secs(24 * 3600);
/// Clocks of hosts and stores differ by less.
const SLACK: Duration = Duration::from_secs(3600);

/// The exactness that a mark promises (`docs/recovery-sets.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Each member as near before the moment as it can be.
    Nearest,
    /// Each member at the moment by its own clock.
    Time,
    /// Databases at one point; files at it or later.
    Ordered,
    /// Every member at one point.
    Marker,
}

impl Level {
    /// The number in events and JSON.
    pub fn number(self) -> u8 {
        match self {
            Level::Nearest => 0,
            Level::Time => 1,
            Level::Ordered => 2,
            Level::Marker => 3,
        }
    }
}

impl Serialize for Level {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.serialize_u8(self.number())
    }
}

/// The mark in an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Stated {
    /// The set: its name, as in the key.
    pub set: String,
    /// The writer's clock before the first member was asked.
    pub began: TimestampTz,
    /// The same when every member had answered.
    pub ended: TimestampTz,
    /// The level; a reader takes the smaller of it and that of the members. 1 where a replica of Redis was asked, of which its own point tells nothing.
    pub level: u8,
    pub members: Vec<StatedMember>,
    /// The recovery instructions of then, by the hash under which this repository has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runbook: Option<String>,
}

/// The point of one member, as it is stored. Fields that its kind does not use are absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct StatedMember {
    /// The prefix of its scope.
    pub scope: String,
    /// A cluster: the timeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// A cluster: recovery stops before the record that begins here, or behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<Lsn>,
    /// A cluster: the name of the restore point before that position; none where a standby was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_point: Option<String>,
    /// Redis: the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replid: Option<String>,
    /// Redis: the bytes of the history before the point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Files: the backup that began after the mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    /// Files: the first backup that begins at or after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<TimestampTz>,
}

/// The point of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Point {
    /// A position in WAL.
    Wal(TimelineId, Lsn),
    /// A position in a history of Redis.
    Log(String, u64),
    /// A backup.
    Backup(BackupId),
    /// The first backup that begins at or after this time.
    After(TimestampTz),
}

/// A member of a mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The prefix of its scope.
    pub scope: String,
    pub point: Point,
    /// The exactness of a member that is restored to it.
    pub level: Level,
}

/// A mark that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Its name: the time and six digits of the event's nonce.
    pub id: String,
    /// The operator's text.
    pub label: Option<String>,
    /// The writer's clock before the first member was asked.
    pub began: TimestampTz,
    /// The same when every member had answered.
    pub ended: TimestampTz,
    /// The exactness.
    pub level: Level,
    /// The members, each of them once.
    pub members: Vec<Member>,
    /// The hash of the recovery instructions that are stored with it.
    pub runbook: Option<String>,
}

impl Mark {
    /// Whether it is the same mark, as another repository has it: that may name the runbook by another hash.
    fn is_same(&self, other: &Mark) -> bool {
        let apart = |mark: &Mark| Mark {
            runbook: None,
            ..mark.clone()
        };
        self.id == other.id && apart(self) == apart(other)
    }

    /// Returns the point of a member by its scope.
    pub fn point(&self, scope: &str) -> Option<&Point> {
        let found = self.members.iter().find(|member| member.scope == scope);
        found.map(|member| &member.point)
    }
}

impl StatedMember {
    /// The exactness of its point. A standby has replayed less than its primary has committed: what ended before the mark may be missing.
    pub fn level(&self) -> Level {
        match (self.lsn, &self.replid) {
            (Some(_), _) if self.restore_point.is_none() => Level::Time,
            (Some(_), _) | (None, Some(_)) => Level::Marker,
            (None, None) => Level::Ordered,
        }
    }

    fn point(&self) -> Option<Point> {
        let wal = (self.timeline, self.lsn);
        let log = (&self.replid, self.offset);
        let files = (&self.backup, self.after);
        let is_cluster = kind_in(&self.scope)? == CLUSTERS;
        let is_log = kind_in(&self.scope)? == "redis";
        match (wal, log, files) {
            ((Some(timeline), Some(lsn)), (None, None), (None, None)) if is_cluster => {
                Some(Point::Wal(TimelineId::new(timeline)?, lsn))
            }
            ((None, None), (Some(replid), Some(offset)), (None, None)) if is_log => {
                is_replid(replid).then(|| Point::Log(replid.clone(), offset))
            }
            ((None, None), (None, None), (Some(id), None)) if !is_cluster && !is_log => {
                Some(Point::Backup(id.clone()))
            }
            ((None, None), (None, None), (None, Some(after))) if !is_cluster && !is_log => {
                Some(Point::After(after))
            }
            _ => None,
        }
    }
}

/// `clusters`, or the kind of content, of a prefix that is one.
fn kind_in(prefix: &str) -> Option<&str> {
    let probe = format!("{prefix}/x");
    (prefix_of(&probe)? == prefix).then_some(())?;
    let mut parts = prefix.split('/');
    match (parts.next(), parts.next()) {
        (Some(CLUSTERS), _) => Some(CLUSTERS),
        (Some(AUX), Some(kind)) if kind != KIND => Some(kind),
        _ => None,
    }
}

/// Returns the mark of an event, or why it is none.
fn read(scope: &Scope, recorded: &Recorded) -> std::result::Result<Mark, &'static str> {
    let event = &recorded.event;
    if !recorded.counts() {
        return Err("it is forged");
    }
    let Some(stated) = event.mark.as_ref().filter(|_| event.event == MARK) else {
        return Err("it is no mark");
    };
    if scope.kind() != Some(KIND) || stated.set != scope.name() {
        return Err("it is the mark of another set");
    }
    if event.subject != subject(event.time) || stated.ended < stated.began {
        return Err("its times do not agree");
    }
    if stated.members.is_empty() || stated.members.len() > MEMBERS_MAX {
        return Err("it has no members, or too many");
    }
    let mut members: Vec<Member> = Vec::new();
    for stated in &stated.members {
        let point = stated.point().ok_or("a member has no point of its kind")?;
        if members.iter().any(|known| known.scope == stated.scope) {
            return Err("it names a member twice");
        }
        members.push(Member {
            scope: stated.scope.clone(),
            point,
            level: stated.level(),
        });
    }
    let lowest = members.iter().map(|member| member.level).min();
    let level = match (stated.level, lowest.unwrap_or(Level::Nearest)) {
        (3.., lowest) => lowest,
        (2, lowest) => lowest.min(Level::Ordered),
        (1, lowest) => lowest.min(Level::Time),
        (0, _) => Level::Nearest,
    };
    if Some(level) < lowest {
        // The writer knew more of the members than their points tell, and not of which.
        let stated = |member: &mut Member| member.level = member.level.min(level);
        members.iter_mut().for_each(stated);
    }
    let label = event.reason.clone();
    if label.as_deref().is_some_and(|text| !is_label(text)) {
        return Err("its label is none");
    }
    Ok(Mark {
        id: id(event).ok_or("it has no nonce")?,
        label,
        began: stated.began,
        ended: stated.ended,
        level,
        members,
        runbook: stated.runbook.clone().filter(|hash| runbook::is_hash(hash)),
    })
}

/// Whether a text may be a label.
pub fn is_label(text: &str) -> bool {
    !text.is_empty() && text.len() <= LABEL_MAX && !text.contains(char::is_control)
}

fn subject(time: TimestampTz) -> String {
    event::of_day(SUBJECT, time)
}

/// The name of a mark, such as `20261120T064049Z-4f2a9c`.
fn id(event: &Event) -> Option<String> {
    let seconds = event::stamp(event.time);
    let digits = event.nonce.get(..6)?;
    let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex.then(|| format!("{seconds}Z-{digits}"))
}

/// Whether a text is the name of a mark.
pub fn is_name(text: &str) -> bool {
    let is_all = |part: &str, length: usize, is: fn(&u8) -> bool| {
        part.len() == length && part.as_bytes().iter().all(is)
    };
    let parts = text
        .split_once("Z-")
        .and_then(|(time, digits)| Some((time.split_once('T')?, digits)));
    parts.is_some_and(|((day, time), digits)| {
        is_all(day, 8, u8::is_ascii_digit)
            && is_all(time, 6, u8::is_ascii_digit)
            && is_all(digits, 6, u8::is_ascii_hexdigit)
    })
}

/// Writes a mark; the same event may be written into several repositories.
///
/// # Errors
/// Errors of the store.
pub fn event(writer: &Writer<'_>, stated: Stated, label: Option<String>) -> Event {
    let event = writer.event(MARK, "");
    Event {
        subject: subject(event.time),
        reason: label,
        mark: Some(stated),
        ..event
    }
}

/// The name that an event of [`event()`] has as a mark.
pub fn name_of(event: &Event) -> String {
    id(event).unwrap_or_default()
}

/// The marks of a set, newest first, and what is none of them.
#[derive(Debug, Default)]
pub struct Marks {
    /// Those that count.
    pub marks: Vec<Mark>,
    /// Names of events that are no marks, and why not.
    pub refused: Vec<(String, String)>,
    /// Whether there are older ones that were not read.
    pub is_cut: bool,
}

/// Reads the newest marks of a set.
///
/// # Errors
/// Errors of the store. An event that cannot be read is refused, and hides no other one.
pub fn newest(store: &dyn Store, scope: &Scope, limit: usize) -> Result<Marks> {
    let mut found = Marks::default();
    let mut looked_at = 0;
    for day in event::days(store, scope, SUBJECT)?.into_iter().rev() {
        let names = event::names(store, scope, &day, MARK)?;
        for name in names.into_iter().rev() {
            if found.marks.len() >= limit || looked_at >= READ_MAX.max(limit) {
                found.is_cut = true;
                return Ok(found);
            }
            looked_at += 1;
            found.add(
                scope,
                &name,
                event::read_some(store, scope, &day, &|n| n == name),
            )?;
        }
    }
    Ok(found)
}

/// An event, by its subject and its name.
pub type Place = (String, String);

/// The places of all marks of a set, ascending by their time.
///
/// # Errors
/// Errors of the store.
pub fn places(store: &dyn Store, scope: &Scope) -> Result<Vec<Place>> {
    let mut all = Vec::new();
    for day in event::days(store, scope, SUBJECT)? {
        let names = event::names(store, scope, &day, MARK)?;
        all.extend(names.into_iter().map(|name| (day.clone(), name)));
    }
    Ok(all)
}

/// Reads the marks at these places.
///
/// # Errors
/// As [`newest`]; `Interrupted`.
pub fn read_at(store: &dyn Store, scope: &Scope, places: &[Place], host: &Host) -> Result<Marks> {
    let read = host.parallel(READERS, places, |(day, name)| {
        Ok(event::read_one(store, scope, day, name).map(Vec::from_iter))
    })?;
    let mut found = Marks::default();
    for ((_, name), read) in places.iter().zip(read) {
        found.add(scope, name, read?)?;
    }
    Ok(found)
}

/// Reads the marks whose name begins so, however many newer ones there are: the day and the time in the name lead to them. A beginning without a day has none.
///
/// # Errors
/// As [`newest`]; `Interrupted`.
fn named(store: &dyn Store, scope: &Scope, beginning: &str, host: &Host) -> Result<Marks> {
    let Some(day) = beginning.get(..8).filter(|day| is_all_digits(day)) else {
        return Ok(Marks::default());
    };
    let time = beginning.split('Z').next().unwrap_or_default();
    let day = format!("{SUBJECT}{day}");
    let names = event::names(store, scope, &day, MARK)?.into_iter();
    let names = names.filter(|name| name.starts_with(time));
    let places: Vec<Place> = names.map(|name| (day.clone(), name)).collect();
    let mut found = read_at(store, scope, &places, host)?;
    found.marks.retain(|mark| mark.id.starts_with(beginning));
    Ok(found)
}

/// Reads the marks with this label: those among the newest that are read, else those behind them, for [`spent`] lets a label stay there.
///
/// # Errors
/// As [`newest`]; `Interrupted`.
fn labelled(store: &dyn Store, scope: &Scope, label: &str, host: &Host) -> Result<Marks> {
    labelled_behind(store, scope, label, (fault::lowered(READ_MAX), host))
}

fn labelled_behind(
    store: &dyn Store,
    scope: &Scope,
    label: &str,
    (newest, host): (usize, &Host),
) -> Result<Marks> {
    let all = places(store, scope)?;
    let behind = all.len().saturating_sub(newest);
    let (behind, newest) = all.split_at_checked(behind).unwrap_or((&all, &[]));
    let mut found = Marks::default();
    for places in [newest, behind] {
        found = read_at(store, scope, places, host)?;
        found
            .marks
            .retain(|mark| mark.label.as_deref() == Some(label));
        if !found.marks.is_empty() {
            break;
        }
    }
    Ok(found)
}

/// Reads the marks that a text means, newest first: those whose name it is or begins, and, where it is no whole name, those with this label.
///
/// # Errors
/// As [`newest`]; `Interrupted`.
pub fn meant(store: &dyn Store, scope: &Scope, text: &str, host: &Host) -> Result<Marks> {
    let mut found = Marks::default();
    found.merge(named(store, scope, text, host)?, usize::MAX);
    if !is_name(text) {
        found.merge(labelled(store, scope, text, host)?, usize::MAX);
    }
    Ok(found)
}

fn is_all_digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

impl Marks {
    /// Adds those of another repository: the same one counts once.
    pub fn merge(&mut self, other: Marks, limit: usize) {
        let is_known = |m: &Mark| self.marks.iter().any(|own| own.is_same(m));
        let new: Vec<Mark> = other.marks.into_iter().filter(|m| !is_known(m)).collect();
        self.marks.extend(new);
        self.marks.sort_by(|a, b| b.id.cmp(&a.id));
        self.is_cut |= other.is_cut || self.marks.len() > limit;
        self.marks.truncate(limit);
        let refused = other.refused.into_iter();
        let refused: Vec<_> = refused.filter(|r| !self.refused.contains(r)).collect();
        self.refused.extend(refused);
    }

    fn add(&mut self, scope: &Scope, name: &str, read_events: Result<Vec<Recorded>>) -> Result<()> {
        let recorded = match read_events {
            Err(e) if e.code() == Code::Damaged => {
                self.refused.push((name.to_owned(), e.to_string()));
                return Ok(());
            }
            read => read?,
        };
        for one in &recorded {
            match read(scope, one) {
                Ok(mark) => self.marks.push(mark),
                Err(why) => self.refused.push((name.to_owned(), why.to_owned())),
            }
        }
        Ok(())
    }
}

/// A mark that nobody can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spent {
    /// The subject of its event.
    pub day: String,
    /// The name of its event.
    pub name: String,
    /// Its own name.
    pub mark: String,
    /// Why it goes.
    pub why: String,
}

/// Finds the marks of a set that nobody can use, oldest first.
///
/// A mark goes when each remaining backup of a member with a log is later. `oldest` has the end of the oldest one, by the prefix of the scope. Behind the newest
/// marks, which are all that is read, those without a label go, too. Events that are no marks stay.
///
/// # Errors
/// Errors of the store; `Interrupted`.
pub fn spent(
    store: &dyn Store,
    scope: &Scope,
    oldest: &BTreeMap<String, TimestampTz>,
    host: &Host,
) -> Result<Vec<Spent>> {
    let all = places(store, scope)?;
    let unread = all.len().saturating_sub(fault::lowered(READ_MAX));
    let latest = oldest.values().max().map(|time| event::compact(*time));
    let mut candidates: Vec<(usize, Place)> = all.into_iter().enumerate().collect();
    candidates.retain(|(at, (_, name))| {
        *at < unread || latest.as_ref().is_some_and(|latest| name < latest)
    });
    let judged = host.parallel(READERS, &candidates, |(at, (day, name))| {
        let recorded = match event::read_one(store, scope, day, name) {
            Err(e) if e.code() == Code::Damaged => None,
            recorded => recorded?,
        };
        let read_mark = |one: &Recorded| read(scope, one).ok().map(|mark| (mark, one.stored));
        let Some((mark, stored)) = recorded.as_ref().and_then(read_mark) else {
            return Ok(None);
        };
        let why = mark.why_spent(stored, oldest).or_else(|| {
            let is_unread = *at < unread && mark.label.is_none();
            is_unread.then(|| format!("{READ_MAX} newer marks are there, and it has no label"))
        });
        Ok(why.map(|why| Spent {
            day: day.clone(),
            name: name.clone(),
            mark: mark.id,
            why,
        }))
    })?;
    let judged: Result<Vec<Option<Spent>>> = judged.into_iter().collect();
    Ok(judged?.into_iter().flatten().collect())
}

/// The stored runbooks that go, and why they stay where that is not known.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unnamed {
    pub names: Vec<String>,
    /// Why none is known to be unnamed.
    pub withheld: Option<String>,
}

/// Finds the runbooks that no mark names. A mark that is to go names its own still, until it is gone.
///
/// A text is stored before its mark: one of less than a day stays. Marks are read from the newest on, up to where each text has one. An event that cannot be read
/// may be a mark.
///
/// # Errors
/// Errors of the store; `Interrupted`.
pub fn unnamed(store: &dyn Store, scope: &Scope, host: &Host) -> Result<Unnamed> {
    let settled =
        |one: &runbook::Stored| one.stored.saturating_add(fault::shortened(NEW)) <= host.now();
    let mut left: Vec<String> = runbook::all(store, scope)?
        .into_iter()
        .filter(settled)
        .map(|one| one.name)
        .collect();
    let mut events = Vec::new();
    for day in event::days(store, scope, SUBJECT)?.into_iter().rev() {
        if left.is_empty() {
            break;
        }
        let names = event::names(store, scope, &day, MARK)?;
        events.extend(names.into_iter().rev().map(|name| (day.clone(), name)));
    }
    for some in events.chunks(READERS * 4) {
        if left.is_empty() {
            break;
        }
        let named = host.parallel(READERS, some, |(day, name)| {
            match event::read_one(store, scope, day, name) {
                Err(e) if e.code() == Code::Damaged => Ok(Err(name.clone())),
                recorded => Ok(Ok(recorded?.and_then(|one| one.event.mark?.runbook))),
            }
        })?;
        for one in named {
            match one? {
                Err(name) => {
                    return Ok(Unnamed {
                        names: Vec::new(),
                        withheld: Some(format!(
                            "event \"{name}\" cannot be read, and may name a runbook: all of them stay"
                        )),
                    });
                }
                Ok(hash) => {
                    let hash = hash.unwrap_or_default();
                    left.retain(|name| runbook::name_in(&hash) != Some(name));
                }
            }
        }
    }
    Ok(Unnamed {
        names: left,
        withheld: None,
    })
}

impl Mark {
    /// Says which member has no backup any more that leads to the mark.
    fn why_spent(
        &self,
        stored: TimestampTz,
        oldest: &BTreeMap<String, TimestampTz>,
    ) -> Option<String> {
        let time = self
            .ended
            .max(stored)
            .saturating_add(fault::shortened(SLACK));
        let has_log = |member: &&Member| matches!(member.point, Point::Wal(..) | Point::Log(..));
        let mut members = self.members.iter().filter(has_log);
        let gone = members.find(|m| oldest.get(&m.scope).is_some_and(|oldest| time <= *oldest))?;
        Some(format!("each backup of {} that stays is later", gone.scope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::crafted;

    fn scope() -> Scope {
        Scope::aux(KIND, "shop").unwrap()
    }

    fn wal() -> StatedMember {
        StatedMember {
            scope: "clusters/main/7".into(),
            timeline: Some(1),
            lsn: Some(Lsn(0x300_0060)),
            restore_point: Some("pitr-mark".into()),
            ..StatedMember::default()
        }
    }

    fn files() -> StatedMember {
        StatedMember {
            scope: "aux/files/uploads".into(),
            after: Some("2026-11-20T06:40:49Z".parse().unwrap()),
            ..StatedMember::default()
        }
    }

    fn log() -> StatedMember {
        StatedMember {
            scope: "aux/redis/shop".into(),
            replid: Some("a".repeat(40)),
            offset: Some(854),
            ..StatedMember::default()
        }
    }

    fn stated(members: Vec<StatedMember>) -> Stated {
        let time = "2026-11-20T06:40:49Z".parse().unwrap();
        Stated {
            set: "shop".into(),
            began: time,
            ended: time,
            level: 3,
            members,
            runbook: None,
        }
    }

    fn of(stated: Stated) -> Recorded {
        let clock = || "2026-11-20T06:40:49Z".parse().unwrap();
        let event = event(&Writer::new(&clock, &|| 7), stated, Some("release".into()));
        Recorded {
            name: "x".into(),
            stored: event.time,
            event,
            is_doubted: false,
        }
    }

    #[test]
    fn the_level_is_that_of_the_least_exact_member() {
        let read_level = |members| read(&scope(), &of(stated(members))).unwrap().level;
        assert_eq!(read_level(vec![wal(), log()]), Level::Marker);
        assert_eq!(read_level(vec![wal(), files()]), Level::Ordered);
        let modest = Stated {
            level: 1,
            ..stated(vec![wal()])
        };
        assert_eq!(read(&scope(), &of(modest)).unwrap().level, Level::Time);
        let mark = read(&scope(), &of(stated(vec![wal()]))).unwrap();
        assert_eq!(mark.id, "20261120T064049Z-000000");
        assert_eq!(mark.label.as_deref(), Some("release"));
    }

    #[test]
    fn a_follower_does_not_have_all_that_ended_before() {
        let standby = StatedMember {
            restore_point: None,
            ..wal()
        };
        let mark = read(&scope(), &of(stated(vec![standby, log()]))).unwrap();
        assert_eq!(mark.level, Level::Time);
        assert_eq!(levels_of(&mark), [Level::Time, Level::Marker]);
    }

    #[test]
    fn each_member_has_the_level_of_its_point_unless_the_mark_has_less() {
        let levels = |level| {
            let stated = Stated {
                level,
                ..stated(vec![wal(), log(), files()])
            };
            levels_of(&read(&scope(), &of(stated)).unwrap())
        };
        assert_eq!(levels(2), [Level::Marker, Level::Marker, Level::Ordered]);
        assert_eq!(levels(1), [Level::Time; 3]);
    }

    fn levels_of(mark: &Mark) -> Vec<Level> {
        mark.members.iter().map(|member| member.level).collect()
    }

    #[test]
    fn a_mark_that_is_named_is_found_however_many_are_newer() {
        let (_dir, store) = crafted::store();
        let host = Host::still("2026-12-01T00:00:00Z".parse().unwrap(), 1);
        let made = |time: &str, label: Option<&str>, random: u64| {
            let clock = || time.parse().unwrap();
            let random = move || random << 40;
            let text = label.map(str::to_owned);
            let event = event(&Writer::new(&clock, &random), stated(vec![wal()]), text);
            event::record(&store, &scope(), &event, random()).unwrap();
            name_of(&event)
        };
        let old = made("2026-11-20T06:40:49Z", Some("release"), 1);
        let plain = made("2026-11-20T06:40:49.5Z", None, 2);
        made("2026-11-20T07:00:00Z", None, 3);
        let newer = made("2026-11-29T06:40:49Z", Some("twice"), 4);
        let newest_one = made("2026-11-30T06:40:49Z", Some("twice"), 5);
        let ids = |marks: Marks| -> Vec<String> {
            assert_eq!(marks.refused, []);
            marks.marks.into_iter().map(|mark| mark.id).collect()
        };
        let meant = |text: &str| ids(meant(&store, &scope(), text, &host).unwrap());
        assert_eq!(meant(&old), [old.as_str()]);
        assert_eq!(meant(&plain), [plain.as_str()]);
        assert_eq!(meant("20261120T064049"), [plain.clone(), old.clone()]);
        assert_eq!(meant("20261120").len(), 3);
        assert_eq!(meant("20261121"), [""; 0]);
        assert_eq!(meant("2026"), [""; 0], "it names no day");
        assert_eq!(meant("\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}"), [""; 0]);
        assert_eq!(meant("release"), [old.as_str()]);
        let among = |label: &str, limit: usize| {
            ids(labelled_behind(&store, &scope(), label, (limit, &host)).unwrap())
        };
        // The old one lies behind the newest two; of one label twice, the newest ones alone count.
        assert_eq!(among("release", 2), [old]);
        assert_eq!(among("twice", 1), [newest_one.as_str()]);
        assert_eq!(among("twice", 2), [newer, newest_one]);
        assert_eq!(among("none", 2), [""; 0]);
    }

    /// A hostile repository: each of these is no target.
    #[test]
    fn what_is_no_mark_is_refused() {
        let refuses = |recorded: Recorded| {
            let why = read(&scope(), &recorded);
            assert!(why.is_err(), "{why:?}");
        };
        let good = || of(stated(vec![wal(), files()]));
        assert!(read(&scope(), &good()).is_ok());
        refuses(Recorded {
            is_doubted: true,
            ..good()
        });
        let other = Scope::aux(KIND, "other").unwrap();
        assert!(read(&other, &good()).is_err(), "the mark of another set");
        let mut moved = good();
        moved.event.subject = "marks-20261121".into();
        refuses(moved);
        refuses(of(stated(Vec::new())));
        refuses(of(stated(vec![wal(), wal()])));
        refuses(of(stated(vec![wal(); MEMBERS_MAX + 1])));
        let bad_times = Stated {
            ended: "2026-11-19T00:00:00Z".parse().unwrap(),
            ..stated(vec![wal()])
        };
        refuses(of(bad_times));
        for scope in [
            "clusters/main",
            "clusters/main/7/wal",
            "aux/sets/shop",
            "aux/redis/shop",
            "../main/7",
            "",
        ] {
            refuses(of(stated(vec![StatedMember {
                scope: scope.into(),
                ..wal()
            }])));
        }
        refuses(of(stated(vec![StatedMember {
            timeline: Some(0),
            ..wal()
        }])));
        refuses(of(stated(vec![StatedMember {
            replid: Some("no history".into()),
            ..log()
        }])));
        refuses(of(stated(vec![StatedMember { lsn: None, ..wal() }])));
        refuses(of(stated(vec![StatedMember {
            offset: Some(1),
            ..wal()
        }])));
        let mut labelled = good();
        labelled.event.reason = Some("two\nlines".into());
        refuses(labelled);
    }

    #[test]
    fn a_runbook_goes_when_no_mark_names_it_and_all_are_read() {
        let (dir, store) = crafted::store();
        let texts = ["first", "second", "third"];
        let hashes = texts.map(|text| runbook::write(&store, &scope(), text).unwrap());
        let day = Duration::from_secs(25 * 3600);
        let now = store.head(&runbook::key(&scope(), &hashes[0]).unwrap());
        let now = now.unwrap().unwrap().modified;
        let at = |now| Host::still(now, 1);
        let found = |host: &Host| unnamed(&store, &scope(), host).unwrap();
        let (fresh, later) = (at(now), at(now.saturating_add(day)));
        assert_eq!(found(&fresh), Unnamed::default());
        assert_eq!(found(&later).names.len(), 3);
        let mark = |hash: &str| {
            let mut event = of(stated(vec![wal()])).event;
            event.mark.as_mut().unwrap().runbook = Some(hash.to_owned());
            event
        };
        event::record(&store, &scope(), &mark(&hashes[1]), 1).unwrap();
        let names = found(&later).names;
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(!names.contains(&hashes[1][..16].to_owned()));
        // Another text of these digits is no text of a mark; one whose hash is no hash names none.
        event::record(&store, &scope(), &mark(&hashes[0][..16]), 2).unwrap();
        assert_eq!(found(&later).names, names);
        let folder = dir.path().join(scope().subject(&mark("").subject));
        std::fs::write(folder.join("29991231T000000.000000Z-mark-00000000"), "junk").unwrap();
        let held = found(&later);
        assert!(held.names.is_empty() && held.withheld.is_some(), "{held:?}");
    }

    #[test]
    fn damage_and_junk_hide_no_mark() {
        let (dir, store) = crafted::store();
        let good = of(stated(vec![wal()])).event;
        event::record(&store, &scope(), &good, 1).unwrap();
        let folder = dir.path().join(scope().subject(&good.subject));
        std::fs::write(folder.join("29991231T000000.000000Z-mark-00000000"), "junk").unwrap();
        let found = newest(&store, &scope(), 10).unwrap();
        assert_eq!(found.marks.len(), 1, "{found:?}");
        assert_eq!(found.refused.len(), 1);
        assert!(!found.is_cut);
        assert!(newest(&store, &scope(), 0).unwrap().is_cut);
    }
}
