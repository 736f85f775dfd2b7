//! The conditions that must hold after each history.

use std::time::Instant;

use serde_json::Value;

use super::model::{LifeId, State};
use super::rows;
use super::world::{Archived, World, said};
use crate::common::{Cluster, PATIENCE, Program, Run, Sandbox, Stop, pitr, pitr_archive};

/// A server whose archiver is refused, and its words.
struct Blocked {
    server: usize,
    words: String,
}

pub fn check(world: &mut World) {
    world.say("check");
    let blocked = settle(world);
    world.is_unarchived |= !blocked.is_empty();
    holds(world);
    if blocked.is_empty() {
        return;
    }
    // One of them: what is given to the next one leaves the life of the one before, which no option leads to then.
    let one = world.random.below(blocked.len());
    has_a_way_out(world, &blocked[one]);
    world.say("check again");
    settle(world);
    holds(world);
}

/// Checks that the stored content is whole, and nothing of it is lost.
fn holds(world: &mut World) {
    agree(world);
    let backups: Vec<(String, State)> = world
        .backups
        .iter()
        .map(|b| (b.id.clone(), b.state))
        .collect();
    for (id, state) in backups {
        backup_restores(world, &id, state);
    }
    let found = all_ends(world);
    nothing_safe_is_lost(world, found);
}

/// Returns the restored states of all timelines, and of servers that went on by a name of their own.
pub fn all_ends(world: &mut World) -> Vec<State> {
    let mut found = ends(world, &[]);
    found.extend(world.elsewhere.clone());
    if world.is_resolved {
        found.extend(ends(world, &["--as-stored"]));
    }
    found
}

/// Every server that runs archives what it has, or says why not.
fn settle(world: &mut World) -> Vec<Blocked> {
    let mut blocked = Vec::new();
    for server in world.primaries() {
        if let Archived::No(code, words) = world.settle(server) {
            world.say(format!("server {server} is refused ({code})"));
            blocked.push(Blocked { server, words });
        }
    }
    blocked
}

/// Nobody stays blocked without a command that helps.
fn has_a_way_out(world: &mut World, blocked: &Blocked) {
    let server = blocked.server;
    let mut words = blocked.words.clone();
    let is_reused = words.contains("A123");
    if is_reused {
        match takes_a_higher_number(world, blocked) {
            Archived::Yes => return backs_up(world, server),
            Archived::No(_, more) => words = more,
        }
    }
    if words.contains("A123") {
        return goes_on_by_its_own_name(world, server, &words);
    }
    assert!(
        words.contains("pitr wal conflicts"),
        "server {server} is not told what helps\n{words}"
    );
    let Some(mut refused) = refused_copy(world, server) else {
        panic!("of server {server} no copy is kept that \"pitr wal resolve\" could name\n{words}");
    };
    // Each repository refuses in its turn, and attempts that had begun before get their refusal after the decision. A copy of this server, too, may
    // have what was kept, and go on before it: then the next segment is decided.
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let Refused { of, name, copy } = &refused;
        if !resolves(world, name, copy) {
            world.say(format!("server {server} parted earlier"));
            return;
        }
        world.is_resolved = true;
        world.say(format!("server {server} was given {name}"));
        match world.settle(server) {
            Archived::Yes if is_reused => return backs_up(world, server),
            Archived::Yes if *of != server => return brings_what_it_followed(world, server),
            Archived::Yes => return,
            // The fork was on the timeline before the one whose number is taken.
            Archived::No(_, words) if words.contains("A123") => {
                return goes_on_by_its_own_name(world, server, &words);
            }
            Archived::No(_, more) => words = more,
        }
        if let Some(later) = refused_copy(world, server) {
            refused = later;
        }
    }
    let name = refused.name;
    panic!("server {server} is blocked still, although it was given {name}:\n{words}");
}

/// A server whose timeline's number is taken is promoted once more, with the archive at hand.
///
/// It is refused still where it filled segments of the timeline that is taken: they wait before what comes behind.
fn takes_a_higher_number(world: &mut World, blocked: &Blocked) -> Archived {
    let server = blocked.server;
    let words = "restart this one in recovery so that it takes a higher number";
    assert!(blocked.words.contains(words), "{}", blocked.words);
    let restore = world.restore_command();
    let was = world.timeline(server);
    let had = world.read(server);
    let cluster = &mut world.servers[server].cluster;
    cluster.stop(Stop::Fast);
    cluster.append_config("restore_command", &restore);
    cluster.append_config("recovery_target_timeline", "current");
    cluster.touch("standby.signal");
    cluster.start();
    cluster.promote();
    let now = world.timeline(server);
    assert!(now > was, "{now} after {was}");
    assert_eq!(world.read(server), had, "it keeps what it had");
    let archived = world.settle(server);
    world.say(format!(
        "server {server} takes timeline {now}: {archived:?}"
    ));
    archived
}

/// As the refusal says: nothing leads through the number that is taken, so what the server has is safe with a backup.
fn backs_up(world: &mut World, server: usize) {
    if world.backup(server) != 0 {
        let timeline = world.timeline(server);
        world.decide_for(timeline.into());
        assert_eq!(world.backup(server), 0, "server {server} is backed up");
    }
}

/// A server whose WAL belongs to no timeline of the archive goes on as a cluster of its own, with all that it has.
fn goes_on_by_its_own_name(world: &mut World, server: usize, words: &str) {
    assert!(words.contains("pitr adopt --as NAME"), "{words}");
    let own = world.own_name(server);
    world.pitr_of(server).words("adopt --as own").succeed();
    let cluster = &mut world.servers[server].cluster;
    let command = pitr_archive().arg("--config").arg(&own).arg("%p");
    cluster.append_config("archive_command", &command.shell());
    cluster.restart();
    let archived = world.settle(server);
    assert_eq!(archived, Archived::Yes, "by a name of its own");
    let program = || pitr().arg("--config").arg(&own);
    program().words("backup --quiet").succeed();
    program().words("verify").succeed();
    let found = restored_by(world, &program(), &[]);
    let found = found.unwrap_or_else(|run| panic!("what goes on by its own name\n{run}"));
    let had = world.lives.now(world.servers[server].life);
    assert_eq!(world.lives.rows(found), world.lives.rows(had));
    world.say(format!("server {server} goes on by its own name"));
    world.elsewhere.push(found);
}

/// Gives a fork to a copy, after what the command asks for first. `false` where the server has to go on under a name of its own.
fn resolves(world: &mut World, name: &str, copy: &str) -> bool {
    // Each timeline that descends from another one is abandoned before it.
    for _ in 0..8 {
        let args = ["wal", "resolve", name, "--keep", copy, "--confirm"];
        let run = world.site.pitr().args(args).run();
        if run.is_success() {
            return true;
        }
        let run = run.expect_code(8);
        if run.stderr.contains("pitr init --cluster") {
            return false;
        }
        world.abandon_first(&run);
    }
    panic!("{name} is not resolved by what is asked for first");
}

/// A server was promoted that followed one whose copy was refused. It brings the WAL itself that the other one has not
/// archived, and a backup stands for WAL that it does not have.
fn brings_what_it_followed(world: &mut World, server: usize) {
    let wal = world.servers[server].cluster.pgdata().join("pg_wal");
    let backfill = world.site.pitr().words("wal backfill --from");
    // Behind a segment that nobody has any more, nothing but its position tells whose the next one is.
    let run = backfill.arg(wal).run();
    assert!(matches!(run.code(), 0 | 1), "{run}");
    let (_, gaps) = world.json(&["wal", "gaps"]);
    if gaps["gaps"].as_array().is_some_and(|gaps| !gaps.is_empty()) {
        backs_up(world, server);
    }
}

/// A copy that was refused.
struct Refused {
    /// The server that wrote it.
    of: usize,
    name: String,
    copy: String,
}

/// The first segment of which a server's own content was refused, else that of a server which it followed.
fn refused_copy(world: &World, server: usize) -> Option<Refused> {
    let (_, shown) = world.json(&["wal", "conflicts"]);
    let conflicts = shown["conflicts"].as_array()?;
    let followed = |at: &usize| world.servers[*at].followed;
    let mut all = std::iter::successors(Some(server), followed);
    all.find_map(|of| first_of(world, of, conflicts))
}

/// The first of the refused copies that lies in the server's pg_wal, too.
fn first_of(world: &World, of: usize, conflicts: &[Value]) -> Option<Refused> {
    let wal = world.servers[of].cluster.pgdata().join("pg_wal");
    let own = conflicts.iter().filter_map(|c| {
        let name = c["name"].as_str()?.to_owned();
        if c["is_followed"] == true || name.len() != 24 {
            return None;
        }
        let hash = blake3::hash(&std::fs::read(wal.join(&name)).ok()?);
        let is_own = c["hash"].as_str()? == hash.to_hex().as_str();
        is_own.then_some((name, c["copy"].as_str()?.to_owned()))
    });
    let (name, copy) = own.min()?;
    Some(Refused { of, name, copy })
}

/// The commands tell one story.
fn agree(world: &mut World) {
    let run = world.site.pitr().words("verify --json").run();
    // Once a fork was given away, what belongs to the life that was left is a finding, for it is not reached by what is followed.
    let is_left = world.is_resolved && run.code() == 4;
    // A standby archives what its primary cannot, or could not before it was lost: behind a gap, or behind what another server has there.
    let is_gap = world.is_unarchived && only_gaps(&run);
    assert!(
        run.code() == 0 || is_left || is_gap,
        "nothing is damaged\n{run}"
    );
    let verify = run.json()["clusters"][0].clone();
    let (_, info) = world.json(&["info"]);
    let info = &info["clusters"][0];
    let (_, plan) = world.json(&["plan"]);
    let (_, list) = world.json(&["timeline", "list"]);
    let doctor = world.site.pitr().words("doctor --json").run();
    let mut taken: Vec<&str> = world.backups.iter().map(|b| b.id.as_str()).collect();
    taken.sort_unstable();
    let ids = |list: &Value| -> Vec<String> {
        let all = list.as_array().cloned().unwrap_or_default();
        let ids = all.iter().filter_map(|b| b["id"].as_str());
        let mut ids: Vec<String> = ids.map(str::to_owned).collect();
        ids.sort_unstable();
        ids
    };
    // A backup of a life that is not followed is a warning, and no backup that is good or bad.
    let warned = verify["warnings"].to_string();
    let followed: Vec<&str> = taken
        .iter()
        .copied()
        .filter(|id| !warned.contains(&format!("\\\"{id}\\\" belongs to a life")))
        .collect();
    assert!(followed.len() == taken.len() || world.is_resolved, "{run}");
    assert_eq!(ids(&verify["backups"]), followed, "{run}");
    assert_eq!(ids(&info["backups"]), taken, "{info:#}");
    let restorable = verify["backups"].as_array().unwrap();
    let restorable = restorable.iter().all(|b| b["restorable"] == true);
    assert!(restorable || is_left, "{run}");
    let timelines = list["timelines"].as_array().unwrap();
    let cluster = timelines.iter().find(|t| t["state"] == "cluster");
    let is_undecided = timelines.iter().any(|t| t["state"] == "candidate");
    assert_eq!(
        is_undecided,
        plan["reason"] == "undecided",
        "{list:#}\n{plan:#}"
    );
    let says = info["problems"].to_string();
    assert_eq!(
        is_undecided,
        says.contains("undecided"),
        "{list:#}\n{info:#}"
    );
    assert_eq!(
        is_undecided,
        doctor.stdout.contains("undecided"),
        "{doctor}"
    );
    if let Some(cluster) = cluster {
        assert_eq!(cluster["timeline"], info["timeline"], "{list:#}\n{info:#}");
        let planned = &plan["target_timeline"];
        assert!(
            planned.is_null() || *planned == cluster["timeline"],
            "{plan:#}"
        );
    }
}

/// Whether verify found nothing but that WAL is missing, or that another server's stands in its place.
fn only_gaps(run: &Run) -> bool {
    let found = run.json()["clusters"][0]["findings"].clone();
    let found = found.as_array().cloned().unwrap_or_default();
    let is_break = |f: &Value| {
        let detail = f["detail"].as_str().unwrap_or_default();
        f["kind"] == "wal" && detail.starts_with("another server wrote it: it does not continue")
    };
    run.code() == 4 && found.iter().all(|f| f["kind"] == "gap" || is_break(f))
}

/// The numbers of the timelines that the repository has.
pub fn timelines(world: &World) -> Vec<u64> {
    let (_, list) = world.json(&["timeline", "list"]);
    let all = list["timelines"].as_array().cloned().unwrap_or_default();
    all.iter().filter_map(|t| t["timeline"].as_u64()).collect()
}

/// A backup that completed is restored to what its server held.
fn backup_restores(world: &mut World, id: &str, state: State) {
    let immediate = ["--target-immediate", "--target-timeline", "current"];
    let args = [&["--backup", id][..], &immediate].concat();
    let mut found = restored(world, &args);
    if found.is_err() && world.is_resolved {
        // It belongs to a life that is not followed any more.
        found = restored(world, &[&args[..], &["--as-stored"]].concat());
    }
    let found = found.unwrap_or_else(|run| panic!("a good backup is not restored\n{run}"));
    // A server that holds two lives shows now one, now the other.
    if world.has_joined {
        return;
    }
    assert_eq!(
        world.lives.rows(found),
        world.lives.rows(state),
        "backup {id} is of another life\n{}",
        world.lives.describe()
    );
}

/// Returns the state that every timeline leads to.
fn ends(world: &mut World, more: &[&str]) -> Vec<State> {
    let all = timelines(world);
    all.into_iter()
        .filter_map(|timeline| end_of(world, timeline, more))
        .collect()
}

/// Returns the state that a timeline leads to, be it to a hole; `None` if the timeline is not reached.
fn end_of(world: &mut World, timeline: u64, more: &[&str]) -> Option<State> {
    let number = timeline.to_string();
    let asked = [&["--target-timeline", &number][..], more].concat();
    let found = restored(world, &asked).or_else(|run| {
        world.say(format!(
            "timeline {timeline}{more:?} is not restored: {}",
            said(&run)
        ));
        nearest_before(world, &asked).ok_or(())
    });
    let found = found.ok()?;
    world.say(format!("timeline {timeline}{more:?} leads to {found:?}"));
    Some(found)
}

/// Returns the state restored at the moment that the plan names if the target is out of reach.
fn nearest_before(world: &World, asked: &[&str]) -> Option<State> {
    let (_, plan) = world.json(&[&["plan"], asked].concat());
    let at = plan["nearest_before"]["lsn"].as_str()?;
    let found = restored(world, &[asked, &["--target-lsn", at]].concat());
    Some(found.unwrap_or_else(|run| panic!("{at} is the nearest moment, and not restored\n{run}")))
}

/// Checks that the acknowledged commits of a life come back: with a timeline, or from a backup. Such a backup leads to
/// a hole after which a newer one was taken.
fn nothing_safe_is_lost(world: &mut World, mut found: Vec<State>) {
    if missing(world, &found).is_some() {
        let ids: Vec<String> = world.backups.iter().map(|b| b.id.clone()).collect();
        for id in &ids {
            found.extend(ends(world, &["--backup", id]));
            if world.is_resolved {
                found.extend(ends(world, &["--backup", id, "--as-stored"]));
            }
        }
    }
    if let Some((life, safe)) = missing(world, &found) {
        panic!(
            "of what was acknowledged of life {life} ({safe:?}) something is lost: {found:?}\n{}",
            world.lives.describe()
        );
    }
}

/// A life, and what was acknowledged of it, which is in nothing that was found.
fn missing(world: &World, found: &[State]) -> Option<(LifeId, State)> {
    let lives = &world.lives;
    let mut safe = (0..lives.count()).filter_map(|life| Some((life, lives.acknowledged(life)?)));
    safe.find(|(_, safe)| !found.iter().any(|found| lives.is_in(*safe, *found)))
}

/// Restores, starts, and reads; what `pitr restore` said when it refused.
fn restored(world: &World, args: &[&str]) -> Result<State, Run> {
    restored_by(world, &world.site.pitr(), args)
}

/// As [`restored`], by a program with its configuration.
fn restored_by(world: &World, pitr: &Program, args: &[&str]) -> Result<State, Run> {
    let folder = Sandbox::new("restored");
    let to = folder.join("data");
    let run = pitr.clone().restore_to(&to).arg("--quiet").args(args).run();
    if run.code() == 5 {
        return Err(run);
    }
    let run = run.success();
    let copy = Cluster::open(world.major, &to).without_fsync().promoted();
    match rows::read(&copy, &world.lives) {
        Ok(state) => Ok(state),
        // The server of that timeline held it itself.
        Err(_) if world.has_joined && world.is_resolved && args[0] == "--target-timeline" => {
            Err(run)
        }
        Err(why) => panic!(
            "{args:?} is restored to what no life had: {why}\n{}\n{run}",
            world.lives.describe()
        ),
    }
}
