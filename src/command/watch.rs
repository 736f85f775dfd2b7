//! The watch beside the work: SIGTERM, the deadline and a hanging repository end the program even while the work is stuck in a system
//! call.
//!
//! The work is done by a thread and the main thread watches, not the other way round: Linux gives a signal that is sent to a process to
//! its main thread first, and one that hangs in a dead NFS mount never runs the handler (it can only be killed).

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::store::life;

/// How often the watch looks: a promotion must not wait longer than a second.
const TICK: Duration = Duration::from_millis(250);

/// Runs `work` and returns what it returns, or what `look` says first, which is asked four times a second. In that case the work may
/// still hang: its temporary files are removed, and the caller must end the process.
///
/// After SIGTERM the temporary files are removed and the program dies of that signal, the one end that PostgreSQL expects at
/// shutdown.
///
/// # Errors
/// `Io` when the handler cannot be set; `Internal` when the work panics; what work and watch say.
pub fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
    look: impl FnMut() -> Option<Result<T>>,
) -> Result<T> {
    beside(work, look, &[SIGTERM], || {
        // Restores the default action and raises the signal again.
        let _ = signal_hook::low_level::emulate_default_handler(SIGTERM);
    })
}

/// As [`run`], for a program that must not be seen to die of a signal: each one that asks for its end makes this return an error.
///
/// # Errors
/// Those of [`run`]; `Interrupted`.
pub fn run_to_an_end<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
    look: impl FnMut() -> Option<Result<T>>,
) -> Result<T> {
    beside(work, look, &[SIGTERM, SIGINT, SIGHUP, SIGQUIT], || {})
}

fn beside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
    mut look: impl FnMut() -> Option<Result<T>>,
    signals: &[i32],
    interrupted: impl FnOnce(),
) -> Result<T> {
    let failed = |e| Error::from_io("watch for signals", e);
    let (mut read, write) = UnixStream::pair().map_err(failed)?;
    let mut wake = write.try_clone().map_err(failed)?;
    for signal in signals {
        let write = write.try_clone().map_err(failed)?;
        signal_hook::low_level::pipe::register(*signal, write).map_err(failed)?;
    }
    read.set_read_timeout(Some(TICK)).map_err(failed)?;
    let is_done = Arc::new(AtomicBool::new(false));
    let done = Arc::clone(&is_done);
    let worker = std::thread::Builder::new()
        .name("work".to_owned())
        .spawn(move || {
            // Dropped at the end of the work, also when it panics.
            let _wake = Defer(Some(move || {
                done.store(true, Ordering::Release);
                let _ = wake.write_all(b"d");
            }));
            work()
        })
        .map_err(failed)?;
    let mut byte = [0];
    loop {
        match read.read(&mut byte) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if let Some(found) = look() {
                    durable::remove_temporaries();
                    return found;
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            _ if is_done.load(Ordering::Acquire) => {
                return worker.join().unwrap_or_else(|_| {
                    Err(err!(Internal, "internal error").hint("Please report this."))
                });
            }
            _ => {
                durable::remove_temporaries();
                interrupted();
                return Err(err!(Interrupted, "ended by a signal"));
            }
        }
    }
}

/// Calls a function when it is dropped.
struct Defer<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for Defer<F> {
    fn drop(&mut self) {
        if let Some(function) = self.0.take() {
            function();
        }
    }
}

/// When the work last went on, for the watch to see; and where its warnings go.
#[derive(Clone)]
pub struct Pulse {
    started: Instant,
    last_ms: Arc<AtomicU64>,
    /// Signs of life of object stores that were seen.
    signs: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
    /// Milliseconds from `started` to the last report or reminder.
    told_ms: Arc<AtomicU64>,
    warn: fn(&str),
}

impl Pulse {
    /// A pulse that begins now.
    pub fn new(warn: fn(&str)) -> Pulse {
        Pulse {
            started: Instant::now(),
            last_ms: Arc::default(),
            signs: Arc::new(AtomicU64::new(life::signs())),
            bytes: Arc::default(),
            told_ms: Arc::default(),
            warn,
        }
    }

    /// For how long nothing has happened: no piece of the file, and nothing from an object store.
    pub fn silence(&self) -> Duration {
        let signs = life::signs();
        if self.signs.swap(signs, Ordering::Relaxed) != signs {
            self.advance(0);
        }
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }

    /// Says in every `interval` how far work is that goes on.
    pub fn tell(&self, interval: Duration, message: impl FnOnce(u64) -> String) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        if bytes > 0 {
            self.remind(interval, || message(bytes));
        }
    }

    /// Says something once in every `interval`.
    pub fn remind(&self, interval: Duration, message: impl FnOnce() -> String) {
        let now = self.now();
        let told = self.told_ms.load(Ordering::Relaxed);
        if u128::from(now.saturating_sub(told)) >= interval.as_millis() {
            self.told_ms.store(now, Ordering::Relaxed);
            (self.warn)(&message());
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Progress for Pulse {
    fn advance(&self, bytes: u64) {
        self.last_ms.store(self.now(), Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn warn(&self, message: &str) {
        (self.warn)(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

    #[test]
    fn f20_work_that_goes_on_says_so_once_in_every_interval() {
        let pulse = Pulse::new(|line| SAID.lock().unwrap().push(line.to_owned()));
        let tell = |interval| pulse.tell(interval, |bytes| format!("{bytes} so far"));
        tell(Duration::ZERO);
        pulse.advance(5);
        tell(Duration::from_secs(3600));
        assert!(SAID.lock().unwrap().is_empty());
        tell(Duration::ZERO);
        pulse.advance(2);
        tell(Duration::from_secs(3600));
        tell(Duration::ZERO);
        assert_eq!(*SAID.lock().unwrap(), ["5 so far", "7 so far"]);
    }
}
