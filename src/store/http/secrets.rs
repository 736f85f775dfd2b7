//! Secrets that must stay hidden: keys and tokens that sign requests. A store may repeat them in its answer to a
//! request that it does not accept, and its answers go into messages and logs.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// The number of secrets that are remembered, the last ones: earlier ones have expired.
const KNOWN: usize = 8;
/// A shorter secret is a word, which texts may hold.
const SHORTEST: usize = 8;
/// Stands in the place of a secret.
const MASK: &str = "[secret]";

/// The secrets of one set of settings, as they were given out.
#[derive(Debug, Default)]
pub(in crate::store) struct Secrets(Mutex<VecDeque<String>>);

impl Secrets {
    pub(in crate::store) fn remember(&self, secret: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if secret.len() >= SHORTEST && !known.iter().any(|k| k == secret) {
            known.truncate(KNOWN - 1);
            known.push_front(secret.to_owned());
        }
    }

    /// The text without them.
    pub(in crate::store) fn scrub(&self, text: &str) -> String {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = text.to_owned();
        for secret in known.iter() {
            text = without(&text, secret);
        }
        text
    }
}

/// A text without a secret, as it is and as URLs hold it.
pub(super) fn without(text: &str, secret: &str) -> String {
    let encoded = secret
        .replace('/', "%2F")
        .replace('+', "%2B")
        .replace('=', "%3D");
    text.replace(secret, MASK).replace(&encoded, MASK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_out_is_taken_out_of_texts() {
        let secrets = Secrets::default();
        for secret in ["short", "wJalr/XUtn+FEMI=", "another-secret"] {
            secrets.remember(secret);
        }
        assert_eq!(
            secrets.scrub("a wJalr/XUtn+FEMI= b wJalr%2FXUtn%2BFEMI%3D c another-secret, short"),
            "a [secret] b [secret] c [secret], short"
        );
        for n in 0..KNOWN {
            secrets.remember(&format!("renewed-{n}"));
        }
        assert_eq!(secrets.scrub("another-secret"), "another-secret");
        assert_eq!(secrets.scrub("renewed-0 renewed-7"), "[secret] [secret]");
    }
}
