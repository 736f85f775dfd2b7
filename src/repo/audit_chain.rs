//! Chains of the audit log as they are stored, and what is wrong with them (format, section 19).
//!
//! Reading keeps some hundred bytes of each record. The judgement reads nothing, and no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::time::Duration;

use serde::Serialize;

use super::audit::{self, Hash, Record, Stored};
use super::clock;
use crate::error::Result;
use crate::host::Host;
use crate::pg::time::TimestampTz;
use crate::store::{Meta, Store};

/// Records that are read at a time.
const READERS: usize = 8;

/// The part of a record that the judgement needs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    hash: Hash,
    prev: Option<Hash>,
    is_doubted: bool,
}

/// The place that an anchor was kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// A record of the log: its record may expire before it does.
    InRecord,
    /// The host that made the record, with the record's own time.
    ByWriter,
    /// Outside, nobody knows since when. The answer about its record says when the record is gone.
    Outside,
}

/// A record of which the newest hash of a chain is known from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// The place that knows it, for people.
    pub by: String,
    /// The kind of that place.
    pub kept: Kept,
    /// When it was known.
    pub time: TimestampTz,
    pub writer: String,
    /// The number of the record.
    pub seq: u64,
    /// The hash of its content.
    pub hash: Hash,
}

/// A statement that records were old enough to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Expired {
    by: String,
    time: TimestampTz,
    writer: String,
    seq: u64,
}

/// A record of another chain that had to end, after which a chain goes on.
#[derive(Debug)]
struct Continued {
    /// The record that says so, for people.
    by: String,
    writer: String,
    seq: u64,
    /// The repositories that had that record; none where the writer does not tell.
    holders: Option<Vec<String>>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub repository: String,
    /// The chain, or the name that is none.
    pub writer: String,
    /// The number of the record, or of the first one.
    pub seq: u64,
    /// `missing`, `beginning`, `removed`, `changed`, `order`, `damaged`, `early`, `differs`; `unproven`, `doubted`, `behind` and `strange` do not show that anything was changed.
    pub problem: &'static str,
    /// The observation.
    pub detail: String,
    /// Whether somebody or something changed the log.
    pub is_damage: bool,
}

/// The chains of one repository.
#[derive(Debug, Default)]
pub struct Chains {
    pub repository: String,
    /// Its identity, as its marker has it.
    pub uuid: String,
    chains: BTreeMap<String, BTreeMap<u64, Link>>,
    anchors: Vec<Anchor>,
    continued: Vec<Continued>,
    expired: Vec<Expired>,
    problems: Vec<Problem>,
}

impl Chains {
    /// Reads every record of a repository.
    ///
    /// # Errors
    /// Those of [`audit::names`] and of the store; a record that cannot be read is a problem.
    pub fn read(repository: &str, store: &dyn Store, host: &Host) -> Result<Chains> {
        let names = audit::names(store)?;
        let mut chains = Chains {
            repository: repository.to_owned(),
            ..Chains::default()
        };
        for name in names.strange {
            chains.add(&name, 0, "strange", "this is no object of this format");
        }
        for (writer, numbers) in names.chains {
            chains.chains.insert(writer.clone(), BTreeMap::new());
            let keys: Vec<u64> = numbers.keys().copied().collect();
            for (seq, read) in read_all(store, host, &writer, &keys)? {
                match read {
                    Ok(Some(stored)) => {
                        let known = numbers.get(&seq).copied().flatten();
                        let modified = modified(store, &stored.record, known)?;
                        chains.take(stored, modified);
                    }
                    // Expired while this run went through the names.
                    Ok(None) => {}
                    Err(e) if audit::is_of_the_record(&e) => {
                        chains.add(&writer, seq, "damaged", &e.to_string());
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(chains)
    }

    /// Takes up a record that was read, which the store has since `modified`.
    fn take(&mut self, stored: Stored, modified: Option<TimestampTz>) {
        let Stored {
            record,
            hash,
            is_doubted,
        } = stored;
        let prev = record.prev.as_deref().and_then(audit::hash_of);
        if !is_doubted {
            self.take_statements(&record, modified);
        }
        let link = Link {
            hash,
            prev,
            is_doubted,
        };
        let chain = self.chains.entry(record.writer).or_default();
        chain.insert(record.seq, link);
    }

    fn take_statements(&mut self, record: &Record, modified: Option<TimestampTz>) {
        let by = format!("{}/{}", record.writer, record.seq);
        for (writer, head) in &record.heads {
            let Some(hash) = audit::hash_of(&head.hash) else {
                continue;
            };
            self.anchors.push(Anchor {
                by: by.clone(),
                kept: Kept::InRecord,
                time: record.time,
                writer: writer.clone(),
                seq: head.seq,
                hash,
            });
        }
        let continues = record.continues.as_deref().and_then(|c| c.split_once('/'));
        if let Some((writer, seq)) = continues.and_then(|(w, seq)| Some((w, seq.parse().ok()?))) {
            self.continued.push(Continued {
                by: by.clone(),
                writer: writer.to_owned(),
                seq,
                holders: record.continues_in.clone(),
            });
        }
        // A time to come makes everything old.
        let is_of_its_time =
            modified.is_some_and(|at| record.time <= at.saturating_add(clock::MAY_DIFFER));
        for (writer, seq) in record.expired.iter().filter(|_| is_of_its_time) {
            self.expired.push(Expired {
                by: by.clone(),
                time: record.time,
                writer: writer.clone(),
                seq: *seq,
            });
        }
    }

    fn add(&mut self, writer: &str, seq: u64, problem: &'static str, detail: &str) {
        self.problems.push(Problem {
            repository: self.repository.clone(),
            writer: writer.to_owned(),
            seq,
            problem,
            detail: detail.to_owned(),
            is_damage: !["unproven", "doubted", "behind", "strange"].contains(&problem),
        });
    }

    /// The newest record of each chain: its number and the hash of its content.
    pub fn heads(&self) -> impl Iterator<Item = (&str, u64, &Hash)> {
        self.chains.iter().filter_map(|(writer, links)| {
            let (seq, link) = links.last_key_value()?;
            Some((writer.as_str(), *seq, &link.hash))
        })
    }

    /// The number of records.
    pub fn record_count(&self) -> usize {
        self.chains.values().map(BTreeMap::len).sum()
    }

    /// The number of chains.
    pub fn chain_count(&self) -> usize {
        self.chains.len()
    }

    /// The number of anchors that count.
    pub fn anchor_count(&self) -> usize {
        self.anchors.len()
    }

    /// The last record of a chain that may be gone.
    pub fn expired_up_to(&self, writer: &str) -> u64 {
        let own = self.expired.iter().filter(|e| e.writer == writer);
        own.map(|e| e.seq).max().unwrap_or(0)
    }

    /// Looks at each chain by itself.
    fn judge(&mut self) {
        let chains = std::mem::take(&mut self.chains);
        for (writer, links) in &chains {
            self.judge_chain(writer, links);
        }
        self.chains = chains;
    }

    fn judge_chain(&mut self, writer: &str, links: &BTreeMap<u64, Link>) {
        let Some((first, _)) = links.first_key_value() else {
            return;
        };
        let known_bad: Vec<u64> = self
            .problems
            .iter()
            .filter(|p| p.writer == writer && p.problem == "damaged")
            .map(|p| p.seq)
            .collect();
        let expired = self.expired_up_to(writer);
        let is_gone_by_right = expired + 1 >= *first;
        if *first > 1 && !is_gone_by_right && !known_bad.contains(&(first - 1)) {
            let detail =
                format!("it begins at {first}, and no record tells that those before it expired");
            self.add(writer, *first, "beginning", &detail);
        }
        let mut doubted = (0_u64, 0_u64);
        let mut before: Option<(u64, &Link)> = None;
        for (seq, link) in links {
            if link.is_doubted {
                doubted = (doubted.0 + 1, *seq);
            }
            let Some((last, prior)) = before.replace((*seq, link)) else {
                // Nothing comes before the first record of a chain.
                if *seq == 1 && link.prev.is_some() {
                    self.add(writer, 1, "order", "the first record names one before it");
                }
                continue;
            };
            // A record that expired may have come back alone, from a repository that keeps its records longer.
            let from = (last + 1).max(expired + 1);
            let between = (from..*seq).filter(|n| !known_bad.contains(n));
            let is_next = *seq == last + 1;
            if !is_next && between.clone().next().is_some() {
                let detail = format!("{} missing before {seq}", between.count());
                self.add(writer, from, "missing", &detail);
            } else if is_next && link.prev != Some(prior.hash) {
                let detail = format!("record {seq} does not follow record {last} as it is stored");
                self.add(writer, *seq, "order", &detail);
            }
        }
        if doubted.0 > 0 {
            let detail = format!(
                "{} without the MAC, the newest {}: made by somebody without the key of this repository",
                doubted.0, doubted.1
            );
            self.add(writer, doubted.1, "doubted", &detail);
        }
    }

    fn is_damaged(&self, writer: &str, seq: u64) -> bool {
        let mut own = self.problems.iter().filter(|p| p.writer == writer);
        own.any(|p| p.problem == "damaged" && p.seq == seq)
    }

    /// Compares the chains with what is known of them from elsewhere.
    fn compare(&mut self, anchors: &[Anchor], keep: Duration) {
        let mut worst: BTreeMap<(String, &'static str), (u64, String)> = BTreeMap::new();
        let mut tell = |writer: &str, problem, seq: u64, detail: String| {
            let known = worst.entry((writer.to_owned(), problem));
            let known = known.or_insert_with(|| (seq, detail.clone()));
            if known.0 < seq {
                *known = (seq, detail);
            }
        };
        for anchor in anchors {
            let chain = self.chains.get(&anchor.writer);
            let last = chain
                .and_then(|c| c.last_key_value())
                .map_or(0, |(n, _)| *n);
            let (writer, seq) = (anchor.writer.as_str(), anchor.seq);
            match chain.and_then(|chain| chain.get(&seq)) {
                Some(link) if link.hash == anchor.hash => {}
                Some(_) => tell(
                    writer,
                    "changed",
                    seq,
                    format!("{} knows record {seq} with another content", anchor.by),
                ),
                None if seq > last && seq > self.expired_up_to(writer) => tell(
                    writer,
                    "removed",
                    seq,
                    format!(
                        "{} knows record {seq}, and the chain ends at {last}",
                        anchor.by
                    ),
                ),
                None if anchor.kept == Kept::Outside && !self.is_damaged(writer, seq) => tell(
                    writer,
                    "unproven",
                    seq,
                    format!(
                        "{} names record {seq}, which is not there: nothing proves that it expired by right",
                        anchor.by
                    ),
                ),
                // A hole is told of where it is, and an expired record is gone by right.
                None => {}
            }
            // Records after this one were made later than the anchor; the writer knows the time of the record itself.
            let first_young = match anchor.kept {
                Kept::ByWriter => seq,
                Kept::InRecord | Kept::Outside => seq.saturating_add(1),
            };
            let early = self
                .expired
                .iter()
                .filter(|e| e.writer == writer && e.seq >= first_young);
            for expired in early.filter(|e| e.time < anchor.time.saturating_add(keep)) {
                tell(
                    writer,
                    "early",
                    expired.seq,
                    format!(
                        "{} let records up to {} expire that are younger than the configured age: {} knew no more than {seq} then",
                        expired.by, expired.seq, anchor.by
                    ),
                );
            }
        }
        for ((writer, problem), (seq, detail)) in worst {
            self.add(&writer, seq, problem, &detail);
        }
    }
}

/// When the store got a record whose statements depend on that.
fn modified(
    store: &dyn Store,
    record: &Record,
    known: Option<Meta>,
) -> Result<Option<TimestampTz>> {
    let meta = match known {
        None if !record.expired.is_empty() => {
            store.head(&audit::key(&record.writer, record.seq)?)?
        }
        known => known,
    };
    Ok(meta.map(|meta| meta.modified))
}

/// A record that was asked for, by its number.
type Read = (u64, Result<Option<Stored>>);

/// Reads records, several at a time.
fn read_all(store: &dyn Store, host: &Host, writer: &str, numbers: &[u64]) -> Result<Vec<Read>> {
    let each = NonZeroUsize::new(numbers.len().div_ceil(READERS)).unwrap_or(NonZeroUsize::MIN);
    let read = |numbers: &[u64]| -> Result<Vec<Read>> {
        let one = |seq: &u64| {
            host.check_stop()?;
            Ok((*seq, audit::read(store, writer, *seq)))
        };
        numbers.iter().map(one).collect()
    };
    std::thread::scope(|threads| {
        let begun: Vec<_> = numbers
            .chunks(each.get())
            .map(|chunk| threads.spawn(move || read(chunk)))
            .collect();
        let mut all = Vec::with_capacity(numbers.len());
        for thread in begun {
            match thread.join() {
                Ok(read) => all.extend(read?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(all)
    })
}

/// Judges the chains of all repositories, each with the anchors of it that lie outside. `is_whole` says that no configured repository is left out.
pub fn judge(all: &mut [(Chains, Vec<Anchor>)], keep: Duration, is_whole: bool) -> Vec<Problem> {
    let stored = stored(all);
    let newest = newest(all, stored.clone());
    for (one, outside) in all.iter_mut() {
        // Nobody lets records expire that are not made yet. Nobody knows that of a chain without any record.
        one.expired
            .retain(|e| newest.get(&e.writer).is_none_or(|last| e.seq <= *last));
        one.judge();
        let anchors: Vec<Anchor> = one.anchors.iter().chain(&*outside).cloned().collect();
        one.compare(&anchors, keep);
    }
    if is_whole {
        compare_continued(all, &stored);
    }
    let mut found: Vec<Problem> = Vec::new();
    for (at, (one, _)) in all.iter().enumerate() {
        found.extend(one.problems.iter().cloned());
        for (other, _) in all.get(at + 1..).unwrap_or_default() {
            found.extend(between(one, other));
            found.extend(behind(one, other));
            found.extend(behind(other, one));
        }
    }
    found
}

/// Finds chains that end before a record which another chain continues. Repositories that never had that record prove nothing: one of those that had it
/// must be here, or, where the writer does not tell them, the rest of the chain.
fn compare_continued(all: &mut [(Chains, Vec<Anchor>)], stored: &BTreeMap<String, u64>) {
    let read: BTreeSet<String> = all.iter().map(|(one, _)| one.uuid.clone()).collect();
    let expired = |all: &[(Chains, Vec<Anchor>)], writer: &str| {
        let each = all.iter().map(|(one, _)| one.expired_up_to(writer));
        each.max().unwrap_or(0)
    };
    for at in 0..all.len() {
        let Some((one, _)) = all.get(at) else {
            continue;
        };
        let is_gone = |c: &&Continued| {
            let last = stored.get(&c.writer).copied().unwrap_or(0);
            let is_told = |p: &Problem| p.writer == c.writer && p.problem == "removed";
            c.seq > last.max(expired(all, &c.writer)) && !one.problems.iter().any(is_told)
        };
        let gone = one.continued.iter().filter(is_gone).map(|c| {
            let last = stored.get(&c.writer).copied();
            let was_here = match &c.holders {
                Some(holders) => holders.iter().any(|uuid| read.contains(uuid)),
                None => last.is_some(),
            };
            let detail = format!(
                "{} goes on after record {}, and the chain ends at {}",
                c.by,
                c.seq,
                last.unwrap_or(0)
            );
            let (problem, detail) = match was_here {
                true => ("removed", detail),
                false => (
                    "unproven",
                    format!(
                        "{detail}: nothing proves that a repository which is configured had it"
                    ),
                ),
            };
            (c.writer.clone(), c.seq, problem, detail)
        });
        let gone: Vec<_> = gone.collect();
        if let Some((one, _)) = all.get_mut(at) {
            for (writer, seq, problem, detail) in gone {
                one.add(&writer, seq, problem, &detail);
            }
        }
    }
}

/// The newest number of each chain of which a repository has a record, also a damaged one.
fn stored(all: &[(Chains, Vec<Anchor>)]) -> BTreeMap<String, u64> {
    let mut newest: BTreeMap<String, u64> = BTreeMap::new();
    for (one, _) in all {
        let damaged = one.problems.iter().map(|p| (p.writer.as_str(), p.seq));
        let records = one.heads().map(|(writer, seq, _)| (writer, seq));
        for (writer, seq) in records.chain(damaged) {
            let known = newest.entry(writer.to_owned()).or_default();
            *known = seq.max(*known);
        }
    }
    newest
}

/// The newest number that is known of each chain that has records.
fn newest(
    all: &[(Chains, Vec<Anchor>)],
    mut newest: BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    let anchors = all
        .iter()
        .flat_map(|(one, kept)| one.anchors.iter().chain(kept));
    for anchor in anchors {
        if let Some(known) = newest.get_mut(&anchor.writer) {
            *known = anchor.seq.max(*known);
        }
    }
    newest
}

/// The first record of each chain that two repositories have with different content.
fn between(one: &Chains, other: &Chains) -> Vec<Problem> {
    let mut found = Vec::new();
    for (writer, links) in &one.chains {
        let Some(theirs) = other.chains.get(writer) else {
            continue;
        };
        let differs = |(seq, link): &(&u64, &Link)| {
            theirs.get(seq).is_some_and(|their| their.hash != link.hash)
        };
        if let Some((seq, _)) = links.iter().find(differs) {
            found.push(Problem {
                repository: one.repository.clone(),
                writer: writer.clone(),
                seq: *seq,
                problem: "differs",
                detail: format!(
                    "\"{}\" has record {seq} with another content",
                    other.repository
                ),
                is_damage: true,
            });
        }
    }
    found
}

/// The chains that end earlier in `one` than in the other.
fn behind(one: &Chains, other: &Chains) -> Vec<Problem> {
    let last = |of: &Chains, writer: &str| {
        let links = of.chains.get(writer)?;
        links.last_key_value().map(|(seq, _)| *seq)
    };
    let mut found = Vec::new();
    for (writer, there, _) in other.heads() {
        let here = last(one, writer).unwrap_or(0);
        let is_removed = one
            .problems
            .iter()
            .any(|p| p.writer == writer && p.problem == "removed");
        if here < there && there > one.expired_up_to(writer) && !is_removed {
            found.push(Problem {
                repository: one.repository.clone(),
                writer: writer.to_owned(),
                seq: here + 1,
                problem: "behind",
                detail: format!(
                    "it ends at {here}, and at {there} in \"{}\": \"pitr repo sync\" brings the rest",
                    other.repository
                ),
                is_damage: false,
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::hex;

    fn at(day: u32) -> TimestampTz {
        let start: TimestampTz = "2026-01-01T00:00:00Z".parse().unwrap();
        start.saturating_add(Duration::from_secs(u64::from(day) * 86_400))
    }

    /// A chain of so many records, one a day.
    fn chain(writer: &str, count: u64) -> Vec<Stored> {
        let mut before = None;
        let mut all = Vec::new();
        for n in 1..=count {
            let record = Record {
                time: at(u32::try_from(n).unwrap()),
                command: "backup".into(),
                ..Record::default()
            };
            all.push(stored(record.chained(writer, before)));
            before = all.last().map(|s| (s.record.seq, s.hash));
        }
        all
    }

    fn stored(record: Record) -> Stored {
        let bytes = audit::encode(&record).unwrap();
        let (record, hash) = audit::decode(&record.writer.clone(), record.seq, &bytes).unwrap();
        Stored {
            record,
            hash,
            is_doubted: false,
        }
    }

    fn of(records: impl IntoIterator<Item = Stored>) -> Chains {
        let mut chains = Chains {
            repository: "local".into(),
            ..Chains::default()
        };
        take(&mut chains, records);
        chains
    }

    fn take(chains: &mut Chains, records: impl IntoIterator<Item = Stored>) {
        for one in records {
            let modified = one.record.time;
            chains.take(one, Some(modified));
        }
    }

    const KEEP: Duration = Duration::from_secs(400 * 86_400);

    fn told(mut all: Vec<(Chains, Vec<Anchor>)>, is_whole: bool) -> Vec<&'static str> {
        let problems = judge(&mut all, KEEP, is_whole);
        problems.iter().map(|p| p.problem).collect()
    }

    fn found(chains: Chains, outside: &[Anchor]) -> Vec<(&'static str, u64)> {
        let problems = judge(&mut [(chains, outside.to_vec())], KEEP, true);
        problems.iter().map(|p| (p.problem, p.seq)).collect()
    }

    fn anchor(of: &Stored) -> Anchor {
        Anchor {
            by: "outside".into(),
            kept: Kept::InRecord,
            time: of.record.time,
            writer: of.record.writer.clone(),
            seq: of.record.seq,
            hash: of.hash,
        }
    }

    #[test]
    fn every_tampering_with_a_chain_is_found() {
        let whole = || chain("db1-00000001", 9);
        assert_eq!(found(of(whole()), &[anchor(&whole()[8])]), []);
        for gone in 0..9 {
            let mut less = whole();
            let lost = less.remove(gone);
            let problems = found(of(less), &[anchor(&whole()[8])]);
            let expected = match gone {
                0 => ("beginning", 2),
                8 => ("removed", 9),
                _ => ("missing", lost.record.seq),
            };
            assert_eq!(problems, [expected], "{gone}");
        }
        // A record with another text, and the right checksum.
        for changed in 0..9 {
            let mut other = whole();
            other[changed].record.command = "expire".into();
            other[changed] = stored(other[changed].record.clone());
            let problems = found(of(other), &[anchor(&whole()[8])]);
            let expected = match changed {
                8 => ("changed", 9),
                _ => ("order", changed as u64 + 2),
            };
            assert_eq!(problems, [expected], "{changed}");
        }
        // Two that changed places, with the numbers of their places.
        let mut swapped = whole();
        let (a, b) = (swapped[3].record.clone(), swapped[5].record.clone());
        swapped[3] = stored(Record { seq: 4, ..b });
        swapped[5] = stored(Record { seq: 6, ..a });
        assert!(found(of(swapped), &[]).iter().all(|p| p.0 == "order"));
        // A chain of another writer under this one's name.
        let mut other = chain("db2-00000002", 9);
        for one in &mut other {
            one.record.writer = "db1-00000001".into();
            *one = stored(one.record.clone());
        }
        assert!(!found(of(other), &[]).is_empty());
    }

    #[test]
    fn an_anchor_in_another_chain_finds_a_removed_end() {
        let watched = chain("db1-00000001", 9);
        let mut watcher = chain("db2-00000002", 3);
        let head = audit::Head {
            seq: 9,
            hash: hex(&watched[8].hash),
        };
        let last = Record {
            time: at(10),
            heads: BTreeMap::from([("db1-00000001".to_owned(), head)]),
            ..Record::default()
        };
        let before = Some((3, watcher[2].hash));
        watcher.push(stored(last.chained("db2-00000002", before)));
        let all = |count: usize| watched[..count].iter().cloned().chain(watcher.clone());
        assert_eq!(found(of(all(9)), &[]), []);
        assert_eq!(found(of(all(6)), &[]), [("removed", 9)]);
        assert_eq!(found(of(all(0)), &[]), [("removed", 9)]);
        // Whoever holds no MAC key makes no anchor.
        let mut doubted: Vec<Stored> = all(6).collect();
        doubted.last_mut().unwrap().is_doubted = true;
        assert_eq!(found(of(doubted), &[]), [("doubted", 4)]);
    }

    #[test]
    fn a_chain_that_is_cut_before_the_record_which_another_one_continues_is_found() {
        let left = chain("db1-00000001", 9);
        let next = |is_doubted| {
            let record = Record {
                time: at(10),
                continues: Some("db1-00000001/9".into()),
                ..Record::default()
            };
            Stored {
                is_doubted,
                ..stored(record.chained("db1-00000002", None))
            }
        };
        let with = |count: usize| of(left[..count].iter().cloned().chain([next(false)]));
        assert_eq!(found(with(9), &[]), []);
        assert_eq!(found(with(6), &[]), [("removed", 9)]);
        // Without any of it, nobody knows whether the repository ever had it.
        assert_eq!(found(with(0), &[]), [("unproven", 9)]);
        // An anchor that says the same makes no second problem.
        assert_eq!(found(with(6), &[anchor(&left[8])]), [("removed", 9)]);
        // Whoever holds no MAC key says nothing about other chains.
        assert_eq!(found(of([next(true)]), &[]), [("doubted", 1)]);
        // Another repository has the rest, or may have it.
        let both = vec![(with(6), Vec::new()), (with(9), Vec::new())];
        assert_eq!(told(both, true), ["behind"]);
        assert!(told(vec![(with(6), Vec::new())], false).is_empty());
        // Nobody misses what expired by right.
        let mut expired = expiry(9, 500, 500);
        expired.take(next(false), Some(at(10)));
        assert_eq!(found(expired, &[]), []);
    }

    #[test]
    fn y46_a_chain_is_missed_where_a_repository_that_had_it_was_read() {
        let left = chain("db1-00000001", 9);
        let with = |uuid: &str, count: usize, holders: Option<&[&str]>| {
            let holders = holders.map(|all| all.iter().map(|uuid| (*uuid).to_owned()).collect());
            let record = Record {
                time: at(10),
                continues: Some("db1-00000001/9".into()),
                continues_in: holders,
                ..Record::default()
            };
            let next = stored(record.chained("db1-00000002", None));
            let chains = of(left[..count].iter().cloned().chain([next]));
            let uuid = uuid.to_owned();
            (Chains { uuid, ..chains }, Vec::new())
        };
        let told = |all| told(all, true);
        // Beside a repository that came later, the one that had it lost all of it.
        let holders = Some(&["a"][..]);
        let both = |count| vec![with("a", count, holders), with("b", 0, holders)];
        assert_eq!(told(both(0)), ["removed"; 2]);
        assert_eq!(told(both(6)), ["removed"; 2]);
        assert_eq!(told(both(9)), ["behind"]);
        // The one that had it is gone, or the writer knew of none.
        assert_eq!(told(vec![with("b", 0, holders)]), ["unproven"]);
        assert_eq!(told(vec![with("b", 6, holders)]), ["unproven"]);
        assert_eq!(told(vec![with("b", 0, Some(&[]))]), ["unproven"]);
        // A record of an older program.
        assert_eq!(told(vec![with("a", 0, None)]), ["unproven"]);
        assert_eq!(told(vec![with("a", 6, None)]), ["removed"]);
    }

    #[test]
    fn records_expire_by_a_record_that_counts_and_not_too_early() {
        let old = chain("db1-00000001", 9);
        let expiry = |day: u32, is_doubted: bool| Stored {
            is_doubted,
            ..janitor(4, day)
        };
        let left = |by: Stored| of(old[4..].iter().cloned().chain([by]));
        assert_eq!(found(left(expiry(500, false)), &[]), []);
        let forged = found(left(expiry(500, true)), &[]);
        assert_eq!(forged, [("beginning", 5), ("doubted", 1)]);
        // At the time of this anchor there was record 2 alone: 3 and 4 are younger.
        let known = [anchor(&old[1])];
        assert_eq!(found(left(expiry(500, false)), &known), []);
        assert_eq!(found(left(expiry(300, false)), &known), [("early", 4)]);
    }

    #[test]
    fn a_record_that_came_back_after_it_expired_is_no_gap() {
        let old = chain("db1-00000001", 9);
        let with = |back: u64, first: usize| {
            let mut chains = expiry(4, 500, 500);
            let back = old.iter().filter(|one| one.record.seq == back);
            take(&mut chains, back.chain(&old[first..]).cloned());
            found(chains, &[])
        };
        assert_eq!(with(2, 4), []);
        // Records that are missing behind the expired ones count.
        assert_eq!(with(2, 6), [("missing", 5)]);
    }

    /// A record that lets `gone` of the first chain expire, made on a day.
    fn janitor(gone: u64, day: u32) -> Stored {
        let record = Record {
            time: at(day),
            expired: BTreeMap::from([("db1-00000001".to_owned(), gone)]),
            ..Record::default()
        };
        stored(record.chained("janitor-00000003", None))
    }

    /// As [`janitor`], and stored on another day.
    fn expiry(gone: u64, day: u32, stored_on: u32) -> Chains {
        let mut chains = of([]);
        chains.take(janitor(gone, day), Some(at(stored_on)));
        chains
    }

    #[test]
    fn a_statement_of_a_time_to_come_or_of_records_to_come_lets_nothing_expire() {
        let old = chain("db1-00000001", 9);
        let left = |mut with: Chains| {
            take(&mut with, old[4..].iter().cloned());
            with
        };
        assert_eq!(found(left(expiry(4, 500, 500)), &[]), []);
        assert_eq!(found(left(expiry(4, 500, 501)), &[]), [], "it came late");
        let lies = [expiry(4, 500, 10), expiry(999_999_999_999, 500, 500)];
        for lie in lies {
            assert_eq!(found(left(lie), &[]), [("beginning", 5)]);
        }
    }

    #[test]
    fn an_anchor_from_outside_tells_of_every_record_that_is_gone() {
        let old = chain("db1-00000001", 60);
        let outside = |of: &Stored| Anchor {
            kept: Kept::Outside,
            time: TimestampTz::default(),
            ..anchor(of)
        };
        // All of it was deleted, and somebody says that it expired.
        let given = [outside(&old[49])];
        let gone = |seq| found(expiry(seq, 500, 500), &given);
        assert_eq!(gone(50), [("unproven", 50)]);
        assert_eq!(gone(49), [("removed", 50)]);
        assert_eq!(gone(999_999_999_999), [("unproven", 50)]);
        // It is no news where an anchor of the log names the record.
        let by_record = [anchor(&old[49])];
        assert_eq!(found(expiry(50, 500, 500), &by_record), []);
        // A gap is damage by itself.
        let mut less = old.clone();
        less.remove(49);
        assert_eq!(found(of(less), &given), [("missing", 50), ("unproven", 50)]);
        assert_eq!(found(of(old.clone()), &given), []);
        // The writer knows how old its record is.
        let own = |day| {
            let own = Anchor {
                kept: Kept::ByWriter,
                ..anchor(&old[59])
            };
            found(expiry(60, day, day), &[own])
        };
        assert_eq!(own(400), [("early", 60)]);
        assert_eq!(own(460), []);
    }

    #[test]
    fn repositories_are_compared() {
        let keep = Duration::from_secs(1);
        let named = |name: &str, records: Vec<Stored>| Chains {
            repository: name.into(),
            ..of(records)
        };
        let whole = chain("db1-00000001", 5);
        let mut other = whole.clone();
        other[4].record.command = "restore".into();
        other[4] = stored(other[4].record.clone());
        let tell = |a: Vec<Stored>, b: Vec<Stored>| -> Vec<(String, &'static str)> {
            let both = [named("a", a), named("b", b)];
            let problems = judge(&mut both.map(|one| (one, Vec::new())), keep, true);
            problems
                .iter()
                .map(|p| (p.repository.clone(), p.problem))
                .collect()
        };
        assert_eq!(tell(whole.clone(), whole.clone()), []);
        assert_eq!(
            tell(whole.clone(), whole[..3].to_vec()),
            [("b".to_owned(), "behind")]
        );
        assert_eq!(tell(whole, other), [("a".to_owned(), "differs")]);
    }
}
