//! `pitr-archive %p`: success only when the file is durable in every required repository.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::Arguments;
use crate::archive::datadir::DataDirectory;
use crate::archive::push::{Push, Pushed, Warnings, may_be_refused, push};
use crate::archive::spool::{Failure, Holder};
use crate::config::{self, Settings};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::exit::{self, Program, printed};
use crate::fault;
use crate::pg::segment::{SegmentName, SegmentSize, WalFileName};
use crate::repo;
use crate::repo::container::Codec;
use crate::repo::repository::Repository;

/// Help text of the program.
pub const HELP: &str = "\
Archive one WAL file; the archive_command of PostgreSQL

Usage: pitr-archive [--config FILE] [--cluster NAME] %p

Exit status 0 only when the file is durable in every required repository;
otherwise 1 to 125, and PostgreSQL offers the file again.

  archive_command = '/usr/bin/pitr-archive --config /etc/pitr/pitr.toml %p'
";

/// The codec of WAL bodies (decisions/0001-hash-and-codec.md).
pub const CODEC: Codec = Codec::Lz4;

/// Below what platforms allow before they kill a stopping server.
const DEADLINE: Duration = Duration::from_secs(50);
/// How long repositories that are not required may take once the file is acknowledged.
pub(super) const PATIENCE_REST: Duration = Duration::from_secs(5);

/// So many segments that the server forgot are archived before one that it offers, and waited for so long: this one has to be archived in time, too.
const FORGOTTEN_MOST: usize = 8;
const PATIENCE_FORGOTTEN: Duration = Duration::from_secs(10);

/// How long required repositories may take to say whether they may refuse the file, before the file is offered to one after the other.
const PATIENCE: Duration = Duration::from_secs(5);

/// The result of archiving a file; either way it is durable in every required repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archived {
    /// Whether it is new to one of the repositories.
    pub is_new: bool,
    /// Whether it is new to every repository that was asked.
    pub is_new_everywhere: bool,
    /// Warnings for PostgreSQL's log.
    pub warnings: Warnings,
}

/// The switch with which `pitr-archive` starts itself as a worker (`shipper`); not for people, and not in the help.
pub const SHIP: &str = "ship";

/// The command line of `pitr-archive`. `--repository` is refused: a file that is not in every required repository is not archived.
///
/// # Errors
/// `Usage`.
pub fn arguments(arguments: Vec<OsString>) -> Result<Arguments> {
    let parsed = super::parse(arguments, &[SHIP])?;
    match parsed.flags.repository {
        None => Ok(parsed),
        Some(_) => Err(err!(Usage, "pitr-archive takes no --repository").hint(
            "archive_command must be 'pitr-archive %p': it archives into every required repository. \"pitr wal push --repository\" puts one file into one.",
        )),
    }
}

/// Archives the one file that the arguments name, in required repositories first. `acknowledged` is called once the
/// file is durable in all of those. Later work may fail or hang without any loss.
///
/// # Errors
/// Those of [`push`]; `Partial` when one required repository of several failed.
pub fn run(
    arguments: &Arguments,
    settings: &Settings,
    nonce: u64,
    acknowledged: &dyn Fn(),
) -> Result<Archived> {
    fault::point("archive");
    let path = path_of(arguments)?;
    let name = name_of(path)?;
    Archiver::new(settings, nonce)?.archive(path, name, acknowledged)
}

/// As [`run`], of a file that may be older than what is archived.
///
/// # Errors
/// Those of [`run`]; `Conflict` for a segment that an archived one behind it does not continue.
pub fn backfill(arguments: &Arguments, settings: &Settings, nonce: u64) -> Result<Archived> {
    let path = path_of(arguments)?;
    let archiver = Archiver {
        is_backfill: true,
        ..Archiver::new(settings, nonce)?
    };
    archiver.archive(path, name_of(path)?, &|| {})
}

/// Archives files of one cluster, one after the other or several at once.
#[derive(Clone)]
pub(super) struct Archiver {
    cluster: String,
    places: Vec<Place>,
    nonce: u64,
    /// Opened for many files.
    is_open: bool,
    is_backfill: bool,
}

impl Archiver {
    /// Into the repositories of the configuration; none is open yet.
    ///
    /// # Errors
    /// `Usage` when no cluster can be chosen.
    pub fn new(settings: &Settings, nonce: u64) -> Result<Archiver> {
        let place = |r: &config::Repository| Place {
            configured: r.clone(),
            required: r.required,
            opened: None,
            is_silent: false,
            may_refuse: false,
        };
        Ok(Archiver {
            cluster: super::cluster_name(settings, nonce)?,
            places: settings.repositories.iter().map(place).collect(),
            nonce,
            is_open: false,
            is_backfill: false,
        })
    }

    /// Opens every required repository, for all files to come; else each is opened anew for each file. Returns which they are.
    ///
    /// # Errors
    /// The error of the first repository that cannot be opened.
    pub fn open(&mut self) -> Result<Vec<Holder>> {
        let mut holders = Vec::new();
        for place in self.places.iter_mut().filter(|p| p.required) {
            let repository = repo::open_to_archive(&place.configured, self.nonce)?;
            holders.push(Holder {
                location: place.configured.location.to_string(),
                uuid: repository.marker().uuid.clone(),
            });
            place.opened = Some(Arc::new(repository));
        }
        self.is_open = true;
        Ok(holders)
    }

    /// Archives one file, after those before it that the server has forgotten; see [`run`].
    ///
    /// # Errors
    /// Those of [`run`], also where they are about the history of its timeline.
    pub fn archive(
        &self,
        path: &Path,
        name: WalFileName,
        acknowledged: &dyn Fn(),
    ) -> Result<Archived> {
        let offered = match name {
            WalFileName::Segment(segment) if !self.is_backfill => Some(segment),
            _ => None,
        };
        let history = offered.and_then(|segment| unmarked_history(path, segment));
        let mut told = Warnings::new();
        if let Some(history) = history {
            told.extend(self.bring(path, history, name)?);
        }
        if let Some(segment) = offered {
            told.extend(self.forgotten(path, segment));
        }
        let archived = self.one(path, name, acknowledged)?;
        told.extend(archived.warnings);
        // The file is acknowledged by now, so that a repository that hangs is not waited for.
        if let Some(history) = history {
            told.extend(self.bring_to_the_rest(path, history));
        }
        let mut seen = BTreeSet::new();
        told.retain(|text| seen.insert(text.clone()));
        Ok(Archived {
            warnings: told,
            ..archived
        })
    }

    /// Archives a history that the server never offers in the required repositories. No other call brings it, and recovery needs it before the
    /// segments of its timeline: the segment waits where a repository takes nothing now, and goes into the others.
    ///
    /// # Errors
    /// Those of a repository, which the segment would meet, too.
    fn bring(&self, path: &Path, history: WalFileName, name: WalFileName) -> Result<Warnings> {
        let offer = self.offer(&path.with_file_name(history.to_string()), history);
        let required = self.places.iter().filter(|place| place.required);
        let mut places: Vec<Place> = required.cloned().collect();
        look(&mut places, &offer);
        if places.iter().all(|place| place.may_refuse) {
            return Ok(Warnings::new());
        }
        places.sort_by_key(|place| place.is_silent);
        let mut others = self.clone();
        others.places.clear();
        let mut tally = Tally::default();
        for place in places {
            // It may keep its turn until the deadline, and the others are to have the segment by then.
            if place.is_silent {
                others.share(path, name);
            }
            let opened = offer.open(&place);
            let pushed = opened.and_then(|repository| push(&offer.to(&repository)));
            let has_it = pushed.is_ok();
            if !tally.count(pushed, true) {
                break;
            }
            if has_it {
                others.places.push(place);
            }
        }
        match tally.outcome(history) {
            Ok(archived) => {
                let new = archived.is_new.then(|| archived_too(history));
                Ok(new.into_iter().chain(archived.warnings).collect())
            }
            Err(e) if is_of_all(e.code()) => {
                others.share(path, name);
                Err(e)
            }
            // Its own error, as a conflict, keeps no segment: those have checks of their own.
            Err(e) => Ok(vec![not_archived(history, &e)]),
        }
    }

    /// Archives a file of which something else keeps the server waiting; an error here is told when that is over.
    fn share(&self, path: &Path, name: WalFileName) {
        if !self.places.is_empty() {
            let _ = self.one(path, name, &|| {});
        }
    }

    /// Archives a history that the server never offers in the repositories that are not required.
    fn bring_to_the_rest(&self, path: &Path, history: WalFileName) -> Warnings {
        let path = path.with_file_name(history.to_string());
        let mut rest = self.clone();
        rest.places.retain(|place| !place.required);
        let offer = rest.offer(&path, history);
        let lacks_it = |place: &Place| {
            let repository = offer.open(place);
            let has_it = repository.and_then(|r| may_be_refused(&offer.to(&r)));
            !has_it.unwrap_or(false)
        };
        rest.places.retain(lacks_it);
        let archived = match rest.places.is_empty() {
            true => return Warnings::new(),
            false => rest.one(&path, history, &|| {}),
        };
        match archived {
            Ok(archived) => {
                let new = archived.is_new.then(|| archived_too(history));
                new.into_iter().chain(archived.warnings).collect()
            }
            Err(e) if is_of_all(e.code()) => Warnings::new(),
            Err(e) => vec![not_archived(history, &e)],
        }
    }

    /// Archives the segments before this one that a crash made the server forget. It offers them itself some day: no error of theirs counts, and
    /// they are not waited for long.
    fn forgotten(&self, path: &Path, segment: SegmentName) -> Warnings {
        let (until, mut told) = (Instant::now() + PATIENCE_FORGOTTEN, Warnings::new());
        let data = DataDirectory::of_wal_file(path);
        let size = std::fs::metadata(path).map(|m| SegmentSize::new(m.len()));
        let Ok(Ok(size)) = size else {
            return told;
        };
        // Somebody else's call, from a folder without marks.
        if !data.is_ready(WalFileName::Segment(segment)) {
            return told;
        }
        let forgotten = data.forgotten_before(segment, size, FORGOTTEN_MOST);
        if forgotten.is_empty() {
            return told;
        }
        let (mut archiver, path) = (self.clone(), path.to_owned());
        // With repositories of its own: the offered file is compared with what is stored, not with what is on its way.
        for place in &mut archiver.places {
            place.opened = None;
        }
        let (tell, answers) = channel();
        // Not a scoped thread: nobody waits for one that hangs in a dead mount.
        std::thread::spawn(move || {
            for name in forgotten {
                let path = path.with_file_name(name.to_string());
                let archived = archiver.one(&path, name, &|| {});
                // Behind a conflict nothing becomes the truth beside what another server has.
                let is_last = archived.as_ref().is_err_and(is_conflict);
                if tell.send((name, archived)).is_err() || is_last {
                    return;
                }
            }
        });
        let next = || answers.recv_timeout(until.saturating_duration_since(Instant::now()));
        while let Ok((name, archived)) = next() {
            match archived {
                Ok(archived) => {
                    if archived.is_new {
                        told.push(archived_too(name));
                    }
                    told.extend(archived.warnings);
                }
                // The file that is offered meets the same, and says so.
                Err(e) if is_of_all(e.code()) => break,
                Err(e) => told.push(not_archived(name, &e)),
            }
        }
        told
    }

    fn offer(&self, path: &Path, name: WalFileName) -> Offer {
        Offer {
            cluster: self.cluster.clone(),
            path: path.to_owned(),
            name,
            nonce: self.nonce,
            beside_others: self.is_open,
            is_backfill: self.is_backfill,
        }
    }

    /// Archives one file.
    fn one(&self, path: &Path, name: WalFileName, acknowledged: &dyn Fn()) -> Result<Archived> {
        let offer = self.offer(path, name);
        let mut tally = Tally::default();
        for place in in_order(&self.places, &offer) {
            if !place.required && tally.failed.is_none() && tally.stored > 0 {
                acknowledged();
            }
            let pushed = offer
                .open(&place)
                .and_then(|repository| push(&offer.to(&repository)));
            if !tally.count(pushed, place.required) {
                break;
            }
        }
        tally.outcome(name)
    }
}

/// The history of an offered segment's timeline, where the server has no mark for it.
fn unmarked_history(path: &Path, segment: SegmentName) -> Option<WalFileName> {
    let data = DataDirectory::of_wal_file(path);
    // Somebody else's call, from a folder without marks.
    let is_offered = data.is_ready(WalFileName::Segment(segment));
    let history = WalFileName::History(segment.timeline);
    (is_offered && data.is_unmarked(history)).then_some(history)
}

fn archived_too(name: WalFileName) -> String {
    format!(
        "\"{name}\" was archived, too: the server has no mark that it is to be archived. A crash can lose that; WAL from before archive_mode was on has none, nor has the history of a recovery that ended then"
    )
}

fn not_archived(name: WalFileName, error: &Error) -> String {
    format!(
        "\"{name}\" lies in pg_wal without a mark that it is to be archived, and was not: {error}"
    )
}

/// Whether every file meets the same, for a repository takes nothing now.
fn is_of_all(code: Code) -> bool {
    matches!(
        code,
        Code::Unreachable
            | Code::Io
            | Code::Deadline
            | Code::Interrupted
            | Code::Partial
            | Code::Denied
            | Code::Full
            | Code::ReadOnly
            | Code::NoRepository
            | Code::Key
    )
}

/// How long the program works at most.
pub fn deadline() -> Duration {
    fault::shortened(DEADLINE)
}

/// Does the work under a watch, which ends it after `deadline` and at SIGTERM; it calls its argument once the file is acknowledged.
///
/// # Errors
/// Those of the work, and `Deadline`.
pub(super) fn under_watch<T: From<Archived> + Send + 'static>(
    deadline: Duration,
    work: impl FnOnce(&dyn Fn()) -> Result<T> + Send + 'static,
) -> Result<T> {
    let started = Instant::now();
    // When every required repository had it, in milliseconds since the start, plus one; 0 is not yet.
    let acknowledged = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&acknowledged);
    let mark = move || acknowledged.store(millis(started.elapsed()) + 1, Ordering::Relaxed);
    super::watch::run(
        move || work(&mark),
        || {
            let elapsed = started.elapsed();
            let since = seen.load(Ordering::Relaxed);
            let is_late = elapsed >= deadline;
            if since > 0 && (is_late || millis(elapsed) > since + millis(PATIENCE_REST)) {
                return Some(Ok(without_the_rest().into()));
            }
            is_late.then(|| Err(deadline_error(deadline)))
        },
    )
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The file is durable wherever it has to be; a repository that is not required keeps it waiting.
pub(super) fn without_the_rest() -> Archived {
    Archived {
        is_new: true,
        is_new_everywhere: false,
        warnings: vec![
            "not stored in every repository: one that is not required does not answer".to_owned(),
        ],
    }
}

pub(super) fn deadline_error(deadline: Duration) -> Error {
    let seconds = deadline.as_secs_f32().ceil();
    err!(Deadline, "not stored within {seconds} s")
        .hint("PostgreSQL keeps the file and offers it again. The repository hangs or is too slow.")
}

/// Formats an error for PostgreSQL's log.
pub fn message(error: &Error) -> String {
    let code = printed(Program::Archive, error.code());
    let hint = error.hint_text().filter(|h| !h.is_empty());
    let hint = hint.map_or_else(String::new, |h| format!("  {h}\n"));
    format!("pitr-archive: error {code}: {error}\n{hint}")
}

/// An error as it is kept for who waits for the file, and who asks.
pub(super) fn failure_of(error: &Error) -> Failure {
    Failure {
        code: exit::name(error.code()).to_owned(),
        status: exit::status(Program::Archive, error.code()),
        text: message(error),
        since_ms: None,
    }
}

/// Formats a warning for PostgreSQL's log.
pub fn warning(text: &str) -> String {
    format!("pitr-archive: warning: {text}\n")
}

/// The file that is offered to each repository.
#[derive(Clone)]
struct Offer {
    cluster: String,
    path: PathBuf,
    name: WalFileName,
    nonce: u64,
    beside_others: bool,
    is_backfill: bool,
}

impl Offer {
    fn to<'a>(&'a self, repository: &'a Repository) -> Push<'a> {
        Push {
            repository,
            cluster: &self.cluster,
            path: &self.path,
            name: self.name,
            codec: CODEC,
            beside_others: self.beside_others,
            known: None,
            is_backfill: self.is_backfill,
        }
    }

    fn open(&self, place: &Place) -> Result<Arc<Repository>> {
        match &place.opened {
            Some(repository) => Ok(Arc::clone(repository)),
            None => repo::open_to_archive(&place.configured, self.nonce).map(Arc::new),
        }
    }
}

/// A repository that gets the file.
#[derive(Clone)]
struct Place {
    configured: config::Repository,
    required: bool,
    /// Open already.
    opened: Option<Arc<Repository>>,
    /// It was asked for the name, and has said nothing.
    is_silent: bool,
    /// It has the name, with these or other bytes, or the segment before as another server wrote it.
    may_refuse: bool,
}

/// Required repositories first, and of these the ones that may refuse it: where the name stands for other bytes, or the segment before is another
/// server's, nothing is stored in the rest. One that is silent comes last of them: it may keep its turn until the deadline, and the others are to have the file by then.
fn in_order(places: &[Place], offer: &Offer) -> Vec<Place> {
    let mut places = places.to_vec();
    if places.iter().filter(|p| p.required).count() > 1 {
        look(&mut places, offer);
    }
    places.sort_by_key(|p| (!p.required, p.is_silent, !p.may_refuse));
    places
}

/// Asks every required repository whether it may refuse the file, all at once; one that hangs is not waited for long, and what fails here fails
/// again when its turn comes.
fn look(places: &mut [Place], offer: &Offer) {
    let (found, answers) = channel();
    let mut asked = 0;
    for (index, place) in places.iter_mut().enumerate().filter(|(_, p)| p.required) {
        place.is_silent = true;
        let (offer, place, found) = (offer.clone(), place.clone(), found.clone());
        asked += 1;
        // Not a scoped thread: nobody waits for one that hangs in a dead mount.
        std::thread::spawn(move || {
            let answer = offer.open(&place).map(|repository| {
                let may_refuse = may_be_refused(&offer.to(&repository)).unwrap_or(false);
                (repository, may_refuse)
            });
            let _ = found.send((index, answer));
        });
    }
    let until = Instant::now() + fault::shortened(PATIENCE);
    for _ in 0..asked {
        let left = until.saturating_duration_since(Instant::now());
        let Ok((index, answer)) = answers.recv_timeout(left) else {
            return;
        };
        let Some(place) = places.get_mut(index) else {
            continue;
        };
        place.is_silent = false;
        if let Ok((repository, may_refuse)) = answer {
            place.opened = Some(repository);
            place.may_refuse = may_refuse;
        }
    }
}

/// The results for the file so far.
#[derive(Default)]
struct Tally {
    stored: usize,
    is_new: bool,
    /// One had it before.
    is_known: bool,
    warnings: Warnings,
    /// The first failure of a required repository.
    failed: Option<Error>,
    /// The first failure of another one.
    optional: Option<Error>,
}

impl Tally {
    /// Whether the next repository is to be offered the file, too.
    fn count(&mut self, pushed: Result<(Pushed, Warnings)>, required: bool) -> bool {
        match pushed {
            Ok((pushed, more)) => {
                self.stored += 1;
                self.is_new |= pushed == Pushed::Stored;
                self.is_known |= pushed == Pushed::AlreadyThere;
                // Several repositories may have the same to say of the file.
                more.into_iter().for_each(|one| self.warn(one));
            }
            Err(e) if required && self.failed.is_none() => {
                let goes_on = !is_conflict(&e);
                self.failed = Some(e);
                return goes_on;
            }
            Err(e) if !required && self.optional.is_none() => self.optional = Some(e),
            Err(e) => self.fails_elsewhere(&e),
        }
        true
    }

    fn warn(&mut self, text: String) {
        if !self.warnings.contains(&text) {
            self.warnings.push(text);
        }
    }

    /// One more repository does not have the file; for the reason that is told already, as a rule.
    fn fails_elsewhere(&mut self, error: &Error) {
        let told = [&self.failed, &self.optional].into_iter().flatten();
        let told: Vec<String> = told.map(Error::to_string).collect();
        let text = error.to_string();
        if !told.contains(&text) {
            self.warn(format!("not stored in every repository: {text}"));
        }
    }

    fn outcome(mut self, name: WalFileName) -> Result<Archived> {
        if let Some(optional) = self
            .optional
            .take_if(|_| self.failed.is_some() || self.stored > 0)
        {
            self.fails_elsewhere(&optional);
        }
        let (warnings, stored) = (self.warnings, self.stored);
        let also = match warnings.as_slice() {
            [] => String::new(),
            more => format!(" Also: {}", more.join("; ")),
        };
        let failed = match (self.failed, self.optional) {
            (None, None) => {
                return Ok(Archived {
                    is_new: self.is_new,
                    is_new_everywhere: !self.is_known,
                    warnings,
                });
            }
            (Some(e), _) if stored > 0 && !is_conflict(&e) => {
                err!(Partial, "\"{name}\" is not stored in every required repository")
                    .source(e)
                    .hint("PostgreSQL keeps the file and offers it again; what is stored already is not stored twice.")
            }
            (Some(e), _) => e,
            (None, Some(e)) => {
                let hint = e.hint_text().unwrap_or("PostgreSQL keeps the file and offers it again.").to_owned();
                e.context(format!("\"{name}\" could not be stored in any repository")).hint(hint)
            }
        };
        let hint = failed.hint_text().unwrap_or_default().to_owned();
        Err(failed.hint(format!("{hint}{also}").trim_start().to_owned()))
    }
}

fn is_conflict(error: &Error) -> bool {
    matches!(error.code(), Code::Conflict | Code::TimelineReused)
}

pub(super) fn path_of(arguments: &Arguments) -> Result<&Path> {
    match arguments.files.as_slice() {
        [path] if !path.is_empty() => Ok(Path::new(path)),
        [] | [_] => {
            Err(err!(Usage, "no file given").hint("archive_command must be 'pitr-archive %p'."))
        }
        more => Err(err!(Usage, "one argument expected, got {}", more.len())
            .hint("archive_command must be 'pitr-archive %p'.")),
    }
}

pub(super) fn name_of(path: &Path) -> Result<WalFileName> {
    let name = path.file_name().unwrap_or(path.as_os_str());
    let Some(text) = name.to_str() else {
        return Err(err!(
            WalName,
            "\"{}\" is not a WAL, history or backup file name",
            name.display()
        ));
    };
    text.parse()
}
