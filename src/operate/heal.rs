//! Heals what a check has found damaged or missing, from the other configured repositories.

use std::collections::BTreeSet;

use serde::Serialize;

use super::of::Of;
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
const GAP_MAX: u64 = 100_000;

/// Another repository: its name, and the repository, or why it cannot be asked.
pub type Other = (String, Result<Repository>);

/// An object that was healed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Healed {
    /// The object, by its key; of missing WAL its name.
    pub object: String,
    /// The key that was written, or would be.
    pub copy: String,
    /// The repository that gave it.
    pub from: String,
}

impl Healed {
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
    /// The object.
    pub object: String,
    /// The answer of each repository.
    pub reasons: Vec<String>,
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
    let flags = Flags {
        repository: None,
        ..session.flags.clone()
    };
    let settings = Settings::load(&flags, &session.environment)?;
    let others = settings.repositories.iter();
    let others = others.filter(|r| r.name != own.name && r.location != own.location);
    Ok(others.map(|r| (r.name.clone(), session.open(r))).collect())
}

/// Whether another repository is configured.
pub fn has_others(session: &Session) -> bool {
    let flags = Flags {
        repository: None,
        ..session.flags.clone()
    };
    let settings = Settings::load(&flags, &session.environment);
    settings.is_ok_and(|settings| settings.repositories.len() > 1)
}

/// Heals the objects of these findings; writes nothing in a dry run.
///
/// # Errors
/// Errors of the repository that is healed; `Interrupted`.
pub fn heal(
    session: &Session,
    (repository, of): (&Repository, &Of),
    report: &Report,
    others: &[Other],
    dry_run: bool,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let work = Work {
        session,
        repository,
        of,
        others,
        dry_run,
    };
    let size = match of {
        Of::Cluster(r) => Some(SegmentSize::new(r.segment_size_bytes)?),
        Of::Scope(_) => None,
    };
    work.objects(&objects(&report.findings), size, &mut outcome)?;
    if let Some(size) = size {
        work.segments(&missing(&report.findings, size), &mut outcome)?;
    }
    Ok(outcome)
}

/// Copies missing segments of a cluster from the others.
///
/// # Errors
/// Those of [`heal`].
pub fn fill(
    session: &Session,
    (repository, of): (&Repository, &Of),
    missing: &BTreeSet<SegmentName>,
    others: &[Other],
    dry_run: bool,
) -> Result<Vec<Healed>> {
    let mut outcome = Outcome::default();
    let work = Work {
        session,
        repository,
        of,
        others,
        dry_run,
    };
    work.segments(missing, &mut outcome)?;
    Ok(outcome.healed)
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
    dry_run: bool,
}

impl Work<'_> {
    fn scope(&self) -> Result<Scope> {
        match self.of {
            Of::Cluster(r) => Scope::cluster(&r.name, r.system_identifier),
            Of::Scope(scope) => Ok(scope.clone()),
        }
    }

    fn objects(
        &self,
        keys: &[Key],
        size: Option<SegmentSize>,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let scope = self.scope()?;
        let host = &self.session.host;
        let makers: Vec<(&str, std::result::Result<Healing<'_>, String>)> = self
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
            let mut is_over = false;
            for (name, healing) in &makers {
                let told = match healing {
                    Err(e) => e.clone(),
                    Ok(healing) => match healing.heal(key) {
                        // Its bytes are whole: another object is at fault.
                        Ok(None) => {
                            is_over = true;
                            break;
                        }
                        Ok(Some(copy)) => {
                            outcome.healed.push(Healed {
                                object: key.to_string(),
                                copy: copy.to_string(),
                                from: (*name).to_owned(),
                            });
                            is_over = true;
                            break;
                        }
                        Err(e) if is_told(&e) => e.to_string(),
                        Err(e) => return Err(e.context(format!("heal object \"{key}\""))),
                    },
                };
                reasons.push(format!("\"{name}\": {told}"));
            }
            if !is_over {
                outcome.unhealed.push(Unhealed {
                    object: key.to_string(),
                    reasons,
                });
            }
        }
        Ok(())
    }

    /// Copies missing segments, as a sync does.
    fn segments(&self, missing: &BTreeSet<SegmentName>, outcome: &mut Outcome) -> Result<()> {
        let Of::Cluster(registration) = self.of else {
            return Ok(());
        };
        let mut left = missing.clone();
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

/// Whether an error speaks of one object, or of the repository that was asked for it.
fn is_told(e: &Error) -> bool {
    is_of_one(e) || matches!(e.code(), Code::Unreachable | Code::Denied | Code::Key)
}
