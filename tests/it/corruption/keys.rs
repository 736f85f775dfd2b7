//! The key files of the encrypted repository, and what their holders make of a damaged one.

use std::path::{Path, PathBuf};

use pitr::config::Encryption;
use pitr::error::{Code, Result};
use pitr::repo::repository::Repository;
use pitr::repo::scope;
use pitr::store::Key;

use super::held::Held;
use crate::common::{Site, pitr};

const RECIPIENTS: [&str; 2] = ["escrow", "ops"];

/// Who has which.
pub struct KeyFiles {
    writer: Encryption,
    recipients: [Encryption; 2],
}

impl KeyFiles {
    /// Adds an encrypted repository to the site, with key files in `folder`, which outlives the site; also where the repository is.
    pub fn new_repository(site: &Site, folder: &Path) -> (KeyFiles, PathBuf) {
        let folder = folder.join("keys");
        let mut keygen = pitr().words("repo keygen --dir").arg(&folder);
        for name in RECIPIENTS {
            keygen = keygen.args(["--recipient", name]);
        }
        keygen.succeed();
        let file = |name: &str| folder.join(format!("{name}.key"));
        let encryption = format!(
            "[repositories.sealed.encryption]\nkey_set = \"{}\"\nkey_file = \"{}\"\n",
            file("writer").display(),
            file("ops").display(),
        );
        let repository = site.add_repository("sealed", &encryption);
        let of = |name: &str| Encryption {
            key_file: Some(file(name)),
            ..Encryption::default()
        };
        let keys = KeyFiles {
            writer: Encryption {
                key_set: Some(file("writer")),
                ..Encryption::default()
            },
            recipients: RECIPIENTS.map(of),
        };
        (keys, repository)
    }

    /// The keys of `ops`, who reads in every case.
    pub fn reader(&self) -> &Encryption {
        &self.recipients[1]
    }

    /// The keys of the host that writes.
    pub fn writer(&self) -> &Encryption {
        &self.writer
    }

    /// Whoever has keys refuses the object, however it was changed; and it takes one recipient's object to keep that one out, no other.
    pub fn check(&self, damaged: &Held, key: &str, what: &str) {
        let key: Key = Key::new(key).unwrap();
        if scope::is_sealed_form(&key) {
            for encryption in [self.reader(), &self.writer] {
                match read(damaged, encryption, &key) {
                    Ok(is_there) => assert!(!is_there, "it is read: {what}"),
                    Err(e) => assert_eq!(e.code(), Code::Damaged, "{what}: {e}"),
                }
            }
        }
        if let Some(name) = key.as_str().strip_prefix("keys/1/") {
            for (recipient, encryption) in RECIPIENTS.iter().zip(&self.recipients) {
                let opened = Repository::open_with(Box::new(damaged.clone()), Some(encryption));
                assert_eq!(opened.is_err(), *recipient == name, "{recipient}: {what}");
            }
        }
    }
}

/// Reads all of an object with all that these keys can prove; `false` when it is not there.
fn read(store: &Held, encryption: &Encryption, key: &Key) -> Result<bool> {
    let repository = Repository::open_with(Box::new(store.clone()), Some(encryption))?;
    let Some(object) = repository.store().open(key)? else {
        return Ok(false);
    };
    match object.opaque() {
        Some(opaque) => opaque.check_stored()?,
        None => {
            let mut bytes = vec![0; usize::try_from(object.size_bytes()).unwrap()];
            object.read_at(&mut bytes, 0)?;
        }
    }
    Ok(true)
}
