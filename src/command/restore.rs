//! `pitr-restore %f %p`: delivered, proven absent, or an error that PostgreSQL must not take for the end of the WAL.
//!
//! How an error is answered depends on what the server is doing (`docs/exit-status.md`): in recovery every error stops it; a standby
//! that streams is told "not here" with a warning, for it asks again and must not go down with the archive; a standby that has only the
//! archive waits.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Arguments;
use super::latch::{self, Decision};
use super::watch::Pulse;
use crate::archive::datadir::DataDirectory;
use crate::archive::fetch::{Fetch, Fetched, fetch};
use crate::config::{Environment, Settings, StandbyOutage};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::pg::control::ClusterState;
use crate::pg::page::WalIdentity;
use crate::pg::segment::{SegmentName, WalFileName};
use crate::pg::timeline::TimelineId;
use crate::progress::Progress;
use crate::repo;

/// How long a repository may be silent before a streaming standby is sent on to its primary.
const PATIENCE_STREAMING: Duration = Duration::from_secs(5);
/// How long recovery tries an unreachable repository before it stops.
const PATIENCE_RECOVERY: Duration = Duration::from_secs(300);

/// Help text of the program.
pub const HELP: &str = "\
Fetch one WAL file; the restore_command of PostgreSQL

Usage: pitr-restore [--config FILE] [--cluster NAME] [--repository NAME|URL] %f %p

Exit status 0: the file is at %p, every byte checked. 1: it is proven that the
archive does not have it. 200 to 209: an error; recovery must not go on.

  restore_command = '/usr/bin/pitr-restore --config /etc/pitr/pitr.toml %f %p'
";

/// What the server is doing, by its signal files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Archive recovery, pg_rewind, a person: an error must stop it.
    Recovery,
    /// A standby that streams too.
    Streaming,
    /// A standby that has only the archive.
    ArchiveOnly,
    /// Recovery has ended, a new timeline is chosen, the signal files are gone: the history of the old one is copied. An error would
    /// stop the server there, and without signal files the next start opens the old timeline for writes (measured on 13 and 18).
    Leaving,
}

/// One call of the program, its arguments understood.
pub struct Job {
    arguments: Arguments,
    name: WalFileName,
    target: PathBuf,
    directory: DataDirectory,
}

impl Job {
    /// Understands the arguments.
    ///
    /// # Errors
    /// `Usage` and `WalName`.
    pub fn new(arguments: Arguments) -> Result<Job> {
        let [wanted, target] = arguments.files.as_slice() else {
            return Err(err!(
                Usage,
                "two arguments expected, got {}",
                arguments.files.len()
            )
            .hint("restore_command must be 'pitr-restore %f %p'."));
        };
        let name = name_of(wanted, target)?;
        let target = PathBuf::from(target);
        Ok(Job {
            directory: DataDirectory::of_wal_file(&target),
            name,
            target,
            arguments,
        })
    }

    /// Fetches the file; `progress` gets warnings as they come, and every piece that arrives.
    ///
    /// # Errors
    /// Everything that is not delivery or proven absence, as far as the server's mode does not make it an absence.
    pub fn run(
        &self,
        environment: &Environment,
        nonce: u64,
        progress: &dyn Progress,
    ) -> Result<Fetched> {
        fault::point("restore");
        // There never is one: PostgreSQL asks all the same while it promotes, when an error does most harm.
        if self.name == WalFileName::History(TimelineId::FIRST) {
            return Ok(Fetched::ProvenAbsent);
        }
        let started = Instant::now();
        let mut waits = Waits::new(started);
        loop {
            let (error, outage) = match self.attempt(environment, nonce, progress) {
                Ok(fetched) => {
                    self.note_promotion(fetched);
                    return Ok(fetched);
                }
                Err(failed) => failed,
            };
            match verdict(outage, &error, &self.directory, self.name) {
                Verdict::Fail => return Err(error),
                Verdict::NotHere(why) => {
                    progress.warn(&not_here(&error, why));
                    return Ok(Fetched::ProvenAbsent);
                }
                Verdict::Wait(limit, why) => {
                    if limit.is_some_and(|l| started.elapsed() >= l) {
                        return Err(error);
                    }
                    waits.pause(&error, why, progress);
                }
            }
            progress.advance(0);
        }
    }

    /// A promotion asks for more files, and by then nothing tells that it goes on.
    fn note_promotion(&self, fetched: Fetched) {
        if let WalFileName::Segment(wanted) = self.name
            && fetched == Fetched::ProvenAbsent
            && self.directory.is_promoted()
        {
            latch::write(&self.directory, of_promotion(&self.directory, wanted));
        }
    }

    fn attempt(
        &self,
        environment: &Environment,
        nonce: u64,
        progress: &dyn Progress,
    ) -> std::result::Result<Fetched, (Error, StandbyOutage)> {
        let plain = |e: Error| (e, StandbyOutage::default());
        let settings = super::settings(&self.arguments.flags, environment).map_err(plain)?;
        let cluster = settings.cluster_if_named().map_err(plain)?;
        let outage = cluster.map_or(StandbyOutage::default(), |c| c.standby_outage);
        self.fetch(&settings, nonce, progress)
            .map_err(|e| (e, outage))
    }

    fn fetch(&self, settings: &Settings, nonce: u64, progress: &dyn Progress) -> Result<Fetched> {
        let cluster = super::cluster_name(settings, nonce)?;
        let what = Fetch {
            cluster: &cluster,
            system_identifier: match self.arguments.system_identifier {
                Some(given) => Some(given),
                None => self.directory.control()?.map(|c| c.system_identifier),
            },
            name: self.name,
            target: &self.target,
            nonce,
            progress,
        };
        // Opened one after the other: a second one that hangs does not matter if the first one has the file.
        let repositories = settings
            .repositories
            .iter()
            .map(|r| (repo::open(&r.location, nonce), r.required));
        fetch(&what, repositories)
    }

    /// What the watch answers while the work has been stuck for `silence`; `None` is to go on waiting.
    ///
    /// A call into a dead NFS server or a broken FUSE filesystem returns no error, it just does not return.
    pub fn stuck(&self, environment: &Environment, pulse: &Pulse) -> Option<Result<Fetched>> {
        let silence = pulse.silence();
        let promoted = silence >= Duration::from_secs(1) && self.directory.is_promoted();
        let patience = match Mode::of(&self.directory, self.name) {
            Mode::Streaming | Mode::Leaving => PATIENCE_STREAMING,
            Mode::Recovery => fault::shortened(PATIENCE_RECOVERY),
            Mode::ArchiveOnly => Duration::MAX,
        };
        if silence < patience && !promoted {
            return None;
        }
        let error = err!(
            Unreachable,
            "the repository has not answered for {} s",
            silence.as_secs()
        );
        // The configuration lies on a local disk; it was read a moment ago.
        let outage = Settings::load(&self.arguments.flags, environment)
            .and_then(|s| s.cluster_if_named())
            .ok()
            .flatten()
            .map_or(StandbyOutage::default(), |c| c.standby_outage);
        match verdict(outage, &error, &self.directory, self.name) {
            Verdict::NotHere(why) => {
                pulse.warn(&not_here(&error, why));
                Some(Ok(Fetched::ProvenAbsent))
            }
            Verdict::Wait(None, _) => None,
            Verdict::Fail | Verdict::Wait(Some(_), _) => Some(Err(error)),
        }
    }
}

/// How an error is told that is answered with "not here".
fn not_here(error: &Error, why: &str) -> String {
    format!("{error}; answering \"not here\", {why}")
}

/// Why "not here" may be said of what could not be asked for.
const ASKS_AGAIN: &str = "the standby asks again";
const HAS_IT: &str = "the server has the file in pg_wal";
/// Why it is waited at the end of a promotion.
const MUST_NOT_STOP: &str =
    "; do not stop the server: it has left its timeline, and would open it again for writes";

fn name_of(wanted: &std::ffi::OsStr, target: &std::ffi::OsStr) -> Result<WalFileName> {
    let text = wanted.to_str().unwrap_or_default();
    text.parse::<WalFileName>().map_err(|e| {
        let other = Path::new(target).file_name().and_then(|n| n.to_str());
        let swapped = wanted.to_string_lossy().contains('/')
            || other.is_some_and(|n| n.parse::<WalFileName>().is_ok());
        let e = err!(
            WalName,
            "first argument \"{}\" is not a WAL file name",
            wanted.to_string_lossy().escape_debug()
        )
        .source(e);
        e.hint(if swapped {
            "The arguments look swapped: restore_command must be 'pitr-restore %f %p'."
        } else {
            "restore_command must be 'pitr-restore %f %p'."
        })
    })
}

impl Mode {
    fn of(directory: &DataDirectory, name: WalFileName) -> Mode {
        // standby.signal wins when both files are there, as in PostgreSQL.
        match (directory.has("standby.signal"), directory.streams()) {
            (true, true) => Mode::Streaming,
            (true, false) => Mode::ArchiveOnly,
            (false, _) if is_leaving(directory, name) => Mode::Leaving,
            (false, _) => Mode::Recovery,
        }
    }
}

/// PostgreSQL: src/backend/access/transam/timeline.c, writeTimeLineHistory; xlog.c, StartupXLOG.
fn is_leaving(directory: &DataDirectory, name: WalFileName) -> bool {
    let recovers = || {
        let control = directory.control().ok().flatten();
        control.is_some_and(|c| c.state == ClusterState::InArchiveRecovery)
    };
    matches!(name, WalFileName::History(_))
        && !directory.has("recovery.signal")
        && directory.has("postmaster.pid")
        && recovers()
}

enum Verdict {
    /// The error stands.
    Fail,
    /// Status 1, and why that may be said.
    NotHere(&'static str),
    /// Try again, for at most this long; and what to say besides.
    Wait(Option<Duration>, &'static str),
}

/// What an error means to the server, by the table of modes in `docs/exit-status.md`.
fn verdict(
    outage: StandbyOutage,
    error: &Error,
    directory: &DataDirectory,
    name: WalFileName,
) -> Verdict {
    let mode = Mode::of(directory, name);
    if mode == Mode::Leaving {
        return match std::fs::metadata(directory.wal().join(name.to_string())) {
            Ok(file) if file.is_file() => Verdict::NotHere(HAS_IT),
            _ => Verdict::Wait(None, MUST_NOT_STOP),
        };
    }
    let archive_trouble = matches!(
        error.code(),
        Code::Unreachable
            | Code::NoRepository
            | Code::Io
            | Code::Denied
            | Code::Damaged
            | Code::Gap
    );
    if !archive_trouble {
        return Verdict::Fail;
    }
    // No streaming fills it: the number of a timeline that is known to exist.
    let is_used = error.code() == Code::Gap && matches!(name, WalFileName::History(_));
    let held = latch::read(directory);
    match (mode, held) {
        // Promotion asked for: answering "not here" is safe only if the WAL came by streaming. A history file says nothing about that;
        // between it and the promotion the server asks for a segment (xlogrecovery.c, WaitForWALToBecomeAvailable).
        (Mode::Streaming | Mode::ArchiveOnly, _) if directory.is_promoted() => {
            let WalFileName::Segment(wanted) = name else {
                return Verdict::NotHere(ASKS_AGAIN);
            };
            let decision = of_promotion(directory, wanted);
            latch::write(directory, decision);
            match decision {
                Decision::Refuse => Verdict::Fail,
                Decision::Proceed | Decision::Promote => Verdict::NotHere(ASKS_AGAIN),
            }
        }
        (_, Some(Decision::Refuse)) => Verdict::Fail,
        (Mode::Streaming | Mode::ArchiveOnly, Some(Decision::Promote)) | (Mode::Recovery, _)
            if is_used =>
        {
            Verdict::Fail
        }
        (Mode::Recovery, Some(_)) => Verdict::NotHere(ASKS_AGAIN),
        (Mode::Recovery, None) if error.code().is_retryable() => {
            Verdict::Wait(Some(fault::shortened(PATIENCE_RECOVERY)), "")
        }
        (Mode::Recovery | Mode::Leaving, _) => Verdict::Fail,
        // A hole can be filled by streaming, whatever is to be done about an outage.
        (Mode::Streaming, _) if outage == StandbyOutage::Stop && error.code() != Code::Gap => {
            Verdict::Fail
        }
        (Mode::Streaming, _) => {
            if held.is_none() {
                latch::write(directory, Decision::Proceed);
            }
            Verdict::NotHere(ASKS_AGAIN)
        }
        (Mode::ArchiveOnly, _) => Verdict::Wait(None, ""),
    }
}

/// What is decided when promotion is asked for and a segment cannot be had.
fn of_promotion(directory: &DataDirectory, wanted: SegmentName) -> Decision {
    match streamed(directory, wanted) {
        true => Decision::Promote,
        false => Decision::Refuse,
    }
}

/// Whether the file wanted, or a later segment, came by streaming and is in pg_wal already.
///
/// Segments that were recycled for later use lie there under later names, too: only one whose first page belongs to its name counts.
fn streamed(directory: &DataDirectory, wanted: SegmentName) -> bool {
    let Ok(entries) = std::fs::read_dir(directory.wal()) else {
        return false;
    };
    let is_written = |path: &Path, found: SegmentName| -> Option<()> {
        let mut first = [0; 40];
        std::fs::File::open(path)
            .ok()?
            .read_exact(&mut first)
            .ok()?;
        WalIdentity::read(&first).ok()?.matches(found).ok()
    };
    entries.filter_map(std::result::Result::ok).any(|entry| {
        let name = entry.file_name();
        let found = name.to_str().and_then(|n| n.parse::<SegmentName>().ok());
        found.is_some_and(|s| {
            s.timeline >= wanted.timeline
                && (s.log, s.seg) >= (wanted.log, wanted.seg)
                && is_written(&entry.path(), s).is_some()
        })
    })
}

/// Pauses between attempts: short at first; one warning in 30 s.
struct Waits {
    pause: Duration,
    said: Option<Instant>,
    started: Instant,
}

impl Waits {
    fn new(started: Instant) -> Waits {
        Waits {
            pause: Duration::from_millis(100),
            said: None,
            started,
        }
    }

    fn pause(&mut self, error: &Error, why: &str, progress: &dyn Progress) {
        if self
            .said
            .is_none_or(|t| t.elapsed() >= Duration::from_secs(30))
        {
            progress.warn(&format!(
                "{error}; trying again since {} s{why}",
                self.started.elapsed().as_secs()
            ));
            self.said = Some(Instant::now());
        }
        // Not longer than a second: a promotion or shutdown must not wait for us.
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(Duration::from_secs(1));
    }
}
