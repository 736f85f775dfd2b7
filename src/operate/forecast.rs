//! The meaning of the configured rules of retention for the backups of a cluster, or of other content: which stay, and which go when.

use std::time::Duration;

use serde::Serialize;

use super::reading::Reading;
use super::retention::Rules;
use super::session::Session;
use crate::config::{self, Period, Retention};
use crate::error::Result;
use crate::pg::time::TimestampTz;
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

/// Foretells what the rules do; `None` where none is configured.
///
/// # Errors
/// Errors of the repository.
pub fn look(
    session: &Session,
    reading: &Reading,
    inventory: &Inventory,
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
    let policy = Policy {
        proven: Rules::proven(&kept, reading.repository.store(), &layout)?,
        rules: kept.clone(),
        zone: Some(zone),
        grace: DAY,
        min_age: DAY,
        confirm_burst: true,
        ..policy
    };
    let survey = Survey::without_leftovers(&reading.repository, registration)?;
    let plan = retention(&survey, &policy, session.host.now());
    Ok(Some(told(&kept, zone, &plan)))
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
        rules: kept.clone(),
        zone: Some(zone),
        grace: DAY,
        min_age: DAY,
        confirm_burst: true,
        ..Policy::default()
    };
    let plan = aux_items::retention(catalog, log, &policy, session.host.now());
    Ok(Some(told(&kept, zone, &plan)))
}

fn told(rules: &Retention, zone: Zone, plan: &ExpirePlan) -> Forecast {
    Forecast {
        rules: text(rules),
        zone: zone.to_string(),
        window_begin: plan.window_begin,
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
