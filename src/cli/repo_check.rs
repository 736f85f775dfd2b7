//! `pitr repo check`: whether a place keeps what a repository promises, tried on objects of its own.

use super::Context;
use super::output::Table;
use crate::error::{Code, Error, Result};
use crate::exit::{self, Program};
use crate::operate::check::{self, Checked};

pub(super) fn check(cx: &Context) -> Result<u8> {
    let (all, failed) = check::run(&cx.session)?;
    cx.answer(&serde_json::json!({ "repositories": all }), || {
        for checked in &all {
            print(cx, checked)?;
        }
        for error in &failed {
            cx.error(error);
        }
        Ok(())
    })?;
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
    cx.line(&format!("{}  {}", checked.name, checked.url))?;
    let rows = checked.checks.iter().map(|check| {
        let holds = if check.holds { "yes" } else { "NO" };
        let detail = check.detail.as_deref().unwrap_or_default();
        [check.promise, holds, detail]
    });
    if !checked.checks.is_empty() {
        cx.table(&Table::of("promise | holds | ").rows(rows))?;
    }
    for weakness in &checked.weaknesses {
        cx.warn(&format!("the {} {weakness}", checked.kind));
    }
    match checked.may_delete {
        Some(true) => cx.warn(
            "these credentials may delete: whoever takes this host takes its backups. Give a host that only writes credentials without that right, and let pitr expire run elsewhere",
        ),
        Some(false) => cx.line("These credentials may not delete, as it should be on a host that only writes.")?,
        None => {}
    }
    cx.line("")
}
