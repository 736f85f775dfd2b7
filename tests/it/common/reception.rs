//! The things that a receiver needs beside a cluster: a slot, a journal, a configuration that names them, and a proxy
//! between.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::cluster::{Builder, Cluster};
use super::program::{Program, Running};
use super::proxy::Proxy;
use super::site::Site;
use super::wait_until;

/// The slot, and the receiver's application_name.
pub const SLOT: &str = "pitr";

/// Reads an LSN as PostgreSQL writes it.
pub fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("an LSN");
    let half = |digits| u64::from_str_radix(digits, 16).expect("an LSN");
    half(high) << 32 | half(low)
}

/// A running cluster without archive_command, whose WAL `pitr receive` gets through a proxy.
pub struct Reception {
    pub cluster: Cluster,
    pub site: Site,
    pub proxy: Proxy,
}

impl Reception {
    /// Starts a cluster of 1 MiB segments that syncs nothing itself.
    pub fn new(major: u32) -> Reception {
        Reception::of(Cluster::small(major).config("wal_sender_timeout", "10s"))
    }

    /// Starts the described cluster.
    pub fn of(builder: Builder) -> Reception {
        let cluster = builder.start();
        let site = Site::new(&cluster);
        let proxy = Proxy::to(cluster.port());
        let journal = site.sandbox().join("journal");
        configure(&site, &proxy.conninfo(), &journal);
        Reception {
            cluster,
            site,
            proxy,
        }
    }

    /// `pitr receive`.
    pub fn receive(&self) -> Program {
        self.site.pitr().arg("receive")
    }

    /// Starts a receiver and waits until it streams.
    pub fn start(&self, arguments: &[&str]) -> Running {
        let mut running = self.receive().args(arguments).spawn();
        self.wait_streaming(&mut running);
        running
    }

    /// Waits until the server streams to it, and has heard from it: what the server sends may not have come yet.
    pub fn wait_streaming(&self, running: &mut Running) {
        let client = self.cluster.client();
        running.until("the receiver streams", || {
            let sql = format!(
                "select count(*) from pg_stat_replication where state = 'streaming' and reply_time is not null and application_name = '{SLOT}'"
            );
            client.value(&sql) == "1"
        });
    }

    /// Lets commits wait for the receiver, which streams.
    pub fn synchronous(&self) {
        make_synchronous(&self.cluster);
    }

    /// Waits until the repository holds what the server has flushed by now.
    pub fn wait_shipped(&self, running: &mut Running) {
        let end = lsn(&self.cluster.value("select pg_current_wal_flush_lsn()"));
        let journal = self.journal();
        running.until("the repository holds everything", || {
            archived(&journal).is_some_and(|at| at >= end)
        });
    }

    /// Returns the configured journal.
    pub fn journal(&self) -> PathBuf {
        self.site.sandbox().join("journal")
    }
}

/// Lets commits wait for the receiver, which streams. They do when this returns: sessions ask a flag that the checkpointer sets once it gets
/// to read the configuration, however long after the reload. So a commit is seen to wait, for a standby that there is not.
pub fn make_synchronous(cluster: &Cluster) {
    let set = |name: &str| {
        cluster.set("synchronous_standby_names", name);
    };
    set("nobody");
    let client = cluster.client();
    let over = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&over);
    let commits = std::thread::spawn(move || {
        while !seen.load(Ordering::SeqCst) {
            client.sql("select pg_logical_emit_message(true, 'pitr', 'does this wait?')");
        }
    });
    wait_until("a commit waits", || {
        let waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
        assert!(!commits.is_finished(), "the commits ended");
        cluster.value(waiting) != "0"
    });
    over.store(true, Ordering::SeqCst);
    set(SLOT);
    commits.join().expect("the commit returns");
}

/// Writes the receiver's part of the site's configuration, and lets pitr connect by `conninfo`.
pub fn configure(site: &Site, conninfo: &str, journal: &Path) {
    site.connect_by(&format!("{conninfo} application_name={SLOT}"));
    site.add(&format!(
        "\n[clusters.main.receive]\nslot = \"{SLOT}\"\njournal = \"{}\"\n",
        journal.display()
    ));
}

/// Returns the position archived in the first repository, by the receiver's status.
pub fn archived(journal: &Path) -> Option<u64> {
    let status = status(journal)?;
    let position = status.pointer("/repositories/0/archived_lsn")?;
    Some(lsn(position.as_str()?))
}

/// The receiver's status file, where there is one.
pub fn status(journal: &Path) -> Option<serde_json::Value> {
    let folder = std::fs::read_dir(journal).ok()?.flatten().next()?;
    let text = std::fs::read(folder.path().join("status.json")).ok()?;
    serde_json::from_slice(&text).ok()
}
