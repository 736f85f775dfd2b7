//! A store in memory, of which nothing but reading is asked.

use std::collections::BTreeMap;

use pitr::err;
use pitr::error::{Error, Result};
use pitr::store::{Key, Listed, Meta, NewObject, Object, Room, Store};

use crate::Memory;

/// Objects by key.
pub struct Held(pub BTreeMap<String, Vec<u8>>);

fn unasked() -> Error {
    err!(Internal, "readers of a snapshot ask for objects alone")
}

impl Store for Held {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    fn open(&self, key: &Key) -> Result<Option<Box<dyn Object>>> {
        Ok(self.0.get(key.as_str()).map(|bytes| Memory::boxed(bytes)))
    }

    fn create(&self, _: &Key) -> Result<Box<dyn NewObject>> {
        Err(unasked())
    }

    fn list(&self, _: &str) -> Result<Vec<Listed>> {
        Err(unasked())
    }

    fn head(&self, _: &Key) -> Result<Option<Meta>> {
        Err(unasked())
    }

    fn delete(&self, _: &Key) -> Result<bool> {
        Err(unasked())
    }

    fn room(&self) -> Result<Option<Room>> {
        Ok(None)
    }
}
