//! The additions of the longer runs, as their seed decides: `archive_command` into the same repository, and a standby
//! that takes over.

use pitr::pg::timeline::{History, TimelineId};

use super::load::Load;
use super::{Campaign, received, say};
use crate::common::proxy::Proxy;
use crate::common::random::Random;
use crate::common::reception::SLOT;
use crate::common::{Builder, Cluster, Site, Stop};

/// The additions of a run. The short one has none.
#[derive(Default)]
pub struct Extras {
    archives: bool,
    fails_over: bool,
    on_disk: bool,
    standby: Option<(Cluster, Proxy)>,
    /// The primary that was lost, and where its timeline was left.
    left: Option<(Cluster, u64)>,
}

impl std::fmt::Display for Extras {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (archives, fails_over) = (self.archives, self.fails_over);
        write!(
            f,
            "archive_command: {archives}, a standby takes over: {fails_over}"
        )
    }
}

impl Extras {
    /// All WAL of a run is kept: that of the longest has no room in memory.
    pub fn draw(random: &mut Random, on_disk: bool) -> Extras {
        Extras {
            on_disk,
            archives: random.one_in(2),
            fails_over: random.one_in(2),
            ..Extras::default()
        }
    }

    pub fn prepare(&self, builder: Builder) -> Builder {
        match self.archives {
            true => builder.config("archive_mode", "on"),
            false => builder,
        }
    }

    /// Lets the cluster archive, and gives it a standby that the receiver's list of hosts names.
    pub fn set_up(&mut self, cluster: &Cluster, site: &Site, proxy: &Proxy) {
        if self.archives {
            cluster.set("archive_command", &site.archive().arg("%p").shell());
        }
        if !self.fails_over {
            return;
        }
        let mut builder = Cluster::builder(cluster.major())
            .standby_of(cluster)
            .slot("standby")
            .without_fsync();
        if self.on_disk {
            builder = builder.on_disk();
        }
        let standby = builder.start();
        standby.sql(&format!(
            "select pg_create_physical_replication_slot('{SLOT}', true)"
        ));
        // It waits for the receiver from its first commit on.
        standby.set("synchronous_standby_names", SLOT);
        let other = Proxy::to(standby.port());
        let both = format!(
            "host=127.0.0.1,127.0.0.1 port={},{} user=postgres sslmode=disable target_session_attrs=primary application_name={SLOT}",
            proxy.port(),
            other.port()
        );
        let one = format!("{} application_name={SLOT}", proxy.conninfo());
        site.edit(&one, &both);
        self.standby = Some((standby, other));
    }

    /// For whom commits wait.
    pub fn waited_for(&self) -> &'static str {
        match self.standby {
            Some(_) => "FIRST 2 (pitr, walreceiver)",
            None => SLOT,
        }
    }

    /// The timeline at the end.
    pub fn timeline(&self) -> u32 {
        1 + u32::from(self.left.is_some())
    }

    /// The received WAL of the timeline that was left, against that of the primary that was lost.
    pub fn compare(&self, site: &Site) {
        assert_eq!(self.left.is_some(), self.fails_over, "nobody took over");
        if let Some((old, switch_lsn)) = &self.left {
            received::compare(site, old, 1, *switch_lsn);
        }
    }

    /// Both ways into the repository brought the same bytes.
    pub fn check_archiving(&self, site: &Site, cluster: &Cluster) {
        let files = site.files();
        let conflict = files.iter().find(|file| file.contains("/conflicts/"));
        assert_eq!(conflict, None);
        if !self.archives {
            return;
        }
        let status = cluster.pgdata().join("pg_wal/archive_status");
        let done = std::fs::read_dir(status).unwrap().flatten();
        let done = done.filter(|entry| entry.path().extension().is_some_and(|e| e == "done"));
        let count = done.count();
        assert!(count > 0, "archive_command stored nothing");
        println!("soak: {count} files were archived beside the receiver");
    }
}

/// The primary is lost for good, and its standby takes over. WAL that was acknowledged is on both, and the receiver
/// follows by its list of hosts.
pub fn fail_over(campaign: &mut Campaign, load: &Load) {
    let Some((standby, proxy)) = campaign.extras.standby.take() else {
        return;
    };
    let mut old = std::mem::replace(&mut campaign.cluster, standby);
    old.stop(Stop::Immediate);
    campaign.proxy = proxy;
    campaign.cluster.promote();
    let history = campaign.cluster.pgdata().join("pg_wal/00000002.history");
    let second = TimelineId::new(2).unwrap();
    let history = History::parse(second, &std::fs::read(history).unwrap()).unwrap();
    let switch_lsn = history.switch_point(TimelineId::FIRST).unwrap();
    campaign.extras.left = Some((old, switch_lsn.0));
    load.redirect(&campaign.cluster);
    campaign.wait_for_commits(load);
    say(&format!("the standby has taken over at {switch_lsn}"));
}
