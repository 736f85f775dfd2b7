//! Content beside clusters: what each repository holds of it.

use serde::Serialize;

use super::archive_command::shell_word;
use super::backup_age;
use super::finding::{Finding, Level};
use super::forecast::{self, Forecast};
use super::info::Asks;
use super::of;
use super::read_back;
use super::redis::watch::{self, Watched};
use super::retention::Rules;
use super::session::Session;
use crate::backup::configuration::NAME as CONFIG;
use crate::config::{self, Settings};
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::redis::nodes::digits;
use crate::repo::catalog::{Catalog, Manifest, Reading};
use crate::repo::event;
use crate::repo::id::BackupId;
use crate::repo::log_keys::{self, Objects};
use crate::repo::portion::Share;
use crate::repo::repository::Repository;
use crate::repo::root::aux_root::AuxBackup;
use crate::repo::scope::Scope;
use crate::repo::set_mark::KIND;
use crate::repo::slot_map;
use crate::repo::source;
use crate::repo::stored_log::StoredLog;

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
    /// How much of it `pitr verify` read back, and when; none where nobody asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_back: Option<Share>,
    /// Meaning of the configured rules of retention for the backups; none where nobody asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Forecast>,
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

/// A repository, as the commands name it that bring content there.
#[derive(Clone, Copy)]
pub struct Place<'s> {
    pub settings: &'s Settings,
    pub configured: &'s config::Repository,
    /// The command line chose it: without that word a command takes the first one.
    pub is_chosen: bool,
}

impl<'s> Place<'s> {
    /// The place of a command.
    pub fn of(
        session: &Session,
        settings: &'s Settings,
        configured: &'s config::Repository,
    ) -> Place<'s> {
        Place {
            settings,
            configured,
            is_chosen: session.flags.repository.is_some(),
        }
    }

    /// Pure: what brings a newer backup of content here. A backup goes to the first repository, unless another one is named.
    pub fn next(&self, content: &config::Content<'_>) -> String {
        let all = &self.settings.repositories;
        // A repository without a secrets pair refuses configuration with secrets.
        let refuses = content.kind == CONFIG && self.configured.secrets_file().is_none();
        let other = home(self.settings, content.kind).filter(|_| refuses);
        let into = other.unwrap_or(self.configured);
        let name = &into.name;
        let backup = format!("pitr {} backup {}", content.kind, content.name);
        if !self.is_chosen && all.first().is_none_or(|first| first.name == *name) {
            return backup;
        }
        let place = shell_word(name);
        let backup = format!("{backup} --repository {place}");
        // Objects are copied as they are stored: between repositories of the same keys.
        let mut others = all.iter().filter(|one| one.name != *name);
        match others.any(|one| one.encryption == into.encryption) {
            true => format!(
                "{backup}, or pitr repo sync --to {place} where another repository has a newer one"
            ),
            false => backup,
        }
    }
}

/// The repository in which backups of content are missed: the first one. Configuration goes into the first that has a secrets pair: others refuse its secrets.
pub fn home<'s>(settings: &'s Settings, kind: &str) -> Option<&'s config::Repository> {
    let mut all = settings.repositories.iter();
    let sealing = all.find(|one| kind == CONFIG && one.secrets_file().is_some());
    sealing.or(settings.repositories.first())
}

/// Looks at every aux scope of every repository that answers, and at the configured ones that have none. People are also shown what the rules of retention mean.
///
/// # Errors
/// `Config`; what the stores say.
pub fn look(session: &Session, asks: Asks) -> Result<Vec<ScopeInfo>> {
    let settings = session.settings()?;
    let rules = Rules::new(session, settings.clone(), None);
    let (mut all, mut looked) = (Vec::new(), Vec::new());
    for configured in &settings.repositories {
        // One that does not answer is reported with the clusters.
        let Ok(repository) = session.open_or_give_up(configured, &settings) else {
            continue;
        };
        let place = Place::of(session, &settings, configured);
        let scopes = of::scopes(session, &repository)?;
        let now = session.host.now();
        // A recovery set has marks, which pitr info --set shows, and no backups.
        let with_backups = scopes.iter().filter(|scope| scope.kind() != Some(KIND));
        for scope in with_backups {
            let one = match asks {
                Asks::Promises => foresee(session, (configured, &rules), (&repository, scope))?,
                Asks::Everything => look_at(&repository, scope, now)?,
            };
            let mut one = one.named(&configured.name);
            let is_configuration = scope.kind() == Some(CONFIG);
            if !is_configuration && !needs_none(&settings, &repository, scope)? {
                one.judge_newest(place, now);
                one.judge_log(place, (&repository, scope), now)?;
            }
            all.push(one);
        }
        looked.push(place);
    }
    judge_configuration(&mut all, &settings, &looked, session.host.now());
    if of::looks_at_all(session) {
        add_missing(&mut all, &settings, &looked);
    }
    Ok(all)
}

/// Judges the newest backup of each configuration: any place of it will do. One that no repository has is missed later.
fn judge_configuration(
    all: &mut [ScopeInfo],
    settings: &Settings,
    looked: &[Place<'_>],
    now: TimestampTz,
) {
    for content in settings.contents().filter(|one| one.kind == CONFIG) {
        let scope = prefix(&content);
        // The first of several that are as new.
        let stored = all.iter_mut().rev();
        let stored = stored.filter(|one| one.scope == scope && !one.backups.is_empty());
        let Some(newest) = stored.max_by_key(|one| one.rank(now)) else {
            continue;
        };
        let mut places = looked.iter();
        if let Some(place) = places.find(|one| one.configured.name == newest.repository) {
            newest.judge_end(&content, *place, now);
        }
    }
}

/// Adds what is configured and has no backup. Only its home is asked for it: other repositories get copies, if the operator wants them to. Any place of
/// configuration will do.
fn add_missing(all: &mut Vec<ScopeInfo>, settings: &Settings, looked: &[Place<'_>]) {
    let contents = settings.contents().map(|one| (one, false));
    let clusters = settings.redis_clusters().map(|one| (one, true));
    for (content, is_cluster) in contents.chain(clusters) {
        let Some(home) = home(settings, content.kind) else {
            continue;
        };
        let place = looked.iter().find(|one| one.configured.name == home.name);
        let Some(place) = place else { continue };
        let is_it = |one: &ScopeInfo| match is_cluster {
            true => cluster_of(settings, &one.scope).is_some_and(|of| of.name == content.name),
            false => one.scope == prefix(&content),
        };
        let is_there = |one: &ScopeInfo| match content.kind == CONFIG {
            true => !one.backups.is_empty(),
            false => one.repository == home.name,
        };
        if all.iter().any(|one| is_it(one) && is_there(one)) {
            continue;
        }
        // Nothing is left of its backups there.
        let is_left = |one: &ScopeInfo| content.kind == CONFIG && one.repository == home.name;
        let at = all.iter().position(|one| is_it(one) && is_left(one));
        let one = at.map_or_else(
            || ScopeInfo::empty(&content, &home.name),
            |at| all.remove(at),
        );
        all.push(one.missing(&content, *place));
    }
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
    place: Place<'_>,
    cluster: &config::Content<'_>,
    now: TimestampTz,
) -> Result<Vec<ScopeInfo>> {
    let settings = place.settings;
    let mut all = Vec::new();
    for scope in repository.aux_scopes()? {
        let is_own =
            cluster_of(settings, &scope.prefix()).is_some_and(|one| one.name == cluster.name);
        if is_own && !needs_none(settings, repository, &scope)? {
            let mut one = look_at(repository, &scope, now)?;
            one.judge_log(place, (repository, &scope), now)?;
            all.push(one);
        }
    }
    if all.is_empty() {
        all.push(ScopeInfo::empty(cluster, ""));
    }
    Ok(all)
}

/// Pure: the trouble with the newest backup that no check found damaged.
pub fn newest_trouble(
    content: &config::Content<'_>,
    newest: Option<TimestampTz>,
    now: TimestampTz,
) -> Option<String> {
    let Some(newest) = newest else {
        return Some("there is no undamaged backup".to_owned());
    };
    let limit = content.max_backup_age.map(|limit| limit.duration());
    backup_age::trouble(newest, limit, now)
}

/// Looks at one scope, at what the rules do with it, and at how much of it was read back.
fn foresee(
    session: &Session,
    (configured, rules): (&config::Repository, &Rules),
    (repository, scope): (&Repository, &Scope),
) -> Result<ScopeInfo> {
    let (store, now) = (repository.store(), session.host.now());
    let has_rules = rules.of(None, configured).is_some();
    let reading: Reading<'_, AuxBackup> = Reading::begin(store, scope)?;
    let mut catalog = match has_rules {
        true => reading.everything()?,
        false => reading.backups()?,
    };
    let objects = match scope.kind() == Some(slot_map::CONTENT) {
        true => log_keys::objects(store, scope)?,
        false => Objects::default(),
    };
    let mut one = shown(repository, scope, &mut catalog, now)?;
    let place = (store, scope);
    let read = read_back::share_of_scope(place, (&catalog, objects.whole()), now)?;
    one.read_back = Some(read);
    if has_rules {
        let log = StoredLog::of(place, &objects)?;
        let stored = (scope, &catalog, &log);
        match forecast::of_scope(session, (rules, configured), stored) {
            Ok(forecast) => one.retention = forecast,
            // Wrong rules hide no backup.
            Err(e) => one.fail("retention", e.to_string(), "pitr doctor"),
        }
    }
    Ok(one)
}

/// Looks at one scope.
///
/// # Errors
/// Errors of the store.
pub fn look_at(repository: &Repository, scope: &Scope, now: TimestampTz) -> Result<ScopeInfo> {
    let mut catalog: Catalog<AuxBackup> = Reading::begin(repository.store(), scope)?.backups()?;
    shown(repository, scope, &mut catalog, now)
}

/// Shows what was read of a scope.
fn shown(
    repository: &Repository,
    scope: &Scope,
    catalog: &mut Catalog<AuxBackup>,
    now: TimestampTz,
) -> Result<ScopeInfo> {
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
        read_back: None,
        retention: None,
    })
}

impl ScopeInfo {
    /// One of which the repository has nothing.
    fn empty(content: &config::Content<'_>, repository: &str) -> ScopeInfo {
        ScopeInfo {
            scope: prefix(content),
            repository: repository.to_owned(),
            state: Level::Ok,
            problems: Vec::new(),
            backups: Vec::new(),
            log: None,
            read_back: None,
            retention: None,
        }
    }

    /// One that should have a backup in a place, and has none.
    fn missing(mut self, content: &config::Content<'_>, place: Place<'_>) -> ScopeInfo {
        self.judge_end(content, place, TimestampTz(0));
        self
    }

    /// When the newest backup ended that no check found damaged. One of a clock that was ahead counts where there is no other.
    pub fn newest_end(&self, now: TimestampTz) -> Option<TimestampTz> {
        backup_age::newest(self.ends(), now)
    }

    /// Orders places by their newest backup, for which the greatest is to be taken.
    pub fn rank(&self, now: TimestampTz) -> Option<(bool, TimestampTz)> {
        let end = self.newest_end(now)?;
        Some((!backup_age::is_ahead(end, now), end))
    }

    /// When each backup ended that no check found damaged.
    fn ends(&self) -> impl Iterator<Item = TimestampTz> {
        let whole = self.backups.iter().filter(|b| b.damage.is_none());
        whole.map(|b| b.stop_time)
    }

    /// Judges the newest backup, where the scope is configured here.
    fn judge_newest(&mut self, place: Place<'_>, now: TimestampTz) {
        let settings = place.settings;
        let configured = settings.contents().find(|one| prefix(one) == self.scope);
        let configured = configured.or_else(|| cluster_of(settings, &self.scope));
        if let Some(content) = configured {
            self.judge_end(&content, place, now);
        }
    }

    /// Judges the log, where a receiver of it is configured here.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn judge_log(
        &mut self,
        place: Place<'_>,
        (repository, scope): (&Repository, &Scope),
        now: TimestampTz,
    ) -> Result<()> {
        let name = self.scope.strip_prefix("aux/redis/").unwrap_or_default();
        let is_own = |redis: &&config::Redis| match redis.is_cluster {
            true => digits(&redis.name, name).is_some(),
            false => redis.name == name,
        };
        let sections = place.settings.redis.iter();
        let mut sections = sections.filter(|redis| redis.journal.is_some());
        let Some(section) = sections.find(is_own) else {
            return Ok(());
        };
        let trouble = match watch::look(repository, scope, &self.backups) {
            Ok(log) => {
                self.log = log;
                let log = self.log.iter();
                let backup = place.next(&section.content());
                log.flat_map(|log| log.trouble(&section.name, &backup, now))
                    .collect()
            }
            Err(e) if e.is_damage() => vec![(
                format!("where the log ends is not known: {e}"),
                "pitr verify".to_owned(),
            )],
            Err(e) => return Err(e),
        };
        for (what, next) in trouble {
            self.fail("log", what, &next);
        }
        Ok(())
    }

    fn fail(&mut self, name: &str, what: String, next: &str) {
        self.state = Level::Fail;
        let found = Finding::new("content", name, Level::Fail, what);
        self.problems.push(found.with_next(next));
    }

    fn judge_end(&mut self, content: &config::Content<'_>, place: Place<'_>, now: TimestampTz) {
        if let Some(what) = newest_trouble(content, self.newest_end(now), now) {
            self.fail("newest backup", what, &place.next(content));
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
    use crate::config::{Content, Encryption, Location, Period};

    #[test]
    fn a_newest_backup_is_missed_and_becomes_too_old() {
        let now = TimestampTz::from_unix_seconds(1_800_000_000).unwrap();
        let before = |seconds: i64| TimestampTz(now.0 - seconds * 1_000_000);
        let mut content = Content {
            kind: "files",
            name: "www",
            max_backup_age: None,
        };
        let missed = newest_trouble(&content, None, now);
        assert_eq!(missed.unwrap(), "there is no undamaged backup");
        assert_eq!(newest_trouble(&content, Some(before(1 << 30)), now), None);
        content.max_backup_age = Some(Period(3600));
        for (seconds, is_old) in [(-60, false), (0, false), (3600, false), (3601, true)] {
            let trouble = newest_trouble(&content, Some(before(seconds)), now);
            assert_eq!(trouble.is_some(), is_old, "{seconds}");
        }
    }

    #[test]
    fn u122_a_next_command_brings_the_backup_where_it_is_missed() {
        let repository = |name: &str, keys: &str| config::Repository {
            name: name.to_owned(),
            encryption: (!keys.is_empty()).then(|| Encryption {
                key_set: Some(keys.into()),
                secrets: Some(format!("{keys}-pair").into()),
                ..Encryption::default()
            }),
            ..config::Repository::at(Location::from_url("file:///r").unwrap())
        };
        let mut settings = Settings::default();
        settings.repositories = vec![
            repository("local", ""),
            repository("vault", "a"),
            repository("offsite", ""),
        ];
        let content = |kind| Content {
            kind,
            name: "www",
            max_backup_age: None,
        };
        let next = |at: usize, is_chosen| {
            let configured = &settings.repositories[at];
            let place = Place {
                settings: &settings,
                configured,
                is_chosen,
            };
            place.next(&content("files"))
        };
        assert_eq!(next(0, false), "pitr files backup www");
        let vault = "pitr files backup www --repository vault";
        assert_eq!(next(1, false), vault);
        let offsite = "pitr files backup www --repository offsite, or pitr repo sync --to offsite ";
        assert!(next(2, false).starts_with(offsite), "{}", next(2, false));
        let home_of = |kind: &str| home(&settings, kind).unwrap().name.clone();
        assert_eq!(home_of("files"), "local");
        assert_eq!(home_of(CONFIG), "vault");
        // The command line leaves the others out, and a command without that word would take the first of them.
        settings.repositories.retain(|one| one.name == "vault");
        let place = Place {
            settings: &settings,
            configured: &settings.repositories[0],
            is_chosen: true,
        };
        assert_eq!(place.next(&content("files")), vault);
    }

    #[test]
    fn a_backup_of_a_clock_that_was_ahead_hides_no_other() {
        let now = TimestampTz::from_unix_seconds(1_800_000_000).unwrap();
        let ended = |seconds: i64| TimestampTz(now.0 + seconds * 1_000_000);
        let backup = |seconds: i64, damage: Option<String>| ScopeBackup {
            id: "20261127T050000Z-482913-full".parse().unwrap(),
            label: None,
            start_time: ended(seconds),
            stop_time: ended(seconds),
            size_bytes: 0,
            stored_bytes: 0,
            unstable_count: 0,
            incomplete_count: 0,
            damage,
            expire_not_before: None,
            pinned: false,
        };
        let content = Content {
            kind: "files",
            name: "www",
            max_backup_age: None,
        };
        let mut info = ScopeInfo::empty(&content, "");
        info.backups.push(backup(86_400, None));
        assert_eq!(info.newest_end(now), Some(ended(86_400)));
        info.backups.push(backup(-7200, None));
        info.backups.push(backup(-3600, Some("a bit".to_owned())));
        assert_eq!(info.newest_end(now), Some(ended(-7200)));
    }
}
