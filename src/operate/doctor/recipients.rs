//! Who can read an encrypted repository: two at least, for one key may be lost.

use std::collections::BTreeSet;

use super::Findings;
use crate::config::Repository as Configured;
use crate::error::Result;
use crate::repo::keyring::{self, Keys};
use crate::repo::repository::Repository;

const LOST: &str = "when the only key is lost, nothing can be restored";
const GIVE: &str = "give somebody else access: pitr repo rewrap --add FILE.pub";

/// The state of the recipients.
struct Seen {
    working: Vec<String>,
    broken: Vec<String>,
    /// Whether their MACs could be checked.
    is_proven: bool,
    own: Option<String>,
}

/// Who can read one of the repositories.
pub(super) struct Readers {
    repository: String,
    key_set: String,
    recipients: Vec<String>,
}

/// Looks at the recipients of an encrypted repository; returns those that work.
pub(super) fn look(
    found: &mut Findings,
    configured: &Configured,
    repository: &Repository,
) -> Option<Readers> {
    let id = repository.marker().key_set.as_ref()?;
    let seen = match see(configured, repository, id) {
        Ok(seen) => seen,
        Err(e) => {
            found.error("recipients", &e);
            return None;
        }
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
            "run pitr doctor where key_set, key_file, key_command or a passphrase is configured",
        ),
        _ => found.ok("recipients", names),
    }
    let command = configured
        .encryption
        .as_ref()
        .and_then(|from| from.command());
    if let Some((key, [program, ..])) = command {
        found.ok(key, program.as_str());
    }
    if let Some(own) = seen.own {
        found.ok("read here as", own);
    }
    Some(Readers {
        repository: configured.name.to_string(),
        key_set: id.clone(),
        recipients: seen.working,
    })
}

/// Whoever reads one of several repositories of a key set is to read all: whose keys are gone from one finds out on the day of the restore.
pub(super) fn compare(found: &mut Findings, all: &[Readers]) {
    for one in all {
        let same = |other: &&Readers| other.key_set == one.key_set;
        let known = all.iter().filter(same).flat_map(|o| &o.recipients);
        let lacks = known.filter(|name| !one.recipients.contains(name));
        let lacks: BTreeSet<&str> = lacks.map(String::as_str).collect();
        for name in lacks {
            found.warn(
                "recipient",
                format!("{name}, not in {}", one.repository),
                "it reads another repository of this key set, and cannot read this one",
                "give it access here, too, or withdraw it there: pitr repo rewrap",
            );
        }
    }
}

fn see(configured: &Configured, repository: &Repository, id: &str) -> Result<Seen> {
    let store = repository.store();
    let from = configured.encryption.as_ref();
    keyring::check_epochs(store)?;
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
            Err(e) if e.is_damage() => false,
            Err(e) => return Err(e),
        };
        match is_whole {
            true => seen.working.push(name),
            false => seen.broken.push(name),
        }
    }
    Ok(seen)
}
