//! The second door: originals with their secrets, for the holders of a secrets pair.

use std::fs::File;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};
use serde_json::Value;
use zeroize::Zeroizing;

use super::recipients;
use super::redacted::{content, originals};
use super::{configured, find, overrides, shown_path, stored_path, unnarrowed};
use crate::backup::configuration::{SEALED, UNSEALED, envelope_key};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::operate::files::make_directory;
use crate::operate::search::Stored;
use crate::operate::session::Session;
use crate::repo::id::BackupId;
use crate::restore::content::{Open, check_empty};
use crate::seal::{Contents, KeySetId, envelope};
use crate::secrets::{Overrides, recognise};
use crate::snapshot::filekey::{FileKey, Naming};
use crate::snapshot::layer::Metadata;
use crate::store::Store;
use crate::tree::beneath;
use crate::tree::extract::{Extracted, Permit, extract_filled};

/// The holder of a secrets pair's key.
pub(super) struct Door<'d> {
    store: &'d dyn Store,
    scope: String,
    /// Key files that may open the pair.
    keys: Vec<PathBuf>,
    opened: Option<Contents>,
}

impl<'d> Door<'d> {
    pub(super) fn new(stored: &'d Stored, key: Option<&PathBuf>) -> Door<'d> {
        let configured = stored.configured.secrets_key_file().map(Path::to_owned);
        Door {
            store: stored.repository.store(),
            scope: stored.scope.prefix(),
            keys: key.cloned().or(configured).into_iter().collect(),
            opened: None,
        }
    }

    /// Opens an envelope.
    fn open(&mut self, sealed: &[u8], path: &[u8], member: &Value) -> Result<Zeroizing<Vec<u8>>> {
        let pair = envelope::sealed_to(sealed)?;
        check_pair(member, pair)?;
        let is_other = |opened: &Contents| opened.mac.id() != pair;
        if self.opened.as_ref().is_none_or(is_other) {
            let key = self.keys.first().ok_or_else(|| {
                err!(Key, "\"{}\" has secrets, and no key of the secrets pair is given", shown_path(path))
                    .hint("Nothing of it was shown. Add --secrets-key FILE, the key file of a recipient of the pair. Without it there are pitr config show, and restore --redacted.")
            })?;
            let (_, contents) = recipients::open(self.store, pair, key)?;
            self.opened = Some(contents);
        }
        let none = || err!(Internal, "no pair was opened");
        let opened = self.opened.as_ref().ok_or_else(none)?;
        envelope::open(sealed, &envelope_key(&self.scope, path), opened)
            .map_err(|e| e.context(format!("open \"{}\"", shown_path(path))))
    }

    /// The original of a file: in an envelope, as it is, or the file itself where it has no secret.
    pub(super) fn original(
        &mut self,
        open: &Open<'_>,
        path: &[u8],
    ) -> Result<Option<Zeroizing<Vec<u8>>>> {
        let [sealed, unsealed] = originals(path)?;
        if let Some(sealed) = content(open, &sealed)? {
            return self.open(&sealed, path, open.member).map(Some);
        }
        match content(open, &unsealed)? {
            Some(original) => Ok(Some(original)),
            None => content(open, &FileKey::from_path(path, Naming::Tree)?),
        }
    }
}

/// A secret that is asked for.
#[derive(Debug, Clone)]
pub struct Revealing {
    /// Name of the set.
    pub name: String,
    /// The file.
    pub path: String,
    /// One key of it; else the whole file.
    pub key: Option<String>,
    /// Which backup; else the newest.
    pub backup: Option<BackupId>,
    /// The key file of a recipient of the secrets pair; else the configured one.
    pub secrets_key: Option<PathBuf>,
}

/// Returns an original, or the values of one of its keys, one to a line.
///
/// # Errors
/// `Key` without a key that opens it; `NotFound` for a file or key that is not there; `Damaged`; what the store says.
pub fn reveal(session: &Session, asked: &Revealing) -> Result<Zeroizing<Vec<u8>>> {
    let stored = find(session, &asked.name, asked.backup.as_ref())?;
    let mut door = Door::new(&stored, asked.secrets_key.as_ref());
    let path = stored_path(&asked.path);
    let original = stored.read(session, |open| {
        check_count(open.member, sealed_files(&open)?.len())?;
        door.original(&open, &path)
    })?;
    let (id, path) = (&stored.id, &asked.path);
    let none = || err!(NotFound, "backup \"{id}\" has no file \"{path}\"");
    let original = original.ok_or_else(none)?;
    let Some(key) = &asked.key else {
        return Ok(original);
    };
    let settings = session.settings()?;
    let overrides = match configured(&settings, &asked.name) {
        Ok(set) => overrides(&unnarrowed(session, &settings)?, set),
        // A host that only restores need not know the set.
        Err(_) => Overrides::default(),
    };
    let mut values = Zeroizing::new(Vec::with_capacity(original.len() + 1));
    for one in recognise(&asked.path, &original, &overrides) {
        if one.key == *key {
            values.extend_from_slice(original.get(one.span).unwrap_or_default());
            values.push(b'\n');
        }
    }
    match values.is_empty() {
        true => Err(
            err!(NotFound, "\"{}\" has no secret under this key", asked.path)
                .hint("pitr config show prints the file without its secrets."),
        ),
        false => Ok(values),
    }
}

/// A restore that is asked for.
#[derive(Debug, Clone)]
pub struct Restoring {
    /// Name of the set.
    pub name: String,
    /// Which backup; else the newest.
    pub backup: Option<BackupId>,
    /// The directory: it is empty, or does not exist.
    pub to: PathBuf,
    /// Owners and all extended attributes are made, too.
    pub is_privileged: bool,
    /// Files keep their marks in place of secrets.
    pub is_redacted: bool,
    /// The key file of a recipient of the secrets pair; else the configured one.
    pub secrets_key: Option<PathBuf>,
}

/// A restore that was made.
pub struct Restored {
    pub id: BackupId,
    /// Entries that it lacks, because they could not be read.
    pub incomplete_count: u64,
    /// Files that got their originals.
    pub originals: u64,
    /// The result of the extraction.
    pub extracted: Extracted,
    /// How long it took.
    pub took: Duration,
}

/// Restores a backup into an empty directory, which is made where it does not exist.
///
/// # Errors
/// `Key` without a key that opens originals; `Refused` when the directory is not empty; those of [`extract_filled`] and of the store.
pub fn restore(session: &Session, asked: &Restoring) -> Result<Restored> {
    let started = Instant::now();
    let stored = find(session, &asked.name, asked.backup.as_ref())?;
    let mut door = Door::new(&stored, asked.secrets_key.as_ref());
    stored.read(session, |open| {
        let files = match asked.is_redacted {
            true => Vec::new(),
            false => sealed_files(&open)?,
        };
        if !asked.is_redacted {
            check_count(open.member, files.len())?;
        }
        // A key that opens nothing is noticed before anything is written.
        if let Some(first) = files.first() {
            door.original(&open, first)?;
        }
        make_directory(&asked.to, 0o700)?;
        check_empty(&asked.to)?;
        session.host.progress.phase("restore", None);
        let permit = match asked.is_privileged {
            true => Permit::ALL,
            false => Permit::default(),
        };
        let (root, member, snapshot) = (open.root, open.member, open.snapshot);
        let mut fill = |target: BorrowedFd<'_>| {
            let open = Open {
                root,
                member,
                snapshot,
                tick: &mut || session.host.check_stop(),
            };
            for path in &files {
                let original = door.original(&open, path)?;
                let original = original.ok_or_else(|| err!(Damaged, "an original is gone"))?;
                let written = made_file(target, path)?.write_all(&original);
                written.map_err(|e| not_written(path, e))?;
            }
            Ok(())
        };
        let with = (&session.host, open.tick);
        let extracted = extract_filled((snapshot, None), &asked.to, permit, 1, with, &mut fill)?;
        Ok(Restored {
            id: stored.id.clone(),
            incomplete_count: root.content.incomplete_count,
            originals: files.len() as u64,
            extracted,
            took: started.elapsed(),
        })
    })
}

/// The file that was made for an original, empty. A repository may name a device or a pipe in its place: nothing is written there.
fn made_file(target: BorrowedFd<'_>, path: &[u8]) -> Result<File> {
    let open = |flags| {
        let opened = beneath::open(target, path, flags, Mode::empty());
        opened.map_err(|e| not_written(path, e.into()))
    };
    let status = rustix::fs::fstat(open(OFlags::PATH)?).map_err(|e| not_written(path, e.into()))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(err!(
            Damaged,
            "the backup has an original of \"{}\", which is no file",
            shown_path(path)
        ));
    }
    Ok(open(OFlags::WRONLY | OFlags::TRUNC)?.into())
}

fn not_written(path: &[u8], e: std::io::Error) -> Error {
    Error::from_io(format!("write \"{}\"", shown_path(path)), e).with_code(Code::TargetWrite)
}

/// The paths of files whose originals are kept apart.
pub(super) fn sealed_files(open: &Open<'_>) -> Result<Vec<Vec<u8>>> {
    let mut files = Vec::new();
    for item in open.snapshot.items() {
        let item = item?;
        if !item.key.is_attachment() || !matches!(item.metadata, Metadata::Node(_)) {
            continue;
        }
        let mut places = [SEALED, UNSEALED].iter();
        let path = places.find_map(|prefix| item.path.strip_prefix(prefix.as_bytes()));
        files.extend(path.map(<[u8]>::to_vec));
    }
    Ok(files)
}

/// Requires as many originals as the root says.
pub(super) fn check_count(member: &Value, count: usize) -> Result<()> {
    match member["sealed_count"].as_u64() == Some(count as u64) {
        true => Ok(()),
        false => Err(err!(
            Damaged,
            "the backup has {count} originals, and says otherwise"
        )),
    }
}

/// Requires that an envelope is sealed to the pair that the root names.
fn check_pair(member: &Value, pair: KeySetId) -> Result<()> {
    match member["secrets_pair"].as_str() == Some(pair.to_string().as_str()) {
        true => Ok(()),
        false => Err(err!(
            Damaged,
            "an original is sealed to another secrets pair than the backup says"
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::seal::{Secret32, random_pair};

    #[test]
    fn an_original_is_written_to_files_alone() {
        use std::os::fd::AsFd;
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("file"), "redacted").unwrap();
        let fifo = Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(&root, "pipe", fifo).unwrap();
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        let made = |path: &[u8]| made_file(root.as_fd(), path);
        made(b"file").unwrap().write_all(b"so").unwrap();
        assert_eq!(std::fs::read(dir.path().join("file")).unwrap(), b"so");
        for other in [&b"pipe"[..], b"folder"] {
            assert_eq!(made(other).unwrap_err().code(), Code::Damaged);
        }
        assert_eq!(made(b"none").unwrap_err().code(), Code::TargetWrite);
    }

    #[test]
    fn a_root_vouches_for_its_originals() {
        let id = |seed: u8| {
            let (private, _) = random_pair(&Secret32::new([seed; 32]));
            let contents = Contents::new(private, Secret32::new([seed; 32]));
            contents.unwrap().mac.id()
        };
        let member = json!({ "sealed_count": 2, "secrets_pair": id(1).to_string() });
        assert!(check_count(&member, 2).is_ok() && check_pair(&member, id(1)).is_ok());
        let of = |result: Result<()>| result.unwrap_err().code();
        assert_eq!(of(check_count(&member, 1)), Code::Damaged);
        assert_eq!(of(check_pair(&member, id(2))), Code::Damaged);
        let none = json!({ "secrets_pair": null });
        assert_eq!(of(check_count(&none, 0)), Code::Damaged);
        assert_eq!(of(check_pair(&none, id(1))), Code::Damaged);
    }
}
