//! `pitr repo check`: whether a place keeps what a repository promises, tried on objects of its own.

use super::Context;
use super::output::{Align, Table};
use crate::error::{Code, Error, Result};
use crate::exit::{self, Program};
use crate::operate::check::{self, Checked};

/// Checks every repository.
pub(super) fn check(cx: &Context) -> Result<u8> {
    let (all, failed) = check::run(&cx.session)?;
    if cx.out.is_json() {
        cx.out.json(&serde_json::json!({ "repositories": all }))?;
    } else {
        for checked in &all {
            print(cx, checked)?;
        }
        for error in &failed {
            cx.out.error(error);
        }
    }
    Ok(status(&all, &failed))
}

fn status(all: &[Checked], failed: &[Error]) -> u8 {
    if all.iter().any(|c| c.usable == Some(false)) {
        return exit::status(Program::Pitr, Code::Refused);
    }
    match failed {
        [] if all
            .iter()
            .any(|c| !c.weaknesses.is_empty() || c.may_delete == Some(true)) =>
        {
            exit::WARNINGS
        }
        [] => exit::SUCCESS,
        [first, ..] if failed.len() == all.len() => exit::status(Program::Pitr, first.code()),
        _ => exit::status(Program::Pitr, Code::Partial),
    }
}

fn print(cx: &Context, checked: &Checked) -> Result<()> {
    cx.out.line(&format!("{}  {}", checked.name, checked.url))?;
    let mut table = Table::new(&[
        ("promise", Align::Left),
        ("holds", Align::Left),
        ("", Align::Left),
    ]);
    for check in &checked.checks {
        table.row([
            check.promise,
            if check.holds { "yes" } else { "NO" },
            check.detail.as_deref().unwrap_or_default(),
        ]);
    }
    if !checked.checks.is_empty() {
        cx.out.table(&table)?;
    }
    for weakness in &checked.weaknesses {
        cx.out.warn(&format!("the {} {weakness}", checked.kind));
    }
    match checked.may_delete {
        Some(true) => cx.out.warn(
            "these credentials may delete: whoever takes this host takes its backups. Give a host that only writes credentials without that right, and let pitr expire run elsewhere",
        ),
        Some(false) => cx.out.line("These credentials may not delete, as it should be on a host that only writes.")?,
        None => {}
    }
    cx.out.line("")
}
