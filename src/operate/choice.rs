//! The choice among repositories, carried out: plans are made, others are opened, and what is chosen is reported.

use std::collections::BTreeSet;

use super::former;
use super::opened::{self, Opened};
use super::reading::{self, Reading};
use super::session::Session;
use super::target::{AskedTarget, ResolvedTarget};
use crate::err;
use crate::error::{Error, Result};
use crate::pg::segment::SegmentName;
use crate::plan::choice::{
    self, Offer, Place, choose, end_of, falling_short, is_settled, leads, may_lead_farther,
    said_of_first, tells_of_timelines, what_brings_together,
};
use crate::plan::cluster::Cluster;
use crate::plan::recovery::{Action, Outcome, Plan};
use crate::plan::target::TargetTimeline;
use crate::plan::unreachable;
use crate::sync::fork::{self, Stretch};
use crate::wal::inventory::{Backup, Inventory};

/// A target, whichever repository leads there.
pub struct Question<'a> {
    pub target: &'a AskedTarget,
    /// The action of PostgreSQL there.
    pub action: Action,
    /// Whether the plan is carried out, so that the ends of its segments are read.
    pub is_carried_out: bool,
}

/// A plan, and what follows from it.
pub struct Chosen {
    /// The repository that gives the backup; where the plan leads nowhere, the one that it was made on.
    pub opened: Opened,
    pub plan: Plan,
    /// The request as it is understood.
    pub resolved: ResolvedTarget,
    /// Why it is not carried out.
    pub unless: Option<Unless>,
}

/// Why there is no way to the target.
pub enum Unless {
    /// No repository leads there.
    OutOfReach {
        /// The plan's explanation.
        why: String,
        /// The command that brings together what several have.
        next: Option<String>,
    },
    /// One may that could not be asked.
    NotKnown(Error),
}

impl Question<'_> {
    /// As [`Question::decide`], with the parameters that pg_control of the backup requires.
    ///
    /// # Errors
    /// Those of [`Question::decide`].
    pub fn answer(&self, session: &Session, first: Opened) -> Result<Chosen> {
        let mut chosen = self.decide(session, first)?;
        if chosen.unless.is_none() {
            chosen.opened.add_parameters(session, &mut chosen.plan);
        }
        Ok(chosen)
    }

    /// Makes the plan with the repository that leads farthest, beginning with the one that is open.
    ///
    /// # Errors
    /// Those of [`Reading::plan`] on the first repository; another one is warned of.
    pub fn decide(&self, session: &Session, first: Opened) -> Result<Chosen> {
        let (mut sides, mut unasked) = (vec![first], Vec::new());
        let is_lacking = self.lacks_backup(&sides);
        if is_lacking {
            gather(session, |_, _| true, &mut sides, &mut unasked);
        }
        let mut planned = self.with_all_backups(session, &sides, &unasked, None)?;
        if !is_lacking && !is_settled(&planned.0) {
            let may_help = |own: &_, other: &_| {
                may_lead_farther(&planned.0, own, other) || tells_of_timelines(own, other)
            };
            gather(session, may_help, &mut sides, &mut unasked);
        }
        let cluster = together(session, &sides, &planned.0);
        if cluster.is_some() {
            planned = self.with_all_backups(session, &sides, &unasked, cluster.as_ref())?;
        }
        let first_said = said_of_first(&planned.0, name_of(&sides, 0));
        let mut best = self.best(session, planned, &sides, cluster.as_ref(), &mut unasked)?;
        let next = refuse_what_falls_short(session, &mut best, &sides);
        let mut chosen = settle(session, best, sides, unasked, &first_said, next)?;
        if let Some(Unless::OutOfReach { next, .. }) = &mut chosen.unless
            && next.is_none()
        {
            let own = chosen.opened.inventory.system_identifier;
            *next = former::next(
                session,
                &chosen.opened.reading,
                own,
                (self.target, self.action),
            );
        }
        Ok(chosen)
    }

    fn on(
        &self,
        session: &Session,
        reading: &Reading,
        inventory: &Inventory,
        cluster: Option<&Cluster>,
    ) -> Result<Planned> {
        let asked = (self.target, self.action);
        match self.is_carried_out {
            false => reading.plan(session, inventory, asked, cluster),
            true => reading.plan_to_carry_out(session, inventory, asked, cluster),
        }
    }

    /// Whether the backup that was asked for has to be looked for elsewhere.
    fn lacks_backup(&self, sides: &[Opened]) -> bool {
        let has = |id: &String| {
            let mut backups = sides.iter().flat_map(|s| &s.inventory.backups);
            backups.any(|b| b.id.to_string() == *id)
        };
        self.target.backup.as_ref().is_some_and(|id| !has(id))
    }

    /// The plan on the first side, with the backups of all.
    fn with_all_backups(
        &self,
        session: &Session,
        sides: &[Opened],
        unasked: &[(String, Error)],
        cluster: Option<&Cluster>,
    ) -> Result<Planned> {
        let first = sides.first();
        let first = first.ok_or_else(|| err!(Internal, "a plan without a repository"))?;
        let mut inventory = first.inventory.clone();
        inventory.add_backups(&backups_beside(sides, 0));
        let planned = self.on(session, &first.reading, &inventory, cluster);
        planned.map_err(|e| match unasked.first() {
            Some((name, other)) if self.lacks_backup(sides) => {
                reading::not_known(&e.to_string(), name, other)
            }
            _ => e,
        })
    }

    /// The plan that leads farthest; `planned` is that of the first side, which comes once more at the end with the backups of the others. The
    /// ends of the segments of another side are read only when its plan is the one.
    fn best(
        &self,
        session: &Session,
        planned: Planned,
        sides: &[Opened],
        cluster: Option<&Cluster>,
        unasked: &mut Vec<(String, Error)>,
    ) -> Result<Best> {
        let asked = (self.target, self.action);
        let mut made = vec![Made {
            at: 0,
            inventory: None,
            planned: Some(planned),
            is_checked: true,
        }];
        for at in (1..sides.len()).chain([0]) {
            let Some(side) = sides.get(at) else { continue };
            let mut inventory = side.inventory.clone();
            inventory.add_backups(&backups_beside(sides, at));
            if at == 0 && inventory.backups == side.inventory.backups {
                continue;
            }
            match side.reading.plan(session, &inventory, asked, cluster) {
                Ok(planned) => made.push(Made {
                    at,
                    inventory: Some(inventory),
                    planned: Some(planned),
                    is_checked: !self.is_carried_out,
                }),
                Err(e) => note(session, unasked, side.reading.configured.name.clone(), e),
            }
        }
        loop {
            let offers: Vec<Offer<'_>> = made.iter().map(Made::offer).collect();
            let chosen = choose(&offers).and_then(|n| Some((n, offers.get(n)?.plan?)));
            let (n, plan) = chosen.ok_or_else(|| err!(Internal, "no plan is left"))?;
            let short = falling_short(&offers, plan);
            let one = made
                .get_mut(n)
                .ok_or_else(|| err!(Internal, "no plan is left"))?;
            let (Some(inventory), Some(side)) = (&one.inventory, sides.get(one.at)) else {
                return one.best(short);
            };
            if one.is_checked {
                return one.best(short);
            }
            one.is_checked = true;
            match self.on(session, &side.reading, inventory, cluster) {
                Ok(planned) => one.planned = Some(planned),
                Err(e) => {
                    one.planned = None;
                    note(session, unasked, side.reading.configured.name.clone(), e);
                }
            }
        }
    }
}

type Planned = (Plan, ResolvedTarget);

/// A plan that was made on a side.
struct Made {
    at: usize,
    /// The inventory that it was made by; none for the first plan of the first side.
    inventory: Option<Inventory>,
    planned: Option<Planned>,
    /// Whether the ends of its segments were read, where that is wanted.
    is_checked: bool,
}

impl Made {
    fn offer(&self) -> Offer<'_> {
        Offer {
            place: self.at,
            plan: self.planned.as_ref().map(|(plan, _)| plan),
        }
    }

    fn best(&mut self, short: BTreeSet<usize>) -> Result<Best> {
        let planned = self.planned.take();
        let (plan, resolved) = planned.ok_or_else(|| err!(Internal, "no plan is left"))?;
        Ok(Best {
            at: self.at,
            plan,
            resolved,
            short,
        })
    }
}

/// The plan that leads farthest.
struct Best {
    /// The side that it was made on.
    at: usize,
    plan: Plan,
    resolved: ResolvedTarget,
    /// Sides that do not lead as far.
    short: BTreeSet<usize>,
}

/// The backups of all sides but one.
fn backups_beside(sides: &[Opened], at: usize) -> Vec<Backup> {
    let others = sides.iter().enumerate().filter(|(n, _)| *n != at);
    let backups = others.flat_map(|(_, side)| &side.inventory.backups);
    backups.cloned().collect()
}

/// Which timeline is the cluster by what all sides hold together, where that is asked of several.
fn together(session: &Session, sides: &[Opened], plan: &Plan) -> Option<Cluster> {
    let (first, others) = sides.split_first()?;
    if others.is_empty() || plan.target.timeline != TargetTimeline::Latest {
        return None;
    }
    let others: Vec<_> = others.iter().map(|o| (&o.reading, &o.inventory)).collect();
    let decided = first.reading.decide(session, &first.inventory, &others);
    let said = |e: &Error| {
        session.warn(&format!(
            "which timeline is the cluster is decided by each repository alone: {e}"
        ));
    };
    decided.inspect_err(said).ok()
}

/// Opens the others of this cluster, and keeps those that may help: by what the first and the other one hold.
fn gather(
    session: &Session,
    may_help: impl Fn(&Inventory, &Inventory) -> bool,
    sides: &mut Vec<Opened>,
    unasked: &mut Vec<(String, Error)>,
) {
    let Some(first) = sides.first() else { return };
    let mut found = Vec::new();
    for (name, other) in first.reading.all_others(session) {
        match other.and_then(|other| opened::open(session, other)) {
            // Under the same name there may be another cluster: before an upgrade, say.
            Ok(other) if other.inventory.system_identifier != first.inventory.system_identifier => {
            }
            Ok(other) if may_help(&first.inventory, &other.inventory) => found.push(other),
            Ok(_) => {}
            Err(e) => note(session, unasked, name, e),
        }
    }
    sides.extend(found);
}

/// Takes down that a repository gave no answer.
fn note(session: &Session, unasked: &mut Vec<(String, Error)>, name: String, e: Error) {
    match reading::could_lead_there(&e) {
        true => unasked.push((name, e)),
        false => session.warn(&format!("repository \"{name}\": {e}")),
    }
}

/// Refuses a plan to the end of the WAL where others have WAL behind that end, by their listing, and yet do not lead there, for something
/// before it is missing in them; the next step then. A plan that stops at its target is as good without, and warns.
fn refuse_what_falls_short(session: &Session, best: &mut Best, sides: &[Opened]) -> Option<String> {
    let Best {
        at, plan, short, ..
    } = best;
    let own = sides.get(*at).filter(|_| leads(plan))?;
    // This plan does not lack the WAL of another server.
    let has_more = |side: &&Opened| {
        may_lead_farther(plan, &own.inventory, &side.inventory)
            && parts_from(session, stretch_of(plan, own), own, &side.reading).is_none()
    };
    let have_more = short.iter().filter_map(|n| sides.get(*n)).filter(has_more);
    let names: Vec<String> = have_more
        .map(|side| format!("\"{}\"", side.reading.configured.name))
        .collect();
    if names.is_empty() {
        return None;
    }
    let why = format!(
        "the WAL of repository \"{}\" {}; behind that, or on a later timeline, there is WAL in {}, and what leads there is missing in it",
        name_of(sides, *at),
        end_of(plan),
        names.join(" and "),
    );
    if plan.outcome != Outcome::EndOfWal {
        plan.warnings.push(format!("{why}: {TOGETHER}"));
        return None;
    }
    unreachable::refuse_end(plan, why);
    Some(format!(
        "{TOGETHER}. Then run the same command again. With --repository \"{}\" its end is taken for the end.",
        name_of(sides, *at)
    ))
}

const TOGETHER: &str = "pitr repo sync brings together what each of them lacks";

/// Says what was chosen, and where it differs from the first repository.
fn settle(
    session: &Session,
    best: Best,
    mut sides: Vec<Opened>,
    unasked: Vec<(String, Error)>,
    first_said: &str,
    next: Option<String>,
) -> Result<Chosen> {
    let Best {
        at,
        mut plan,
        resolved,
        ..
    } = best;
    let is_farther = at > 0 && at < sides.len();
    if !leads(&plan) {
        let next = next.or_else(|| what_brings_together(&plan, at, &places(&sides)));
        if is_farther {
            session.warn(&format!(
                "no repository leads there: \"{}\" gets farthest",
                name_of(&sides, at)
            ));
        }
        let why = plan.explanation.clone();
        let why = why.unwrap_or_else(|| "the target cannot be reached".into());
        let unless = match unasked.into_iter().next() {
            Some((name, e)) => Unless::NotKnown(reading::not_known(&why, &name, &e)),
            None => Unless::OutOfReach { why, next },
        };
        let opened = sides.swap_remove(at);
        return Ok(Chosen {
            opened,
            plan,
            resolved,
            unless: Some(unless),
        });
    }
    tell_unasked(session, &plan, &unasked);
    plan.unasked = unasked.into_iter().map(|(name, _)| name).collect();
    if is_farther {
        session.warn(&format!(
            "{first_said}: the WAL of \"{}\" is used, which {}",
            name_of(&sides, at),
            end_of(&plan),
        ));
    }
    let giving = choice::giving(&plan, at, &places(&sides));
    let giving = giving.ok_or_else(|| err!(Internal, "a plan without a backup"))?;
    if giving != at {
        let side = sides.get(giving).map(|s| s.inventory.repository.clone());
        plan.backup_repository = side;
        if giving != 0 {
            session.warn(&format!(
                "repository \"{}\" lacks the backup, or has it damaged or marked for deletion: that of \"{}\" is used",
                name_of(&sides, 0),
                name_of(&sides, giving)
            ));
        }
    }
    let wal_from = sides.get(at).and_then(|own| {
        let stretch = stretch_of(&plan, own);
        keep_to_one_server(session, stretch, own, &mut |warning| {
            plan.warnings.push(warning);
        })
    });
    let mut opened = sides.swap_remove(giving);
    if wal_from.is_some() {
        opened.reading.wal_from = wal_from;
        let (restore_command, _) = opened.reading.commands(session);
        let setting = plan.recovery_settings.get_mut("restore_command");
        setting
            .into_iter()
            .for_each(|s| s.clone_from(&restore_command));
    }
    Ok(Chosen {
        opened,
        plan,
        resolved,
        unless: None,
    })
}

/// Returns the one repository that recovery may ask where another has the WAL of another server under the names that are read. A
/// warning names the fork.
pub(super) fn keep_to_one_server(
    session: &Session,
    stretch: Option<Stretch>,
    own: &Opened,
    warn: &mut dyn FnMut(String),
) -> Option<String> {
    // Narrowed by the operator, nobody else is asked anyway.
    if session.flags.repository.is_some() {
        return None;
    }
    let others = own.reading.all_others(session);
    let others: Vec<Reading> = others.filter_map(|(_, other)| other.ok()).collect();
    let mut is_alone = false;
    for other in &others {
        let Some(name) = parts_from(session, stretch, own, other) else {
            continue;
        };
        is_alone = true;
        let (own, other) = (&own.reading.configured.name, &other.configured.name);
        warn(format!(
            "repository \"{other}\" has the WAL of another server from segment \"{name}\" on, if not before: the server whose WAL is in \"{own}\" is followed, and recovery asks \"{own}\" alone. --repository \"{other}\" follows the other one"
        ));
    }
    is_alone.then(|| own.reading.configured.location.to_string())
}

/// The segments that a plan reads.
fn stretch_of(plan: &Plan, own: &Opened) -> Option<Stretch> {
    let needed = &plan.segments_needed;
    Some(Stretch {
        first: needed.first?,
        last: needed.last?,
        size: own.inventory.segment_size,
    })
}

/// Finds the first segment that another repository has of another server than the one that is followed. Unreadable WAL tells nothing.
fn parts_from(
    session: &Session,
    stretch: Option<Stretch>,
    own: &Opened,
    other: &Reading,
) -> Option<SegmentName> {
    let stretch = stretch?;
    let there = session
        .followed
        .apply(&other.repository, own.layout.clone());
    let there = there.ok()?;
    let own = (own.reading.repository.store(), &own.layout);
    let other = (other.repository.store(), &there);
    fork::parts(own, other, stretch).ok().flatten()
}

fn places(sides: &[Opened]) -> Vec<Place<'_>> {
    let places = sides.iter().map(|side| Place {
        name: &side.reading.configured.name,
        inventory: &side.inventory,
    });
    places.collect()
}

fn name_of(sides: &[Opened], at: usize) -> &str {
    sides
        .get(at)
        .map_or("", |s| s.reading.configured.name.as_str())
}

/// Warns of repositories that could not be asked: they may have more, and a plan to the end of the WAL must not hide that.
fn tell_unasked(session: &Session, plan: &Plan, unasked: &[(String, Error)]) {
    for (name, e) in unasked {
        let impact = match plan.outcome {
            Outcome::EndOfWal => {
                "it may have WAL behind the end that the others know, which is then not replayed"
            }
            _ => "it may know a later timeline than the others, which is then not followed",
        };
        session.warn(&format!(
            "repository \"{name}\" could not be asked, and {impact}: {e}"
        ));
    }
}
