//! The check of everything that the repositories hold.

use super::counters;
use super::failures::Failures;
use super::heal::{self, Outcome};
use super::of::{self, Of, Wanted};
use super::registered::registrations;
use super::session::Session;
use crate::config;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::repo::event;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::{Registration, Repository};
use crate::repo::scope::Scope;
use crate::verify::depth::Depth;
use crate::verify::scope::VerifyScope;
use crate::verify::{Finding, Report, Verify, sums};

/// Threads that read.
const THREADS: usize = 2;

/// A check of all repositories.
#[derive(Default)]
pub struct Verified {
    /// The reports.
    pub done: Vec<Done>,
    /// Errors of repositories, and of the operator who wants no more.
    pub failures: Failures,
    /// Repositories that were not read, because this host only writes into them, beside others that were.
    pub only_written: Vec<String>,
}

/// The report on one cluster, or on other content, in one repository.
pub struct Done {
    pub repository: String,
    /// The cluster in it, or other content.
    pub of: Of,
    /// The report: of what is left, where something was healed.
    pub report: Report,
    /// The healing, where that was asked for and something was found.
    pub outcome: Option<Outcome>,
}

/// Objects lead to others: packs are known only once the layers are whole.
const ROUNDS_MAX: usize = 4;

/// The warning of a report that still has what was healed.
const OF_BEFORE: &str = "these findings are of before the healing, and no check came to its end after it: some may be healed by now";

/// The wish to heal what is found.
#[derive(Debug, Clone, Copy)]
pub struct Heal {
    /// Whether nothing is written.
    pub dry_run: bool,
}

/// A check, and the healing of what it finds.
struct Healer<'a> {
    session: &'a Session,
    configured: &'a config::Repository,
    repository: &'a Repository,
    wish: Option<Heal>,
}

impl Healer<'_> {
    fn cluster(
        &self,
        registration: &Registration,
        backup: Option<&BackupId>,
        depth: &Depth,
    ) -> Result<Report> {
        let verify = Verify {
            repository: self.repository,
            registration,
            backup: backup.cloned(),
            depth: depth.clone(),
            threads: THREADS,
            host: &self.session.host,
        };
        verify.run()
    }

    fn scope(&self, scope: &Scope, depth: &Depth) -> Result<Report> {
        let verify = VerifyScope {
            repository: self.repository,
            scope,
            depth: depth.clone(),
            threads: THREADS,
            host: &self.session.host,
        };
        verify.run()
    }

    /// Checks, heals and checks again what was healed: the last report says what stays lost, and what that costs. A failure of
    /// healing leaves in `done` what was found and healed before.
    fn run(&self, of: Of, verify: &dyn Fn() -> Result<Report>, done: &mut Vec<Done>) -> Result<()> {
        let mut report = verify()?;
        let mut outcome: Option<Outcome> = None;
        let healed = self.heal(&of, verify, (&mut report, &mut outcome));
        done.push(Done {
            repository: self.configured.name.clone(),
            of,
            report,
            outcome,
        });
        healed
    }

    fn heal(
        &self,
        of: &Of,
        verify: &dyn Fn() -> Result<Report>,
        (report, outcome): (&mut Report, &mut Option<Outcome>),
    ) -> Result<()> {
        let Some(Heal { dry_run }) = self.wish.filter(|_| report.finding_count > 0) else {
            return Ok(());
        };
        let others = heal::others(self.session, self.configured)?;
        let heal = |report: &Report, later: &mut Outcome| {
            let (place, doing) = ((self.repository, of), (dry_run, later));
            heal::heal(self.session, place, report, &others, doing)
        };
        let outcome = outcome.get_or_insert_default();
        in_rounds(dry_run, (&heal, verify), (report, outcome))
    }
}

type Healing<'a> = &'a dyn Fn(&Report, &mut Outcome) -> Result<()>;
type Checking<'a> = &'a dyn Fn() -> Result<Report>;

/// Heals what the report has, and checks again, until nothing more is healed. An error leaves the report of the last check.
fn in_rounds(
    dry_run: bool,
    (heal, verify): (Healing<'_>, Checking<'_>),
    (report, outcome): (&mut Report, &mut Outcome),
) -> Result<()> {
    for _ in 0..ROUNDS_MAX {
        let mut later = Outcome::default();
        let ended = heal(report, &mut later);
        let is_changed = !dry_run && !later.healed.is_empty();
        outcome.add(later);
        let checked = match ended {
            Ok(()) if is_changed => verify().map(Some),
            ended => ended.map(|()| None),
        };
        match checked {
            Ok(Some(checked)) => *report = checked,
            Ok(None) => break,
            Err(e) => {
                if is_changed {
                    report.warnings.push(OF_BEFORE.to_owned());
                }
                return Err(e);
            }
        }
        if report.finding_count == 0 {
            outcome.unhealed.clear();
            break;
        }
    }
    Ok(())
}

/// Reads back as deep as is asked and checks it; all that there is, or only a backup and the WAL it needs. Heals what is found, where that is wished.
/// A repository that this host only writes is left out where another one answers.
///
/// # Errors
/// `Config` without a repository; the first failure when nothing was checked at all.
pub fn run(
    session: &Session,
    backup: Option<&BackupId>,
    depth: &Depth,
    wish: Option<Heal>,
) -> Result<Verified> {
    let settings = session.settings_with_repositories()?;
    let wanted = match backup {
        None => Wanted::all(session, &settings)?,
        Some(_) => Wanted::one(&settings)?,
    };
    let mut done = Vec::new();
    let (mut failures, mut of_clusters) = (Failures::default(), Failures::default());
    let one = |configured: &config::Repository, found: (&mut Vec<Done>, &mut Failures)| {
        let repository = session.open(configured)?;
        let healer = Healer {
            session,
            configured,
            repository: &repository,
            wish,
        };
        one_repository(&healer, &wanted, (backup, depth), found)
    };
    let repositories = settings.repositories.iter().cloned();
    let (mut sealed, readable): (Vec<_>, Vec<_>) = repositories.partition(|r| r.only_writes());
    failures.in_each(&readable, "verify", |r| {
        one(r, (&mut done, &mut of_clusters))
    });
    if done.is_empty() && failures.interrupted.is_none() {
        let sealed = std::mem::take(&mut sealed);
        failures.in_each(&sealed, "verify", |r| one(r, (&mut done, &mut of_clusters)));
    }
    let is_all_read = failures.is_empty();
    failures.take_over(of_clusters);
    // A backup is in one repository, as a rule.
    if backup.is_some() && !done.is_empty() {
        failures.forget(Code::NotFound);
    }
    failures.first_if(session, done.is_empty())?;
    let are_all_read = is_all_read && sealed.is_empty();
    wanted.check_held(session, are_all_read, done.is_empty())?;
    let is_well = |d: &Done| d.report.finding_count == 0 && d.report.unsupported_count == 0;
    // A part of it, or a look that reads no content, is no verification.
    let is_whole = backup.is_none() && !matches!(depth, Depth::Fast);
    if is_whole && is_all_read {
        let all = done.iter().map(|d| (&d.of, is_well(d)));
        counters::succeeded_for((session, "verify"), wanted.only(), &failures.clusters, all);
    }
    if is_whole && failures.is_empty() && done.iter().all(is_well) {
        let sealed = readable.iter().filter(|r| r.encryption.is_some());
        sealed.for_each(|r| counters::succeeded(session, counters::KEY, &r.name));
    }
    Ok(Verified {
        done,
        failures,
        only_written: sealed.into_iter().map(|r| r.name).collect(),
    })
}

/// Heals a repository in which something shows without reading content, or was recorded as damaged before: what is found so is then read whole.
/// One of several clusters that fails does not keep the others from it.
///
/// # Errors
/// Those of [`run`].
pub fn heal_known(
    (session, configured, repository): (&Session, &config::Repository, &Repository),
    wanted: &Wanted,
    wish: Heal,
    (done, failures): (&mut Vec<Done>, &mut Failures),
) -> Result<()> {
    let healer = Healer {
        session,
        configured,
        repository,
        wish: Some(wish),
    };
    let scopes = of::scopes(session, repository)?;
    let clusters = wanted.clusters_beside(&scopes, repository)?;
    let place = ("heal", configured.name.as_str());
    of::in_each_cluster(&clusters, place, failures, |name| {
        for registration in registrations(session, repository, name)? {
            let verify = |depth| healer.cluster(&registration, None, &depth);
            let layout = ClusterLayout::new(&registration.name, registration.system_identifier)?;
            if verify(Depth::Fast)?.finding_count > 0 || has_damage(repository, &layout)? {
                let of = Of::Cluster(registration.clone());
                healer.run(of, &|| verify(Depth::Everything), done)?;
            }
        }
        Ok(())
    })?;
    for scope in scopes {
        let verify = |depth| healer.scope(&scope, &depth);
        if verify(Depth::Fast)?.finding_count > 0 || has_damage(repository, &scope)? {
            let of = Of::Scope(scope.clone());
            healer.run(of, &|| verify(Depth::Everything), done)?;
        }
    }
    Ok(())
}

/// Whether damage is recorded of anything, that nothing has ended.
fn has_damage(repository: &Repository, scope: &Scope) -> Result<bool> {
    let store = repository.store();
    for subject in store.list(&scope.events())? {
        let names = store.list(&scope.subject(&subject.name))?;
        let is_damaged = |name: &str| event::kind_in(name) == "damaged";
        if !names.iter().any(|listed| is_damaged(&listed.name)) {
            continue;
        }
        let events = event::read_all(store, scope, &subject.name)?;
        if !event::damage(&events).is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn one_repository(
    healer: &Healer<'_>,
    wanted: &Wanted,
    (backup, depth): (Option<&BackupId>, &Depth),
    (done, failures): (&mut Vec<Done>, &mut Failures),
) -> Result<()> {
    let (session, repository) = (healer.session, healer.repository);
    let mut missing = None;
    let scopes = match backup {
        None => of::scopes(session, repository)?,
        Some(_) => Vec::new(),
    };
    let clusters = wanted.clusters_beside(&scopes, repository)?;
    let before = done.len();
    let place = ("verify", healer.configured.name.as_str());
    of::in_each_cluster(&clusters, place, failures, |name| {
        for registration in registrations(session, repository, name)? {
            let verify = || healer.cluster(&registration, backup, depth);
            let known = done.len();
            match healer.run(Of::Cluster(registration.clone()), &verify, done) {
                Ok(()) => {}
                // Another identifier of the cluster may have it.
                Err(e) if e.code() == Code::NotFound && done.len() == known => missing = Some(e),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    })?;
    for scope in scopes {
        let verify = || healer.scope(&scope, depth);
        healer.run(Of::Scope(scope.clone()), &verify, done)?;
    }
    match missing {
        Some(e) if done.len() == before => Err(e),
        _ => Ok(()),
    }
}

/// Reads every file of a backup, in the first repository that has it, and hands on path and SHA-256.
///
/// # Errors
/// `NotFound` where no repository has the backup; the first error of one that may have it; those of [`sums::sums`].
pub fn sums(session: &Session, id: &BackupId, sink: sums::Sink<'_>) -> Result<()> {
    let settings = session.settings_with_repositories()?;
    let wanted = settings.cluster_if_named()?;
    let name = wanted.as_ref().map(|c| c.name.as_str());
    let mut failure: Option<Error> = None;
    for configured in &settings.repositories {
        let found = layout_with(session, configured, name, id);
        match found {
            Ok(Some((repository, layout))) => {
                return sums::sums(&repository, &layout, id, &session.host, sink);
            }
            Ok(None) => {}
            Err(e) => {
                failure.get_or_insert(e);
            }
        }
    }
    Err(failure.unwrap_or_else(|| {
        err!(NotFound, "no cluster has backup \"{id}\"")
            .hint("Run pitr info to see the backups. Sums of a backup of files: pitr files sums NAME --backup ID")
    }))
}

/// The cluster in a repository to which a backup belongs.
fn layout_with(
    session: &Session,
    configured: &config::Repository,
    cluster: Option<&str>,
    id: &BackupId,
) -> Result<Option<(Repository, ClusterLayout)>> {
    let repository = session.open(configured)?;
    for registration in registrations(session, &repository, cluster)? {
        let layout = ClusterLayout::new(&registration.name, registration.system_identifier)?;
        if repository.store().head(&layout.manifest(id))?.is_some() {
            return Ok(Some((repository, layout)));
        }
    }
    Ok(None)
}

/// Names the remedy for the findings; of a run that heals it is known whether it was a dry one.
pub fn next(session: &Session, is_dry: Option<bool>, done: &Done) -> Option<String> {
    let report = &done.report;
    let has = |kinds: &[&str]| {
        report
            .findings
            .iter()
            .any(|f| kinds.contains(&f.kind.as_str()))
    };
    let flags = session.options(done.of.cluster());
    if report.finding_count == 0 {
        return None;
    }
    let may_heal = is_dry != Some(false);
    let is_wal = report.findings.iter().any(heal::is_of_wal);
    let by_others = has(&["damaged", "missing", "gap"]) && heal::has_others(session);
    let by_server = is_wal && heal::has_pg_wal(session, &done.of);
    let is_of_pack = |finding: &Finding| finding.object.contains("/packs/");
    let by_pages = report.backups.len() > 1 && report.findings.iter().any(is_of_pack);
    if may_heal && (by_others || by_server || by_pages) {
        let giver = match (by_others, by_server) {
            (true, true) => "another repository, or a server's pg_wal, has whole",
            (true, false) => "another repository has whole",
            (false, true) => "a server's pg_wal still has",
            (false, false) => "other backups have page by page",
        };
        return Some(format!(
            "pitr verify{flags} --heal writes what {giver}, and says what stays lost"
        ));
    }
    if let Of::Scope(_) = done.of {
        return Some(
            "pitr repo sync, where another repository has it; else take a new backup".to_owned(),
        );
    }
    let lost = report.backups.iter().any(|(_, usable)| !usable);
    Some(match (lost, is_wal || has(&["missing"])) {
        (_, true) if is_wal => format!(
            "pitr repo sync, where another repository has it; pitr wal backfill{flags} --from the pg_wal of a node that still has it; else pitr backup{flags}"
        ),
        (true, _) => format!(
            "pitr backup{flags}; what another repository has whole, plan and restore take from there"
        ),
        (false, true) => {
            format!("pitr repo sync, where another repository has it; else pitr backup{flags}")
        }
        (false, false) => {
            format!("pitr info{flags} shows what can be recovered; pitr backup{flags}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::heal::Healed;

    #[test]
    fn a_report_says_that_it_is_of_before_the_healing_where_no_check_came_after_it() {
        let failed = || Err(err!(Unreachable, "gone"));
        let heals = |_: &Report, later: &mut Outcome| {
            later.healed.push(Healed {
                object: "a".into(),
                copy: "a".into(),
                from: "b".into(),
            });
            Ok(())
        };
        let half =
            |report: &Report, later: &mut Outcome| heals(report, later).and_then(|()| failed());
        let nothing = |_: &Report, _: &mut Outcome| failed();
        let cases: [(Healing<'_>, usize); 3] = [(&heals, 1), (&half, 1), (&nothing, 0)];
        for (heal, warnings) in cases {
            let (mut report, mut outcome) = (Report::default(), Outcome::default());
            report.finding_count += 1;
            let doing = (&mut report, &mut outcome);
            let checking = || failed().map(|()| Report::default());
            assert!(in_rounds(false, (heal, &checking), doing).is_err());
            assert_eq!(report.warnings.len(), warnings);
        }
        let (mut report, mut outcome) = (Report::default(), Outcome::default());
        report.finding_count += 1;
        let doing = (&mut report, &mut outcome);
        in_rounds(false, (&heals, &|| Ok(Report::default())), doing).unwrap();
        assert_eq!((report.warnings.len(), outcome.healed.len()), (0, 1));
    }
}
