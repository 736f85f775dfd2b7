//! A backup is worth something only with the WAL from its start to its stop: this waits until the repository has it, and it is proven to be
//! the server's own.
//!
//! The segment in which it stops may not be complete for long: on a quiet primary nobody ends it, and a standby cannot. Then increments of
//! it up to the stop LSN are enough. A receiver may have put them; else a standby is asked for its own WAL.

use std::time::{Duration, Instant};

use super::proof::{Proof, Prover};
use super::source::{Source, WantedWal};
use crate::err;
use crate::error::{Code, Result};
use crate::host::Host;
use crate::pg::lsn::{Lsn, LsnRange};
use crate::pg::page::WalIdentity;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::store::Store;
use crate::wal::increment::{self, OpenSegment};
use crate::wal::increments::{self, Run};
use crate::wal::presence::{self, Presence};
use crate::wal::remnant::Remnant;

/// How often the repository is looked at.
const POLL: Duration = Duration::from_millis(200);
/// A standby that did not stream its last WAL is asked again after this long, and then after twice as long each time.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// A wait of this length is worth a line, and then again each time it has doubled.
const FIRST_NOTE: Duration = Duration::from_secs(3);
/// Length of the increments that are put of a stream; a server sends at most 128 KiB at a time.
const PIECE_BYTES: usize = 4 << 20;

/// The WAL of a backup.
#[derive(Debug, Clone, Copy)]
pub struct Needed {
    pub timeline: TimelineId,
    pub start_lsn: Lsn,
    pub stop_lsn: Lsn,
    pub segment_size: SegmentSize,
}

impl Needed {
    /// The first and the last segment; the last is the one of the byte before the stop LSN.
    pub fn bounds(&self) -> (SegmentNumber, SegmentNumber) {
        (
            SegmentNumber::of(self.start_lsn, self.segment_size),
            SegmentNumber::ending_at(self.stop_lsn, self.segment_size),
        )
    }

    /// Bytes of the last segment up to the stop LSN.
    pub fn last_length(&self) -> u64 {
        self.stop_lsn.0 - self.bounds().1.start_lsn(self.segment_size).0
    }

    /// The name of a segment.
    ///
    /// # Errors
    /// `Server` when there is none.
    pub fn name(&self, number: SegmentNumber) -> Result<SegmentName> {
        number
            .name(self.timeline, self.segment_size)
            .ok_or_else(|| err!(Server, "LSN {} is behind the last segment", self.stop_lsn))
    }
}

/// Facts that the waiter may tell about the server it waits for.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// Whether the backup was taken from a standby.
    pub from_standby: bool,
    /// Whether `archive_mode` is off.
    pub archive_off: bool,
}

/// Waits for WAL.
pub struct Waiter<'a, 'b> {
    /// The repository in which it has to appear.
    pub repository: &'a Repository,
    /// PostgreSQL major.
    pub major: u32,
    /// The cluster's keys.
    pub layout: &'a ClusterLayout,
    /// Stop flag and progress.
    pub host: &'a Host,
    /// The server, whose archiver is asked.
    pub source: &'b mut dyn Source,
    /// Facts about it that may appear in messages.
    pub circumstances: Circumstances,
    /// Compares what is stored with what the server has.
    pub prover: Prover<'a>,
}

impl Waiter<'_, '_> {
    /// Waits until every needed segment is in the repository, opens, and is the server's own, at most for `limit`. `keep` keeps the claims.
    ///
    /// # Errors
    /// `Conflict` when one is another server's; `Deadline`, naming the first missing segment and what to do about it; `Interrupted`; what the store says.
    pub fn wait(
        &mut self,
        needed: &Needed,
        limit: Duration,
        keep: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let (mut next, last) = needed.bounds();
        let started = Instant::now();
        let mut note_at = FIRST_NOTE;
        let mut asks_at = self.circumstances.from_standby.then_some(Duration::ZERO);
        let mut pause = ASK_AGAIN;
        self.host.progress.phase("wait for WAL", None);
        loop {
            let mut problem = None;
            while next <= last {
                // A long backup has thousands of segments.
                self.host.check_stop()?;
                keep()?;
                let name = needed.name(next)?;
                problem = missing(self.repository.store(), self.layout, name)?;
                let is_last = next == last;
                let is_due = asks_at.is_some_and(|at| started.elapsed() >= at);
                if problem.is_some() && is_last && is_due && !self.reaches(needed)? {
                    self.stream(needed, limit.saturating_sub(started.elapsed()))?;
                    // A standby may have had no walsender to spare, or have been restarted.
                    asks_at = Some(started.elapsed().saturating_add(pause));
                    pause = pause.saturating_mul(2);
                    // The primary may have archived it meanwhile.
                    problem = missing(self.repository.store(), self.layout, name)?;
                }
                if problem.is_some() && !(is_last && self.reaches(needed)?) {
                    break;
                }
                problem = self.unproven(name)?;
                if problem.is_some() {
                    break;
                }
                next = next.next();
            }
            let is_noted = started.elapsed() >= note_at;
            if problem.is_none() || is_noted {
                // One of those that are there already may be the reason why others do not come.
                let unproven = self.prover.check_conflicts(self.source)?;
                problem = problem.or(problem_of(unproven));
            }
            let Some(problem) = problem else {
                return Ok(());
            };
            self.host.check_stop()?;
            let name = needed.name(next.min(last))?;
            let waited = started.elapsed();
            if waited >= limit {
                let seconds = limit.as_secs();
                let error = err!(
                    Deadline,
                    "segment \"{name}\" {problem} after {seconds} seconds"
                );
                return Err(error.hint(format!("Nothing was committed. {}", self.advice())));
            }
            if is_noted {
                note_at *= 2;
                let advice = self.advice();
                let note = format!("waiting for segment \"{name}\", which {problem}. {advice}");
                self.host.progress.note(&note);
            }
            keep()?;
            std::thread::sleep(POLL.min(limit.saturating_sub(waited)));
        }
    }

    /// Why a stored segment does not count as the server's own yet.
    fn unproven(&mut self, name: SegmentName) -> Result<Option<String>> {
        self.prover.check(name, self.source).map(problem_of)
    }

    /// Whether increments hold the last segment up to the stop LSN; they are durable then.
    fn reaches(&self, needed: &Needed) -> Result<bool> {
        let segment = self.last_segment(needed)?;
        let listed = increment::list(self.repository, self.layout, segment.name)?;
        let run = Run::of(segment, &listed)?;
        let Some(run) = run.filter(|run| run.end() >= needed.stop_lsn) else {
            return Ok(false);
        };
        // Their content is read before the root relies on it.
        let found = Remnant::find(self.repository, self.layout, &segment)?;
        if found.is_none_or(|found| found.valid_end() < needed.stop_lsn) {
            return Ok(false);
        }
        for piece in run.pieces() {
            let open = increments::open(self.repository, self.layout, &segment, *piece)?;
            open.object().settle()?;
        }
        Ok(true)
    }

    fn last_segment(&self, needed: &Needed) -> Result<OpenSegment> {
        Ok(OpenSegment {
            name: needed.name(needed.bounds().1)?,
            size: needed.segment_size,
            major: self.major,
        })
    }

    /// Asks the server for its WAL up to the stop LSN. That it does not give it only means that it is waited for.
    fn stream(&mut self, needed: &Needed, limit: Duration) -> Result<()> {
        let segment = self.last_segment(needed)?;
        let range = LsnRange {
            start: segment.range()?.start,
            end: needed.stop_lsn,
        };
        self.host
            .progress
            .phase("stream the last WAL", Some(range.end.0 - range.start.0));
        let what = WantedWal {
            timeline: needed.timeline,
            range,
            limit: Some(limit),
        };
        let mut pieces = Pieces {
            repository: self.repository,
            layout: self.layout,
            segment,
            at: range.start,
            bytes: Vec::new(),
        };
        let progress = &self.host.progress;
        let streamed = self.source.stream_wal(&what, &mut |bytes| {
            progress.advance(bytes.len() as u64);
            pieces.add(bytes)
        });
        match streamed.and_then(|()| pieces.put()) {
            Ok(()) => {}
            Err(e)
                if matches!(
                    e.code(),
                    Code::Server | Code::Denied | Code::Gap | Code::Deadline
                ) =>
            {
                progress.note(&format!("the server does not stream its last WAL: {e}"));
            }
            Err(e) => return Err(e.context("store the last WAL of the backup")),
        }
        progress.phase("wait for WAL", None);
        Ok(())
    }

    /// Returns what the operator can do meanwhile.
    fn advice(&mut self) -> String {
        if self.circumstances.from_standby {
            return "The primary archives it once it is full: run \"select pg_switch_wal()\" on a quiet primary, and see its pg_stat_archiver."
                .to_owned();
        }
        if self.circumstances.archive_off {
            return "archive_mode is off: start the receiver (pitr receive), or set archive_mode = on and archive_command as \"pitr init\" prints them, and restart the server."
                .to_owned();
        }
        let archiver = self.source.archiver().unwrap_or_default();
        match (archiver.last_failed, archiver.last_archived) {
            (Some(failed), _) if archiver.fails_now => format!(
                "archive_command fails: {} times so far, last for \"{failed}\"; the server's log says why.",
                archiver.failed_count
            ),
            (_, Some(last)) => format!(
                "The server archived \"{last}\" last; archive_command must lead to this repository. \"select pg_switch_wal()\" ends a segment on a quiet server."
            ),
            (_, None) => {
                "The server has archived nothing so far: check archive_command and the server's log."
                    .to_owned()
            }
        }
    }
}

/// Puts a stream into increments.
struct Pieces<'a> {
    repository: &'a Repository,
    layout: &'a ClusterLayout,
    segment: OpenSegment,
    /// Start of the bytes that were not put yet.
    at: Lsn,
    bytes: Vec<u8>,
}

impl Pieces<'_> {
    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        if self.bytes.len() + bytes.len() > PIECE_BYTES {
            self.put()?;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Nothing is put under the name of a segment that the server has other bytes of: they would stand in the way of the right ones.
    fn check_first_page(&self) -> Result<()> {
        let name = self.segment.name;
        let is_right = || -> Result<bool> {
            let page = WalIdentity::read(&self.bytes)?;
            page.matches(name)?;
            Ok(page.system_identifier == self.layout.system_identifier())
        };
        match is_right() {
            Ok(true) => Ok(()),
            Ok(false) => Err(err!(Server, "it sends WAL of another cluster")),
            Err(e) => Err(err!(Server, "it sends other WAL as segment \"{name}\"").source(e)),
        }
    }

    fn put(&mut self) -> Result<()> {
        if !self.bytes.is_empty() {
            if self.at == self.segment.range()?.start {
                self.check_first_page()?;
            }
            increment::put(
                self.repository,
                self.layout,
                &self.segment,
                self.at,
                &self.bytes,
            )?;
            self.at.0 += self.bytes.len() as u64;
            self.bytes.clear();
        }
        Ok(())
    }
}

fn problem_of(proof: Proof) -> Option<String> {
    match proof {
        Proof::Proven => None,
        Proof::NotHad(why) => Some(why),
    }
}

/// Why a segment does not count as archived; `None` when it does.
fn missing(store: &dyn Store, layout: &ClusterLayout, name: SegmentName) -> Result<Option<String>> {
    Ok(match presence::of_segment(store, layout, name)? {
        Presence::Settled => None,
        Presence::Absent => Some("is not in the repository".to_owned()),
        Presence::Unusable(why) => Some(why),
    })
}
