//! Brings repositories up to date from one another.

use std::collections::BTreeSet;

use super::audit;
use super::configuration::recipients::{self, Brought};
use super::failures::Failures;
use super::of::{self, Of, Wanted};
use super::retention::Rules;
use super::session::Session;
use super::unproven;
use super::verify::{self, Heal};
use crate::config::{self, Settings};
use crate::err;
use crate::error::{Error, Result};
use crate::plan::lacking::{Cause, Lacking};
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;
use crate::sync::scope::ScopeTransfer;
use crate::sync::{Options, Report, Transfer};

/// The danger of a copy that cannot tell forged objects.
const FORGED: &str = "objects are only checked to be whole, and one that somebody forged is copied, and takes its name for good";

/// The operator's request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Copy from this repository only.
    pub from: Option<String>,
    /// Bring only this repository up to date.
    pub to: Option<String>,
    /// Copy also what the receiving side may have expired.
    pub everything: bool,
    /// Copy a cluster also where its name has another system identifier.
    pub is_confirmed: bool,
    /// Objects that are copied at a time.
    pub jobs: usize,
    /// Whether nothing is copied.
    pub dry_run: bool,
    /// Heal each repository that is brought up to date, once that is done.
    pub heal: bool,
}

/// The result of a run.
pub struct Synced {
    /// Each cluster, from each repository into each other one.
    pub done: Vec<Done>,
    /// Recipients of secrets pairs that a repository lacked.
    pub recipients: Vec<Brought>,
    /// Records of the audit log that a repository lacked.
    pub records: Vec<audit::Brought>,
    /// Objects that were healed, by cluster and other content of each repository in which something was wrong.
    pub healed: Vec<verify::Done>,
    /// Warnings about repositories whose objects are not proven.
    pub warnings: Vec<String>,
    /// Errors, repository by repository.
    pub failures: Failures,
}

/// One cluster, or other content, from one repository into another.
pub struct Done {
    /// The repository that gives.
    pub from: String,
    /// The repository that gets.
    pub to: String,
    /// The cluster, or other content.
    pub of: Of,
    /// Objects that the receiving side lacks.
    pub lacking: Lacking,
    /// The objects that were copied; none for a dry run.
    pub report: Option<Report>,
    /// It ended early; what it did before stands in the report.
    pub is_cut_short: bool,
}

impl Done {
    /// Whether anything was left out that should have come.
    pub fn has_problems(&self) -> bool {
        let left_out = &self.lacking.left_out;
        left_out.iter().any(|l| l.cause != Cause::Rule)
            || !self.lacking.unreadable.is_empty()
            || self.report.as_ref().is_some_and(|r| r.problem_count > 0)
    }
}

/// Brings every repository up to date that is meant.
///
/// # Errors
/// `Usage`, `NotFound`, `Config`; the first failure when nothing was looked at.
pub fn run(session: &Session, asked: &Asked) -> Result<Synced> {
    let settings = session.settings()?;
    check(asked, session, &settings)?;
    let wanted = Wanted::all(session, &settings)?;
    let mut failures = Failures::default();
    let opened = open(asked, session, &settings, &mut failures);
    let warning =
        |(configured, repository): &Opened<'_>| unproven::warning(configured, repository, FORGED);
    let warnings: Vec<String> = opened.iter().filter_map(warning).collect();
    let mut sync = Sync {
        asked,
        rules: Rules::new(session, settings.clone(), None),
        session,
        done: Vec::new(),
        recipients: Vec::new(),
        records: Vec::new(),
        clusters: BTreeSet::new(),
        failures,
    };
    for (to, from) in of_same_keys(session, pairs(asked, &opened)) {
        if !sync.pair(from, to, &wanted) {
            break;
        }
    }
    let mut healed = Vec::new();
    let wish = Heal {
        dry_run: asked.dry_run,
    };
    let is_getting = |name: &str| asked.to.as_deref().is_none_or(|to| to == name);
    for (configured, repository) in opened
        .iter()
        .filter(|(c, _)| asked.heal && is_getting(&c.name))
    {
        let place = (session, *configured, repository);
        let into = (&mut healed, &mut sync.failures);
        if let Err(e) = verify::heal_known(place, &wanted, wish, into) {
            let doing = format!("heal repository \"{}\"", configured.name);
            if !sync.failures.add(e, doing) {
                break;
            }
        }
    }
    sync.failures.first_if(session, sync.done.is_empty())?;
    if sync.clusters.is_empty() {
        return Err(no_cluster(wanted.only()));
    }
    Ok(Synced {
        done: sync.done,
        recipients: sync.recipients,
        records: sync.records,
        healed,
        warnings,
        failures: sync.failures,
    })
}

fn no_cluster(wanted: Option<&str>) -> Error {
    match wanted {
        Some(name) => err!(NotFound, "no repository holds cluster \"{name}\""),
        None => err!(NotFound, "no repository holds a cluster"),
    }
    .hint("Nothing was copied.")
}

/// Requires two repositories, and names that are some.
fn check(asked: &Asked, session: &Session, settings: &Settings) -> Result<()> {
    if session.flags.repository.is_some() {
        return Err(err!(
            Usage,
            "--repository names one repository, and this works on two"
        )
        .hint("Nothing was copied. Say which with --from NAME and --to NAME."));
    }
    let names = settings.repositories.iter();
    let names: Vec<&str> = names.map(|r| r.name.as_str()).collect();
    for name in [&asked.from, &asked.to].into_iter().flatten() {
        if !names.contains(&name.as_str()) {
            return Err(err!(NotFound, "repository \"{name}\" is not configured")
                .hint(format!("Nothing was copied. Known: {}", names.join(", "))));
        }
    }
    if asked.from.is_some() && asked.from == asked.to {
        return Err(
            err!(Usage, "--from and --to name the same repository").hint("Nothing was copied.")
        );
    }
    match names.len() {
        0 | 1 => Err(err!(Config, "fewer than two repositories are configured").hint(
            "Nothing was copied. Add a section [repositories.NAME], and create it with \"pitr init\".",
        )),
        _ => Ok(()),
    }
}

type Opened<'a> = (&'a config::Repository, Repository);

/// The repository that gets, and the one that gives.
type Direction<'o, 'a> = (&'o Opened<'a>, &'o Opened<'a>);

/// Opens the repositories that take part. One that cannot be opened is reported as a failure, and the others go on.
fn open<'a>(
    asked: &Asked,
    session: &Session,
    settings: &'a Settings,
    failures: &mut Failures,
) -> Vec<Opened<'a>> {
    let takes_part = |name: &str| match (&asked.from, &asked.to) {
        (Some(from), Some(to)) => from == name || to == name,
        _ => true,
    };
    let all = settings.repositories.iter();
    let all = all.filter(|configured| takes_part(&configured.name));
    all.filter_map(|configured| {
        let doing = format!("open repository \"{}\"", configured.name);
        let repository = failures.note(session.open(configured), doing)?;
        Some((configured, repository))
    })
    .collect()
}

/// Who gets from whom, in the order of the configuration.
fn pairs<'o, 'a>(asked: &Asked, opened: &'o [Opened<'a>]) -> Vec<Direction<'o, 'a>> {
    let is_wanted =
        |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    let mut pairs = Vec::new();
    for to in opened {
        for from in opened {
            let (f, t) = (from.0.name.as_str(), to.0.name.as_str());
            if f != t && is_wanted(&asked.from, f) && is_wanted(&asked.to, t) {
                pairs.push((to, from));
            }
        }
    }
    pairs
}

/// Leaves out pairs between which nothing can be copied, because their keys differ, where others are left. Alone, such a pair is refused.
fn of_same_keys<'o, 'a>(
    session: &Session,
    pairs: Vec<Direction<'o, 'a>>,
) -> Vec<Direction<'o, 'a>> {
    let is_same = |(to, from): &Direction<'_, '_>| to.1.marker().key_set == from.1.marker().key_set;
    let (same, other): (Vec<_>, Vec<_>) = pairs.iter().partition(|pair| is_same(pair));
    if same.is_empty() {
        return pairs;
    }
    for (to, from) in other {
        let (to, from) = (&to.0.name, &from.0.name);
        session.note(&format!(
            "nothing goes from \"{from}\" to \"{to}\": their keys differ, and each needs backups of its own: pitr backup --repository {to}"
        ));
    }
    same
}

/// A run: what it works with, and what came of it.
struct Sync<'a> {
    asked: &'a Asked,
    rules: Rules,
    session: &'a Session,
    done: Vec<Done>,
    recipients: Vec<Brought>,
    records: Vec<audit::Brought>,
    clusters: BTreeSet<String>,
    failures: Failures,
}

impl Sync<'_> {
    /// Brings one repository up to date from another; a cluster that cannot be copied does not keep the others from it. `false` when the
    /// operator wants no more.
    fn pair(&mut self, from: &Opened<'_>, to: &Opened<'_>, wanted: &Wanted) -> bool {
        let doing = format!(
            "bring repository \"{}\" up to date from \"{}\"",
            to.0.name, from.0.name
        );
        match self.bring(from, to, wanted, &doing) {
            Ok(goes_on) => goes_on,
            Err(e) => self.failures.add(e, doing),
        }
    }

    fn bring(
        &mut self,
        from: &Opened<'_>,
        to: &Opened<'_>,
        wanted: &Wanted,
        doing: &str,
    ) -> Result<bool> {
        for name in wanted.names(&from.1)? {
            let places = from.1.clusters(&name)?;
            let known = registered(&to.1, &name)?;
            for layout in places {
                let done = self.cluster(from, to, &layout, &known);
                if let Some(goes_on) = self.end(done, doing) {
                    return Ok(goes_on);
                }
            }
        }
        for scope in of::scopes(self.session, &from.1)? {
            let done = self.scope(from, to, &scope);
            if let Some(goes_on) = self.end(done, doing) {
                return Ok(goes_on);
            }
        }
        let (giving, getting) = ((&*from.0.name, &from.1), (&*to.0.name, &to.1));
        let brought = recipients::bring(giving, getting, self.asked.dry_run)?;
        self.recipients.extend(brought);
        let brought = audit::bring(self.session, giving, getting, self.asked.dry_run)?;
        self.records.extend(brought);
        Ok(true)
    }

    /// Takes down a failure; where it ends the work on this pair, whether the operator wants more.
    fn end(&mut self, done: Result<()>, doing: &str) -> Option<bool> {
        let e = done.err()?;
        let is_away = e.code().is_retryable();
        let is_wanted = self.failures.add(e, doing.to_owned());
        (is_away || !is_wanted).then_some(is_wanted)
    }

    fn scope(
        &mut self,
        (from_name, from): &Opened<'_>,
        (to_name, to): &Opened<'_>,
        scope: &Scope,
    ) -> Result<()> {
        self.clusters.insert(scope.prefix());
        let asked = self.asked;
        let rules = self.rules.receiving(self.session, to_name, None)?;
        let options = Options {
            jobs: asked.jobs,
            everything: asked.everything,
            rules: rules.as_ref(),
        };
        let transfer = ScopeTransfer::new((from, to), scope, options, &self.session.host)?;
        let lacking = transfer.plan()?;
        let ran = match asked.dry_run {
            true => Ok(()),
            false => transfer.run(&lacking),
        };
        let report = (!asked.dry_run).then(|| transfer.pair.report());
        self.done.push(Done {
            from: from_name.name.clone(),
            to: to_name.name.clone(),
            of: Of::Scope(scope.clone()),
            lacking: lacking.into(),
            report,
            is_cut_short: ran.is_err(),
        });
        ran
    }

    /// `known` are the system identifiers that the receiving side had under the name when the run came to it.
    fn cluster(
        &mut self,
        (from_name, from): &Opened<'_>,
        (to_name, to): &Opened<'_>,
        layout: &ClusterLayout,
        known: &[u64],
    ) -> Result<()> {
        self.clusters.insert(layout.name().to_owned());
        let Some(registration) = from.registration(layout)? else {
            let is_there = known.contains(&layout.system_identifier());
            return require_empty((&from_name.name, from), (&to_name.name, is_there), layout);
        };
        if !self.asked.is_confirmed {
            check_name(layout, from_name, to_name, known)?;
        }
        let asked = self.asked;
        let host = &self.session.host;
        let cluster = Some(layout.name());
        let rules = self.rules.receiving(self.session, to_name, cluster)?;
        let options = Options {
            jobs: asked.jobs,
            everything: asked.everything,
            rules: rules.as_ref(),
        };
        let transfer = Transfer::new(from, to, &registration, options, host)?;
        if !asked.dry_run {
            transfer.wait_for_deletion(&mut || Ok(()))?;
        }
        let lacking = transfer.plan()?;
        let ran = match asked.dry_run {
            true => Ok(()),
            false => transfer.run(&lacking),
        };
        let report = (!asked.dry_run).then(|| transfer.report());
        self.done.push(Done {
            from: from_name.name.clone(),
            to: to_name.name.clone(),
            lacking,
            report,
            is_cut_short: ran.is_err(),
            of: Of::Cluster(registration.clone()),
        });
        ran
    }
}

/// Requires that a place without a registration holds nothing of the cluster: what nobody copies would be taken for copied. `is_there` says whether the
/// receiving side has the cluster.
fn require_empty(
    (from, repository): (&str, &Repository),
    (to, is_there): (&str, bool),
    layout: &ClusterLayout,
) -> Result<()> {
    let store = repository.store();
    let holds = |prefix: String| -> Result<bool> { Ok(!store.list(&prefix)?.is_empty()) };
    let is_lost = match is_there {
        true => holds(layout.prefix())?,
        false => holds(layout.backups())? || holds(layout.wal())?,
    };
    if !is_lost {
        return Ok(());
    }
    let (name, own) = (layout.name(), layout.system_identifier());
    let again = match is_there {
        true => format!(
            "pitr repo sync --from {to} --to {from} brings it back, as does pitr init --cluster {name} on the cluster's host."
        ),
        false => format!(
            "Register the cluster again on its host, with its data directory: pitr init --cluster {name}"
        ),
    };
    Err(err!(
        WrongCluster,
        "the registration of cluster \"{name}\" ({own}) is lost in repository \"{from}\""
    )
    .hint(format!(
        "Nothing of it was copied to \"{to}\". {again}\nThen run the same command again. Look what deleted it, a lifecycle rule or a person."
    )))
}

/// The system identifiers under a name. One whose registration cannot be read is there, too.
fn registered(repository: &Repository, name: &str) -> Result<Vec<u64>> {
    let mut known = Vec::new();
    for layout in repository.clusters(name)? {
        match repository.registration(&layout) {
            Ok(None) => {}
            Err(e) if e.code().is_retryable() => return Err(e),
            _ => known.push(layout.system_identifier()),
        }
    }
    Ok(known)
}

/// A second system identifier under a name is what pg_upgrade leaves, or two clusters that were mixed up: who reads takes the newest
/// backup of the name, whosever it is.
fn check_name(
    layout: &ClusterLayout,
    from: &config::Repository,
    to: &config::Repository,
    known: &[u64],
) -> Result<()> {
    let own = layout.system_identifier();
    if known.is_empty() || known.contains(&own) {
        return Ok(());
    }
    let known: Vec<String> = known.iter().map(u64::to_string).collect();
    Err(err!(
        WrongCluster,
        "cluster \"{}\" is registered with system identifier {} in \"{}\", and has {own} in \"{}\"",
        layout.name(),
        known.join(", "),
        to.name,
        from.name
    )
    .hint("Nothing of it was copied there. If these are two clusters, correct the repositories of the configuration.\nAfter pg_upgrade or initdb, run the same command with --confirm."))
}
