//! `pitr recover`: the members of a set, back at one moment.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use super::erasure::ConsentArgs;
use super::output::Table;
use super::{Context, done_or_unconfirmed, findings_unless, warnings_unless};
use crate::agent::alert::decide::Event;
use crate::agent::alert::{self, News, Tried};
use crate::config::{SetMember, Settings, Severity};
use crate::err;
use crate::error::Result;
use crate::exit;
use crate::operate::erasure::apply::Consent;
use crate::operate::human;
use crate::operate::sets::back::{self, AskedBack};
use crate::operate::sets::plan::{AskedMoment, AskedRecovery};
use crate::operate::sets::recover::{self, Report};
use crate::operate::sets::scratch::{self, Tested};
use crate::operate::target::{AskedTarget, Point};
use crate::plan::sets::{Extent, MemberPlan, SetPlan};

/// Bring the members of a recovery set back to one moment
///
/// One plan for all members. test recovers them into a folder that is thrown away. full, database and application put them in their places: the applications and servers
/// are stopped and started by the commands of the configuration, and what was there is kept aside. Erasures that a cluster lacks then ("pitr erasure") are repeated in
/// private before anything is started. Every step is recorded on this host. The same command goes on with
/// a run that was killed or failed, and "pitr recover rollback" takes it back.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Recover every member into a folder that is thrown away, and report
    ///
    /// Clusters are drilled: a server of its own recovers and is checked. Redis servers load their data in quarantine. Files and configuration are restored. Exit status 4
    /// when a member fails, 6 when configuration was tried without its secrets because the host has no secrets_key.
    ///
    /// Example: pitr recover test --set shop --mark 20261120T064049Z-4f2a9c
    Test(TestArgs),
    /// Recover clusters and Redis servers in their places
    ///
    /// Example: pitr recover database --set shop --target-time "2026-11-20 06:40:49+01"
    Database(ClustersArgs),
    /// Recover files and configuration in their places
    ///
    /// Example: pitr recover application --set shop --mark "before the release"
    Application(InPlaceArgs),
    /// Recover every member in its place
    ///
    /// Example: pitr recover full --set shop --mark 20261120T064049Z-4f2a9c --confirm
    Full(ClustersArgs),
    Rollback(RollbackArgs),
}

/// The moment.
#[derive(clap::Args, Debug)]
pub struct MomentArgs {
    /// The set in the configuration; the only one without it
    #[arg(long, value_name = "SET")]
    pub set: Option<String>,

    /// A mark: its name, the beginning of it, or its label
    #[arg(long, value_name = "MARK", required_unless_present = "target_time", conflicts_with_all = ["target_time"])]
    pub mark: Option<String>,

    /// A time, such as "2026-11-20 06:40:49+01": each member by its own clock, files as of the first backup after it
    #[arg(long, value_name = "TIME")]
    pub target_time: Option<String>,
}

/// The timelines of clusters.
#[derive(clap::Args, Debug)]
pub struct TimelineArgs {
    /// Follow this timeline to the time, where several have commits for it; with the name of the cluster where the set has several
    #[arg(long, value_name = "[CLUSTER=]N", conflicts_with = "mark")]
    pub target_timeline: Vec<String>,
}

/// A test.
#[derive(clap::Args, Debug)]
pub struct TestArgs {
    #[command(flatten)]
    pub moment: MomentArgs,

    #[command(flatten)]
    pub timelines: TimelineArgs,

    /// Restore below this directory; without it where temporary files go
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Show the plan, and leave with 0
    #[arg(long)]
    pub dry_run: bool,
}

/// A recovery in place.
#[derive(clap::Args, Debug)]
pub struct InPlaceArgs {
    #[command(flatten)]
    pub moment: MomentArgs,

    /// Carry the plan out
    #[arg(long)]
    pub confirm: bool,

    /// Show the plan, and leave with 0
    #[arg(long, conflicts_with = "confirm")]
    pub dry_run: bool,
}

/// A recovery in place of members among which clusters may be.
#[derive(clap::Args, Debug)]
pub struct ClustersArgs {
    #[command(flatten)]
    pub in_place: InPlaceArgs,

    #[command(flatten)]
    pub timelines: TimelineArgs,

    /// Restore clusters after the applications and servers were stopped, with "pitr restore --replace", and not beside them beforehand
    #[arg(long)]
    pub after_stop: bool,

    /// Take the standby that each cluster's data directory is: it recovers there, and no backup is copied; refused with 5 once it has replayed the moment
    #[arg(long, conflicts_with = "after_stop")]
    pub from_standby: bool,

    #[command(flatten)]
    pub erasures: ConsentArgs,
}

/// Take a run back
///
/// The former state is in its place again, and what was restored is kept aside. Refused with 8 where a transaction has committed, a key or a file was changed since:
/// --discard-changes goes back all the same. Only the newest run can be taken back. The new timeline of a cluster is abandoned.
///
/// Example: pitr recover rollback 20261120T064512Z-shop --confirm
#[derive(clap::Args, Debug)]
pub struct RollbackArgs {
    /// The run, as it was printed; the newest without it
    pub run: Option<String>,

    /// The set in the configuration; the only one without it
    #[arg(long, value_name = "SET")]
    pub set: Option<String>,

    /// Go back even though something was written since
    #[arg(long)]
    pub discard_changes: bool,

    /// Carry it out
    #[arg(long)]
    pub confirm: bool,

    /// Show what would be done, and leave with 0
    #[arg(long, conflicts_with = "confirm")]
    pub dry_run: bool,
}

impl MomentArgs {
    fn asked(&self, extent: Extent) -> Result<AskedRecovery> {
        let moment = match (&self.mark, &self.target_time) {
            (Some(mark), _) => AskedMoment::Mark(mark.clone()),
            (None, Some(time)) => AskedMoment::Time(AskedTarget::at(Point::Time(time.parse()?))),
            (None, None) => return Err(err!(Usage, "a mark or a time is needed")),
        };
        Ok(AskedRecovery {
            set: self.set.clone(),
            extent,
            moment,
            with_erasures: false,
            after_stop: false,
            from_standby: false,
            timelines: Vec::new(),
        })
    }

    /// The words by which the same command is known again.
    fn words(&self, timelines: &[String]) -> String {
        let mut words = match (&self.mark, &self.target_time) {
            (Some(mark), _) => format!("mark {mark}"),
            (None, time) => format!("time {}", time.as_deref().unwrap_or_default()),
        };
        for timeline in timelines {
            words.push_str(&format!(", timeline {timeline}"));
        }
        words
    }
}

pub fn run(command: &Command, cx: &Context) -> Result<u8> {
    match command {
        Command::Test(args) => test(args, cx),
        Command::Database(args) => clusters(args, Extent::Database, cx),
        Command::Application(args) => {
            let asked = args.moment.asked(Extent::Application)?;
            in_place(args, (asked, &Consent::default()), cx)
        }
        Command::Full(args) => clusters(args, Extent::Full, cx),
        Command::Rollback(args) => rollback(args, cx),
    }
}

fn test(args: &TestArgs, cx: &Context) -> Result<u8> {
    cx.stop_with_cleanup()?;
    let asked = AskedRecovery {
        timelines: args.timelines.target_timeline.clone(),
        ..args.moment.asked(Extent::Full)?
    };
    let prepared = scratch::prepare(&cx.session, &asked)?;
    warn_of_plan(cx, &prepared.1.plan);
    if args.dry_run {
        cx.answer(&prepared.1, || print_plan(cx, &prepared.1.plan))?;
        return Ok(exit::SUCCESS);
    }
    let dir = args
        .dir
        .as_ref()
        .map(|dir| cx.session.environment.absolute(dir));
    let tested = scratch::run(&cx.session, prepared, dir.as_deref())?;
    cx.answer(&tested, || print_tested(cx, &tested))?;
    cx.warn_all(&tested.warnings);
    Ok(match tested.passed {
        true => warnings_unless(tested.warnings.is_empty()),
        false => findings_unless(false),
    })
}

fn print_tested(cx: &Context, tested: &Tested) -> Result<()> {
    print_plan(cx, &tested.plan)?;
    cx.line("")?;
    for one in &tested.members {
        let took = human::duration(Duration::from_millis(one.ms));
        cx.line(&match &one.failed {
            None => format!("ok      {} in {took}", one.member),
            Some(why) => format!("FAILED  {}: {why}", one.member),
        })?;
    }
    cx.line(match tested.passed {
        true => "every member comes back",
        false => "RECOVERY IS BROKEN",
    })
}

fn clusters(args: &ClustersArgs, extent: Extent, cx: &Context) -> Result<u8> {
    let asked = AskedRecovery {
        with_erasures: true,
        after_stop: args.after_stop,
        from_standby: args.from_standby,
        timelines: args.timelines.target_timeline.clone(),
        ..args.in_place.moment.asked(extent)?
    };
    in_place(&args.in_place, (asked, &args.erasures.consent()), cx)
}

fn in_place(
    args: &InPlaceArgs,
    (asked, consent): (AskedRecovery, &Consent),
    cx: &Context,
) -> Result<u8> {
    let words = args.moment.words(&asked.timelines);
    let prepared = recover::prepare(&cx.session, &asked, (&words, consent))?;
    if !args.confirm {
        let shown = prepared.shown()?;
        warn_of(cx, &shown);
        answer(cx, &shown)?;
        return done_or_unconfirmed(args.dry_run, "The steps above would be carried out.");
    }
    cx.stop_with_cleanup()?;
    warn_of(cx, &prepared.shown()?);
    prepared.require_decided()?;
    let what = format!("the recovery of set \"{}\" to {words}", prepared.set());
    let told = Told::begin(cx, prepared.set(), what)?;
    let report = told.end(cx, prepared.carry_out(&cx.session))?;
    answer(cx, &report)?;
    if let Some(run) = &report.run {
        cx.note(&format!(
            "take it back: pitr recover rollback {run} --confirm"
        ));
    }
    Ok(warnings_unless(report.warnings.is_empty()))
}

fn answer(cx: &Context, report: &Report) -> Result<()> {
    cx.answer(report, || print_report(cx, report))?;
    cx.warn_all(&report.warnings);
    Ok(())
}

/// The news of a run for the sinks of the configuration.
struct Told {
    settings: Settings,
    id: String,
    what: String,
    begun: JoinHandle<Vec<Tried>>,
}

impl Told {
    /// Tells them that it begins. Nothing waits for them.
    fn begin(cx: &Context, set: &str, what: String) -> Result<Told> {
        let settings = cx.session.settings()?;
        let id = format!("sets/{set}/recovery");
        let news = News {
            event: Event::New,
            id: id.clone(),
            severity: Severity::High,
            summary: format!("{what} begins"),
            next: None,
        };
        Ok(Told {
            begun: alert::announce(&cx.session, &settings, &news),
            settings,
            id,
            what,
        })
    }

    /// Tells them how it ended. No word of a command of the configuration goes along: it may be a secret.
    fn end<T>(self, cx: &Context, ended: Result<T>) -> Result<T> {
        let (event, severity, how, next) = match &ended {
            Ok(_) => (Event::Resolved, Severity::High, "is complete", None),
            Err(_) => (
                Event::New,
                Severity::Critical,
                "did not come to its end",
                Some("the same command goes on, and pitr recover rollback takes it back"),
            ),
        };
        let news = News {
            event,
            id: self.id,
            severity,
            summary: format!("{} {how}", self.what),
            next: next.map(str::to_owned),
        };
        let mut failed = self.begun.join().unwrap_or_default();
        let told = alert::announce(&cx.session, &self.settings, &news);
        failed.extend(told.join().unwrap_or_default());
        for (sink, why) in failed
            .into_iter()
            .filter_map(|one| Some((one.sink, one.failed?)))
        {
            cx.warn(&format!("alert sink \"{sink}\" was not told: {why}"));
        }
        ended
    }
}

/// Warns of what the plans of members say.
fn warn_of_plan(cx: &Context, plan: &SetPlan) {
    for one in &plan.members {
        for warning in one.reached.iter().flat_map(|reached| &reached.warnings) {
            cx.warn(&format!("{}: {warning}", one.member));
        }
    }
}

/// Warns of what the plan says, and of scripts that anybody may have recorded.
fn warn_of(cx: &Context, report: &Report) {
    if let Some(plan) = &report.plan {
        warn_of_plan(cx, plan);
    }
    for one in &report.erasures {
        for name in &one.unproven {
            cx.warn(&format!(
                "nothing proves who recorded the erasures in repository \"{name}\", and their scripts run as a superuser in {}: read each one before (pitr erasure list, pitr erasure show ID)",
                one.member
            ));
        }
    }
}

fn print_plan(cx: &Context, plan: &SetPlan) -> Result<()> {
    let level = plan
        .level
        .map(|level| format!(", level {}", level.number()));
    let is_loose = plan.level.is_some_and(|level| level.number() <= 1);
    let spread = Duration::from_secs(plan.spread_seconds);
    let apart = match is_loose && !spread.is_zero() {
        true => format!(", states up to {} apart", human::duration(spread)),
        false => String::new(),
    };
    cx.line(&format!(
        "moment {}{}{apart}",
        human::exact_time(plan.time),
        level.unwrap_or_default()
    ))?;
    let table = Table::of("MEMBER | BACKUP | STATE OF | LOST | >SIZE | >TIME");
    cx.table(&table.rows(plan.members.iter().map(row)))?;
    let time = human::duration(Duration::from_millis(plan.ms));
    let names = |members: &[SetMember]| -> String {
        let names: Vec<String> = members.iter().map(ToString::to_string).collect();
        names.join(", ")
    };
    let mut besides = String::new();
    if !plan.by_default.is_empty() {
        let names = names(&plan.by_default);
        besides.push_str(&format!(
            "; by default, because nothing on this host has measured them: {names}"
        ));
    }
    if !plan.untimed.is_empty() {
        let names = names(&plan.untimed);
        besides.push_str(&format!("; without {names}: nothing tells of them"));
    }
    cx.line(&format!(
        "{} to write, about {time}{besides}",
        human::size(plan.bytes)
    ))
}

fn row(one: &MemberPlan) -> Vec<String> {
    let seconds = |s: u64| human::duration(Duration::from_secs(s));
    let Some(reached) = &one.reached else {
        let why = one.why.clone().unwrap_or_default();
        return vec![one.member.to_string(), why];
    };
    let ms = reached.ms.map(|ms| seconds(ms.div_ceil(1000)));
    vec![
        one.member.to_string(),
        reached.backup.clone(),
        reached.moment.map(human::exact_time).unwrap_or_default(),
        one.loss_seconds.map(seconds).unwrap_or_default(),
        human::size(reached.bytes),
        ms.unwrap_or_default(),
    ]
}

fn print_report(cx: &Context, report: &Report) -> Result<()> {
    if let Some(run) = &report.run {
        let how = if report.is_resumed { " goes on" } else { "" };
        cx.line(&format!("run {run} of set \"{}\"{how}", report.set))?;
    }
    if let Some(plan) = &report.plan {
        print_plan(cx, plan)?;
    }
    for one in &report.erasures {
        let of = human::count(one.recorded as u64, "erasure");
        let left_out = match one.skipped.as_slice() {
            [] => String::new(),
            ids => format!(", without {}", ids.join(" and ")),
        };
        cx.line(&format!(
            "{} lacks {} of {of} recorded: they are repeated in private before it starts{left_out}",
            one.member, one.count
        ))?;
    }
    for one in &report.after_stop {
        cx.line(&format!(
            "{} is restored after the stop, so the outage is longer: {}",
            one.member, one.why
        ))?;
    }
    print_outage(cx, report)?;
    cx.line("")?;
    for (number, done) in report.steps.iter().enumerate() {
        let took = done
            .ms
            .map(|ms| format!("  ({})", human::duration(Duration::from_millis(ms))));
        let command = done
            .step
            .command
            .as_ref()
            .map(|command| format!(": {command}"));
        cx.line(&format!(
            "{:>2}. {}{}{}",
            number + 1,
            done.step.step,
            command.unwrap_or_default(),
            took.unwrap_or_default()
        ))?;
    }
    Ok(())
}

/// Says how long the applications are down, apart from what is done before.
fn print_outage(cx: &Context, report: &Report) -> Result<()> {
    let outage = &report.outage;
    let time = |ms: u64| human::duration(Duration::from_millis(ms));
    if let Some(ms) = outage.ms {
        return cx.line(&format!("the applications were down for {}", time(ms)));
    }
    if report.plan.is_none() {
        return Ok(());
    }
    let about = match outage.expected_ms {
        Some(ms) => format!("about {}", time(ms)),
        None => "for the stop, the exchange of names and the start".to_owned(),
    };
    let untimed: Vec<String> = outage.untimed.iter().map(ToString::to_string).collect();
    let besides = match untimed.is_empty() {
        true => String::new(),
        false => format!(", and for {}, which nothing measures", untimed.join(", ")),
    };
    cx.line(&format!("the applications are down {about}{besides}"))
}

fn rollback(args: &RollbackArgs, cx: &Context) -> Result<u8> {
    cx.stop_with_cleanup()?;
    let asked = AskedBack {
        set: args.set.clone(),
        run: args.run.clone(),
        discards: args.discard_changes,
        is_confirmed: args.confirm,
    };
    let back = match args.confirm {
        false => back::rollback(&cx.session, &asked)?,
        true => {
            let set = back::set_of(&cx.session, &asked)?;
            let what = format!("the rollback of a recovery of set \"{set}\"");
            let told = Told::begin(cx, &set, what)?;
            told.end(cx, back::rollback(&cx.session, &asked))?
        }
    };
    cx.answer(&back, || {
        let how = match back.confirmed {
            true => "is taken back",
            false => "would be taken back",
        };
        cx.line(&format!("run {} {how}", back.run))?;
        cx.lines(back.steps.iter().map(|step| format!("  {step}")))?;
        let written = back.written.iter();
        cx.lines(written.map(|one| format!("written since: {one}")))
    })?;
    cx.warn_all(&back.warnings);
    match args.confirm {
        true => Ok(warnings_unless(back.warnings.is_empty())),
        false => done_or_unconfirmed(args.dry_run, "The run would be taken back."),
    }
}
