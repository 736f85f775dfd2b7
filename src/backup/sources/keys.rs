//! Keys of objects as places in a tree. Most keys are paths; the others keep their names beside the tree.

use crate::snapshot::filekey::{FileKey, Naming};

/// The place of an object in a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file at this path.
    File(Vec<u8>),
    /// A directory at this path: the object is empty, and its key ends in a slash.
    Directory(Vec<u8>),
    /// An attachment of this name: the key is no path, or another object lies below it.
    Beside(Vec<u8>),
}

impl Place {
    /// Pure: the place of a key of so many bytes, as far as the key alone tells.
    pub fn of(key: &str, size_bytes: u64) -> Place {
        let is_path = |path: &str| FileKey::from_path(path.as_bytes(), Naming::Tree).is_ok();
        match key.strip_suffix('/') {
            _ if key.is_empty() && size_bytes == 0 => Place::Directory(Vec::new()),
            Some(path) if !path.is_empty() && size_bytes == 0 && is_path(path) => {
                Place::Directory(path.as_bytes().to_vec())
            }
            None if !key.is_empty() && is_path(key) => Place::File(key.as_bytes().to_vec()),
            _ => Place::Beside(key.as_bytes().to_vec()),
        }
    }

    /// Pure: bytes by which places sort so that a directory stands directly before what is in it.
    pub fn order(&self) -> Vec<u8> {
        // A path has no zero byte.
        let below = |path: &[u8]| {
            path.iter()
                .map(|b| if *b == b'/' { 0 } else { *b })
                .collect()
        };
        let (first, rest, last): (u8, Vec<u8>, &[u8]) = match self {
            Place::File(path) => (1, below(path), &[]),
            Place::Directory(path) => (1, below(path), &[0]),
            Place::Beside(key) => (2, key.clone(), &[]),
        };
        [&[first], &rest[..], last].concat()
    }

    /// Pure: whether something at `next`, the place that follows in order, lies below this file.
    pub fn is_above(&self, next: &Place) -> bool {
        matches!(self, Place::File(_))
            && next
                .order()
                .starts_with(&[&self.order()[..], &[0]].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_no_paths_stand_beside_the_tree() {
        let file = |key: &str| Place::File(key.as_bytes().to_vec());
        for key in ["a", "a/b", "a b", "é/\n", ".a", "a/..b", "a\\b"] {
            assert_eq!(Place::of(key, 1), file(key), "{key}");
        }
        for key in ["/", "/a", "a//b", "a/../b", "..", ".", "a/.", "a/b/", ""] {
            let beside = Place::Beside(key.as_bytes().to_vec());
            assert_eq!(Place::of(key, 1), beside, "{key}");
        }
        assert_eq!(Place::of("a/b/", 0), Place::Directory(b"a/b".to_vec()));
        assert_eq!(Place::of("", 0), Place::Directory(Vec::new()));
        assert_eq!(Place::of("a//", 0), Place::Beside(b"a//".to_vec()));
        assert_eq!(Place::of("/", 0), Place::Beside(b"/".to_vec()));
    }

    #[test]
    fn a_key_that_is_a_prefix_is_followed_by_what_is_below_it() {
        let mut places: Vec<Place> = ["a", "a-x", "a.b", "a/b", "a/c", "ab", "a/b/c"]
            .iter()
            .map(|key| Place::of(key, 1))
            .collect();
        places.push(Place::of("ab/", 0));
        places.sort_by_key(Place::order);
        let above: Vec<&Place> = places
            .windows(2)
            .filter(|pair| pair[0].is_above(&pair[1]))
            .map(|pair| &pair[0])
            .collect();
        let expected = ["a", "a/b", "ab"].map(|key| Place::of(key, 1));
        assert_eq!(above, expected.iter().collect::<Vec<_>>());
    }
}
