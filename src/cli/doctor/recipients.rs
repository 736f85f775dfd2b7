//! Who can read an encrypted repository: two at least, for one key may be lost.

use super::Findings;
use crate::config::Repository as Configured;
use crate::error::{Code, Error, Result};
use crate::repo::keyring::{self, Keys};
use crate::repo::repository::Repository;

const LOST: &str = "when the only key is lost, nothing can be restored";
const GIVE: &str = "give somebody else access: pitr repo rewrap --add FILE.pub";

/// What the recipients come to.
struct Seen {
    working: Vec<String>,
    broken: Vec<String>,
    /// Whether their MACs could be checked.
    is_proven: bool,
    own: Option<String>,
}

/// Looks at the recipients of an encrypted repository.
pub(super) fn look(found: &mut Findings, configured: &Configured, repository: &Repository) {
    let Some(id) = &repository.marker().key_set else {
        return;
    };
    let seen = match see(configured, repository, id) {
        Ok(seen) => seen,
        Err(e) => return found.error("recipients", &e),
    };
    for broken in &seen.broken {
        found.warn(
            "recipient",
            broken.as_str(),
            "what the repository keeps for it is damaged or forged: it opens nothing",
            "withdraw it and give access again: pitr repo rewrap",
        );
    }
    let names = seen.working.join(", ");
    match seen.working.len() {
        0 => found.fail("recipients", "none", "nobody can read what is stored", GIVE),
        1 => found.fail("recipients", names, LOST, GIVE),
        _ if !seen.is_proven => found.warn(
            "recipients",
            names,
            "without the MAC key of the key set it cannot be seen whether they are genuine",
            "run pitr doctor where key_set, key_file or a passphrase is configured",
        ),
        _ => found.ok("recipients", names),
    }
    if let Some(own) = seen.own {
        found.ok("read here as", own);
    }
}

fn see(configured: &Configured, repository: &Repository, id: &str) -> Result<Seen> {
    let store = repository.store();
    let from = configured.encryption.as_ref();
    let keys = Keys::load(store, id.parse()?, from)?;
    let mut seen = Seen {
        working: Vec::new(),
        broken: Vec::new(),
        is_proven: keys.mac.is_some(),
        own: keys.recipient,
    };
    for name in keyring::recipient_names(store)? {
        let is_whole = match keyring::recipient(store, &name) {
            Ok(Some(r)) => r.key_set == id && keys.mac.as_ref().is_none_or(|mac| r.is_genuine(mac)),
            Ok(None) => continue,
            Err(e) if is_damage(&e) => false,
            Err(e) => return Err(e),
        };
        match is_whole {
            true => seen.working.push(name),
            false => seen.broken.push(name),
        }
    }
    Ok(seen)
}

fn is_damage(e: &Error) -> bool {
    matches!(e.code(), Code::Damaged | Code::Unsupported)
}
