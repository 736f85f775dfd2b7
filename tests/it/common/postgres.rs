//! The places of PostgreSQL of each major (`scripts/get-postgres` fetches it), and data directories to copy.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use super::{ALL_MAJORS, majors, user};

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/get-postgres")
}

/// Returns the folder that `scripts/get-postgres` fills.
pub fn cache() -> &'static Path {
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    CACHE.get_or_init(|| {
        let out = Command::new(script())
            .arg("--where")
            .output()
            .expect("scripts/get-postgres starts");
        assert!(out.status.success(), "scripts/get-postgres --where failed");
        PathBuf::from(String::from_utf8(out.stdout).unwrap().trim())
    })
}

/// Sees to it that `major` is there: the first call fetches every major that is to be tested, at once.
fn fetch(major: u32) {
    static FETCHED: Mutex<Option<HashSet<u32>>> = Mutex::new(None);
    assert!(ALL_MAJORS.contains(&major), "no PostgreSQL {major} here");
    let mut fetched = FETCHED.lock().unwrap_or_else(|e| e.into_inner());
    let fetched = fetched.get_or_insert_with(HashSet::new);
    if fetched.contains(&major) {
        return;
    }
    let wanted: HashSet<u32> = majors().into_iter().chain([major]).collect();
    let status = Command::new(script())
        .args(wanted.iter().map(ToString::to_string))
        .status()
        .expect("scripts/get-postgres starts");
    assert!(
        status.success(),
        "scripts/get-postgres could not fetch PostgreSQL; what it printed says why"
    );
    fetched.extend(wanted);
}

/// Returns the path of a program of exactly this major (`pg_waldump`, `postgres`, …), if this machine has it.
///
/// 14 has only initdb, pg_ctl and postgres.
pub fn bin(major: u32, name: &str) -> Option<PathBuf> {
    fetch(major);
    let root = cache().join(major.to_string());
    ["server/bin", "client/bin"]
        .iter()
        .map(|folder| root.join(folder).join(name))
        .find(|path| path.exists())
}

/// Returns a program that serves a server of `major`: its own, else that of the next newer major which has one.
pub fn newest_bin(major: u32, name: &str) -> PathBuf {
    ALL_MAJORS
        .iter()
        .filter(|&&other| other >= major)
        .find_map(|&other| bin(other, name))
        .unwrap_or_else(|| panic!("no {name} of PostgreSQL {major} or newer on this machine"))
}

/// Holds a file locked until dropped.
pub struct Lock(#[expect(dead_code, reason = "holds the lock")] File);

impl Lock {
    pub fn wait(path: &Path) -> Lock {
        let file = Self::open(path);
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        Lock(file)
    }

    pub fn try_take(path: &Path) -> Option<Lock> {
        let file = Self::open(path);
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(Lock(file))
    }

    fn open(path: &Path) -> File {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }
}

/// The options of initdb.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    pub major: u32,
    pub segment_size_mb: u32,
    pub checksums: bool,
}

/// Runs initdb into `pgdata`, which must be absent.
pub fn initdb(shape: Shape, pgdata: &Path) {
    let mut command = user::command(bin(shape.major, "initdb").expect("every major has initdb"));
    command
        .arg("-D")
        .arg(pgdata)
        .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"])
        .arg("--locale=C")
        .arg(format!("--wal-segsize={}", shape.segment_size_mb));
    if shape.major >= 14 {
        command.arg("--no-instructions");
    }
    // 18 writes checksums unless told otherwise; before it there was no option against them.
    match (shape.checksums, shape.major) {
        (true, _) => command.arg("--data-checksums"),
        (false, 18..) => command.arg("--no-data-checksums"),
        (false, _) => &mut command,
    };
    let out = command.output().expect("initdb starts");
    assert!(
        out.status.success(),
        "initdb of {shape:?} failed:\n{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Copies a data directory that initdb made with these options to `pgdata`.
///
/// Templates lie in the cache, so that a machine runs initdb once for each shape. All copies share the system identifier.
pub fn copy_template(shape: Shape, pgdata: &Path) {
    let template = template(shape);
    let ok = Command::new("cp")
        .args(["-a", "--reflink=auto"])
        .arg(&template)
        .arg(pgdata)
        .status()
        .expect("cp starts")
        .success();
    assert!(ok, "could not copy {}", template.display());
}

fn template(shape: Shape) -> PathBuf {
    fetch(shape.major);
    let root = cache().join(format!(".templates-{}", user::ids().0));
    if !root.exists() {
        let _ = std::fs::create_dir(&root);
        std::fs::set_permissions(&root, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let stamp = std::fs::read_to_string(cache().join(format!("{}/.complete", shape.major)))
        .expect("a fetched major has a stamp");
    let name = format!(
        "{}-{}mb-{}-{:08x}",
        shape.major,
        shape.segment_size_mb,
        if shape.checksums { "sums" } else { "nosums" },
        crc32fast::hash(stamp.as_bytes())
    );
    let path = root.join(&name);
    let _lock = Lock::wait(&root.join(format!("{name}.lock")));
    if !path.exists() {
        let work = root.join(format!("{name}.tmp"));
        let _ = std::fs::remove_dir_all(&work);
        std::fs::create_dir(&work).unwrap();
        user::own(&work);
        initdb(shape, &work.join("data"));
        std::fs::rename(work.join("data"), &path).unwrap();
        let _ = std::fs::remove_dir(&work);
    }
    path
}
