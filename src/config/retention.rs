//! The rules of retention, as they are configured: how many backups stay, and for how long WAL does.

use std::time::Duration;

/// No rule counts further.
pub(super) const KEEP_MAX: u32 = 100_000;

/// Rules of retention. A rule that is absent or 0 keeps nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retention {
    /// The newest backups, by number.
    pub last: Option<u32>,
    /// The last backup of so many days.
    pub daily: Option<u32>,
    /// The last backup of so many ISO weeks.
    pub weekly: Option<u32>,
    /// The last backup of so many months.
    pub monthly: Option<u32>,
    /// The last backup of so many years.
    pub yearly: Option<u32>,
    /// Every backup that is not older than the newest by more than this.
    pub within: Option<Duration>,
    /// For so long before the newest backup every moment stays reachable; older backups keep the WAL of their own.
    pub wal_window: Option<Duration>,
    /// A backup leaves only while so many repositories have it, this one among them.
    pub min_copies: Option<u32>,
    /// Whether the newest backup that a drill proved stays.
    pub proven: Option<bool>,
    /// The zone in which days begin.
    pub timezone: Option<String>,
}

impl Retention {
    /// The number of newest backups, and no other rule.
    pub fn newest(count: u32) -> Retention {
        Retention {
            last: Some(count),
            ..Retention::default()
        }
    }

    /// Returns these rules, and those of `base` that are absent here.
    #[must_use]
    pub fn or(&self, base: &Retention) -> Retention {
        Retention {
            last: self.last.or(base.last),
            daily: self.daily.or(base.daily),
            weekly: self.weekly.or(base.weekly),
            monthly: self.monthly.or(base.monthly),
            yearly: self.yearly.or(base.yearly),
            within: self.within.or(base.within),
            wal_window: self.wal_window.or(base.wal_window),
            min_copies: self.min_copies.or(base.min_copies),
            proven: self.proven.or(base.proven),
            timezone: self.timezone.clone().or_else(|| base.timezone.clone()),
        }
    }

    /// Returns the numbers of the rules that count backups or periods.
    fn counts(&self) -> [u32; 5] {
        [
            self.last,
            self.daily,
            self.weekly,
            self.monthly,
            self.yearly,
        ]
        .map(Option::unwrap_or_default)
    }

    /// Whether a rule says which backups stay.
    pub fn keeps_backups(&self) -> bool {
        self.within.is_some() || self.counts().iter().any(|count| *count > 0)
    }

    /// The largest number of backups that one rule keeps, at least 1.
    pub fn most(&self) -> u32 {
        self.counts().into_iter().fold(1, u32::max)
    }

    /// Whether a rule goes by the time at which a backup was taken.
    pub fn goes_by_time(&self) -> bool {
        let [_, of_periods @ ..] = self.counts();
        self.within.is_some() || of_periods.iter().any(|count| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrower_section_wins_key_by_key() {
        let cluster = Retention {
            daily: Some(30),
            monthly: Some(12),
            ..Retention::default()
        };
        let repository = Retention {
            daily: Some(0),
            min_copies: Some(2),
            proven: Some(true),
            ..Retention::default()
        };
        let both = repository.or(&cluster);
        assert_eq!((both.daily, both.monthly), (Some(0), Some(12)));
        assert!(both.keeps_backups() && both.goes_by_time());
        assert_eq!((both.most(), both.min_copies), (12, Some(2)));
        // A rule that may keep none lets no other backup go.
        assert!(!repository.keeps_backups());
        let off = Retention {
            proven: Some(false),
            ..Retention::default()
        };
        assert_eq!(off.or(&both).proven, Some(false));
        assert_eq!(cluster.or(&both).proven, Some(true));
        assert_eq!(repository.most(), 1);
    }
}
