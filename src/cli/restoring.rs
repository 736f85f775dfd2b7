//! What `restore` and `standby` share on the command line: the place, the commands that PostgreSQL will run, the run itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::owner::{Access, User};
use super::reading::Reading;
use super::start_line::{self, Start};
use super::{Context, human};
use crate::archive::guard::AUTO_CONF;
use crate::config::Settings;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::conf::Setting;
use crate::pg::control::ControlFile;
use crate::pg::parameters::Parameters;
use crate::pg::timeline::TimelineId;
use crate::plan::recovery::Plan;
use crate::repo::event::Writer;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::root::BackupRoot;
use crate::repo::root::outline::Outline;
use crate::restore::extract::Survey;
use crate::restore::job::{Earlier, Job, Request};
use crate::restore::settings;
use crate::restore::target_dir::{self, Mapping, PlacedTablespace, Target, Wanted};
use crate::restore::{self, Report, Source};
use crate::snapshot::reader::Snapshot;
use crate::snapshot::spare::Spares;
use crate::wal::inventory::Inventory;

const CONTROL_LIMIT_BYTES: usize = 64 << 10;

/// A repository open for restoring one cluster.
pub struct Opened {
    /// The repository and the settings that led to it.
    pub reading: Reading,
    /// What it holds.
    pub inventory: Inventory,
    /// Where the cluster lies in it.
    pub layout: ClusterLayout,
}

/// Opens the repository, and reads what it holds of the cluster.
///
/// # Errors
/// Those of [`Reading::open`] and [`Inventory::read`].
pub fn open(cx: &Context, reading: Reading) -> Result<Opened> {
    let inventory = reading.inventory(cx)?;
    Opened::new(reading, inventory)
}

impl Opened {
    /// What was read of a repository.
    ///
    /// # Errors
    /// Those of [`ClusterLayout::new`].
    pub fn new(reading: Reading, inventory: Inventory) -> Result<Opened> {
        Ok(Opened {
            layout: inventory.layout()?,
            reading,
            inventory,
        })
    }

    /// The repository that a job was begun with, where it can be opened: else this one, which may have the same backup.
    ///
    /// # Errors
    /// Those of [`Inventory::read`].
    pub fn where_it_began(self, cx: &Context, job: &Job) -> Result<Opened> {
        let is_it = |r: &Reading| r.configured.location.to_string() == job.repository;
        if is_it(&self.reading) {
            return Ok(self);
        }
        let other = self.reading.others(cx).find(is_it);
        match other {
            Some(other) => open(cx, other),
            None => Ok(self),
        }
    }

    /// Requires that the WAL of a plan that was made earlier is still what it was, in the repository that it was made on.
    ///
    /// # Errors
    /// Those of [`Reading::check_again`].
    pub fn check_again(&self, cx: &Context, plan: &Plan) -> Result<()> {
        if self.inventory.repository == plan.repository {
            return self.reading.check_again(cx, &self.inventory, plan);
        }
        let is_it = |r: &Reading| r.repository.store().location() == plan.repository;
        let Some(other) = self.reading.others(cx).find(is_it) else {
            cx.out.warn(&format!(
                "the WAL of this restore was planned in repository \"{}\", which cannot be opened: it is not looked at again",
                plan.repository
            ));
            return Ok(());
        };
        let inventory = other.inventory(cx)?;
        other.check_again(cx, &inventory, plan)
    }

    /// The other repositories, for objects that are damaged in this one.
    pub fn spares<'a>(&'a self, cx: &'a Context) -> Spares<'a> {
        Spares::new(|| {
            let others = self.reading.all_others(cx);
            let others = others.map(|(name, other)| (name, other.map(|o| o.repository)));
            others.collect()
        })
    }

    /// Adds to a plan the parameters that pg_control of its backup requires.
    pub fn add_parameters(&self, cx: &Context, plan: &mut Plan) {
        let Some(id) = plan.backup.as_ref().map(|b| b.id.clone()) else {
            return;
        };
        match self.parameters(cx, &id) {
            Ok(parameters) => plan.require(parameters),
            Err(e) => plan.warnings.push(unknown_parameters(&id, &e)),
        }
    }

    /// What pg_control of a standby's backup and the WAL behind it ask of its settings. Where a part cannot be read, a warning says so.
    ///
    /// # Errors
    /// Those of [`Reading::parameters_behind`].
    pub fn parameters_of_standby(
        &self,
        cx: &Context,
        id: &BackupId,
        timeline: TimelineId,
    ) -> Result<BTreeMap<String, u32>> {
        let mut known = Parameters::default();
        match self.parameters(cx, id) {
            Ok(parameters) => known = parameters,
            Err(e) => cx.out.warn(&unknown_parameters(id, &e)),
        }
        if let Some(backup) = self.inventory.backups.iter().find(|b| b.id == *id) {
            let inventory = &self.inventory;
            let behind = self
                .reading
                .parameters_behind(cx, inventory, backup, timeline)?;
            known = known.max(behind.unwrap_or_default());
        }
        Ok(known.iter().map(|(n, v)| (n.to_owned(), v)).collect())
    }

    fn parameters(&self, cx: &Context, id: &BackupId) -> Result<Parameters> {
        let store = self.reading.repository.store();
        let root = BackupRoot::read(store, &self.layout, id)?
            .ok_or_else(|| err!(NotFound, "the backup does not exist any more"))?;
        let spares = self.spares(cx);
        let snapshot = Snapshot::open_with(store, &self.layout, &root, Some(&spares))?;
        let control = snapshot
            .read_file("global/pg_control", CONTROL_LIMIT_BYTES)?
            .ok_or_else(|| err!(Damaged, "the backup does not hold it"))?;
        Ok((&ControlFile::parse(&control)?.settings).into())
    }

    /// Reads the root of a backup whose parts can be read, too.
    ///
    /// # Errors
    /// `NotFound`; `Damaged`; those of [`Reading::require_thawed`].
    pub fn root(&self, cx: &Context, id: &BackupId) -> Result<BackupRoot> {
        let root = BackupRoot::read(self.reading.repository.store(), &self.layout, id)?
            .ok_or_else(|| err!(NotFound, "backup \"{id}\" does not exist"))?;
        let outline = Outline::of(&root)?;
        self.reading.require_thawed(cx, &self.layout, &outline)?;
        Ok(root)
    }

    /// The job that brings this backup to where `request` wants it, before tablespaces are placed.
    ///
    /// # Errors
    /// Those of [`Opened::root`].
    pub fn job(
        &self,
        cx: &Context,
        request: Request,
        backup: &BackupId,
        plan: Option<Plan>,
    ) -> Result<(Job, BackupRoot)> {
        let root = self.root(cx, backup)?;
        let job = Job {
            format: Job::FORMAT,
            request,
            planned: cx.now(),
            repository: self.reading.configured.location.to_string(),
            system_identifier: root.content.system_identifier,
            backup: root.head.id.clone(),
            backup_nonce: root.head.nonce.clone(),
            tablespaces: Vec::new(),
            restore_command: self.reading.commands(cx).0,
            plan,
            timeline: None,
            parameters: BTreeMap::new(),
        };
        Ok((job, root))
    }

    /// Takes up a job that was interrupted, and says so.
    ///
    /// # Errors
    /// Those of [`Opened::root`].
    pub fn resume(&self, cx: &Context, job: &Job) -> Result<(Job, BackupRoot)> {
        cx.out.note(&format!(
            "resuming the restore that was planned at {}",
            human::time(job.planned)
        ));
        Ok((job.clone(), self.root(cx, &job.backup)?))
    }
}

fn unknown_parameters(id: &BackupId, e: &Error) -> String {
    format!(
        "pg_control of backup {id} cannot be read ({e}): recovery stops where the configuration has a lower max_connections, \
         max_worker_processes, max_wal_senders, max_prepared_transactions or max_locks_per_transaction than the server had"
    )
}

/// The place that the command line names.
pub struct Place {
    /// The data directory, absolute.
    pub to: PathBuf,
    mappings: Vec<Mapping>,
    as_in_backup: bool,
    repositories: Vec<PathBuf>,
    home: Option<PathBuf>,
}

impl Place {
    /// The place as written. Tablespaces without a mapping go where the backup says, if `as_in_backup` allows it.
    pub fn new(
        cx: &Context,
        settings: &Settings,
        to: &Path,
        mappings: Vec<Mapping>,
        as_in_backup: bool,
    ) -> Place {
        let repositories = settings.repositories.iter();
        let repositories = repositories.filter_map(|r| r.location.directory());
        Place {
            to: cx.environment.absolute(to),
            mappings,
            as_in_backup,
            repositories: repositories.map(Path::to_owned).collect(),
            home: cx.environment.home().map(Path::to_owned),
        }
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            to: &self.to,
            mappings: &self.mappings,
            as_in_backup: self.as_in_backup,
            repositories: &self.repositories,
            home: self.home.as_deref(),
        }
    }

    /// Checks the data directory.
    ///
    /// # Errors
    /// Those of [`target_dir::look`].
    pub fn look(&self) -> Result<Target> {
        target_dir::look(&self.wanted())
    }

    /// Checks the places of the tablespaces, which an unfinished job fixes.
    ///
    /// # Errors
    /// Those of [`target_dir::place`].
    pub fn place(&self, target: Target, root: &BackupRoot) -> Result<Target> {
        target_dir::place(target, &self.wanted(), &root.content.tablespaces)
    }
}

/// The data directory as text, for records.
///
/// # Errors
/// `Refused` when it is not UTF-8.
pub fn path_text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        err!(Refused, "\"{}\" is not UTF-8", path.display())
            .hint("Nothing was written. Name a directory whose path is.")
    })
}

/// Requires the program that PostgreSQL runs while it recovers, and warns of what the server's user will not be able to use.
///
/// # Errors
/// `Config` when `pitr-restore` does not lie beside this program.
pub fn check_commands(cx: &Context, target: &Target, opened: &Opened) -> Result<()> {
    let program = std::env::current_exe()
        .map_err(|e| Error::from_io("find this program", e))?
        .with_file_name("pitr-restore");
    if !program.is_file() {
        return Err(err!(
            Config,
            "\"{}\" does not exist, and PostgreSQL needs it to recover",
            program.display()
        )
        .hint("Nothing was written. Install pitr-restore beside pitr."));
    }
    opened.reading.warn_of_passphrases(cx);
    let existing = target.data.ancestors().find(|p| p.exists());
    let user = match (target.owner, existing) {
        (Some(_), Some(existing)) => User::owner_of(existing),
        _ => Ok(User::of_process()),
    };
    let Ok(user) = user else { return Ok(()) };
    let repository = &opened.reading.configured;
    let directory = repository.location.directory();
    let settings = opened.reading.settings.path.as_deref();
    let needed = [(program.as_path(), Access::Execute)].into_iter();
    let needed = needed
        .chain(directory.map(|path| (path, Access::Execute)))
        .chain(settings.map(|path| (path, Access::Read)))
        .chain(repository.files().map(|path| (path, Access::Read)));
    for (path, access) in needed {
        if let Some(obstacle) = user.kept_out_by(path, access) {
            cx.out.warn(&format!(
                "the server's user {} cannot use \"{}\", so recovery will fail: correct the permissions of \"{}\"",
                user.name(),
                path.display(),
                obstacle.display()
            ));
        }
    }
    Ok(())
}

/// What a restore or standby came to, as JSON.
#[derive(Serialize)]
pub struct ShownReport<'a> {
    /// The data directory.
    pub to: &'a str,
    /// The backup.
    pub backup: String,
    /// Where its tablespaces are.
    pub tablespaces: &'a [PlacedTablespace],
    /// Whether an earlier run had begun it.
    pub resumed: bool,
    /// Files of the backup.
    pub file_count: u64,
    /// Their raw bytes.
    pub size_bytes: u64,
    /// Bytes that this run wrote.
    pub written_bytes: u64,
    /// Files compared with the server's own manifest.
    pub compared_file_count: Option<u64>,
    /// Settings that run code.
    pub code_settings: Vec<String>,
    /// Files that the configuration includes and that nobody looked into.
    pub includes_not_read: Vec<String>,
    /// The line that starts the server.
    pub start_command: &'a str,
    /// The port that its settings name.
    pub port: u16,
    /// Whether somebody listens there already.
    pub port_taken: bool,
    /// Who has to confirm each commit of a server with these settings.
    pub synchronous_standby_names: Option<&'a str>,
    /// Links that were not recreated.
    pub links_left_out: &'a [String],
    /// Whether the directory may archive.
    pub may_archive: bool,
    /// How long it took.
    pub duration_ms: u64,
}

impl<'a> ShownReport<'a> {
    /// Puts it together.
    pub fn new(
        job: &'a Job,
        report: &'a Report,
        start: &'a Start,
        took: Duration,
    ) -> ShownReport<'a> {
        let (code_settings, includes_not_read) = start.code_and_includes(&report.brought);
        ShownReport {
            to: &job.request.to,
            backup: job.backup.to_string(),
            tablespaces: &job.tablespaces,
            resumed: report.resumed,
            file_count: report.files,
            size_bytes: report.raw_bytes,
            written_bytes: report.copied.written_bytes,
            compared_file_count: report.compared_files,
            code_settings,
            includes_not_read,
            start_command: &start.command,
            port: start.port,
            port_taken: start.is_port_taken,
            synchronous_standby_names: start.synchronous_standby_names.as_deref(),
            links_left_out: &report.links,
            may_archive: job.may_archive(),
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// Runs a job whose target was checked.
///
/// # Errors
/// Those of [`restore::survey`] and [`restore::run`].
#[expect(clippy::too_many_arguments, reason = "what a restore is made of")]
pub fn run(
    cx: &Context,
    opened: &Opened,
    root: &BackupRoot,
    job: &Job,
    (target, survey): (&Target, &Survey),
    earlier: &Earlier,
    jobs: Option<u16>,
    spares: &Spares<'_>,
) -> Result<(Report, Duration)> {
    let source = Source {
        store: opened.reading.repository.store(),
        layout: &opened.layout,
        root,
        spares,
    };
    let host = cx.host()?;
    let started = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = jobs.map_or(cores, usize::from);
    let report = restore::run(&source, job, target, survey, earlier, jobs, &host);
    tell_taken(cx, opened, job, spares);
    Ok((report?, started.elapsed()))
}

/// Says which objects had to be taken from another repository, and records their damage, so that plans and people know.
fn tell_taken(cx: &Context, opened: &Opened, job: &Job, spares: &Spares<'_>) {
    let store = opened.reading.repository.store();
    let subject = job.backup.to_string();
    let mut damaged = spares.taken();
    damaged.retain(|one| !one.is_frozen);
    for one in &damaged {
        cx.out.warn(&format!(
            "\"{}\" is damaged in repository \"{}\" and was taken from \"{}\" ({})",
            one.object, opened.reading.configured.name, one.from, one.detail
        ));
    }
    let Some(first) = damaged.first() else { return };
    let host = cx.unstoppable();
    let writer = Writer::of(&host);
    let what = (first.object.as_str(), first.detail.as_str());
    if let Err(e) = writer.record_damage(store, &opened.layout, &subject, what) {
        cx.out
            .warn(&format!("the damage could not be recorded there: {e}"));
    }
}

/// Checks the space, before the first write; returns what the backup holds.
///
/// # Errors
/// `Refused` with numbers.
pub fn survey(
    opened: &Opened,
    root: &BackupRoot,
    job: &Job,
    target: &Target,
    spares: &Spares<'_>,
) -> Result<Survey> {
    let source = Source {
        store: opened.reading.repository.store(),
        layout: &opened.layout,
        root,
        spares,
    };
    restore::survey(&source, job, target)
}

/// How the server on what was restored is started.
pub fn start(
    opened: &Opened,
    root: &BackupRoot,
    job: &Job,
    target: &Target,
    report: &Report,
) -> Start {
    let cluster = opened.reading.cluster.as_ref();
    let original = cluster.and_then(|c| c.pgdata.as_deref());
    start_line::compose(job, target, &report.brought, root.content.major, original)
}

/// Says what was restored, what it brought along, and how it is started.
///
/// # Errors
/// Those of the output.
pub fn print_report(
    cx: &Context,
    job: &Job,
    report: &Report,
    start: &Start,
    took: Duration,
) -> Result<()> {
    let out = &cx.out;
    let resumed = if report.resumed { "resumed and " } else { "" };
    out.line(&format!(
        "{resumed}restored backup {} into {}",
        job.backup, job.request.to
    ))?;
    let compared = match report.compared_files {
        Some(_) => ", all as in PostgreSQL's own manifest",
        None => "",
    };
    out.line(&format!(
        "  {}, {} in {}, every byte checked{compared}",
        human::count(report.files, "file"),
        human::size(report.raw_bytes),
        human::duration(took)
    ))?;
    for tablespace in &job.tablespaces {
        out.line(&format!(
            "  tablespace {} is in {}",
            tablespace.oid,
            tablespace.path.display()
        ))?;
    }
    for link in &report.links {
        out.line(&format!("  link \"{link}\" was not recreated"))?;
    }
    print_settings(cx, job, report)?;
    print_configuration(cx, report, start)?;
    out.line("Next:")?;
    out.line(&format!("  {}", start.command))?;
    start.notes.iter().try_for_each(|note| out.line(note))
}

/// Says what was written into postgresql.auto.conf: the plan shows its part already.
fn print_settings(cx: &Context, job: &Job, report: &Report) -> Result<()> {
    let is_planned = |setting: &&Setting| {
        let planned = job.plan.as_ref().map(|p| &p.recovery_settings);
        planned.is_some_and(|p| p.contains_key(&setting.name))
    };
    let (planned, others): (Vec<_>, Vec<_>) = report.settings.iter().partition(is_planned);
    let which = match (planned.is_empty(), others.is_empty()) {
        (true, _) => ":",
        (false, true) => ", those of the plan",
        (false, false) => ", those of the plan and:",
    };
    cx.out.line(&format!(
        "  {} in {AUTO_CONF}{which}",
        human::count(report.settings.len() as u64, "setting")
    ))?;
    for setting in others {
        cx.out.line(&format!("    {}", setting.line()?))?;
    }
    Ok(())
}

/// Says what the configuration makes the server run, as far as it was looked at.
fn print_configuration(cx: &Context, report: &Report, start: &Start) -> Result<()> {
    let out = &cx.out;
    let (code, not_read) = start.code_and_includes(&report.brought);
    if !code.is_empty() {
        out.line("The configuration runs code when the server starts:")?;
        code.iter()
            .try_for_each(|line| out.line(&format!("  {line}")))?;
    }
    if !not_read.is_empty() {
        out.line("It includes what was not looked at, because it is not in the backup:")?;
        not_read
            .iter()
            .try_for_each(|line| out.line(&format!("  {line}")))?;
    }
    if !start.configuration.absent.is_empty() {
        out.line("It includes what was not restored, and the server does not start without it:")?;
        let absent = start.configuration.absent.iter().map(settings::shown);
        for line in absent {
            out.line(&format!("  {line}"))?;
        }
    }
    Ok(())
}
