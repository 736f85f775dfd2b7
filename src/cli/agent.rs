//! `pitr agent`.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};

use super::output::Table;
use super::{Context, warnings_unless};
use crate::agent::alert::Notices;
use crate::agent::alert::decide::Book;
use crate::agent::alert::examined;
use crate::agent::child::{self, Asked, Done};
use crate::agent::jobs::{self, Shown};
use crate::agent::load::Loaded;
use crate::agent::supervise::{self, Requests};
use crate::agent::{alert, deletions, load, looks, observe};
use crate::config::{Job, Settings};
use crate::err;
use crate::error::Result;
use crate::exit;
use crate::operate::human;
use crate::operate::notify::Notify;
use crate::operate::runs::{RunId, Runs};
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;

/// Run the jobs of the configuration when they are due
///
/// One process of a host. It starts the jobs of [jobs.NAME], serves a status page, /metrics, /healthz and /readyz at http://127.0.0.1:9870/, and has the sinks of [alerts.NAME] told of what is wrong.
///
/// A job is a command of pitr in a process of its own, which goes on when the agent ends or dies; the next agent finds it. A job never overlaps itself, what was missed is caught up
/// once, and schedules know their zone. SIGHUP reads the configuration again; after SIGTERM the agent leaves within seconds.
///
/// Without the agent, cron and systemd's timers run the same commands.
///
/// Example: pitr agent
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Without one, the agent runs until it is told to end.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The agent of a tenant serves nothing itself
    #[arg(long, hide = true)]
    pub tenant: bool,
}

/// The commands of `pitr agent`.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Run a job now, and wait for its end
    ///
    /// The exit status is that of the job's command; 7 when a run of the job is under way. The schedule goes on as it was.
    Run {
        /// The name of the job
        job: String,
    },
    /// Show the jobs: how they went, and when they run next
    ///
    /// Exit status: 0 well, 1 when a job failed last, also while it runs again, and when one is overdue.
    Status,
    #[command(hide = true)]
    Exec {
        job: String,
        #[arg(long)]
        scheduled: i64,
        #[arg(long)]
        attempt: u32,
        /// Somebody asked for it at the page
        #[arg(long)]
        by_hand: bool,
    },
    #[command(hide = true)]
    Observe {
        #[arg(long)]
        given_up: bool,
        /// Notices that were taken stand in the memory that is the standard input
        #[arg(long)]
        remember: bool,
    },
    #[command(hide = true)]
    Examine {
        #[arg(long)]
        given_up: bool,
    },
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    match &args.command {
        None => agent(cx, args.tenant),
        Some(Command::Run { job }) => run_now(cx, job),
        Some(Command::Status) => status(cx),
        Some(Command::Exec {
            job,
            scheduled,
            attempt,
            by_hand,
        }) => exec(cx, job, (*scheduled, *attempt), *by_hand),
        Some(Command::Examine { given_up }) => {
            let loaded = followed(cx)?;
            let is_well = match given_up {
                true => examined::given_up(&cx.session, &loaded).map(|()| false)?,
                false => examined::examine(&cx.session, &loaded)?,
            };
            Ok(warnings_unless(is_well))
        }
        Some(Command::Observe { given_up, remember }) => {
            let loaded = followed(cx)?;
            let memory = remember.then(|| std::io::stdin().as_fd().try_clone_to_owned());
            let memory = memory.and_then(|copy| copy.ok().map(File::from));
            let notices = Notices::of(&loaded.state_dir, memory);
            match given_up {
                true => observe::given_up(&cx.session, &loaded, &notices)?,
                false => {
                    // The agent waits for this line, and not for the deliveries behind it. Nobody reads it when the agent is gone.
                    let looked = || {
                        let _ = cx.line(looks::LOOKED);
                    };
                    observe::observe(&cx.session, &loaded, &notices, &looked)?;
                }
            }
            Ok(exit::SUCCESS)
        }
    }
}

/// Loads the configuration for a process of the agent, which does nothing for an agent that is gone.
fn followed(cx: &Context) -> Result<load::Loaded> {
    match super::caller(&cx.session.environment) {
        Some(caller) if !super::is_parent(caller) => Err(err!(Interrupted, "the agent is gone")),
        _ => load::load(&cx.session, is_command),
    }
}

fn line_of(words: &[String]) -> Vec<OsString> {
    let words = words.iter().map(String::as_str);
    let line = std::iter::once("pitr").chain(words);
    line.map(OsString::from).collect()
}

/// Refuses a job that expires with credentials that may not delete.
fn permitted(session: &Session, settings: &Settings, job: &Job) -> Result<()> {
    match super::parsed(&line_of(&job.run)) {
        Ok(cli) if matches!(cli.command, super::Command::Expire(_)) => {
            let flags = super::flags(&cli.global);
            deletions::require(session, settings, &job.name, &flags)
        }
        _ => Ok(()),
    }
}

/// Whether the words are a command line of pitr.
pub(super) fn is_command(words: &[String]) -> Result<()> {
    let line = line_of(words);
    match super::parsed(&line) {
        Ok(_) => Ok(()),
        Err(e) if e.use_stderr() => {
            let text = e.to_string();
            let first = text.lines().next().unwrap_or_default();
            Err(err!(
                Config,
                "\"{}\" is no command of pitr: {}",
                words.join(" "),
                first.trim_start_matches("error: ")
            ))
        }
        Err(_) => Err(err!(Config, "\"{}\" does nothing", words.join(" "))),
    }
}

/// Has SIGTERM and SIGINT stop the session, and returns what SIGHUP sets.
fn reload_or_stop(cx: &Context) -> Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let reload = Arc::new(AtomicBool::new(false));
    super::set_on(SIGHUP, &reload)?;
    super::set_on(SIGTERM, &cx.session.host.stop)?;
    super::set_on(SIGINT, &cx.session.host.stop)?;
    Ok(reload)
}

fn agent(cx: &Context, is_tenant: bool) -> Result<u8> {
    let reload = reload_or_stop(cx)?;
    let notify = Notify::new(&cx.session.environment);
    let requests = Requests {
        reload,
        status: Box::new(move |line| notify.send(&format!("READY=1\nSTATUS={line}"))),
        is_tenant,
    };
    supervise::run(&cx.session, &requests, is_command)?;
    Ok(exit::SUCCESS)
}

fn run_now(cx: &Context, name: &str) -> Result<u8> {
    cx.stop_with_cleanup()?;
    let loaded = load::load(&cx.session, is_command)?;
    let job = load::named(&loaded.settings, name)?;
    let (now, nonce) = (cx.session.host.now(), cx.session.host.random());
    let id = Runs::of(&loaded.state_dir, name).by_hand(now, nonce)?;
    let done = child::run(
        &cx.session,
        &loaded.settings,
        (&loaded.state_dir, job),
        id,
        &Asked {
            is_shown: true,
            is_by_hand: true,
            permit: &|| permitted(&cx.session, &loaded.settings, job),
            reload: &AtomicBool::new(false),
        },
    )?;
    match done {
        Done::Ended(ended) => {
            if ended.is_over_time {
                return Err(err!(
                    Deadline,
                    "job \"{name}\" took too long, and was ended"
                ));
            }
            let status = ended.status.and_then(|status| u8::try_from(status).ok());
            Ok(status.unwrap_or(exit::INTERRUPTED))
        }
        Done::Busy | Done::Known | Done::Elsewhere => {
            Err(err!(Locked, "a run of job \"{name}\" is under way")
                .hint("Nothing was started. pitr agent status shows it."))
        }
    }
}

/// Runs a job for the agent, in a session of its own.
fn exec(
    cx: &Context,
    name: &str,
    (scheduled, attempt): (i64, u32),
    is_by_hand: bool,
) -> Result<u8> {
    // As the leader of a group already, it stays with that.
    let _ = rustix::process::setsid();
    let reload = reload_or_stop(cx)?;
    let loaded = load::load(&cx.session, is_command)?;
    let job = load::named(&loaded.settings, name)?;
    let scheduled = TimestampTz::from_unix_micros(scheduled)
        .ok_or_else(|| err!(Usage, "no time: {scheduled}"))?;
    let id = RunId { scheduled, attempt };
    child::run(
        &cx.session,
        &loaded.settings,
        (&loaded.state_dir, job),
        id,
        &Asked {
            is_shown: false,
            is_by_hand,
            permit: &|| permitted(&cx.session, &loaded.settings, job),
            reload: &reload,
        },
    )?;
    Ok(exit::SUCCESS)
}

fn status(cx: &Context) -> Result<u8> {
    let loaded = load::load(&cx.session, is_command)?;
    let own = Standing::of(cx, &loaded)?;
    let tenants = load::tenants(&loaded, &cx.session.environment, is_command);
    let tenants: Vec<(String, Result<Standing>)> = tenants
        .into_iter()
        .map(|t| {
            let standing = t.loaded.and_then(|loaded| Standing::of(cx, &loaded));
            (t.name, standing)
        })
        .collect();
    cx.answer(&in_one(&own, &tenants), || print_all(cx, &own, &tenants))?;
    let is_bad = |job: &Shown| job.failing || job.overdue_since.is_some();
    let is_well =
        |standing: &Standing| standing.told.failing.is_empty() && !standing.jobs.iter().any(is_bad);
    let mut all = tenants.iter().map(|(_, standing)| standing.as_ref());
    Ok(match is_well(&own) && all.all(|s| s.is_ok_and(is_well)) {
        true => exit::SUCCESS,
        false => exit::CRITICAL,
    })
}

struct Standing {
    running: bool,
    jobs: Vec<Shown>,
    told: Book,
}

impl Standing {
    fn of(cx: &Context, loaded: &Loaded) -> Result<Standing> {
        Ok(Standing {
            running: supervise::is_running(&loaded.state_dir),
            jobs: jobs::shown(loaded, cx.session.host.now())?,
            told: alert::told(&cx.session, &loaded.state_dir),
        })
    }

    fn json(&self) -> Value {
        json!({ "running": self.running, "jobs": self.jobs, "alerts": self.told.open, "failing_sinks": self.told.failing })
    }

    fn print(&self, cx: &Context) -> Result<()> {
        cx.line(match self.running {
            true => "the agent runs",
            false => "the agent does not run: nothing is started until it does (pitr agent)",
        })?;
        print_jobs(cx, &self.jobs)?;
        for (id, open) in self.told.open.iter().filter(|(_, open)| !open.is_over) {
            cx.line(&format!(
                "{}: {id} since {}: {}",
                open.severity.name(),
                human::time(open.since),
                open.summary
            ))?;
        }
        for (sink, failing) in &self.told.failing {
            cx.line(&format!(
                "alert sink \"{sink}\" takes nothing since {}: {}",
                human::time(failing.since),
                failing.error
            ))?;
        }
        Ok(())
    }
}

fn in_one(own: &Standing, tenants: &[(String, Result<Standing>)]) -> Value {
    let of_tenant = |(name, standing): &(String, Result<Standing>)| {
        let mut told = match standing {
            Ok(standing) => standing.json(),
            Err(e) => json!({ "error": e.to_string() }),
        };
        told["name"] = name.clone().into();
        told
    };
    let tenants: Vec<Value> = tenants.iter().map(of_tenant).collect();
    let mut all = own.json();
    all["tenants"] = tenants.into();
    all
}

fn print_all(cx: &Context, own: &Standing, tenants: &[(String, Result<Standing>)]) -> Result<()> {
    own.print(cx)?;
    for (name, standing) in tenants {
        cx.line("")?;
        cx.line(&format!("tenant {name}"))?;
        match standing {
            Ok(standing) => standing.print(cx)?,
            Err(e) => cx.line(&format!("nothing is known: {e}"))?,
        }
    }
    Ok(())
}

fn print_jobs(cx: &Context, shown: &[Shown]) -> Result<()> {
    let row = |job: &Shown| {
        let result = match (job.running, job.last_success, job.last_status) {
            (true, _, _) if job.failing => "runs again, failed before".to_owned(),
            (true, _, _) => "running".to_owned(),
            (_, Some(true), _) => "ok".to_owned(),
            (_, Some(false), Some(status)) => format!("failed, status {status}"),
            (_, Some(false), None) => "killed".to_owned(),
            (_, None, _) => match &job.elsewhere {
                Some(host) => format!("ran on {host}"),
                None => "never ran".to_owned(),
            },
        };
        let result = match job.overdue_since {
            Some(due) => format!("overdue since {}; {result}", human::time(due)),
            None => result,
        };
        [
            job.name.clone(),
            job.command.clone(),
            job.last_scheduled.map_or(String::new(), human::time),
            result,
            job.next.map_or(String::new(), human::time),
        ]
    };
    let table = Table::of("job | command | last run | result | next run");
    match shown.is_empty() {
        true => Ok(()),
        false => cx.table(&table.rows(shown.iter().map(row))),
    }
}
