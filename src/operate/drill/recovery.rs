//! The server's way to the target, by what it logs.
//!
//! PostgreSQL: src/backend/access/transam/xlogrecovery.c (13 and 14: xlog.c), "redo starts at" and "redo done at".

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::archive::datadir::DataDirectory;
use crate::durable;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::operate::quarantine::{Quarantined, is_passing};
use crate::operate::session::Session;
use crate::pg::control::{ClusterState, ControlFile};
use crate::pg::timeline::TimelineId;
use crate::plan::recovery::Plan;
use crate::repo::drilled::{Phase, Timed};

/// How often the server is looked after.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a server may log nothing: recovery logs each segment that it asks for.
const SILENCE_MAX: Duration = Duration::from_secs(3600);
/// How long a server that is ready may refuse our sessions: a superuser who was renamed, a locale that the host lacks.
const REFUSAL_MAX: Duration = Duration::from_secs(30);
/// Lines at the end of the log that are kept.
const KEPT_LINES: usize = 200;
/// Lines that a cause repeats.
const SHOWN_LINES: usize = 4;
/// Bytes that are read at once.
const READ_BYTES: u64 = 1 << 20;
/// A longer line is cut.
const LINE_BYTES: usize = 4096;

/// The way out of a drill that something else than the archive has ended.
pub(super) const NOT_KNOWN: &str = "Whether recovery works is not known; nothing was recorded. Mend this, and run the command again.";

/// The file that has PostgreSQL recover to a target.
const SIGNAL: &str = "recovery.signal";

/// The end of a recovery, as pg_control has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It is yet to come, or has begun a new timeline.
    Ordinary,
    /// A server was killed between the removal of the signal and the checkpoint that makes the end durable.
    CutShort,
    /// A server has run without the signal: it has replayed all WAL that was there, on the old timeline.
    PastTarget,
}

impl End {
    /// The end of a recovery whose signal is gone, in a directory that has not left the old timeline. The checkpoint that ends recovery has the state of
    /// one that shuts a server down. Only a server that ran on has made one that begins behind the target (`is_behind`).
    fn without_signal(state: ClusterState, is_behind: bool) -> End {
        match state {
            ClusterState::ShutDown | ClusterState::InCrashRecovery | ClusterState::InProduction => {
                End::PastTarget
            }
            ClusterState::ShuttingDown if is_behind => End::PastTarget,
            ClusterState::Startup
            | ClusterState::ShutDownInRecovery
            | ClusterState::ShuttingDown
            | ClusterState::InArchiveRecovery => End::CutShort,
        }
    }
}

/// Whether the next start of a copy would replay all WAL that is there: its server was killed as it ended recovery. PostgreSQL removes the signal before the
/// checkpoint that makes the end durable.
///
/// # Errors
/// `Refused` where such a start has been.
pub(in crate::operate) fn is_cut_short(
    directory: &DataDirectory,
    control: &ControlFile,
    plan: &Plan,
) -> Result<bool> {
    let is_old = |timeline: TimelineId| plan.timelines.iter().any(|part| part.timeline == timeline);
    let is_promoted = control
        .min_recovery_timeline
        .is_some_and(|one| !is_old(one));
    let has_signal = directory.has(SIGNAL) || directory.has("standby.signal");
    let end = match has_signal || is_promoted || !is_old(control.checkpoint_copy.timeline) {
        true => End::Ordinary,
        false => End::without_signal(control.state, is_behind(control, plan)),
    };
    match end {
        End::Ordinary => Ok(false),
        End::CutShort => Ok(true),
        End::PastTarget => Err(err!(
            Refused,
            "a server was killed at the end of the recovery of \"{}\", and another start has replayed WAL behind the target",
            directory.path().display()
        )
        .hint("Nothing was done. The copy is not of its moment: remove it, and restore again.")),
    }
}

/// Whether the last whole checkpoint begins behind the target. A plan that goes to the end of the archive has no such place: more may be there since.
fn is_behind(control: &ControlFile, plan: &Plan) -> bool {
    let stop = plan.stop.as_ref();
    let stop = stop.filter(|_| plan.first_excluded_commit.is_some());
    stop.is_some_and(|stop| control.checkpoint_copy.redo > stop.recovery_end_lsn)
}

/// Has a copy recover once more whose server was killed as it ended recovery.
///
/// # Errors
/// Those of [`is_cut_short`]; `TargetWrite`.
pub(in crate::operate) fn resume(
    directory: &DataDirectory,
    plan: &Plan,
    host: &Host,
) -> Result<()> {
    let path = directory.path().join(SIGNAL);
    let control = directory.control()?;
    let control = control.ok_or_else(|| err!(Damaged, "the copy has no pg_control"))?;
    if is_cut_short(directory, &control, plan)? {
        durable::replace(&path, b"", host.random())
            .map_err(|e| err!(TargetWrite, "could not write \"{}\": {e}", path.display()))?;
    }
    Ok(())
}

/// Recovery as it was seen.
pub(in crate::operate) struct Recovery {
    started: Instant,
    redo: Option<Instant>,
    done: Option<Instant>,
    open: Option<Instant>,
    /// The phase in which it broke off, and why.
    pub(in crate::operate) broken: Option<(Phase, String)>,
}

impl Recovery {
    /// The durations of what was reached; `bytes` is the WAL.
    pub(in crate::operate) fn phases(&self, bytes: Option<u64>) -> Vec<Timed> {
        let steps = [
            (Phase::Start, Some(self.started), self.redo, None),
            (Phase::Replay, self.redo, self.done, bytes),
            (Phase::Checkpoint, self.done, self.open, None),
        ];
        let timed = |(phase, from, to, bytes): (Phase, Option<Instant>, Option<Instant>, _)| {
            let ms = to?.duration_since(from?).as_millis();
            let ms = u64::try_from(ms).unwrap_or(u64::MAX);
            Some(Timed { phase, ms, bytes })
        };
        steps.into_iter().filter_map(timed).collect()
    }

    fn phase(&self) -> Phase {
        match (self.redo, self.done) {
            (None, _) => Phase::Start,
            (_, None) => Phase::Replay,
            _ => Phase::Checkpoint,
        }
    }
}

/// Waits until the server takes writes, or breaks off.
///
/// # Errors
/// `Interrupted`; `Full`, `Unreachable` and the like for what is no fault of the archive; `Io`.
pub(in crate::operate) fn wait(session: &Session, server: &mut Quarantined) -> Result<Recovery> {
    let mut recovery = Recovery {
        started: Instant::now(),
        redo: None,
        done: None,
        open: None,
        broken: None,
    };
    let mut log = Log::new(server.log());
    let mut heard = Instant::now();
    let mut ready = None;
    loop {
        session.host.check_stop()?;
        let ended = server.ended()?;
        if log.read()? {
            heard = Instant::now();
        }
        let now = Instant::now();
        recovery.redo = recovery.redo.or(log.has_begun.then_some(now));
        recovery.done = recovery.done.or(log.is_done.then_some(now));
        if let Some(status) = ended {
            session.host.check_stop()?;
            // The last words may have come between.
            log.read()?;
            let cause = log.cause();
            outside(&cause)?;
            let cause = match cause.is_empty() {
                true => format!("the server ended with {status}"),
                false => format!("the server ended: {cause}"),
            };
            recovery.broken = Some((recovery.phase(), cause));
            return Ok(recovery);
        }
        ready = ready.or(log.is_ready.then_some(now));
        // A directory whose recovery has ended before replays nothing: `resume` has seen to one whose end was cut short.
        if recovery.done.or(ready).is_some() {
            match is_open(server) {
                Ok(true) => {
                    recovery.open = Some(Instant::now());
                    return Ok(recovery);
                }
                Err(e) if !is_passing(&e) || ready.is_some_and(|at| at.elapsed() > REFUSAL_MAX) => {
                    session.host.check_stop()?;
                    return Err(e.context("connect to the recovered server"));
                }
                _ => {}
            }
        }
        if heard.elapsed() > SILENCE_MAX {
            let cause = format!("the server has logged nothing for an hour: {}", log.cause());
            recovery.broken = Some((recovery.phase(), cause));
            return Ok(recovery);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Whether recovery has ended.
fn is_open(server: &mut Quarantined) -> Result<bool> {
    let mut session = server.connect("template1")?;
    let rows = session.query("select pg_is_in_recovery()")?;
    Ok(rows.text(0, 0)? == Some("f"))
}

/// Tells what is no fault of the archive: the drill could not be carried out.
///
/// # Errors
/// `Full`; the errors of `pitr-restore` that say nothing about the archive.
fn outside(cause: &str) -> Result<()> {
    let codes = [
        ("error R200", Code::Unreachable),
        ("error R202", Code::Config),
        ("error R204", Code::Key),
        ("error R207", Code::Denied),
        ("error R208", Code::NoRepository),
        ("No space left on device", Code::Full),
        ("could not create shared memory segment", Code::Io),
        ("could not map anonymous shared memory", Code::Io),
    ];
    let found = codes.iter().find(|(words, _)| cause.contains(words));
    found.map_or(Ok(()), |(_, code)| {
        Err(Error::new(*code, format!("recovery could not be tried: {cause}")).hint(NOT_KNOWN))
    })
}

/// The server's log, as far as it was read.
#[derive(Default)]
struct Log {
    path: PathBuf,
    file: Option<File>,
    rest: Vec<u8>,
    last: VecDeque<String>,
    has_begun: bool,
    is_done: bool,
    is_ready: bool,
}

impl Log {
    fn new(path: PathBuf) -> Log {
        Log {
            path,
            ..Log::default()
        }
    }

    /// Reads what is new; whether there is anything.
    fn read(&mut self) -> Result<bool> {
        let failed = |e| err!(Io, "the server's log cannot be read").source(e);
        if self.file.is_none() {
            self.file = Some(File::open(&self.path).map_err(failed)?);
        }
        let mut is_new = false;
        while let Some(file) = &self.file {
            let read = file.take(READ_BYTES).read_to_end(&mut self.rest);
            if read.map_err(failed)? == 0 {
                break;
            }
            is_new = true;
            self.lines();
        }
        Ok(is_new)
    }

    fn lines(&mut self) {
        let bytes = std::mem::take(&mut self.rest);
        let mut lines = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(line) = lines.next() {
            if lines.peek().is_none() && line.len() <= LINE_BYTES {
                self.rest = line.to_vec();
                return;
            }
            let line = line.get(..LINE_BYTES).unwrap_or(line);
            let line = String::from_utf8_lossy(line).into_owned();
            self.has_begun |= line.contains("redo starts at");
            self.is_done |= line.contains("redo done at");
            // Before the end of recovery it says "read-only connections".
            self.is_ready |= line.contains("ready to accept connections");
            self.last.push_back(line);
            if self.last.len() > KEPT_LINES {
                self.last.pop_front();
            }
        }
    }

    /// The lines that tell why a server ended; else the last ones.
    fn cause(&self) -> String {
        let tells = |line: &&String| {
            let words = ["FATAL:", "PANIC:", "pitr-restore: error", "No space left"];
            words.iter().any(|words| line.contains(words))
        };
        let telling: Vec<&String> = self.last.iter().filter(tells).collect();
        let lines = match telling.is_empty() {
            true => self.last.iter().collect(),
            false => telling,
        };
        let first = lines.len().saturating_sub(SHOWN_LINES);
        let lines = lines.iter().skip(first).map(|line| line.trim());
        lines.collect::<Vec<_>>().join(" · ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(text: &str) -> Log {
        let mut log = Log::new(PathBuf::new());
        log.rest = text.as_bytes().to_vec();
        log.lines();
        log
    }

    #[test]
    fn the_log_tells_how_far_recovery_is_and_why_it_ended() {
        let mut at = log("LOG:  redo starts at 0/2000028\nLOG:  redo do");
        assert!(at.has_begun && !at.is_done);
        at.rest
            .extend_from_slice(b"ne at 0/3000000\nFATAL:  no\nLOG:  shut\n");
        at.lines();
        assert!(at.is_done);
        assert_eq!(at.cause(), "FATAL:  no");
        assert_eq!(log("one\ntwo\n").cause(), "one · two");
    }

    #[test]
    fn r205_a_server_that_was_killed_as_it_ended_recovery_is_told_from_one_that_ran_on() {
        for (state, is_behind, end) in [
            (ClusterState::InArchiveRecovery, false, End::CutShort),
            (ClusterState::ShuttingDown, false, End::CutShort),
            (ClusterState::ShuttingDown, true, End::PastTarget),
            (ClusterState::InCrashRecovery, false, End::PastTarget),
            (ClusterState::InProduction, false, End::PastTarget),
        ] {
            let found = End::without_signal(state, is_behind);
            assert_eq!(found, end, "{} {is_behind}", state.name());
        }
    }

    #[test]
    fn what_the_host_lacks_is_no_proof_that_recovery_is_broken() {
        let code = |cause: &str| outside(cause).unwrap_err().code();
        assert_eq!(code("pitr-restore: error R200: away"), Code::Unreachable);
        assert_eq!(code("PANIC: write: No space left on device"), Code::Full);
        assert!(outside("pitr-restore: error R201: damaged").is_ok());
    }
}
