//! The subject of a report: a cluster, or other content; and the subjects that a command works on.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::failures::Failures;
use super::session::Session;
use crate::config::Settings;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::repo::repository::{Registration, Repository};
use crate::repo::scope::Scope;

/// A cluster, or other content.
pub enum Of {
    /// A cluster.
    Cluster(Registration),
    /// An aux scope.
    Scope(Scope),
}

impl Of {
    /// Its name for people.
    pub fn title(&self) -> String {
        match self {
            Of::Cluster(r) => format!("cluster {} ({})", r.name, r.system_identifier),
            Of::Scope(scope) => scope.prefix(),
        }
    }

    /// The cluster's name, for the next command line.
    pub fn cluster(&self) -> Option<&str> {
        match self {
            Of::Cluster(r) => Some(&r.name),
            Of::Scope(_) => None,
        }
    }

    /// Puts its name in front of what JSON says of it.
    pub fn named(&self, value: Value) -> Value {
        let name = match self {
            Of::Cluster(r) => json!({
                "cluster": r.name,
                "system_identifier": r.system_identifier.to_string(),
            }),
            Of::Scope(scope) => json!({ "scope": scope.prefix() }),
        };
        let mut all = Map::new();
        for part in [name, value] {
            if let Value::Object(members) = part {
                all.extend(members);
            }
        }
        Value::Object(all)
    }
}

/// Reports as JSON has them: those of clusters under `clusters`, and those of other content, where there is some, under `scopes`.
pub fn split<T>(
    done: &[T],
    of: impl Fn(&T) -> &Of,
    shown: impl Fn(&T) -> Value,
) -> Map<String, Value> {
    let is_cluster = |one: &&T| matches!(of(one), Of::Cluster(_));
    let (clusters, scopes): (Vec<&T>, Vec<&T>) = done.iter().partition(is_cluster);
    let all = |found: Vec<&T>| Value::Array(found.into_iter().map(&shown).collect());
    let has_scopes = !scopes.is_empty();
    let mut members = Map::new();
    members.insert("clusters".into(), all(clusters));
    if has_scopes {
        members.insert("scopes".into(), all(scopes));
    }
    members
}

/// The aux scopes that a command works on that looks at everything: none where a cluster is named.
///
/// # Errors
/// Errors of the store.
pub fn scopes(session: &Session, repository: &Repository) -> Result<Vec<Scope>> {
    match looks_at_all(session) {
        true => repository.aux_scopes(),
        false => Ok(Vec::new()),
    }
}

/// Whether no cluster is named.
pub fn looks_at_all(session: &Session) -> bool {
    session.flags.cluster.is_none() && session.system_identifier.is_none()
}

/// The clusters that a command works on which takes one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Their names; none where neither command line nor configuration has one.
    names: Vec<String>,
    /// Several of a repository would be a guess.
    is_one: bool,
    /// Those of several that a repository holds, as far as repositories were asked.
    held: RefCell<BTreeSet<String>>,
}

/// The clusters of one repository that a command works on.
#[derive(Debug, PartialEq, Eq)]
pub struct Clusters {
    /// Their names; `None` is the only one of the repository.
    names: Vec<Option<String>>,
    /// They are those of several: one that fails is no failure of the repository.
    are_several: bool,
}

impl Wanted {
    /// The one that the command line names, else the only one of the configuration, else the only one of a repository.
    ///
    /// # Errors
    /// Those of [`Settings::cluster_if_named`].
    pub fn one(settings: &Settings) -> Result<Wanted> {
        let named = settings.cluster_if_named()?;
        Ok(Wanted {
            names: named.iter().map(|c| c.name.to_string()).collect(),
            is_one: true,
            held: RefCell::default(),
        })
    }

    /// The one that the command line names, else all of the configuration; where it has none, all of each repository.
    ///
    /// # Errors
    /// Those of [`Settings::cluster_if_named`], also where a system identifier alone is named.
    pub fn all(session: &Session, settings: &Settings) -> Result<Wanted> {
        if !looks_at_all(session) {
            return Wanted::one(settings);
        }
        let names = settings.clusters.iter().map(|c| c.name.to_string());
        Ok(Wanted {
            names: names.collect(),
            is_one: false,
            held: RefCell::default(),
        })
    }

    /// The name, where one alone is meant.
    pub fn only(&self) -> Option<&str> {
        match self.names.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }

    /// Whether a cluster of this name is meant.
    pub fn has(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|own| own == name)
    }

    /// The names; where there are none, those of a repository.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn names(&self, repository: &Repository) -> Result<Vec<String>> {
        match self.names.is_empty() {
            true => repository.cluster_names(),
            false => Ok(self.names.clone()),
        }
    }

    /// The clusters of a repository. There are none where other content is all that it holds, and none of several that it does not hold.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn clusters_beside(&self, scopes: &[Scope], repository: &Repository) -> Result<Clusters> {
        Ok(self.among(repository.cluster_names()?, !scopes.is_empty()))
    }

    /// As [`clusters_beside`](Wanted::clusters_beside), for a command that deletes or moves. Several clusters that the configuration does not name have their
    /// rules on other hosts: other content is then all, and a warning names them.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn ruled_beside(
        &self,
        session: &Session,
        scopes: &[Scope],
        (name, repository): (&str, &Repository),
    ) -> Result<Clusters> {
        let (ruled, foreign) = self.ruled(repository.cluster_names()?, !scopes.is_empty());
        if !foreign.is_empty() {
            session.warn(&format!(
                "clusters of repository \"{name}\" are left out, for the configuration has no section of them: {}. --cluster NAME takes one",
                foreign.join(", ")
            ));
        }
        Ok(ruled)
    }

    /// The clusters of those that a repository knows, and those that are left out.
    fn ruled(&self, known: Vec<String>, has_content: bool) -> (Clusters, Vec<String>) {
        let is_guess = self.names.is_empty() && known.len() > 1;
        match (is_guess, has_content) {
            (false, _) => (self.among(known, has_content), Vec::new()),
            (true, true) => (Clusters::of(Vec::new(), false), known),
            // A name is asked for.
            (true, false) => (Clusters::of(vec![None], false), Vec::new()),
        }
    }

    fn among(&self, known: Vec<String>, has_content: bool) -> Clusters {
        let is_known = |name: &&String| known.contains(name);
        if self.names.len() > 1 {
            let held: Vec<&String> = self.names.iter().filter(is_known).collect();
            self.held.borrow_mut().extend(held.iter().copied().cloned());
            return Clusters::of(held.into_iter().cloned().map(Some).collect(), true);
        }
        match (self.names.first(), known.len()) {
            (_, 0) if has_content => Clusters::of(Vec::new(), false),
            (Some(name), _) => Clusters::of(vec![Some(name.clone())], false),
            (None, 2..) if !self.is_one => {
                Clusters::of(known.into_iter().map(Some).collect(), true)
            }
            (None, _) => Clusters::of(vec![None], false),
        }
    }

    /// Warns of each of several clusters that no repository holds. Nobody knows that where not all of them were read.
    ///
    /// # Errors
    /// `NotFound` where there was nothing else.
    pub fn check_held(
        &self,
        session: &Session,
        are_all_read: bool,
        is_nothing_done: bool,
    ) -> Result<()> {
        let held = self.held.borrow();
        let lost: Vec<&String> = self.names.iter().filter(|n| !held.contains(*n)).collect();
        if self.names.len() < 2 || lost.is_empty() {
            return Ok(());
        }
        if held.is_empty() && is_nothing_done {
            let names = self.names.join(", ");
            return Err(err!(NotFound, "none of these clusters was found: {names}")
                .hint("Nothing was done. Register each on its host: pitr init --cluster NAME"));
        }
        if are_all_read && session.flags.repository.is_none() {
            for name in lost {
                session.warn(&format!(
                    "cluster \"{name}\" is in no repository: pitr init --cluster {name} registers it"
                ));
            }
        }
        Ok(())
    }
}

impl Clusters {
    fn of(names: Vec<Option<String>>, are_several: bool) -> Clusters {
        Clusters { names, are_several }
    }
}

/// Does something with each cluster. One of several that fails does not keep the others from it; `verb` and `repository` are those of the failure.
///
/// # Errors
/// That of an only one; that of a repository which does not answer; the operator's wish to stop.
pub fn in_each_cluster(
    clusters: &Clusters,
    (verb, repository): (&str, &str),
    failures: &mut Failures,
    mut one: impl FnMut(Option<&str>) -> Result<()>,
) -> Result<()> {
    for cluster in &clusters.names {
        let Err(e) = one(cluster.as_deref()) else {
            continue;
        };
        // One that is busy is no reason to leave the others.
        match cluster {
            Some(name) if clusters.are_several && !ends_all(&e) => {
                let doing = format!("{verb} cluster \"{name}\" in repository \"{repository}\"");
                failures.add(e, doing);
                failures.clusters.insert(name.clone());
            }
            _ => return Err(e),
        }
    }
    Ok(())
}

/// Whether an error ends the work on all of a repository: it does not answer, or the operator wants no more.
pub fn ends_all(e: &Error) -> bool {
    matches!(
        e.code(),
        Code::Unreachable | Code::Deadline | Code::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(names: &[&str]) -> Wanted {
        Wanted {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            is_one: false,
            held: RefCell::default(),
        }
    }

    fn texts(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn several(names: &[&str]) -> Clusters {
        Clusters::of(texts(names).into_iter().map(Some).collect(), true)
    }

    #[test]
    fn x46_one_of_several_clusters_that_fails_does_not_keep_the_others() {
        let run = |clusters: &Clusters, code: Code| {
            let (mut failures, mut done) = (Failures::default(), 0);
            let ran = in_each_cluster(clusters, ("expire", "local"), &mut failures, |name| {
                if name == Some("a") {
                    return Err(Error::new(code, "it fails"));
                }
                done += 1;
                Ok(())
            });
            let failed = failures.clusters.contains("a");
            assert_eq!(failed, ran.is_ok());
            (ran.is_ok(), failures.texts().collect::<Vec<_>>(), done)
        };
        let told = "expire cluster \"a\" in repository \"local\": it fails".to_owned();
        let all = several(&["a", "b", "c"]);
        assert_eq!(run(&all, Code::Damaged), (true, vec![told.clone()], 2));
        // One that is busy keeps no other, either.
        assert_eq!(run(&all, Code::Locked), (true, vec![told.clone()], 2));
        // A store that does not answer is not asked again, and an only cluster's error is the repository's.
        assert_eq!(run(&all, Code::Unreachable), (false, Vec::new(), 0));
        let only = Clusters::of(vec![Some("a".to_owned())], false);
        assert_eq!(run(&only, Code::Damaged), (false, Vec::new(), 0));
        // The only one of several that this repository holds keeps other content no more than another does.
        assert_eq!(run(&several(&["a"]), Code::Damaged), (true, vec![told], 0));
    }

    #[test]
    fn x46_a_host_that_configures_no_cluster_deletes_backups_of_none_of_several() {
        let known = || texts(&["main", "other"]);
        let of_host = wanted(&[]);
        let none = Clusters::of(Vec::new(), false);
        assert_eq!(of_host.ruled(known(), true), (none, known()));
        // Without other content a name is asked for, as the only one is taken.
        let unnamed = || (Clusters::of(vec![None], false), Vec::new());
        assert_eq!(of_host.ruled(known(), false), unnamed());
        assert_eq!(of_host.ruled(texts(&["main"]), true), unnamed());
        // A verb that only reads goes through all.
        assert_eq!(of_host.among(known(), true), several(&["main", "other"]));
    }

    #[test]
    fn x46_one_of_several_clusters_that_a_repository_lacks_is_no_failure() {
        let two = wanted(&["main", "other"]);
        for (known, has_content) in [(texts(&["main"]), false), (texts(&["main", "b"]), true)] {
            assert_eq!(two.among(known, has_content), several(&["main"]));
        }
        assert_eq!(two.among(Vec::new(), false), several(&[]));
        assert_eq!(*two.held.borrow(), BTreeSet::from(["main".to_owned()]));
        // An only one is looked for.
        let one = wanted(&["other"]);
        let named = Clusters::of(vec![Some("other".to_owned())], false);
        assert_eq!(one.ruled(texts(&["main"]), true), (named, Vec::new()));
    }
}
