//! A recovery of several members to one moment, as a value: what each member reaches, how exact that is together, and the steps.
//!
//! Pure: what a member can reach was planned by whoever knows its kind.

use serde::{Deserialize, Serialize};

use super::estimate::Basis;
use crate::config::{MemberKind, SetMember};
use crate::pg::time::TimestampTz;
use crate::repo::set_mark::Level;

/// The extent of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// Clusters and Redis servers.
    Database,
    /// Files and configuration.
    Application,
    /// All members.
    Full,
}

impl Extent {
    /// Whether members of a kind belong to it.
    pub fn has(self, kind: MemberKind) -> bool {
        let is_database = matches!(kind, MemberKind::Cluster | MemberKind::Redis);
        match self {
            Extent::Database => is_database,
            Extent::Application => !is_database,
            Extent::Full => true,
        }
    }
}

/// The moment that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// A mark, by its name.
    Mark(String),
    /// A time.
    Time(TimestampTz),
}

/// The reach of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// It gets there.
    Reached(Reached),
    /// It does not.
    Unreached {
        why: String,
        /// The nearest moment before, where it is known.
        before: Option<TimestampTz>,
        /// The nearest moment after, where it is known.
        after: Option<TimestampTz>,
    },
}

/// The state that a member comes back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reached {
    /// The backup that it begins with.
    pub backup: String,
    /// The moment of the state; none where nothing tells.
    pub moment: Option<TimestampTz>,
    /// The position, where its kind has one.
    pub position: Option<String>,
    /// Bytes that are written.
    pub bytes: u64,
    /// How long that takes, where something tells.
    pub ms: Option<u64>,
    /// Whether it was measured on this host.
    pub basis: Option<Basis>,
    /// The exactness.
    pub level: Level,
    /// Warnings of its plan, such as another timeline that has commits for the moment.
    pub warnings: Vec<String>,
}

/// The plan of one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberPlan {
    pub member: SetMember,
    /// The state; none where it is not reached.
    pub reached: Option<Reached>,
    /// Seconds between the state and now: what is lost of this member.
    pub loss_seconds: Option<u64>,
    /// Seconds by which the state is later than the moment that is wanted; files are.
    pub ahead_seconds: Option<u64>,
    /// Why it is not reached.
    pub why: Option<String>,
}

/// The plan of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SetPlan {
    /// The moment that is wanted.
    pub wanted: Wanted,
    /// The time of that moment.
    pub time: TimestampTz,
    /// Whether every member reaches it.
    pub reachable: bool,
    /// The exactness: that of the least exact member; none where one is not reached.
    pub level: Option<Level>,
    /// Seconds between the earliest and the latest moment of its members.
    pub spread_seconds: u64,
    /// The members, in the order of their recovery.
    pub members: Vec<MemberPlan>,
    /// Bytes that are written.
    pub bytes: u64,
    /// How long it takes, one member after the other.
    pub ms: u64,
    /// Members of which nothing tells how long they take.
    pub untimed: Vec<SetMember>,
    /// Members of which defaults tell it: nothing measured them on this host.
    pub by_default: Vec<SetMember>,
    /// The nearest moment before that every member reaches, as far as it is known.
    pub nearest_before: Option<TimestampTz>,
    /// The nearest moment after.
    pub nearest_after: Option<TimestampTz>,
}

fn seconds(later: TimestampTz, earlier: TimestampTz) -> Option<u64> {
    later.duration_since(earlier).map(|d| d.as_secs())
}

/// Makes the plan of a set. The members come in the order of their recovery.
pub fn plan(
    (wanted, time): (Wanted, TimestampTz),
    now: TimestampTz,
    members: Vec<(SetMember, Reach)>,
) -> SetPlan {
    let mut plan = SetPlan {
        wanted,
        time,
        reachable: !members.is_empty(),
        level: Some(Level::Marker),
        spread_seconds: 0,
        members: Vec::new(),
        bytes: 0,
        ms: 0,
        untimed: Vec::new(),
        by_default: Vec::new(),
        nearest_before: None,
        nearest_after: None,
    };
    let mut moments: Vec<TimestampTz> = Vec::new();
    let (mut knows_before, mut knows_after) = (true, true);
    for (member, reach) in members {
        match reach {
            Reach::Reached(reached) => {
                plan.bytes = plan.bytes.saturating_add(reached.bytes);
                plan.level = plan.level.map(|level| level.min(reached.level));
                moments.extend(reached.moment);
                plan.members.push(MemberPlan {
                    member,
                    loss_seconds: reached.moment.and_then(|moment| seconds(now, moment)),
                    ahead_seconds: reached.moment.and_then(|moment| seconds(moment, time)),
                    why: None,
                    reached: Some(reached),
                });
            }
            Reach::Unreached { why, before, after } => {
                plan.reachable = false;
                // The set reaches no moment that one of them lacks.
                (knows_before, knows_after) = (
                    knows_before && before.is_some(),
                    knows_after && after.is_some(),
                );
                plan.nearest_before = before.into_iter().chain(plan.nearest_before).min();
                plan.nearest_after = after.into_iter().chain(plan.nearest_after).max();
                plan.members.push(MemberPlan {
                    member,
                    reached: None,
                    loss_seconds: None,
                    ahead_seconds: None,
                    why: Some(why),
                });
            }
        }
    }
    plan.add_times();
    plan.nearest_before = plan.nearest_before.filter(|_| knows_before);
    plan.nearest_after = plan.nearest_after.filter(|_| knows_after);
    plan.level = plan.level.filter(|_| plan.reachable);
    let ends = moments.iter().min().zip(moments.iter().max());
    plan.spread_seconds = ends
        .and_then(|(first, last)| seconds(*last, *first))
        .unwrap_or(0);
    plan
}

impl SetPlan {
    /// Adds up how long the members take.
    pub fn add_times(&mut self) {
        let reached = || {
            let members = self.members.iter();
            members.filter_map(|one| Some((&one.member, one.reached.as_ref()?)))
        };
        let ms = reached().fold(0, |sum: u64, (_, r)| sum.saturating_add(r.ms.unwrap_or(0)));
        let those = |is: &dyn Fn(&Reached) -> bool| -> Vec<SetMember> {
            let found = reached().filter(|(_, reached)| is(reached));
            found.map(|(member, _)| member.clone()).collect()
        };
        let untimed = those(&|reached| reached.ms.is_none());
        let by_default = those(&|reached| reached.basis == Some(Basis::Default));
        (self.ms, self.untimed, self.by_default) = (ms, untimed, by_default);
    }
}

/// A step of a recovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// A member is restored aside: a Redis server's data set, which a server loads; a cluster, which recovers there in private.
    Aside(String),
    /// A cluster's directory is a standby, which is stopped, and recovers there in private.
    FromStandby(String),
    /// The applications are stopped.
    StopApplications,
    /// A member's service is stopped.
    Stop(String),
    /// A member is put in its place; what was there is kept.
    Replace(String),
    /// Erasures later than the moment are repeated in a cluster, in private.
    Erase(String),
    /// A copy that is in its place becomes the cluster: its server archives.
    Adopt(String),
    /// A member's service is started, and has the data.
    Start(String),
    /// The applications are started.
    StartApplications,
    /// Names and proxies lead to what was started.
    Hook,
    /// The applications work.
    Health,
    /// A backup of a member: its log, or its new timeline, goes on from it.
    Backup(String),
}

impl Step {
    /// Whether it stops what runs.
    pub fn is_stop(&self) -> bool {
        matches!(self, Step::StopApplications | Step::Stop(_))
    }

    /// The member that it works on, by its text.
    pub fn member(&self) -> Option<&str> {
        match self {
            Step::Aside(member)
            | Step::FromStandby(member)
            | Step::Stop(member)
            | Step::Replace(member)
            | Step::Erase(member)
            | Step::Adopt(member)
            | Step::Start(member)
            | Step::Backup(member) => Some(member),
            Step::StopApplications | Step::StartApplications | Step::Hook | Step::Health => None,
        }
    }

    /// The step in words.
    pub fn text(&self) -> String {
        match self {
            Step::Aside(member) => {
                let how = match kind_of(member) {
                    Some(MemberKind::Cluster) => "recover it in private",
                    _ => "load it",
                };
                format!("restore {member} aside, and {how}")
            }
            Step::FromStandby(member) => {
                format!("stop the standby of {member}, and recover it in private")
            }
            Step::StopApplications => "stop the applications".to_owned(),
            Step::Stop(member) => format!("stop {member}"),
            Step::Replace(member) => format!("put {member} in its place, and keep what was there"),
            Step::Erase(member) => format!("repeat erasures in {member}, in private"),
            Step::Adopt(member) => format!("let {member} archive"),
            Step::Start(member) => format!("start {member}"),
            Step::StartApplications => "start the applications".to_owned(),
            Step::Hook => "run the hook".to_owned(),
            Step::Health => "ask whether the applications work".to_owned(),
            Step::Backup(member) => format!("back {member} up"),
        }
    }
}

fn kind_of(member: &str) -> Option<MemberKind> {
    let parsed: Option<SetMember> = member.parse().ok();
    parsed.map(|member| member.kind)
}

/// The clusters of a recovery to which more happens than to others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clusters {
    /// Those that are restored and recover aside, before anything is stopped.
    pub aside: Vec<SetMember>,
    /// Those whose directory is a standby, which recovers in its place, before the applications are stopped.
    pub standbys: Vec<SetMember>,
    /// Those that lack erasures, which are repeated before anything is started.
    pub erased: Vec<SetMember>,
}

/// The steps of a recovery, in their order. Everything that takes long and needs no outage comes first.
pub fn steps(members: &[SetMember], clusters: &Clusters) -> Vec<Step> {
    let of = |kind: MemberKind| -> Vec<String> {
        let found = members.iter().filter(|member| member.kind == kind);
        found.map(ToString::to_string).collect()
    };
    let names = |members: &[SetMember]| -> Vec<String> {
        members.iter().map(ToString::to_string).collect()
    };
    let (all, caches) = (of(MemberKind::Cluster), of(MemberKind::Redis));
    let standbys = names(&clusters.standbys);
    let mut running = all.clone();
    running.retain(|member| !standbys.contains(member));
    let rest: Vec<String> = [of(MemberKind::Files), of(MemberKind::Config)].concat();
    let (aside, late): (Vec<&SetMember>, Vec<&SetMember>) = {
        let erased = clusters.erased.iter();
        erased.partition(|member| {
            [&clusters.aside, &clusters.standbys]
                .iter()
                .any(|c| c.contains(member))
        })
    };
    let erase = |member: &&SetMember| Step::Erase(member.to_string());
    let mut steps: Vec<Step> = names(&clusters.aside)
        .into_iter()
        .map(Step::Aside)
        .collect();
    steps.extend(standbys.iter().cloned().map(Step::FromStandby));
    steps.extend(aside.iter().map(erase));
    steps.extend(caches.iter().cloned().map(Step::Aside));
    steps.push(Step::StopApplications);
    steps.extend(caches.iter().chain(&running).cloned().map(Step::Stop));
    let replaced = running.iter().chain(&caches).chain(&rest).cloned();
    steps.extend(replaced.map(Step::Replace));
    let early = names(&clusters.aside).into_iter().chain(standbys);
    steps.extend(early.map(Step::Adopt));
    steps.extend(
        late.iter()
            .flat_map(|member| [erase(member), Step::Adopt(member.to_string())]),
    );
    steps.extend(all.iter().chain(&caches).cloned().map(Step::Start));
    steps.extend([Step::StartApplications, Step::Hook, Step::Health]);
    steps.extend(caches.into_iter().chain(all).map(Step::Backup));
    steps
}

/// The steps during which the applications are down.
pub fn outage(steps: &[Step]) -> std::ops::Range<usize> {
    let of = |wanted: &Step| steps.iter().position(|step| step == wanted);
    let (from, to) = (of(&Step::StopApplications), of(&Step::StartApplications));
    from.unwrap_or(0)..to.map_or(steps.len(), |to| to + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> TimestampTz {
        format!("2026-11-20T06:{text}Z").parse().unwrap()
    }

    fn reached(moment: &str, level: Level) -> Reach {
        Reach::Reached(Reached {
            backup: "b".into(),
            moment: Some(time(moment)),
            position: None,
            bytes: 10,
            ms: Some(1000),
            basis: Some(Basis::Measured),
            level,
            warnings: Vec::new(),
        })
    }

    fn member(text: &str) -> SetMember {
        text.parse().unwrap()
    }

    #[test]
    fn a_set_is_as_exact_as_its_least_exact_member() {
        let members = vec![
            (member("main"), reached("40:00", Level::Marker)),
            (member("redis:shop"), reached("40:00", Level::Marker)),
            (member("files:uploads"), reached("40:12", Level::Ordered)),
        ];
        let wanted = (Wanted::Mark("m".into()), time("40:00"));
        let plan = plan(wanted, time("50:00"), members);
        assert!(plan.reachable);
        assert_eq!(plan.level, Some(Level::Ordered));
        assert_eq!((plan.bytes, plan.ms, plan.spread_seconds), (30, 3000, 12));
        assert_eq!(plan.members[0].loss_seconds, Some(600));
        assert_eq!(plan.members[2].ahead_seconds, Some(12));
        assert!(plan.untimed.is_empty());
    }

    #[test]
    fn the_nearest_moments_are_those_that_every_member_reaches() {
        let unreached = |before: Option<&str>, after: Option<&str>| Reach::Unreached {
            why: "a gap".into(),
            before: before.map(time),
            after: after.map(time),
        };
        let of = |members: Vec<Reach>| {
            let names = ["main", "redis:shop", "files:uploads"].map(member);
            let wanted = (Wanted::Time(time("40:00")), time("40:00"));
            plan(
                wanted,
                time("50:00"),
                names.into_iter().zip(members).collect(),
            )
        };
        let found = of(vec![
            unreached(Some("30:00"), Some("41:00")),
            unreached(Some("35:00"), Some("45:00")),
            reached("40:00", Level::Time),
        ]);
        assert!(!found.reachable && found.level.is_none());
        assert_eq!(found.nearest_before, Some(time("30:00")));
        assert_eq!(found.nearest_after, Some(time("45:00")));
        let found = of(vec![
            unreached(Some("30:00"), None),
            unreached(None, Some("45:00")),
        ]);
        assert_eq!((found.nearest_before, found.nearest_after), (None, None));
        assert!(!of(Vec::new()).reachable);
    }

    #[test]
    fn databases_are_stopped_last_and_started_first() {
        let members = ["files:u", "redis:r", "main", "config:c"].map(member);
        let texts = |aside: &[SetMember], erased: &[SetMember]| -> Vec<String> {
            let clusters = Clusters {
                aside: aside.to_vec(),
                erased: erased.to_vec(),
                standbys: Vec::new(),
            };
            let steps = steps(&members, &clusters);
            steps.iter().map(Step::text).collect()
        };
        let main = [member("main")];
        let late = texts(&[], &main);
        assert_eq!(
            late[8..11],
            [
                "repeat erasures in main, in private",
                "let main archive",
                "start main"
            ]
        );
        let without: Vec<String> = late[..8].iter().chain(&late[10..]).cloned().collect();
        assert_eq!(without, texts(&[], &[]));
        assert_eq!(
            texts(&main, &main),
            [
                "restore main aside, and recover it in private",
                "repeat erasures in main, in private",
                "restore redis:r aside, and load it",
                "stop the applications",
                "stop redis:r",
                "stop main",
                "put main in its place, and keep what was there",
                "put redis:r in its place, and keep what was there",
                "put files:u in its place, and keep what was there",
                "put config:c in its place, and keep what was there",
                "let main archive",
                "start main",
                "start redis:r",
                "start the applications",
                "run the hook",
                "ask whether the applications work",
                "back redis:r up",
                "back main up",
            ]
        );
        let all = steps(&members, &Clusters::default());
        assert_eq!(all[outage(&all)].len(), 10);
    }
}
