//! A store whose objects are read and written at a pace: stored bytes are counted, listings and small questions are not.

use std::io::{self, Write};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::Pace;
use crate::error::Result;
use crate::store::{Key, Meta, NewObject, Object, Opaque, Published, Store};

/// Passes everything on, the bytes of objects at a pace.
pub struct PacedStore {
    inner: Box<dyn Store>,
    pace: Arc<Pace>,
}

impl PacedStore {
    /// Wraps a store as it was opened, below any encryption.
    pub fn new(inner: Box<dyn Store>, pace: Arc<Pace>) -> PacedStore {
        PacedStore { inner, pace }
    }

    fn paced(&self, inner: Box<dyn NewObject>) -> Box<dyn NewObject> {
        let pace = Arc::clone(&self.pace);
        Box::new(PacedNew { inner, pace })
    }
}

impl Store for PacedStore {
    crate::store::pass_on!();

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        let opened = self.inner.open(key)?;
        Ok(opened.map(|inner| -> Box<dyn Object> {
            let pace = Arc::clone(&self.pace);
            Box::new(PacedObject { inner, pace })
        }))
    }

    fn create(&self, key: &Key) -> Result<Box<dyn NewObject>> {
        Ok(self.paced(self.inner.create(key)?))
    }

    fn create_plain(&self, key: &Key) -> Result<Box<dyn NewObject>> {
        Ok(self.paced(self.inner.create_plain(key)?))
    }

    crate::store::pass_keys!();
}

struct PacedObject {
    inner: Box<dyn Object>,
    pace: Arc<Pace>,
}

impl Object for PacedObject {
    crate::store::forward! {
        fn size_bytes(&self) -> u64;
        fn settle(&self) -> Result<()>;
        fn opaque(&self) -> Option<&dyn Opaque>;
        fn meta(&self) -> Option<Meta>;
        fn sealed(&self) -> Option<&dyn Opaque>;
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.pace.take(buffer.len());
        self.inner.read_at(buffer, offset)
    }
}

struct PacedNew {
    inner: Box<dyn NewObject>,
    pace: Arc<Pace>,
}

impl Write for PacedNew {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.pace.take(written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl NewObject for PacedNew {
    fn describe(&mut self, facts: Map<String, Value>, hash: Option<&[u8; 32]>) {
        self.inner.describe(facts, hash);
    }

    fn publish(self: Box<Self>) -> Result<Published> {
        self.inner.publish()
    }
}
