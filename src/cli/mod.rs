//! The command line of `pitr`: one arm, one call per verb.
//!
//! Each verb has its file with `Args` (whose comments are its help) and `run`. `output` alone prints. Help and version need no
//! configuration; a verb reads it through [`Session::settings`].

use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{Environment, Flags};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::exit::{self, Program};
use crate::fault;
use crate::host::Host;
use crate::operate::audit as operate_audit;
use crate::operate::away::Away;
use crate::operate::failures::Failures;
use crate::operate::pacing::Pacing;
use crate::operate::session::Session;
use crate::operate::sets::FOLLOWS;
use crate::operate::underway;
use crate::pg::time::TimestampTz;
use crate::release;
use crate::repo::lives::Followed;

mod askpass;
pub mod completions;
pub mod configuration;
pub mod help;
pub mod man;
pub mod notify;
pub mod output;
pub mod serve;
pub mod target;
pub mod terminal;

pub mod adopt;
pub mod agent;
pub mod alert;
pub mod audit;
mod audited;
pub mod backup;
mod backup_delete;
pub mod clone;
pub mod demo;
pub mod doctor;
pub mod drill;
mod drill_page;
pub mod erasure;
pub mod expire;
mod expire_explain;
pub mod explain;
pub mod files;
pub mod find;
mod heal;
pub mod hold;
pub mod info;
mod info_forecast;
mod info_set;
pub mod init;
mod init_interactive;
mod left_out;
pub mod logical;
pub mod mark;
pub mod metrics;
mod moment;
pub mod mount;
pub mod pin;
pub mod plan;
pub mod query;
pub mod receive;
pub mod recover;
pub mod redis;
mod redis_cluster;
pub mod redis_moments;
mod replaced;
pub mod repo;
pub mod repo_check;
mod repo_claims;
mod repo_compact;
mod repo_cost;
mod repo_join;
mod repo_keys;
mod repo_lifecycle;
mod repo_rewrap;
mod repo_rotate;
pub mod repo_sync;
mod repo_thaw;
mod repo_tier;
pub mod report;
mod report_page;
pub mod rescue;
pub mod restore;
mod restore_aside;
mod restore_from_standby;
mod restore_replaced;
mod restoring;
pub mod roles;
pub mod rollback;
pub mod runbook;
pub mod standby;
pub mod timeline;
pub mod verify;
pub mod wal;
pub mod wal_conflicts;
pub mod wal_gaps;
pub mod wal_list;
pub mod wal_resolve;
pub mod wal_show;

use output::Output;

/// Archive PostgreSQL's WAL, back up its clusters, and restore them to any moment
///
/// Every command that answers a question takes --json. Exit statuses: 0 success, 1 failure, 2 usage, 3 configuration, 4 verify found
/// damage or a gap, wal gaps one, logical check damage, or a drill broken recovery, 5 the target cannot be reached, 6 warnings, 7 locked, 8 refused by a safety guard, 9 repository
/// unreachable, 10 partial success.
#[derive(Parser)]
#[command(
    name = "pitr",
    version,
    disable_help_subcommand = true,
    max_term_width = 100,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    global: GlobalArgs,
    #[command(subcommand)]
    command: Command,
}

/// The options that every command takes.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// Read the configuration from this file
    ///
    /// Without it: $PITR_CONFIG, ./pitr.toml, ~/.config/pitr/pitr.toml, /etc/pitr/pitr.toml.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Work on this cluster; needed when several are configured
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,

    /// Use this repository only: its name, URL or absolute path
    ///
    /// With a URL or a path no configuration file is needed.
    #[arg(long, global = true, value_name = "NAME|URL")]
    pub repository: Option<String>,

    /// Work on the cluster with this system identifier, where the name has had several
    ///
    /// For the commands that read, and expire. Without it, what reads takes that of the newest backup; verify and expire take all.
    #[arg(long, global = true, value_name = "NUMBER")]
    pub system_identifier: Option<u64>,

    /// Print the answer, or the error, as JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// Print nothing when all goes well but the answer to a question
    ///
    /// For cron: backup, expire --confirm, verify, receive and wal push and backfill print only what went wrong. The others answer as ever,
    /// without notes and progress.
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Init(init::Args),
    Doctor(doctor::Args),
    Backup(backup::Args),
    Info(info::Args),
    Find(find::Args),
    Plan(plan::Args),
    Restore(restore::Args),
    Drill(drill::Args),
    Clone(clone::Args),
    Mount(mount::Args),
    Query(query::Args),
    Rescue(Box<rescue::Args>),
    Standby(standby::Args),
    Adopt(adopt::Args),
    Receive(receive::Args),
    Expire(expire::Args),
    Pin(pin::Args),
    Unpin(pin::UnpinArgs),
    Hold(hold::Args),
    Unhold(hold::UnholdArgs),
    Erasure(erasure::Args),
    Wal(wal::Args),
    Repo(repo::Args),
    Verify(verify::Args),
    Timeline(timeline::Args),
    Files(files::Args),
    Logical(logical::Args),
    Redis(redis::Args),
    Config(configuration::Args),
    Metrics(metrics::Args),
    Agent(agent::Args),
    Alert(alert::Args),
    Explain(explain::Args),
    Audit(audit::Args),
    Report(report::Args),
    Mark(mark::Args),
    Recover(recover::Args),
    Runbook(runbook::Args),
    Help(help::Args),
    Completions(completions::Args),
    Man(man::Args),
    #[command(hide = true)]
    Serve(serve::Args),
}

/// The session and the output of a verb.
pub struct Context {
    /// The session of the use cases.
    pub session: Session,
    /// The output of answers and notes.
    pub out: Output,
}

/// The system's clock; the library takes it as an argument.
#[expect(
    clippy::disallowed_methods,
    reason = "the command line is where the clock is asked"
)]
pub fn now() -> TimestampTz {
    TimestampTz::from_system_time(fault::time(SystemTime::now()))
}

/// The refusal of a command that shows a plan, and was given neither --confirm nor --dry-run; `shown` says what the plan is.
fn unconfirmed(shown: &str) -> Error {
    err!(
        Refused,
        "nothing was changed, because --confirm is not given"
    )
    .hint(format!(
        "{shown}\nAdd --confirm to do it, or --dry-run to only look."
    ))
}

/// A random number.
pub fn random() -> u64 {
    // The standard library seeds its hash keys from the system, and takes others each time.
    RandomState::new().build_hasher().finish()
}

impl Context {
    /// Lets Ctrl-C and SIGTERM stop the session's work in order. A second signal ends the process at once.
    ///
    /// # Errors
    /// `Io` when the handler cannot be set.
    pub fn stop_in_order(&self) -> Result<()> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        let stop = &self.session.host.stop;
        let status = i32::from(exit::INTERRUPTED);
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag unset and sets it, the second finds it set and leaves.
            signal_hook::flag::register_conditional_shutdown(signal, status, Arc::clone(stop))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(stop)))
                .map_err(|e| Error::from_io("install the handler of signals", e))?;
        }
        Ok(())
    }

    /// Lets the session's work stop in order, however often a signal comes: for work whose end must not be cut short. A lost terminal ends it, too.
    ///
    /// # Errors
    /// `Io` when the handler cannot be set.
    fn stop_with_cleanup(&self) -> Result<()> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&self.session.host.stop))
                .map_err(|e| Error::from_io("install the handler of signals", e))?;
        }
        Ok(())
    }

    /// Prints what failed, after the report of what was done; whether nothing did.
    ///
    /// # Errors
    /// The interruption, if there was one.
    fn told(&self, failures: Failures) -> Result<bool> {
        let is_none = failures.errors.is_empty();
        for error in failures.errors {
            self.out.error(&self.session.explained(error));
        }
        match failures.interrupted {
            Some(interrupted) => Err(interrupted),
            None => Ok(is_none),
        }
    }
}

/// Parses the command line, runs the command, prints its error, and returns the exit status.
pub fn main() -> u8 {
    raise_open_files();
    let environment = Environment::of_process();
    if let Some(status) = askpass::answer(&environment) {
        return status;
    }
    follow(&environment);
    match catch_unwind(AssertUnwindSafe(|| {
        run(std::env::args_os().collect(), environment)
    })) {
        Ok(status) => status,
        Err(_) => {
            // The panic hook has said where; a panic's own status, 101, would mean nothing to anybody.
            exit::status(Program::Pitr, Code::Internal)
        }
    }
}

/// Ends with the process that started this one as a step of its own, where it says so: a step does not outlive its run.
fn follow(environment: &Environment) {
    use rustix::process::{Signal, getpid, kill_process, set_parent_process_death_signal};
    // A process that this one starts inherits the variable, and is not meant.
    let Some(caller) = caller(environment).filter(|caller| is_parent(*caller)) else {
        return;
    };
    let follows = set_parent_process_death_signal(Some(Signal::KILL));
    if follows.is_err() || !is_parent(caller) {
        // The caller is gone already: this is what the signal would have done.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

/// The process that wants this one, or the one that started it, to end with it.
fn caller(environment: &Environment) -> Option<i32> {
    let caller = environment.get(FOLLOWS).and_then(|text| text.to_str());
    caller.and_then(|text| text.parse().ok())
}

fn is_parent(pid: i32) -> bool {
    rustix::process::getppid().map(|p| p.as_raw_nonzero().get()) == Some(pid)
}

/// Allows as many open files as the host lets this process have. A backup of a long chain has hundreds of layers and packs, each with a file.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // A limit that is refused here fails where a file is opened, and is named there.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
}

/// The command line, whose global options stand in the help of `pitr` alone.
fn command_line() -> clap::Command {
    static VERSION: LazyLock<String> = LazyLock::new(release::version);
    let line = Cli::command().version(VERSION.as_str());
    let globals: Vec<Arg> = line
        .get_arguments()
        .filter(|a| a.is_global_set())
        .cloned()
        .collect();
    line.mut_subcommands(|verb| with_hidden(verb, &globals))
}

/// Hides what would be inherited, in a verb and the verbs below it.
fn with_hidden(verb: clap::Command, globals: &[Arg]) -> clap::Command {
    verb.args(globals.iter().map(|arg| arg.clone().hide(true)))
        .after_help("Global options: see pitr --help")
        .mut_subcommands(|below| with_hidden(below, globals))
}

fn parsed(arguments: &[OsString]) -> std::result::Result<Cli, clap::Error> {
    let mut line = command_line();
    let mut matches = line.try_get_matches_from_mut(arguments)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|e| e.format(&mut line))
}

fn run(arguments: Vec<OsString>, environment: Environment) -> u8 {
    let cli = match parsed(&arguments) {
        Ok(cli) => cli,
        Err(e) if !e.use_stderr() => {
            // Help and version; a closed pipe is no error.
            let _ = e.print();
            return exit::SUCCESS;
        }
        Err(e) => {
            let json = arguments.iter().any(|a| a == "--json");
            return Output::new(json, false, &environment).usage(&e);
        }
    };
    let cx = context(&cli, environment);
    let only = || {
        let settings = cx.session.settings().ok()?;
        settings
            .cluster()
            .ok()
            .map(|one| one.name.as_str().to_owned())
    };
    let about = audited::about(&cli.command, &|| cli.global.cluster.clone().or_else(only));
    let shown = about.clone();
    let work = || underway::during(&cx.session, shown.as_ref(), || dispatch(&cli.command, &cx));
    match operate_audit::framed(&cx.session, about, work) {
        Ok(status) => status,
        Err(e) => cx.out.error(&cx.session.explained(e)),
    }
}

fn flags(global: &GlobalArgs) -> Flags {
    Flags {
        config: global.config.clone(),
        cluster: global.cluster.clone(),
        repository: global.repository.clone(),
    }
}

fn context(cli: &Cli, environment: Environment) -> Context {
    let global = &cli.global;
    let out = Output::new(global.json, global.quiet, &environment);
    let session = Session {
        host: Host {
            clock: Arc::new(now),
            random: Arc::new(random),
            stop: Arc::default(),
            progress: out.progress(),
            scratch: std::env::temp_dir(),
        },
        environment,
        flags: flags(global),
        system_identifier: global.system_identifier,
        followed: followed(&cli.command),
        away: Away::default(),
        pacing: pacing(&cli.command),
    };
    Context { session, out }
}

/// The limits of bandwidth that a command keeps: those that move the bytes of backups.
fn pacing(command: &Command) -> Pacing {
    match command {
        Command::Backup(_)
        | Command::Files(_)
        | Command::Logical(_)
        | Command::Redis(_)
        | Command::Config(_) => Pacing::limited(None),
        Command::Restore(args) => Pacing::limited(args.max_rate),
        Command::Standby(args) => Pacing::limited(args.max_rate),
        Command::Verify(args) => Pacing::limited(args.max_rate),
        Command::Repo(args) => match &args.command {
            repo::Command::Sync(args) => Pacing::limited(args.max_rate),
            repo::Command::Compact(args) => Pacing::limited(args.max_rate),
            _ => Pacing::default(),
        },
        _ => Pacing::default(),
    }
}

fn followed(command: &Command) -> Followed {
    let as_stored = match command {
        Command::Plan(args) => args.target.as_stored,
        Command::Restore(args) => args.target.as_stored,
        Command::Drill(args) => args.target.as_stored,
        Command::Clone(args) => args.make.moment.target.as_stored,
        Command::Mount(args) => args.target.as_stored,
        Command::Query(args) => args.moment.target.as_stored,
        Command::Rescue(args) => args.moment.target.as_stored,
        _ => false,
    };
    match as_stored {
        true => Followed::AsStored,
        false => Followed::Resolved,
    }
}

/// Whether the command can work on another system identifier than that of the data directory or server it is about.
fn takes_identifier(command: &Command) -> bool {
    match command {
        Command::Demo(_)
        | Command::Init(_)
        | Command::Doctor(_)
        | Command::Adopt(_)
        | Command::Receive(_)
        | Command::Repo(_)
        | Command::Erasure(_)
        | Command::Files(_)
        | Command::Logical(_)
        | Command::Redis(_)
        | Command::Config(_)
        | Command::Metrics(_)
        | Command::Agent(_)
        | Command::Alert(_)
        | Command::Explain(_)
        | Command::Audit(_)
        | Command::Report(_)
        | Command::Mark(_)
        | Command::Recover(_)
        | Command::Runbook(_)
        | Command::Help(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Serve(_) => false,
        Command::Backup(args) => args.command.is_some(),
        Command::Wal(args) => !matches!(
            args.command,
            wal::Command::Push { .. } | wal::Command::Backfill { .. }
        ),
        Command::Info(_)
        | Command::Find(_)
        | Command::Plan(_)
        | Command::Restore(_)
        | Command::Drill(_)
        | Command::Clone(_)
        | Command::Mount(_)
        | Command::Query(_)
        | Command::Rescue(_)
        | Command::Standby(_)
        | Command::Expire(_)
        | Command::Pin(_)
        | Command::Unpin(_)
        | Command::Hold(_)
        | Command::Unhold(_)
        | Command::Timeline(_)
        | Command::Verify(_) => true,
    }
}

fn dispatch(command: &Command, cx: &Context) -> Result<u8> {
    if cx.session.system_identifier.is_some() && !takes_identifier(command) {
        return Err(err!(
            Usage,
            "--system-identifier means nothing to this command"
        )
        .hint("Nothing was done. It works on the cluster that the data directory or the server belongs to."));
    }
    match command {
        Command::Demo(args) => demo::run(args, cx),
        Command::Init(args) => init::run(args, cx),
        Command::Doctor(args) => doctor::run(args, cx),
        Command::Backup(args) => backup::run(args, cx),
        Command::Info(args) => info::run(args, cx),
        Command::Find(args) => find::run(args, cx),
        Command::Plan(args) => plan::run(args, cx),
        Command::Restore(args) => restore::run(args, cx),
        Command::Drill(args) => drill::run(args, cx),
        Command::Clone(args) => clone::run(args, cx),
        Command::Mount(args) => mount::run(args, cx),
        Command::Query(args) => query::run(args, cx),
        Command::Rescue(args) => rescue::run(args, cx),
        Command::Standby(args) => standby::run(args, cx),
        Command::Adopt(args) => adopt::run(args, cx),
        Command::Receive(args) => receive::run(args, cx),
        Command::Expire(args) => expire::run(args, cx),
        Command::Pin(args) => pin::run(args, cx),
        Command::Unpin(args) => pin::run_unpin(args, cx),
        Command::Hold(args) => hold::run(args, cx),
        Command::Unhold(args) => hold::run_unhold(args, cx),
        Command::Erasure(args) => erasure::run(args, cx),
        Command::Wal(args) => wal::run(args, cx),
        Command::Repo(args) => repo::run(args, cx),
        Command::Verify(args) => verify::run(args, cx),
        Command::Timeline(args) => timeline::run(args, cx),
        Command::Files(args) => files::run(args, cx),
        Command::Logical(args) => logical::run(args, cx),
        Command::Redis(args) => redis::run(args, cx),
        Command::Config(args) => configuration::run(args, cx),
        Command::Metrics(args) => metrics::run(args, cx),
        Command::Agent(args) => agent::run(args, cx),
        Command::Explain(args) => explain::run(args, cx),
        Command::Alert(args) => alert::run(args, cx),
        Command::Audit(args) => audit::run(args, cx),
        Command::Report(args) => report::run(args, cx),
        Command::Mark(args) => mark::run(args, cx),
        Command::Recover(args) => recover::run(args, cx),
        Command::Runbook(args) => runbook::run(args, cx),
        Command::Help(args) => help::run(args, cx),
        Command::Completions(args) => completions::run(args, cx),
        Command::Man(args) => man::run(args, cx),
        Command::Serve(args) => serve::run(args, cx),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        command_line().debug_assert();
    }

    #[test]
    fn global_options_are_shown_once_and_taken_everywhere() {
        let help = |line: &[&str]| {
            let words = ["pitr"].iter().chain(line).map(OsString::from);
            let shown = parsed(&words.collect::<Vec<_>>()).err().unwrap();
            assert!(!shown.use_stderr());
            shown.to_string()
        };
        assert!(help(&["--help"]).contains("--system-identifier"));
        for line in [
            &["expire", "--help"][..],
            &["expire", "-h"],
            &["wal", "--help"],
            &["wal", "push", "--help"],
        ] {
            let text = help(line);
            assert!(!text.contains("--system-identifier"), "{text}");
            assert!(text.contains("Global options: see pitr --help"), "{text}");
        }
        for line in [
            "pitr --json --cluster x wal list",
            "pitr wal --json --cluster x list",
            "pitr wal list --json --cluster x",
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let global = parsed(&words).ok().unwrap().global;
            assert!(
                global.json && global.cluster.as_deref() == Some("x"),
                "{line}"
            );
        }
    }

    /// The arguments of every verb that the design fixes; a verb joins [`Command`] once it can run.
    #[derive(Parser)]
    enum Designed {
        Init(init::Args),
        Doctor(doctor::Args),
        Backup(backup::Args),
        Info(info::Args),
        Plan(plan::Args),
        Restore(restore::Args),
        Standby(standby::Args),
        Adopt(adopt::Args),
        Receive(receive::Args),
        Verify(verify::Args),
        Expire(expire::Args),
        Pin(pin::Args),
        Unpin(pin::UnpinArgs),
        Wal(wal::Args),
        Repo(repo::Args),
        Timeline(timeline::Args),
    }

    #[test]
    fn every_verb_takes_what_the_design_lists() {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            _global: GlobalArgs,
            #[command(subcommand)]
            _verb: Designed,
        }
        Line::command().debug_assert();
        for (line, right) in [
            (
                "init --cluster main --pgdata /d --conninfo host=/run --repository file:///r --confirm",
                true,
            ),
            ("doctor --json", true),
            (
                "backup --method stream --label x --checkpoint spread --max-rate 10MB --jobs 4 --wal-wait 5m --compression zstd",
                true,
            ),
            ("backup --max-rate 10", false),
            (
                "backup delete 20261120T064049Z-full --grace 0s --confirm",
                true,
            ),
            ("backup delete", false),
            ("backup --label x delete 20261120T064049Z-full", false),
            ("backup --jobs 0", false),
            ("backup --jobs 257", false),
            ("backup --jobs four", false),
            ("info --json --repository /r", true),
            (
                "plan --target-time 2026-11-20T06:00:00Z --exclusive --target-timeline 2 --backup b --json",
                true,
            ),
            ("plan --exclusive", false),
            ("plan --target-xid 7 --target-lsn 0/1", false),
            (
                "restore --to /d --target-name n --target-action pause --tablespace-mapping 16385=/t --tablespace-mapping /a=/b --jobs 2 --adopt --dry-run",
                true,
            ),
            ("restore --target-immediate", false),
            ("restore --to /d --tablespace-mapping 16385", false),
            ("restore --to /d --replace --confirm", true),
            ("restore --to /d --replace --delta", false),
            ("restore --to /d --undo --confirm --discard-changes", true),
            ("restore --to /d --discard-changes", false),
            ("restore --to /d --undo --target-immediate", false),
            ("standby --to /d --primary-conninfo host=h --slot s", true),
            ("standby --to /d", false),
            ("adopt --pgdata /d --as n", true),
            ("adopt --pgdata /d --confirm", true),
            ("receive --slot s --create-slot --until-lsn 0/1", true),
            ("receive --drop-slot", true),
            ("receive --drop-slot --create-slot", false),
            ("receive --slot Big", false),
            ("receive --until-lsn x", false),
            ("verify --backup b", true),
            ("expire --keep 3 --grace 0 --confirm", true),
            ("expire --keep x", false),
            ("expire --keep 3 --dry-run --confirm", false),
            ("wal push pg_wal/x", true),
            ("wal fetch f p", true),
            ("wal fetch f", false),
            ("wal list", true),
            ("wal show x", true),
            ("wal gaps", true),
            ("wal conflicts", true),
            ("wal conflicts x", true),
            ("wal backfill --from /d", true),
            ("wal backfill", false),
            ("repo show", true),
            ("repo claims", true),
            (
                "repo claims --release 20261120T064049Z-full --confirm",
                true,
            ),
            ("repo claims --confirm", false),
            ("repo sync --from a --to b --dry-run", true),
            ("timeline list --json", true),
            ("timeline abandon 4 --reason drill --confirm", true),
            ("timeline restore 4 --reason real --dry-run", true),
            ("timeline abandon 4 --confirm", false),
            ("timeline abandon 0 --reason x", false),
            ("timeline restore 4 --reason x --dry-run --confirm", false),
            (
                "pin 20261120T064049Z-full --reason audit --until 2027-01-01T00:00:00Z --confirm",
                true,
            ),
            ("pin 20261120T064049Z-full --reason audit --dry-run", true),
            ("pin 20261120T064049Z-full --confirm", false),
            ("pin --reason audit", false),
            (
                "pin 20261120T064049Z-full --reason audit --timezone UTC",
                false,
            ),
            ("unpin 20261120T064049Z-full --confirm", true),
            ("unpin 20261120T064049Z-full --dry-run --confirm", false),
            ("bakup", false),
        ] {
            let parsed = Line::try_parse_from(std::iter::once("pitr").chain(line.split(' ')));
            assert_eq!(parsed.is_ok(), right, "{line}");
        }
    }
}
