//! Writes what was found of backups and segments as events, so that plans avoid what is damaged, and ends those that no longer hold.

use std::collections::{BTreeMap, BTreeSet};

use super::check::Check;
use super::{About, Finding, FindingKind};
use crate::err;
use crate::error::Result;
use crate::host::Host;
use crate::pg::segment::SegmentNumber;
use crate::repo::catalog::{Catalog, Needs};
use crate::repo::event::{self, Event, Recorded, Writer};
use crate::repo::id::{BackupId, PartKind, PartName};
use crate::repo::portion;
use crate::repo::repository::Repository;
use crate::repo::scope::{self, Scope};

/// Object and detail of what is damaged, by subject.
pub(super) type Damaged = BTreeMap<String, (String, String)>;

/// The backups of findings that are to be recorded.
///
/// Pages that were damaged when the backup was taken stand in its root, and what is frozen is whole for all that is known.
pub(super) fn damaged_backups(findings: &[Finding]) -> Damaged {
    let mut damaged = Damaged::new();
    for finding in findings.iter().filter(|finding| is_recorded(finding)) {
        if let About::Backup(id) = &finding.about {
            let said = (finding.object.clone(), finding.detail.clone());
            damaged.entry(id.to_string()).or_insert(said);
        }
    }
    damaged
}

fn is_recorded(finding: &Finding) -> bool {
    let is_known = matches!(finding.kind, FindingKind::Pages | FindingKind::Frozen);
    matches!(finding.about, About::Backup(_)) && !is_known
}

/// The damage that stood when a check began. Damage that somebody else records while it runs may be what the check read before.
pub(super) struct Stood(BTreeSet<String>);

impl Stood {
    pub(super) fn of<'e>(subjects: impl Iterator<Item = &'e Vec<Recorded>>) -> Stood {
        let damage = subjects.flat_map(|events| event::damage(events));
        Stood(damage.map(|damage| damage.name.clone()).collect())
    }

    /// The damage that a check ends which found its subject whole.
    fn over<'e>(&self, events: &'e [Recorded]) -> Vec<&'e Recorded> {
        let mut damage = event::damage(events);
        damage.retain(|damage| self.0.contains(&damage.name));
        damage
    }
}

/// Records what a check of a scope found.
pub(super) struct Recorder<'a> {
    pub repository: &'a Repository,
    pub scope: &'a Scope,
    pub host: &'a Host,
}

impl Recorder<'_> {
    /// Records damage, the end of damage that `stood` of what is `known` to be whole, and once each which backups passed `whole`: expire lets older ones
    /// go only then.
    pub(super) fn record<'e>(
        &self,
        damaged: &Damaged,
        (known, stood): (&BTreeMap<String, &[Recorded]>, &Stood),
        whole: &[&BackupId],
        events_of: &dyn Fn(&str) -> &'e [Recorded],
    ) -> Result<()> {
        if !damaged.is_empty() && !self.may_prove() {
            return Err(err!(Key, "the MAC key of its key set is not configured"));
        }
        let (store, writer) = (self.repository.store(), Writer::of(self.host));
        for (subject, (object, detail)) in damaged {
            if event::damage(events_of(subject)).is_empty() {
                writer.record(store, self.scope, &writer.damaged(subject, object, detail))?;
            }
        }
        let known = known
            .iter()
            .filter(|(subject, _)| !damaged.contains_key(*subject));
        for (subject, events) in known {
            for over in stood.over(events) {
                let healed = Event {
                    ends: Some(over.name.clone()),
                    ..writer.event("healed", subject)
                };
                writer.record(store, self.scope, &healed)?;
            }
        }
        if !self.may_prove() {
            return Ok(());
        }
        for id in whole.iter().map(ToString::to_string) {
            if event::standing(events_of(&id), "verified", "").is_empty() {
                writer.record(store, self.scope, &writer.event("verified", &id))?;
            }
        }
        Ok(())
    }

    /// Records damage of every backup that names a part which was found damaged, whether or not this check looked at it: a backup may have
    /// taken the part over meanwhile. The catalog is read behind the events of the findings, and a backup reads those behind its root: one of
    /// the two sees the other.
    pub(super) fn record_sharing<R: Needs>(
        &self,
        read: impl FnOnce() -> Result<Catalog<R>>,
        findings: &[Finding],
    ) -> Result<()> {
        let parts = findings.iter().filter_map(|finding| {
            let (kind, part) = self.scope.named_part(&finding.object)?;
            is_recorded(finding).then_some((kind, part, finding))
        });
        let parts: Vec<_> = parts.collect();
        if parts.is_empty() {
            return Ok(());
        }
        let (store, writer) = (self.repository.store(), Writer::of(self.host));
        let damaged = damaged_backups(findings);
        let catalog = read()?;
        for (id, subject) in &catalog.ids {
            let (subject_name, Some(root)) = (id.to_string(), subject.root()) else {
                continue;
            };
            let is_known =
                damaged.contains_key(&subject_name) || !event::damage(&subject.events).is_empty();
            let (layers, packs) = root.needs();
            let names = |(kind, part, _): &&(PartKind, PartName, &Finding)| {
                let all = match kind {
                    PartKind::Layer => layers,
                    PartKind::Pack => packs,
                };
                let of_writer = all.get(&part.id);
                of_writer.is_some_and(|runs| runs.contains(SegmentNumber(part.number.into())))
            };
            if let Some((_, _, finding)) = parts.iter().find(names).filter(|_| !is_known) {
                let event = writer.damaged(&subject_name, &finding.object, &finding.detail);
                writer.record(store, self.scope, &event)?;
            }
        }
        Ok(())
    }

    /// Records what was read back once it is a step or more, so that a long run which is killed loses no more than one backup's reading.
    pub(super) fn record_step(&self, check: &Check<'_>) {
        if check.has_read_step() {
            self.record_read(check);
        }
    }

    /// Records what was read back since the last such event. That it could not be recorded costs no more than that it is read again.
    pub(super) fn record_read(&self, check: &Check<'_>) {
        let read = check.take_read();
        if !self.may_prove() {
            return;
        }
        let writer = Writer::of(self.host);
        for stated in read.stated() {
            // A resolution since then is not in what was read.
            let event = Event {
                time: check.begun,
                ..writer.event(portion::CHECKED, portion::SUBJECT)
            };
            let event = portion::checked(event, stated.seeing(check.seen.as_ref()));
            if let Err(e) = writer.record(self.repository.store(), self.scope, &event) {
                // Each of many steps would say the same.
                let warning = format!("what was read could not be recorded: {e}");
                let is_said = |said: &String| said.starts_with("what was read could not");
                if !check.found().warnings.iter().any(is_said) {
                    check.warn(warning);
                }
                return;
            }
        }
    }

    /// Whether what this process records counts: who has no MAC key where one is would be found to have forged it.
    fn may_prove(&self) -> bool {
        let is_encrypted = self.repository.marker().key_set.is_some();
        let proof = || self.repository.store().mac(&scope::marker(), b"");
        !is_encrypted || matches!(proof(), Ok(Some(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::time::TimestampTz;

    fn damaged(name: &str) -> Recorded {
        Recorded {
            name: name.into(),
            event: Event {
                event: "damaged".into(),
                ..Event::default()
            },
            stored: TimestampTz(0),
            is_doubted: false,
        }
    }

    #[test]
    fn v49_damage_that_is_recorded_while_a_check_runs_does_not_end_with_it() {
        let first = vec![damaged("1-damaged-a")];
        let stood = Stood::of([&first].into_iter());
        let later = [damaged("1-damaged-a"), damaged("2-damaged-b")];
        let over: Vec<&str> = stood.over(&later).iter().map(|e| e.name.as_str()).collect();
        assert_eq!(over, ["1-damaged-a"]);
    }
}
