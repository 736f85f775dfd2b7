//! The source of a set of files, made ready to be read: a directory as it stands, a mirror that is fetched, objects that a program printed.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::session::Session;
use crate::backup::files::{Files, Set, selection};
use crate::backup::sources;
use crate::backup::sources::git::{self, Bundle, Mirror};
use crate::backup::sources::kubernetes::Cluster;
use crate::backup::sources::stream::Stream;
use crate::backup::sources::terraform;
use crate::config::{self, Settings, Source};
use crate::err;
use crate::error::{Code, Result};
use crate::tree::selection::Selection;
use crate::tree::walk::Taken;

const MACHINE_ID: &str = "/etc/machine-id";

/// A source that can be read.
pub struct Ready {
    /// The set of files.
    pub set: Box<dyn Set>,
    /// Things that the operator should hear of.
    pub warnings: Vec<String>,
    /// Things that the operator may want to know.
    pub notes: Vec<String>,
    /// The mirror and the bundle, which must outlive the backup.
    held: (Option<Mirror>, Option<Bundle>),
}

impl Ready {
    fn new(set: impl Set + 'static) -> Ready {
        Ready {
            set: Box::new(set),
            warnings: Vec::new(),
            notes: Vec::new(),
            held: (None, None),
        }
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
    (is_sealed, readers): (bool, usize),
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
            facts: None,
            taken: Taken::default(),
        })),
        Source::Command => Ok(Ready::new(Stream {
            identity: identity(machine(files).map(|id| format!("command:{id}")))?,
            command: files.command.clone(),
            check: files.check.clone(),
            file_name: files
                .file_name
                .clone()
                .unwrap_or_else(|| files.name.clone()),
            taken: Taken::default(),
        })),
        Source::Git(url) => {
            let identity = identity(Ok(format!("git:{url}")))?;
            mirrored(session, files, url, (identity, readers))
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
    let mirror = explained("git", git::mirror(url, &place, host))?;
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
        facts: Some(mirror.facts.clone()),
        taken: Taken::default(),
    };
    Ok(Ready {
        set: Box::new(set),
        warnings,
        notes,
        held: (Some(mirror), bundle),
    })
}

/// Requires that no repository lies in the source: each backup would store the ones before.
///
/// # Errors
/// `Refused`; `Config` for a pattern without a meaning.
pub fn check_places(settings: &Settings, files: &config::Files) -> Result<()> {
    let Source::Directory(directory) = &files.source else {
        return Ok(());
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
        let above = inside
            .ancestors()
            .filter(|path| !path.as_os_str().is_empty());
        let is_excluded = |path: &Path| {
            selection
                .excludes(path.as_os_str().as_bytes(), true)
                .is_some()
        };
        if !above.into_iter().any(is_excluded) {
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
    let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    match id.len() == 32 && id.bytes().all(is_digit) {
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
