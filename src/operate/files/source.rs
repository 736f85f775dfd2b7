//! The source of a set of files, made ready to be read: a directory as it stands, a mirror that is fetched, objects that a program printed.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::bucket;
use crate::backup::files::{Files, Set, Watched, selection};
use crate::backup::sources;
use crate::backup::sources::bucket::{Bucket, Counts};
use crate::backup::sources::docker::{self, Engine, Quiet};
use crate::backup::sources::git::{self, Bundle, LargeFiles, Mirror};
use crate::backup::sources::kubernetes::Cluster;
use crate::backup::sources::stream::Stream;
use crate::backup::sources::terraform;
use crate::config::{self, Location, Settings, Source};
use crate::err;
use crate::error::{Code, Result};
use crate::fault;
use crate::operate::session::Session;
use crate::text::is_hex;
use crate::tree::selection::Selection;
use crate::tree::walk::Taken;

const MACHINE_ID: &str = "/etc/machine-id";

/// A source that can be read.
pub struct Ready {
    pub set: Box<dyn Set>,
    /// Things that the operator should hear of.
    pub warnings: Vec<String>,
    /// Things that the operator may want to know.
    pub notes: Vec<String>,
    /// The mirror and the bundle, which must outlive the backup.
    held: (Option<Mirror>, Option<Bundle>),
    /// Containers at rest, and the lock of their name, which is let go after them.
    quiet: Quiet,
    _alone: Option<File>,
}

impl Ready {
    fn new(set: impl Set + 'static) -> Ready {
        Ready {
            set: Box::new(set),
            warnings: Vec::new(),
            notes: Vec::new(),
            held: (None, None),
            quiet: Quiet::nothing(),
            _alone: None,
        }
    }

    /// Lets what was at rest go on, whatever became of the backup.
    ///
    /// # Errors
    /// `Partial` when a container does not run.
    pub fn end_rest(&mut self) -> Result<()> {
        std::mem::replace(&mut self.quiet, Quiet::nothing()).end()
    }

    /// Ends the report of what the source lost, once a root has it.
    pub fn stored(&mut self) {
        if let (Some(mirror), _) = &self.held
            && let Err(e) = mirror.forget_kept()
        {
            self.notes
                .push(format!("the next run reports the same again: {e}"));
        }
    }
}

/// Makes a source ready. `root` is the directory to read instead of the configured one.
///
/// # Errors
/// `Config` for a pattern without a meaning and a host without an identity; `Refused` for secrets without encryption; those of the source.
pub fn make_ready(
    session: &Session,
    files: &config::Files,
    root: Option<PathBuf>,
    (is_sealed, readers, watched): (bool, usize, Option<Watched>),
) -> Result<Ready> {
    let host = &session.host;
    let identity = |own: Result<String>| match &files.identity {
        Some(configured) => Ok(configured.clone()),
        None => own,
    };
    match &files.source {
        Source::Directory(directory) => Ok(Ready::new(Files {
            root: root.unwrap_or_else(|| directory.clone()),
            base: directory.to_str().map(str::to_owned),
            identity: identity(machine(files))?,
            selection: selection(files)?,
            readers,
            is_lasting: true,
            watched,
            facts: None,
            taken: Taken::default(),
        })),
        Source::Command => Ok(Ready::new(Stream {
            identity: identity(machine(files).map(|id| format!("command:{id}")))?,
            command: files.command.clone(),
            check: files.check.clone(),
            file_name: files.file_name.as_ref().unwrap_or(&files.name).clone(),
            taken: Taken::default(),
        })),
        Source::Git(url) => {
            let identity = identity(Ok(format!("git:{url}")))?;
            mirrored(session, files, url, (identity, readers))
        }
        Source::Bucket { .. } => {
            let place = bucket::source(session, files)?;
            let endpoint = files.s3.endpoint.clone();
            let server = endpoint.as_ref().map(|server| format!(" at {server}"));
            let own = place.contents.location().to_owned() + &server.unwrap_or_default();
            Ok(Ready::new(Bucket {
                contents: place.contents,
                endpoint,
                identity: identity(Ok(own))?,
                selection: selection(files)?,
                readers,
                pace: place.pace,
                counts: Counts::default(),
                taken: Taken::default(),
            }))
        }
        Source::Docker(which) => {
            let engine = Engine { host };
            let own = explained("docker", engine.id())?;
            let identity = identity(Ok(format!("docker:{own}")))?;
            volumes(session, files, (&engine, which), (identity, readers))
        }
        Source::Kubernetes => {
            require_sealed(is_sealed || files.without_secrets, files, "Secrets of the cluster")
                .map_err(|e| e.hint(format!(
                    "Nothing was stored.\nEncrypt the repository, or leave them out: secrets = false in [files.{}].", files.name
                )))?;
            let cluster = Cluster {
                context: files.context.as_deref(),
                with_secrets: !files.without_secrets,
                host,
            };
            let mut objects = explained("kubectl", cluster.read())?;
            objects.identity = identity(Ok(objects.identity))?;
            Ok(Ready::new(objects))
        }
        Source::Terraform(directory) => {
            require_sealed(is_sealed, files, "the state, which holds passwords,").map_err(|e| {
                e.hint("Nothing was stored.\nEncrypt the repository: pitr repo keygen, then init.")
            })?;
            let program = files.program.as_deref().unwrap_or("terraform");
            let mut objects = explained(program, terraform::pull(program, directory, host))?;
            objects.identity = identity(Ok(objects.identity))?;
            Ok(Ready::new(objects))
        }
    }
}

/// Names what was not stored, where a program failed.
///
/// # Errors
/// Those of `result`.
pub fn explained<T>(program: &str, result: Result<T>) -> Result<T> {
    result.map_err(|e| match (e.code(), e.hint_text()) {
        (Code::SourceMissing, None) => e.hint(format!(
            "Nothing was stored.\nRun {program} by hand as this user."
        )),
        _ => e,
    })
}

fn require_sealed(is_so: bool, files: &config::Files, what: &str) -> Result<()> {
    match is_so {
        true => Ok(()),
        false => Err(err!(
            Refused,
            "\"{}\" would store {what} in a repository that is not encrypted",
            files.name
        )),
    }
}

/// The directory of one name in this user's own cache: that of a cluster may belong to the server's user.
///
/// # Errors
/// `Config` where there is no cache; `Refused` where others may change it.
pub fn cache(session: &Session, use_of_it: &str, name: &str) -> Result<PathBuf> {
    let cache = session.environment.cache_dir().ok_or_else(|| {
        err!(Config, "there is no directory for caches of \"{name}\"")
            .hint("Nothing was stored.\nSet HOME or XDG_CACHE_HOME.")
    })?;
    Ok(sources::trusted(&cache)?.join(use_of_it).join(name))
}

fn mirrored(
    session: &Session,
    files: &config::Files,
    url: &str,
    (identity, readers): (String, usize),
) -> Result<Ready> {
    let host = &session.host;
    let place = cache(session, "git", &files.name)?;
    let large = LargeFiles {
        are_wanted: files.lfs,
        have_room: !files.bundle,
    };
    let mirror = explained("git", git::mirror(url, &place, large, host))?;
    let bundle = match files.bundle {
        true => Some(explained("git", git::bundle(&mirror, &files.name, host))?),
        false => None,
    };
    let (mut warnings, mut notes) = (mirror.warnings.clone(), mirror.notes.clone());
    for kept in &mirror.kept {
        let how = match kept.now {
            Some(_) => "was rewritten",
            None => "is gone",
        };
        let text = format!(
            "\"{}\" {how} at the origin: its old commits are kept as \"{}\"",
            kept.name, kept.kept_as
        );
        match kept.is_head {
            true => warnings.push(text),
            false => notes.push(text),
        }
    }
    let root = bundle.as_ref().map(Bundle::directory);
    let set = Files {
        root: root.unwrap_or_else(|| mirror.path.clone()),
        base: None,
        identity,
        selection: Selection::all()?,
        readers,
        is_lasting: bundle.is_none(),
        watched: None,
        facts: Some(mirror.facts.clone()),
        taken: Taken::default(),
    };
    Ok(Ready {
        warnings,
        notes,
        held: (Some(mirror), bundle),
        ..Ready::new(set)
    })
}

/// Volumes of Docker, with the containers that use them at rest.
fn volumes(
    session: &Session,
    files: &config::Files,
    (engine, which): (&Engine<'_>, &str),
    (identity, readers): (String, usize),
) -> Result<Ready> {
    let place = cache(session, "docker", &files.name)?;
    let alone = sources::lock(&place)?;
    let mut notes = Vec::new();
    match explained("docker", engine.repair(&place))? {
        0 => {}
        count => notes.push(format!(
            "an earlier run was killed: {count} containers that it had brought to rest run again"
        )),
    }
    let volumes = explained("docker", engine.volumes(which))?;
    let (root, mut patterns) = docker::root(&volumes)?;
    patterns.extend(files.exclude.iter().cloned());
    let mut selection = Selection::new(&patterns)?;
    selection.markers.clone_from(&files.exclude_if_present);
    selection.caches = files.exclude_caches;
    selection.larger_than_bytes = files.exclude_larger_than_bytes;
    let quiet = match files.quiesce {
        None => Quiet::nothing(),
        Some(how) => explained("docker", engine.quiesce(&volumes, how, &place))?,
    };
    fault::point("files-at-rest");
    let names: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    let facts = json!({
        "kind": "docker-volume",
        "volumes": names,
        "quiesced_count": quiet.count(),
    });
    let set = Files {
        root,
        base: None,
        identity,
        selection,
        readers,
        is_lasting: true,
        watched: None,
        facts: Some(facts),
        taken: Taken::default(),
    };
    Ok(Ready {
        notes,
        quiet,
        _alone: Some(alone),
        ..Ready::new(set)
    })
}

/// Requires that no repository lies in the source: each backup would store the ones before.
///
/// # Errors
/// `Refused`; `Config` for a pattern without a meaning.
pub fn check_places(settings: &Settings, files: &config::Files) -> Result<()> {
    let directory = match &files.source {
        Source::Directory(directory) => directory,
        Source::Bucket { bucket, prefix } => {
            return check_buckets(settings, files, (bucket, prefix));
        }
        _ => return Ok(()),
    };
    let selection = selection(files)?;
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let source = real(directory);
    for repository in &settings.repositories {
        let Some(place) = repository.location.directory().map(real) else {
            continue;
        };
        let Ok(inside) = place.strip_prefix(&source) else {
            continue;
        };
        let mut above = inside
            .ancestors()
            .filter(|path| !path.as_os_str().is_empty());
        let excluded = |path: &Path| selection.excludes(path.as_os_str().as_bytes(), true);
        if !above.any(|path| excluded(path).is_some()) {
            return Err(err!(
                Refused,
                "repository \"{}\" lies in \"{}\", which is backed up: each backup would store the ones before",
                repository.name,
                directory.display()
            )
            .hint(format!(
                "Nothing was stored.\nLeave it out: exclude = [\"/{}/\"] in [files.{}].",
                inside.display(),
                files.name
            )));
        }
    }
    Ok(())
}

/// As [`check_places`], of a bucket.
fn check_buckets(
    settings: &Settings,
    files: &config::Files,
    (bucket, prefix): (&str, &str),
) -> Result<()> {
    let selection = selection(files)?;
    for repository in &settings.repositories {
        let Location::S3 {
            bucket: other,
            prefix: below,
        } = &repository.location
        else {
            continue;
        };
        let is_one = other == bucket && repository.s3.endpoint == files.s3.endpoint;
        if !is_one || !bucket::is_within(below, prefix) {
            continue;
        }
        let inside = below.get(prefix.len()..).unwrap_or_default();
        let inside = inside.trim_start_matches('/');
        let above = inside.match_indices('/').map(|(at, _)| at);
        let is_excluded = |end: usize| {
            let path = inside.get(..end).unwrap_or_default();
            selection.excludes(path.as_bytes(), true).is_some()
        };
        if inside.is_empty() || !above.chain([inside.len()]).any(is_excluded) {
            return Err(err!(
                Refused,
                "repository \"{}\" lies in the bucket that is backed up: each backup would store the ones before",
                repository.name
            )
            .hint(format!(
                "Nothing was stored.\nLeave it out: exclude = [\"/{inside}/\"] in [files.{}].",
                files.name
            )));
        }
    }
    Ok(())
}

fn machine(files: &config::Files) -> Result<String> {
    machine_id("files", &files.name)
}

/// The identity of this machine, for content of this kind and name.
///
/// # Errors
/// `Config` where the machine has none.
pub fn machine_id(kind: &str, name: &str) -> Result<String> {
    let id = std::fs::read_to_string(MACHINE_ID).unwrap_or_default();
    let id = id.trim_end_matches('\n');
    match is_hex(id, 32) {
        true => Ok(id.to_owned()),
        false => Err(err!(
            Config,
            "{MACHINE_ID} does not tell which machine this is, so two hosts could mix their files under the name \"{name}\""
        )
        .hint(format!(
            "Nothing was stored.\nGive the source a name of its own: identity = \"…\" in [{kind}.{name}]."
        ))),
    }
}
