//! What was done, the lines for postgresql.conf, and what comes next.

use std::path::{Path, PathBuf};

use super::Wanted;
use super::identity::Identity;
use super::place::Done;
use super::user::ServerUser;
use crate::cli::archive_command::{compose, conf_value, shell_word};
use crate::cli::{Context, human};
use crate::error::Result;
use crate::exit;

/// The program that PostgreSQL is to run: beside this one, where it was installed.
fn archiver() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|p| Some(p.parent()?.join("pitr-archive")))
        .unwrap_or_else(|| PathBuf::from("/usr/bin/pitr-archive"))
}

pub(super) fn report(
    wanted: &Wanted,
    identity: &Identity,
    done: &[Done],
    written: bool,
    server: &ServerUser,
    cx: &Context,
) -> Result<u8> {
    let program = archiver();
    if !program.exists() {
        cx.out.warn(&format!(
            "\"{}\" does not exist: install pitr-archive beside pitr",
            program.display()
        ));
    }
    let mut warnings = server.obstacles(wanted, &program);
    warnings.extend(done.iter().flat_map(|d| {
        d.weaknesses
            .iter()
            .map(|w| format!("the {} of repository \"{}\" {w}", d.kind(), d.name))
    }));
    let cluster = wanted.several_clusters.then(|| wanted.cluster.as_str());
    let settings = settings(wanted, identity, &program, cluster);
    let next = next(wanted, cluster, server);
    if cx.out.is_json() {
        let settings: serde_json::Map<_, _> = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone().into()))
            .collect();
        cx.out.json(&serde_json::json!({
            "config": wanted.config.to_string_lossy(),
            "config_written": written,
            "cluster": wanted.cluster.as_str(),
            "system_identifier": identity.system_identifier.to_string(),
            "major": identity.major,
            "segment_size_bytes": identity.segment_size_bytes,
            "repositories": done,
            "settings": settings,
            "warnings": warnings,
            "next": next,
        }))?;
        return Ok(exit::SUCCESS);
    }
    print_done(wanted, identity, done, written, cx)?;
    for warning in &warnings {
        cx.out.warn(warning);
    }
    cx.out.line("\nThese lines belong into postgresql.conf; archive_mode takes effect when the server is restarted:\n")?;
    for (name, value) in &settings {
        cx.out.line(&format!("{name} = {}", conf_value(value)))?;
    }
    cx.out.line("\nThen:\n")?;
    for line in &next {
        cx.out.line(&format!("  {line}"))?;
    }
    Ok(exit::SUCCESS)
}

/// What belongs into postgresql.conf.
fn settings(
    wanted: &Wanted,
    identity: &Identity,
    program: &Path,
    cluster: Option<&str>,
) -> [(&'static str, String); 4] {
    let level = if identity.logical {
        "logical"
    } else {
        "replica"
    };
    let command = compose(program, &wanted.config, cluster);
    [
        ("wal_level", level.to_owned()),
        ("archive_mode", "on".to_owned()),
        ("archive_command", command),
        ("archive_timeout", "60s".to_owned()),
    ]
}

/// The commands that come next.
fn next(wanted: &Wanted, cluster: Option<&str>, server: &ServerUser) -> [String; 3] {
    let user = server.prefix();
    let config = shell_word(&wanted.config.to_string_lossy());
    let option = cluster.map_or_else(String::new, |c| format!(" --cluster {c}"));
    ["doctor", "backup", "info"].map(|verb| format!("{user}pitr --config {config} {verb}{option}"))
}

fn print_done(
    wanted: &Wanted,
    identity: &Identity,
    done: &[Done],
    written: bool,
    cx: &Context,
) -> Result<()> {
    let state = |new: bool, yes: &'static str, no: &'static str| if new { yes } else { no };
    cx.out.line(&format!(
        "configuration  \"{}\"  {}",
        wanted.config.display(),
        state(written, "written", "was there, not changed")
    ))?;
    for one in done {
        cx.out.line(&format!(
            "repository     \"{}\"  {}  {}",
            one.name,
            one.url,
            state(one.created, "created", "was there")
        ))?;
        cx.out.line(&format!(
            "cluster        \"{}\"  PostgreSQL {}, system identifier {}, segments of {}  {}",
            wanted.cluster,
            identity.major,
            identity.system_identifier,
            human::size(identity.segment_size_bytes),
            state(one.registered, "registered", "was registered")
        ))?;
    }
    if !written && done.iter().all(|d| !d.created && !d.registered) {
        cx.out
            .line("Nothing had to be done: all of it was there.")?;
    }
    Ok(())
}
