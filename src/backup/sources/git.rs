//! A mirror of a Git repository, kept in a cache: fetched, checked by `git fsck`, and stored as it lies there.
//!
//! A mirror follows its origin in everything, also in a disaster. So refs that went, or moved to where the old commit is no ancestor, keep
//! their old object under `refs/pitr/<time>/`. The refs from before a fetch are written down first: a run that was killed loses none.
//! A list names what was kept until a root has it: a run that failed later leaves the report to the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{lock, make, of};
use crate::durable;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::{Host, private_folder};
use crate::program::{self, Running};

/// More than the refs of any repository.
const OUTPUT_LIMIT_BYTES: usize = 1 << 30;
/// Refs that a root lists; of more it has the number alone.
const LISTED: usize = 10_000;
/// The refs that hold what the origin no longer has.
const KEPT: &str = "refs/pitr/";
/// The ref of an origin's HEAD that leads to no ref.
const DETACHED: &str = "refs/pitr-head";
/// Refs that a forge makes anew by itself: trials of a merge.
const TRIALS: [(&str, &str); 2] = [("refs/pull/", "/merge"), ("refs/merge-requests/", "/merge")];
/// Refspecs of what is fetched; [`is_left_out`] says the same.
const FETCHED: [&str; 5] = [
    "+refs/*:refs/*",
    "^refs/pitr/*",
    "^refs/pitr-head",
    "^refs/pull/*/merge",
    "^refs/merge-requests/*/merge",
];
/// A push may come between a list and its fetch, which are then tried anew.
const FETCHES: usize = 3;
/// Refs that an error names.
const NAMED: usize = 3;
/// Bytes of a pointer of Git LFS.
const POINTER_BYTES: std::ops::RangeInclusive<u64> = 100..=1024;
/// Objects whose content is read by one command.
const POINTERS_AT_ONCE: usize = 10_000;
/// Digits of the URL's hash in the name of a directory.
const URL_DIGITS: usize = 16;
/// Programs that settings could start, and refs that a power loss could take.
const SETTINGS: [&str; 4] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "protocol.ext.allow=never",
    "core.fsync=committed,loose-object",
];
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
    /// Refs whose old objects are kept, since the last run that ended with a root.
    pub kept: Vec<Kept>,
    /// Things that the operator should hear of.
    pub warnings: Vec<String>,
    /// Things that the operator may want to know.
    pub notes: Vec<String>,
    /// The list of `kept`.
    list: PathBuf,
    _lock: File,
}

impl Mirror {
    /// Forgets what was kept, once a root has it.
    ///
    /// # Errors
    /// Those of the system: the next run reports it again.
    pub fn forget_kept(&self) -> Result<()> {
        durable::remove(&self.list)
            .map_err(|e| Error::from_io(format!("remove \"{}\"", self.list.display()), e))
    }
}

/// A ref that lost commits at the origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The ref.
    pub name: String,
    /// The object that it had.
    pub object: String,
    /// Its object now; none of a ref that went.
    pub now: Option<String>,
    /// The ref that keeps the old object.
    pub kept_as: String,
    /// Whether the origin's HEAD leads to it, or did so before.
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

/// The treatment of large files that Git LFS keeps beside a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LargeFiles {
    /// They are fetched; left out; or, where nobody decided, left out with a warning.
    pub are_wanted: Option<bool>,
    /// The backup has room for them: a bundle has none.
    pub have_room: bool,
}

/// Brings the mirror of `url` in the directory `cache` up to date, and checks every object of it.
///
/// # Errors
/// `Locked` while another run has it; `SourceMissing` when Git fails, or lacks a large file that is wanted; those of the system.
pub fn mirror(url: &str, cache: &Path, large: LargeFiles, host: &Host) -> Result<Mirror> {
    let lock = lock(cache)?;
    // Another URL has another mirror: the refs of two repositories would not stay apart.
    let hash = blake3::hash(url.as_bytes()).to_hex();
    let place = cache.join(hash.as_str().get(..URL_DIGITS).unwrap_or_default());
    make(&place)?;
    let path = place.join("mirror.git");
    let git = Git {
        directory: &path,
        host,
    };
    host.progress.phase("fetch", None);
    let origin = git.origin(url)?;
    git.prepare(origin.is_sha256())?;
    let note = place.join("refs-before");
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
    let origin = git.fetch(url, origin)?;
    let heads = [git.head()?, origin.head.clone(), Some(DETACHED.to_owned())];
    let list = place.join("kept.json");
    let mut kept = read_list(&list)?;
    for lost in git.lost(&before, &origin.refs, &heads)? {
        let is_known = |k: &Kept| k.name == lost.name && k.object == lost.object;
        if !kept.iter().any(is_known) {
            kept.push(lost);
        }
    }
    // The root lists the first ones.
    kept.sort_by_key(|k| !k.is_head);
    if !kept.is_empty() {
        let text = serde_json::to_vec(&kept).unwrap_or_default();
        durable::replace(&list, &text, host.random()).map_err(|e| of(&list, e))?;
        git.keep(&kept)?;
    }
    git.follow_head(&origin)?;
    durable::remove(&note).map_err(|e| of(&note, e))?;
    host.progress.phase("check every object", None);
    let notes = git.check().map_err(|e| {
        e.context("check the mirror").hint(format!(
            "Nothing was stored.\nLook at it: git --git-dir={} fsck --full",
            path.display()
        ))
    })?;
    let (mut warnings, mut notes) = (Vec::new(), notes.into_iter().collect::<Vec<_>>());
    let beside = git.beside(url, large)?;
    if beside.is_unasked && beside.lacking > 0 {
        warnings.push(format!(
            "{} large files that Git LFS keeps beside the repository are not in the backup: write lfs = true to have them, or lfs = false",
            beside.lacking
        ));
    }
    if !beside.submodules.is_empty() {
        notes.push(format!(
            "submodules are repositories of their own, and not in the backup: {}",
            beside.submodules.join(", ")
        ));
    }
    if origin.refs.is_empty() && !kept.is_empty() {
        warnings.push("the origin has no branch or tag any more".to_owned());
    }
    Ok(Mirror {
        facts: facts(url, &origin, &kept, &beside),
        path,
        kept,
        warnings,
        notes,
        list,
        _lock: lock,
    })
}

/// Facts for the root.
fn facts(url: &str, origin: &Origin, kept: &[Kept], beside: &Beside) -> Value {
    let shown: BTreeMap<_, _> = origin.refs.iter().take(LISTED).collect();
    json!({
        "kind": "git",
        "url": url,
        "head": origin.head,
        "ref_count": origin.refs.len(),
        "refs": shown,
        "kept": kept.get(..LISTED).unwrap_or(kept),
        "lfs_count": beside.large,
        "lfs_lacking_count": beside.lacking,
        "submodules": beside.submodules,
    })
}

/// Reads what runs kept that ended without a root.
fn read_list(path: &Path) -> Result<Vec<Kept>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
            err!(Damaged, "\"{}\" is damaged: {e}", path.display()).hint(format!(
                "Nothing was stored.\nThe commits that it names are below {KEPT} of the mirror beside it.\nMove it away, and back up again."
            ))
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(of(path, e)),
    }
}

/// Writes a mirror into one file, clones from that, and compares.
///
/// # Errors
/// `SourceMissing` when the mirror has no commit, when Git fails, and when the clone is another one.
pub fn bundle(mirror: &Mirror, name: &str, host: &Host) -> Result<Bundle> {
    let folder = private_folder(&host.scratch, "pitr-git-").map_err(|e| of(&host.scratch, e))?;
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
    let is_sha256 = refs.split(' ').next().is_some_and(is_sha256);
    cloned.prepare(is_sha256)?;
    cloned.run(&[
        "fetch",
        "--quiet",
        "--no-write-fetch-head",
        "--",
        &file_name,
        "+refs/*:refs/*",
    ])?;
    cloned.check()?;
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

/// Things that belong to a repository, and do not lie in it.
#[derive(Debug, Default)]
struct Beside {
    /// Large files that are named by objects of the repository.
    large: usize,
    /// Those of them that the backup lacks.
    lacking: usize,
    /// Whether nobody decided about them.
    is_unasked: bool,
    /// Paths of submodules.
    submodules: Vec<String>,
}

/// The hash and the length in a pointer of Git LFS (git-lfs: docs/spec.md).
fn pointer(content: &str) -> Option<(String, u64)> {
    let rest = content.strip_prefix("version https://git-lfs.github.com/spec/")?;
    let value = |name: &str| rest.lines().find_map(|line| line.strip_prefix(name));
    let hash = value("oid sha256:")?;
    let is_hash = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
    is_hash.then_some(())?;
    Some((hash.to_owned(), value("size ")?.parse().ok()?))
}

/// Whether a ref of the origin is not fetched.
fn is_left_out(name: &str) -> bool {
    let is_trial = |(before, after): &(&str, &str)| {
        let below = name.strip_prefix(before);
        below.is_some_and(|below| below.ends_with(after))
    };
    name.starts_with(KEPT) || TRIALS.iter().any(is_trial)
}

/// Lines of object and name. Refs of earlier runs are not the origin's.
fn listed(text: &str) -> Refs {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let own = lines.filter(|(_, name)| !is_left_out(name));
    own.map(|(object, name)| (name.to_owned(), object.to_owned()))
        .collect()
}

fn is_sha256(object: &str) -> bool {
    object.len() == 64
}

/// An origin as it lists itself.
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    /// The refs that are fetched.
    refs: Refs,
    /// The ref that HEAD leads to.
    head: Option<String>,
}

impl Origin {
    /// From the lines of `git ls-remote --symref`.
    fn of(text: &str) -> Origin {
        let (mut refs, mut head, mut detached) = (Refs::new(), None, None);
        for (left, name) in text.lines().filter_map(|line| line.split_once('\t')) {
            match (left.strip_prefix("ref: "), name) {
                (Some(leads_to), "HEAD") => head = Some(leads_to.to_owned()),
                (None, "HEAD") => detached = Some(left.to_owned()),
                (Some(_), _) => {}
                (None, name) => {
                    let is_peeled = name.ends_with("^{}");
                    if !is_peeled && name != DETACHED && !is_left_out(name) {
                        refs.insert(name.to_owned(), left.to_owned());
                    }
                }
            }
        }
        if let (None, Some(object)) = (&head, detached) {
            refs.insert(DETACHED.to_owned(), object);
        }
        Origin { refs, head }
    }

    fn detached(&self) -> Option<&String> {
        self.refs.get(DETACHED)
    }

    fn is_sha256(&self) -> bool {
        self.refs.values().any(|object| is_sha256(object))
    }
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
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        let directory = ["--git-dir=".as_ref(), self.directory.as_os_str()];
        command.arg(directory.join("".as_ref())).args(arguments);
        Ok(command)
    }

    fn read(&self, arguments: &[&str]) -> Result<String> {
        self.answer(self.command(arguments)?)
    }

    /// As [`Git::read`], of a command that reads `text`.
    fn fed(&self, arguments: &[&str], text: &str) -> Result<String> {
        let scratch = &self.host.scratch;
        let file = tempfile::tempfile_in(scratch).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.rewind()?;
            Ok(file)
        });
        let mut command = self.command(arguments)?;
        command.stdin(file.map_err(|e| of(scratch, e))?);
        self.answer(command)
    }

    fn answer(&self, mut command: Command) -> Result<String> {
        let mut tick = || self.host.check_stop();
        let printed = program::output(&mut command, OUTPUT_LIMIT_BYTES, &mut tick)?;
        Ok(String::from_utf8_lossy(&printed).into_owned())
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        self.read(arguments).map(drop)
    }

    /// Makes the bare repository, where it is not there. Objects that nothing leads to stay: Git's own cleaning would rewrite packs, too.
    fn prepare(&self, is_sha256: bool) -> Result<()> {
        let mut arguments = vec!["init", "--quiet", "--bare", "--template="];
        if is_sha256 {
            arguments.push("--object-format=sha256");
        }
        self.run(&arguments)?;
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

    /// Asks the origin for its list, outside of any repository: the origin may have another kind of hash.
    fn origin(&self, url: &str) -> Result<Origin> {
        let outside = Git {
            directory: &self.directory.with_file_name("no-repository"),
            host: self.host,
        };
        let listing = outside.read(&["ls-remote", "--symref", "--", url])?;
        Ok(Origin::of(&listing))
    }

    /// Fetches until the mirror has what the origin lists, and returns that. Git leaves refs out with a warning alone.
    fn fetch(&self, url: &str, mut origin: Origin) -> Result<Origin> {
        let mut tries = 1;
        loop {
            let mut command = self.command(&["fetch", "--quiet", "--prune", "--force"])?;
            command
                .args(["--no-write-fetch-head", "--", url])
                .args(FETCHED);
            match origin.detached() {
                Some(_) => {
                    command.arg(format!("+HEAD:{DETACHED}"));
                }
                None => self.run(&["update-ref", "-d", DETACHED])?,
            }
            let running = Running::start(command.stdout(Stdio::null()))?;
            let (status, said) = running.wait(&mut || self.host.check_stop())?;
            if !status.success() {
                return Err(program::failed("git", status, &said));
            }
            let refs = self.refs()?;
            if refs == origin.refs {
                return Ok(origin);
            }
            if tries == FETCHES {
                return Err(left_out(&origin.refs, &refs, said.contains("shallow")));
            }
            tries += 1;
            origin = self.origin(url)?;
        }
    }

    /// Looks for what lies beside the repository, and fetches the large files that are wanted.
    fn beside(&self, url: &str, wanted: LargeFiles) -> Result<Beside> {
        let mut beside = Beside {
            submodules: self.submodules()?,
            is_unasked: wanted.are_wanted.is_none() || !wanted.have_room,
            ..Beside::default()
        };
        // History counts, too, where large files are asked for: tips may have gone back to plain files.
        let is_used = match wanted.are_wanted {
            Some(true) => !self.large()?.is_empty(),
            _ => self.has_large()?,
        };
        if !is_used {
            return Ok(beside);
        }
        let is_fetched = wanted.are_wanted == Some(true) && wanted.have_room;
        if is_fetched {
            self.host.progress.phase("fetch large files", None);
            let remote = format!("remote.pitr.url={url}");
            let fetch = ["-c", &remote, "lfs", "fetch", "--all", "pitr"];
            self.run(&fetch).map_err(|e| {
                e.context("fetch large files with git-lfs").hint(
                    "Nothing was stored.\nInstall git-lfs, or write lfs = false to leave them out.",
                )
            })?;
        }
        let large = self.large()?;
        let is_there = |(hash, length): &(&String, &u64)| {
            let (one, two) = (hash.get(..2), hash.get(2..4));
            let place = self.directory.join("lfs/objects");
            let place = place
                .join(one.unwrap_or_default())
                .join(two.unwrap_or_default());
            let found = std::fs::metadata(place.join(hash));
            wanted.have_room && found.is_ok_and(|found| found.len() == **length)
        };
        let lacking: Vec<_> = large.iter().filter(|one| !is_there(one)).collect();
        (beside.large, beside.lacking) = (large.len(), lacking.len());
        match (is_fetched, lacking.first()) {
            (true, Some((hash, _))) => Err(err!(
                SourceMissing,
                "the origin lacks {} of {} large files, such as {hash}",
                lacking.len(),
                large.len()
            )
            .hint("Nothing was stored.\nLook at them: git lfs ls-files --all. Without lfs = true a backup has what is there.")),
            _ => Ok(beside),
        }
    }

    /// Paths of the submodules of HEAD.
    fn submodules(&self) -> Result<Vec<String>> {
        let listing = [
            "config",
            "--blob",
            "HEAD:.gitmodules",
            "--get-regexp",
            "^submodule\\..*\\.path$",
        ];
        let text = match self.read(&listing) {
            Ok(text) => text,
            // No such file, or no commit.
            Err(e) if e.code() == Code::SourceMissing => String::new(),
            Err(e) => return Err(e),
        };
        let paths = text.lines().filter_map(|line| line.split_once(' '));
        Ok(paths.map(|(_, path)| path.to_owned()).collect())
    }

    /// Whether attributes at a branch lead to Git LFS.
    fn has_large(&self) -> Result<bool> {
        let heads = self.read(&[
            "for-each-ref",
            "--format=%(objectname)",
            "refs/heads",
            "refs/tags",
            DETACHED,
        ])?;
        let heads: BTreeSet<&str> = heads.lines().collect();
        for head in heads {
            let grep = [
                "grep",
                "--quiet",
                "filter=lfs",
                head,
                "--",
                ":(glob)**/.gitattributes",
            ];
            let running = Running::start(self.command(&grep)?.stdout(Stdio::null()))?;
            let (status, said) = running.wait(&mut || self.host.check_stop())?;
            match status.code() {
                Some(0) => return Ok(true),
                Some(1) => {}
                // A tag of something that is no tree has no attributes.
                _ if said.contains("unable to grep") => {}
                _ => return Err(program::failed("git", status, &said)),
            }
        }
        Ok(false)
    }

    /// The large files that any object of the repository names, with their lengths.
    fn large(&self) -> Result<BTreeMap<String, u64>> {
        let format = "--batch-check=%(objecttype) %(objectsize) %(objectname)";
        let all = self.read(&["cat-file", "--batch-all-objects", "--unordered", format])?;
        let small = all.lines().filter_map(|line| {
            let (length, name) = line.strip_prefix("blob ")?.split_once(' ')?;
            let is_pointer = POINTER_BYTES.contains(&length.parse().ok()?);
            is_pointer.then_some(name)
        });
        let small: Vec<&str> = small.collect();
        let mut found = BTreeMap::new();
        for names in small.chunks(POINTERS_AT_ONCE) {
            let printed = self.fed(&["cat-file", "--batch"], &(names.join("\n") + "\n"))?;
            let contents = printed.split("version https://git-lfs").skip(1);
            let pointers =
                contents.filter_map(|rest| pointer(&format!("version https://git-lfs{rest}")));
            found.extend(pointers);
        }
        Ok(found)
    }

    /// The ref that HEAD leads to.
    fn head(&self) -> Result<Option<String>> {
        match self.read(&["symbolic-ref", "--quiet", "HEAD"]) {
            Ok(name) => Ok(Some(name.trim().to_owned())),
            Err(e) if e.code() == Code::SourceMissing => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes HEAD that of the origin.
    fn follow_head(&self, origin: &Origin) -> Result<()> {
        match (&origin.head, origin.detached()) {
            (Some(name), _) => self.run(&["symbolic-ref", "HEAD", name]),
            (None, Some(object)) => self.run(&["update-ref", "--no-deref", "HEAD", object]),
            (None, None) => Ok(()),
        }
    }

    /// Finds refs that lost something: a commit that no ref of the origin reaches, or a tag, which nothing else reaches.
    fn lost(&self, before: &Refs, after: &Refs, heads: &[Option<String>]) -> Result<Vec<Kept>> {
        let held: BTreeSet<&String> = after.values().collect();
        let changed = before.iter().filter(|(_, object)| !held.contains(object));
        let changed: Vec<_> = changed.collect();
        if changed.is_empty() {
            return Ok(Vec::new());
        }
        let objects: String = changed.iter().map(|(_, o)| format!("{o}\n")).collect();
        let kinds = self.fed(
            &["cat-file", "--batch-check=%(objectname) %(objecttype)"],
            &objects,
        )?;
        let commits: BTreeSet<&str> = kinds
            .lines()
            .filter_map(|line| line.strip_suffix(" commit"))
            .collect();
        let text: String = commits.iter().map(|c| format!("{c}\n")).collect();
        let unreached = match commits.is_empty() {
            true => String::new(),
            false => self.fed(
                &[
                    "rev-list",
                    "--stdin",
                    "--exclude=refs/pitr/*",
                    "--not",
                    "--glob=refs/*",
                ],
                &text,
            )?,
        };
        let unreached: BTreeSet<&str> = unreached.lines().collect();
        let time = self.host.now().to_string();
        let time: String = time.chars().filter(char::is_ascii_alphanumeric).collect();
        let is_lost = |object: &str| !commits.contains(object) || unreached.contains(object);
        let lost = changed.into_iter().filter(|(_, object)| is_lost(object));
        let kept = lost.map(|(name, object)| Kept {
            name: name.clone(),
            object: object.clone(),
            now: after.get(name).cloned(),
            kept_as: format!(
                "{KEPT}{time}/{}",
                name.strip_prefix("refs/").unwrap_or(name)
            ),
            is_head: heads.iter().flatten().any(|head| head == name),
        });
        Ok(kept.collect())
    }

    /// Makes the refs that keep old objects, also those that are there already.
    fn keep(&self, kept: &[Kept]) -> Result<()> {
        let lines = kept
            .iter()
            .map(|k| format!("update {} {}\n", k.kept_as, k.object));
        let text: String = lines.collect();
        self.fed(&["update-ref", "--stdin"], &text).map(drop)
    }

    /// Checks every object. Returns what is not damage: old tools wrote objects that `--strict` refuses.
    fn check(&self) -> Result<Option<String>> {
        let fsck = [
            "fsck",
            "--full",
            "--no-dangling",
            "--no-progress",
            "--strict",
        ];
        let (strict, plain) = (self.run(&fsck), fsck.split_last());
        match (strict, plain) {
            (Err(e), Some((_, plain))) if e.code() == Code::SourceMissing => {
                self.run(plain)?;
                Ok(Some(format!(
                    "the repository is whole, and stored as it is, but has objects that \"git fsck --strict\" refuses: {e}"
                )))
            }
            (strict, _) => strict.map(|()| None),
        }
    }
}

/// The error of a fetch that succeeded without all refs.
fn left_out(origin: &Refs, mirror: &Refs, is_shallow: bool) -> Error {
    let names: BTreeSet<&String> = origin.keys().chain(mirror.keys()).collect();
    let other: Vec<_> = names
        .into_iter()
        .filter(|name| origin.get(*name) != mirror.get(*name))
        .collect();
    let shown: Vec<_> = other
        .iter()
        .take(NAMED)
        .map(|n| format!("\"{n}\""))
        .collect();
    let more = match other.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let (why, next) = match is_shallow {
        true => (
            "the origin is shallow, and Git fetches no ref whose history is cut",
            "Complete the origin: git fetch --unshallow in it. Or name another one.",
        ),
        false => (
            "the fetch did not bring the refs that the origin lists",
            "Back up again. If it stays so, compare by hand: git ls-remote.",
        ),
    };
    err!(SourceMissing, "{why}: {}{more}", shown.join(", "))
        .hint(format!("Nothing was stored.\n{next}"))
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

    #[test]
    fn a_list_of_an_origin_has_what_is_fetched() {
        let origin = Origin::of(
            "ref: refs/heads/main\tHEAD\naa\tHEAD\naa\trefs/heads/main\nbb\trefs/pitr/x/heads/main\nbb\trefs/pitr-head\ncc\trefs/pull/7/head\ndd\trefs/pull/7/merge\ndd\trefs/merge-requests/7/merge\nref: refs/heads/main\trefs/remotes/o/HEAD\naa\trefs/remotes/o/HEAD\nee\trefs/tags/v1\naa\trefs/tags/v1^{}\n",
        );
        let names: Vec<_> = origin.refs.keys().map(String::as_str).collect();
        let expected = [
            "refs/heads/main",
            "refs/pull/7/head",
            "refs/remotes/o/HEAD",
            "refs/tags/v1",
        ];
        assert_eq!(names, expected);
        assert_eq!(origin.head.as_deref(), Some("refs/heads/main"));
        assert_eq!(origin.detached(), None);
        let origin = Origin::of("aa\tHEAD\naa\trefs/heads/main\n");
        assert_eq!(origin.detached().map(String::as_str), Some("aa"));
        assert_eq!(Origin::of("").refs.len(), 0);
    }
}
