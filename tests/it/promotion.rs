//! Promotion with an archive that is away, or lacks a history file: no timeline is taken twice, and none is opened again.
//!
//! PostgreSQL asks for `N.history`, N rising, and takes the first that is not there; then, with its signal files gone, for the history of the
//! timeline that it leaves.

use std::path::PathBuf;

use crate::common::{Cluster, Site, Stop, user, wait_until};
use crate::fetch::Away;
use crate::per_major;
use crate::restore::Trap;

/// A cluster on timeline 2 with a backup, and a copy of it that has not been started.
struct Copy {
    site: Site,
    trap: Trap,
    server: Cluster,
    to: PathBuf,
    _origin: Cluster,
}

impl Copy {
    fn new(major: u32) -> Copy {
        let (site, mut origin) = Site::with_cluster(major);
        origin.append_config("restore_command", &site.restore().words("%f %p").shell());
        origin.sql("create table t as select 1 as a");
        origin.stop(Stop::Fast);
        origin.touch("standby.signal");
        origin.start();
        origin.promote();
        wait_until("the history is archived", || {
            site.object("00000002.history").exists()
        });
        site.pitr().words("backup --quiet").succeed();
        origin.sql("insert into t values (2)");
        origin.archive_now();
        let to = site.sandbox().dir("copy").join("data");
        site.pitr().restore_to(&to).succeed();
        let trap = Trap::new(&site);
        let server = Cluster::open(major, &to)
            .without_fsync()
            .option("restore_command", trap.command())
            .create();
        Copy {
            site,
            trap,
            server,
            to,
            _origin: origin,
        }
    }

    /// Archives the history of a timeline that another server took.
    fn put_history(&self, timeline: u32) {
        let name = format!("{timeline:08X}.history");
        let path = self.site.sandbox().join(&name);
        std::fs::write(&path, "1\t0/1000000\tanother server\n").unwrap();
        user::own(&path);
        self.site.archive().arg(&path).succeed();
    }

    /// The server has stopped with this status of restore_command, and has taken no timeline.
    fn stopped(&mut self, seen: usize, status: i32) {
        assert_ne!(self.server.wait_ended(), 0);
        let log = self.server.log().split_off(seen);
        let reason = format!(
            "00000003.history\" from archive: child process exited with exit code {status}"
        );
        assert!(log.contains("FATAL") && log.contains(&reason), "{log}");
        assert!(!log.contains("selected new timeline"), "{log}");
        assert!(self.to.join("recovery.signal").exists(), "{log}");
    }
}

fn f06_a_promotion_takes_no_timeline_that_may_be_taken(major: u32) {
    let mut copy = Copy::new(major);
    let probe = "00000003.history";
    // Another server has timelines 3 and 4, and of 3 the history is lost.
    copy.put_history(4);
    let away = copy
        .trap
        .spring(&mut copy.server, probe, || Away::new(&copy.site));
    copy.stopped(0, 208);
    drop(away);
    let seen = copy.server.log().len();
    copy.server.spawn();
    copy.stopped(seen, 205);
    copy.put_history(3);

    // Everything is there, until the server has left its timeline: an error would open that one again at the next start.
    copy.trap.set(probe);
    copy.server.spawn();
    copy.trap.wait();
    copy.trap.set("00000002.history");
    copy.trap.release();
    copy.trap.wait();
    assert!(!copy.to.join("recovery.signal").exists());
    let away = Away::new(&copy.site);
    let own = copy.to.join("pg_wal/00000002.history");
    let aside = copy.site.sandbox().join("own");
    std::fs::rename(&own, &aside).unwrap();
    copy.trap.release();
    copy.server.wait_log("do not stop the server");
    std::fs::rename(&aside, &own).unwrap();
    copy.server.wait_log("the server has the file in pg_wal");
    copy.server.wait_promoted();
    drop(away);
    let timeline = "select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
    assert_eq!(copy.server.value(timeline), "00000005");
    let history = std::fs::read_to_string(copy.to.join("pg_wal/00000005.history")).unwrap();
    let parents: Vec<&str> = history
        .lines()
        .filter_map(|l| l.split('\t').next())
        .collect();
    assert_eq!(
        parents
            .into_iter()
            .filter(|p| !p.is_empty())
            .collect::<Vec<_>>(),
        ["1", "2"]
    );
    assert_eq!(copy.server.value("select count(*) from t"), "2");
}

per_major!(f06_a_promotion_takes_no_timeline_that_may_be_taken, v13 v19);
