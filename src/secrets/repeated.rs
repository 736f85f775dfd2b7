//! Secrets that stand elsewhere, too: where no key and no shape tells of them.

use std::collections::{BTreeMap, BTreeSet};

use aho_corasick::{AhoCorasick, MatchKind};
use zeroize::Zeroizing;

use super::{Found, Rule, merged};
use crate::err;
use crate::error::{Error, Result};

/// Shorter values may be words that mean something else.
const LEAST_BYTES: usize = 8;
/// Longer ones are files or keys, which stand in one place.
const MOST_BYTES: usize = 1024;

/// More or longer values are not looked for: their automaton would not fit into memory.
const VALUES_MAX: usize = 20_000;
const ALL_LIMIT_BYTES: usize = 1 << 20;
/// The files of root are searched for everybody's values.
const ROOT: u32 = 0;

/// The values of secrets that were found in a set of files, by the owners of the files.
///
/// Who could have values looked for in another's files, or his own files searched for them, could test guesses.
#[derive(Default)]
pub struct Values(BTreeMap<u32, Vec<Zeroizing<Vec<u8>>>>);

/// A file that is searched.
pub struct Searched<'c> {
    pub owner: u32,
    pub content: &'c [u8],
    pub found: &'c mut Vec<Found>,
}

impl Values {
    /// Adds the secrets of one file.
    pub fn add(&mut self, owner: u32, content: &[u8], found: &[Found]) {
        let values = self.0.entry(owner).or_default();
        for one in found {
            let value = content.get(one.span.clone()).unwrap_or_default();
            let is_word = value
                .iter()
                .all(|b| b.is_ascii_alphabetic() || *b == b'_' || *b == b'-');
            if (LEAST_BYTES..=MOST_BYTES).contains(&value.len()) && !is_word {
                values.push(Zeroizing::new(value.to_vec()));
            }
        }
    }

    /// Adds to the secrets of each file what stands elsewhere as one, in a file of the same owner; to root's, in any file.
    ///
    /// # Errors
    /// `Refused` where the values are too many to be looked for.
    pub fn find<'c>(&self, files: impl Iterator<Item = Searched<'c>>) -> Result<()> {
        let all: BTreeSet<&[u8]> = self.0.values().flatten().map(|v| v.as_slice()).collect();
        let length: usize = all.iter().map(|value| value.len()).sum();
        if all.len() > VALUES_MAX || length > ALL_LIMIT_BYTES {
            return Err(too_many(&format!(
                "the set has {} secrets with {length} bytes, and at most {VALUES_MAX} with {ALL_LIMIT_BYTES} can be looked for in its other files",
                all.len()
            )));
        }
        let mut by_owner: BTreeMap<u32, Vec<Searched<'c>>> = BTreeMap::new();
        for file in files {
            by_owner.entry(file.owner).or_default().push(file);
        }
        for (owner, files) in by_owner {
            let own = self.0.get(&owner).into_iter().flatten();
            let values: Vec<&[u8]> = match owner {
                ROOT => all.iter().copied().collect(),
                _ => {
                    let own: BTreeSet<&[u8]> = own.map(|value| value.as_slice()).collect();
                    own.into_iter().collect()
                }
            };
            let matcher = AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(values)
                .map_err(|e| {
                    too_many(&format!("the secrets of the set cannot be looked for: {e}"))
                })?;
            for file in files {
                let repeated = matcher.find_iter(file.content).map(|one| Found {
                    span: one.range(),
                    key: String::new(),
                    rule: Rule::Repeated,
                });
                let mut all = std::mem::take(file.found);
                all.extend(repeated);
                *file.found = merged(all);
            }
        }
        Ok(())
    }
}

fn too_many(what: &str) -> Error {
    err!(Refused, "{what}").hint("Nothing was stored. Name fewer paths, or make two sets of them.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::{Overrides, recognise};

    const FIRST: &[u8] = b"DB_PASSWORD=hunter22x\n";
    const SECOND: &[u8] = b"say hunter22x, and postgres\n";

    /// The secrets of both files, which have these owners.
    fn found(owners: [u32; 2]) -> [Vec<Found>; 2] {
        let none = Overrides::default();
        let mut found = [
            recognise(".env", FIRST, &none),
            recognise("notes", SECOND, &none),
        ];
        assert!(found[1].is_empty());
        let mut values = Values::default();
        values.add(owners[0], FIRST, &found[0]);
        let files = [FIRST, SECOND].into_iter().zip(owners).zip(&mut found);
        values
            .find(files.map(|((content, owner), found)| Searched {
                owner,
                content,
                found,
            }))
            .unwrap();
        found
    }

    #[test]
    fn a_secret_is_one_wherever_it_stands() {
        let found = found([7, 7]);
        assert_eq!((found[0].len(), found[1].len()), (1, 1));
        assert_eq!(
            (found[1][0].span.clone(), found[1][0].rule),
            (4..13, Rule::Repeated)
        );
    }

    #[test]
    fn nobody_tests_guesses_in_the_files_of_others() {
        // The first owner has the secret, the second writes the guess.
        for (owners, expected) in [([0, 0], 1), ([7, 0], 1), ([0, 7], 0), ([7, 8], 0)] {
            assert_eq!(found(owners)[1].len(), expected, "{owners:?}");
        }
    }

    #[test]
    fn too_many_values_are_an_error() {
        let whole = |length| Found {
            span: 0..length,
            key: String::new(),
            rule: Rule::Key,
        };
        let refused = |count: usize, length: usize| {
            let mut values = Values::default();
            for n in 0..count {
                let value = format!("{n:0length$}");
                values.add(7, value.as_bytes(), &[whole(length)]);
            }
            values.find(std::iter::empty()).is_err()
        };
        assert!(!refused(VALUES_MAX, 8) && refused(VALUES_MAX + 1, 8));
        assert!(!refused(1024, 1024) && refused(1025, 1024));
    }
}
