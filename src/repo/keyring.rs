//! The keys of an encrypted repository: read from the host's files, and opened with what the repository keeps for its recipients.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use super::writer_file::WriterFile;
use super::{epochs, json, key_command, key_kms, scope};
use crate::config::{self, Encryption};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::time::TimestampTz;
use crate::seal::{
    Access, Contents, Drawn, FIRST_EPOCH, KeySetId, MacKey, PrivateHalf, PublicHalf, Recipient,
    Secret32, is_recipient_name, public_of,
};
use crate::store::{Key, Published, Store};
use crate::text;

/// The kind in the JSON of a recipient.
pub const RECIPIENT: &str = "recipient";
/// The kind of a recipient's key file.
const READER: &str = "pitr recipient key";
/// The kind of the public part of it.
const PUBLIC: &str = "pitr recipient";
/// No file of keys is longer.
const FILE_LIMIT_BYTES: u64 = 1 << 20;
/// Recipients with a passphrase that are tried when none is named: each costs a second, and whoever may write to the store can add some.
const PASSPHRASES: usize = 8;
/// So many recipients are read to find the one that a passphrase is for. Each is a request, and a stranger may have added thousands.
const RECIPIENTS_READ: usize = 64;

/// Ensures that no core dump of this process holds a key or a passphrase, and that only root reads them from its
/// memory. A limit of the size is not enough: a limit of 0 does not count where the kernel hands dumps to a program.
/// Programs that this process starts are not affected.
///
/// From then on root owns what /proc shows of this process. The process itself goes on reading it.
///
/// # Errors
/// `Internal` when the system does not let it.
pub fn forbid_core_dumps() -> Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| err!(Internal, "core dumps could not be forbidden").source(e))
}

/// Fills a buffer with random bytes that nobody can guess.
pub type Random = fn(&mut [u8]) -> Result<()>;

/// The system's random bytes.
///
/// # Errors
/// `Internal` when the system has none.
pub fn system_random(out: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    while let Some(rest) = out.get_mut(filled..).filter(|r| !r.is_empty()) {
        match rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(err!(Internal, "the system gives no random bytes").source(e)),
        }
    }
    Ok(())
}

/// 32 random bytes.
pub fn draw(random: Random) -> Result<Secret32> {
    let mut bytes = Zeroizing::new([0; 32]);
    random(&mut *bytes)?;
    Ok(Secret32::new(*bytes))
}

/// The part of a repository's key set that a host knows.
pub struct Keys {
    /// Which it is, as the marker says.
    pub id: KeySetId,
    /// Public half, to which objects are sealed, and its epoch.
    pub public: Option<(u32, PublicHalf)>,
    /// Whether the host's file says so, and not what the repository keeps for a recipient.
    pub is_of_file: bool,
    /// MAC key, which proves objects.
    pub mac: Option<MacKey>,
    /// Private half of the first epoch.
    pub private: Option<PrivateHalf>,
    /// The recipient that opened it.
    pub own: Option<Own>,
    /// Source of random bytes.
    pub random: Random,
}

/// The recipient as which this host opens objects, and its own key: each epoch has an object for it.
pub struct Own {
    /// Its name.
    pub recipient: String,
    secret: OwnSecret,
}

enum OwnSecret {
    Key(PrivateHalf),
    Passphrase(Zeroizing<Vec<u8>>),
}

impl Own {
    /// The means to open its objects.
    pub fn access(&self) -> Access<'_> {
        match &self.secret {
            OwnSecret::Key(private) => Access::Key(private),
            OwnSecret::Passphrase(passphrase) => Access::Passphrase(passphrase),
        }
    }
}

impl Keys {
    /// Draws the random bytes that a new object needs.
    pub fn drawn(&self) -> Result<Drawn> {
        Ok(Drawn {
            object_key: draw(self.random)?,
            ephemeral: draw(self.random)?,
        })
    }

    /// The keys of an epoch, and the recipient as which they are opened; none on a host that opens nothing.
    ///
    /// # Errors
    /// `Key` without access to the epoch; what the store says.
    pub fn open(&self, store: &dyn Store, epoch: u32) -> Result<Option<(Contents, String)>> {
        let (Some(private), Some(mac), Some(own)) = (&self.private, &self.mac, &self.own) else {
            return Ok(None);
        };
        let contents = match epoch {
            FIRST_EPOCH => Contents {
                private: private.clone(),
                mac: mac.clone(),
                epoch,
            },
            later => open_later(store, later, (&own.recipient, &own.access()), mac)?,
        };
        Ok(Some((contents, own.recipient.clone())))
    }

    /// No key of a key set.
    pub fn none(id: KeySetId) -> Keys {
        Keys {
            id,
            public: None,
            is_of_file: false,
            mac: None,
            private: None,
            own: None,
            random: system_random,
        }
    }

    /// Reads the keys that are configured, for the repository whose marker names `id`.
    ///
    /// # Errors
    /// `Key` when one is missing, wrong, or open to others; `Damaged` when what the repository keeps of it is.
    pub fn load(store: &dyn Store, id: KeySetId, from: Option<&Encryption>) -> Result<Keys> {
        let mut keys = Keys::none(id);
        let Some(from) = from else {
            return Ok(keys);
        };
        forbid_core_dumps()?;
        if let Some(path) = &from.key_set {
            let writer = WriterFile::read(path)?;
            let (public, mac) = writer.keys(path)?;
            same_set(mac.id(), id, path)?;
            keys.public = Some((writer.epoch(), public));
            keys.is_of_file = true;
            keys.mac = Some(mac);
        }
        if let Some((own, contents)) = contents(store, id, from, keys.mac.as_ref())? {
            if keys.public.is_none() {
                keys.public = Some((contents.epoch, public_of(&contents.private)?));
            }
            keys.mac = Some(contents.mac);
            keys.private = Some(contents.private);
            keys.own = Some(own);
        }
        Ok(keys)
    }
}

fn same_set(found: KeySetId, wanted: KeySetId, path: &Path) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    Err(err!(
        Key,
        "the repository is encrypted with key set {wanted}, and \"{}\" is of key set {found}",
        path.display()
    )
    .hint("Nothing was read or written. Name the key file of this repository, or look whether this is the right repository."))
}

/// Who the configured recipient is and what it gets at; `None` when none is configured.
fn contents(
    store: &dyn Store,
    id: KeySetId,
    from: &Encryption,
    mac: Option<&MacKey>,
) -> Result<Option<(Own, Contents)>> {
    let opened = if let Some((file, path)) = reader(from)? {
        if let Some(pinned) = &file.key_set {
            same_set(pinned.parse()?, id, path)?;
        }
        let stored = recipient(store, FIRST_EPOCH, &file.recipient)?;
        let stored = stored.ok_or_else(|| no_access(&file.recipient, store))?;
        let private = file.private(path)?;
        let opened = stored.open(&Access::Key(&private));
        opened.map(|contents| {
            let own = Own {
                recipient: file.recipient.clone(),
                secret: OwnSecret::Key(private),
            };
            (own, contents)
        })
    } else if from.has_passphrase() {
        let passphrase = passphrase(from)?;
        let opened = open_with_passphrase(store, &passphrase, from.recipient.as_deref(), mac);
        opened.map(|(recipient, contents)| {
            let own = Own {
                recipient,
                secret: OwnSecret::Passphrase(passphrase),
            };
            (own, contents)
        })
    } else {
        return Ok(None);
    };
    let (own, contents) = opened.map_err(|e| match e.code() {
        Code::Key if e.hint_text().is_none() => e.hint("Nothing was read. Check that key file or passphrase are those of this repository: pitr doctor."),
        _ => e,
    })?;
    if contents.mac.id() != id {
        return Err(err!(
            Damaged,
            "the repository's marker names key set {id}, its recipients are of {}",
            contents.mac.id()
        ));
    }
    Ok(Some((own, contents)))
}

/// The key file that is configured, or that a helper gives; and what stands for it in messages.
fn reader(from: &Encryption) -> Result<Option<(ReaderFile, &Path)>> {
    if let Some(path) = &from.key_file {
        return Ok(Some((ReaderFile::read(path)?, path)));
    }
    if let Some(path) = &from.kms.wrapped_file {
        let text = key_kms::secret(&from.kms, path)?;
        let file = ReaderFile::decode(path, &text).map_err(|_| {
            err!(Key, "what AWS KMS decrypts from \"{}\" is not the key file of a recipient", path.display())
                .hint("Nothing was read, and it is not shown. Name the file that \"pitr repo keygen --wrapped NAME --kms KEY\" made.")
        })?;
        return Ok(Some((file, path)));
    }
    let words = from.key_command.as_slice();
    let Some(program) = words.first().map(Path::new) else {
        return Ok(None);
    };
    let text = key_command::secret("key_command", words)?;
    let file = ReaderFile::decode(program, &text).map_err(|_| {
        err!(Key, "what key_command \"{}\" prints is not the key file of a recipient", program.display())
            .hint("Nothing was read, and its output is not shown. It is to print a .key file as \"pitr repo keygen\" made it, and nothing else.")
    })?;
    Ok(Some((file, program)))
}

fn no_access(name: &str, store: &dyn Store) -> Error {
    err!(
        Key,
        "\"{}\" has no keys for recipient \"{name}\"",
        store.location()
    )
    .hint("Nothing was read. Its access was withdrawn, or was never given: somebody who has access gives it with pitr repo rewrap. Where the keys of all are gone from the repository, a host with its writer.key gives them back: pitr init --key-set FILE.")
}

/// Returns the object that the repository keeps for a recipient of an epoch.
pub fn recipient(store: &dyn Store, epoch: u32, name: &str) -> Result<Option<Recipient>> {
    let key = scope::recipient(epoch, name)?;
    let read: Option<Recipient> = json::read(store, &key, RECIPIENT, json::LIMIT_BYTES)?;
    match read {
        Some(r) if r.recipient != name || r.epoch != epoch => {
            Err(err!(Damaged, "object \"{key}\" is of another recipient"))
        }
        other => Ok(other),
    }
}

/// Names of the recipients of an epoch, sorted.
pub fn recipient_names(store: &dyn Store, epoch: u32) -> Result<Vec<String>> {
    names_below(store, &scope::recipients(epoch))
}

/// Names of the recipients whose objects lie below a prefix, sorted.
pub fn names_below(store: &dyn Store, prefix: &str) -> Result<Vec<String>> {
    let mut names: Vec<String> = store
        .list(prefix)?
        .into_iter()
        .filter(|l| !l.is_prefix && is_recipient_name(&l.name))
        .map(|l| l.name)
        .collect();
    names.sort();
    Ok(names)
}

/// Whether an epoch has a recipient that a holder of the MAC key made.
///
/// # Errors
/// Those of the store; a recipient that is damaged is none.
pub fn has_genuine(store: &dyn Store, epoch: u32, mac: &MacKey) -> Result<bool> {
    for name in recipient_names(store, epoch)? {
        match recipient(store, epoch, &name) {
            Ok(Some(stored)) if stored.is_genuine(mac) => return Ok(true),
            Err(e) if !e.is_damage() => return Err(e),
            _ => {}
        }
    }
    Ok(false)
}

/// Stores what one recipient opens; the same being there is fine.
///
/// # Errors
/// `Refused` when the name is another recipient's.
pub fn give_access(store: &dyn Store, recipient: &Recipient) -> Result<()> {
    let key = scope::recipient(recipient.epoch, &recipient.recipient)?;
    if json::write(store, &key, RECIPIENT, recipient)? == Published::Created {
        return Ok(());
    }
    match self::recipient(store, recipient.epoch, &recipient.recipient)? {
        Some(stored) if stored == *recipient => Ok(()),
        _ => Err(err!(
            Refused,
            "recipient \"{}\" has keys in \"{}\" already",
            recipient.recipient,
            store.location()
        )
        .hint("Nothing was changed. Choose another name.")),
    }
}

/// The version of an object that a store keeps behind its deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Nobody can delete it before this time.
    Until(TimestampTz),
    /// It is listed.
    There,
    /// The store keeps versions, and does not tell whether it is there.
    Untold,
}

/// The fate of the object that a recipient opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withdrawn {
    /// There was none.
    Absent,
    /// It is deleted.
    Deleted,
    /// The store keeps a version of it, or may, and does not show it any more.
    Hidden(Version),
}

/// Takes away what one recipient opens of an epoch.
pub fn withdraw(store: &dyn Store, epoch: u32, name: &str) -> Result<Withdrawn> {
    take_away(store, &scope::recipient(epoch, name)?)
}

/// Deletes what a recipient opens, or hides it where the store keeps it for a time.
///
/// # Errors
/// `Locked` under a legal hold; what the store says.
pub fn take_away(store: &dyn Store, key: &Key) -> Result<Withdrawn> {
    // A hold does not stop the marker of a deletion, and nothing would list the object any more for whoever takes the hold away.
    if store.is_held(key)? {
        return Err(err!(Locked, "a legal hold lies on object \"{key}\"")
            .hint("Nothing was deleted. It is taken away with pitr unhold."));
    }
    match store.delete(key) {
        // A store that keeps versions tells of its marker behind an absence.
        Ok(true) => match store.head(key).and_then(|_| store.deleted(key)) {
            Ok(Some(deleted)) => Ok(match deleted.is_kept {
                Some(true) => Withdrawn::Hidden(Version::There),
                Some(false) => Withdrawn::Deleted,
                None => Withdrawn::Hidden(Version::Untold),
            }),
            _ => Ok(Withdrawn::Deleted),
        },
        Ok(false) => Ok(Withdrawn::Absent),
        Err(e) if e.code() == Code::Locked => match store.hide(key)? {
            Some(until) => Ok(Withdrawn::Hidden(Version::Until(until))),
            None => Err(e),
        },
        Err(e) => Err(e),
    }
}

/// Contents that passphrases opened, by the result of `opened_from`: deriving a key takes long, on purpose.
static OPENED: Mutex<BTreeMap<[u8; 32], Contents>> = Mutex::new(BTreeMap::new());

/// Opens the recipient that is named, or else the first that the passphrase opens.
fn open_with_passphrase(
    store: &dyn Store,
    passphrase: &[u8],
    name: Option<&str>,
    mac: Option<&MacKey>,
) -> Result<(String, Contents)> {
    let Candidates {
        recipients,
        mut unusable,
        forged,
        are_all,
    } = candidates(store, name, mac)?;
    for stored in &recipients {
        let known = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(contents) = known.get(&opened_from(passphrase, stored)?) {
            return Ok((stored.recipient.clone(), contents.clone()));
        }
    }
    let mut tried = 0;
    let mut is_given_up = !are_all;
    for stored in &recipients {
        if tried == PASSPHRASES {
            is_given_up = true;
            break;
        }
        match stored.open(&Access::Passphrase(passphrase)) {
            Ok(contents) => {
                let mut known = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
                known.insert(opened_from(passphrase, stored)?, contents.clone());
                return Ok((stored.recipient.clone(), contents));
            }
            // Parameters that no recipient of pitr has are refused before any work: that is no try.
            Err(e) if e.is_damage() => {
                unusable.get_or_insert(e);
            }
            Err(e) if e.code() == Code::Key => tried += 1,
            Err(e) => return Err(e),
        }
    }
    let opens_none = match (name, is_given_up) {
        (Some(name), _) => err!(Key, "the passphrase is not that of recipient \"{name}\""),
        (None, false) if tried == 0 => err!(Key, "\"{}\" has no recipient with a passphrase", store.location()),
        (None, false) => err!(Key, "the passphrase is not that of any recipient"),
        (None, true) => err!(Key, "the passphrase opens none of the recipients that were tried, {tried} in all, and there are more")
            .hint("Nothing was read. Name its recipient: recipient = \"NAME\" in the repository's [….encryption]. Somebody may have added recipients to keep others out: pitr doctor names those that are forged."),
    };
    Err(match unusable.or(forged) {
        // Nothing shows whether the passphrase or the damage keeps its holder out.
        Some(e) => {
            let hint = opens_none.hint_text().map(str::to_owned);
            let e = e.context(format!("open a recipient ({opens_none})"));
            match hint {
                Some(hint) => e.hint(hint),
                None => e,
            }
        }
        None => opens_none,
    })
}

/// Opens what a repository keeps of a later epoch for a recipient.
///
/// # Errors
/// `Key` where it keeps nothing, or key or passphrase are others; `Damaged`; what the store says.
pub fn open_later(
    store: &dyn Store,
    epoch: u32,
    (name, access): (&str, &Access<'_>),
    mac: &MacKey,
) -> Result<Contents> {
    let stored = recipient(store, epoch, name)?;
    let stored = stored.ok_or_else(|| epochs::no_access(store, epoch, name))?;
    let Access::Passphrase(passphrase) = access else {
        return stored.open_later(access, mac);
    };
    let from = opened_from(passphrase, &stored)?;
    let known = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(contents) = known.get(&from) {
        return Ok(contents.clone());
    }
    drop(known);
    let contents = stored.open_later(access, mac)?;
    let mut known = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    known.insert(from, contents.clone());
    Ok(contents)
}

/// Recipients with a passphrase.
struct Candidates {
    recipients: Vec<Recipient>,
    /// Error of the first recipient that cannot be used. A recipient that is damaged, or that a stranger put there,
    /// must not keep the passphrase from the recipient that it opens.
    unusable: Option<Error>,
    /// Likewise of those that the MAC key shows to be forged; of a stranger's many the holder need not hear first.
    forged: Option<Error>,
    /// There are no more than were read.
    are_all: bool,
}

/// Reads the recipients that a passphrase may be for: the one that is named, or all.
fn candidates(store: &dyn Store, name: Option<&str>, mac: Option<&MacKey>) -> Result<Candidates> {
    let names = match name {
        Some(name) if !is_recipient_name(name) => {
            return Err(err!(
                Config,
                "\"{}\" is no name of a recipient",
                name.escape_debug()
            ));
        }
        Some(name) => vec![name.to_owned()],
        None => recipient_names(store, FIRST_EPOCH)?,
    };
    let mut found = Candidates {
        recipients: Vec::new(),
        unusable: None,
        forged: None,
        are_all: true,
    };
    for (read, one) in names.iter().enumerate() {
        if read == RECIPIENTS_READ {
            found.are_all = false;
            break;
        }
        let stored = match recipient(store, FIRST_EPOCH, one) {
            Ok(None) if name.is_some() => return Err(no_access(one, store)),
            Ok(Some(stored)) if stored.has_passphrase() => stored,
            Ok(Some(_)) if name.is_some() => {
                return Err(err!(
                    Key,
                    "recipient \"{one}\" has a key file, not a passphrase"
                ));
            }
            Ok(_) => continue,
            Err(e) if e.is_damage() => {
                found.unusable.get_or_insert(e);
                continue;
            }
            Err(e) => return Err(e),
        };
        if mac.is_none_or(|mac| stored.is_genuine(mac)) {
            found.recipients.push(stored);
            continue;
        }
        let forged = || {
            err!(
                Damaged,
                "recipient \"{one}\" is forged: it has no MAC of the key set"
            )
        };
        found.forged.get_or_insert_with(forged);
    }
    Ok(found)
}

/// Returns a hash that stands for a passphrase and the recipient that it opened.
fn opened_from(passphrase: &[u8], stored: &Recipient) -> Result<[u8; 32]> {
    let mut from = blake3::Hasher::new_derive_key("pitr recipients opened by this process");
    from.update(passphrase);
    from.update(&json::encode(&Key::new("keys")?, RECIPIENT, stored)?);
    Ok(*from.finalize().as_bytes())
}

/// Passphrases that were read from a descriptor, which can be done once only.
static FROM_DESCRIPTORS: Mutex<BTreeMap<i32, Zeroizing<Vec<u8>>>> = Mutex::new(BTreeMap::new());

/// The passphrase that is configured.
///
/// # Errors
/// `Key` when there is none where it should be.
pub fn passphrase(from: &Encryption) -> Result<Zeroizing<Vec<u8>>> {
    forbid_core_dumps()?;
    let mut text = if let Some(path) = &from.passphrase_file {
        read_secret("passphrase file", path)?
    } else if let Some(number) = from.passphrase_fd {
        let mut known = FROM_DESCRIPTORS
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match known.get(&number) {
            Some(text) => text.clone(),
            None => {
                let text = read_descriptor(number)?;
                known.insert(number, text.clone());
                text
            }
        }
    } else if !from.passphrase_command.is_empty() {
        key_command::secret("passphrase_command", &from.passphrase_command)?
    } else {
        let text = from.passphrase.as_ref().map(config::Secret::expose);
        Zeroizing::new(text.unwrap_or_default().as_bytes().to_vec())
    };
    trim_end(&mut text);
    match text.is_empty() {
        true => Err(err!(Key, "the passphrase is empty")),
        false => Ok(text),
    }
}

/// The end of a line is no part of a passphrase.
fn trim_end(text: &mut Vec<u8>) {
    while text.last().is_some_and(|b| *b == b'\n' || *b == b'\r') {
        text.pop();
    }
}

/// Greatest length of a passphrase that is read from a descriptor, without the end of its line.
const DESCRIPTOR_LIMIT_BYTES: usize = 4096;
/// So many more are read: the end of the line, and a byte that tells of more.
const DESCRIPTOR_MORE_BYTES: usize = 3;

fn read_descriptor(number: i32) -> Result<Zeroizing<Vec<u8>>> {
    let failed = |e| err!(Key, "could not read a passphrase from descriptor {number}").source(e);
    let file = File::open(format!("/proc/self/fd/{number}")).map_err(failed)?;
    let most = DESCRIPTOR_LIMIT_BYTES + DESCRIPTOR_MORE_BYTES;
    let mut text = Zeroizing::new(Vec::with_capacity(most));
    file.take(most as u64)
        .read_to_end(&mut text)
        .map_err(failed)?;
    trim_end(&mut text);
    // A part of it would open nothing, or only what was made with that part.
    match text.len() > DESCRIPTOR_LIMIT_BYTES {
        true => Err(err!(
            Key,
            "the passphrase of descriptor {number} has more than {DESCRIPTOR_LIMIT_BYTES} bytes"
        )
        .hint("Name a file with it: passphrase_file. Older versions took the first 4096 bytes alone: what was encrypted by them opens with those.")),
        false => Ok(text),
    }
}

/// Reads a file that holds a secret, and that nobody else may read.
///
/// # Errors
/// `Key` when it cannot be read, is too long, or is open to others.
pub fn read_secret(kind: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let shown = path.display();
    let failed = |e| {
        err!(Key, "could not read {kind} \"{shown}\"")
            .source(e)
            .hint("Without it nothing that is encrypted can be used. Name the file where it is, and let the user that runs pitr read it.")
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.len() > FILE_LIMIT_BYTES {
        return Err(err!(Key, "\"{shown}\" is not a {kind}"));
    }
    config::secret::check_closed(Code::Key, kind, path, &metadata)?;
    let mut text = Zeroizing::new(Vec::with_capacity(
        usize::try_from(metadata.len()).unwrap_or(0) + 1,
    ));
    file.take(FILE_LIMIT_BYTES)
        .read_to_end(&mut text)
        .map_err(failed)?;
    Ok(text)
}

pub(super) fn parse<'a, T: Deserialize<'a>>(path: &Path, text: &'a [u8]) -> Result<T> {
    // The parser's message could show a part of the file.
    serde_json::from_slice(text).map_err(|_| not_one(path))
}

pub(super) fn not_one(path: &Path) -> Error {
    err!(
        Key,
        "\"{}\" is not a key file of the kind that is needed",
        path.display()
    )
    .hint("\"pitr repo keygen\" makes them.")
}

/// Whether a file holds the private key of a recipient.
pub fn is_private_key(content: &[u8]) -> bool {
    content.len() as u64 <= FILE_LIMIT_BYTES
        && serde_json::from_slice::<ReaderFile>(content).is_ok_and(|file| file.kind == READER)
}

/// Returns the digits of the private key in a recipient's key file.
///
/// # Errors
/// `Key` for any other content.
pub fn private_digits(content: &[u8]) -> Result<Zeroizing<String>> {
    Ok(ReaderFile::decode(Path::new("a key file"), content)?.private_key)
}

/// The key file that a recipient keeps.
#[derive(Serialize, Deserialize)]
pub struct ReaderFile {
    kind: String,
    /// The name under which repositories keep what it opens.
    pub recipient: String,
    private_key: Zeroizing<String>,
    /// The only key set that it is for, where it was made together with it: nobody can then pass off another repository as this one.
    key_set: Option<String>,
}

impl ReaderFile {
    /// The file of a pair that was just made.
    pub fn new(name: &str, private: &PrivateHalf, key_set: Option<KeySetId>) -> ReaderFile {
        ReaderFile {
            kind: READER.into(),
            recipient: name.to_owned(),
            private_key: Zeroizing::new(text::hex(private.0.expose())),
            key_set: key_set.map(|id| id.to_string()),
        }
    }

    /// # Errors
    /// `Key` when it is none, or open to others.
    pub fn read(path: &Path) -> Result<ReaderFile> {
        ReaderFile::decode(path, &read_secret("key file", path)?)
    }

    fn decode(path: &Path, text: &[u8]) -> Result<ReaderFile> {
        let file: ReaderFile = parse(path, text)?;
        match file.kind == READER && is_recipient_name(&file.recipient) {
            true => Ok(file),
            false => Err(not_one(path)),
        }
    }

    /// Whether it may be of this key set: one that was made together with another is not.
    pub fn may_open(&self, id: KeySetId) -> bool {
        self.key_set
            .as_ref()
            .is_none_or(|own| *own == id.to_string())
    }

    /// The private key.
    pub fn private(&self, path: &Path) -> Result<PrivateHalf> {
        let secret = Secret32::from_hex(&self.private_key).ok_or_else(|| not_one(path))?;
        Ok(PrivateHalf(secret))
    }

    /// As it is written.
    pub fn text(&self) -> Result<Zeroizing<Vec<u8>>> {
        pretty(self)
    }
}

/// The public facts about a recipient with a pair.
#[derive(Serialize, Deserialize)]
pub struct PublicFile {
    kind: String,
    /// Its name.
    pub recipient: String,
    public_key: String,
}

impl PublicFile {
    /// The file of a pair that was just made.
    pub fn new(name: &str, public: &PublicHalf) -> PublicFile {
        PublicFile {
            kind: PUBLIC.into(),
            recipient: name.to_owned(),
            public_key: text::hex(&public.0),
        }
    }

    /// # Errors
    /// `Key` when it is none.
    pub fn read(path: &Path) -> Result<PublicFile> {
        let text = std::fs::read(path);
        let text =
            text.map_err(|e| err!(Key, "could not read \"{}\"", path.display()).source(e))?;
        let file: PublicFile = parse(path, &text)?;
        match file.kind == PUBLIC && is_recipient_name(&file.recipient) {
            true => Ok(file),
            false => Err(not_one(path)),
        }
    }

    /// The public key.
    pub fn public(&self, path: &Path) -> Result<PublicHalf> {
        let key = text::unhex_array(&self.public_key);
        key.map(PublicHalf).ok_or_else(|| not_one(path))
    }

    /// As it is written.
    pub fn text(&self) -> Result<Zeroizing<Vec<u8>>> {
        pretty(self)
    }
}

pub(super) fn pretty(value: &impl Serialize) -> Result<Zeroizing<Vec<u8>>> {
    let failed = |_| err!(Internal, "a key file could not be written");
    let mut text = serde_json::to_vec_pretty(value).map_err(failed)?;
    text.push(b'\n');
    Ok(Zeroizing::new(text))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn a_passphrase_of_a_descriptor_is_read_whole_or_refused() {
        let read = |bytes: usize, end: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut text = vec![b'x'; bytes];
            text.extend_from_slice(end.as_bytes());
            std::fs::write(file.path(), text).unwrap();
            read_descriptor(file.as_file().as_raw_fd()).map(|text| text.len())
        };
        for end in ["", "\n", "\r\n"] {
            let whole = read(DESCRIPTOR_LIMIT_BYTES, end).unwrap();
            assert_eq!(whole, DESCRIPTOR_LIMIT_BYTES, "{end:?}");
        }
        for (bytes, end) in [(1, ""), (1, "\n"), (0, "\nx"), (0, "\r\nx"), (99, "\r\n")] {
            let refused = read(DESCRIPTOR_LIMIT_BYTES + bytes, end).unwrap_err();
            assert_eq!(refused.code(), Code::Key);
            assert!(refused.to_string().contains("4096 bytes"), "{refused}");
        }
    }
}
