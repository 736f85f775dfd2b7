//! Whether a store compares the checksums that are sent to it. One that only sends them back confirms nothing by that.
//!
//! Where it does, and TLS keeps a body on its way, the body's SHA-256 is left out of the signature, which covers the checksum: it would be a third
//! look at the same bytes, and takes more of the processor than compressing them where there are no instructions for it.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use super::failure::{Failure, Kind};

/// What is known of it, in this process.
pub(super) struct Sums {
    state: AtomicU8,
    /// Bodies are signed: nothing else keeps them on their way, or the store wants it.
    is_signing: AtomicBool,
}

/// Nothing was written yet.
const FRESH: u8 = 0;
/// One object was written, and read back.
const ASK: u8 = 1;
const COMPARED: u8 = 2;
const IGNORED: u8 = 3;

impl Sums {
    /// Of a store at `endpoint`. Amazon's own servers, which are behind none, document that they compare.
    pub(super) fn of(endpoint: Option<&str>) -> Sums {
        let (state, is_tls) = match endpoint {
            None => (COMPARED, true),
            Some(endpoint) => (FRESH, endpoint.starts_with("https://")),
        };
        Sums {
            state: AtomicU8::new(state),
            is_signing: AtomicBool::new(!is_tls),
        }
    }

    /// Whether a body goes without its hash in the signature.
    pub(super) fn go_unsigned(&self) -> bool {
        !self.is_signing.load(Ordering::Relaxed) && self.state.load(Ordering::Relaxed) == COMPARED
    }

    /// What an unsigned body came to. Not every store takes one, and a policy may forbid it: after a refusal all are signed, and this one is
    /// tried again.
    pub(super) fn of_unsigned(&self, failure: Failure) -> Failure {
        if failure.kind != Kind::Final {
            return failure;
        }
        self.is_signing.store(true, Ordering::Relaxed);
        Failure {
            kind: Kind::Again,
            ..failure
        }
    }

    /// What is known; nothing where finding out is worth a request, as it is for who writes a second object.
    pub(super) fn are_compared(&self) -> Option<bool> {
        match self.state.load(Ordering::Relaxed) {
            COMPARED => Some(true),
            IGNORED => Some(false),
            FRESH => {
                self.state.store(ASK, Ordering::Relaxed);
                Some(false)
            }
            _ => None,
        }
    }

    pub(super) fn found(&self, compares: Option<bool>) {
        if let Some(compares) = compares {
            let state = if compares { COMPARED } else { IGNORED };
            self.state.store(state, Ordering::Relaxed);
        }
    }
}
