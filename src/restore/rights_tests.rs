//! The files that a restore by root gives away, and those that it refuses to touch. Users without rights cannot give
//! anything away: for them these tests have nothing to show, and say so.

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};

use super::target_dir::tests::wanted;
use super::target_dir::{Mapping, Wanted, look, place};
use super::tree::{Owner, Tree};
use crate::error::Code;
use crate::repo::root::cluster::Tablespace;

const SERVER: u32 = 65534;
const STRANGER: u32 = 12345;

/// Whether this is root. For others the test is reported as skipped, past the capture of the test runner; with `CI` set that is a failure.
fn is_root(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: needs root");
        assert!(std::env::var_os("CI").is_none(), "{test} needs root");
    }
    is_root
}

fn server() -> Option<Owner> {
    Some(Owner {
        uid: Uid::from_raw(SERVER),
        gid: Gid::from_raw(SERVER),
    })
}

/// A directory that belongs to this user id.
fn made(path: PathBuf, uid: u32) -> PathBuf {
    std::fs::create_dir_all(&path).unwrap();
    chown(&path, Some(uid), Some(uid)).unwrap();
    path
}

fn owner_of(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().uid()
}

#[test]
fn b3_a_directory_of_roots_is_given_away_only_empty_and_out_of_strangers_reach() {
    if !is_root("b3_a_directory_of_roots_is_given_away_only_empty_and_out_of_strangers_reach") {
        return;
    }
    let top = tempfile::Builder::new().prefix("pitr").tempdir().unwrap();
    let make = |above: &str, uid: u32, is_full: bool| {
        let above = made(top.path().join(above), uid);
        let data = made(above.join("data"), 0);
        if is_full {
            std::fs::write(data.join("x"), "").unwrap();
        }
        (Tree::make(&data, server(), false), owner_of(&data))
    };
    let (tree, uid) = make("own", SERVER, false);
    assert!(tree.is_ok());
    assert_eq!(uid, SERVER);
    for (above, uid, is_full) in [("full", SERVER, true), ("other", STRANGER, false)] {
        let (tree, uid) = make(above, uid, is_full);
        assert_eq!(tree.unwrap_err().code(), Code::Refused, "{above}");
        assert_eq!(uid, 0, "{above}");
    }
}

#[test]
fn a_file_of_another_user_is_not_written_through() {
    if !is_root("a_file_of_another_user_is_not_written_through") {
        return;
    }
    let top = tempfile::Builder::new().prefix("pitr").tempdir().unwrap();
    let data = made(top.path().join("data"), SERVER);
    let tree = Tree::open(&data, server()).unwrap();
    std::fs::write(data.join("x"), "").unwrap();
    for (uid, is_ours) in [(SERVER, true), (0, true), (STRANGER, false)] {
        chown(data.join("x"), Some(uid), Some(uid)).unwrap();
        let opened = tree.existing(b"x").map(drop).map_err(|e| e.code());
        let wanted = if is_ours { Ok(()) } else { Err(Code::Refused) };
        assert_eq!(opened, wanted, "{uid}");
    }
}

#[test]
fn b2_a_tablespace_lies_below_no_directory_of_a_stranger() {
    if !is_root("b2_a_tablespace_lies_below_no_directory_of_a_stranger") {
        return;
    }
    let top = tempfile::Builder::new().prefix("pitr").tempdir().unwrap();
    let data = made(made(top.path().join("own"), SERVER).join("data"), SERVER);
    let tablespaces = [Tablespace {
        oid: 16385,
        location: "/nowhere".into(),
    }];
    let go = |above: u32| {
        let above = made(top.path().join(above.to_string()), above);
        let mappings = [Mapping {
            old: "16385".into(),
            new: made(above.join("server"), SERVER).join("space"),
        }];
        let wanted = Wanted {
            mappings: &mappings,
            ..wanted(&data)
        };
        place(look(&wanted)?, &wanted, &tablespaces)
    };
    go(SERVER).unwrap();
    let error = go(STRANGER).unwrap_err();
    assert_eq!(error.code(), Code::Refused);
    assert!(error.to_string().contains("neither root nor"), "{error}");
}
