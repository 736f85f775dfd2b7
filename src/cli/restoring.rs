//! The report of `restore` and `standby`.

use serde::Serialize;

use super::Context;
use crate::archive::guard::AUTO_CONF;
use crate::error::Result;
use crate::operate::human;
use crate::operate::restoring::Restored;
use crate::operate::start_line::Start;
use crate::restore::Report;
use crate::restore::job::Job;
use crate::restore::target_dir::PlacedTablespace;

/// The report of a restore or standby, as JSON.
#[derive(Serialize)]
pub struct ShownReport<'a> {
    /// The data directory.
    pub to: &'a str,
    pub backup: String,
    /// The places of its tablespaces.
    pub tablespaces: &'a [PlacedTablespace],
    /// Whether an earlier run had begun it.
    pub resumed: bool,
    /// Files of the backup.
    pub file_count: u64,
    /// Their raw bytes.
    pub size_bytes: u64,
    /// Bytes that this run wrote.
    pub written_bytes: u64,
    /// Bytes that were there already.
    pub kept_bytes: u64,
    /// Files and links of a data directory restored in place that the backup does not have.
    pub removed_file_count: u64,
    /// Files compared with the server's own manifest.
    pub compared_file_count: Option<u64>,
    /// Settings that run code.
    pub code_settings: &'a [String],
    /// Files that the configuration includes and that nobody looked into.
    pub includes_not_read: &'a [String],
    /// The line that starts the server.
    pub start_command: &'a str,
    /// The port that its settings name.
    pub port: u16,
    /// Whether somebody listens there already.
    pub port_taken: bool,
    /// Who has to confirm each commit of a server with these settings.
    pub synchronous_standby_names: Option<&'a str>,
    /// Links that were not recreated.
    pub links_left_out: &'a [String],
    /// Files of unlogged relations that were left out, because the backup does not have their init forks.
    pub unlogged_left_out_file_count: u64,
    /// Whether the directory may archive.
    pub may_archive: bool,
    /// How long it took.
    pub duration_ms: u64,
}

impl<'a> ShownReport<'a> {
    pub fn new(job: &'a Job, restored: &'a Restored) -> ShownReport<'a> {
        let (report, start) = (&restored.report, &restored.start);
        ShownReport {
            to: &job.request.to,
            backup: job.backup.to_string(),
            tablespaces: &job.tablespaces,
            resumed: report.resumed,
            file_count: report.files,
            size_bytes: report.raw_bytes,
            written_bytes: report.copied.written_bytes,
            kept_bytes: report.copied.kept_bytes,
            removed_file_count: report.removed_files,
            compared_file_count: report.compared_files,
            code_settings: &start.code_settings,
            includes_not_read: &start.includes_not_read,
            start_command: &start.command,
            port: start.port,
            port_taken: start.is_port_taken,
            synchronous_standby_names: start.synchronous_standby_names.as_deref(),
            links_left_out: &report.links,
            unlogged_left_out_file_count: report.unlogged_files,
            may_archive: job.may_archive(),
            duration_ms: human::millis(restored.took),
        }
    }
}

/// The place of a restored cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The directory that was named.
    Own,
    /// A directory beside the one that was named. The old cluster is still there, and a start there starts the old one.
    Aside,
}

/// Says what was restored, what it brought along, and how it is started.
pub fn print_report(cx: &Context, job: &Job, restored: &Restored, place: Place) -> Result<()> {
    let (out, report, start) = (&cx.out, &restored.report, &restored.start);
    let resumed = if report.resumed { "resumed and " } else { "" };
    let into = match place {
        Place::Own => "into",
        Place::Aside => "beside",
    };
    out.line(&format!(
        "{resumed}restored backup {} {into} {}",
        job.backup, job.request.to
    ))?;
    let compared = match report.compared_files {
        Some(_) => ", all as in PostgreSQL's own manifest",
        None => "",
    };
    out.line(&format!(
        "  {}, {} in {}, every byte checked{compared}",
        human::count(report.files, "file"),
        human::size(report.raw_bytes),
        human::duration(restored.took)
    ))?;
    if report.copied.kept_bytes > 0 {
        let removed = match report.removed_files {
            0 => String::new(),
            n => format!(
                "; {} that the backup does not have removed",
                human::count(n, "file")
            ),
        };
        out.line(&format!(
            "  {} were there already{removed}",
            human::size(report.copied.kept_bytes)
        ))?;
    }
    for tablespace in &job.tablespaces {
        out.line(&format!(
            "  tablespace {} is in {}",
            tablespace.oid,
            tablespace.path.display()
        ))?;
    }
    for link in &report.links {
        out.line(&format!("  link \"{link}\" was not recreated"))?;
    }
    if report.unlogged_files > 0 {
        out.line(&format!(
            "  left out: {} of unlogged relations whose init fork the backup does not have; PostgreSQL makes them anew",
            human::count(report.unlogged_files, "file")
        ))?;
    }
    print_settings(cx, job, report)?;
    print_configuration(cx, start)?;
    if place == Place::Aside {
        return Ok(());
    }
    out.line("Next:")?;
    out.line(&format!("  {}", start.command))?;
    out.lines(&start.notes)
}

/// Says what was written into postgresql.auto.conf: the plan of a restore shows it already.
fn print_settings(cx: &Context, job: &Job, report: &Report) -> Result<()> {
    let count = human::count(report.settings.len() as u64, "setting");
    if job.plan.is_some() {
        return cx.line(&format!("  {count} in {AUTO_CONF}, those of the plan"));
    }
    cx.line(&format!("  {count} in {AUTO_CONF}:"))?;
    for setting in &report.settings {
        cx.line(&format!("    {}", setting.line()?))?;
    }
    Ok(())
}

/// Says what the configuration makes the server run, as far as it was looked at.
fn print_configuration(cx: &Context, start: &Start) -> Result<()> {
    let lists = [
        (
            "The configuration runs code when the server starts:",
            &start.code_settings,
        ),
        (
            "It includes what was not looked at, because it is not in the backup:",
            &start.includes_not_read,
        ),
        (
            "It includes what was not restored, and the server does not start without it:",
            &start.includes_absent,
        ),
    ];
    for (head, lines) in lists.iter().filter(|(_, lines)| !lines.is_empty()) {
        cx.line(head)?;
        cx.lines(lines.iter().map(|line| format!("  {line}")))?;
    }
    Ok(())
}
