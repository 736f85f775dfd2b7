//! Tiers: the storage class that content of a repository moves to once no young backup needs it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::Period;
use crate::err;
use crate::error::{Error, Result};

/// A day.
const DAY: Duration = Duration::from_secs(86_400);

/// A storage class of Amazon S3, from the warmest to the coldest: rules of a bucket move objects in this order only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StorageClass {
    /// The default.
    Standard,
    /// An older default.
    ReducedRedundancy,
    /// Cheaper to keep, dearer to read.
    StandardIa,
    /// The store moves objects by itself.
    IntelligentTiering,
    /// As `StandardIa`, in one place.
    OnezoneIa,
    /// The coldest class that is read at once.
    GlacierIr,
    /// Objects must be thawed first, which takes hours.
    Glacier,
    /// Objects must be thawed first, which takes half a day and more.
    DeepArchive,
}

/// All, with the store's names.
const CLASSES: [(&str, StorageClass); 8] = [
    ("STANDARD", StorageClass::Standard),
    ("REDUCED_REDUNDANCY", StorageClass::ReducedRedundancy),
    ("STANDARD_IA", StorageClass::StandardIa),
    ("INTELLIGENT_TIERING", StorageClass::IntelligentTiering),
    ("ONEZONE_IA", StorageClass::OnezoneIa),
    ("GLACIER_IR", StorageClass::GlacierIr),
    ("GLACIER", StorageClass::Glacier),
    ("DEEP_ARCHIVE", StorageClass::DeepArchive),
];

impl StorageClass {
    /// The class of this name; none of a store of its own kind.
    pub fn named(name: &str) -> Option<StorageClass> {
        let found = CLASSES.iter().find(|(n, _)| *n == name);
        found.map(|(_, class)| *class)
    }

    /// The store's name of it.
    pub fn name(self) -> &'static str {
        let found = CLASSES.iter().find(|(_, class)| *class == self);
        found.map_or("STANDARD", |(name, _)| *name)
    }

    /// Whether its objects must be thawed before they can be read.
    pub fn is_archive(self) -> bool {
        self >= StorageClass::Glacier
    }

    /// Whether a rule of a bucket can move objects from here to `colder`.
    pub fn leads_to(self, colder: StorageClass) -> bool {
        use StorageClass::{GlacierIr, OnezoneIa};
        colder > self && (self, colder) != (OnezoneIa, GlacierIr)
    }

    /// The time for which an object in it is paid at least.
    pub fn least_stay(self) -> Duration {
        DAY.saturating_mul(match self {
            StorageClass::StandardIa | StorageClass::OnezoneIa => 30,
            StorageClass::GlacierIr | StorageClass::Glacier => 90,
            StorageClass::DeepArchive => 180,
            _ => 0,
        })
    }

    /// The least age at which a rule of a bucket moves objects into it.
    pub fn rule_days(self) -> u32 {
        match self {
            StorageClass::StandardIa | StorageClass::OnezoneIa => 30,
            _ => 0,
        }
    }
}

impl fmt::Display for StorageClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The kind of object that a tier is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TierKind {
    /// File content of backups.
    Packs,
    /// Whole segments of PostgreSQL's WAL.
    Wal,
}

impl TierKind {
    /// Its name in a table.
    pub fn noun(self) -> &'static str {
        match self {
            TierKind::Packs => "packs",
            TierKind::Wal => "WAL",
        }
    }
}

/// One entry of `tier`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tier {
    /// The age of the newest backup that needs the object.
    pub after: Duration,
    /// The class it then moves to.
    pub class: StorageClass,
    /// The objects.
    pub kind: TierKind,
}

/// How objects are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TierBy {
    /// The janitor tags them, and rules of the bucket move what is tagged.
    #[default]
    Rules,
    /// The janitor has the store copy them onto themselves.
    Copy,
}

impl FromStr for Tier {
    type Err = Error;

    /// Reads `30d:STANDARD_IA` or `30d:STANDARD_IA:wal`, as the environment has it.
    fn from_str(text: &str) -> Result<Tier> {
        let mut parts = text.split(':');
        let (after, class) = (parts.next().unwrap_or_default(), parts.next());
        let tier = Tier::new(after, class.unwrap_or_default(), parts.next());
        match parts.next() {
            Some(_) => Err(err!(Usage, "\"{}\" is not a tier", text.escape_debug())),
            None => tier,
        }
    }
}

impl Tier {
    /// Reads the members of one tier.
    ///
    /// # Errors
    /// `Usage` for what is none of them.
    pub fn new(after: &str, class: &str, kind: Option<&str>) -> Result<Tier> {
        let after = after.parse::<Period>()?.duration();
        let kind = match kind {
            None | Some("packs") => TierKind::Packs,
            Some("wal") => TierKind::Wal,
            Some(other) => {
                let other = other.escape_debug();
                let wrong = err!(Usage, "\"{other}\" is not a kind that moves");
                return Err(wrong.hint(
                    "Kinds are \"packs\" and \"wal\": all else is small, and read by everything.",
                ));
            }
        };
        let colder = StorageClass::named(class).filter(|c| StorageClass::Standard.leads_to(*c));
        let Some(class) = colder.filter(|c| *c != StorageClass::ReducedRedundancy) else {
            let names = CLASSES.iter().skip(2).map(|(name, _)| *name);
            let names = names.collect::<Vec<_>>().join(", ");
            let shown = class.escape_debug();
            return Err(err!(Usage, "\"{shown}\" is not a storage class to move to")
                .hint(format!("Classes are {names}.")));
        };
        if kind == TierKind::Wal && class.is_archive() {
            return Err(err!(Usage, "WAL cannot move to {class}, from which it must be thawed")
                .hint("Recovery fetches segments one after the other and waits minutes for each at most. Use GLACIER_IR."));
        }
        Ok(Tier { after, class, kind })
    }
}

/// Requires that later tiers of a kind are colder, and that rules of a bucket can do what they say.
///
/// # Errors
/// `Usage`, naming the two that contradict each other.
pub(super) fn check(tiers: &[Tier], by: TierBy) -> Result<()> {
    for kind in [TierKind::Packs, TierKind::Wal] {
        let own: Vec<&Tier> = tiers.iter().filter(|tier| tier.kind == kind).collect();
        for pair in own.windows(2) {
            let [one, next] = pair else { continue };
            if next.after <= one.after || !one.class.leads_to(next.class) {
                return Err(err!(
                    Usage,
                    "{} cannot follow {}: each tier must be later and colder than the one before",
                    next.class,
                    one.class
                ));
            }
        }
    }
    let is_early = |t: &&Tier| t.after < DAY.saturating_mul(t.class.rule_days());
    match tiers.iter().find(is_early).filter(|_| by == TierBy::Rules) {
        Some(tier) => Err(err!(
            Usage,
            "rules of a bucket move nothing to {} before it is {} days old",
            tier.class,
            tier.class.rule_days()
        )
        .hint("Make \"after\" longer, or have pitr copy: tier_by = \"copy\".")),
        None => Ok(()),
    }
}

/// Two classes of a kind of which a copy does not lead from the first to the second. A copy begins with reading, and nothing thaws an object for that.
pub fn not_by_copy(tiers: &[Tier]) -> Option<(StorageClass, StorageClass)> {
    let of_kind = |kind: TierKind| {
        let mut own = tiers.iter().filter(|tier| tier.kind == kind);
        let archive = own.find(|tier| tier.class.is_archive())?;
        own.next().map(|next| (archive.class, next.class))
    };
    [TierKind::Packs, TierKind::Wal]
        .into_iter()
        .find_map(of_kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiers(text: &str) -> Result<Vec<Tier>> {
        text.split(',').map(str::parse).collect()
    }

    #[test]
    fn tiers_are_read_as_the_environment_has_them() {
        let read = tiers("30d:STANDARD_IA,90d:GLACIER:packs,60d:GLACIER_IR:wal").unwrap();
        assert_eq!(read[0].after, DAY * 30);
        assert_eq!(read[1].class, StorageClass::Glacier);
        assert_eq!(read[1].kind, TierKind::Packs);
        assert_eq!(read[2].kind, TierKind::Wal);
        assert!(check(&read, TierBy::Rules).is_ok());
        for (wrong, why) in [
            ("30d", "not a storage class"),
            ("30d:STANDARD", "not a storage class"),
            ("30d:REDUCED_REDUNDANCY", "not a storage class"),
            ("30d:COLD", "not a storage class"),
            ("x:GLACIER", "not a length of time"),
            ("30d:GLACIER:roots", "not a kind"),
            ("30d:GLACIER:wal", "must be thawed"),
            ("30d:GLACIER:packs:x", "not a tier"),
        ] {
            let said = tiers(wrong).unwrap_err().to_string();
            assert!(said.contains(why), "{wrong}: {said}");
        }
    }

    #[test]
    fn later_tiers_are_colder_and_rules_can_do_them() {
        for (text, by, fits) in [
            ("30d:STANDARD_IA,60d:GLACIER", TierBy::Rules, true),
            ("30d:GLACIER,60d:STANDARD_IA", TierBy::Rules, false),
            ("60d:STANDARD_IA,60d:GLACIER", TierBy::Rules, false),
            ("30d:ONEZONE_IA,60d:GLACIER_IR", TierBy::Copy, false),
            // Each kind for itself.
            ("30d:GLACIER,30d:STANDARD_IA:wal", TierBy::Rules, true),
            ("29d:STANDARD_IA", TierBy::Rules, false),
            ("29d:STANDARD_IA", TierBy::Copy, true),
            ("1d:GLACIER_IR", TierBy::Rules, true),
            // Such configurations run; "pitr repo tier" warns.
            ("90d:GLACIER,180d:DEEP_ARCHIVE", TierBy::Copy, true),
        ] {
            let read = tiers(text).unwrap();
            assert_eq!(check(&read, by).is_ok(), fits, "{text}");
        }
    }

    #[test]
    fn s40_a_copy_does_not_lead_from_one_archive_to_the_next() {
        use StorageClass::{DeepArchive, Glacier};
        for (text, found) in [
            (
                "90d:GLACIER,180d:DEEP_ARCHIVE",
                Some((Glacier, DeepArchive)),
            ),
            ("30d:GLACIER_IR,90d:DEEP_ARCHIVE", None),
            ("30d:STANDARD_IA,90d:GLACIER", None),
            ("90d:GLACIER,180d:GLACIER_IR:wal", None),
        ] {
            assert_eq!(not_by_copy(&tiers(text).unwrap()), found, "{text}");
        }
    }

    #[test]
    fn classes_have_their_names() {
        for (name, class) in CLASSES {
            assert_eq!(class.name(), name);
            assert_eq!(StorageClass::named(name), Some(class));
        }
        assert!(CLASSES.is_sorted_by_key(|(_, class)| *class));
    }
}
