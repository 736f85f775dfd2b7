//! A client that writes all the while, waits for each write, and remembers what was confirmed. It bears whatever happens to the server.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::redis::server::Server;

/// A key that was confirmed, and the history of the server behind it in front.
type Confirmed = (String, String);

struct Shared {
    socket: Mutex<PathBuf>,
    is_over: AtomicBool,
    count: AtomicU64,
    /// Each confirms so many.
    wanted: u32,
    round: u64,
}

pub struct Writer {
    shared: Arc<Shared>,
    thread: JoinHandle<Vec<Confirmed>>,
}

/// The value of a key of the writer: what is restored is held against it.
pub fn value(key: &str) -> String {
    let length = key
        .bytes()
        .fold(7_usize, |sum, byte| sum * 31 % 997 + usize::from(byte));
    format!("{key}:").repeat(1 + length % 90)
}

impl Writer {
    /// Writes to a server, and counts what so many replicas confirm.
    pub fn start(server: &Server, wanted: u32, round: u64) -> Writer {
        let shared = Arc::new(Shared {
            socket: Mutex::new(server.socket()),
            is_over: AtomicBool::new(false),
            count: AtomicU64::new(0),
            wanted,
            round,
        });
        let state = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut confirmed = Vec::new();
            let mut number = 0;
            while !state.is_over.load(Ordering::SeqCst) {
                let _ = write(&state, &mut number, &mut confirmed);
                std::thread::sleep(Duration::from_millis(20));
            }
            confirmed
        });
        Writer { shared, thread }
    }

    /// Sends later writes to another server.
    pub fn go_to(&self, server: &Server) {
        *self.shared.socket.lock().unwrap() = server.socket();
    }

    /// How many were confirmed so far.
    pub fn count(&self) -> u64 {
        self.shared.count.load(Ordering::SeqCst)
    }

    /// Ends it; what was confirmed.
    pub fn stop(self) -> Vec<Confirmed> {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// Writes on one connection until that ends, or the server refuses.
fn write(shared: &Shared, number: &mut u64, confirmed: &mut Vec<Confirmed>) -> std::io::Result<()> {
    let socket = shared.socket.lock().unwrap().clone();
    let stream = UnixStream::connect(&socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut stream = stream;
    let mut line = || {
        lines
            .next()
            .unwrap_or_else(|| Err(std::io::ErrorKind::UnexpectedEof.into()))
    };
    let mut replid = None;
    while !shared.is_over.load(Ordering::SeqCst) && *shared.socket.lock().unwrap() == socket {
        *number += 1;
        // All keys of a writer have one slot, where the server is a shard.
        let key = format!("w:{{{}}}:{number}", shared.round);
        let commands = format!(
            "SET {key} {}\r\nWAIT {} 300\r\n",
            value(&key),
            shared.wanted
        );
        stream.write_all(commands.as_bytes())?;
        if line()? != "+OK" {
            return Ok(());
        }
        let told = line()?;
        let count: Option<u32> = told
            .strip_prefix(':')
            .and_then(|n| n.trim_end().parse().ok());
        if count.is_none_or(|count| count < shared.wanted) {
            // A master without replicas may begin another history with the next one.
            replid = None;
            continue;
        }
        if replid.is_none() {
            stream.write_all(b"INFO replication\r\nPING\r\n")?;
            loop {
                let told = line()?;
                match told.strip_prefix("master_replid:") {
                    Some(own) => replid = Some(own.trim_end().to_owned()),
                    None if told.trim_end() == "+PONG" => break,
                    None => {}
                }
            }
        }
        shared.count.fetch_add(1, Ordering::SeqCst);
        confirmed.push((replid.clone().unwrap_or_default(), key));
    }
    Ok(())
}
