//! `pitr doctor`.

use super::Context;
use super::roles::RoleArg;
use crate::error::Result;
use crate::exit;
use crate::operate::doctor;
use crate::operate::finding::{Finding, Level};

/// Check every link of the chain; say cause and fix
///
/// Looks at the server's settings, its archiver and the receiver's slot, the rights of the role, the repositories, clock and space. Exit status: 0 well, 6
/// warnings, 1 critical.
///
/// Example: pitr doctor --json
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Compare keys, rights in repositories and at the server, and modes of files with those of a role; tries to create and delete an object in each repository
    #[arg(long, value_enum)]
    pub role: Option<RoleArg>,
}

/// Runs the command.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    report(
        &doctor::doctor(&cx.session, args.role.map(RoleArg::role))?,
        cx,
    )
}

fn report(findings: &[Finding], cx: &Context) -> Result<u8> {
    let worst = findings.iter().map(|f| f.level).max().unwrap_or(Level::Ok);
    if cx.out.is_json() {
        cx.out
            .json(&serde_json::json!({ "state": worst, "findings": findings }))?;
    } else {
        let width = findings
            .iter()
            .map(|f| f.name.chars().count())
            .max()
            .unwrap_or(0);
        let mut group = "";
        for finding in findings {
            if finding.group != group {
                group = finding.group;
                cx.out.line(group)?;
            }
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Warn => "warn",
                Level::Fail => "FAIL",
            };
            cx.out.line(&format!(
                "  {level:4}  {:width$}  {}",
                finding.name, finding.value
            ))?;
            if let Some(cause) = &finding.cause {
                cx.out.line(&format!("        cause: {cause}"))?;
            }
            if let Some(next) = &finding.next {
                cx.out.line(&format!("        fix:   {next}"))?;
            }
        }
    }
    Ok(match worst {
        Level::Ok => exit::SUCCESS,
        Level::Warn => exit::WARNINGS,
        Level::Fail => exit::CRITICAL,
    })
}
