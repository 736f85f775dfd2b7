//! The servers of a history, their repositories, and what the test remembers of both.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::model::{LifeId, Lives, State};
use super::rows;
use crate::common::random::Random;
use crate::common::{Cluster, PATIENCE, Program, Run, Sandbox, Site, Stop, copy_tree, user};
use crate::ship::spool_of;

/// A segment.
const SEGMENT: u64 = 1 << 20;
/// More servers than this do not run side by side.
pub const SERVERS_MAX: usize = 4;
pub const LIVES_MAX: usize = 4;

/// The role of a server among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Primary,
    /// It follows the server of this number.
    Standby(usize),
}

/// The archiver's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Archived {
    Yes,
    /// Refused with this status, and these words.
    No(i32, String),
}

/// A data directory put aside, and what it held.
pub struct Snapshot {
    data: PathBuf,
    _folder: Sandbox,
    state: State,
}

/// One machine.
pub struct Server {
    pub cluster: Cluster,
    /// Life whose commits it has, or would have as a standby.
    pub life: LifeId,
    pub role: Role,
    /// The server that it followed until it was promoted.
    pub followed: Option<usize>,
    pub snapshot: Option<Snapshot>,
    /// It was stopped for good by the promotion of this one.
    pub successor: Option<usize>,
    _folder: Option<Sandbox>,
}

/// A backup that was called good.
pub struct Backup {
    pub id: String,
    /// State of its server meanwhile.
    pub state: State,
}

/// The steps that were done so far; they are printed when the history fails.
pub struct Tape {
    title: String,
    lines: Vec<String>,
    began: Instant,
}

impl Drop for Tape {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}\n{}", self.title, self.lines.join("\n"));
        }
    }
}

pub struct World {
    pub major: u32,
    pub random: Random,
    pub lives: Lives,
    pub servers: Vec<Server>,
    pub backups: Vec<Backup>,
    pub site: Site,
    /// The second repository, where there is one.
    pub second: Option<PathBuf>,
    /// A fork was given to another life than the one that archived it first.
    pub is_resolved: bool,
    /// WAL of a server stays out of the archive: its archiver is refused, or the server is lost before.
    pub is_unarchived: bool,
    /// A standby may go on behind a primary that was reverted: PostgreSQL joins two lives there where their positions agree.
    pub has_joined: bool,
    /// Retention may run in between.
    pub expires: bool,
    /// States of servers that went on by a name of their own, as they came back from there.
    pub elsewhere: Vec<State>,
    tape: Tape,
}

impl World {
    /// A cluster with a backup and some commits behind it; in one of three, or where it is asked for, a second repository.
    pub fn new(major: u32, title: String, mut random: Random, needs_second: bool) -> World {
        let cluster = Cluster::small(major)
            // WAL that pg_rewind and streaming standbys need.
            .option("wal_keep_size", "256MB")
            .create();
        let site = Site::new(&cluster);
        let with_worker = random.one_in(2);
        let has_second = random.one_in(3) || needs_second;
        let second = has_second.then(|| second_of(&site));
        if with_worker {
            spool_of(&site);
        }
        with_receiver(&site);
        site.attach(&cluster);
        let mut world = World {
            major,
            random,
            lives: Lives::default(),
            servers: Vec::new(),
            backups: Vec::new(),
            tape: Tape {
                title,
                lines: Vec::new(),
                began: Instant::now(),
            },
            second,
            is_resolved: false,
            is_unarchived: false,
            has_joined: false,
            expires: false,
            elsewhere: Vec::new(),
            site,
        };
        world.say(format!(
            "worker {with_worker}, second repository {}",
            world.second.is_some()
        ));
        let life = world.lives.begin(None);
        world.add(cluster, life, Role::Primary, None);
        world.servers[0].cluster.start();
        rows::create(&world.servers[0].cluster);
        world.write(0, 2);
        world.backup(0);
        world
    }

    pub fn say(&mut self, what: impl std::fmt::Display) {
        let seconds = self.tape.began.elapsed().as_secs_f64();
        let line = format!("  {seconds:6.2} s: {what}");
        if std::env::var_os("LIVES_TALK").is_some() {
            eprintln!("{line}");
        }
        self.tape.lines.push(line);
    }

    pub fn add(
        &mut self,
        cluster: Cluster,
        life: LifeId,
        role: Role,
        folder: Option<Sandbox>,
    ) -> usize {
        self.servers.push(Server {
            cluster,
            life,
            role,
            followed: None,
            snapshot: None,
            successor: None,
            _folder: folder,
        });
        self.servers.len() - 1
    }

    /// A server of this site on a data directory that is there.
    pub fn open(&self, data: &Path) -> Cluster {
        Cluster::open(self.major, data)
            .without_fsync()
            .option("wal_keep_size", "256MB")
            .option("archive_mode", "on")
            .create()
    }

    pub fn restore_command(&self) -> String {
        self.site.restore().words("%f %p").shell()
    }

    /// The servers that take commits.
    pub fn primaries(&self) -> Vec<usize> {
        let is_one = |at: &usize| {
            let server = &self.servers[*at];
            server.cluster.is_running() && server.role == Role::Primary
        };
        (0..self.servers.len()).filter(is_one).collect()
    }

    /// The running standbys whose upstream is this one, or any.
    pub fn standbys(&self, of: Option<usize>) -> Vec<usize> {
        let is_one = |at: &usize| {
            let server = &self.servers[*at];
            let follows = match server.role {
                Role::Standby(upstream) => of.is_none_or(|of| of == upstream),
                Role::Primary => false,
            };
            server.cluster.is_running() && follows
        };
        (0..self.servers.len()).filter(is_one).collect()
    }

    pub fn running(&self) -> usize {
        let running = self.servers.iter().filter(|s| s.cluster.is_running());
        running.count()
    }

    /// `pitr` as it runs on the host of a server.
    pub fn pitr_of(&self, at: usize) -> Program {
        let cluster = &self.servers[at].cluster;
        self.site
            .pitr()
            .env("PITR_CLUSTERS_MAIN_CONNINFO", cluster.conninfo("postgres"))
            .env("PITR_CLUSTERS_MAIN_PGDATA", cluster.pgdata())
            .env("PITR_CLUSTERS_MAIN_RECEIVE_JOURNAL", self.journal(at))
    }

    /// Returns where a receiver on the host of a server keeps its WAL.
    fn journal(&self, at: usize) -> PathBuf {
        self.site.sandbox().join(format!("journal-{at}"))
    }

    /// Commits so often, and remembers where each commit ended.
    pub fn write(&mut self, at: usize, count: u32) {
        let life = self.servers[at].life;
        let client = self.servers[at].cluster.client();
        for _ in 0..count {
            client.sql(&rows::commit(self.lives.next(life)));
            let end = client.value("select pg_current_wal_insert_lsn()");
            self.lives.committed(life, lsn(&end));
        }
    }

    /// As much WAL as makes some segments full.
    pub fn fill(&mut self, at: usize) {
        let sql = "select pg_logical_emit_message(true, 'pitr', repeat(md5(g::text), 1000)) from generate_series(1, 40) g";
        self.servers[at].cluster.sql(sql);
    }

    /// Ends the segment, and waits until the archiver has taken it or was refused for good.
    pub fn settle(&mut self, at: usize) -> Archived {
        let server = &self.servers[at];
        let seen = server.cluster.log().len();
        let name = server.cluster.switch_wal();
        let status = server.cluster.pgdata().join("pg_wal/archive_status");
        let ready = status.join(format!("{name}.ready"));
        let end = Instant::now() + 2 * PATIENCE;
        let archived = loop {
            if !ready.exists() {
                break Archived::Yes;
            }
            let log = server.cluster.log().split_off(seen);
            if let Some(refused) = refusal(&log) {
                break refused;
            }
            assert!(
                Instant::now() < end,
                "server {at} neither archives \"{name}\" nor says why\n{log}"
            );
            std::thread::sleep(Duration::from_millis(20));
        };
        self.acknowledge(at);
        archived
    }

    /// Takes down what the archiver has acknowledged of a server's own commits.
    fn acknowledge(&mut self, at: usize) {
        let server = &self.servers[at];
        let status = server.cluster.pgdata().join("pg_wal/archive_status");
        let entries = std::fs::read_dir(status).unwrap().flatten();
        let waiting = entries.filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            start_of(name.strip_suffix(".ready")?)
        });
        let written = lsn(&server.cluster.insert_lsn()) / SEGMENT * SEGMENT;
        let end = waiting.min().unwrap_or(written).min(written);
        let life = server.life;
        self.lives.acknowledge(life, end);
    }

    /// Takes a backup; it may be refused where another life is in the way. Its status.
    pub fn backup(&mut self, at: usize) -> i32 {
        let program = self.pitr_of(at).words("backup --json --quiet");
        let run = program.words("--wal-wait 8s").run();
        let code = run.code();
        match code {
            0 => {
                let id = run.id();
                let state = self.lives.now(self.servers[at].life);
                self.say(format!("backup {id} of server {at}: {state:?}"));
                self.backups.push(Backup { id, state });
                self.lives.backed_up(state.life);
            }
            1 | 8 => self.say(format!(
                "backup of server {at} refused ({code}): {}",
                said(&run)
            )),
            _ => panic!("a backup must complete or be refused\n{run}"),
        }
        code
    }

    /// Stops a server either way; everything that was committed is on its disk.
    pub fn halt(&mut self, at: usize) {
        let how = *self.random.pick(&[Stop::Fast, Stop::Immediate]);
        self.servers[at].cluster.stop(how);
    }

    /// A copy of a stopped server's data directory in a folder of its own.
    pub fn copy(&self, at: usize, name: &str) -> (Sandbox, PathBuf) {
        let folder = Sandbox::new(name);
        let data = folder.join("data");
        copy_tree(self.servers[at].cluster.pgdata(), &data);
        user::own_all(&data);
        (folder, data)
    }

    pub fn take_snapshot(&mut self, at: usize) {
        self.halt(at);
        let (folder, data) = self.copy(at, "snapshot");
        let state = self.lives.now(self.servers[at].life);
        self.servers[at].snapshot = Some(Snapshot {
            data,
            _folder: folder,
            state,
        });
        self.servers[at].cluster.start();
    }

    /// Puts the snapshot in the place of the data directory: a new life begins.
    pub fn revert(&mut self, at: usize) {
        self.halt(at);
        let follows = |server: &Server| matches!(server.role, Role::Standby(of) if of == at);
        self.has_joined |= self.servers.iter().any(follows);
        let server = &mut self.servers[at];
        let snapshot = server.snapshot.take().expect("it has one");
        std::fs::remove_dir_all(server.cluster.pgdata()).unwrap();
        copy_tree(&snapshot.data, server.cluster.pgdata());
        user::own_all(server.cluster.pgdata());
        server.cluster.start();
        server.life = self.lives.begin(Some(snapshot.state));
    }

    /// Returns the state of a server.
    ///
    /// # Panics
    /// When no life ever had it.
    pub fn read(&self, at: usize) -> State {
        let read = rows::read(&self.servers[at].cluster, &self.lives);
        read.unwrap_or_else(|why| panic!("server {at}: {why}\n{}", self.lives.describe()))
    }

    /// A server that has ended its recovery begins a life.
    pub fn begin_life(&mut self, at: usize) {
        let state = self.read(at);
        let life = self.lives.begin(Some(state));
        let server = &mut self.servers[at];
        server.life = life;
        if let Role::Standby(upstream) = std::mem::replace(&mut server.role, Role::Primary) {
            server.followed = Some(upstream);
        }
        let timeline = self.timeline(at);
        self.say(format!(
            "server {at} begins life {life} on timeline {timeline} from {state:?}"
        ));
    }

    pub fn timeline(&self, at: usize) -> u32 {
        let sql = "select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
        let name = self.servers[at].cluster.value(sql);
        u32::from_str_radix(&name, 16).unwrap()
    }

    pub fn json(&self, args: &[&str]) -> (i32, Value) {
        let run = self.site.pitr().args(args).arg("--json").run();
        (run.code(), run.json())
    }

    /// The operator says which timeline is the cluster, after what the command asks for first.
    pub fn decide_for(&mut self, timeline: u64) {
        let number = timeline.to_string();
        let restore = ["timeline", "restore", &number, "--reason", "it is"];
        for _ in 0..4 {
            let run = self.site.pitr().args(restore).arg("--confirm").run();
            if run.is_success() {
                self.say(format!("  timeline {timeline} is the cluster, by decision"));
                return;
            }
            self.abandon_first(&run.expect_code(8));
        }
        panic!("timeline {timeline} is not the cluster by what is asked for first");
    }

    /// Abandons the timeline that a refusal says to abandon first.
    pub fn abandon_first(&mut self, refused: &Run) {
        let named = refused.stderr.split_once("pitr timeline abandon ");
        let Some((_, rest)) = named else {
            panic!("what is refused names no command that helps\n{refused}");
        };
        let timeline: String = rest.chars().take_while(char::is_ascii_digit).collect();
        self.say(format!("  timeline {timeline} is abandoned first"));
        let abandon = ["timeline", "abandon", &timeline, "--reason", "no"];
        let abandon = self.site.pitr().args(abandon).arg("--confirm");
        let run = abandon.run();
        if !run.is_success() {
            // The timeline that may be the cluster descends from it.
            self.abandon_first(&run.expect_code(8));
            abandon.succeed();
        }
    }

    /// A configuration in which a server is the cluster \"own\".
    pub fn own_name(&self, at: usize) -> PathBuf {
        let cluster = &self.servers[at].cluster;
        let config = std::fs::read_to_string(self.site.config()).unwrap();
        let is_of_main = |line: &&str| !line.starts_with("pgdata") && !line.starts_with("conninfo");
        let kept: Vec<&str> = config.lines().filter(is_of_main).collect();
        let section = format!(
            "[clusters.own]\npgdata = \"{}\"\nconninfo = \"{}\"",
            cluster.pgdata().display(),
            cluster.conninfo("postgres")
        );
        let text = kept.join("\n").replace("[clusters.main]", &section);
        let path = self.site.sandbox().join("own.toml");
        std::fs::write(&path, text.replace("clusters.main.", "clusters.own.")).unwrap();
        path
    }

    /// Takes what was received for acknowledged.
    pub fn received(&mut self, at: usize, end: u64) {
        let life = self.servers[at].life;
        self.lives.acknowledge(life, end);
    }
}

/// Why the archiver was refused for good, by the log of its server.
fn refusal(log: &str) -> Option<Archived> {
    let failed = "archive command failed with exit code ";
    let (said, code) = log.rsplit_once(failed)?;
    let code: String = code.chars().take_while(char::is_ascii_digit).collect();
    let code = code.parse().unwrap();
    // Refusals that pass: a lock, a worker that is busy. The words of one may have come before the log was looked at: another one follows.
    let is_told = matches!(code, 20..=23) && said.contains("error A");
    is_told.then(|| Archived::No(code, said.to_owned()))
}

/// The first line of an error.
pub fn said(run: &Run) -> String {
    let text = match serde_json::from_str::<Value>(&run.stdout) {
        Ok(json) => json["message"].to_string(),
        Err(_) => run.stderr.clone(),
    };
    text.lines().next().unwrap_or_default().to_owned()
}

pub fn lsn(text: &str) -> u64 {
    text.parse::<pitr::pg::lsn::Lsn>().unwrap().0
}

/// Returns where the segment of this name begins; `None` for histories and labels.
fn start_of(name: &str) -> Option<u64> {
    let segment = name.get(..24)?;
    let part = |at: usize| u64::from_str_radix(&segment[at..at + 8], 16).ok();
    Some((part(8)? << 32) + part(16)? * SEGMENT)
}

/// Gives a site a second repository, which is required like the first.
fn second_of(site: &Site) -> PathBuf {
    site.add_repository("second", "")
}

fn with_receiver(site: &Site) {
    site.add(&format!(
        "\n[clusters.main.receive]\nslot = \"pitr\"\njournal = \"{}\"\n",
        site.sandbox().join("journal").display()
    ));
}
