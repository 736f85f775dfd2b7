//! Asks repositories one after the other, so that one which is silent keeps no other from being asked.
//!
//! A call into a dead mount does not return, and an object store that answers nothing is tried for its whole budget. Each is therefore
//! asked on a thread of its own, and the next one as soon as nothing has been heard for a moment; the silent one is waited for all the
//! same, for its word may be needed. How long altogether is for the watch to say, which sees by [`Inquiry`] how far the asking is.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::err;
use crate::error::{Code, Error, Result};
use crate::progress::Progress;
use crate::store::life;

/// How often it is looked for signs of life while an answer is waited for.
const TICK: Duration = Duration::from_millis(50);

/// Those who are asked, and what is heard of them.
pub(super) struct Asking<T> {
    sender: Sender<Result<T>>,
    answers: Receiver<Result<T>>,
    pieces: Arc<AtomicU64>,
    /// The signs of life seen last, and when they were others.
    heard: (u64, Instant),
}

impl<T: Send + 'static> Asking<T> {
    pub(super) fn new() -> Asking<T> {
        let (sender, answers) = channel();
        Asking {
            sender,
            answers,
            pieces: Arc::default(),
            heard: (0, Instant::now()),
        }
    }

    /// Asks one more.
    pub(super) fn ask(&mut self, question: impl FnOnce() -> T + Send + 'static) -> Result<()> {
        let sender = self.sender.clone();
        let ask = move || {
            let answer = catch_unwind(AssertUnwindSafe(question));
            // Nobody hears it once another answer was enough.
            let _ = sender.send(
                answer.map_err(|_| err!(Internal, "internal error").hint("Please report this.")),
            );
        };
        std::thread::Builder::new()
            .name("ask".to_owned())
            .spawn(ask)
            .map_err(|e| Error::from_io("ask a repository", e))?;
        self.heard.1 = Instant::now();
        Ok(())
    }

    /// Returns the next answer; `None` once nothing was heard of anyone for `patience`.
    ///
    /// # Errors
    /// `Internal` when asking panicked.
    pub(super) fn answer(&mut self, patience: Duration) -> Result<Option<T>> {
        loop {
            match self.answers.recv_timeout(TICK) {
                Ok(answer) => {
                    self.heard.1 = Instant::now();
                    return answer.map(Some);
                }
                Err(RecvTimeoutError::Timeout) if self.silence() < patience => {}
                Err(_) => return Ok(None),
            }
        }
    }

    /// A progress that counts as a sign of life what it passes on.
    pub(super) fn listening(&self, progress: Arc<dyn Progress>) -> Arc<dyn Progress> {
        Arc::new(Listening {
            progress,
            pieces: Arc::clone(&self.pieces),
        })
    }

    fn silence(&mut self) -> Duration {
        let signs = life::signs().wrapping_add(self.pieces.load(Ordering::Relaxed));
        if signs != self.heard.0 {
            self.heard = (signs, Instant::now());
        }
        self.heard.1.elapsed()
    }
}

struct Listening {
    progress: Arc<dyn Progress>,
    pieces: Arc<AtomicU64>,
}

impl Progress for Listening {
    fn advance(&self, bytes: u64) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        self.progress.advance(bytes);
    }

    fn warn(&self, message: &str) {
        self.progress.warn(message);
    }
}

/// How far the asking is, for a watch that ends it.
#[derive(Clone, Default)]
pub struct Inquiry(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    asked: Vec<String>,
    proof: Option<(Code, String, String)>,
}

impl Inquiry {
    pub(super) fn begin(&self) {
        self.with(|state| *state = State::default());
    }

    pub(super) fn asks(&self, place: &str) {
        self.with(|state| state.asked.push(place.to_owned()));
    }

    pub(super) fn answered(&self, place: &str) {
        self.with(|state| state.asked.retain(|asked| asked != place));
    }

    /// An answer that no silence of others makes less true.
    pub(super) fn proves(&self, e: &Error) {
        let hint = e.hint_text().unwrap_or_default().to_owned();
        self.with(|state| state.proof = Some((e.code(), e.to_string(), hint)));
    }

    /// Whether somebody has not answered.
    pub fn is_waiting(&self) -> bool {
        self.with(|state| !state.asked.is_empty())
    }

    /// What is to be said when it ends here, after so long a silence: what is proven by those who answered, else who is silent.
    pub fn cut_off(&self, silence: Duration) -> Error {
        self.with(|state| match &state.proof {
            Some((code, text, hint)) => Error::new(*code, text.clone()).hint(hint.clone()),
            None => err!(
                Unreachable,
                "{} has not answered for {} s",
                match state.asked.as_slice() {
                    [] => "the repository".to_owned(),
                    asked => format!("\"{}\"", asked.join("\", \"")),
                },
                silence.as_secs()
            ),
        })
    }

    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        // A list is whole whoever panicked.
        let mut state = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        look(&mut state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOR_EVER: Duration = Duration::from_secs(3600);

    #[test]
    fn a_silent_one_is_passed_over_and_still_heard() {
        let mut asking = Asking::new();
        let (speak, spoken) = channel::<()>();
        let silent = move || {
            let _ = spoken.recv();
            1
        };
        asking.ask(silent).unwrap();
        assert_eq!(asking.answer(Duration::from_millis(1)).unwrap(), None);
        asking.ask(|| 2).unwrap();
        assert_eq!(asking.answer(FOR_EVER).unwrap(), Some(2));
        speak.send(()).unwrap();
        assert_eq!(asking.answer(FOR_EVER).unwrap(), Some(1));
    }

    #[test]
    fn a_panic_is_an_error_and_no_silence() {
        let mut asking: Asking<()> = Asking::new();
        asking.ask(|| panic!("for the test")).unwrap();
        let e = asking.answer(FOR_EVER).unwrap_err();
        assert_eq!(e.code(), Code::Internal);
    }

    #[test]
    fn what_is_proven_is_said_before_who_is_silent() {
        let inquiry = Inquiry::default();
        inquiry.asks("file:///a");
        inquiry.asks("file:///b");
        inquiry.answered("file:///b");
        let five = Duration::from_secs(5);
        let e = inquiry.cut_off(five);
        assert_eq!(e.code(), Code::Unreachable);
        assert_eq!(e.to_string(), "\"file:///a\" has not answered for 5 s");
        inquiry.proves(&err!(Gap, "it is used").hint("Look."));
        let e = inquiry.cut_off(five);
        assert_eq!((e.code(), e.hint_text()), (Code::Gap, Some("Look.")));
    }
}
