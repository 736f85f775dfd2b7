//! The standard output of a command, as one file.
//!
//! The stream goes into the snapshot as it comes, and to the check beside it: nothing lies on a disk in between. Command and check have
//! ended well before the root is written.

use std::io::{ErrorKind, Read, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};

use super::{directory, file, key};
use crate::backup::files::{Set, member};
use crate::err;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::program::{self, Running};
use crate::snapshot::kind::{Kind, Produced, Work};
use crate::snapshot::sink::FileSink;
use crate::tree::walk::Taken;

const BUFFER_BYTES: usize = 256 << 10;
/// How often the caller is heard while the stream flows.
const TICK: Duration = Duration::from_millis(100);
/// How long a wait for more of the stream lasts before it is looked whether the stream was given up.
const SHORT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};
/// How long nothing may come from the stream when the command has ended.
const PATIENCE: Duration = Duration::from_secs(10);

/// A command whose standard output is stored.
pub struct Stream {
    /// The program with its arguments.
    pub command: Vec<String>,
    /// The program that reads the stream, too; empty: none.
    pub check: Vec<String>,
    pub file_name: String,
    pub identity: String,
    /// The result, once the stream has ended.
    pub taken: Taken,
}

impl Kind for Stream {
    crate::backup::files::of_files!();

    /// The command says everything each time. A prior has much of it, and what it has is not stored again.
    fn takes_changes(&self) -> bool {
        true
    }

    fn begins_anew(&self) -> bool {
        true
    }

    fn produce(&mut self, work: &mut Work<'_, '_>) -> Result<Produced> {
        let host = work.host;
        host.progress.phase("copy", None);
        let mut sink = work.writer.sink();
        // A command that has ended waits for nobody, and one that a damaged prior ends would run twice.
        work.writer.prepare_reuse()?;
        let start_time = host.now();
        let hash = self.copy(&mut sink, (host, work.tick))?;
        sink.node(&key(b"")?, directory(start_time))?;
        sink.end_node(file(host.now(), hash))?;
        sink.finish()?;
        self.taken.reused_bytes = work.writer.reused_bytes();
        Ok(Produced {
            member: member(&self.taken, self.facts()),
            ..Produced::default()
        })
    }
}

impl Set for Stream {
    fn taken(&mut self) -> Taken {
        std::mem::take(&mut self.taken)
    }

    /// Arguments may hold secrets: the program's name alone is recorded.
    fn facts(&self) -> Option<Value> {
        Some(json!({
            "kind": "command",
            "program": self.command.first(),
            "check": self.check.first(),
            "file_name": self.file_name,
        }))
    }
}

impl Stream {
    /// Copies the stream into a file of `sink`, which stays open; returns the content's hash.
    fn copy(
        &mut self,
        sink: &mut FileSink<'_>,
        (host, tick): (&Host, &mut dyn FnMut() -> Result<()>),
    ) -> Result<[u8; 32]> {
        sink.begin_shared(key(self.file_name.as_bytes())?)?;
        let mut command = program::command(&self.command)?;
        let mut running = Running::start(command.stdout(Stdio::piped()))?;
        let mut check = match self.check.is_empty() {
            true => None,
            false => {
                let mut check = program::command(&self.check)?;
                let check = check.stdin(Stdio::piped()).stdout(Stdio::null());
                Some(Running::start(check)?)
            }
        };
        let pipes = (running.stdout(), check.as_mut().and_then(Running::stdin));
        let mut programs = Some((running, check));
        let (is_given_up, copied_bytes) = (AtomicBool::new(false), AtomicU64::new(0));
        let is_waiting = AtomicBool::new(false);
        let (copied, asked) = std::thread::scope(|threads| {
            let watched = (&is_given_up, &copied_bytes, &is_waiting);
            let copying = threads.spawn(move || pump(pipes, sink, host, watched));
            let mut asked = Ok(());
            let mut moved = (Instant::now(), 0);
            while !copying.is_finished() {
                if asked.is_ok() {
                    asked = tick();
                }
                let bytes = copied_bytes.load(Ordering::Relaxed);
                let is_over = programs
                    .as_mut()
                    .is_some_and(|(program, _)| program.is_over());
                // A check that is slow, or a repository, holds up what the command has long printed.
                let is_held_up = !is_waiting.load(Ordering::Relaxed);
                if !is_over || is_held_up || moved.1 != bytes {
                    moved = (Instant::now(), bytes);
                }
                if asked.is_ok() && moved.0.elapsed() > PATIENCE {
                    asked = Err(held_open());
                }
                if asked.is_err() {
                    // Both end, and with them the pipes, unless a worker holds one.
                    programs = None;
                    is_given_up.store(true, Ordering::Relaxed);
                }
                std::thread::sleep(TICK);
            }
            let copied = copying.join();
            let panicked = |_| Err(err!(Internal, "the thread that copies the stream panicked"));
            (copied.unwrap_or_else(panicked), asked)
        });
        asked?;
        let (bytes, hash) = copied?;
        let Some((running, check)) = programs else {
            return Err(err!(Interrupted, "interrupted"));
        };
        running.succeed(tick)?;
        if let Some(check) = check {
            check.succeed(tick).map_err(|e| {
                e.context("check the stream")
                    .hint("Nothing was stored: the check reads the stream on its standard input.")
            })?;
        }
        if bytes == 0 {
            return Err(err!(SourceMissing, "the command printed nothing")
                .hint("Nothing was stored.\nA command that leaves with 0 and prints nothing backs nothing up."));
        }
        self.taken.read = 1;
        self.taken.read_bytes = bytes;
        Ok(hash)
    }
}

fn held_open() -> Error {
    err!(SourceMissing, "the command has ended, and a program that it started holds its output open")
        .hint("Nothing was stored.\nLet the command send the output of what it leaves running elsewhere: program >/dev/null &")
}

/// Copies until the command has closed its output, or `is_given_up`; tells whether it is waiting for the command. A check may stop reading: its
/// status tells what it found.
fn pump(
    (from, mut check): (Option<ChildStdout>, Option<ChildStdin>),
    sink: &mut FileSink<'_>,
    host: &Host,
    (is_given_up, copied_bytes, is_waiting): (&AtomicBool, &AtomicU64, &AtomicBool),
) -> Result<(u64, [u8; 32])> {
    let mut from = from.ok_or_else(|| err!(Internal, "a command without an output"))?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut hasher = blake3::Hasher::new();
    loop {
        if is_given_up.load(Ordering::Relaxed) {
            return Err(err!(Interrupted, "the stream was given up"));
        }
        let mut poll = [PollFd::new(&from, PollFlags::IN)];
        is_waiting.store(true, Ordering::Relaxed);
        match rustix::event::poll(&mut poll, Some(&SHORT)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => is_waiting.store(false, Ordering::Relaxed),
            Err(e) => return Err(Error::from_io("wait for the command", e.into())),
        }
        let length = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::from_io("read from the command", e)),
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        hasher.update(bytes);
        sink.append(bytes)?;
        host.progress.advance(length as u64);
        copied_bytes.fetch_add(length as u64, Ordering::Relaxed);
        if let Some(to) = &mut check
            && let Err(e) = to.write_all(bytes)
        {
            match e.kind() {
                ErrorKind::BrokenPipe => check = None,
                _ => return Err(Error::from_io("write to the check", e)),
            }
        }
    }
    Ok((sink.position(), *hasher.finalize().as_bytes()))
}
