//! Erasures that a restored copy repeats before anybody uses it (format, section 20).

use serde::{Deserialize, Serialize};

use super::scope::Scope;
use super::{event, json};
use crate::err;
use crate::error::Result;
use crate::pg::lsn::{Lsn, LsnRange};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::store::{Key, Listed, Published, Store, get};
use crate::text::is_hex;

const KIND: &str = "erasure";
/// Greatest length of a script as JSON writes it, which is that of every string of an object.
const SCRIPT_BYTES_MAX: usize = 64 << 10;
/// Greatest length of the name of a database: NAMEDATALEN of PostgreSQL, without its end.
const NAME_BYTES_MAX: usize = 63;
/// Greatest length of a reason.
const REASON_BYTES_MAX: usize = 1000;

/// A script that erased somebody in production, and the moment by which it had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasure {
    /// The writer's clock when it was recorded.
    pub time: TimestampTz,
    /// The writer's host name.
    pub host: String,
    /// Name and version of the program.
    pub program: String,
    /// The user who recorded it.
    pub recorded_by: String,
    /// Why, for those who read it later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The database that the script belongs to.
    pub database: String,
    /// Its OID; none where no server was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_oid: Option<u32>,
    /// The timeline of `lsn`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<TimelineId>,
    /// The server's position when the erasure was recorded; none where no server was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lsn: Option<Lsn>,
    /// The timelines that lead to `timeline`, oldest first: its number alone may be another life's, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<Left>,
    /// The script.
    pub sql: String,
}

/// A timeline, and where it was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    pub timeline: TimelineId,
    /// The position at which the next one begins.
    pub switch_lsn: Lsn,
}

/// The timelines that lead to one in a history, oldest first; none for a stranger.
pub fn ancestors(history: &History, timeline: TimelineId) -> Option<Vec<Left>> {
    let left = history.ancestors().iter().map(|a| Left {
        timeline: a.timeline,
        switch_lsn: a.switch_lsn,
    });
    let before = left.take_while(|left| left.timeline != timeline);
    history.contains(timeline).then(|| before.collect())
}

impl Erasure {
    /// Whether a history that ends at `end` has the WAL up to its position; never without one.
    pub fn is_within(&self, history: &History, end: Lsn) -> bool {
        let (Some(timeline), Some(lsn)) = (self.timeline, self.lsn) else {
            return false;
        };
        ancestors(history, timeline).is_some_and(|own| own == self.ancestors)
            && is_within((timeline, lsn), history, end)
    }

    /// Requires what the format does of the fields; the reason why not, else.
    fn fault(&self) -> Option<&'static str> {
        let in_json = serde_json::to_string(&self.sql).map_or(usize::MAX, |text| text.len() - 2);
        let name = self.database.len();
        let is_reason =
            |text: &String| text.len() <= REASON_BYTES_MAX && !text.contains(['\n', '\r', '\0']);
        let first = self.timeline.map(|timeline| timeline == TimelineId::FIRST);
        if self.sql.trim().is_empty() {
            Some("the script is empty")
        } else if in_json > SCRIPT_BYTES_MAX {
            Some("the script has more than 64 KiB as JSON writes it")
        } else if self.sql.contains('\0') || self.database.contains('\0') {
            Some("there is a zero byte in it")
        } else if name == 0 || name > NAME_BYTES_MAX {
            Some("the name of a database has 1 to 63 bytes")
        } else if self.timeline.is_some() != self.lsn.is_some() {
            Some("a position has a timeline and an LSN")
        } else if first.unwrap_or(true) != self.ancestors.is_empty() {
            Some("the timelines before a later one belong to its position")
        } else if !self.reason.as_ref().is_none_or(is_reason) {
            Some("the reason is one line of at most 1,000 bytes")
        } else {
            None
        }
    }
}

/// Whether a history that ends at `end` has the WAL up to a position on one of its timelines.
fn is_within((timeline, lsn): (TimelineId, Lsn), history: &History, end: Lsn) -> bool {
    let path = history.path();
    let holder = path.iter().find(|part| part.timeline == timeline);
    holder.is_some_and(|part| {
        let LsnRange { start, end: left } = part.range;
        start < lsn && lsn <= left.min(end)
    })
}

/// Creates an erasure under a name of its time and these random digits; returns the name.
///
/// # Errors
/// `Usage` for one that the format does not allow; those of the store.
pub fn write(store: &dyn Store, scope: &Scope, erasure: &Erasure, nonce: u64) -> Result<String> {
    if let Some(fault) = erasure.fault() {
        return Err(err!(Usage, "{fault}").hint("Nothing was recorded."));
    }
    let name = format!("{}-{nonce:016x}", event::compact(erasure.time));
    let key = scope.erasure(&name)?;
    match json::write(store, &key, KIND, erasure)? {
        Published::Created => Ok(name),
        // The answer to the first attempt was lost.
        Published::Exists if read(store, scope, &name)?.as_ref() == Some(erasure) => Ok(name),
        Published::Exists => Err(err!(Conflict, "object \"{key}\" exists already")),
    }
}

/// Lists the names of the erasures of a cluster; others below their prefix are passed over.
///
/// # Errors
/// Those of the store.
pub fn list(store: &dyn Store, scope: &Scope) -> Result<Vec<Listed>> {
    let mut listed = store.list(&scope.erasures())?;
    listed.retain(|one| !one.is_prefix && is_name(&one.name));
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(listed)
}

/// Whether a name is that of an erasure: `<time>-<nonce>`.
pub fn is_name(name: &str) -> bool {
    let Some((time, nonce)) = name.rsplit_once('-') else {
        return false;
    };
    let pattern = "########T######.######Z";
    let fits = |(own, wanted): (u8, u8)| match wanted {
        b'#' => own.is_ascii_digit(),
        _ => own == wanted,
    };
    is_hex(nonce, 16) && time.len() == pattern.len() && time.bytes().zip(pattern.bytes()).all(fits)
}

/// Reads an erasure; none where there is none.
///
/// # Errors
/// `Damaged`, also for a forged one of an encrypted repository; `Unsupported`; those of the store.
pub fn read(store: &dyn Store, scope: &Scope, name: &str) -> Result<Option<Erasure>> {
    let key = scope.erasure(name)?;
    let bytes = get(store, &key, json::LIMIT_BYTES)?;
    bytes.map(|bytes| decode(&key, &bytes)).transpose()
}

/// Checks and parses the bytes of an erasure.
///
/// # Errors
/// `Damaged`, also when it belongs elsewhere; `Unsupported`.
pub fn decode(key: &Key, bytes: &[u8]) -> Result<Erasure> {
    let erasure: Erasure = json::decode(key, KIND, bytes)?;
    let is_here = key.name().starts_with(&event::compact(erasure.time));
    let fault = erasure.fault();
    match fault.or((!is_here).then_some("its time is not that of its key")) {
        None => Ok(erasure),
        Some(fault) => Err(err!(Damaged, "object \"{key}\" is damaged: {fault}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::repo::crafted;

    fn erasure(sql: &str, position: Option<(u32, u64)>) -> Erasure {
        Erasure {
            time: "2026-11-20T06:40:49.123456Z".parse().unwrap(),
            host: "db1".into(),
            program: "pitr".into(),
            recorded_by: "ann".into(),
            reason: None,
            database: "app".into(),
            database_oid: None,
            ancestors: Vec::new(),
            timeline: position.and_then(|(timeline, _)| TimelineId::new(timeline)),
            lsn: position.map(|(_, lsn)| Lsn(lsn)),
            sql: sql.into(),
        }
    }

    #[test]
    fn a_position_is_within_the_history_that_has_its_wal_and_in_no_other() {
        let tli = |n| TimelineId::new(n).unwrap();
        // Timeline 3 left 1 at 100; 2 was another life.
        let history = History::root(tli(1)).child(tli(3), Lsn(100), b"");
        let is_within =
            |timeline, lsn, end| is_within((tli(timeline), Lsn(lsn)), &history, Lsn(end));
        assert!(is_within(1, 100, 500));
        assert!(!is_within(1, 101, 500), "behind the place where 1 was left");
        assert!(!is_within(2, 90, 500), "in another life");
        assert!(is_within(3, 200, 200) && !is_within(3, 201, 200));
        assert!(!is_within(1, 90, 80), "recovery stopped before timeline 3");
        // The copy's own timeline begins where recovery ended: its number may be another copy's, too.
        assert!(!is_within(3, 101, 100));
    }

    #[test]
    fn a_number_of_a_timeline_is_not_enough() {
        let tli = |n| TimelineId::new(n).unwrap();
        let of = |switch: u64| History::root(tli(1)).child(tli(2), Lsn(switch), b"");
        let mut one = erasure("x", Some((2, 200)));
        assert!(one.fault().is_some(), "what leads to it is not known");
        one.ancestors = ancestors(&of(100), tli(2)).unwrap();
        assert_eq!(one.fault(), None);
        assert!(one.is_within(&of(100), Lsn(300)));
        let later = of(100).child(tli(5), Lsn(250), b"");
        assert!(one.is_within(&later, Lsn(300)));
        assert!(
            !one.is_within(&of(150), Lsn(300)),
            "another life's timeline 2"
        );
        assert!(!one.is_within(&History::root(tli(1)), Lsn(300)));
        assert!(!erasure("x", None).is_within(&of(100), Lsn(300)));
        let mut first = erasure("x", Some((1, 50)));
        assert!(first.is_within(&of(100), Lsn(300)));
        first.reason = Some("a\nb".into());
        assert!(first.fault().is_some());
    }

    #[test]
    fn scripts_have_a_limit_and_stand_under_their_own_key() {
        let (folder, store, scope) = crafted::scope();
        let put = |erasure: &Erasure| write(&store, &scope, erasure, 5);
        let most = "x".repeat(SCRIPT_BYTES_MAX);
        for (bad, why) in [
            (format!("{most}x"), "64 KiB"),
            ("\n".repeat(3), "empty"),
            ("\"".repeat(SCRIPT_BYTES_MAX / 2 + 1), "64 KiB"),
            ("a\0".into(), "zero byte"),
        ] {
            let refused = put(&erasure(&bad, None)).unwrap_err();
            assert_eq!(refused.code(), Code::Usage);
            assert!(refused.to_string().contains(why), "{refused}");
        }
        let whole = erasure(&most, Some((1, 9)));
        let name = put(&whole).unwrap();
        assert_eq!(name, "20261120T064049.123456Z-0000000000000005");
        assert_eq!(put(&whole).unwrap(), name, "its answer was lost");
        assert_eq!(read(&store, &scope, &name).unwrap(), Some(whole));
        assert_eq!(list(&store, &scope).unwrap().len(), 1);
        let other = put(&erasure("other", None)).unwrap_err();
        assert_eq!(other.code(), Code::Conflict);
        let moved = name.replace("0649", "0648");
        let path = |name: &str| folder.path().join(scope.erasure(name).unwrap().as_str());
        std::fs::copy(path(&name), path(&moved)).unwrap();
        let e = read(&store, &scope, &moved).unwrap_err();
        assert_eq!(e.code(), Code::Damaged);
        for none in [
            "x",
            "20261120T064049.123456Z",
            "20261120T064049Z-0000000000000005",
        ] {
            assert!(!is_name(none), "{none}");
        }
    }
}
