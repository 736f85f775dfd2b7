//! The chains of the audit log: whoever changes one is found, and each host and configuration has its own.

use serde_json::Value;

use super::{World, bytes};
use crate::common::{copy_all, files_below, user};

#[test]
fn whoever_changes_the_log_is_found() {
    let world = World::new();
    for _ in 0..3 {
        world.backup().success();
    }
    let anchor = world.pitr("host", &["audit", "anchor"]).succeed();
    let anchor = anchor.stdout.trim().to_owned();
    world.backup().success();
    let chain = world.chain("one");
    assert_eq!(chain.len(), 11);
    assert_eq!(world.problems(&["--anchor", &anchor]), (0, vec![]));
    let kept: Vec<Vec<u8>> = chain.iter().map(|path| bytes(path)).collect();
    let restore = || {
        for (path, content) in chain.iter().zip(&kept) {
            std::fs::write(path, content).unwrap();
        }
    };
    let check = |expected: &str, name: &str| {
        let (code, problems) = world.problems(&[]);
        assert_eq!(code, 4, "{name}: {problems:?}");
        assert!(
            problems.iter().any(|p| p == expected),
            "{name}: {problems:?}"
        );
        restore();
    };
    std::fs::remove_file(&chain[0]).unwrap();
    check("beginning", "the first one");
    std::fs::remove_file(&chain[4]).unwrap();
    check("missing", "one in the middle");
    // The state of this host knows the last one; another host has the anchor.
    std::fs::remove_file(&chain[10]).unwrap();
    check("removed", "the last one");
    let mut flipped = kept[4].clone();
    flipped[40] ^= 1;
    std::fs::write(&chain[4], flipped).unwrap();
    check("damaged", "a flipped bit");
    std::fs::write(&chain[4], &kept[6]).unwrap();
    std::fs::write(&chain[6], &kept[4]).unwrap();
    check("damaged", "two that changed places");
    // Another story with the right checksum: the next record does not follow it.
    let text = String::from_utf8(kept[4].clone()).unwrap();
    let (body, _) = text.split_once(",\"checksum\"").unwrap();
    let body = body.replace("files backup", "files cat");
    let forged = format!(
        "{body},\"checksum\":\"blake3:{}\"}}\n",
        blake3::hash(body.as_bytes()).to_hex()
    );
    std::fs::write(&chain[4], forged).unwrap();
    check("order", "another story");
    // The whole chain under the name of another writer.
    let (from, to) = (chain[0].parent().unwrap(), world.log("one").join("other"));
    std::fs::rename(from, &to).unwrap();
    let (code, problems) = world.problems(&[]);
    assert_eq!(code, 4);
    assert!(problems.iter().any(|p| p == "damaged"), "{problems:?}");
    std::fs::rename(&to, from).unwrap();
    // Everything in both repositories, and the state of the host: the anchor that was kept outside tells.
    for repository in ["one", "two"] {
        std::fs::remove_dir_all(world.log(repository)).unwrap();
    }
    std::fs::remove_dir_all(world.sandbox.join("host/audit")).unwrap();
    assert_eq!(world.problems(&[]), (0, vec![]));
    let (code, problems) = world.problems(&["--anchor", &anchor]);
    assert_eq!(
        (code, problems),
        (4, vec!["removed".to_owned(), "removed".to_owned()])
    );
}

#[test]
fn commands_that_run_at_once_make_one_chain() {
    let world = World::new();
    world.backup().success();
    let cat = world.pitr("host", &["files", "cat", "up", "a"]);
    let running: Vec<_> = (0..6).map(|_| cat.spawn()).collect();
    running
        .into_iter()
        .for_each(|one| drop(one.wait().success()));
    let folders = std::fs::read_dir(world.log("one")).unwrap().count();
    assert_eq!((folders, world.chain("one").len()), (1, 16));
    assert_eq!(world.problems(&[]), (0, vec![]));
}

/// A host that backs up before and after its state was set back.
fn set_back() -> World {
    let world = World::new();
    world.backup().success();
    let (host, copied) = (world.sandbox.join("host"), world.sandbox.join("copied"));
    copy_all(&host, &copied);
    world.backup().success();
    // The machine was set back, or this is its clone: both hold the same state.
    std::fs::remove_dir_all(&host).unwrap();
    std::fs::rename(&copied, &host).unwrap();
    world.backup().success();
    world
}

#[test]
fn a_copied_state_becomes_a_chain_of_its_own() {
    let world = set_back();
    assert_eq!(std::fs::read_dir(world.log("one")).unwrap().count(), 2);
    let records = world.list();
    assert_eq!(records.len(), 8);
    let continues: Vec<_> = records
        .iter()
        .filter(|r| r["continues"].is_string())
        .collect();
    assert_eq!(continues.len(), 1);
    assert_eq!(
        (&continues[0]["seq"], &continues[0]["outcome"]),
        (&1.into(), &"begun".into())
    );
    assert_eq!(world.problems(&[]), (0, vec![]));
}

#[test]
fn v32_a_chain_that_is_cut_before_the_record_which_another_one_continues_is_found() {
    let world = set_back();
    let continued = world.list();
    let continued = continued.iter().find_map(|r| r["continues"].as_str());
    let (writer, last) = continued.unwrap().split_once('/').unwrap();
    assert!(last.parse::<u64>().unwrap() > 1, "{last}");
    assert_eq!(world.problems(&[]), (0, vec![]));
    // All but the first record of the former chain go everywhere, and no anchor knows them.
    for repository in ["one", "two"] {
        let folder = world.log(repository).join(writer);
        for name in files_below(&folder).iter().skip(1) {
            std::fs::remove_file(folder.join(name)).unwrap();
        }
    }
    let removed = || vec!["removed".to_owned(); 2];
    assert_eq!(world.problems(&[]), (4, removed()));
    // A repository that is left out may have the rest.
    let alone = world.problems(&["--repository", "two"]);
    assert_eq!(alone, (0, vec![]));
}

#[test]
fn configurations_of_one_state_directory_have_chains_of_their_own() {
    let world = World::new();
    let text = std::fs::read_to_string(world.sandbox.join("host.toml")).unwrap();
    let other = text
        .replace("/one\"", "/three\"")
        .replace("/two\"", "/four\"");
    let path = world.sandbox.file("other.toml", other);
    user::own(&path);
    world.pitr("other", &["init", "--quiet"]).succeed();
    for host in ["host", "other", "host", "other"] {
        let backup = world.pitr(host, &["files", "backup", "up", "--quiet"]);
        backup.succeed();
    }
    for (host, repository) in [("host", "one"), ("other", "three")] {
        world.pitr(host, &["audit", "verify"]).succeed();
        assert_eq!(world.chain(repository).len(), 6);
        assert_eq!(std::fs::read_dir(world.log(repository)).unwrap().count(), 1);
    }
}

#[test]
fn records_bear_a_mac_and_those_of_a_stranger_are_doubted() {
    let world = World::sealed();
    let backup = world.pitr("host", &["files", "backup", "up", "--quiet", "--full"]);
    backup.succeed();
    assert_eq!(world.problems(&[]), (0, vec![]));
    let chain = world.chain("one");
    let last = chain.last().unwrap();
    let text = String::from_utf8(bytes(last)).unwrap();
    assert!(text.contains(",\"mac\":\""), "{text}");
    // A stranger appends, as far as anybody can without the MAC key, and takes the next number of the host.
    let content = text.split_once(",\"mac\"").unwrap().0;
    let hash = blake3::hash(content.as_bytes()).to_hex().to_string();
    let seq = chain.len() as u64;
    let value: Value = serde_json::from_str(&text).unwrap();
    let forged = content
        .replace(&format!("{seq:012}"), &format!("{:012}", seq + 1))
        .replace(&format!("\"seq\":{seq}"), &format!("\"seq\":{}", seq + 1))
        .replace(value["prev"].as_str().unwrap(), &hash);
    let forged = format!(
        "{forged},\"checksum\":\"blake3:{}\"}}\n",
        blake3::hash(forged.as_bytes()).to_hex()
    );
    let place = last.with_file_name(format!("{:012}", seq + 1));
    std::fs::write(&place, forged).unwrap();
    user::own(&place);
    let (code, problems) = world.problems(&["--repository", "one"]);
    assert_eq!((code, problems), (6, vec!["doubted".to_owned()]));
    // The host leaves the chain, and loses none of its own records.
    backup.succeed();
    let records = world.list();
    let own: Vec<_> = records.iter().filter(|r| r["doubted"] == false).collect();
    assert_eq!(own.last().unwrap()["outcome"], "succeeded");
    assert!(own.iter().any(|r| r["continues"].is_string()));
    let anchored = world.pitr("host", &["audit", "anchor", "--json"]).succeed();
    assert_eq!(anchored.json()["repositories"].as_array().unwrap().len(), 2);
}
