//! The jobs of a configuration, checked as a whole before any of them starts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::schedule::{Schedule, named_zone};
use super::scheduler::{Planned, Trigger};
use crate::config::{Environment, Flags, IN_FORCE, Job, Settings, When};
use crate::err;
use crate::error::{Error, Result};
use crate::operate::session::Session;

/// Says whether the words are a command of pitr.
pub type Check = fn(&[String]) -> Result<()>;

/// Everything that the agent works with.
pub struct Loaded {
    /// The configuration.
    pub settings: Settings,
    /// The directory of what it remembers.
    pub state_dir: PathBuf,
    /// The jobs, in the order of the file.
    pub jobs: Vec<Planned>,
    /// Why a copy of the configuration is in force instead of the file.
    pub wrong: Option<Error>,
}

/// A tenant, and what its configuration says.
pub struct Tenant {
    pub name: String,
    /// Everything that its agent works with.
    pub loaded: Result<Loaded>,
}

/// Reads the configuration, and checks every job.
///
/// # Errors
/// `Config` for a job that could never run, and without a place for what the agent remembers.
pub fn load(session: &Session, check: Check) -> Result<Loaded> {
    let loaded = checked(session.settings()?, &session.environment, check)?;
    let wrong = session.environment.get(IN_FORCE).and_then(|_| {
        let mut own = session.again();
        own.environment = own.environment.with(IN_FORCE, "".as_ref());
        refusal(&own, check, &loaded.state_dir)
    });
    Ok(Loaded { wrong, ..loaded })
}

/// The reason why an agent that remembers in this directory does not go on with the file: it is wrong, or names another directory.
pub fn refusal(session: &Session, check: Check, state_dir: &Path) -> Option<Error> {
    let read = load(session, check);
    read.and_then(|loaded| loaded.require_place(state_dir))
        .err()
}

impl Loaded {
    /// Refuses another directory than this one: jobs that run have their locks there, and sinks would hear everything again.
    ///
    /// # Errors
    /// `Config` for one.
    pub fn require_place(&self, state_dir: &Path) -> Result<()> {
        if self.state_dir == state_dir {
            return Ok(());
        }
        Err(err!(
            Config,
            "state_dir of [agent] is \"{}\" now, and the agent that runs remembers in \"{}\"",
            self.state_dir.display(),
            state_dir.display()
        )
        .hint("Start the agent again: systemctl restart pitr-agent."))
    }
}

/// Reads the configurations of the tenants. One that is wrong is its tenant's trouble alone.
pub fn tenants(loaded: &Loaded, environment: &Environment, check: Check) -> Vec<Tenant> {
    let environment = environment.of_tenant();
    let mut tenants: Vec<Tenant> = Vec::new();
    for tenant in &loaded.settings.tenants {
        let flags = Flags {
            config: Some(tenant.config.clone()),
            ..Flags::default()
        };
        let read = Settings::load(&flags, &environment).map(|mut settings| {
            settings.is_of_tenant = true;
            settings
        });
        let read = read
            .and_then(|settings| checked(settings, &environment, check))
            .and_then(|own| {
                let mut others = tenants.iter().filter_map(|t| t.loaded.as_ref().ok());
                let is_taken = own.state_dir == loaded.state_dir
                    || others.any(|other| other.state_dir == own.state_dir);
                alone(own, is_taken)
            });
        tenants.push(Tenant {
            name: tenant.name.clone(),
            loaded: read,
        });
    }
    tenants
}

/// Refuses a tenant's configuration that could not stand beside others.
fn alone(own: Loaded, is_taken: bool) -> Result<Loaded> {
    let file = own.settings.path.clone().unwrap_or_default();
    if is_taken {
        return Err(err!(
            Config,
            "what the agent of \"{}\" remembers is kept in \"{}\", which is another one's",
            file.display(),
            own.state_dir.display()
        )
        .hint("Add state_dir to [agent] of this file."));
    }
    own.settings.refuse_tenants()?;
    Ok(own)
}

/// Checks every job of a configuration that was read.
///
/// # Errors
/// Those of [`load`].
pub fn checked(settings: Settings, environment: &Environment, check: Check) -> Result<Loaded> {
    let Some(state_dir) = settings.state_dir(environment) else {
        return Err(err!(Config, "the agent has no place for what it remembers")
            .hint("Add state_dir to [agent]."));
    };
    let host = crate::repo::event::host();
    let jobs = settings.jobs.iter();
    let jobs: Result<Vec<Planned>> = jobs
        .map(|job| planned(job, &settings, &host, check))
        .collect();
    Ok(Loaded {
        jobs: jobs?,
        settings,
        state_dir,
        wrong: None,
    })
}

/// Requires that the zone of each alert with quiet hours is known. An agent starts all the same, and such an alert has no quiet hours.
///
/// # Errors
/// `Config` for one that is not known.
pub fn check_zones(settings: &Settings) -> Result<()> {
    for sink in &settings.alerts {
        if let (Some(zone), true) = (&sink.zone, sink.quiet_hours.is_some()) {
            named_zone(zone).map_err(|e| e.context(format!("alert \"{}\"", sink.name)))?;
        }
    }
    Ok(())
}

/// The job of this name.
///
/// # Errors
/// `Usage` for one that is not configured.
pub fn named<'s>(settings: &'s Settings, name: &str) -> Result<&'s Job> {
    let found = settings.jobs.iter().find(|job| job.name == name);
    found.ok_or_else(|| {
        let known: Vec<&str> = settings.jobs.iter().map(|j| j.name.as_str()).collect();
        let error = err!(Usage, "no job \"{}\" is configured", name.escape_debug());
        match known.is_empty() {
            true => error.hint("Add [jobs.NAME] with run and schedule to the configuration."),
            false => error.hint(format!("Known: {}", known.join(", "))),
        }
    })
}

/// Refuses a job that could never run.
///
/// # Errors
/// Those of [`load`].
pub fn permit(job: &Job, check: Check) -> Result<()> {
    let of_job = |e: crate::error::Error| e.context(format!("job \"{}\"", job.name));
    let first = job.run.iter().find(|word| !word.starts_with('-'));
    if first.is_some_and(|word| word == "agent") && job.tenant.is_none() {
        return Err(of_job(err!(Config, "the agent cannot run itself")));
    }
    check(&job.run).map_err(of_job)
}

fn planned(job: &Job, settings: &Settings, host: &str, check: Check) -> Result<Planned> {
    permit(job, check)?;
    let trigger = match &job.when {
        When::Always => Trigger::Always,
        When::After(other) => {
            follows(job, settings)?;
            Trigger::After(other.clone())
        }
        When::Cron(text) => {
            let schedule = Schedule::new(text, job.zone.as_deref());
            let schedule = schedule.map_err(|e| e.context(format!("job \"{}\"", job.name)))?;
            Trigger::Scheduled(Box::new(schedule))
        }
    };
    Ok(Planned {
        name: job.name.clone(),
        trigger,
        delay: delay(job, host),
        catch_up: job.catch_up,
        retries: job.retries,
        is_claimed: job.is_claimed,
    })
}

/// Follows the jobs before one to the first, which has a schedule.
fn follows(job: &Job, settings: &Settings) -> Result<()> {
    let mut at = job;
    for _ in &settings.jobs {
        let When::After(other) = &at.when else {
            return Ok(());
        };
        at = named(settings, other)
            .map_err(|e| e.context(format!("job \"{}\" comes after another", at.name)))?;
        if at.when == When::Always {
            return Err(err!(
                Config,
                "job \"{}\" comes after \"{}\", which never ends",
                job.name,
                at.name
            ));
        }
    }
    Err(err!(Config, "job \"{}\" comes after itself", job.name))
}

/// The part of the jitter that falls to this host: the same each day.
fn delay(job: &Job, host: &str) -> Duration {
    let millis = u64::try_from(job.jitter.as_millis()).unwrap_or(u64::MAX);
    let hash = blake3::hash(format!("{host}/{}", job.name).as_bytes());
    let [a, b, c, d, e, f, g, h, ..] = *hash.as_bytes();
    let number = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    Duration::from_millis(number.checked_rem(millis).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sink;
    use crate::error::Code;

    #[test]
    fn the_zone_of_an_alert_is_checked_and_keeps_no_agent_from_its_start() {
        let environment = Environment::new([("HOME", "/home/x")], None);
        let read = |zone: &str, hours: Option<&str>| {
            let mut settings = Settings::default();
            settings.alerts.push(Sink {
                name: "mail".to_owned(),
                zone: Some(zone.to_owned()),
                quiet_hours: hours.map(|hours| hours.parse().unwrap()),
                ..Sink::default()
            });
            let zones = check_zones(&settings);
            assert!(checked(settings, &environment, |_| Ok(())).is_ok());
            zones
        };
        let hours = Some("22:00-06:00");
        assert!(read("Europe/Berlin", hours).is_ok());
        assert!(read("Europe/Berlni", None).is_ok(), "nobody asks for it");
        let e = read("Europe/Berlni", hours).unwrap_err();
        assert_eq!(e.code(), Code::Config);
        assert_eq!(
            e.to_string(),
            "alert \"mail\": \"Europe/Berlni\" is no zone"
        );
    }

    #[test]
    fn jitter_gives_each_host_a_part_of_its_own_and_always_the_same() {
        let job = |seconds| Job {
            name: "nightly".to_owned(),
            jitter: Duration::from_secs(seconds),
            ..crate::config::Tenant {
                name: "a".to_owned(),
                config: PathBuf::new(),
            }
            .job()
        };
        let hosts: Vec<String> = (0..50).map(|n| format!("host{n}")).collect();
        let parts = |seconds| -> Vec<Duration> {
            hosts
                .iter()
                .map(|host| delay(&job(seconds), host))
                .collect()
        };
        let first = parts(600);
        assert_eq!(first, parts(600));
        assert!(first.iter().all(|part| *part < Duration::from_secs(600)));
        let early = first
            .iter()
            .filter(|part| **part < Duration::from_secs(300));
        assert!((10..=40).contains(&early.count()), "{first:?}");
        assert!(parts(0).iter().all(Duration::is_zero));
    }
}
