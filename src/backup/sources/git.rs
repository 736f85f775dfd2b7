//! A mirror of a Git repository, kept in a cache: fetched, checked by `git fsck`, and stored as it lies there.
//!
//! A mirror follows its origin in everything, also in a disaster. So refs that went, or moved to where the old commit is no ancestor, keep
//! their old object under `refs/pitr/<time>/`. The refs from before a fetch are written down first: a run that was killed loses none.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{lock, make, of};
use crate::durable;
use crate::err;
use crate::error::{Code, Result};
use crate::host::Host;
use crate::program;

/// More than the refs of any repository.
const OUTPUT_LIMIT_BYTES: usize = 1 << 30;
/// Refs that a root lists; of more it has the number alone.
const LISTED: usize = 10_000;
/// The refs that hold what the origin no longer has.
const KEPT: &str = "refs/pitr/";
/// Variables that lead Git to another repository than the one that is named.
const LEADING: [&str; 6] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
];

type Refs = BTreeMap<String, String>;

/// A mirror that is up to date. Nobody else changes it meanwhile.
pub struct Mirror {
    /// The bare repository.
    pub path: PathBuf,
    /// Facts for the root.
    pub facts: Value,
    /// Refs whose old objects are kept.
    pub kept: Vec<Kept>,
    _lock: File,
}

/// A ref that lost commits at the origin.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Kept {
    /// The ref.
    pub name: String,
    /// The object that it had.
    pub object: String,
    /// Its object now; none of a ref that went.
    pub now: Option<String>,
    /// The ref that keeps the old object.
    pub kept_as: String,
    /// Whether the origin's HEAD leads to it.
    pub is_head: bool,
}

/// A repository in one file, proven by a clone from it.
pub struct Bundle {
    folder: tempfile::TempDir,
}

impl Bundle {
    /// The directory that has the file, and nothing else.
    pub fn directory(&self) -> PathBuf {
        self.folder.path().join("bundle")
    }
}

/// Brings the mirror of `url` in the directory `cache` up to date, and checks every object of it.
///
/// # Errors
/// `Locked` while another run has it; `SourceMissing` when Git fails; those of the system.
pub fn mirror(url: &str, cache: &Path, host: &Host) -> Result<Mirror> {
    let lock = lock(cache)?;
    let path = cache.join("mirror.git");
    let git = Git {
        directory: &path,
        host,
    };
    git.prepare()?;
    let note = cache.join("refs-before");
    let before = match std::fs::read_to_string(&note) {
        Ok(text) => listed(&text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let refs = git.refs()?;
            let text: String = refs.iter().map(|(n, o)| format!("{o} {n}\n")).collect();
            durable::replace(&note, text.as_bytes(), host.random()).map_err(|e| of(&note, e))?;
            refs
        }
        Err(e) => return Err(of(&note, e)),
    };
    host.progress.phase("fetch", None);
    let all = format!("^{KEPT}*");
    git.run(&[
        "fetch",
        "--quiet",
        "--prune",
        "--force",
        "--no-write-fetch-head",
        "--",
        url,
        "+refs/*:refs/*",
        &all,
    ])?;
    let head = git.follow_head(url)?;
    let refs = git.refs()?;
    let kept = git.keep(&before, &refs, head.as_deref())?;
    host.progress.phase("check every object", None);
    git.run(&[
        "fsck",
        "--full",
        "--strict",
        "--no-dangling",
        "--no-progress",
    ])
    .map_err(|e| {
        e.context("check the mirror").hint(format!(
            "Nothing was stored.\nLook at it: git --git-dir={} fsck --full --strict",
            path.display()
        ))
    })?;
    durable::remove(&note).map_err(|e| of(&note, e))?;
    let shown: BTreeMap<_, _> = refs.iter().take(LISTED).collect();
    let facts = json!({
        "kind": "git",
        "url": url,
        "head": head,
        "ref_count": refs.len(),
        "refs": shown,
        "kept": kept,
    });
    Ok(Mirror {
        path,
        facts,
        kept,
        _lock: lock,
    })
}

/// Writes a mirror into one file, clones from that, and compares.
///
/// # Errors
/// `SourceMissing` when the mirror has no commit, when Git fails, and when the clone is another one.
pub fn bundle(mirror: &Mirror, name: &str, host: &Host) -> Result<Bundle> {
    let folder = tempfile::Builder::new()
        .prefix("pitr-git-")
        .permissions(PermissionsExt::from_mode(0o700))
        .tempdir_in(&host.scratch)
        .map_err(|e| of(&host.scratch, e))?;
    let bundle = Bundle { folder };
    make(&bundle.directory())?;
    let file = bundle.directory().join(format!("{name}.bundle"));
    let file_name = file.to_string_lossy().into_owned();
    let git = Git {
        directory: &mirror.path,
        host,
    };
    let refs = git.all_refs()?;
    if refs.is_empty() {
        return Err(err!(
            SourceMissing,
            "the repository has no commit, and Git makes no bundle of it"
        )
        .hint("Nothing was stored.\nLeave out bundle = true until it has one."));
    }
    git.run(&["bundle", "create", "--quiet", &file_name, "--all"])?;
    // "git bundle verify" finds nothing wrong with a file that was cut.
    let clone = bundle.folder.path().join("clone.git");
    let cloned = Git {
        directory: &clone,
        host,
    };
    cloned.prepare()?;
    cloned.run(&[
        "fetch",
        "--quiet",
        "--no-write-fetch-head",
        "--",
        &file_name,
        "+refs/*:refs/*",
    ])?;
    cloned.run(&[
        "fsck",
        "--full",
        "--strict",
        "--no-dangling",
        "--no-progress",
    ])?;
    if cloned.all_refs()? != refs {
        return Err(err!(
            SourceMissing,
            "a clone from the bundle has other refs than the mirror"
        )
        .hint("Nothing was stored."));
    }
    std::fs::remove_dir_all(&clone).map_err(|e| of(&clone, e))?;
    Ok(bundle)
}

/// Lines of object and name. Refs of earlier runs are not the origin's.
fn listed(text: &str) -> Refs {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let own = lines.filter(|(_, name)| !name.starts_with(KEPT));
    own.map(|(object, name)| (name.to_owned(), object.to_owned()))
        .collect()
}

struct Git<'g> {
    directory: &'g Path,
    host: &'g Host,
}

impl Git<'_> {
    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = program::command(&["git".to_owned()])?;
        for name in LEADING {
            command.env_remove(name);
        }
        // Nobody is there to answer.
        command.env("GIT_TERMINAL_PROMPT", "0").env("LC_ALL", "C");
        // Refs that replace objects would make history look other than it is.
        command.env("GIT_NO_REPLACE_OBJECTS", "1");
        if std::env::var_os("SSH_ASKPASS_REQUIRE").is_none() {
            command.env("SSH_ASKPASS_REQUIRE", "force");
        }
        let directory = ["--git-dir=".as_ref(), self.directory.as_os_str()];
        command.arg(directory.join("".as_ref())).args(arguments);
        Ok(command)
    }

    fn read(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(arguments)?;
        let mut tick = || self.host.check_stop();
        let printed = program::output(&mut command, OUTPUT_LIMIT_BYTES, &mut tick)?;
        Ok(String::from_utf8_lossy(&printed).into_owned())
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        self.read(arguments).map(drop)
    }

    /// Whether Git answers with success; a failure is an answer, too.
    fn holds(&self, arguments: &[&str]) -> Result<bool> {
        match self.read(arguments) {
            Ok(printed) => Ok(!printed.is_empty()),
            Err(e) if e.code() == Code::SourceMissing => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Makes the bare repository, where it is not there. Objects that nothing leads to stay: Git's own cleaning would rewrite packs, too.
    fn prepare(&self) -> Result<()> {
        self.run(&["init", "--quiet", "--bare", "--template="])?;
        for (key, value) in [("gc.auto", "0"), ("maintenance.auto", "false")] {
            self.run(&["config", key, value])?;
        }
        Ok(())
    }

    fn all_refs(&self) -> Result<String> {
        self.read(&["for-each-ref", "--format=%(objectname) %(refname)"])
    }

    fn refs(&self) -> Result<Refs> {
        Ok(listed(&self.all_refs()?))
    }

    /// Makes HEAD that of the origin; returns the ref that it leads to.
    fn follow_head(&self, url: &str) -> Result<Option<String>> {
        let answer = self.read(&["ls-remote", "--symref", "--", url, "HEAD"])?;
        let mut lines = answer
            .lines()
            .filter_map(|line| line.strip_suffix("\tHEAD"));
        let Some(first) = lines.next() else {
            return Ok(None);
        };
        if let Some(name) = first.strip_prefix("ref: ") {
            self.run(&["symbolic-ref", "HEAD", name])?;
            return Ok(Some(name.to_owned()));
        }
        self.run(&["update-ref", "--no-deref", "HEAD", first])?;
        Ok(None)
    }

    /// Keeps the old objects of refs that lost something.
    fn keep(&self, before: &Refs, after: &Refs, head: Option<&str>) -> Result<Vec<Kept>> {
        let time = self.host.now().to_string().replace([':', '-'], "");
        let time: String = time.chars().filter(char::is_ascii_alphanumeric).collect();
        let mut kept = Vec::new();
        for (name, object) in before {
            let now = after.get(name);
            if now == Some(object) || self.is_reached(object, now)? {
                continue;
            }
            let below = name.strip_prefix("refs/").unwrap_or(name);
            let kept_as = format!("{KEPT}{time}/{below}");
            self.run(&["update-ref", &kept_as, object])?;
            kept.push(Kept {
                name: name.clone(),
                object: object.clone(),
                now: now.cloned(),
                kept_as,
                is_head: head == Some(name.as_str()),
            });
        }
        Ok(kept)
    }

    /// Whether a commit is an ancestor of `now`, or of any other ref. Tags that are objects are reached by nothing else.
    fn is_reached(&self, object: &str, now: Option<&String>) -> Result<bool> {
        if self.read(&["cat-file", "-t", object])?.trim() != "commit" {
            return Ok(false);
        }
        if let Some(now) = now {
            let base = self.read(&["merge-base", object, now]);
            if base.is_ok_and(|base| base.trim() == object) {
                return Ok(true);
            }
        }
        self.holds(&["for-each-ref", "--count=1", "--contains", object])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refs_of_earlier_runs_are_not_the_origins() {
        let text =
            "aa refs/heads/main\nbb refs/pitr/20261123T000000Z/heads/main\ncc refs/tags/v 1\n";
        let refs = listed(text);
        assert_eq!(refs.len(), 2);
        assert_eq!(refs["refs/heads/main"], "aa");
        assert_eq!(refs["refs/tags/v 1"], "cc");
    }
}
