//! Decides which timeline is the cluster.
//!
//! Clones, drills and failovers leave timelines of which each goes on by itself. The rule chooses the timeline of the
//! newest standing decision (`adopted`, `restore`), or its newest descendant that is not abandoned. Without a decision
//! it chooses the newest timeline that is not abandoned. The result is undecided if another timeline that the rule
//! examines has a commit later than the beginning of the newest. Then no command chooses by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use crate::err;
use crate::error::{Code, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::repo::decision::{self, Decisions};
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::wal::facts::{EntryKind, Facts, Wal};
use crate::wal::inventory::{HistoryFile, Inventory, Timeline};
use crate::wal::rollup::Rollup;
use crate::wal::survey::Survey;

/// The timelines that can be followed, each with its history where that can be read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree(BTreeMap<TimelineId, Option<History>>);

/// The last commit of a timeline behind some position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LastCommit {
    /// There is none.
    None,
    /// Its time by the server's clock.
    At(TimestampTz),
    /// The WAL that would tell cannot be read.
    Unknown(String),
}

/// Commits of a timeline behind some position, as far as its WAL can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    pub commits: u64,
    /// The time of the earliest.
    pub first: TimestampTz,
    /// The time of the latest.
    pub last: TimestampTz,
}

impl Behind {
    fn and(self, other: Behind) -> Behind {
        Behind {
            commits: self.commits + other.commits,
            first: self.first.min(other.first),
            last: self.last.max(other.last),
        }
    }
}

/// Answers about the commits on each timeline.
pub trait Activity {
    /// When the timeline began: its first commit, or when its history was stored, whichever is earlier.
    ///
    /// # Errors
    /// Errors of the WAL, apart from damage.
    fn begun(&self, timeline: TimelineId, from: Lsn) -> Result<Option<TimestampTz>>;

    /// Returns the last commit after `from`. The answer for a commit before `since` need not be exact.
    ///
    /// # Errors
    /// Errors of the WAL, apart from damage.
    fn last_behind(
        &self,
        timeline: TimelineId,
        from: Lsn,
        since: TimestampTz,
    ) -> Result<LastCommit>;
}

/// A timeline that may be the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// Its number.
    pub timeline: TimelineId,
    /// When it began.
    pub begun: Option<TimestampTz>,
    /// Its last commit behind the point where it and the newest part.
    pub last_commit: LastCommit,
    /// Whether the newest descends from it.
    pub is_ancestor: bool,
}

/// Why a timeline is the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// No other timeline has a commit that is later than its beginning.
    Newest,
    /// This decision names it.
    Decision(decision::Decision),
    /// It descends from the timeline that this decision names.
    Descends(decision::Decision),
}

/// Which timeline is the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// This one.
    Decided {
        /// Its number.
        timeline: TimelineId,
        why: Why,
    },
    /// One of these, as far as anybody knows.
    Undecided {
        /// The newest first.
        candidates: Vec<Candidate>,
        /// Why it is not known, where the candidates do not tell.
        why: Option<String>,
    },
}

/// Which timeline is the cluster, and what else goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cluster {
    /// The answer.
    pub verdict: Verdict,
    /// Timelines that are not the cluster by a decision, not abandoned, and that have a later commit than its beginning.
    pub beside: Vec<Candidate>,
    pub abandoned: BTreeSet<TimelineId>,
}

/// How a server's timeline stands to the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is the cluster.
    Cluster,
    /// It may be: it is undecided.
    Candidate,
    /// It was abandoned.
    Abandoned,
    /// Another timeline is the cluster, or one of these may be.
    Other(Vec<TimelineId>),
}

impl Tree {
    /// The timelines of an inventory, its backups' among them.
    pub fn of(inventory: &Inventory) -> Tree {
        let mut tree = Tree::default();
        tree.add(inventory);
        tree
    }

    /// Takes up the timelines of another inventory.
    pub fn add(&mut self, inventory: &Inventory) {
        for (id, timeline) in &inventory.timelines {
            match &timeline.history {
                HistoryFile::Known(history) => {
                    self.insert(*id, Some(history.clone()));
                }
                HistoryFile::Damaged(_) => self.insert(*id, None),
                HistoryFile::Absent if *id == TimelineId::FIRST => {
                    self.insert(*id, Some(History::root(*id)));
                }
                HistoryFile::Absent => {}
            }
        }
        for backup in &inventory.backups {
            let first = backup.timeline == TimelineId::FIRST;
            self.insert(
                backup.timeline,
                first.then(|| History::root(backup.timeline)),
            );
        }
    }

    /// Takes up a timeline; a history that is known is kept.
    pub fn insert(&mut self, timeline: TimelineId, history: Option<History>) {
        let known = self.0.entry(timeline).or_default();
        if known.is_none() {
            *known = history;
        }
    }

    /// The numbers, ascending.
    pub fn timelines(&self) -> impl DoubleEndedIterator<Item = TimelineId> + '_ {
        self.0.keys().copied()
    }

    /// The history of a timeline, where it can be read.
    pub fn history(&self, timeline: TimelineId) -> Option<&History> {
        self.0.get(&timeline)?.as_ref()
    }

    /// Whether `timeline` is `ancestor` or descends from it.
    pub fn descends(&self, timeline: TimelineId, ancestor: TimelineId) -> bool {
        timeline == ancestor || self.history(timeline).is_some_and(|h| h.contains(ancestor))
    }

    /// Returns the start of the WAL of `timeline` that is not on the way to `other`. It is the point where that way
    /// leaves `timeline`, or else the timeline's own beginning.
    pub fn parts_from(&self, timeline: TimelineId, other: TimelineId) -> Lsn {
        let left = self.history(other).and_then(|h| h.switch_point(timeline));
        let begins = || Some(self.history(timeline)?.parent()?.1);
        left.or_else(begins).unwrap_or(Lsn(0))
    }

    /// The timelines that are abandoned, by themselves or with an ancestor.
    pub fn abandoned(&self, decisions: &Decisions) -> BTreeSet<TimelineId> {
        let named: Vec<TimelineId> = decisions.abandoned().map(|d| d.timeline).collect();
        let is_abandoned = |t: &TimelineId| named.iter().any(|n| self.descends(*t, *n));
        let all = self.timelines().chain(named.iter().copied());
        all.filter(is_abandoned).collect()
    }
}

/// Decides which timeline of the tree is the cluster.
///
/// # Errors
/// Those of [`Activity`].
pub fn decide(tree: &Tree, decisions: &Decisions, activity: &dyn Activity) -> Result<Cluster> {
    let abandoned = tree.abandoned(decisions);
    let mut chosen = decisions.chosen().into_iter();
    let decision = chosen.find(|d| !abandoned.contains(&d.timeline));
    let is_open = |t: &TimelineId| !abandoned.contains(t);
    let named = decision.map(|d| d.timeline);
    let (inside, outside): (Vec<_>, Vec<_>) = tree
        .timelines()
        .filter(is_open)
        .partition(|t| named.is_none_or(|named| tree.descends(*t, named)));
    let newest = inside.last().copied().or(named);
    let Some(newest) = newest else {
        return Ok(Cluster {
            verdict: Verdict::Undecided {
                candidates: Vec::new(),
                // Before anything is archived there is nothing to decide.
                why: (!abandoned.is_empty()).then(|| "every timeline is abandoned".to_owned()),
            },
            beside: Vec::new(),
            abandoned,
        });
    };
    let race = Race {
        tree,
        activity,
        newest,
    };
    let (rivals, begun) = race.rivals(&inside)?;
    let (mut beside, _) = race.rivals(&outside)?;
    beside.retain(|rival| !decision.is_some_and(|made| rival.is_settled_by(made)));
    let mut candidates = vec![race.candidate(begun, &rivals)?];
    candidates.extend(rivals);
    let unreadable = decisions.unreadable.as_ref();
    let unreadable = unreadable.filter(|_| tree.0.len() > 1);
    let verdict = match (candidates.len(), unreadable, decision) {
        (1, None, None) => Verdict::Decided {
            timeline: newest,
            why: Why::Newest,
        },
        (1, None, Some(decision)) => Verdict::Decided {
            timeline: newest,
            why: match decision.timeline == newest {
                true => Why::Decision(decision.clone()),
                false => Why::Descends(decision.clone()),
            },
        },
        _ => Verdict::Undecided {
            candidates,
            why: unreadable.map(|e| format!("a decision about the timelines cannot be read: {e}")),
        },
    };
    Ok(Cluster {
        verdict,
        beside,
        abandoned,
    })
}

/// The newest timeline against others.
struct Race<'a> {
    tree: &'a Tree,
    activity: &'a dyn Activity,
    newest: TimelineId,
}

impl Race<'_> {
    /// Those of `others` that have a commit later than the beginning of the newest, the newest of them first; and that beginning.
    fn rivals(&self, others: &[TimelineId]) -> Result<(Vec<Candidate>, Option<TimestampTz>)> {
        let mut others = others
            .iter()
            .rev()
            .filter(|t| **t != self.newest)
            .peekable();
        // Nothing is looked at where there is nothing to compare.
        if others.peek().is_none() {
            return Ok((Vec::new(), None));
        }
        let begun = self.begun(self.newest)?;
        let Some(since) = begun else {
            return Ok((Vec::new(), None));
        };
        let mut rivals = Vec::new();
        for timeline in others.copied() {
            let from = self.tree.parts_from(timeline, self.newest);
            let last_commit = self.activity.last_behind(timeline, from, since)?;
            let is_rival = match &last_commit {
                LastCommit::None => false,
                LastCommit::At(time) => *time > since,
                LastCommit::Unknown(_) => true,
            };
            if is_rival {
                rivals.push(Candidate {
                    timeline,
                    begun: self.begun(timeline)?,
                    last_commit,
                    is_ancestor: self.tree.descends(self.newest, timeline),
                });
            }
        }
        Ok((rivals, begun))
    }

    fn begun(&self, timeline: TimelineId) -> Result<Option<TimestampTz>> {
        let from = self.tree.history(timeline).and_then(History::parent);
        self.activity
            .begun(timeline, from.map_or(Lsn(0), |(_, lsn)| lsn))
    }

    /// The newest itself; its last commit is looked for only where there are rivals.
    fn candidate(&self, begun: Option<TimestampTz>, rivals: &[Candidate]) -> Result<Candidate> {
        let from = self.tree.history(self.newest).and_then(History::parent);
        let from = from.map_or(Lsn(0), |(_, lsn)| lsn);
        Ok(Candidate {
            timeline: self.newest,
            begun,
            last_commit: match rivals.is_empty() {
                true => LastCommit::None,
                false => self
                    .activity
                    .last_behind(self.newest, from, TimestampTz(i64::MIN))?,
            },
            is_ancestor: false,
        })
    }
}

impl Cluster {
    /// The timeline, where it is decided.
    pub fn timeline(&self) -> Option<TimelineId> {
        match &self.verdict {
            Verdict::Decided { timeline, .. } => Some(*timeline),
            Verdict::Undecided { .. } => None,
        }
    }

    /// The timelines that may be the cluster.
    pub fn candidates(&self) -> Vec<TimelineId> {
        match &self.verdict {
            Verdict::Decided { timeline, .. } => vec![*timeline],
            Verdict::Undecided { candidates, .. } => {
                candidates.iter().map(|c| c.timeline).collect()
            }
        }
    }

    /// How a timeline of the tree stands.
    pub fn standing(&self, timeline: TimelineId) -> Standing {
        let candidates = self.candidates();
        if self.abandoned.contains(&timeline) {
            return Standing::Abandoned;
        }
        match (candidates.contains(&timeline), self.timeline()) {
            (true, Some(_)) => Standing::Cluster,
            (true, None) => Standing::Candidate,
            _ => Standing::Other(candidates),
        }
    }

    /// Requires that a server on this timeline may be received from and backed up; a warning where it is undecided.
    ///
    /// # Errors
    /// `Diverged` where another timeline is the cluster.
    pub fn require(&self, timeline: TimelineId) -> Result<Option<String>> {
        let own = timeline.decimal();
        match self.standing(timeline) {
            Standing::Cluster => Ok(None),
            Standing::Candidate => Ok(self.undecided().map(|why| {
                format!("{why}. The server is on timeline {own}: it goes on. {DECIDE}")
            })),
            Standing::Abandoned => Err(err!(
                Diverged,
                "server is on timeline {own}, and that timeline is abandoned"
            )
            .hint(format!("Nothing was stored. If it is the cluster after all: pitr timeline restore {own} --reason TEXT. Else name the right server in conninfo."))),
            Standing::Other(others) => {
                let others: Vec<String> = others.iter().map(|t| t.decimal().to_string()).collect();
                let (others, remedy) = (others.join(" or "), others.join(" --reason TEXT, pitr timeline abandon "));
                Err(err!(
                    Diverged,
                    "server is on timeline {own}, and the repository has timeline {others} already, which is the cluster"
                )
                .hint(format!("Nothing was stored. If timeline {others} is a drill or a copy, and this server is the cluster: pitr timeline abandon {remedy} --reason TEXT. Else this is likely an old primary that was left behind by a failover. If it still takes writes, two servers do (split brain): stop it, look at what it wrote since (pg_waldump), then rebuild it from the new primary. Name the new primary in conninfo.")))
            }
        }
    }

    /// Describes the timelines that go on beside the one that was decided for.
    pub fn describe_beside(&self) -> Vec<String> {
        let Some(timeline) = self.timeline() else {
            return Vec::new();
        };
        let describe = |beside: &Candidate| {
            let (own, other) = (timeline.decimal(), beside.timeline.decimal());
            let remedy = match beside.is_ancestor {
                // The cluster would be abandoned with it.
                true => format!(
                    "stop its server, and make it a standby of the cluster's. Once it has stopped: pitr timeline restore {own} --reason TEXT. If timeline {other} is the cluster: pitr timeline abandon {own} --reason TEXT"
                ),
                false => {
                    format!("pitr timeline abandon {other} --reason TEXT, if it is not the cluster")
                }
            };
            format!(
                "timeline {own} is the cluster by decision, and beside it {}: it is followed by nothing; {remedy}",
                beside.describe()
            )
        };
        self.beside.iter().map(describe).collect()
    }

    /// Returns the timeline that is the cluster; `impact` is a sentence about what was not done.
    ///
    /// # Errors
    /// `Refused` while that is undecided; `OutOfReach` before anything is archived.
    pub fn decided(&self, impact: &str) -> Result<TimelineId> {
        self.timeline().ok_or_else(|| match self.undecided() {
            Some(why) => err!(Refused, "{why}").hint(format!("{impact} {DECIDE}.")),
            None => err!(OutOfReach, "nothing of the cluster is archived yet")
                .hint(format!("{impact} pitr backup takes the first backup; pitr doctor says what keeps WAL from being archived")),
        })
    }

    /// Why no command chooses, in words, where it is undecided.
    pub fn undecided(&self) -> Option<String> {
        let Verdict::Undecided { candidates, why } = &self.verdict else {
            return None;
        };
        if candidates.is_empty() && why.is_none() {
            return None;
        }
        let shown: Vec<String> = candidates.iter().map(Candidate::describe).collect();
        let why = why.as_ref().map(|why| format!(" ({why})"));
        let which = match shown.is_empty() {
            true => String::new(),
            false => format!(": {}", shown.join("; ")),
        };
        Some(format!(
            "it is undecided which timeline is the cluster{}{which}",
            why.unwrap_or_default()
        ))
    }
}

impl Candidate {
    /// Whether who made a decision saw its last commit. It cannot be abandoned, for the newest descends from it, and its server may have stopped.
    fn is_settled_by(&self, made: &decision::Decision) -> bool {
        let is_seen = matches!(self.last_commit, LastCommit::At(time) if time <= made.time);
        self.is_ancestor && is_seen && made.kind == decision::Kind::Restore
    }

    /// The timeline and what it holds, in words.
    pub fn describe(&self) -> String {
        let number = self.timeline.decimal();
        let begun = match self.begun {
            Some(time) => format!(" began at {time},"),
            None => String::new(),
        };
        match &self.last_commit {
            LastCommit::None => format!("timeline {number}{begun} holds no commit of its own"),
            LastCommit::At(time) => format!("timeline {number}{begun} last commit at {time}"),
            LastCommit::Unknown(why) => {
                format!("timeline {number}{begun} last commit unknown ({why})")
            }
        }
    }
}

/// Stores tell the time of an object in whole seconds, rounded down.
const STORE_CLOCK: Duration = Duration::from_secs(1);

/// The step that ends the indecision.
pub const DECIDE: &str = "\"pitr timeline list\" shows all. \"pitr timeline restore N --reason TEXT\" says which one is the cluster; \"pitr timeline abandon N --reason TEXT\" says that one, with all that descends from it, is not";

/// A repository's WAL: what its inventory lists, and the answers about it.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// Listing of the WAL.
    pub inventory: &'a Inventory,
    /// Answers about the listed segments.
    pub wal: &'a dyn Wal,
}

/// Decides by what several repositories hold together.
///
/// # Errors
/// Those of [`Wal`], apart from damage.
pub fn decide_by(sides: &[Side<'_>]) -> Result<Cluster> {
    let (tree, decisions) = together(sides);
    decide(&tree, &decisions, &sides)
}

/// As [`decide_by`], as if the history of a server's timeline were stored, too.
///
/// # Errors
/// Those of [`Wal`], apart from damage.
pub fn decide_with(sides: &[Side<'_>], history: &History) -> Result<Cluster> {
    let (mut tree, decisions) = together(sides);
    tree.insert(history.timeline(), Some(history.clone()));
    decide(&tree, &decisions, &sides)
}

/// As [`decide_with`], by the WAL that these repositories hold.
///
/// # Errors
/// Those of [`Inventory::of_wal`].
pub fn decide_in<'a>(
    repositories: impl IntoIterator<Item = &'a Repository>,
    layout: &ClusterLayout,
    history: &History,
) -> Result<Cluster> {
    by_wal_of(repositories, layout, |sides| decide_with(sides, history))
}

/// The timelines that may be the cluster, by the WAL that these repositories hold of it: each has it registered.
///
/// # Errors
/// Those of [`Inventory::of_wal`].
pub fn candidates_in<'a>(
    repositories: impl IntoIterator<Item = &'a Repository>,
    layout: &ClusterLayout,
) -> Result<Vec<TimelineId>> {
    by_wal_of(repositories, layout, |sides| {
        Ok(decide_by(sides)?.candidates())
    })
}

/// Pure: whether these leave nothing to decide, as after failovers. All timelines lie on the way to the greatest, and nothing goes on beside that way.
///
/// It is asked before [`candidates_in`], which lists the WAL of all repositories. One whole segment behind a switch point is enough for that.
pub fn is_straight(surveys: &[&Survey]) -> bool {
    let mut timelines = BTreeSet::new();
    for survey in surveys {
        timelines.extend(survey.timelines.keys().copied());
        timelines.extend(survey.committed().map(|(.., root)| root.timeline));
    }
    let Some(newest) = timelines.last().copied().filter(|_| timelines.len() > 1) else {
        return true;
    };
    let mut way: Option<&History> = None;
    for survey in surveys {
        let Some(held) = survey.timelines.get(&newest) else {
            continue;
        };
        if let HistoryFile::Known(history) = &held.history {
            if way.is_some_and(|known| known != history) {
                return false;
            }
            way = Some(history);
        }
    }
    way.is_some_and(|way| {
        timelines.iter().all(|timeline| way.contains(*timeline))
            && surveys.iter().all(|survey| lies_on(survey, way))
    })
}

/// Whether nothing of the ancestors lies behind the points where the way leaves them.
fn lies_on(survey: &Survey, way: &History) -> bool {
    let is_short = |(timeline, held): (&TimelineId, &Timeline)| {
        let Some(left) = way.switch_point(*timeline) else {
            return true;
        };
        let at = SegmentNumber::of(left, survey.segment_size);
        let whole = held.segments.bounds().is_none_or(|(_, last)| last < at);
        whole && held.tails.values().all(|reached| *reached <= left)
    };
    let mut roots = survey.committed().map(|(.., root)| root);
    survey.timelines.iter().all(is_short)
        && roots.all(|root| {
            let left = way.switch_point(root.timeline);
            left.is_none_or(|left| root.stop_lsn <= left)
        })
}

/// Asks by the WAL that these repositories hold of a cluster.
fn by_wal_of<'a, T>(
    repositories: impl IntoIterator<Item = &'a Repository>,
    layout: &ClusterLayout,
    ask: impl FnOnce(&[Side<'_>]) -> Result<T>,
) -> Result<T> {
    let read = |repository: &'a Repository| {
        let read = Inventory::of_wal(repository, layout.name(), layout.system_identifier());
        read.map(|inventory| (repository, inventory))
    };
    let read = repositories.into_iter().map(read);
    let held = read.collect::<Result<Vec<_>>>()?;
    let rollups = held.iter().map(|(repository, inventory)| {
        Rollup::new(repository, inventory, None).map(|wal| (inventory, wal))
    });
    let rollups = rollups.collect::<Result<Vec<_>>>()?;
    let sides: Vec<Side<'_>> = rollups
        .iter()
        .map(|(inventory, wal)| Side { inventory, wal })
        .collect();
    ask(&sides)
}

/// The timelines and the decisions of all sides.
pub fn together(sides: &[Side<'_>]) -> (Tree, Decisions) {
    let (mut tree, mut decisions) = (Tree::default(), Decisions::default());
    for side in sides {
        tree.add(side.inventory);
        decisions.add(&side.inventory.decisions);
    }
    (tree, decisions)
}

impl Activity for &[Side<'_>] {
    fn begun(&self, timeline: TimelineId, from: Lsn) -> Result<Option<TimestampTz>> {
        let mut begun: Option<TimestampTz> = None;
        for side in self.iter() {
            let Some(held) = side.inventory.timelines.get(&timeline) else {
                continue;
            };
            let stored = held.history_stored.map(|t| t.saturating_add(STORE_CLOCK));
            let times = [stored, side.first_commit(timeline, from)?];
            begun = times.into_iter().flatten().chain(begun).min();
        }
        Ok(begun)
    }

    fn last_behind(
        &self,
        timeline: TimelineId,
        from: Lsn,
        since: TimestampTz,
    ) -> Result<LastCommit> {
        let mut last = LastCommit::None;
        for side in self.iter() {
            let Some(held) = side.inventory.timelines.get(&timeline) else {
                continue;
            };
            let own = side.last(timeline, held, from, since)?;
            last = match (last, own) {
                (LastCommit::At(a), LastCommit::At(b)) => LastCommit::At(a.max(b)),
                (LastCommit::At(time), _) | (_, LastCommit::At(time)) => LastCommit::At(time),
                (LastCommit::None, own) => own,
                (unknown, _) => unknown,
            };
        }
        Ok(last)
    }
}

impl Side<'_> {
    /// The first commit of a timeline at or behind `from`, as far as its WAL can be read.
    ///
    /// # Errors
    /// Those of [`Wal`], apart from damage.
    pub fn first_commit(&self, timeline: TimelineId, from: Lsn) -> Result<Option<TimestampTz>> {
        match self.inventory.timelines.get(&timeline) {
            Some(held) => self.first(timeline, held, from),
            None => Ok(None),
        }
    }

    /// The last commit of a timeline behind `from`.
    ///
    /// # Errors
    /// Those of [`Wal`], apart from damage.
    pub fn last_commit(&self, timeline: TimelineId, from: Lsn) -> Result<LastCommit> {
        let since = TimestampTz(i64::MIN);
        match self.inventory.timelines.get(&timeline) {
            Some(held) => self.last(timeline, held, from, since),
            None => Ok(LastCommit::None),
        }
    }

    /// Counts the commits of a timeline at or behind `from`. Segments that cannot be read are passed over.
    ///
    /// # Errors
    /// Those of [`Wal`], apart from damage.
    pub fn commits_behind(&self, timeline: TimelineId, from: Lsn) -> Result<Option<Behind>> {
        let size = self.inventory.segment_size;
        let mut number = SegmentNumber::of(from, size);
        let mut behind: Option<Behind> = None;
        let Some(held) = self.inventory.timelines.get(&timeline) else {
            return Ok(None);
        };
        while let Some(at) = held.next_from(number) {
            number = at.next();
            let Some(name) = at.name(timeline, size) else {
                break;
            };
            let is_cut = at.start_lsn(size) < from;
            if let Ok(Some(own)) = unless_damaged(self.commits_in(name, is_cut, from))? {
                behind = Some(behind.map_or(own, |known| known.and(own)));
            }
        }
        Ok(behind)
    }

    /// The commits in a segment, of one that is cut behind `from`.
    fn commits_in(&self, name: SegmentName, is_cut: bool, from: Lsn) -> Result<Option<Behind>> {
        let Some(facts) = self.facts(name)?.filter(|f| f.commits > 0) else {
            return Ok(None);
        };
        if !is_cut {
            return Ok(Some(Behind {
                commits: u64::from(facts.commits),
                first: facts.times.0,
                last: facts.times.1,
            }));
        }
        let mut found: Option<Behind> = None;
        self.wal.scan(name, &|_| None, &mut |entry| {
            if let EntryKind::End {
                time,
                is_commit: true,
                ..
            } = entry.kind
                && entry.start >= from
            {
                let one = Behind {
                    commits: 1,
                    first: time,
                    last: time,
                };
                found = Some(found.map_or(one, |known| known.and(one)));
            }
        })?;
        Ok(found)
    }

    /// The first commit at or behind `from`. Segments that cannot be read are passed over.
    fn first(
        &self,
        timeline: TimelineId,
        held: &Timeline,
        from: Lsn,
    ) -> Result<Option<TimestampTz>> {
        let size = self.inventory.segment_size;
        let mut number = SegmentNumber::of(from, size);
        while let Some(at) = held.next_from(number) {
            number = at.next();
            let Some(name) = at.name(timeline, size) else {
                break;
            };
            let is_cut = at.start_lsn(size) < from;
            if let Ok(Some(found)) = unless_damaged(self.commits_in(name, is_cut, from))? {
                return Ok(Some(found.first));
            }
        }
        Ok(None)
    }

    fn last(
        &self,
        timeline: TimelineId,
        held: &Timeline,
        from: Lsn,
        since: TimestampTz,
    ) -> Result<LastCommit> {
        let size = self.inventory.segment_size;
        let first = SegmentNumber::of(from, size);
        for number in descending(held).take_while(|n| *n >= first) {
            let Some(name) = number.name(timeline, size) else {
                continue;
            };
            let is_cut = number.start_lsn(size) < from && !self.is_before(name, since)?;
            match unless_damaged(self.commits_in(name, is_cut, from))? {
                // It was read whole.
                Ok(Some(found)) if is_cut => return Ok(LastCommit::At(found.last)),
                Ok(Some(_)) => {
                    // A cache may have told that, of another segment.
                    self.confirm(name)?;
                    if let Ok(Some(found)) = unless_damaged(self.commits_in(name, false, from))? {
                        return Ok(LastCommit::At(found.last));
                    }
                }
                Ok(None) => {}
                Err(why) => return Ok(LastCommit::Unknown(why)),
            }
        }
        Ok(LastCommit::None)
    }

    /// Confirms what was read of a segment: [`Wal::confirm`], where this host has the key for it.
    fn confirm(&self, name: SegmentName) -> Result<()> {
        match self.wal.confirm(name) {
            Err(e) if e.code() == Code::Key || e.is_lost() => Ok(()),
            confirmed => confirmed,
        }
    }

    /// Returns the facts from the index of a segment. `None` on a host that only writes an encrypted repository: it
    /// relies on the facts that stay plain.
    fn facts(&self, name: SegmentName) -> Result<Option<Facts>> {
        match self.wal.facts(name) {
            Err(e) if e.code() == Code::Key => Ok(None),
            facts => facts.map(Some),
        }
    }

    /// Whether every transaction of a segment ended before `since`, as far as its index tells.
    fn is_before(&self, name: SegmentName, since: TimestampTz) -> Result<bool> {
        let facts = unless_damaged(self.facts(name))?;
        Ok(facts.is_ok_and(|f| f.is_some_and(|f| f.ends > 0 && f.times.1 < since)))
    }
}

/// Returns the stored segments of a timeline, the last one first.
fn descending(held: &Timeline) -> impl Iterator<Item = SegmentNumber> + '_ {
    let mut next = held.bounds().map(|(_, last)| last);
    std::iter::from_fn(move || {
        let at = next?;
        next = held.previous_to(at);
        Some(at)
    })
}

/// Damage as a value: it is an answer about a segment.
fn unless_damaged<T>(result: Result<T>) -> Result<std::result::Result<T, String>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(e) if e.is_lost() => Ok(Err(e.to_string())),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::model::{Random, tli};
    use crate::repo::decision::{Decision, Kind};

    /// Commits of each timeline, and when its history was stored.
    #[derive(Default)]
    struct Commits(BTreeMap<TimelineId, (Option<TimestampTz>, Vec<Commit>)>);

    type Commit = (Lsn, TimestampTz);

    impl Activity for Commits {
        fn begun(&self, timeline: TimelineId, from: Lsn) -> Result<Option<TimestampTz>> {
            let Some((stored, commits)) = self.0.get(&timeline) else {
                return Ok(None);
            };
            let first = commits.iter().find(|(lsn, _)| *lsn >= from);
            let first = first.map(|(_, time)| *time).into_iter();
            Ok(first.chain(*stored).min())
        }

        fn last_behind(
            &self,
            timeline: TimelineId,
            from: Lsn,
            _: TimestampTz,
        ) -> Result<LastCommit> {
            let commits = self.0.get(&timeline).map(|(_, commits)| commits);
            let last = commits.and_then(|c| c.iter().rfind(|(lsn, _)| *lsn >= from));
            Ok(last.map_or(LastCommit::None, |(_, time)| LastCommit::At(*time)))
        }
    }

    /// A tree of timelines, their commits, and what was decided.
    #[derive(Default)]
    struct Case {
        tree: Tree,
        commits: Commits,
        decisions: Decisions,
    }

    impl Case {
        /// Timeline 1 with commits at these moments; positions are ten times the moment.
        fn new(moments: std::ops::RangeInclusive<i64>) -> Case {
            let mut case = Case::default();
            case.tree.insert(tli(1), Some(History::root(tli(1))));
            case.commits.0.insert(tli(1), (None, Vec::new()));
            case.commit(1, moments);
            case
        }

        fn commit(&mut self, timeline: u32, moments: std::ops::RangeInclusive<i64>) {
            let (_, commits) = self.commits.0.get_mut(&tli(timeline)).unwrap();
            let lsn = |n: i64| Lsn(u64::try_from(n).unwrap() * 10);
            commits.extend(moments.map(|n| (lsn(n), TimestampTz(n))));
        }

        /// A timeline that leaves its parent behind the commit of one moment and whose history is stored at another.
        fn branch(&mut self, timeline: u32, parent: u32, at: i64, stored: i64) {
            let parent = self.tree.history(tli(parent)).unwrap();
            let lsn = Lsn(u64::try_from(at).unwrap() * 10 + 5);
            let history = parent.child(tli(timeline), lsn, b"");
            self.tree.insert(tli(timeline), Some(history));
            let stored = Some(TimestampTz(stored));
            self.commits.0.insert(tli(timeline), (stored, Vec::new()));
        }

        fn decide_on(&mut self, kind: Kind, timeline: u32, ends: Option<&str>) -> String {
            let n = self.decisions.all.len();
            let event = format!("{n:03}-{}", kind.as_str());
            self.decisions.all.push(Decision {
                event: event.clone(),
                kind,
                timeline: tli(timeline),
                time: TimestampTz(i64::try_from(n).unwrap()),
                reason: None,
                ends: ends.map(str::to_owned),
            });
            event
        }

        fn cluster(&self) -> Cluster {
            decide(&self.tree, &self.decisions, &self.commits).unwrap()
        }

        /// The timeline that is decided, or the candidates.
        fn verdict(&self) -> std::result::Result<u32, Vec<u32>> {
            let cluster = self.cluster();
            let numbers = cluster.candidates();
            let numbers = numbers.iter().map(|t| t.decimal()).collect();
            cluster.timeline().map(|t| t.decimal()).ok_or(numbers)
        }
    }

    #[test]
    fn a_failover_and_a_restore_to_an_earlier_moment_are_followed() {
        let mut case = Case::new(1..=10);
        assert_eq!(case.verdict(), Ok(1));
        // The standby lacked the last commits. Its history is there before its first commit.
        case.branch(2, 1, 8, 11);
        assert_eq!(case.verdict(), Ok(2));
        case.commit(2, 12..=20);
        assert_eq!(case.verdict(), Ok(2));
        case.branch(3, 1, 5, 21);
        case.commit(3, 22..=22);
        assert_eq!(case.verdict(), Ok(3));
    }

    #[test]
    fn a_drill_beside_production_is_undecided_until_one_is_abandoned() {
        let mut case = Case::new(1..=10);
        case.branch(2, 1, 10, 11);
        case.commit(2, 12..=12);
        case.commit(1, 13..=13);
        assert_eq!(case.verdict(), Err(vec![2, 1]));
        let abandoned = case.decide_on(Kind::Abandon, 2, None);
        assert_eq!(case.verdict(), Ok(1));
        assert_eq!(case.cluster().standing(tli(2)), Standing::Abandoned);
        // The next promotion takes the next number; a promotion of the drill is abandoned with it.
        case.branch(3, 1, 13, 14);
        case.branch(4, 2, 12, 15);
        assert_eq!(case.verdict(), Ok(3));
        case.decide_on(Kind::Restore, 2, Some(&abandoned));
        assert_eq!(case.verdict(), Ok(4));
    }

    #[test]
    fn a_drill_without_a_commit_is_told_by_the_time_of_its_history_and_a_wrong_clock_does_not_hide_it()
     {
        let mut case = Case::new(1..=10);
        case.branch(2, 1, 10, 11);
        case.commit(1, 12..=12);
        assert_eq!(case.verdict(), Err(vec![2, 1]));
        // Its clock is far ahead.
        case.commit(2, 1000..=1000);
        assert_eq!(case.verdict(), Err(vec![2, 1]));
        // A clock that is behind makes no rival of a timeline that holds nothing behind the branch.
        let mut case = Case::new(1..=10);
        case.branch(2, 1, 10, 11);
        let commits = &mut case.commits.0.get_mut(&tli(2)).unwrap().1;
        commits.push((Lsn(110), TimestampTz(3)));
        assert_eq!(case.verdict(), Ok(2));
    }

    #[test]
    fn a_decision_holds_for_descendants_and_shows_what_goes_on_beside() {
        let mut case = Case::new(1..=10);
        case.branch(2, 1, 10, 11);
        case.branch(3, 2, 12, 13);
        case.commit(3, 14..=30);
        case.branch(4, 1, 9, 20);
        case.decide_on(Kind::Adopted, 4, None);
        assert_eq!(case.verdict(), Ok(4));
        let cluster = case.cluster();
        let beside: Vec<u32> = cluster
            .beside
            .iter()
            .map(|c| c.timeline.decimal())
            .collect();
        assert_eq!(beside, [3]);
        let told = cluster.describe_beside();
        assert!(told[0].contains("pitr timeline abandon 3 --reason"));
        assert_eq!(cluster.standing(tli(3)), Standing::Other(vec![tli(4)]));
        case.branch(5, 4, 21, 31);
        assert_eq!(case.verdict(), Ok(5));
        // The newest decision counts, and not that for an abandoned timeline.
        case.decide_on(Kind::Restore, 3, None);
        assert_eq!(case.verdict(), Ok(3));
        case.decide_on(Kind::Abandon, 2, None);
        assert_eq!(case.verdict(), Ok(5));
        case.decide_on(Kind::Abandon, 1, None);
        assert_eq!(case.verdict(), Err(vec![]));
    }

    #[test]
    fn t91_an_ancestor_that_has_stopped_is_settled_by_a_decision() {
        let mut case = Case::new(1..=10);
        case.branch(2, 1, 10, 11);
        case.commit(2, 12..=12);
        case.commit(1, 13..=13);
        let decide_at = |case: &mut Case, kind, time| {
            case.decide_on(kind, 2, None);
            case.decisions.all.last_mut().unwrap().time = TimestampTz(time);
            case.cluster().describe_beside()
        };
        let told = decide_at(&mut case, Kind::Adopted, 50);
        assert!(told[0].contains("pitr timeline restore 2 --reason"));
        assert_eq!(decide_at(&mut case, Kind::Restore, 60), [""; 0]);
        // Its server goes on after all.
        case.commit(1, 70..=70);
        assert_eq!(case.cluster().describe_beside().len(), 1);
        assert_eq!(case.verdict(), Ok(2));
        assert_eq!(decide_at(&mut case, Kind::Restore, 80), [""; 0]);
    }

    #[test]
    fn what_cannot_be_read_decides_nothing() {
        let mut case = Case::new(1..=10);
        case.decisions.unreadable = Some("x".into());
        assert_eq!(case.verdict(), Ok(1), "there is no other");
        case.branch(2, 1, 10, 11);
        assert_eq!(case.verdict(), Err(vec![2]));
        let why = case.cluster().undecided().unwrap();
        assert!(why.contains("cannot be read"));
    }

    #[test]
    fn any_tree_is_decided_by_the_rule() {
        let (mut decided, mut undecided) = (0, 0);
        for seed in 1..=600u64 {
            let mut r = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
            let mut case = Case::new(1..=3);
            let (mut now, mut last) = (4, 1);
            for _ in 0..r.below(14) {
                let any = u32::try_from(1 + r.below(u64::from(last))).unwrap();
                match r.below(6) {
                    0 | 1 => case.commit(any, now..=now),
                    2 | 3 => {
                        last += 1;
                        case.branch(last, any, now - 1, now);
                    }
                    4 => drop(case.decide_on(Kind::Abandon, any, None)),
                    _ => {
                        let ends = case.decisions.abandoned().next().map(|d| d.event.clone());
                        case.decide_on(Kind::Restore, any, ends.as_deref());
                    }
                }
                now += 1;
            }
            let cluster = case.cluster();
            let abandoned = |t: TimelineId| {
                let mut named = case.decisions.abandoned();
                named.any(|d| case.tree.descends(t, d.timeline))
            };
            let open: Vec<TimelineId> = case.tree.timelines().filter(|t| !abandoned(*t)).collect();
            let chosen = case.decisions.chosen();
            let named = chosen.iter().map(|d| d.timeline).find(|t| !abandoned(*t));
            let inside = |t: &TimelineId| named.is_none_or(|n| case.tree.descends(*t, n));
            let Some(newest) = open.iter().copied().rfind(inside) else {
                assert_eq!((cluster.candidates(), open.len()), (Vec::new(), 0));
                continue;
            };
            assert_eq!(cluster.candidates()[0], newest, "{seed}");
            let stored = case.commits.0[&newest].0.unwrap_or(TimestampTz(i64::MAX));
            let goes_on = |t: &TimelineId| {
                let from = case.tree.parts_from(*t, newest);
                let mut commits = case.commits.0[t].1.iter();
                commits.any(|(lsn, time)| *lsn >= from && *time > stored)
            };
            let rivals: Vec<_> = open
                .iter()
                .filter(|t| **t != newest && goes_on(t))
                .collect();
            let is_open = rivals.iter().any(|t| inside(t));
            assert_eq!(cluster.timeline().is_none(), is_open, "{seed}");
            let others = cluster.beside.len() + cluster.candidates().len() - 1;
            assert_eq!(others, rivals.len(), "{seed}");
            match cluster.timeline() {
                Some(_) => decided += 1,
                None => undecided += 1,
            }
        }
        assert!(decided > 200 && undecided > 30, "{decided} {undecided}");
    }
}
