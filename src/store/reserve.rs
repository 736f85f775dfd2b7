//! A reserve of room on the disk of a repository. Expire writes marks and its claim before it may delete: on a full disk a piece of the
//! reserve gives each of these its block and its inode.
//!
//! A piece is a file with the name of an unfinished one. No reader takes it for an object, and a janitor that does not know the reserve removes
//! it after a day. Decision: `docs/decisions/0089-room-for-expiry.md`.

use super::{Key, Store, put};
use crate::durable::TEMPORARY_PREFIX;
use crate::error::{Code, Result};

/// How many writes to a full disk the reserve makes room for, at the least.
const PIECES: usize = 16;
/// A piece is worth several blocks: a file may need one in its directory, too.
const PIECE_BYTES: usize = 32 << 10;

fn stem() -> String {
    format!("{TEMPORARY_PREFIX}reserve.")
}

/// A piece lies outside the grammar of keys.
fn piece(number: usize) -> Key {
    Key(format!("{}{number:02}", stem()))
}

/// Whether a path below the root is that of a piece.
pub(super) fn is_piece(path: &str) -> bool {
    let number = path.strip_prefix(&stem());
    number.is_some_and(|n| n.len() == 2 && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Makes the pieces that are not there. The last one is made last and given up first, so it proves the others.
pub(super) fn keep(store: &dyn Store) -> Result<()> {
    if store.head(&piece(PIECES - 1))?.is_some() {
        return Ok(());
    }
    for number in 0..PIECES {
        let key = piece(number);
        if store.head(&key)?.is_none() {
            put(store, &key, &content(&store.location(), number))?;
        }
    }
    Ok(())
}

/// Bytes that no filesystem makes smaller.
fn content(place: &str, number: usize) -> Vec<u8> {
    let mut bytes = vec![0; PIECE_BYTES];
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(place.as_bytes())
        .update(&number.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// Gives a piece up; `false` when there are no more than `left`. The sync makes filesystems with a journal hand its blocks out.
pub(super) fn give(store: &dyn Store, left: usize) -> Result<bool> {
    for number in (left..PIECES).rev() {
        if store.discard(piece(number).as_str())? {
            store.settle_deletions("")?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns the result of a small write, which a full disk makes room for out of its reserve, but for pieces that are to be `left` for others.
///
/// # Errors
/// Those of `write`; `Full` when the reserve is spent.
pub fn spend<T>(store: &dyn Store, left: usize, mut write: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match write() {
            Err(e) if e.code() == Code::Full && store.give_reserve(left)? => {}
            written => return written,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::err;
    use crate::store::file::FileStore;

    #[test]
    fn a_reserve_is_no_content_and_each_write_spends_a_piece_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path(), 1).unwrap();
        let pieces = || std::fs::read_dir(dir.path()).unwrap().count();
        store.keep_reserve().unwrap();
        assert_eq!(pieces(), PIECES);
        assert_eq!(store.list("").unwrap(), []);
        assert_eq!(store.irregular().unwrap(), []);
        let mut failures = 3;
        let written = spend(&store, 0, || match failures {
            0 => Ok(()),
            _ => {
                failures -= 1;
                Err(err!(Full, "no room"))
            }
        });
        written.unwrap();
        assert_eq!(pieces(), PIECES - 3);
        store.keep_reserve().unwrap();
        assert_eq!(pieces(), PIECES);
        let full = spend(&store, 0, || Err::<(), _>(err!(Full, "no room")));
        assert_eq!((full.unwrap_err().code(), pieces()), (Code::Full, 0));
        let denied = spend(&store, 0, || Err::<(), _>(err!(Denied, "no right")));
        assert_eq!(denied.unwrap_err().code(), Code::Denied);
    }
}
