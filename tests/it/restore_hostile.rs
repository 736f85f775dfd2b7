//! `pitr restore` from a repository that somebody else has written: Z01 to Z05.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pitr::repo::backup::{BackupRoot, LayerRef, Shard};
use pitr::repo::layout::BackupId;
use pitr::snapshot::layer::{EntryKind, Layer, LayerWriter, Metadata};
use pitr::snapshot::piece::{self, Piece, Source};
use pitr::store::Store;

use crate::backup::{committed, layout, root, store};
use crate::common::{Program, Run, Site, majors};

type Entries = BTreeMap<Vec<u8>, (EntryKind, Vec<u8>)>;

/// The map of a backup, to be forged.
struct Forge<'a> {
    site: &'a Site,
    root: BackupRoot,
    entries: Entries,
    files: u64,
    bytes: u64,
}

impl<'a> Forge<'a> {
    fn of(site: &'a Site) -> Forge<'a> {
        let root = root(site, &committed(site)[0]);
        let [shard] = root.shards.as_slice() else {
            panic!("one shard");
        };
        let layer = open(site, &shard.layers[0]);
        let mut entries = Entries::new();
        for number in 0..layer.block_count() {
            for entry in layer.block(number).unwrap() {
                entries.insert(entry.key.into(), (entry.kind, entry.value.into()));
            }
        }
        Forge {
            site,
            files: root.file_count,
            bytes: root.size_bytes,
            root,
            entries,
        }
    }

    /// Key of an entry of a path, whatever the path is.
    fn key(path: &[u8], part: &[u8]) -> Vec<u8> {
        [&[2], path, &[0], part].concat()
    }

    fn metadata(mut self, path: &str, metadata: &Metadata) -> Self {
        if let Metadata::File { length, .. } = metadata {
            self.files += 1;
            self.bytes += length;
        }
        self.entries
            .insert(Self::key(path.as_bytes(), &[0]), metadata.encode());
        self
    }

    fn file(self, path: &str, mode: u32) -> Self {
        let metadata = Metadata::File {
            mode,
            mtime: 0,
            length: 0,
        };
        self.metadata(path, &metadata)
    }

    fn link(self, path: &str, target: &str) -> Self {
        let target = target.as_bytes().to_vec();
        self.metadata(path, &Metadata::Symlink { target })
    }

    /// A file of zeros, which costs the repository nothing.
    fn zeros(mut self, path: &str, length: u64) -> Self {
        let piece = Piece {
            position: 0,
            length,
            source: Source::Zeros,
        };
        let part = [&[2][..], &[0; 8]].concat();
        let value = piece::encode(0, &[piece]);
        self.entries.insert(
            Self::key(path.as_bytes(), &part),
            (EntryKind::Extents, value),
        );
        let metadata = Metadata::File {
            mode: 0o600,
            mtime: 0,
            length,
        };
        self.metadata(path, &metadata)
    }

    /// Writes the forged backup, and restores it.
    fn restore(self, id: &str, to: &Path) -> Run {
        let layout = layout(self.site);
        let store = store(self.site);
        let id: BackupId = id.parse().unwrap();
        let part = format!("{id}/000000").parse().unwrap();
        let mut writer = LayerWriter::new(Vec::new(), &part, layout.system_identifier()).unwrap();
        let shard = &self.root.shards[0];
        for (pack, hash) in open(self.site, &shard.layers[0]).packs() {
            writer.add_pack(pack, hash);
        }
        // The writer sums what it is told.
        for n in 0..self.files {
            writer.count_file(if n == 0 { self.bytes } else { 0 });
        }
        for (key, (kind, value)) in &self.entries {
            writer.push(key, *kind, value).unwrap();
        }
        let (bytes, summary) = writer.finish().unwrap();
        pitr::store::put(&store, &layout.layer(&part), &bytes).unwrap();
        let forged = BackupRoot {
            id: id.clone(),
            nonce: format!("{:032x}", 7),
            file_count: self.files,
            size_bytes: self.bytes,
            server_manifest: None,
            shards: vec![Shard {
                first_key: String::new(),
                layers: vec![LayerRef {
                    key: part,
                    offset: 0,
                    length: summary.length,
                    hash: blake3::Hash::from_bytes(summary.hash).to_hex().to_string(),
                }],
            }],
            ..self.root.clone()
        };
        forged.commit(&store, &layout).unwrap();
        crate::common::user::own_all(self.site.repository());
        restore(self.site, to)
            .args(["--backup", &id.to_string()])
            .run()
    }
}

fn open(site: &Site, reference: &LayerRef) -> Layer {
    let layout = layout(site);
    let object = store(site)
        .open(&layout.layer(&reference.key))
        .unwrap()
        .unwrap();
    let hash = blake3::Hash::from_hex(&reference.hash).unwrap();
    Layer::open(
        object,
        (reference.offset, reference.length),
        hash.as_bytes(),
        &reference.key,
        layout.system_identifier(),
    )
    .unwrap()
}

fn restore(site: &Site, to: &Path) -> Program {
    site.pitr()
        .args(["restore", "--target-immediate", "--to"])
        .arg(to)
}

/// Names beside the place of the restore: nothing may appear there.
fn beside(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    found.sort();
    found
}

#[test]
fn z01_to_z05_a_forged_map_writes_nothing_outside_and_nothing_dangerous_inside() {
    let major = *majors()
        .iter()
        .find(|m| **m == 16)
        .or(majors().first())
        .unwrap();
    let (site, cluster) = Site::with_cluster(major);
    site.pitr().args(["backup", "--quiet"]).run().success();
    cluster.archive_now();
    let folder = site.sandbox().dir("copies");
    let outside = site.sandbox().dir("outside");
    let to = |name: &str| folder.join(name);
    let never_began = |run: Run, name: &str, code: i32| {
        let run = run.expect_code(code);
        assert!(!to(name).exists(), "{run}");
        assert_eq!(beside(&folder), Vec::<PathBuf>::new());
    };

    // Z01: names that lead out, and bytes that no name has.
    let names = [
        "../evil",
        "/tmp/evil",
        "base/../../evil",
        "a//b",
        "./a",
        "base/5/..",
    ];
    for (n, path) in names.iter().enumerate() {
        let run = Forge::of(&site)
            .file(path, 0o600)
            .restore(&format!("2099010{n}T000000Z-full"), &to("a"));
        never_began(run, "a", 1);
    }
    // Z05: a petabyte of zeros.
    let run = Forge::of(&site)
        .zeros("base/big", 1 << 50)
        .restore("20990201T000000Z-full", &to("b"));
    never_began(run.clone(), "b", 8);
    assert!(run.stderr.contains("bytes are needed"), "{run}");

    // Names that no filesystem takes are found while it is filled: no server can start on what is there.
    let run = Forge::of(&site)
        .file(&format!("base/{}", "x".repeat(256)), 0o600)
        .restore("20990202T000000Z-full", &to("c"));
    run.expect_code(1)
        .expect_stderr("not a path below a data directory");
    assert!(!to("c").join("global/pg_control").exists());

    // Z02 and Z03: links are not made, nor written through; permissions are PostgreSQL's; signal files and our own do not come back.
    let secret = outside.join("secret");
    std::fs::write(&secret, "keep").unwrap();
    let run = Forge::of(&site)
        .link("pg_stat/link", outside.to_str().unwrap())
        .file("pg_stat/link/secret", 0o600)
        .link("planted", secret.to_str().unwrap())
        .file("setuid", 0o6777)
        .file("standby.signal", 0o600)
        .file("postmaster.pid", 0o600)
        .file("pg_wal/000000010000000000000001", 0o600)
        .file("pg_wal/pitr.guard", 0o600)
        .file("global/pg_control.pitr", 0o600)
        .restore("20990203T000000Z-full", &to("d"));
    run.success();
    assert_eq!(std::fs::read(&secret).unwrap(), b"keep");
    assert_eq!(beside(&outside), [secret]);
    let d = to("d");
    let meta = |name: &str| std::fs::symlink_metadata(d.join(name)).ok();
    assert!(meta("pg_stat/link").unwrap().is_dir());
    assert!(meta("planted").is_none());
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(meta("setuid").unwrap().permissions().mode() & 0o7777, 0o640);
    for gone in [
        "standby.signal",
        "postmaster.pid",
        "pg_wal/000000010000000000000001",
        "global/pg_control.pitr",
    ] {
        assert!(meta(gone).is_none(), "{gone}");
    }
    let guard = std::fs::read_to_string(d.join("pg_wal/pitr.guard")).unwrap();
    assert!(guard.contains("restored copy"), "{guard}");
}
