//! How the library tells what it is doing, without knowing what a terminal is.

use std::sync::Mutex;

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
