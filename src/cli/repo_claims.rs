//! `pitr repo claims`.

use serde::Serialize;

use super::Context;
use super::output::{Align, Table};
use crate::config;
use crate::err;
use crate::error::{Code, Result};
use crate::exit::{self, Program};
use crate::operate::failures::Failures;
use crate::operate::human;
use crate::pg::lsn::Lsn;
use crate::pg::time::TimestampTz;
use crate::plan::retention::claims::{Held, held};
use crate::repo::claim;
use crate::repo::event::Writer;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::wal::survey::Survey;

/// What is shown or ended.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// End everything that holds this backup
    #[arg(long, value_name = "ID")]
    pub release: Option<BackupId>,

    /// Show what would be ended, and change nothing
    #[arg(long, requires = "release", conflicts_with = "confirm")]
    pub dry_run: bool,

    /// End it
    #[arg(long, requires = "release")]
    pub confirm: bool,
}

#[derive(Serialize)]
struct Shown {
    repository: String,
    cluster: String,
    system_identifier: String,
    backup: String,
    claim: Option<String>,
    purpose: String,
    host: String,
    since: TimestampTz,
    until: TimestampTz,
    timeline: Option<u32>,
    start_lsn: Option<Lsn>,
    complete: bool,
    released: bool,
}

/// Runs the command.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let settings = cx.session.settings()?;
    if settings.repositories.is_empty() {
        return Err(err!(Config, "no repository is configured"));
    }
    let wanted = settings.cluster_if_named()?;
    let wanted = wanted.as_ref().map(|c| c.name.as_str());
    let (mut shown, mut failures) = (Vec::new(), Failures::default());
    let mut looked_at = 0;
    for configured in &settings.repositories {
        match one_repository(args, cx, configured, wanted, &mut shown) {
            Ok(()) => looked_at += 1,
            Err(e) => {
                failures.add(e, format!("look at repository \"{}\"", configured.name));
            }
        }
    }
    failures.first_if(&cx.session, looked_at == 0)?;
    report(args, cx, &shown)?;
    let is_whole = cx.told(failures)?;
    if let Some(id) = &args.release {
        if shown.is_empty() && is_whole {
            return Err(err!(NotFound, "nothing holds backup \"{id}\"")
                .hint("Nothing was changed. \"pitr repo claims\" shows what holds others."));
        }
        if !args.confirm && !args.dry_run {
            return Err(super::unconfirmed("What is shown above would be ended."));
        }
    }
    Ok(match is_whole {
        true => exit::SUCCESS,
        false => exit::status(Program::Pitr, Code::Partial),
    })
}

fn one_repository(
    args: &Args,
    cx: &Context,
    configured: &config::Repository,
    wanted: Option<&str>,
    shown: &mut Vec<Shown>,
) -> Result<()> {
    let repository = cx.session.open(configured)?;
    let host = &cx.session.host;
    let writer = Writer::of(&host);
    for name in repository.cluster_names()? {
        if wanted.is_some_and(|wanted| wanted != name) {
            continue;
        }
        for registration in repository.registrations(&name)? {
            let layout = ClusterLayout::new(&name, registration.system_identifier)?;
            let survey = Survey::without_leftovers(&repository, &registration)?;
            for one in held(&survey, cx.session.host.now()) {
                if args.release.as_ref().is_some_and(|id| *id != one.id) {
                    continue;
                }
                if args.confirm {
                    let store = repository.store();
                    claim::end((store, &layout), &writer, &one.id, one.claim.as_deref())?;
                }
                shown.push(Shown::new(&configured.name, &layout, one, args.confirm));
            }
        }
    }
    Ok(())
}

impl Shown {
    fn new(repository: &str, layout: &ClusterLayout, held: Held, released: bool) -> Shown {
        Shown {
            repository: repository.to_owned(),
            cluster: layout.name().to_owned(),
            system_identifier: layout.system_identifier().to_string(),
            backup: held.id.to_string(),
            claim: held.claim,
            purpose: held.purpose,
            host: held.host,
            since: held.since,
            until: held.until,
            timeline: held.start.map(|(timeline, _)| timeline),
            start_lsn: held.start.map(|(_, lsn)| lsn),
            complete: held.is_committed,
            released,
        }
    }
}

fn report(args: &Args, cx: &Context, shown: &[Shown]) -> Result<()> {
    if cx.out.is_json() {
        return cx.out.json(&serde_json::json!({ "claims": shown }));
    }
    if shown.is_empty() {
        if args.release.is_none() {
            cx.out.note("nothing is claimed");
        }
        return Ok(());
    }
    let mut table = Table::new(&[
        ("backup", Align::Left),
        ("repository", Align::Left),
        ("held by a", Align::Left),
        ("on host", Align::Left),
        ("since", Align::Left),
        ("until", Align::Left),
        ("keeps WAL from", Align::Left),
    ]);
    for one in shown {
        table.row([
            one.backup.as_str(),
            &one.repository,
            &one.purpose,
            &one.host,
            &human::time(one.since),
            &human::time(one.until),
            &match (one.start_lsn, one.complete) {
                (Some(lsn), _) => lsn.to_string(),
                (None, true) => "the backup's start".to_owned(),
                (None, false) => "the first on".to_owned(),
            },
        ]);
    }
    cx.out.table(&table)?;
    if args.confirm {
        let count = human::count(shown.len() as u64, "claim");
        cx.out.note(&format!("ended {count}"));
    }
    Ok(())
}
