//! `pitr repo sync`.

use std::collections::BTreeSet;

use serde_json::json;

use super::Context;
use crate::config::{self, Settings};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::exit::{self, Program};
use crate::host::Host;
use crate::operate::failures::Failures;
use crate::operate::{human, unproven};
use crate::plan::lacking::{Cause, Lacking};
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::{Registration, Repository};
use crate::sync::{Options, Report, Transfer};

/// Objects copied at a time: each may need room for what a store takes in one piece, and all together must not exceed the ceiling.
const JOBS: u16 = 3;

/// What whoever may write to one of the stores can do to a copy that cannot tell forged objects.
const FORGED: &str = "objects are only checked to be whole, and one that somebody forged is copied, and takes its name for good";

/// What is copied, and which way.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Copy from this repository only
    #[arg(long, value_name = "NAME")]
    pub from: Option<String>,

    /// Bring only this repository up to date
    #[arg(long, value_name = "NAME")]
    pub to: Option<String>,

    /// Copy also what the receiving side may have expired
    #[arg(long)]
    pub all: bool,

    /// Copy a cluster also where its name has another system identifier
    ///
    /// After pg_upgrade or initdb, as pitr init --confirm.
    #[arg(long)]
    pub confirm: bool,

    /// Copy this many objects at a time
    ///
    /// Each may need some 20 MiB of memory when it goes into an object store.
    #[arg(long, value_name = "N", default_value_t = JOBS, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,

    /// Show what would be copied, and copy nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// One cluster, from one repository into another.
struct Done {
    from: String,
    to: String,
    registration: Registration,
    lacking: Lacking,
    report: Option<Report>,
    /// It ended early; what it did before stands in the report.
    is_cut_short: bool,
}

impl Done {
    fn has_problems(&self) -> bool {
        let left_out = &self.lacking.left_out;
        left_out.iter().any(|l| l.cause != Cause::Rule)
            || !self.lacking.unreadable.is_empty()
            || self.report.as_ref().is_some_and(|r| r.problem_count > 0)
    }
}

/// Runs the command.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let settings = cx.session.settings()?;
    check(args, cx, &settings)?;
    let wanted = settings.cluster_if_named()?;
    let wanted = wanted.as_ref().map(|c| c.name.as_str());
    cx.stop_in_order()?;
    let host = &cx.session.host;
    let mut failures = Failures::default();
    let opened = open(args, cx, &settings, &mut failures);
    let warning =
        |(configured, repository): &Opened<'_>| unproven::warning(configured, repository, FORGED);
    let warnings: Vec<String> = opened.iter().filter_map(warning).collect();
    let mut sync = Sync {
        args,
        host: host,
        done: Vec::new(),
        clusters: BTreeSet::new(),
        failures,
    };
    for (to, from) in pairs(args, &opened) {
        if !sync.pair(from, to, wanted) {
            break;
        }
    }
    let Sync {
        done,
        clusters,
        mut failures,
        ..
    } = sync;
    failures.first_if(&cx.session, done.is_empty())?;
    if clusters.is_empty() {
        return Err(no_cluster(wanted));
    }
    report(cx, args, &done, &warnings)?;
    let is_whole = cx.told(failures)?;
    Ok(match is_whole && !done.iter().any(Done::has_problems) {
        true => exit::SUCCESS,
        false => exit::status(Program::Pitr, Code::Partial),
    })
}

fn no_cluster(wanted: Option<&str>) -> Error {
    match wanted {
        Some(name) => err!(NotFound, "no repository holds cluster \"{name}\""),
        None => err!(NotFound, "no repository holds a cluster"),
    }
    .hint("Nothing was copied.")
}

/// Requires two repositories, and names that are some.
fn check(args: &Args, cx: &Context, settings: &Settings) -> Result<()> {
    if cx.session.flags.repository.is_some() {
        return Err(err!(
            Usage,
            "--repository names one repository, and this works on two"
        )
        .hint("Nothing was copied. Say which with --from NAME and --to NAME."));
    }
    let names: Vec<&str> = settings
        .repositories
        .iter()
        .map(|r| r.name.as_str())
        .collect();
    for name in [&args.from, &args.to].into_iter().flatten() {
        if !names.contains(&name.as_str()) {
            return Err(err!(NotFound, "repository \"{name}\" is not configured")
                .hint(format!("Nothing was copied. Known: {}", names.join(", "))));
        }
    }
    if args.from.is_some() && args.from == args.to {
        return Err(
            err!(Usage, "--from and --to name the same repository").hint("Nothing was copied.")
        );
    }
    match names.len() {
        0 | 1 => Err(err!(Config, "fewer than two repositories are configured").hint(
            "Nothing was copied. Add a section [repositories.NAME], and create it with \"pitr init\".",
        )),
        _ => Ok(()),
    }
}

type Opened<'a> = (&'a config::Repository, Repository);

/// Opens the repositories that take part. One that cannot be opened is told of, and the others go on.
fn open<'a>(
    args: &Args,
    cx: &Context,
    settings: &'a Settings,
    failures: &mut Failures,
) -> Vec<Opened<'a>> {
    let takes_part = |name: &str| match (&args.from, &args.to) {
        (Some(from), Some(to)) => from == name || to == name,
        _ => true,
    };
    let mut opened = Vec::new();
    for configured in &settings.repositories {
        if !takes_part(&configured.name) {
            continue;
        }
        match cx.session.open(configured) {
            Ok(repository) => opened.push((configured, repository)),
            Err(e) => {
                failures.add(e, format!("open repository \"{}\"", configured.name));
            }
        }
    }
    opened
}

/// Who gets from whom, in the order of the configuration.
fn pairs<'o, 'a>(args: &Args, opened: &'o [Opened<'a>]) -> Vec<(&'o Opened<'a>, &'o Opened<'a>)> {
    let is_wanted =
        |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    let mut pairs = Vec::new();
    for to in opened {
        for from in opened {
            let (f, t) = (from.0.name.as_str(), to.0.name.as_str());
            if f != t && is_wanted(&args.from, f) && is_wanted(&args.to, t) {
                pairs.push((to, from));
            }
        }
    }
    pairs
}

/// A run: what it works with, and what came of it.
struct Sync<'a> {
    args: &'a Args,
    host: &'a Host,
    done: Vec<Done>,
    clusters: BTreeSet<String>,
    failures: Failures,
}

impl Sync<'_> {
    /// Brings one repository up to date from another; a cluster that cannot be copied does not keep the others from it. `false` when the
    /// operator wants no more.
    fn pair(&mut self, from: &Opened<'_>, to: &Opened<'_>, wanted: Option<&str>) -> bool {
        let doing = format!(
            "bring repository \"{}\" up to date from \"{}\"",
            to.0.name, from.0.name
        );
        let names = match wanted {
            Some(name) => Ok(vec![name.to_owned()]),
            None => from.1.cluster_names(),
        };
        let names = match names {
            Ok(names) => names,
            Err(e) => return self.failures.add(e, doing),
        };
        for name in names {
            let places = from.1.clusters(&name);
            let known = places.and_then(|places| Ok((places, registered(&to.1, &name)?)));
            let (places, known) = match known {
                Ok(known) => known,
                Err(e) => return self.failures.add(e, doing),
            };
            for layout in places {
                let Err(e) = self.cluster(from, to, &layout, &known) else {
                    continue;
                };
                let is_away = e.code().is_retryable();
                let is_wanted = self.failures.add(e, doing.clone());
                if is_away || !is_wanted {
                    return is_wanted;
                }
            }
        }
        true
    }

    /// `known` are the system identifiers that the receiving side had under the name when the run came to it.
    fn cluster(
        &mut self,
        (from_name, from): &Opened<'_>,
        (to_name, to): &Opened<'_>,
        layout: &ClusterLayout,
        known: &[u64],
    ) -> Result<()> {
        self.clusters.insert(layout.name().to_owned());
        let Some(registration) = from.registration(layout)? else {
            return Ok(());
        };
        if !self.args.confirm {
            check_name(layout, from_name, to_name, known)?;
        }
        let args = self.args;
        let host = self.host;
        let options = Options {
            jobs: usize::from(args.jobs),
            everything: args.all,
        };
        let transfer = Transfer::new(from, to, &registration, options, host)?;
        if !args.dry_run {
            transfer.wait_for_deletion(&mut || Ok(()))?;
        }
        let lacking = transfer.plan()?;
        let ran = match args.dry_run {
            true => Ok(()),
            false => transfer.run(&lacking),
        };
        let report = (!args.dry_run).then(|| transfer.report());
        self.done.push(Done {
            from: from_name.name.clone(),
            to: to_name.name.clone(),
            lacking,
            report,
            is_cut_short: ran.is_err(),
            registration: registration.clone(),
        });
        ran
    }
}

/// The system identifiers under a name. One whose registration cannot be read is there, too.
fn registered(repository: &Repository, name: &str) -> Result<Vec<u64>> {
    let mut known = Vec::new();
    for layout in repository.clusters(name)? {
        match repository.registration(&layout) {
            Ok(None) => {}
            Err(e) if e.code().is_retryable() => return Err(e),
            _ => known.push(layout.system_identifier()),
        }
    }
    Ok(known)
}

/// A second system identifier under a name is what pg_upgrade leaves, or two clusters that were mixed up: who reads takes the newest
/// backup of the name, whosever it is.
fn check_name(
    layout: &ClusterLayout,
    from: &config::Repository,
    to: &config::Repository,
    known: &[u64],
) -> Result<()> {
    let own = layout.system_identifier();
    if known.is_empty() || known.contains(&own) {
        return Ok(());
    }
    let known: Vec<String> = known.iter().map(u64::to_string).collect();
    Err(err!(
        WrongCluster,
        "cluster \"{}\" is registered with system identifier {} in \"{}\", and has {own} in \"{}\"",
        layout.name(),
        known.join(", "),
        to.name,
        from.name
    )
    .hint("Nothing of it was copied there. If these are two clusters, correct the repositories of the configuration.\nAfter pg_upgrade or initdb, run the same command with --confirm."))
}

fn report(cx: &Context, args: &Args, done: &[Done], warnings: &[String]) -> Result<()> {
    if cx.out.is_json() {
        let transfers: Vec<_> = done.iter().map(shown).collect();
        return cx.out.json(
            &json!({ "dry_run": args.dry_run, "transfers": transfers, "warnings": warnings }),
        );
    }
    for warning in warnings {
        cx.out.warn(warning);
    }
    done.iter().try_for_each(|one| print(cx, one))
}

fn shown(done: &Done) -> serde_json::Value {
    let lacking = &done.lacking;
    let left_out: Vec<_> = lacking
        .left_out
        .iter()
        .map(|l| {
            json!({
                "what": l.what,
                "why": l.why,
                "conflict": l.cause == Cause::Conflict,
                "damaged": l.cause == Cause::Damage,
            })
        })
        .collect();
    let problems = |r: &Report| -> Vec<serde_json::Value> {
        let shown = r
            .problems
            .iter()
            .map(|p| json!({ "object": p.object, "detail": p.detail, "conflict": p.is_conflict }));
        shown.collect()
    };
    let ids = |ids: &[crate::repo::id::BackupId]| -> Vec<String> {
        ids.iter().map(ToString::to_string).collect()
    };
    json!({
        "from": done.from,
        "to": done.to,
        "cluster": done.registration.name,
        "system_identifier": done.registration.system_identifier.to_string(),
        "lacking": {
            "backups": ids(&lacking.backups),
            "segments": lacking.segment_count(),
            "histories": lacking.histories.len(),
            "increments": lacking.increments.len(),
        },
        "unneeded_segments": lacking.unneeded_segments,
        "left_out": left_out,
        "unreadable": lacking.unreadable,
        "copied": done.report.as_ref().map(|r| json!({
            "backups": ids(&r.backups),
            "segments": r.segments,
            "objects": r.objects,
            "stored_bytes": r.bytes,
        })),
        "problems": done.report.as_ref().map_or_else(Vec::new, problems),
        "problem_count": done.report.as_ref().map_or(0, |r| r.problem_count),
        "complete": !done.is_cut_short,
    })
}

fn print(cx: &Context, done: &Done) -> Result<()> {
    let what = |backups: usize, segments: u64| {
        format!(
            "{}, {}",
            human::count(backups as u64, "backup"),
            human::count(segments, "segment")
        )
    };
    let lacking = &done.lacking;
    let deed = match &done.report {
        _ if lacking.is_empty() => "lacks nothing that it may have".to_owned(),
        None => format!(
            "would get {}",
            what(lacking.backups.len(), lacking.segment_count())
        ),
        Some(r) => format!(
            "got {}, {} in all ({}){}",
            what(r.backups.len(), r.segments),
            human::count(r.objects, "object"),
            human::size(r.bytes),
            if done.is_cut_short {
                ", and ended early"
            } else {
                ""
            }
        ),
    };
    let line = format!(
        "{} from {}, cluster {} ({}): {deed}",
        done.to, done.from, done.registration.name, done.registration.system_identifier
    );
    cx.out.report(&line)?;
    for left in &lacking.left_out {
        let line = format!("{}: not copied: {}", left.what, left.why);
        match left.cause {
            Cause::Rule => cx.out.note(&line),
            Cause::Conflict | Cause::Damage => cx.out.warn(&line),
        }
    }
    for what in &lacking.unreadable {
        let name = &done.from;
        let line = format!("not copied, because \"{name}\" has it damaged: {what}");
        cx.out.warn(&line);
    }
    if lacking.unneeded_segments > 0 {
        cx.out.note(&format!(
            "not copied: {} that no backup in \"{}\" needs",
            human::count(lacking.unneeded_segments, "segment"),
            done.to
        ));
    }
    Ok(())
}
