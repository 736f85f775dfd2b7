//! `pitr doctor`.

use super::agent::is_command;
use super::{Context, status_of};
use crate::agent::load;
use crate::error::Result;
use crate::operate::doctor;
use crate::operate::finding::{self, Finding, Level};
use crate::operate::roles::Role;

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
    pub role: Option<Role>,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let mut findings = doctor::doctor(&cx.session, args.role)?;
    let of_jobs = jobs(cx, &findings);
    findings.extend(of_jobs);
    report(&findings, cx)
}

/// Checks the jobs and alerts of the file as the agent does; what the agent noted of the file is among the findings already.
fn jobs(cx: &Context, findings: &[Finding]) -> Option<Finding> {
    let settings = cx.session.settings().ok()?;
    let is_noted = |one: &Finding| (one.group, one.name.as_str()) == ("agent", "configuration");
    if findings.iter().any(is_noted) {
        return None;
    }
    let zones = load::check_zones(&settings);
    let refused = match settings.jobs.is_empty() {
        true => None,
        false => load::checked(settings, &cx.session.environment, is_command).err(),
    };
    let (level, value, what, cause) = match (refused, zones) {
        (Some(e), _) => {
            let value = "the agent refuses this file: no job starts by it";
            (Level::Fail, value, "job", e)
        }
        (None, Err(e)) => {
            let value = "an alert has no quiet hours, and a reload refuses this file";
            (Level::Warn, value, "zone", e)
        }
        (None, Ok(())) => return None,
    };
    let next = format!("mend the {what}, then: systemctl reload-or-restart pitr-agent");
    Some(Finding {
        cause: Some(cause.to_string()),
        ..Finding::new("agent", "configuration", level, value).with_next(next)
    })
}

fn report(findings: &[Finding], cx: &Context) -> Result<u8> {
    let worst = findings.iter().map(|f| f.level).max().unwrap_or(Level::Ok);
    let shown = serde_json::json!({ "state": worst, "findings": findings });
    cx.answer(&shown, || print(findings, cx))?;
    Ok(status_of(worst))
}

fn print(findings: &[Finding], cx: &Context) -> Result<()> {
    let widths = findings.iter().map(|f| f.name.chars().count());
    let width = widths.max().unwrap_or(0);
    let mut group = "";
    let config = cx.session.flags.config.as_deref();
    for finding in findings {
        if finding.group != group {
            group = finding.group;
            cx.line(group)?;
        }
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        cx.line(&format!(
            "  {level:4}  {:width$}  {}",
            finding.name, finding.value
        ))?;
        if let Some(cause) = &finding.cause {
            cx.line(&format!("        cause: {cause}"))?;
        }
        if let Some(next) = &finding.next {
            let next = finding::with_config(next, config);
            cx.line(&format!("        fix:   {next}"))?;
        }
    }
    Ok(())
}
