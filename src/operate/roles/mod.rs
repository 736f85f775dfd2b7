//! Roles: the rights that each kind of host needs, and whether this one has more or less.

mod files;
mod policy;
mod server;

use serde::Serialize;
use serde_json::Value;

use super::finding::Findings;
use super::session::Session;
use crate::config::{Cluster, Location, Records, Repository, Settings};
use crate::error::{Code, Error, Result};
use crate::store::blob::BlobStore;
use crate::store::file::FileStore;
use crate::store::s3::S3Store;
use crate::store::sftp::SftpStore;
use crate::store::{Key, Store, put};

/// The role of the server whose members see settings, slots and the archiver.
pub(super) const MONITOR: &str = "pg_monitor";
/// The function that makes a restore point.
pub(super) const MARK: &str = "pg_catalog.pg_create_restore_point(text)";

/// The work of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It restores, drills and looks; it stores nothing but records.
    Reader,
    /// It archives and backs up; it deletes nothing.
    Writer,
    /// It expires; it reads no data.
    Janitor,
    /// It does all but expire.
    Operator,
}

impl Role {
    /// The role's name.
    pub fn name(self) -> &'static str {
        match self {
            Role::Reader => "reader",
            Role::Writer => "writer",
            Role::Janitor => "janitor",
            Role::Operator => "operator",
        }
    }

    /// The name with its article.
    pub(super) fn one(self) -> String {
        let article = if self == Role::Operator { "an" } else { "a" };
        format!("{article} {}", self.name())
    }

    fn creates(self) -> bool {
        self != Role::Reader
    }

    fn reads(self) -> bool {
        matches!(self, Role::Reader | Role::Operator)
    }

    /// Whether its work needs a server of PostgreSQL.
    pub(super) fn needs_server(self) -> bool {
        matches!(self, Role::Writer | Role::Operator)
    }

    fn deletes(self) -> bool {
        self == Role::Janitor
    }
}

/// The rights of a role.
#[derive(Debug, Serialize)]
pub struct Profile {
    pub role: Role,
    pub repositories: Vec<Rights>,
    /// Statements for the server, as a superuser; none where the role needs no server.
    pub sql: Vec<String>,
    /// Files of keys, in sentences.
    pub keys: Vec<&'static str>,
    /// Owners and modes of files, in sentences.
    pub files: Vec<&'static str>,
}

/// Rights in one repository.
#[derive(Debug, Serialize)]
pub struct Rights {
    /// Its name.
    pub repository: String,
    /// Its place.
    pub url: String,
    /// The policy of a bucket.
    pub policy: Option<Value>,
    /// Owners and modes of a directory.
    pub directory: Option<String>,
}

/// Tells what a role needs in the repositories of the configuration.
///
/// # Errors
/// Those of the configuration.
pub fn profile(session: &Session, role: Role) -> Result<Profile> {
    let settings = session.settings_with_repositories()?;
    let has_log = settings.audit.records != Records::Off;
    let has_claims = has_claims(&settings);
    let first = settings.repositories.first().map(|one| one.name.clone());
    let records = |one: &Repository| policy::Records {
        has_log,
        // Jobs are claimed in the first repository alone.
        has_claims: has_claims && first.as_ref() == Some(&one.name),
    };
    let rights = settings.repositories.iter().map(|one| Rights {
        repository: one.name.clone(),
        url: one.location.to_string(),
        policy: policy::of(&with_endpoint(session, one), role, records(one)),
        directory: directory(&one.location, role, records(one)),
    });
    Ok(Profile {
        role,
        repositories: rights.collect(),
        sql: sql(role),
        keys: keys(role),
        files: vec![
            "pitr.toml: mode 0640, of root and the group of the role; no secret stands in it",
            "files of keys, passwords and credentials: mode 0600, of the user that runs pitr",
            "state_dir and cache_dir: mode 0700, of the user that runs pitr",
        ],
    })
}

fn directory(location: &Location, role: Role, records: policy::Records) -> Option<String> {
    let also = creates_below(role, records);
    let path = match location {
        Location::File(path) => path.display().to_string(),
        Location::S3 { .. } => return None,
        Location::Blob { .. } => {
            let page = "docs/configuration.md names the actions that it allows there";
            return Some(format!(
                "{location}: a role of the service for {}{also}; {page}",
                role.one()
            ));
        }
        Location::Sftp { path, .. } => path.clone(),
    };
    let rights = match role {
        Role::Reader if !also.is_empty() => {
            "a user who may read it: mode 0750 and the group of the directory"
        }
        Role::Reader => {
            "a user who may read it: mode 0750 and the group of the directory, or a mount that is read-only"
        }
        Role::Writer | Role::Operator => {
            "the owner of the directory, mode 0750. A filesystem has no right to create without the right to delete: what must survive this host lies in a second repository under Object Lock"
        }
        Role::Janitor => "the owner of the directory, on the host that has the disk",
    };
    Some(format!("{path}: {rights}{also}"))
}

/// The folders below which a role that creates nothing else makes records and claims, in words.
fn creates_below(role: Role, records: policy::Records) -> String {
    let folders = [(records.has_log, "audit/"), (records.has_claims, "jobs/")];
    let folders = folders
        .iter()
        .filter(|(has, _)| *has && role == Role::Reader);
    let folders: Vec<&str> = folders.map(|(_, folder)| *folder).collect();
    match folders.is_empty() {
        true => String::new(),
        false => format!("; also the right to create below {}", folders.join(" and ")),
    }
}

/// The repository with the server that the environment names, as the client takes it: what Amazon knows is not asked of another store.
fn with_endpoint(session: &Session, repository: &Repository) -> Repository {
    let mut one = repository.clone();
    let named = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
    let mut named = named.iter().filter_map(|n| session.environment.get(n));
    if one.s3.endpoint.is_none() {
        one.s3.endpoint = named.next().map(|url| url.to_string_lossy().into_owned());
    }
    one
}

fn sql(role: Role) -> Vec<String> {
    let mut sql = Vec::new();
    if role.needs_server() {
        sql.push("create role pitr login replication;".to_owned());
        sql.push(format!("grant {MONITOR} to pitr;"));
        sql.push(format!(
            "grant execute on function {MARK} to pitr;   -- pitr mark"
        ));
    }
    sql
}

fn keys(role: Role) -> Vec<&'static str> {
    match role {
        Role::Reader => vec!["key_file or a passphrase of one recipient; no key_set"],
        Role::Writer => vec!["key_set (writer.key) alone: this host cannot read what it wrote"],
        Role::Janitor => {
            vec!["key_set (writer.key) alone: forged backups are refused, and nothing is read"]
        }
        Role::Operator => vec!["key_set and the key_file of one recipient"],
    }
}

/// Compares this host with a role: keys and rights in repositories, the role at the server, files. In each repository an object is created under
/// a temporary name, where the role creates objects, and deleted again where that is allowed.
pub fn look(
    found: &mut Findings,
    settings: &Settings,
    cluster: Option<&Cluster>,
    role: Role,
    session: &Session,
) {
    found.begin("role");
    // Jobs are claimed in the first repository alone.
    let mut has_claims = has_claims(settings);
    for one in &settings.repositories {
        keys_of(found, one, role);
        replacing(found, session, one, role);
        match tried(session, one, role) {
            Ok((creates, deletes)) => {
                rights(found, &one.name, role, creates, deletes);
                // A janitor may create in some places, and the trial was in another.
                if has_claims && (role == Role::Janitor || !creates) {
                    claims(found, session, one, role);
                }
            }
            Err(e) => found.error(&one.name, &e),
        }
        has_claims = false;
    }
    if let Some(cluster) = cluster {
        server::look(found, settings, cluster, role);
    }
    files::look(found, settings, session);
}

fn keys_of(found: &mut Findings, repository: &Repository, role: Role) {
    let name = format!("keys of {}", repository.name);
    let (has_set, reads) = repository
        .encryption
        .as_ref()
        .map_or((false, false), |e| (e.key_set.is_some(), e.can_read()));
    if repository.encryption.is_none() {
        found.warn(
            &name,
            "none",
            "the repository is not encrypted: who reads it reads the data, and who creates objects can forge them",
            "pitr repo keygen, and a new repository",
        );
    } else if reads && !role.reads() {
        found.warn(
            &name,
            "may read",
            format!("{} needs no key that reads", role.one()),
            "take key_file and passphrase from the configuration of this host",
        );
    } else if !reads && role.reads() {
        found.fail(
            &name,
            "may not read",
            "nothing can be restored here",
            "set key_file",
        );
    } else if !has_set && role.deletes() {
        found.warn(
            &name,
            "no MAC key",
            "forged backups count as kept, and genuine ones can be deleted for them",
            "set key_set",
        );
    } else {
        found.ok(&name, format!("those of {}", role.one()));
    }
}

/// Warns of a host that may write over objects for good, though it may not delete any: to backups it is the same. An operator may have to, where it
/// copies objects into another class.
fn replacing(found: &mut Findings, session: &Session, configured: &Repository, role: Role) {
    let name = format!("objects of {}", configured.name);
    match replaces(session, configured, role) {
        Ok(true) => found.warn(
            &name,
            "may replace objects",
            format!(
                "whoever takes over this {} can destroy backups: the bucket keeps no former versions",
                role.name()
            ),
            "let the bucket keep versions, or create one with Object Lock; else keep a second repository that this host does not reach",
        ),
        Ok(false) => {}
        Err(e) => found.error(&name, &e),
    }
}

/// Whether an object can be written over and is lost then: tried with one of its own, under a temporary name.
fn replaces(session: &Session, configured: &Repository, role: Role) -> Result<bool> {
    let Location::S3 { bucket, prefix } = &configured.location else {
        return Ok(false);
    };
    if role == Role::Operator {
        return Ok(false);
    }
    // A place without a marker is somewhere else: the other trial says so.
    if session.open(configured).is_err() {
        return Ok(false);
    }
    let nonce = session.host.random();
    let store = S3Store::open(bucket, prefix, &configured.s3, nonce)?;
    // A janitor creates in some places alone.
    let (aside, key) = match role {
        Role::Janitor => (store.aside_below("clusters", nonce), "events/role"),
        Role::Reader | Role::Writer | Role::Operator => (store.aside(nonce), "role"),
    };
    let key = Key::new(key)?;
    let is_lost = match allowed(put(&aside, &key, b"pitr"))? {
        false => false,
        true => match aside.replace(&key) {
            Err(e) if is_refusal(&e) => false,
            is_kept => !is_kept?,
        },
    };
    let _ = aside.clear();
    Ok(is_lost)
}

fn rights(found: &mut Findings, name: &str, role: Role, creates: bool, deletes: bool) {
    let next = format!(
        "give this host the rights that this prints, and no others: pitr init --role {}",
        role.name()
    );
    if role.creates() && !creates {
        found.fail(
            name,
            "may not create objects",
            "nothing can be stored from here",
            next,
        );
    } else if role.deletes() && !deletes {
        found.fail(name, "may not delete objects", "nothing can expire", next);
    } else if !role.deletes() && deletes {
        found.warn(
            name,
            "may delete objects",
            format!("whoever takes over this {} can delete backups", role.name()),
            next,
        );
    } else if !role.creates() && creates {
        found.warn(
            name,
            "may create objects",
            "a reader that creates can fill the repository, and forge objects where nothing is encrypted",
            next,
        );
    } else {
        found.ok(name, format!("the rights of {}", role.one()));
    }
}

fn has_claims(settings: &Settings) -> bool {
    settings.jobs.iter().any(|job| job.is_claimed)
}

/// Tries to create where the claims of scheduled jobs lie. A bucket alone has rights by folder: elsewhere whoever creates nothing claims nothing.
fn claims(found: &mut Findings, session: &Session, configured: &Repository, role: Role) {
    let name = format!("claims in {}", configured.name);
    match may_claim(session, configured, role) {
        Ok(true) => found.ok(&name, "jobs can be claimed"),
        Ok(false) => found.fail(
            &name,
            "may not create claims",
            "the agent of this host runs no job that has `claim`",
            format!(
                "give this host the rights that this prints: pitr init --role {}",
                role.name()
            ),
        ),
        Err(e) => found.error(&name, &e),
    }
}

fn may_claim(session: &Session, configured: &Repository, role: Role) -> Result<bool> {
    let nonce = session.host.random();
    let Location::S3 { bucket, prefix } = &configured.location else {
        return Ok(role == Role::Janitor);
    };
    let store = S3Store::open(bucket, prefix, &configured.s3, nonce)?;
    Ok(trial_and_clear(&store.aside_below("jobs", nonce), "role")?.0)
}

/// Tries a janitor's work: creates an event under a temporary name, and deletes it.
///
/// # Errors
/// Answers of the store other than a refusal.
pub fn may_delete(session: &Session, configured: &Repository) -> Result<bool> {
    let (_, deletes) = tried(session, configured, Role::Janitor)?;
    Ok(deletes)
}

/// Whether objects may be created, and deleted: tried under a temporary name.
fn tried(session: &Session, configured: &Repository, role: Role) -> Result<(bool, bool)> {
    // A place without a marker is somewhere else: nothing is written there.
    session.open(configured)?;
    let nonce = session.host.random();
    match &configured.location {
        Location::File(path) => {
            let store = FileStore::open(path, nonce)?;
            aside(store.aside(nonce), |name| store.discard(name).map(drop))
        }
        Location::S3 { bucket, prefix } => {
            let store = S3Store::open(bucket, prefix, &configured.s3, nonce)?;
            // A janitor creates events and the like alone, and its policy allows no other key.
            let (aside, key) = match role {
                Role::Janitor => (store.aside_below("clusters", nonce), "events/role"),
                Role::Reader | Role::Writer | Role::Operator => (store.aside(nonce), "role"),
            };
            trial_and_clear(&aside, key)
        }
        location @ Location::Blob { .. } => {
            let store = BlobStore::open(location, &configured.s3, nonce)?;
            let aside = store.aside(nonce);
            let done = trial(&aside, "role");
            let _ = aside.clear();
            done
        }
        location @ Location::Sftp { .. } => {
            let store = SftpStore::open(location, &configured.sftp, nonce)?;
            aside(store.aside(nonce), |name| store.discard(name).map(drop))
        }
    }
}

/// Tries a directory: whoever may not make one there creates nothing.
fn aside(
    made: Result<(impl Store, String)>,
    discard: impl FnOnce(&str) -> Result<()>,
) -> Result<(bool, bool)> {
    if let Err(e) = &made
        && is_refusal(e)
    {
        return Ok((false, false));
    }
    let (store, name) = made?;
    let (creates, deletes) = trial(&store, "role")?;
    Ok((creates, deletes && allowed(discard(&name))?))
}

fn trial_and_clear(aside: &S3Store, key: &str) -> Result<(bool, bool)> {
    let done = trial(aside, key);
    // An object that may not be deleted stays, and the janitor removes it.
    let _ = aside.clear();
    done
}

fn trial(store: &dyn Store, key: &str) -> Result<(bool, bool)> {
    let key = Key::new(key)?;
    if !allowed(put(store, &key, b"pitr"))? {
        return Ok((false, false));
    }
    Ok((true, allowed(store.delete(&key))?))
}

fn is_refusal(e: &Error) -> bool {
    matches!(e.code(), Code::Denied | Code::ReadOnly | Code::Locked)
}

fn allowed<T>(done: Result<T>) -> Result<bool> {
    match done {
        Ok(_) => Ok(true),
        Err(e) if is_refusal(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_creates_records_and_claims_in_every_kind_of_place() {
        let records = |has_log, has_claims| policy::Records {
            has_log,
            has_claims,
        };
        let told = |location: &Location, role, records| directory(location, role, records).unwrap();
        let here = Location::File("/srv/pitr".into());
        let blob = Location::from_argument("azure://account/container/p").unwrap();
        let sftp = Location::from_argument("sftp://pitr@host/srv/pitr").unwrap();
        for place in [&here, &blob, &sftp] {
            let both = told(place, Role::Reader, records(true, true));
            assert!(both.contains("create below audit/ and jobs/"), "{both}");
            assert!(!both.contains("read-only"), "{both}");
            let claims = told(place, Role::Reader, records(false, true));
            assert!(claims.contains("create below jobs/"), "{claims}");
            let none = told(place, Role::Reader, records(false, false));
            let writer = told(place, Role::Writer, records(true, true));
            assert!(![none, writer].concat().contains("also"), "{place}");
        }
    }
}
