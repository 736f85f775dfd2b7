//! Sealing: bytes go in, a sealed object comes out.

use std::io::{self, Write};

use zeroize::Zeroizing;

use super::aead::ChunkKeys;
use super::foot;
use super::head::{HEAD, Head};
use super::key::{MacKey, PublicHalf, Secret32};
use super::{CHUNK, TAG, wrap};
use crate::err;
use crate::error::{Error, Result};

/// The random keys that sealing an object needs.
pub struct Drawn {
    pub object_key: Secret32,
    /// For wrapping it.
    pub ephemeral: Secret32,
}

/// So many chunks are hashed and written at once: their tags put the hash out of step, and in long runs it does not matter.
const GATHERED: usize = 4 * (CHUNK + TAG);

/// Seals what is written to it.
pub struct Sealer<W: Write> {
    sink: W,
    keys: ChunkKeys,
    head: [u8; HEAD],
    key: String,
    /// Sealed chunks, then from `raw_from` on raw bytes of the chunk that is not full, or full and perhaps the last.
    gathered: Zeroizing<Vec<u8>>,
    raw_from: usize,
    number: u32,
    plain_bytes: u64,
    stored: blake3::Hasher,
    /// A chunk was not written: nothing goes on, for the next would be sealed under the same number.
    is_broken: bool,
}

impl<W: Write> Sealer<W> {
    /// Begins the object under the relative key `key`, sealed to the pair of an epoch.
    ///
    /// # Errors
    /// `Key` for a public half that is none; what the sink says.
    pub fn new(
        mut sink: W,
        key: &str,
        (epoch, public): (u32, &PublicHalf),
        mac: &MacKey,
        drawn: &Drawn,
    ) -> Result<Sealer<W>> {
        let info = info(mac, epoch);
        let (encapsulated, wrapped) =
            wrap::wrap(public, &info, drawn.object_key.expose(), &drawn.ephemeral)?;
        let wrapped = wrapped
            .try_into()
            .map_err(|_| err!(Internal, "a wrapped key has another length"))?;
        let head = Head {
            epoch,
            key_set: mac.id(),
            encapsulated,
            wrapped,
        }
        .encode();
        let keys = ChunkKeys::new(&drawn.object_key, &head, mac.id(), key)?;
        let mut stored = blake3::Hasher::new();
        stored.update(&head);
        sink.write_all(&head)
            .map_err(|e| Error::from_io(format!("write object \"{key}\""), e))?;
        Ok(Sealer {
            sink,
            keys,
            head,
            key: key.to_owned(),
            gathered: Zeroizing::new(Vec::with_capacity(GATHERED)),
            raw_from: 0,
            number: 0,
            plain_bytes: 0,
            stored,
            is_broken: false,
        })
    }

    fn check_whole(&self) -> io::Result<()> {
        match self.is_broken {
            false => Ok(()),
            true => Err(io::Error::other("a part of the object was not written")),
        }
    }

    fn emit(&mut self, is_last: bool) -> io::Result<()> {
        self.check_whole()?;
        self.is_broken = true;
        let chunk = self.gathered.get_mut(self.raw_from..).unwrap_or_default();
        let tag = self
            .keys
            .seal(self.number, is_last, chunk)
            .map_err(io::Error::other)?;
        self.gathered.extend_from_slice(tag.as_ref());
        if is_last || self.gathered.len() >= GATHERED {
            self.stored.update(&self.gathered);
            self.sink.write_all(&self.gathered)?;
            self.gathered.clear();
        }
        self.raw_from = self.gathered.len();
        self.number = self
            .number
            .checked_add(1)
            .ok_or_else(|| io::Error::other("the object is too long to be sealed"))?;
        self.is_broken = false;
        Ok(())
    }

    /// Seals the last chunk, adds the foot with `facts`, and returns the sink and the foot.
    ///
    /// # Errors
    /// Errors of the sink.
    pub fn finish(mut self, facts: &[u8], mac: &MacKey) -> io::Result<(W, Vec<u8>)> {
        self.emit(true)?;
        let stored = *self.stored.finalize().as_bytes();
        let foot = foot::encode(
            &self.head,
            &self.key,
            facts,
            &self.keys.commitment,
            &stored,
            self.plain_bytes,
            mac,
        );
        let foot = foot.map_err(io::Error::other)?;
        self.sink.write_all(&foot)?;
        Ok((self.sink, foot))
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.check_whole()?;
        // A full chunk waits until more comes: which one is the last is part of how it is sealed.
        if self.gathered.len() - self.raw_from == CHUNK && !bytes.is_empty() {
            self.emit(false)?;
        }
        let room = CHUNK - (self.gathered.len() - self.raw_from);
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.gathered.extend_from_slice(taken);
        self.plain_bytes += taken.len() as u64;
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.check_whole()?;
        self.sink.flush()
    }
}

/// Returns the context that an object's key is wrapped for.
pub(super) fn info(mac: &MacKey, epoch: u32) -> Vec<u8> {
    [
        b"pitr/1/object".as_slice(),
        &mac.id().0,
        &epoch.to_le_bytes(),
    ]
    .concat()
}
