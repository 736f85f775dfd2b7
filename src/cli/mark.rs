//! `pitr mark`.

use std::time::Duration;

use super::{Context, partial_unless};
use crate::config::Period;
use crate::err;
use crate::error::Result;
use crate::exit;
use crate::operate::human;
use crate::operate::sets::mark::{self, Asked, Follower, Marked};

/// Record one point in every member of a recovery set
///
/// PostgreSQL gets a restore point; a standby gives the position that it has replayed. Redis is asked for its replication id and offset, and nothing is written to
/// it. A standby or a replica of Redis lacks what it had not replayed yet: such a mark has level 1. Files and configuration have no log: a mark names the next backup of them that begins. The mark is a target of "pitr recover" as soon as every member has
/// stored what it names: pitr info --set SET. It goes into every repository of the configuration; exit status 10 when one did not take it.
///
/// Example: pitr mark shop --label "before the release" --with-backups
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The set in the configuration; the only one without it
    pub set: Option<String>,

    /// A text to recognise the mark by
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,

    /// Back files and configuration up right after the point
    #[arg(long)]
    pub with_backups: bool,

    /// Make a mark each time this long has passed, such as 1min, until SIGTERM or Ctrl-C
    #[arg(long, value_name = "PERIOD", conflicts_with = "label")]
    pub every: Option<Period>,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    cx.stop_in_order()?;
    let asked = Asked {
        set: args.set.clone(),
        label: args.label.clone(),
        takes_backups: args.with_backups,
    };
    let Some(every) = args.every.map(Period::duration) else {
        let marked = mark::run(&cx.session, &asked)?;
        show(cx, &marked)?;
        return partial_unless(cx.told(marked.failures)?);
    };
    if every < Duration::from_secs(1) {
        return Err(err!(Usage, "--every takes a second or more"));
    }
    let mut told = |marked: &Marked| {
        for error in &marked.failures.errors {
            cx.warn(&error.to_string());
        }
        show(cx, marked)
    };
    mark::run_every(&cx.session, &asked, every, &mut told)?;
    Ok(exit::SUCCESS)
}

fn show(cx: &Context, marked: &Marked) -> Result<()> {
    if cx.is_json() {
        return cx.json(marked);
    }
    cx.report(&format!(
        "mark {} of set \"{}\" at {}, level {}, in {}",
        marked.id,
        marked.set,
        human::exact_time(marked.ended),
        marked.level.number(),
        marked.repositories.join(", ")
    ))?;
    for member in &marked.members {
        let point = match (&member.lsn, &member.replid, &member.backup) {
            (Some(lsn), ..) => format!("{lsn} of timeline {}", member.timeline.unwrap_or_default()),
            (None, Some(replid), _) => {
                format!("offset {} of {replid}", member.offset.unwrap_or_default())
            }
            (None, None, Some(id)) => format!("backup {id}"),
            (None, None, None) => "the next backup of it".to_owned(),
        };
        let mut followers = marked.followers.iter();
        let follower = followers.find(|one| one.scope == member.scope);
        let behind = follower.map(behind).unwrap_or_default();
        cx.report(&format!("  {}: {point}{behind}", member.scope))?;
    }
    Ok(())
}

fn behind(follower: &Follower) -> String {
    match follower.behind_seconds {
        Some(seconds) => format!(
            ", of a server that follows another one and is up to {} behind it",
            human::duration(Duration::from_secs(seconds))
        ),
        None => ", of a server that follows another one, and does not know how far behind it is"
            .to_owned(),
    }
}
