//! The identity of an agent, which tells it from others, also from one with the same host name.

use std::io::ErrorKind;
use std::path::Path;

use crate::behalf;
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::operate::session::Session;
use crate::repo::event;

/// The file of the id, below `state_dir`.
const FILE: &str = "agent.id";
/// The file that tells hosts from each other. A container may have none.
const MACHINE: &str = "/etc/machine-id";

/// An identity.
pub(super) struct Identity {
    id: String,
    /// Hosts of one image have one file with the id, and not one machine id.
    machine: String,
}

impl Identity {
    /// Reads the one of an agent that remembers in this directory. The first call makes it.
    ///
    /// # Errors
    /// Those of the file; `Damaged` for one that is not an id.
    pub(super) fn of(session: &Session, state_dir: &Path) -> Result<Identity> {
        let path = state_dir.join(FILE);
        let failed = |e| Error::from_io(format!("keep \"{}\"", path.display()), e);
        let new = event::nonce(session.host.random.as_ref());
        let nonce = session.host.random();
        // One that is there is read, also where nothing can be written: another name would leave incidents open.
        let kept = || match behalf::read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                // The first one stays.
                durable::write_new(&path, new.as_bytes(), nonce)?;
                behalf::read(&path)
            }
            read => read,
        };
        let id = behalf::of(&path, kept).map_err(failed)?;
        let id = String::from_utf8_lossy(&id).into_owned();
        let machine = std::fs::read_to_string(MACHINE).unwrap_or_default();
        match id.len() {
            32 => Ok(Identity { id, machine }),
            _ => Err(err!(
                Damaged,
                "\"{}\" is not what the agent wrote: remove it",
                path.display()
            )),
        }
    }

    /// Returns 32 hexadecimal digits for a matter: the same whenever this agent asks.
    pub(super) fn mark(&self, matter: &str) -> String {
        let text = format!("{}/{}/{matter}", self.id, self.machine.trim());
        let hash = blake3::hash(text.as_bytes());
        hash.to_hex().chars().take(32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn j47_hosts_of_one_image_are_told_apart_by_their_machine_ids() {
        let of = |machine: &str| {
            let own = Identity {
                id: "0123".to_owned(),
                machine: machine.to_owned(),
            };
            own.mark("nightly/7")
        };
        assert_eq!(of("aa\n"), of("aa"));
        assert_ne!(of("aa\n"), of("bb\n"));
        assert_eq!(of("").len(), 32);
    }
}
