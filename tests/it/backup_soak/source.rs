//! Incrementals, each by one source of what changed since the prior.

use std::time::Duration;

use super::check;
use super::home::{Hidden, READER, WRITER};
use super::world::World;
use crate::common::{PATIENCE, Program, Run, wait_until};
use crate::incremental::with_index;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The block index of archived segments.
    Index,
    /// Segments whose index was not recorded are decoded.
    Decoded,
    /// Segments that are not archived are decoded from the server's pg_wal.
    Unarchived,
    /// The hash of every page, since the first segment of the prior is gone.
    Hashes,
    /// The parts that a host keeps which cannot read its backups back.
    Kept,
    /// Every page as the server sends it.
    Replication,
}

/// A backup that takes long enough for much to change.
pub fn backup(world: &mut World, host: &str, kind: &[&str]) -> Program {
    let rate = *world.random.pick(&["8MiB", "16MiB", "1GiB"]);
    let common = ["backup", "--json", "--wal-wait", "10m", "--max-rate", rate];
    let program = world.home.on(host).args(common).args(kind);
    program.timeout(20 * PATIENCE)
}

/// Takes an incremental under load, and proves that it used the source.
pub fn take(world: &mut World, source: Source) {
    let method = match source {
        Source::Replication => "stream",
        _ => "local",
    };
    let host = match source {
        Source::Kept => WRITER,
        _ => READER,
    };
    let kind = ["--incremental", "--method", method];
    let program = backup(world, host, &kind);
    let run = match source {
        Source::Hashes => {
            let hidden = world.home.hide(&first_of_prior(world));
            let run = under_storm(world, &program);
            world.home.show(&hidden);
            run
        }
        Source::Decoded => {
            let segments = some_segments(world);
            let whole: Vec<Hidden> = segments.iter().map(|key| world.home.hide(key)).collect();
            for (key, whole) in segments.iter().zip(&whole) {
                world.home.show(whole);
                let path = world.home.directory().join(key);
                with_index(&path, |index| index.blocks = None);
            }
            let run = under_storm(world, &program);
            whole.iter().for_each(|whole| world.home.show(whole));
            run
        }
        Source::Unarchived => unarchived(world, &program),
        _ => under_storm(world, &program),
    };
    let run = run.success();
    let kind = run.json()["kind"].as_str().unwrap().to_owned();
    println!(
        "backup soak {}: {} by {source:?}",
        world.major,
        run.json()["id"]
    );
    // Its prior may be one of the reader's, of which it kept nothing.
    let may_be_full = source == Source::Kept && run.stderr.contains("a full backup is taken");
    assert!(kind == "incremental" || may_be_full, "{run}");
    let is_compared = run.stderr.contains("every page is read");
    match source {
        Source::Hashes => assert!(is_compared, "{run}"),
        // It may lack a piece of the WAL that another host archived.
        Source::Kept => {}
        _ => assert!(!is_compared, "{run}"),
    }
}

/// The storm creates tablespaces, and a local backup refuses one that comes while it begins. It drops those in place, and a directory that goes
/// while the server walks it ends BASE_BACKUP, as it would end pg_basebackup.
fn again_if_refused(program: &Program, run: Run) -> Run {
    let of_server = "could not open directory \\\"./pg_tblspc/";
    let is_refused = ["was created while the backup began", of_server]
        .iter()
        .any(|text| run.stdout.contains(text));
    match is_refused {
        true => program.run(),
        false => run,
    }
}

pub fn under_storm(world: &mut World, program: &Program) -> Run {
    let storm = world.storm();
    let run = program.run();
    let run = again_if_refused(program, run);
    storm.end();
    run
}

/// The name of the segment that holds a position.
fn segment(lsn: u64) -> String {
    let number = lsn >> 20;
    format!("00000001{:08X}{:08X}", number >> 12, number & 0xFFF)
}

/// The object of the segment in which the newest backup begins. Its own WAL proves a prior, and the server's is asked for what follows alone.
fn first_of_prior(world: &World) -> String {
    let all = check::backups(world);
    let newest = all.iter().max_by_key(|b| b.stop).expect("a backup");
    let mut keys = world.home.objects(&segment(newest.start));
    keys.retain(|key| key.ends_with(&segment(newest.start)));
    keys.swap_remove(0)
}

/// Archived segments behind the newest backup, without the newest two: the next one continues these.
fn some_segments(world: &mut World) -> Vec<String> {
    let stops = check::backups(world).into_iter().map(|b| b.stop);
    let last = segment(stops.max().expect("a backup"));
    loop {
        let mut keys = world.home.objects("/wal/00000001/");
        keys.retain(|key| {
            let own = key.rsplit('/').next().unwrap();
            own.len() == 24 && own > last.as_str()
        });
        keys.sort();
        if keys.len() > 3 {
            keys.truncate(keys.len() - 2);
            return keys;
        }
        world.storm_for(Duration::from_millis(300));
        world.cluster.archive_now();
    }
}

/// Nothing is archived until all pages of the backup are stored.
fn unarchived(world: &mut World, program: &Program) -> Run {
    world.cluster.set("archive_command", "false");
    world.storm_for(Duration::from_millis(400));
    let layers = |world: &World| world.home.objects("/layers/").len();
    let before = layers(world);
    let storm = world.storm();
    let mut running = program.spawn();
    wait_until("the layers are written", || {
        running.is_done() || layers(world) > before
    });
    world.cluster.sql("alter system reset archive_command");
    world.cluster.reload();
    let run = running.wait();
    storm.end();
    again_if_refused(program, run)
}
