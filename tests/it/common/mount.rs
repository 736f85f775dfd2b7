//! Filesystems for tests: a small one that gets full, and, for root alone, one whose power can be cut, and one that hangs.
//!
//! An ordinary user may mount the small one in namespaces of its own: a test that needs no more runs there once more, by itself
//! ([`require_mounts!`](crate::require_mounts)).

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::thread::{
    CapabilitySet, clear_ambient_capability_set, configure_capability_in_ambient_set,
};

use super::medium::{Cut, Medium, Recording, SECTOR};
use super::sandbox::Sandbox;
use super::{user, wait_within};

/// Tells a test that it runs in namespaces of its own.
const OWN_NAMESPACES: &str = "PITR_TEST_OWN_NAMESPACES";

/// The options of unshare with which a test of an ordinary user may mount: the user stays the same.
const UNSHARE: [&str; 4] = ["--user", "--map-current-user", "--mount", "--keep-caps"];

/// The place in which a test may mount filesystems.
pub enum Rights {
    /// In the namespaces in which it runs.
    Here,
    /// In namespaces of its own: [`run_again`] runs it there.
    Elsewhere,
    Nowhere,
}

/// Says where this test may mount. From here on its programs have no rights but those of the user.
pub fn rights() -> Rights {
    if user::is_root() {
        return Rights::Here;
    }
    if std::env::var_os(OWN_NAMESPACES).is_some() {
        clear_ambient_capability_set().unwrap();
        return Rights::Here;
    }
    let mut probe = Command::new("unshare");
    probe
        .args(UNSHARE)
        .args(["mount", "-t", "tmpfs", "pitr-test", "/mnt"]);
    match probe.output().is_ok_and(|out| out.status.success()) {
        true => Rights::Elsewhere,
        false => Rights::Nowhere,
    }
}

/// Runs a test of this program, named with its modules, in namespaces of its own.
pub fn run_again(test: &str) {
    let (_, name) = test
        .split_once("::")
        .expect("the program is the first module");
    let out = Command::new("unshare")
        .args(UNSHARE)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(OWN_NAMESPACES, "1")
        .output()
        .expect("unshare starts");
    let text = String::from_utf8_lossy(&out.stdout);
    eprintln!("{text}{}", String::from_utf8_lossy(&out.stderr));
    assert!(
        out.status.success() && text.contains("test result: ok. 1 passed"),
        "{name} fails in namespaces of its own"
    );
}

/// Runs a program that mounts: in a test's own namespaces, with the right to it.
fn with_right_to_mount<T>(run: impl FnOnce() -> T) -> T {
    let may = |on: bool| {
        if !user::is_root() {
            configure_capability_in_ambient_set(CapabilitySet::SYS_ADMIN, on).unwrap();
        }
    };
    may(true);
    let done = run();
    may(false);
    done
}

/// Ends the test as skipped where nothing can be mounted: `require_mounts!("name")`. A user who may mount in namespaces of its own alone
/// sees the test run there.
#[macro_export]
macro_rules! require_mounts {
    ($name:expr) => {
        match $crate::common::mount::rights() {
            $crate::common::mount::Rights::Here => {}
            $crate::common::mount::Rights::Elsewhere => {
                $crate::common::mount::run_again(concat!(module_path!(), "::", $name));
                return;
            }
            $crate::common::mount::Rights::Nowhere => {
                $crate::skip!($name, "needs root, or unshare --user --mount for others");
            }
        }
    };
}

/// How long a filesystem may stay busy after whoever used it has ended, and how long the machine may lack a loop device.
const BUSY_AT_MOST: Duration = Duration::from_secs(180);

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        out.status.success(),
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&out.stderr)
    );
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

/// A memory filesystem of limited size, owned by the unprivileged user. Unmounted when dropped.
pub struct SmallDisk {
    path: PathBuf,
    _sandbox: Sandbox,
}

impl SmallDisk {
    /// Mounts one with `megabytes` of space and `inodes` files.
    pub fn new(megabytes: u32, inodes: u32) -> SmallDisk {
        let sandbox = Sandbox::new("small");
        let path = sandbox.dir("disk");
        let (uid, gid) = user::ids();
        let options = format!("size={megabytes}m,nr_inodes={inodes},uid={uid},gid={gid},mode=0755");
        with_right_to_mount(|| {
            run(
                "mount",
                &["-t", "tmpfs", "-o", &options, "pitr-test", text(&path)],
            );
        });
        SmallDisk {
            path,
            _sandbox: sandbox,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts it read-only, or writable again.
    pub fn read_only(&self, on: bool) {
        with_right_to_mount(|| remount(&self.path, on));
    }

    /// Makes it so large, or so small, that this much is free.
    pub fn leave_free(&self, bytes: u64) {
        // Refused where more is written meanwhile than is to be free.
        let is_done = || {
            let is = rustix::fs::statvfs(&self.path).unwrap();
            let size = (is.f_blocks - is.f_bfree) * is.f_frsize + bytes;
            let mut mount = Command::new("mount");
            let mount = mount.args(["-o", &format!("remount,size={size}")]);
            mount.arg(&self.path).output().unwrap().status.success()
        };
        with_right_to_mount(|| wait_within(BUSY_AT_MOST, "it has its size", is_done));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        with_right_to_mount(|| unmount(&self.path));
    }
}

/// A small filesystem over a folder that is there. Unmounted when dropped.
pub struct DiskOver(PathBuf);

impl DiskOver {
    pub fn mount(path: &Path) -> DiskOver {
        DiskOver::mount_of(path, 1)
    }

    /// As [`DiskOver::mount`], of this size.
    pub fn mount_of(path: &Path, megabytes: u32) -> DiskOver {
        let size = format!("size={megabytes}m");
        with_right_to_mount(|| {
            let options = ["-t", "tmpfs", "-o", &size, "pitr-test", text(path)];
            run("mount", &options);
        });
        DiskOver(path.to_owned())
    }
}

impl Drop for DiskOver {
    fn drop(&mut self) {
        with_right_to_mount(|| unmount(&self.0));
    }
}

/// An ext4 filesystem on a file, owned by the unprivileged user, whose power can be cut.
pub struct PowerDisk {
    path: PathBuf,
    image: PathBuf,
    medium: Option<Medium>,
    sandbox: Sandbox,
}

impl PowerDisk {
    /// Makes and mounts one.
    pub fn new(megabytes: u32) -> PowerDisk {
        PowerDisk::made(megabytes, &[], |_, _| None)
    }

    /// Makes and mounts one on a medium that records what arrives.
    pub fn recorded(megabytes: u32) -> PowerDisk {
        // ext4 refuses a superblock that was torn, before it looks into the journal that would repair it, because of its checksum.
        let options = ["-b", "4096", "-O", "^metadata_csum"];
        PowerDisk::made(megabytes, &options, |sandbox, image| {
            let content = std::fs::read(image).unwrap();
            Some(Medium::over(&sandbox.dir("medium"), content))
        })
    }

    fn made(
        megabytes: u32,
        options: &[&str],
        medium: impl FnOnce(&Sandbox, &Path) -> Option<Medium>,
    ) -> PowerDisk {
        let sandbox = Sandbox::new("power");
        let path = sandbox.dir("disk");
        let image = sandbox.join("image");
        run("truncate", &["-s", &format!("{megabytes}M"), text(&image)]);
        run(
            "mkfs.ext4",
            &[&["-q", "-F"], options, &[text(&image)]].concat(),
        );
        let medium = medium(&sandbox, &image);
        let disk = PowerDisk {
            path,
            image,
            medium,
            sandbox,
        };
        disk.mount();
        user::own(&disk.path);
        run("sync", &["-f", text(&disk.path)]);
        disk
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folder around image and mount point.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Cuts the power: what has not been synced is lost, as is every later write. Then the filesystem is mounted again,
    /// its journal replayed, as after a reboot.
    pub fn cut_power(&self) {
        self.shut_down();
        self.restore_power();
    }

    /// Cuts the power only: from here on every access fails with EIO, until [`restore_power`](Self::restore_power).
    pub fn shut_down(&self) {
        // FS_IOC_GOINGDOWN with FS_GOING_FLAGS_NOLOGFLUSH (Linux: include/uapi/linux/fs.h): not even the journal is written.
        run(
            "/usr/bin/python3",
            &[
                "-c",
                "import fcntl, os, struct, sys\n\
                 fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))",
                text(&self.path),
            ],
        );
    }

    /// Mounts it again after [`shut_down`](Self::shut_down).
    pub fn restore_power(&self) {
        unmount_when_idle(&self.path);
        self.wait_detached();
        self.mount();
    }

    /// How much has arrived at the medium of a recorded one.
    pub fn position(&self) -> usize {
        self.medium.as_ref().expect("it is recorded").position()
    }

    /// Ends the recording, and the use of the medium: what is mounted next is what a cut leaves.
    pub fn end_recording(&mut self) -> Recording {
        unmount_when_idle(&self.path);
        self.wait_detached();
        self.medium.take().expect("it is recorded").recording()
    }

    /// Mounts what a cut left, as after a reboot.
    pub fn boot(&self, cut: &Cut) {
        if is_mounted(&self.path) {
            unmount_when_idle(&self.path);
            self.wait_detached();
        }
        std::fs::write(&self.image, &cut.content).unwrap();
        self.mount();
    }

    /// Changes a byte in the first sector of a file on the medium, below the filesystem, which remembers the sector as it wrote it. The sector
    /// must be the only one of its kind.
    pub fn spoil(&self, content: &[u8]) {
        let backing = self.backing();
        let image = std::fs::read(&backing).unwrap();
        let is_it = |n: &usize| image[n * SECTOR..].starts_with(&content[..SECTOR]);
        let places: Vec<usize> = (0..image.len() / SECTOR).filter(is_it).collect();
        assert_eq!(places.len(), 1, "sectors like the first of the file");
        let last = (places[0] + 1) * SECTOR - 1;
        let file = std::fs::File::options().write(true).open(&backing).unwrap();
        file.write_all_at(&[!image[last]], u64::try_from(last).unwrap())
            .unwrap();
    }

    /// Returns the file behind the loop device.
    fn backing(&self) -> PathBuf {
        let recorded = self.medium.as_ref().map(Medium::image);
        recorded.unwrap_or_else(|| self.image.clone())
    }

    /// Mounts it read-only, or writable again.
    pub fn read_only(&self, on: bool) {
        remount(&self.path, on);
    }

    /// Waits until nothing of the filesystem is in memory. A mount namespace made by somebody else meanwhile has a copy of the mount: the
    /// filesystem lives on in it as it is, and the next `mount` would find that one again.
    fn wait_detached(&self) {
        let begun = Instant::now();
        loop {
            let out = Command::new("losetup")
                .args(["--associated", text(&self.backing())])
                .output()
                .expect("losetup starts");
            assert!(out.status.success(), "losetup: {out:?}");
            if out.stdout.is_empty() {
                return;
            }
            assert!(
                begun.elapsed() < BUSY_AT_MOST,
                "unmounted, and still in use in another mount namespace: {}",
                String::from_utf8_lossy(&out.stdout)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn mount(&self) {
        mount_image(&self.backing(), &self.path);
    }
}

/// The loop device of a mount before may be about to go, or another test may take the free one that mount has found: so it is tried again.
fn mount_image(image: &Path, path: &Path) {
    let begun = Instant::now();
    loop {
        let out = Command::new("mount")
            .args(["-o", "loop", text(image), text(path)])
            .output()
            .expect("mount starts");
        if out.status.success() {
            return;
        }
        assert!(
            begun.elapsed() < BUSY_AT_MOST,
            "mount {}: {}",
            text(image),
            String::from_utf8_lossy(&out.stderr)
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A btrfs filesystem on a file, of root's.
pub struct BtrfsDisk {
    path: PathBuf,
    _sandbox: Sandbox,
}

impl BtrfsDisk {
    /// Whether the kernel has btrfs, or loads it.
    pub fn is_there() -> bool {
        let _ = Command::new("modprobe").arg("btrfs").output();
        let known = std::fs::read_to_string("/proc/filesystems").unwrap();
        known.lines().any(|line| line.ends_with("\tbtrfs"))
    }

    pub fn new(megabytes: u32) -> BtrfsDisk {
        let sandbox = Sandbox::new("btrfs");
        let (path, image) = (sandbox.dir("disk"), sandbox.join("image"));
        run("truncate", &["-s", &format!("{megabytes}M"), text(&image)]);
        run("mkfs.btrfs", &["-q", text(&image)]);
        mount_image(&image, &path);
        BtrfsDisk {
            path,
            _sandbox: sandbox,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for BtrfsDisk {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

impl Drop for PowerDisk {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

/// A filesystem that answers nothing, mounted over a folder: who touches it waits. Whoever waits gets an error when it is dropped.
pub struct HangingDisk {
    path: PathBuf,
    server: std::process::Child,
}

impl HangingDisk {
    /// Mounts it over `path`.
    pub fn over(path: &Path) -> HangingDisk {
        // A FUSE server that never reads its first request. Linux: Documentation/filesystems/fuse.rst.
        const MOUNT: &str = "import ctypes, os, sys\n\
            fd = os.open('/dev/fuse', os.O_RDWR)\n\
            options = f'fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other'\n\
            libc = ctypes.CDLL(None, use_errno=True)\n\
            failed = libc.mount(b'pitr-test', sys.argv[1].encode(), b'fuse', 0, options.encode())\n\
            print(os.strerror(ctypes.get_errno()) if failed else 'mounted', flush=True)\n\
            sys.stdin.read()";
        let mut server = Command::new("/usr/bin/python3")
            .args(["-c", MOUNT, text(path)])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let mut answer = String::new();
        let out = server.stdout.take().expect("it is piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut answer).unwrap();
        assert_eq!(answer, "mounted\n", "FUSE cannot be mounted");
        HangingDisk {
            path: path.to_owned(),
            server,
        }
    }
}

impl Drop for HangingDisk {
    fn drop(&mut self) {
        // The server first: with it gone the kernel answers in its place.
        let _ = self.server.kill();
        let _ = self.server.wait();
        unmount(&self.path);
    }
}

fn remount(path: &Path, read_only: bool) {
    let options = if read_only {
        "remount,ro"
    } else {
        "remount,rw"
    };
    run_when_idle("mount", &["-o", options], path);
}

/// Unmounts, for good and not lazily: what is in memory of the filesystem has to go with it.
fn unmount_when_idle(path: &Path) {
    run_when_idle("umount", &[], path);
}

/// Runs a program that refuses a busy filesystem. Another test that starts a program at this moment holds copies of this process' descriptors
/// until its exec; so a filesystem that is busy is asked again.
fn run_when_idle(program: &str, args: &[&str], path: &Path) {
    let begun = Instant::now();
    loop {
        let out = Command::new(program)
            .args(args)
            .arg(path)
            .env("LC_ALL", "C")
            .output()
            .unwrap_or_else(|e| panic!("{program}: {e}"));
        if out.status.success() {
            return;
        }
        let why = String::from_utf8_lossy(&out.stderr);
        assert!(
            why.contains("busy") && begun.elapsed() < BUSY_AT_MOST,
            "{program} {} {}: {why}in use by: {:?}",
            args.join(" "),
            path.display(),
            users(path)
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Lists who has something open below `path`: process number and name, and what it has open.
fn users(path: &Path) -> Vec<String> {
    let mut users = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        let fds = std::fs::read_dir(process.path().join("fd"));
        let links = fds.into_iter().flatten().flatten().map(|fd| fd.path());
        for link in links.chain(["cwd", "exe"].map(|link| process.path().join(link))) {
            if let Ok(open) = std::fs::read_link(link)
                && open.starts_with(path)
            {
                let pid = process.file_name();
                users.push(format!("{pid:?} {} {}", name.trim(), open.display()));
            }
        }
    }
    users
}

/// Whether a filesystem is mounted there: it is another one than that of the folder around.
fn is_mounted(path: &Path) -> bool {
    let device = |path: &Path| std::os::unix::fs::MetadataExt::dev(&path.metadata().unwrap());
    device(path) != device(path.parent().expect("a folder has one around it"))
}

/// Lazily if it must be: the folder under it is removed next.
pub fn unmount(path: &Path) {
    for args in [&[][..], &["-l"][..]] {
        let done = Command::new("umount")
            .args(args)
            .arg(path)
            .output()
            .is_ok_and(|out| out.status.success());
        if done {
            return;
        }
    }
}
