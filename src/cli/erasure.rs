//! `pitr erasure`: scripts that a restored copy repeats before anybody uses it.

use std::path::PathBuf;

use super::output::{Table, members};
use super::timeline::reason;
use super::{Context, done_or_unconfirmed, partial_unless};
use crate::err;
use crate::error::Result;
use crate::operate::archive_command::shell_word;
use crate::operate::erasure::apply::{self, Consent};
use crate::operate::erasure::scripts::{Applied, Outcome};
use crate::operate::erasure::{self, Asked, Entry, Lacking, Listing};
use crate::operate::human;
use crate::repo::erasure::is_name;

/// Record what was erased in production, and repeat it on restored copies
///
/// A row that was erased in production stays in backups until they expire, and a restored copy has it again. Erase it in production first, record the script
/// with "pitr erasure add", and after each restore run "pitr erasure apply" before the copy accepts connections.
///
/// Example: pitr erasure list
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Record an erasure that was committed in production
    ///
    /// Stores the script in every repository of the configuration, with the position of the server that conninfo leads to: a copy that was recovered beyond
    /// it does not need it. The script is plain SQL of at most 64 KiB, without psql's commands. It is run in one transaction by a superuser with
    /// PostgreSQL's own settings, maybe several times, and on older states of the schema: name schemas, write dates as 2026-11-20, and let it succeed where
    /// nothing is left to erase. In a repository without encryption everybody reads it who reads the repository: let it name keys, and no people.
    ///
    /// Exit status 10 when a repository did not take it.
    ///
    /// Example: pitr erasure add --database shop --sql erase-4711.sql --reason "request 4711"
    Add(AddArgs),
    /// List the erasures of the cluster
    List {},
    /// Print the script of an erasure
    ///
    /// Example: pitr erasure show 20261120T064049.123456Z-0f1e2d3c4b5a6978
    Show {
        /// The erasure
        #[arg(value_name = "ID", value_parser = id)]
        id: String,
    },
    /// Delete an erasure that was recorded by mistake
    ///
    /// It is deleted in every repository of the configuration, or in the one that --repository names, with an account that may delete there. Copies that are restored later keep what it erased.
    /// "pitr expire" deletes an erasure by itself once every backup has it. Without --confirm nothing is changed.
    ///
    /// Example: pitr erasure remove 20261120T064049.123456Z-0f1e2d3c4b5a6978 --confirm
    Remove {
        /// The erasure
        #[arg(value_name = "ID", value_parser = id)]
        id: String,

        /// Delete it
        #[arg(long)]
        confirm: bool,
    },
    /// Run the erasures on a restored copy before it accepts connections
    ///
    /// Starts the copy where nobody else reaches it, lets recovery end at its target, runs every script that the copy does not have in order of time, and
    /// stops it. A script that fails keeps no other from being run; what it did is rolled back, unless it committed itself. Run it again after an interruption or a failure: scripts run again.
    /// Without --confirm it shows which scripts there are, and changes nothing.
    ///
    /// Exit status 1 when a script failed, 10 when a repository did not answer or the copy lacks a database: let nobody connect then.
    ///
    /// Example: pitr erasure apply --pgdata /var/lib/postgresql/17/restored --confirm
    Apply(ApplyArgs),
}

/// An erasure to record.
#[derive(clap::Args, Debug)]
pub struct AddArgs {
    /// The file of the script; - is standard input
    #[arg(long, value_name = "FILE")]
    pub sql: PathBuf,

    /// The database that it belongs to
    #[arg(long, value_name = "NAME")]
    pub database: String,

    /// Why, for those who read it later
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: Option<String>,
}

/// The operator's word about erasures, of commands that restore and run scripts in one.
#[derive(clap::Args, Debug, Default)]
pub struct ConsentArgs {
    /// An erasure that is not repeated; several times for several
    #[arg(long, value_name = "ID", value_parser = id)]
    pub skip_erasure: Vec<String>,

    /// Repeat those erasures, too, of which nothing proves who recorded them
    #[arg(long)]
    pub unproven_erasures: bool,
}

impl ConsentArgs {
    /// The word.
    pub(super) fn consent(&self) -> Consent {
        Consent {
            skipped: self.skip_erasure.clone(),
            is_unproven_allowed: self.unproven_erasures,
        }
    }

    /// The options, each with a space before it.
    pub(super) fn words(&self) -> String {
        let skipped = self.skip_erasure.iter();
        let skipped = skipped.map(|id| format!(" --skip-erasure {id}"));
        let unproven = self.unproven_erasures.then_some(" --unproven-erasures");
        skipped.collect::<String>() + unproven.unwrap_or_default()
    }
}

/// A copy to erase from.
#[derive(clap::Args, Debug)]
pub struct ApplyArgs {
    /// The data directory of the restored copy, whose server does not run
    #[arg(long, value_name = "DIR")]
    pub pgdata: PathBuf,

    /// The folder of PostgreSQL's programs; else the search path, then where distributions put them
    #[arg(long, value_name = "DIR")]
    pub bin: Option<PathBuf>,

    /// Keep the WAL of the new timeline for the archive: "pitr adopt" follows before the copy is started
    #[arg(long)]
    pub for_adoption: bool,

    /// An erasure that is left out; several times for several
    #[arg(long, value_name = "ID", value_parser = id)]
    pub skip: Vec<String>,

    /// Run those, too, that only a repository has in which nothing proves who recorded them
    #[arg(long)]
    pub unproven: bool,

    /// Run them
    #[arg(long, conflicts_with = "dry_run")]
    pub confirm: bool,

    /// Show what there is to run, and leave with 0
    #[arg(long)]
    pub dry_run: bool,
}

/// Reads the name of an erasure; no other text gets into the audit log.
pub(super) fn id(text: &str) -> Result<String> {
    match is_name(text) {
        true => Ok(text.to_owned()),
        false => Err(err!(
            Usage,
            "an erasure is named by its time and 16 digits, as \"pitr erasure list\" shows it"
        )),
    }
}

pub fn run(command: &Command, cx: &Context) -> Result<u8> {
    match command {
        Command::Add(args) => add(args, cx),
        Command::List {} => {
            let listing = erasure::list(&cx.session)?;
            print_list(cx, &listing)?;
            partial_unless(cx.told(listing.failures)?)
        }
        Command::Show { id } => show(id, cx),
        Command::Remove { id, confirm } => remove(id, *confirm, cx),
        Command::Apply(args) => apply(args, cx),
    }
}

fn add(args: &AddArgs, cx: &Context) -> Result<u8> {
    let asked = Asked {
        sql: erasure::read_script(&args.sql)?,
        database: args.database.clone(),
        reason: args.reason.clone(),
    };
    let added = erasure::add(&cx.session, &asked)?;
    let places = added.recorded_in.join(" and ");
    cx.answer(&added, || {
        cx.report(&format!("recorded in {places}: {}", added.id))
    })?;
    if !added.readable_in.is_empty() {
        cx.warn(&format!(
            "{} is not encrypted: everybody who reads it can read the script, and see in it who was erased",
            added.readable_in.join(" and ")
        ));
    }
    partial_unless(cx.told(added.failures)?)
}

fn show(id: &str, cx: &Context) -> Result<u8> {
    let listing = erasure::list(&cx.session)?;
    let erasure = listing.read(id)?;
    // Control characters could hide a part from the reader.
    cx.answered(&erasure, || cx.text(erasure.sql.trim_end()))
}

fn remove(id: &str, is_confirmed: bool, cx: &Context) -> Result<u8> {
    let mut listing = erasure::list(&cx.session)?;
    if !is_confirmed {
        listing.entry(id)?;
        return Err(err!(
            Refused,
            "nothing was changed, because --confirm is not given"
        )
        .hint(format!(
            "Erasure {id} would be deleted, and copies that are restored later keep what it erased.\nAdd --confirm to do it. pitr erasure show {id} prints it."
        )));
    }
    let removed = listing.remove(&cx.session, id)?;
    let shown = serde_json::json!({ "id": id, "removed_from": removed });
    cx.answer(&shown, || {
        cx.report(&format!("removed from {}", removed.join(" and ")))
    })?;
    partial_unless(cx.told(listing.failures)?)
}

fn print_list(cx: &Context, listing: &Listing) -> Result<()> {
    if cx.is_json() {
        return cx.json(listing);
    }
    if listing.erasures.is_empty() {
        return cx.line(&format!(
            "no erasures are recorded for cluster {}",
            listing.cluster
        ));
    }
    let table = Table::of("erasure | database | >timeline | lsn | by | reason");
    cx.table(&table.rows(listing.erasures.iter().map(cells)))
}

fn cells(entry: &Entry) -> [String; 6] {
    let Some(erasure) = &entry.erasure else {
        let damage = entry.damage.clone().unwrap_or_default();
        let none = String::new;
        return [entry.id.clone(), none(), none(), none(), none(), damage];
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    [
        entry.id.clone(),
        erasure.database.clone(),
        or_dash(erasure.timeline.map(|t| t.decimal().to_string())),
        or_dash(erasure.lsn.map(|lsn| lsn.to_string())),
        erasure.recorded_by.clone(),
        or_dash(erasure.reason.clone()),
    ]
}

fn apply(args: &ApplyArgs, cx: &Context) -> Result<u8> {
    let asked = apply::Asked {
        pgdata: args.pgdata.clone(),
        bin: args.bin.clone(),
        is_for_adoption: args.for_adoption,
        consent: Consent {
            skipped: args.skip.clone(),
            is_unproven_allowed: args.unproven,
        },
    };
    let mut prepared = apply::prepare(&cx.session, &asked)?;
    let failures = std::mem::take(&mut prepared.scripts.listing.failures);
    let listing = &prepared.scripts.listing;
    if !cx.is_json() {
        print_list(cx, listing)?;
    }
    for name in &listing.unproven {
        cx.warn(&format!(
            "nothing proves who recorded what is in repository \"{name}\", and scripts run as a superuser: read each one before (pitr erasure show ID)"
        ));
    }
    cx.stop_with_cleanup()?;
    let is_any = !listing.erasures.is_empty();
    let applied = match args.confirm && is_any {
        true => prepared.run(&cx.session)?,
        false => Vec::new(),
    };
    let answer = members! {
        'a;
        cluster: &'a str = &listing.cluster;
        pgdata: String = args.pgdata.display().to_string();
        confirmed: bool = args.confirm;
        recorded: usize = listing.erasures.len();
        unproven: &'a [String] = &listing.unproven;
        erasures: &'a [Applied] = &applied;
    };
    cx.answer(&answer, || print_applied(cx, &applied))?;
    let is_whole = cx.told(failures)?;
    let is_elsewhere = judge(cx, &applied)?;
    let would = "The scripts that the copy does not have would be run on it, in private.";
    done_or_unconfirmed(!is_any || args.confirm || args.dry_run, would)?;
    partial_unless(is_whole && !is_elsewhere)
}

/// Runs the erasures that a copy lacks which was just restored; returns what became of each, and whether every repository answered.
pub(super) fn apply_to_restored(
    cx: &Context,
    pgdata: &str,
    consent: &Consent,
) -> Result<(Vec<Applied>, bool)> {
    let asked = apply::Asked {
        pgdata: PathBuf::from(pgdata),
        bin: None,
        is_for_adoption: false,
        consent: consent.clone(),
    };
    cx.stop_with_cleanup()?;
    let mut prepared = apply::prepare(&cx.session, &asked)?;
    let failures = std::mem::take(&mut prepared.scripts.listing.failures);
    let applied = prepared.run(&cx.session)?;
    Ok((applied, cx.told(failures)?))
}

/// Requires that no script failed; returns whether the copy lacks the database of one.
pub(super) fn judge(cx: &Context, applied: &[Applied]) -> Result<bool> {
    let failed = applied.iter().filter_map(|one| match &one.outcome {
        Outcome::Failed(why) => Some(format!("{}: {why}", one.id)),
        _ => None,
    });
    let failed: Vec<String> = failed.collect();
    if !failed.is_empty() {
        return Err(err!(Server, "{} of {} failed: {}", failed.len(), human::count(applied.len() as u64, "erasure"), failed.join("; "))
            .hint("The copy holds what they erase: let nobody connect. Its server is stopped.\nRun what failed by hand where nobody else is connected (pitr erasure show ID), or record a better script, remove the wrong one, and run this again."));
    }
    let is_elsewhere = applied.iter().any(|a| a.outcome == Outcome::NoDatabase);
    if is_elsewhere {
        cx.warn("the copy lacks a database of an erasure: it is older than the database, or has it under another name, and then run the script there by hand (pitr erasure show ID)");
    }
    Ok(is_elsewhere)
}

pub(super) fn print_applied(cx: &Context, applied: &[Applied]) -> Result<()> {
    for one in applied {
        let became = match &one.outcome {
            Outcome::Applied => "applied".to_owned(),
            Outcome::Contained => "not needed: the copy was recovered beyond it".to_owned(),
            Outcome::Failed(why) => format!("failed: {why}"),
            Outcome::NoDatabase => "the copy has no such database".to_owned(),
            Outcome::Skipped => "left out (--skip)".to_owned(),
        };
        cx.line(&format!(
            "{} in database {}: {became}",
            one.id, one.database
        ))?;
    }
    match applied.is_empty() {
        true => Ok(()),
        false => cx.report("recovery of the copy has ended, and its server is stopped"),
    }
}

/// The state of a restored copy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Copied {
    /// It has a guard.
    Guarded,
    /// It has a guard, and WAL of its own timeline waits to be archived.
    Recovered,
    /// It may archive.
    Adopted,
}

/// Tells of erasures that a restored copy may lack, with the command that repeats them.
pub(super) fn tell(
    cx: &Context,
    lacking: Option<&Lacking>,
    (pgdata, copied): (&str, Copied),
) -> Result<()> {
    let Some(lacking) = lacking.filter(|lacking| lacking.count > 0) else {
        return Ok(());
    };
    let of = human::count(lacking.recorded as u64, "erasure");
    if copied == Copied::Adopted {
        return cx.line(&format!("This copy lacks {} of {of} recorded, and pitr erasure apply refuses a copy that may archive: restore without --adopt, or run the scripts by hand before anybody connects (pitr erasure list).", lacking.count));
    }
    // Without the words the first WAL of its timeline would go.
    let (before, words) = match copied {
        Copied::Recovered => (" and is adopted", " --for-adoption"),
        _ => ("", ""),
    };
    cx.line(&format!(
        "This copy lacks {} of {of} recorded. Before it accepts connections{}: pitr erasure apply{} --pgdata {}{} --confirm",
        lacking.count,
        before,
        cx.session.options(cx.session.flags.cluster.as_deref()),
        shell_word(pgdata),
        words
    ))
}
