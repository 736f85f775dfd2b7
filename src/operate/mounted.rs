//! A restore whose content is brought when it is read: the directory is laid out, mounted over, and given to work that needs it.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuser::{Config, MountOption, SessionACL};

use super::restoring::Prepared;
use super::session::Session;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::host::Host;
use crate::mount::directory::Alias;
use crate::mount::filesystem::Mounted;
use crate::mount::filler::{Filler, Queue};
use crate::mount::shadow::Shadow;
use crate::pg::conf::Setting;
use crate::restore::Source;
use crate::restore::finish;
use crate::restore::hollow;
use crate::restore::job::Job;
use crate::restore::replace::movable::mount_points;
use crate::restore::target_dir::{CONTROL, WAITING_CONTROL};

/// The device that mounts go by.
const DEVICE: &str = "/dev/fuse";
/// Threads that answer the kernel: each may wait for the repository.
const THREADS: usize = 16;
const PAUSE: Duration = Duration::from_millis(200);

/// A directory that is mounted.
pub struct Mount<'m> {
    /// Settings that were written into postgresql.auto.conf.
    pub settings: Vec<Setting>,
    /// Brings everything that is absent, until it is told that this is not wanted any more.
    pub bring_all: &'m (dyn Fn(&AtomicBool) -> Result<()> + Sync),
    /// Makes everything in the local directory durable.
    pub sync: &'m (dyn Fn() -> Result<()> + Sync),
    /// The first error of a reader that says nothing about the backup.
    pub outside: &'m dyn Fn() -> Option<Error>,
}

/// Requires that this host can mount.
///
/// # Errors
/// `Refused`.
pub fn check_possible() -> Result<()> {
    let opened = std::fs::File::options().read(true).write(true).open(DEVICE);
    opened.map(drop).map_err(|e| {
        err!(Refused, "this host offers no mounts to this user: {DEVICE}: {e}")
            .hint("Nothing was done. Load the kernel's module (modprobe fuse) and let users open the device (chmod 666 /dev/fuse; a container needs --device /dev/fuse), or take pitr restore, which copies everything first.")
    })
}

/// Lays a restore out below `root`, mounts it there, and does `work`; the mount is gone afterwards. `is_alone` says that nobody else sees
/// the mounts of this process.
///
/// # Errors
/// Those of [`hollow::lay_out`] and of `work`; `Refused` where the kernel does not mount it.
pub fn with_mount<T>(
    session: &Session,
    prepared: &Prepared,
    (root, is_alone): (&Path, bool),
    work: impl FnOnce(&mut Mount<'_>) -> Result<T>,
) -> Result<T> {
    let host = &session.host;
    let spares = prepared.opened.spares(session);
    let source = prepared.source(&spares);
    let job = &prepared.job;
    hollow::check_whole(&source)?;
    let snapshot = source.snapshot()?.spooling(&host.scratch);
    while_claimed(&source, job, host, || {
        host.progress.phase("lay out", None);
        let (target, survey) = prepared.place();
        // Opened before the first write, so that it hears of each that fails; and before the mount, which would lie over it.
        let beneath = std::fs::File::open(root).map_err(|e| cannot(root, e))?;
        let laid = hollow::lay_out(&source, &snapshot, (job, target, survey), host)?;
        fault::pause("mount_laid_out");
        let below = target.data.strip_prefix(root).unwrap_or(&target.data);
        let alias = Alias {
            shown: below.join(CONTROL),
            stored: below.join(WAITING_CONTROL),
        };
        let owner = target.owner.map(|o| (o.uid.as_raw(), o.gid.as_raw()));
        let shadow = Shadow::open_root(root, laid.files, alias, owner);
        let shadow = Arc::new(shadow.map_err(|e| cannot(root, e))?);
        let queue = Arc::new(Queue::default());
        let filler = Filler::new(&snapshot, &shadow, &queue, host);
        filler.serve(|| {
            let session = mount(root, &shadow, &queue)?;
            // The plain pg_wal lies over the mounted one: nothing of it is in the backup. A user who may not mount has it through the mount.
            let may_bind = is_alone || rustix::process::geteuid().is_root();
            let wal = may_bind.then(|| shadow.directory.bind(&below.join("pg_wal"), root));
            let done = work(&mut Mount {
                settings: laid.settings,
                bring_all: &|is_over| filler.bring_all(is_over),
                sync: &|| {
                    let synced = finish::sync_whole(beneath.as_fd());
                    synced.map_err(|e| Error::from_io(format!("sync \"{}\"", root.display()), e))
                },
                outside: &|| queue.outside(),
            });
            drop(wal);
            // A program that still has a file open there must not keep the mount: it gets errors from now on.
            if session.umount_and_join().is_err() {
                detach(root);
            }
            done
        })
    })
}

/// Does `work`, and claims the backup as long as that takes: a replay or a dump may take hours.
///
/// # Errors
/// Those of [`hollow::claim`] and of `work`.
pub fn while_claimed<T>(
    source: &Source<'_>,
    job: &Job,
    host: &Host,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let mut claim = hollow::claim(source, job, host)?;
    let is_over = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        if let Some(claim) = &mut claim {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    claim.keep();
                    std::thread::sleep(PAUSE);
                }
            });
        }
        let _over = SetOnDrop(&is_over);
        work()
    });
    if let Some(claim) = claim {
        claim.release();
    }
    done
}

/// Ends what waits for a flag, also where a thread panics.
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Takes away a mount that a process left behind when it was killed.
pub fn leave(root: &Path) {
    let is_gone = rustix::mount::unmount(root, rustix::mount::UnmountFlags::DETACH).is_ok();
    // The kernel answers for a dead mount from memory: the directory itself does not tell.
    let is_mounted = || mount_points().is_ok_and(|points| points.iter().any(|one| one == root));
    if !is_gone && is_mounted() {
        detach(root);
    }
}

/// Takes a mount away, whoever uses it: an ordinary user's by fusermount3, which made it.
fn detach(root: &Path) {
    let is_gone = rustix::mount::unmount(root, rustix::mount::UnmountFlags::DETACH).is_ok();
    if !is_gone {
        let mut command = std::process::Command::new("fusermount3");
        command.args(["-u", "-z", "-q", "--"]).arg(root);
        let quiet = std::process::Stdio::null;
        let _ = command.stdout(quiet()).stderr(quiet()).status();
    }
}

fn mount(
    root: &Path,
    shadow: &Arc<Shadow>,
    queue: &Arc<Queue>,
) -> Result<fuser::BackgroundSession> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("pitr".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoAtime,
    ];
    config.n_threads = Some(THREADS);
    // Root mounts for the server's user, whose the files are.
    if rustix::process::geteuid().is_root() {
        config.acl = SessionACL::All;
    }
    let mounted = Mounted::new(Arc::clone(shadow), Arc::clone(queue));
    let session = fuser::Session::new(mounted, root, &config);
    session
        .and_then(fuser::Session::spawn)
        .map_err(|e| cannot(root, e))
}

fn cannot(root: &Path, e: std::io::Error) -> Error {
    Error::new(
        Code::Refused,
        format!("\"{}\" could not be mounted: {e}", root.display()),
    )
    .hint("A user other than root needs user namespaces (unshare of util-linux) or fusermount3 (package fuse3). pitr restore copies everything first, and needs neither.")
}
