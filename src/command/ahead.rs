//! `pitr-archive` before it archives a file itself: it may be safe already, and others may be ready.
//!
//! A file of which the spool has a sound note is acknowledged at once. Else, where more than this one is ready, or a call was too short for
//! this one, it is made sure that a worker runs (`shipper`), and what the worker comes to with this file is waited for. Whenever that does
//! not lead anywhere (no spool, a worker that cannot be started, was killed, has failed with this file before) the file is archived as if
//! there were no workers, which says exactly what is wrong.
//!
//! A worker that comes to nothing in half of the time there is hangs, or has much to do before: that is kept in the spool, and nobody waits for it
//! again before it has noted a file.
//!
//! A note is believed when it is about the very file (device, inode, size, times), with the system identifier of its header, and about the
//! required repositories of the configuration, and is not older than `BELIEVED`. In those that are directories the object is looked for besides.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::archive::{self, Archived, deadline};
use super::{Arguments, delegate, detach, shipper};
use crate::archive::datadir::DataDirectory;
use crate::archive::spool::{self, Failure, FileIdentity, Note, Spool};
use crate::config::{self, Environment, Settings};
use crate::error::{Code, Error, Result};
use crate::exit::{self, Program};
use crate::pg::segment::WalFileName;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::store;

/// How long a note stands for its object: so long the repository is not asked whether the object is still there.
const BELIEVED: Duration = Duration::from_secs(600);
/// How long directories may take to say whether they have an object, where nobody watches over it.
const LOOK: Duration = Duration::from_secs(5);
/// How often a worker is asked what it has come to: first, and at last.
const PAUSES: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(5));

/// The text to print and the exit status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// For PostgreSQL's log.
    pub text: String,
    /// 0 when the file is durable in every required repository.
    pub status: u8,
}

impl From<Archived> for Told {
    fn from(archived: Archived) -> Told {
        Told::success(&archived.warnings)
    }
}

impl Told {
    fn success(warnings: &[String]) -> Told {
        Told {
            text: warnings.iter().map(|w| archive::warning(w)).collect(),
            status: exit::SUCCESS,
        }
    }
}

/// Archives the file under a watch, in local repositories.
///
/// # Errors
/// Those of [`archive::run`], and `Deadline`.
pub fn watched(arguments: Arguments, settings: Settings, nonce: u64) -> Result<Told> {
    let (given, known) = (arguments.clone(), settings.clone());
    let told = archive::under_watch(deadline(), move |acknowledged| {
        let ahead = Ahead::new(&arguments, &settings, &Environment::of_process(), nonce);
        if let Some(ahead) = &ahead
            && let Some(told) = ahead.ask()?
        {
            return Ok(told);
        }
        let archived = archive::run(&arguments, &settings, nonce, acknowledged);
        let complaint = match ahead {
            Some(ahead) => {
                ahead.settle(archived.as_ref().map(|_| ()), false, nonce);
                ahead.complaint.into_inner()
            }
            None => String::new(),
        };
        let mut told = Told::from(archived?);
        told.text.push_str(&complaint);
        Ok(told)
    });
    // A thread that hangs in a repository records nothing.
    if let Err(e) = &told
        && e.code() == Code::Deadline
        && let Some(ahead) = Ahead::new(&given, &known, &Environment::of_process(), nonce)
    {
        ahead.settle(Err(e), true, nonce);
    }
    told
}

/// Has `pitr` archive the file; `given` is the command line. Nothing here touches a repository, so nothing hangs but `pitr`.
///
/// # Errors
/// Those of [`delegate::run`], and `Deadline`.
pub fn delegated(
    arguments: &Arguments,
    settings: &Settings,
    given: Vec<OsString>,
    nonce: u64,
) -> Result<Told> {
    let begun = Instant::now();
    let ahead = Ahead::new(arguments, settings, &Environment::of_process(), nonce);
    if let Some(ahead) = &ahead
        && let Some(told) = ahead.ask()?
    {
        return Ok(told);
    }
    let left = deadline().saturating_sub(begun.elapsed());
    let answer = delegate::run(Program::Archive, given, Some(left));
    // `pitr` has recorded its own result: only an error of running it is left to record.
    if let (Some(ahead), Err(e)) = (&ahead, &answer) {
        ahead.settle(Err(e), e.code() == Code::Deadline, nonce);
    }
    Ok(Told {
        text: ahead
            .map(|ahead| ahead.complaint.into_inner())
            .unwrap_or_default(),
        status: answer?,
    })
}

/// Archives the file for a `pitr-archive` that has asked for it by [`delegated`], and waits for so long.
///
/// # Errors
/// Those of [`archive::run`], of the configuration, and `Deadline`.
pub fn on_behalf(arguments: Arguments, nonce: u64, limit: Duration) -> Result<Archived> {
    let environment = Environment::of_process();
    let settings = super::settings(&arguments, &environment)?;
    let (given, known) = (arguments.clone(), settings.clone());
    let begun = Instant::now();
    let archived =
        archive::under_watch(limit, move |mark| archive::run(&given, &known, nonce, mark));
    // Requests end sooner than the call, with an error of their own.
    let is_late = begun.elapsed() >= delegate::sooner(limit) * 9 / 10;
    if let Some(ahead) = Ahead::new(&arguments, &settings, &environment, nonce) {
        ahead.settle(archived.as_ref().map(|_| ()), is_late, nonce);
    }
    archived
}

/// Whether the repository in this directory, whatever lies there, is the one of `uuid`, and has the object. No key is needed.
fn is_in(
    place: &config::Repository,
    uuid: &str,
    (layout, name): (&ClusterLayout, WalFileName),
) -> Result<bool> {
    let repository = Repository::open(store::open(place, 0)?)?;
    if repository.marker().uuid != uuid {
        return Ok(false);
    }
    let key = repository.read_lives(layout)?.wal_file(name);
    Ok(repository.store().head(&key)?.is_some())
}

/// A file that is offered, and the spool of its cluster.
struct Ahead<'a> {
    settings: &'a Settings,
    cluster: String,
    data: DataDirectory,
    path: PathBuf,
    name: WalFileName,
    spool: Spool,
    begun: Instant,
    nonce: u64,
    /// A complaint about the worker, for PostgreSQL's log.
    complaint: Cell<String>,
}

impl<'a> Ahead<'a> {
    /// Returns `None` if nothing is archived ahead: another kind of file, no spool. An error of the file is found by
    /// the program that archives it.
    fn new(
        arguments: &Arguments,
        settings: &'a Settings,
        environment: &Environment,
        nonce: u64,
    ) -> Option<Ahead<'a>> {
        let path = archive::path_of(arguments).ok()?;
        let name = archive::name_of(path).ok()?;
        if !matches!(name, WalFileName::Segment(_) | WalFileName::Partial(_)) {
            return None;
        }
        let path = environment.absolute(path);
        let data = DataDirectory::of_wal_file(&path);
        // A note is about all of them; about none there is no note.
        settings.repositories.iter().find(|r| r.required)?;
        let cluster = settings.cluster_if_named().ok()??;
        let place = spool::place(&cluster, settings, environment, &data).ok()??;
        let spool = Spool::create(&place).ok()?;
        Some(Ahead {
            cluster: cluster.name.to_string(),
            settings,
            data,
            path,
            name,
            spool,
            begun: Instant::now(),
            nonce,
            complaint: Cell::default(),
        })
    }

    /// Whether all repositories are unencrypted directories: then this program does the work itself, and a watch stands beside ([`watched`]).
    fn is_local(&self) -> bool {
        !delegate::is_needed(self.settings)
    }

    /// Returns the result to report; `None` when the caller has to archive the file itself.
    fn ask(&self) -> Result<Option<Told>> {
        if let Some(told) = self.noted()? {
            return Ok(Some(told));
        }
        // Somebody else's call, not the server's: no worker would look at the file.
        if !self.data.is_ready(self.name) {
            return Ok(None);
        }
        let failure = self.spool.failure(self.name);
        let mut may_start = true;
        loop {
            match self.spool.try_lock() {
                Err(_) => return Ok(None),
                Ok(None) => {}
                Ok(Some(lock)) => {
                    // Its last deed may have been this file.
                    if let Some(told) = self.noted()? {
                        return Ok(Some(told));
                    }
                    let starts = may_start && self.is_worth_a_worker(failure.as_ref());
                    if !starts || self.start(lock).is_err() {
                        return Ok(None);
                    }
                    may_start = false;
                }
            }
            // The error of today is found by trying.
            if failure.is_some() {
                return Ok(None);
            }
            match self.wait()? {
                Waited::Told(told) => return Ok(Some(told)),
                Waited::Alone => {}
                // A worker that hangs, or has much to do before: archiving a file twice does no harm.
                Waited::TooLong => return Ok(None),
            }
        }
    }

    /// Whether others wait, or a call was too short for the file: a worker may take longer.
    fn is_worth_a_worker(&self, failure: Option<&Failure>) -> bool {
        failure.is_some_and(|failure| !shipper::is_of_the_file(failure))
            || shipper::has_others(&self.data, &self.spool, self.name)
    }

    /// Waits until the worker has come to something, or there is none.
    fn wait(&self) -> Result<Waited> {
        let mut pause = PAUSES.0;
        loop {
            if let Some(told) = self.noted()? {
                return Ok(Waited::Told(told));
            }
            if let Some(failure) = self.spool.failure(self.name) {
                return Ok(Waited::Told(Told {
                    text: failure.text,
                    status: failure.status,
                }));
            }
            if self.spool.is_hung() && matches!(self.spool.try_lock(), Ok(None)) {
                return Ok(Waited::TooLong);
            }
            if self.begun.elapsed() >= deadline() / 2 {
                self.complain();
                return Ok(Waited::TooLong);
            }
            if !matches!(self.spool.try_lock(), Ok(None)) {
                return Ok(Waited::Alone);
            }
            std::thread::sleep(pause);
            pause = (pause * 3 / 2).min(PAUSES.1);
        }
    }

    /// Keeps that the worker was waited for in vain, for those that come next and for people.
    fn complain(&self) {
        let is_kept = match self.spool.try_lock() {
            Ok(None) => self.spool.mark_hung(self.nonce),
            _ => return,
        };
        let process = self.spool.worker();
        let process = process.map_or_else(String::new, |id| format!(" (process {id})"));
        let seconds = self.begun.elapsed().as_secs();
        let follows = match is_kept {
            Ok(()) => {
                "files are archived one at a time, without waiting for it, until it goes on or ends"
            }
            Err(_) => "it is waited for again with each file",
        };
        self.complaint.set(archive::warning(&format!(
            "the worker that archives ahead{process} has come to nothing with \"{}\" in {seconds} s: {follows}. If it hangs, end it: kill -KILL",
            self.name
        )));
    }

    /// Returns the result that a believed note about the file records, if there is one. The note is removed: it has
    /// served.
    fn noted(&self) -> Result<Option<Told>> {
        let Some(note) = self.spool.note(self.name) else {
            return Ok(None);
        };
        self.data.check_guard()?;
        let Some((file, system_identifier)) = spool::look_at(&self.path, self.name) else {
            return Ok(None);
        };
        let is_about = self.is_about(&note, file, system_identifier);
        if !is_about || !self.is_there(&note) {
            self.spool.remove_note(self.name);
            return Ok(None);
        }
        self.spool.remove_note(self.name);
        self.spool.remove_failure(self.name);
        Ok(Some(Told::success(&note.warnings)))
    }

    /// Whether a note is about this very file and these repositories, and young enough.
    fn is_about(&self, note: &Note, file: FileIdentity, system_identifier: u64) -> bool {
        let required = self.settings.repositories.iter().filter(|r| r.required);
        let places: Vec<String> = required.map(|r| r.location.to_string()).collect();
        let held: Vec<&str> = note.holders.iter().map(|h| h.location.as_str()).collect();
        let age = super::since_boot().checked_sub(Duration::from_millis(note.written_ms));
        note.file == file
            && note.system_identifier == system_identifier
            && !places.is_empty()
            && places == held
            && spool::boot().is_some_and(|boot| note.boot == boot)
            && note.server == self.data.server()
            && age.is_some_and(|age| age <= BELIEVED)
    }

    /// Returns whether every required repository that is a directory is the one of the note, and has an object of that
    /// name. A repository that does not answer in time counts as one without the object. Under a watch, the watch ends
    /// the wait.
    fn is_there(&self, note: &Note) -> bool {
        let required = self.settings.repositories.iter().filter(|r| r.required);
        let directories: Vec<(config::Repository, String)> = required
            .zip(&note.holders)
            .filter(|(place, _)| !place.location.is_remote())
            .map(|(place, holder)| (place.clone(), holder.uuid.clone()))
            .collect();
        let Ok(layout) = ClusterLayout::new(&self.cluster, note.system_identifier) else {
            return false;
        };
        let name = self.name;
        let look = move || {
            let mut all = directories.iter();
            all.all(|(place, uuid)| is_in(place, uuid, (&layout, name)).unwrap_or(false))
        };
        if self.is_local() {
            return look();
        }
        let (tell, told) = channel();
        std::thread::spawn(move || tell.send(look()));
        told.recv_timeout(LOOK).unwrap_or(false)
    }

    /// Starts a worker, which takes the lock along.
    fn start(&self, lock: File) -> Result<()> {
        let failed = |e| Error::from_io("start a worker", e);
        // That was about the one before.
        self.spool.unmark_hung();
        let mut words: Vec<OsString> = Vec::new();
        let program = if self.is_local() {
            words.push(format!("--{}", archive::SHIP).into());
            std::env::current_exe().map_err(failed)?
        } else {
            let caller = std::process::id().to_string();
            words.extend(["serve", "--caller", &caller, shipper::WORD, "--"].map(Into::into));
            delegate::beside()?
        };
        if let Some(config) = &self.settings.path {
            words.extend(["--config".into(), config.into()]);
        }
        // Its file is a directory, so its path does not say which of several clusters it is.
        words.extend(["--cluster".into(), OsString::from(&self.cluster)]);
        words.extend(["--".into(), self.data.wal().into()]);
        detach::start(Path::new(&program), &words, lock).map_err(failed)
    }

    /// Brings the record of a failure up to date, where there is one. A call that was too short (`is_late`) leaves one for the next call.
    fn settle(&self, archived: std::result::Result<(), &Error>, is_late: bool, nonce: u64) {
        let begins = is_late && self.data.is_ready(self.name);
        if !begins && self.spool.failure(self.name).is_none() {
            return;
        }
        match archived {
            Ok(()) => self.spool.remove_failure(self.name),
            // The record is for people who look for the cause; archiving does not depend on it.
            Err(e) => {
                let _ = self
                    .spool
                    .write_failure(self.name, &archive::failure_of(e), nonce);
            }
        }
    }
}

enum Waited {
    Told(Told),
    /// No worker runs.
    Alone,
    /// It has come to nothing for half of the time there is.
    TooLong,
}
