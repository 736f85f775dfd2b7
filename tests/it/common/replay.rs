//! The answers of a real server, recorded and played back: the same base backup a thousand times, without a server.
//!
//! A [`Recording`] is made by a proxy on a Unix socket; a [`Player`] answers on another one. Commands are matched by their text
//! (`BASE_BACKUP` by its first word, because its label changes; a slot's name does not count); one that was asked several times gets its answers in turn, the last
//! one for ever.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::{Cluster, Sandbox};

const SOCKET: &str = ".s.PGSQL.5432";

/// Everything that a server sent, by connection and command.
#[derive(Clone, Default)]
pub struct Recording {
    sessions: Vec<Session>,
}

#[derive(Clone, Default)]
struct Session {
    replication: bool,
    /// From the authentication to the first ReadyForQuery.
    greeting: Vec<u8>,
    answers: Vec<(String, Vec<u8>)>,
}

impl Recording {
    /// Records while `talk` uses the connection string that it is given.
    pub fn of(cluster: &Cluster, talk: impl FnOnce(&str)) -> Recording {
        let sandbox = Sandbox::new("record");
        let listener = UnixListener::bind(sandbox.join(SOCKET)).expect("a socket");
        open_to_all(&sandbox.join(SOCKET));
        let server = cluster
            .socket_dir()
            .join(format!(".s.PGSQL.{}", cluster.port()));
        let recording = Arc::new(Mutex::new(Recording::default()));
        let kept = Arc::clone(&recording);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = UnixStream::connect(&server).expect("the server answers");
                let recording = Arc::clone(&kept);
                std::thread::spawn(move || record(client, server, &recording));
            }
        });
        talk(&conninfo(sandbox.path()));
        // An answer is kept when its last message passes, before the client sees it.
        recording.lock().unwrap().clone()
    }

    /// Bytes of the answer that is the base backup.
    pub fn size(&self) -> usize {
        let answers = self.sessions.iter().flat_map(|session| &session.answers);
        let backups = answers.filter(|(text, _)| key(text) == "BASE_BACKUP");
        backups.map(|(_, bytes)| bytes.len()).sum()
    }

    /// Answers like the recorded server, until the player is dropped.
    pub fn play(&self) -> Player {
        let sandbox = Sandbox::new("play");
        let listener = UnixListener::bind(sandbox.join(SOCKET)).expect("a socket");
        open_to_all(&sandbox.join(SOCKET));
        let cut = Arc::new(AtomicUsize::new(usize::MAX));
        let (recording, cut_here) = (self.clone(), Arc::clone(&cut));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (recording, cut) = (recording.clone(), Arc::clone(&cut_here));
                std::thread::spawn(move || {
                    let _ = play(client, &recording, &cut);
                });
            }
        });
        Player { sandbox, cut }
    }
}

/// A socket that answers like the recorded server.
pub struct Player {
    sandbox: Sandbox,
    cut: Arc<AtomicUsize>,
}

impl Player {
    /// The connection string.
    pub fn conninfo(&self) -> String {
        conninfo(self.sandbox.path())
    }

    /// Lets every later answer of a base backup break off after so many bytes, with the connection.
    pub fn cut_backup_after(&self, bytes: usize) {
        self.cut.store(bytes, Ordering::SeqCst);
    }
}

fn conninfo(folder: &Path) -> String {
    format!("host={} port=5432 user=postgres", folder.display())
}

fn open_to_all(socket: &Path) {
    std::fs::set_permissions(socket, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
}

/// Reads a message: its type (none for the very first of a client), and all its bytes.
fn message(from: &mut UnixStream, typed: bool) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; if typed { 5 } else { 4 }];
    from.read_exact(&mut bytes)?;
    let length = bytes.len();
    let size = u32::from_be_bytes(bytes[length - 4..].try_into().unwrap()) as usize;
    bytes.resize(length + size - 4, 0);
    from.read_exact(&mut bytes[length..])?;
    Ok(bytes)
}

fn command(query: &[u8]) -> String {
    let text = String::from_utf8_lossy(&query[5..]);
    text.trim_end_matches('\0').to_owned()
}

fn asks_for_replication(startup: &[u8]) -> bool {
    startup.windows(12).any(|part| part == b"replication\0")
}

/// One connection: its commands and answers alternate.
fn record(mut client: UnixStream, mut server: UnixStream, recording: &Mutex<Recording>) {
    let mut pass = || -> std::io::Result<()> {
        let startup = message(&mut client, false)?;
        server.write_all(&startup)?;
        let greeting = answer(&mut server, &mut client, &mut |_| {})?;
        let at = {
            let mut recording = recording.lock().unwrap();
            recording.sessions.push(Session {
                replication: asks_for_replication(&startup),
                greeting,
                answers: Vec::new(),
            });
            recording.sessions.len() - 1
        };
        loop {
            let query = message(&mut client, true)?;
            server.write_all(&query)?;
            if query[0] != b'Q' {
                return Ok(());
            }
            if command(&query).starts_with("START_REPLICATION") {
                let (client, server) = (client.try_clone()?, server.try_clone()?);
                std::thread::spawn(move || pass_copy(client, server));
            }
            answer(&mut server, &mut client, &mut |bytes| {
                let mut recording = recording.lock().unwrap();
                recording.sessions[at]
                    .answers
                    .push((command(&query), bytes.to_vec()));
            })?;
        }
    };
    let _ = pass();
}

/// Passes on what the client says of a stream, up to its end.
fn pass_copy(mut client: UnixStream, mut server: UnixStream) {
    while let Ok(part) = message(&mut client, true) {
        if server.write_all(&part).is_err() || part[0] == b'c' {
            return;
        }
    }
    let _ = server.shutdown(std::net::Shutdown::Both);
}

/// Passes an answer on up to ReadyForQuery, and hands it to `keep` before its last message.
fn answer(
    server: &mut UnixStream,
    client: &mut UnixStream,
    keep: &mut dyn FnMut(&[u8]),
) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let part = message(server, true)?;
        all.extend_from_slice(&part);
        if part[0] == b'Z' {
            keep(&all);
        }
        client.write_all(&part)?;
        if part[0] == b'Z' {
            return Ok(all);
        }
    }
}

fn play(mut client: UnixStream, recording: &Recording, cut: &AtomicUsize) -> std::io::Result<()> {
    let replication = asks_for_replication(&message(&mut client, false)?);
    let sessions: Vec<&Session> = recording
        .sessions
        .iter()
        .filter(|session| session.replication == replication)
        .collect();
    let Some(first) = sessions.first() else {
        return Ok(());
    };
    client.write_all(&first.greeting)?;
    let mut asked: Vec<String> = Vec::new();
    loop {
        let query = message(&mut client, true)?;
        match query[0] {
            b'Q' => {}
            // The answer to a stream holds all of it.
            b'd' | b'c' => continue,
            _ => return Ok(()),
        }
        let wanted = key(&command(&query)).to_owned();
        let answers: Vec<&Vec<u8>> = sessions
            .iter()
            .flat_map(|session| &session.answers)
            .filter(|(text, _)| key(text) == wanted)
            .map(|(_, bytes)| bytes)
            .collect();
        let turn = asked.iter().filter(|text| **text == wanted).count();
        let Some(bytes) = answers.get(turn).or(answers.last()) else {
            let fields = format!("SERROR\0VERROR\0CXX000\0Mnot in the recording: {wanted}\0\0");
            client.write_all(b"E")?;
            client.write_all(&(fields.len() as u32 + 4).to_be_bytes())?;
            client.write_all(fields.as_bytes())?;
            client.write_all(b"Z\0\0\0\x05I")?;
            continue;
        };
        if wanted == "BASE_BACKUP" && cut.load(Ordering::SeqCst) < bytes.len() {
            return client.write_all(&bytes[..cut.load(Ordering::SeqCst)]);
        }
        client.write_all(bytes)?;
        asked.push(wanted);
    }
}

fn key(command: &str) -> &str {
    if command.starts_with("BASE_BACKUP") {
        "BASE_BACKUP"
    } else if command.starts_with("CREATE_REPLICATION_SLOT") {
        "CREATE_REPLICATION_SLOT"
    } else if command.starts_with("START_REPLICATION") {
        &command[command.find("PHYSICAL").expect("a physical stream")..]
    } else {
        command
    }
}
