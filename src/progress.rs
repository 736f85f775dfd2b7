//! How the library tells what it is doing, without knowing what a terminal is.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Receives progress, notes and warnings. Implementations are shared between threads.
pub trait Progress: Send + Sync {
    /// A new phase of work begins; `total` is its size in bytes where it is known.
    fn phase(&self, _name: &str, _total: Option<u64>) {}
    /// `bytes` more of the phase are done.
    fn advance(&self, _bytes: u64) {}
    /// Something worth a line: a decision, a wait.
    fn note(&self, _message: &str) {}
    /// Something that went less well than it should.
    fn warn(&self, _message: &str) {}
    /// The phase so far; none where nobody measures.
    fn measured(&self) -> Option<Measured> {
        None
    }
}

/// How far a phase is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Measured {
    /// Its name.
    pub phase: String,
    pub done_bytes: u64,
    /// Its size in bytes, where it is known.
    pub total_bytes: Option<u64>,
    /// How long it goes on.
    pub elapsed: Duration,
}

/// Measures the phase that goes on.
#[derive(Default)]
pub struct Meter(Mutex<Option<(Measured, Instant)>>);

impl Meter {
    /// A new phase begins.
    pub fn phase(&self, name: &str, total_bytes: Option<u64>) {
        let measured = Measured {
            phase: name.to_owned(),
            total_bytes,
            ..Measured::default()
        };
        if let Ok(mut meter) = self.0.lock() {
            *meter = Some((measured, Instant::now()));
        }
    }

    /// More of it is done.
    pub fn advance(&self, bytes: u64) {
        if let Ok(mut meter) = self.0.lock()
            && let Some((measured, _)) = meter.as_mut()
        {
            measured.done_bytes += bytes;
        }
    }

    /// The phase so far; none before the first one.
    pub fn read(&self) -> Option<Measured> {
        let meter = self.0.lock().ok()?;
        let (measured, since) = meter.as_ref()?;
        Some(Measured {
            elapsed: since.elapsed(),
            ..measured.clone()
        })
    }
}

/// Says nothing.
pub struct Silent;

impl Progress for Silent {}

/// Keeps notes and warnings, for tests and for callers that print them later.
#[derive(Default)]
pub struct Collector {
    lines: Mutex<Vec<String>>,
}

impl Collector {
    /// Everything said so far; warnings begin with `warning: `.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().map(|l| l.clone()).unwrap_or_default()
    }

    fn add(&self, line: String) {
        if let Ok(mut lines) = self.lines.lock() {
            lines.push(line);
        }
    }
}

impl Progress for Collector {
    fn note(&self, message: &str) {
        self.add(message.to_owned());
    }

    fn warn(&self, message: &str) {
        self.add(format!("warning: {message}"));
    }
}
