//! Heals what a check has found damaged or missing, from the other configured repositories, and from the pg_wal of the configured servers.

use std::collections::BTreeSet;

use serde::Serialize;

use super::of::Of;
use super::one_place::beside;
use super::pg_wal::PgWal;
use super::session::Session;
use crate::config::{self, Flags, Settings};
use crate::error::{Code, Error, Result};
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;
use crate::store::Key;
use crate::sync::heal::{Healing, is_of_one};
use crate::sync::{Options, Transfer};
use crate::verify::{Finding, FindingKind, Report};

/// Segments of one gap that are looked for.
pub const GAP_MAX: u64 = 100_000;

/// The giver of a pack that was put together again.
pub const OTHER_BACKUPS: &str = "other backups of this repository";

/// Another repository: its name, and the repository, or why it cannot be asked.
pub type Other = (String, Result<Repository>);

/// An object that was healed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Healed {
    /// The object, by its key; of missing WAL its name.
    pub object: String,
    /// The key that was written, or would be.
    pub copy: String,
    /// The repository that gave it; the path of a server's pg_wal where that did, and other words where backups of the same repository did.
    pub from: String,
}

impl Healed {
    fn new(object: &Key, copy: &Key, from: &str) -> Healed {
        Healed {
            object: object.to_string(),
            copy: copy.to_string(),
            from: from.to_owned(),
        }
    }

    /// A segment that was missing.
    pub fn wal(name: SegmentName, from: String) -> Healed {
        Healed {
            object: name.to_string(),
            copy: name.to_string(),
            from,
        }
    }
}

/// An object that could not be healed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unhealed {
    pub object: String,
    /// The answer of each place.
    pub reasons: Vec<String>,
}

impl Unhealed {
    /// Returns the reasons as one text.
    pub fn why(&self) -> String {
        match self.reasons.as_slice() {
            [] => "no other repository is configured".to_owned(),
            reasons => reasons.join("; "),
        }
    }
}

/// The result for one scope of one repository.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// In the order in which they were written.
    pub healed: Vec<Healed>,
    /// Objects that no repository has whole.
    pub unhealed: Vec<Unhealed>,
}

impl Outcome {
    /// Adds what a later round did; what was not healed before may be now.
    pub fn add(&mut self, later: Outcome) {
        self.healed.extend(later.healed);
        self.unhealed = later.unhealed;
    }
}

/// Opens the other configured repositories, in order, also where the command works on one alone.
///
/// # Errors
/// Those of [`Settings::load`].
pub fn others(session: &Session, own: &config::Repository) -> Result<Vec<Other>> {
    let settings = everything(session)?;
    let others = beside(own, &settings.repositories);
    Ok(others.map(|r| (r.name.clone(), session.open(r))).collect())
}

/// The configuration with all repositories, also where the command works on one alone.
fn everything(session: &Session) -> Result<Settings> {
    let flags = Flags {
        repository: None,
        ..session.flags.clone()
    };
    Settings::load(&flags, &session.environment)
}

/// Whether another repository is configured.
pub fn has_others(session: &Session) -> bool {
    everything(session).is_ok_and(|settings| settings.repositories.len() > 1)
}

/// Whether the configuration names a server of the cluster, which may still have WAL.
pub fn has_pg_wal(session: &Session, of: &Of) -> bool {
    !pg_wals(session, of).is_empty()
}

fn pg_wals(session: &Session, of: &Of) -> Vec<PgWal> {
    match (of, everything(session)) {
        (Of::Cluster(of), Ok(settings)) => PgWal::all(&settings, of, &session.host),
        _ => Vec::new(),
    }
}

/// Whether a finding is about a segment of WAL, which a server's pg_wal may still have.
pub fn is_of_wal(finding: &Finding) -> bool {
    match finding.kind {
        FindingKind::Gap => true,
        FindingKind::Damaged | FindingKind::Missing => {
            let key = Key::new(finding.object.as_str());
            key.is_ok_and(|key| segment_of(&key).is_some())
        }
        _ => false,
    }
}

/// The segment that is stored under a key.
fn segment_of(key: &Key) -> Option<SegmentName> {
    let is_whole = key.as_str().contains("/wal/") && !key.as_str().contains("/partial/");
    key.name().parse().ok().filter(|_| is_whole)
}

/// Heals the objects of these findings; writes nothing in a dry run. The outcome has what came before an error, too.
///
/// # Errors
/// Errors of the repository that is healed; `Interrupted`.
pub fn heal(
    session: &Session,
    (repository, of): (&Repository, &Of),
    report: &Report,
    others: &[Other],
    (dry_run, outcome): (bool, &mut Outcome),
) -> Result<()> {
    let missing = size_of(of)?.map(|size| missing(&report.findings, size));
    let objects = objects(&report.findings);
    let what = (&missing.unwrap_or_default(), objects.as_slice());
    fill(session, (repository, of), what, others, (dry_run, outcome))
}

/// Brings missing segments of a cluster, and copies of damaged ones, by their keys. The outcome has what came before an error, too.
///
/// # Errors
/// Those of [`heal`].
pub fn fill(
    session: &Session,
    (repository, of): (&Repository, &Of),
    (missing, damaged): (&BTreeSet<SegmentName>, &[Key]),
    others: &[Other],
    (dry_run, outcome): (bool, &mut Outcome),
) -> Result<()> {
    let work = Work {
        session,
        repository,
        of,
        others,
        pg_wals: pg_wals(session, of),
        dry_run,
    };
    // A segment that says nothing of itself any more is proven by the one after it.
    work.segments(missing, outcome)?;
    work.objects(damaged, outcome)
}

/// The damaged and the missing objects: roots first, then layers, without which nothing is known of packs.
fn objects(findings: &[Finding]) -> Vec<Key> {
    let is_meant = |f: &&Finding| matches!(f.kind, FindingKind::Damaged | FindingKind::Missing);
    let keys = findings
        .iter()
        .filter(is_meant)
        .map(|f| Key::new(f.object.as_str()));
    let keys: BTreeSet<Key> = keys.filter_map(Result::ok).collect();
    let mut keys: Vec<Key> = keys.into_iter().collect();
    keys.sort_by_key(|key| {
        let is = |part: &str| key.as_str().contains(part);
        match () {
            () if key.name() == "manifest" => 0,
            () if is("/layers/") => 1,
            () => 2,
        }
    });
    keys
}

/// The segments that gaps name: one, or the first and the last.
fn missing(findings: &[Finding], size: SegmentSize) -> BTreeSet<SegmentName> {
    let mut names = BTreeSet::new();
    for gap in findings.iter().filter(|f| f.kind == FindingKind::Gap) {
        let (first, last) = gap
            .object
            .split_once(" to ")
            .unwrap_or((&gap.object, &gap.object));
        let (Ok(first), Ok(last)) = (first.parse::<SegmentName>(), last.parse::<SegmentName>())
        else {
            continue;
        };
        let (Ok(from), Ok(to)) = (first.number(size), last.number(size)) else {
            continue;
        };
        for number in (from.0..=to.0).take(usize::try_from(GAP_MAX).unwrap_or(usize::MAX)) {
            // A gap may reach from one timeline into the next.
            for timeline in [first.timeline, last.timeline] {
                names.extend(SegmentNumber(number).name(timeline, size));
            }
        }
    }
    names
}

struct Work<'a> {
    session: &'a Session,
    repository: &'a Repository,
    of: &'a Of,
    others: &'a [Other],
    pg_wals: Vec<PgWal>,
    dry_run: bool,
}

impl Work<'_> {
    fn scope(&self) -> Result<Scope> {
        match self.of {
            Of::Cluster(r) => Scope::cluster(&r.name, r.system_identifier),
            Of::Scope(scope) => Ok(scope.clone()),
        }
    }

    fn objects(&self, keys: &[Key], outcome: &mut Outcome) -> Result<()> {
        let (scope, size) = (self.scope()?, size_of(self.of)?);
        let host = &self.session.host;
        let makers: Vec<Maker<'_>> = self
            .others
            .iter()
            .map(|(name, other)| {
                let healing = match other {
                    Ok(other) => {
                        let pair = (other, self.repository);
                        Healing::new(pair, (&scope, size), host, self.dry_run)
                            .map_err(|e| e.to_string())
                    }
                    Err(e) => Err(format!("it could not be asked: {e}")),
                };
                (name.as_str(), healing)
            })
            .collect();
        for key in keys {
            let mut reasons = Vec::new();
            let is_pack = key.as_str().contains("/packs/");
            let is_over = by_others(&makers, key, &mut reasons, outcome)?
                || self.by_pg_wal(key, &mut reasons, outcome)?
                || (is_pack && self.by_pages(key, &mut reasons, outcome)?);
            if !is_over {
                outcome.unhealed.push(Unhealed {
                    object: key.to_string(),
                    reasons,
                });
            }
        }
        Ok(())
    }

    /// Puts a damaged pack together again from pages of other backups; returns whether nothing is left to heal.
    fn by_pages(
        &self,
        key: &Key,
        reasons: &mut Vec<String>,
        outcome: &mut Outcome,
    ) -> Result<bool> {
        let (scope, size) = (self.scope()?, size_of(self.of)?);
        let own = (self.repository, self.repository);
        let host = &self.session.host;
        let rebuilt = Healing::new(own, (&scope, size), host, self.dry_run)
            .and_then(|healing| healing.rebuild(key));
        match rebuilt {
            Ok(copy) => {
                outcome.healed.push(Healed::new(key, &copy, OTHER_BACKUPS));
                Ok(true)
            }
            Err(e) if is_told(&e) => {
                reasons.push(format!("{OTHER_BACKUPS}: {e}"));
                Ok(false)
            }
            Err(e) => Err(e.context(format!("heal object \"{key}\""))),
        }
    }

    /// Takes a damaged segment from a server's pg_wal; returns whether nothing is left to heal.
    fn by_pg_wal(
        &self,
        key: &Key,
        reasons: &mut Vec<String>,
        outcome: &mut Outcome,
    ) -> Result<bool> {
        let Some(name) = segment_of(key) else {
            return Ok(false);
        };
        for pg_wal in &self.pg_wals {
            self.session.host.check_stop()?;
            match pg_wal.heal(self.repository, (name, key), self.dry_run) {
                Ok(copy) => {
                    let from = pg_wal.shown();
                    let healed = copy.map(|copy| Healed::new(key, &copy, &from));
                    outcome.healed.extend(healed);
                    return Ok(true);
                }
                Err(e) if is_of_file(&e) => reasons.push(format!("\"{}\": {e}", pg_wal.shown())),
                Err(e) => return Err(e.context(format!("heal object \"{key}\""))),
            }
        }
        Ok(false)
    }

    /// Takes missing segments from a server's pg_wal.
    fn fill_by(
        &self,
        pg_wal: &PgWal,
        left: &mut BTreeSet<SegmentName>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        for name in pg_wal.likely(left) {
            self.session.host.check_stop()?;
            match pg_wal.fill(self.repository, name, self.dry_run) {
                Ok(()) => {
                    left.remove(&name);
                    outcome.healed.push(Healed::wal(name, pg_wal.shown()));
                }
                Err(e) if e.code() == Code::NotFound => {}
                Err(e) if is_of_file(&e) => {
                    self.session
                        .warn(&format!("WAL in \"{}\": {name}: {e}", pg_wal.shown()));
                }
                Err(e) => return Err(e.context(format!("archive segment \"{name}\""))),
            }
        }
        Ok(())
    }

    /// Brings missing segments: from the servers' pg_wal, and by copies as a sync makes them.
    fn segments(&self, missing: &BTreeSet<SegmentName>, outcome: &mut Outcome) -> Result<()> {
        let Of::Cluster(registration) = self.of else {
            return Ok(());
        };
        let mut left = missing.clone();
        for pg_wal in &self.pg_wals {
            self.fill_by(pg_wal, &mut left, outcome)?;
        }
        let options = Options {
            jobs: 1,
            everything: true,
            rules: None,
        };
        for (name, other) in self.others {
            let Ok(other) = other else {
                continue;
            };
            if left.is_empty() {
                break;
            }
            let host = &self.session.host;
            let filled = Transfer::new(other, self.repository, registration, options, host)
                .and_then(|transfer| transfer.fill(&left, self.dry_run));
            let filled = match filled {
                Ok(filled) => filled,
                Err(e) if e.code() == Code::Interrupted => return Err(e),
                Err(e) => {
                    self.session.warn(&format!(
                        "missing WAL could not be looked for in repository \"{name}\": {e}"
                    ));
                    continue;
                }
            };
            for segment in filled {
                left.remove(&segment);
                outcome.healed.push(Healed::wal(segment, name.clone()));
            }
        }
        Ok(())
    }
}

/// A repository that may give, or why it cannot.
type Maker<'a> = (&'a str, std::result::Result<Healing<'a>, String>);

/// Takes an object from the first repository that has it whole; returns whether nothing is left to heal.
fn by_others(
    makers: &[Maker<'_>],
    key: &Key,
    reasons: &mut Vec<String>,
    outcome: &mut Outcome,
) -> Result<bool> {
    for (name, healing) in makers {
        let told = match healing {
            Err(e) => e.clone(),
            Ok(healing) => match healing.heal(key) {
                // Without a copy its bytes are whole: another object is at fault.
                Ok(copy) => {
                    let healed = copy.map(|copy| Healed::new(key, &copy, name));
                    outcome.healed.extend(healed);
                    return Ok(true);
                }
                Err(e) if is_told(&e) => e.to_string(),
                Err(e) => return Err(e.context(format!("heal object \"{key}\""))),
            },
        };
        reasons.push(format!("\"{name}\": {told}"));
    }
    Ok(false)
}

/// The size of the segments of a cluster.
fn size_of(of: &Of) -> Result<Option<SegmentSize>> {
    match of {
        Of::Cluster(r) => SegmentSize::new(r.segment_size_bytes).map(Some),
        Of::Scope(_) => Ok(None),
    }
}

/// Whether an error speaks of the server's file, or of what is stored under its name.
fn is_of_file(e: &Error) -> bool {
    let is_source = matches!(
        e.code(),
        Code::SourceHeader
            | Code::SourceSize
            | Code::SourceChanged
            | Code::SourceMissing
            | Code::TimelineReused
            | Code::Clone
    );
    is_source || is_of_one(e)
}

/// Whether an error speaks of one object, or of the repository that was asked for it.
fn is_told(e: &Error) -> bool {
    is_of_one(e) || matches!(e.code(), Code::Unreachable | Code::Denied | Code::Key)
}
