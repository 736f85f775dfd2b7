//! WAL that only a server elsewhere still has, asked for over replication: a primary, a standby, none.

use std::path::PathBuf;

use serde_json::Value;

use super::copies;
use crate::common::{Cluster, Program, Run, Site, Stop, wait_until};
use crate::per_major;
use crate::several::{is_segment, objects};

/// A primary and a standby that keep their WAL, and a host on which neither data directory lies.
struct Elsewhere {
    site: Site,
    primary: Cluster,
    standby: Cluster,
}

impl Elsewhere {
    fn new(major: u32) -> Elsewhere {
        let builder = Cluster::small(major);
        let (site, primary) = Site::with_cluster_of(builder.config("wal_keep_size", "256MB"));
        let standby = Cluster::builder(major)
            .without_fsync()
            .standby_of(&primary)
            .start();
        Elsewhere {
            site,
            primary,
            standby,
        }
    }

    /// Takes a backup, and archives segments with rows behind it; returns their keys.
    fn work(&self) -> Vec<String> {
        self.primary.sql("create table t (a text)");
        self.site.pitr().words("backup --quiet").succeed();
        for _ in 0..6 {
            self.primary
                .sql("insert into t select repeat('x', 500) from generate_series(1, 3000)");
            self.primary.archive_now();
        }
        let end = self
            .primary
            .value("select pg_current_wal_flush_lsn()::text");
        let reached = format!("select (pg_last_wal_receive_lsn() >= '{end}')::text");
        wait_until("the standby has received everything", || {
            self.standby.value(&reached) == "true"
        });
        let all = objects(self.site.repository()).into_keys();
        all.filter(|k| is_segment(k)).collect()
    }

    /// `pitr`, whose connection string names these servers in turn.
    fn pitr(&self, servers: &[&Cluster]) -> Program {
        let all = |of: &dyn Fn(&Cluster) -> String| {
            let all: Vec<String> = servers.iter().map(|s| of(s)).collect();
            all.join(",")
        };
        let hosts = all(&|s| s.socket_dir().display().to_string());
        let ports = all(&|s| s.port().to_string());
        let none = self.site.sandbox().join("none");
        self.site.pitr().env("PITR_CLUSTERS_MAIN_PGDATA", none).env(
            "PITR_CLUSTERS_MAIN_CONNINFO",
            format!("host={hosts} port={ports} user=postgres target_session_attrs=primary"),
        )
    }

    /// The WAL that the repository serves for a key.
    fn fetched(&self, key: &str) -> Vec<u8> {
        let to = self.site.sandbox().join("fetched");
        let fetch = self.site.pitr().args(["wal", "fetch", name(key)]).arg(&to);
        let id = self.site.system_identifier().to_string();
        fetch.args(["--system-identifier", &id]).succeed();
        std::fs::read(to).unwrap()
    }

    fn gaps(&self, servers: &[&Cluster], more: &[&str]) -> Run {
        let gaps = self.pitr(servers).words("wal gaps --heal --json");
        gaps.args(more).run()
    }

    fn lose(&self, keys: &[&String]) {
        for key in keys {
            std::fs::remove_file(self.path(key)).unwrap();
        }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.site.repository().join(key)
    }
}

/// Name of the segment under a key.
fn name(key: &str) -> &str {
    key.rsplit('/').next().unwrap()
}

/// The giver of each segment that was healed.
fn healed(answer: &Value) -> Vec<&str> {
    let healed = answer["repositories"][0]["healed"].as_array().unwrap();
    healed.iter().map(|h| h["from"].as_str().unwrap()).collect()
}

fn v08_gaps_are_filled_from_a_standby_over_replication(major: u32) {
    let mut here = Elsewhere::new(major);
    let keys = here.work();
    let [.., first, second, _, cut, third, _] = keys.as_slice() else {
        panic!("{keys:?}")
    };
    let whole: Vec<(&String, Vec<u8>)> = [first, second, cut, third]
        .into_iter()
        .map(|key| (key, here.fetched(key)))
        .collect();
    let all_are_whole = |here: &Elsewhere| {
        let is_whole = |(key, wal): &(&String, Vec<u8>)| here.fetched(key) == *wal;
        whole.iter().all(is_whole)
    };

    // Neighbours come in one stream, a third one in another; damage is healed beside the damaged object.
    here.lose(&[first, second, third]);
    copies::damage(here.site.repository(), cut, 0);
    let both = [&here.primary, &here.standby];
    let dry = here.gaps(&both, &["--dry-run"]).expect_code(4).json();
    assert_eq!(healed(&dry).len(), 3, "{dry}");
    assert!(!here.path(first).exists());
    let of_primary = here.primary.socket_dir().display().to_string();
    let run = here.pitr(&both).words("verify --heal").succeed();
    let lines = run.stdout.lines().filter(|l| l.starts_with("healed: "));
    assert_eq!(
        lines.filter(|l| l.contains(&of_primary)).count(),
        4,
        "{run}"
    );
    assert!(all_are_whole(&here));
    assert!(here.path(&format!("{cut}.heal-1")).exists());

    // The standby still has what the primary has removed, also while the primary is away.
    here.lose(&[first, second]);
    for key in [first, second] {
        let file = here.primary.pgdata().join("pg_wal").join(name(key));
        std::fs::remove_file(file).unwrap();
    }
    let done = here.gaps(&both, &[]).success().json();
    let of_standby = here.standby.socket_dir().display().to_string();
    assert_eq!(healed(&done).len(), 2, "{done}");
    let is_standby = |from: &&str| from.contains(&of_standby);
    assert!(healed(&done).iter().all(is_standby), "{done}");
    assert!(all_are_whole(&here));
    here.lose(&[third]);
    here.primary.stop(Stop::Fast);
    let both = [&here.primary, &here.standby];
    let run = here
        .gaps(&both, &[])
        .success()
        .expect_stderr("ask the server for WAL");
    assert_eq!(healed(&run.json()).len(), 1, "{run}");
    assert!(all_are_whole(&here));

    // Another cluster gives nothing, and where none is left the gap stays.
    let other = Cluster::builder(major)
        .segment_size_mb(1)
        .own_identifier()
        .start();
    here.lose(&[third]);
    for servers in [&[&here.primary][..], &[&other]] {
        let left = here.gaps(servers, &[]).expect_code(4).json();
        assert_eq!(left["repositories"][0]["gaps"][0]["segments"], 1, "{left}");
        assert!(!here.path(third).exists());
    }
    here.pitr(&[&here.standby]).words("verify --heal").succeed();
}

per_major!(v08_gaps_are_filled_from_a_standby_over_replication);
