//! Counts of backups, as the commands of this host keep them.

use std::collections::{BTreeMap, BTreeSet};

use super::exposition::{Exposition, Labels, families};
use super::progress::{self, OF_BACKUP};
use super::{counted, number};
use crate::config::{Job, Repository, Settings, Source};
use crate::operate::counters::{self, BOUNDS, Counters, Counts, Label, REASONS};
use crate::operate::scopes::{self, ScopeInfo};
use crate::operate::underway::Underway;

families! {
    SUCCESS: Counter "backup_success_total" "Backups that were committed, by this host.";
    ATTEMPTS: Counter "backup_attempts_total" "Backups that were begun by this host, and have ended.";
    FAILURES: Counter "backup_failures_total" "Backups of this host that ended without commit.";
    FAILURE: Counter "backup_failure_total" "As backup_failures_total, without cluster, repository and reason.";
    DURATION: Gauge "backup_duration_seconds" "Run time of the last backup of this host, whatever became of it.";
    DURATIONS: Histogram "backup_duration_seconds_hist" "Run times of backups of this host.";
    RUNNING: Gauge "pitr_backup_running" "Backups that this host takes now.";
}

/// The series that the configuration leads to, so that each stands at 0 before something happens, and those that are counted.
pub(super) fn add(
    all: &mut Exposition,
    settings: &Settings,
    (counters, underway, scopes): (&Counters, &[Underway], &[ScopeInfo]),
) {
    let expected = expected(settings, scopes).into_iter();
    let expected = expected.map(|label| (label, Counts::default()));
    let mut series: BTreeMap<Label, Counts> = expected.collect();
    series.extend(counters.series.iter().map(|(l, c)| (l.clone(), c.clone())));
    let mut alias: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (label, counts) in &series {
        let labels = of_label(label);
        all.add(&ATTEMPTS, &labels, number(counts.attempts));
        all.add(&SUCCESS, &labels, number(counts.successes));
        for reason in REASONS {
            let count = counts.failures.get(reason).copied().unwrap_or(0);
            let with = [labels.as_slice(), &[("reason", reason)]].concat();
            all.add(&FAILURES, &with, number(count));
            *alias.entry((&label.kind, &label.component)).or_default() += count;
        }
        let running = counters.running.iter().filter(|one| one.label == *label);
        all.add(&RUNNING, &labels, counted(running.clone().count()));
        let shown = running.filter_map(|one| underway.iter().find(|u| u.is(&one.process)));
        progress::add(all, &OF_BACKUP, &labels, shown);
        let run_s = counts.run_ms().map(|ms| number(ms) / 1000.0);
        all.add_known(&DURATION, &labels, run_s);
        histogram(all, &labels, counts);
    }
    for ((kind, component), count) in alias {
        let labels = [("type", kind), ("component", component)];
        all.add(&FAILURE, &labels, number(count));
    }
}

fn histogram(all: &mut Exposition, labels: Labels<'_>, counts: &Counts) {
    let bounds = BOUNDS.iter().map(u32::to_string).chain(["+Inf".to_owned()]);
    for (index, bound) in bounds.enumerate() {
        let count = counts.within.get(index).copied().unwrap_or(0);
        let with = [labels, &[("le", bound.as_str())]].concat();
        all.sample(&DURATIONS, "_bucket", &with, number(count));
    }
    let count = counts.within.last().copied().unwrap_or(0);
    all.sample(&DURATIONS, "_sum", labels, number(counts.total_ms) / 1000.0);
    all.sample(&DURATIONS, "_count", labels, number(count));
}

fn of_label(label: &Label) -> [(&'static str, &str); 4] {
    [
        ("cluster", &label.cluster),
        ("type", &label.kind),
        ("component", &label.component),
        ("repo", &label.repo),
    ]
}

/// The series of everything that backups are taken of: in the first repository, and in those that jobs name.
fn expected(settings: &Settings, scopes: &[ScopeInfo]) -> BTreeSet<Label> {
    let first = settings.first_repository().ok().map(|first| (None, first));
    let jobs = settings.jobs.iter();
    let jobs = jobs.filter_map(|job| Some((Some(job), named(settings, job)?)));
    let places = first.into_iter().chain(jobs);
    places
        .flat_map(|(job, repository)| expected_in(settings, scopes, job, repository))
        .collect()
}

/// The repository that a job names.
fn named<'s>(settings: &'s Settings, job: &Job) -> Option<&'s Repository> {
    let name = value(job, "--repository")?;
    settings.repositories.iter().find(|one| one.name == name)
}

/// The value of an option among the words of a job.
fn value<'j>(job: &'j Job, option: &str) -> Option<&'j str> {
    let mut words = job.run.iter().map(String::as_str);
    words
        .find_map(|word| match word.strip_prefix(option) {
            Some("") => Some(None),
            Some(rest) => rest.strip_prefix('=').map(Some),
            None => None,
        })?
        .or_else(|| words.next())
}

/// Whether a job takes backups of this cluster, or of this other content.
fn takes(job: &Job, kind: &str, name: &str) -> bool {
    let words: Vec<&str> = job.run.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["backup", ..] => kind == "postgres" && value(job, "--cluster").is_none_or(|c| c == name),
        [first, "backup", rest @ ..] => *first == kind && rest.contains(&name),
        _ => false,
    }
}

/// The series of a repository: of what one job takes backups of, or of everything.
fn expected_in(
    settings: &Settings,
    scopes: &[ScopeInfo],
    job: Option<&Job>,
    repository: &Repository,
) -> Vec<Label> {
    let is_taken = |kind: &str, name: &str| job.is_none_or(|job| takes(job, kind, name));
    let of = |cluster: &str, component: &str, kinds: &[&str]| -> Vec<Label> {
        let label = |kind: &&str| Label {
            kind: (*kind).to_owned(),
            ..counters::of_content(component, cluster, repository)
        };
        kinds.iter().map(label).collect()
    };
    let both = ["full", "incr"];
    let clusters = settings.clusters.iter().map(|c| c.name.as_str());
    let clusters = clusters.filter(|name| is_taken("postgres", name));
    let labels = clusters.flat_map(|name| of(name, "postgres", &both));
    let mut labels: Vec<Label> = labels.collect();
    let contents = settings.contents();
    for one in contents.filter(|one| is_taken(one.kind, one.name)) {
        let kinds = if one.kind == "files" {
            &both[..]
        } else {
            &both[..1]
        };
        labels.extend(of(one.name, component(settings, one.kind, one.name), kinds));
    }
    for one in scopes.iter().filter(|one| !one.backups.is_empty()) {
        let shard = one.scope.strip_prefix("aux/redis/");
        let cluster = scopes::cluster_of(settings, &one.scope);
        if let Some((shard, cluster)) = shard.zip(cluster)
            && is_taken("redis", cluster.name)
        {
            labels.extend(of(shard, "redis", &both[..1]));
        }
    }
    labels
}

/// The component of other content.
pub(super) fn component<'a>(settings: &Settings, kind: &'a str, name: &str) -> &'a str {
    let mut files = settings.files.iter();
    let files = files.find(|f| kind == "files" && f.name == name);
    match files.map(|f| &f.source) {
        Some(Source::Git(_)) => "git",
        _ => kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Flags, When};
    use crate::operate::finding::Level;
    use crate::operate::scopes::ScopeBackup;
    use crate::pg::time::TimestampTz;

    fn shard(name: &str) -> ScopeInfo {
        taken(name, &[TimestampTz(0)])
    }

    /// A shard with backups of these times.
    fn taken(name: &str, times: &[TimestampTz]) -> ScopeInfo {
        let backup = |time: &TimestampTz| ScopeBackup {
            id: "20261127T050000Z-482913-full".parse().unwrap(),
            label: None,
            start_time: *time,
            stop_time: *time,
            size_bytes: 0,
            stored_bytes: 0,
            unstable_count: 0,
            incomplete_count: 0,
            damage: None,
            expire_not_before: None,
            pinned: false,
        };
        ScopeInfo {
            scope: format!("aux/redis/{name}"),
            repository: "near".into(),
            state: Level::Ok,
            problems: Vec::new(),
            backups: times.iter().map(backup).collect(),
            log: None,
            read_back: None,
            retention: None,
        }
    }

    #[test]
    fn series_are_expected_in_each_repository_that_a_job_names_and_of_each_shard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pitr.toml");
        let text = "[clusters.main]\n[clusters.other]\n\
            [repositories.near]\nurl = \"file:///near\"\n[repositories.far]\nurl = \"file:///far\"\n\
            [redis.cache]\ncluster = true\naddresses = [\"127.0.0.1:7000\"]\n\
            [jobs.a]\nrun = \"backup --cluster main --repository far\"\nschedule = \"0 2 * * *\"\n\
            [jobs.b]\nrun = \"redis backup cache --repository far\"\nschedule = \"0 3 * * *\"\n";
        std::fs::write(&path, text).unwrap();
        let flags = Flags {
            config: Some(path),
            ..Flags::default()
        };
        let settings = Settings::load(&flags, &Environment::new::<&str, &str>([], None)).unwrap();
        let scopes = [shard("cache.0123456789ab"), shard("none.0123456789ab")];
        let labels = expected(&settings, &scopes).into_iter();
        let shown = |l: Label| format!("{} {} {} {}", l.cluster, l.component, l.kind, l.repo);
        let shown: Vec<String> = labels.map(shown).collect();
        assert_eq!(
            shown,
            [
                "cache.0123456789ab redis full far",
                "cache.0123456789ab redis full near",
                "main postgres full far",
                "main postgres full near",
                "main postgres incr far",
                "main postgres incr near",
                "other postgres full near",
                "other postgres incr near",
            ]
        );
    }

    #[test]
    fn j86_a_backup_of_a_clock_that_was_ahead_hides_no_other() {
        let now = TimestampTz::from_unix_seconds(1_800_000_000).unwrap();
        let at = |seconds: i64| TimestampTz(now.0 + seconds * 1_000_000);
        let shown = |times: &[TimestampTz]| {
            let mut all = Exposition::default();
            let one = taken("cache.0123456789ab", times);
            let scopes = std::slice::from_ref(&one);
            super::super::of_scopes(&mut all, (scopes, now), &Settings::default());
            let text = all.text();
            let mut lines = text.lines();
            let line = lines.find(|l| l.starts_with("backup_timestamp_seconds{"));
            line.unwrap().rsplit_once(' ').unwrap().1.to_owned()
        };
        assert_eq!(shown(&[at(86_400), at(-7200)]), "1799992800");
        // It is better than none.
        assert_eq!(shown(&[at(86_400)]), "1800086400");
    }

    fn job(line: &str) -> Job {
        Job {
            name: "x".into(),
            run: line.split(' ').map(str::to_owned).collect(),
            when: When::Always,
            zone: None,
            jitter: std::time::Duration::ZERO,
            catch_up: true,
            time_limit: None,
            retries: 0,
            is_claimed: false,
            tenant: None,
        }
    }

    #[test]
    fn a_job_takes_backups_of_what_its_words_name() {
        let near = job("backup --repository far --cluster main");
        assert_eq!(value(&near, "--repository"), Some("far"));
        let joined = job("backup --repository=far");
        assert_eq!(value(&joined, "--repository"), Some("far"));
        assert_eq!(value(&job("backup"), "--repository"), None);
        assert!(takes(&near, "postgres", "main") && !takes(&near, "postgres", "other"));
        assert!(takes(&job("backup --full"), "postgres", "other"));
        let files = job("files backup up");
        assert!(takes(&files, "files", "up") && !takes(&files, "files", "down"));
        assert!(!takes(&files, "postgres", "up") && !takes(&job("verify"), "postgres", "main"));
    }
}
