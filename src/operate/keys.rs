//! The keys of an encrypted repository: made, and proven to open what they are for.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use zeroize::Zeroizing;

use super::session::Session;
use super::shares::read_shares;
use crate::config::{Encryption, Secret};
use crate::durable;
use crate::err;
use crate::error::{Error, Result};
use crate::repo::keyring::{self, PublicFile, ReaderFile, WriterFile, draw, system_random};
use crate::repo::{key_command, key_kms};
use crate::seal::share::{self, Joined, Share};
use crate::seal::{
    Access, Argon2, Contents, KeySetId, PrivateHalf, PublicHalf, Recipient, is_recipient_name,
    public_of, random_pair,
};
use crate::store::Published;

/// The place of a recipient's passphrase; else $PITR_PASSPHRASE.
#[derive(Debug, Clone, Default)]
pub struct Passphrase {
    pub file: Option<PathBuf>,
    pub descriptor: Option<i32>,
}

impl Passphrase {
    /// Reads it.
    ///
    /// # Errors
    /// `Usage` without a passphrase; `Refused` for a short one.
    pub(super) fn read(&self, session: &Session) -> Result<Zeroizing<Vec<u8>>> {
        let variable = session.environment.get("PITR_PASSPHRASE");
        // The passphrase is read as text later: other bytes would become another passphrase here, which then opens
        // nothing.
        let passphrase = variable
            .map(|v| v.to_str().map(|text| Secret::new(text.to_owned())))
            .map(|text| text.ok_or_else(|| err!(Usage, "PITR_PASSPHRASE is not UTF-8")))
            .transpose()?;
        let from = Encryption {
            passphrase_file: self.file.clone(),
            passphrase_fd: self.descriptor,
            passphrase,
            ..Encryption::default()
        };
        if !from.has_passphrase() {
            return Err(err!(Usage, "no passphrase is given")
                .hint("Name a file with --passphrase-file or a descriptor with --passphrase-fd, or set PITR_PASSPHRASE."));
        }
        let passphrase = keyring::passphrase(&from)?;
        let text = std::str::from_utf8(&passphrase);
        let length = text.map_or(passphrase.len(), |text| text.chars().count());
        match length < PASSPHRASE_MIN {
            true => Err(err!(
                Refused,
                "the passphrase has fewer than {PASSPHRASE_MIN} characters"
            )
            .hint(
                "Nothing was written. Whoever copies the repository can try passphrases for years.",
            )),
            false => Ok(passphrase),
        }
    }
}

/// The file for hosts that write.
const WRITER_FILE: &str = "writer.key";
/// The file for hosts that seal originals to a secrets pair.
const SECRETS_FILE: &str = "secrets.key";
/// No wrapped key is longer.
const WRAPPED_BYTES: usize = 64 << 10;
/// Passphrases of fewer characters are refused; of what is no text, of fewer bytes.
const PASSPHRASE_MIN: usize = 14;

/// The operator's request.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// The directory of the files.
    pub dir: PathBuf,
    /// Recipients, who get a key file.
    pub recipients: Vec<String>,
    /// The .pub files of recipients whose pairs were made elsewhere.
    pub public: Vec<PathBuf>,
    /// A recipient whose key file is wrapped, and what wraps it.
    pub wrapped: Option<(String, Wrapping)>,
    /// A recipient whose key is divided into shares.
    pub split: Option<Split>,
    /// A recipient with a passphrase.
    pub passphrase: Option<String>,
    /// The place of that passphrase.
    pub source: Passphrase,
    /// Whether no key set is made.
    pub pair_only: bool,
    /// Whether a secrets pair is made, in place of a key set.
    pub secrets: bool,
}

/// The helper that wraps a key file.
#[derive(Debug, Clone)]
pub enum Wrapping {
    /// A command, and its arguments: the key file is its input.
    Command(Vec<String>),
    /// A key of AWS KMS: its id, ARN or alias.
    Kms(String),
}

/// A recipient whose key lies on no disk, and in how many parts people get it.
#[derive(Debug, Clone)]
pub struct Split {
    /// Its name.
    pub recipient: String,
    /// The number of shares.
    pub shares: u8,
    /// So many of them open the key.
    pub threshold: u8,
}

/// Keys that were made.
#[derive(Debug, Serialize)]
pub struct Keys {
    /// The id of the key set.
    pub key_set: Option<String>,
    /// The files; that of the writer is the last one of a key set.
    pub files: Vec<String>,
    /// The file of a key that was wrapped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrapped: Option<String>,
    /// The files of the shares of a key that was divided.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<String>,
}

/// A file to write, none of which may exist.
pub(super) struct NewFile {
    pub(super) path: PathBuf,
    pub(super) content: Zeroizing<Vec<u8>>,
}

/// Makes the keys of a repository, or only the pairs of recipients.
///
/// # Errors
/// `Usage`; `Refused` when a file is there already; `ReadBack` when what was written does not open what it is for.
pub fn keygen(session: &Session, asked: &Asked) -> Result<Keys> {
    let directory = session.environment.absolute(&asked.dir);
    let contents = contents()?;
    let key_set = (!asked.pair_only).then(|| contents.mac.id());
    let mut files = Vec::new();
    let mut recipients = Vec::new();
    let mut passphrase = None;
    for name in &asked.recipients {
        let (public, pair) = pair(&directory, name, key_set)?;
        files.extend(pair);
        recipients.push(contents.wrap_to_key(name, &public, &draw(system_random)?)?);
    }
    if let Some((name, wrapping)) = &asked.wrapped {
        let (public, pair) = pair(&directory, name, key_set)?;
        files.extend(wrap(pair, wrapping)?);
        recipients.push(contents.wrap_to_key(name, &public, &draw(system_random)?)?);
    }
    if let Some(split) = &asked.split {
        let (public, made) = divided(&directory, split, key_set)?;
        files.extend(made);
        recipients.push(contents.wrap_to_key(&split.recipient, &public, &draw(system_random)?)?);
    }
    for path in &asked.public {
        recipients.push(to_public(&contents, path)?);
    }
    if let Some(name) = &asked.passphrase {
        if asked.secrets {
            return Err(
                err!(Usage, "a secrets pair has recipients with key files alone")
                    .hint("Nothing was written. Name them with --recipient or --public."),
            );
        }
        let given = asked.source.read(session)?;
        recipients.push(to_passphrase(&contents, name, &given)?);
        passphrase = Some(given);
    }
    check_names(&recipients)?;
    if key_set.is_some() {
        let (writer, name) = match asked.secrets {
            true => (WriterFile::of_secrets(&contents, recipients)?, SECRETS_FILE),
            false => (WriterFile::new(&contents, recipients)?, WRITER_FILE),
        };
        // Last: without it there is no key set.
        files.push(NewFile {
            path: directory.join(name),
            content: writer.text()?,
        });
    }
    write(&directory, &files, session)?;
    let written = Written {
        directory: &directory,
        is_secrets: asked.secrets,
        pairs: &asked.recipients,
        split: asked.split.as_ref(),
        passphrase: passphrase.as_deref().map(Vec::as_slice),
    };
    written.prove(key_set).map_err(|e| {
        err!(ReadBack, "the files that were written do not open what they are for")
            .source(e)
            .hint(format!(
                "Nothing uses them yet. Remove those in {}, look whether the disk is sound, and make others.",
                directory.display()
            ))
    })?;
    Ok(Keys {
        key_set: key_set.map(|id| id.to_string()),
        files: files.iter().map(|f| f.path.display().to_string()).collect(),
        wrapped: asked.wrapped.as_ref().map(|(name, _)| {
            directory
                .join(format!("{name}.wrapped"))
                .display()
                .to_string()
        }),
        shares: asked
            .split
            .iter()
            .flat_map(|split| split.paths(&directory))
            .map(|path| path.display().to_string())
            .collect(),
    })
}

impl Split {
    fn paths(&self, directory: &Path) -> Vec<PathBuf> {
        let path = |n| directory.join(format!("{}.share-{n}", self.recipient));
        (1..=self.shares).map(path).collect()
    }
}

/// Files as they were written: a key that opens nothing is noticed today, not when something is to be restored with it.
struct Written<'a> {
    directory: &'a Path,
    is_secrets: bool,
    /// The recipients whose pairs are among them.
    pairs: &'a [String],
    /// The recipient whose key is divided.
    split: Option<&'a Split>,
    passphrase: Option<&'a [u8]>,
}

impl Written<'_> {
    /// Reads them as hosts will, and opens with them what was wrapped. Only for a recipient whose pair was made elsewhere there is nothing
    /// here to open it with.
    fn prove(&self, key_set: Option<KeySetId>) -> Result<()> {
        for name in self.pairs {
            let path = self.directory.join(format!("{name}.pub"));
            let public = PublicFile::read(&path)?.public(&path)?;
            if public_of(&self.private(name)?)? != public {
                return Err(err!(Key, "the two files of \"{name}\" are not a pair"));
            }
        }
        let joined = self.split.map(|split| self.joined(split)).transpose()?;
        let Some(id) = key_set else {
            return Ok(());
        };
        let (name, read): (_, fn(&Path) -> Result<WriterFile>) = match self.is_secrets {
            true => (SECRETS_FILE, WriterFile::read_secrets),
            false => (WRITER_FILE, WriterFile::read),
        };
        let path = self.directory.join(name);
        let writer = read(&path)?;
        let (public, mac) = writer.keys(&path)?;
        for recipient in writer.recipients() {
            let name = &recipient.recipient;
            let opened = if self.pairs.contains(name) {
                recipient.open(&Access::Key(&self.private(name)?))?
            } else if let Some(joined) = joined.as_ref().filter(|joined| joined.recipient == *name)
            {
                recipient.open(&Access::Key(&joined.private))?
            } else if let (true, Some(passphrase)) = (recipient.has_passphrase(), self.passphrase) {
                recipient.open(&Access::Passphrase(passphrase))?
            } else {
                continue;
            };
            if [mac.id(), opened.mac.id()] != [id, id] || public_of(&opened.private)? != public {
                return Err(err!(Key, "recipient \"{name}\" opens another key set"));
            }
        }
        Ok(())
    }

    /// Joins as many shares as are needed, each share once at least.
    fn joined(&self, split: &Split) -> Result<Joined> {
        let files = split.paths(self.directory);
        let files = files.iter().map(|path| read_shares(path));
        let shares: Vec<Share> = files
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect();
        let threshold = usize::from(split.threshold);
        let mut joined = None;
        for some in shares.windows(threshold) {
            joined = Some(share::join(some)?);
        }
        joined.ok_or_else(|| err!(Key, "there are fewer than {threshold} shares"))
    }

    fn private(&self, name: &str) -> Result<PrivateHalf> {
        let path = self.directory.join(format!("{name}.key"));
        keyring::forbid_core_dumps()?;
        ReaderFile::read(&path)?.private(&path)
    }
}

/// A new pair and a new MAC key.
fn contents() -> Result<Contents> {
    keyring::forbid_core_dumps()?;
    let (private, _) = random_pair(&draw(system_random)?);
    Contents::new(private, draw(system_random)?)
}

fn checked(name: &str) -> Result<&str> {
    match is_recipient_name(name) {
        true => Ok(name),
        false => Err(err!(
            Usage,
            "\"{}\" is not a name for a recipient: up to 63 of a-z, 0-9, _ and - are needed",
            name.escape_debug()
        )),
    }
}

fn new_pair(name: &str) -> Result<(PrivateHalf, PublicHalf)> {
    let name = checked(name)?;
    if matches!(name, "writer" | "secrets") {
        return Err(err!(
            Usage,
            "\"{name}\" is the name of the file for hosts that write"
        ));
    }
    keyring::forbid_core_dumps()?;
    Ok(random_pair(&draw(system_random)?))
}

fn public_file(directory: &Path, name: &str, public: &PublicHalf) -> Result<NewFile> {
    Ok(NewFile {
        path: directory.join(format!("{name}.pub")),
        content: PublicFile::new(name, public).text()?,
    })
}

fn pair(
    directory: &Path,
    name: &str,
    key_set: Option<KeySetId>,
) -> Result<(PublicHalf, [NewFile; 2])> {
    let (private, public) = new_pair(name)?;
    let key = NewFile {
        path: directory.join(format!("{name}.key")),
        content: ReaderFile::new(name, &private, key_set).text()?,
    };
    let files = [key, public_file(directory, name, &public)?];
    Ok((public, files))
}

/// A pair whose private key is written as shares alone.
fn divided(
    directory: &Path,
    split: &Split,
    key_set: Option<KeySetId>,
) -> Result<(PublicHalf, Vec<NewFile>)> {
    let name = &split.recipient;
    let (private, public) = new_pair(name)?;
    let sizes = (split.shares, split.threshold);
    let random = draw(system_random)?;
    let shares = share::split(name, (&private, &public), key_set, sizes, &random)?;
    let shares = split.paths(directory).into_iter().zip(&shares);
    let mut files: Vec<NewFile> = shares
        .map(|(path, share)| NewFile {
            path,
            content: Zeroizing::new(share.text().as_bytes().to_vec()),
        })
        .collect();
    files.push(public_file(directory, name, &public)?);
    Ok((public, files))
}

/// Hands a key file to the helper that wraps it: it never touches a disk as it is.
fn wrap([key, public]: [NewFile; 2], wrapping: &Wrapping) -> Result<[NewFile; 2]> {
    let wrapped = match wrapping {
        Wrapping::Kms(id) => key_kms::wrap(id, &key.content)?,
        Wrapping::Command(words) => {
            let setting = "the wrapping command";
            key_command::run(setting, words, Some(&key.content), WRAPPED_BYTES)?
        }
    };
    let private = keyring::private_digits(&key.content)?;
    let is_plain = wrapped
        .windows(private.len())
        .any(|found| found == private.as_bytes());
    if is_plain {
        return Err(
            err!(Refused, "the wrapping command prints the key as it is")
                .hint("Nothing was written. Name a command that encrypts its standard input."),
        );
    }
    let key = NewFile {
        path: key.path.with_extension("wrapped"),
        content: wrapped,
    };
    Ok([key, public])
}

pub(in crate::operate) fn to_public(contents: &Contents, path: &Path) -> Result<Recipient> {
    let file = PublicFile::read(path)?;
    contents.wrap_to_key(&file.recipient, &file.public(path)?, &draw(system_random)?)
}

pub(super) fn to_passphrase(
    contents: &Contents,
    name: &str,
    passphrase: &[u8],
) -> Result<Recipient> {
    let mut salt = [0; 16];
    system_random(&mut salt)?;
    contents.wrap_to_passphrase(checked(name)?, passphrase, Argon2::usual(salt))
}

fn check_names(recipients: &[Recipient]) -> Result<()> {
    let mut names: Vec<&str> = recipients.iter().map(|r| r.recipient.as_str()).collect();
    names.sort_unstable();
    if names.is_empty() {
        return Err(err!(Usage, "no recipient is named: nobody could read what is written")
            .hint("Name at least two, one of them for the safe: pitr repo keygen --dir DIR --recipient ops --recipient escrow"));
    }
    match names.windows(2).any(|pair| pair.first() == pair.last()) {
        true => Err(err!(Usage, "two recipients have the same name")),
        false => Ok(()),
    }
}

/// Makes the directory and what is missing above it, durably: a key that is in use must not go with its directory in a power cut.
fn make_directories(directory: &Path) -> io::Result<()> {
    let is_missing = |path: &&Path| !path.exists();
    let missing: Vec<&Path> = directory.ancestors().take_while(is_missing).collect();
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let parents = missing.iter().filter_map(|made| made.parent());
    for parent in parents {
        durable::sync_directory_at(parent)?;
    }
    Ok(())
}

pub(super) fn write(directory: &Path, files: &[NewFile], session: &Session) -> Result<()> {
    let doing = format!("make directory \"{}\"", directory.display());
    make_directories(directory).map_err(|e| Error::from_io(doing, e))?;
    let taken = |path: &Path| {
        err!(Refused, "file \"{}\" is there already", path.display())
            .hint("A key file is never written over: what it opens would be lost.")
    };
    if let Some(file) = files.iter().find(|f| f.path.symlink_metadata().is_ok()) {
        return Err(taken(&file.path));
    }
    for file in files {
        let written = durable::write_new(&file.path, &file.content, session.host.random());
        let doing = format!("write file \"{}\"", file.path.display());
        if written.map_err(|e| Error::from_io(doing, e))? == Published::Exists {
            return Err(taken(&file.path));
        }
    }
    Ok(())
}
