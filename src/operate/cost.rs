//! The content of a repository by kind and storage class, its cost for a month, and its growth.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::failures::Failures;
use super::session::Session;
use crate::config::{self, Location, Price, S3Settings, TierBy, TierKind};
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::repo::scope;
use crate::store::s3::put_requests;
use crate::store::{Shown, Store};

/// The month by which growth is measured, and for which it is foretold.
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

/// The content of an object, as far as its key tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// WAL, histories and labels.
    Wal,
    /// The log of a receiver of Redis.
    Log,
    /// File content of backups.
    Packs,
    /// Their maps.
    Layers,
    /// Their roots, and PostgreSQL's manifests.
    Roots,
    /// Pins, claims, marks and the like.
    Events,
    /// Everything else.
    Other,
}

impl Kind {
    fn of(key: &str) -> Kind {
        let below = scope::prefix_of(key).and_then(|scope| key.get(scope.len() + 1..));
        match below.and_then(|key| key.split('/').next()) {
            Some("wal" | "conflicts") => Kind::Wal,
            Some("log") => Kind::Log,
            Some("packs") => Kind::Packs,
            Some("layers") => Kind::Layers,
            Some("backups") => Kind::Roots,
            Some("events") => Kind::Events,
            _ => Kind::Other,
        }
    }

    /// Its name in a table.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Wal => "WAL",
            Kind::Log => "log",
            Kind::Packs => "packs",
            Kind::Layers => "layers",
            Kind::Roots => "roots",
            Kind::Events => "events",
            Kind::Other => "other",
        }
    }
}

/// Objects, and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Amount {
    pub object_count: u64,
    pub stored_bytes: u64,
}

impl Amount {
    fn add(&mut self, other: Amount) {
        self.object_count += other.object_count;
        self.stored_bytes += other.stored_bytes;
    }
}

/// A kind of object in a storage class.
#[derive(Debug, Serialize)]
pub struct Part {
    pub kind: Kind,
    /// The store's name of the class; none where it has no classes.
    pub class: Option<String>,
    /// All that is there.
    #[serde(flatten)]
    pub all: Amount,
    /// The share of the last 30 days, without what `repo tier` copied to another class.
    pub last_month: Amount,
    /// Requests that stored that share, at least.
    pub put_requests: u64,
    /// A month of it, as a decimal number; none without a price.
    pub month_price: Option<String>,
    /// The price of those requests; none without a price.
    pub put_price: Option<String>,
}

/// A repository and its cost.
#[derive(Debug, Serialize)]
pub struct Cost {
    /// Its name.
    pub repository: String,
    /// The currency of the prices.
    pub currency: Option<String>,
    /// By kind and class.
    pub parts: Vec<Part>,
    /// All together.
    #[serde(flatten)]
    pub all: Amount,
    /// The share of the last 30 days.
    pub last_month: Amount,
    /// Requests that stored that share, at least.
    pub put_requests: u64,
    /// A month of what is there; none where a class has no price.
    pub month_price: Option<String>,
    /// Storing the objects of the last 30 days; none without a price.
    pub put_price: Option<String>,
    /// Stored bytes 30 days from now, if as much is stored again and nothing expires.
    pub next_month_bytes: u64,
    /// A month of those; none where a class has no price.
    pub next_month_price: Option<String>,
}

/// Looks at every repository, or the one that is named.
///
/// # Errors
/// Those of the configuration; the first failure when no repository could be looked at.
pub fn look(session: &Session) -> Result<(Vec<Cost>, Failures)> {
    let settings = session.settings_with_repositories()?;
    let (mut costs, mut failures) = (Vec::new(), Failures::default());
    for configured in &settings.repositories {
        let looked = session.open(configured).and_then(|repository| {
            let requests: fn(&str, u64) -> u64 = match configured.location {
                Location::S3 { .. } => put_requests,
                Location::Blob { .. } => crate::store::blob::put_requests,
                // Files, of which a price may be known all the same.
                Location::File(_) | Location::Sftp { .. } => |_, _| 1,
            };
            let is_moved = |key: &str, class: Option<&str>| is_moved(&configured.s3, key, class);
            let now = session.host.now();
            let counted = count(repository.store(), requests, (now, &is_moved))?;
            Ok(cost(configured, counted))
        });
        let doing = format!("look at repository \"{}\"", configured.name);
        costs.extend(failures.note(looked, doing));
    }
    failures.first_if(session, costs.is_empty())?;
    Ok((costs, failures))
}

type Counted = BTreeMap<(Kind, Option<String>), (Amount, Amount, u64)>;

/// Whether an object of this key and class was moved.
type IsMoved<'a> = dyn Fn(&str, Option<&str>) -> bool + 'a;

/// Whether `repo tier` copied an object onto itself, which makes it look as if it had been stored then.
fn is_moved(s3: &S3Settings, key: &str, class: Option<&str>) -> bool {
    let (kind, stored_as) = match Kind::of(key) {
        Kind::Wal => (TierKind::Wal, &s3.storage_class.wal),
        Kind::Packs => (TierKind::Packs, &s3.storage_class.packs),
        _ => return false,
    };
    let mut tiers = s3.tiers.iter().filter(|tier| tier.kind == kind);
    s3.tier_by == TierBy::Copy
        && class != stored_as.as_deref()
        && tiers.any(|tier| class == Some(tier.class.name()))
}

/// Counts all objects, and beside them those of the last month and the requests that stored these.
fn count(
    store: &dyn Store,
    requests: fn(&str, u64) -> u64,
    (now, is_moved): (TimestampTz, &IsMoved<'_>),
) -> Result<Counted> {
    let month_ago = now.saturating_sub(MONTH);
    let mut counted = Counted::new();
    store.objects(&mut |object: Shown<'_>| {
        let place = (Kind::of(object.key), object.class.map(str::to_owned));
        let (all, recent, puts) = counted.entry(place).or_default();
        let one = Amount {
            object_count: 1,
            stored_bytes: object.meta.size_bytes,
        };
        all.add(one);
        if object.meta.modified > month_ago && !is_moved(object.key, object.class) {
            recent.add(one);
            *puts += requests(object.key, one.stored_bytes);
        }
    })?;
    Ok(counted)
}

fn cost(configured: &config::Repository, counted: Counted) -> Cost {
    let prices = &configured.prices;
    let (mut all, mut recent) = (Amount::default(), Amount::default());
    let (mut now, mut next) = (Some(Price::default()), Some(Price::default()));
    let (mut parts, mut requests) = (Vec::new(), 0);
    for ((kind, class), (amount, last, puts)) in counted {
        all.add(amount);
        recent.add(last);
        requests += puts;
        let price = |bytes| prices.of_bytes(class.as_deref(), bytes);
        let month = price(amount.stored_bytes);
        now = sum(now, month);
        next = sum(
            next,
            price(amount.stored_bytes.saturating_add(last.stored_bytes)),
        );
        parts.push(Part {
            kind,
            all: amount,
            last_month: last,
            put_requests: puts,
            put_price: prices.of_puts(puts).map(|p| p.to_string()),
            month_price: month.map(|p| p.to_string()),
            class,
        });
    }
    let shown = |price: Option<Price>| price.filter(|_| !prices.is_empty()).map(|p| p.to_string());
    Cost {
        repository: configured.name.clone(),
        currency: prices.currency.clone(),
        parts,
        all,
        last_month: recent,
        put_requests: requests,
        month_price: shown(now),
        put_price: prices.of_puts(requests).map(|p| p.to_string()),
        next_month_bytes: all.stored_bytes.saturating_add(recent.stored_bytes),
        next_month_price: shown(next),
    }
}

/// Adds two prices, of which one may not be known.
fn sum(one: Option<Price>, other: Option<Price>) -> Option<Price> {
    Some(Price(one?.0.saturating_add(other?.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tier_copied_is_not_stored_again() {
        let mut s3 = S3Settings {
            tiers: vec!["30d:GLACIER_IR".parse().unwrap()],
            ..S3Settings::default()
        };
        let pack = "clusters/main/7/packs/x/000000";
        let moved = |s3: &S3Settings, key, class| is_moved(s3, key, Some(class));
        let by_rules = moved(&s3, pack, "GLACIER_IR");
        assert!(!by_rules, "rules of the bucket keep the time");
        s3.tier_by = TierBy::Copy;
        assert!(moved(&s3, pack, "GLACIER_IR"));
        assert!(!moved(&s3, pack, "STANDARD"));
        assert!(!moved(&s3, "clusters/main/7/events/x", "GLACIER_IR"));
        s3.storage_class.packs = Some("GLACIER_IR".to_owned());
        assert!(!moved(&s3, pack, "GLACIER_IR"), "it was stored so");
    }

    #[test]
    fn keys_tell_the_kind() {
        assert_eq!(Kind::of("pitr.json"), Kind::Other);
        assert_eq!(Kind::of("keys/1/ops"), Kind::Other);
        let of_cluster = |rest: &str| Kind::of(&format!("clusters/main/7/{rest}"));
        assert_eq!(of_cluster("cluster.json"), Kind::Other);
        assert_eq!(of_cluster("wal/00000001/history"), Kind::Wal);
        assert_eq!(of_cluster("conflicts/x-1"), Kind::Wal);
        let of_backup =
            |folder: &str| of_cluster(&format!("{folder}/20261120T064049Z-full/000000"));
        assert_eq!(of_backup("packs"), Kind::Packs);
        assert_eq!(of_backup("layers"), Kind::Layers);
        let root = "backups/20261120T064049Z-full/manifest";
        assert_eq!(of_cluster(root), Kind::Roots);
        assert_eq!(of_cluster("events/cluster/x"), Kind::Events);
        let aux = "aux/files/etc/packs/20261120T064049Z-full/000000";
        assert_eq!(Kind::of(aux), Kind::Packs);
        let log = "aux/redis/cache/log/0123456789012345678901234567890123456789/history";
        assert_eq!(Kind::of(log), Kind::Log);
    }
}
