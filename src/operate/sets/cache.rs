//! The data directory of a Redis server: restored aside, loaded by a server of its own, and exchanged with the one in its place.
//!
//! The server in quarantine listens on a socket beside its data alone. It writes a dump.rdb besides the append-only file, so that the configured server has the
//! data whichever of the two it loads. That dump has the history of the server in quarantine, which nobody follows.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::own::{self, Owner};
use crate::behalf;
use crate::config::{Redis, RedisAddress, trust};
use crate::durable;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::operate::redis::scratch::last_words;
use crate::operate::session::Session;
use crate::program::Running;
use crate::redis::connection::Way;
use crate::redis::directory::CONFIGURATION;
use crate::redis::program;
use crate::redis::resp::Reply;
use crate::redis::source::Source;
use crate::redis::version::Flavor;

/// The end of the name of the directory that waits.
const WAITING: &str = "pitr-new";
/// The socket of the server in quarantine.
const SOCKET: &str = "pitr.sock";
/// Its log.
const LOG: &str = "pitr.log";
/// How long a server may take to answer before it loads, and to end.
const PATIENCE: Duration = Duration::from_secs(30);
const STALL: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(50);
/// Files of the old directory that the new one gets: settings and users. None is longer.
const KEPT_ENDS: [&str; 2] = ["conf", "acl"];
const KEPT_BYTES: u64 = 1 << 20;
const UNCHANGED: &str = "Nothing was changed.";

/// A change of two names, each in a directory.
type Change<'c> =
    &'c dyn Fn((BorrowedFd<'_>, &[u8]), (BorrowedFd<'_>, &[u8])) -> rustix::io::Result<()>;

/// A data directory.
pub struct Place {
    directory: PathBuf,
    parent: PathBuf,
    name: String,
    owner: Option<Owner>,
}

impl Place {
    /// Looks at the data directory of a server.
    ///
    /// # Errors
    /// `Config` when none is configured; `Refused` for one that could not be exchanged.
    pub fn of(redis: &Redis) -> Result<Place> {
        let Some(directory) = redis.service.data_directory.clone() else {
            return Err(err!(
                Config,
                "[redis.{0}] has no service.data_directory, so nothing can be put in its place",
                redis.name
            )
            .hint(format!(
                "{UNCHANGED}\nAdd to [redis.{}]: service.data_directory = \"/var/lib/redis\"",
                redis.name
            )));
        };
        let refused =
            |why: &str| err!(Refused, "\"{}\" {why}", directory.display()).hint(UNCHANGED);
        let names = directory.parent().zip(directory.file_name());
        let Some((parent, name)) = names.and_then(|(p, n)| Some((p.to_owned(), n.to_str()?)))
        else {
            return Err(refused("has no name that can be exchanged"));
        };
        let look = |path: &Path| {
            let metadata = std::fs::symlink_metadata(path);
            metadata.map_err(|e| Error::from_io(format!("look at \"{}\"", path.display()), e))
        };
        let (own, above) = (look(&directory)?, look(&parent)?);
        if !own.is_dir() {
            return Err(refused("is no directory"));
        }
        if own.dev() != above.dev() {
            return Err(refused("is a mount point, which cannot be exchanged"));
        }
        let owner = Owner::of(&directory)?;
        // Root would follow names that the server's user exchanges meanwhile.
        let changeable = trust::changeable(&parent);
        let is_closed = changeable.map_err(|e| Error::from_io("look at directories", e))?;
        if owner.is_some() && is_closed.is_some() {
            return Err(
                refused("lies in a directory that is not root's alone").hint(format!(
                    "{UNCHANGED}\nRun the command as the server's user."
                )),
            );
        }
        Ok(Place {
            name: name.to_owned(),
            directory,
            parent,
            owner,
        })
    }

    fn beside(&self, end: &str) -> PathBuf {
        self.parent.join(format!("{}.{end}", self.name))
    }

    fn waiting(&self) -> PathBuf {
        self.beside(WAITING)
    }

    /// Restores a data set beside the directory, and has a server load it. The rest of an earlier attempt of the same run is removed.
    ///
    /// # Errors
    /// Those of `pitr redis restore`; `Damaged` when no server loads it; `SourceMissing` without one.
    pub fn aside(&self, session: &Session, redis: &Redis, words: &[String]) -> Result<Value> {
        let waiting = self.waiting();
        self.discard()?;
        let to = waiting.to_string_lossy().into_owned();
        let restore = ["redis", "restore", &redis.name, "--to", &to];
        let restored = own::run(session, &own::with(&restore, words), None)?;
        if let Some(owner) = self.owner {
            give(&waiting, owner)?;
        }
        let loaded = load(session, &waiting, &restored.json, self.owner)?;
        // It names the directory that waits.
        let settings = waiting.join(CONFIGURATION);
        removed(&settings, std::fs::remove_file(&settings))?;
        // Both directories are the server's user's: links of that user lead root nowhere.
        let kept = behalf::of(&waiting, || {
            Ok(self.keep_settings(&waiting).and_then(|()| sync(&waiting)))
        });
        kept.map_err(|e| self.failed(e))??;
        Ok(json!({
            "loaded": loaded,
            "backup": restored.json["id"],
            "log_bytes": restored.json["log_bytes"],
        }))
    }

    /// Settings and users of the old directory go on in the new one.
    fn keep_settings(&self, waiting: &Path) -> Result<()> {
        let failed = |e| Error::from_io(format!("read \"{}\"", self.directory.display()), e);
        for entry in std::fs::read_dir(&self.directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (path, name) = (entry.path(), entry.file_name());
            let end = path.extension().and_then(|end| end.to_str());
            let is_wanted = end.is_some_and(|end| KEPT_ENDS.contains(&end));
            let metadata = std::fs::symlink_metadata(&path).map_err(failed)?;
            if !is_wanted || !metadata.is_file() || metadata.len() > KEPT_BYTES {
                continue;
            }
            let to = waiting.join(name);
            // fs::copy takes the permissions along. A file that the server's user cannot read is no setting of the server.
            match std::fs::copy(&path, &to) {
                Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {}
                copied => drop(copied.map_err(failed)?),
            }
        }
        Ok(())
    }

    /// Requires that the name beside the directory is free, before the first attempt of a run.
    ///
    /// # Errors
    /// `Refused`.
    pub fn require_free(&self) -> Result<()> {
        let waiting = self.waiting();
        match inode(&waiting)? {
            None => Ok(()),
            Some(_) => Err(
                err!(Refused, "\"{}\" is there already", waiting.display()).hint(
                    "Nothing was changed. A rollback may have left it. Look at it, and remove it.",
                ),
            ),
        }
    }

    /// Removes a data set that was restored aside and never put in place.
    ///
    /// # Errors
    /// `TargetWrite`.
    pub fn discard(&self) -> Result<()> {
        let waiting = self.waiting();
        removed(&waiting, std::fs::remove_dir_all(&waiting))
    }

    /// Looks who lies where now: by that an exchange is taken up, and undone.
    ///
    /// # Errors
    /// `Refused` when nothing waits to be put in place.
    pub fn before(&self) -> Result<Value> {
        let (old, new) = (inode(&self.directory)?, inode(&self.waiting())?);
        match (old, new) {
            (Some(old), Some(new)) => Ok(json!({ "old": old, "new": new })),
            _ => Err(err!(
                Refused,
                "no data set waits beside \"{}\"",
                self.directory.display()
            )
            .hint(UNCHANGED)),
        }
    }

    /// Whether the new directory is in its place.
    ///
    /// # Errors
    /// Those of the system.
    pub fn is_exchanged(&self, begun: &Value) -> Result<bool> {
        let new = begun["new"].as_u64();
        Ok(new.is_some() && inode(&self.directory)? == new)
    }

    /// Puts the new directory in its place; the old one is kept under the name of the run.
    ///
    /// # Errors
    /// `Refused` when neither of the two is in place any more; `TargetWrite`.
    pub fn exchange(&self, begun: &Value, run: &str) -> Result<Value> {
        let (waiting, kept) = (self.waiting(), self.beside(&format!("replaced-{run}")));
        self.take_place(begun["new"].as_u64(), &waiting)?;
        self.rename(&waiting, &kept)?;
        Ok(json!({ "kept": kept }))
    }

    /// Puts the old directory back; the new one is kept under the name of the run.
    ///
    /// # Errors
    /// As [`Place::exchange`].
    pub fn undo(&self, begun: &Value, run: &str) -> Result<()> {
        let old = begun["old"].as_u64();
        let kept = self.beside(&format!("replaced-{run}"));
        let undone = self.beside(&format!("undone-{run}"));
        // An exchange that was cut short left the old one under the first name.
        let from = match inode(&kept)? {
            Some(_) => kept,
            None => self.waiting(),
        };
        self.take_place(old, &from)?;
        self.rename(&from, &undone)
    }

    /// Exchanges the directory with the one at `from`, unless that was done already.
    fn take_place(&self, wanted: Option<u64>, from: &Path) -> Result<()> {
        if wanted.is_some() && inode(&self.directory)? == wanted {
            return Ok(());
        }
        if wanted.is_none() || inode(from)? != wanted {
            return Err(err!(
                Refused,
                "\"{}\" and \"{}\" are not what the run recorded",
                self.directory.display(),
                from.display()
            )
            .hint("Somebody has moved directories meanwhile. Nothing was changed."));
        }
        self.in_parent(from, &self.directory, &|other, own| {
            durable::exchange(own, other)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        if inode(from)?.is_none() && inode(to)?.is_some() {
            return Ok(());
        }
        self.in_parent(from, to, &|from, to| durable::move_to_free(from, to))
    }

    /// Changes two names of the parent, for good.
    fn in_parent(&self, from: &Path, to: &Path, change: Change<'_>) -> Result<()> {
        let parent = File::open(&self.parent).map_err(|e| self.failed(e))?;
        let name = |path: &Path| path.file_name().map(|n| n.as_bytes().to_owned());
        let (from, to) = (name(from).unwrap_or_default(), name(to).unwrap_or_default());
        let changed = change((parent.as_fd(), &from), (parent.as_fd(), &to));
        changed.map_err(|e| self.failed(e.into()))?;
        durable::sync_directory(parent.as_fd()).map_err(|e| self.failed(e))
    }

    fn failed(&self, error: std::io::Error) -> Error {
        let doing = format!("exchange \"{}\"", self.directory.display());
        Error::from_io(doing, error).with_code(Code::TargetWrite)
    }
}

/// The inode at a path; none where nothing is.
pub fn inode(path: &Path) -> Result<Option<u64>> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata.ino())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::from_io(format!("look at \"{}\"", path.display()), e)),
    }
}

/// A file that is gone counts as removed.
fn removed(path: &Path, done: std::io::Result<()>) -> Result<()> {
    match done {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            let doing = format!("remove \"{}\"", path.display());
            Err(Error::from_io(doing, e).with_code(Code::TargetWrite))
        }
        _ => Ok(()),
    }
}

fn chown(path: &Path, owner: Owner) -> Result<()> {
    let (uid, gid) = owner.ids();
    let given = std::os::unix::fs::lchown(path, Some(uid), Some(gid));
    given.map_err(|e| Error::from_io(format!("give \"{}\" away", path.display()), e))
}

/// Gives a restored directory to the server's user. Nobody else could enter it so far.
fn give(directory: &Path, owner: Owner) -> Result<()> {
    let failed = |e| Error::from_io(format!("read \"{}\"", directory.display()), e);
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        match std::fs::symlink_metadata(&path).map_err(failed)?.is_dir() {
            true => give(&path, owner)?,
            false => chown(&path, owner)?,
        }
    }
    chown(directory, owner)
}

/// Syncs a directory and all that is in it.
fn sync(directory: &Path) -> Result<()> {
    let failed = |e| Error::from_io(format!("sync \"{}\"", directory.display()), e);
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let metadata = std::fs::symlink_metadata(&path).map_err(failed)?;
        if metadata.is_dir() {
            sync(&path)?;
        } else if metadata.is_file() {
            durable::sync_file(&File::open(&path).map_err(failed)?).map_err(failed)?;
        }
    }
    durable::sync_directory_at(directory).map_err(failed)
}

/// Has a server load a restored directory, and write a dump of it. Returns how many keys it has that do not expire.
///
/// # Errors
/// `SourceMissing` where no server is on the search path; `Damaged` with its last words when it does not load the data.
pub fn load(
    session: &Session,
    directory: &Path,
    restored: &Value,
    owner: Option<Owner>,
) -> Result<Value> {
    let flavor = match restored["redis"]["flavor"].as_str() {
        Some("valkey") => Flavor::Valkey,
        _ => Flavor::Redis,
    };
    let installed = program::find(session.environment.get("PATH"), flavor);
    let installed = installed.ok_or_else(|| {
        err!(
            SourceMissing,
            "no {}-server is on the search path to load the data set",
            flavor.name()
        )
        .hint("Nothing was put in place. Install the server, or name its folder in PATH.")
    })?;
    let program = format!("{}-server", installed.version.flavor.name());
    let (socket, log) = (directory.join(SOCKET), directory.join(LOG));
    // It ends with this process, however that ends.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig=KILL", "--", &program]);
    command.arg(directory.join(CONFIGURATION));
    command.args(["--port", "0", "--save", "", "--daemonize", "no"]);
    command.args(["--unixsocketperm", "700"]);
    command.arg("--dir").arg(directory);
    command.arg("--unixsocket").arg(&socket);
    command.arg("--logfile").arg(&log);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // The server's user can read the environment of its processes: secrets of repositories are not for it.
    command.env_clear();
    if let Some(path) = session.environment.get("PATH") {
        command.env("PATH", path);
    }
    Owner::apply(owner, &mut command);
    let mut running = Running::start(&mut command)?;
    let way = Way {
        address: RedisAddress::Unix(socket.clone()),
        tls: None,
        stall_timeout: fault::shortened(STALL),
        user: None,
    };
    let mut source = connect(session, &way, (&mut running, &log))?;
    let lasting = source.info.lasting_keys();
    // Redis counts the commands of an append-only file as changes when it loads them. The writes of clients come on top.
    let changes: Option<u64> = source.info.number("rdb_changes_since_last_save");
    save(session, &mut source, (&mut running, &log))?;
    source.connection.send(&[b"SHUTDOWN", b"NOSAVE"])?;
    let began = Instant::now();
    while !running.is_over() && began.elapsed() < PATIENCE {
        session.host.check_stop()?;
        std::thread::sleep(GLANCE);
    }
    // Dropped, a server that does not end is ended.
    drop(running);
    removed(&socket, std::fs::remove_file(&socket))?;
    removed(&log, std::fs::remove_file(&log))?;
    Ok(json!({ "lasting_keys": lasting, "changes": changes }))
}

/// Has the server write its dump, however long that takes: it says nothing meanwhile.
fn save(session: &Session, source: &mut Source, server: (&mut Running, &Path)) -> Result<()> {
    let (running, log) = server;
    let mut tick = || session.host.check_stop();
    source.connection.send(&[b"SAVE"])?;
    loop {
        match source.connection.reply(&mut tick) {
            Ok(Reply::Error(said)) => return Err(source.connection.refused(&[b"SAVE"], &said)),
            Ok(_) => return Ok(()),
            Err(e) if e.code() == Code::Deadline && !running.is_over() => {}
            Err(e) => {
                // A connection closes a little before its process is gone.
                std::thread::sleep(GLANCE);
                return Err(if running.is_over() { ended(log) } else { e });
            }
        }
    }
}

/// The error of a server that ended by itself.
fn ended(log: &Path) -> Error {
    err!(
        Damaged,
        "the server that was to load the restored data set has ended by itself{}",
        last_words(log)
    )
    .hint("Nothing was put in place. Start it by hand to see more: its redis.conf lies beside the data.")
}

/// Waits until the server has loaded the data, however long that takes.
fn connect(session: &Session, way: &Way, server: (&mut Running, &Path)) -> Result<Source> {
    let (running, log) = server;
    let mut check = || match running.is_over() {
        true => Err(ended(log)),
        false => Ok(()),
    };
    let mut tick = || session.host.check_stop();
    Source::loaded((way, None), PATIENCE, &mut check, &mut tick)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(below: &Path) -> Place {
        for (name, text) in [("redis", "old"), ("redis.pitr-new", "new")] {
            std::fs::create_dir(below.join(name)).unwrap();
            std::fs::write(below.join(name).join("is"), text).unwrap();
        }
        Place {
            directory: below.join("redis"),
            parent: below.to_owned(),
            name: "redis".into(),
            owner: None,
        }
    }

    fn is(path: &Path) -> String {
        std::fs::read_to_string(path.join("is")).unwrap()
    }

    #[test]
    fn settings_go_along_and_no_link_of_the_server_s_user_leads_root_elsewhere() {
        if !behalf::can_be_another("settings_go_along") {
            return;
        }
        use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        };
        mode(dir.path(), 0o755);
        let (old, new) = (place.directory.clone(), place.waiting());
        for name in ["own.conf", "evil.conf", "roots.acl"] {
            std::fs::write(old.join(name), name).unwrap();
        }
        mode(&old.join("roots.acl"), 0o600);
        let victim = dir.path().join("cron");
        symlink(&victim, new.join("evil.conf")).unwrap();
        for path in [&old, &new] {
            chown(path, Some(64_001), Some(64_001)).unwrap();
        }
        lchown(new.join("evil.conf"), Some(64_001), Some(64_001)).unwrap();
        behalf::of(&new, || Ok(place.keep_settings(&new)))
            .unwrap()
            .unwrap();
        let text = std::fs::read_to_string(new.join("own.conf")).unwrap();
        assert_eq!(text, "own.conf");
        assert!(!victim.exists() && !new.join("roots.acl").exists());
        assert_eq!(new.join("own.conf").metadata().unwrap().uid(), 64_001);
    }

    #[test]
    fn an_exchange_is_taken_up_anywhere_and_undone() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        assert!(place.require_free().is_err());
        let begun = place.before().unwrap();
        // Killed between the two renames, and behind both.
        place
            .take_place(begun["new"].as_u64(), &place.waiting())
            .unwrap();
        assert_eq!(is(&place.directory), "new");
        place.exchange(&begun, "r").unwrap();
        place.exchange(&begun, "r").unwrap();
        assert_eq!(is(&place.directory), "new");
        assert_eq!(is(&place.beside("replaced-r")), "old");
        place.undo(&begun, "r").unwrap();
        place.undo(&begun, "r").unwrap();
        assert_eq!(is(&place.directory), "old");
        assert_eq!(is(&place.beside("undone-r")), "new");
        assert!(place.require_free().is_ok());
    }

    #[test]
    fn an_undo_needs_no_second_rename_and_refuses_what_it_does_not_know() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let begun = place.before().unwrap();
        // Begun, and nothing exchanged.
        place.undo(&begun, "r").unwrap();
        assert_eq!(is(&place.directory), "old");
        let begun = json!({ "old": 1, "new": 2 });
        assert_eq!(
            place.exchange(&begun, "s").err().unwrap().code(),
            Code::Refused
        );
        assert_eq!(place.undo(&begun, "s").err().unwrap().code(), Code::Refused);
    }
}
