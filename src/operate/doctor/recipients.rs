//! Who can read an encrypted repository: two at least in every epoch, for one key may be lost. And in which epoch this host seals.

use std::collections::BTreeSet;

use super::Findings;
use crate::config::Repository as Configured;
use crate::error::Result;
use crate::operate::readers::{Readable, see_epochs};
use crate::repo::epochs::{self, Epoch, Sealing};
use crate::repo::keyring::Keys;
use crate::repo::repository::Repository;
use crate::repo::scope;
use crate::seal::FIRST_EPOCH;

const NOBODY: &str = "nobody can read what is stored";
const LOST: &str = "when the only key is lost, nothing can be restored";
const GIVE_BACK: &str =
    "give back the keys of the recipients of writer.key: pitr init --key-set FILE";
const GIVE: &str = "give somebody else access: pitr repo rewrap --add FILE.pub";

/// The state of the recipients.
struct Seen {
    /// The readable form of each epoch that counts, the oldest first.
    epochs: Vec<Readable>,
    /// Epochs that no holder of the MAC key made.
    strange: Vec<u32>,
    keys: Keys,
}

/// Who can read one of the repositories.
pub(super) struct Readers {
    repository: String,
    key_set: String,
    epochs: Vec<Readable>,
}

/// Looks at the recipients of an encrypted repository; returns those that work. `has_server` says that this host is to archive.
pub(super) fn look(
    found: &mut Findings,
    configured: &Configured,
    repository: &Repository,
    has_server: bool,
) -> Option<Readers> {
    let id = repository.marker().key_set.as_ref()?;
    if has_server && configured.encryption.is_none() {
        without_section(found, configured);
    }
    let seen = see(configured, repository, id);
    let seen = seen.map_err(|e| found.error("recipients", &e)).ok()?;
    for epoch in &seen.epochs {
        readable(found, epoch, seen.keys.mac.is_some());
    }
    for strange in &seen.strange {
        found.warn(
            "epoch",
            format!("{}/", scope::recipients(*strange)),
            "no holder of the MAC key made its keys: they open nothing, and pitr repo rotate refuses to work beside them",
            "look who can write to the store, and delete them",
        );
    }
    left_out(found, &seen.epochs);
    sealing(found, &seen);
    let encryption = configured.encryption.as_ref();
    if let Some((key, helper)) = encryption.and_then(|from| from.helper()) {
        found.ok(key, helper);
    }
    if let Some(own) = seen.keys.own {
        found.ok("read here as", own.recipient);
    }
    Some(Readers {
        repository: configured.name.to_string(),
        key_set: id.clone(),
        epochs: seen.epochs,
    })
}

/// Tells that this host has no keys of an encrypted repository: whatever it is to write there is refused.
fn without_section(found: &mut Findings, configured: &Configured) {
    let cause = "the repository is encrypted, and this host has no encryption section: nothing can be archived (A137), backed up or read";
    let fix = format!(
        "name the key set's writer.key as key_set in [repositories.{}.encryption]",
        configured.name
    );
    match configured.required {
        true => found.fail("encryption", "not configured", cause, fix),
        false => found.warn(
            "encryption",
            "not configured",
            cause,
            format!("{fix}. It is not required: archiving goes on without it."),
        ),
    }
}

fn readable(found: &mut Findings, epoch: &Readable, is_proven: bool) {
    for broken in &epoch.broken {
        found.warn(
            &epoch.name("recipient"),
            broken.as_str(),
            "what the repository keeps for it is damaged or forged: it opens nothing",
            "withdraw it and give access again: pitr repo rewrap",
        );
    }
    let name = &epoch.name("recipients");
    let names = epoch.working.join(", ");
    match epoch.working.len() {
        0 => found.fail(name, "none", NOBODY, GIVE_BACK),
        1 => found.fail(name, names, LOST, GIVE),
        _ if !is_proven => found.warn(
            name,
            names,
            "without the MAC key of the key set it cannot be seen whether they are genuine",
            "run pitr doctor where key_set, key_file, key_command or a passphrase is configured",
        ),
        _ => found.ok(name, names),
    }
    if let [one, other, ..] = epoch.pairs.as_slice() {
        found.fail(
            &epoch.name("pair"),
            format!("{one} and {other}"),
            "two rotations made the epoch: what is sealed to one pair cannot be read with the other",
            "take back the rotation that is not finished: pitr repo rotate --take-back --dir DIR",
        );
    }
}

/// Names who reads some epochs and not all: rotations left them out.
fn left_out(found: &mut Findings, epochs: &[Readable]) {
    let all: BTreeSet<&String> = epochs.iter().flat_map(|e| &e.working).collect();
    for name in all {
        let reads = epochs.iter().filter(|epoch| epoch.working.contains(name));
        let reads: Vec<String> = reads.map(|epoch| epoch.number.to_string()).collect();
        if reads.len() < epochs.len() {
            let epochs = reads.join(", ");
            found.ok("reads some epochs alone", format!("{name}: {epochs}"));
        }
    }
}

/// Compares the epoch in which this host seals with those of the repository.
fn sealing(found: &mut Findings, seen: &Seen) {
    let later = seen
        .epochs
        .iter()
        .filter(|epoch| epoch.number > FIRST_EPOCH);
    let later = later.map(|epoch| Epoch {
        number: epoch.number,
        pairs: epoch.pairs.clone(),
    });
    let later: Vec<Epoch> = later.collect();
    let value = |newest: u32, own: u32| format!("{newest}; this host seals in epoch {own}");
    match epochs::sealing(&seen.keys, &later) {
        None | Some(Sealing::Newest(FIRST_EPOCH)) => {}
        Some(Sealing::Newest(own)) => found.ok("epoch", own.to_string()),
        Some(Sealing::Former { own, newest }) => found.warn(
            "epoch",
            value(newest, own),
            "who has a private half of before can read what it writes, where the stored bytes can be had",
            "put the current writer.key in the place of key_set: pitr repo rotate has made it",
        ),
        Some(Sealing::Unreadable { own, newest }) => found.fail(
            "epoch",
            value(newest, own),
            "nobody can read what this host writes by what the repository has: it lacks the epoch, or has another pair in it",
            "give it the epoch: pitr repo rotate, with the current writer.key in its directory",
        ),
        Some(Sealing::Nowhere { newest }) => found.warn(
            "epoch",
            format!("{newest}; this host has a recipient's key alone"),
            "it archives and backs up nothing into the repository",
            "name the current writer.key as key_set beside the recipient's key, where the host is to write",
        ),
    }
}

/// Whoever reads one of several repositories of a key set is to read all: whose keys are gone from one finds out on the day of the restore.
pub(super) fn compare(found: &mut Findings, all: &[Readers]) {
    let of = |one: &Readers| -> BTreeSet<(u32, String)> {
        let names = |e: &Readable| e.working.iter().map(|n| (e.number, n.clone())).collect();
        let epochs = one.epochs.iter().map(names);
        epochs.flat_map(|names: Vec<_>| names).collect()
    };
    for one in all {
        let same = |other: &&Readers| other.key_set == one.key_set;
        let known: BTreeSet<_> = all.iter().filter(same).flat_map(of).collect();
        for (epoch, name) in known.difference(&of(one)) {
            let which = match epoch {
                &FIRST_EPOCH => name.clone(),
                later => format!("{name} of epoch {later}"),
            };
            found.warn(
                "recipient",
                format!("{which}, not in {}", one.repository),
                "it reads another repository of this key set, and cannot read this one",
                "give it access here, too, or withdraw it there: pitr repo rewrap",
            );
        }
        let others = all.iter().filter(same);
        for other in others.take_while(|o| o.repository != one.repository) {
            for epoch in &one.epochs {
                let differs = |e: &&Readable| e.number == epoch.number && e.pairs != epoch.pairs;
                if other.epochs.iter().any(|e| differs(&e)) {
                    found.warn(
                        &epoch.name("pair"),
                        format!("another in {} than in {}", one.repository, other.repository),
                        "pitr repo sync copies nothing between them",
                        "rotate with one configuration that has both; a rotation that is not finished is taken back: pitr repo rotate --take-back",
                    );
                }
            }
        }
    }
}

fn see(configured: &Configured, repository: &Repository, id: &str) -> Result<Seen> {
    let store = repository.store();
    let from = configured.encryption.as_ref();
    let keys = Keys::load(store, id.parse()?, from)?;
    let epochs = see_epochs(store, id, keys.mac.as_ref())?;
    let mut strange = epochs::shown(store)?;
    strange.retain(|shown| epochs.iter().all(|epoch| epoch.number != *shown));
    Ok(Seen {
        epochs,
        strange,
        keys,
    })
}
