//! `pitr verify`.

use serde_json::json;

use super::files::sum_line;
use super::{Context, findings_unless, heal, partial_unless};
use crate::config::{Period, Size};
use crate::operate::human;
use crate::operate::of::{self, Of};
use crate::operate::pacing::MaxRate;
use crate::operate::read_back;

use crate::error::Result;
use crate::exit;
use crate::operate::verify::{self, Done, Heal, Verified};
use crate::repo::id::BackupId;
use crate::text::hex;
use crate::verify::Finding;
use crate::verify::depth::{Budget, Depth};

/// Read everything back and check it
///
/// Names every damaged object and every gap, and which targets they cost. Damaged backups are recorded, so that plans
/// avoid them. The repository remembers what was read back when: --since last goes on there, and pitr info shows it.
///
/// --fast reads no content: it finds what is missing, has another length, or does not belong together. Exit status 4 when there is damage or a gap, 10 when something could not be checked: a repository that cannot be opened,
/// or an object that a newer version wrote. A repository that this host only writes is left out beside others, and named.
///
/// Without --cluster it goes through all clusters of the configuration, and other content.
///
/// Example: pitr verify --backup 20261120T064049Z-full
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Check only this backup and the WAL it needs
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,

    /// Print the SHA-256 of every file of the backup, as sha256sum does (with --json one object a line); nothing else is checked or recorded
    #[arg(long, requires = "backup", conflicts_with_all = ["fast", "since"])]
    pub sha256sums: bool,

    /// Write a healed copy of what is damaged, and what is missing, from another configured repository that has it whole
    ///
    /// A segment is taken from the pg_wal of the configured servers, too, and a damaged pack is put together again from the same pages of
    /// other backups, where the repository is not encrypted.
    /// Objects are only added. The rest is checked again, and the report says what stays lost.
    #[arg(long, conflicts_with_all = ["fast", "since", "sha256sums"])]
    pub heal: bool,

    /// With --heal: show what would be healed, and write nothing
    #[arg(long, requires = "heal", conflicts_with_all = ["fast", "since", "sha256sums"])]
    pub dry_run: bool,

    /// Read what leads to the content, and not the content
    #[arg(long, conflicts_with = "since")]
    pub fast: bool,

    /// Read the content that was never read back first, then that which was read longest ago
    ///
    /// Then look at what leads to the content, of one backup at least and of as many as the limits allow; the next runs look at others.
    #[arg(long, value_name = "last", conflicts_with = "backup")]
    pub since: Option<Since>,

    /// With --since: read no more than this much of the content, and of the maps of backups (1 GiB of those at least)
    #[arg(long, value_name = "SIZE", requires = "since", conflicts_with_all = ["backup", "fast"])]
    pub max_bytes: Option<Size>,

    /// With --since: begin to read no more of the content, or of another backup, after this time
    #[arg(long = "for", value_name = "DURATION", requires = "since", conflicts_with_all = ["backup", "fast"])]
    pub time: Option<Period>,

    /// Read at most this much a second, such as 50MB, besides max_rate of the repository; none sets that aside, too
    #[arg(long, value_name = "SIZE")]
    pub max_rate: Option<MaxRate>,
}

/// Since when what was read counts.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// The last time that each part was read back
    Last,
}

impl Args {
    fn is_dry(&self) -> Option<bool> {
        self.heal.then_some(self.dry_run)
    }

    fn depth(&self) -> Depth {
        match self.since {
            Some(Since::Last) => Depth::Oldest(Budget {
                max_bytes: self.max_bytes.map(|size| size.0),
                time: self.time.map(|time| time.duration()),
            }),
            None if self.fast => Depth::Fast,
            None => Depth::Everything,
        }
    }
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    cx.stop_in_order()?;
    let backup: Option<BackupId> = args.backup.as_deref().map(str::parse).transpose()?;
    if let (true, Some(id)) = (args.sha256sums, &backup) {
        verify::sums(&cx.session, id, &mut |path, sum| print_sum(cx, path, sum))?;
        return Ok(exit::SUCCESS);
    }
    let wish = args.is_dry().map(|dry_run| Heal { dry_run });
    let verified = verify::run(&cx.session, backup.as_ref(), &args.depth(), wish)?;
    report(cx, args, &verified)?;
    let done = verified.done;
    let is_whole = cx.told(verified.failures)?;
    let has_findings = done.iter().any(|d| d.report.finding_count > 0);
    let is_whole = is_whole && done.iter().all(|d| d.report.unsupported_count == 0);
    match has_findings {
        true => Ok(findings_unless(false)),
        false => partial_unless(is_whole),
    }
}

fn print_sum(cx: &Context, path: &[u8], sum: [u8; 32]) -> Result<()> {
    let (path, sum) = (String::from_utf8_lossy(path), hex(&sum));
    if cx.is_json() {
        let line = json!({ "path": path, "sha256": sum });
        return cx.raw(&format!("{line}\n"));
    }
    cx.bytes(&sum_line(path.as_bytes(), &sum))
}

fn report(cx: &Context, args: &Args, verified: &Verified) -> Result<()> {
    let (done, only_written) = (&verified.done, &verified.only_written);
    if cx.is_json() {
        let shown = |one: &Done| shown(args.is_dry(), one);
        let mut answer = of::split(done, |one| &one.of, shown);
        if !only_written.is_empty() {
            answer.insert("only_written".into(), json!(only_written));
        }
        return cx.json(&answer);
    }
    let is_dry = args.is_dry();
    done.iter().try_for_each(|one| print(cx, is_dry, one))?;
    only_written.iter().try_for_each(|name| {
        cx.report(&format!(
            "repository {name}: not read, because this host only writes into it: verify it where a reader's key is"
        ))
    })
}

/// A report as JSON; of a run that heals it is known whether it was a dry one.
pub(super) fn shown(is_dry: Option<bool>, done: &Done) -> serde_json::Value {
    let report = &done.report;
    let finding = |f: &Finding| json!({ "kind": f.kind.as_str(), "object": f.object, "detail": f.detail, "costs": f.costs });
    let findings: Vec<_> = report.findings.iter().map(finding).collect();
    let backup =
        |(id, usable): &(BackupId, bool)| json!({ "id": id.to_string(), "restorable": usable });
    let backups: Vec<_> = report.backups.iter().map(backup).collect();
    let mut members = json!({
        "repository": done.repository,
        "findings": findings,
        "finding_count": report.finding_count,
        "warnings": report.warnings,
        "unsupported_count": report.unsupported_count,
        "backups": backups,
        "segments": report.segment_count,
        "unlinked_segments": report.unlinked_count,
        "objects": report.object_count,
        "read_bytes": report.read_bytes,
        "read_back": report.read_back,
    });
    if report.unlooked_count > 0 {
        members["unlooked_backups"] = report.unlooked_count.into();
    }
    if let Some(is_dry) = is_dry {
        let outcome = done.outcome.clone().unwrap_or_default();
        members["dry_run"] = is_dry.into();
        members["healed"] = json!(outcome.healed);
        members["not_healed"] = json!(outcome.unhealed);
    }
    done.of.named(members)
}

/// Prints what was healed, and the report of what is left.
pub(super) fn print(cx: &Context, is_dry: Option<bool>, done: &Done) -> Result<()> {
    if let Some(outcome) = &done.outcome {
        heal::print(cx, outcome, is_dry == Some(true))?;
    }
    let report = &done.report;
    for finding in &report.findings {
        cx.line(&format!(
            "{}: {}: {}",
            finding.kind.as_str(),
            finding.object,
            finding.detail
        ))?;
        for cost in &finding.costs {
            cx.line(&format!("  lost here: {cost}"))?;
        }
        if finding.costs.is_empty() {
            cx.line("  lost here: nothing that recovery needs")?;
        }
    }
    let listed = report.findings.len() as u64;
    if report.finding_count > listed {
        let more = human::count(report.finding_count - listed, "finding");
        cx.line(&format!("and {more} more"))?;
    }
    let restorable = report.backups.iter().filter(|(_, usable)| *usable).count();
    let summary = format!(
        "{} in repository {}: {} read in {}; {} of {} can be restored; {}{}",
        done.of.title(),
        done.repository,
        human::size(report.read_bytes),
        human::count(report.object_count, "object"),
        restorable,
        human::count(report.backups.len() as u64, "backup"),
        match done.of {
            Of::Cluster(_) => {
                format!("{} of WAL; ", human::count(report.segment_count, "segment"))
            }
            Of::Scope(_) => String::new(),
        },
        match (report.finding_count, report.unsupported_count) {
            (0, 0) => "nothing is damaged or missing".to_owned(),
            (0, n) => format!("{} not checked", human::count(n, "object")),
            (n, _) => human::count(n, "finding"),
        }
    );
    match (report.finding_count, report.unsupported_count) {
        (0, 0) => cx.report(&summary)?,
        _ => cx.line(&summary)?,
    }
    if report.unlooked_count > 0 {
        cx.report(&format!(
            "{} not looked at: the limits of this run were reached; the next runs go on with them",
            human::count(report.unlooked_count, "backup")
        ))?;
    }
    if !report.read_back.is_complete() {
        cx.report(&read_back::line(&report.read_back))?;
    }
    if let Some(next) = verify::next(&cx.session, is_dry, done) {
        cx.line(&format!("next: {next}"))?;
    }
    if report.unlinked_count > 0 {
        let (have, them) = match report.unlinked_count {
            1 => ("has", "it"),
            _ => ("have", "them"),
        };
        // So is every first one after a restore: its server never had the one before.
        cx.report(&format!(
            "{} {have} no link, the hash of the segment before. That is no damage: the server had that one no longer, or an older pitr stored {them}. Positions and checksums join {them}.",
            human::count(report.unlinked_count, "segment")
        ))?;
    }
    cx.warn_all(&report.warnings);
    if report.object_count == 0 {
        cx.warn("0 objects: there is nothing to check");
    }
    Ok(())
}
