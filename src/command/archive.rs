//! `pitr-archive %p`: success only when the file is durable in every required repository.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::Arguments;
use crate::archive::push::{Push, Pushed, Warnings, is_taken, push};
use crate::config::{self, Environment, Location};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::pg::segment::WalFileName;
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

/// How long required repositories may take to say whether they have the name, before the file is offered to one after the other.
const PATIENCE: Duration = Duration::from_secs(5);

/// What archiving a file came to; either way it is durable in every required repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archived {
    /// Whether it is new to one of the repositories.
    pub is_new: bool,
    /// What should be known besides.
    pub warnings: Warnings,
}

/// The command line of `pitr-archive`. `--repository` is refused: a file that is not in every required repository is not archived.
///
/// # Errors
/// `Usage`.
pub fn arguments(arguments: Vec<OsString>) -> Result<Arguments> {
    let parsed = super::parse(arguments, &[])?;
    match parsed.flags.repository {
        None => Ok(parsed),
        Some(_) => Err(err!(Usage, "pitr-archive takes no --repository").hint(
            "archive_command must be 'pitr-archive %p': it archives into every required repository. \"pitr wal push --repository\" puts one file into one.",
        )),
    }
}

/// Archives the one file that the arguments name, in required repositories first; `acknowledged` is called once the file is durable in
/// all of those. What comes then may fail or hang without anything being lost.
///
/// # Errors
/// What [`push`] says; `Partial` when one required repository of several failed.
pub fn run(
    arguments: &Arguments,
    environment: &Environment,
    nonce: u64,
    acknowledged: &dyn Fn(),
) -> Result<Archived> {
    fault::point("archive");
    let path = path_of(arguments)?;
    let name = name_of(path)?;
    let settings = super::settings(&arguments.flags, environment)?;
    let offer = Offer {
        cluster: super::cluster_name(&settings, nonce)?,
        path: path.to_owned(),
        name,
        nonce,
    };
    let mut tally = Tally::default();
    for place in in_order(&settings.repositories, &offer) {
        if !place.required && tally.failed.is_none() && tally.stored > 0 {
            acknowledged();
        }
        let opened = place.opened.map_or_else(|| offer.open(&place.location), Ok);
        let pushed = opened.and_then(|repository| push(&offer.to(&repository)));
        if !tally.count(pushed, place.required) {
            break;
        }
    }
    tally.outcome(name)
}

/// What is offered to each repository.
#[derive(Clone)]
struct Offer {
    cluster: String,
    path: PathBuf,
    name: WalFileName,
    nonce: u64,
}

impl Offer {
    fn to<'a>(&'a self, repository: &'a Repository) -> Push<'a> {
        Push {
            repository,
            cluster: &self.cluster,
            path: &self.path,
            name: self.name,
            codec: CODEC,
        }
    }

    fn open(&self, location: &Location) -> Result<Repository> {
        repo::open(location, self.nonce)
    }
}

/// A repository that gets the file.
struct Place {
    location: Location,
    required: bool,
    /// Open already.
    opened: Option<Repository>,
    /// It has the name, with these or other bytes.
    is_taken: bool,
}

/// Required repositories first, and of these the ones that have the name: where it stands for other bytes, nothing is stored in the rest.
fn in_order(repositories: &[config::Repository], offer: &Offer) -> Vec<Place> {
    let place = |r: &config::Repository| Place {
        location: r.location.clone(),
        required: r.required,
        opened: None,
        is_taken: false,
    };
    let mut places: Vec<Place> = repositories.iter().map(place).collect();
    if places.iter().filter(|p| p.required).count() > 1 {
        look(&mut places, offer);
    }
    places.sort_by_key(|p| (!p.required, !p.is_taken));
    places
}

/// Asks every required repository whether it has the name, all at once; one that hangs is not waited for long, and what fails here fails
/// again when its turn comes.
fn look(places: &mut [Place], offer: &Offer) {
    let (found, answers) = channel();
    let mut asked = 0;
    for (index, place) in places.iter().enumerate().filter(|(_, p)| p.required) {
        let (offer, location, found) = (offer.clone(), place.location.clone(), found.clone());
        asked += 1;
        // Not a scoped thread: nobody waits for one that hangs in a dead mount.
        std::thread::spawn(move || {
            let answer = offer.open(&location).map(|repository| {
                let is_taken = is_taken(&offer.to(&repository)).unwrap_or(false);
                (repository, is_taken)
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
        if let (Some(place), Ok((repository, is_taken))) = (places.get_mut(index), answer) {
            place.opened = Some(repository);
            place.is_taken = is_taken;
        }
    }
}

/// What became of the file so far.
#[derive(Default)]
struct Tally {
    stored: usize,
    is_new: bool,
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
                self.warnings.extend(more);
            }
            Err(e) if required && self.failed.is_none() => {
                let goes_on = !is_conflict(&e);
                self.failed = Some(e);
                return goes_on;
            }
            Err(e) if !required && self.optional.is_none() => self.optional = Some(e),
            Err(e) => self.warnings.push(elsewhere(&e)),
        }
        true
    }

    fn outcome(mut self, name: WalFileName) -> Result<Archived> {
        if let Some(optional) = self
            .optional
            .take_if(|_| self.failed.is_some() || self.stored > 0)
        {
            self.warnings.push(elsewhere(&optional));
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

fn elsewhere(error: &Error) -> String {
    format!("not stored in every repository: {error}")
}

fn path_of(arguments: &Arguments) -> Result<&Path> {
    match arguments.files.as_slice() {
        [path] if !path.is_empty() => Ok(Path::new(path)),
        [] | [_] => {
            Err(err!(Usage, "no file given").hint("archive_command must be 'pitr-archive %p'."))
        }
        more => Err(err!(Usage, "one argument expected, got {}", more.len())
            .hint("archive_command must be 'pitr-archive %p'.")),
    }
}

fn name_of(path: &Path) -> Result<WalFileName> {
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
