//! One attempt of a request. It goes on as long as bytes come or go. A slow link is no reason to give up the bytes that
//! have arrived, and a silent one is no reason to wait. Messages about an attempt contain neither its secrets nor its
//! signature.
//!
//! The client of the vendor offers less: its minimum rate of an upload is not watched any more once a body's last piece is asked for, of
//! which there is only one where it lies in memory, and then nothing limits the wait for the answer.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use aws_sdk_s3::primitives::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::secrets::Secrets;
use crate::store::life;

/// A body is handed to the connection in pieces of this size, so that its progress is visible. The bytes that
/// connection and system buffer are not visible. They are up to some megabytes, for which a slow link needs its time
/// after the last piece.
pub(in crate::store) const PIECE_BYTES: usize = 64 << 10;

tokio::task_local! {
    static CURRENT: Arc<Attempt>;
}

/// How an attempt gets on.
pub(in crate::store) struct Attempt {
    moves: Mutex<Moves>,
    secrets: Arc<Secrets>,
    signature: OnceLock<String>,
}

struct Moves {
    begun: Instant,
    /// When something came or went last.
    last: Instant,
    /// From the first piece of a body to the last one so far.
    bodies: Option<(Instant, Instant)>,
    bytes: usize,
    /// Bytes of these that `last` does not stand for yet.
    uncounted: usize,
}

impl Attempt {
    pub(in crate::store) fn new(secrets: &Arc<Secrets>) -> Arc<Attempt> {
        let now = Instant::now();
        Arc::new(Attempt {
            moves: Mutex::new(Moves {
                begun: now,
                last: now,
                bodies: None,
                bytes: 0,
                uncounted: 0,
            }),
            secrets: Arc::clone(secrets),
            signature: OnceLock::new(),
        })
    }

    /// The attempt that this task makes.
    pub(in crate::store) fn current() -> Option<Arc<Attempt>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Makes it; none when nothing has moved for so long, or at the `end`.
    pub(in crate::store) async fn run<T>(
        self: &Arc<Self>,
        silence: Duration,
        end: Option<Instant>,
        request: impl Future<Output = T>,
    ) -> Option<T> {
        let mut request = pin!(CURRENT.scope(Arc::clone(self), request));
        loop {
            let silent = later(self.moves().last, silence);
            let until = end.map_or(silent, |end| end.min(silent));
            if let Ok(done) = tokio::time::timeout_at(until.into(), &mut request).await {
                return Some(done);
            }
            // Something may have moved while this waited.
            if until < silent || self.quiet() >= silence {
                return None;
            }
        }
    }

    /// How much of its time nothing of a body came or went. Waiting for the answer to one that has gone is such time.
    pub(in crate::store) fn idle(&self) -> Duration {
        let moves = self.moves();
        let moving = moves.bodies.map_or(Duration::ZERO, |(from, to)| to - from);
        moves.begun.elapsed().saturating_sub(moving)
    }

    /// For how long nothing has come or gone.
    pub(in crate::store) fn quiet(&self) -> Duration {
        self.moves().last.elapsed()
    }

    /// Why it was given up.
    pub(in crate::store) fn given_up(&self) -> String {
        let moves = self.moves();
        let seconds = |moment: Instant| format!("{:.1} s", moment.elapsed().as_secs_f32());
        let mut text = format!("no whole answer within {}", seconds(moves.begun));
        if moves.bytes > 0 {
            let last = seconds(moves.last);
            text.push_str(&format!(
                "; {} bytes have passed, the last {last} ago",
                moves.bytes
            ));
        }
        text
    }

    /// The request is signed: nobody needs to read by what.
    pub(in crate::store) fn is_signed(&self, authorization: &str) {
        if let Some((_, signature)) = authorization.split_once("Signature=") {
            let _ = self.signature.set(signature.to_owned());
        }
    }

    /// A text of the store, without what nobody may read.
    pub(in crate::store) fn scrub(&self, text: &str) -> String {
        let text = self.secrets.scrub(text);
        match self.signature.get() {
            Some(signature) => super::secrets::without(&text, signature),
            None => text,
        }
    }

    /// The answer has begun.
    pub(in crate::store) fn is_heard(&self) {
        self.moves().last = Instant::now();
    }

    /// Only `PIECE_BYTES` count as a move: with a byte now and then a store could else keep everybody waiting for ever, and another one unasked.
    fn has_passed(&self, bytes: usize) {
        let now = Instant::now();
        let mut moves = self.moves();
        moves.uncounted += bytes;
        if moves.uncounted >= PIECE_BYTES {
            moves.uncounted = 0;
            moves.last = now;
        }
        moves.bodies = Some((moves.bodies.map_or(now, |(first, _)| first), now));
        moves.bytes += bytes;
    }

    fn moves(&self) -> MutexGuard<'_, Moves> {
        self.moves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A time that no clock reaches is as good as one in a century.
fn later(moment: Instant, by: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    moment + by.min(CENTURY)
}

/// The direction of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Way {
    ToStore,
    FromStore,
}

/// A body that is watched while it passes.
pub(in crate::store) struct Watched {
    body: SdkBody,
    /// The rest of a piece that is too long.
    rest: Bytes,
    attempt: Arc<Attempt>,
    way: Way,
}

impl Watched {
    /// Takes the place of a body in the attempt that this task makes.
    pub(in crate::store) fn watch(body: &mut SdkBody, way: Way) {
        if let Some(attempt) = Attempt::current() {
            let watched = Watched {
                body: std::mem::replace(body, SdkBody::taken()),
                rest: Bytes::new(),
                attempt,
                way,
            };
            *body = SdkBody::from_body_1_x(watched);
        }
    }

    fn pass(&mut self) -> Bytes {
        let piece = self.rest.split_to(PIECE_BYTES.min(self.rest.len()));
        self.attempt.has_passed(piece.len());
        // An incoming piece is a sign of life only once it is known to be the requested content.
        if self.way == Way::ToStore {
            life::sign();
        }
        piece
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = <SdkBody as Body>::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                over => return Poll::Ready(over),
            };
            match frame.into_data() {
                Ok(data) => this.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        Poll::Ready(Some(Ok(Frame::data(this.pass()))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let inner = Body::size_hint(&self.body);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().build().unwrap()
    }

    #[test]
    fn a_body_passes_in_pieces_that_are_seen() {
        let content: Vec<u8> = (0..PIECE_BYTES * 2 + 5)
            .map(|n| u8::try_from(n % 251).unwrap())
            .collect();
        let attempt = Attempt::new(&Arc::default());
        let passed = runtime().block_on(attempt.run(Duration::MAX, None, async {
            let mut body = SdkBody::from(content.clone());
            Watched::watch(&mut body, Way::ToStore);
            assert_eq!(body.content_length(), Some(content.len() as u64));
            let signs = life::signs();
            let mut passed = Vec::new();
            while let Some(piece) =
                std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
            {
                passed.push(piece.unwrap().into_data().unwrap());
            }
            assert!(body.is_end_stream());
            assert!(life::signs() >= signs + 3);
            passed
        }));
        let passed = passed.unwrap();
        assert_eq!(passed.len(), 3);
        assert_eq!(passed.concat(), content);
        assert_eq!(attempt.moves().bytes, content.len());
    }

    #[test]
    fn only_silence_ends_an_attempt() {
        let silence = Duration::from_millis(300);
        let attempt = Attempt::new(&Arc::default());
        let slow = async {
            for _ in 0..30 {
                tokio::time::sleep(silence / 10).await;
                Attempt::current().unwrap().has_passed(PIECE_BYTES);
            }
        };
        let runtime = runtime();
        // On a machine that stands still for so long in the middle, silence is what it is.
        let patience = silence * 200;
        let done = runtime.block_on(attempt.run(patience, None, slow));
        assert!(done.is_some());
        assert!(attempt.idle() < patience, "{:?}", attempt.idle());
        // A byte now and then is silence, too.
        let attempt = Attempt::new(&Arc::default());
        let trickle = async {
            loop {
                Attempt::current().unwrap().has_passed(1);
                tokio::time::sleep(silence / 10).await;
            }
        };
        let ended: Option<()> = runtime.block_on(attempt.run(silence, None, trickle));
        assert!(ended.is_none() && attempt.moves().bytes > 0);
        let attempt = Attempt::new(&Arc::default());
        let forever = || std::future::pending::<()>();
        let begun = Instant::now();
        assert!(
            runtime
                .block_on(attempt.run(silence, None, forever()))
                .is_none()
        );
        assert!(begun.elapsed() >= silence && attempt.idle() >= silence);
        assert!(attempt.given_up().starts_with("no whole answer within "));
        attempt.has_passed(7);
        let end = Some(Instant::now());
        assert!(
            runtime
                .block_on(attempt.run(Duration::MAX, end, forever()))
                .is_none()
        );
        let told = attempt.given_up();
        assert!(told.contains("; 7 bytes have passed, the last "), "{told}");
    }
}
