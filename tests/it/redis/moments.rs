//! Random moments of random histories: at each the restored state is what the live server held. Rows R20 of docs/faults.md.
//!
//! `REDIS_MOMENTS` sets how many there are on each server (`make redis-moments`: 500), `REDIS_MOMENTS_SEED` the first history, and `REDIS_MOMENTS_PROGRESS`
//! names a file in which the histories that passed stand.

use super::load;
use super::receive::{self, Moment};
use super::server::Server;
use super::world::World;
use crate::common::number;
use crate::common::progress::Progress;
use crate::common::random::Random;
use crate::per_server;

/// Moments of a history.
const OF_HISTORY: u64 = 25;
/// Moments of the run that is part of the tests.
const FEW: u64 = 8;

fn r20_every_moment_comes_back(name: &'static str) {
    let count = number("REDIS_MOMENTS").unwrap_or(FEW);
    let first = number("REDIS_MOMENTS_SEED").unwrap_or(20_261_124);
    let progress = Progress::of("REDIS_MOMENTS_PROGRESS");
    for n in 0..count.div_ceil(OF_HISTORY) {
        let seed = first + n;
        let moments = OF_HISTORY.min(count - n * OF_HISTORY);
        let line = format!("{name} {seed} {moments} passed");
        if progress.has(&line) {
            continue;
        }
        println!("redis moments: {name}, REDIS_MOMENTS_SEED={seed}");
        history(name, seed, moments);
        progress.add(&line);
    }
}
per_server!(r20_every_moment_comes_back);

/// One history: bases are taken here and there, and each moment is restored from the one before it.
fn history(name: &'static str, seed: u64, count: u64) {
    let server = Server::start(name, &["--repl-diskless-sync-delay", "0"]);
    let world = World::new(&server);
    receive::configure(&world, &server, "");
    let mut random = Random::new(seed);
    feed(&server, &load::history(&mut random, 500, name));
    let running = receive::receiver(&world, &server);
    let count_before = random.below(500);
    feed(&server, &load::history(&mut random, count_before, name));
    world.backup();
    let mut moments = vec![moment(&server)];
    while (moments.len() as u64) < count {
        let count = 1 + random.below(400);
        feed(&server, &load::history(&mut random, count, name));
        if random.one_in(8) {
            world.backup();
        }
        moments.push(moment(&server));
    }
    receive::wait_received(&server);
    let ended = receive::stop(running);
    assert!(ended.stdout.contains("received up to offset"), "{ended}");
    for (n, moment) in moments.iter().enumerate() {
        let offset = moment.target();
        let options = ["--target-offset", &offset, "--as-replica"];
        let copy = world.restore("copy", &options);
        let restored = Server::on(name, &copy, &[]);
        let content = whole(&restored);
        assert_eq!(
            content, moment.content,
            "{name}, seed {seed}, moment {n} at {offset}"
        );
        drop(restored);
        std::fs::remove_dir_all(copy).unwrap();
    }
}

/// Runs commands on one connection. Some are refused, as they are meant to be; most are not.
fn feed(server: &Server, lines: &str) {
    let run = server.cli(&[]).stdin(lines.as_bytes()).succeed();
    let refusals = ["WRONGTYPE", "ERR", "NOGROUP", "BUSYGROUP", "EXECABORT"];
    let refused = run.stdout.lines().filter(|line| {
        refusals
            .iter()
            .any(|word| line.starts_with(&format!("{word} ")))
    });
    let unknown = run.stdout.lines().find(|l| {
        l.starts_with("ERR unknown") || l.contains("syntax error") || l.contains("wrong number of")
    });
    assert_eq!(unknown, None, "{}", run.stdout);
    assert!(
        refused.count() <= 5 + lines.lines().count() / 3,
        "{}",
        run.stdout
    );
}

/// A moment in which nothing was replicated: meanwhile keys end by themselves, and the server pings.
fn moment(server: &Server) -> Moment {
    loop {
        let before = Moment::offset_of(server);
        let content = whole(server);
        let moment = Moment::of(server);
        if moment.offset == before {
            return Moment { content, ..moment };
        }
    }
}

/// The content, and besides what `DEBUG DIGEST` does not look at: the ends of keys that have one, and functions.
fn whole(server: &Server) -> String {
    let mut text = server.content();
    if server.name == "redis-6" {
        return text;
    }
    let mut lines = String::new();
    for db in [0, 1, 5, 15] {
        lines += &format!("SELECT {db}\n");
        lines.extend((0..60).map(|n| format!("PEXPIRETIME lasting:{n}\n")));
    }
    let ends = server.cli(&[]).stdin(lines.as_bytes()).succeed();
    let code = server.ask(&["FUNCTION", "LIST", "WITHCODE"]);
    let mut code: Vec<&str> = code.lines().collect();
    code.sort_unstable();
    for part in [ends.stdout, code.join("\n")] {
        text += &format!(" {}", blake3::hash(part.as_bytes()));
    }
    text
}
