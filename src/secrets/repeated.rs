//! Secrets that stand elsewhere, too: where no key and no shape tells of them.

use aho_corasick::{AhoCorasick, MatchKind};
use zeroize::Zeroizing;

use super::{Found, Rule, merged};

/// Shorter values may be words that mean something else.
const LEAST_BYTES: usize = 8;
/// Longer ones are files or keys, which stand in one place.
const MOST_BYTES: usize = 1024;

/// The values of secrets that were found in a set of files.
#[derive(Default)]
pub struct Values(Vec<Zeroizing<Vec<u8>>>);

impl Values {
    /// Adds the secrets of one file.
    pub fn add(&mut self, content: &[u8], found: &[Found]) {
        for one in found {
            let value = content.get(one.span.clone()).unwrap_or_default();
            let is_word = value
                .iter()
                .all(|b| b.is_ascii_alphabetic() || *b == b'_' || *b == b'-');
            if (LEAST_BYTES..=MOST_BYTES).contains(&value.len()) && !is_word {
                self.0.push(Zeroizing::new(value.to_vec()));
            }
        }
    }

    /// Adds to the secrets of each file what another place shows to be one. Nothing is added where the values are too many to be looked for.
    pub fn find<'c>(&self, files: impl Iterator<Item = (&'c [u8], &'c mut Vec<Found>)>) {
        let mut values: Vec<&[u8]> = self.0.iter().map(|value| value.as_slice()).collect();
        values.sort_unstable();
        values.dedup();
        let built = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(values);
        let Ok(matcher) = built else {
            return;
        };
        for (content, found) in files {
            let repeated = matcher.find_iter(content).map(|one| Found {
                span: one.range(),
                key: String::new(),
                rule: Rule::Repeated,
            });
            let mut all = std::mem::take(found);
            all.extend(repeated);
            *found = merged(all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::{Overrides, recognise};

    #[test]
    fn a_secret_is_one_wherever_it_stands() {
        let (first, second) = (
            &b"DB_PASSWORD=hunter22x\n"[..],
            &b"say hunter22x, and postgres\n"[..],
        );
        let none = Overrides::default();
        let mut found = [
            recognise(".env", first, &none),
            recognise("notes", second, &none),
        ];
        assert!(found[1].is_empty());
        let mut values = Values::default();
        values.add(first, &found[0]);
        values.find([first, second].into_iter().zip(found.iter_mut()));
        assert_eq!((found[0].len(), found[1].len()), (1, 1));
        assert_eq!(
            (found[1][0].span.clone(), found[1][0].rule),
            (4..13, Rule::Repeated)
        );
    }
}
