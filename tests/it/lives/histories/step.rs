//! The steps that may come next in a history, and how they are done.

use rustix::path::Arg as _;

use super::PARTS;
use super::expire::expire;
use super::world::{Archived, LIVES_MAX, Role, SERVERS_MAX, World, lsn, said};
use crate::common::{Cluster, Sandbox, Stop, wait_until};

/// A kind of step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Write,
    Fill,
    Archive,
    Crash,
    Backup,
    Snapshot,
    Revert,
    Clone,
    Drill,
    Standby,
    StandbyAlways,
    Promote,
    PromoteBeside,
    SecondPromotion,
    Rewind,
    Return,
    Receive,
    Sync,
    Decide,
    Expire,
}

impl Kind {
    pub const ALL: [Kind; 20] = [
        Kind::Write,
        Kind::Fill,
        Kind::Archive,
        Kind::Crash,
        Kind::Backup,
        Kind::Snapshot,
        Kind::Revert,
        Kind::Clone,
        Kind::Drill,
        Kind::Standby,
        Kind::StandbyAlways,
        Kind::Promote,
        Kind::PromoteBeside,
        Kind::SecondPromotion,
        Kind::Rewind,
        Kind::Return,
        Kind::Receive,
        Kind::Sync,
        Kind::Decide,
        Kind::Expire,
    ];

    /// Returns the kind of step that the history of a seed is to have. Only the histories of one part expire: the
    /// others, among them all that were mended, stay as they were before there was this step.
    pub fn theme(seed: u64, expires: bool) -> Kind {
        let at = |number: u64, of: &[Kind]| of[(number % of.len() as u64) as usize];
        let [others @ .., _] = &Kind::ALL;
        match expires {
            true => at(Kind::ALL.len() as u64 - 1 + seed / PARTS, &Kind::ALL),
            false => at(seed, others),
        }
    }

    /// How likely it is beside the others.
    fn weight(self) -> usize {
        match self {
            Kind::Write | Kind::Archive | Kind::Backup => 3,
            Kind::Fill | Kind::Crash | Kind::Sync | Kind::Decide | Kind::Expire => 1,
            _ => 2,
        }
    }

    /// Returns the steps that have to come before it; the chooser takes these first when a history is to have this one.
    pub fn before(self) -> &'static [Kind] {
        match self {
            Kind::Revert => &[Kind::Snapshot, Kind::Write, Kind::Archive],
            Kind::Promote | Kind::PromoteBeside => &[Kind::Standby, Kind::Write],
            Kind::SecondPromotion => &[Kind::Standby, Kind::StandbyAlways, Kind::Write],
            Kind::Rewind => &[Kind::Standby, Kind::Promote, Kind::Write],
            Kind::Return => &[Kind::StandbyAlways, Kind::Promote, Kind::Write],
            Kind::Decide => &[Kind::Drill, Kind::Write, Kind::Archive],
            Kind::Expire => &[Kind::Write, Kind::Archive, Kind::Backup],
            _ => &[Kind::Write],
        }
    }

    fn is_possible(self, world: &World) -> bool {
        let has_room = world.running() < SERVERS_MAX;
        let may_branch = world.lives.count() < LIVES_MAX;
        let has_primary = !world.primaries().is_empty();
        match self {
            Kind::Revert => may_branch && !with_snapshot(world).is_empty(),
            Kind::Clone | Kind::Drill => has_room && may_branch && has_primary,
            Kind::Standby | Kind::StandbyAlways => has_room && has_primary,
            Kind::Promote | Kind::PromoteBeside => may_branch && !world.standbys(None).is_empty(),
            Kind::SecondPromotion => world.lives.count() + 2 <= LIVES_MAX && pair(world).is_some(),
            Kind::Rewind => has_pg_rewind(world.major) && old(world).is_some(),
            Kind::Return => has_room && old(world).is_some(),
            Kind::Sync => world.second.is_some(),
            // Each repository keeps one of its own, and the other steps look at the first one only.
            Kind::Expire => world.expires && world.second.is_none() && world.backups.len() > 1,
            _ => has_primary,
        }
    }

    /// A step that is possible now.
    pub fn choose(world: &mut World) -> Kind {
        let possible = Kind::ALL.into_iter().filter(|kind| kind.is_possible(world));
        let weighed: Vec<Kind> = possible
            .flat_map(|kind| std::iter::repeat_n(kind, kind.weight()))
            .collect();
        *world.random.pick(&weighed)
    }

    /// Does it, if it is possible; `false` when nothing came of it.
    pub fn run(self, world: &mut World) -> bool {
        if !self.is_possible(world) {
            return false;
        }
        world.say(format!("{self:?}"));
        let primaries = world.primaries();
        let at = match primaries.is_empty() {
            true => 0,
            false => *world.random.pick(&primaries),
        };
        match self {
            Kind::Write => write(world, at),
            Kind::Fill => world.fill(at),
            Kind::Archive => archive(world, at),
            Kind::Crash => crash(world, at),
            Kind::Backup => return world.backup(at) == 0,
            Kind::Snapshot => world.take_snapshot(at),
            Kind::Revert => revert(world),
            Kind::Clone => clone(world, at),
            Kind::Drill => return drill(world),
            Kind::Standby => standby(world, at, "on"),
            Kind::StandbyAlways => standby(world, at, "always"),
            Kind::Promote => promote(world, true),
            Kind::PromoteBeside => promote(world, false),
            Kind::SecondPromotion => promote_two(world),
            Kind::Rewind => return rewind(world),
            Kind::Return => old_returns(world),
            Kind::Receive => return receive(world, at),
            Kind::Sync => sync(world),
            Kind::Decide => return decide(world),
            Kind::Expire => return expire(world),
        }
        true
    }
}

fn with_snapshot(world: &World) -> Vec<usize> {
    let mut found = world.primaries();
    found.retain(|at| world.servers[*at].snapshot.is_some());
    found
}

/// Two standbys of one primary.
fn pair(world: &World) -> Option<(usize, usize, usize)> {
    world.primaries().into_iter().find_map(|upstream| {
        let standbys = world.standbys(Some(upstream));
        match standbys[..] {
            [one, other, ..] => Some((upstream, one, other)),
            _ => None,
        }
    })
}

/// A stopped primary whose successor runs.
fn old(world: &World) -> Option<(usize, usize)> {
    world.servers.iter().enumerate().find_map(|(at, server)| {
        let successor = server.successor?;
        let there = &world.servers[successor];
        let is_primary = there.cluster.is_running() && there.role == Role::Primary;
        (is_primary && !server.cluster.is_running()).then_some((at, successor))
    })
}

/// The builds of 14 that the tests have come without it, and it works on its own major alone.
fn has_pg_rewind(major: u32) -> bool {
    major != 14
}

fn write(world: &mut World, at: usize) {
    let count = 1 + world.random.below(3) as u32;
    world.write(at, count);
    world.say(format!(
        "  server {at} has {:?}",
        world.lives.now(world.servers[at].life)
    ));
}

fn archive(world: &mut World, at: usize) {
    let archived = world.settle(at);
    match archived {
        Archived::Yes => world.say(format!("  server {at} has archived")),
        Archived::No(code, _) => {
            world.is_unarchived = true;
            world.say(format!("  server {at} is refused ({code})"));
        }
    }
}

fn crash(world: &mut World, at: usize) {
    world.servers[at].cluster.stop(Stop::Immediate);
    world.servers[at].cluster.start();
}

fn revert(world: &mut World) {
    let all = with_snapshot(world);
    let at = *world.random.pick(&all);
    world.revert(at);
    let life = world.servers[at].life;
    world.say(format!("  server {at} begins life {life}"));
}

/// A copy of a data directory goes on under the same name; the origin may be gone.
fn clone(world: &mut World, at: usize) {
    world.halt(at);
    let (folder, data) = world.copy(at, "clone");
    let cluster = world.open(&data);
    let state = world.lives.now(world.servers[at].life);
    let life = world.lives.begin(Some(state));
    let new = world.add(cluster, life, Role::Primary, Some(folder));
    world.servers[new].cluster.start();
    let moves = world.random.one_in(4);
    if !moves {
        world.servers[at].cluster.start();
    }
    world.say(format!(
        "  server {new} begins life {life}, copied from server {at}{}",
        if moves { ", which stays down" } else { "" }
    ));
}

/// A restored copy is promoted and archives, for its guard was taken away by hand.
fn drill(world: &mut World) -> bool {
    let folder = Sandbox::new("drill");
    let to = folder.join("data");
    let run = world.site.pitr().restore_to(&to).arg("--quiet").run();
    if !run.is_success() {
        assert_eq!(run.code(), 5, "{run}");
        world.say(format!("  no drill: {}", said(&run)));
        return false;
    }
    std::fs::remove_file(to.join("pg_wal/pitr.guard")).unwrap();
    let cluster = world.open(&to);
    let at = world.add(cluster, 0, Role::Primary, Some(folder));
    world.servers[at].cluster.start();
    world.servers[at].cluster.wait_promoted();
    world.begin_life(at);
    true
}

fn standby(world: &mut World, upstream: usize, archive_mode: &str) {
    let mut builder = Cluster::builder(world.major)
        .standby_of(&world.servers[upstream].cluster)
        .without_fsync()
        .option("wal_keep_size", "256MB")
        .option("archive_mode", archive_mode);
    let asks_archive = world.random.one_in(2);
    if asks_archive {
        // By its number, for the archive's latest may be the branch of another life.
        builder = builder
            .option("restore_command", world.restore_command())
            .option("recovery_target_timeline", world.timeline(upstream));
    }
    let life = world.servers[upstream].life;
    let at = world.add(builder.create(), life, Role::Standby(upstream), None);
    world.servers[at].cluster.start();
    world.say(format!(
        "  server {at} follows server {upstream}, archive_mode {archive_mode}, restore_command {asks_archive}"
    ));
}

/// Waits until a standby has what its primary has, where it can get it.
fn catch_up(world: &World, upstream: usize, at: usize) {
    let primary = &world.servers[upstream];
    if !primary.cluster.is_running() || primary.life != world.servers[at].life {
        return;
    }
    let end = primary.cluster.value("select pg_current_wal_flush_lsn()");
    let replayed = format!("select pg_last_wal_replay_lsn() >= '{end}'::pg_lsn");
    let standby = &world.servers[at].cluster;
    let client = standby.client();
    // PostgreSQL asks its primary for the history of each number between the two timelines, also of one that the primary does not come from.
    let cannot = "could not receive timeline history file from the primary server";
    wait_until("the standby has replayed", || {
        client.value(&replayed) == "t" || standby.log().contains(cannot)
    });
}

fn promote(world: &mut World, is_failover: bool) {
    let standbys = world.standbys(None);
    let at = *world.random.pick(&standbys);
    let Role::Standby(upstream) = world.servers[at].role else {
        return;
    };
    if !world.random.one_in(3) {
        catch_up(world, upstream, at);
    }
    if is_failover && world.servers[upstream].cluster.is_running() {
        world.halt(upstream);
        world.is_unarchived |= has_unarchived(&world.servers[upstream].cluster);
        world.servers[upstream].successor = Some(at);
        world.say(format!("  server {upstream} is lost"));
    }
    world.servers[at].cluster.promote();
    world.begin_life(at);
}

/// Whether a segment waits for the archiver.
fn has_unarchived(cluster: &Cluster) -> bool {
    let status = cluster.pgdata().join("pg_wal/archive_status");
    let mut files = std::fs::read_dir(status).unwrap();
    files.any(|f| f.unwrap().path().extension().is_some_and(|e| e == "ready"))
}

/// Two standbys of one primary are promoted in the same segment, the second because the first was not what was wanted.
fn promote_two(world: &mut World) {
    let Some((upstream, one, other)) = pair(world) else {
        return;
    };
    for at in [one, other] {
        catch_up(world, upstream, at);
    }
    world.halt(upstream);
    world.servers[upstream].successor = Some(other);
    for at in [one, other] {
        world.servers[at].cluster.promote();
        world.begin_life(at);
        if at == one && world.random.one_in(2) {
            world.write(one, 1);
        }
    }
}

/// The old primary becomes a standby of its successor.
fn rewind(world: &mut World) -> bool {
    let Some((at, successor)) = old(world) else {
        return false;
    };
    let source = world.servers[successor].cluster.conninfo("postgres");
    // It compares the control files: the new timeline has to stand there.
    world.servers[successor].cluster.sql("checkpoint");
    let program = world.servers[at].cluster.tool("pg_rewind");
    let target = world.servers[at].cluster.pgdata().to_owned();
    let run = program
        .arg(format!("--target-pgdata={}", target.as_str().unwrap()))
        .arg(format!("--source-server={source}"))
        .run();
    world.servers[at].successor = None;
    if !run.is_success() {
        world.say(format!("  pg_rewind of server {at} failed: {}", run.stderr));
        return false;
    }
    let cluster = &world.servers[at].cluster;
    let line = format!("\nprimary_conninfo = '{source}'\n");
    let auto = target.join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&auto).unwrap() + &line;
    std::fs::write(&auto, text).unwrap();
    cluster.touch("standby.signal");
    world.servers[at].life = world.servers[successor].life;
    world.servers[at].role = Role::Standby(successor);
    world.servers[at].snapshot = None;
    world.servers[at].cluster.start();
    world.say(format!(
        "  server {at} was rewound and follows server {successor}"
    ));
    true
}

/// The old primary is started as if nothing had happened.
fn old_returns(world: &mut World) {
    let Some((at, _)) = old(world) else { return };
    world.servers[at].successor = None;
    world.servers[at].cluster.start();
    world.say(format!("  server {at} is back"));
}

/// A receiver gets everything that a server has flushed, or says why it does not.
fn receive(world: &mut World, at: usize) -> bool {
    // Behind a switch nothing is sent before the server writes again.
    let end = "select pg_logical_emit_message(true, 'pitr', 'received'); select pg_current_wal_flush_lsn()";
    let rows = world.servers[at].cluster.sql(end);
    let end = rows[1][0].clone().unwrap();
    let program = world.pitr_of(at);
    let run = program
        .args(["receive", "--quiet", "--create-slot", "--until-lsn", &end])
        .run();
    match run.code() {
        0 => {
            world.received(at, lsn(&end));
            world.say(format!("  received of server {at} up to {end}"));
            true
        }
        8 => {
            world.say(format!("  receive of server {at} refused: {}", said(&run)));
            false
        }
        // Only increments of the other server lie there, which the first of its own meets.
        10 if run.stderr.contains("does not take WAL") => {
            world.is_unarchived = true;
            world.say(format!("  receive of server {at} refused: {}", said(&run)));
            false
        }
        1 if run.stderr.contains("timeline_reused") => {
            world.say(format!("  receive of server {at} refused: {}", said(&run)));
            false
        }
        // A restored copy lacks segments of before its promotion, and PostgreSQL looks for them under the old timeline's name.
        1 if run.stderr.contains("slot_lost") => {
            world.say("  receive: the server has removed what comes next");
            false
        }
        _ => panic!("a receiver receives or refuses\n{run}"),
    }
}

fn sync(world: &mut World) {
    let run = world.site.pitr().words("repo sync --json").run();
    assert!(matches!(run.code(), 0 | 10), "{run}");
    world.say(format!("  synced ({})", run.code()));
}

/// The operator says which timeline is the cluster, where there is a question.
fn decide(world: &mut World) -> bool {
    let (_, list) = world.json(&["timeline", "list"]);
    let timelines = list["timelines"].as_array().cloned().unwrap_or_default();
    let candidates: Vec<u64> = timelines
        .iter()
        .filter(|t| t["state"] == "candidate" || t["state"] == "cluster")
        .filter_map(|t| t["timeline"].as_u64())
        .collect();
    if candidates.is_empty() || timelines.len() < 2 {
        return false;
    }
    let chosen = *world.random.pick(&candidates);
    world.decide_for(chosen);
    true
}
