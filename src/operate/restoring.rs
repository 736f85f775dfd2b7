//! A restore or a standby that is ready to be written: its place, its job, what the server is started with.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::made_tablespaces;
use super::opened::{self, Opened};
use super::owner::{Access, User};
use super::replayed;
use super::session::Session;
use super::start_line::{self, Start};
use super::unlogged;
use crate::config::Settings;
use crate::err;
use crate::error::{Error, Result};
use crate::plan::recovery::Plan;
use crate::repo::event::Writer;
use crate::repo::root::BackupRoot;
use crate::restore::extract::{LeftOut, Survey};
use crate::restore::job::{Earlier, Job, Purpose};
use crate::restore::replace::{self, New, Old, Standing};
use crate::restore::settings::{self, Brought};
use crate::restore::target_dir::{self, Mapping, Target, Wanted};
use crate::restore::{self, Report, Source};
use crate::snapshot::spare::Spares;
use crate::wal::tablespaces::Made;

/// The place that the operator names.
#[derive(Default)]
pub struct Place {
    /// The data directory, absolute.
    pub to: PathBuf,
    mappings: Vec<Mapping>,
    as_in_backup: bool,
    repositories: Vec<PathBuf>,
    home: Option<PathBuf>,
    delta: bool,
    is_hollow: bool,
    is_private: bool,
    replaces: Option<Old>,
    asked: String,
}

impl Place {
    /// The place as written. Tablespaces without a mapping go where the backup says, if `as_in_backup` allows it.
    pub fn new(
        session: &Session,
        settings: &Settings,
        to: &Path,
        mappings: Vec<Mapping>,
        as_in_backup: bool,
    ) -> Place {
        let repositories = settings.repositories.iter();
        let repositories = repositories.filter_map(|r| r.location.directory());
        Place {
            to: session.environment.absolute(to),
            mappings,
            as_in_backup,
            repositories: repositories.map(Path::to_owned).collect(),
            home: session.environment.home().map(Path::to_owned),
            ..Place::default()
        }
    }

    /// The same place, in which a data directory may be restored in place.
    #[must_use]
    pub fn in_place(self, delta: bool) -> Place {
        Place { delta, ..self }
    }

    /// The same place, in which the content is not copied.
    #[must_use]
    pub fn hollow(self, is_hollow: bool) -> Place {
        Place { is_hollow, ..self }
    }

    /// The same place, whose server makes no tablespace where others have files.
    #[must_use]
    pub fn private(self, is_private: bool) -> Place {
        Place { is_private, ..self }
    }

    /// A place beside a data directory, which is replaced in the end; `asked` is recorded then.
    #[must_use]
    pub fn replacing(self, old: Option<Old>, asked: String) -> Place {
        Place {
            to: old.as_ref().map_or(self.to, Old::waiting),
            replaces: old,
            asked,
            ..self
        }
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            to: &self.to,
            mappings: &self.mappings,
            as_in_backup: self.as_in_backup,
            repositories: &self.repositories,
            home: self.home.as_deref(),
            delta: self.delta,
            replaces: self.replaces.as_ref(),
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

/// A restore that was decided and checked; nothing is written yet.
pub struct Prepared {
    /// The repository that gives the backup.
    pub opened: Opened,
    /// Everything that was decided. The settings in its plan are those that are written.
    pub job: Job,
    root: BackupRoot,
    target: Target,
    survey: Survey,
    earlier: Earlier,
    /// The tablespaces that recovery makes, wherever the others are led.
    pub made: Made,
    /// The data directory that is replaced.
    pub replaces: Option<Old>,
    asked: String,
}

/// A restore that was written.
pub struct Restored {
    /// The report of what was done.
    pub report: Report,
    /// The line that starts the server.
    pub start: Start,
    /// The replacement of another data directory.
    pub replaced: Option<Standing>,
    /// How long it took.
    pub took: Duration,
}

impl Prepared {
    /// Checks the places, the space and the commands that PostgreSQL will run, and completes the settings.
    ///
    /// # Errors
    /// Those of [`Place::place`] and [`restore::survey`]; `Config` when `pitr-restore` does not lie beside this program.
    pub(super) fn new(
        session: &Session,
        (opened, job, root): (Opened, Job, BackupRoot),
        (place, target): (&Place, Target),
        earlier: Earlier,
    ) -> Result<Prepared> {
        let target = place.place(target, &root)?;
        check_not_shared(&opened.reading.settings, place, &target, root.content.major)?;
        let mut job = Job {
            tablespaces: target.tablespaces.clone(),
            ..job
        };
        let (survey, made) = {
            let spares = opened.spares(session);
            let source = source(&opened, &root, &spares);
            // The map is opened once: across a network that takes several round trips.
            let snapshot = source.snapshot().map_err(|e| source.unless_deleted(e))?;
            let (unlogged, made) = match &earlier {
                // All files are there.
                Earlier::LastStep(_) => Default::default(),
                _ => replayed::of_job(session, &opened, (&job, &root), |replayed| {
                    let unlogged = unlogged::left_out(replayed, (&source, &snapshot))?;
                    Ok((unlogged, replayed.tablespaces(root.content.start_lsn)?))
                })?,
            };
            let of = (&source, &snapshot);
            let mut survey = restore::survey(of, &job, unlogged, &target, place.is_hollow)?;
            survey.scarce.iter().for_each(|scarce| session.warn(scarce));
            if let (Earlier::None, Some(plan)) = (&earlier, &mut job.plan) {
                survey.control = opened::add_parameters_of(plan, (&root.head.id, &snapshot));
            }
            (survey, made)
        };
        let replaces = place.replaces.as_ref();
        if !place.is_private {
            let placed = &target.tablespaces;
            made_tablespaces::require_free(&made, root.content.major, placed, replaces)?;
            let user = server_user(&target).map_or_else(|_| "postgres".into(), |user| user.name());
            for absent in made_tablespaces::absent(&made, placed, replaces, &user) {
                session.warn(&absent);
            }
        }
        if let (Purpose::Restore { adopt, .. }, Some(plan)) = (&job.request.purpose, &mut job.plan)
        {
            let is_partial =
                !(job.left_out.is_empty() && root.content.left_out_databases.is_empty());
            let settings = &mut plan.recovery_settings;
            settings::complete(settings, (*adopt, is_partial), &survey.brought);
        }
        check_commands(session, &target, &opened)?;
        Ok(Prepared {
            opened,
            job,
            root,
            target,
            survey,
            earlier,
            made,
            replaces: place.replaces.clone(),
            asked: place.asked.clone(),
        })
    }

    /// The job as it is when all is done: in the place of the data directory that is replaced.
    pub fn final_job(&self) -> Job {
        let mut job = self.job.clone();
        if let Some(old) = &self.replaces {
            job.request.to = old.data.to_string_lossy().into_owned();
        }
        job
    }

    /// The plan that the job carries out.
    ///
    /// # Errors
    /// `Internal` where it carries out none: a standby follows its primary.
    pub fn plan(&self) -> Result<&Plan> {
        let plan = self.job.plan.as_ref();
        plan.ok_or_else(|| err!(Internal, "a restore without a plan"))
    }

    /// Whether a data directory is overwritten in place.
    pub fn is_in_place(&self) -> bool {
        self.target.is_whole_cluster()
    }

    /// The databases whose content is left out, with their size.
    pub fn left_out(&self) -> Vec<LeftOut> {
        self.survey.left_out(&self.job.left_out)
    }

    /// The oids of all databases whose content the copy will lack, be it that the backup lacks it already.
    pub fn left_out_oids(&self) -> Vec<u32> {
        let already = &self.root.content.left_out_databases;
        let all = self.job.left_out.iter().chain(already);
        all.map(|database| database.oid).collect()
    }

    /// Whether the backup lacks the content of databases.
    pub fn is_partial(&self) -> bool {
        !self.root.content.left_out_databases.is_empty()
    }

    /// The configuration that comes with the backup.
    pub fn brought(&self) -> &Brought {
        &self.survey.brought
    }

    /// Writes it, on so many cores; all of them without a number. In the end it takes the place of the data directory that it replaces.
    ///
    /// # Errors
    /// Those of [`restore::run`] and [`replace::replace`].
    pub fn run(&self, session: &Session, jobs: Option<u16>) -> Result<Restored> {
        let mut restored = self.copy(session, jobs)?;
        let replaced = self.replaces.as_ref().map(|old| {
            let plan = self.job.plan.as_ref();
            let new = New {
                asked: &self.asked,
                backup: self.job.backup.to_string(),
                target: plan.map_or_else(String::new, |plan| plan.target.target.to_string()),
                tablespaces: &self.job.tablespaces,
            };
            replace::replace(old, &new, &session.host)
        });
        restored.replaced = replaced.transpose()?;
        Ok(restored)
    }

    /// Writes it, and leaves it where it was written.
    ///
    /// # Errors
    /// Those of [`restore::run`].
    pub fn copy(&self, session: &Session, jobs: Option<u16>) -> Result<Restored> {
        let spares = self.opened.spares(session);
        let source = source(&self.opened, &self.root, &spares);
        let started = Instant::now();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let jobs = jobs.map_or(cores, usize::from);
        let (job, target) = (&self.job, &self.target);
        let report = restore::run(
            &source,
            job,
            target,
            &self.survey,
            &self.earlier,
            jobs,
            &session.host,
        );
        tell_taken(session, &self.opened, job, &spares);
        let (report, took) = (report?, started.elapsed());
        Ok(Restored {
            start: self.start_line(),
            report,
            replaced: None,
            took,
        })
    }
}

impl Prepared {
    /// The repository that the backup is read from.
    pub fn source<'a>(&'a self, spares: &'a Spares<'a>) -> Source<'a> {
        source(&self.opened, &self.root, spares)
    }

    /// The place that was checked, and the content of the backup.
    pub fn place(&self) -> (&Target, &Survey) {
        (&self.target, &self.survey)
    }

    /// The major of the backup.
    pub fn major(&self) -> u32 {
        self.root.content.major
    }

    /// The line that starts a server on the directory.
    pub fn start_line(&self) -> Start {
        let cluster = self.opened.reading.cluster.as_ref();
        let original = cluster.and_then(|c| c.pgdata.as_deref());
        let brought = &self.survey.brought;
        let mut target = self.target.clone();
        if let Some(old) = &self.replaces {
            target.data.clone_from(&old.data);
        }
        start_line::compose(&self.final_job(), &target, brought, self.major(), original)
    }
}

fn source<'a>(opened: &'a Opened, root: &'a BackupRoot, spares: &'a Spares<'a>) -> Source<'a> {
    Source {
        store: opened.reading.repository.store(),
        layout: &opened.layout,
        root,
        spares,
    }
}

/// Requires that no tablespace which is written in place, or moved aside, is one of a configured data directory, too. A copy that was made without its
/// tablespaces has links that lead to those of the original.
///
/// # Errors
/// `Refused`.
fn check_not_shared(settings: &Settings, place: &Place, target: &Target, major: u32) -> Result<()> {
    let (own, spaces): (&Path, Vec<&Path>) = match &place.replaces {
        Some(old) => (old.data.as_path(), old.tablespaces().collect()),
        None if place.delta => {
            let spaces = target.tablespaces.iter().map(|one| one.real.as_path());
            (target.data.as_path(), spaces.collect())
        }
        None => return Ok(()),
    };
    let others = settings.clusters.iter().filter_map(|c| c.pgdata.as_deref());
    // Another major has a directory of its own in the place of a tablespace, as behind pg_upgrade.
    let is_other = |data: &&Path| {
        let version = std::fs::read_to_string(data.join("PG_VERSION"));
        !is_same_directory(data, own) && version.is_ok_and(|v| v.trim() == major.to_string())
    };
    for other in others.filter(is_other) {
        let shared = |space: &&&Path| target_dir::is_linked_from(other, space);
        if let Some(space) = spaces.iter().find(shared) {
            return Err(err!(
                Refused,
                "\"{}\" is a tablespace of \"{}\", too, which is configured: its files would be lost there",
                space.display(),
                other.display()
            )
            .hint(format!(
                "Nothing was changed. A copy of a data directory alone has the tablespaces of the original. Restore into an empty directory with --tablespace-mapping, or, with --delta, map each tablespace to an empty directory. If no server is to run in \"{}\" any more, move it away.",
                other.display()
            )));
        }
    }
    Ok(())
}

/// Whether two paths lead to one directory, also by a second mount.
fn is_same_directory(a: &Path, b: &Path) -> bool {
    let inode = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    matches!((inode(a), inode(b)), (Ok(a), Ok(b)) if a == b)
}

/// The user whom the server runs as: the owner of its files.
fn server_user(target: &Target) -> std::io::Result<User> {
    let existing = target.data.ancestors().find(|p| p.exists());
    match (target.owner, existing) {
        (Some(_), Some(existing)) => User::owner_of(existing),
        _ => Ok(User::of_process()),
    }
}

/// Requires the program that PostgreSQL runs while it recovers, and warns of what the server's user will not be able to use.
///
/// # Errors
/// `Config` when `pitr-restore` does not lie beside this program.
fn check_commands(session: &Session, target: &Target, opened: &Opened) -> Result<()> {
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
    opened.reading.warn_of_passphrases(session);
    let Ok(user) = server_user(target) else {
        return Ok(());
    };
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
            session.warn(&format!(
                "the server's user {} cannot use \"{}\", so recovery will fail: correct the permissions of \"{}\"",
                user.name(),
                path.display(),
                obstacle.display()
            ));
        }
    }
    Ok(())
}

/// Says which objects had to be taken from another repository, and records their damage, so that plans and people know.
fn tell_taken(session: &Session, opened: &Opened, job: &Job, spares: &Spares<'_>) {
    let store = opened.reading.repository.store();
    let subject = job.backup.to_string();
    let mut damaged = spares.taken();
    damaged.retain(|one| !one.is_frozen);
    for one in &damaged {
        session.warn(&format!(
            "\"{}\" is damaged in repository \"{}\" and was taken from \"{}\" ({})",
            one.object, opened.reading.configured.name, one.from, one.detail
        ));
    }
    let Some(first) = damaged.first() else { return };
    let host = session.host.clone();
    let writer = Writer::of(&host);
    let what = (first.object.as_str(), first.detail.as_str());
    if let Err(e) = writer.record_damage(store, &opened.layout, &subject, what) {
        session.warn(&format!("the damage could not be recorded there: {e}"));
    }
}
