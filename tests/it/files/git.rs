//! Git repositories as a source, with the real Git.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{World, id, path_text};
use crate::common::Program;

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

    /// `pitr files backup`.
    fn taking(&self) -> Program {
        self.world.pitr(&["files", "backup", "up", "--json"])
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

    /// The mirror, of which there is one for each URL.
    fn mirror(&self) -> PathBuf {
        let mirrors = self.mirrors();
        assert_eq!(mirrors.len(), 1, "{mirrors:?}");
        mirrors[0].clone()
    }

    fn mirrors(&self) -> Vec<PathBuf> {
        let folders = fs::read_dir(self.world.sandbox.join("cache/pitr/git/up")).unwrap();
        let mirrors = folders.map(|f| f.unwrap().path().join("mirror.git"));
        mirrors.filter(|path| path.exists()).collect()
    }

    fn configure(&self, from: &str, to: &str) {
        crate::common::edit(&self.world.config, from, to);
    }

    /// Rewrites the main branch; returns the commit that it lost.
    fn rewrite(&self) -> String {
        let lost = git(&self.work, &["rev-parse", "HEAD"]);
        git(
            &self.work,
            &["commit", "--quiet", "--amend", "-m", &format!("not {lost}")],
        );
        lost
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
    let first = origin.taking().succeed().json();
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
    let second = origin.taking().succeed().json();
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
    origin.taking().succeed();
    git(&origin.work, &["reset", "--quiet", "--hard", "HEAD~1"]);
    origin.commit("another");
    git(&origin.work, &["branch", "--quiet", "-D", "side", "merged"]);
    git(&origin.work, &["reflog", "expire", "--expire=now", "--all"]);
    git(&origin.work, &["gc", "--quiet", "--prune=now"]);
    // The one of HEAD is a warning. The merged one held a commit that only it and the old main had.
    let run = origin
        .taking()
        .exits(6)
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
    let third = origin.taking().succeed().json();
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
    origin.taking().succeed();
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
    let next = origin.taking().exits(6).json();
    assert_eq!(next["source"]["kept"][0]["object"], lost, "{next}");
    assert!(!origin.mirror().with_file_name("refs-before").exists());
}

#[test]
fn u21_a_damaged_mirror_is_found_before_the_root_is_written() {
    let origin = Origin::new("");
    origin.taking().succeed();
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
    let run = origin.taking().run();
    run.expect_code(1).expect_stdout("check the mirror");
    let info = origin.world.pitr(&["info", "--json"]).run().json();
    let backups = info["scopes"][0]["backups"].as_array().unwrap().len();
    assert_eq!(backups, 1, "{info}");
}

#[test]
fn u22_an_origin_that_is_gone_or_locked_leaves_no_backup() {
    let origin = Origin::new("");
    origin.taking().succeed();
    let cache = origin.world.sandbox.join("cache/pitr/git/up/lock");
    let lock = fs::File::open(&cache).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    origin
        .taking()
        .exits(7)
        .expect_stdout("another run of this name is under way");
    drop(lock);
    fs::remove_dir_all(&origin.work).unwrap();
    origin.taking().exits(1).expect_stdout("\\\"git\\\" failed");
    // The refs of the mirror are not those of an origin that is gone.
    assert!(refs(&origin.mirror()).contains("refs/heads/main"));
}

#[test]
fn a_bundle_is_proven_by_a_clone() {
    let origin = Origin::new("bundle = true\n");
    let taken = origin.taking().succeed().json();
    assert_eq!(taken["file_count"], 1, "{taken}");
    let back = origin.world.restored(id(&taken), "back");
    let clone = origin.clone(&back.join("up.bundle"));
    assert_eq!(refs(&clone), refs(&origin.work));
    let second = origin.taking().succeed().json();
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
        let run = origin.taking().exits(code);
        if code == 1 {
            run.expect_stdout("has no commit");
        }
    }
}

#[test]
fn u31_a_shallow_origin_is_an_error_and_no_empty_backup() {
    let origin = Origin::new("");
    origin.commit("two");
    let shallow = origin.world.sandbox.join("shallow");
    let (from, to) = (
        format!("file://{}", path_text(&origin.work)),
        path_text(&shallow),
    );
    let folder = origin.world.sandbox.path();
    git(folder, &["clone", "--quiet", "--depth=1", &from, &to]);
    origin.configure(&path_text(&origin.work), &to);
    let run = origin.taking().exits(1);
    run.expect_stdout("the origin is shallow")
        .expect_stdout("refs/heads/main")
        .expect_stdout("--unshallow");
    git(&shallow, &["fetch", "--quiet", "--unshallow"]);
    origin.taking().succeed();
}

#[test]
fn u32_another_url_has_another_mirror() {
    let origin = Origin::new("identity = \"same\"\n");
    origin.commit("first repository");
    origin.taking().succeed();
    let other = origin.world.sandbox.dir("other");
    git(&other, &["init", "--quiet"]);
    git(
        &other,
        &["commit", "--quiet", "--allow-empty", "-m", "other"],
    );
    let old = path_text(&origin.work);
    origin.configure(&format!("git:{old}"), &format!("git:{}", path_text(&other)));
    let taken = origin.taking().succeed().json();
    assert!(kept(&taken).is_empty(), "{taken}");
    let back = origin.world.restored(id(&taken), "back");
    assert_eq!(refs(&back), refs(&other));
    assert_eq!(origin.mirrors().len(), 2);
}

#[test]
fn u33_a_default_branch_that_goes_and_an_origin_that_empties_are_warnings() {
    let origin = Origin::new("");
    origin.commit("main alone");
    origin.taking().succeed();
    git(&origin.work, &["checkout", "--quiet", "side"]);
    git(&origin.work, &["branch", "--quiet", "-D", "main"]);
    let run = origin.taking().exits(6);
    run.expect_stderr("\"refs/heads/main\" is gone at the origin");
    origin.commit("side alone");
    origin.taking().succeed();
    git(&origin.work, &["tag", "-d", "v1"]);
    git(&origin.work, &["update-ref", "-d", "refs/heads/side"]);
    let run = origin.taking().exits(6);
    run.expect_stderr("the origin has no branch or tag any more");
}

#[test]
fn u34_what_was_kept_is_reported_by_the_first_run_that_stores_it() {
    let origin = Origin::new("identity = \"first\"\n");
    origin.commit("two");
    origin.taking().succeed();
    let lost = [origin.rewrite()];
    // The mirror is up to date, and then the name is refused.
    origin.configure("\"first\"", "\"second\"");
    origin.taking().exits(8);
    let lost = [lost[0].clone(), origin.rewrite()];
    origin.taking().exits(8);
    origin.configure("\"second\"", "\"first\"");
    let taken = origin.taking().exits(6).json();
    let kept = taken["source"]["kept"].as_array().unwrap();
    let objects: Vec<_> = kept.iter().map(|k| k["object"].as_str().unwrap()).collect();
    assert_eq!(objects, lost, "{taken}");
    let back = origin.world.restored(id(&taken), "back");
    for commit in &lost {
        git(&back, &["cat-file", "-e", commit]);
    }
    let next = origin.taking().succeed().json();
    assert_eq!(next["source"]["kept"].as_array().unwrap().len(), 0);
}

#[test]
fn a_head_that_leads_to_no_branch_comes_back() {
    let origin = Origin::new("");
    git(&origin.work, &["checkout", "--quiet", "--detach"]);
    let head = origin.commit("detached");
    let first = origin.taking().succeed().json();
    let back = origin.world.restored(id(&first), "back");
    assert_eq!(git(&back, &["rev-parse", "HEAD"]), head);
    assert_eq!(git(&back, &["show", "HEAD:file"]), "detached");
    origin.rewrite();
    origin.taking().exits(6);
    git(&origin.work, &["checkout", "--quiet", "main"]);
    let last = origin.taking().exits(6).json();
    assert_eq!(last["source"]["head"], "refs/heads/main", "{last}");
    let again = origin.taking().succeed().json();
    assert_eq!(again["source"]["ref_count"], 3, "{again}");
}

#[test]
fn objects_that_only_a_strict_check_refuses_are_stored_with_a_note() {
    let origin = Origin::new("");
    let empty = git(&origin.work, &["hash-object", "-t", "blob", "-w", "file"]);
    // A mode that an old Git wrote.
    let tree = origin.world.sandbox.join("raw-tree");
    let mut raw = b"0100644 file\0".to_vec();
    raw.extend(
        (0..40)
            .step_by(2)
            .map(|i| u8::from_str_radix(&empty[i..i + 2], 16).unwrap()),
    );
    fs::write(&tree, raw).unwrap();
    let tree = git(
        &origin.work,
        &[
            "hash-object",
            "--literally",
            "-t",
            "tree",
            "-w",
            &path_text(&tree),
        ],
    );
    let commit = git(&origin.work, &["commit-tree", "-m", "old", &tree]);
    git(&origin.work, &["branch", "old", &commit]);
    let run = origin.taking().succeed();
    run.expect_stderr("git fsck --strict");
}

#[test]
fn trials_of_a_merge_are_left_out() {
    let origin = Origin::new("");
    for name in ["pull/1/head", "pull/1/merge", "merge-requests/1/merge"] {
        git(
            &origin.work,
            &["update-ref", &format!("refs/{name}"), "HEAD"],
        );
    }
    let taken = origin.taking().succeed().json();
    assert_eq!(taken["source"]["ref_count"], 4, "{taken}");
    let mirrored = refs(&origin.mirror());
    assert!(
        mirrored.contains("pull/1/head") && !mirrored.contains("/merge"),
        "{mirrored}"
    );
}

#[test]
fn a_repository_of_sha256_is_stored() {
    let world = World::new("");
    let work = world.source();
    git(&work, &["init", "--quiet", "--object-format=sha256"]);
    let world = world.with_source(&format!("git:{}", path_text(&work)), "bundle = true\n");
    let origin = Origin { world, work };
    let head = origin.commit("one");
    let taken = origin.taking().succeed().json();
    assert_eq!(taken["source"]["refs"]["refs/heads/main"], head, "{taken}");
}

#[test]
fn a_power_loss_between_the_list_and_its_refs_loses_none() {
    let origin = Origin::new("");
    let lost = origin.commit("lost");
    origin.taking().succeed();
    git(&origin.mirror(), &["update-ref", "refs/heads/lost", &lost]);
    // The list of a run that ended before the refs were there.
    let kept_as = "refs/pitr/20260101T000000Z/heads/lost";
    let list = serde_json::json!([{
        "name": "refs/heads/lost", "object": lost, "now": null, "kept_as": kept_as, "is_head": true,
    }]);
    let place = origin.mirror().with_file_name("kept.json");
    fs::write(&place, list.to_string()).unwrap();
    let before = refs(&origin.mirror());
    fs::write(origin.mirror().with_file_name("refs-before"), before).unwrap();
    origin.taking().exits(6);
    assert!(refs(&origin.mirror()).contains(kept_as));
    assert!(!place.exists());
    fs::write(&place, "[{").unwrap();
    origin.taking().exits(1).expect_stdout("is damaged");
}

/// An origin in which Git LFS keeps a large file.
fn with_large(more: &str) -> Origin {
    let origin = Origin::new(more);
    // git-lfs asks Git about the origin, which believes its owner alone.
    let own = rustix::process::geteuid().as_raw();
    std::os::unix::fs::chown(&origin.work, Some(own), None).unwrap();
    git(&origin.work, &["lfs", "install", "--local"]);
    fs::write(
        origin.work.join(".gitattributes"),
        "*.bin filter=lfs diff=lfs merge=lfs -text\n",
    )
    .unwrap();
    fs::write(origin.work.join("large.bin"), vec![7; 300_000]).unwrap();
    git(&origin.work, &["add", ".gitattributes", "large.bin"]);
    git(&origin.work, &["commit", "--quiet", "-m", "large"]);
    let url = format!("git:file://{}", path_text(&origin.work));
    let Origin { world, work } = origin;
    let world = world.with_source(&url, more);
    Origin { world, work }
}

#[test]
fn u76_large_files_of_git_lfs_are_in_the_backup_or_missed() {
    let origin = with_large("");
    let run = origin.taking().exits(6);
    let run = run.expect_stderr("1 large files that Git LFS keeps beside the repository");
    assert_eq!(run.json()["source"]["lfs_lacking_count"], 1, "{run}");
    let configure = |lfs: bool| {
        let text = fs::read_to_string(&origin.world.config).unwrap();
        let (text, _) = text
            .split_once("lfs = ")
            .map_or((text.as_str(), ""), |(t, r)| (t, r));
        let text = format!("{text}lfs = {lfs}\n");
        fs::write(&origin.world.config, text).unwrap();
    };
    configure(false);
    assert_eq!(
        origin.taking().succeed().json()["source"]["lfs_lacking_count"],
        1
    );
    configure(true);
    let run = origin.taking().succeed().json();
    assert_eq!(
        (
            &run["source"]["lfs_count"],
            &run["source"]["lfs_lacking_count"]
        ),
        (&1.into(), &0.into()),
        "{run}"
    );
    let back = origin.world.restored(id(&run), "back");
    let clone = origin.world.sandbox.join("with-large");
    let from = format!("file://{}", path_text(&back));
    git(
        origin.world.sandbox.path(),
        &["clone", "--quiet", &from, &path_text(&clone)],
    );
    git(&clone, &["lfs", "install", "--local"]);
    git(&clone, &["lfs", "pull"]);
    let found = fs::read(clone.join("large.bin")).unwrap();
    assert!(found == vec![7; 300_000], "{} bytes", found.len());

    // An object that the origin lost: nothing is stored that claims it.
    fs::write(origin.work.join("lost.bin"), vec![8; 200_000]).unwrap();
    git(&origin.work, &["add", "lost.bin"]);
    git(&origin.work, &["commit", "--quiet", "-m", "lost"]);
    fs::remove_dir_all(origin.work.join(".git/lfs/objects")).unwrap();
    let run = origin.taking().run();
    assert!(!run.is_success() && run.code() != 6, "{run}");
}

#[test]
fn large_files_of_the_past_are_in_the_backup_where_they_are_asked_for() {
    let origin = with_large("lfs = true\n");
    git(
        &origin.work,
        &["rm", "--quiet", ".gitattributes", "large.bin"],
    );
    git(&origin.work, &["commit", "--quiet", "-m", "plain again"]);
    let run = origin.taking().succeed().json();
    assert_eq!(run["source"]["lfs_count"], 1, "{run}");
    assert_eq!(run["source"]["lfs_lacking_count"], 0, "{run}");
}

#[test]
fn submodules_are_named() {
    let origin = Origin::new("");
    let other = origin.world.sandbox.dir("other");
    git(&other, &["init", "--quiet"]);
    fs::write(other.join("x"), "x").unwrap();
    git(&other, &["add", "x"]);
    git(&other, &["commit", "--quiet", "-m", "x"]);
    let from = path_text(&other);
    let add = [
        "-c",
        "protocol.file.allow=always",
        "submodule",
        "--quiet",
        "add",
        &from,
        "vendor/other",
    ];
    git(&origin.work, &add);
    git(&origin.work, &["commit", "--quiet", "-m", "vendor"]);
    let run = origin.taking().succeed();
    let run = run.expect_stderr("vendor/other");
    assert_eq!(
        run.json()["source"]["submodules"],
        serde_json::json!(["vendor/other"]),
        "{run}"
    );
}
