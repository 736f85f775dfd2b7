//! Repositories that an older version wrote (`testdata/repositories`): read, planned and restored on their own major, rows compared.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::{Cluster, Program, Sandbox, pitr};
use crate::per_major;

const FORMS: [&str; 2] = ["plain", "encrypted"];

/// A copy of a frozen repository, and a configuration that reads it.
pub struct Frozen {
    major: u32,
    sandbox: Sandbox,
    source: PathBuf,
}

impl Frozen {
    pub fn new(major: u32, form: &str) -> Frozen {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/repositories");
        let sandbox = Sandbox::new("frozen");
        let source = root.join(format!("pg{major}-{form}"));
        let tar = std::fs::read(source.join("repository.tar")).unwrap();
        Program::new("tar")
            .args(["-x", "-C"])
            .arg(sandbox.path())
            .stdin(tar)
            .run()
            .success();
        let mut config = format!(
            "[clusters.main]\n\n[repositories.frozen]\nurl = \"file://{}\"\n",
            sandbox.join("repository").display()
        );
        if form == "encrypted" {
            let key = std::fs::read(root.join("keys/ops.key")).unwrap();
            let key = sandbox.file("ops.key", key);
            config += &format!(
                "\n[repositories.frozen.encryption]\nkey_file = \"{}\"\n",
                key.display()
            );
        }
        sandbox.file("pitr.toml", config);
        Frozen {
            major,
            sandbox,
            source,
        }
    }

    /// Returns the folder of the copy: `repository`, `pitr.toml`, and `ops.key` of an encrypted one.
    pub fn path(&self) -> &Path {
        self.sandbox.path()
    }

    pub fn pitr(&self) -> Program {
        let config = self.sandbox.join("pitr.toml");
        pitr().arg("--config").arg(config)
    }

    fn expected(&self, name: &str) -> String {
        std::fs::read_to_string(self.source.join(name)).unwrap()
    }

    fn moments(&self) -> Vec<Value> {
        serde_json::from_str(&self.expected("moments.json")).unwrap()
    }

    fn verifies_as_expected(&self) {
        let run = self.pitr().arg("verify").run().success();
        assert_eq!(
            without_size(&run.stdout),
            without_size(&self.expected("verify.txt"))
        );
        let run = self.pitr().args(["verify", "--json"]).run().success();
        let expected = serde_json::from_str(&self.expected("verify.json")).unwrap();
        let (found, expected) = (without_bytes(run.json()), without_bytes(expected));
        assert_eq!(found, expected, "{found:#}");
    }

    /// Restores to a moment, starts the server and compares what the tables hold.
    fn restores(&self, number: usize, moment: &Value) {
        let to = self.sandbox.join(format!("moment-{number}"));
        let restore = self.pitr().args(["restore", "--quiet", "--to"]).arg(&to);
        restore.args(arguments(moment)).run().success();
        let mut copy = Cluster::open(self.major, &to)
            .option("fsync", "off")
            .create();
        copy.start();
        copy.wait_promoted();
        for line in moment["tables"].as_array().unwrap() {
            let line = line.as_str().unwrap();
            let (table, _) = line.split_once(':').unwrap();
            assert_eq!(fingerprint(&copy, table), line, "{moment:#}");
        }
    }
}

/// As `testdata/repositories/make` writes it down.
fn fingerprint(cluster: &Cluster, table: &str) -> String {
    cluster.query_one_string(&format!(
        "select '{table}: ' || count(*) || ' rows, md5 ' || md5(coalesce(string_agg(t::text, ';' order by t::text collate \"C\"), '')) from {table} t"
    ))
}

fn arguments(moment: &Value) -> Vec<&str> {
    let arguments = moment["arguments"].as_array().unwrap();
    arguments.iter().map(|a| a.as_str().unwrap()).collect()
}

/// How much is read of how many objects is no promise, for verify adds events: "2.3 MiB read in 40 objects".
fn without_size(text: &str) -> String {
    let (before, rest) = text.split_once(": ").unwrap();
    let (_, after) = rest.split_once(" read in ").unwrap();
    format!("{before}: {after}")
}

fn without_bytes(mut report: Value) -> Value {
    let bytes = report.pointer_mut("/clusters/0/read_bytes").unwrap();
    assert!(bytes.take().as_u64().unwrap() > 1 << 20);
    let objects = report.pointer_mut("/clusters/0/objects").unwrap();
    assert!(objects.take().as_u64().unwrap() > 30);
    report
}

fn a_frozen_repository_is_read_planned_and_restored(major: u32) {
    for form in FORMS {
        let frozen = Frozen::new(major, form);
        frozen.verifies_as_expected();
        let info = frozen.pitr().args(["info", "--json"]).run();
        let backups = info.json()["clusters"][0]["backups"].clone();
        assert_eq!(backups.as_array().map(Vec::len), Some(2), "{info}");
        let moments = frozen.moments();
        for moment in &moments {
            let plan = frozen.pitr().args(["plan", "--json"]);
            let plan = plan.args(arguments(moment)).run().success().json();
            assert_eq!(plan["reachable"], true, "{moment:#} {plan:#}");
        }
        let (first, last) = (&moments[0], moments.last().unwrap());
        assert_eq!(
            (&first["timeline"], &last["timeline"]),
            (&1.into(), &2.into())
        );
        frozen.restores(0, first);
        frozen.restores(moments.len() - 1, last);
    }
}
per_major!(a_frozen_repository_is_read_planned_and_restored, v13 v18);
