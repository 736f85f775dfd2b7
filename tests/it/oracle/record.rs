//! The content of the WAL, as PostgreSQL's own `pg_waldump` prints it: every record's position, and the ends of
//! transactions.
//!
//! On 14, of which no tools can be had here, commits and their times come from `pg_xact_commit_timestamp`, their order from the one client.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::history::History;
use crate::common::{Program, bin};

/// A transaction end or restore point.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    Commit { xid: u32, time: i64 },
    Abort { xid: u32, time: i64 },
    Point { name: String },
    Other,
}

#[derive(Debug, Clone)]
pub struct Entry {
    pub timeline: u32,
    pub lsn: u64,
    pub what: What,
}

/// The records of one path of timelines, in the order in which recovery replays them.
pub type Path3 = Vec<Entry>;

pub struct Record {
    /// By target timeline: 1, 2, 3.
    pub paths: BTreeMap<u32, Path3>,
    /// Begin of timelines 2 and 3.
    pub switches: BTreeMap<u32, u64>,
    /// Only what a client saw is known: entries lie between their record's start and its end, and other records are missing.
    pub is_seen: bool,
}

pub fn read(history: &History) -> Record {
    let switches = switches(&history.raw);
    let mut own: BTreeMap<u32, Path3> = BTreeMap::new();
    for timeline in 1..=3 {
        own.insert(timeline, dump(history, timeline));
    }
    let mut paths = BTreeMap::new();
    for timeline in 1..=3_u32 {
        let mut path = Path3::new();
        for part in 1..=timeline {
            let from = switches.get(&part).copied().unwrap_or(0);
            let to = if part == timeline {
                u64::MAX
            } else {
                switches[&(part + 1)]
            };
            path.extend(
                own[&part]
                    .iter()
                    .filter(|e| e.lsn >= from && e.lsn < to)
                    .cloned(),
            );
        }
        paths.insert(timeline, path);
    }
    let is_seen = bin(history.major, "pg_waldump").is_none();
    Record {
        paths,
        switches,
        is_seen,
    }
}

impl Record {
    pub fn check_sanity(&self) {
        for (timeline, path) in &self.paths {
            let ends = path
                .iter()
                .filter(|e| matches!(e.what, What::Commit { .. }))
                .count();
            assert!(ends > 100, "timeline {timeline} has only {ends} commits");
            assert!(
                path.windows(2).all(|w| w[0].lsn < w[1].lsn),
                "records of timeline {timeline} ascend"
            );
        }
    }
}

/// Returns where each timeline begins, from the archived history files.
fn switches(raw: &Path) -> BTreeMap<u32, u64> {
    let mut found = BTreeMap::new();
    for timeline in 2..=3_u32 {
        let text = std::fs::read_to_string(raw.join(format!("{timeline:08X}.history")))
            .expect("the history file was archived");
        let line = text
            .lines()
            .rfind(|l| !l.trim().is_empty())
            .expect("a line");
        let lsn = line.split('\t').nth(1).expect("a switch point");
        found.insert(timeline, parse_lsn(lsn));
    }
    found
}

pub fn parse_lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("an LSN");
    let half = |s: &str| u64::from_str_radix(s, 16).expect("hexadecimal");
    half(high) << 32 | half(low)
}

pub fn print_lsn(lsn: u64) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF)
}

fn dump(history: &History, timeline: u32) -> Path3 {
    let Some(tool) = bin(history.major, "pg_waldump") else {
        let seen = history.shared.seen.lock().expect("not poisoned");
        return seen
            .iter()
            .filter(|(t, _)| *t == timeline)
            .map(|(_, e)| e.clone())
            .collect();
    };
    let mut names: Vec<PathBuf> = std::fs::read_dir(&history.raw)
        .expect("the folder can be read")
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| {
            let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            name.len() == 24 && name.starts_with(&format!("{timeline:08X}"))
        })
        .collect();
    names.sort();
    let (first, last) = (
        names.first().expect("a segment"),
        names.last().expect("a segment"),
    );
    // It ends with an error where the WAL ends; what it printed until then counts.
    let run = Program::new(tool)
        .env("TZ", "UTC")
        .arg(first)
        .arg(last)
        .run();
    let path: Path3 = run
        .stdout
        .lines()
        .filter_map(|l| parse(l, timeline))
        .collect();
    assert!(
        !path.is_empty(),
        "pg_waldump printed nothing: {}",
        run.stderr
    );
    path
}

/// `rmgr: Transaction len (rec/tot): 34/ 34, tx: 736, lsn: 0/00B74908, prev 0/00B748D8, desc: COMMIT 2026-11-20 07:00:41.090090 UTC`
fn parse(line: &str, timeline: u32) -> Option<Entry> {
    let rmgr = line.strip_prefix("rmgr: ")?.split_whitespace().next()?;
    let field = |name: &str| line.split(name).nth(1)?.split(',').next().map(str::trim);
    let lsn = parse_lsn(field("lsn: ")?);
    let xid: u32 = field("tx:")?.parse().ok()?;
    let desc = line.split("desc: ").nth(1)?;
    let what = match rmgr {
        "Transaction" => end(desc, xid).unwrap_or(What::Other),
        "XLOG" => match desc.strip_prefix("RESTORE_POINT ") {
            Some(name) => What::Point {
                name: name.trim().to_owned(),
            },
            None => What::Other,
        },
        _ => What::Other,
    };
    Some(Entry {
        timeline,
        lsn,
        what,
    })
}

fn end(desc: &str, xid: u32) -> Option<What> {
    let (verb, rest) = desc.split_once(' ')?;
    let (xid, rest) = match verb {
        "COMMIT" | "ABORT" => (xid, rest),
        "COMMIT_PREPARED" | "ABORT_PREPARED" => {
            let (xid, rest) = rest.split_once(": ")?;
            (xid.parse().ok()?, rest)
        }
        _ => return None,
    };
    let time = parse_time(rest.split(" UTC").next()?)?;
    Some(if verb.starts_with("COMMIT") {
        What::Commit { xid, time }
    } else {
        What::Abort { xid, time }
    })
}

/// Microseconds since 1970 of `2026-11-20 07:00:41.090090`, with as many digits as PostgreSQL prints.
pub fn parse_time(text: &str) -> Option<i64> {
    let (date, time) = text.trim().split_once(' ')?;
    let date: Vec<i64> = date
        .split('-')
        .map(|n| n.parse().ok())
        .collect::<Option<_>>()?;
    let [year, month, day] = date[..] else {
        return None;
    };
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let clock: Vec<i64> = clock
        .split(':')
        .map(|n| n.parse().ok())
        .collect::<Option<_>>()?;
    let [hour, minute, second] = clock[..] else {
        return None;
    };
    let micros: i64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    // Days from the civil calendar, by Howard Hinnant's formula.
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let doy = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let doe = y.rem_euclid(400) * 365 + y.rem_euclid(400) / 4 - y.rem_euclid(400) / 100 + doy;
    let days = era * 146_097 + doe - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + micros)
}
