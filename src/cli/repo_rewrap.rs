//! `pitr repo rewrap`: who may read an encrypted repository from now on. No data is touched.

use std::path::PathBuf;

use super::repo_keys::Passphrase;
use super::{Context, done_or_unconfirmed, partial_unless};
use crate::error::Result;
use crate::operate::rewrap::{self, Asked};
use crate::operate::rewrap_all::{self, Plan, Set};

/// The arguments of `pitr repo rewrap`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Give access to the recipient whose .pub file this is. May be given several times
    #[arg(long, value_name = "FILE")]
    pub add: Vec<PathBuf>,

    /// Give access to a recipient with a passphrase
    #[arg(long, value_name = "NAME")]
    pub add_passphrase: Option<String>,

    #[command(flatten)]
    pub source: Passphrase,

    /// Withdraw a recipient's access. May be given several times
    #[arg(long, value_name = "NAME")]
    pub withdraw: Vec<String>,

    /// The key file of a recipient who keeps access, to prove that it opens the repository. May be given several times
    #[arg(long, value_name = "FILE")]
    pub proof: Vec<PathBuf>,

    /// Change every repository of the configuration, and the secrets pairs in them, by one plan
    #[arg(long)]
    pub all: bool,

    /// With --all: those of --add get access to the secrets pairs, too
    #[arg(long, requires = "all")]
    pub secrets: bool,

    /// With --all: show the plan, and leave with 0
    #[arg(long, requires = "all", conflicts_with = "confirm")]
    pub dry_run: bool,

    /// With --all: carry out the plan
    #[arg(long, requires = "all")]
    pub confirm: bool,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let asked = Asked {
        add: args.add.clone(),
        add_passphrase: args.add_passphrase.clone(),
        source: (&args.source).into(),
        withdraw: args.withdraw.clone(),
        proof: args.proof.clone(),
    };
    if args.all {
        return run_all(args, cx, &asked);
    }
    let (answers, failures) = rewrap::run(&cx.session, &asked)?;
    cx.answer(&serde_json::json!({ "repositories": answers }), || {
        answers.iter().try_for_each(|one| {
            let mut recipients = one.recipients.join(", ");
            if !one.some_epochs_alone.is_empty() {
                let some = one.some_epochs_alone.join(", ");
                recipients = format!("{recipients}; some epochs alone: {some}");
            }
            cx.line(&format!("Repository {} is read by: {recipients}", one.name))
        })
    })?;
    partial_unless(cx.told(failures)?)
}

fn run_all(args: &Args, cx: &Context, asked: &Asked) -> Result<u8> {
    cx.stop_in_order()?;
    let mut plan = rewrap_all::plan(&cx.session, asked, args.secrets)?;
    let is_change = plan.is_change();
    let done = match args.confirm {
        true => plan.carry_out(&cx.session),
        false => Ok(()),
    };
    report(args, cx, &plan)?;
    let failures = std::mem::take(&mut plan.failures);
    if done.is_err() || !failures.is_empty() {
        cx.warn("what is shown as done stays done; the same command goes on with the rest");
    }
    done?;
    let is_enough = !is_change || args.confirm || args.dry_run;
    done_or_unconfirmed(is_enough, "The plan above would be carried out.")?;
    partial_unless(cx.told(failures)?)
}

fn report(args: &Args, cx: &Context, plan: &Plan) -> Result<()> {
    if cx.is_json() {
        return cx.json(
            &serde_json::json!({ "confirmed": args.confirm, "sets": plan.sets, "plain": plan.plain }),
        );
    }
    for set in &plan.sets {
        cx.line(&format!(
            "Repository {}, {}: {}; read by: {}",
            set.repository,
            set.words(),
            change(set, args.confirm),
            set.recipients.join(", ")
        ))?;
    }
    for name in &plan.plain {
        cx.line(&format!("Repository {name} is not encrypted"))?;
    }
    Ok(())
}

/// The changes of a set: those of this run, and those to come.
fn change(set: &Set, confirmed: bool) -> String {
    let still = if confirmed { "not done: " } else { "" };
    let parts = [
        ("gave access to ", "", &set.given),
        ("withdrew ", "", &set.withdrawn),
        ("gives access to ", still, &set.to_give),
        ("withdraws ", still, &set.to_withdraw),
    ];
    let parts = parts.iter().filter(|(_, _, names)| !names.is_empty());
    let parts = parts.map(|(verb, before, names)| format!("{before}{verb}{}", names.join(", ")));
    match parts.collect::<Vec<_>>().join("; ") {
        none if none.is_empty() => "nothing to do".to_owned(),
        some => some,
    }
}
