//! Whole cycles on Azure Blob Storage and Google Cloud Storage: with the real programs, PostgreSQL 18, and the emulators that the environment
//! names (`make on-azure on-gcs`).

use std::path::PathBuf;

use pitr::store::Store as _;

use crate::common::blob::{ACCOUNT_KEY, Peer, Service, TOKEN};
use crate::common::reception::{archived, lsn};
use crate::common::{
    Cluster, PATIENCE, Program, Sandbox, expire_at_once, pitr, pitr_archive, wait_until,
};

struct Site {
    peer: Peer,
    sandbox: Sandbox,
    config: PathBuf,
}

impl Site {
    fn new(cluster: &Cluster, peer: Peer) -> Site {
        let sandbox = Sandbox::new("blob");
        let style = match peer.service {
            Service::Azure => "path_style = true\n",
            Service::Google => "",
        };
        let text = format!(
            "[clusters.main]\npgdata = \"{}\"\nconninfo = \"{}\"\n[clusters.main.receive]\njournal = \"{}\"\n\
             [repositories.store]\nurl = \"{}\"\nendpoint = \"{}\"\ncredentials_file = \"{}\"\n{style}",
            cluster.pgdata().display(),
            cluster.conninfo("postgres"),
            sandbox.join("journal").display(),
            peer.url("pg"),
            peer.endpoint,
            peer.credentials(&sandbox).display()
        );
        let config = sandbox.file("pitr.toml", text);
        let site = Site {
            peer,
            sandbox,
            config,
        };
        site.pitr().args(["init", "--quiet"]).run().success();
        site
    }

    fn pitr(&self) -> Program {
        pitr().arg("--config").arg(&self.config)
    }

    fn backup(&self, kind: &str) -> String {
        let run = self.pitr().args(["backup", "--json", kind]).run().success();
        run.id()
    }

    fn keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        let store = self.peer.store(&self.sandbox, "pg", |_| {});
        store.objects(&mut |o| keys.push(o.key.to_owned())).unwrap();
        keys
    }

    /// The receiver ships what was committed, and ends well.
    fn receive_once(&self, cluster: &Cluster) {
        let mut running = self.pitr().args(["receive", "--create-slot"]).spawn();
        let client = cluster.client();
        wait_until(PATIENCE, "the receiver streams", || {
            assert!(!running.is_done(), "it ended: {}", running.stderr());
            let sql = "select count(*) from pg_stat_replication where state = 'streaming' and application_name = 'pitr'";
            client.query_one_string(sql) == "1"
        });
        client.sql(
            "insert into ledger select g, 'received' from generate_series(1000001, 1000100) g",
        );
        let end = lsn(&client.query_one_string("select pg_current_wal_flush_lsn()"));
        let journal = self.sandbox.join("journal");
        wait_until(PATIENCE, "the repository holds everything", || {
            assert!(!running.is_done(), "it ended: {}", running.stderr());
            archived(&journal).is_some_and(|at| at >= end)
        });
        running.signal(rustix::process::Signal::TERM);
        running.wait().success();
        self.pitr().args(["receive", "--drop-slot"]).run().success();
    }
}

fn a_whole_cycle(service: Service) {
    let Some(peer) = Peer::of(service) else {
        println!("not run: {} names no server", service.variable());
        return;
    };
    let mut cluster = Cluster::builder(18)
        .segment_size_mb(1)
        .without_fsync()
        .create();
    let site = Site::new(&cluster, peer);
    cluster.append_config("archive_mode", "on");
    let command = pitr_archive().arg("--config").arg(&site.config).arg("%p");
    cluster.append_config("archive_command", &command.shell());
    cluster.start();
    let client = cluster.client();
    // Packs of several requests.
    client.sql("create table ledger as select g as id, md5(g::text) as note from generate_series(1, 400000) g");
    let first = site.backup("--full");
    site.receive_once(&cluster);
    client.sql("update ledger set note = 'changed' where id <= 1000");
    let second = site.backup("--incremental");
    client.sql("select pg_create_restore_point('before')");
    client.sql("delete from ledger");
    cluster.archive_now();
    site.pitr().args(["doctor"]).run().expect_stdout("archiver");
    // The credentials of the tests may delete, which is a warning.
    let checked = site.pitr().args(["repo", "check", "--json"]).run();
    assert_eq!(checked.json()["repositories"][0]["usable"], true);
    let target = ["--target-name", "before"];
    let plan = site.pitr().args(["plan", "--json"]).args(target).run();
    assert_eq!(plan.success().json()["backup"]["id"], second.as_str());
    let to = site.sandbox.join("copy");
    let restore = site.pitr().args(["restore", "--quiet", "--to"]).arg(&to);
    restore.args(target).run().success();
    let mut copy = Cluster::open(18, &to).option("fsync", "off").create();
    copy.start();
    copy.wait_promoted();
    let count = "select count(*) || ' ' || count(*) filter (where note = 'changed') from ledger";
    assert_eq!(copy.query_one_string(count), "400100 1000");
    drop(copy);
    site.pitr().args(["verify", "--quiet"]).run().success();
    site.backup("--full");
    site.pitr().args(["verify", "--quiet"]).run().success();
    site.pitr().args(expire_at_once()).run().success();
    let holds = |id: &str| {
        site.keys()
            .iter()
            .any(|k| k.contains(&format!("/packs/{id}/")))
    };
    assert!(
        !holds(&first) && !holds(&second),
        "what is not kept is deleted"
    );
    site.pitr().args(["verify", "--quiet"]).run().success();
    let refused = site.pitr().args(["repo", "tier", "--dry-run"]).run();
    assert_ne!(refused.code(), 0, "no tiers there");
    let left = site.peer.store(&site.sandbox, "pg", |_| {}).irregular();
    assert!(left.unwrap().is_empty());
    let text = cluster.log();
    assert!(!text.contains(ACCOUNT_KEY) && !text.contains(TOKEN));
}

#[test]
fn a_whole_cycle_on_azure() {
    a_whole_cycle(Service::Azure);
}

#[test]
fn a_whole_cycle_on_google() {
    a_whole_cycle(Service::Google);
}
