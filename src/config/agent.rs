//! Jobs that run by themselves, and those who hear of trouble: `[agent]`, `[jobs.NAME]` and `[alerts.NAME]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Hours, Period, secret::Secret};
use crate::err;
use crate::error::Result;

/// How often the agent looks at everything where nothing is configured.
pub const INTERVAL: Duration = Duration::from_secs(60);
/// How long a sink is not told again of what it knows.
pub const REPEAT: Duration = Duration::from_secs(4 * 3600);
/// How often a heartbeat is sent while all is well.
pub const HEARTBEAT: Duration = Duration::from_secs(3600);
/// More attempts than this are no retries any more.
pub const RETRIES_MAX: u32 = 100;

/// `[agent]`: the process that runs on its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agent {
    /// The address at which metrics are served; none: they are not.
    pub listen: Option<SocketAddr>,
    /// TLS at that address; without `cert_file` there is none.
    pub tls: AgentTls,
    /// The directory of what commands and the agent remember, absolute; else `state` below the caches.
    pub state_dir: Option<PathBuf>,
    /// How often it looks at everything.
    pub interval: Option<Duration>,
    /// Other exporters whose names metrics have, too.
    pub metrics_compat: Vec<Compat>,
}

impl Agent {
    /// Returns how old the results of a look may be: at least this, and longer where looks are rare.
    pub fn oldest(&self, least: Duration) -> Duration {
        let interval = self.interval.unwrap_or(INTERVAL);
        least.max(interval.saturating_mul(2))
    }
}

/// `tls` of `[agent]`: the files of what it serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentTls {
    /// The certificate that the agent shows, with those between it and its authority.
    pub cert_file: Option<PathBuf>,
    /// Its private key.
    pub key_file: Option<PathBuf>,
    /// The authorities whose certificates clients have to show; none: clients show none.
    pub client_ca_file: Option<PathBuf>,
}

/// Another exporter, for which dashboards and rules were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compat {
    /// The one of pgBackRest by woblerr.
    PgBackRest,
    /// The one of Barman.
    Barman,
    /// CloudNativePG's.
    Cnpg,
    /// WAL-G's.
    WalG,
    /// That of PostgreSQL servers, of which pitr has the archiver.
    Postgres,
}

impl std::str::FromStr for Compat {
    type Err = crate::error::Error;

    fn from_str(text: &str) -> Result<Compat> {
        match text {
            "pgbackrest" => Ok(Compat::PgBackRest),
            "barman" => Ok(Compat::Barman),
            "cnpg" => Ok(Compat::Cnpg),
            "walg" => Ok(Compat::WalG),
            "postgres_exporter" => Ok(Compat::Postgres),
            _ => Err(err!(
                Config,
                "\"{}\" is no exporter whose names are known: pgbackrest, barman, cnpg, walg, postgres_exporter",
                text.escape_debug()
            )),
        }
    }
}

/// `[page]`: the status page that the agent serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Whether there is one.
    pub is_enabled: bool,
    /// The file of the token that is asked for; none: nobody is asked, which is good for the loopback address alone.
    pub token_file: Option<PathBuf>,
    /// Whether it may start jobs.
    pub has_actions: bool,
}

impl Default for Page {
    fn default() -> Page {
        Page {
            is_enabled: true,
            token_file: None,
            has_actions: false,
        }
    }
}

/// `[tenants.NAME]`: a configuration of its own, with repositories and keys of its own, that the same host serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    pub name: String,
    /// The file of its configuration, absolute.
    pub config: PathBuf,
}

impl Tenant {
    /// A tenant of which nothing but the name is known yet.
    pub(super) fn named(name: String) -> Tenant {
        let config = PathBuf::new();
        Tenant { name, config }
    }

    /// The job of the agent that runs the tenant's own agent.
    pub fn job(&self) -> Job {
        Job {
            name: format!("tenant.{}", self.name),
            run: ["agent", "--tenant"].map(str::to_owned).to_vec(),
            when: When::Always,
            zone: None,
            jitter: Duration::ZERO,
            catch_up: true,
            time_limit: None,
            retries: 0,
            is_claimed: false,
            tenant: Some(self.config.clone()),
        }
    }
}

/// When a job runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// By a cron expression.
    Cron(String),
    /// All the time: it is started again whenever it has ended.
    Always,
    /// After each success of another job.
    After(String),
}

/// `[jobs.NAME]`: a command that the agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    pub name: String,
    /// The words of the command, without `pitr` before them.
    pub run: Vec<String>,
    /// When it runs.
    pub when: When,
    /// The zone of the expression; none: UTC.
    pub zone: Option<String>,
    /// It starts up to this much later, on each host by another part of it.
    pub jitter: Duration,
    /// Whether a run that was missed is caught up.
    pub catch_up: bool,
    /// How long it may run.
    pub time_limit: Option<Duration>,
    /// How often it is tried again after a failure.
    pub retries: u32,
    /// Whether one of several agents runs it: the one that claims the time in the first repository.
    pub is_claimed: bool,
    /// The configuration of the tenant whose agent this is.
    pub tenant: Option<PathBuf>,
}

/// `[jobs.NAME]` of which not everything is read yet.
#[derive(Debug, Clone, Default)]
pub(super) struct JobDraft {
    pub run: Vec<String>,
    pub schedule: Option<String>,
    pub after: Option<String>,
    pub zone: Option<String>,
    pub jitter: Duration,
    pub catch_up: Option<bool>,
    pub time_limit: Option<Duration>,
    pub retries: u32,
    pub is_claimed: bool,
}

impl JobDraft {
    /// Makes a job of it.
    ///
    /// # Errors
    /// `Config` for one that has no command, or no time.
    pub(super) fn finish(self, name: &str) -> Result<Job> {
        let run = match self.run.as_slice() {
            // One text: its words have no blanks.
            [line] => line.split_whitespace().map(str::to_owned).collect(),
            _ => self.run,
        };
        if run.iter().all(String::is_empty) {
            return Err(err!(Config, "job \"{name}\" runs nothing")
                .hint("Add run = \"backup\", or another command of pitr."));
        }
        let when = match (self.schedule, self.after) {
            (Some(text), None) if text == "always" => When::Always,
            (Some(text), None) => When::Cron(text),
            (None, Some(other)) => When::After(other),
            _ => {
                return Err(
                    err!(Config, "job \"{name}\" needs one of schedule and after").hint(
                        "Add schedule = \"0 2 * * *\", schedule = \"always\", or after = \"JOB\".",
                    ),
                );
            }
        };
        if self.is_claimed && !matches!(when, When::Cron(_)) {
            return Err(err!(Config, "job \"{name}\" claims no time, for it has none")
                .hint("Write claim = true where schedule is a cron expression. What comes after such a job follows it on its host."));
        }
        Ok(Job {
            name: name.to_owned(),
            run,
            when,
            zone: self.zone,
            jitter: self.jitter,
            catch_up: self.catch_up.unwrap_or(true),
            time_limit: self.time_limit,
            retries: self.retries,
            is_claimed: self.is_claimed,
            tenant: None,
        })
    }
}

/// The severity of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Information.
    Low,
    /// It works, and could be better.
    #[default]
    Medium,
    /// Far from usual.
    High,
    /// Something does not work.
    Critical,
}

impl Severity {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Low => "low",
            Severity::Medium => "medium",
            Severity::High => "high",
            Severity::Critical => "critical",
        }
    }
}

/// The shape of what a webhook is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Our own fields, or the operator's template.
    Generic,
    /// Slack's incoming webhooks.
    Slack,
    /// Teams' workflows, as an adaptive card.
    Teams,
    /// Discord's webhooks.
    Discord,
    /// PagerDuty's events, version 2.
    PagerDuty,
}

/// The kind of a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SinkKind {
    /// A program that reads the alert as JSON.
    #[default]
    Command,
    /// A POST over HTTP.
    Webhook(Shape),
    /// A letter.
    Email,
    /// The system's log.
    Syslog,
    /// A GET that says that all is well, to a service that raises an alarm when it comes no more.
    Heartbeat,
}

/// `[alerts.NAME]`: somebody who hears of what is wrong. It has no `Debug`, because of its secrets.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Sink {
    pub name: String,
    pub kind: SinkKind,
    /// The URL of a webhook, which often is a secret.
    pub url: Option<Secret>,
    /// The file that holds the URL.
    pub url_file: Option<PathBuf>,
    /// The body of a generic webhook, or of a heartbeat, which is a GET without one.
    pub template: Option<String>,
    /// The program with its arguments.
    pub command: Vec<String>,
    /// The key of a PagerDuty service, in a file.
    pub key_file: Option<PathBuf>,
    /// The server of letters, `smtp://host:port` or `smtps://host`.
    pub smtp: Option<String>,
    /// The account at that server.
    pub user: Option<String>,
    /// The file that holds its password.
    pub password_file: Option<PathBuf>,
    /// The sender of letters.
    pub from: Option<String>,
    /// The readers of letters.
    pub to: Vec<String>,
    /// The least severity that it hears of.
    pub severity: Severity,
    /// When it is told again of what goes on.
    pub repeat: Duration,
    /// Hours in which it hears of critical alerts alone.
    pub quiet_hours: Option<Hours>,
    /// The zone of these; none: UTC.
    pub zone: Option<String>,
}

/// `[alerts.NAME]` of which not everything is read yet.
#[derive(Clone, Default)]
pub(super) struct SinkDraft {
    pub kind: Option<SinkKind>,
    pub repeat: Option<Duration>,
    /// All else. Name, kind and repetition of it are given by [`SinkDraft::finish`].
    pub sink: Sink,
}

impl SinkDraft {
    /// Makes a sink of it.
    ///
    /// # Errors
    /// `Config` for one that lacks what its kind needs.
    pub(super) fn finish(self, name: &str) -> Result<Sink> {
        let lacking = |key: &str| err!(Config, "alert sink \"{name}\" needs {key}");
        let sink = self.sink;
        let Some(kind) = self.kind else {
            return Err(lacking("a kind").hint(
                "Add kind = \"email\", \"slack\", \"webhook\", \"command\" or another one.",
            ));
        };
        let has_url = sink.url.is_some() || sink.url_file.is_some();
        match kind {
            SinkKind::Command if sink.command.is_empty() => return Err(lacking("command")),
            SinkKind::Webhook(Shape::PagerDuty) if sink.key_file.is_none() => {
                return Err(lacking("key_file"));
            }
            SinkKind::Webhook(Shape::PagerDuty) => {}
            SinkKind::Webhook(_) | SinkKind::Heartbeat if !has_url => {
                return Err(lacking("url or url_file"));
            }
            SinkKind::Email if sink.smtp.is_none() || sink.from.is_none() || sink.to.is_empty() => {
                return Err(lacking("smtp, from and to"));
            }
            _ => {}
        }
        let may_have_template = [SinkKind::Webhook(Shape::Generic), SinkKind::Heartbeat];
        if sink.template.is_some() && !may_have_template.contains(&kind) {
            return Err(err!(
                Config,
                "\"template\" of alert sink \"{name}\" means nothing to its kind"
            ));
        }
        Ok(Sink {
            name: name.to_owned(),
            kind,
            repeat: self.repeat.unwrap_or(match kind {
                SinkKind::Heartbeat => HEARTBEAT,
                _ => REPEAT,
            }),
            ..sink
        })
    }
}

/// `rpo`, `rto` and `copies` of `[clusters.NAME]`: what was promised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objectives {
    /// How much of the newest commits may be lost.
    pub rpo: Option<Period>,
    /// How long recovery may take.
    pub rto: Option<Period>,
    /// How many copies there are, on what, and where.
    pub copies: Option<Copies>,
}

/// `copies = "3-2-1"`: three copies with the live one, on two kinds of places, one of them elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copies {
    /// All, the live one included.
    pub total: u32,
    /// Kinds of places.
    pub media: u32,
    /// Copies on other machines.
    pub elsewhere: u32,
}

impl std::str::FromStr for Copies {
    type Err = crate::error::Error;

    fn from_str(text: &str) -> Result<Copies> {
        let numbers: Option<Vec<u32>> = text.split('-').map(|n| n.parse().ok()).collect();
        match numbers.as_deref() {
            Some([total @ 1..=9, media @ 0..=9, elsewhere @ 0..=9]) => Ok(Copies {
                total: *total,
                media: *media,
                elsewhere: *elsewhere,
            }),
            _ => Err(err!(
                Config,
                "\"{}\" are no copies",
                text.escape_debug()
            )
            .hint("Write three digits like 3-2-1: copies with the live one, kinds of places, and copies elsewhere.")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(run: &[&str], schedule: Option<&str>, after: Option<&str>) -> Result<Job> {
        JobDraft {
            run: run.iter().map(|w| (*w).to_owned()).collect(),
            schedule: schedule.map(str::to_owned),
            after: after.map(str::to_owned),
            ..JobDraft::default()
        }
        .finish("x")
    }

    #[test]
    fn a_job_has_a_command_and_one_time() {
        let one = job(&["backup --label  daily"], Some("0 2 * * *"), None).unwrap();
        assert_eq!(one.run, ["backup", "--label", "daily"]);
        assert!(one.catch_up);
        let words = job(&["backup", "--label", "a b"], None, Some("y")).unwrap();
        assert_eq!(words.run, ["backup", "--label", "a b"]);
        assert_eq!(words.when, When::After("y".into()));
        let always = job(&["receive"], Some("always"), None).unwrap();
        assert_eq!(always.when, When::Always);
        assert!(job(&[""], Some("always"), None).is_err());
        assert!(job(&["info"], None, None).is_err());
        assert!(job(&["info"], Some("always"), Some("y")).is_err());
    }

    #[test]
    fn a_sink_has_what_its_kind_needs() {
        let of = |kind| SinkDraft {
            kind: Some(kind),
            ..SinkDraft::default()
        };
        assert!(SinkDraft::default().finish("x").is_err());
        assert!(of(SinkKind::Syslog).finish("x").is_ok());
        for kind in [
            SinkKind::Command,
            SinkKind::Email,
            SinkKind::Webhook(Shape::Slack),
            SinkKind::Webhook(Shape::PagerDuty),
            SinkKind::Heartbeat,
        ] {
            assert!(of(kind).finish("x").is_err(), "{kind:?}");
        }
        let mut odd = of(SinkKind::Syslog);
        odd.sink.template = Some("x".into());
        assert!(odd.finish("x").is_err());
    }

    #[test]
    fn copies_are_three_digits() {
        let copies: Copies = "3-2-1".parse().unwrap();
        assert_eq!((copies.total, copies.media, copies.elsewhere), (3, 2, 1));
        for bad in ["", "3", "3-2", "0-1-1", "3-2-1-1", "a-b-c", "10-2-1"] {
            assert!(bad.parse::<Copies>().is_err(), "{bad}");
        }
    }
}
