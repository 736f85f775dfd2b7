//! `pitr restore` from a repository that somebody else has written: Z01 to Z05.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use pitr::repo::id::{BackupId, PartName};
use pitr::repo::root::cluster::Tablespace;
use pitr::repo::root::{BackupRoot, LayerRef, Shard};
use pitr::snapshot::filekey::ClusterNaming;
use pitr::snapshot::frame::{FrameCodec, PackedFrame, Packer};
use pitr::snapshot::layer::{EntryKind, Layer, LayerWriter, Metadata};
use pitr::snapshot::pack::{PackReader, PackWriter};
use pitr::snapshot::piece::{self, Piece, Source};
use pitr::store::Store;

use crate::backup::{committed, layout, root, store};
use crate::common::{Program, Run, Site, majors, user};

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
        let [shard] = root.map.shards.as_slice() else {
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
            files: root.head.file_count,
            bytes: root.head.size_bytes,
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
        let value = piece::encode(0, &[piece], true);
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

    /// A tablespace that the cluster never had.
    fn tablespace(mut self, oid: u32, location: &Path) -> Self {
        let location = location.to_owned();
        self.root
            .content
            .tablespaces
            .push(Tablespace { oid, location });
        self
    }

    /// Writes the forged backup, and restores it.
    fn restore(self, id: &str, to: &Path) -> Run {
        self.restoring(id, to).run()
    }

    /// Writes the forged backup; returns the command that restores it.
    fn restoring(self, id: &str, to: &Path) -> Program {
        let layout = layout(self.site);
        let id: BackupId = id.parse().unwrap();
        let part = format!("{id}/000000").parse().unwrap();
        let mut writer = LayerWriter::new(Vec::new(), &part, layout.tag()).unwrap();
        let shard = &self.root.map.shards[0];
        for (pack, hash) in open(self.site, &shard.layers[0]).packs() {
            writer.add_pack(pack, hash);
        }
        // The writer sums the lengths that it gets.
        for n in 0..self.files {
            writer.count_file(if n == 0 { self.bytes } else { 0 });
        }
        for (key, (kind, value)) in &self.entries {
            writer.push(key, *kind, value).unwrap();
        }
        let (bytes, summary) = writer.finish().unwrap();
        let mut root = self.root.clone();
        root.head.file_count = self.files;
        root.head.size_bytes = self.bytes;
        root.content.server_manifest = None;
        forge(self.site, &id, root, Some((&bytes, summary.hash)));
        restore(self.site, to).args(["--backup", &id.to_string()])
    }
}

/// Commits a root under another id, with a layer of its own if there is one.
fn forge(site: &Site, id: &BackupId, root: BackupRoot, layer: Option<(&[u8], [u8; 32])>) {
    let (store, layout) = (store(site), layout(site));
    let mut forged = root;
    forged.head.id = id.clone();
    forged.head.nonce = format!("{:032x}", 7);
    if let Some((bytes, hash)) = layer {
        let part = format!("{id}/000000").parse().unwrap();
        pitr::store::put(&store, &layout.layer(&part), bytes).unwrap();
        forged.map.shards = vec![Shard {
            first_key: String::new(),
            layers: vec![LayerRef {
                key: part,
                offset: 0,
                length: bytes.len() as u64,
                hash: blake3::Hash::from_bytes(hash).to_hex().to_string(),
            }],
        }];
    }
    forged.commit(&store, &layout).unwrap();
    crate::common::user::own_all(site.repository());
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
        layout.tag(),
    )
    .unwrap()
}

fn restore(site: &Site, to: &Path) -> Program {
    site.pitr().restore_to(to).arg("--target-immediate")
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
fn z01_z02_z03_z05_a_forged_map_writes_nothing_outside_and_nothing_dangerous_inside() {
    let major = *majors()
        .iter()
        .find(|m| **m == 16)
        .or(majors().first())
        .unwrap();
    let (site, cluster) = Site::with_cluster(major);
    site.pitr().words("backup --quiet").succeed();
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
    // Z03: nothing but files with one name, directories, and (for tablespaces, of which there is none) links.
    use std::os::unix::fs::MetadataExt as _;
    let mut folders = vec![d.clone()];
    while let Some(folder) = folders.pop() {
        for path in beside(&folder) {
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let is_plain = meta.is_dir() || meta.is_file() && meta.nlink() == 1;
            assert!(is_plain, "{}", path.display());
            let mode = meta.permissions().mode() & 0o7777;
            assert_eq!(mode & !0o750, 0, "{}", path.display());
            if meta.is_dir() {
                folders.push(path);
            }
        }
    }
    let guard = std::fs::read_to_string(d.join("pg_wal/pitr.guard")).unwrap();
    assert!(guard.contains("restored copy"), "{guard}");
}

/// A GiB of zeros in some tens of kilobytes.
fn zstd_bomb() -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..1024 {
        std::io::Write::write_all(&mut encoder, &zeros).unwrap();
    }
    encoder.finish().unwrap()
}

/// The pack of a backup once more under another id, with one frame whose payload is a bomb, all checksums right.
fn pack_with_bomb(site: &Site, part: &PartName, as_part: &PartName) -> [u8; 32] {
    let (store, layout) = (store(site), layout(site));
    let root = root(site, &committed(site)[0]);
    let naming = ClusterNaming::from(&root.content);
    let object = store.open(&layout.pack(part)).unwrap().unwrap();
    let pack = PackReader::open(object, part, layout.tag(), &naming).unwrap();
    let mut packer = Packer::new(FrameCodec::Zstd(1)).unwrap();
    let mut writer = PackWriter::new(Vec::new(), as_part, layout.tag()).unwrap();
    let victim = pack.frame_count() / 2;
    for number in 0..pack.frame_count() {
        let frame = pack.frame(number).unwrap();
        let mut packed = PackedFrame::default();
        packer
            .pack(&frame.extents, &frame.raw, &mut packed)
            .unwrap();
        if number == victim {
            let bomb = zstd_bomb();
            let list = u16::from_le_bytes(packed.stored[14..16].try_into().unwrap());
            packed.stored.truncate(40 + usize::from(list));
            packed.stored[4..8].copy_from_slice(&(bomb.len() as u32).to_le_bytes());
            packed.stored[12] = 2;
            packed.stored.extend_from_slice(&bomb);
        }
        writer.append(&mut packed).unwrap();
    }
    let (bytes, summary) = writer.finish().unwrap();
    pitr::store::put(&store, &layout.pack(as_part), &bytes).unwrap();
    summary.hash
}

/// A layer whose first block, or whose index, unpacks to more than is declared, with the hash that binds it.
fn layer_with_bomb(site: &Site, part: &PartName, in_index: bool) -> (Vec<u8>, [u8; 32]) {
    use pitr::repo::varint;
    let writer = LayerWriter::new(Vec::new(), part, layout(site).tag()).unwrap();
    let (empty, _) = writer.finish().unwrap();
    let head = &empty[..72];
    // The stored length of a block is limited to 128 KiB, too.
    let bomb = zstd_bomb();
    assert!(bomb.len() <= 128 << 10);
    let (block, index, declared) = if in_index {
        (Vec::new(), bomb, 1 << 20)
    } else {
        let mut raw = Vec::new();
        varint::put(&mut raw, 1);
        varint::put(&mut raw, 0);
        varint::put_blob(&mut raw, &Forge::key(b"base", &[0]));
        for number in [72, bomb.len() as u64, 64 << 10] {
            varint::put(&mut raw, number);
        }
        raw.extend_from_slice(blake3::hash(&bomb).as_bytes());
        for number in [0, 0, 0] {
            varint::put(&mut raw, number);
        }
        let index = zstd::bulk::compress(&raw, 1).unwrap();
        (bomb, index, raw.len() as u32)
    };
    let index_at = (head.len() + block.len()) as u64;
    let mut end = index;
    let stored = end.len() as u32;
    let length = index_at + u64::from(stored) + 36;
    end.extend_from_slice(&index_at.to_le_bytes());
    end.extend_from_slice(&stored.to_le_bytes());
    end.extend_from_slice(&declared.to_le_bytes());
    end.extend_from_slice(&length.to_le_bytes());
    // Version, flags and magic as a whole layer has them.
    end.extend_from_slice(&empty[empty.len() - 12..]);
    let hash = blake3::hash(&[head, &end].concat());
    ([head, &block, &end].concat(), hash.into())
}

/// PostgreSQL's own manifest as a bomb: of more than the container declares, or of as much as it declares.
fn manifest_bomb(site: &Site, id: &BackupId, declared: u64) -> String {
    use pitr::repo::container::{Codec, ContainerWriter, Identity, Kind};
    let (store, layout) = (store(site), layout(site));
    let mut writer =
        ContainerWriter::new(Vec::new(), Kind::ServerManifest, Codec::Zstd(1)).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..1024 {
        writer.write(&zeros).unwrap();
    }
    let identity = Identity {
        hash: [7; 32],
        raw_bytes: declared,
        system_identifier: layout.system_identifier(),
        timeline: 1,
        major: root(site, &committed(site)[0]).content.major,
        segment_size_bytes: 1 << 20,
        name: "backup_manifest".into(),
        from_lsn: 0,
        to_lsn: 0,
    };
    let mut bomb = writer.finish(&identity, Vec::new()).unwrap();
    // The trailer says the same, under right checksums.
    let trailer = bomb.len() - 56;
    bomb[trailer + 24..trailer + 32].copy_from_slice(&declared.to_le_bytes());
    let own = crc32c::crc32c(&bomb[trailer..trailer + 44]);
    bomb[trailer + 44..trailer + 48].copy_from_slice(&own.to_le_bytes());
    let all = crc32c::crc32c(&bomb[..trailer + 48]);
    bomb[trailer + 48..trailer + 52].copy_from_slice(&all.to_le_bytes());
    pitr::store::put(&store, &layout.server_manifest(id), &bomb).unwrap();
    blake3::Hash::from_bytes(identity.hash).to_hex().to_string()
}

#[test]
fn z04_bombs_in_a_backup_end_where_their_declared_size_ends() {
    let (site, cluster) = Site::with_cluster(majors()[0]);
    site.pitr().words("backup --quiet").succeed();
    cluster.archive_now();
    drop(cluster);
    let real = root(&site, &committed(&site)[0]);
    let to = site.sandbox().dir("copies");
    let refused = |id: &BackupId, part: &str| {
        let target = to.join(id.to_string());
        let program = restore(&site, &target).args(["--backup", &id.to_string()]);
        let (run, usage) = program.measure();
        // 4 names the files that a frame held.
        let code = 1 + 3 * i32::from(part.starts_with("a frame"));
        let run = run.expect_code(code).expect_stderr(part);
        assert!(usage.peak_memory_bytes < 100 << 20, "{usage:?}: {run}");
        assert!(!target.join("global/pg_control").exists(), "{run}");
        let _ = std::fs::remove_dir_all(target);
    };
    let ids = |n: u32| -> BackupId { format!("2099030{n}T000000Z-full").parse().unwrap() };

    {
        let n = 1;
        let map = Forge::of(&site);
        let layer = open(&site, &map.root.map.shards[0].layers[0]);
        let mut writer = LayerWriter::new(
            Vec::new(),
            &format!("{}/000000", ids(n)).parse().unwrap(),
            layout(&site).tag(),
        )
        .unwrap();
        let mut root = map.root.clone();
        for (number, (part, hash)) in layer.packs().iter().enumerate() {
            if number > 0 {
                writer.add_pack(part, hash);
                continue;
            }
            let other = format!("{}/000000", ids(n)).parse().unwrap();
            let hash = pack_with_bomb(&site, part, &other);
            writer.add_pack(&other, &hash);
            for pack in root.map.packs.iter_mut().filter(|p| p.key == *part) {
                pack.key = other.clone();
                let object = store(&site).head(&layout(&site).pack(&other)).unwrap();
                pack.size_bytes = object.unwrap().size_bytes;
            }
        }
        for n in 0..map.files {
            writer.count_file(if n == 0 { map.bytes } else { 0 });
        }
        for (key, (kind, value)) in &map.entries {
            writer.push(key, *kind, value).unwrap();
        }
        let (bytes, summary) = writer.finish().unwrap();
        root.content.server_manifest = None;
        forge(&site, &ids(n), root, Some((&bytes, summary.hash)));
        refused(&ids(n), "a frame cannot be decompressed");
    }
    for (n, in_index) in [(3, false), (4, true)] {
        let part = format!("{}/000000", ids(n)).parse().unwrap();
        let (bytes, hash) = layer_with_bomb(&site, &part, in_index);
        let mut root = real.clone();
        root.head.file_count = 0;
        root.head.size_bytes = 0;
        root.map.packs = Vec::new();
        root.content.server_manifest = None;
        forge(&site, &ids(n), root, Some((&bytes, hash)));
        refused(&ids(n), "a part of a layer cannot be decompressed");
    }
    for (n, declared, part) in [
        (5, 1 << 20, "longer than"),
        (6, 1 << 30, "says that the manifest of"),
    ] {
        let hash = manifest_bomb(&site, &ids(n), declared);
        let mut root = real.clone();
        root.content.server_manifest = Some(hash);
        forge(&site, &ids(n), root, None);
        refused(&ids(n), part);
    }
    // A root of ten gigabytes.
    forge(&site, &ids(7), real.clone(), None);
    let path = site
        .cluster_folder()
        .join(format!("backups/{}/manifest", ids(7)));
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(10 << 30).unwrap();
    refused(&ids(7), "at most");
}

/// Files of a backup under the root of another: a server would start from the wrong checkpoint.
#[test]
fn the_backup_label_of_another_backup_is_refused() {
    let (site, cluster) = Site::with_cluster(*majors().last().unwrap());
    for _ in 0..2 {
        site.pitr().arg("backup").succeed();
        cluster.sql("create table if not exists t (a int); insert into t values (1)");
        cluster.archive_now();
    }
    // Ids of one second are in no order.
    let mut roots: Vec<_> = committed(&site).iter().map(|id| root(&site, id)).collect();
    roots.sort_by_key(|root| root.content.start_lsn);
    let newer = roots.pop().unwrap();
    let mut forged = roots.pop().unwrap();
    forged.content.start_lsn = newer.content.start_lsn;
    forged.content.checkpoint_lsn = newer.content.checkpoint_lsn;
    forged.content.stop_lsn = newer.content.stop_lsn;
    forged.content.consistent_lsn = newer.content.consistent_lsn;
    forged.content.server_manifest = None;
    let id: BackupId = "20300101T000000Z-full".parse().unwrap();
    forge(&site, &id, forged, None);
    let to = site.sandbox().join("copy");
    let run = restore(&site, &to)
        .args(["--backup", &id.to_string()])
        .run();
    assert_ne!(run.code(), 0, "{run}");
    run.expect_stderr("is another backup's");
    assert!(
        !to.join("global/pg_control").exists(),
        "nothing starts from it"
    );
}

#[test]
fn b2_a_forged_tablespace_writes_nothing_where_other_programs_read() {
    let (site, cluster) = Site::with_cluster(majors()[0]);
    site.pitr().words("backup --quiet").succeed();
    cluster.archive_now();
    drop(cluster);
    let real = root(&site, &committed(&site)[0]);
    let version = format!("PG_{}_{}", real.content.major, real.content.catalog_version);
    let folder = site.sandbox().dir("copies");
    let home = site.sandbox().dir("home");
    let to = folder.join("data");
    let mut number = 0;
    let mut forged = |location: &Path, path: &str| {
        number += 1;
        Forge::of(&site)
            .tablespace(99999, location)
            .file(&format!("pg_tblspc/99999/{path}"), 0o600)
            .restoring(&format!("209901{number:02}T000000Z-full"), &to)
    };
    let wrote_nothing = |run: &Run| {
        assert!(!to.exists(), "{run}");
        assert_eq!(beside(&home), Vec::<PathBuf>::new(), "{run}");
    };
    // A place that the operator did not name is shown and refused.
    let ssh = home.join("ssh");
    let run = forged(&ssh, &format!("{version}/5/PG_VERSION")).exits(8);
    wrote_nothing(&run);
    for part in [
        ssh.to_str().unwrap(),
        "99999",
        "--confirm",
        "--tablespace-mapping",
    ] {
        assert!(run.stderr.contains(part), "expected {part}\n{run}");
    }
    // If it is confirmed, or mapped, no name but PostgreSQL's is written.
    let mapping = format!("99999={}", home.join("other").display());
    for path in [
        "authorized_keys".to_owned(),
        "PG_1_1/5/7".to_owned(),
        format!("{version}x/5/7"),
        format!("{version}/.ssh/authorized_keys"),
        format!("{version}/5/.profile"),
    ] {
        for args in [&["--confirm"][..], &["--tablespace-mapping", &mapping]] {
            let run = forged(&ssh, &path).args(args).exits(1);
            wrote_nothing(&run.expect_stderr("no path of PostgreSQL in a tablespace"));
        }
    }
    // Nothing hidden, at no depth.
    for hidden in [".ssh", ".config/systemd"] {
        let run = forged(&home.join(hidden), &format!("{version}/5/PG_VERSION"));
        let run = run.arg("--confirm").exits(8);
        wrote_nothing(&run);
    }
    let run = forged(&ssh, &format!("{version}/5/PG_VERSION"))
        .arg("--confirm")
        .run();
    assert!(
        ssh.join(&version).join("5/PG_VERSION").exists(),
        "{}",
        run.success()
    );
}

#[test]
fn b2_root_makes_and_gives_away_nothing_that_a_backup_names() {
    crate::require_root!("b2_root_makes_and_gives_away_nothing_that_a_backup_names");
    use std::os::unix::fs::MetadataExt as _;
    let (site, cluster) = Site::with_cluster(majors()[0]);
    site.pitr().words("backup --quiet").succeed();
    cluster.archive_now();
    drop(cluster);
    let real = root(&site, &committed(&site)[0]);
    let version = format!("PG_{}_{}", real.content.major, real.content.catalog_version);
    let folder = site.sandbox().dir("copies");
    // As /etc/systemd/system/ssh.service.d would be.
    let roots = tempfile::Builder::new()
        .prefix("roots")
        .tempdir_in("/root")
        .unwrap();
    let absent = roots.path().join("ssh.service.d");
    let empty = roots.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let restoring = |n: u32, location: &Path| {
        Forge::of(&site)
            .tablespace(99999, location)
            .file(&format!("pg_tblspc/99999/{version}/5/PG_VERSION"), 0o600)
            .restoring(
                &format!("209902{n:02}T000000Z-full"),
                &folder.join(n.to_string()),
            )
            .privileged()
    };
    for (n, location) in [(1, &absent), (2, &empty)] {
        let run = restoring(n, location).arg("--confirm").exits(8);
        assert!(run.stderr.contains("install -d -o"), "{run}");
        assert!(
            !folder.join(n.to_string()).exists() && !absent.exists(),
            "{run}"
        );
        assert_eq!(std::fs::metadata(&empty).unwrap().uid(), 0, "{run}");
    }
    // Nor through a link that the server's user puts on the way of a place that is named.
    let planted = site.sandbox().join("planted");
    std::os::unix::fs::symlink(roots.path(), &planted).unwrap();
    let mapping = format!("99999={}", planted.join("new").display());
    let run = restoring(3, &absent)
        .args(["--tablespace-mapping", &mapping])
        .run();
    assert!(!roots.path().join("new").exists(), "{run}");
    run.expect_code(8);
    // Root makes a directory that root itself names.
    let mapping = format!("99999={}", absent.display());
    restoring(4, &empty)
        .args(["--tablespace-mapping", &mapping])
        .succeed();
    assert_eq!(std::fs::metadata(&absent).unwrap().uid(), user::ids().0);
}
