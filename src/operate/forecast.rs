//! The meaning of the configured rules of retention for the backups of a cluster, or of other content: which stay, and which go when.

use std::time::Duration;

use serde::Serialize;

use super::lag::Lag;
use super::reading::Reading;
use super::retention::Rules;
use super::session::Session;
use crate::config::{self, Period, Retention};
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::plan::retention::copies::Copies;
use crate::plan::retention::{ExpirePlan, Fate, Judged, Policy, aux_items, retention};
use crate::plan::target_time::Zone;
use crate::repo::catalog::Catalog;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::root::aux_root::AuxBackup;
use crate::repo::scope::Scope;
use crate::repo::slot_map;
use crate::repo::stored_log::StoredLog;
use crate::wal::inventory::Inventory;
use crate::wal::survey::Survey;

/// The period of `pitr expire` for `--grace` and for `--min-age`, if neither is given.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The meaning of the rules.
#[derive(Serialize)]
pub struct Forecast {
    /// The rules, as they are configured.
    pub rules: String,
    /// The zone in which days begin.
    pub zone: String,
    /// From here on every moment stays reachable, where there is a WAL window.
    pub window_begin: Option<TimestampTz>,
    /// Why the next run deletes nothing, and rules that are not foretold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Each backup, oldest first.
    pub backups: Vec<Foretold>,
}

/// A backup, and what becomes of it.
#[derive(Serialize)]
pub struct Foretold {
    pub id: BackupId,
    /// When it was complete.
    pub stop_time: TimestampTz,
    /// `keep`, `mark`, `waiting` or `delete`: what the next run of expire does.
    pub fate: &'static str,
    /// Why.
    pub reason: String,
    /// It is marked, and deleted after this time.
    pub not_before: Option<TimestampTz>,
    /// The rules keep it until then at the least; none where that hangs on backups to come.
    pub kept_until: Option<TimestampTz>,
    /// It keeps the WAL to its own end only.
    pub to_its_end_only: bool,
    /// Something is wrong with it.
    pub damaged: bool,
}

impl From<&Judged> for Foretold {
    fn from(judged: &Judged) -> Foretold {
        Foretold {
            id: judged.id.clone(),
            stop_time: judged.stop_time,
            fate: judged.fate.as_str(),
            reason: judged.reason.clone(),
            not_before: match judged.fate {
                Fate::Waiting(due) => Some(due),
                _ => None,
            },
            kept_until: judged.kept_until,
            to_its_end_only: judged.is_bounded,
            damaged: judged.damage.is_some(),
        }
    }
}

/// Foretells what the rules do, with what `lags` tells of the other repositories; `None` where no rule is configured.
///
/// # Errors
/// Errors of the repository.
pub fn look(
    session: &Session,
    reading: &Reading,
    (inventory, lags): (&Inventory, &[Lag]),
    policy: Policy,
) -> Result<Option<Forecast>> {
    let rules = Rules::new(session, reading.settings.clone(), None);
    let cluster = Some(reading.name.as_str());
    let Some(kept) = rules.of(cluster, &reading.configured) else {
        return Ok(None);
    };
    let registered = reading.repository.registrations(&reading.name)?;
    let is_meant = |r: &&crate::repo::repository::Registration| {
        r.system_identifier == inventory.system_identifier
    };
    let Some(registration) = registered.iter().find(is_meant) else {
        return Ok(None);
    };
    let zone = rules.zone(session, cluster, &reading.configured)?;
    let layout = ClusterLayout::new(&reading.name, inventory.system_identifier)?;
    // A command that names one repository looks at no other one.
    let asks_others = session.flags.repository.is_none();
    let wanted = copies_wanted(&kept).filter(|_| asks_others);
    let policy = Policy {
        proven: Rules::proven(&kept, reading.repository.store(), &layout)?,
        copies: wanted.map(|wanted| copies(wanted, &reading.configured.name, lags)),
        rules: kept,
        zone: Some(zone),
        grace: DAY,
        min_age: DAY,
        ..policy
    };
    let survey = Survey::without_leftovers(&reading.repository, registration)?;
    let plan = retention(&survey, &policy, session.host.now());
    Ok(Some(told(&policy, zone, &plan)))
}

/// The number of repositories that have a backup before it goes, where one is not enough.
fn copies_wanted(rules: &Retention) -> Option<u32> {
    rules.min_copies.filter(|wanted| *wanted > 1)
}

/// Counts in how many other places each backup lies whole.
fn copies(wanted: u32, own: &str, lags: &[Lag]) -> Copies {
    let twin = lags.iter().find(|lag| lag.name == own);
    let twin = twin.and_then(|lag| lag.same_place_as.as_deref());
    let is_other = |lag: &&Lag| {
        lag.name != own && lag.same_place_as.is_none() && Some(lag.name.as_str()) != twin
    };
    let mut copies = Copies {
        wanted,
        ..Copies::default()
    };
    for id in lags.iter().filter(is_other).flat_map(|lag| &lag.whole) {
        *copies.elsewhere.entry(id.clone()).or_default() += 1;
    }
    copies
}

/// Foretells what the rules do with other content of which everything was read; `None` where none is configured, and where this version deletes nothing.
///
/// # Errors
/// Those of [`Rules::zone`].
pub fn of_scope(
    session: &Session,
    (rules, configured): (&Rules, &config::Repository),
    (scope, catalog, log): (&Scope, &Catalog<AuxBackup>, &StoredLog),
) -> Result<Option<Forecast>> {
    let kept = rules.of(None, configured);
    let Some(kept) = kept.filter(|_| scope.is_known_kind()) else {
        return Ok(None);
    };
    // Drills are of clusters, and a window is one of WAL or of a log.
    let has_log = scope.kind() == Some(slot_map::CONTENT);
    let kept = Retention {
        wal_window: kept.wal_window.filter(|_| has_log),
        proven: None,
        ..kept
    };
    let zone = rules.zone(session, None, configured)?;
    let policy = Policy {
        rules: kept,
        zone: Some(zone),
        grace: DAY,
        min_age: DAY,
        ..Policy::default()
    };
    let plan = aux_items::retention(catalog, log, &policy, session.host.now());
    Ok(Some(told(&policy, zone, &plan)))
}

fn told(policy: &Policy, zone: Zone, plan: &ExpirePlan) -> Forecast {
    let mut notes = plan.withheld.clone();
    if policy.copies.is_none() && copies_wanted(&policy.rules).is_some() {
        notes.push("min_copies is not foretold: other repositories were not asked, and more backups may stay".to_owned());
    }
    Forecast {
        rules: text(&policy.rules),
        zone: zone.to_string(),
        window_begin: plan.window_begin,
        notes,
        backups: plan.backups.iter().map(Foretold::from).collect(),
    }
}

/// The rules as they are configured.
fn text(rules: &Retention) -> String {
    let number =
        |name: &str, value: Option<u32>| value.filter(|n| *n > 0).map(|n| format!("{name} {n}"));
    let period = |name: &str, value: Option<Duration>| {
        value.map(|d| format!("{name} {}", Period(d.as_secs())))
    };
    let all = [
        number("keep_last", rules.last),
        number("keep_daily", rules.daily),
        number("keep_weekly", rules.weekly),
        number("keep_monthly", rules.monthly),
        number("keep_yearly", rules.yearly),
        period("keep_within", rules.within),
        period("wal_window", rules.wal_window),
        number("min_copies", rules.min_copies),
        rules
            .proven
            .filter(|is| *is)
            .map(|_| "keep_proven".to_owned()),
    ];
    all.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x71_copies_in_other_places_count_and_a_reason_to_delete_nothing_is_told() {
        let id: BackupId = "20261101T000000Z-full".parse().unwrap();
        let lag = |name: &str, same_place_as: Option<&str>| {
            let mut lag = Lag::default();
            lag.name = name.to_owned();
            lag.same_place_as = same_place_as.map(str::to_owned);
            lag.whole = vec![id.clone()];
            lag
        };
        // Two of them are one place, whichever is asked.
        let lags = [
            lag("near", None),
            lag("link", Some("near")),
            lag("far", None),
        ];
        let counted = |own: &str, lags: &[Lag]| copies(2, own, lags).elsewhere.get(&id).copied();
        let owns = ["near", "link", "far"];
        assert_eq!(owns.map(|own| counted(own, &lags)), [Some(1); 3]);
        assert_eq!(counted("near", &lags[..2]), None);

        let told = |min_copies: Option<u32>, copies: Option<Copies>| {
            let rules = Retention {
                min_copies,
                ..Retention::newest(1)
            };
            let policy = Policy {
                rules,
                copies,
                ..Policy::default()
            };
            let plan = ExpirePlan {
                withheld: vec!["too many".to_owned()],
                ..ExpirePlan::default()
            };
            told(&policy, Zone::UTC, &plan).notes
        };
        assert_eq!(told(Some(1), None), ["too many"]);
        assert_eq!(told(Some(2), Some(Copies::default())), ["too many"]);
        let notes = told(Some(2), None);
        assert!(
            notes[1].starts_with("min_copies is not foretold"),
            "{notes:?}"
        );
    }
}
