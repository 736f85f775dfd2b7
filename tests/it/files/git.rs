//! Git repositories as a source, with the real Git.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{World, id, path_text};
use crate::common::Run;

/// Runs Git, and returns what it printed.
fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args([
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@t",
            "-c",
            "init.defaultBranch=main",
        ])
        .args(["-c", "commit.gpgsign=false", "-c", "safe.directory=*"])
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// An origin with two branches and a tag, and its world.
struct Origin {
    world: World,
    work: PathBuf,
}

impl Origin {
    fn new(more: &str) -> Origin {
        let world = World::new("");
        let work = world.source();
        git(&work, &["init", "--quiet"]);
        let url = format!("git:{}", path_text(&work));
        let world = world.with_source(&url, more);
        let origin = Origin { world, work };
        origin.commit("one");
        git(&origin.work, &["tag", "-a", "v1", "-m", "first"]);
        git(&origin.work, &["branch", "side"]);
        origin
    }

    fn commit(&self, text: &str) -> String {
        fs::write(self.work.join("file"), text).unwrap();
        git(&self.work, &["add", "file"]);
        git(&self.work, &["commit", "--quiet", "-m", text]);
        git(&self.work, &["rev-parse", "HEAD"])
    }

    fn run(&self) -> Run {
        self.world.pitr(&["files", "backup", "up", "--json"]).run()
    }

    fn clone(&self, from: &Path) -> PathBuf {
        let to = self.world.sandbox.join("clone");
        let (from, place) = (path_text(from), path_text(&to));
        git(
            self.world.sandbox.path(),
            &["clone", "--quiet", "--mirror", &from, &place],
        );
        to
    }

    fn mirror(&self) -> PathBuf {
        self.world.sandbox.join("cache/pitr/git/up/mirror.git")
    }
}

fn refs(directory: &Path) -> String {
    git(
        directory,
        &["for-each-ref", "--format=%(objectname) %(refname)"],
    )
}

fn kept(backup: &Value) -> Vec<(String, bool)> {
    let kept = backup["source"]["kept"].as_array().unwrap();
    kept.iter()
        .map(|k| (k["name"].as_str().unwrap().to_owned(), k["is_head"] == true))
        .collect()
}

#[test]
fn a_mirror_is_stored_and_a_clone_of_what_comes_back_is_the_origin() {
    let origin = Origin::new("");
    let head = git(&origin.work, &["rev-parse", "HEAD"]);
    let first = origin.run().success().json();
    let source = &first["source"];
    assert_eq!(source["refs"]["refs/heads/main"], head, "{source}");
    assert_eq!(source["head"], "refs/heads/main", "{source}");
    assert_eq!(source["ref_count"], 3, "{source}");
    let expected = refs(&origin.work);
    let back = origin.world.restored(id(&first), "back");
    let clone = origin.clone(&back);
    assert_eq!(refs(&clone), expected);
    git(&clone, &["fsck", "--full", "--strict"]);
    for folder in [back, clone] {
        fs::remove_dir_all(folder).unwrap();
    }
    origin.commit("two");
    let second = origin.run().success().json();
    assert_eq!(second["kind"], "incremental", "{second}");
    assert!(kept(&second).is_empty(), "{second}");
    let back = origin.world.restored(id(&second), "back");
    assert_eq!(git(&back, &["show", "HEAD:file"]), "two");
    // A secret in a URL never comes this far, and the mirror holds no URL.
    let settings = fs::read_to_string(back.join("config")).unwrap();
    assert!(!settings.contains("url"), "{settings}");
}

#[test]
fn u19_history_that_is_rewritten_or_deleted_is_kept_and_reported() {
    let origin = Origin::new("");
    let lost = origin.commit("lost");
    git(&origin.work, &["branch", "merged"]);
    git(&origin.work, &["checkout", "--quiet", "side"]);
    let gone = origin.commit("gone");
    git(&origin.work, &["checkout", "--quiet", "main"]);
    origin.run().success();
    git(&origin.work, &["reset", "--quiet", "--hard", "HEAD~1"]);
    origin.commit("another");
    git(&origin.work, &["branch", "--quiet", "-D", "side", "merged"]);
    git(&origin.work, &["reflog", "expire", "--expire=now", "--all"]);
    git(&origin.work, &["gc", "--quiet", "--prune=now"]);
    // The one of HEAD is a warning. The merged one held a commit that only it and the old main had.
    let run = origin
        .run()
        .expect_code(6)
        .expect_stderr("\"refs/heads/main\" was rewritten at the origin")
        .expect_stderr("\"refs/heads/side\" is gone at the origin");
    let second = run.json();
    let kept = kept(&second);
    assert!(
        kept.contains(&("refs/heads/main".to_owned(), true)),
        "{second}"
    );
    assert!(
        kept.contains(&("refs/heads/side".to_owned(), false)),
        "{second}"
    );
    let third = origin.run().success().json();
    assert_eq!(third["source"]["ref_count"], 2, "{third}");
    let back = origin.world.restored(id(&third), "back");
    for (commit, text) in [(&lost, "lost"), (&gone, "gone")] {
        assert_eq!(git(&back, &["show", &format!("{commit}:file")]), text);
    }
    git(&back, &["fsck", "--full", "--strict"]);
    assert!(refs(&back).contains("refs/pitr/"), "{}", refs(&back));
}

#[test]
fn u20_a_run_that_was_killed_after_the_fetch_loses_no_history() {
    let origin = Origin::new("");
    let lost = origin.commit("lost");
    origin.run().success();
    git(&origin.work, &["reset", "--quiet", "--hard", "HEAD~1"]);
    origin.commit("another");
    // As a run leaves it that ended between the fetch and the refs that keep.
    let before = refs(&origin.mirror());
    fs::write(origin.mirror().with_file_name("refs-before"), before).unwrap();
    let url = path_text(&origin.work);
    git(
        &origin.mirror(),
        &[
            "fetch",
            "--quiet",
            "--prune",
            "--force",
            &url,
            "+refs/*:refs/*",
        ],
    );
    let next = origin.run().expect_code(6).json();
    assert_eq!(next["source"]["kept"][0]["object"], lost, "{next}");
    assert!(!origin.mirror().with_file_name("refs-before").exists());
}

#[test]
fn u21_a_damaged_mirror_is_found_before_the_root_is_written() {
    let origin = Origin::new("");
    origin.run().success();
    let object = git(&origin.mirror(), &["rev-parse", "refs/heads/main:file"]);
    let place = origin
        .mirror()
        .join("objects")
        .join(&object[..2])
        .join(&object[2..]);
    // A fetch of few objects leaves them loose.
    fs::set_permissions(&place, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut bytes = fs::read(&place).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&place, bytes).unwrap();
    let run = origin.run();
    run.expect_code(1).expect_stdout("check the mirror");
    let info = origin.world.pitr(&["info", "--json"]).run().json();
    let backups = info["scopes"][0]["backups"].as_array().unwrap().len();
    assert_eq!(backups, 1, "{info}");
}

#[test]
fn u22_an_origin_that_is_gone_or_locked_leaves_no_backup() {
    let origin = Origin::new("");
    origin.run().success();
    let cache = origin.mirror().with_file_name("lock");
    let lock = fs::File::open(&cache).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    origin
        .run()
        .expect_code(7)
        .expect_stdout("another run of this name is under way");
    drop(lock);
    fs::remove_dir_all(&origin.work).unwrap();
    origin
        .run()
        .expect_code(1)
        .expect_stdout("\\\"git\\\" failed");
    // The refs of the mirror are not those of an origin that is gone.
    assert!(refs(&origin.mirror()).contains("refs/heads/main"));
}

#[test]
fn a_bundle_is_proven_by_a_clone() {
    let origin = Origin::new("bundle = true\n");
    let taken = origin.run().success().json();
    assert_eq!(taken["file_count"], 1, "{taken}");
    let back = origin.world.restored(id(&taken), "back");
    let clone = origin.clone(&back.join("up.bundle"));
    assert_eq!(refs(&clone), refs(&origin.work));
    let second = origin.run().success().json();
    assert_eq!(second["kind"], "full", "{second}");
}

#[test]
fn an_empty_origin_is_stored_but_not_as_a_bundle() {
    for (more, code) in [("", 0), ("bundle = true\n", 1)] {
        let world = World::new("");
        let work = world.source();
        git(&work, &["init", "--quiet"]);
        let world = world.with_source(&format!("git:{}", path_text(&work)), more);
        let origin = Origin { world, work };
        let run = origin.run().expect_code(code);
        if code == 1 {
            run.expect_stdout("has no commit");
        }
    }
}
