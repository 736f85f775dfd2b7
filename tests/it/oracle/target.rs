//! Random targets, and what PostgreSQL's stop rules make of them on the record (src/backend/access/transam/xlogrecovery.c:
//! recoveryStopsBefore, recoveryStopsAfter).

use super::history::History;
use super::record::{Entry, Record, What, print_lsn};
use crate::common::random::Random;

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    Time(i64),
    Xid(u32),
    Lsn(u64),
    Name(String),
    Immediate,
    End,
}

#[derive(Debug, Clone)]
pub struct Target {
    pub kind: Kind,
    pub inclusive: bool,
    /// 1, 2, 3; 0 = latest, which is 3.
    pub timeline: u32,
}

impl Target {
    pub fn args(&self) -> Vec<String> {
        let mut args: Vec<String> = match &self.kind {
            Kind::Time(t) => vec!["--target-time".into(), print_time(*t)],
            Kind::Xid(x) => vec!["--target-xid".into(), x.to_string()],
            Kind::Lsn(l) => vec!["--target-lsn".into(), print_lsn(*l)],
            Kind::Name(n) => vec!["--target-name".into(), n.clone()],
            Kind::Immediate => vec!["--target-immediate".into()],
            Kind::End => Vec::new(),
        };
        if !self.inclusive {
            args.push("--exclusive".into());
        }
        let timeline = if self.timeline == 0 {
            "latest".to_owned()
        } else {
            self.timeline.to_string()
        };
        args.extend(["--target-timeline".to_owned(), timeline]);
        args
    }

    pub fn path<'a>(&self, record: &'a Record) -> &'a [Entry] {
        &record.paths[&if self.timeline == 0 { 3 } else { self.timeline }]
    }
}

/// A base backup, as far as the rules care.
#[derive(Debug, Clone)]
pub struct Base {
    pub id: String,
    pub timeline: u32,
    pub start_lsn: u64,
    pub stop_lsn: u64,
    /// When it was complete, in microseconds since 1970.
    pub stop_time: i64,
}

/// The point at which recovery from a base stops.
#[derive(Debug, Clone, PartialEq)]
pub enum Stop {
    /// Records before this index are applied.
    Before(usize),
    /// This one too.
    After(usize),
    /// When the backup is consistent: records before this index are applied.
    Consistent(usize),
    /// Everything is applied, and no target was hit.
    End,
}

impl Stop {
    /// How many records of the path are applied.
    pub fn applied(&self, path: &[Entry]) -> usize {
        match self {
            Stop::Before(i) | Stop::Consistent(i) => *i,
            Stop::After(i) => i + 1,
            Stop::End => path.len(),
        }
    }
}

pub fn draw(random: &mut Random, history: &History, record: &Record) -> Target {
    let timeline = u32::try_from(random.below(4)).expect("small");
    let mut target = Target {
        kind: Kind::End,
        inclusive: true,
        timeline,
    };
    let path = target.path(record);
    let from = path.len() / 6;
    let at = from + random.below(path.len() - 1 - from);
    let ends: Vec<&Entry> = path
        .iter()
        .filter(|e| matches!(e.what, What::Commit { .. } | What::Abort { .. }))
        .collect();
    let end = ends[ends.len() / 6 + random.below(ends.len() - ends.len() / 6)];
    let (What::Commit { xid, time } | What::Abort { xid, time }) = end.what else {
        unreachable!("only transaction ends were taken");
    };
    target.kind = match random.below(12) {
        0..=3 => Kind::Time(time + [-1, 0, 0, 1, 50][random.below(5)]),
        4..=5 => Kind::Xid(xid),
        // Right behind a record whose end a client saw, else anywhere.
        6..=8 if record.is_seen => Kind::Lsn(path[at].lsn + 1),
        6..=8 => Kind::Lsn(path[at].lsn + [0, 0, 8][random.below(3)]),
        9 => Kind::Name(random.pick(&history.names).clone()),
        10 => Kind::Immediate,
        _ => Kind::End,
    };
    let sided = matches!(target.kind, Kind::Time(_) | Kind::Xid(_) | Kind::Lsn(_));
    // A client does not see every record: only the side before is certain then.
    let is_seen_lsn = record.is_seen && matches!(target.kind, Kind::Lsn(_));
    target.inclusive = !sided || !is_seen_lsn && random.one_in(2);
    target
}

/// Returns where recovery along `path` stops that starts from `base`.
pub fn stop(path: &[Entry], target: &Target, base: &Base) -> Stop {
    let inclusive = target.inclusive;
    for (i, entry) in path.iter().enumerate() {
        if entry.lsn < base.start_lsn {
            continue;
        }
        let hit = match (&target.kind, &entry.what) {
            (Kind::Time(t), What::Commit { time, .. } | What::Abort { time, .. }) => {
                let beyond = if inclusive { time > t } else { time >= t };
                beyond.then_some(Stop::Before(i))
            }
            (Kind::Xid(x), What::Commit { xid, .. } | What::Abort { xid, .. }) if x == xid => {
                Some(if inclusive {
                    Stop::After(i)
                } else {
                    Stop::Before(i)
                })
            }
            (Kind::Lsn(l), _) if entry.lsn >= *l => Some(if inclusive {
                Stop::After(i)
            } else {
                Stop::Before(i)
            }),
            (Kind::Name(n), What::Point { name }) if n == name => Some(Stop::After(i)),
            (Kind::Immediate, _) if entry.lsn >= base.stop_lsn => Some(Stop::Consistent(i)),
            _ => None,
        };
        if let Some(stop) = hit {
            return stop;
        }
    }
    Stop::End
}

/// Whether recovery from `base` along the target's path ends well.
pub fn reaches(path: &[Entry], target: &Target, base: &Base, record: &Record) -> bool {
    let timeline = if target.timeline == 0 {
        3
    } else {
        target.timeline
    };
    let forked = (base.timeline + 1..=timeline).any(|t| record.switches[&t] < base.stop_lsn);
    if base.timeline > timeline || forked {
        return false;
    }
    // If only commits were seen, the records in between are missing: such a target stops before the backup is
    // consistent.
    if record.is_seen && matches!(target.kind, Kind::Lsn(l) if l < base.stop_lsn) {
        return false;
    }
    let stop = stop(path, target, base);
    if stop == Stop::End {
        return target.kind == Kind::End || plans_the_end(path, target);
    }
    // Consistent once a record that ends at or behind the stop LSN is applied: then the next one begins there or later.
    let next = path.get(stop.applied(path)).map_or(u64::MAX, |e| e.lsn);
    next >= base.stop_lsn
}

/// A time behind the last transaction end is planned as the end.
fn plans_the_end(_path: &[Entry], target: &Target) -> bool {
    matches!(target.kind, Kind::Time(_))
}

/// `2026-11-20T07:00:41.090090Z` of microseconds since 1970.
pub fn print_time(micros: i64) -> String {
    let (days, rest) = (
        micros.div_euclid(86_400_000_000),
        micros.rem_euclid(86_400_000_000),
    );
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (
        doy - (153 * mp + 2) / 5 + 1,
        if mp < 10 { mp + 3 } else { mp - 9 },
    );
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (seconds, micros) = (rest / 1_000_000, rest % 1_000_000);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{micros:06}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}
