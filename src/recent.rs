//! Values that were used last, up to a number of them and of bytes.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Keeps values by their keys.
pub struct Recent<K, V> {
    /// Each with its bytes and its last use.
    kept: HashMap<K, (Arc<V>, usize, u64)>,
    uses: u64,
    bytes: usize,
    limit: usize,
    limit_bytes: usize,
}

impl<K: Copy + Eq + Hash, V> Recent<K, V> {
    /// Keeps at most `limit` values of at most `limit_bytes` together.
    pub fn new(limit: usize, limit_bytes: usize) -> Recent<K, V> {
        Recent {
            kept: HashMap::new(),
            uses: 0,
            bytes: 0,
            limit,
            limit_bytes,
        }
    }

    /// Returns a value, which counts as a use of it.
    pub fn get(&mut self, key: K) -> Option<Arc<V>> {
        self.uses += 1;
        let (value, _, used) = self.kept.get_mut(&key)?;
        *used = self.uses;
        Some(Arc::clone(value))
    }

    /// Keeps a value, and lets go those that were not used for the longest time.
    pub fn put(&mut self, key: K, value: &Arc<V>, bytes: usize) {
        self.uses += 1;
        let before = self.kept.insert(key, (Arc::clone(value), bytes, self.uses));
        self.bytes += bytes;
        self.bytes -= before.map_or(0, |(_, bytes, _)| bytes);
        while self.bytes > self.limit_bytes || self.kept.len() > self.limit {
            let oldest = self.kept.iter().min_by_key(|(_, (.., used))| *used);
            let Some(oldest) = oldest.map(|(key, _)| *key) else {
                return;
            };
            self.remove(oldest);
        }
    }

    /// Lets a value go.
    pub fn remove(&mut self, key: K) {
        let gone = self.kept.remove(&key);
        self.bytes -= gone.map_or(0, |(_, bytes, _)| bytes);
    }

    /// The bytes of all values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many values are kept.
    pub fn count(&self) -> usize {
        self.kept.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_that_was_not_used_for_the_longest_time_goes_first() {
        let mut recent = Recent::new(3, 100);
        for key in 0..3 {
            recent.put(key, &Arc::new(key), 30);
        }
        assert_eq!(recent.get(0).as_deref(), Some(&0));
        recent.put(3, &Arc::new(3), 30);
        assert!(recent.get(1).is_none() && recent.get(0).is_some());
        recent.put(3, &Arc::new(4), 80);
        assert!(recent.get(2).is_none() && recent.get(0).is_none());
        assert_eq!(recent.get(3).as_deref(), Some(&4));
        recent.put(5, &Arc::new(5), 101);
        assert_eq!((recent.count(), recent.bytes()), (0, 0));
    }
}
