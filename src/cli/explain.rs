//! `pitr explain`.

use super::Context;
use super::output::Table;
use crate::error::Result;
use crate::exit;
use crate::operate::explain::{self, Explained};

/// Explain an alert: its cause, its effect, and what to do first
///
/// The rules of Prometheus and the conditions of the agent, as docs/alerts.md has them. It needs neither a configuration nor a network. Without a name it lists all.
///
/// Example: pitr explain main/recovery/gap
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The name of a rule, or of a condition, also with the names in it
    name: Option<String>,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    match &args.name {
        None => list(cx)?,
        Some(name) => show(cx, explain::explain(name)?)?,
    }
    Ok(exit::SUCCESS)
}

fn list(cx: &Context) -> Result<()> {
    let rows = explain::ALL.iter().map(|one| [one.name, one.next]);
    cx.answer(&serde_json::json!({ "alerts": explain::ALL }), || {
        cx.table(&Table::of("alert | next").rows(rows))
    })
}

fn show(cx: &Context, one: &Explained) -> Result<()> {
    if cx.is_json() {
        return cx.json(one);
    }
    cx.line(one.name)?;
    if !one.conditions.is_empty() {
        let conditions = one.conditions.join(", ");
        cx.line(&format!("  conditions: {conditions}"))?;
    }
    cx.line(&format!("  cause:  {}", one.cause))?;
    cx.line(&format!("  effect: {}", one.effect))?;
    cx.line(&format!("  next:   {}", one.next))
}
