//! `pitr repo check`: whether a place keeps what a repository promises, tried on objects of its own.

use serde::Serialize;

use super::Context;
use super::output::{Align, Table};
use crate::config::{self, Location};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::exit::{self, Program};
use crate::operate::failures::ShownError;
use crate::store::conformance::{CLAUSES, Clause};
use crate::store::file::FileStore;
use crate::store::probe::probe;
use crate::store::s3::S3Store;
use crate::store::{Store, s3};

/// What was found of one repository.
#[derive(Serialize)]
struct Checked {
    name: String,
    url: String,
    /// Whether it may be used; none where it could not be tried.
    usable: Option<bool>,
    checks: Vec<Check>,
    weaknesses: Vec<String>,
    /// Whether these credentials may delete objects; none for a directory, and where that was not found out.
    may_delete: Option<bool>,
    error: Option<ShownError>,
}

#[derive(Serialize)]
struct Check {
    promise: &'static str,
    holds: bool,
    detail: Option<String>,
}

/// Checks every repository.
pub(super) fn check(cx: &Context) -> Result<u8> {
    let settings = cx.session.settings()?;
    if settings.repositories.is_empty() {
        return Err(err!(Config, "no repository is configured"));
    }
    let mut all = Vec::new();
    let mut failed: Vec<Error> = Vec::new();
    for configured in &settings.repositories {
        let mut checked = Checked {
            name: configured.name.clone(),
            url: configured.location.to_string(),
            usable: None,
            checks: Vec::new(),
            weaknesses: Vec::new(),
            may_delete: None,
            error: None,
        };
        match tried(configured, &mut checked, cx) {
            Ok(()) => checked.usable = Some(checked.checks.iter().all(|c| c.holds)),
            Err(e) => {
                checked.usable = (e.code() == Code::Refused).then_some(false);
                checked.error = Some(ShownError::from(&e));
                failed.push(e);
            }
        }
        all.push(checked);
    }
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

fn tried(configured: &config::Repository, checked: &mut Checked, cx: &Context) -> Result<()> {
    // A place without a marker is somewhere else: nothing is written there.
    cx.session.open(configured)?;
    match &configured.location {
        Location::File(path) => {
            checked.weaknesses = probe(path, cx.session.host.random())?;
            let store = FileStore::open(path, cx.session.host.random())?;
            let (aside, name) = store.aside(cx.session.host.random())?;
            clauses(&aside, true, checked);
            store.discard(&name).map(|_| ())
        }
        Location::S3 { bucket, prefix } => {
            let store = S3Store::open(bucket, prefix, &configured.s3, cx.session.host.random())?;
            let s3::probe::Found {
                weaknesses,
                may_delete,
            } = store.probe(cx.session.host.random())?;
            (checked.weaknesses, checked.may_delete) = (weaknesses, may_delete);
            if let Some(seconds) = s3::clock_differs(&store, || cx.session.host.now())? {
                let off = s3::shown_difference(seconds);
                checked.weaknesses.push(format!(
                    "has a clock that is {off}: requests are signed with this host's time and refused at first. Correct the one that is wrong"
                ));
            }
            let aside = store.aside(cx.session.host.random());
            clauses(&aside, may_delete == Some(true), checked);
            aside.clear().map(|_| ())
        }
    }
}

fn clauses(store: &dyn Store, may_delete: bool, checked: &mut Checked) {
    let wanted = |clause: &&Clause| may_delete || !clause.deletes;
    for (n, clause) in CLAUSES.iter().enumerate().filter(|(_, c)| wanted(c)) {
        let outcome = (clause.check)(store, &format!("clause-{n}"));
        checked.checks.push(Check {
            promise: clause.name,
            holds: outcome.is_ok(),
            detail: outcome.err().map(|e| e.to_string()),
        });
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
    let kind = match checked.url.starts_with("s3://") {
        true => "store",
        false => "filesystem",
    };
    for weakness in &checked.weaknesses {
        cx.out.warn(&format!("the {kind} {weakness}"));
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
