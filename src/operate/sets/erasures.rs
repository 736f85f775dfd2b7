//! Erasures in a recovery: what the operator has to know and to decide before anything is stopped, and their run before anything is started.
//!
//! A cluster that lacks erasures is restored as a copy with a guard. Its scripts run in private (`operate::erasure::apply`), aside where it is restored aside, and
//! it is adopted in its place. A start of the service in between keeps it out of the archive, and a run that was killed finds whose the copy is.

use std::collections::BTreeMap;

use serde::Serialize;

use super::own;
use super::plan::Planned;
use super::recover::UNCHANGED;
use super::run::Run;
use crate::config::SetMember;
use crate::err;
use crate::error::Result;
use crate::operate::erasure::apply::{self, Consent};
use crate::operate::erasure::scripts::OPTIONS;
use crate::operate::erasure::{self, Listing};
use crate::operate::quarantine;
use crate::operate::session::Session;
use crate::plan::sets::Step;

/// The erasures that a cluster lacks at the moment.
#[derive(Debug, Clone, Serialize)]
pub struct Erasing {
    /// The cluster.
    pub member: SetMember,
    /// How many it lacks.
    pub count: usize,
    pub recorded: usize,
    /// Repositories in which nothing proves who recorded them.
    pub unproven: Vec<String>,
    /// Those that the operator leaves out.
    pub skipped: Vec<String>,
}

/// The operator's word, by member.
type Consents = BTreeMap<String, Consent>;

/// Looks at the erasures of a plan, before anything is stopped.
///
/// # Errors
/// Those of [`consent_of`]; `Refused` without the programs of a server.
pub fn of_plan(
    session: &Session,
    planned: &Planned,
    consent: &Consent,
) -> Result<(Vec<Erasing>, Consents)> {
    let (mut erasing, mut consents) = (Vec::new(), Consents::new());
    for (member, lacking) in &planned.erasures {
        let major = planned.clusters.get(member).map_or(0, |one| one.major);
        quarantine::programs(&session.environment, major, None).map_err(|e| {
            e.hint(format!("{UNCHANGED} A server of its own repeats erasures in cluster \"{member}\": put the folder of its programs into PATH."))
        })?;
        let (listing, own) = consent_of(session, &member.name, consent)?;
        erasing.push(Erasing {
            member: member.clone(),
            count: lacking.count,
            recorded: lacking.recorded,
            unproven: listing.unproven,
            skipped: own.skipped.clone(),
        });
        consents.insert(member.to_string(), own);
    }
    Ok((erasing, consents))
}

/// Looks at the erasures that a run which goes on has yet to repeat.
///
/// # Errors
/// Those of [`consent_of`], and of the record.
pub fn of_run(session: &Session, run: &Run, consent: &Consent) -> Result<Consents> {
    let mut consents = Consents::new();
    for (number, step) in run.record.steps.iter().enumerate() {
        if let Step::Erase(member) = step
            && run.done(number)?.is_none()
        {
            let named: SetMember = member.parse()?;
            let (_, own) = consent_of(session, &named.name, consent)?;
            consents.insert(member.clone(), own);
        }
    }
    Ok(consents)
}

/// Requires that all erasures of a cluster are known, and that the operator wants what is to be run. Returns those that are its own of what is left out.
///
/// # Errors
/// `Refused` where a repository does not answer, and for scripts that nothing proves; that of an erasure that cannot be read.
fn consent_of(session: &Session, cluster: &str, consent: &Consent) -> Result<(Listing, Consent)> {
    let listing = erasure::list(&session.on_cluster(cluster))?;
    if let Some(interrupted) = listing.failures.interrupted {
        return Err(interrupted);
    }
    if let Some(failed) = listing.failures.errors.first() {
        return Err(err!(Refused, "cluster \"{cluster}\" lacks erasures, and a repository that may have more of them did not answer: {failed}").hint(format!(
            "{UNCHANGED} Run this again when it answers, or be content with what one repository has: --repository NAME"
        )));
    }
    let mut own = consent.clone();
    let is_own = |id: &String| listing.entry(id).is_ok();
    own.skipped.retain(is_own);
    apply::require_consent(&listing, &own, OPTIONS)?;
    Ok((listing, own))
}

/// The words of pitr that run the scripts.
pub fn applying(cluster: &str, pgdata: &str, consent: Option<&Consent>) -> Vec<String> {
    let mut words = own::words(&["erasure", "apply", "--for-adoption"]);
    words.extend(own::words(&["--cluster", cluster, "--pgdata", pgdata]));
    let consent = consent.cloned().unwrap_or_default();
    for id in consent.skipped {
        words.extend(["--skip".to_owned(), id]);
    }
    if consent.is_unproven_allowed {
        words.push("--unproven".to_owned());
    }
    words.push("--confirm".to_owned());
    words
}

/// The operator's next steps where erasures failed, once everything is in its place.
pub fn next(cluster: &str, is_aside: bool) -> String {
    let state = match is_aside {
        true => format!("Cluster \"{cluster}\" runs as before: nothing was stopped."),
        false => format!("Cluster \"{cluster}\" is in its place. No service was started."),
    };
    format!(
        "{state} To go on without an erasure, add {} ID.",
        OPTIONS.skip
    )
}
