//! The command line of `pitr`: one arm, one call per verb.
//!
//! Each verb has its file with `Args` (whose comments are its help) and `run`. `output` alone prints. Help and version need no
//! configuration; a verb reads it through [`Session::settings`].

use std::ffi::OsString;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
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
use crate::operate::finding::Level;
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
pub mod output;
pub mod serve;
pub mod target;
pub mod terminal;
mod values;

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

/// Makes the verbs from their table: the arguments of each, what runs it, and whether it can work on another system identifier.
///
/// Another one is not that of the data directory or server that the command is about.
macro_rules! verbs {
    ($($(#[$attribute:meta])* $verb:ident($($args:tt)*) => $run:path, $takes_identifier:expr;)*) => {
        #[derive(Subcommand)]
        enum Command {
            $($(#[$attribute])* $verb($($args)*),)*
        }

        impl Command {
            fn takes_identifier(&self) -> bool {
                match self {
                    Command::Backup(args) if args.command.is_none() => false,
                    Command::Wal(wal::Command::Push { .. } | wal::Command::Backfill { .. }) => {
                        false
                    }
                    $(Command::$verb(_) => $takes_identifier,)*
                }
            }

            fn run(&self, cx: &Context) -> Result<u8> {
                match self {
                    $(Command::$verb(args) => $run(args, cx),)*
                }
            }
        }
    };
}

verbs! {
    Demo(demo::Args) => demo::run, false;
    Init(init::Args) => init::run, false;
    Doctor(doctor::Args) => doctor::run, false;
    Backup(backup::Args) => backup::run, true;
    Info(info::Args) => info::run, true;
    Find(find::Args) => find::run, true;
    Plan(plan::Args) => plan::run, true;
    Restore(restore::Args) => restore::run, true;
    Drill(drill::Args) => drill::run, true;
    Clone(clone::Args) => clone::run, true;
    Mount(mount::Args) => mount::run, true;
    Query(query::Args) => query::run, true;
    Rescue(Box<rescue::Args>) => rescue::run, true;
    Standby(standby::Args) => standby::run, true;
    Adopt(adopt::Args) => adopt::run, false;
    Receive(receive::Args) => receive::run, false;
    Expire(expire::Args) => expire::run, true;
    Pin(pin::Args) => pin::run, true;
    Unpin(pin::UnpinArgs) => pin::run_unpin, true;
    Hold(hold::Args) => hold::run, true;
    Unhold(hold::UnholdArgs) => hold::run_unhold, true;
    #[command(subcommand)]
    Erasure(erasure::Command) => erasure::run, false;
    #[command(subcommand)]
    Wal(wal::Command) => wal::run, true;
    #[command(subcommand)]
    Repo(repo::Command) => repo::run, false;
    Verify(verify::Args) => verify::run, true;
    #[command(subcommand)]
    Timeline(timeline::Command) => timeline::run, true;
    #[command(subcommand)]
    Files(files::Command) => files::run, false;
    #[command(subcommand)]
    Logical(logical::Command) => logical::run, false;
    #[command(subcommand)]
    Redis(redis::Command) => redis::run, false;
    #[command(subcommand)]
    Config(configuration::Command) => configuration::run, false;
    Metrics(metrics::Args) => metrics::run, false;
    Agent(agent::Args) => agent::run, false;
    #[command(subcommand)]
    Alert(alert::Command) => alert::run, false;
    Explain(explain::Args) => explain::run, false;
    #[command(subcommand)]
    Audit(audit::Command) => audit::run, false;
    Report(report::Args) => report::run, false;
    Mark(mark::Args) => mark::run, false;
    #[command(subcommand)]
    Recover(recover::Command) => recover::run, false;
    Runbook(runbook::Args) => runbook::run, false;
    Help(help::Args) => help::run, false;
    Completions(completions::Args) => completions::run, false;
    Man(man::Args) => man::run, false;
    #[command(hide = true)]
    Serve(serve::Args) => serve::run, false;
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

/// Lets a signal set the flag.
fn set_on(signal: i32, flag: &Arc<AtomicBool>) -> Result<()> {
    match signal_hook::flag::register(signal, Arc::clone(flag)) {
        Ok(_) => Ok(()),
        Err(e) => Err(Error::from_io("install the handler of signals", e)),
    }
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

/// Success of a command whose plan was only to be shown, or is carried out; else its refusal as [`unconfirmed`].
fn done_or_unconfirmed(is_enough: bool, shown: &str) -> Result<u8> {
    match is_enough {
        true => Ok(exit::SUCCESS),
        false => Err(unconfirmed(shown)),
    }
}

/// The exit status of a command that did all of its work, or a part of it.
fn partial_unless(is_whole: bool) -> Result<u8> {
    Ok(match is_whole {
        true => exit::SUCCESS,
        false => exit::status(Program::Pitr, Code::Partial),
    })
}

/// The exit status of a command that has nothing to warn of, or something.
fn warnings_unless(is_well: bool) -> u8 {
    match is_well {
        true => exit::SUCCESS,
        false => exit::WARNINGS,
    }
}

/// The exit status of a command that did all of its work or a part, and may have something to warn of.
fn partial_or_warnings(is_whole: bool, is_well: bool) -> Result<u8> {
    match is_whole {
        true => Ok(warnings_unless(is_well)),
        false => partial_unless(false),
    }
}

/// The exit status of a check that found all well, or something.
fn findings_unless(is_well: bool) -> u8 {
    match is_well {
        true => exit::SUCCESS,
        false => exit::status(Program::Pitr, Code::Findings),
    }
}

/// The exit status of the worst of what was found.
fn status_of(level: Level) -> u8 {
    match level {
        Level::Ok => exit::SUCCESS,
        Level::Warn => exit::WARNINGS,
        Level::Fail => exit::CRITICAL,
    }
}

pub fn random() -> u64 {
    // The standard library seeds its hash keys from the system, and takes others each time.
    RandomState::new().build_hasher().finish()
}

/// The output is what a verb uses most.
impl Deref for Context {
    type Target = Output;

    fn deref(&self) -> &Output {
        &self.out
    }
}

impl Context {
    /// Lets Ctrl-C and SIGTERM stop the session's work in order. A second signal ends the process at once.
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
    fn stop_with_cleanup(&self) -> Result<()> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let set = |signal| set_on(signal, &self.session.host.stop);
        [SIGINT, SIGTERM, SIGHUP].into_iter().try_for_each(set)
    }

    /// Tells which objects stay: those that the store refused to let go, and those that it keeps for a time.
    fn tell_left(&self, (verb, done): (&str, &str), refused: &[String], locked: &[String]) {
        self.warn_all(refused.iter().map(|one| format!("could not {verb} {one}")));
        let notes = locked.iter().map(|one| format!("not {done}: {one}"));
        notes.for_each(|note| self.note(&note));
    }

    /// Prints what failed, after the report of what was done; whether nothing did.
    ///
    /// # Errors
    /// The interruption, if there was one.
    fn told(&self, failures: Failures) -> Result<bool> {
        let is_none = failures.errors.is_empty();
        for error in failures.errors {
            self.error(&self.session.explained(error));
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
            return match e.print() {
                Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                    exit::status(Program::Pitr, Code::Io)
                }
                _ => exit::SUCCESS,
            };
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
        Err(e) => cx.error(&cx.session.explained(e)),
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
        | Command::Config(_)
        | Command::Drill(_)
        | Command::Clone(_)
        | Command::Mount(_)
        | Command::Query(_)
        | Command::Erasure(_) => Pacing::limited(None),
        // Its clones read backups.
        Command::Find(args) if args.clones => Pacing::limited(None),
        Command::Restore(args) => Pacing::limited(args.max_rate),
        Command::Standby(args) => Pacing::limited(args.max_rate),
        Command::Verify(args) => Pacing::limited(args.max_rate),
        Command::Repo(repo::Command::Sync(args)) => Pacing::limited(args.max_rate),
        Command::Repo(repo::Command::Compact(args)) => Pacing::limited(args.max_rate),
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

fn dispatch(command: &Command, cx: &Context) -> Result<u8> {
    if cx.session.system_identifier.is_some() && !command.takes_identifier() {
        return Err(err!(
            Usage,
            "--system-identifier means nothing to this command"
        )
        .hint("Nothing was done. It works on the cluster that the data directory or the server belongs to."));
    }
    command.run(cx)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        command_line().debug_assert();
    }

    /// An option is not held to what it requires where that conflicts with another one that is given (clap).
    #[test]
    fn an_option_of_another_way_is_refused() {
        let is_taken = |line: &str| {
            let words = line.split(' ').map(OsString::from);
            parsed(&words.collect::<Vec<_>>()).is_ok()
        };
        for (way, more) in [
            (
                "pitr config restore x --to /x",
                &["--dry-run", "--confirm", "--path a"][..],
            ),
            (
                "pitr logical restore x --to /x",
                &["--database a", "--table a.b", "--create", "--replace"],
            ),
            (
                "pitr rescue --to /x --table a.b --target-immediate",
                &["--as b", "--rows-missing-only", "--replace --confirm"],
            ),
            (
                "pitr verify --fast",
                &["--max-bytes 1GB", "--for 1h", "--dry-run"],
            ),
            ("pitr drill --target-lsn 0/1", &["--seed 1"]),
            ("pitr runbook --check /x", &["--mark a"]),
        ] {
            assert!(is_taken(way), "{way}");
            for more in more {
                assert!(!is_taken(&format!("{way} {more}")), "{way} {more}");
            }
        }
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

    #[test]
    fn every_verb_takes_what_the_design_lists() {
        let right = "
            init --cluster main --pgdata /d --conninfo host=/run --repository file:///r --confirm
            doctor --json
            backup --method stream --label x --checkpoint spread --max-rate 10MB --jobs 4 --wal-wait 5m --compression zstd
            backup delete 20261120T064049Z-full --grace 0s --confirm
            backup delete 20261120T064049Z-full --of files:www --dry-run
            info --json --repository /r
            plan --target-time 2026-11-20T06:00:00Z --exclusive --target-timeline 2 --backup b --json
            restore --to /d --target-name n --target-action pause --tablespace-mapping 16385=/t --tablespace-mapping /a=/b --jobs 2 --adopt --dry-run
            restore --to /d --replace --confirm
            restore --to /d --undo --confirm --discard-changes
            standby --to /d --primary-conninfo host=h --slot s
            adopt --pgdata /d --as n
            adopt --pgdata /d --confirm
            receive --slot s --create-slot --until-lsn 0/1
            receive --drop-slot
            verify --backup b
            expire --keep 3 --grace 0 --confirm
            wal push pg_wal/x
            wal fetch f p
            wal list
            wal show x
            wal gaps
            wal conflicts
            wal conflicts x
            wal backfill --from /d
            repo show
            repo claims
            repo claims --release 20261120T064049Z-full --confirm
            repo sync --from a --to b --dry-run
            timeline list --json
            timeline abandon 4 --reason drill --confirm
            timeline restore 4 --reason real --dry-run
            pin 20261120T064049Z-full --reason audit --until 2027-01-01T00:00:00Z --confirm
            pin 20261120T064049Z-full --reason audit --dry-run
            unpin 20261120T064049Z-full --confirm";
        let wrong = "
            backup --max-rate 10
            backup delete
            backup --label x delete 20261120T064049Z-full
            backup --jobs 0
            backup --jobs 257
            backup --jobs four
            plan --exclusive
            plan --target-xid 7 --target-lsn 0/1
            restore --target-immediate
            restore --to /d --tablespace-mapping 16385
            restore --to /d --replace --delta
            restore --to /d --discard-changes
            restore --to /d --undo --target-immediate
            standby --to /d
            receive --drop-slot --create-slot
            receive --slot Big
            receive --until-lsn x
            expire --keep x
            expire --keep 3 --dry-run --confirm
            wal fetch f
            wal backfill
            repo claims --confirm
            timeline abandon 4 --confirm
            timeline abandon 0 --reason x
            timeline restore 4 --reason x --dry-run --confirm
            pin 20261120T064049Z-full --confirm
            pin --reason audit
            pin 20261120T064049Z-full --reason audit --timezone UTC
            unpin 20261120T064049Z-full --dry-run --confirm
            bakup";
        for (lines, is_right) in [(right, true), (wrong, false)] {
            for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
                let parsed = Cli::try_parse_from(std::iter::once("pitr").chain(line.split(' ')));
                assert_eq!(parsed.is_ok(), is_right, "{line}");
            }
        }
    }
}
