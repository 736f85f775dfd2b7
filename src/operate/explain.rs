//! Explanations of alerts: the cause, the effect and the next command of each rule of `contrib/prometheus/rules.yml` and of each condition of the agent.
//!
//! docs/alerts.md is made of this table.

use serde::Serialize;

use crate::err;
use crate::error::Result;

/// The meaning of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Explained {
    pub name: &'static str,
    /// The kinds of the agent's conditions that are about the same; a word in capitals stands for any name.
    pub conditions: &'static [&'static str],
    pub cause: &'static str,
    pub effect: &'static str,
    /// The command that comes first, or what to do.
    pub next: &'static str,
}

const fn one(
    name: &'static str,
    conditions: &'static [&'static str],
    cause: &'static str,
    effect: &'static str,
    next: &'static str,
) -> Explained {
    Explained {
        name,
        conditions,
        cause,
        effect,
        next,
    }
}

/// All of them, by what they are about.
#[rustfmt::skip]
pub const ALL: &[Explained] = &[
    // Archiving.
    one("PitrArchivingStuck", &["NAME/archiving/waiting", "NAME/archiving/blocked"],
        "archive_command fails or hangs: a repository is away or full, a file is refused, or the configuration is wrong",
        "pg_wal grows until its disk is full and the server stops; the newest commits are on the server's disk alone",
        "pitr doctor"),
    one("PitrArchiveFailing", &[],
        "archive_command failed more than three times within ten minutes; the server's log has the error of pitr-archive",
        "PostgreSQL tries again and loses nothing, and pg_wal grows meanwhile",
        "pitr doctor"),
    one("PitrArchiverCrashing", &["NAME/archiving/archiver"],
        "archive_command ends by a signal or with a status above 125, such as a program that is not there",
        "the archiver is started anew each time, nothing is archived, and pg_stat_archiver counts no failure",
        "pitr doctor"),
    one("PitrArchiveConflict", &["NAME/archiving/conflict"],
        "two servers archive different WAL under the same name: a copy, or an old primary that runs on",
        "the second copy was refused and kept aside; the commits of one of the two servers are not archived",
        "pitr wal conflicts"),
    one("PitrPgWalFilling", &["NAME/pg_wal/full"],
        "WAL is written faster than it is archived, or a slot keeps it",
        "the server stops when the disk of pg_wal is full",
        "pitr doctor"),
    one("pg_wal cannot be read", &["NAME/WHAT/barred"],
        "the agent runs as a user who may not read the data directory or the receiver's journal",
        "nobody would hear of WAL that waits, or of a receiver that is behind",
        "pitr doctor"),
    // Losses, and moments that cannot be reached.
    one("PitrRpoBreach", &["NAME/objectives/rpo"],
        "WAL is in no repository: archiving or the receiver is behind, or the server cannot be asked",
        "the commits since then are lost with the server",
        "pitr doctor"),
    one("PitrGap", &["NAME/recovery/gap", "NAME/recovery/recorded gap", "NAME/recovery/window"],
        "WAL between two stored segments is missing, was lost before it was received, or is damaged",
        "no moment behind the gap can be reached from a backup before it",
        "pitr wal gaps --heal"),
    one("PitrStatusCritical", &[],
        "pitr info finds something critical: the label check says of what kind",
        "recovery is not assured, or a promise is broken",
        "pitr info"),
    one("PitrStatusUnknown", &["look"],
        "the repositories do not answer, a key is missing, or a look took longer than five minutes",
        "nobody knows what can be recovered, and conditions stay as they were last seen",
        "pitr info"),
    one("not judged here", &["NAME/recovery/not judged here"],
        "this host only writes: its keys read no backup",
        "windows, gaps and promises are judged where a reader's key is",
        "pitr info on a host that has a reader's key"),
    // Backups.
    one("PitrNeverBackedUp", &["NAME/recovery/newest backup", "aux/KIND/NAME/content/newest backup"],
        "there is no backup, none that is whole and leads to the cluster, or the newest one is older than max_backup_age",
        "nothing can be recovered, or recovery replays all WAL since an old backup",
        "pitr backup"),
    one("PitrBackupMissing", &["NAME/backup/overdue", "NAME/backup/full"],
        "the schedule does not run, or the backups of the last day failed",
        "recovery takes longer each day, and old WAL cannot expire",
        "pitr backup --full"),
    one("OldBackup", &[],
        "the newest backup is older than a day: the schedule does not run, or backups fail",
        "recovery takes longer each day, and old WAL cannot expire",
        "pitr backup"),
    one("BackupFailure", &["NAME/COMPONENT/failed"],
        "backups fail, and go on failing: the label reason says of what kind",
        "no new backup is there; those that are stay as they were",
        "pitr doctor"),
    one("PitrBackupFailed", &[],
        "a single backup failed: the label reason says of what kind",
        "no new backup is there; those that are stay as they were",
        "pitr doctor"),
    one("BackupSizeIncrease", &[],
        "the backups of a week grew more than those of the month: more data, or content that is stored anew",
        "the repository fills sooner",
        "pitr info"),
    one("PitrBackupSizeJump", &["NAME/backup/size"],
        "the newest full backup has more than 1.5 times or less than half the usual size: data was deleted, copied or left out",
        "the repository fills sooner; a backup that shrank may lack data that the server lost",
        "pitr info"),
    one("PitrBackupSlow", &["NAME/COMPONENT/TYPE/slow"],
        "the last backup took more than twice as long as usual: a slow disk, network or store, or a limit of bandwidth",
        "backups may overlap their next time, and restores from this store may be slow, too",
        "pitr doctor"),
    one("PitrPageErrors", &["NAME/backup/pages"],
        "pages of the data directory had a wrong checksum when the newest backup read them",
        "the server's own data is damaged; the backup has the damaged pages as they were",
        "fail over to a standby, or restore a backup from before: pitr info"),
    one("PitrIncompleteBackups", &["NAME/backup/incomplete"],
        "backups began and were never finished: they were killed, or lost their connection",
        "they take room until they are expired",
        "pitr expire --confirm"),
    one("partial backup", &["NAME/recovery/partial backup"],
        "databases were left out of a backup",
        "these databases cannot be recovered from it",
        "pitr backup"),
    one("unusable backup", &["NAME/recovery/unusable backup"],
        "a backup is whole, and WAL or a backup that it builds on is missing",
        "no moment can be reached from this backup",
        "pitr verify"),
    // Stored data.
    one("PitrVerifyDamage", &[
        "NAME/recovery/damaged backup", "NAME/recovery/lost backup", "NAME/recovery/unreadable backup",
        "aux/KIND/NAME/content/backup", "aux/KIND/NAME/content/object"],
        "stored objects are damaged, missing or cannot be read: the store lost or changed them, or somebody deleted them",
        "backups that need them cannot be restored from this repository",
        "pitr verify --heal"),
    one("PitrVerifyStale", &["NAME/verify/stale"],
        "nothing was read back for eight days: the schedule does not run, or verify fails",
        "damage in the repository goes unseen",
        "pitr verify"),
    one("forged event", &["NAME/recovery/forged event"],
        "a record in the repository was written without its key, or changed",
        "it does not count; somebody can write in the repository who has no key",
        "pitr verify"),
    // Proofs.
    one("PitrDrillFailed", &["NAME/recovery/drill"],
        "the last drill found recovery broken, a drill found a backup broken, or no drill passed within max_drill_age",
        "recovery of the cluster may fail when it is needed",
        "pitr drill"),
    one("PitrDrillStale", &["NAME/drill/stale"],
        "recovery was not tried for 35 days",
        "nobody knows whether recovery works",
        "pitr drill"),
    one("PitrRtoOverGoal", &["NAME/objectives/rto"],
        "recovery would copy and replay for longer than the goal: the newest backup is old, or the store is slow",
        "an outage lasts longer than was promised",
        "pitr backup --incremental"),
    one("copies", &["NAME/objectives/copies"],
        "fewer repositories than copies asks for answer and have a backup",
        "the loss of one place can be the loss of all",
        "pitr repo sync"),
    // Receivers and servers.
    one("PitrReceiverDown", &["NAME/receiver/state", "NAME/receiver/trouble"],
        "the receiver does not run, is not connected, or reports an error",
        "commits reach the repository by archive_command alone; a synchronous receiver holds commits up",
        "pitr receive"),
    one("PitrSlotDanger", &["NAME/slot/SLOT"],
        "a replication slot keeps WAL for a receiver that is away or does not keep up",
        "at max_slot_wal_keep_size the server removes WAL that nobody received; without a limit its disk fills",
        "pitr doctor"),
    one("PitrServerDown", &["NAME/server/connection"],
        "PostgreSQL does not answer at conninfo: it is down, or access, password or network are wrong",
        "its slots, its clock and what it has not archived yet are not known",
        "pitr doctor"),
    one("ReplicationLag", &["NAME/replication/lag"],
        "a standby replays more than an hour behind its primary",
        "a failover to it loses that time, or waits for it",
        "pitr doctor on the standby"),
    one("PitrClockOffset", &["NAME/clock/server", "repository/REPOSITORY/clock"],
        "the clock of this host, of the server or of the store is wrong",
        "times of targets and ages of backups are wrong by that; beyond ten minutes backups and expire refuse to work",
        "timedatectl set-ntp true where the clock is wrong"),
    one("clock of the past", &["NAME/recovery/clock"],
        "the server's clock was set back: a span of time occurs twice in its WAL",
        "a target time in it stops at the first transaction behind it",
        "pitr plan"),
    // Repositories.
    one("PitrRepoDown", &["repository/REPOSITORY/away", "NAME/repository/REPOSITORY"],
        "a repository does not answer or is behind the others: its server, network, credentials or disk, or a sync that does not run",
        "what is only in the others is lost with them; archiving waits for a repository that is required",
        "pitr doctor"),
    one("PitrRepoFull", &["repository/REPOSITORY/room"],
        "the disk of a repository is used to 80 % or more, or is full soon as it fills now",
        "archiving and backups stop when it is full",
        "pitr expire --confirm"),
    one("PitrExpireStale", &["NAME/expire/stale"],
        "nothing was expired for three days: the schedule does not run, or expire refuses",
        "the repository fills",
        "pitr expire --confirm"),
    one("PitrLockedGrowth", &["NAME/expire/locked"],
        "locks of object_lock outlast what the rules of retention keep",
        "the store keeps, and bills, what nobody needs",
        "pitr expire --dry-run"),
    one("unsafe_overwrite", &["NAME/repository/creating"],
        "unsafe_overwrite = true: the store is not asked to refuse a second object of one name",
        "two writers at the same time can replace archived WAL",
        "take unsafe_overwrite out of the configuration"),
    // Clusters.
    one("registration", &["NAME/cluster/registration", "aux/KIND/NAME/content/registration"],
        "the registration of a cluster or of other content is missing among its objects: it was deleted, or lost",
        "archiving and backups are refused (A121); what is stored can be restored",
        "pitr init"),
    one("data directory", &["NAME/cluster/data directory"],
        "the data directory has another system identifier than the newest backup, as after pg_upgrade or initdb",
        "its WAL is refused, or nothing written since can be recovered",
        "pitr backup"),
    one("new PostgreSQL", &["NAME/cluster/PostgreSQL"],
        "the server is newer than this version of pitr",
        "its WAL is archived undecoded, plans say what they cannot prove, and backups are refused",
        "install a newer pitr"),
    one("retention zone", &["NAME/cluster/retention", "aux/KIND/NAME/content/retention"],
        "timezone of the rules of retention names a zone that does not exist",
        "pitr expire deletes nothing by these rules, and the repository fills",
        "pitr doctor"),
    one("timelines", &["NAME/cluster/timeline", "NAME/cluster/timelines", "NAME/recovery/timeline"],
        "two timelines may be the cluster, as when an old primary ran on after a failover, or a history cannot be read",
        "no command chooses one: recovery to a time needs the decision",
        "pitr timeline list"),
    // Redis and recovery sets.
    one("PitrRedisLogStale", &["aux/KIND/NAME/content/log"],
        "the receiver of Redis does not run, is not connected, or stores nothing",
        "what the server wrote since then is lost with it",
        "pitr redis receive"),
    one("PitrRedisLogGap", &[],
        "no backup leads to the end of the log of Redis: a part of it is missing",
        "nothing behind the gap can be restored",
        "pitr redis backup"),
    one("PitrMarksStale", &["sets/SET/marks"],
        "marks of a recovery set are not made, or do not arrive in all its members",
        "the members cannot be recovered to one moment of late",
        "pitr info --set SET"),
    one("recovery of a set", &["sets/SET/recovery"],
        "pitr recover began, or did not come to its end",
        "services of the set may be down, or not be what they were",
        "pitr recover --help"),
    // Keys, certificates, the audit log.
    one("PitrKeyRisk", &["repository/REPOSITORY/key"],
        "fewer than two recipients can read an encrypted repository, or no key was proven to open it for 40 days",
        "when the only key is lost, nothing can be restored",
        "pitr repo rewrap --add FILE.pub"),
    one("PitrCertExpiry", &[],
        "a certificate that pitr uses expires within three weeks",
        "connections that need it fail then: to stores, servers, or the status page",
        "renew the certificate"),
    one("PitrAuditBroken", &["audit/broken"],
        "records of the audit log were changed, removed or reordered",
        "the log proves less than it should; somebody may hide what was done",
        "pitr audit verify"),
    one("PitrAuditAnchorStale", &["audit/anchor/stale"],
        "no anchor of the audit log was made for three days",
        "the removal of newer records may go unseen",
        "pitr audit anchor"),
    one("PitrAuditStale", &["audit/verify/stale"],
        "the audit log was not checked for 35 days",
        "nobody knows whether it is whole",
        "pitr audit verify"),
    // The agent.
    one("PitrConfigDrift", &[],
        "hosts of one cluster have different promises, rules of retention or repositories",
        "they judge and expire by different rules",
        "compare their pitr.toml"),
    one("PitrJobFailed", &["jobs/JOB", "jobs/JOB/missed", "jobs/JOB/long", "jobs/JOB/clock"],
        "a job of the agent failed, did not begin at its time, goes on too long, or has records of a wrong clock",
        "what the job does is not done",
        "pitr agent status"),
    one("PitrAlertSinkFailing", &["alerts/SINK"],
        "a sink takes nothing: its service is away, or its address, password or certificate is wrong",
        "whoever reads this sink hears of nothing",
        "pitr alert test"),
    one("examination", &["doctor", "NAME/doctor", "NAME/doctor/GROUP/ITEM"],
        "the hourly pitr doctor of the agent found a failure, or comes to no end",
        "settings, keys, slots or certificates are not as recovery needs them",
        "pitr doctor"),
    one("configuration", &["agent/configuration", "agent/start"],
        "the configuration file is wrong: the agent does not start, or goes on with the one before",
        "commands that read the file fail, archive_command among them",
        "pitr doctor"),
    one("files of the agent", &["agent/state"],
        "the agent cannot write below state_dir: its disk is full, or its rights are wrong",
        "alerts may come twice, and status page and metrics grow old",
        "pitr agent status"),
    one("PitrMetricsStale", &[],
        "the agent's looks come to no end, or the timer of the textfile does not run",
        "what rules and dashboards show is old",
        "pitr agent status"),
    one("PitrMetricsMissing", &[],
        "the agent does not run, or Prometheus does not reach it",
        "no other rule of pitr can fire",
        "systemctl status pitr-agent"),
];

/// Names of rules that older versions of `rules.yml` had, and what tells of them now.
const FORMER: [(&str, &str); 3] = [
    ("PitrArchivingStuckLong", "PitrArchivingStuck"),
    ("PitrRepoFilling", "PitrRepoFull"),
    ("PitrRepoFullSoon", "PitrRepoFull"),
];

/// Finds what a name means: that of a rule, or of a condition with or without the names in it, such as `main/recovery/gap`.
pub fn find(name: &str) -> Option<&'static Explained> {
    let former = FORMER.iter().find(|(former, _)| *former == name);
    let name = former.map_or(name, |(_, now)| now);
    let by_name = ALL.iter().find(|one| one.name.eq_ignore_ascii_case(name));
    let kinds = ALL
        .iter()
        .flat_map(|one| one.conditions.iter().map(move |kind| (one, *kind)));
    let own: Vec<&str> = name.split('/').collect();
    let kinds = kinds.filter_map(|(one, kind)| {
        let kind: Vec<&str> = kind.split('/').collect();
        let exact = kind.iter().filter(|part| !is_any(part)).count();
        is_of(&kind, &own).then_some((exact, one))
    });
    // The kind that says most.
    let by_kind = kinds.max_by_key(|(exact, _)| *exact);
    by_name.or(by_kind.map(|(_, one)| one))
}

/// As [`find`].
///
/// # Errors
/// `NotFound` for a name that nothing has.
pub fn explain(name: &str) -> Result<&'static Explained> {
    find(name).ok_or_else(|| {
        err!(NotFound, "no alert has the name \"{}\"", name.escape_debug())
            .hint("pitr explain lists all; a condition of the agent may have its names in it: pitr explain main/recovery/gap")
    })
}

/// Whether a name is of a kind. A word in capitals stands for one part or more.
fn is_of(kind: &[&str], name: &[&str]) -> bool {
    match (kind, name) {
        ([], []) => true,
        ([first, kind @ ..], [part, name @ ..]) if is_any(first) => {
            !part.is_empty() && (is_of(kind, name) || is_of_more(kind, name))
        }
        ([first, kind @ ..], [part, name @ ..]) => first == part && is_of(kind, name),
        _ => false,
    }
}

/// Whether the rest is of a kind once more parts went to the name before it.
fn is_of_more(kind: &[&str], name: &[&str]) -> bool {
    (1..=name.len()).any(|n| is_of(kind, name.get(n..).unwrap_or_default()))
}

fn is_any(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_uppercase())
}

/// The page of the documentation.
pub fn page() -> String {
    let mut page = "# Alerts: causes, effects, next commands\n\n\
        Each alert of [contrib/prometheus/rules.yml](metrics.md#rules-dashboard-checks) and each [condition of the agent](agent.md#alerts), as `pitr explain` prints them without a network. \
        Words in capitals stand for names: `pitr explain main/recovery/gap` finds `NAME/recovery/gap`.\n"
        .to_owned();
    for one in ALL {
        page.push_str(&format!("\n## {}\n", one.name));
        if !one.conditions.is_empty() {
            let kinds: Vec<String> = one.conditions.iter().map(|c| format!("`{c}`")).collect();
            page.push_str(&format!("Conditions: {}\n\n", kinds.join(", ")));
        }
        let next = match one.next.starts_with("pitr ") {
            true => format!("`{}`", one.next),
            false => one.next.to_owned(),
        };
        page.push_str(&format!(
            "- **Cause**: {}.\n- **Effect**: {}.\n- **Next**: {next}\n",
            one.cause, one.effect
        ));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    fn root() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR"))
    }

    fn read(path: impl AsRef<Path>) -> String {
        let path = root().join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    #[test]
    fn a_condition_is_found_with_the_names_in_it() {
        let name = |asked: &str| find(asked).map(|one| one.name);
        assert_eq!(name("PitrGap"), Some("PitrGap"));
        assert_eq!(name("pitrgap"), Some("PitrGap"));
        assert_eq!(name("main/recovery/gap"), Some("PitrGap"));
        assert_eq!(name("NAME/recovery/gap"), Some("PitrGap"));
        assert_eq!(name("PitrRepoFilling"), Some("PitrRepoFull"));
        let aux = name("aux/files/www/content/newest backup");
        assert_eq!(aux, Some("PitrNeverBackedUp"));
        assert_eq!(name("main/doctor/role//etc/pitr/key"), Some("examination"));
        assert_eq!(name("jobs/full/missed"), Some("PitrJobFailed"));
        assert_eq!(name("main/repository/creating"), Some("unsafe_overwrite"));
        assert_eq!(name("main/repository/offsite"), Some("PitrRepoDown"));
        assert_eq!(name("main/replication/lag"), Some("ReplicationLag"));
        assert_eq!(name("main/backup/full"), Some("PitrBackupMissing"));
        assert_eq!(name("nonsense"), None);
        assert_eq!(name(""), None);
    }

    #[test]
    fn j87_an_alert_that_says_to_expire_names_a_run_that_deletes() {
        let all = ALL.iter().map(|one| one.next.to_owned());
        let rules = read("contrib/prometheus/rules.yml");
        let lines = rules.lines().filter_map(|line| line.split_once("Next: "));
        let lines = lines.filter_map(|(_, next)| Some(next.split_once('"')?.0.to_owned()));
        let expire: Vec<String> = all
            .chain(lines)
            .filter(|next| next.starts_with("pitr expire"))
            .collect();
        assert!(expire.len() > 6, "{expire:?}");
        let idle = expire.iter().find(|next| !next.contains(" --"));
        assert_eq!(idle, None, "without --confirm nothing is deleted");
    }

    #[test]
    fn names_and_kinds_are_explained_once() {
        let names: BTreeSet<&str> = ALL.iter().map(|one| one.name).collect();
        assert_eq!(names.len(), ALL.len());
        let kinds = || ALL.iter().flat_map(|one| one.conditions);
        let different: BTreeSet<&&str> = kinds().collect();
        assert_eq!(different.len(), kinds().count());
        for one in ALL {
            let texts = [one.cause, one.effect, one.next];
            assert!(!texts.contains(&""), "{}", one.name);
        }
    }

    /// Each rule has an entry here, and its `runbook_url` the anchor of that entry.
    #[test]
    fn j68_every_rule_has_an_explanation_and_its_anchor() {
        let mut wrong = Vec::new();
        let rules = read("contrib/prometheus/rules.yml");
        let mut alert = "";
        for line in rules.lines().map(str::trim) {
            alert = line.strip_prefix("- alert: ").unwrap_or(alert);
            let Some(one) = find(alert) else {
                wrong.push(format!("{alert}: no entry in src/operate/explain.rs"));
                continue;
            };
            let url = format!(
                "runbook_url: \"file:///usr/share/doc/pitr/docs/alerts.md#{}\"",
                one.name.to_ascii_lowercase()
            );
            if line.starts_with("annotations: ") && !line.contains(&url) {
                wrong.push(format!("{alert}: no {url}: scripts/runbook-urls adds it"));
            }
        }
        wrong.retain(|line| !line.starts_with(':'));
        wrong.dedup();
        assert!(rules.contains("- alert: PitrGap"));
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// The page has each entry. `INSTA_UPDATE=always` writes it anew.
    #[test]
    fn j68_the_page_of_alerts_is_this_table() {
        let path = root().join("docs/alerts.md");
        if std::env::var("INSTA_UPDATE").is_ok_and(|value| value == "always") {
            std::fs::write(&path, page()).unwrap();
        }
        assert!(
            read("docs/alerts.md") == page(),
            "docs/alerts.md is older than src/operate/explain.rs: INSTA_UPDATE=always cargo test --lib explain"
        );
    }

    /// The parts of a source before its tests that stand between quotes.
    fn literals(source: &str) -> Vec<String> {
        let source = source.split("#[cfg(test)]").next().unwrap_or_default();
        let code = source.lines().filter(|line| !line.trim().starts_with("//"));
        let code: Vec<&str> = code.collect();
        let code = code.join("\n");
        let quoted = code.split('"').skip(1).step_by(2);
        quoted.map(str::to_owned).collect()
    }

    /// Replaces each `{…}` of a format.
    fn filled(format: &str) -> String {
        let mut parts = format.split('{');
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            text += "x";
            text += part.split_once('}').map_or("", |(_, rest)| rest);
        }
        text
    }

    #[test]
    fn j68_every_condition_of_the_agent_has_an_explanation() {
        let folder = root().join("src/agent/alert");
        let mut wrong = Vec::new();
        let mut count = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            // Their words are of services, or parts of kinds.
            let others = ["http.rs", "mail.rs", "payload.rs", "sink.rs", "unjudged.rs"];
            if others.iter().any(|name| path.ends_with(name)) {
                continue;
            }
            for literal in literals(&read(&path)) {
                let is_id = literal.contains('/')
                    && !literal.starts_with('/')
                    && !literal.ends_with('/')
                    && !literal.contains(char::is_whitespace);
                let id = filled(&literal);
                // The kinds of findings are another test's; those with the name of a command stand below, and aux is a subject.
                let is_open = ["x/x/x", "x/x/stale", "x/stale", "aux/x/x"].contains(&id.as_str());
                if is_id && !is_open {
                    count += 1;
                    if find(&id).is_none() {
                        wrong.push(format!("{literal} of {}", path.display()));
                    }
                }
            }
        }
        for of in ["x/verify", "x/expire", "audit/anchor", "audit/verify"] {
            assert!(find(&format!("{of}/stale")).is_some(), "{of}");
        }
        assert!(count > 15, "{count}");
        let wrong = wrong.join("\n");
        assert_eq!(wrong, "", "no entry in src/operate/explain.rs has these");
    }

    #[test]
    fn j68_every_finding_of_info_has_an_explanation() {
        let nouns = ["info", "objectives", "proven", "server_state", "written"];
        let source = nouns.map(|noun| read(format!("src/operate/{noun}.rs")));
        let source = source.map(|text| text.split("#[cfg(test)]").next().unwrap().to_owned());
        let source = source.concat();
        let words: Vec<&str> = source.split_whitespace().collect();
        let code = words.join(" ");
        let mut found: BTreeSet<(String, String)> = BTreeSet::new();
        for begin in ["Finding::new(", "warn(", "say("] {
            for part in code.split(begin).skip(1) {
                let quoted: Vec<&str> = part.split('"').take(5).collect();
                let (first, second) = match quoted.as_slice() {
                    [before, group, between, name, ..]
                        if before.trim().is_empty() && between.trim() == "," && begin != "say(" =>
                    {
                        (*group, *name)
                    }
                    [before, name, ..] if before.trim().is_empty() && begin == "say(" => {
                        ("recovery", *name)
                    }
                    _ => continue,
                };
                found.insert((first.to_owned(), second.to_owned()));
            }
        }
        assert!(found.len() > 15, "{found:?}");
        let missing = found
            .iter()
            .filter(|(group, name)| find(&format!("x/{group}/{name}")).is_none());
        let missing: Vec<_> = missing.collect();
        assert!(
            missing.is_empty(),
            "no entry in src/operate/explain.rs has {missing:?}"
        );
    }
}
