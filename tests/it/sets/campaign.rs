//! An application writes the same counter to every member; recoveries to marks under load, with a kill in each phase. A few rounds here, many with
//! `PITR_TEST_SET_ROUNDS` (`make sets`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use super::shop::{Counters, Customer, Shop};
use crate::common::random::Random;
use crate::common::{PATIENCE, Run};

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

/// A mark that is made while the application writes: the counters between which each member must come back.
struct Marked {
    id: String,
    /// Every member has at least this.
    least: u64,
    /// Database and cache have no more than this.
    most: u64,
}

fn mark_under_load(shop: &Shop, from: u64) -> Marked {
    let (stop, acknowledged, begun) = (
        AtomicBool::new(false),
        AtomicU64::new(from),
        AtomicU64::new(from),
    );
    shop.wait_online();
    let customer = shop.customer();
    let marked = std::thread::scope(|scope| {
        let writer = scope.spawn(|| load(&customer, from, &stop, &acknowledged, &begun));
        crate::common::wait_until(PATIENCE, "the load has begun", || {
            acknowledged.load(Ordering::SeqCst) > from + 2
        });
        let least = acknowledged.load(Ordering::SeqCst);
        let json = shop.json(&["mark", "shop", "--with-backups"]);
        let most = begun.load(Ordering::SeqCst);
        stop.store(true, Ordering::SeqCst);
        writer.join().expect("the load");
        Marked {
            id: json["id"].as_str().unwrap().to_owned(),
            least,
            most,
        }
    });
    shop.settle(&marked.id);
    marked
}

impl Marked {
    fn check(&self, found: Counters) {
        let in_reach = |n: u64| (self.least..=self.most).contains(&n);
        assert!(
            in_reach(found.rows),
            "{found:?} {} {}",
            self.least,
            self.most
        );
        assert!(
            in_reach(found.key),
            "{found:?} {} {}",
            self.least,
            self.most
        );
        // Files are at the mark or later: no row leads to a file that is not there.
        assert!(found.file >= self.least, "{found:?} {}", self.least);
    }
}

/// A warning of files that changed while they were read is none here.
fn ends_well(run: &Run) -> bool {
    run.is_success() || run.stdout.contains("run ") && run.code() == 6
}

/// The fault points of a recovery of this shop, in their order.
fn points() -> Vec<String> {
    let steps = 0..15;
    let of = |n: u32| ["begun", "worked", "done"].map(|what| format!("recover-{what}-{n}"));
    let mut points = vec!["recover-recorded".to_owned()];
    points.extend(steps.flat_map(of));
    points
}

#[test]
fn r40_recoveries_to_marks_keep_their_promise_whatever_kills_them() {
    let mut random = Random::new(20_261_125);
    let mut shop = Shop::open(17);
    let points = points();
    for round in 0..rounds() {
        let from = shop.counters().rows.max(shop.counters().key);
        let marked = mark_under_load(&shop, from);
        shop.write_counter(marked.most + 50);
        shop.redis(&["FLUSHALL"]);
        shop.redis(&["SET", "counter", "7"]);
        let wrecked = shop.counters();
        let full = [
            "recover",
            "full",
            "--set",
            "shop",
            "--mark",
            &marked.id,
            "--confirm",
        ];
        // Each round dies at some points one after the other, and goes on; the first of them in order, then by chance.
        let count = points.len();
        let first = (usize::try_from(round).unwrap() * 7) % count;
        let mut fired = 0u64;
        let mut is_complete = false;
        for kill in 0..4 {
            let at = match kill {
                0 => first,
                _ => random.below(count),
            };
            let point = &points[at];
            let run = shop.pitr(&full).env("PITR_FAULT", point).run();
            fired += u64::from(run.stderr.contains(&format!("fault point \"{point}\"")));
            is_complete = ends_well(&run);
            if is_complete {
                break;
            }
        }
        assert!(fired > 0, "no fault fired");
        if !is_complete {
            // One that is killed while a step is under way.
            let running = shop.pitr(&full).spawn();
            std::thread::sleep(Duration::from_millis(random.below(3000) as u64));
            running.signal(Signal::KILL);
            let run = running.wait();
            if !ends_well(&run) {
                let run = shop.pitr(&full).run();
                assert!(ends_well(&run), "{run}");
            }
        }
        marked.check(shop.counters());
        // Back, with kills, too.
        let back = ["recover", "rollback", "--confirm"];
        let mut is_back = false;
        for _ in 0..2 {
            let undone = [
                "recover-back",
                "recover-undone-5",
                "recover-undone-6",
                "recover-undone-7",
            ];
            let point = undone[random.below(4)];
            let run = shop.pitr(&back).env("PITR_FAULT", point).run();
            is_back = ends_well(&run);
            if is_back {
                break;
            }
            assert!(run.stderr.contains("fault point"), "{run}");
        }
        if !is_back {
            let run = shop.pitr(&back).run();
            assert!(ends_well(&run), "{run}");
        }
        assert_eq!(shop.counters(), wrecked, "round {round}");
    }
    shop.stop_receiving();
}
