//! Who runs servers and programs: `nobody` when the tests run as root, because PostgreSQL refuses root; else ourselves.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// Whether the tests run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns user and group id of the unprivileged user.
pub fn ids() -> (u32, u32) {
    static IDS: OnceLock<(u32, u32)> = OnceLock::new();
    *IDS.get_or_init(|| {
        if !is_root() {
            return (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            );
        }
        let passwd = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd is readable");
        passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|field| field[0] == "nobody")
            .map(|field| (field[2].parse().unwrap(), field[3].parse().unwrap()))
            .expect("there is a user \"nobody\"")
    })
}

/// A command as the unprivileged user, with an environment that holds nothing of the caller's.
///
/// Another program changes the user: the standard library would fork for that, which copies the page tables of all tests, and the kernel spent
/// more time on it than on everything else.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = match is_root() {
        false => Command::new(program),
        true => {
            let (uid, gid) = ids();
            let mut command = Command::new("/usr/bin/setpriv");
            command
                .arg(format!("--reuid={uid}"))
                .arg(format!("--regid={gid}"))
                .args(["--clear-groups", "--"])
                .arg(program);
            command
        }
    };
    clean(&mut command);
    command
}

/// Replaces the environment by a fixed one: no `PG…`, no `PITR_…`, no home of a person.
pub fn clean(command: &mut Command) -> &mut Command {
    command
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("LANG", "C.UTF-8")
        .env("TZ", "UTC")
        .env("HOME", "/nonexistent")
        // A program that a test runs as root would make that folder for its cache, and keep it there.
        .env("XDG_CACHE_HOME", "/dev/null")
        // The machine's own configuration is no test's.
        .env("PITR_FAULT_HIDE", "/etc/pitr/pitr.toml")
        .current_dir("/")
}

/// Gives `path` to the unprivileged user.
pub fn own(path: &Path) {
    if is_root() {
        let (uid, gid) = ids();
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))
            .unwrap_or_else(|e| panic!("chown {}: {e}", path.display()));
    }
}

/// Gives `path` and everything under it to the unprivileged user.
pub fn own_all(path: &Path) {
    if is_root() {
        let (uid, gid) = ids();
        let ok = Command::new("chown")
            .args(["-R", "-h", &format!("{uid}:{gid}")])
            .arg(path)
            .status()
            .expect("chown starts")
            .success();
        assert!(ok, "chown -R {} failed", path.display());
    }
}
