//! One object from one repository into another, byte for byte, checked while it passes.
//!
//! Whoever checks reads through a [`Tee`]: what it reads in order goes on to the copy, what it reads ahead (an index, a trailer) is kept and
//! put into its place. So the bytes that are stored are those that were checked. An object that fails its check leaves nothing.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Pair, Transfer, is_of_the_object};
use crate::archive::fetch::check_identity;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::segment::WalFileName;
use crate::repo::container::{Container, Identity, Kind};
use crate::repo::layout;
use crate::store::{Key, NewObject, Object, Opaque, Published, Store, put, read};

/// Bytes copied at once where nobody reads them.
const CHUNK: usize = 256 << 10;

/// The result of copying one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copied {
    /// It is there now; with its stored length.
    Stored(u64),
    /// The same content was there.
    There,
    /// It is not in the source any more.
    Gone,
}

/// An object being read by a check, and written at the same time.
pub(super) struct Tee(Arc<Flow>);

struct Flow {
    source: Box<dyn Object>,
    state: Mutex<State>,
}

struct State {
    sink: Box<dyn NewObject>,
    /// So much went on.
    at: u64,
    /// CRC-32C of all that went on but the last eight bytes of the object.
    crc: u32,
    /// Those eight.
    last: Vec<u8>,
    /// Pieces that were read ahead: offset and bytes.
    ahead: Vec<(u64, Vec<u8>)>,
    /// Why the copy cannot be written.
    failed: Option<Error>,
}

/// Reads from an object. A medium that cannot read it back is damage to it.
fn read_source(source: &dyn Object, buffer: &mut [u8], offset: u64) -> Result<()> {
    let read = source.read_at(buffer, offset);
    read.map_err(|e| match e.is_medium() {
        true => e.with_code(Code::Damaged),
        false => e,
    })
}

impl Flow {
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        read_source(self.source.as_ref(), buffer, offset)
    }
}

impl Tee {
    fn new(source: Box<dyn Object>, sink: Box<dyn NewObject>) -> Tee {
        Tee(Arc::new(Flow {
            source,
            state: Mutex::new(State {
                sink,
                at: 0,
                crc: 0,
                last: Vec::new(),
                ahead: Vec::new(),
                failed: None,
            }),
        }))
    }

    /// The object, for a check.
    pub(super) fn object(&self) -> Box<dyn Object> {
        Box::new(Tee(Arc::clone(&self.0)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes on what is left up to `end`. Bytes that no check has read are passed only if `may_pass` says so.
    ///
    /// # Errors
    /// `Damaged` for bytes that nothing covers; what the stores say.
    pub(super) fn pass(&self, end: u64, may_pass: bool) -> Result<()> {
        let mut state = self.state();
        while state.at < end {
            if let Some(piece) = state.kept() {
                state.forward(&piece, self.0.source.size_bytes())?;
                continue;
            }
            let until = state.next_kept(end);
            if !may_pass {
                let (from, to) = (state.at, until);
                return Err(err!(Damaged, "nothing covers its bytes {from} to {to}"));
            }
            let n = usize::try_from(until - state.at)
                .unwrap_or(CHUNK)
                .min(CHUNK);
            let mut piece = vec![0; n];
            self.0.read(&mut piece, state.at)?;
            state.forward(&piece, self.0.source.size_bytes())?;
        }
        Ok(())
    }

    /// Requires that a whole container went on, and ends with the checksum of what comes before.
    fn check_crc(&self) -> Result<()> {
        let state = self.state();
        let stated = state
            .last
            .first_chunk::<4>()
            .map(|b| u32::from_le_bytes(*b));
        match state.last.len() == 8 && stated == Some(state.crc) {
            true => Ok(()),
            false => Err(err!(Damaged, "the checksum of the stored bytes is wrong")),
        }
    }

    /// How much of the object went on.
    fn passed(&self) -> u64 {
        self.state().at
    }

    fn publish(self) -> Result<Published> {
        let flow = Arc::into_inner(self.0)
            .ok_or_else(|| err!(Internal, "an object is still read while its copy is named"))?;
        let state = flow
            .state
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        match state.failed {
            Some(failed) => Err(failed),
            None => state.sink.publish(),
        }
    }
}

impl State {
    fn forward(&mut self, piece: &[u8], size: u64) -> Result<()> {
        if let Err(e) = self.sink.write_all(piece) {
            let e = Error::from_io("write the copy", e);
            let told = Error::new(e.code(), "the copy cannot be written");
            self.failed.get_or_insert(e);
            return Err(told);
        }
        let covered = size.saturating_sub(8).saturating_sub(self.at);
        let covered = usize::try_from(covered).unwrap_or(usize::MAX);
        let (covered, last) = piece.split_at(covered.min(piece.len()));
        self.crc = crc32c::crc32c_append(self.crc, covered);
        self.last.extend_from_slice(last);
        self.at += piece.len() as u64;
        let at = self.at;
        self.ahead.retain(|(from, b)| from + b.len() as u64 > at);
        Ok(())
    }

    /// Returns the bytes from the current position on that were read ahead.
    fn kept(&self) -> Option<Vec<u8>> {
        self.ahead.iter().find_map(|(from, bytes)| {
            let skip = usize::try_from(self.at.checked_sub(*from)?).ok()?;
            bytes
                .get(skip..)
                .filter(|b| !b.is_empty())
                .map(<[u8]>::to_vec)
        })
    }

    /// Returns the offset of the next piece that was read ahead, up to `end`.
    fn next_kept(&self, end: u64) -> u64 {
        let starts = self.ahead.iter().map(|(from, _)| *from);
        starts.filter(|from| *from > self.at).fold(end, u64::min)
    }
}

impl Object for Tee {
    fn size_bytes(&self) -> u64 {
        self.0.source.size_bytes()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.0.read(buffer, offset)?;
        let mut state = self.state();
        let behind = state.at.checked_sub(offset);
        match behind.and_then(|skip| usize::try_from(skip).ok()) {
            Some(skip) => match buffer.get(skip..) {
                Some(rest) if !rest.is_empty() => state.forward(rest, self.size_bytes()),
                _ => Ok(()),
            },
            None => {
                state.ahead.push((offset, buffer.to_vec()));
                Ok(())
            }
        }
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }
}

/// The raw content that lies under a key, if anything does: what tells the same object from another.
type SameContent<'a> = &'a dyn Fn(Box<dyn Object>) -> Result<bool>;

impl Pair<'_> {
    /// Copies an object under its key, unless it is there.
    ///
    /// `check` reads everything through the tee; `is_same` tells of an object that is there whether it is the one that `check` saw.
    ///
    /// # Errors
    /// Those of `check`; `Conflict` when there is another under the key; what the stores say.
    pub(super) fn copy(
        &self,
        key: &Key,
        check: &dyn Fn(&Tee) -> Result<()>,
        is_same: SameContent<'_>,
    ) -> Result<Copied> {
        self.copy_as((key, key), check, is_same)
    }

    /// As [`Pair::copy`], of the object under the first key, stored under the second.
    ///
    /// # Errors
    /// Those of [`Pair::copy`].
    pub(super) fn copy_as(
        &self,
        (key, target): (&Key, &Key),
        check: &dyn Fn(&Tee) -> Result<()>,
        is_same: SameContent<'_>,
    ) -> Result<Copied> {
        self.copy_source(key, target, &|source| {
            self.write_as(source, target, check, is_same)
        })
    }

    /// Writes an object under a key, checked while it passes.
    ///
    /// # Errors
    /// Those of [`Pair::copy`].
    pub(super) fn write_as(
        &self,
        source: Box<dyn Object>,
        target: &Key,
        check: &dyn Fn(&Tee) -> Result<()>,
        is_same: SameContent<'_>,
    ) -> Result<Copied> {
        let size = source.size_bytes();
        let tee = Tee::new(source, self.create(target)?);
        let checked = check(&tee);
        if let Some(failed) = tee.state().failed.take() {
            return Err(self.target_failed(failed));
        }
        checked?;
        if tee.passed() != size {
            return Err(err!(
                Internal,
                "a part of object \"{target}\" was not copied"
            ));
        }
        let published = tee.publish().map_err(|e| self.target_failed(e))?;
        self.published(target, published, size, is_same, is_same)
    }

    /// Copies an object like [`Pair::copy`]; the healed copy takes the place of one that is damaged here.
    ///
    /// # Errors
    /// Errors of [`Pair::copy`] on the object itself.
    pub(super) fn copy_healed(
        &self,
        key: &Key,
        check: &dyn Fn(&Tee) -> Result<()>,
        is_same: SameContent<'_>,
    ) -> Result<Copied> {
        let e = match self.copy(key, check, is_same) {
            Err(e) if is_of_the_object(&e) => e,
            other => return other,
        };
        for copy in self.from.store().healed_copies(key)? {
            match self.copy_as((&copy, key), check, is_same) {
                Err(e) if is_of_the_object(&e) => {}
                other => return other,
            }
        }
        Err(e)
    }

    /// Copies an object as `copy` does it. An encrypted one is copied as it is stored.
    fn copy_source(
        &self,
        key: &Key,
        target: &Key,
        copy: &dyn Fn(Box<dyn Object>) -> Result<Copied>,
    ) -> Result<Copied> {
        self.check_stop()?;
        let Some(source) = self.from.store().open(key)? else {
            return Ok(Copied::Gone);
        };
        match source.sealed() {
            Some(sealed) => self.copy_sealed((key, target), sealed),
            None => copy(source),
        }
    }

    /// Requires that what was stored reads back, as `is_written` tells; or where the name was taken, that it has the same content.
    fn published(
        &self,
        key: &Key,
        published: Published,
        size: u64,
        is_same: SameContent<'_>,
        is_written: SameContent<'_>,
    ) -> Result<Copied> {
        if published == Published::Exists {
            return self.compare(key, is_same);
        }
        let there = self.to.store().open(key)?;
        let there = there.ok_or_else(|| err!(Unreachable, "object \"{key}\" came and went"))?;
        match is_written(there).map_err(|e| self.read_back(key, &e))? {
            true => Ok(Copied::Stored(size)),
            false => Err(self.read_back(key, &err!(Damaged, "it has other content"))),
        }
    }

    /// Copies an encrypted object as it is stored: both repositories have one key set, and no key is needed. Who it is was proven by
    /// opening it, as far as keys are at hand: without the MAC key, whoever can create objects in the source could have made it. Its foot
    /// is taken from memory, as it was proven; all other bytes are by their hash.
    fn copy_sealed(&self, (key, target_key): (&Key, &Key), proven: &dyn Opaque) -> Result<Copied> {
        let stores = (self.from.store().encrypted(), self.to.store().encrypted());
        let (Some(from), Some(to)) = stores else {
            return Err(err!(
                Refused,
                "only one of the two repositories is encrypted"
            ));
        };
        let Some(source) = from.open(key)? else {
            return Ok(Copied::Gone);
        };
        let (covered, expected) = proven.stored_hash();
        let foot = proven.stored_foot();
        let size = source.size_bytes();
        if covered.checked_add(foot.len() as u64) != Some(size) {
            return Err(err!(Damaged, "its length changed while it was read"));
        }
        let mut target = to.create(target_key).map_err(|e| self.target_failed(e))?;
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        while at < covered {
            let n = usize::try_from(covered - at).unwrap_or(CHUNK).min(CHUNK);
            let mut piece = vec![0; n];
            read_source(source.as_ref(), &mut piece, at)?;
            hasher.update(&piece);
            target
                .write_all(&piece)
                .map_err(|e| self.target_failed(Error::from_io("write the copy", e)))?;
            at += n as u64;
        }
        if *hasher.finalize().as_bytes() != expected {
            return Err(err!(
                Damaged,
                "the stored bytes were changed since the object was sealed"
            ));
        }
        target
            .write_all(foot)
            .map_err(|e| self.target_failed(Error::from_io("write the copy", e)))?;
        let is_same = |there: Box<dyn Object>| {
            let there = there.sealed();
            Ok(there.is_some_and(|there| is_same_sealed(proven, there)))
        };
        // The created object is the very sealing that was written, not another one of the same content.
        let is_written = |there: Box<dyn Object>| {
            let there = there.sealed();
            Ok(there.is_some_and(|there| is_same_sealing(proven, there)))
        };
        let published = target.publish().map_err(|e| self.target_failed(e))?;
        self.published(target_key, published, size, &is_same, &is_written)
    }

    fn create(&self, key: &Key) -> Result<Box<dyn NewObject>> {
        self.to
            .store()
            .create(key)
            .map_err(|e| self.target_failed(e))
    }

    fn target_failed(&self, e: Error) -> Error {
        // The object is sound: nothing of it may be taken for damage.
        let code = match e.code() {
            Code::Damaged | Code::Unsupported => Code::Io,
            code => code,
        };
        e.context(format!("write into \"{}\"", self.to.store().location()))
            .with_code(code)
    }

    fn read_back(&self, key: &Key, e: &Error) -> Error {
        err!(
            ReadBack,
            "object \"{key}\" in \"{}\" differs from what was written: {e}",
            self.to.store().location()
        )
        .hint("Its medium cannot be trusted. Run pitr verify, and pitr repo check.")
    }

    /// Requires that what lies under the key in the target is the same, and is there to stay.
    ///
    /// # Errors
    /// `Conflict`; what the store says.
    pub(super) fn compare(&self, key: &Key, is_same: SameContent<'_>) -> Result<Copied> {
        let Some(there) = self.to.store().open(key)? else {
            return Err(err!(Unreachable, "object \"{key}\" came and went"));
        };
        // Whoever wrote it may not have come to the sync of its name.
        there.settle()?;
        let same = is_same(there).map_err(|e| match is_of_the_object(&e) {
            true => err!(
                Conflict,
                "what \"{}\" has under this key is damaged",
                self.to.store().location()
            )
            .source(e),
            false => e,
        })?;
        match same {
            true => Ok(Copied::There),
            false => Err(err!(
                Conflict,
                "the two repositories have different content under this key"
            )),
        }
    }

    /// Copies a container.
    ///
    /// # Errors
    /// `Damaged` when it fails a check or is not what `is_own` wants; those of [`Pair::copy`].
    pub(super) fn copy_container(
        &self,
        key: &Key,
        is_own: &dyn Fn(&Container) -> Result<()>,
    ) -> Result<Copied> {
        let seen: Mutex<Option<(Kind, Identity)>> = Mutex::new(None);
        let check = |tee: &Tee| -> Result<()> {
            let container = Container::open_under(key, tee.object())?;
            is_own(&container)?;
            container.read_body(&mut |_| Ok(()))?;
            tee.pass(tee.size_bytes(), true)?;
            tee.check_crc()?;
            if let Ok(mut seen) = seen.lock() {
                *seen = Some((container.kind(), container.identity().clone()));
            }
            Ok(())
        };
        let is_same = |there: Box<dyn Object>| -> Result<bool> {
            let container = Container::open_under(key, there)?;
            let own = (container.kind(), container.identity().clone());
            Ok(seen.lock().is_ok_and(|seen| seen.as_ref() == Some(&own)))
        };
        self.copy_healed(key, &check, &is_same)
    }

    /// Copies an object of at most `limit_bytes` that `check` accepts. Its bytes must be the same on both sides.
    ///
    /// # Errors
    /// Those of `check`; `Conflict`; what the stores say.
    pub(super) fn copy_small(
        &self,
        key: &Key,
        limit_bytes: u64,
        check: &dyn Fn(&[u8]) -> Result<()>,
    ) -> Result<Copied> {
        self.copy_source(key, key, &|source| {
            let bytes = read(source.as_ref(), key, limit_bytes)?;
            check(&bytes)?;
            match put(self.to.store(), key, &bytes).map_err(|e| self.target_failed(e))? {
                Published::Created => Ok(Copied::Stored(bytes.len() as u64)),
                Published::Exists => self.compare(key, &|there| {
                    Ok(read(there.as_ref(), key, limit_bytes)? == bytes)
                }),
            }
        })
    }
}

impl Transfer<'_> {
    /// Copies a WAL file of any kind that lies under `key`: its own, or that of a refused copy.
    ///
    /// # Errors
    /// Those of [`Pair::copy_container`].
    pub(super) fn copy_wal_file(&self, key: &Key, name: WalFileName) -> Result<Copied> {
        self.copy_container(key, &|container| {
            check_identity(container, &self.layout, name)
        })
    }

    /// Copies a piece of a segment.
    ///
    /// # Errors
    /// Those of [`Pair::copy_container`].
    pub(super) fn copy_increment(&self, key: &Key) -> Result<Copied> {
        self.copy_container(key, &|container| {
            let identity = container.identity();
            let range = layout::increment_range(key.name());
            let is_own = container.kind() == Kind::Increment
                && identity.system_identifier == self.layout.system_identifier()
                && key.parent().is_some_and(|p| p.ends_with(&identity.name))
                && range
                    .is_some_and(|r| (r.start.0, r.end.0) == (identity.from_lsn, identity.to_lsn));
            match is_own {
                true => Ok(()),
                false => Err(err!(Damaged, "it is not the increment of its key")),
            }
        })
    }
}

/// Two programs that push the same file seal it differently; everything else is written once.
pub(super) fn is_same_sealed(a: &dyn Opaque, b: &dyn Opaque) -> bool {
    let content = |of: &dyn Opaque| of.facts().get("content").cloned();
    match (content(a), content(b)) {
        (Some(a), Some(b)) => a == b,
        _ => is_same_sealing(a, b),
    }
}

fn is_same_sealing(a: &dyn Opaque, b: &dyn Opaque) -> bool {
    a.stored_hash() == b.stored_hash() && a.stored_foot() == b.stored_foot()
}

/// Whether two repositories hold the same raw content, each under a key; `None` when one does not hold it.
///
/// # Errors
/// `Damaged` when one cannot be read; `Key` when this host has no key to compare them with; what the stores say.
pub(super) fn is_same(
    (a, at): (&dyn Store, &Key),
    (b, there): (&dyn Store, &Key),
) -> Result<Option<bool>> {
    let (Some(a), Some(b)) = (a.open(at)?, b.open(there)?) else {
        return Ok(None);
    };
    // One host may have the keys to read one of two encrypted repositories, and not the other: what it finds in them is then a raw hash
    // here and a keyed one there. The foot says the same in both.
    if let (Some(a), Some(b)) = (a.sealed(), b.sealed()) {
        return Ok(Some(is_same_sealed(a, b)));
    }
    let (a, b) = (
        Container::open_under(at, a)?,
        Container::open_under(there, b)?,
    );
    // Without a reader's key, sealed WAL has a keyed hash. A writer's key set makes the same one of a raw hash.
    let (opaque, other) = match (a.is_opaque(), b.is_opaque()) {
        (true, false) => (&a, &b),
        (false, true) => (&b, &a),
        _ => return Ok(Some(a.identity().hash == b.identity().hash)),
    };
    match opaque
        .object()
        .opaque()
        .and_then(|o| o.public_hash(&other.identity().hash))
    {
        Some(keyed) => Ok(Some(keyed == opaque.identity().hash)),
        None => Err(err!(
            Key,
            "one of the two is encrypted, and no key to compare them with is configured"
        )),
    }
}
