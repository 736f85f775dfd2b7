//! Whether a store compares the checksums that are sent to it. One that only sends them back confirms nothing by that.
//!
//! If a store compares them, and TLS protects a body on its way, the body's SHA-256 is left out of the signature, which
//! covers the checksum. The hash would be a third look at the same bytes. On a processor without instructions for it,
//! it takes more time than compressing the bytes.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use crate::store::http::failure::{Failure, Kind};

/// The known behaviour of a store, in this process.
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
    /// Returns the state for a store at `endpoint`. Amazon's own servers, which are used without an endpoint setting,
    /// are documented to compare.
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

    /// Converts the failure of a request with an unsigned body. Some stores do not take such a body, and a policy may
    /// forbid it. After a refusal all bodies are signed, and this request is tried again.
    pub(super) fn of_unsigned(&self, failure: Failure) -> Failure {
        if !matches!(failure.kind, Kind::Final | Kind::Wordless) {
            return failure;
        }
        self.is_signing.store(true, Ordering::Relaxed);
        Failure {
            kind: Kind::Again,
            ..failure
        }
    }

    /// Returns whether checksums are compared; nothing if finding out is worth a request, as it is for a process that
    /// writes a second object.
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
