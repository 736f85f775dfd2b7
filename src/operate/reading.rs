//! A repository that is read, and the cluster in it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::archive_command::shell_word;
use super::human;
use super::session::Session;
use super::target::{AskedTarget, ResolvedTarget};
use crate::command::AS_STORED;
use crate::config::{self, Settings};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::parameters::Parameters;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::TimelineId;
use crate::plan::base;
use crate::plan::cluster::{self, Cluster, Side, Tree};
use crate::plan::recovery::{Action, Options, Plan};
use crate::plan::window::{self, Windows};
use crate::plan::{self};
use crate::repo::id::closest;
use crate::repo::layout::ClusterLayout;
use crate::repo::lives::Followed;
use crate::repo::repository::Repository;
use crate::repo::root::outline::Outline;
use crate::store::{Key, Store};
use crate::wal::inventory::{Backup, Inventory};
use crate::wal::rollup::Rollup;

/// The place of caches for root without a home: PostgreSQL's commands and cron run so.
const ROOT_CACHE: &str = "/var/cache/pitr";
/// A plan is made anew when the WAL turned out to differ from what the cache said; more often than this it changes under us.
const ATTEMPTS: usize = 4;

/// An open repository, and the cluster that is read.
pub struct Reading {
    /// Everything that is configured.
    pub settings: Settings,
    /// The repository's configuration.
    pub configured: config::Repository,
    pub repository: Repository,
    /// The cluster's configuration; none where only its name is known.
    pub cluster: Option<config::Cluster>,
    /// The cluster's name.
    pub name: String,
    /// The one repository that recovery may ask, where another one has the WAL of another server.
    pub wal_from: Option<String>,
}

/// The answer of the other repositories to a question that the one that is read cannot answer.
pub enum Elsewhere<T> {
    /// This one has it.
    Found(Box<Reading>, T),
    /// None has it.
    Nowhere,
    /// This one may have it, and could not be asked.
    Unknown(String, Error),
}

/// That it is not known whether the target can be reached: `why` the repository that was read does not lead there, and which one may.
pub fn not_known(why: &str, name: &str, e: &Error) -> Error {
    let code = match e.code() {
        Code::Denied | Code::Key | Code::Config => e.code(),
        _ => Code::Unreachable,
    };
    Error::new(
        code,
        format!("{why}; repository \"{name}\", which may lead there, could not be asked: {e}"),
    )
    .hint("Whether the target can be reached is not known. Run the same command again when that repository can be reached; if it is lost, --repository NAME asks another one alone.")
}

/// Whether an error says nothing of what the repository holds.
pub fn could_lead_there(e: &Error) -> bool {
    matches!(
        e.code(),
        Code::Unreachable
            | Code::NoRepository
            | Code::Denied
            | Code::Key
            | Code::Config
            | Code::Io
            | Code::Server
            | Code::Deadline
    )
}

impl Reading {
    /// Opens the first repository that can be opened, and settles which cluster is meant.
    ///
    /// # Errors
    /// That of the first repository, when none can be opened; `Usage` when several clusters could be meant.
    pub fn open(session: &Session) -> Result<Reading> {
        let settings = session.settings()?;
        let (configured, repository) = first_that_opens(session, &settings)?;
        let cluster = settings.cluster_if_named()?;
        let name = match &cluster {
            Some(cluster) => cluster.name.as_str().to_owned(),
            None => only_cluster(&repository)?,
        };
        let reading = Reading {
            settings,
            configured,
            repository,
            cluster,
            name,
            wal_from: None,
        };
        reading.or_other(session)
    }

    /// The same, or another repository where this one does not know the cluster.
    fn or_other(self, session: &Session) -> Result<Reading> {
        // A fresh repository knows no cluster yet. An error here comes again when its content is read.
        let known = self.repository.registrations(&self.name);
        if self.settings.repositories.len() > 1
            && known.is_ok_and(|known| known.is_empty())
            && let Some(other) = self.others(session).next()
        {
            session.warn(&format!(
                "repository \"{}\" does not know cluster \"{}\": \"{}\" is read",
                self.configured.name, self.name, other.configured.name
            ));
            return Ok(other);
        }
        Ok(self)
    }

    /// The same cluster in the other repositories, as far as they can be opened and know it. Each is opened when it is asked for.
    pub fn others<'a>(&'a self, session: &'a Session) -> impl Iterator<Item = Reading> + 'a {
        self.all_others(session).filter_map(|(name, other)| {
            let said = |e: &Error| session.warn(&format!("repository \"{name}\": {e}"));
            other.inspect_err(said).ok()
        })
    }

    /// As [`Reading::others`], by name, with those that cannot be opened and why.
    pub fn all_others<'a>(
        &'a self,
        session: &'a Session,
    ) -> impl Iterator<Item = (String, Result<Reading>)> + 'a {
        let others = self.settings.repositories.iter();
        let others = others.filter(|r| r.name != self.configured.name);
        others.filter_map(|configured| {
            let other = self.other(session, configured).transpose()?;
            Some((configured.name.clone(), other))
        })
    }

    /// `None` when the cluster is not known there.
    fn other(&self, session: &Session, configured: &config::Repository) -> Result<Option<Reading>> {
        let repository = session.open_or_give_up(configured, &self.settings)?;
        if repository.registrations(&self.name)?.is_empty() {
            return Ok(None);
        }
        Ok(Some(Reading {
            settings: session.settings()?,
            configured: configured.clone(),
            repository,
            cluster: self.cluster.clone(),
            name: self.name.clone(),
            wal_from: None,
        }))
    }

    /// Returns the first of the other repositories for which `reach` gives a result. Each that cannot be asked gets a
    /// warning.
    pub fn other_that<T>(
        &self,
        session: &Session,
        reach: impl Fn(&Reading) -> Result<Option<T>>,
    ) -> Elsewhere<T> {
        let mut silent = None;
        for (name, other) in self.all_others(session) {
            let reached = other.and_then(|other| Ok((reach(&other)?, other)));
            match reached {
                Ok((Some(found), other)) => return Elsewhere::Found(Box::new(other), found),
                Ok((None, _)) => {}
                Err(e) => {
                    session.warn(&format!("repository \"{name}\": {e}"));
                    if could_lead_there(&e) {
                        silent.get_or_insert((name, e));
                    }
                }
            }
        }
        silent.map_or(Elsewhere::Nowhere, |(name, e)| Elsewhere::Unknown(name, e))
    }

    /// Says that another repository is used, and why.
    pub fn say_other(&self, session: &Session, other: &Reading, why: &str) {
        session.warn(&format!(
            "repository \"{}\" does not lead there ({why}): \"{}\" is used",
            self.configured.name, other.configured.name
        ));
    }

    /// As [`Reading::open`], of each cluster that could be meant: where none is named, all that are configured, else all of the repository.
    ///
    /// # Errors
    /// That of the first repository, when none can be opened; `NotFound` when it holds no cluster.
    pub fn open_each(session: &Session) -> Result<Vec<Reading>> {
        let settings = session.settings()?;
        let names: Vec<String> = match settings.clusters.len() {
            _ if session.flags.cluster.is_some() => Vec::new(),
            0 => first_that_opens(session, &settings)?.1.cluster_names()?,
            _ => settings
                .clusters
                .iter()
                .map(|c| c.name.to_string())
                .collect(),
        };
        if names.len() < 2 {
            return Ok(vec![Reading::open(session)?]);
        }
        let one = |name: String| -> Result<Reading> {
            let settings = session.settings()?;
            let (configured, repository) = first_that_opens(session, &settings)?;
            let cluster = settings.clusters.iter().find(|c| c.name.as_str() == name);
            let reading = Reading {
                cluster: cluster.cloned(),
                settings,
                configured,
                repository,
                name,
                wal_from: None,
            };
            reading.or_other(session)
        };
        names.into_iter().map(one).collect()
    }

    /// Finds the moments that can be reached.
    ///
    /// # Errors
    /// Those of [`window::windows`]; `Unreachable` when the WAL changes each time it is looked at.
    pub fn windows(&self, session: &Session, inventory: &Inventory) -> Result<Windows> {
        let rollup = self.rollup(session, inventory)?;
        let ask = || window::windows(inventory, &rollup);
        steady(|| rollup.has_changed(), ask)
    }

    /// Decides which timeline is the cluster, by what this repository holds and `also`.
    ///
    /// # Errors
    /// Those of [`cluster::decide_by`]; `Unreachable` when the WAL changes each time it is looked at.
    pub fn decide(
        &self,
        session: &Session,
        inventory: &Inventory,
        also: &[(&Reading, &Inventory)],
    ) -> Result<Cluster> {
        let all = [(self, inventory)].into_iter().chain(also.iter().copied());
        let rollups =
            all.map(|(reading, inventory)| Ok((inventory, reading.rollup(session, inventory)?)));
        let rollups: Vec<_> = rollups.collect::<Result<_>>()?;
        let sides = rollups
            .iter()
            .map(|(inventory, wal)| Side { inventory, wal });
        let sides: Vec<Side<'_>> = sides.collect();
        let has_changed = || rollups.iter().any(|(_, wal)| wal.has_changed());
        steady(has_changed, || cluster::decide_by(&sides))
    }

    /// As [`Reading::decide`], with every other repository that answers; and the timelines of all.
    ///
    /// # Errors
    /// Those of [`Reading::decide`].
    pub fn decide_with_others(
        &self,
        session: &Session,
        own: &Inventory,
    ) -> Result<(Cluster, Tree)> {
        let read = |other: Reading| Some((other.inventory(session).ok()?, other));
        let others = self
            .all_others(session)
            .filter_map(|(_, other)| read(other.ok()?));
        // Under the same name there may be another cluster: before an upgrade, say.
        let is_own = |(inventory, _): &(Inventory, Reading)| {
            inventory.system_identifier == own.system_identifier
        };
        let others: Vec<_> = others.filter(is_own).collect();
        let also: Vec<_> = others.iter().map(|(i, r)| (r, i)).collect();
        let mut tree = Tree::of(own);
        others.iter().for_each(|(inventory, _)| tree.add(inventory));
        Ok((self.decide(session, own, &also)?, tree))
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// Those of [`Inventory::read`].
    pub fn inventory(&self, session: &Session) -> Result<Inventory> {
        let identifier = session.system_identifier;
        Inventory::read_as(&self.repository, &self.name, identifier, session.followed)
    }

    /// The place of caches.
    pub fn cache_dir(&self, session: &Session) -> Option<PathBuf> {
        let configured = self.cluster.as_ref().and_then(|c| c.cache_dir.clone());
        configured
            .or_else(|| session.environment.cache_dir())
            .or_else(|| {
                rustix::process::geteuid()
                    .is_root()
                    .then(|| PathBuf::from(ROOT_CACHE))
            })
    }

    /// Warns of a passphrase that this process was given and that the server's `restore_command` will not have.
    pub fn warn_of_passphrases(&self, session: &Session) {
        for configured in &self.settings.repositories {
            let Some(from) = &configured.encryption else {
                continue;
            };
            let name = &configured.name;
            let lacking = if let Some(number) = from.passphrase_fd {
                format!("a passphrase from descriptor {number}, which recovery will not have")
            } else if from.passphrase.is_some() {
                "a passphrase from the environment; recovery has it only if the server is started with the same variable".to_owned()
            } else {
                continue;
            };
            session.warn(&format!(
                "repository \"{name}\" is read with {lacking}: set key_file or passphrase_file before the server is started"
            ));
        }
    }

    /// Answers about the WAL of an inventory.
    ///
    /// # Errors
    /// Those of [`Rollup::new`].
    pub fn rollup<'a>(&'a self, session: &Session, inventory: &'a Inventory) -> Result<Rollup<'a>> {
        Rollup::new(
            &self.repository,
            inventory,
            self.cache_dir(session).as_deref(),
        )
    }

    /// restore_command and recovery_end_command of what is restored from here: absolute paths, for they run in the data directory.
    pub fn commands(&self, session: &Session) -> (String, String) {
        let program = std::env::current_exe()
            .ok()
            .and_then(|p| Some(p.parent()?.join("pitr-restore")))
            .unwrap_or_else(|| PathBuf::from("pitr-restore"));
        let word = |text: &str| shell_word(text).replace('%', "%%");
        let program = word(&program.to_string_lossy());
        let mut fetch = program.clone();
        if let Some(path) = &self.settings.path {
            fetch.push_str(&format!(" --config {}", word(&path.to_string_lossy())));
        }
        fetch.push_str(&format!(" --cluster {}", word(&self.name)));
        // Narrowed on the command line: the WAL has to come from there, too. Without a file it is all there is.
        let own = || self.configured.location.to_string();
        let is_narrowed = self.settings.path.is_none() || session.flags.repository.is_some();
        if let Some(location) = self.wal_from.clone().or_else(|| is_narrowed.then(own)) {
            fetch.push_str(&format!(" --repository {}", word(&location)));
        }
        if session.followed == Followed::AsStored {
            fetch.push_str(&format!(" --{AS_STORED}"));
        }
        fetch.push_str(" %f %p");
        (fetch, format!("{program} --recovery-ended"))
    }

    /// Makes the plan for a target.
    ///
    /// # Errors
    /// `Usage` for options that mean nothing; those of [`plan::plan`].
    pub fn plan(
        &self,
        session: &Session,
        inventory: &Inventory,
        asked: (&AskedTarget, Action),
        cluster: Option<&Cluster>,
    ) -> Result<(Plan, ResolvedTarget)> {
        let (resolved, options) = self.asked(session, inventory, asked, cluster)?;
        let rollup = self.rollup(session, inventory)?;
        for _ in 0..ATTEMPTS {
            let plan = settled(session, inventory, &rollup, &resolved, &options)?;
            match self.frozen_segment(inventory, &plan)? {
                None => return Ok((plan, resolved)),
                // The next plan hears it from the store.
                Some(name) => rollup.forget(name)?,
            }
        }
        Err(changes())
    }

    /// A segment that a plan needs and that must be thawed first: a cache of indexes does not tell. Who carries the plan out reads every end.
    fn frozen_segment(&self, inventory: &Inventory, plan: &Plan) -> Result<Option<SegmentName>> {
        let store = self.repository.store();
        if !plan.reachable || !store.is_remote() {
            return Ok(None);
        }
        let layout = inventory.layout()?;
        for run in &plan.segments_needed.parts {
            let (first, last) = (run.first.to_string(), run.last.to_string());
            let logs = run.first.log..=run.last.log;
            let homes = layout.homes(run.first.timeline);
            for folder in logs.flat_map(|log| homes.iter().map(move |home| home.log(log))) {
                let is_needed = |key: &str| {
                    let name = key.get(folder.len() + 1..).unwrap_or_default();
                    (first.as_str()..=last.as_str()).contains(&name)
                };
                let frozen = store.frozen(&folder, &is_needed)?;
                let name = frozen.and_then(|f| {
                    let name: SegmentName = f.key.rsplit('/').next()?.parse().ok()?;
                    (layout.segment(name).as_str() == f.key.as_str()).then_some(name)
                });
                if name.is_some() {
                    return Ok(name);
                }
            }
        }
        Ok(None)
    }

    /// As [`Reading::plan`], for a plan that is carried out: whatever the cache says, the end of every segment that it
    /// needs was read in this run. If one is damaged, the plan reports the cost.
    ///
    /// # Errors
    /// Those of [`Reading::plan`].
    pub fn plan_to_carry_out(
        &self,
        session: &Session,
        inventory: &Inventory,
        asked: (&AskedTarget, Action),
        cluster: Option<&Cluster>,
    ) -> Result<(Plan, ResolvedTarget)> {
        let (resolved, options) = self.asked(session, inventory, asked, cluster)?;
        let rollup = self.rollup(session, inventory)?;
        let mut attempts = 0;
        loop {
            let plan = settled(session, inventory, &rollup, &resolved, &options)?;
            let damaged = check_ends(session, &rollup, &plan)?;
            if !rollup.has_changed() {
                return Ok((plan, resolved));
            }
            // Each plan leaves out what is known to be damaged: they come to an end.
            attempts += usize::from(damaged == 0);
            if attempts == ATTEMPTS {
                return Err(changes());
            }
        }
    }

    /// Finds the parameters that WAL behind a backup requires.
    ///
    /// # Errors
    /// Those of [`base::parameters_behind`]; `Unreachable` when the WAL changes each time it is looked at.
    pub fn parameters_behind(
        &self,
        session: &Session,
        inventory: &Inventory,
        backup: &Backup,
        timeline: TimelineId,
    ) -> Result<Option<Parameters>> {
        let rollup = self.rollup(session, inventory)?;
        let ask = || base::parameters_behind(inventory, &rollup, backup, timeline);
        steady(|| rollup.has_changed(), ask)
    }

    /// See [`base::leads`].
    ///
    /// # Errors
    /// Those of [`base::leads`].
    pub fn leads(
        &self,
        session: &Session,
        inventory: &Inventory,
        backup: &Backup,
        timeline: TimelineId,
    ) -> Result<bool> {
        let rollup = self.rollup(session, inventory)?;
        base::leads(inventory, &rollup, backup, timeline)
    }

    /// Requires that the segments of a plan that was made earlier are still what they were, as far as their ends tell.
    ///
    /// # Errors
    /// `OutOfReach` when one is damaged.
    pub fn check_again(&self, session: &Session, inventory: &Inventory, plan: &Plan) -> Result<()> {
        let rollup = self.rollup(session, inventory)?;
        match check_ends(session, &rollup, plan)? {
            0 => Ok(()),
            _ => Err(err!(
                OutOfReach,
                "WAL that the restore begun here needs is damaged since it was planned"
            )
            .hint("Nothing more was written. Run pitr plan with the same target: it names the segment and what can be reached without it; to restore that, use an empty directory.")),
        }
    }

    /// Requires that what a backup consists of can be read: a rule of the store may have moved it where it must be thawed first, which takes
    /// hours, and better shows before a restore has begun. Another repository that has all of it gives what is frozen here.
    ///
    /// # Errors
    /// `Damaged`, naming the class and what to do.
    pub fn require_thawed(
        &self,
        session: &Session,
        layout: &ClusterLayout,
        root: &Outline,
    ) -> Result<()> {
        let frozen = match check_thawed(self.repository.store(), layout, root) {
            Err(e) if e.is_frozen() => e,
            other => return other,
        };
        let is_whole = |other: &Reading| {
            let store = other.repository.store();
            let there = Outline::read(store, layout, &root.id).ok().flatten();
            there.is_some_and(|there| there.nonce == root.nonce)
                && check_thawed(store, layout, root).is_ok()
        };
        let Some(other) = self.others(session).find(is_whole) else {
            return Err(frozen);
        };
        session.warn(&format!(
            "repository \"{}\": {frozen}; it is taken from \"{}\"",
            self.configured.name, other.configured.name
        ));
        Ok(())
    }

    /// Finds the moment that a target means.
    ///
    /// # Errors
    /// Those of [`AskedTarget::resolve`].
    pub fn resolve(
        &self,
        session: &Session,
        inventory: &Inventory,
        target: &AskedTarget,
    ) -> Result<ResolvedTarget> {
        let configured = self.cluster.as_ref().and_then(|c| c.timezone.as_deref());
        target.resolve(&session.environment, configured, inventory.timezone())
    }

    /// The request as it is understood.
    fn asked(
        &self,
        session: &Session,
        inventory: &Inventory,
        (target, action): (&AskedTarget, Action),
        cluster: Option<&Cluster>,
    ) -> Result<(ResolvedTarget, Options)> {
        let resolved = self.resolve(session, inventory, target)?;
        let (restore_command, recovery_end_command) = self.commands(session);
        let options = Options {
            backup: target
                .backup
                .as_deref()
                .map(|id| id.parse().map_err(|e| unknown_backup(inventory, id, e)))
                .transpose()?,
            action,
            allow_end: target.allow_end,
            restore_command,
            recovery_end_command: Some(recovery_end_command),
            cluster: cluster.cloned(),
        };
        Ok((resolved, options))
    }
}

/// A plan that nothing it read has contradicted.
fn settled(
    session: &Session,
    inventory: &Inventory,
    rollup: &Rollup<'_>,
    resolved: &ResolvedTarget,
    options: &Options,
) -> Result<Plan> {
    let now = || session.host.now();
    let ask = || plan::plan(inventory, rollup, &resolved.target, options, now());
    steady(|| rollup.has_changed(), ask)
}

/// An answer that nothing it read has contradicted. An error may come from what the cache knew, too.
fn steady<T>(has_changed: impl Fn() -> bool, ask: impl Fn() -> Result<T>) -> Result<T> {
    for _ in 0..ATTEMPTS {
        let answer = ask();
        if !has_changed() {
            return answer;
        }
    }
    Err(changes())
}

/// Reads the ends of the segments that a plan needs; returns how many are damaged.
fn check_ends(session: &Session, rollup: &Rollup<'_>, plan: &Plan) -> Result<usize> {
    let needed = &plan.segments_needed;
    let progress = session.host.progress.as_ref();
    let bytes = needed.count.saturating_mul(plan.segment_size_bytes);
    progress.phase("look at the WAL", Some(bytes));
    let mut damaged = 0;
    for run in &needed.parts {
        damaged += rollup.check_ends(run.first, run.last, progress)?;
    }
    Ok(damaged)
}

fn changes() -> Error {
    err!(
        Unreachable,
        "the archived WAL changed each time it was looked at"
    )
    .hint("Objects never change: something else writes into the repository. Run pitr verify.")
}

/// The first repository that can be opened; the others are warned of.
fn first_that_opens(
    session: &Session,
    settings: &Settings,
) -> Result<(config::Repository, Repository)> {
    let mut first_error = None;
    for configured in &settings.repositories {
        match session.open_or_give_up(configured, settings) {
            Ok(repository) => {
                if first_error.is_some() {
                    session.warn(&format!(
                        "repository \"{}\" is read instead; where that one is lost for good, \"--repository {0}\" goes on without it, and recovery does not wait for it",
                        configured.name
                    ));
                }
                return Ok((configured.clone(), repository));
            }
            Err(e) => {
                if settings.repositories.len() > 1 {
                    session.warn(&format!("repository \"{}\": {e}", configured.name));
                }
                first_error.get_or_insert(e);
            }
        }
    }
    Err(first_error.unwrap_or_else(|| err!(Config, "no repository is configured")))
}

fn unknown_backup(inventory: &Inventory, id: &str, error: Error) -> Error {
    match closest(inventory.backups.iter().map(|b| &b.id), id) {
        Some(closest) => error
            .with_code(Code::NotFound)
            .hint(format!("The closest is {closest}")),
        None => error,
    }
}

/// The only cluster of a repository.
fn only_cluster(repository: &Repository) -> Result<String> {
    let mut names = repository.cluster_names()?;
    if names.len() > 1 {
        return Err(err!(
            Usage,
            "repository \"{}\" holds several clusters and none is named",
            repository.store().location()
        )
        .hint(format!("Add --cluster NAME. Known: {}", names.join(", "))));
    }
    names.pop().ok_or_else(|| {
        err!(
            NotFound,
            "repository \"{}\" holds no cluster",
            repository.store().location()
        )
        .hint("Nothing is archived there. Run pitr init for a cluster.")
    })
}

/// Requires that nothing of a backup has to be thawed first.
fn check_thawed(store: &dyn Store, layout: &ClusterLayout, root: &Outline) -> Result<()> {
    let layers = root.layers().map(|part| layout.layer(&part));
    let packs = root.packs().map(|part| layout.pack(&part));
    let needed: BTreeSet<Key> = layers.chain(packs).collect();
    let places: BTreeSet<&str> = needed.iter().filter_map(Key::parent).collect();
    let needed: BTreeSet<&str> = needed.iter().map(Key::as_str).collect();
    for place in places {
        let Some(frozen) = store.frozen(place, &|key| needed.contains(key))? else {
            continue;
        };
        let are = if frozen.count == 1 { "is" } else { "are" };
        return Err(err!(
            Damaged,
            "backup \"{}\" cannot be read: {} {are} in class {}, the first is \"{}\"",
            root.id,
            human::count(frozen.count as u64, "object"),
            frozen.class.escape_debug(),
            frozen.key.escape_debug()
        )
        .frozen()
        .hint(format!("Nothing was written. Have the store thaw these objects first, which takes hours: pitr repo thaw --backup {}", root.id)));
    }
    Ok(())
}
