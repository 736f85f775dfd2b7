//! Parts of a backup, sums of its files, and the rule that decides about a path.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::tree::describe;
use super::{World, path_text};

/// Directories of odd rights and times, hard links across them, links, holes and odd names.
fn grow(source: &Path) {
    for folder in ["a/deep/er", "b", "c"] {
        fs::create_dir_all(source.join(folder)).unwrap();
    }
    fs::write(source.join("a/deep/er/one.jpg"), vec![7; 300_000]).unwrap();
    fs::write(source.join("a/deep/two.txt"), "two").unwrap();
    fs::write(source.join("a/first"), vec![9; 100_000]).unwrap();
    for name in ["b/second.jpg", "b/third.jpg"] {
        fs::hard_link(source.join("a/first"), source.join(name)).unwrap();
    }
    symlink("nowhere", source.join("c/link.jpg")).unwrap();
    fs::write(source.join("c/empty"), "").unwrap();
    let holes = fs::File::create(source.join("c/holes.jpg")).unwrap();
    holes.set_len(5_000_000).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    let times = fs::FileTimes::new().set_modified(old);
    for folder in ["a/deep", "a", "b"] {
        let folder = source.join(folder);
        fs::set_permissions(&folder, PermissionsExt::from_mode(0o751)).unwrap();
        fs::File::open(folder).unwrap().set_times(times).unwrap();
    }
}

fn restore(world: &World, globs: &[&str]) -> PathBuf {
    let to = world.sandbox.join("part");
    let place = path_text(&to);
    let mut arguments = vec!["files", "restore", "up", "--privileged", "--to", &place];
    for glob in globs {
        arguments.extend(["--path", glob]);
    }
    world.pitr(&arguments).succeed();
    to
}

#[test]
fn a_part_comes_back_with_the_directories_above_it() {
    let world = World::new("");
    grow(&world.source());
    world.backup();
    let all = describe(&world.source());
    let cases: [(&[&str], &[&str]); 4] = [
        (&["*.txt"], &["", "a", "a/deep", "a/deep/two.txt"]),
        (
            &["/a/deep/"],
            &[
                "",
                "a",
                "a/deep",
                "a/deep/er",
                "a/deep/er/one.jpg",
                "a/deep/two.txt",
            ],
        ),
        (
            &["/c/*.jpg", "empty"],
            &["", "c", "c/empty", "c/holes.jpg", "c/link.jpg"],
        ),
        (
            &["/a/first", "b"],
            &["", "a", "a/first", "b", "b/second.jpg", "b/third.jpg"],
        ),
    ];
    for (globs, expected) in cases {
        let to = restore(&world, globs);
        let found = describe(&to);
        let paths: Vec<_> = found.keys().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(paths, expected, "{globs:?}");
        for (path, text) in &found {
            assert_eq!(text, &all[path], "{path:?} of {globs:?}");
        }
        fs::remove_dir_all(to).unwrap();
    }
}

/// The first path of a file has its content. A part may lack that path.
#[test]
fn hard_links_come_back_without_their_first_path() {
    let world = World::new("");
    grow(&world.source());
    world.backup();
    let to = restore(&world, &["/b/"]);
    let found = describe(&to);
    let paths: Vec<_> = found.keys().map(|path| path.to_str().unwrap()).collect();
    assert_eq!(paths, ["", "b", "b/second.jpg", "b/third.jpg"]);
    for name in ["b/second.jpg", "b/third.jpg"] {
        assert!(
            found[Path::new(name)].contains("as \"b/second.jpg\""),
            "{found:?}"
        );
        assert!(
            fs::read(to.join(name)).unwrap() == vec![9; 100_000],
            "{name}"
        );
    }
    assert_eq!(
        found[Path::new("b")],
        describe(&world.source())[Path::new("b")]
    );
}

#[test]
fn u23_a_glob_that_names_nothing_is_an_error_and_writes_nothing() {
    let world = World::new("");
    grow(&world.source());
    world.backup();
    let to = path_text(&world.sandbox.join("part"));
    let arguments = [
        "files", "restore", "up", "--to", &to, "--path", "*.txt", "--path", "*.gif",
    ];
    let run = world.pitr(&arguments).run();
    run.expect_code(2)
        .expect_stderr("the backup has nothing that \"*.gif\" names");
    assert!(!fs::exists(&to).unwrap());
}

#[test]
fn sha256sum_agrees_with_the_sums_of_a_backup() {
    let world = World::new("");
    let source = world.source();
    grow(&source);
    for name in [&b"new\nline"[..], b"back\\slash", b"caf\xe9", b"two  words"] {
        let name = std::ffi::OsString::from_vec(name.to_vec());
        fs::write(source.join(name), "odd").unwrap();
    }
    let backup = world.backup();
    let list = world.sandbox.join("list");
    let script = "\"$PITR\" --config \"$CONFIG\" files sums up > \"$LIST\"";
    let run = Command::new("sh")
        .args(["-c", script])
        .env("PITR", crate::common::path_of("pitr"))
        .env("CONFIG", &world.config)
        .env("LIST", &list)
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    let check = || {
        Command::new("sha256sum")
            .args(["--check", "--strict", "--quiet"])
            .arg(&list)
            .current_dir(&source)
            .output()
            .unwrap()
    };
    let checked = check();
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
    // Links of the same content are there, too.
    let lines = fs::read(&list).unwrap();
    let lines = lines.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    assert_eq!(lines.count(), 11);
    fs::write(source.join("a/deep/two.txt"), "2").unwrap();
    assert!(!check().status.success());
    let json = world
        .pitr(&["files", "sums", "up", "--json"])
        .succeed()
        .json();
    assert_eq!(json["backup"], backup["id"], "{json}");
    assert_eq!(json["sums"].as_array().unwrap().len(), 11, "{json}");
}

#[test]
fn the_rule_that_decides_is_shown() {
    let world = World::new(
        "exclude = [\"*.tmp\", \"!keep.tmp\", \"/cache/\"]\nexclude_if_present = [\".no\"]\n",
    );
    let source = world.source();
    fs::create_dir_all(source.join("skip")).unwrap();
    fs::write(source.join("skip/.no"), "").unwrap();
    let absolute = path_text(&source.join("skip/x"));
    let arguments = [
        "files",
        "check-excludes",
        "up",
        "a.tmp",
        "./keep.tmp",
        "cache/x",
        &absolute,
        "b",
    ];
    let run = world.pitr(&arguments).succeed();
    let lines: Vec<_> = run.stdout.lines().collect();
    assert_eq!(
        lines,
        [
            "left out a.tmp: exclude \"*.tmp\", does not exist",
            "taken    keep.tmp: exclude \"!keep.tmp\", does not exist",
            "left out cache/x: exclude \"/cache/\", at \"cache\", does not exist",
            "left out skip/x: exclude_if_present \".no\", at \"skip\", does not exist",
            "taken    b: no rule, does not exist",
        ]
    );
    let json = world
        .pitr(&["files", "check-excludes", "up", "a.tmp", "--json"])
        .run();
    let json = json.success().json();
    assert_eq!(json["paths"][0]["value"], "*.tmp", "{json}");
    let run = world
        .pitr(&["files", "check-excludes", "up", "/etc/passwd"])
        .run();
    run.expect_code(2).expect_stderr("does not lie below");
    let run = world.pitr(&["files", "check-excludes", "up", "../x"]).run();
    run.expect_code(2);
    let world = World::of("command", "command = [\"true\"]\n");
    let run = world.pitr(&["files", "check-excludes", "up", "x"]).run();
    run.expect_code(2).expect_stderr("is no directory");
}
