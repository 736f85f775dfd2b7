//! How long restores of Redis servers, files and configuration took in the recoveries of this host.
//!
//! Clusters have drills for that. The record of a run has the bytes of each member, and how long each step took.

use super::run::{Run, Runs};
use crate::config::{MemberKind, SetMember};
use crate::error::Result;
use crate::plan::estimate::{self, Basis, Restored};
use crate::plan::sets::{SetPlan, Step};

/// So many runs are read, the newest.
const RUNS: usize = 20;

/// A restore that was carried out: its member, bytes and milliseconds.
type Tried = (SetMember, (u64, u64));

/// Takes what was measured in place of defaults: restores of the member itself, else those of its kind.
///
/// # Errors
/// Those of the records.
pub fn measure(plan: &mut SetPlan, runs: &Runs) -> Result<()> {
    let mut tried = Vec::new();
    for run in runs.latest(RUNS)? {
        tried.extend(restores(&run)?);
    }
    for one in &mut plan.members {
        let (Some(of), Some(reached)) = (content(one.member.kind), &mut one.reached) else {
            continue;
        };
        let those = |is: &dyn Fn(&SetMember) -> bool| -> Vec<(u64, u64)> {
            let found = tried.iter().filter(|(member, _)| is(member));
            found.map(|(_, restore)| *restore).collect()
        };
        let mut own = those(&|member| *member == one.member);
        if own.is_empty() {
            own = those(&|member| member.kind == one.member.kind);
        }
        let (ms, basis) = estimate::restore(&own, reached.bytes, of);
        if basis == Basis::Measured {
            (reached.ms, reached.basis) = (Some(ms), Some(basis));
        }
    }
    plan.add_times();
    Ok(())
}

fn content(kind: MemberKind) -> Option<Restored> {
    match kind {
        MemberKind::Cluster => None,
        MemberKind::Redis => Some(Restored::DataSet),
        MemberKind::Files | MemberKind::Config => Some(Restored::Files),
    }
}

/// The restores of a run, without clusters.
fn restores(run: &Run) -> Result<Vec<Tried>> {
    let mut tried = Vec::new();
    for (number, step) in run.record.steps.iter().enumerate() {
        let Some((member, bytes)) = restored(run, step) else {
            continue;
        };
        let done = run.done(number)?;
        let ms = done.and_then(|done| done["ms"].as_u64());
        tried.extend(ms.map(|ms| (member, (bytes, ms))));
    }
    Ok(tried)
}

/// The member that a step restores, and its bytes: Redis aside, the others in their place.
fn restored(run: &Run, step: &Step) -> Option<(SetMember, u64)> {
    let recorded = run.record.member(step)?;
    let member: SetMember = recorded.member.parse().ok()?;
    let is_restore = matches!(
        (step, member.kind),
        (Step::Aside(_), MemberKind::Redis)
            | (Step::Replace(_), MemberKind::Files | MemberKind::Config)
    );
    let bytes = recorded.bytes.filter(|_| is_restore)?;
    Some((member, bytes))
}
