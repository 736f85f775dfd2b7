//! Reading: ranges of an object, and what is known of it without reading.

use std::sync::Arc;

use bytes::Bytes;

use super::request::{Answer, Ask, Place};
use super::{answer, azure, google, listing};
use crate::config::BlobService;
use crate::err;
use crate::error::Result;
use crate::store::ahead::{Ahead, TAIL_BYTES};
use crate::store::http::answered_range;
use crate::store::http::failure::{Answered, Failure, Kind, shown};
use crate::store::runtime::asked;
use crate::store::{Key, Meta, Object};

/// The facts that the service gives of an object.
pub(super) struct Head {
    pub(super) meta: Meta,
    /// The mark of the upload that made it.
    pub(super) mark: Option<String>,
    /// Its CRC-32C, where the service keeps it.
    pub(super) sum: Option<u32>,
}

/// A piece of an object.
pub(super) struct Piece {
    pub(super) bytes: Bytes,
    /// Length of the whole.
    pub(super) size_bytes: u64,
}

/// Asks what the service knows of an object; `None` is its own word that there is none.
pub(super) async fn head(place: &Place, key: &str) -> Answered<Option<Head>> {
    let doing = format!("look at object \"{key}\"");
    let asked = match &place.client.service {
        BlobService::Azure { .. } => {
            let read = |answer: Answer| {
                let size = answer.header("content-length").and_then(|n| n.parse().ok());
                Ok(Head {
                    meta: Meta {
                        size_bytes: size
                            .ok_or_else(|| Failure::again("the answer has no length"))?,
                        modified: answer::http_date(answer.header("last-modified"))?,
                    },
                    mark: answer.header(azure::MARK).map(str::to_owned),
                    sum: None,
                })
            };
            place.run(&doing, &azure::head(place, key), read).await
        }
        BlobService::Google => {
            let read = |answer: Answer| google::facts(&answer);
            place.run(&doing, &google::head(place, key), read).await
        }
    };
    known(place, key, asked).await
}

/// Makes "absent" of an answer that proves it. Google's is the same for an object and for a bucket, and a listing tells.
pub(super) async fn known<T>(place: &Place, key: &str, asked: Answered<T>) -> Answered<Option<T>> {
    match asked {
        Ok(found) => Ok(Some(found)),
        Err(failure) if failure.kind == Kind::Absent => {
            if place.client.service == BlobService::Google {
                listing::check_absent(place, key).await?;
            }
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

/// Reads so many bytes from an offset, or those that are there.
pub(super) async fn fetch(
    place: &Place,
    key: &str,
    from: u64,
    bytes: u64,
) -> Answered<Option<Piece>> {
    let doing = format!("read object \"{key}\"");
    let ask: Ask = match &place.client.service {
        BlobService::Azure { .. } => azure::get(place, key),
        BlobService::Google => google::get(place, key),
    };
    let last = from.saturating_add(bytes.max(1) - 1);
    let ask = ask
        .header("range", format!("bytes={from}-{last}"))
        .most(usize::try_from(bytes.max(1)).unwrap_or(usize::MAX));
    let read = |answer: Answer| piece(&answer, from, bytes);
    match place.run(&doing, &ask, read).await {
        // Nothing can be asked of an empty object.
        Err(failure) if failure.kind == Kind::Range && from == 0 => match head(place, key).await? {
            None => Ok(None),
            Some(head) if head.meta.size_bytes == 0 => Ok(Some(Piece {
                bytes: Bytes::new(),
                size_bytes: 0,
            })),
            Some(_) => Err(failure),
        },
        asked => known(place, key, asked).await,
    }
}

fn piece(answer: &Answer, from: u64, asked: u64) -> Answered<Piece> {
    let encoding = answer.header("content-encoding").unwrap_or_default();
    if !matches!(encoding, "" | "identity") {
        return Err(Failure::new(
            Kind::Final,
            err!(Unreachable, "the answer is encoded as \"{}\", which says nothing about what is stored", shown(encoding))
                .hint("Something between this host and the store compresses what passes, or whoever copied the object gave it this Content-Encoding: pitr gives none. Have the endpoint deliver objects as they were written."),
        ));
    }
    let length = answer.body.len() as u64;
    let (begin, end, size) = answered_range(answer.header("content-range"), || Ok(length))?;
    let is_right = begin == from
        && begin <= end
        && end <= size
        && end - begin == length
        && length == asked.min(size.saturating_sub(from));
    match is_right {
        true => Ok(Piece {
            bytes: answer.body.clone(),
            size_bytes: size,
        }),
        false => Err(Failure::new(
            Kind::Final,
            err!(Unreachable, "the store ignores ranges: asked for {asked} bytes from {from}, it sends bytes {begin} to {end} of {size}")
                .hint("A proxy or a store that cannot read parts of objects is no place for a repository."),
        )),
    }
}

/// An object open for reading.
pub(super) struct BlobObject {
    place: Arc<Place>,
    key: Key,
    ahead: Ahead,
}

impl BlobObject {
    /// Opens an object by reading its begin: all of a small one. The end of a large one is read when it is asked for.
    pub(super) fn open(place: &Arc<Place>, key: &Key) -> Result<Option<BlobObject>> {
        let first = read(place, key, 0, TAIL_BYTES)?;
        Ok(first.map(|first| {
            let is_all = first.size_bytes == first.bytes.len() as u64;
            let tail = if is_all { first.bytes } else { Bytes::new() };
            BlobObject {
                place: Arc::clone(place),
                key: key.clone(),
                ahead: Ahead::new(first.size_bytes, 0, tail),
            }
        }))
    }

    fn fetch(&self, offset: u64, bytes: u64) -> Result<Bytes> {
        let key = &self.key;
        let Some(piece) = read(&self.place, key, offset, bytes)? else {
            return Err(err!(Damaged, "object \"{key}\" is gone while it is read"));
        };
        match piece.size_bytes == self.size_bytes() && piece.bytes.len() as u64 == bytes {
            true => Ok(piece.bytes),
            false => Err(err!(Damaged, "object \"{key}\" changed while it was read")),
        }
    }
}

fn read(place: &Arc<Place>, key: &Key, offset: u64, bytes: u64) -> Result<Option<Piece>> {
    asked!(place = place, key = key => fetch(&place, key.as_str(), offset, bytes))
}

impl Object for BlobObject {
    fn size_bytes(&self) -> u64 {
        self.ahead.size_bytes()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let fetch = |offset, bytes| self.fetch(offset, bytes);
        self.ahead.read_at(&self.key, buffer, offset, fetch)
    }

    /// The service acknowledges only what is durable.
    fn settle(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_about_another_range_is_none() {
        let read = |range: Option<&'static str>, length: usize, from, asked| {
            let mut answer = Answer {
                status: 206,
                headers: hyper::http::HeaderMap::new(),
                body: vec![0; length].into(),
            };
            if let Some(range) = range {
                answer
                    .headers
                    .insert("content-range", range.parse().unwrap());
            }
            piece(&answer, from, asked).map(|p| p.size_bytes).ok()
        };
        assert_eq!(read(Some("bytes 0-9/100"), 10, 0, 10), Some(100));
        assert_eq!(read(Some("bytes 0-4/5"), 5, 0, 10), Some(5));
        assert_eq!(read(None, 5, 0, 10), Some(5));
        assert_eq!(read(None, 100, 10, 10), None);
        assert_eq!(read(Some("bytes 0-9/100"), 9, 0, 10), None);
        assert_eq!(read(Some("bytes 1-10/100"), 10, 0, 10), None);
        assert_eq!(read(Some("bytes 0-4/100"), 5, 0, 10), None);
    }
}
