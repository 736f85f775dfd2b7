//! Fetching ahead: `pitr-restore` hands over what a worker has fetched, and sees to it that one is at work.
//!
//! Only for the server that recovers here: a person, a script or `pg_rewind` gets everything from the repository itself, and starts nothing.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::delegate;
use super::detach;
use super::outside::ASKER;
use super::{AS_STORED, Arguments, restore};
use crate::archive::datadir::DataDirectory;
use crate::archive::own::{self, RECOVERY_TARGET};
use crate::archive::prefetched::{self, Prefetched, Purpose, Taken};
use crate::config::{self, Environment, Settings};
use crate::error::{Error, Result};
use crate::pg::segment::{SegmentName, WalFileName};
use crate::process;

mod fetcher;
mod place;
pub mod worker;

/// The option that makes `pitr-restore` the worker, and what `pitr serve` calls it; not for people.
pub const SWITCH: &str = "prefetch";
/// For how long a segment that is on its way may stand still.
const STALL: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(1);

/// A segment that the server which recovers here asks for.
pub struct Prefetch {
    name: SegmentName,
    target: PathBuf,
    directory: DataDirectory,
    prefetched: Prefetched,
    size: crate::pg::segment::SegmentSize,
    cluster: String,
    settings: Settings,
}

/// Whether this server asks: it has started this process, or somebody runs the command in its place.
fn asks(server: i32, environment: &Environment) -> bool {
    environment
        .get(ASKER)
        .is_some_and(|asker| *asker == *server.to_string())
        || process::is_ancestor(server)
}

impl Prefetch {
    /// `None` for everything but a segment for the server that recovers here, or where nothing is to be fetched ahead.
    pub fn of(arguments: &Arguments, environment: &Environment) -> Option<Prefetch> {
        let [name, target] = arguments.files.as_slice() else {
            return None;
        };
        // Segments that are fetched ahead are of the life that the archive follows.
        if arguments.switches.iter().any(|s| s == AS_STORED) {
            return None;
        }
        let target = Path::new(target);
        let directory = DataDirectory::of_wal_file(target);
        let name = match name.to_str()?.parse().ok()? {
            WalFileName::Segment(name) if target.file_name()? == RECOVERY_TARGET => name,
            // The server looks for timelines when its recovery begins and when it ends.
            WalFileName::History(_) => {
                prefetched::sweep_leftovers(&directory);
                return None;
            }
            _ => return None,
        };
        let (server, _) = directory.server()?;
        if !recovers(&directory) || !asks(server, environment) {
            return None;
        }
        let settings = super::settings(arguments, environment).ok()?;
        let cluster = cluster_of(&settings)?;
        if cluster.prefetch_segments == 0 {
            prefetched::sweep(&directory);
            return None;
        }
        let cluster = cluster.name.to_string();
        let purpose = Purpose::of(&directory, cluster.clone(), &settings.repositories)?;
        Some(Prefetch {
            name,
            target: target.to_owned(),
            size: purpose.size,
            prefetched: Prefetched::new(&directory, purpose),
            directory,
            cluster,
            settings,
        })
    }

    /// Hands the segment over, if it is there or comes; else it is to be fetched.
    pub fn take(&self, warn: fn(&str)) -> bool {
        // A segment that the server has from elsewhere may be of another life: only a fetch compares the next one with it.
        let before = self.before();
        let mut seen = None;
        let mut moved = Instant::now();
        let mut said = Instant::now();
        loop {
            match self.prefetched.take((self.name, before), &self.target) {
                // One that is of another server is fetched again, which says so.
                Taken::HandedOver => {
                    return own::take_back_other(&self.target, self.name, None).is_none();
                }
                Taken::Nothing => return false,
                Taken::Coming(bytes) if seen != Some(bytes) => {
                    seen = Some(bytes);
                    moved = Instant::now();
                }
                Taken::Coming(_) if moved.elapsed() >= STALL => return false,
                Taken::Coming(bytes) if said.elapsed() >= restore::progress_interval() => {
                    said = Instant::now();
                    warn(&restore::still_fetching(&self.name.to_string(), bytes));
                }
                Taken::Coming(_) => {}
            }
            std::thread::sleep(TICK);
        }
    }

    /// The server has the segment: the worker goes on from there. If there is no worker, and recovery goes from segment
    /// to segment, one is started. A worker that cannot be started changes nothing for recovery.
    pub fn delivered(&self, arguments: &Arguments, environment: &Environment) {
        if self.prefetched.tell(self.name)
            || self.before().is_none()
            || self.directory.is_promoted()
        {
            return;
        }
        let _ = self.start(arguments, environment);
    }

    /// The segment before this one, where the server has it: by itself a segment may be all that is wanted.
    fn before(&self) -> Option<SegmentName> {
        let name = self.name.before(self.name.timeline, self.size)?;
        let is_there = self.directory.wal().join(name.to_string()).exists();
        is_there.then_some(name)
    }

    fn start(&self, arguments: &Arguments, environment: &Environment) -> Result<()> {
        let failed = |e| Error::from_io("start a worker", e);
        let (program, mut words): (PathBuf, Vec<OsString>) =
            match delegate::is_needed(&self.settings) {
                true => (
                    delegate::beside()?,
                    ["serve", SWITCH, "--"].map(OsString::from).to_vec(),
                ),
                false => (
                    std::env::current_exe().map_err(failed)?,
                    vec![format!("--{SWITCH}").into()],
                ),
            };
        let mut option = |name: &str, value: OsString| words.extend([OsString::from(name), value]);
        // It has another working directory.
        if let Some(path) = &self.settings.path {
            option("--config", path.into());
        }
        option("--cluster", OsString::from(&self.cluster));
        if let Some(repository) = &arguments.flags.repository {
            option("--repository", OsString::from(repository));
        }
        words.push(OsString::from(self.name.to_string()));
        words.push(environment.absolute(&self.target).into());
        let nothing = std::fs::File::open("/dev/null").map_err(failed)?;
        detach::start(&program, &words, nothing).map_err(failed)
    }
}

/// Whether a server that is started here is in archive recovery, or a standby.
fn recovers(directory: &DataDirectory) -> bool {
    directory.has("recovery.signal") || directory.has("standby.signal")
}

/// The cluster, where its name is known without a look into a repository.
fn cluster_of(settings: &Settings) -> Option<config::Cluster> {
    settings.cluster_if_named().ok().flatten()
}
