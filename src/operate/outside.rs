//! WAL for a server without a network: this process, which has one, runs restore_command in its place.
//!
//! The server's restore_command asks by a socket in the server's private folder (`command::outside`). The server chooses the name of a WAL
//! file; everything else of the command line is what the restore wrote. So code of the restored cluster reaches no other host.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Result, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::command::outside::{ASKER, SOCKET, is_destination, question};
use crate::error::Code;
use crate::exit::{Program, status};
use crate::pg::segment::WalFileName;

/// The socket, in the server's folder.
const NAME: &str = "wal";
/// A question is written at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// A segment that was fetched ahead takes a few milliseconds.
const PAUSE: Duration = Duration::from_millis(1);

/// The commands that are run for one server.
pub struct Commands {
    /// restore_command, as the restore wrote it.
    pub restore: String,
    /// The data directory, in which PostgreSQL would run it.
    pub data: PathBuf,
    /// The server's log, for what the command says.
    pub log: File,
    /// The process id of the server.
    pub server: u32,
}

/// The socket of one server, before somebody listens.
pub struct Outside {
    path: PathBuf,
    listener: UnixListener,
}

impl Outside {
    /// Makes the socket in the server's folder.
    ///
    /// # Errors
    /// Those of the system.
    pub fn bind(folder: &Path) -> Result<Outside> {
        let path = folder.join(NAME);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        Ok(Outside { path, listener })
    }

    /// The path at which the server asks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers from now on, until the answer is dropped.
    pub fn answer(self, commands: Commands) -> Answering {
        let is_over = Arc::new(AtomicBool::new(false));
        let (over, listener) = (Arc::clone(&is_over), self.listener);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                // A server that does not get its answer asks again, or ends and says why.
                let _ = stream.and_then(|mut stream| commands.serve(&mut stream, &over));
            }
        });
        Answering {
            path: self.path,
            is_over,
            thread: Some(thread),
        }
    }
}

/// Somebody answers; dropped, nobody does, and what was being fetched is given up.
pub struct Answering {
    path: PathBuf,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // The thread waits for a connection.
        let is_woken = UnixStream::connect(&self.path).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| is_woken) {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Commands {
    fn serve(&self, stream: &mut UnixStream, over: &AtomicBool) -> Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let answer = match question(stream)? {
            Some((name, path)) => self.run(&name, &path, over)?,
            None => None,
        };
        stream.write_all(&[answer.unwrap_or(status(Program::Restore, Code::Usage))])
    }

    /// Runs restore_command; its exit status. None where it was not run: the words are none of PostgreSQL's.
    fn run(&self, name: &OsString, path: &OsString, over: &AtomicBool) -> Result<Option<u8>> {
        let name = name.to_str().filter(|n| n.parse::<WalFileName>().is_ok());
        let path = path.to_str().filter(|path| is_destination(path));
        let Some((name, path)) = name.zip(path) else {
            return Ok(None);
        };
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(filled(&self.restore, name, path))
            .current_dir(&self.data)
            .env_remove(SOCKET)
            .env(ASKER, self.server.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log.try_clone()?)
            .spawn()?;
        loop {
            if let Some(ended) = child.try_wait()? {
                let code = ended.code().and_then(|code| u8::try_from(code).ok());
                return Ok(Some(
                    code.unwrap_or(status(Program::Restore, Code::Internal)),
                ));
            }
            if over.load(Ordering::Relaxed) {
                let _ = child.kill();
                let _ = child.wait();
                return Ok(None);
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// The command line that PostgreSQL would run (src/common/percentrepl.c, `replace_percent_placeholders`).
fn filled(command: &str, name: &str, path: &str) -> String {
    let mut line = String::new();
    let mut letters = command.chars();
    while let Some(letter) = letters.next() {
        match (letter, letters.clone().next()) {
            ('%', Some('f')) => line.push_str(name),
            ('%', Some('p')) => line.push_str(path),
            ('%', Some('%')) => line.push('%'),
            _ => {
                line.push(letter);
                continue;
            }
        }
        letters.next();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::outside::ask;

    #[test]
    fn a_command_line_is_filled_in_as_postgresql_does() {
        let of = |command| filled(command, "F", "P");
        assert_eq!(of("r --config 'a%%b' %f %p"), "r --config 'a%b' F P");
        assert_eq!(of("%%f %x 100%"), "%f %x 100%");
    }

    #[test]
    fn the_server_chooses_the_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let outside = Outside::bind(folder.path()).unwrap();
        let socket = outside.path().to_owned();
        let log = folder.path().join("log");
        let answering = outside.answer(Commands {
            restore: "echo %f %p $PITR_RESTORE_FOR $PWD >&2; exit 201".to_owned(),
            data: folder.path().to_owned(),
            log: File::create(&log).unwrap(),
            server: 4711,
        });
        let asked = |name: &str, path: &str| ask(&socket, &[name.into(), path.into()]);
        let name = "00000001000000000000000A";
        assert_eq!(asked(name, "pg_wal/RECOVERYXLOG").unwrap(), 201);
        for (name, path) in [
            (name, "/etc/passwd"),
            (name, "pg_wal/X; id"),
            ("$(id)", "pg_wal/RECOVERYXLOG"),
            ("../00000001000000000000000A", "pg_wal/RECOVERYXLOG"),
        ] {
            let answer = asked(name, path).unwrap();
            let refused = status(Program::Restore, Code::Usage);
            assert_eq!(answer, refused, "{name} {path}");
        }
        drop(answering);
        assert!(asked(name, "pg_wal/RECOVERYXLOG").is_err());
        let said = std::fs::read_to_string(log).unwrap();
        let place = folder.path().display();
        assert_eq!(said, format!("{name} pg_wal/RECOVERYXLOG 4711 {place}\n"));
    }

    #[test]
    fn what_is_being_fetched_is_given_up_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let outside = Outside::bind(folder.path()).unwrap();
        let socket = outside.path().to_owned();
        let answering = outside.answer(Commands {
            restore: "exec sleep 600".to_owned(),
            data: folder.path().to_owned(),
            log: File::create(folder.path().join("log")).unwrap(),
            server: 1,
        });
        let words = ["00000002.history", "pg_wal/RECOVERYHISTORY"].map(Into::into);
        let asking = std::thread::spawn(move || ask(&socket, &words));
        std::thread::sleep(Duration::from_millis(200));
        drop(answering);
        let answer = asking.join().unwrap().unwrap();
        assert_eq!(answer, status(Program::Restore, Code::Usage));
    }
}
