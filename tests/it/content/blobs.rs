//! The kind of content of these tests: named blobs, which are the files of a backup.

use std::collections::BTreeMap;
use std::path::Path;

use pitr::err;
use pitr::error::{Error, Result};
use pitr::snapshot::filekey::FileKey;
use pitr::snapshot::kind::{Kind, Produced, Work};
use pitr::snapshot::node::{Moment, Node, NodeKind};
use pitr::snapshot::reader::Snapshot;
use serde_json::{Value, json};

/// No blob is larger.
const LIMIT_BYTES: usize = 64 << 20;

/// Blobs by name.
#[derive(Clone, Default)]
pub struct Blobs {
    pub owner: String,
    pub content: BTreeMap<String, Vec<u8>>,
    /// The source fails behind so many blobs.
    pub fails_after: Option<usize>,
}

impl Blobs {
    /// Some blobs of one owner, small ones and one of several frames; another `version` has other content.
    pub fn of(owner: &str, version: u8) -> Blobs {
        let small = (0..9).map(|n| {
            (
                format!("small/{n}"),
                vec![version ^ n; 100 * usize::from(n)],
            )
        });
        let noise = blake3::Hasher::new().update(&[version]).finalize_xof();
        let mut large = vec![0; 3 << 20];
        noise.clone().fill(&mut large);
        Blobs {
            owner: owner.to_owned(),
            content: small.chain([("large".to_owned(), large)]).collect(),
            fails_after: None,
        }
    }

    /// The same without a blob of several frames.
    pub fn small(owner: &str, version: u8) -> Blobs {
        let mut blobs = Blobs::of(owner, version);
        if let Some(large) = blobs.content.get_mut("large") {
            large.truncate(40_000);
        }
        blobs
    }

    /// Returns the files that were restored below a directory.
    pub fn below(directory: &Path) -> BTreeMap<String, Vec<u8>> {
        let names = crate::common::files_below(directory).into_iter();
        names
            .map(|name| {
                let bytes = std::fs::read(directory.join(&name)).unwrap();
                (name, bytes)
            })
            .collect()
    }
}

fn node(kind: NodeKind) -> Node {
    let mtime = Moment {
        seconds: 0,
        nanoseconds: 0,
    };
    Node::new(kind, 0o700, mtime)
}

impl Kind for Blobs {
    fn name(&self) -> &'static str {
        "test"
    }

    fn identity(&self) -> Option<String> {
        Some(self.owner.clone())
    }

    fn produce(&mut self, work: &mut Work<'_, '_>) -> Result<Produced> {
        let mut sink = work.writer.sink();
        let key = |name: &str| FileKey::from_path(name.as_bytes(), work.naming);
        for directory in ["", "small"] {
            sink.node(&key(directory)?, node(NodeKind::Directory))?;
        }
        for (number, (name, bytes)) in self.content.iter().enumerate() {
            (work.tick)()?;
            if self.fails_after == Some(number) {
                sink.finish()?;
                return Err(err!(Io, "the source is gone"));
            }
            sink.begin(key(name)?)?;
            sink.append(bytes)?;
            sink.end_node(node(NodeKind::File(0)))?;
        }
        sink.finish()?;
        Ok(Produced {
            member: json!({ "blobs": self.content.len() }),
            ..Produced::default()
        })
    }
}

impl Blobs {
    /// Writes the blobs of a backup below a directory.
    pub fn restore(snapshot: &Snapshot<'_>, member: &Value, to: &Path) -> Result<()> {
        let mut count = 0;
        for item in snapshot.items() {
            let item = item?;
            if item.metadata.file_length().is_none() {
                continue;
            }
            let name = String::from_utf8_lossy(&item.path).into_owned();
            let bytes = snapshot.read_file(&name, LIMIT_BYTES)?;
            let bytes = bytes.ok_or_else(|| err!(Damaged, "blob \"{name}\" is missing"))?;
            let path = to.join(&name);
            let failed = |e| Error::from_io(format!("write \"{}\"", path.display()), e);
            std::fs::create_dir_all(path.parent().unwrap_or(to)).map_err(failed)?;
            std::fs::write(&path, bytes).map_err(failed)?;
            count += 1;
        }
        match member["blobs"] == json!(count) {
            true => Ok(()),
            false => Err(err!(Damaged, "the backup has another number of blobs")),
        }
    }
}

/// Blobs of which one is recorded twice upon a prior: a fault of the kind.
pub struct Twice {
    pub blobs: Blobs,
    /// How often it was asked for its content.
    pub runs: usize,
}

impl Kind for Twice {
    fn name(&self) -> &'static str {
        self.blobs.name()
    }

    fn identity(&self) -> Option<String> {
        self.blobs.identity()
    }

    fn takes_changes(&self) -> bool {
        true
    }

    fn produce(&mut self, work: &mut Work<'_, '_>) -> Result<Produced> {
        self.runs += 1;
        if work.prior.is_some() {
            let mut sink = work.writer.sink();
            sink.begin(FileKey::from_path(b"large", work.naming)?)?;
            sink.end_node(node(NodeKind::File(0)))?;
            sink.finish()?;
        }
        self.blobs.produce(work)
    }
}
