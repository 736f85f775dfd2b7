//! The subjects that a look could not judge. Their conditions go on as they were, as far as anybody knows: a question that fails ends nothing.

use super::condition;
use super::examined;
use crate::config::Settings;
use crate::operate::metrics::Metrics;
use crate::operate::room::Room;
use crate::operate::server_state::ServerState;

/// Conditions of a cluster that need what looks counted.
const COUNTED: [&str; 5] = [
    "archiving/archiver",
    "archiving/conflict",
    "expire/locked",
    "pg_wal/full",
    "replication/lag",
];

/// Conditions of a cluster that repositories tell: each of them may have what another one lacks.
const STORED: [&str; 5] = ["backup", "cluster", "drill", "objectives", "recovery"];

/// The beginnings of the names of conditions that were not judged.
#[derive(Default)]
pub struct Unjudged {
    beginnings: Vec<String>,
    is_examined: bool,
}

impl Unjudged {
    /// The subjects that no answer came for. `is_examined` tells whether the result of an examination is there.
    pub fn of(
        settings: &Settings,
        metrics: &Metrics,
        is_examined: impl FnOnce() -> bool,
    ) -> Unjudged {
        let mut all = Unjudged {
            beginnings: Vec::new(),
            is_examined: is_examined(),
        };
        if metrics.failed.is_some() || metrics.uncounted.is_some() {
            all.add(String::new());
        }
        let unseen = metrics.info.iter().flat_map(|info| &info.unseen);
        unseen.for_each(|name| all.add(format!("{name}/")));
        all.add_servers(settings, metrics);
        all.add_repositories(settings, metrics, &metrics.rooms);
        all
    }

    /// Whether a condition of this name is of one of them.
    pub fn holds(&self, id: &str) -> bool {
        // The look itself writes the files that this is about.
        if is_known(id) || id.starts_with("agent/") {
            return false;
        }
        if examined::is_of_examination(id) {
            return !self.is_examined;
        }
        let mut beginnings = self.beginnings.iter();
        beginnings.any(|beginning| id.starts_with(beginning))
    }

    fn add(&mut self, beginning: String) {
        self.beginnings.push(beginning);
    }

    /// Adds the subjects that servers did not tell, and those that need the counts of looks.
    fn add_servers(&mut self, settings: &Settings, metrics: &Metrics) {
        for cluster in &settings.clusters {
            let name = cluster.name.as_str();
            let mut servers = metrics.info.iter().flat_map(|info| info.servers());
            let server = servers
                .find(|(of, _)| *of == name)
                .map(|(_, server)| server);
            let is_asked = cluster.conninfo.is_some();
            if is_asked && server.is_none_or(|server| server.slots.is_none()) {
                self.add(format!("{name}/slot/"));
            }
            if is_asked && server.is_none_or(|server| server.clock_offset_s.is_none()) {
                self.add(format!("{name}/clock/server"));
            }
            let mut written = metrics.info.iter().flat_map(|info| &info.written);
            // A host that only writes never asks, and would hold the condition for ever.
            let asks = written.all(|one| one.name != name);
            if is_asked && is_lag_open(server, asks) {
                self.add(format!("{name}/replication/"));
            }
            if metrics.tallies.is_none() {
                let counted = COUNTED.iter();
                counted.for_each(|one| self.add(format!("{name}/{one}")));
            }
        }
    }

    /// Adds the subjects that repositories did not tell. A look reads the first one that opens: another one's answer ends nothing that this one told.
    fn add_repositories(&mut self, settings: &Settings, metrics: &Metrics, rooms: &[Room]) {
        if !metrics.away.is_empty() {
            let found = metrics.info.iter().flat_map(|info| &info.clusters);
            let found = found.map(|cluster| cluster.name.as_str());
            let configured = settings.clusters.iter().map(|c| c.name.as_str());
            self.add_stored(configured.chain(found));
        }
        for repository in &settings.repositories {
            let name = repository.name.as_str();
            if metrics.clocks.iter().all(|(of, _)| of != name) {
                self.add(format!("repository/{name}/clock"));
            }
            if rooms.iter().all(|room| room.repository != name) {
                self.add(format!("repository/{name}/room"));
            }
        }
    }

    /// Adds everything that may have been told by a repository that is away now.
    fn add_stored<'a>(&mut self, clusters: impl Iterator<Item = &'a str>) {
        self.add("aux/".to_owned());
        self.add("sets/".to_owned());
        for cluster in clusters {
            let of_cluster = |group: &&str| format!("{cluster}/{group}/");
            self.beginnings.extend(STORED.iter().map(of_cluster));
        }
    }
}

/// Whether nobody knows if a server lags: it did not answer, or is a standby that did not tell a host that asks.
fn is_lag_open(server: Option<&ServerState>, asks: bool) -> bool {
    server.is_none_or(|server| asks && server.is_lagging().is_none())
}

/// Whether a condition is judged also where nothing else can be.
pub fn is_known(id: &str) -> bool {
    condition::is_of_job(id) || condition::is_of_sink(id) || id == "look"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_lag_ends_no_condition() {
        let standby = ServerState::standby;
        assert!(is_lag_open(None, true), "it does not answer");
        assert!(is_lag_open(Some(&standby(None)), true));
        assert!(is_lag_open(Some(&ServerState::default()), true));
        assert!(!is_lag_open(Some(&standby(Some(0.0))), true));
        assert!(!is_lag_open(Some(&ServerState::primary()), true));
        assert!(!is_lag_open(Some(&ServerState::default()), false));
    }

    #[test]
    fn j49_what_repositories_tell_of_a_cluster_is_not_judged_while_one_is_away() {
        let mut unjudged = Unjudged::default();
        unjudged.add_stored(["main"].into_iter());
        for id in [
            "main/recovery/gap",
            "main/backup/overdue",
            "main/objectives/copies",
            "main/drill/stale",
            "aux/files/up/x",
        ] {
            assert!(unjudged.holds(id), "{id}");
        }
        for id in [
            "main/slot/pitr",
            "main/archiving/blocked",
            "repository/a/away",
        ] {
            assert!(!unjudged.holds(id), "{id}");
        }
    }

    #[test]
    fn a_name_belongs_to_the_subject_that_it_begins_with() {
        let unjudged = Unjudged {
            beginnings: vec!["main/".into(), "b/slot/".into(), "b/clock/server".into()],
            is_examined: true,
        };
        for id in ["main/recovery/gap", "b/slot/pitr", "b/clock/server"] {
            assert!(unjudged.holds(id), "{id}");
        }
        for id in [
            "main2/recovery/gap",
            "b/recovery/gap",
            "main/doctor/server/x",
            "look",
        ] {
            assert!(!unjudged.holds(id), "{id}");
        }
        let everything = Unjudged {
            beginnings: vec![String::new()],
            is_examined: false,
        };
        for id in [
            "main/recovery/gap",
            "main/doctor/server/x",
            "doctor",
            "aux/files/up/x",
        ] {
            assert!(everything.holds(id), "{id}");
        }
        for id in ["jobs/a", "alerts/out", "agent/state", "look"] {
            assert!(!everything.holds(id), "{id}");
        }
    }
}
