//! Objects that are written in several requests.

use tokio::task::JoinHandle;

use super::Key;
use crate::error::{Code, Error, Result};

/// The error of a part, which is missing from then on. Nothing is sent behind it. A writer that is flushed when it is dropped passes over
/// errors, and would else publish an object with a hole.
#[derive(Default)]
pub(super) struct Broken(Option<(Code, String)>);

impl Broken {
    /// Remembers the error, if there is one.
    pub(super) fn note(&mut self, sent: Result<()>) -> Result<()> {
        sent.inspect_err(|e| self.0 = Some((e.code(), e.to_string())))
    }

    /// Fails where a part is missing.
    pub(super) fn check(&self, key: &Key) -> Result<()> {
        let Some((code, why)) = &self.0 else {
            return Ok(());
        };
        let what = format!("a part of object \"{key}\" is not stored: {why}");
        Err(Error::new(*code, what))
    }
}

/// Gives up a part that is on its way.
pub(super) async fn give_up<T>(flying: Option<JoinHandle<T>>) {
    if let Some(flying) = flying {
        flying.abort();
        let _ = flying.await;
    }
}

/// Has `Write` hand all bytes to the method `take`.
macro_rules! write_by_take {
    ($upload:ty) => {
        impl std::io::Write for $upload {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.take(bytes).map_err(std::io::Error::other)?;
                Ok(bytes.len())
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
    };
}
pub(super) use write_by_take;
