//! The choice among repositories, by the thousand: random histories, of which each repository got another part.

use super::choice::{
    Offer, Place, choose, distance, falling_short, giving, is_settled, leads, may_lead_farther,
    tells_of_timelines,
};
use super::model::{Random, World};
use super::recovery::{Outcome, Plan};
use super::target::{RecoveryTarget, TargetTimeline};
use super::tests::{plan_with, random_target, random_world};
use crate::wal::inventory::Inventory;

/// A repository that was away now and then: it lacks segments, history files and backups, or has backups damaged.
fn part_of(world: &World, r: &mut Random) -> World {
    let mut part = world.clone();
    let rarely = 2 + r.below(30);
    part.archived.retain(|_| !r.one_in(rarely));
    part.files.retain(|_| !r.one_in(8));
    part.backups.retain(|_| !r.one_in(5));
    for backup in &mut part.backups {
        if r.one_in(5) {
            backup.damage = Some("found by verify".into());
        }
    }
    for name in part.archived.clone() {
        if r.one_in(40) {
            part.bad_body.insert(name);
        }
    }
    part
}

/// Repositories, what each holds, and its plan; none where it does not answer.
struct Scene {
    target: RecoveryTarget,
    inventories: Vec<Inventory>,
    plans: Vec<Option<Plan>>,
}

impl Scene {
    fn new(r: &mut Random) -> Scene {
        let world = random_world(r);
        let target = random_target(r, &world);
        let count = 1 + r.below(4);
        let parts: Vec<World> = (0..count).map(|_| part_of(&world, r)).collect();
        let plan = |part: &World| (!r.one_in(6)).then(|| plan_with(part, &target));
        Scene {
            plans: parts.iter().map(plan).collect(),
            inventories: parts.iter().map(World::inventory).collect(),
            target,
        }
    }

    fn offers(&self) -> Vec<Offer<'_>> {
        let plans = self.plans.iter().enumerate();
        plans
            .map(|(place, plan)| Offer {
                place,
                plan: plan.as_ref(),
            })
            .collect()
    }

    fn answers(&self) -> impl Iterator<Item = &Plan> {
        self.plans.iter().flatten()
    }
}

/// Runs a check on scenes by the thousand; a seed that fails is printed.
fn on_scenes(check: impl Fn(&Scene, &mut Random) -> bool + std::panic::RefUnwindSafe) -> usize {
    let first = std::env::var("PITR_SEED").ok().and_then(|s| s.parse().ok());
    let seeds: Vec<u64> = match first {
        Some(seed) => vec![seed],
        None => (1..=2500).collect(),
    };
    let run = |seed: u64| {
        let mut r = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let scene = Scene::new(&mut r);
        check(&scene, &mut r)
    };
    let told = |seed| {
        let result = std::panic::catch_unwind(|| run(seed));
        result.unwrap_or_else(|_| panic!("failed with PITR_SEED={seed}"))
    };
    seeds.into_iter().filter(|seed| told(*seed)).count()
}

#[test]
fn the_chosen_repository_leads_to_the_target_if_any_does_and_farthest() {
    let told = on_scenes(|scene, _| {
        let offers = scene.offers();
        let Some(chosen) = choose(&offers) else {
            assert_eq!(scene.answers().count(), 0, "an answer is always taken");
            return false;
        };
        let plan = offers[chosen]
            .plan
            .expect("a repository that gave no answer never wins");
        assert_eq!(leads(plan), scene.answers().any(leads));
        let at_target = |p: &Plan| leads(p) && p.outcome == Outcome::StopsAtTarget;
        if scene.target.timeline == TargetTimeline::Latest && leads(plan) {
            let latest = scene
                .answers()
                .filter(|p| leads(p))
                .map(|p| p.target_timeline);
            assert_eq!(
                plan.target_timeline,
                latest.max().unwrap(),
                "the latest timeline"
            );
        } else if leads(plan) {
            // On the timeline that is asked for, the very target comes before an end of the WAL.
            let mut same = scene
                .answers()
                .filter(|p| p.target_timeline == plan.target_timeline);
            assert_eq!(at_target(plan), same.any(at_target));
        }
        for (n, offer) in offers.iter().enumerate() {
            let Some(other) = offer.plan else { continue };
            assert!(distance(other) <= distance(plan), "{n} leads farther");
            assert!(
                n >= chosen || distance(other) < distance(plan),
                "{n} comes first"
            );
            let is_short = falling_short(&offers, plan).contains(&n);
            assert_eq!(is_short, distance(other) < distance(plan));
        }
        leads(plan) && offers.len() > 1
    });
    assert!(told > 500 || std::env::var("PITR_SEED").is_ok(), "{told}");
}

#[test]
fn the_order_of_the_configuration_decides_only_between_equal_ones() {
    let told = on_scenes(|scene, r| {
        let offers = scene.offers();
        let Some(chosen) = choose(&offers) else {
            return false;
        };
        let farthest = distance(offers[chosen].plan.unwrap());
        let mut shuffled = offers.clone();
        for n in (1..shuffled.len()).rev() {
            shuffled.swap(n, usize::try_from(r.below(n as u64 + 1)).unwrap());
        }
        let other = choose(&shuffled).unwrap();
        assert_eq!(distance(shuffled[other].plan.unwrap()), farthest);
        // Whoever else falls silent changes nothing.
        let mut silent = offers.clone();
        let n = usize::try_from(r.below(offers.len() as u64)).unwrap();
        silent[n].plan = None;
        match choose(&silent) {
            Some(again) if n == chosen => {
                assert!(distance(silent[again].plan.unwrap()) <= farthest);
            }
            Some(again) => assert_eq!(again, chosen),
            None => assert_eq!(scene.answers().count(), 1),
        }
        offers.len() > 1 && n != chosen
    });
    assert!(told > 500 || std::env::var("PITR_SEED").is_ok(), "{told}");
}

#[test]
fn no_repository_is_passed_over_that_would_lead_farther() {
    let told = on_scenes(|scene, _| {
        let Some(Some(first)) = scene.plans.first() else {
            return false;
        };
        let mut is_farther = false;
        for (other, plan) in scene.inventories.iter().zip(&scene.plans).skip(1) {
            let Some(plan) = plan.as_ref().filter(|p| distance(p) > distance(first)) else {
                continue;
            };
            is_farther = true;
            // The backup's own timeline is as good as any other: nobody asks for the latest.
            if scene.target.timeline == TargetTimeline::Current && is_settled(first) {
                continue;
            }
            assert!(!is_settled(first), "{first:#?}\n{plan:#?}");
            let own = &scene.inventories[0];
            assert!(
                may_lead_farther(first, own, other) || tells_of_timelines(own, other),
                "{first:#?}\n{plan:#?}"
            );
        }
        is_farther
    });
    assert!(told > 200 || std::env::var("PITR_SEED").is_ok(), "{told}");
}

#[test]
fn the_backup_is_given_by_the_first_repository_that_has_it_undamaged() {
    let told = on_scenes(|scene, _| {
        let offers = scene.offers();
        let chosen = choose(&offers).and_then(|n| Some((n, offers[n].plan?)));
        let Some((at, plan)) = chosen.filter(|(_, plan)| leads(plan)) else {
            return false;
        };
        let places: Vec<Place<'_>> = scene
            .inventories
            .iter()
            .map(|inventory| Place {
                name: "r",
                inventory,
            })
            .collect();
        let id = &plan.backup.as_ref().unwrap().id;
        let copy = |n: usize| scene.inventories[n].backups.iter().find(|b| b.id == *id);
        let given = giving(plan, at, &places).expect("the plan's own repository has it");
        let is_good = |n: usize| copy(n).is_some_and(|b| b.damage.is_none());
        let first_good = (0..places.len()).find(|n| is_good(*n));
        assert!(copy(given).is_some());
        assert_eq!(first_good.is_some(), is_good(given));
        if let Some(first) = first_good {
            assert_eq!(given, first);
        }
        given != at
    });
    assert!(told > 50 || std::env::var("PITR_SEED").is_ok(), "{told}");
}
