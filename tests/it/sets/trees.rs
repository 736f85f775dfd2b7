//! Recoveries of files and configuration: what their backups cannot tell is said before anything is stopped, and all of it goes back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::Value;

use super::shop::read;
use crate::common::{Cluster, Program, Sandbox, pitr, user};
use crate::sealed::keygen;

/// A host with uploads and settings, and no server that would have to run.
struct Host {
    sandbox: Sandbox,
    cluster: Cluster,
}

impl Host {
    /// With these members, and more keys of the files and of the repository.
    fn new(members: &str) -> Host {
        let host = Host {
            sandbox: Sandbox::new("trees"),
            cluster: Cluster::builder(17).without_fsync().create(),
        };
        for folder in ["up", "settings", "state"] {
            host.sandbox.dir(folder);
        }
        keygen(&host.path("keys"), &["ops", "escrow"]).succeed();
        keygen(&host.path("pair"), &["lead", "vault"])
            .arg("--secrets")
            .succeed();
        host.write("up/a", "old");
        host.write("settings/.env", "DB_PASSWORD=Gr3enTea!42\n");
        let stop = format!("touch {}", host.path("stopped").display());
        host.sandbox.file("stop", format!("#!/bin/sh\n{stop}\n"));
        host.configure(members, "", "");
        host.pitr(&["init", "--quiet"]).succeed();
        host
    }

    fn configure(&self, members: &str, files: &str, keys: &str) {
        let at = |name: &str| self.path(name).display().to_string();
        let text = format!(
            "[clusters.main]\npgdata = \"{}\"\n\
             [files.up]\nsource = \"{}\"\n{files}\n\
             [config.host]\npaths = [\"{}\"]\n\
             [sets.shop]\nmembers = [{members}]\nstop = [\"/bin/sh\", \"{}\"]\nstate_dir = \"{}\"\n\
             [repositories.one]\nurl = \"file://{}\"\nencryption.key_set = \"{}\"\nencryption.key_file = \"{}\"\nencryption.secrets = \"{}\"\n{keys}\n\
             [repositories.two]\nurl = \"file://{}\"\n",
            self.cluster.pgdata().display(),
            at("up"),
            at("settings/.env"),
            at("stop"),
            at("state"),
            at("one"),
            at("keys/writer.key"),
            at("keys/ops.key"),
            at("pair/secrets.key"),
            at("two"),
        );
        self.sandbox.file("pitr.toml", text);
        user::own_all(self.sandbox.path());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        self.sandbox.file(name, text);
        user::own(&self.path(name));
    }

    fn pitr(&self, arguments: &[&str]) -> Program {
        let program = pitr().arg("--config").arg(self.path("pitr.toml"));
        program.args(arguments).env("PITR_FAULT_SECONDS", "0")
    }

    /// A mark with a backup behind it.
    fn mark(&self) -> String {
        let run = self.pitr(&["mark", "shop", "--with-backups", "--json"]);
        let run = run.run();
        assert!(matches!(run.code(), 0 | 6), "{run}");
        run.id()
    }

    fn recover(&self, mark: &str, more: &[&str]) -> Program {
        let words = ["recover", "application", "--set", "shop", "--mark", mark];
        self.pitr(&[&words[..], more].concat())
    }

    fn is_stopped(&self) -> bool {
        self.path("stopped").exists()
    }
}

/// The commands of a plan's steps, and its warnings.
fn shown(plan: &Value) -> (String, String) {
    (plan["steps"].to_string(), plan["warnings"].to_string())
}

/// A backup that could not read a file, one whose rules are others by now, and one that can tell.
#[test]
fn r190_a_backup_that_cannot_tell_what_to_remove_stops_nothing() {
    let host = Host::new("\"files:up\"");
    host.write("up/closed", "");
    fs::set_permissions(host.path("up/closed"), PermissionsExt::from_mode(0o000)).unwrap();
    let lacking = host.mark();
    fs::remove_file(host.path("up/closed")).unwrap();
    host.configure("\"files:up\"", "exclude = [\"*.tmp\"]", "");
    host.write("up/x.tmp", "");
    let ruled = host.mark();
    host.configure("\"files:up\"", "exclude = [\"*.bak\"]", "");
    fs::remove_file(host.path("up/x.tmp")).unwrap();
    let whole = host.mark();
    for (mark, why) in [
        (&lacking, "lacks 1 things that could not be read"),
        (&ruled, "are others by now"),
    ] {
        host.write("up/a", "new");
        host.write("up/stray", "");
        let plan = host.recover(mark, &["--dry-run", "--json"]).run();
        let (steps, warnings) = shown(&plan.success().json());
        assert!(!steps.contains("--delete"), "{steps}");
        assert!(warnings.contains(why), "{warnings}");
        let run = host.recover(mark, &["--confirm"]).exits(6);
        run.expect_stderr("entries of files:up that its backup lacks stay")
            .expect_stderr(why);
        assert_eq!(read(&host.path("up/a")), "old");
        assert!(host.path("up/stray").exists());
        let back = ["recover", "rollback", "--confirm"];
        host.pitr(&back).succeed();
        assert_eq!(read(&host.path("up/a")), "new");
    }
    let plan = host.recover(&whole, &["--dry-run", "--json"]).run();
    let (steps, warnings) = shown(&plan.success().json());
    assert!(steps.contains("--delete") && warnings == "[]", "{steps}");
    host.recover(&whole, &["--confirm"]).succeed();
    assert!(!host.path("up/stray").exists());
}

/// Uploads are on another disk, and a link leads there. A directory that the restore cannot open stops nothing.
#[test]
fn u102_files_that_a_link_leads_to_are_recovered_and_refusals_come_before_the_stop() {
    let host = Host::new("\"files:up\"");
    let (link, real) = (host.path("up"), host.path("disk"));
    fs::rename(&link, &real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let mark = host.mark();
    host.write("disk/a", "new");
    host.write("disk/stray", "");
    let rights = fs::metadata(&real).unwrap().permissions();
    fs::set_permissions(&real, PermissionsExt::from_mode(0o000)).unwrap();
    let refused = host.recover(&mark, &["--confirm"]).run();
    fs::set_permissions(&real, rights).unwrap();
    assert!(!refused.is_success(), "{refused}");
    refused
        .expect_stderr("pitr files restore up --in-place")
        .expect_stderr("Permission denied");
    assert!(!host.is_stopped());
    host.recover(&mark, &["--confirm"]).succeed();
    assert!(host.is_stopped() && !host.path("disk/stray").exists());
    assert_eq!(read(&host.path("disk/a")), "old");
    host.pitr(&["recover", "rollback", "--confirm"]).succeed();
    assert_eq!(read(&host.path("disk/a")), "new");
    assert!(host.path("disk/stray").exists());
}

/// The host has the pair, and no key of a recipient, as it is recommended.
#[test]
fn r191_settings_with_secrets_need_their_key_before_anything_is_stopped() {
    let members = "\"config:host\"";
    let host = Host::new(members);
    let mark = host.mark();
    fs::remove_file(host.path("settings/.env")).unwrap();
    for how in ["--dry-run", "--confirm"] {
        let refused = host.recover(&mark, &[how]).run();
        assert!(!refused.is_success(), "{refused}");
        refused
            .expect_stderr("has secrets, and no key of the secrets pair is given")
            .expect_stderr("secrets_key in [repositories.NAME.encryption]");
        assert!(!host.is_stopped(), "{how}");
    }
    let test = ["recover", "test", "--set", "shop", "--mark", &mark];
    let tested = host.pitr(&test).exits(6);
    tested.expect_stderr("config:host was tested without its secrets");
    let key = host.path("pair/lead.key").display().to_string();
    host.configure(members, "", &format!("encryption.secrets_key = \"{key}\""));
    host.pitr(&test).succeed();
    host.recover(&mark, &["--confirm"]).succeed();
    assert_eq!(
        read(&host.path("settings/.env")),
        "DB_PASSWORD=Gr3enTea!42\n"
    );
}

/// The first repository was away when the backup behind the mark was taken.
#[test]
fn r192_a_backup_behind_a_mark_is_found_in_any_repository() {
    let host = Host::new("\"files:up\"");
    let backup = |repository: &str| {
        let words = [
            "files",
            "backup",
            "up",
            "--json",
            "--repository",
            repository,
        ];
        let run = host.pitr(&words).succeed();
        run.id()
    };
    let early = backup("one");
    let mark = host.pitr(&["mark", "shop", "--json"]).succeed();
    let mark = mark.id();
    let wanted = backup("two");
    let plan = host.recover(&mark, &["--dry-run", "--json"]).run();
    let plan = plan.success().json();
    assert_eq!(plan["plan"]["members"][0]["reached"]["backup"], *wanted);
    assert_eq!(plan["plan"]["level"], 2, "{plan:#}");
    host.write("up/a", "new");
    host.recover(&mark, &["--confirm"]).succeed();
    assert_eq!(read(&host.path("up/a")), "old");
    let all = host.pitr(&["info", "--json"]).run().json().to_string();
    assert!(all.contains(&early) && all.contains(&wanted), "{all}");
}

/// The step is killed behind its work, an application makes a file, and the repeated step has something to do once more.
#[test]
fn r193_a_rollback_takes_back_each_restore_of_a_step_that_was_repeated() {
    let host = Host::new("\"files:up\"");
    let mark = host.mark();
    host.write("up/a", "new");
    let run = host.recover(&mark, &["--confirm"]);
    let run = run.env("PITR_FAULT", "recover-worked-1").run();
    assert!(run.stderr.contains("\"recover-worked-1\""), "{run}");
    assert_eq!(read(&host.path("up/a")), "old");
    host.write("up/late", "");
    host.recover(&mark, &["--confirm"]).succeed();
    assert!(!host.path("up/late").exists());
    host.pitr(&["recover", "rollback", "--confirm"]).succeed();
    assert_eq!(read(&host.path("up/a")), "new");
    assert!(host.path("up/late").exists());
}
