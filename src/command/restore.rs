//! `pitr-restore %f %p`: delivered, proven absent, or an error that PostgreSQL must not take for the end of the WAL.
//!
//! The answer to an error depends on the state of the server (`docs/exit-status.md`). In recovery every error stops it.
//! A standby that streams gets "not here" and a warning, for it asks again and must not go down with the archive. A
//! standby that has only the archive waits.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::latch::{self, Decision};
use super::watch::Pulse;
use super::{AS_STORED, Arguments};
use crate::archive::asking::{Inquiry, is_proof};
use crate::archive::datadir::DataDirectory;
use crate::archive::fetch::{Fetch, Fetched, Place, Questions, fetch, is_named_itself};
use crate::archive::startup::is_choosing_timeline;
use crate::config::{self, Environment, PromoteUnreachable, Settings, StandbyOutage};
use crate::durable;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::exit::{Program, RESTORE_ABSENT, SUCCESS, printed};
use crate::fault;
use crate::pg::control::ClusterState;
use crate::pg::page::WalIdentity;
use crate::pg::segment::{SegmentName, WalFileName};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::TimelineId;
use crate::progress::Progress;
use crate::repo;
use crate::repo::lives::Followed;

/// How long a repository may be silent before a streaming standby is sent on to its primary.
const PATIENCE_STREAMING: Duration = Duration::from_secs(5);
/// How long one that `pitr-restore` reaches itself may be silent once the server is promoted.
const PATIENCE_PROMOTED: Duration = Duration::from_secs(1);
/// How long one that only `pitr` reaches, across a network or encrypted: connecting, signing in and a refused request take time where nothing is wrong.
const PATIENCE_PROMOTED_REMOTE: Duration = Duration::from_secs(5);
/// How long one on this host may be silent before the next is asked, too; a segment comes from there in some hundredths of a second.
const PATIENCE_NEXT: Duration = Duration::from_millis(500);
/// How long one across a network. Less than any of the others, so that there is time for the next.
const PATIENCE_NEXT_REMOTE: Duration = Duration::from_secs(1);
/// How long recovery tries an unreachable repository before it stops.
const PATIENCE_RECOVERY: Duration = Duration::from_secs(300);

/// Help text of the program.
pub const HELP: &str = "\
Fetch one WAL file; the restore_command of PostgreSQL

Usage: pitr-restore [--config FILE] [--cluster NAME] [--repository NAME|URL] [--as-stored] %f %p

--as-stored reads the WAL that was archived first, whatever \"pitr wal resolve\" decided.

Exit status 0: the file is at %p, every byte checked. 1: it is proven that the
archive does not have it. 200 to 209: an error; recovery must not go on.

  restore_command = '/usr/bin/pitr-restore --config /etc/pitr/pitr.toml %f %p'
";

/// Who reaches the repositories (`delegate::is_needed`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// `pitr-restore`: all are plain directories.
    Near,
    /// Only `pitr`.
    Far,
}

/// Fetches the file under a watch, which ends the work at SIGTERM, and when a repository hangs.
///
/// # Errors
/// Those of [`Job::run`].
pub fn watched(arguments: Arguments, reach: Reach, nonce: u64, warn: fn(&str)) -> Result<Fetched> {
    let environment = Arc::new(Environment::of_process());
    let job = Arc::new(Job::new(arguments)?);
    let pulse = Pulse::new(warn);
    let (seen, at, around) = (pulse.clone(), Arc::clone(&job), Arc::clone(&environment));
    let progress: Arc<dyn Progress> = Arc::new(pulse);
    let promoted = match reach {
        Reach::Near => PATIENCE_PROMOTED,
        Reach::Far => PATIENCE_PROMOTED_REMOTE,
    };
    super::watch::run(
        move || at.run(&around, nonce, &progress),
        || job.stuck(&environment, &seen, promoted),
    )
}

/// Has another program do the work, by `ask`, which returns its answer. An answer is passed on as it is. That the program could not be
/// started, was killed or said nothing is an archive out of reach, judged here by what the server is doing.
///
/// # Errors
/// `Usage` and `WalName`; what kept the program from answering, as far as the server's mode does not make it an absence.
pub fn delegated(
    arguments: Arguments,
    warn: fn(&str),
    mut ask: impl FnMut() -> Result<u8>,
) -> Result<u8> {
    let job = Job::new(arguments)?;
    if job.can_never_be() {
        return Ok(RESTORE_ABSENT);
    }
    let environment = Environment::of_process();
    job.judged(&Pulse::new(warn), RESTORE_ABSENT, || {
        ask().map_err(|e| (e.with_code(Code::Unreachable), job.outage(&environment)))
    })
}

/// The exit status that says what fetching came to.
pub fn answer(fetched: &Fetched) -> u8 {
    match fetched {
        Fetched::Delivered | Fetched::DeliveredTail { .. } => SUCCESS,
        Fetched::ProvenAbsent => RESTORE_ABSENT,
    }
}

/// Formats an error for PostgreSQL's log.
pub fn message(error: &Error) -> String {
    let code = printed(Program::Restore, error.code());
    let hint = error.hint_text().filter(|h| !h.is_empty());
    let mut text = format!("pitr-restore: error {code}: {error}\n");
    let lines = [impact(error.code()), hint].into_iter().flatten();
    for line in lines.chain(hint.is_none().then_some(LOOK)) {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

/// The hint for an error without one of its own.
const LOOK: &str = "\"pitr doctor\" looks at every link of the chain.";

/// Returns the meaning of a repository's failure for the server.
fn impact(code: Code) -> Option<&'static str> {
    let could_not_tell = matches!(
        code,
        Code::Unreachable
            | Code::NoRepository
            | Code::Io
            | Code::Denied
            | Code::Config
            | Code::Server
            | Code::WrongCluster
    );
    could_not_tell.then_some(
        "Recovery stops, for it must not take this for the end of the WAL; once the cause is gone it can be started again, and nothing is lost.",
    )
}

/// Formats a warning for PostgreSQL's log.
pub fn warning(text: &str) -> String {
    format!("pitr-restore: warning: {text}\n")
}

/// Returns the interval of the reports that a file is still on its way.
pub(super) fn progress_interval() -> Duration {
    fault::shortened(Duration::from_secs(30))
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is where a command line asks the clock"
)]
fn clock() -> TimestampTz {
    TimestampTz::from_system_time(SystemTime::now())
}

/// Formats such a report.
pub(super) fn still_fetching(name: &str, bytes: u64) -> String {
    format!("still fetching \"{name}\": {bytes} bytes so far")
}

/// The state of the server, by its signal files.
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

/// The configuration's rules for a repository that is out of reach.
#[derive(Debug, Clone, Copy, Default)]
struct Outage {
    standby: StandbyOutage,
    promote: PromoteUnreachable,
}

impl Outage {
    fn of(settings: &Settings) -> Result<Outage> {
        let cluster = settings.cluster_if_named()?;
        Ok(cluster.map_or_else(Outage::default, |c| Outage {
            standby: c.standby_outage,
            promote: c.promote_unreachable,
        }))
    }
}

/// One call of the program, its arguments understood.
pub struct Job {
    arguments: Arguments,
    name: WalFileName,
    target: PathBuf,
    directory: DataDirectory,
    inquiry: Inquiry,
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
            inquiry: Inquiry::default(),
        })
    }

    /// Fetches the file; `progress` gets warnings as they come, and every piece that arrives. The process must end with the answer.
    ///
    /// # Errors
    /// Everything that is not delivery or proven absence, as far as the server's mode does not make it an absence.
    pub fn run(
        &self,
        environment: &Environment,
        nonce: u64,
        progress: &Arc<dyn Progress>,
    ) -> Result<Fetched> {
        fault::point("restore");
        if self.can_never_be() {
            return Ok(Fetched::ProvenAbsent);
        }
        let mut questions = Questions::default();
        let fetched = self.judged(progress.as_ref(), Fetched::ProvenAbsent, || {
            let fetched = self.attempt(environment, nonce, progress, &mut questions)?;
            self.note_promotion(fetched, environment);
            Ok(fetched)
        });
        if self.inquiry.is_waiting() {
            // A silent repository was not needed. Who hangs there ends with the process, and what he has begun would stay.
            durable::remove_temporaries();
        }
        fetched
    }

    /// A server names a file of its own as the target, and renames it (PostgreSQL: xlogarchive.c, RestoreArchivedFile). A person and pg_rewind name
    /// the WAL file itself (src/fe_utils/archive.c): what the server is doing says nothing of what they are to hear.
    fn is_asked_by_server(&self) -> bool {
        !is_named_itself(&self.target, self.name)
    }

    fn mode(&self) -> Mode {
        match self.is_asked_by_server() {
            true => Mode::of(&self.directory, self.name),
            false => Mode::Recovery,
        }
    }

    /// There never is a history of the first timeline: PostgreSQL asks all the same while it promotes, when an error does most harm.
    fn can_never_be(&self) -> bool {
        self.name == WalFileName::History(TimelineId::FIRST)
    }

    /// Tries until there is an answer, or until what went wrong has to be one; `absent` is the answer "not here".
    fn judged<T>(
        &self,
        progress: &dyn Progress,
        absent: T,
        mut attempt: impl FnMut() -> std::result::Result<T, (Error, Outage)>,
    ) -> Result<T> {
        let mut waits = Waits::new(Instant::now());
        loop {
            let (error, outage) = match attempt() {
                Ok(done) => return Ok(done),
                Err(failed) => failed,
            };
            match self.verdict(outage, &error) {
                Verdict::Fail => return Err(error),
                Verdict::Refuse => return Err(refused(error)),
                Verdict::NotHere(why) => {
                    progress.warn(&not_here(&error, why));
                    return Ok(absent);
                }
                Verdict::Wait(limit, why) => {
                    // One that is silent at last, and was slow before, has its time from there.
                    let since = self.inquiry.last_piece().unwrap_or(waits.started);
                    if limit.is_some_and(|l| since.elapsed() >= l) {
                        return Err(error);
                    }
                    waits.pause(&error, why, progress);
                }
            }
            progress.advance(0);
        }
    }

    /// Returns the meaning of an error for the server. In recovery, a file that is damaged or lost in one repository
    /// may come from another that is still silent.
    fn verdict(&self, outage: Outage, error: &Error) -> Verdict {
        let verdict = match self.is_asked_by_server() {
            true => verdict(outage, error, &self.directory, self.name),
            false => verdict_of_one_call(error),
        };
        let may_come =
            is_proof(error.code()) && self.inquiry.is_waiting() && self.mode() == Mode::Recovery;
        match verdict {
            Verdict::Fail if may_come => {
                Verdict::Wait(Some(fault::shortened(PATIENCE_RECOVERY)), MAY_COME)
            }
            other => other,
        }
    }

    /// A promotion asks for more files, and by then nothing tells that it goes on.
    fn note_promotion(&self, fetched: Fetched, environment: &Environment) {
        if let WalFileName::Segment(wanted) = self.name
            && self.is_asked_by_server()
            && fetched == Fetched::ProvenAbsent
            && self.directory.is_promoted()
        {
            let outage = self.outage(environment);
            latch::write(
                &self.directory,
                of_promotion(outage.promote, &self.directory, wanted),
            );
        }
    }

    /// Returns the configuration's rules. The file lies on a local disk, and was read a moment ago.
    fn outage(&self, environment: &Environment) -> Outage {
        Settings::load(&self.arguments.flags, environment)
            .and_then(|s| Outage::of(&s))
            .unwrap_or_default()
    }

    fn attempt(
        &self,
        environment: &Environment,
        nonce: u64,
        progress: &Arc<dyn Progress>,
        questions: &mut Questions,
    ) -> std::result::Result<Fetched, (Error, Outage)> {
        let plain = |e: Error| (e, Outage::default());
        let settings = super::settings(&self.arguments, environment).map_err(plain)?;
        let outage = Outage::of(&settings).map_err(plain)?;
        self.fetch(&settings, nonce, progress, questions)
            .map_err(|e| (e, outage))
    }

    fn fetch(
        &self,
        settings: &Settings,
        nonce: u64,
        progress: &Arc<dyn Progress>,
        questions: &mut Questions,
    ) -> Result<Fetched> {
        let what = Fetch {
            cluster: super::cluster_name(settings, nonce)?,
            system_identifier: match self.arguments.system_identifier {
                Some(given) => Some(given),
                None => self.directory.control_head()?.map(|c| c.system_identifier),
            },
            name: self.name,
            followed: match self.arguments.switches.iter().any(|s| s == AS_STORED) {
                true => Followed::AsStored,
                false => Followed::Resolved,
            },
            target: self.target.clone(),
            nonce,
            clock,
            progress: Arc::clone(progress),
            inquiry: self.inquiry.clone(),
        };
        let places = settings.repositories.iter().map(|r| place(r, nonce));
        fetch(&what, places.collect(), questions)
    }

    /// Returns the answer of the watch while the work has been stuck for `silence`; `None` means: go on waiting.
    ///
    /// A call into a dead NFS server or a broken FUSE filesystem returns no error, it just does not return.
    fn stuck(
        &self,
        environment: &Environment,
        pulse: &Pulse,
        patience_promoted: Duration,
    ) -> Option<Result<Fetched>> {
        let silence = pulse.silence();
        let promoted = silence >= patience_promoted
            && self.is_asked_by_server()
            && self.directory.is_promoted();
        let patience = match self.mode() {
            Mode::Streaming | Mode::Leaving => PATIENCE_STREAMING,
            Mode::Recovery => fault::shortened(PATIENCE_RECOVERY),
            Mode::ArchiveOnly => progress_interval(),
        };
        if silence < patience && !promoted {
            pulse.tell(progress_interval(), |bytes| {
                still_fetching(&self.name.to_string(), bytes)
            });
            return None;
        }
        let error = self.inquiry.cut_off(silence);
        match self.verdict(self.outage(environment), &error) {
            Verdict::NotHere(why) => {
                pulse.warn(&not_here(&error, why));
                Some(Ok(Fetched::ProvenAbsent))
            }
            Verdict::Wait(None, why) => {
                pulse.remind(progress_interval(), || {
                    format!("{error}; waiting for it{why}")
                });
                None
            }
            Verdict::Refuse => Some(Err(refused(error))),
            Verdict::Fail | Verdict::Wait(Some(_), _) => Some(Err(error)),
        }
    }
}

fn place(configured: &config::Repository, nonce: u64) -> Place {
    let configured = configured.clone();
    Place {
        name: configured.location.to_string(),
        is_required: configured.required,
        patience: match configured.location.directory() {
            Some(_) => PATIENCE_NEXT,
            None => PATIENCE_NEXT_REMOTE,
        },
        open: Box::new(move || repo::open(&configured, nonce)),
    }
}

/// Formats an error that is answered with "not here".
fn not_here(error: &Error, why: &str) -> String {
    format!("{error}; answering \"not here\", {why}")
}

/// An error that stops a promotion; what it is about may have a hint of its own.
fn refused(error: Error) -> Error {
    match error.hint_text().map(str::to_owned) {
        Some(own) if !own.is_empty() => error.hint(format!("{own} {PROMOTION}")),
        _ => error.hint(PROMOTION),
    }
}

/// The reasons for the answer "not here" about a file that could not be requested from the repositories.
const ASKS_AGAIN: &str = "the standby asks again";
const HAS_IT: &str = "the server has the file in pg_wal";
/// The hint for the promotion of a standby while the archive cannot answer.
const PROMOTION: &str = "The standby is being promoted. Mend what keeps the archive from answering, or set promote_unreachable in the cluster's section of the configuration: \"proceed\" promotes without it.";
/// Why recovery waits although a file is known to be damaged, or lost.
const MAY_COME: &str = ", for a repository that is silent may have it";
/// The reason for waiting at the end of a promotion.
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
        let control = directory.control_head().ok().flatten();
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
    /// It stands because the server is promoted, and `promote_unreachable` may choose otherwise.
    Refuse,
    /// Status 1, with the reason why it is safe.
    NotHere(&'static str),
    /// Try again, for at most this long; with an addition to the message.
    Wait(Option<Duration>, &'static str),
}

/// Returns the meaning of an error for the server, by the table of modes in `docs/exit-status.md`.
fn verdict(outage: Outage, error: &Error, directory: &DataDirectory, name: WalFileName) -> Verdict {
    let mode = Mode::of(directory, name);
    if mode == Mode::Leaving {
        return match std::fs::metadata(directory.wal().join(name.to_string())) {
            Ok(file) if file.is_file() => Verdict::NotHere(HAS_IT),
            _ => Verdict::Wait(None, MUST_NOT_STOP),
        };
    }
    if !is_trouble_of_archive(error) {
        return Verdict::Fail;
    }
    // No streaming fills it: the number of a timeline that is known to exist.
    let is_used = error.code() == Code::Gap && matches!(name, WalFileName::History(_));
    let is_refused = is_used || outage.promote == PromoteUnreachable::Refuse;
    // Whatever is chosen, a used number is not taken.
    let stopped = match is_used {
        true => Verdict::Fail,
        false => Verdict::Refuse,
    };
    let held = latch::read(directory);
    match (mode, held) {
        // The stream ran until the server was promoted, so this is the first call that can tell.
        (Mode::Streaming | Mode::ArchiveOnly, _)
            if is_refused
                && matches!(name, WalFileName::History(_))
                && is_choosing_timeline(directory.path()) =>
        {
            stopped
        }
        // Promotion asked for: answering "not here" is safe only if the WAL came by streaming. A history file says nothing about that;
        // between it and the promotion the server asks for a segment (xlogrecovery.c, WaitForWALToBecomeAvailable).
        (Mode::Streaming | Mode::ArchiveOnly, _) if directory.is_promoted() => {
            let WalFileName::Segment(wanted) = name else {
                return Verdict::NotHere(ASKS_AGAIN);
            };
            let decision = of_promotion(outage.promote, directory, wanted);
            latch::write(directory, decision);
            match decision {
                Decision::Refuse => Verdict::Refuse,
                Decision::Proceed | Decision::Promote => Verdict::NotHere(ASKS_AGAIN),
            }
        }
        (_, Some(Decision::Refuse)) => stopped,
        (Mode::Streaming | Mode::ArchiveOnly, Some(Decision::Promote)) | (Mode::Recovery, _)
            if is_used =>
        {
            Verdict::Fail
        }
        (Mode::Recovery, Some(_)) => Verdict::NotHere(ASKS_AGAIN),
        (Mode::Recovery, None) => verdict_of_one_call(error),
        (Mode::Leaving, _) => Verdict::Fail,
        // A hole can be filled by streaming, whatever is to be done about an outage.
        (Mode::Streaming, _)
            if outage.standby == StandbyOutage::Stop && error.code() != Code::Gap =>
        {
            Verdict::Fail
        }
        (Mode::Streaming, _) => {
            if held.is_none() {
                latch::write(directory, Decision::Proceed);
            }
            Verdict::NotHere(ASKS_AGAIN)
        }
        (Mode::ArchiveOnly, Some(Decision::Promote)) => Verdict::NotHere(ASKS_AGAIN),
        // Only a newer pitr mends it.
        (Mode::ArchiveOnly, _) if error.code() == Code::Unsupported => Verdict::Fail,
        (Mode::ArchiveOnly, _) => Verdict::Wait(None, ""),
    }
}

fn is_trouble_of_archive(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::Unreachable
            | Code::NoRepository
            | Code::Io
            | Code::Denied
            | Code::Damaged
            | Code::Gap
            | Code::Key
            // An object of a newer format, or the part of a segment of a newer PostgreSQL.
            | Code::Unsupported
    )
}

/// Returns the meaning of an error for who waits for the answer and asks no second time: recovery, pg_rewind, a person.
fn verdict_of_one_call(error: &Error) -> Verdict {
    match is_trouble_of_archive(error) && error.code().is_retryable() {
        true => Verdict::Wait(Some(fault::shortened(PATIENCE_RECOVERY)), ""),
        false => Verdict::Fail,
    }
}

/// Returns the decision when promotion is requested and a segment cannot be had.
fn of_promotion(
    choice: PromoteUnreachable,
    directory: &DataDirectory,
    wanted: SegmentName,
) -> Decision {
    match choice {
        PromoteUnreachable::Proceed => Decision::Promote,
        PromoteUnreachable::Auto if streamed(directory, wanted) => Decision::Promote,
        PromoteUnreachable::Auto | PromoteUnreachable::Refuse => Decision::Refuse,
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
