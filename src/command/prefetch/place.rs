//! A repository that may not answer.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::archive::asking::Asking;
use crate::config;

/// How long nothing need be heard of one until the next is asked. Nobody waits for it, and one that is slow is not to be given up.
const SILENT: Duration = Duration::from_secs(10);

/// One that is asked from several threads.
pub(super) struct Place {
    pub(super) configured: config::Repository,
    /// The questions to which it was silent, as long as they have no answer.
    open: Mutex<Vec<Weak<()>>>,
}

impl Place {
    pub(super) fn new(configured: config::Repository) -> Place {
        Place {
            configured,
            open: Mutex::default(),
        }
    }

    /// Returns the repository's answer, or `None` if it is silent; `question` counts the pieces that arrive. A
    /// repository that still owes an answer is asked nothing: each question into a dead mount is a thread that stays.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&AtomicU64) -> T + Send + 'static,
    ) -> Option<T> {
        if self.owes_an_answer() {
            return None;
        }
        let (mut asking, asked) = (Asking::default(), Arc::new(()));
        let (pieces, open) = (asking.pieces(), Arc::downgrade(&asked));
        let ask = move || {
            let _asked = asked;
            question(&pieces)
        };
        asking.ask(ask).ok()?;
        let answer = asking.answer(SILENT).ok()?;
        if answer.is_none() {
            self.open().push(open);
        }
        answer
    }

    fn owes_an_answer(&self) -> bool {
        let mut open = self.open();
        open.retain(|asked| asked.strong_count() > 0);
        !open.is_empty()
    }

    fn open(&self) -> MutexGuard<'_, Vec<Weak<()>>> {
        // A list is whole whoever panicked.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
