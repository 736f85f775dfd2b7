//! Asks repositories one after the other, so that one which is silent keeps no other from being asked.
//!
//! A call into a dead mount does not return, and an object store that answers nothing is tried for its whole budget. Each is therefore
//! asked on a thread of its own, and the next one as soon as nothing has been heard for a moment; the silent one is waited for all the
//! same, for its word may be needed. How long altogether is for others to say, who see by [`Inquiry`] how far the asking is.

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
pub struct Asking<T> {
    sender: Sender<Result<T>>,
    answers: Receiver<Result<T>>,
    pieces: Arc<AtomicU64>,
    /// The signs of life seen last, and when they were others.
    heard: (u64, Instant),
}

impl<T> Default for Asking<T> {
    fn default() -> Asking<T> {
        let (sender, answers) = channel();
        Asking {
            sender,
            answers,
            pieces: Arc::default(),
            heard: (0, Instant::now()),
        }
    }
}

impl<T: Send + 'static> Asking<T> {
    /// Asks one more.
    ///
    /// # Errors
    /// `Io` when no thread can be had.
    pub fn ask(&mut self, question: impl FnOnce() -> T + Send + 'static) -> Result<()> {
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
    pub fn answer(&mut self, patience: Duration) -> Result<Option<T>> {
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

    /// Counts the pieces that come, each of which is a sign of life.
    pub fn pieces(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.pieces)
    }

    /// A progress that counts as a sign of life what it passes on, of the one at `place`.
    pub(super) fn listening(
        &self,
        progress: Arc<dyn Progress>,
        inquiry: Inquiry,
        place: &str,
    ) -> Arc<dyn Progress> {
        Arc::new(Listening {
            progress,
            inquiry,
            place: place.to_owned(),
            pieces: self.pieces(),
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
    inquiry: Inquiry,
    place: String,
    pieces: Arc<AtomicU64>,
}

impl Progress for Listening {
    fn advance(&self, bytes: u64) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        let now = Some(Instant::now());
        self.inquiry.at(&self.place, |asked| asked.last_piece = now);
        self.progress.advance(bytes);
    }

    fn warn(&self, message: &str) {
        self.progress.warn(message);
    }
}

/// Damage and gaps are no silence: they prove that the file, or later WAL, exists.
pub fn is_proof(code: Code) -> bool {
    matches!(code, Code::Damaged | Code::Gap)
}

/// How far the asking is, for those who end it.
#[derive(Clone, Default)]
pub struct Inquiry(Arc<Mutex<Vec<Asked>>>);

/// One who was asked, at the last time.
struct Asked {
    place: String,
    is_waiting: bool,
    last_piece: Option<Instant>,
    /// The code, text and hint of the last error that kept the repository from answering.
    trouble: Option<(Code, String, String)>,
}

impl Inquiry {
    pub(super) fn asks(&self, place: &str) {
        let asked = Asked {
            place: place.to_owned(),
            is_waiting: true,
            last_piece: None,
            trouble: None,
        };
        self.with(|all| {
            all.retain(|asked| asked.place != place);
            all.push(asked);
        });
    }

    pub(super) fn answered(&self, place: &str) {
        self.at(place, |asked| asked.is_waiting = false);
    }

    /// No silence of others makes less true what is proven by it.
    pub(super) fn cannot_tell(&self, place: &str, e: &Error) {
        let hint = e.hint_text().unwrap_or_default().to_owned();
        self.at(place, |asked| {
            asked.trouble = Some((e.code(), e.to_string(), hint));
        });
    }

    /// Whether somebody has not answered.
    pub fn is_waiting(&self) -> bool {
        self.with(|all| all.iter().any(|asked| asked.is_waiting))
    }

    /// When a piece of the file came last from somebody who has not answered.
    pub fn last_piece(&self) -> Option<Instant> {
        self.with(|all| {
            let silent = all.iter().filter(|asked| asked.is_waiting);
            silent.filter_map(|asked| asked.last_piece).max()
        })
    }

    /// Returns the error for a fetch that ends here, after a silence of this length. It names the repositories that are
    /// silent and the error of another one, preferring an error that is a proof.
    pub fn cut_off(&self, silence: Duration) -> Error {
        self.with(|all| {
            let silent = all.iter().filter(|asked| asked.is_waiting);
            let silent: Vec<&str> = silent.map(|asked| &*asked.place).collect();
            let silent = match silent.as_slice() {
                [] => "the repository".to_owned(),
                silent => format!("\"{}\"", silent.join("\", \"")),
            };
            let silent = format!("{silent} has not answered for {} s", silence.as_secs());
            let troubles = || all.iter().filter_map(|asked| asked.trouble.as_ref());
            let proof = troubles().find(|(code, ..)| is_proof(*code));
            match proof.or(troubles().next_back()) {
                Some((code, text, hint)) if is_proof(*code) => {
                    Error::new(*code, format!("{text}; {silent}")).hint(hint.clone())
                }
                Some((_, text, _)) => {
                    err!(Unreachable, "{silent}, and another cannot tell: {text}")
                }
                None => err!(Unreachable, "{silent}"),
            }
        })
    }

    fn at(&self, place: &str, change: impl FnOnce(&mut Asked)) {
        self.with(|all| {
            all.iter_mut()
                .find(|asked| asked.place == place)
                .map(change)
        });
    }

    fn with<T>(&self, look: impl FnOnce(&mut Vec<Asked>) -> T) -> T {
        // A list is whole whoever panicked.
        let mut all = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        look(&mut all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOR_EVER: Duration = Duration::from_secs(3600);

    #[test]
    fn a_silent_one_is_passed_over_and_still_heard() {
        let mut asking = Asking::default();
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
        let mut asking: Asking<()> = Asking::default();
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
        inquiry.cannot_tell("file:///b", &err!(Denied, "it is forbidden"));
        let e = inquiry.cut_off(five);
        assert_eq!(e.code(), Code::Unreachable);
        assert_eq!(
            e.to_string(),
            "\"file:///a\" has not answered for 5 s, and another cannot tell: it is forbidden"
        );
        let said = |place: &str, e: Error| {
            inquiry.asks(place);
            inquiry.answered(place);
            inquiry.cannot_tell(place, &e);
        };
        said("file:///c", err!(Gap, "it is used").hint("Look."));
        said("file:///b", err!(Denied, "it is forbidden"));
        let e = inquiry.cut_off(five);
        assert_eq!((e.code(), e.hint_text()), (Code::Gap, Some("Look.")));
        assert_eq!(
            e.to_string(),
            "it is used; \"file:///a\" has not answered for 5 s"
        );
        // Who is asked anew has said nothing yet.
        inquiry.asks("file:///b");
        inquiry.asks("file:///c");
        inquiry.answered("file:///c");
        assert_eq!(
            inquiry.cut_off(five).to_string(),
            "\"file:///a\", \"file:///b\" has not answered for 5 s"
        );
    }

    #[test]
    fn what_moved_is_asked_of_those_who_have_not_answered() {
        let (asking, inquiry) = (Asking::<()>::default(), Inquiry::default());
        inquiry.asks("file:///a");
        assert!(inquiry.last_piece().is_none());
        let silent = Arc::new(crate::progress::Silent);
        let progress = asking.listening(silent, inquiry.clone(), "file:///a");
        progress.advance(1);
        assert!(inquiry.last_piece().is_some());
        inquiry.answered("file:///a");
        assert!(inquiry.last_piece().is_none());
    }
}
