//! Content beside clusters: what each repository holds of it.

use serde::Serialize;

use super::backup_age;
use super::finding::{Finding, Level};
use super::of;
use super::redis::watch::{self, Watched};
use super::session::Session;
use crate::config::{self, Settings};
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::redis::nodes::digits;
use crate::repo::catalog::{Catalog, Manifest, Reading};
use crate::repo::event;
use crate::repo::id::BackupId;
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::AuxBackup;
use crate::repo::scope::Scope;
use crate::repo::set_mark::KIND;
use crate::repo::slot_map;
use crate::repo::source;

/// An aux scope in one repository.
#[derive(Serialize)]
pub struct ScopeInfo {
    /// `aux/<kind>/<name>`.
    pub scope: String,
    pub repository: String,
    /// The worst of its problems.
    #[serde(serialize_with = "Level::as_state")]
    pub state: Level,
    /// Problems, in the order in which they were found.
    #[serde(serialize_with = "super::info::problems")]
    pub problems: Vec<Finding>,
    /// Its backups, oldest first.
    pub backups: Vec<ScopeBackup>,
    /// The end of its log, where it is a Redis server that is received.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<Watched>,
}

/// A backup of an aux scope.
#[derive(Serialize)]
pub struct ScopeBackup {
    pub id: BackupId,
    /// The operator's text; none without the keys.
    pub label: Option<String>,
    /// The writing host's clock at the start.
    pub start_time: TimestampTz,
    /// The same clock at the stop.
    pub stop_time: TimestampTz,
    /// Raw bytes of its files.
    pub size_bytes: u64,
    /// Bytes that it added to the repository.
    pub stored_bytes: u64,
    /// Files that changed while they were read.
    pub unstable_count: u64,
    /// Entries that could not be read.
    pub incomplete_count: u64,
    /// Damage that a check found.
    pub damage: Option<String>,
    /// It is marked for deletion, not before this time.
    pub expire_not_before: Option<TimestampTz>,
    /// Whether it is pinned.
    pub pinned: bool,
}

/// Looks at every aux scope of every repository that answers, and at the configured ones that have none.
///
/// # Errors
/// `Config`; what the stores say.
pub fn look(session: &Session) -> Result<Vec<ScopeInfo>> {
    let settings = session.settings()?;
    let mut all = Vec::new();
    for (index, configured) in settings.repositories.iter().enumerate() {
        // One that does not answer is reported with the clusters.
        let Ok(repository) = session.open_or_give_up(configured, &settings) else {
            continue;
        };
        let scopes = of::scopes(session, &repository)?;
        let now = session.host.now();
        // A recovery set has marks, which pitr info --set shows, and no backups.
        let with_backups = scopes.iter().filter(|scope| scope.kind() != Some(KIND));
        for scope in with_backups {
            let mut one = look_at(&repository, scope, now)?.named(&configured.name);
            if !needs_none(&settings, &repository, scope)? {
                one.judge_newest(&settings, now);
                one.judge_log(&settings, (&repository, scope), now)?;
            }
            all.push(one);
        }
        // Backups go to the first one. The others get copies, if the operator wants them to.
        if index == 0 && of::looks_at_all(session) {
            let has = |one: &config::Content<'_>| {
                let prefix = prefix(one);
                scopes.iter().any(|scope| scope.prefix() == prefix)
            };
            let has_shards = |cluster: &config::Content<'_>| {
                let is_shard = |scope: &Scope| {
                    cluster_of(&settings, &scope.prefix())
                        .is_some_and(|one| one.name == cluster.name)
                };
                scopes.iter().any(is_shard)
            };
            let clusters = settings.redis_clusters().filter(|one| !has_shards(one));
            let missing = settings.contents().filter(|one| !has(one)).chain(clusters);
            all.extend(missing.map(|one| ScopeInfo::empty(&one, &configured.name)));
        }
    }
    Ok(all)
}

fn prefix(content: &config::Content<'_>) -> String {
    format!("aux/{}/{}", content.kind, content.name)
}

/// The configured Redis cluster of which a scope, by its prefix, is a shard.
pub fn cluster_of<'s>(settings: &'s Settings, scope: &str) -> Option<config::Content<'s>> {
    let name = scope.strip_prefix("aux/redis/")?;
    let mut clusters = settings.redis_clusters();
    clusters.find(|cluster| digits(cluster.name, name).is_some())
}

/// Whether it has the name of a shard and needs no newer backup: it had no slots when that was recorded last, or is none, for that was never recorded.
fn needs_none(settings: &Settings, repository: &Repository, scope: &Scope) -> Result<bool> {
    if cluster_of(settings, &scope.prefix()).is_none() {
        return Ok(false);
    }
    let newest = slot_map::newest(repository.store(), scope)?;
    Ok(newest.is_none_or(|(_, map)| map.owned.is_empty()))
}

/// Looks at the shards of a configured Redis cluster that need backups; without any at an empty one.
///
/// # Errors
/// Errors of the store.
pub fn look_at_shards(
    repository: &Repository,
    settings: &Settings,
    cluster: &config::Content<'_>,
    now: TimestampTz,
) -> Result<Vec<ScopeInfo>> {
    let mut all = Vec::new();
    for scope in repository.aux_scopes()? {
        let is_own =
            cluster_of(settings, &scope.prefix()).is_some_and(|one| one.name == cluster.name);
        if is_own && !needs_none(settings, repository, &scope)? {
            let mut one = look_at(repository, &scope, now)?;
            one.judge_log(settings, (repository, &scope), now)?;
            all.push(one);
        }
    }
    if all.is_empty() {
        all.push(ScopeInfo {
            problems: Vec::new(),
            ..ScopeInfo::empty(cluster, "")
        });
    }
    Ok(all)
}

/// Pure: the trouble with the newest backup that no check found damaged.
pub fn newest_trouble(
    content: &config::Content<'_>,
    newest: Option<TimestampTz>,
    now: TimestampTz,
) -> Option<String> {
    let (kind, name) = (content.kind, content.name);
    let Some(newest) = newest else {
        return Some(format!(
            "there is no undamaged backup: take one: pitr {kind} backup {name}"
        ));
    };
    let limit = content.max_backup_age.map(|limit| limit.duration());
    backup_age::trouble(newest, limit, now)
}

/// Looks at one scope.
///
/// # Errors
/// Errors of the store.
pub fn look_at(repository: &Repository, scope: &Scope, now: TimestampTz) -> Result<ScopeInfo> {
    let mut catalog: Catalog<AuxBackup> = Reading::begin(repository.store(), scope)?.backups()?;
    let mut problems = Vec::new();
    let mut fail = |name: &str, what: String, next: String| {
        problems.push(Finding::new("content", name, Level::Fail, what).with_next(next));
    };
    let check = || "pitr verify".to_owned();
    let is_lost = source::is_lost(repository.store(), scope);
    if let Some(true) = catalog.found(is_lost)? {
        let what = source::lost(scope).to_string();
        fail("registration", what, "pitr init".to_owned());
    }
    for what in &catalog.unreadable {
        fail("object", what.clone(), check());
    }
    for (id, subject) in &catalog.ids {
        if subject.lost().is_some() {
            fail(
                "backup",
                format!("backup \"{id}\" was complete, and its root is lost"),
                check(),
            );
        }
        if let Manifest::Unreadable(_) = subject.manifest {
            let what = format!("backup \"{id}\" cannot be restored");
            fail("backup", what, check());
        }
    }
    let mut backups: Vec<ScopeBackup> = catalog
        .committed()
        .map(|(id, subject, backup)| ScopeBackup {
            id: id.clone(),
            label: backup.root.label.clone(),
            start_time: backup.root.start_time,
            stop_time: backup.root.stop_time,
            size_bytes: backup.root.size_bytes,
            stored_bytes: backup.root.stored_bytes,
            unstable_count: backup.root.unstable_count,
            incomplete_count: backup.root.incomplete_count,
            damage: event::damage(&subject.events)
                .first()
                .map(|found| found.event.detail.clone().unwrap_or_default()),
            expire_not_before: event::marks(&subject.events)
                .iter()
                .map(|e| e.event.not_before.unwrap_or(e.stored))
                .min(),
            pinned: !event::live_pins(&subject.events, now).is_empty(),
        })
        .collect();
    backups.sort_by(|a, b| (a.stop_time, &a.id).cmp(&(b.stop_time, &b.id)));
    let state = problems.iter().map(|p| p.level).max().unwrap_or(Level::Ok);
    Ok(ScopeInfo {
        scope: scope.prefix(),
        repository: repository.store().location(),
        state,
        problems,
        backups,
        log: None,
    })
}

impl ScopeInfo {
    /// One of which the repository has nothing.
    fn empty(content: &config::Content<'_>, repository: &str) -> ScopeInfo {
        let mut none = ScopeInfo {
            scope: prefix(content),
            repository: repository.to_owned(),
            state: Level::Ok,
            problems: Vec::new(),
            backups: Vec::new(),
            log: None,
        };
        none.judge_end(content, TimestampTz(0));
        none
    }

    /// When the newest backup ended that no check found damaged.
    pub fn newest_end(&self) -> Option<TimestampTz> {
        self.ends().max()
    }

    /// When each backup ended that no check found damaged.
    fn ends(&self) -> impl Iterator<Item = TimestampTz> {
        let whole = self.backups.iter().filter(|b| b.damage.is_none());
        whole.map(|b| b.stop_time)
    }

    /// Judges the newest backup, where the scope is configured here.
    fn judge_newest(&mut self, settings: &Settings, now: TimestampTz) {
        let configured = settings.contents().find(|one| prefix(one) == self.scope);
        let configured = configured.or_else(|| cluster_of(settings, &self.scope));
        if let Some(content) = configured {
            self.judge_end(&content, now);
        }
    }

    /// Judges the log, where a receiver of it is configured here.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn judge_log(
        &mut self,
        settings: &Settings,
        (repository, scope): (&Repository, &Scope),
        now: TimestampTz,
    ) -> Result<()> {
        let name = self.scope.strip_prefix("aux/redis/").unwrap_or_default();
        let is_own = |redis: &&config::Redis| match redis.is_cluster {
            true => digits(&redis.name, name).is_some(),
            false => redis.name == name,
        };
        let sections = settings.redis.iter();
        let mut sections = sections.filter(|redis| redis.journal.is_some());
        let Some(section) = sections.find(is_own) else {
            return Ok(());
        };
        let trouble = match watch::look(repository, scope, &self.backups) {
            Ok(log) => {
                self.log = log;
                let log = self.log.iter();
                log.flat_map(|log| log.trouble(&section.name, now))
                    .collect()
            }
            Err(e) if e.is_damage() => vec![(
                format!("where the log ends is not known: {e}"),
                "pitr verify".to_owned(),
            )],
            Err(e) => return Err(e),
        };
        for (what, next) in trouble {
            self.state = Level::Fail;
            let found = Finding::new("content", "log", Level::Fail, what);
            self.problems.push(found.with_next(next));
        }
        Ok(())
    }

    fn judge_end(&mut self, content: &config::Content<'_>, now: TimestampTz) {
        let newest = backup_age::newest(self.ends(), now);
        if let Some(what) = newest_trouble(content, newest, now) {
            self.state = Level::Fail;
            let next = format!("pitr {} backup {}", content.kind, content.name);
            let found = Finding::new("content", "newest backup", Level::Fail, what);
            self.problems.push(found.with_next(next));
        }
    }

    fn named(self, repository: &str) -> ScopeInfo {
        ScopeInfo {
            repository: repository.to_owned(),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Content, Period};

    #[test]
    fn a_newest_backup_is_missed_and_becomes_too_old() {
        let now = TimestampTz::from_unix_seconds(1_800_000_000).unwrap();
        let before = |seconds: i64| TimestampTz(now.0 - seconds * 1_000_000);
        let mut content = Content {
            kind: "files",
            name: "www",
            max_backup_age: None,
        };
        let missed = newest_trouble(&content, None, now).unwrap();
        assert!(missed.ends_with("pitr files backup www"), "{missed}");
        assert_eq!(newest_trouble(&content, Some(before(1 << 30)), now), None);
        content.max_backup_age = Some(Period(3600));
        for (seconds, is_old) in [(-60, false), (0, false), (3600, false), (3601, true)] {
            let trouble = newest_trouble(&content, Some(before(seconds)), now);
            assert_eq!(trouble.is_some(), is_old, "{seconds}");
        }
    }
}
