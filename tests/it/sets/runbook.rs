//! The runbook that is stored with each mark: read when the configuration is gone.

use std::path::{Path, PathBuf};

use crate::common::{Cluster, Program, Sandbox, files_below, pitr};
use crate::sealed::keygen;

/// A set of files alone, in a repository; no server runs.
struct Site {
    sandbox: Sandbox,
    repository: String,
}

impl Site {
    fn new(is_sealed: bool) -> Site {
        let sandbox = Sandbox::new("runbook");
        let keys = sandbox.join("keys");
        let mut repository = format!(
            "[repositories.one]\nurl = \"file://{}\"\n",
            sandbox.join("one").display()
        );
        if is_sealed {
            keygen(&keys, &["ops", "escrow"]).succeed();
            repository += &format!(
                "[repositories.one.encryption]\nkey_set = \"{0}/writer.key\"\nkey_file = \"{0}/ops.key\"\n",
                keys.display()
            );
        }
        let site = Site {
            sandbox,
            repository,
        };
        let cluster = Cluster::builder(17).without_fsync().create();
        let registered = format!(
            "[clusters.main]\npgdata = \"{}\"\n{}",
            cluster.pgdata().display(),
            site.repository
        );
        site.sandbox.file("pitr.toml", registered);
        site.pitr(&["init", "--quiet"]).succeed();
        site.sandbox.dir("uploads");
        site.sandbox.file("uploads/a", "a");
        site.configure("uploads");
        site
    }

    fn configure(&self, source: &str) {
        let set = format!(
            "[files.up]\nsource = \"{}\"\n[sets.shop]\nmembers = [\"files:up\"]\n",
            self.sandbox.join(source).display()
        );
        self.sandbox
            .file("pitr.toml", self.repository.clone() + &set);
    }

    fn pitr(&self, words: &[&str]) -> Program {
        let config = self.sandbox.join("pitr.toml");
        pitr().arg("--config").arg(config).args(words)
    }

    fn stored(&self) -> Program {
        self.pitr(&["runbook", "--set", "shop", "--stored"])
    }

    fn runbooks(&self) -> Vec<PathBuf> {
        let folder = self.sandbox.join("one/aux/sets/shop/runbooks");
        let below = files_below(&folder);
        below.into_iter().map(|file| folder.join(file)).collect()
    }
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[10] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// The host is lost with its configuration; the repository and its keys are left.
#[test]
fn r80_the_runbook_is_stored_with_each_mark() {
    for is_sealed in [false, true] {
        let site = Site::new(is_sealed);
        let none = site.stored().exits(2);
        none.expect_stderr("no mark of set \"shop\" has a runbook");
        let first = site.pitr(&["mark", "shop", "--json"]).succeed().json();
        site.pitr(&["mark", "shop"]).succeed();
        assert_eq!(site.runbooks().len(), 1, "the same text is stored once");
        // Another configuration, another text.
        site.configure("elsewhere");
        site.pitr(&["mark", "shop", "--label", "moved"]).succeed();
        assert_eq!(site.runbooks().len(), 2);

        site.sandbox.file("pitr.toml", &site.repository);
        let book = site.stored().succeed();
        let book = book.expect_stdout("pitr recover full --set shop");
        let book = book.expect_stdout("elsewhere");
        let before = ["--mark", first["id"].as_str().unwrap()];
        let before = site.stored().args(before).succeed();
        before.expect_stdout("uploads");
        let json = site.stored().words("--mark moved --json").run();
        let json = json.success().json();
        assert_eq!(
            (&json["set"], &json["format"]),
            (&"shop".into(), &"markdown".into())
        );
        assert_eq!(
            json["text"].as_str().unwrap().trim_end(),
            book.stdout.trim_end()
        );
        let page = site.stored().words("--format html").succeed();
        let page = page.expect_stdout("<h2>Recover</h2>");
        let page = page.expect_stdout("<td>files:up</td>");
        let verified = site.pitr(&["verify", "--json"]).succeed();
        assert!(
            !verified.stdout.contains("no object of this format"),
            "{verified}"
        );

        // A page is a copy, too, that gets stale.
        site.configure("elsewhere");
        let page = site.sandbox.file("runbook.html", &page.stdout);
        let check = || site.pitr(&["runbook", "--check"]).arg(&page).run();
        check().success();
        site.configure("uploads");
        check().expect_code(4);

        // Somebody changes what is stored: nothing of it is shown.
        for runbook in site.runbooks() {
            flip(&runbook);
        }
        let damaged = site.stored().run();
        assert!(!damaged.stdout.contains("pitr recover"), "{damaged}");
        damaged.expect_code(1).expect_stderr("/runbooks/");
        let found = site.pitr(&["verify"]).exits(4);
        assert!(found.stdout.contains("/runbooks/"), "{found}");
        if is_sealed {
            // Without the private key it is sealed.
            std::fs::rename(site.sandbox.join("keys/ops.key"), site.sandbox.join("away")).unwrap();
            let sealed = site.stored().run();
            assert!(!sealed.stdout.contains("pitr recover"), "{sealed}");
        }
    }
}

/// A text that no mark names goes, in the run behind that in which its last mark went.
#[test]
fn r101_a_stored_runbook_goes_when_no_mark_names_it() {
    for is_sealed in [false, true] {
        let site = Site::new(is_sealed);
        site.pitr(&["mark", "shop"]).succeed();
        let first = site.runbooks();
        site.configure("elsewhere");
        site.pitr(&["mark", "shop"]).succeed();
        let both = site.runbooks();
        assert_eq!((first.len(), both.len()), (1, 2));
        let name = first[0].file_name().unwrap().to_str().unwrap();
        // All marks but the newest go, and nothing is too fresh to go.
        let expire = |more: &[&str]| {
            let all = [&["expire", "--keep", "1", "--json"], more].concat();
            let run = site.pitr(&all).env("PITR_FAULT_SECONDS", "0");
            let run = run.env("PITR_FAULT_LIMIT", "1").run();
            assert!(run.is_success(), "{run}");
            run.json()["scopes"][0].clone()
        };
        let explained = |goes: bool| {
            let answer = expire(&["--explain", name]);
            assert_eq!(answer["goes"], goes, "{answer:#}");
        };
        let shown = expire(&["--dry-run"]);
        assert_eq!(shown["spent"].as_array().unwrap().len(), 1, "{shown:#}");
        assert_eq!(
            shown["runbooks"],
            serde_json::Value::Null,
            "a mark names it"
        );
        explained(false);
        expire(&["--confirm"]);
        assert_eq!(site.runbooks(), both);
        // The mark is gone now; a text of today may belong to one that is being written.
        let fresh = site.pitr(&["expire", "--keep", "1", "--json"]).succeed();
        assert!(!fresh.stdout.contains("runbooks"), "{fresh}");
        explained(true);
        let shown = expire(&["--dry-run"]);
        assert_eq!(shown["runbooks"], serde_json::json!([name]), "{shown:#}");
        assert_eq!(site.runbooks(), both, "a dry run deletes nothing");
        expire(&["--confirm"]);
        assert_eq!(site.runbooks().len(), 1);
        assert!(!site.runbooks().contains(&first[0]));
        let book = site.stored().succeed();
        book.expect_stdout("elsewhere");
        assert_eq!(expire(&["--confirm"])["runbooks"], serde_json::Value::Null);
        // The former configuration comes back, and its text with the mark.
        site.configure("uploads");
        site.pitr(&["mark", "shop"]).succeed();
        assert!(site.runbooks().contains(&first[0]));
        site.stored().succeed().expect_stdout("uploads");
    }
}
