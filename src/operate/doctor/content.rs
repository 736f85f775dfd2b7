//! Content beside clusters: its source, the programs that it takes, and its newest backup.

use super::Findings;
use crate::config::{Cluster, Content, Logical, Repository as Configured, Settings, Source};
use crate::error::Result;
use crate::logical::tool::{self, Tool};
use crate::operate::human;
use crate::operate::scopes::{self, Place, ScopeInfo};
use crate::operate::session::Session;
use crate::pg::version::Major;
use crate::redis::kind::NAME;
use crate::repo::repository::Repository;
use crate::repo::scope::Scope;

/// A repository of the configuration, and what came of opening it.
type Tried<'s> = (&'s Configured, Result<Repository>);

/// Looks at all that is configured. `served` is the cluster whose server answered, and that server's major.
pub(super) fn look(
    found: &mut Findings,
    opened: &[&Configured],
    settings: &Settings,
    served: Option<(&Cluster, Major)>,
    session: &Session,
) {
    if all(settings).next().is_none() {
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
        pg_dump(found, needed(&settings.logical, served), session);
    }
    // Backups go to the first one.
    let first = settings.repositories.first();
    let Some(first) = first.filter(|first| opened.iter().any(|one| one.name == first.name)) else {
        return;
    };
    let tried = opened.iter().map(|one| (*one, session.open(one)));
    let tried: Vec<Tried<'_>> = tried.collect();
    for (content, is_cluster) in all(settings) {
        let Some((configured, repository)) = home(&content, &tried, settings, session) else {
            continue;
        };
        let place = Place::of(session, settings, configured);
        let look = |repository| look_at(repository, (&content, is_cluster), place, session);
        match repository.as_ref().map(look) {
            Ok(Ok(infos)) => infos
                .iter()
                .for_each(|info| newest(found, (&content, place), info, session)),
            Ok(Err(e)) => found.error(&title(&content), &e),
            Err(e) => found.error(&title(&content), e),
        }
    }
    let others = tried.iter().filter(|(one, _)| one.name != first.name);
    logs_elsewhere(found, others, settings, session);
}

/// The repository that has the newest backup of content, else the one in which backups are missed; none where that was not opened. A log of Redis
/// goes into the first one, where its backups have to be.
fn home<'t, 's>(
    content: &Content<'_>,
    tried: &'t [Tried<'s>],
    settings: &Settings,
    session: &Session,
) -> Option<&'t Tried<'s>> {
    let now = session.host.now();
    let rank = |repository: &Result<Repository>| {
        let scope = Scope::aux(content.kind, content.name).ok()?;
        let looked = scopes::look_at(repository.as_ref().ok()?, &scope, now).ok()?;
        (!looked.backups.is_empty()).then(|| looked.rank(now))
    };
    // The first of several that are as new.
    let holders = tried.iter().rev().filter(|_| content.kind != NAME);
    let ranked = holders.filter_map(|one| Some((rank(&one.1)?, one)));
    let newest = ranked.max_by_key(|(rank, _)| *rank).map(|(_, one)| one);
    newest.or_else(|| {
        let home = scopes::home(settings, content.kind)?;
        tried.iter().find(|(one, _)| one.name == home.name)
    })
}

/// All content, and whether it is a cluster of Redis, which has a scope for each shard.
fn all(settings: &Settings) -> impl Iterator<Item = (Content<'_>, bool)> {
    let clusters = settings.redis_clusters().map(|one| (one, true));
    settings.contents().map(|one| (one, false)).chain(clusters)
}

fn title(content: &Content<'_>) -> String {
    format!("{} {}", content.kind, content.name)
}

fn look_at(
    repository: &Repository,
    (content, is_cluster): (&Content<'_>, bool),
    place: Place<'_>,
    session: &Session,
) -> Result<Vec<ScopeInfo>> {
    let now = session.host.now();
    if is_cluster {
        return scopes::look_at_shards(repository, place, content, now);
    }
    let scope = Scope::aux(content.kind, content.name)?;
    let mut info = scopes::look_at(repository, &scope, now)?;
    info.judge_log(place, (repository, &scope), now)?;
    Ok(vec![info])
}

/// The log of Redis servers in the repositories besides the first.
fn logs_elsewhere<'t, 's: 't>(
    found: &mut Findings,
    others: impl Iterator<Item = &'t Tried<'s>>,
    settings: &Settings,
    session: &Session,
) {
    for (configured, repository) in others {
        // A repository that fails is a finding of its own.
        let Ok(repository) = repository else {
            continue;
        };
        let shown = format!(" in {}", configured.name);
        let place = Place::of(session, settings, configured);
        for (content, is_cluster) in all(settings).filter(|(one, _)| one.kind == NAME) {
            match look_at(repository, (&content, is_cluster), place, session) {
                Ok(infos) => infos
                    .iter()
                    .for_each(|info| log(found, info, &shown, session)),
                Err(e) => found.error(&format!("{} log{shown}", title(&content)), &e),
            }
        }
    }
}

/// How the log of a server stands, where it is received.
fn log(found: &mut Findings, info: &ScopeInfo, place: &str, session: &Session) {
    let name = info.scope.trim_start_matches("aux/").replace('/', " ");
    let title = format!("{name} log{place}");
    let troubles = info.problems.iter().filter(|one| one.name == "log");
    let mut troubles = troubles.peekable();
    if troubles.peek().is_none()
        && let Some(log) = &info.log
    {
        let now = session.host.now();
        let age = log.stored_time.and_then(|at| now.duration_since(at));
        match age {
            Some(age) => found.ok(&title, format!("stored up to {} ago", human::duration(age))),
            None if log.stored_time.is_some() => found.ok(&title, "stored up to now"),
            None => found.warn(
                &title,
                "nothing is stored",
                "no receiver has run: what is written between backups is in them alone",
                format!("pitr redis receive {}", name.trim_start_matches("redis ")),
            ),
        }
    }
    for trouble in troubles {
        let (value, next) = (&trouble.value, trouble.next.clone().unwrap_or_default());
        found.fail(&title, value, "moments are lost until that helps", next);
    }
}

fn newest(
    found: &mut Findings,
    (content, place): (&Content<'_>, Place<'_>),
    info: &ScopeInfo,
    session: &Session,
) {
    let name = info.scope.trim_start_matches("aux/").replace('/', " ");
    let now = session.host.now();
    let end = info.newest_end(now);
    log(found, info, "", session);
    for problem in info.problems.iter().filter(|one| one.name != "log") {
        found.fail(
            &name,
            &problem.value,
            "a check or a person has to look",
            problem.next.as_deref().unwrap_or("pitr verify"),
        );
    }
    let age = end.and_then(|end| now.duration_since(end));
    let value = age.map_or_else(
        || "no undamaged backup".to_owned(),
        |age| format!("newest backup {} old", human::duration(age)),
    );
    match scopes::newest_trouble(content, end, now) {
        Some(what) => found.fail(&name, value, what, place.next(content)),
        None => found.ok(&name, value),
    }
}

/// Returns the major that a program needs to dump the server; none where no section dumps it.
fn needed(logical: &[Logical], served: Option<(&Cluster, Major)>) -> Option<Major> {
    let (cluster, major) = served?;
    let is_dumped = |one: &Logical| one.cluster.as_deref() == Some(cluster.name.as_str());
    logical.iter().any(is_dumped).then_some(major)
}

/// Whether a program is there that dumps a server of the major; of any, where that is not known.
fn pg_dump(found: &mut Findings, needed: Option<Major>, session: &Session) {
    let folders = tool::folders(None, session.environment.get("PATH"));
    match Tool::find("pg_dump", needed.unwrap_or(Major::ALL[0]), &folders) {
        Ok(tool) => {
            let shown = format!("{}, {}", tool.version, tool.path.display());
            let shown = match needed {
                Some(_) => shown,
                None => format!("{shown}; whether the server needs a newer one is not known here"),
            };
            found.ok("pg_dump", shown);
        }
        Err(e) => found.error("pg_dump", &e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LogicalContent;

    #[test]
    fn pg_dump_is_looked_for_by_the_major_of_the_server_that_is_dumped() {
        let logical = |cluster: &str| Logical {
            name: "app".to_owned(),
            cluster: Some(cluster.to_owned()),
            databases: Vec::new(),
            jobs: 1,
            content: LogicalContent::Full,
            max_backup_age: None,
        };
        let cluster = Cluster::named("main".parse().unwrap());
        let served = Some((&cluster, Major::V17));
        let all = [logical("other"), logical("main")];
        assert_eq!(needed(&all, served), Some(Major::V17));
        assert_eq!(needed(&all[..1], served), None);
        assert_eq!(needed(&all, None), None);
    }
}
