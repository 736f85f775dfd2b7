//! `pitr repo rewrap --all`: access to every repository and to the secrets in them, changed by one plan.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::World;
use super::sync::configure;
use crate::common::{Program, Run, pitr, user};
use crate::sealed::{keygen, refused};

/// Two repositories of one key set and one secrets pair, and somebody who comes in the place of others.
struct Staff {
    world: World,
}

impl Staff {
    fn new() -> Staff {
        let world = World::new();
        world.sandbox.dir("copy");
        let keys = [
            "secrets = \"{pair}/secrets.key\"",
            "secrets_key = \"{pair}/lead.key\"",
        ];
        configure(&world, "both", false, &keys);
        world.on("both", &["init", "--quiet"]).succeed();
        world.backup();
        // The pair gets into the copy as well.
        world.on("both", &["config", "recipients"]).succeed();
        for name in ["deputy", "ops"] {
            keygen(&world.path(&format!("new-{name}")), &[name])
                .arg("--pair-only")
                .succeed();
        }
        user::own_all(world.sandbox.path());
        Staff { world }
    }

    fn file(&self, name: &str) -> String {
        self.world.text(name)
    }

    /// Not as root: permissions count.
    fn rewrap(&self, who: &str, args: &[&str]) -> Program {
        pitr()
            .arg("--config")
            .arg(self.world.path(&format!("{who}.toml")))
            .words("repo rewrap --all")
            .args(args)
    }

    /// Deputy comes, escrow and vault go.
    fn exchange(&self, more: &[&str]) -> Run {
        let (public, key) = (
            self.file("new-deputy/deputy.pub"),
            self.file("new-deputy/deputy.key"),
        );
        let change = ["--add", &public, "--withdraw", "escrow", "--withdraw"];
        let rest = ["vault", "--proof", &key, "--secrets"];
        self.rewrap("both", &[&change[..], &rest, more].concat())
            .run()
    }

    fn readers(&self, repository: &str) -> Vec<String> {
        let keys = self.world.path(repository).join("keys");
        let mut found = names(&keys.join("1"));
        for pair in std::fs::read_dir(&keys).unwrap() {
            let pair = pair.unwrap();
            if pair.file_name().to_str().unwrap().starts_with("secrets-") {
                found.extend(names(&pair.path()).into_iter().map(|n| format!("+{n}")));
            }
        }
        found
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn close(directory: &PathBuf, is_closed: bool) {
    let mode = if is_closed { 0o555 } else { 0o700 };
    std::fs::set_permissions(directory, PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn access_is_exchanged_everywhere_and_goes_on_after_a_failure() {
    let staff = Staff::new();
    let before = ["escrow", "ops", "+lead", "+vault"];
    let mut planned = staff.exchange(&[]);
    refused(&planned, 8, "--confirm is not given");
    for repository in ["local", "copy"] {
        planned = planned.expect_stdout(&format!(
            "Repository {repository}, data: gives access to deputy; withdraws escrow; read by: escrow, ops"
        ));
    }
    planned.expect_stdout(": gives access to deputy; withdraws vault; read by: lead, vault");
    staff.exchange(&["--dry-run"]).success();
    for repository in ["repo", "copy"] {
        assert_eq!(staff.readers(repository), before, "nothing was changed");
    }
    // In the copy nothing can be written: nobody loses anything anywhere.
    let closed = staff.world.path("copy/keys/1");
    close(&closed, true);
    let failed = staff.exchange(&["--confirm"]);
    assert!(failed.code() != 0, "{failed}");
    failed
        .expect_stdout("Repository local, data: gave access to deputy; not done: withdraws escrow; read by: deputy, escrow, ops")
        .expect_stdout("Repository copy, data: not done: gives access to deputy; not done: withdraws escrow; read by: escrow, ops")
        .expect_stderr("in repository \"copy\", data")
        .expect_stderr("the same command goes on with the rest");
    assert_eq!(
        staff.readers("repo"),
        ["deputy", "escrow", "ops", "+deputy", "+lead", "+vault"]
    );
    assert_eq!(staff.readers("copy"), before);
    close(&closed, false);
    let done = staff.exchange(&["--confirm"]).success();
    done.expect_stdout("Repository local, data: withdrew escrow; read by: deputy, ops")
        .expect_stdout(
            "Repository copy, data: gave access to deputy; withdrew escrow; read by: deputy, ops",
        )
        .expect_stderr("writer.key\" still lists escrow")
        .expect_stderr("secrets.key\" still lists vault");
    for repository in ["repo", "copy"] {
        assert_eq!(
            staff.readers(repository),
            ["deputy", "ops", "+deputy", "+lead"]
        );
    }
    let again = staff.exchange(&["--confirm", "--json"]).success();
    let again = again.expect_stderr("no repository has a recipient");
    let sets = again.json()["sets"].as_array().unwrap().clone();
    assert_eq!(sets.len(), 4, "{again}");
    for set in &sets {
        for empty in ["to_give", "to_withdraw", "given", "withdrawn"] {
            assert_eq!(set[empty], serde_json::json!([]), "{set}");
        }
    }
    // The new one opens data and secrets by its own key.
    let key = staff.file("new-deputy/deputy.key");
    let world = &staff.world;
    world.configure("deputy", &[&format!("key_file = \"{key}\"")]);
    let env = world.host(".env");
    let reveal = ["config", "reveal", "host", &env, "DB_PASSWORD"];
    let reveal = [&reveal[..], &["--secrets-key", &key]].concat();
    let revealed = world.on("deputy", &reveal).succeed();
    assert_eq!(revealed.stdout, "Gr3enTea!42\n");
}

#[test]
fn what_cannot_be_done_everywhere_is_begun_nowhere() {
    const PASSPHRASE: &str = "correct horse battery staple";
    let staff = Staff::new();
    let before = ["escrow", "ops", "+lead", "+vault"];
    let (public, key) = (
        staff.file("new-deputy/deputy.pub"),
        staff.file("new-deputy/deputy.key"),
    );
    let other = staff.file("new-ops/ops.pub");
    let is_refused = |who: &str, args: &[&str], status: i32, why: &str| {
        let run = staff.rewrap(who, &[args, &["--confirm"]].concat()).run();
        refused(&run, status, why);
        for repository in ["repo", "copy"] {
            assert_eq!(staff.readers(repository), before, "{run}");
        }
        run
    };
    is_refused("both", &[], 2, "nothing is to be changed");
    let one = ["--repository", "local", "--add", &public];
    is_refused("both", &one, 2, "--repository names one");
    let both = ["--add", &public, "--withdraw", "deputy"];
    is_refused("both", &both, 2, "is to get access and to lose it");
    is_refused(
        "both",
        &["--add", &other],
        8,
        "has other keys there already",
    );
    is_refused("both", &["--withdraw", "escrow"], 8, "proven so far: ops");
    // Deputy reads no secrets: one of the pair is proven to stay, and that is too few.
    let vault = ["--add", &public, "--withdraw", "vault", "--proof", &key];
    let run = is_refused("both", &vault, 8, "proven so far: lead");
    run.expect_stderr("nothing was changed");
    is_refused("writer", &["--add", &public], 1, "no key that opens it");
    // The second repository is away.
    let (copy, away) = (staff.world.path("copy"), staff.world.path("away"));
    std::fs::rename(&copy, &away).unwrap();
    let run = staff.rewrap("both", &["--add", &public, "--confirm"]).run();
    assert!(run.code() != 0, "{run}");
    run.expect_stderr("plan the change of repository \"copy\" (nothing was changed)");
    std::fs::rename(&away, &copy).unwrap();
    assert_eq!(staff.readers("repo"), before);
    // A passphrase that is given already is found to be the same, or to be another.
    let safe = |passphrase: &str| {
        let rewrap = staff.rewrap("both", &["--add-passphrase", "safe", "--confirm"]);
        rewrap.env("PITR_PASSPHRASE", passphrase).run()
    };
    safe(PASSPHRASE)
        .success()
        .expect_stdout("gave access to safe");
    safe(PASSPHRASE)
        .success()
        .expect_stdout("data: nothing to do");
    refused(
        &safe("incorrect horse battery staple"),
        8,
        "has other keys there already",
    );
    // Nothing to be had of a plain repository.
    staff.world.configure("stranger", &[]);
    let plain = staff.world.text("plain");
    let text = format!(
        "[clusters.main]\npgdata = \"{}\"\n[repositories.plain]\nurl = \"file://{plain}\"\n",
        staff.world.cluster.pgdata().display()
    );
    staff.world.sandbox.file("plain.toml", text);
    staff.world.sandbox.dir("plain");
    staff.world.on("plain", &["init", "--quiet"]).succeed();
    user::own_all(staff.world.sandbox.path());
    let run = staff.rewrap("plain", &["--add", &public]).run();
    refused(&run, 8, "no repository is encrypted");
}

#[test]
fn what_was_withdrawn_from_the_first_repository_alone_is_withdrawn_from_the_others() {
    let staff = Staff::new();
    let data = |words: &[&str]| {
        let config = staff.world.path("both.toml");
        let pitr = pitr().arg("--config").arg(config).words("repo rewrap");
        pitr.args(words)
    };
    let (public, key) = (
        staff.file("new-deputy/deputy.pub"),
        staff.file("new-deputy/deputy.key"),
    );
    data(&["--add", &public]).succeed();
    let withdraw = ["--withdraw", "escrow", "--proof", &key];
    // As after a run that was interrupted behind the first.
    data(&[&withdraw[..], &["--repository", "local"]].concat()).succeed();
    let has_escrow = |repository| staff.readers(repository).contains(&"escrow".to_owned());
    assert!(!has_escrow("repo") && has_escrow("copy"));
    data(&withdraw)
        .succeed()
        .expect_stderr("there is no recipient \"escrow\" in repository \"local\"");
    assert!(!has_escrow("copy"));
    refused(&data(&withdraw).run(), 2, "there is no recipient");
}

/// Withdrawn in the first repository, and not in the second: the same command goes on, and no word says that nothing was changed.
#[test]
fn y47_access_to_secrets_that_one_repository_keeps_is_withdrawn_later() {
    let staff = Staff::new();
    let recipients = |words: &[&str]| {
        let config = staff.world.path("both.toml");
        let pitr = pitr().arg("--config").arg(config);
        pitr.words("config recipients").args(words).run()
    };
    let (public, key) = (
        staff.file("new-deputy/deputy.pub"),
        staff.file("new-deputy/deputy.key"),
    );
    recipients(&["--add", &public]).success();
    let has_vault = |repository| staff.readers(repository).contains(&"+vault".to_owned());
    refused(&recipients(&["--withdraw", "vault"]), 8, "must be proven");
    refused(
        &recipients(&["--withdraw", "nobody"]),
        2,
        "Nothing was changed",
    );
    assert!(has_vault("repo") && has_vault("copy"));
    let withdraw = ["--withdraw", "vault", "--secrets-key", &key];
    let pair = names(&staff.world.path("copy/keys"));
    let pair = pair
        .iter()
        .find(|name| name.starts_with("secrets-"))
        .unwrap();
    let closed = staff.world.path("copy/keys").join(pair);
    close(&closed, true);
    let partly = recipients(&withdraw).expect_code(10);
    assert!(!partly.stderr.contains("Nothing was"), "{partly}");
    partly.expect_stderr("change the recipients in repository \"copy\"");
    assert!(!has_vault("repo") && has_vault("copy"));
    close(&closed, false);
    recipients(&withdraw)
        .success()
        .expect_stderr("there is no recipient \"vault\" in repository \"local\"");
    assert!(!has_vault("copy"));
    refused(&recipients(&withdraw), 2, "there is no recipient");
}
