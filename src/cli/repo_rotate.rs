//! `pitr repo rotate`: another pair for what is sealed from now on. No data is touched.

use std::path::PathBuf;

use super::repo_keys::Passphrase;
use super::{Context, done_or_unconfirmed};
use crate::error::Result;
use crate::operate::rotate::{self, Asked, Given, Plan, State, TakenBack};

/// The arguments of `pitr repo rotate`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Write the file for hosts into this directory, or go on with the rotation that is in it
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,

    /// A recipient who reads from now on, by its .pub file. May be given several times
    #[arg(long, value_name = "FILE", required_unless_present = "take_back")]
    pub add: Vec<PathBuf>,

    /// A recipient who reads from now on, with a passphrase
    #[arg(long, value_name = "NAME")]
    pub add_passphrase: Option<String>,

    #[command(flatten)]
    pub source: Passphrase,

    /// The key file of one of them, to prove that it opens the repositories. May be given several times
    #[arg(long, value_name = "FILE")]
    pub proof: Vec<PathBuf>,

    /// Delete what the rotation in the directory has stored, as long as it is not finished
    #[arg(long, conflicts_with_all = ["add", "add_passphrase", "proof"])]
    pub take_back: bool,

    /// Show the plan, and leave with 0
    #[arg(long, conflicts_with = "confirm")]
    pub dry_run: bool,

    /// Carry out the plan
    #[arg(long)]
    pub confirm: bool,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    cx.stop_in_order()?;
    if args.take_back {
        return take_back(args, cx);
    }
    let asked = Asked {
        dir: args.dir.clone(),
        add: args.add.clone(),
        add_passphrase: args.add_passphrase.clone(),
        source: (&args.source).into(),
        proof: args.proof.clone(),
    };
    let mut plan = rotate::plan(&cx.session, &asked)?;
    let is_change = plan.is_change();
    let idle = plan.rotates_nothing();
    let done = match args.confirm {
        true => plan.carry_out(&cx.session),
        false => Ok(()),
    };
    report(args, cx, &plan)?;
    if done.is_err() {
        cx.warn("no host has the epoch before the file for hosts is made; the same command goes on with the rest");
    }
    done?;
    // A rotation that is done may be asked for again. The directory of `repo keygen` would pass for one.
    match idle {
        Some(e) if plan.is_of_keygen() && !args.dry_run => return Err(e),
        Some(e) => cx.warn(&e.to_string()),
        None => {}
    }
    let is_done = !is_change || args.confirm || args.dry_run;
    done_or_unconfirmed(is_done, "The plan above would be carried out.")
}

fn report(args: &Args, cx: &Context, plan: &Plan) -> Result<()> {
    if cx.is_json() {
        let mut json = serde_json::to_value(plan)?;
        json["confirmed"] = args.confirm.into();
        return cx.json(&json);
    }
    cx.line(&format!(
        "Epoch {} of key set {}: read by {}",
        plan.epoch,
        plan.key_set,
        plan.recipients.join(", ")
    ))?;
    for given in &plan.repositories {
        cx.line(&format!(
            "Repository {}: {}",
            given.repository,
            change(given, args.confirm)
        ))?;
    }
    for name in &plan.others {
        cx.line(&format!("Repository {name} has other keys, or none"))?;
    }
    if !plan.left_out.is_empty() {
        cx.line(&format!("Cannot read it: {}", plan.left_out.join(", ")))?;
    }
    match (plan.state, &plan.writer_file) {
        (State::Finished, Some(file)) => {
            cx.line(&format!("The file for every host that writes: {file}"))
        }
        _ => Ok(()),
    }
}

/// The objects of a repository: those of this run, and those to come.
fn change(given: &Given, confirmed: bool) -> String {
    let mut parts = Vec::new();
    if !given.stored.is_empty() {
        parts.push(format!("stored {}", given.stored.join(", ")));
    }
    if !given.to_store.is_empty() {
        let verb = if confirmed { "not stored: " } else { "stores " };
        parts.push(format!("{verb}{}", given.to_store.join(", ")));
    }
    match parts.is_empty() {
        true => "has it".to_owned(),
        false => parts.join("; "),
    }
}

fn take_back(args: &Args, cx: &Context) -> Result<u8> {
    let taken = rotate::take_back(&cx.session, &args.dir, args.confirm)?;
    cx.answer(&taken, || print_taken(cx, &taken))?;
    let is_done = args.confirm || args.dry_run;
    done_or_unconfirmed(is_done, "The objects above would be deleted.")
}

fn print_taken(cx: &Context, taken: &TakenBack) -> Result<()> {
    let verb = match taken.confirmed {
        true => "deleted",
        false => "deletes",
    };
    for one in &taken.repositories {
        let keys = match one.keys.is_empty() {
            true => "nothing".to_owned(),
            false => one.keys.join(", "),
        };
        cx.line(&format!("Repository {}: {verb} {keys}", one.repository))?;
    }
    Ok(())
}
