//! Expiry of the clusters of every repository.

use super::failures::Failures;
use super::of::{self, Of};
use super::session::Session;
use super::unproven;
use crate::config;
use crate::error::Result;
use crate::expire::scope::ExpireScope;
use crate::expire::{Expire, Outcome};
use crate::pg::segment::SegmentSize;
use crate::plan::retention::{ExpirePlan, Policy};

/// The danger of a run that cannot tell forged backups.
const FORGED: &str =
    "backups that somebody forged count as kept, and genuine ones can be deleted for them";

/// The outcome of one cluster, or of other content, in one repository.
pub struct Done {
    /// The repository.
    pub repository: String,
    /// The cluster in it, or other content.
    pub of: Of,
    /// WAL segment size of a cluster.
    pub segment_size: SegmentSize,
    /// The plan.
    pub plan: ExpirePlan,
    /// The result, where the plan was to be carried out.
    pub outcome: Option<Outcome>,
    /// A warning about the whole repository; only with its first cluster.
    pub warning: Option<String>,
    /// It ended early; what it did before stands in the outcome.
    pub is_cut_short: bool,
}

impl Done {
    /// Warnings of the plan and of the repository.
    pub fn warnings(&self) -> impl Iterator<Item = &String> {
        self.warning.iter().chain(&self.plan.warnings)
    }

    /// It was carried out, and nothing stood against it.
    pub fn went_well(&self) -> bool {
        let refused = self.outcome.as_ref().map(|o| o.refused_count);
        let is_stopped = self.plan.refusal.is_some() || self.plan.burst.is_some();
        refused == Some(0) && !self.is_cut_short && !is_stopped
    }
}

/// Plans expiry in every repository, and carries it out where that is confirmed.
///
/// # Errors
/// `Config` without a repository; the first failure when nothing was planned at all.
pub fn run(
    session: &Session,
    policy: &Policy,
    is_confirmed: bool,
) -> Result<(Vec<Done>, Failures)> {
    let settings = session.settings_with_repositories()?;
    let wanted = settings.cluster_if_named()?;
    let name = wanted.as_ref().map(|c| c.name.as_str());
    let mut done = Vec::new();
    let mut failures = Failures::default();
    let asked = (policy, is_confirmed);
    failures.in_each(&settings.repositories, "expire in", |configured| {
        one_repository(session, configured, name, asked, &mut done)
    });
    failures.first_if(session, done.is_empty())?;
    Ok((done, failures))
}

fn one_repository(
    session: &Session,
    configured: &config::Repository,
    cluster: Option<&str>,
    (policy, is_confirmed): (&Policy, bool),
    done: &mut Vec<Done>,
) -> Result<()> {
    let repository = session.open(configured)?;
    let scopes = of::scopes(session, &repository)?;
    let registrations = of::registrations_beside(&scopes, session, &repository, cluster)?;
    let mut run = Run {
        repository: &configured.name,
        is_confirmed,
        warning: unproven::warning(configured, &repository, FORGED),
        done,
    };
    // A cluster that went through pg_upgrade has several identifiers; each keeps its own N.
    for registration in registrations {
        let expire = Expire {
            repository: &repository,
            registration: &registration,
            policy: policy.clone(),
            host: &session.host,
        };
        let size = SegmentSize::new(registration.segment_size_bytes)?;
        let of = Of::Cluster(registration.clone());
        run.one((of, size), expire.plan()?, |plan, outcome| {
            expire.run(plan, outcome)
        })?;
    }
    for scope in scopes {
        let expire = ExpireScope {
            repository: &repository,
            scope: &scope,
            policy: policy.clone(),
            host: &session.host,
        };
        let of = (Of::Scope(scope.clone()), SegmentSize::DEFAULT);
        run.one(of, expire.plan()?, |plan, outcome| {
            expire.run(plan, outcome)
        })?;
    }
    Ok(())
}

/// One run in one repository.
struct Run<'a> {
    repository: &'a str,
    is_confirmed: bool,
    /// Told with the first plan.
    warning: Option<String>,
    done: &'a mut Vec<Done>,
}

impl Run<'_> {
    /// Carries out a plan, where that is confirmed, and reports it in any case.
    fn one(
        &mut self,
        (of, segment_size): (Of, SegmentSize),
        plan: ExpirePlan,
        carry_out: impl FnOnce(&ExpirePlan, &mut Outcome) -> Result<()>,
    ) -> Result<()> {
        let mut outcome = self.is_confirmed.then(Outcome::default);
        let ran = match &mut outcome {
            Some(outcome) => carry_out(&plan, outcome),
            None => Ok(()),
        };
        self.done.push(Done {
            repository: self.repository.to_owned(),
            segment_size,
            of,
            plan,
            outcome,
            warning: self.warning.take(),
            is_cut_short: ran.is_err(),
        });
        ran
    }
}
