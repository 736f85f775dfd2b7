//! The keys of the configuration: what each wants, and where its value goes. There is no other list of them.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::agent::{AgentTls, JobDraft, Page, RETRIES_MAX, SinkDraft, Tenant};
use super::audit::{Audit, Records};
use super::file::{Entry, Kind, Raw, Section};
use super::{
    Acknowledge, Agent, BlobService, Cluster, Compat, ConfigSet, Copies, Encryption, Files, Hours,
    Job, Kms, Location, LockMode, Logical, LogicalContent, Millis, ObjectLock,
    PREFETCH_SEGMENTS_MAX, Period, Price, Prices, PromoteUnreachable, Quiesce, RecoverySet, Redis,
    RedisAccess, RedisAcknowledge, RedisAddress, RedisSource, Repository, Retention, S3Settings,
    Secret, Severity, SftpSettings, Shape, Sink, SinkKind, Size, Source, Sse, StandbyOutage, Tier,
    TierBy, config_set::DEFAULT, holds_password, location, logical::JOBS_MAX, retention::KEEP_MAX,
    s3, set, tier,
};
use crate::err;
use crate::error::{Error, Result};
use crate::pg::slot::is_slot_name;

/// A key, and what puts its value into place. Keys of a table within carry its name, as in `receive.slot`.
type Key<T> = (&'static str, fn(&Entry, &mut T) -> Result<()>);

/// Writes a list of keys: `"key": where its value goes = what reads it;`.
macro_rules! keys {
    ($name:ident: |$e:ident, $t:ident: $target:ty| $($key:literal: $($place:ident).+ = $value:expr;)+) => {
        const $name: &[Key<$target>] = &[$(($key, |$e, $t| put(&mut $t.$($place).+, $value))),+];
    };
}

// Those of `[clusters.NAME]`.
keys! { CLUSTER: |e, cluster: Cluster|
    "pgdata": pgdata = e.path();
    "conninfo": conninfo = e.string().map(Secret::new);
    "max_backup_age": max_backup_age = e.checked(str::parse::<Period>);
    "max_drill_age": max_drill_age = e.checked(str::parse::<Period>);
    "drill_dir": drill_dir = e.path();
    "clone_dir": clone_dir = e.path();
    "full_every": full_every = e.period();
    "max_replay": max_replay = e.period();
    "max_wal": max_wal_bytes = e.bytes();
    "backoff.latency": backoff.latency = e.latency();
    "backoff.wal_lag": backoff.wal_lag_bytes = e.bytes();
    "standby_outage": standby_outage = e.choice(&[("stream", StandbyOutage::Stream), ("stop", StandbyOutage::Stop)]);
    "promote_unreachable": promote_unreachable = e.choice(&[
        ("auto", PromoteUnreachable::Auto), ("refuse", PromoteUnreachable::Refuse), ("proceed", PromoteUnreachable::Proceed),
    ]);
    "cache_dir": cache_dir = e.path();
    "spool_dir": spool_dir = e.path();
    "timezone": timezone = e.string();
    "prefetch_segments": prefetch_segments = e.count(PREFETCH_SEGMENTS_MAX);
    "receive.slot": receive.slot = e.checked(slot);
    "receive.journal": receive.journal = e.path();
    "receive.journal_limit_bytes": receive.journal_limit_bytes = e.bytes();
    "receive.acknowledge": receive.acknowledge = e.choice(&[("journal", Acknowledge::Journal), ("repository", Acknowledge::Repository)]);
    "rpo": objectives.rpo = e.checked(str::parse::<Period>);
    "rto": objectives.rto = e.checked(str::parse::<Period>);
    "copies": objectives.copies = e.checked(str::parse::<Copies>);
    "retention.keep_last": retention.last = e.count(KEEP_MAX);
    "retention.keep_daily": retention.daily = e.count(KEEP_MAX);
    "retention.keep_weekly": retention.weekly = e.count(KEEP_MAX);
    "retention.keep_monthly": retention.monthly = e.count(KEEP_MAX);
    "retention.keep_yearly": retention.yearly = e.count(KEEP_MAX);
    "retention.keep_within": retention.within = e.period();
    "retention.wal_window": retention.wal_window = e.period();
    "retention.keep_proven": retention.proven = e.boolean();
    "retention.timezone": retention.timezone = e.string();
    "retention.min_copies": retention.min_copies = e.of_repository();
    "service.stop": service.stop = e.list();
    "service.start": service.start = e.list();
}

// Those of `[retention]`.
keys! { RETENTION: |e, rules: Retention|
    "keep_last": last = e.count(KEEP_MAX);
    "keep_daily": daily = e.count(KEEP_MAX);
    "keep_weekly": weekly = e.count(KEEP_MAX);
    "keep_monthly": monthly = e.count(KEEP_MAX);
    "keep_yearly": yearly = e.count(KEEP_MAX);
    "keep_within": within = e.period();
    "wal_window": wal_window = e.period();
    "keep_proven": proven = e.boolean();
    "timezone": timezone = e.string();
    "min_copies": min_copies = e.of_repository();
}

// Those of `[logical.NAME]`.
keys! { LOGICAL: |e, logical: Logical|
    "cluster": cluster = e.string();
    "databases": databases = e.list();
    "jobs": jobs = e.count(JOBS_MAX);
    "content": content = e.choice(&[("full", LogicalContent::Full), ("schema", LogicalContent::Schema), ("data", LogicalContent::Data)]);
    "max_backup_age": max_backup_age = e.checked(str::parse::<Period>);
}

// Those of `[config.NAME]`.
keys! { CONFIG: |e, set: ConfigSet|
    "paths": paths = e.list_or_text();
    "exclude": exclude = e.list();
    "secret": secret = e.list();
    "plain": plain = e.list();
    "cluster": cluster = e.string();
    "identity": identity = e.string();
    "max_backup_age": max_backup_age = e.checked(str::parse::<Period>);
}

// Those of `[redis.NAME]`.
keys! { REDIS: |e, redis: Redis|
    "address": address = e.checked(RedisAddress::parse);
    "source": source = e.choice(&[("psync", RedisSource::Psync), ("bgsave", RedisSource::Bgsave), ("aof", RedisSource::Aof)]);
    "cluster": is_cluster = e.boolean();
    "addresses": addresses = e.addresses();
    "user": access.user = e.string();
    "password_file": access.password_file = e.path();
    "tls.ca_file": access.tls.ca_file = e.path();
    "tls.cert_file": access.tls.cert_file = e.path();
    "tls.key_file": access.tls.key_file = e.path();
    "sentinel.master": sentinel.master = e.string();
    "sentinel.addresses": sentinel.addresses = e.addresses();
    "sentinel.user": sentinel.access.user = e.string();
    "sentinel.password_file": sentinel.access.password_file = e.path();
    "sentinel.tls.ca_file": sentinel.access.tls.ca_file = e.path();
    "sentinel.tls.cert_file": sentinel.access.tls.cert_file = e.path();
    "sentinel.tls.key_file": sentinel.access.tls.key_file = e.path();
    "sentinel.backup_from": sentinel.is_replica_preferred = e.choice(&[("master", false), ("replica", true)]);
    "stall_timeout": stall_timeout = e.period();
    "identity": identity = e.string();
    "max_backup_age": max_backup_age = e.checked(str::parse::<Period>);
    "receive.journal": journal = e.path();
    "receive.journal_limit_bytes": journal_limit_bytes = e.bytes();
    "receive.acknowledge": acknowledge = e.choice(&[("journal", RedisAcknowledge::Journal), ("repository", RedisAcknowledge::Repository), ("none", RedisAcknowledge::None)]);
    "service.data_directory": service.data_directory = e.path();
    "service.stop": service.stop = e.list();
    "service.start": service.start = e.list();
}

// Those of `[sets.NAME]`.
keys! { SET: |e, set: RecoverySet|
    "members": members = e.list().and_then(|texts| set::members(&texts).map_err(|error| e.origin.wrap(&error)));
    "stop": stop = e.list();
    "start": start = e.list();
    "hook": hook = e.list();
    "health": health = e.list();
    "state_dir": state_dir = e.path();
    "max_mark_age": max_mark_age = e.checked(str::parse::<Period>);
}

// Those of `[repositories.NAME]`.
keys! { REPOSITORY: |e, draft: Draft|
    "url": location = e.checked(Location::from_url);
    "required": required = e.boolean();
    "max_rate": max_rate = e.bytes();
    "max_rate_hours": max_rate_hours = e.checked(str::parse::<Hours>);
    "price.currency": prices.currency = e.string();
    "price.storage": prices.storage = e.price();
    "price.standard": prices.standard = e.price();
    "price.standard_ia": prices.standard_ia = e.price();
    "price.onezone_ia": prices.onezone_ia = e.price();
    "price.intelligent_tiering": prices.intelligent_tiering = e.price();
    "price.glacier_ir": prices.glacier_ir = e.price();
    "price.reduced_redundancy": prices.reduced_redundancy = e.price();
    "price.glacier": prices.glacier = e.price();
    "price.deep_archive": prices.deep_archive = e.price();
    "price.put": prices.put = e.price();
    "price.transition": prices.transition = e.price();
    "price.thaw_expedited": prices.thaw_expedited = e.price();
    "price.thaw_standard": prices.thaw_standard = e.price();
    "price.thaw_bulk": prices.thaw_bulk = e.price();
    "encryption.key_set": encryption.key_set = e.path();
    "encryption.key_file": encryption.key_file = e.path();
    "encryption.passphrase_file": encryption.passphrase_file = e.path();
    "encryption.passphrase_fd": encryption.passphrase_fd = e.descriptor();
    "encryption.key_command": encryption.key_command = e.program();
    "encryption.passphrase_command": encryption.passphrase_command = e.program();
    "encryption.kms.key_id": encryption.kms.key_id = e.string();
    "encryption.kms.wrapped_file": encryption.kms.wrapped_file = e.path();
    "encryption.kms.region": encryption.kms.link.region = e.string();
    "encryption.kms.endpoint": encryption.kms.link.endpoint = e.string();
    "encryption.kms.ca_file": encryption.kms.link.ca_file = e.path();
    "encryption.kms.allow_http": encryption.kms.link.allow_http = e.boolean();
    "encryption.kms.profile": encryption.kms.link.profile = e.string();
    "encryption.kms.credentials_file": encryption.kms.link.credentials_file = e.path();
    "encryption.passphrase": encryption.passphrase = e.passphrase();
    "encryption.recipient": encryption.recipient = e.string();
    "encryption.state_dir": encryption.state_dir = e.path();
    "encryption.secrets": encryption.secrets = e.path();
    "encryption.secrets_key": encryption.secrets_key = e.path();
    "ssh_key_file": sftp.key_file = e.path();
    "ssh_passphrase_file": sftp.passphrase_file = e.path();
    "ssh_known_hosts_file": sftp.known_hosts_file = e.path();
    "region": s3.region = e.string();
    "endpoint": s3.endpoint = e.string();
    "path_style": s3.path_style = e.boolean();
    "ca_file": s3.ca_file = e.path();
    "allow_http": s3.allow_http = e.boolean();
    "profile": s3.profile = e.string();
    "credentials_file": s3.credentials_file = e.path();
    "storage_class.wal": s3.storage_class.wal = e.checked(s3::storage_class);
    "storage_class.packs": s3.storage_class.packs = e.checked(s3::storage_class);
    "storage_class.manifests": s3.storage_class.manifests = e.checked(s3::storage_class);
    "tier": s3.tiers = e.tiers();
    "tier_by": s3.tier_by = e.choice(&[("rules", TierBy::Rules), ("copy", TierBy::Copy)]);
    "sse": s3.sse = e.choice(&[("AES256", Sse::S3), ("aws:kms", Sse::Kms)]);
    "sse_kms_key_id": s3.sse_kms_key_id = e.string();
    "object_lock.mode": lock_mode = e.choice(&[("governance", LockMode::Governance), ("compliance", LockMode::Compliance)]);
    "object_lock.period": lock_period = e.period();
    "stall_timeout": s3.stall_timeout = e.period();
    "retry_budget": s3.retry_budget = e.period();
    "unsafe_overwrite": s3.unsafe_overwrite = e.boolean();
    "retention.keep_last": retention.last = e.count(KEEP_MAX);
    "retention.keep_daily": retention.daily = e.count(KEEP_MAX);
    "retention.keep_weekly": retention.weekly = e.count(KEEP_MAX);
    "retention.keep_monthly": retention.monthly = e.count(KEEP_MAX);
    "retention.keep_yearly": retention.yearly = e.count(KEEP_MAX);
    "retention.keep_within": retention.within = e.period();
    "retention.wal_window": retention.wal_window = e.period();
    "retention.keep_proven": retention.proven = e.boolean();
    "retention.timezone": retention.timezone = e.string();
    "retention.min_copies": retention.min_copies = e.count(COPIES_MAX);
}

// Those of `[files.NAME]`.
keys! { FILES: |e, files: Files|
    "source": source = e.checked(Source::parse);
    "command": command = e.list();
    "check": check = e.list();
    "file_name": file_name = e.checked(file_name);
    "bundle": bundle = e.boolean();
    "lfs": lfs = e.boolean();
    "context": context = e.string();
    "secrets": without_secrets = e.boolean().map(|taken| !taken);
    "quiesce": quiesce = e.choice(&[("none", None), ("stop", Some(Quiesce::Stop)), ("pause", Some(Quiesce::Pause))]);
    "program": program = e.string();
    "before": before = e.list();
    "after": after = e.list();
    "exclude": exclude = e.list();
    "exclude_if_present": exclude_if_present = e.list();
    "exclude_caches": exclude_caches = e.boolean();
    "exclude_larger_than": exclude_larger_than_bytes = e.bytes();
    "one_file_system": one_file_system = e.boolean();
    "region": s3.region = e.string();
    "endpoint": s3.endpoint = e.string();
    "path_style": s3.path_style = e.boolean();
    "ca_file": s3.ca_file = e.path();
    "allow_http": s3.allow_http = e.boolean();
    "profile": s3.profile = e.string();
    "credentials_file": s3.credentials_file = e.path();
    "stall_timeout": s3.stall_timeout = e.period();
    "retry_budget": s3.retry_budget = e.period();
    "max_rate": max_rate_bytes_per_s = e.bytes();
    "max_rate_hours": max_rate_hours = e.checked(str::parse::<Hours>);
    "identity": identity = e.string();
    "max_backup_age": max_backup_age = e.checked(str::parse::<Period>);
}

// Those of `[agent]`.
keys! { AGENT: |e, agent: Agent|
    "listen": listen = e.checked(address);
    "tls.cert_file": tls.cert_file = e.path();
    "tls.key_file": tls.key_file = e.path();
    "tls.client_ca_file": tls.client_ca_file = e.path();
    "state_dir": state_dir = e.path();
    "interval": interval = e.period();
    "metrics_compat": metrics_compat = e.list_or_text().and_then(|texts| compat(&texts).map_err(|error| e.origin.wrap(&error)));
}

// Those of `[tenants.NAME]`.
keys! { TENANT: |e, tenant: Tenant|
    "config": config = e.path();
}

// Those of `[page]`.
keys! { PAGE: |e, page: Page|
    "enabled": is_enabled = e.boolean();
    "token_file": token_file = e.path();
    "actions": has_actions = e.boolean();
}

// Those of `[audit]`.
keys! { AUDIT: |e, audit: Audit|
    "records": records = e.choice(&[("off", Records::Off), ("on", Records::On), ("required", Records::Required)]);
    "keep": keep = e.period();
}

// Those of `[jobs.NAME]`.
keys! { JOB: |e, job: JobDraft|
    "run": run = e.list_or_text();
    "schedule": schedule = e.string();
    "after": after = e.string();
    "zone": zone = e.string();
    "jitter": jitter = e.checked(str::parse::<Period>).map(Period::duration);
    "catch_up": catch_up = e.boolean();
    "time_limit": time_limit = e.period();
    "retries": retries = e.count(RETRIES_MAX);
    "claim": is_claimed = e.boolean();
}

// Those of `[alerts.NAME]`.
keys! { ALERT: |e, draft: SinkDraft|
    "kind": kind = e.choice(&[
        ("email", SinkKind::Email), ("slack", SinkKind::Webhook(Shape::Slack)), ("teams", SinkKind::Webhook(Shape::Teams)),
        ("discord", SinkKind::Webhook(Shape::Discord)), ("pagerduty", SinkKind::Webhook(Shape::PagerDuty)),
        ("webhook", SinkKind::Webhook(Shape::Generic)), ("command", SinkKind::Command), ("syslog", SinkKind::Syslog),
        ("heartbeat", SinkKind::Heartbeat),
    ]);
    "url": sink.url = e.string().map(Secret::new);
    "url_file": sink.url_file = e.path();
    "template": sink.template = e.string();
    "command": sink.command = e.list();
    "key_file": sink.key_file = e.path();
    "smtp": sink.smtp = e.string();
    "user": sink.user = e.string();
    "password_file": sink.password_file = e.path();
    "from": sink.from = e.string();
    "to": sink.to = e.list_or_text();
    "severity": sink.severity = e.choice(&[
        ("critical", Severity::Critical), ("high", Severity::High), ("medium", Severity::Medium), ("low", Severity::Low),
    ]);
    "repeat": repeat = e.period();
    "quiet_hours": sink.quiet_hours = e.checked(str::parse::<Hours>);
    "zone": sink.zone = e.string();
}

/// Longest name of a file on Linux.
const FILE_NAME_BYTES: usize = 255;

/// More repositories nobody configures.
const COPIES_MAX: u32 = 100;

/// A repository of which not everything is read yet.
#[derive(Default)]
struct Draft {
    location: Option<Location>,
    required: Option<bool>,
    max_rate: Option<u64>,
    max_rate_hours: Option<Hours>,
    prices: Prices,
    encryption: Encryption,
    s3: S3Settings,
    sftp: SftpSettings,
    lock_mode: Option<LockMode>,
    lock_period: Option<Duration>,
    retention: Retention,
}

/// The keys of one kind of section, in the order of the documentation.
pub(super) fn names(kind: Kind) -> Vec<&'static str> {
    match kind {
        Kind::Clusters => CLUSTER.iter().map(|(key, _)| *key).collect(),
        Kind::Repositories => REPOSITORY.iter().map(|(key, _)| *key).collect(),
        Kind::Files => FILES.iter().map(|(key, _)| *key).collect(),
        Kind::Retention => RETENTION.iter().map(|(key, _)| *key).collect(),
        Kind::Logical => LOGICAL.iter().map(|(key, _)| *key).collect(),
        Kind::Config => CONFIG.iter().map(|(key, _)| *key).collect(),
        Kind::Redis => REDIS.iter().map(|(key, _)| *key).collect(),
        Kind::Agent => AGENT.iter().map(|(key, _)| *key).collect(),
        Kind::Page => PAGE.iter().map(|(key, _)| *key).collect(),
        Kind::Audit => AUDIT.iter().map(|(key, _)| *key).collect(),
        Kind::Jobs => JOB.iter().map(|(key, _)| *key).collect(),
        Kind::Alerts => ALERT.iter().map(|(key, _)| *key).collect(),
        Kind::Sets => SET.iter().map(|(key, _)| *key).collect(),
        Kind::Tenants => TENANT.iter().map(|(key, _)| *key).collect(),
    }
}

fn put<T, V: Into<T>>(place: &mut T, value: Result<V>) -> Result<()> {
    *place = value?.into();
    Ok(())
}

/// Puts every value of a section into place, in the order of the file.
fn fill<T>(mut target: T, section: &Section, keys: &[Key<T>]) -> Result<T> {
    for entry in &section.entries {
        let (_, set) = keys
            .iter()
            .find(|(key, _)| *key == entry.key)
            .ok_or_else(|| err!(Internal, "key \"{}\" has no meaning", entry.key))?;
        set(entry, &mut target)?;
    }
    Ok(target)
}

/// Reads a cluster; `world_readable` says that every user of the machine may read the file.
pub(super) fn cluster(section: &Section, world_readable: bool) -> Result<Cluster> {
    let name = section.name.parse().map_err(|e| section.origin.wrap(&e))?;
    let cluster = fill(Cluster::named(name), section, CLUSTER)?;
    let in_file = |e: &&Entry| !matches!(e.raw, Raw::Variable(_));
    if world_readable
        && let Some(entry) = section.get("conninfo").filter(in_file)
        && holds_password(entry.text()?)
    {
        return Err(entry
            .origin
            .error("the file holds a password, and every user of this machine may read it")
            .hint("Take the right away with chmod o-r, or leave the password to ~/.pgpass."));
    }
    Ok(cluster)
}

/// Reads a repository.
pub(super) fn repository(section: &Section) -> Result<Repository> {
    let wrong = |message: &str| section.origin.error(message);
    let Some(url) = section.get("url") else {
        return Err(
            wrong(&format!("repository \"{}\" has no url", section.name))
                .hint("Add url = \"file:///absolute/path\"."),
        );
    };
    // First, for it decides what else has a meaning.
    let location = url.checked(Location::from_url)?;
    if let Some(entry) = section.entries.iter().find(|e| !is_meant(e.key, &location)) {
        let what = match &location {
            Location::File(_) => "in a directory",
            Location::S3 { .. } => "in an object store",
            Location::Blob { service, .. } => match service {
                BlobService::Azure { .. } => "in Azure Blob Storage",
                BlobService::Google => "in Google Cloud Storage",
            },
            Location::Sftp { .. } => "on an SFTP server",
        };
        return Err(entry.says(format_args!("means nothing to a repository {what}")));
    }
    let draft = fill(Draft::default(), section, REPOSITORY)?;
    let (mut encryption, mut s3, mut sftp) = (draft.encryption, draft.s3, draft.sftp);
    (sftp.stall_timeout, sftp.retry_budget) = (s3.stall_timeout, s3.retry_budget);
    if sftp.passphrase_file.is_some() && sftp.key_file.is_none() {
        return Err(wrong("\"ssh_passphrase_file\" needs ssh_key_file"));
    }
    if let Some(entry) = section.get("endpoint") {
        s3.endpoint = Some(entry.checked(|url| s3::endpoint(url, s3.allow_http))?);
    }
    let kms = &mut encryption.kms;
    if let Some(entry) = section.get("encryption.kms.endpoint") {
        kms.link.endpoint = Some(entry.checked(|url| s3::endpoint(url, kms.link.allow_http))?);
    }
    if kms.key_id.is_some() != kms.wrapped_file.is_some()
        || kms.key_id.is_none() && *kms != Kms::default()
    {
        return Err(wrong(
            "\"encryption.kms\" needs both key_id and wrapped_file",
        ));
    }
    if s3.sse_kms_key_id.is_some() && s3.sse != Some(Sse::Kms) {
        return Err(wrong("\"sse_kms_key_id\" needs sse = \"aws:kms\""));
    }
    s3.object_lock = match (draft.lock_mode, draft.lock_period) {
        (None, None) => None,
        (Some(mode), Some(period)) => Some(ObjectLock { mode, period }),
        _ => return Err(wrong("\"object_lock\" needs both mode and period")),
    };
    if let Some(entry) = section.get("tier") {
        tier::check(&s3.tiers, s3.tier_by).map_err(|e| entry.origin.wrap(&e))?;
    }
    if let Some(entry) = section.get("tier_by")
        && (s3.tier_by, s3.object_lock.is_some()) == (TierBy::Copy, true)
    {
        return Err(entry
            .origin
            .error("objects that are locked cannot be copied onto themselves")
            .hint("Leave tier_by away: rules of the bucket move locked objects, too."));
    }
    if encryption.ways_to_read() > 1 {
        return Err(wrong(
            "one of key_file, key_command, kms, passphrase_file, passphrase_command, passphrase_fd and passphrase is enough, and more are given",
        ));
    }
    let has_key = encryption.can_read() && !encryption.has_passphrase();
    if encryption.recipient.is_some() && has_key {
        return Err(wrong(
            "encryption.recipient says whose passphrase it is; a key file names its recipient itself",
        ));
    }
    if draft.max_rate_hours.is_some() && draft.max_rate.is_none() {
        return Err(wrong("\"max_rate_hours\" needs max_rate"));
    }
    Ok(Repository {
        name: section.name.clone(),
        location,
        required: draft.required.unwrap_or(true),
        max_rate_bytes_per_s: draft.max_rate,
        max_rate_hours: draft.max_rate_hours,
        prices: draft.prices,
        s3,
        sftp,
        encryption: (encryption != Encryption::default()).then_some(encryption),
        retention: draft.retention,
    })
}

/// Whether a key has a meaning for a repository in such a place.
fn is_meant(key: &str, location: &Location) -> bool {
    let anywhere = ["encryption.", "price.", "retention."];
    if matches!(key, "url" | "required" | "max_rate" | "max_rate_hours")
        || anywhere.iter().any(|table| key.starts_with(table))
    {
        return true;
    }
    match location {
        Location::File(_) => false,
        Location::S3 { .. } => !key.starts_with("ssh_"),
        Location::Blob { service, .. } => match key {
            "endpoint" | "ca_file" | "allow_http" | "credentials_file" => true,
            "stall_timeout" | "retry_budget" => true,
            "path_style" => *service != BlobService::Google,
            _ => false,
        },
        Location::Sftp { .. } => {
            key.starts_with("ssh_") || matches!(key, "stall_timeout" | "retry_budget")
        }
    }
}

/// Reads a set of files.
pub(super) fn files(section: &Section) -> Result<Files> {
    if section.get("source").is_none() {
        let wrong = format!("set of files \"{}\" has no source", section.name);
        return Err(section.origin.error(wrong).hint(
            "Add source = \"/absolute/path\", or one of the sources by command in docs/files.md.",
        ));
    }
    let named = Files {
        name: section.name.clone(),
        ..Files::default()
    };
    let mut files = fill(named, section, FILES)?;
    let foreign = |e: &&Entry| !means_something(e.key, &files.source);
    if let Some(entry) = section.entries.iter().find(foreign) {
        let kind = files.source.kind().unwrap_or("directory");
        return Err(entry.is_not(format_args!("a key of the source \"{kind}\"")));
    }
    if let Some(entry) = section.get("endpoint") {
        files.s3.endpoint = Some(entry.checked(|url| s3::endpoint(url, files.s3.allow_http))?);
    }
    if files.max_rate_hours.is_some() && files.max_rate_bytes_per_s.is_none() {
        return Err(section.origin.error("\"max_rate_hours\" needs max_rate"));
    }
    match (files.source == Source::Command, files.command.is_empty()) {
        (true, true) => Err(section
            .origin
            .error("the source \"command\" needs the command")
            .hint("Add command = [\"program\", \"argument\"].")),
        _ => Ok(files),
    }
}

/// Whether a key of `[files.NAME]` means something to a source.
fn means_something(key: &str, source: &Source) -> bool {
    match key {
        "source" | "identity" | "before" | "after" | "max_backup_age" => true,
        "command" | "check" | "file_name" => *source == Source::Command,
        "bundle" | "lfs" => matches!(source, Source::Git(_)),
        "context" | "secrets" => *source == Source::Kubernetes,
        "program" => matches!(source, Source::Terraform(_)),
        "exclude" | "exclude_larger_than" => matches!(
            source,
            Source::Directory(_) | Source::Bucket { .. } | Source::Docker(_)
        ),
        "exclude_caches" | "exclude_if_present" => {
            matches!(source, Source::Directory(_) | Source::Docker(_))
        }
        "quiesce" => matches!(source, Source::Docker(_)),
        "region" | "endpoint" | "path_style" | "ca_file" | "allow_http" | "profile"
        | "credentials_file" | "stall_timeout" | "retry_budget" | "max_rate" | "max_rate_hours" => {
            matches!(source, Source::Bucket { .. })
        }
        _ => matches!(source, Source::Directory(_)),
    }
}

/// The name of a file that stands alone.
fn file_name(text: &str) -> Result<String> {
    let is_path = text.contains(['/', '\0']) || matches!(text, "." | "..");
    match is_path || text.len() > FILE_NAME_BYTES {
        true => Err(err!(
            Config,
            "\"{}\" is no name of a file",
            text.escape_debug()
        )),
        false => Ok(text.to_owned()),
    }
}

/// Reads a set of configuration files.
pub(super) fn config(section: &Section) -> Result<ConfigSet> {
    let set = fill(ConfigSet::named(section.name.clone()), section, CONFIG)?;
    let is_place = |path: &String| path == DEFAULT || Path::new(path).is_absolute();
    match section.get("paths") {
        None => Ok(set),
        Some(_) if !set.paths.is_empty() && set.paths.iter().all(is_place) => Ok(set),
        Some(entry) => Err(entry.is_not("an array of absolute paths, and \"default\"")),
    }
}

/// Reads the rules of retention that hold for everything.
pub(super) fn retention(section: &Section) -> Result<Retention> {
    fill(Retention::default(), section, RETENTION)
}

/// Other exporters, each once.
fn compat(texts: &[String]) -> Result<Vec<Compat>> {
    let mut names = Vec::new();
    for text in texts {
        let name: Compat = text.parse()?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Reads what holds for the agent.
pub(super) fn agent(section: &Section) -> Result<Agent> {
    let agent = fill(Agent::default(), section, AGENT)?;
    let tls = &agent.tls;
    let wrong = match (&tls.cert_file, &tls.key_file) {
        (Some(_), None) => Some("tls.cert_file needs tls.key_file"),
        (None, Some(_)) => Some("tls.key_file needs tls.cert_file"),
        (None, None) if tls.client_ca_file.is_some() => {
            Some("tls.client_ca_file needs tls.cert_file and tls.key_file")
        }
        _ => None,
    };
    match wrong {
        Some(message) => Err(section.origin.error(message)),
        None => Ok(agent),
    }
}

/// Reads a tenant.
pub(super) fn tenant(section: &Section) -> Result<Tenant> {
    let tenant = fill(Tenant::named(section.name.clone()), section, TENANT)?;
    match tenant.config.as_os_str().is_empty() {
        true => Err(section
            .origin
            .error("a tenant needs config, the path of its own configuration")),
        false => Ok(tenant),
    }
}

/// Reads what holds for the status page.
pub(super) fn page(section: &Section) -> Result<Page> {
    fill(Page::default(), section, PAGE)
}

/// Requires that a page which starts jobs knows who asks.
pub(super) fn check_actions(section: &Section, page: &Page, tls: &AgentTls) -> Result<()> {
    let is_open = page.token_file.is_none() && tls.client_ca_file.is_none();
    match section.get("actions") {
        Some(entry) if page.has_actions && is_open => Err(entry
            .origin
            .error("a page that starts jobs needs token_file, or tls.client_ca_file in [agent]")
            .hint("Write a token: openssl rand -hex 32, into a file of mode 600.")),
        _ => Ok(()),
    }
}

/// Reads the settings of the audit log.
pub(super) fn audit(section: &Section) -> Result<Audit> {
    fill(Audit::default(), section, AUDIT)
}

/// Reads a job of the agent.
pub(super) fn job(section: &Section) -> Result<Job> {
    let draft = fill(JobDraft::default(), section, JOB)?;
    let job = draft.finish(&section.name);
    job.map_err(|e| section.origin.wrap(&e))
}

/// Reads a sink of alerts.
pub(super) fn alert(section: &Section) -> Result<Sink> {
    let draft = fill(SinkDraft::default(), section, ALERT)?;
    let sink = draft.finish(&section.name);
    sink.map_err(|e| section.origin.wrap(&e))
}

/// An address to listen at.
fn address(text: &str) -> Result<std::net::SocketAddr> {
    let wrong = || {
        err!(
            Config,
            "\"{}\" is no address to listen at",
            text.escape_debug()
        )
        .hint("Write address and port, such as 127.0.0.1:9870.")
    };
    text.parse().map_err(|_| wrong())
}

/// Reads a set of dumps.
pub(super) fn logical(section: &Section) -> Result<Logical> {
    let logical = fill(Logical::named(section.name.clone()), section, LOGICAL)?;
    let is_named = !logical.databases.is_empty() && !logical.databases.iter().any(String::is_empty);
    if let Some(entry) = section.get("databases").filter(|_| !is_named) {
        return Err(entry.is_not("an array of names; without the key every database is dumped"));
    }
    match section.get("jobs").filter(|_| logical.jobs == 0) {
        Some(entry) => Err(entry.is_not("a number from 1: a dump needs a connection")),
        None => Ok(logical),
    }
}

/// Reads a Redis server.
pub(super) fn redis(section: &Section) -> Result<Redis> {
    let redis = fill(Redis::named(section.name.clone()), section, REDIS)?;
    let wrong = |message: &str| section.origin.error(message);
    let sentinel = &redis.sentinel;
    let has_sentinels = !sentinel.addresses.is_empty();
    let is_of_sentinel = |entry: &Entry| entry.key.starts_with("sentinel.");
    if let Some((message, hint)) = redis.wrong_as_cluster() {
        return Err(wrong(&message).hint(hint));
    }
    if let Some((message, hint)) = redis.wrong_as_files() {
        return Err(wrong(message).hint(hint));
    }
    match (&redis.address, &sentinel.master) {
        (Some(_), _) if section.entries.iter().any(is_of_sentinel) => {
            return Err(wrong("address and sentinel are both given")
                .hint("Keep one: address names one server for good, sentinel asks for the present master."));
        }
        (Some(_), _) => {}
        (None, None) if redis.is_cluster && !has_sentinels => {}
        (None, None) if has_sentinels => {
            return Err(wrong("sentinel has addresses, and no master")
                .hint("Add the name that the Sentinels know it by, as in their \"sentinel monitor\": sentinel.master = \"mymaster\""));
        }
        (None, Some(_)) if !has_sentinels => {
            return Err(wrong("sentinel has a master, and no addresses")
                .hint("Name the Sentinels: sentinel.addresses = [\"10.0.0.1:26379\", \"10.0.0.2:26379\", \"10.0.0.3:26379\"]"));
        }
        (None, Some(_)) => {}
        (None, None) => {
            return Err(
                wrong(&format!("Redis server \"{}\" has no address", redis.name)).hint(
                    "Add address = \"127.0.0.1:6379\", or \"unix:/path\" of its socket; or sentinel.master and sentinel.addresses.",
                ),
            );
        }
    }
    let places: Vec<RedisAddress> = redis
        .address
        .iter()
        .chain(&redis.addresses)
        .cloned()
        .collect();
    access(section, "", &redis.access, &places)?;
    access(section, "sentinel.", &sentinel.access, &sentinel.addresses)?;
    Ok(redis)
}

/// Checks a way in. `prefix` is that of its keys.
fn access(
    section: &Section,
    prefix: &str,
    access: &RedisAccess,
    to: &[RedisAddress],
) -> Result<()> {
    let wrong = |message: &str| section.origin.error(format!("{prefix}{message}"));
    let tls = &access.tls;
    let is_socket = |address: &RedisAddress| matches!(address, RedisAddress::Unix(_));
    if tls.ca_file.is_some() && to.iter().any(is_socket) {
        return Err(wrong("tls means nothing to a socket of this host"));
    }
    if tls.cert_file.is_some() != tls.key_file.is_some() {
        return Err(wrong("tls needs both cert_file and key_file, or neither"));
    }
    if tls.ca_file.is_none() && tls.cert_file.is_some() {
        return Err(wrong("tls has no ca_file").hint(
            "Name the file with the certificates of those who may sign the server's. The system's are in /etc/ssl/certs/ca-certificates.crt.",
        ));
    }
    match access.user.is_some() && access.password_file.is_none() {
        true => Err(wrong("user needs password_file")),
        false => Ok(()),
    }
}

/// Reads a recovery set.
pub(super) fn set(section: &Section) -> Result<RecoverySet> {
    let named = RecoverySet {
        name: section.name.clone(),
        ..RecoverySet::default()
    };
    match section.get("members") {
        Some(_) => fill(named, section, SET),
        None => Err(section
            .origin
            .error(format!("recovery set \"{}\" has no members", section.name))
            .hint("Add members = [\"main\", \"redis:NAME\", \"files:NAME\"].")),
    }
}

/// The kinds of values.
impl Entry {
    /// An error about the key, at its place.
    fn says(&self, what: impl Display) -> Error {
        self.origin.error(format_args!("\"{}\" {what}", self.key))
    }

    fn wrong_type(&self, wanted: &str) -> Error {
        let found = match &self.raw {
            Raw::Text(_) | Raw::Variable(_) => "a string",
            Raw::Integer(_) => "an integer",
            Raw::Boolean(_) => "a boolean",
            Raw::List(_) | Raw::Tables(_) => "an array",
            Raw::Other(name) => name,
        };
        self.says(format_args!("needs {wanted}, found {found}"))
    }

    fn is_not(&self, wanted: impl Display) -> Error {
        self.says(format_args!("is not {wanted}"))
    }

    fn text(&self) -> Result<&str> {
        match &self.raw {
            Raw::Text(text) | Raw::Variable(text) if text.is_empty() => Err(self.says("is empty")),
            Raw::Text(text) | Raw::Variable(text) => Ok(text),
            _ => Err(self.wrong_type("a string")),
        }
    }

    fn string(&self) -> Result<String> {
        self.text().map(str::to_owned)
    }

    /// Returns the result of `read` on the text.
    fn checked<T>(&self, read: impl FnOnce(&str) -> Result<T>) -> Result<T> {
        read(self.text()?).map_err(|e| self.origin.wrap(&e))
    }

    fn path(&self) -> Result<PathBuf> {
        self.checked(|text| location::absolute(Path::new(text)))
    }

    /// An array of strings; from the environment one with commas between.
    fn list(&self) -> Result<Vec<String>> {
        match &self.raw {
            Raw::List(list) => Ok(list.clone()),
            Raw::Variable(text) => Ok(text.split(',').map(|one| one.trim().to_owned()).collect()),
            _ => Err(self.wrong_type("an array of strings")),
        }
    }

    /// An array of addresses.
    fn addresses(&self) -> Result<Vec<RedisAddress>> {
        let addresses = self.list()?;
        let addresses = addresses.iter().map(|text| RedisAddress::parse(text));
        let addresses: Result<Vec<RedisAddress>> = addresses.collect();
        addresses.map_err(|e| self.origin.wrap(&e))
    }

    /// A program as an absolute path, and its arguments: it is not looked for, and no shell takes part.
    fn program(&self) -> Result<Vec<String>> {
        let words = self.list()?;
        match words.first() {
            Some(program) if program.starts_with('/') => Ok(words),
            _ => Err(self.is_not("a list that begins with the absolute path of a program")),
        }
    }

    /// As [`Entry::list`]; a text is a list of one.
    fn list_or_text(&self) -> Result<Vec<String>> {
        match &self.raw {
            Raw::Text(text) => Ok(vec![text.clone()]),
            _ => self.list(),
        }
    }

    /// The tiers of a repository, an array of tables; from the environment `30d:STANDARD_IA`, with commas between.
    fn tiers(&self) -> Result<Vec<Tier>> {
        let read = |text: &str| text.trim().parse();
        let tiers: Result<Vec<Tier>> = match &self.raw {
            Raw::Tables(tables) => tables.iter().map(|table| tier_of(table)).collect(),
            Raw::List(list) if list.is_empty() => Ok(Vec::new()),
            Raw::Variable(text) => text.split(',').map(read).collect(),
            _ => return Err(self.wrong_type("an array of tables")),
        };
        tiers.map_err(|e| self.origin.wrap(&e))
    }

    fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T> {
        let text = self.text()?;
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Ok(*value);
        }
        let names = choices.iter().map(|(name, _)| format!("\"{name}\""));
        let names = names.collect::<Vec<_>>().join(" or ");
        let text = text.escape_debug();
        Err(self.says(format_args!("is \"{text}\" but must be {names}")))
    }

    fn boolean(&self) -> Result<bool> {
        match &self.raw {
            Raw::Boolean(value) => Ok(*value),
            Raw::Variable(_) => self.choice(&[("true", true), ("false", false)]),
            _ => Err(self.wrong_type("true or false")),
        }
    }

    /// A length of time above zero.
    fn period(&self) -> Result<Duration> {
        self.above_zero(self.checked(str::parse::<Period>)?.duration())
    }

    /// A length of time in milliseconds or seconds, above zero.
    fn latency(&self) -> Result<Duration> {
        let Millis(ms) = self.checked(str::parse)?;
        self.above_zero(Duration::from_millis(ms))
    }

    fn above_zero(&self, duration: Duration) -> Result<Duration> {
        match duration.is_zero() {
            false => Ok(duration),
            true => Err(self.says("must be longer than 0")),
        }
    }

    /// A price, which is no binary fraction.
    fn price(&self) -> Result<Price> {
        self.checked(str::parse)
    }

    /// A whole number; none where it does not fit.
    fn number<T: TryFrom<i64> + FromStr>(&self, wanted: &str) -> Result<Option<T>> {
        match &self.raw {
            Raw::Integer(value) => Ok(T::try_from(*value).ok()),
            Raw::Variable(text) => Ok(text.parse().ok()),
            _ => Err(self.wrong_type(wanted)),
        }
    }

    /// A number from 0 to `most`.
    fn count(&self, most: u32) -> Result<u32> {
        let count = self.number("a number")?.filter(|c| *c <= most);
        count.ok_or_else(|| self.is_not(format_args!("a number from 0 to {most}")))
    }

    /// Refuses a key that only a repository's section may hold.
    fn of_repository(&self) -> Result<u32> {
        Err(self.says("belongs to a repository")
            .hint("Write it into [repositories.NAME.retention] of the repository that backups leave first: in all of them, the last one would keep everything for good."))
    }

    /// A number of bytes, or a size with its unit.
    fn bytes(&self) -> Result<u64> {
        let has_unit = match &self.raw {
            Raw::Text(_) => true,
            Raw::Variable(text) => !text.bytes().all(|b| b.is_ascii_digit()),
            _ => false,
        };
        let bytes = match has_unit {
            true => Some(self.checked(str::parse::<Size>)?.0),
            false => self.number("a number of bytes")?,
        };
        bytes
            .filter(|b| *b > 0)
            .ok_or_else(|| self.is_not("a number of bytes above 0"))
    }

    /// A descriptor that was handed to this process; the standard ones are for other things.
    fn descriptor(&self) -> Result<i32> {
        let number = self.number("the number of a descriptor")?;
        number
            .filter(|n| *n == 0 || *n > 2)
            .ok_or_else(|| self.is_not("0 and not above 2"))
    }

    /// A passphrase, which stands in no file that is meant to be shown around.
    fn passphrase(&self) -> Result<Secret> {
        match &self.raw {
            Raw::Variable(text) => Ok(Secret::new(text.clone())),
            _ => Err(self.says("is taken from the environment only")
                .hint("Put the passphrase into a file of its own that only its owner can read, and name it with passphrase_file.")),
        }
    }
}

/// Reads one table of `tier`.
fn tier_of(table: &[(String, String)]) -> Result<Tier> {
    let is_part = |name: &str| matches!(name, "after" | "class" | "kind");
    if let Some((name, _)) = table.iter().find(|(name, _)| !is_part(name)) {
        let wrong = err!(Usage, "\"{}\" is no part of a tier", name.escape_debug());
        return Err(wrong.hint("Parts are after, class and kind."));
    }
    let member = |name: &str| {
        let found = table.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    };
    match (member("after"), member("class")) {
        (Some(after), Some(class)) => Tier::new(after, class, member("kind")),
        _ => Err(err!(Usage, "a tier needs after and class")),
    }
}

/// The name of a replication slot.
fn slot(text: &str) -> Result<String> {
    if is_slot_name(text) {
        return Ok(text.to_owned());
    }
    Err(err!(
        Config,
        "\"{}\" is not the name of a replication slot: up to 63 of a-z, 0-9 and _ are needed",
        text.escape_debug()
    ))
}
