//! The first door: files without their secrets, listed, shown and compared.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{configured, find, sealing, shown_path, stored_path, wanted};
use crate::backup::configuration::collect::collect;
use crate::backup::configuration::{SEALED, Sealing, UNSEALED};
use crate::err;
use crate::error::Result;
use crate::operate::search::Stored;
use crate::operate::session::Session;
use crate::repo::id::BackupId;
use crate::restore::content::Open;
use crate::snapshot::content::ContentReader;
use crate::snapshot::filekey::{FileKey, Naming};
use crate::snapshot::layer::Metadata;
use crate::snapshot::node::NodeKind;

/// An entry of a backup.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    pub path: String,
    /// `file`, `directory`, `symlink`.
    pub kind: &'static str,
    /// Permissions, octal.
    pub mode: String,
    /// Whether it has secrets, which are kept apart.
    pub has_secrets: bool,
}

/// Lists a backup.
///
/// # Errors
/// `NotFound`; `Damaged`; what the store says.
pub fn list(
    session: &Session,
    name: &str,
    backup: Option<&BackupId>,
) -> Result<(BackupId, Vec<Line>)> {
    let stored = find(session, name, backup)?;
    let lines = stored.read(session, |open| {
        let mut lines = Vec::new();
        for item in open.snapshot.items() {
            (open.tick)()?;
            let item = item?;
            let Metadata::Node(node) = &item.metadata else {
                continue;
            };
            if item.key.is_attachment() {
                continue;
            }
            let kind = match node.kind {
                NodeKind::File(_) => "file",
                NodeKind::Directory => "directory",
                _ => "symlink",
            };
            lines.push(Line {
                path: shown_path(&item.path),
                kind,
                mode: format!("{:04o}", node.mode),
                has_secrets: has_original(&open, &item.path)?,
            });
        }
        Ok(lines)
    })?;
    Ok((stored.id, lines))
}

/// The attachments that an original may be.
pub(super) fn originals(path: &[u8]) -> Result<[FileKey; 2]> {
    let key = |prefix: &str| FileKey::attachment(&[prefix.as_bytes(), path].concat());
    Ok([key(SEALED)?, key(UNSEALED)?])
}

fn has_original(open: &Open<'_>, path: &[u8]) -> Result<bool> {
    let [sealed, unsealed] = originals(path)?;
    let is_there = |key| -> Result<bool> { Ok(open.snapshot.metadata(key)?.is_some()) };
    Ok(is_there(&sealed)? || is_there(&unsealed)?)
}

/// The content under a key, if it is a file.
pub(super) fn content(
    open: &Open<'_>,
    key: &FileKey,
) -> Result<Option<zeroize::Zeroizing<Vec<u8>>>> {
    content_by(&mut ContentReader::new(open.snapshot), open, key)
}

/// The length of a file; none of what is none.
fn length_of(open: &Open<'_>, key: &FileKey) -> Result<Option<u64>> {
    Ok(match open.snapshot.metadata(key)? {
        Some(Metadata::Node(node)) => match node.kind {
            NodeKind::File(length) => Some(length),
            _ => None,
        },
        _ => None,
    })
}

/// The same by a reader that keeps what it read last: neighbours share it.
fn content_by(
    reader: &mut ContentReader<'_, '_>,
    open: &Open<'_>,
    key: &FileKey,
) -> Result<Option<zeroize::Zeroizing<Vec<u8>>>> {
    let Some(length) = length_of(open, key)? else {
        return Ok(None);
    };
    let room = usize::try_from(length).unwrap_or(0).min(64 << 20);
    let mut content = zeroize::Zeroizing::new(Vec::with_capacity(room));
    reader.read(key, length, &mut |bytes| {
        if content.len() + bytes.len() > room {
            return Err(err!(
                Damaged,
                "a file of configuration is larger than any can be"
            ));
        }
        content.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(Some(content))
}

/// Returns a file without its secrets.
///
/// # Errors
/// `NotFound` also when the backup has no such file; `Damaged`; what the store says.
pub fn show(
    session: &Session,
    name: &str,
    path: &str,
    backup: Option<&BackupId>,
) -> Result<(BackupId, Vec<u8>)> {
    let stored = find(session, name, backup)?;
    let shown = stored.read(session, |open| {
        let key = FileKey::from_path(&stored_path(path), Naming::Tree)?;
        let found = content(&open, &key)?;
        found.ok_or_else(|| err!(NotFound, "backup \"{}\" has no file \"{path}\"", stored.id))
    })?;
    Ok((stored.id, shown.to_vec()))
}

/// The sides of a comparison.
#[derive(Debug, Clone, Default)]
pub struct Sides {
    /// The earlier backup; else the newest, or the one before it.
    pub from: Option<BackupId>,
    /// The later one; else the newest.
    pub to: Option<BackupId>,
    /// This host in place of a later one.
    pub is_live: bool,
}

/// A file that differs.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    pub path: String,
    /// `added`, `removed` or `changed`.
    pub difference: &'static str,
    /// Changed lines with three around them, without secrets.
    pub lines: String,
}

/// A text for each entry: its content, or the target of a link; permissions come first.
type Texts = BTreeMap<String, Text>;

#[derive(Default, PartialEq, Eq)]
struct Text {
    mode: String,
    content: Vec<u8>,
    /// That of an original which nothing seals: its marks do not differ where its secrets do.
    original: Option<blake3::Hash>,
}

/// One of the two that are compared.
struct Side {
    texts: Texts,
    /// The secrets pair of its marks.
    pair: Option<String>,
    has_secrets: bool,
}

/// Compares two backups, or a backup and this host. A warning says when marks of the two cannot be compared.
///
/// # Errors
/// `NotFound`; `Key` without the file of the secrets pair when the host is compared; `Damaged`; what the store says.
pub fn diff(session: &Session, name: &str, sides: &Sides) -> Result<Vec<Difference>> {
    let later = match sides.is_live {
        true => None,
        false => Some(find(session, name, sides.to.as_ref())?),
    };
    let from = match (&sides.from, &later) {
        (None, Some(later)) => Some(before(later)?),
        (from, _) => from.clone(),
    };
    let earlier = find(session, name, from.as_ref())?;
    let old = earlier.read(session, |open| side(&open))?;
    let new = match later {
        Some(later) => later.read(session, |open| side(&open))?,
        None => live(session, name, &earlier)?,
    };
    if old.pair != new.pair && old.has_secrets && new.has_secrets {
        session.warn("the two sides do not have the same secrets pair, so every secret shows as changed, whether it was changed or not");
    }
    Ok(compare(&old.texts, &new.texts))
}

/// The backup before another one.
fn before(later: &Stored) -> Result<BackupId> {
    use crate::repo::catalog::{Catalog, Reading};
    use crate::repo::root::aux_root::AuxBackup;
    let catalog: Catalog<AuxBackup> =
        Reading::begin(later.repository.store(), &later.scope)?.backups()?;
    let end = |id: &BackupId| {
        let mut all = catalog.committed();
        let found = all.find(|(one, ..)| *one == id);
        found.map(|(id, subject, backup)| (backup.end(subject.stored), id.clone()))
    };
    let own = end(&later.id);
    let older = catalog
        .committed()
        .filter_map(|(id, ..)| end(id))
        .filter(|one| Some(one) < own.as_ref());
    let newest = older.max().map(|(_, id)| id);
    let id = &later.id;
    newest.ok_or_else(|| {
        err!(
            NotFound,
            "there is no backup before \"{id}\" to compare it with"
        )
        .hint("Compare it with this host: --live")
    })
}

fn side(open: &Open<'_>) -> Result<Side> {
    let member = open.member;
    Ok(Side {
        texts: texts(open)?,
        pair: member["secrets_pair"].as_str().map(str::to_owned),
        has_secrets: member["secret_count"].as_u64() != Some(0),
    })
}

fn texts(open: &Open<'_>) -> Result<Texts> {
    let mut texts = Texts::new();
    let mut reader = ContentReader::new(open.snapshot);
    let mut originals_of = ContentReader::new(open.snapshot);
    for item in open.snapshot.items() {
        let item = item?;
        let Metadata::Node(node) = &item.metadata else {
            continue;
        };
        if item.key.is_attachment() {
            continue;
        }
        let content = match &node.kind {
            NodeKind::File(_) => content_by(&mut reader, open, &item.key)?
                .map(|c| c.to_vec())
                .unwrap_or_default(),
            NodeKind::Symlink(target) => target.clone(),
            _ => continue,
        };
        let [_, unsealed] = originals(&item.path)?;
        let original = content_by(&mut originals_of, open, &unsealed)?;
        let text = Text {
            mode: format!("{:04o}", node.mode),
            content,
            original: original.map(|original| blake3::hash(&original)),
        };
        texts.insert(shown_path(&item.path), text);
    }
    Ok(texts)
}

/// This host's files, without their secrets.
fn live(session: &Session, name: &str, stored: &Stored) -> Result<Side> {
    let settings = session.settings()?;
    let set = configured(&settings, name)?;
    let is_encrypted = stored.repository.marker().key_set.is_some();
    let sealing = sealing(&stored.configured, is_encrypted, true)?;
    if let Sealing::Refused(hint) = &sealing {
        return Err(err!(
            Key,
            "without the file of the secrets pair nothing tells whether a secret has changed"
        )
        .hint(hint.clone()));
    }
    let collected = collect(&wanted(session, &settings, set)?, &session.host)?;
    let scope = stored.scope.prefix();
    let entries = collected.entries.iter().filter_map(|entry| {
        let content = match (&entry.node.kind, &entry.content) {
            (NodeKind::Symlink(target), _) => target.clone(),
            (_, Some(content)) => sealing.redacted(content, &entry.found, &scope),
            _ => return None,
        };
        let mode = format!("{:04o}", entry.node.mode);
        let original = match (&sealing, &entry.content) {
            (Sealing::Unsealed, Some(whole)) if !entry.found.is_empty() => {
                Some(blake3::hash(whole))
            }
            _ => None,
        };
        let text = Text {
            mode,
            content,
            original,
        };
        Some((shown_path(&entry.path), text))
    });
    Ok(Side {
        texts: entries.collect(),
        pair: sealing.pair().map(|id| id.to_string()),
        has_secrets: collected.entries.iter().any(|e| !e.found.is_empty()),
    })
}

/// Pure: the differences of two sets of files.
fn compare(old: &Texts, new: &Texts) -> Vec<Difference> {
    let nothing = Text::default();
    let mut paths: Vec<&String> = old.keys().chain(new.keys()).collect();
    paths.sort();
    paths.dedup();
    let differences = paths.into_iter().filter_map(|path| {
        let (was, is) = (old.get(path), new.get(path));
        let difference = match (was, is) {
            (Some(was), Some(is)) if was == is => return None,
            (None, _) => "added",
            (_, None) => "removed",
            _ => "changed",
        };
        Some(Difference {
            path: path.clone(),
            difference,
            lines: lines(was.unwrap_or(&nothing), is.unwrap_or(&nothing)),
        })
    });
    differences.collect()
}

fn lines(was: &Text, is: &Text) -> String {
    let mut lines = String::new();
    if was.mode != is.mode {
        lines.push_str(&format!("mode {} -> {}\n", was.mode, is.mode));
    }
    if was.content == is.content && was.original != is.original {
        lines.push_str("a secret differs, which no mark shows\n");
    }
    let old = String::from_utf8_lossy(&was.content);
    let new = String::from_utf8_lossy(&is.content);
    let diff = similar::TextDiff::from_lines(old.as_ref(), new.as_ref());
    let mut unified = diff.unified_diff();
    unified.context_radius(3).missing_newline_hint(false);
    lines + &unified.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_lines() {
        let text = |mode: &str, content: &str| Text {
            mode: mode.into(),
            content: content.into(),
            original: None,
        };
        let old = Texts::from([
            ("/a".into(), text("0644", "x\ny\n")),
            ("/gone".into(), text("0600", "z\n")),
            ("/same".into(), text("0600", "z\n")),
        ]);
        let new = Texts::from([
            ("/a".into(), text("0600", "x\nz\n")),
            ("/same".into(), text("0600", "z\n")),
        ]);
        let found = compare(&old, &new);
        let shown: Vec<_> = found
            .iter()
            .map(|d| (d.path.as_str(), d.difference))
            .collect();
        assert_eq!(shown, [("/a", "changed"), ("/gone", "removed")]);
        assert!(
            found[0].lines.contains("mode 0644 -> 0600") && found[0].lines.contains("\n-y\n+z\n"),
            "{}",
            found[0].lines
        );
    }
}
