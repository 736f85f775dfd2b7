//! The registration of an aux scope (format, section 15): whose content it holds, and which source may write it.

use serde::{Deserialize, Serialize};

use super::catalog;
use super::event::{self, Event, Recorded, Writer};
use super::id::BackupId;
use super::json;
use super::root::Stored;
use super::root::aux_root::AuxOutline;
use super::scope::Scope;
use super::set_mark;
use super::slot_map::CONTENT;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::time::TimestampTz;
use crate::store::{Published, Store, get};
use crate::text::hex;

/// The kind in the JSON of a registration.
const REGISTRATION: &str = "scope";
/// The kind of the events that give a scope another source.
const SOURCE: &str = "source";

/// `scope.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The kind of content.
    pub content: String,
    pub name: String,
    /// Source that is backed up: 32 hexadecimal digits; none where any host writes.
    pub source: Option<String>,
    /// The same for people; not in an encrypted repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_text: Option<String>,
    /// When it was registered.
    pub created: TimestampTz,
    /// Features that a reader must know.
    pub features: Vec<String>,
}

/// The source of an identity: 16 bytes, as 32 hexadecimal digits.
pub fn source_of(kind: &str, identity: &str) -> String {
    let hash = blake3::hash(format!("pitr/1/source\0{kind}\0{identity}").as_bytes());
    hex(hash.as_bytes().get(..16).unwrap_or_default())
}

/// Checks a registration as it is stored.
///
/// # Errors
/// `Damaged`, also when it is that of another scope, and when it is forged.
pub fn check(store: &dyn Store, scope: &Scope, bytes: &[u8]) -> Result<Registration> {
    let key = scope.registration();
    if !json::is_genuine(store, &key, bytes)? {
        return Err(err!(Damaged, "object \"{key}\" is {}", event::FORGED)
            .hint("Nothing was written. Look who can write to the store; then delete the object, and register the content again."));
    }
    let read: Registration = json::decode(&key, REGISTRATION, bytes)?;
    match scope.kind() == Some(&read.content) && scope.name() == read.name {
        true => Ok(read),
        false => Err(err!(Damaged, "object \"{key}\" registers another scope")),
    }
}

/// Reads the registration; `None` when there is none.
///
/// # Errors
/// Those of [`check`]; what the store says.
pub fn registration(store: &dyn Store, scope: &Scope) -> Result<Option<Registration>> {
    let bytes = get(store, &scope.registration(), json::LIMIT_BYTES)?;
    bytes.map(|bytes| check(store, scope, &bytes)).transpose()
}

/// Registers a scope of which nothing is stored, or requires that it is registered.
///
/// # Errors
/// `Damaged` when the registration is lost, damaged or forged: nothing is written before it is made again; what the store says.
pub fn register(
    store: &dyn Store,
    scope: &Scope,
    (source, source_text): (Option<&str>, Option<&str>),
    now: TimestampTz,
) -> Result<Registration> {
    if let Some(known) = registration(store, scope)? {
        return Ok(known);
    }
    if is_stored(store, scope)? {
        // Another process may have registered it between the two looks.
        return registration(store, scope)?.ok_or_else(|| lost(scope));
    }
    let own = Registration {
        content: scope.kind().unwrap_or_default().to_owned(),
        name: scope.name().to_owned(),
        source: source.map(str::to_owned),
        source_text: source_text
            .map(str::to_owned)
            .filter(|_| !is_encrypted(store)),
        created: now,
        features: Vec::new(),
    };
    write(store, scope, &own)
}

/// Whether anything is stored of the scope.
fn is_stored(store: &dyn Store, scope: &Scope) -> Result<bool> {
    Ok(!store.list(&scope.prefix())?.is_empty())
}

/// Whether something is stored of a scope that nothing registers.
///
/// # Errors
/// Those of [`registration`]; what the store says.
pub fn is_lost(store: &dyn Store, scope: &Scope) -> Result<bool> {
    if registration(store, scope)?.is_some() {
        return Ok(false);
    }
    // Another process may have registered it between the two looks: a registration is written before anything else.
    Ok(is_stored(store, scope)? && registration(store, scope)?.is_none())
}

/// Registers a scope anew whose registration is lost, and returns whether it was lost. Its source is the one that the newest root names, else the newest
/// event of a source, else the begin of a backup; sets have none.
///
/// # Errors
/// `Damaged` when nothing that can be read tells the source; `Key` without the MAC key; what the store says.
pub fn register_again(store: &dyn Store, scope: &Scope, now: TimestampTz) -> Result<bool> {
    if !is_lost(store, scope)? {
        return Ok(false);
    }
    let source = match scope.kind() {
        Some(set_mark::KIND) => None,
        _ => match of_newest_root(store, scope)? {
            Some(source) => source,
            None => {
                let last = match events(store, scope)?.pop() {
                    Some(last) => Some(last),
                    None => newest_begin(store, scope)?,
                };
                last.ok_or_else(|| unknown(scope))?.event.source
            }
        },
    };
    let own = Registration {
        content: scope.kind().unwrap_or_default().to_owned(),
        name: scope.name().to_owned(),
        source,
        source_text: None,
        created: now,
        features: Vec::new(),
    };
    json::require_mac(store, &scope.registration())?;
    let published = json::write_signed(store, &scope.registration(), REGISTRATION, &own)?;
    Ok(published == Published::Created)
}

/// The begin of the newest backup that is proven.
fn newest_begin(store: &dyn Store, scope: &Scope) -> Result<Option<Recorded>> {
    let listed = store.list(&scope.events())?;
    let mut ids: Vec<BackupId> = listed.iter().filter_map(|l| l.name.parse().ok()).collect();
    ids.sort();
    for id in ids.iter().rev() {
        match event::read_one(store, scope, &id.to_string(), "begin") {
            Ok(Some(begin)) if !begin.is_doubted => return Ok(Some(begin)),
            Ok(_) => {}
            Err(e) if e.is_damage() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

/// The source that the newest root names; none where no root can be read.
///
/// # Errors
/// Errors of the store.
pub fn of_newest_root(store: &dyn Store, scope: &Scope) -> Result<Option<Option<String>>> {
    let mut newest: Option<AuxOutline> = None;
    for id in catalog::ids(store, scope)? {
        match AuxOutline::stored(store, scope, &id) {
            Ok(Stored::Root(root)) => {
                if newest.as_ref().is_none_or(|n| n.stop_time < root.stop_time) {
                    newest = Some(root);
                }
            }
            Ok(_) => {}
            Err(e) if e.is_damage() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(newest.map(|root| root.source))
}

fn write(store: &dyn Store, scope: &Scope, own: &Registration) -> Result<Registration> {
    json::require_mac(store, &scope.registration())?;
    match json::write_signed(store, &scope.registration(), REGISTRATION, own)? {
        Published::Created => Ok(own.clone()),
        Published::Exists => registration(store, scope)?.ok_or_else(|| lost(scope)),
    }
}

/// Returns the error for a scope that has objects and no registration.
pub fn lost(scope: &Scope) -> Error {
    err!(Damaged, "the registration of \"{}\" is lost", scope.prefix())
        .hint("Nothing was written. What is stored can be restored. Register it again before the next backup: pitr init.")
}

fn unknown(scope: &Scope) -> Error {
    err!(
        Damaged,
        "the registration of \"{}\" is lost, and nothing that can be read tells its source",
        scope.prefix()
    )
    .hint("What is stored can be restored. Take further backups under another name.")
}

fn is_encrypted(store: &dyn Store) -> bool {
    store.encrypted().is_some()
}

/// The events that give the scope a source, oldest first.
///
/// # Errors
/// `Damaged` when one cannot be read: then nobody knows who may write.
pub fn events(store: &dyn Store, scope: &Scope) -> Result<Vec<Recorded>> {
    let is_wanted = |name: &str| event::kind_in(name) == SOURCE;
    let mut read = event::read_some(store, scope, scope.whole(), &is_wanted)?;
    read.retain(Recorded::counts);
    read.sort_by(|a, b| (a.event.time, &a.name).cmp(&(b.event.time, &b.name)));
    Ok(read)
}

/// Requires that `own` is the source that writes the scope.
///
/// # Errors
/// `Refused`, naming both; `Damaged`, and what the store says.
pub fn require(
    store: &dyn Store,
    scope: &Scope,
    registered: &Registration,
    own: Option<&str>,
) -> Result<()> {
    let events = events(store, scope)?;
    let current = match events.last() {
        Some(last) => last.event.source.as_deref(),
        None => registered.source.as_deref(),
    };
    let shown = |source: Option<&str>| source.unwrap_or("none").to_owned();
    match current == own {
        true => Ok(()),
        false => Err(err!(
            Refused,
            "\"{}\" is written by source {}, and this is source {}",
            scope.prefix(),
            shown(current),
            shown(own)
        )
        .hint(match scope.kind() {
            Some(CONTENT) => "Nothing was stored: two sources under one name would be mixed. The same server at another address, or a replica of it that was promoted: set identity of its section to the former address.\nAnother server takes another name. One that replaces the first goes on under its name with pitr redis backup NAME --confirm.",
            _ => "Nothing was stored: two sources under one name would be mixed. A clone of the first host, or a test, takes another name.\nA host that replaces the first one goes on under its name with --confirm.",
        })),
    }
}

/// As [`require`]; with a writer, whose operator confirmed it, another source than before continues the scope.
///
/// # Errors
/// Those of [`require`] and of [`continue_with`].
pub fn require_or_continue(
    store: &dyn Store,
    scope: &Scope,
    registered: &Registration,
    own: Option<&str>,
    confirmed: Option<&Writer<'_>>,
) -> Result<()> {
    match (require(store, scope, registered, own), confirmed) {
        (Err(e), Some(writer)) if e.code() == Code::Refused => {
            let whose = (own.unwrap_or_default(), "the operator confirmed it");
            continue_with(store, scope, writer, whose)
        }
        (required, _) => required,
    }
}

/// Records that a source continues the scope.
///
/// # Errors
/// Errors of the store.
pub fn continue_with(
    store: &dyn Store,
    scope: &Scope,
    writer: &Writer<'_>,
    (source, reason): (&str, &str),
) -> Result<()> {
    let known = events(store, scope)?;
    let latest = known.last().map(|e| e.event.time);
    let event = writer.event(SOURCE, scope.whole());
    // Later than every one that is known: the newest decides.
    let time = latest.map_or(event.time, |t| {
        event.time.max(TimestampTz(t.0.saturating_add(1)))
    });
    let event = Event {
        time,
        source: Some(source.to_owned()),
        reason: Some(reason.to_owned()),
        ..event
    };
    writer.record(store, scope, &event).map(|_| ())
}
