//! The file by which hosts seal: the part of a key set that a host which only writes has (format, section 11).

use std::path::Path;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::keyring::{forbid_core_dumps, not_one, parse, pretty, read_secret};
use crate::err;
use crate::error::{Error, Result};
use crate::seal::{Contents, FIRST_EPOCH, MacKey, PublicHalf, Recipient, Secret32, public_of};
use crate::text;

/// The kind of a writer's file.
const WRITER: &str = "pitr writer keys";
/// The kind of the file by which hosts seal originals to a secrets pair.
const SECRETS: &str = "pitr secrets keys";
/// The kind of the file of a rotation that is not finished: no host takes it.
const ROTATION: &str = "pitr rotation keys";

/// The public half of a key set's epoch, its MAC key, and its recipients.
#[derive(Clone, Serialize, Deserialize)]
pub struct WriterFile {
    kind: String,
    key_set: String,
    epoch: u32,
    public_half: String,
    /// The public half of the first epoch, which the id is made of; where `public_half` is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first_half: Option<String>,
    mac_key: Zeroizing<String>,
    /// Recipients that `init` puts into a repository.
    recipients: Vec<Recipient>,
    /// MAC of a later epoch's file: the id of the key set does not cover its public half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
}

impl WriterFile {
    /// The file of a key set that was just made.
    pub fn new(contents: &Contents, recipients: Vec<Recipient>) -> Result<WriterFile> {
        Ok(WriterFile {
            kind: WRITER.into(),
            key_set: contents.mac.id().to_string(),
            epoch: FIRST_EPOCH,
            public_half: text::hex(&public_of(&contents.private)?.0),
            first_half: None,
            mac_key: Zeroizing::new(text::hex(contents.mac.secret().expose())),
            recipients,
            mac: None,
        })
    }

    /// The file of a secrets pair, by which hosts seal originals.
    pub fn of_secrets(contents: &Contents, recipients: Vec<Recipient>) -> Result<WriterFile> {
        let mut file = WriterFile::new(contents, recipients)?;
        SECRETS.clone_into(&mut file.kind);
        Ok(file)
    }

    /// The file of a rotation to the epoch of `contents`; `recipients` are those of all epochs.
    pub fn of_rotation(
        contents: &Contents,
        first: &PublicHalf,
        recipients: Vec<Recipient>,
    ) -> Result<WriterFile> {
        let file = WriterFile {
            kind: ROTATION.into(),
            key_set: contents.mac.id().to_string(),
            epoch: contents.epoch,
            public_half: text::hex(&public_of(&contents.private)?.0),
            first_half: Some(text::hex(&first.0)),
            mac_key: Zeroizing::new(text::hex(contents.mac.secret().expose())),
            recipients,
            mac: None,
        };
        Ok(file.signed(&contents.mac))
    }

    /// The file for hosts, of a rotation that is finished.
    #[must_use]
    pub fn finished(&self, mac: &MacKey) -> WriterFile {
        let mut file = self.clone();
        WRITER.clone_into(&mut file.kind);
        file.signed(mac)
    }

    /// Whether it is of a rotation that is not finished.
    pub fn is_of_rotation(&self) -> bool {
        self.kind == ROTATION
    }

    fn signed(mut self, mac: &MacKey) -> WriterFile {
        self.mac = Some(text::hex(&mac.sign_file(&self.fields())));
        self
    }

    /// Returns the bytes that its MAC covers.
    fn fields(&self) -> Vec<u8> {
        let domain = match self.kind == ROTATION {
            true => "pitr/1/rotation",
            false => "pitr/1/writer",
        };
        let epoch = self.epoch.to_string();
        let head = [
            domain,
            &self.key_set,
            &epoch,
            &self.public_half,
            self.first_half.as_deref().unwrap_or_default(),
        ];
        let recipients = self.recipients.iter().map(|r| r.mac.as_str());
        let fields: Vec<&str> = head.into_iter().chain(recipients).collect();
        fields.join("\n").into_bytes()
    }

    /// # Errors
    /// `Key` when it is none, or open to others.
    pub fn read(path: &Path) -> Result<WriterFile> {
        let file = WriterFile::read_any(path)?;
        match file.kind.as_str() {
            WRITER => Ok(file),
            ROTATION => Err(err!(
                Key,
                "\"{}\" is of a rotation that is not finished",
                path.display()
            )
            .hint("Nothing was read or written. The same pitr repo rotate goes on with it, and writes writer.key for the hosts.")),
            _ => Err(not_one(path)),
        }
    }

    /// Reads the file of a secrets pair.
    ///
    /// # Errors
    /// As [`WriterFile::read`].
    pub fn read_secrets(path: &Path) -> Result<WriterFile> {
        forbid_core_dumps()?;
        let file = WriterFile::read_any(path)?;
        match file.kind == SECRETS && file.epoch == FIRST_EPOCH {
            true => Ok(file),
            false => Err(not_one(path)),
        }
    }

    /// Reads the file of a rotation, finished or not.
    ///
    /// # Errors
    /// As [`WriterFile::read`].
    pub fn read_of_rotation(path: &Path) -> Result<WriterFile> {
        let file = WriterFile::read_any(path)?;
        match [ROTATION, WRITER].contains(&file.kind.as_str()) {
            true => Ok(file),
            false => Err(not_one(path)),
        }
    }

    fn read_any(path: &Path) -> Result<WriterFile> {
        let text = read_secret("key file", path)?;
        parse(path, &text)
    }

    /// As it is written.
    pub fn text(&self) -> Result<Zeroizing<Vec<u8>>> {
        pretty(self)
    }

    /// The epoch in which it seals.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The public half of that epoch, in hexadecimal.
    pub fn public_half(&self) -> &str {
        &self.public_half
    }

    /// The recipients that the key set began with, or that the newest rotation named; of every epoch.
    pub fn recipients(&self) -> &[Recipient] {
        &self.recipients
    }

    /// The recipients of one epoch.
    pub fn recipients_of(&self, epoch: u32) -> impl Iterator<Item = &Recipient> {
        self.recipients.iter().filter(move |r| r.epoch == epoch)
    }

    /// The public half of a later epoch, as all its recipients name it; none where they do not agree.
    pub fn pair_of(&self, epoch: u32) -> Option<&str> {
        let mut halves = self.recipients_of(epoch).map(|r| r.public_half.as_deref());
        let first = halves.next()?;
        halves.all(|half| half == first).then_some(first)?
    }

    /// Its key set.
    ///
    /// # Errors
    /// `Key` when the keys do not belong to it.
    pub fn keys(&self, path: &Path) -> Result<(PublicHalf, MacKey)> {
        let half = |text: &str| text::unhex_array(text).map(PublicHalf);
        let public = half(&self.public_half).ok_or_else(|| not_one(path))?;
        let first = match (self.epoch, &self.first_half) {
            (FIRST_EPOCH, _) => public,
            (0, _) | (_, None) => return Err(not_one(path)),
            (_, Some(first)) => half(first).ok_or_else(|| not_one(path))?,
        };
        let secret = Secret32::from_hex(&self.mac_key).ok_or_else(|| not_one(path))?;
        let mac = MacKey::new(secret, &first)?;
        match mac.id().to_string() == self.key_set && self.is_whole(&mac) {
            true => Ok((public, mac)),
            false => Err(changed(path)),
        }
    }

    /// Whether all of it is as it was made. The id of the key set covers the first epoch.
    fn is_whole(&self, mac: &MacKey) -> bool {
        if self.epoch == FIRST_EPOCH {
            return true;
        }
        let own = text::hex(&mac.sign_file(&self.fields()));
        let is_of = |epoch| {
            let mut all = self.recipients_of(epoch).peekable();
            all.peek().is_some() && all.all(|r| r.is_of(mac))
        };
        self.mac.as_ref() == Some(&own)
            && self.pair_of(self.epoch) == Some(self.public_half.as_str())
            && is_of(FIRST_EPOCH)
            && is_of(self.epoch)
    }
}

fn changed(path: &Path) -> Error {
    err!(
        Key,
        "\"{}\" was changed since it was made: the keys in it do not belong together",
        path.display()
    )
    .hint("Nothing was read or written. Take the file as \"pitr repo keygen\" or \"pitr repo rotate\" made it.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::PrivateHalf;

    fn secret(seed: u8) -> Secret32 {
        Secret32::new(std::array::from_fn(|n| {
            seed.wrapping_add(u8::try_from(n).unwrap())
        }))
    }

    /// The keys of `testdata/sealed`: both epochs, and the file for hosts of the second one.
    fn rotated() -> (Contents, WriterFile) {
        let first = Contents::new(PrivateHalf(secret(0x20)), secret(0x60)).unwrap();
        let second = Contents {
            private: PrivateHalf(secret(0xa0)),
            mac: first.mac.clone(),
            epoch: 2,
        };
        let own = public_of(&PrivateHalf(secret(3))).unwrap();
        let ops = |keys: &Contents, seed| keys.wrap_to_key("ops", &own, &secret(seed)).unwrap();
        let recipients = vec![ops(&first, 4), ops(&second, 6)];
        let half = public_of(&first.private).unwrap();
        let file = WriterFile::of_rotation(&second, &half, recipients).unwrap();
        (second, file)
    }

    /// The file in `testdata/sealed`, which another program checks and which does not change any more: hosts have such files.
    #[test]
    fn the_vector_of_a_later_file_is_what_is_written_today() {
        let (second, rotation) = rotated();
        let file = rotation.finished(&second.mac);
        let written = file.text().unwrap();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/sealed/writer-2.json");
        if std::env::var_os("PITR_WRITE_VECTORS").is_some() {
            std::fs::write(path, &*written).unwrap();
        }
        assert!(std::fs::read(path).unwrap() == *written, "{path} differs");
        let (public, mac) = file.keys(Path::new("writer.key")).unwrap();
        assert!(public == public_of(&second.private).unwrap() && mac.id() == second.mac.id());
        assert_eq!((file.epoch(), file.is_of_rotation()), (2, false));
    }

    #[test]
    fn nothing_of_a_later_file_is_changed_unnoticed() {
        let (second, rotation) = rotated();
        let refuses = |change: fn(&mut WriterFile)| {
            for file in [rotation.clone(), rotation.finished(&second.mac)] {
                let mut changed = file;
                change(&mut changed);
                let e = changed.keys(Path::new("writer.key")).err().unwrap();
                assert_eq!(e.code(), crate::error::Code::Key, "{e}");
            }
        };
        assert!(rotation.is_of_rotation() && rotation.keys(Path::new("x")).is_ok());
        refuses(|file| file.epoch = 3);
        refuses(|file| file.epoch = 1);
        refuses(|file| file.epoch = 0);
        refuses(|file| file.public_half = "11".repeat(32));
        refuses(|file| file.first_half = Some("11".repeat(32)));
        refuses(|file| file.first_half = None);
        refuses(|file| file.mac = None);
        refuses(|file| file.recipients.truncate(1));
        refuses(|file| file.recipients.clear());
        refuses(|file| {
            let kind = match file.is_of_rotation() {
                true => WRITER,
                false => ROTATION,
            };
            kind.clone_into(&mut file.kind);
        });
    }
}
