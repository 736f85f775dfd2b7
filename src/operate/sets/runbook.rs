//! The recovery instructions of a set, as Markdown: from its configuration, and from what the repository has now.
//!
//! The part that comes from the configuration is hashed, and the hash stands in the text: a copy whose hash is another one is stale. Times and moments change all the while,
//! and make no copy stale.

use std::path::Path;

use serde::Serialize;

use super::info::{self, SetInfo};
use super::plan::{self, AskedMoment, AskedRecovery};
use super::recover;
use super::{by_hand, cluster, configured, redis};
use crate::config::{MemberKind, RecoverySet, Redis, Settings, Source};
use crate::err;
use crate::error::Result;
use crate::operate::human;
use crate::operate::search;
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;
use crate::plan::estimate::Basis;
use crate::plan::sets::Extent;
use crate::release;
use crate::repo::event;
use crate::repo::runbook;
use crate::repo::scope::Scope;
use crate::repo::set_mark::{self, KIND};

/// Marks that are looked at.
const MARKS: usize = 5;
/// The text before the hash.
const HASH: &str = "<!-- pitr runbook ";
const HASH_END: &str = " -->";

/// Writes the instructions.
///
/// # Errors
/// `Usage`; those of the configuration. The text names what cannot be read of a repository.
pub fn write(session: &Session, name: Option<&str>) -> Result<String> {
    let settings = session.settings_with_repositories()?;
    let set = configured(&settings, name)?;
    let mut text = format!(
        "# Recovery of {}\n\nWritten by pitr {} on {} at {}. Print it, and keep it off this host: pitr runbook --set {} > runbook.md\n\n",
        set.name,
        release::version(),
        event::host(),
        human::exact_time(session.host.now()),
        set.name,
    );
    text.push_str(&now(session, set));
    text.push_str(&marked(&fixed(&settings, set)));
    Ok(text)
}

/// The instructions that are stored with each mark: what the configuration tells. Another text is stored when that changes.
pub(super) fn to_store(settings: &Settings, set: &RecoverySet) -> String {
    let name = &set.name;
    format!(
        "# Recovery of {name}\n\nThis was stored with the marks of the set. It knows neither moments nor times: `pitr info --set {name}` shows those, once the configuration is there again.\n\n{}",
        marked(&fixed(settings, set))
    )
}

/// A text with its hash behind it.
fn marked(fixed: &str) -> String {
    let hash = blake3::hash(fixed.as_bytes()).to_hex();
    format!("{fixed}\n{HASH}{hash}{HASH_END}\n")
}

/// Instructions that a repository has.
#[derive(Debug, Serialize)]
pub struct StoredRunbook {
    pub set: String,
    /// The mark with which they were stored.
    pub mark: String,
    /// The time of the mark.
    pub time: TimestampTz,
    /// The text, as Markdown.
    pub text: String,
}

/// Reads the instructions that were stored with a mark: the newest one that has some, or the one that is named. The set need not be configured.
///
/// # Errors
/// `Usage` where no set is named, and not one is configured; `NotFound`; `Key`; `Damaged`; errors of the repositories.
pub fn stored(session: &Session, name: Option<&str>, mark: Option<&str>) -> Result<StoredRunbook> {
    let name = match name {
        Some(name) => name.to_owned(),
        None => configured(&session.settings_with_repositories()?, None)?
            .name
            .clone(),
    };
    let scope = Scope::aux(KIND, &name)?;
    let found = search::in_first(session, |repository, _| {
        let store = repository.store();
        let marks = match mark {
            Some(text) => set_mark::meant(store, &scope, text, &session.host)?,
            None => set_mark::newest(store, &scope, plan::MARKS_MAX)?,
        };
        for mark in marks.marks {
            let Some(hash) = &mark.runbook else {
                continue;
            };
            if let Some(text) = runbook::read(store, &scope, hash)? {
                return Ok(Some((mark.id, mark.began, text)));
            }
        }
        Ok(None)
    })?;
    let (mark, time, text) = found.ok_or_else(|| {
        err!(NotFound, "no mark of set \"{name}\" has a runbook").hint(
            "pitr mark stores one with each mark. pitr runbook writes one from the configuration.",
        )
    })?;
    Ok(StoredRunbook {
        set: name,
        mark,
        time,
        text,
    })
}

/// Returns a text in front of its hash, and the hash with the words around it; empty where there is none.
pub fn without_hash(text: &str) -> (&str, &str) {
    let at = text.rfind(HASH).unwrap_or(text.len());
    let (before, behind) = text.split_at_checked(at).unwrap_or((text, ""));
    let digits = behind
        .trim_end()
        .strip_prefix(HASH)
        .and_then(|rest| rest.strip_suffix(HASH_END));
    match digits {
        Some(digits) if runbook::is_hash(digits) => (before, behind),
        _ => (text, ""),
    }
}

/// Requires that a copy is of the configuration as it is now.
///
/// # Errors
/// `Findings` for a stale copy, and for a text that is none.
pub fn check(session: &Session, name: Option<&str>, copy: &str) -> Result<()> {
    let settings = session.settings_with_repositories()?;
    let set = configured(&settings, name)?;
    let hash = blake3::hash(fixed(&settings, set).as_bytes()).to_hex();
    let written = copy
        .rsplit_once(HASH)
        .and_then(|(_, rest)| rest.split_once(HASH_END));
    let again = format!("Write it again: pitr runbook --set {} > FILE", set.name);
    match written {
        Some((written, _)) if written == hash.as_str() => Ok(()),
        Some(_) => Err(err!(
            Findings,
            "the runbook is not that of the configuration any more"
        )
        .hint(again)),
        None => Err(err!(Findings, "the file is no runbook").hint(again)),
    }
}

/// The moments that can be reached now.
fn now(session: &Session, set: &RecoverySet) -> String {
    let mut text = "## What there is\n\n".to_owned();
    match info::run(session, Some(&set.name), MARKS) {
        Ok(info) => text.push_str(&reachable(&info)),
        Err(e) => text.push_str(&format!(
            "It could not be read when this was written: {e}.\n\n"
        )),
    }
    text.push_str(&expected(session, set));
    text
}

fn reachable(info: &SetInfo) -> String {
    let mut text = String::new();
    for span in &info.spans {
        text.push_str(&format!(
            "- any moment from {} to {}\n",
            human::exact_time(span.from),
            human::exact_time(span.to)
        ));
    }
    for mark in info.marks.iter().filter(|mark| mark.settled == Some(true)) {
        let label = mark.label.as_ref().map(|label| format!(" \"{label}\""));
        text.push_str(&format!(
            "- mark {}{}, level {}\n",
            mark.id,
            label.unwrap_or_default(),
            mark.level.number()
        ));
    }
    if text.is_empty() {
        text.push_str("Nothing that all members reach. `pitr info` says why.\n");
    }
    text + "\n"
}

/// How long the newest mark takes, as far as drills have measured it.
fn expected(session: &Session, set: &RecoverySet) -> String {
    let Ok(marks) = plan::marks(session, set, 1) else {
        return String::new();
    };
    let Some(mark) = marks.marks.first() else {
        return String::new();
    };
    let asked = AskedRecovery {
        set: Some(set.name.clone()),
        extent: Extent::Full,
        moment: AskedMoment::Mark(mark.id.clone()),
        with_erasures: true,
        after_stop: false,
        from_standby: false,
        timelines: Vec::new(),
    };
    let Ok(planned) = plan::look(session, &asked) else {
        return String::new();
    };
    let mut text = "| member | bytes | time |\n|---|---|---|\n".to_owned();
    for one in &planned.plan.members {
        let bytes = one.reached.as_ref().map_or(0, |reached| reached.bytes);
        let ms = one.reached.as_ref().and_then(|reached| reached.ms);
        let basis = one.reached.as_ref().and_then(|reached| reached.basis);
        let by = match basis {
            Some(Basis::Default) => " (default)",
            _ => "",
        };
        let shown = |ms: u64| human::duration(std::time::Duration::from_millis(ms));
        let time = ms.map(|ms| format!("{}{by}", shown(ms)));
        text.push_str(&format!(
            "| {} | {} | {} |\n",
            one.member,
            human::size(bytes),
            time.unwrap_or_else(|| "not measured".to_owned())
        ));
    }
    for (member, lacking) in &planned.erasures {
        text.push_str(&format!(
            "\nBefore {member} starts, pitr repeats {} in it that are later than this mark, in private. A script that fails stops the recovery there.\n",
            human::count(lacking.count as u64, "erasure")
        ));
    }
    text + "\n"
}

/// The part that follows from the configuration alone.
fn fixed(settings: &Settings, set: &RecoverySet) -> String {
    let name = &set.name;
    let config = settings.path.as_deref().unwrap_or(Path::new("pitr.toml"));
    let config = config.display();
    let mut text = format!(
        "## First\n\n\
         1. Note the time. Do not restart, delete or promote anything, and run no expire.\n\
         2. `pitr info --set {name}` shows the moments. `pitr find` and `pitr redis info NAME --commands` show what happened when.\n\
         3. Which moment? The last mark before the damage is exact. A time is as exact as the clocks of the servers.\n\
         4. A single table, key or file needs none of this: `pitr rescue`, `pitr files cat`, `pitr config show`.\n\n\
         ## Recover\n\n\
         ```sh\n\
         pitr recover test --set {name} --mark MARK                # into a folder that is thrown away; changes nothing\n\
         pitr recover full --set {name} --mark MARK --dry-run      # the plan\n\
         pitr recover full --set {name} --mark MARK --confirm      # or --target-time \"2026-11-20 06:40:49+01\"\n\
         pitr recover rollback RUN --set {name} --confirm          # everything as it was before; RUN is printed\n\
         ```\n\n\
         Killed or failed in between: the same command goes on. `database` and `application` in place of `full` recover only those members.\n\n\
         ## The steps\n\n"
    );
    for (number, step) in recover::steps_of(settings, set).iter().enumerate() {
        let command = step.command.as_ref();
        let command = command.map_or_else(String::new, |command| format!(": `{command}`"));
        text.push_str(&format!("{}. {}{command}\n", number + 1, step.step));
    }
    text.push_str("\n## Members\n\n| member | place |\n|---|---|\n");
    for member in &set.members {
        let name = &member.name;
        let place = match member.kind {
            MemberKind::Cluster => {
                let pgdata = cluster(settings, name).ok().and_then(|c| c.pgdata.as_ref());
                pgdata.map(|pgdata| pgdata.display().to_string())
            }
            MemberKind::Redis => redis(settings, name).ok().map(Redis::place),
            MemberKind::Files => settings
                .files_named(name)
                .ok()
                .map(|files| match &files.source {
                    Source::Directory(directory) => directory.display().to_string(),
                    other => other.kind().unwrap_or("a command").to_owned(),
                }),
            MemberKind::Config => {
                let set = settings.config.iter().find(|set| set.name == *name);
                set.map(|set| set.paths.join(", "))
            }
        };
        text.push_str(&format!("| {member} | {} |\n", place.unwrap_or_default()));
    }
    text.push_str(&format!(
        "\n## Without this host\n\nInstall pitr and the servers in the versions that `pitr info` shows, and write {config} with these repositories:\n\n"
    ));
    for repository in &settings.repositories {
        text.push_str(&format!("- {}: {}\n", repository.name, repository.location));
        for file in repository.files() {
            text.push_str(&format!("  - needs the file {}\n", file.display()));
        }
    }
    let all = set.members.iter().cloned().collect();
    let lines = by_hand::lines((settings, set), &recover::example(set), &all);
    text.push_str(&format!(
        "\nWhere directories are empty or gone nothing can be exchanged. `pitr recover` prints these commands then, with the targets of the moment:\n\n```sh\n{}\n```\n",
        lines.join("\n")
    ));
    text
}
