//! Whole cycles on Azure Blob Storage and Google Cloud Storage: with the real programs, PostgreSQL 18, and the emulators that the environment
//! names (`make on-azure on-gcs`).

use std::path::PathBuf;

use pitr::store::Store as _;

use crate::common::blob::{ACCOUNT_KEY, Peer, Service, TOKEN};
use crate::common::reception::{archived, lsn};
use crate::common::{Cluster, Program, Sandbox, expire_at_once, pitr, pitr_archive};

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
        site.pitr().words("init --quiet").succeed();
        site
    }

    fn pitr(&self) -> Program {
        pitr().arg("--config").arg(&self.config)
    }

    fn backup(&self, kind: &str) -> String {
        let run = self.pitr().args(["backup", "--json", kind]).succeed();
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
        let mut running = self.pitr().words("receive --create-slot").spawn();
        let client = cluster.client();
        running.until("the receiver streams", || {
            let sql = "select count(*) from pg_stat_replication where state = 'streaming' and application_name = 'pitr'";
            client.value(sql) == "1"
        });
        client.sql(
            "insert into ledger select g, 'received' from generate_series(1000001, 1000100) g",
        );
        let end = lsn(&client.value("select pg_current_wal_flush_lsn()"));
        let journal = self.sandbox.join("journal");
        running.until("the repository holds everything", || {
            archived(&journal).is_some_and(|at| at >= end)
        });
        running.ended_by(rustix::process::Signal::TERM).success();
        self.pitr().words("receive --drop-slot").succeed();
    }
}

fn a_whole_cycle(service: Service) {
    let Some(peer) = Peer::of(service) else {
        println!("not run: {} names no server", service.variable());
        return;
    };
    let mut cluster = Cluster::small(18).create();
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
    site.pitr().words("doctor").run().expect_stdout("archiver");
    // The credentials of the tests may delete, which is a warning.
    let checked = site.pitr().words("repo check --json").run();
    assert_eq!(checked.json()["repositories"][0]["usable"], true);
    let target = ["--target-name", "before"];
    let plan = site.pitr().words("plan --json").args(target).run();
    assert_eq!(plan.success().json()["backup"]["id"], second.as_str());
    let to = site.sandbox.join("copy");
    let restore = site.pitr().restore_to(&to).arg("--quiet");
    restore.args(target).succeed();
    let copy = Cluster::open(18, &to).without_fsync().promoted();
    let count = "select count(*) || ' ' || count(*) filter (where note = 'changed') from ledger";
    assert_eq!(copy.value(count), "400100 1000");
    drop(copy);
    site.pitr().words("verify --quiet").succeed();
    site.backup("--full");
    site.pitr().words("verify --quiet").succeed();
    site.pitr().args(expire_at_once()).succeed();
    let holds = |id: &str| {
        site.keys()
            .iter()
            .any(|k| k.contains(&format!("/packs/{id}/")))
    };
    assert!(
        !holds(&first) && !holds(&second),
        "what is not kept is deleted"
    );
    site.pitr().words("verify --quiet").succeed();
    let refused = site.pitr().words("repo tier --dry-run").run();
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
