//! Names of clusters and repositories.

use std::fmt;
use std::str::FromStr;

use crate::err;
use crate::error::Error;
use crate::text::as_text;

/// The name of a cluster: `[a-z0-9][a-z0-9._-]{0,62}`. It is part of object keys, hence the narrow alphabet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(String);

impl ClusterName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ClusterName {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        check("cluster", s)?;
        Ok(ClusterName(s.to_owned()))
    }
}

as_text!(ClusterName);

/// Refuses what is not a name; `kind` is "cluster" or "repository".
pub(super) fn check(kind: &str, s: &str) -> Result<(), Error> {
    let first = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let rest = |b: u8| first(b) || matches!(b, b'.' | b'_' | b'-');
    if (1..=63).contains(&s.len()) && s.bytes().take(1).all(first) && s.bytes().all(rest) {
        return Ok(());
    }
    let shown: String = s.chars().take(80).flat_map(char::escape_debug).collect();
    Err(err!(
        Usage,
        "\"{shown}\" is not a {kind} name: [a-z0-9][a-z0-9._-]{{0,62}} is needed"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_the_grammar() {
        let long = "a".repeat(63);
        for good in ["main", "0", "a.b_c-d", "9x", long.as_str()] {
            assert_eq!(good.parse::<ClusterName>().unwrap().to_string(), good);
        }
        let too_long = "a".repeat(64);
        for bad in [
            "", "../x", "-x", ".x", "_x", "a b", "Main", "é", "a/b", "a\0", &too_long,
        ] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
        let message = "../x".parse::<ClusterName>().unwrap_err().to_string();
        assert_eq!(
            message,
            "\"../x\" is not a cluster name: [a-z0-9][a-z0-9._-]{0,62} is needed"
        );
    }
}
