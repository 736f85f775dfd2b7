//! `pitr redis receive`: every moment of a server comes back.

use rustix::process::Signal;

use super::load;
use super::server::Server;
use super::world::World;
use crate::common::random::Random;
use crate::common::{PATIENCE, Run, Running, wait_until};
use crate::per_server;

/// The lines of `[redis.cache]` with a receiver.
pub fn configure(world: &World, server: &Server, more: &str) {
    world.configure(&format!(
        "address = \"{}\"\nreceive.journal = \"{}\"\n{more}",
        server.address(),
        world.sandbox.join("journal").display()
    ));
}

/// Starts a receiver, and waits until the server counts it.
pub fn receiver(world: &World, server: &Server) -> Running {
    let running = world.redis(&["receive", "cache"]).spawn();
    wait_until(PATIENCE, "the receiver is online", || {
        server
            .ask(&["INFO", "replication"])
            .contains("state=online")
    });
    running
}

/// Ends a receiver in order.
pub fn stop(running: Running) -> Run {
    running.signal(Signal::TERM);
    running.wait().success()
}

/// A moment of a server.
pub struct Moment {
    pub offset: u64,
    pub content: String,
}

impl Moment {
    pub fn of(server: &Server) -> Moment {
        let content = server.content();
        let offset = server.info("master_repl_offset").parse().unwrap();
        Moment { offset, content }
    }
}

/// At random moments of a random history the restored state is that of the live server.
fn r20_every_moment_comes_back(name: &'static str) {
    let server = Server::start(name, &["--repl-diskless-sync-delay", "0"]);
    server.ask(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
    let world = World::new(&server);
    configure(&world, &server, "");
    let mut random = Random::new(20_261_124);
    server.feed(&load::commands(&mut random, 500));
    let running = receiver(&world, &server);
    server.feed(&load::commands(&mut random, 500));
    world.backup();
    let mut moments = vec![Moment::of(&server)];
    for _ in 0..8 {
        let count = 1 + random.below(400);
        server.feed(&load::commands(&mut random, count));
        moments.push(Moment::of(&server));
    }
    let ended = stop(running);
    assert!(ended.stdout.contains("received up to offset"), "{ended}");
    for (n, moment) in moments.iter().enumerate() {
        let offset = moment.offset.to_string();
        let options = ["--target-offset", &offset, "--as-replica"];
        let copy = world.restore(&format!("copy{n}"), &options);
        let content = Server::on(name, &copy, &[]).content();
        assert_eq!(content, moment.content, "moment {n} at {offset}");
    }
}
per_server!(r20_every_moment_comes_back);
