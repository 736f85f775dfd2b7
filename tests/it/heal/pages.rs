//! Packs that are put together again from pages of other backups of the same repository.

use std::path::{Path, PathBuf};

use super::copies::all;
use crate::common::{Program, Site, files_below};

/// Places in the pack that are damaged, one after another.
const STEPS: usize = 6;
/// The first frame begins there.
const HEAD_BYTES: usize = 72;

/// The packs of a repository, each with its bytes.
fn packs(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let keys = files_below(root).into_iter();
    let packs = keys.filter(|key| key.contains("/packs/") && !key.contains(".heal-"));
    packs
        .map(|key| {
            let path = root.join(key);
            let bytes = std::fs::read(&path).unwrap();
            (path, bytes)
        })
        .collect()
}

fn copy_of(pack: &Path) -> PathBuf {
    PathBuf::from(format!("{}.heal-1", pack.display()))
}

/// Two full backups, between which one of two tables was written anew.
fn with_two_fulls(codec: &str, method: &str) -> (Site, PathBuf, Vec<u8>) {
    let (site, cluster) = Site::with_cluster(18);
    cluster.sql("create table cold as select g, repeat(md5(g::text), 8) as b from generate_series(1, 20000) g");
    cluster.sql("create table hot as select g, repeat(md5(g::text), 8) as b from generate_series(1, 20000) g");
    cluster.sql("vacuum (freeze)");
    let backup = [
        "backup",
        "--full",
        "--compression",
        codec,
        "--method",
        method,
    ];
    site.pitr().args(backup).words("--quiet").succeed();
    let first = packs(site.repository());
    let [(path, bytes)]: [_; 1] = first.try_into().expect("one pack");
    cluster.sql("update hot set b = 'x'");
    cluster.sql("vacuum (freeze) hot");
    site.pitr().args(backup).words("--quiet").succeed();
    (site, path, bytes)
}

fn heal(site: &Site, more: &[&str]) -> Program {
    site.pitr().words("verify --json --heal").args(more)
}

fn v14_pages_of_another_backup_heal_a_pack(codec: &str, method: &str) {
    let (site, pack, pristine) = with_two_fulls(codec, method);
    let copy = copy_of(&pack);
    let (mut healed, mut lost) = (Vec::new(), 0);
    let frames_end = pristine.len() * 9 / 10;
    for step in 0..STEPS {
        let at = HEAD_BYTES + 200 + (frames_end - HEAD_BYTES - 200) * step / STEPS;
        let mut bytes = pristine.clone();
        bytes[at] ^= 0x20;
        std::fs::write(&pack, &bytes).unwrap();
        let run = heal(&site, &[]).run();
        let report = run.json();
        let written = std::fs::read(&copy).ok();
        match written {
            Some(written) => {
                assert_eq!(run.code(), 0, "{run}");
                assert!(written == pristine, "at {at}: another pack");
                let from = &all(&report, "healed")[0]["from"];
                assert_eq!(from, "other backups of this repository");
                healed.push(at);
                std::fs::remove_file(&copy).unwrap();
            }
            None => {
                assert_eq!(run.code(), 4, "{run}");
                let reasons = all(&report, "not_healed")[0]["reasons"].to_string();
                assert!(reasons.contains("other backup"), "{reasons}");
                lost += 1;
            }
        }
    }
    assert!(
        healed.len() >= 2 && lost >= 1,
        "{healed:?} healed, {lost} lost"
    );
    // The healed pack is what a restore reads.
    let mut bytes = pristine.clone();
    bytes[healed[0]] ^= 0x20;
    std::fs::write(&pack, &bytes).unwrap();
    let plain = site.pitr().arg("verify").exits(4);
    plain.expect_stdout("main --heal writes what other backups have");
    // A dry run tells the same, and writes nothing.
    let would = heal(&site, &["--dry-run"]).exits(4);
    assert_eq!(all(&would.json(), "healed").len(), 1, "{would}");
    assert!(!copy.exists());
    heal(&site, &[]).succeed();
    let id = pack.parent().unwrap().file_name().unwrap();
    let restore = site.pitr().words("restore --quiet --backup").arg(id);
    let to = site.sandbox().join("restored");
    restore.arg("--to").arg(to).succeed();
    std::fs::remove_file(&copy).unwrap();
    // A pack that lost its directory says nothing of its pages.
    let last = pristine.len() - 1;
    let mut bytes = pristine;
    bytes[last] ^= 1;
    std::fs::write(&pack, &bytes).unwrap();
    heal(&site, &[]).exits(4);
    assert!(!copy.exists());
}

#[test]
fn v14_pages_of_another_backup_heal_a_pack_with_lz4() {
    v14_pages_of_another_backup_heal_a_pack("lz4", "stream");
}

#[test]
fn v14_pages_of_another_backup_heal_a_pack_with_zstd() {
    v14_pages_of_another_backup_heal_a_pack("zstd", "local");
}
