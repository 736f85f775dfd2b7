//! Configuration files as a kind of content: readable for operators without their secrets, whole for the holders of a secrets pair.

pub mod collect;
pub mod paths;
pub mod trust;

use serde_json::json;
use zeroize::Zeroizing;

use crate::err;
use crate::error::Result;
use crate::repo::keyring::{Random, draw};
use crate::repo::root::aux_root::{ATTACHMENTS, SECRETS};
use crate::seal::{Drawn, KeySetId, MacKey, PublicHalf, envelope};
use crate::secrets::{Found, redact};
use crate::snapshot::filekey::{FileKey, Naming};
use crate::snapshot::kind::{Kind, Produced, Work};
use crate::snapshot::node::{Node, NodeKind};
use crate::tree::left_out::{Example, LeftOut, Part};
use collect::{Collected, Entry};

/// The name of the kind.
pub const NAME: &str = "config";
/// Attachments with originals in envelopes.
pub const SEALED: &str = "original/";
/// Attachments with originals as they are.
pub const UNSEALED: &str = "unsealed/";
/// Examples of entries that could not be read, as a root has them.
const EXAMPLES: usize = 100;

/// The part of a secrets pair that seals.
pub struct Pair {
    pub public: PublicHalf,
    /// The key of envelopes and tokens.
    pub mac: MacKey,
    /// Source of random bytes.
    pub random: Random,
}

/// The way in which originals with secrets are kept.
pub enum Sealing {
    /// Sealed to a pair.
    Pair(Box<Pair>),
    /// As they are: the operator allowed it.
    Unsealed,
    /// Not at all: a backup with a secret fails, with this as the next step.
    Refused(String),
}

impl Sealing {
    /// The mark that stands for a value in a set.
    fn mark(&self, value: &[u8], scope: &str) -> String {
        let class = match value.len() {
            0..=8 => "8",
            9..=16 => "16",
            17..=32 => "32",
            33..=64 => "64",
            _ => "more",
        };
        match self {
            Sealing::Pair(pair) => {
                format!(
                    "«sealed:{}:{class}»",
                    envelope::token(value, scope, &pair.mac)
                )
            }
            _ => format!("«secret:{class}»"),
        }
    }

    /// A content of the set with this scope, as operators see it.
    pub fn redacted(&self, content: &[u8], found: &[Found], scope: &str) -> Vec<u8> {
        redact(content, found, &mut |value| self.mark(value, scope))
    }

    /// The pair that it seals to.
    pub fn pair(&self) -> Option<KeySetId> {
        match self {
            Sealing::Pair(pair) => Some(pair.mac.id()),
            _ => None,
        }
    }
}

/// The name that an original is sealed under.
pub fn envelope_key(scope: &str, path: &[u8]) -> String {
    format!("{scope}/original/{}", blake3::hash(path).to_hex())
}

/// Files that were collected, on their way into a backup.
pub struct Configuration {
    /// `aux/config/<name>`.
    pub scope: String,
    /// The identity of the source.
    pub identity: String,
    /// The entries.
    pub collected: Collected,
    /// The way in which originals are kept.
    pub sealing: Sealing,
}

impl Configuration {
    /// Requires that files with secrets may be stored at all.
    ///
    /// # Errors
    /// `Refused`, with the first file that has one.
    pub fn check(&self) -> Result<()> {
        let Sealing::Refused(hint) = &self.sealing else {
            return Ok(());
        };
        match self.collected.entries.iter().find(|e| !e.found.is_empty()) {
            None => Ok(()),
            Some(entry) => Err(err!(
                Refused,
                "\"/{}\" holds a secret, and nothing is there to seal it to",
                entry.path.escape_ascii()
            )
            .hint(format!("Nothing was stored. {hint}"))),
        }
    }

    fn original(&self, entry: &Entry, content: &[u8]) -> Result<(String, Zeroizing<Vec<u8>>)> {
        match &self.sealing {
            Sealing::Pair(pair) => {
                let drawn = Drawn {
                    object_key: draw(pair.random)?,
                    ephemeral: draw(pair.random)?,
                };
                let key = envelope_key(&self.scope, &entry.path);
                let sealed = envelope::seal(content, &key, (&pair.public, &pair.mac), &drawn)?;
                Ok((SEALED.to_owned(), Zeroizing::new(sealed)))
            }
            Sealing::Unsealed => Ok((UNSEALED.to_owned(), Zeroizing::new(content.to_vec()))),
            Sealing::Refused(_) => Err(err!(Internal, "a secret was not refused")),
        }
    }
}

impl Kind for Configuration {
    fn name(&self) -> &'static str {
        NAME
    }

    fn identity(&self) -> Option<String> {
        Some(self.identity.clone())
    }

    fn features(&self) -> &'static [&'static str] {
        &[ATTACHMENTS, SECRETS]
    }

    fn produce(&mut self, work: &mut Work<'_, '_>) -> Result<Produced> {
        self.check()?;
        work.host.progress.phase("copy", None);
        let mut sink = work.writer.sink();
        let (mut sealed, mut secrets) = (0_u64, 0_u64);
        for entry in &self.collected.entries {
            (work.tick)()?;
            let key = FileKey::from_path(&entry.path, Naming::Tree)?;
            let Some(content) = &entry.content else {
                sink.node(&key, entry.node.clone())?;
                continue;
            };
            sink.begin(key)?;
            sink.append(&self.sealing.redacted(content, &entry.found, &self.scope))?;
            sink.end_node(entry.node.clone())?;
            if entry.found.is_empty() {
                continue;
            }
            let (prefix, original) = self.original(entry, content)?;
            let name = [prefix.as_bytes(), &entry.path].concat();
            sink.begin(FileKey::attachment(&name)?)?;
            sink.append(&original)?;
            sink.end_node(Node::new(NodeKind::File(0), 0o600, entry.node.mtime))?;
            sealed += 1;
            secrets += entry.found.len() as u64;
        }
        sink.finish()?;
        let left_out: &LeftOut = &self.collected.left_out;
        let examples = left_out.examples().iter().take(EXAMPLES);
        let unstable = self
            .collected
            .entries
            .iter()
            .filter(|e| e.node.unstable != 0);
        Ok(Produced {
            unstable_count: unstable.count() as u64,
            incomplete_count: left_out.count(Part::Entry) + left_out.count(Part::Content),
            base: Some("/".to_owned()),
            member: json!({
                "secrets_pair": self.sealing.pair().map(|id| id.to_string()),
                "sealed_count": sealed,
                "secret_count": secrets,
                "left_out": examples.map(Example::as_json).collect::<Vec<_>>(),
            }),
        })
    }
}
