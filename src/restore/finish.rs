//! The end of a restore: what is not in the snapshot, the last checks, and the order in which the directory becomes startable.
//!
//! 1. settings, signal file, guard, backup_manifest; checks of pg_control, backup_label and the server's manifest
//! 2. everything is synced
//! 3. `pg_wal/pitr.restore` is removed: there is nothing left to copy; then the marks in the tablespaces
//! 4. pg_control gets its name: the commit point. Before it no server starts here; after it all of the above is durable
//!
//! Killed between 3 and 4, the next run finds pg_control's waiting name and `pg_wal/pitr.settings`, removes the marks and does step 4.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::os::fd::AsFd;

use rustix::fs::{Dir, FileType, Mode, OFlags};

use super::Source;
use super::extract::Destination;
use super::job::{Job, Purpose};
use super::manifest_check::ManifestCheck;
use super::settings::{self, Brought, StandbySettings};
use super::tablespace_mark;
use super::target_dir::{CONTROL, Target, WAITING_CONTROL};
use super::tree::{LOST_AND_FOUND, Tree, below, entries, target_error, write_error};
use crate::archive::datadir::GUARD;
use crate::archive::guard::{AUTO_CONF, COMMENT, Guard, SETTINGS, UNFINISHED, WrittenSettings};
use crate::archive::left_out::{self, MARKER, Marker};
use crate::durable;
use crate::err;
use crate::error::Result;
use crate::host::Host;
use crate::pg::conf;
use crate::pg::control::ControlFile;
use crate::pg::label::BackupLabel;
use crate::pg::manifest::{ManifestWriter, WalRange};
use crate::pg::timeline::TimelineId;
use crate::pg::version::Major;
use crate::repo::container::{Container, Kind};
use crate::repo::healed;
use crate::snapshot::filekey::Naming;
use crate::snapshot::reader::Snapshot;
use crate::store::Store;

const LABEL_LIMIT_BYTES: u64 = 64 << 10;
const CONTROL_BYTES: u64 = 64 << 10;

/// Requires that pg_control and backup_label are those of the backup: without the label a server would start from the wrong checkpoint.
///
/// # Errors
/// `Damaged`.
pub fn check_identity(destination: &Destination, source: &Source<'_>) -> Result<()> {
    let data = destination.data();
    let root = source.root;
    let missing = |name: &str| {
        err!(Damaged, "backup \"{}\" holds no \"{name}\"", root.head.id)
            .hint("The backup cannot be used. Restore another one: --backup ID.")
    };
    let control = data
        .read(WAITING_CONTROL.as_bytes(), CONTROL_BYTES)?
        .ok_or_else(|| missing(CONTROL))?;
    let control = ControlFile::parse(&control)
        .map_err(|e| e.context(format!("check pg_control of backup \"{}\"", root.head.id)))?;
    if control.system_identifier != root.content.system_identifier {
        return Err(err!(
            Damaged,
            "pg_control of backup \"{}\" is of another cluster",
            root.head.id
        ));
    }
    let label = data
        .read(b"backup_label", LABEL_LIMIT_BYTES)?
        .ok_or_else(|| missing("backup_label"))?;
    let label = BackupLabel::parse(&label)?;
    if label.start.lsn != root.content.start_lsn || label.checkpoint != root.content.checkpoint_lsn
    {
        return Err(err!(
            Damaged,
            "backup_label of backup \"{}\" is another backup's",
            root.head.id
        ));
    }
    if label.incremental_from.is_some() {
        return Err(err!(
            Damaged,
            "backup_label of backup \"{}\" is that of an incremental backup of the server",
            root.head.id
        ));
    }
    Ok(())
}

/// Writes the server's own manifest back, byte for byte. Returns whether there is one.
///
/// # Errors
/// `Damaged` when it is missing though the root names it, or fails its check; `TargetWrite`.
pub fn put_manifest(destination: &Destination, source: &Source<'_>, group: bool) -> Result<bool> {
    let root = source.root;
    let Some(hash) = &root.content.server_manifest else {
        return Ok(false);
    };
    let key = source.layout.server_manifest(&root.head.id);
    let data = destination.data();
    let written = |store: &dyn Store| {
        healed::read(store, &key, |store| {
            copy_manifest(data, store, source, hash, group)
        })
    };
    let own = written(source.store);
    source.spares.or_other(&key, own, written)?;
    Ok(true)
}

fn copy_manifest(
    data: &Tree,
    store: &dyn Store,
    source: &Source<'_>,
    hash: &str,
    group: bool,
) -> Result<()> {
    let root = source.root;
    let key = source.layout.server_manifest(&root.head.id);
    let object = store
        .open(&key)?
        .ok_or_else(|| err!(Damaged, "object \"{key}\" is missing"))?;
    let container =
        Container::open(object).map_err(|e| e.context(format!("open object \"{key}\"")))?;
    let identity = container.identity();
    if container.kind() != Kind::ServerManifest
        || blake3::Hash::from_bytes(identity.hash).to_hex().as_str() != hash
    {
        return Err(err!(
            Damaged,
            "object \"{key}\" is not the manifest of backup \"{}\"",
            root.head.id
        ));
    }
    if identity.raw_bytes > manifest_limit(root.head.file_count) {
        return Err(err!(
            Damaged,
            "object \"{key}\" says that the manifest of {} files has {} bytes",
            root.head.file_count,
            identity.raw_bytes
        ));
    }
    data.remove(b"backup_manifest")?;
    let (mut file, _) = data.make_file(b"backup_manifest", 0, group)?;
    container.read_body(&mut |piece| {
        file.write_all(piece)
            .map_err(|e| write_error("backup_manifest", e))
    })
}

/// Writes a manifest of the restored files, for pg_verifybackup: of this backup the server gave none.
///
/// # Errors
/// `TargetWrite`; `Damaged` as [`ManifestCheck::write`].
pub fn write_manifest(
    destination: &Destination,
    source: &Source<'_>,
    check: ManifestCheck,
    snapshot: &Snapshot<'_>,
    group: bool,
) -> Result<()> {
    let content = &source.root.content;
    let major = Major::from_server_version_num(content.server_version_num)?;
    let timeline = TimelineId::new(content.timeline)
        .ok_or_else(|| err!(Damaged, "backup \"{}\" has timeline 0", source.root.head.id))?;
    let wal = WalRange {
        timeline,
        start: content.start_lsn,
        end: content.stop_lsn,
    };
    let failed = |e| write_error("backup_manifest", e);
    let data = destination.data();
    data.remove(b"backup_manifest")?;
    let (file, _) = data.make_file(b"backup_manifest", 0, group)?;
    let file = BufWriter::new(file);
    let mut manifest =
        ManifestWriter::new(file, major, content.system_identifier).map_err(failed)?;
    check.write(snapshot, &mut manifest)?;
    let file = manifest.finish(&wal).map_err(failed)?;
    file.into_inner().map_err(|e| failed(e.into_error()))?;
    Ok(())
}

/// A manifest longer than this is none: a file takes a line, whose path may be written in hexadecimal.
fn manifest_limit(files: u64) -> u64 {
    files.saturating_mul(16 << 10).saturating_add(1 << 20)
}

/// The settings that go into postgresql.auto.conf.
pub enum Wanted {
    /// Settings of a restore: recorded, for they are taken away again.
    Restore(WrittenSettings),
    /// Settings of a standby: they stay.
    Standby(Vec<conf::Setting>),
}

impl Wanted {
    /// All of them, in their order.
    pub fn all(&self) -> Vec<conf::Setting> {
        match self {
            Wanted::Restore(written) => [
                &written.until_recovery_ended[..],
                &written.until_adopted[..],
            ]
            .concat(),
            Wanted::Standby(all) => all.clone(),
        }
    }
}

/// The settings of a job.
///
/// # Errors
/// `Internal` for a restore without a plan.
pub fn settings_of(job: &Job, brought: &Brought) -> Result<Wanted> {
    Ok(match &job.request.purpose {
        Purpose::Restore { .. } => {
            let plan = job.plan.as_ref();
            let wanted = plan.map(|p| &p.recovery_settings);
            let wanted = wanted.ok_or_else(|| err!(Internal, "a restore without a plan"))?;
            Wanted::Restore(settings::of_restore(wanted))
        }
        Purpose::Standby {
            primary_conninfo,
            slot,
        } => {
            let standby = StandbySettings {
                primary_conninfo,
                slot: slot.as_deref(),
                restore_command: &job.restore_command,
                timeline: job.timeline,
                parameters: &job.parameters,
            };
            Wanted::Standby(settings::of_standby(&standby, brought))
        }
    })
}

/// Writes settings, signal file, record and guard; returns all settings of the job, also those that the operator has with the same value.
///
/// # Errors
/// `TargetWrite`, `Full`; `Usage` for values that no file can carry.
pub fn put_settings(
    destination: &Destination,
    job: &Job,
    brought: &Brought,
    host: &Host,
    group: bool,
) -> Result<Vec<conf::Setting>> {
    let data = destination.data();
    let wanted = settings_of(job, brought)?;
    let all = wanted.all();
    let (mut written, comment, signal) = match wanted {
        Wanted::Restore(written) => (written, COMMENT, "recovery.signal"),
        Wanted::Standby(_) => (
            WrittenSettings::default(),
            "written by pitr standby",
            "standby.signal",
        ),
    };
    let before = match signal {
        "standby.signal" => superseded(&brought.auto, comment, &all),
        _ => brought.auto.clone(),
    };
    settings::leave_own(&mut written, &before);
    let added = match signal {
        "standby.signal" => all.clone(),
        _ => Wanted::Restore(written.clone()).all(),
    };
    let text = conf::append(&before, comment, &added)?;
    data.put(AUTO_CONF.as_bytes(), &text, group)?;
    data.put(signal.as_bytes(), b"", group)?;
    written.job = serde_json::to_value(job)
        .map_err(|e| err!(Internal, "could not serialize the restore").source(e))?;
    put_json(data, SETTINGS, &written)?;
    if !job.may_archive() {
        let guard = Guard {
            note: "This data directory is a restored copy. It must not archive into the repository it came from until \"pitr adopt\" removes this file.".into(),
            cluster: job.request.cluster.clone(),
            system_identifier: job.system_identifier,
            repository: job.repository.clone(),
            backup: job.backup.to_string(),
            restored: host.now(),
            program: crate::repo::event::PROGRAM.into(),
        };
        put_json(data, GUARD, &guard)?;
    }
    Ok(all)
}

/// The text without the settings that are written anew: a standby of a standby would else have one more block of them each time. Those of a
/// restore stay, for they count again when recovery has ended.
fn superseded(auto: &[u8], comment: &str, written: &[conf::Setting]) -> Vec<u8> {
    let mut earlier = conf::settings(auto);
    earlier.retain(|old| written.iter().any(|new| new.name == old.name));
    conf::without(auto, comment, &earlier).unwrap_or_else(|| auto.to_vec())
}

/// Makes sure that no session reaches the catalogs of the databases that are left out.
///
/// # Errors
/// `TargetWrite`, `Full`.
pub fn close_left_out(destination: &Destination, versions: &[Vec<u8>], group: bool) -> Result<()> {
    for path in versions {
        if let Some((tree, relative)) = destination.place_of(path)? {
            tree.put(relative, left_out::NO_VERSION, group)?;
        }
    }
    Ok(())
}

/// Writes which databases lie there without content: those that are left out, and those of which the backup has none.
///
/// # Errors
/// `TargetWrite`, `Full`.
pub fn put_marker(
    destination: &Destination,
    source: &Source<'_>,
    job: &Job,
    host: &Host,
    group: bool,
) -> Result<()> {
    let of_backup = &source.root.content.left_out_databases;
    let all: BTreeSet<_> = job.left_out.iter().chain(of_backup).cloned().collect();
    let marker = Marker {
        note: "The databases below lie here without their content, as files of zeros. Drop them: until then every backup by pitr of this data directory is partial.".into(),
        left_out_databases: all.into_iter().collect(),
        backup: job.backup.to_string(),
        restored: host.now(),
        program: crate::repo::event::PROGRAM.into(),
    };
    let data = destination.data();
    data.put(MARKER.as_bytes(), &json_of(MARKER, &marker)?, group)
}

fn put_json(data: &Tree, name: &str, value: &impl serde::Serialize) -> Result<()> {
    let json = json_of(name, value)?;
    data.put(format!("pg_wal/{name}").as_bytes(), &json, false)
}

fn json_of(name: &str, value: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(value)
        .map_err(|e| err!(Internal, "could not serialize \"{name}\"").source(e))?;
    json.push(b'\n');
    Ok(json)
}

/// Links the tablespaces.
///
/// # Errors
/// `TargetWrite`.
pub fn put_links(destination: &Destination, target: &Target) -> Result<()> {
    for tablespace in &target.tablespaces {
        let link = format!("pg_tblspc/{}", tablespace.oid);
        destination.data().link(link.as_bytes(), &tablespace.path)?;
    }
    Ok(())
}

/// Makes everything durable: each filesystem at once where that is sound, else file by file.
///
/// # Errors
/// `TargetWrite` when a sync fails: some of the bytes may be lost, so the restore is not complete.
pub fn sync(destination: &Destination) -> Result<()> {
    let mut synced = BTreeSet::new();
    for tree in destination.trees() {
        let tree = tree?;
        let failed = |e| write_error(&tree.path().display().to_string(), e);
        let device = rustix::fs::fstat(tree.root())
            .map_err(|e| failed(e.into()))?
            .st_dev;
        if synced.contains(&device) {
            continue;
        }
        if durable::sync_filesystem(tree.root()).map_err(failed)? {
            synced.insert(device);
        } else {
            sync_beneath(tree.root(), 0).map_err(failed)?;
        }
        // The name of the directory itself.
        let parent = tree.path().parent().unwrap_or(tree.path());
        durable::sync_directory_at(parent).map_err(failed)?;
    }
    sync_wal(destination, &synced)
}

/// Makes pg_wal durable where it is a filesystem of its own, which has the record and the guard.
fn sync_wal(destination: &Destination, synced: &BTreeSet<u64>) -> Result<()> {
    let failed = |e| write_error("pg_wal", e);
    let (own, _) = destination.data().device_and_inode()?;
    let Some(wal) = destination.wal() else {
        return Ok(());
    };
    let device = rustix::fs::fstat(wal).map_err(|e| failed(e.into()))?.st_dev;
    match device == own || synced.contains(&device) {
        true => Ok(()),
        false => sync_whole(wal).map_err(failed),
    }
}

/// Makes everything beneath a directory durable: its filesystem at once where that is sound, else file by file.
///
/// # Errors
/// Errors of the filesystem, of writes since the directory was opened, too.
pub fn sync_whole(directory: rustix::fd::BorrowedFd<'_>) -> std::io::Result<()> {
    match durable::sync_filesystem(directory)? {
        true => Ok(()),
        false => sync_beneath(directory, 0),
    }
}

/// Syncs every file of a directory, then the directory. Links are not followed.
fn sync_beneath(directory: rustix::fd::BorrowedFd<'_>, depth: u32) -> std::io::Result<()> {
    const DEEPEST: u32 = 64;
    if depth > DEEPEST {
        return Err(rustix::io::Errno::LOOP.into());
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for entry in entries(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        match kind(directory, &entry)? {
            FileType::Directory => match below(directory, name) {
                Ok(below) => sync_beneath(below.as_fd(), depth + 1)?,
                // Nothing of ours lies where we cannot look.
                Err(rustix::io::Errno::ACCESS) if name.to_bytes() == LOST_AND_FOUND.as_bytes() => {}
                Err(e) => return Err(e.into()),
            },
            FileType::RegularFile => {
                let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
                durable::sync_file(&std::fs::File::from(file))?;
            }
            // Links have no content of their own.
            _ => {}
        }
    }
    durable::sync_directory(directory)
}

/// The kind of an entry; not every filesystem says it in the listing.
pub(super) fn kind(
    directory: rustix::fd::BorrowedFd<'_>,
    entry: &rustix::fs::DirEntry,
) -> rustix::io::Result<FileType> {
    match entry.file_type() {
        FileType::Unknown => {
            let follow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            let stat = rustix::fs::statat(directory, entry.file_name(), follow)?;
            Ok(FileType::from_raw_mode(stat.st_mode))
        }
        known => Ok(known),
    }
}

/// Steps 3 and 4.
///
/// # Errors
/// `TargetWrite`.
pub fn commit(destination: &Destination, job: &Job, control: &'static str) -> Result<()> {
    let data = destination.data();
    remove_unfinished(data)?;
    tablespace_mark::remove(destination, job)?;
    name_control(data, job, control)
}

/// Steps 3 and 4 of a restore that is no standby's and takes no other's place. Doing them twice does no harm.
///
/// # Errors
/// `TargetWrite`.
pub fn commit_plain(data: &Tree) -> Result<()> {
    remove_unfinished(data)?;
    let is_named = data.path().join(CONTROL).exists();
    match is_named && !data.path().join(WAITING_CONTROL).exists() {
        true => Ok(()),
        false => take_name(data, CONTROL),
    }
}

pub(super) fn remove_unfinished(data: &Tree) -> Result<()> {
    let wal = data.directory(b"pg_wal")?;
    durable::remove_in(wal.as_fd(), UNFINISHED)
        .map_err(|e| write_error(&format!("pg_wal/{UNFINISHED}"), e))
}

fn take_name(data: &Tree, control: &'static str) -> Result<()> {
    let global = data.directory(b"global")?;
    let last = |path: &'static str| path.rsplit('/').next().unwrap_or(path);
    durable::name_in(global.as_fd(), last(WAITING_CONTROL), last(control))
        .map_err(|e| write_error(control, e))
}

/// Step 4: pg_control gets its name, or the one under which no server starts yet.
///
/// # Errors
/// `TargetWrite`.
pub fn name_control(data: &Tree, job: &Job, control: &'static str) -> Result<()> {
    take_name(data, control)?;
    if matches!(job.request.purpose, Purpose::Standby { .. }) {
        // Nothing of a standby's settings is ever taken away.
        let wal = data.directory(b"pg_wal")?;
        durable::remove_in(wal.as_fd(), SETTINGS)
            .map_err(|e| write_error(&format!("pg_wal/{SETTINGS}"), e))?;
    }
    Ok(())
}

/// Requires that an earlier run, or somebody else, has left nothing that is not the backup's: counts files of all directories that are the cluster's own.
///
/// # Errors
/// `Refused` naming how many there are too many.
pub fn check_nothing_else(destination: &Destination, naming: &Naming, expected: u64) -> Result<()> {
    let mut found = 0_u64;
    for own in destination.own_directories(naming) {
        let (prefix, directory) = own?;
        found += count_files(directory.as_fd(), 0)
            .map_err(|e| target_error(format!("read \"{prefix}\" of the copy"), e))?;
    }
    if found == expected {
        return Ok(());
    }
    Err(err!(
        Refused,
        "the directory holds {found} files, the restore makes {expected}"
    )
    .hint("No server can start on it. Somebody else has written there: empty the directory and its tablespaces, then restore again."))
}

fn count_files(directory: rustix::fd::BorrowedFd<'_>, depth: u32) -> rustix::io::Result<u64> {
    if depth > 64 {
        return Err(rustix::io::Errno::LOOP);
    }
    let mut count = 0;
    for entry in entries(directory)? {
        let entry = entry?;
        match kind(directory, &entry)? {
            // Files in it are the filesystem's.
            FileType::Directory if entry.file_name().to_bytes() == LOST_AND_FOUND.as_bytes() => {}
            FileType::Directory => {
                let below = below(directory, entry.file_name())?;
                count += count_files(below.as_fd(), depth + 1)?;
            }
            FileType::Symlink => {}
            _ => count += 1,
        }
    }
    Ok(count)
}

/// Files that the end of a restore adds to those of the backup.
pub fn added_files(job: &Job, (brings_auto_conf, brings_marker): (bool, bool)) -> u64 {
    // A partial copy has the marker in the place of the manifest.
    let is_partial = !job.left_out.is_empty();
    let last = u64::from(!(is_partial && brings_marker));
    // Signal file, record of the job, record of the settings.
    3 + last + u64::from(!brings_auto_conf) + u64::from(!job.may_archive())
}

/// Removes what a killed run left of temporary files in pg_wal.
///
/// # Errors
/// `TargetWrite`.
pub fn sweep_temporaries(data: &Tree) -> Result<()> {
    let wal = data.directory(b"pg_wal")?;
    let failed = |e| target_error("remove temporary files in \"pg_wal\"", e);
    for entry in Dir::read_from(&wal).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if name
            .to_bytes()
            .starts_with(durable::TEMPORARY_PREFIX.as_bytes())
        {
            rustix::fs::unlinkat(&wal, name, rustix::fs::AtFlags::empty()).map_err(failed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_of_a_standby_has_one_block_of_settings() {
        let comment = "written by pitr standby";
        let mut auto = b"work_mem = '4MB'\n".to_vec();
        for slot in ["one", "two"] {
            let written = [conf::Setting::new("primary_slot_name", slot)];
            auto = superseded(&auto, comment, &written);
            auto = conf::append(&auto, comment, &written).unwrap();
        }
        let expected = "work_mem = '4MB'\n# written by pitr standby\nprimary_slot_name = 'two'\n";
        assert_eq!(String::from_utf8(auto).unwrap(), expected);
    }

    #[test]
    fn files_are_synced_one_by_one_where_a_filesystem_cannot_be() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/c"), "x").unwrap();
        std::os::unix::fs::symlink("/nonexistent", dir.path().join("a/link")).unwrap();
        let tree = Tree::open(dir.path(), None).unwrap();
        sync_beneath(tree.root(), 0).unwrap();
        assert_eq!(count_files(tree.root(), 0).unwrap(), 1);
        std::fs::set_permissions(
            dir.path().join("a"),
            std::os::unix::fs::PermissionsExt::from_mode(0o0),
        )
        .unwrap();
        let readable = std::fs::read_dir(dir.path().join("a")).is_ok();
        assert_eq!(sync_beneath(tree.root(), 0).is_ok(), readable);
    }
}
