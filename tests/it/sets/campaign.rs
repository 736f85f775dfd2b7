//! An application writes the same counter to every member; recoveries to marks and to times under load, with a kill in each phase, and back with all
//! contents as they were. A few rounds here, many with `PITR_TEST_SET_ROUNDS` (`make sets`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use super::shop::{Counters, Customer, Shop};
use crate::common::Run;
use crate::common::random::Random;

/// Rounds without the variable: few enough for every change.
const ROUNDS: u64 = 2;

fn rounds() -> u64 {
    let wanted = std::env::var("PITR_TEST_SET_ROUNDS").ok();
    wanted.map_or(ROUNDS, |text| {
        text.parse().expect("PITR_TEST_SET_ROUNDS is a number")
    })
}

/// Writes counters until it is told to stop; what was written whole is in `acknowledged`.
fn load(
    customer: &Customer,
    from: u64,
    stop: &AtomicBool,
    acknowledged: &AtomicU64,
    begun: &AtomicU64,
) {
    let mut n = from;
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        begun.store(n, Ordering::SeqCst);
        customer.write_counter(n);
        acknowledged.store(n, Ordering::SeqCst);
    }
}

/// A moment while the application writes: the counters between which each member must come back.
struct Moment {
    /// The options that name it.
    target: [String; 2],
    /// Every member has at least this.
    least: u64,
    /// Database and cache have no more than this.
    most: u64,
}

/// The kind of a moment.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Mark,
    Time,
}

/// How far apart what was written surely before a time is from what was written surely behind it: members have clocks of their own.
const APART: Duration = Duration::from_secs(1);

fn moment_under_load(shop: &Shop, kind: Kind, from: u64) -> Moment {
    let (stop, acknowledged, begun) = (
        AtomicBool::new(false),
        AtomicU64::new(from),
        AtomicU64::new(from),
    );
    shop.wait_online();
    let customer = shop.customer();
    let moment = std::thread::scope(|scope| {
        let writer = scope.spawn(|| load(&customer, from, &stop, &acknowledged, &begun));
        crate::common::wait_until("the load has begun", || {
            acknowledged.load(Ordering::SeqCst) > from + 2
        });
        let least = acknowledged.load(Ordering::SeqCst);
        let target = match kind {
            Kind::Mark => {
                let json = shop.json(&["mark", "shop", "--with-backups"]);
                ["--mark".to_owned(), json["id"].as_str().unwrap().to_owned()]
            }
            Kind::Time => {
                std::thread::sleep(APART);
                let time = shop.now();
                std::thread::sleep(APART);
                ["--target-time".to_owned(), time]
            }
        };
        let most = begun.load(Ordering::SeqCst);
        if kind == Kind::Time {
            // Files are of the first backup behind the time.
            shop.pitr(&["files", "backup", "uploads"]).run();
            shop.pitr(&["config", "backup", "host"]).succeed();
        }
        stop.store(true, Ordering::SeqCst);
        writer.join().expect("the load");
        Moment {
            target,
            least,
            most,
        }
    });
    match kind {
        Kind::Mark => shop.settle(&moment.target[1]),
        Kind::Time => {
            // A slow disk may have kept the load from any commit behind the time: without one the archive does not reach it.
            shop.write_counter(moment.most + 1);
            shop.cluster.archive_now();
            shop.redis(&["SET", "behind", "x"]);
            crate::common::wait_until("the log reaches the time", || {
                let plan = ["redis", "plan", "shop", "--target-time", &moment.target[1]];
                shop.pitr(&plan).run().is_success()
            });
        }
    }
    moment
}

impl Moment {
    fn check(&self, found: Counters, has_files: bool) {
        let (least, most) = (self.least, self.most);
        let in_reach = |n: u64| (least..=most).contains(&n);
        assert!(in_reach(found.rows), "{found:?} {least} {most}");
        assert!(in_reach(found.key), "{found:?} {least} {most}");
        // Files are at the mark or later: no row leads to a file that is not there.
        assert!(!has_files || found.file >= least, "{found:?} {least}");
    }
}

/// A warning of files that changed while they were read is none here.
fn ends_well(run: &Run) -> bool {
    run.is_success() || run.stdout.contains("run ") && run.code() == 6
}

/// The fault points of a recovery of this shop, in their order.
fn points(steps: u32) -> Vec<String> {
    let of = |n: u32| ["begun", "worked", "done"].map(|what| format!("recover-{what}-{n}"));
    let mut points = vec!["recover-recorded".to_owned()];
    points.extend((0..steps).flat_map(of));
    points.extend(["restored", "opened", "recovered"].map(|what| format!("aside-{what}")));
    points.push("replace-recorded".to_owned());
    points
}

/// Recovers with kills one after the other, the first of them in order, then by chance.
fn recover(shop: &Shop, full: &[&str], (points, first): (&[String], usize), random: &mut Random) {
    let mut fired = 0u64;
    for kill in 0..4 {
        let point = match kill {
            0 => &points[first],
            _ => &points[random.below(points.len())],
        };
        let run = shop.pitr(full).env("PITR_FAULT", point).run();
        let is_hit = run.stderr.contains(&format!("fault point \"{point}\""));
        fired += u64::from(is_hit);
        if ends_well(&run) {
            assert!(fired > 0, "no fault fired");
            return;
        }
    }
    assert!(fired > 0, "no fault fired");
    // One that is killed while a step is under way.
    let running = shop.pitr(full).spawn();
    std::thread::sleep(Duration::from_millis(random.below(6000) as u64));
    running.signal(Signal::KILL);
    if !ends_well(&running.wait()) {
        let run = shop.pitr(full).run();
        assert!(ends_well(&run), "{run}");
    }
}

/// Takes the newest run back, with kills, too.
fn back(shop: &Shop, random: &mut Random) {
    let back = ["recover", "rollback", "--confirm"];
    for _ in 0..2 {
        let undone = [5, 6, 7].map(|n| format!("recover-undone-{n}"));
        let point = match random.below(4) {
            3 => "recover-back",
            n => undone[n].as_str(),
        };
        let run = shop.pitr(&back).env("PITR_FAULT", point).run();
        if ends_well(&run) {
            return;
        }
        assert!(run.stderr.contains("fault point"), "{run}");
    }
    let run = shop.pitr(&back).run();
    assert!(ends_well(&run), "{run}");
}

fn campaign(kind: Kind, seed: u64) {
    let mut random = Random::new(seed);
    let mut shop = Shop::open(17);
    // The promise of a mark is tested so often without the uploads, which keep it from the exactest level.
    let all = match kind {
        Kind::Mark => rounds() * 3 / 2,
        Kind::Time => rounds(),
    };
    for round in 0..all {
        let from = shop.counters().rows.max(shop.counters().key);
        let moment = moment_under_load(&shop, kind, from);
        shop.write_counter(moment.most + 50);
        shop.redis(&["FLUSHALL"]);
        shop.redis(&["SET", "counter", "7"]);
        shop.redis(&["RPUSH", "list", &round.to_string(), "b"]);
        let wrecked = shop.contents();
        let has_files = round % 3 == 0;
        let (extent, steps, level) = match (has_files, kind) {
            (true, Kind::Mark) => ("full", 16, 2),
            (false, Kind::Mark) => ("database", 14, 3),
            (true, Kind::Time) => ("full", 16, 1),
            (false, Kind::Time) => ("database", 14, 1),
        };
        let [option, value] = moment.target.each_ref().map(String::as_str);
        let full = ["recover", extent, "--set", "shop", option, value];
        let shown = shop.json(&[&full[..], &["--dry-run"]].concat());
        assert_eq!(shown["plan"]["level"], level, "{shown:#}");
        assert_eq!(shown["steps"].as_array().unwrap().len(), steps as usize);
        let full = [&full[..], &["--confirm"]].concat();
        let points = points(steps);
        let first = usize::try_from(round).unwrap() * 7 % points.len();
        recover(&shop, &full, (&points, first), &mut random);
        moment.check(shop.counters(), has_files);
        back(&shop, &mut random);
        assert_eq!(shop.contents(), wrecked, "round {round}");
        shop.clear_aside();
    }
    shop.stop_receiving();
}

#[test]
fn r40_recoveries_to_marks_keep_their_promise_whatever_kills_them() {
    campaign(Kind::Mark, 20_261_125);
}

#[test]
fn r84_recoveries_to_times_keep_their_promise_whatever_kills_them() {
    campaign(Kind::Time, 20_261_128);
}
