//! How long recovery takes on this host: the work of a plan, and what drills measured here.

use std::time::Duration;

use super::human;
use super::opened::Opened;
use super::session::Session;
use crate::error::Result;
use crate::plan::estimate::{Basis, Estimate, Part, Work, estimate};
use crate::plan::recovery::Plan;
use crate::repo::drilled::{self, Held, Timed};
use crate::repo::event;

/// Estimates from drills.
pub fn of(drills: &[Held], work: Work) -> Estimate {
    let phases: Vec<&[Timed]> = drills.iter().map(|h| h.drill.phases.as_slice()).collect();
    estimate(&phases, work)
}

/// Estimates a plan; none where it leads nowhere. The drills are those of the repository that gives the backup.
pub fn of_plan(session: &Session, opened: &Opened, plan: &Plan) -> Option<Estimate> {
    if !plan.reachable || plan.backup.is_none() {
        return None;
    }
    let read = || -> Result<Vec<Held>> {
        let store = opened.reading.repository.store();
        Ok(drilled::newest(store, &opened.layout, &event::host())?.measured)
    };
    match read() {
        Ok(drills) => Some(of(
            &drills,
            Work {
                copy: plan.bytes_to_copy,
                replay: plan.bytes_to_replay,
            },
        )),
        Err(e) => {
            session.warn(&format!(
                "how long it takes cannot be told, because the drills cannot be read: {e}"
            ));
            None
        }
    }
}

/// The estimate in one line.
pub fn line(estimate: &Estimate) -> String {
    let parts: Vec<String> = estimate
        .parts
        .iter()
        .map(|part| format!("{} {}", part.phase.name(), shown(part.ms)))
        .collect();
    let named = |wanted: &dyn Fn(&&Part) -> bool| -> Vec<&str> {
        let found = estimate.parts.iter().filter(wanted);
        found.map(|part| part.phase.name()).collect()
    };
    let defaults = named(&|part| part.basis == Basis::Default);
    let mut by = match (estimate.drills, defaults.is_empty()) {
        (0, _) => "these are defaults, because no drill on this host has measured it: pitr drill"
            .to_owned(),
        (drills, is_whole) => {
            let mut text = format!("by {} on this host", human::count(drills as u64, "drill"));
            if !is_whole {
                text.push_str(&format!("; by default: {}", defaults.join(", ")));
            }
            text
        }
    };
    let far = named(&|part| part.is_far);
    if !far.is_empty() {
        by.push_str(&format!(
            "; a guess, because no drill had a tenth of the work: {}",
            far.join(", ")
        ));
    }
    // No drill tells it to the millisecond.
    let whole = Duration::from_secs(estimate.ms.div_ceil(1000).max(1));
    format!(
        "about {} ({}), {by}",
        human::duration(whole),
        parts.join(", ")
    )
}

fn shown(ms: u64) -> String {
    match ms {
        0..1000 => "< 1 s".to_owned(),
        _ => human::duration(Duration::from_millis(ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::drilled::{Drill, Phase};

    const GIB: u64 = 1 << 30;

    #[test]
    fn defaults_are_named_and_measured_parts_say_by_how_many_drills() {
        let work = Work {
            copy: 10 * GIB,
            replay: GIB,
        };
        let told = line(&of(&[], work));
        let begins = "about 2 min 6 s (plan 1 s, copy 1 min 42 s,";
        assert!(told.starts_with(begins), "{told}");
        assert!(told.contains("these are defaults"), "{told}");
        let timed = |phase, bytes| Timed {
            phase,
            ms: 500,
            bytes,
        };
        let held = Held {
            time: "2026-11-20T06:00:00Z".parse().unwrap(),
            host: "here".into(),
            drill: Drill {
                phases: vec![
                    timed(Phase::Plan, None),
                    timed(Phase::Copy, Some(GIB / 2)),
                    timed(Phase::Start, None),
                    timed(Phase::Checkpoint, None),
                ],
                ..Drill::default()
            },
        };
        let told = line(&of(std::slice::from_ref(&held), work));
        let measured = "by 1 drill on this host; by default: replay";
        assert!(told.contains(measured), "{told}");
        let ends = "no drill had a tenth of the work: copy";
        assert!(told.ends_with(ends), "{told}");
    }
}
