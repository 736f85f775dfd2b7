//! Objects that other programs write: a bucket as a source of files, and as a place for them.
//!
//! Keys are any text, and objects change. So each read names the version that it is about, and each write what it expects in its place.

mod copy;
mod facts;
mod read;
mod write;

use std::sync::Arc;
use std::sync::mpsc::sync_channel;

pub use copy::Copied;
pub use facts::Facts;
pub use read::{Answer, Piece};
pub use write::{Expected, Outcome, Upload};

use super::client::wait;
use super::listing::Listing;
use super::object::time;
use super::request::Bucket;
use super::{LISTED_AHEAD, S3Store};
use crate::config::S3Settings;
use crate::err;
use crate::error::{Code, Result};
use crate::store::http::failure::{Answered, Failure, Kind};

/// Keys in a page of a listing.
const PAGE_KEYS: i32 = 1000;

/// A bucket and a prefix in it, with whatever is there.
#[derive(Clone)]
pub struct Contents {
    bucket: Arc<Bucket>,
}

/// An object, as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Key below the prefix; empty where it is the prefix with its slash.
    pub key: String,
    /// Length.
    pub size_bytes: u64,
    /// When the store received it, in Unix seconds.
    pub modified: i64,
    /// The store's mark of this content.
    pub tag: String,
}

impl Contents {
    /// Opens a place; nothing is asked of the store yet. `nonce` is random.
    ///
    /// # Errors
    /// `Config` for settings that cannot be used.
    pub fn open(bucket: &str, prefix: &str, settings: &S3Settings, nonce: u64) -> Result<Contents> {
        let S3Store { bucket } = S3Store::open(bucket, prefix, settings, nonce)?;
        Ok(Contents { bucket })
    }

    /// The place as the operator knows it.
    pub fn location(&self) -> &str {
        &self.bucket.place
    }

    /// Whether the objects of a folder marker at the very prefix can be named: `prefix/`.
    pub fn has_prefix(&self) -> bool {
        !self.bucket.prefix.is_empty()
    }

    /// Whether one store has both, asked with the same credentials: it copies by itself.
    pub fn is_beside(&self, other: &Contents) -> bool {
        Arc::ptr_eq(&self.bucket.link, &other.bucket.link)
    }

    /// Hands every object to `see`, in order of keys.
    ///
    /// # Errors
    /// Those of the store and of `see`.
    pub fn list(&self, see: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
        let bucket = Arc::clone(&self.bucket);
        let (send, pages) = sync_channel::<Vec<Entry>>(LISTED_AHEAD);
        let listed = std::thread::spawn(move || {
            wait(async move {
                let mut listing = Listing::of_others(&bucket, PAGE_KEYS);
                while let Some(page) = entries(&mut listing).await? {
                    if send.send(page).is_err() {
                        break;
                    }
                }
                Ok::<(), Failure>(())
            })
        });
        let mut seen = Ok(());
        for page in pages {
            seen = page.into_iter().try_for_each(&mut *see);
            if seen.is_err() {
                break;
            }
        }
        let listed = listed.join();
        let listed = listed.map_err(|_| err!(Internal, "the thread that lists panicked"))?;
        seen?;
        Ok(listed??)
    }

    /// The first key, where there is any.
    ///
    /// # Errors
    /// Those of the store.
    pub fn first_key(&self) -> Result<Option<String>> {
        let bucket = Arc::clone(&self.bucket);
        let first = wait(async move {
            let mut listing = Listing::of_others(&bucket, 1);
            while let Some(page) = listing.next().await? {
                if let Some(found) = page.into_iter().next() {
                    return Ok(Some(found.key));
                }
            }
            Ok::<_, Failure>(None)
        })?;
        Ok(first?)
    }
}

/// The next page; none behind the last.
async fn entries(listing: &mut Listing<'_>) -> Answered<Option<Vec<Entry>>> {
    let Some(page) = listing.next().await? else {
        return Ok(None);
    };
    let mut entries = Vec::with_capacity(page.len());
    for found in page {
        let wrong = |what: &str| Failure::again(format!("a listing does not say {what}"));
        let size = found.size.and_then(|size| u64::try_from(size).ok());
        let modified = time(found.modified.as_ref())?;
        entries.push(Entry {
            size_bytes: size.ok_or_else(|| wrong("how long an object is"))?,
            modified: modified.unix_micros().unwrap_or(0).div_euclid(1_000_000),
            tag: found.tag.ok_or_else(|| wrong("the ETag of an object"))?,
            key: found.key,
        });
    }
    Ok(Some(entries))
}

/// Whether a failure concerns one object, and not the store: it is forbidden, archived, or encrypted with a key that only its owner has.
fn is_of_object(failure: &Failure) -> bool {
    let is_own = matches!(failure.kind, Kind::Final | Kind::Range);
    is_own
        && !matches!(
            failure.error.code(),
            Code::Config | Code::NoRepository | Code::Full | Code::Internal | Code::Interrupted
        )
}
