//! Mistakes that people type, through the real program: one clear message, the right status, nothing changed.
//!
//! The rows are those of the bad input table; the ids of the fault matrix are in the names of the tests.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::common::{Program, Run, Sandbox, pitr};

/// `pitr repo show` in a folder of its own, which is also its home.
fn repo_show(sandbox: &Sandbox) -> Program {
    pitr()
        .words("repo show")
        .dir(sandbox.path())
        .env("HOME", sandbox.path())
}

/// Returns the text on standard error, without the folder.
fn complaint(run: &Run, sandbox: &Sandbox) -> String {
    assert_eq!(run.stdout, "", "{run}");
    run.stderr
        .replace(&format!("{}/", sandbox.path().display()), "")
}

/// Everything that lies in a folder, to see that nothing was changed.
fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn g01_a_wrong_configuration_is_named_by_file_line_and_column() {
    let sandbox = Sandbox::new("badconf");
    for (text, expected) in [
        (
            "[clusters.main]\npgdata = '/d'\nretension = 7",
            "error config: pitr.toml:3:1: key \"retension\" does not exist in [clusters.main]\n  next:   Did you mean \"retention\"?\n",
        ),
        (
            "[clusters.main]\nfolder = '/d'",
            "error config: pitr.toml:2:1: key \"folder\" does not exist in [clusters.main]\n  next:   Keys are: pgdata, conninfo, max_backup_age, max_drill_age, drill_dir, clone_dir, full_every, max_replay, max_wal, backoff, standby_outage, promote_unreachable, cache_dir, spool_dir, timezone, prefetch_segments, receive, rpo, rto, copies, retention, service.\n",
        ),
        (
            "[clusters.main]\npgdta = '/d'",
            "error config: pitr.toml:2:1: key \"pgdta\" does not exist in [clusters.main]\n  next:   Did you mean \"pgdata\"?\n",
        ),
        (
            "[clusters.main]\npgdata = 17",
            "error config: pitr.toml:2:10: \"pgdata\" needs a string, found an integer\n",
        ),
        (
            "[repositories.r]\nurl = 'file:///a'\nurl = 'file:///b'",
            "error config: pitr.toml:3:1: duplicate key\n",
        ),
        (
            "[repositories.r]\nurl = 'backups'",
            "error config: pitr.toml:2:7: \"backups\" is not the URL of a repository\n  next:   Accepted are file:///absolute/path, s3://bucket/prefix, azure://account/container/prefix, gs://bucket/prefix, sftp://user@host/absolute/path and, on the command line, /absolute/path.\n",
        ),
        (
            "[repositories.r]\nurl = 's3://B'",
            "error config: pitr.toml:2:7: \"B\" is not the name of a bucket: 3 to 63 of a-z, 0-9, \".\" and \"-\" are needed\n",
        ),
        (
            "[repositories.a]\nurl = 'file:///r'\n[repositories.b]\nurl = 'file:///r/.'",
            "error config: pitr.toml:3:15: repositories \"a\" and \"b\" are the same place: \"file:///r\"\n",
        ),
        (
            "[clusters.main]\nmax_backup_age = '5 fortnights'",
            "error config: pitr.toml:2:18: \"5 fortnights\" is not a length of time: \"fortnights\" is not a unit\n  next:   Write a whole number and one of s m (or min) h d w, as in 26h or 7d.\n",
        ),
        (
            "[clusters.Main]",
            "error config: pitr.toml:1:11: \"Main\" is not a cluster name: [a-z0-9][a-z0-9._-]{0,62} is needed\n",
        ),
    ] {
        sandbox.file("pitr.toml", text);
        let run = repo_show(&sandbox).exits(3);
        assert_eq!(complaint(&run, &sandbox), expected);
        assert_eq!(listing(sandbox.path()), ["pitr.toml"]);
    }
}

#[test]
fn a_configuration_that_cannot_be_read_says_why() {
    let sandbox = Sandbox::new("badfile");
    sandbox.dir("folder");
    sandbox.file("latin1", b"# gr\xfc\xdfe");
    sandbox.file("huge", vec![b'\n'; (1 << 20) + 1]);
    sandbox.file("secret", "");
    std::fs::set_permissions(sandbox.join("secret"), PermissionsExt::from_mode(0o000)).unwrap();
    for (name, expected) in [
        (
            "none",
            "error config: configuration file \"none\" does not exist\n",
        ),
        (
            "folder",
            "error config: configuration file \"folder\" is a directory\n",
        ),
        (
            "latin1",
            "error config: configuration file \"latin1\" is not UTF-8 in line 1\n",
        ),
        (
            "huge",
            "error config: configuration file \"huge\" is larger than 1 MiB\n",
        ),
        (
            "secret",
            "error config: could not read configuration file \"secret\": Permission denied (os error 13)\n  next:   Correct the permissions of \"secret\": it belongs to the user who runs this.\n",
        ),
    ] {
        let run = repo_show(&sandbox).args(["--config", name]).exits(3);
        assert_eq!(complaint(&run, &sandbox), expected);
        let run = repo_show(&sandbox).env("PITR_CONFIG", name).exits(3);
        assert_eq!(
            complaint(&run, &sandbox),
            expected.replace("\" does not", "\", named by $PITR_CONFIG, does not")
        );
    }
    let run = repo_show(&sandbox).exits(3);
    assert_eq!(
        complaint(&run, &sandbox),
        "error config: no configuration file was found\n  next:   Looked for pitr.toml, .config/pitr/pitr.toml, /etc/pitr/pitr.toml. Name one with --config, write one with pitr init, or name the place with --repository.\n"
    );
}

#[test]
fn a_repository_by_path_needs_no_file_that_this_user_may_not_read() {
    let sandbox = Sandbox::new("closed");
    let path = sandbox.file("pitr.toml", "[repositories.r]\nurl = 'file:///r'\n");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).unwrap();
    let place = sandbox.join("none").display().to_string();
    let show = || repo_show(&sandbox).args(["--repository", &place]);
    show().exits(9).expect_stderr("none");
    for program in [
        repo_show(&sandbox),
        repo_show(&sandbox).words("--repository r"),
        show().words("--config pitr.toml"),
        show().env("PITR_CONFIG", "pitr.toml"),
    ] {
        program.exits(3).expect_stderr("Permission denied");
    }
}

#[test]
fn g02_a_password_that_everybody_may_read_is_refused() {
    let sandbox = Sandbox::new("secret");
    let path = sandbox.file(
        "pitr.toml",
        "[clusters.main]\nconninfo = 'host=h password=geheim'\n",
    );
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let run = repo_show(&sandbox).exits(3);
    assert_eq!(
        complaint(&run, &sandbox),
        "error config: pitr.toml:2:12: the file holds a password, and every user of this machine may read it\n  next:   Take the right away with chmod o-r, or leave the password to ~/.pgpass.\n"
    );
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    repo_show(&sandbox).succeed();
}

#[test]
fn a_repository_is_named_or_placed_correctly() {
    let sandbox = Sandbox::new("badrepo");
    sandbox.file(
        "pitr.toml",
        "[repositories.disk]\nurl = 'file:///nonexistent/r1'\n[repositories.attic]\nurl = 'file:///nonexistent/r2'\n",
    );
    for (repository, code, expected) in [
        (
            "3",
            2,
            "error usage: no repository \"3\" is configured\n  next:   Known: disk (file:///nonexistent/r1), attic (file:///nonexistent/r2)\n",
        ),
        (
            "s3:/bucket",
            3,
            "error config: \"s3:/bucket\" is not the URL of a repository\n  next:   Did you mean s3://bucket ?\n",
        ),
        (
            "s3://key:password@bucket",
            3,
            "error config: the URL of a repository holds a user or a password\n  next:   Secrets are not allowed in URLs.\n",
        ),
        (
            "ftp://host/x",
            3,
            "error config: \"ftp\" is not a kind of repository: \"ftp://host/x\"\n  next:   Accepted are file:///absolute/path, s3://bucket/prefix, azure://account/container/prefix, gs://bucket/prefix, sftp://user@host/absolute/path and, on the command line, /absolute/path.\n",
        ),
    ] {
        let run = repo_show(&sandbox)
            .args(["--repository", repository])
            .exits(code);
        assert_eq!(complaint(&run, &sandbox), expected);
    }
}

#[test]
fn a_repository_that_is_not_there_is_never_made() {
    let sandbox = Sandbox::new("norepo");
    let empty = sandbox.dir("mountpoint");
    for path in [sandbox.join("none"), empty.clone()] {
        let run = repo_show(&sandbox).arg("--repository").arg(&path).exits(9);
        assert!(run.stderr.starts_with("error no_repository: "), "{run}");
        let run = repo_show(&sandbox)
            .arg("--json")
            .arg("--repository")
            .arg(&path)
            .exits(9);
        let error = run.json();
        assert_eq!(error["code"], "no_repository");
        assert_eq!(error["exit"], 9);
        assert!(error["hint"].as_str().unwrap().contains("pitr init"));
        assert_eq!(run.stderr, "");
    }
    assert_eq!(listing(sandbox.path()), ["mountpoint"]);
    assert!(listing(&empty).is_empty());
}

#[test]
fn g07_help_and_version_need_neither_configuration_nor_environment() {
    for (arguments, part) in [
        (&["--help"][..], "Usage: pitr"),
        (&["-h"], "Usage: pitr"),
        (&["help"], "Usage: pitr"),
        (&["repo", "show", "--help"], "Usage: pitr repo show"),
        (&["--config", "/nonexistent", "--version"], "pitr 0."),
    ] {
        let run = pitr().args(arguments).succeed().expect_stdout(part);
        assert_eq!(run.stderr, "", "{run}");
        pitr()
            .args(arguments)
            .under(["env", "-i"])
            .succeed()
            .expect_stdout(part);
    }
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    for arguments in [
        &[][..],
        &["bakup"],
        &["repo"],
        &["repo", "show", "--colour"],
    ] {
        let run = pitr().args(arguments).exits(2);
        assert_eq!(run.stdout, "", "{run}");
        assert!(!run.stderr.contains('\u{1b}'), "no colour in a file: {run}");
    }
    pitr()
        .arg("bakup")
        .exits(2)
        .expect_stderr("a similar subcommand exists: 'backup'");
    let error = pitr().words("bakup --json").exits(2).json();
    assert_eq!(error["code"], "usage");
    assert_eq!(error["exit"], 2);
    assert_eq!(error["message"], "unrecognized subcommand 'bakup'");
    assert!(error["hint"].as_str().unwrap().contains("'backup'"));
}

#[test]
fn a_reader_who_has_seen_enough_is_no_error() {
    let program = pitr().arg("--help").shell();
    let line = format!("{program} | true; echo ${{PIPESTATUS[0]}}");
    let run = Program::new("bash").args(["-c", &line]).succeed();
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("0\n", ""));
}
