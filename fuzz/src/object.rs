//! An object that lies in memory.

use pitr::err;
use pitr::error::Result;
use pitr::store::Object;

/// The object's bytes.
pub struct Memory(pub Vec<u8>);

impl Memory {
    /// A boxed copy, as readers of objects want it.
    pub fn boxed(bytes: &[u8]) -> Box<dyn Object> {
        Box::new(Memory(bytes.to_vec()))
    }
}

impl Object for Memory {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let found = usize::try_from(offset)
            .ok()
            .and_then(|at| self.0.get(at..at.checked_add(buffer.len())?));
        match found {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(err!(Damaged, "the object ends before")),
        }
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }
}
