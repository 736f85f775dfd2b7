//! Copies between encrypted repositories of one key set: parts that both have are not read again.

use std::path::{Path, PathBuf};

use crate::common::{Run, paths_below};
use crate::sealed::{Sealed, with_second};

fn flip(path: &Path, at: impl Fn(usize) -> usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = at(bytes.len());
    bytes[at] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn s37_a_damaged_part_that_both_have_keeps_no_later_backup_from_the_other_side() {
    let (sealed, cluster) = Sealed::archived(17);
    cluster.sql("create table t as select g, md5(g::text) from generate_series(1, 3000) g");
    let keys = [("key_set", "writer"), ("key_file", "ops")];
    let keys = keys.map(|(name, key)| format!("{name} = \"{}\"", sealed.key(key)));
    sealed.configure(&cluster, "both", &keys.join("\n"));
    let backup = |kind: &str| {
        let run = sealed
            .on("both")
            .args(["backup", "--json", "--quiet", kind]);
        let json = run.succeed().json();
        assert!(kind.ends_with(json["kind"].as_str().unwrap()), "{json}");
        json["id"].as_str().unwrap().to_owned()
    };
    let second = with_second(&sealed, &cluster);
    let sync = |host: &str| -> Run {
        let sync = [
            "repo", "sync", "--json", "--from", "local", "--to", "second",
        ];
        sealed.on(host).args(sync).run()
    };
    let has = |id: &str| {
        let all = paths_below(&second);
        all.iter()
            .any(|p| p.ends_with(format!("backups/{id}/manifest")))
    };
    backup("--full");
    let is_pack = |p: &PathBuf| p.display().to_string().contains("/packs/");
    let packs: Vec<PathBuf> = paths_below(&sealed.repository)
        .into_iter()
        .filter(is_pack)
        .collect();
    assert!(!packs.is_empty());
    sync("second-writer").success();
    let later = || {
        cluster.sql("insert into t values (0, 'more')");
        cluster.archive_now();
        backup("--incremental")
    };
    let first = later();
    // The bytes of the packs are not looked at, with keys or without.
    packs
        .iter()
        .for_each(|pack| flip(pack, |length| length / 2));
    sync("second-janitor").success();
    assert!(has(&first));
    // The MAC of the foot there tells, where the one here is damaged.
    let next = later();
    packs
        .iter()
        .for_each(|pack| flip(pack, |length| length - 40));
    sync("second-janitor").expect_code(10);
    assert!(!has(&next));
    sync("second-writer").success();
    assert!(has(&next));
    let verify = ["verify", "--quiet", "--repository", "second"];
    sealed.on("second-reader").args(verify).succeed();
}
