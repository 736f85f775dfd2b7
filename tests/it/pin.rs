//! `pitr pin`, `unpin` and `backup delete` through the real programs: what stays, and what goes.

use std::path::PathBuf;
use std::time::Duration;

use pitr::pg::time::TimestampTz;
use serde_json::Value;

use crate::common::{Cluster, Program, Site, files_below, keep_one, wait_until};
use crate::per_major;

/// A cluster with backups, in one repository or in two.
pub struct Kept {
    pub site: Site,
    pub cluster: Cluster,
    pub ids: Vec<String>,
}

impl Kept {
    pub fn new(major: u32, backups: usize) -> Kept {
        let (site, cluster) = Site::with_cluster(major);
        cluster.sql("create table t (n int)");
        let mut kept = Kept {
            site,
            cluster,
            ids: Vec::new(),
        };
        for n in 0..backups {
            kept.cluster.sql(&format!("insert into t values ({n})"));
            kept.cluster.archive_now();
            kept.ids.push(kept.site.backup());
        }
        kept.cluster.sql("insert into t values (100)");
        kept.cluster.archive_now();
        kept
    }

    /// A second repository, which has everything that the first has.
    pub fn second(&self) -> PathBuf {
        let folder = self.site.add_repository("second", "");
        let sync = ["repo", "sync", "--all", "--quiet"];
        self.pitr(&sync).succeed();
        folder
    }

    pub fn pitr(&self, args: &[&str]) -> Program {
        self.site.pitr().args(args)
    }

    /// Returns the fate that expire plans for each backup, in the first repository.
    pub fn fates(&self, more: &[&str]) -> Vec<String> {
        let run = self.pitr(&keep_one(&["--json", "--dry-run"])).args(more);
        let plan = run.succeed().json();
        let backups = plan["clusters"][0]["backups"].as_array().unwrap();
        let fate = |b: &Value| b["fate"].as_str().unwrap().to_owned();
        backups.iter().map(fate).collect()
    }

    /// Returns info's entry of a backup.
    pub fn shown(&self, n: usize) -> Value {
        let info = self.pitr(&["info", "--json"]).run().json();
        let backups = info["clusters"][0]["backups"].as_array().unwrap().clone();
        let mut own = backups.into_iter().filter(|b| b["id"] == *self.ids[n]);
        own.next().unwrap_or_default()
    }

    pub fn expire(&self) {
        let args = keep_one(&["--grace", "0s", "--confirm", "--quiet"]);
        self.pitr(&args).succeed();
    }
}

fn now() -> TimestampTz {
    TimestampTz::from_system_time(std::time::SystemTime::now())
}

fn a_pin_keeps_a_backup_until_it_ends(major: u32) {
    let kept = Kept::new(major, 3);
    let [first, second, _] = kept.ids.clone().try_into().unwrap();
    let files = || files_below(kept.site.repository());
    let before = files();

    // Without --confirm nothing is written.
    let pin = ["pin", &first, "--reason", "the year's end"];
    let plan = kept.pitr(&pin).run();
    assert_eq!(plan.code(), 8, "{}", plan.stderr);
    assert!(
        plan.stdout.contains("keeps, until it is unpinned"),
        "{}",
        plan.stdout
    );
    assert!(
        plan.stderr.contains("--confirm is not given"),
        "{}",
        plan.stderr
    );
    kept.pitr(&pin).arg("--dry-run").succeed();
    let json = kept.pitr(&pin).words("--json --dry-run").succeed().json();
    assert_eq!(json["confirmed"], false);
    assert_eq!(json["repositories"].as_array().unwrap().len(), 1);
    let start = kept.shown(0)["start_lsn"].clone();
    assert_eq!(json["start_lsn"], start);
    assert_eq!(files(), before);
    assert_eq!(kept.fates(&[]), ["mark", "mark", "keep"]);

    kept.pitr(&pin).arg("--confirm").succeed();
    let shown = kept.shown(0);
    assert_eq!(shown["pinned"], true);
    assert_eq!(shown["pinned_reason"], "the year's end");
    assert_eq!(shown["pinned_until"], Value::Null);
    assert_eq!(kept.fates(&[]), ["keep", "mark", "keep"]);
    // Again, it says nothing new.
    let pinned = files();
    kept.pitr(&pin).arg("--confirm").succeed();
    assert_eq!(files(), pinned);

    // The second one goes; the pinned one can still be restored.
    let until = now().saturating_add(Duration::from_secs(3600)).to_string();
    let dry = [
        "pin",
        &second,
        "--reason",
        "x",
        "--until",
        &until,
        "--dry-run",
        "--json",
    ];
    assert_eq!(kept.pitr(&dry).succeed().json()["until"], until);
    kept.expire();
    let pin = ["pin", &second, "--reason", "late", "--confirm"];
    let gone = kept.pitr(&pin).run();
    assert_eq!(gone.code(), 2, "{}", gone.stderr);
    assert!(gone.stderr.contains("not_found"), "{}", gone.stderr);
    let plan = ["plan", "--target-immediate", "--json", "--backup", &first];
    assert_eq!(kept.pitr(&plan).succeed().json()["reachable"], true);

    // Unpinned, it goes, too.
    let unpin = ["unpin", &first];
    let plan = kept.pitr(&unpin).run();
    assert_eq!(plan.code(), 8, "{}", plan.stderr);
    assert!(plan.stdout.contains("the year's end"), "{}", plan.stdout);
    plan.expect_stdout("ends: pin of ")
        .expect_stderr(&format!("The pins of backup \"{first}\" would end."));
    assert_eq!(kept.shown(0)["pinned"], true);
    kept.pitr(&unpin).arg("--confirm").succeed();
    assert_eq!(kept.shown(0)["pinned"], false);
    let again = kept.pitr(&unpin).arg("--confirm").run();
    assert_eq!(again.code(), 2, "{}", again.stderr);
    assert!(again.stderr.contains("is not pinned"), "{}", again.stderr);
    assert_eq!(kept.fates(&[]), ["mark", "keep"]);
    kept.expire();
    assert_eq!(kept.shown(0), Value::Null);
}
per_major!(a_pin_keeps_a_backup_until_it_ends, v17);

fn a_pin_with_an_end_is_over_then(major: u32) {
    let kept = Kept::new(major, 2);
    let first = kept.ids[0].clone();
    let pin = ["pin", &first, "--reason", "a week", "--confirm", "--until"];
    let past = kept.pitr(&pin).arg("2020-01-01T00:00:00Z").run();
    assert_eq!(past.code(), 2, "{}", past.stderr);
    assert!(past.stderr.contains("is in the past"), "{}", past.stderr);
    let unknown = ["pin", "20200101T000000Z-full", "--reason", "x", "--confirm"];
    let unknown = kept.pitr(&unknown).run();
    assert_eq!(unknown.code(), 2, "{}", unknown.stderr);
    assert!(
        unknown.stderr.contains("does not exist"),
        "{}",
        unknown.stderr
    );

    // A mark that is there already is reported, and taken back by the next run.
    kept.pitr(&keep_one(&["--confirm", "--quiet"])).succeed();
    let ends = now().saturating_add(Duration::from_secs(20));
    let text = ends.to_string();
    let run = kept.pitr(&pin).arg(&text).succeed();
    assert!(run.stdout.contains("marked for deletion"), "{}", run.stdout);
    assert_eq!(kept.shown(0)["pinned_until"], text.as_str());
    assert_eq!(kept.fates(&["--grace", "0s"]), ["keep", "keep"]);
    let info = kept.pitr(&["info"]).run();
    assert!(info.stdout.contains("pinned until"), "{}", info.stdout);
    wait_until("the pin is over", || now() > ends);
    assert_eq!(kept.shown(0)["pinned"], false);
    assert_eq!(kept.fates(&["--grace", "0s"]), ["delete", "keep"]);
    kept.expire();
    assert_eq!(kept.shown(0), Value::Null);
}
per_major!(a_pin_with_an_end_is_over_then, v17);

fn two_repositories_are_pinned_alike(major: u32) {
    let kept = Kept::new(major, 2);
    let first = kept.ids[0].clone();
    let second = kept.second();
    let pin = ["pin", &first, "--reason", "both", "--json", "--confirm"];
    let json = kept.pitr(&pin).succeed().json();
    assert_eq!(json["recorded_in"].as_array().unwrap().len(), 2);
    // Under one name, so that syncing finds nothing to copy.
    let sync = kept.pitr(&["repo", "sync", "--json"]).succeed().json();
    for transfer in sync["transfers"].as_array().unwrap() {
        assert_eq!(transfer["copied"]["objects"], 0, "{sync}");
    }
    let name = second.to_str().unwrap();
    let one = ["unpin", &first, "--confirm", "--repository", name];
    kept.pitr(&one).succeed();
    let left = kept.pitr(&["unpin", &first, "--dry-run", "--json"]).run();
    let left = left.success().json();
    assert_eq!(left["pins"].as_array().unwrap().len(), 1);
    assert_eq!(left["repositories"].as_array().unwrap().len(), 1);

    // One that is away: the other one is pinned, and the command says it.
    let away = second.with_file_name("away");
    std::fs::rename(&second, &away).unwrap();
    let pin = ["pin", &first, "--reason", "more", "--confirm"];
    let partial = kept.pitr(&pin).run();
    assert_eq!(partial.code(), 10, "{}", partial.stderr);
    assert!(partial.stderr.contains("second"), "{}", partial.stderr);
    std::fs::rename(&away, &second).unwrap();
    let again = kept.pitr(&pin).arg("--json").succeed().json();
    assert_eq!(again["recorded_in"].as_array().unwrap().len(), 2);
}
per_major!(two_repositories_are_pinned_alike, v17);

fn a_backup_is_deleted_by_request(major: u32) {
    let kept = Kept::new(major, 3);
    let [first, second, third] = kept.ids.clone().try_into().unwrap();
    let folder = kept.second();
    let files = || (files_below(kept.site.repository()), files_below(&folder));
    let before = files();
    let delete = |id: &str| kept.pitr(&["backup", "delete", id]);

    // A backup on which recovery hangs stays, and so does a pinned one.
    let newest = delete(&third).arg("--confirm").exits(8);
    assert!(newest.stderr.contains("newest good one"), "{newest}");
    delete("20200101T000000Z-full").exits(2);
    let plan = delete(&first).exits(8);
    assert!(plan.stdout.contains("recovery then:"), "{plan}");
    assert!(plan.stdout.contains("WAL that nothing needs"), "{plan}");
    let dry = delete(&second).words("--dry-run --json").run();
    let dry = dry.success().json();
    assert_eq!(dry["repositories"].as_array().unwrap().len(), 2);
    assert_eq!(dry["repositories"][0]["fate"], "mark");
    assert_eq!(files(), before);
    let pin = ["pin", &second, "--reason", "x", "--confirm"];
    kept.pitr(&pin).succeed();
    let pinned = delete(&second).arg("--confirm").exits(8);
    assert!(pinned.stderr.contains("pitr unpin"), "{pinned}");
    kept.pitr(&["unpin", &second, "--confirm"]).succeed();

    // Marked first; expire deletes nothing for it, and nothing instead of it.
    let marked = delete(&second).arg("--confirm").succeed();
    assert!(marked.stdout.contains("marked in"), "{marked}");
    let again = delete(&second).arg("--confirm").succeed();
    assert!(again.stdout.contains("it is marked"), "{again}");
    assert!(kept.shown(1)["expire_not_before"].is_string());
    let keep_two = ["--keep", "2", "--grace", "0s"];
    let plan = kept.pitr(&["expire", "--min-age", "0s", "--json", "--dry-run"]);
    let plan = plan.args(keep_two).succeed().json();
    let backups = plan["clusters"][0]["backups"].as_array().unwrap();
    let fates: Vec<_> = backups.iter().map(|b| b["fate"].as_str()).collect();
    assert_eq!(fates, [Some("keep"); 3], "{plan}");

    // At once, in both.
    let grace = ["--grace", "0s", "--confirm"];
    let gone = delete(&second).args(grace).arg("--json").run();
    let gone = gone.success().json();
    for one in gone["repositories"].as_array().unwrap() {
        assert_eq!(one["deleted"], true, "{gone}");
    }
    assert_eq!(kept.shown(1), Value::Null);
    // The parts that the older one needs are all there.
    let plan = ["plan", "--json", "--backup", &first];
    assert_eq!(kept.pitr(&plan).succeed().json()["reachable"], true);
    let oldest = delete(&first).args(grace).succeed();
    assert!(oldest.stdout.contains("deleted in"), "{oldest}");
    for root in [kept.site.repository(), &folder] {
        let left = files_below(root);
        let names = |id: &str| left.iter().any(|f| f.contains(id));
        assert!(
            names(&third) && !names(&first) && !names(&second),
            "{left:#?}"
        );
    }
    let plan = ["plan", "--json"];
    assert_eq!(kept.pitr(&plan).succeed().json()["reachable"], true);
    kept.pitr(&["verify", "--quiet"]).succeed();
}
per_major!(a_backup_is_deleted_by_request, v17);
