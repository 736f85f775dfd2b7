//! Content beside clusters: its source, the programs that it takes, and its newest backup.

use super::Findings;
use crate::config::{Content, Repository as Configured, Settings, Source};
use crate::error::Result;
use crate::logical::tool::{self, Tool};
use crate::operate::human;
use crate::operate::scopes::{self, ScopeInfo};
use crate::operate::session::Session;
use crate::pg::version::Major;
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;

/// Looks at all that is configured.
pub(super) fn look(
    found: &mut Findings,
    opened: &[&Configured],
    settings: &Settings,
    session: &Session,
) {
    if settings
        .contents()
        .chain(settings.redis_clusters())
        .next()
        .is_none()
    {
        return;
    }
    found.begin("content");
    for files in &settings.files {
        let Source::Directory(directory) = &files.source else {
            continue;
        };
        if let Err(e) = std::fs::read_dir(directory) {
            found.fail(
                &format!("files {}", files.name),
                directory.display().to_string(),
                format!("it cannot be read: {e}"),
                "mount it, correct source, or give this user the right to read it",
            );
        }
    }
    if !settings.logical.is_empty() {
        pg_dump(found, session);
    }
    // Backups go to the first one.
    let first = settings.repositories.first();
    let Some(first) = first.filter(|first| opened.iter().any(|one| one.name == first.name)) else {
        return;
    };
    let repository = session.open(first);
    for content in settings.contents() {
        let info = repository
            .as_ref()
            .map(|repository| look_at(repository, &content, session));
        match info {
            Ok(Ok(info)) => newest(found, &content, &info, session),
            Ok(Err(e)) => found.error(&title(&content), &e),
            Err(e) => found.error(&title(&content), e),
        }
    }
    for cluster in settings.redis_clusters() {
        let look = |repository: &Repository| {
            scopes::look_at_shards(repository, settings, &cluster, session.host.now())
        };
        match repository.as_ref().map(look) {
            Ok(Ok(shards)) => {
                for info in shards {
                    newest(found, &cluster, &info, session);
                }
            }
            Ok(Err(e)) => found.error(&title(&cluster), &e),
            Err(e) => found.error(&title(&cluster), e),
        }
    }
}

fn title(content: &Content<'_>) -> String {
    format!("{} {}", content.kind, content.name)
}

fn look_at(repository: &Repository, content: &Content<'_>, session: &Session) -> Result<ScopeInfo> {
    let scope = Scope::aux(content.kind, content.name)?;
    scopes::look_at(repository, &scope, session.host.now())
}

fn newest(found: &mut Findings, content: &Content<'_>, info: &ScopeInfo, session: &Session) {
    let name = info.scope.trim_start_matches("aux/").replace('/', " ");
    let (now, end) = (session.host.now(), info.newest_end());
    let command = format!("pitr {} backup {}", content.kind, content.name);
    for problem in &info.problems {
        found.fail(
            &name,
            &problem.value,
            "a check or a person has to look",
            "pitr verify",
        );
    }
    let age = end.and_then(|end| now.duration_since(end));
    let value = age.map_or_else(
        || "no undamaged backup".to_owned(),
        |age| format!("newest backup {} old", human::duration(age)),
    );
    match scopes::newest_trouble(content, end, now) {
        Some(what) => found.fail(&name, value, what, command),
        None => found.ok(&name, value),
    }
}

/// Whether a program is there that dumps. Only a backup knows which major it has to have.
fn pg_dump(found: &mut Findings, session: &Session) {
    let folders = tool::folders(None, session.environment.get("PATH"));
    match Tool::find("pg_dump", Major::ALL[0], &folders) {
        Ok(tool) => found.ok(
            "pg_dump",
            format!("{}, {}", tool.version, tool.path.display()),
        ),
        Err(e) => found.error("pg_dump", &e),
    }
}
