//! Restore: executes a plan into an empty directory, and makes sure that nothing else happens.
//!
//! | file | what it owns |
//! |---|---|
//! | `target_dir` | everything that is refused before the first write |
//! | `room` | room that nobody knows for certain before it is used |
//! | `job` | the restore that is to be done, as a value that survives a kill |
//! | `tablespace_mark` | keeps a tablespace's directory for one restore |
//! | `claim` | keeps the backup from being deleted meanwhile |
//! | `sweep` | what a data directory that is restored in place has beyond the backup |
//! | `extract` | directories, files and their bytes |
//! | `hollow` | the same directory without the content, which a mount brings |
//! | `unlogged` | the relations that are left out, because the backup caught them before their init fork was created |
//! | `unchanged` | the frames that need not be fetched, because the target has their bytes |
//! | `databases` | the choice of databases of a cluster that are restored with their content |
//! | `needed` | the content that need not be fetched, because no restored file holds it |
//! | `manifest_check` | the copied files against the server's own manifest |
//! | `configuration` | the configuration that came along, with what it includes |
//! | `settings` | the settings that the server gets, and the code that it would run |
//! | `finish` | the last checks, and the order in which the directory becomes startable |
//! | `tree` | nothing is written outside of the target |
//! | `replace` | a restored cluster takes the place of another one, and gives it back |
//! | `adopt` | a copy becomes a cluster that may archive |
//!
//! Write order: the directory and `pg_wal/pitr.restore` (the job); marks in the tablespaces; directories and files; content; settings, guard, manifest; one sync
//! of everything; the job is removed, then the marks; global/pg_control gets its name. Without the latter no server starts, so a directory that was
//! not restored completely cannot be mistaken for one that was. Killed at any point, the same command finishes the same job.

pub mod adopt;
pub mod claim;
pub mod configuration;
pub mod content;
pub mod databases;
pub mod extract;
pub mod finish;
mod from_disk;
pub mod hollow;
mod in_place;
pub mod job;
pub mod manifest_check;
mod needed;
pub mod replace;
#[cfg(test)]
mod rights_tests;
mod room;
pub mod settings;
mod sweep;
mod tablespace_mark;
pub mod target_dir;
pub mod tree;
mod unchanged;
pub mod unlogged;

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use rustix::fs::AtFlags;

use crate::archive::guard::UNFINISHED;
use crate::archive::left_out::MARKER;
use crate::durable::{self, NewFile};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::host::Host;
use crate::pg::conf::Setting;
use crate::repo::layout::ClusterLayout;
use crate::repo::root::BackupRoot;
use crate::snapshot::reader::Snapshot;
use crate::snapshot::spare::Spares;
use crate::store::Store;
use crate::ticking::ticking;
use crate::wal::unlogged::RelationName;
use claim::Claim;
use extract::{Copied, Copying, Destination, Survey};
use job::{Earlier, Job};
use manifest_check::ManifestCheck;
use target_dir::{CONTROL, Found, Need, Target, WAITING_CONTROL};
use tree::{Tree, write_error};

/// WAL that is kept in pg_wal while a server recovers, at most: restartpoints recycle beyond max_wal_size, 1 GiB unless set.
const WAL_KEPT_BYTES: u64 = 1 << 30;
/// Segments that are there besides.
const SEGMENTS_BESIDES: u64 = 2;
/// The name that pg_control has in `global` until it is certain that no server reads it.
const REMOVED: &str = "pg_control.pitr-removed";

/// The repository that a backup is read from.
pub struct Source<'a> {
    /// The repository.
    pub store: &'a dyn Store,
    pub layout: &'a ClusterLayout,
    pub root: &'a BackupRoot,
    /// The repositories from which objects are taken that are damaged or missing there.
    pub spares: &'a Spares<'a>,
}

impl<'a> Source<'a> {
    /// Opens the backup's map.
    ///
    /// # Errors
    /// Those of [`Snapshot::open_with`].
    pub fn snapshot(&self) -> Result<Snapshot<'a>> {
        Snapshot::open_with(self.store, self.layout, self.root, Some(self.spares))
    }

    /// The error, unless its cause is that the backup was deleted after it had been chosen.
    pub fn unless_deleted(&self, error: Error) -> Error {
        claim::unless_deleted(self.store, self.layout, &self.root.head.id, error)
    }
}

/// The result of a restore.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Whether an earlier run had begun it.
    pub resumed: bool,
    /// Bytes written, and bytes that were there already.
    pub copied: Copied,
    /// Files and links of a data directory restored in place that the backup does not have.
    pub removed_files: u64,
    /// Files of the backup.
    pub files: u64,
    pub raw_bytes: u64,
    /// Files whose checksum was compared with the server's own manifest; none when it gave none.
    pub compared_files: Option<u64>,
    /// Settings of the restore in postgresql.auto.conf.
    pub settings: Vec<Setting>,
    /// Links that were not recreated.
    pub links: Vec<String>,
    /// Files of unlogged relations that were left out.
    pub unlogged_files: u64,
}

/// Requires room for the restore before its first write; returns what the backup holds. The relations of `unlogged` are left out. A restore
/// that `is_hollow` needs room for WAL alone.
///
/// # Errors
/// `Refused` with numbers; `Damaged` when the map fails a check; `NotFound` when the backup was deleted meanwhile.
pub fn survey(
    (source, snapshot): (&Source<'_>, &Snapshot<'_>),
    job: &Job,
    unlogged: BTreeSet<RelationName>,
    target: &Target,
    is_hollow: bool,
) -> Result<Survey> {
    let look = || -> Result<Survey> {
        let mut survey = extract::survey(snapshot, &job.left_out, unlogged)?;
        survey.brought = configuration::brought(snapshot, &survey, target)?;
        Ok(survey)
    };
    let mut survey = look().map_err(|e| source.unless_deleted(e))?;
    let segment = source.root.content.wal_segment_size_bytes;
    let replayed = job.plan.as_ref().map(|p| p.bytes_to_replay);
    let wal = |kept: u64| replayed.unwrap_or(kept).min(kept) + SEGMENTS_BESIDES * segment;
    let need = |wal: u64| match is_hollow {
        true => Need::of_wal(wal),
        false => survey.need_of(target, wal),
    };
    let version = extract::version_of(snapshot.naming());
    let least = wal(WAL_KEPT_BYTES);
    let mut scarce = target_dir::check_space(target, &need(least), &version)?;
    // The settings are limits, which recovery need not reach: they are no reason to refuse.
    let kept = survey.brought.kept_wal_bytes();
    let most = kept.map_or(least, wal);
    if most > least
        && let Err(e) = target_dir::check_space(target, &need(most), &version)
    {
        scarce.push(format!(
            "the server may keep {most} bytes of WAL while it recovers (max_wal_size, wal_keep_size), and {e}: recovery stops where it fills up. Set less in postgresql.auto.conf before the start"
        ));
    }
    survey.scarce = scarce;
    Ok(survey)
}

/// Does the job, of which `survey` was made. The target was checked, and is still as it was found.
///
/// # Errors
/// `Refused` before the first write; `Damaged` for what fails a check; `TargetWrite` and `Full`, after which the same call resumes;
/// `Interrupted`.
pub fn run(
    source: &Source<'_>,
    job: &Job,
    target: &Target,
    survey: &Survey,
    earlier: &Earlier,
    jobs: usize,
    host: &Host,
) -> Result<Report> {
    if job.backup_nonce != source.root.head.nonce || job.backup != source.root.head.id {
        return Err(err!(
            Refused,
            "backup \"{}\" is not the one that the restore began with",
            job.backup
        ));
    }
    if let Earlier::LastStep(_) = earlier {
        return last_step(source, job, target, survey);
    }
    // A mark that came since does not keep a restore that has begun from its end: the record fixes the backup.
    let planned = (*earlier == Earlier::None).then_some(job.planned);
    let mut claim = Claim::take(source.store, source.layout, host, &job.backup, planned)?;
    let done = copy_all(
        (source, job, target, survey),
        earlier,
        jobs,
        host,
        &mut || {
            if let Some(claim) = &mut claim {
                claim.keep();
            }
            Ok(())
        },
    );
    match (claim, &done) {
        (Some(claim), Ok(_)) => claim.complete(source.store, source.layout),
        (Some(claim), Err(_)) => claim.release(),
        (None, _) => {}
    }
    done.map_err(|e| match e.code() {
        Code::Damaged | Code::Findings if e.hint_text().is_none() => e.hint(
            "No server can start on what was restored so far.\nRun pitr verify to see what else is damaged, and restore another backup into an empty directory: --backup ID",
        ),
        _ => e,
    })
}

fn last_step(source: &Source<'_>, job: &Job, target: &Target, survey: &Survey) -> Result<Report> {
    let data = Tree::open(&target.data, target.owner)?;
    // One that has yet to replace another directory may have it already.
    if data.stat(WAITING_CONTROL.as_bytes())?.is_some() {
        tablespace_mark::remove(&Destination::open(target)?, job)?;
        finish::name_control(&data, job, target.control)?;
    }
    let settings = finish::settings_of(job, &survey.brought)?.all();
    Ok(Report {
        resumed: true,
        files: source.root.head.file_count,
        raw_bytes: survey.restored_bytes(),
        settings,
        links: survey.links.clone(),
        unlogged_files: survey.unlogged.file_count,
        ..Report::default()
    })
}

fn copy_all(
    (source, job, target, survey): (&Source<'_>, &Job, &Target, &Survey),
    earlier: &Earlier,
    jobs: usize,
    host: &Host,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<Report> {
    // A data directory that is restored in place is an unfinished restore from its first step on.
    let is_resumed = *earlier != Earlier::None || matches!(target.found, Found::Data { .. });
    let snapshot = ticking(tick, || {
        fault::pause("restore-map");
        source.snapshot()
    })?;
    let mut snapshot = snapshot.spooling(&host.scratch);
    if target.is_whole_cluster() {
        snapshot.look_up_in_order();
        ticking(tick, || in_place::check(target, &snapshot, &host.stop))?;
    }
    let destination = prepare(target, job, *earlier != Earlier::None, survey.group, host)?;
    tablespace_mark::put(&destination, job, target, host.random())
        .map_err(|e| withdrawn(&destination, job, e))?;
    fault::pause("restore-control");
    if job.request.delta {
        take_control_away(&destination, job)?;
    }
    let removed_files = match is_resumed && job.request.delta {
        true => ticking(tick, || sweep::sweep(&snapshot, &destination, &host.stop))?,
        false => 0,
    };
    ticking(tick, || {
        let stop = &host.stop;
        extract::lay_out(
            &snapshot,
            &destination,
            survey,
            is_resumed,
            stop,
            &mut |_, _, _| {},
        )
    })?;
    finish::sweep_temporaries(destination.data())?;
    let folder = target.data.join("pg_wal");
    let check = ManifestCheck::new(&folder, survey.oids_left_out(), survey.unlogged.clone());
    let add = |path: &[u8], position, length, crc| check.add(path, position, length, crc);
    let copied = extract::copy(
        &snapshot,
        &destination,
        survey,
        Copying {
            jobs,
            is_resumed,
            folder: &folder,
            stop: &host.stop,
            checksums: &add,
            progress: host.progress.as_ref(),
            tick,
        },
    )?;
    finish::check_identity(&destination, source)?;
    finish::put_links(&destination, target)?;
    let group = survey.group;
    // The server's own lists files that are left out.
    let has_manifest =
        survey.unlogged.relations.is_empty() && finish::put_manifest(&destination, source, group)?;
    let settings = finish::put_settings(&destination, job, &survey.brought, host, group)?;
    let compared_files = match has_manifest {
        true => Some(compare(check, &snapshot, &destination)?),
        false if !survey.is_partial() => {
            finish::write_manifest(&destination, source, check, &snapshot, group)?;
            None
        }
        false => None,
    };
    let brings_marker = snapshot.has_file(MARKER)?;
    if survey.is_partial() {
        // No manifest of the whole is true of it.
        destination.data().remove(b"backup_manifest")?;
        finish::close_left_out(&destination, &survey.versions_left_out, group)?;
        finish::put_marker(&destination, source, job, host, group)?;
    }
    if is_resumed {
        let brought = (survey.brought.has_auto, brings_marker);
        let added = finish::added_files(job, brought);
        let expected = survey.restored_files + added;
        finish::check_nothing_else(&destination, snapshot.naming(), expected)?;
    }
    host.progress.phase("sync", None);
    finish::sync(&destination)?;
    tick()?;
    finish::commit(&destination, job, target.control)?;
    Ok(Report {
        resumed: *earlier != Earlier::None,
        removed_files,
        copied,
        files: survey.files,
        raw_bytes: survey.restored_bytes(),
        compared_files,
        settings,
        links: survey.links.clone(),
        unlogged_files: survey.unlogged.file_count,
    })
}

fn compare(
    check: ManifestCheck,
    snapshot: &Snapshot<'_>,
    destination: &Destination,
) -> Result<u64> {
    let manifest = destination.data().existing(b"backup_manifest")?;
    check.finish(snapshot, manifest)
}

/// Makes the directories, and the job durable in pg_wal, before anything else. The data directory is locked as long as what is returned lives.
fn prepare(
    target: &Target,
    job: &Job,
    is_resumed: bool,
    group: bool,
    host: &Host,
) -> Result<Destination> {
    fault::pause("restore-unlocked");
    let data = Tree::make(&target.data, target.owner, group)?;
    lock(&data)?;
    if is_resumed
        && data
            .stat(format!("pg_wal/{UNFINISHED}").as_bytes())?
            .is_none()
    {
        return Err(err!(
            Locked,
            "another process has just finished the restore into \"{}\"",
            target.data.display()
        ));
    }
    target_dir::check_as_found(target, job.request.delta)?;
    data.make_directory(b"pg_wal", group)?;
    durable::sync_directory(data.root())
        .map_err(|e| write_error(&target.data.display().to_string(), e))?;
    finish::sweep_temporaries(&data)?;
    if !is_resumed {
        let failed = |e| write_error(&format!("pg_wal/{UNFINISHED}"), e);
        let wal = data.directory(b"pg_wal")?;
        let mut file = NewFile::create(wal, UNFINISHED, host.random()).map_err(failed)?;
        std::io::Write::write_all(&mut file, &job.encode()?).map_err(failed)?;
        if file.publish().map_err(failed)? == durable::Published::Exists {
            let shown = target.data.display();
            return Err(err!(
                Refused,
                "another restore into \"{shown}\" has just begun"
            ));
        }
        if let Some(owner) = target.owner {
            let wal = data.directory(b"pg_wal")?;
            let (uid, gid) = (Some(owner.uid), Some(owner.gid));
            rustix::fs::chownat(&wal, UNFINISHED, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| failed(e.into()))?;
        }
    }
    Destination::make(target, data, group)
}

/// Takes marks and record away again where nothing of a whole cluster was changed yet, so that it is none that a restore left unfinished.
fn withdrawn(destination: &Destination, job: &Job, cause: Error) -> Error {
    let data = destination.data();
    let is_whole = job.request.delta && matches!(data.stat(CONTROL.as_bytes()), Ok(Some(_)));
    let removed = is_whole
        && tablespace_mark::remove(destination, job).is_ok()
        && finish::remove_unfinished(data).is_ok();
    match removed {
        true => {
            let before = "Nothing was changed: a server can start on the directory as before.";
            let hint = match cause.code() {
                Code::Refused => cause.hint_text().unwrap_or_default().to_owned(),
                _ => "Run the same command again once the cause is gone.".to_owned(),
            };
            cause.hint(format!("{before} {hint}"))
        }
        false => cause,
    }
}

/// Takes pg_control away: from here on no server starts on it, whatever happens. A server makes postmaster.pid before it reads pg_control, so one that was
/// quicker is seen behind that, and gets its file back.
fn take_control_away(destination: &Destination, job: &Job) -> Result<()> {
    let data = destination.data();
    if data.stat(CONTROL.as_bytes())?.is_none() {
        return Ok(());
    }
    let failed = |e: std::io::Error| write_error(CONTROL, e);
    let global = data.directory(b"global")?;
    let global = global.as_fd();
    durable::name_in(global, "pg_control", REMOVED).map_err(failed)?;
    if data.stat(b"postmaster.pid")?.is_some() {
        durable::name_in(global, REMOVED, "pg_control").map_err(failed)?;
        // The record goes last: a mark that nobody knows would look like another restore.
        tablespace_mark::remove(destination, job)?;
        finish::remove_unfinished(data)?;
        return Err(err!(
            Refused,
            "a server was started in \"{}\" meanwhile: postmaster.pid is there",
            data.path().display()
        )
        .hint("Nothing was changed. Stop the server, then run the same command again."));
    }
    durable::remove_in(global, REMOVED).map_err(failed)
}

/// Locks the directory as long as it is open: one process restores into it at a time.
fn lock(data: &Tree) -> Result<()> {
    use rustix::fs::FlockOperation::NonBlockingLockExclusive;
    match rustix::fs::flock(data.root(), NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(err!(
            Locked,
            "another process restores into \"{}\"",
            data.path().display()
        )
        .hint("Nothing was changed. Wait for it, or stop it: the restore can be resumed.")),
        // Some network filesystems have no locks.
        Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOSYS | rustix::io::Errno::NOLCK) => {
            Ok(())
        }
        Err(e) => Err(write_error(&data.path().display().to_string(), e.into())),
    }
}
