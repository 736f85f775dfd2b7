//! The places of the repositories: looked at, then made. Directory, trial of its filesystem, marker, registration.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::identity::Identity;
use super::keys::KeySet;
use super::user::ServerUser;
use super::{Request, Wanted};
use crate::config::{self, Location};
use crate::durable;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::operate::away;
use crate::operate::expire::keep_reserve;
use crate::operate::session::Session;
use crate::repo::repository::{Registration, Repository};
use crate::repo::scope::{self, Scope};
use crate::repo::source;
use crate::store::blob::BlobStore;
use crate::store::file::FileStore;
use crate::store::probe::probe;
use crate::store::s3::S3Store;
use crate::store::sftp::SftpStore;
use crate::store::{self, Published, Store};

/// The state of a repository's place before anything is done to it.
pub(super) enum State {
    /// Neither it nor, perhaps, its parents are there.
    Missing,
    /// An empty directory.
    Empty,
    /// A repository; whether the cluster is registered in it.
    Repository { registered: bool },
}

pub(super) struct Prepared<'a> {
    configured: &'a config::Repository,
    state: State,
    /// The keys of a repository that is to be encrypted, or has lost those of all recipients.
    key_set: Option<KeySet>,
}

pub(super) fn prepare<'a>(
    wanted: &Wanted,
    configured: &'a config::Repository,
    identity: &Identity,
    request: &Request,
    session: &Session,
) -> Result<Prepared<'a>> {
    if let (Some(path), Some(pgdata)) = (configured.location.directory(), &identity.pgdata) {
        apart(path, pgdata)?;
    }
    let mut key_set = None;
    let state = match look(configured, session)? {
        State::Repository { .. } => {
            key_set = lost_keys(configured, request, session)?;
            // A recipient's key opens nothing of what is lost.
            let repository = match &key_set {
                Some(_) => session.open(&as_writer(configured))?,
                None => session.open(configured)?,
            };
            let registered = check_registered(wanted, &repository, identity, request.confirm)?;
            State::Repository { registered }
        }
        state => state,
    };
    if let (State::Missing | State::Empty, Some(from)) = (&state, &configured.encryption) {
        key_set = Some(KeySet::read(from, request.one_recipient)?);
    }
    Ok(Prepared {
        configured,
        state,
        key_set,
    })
}

/// The configuration of a host that only writes.
fn as_writer(configured: &config::Repository) -> config::Repository {
    let from = configured.encryption.as_ref();
    config::Repository {
        encryption: from.map(|from| config::Encryption {
            key_set: from.key_set.clone(),
            ..config::Encryption::default()
        }),
        ..configured.clone()
    }
}

/// The key set of a repository of which nobody opens anything any more, where the operator names it.
fn lost_keys(
    configured: &config::Repository,
    request: &Request,
    session: &Session,
) -> Result<Option<KeySet>> {
    let from = configured.encryption.as_ref();
    let Some(from) = from.filter(|from| request.key_set.is_some() && from.key_set.is_some()) else {
        return Ok(None);
    };
    // This requires that the repository is of the key set.
    let repository = session.open(&as_writer(configured))?;
    if repository.marker().key_set.is_none() {
        return Ok(None);
    }
    let keys = KeySet::read(from, true)?;
    Ok(keys.is_lost(repository.store())?.then_some(keys))
}

/// Looks at the place; whether the cluster is registered in a repository is not looked at.
fn look(configured: &config::Repository, session: &Session) -> Result<State> {
    let path = match &configured.location {
        Location::File(path) => path,
        Location::S3 { bucket, prefix } => {
            let store = S3Store::open(bucket, prefix, &configured.s3, session.host.random())?;
            let is_apart = || apart_from_others(configured, bucket, prefix, session);
            let first_key = || is_apart().and_then(|()| store.first_key());
            return look_in_bucket(configured, session, &store, &first_key);
        }
        location @ Location::Blob { .. } => {
            let store = BlobStore::open(location, &configured.s3, session.host.random())?;
            return look_in_bucket(configured, session, &store, &|| store.first_key());
        }
        location @ Location::Sftp { .. } => return look_on_server(location, configured, session),
    };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(State::Missing),
        Err(e) => {
            let doing = format!("look at repository directory \"{}\"", path.display());
            return Err(Error::from_io(doing, e));
        }
        Ok(_) => {}
    }
    let store = FileStore::open(path, session.host.random())?;
    if store.head(&scope::marker())?.is_some() {
        return Ok(State::Repository { registered: false });
    }
    if configured.encryption.is_none() || !has_keys_only(&store)? {
        check_empty(path)?;
    }
    Ok(State::Empty)
}

/// Looks at a prefix of a bucket.
fn look_in_bucket(
    configured: &config::Repository,
    session: &Session,
    store: &dyn Store,
    first_key: &dyn Fn() -> Result<Option<String>>,
) -> Result<State> {
    let found = away::telling(configured, session.host.progress.as_ref(), || {
        store.head(&scope::marker())
    });
    if found.map_err(|e| away::explained(configured, e))?.is_some() {
        return Ok(State::Repository { registered: false });
    }
    match first_key()? {
        None => Ok(State::Empty),
        Some(_) if configured.encryption.is_some() && has_keys_only(store)? => Ok(State::Empty),
        Some(key) => Err(not_empty(&store.location(), &key, 1)),
    }
}

/// Looks at a directory on a server.
fn look_on_server(
    location: &Location,
    configured: &config::Repository,
    session: &Session,
) -> Result<State> {
    let store = SftpStore::open(location, &configured.sftp, session.host.random())?;
    let is_there = away::telling(configured, session.host.progress.as_ref(), || {
        store.is_there()
    });
    if !is_there.map_err(|e| away::explained(configured, e))? {
        return Ok(State::Missing);
    }
    if store.head(&scope::marker())?.is_some() {
        return Ok(State::Repository { registered: false });
    }
    if configured.encryption.is_none() || !has_keys_only(&store)? {
        check_empty_of(&store.location(), store.names()?)?;
    }
    Ok(State::Empty)
}

/// A repository inside another one would be listed, and expired, with it. Whoever may not look above the prefix is believed.
fn apart_from_others(
    configured: &config::Repository,
    bucket: &str,
    prefix: &str,
    session: &Session,
) -> Result<()> {
    let slashes = prefix.match_indices('/').map(|(at, _)| at);
    let above = std::iter::once(0).chain(slashes);
    for end in above.filter(|_| !prefix.is_empty()) {
        let above = prefix.get(..end).unwrap_or_default();
        let store = S3Store::open(bucket, above, &configured.s3, session.host.random())?;
        if matches!(store.head(&scope::marker()), Ok(Some(_))) {
            return Err(err!(
                Refused,
                "\"{}\" lies inside repository \"{}\"",
                configured.location,
                store.location()
            )
            .hint(
                "Nothing was written. Give each repository a prefix of its own, beside the others.",
            ));
        }
    }
    Ok(())
}

/// Whether the place holds only what an `init` leaves that was killed between the recipients and the marker. A listing has no name that no key has: an
/// empty one does not say that the place is.
fn has_keys_only(store: &dyn Store) -> Result<bool> {
    let keys = scope::recipients(crate::seal::FIRST_EPOCH);
    let keys = keys.split('/').next().unwrap_or_default();
    let listed = store.list("")?;
    Ok(!listed.is_empty() && listed.iter().all(|l| l.is_prefix && l.name == keys))
}

/// A repository inside the data directory would be in its own backups, and the other way round is no better.
fn apart(path: &Path, pgdata: &Path) -> Result<()> {
    // The nearest parent that exists, without links.
    let real = |p: &Path| {
        let there = p.ancestors().find(|a| a.exists()).unwrap_or(p);
        let rest = p.strip_prefix(there).unwrap_or(Path::new(""));
        let real = std::fs::canonicalize(there);
        real.unwrap_or_else(|_| there.to_owned()).join(rest)
    };
    let (path, pgdata) = (real(path), real(pgdata));
    if path.starts_with(&pgdata) || pgdata.starts_with(&path) {
        return Err(err!(
            Refused,
            "repository \"{}\" and data directory \"{}\" lie in one another",
            path.display(),
            pgdata.display()
        )
        .hint("Nothing was written. Keep the repository apart, best on another disk."));
    }
    Ok(())
}

/// Requires an empty directory. Files of a filesystem's own tools or of a killed `init` count for nothing; anything else belongs to somebody.
fn check_empty(path: &Path) -> Result<()> {
    let shown = path.display();
    let entries = std::fs::read_dir(path).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let entries = entries.map_err(|e| Error::from_io(format!("list directory \"{shown}\""), e))?;
    let names = entries.iter().map(|e| e.file_name());
    let names = names.map(|n| n.to_string_lossy().into_owned()).collect();
    check_empty_of(&shown.to_string(), names)
}

fn check_empty_of(place: &str, mut names: Vec<String>) -> Result<()> {
    names.retain(|n| n != "lost+found" && !n.starts_with(durable::TEMPORARY_PREFIX));
    names.sort();
    match names.first() {
        None => Ok(()),
        Some(first) => Err(not_empty(place, first, names.len())),
    }
}

fn not_empty(place: &str, first: &str, count: usize) -> Error {
    let (kind, hint) = match place.starts_with("s3://") {
        true => ("place", "Nothing was written. Name another prefix."),
        false => (
            "directory",
            "Nothing was written. Name an empty directory, or one that does not exist yet.",
        ),
    };
    err!(
        Refused,
        "{kind} \"{place}\" is not a repository, and not empty: it holds \"{}\"{}",
        first.escape_debug(),
        match count {
            1 => String::new(),
            more => format!(" and {} more", more - 1),
        }
    )
    .hint(hint)
}

/// Whether the cluster's identifier is registered under its name already.
fn check_registered(
    wanted: &Wanted,
    repository: &Repository,
    identity: &Identity,
    confirm: bool,
) -> Result<bool> {
    let known = repository.registrations(wanted.cluster.as_str())?;
    let is_same = |r: &&Registration| r.system_identifier == identity.system_identifier;
    if let Some(same) = known.iter().find(is_same) {
        if same.segment_size_bytes != identity.segment_size_bytes {
            return Err(err!(
                Refused,
                "cluster \"{}\" is registered with segments of {} bytes, and has {} now",
                wanted.cluster,
                same.segment_size_bytes,
                identity.segment_size_bytes
            )
            .hint("Nothing was written. After pg_resetwal --wal-segsize a segment's name means another position: use a new cluster name."));
        }
        if same.major != identity.major {
            return Err(err!(
                Refused,
                "cluster \"{}\" is registered as PostgreSQL {}, and is {} now, with the same system identifier",
                wanted.cluster,
                same.major,
                identity.major
            )
            .hint("Nothing was written. pg_upgrade gives a new system identifier: look whether this is the right data directory, or use a new cluster name."));
        }
        return Ok(!same.is_lost);
    }
    if known.is_empty() || confirm {
        return Ok(false);
    }
    let others = known.iter().map(|r| r.system_identifier.to_string());
    let others: Vec<String> = others.collect();
    Err(err!(
        WrongCluster,
        "cluster \"{}\" is registered with system identifier {}, this one has {}",
        wanted.cluster,
        others.join(", "),
        identity.system_identifier
    )
    .hint("Nothing was written. If this is another cluster, give it another name with --cluster.\nAfter pg_upgrade or initdb, run the same command with --confirm, then take a full backup."))
}

/// The end of the warning about a repository on the filesystem of the data directory.
pub const ONE_DISK: &str = "one broken disk takes both";

/// The outcome of one repository.
#[derive(Serialize)]
pub struct Done {
    pub name: String,
    pub url: String,
    /// The kind of thing that keeps its bytes.
    #[serde(skip)]
    pub kind: &'static str,
    /// Whether it was made.
    pub created: bool,
    /// Whether the cluster was registered.
    pub registered: bool,
    /// Promises that its place does not keep.
    pub weaknesses: Vec<String>,
    /// Recipients that got back the keys that the repository had lost.
    pub recipients_given_back: Vec<String>,
    /// Other content whose registration was lost, and is there again.
    pub registered_again: Vec<String>,
    /// Why other content was not registered again.
    pub not_registered: Vec<String>,
}

impl Done {
    /// Whether nothing was lacking.
    pub fn was_whole(&self) -> bool {
        !self.created
            && !self.registered
            && self.recipients_given_back.is_empty()
            && self.registered_again.is_empty()
            && self.not_registered.is_empty()
    }

    /// Warns of promises that its place does not keep, and of what it had lost.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        let (name, kind) = (&self.name, self.kind);
        let weaknesses = self.weaknesses.iter();
        let weaknesses =
            weaknesses.map(move |w| format!("the {kind} of repository \"{name}\" {w}"));
        let back = self.recipients_given_back.join(", ");
        let back = (!back.is_empty()).then(|| {
            format!("repository \"{name}\" had no keys of any recipient, and has those of writer.key again: {back}. Withdraw again who was withdrawn: pitr repo rewrap --withdraw NAME. Look what deleted keys/, a lifecycle rule or a person")
        });
        let again = self.registered_again.iter().map(move |scope| {
            format!("repository \"{name}\" had lost the registration of \"{scope}\", and has it again. Look what deleted it, a lifecycle rule or a person")
        });
        let not = self.not_registered.iter().map(move |why| {
            format!("repository \"{name}\": {why} Its backups are refused until then")
        });
        weaknesses.chain(back).chain(again).chain(not)
    }
}

pub(super) fn create(
    wanted: &Wanted,
    prepared: &Prepared<'_>,
    identity: &Identity,
    server: &ServerUser,
    session: &Session,
) -> Result<Done> {
    let was_registered = matches!(prepared.state, State::Repository { registered: true });
    let mut made = match &prepared.configured.location {
        Location::File(path) => directory(path, prepared, identity, session)?,
        Location::S3 { bucket, prefix } => {
            let settings = &prepared.configured.s3;
            let store = S3Store::open(bucket, prefix, settings, session.host.random())?;
            Made {
                weaknesses: store.probe(session.host.random())?.weaknesses,
                ..Made::of(store)
            }
        }
        location @ Location::Blob { .. } => {
            let settings = &prepared.configured.s3;
            let store = BlobStore::open(location, settings, session.host.random())?;
            store.probe(session.host.random())?;
            Made::of(store)
        }
        location @ Location::Sftp { .. } => {
            let settings = &prepared.configured.sftp;
            let store = SftpStore::open(location, settings, session.host.random())?;
            store.create_root()?;
            store.probe(session.host.random())?;
            Made::of(store)
        }
    };
    let uuid = (u128::from(session.host.random()) << 64) | u128::from(session.host.random());
    let key_set = prepared.key_set.as_ref();
    let mut recipients_given_back = Vec::new();
    if let (Some(key_set), State::Repository { .. }) = (key_set, &prepared.state) {
        recipients_given_back = key_set.give_back(made.store.as_ref())?;
    } else if let Some(key_set) = key_set {
        // Before the marker: there is no moment at which objects could be sealed that nobody opens.
        let given = key_set.give_access(made.store.as_ref());
        given.inspect_err(|_| remove_empty(&made.ours))?;
    }
    let (repository, published) = Repository::create_with(
        made.store,
        uuid,
        session.host.now(),
        key_set.map(|k| k.id.to_string()),
        prepared.configured.encryption.as_ref(),
    )
    .inspect_err(|_| remove_empty(&made.ours))?;
    if !was_registered {
        repository.register(&registration(wanted, identity, session))?;
    }
    let again = match prepared.state {
        State::Repository { .. } => register_again(&repository, session)?,
        State::Missing | State::Empty => Again::default(),
    };
    if let Some(path) = prepared.configured.location.directory() {
        made.ours.extend(made_in(path, wanted, identity));
        let registrations = again.made.iter().map(Scope::registration);
        made.ours
            .extend(registrations.map(|key| path.join(key.as_str())));
        let of_keys = key_set.map(|k| k.made_in(path));
        made.ours.extend(of_keys.unwrap_or_default());
    }
    server.take(&made.ours)?;
    // A session that begins now gives what it makes to the server's user, too.
    let store = store::open(prepared.configured, session.host.random())?;
    keep_reserve(session, &prepared.configured.name, store.as_ref());
    Ok(Done {
        name: prepared.configured.name.clone(),
        url: prepared.configured.location.to_string(),
        kind: prepared.configured.location.kind(),
        created: published == Published::Created,
        registered: !was_registered,
        weaknesses: made.weaknesses,
        recipients_given_back,
        registered_again: again.made.iter().map(Scope::prefix).collect(),
        not_registered: again.failures,
    })
}

fn registration(wanted: &Wanted, identity: &Identity, session: &Session) -> Registration {
    Registration {
        name: wanted.cluster.to_string(),
        system_identifier: identity.system_identifier,
        major: identity.major,
        segment_size_bytes: identity.segment_size_bytes,
        block_size_bytes: identity.block_size_bytes,
        wal_block_size_bytes: identity.wal_block_size_bytes,
        first_seen: session.host.now(),
        features: Vec::new(),
        is_lost: false,
    }
}

/// Registrations of other content that were lost, and what became of them.
#[derive(Default)]
struct Again {
    /// The scopes that were registered again.
    made: Vec<Scope>,
    /// Why others were not.
    failures: Vec<String>,
}

/// Registers other content again whose registration is lost. The cluster does not wait for it: what fails is told.
fn register_again(repository: &Repository, session: &Session) -> Result<Again> {
    let mut again = Again::default();
    let mut failed = |e: Error| match e.code() {
        Code::Interrupted => Err(e),
        _ => {
            let text = format!("{e}. {}", e.hint_text().unwrap_or_default());
            again.failures.push(text.trim().to_owned());
            Ok(())
        }
    };
    let scopes = match repository.aux_scopes() {
        Ok(scopes) => scopes,
        Err(e) => {
            failed(e)?;
            Vec::new()
        }
    };
    for scope in scopes {
        match source::register_again(repository.store(), &scope, session.host.now()) {
            Ok(true) => again.made.push(scope),
            Ok(false) => {}
            Err(e) => failed(e)?,
        }
    }
    Ok(again)
}

/// A place that was made and tried.
struct Made {
    store: Box<dyn Store>,
    weaknesses: Vec<String>,
    /// The directories that were made for it, highest first.
    ours: Vec<PathBuf>,
}

impl Made {
    fn of(store: impl Store + 'static) -> Made {
        Made {
            store: Box::new(store),
            weaknesses: Vec::new(),
            ours: Vec::new(),
        }
    }
}

/// Makes the directory and tries it.
fn directory(
    path: &Path,
    prepared: &Prepared<'_>,
    identity: &Identity,
    session: &Session,
) -> Result<Made> {
    let ours: Vec<PathBuf> = match prepared.state {
        State::Missing => missing_ancestors(path),
        State::Empty | State::Repository { .. } => Vec::new(),
    };
    let store = FileStore::create(path, session.host.random())?;
    let tried = probe(path, session.host.random());
    let mut weaknesses = tried.inspect_err(|_| remove_empty(&ours))?;
    if let Some(pgdata) = &identity.pgdata
        && same_filesystem(path, pgdata)
    {
        weaknesses.push(format!("is that of the data directory: {ONE_DISK}"));
    }
    Ok(Made {
        store: Box::new(store),
        weaknesses,
        ours,
    })
}

/// Takes back the directories that were made for a repository that came to nothing, deepest first; what holds anything stays.
fn remove_empty(ours: &[PathBuf]) {
    for directory in ours.iter().rev() {
        let _ = std::fs::remove_dir(directory);
    }
}

/// The directories that must be created for `path` to be, highest first.
pub(super) fn missing_ancestors(path: &Path) -> Vec<PathBuf> {
    let missing = path.ancestors().take_while(|p| !p.exists());
    let mut missing: Vec<PathBuf> = missing.map(Path::to_owned).collect();
    missing.reverse();
    missing
}

/// The files that `init` makes in a repository.
fn made_in(path: &Path, wanted: &Wanted, identity: &Identity) -> Vec<PathBuf> {
    let mut made = vec![path.to_owned(), path.join(scope::marker().as_str())];
    let mut at = path.join(scope::CLUSTERS);
    made.push(at.clone());
    for part in [
        wanted.cluster.as_str(),
        &identity.system_identifier.to_string(),
        "cluster.json",
    ] {
        at.push(part);
        made.push(at.clone());
    }
    made
}

fn same_filesystem(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |p: &Path| std::fs::metadata(p).map(|m| m.dev()).ok();
    device(one).is_some() && device(one) == device(other)
}
