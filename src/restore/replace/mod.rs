//! Puts a restored cluster in the place of a data directory, and takes the old one back.
//!
//! The new cluster is restored beside the old one. Then names are exchanged. Each directory that changes its place is a pair; which of the
//! two lies where is told by the inode, which a rename keeps. So a run that was killed anywhere goes on by what it finds.
//!
//! A cluster that is not in its place cannot be started: its pg_control has another name. Without directories outside of the data directory
//! one exchange switches. With them no server starts while they change: the control files of both have that name then.
//!
//! | file | what it owns |
//! |---|---|
//! | `old` | the data directory that is to be replaced |
//! | `standing` | a replacement that is recorded, and how far it came |
//! | `pair` | a directory, and the one that takes its place |
//! | `wal` | pg_wal where it is a link |
//! | `waiting` | a cluster that recovers in private before it takes the place |
//! | `movable` | whether a directory can get another name |
//! | `entry` | entries of directories, found and moved |

mod entry;
pub mod movable;
mod old;
mod pair;
mod standing;
pub mod waiting;
mod wal;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use self::entry::{beside, inode_of};
pub use self::old::Old;
use self::pair::{Pair, pair};
use self::standing::Record;
pub use self::standing::{Standing, State};
use super::target_dir::{CLOSED, CONTROL, PlacedTablespace};
use crate::archive::guard::read_limited;
use crate::err;
use crate::error::Result;
use crate::fault;
use crate::host::Host;
use crate::pg::time::TimestampTz;

/// The end of the name under which a cluster is restored beside the one that it replaces; in a tablespace the name itself.
pub const WAITING: &str = "pitr-new";
/// The end of the record's name.
const RECORD: &str = "pitr-replaced";
const FORMAT: u32 = 1;
const UNCHANGED: &str = "Nothing was changed.";

/// One of two clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Old,
    New,
}

/// The directions in which names are exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The new cluster takes the place.
    Replace,
    /// The old one takes it again; the new one waits as before.
    Back,
    /// The old one takes it again; the new one is put aside.
    Undo,
}

impl Way {
    fn sides(self) -> (Side, Side) {
        match self {
            Way::Replace => (Side::New, Side::Old),
            Way::Back | Way::Undo => (Side::Old, Side::New),
        }
    }
}

/// The description of the new cluster.
pub struct New<'a> {
    /// The operator's request, by which the same command is known again.
    pub asked: &'a str,
    pub backup: String,
    pub target: String,
    pub tablespaces: &'a [PlacedTablespace],
}

/// The record of the replacement at a data directory.
pub fn record_of(to: &Path) -> PathBuf {
    let data = to.canonicalize().unwrap_or_else(|_| to.to_owned());
    beside(&data, RECORD)
}

/// Puts the cluster that was restored beside `old` in its place.
///
/// # Errors
/// `Refused` when a server was started meanwhile; `TargetWrite`. The old cluster is in its place then, unless the hint says otherwise.
pub fn replace(old: &Old, new: &New<'_>, host: &Host) -> Result<Standing> {
    check_stopped(&old.data)?;
    // Its tablespaces, and what is to be archived, may be others since.
    if control_of(&old.data)?.map(|bytes| digest(&bytes)).as_ref() != Some(&old.control) {
        return Err(err!(
            Refused,
            "a server has run in \"{}\" while the new cluster was restored",
            old.data.display()
        )
        .hint("Nothing was changed. Run the same command again: it looks at the old cluster anew, and takes up what was restored."));
    }
    let waiting = old.waiting();
    check_stopped(&waiting)?;
    close_waiting(&waiting)?;
    let control = control_of(&waiting)?;
    let control = control.ok_or_else(|| err!(Internal, "the restored cluster has no {CLOSED}"))?;
    let began = host.now();
    let stamp = free_stamp(&old.data, began);
    let (replaced, undone) = (format!("replaced-{stamp}"), format!("undone-{stamp}"));
    let ends = [WAITING.to_owned(), replaced, undone];
    let record = Record {
        format: FORMAT,
        note: format!(
            "pitr restore --replace has put another cluster into \"{}\"; pitr restore --undo reads this file",
            old.data.display()
        ),
        asked: new.asked.to_owned(),
        backup: new.backup.clone(),
        target: new.target.clone(),
        began,
        state: State::Switching,
        control: digest(&control),
        old_control: Some(old.control.clone()),
        allowed: None,
        data: beside_each(&old.data, &ends)?,
        others: others(old, new, &ends)?,
    };
    let mut standing = Standing {
        path: beside(&old.data, RECORD),
        record,
    };
    standing.write(host)?;
    fault::point("replace-recorded");
    standing.finish(host)?;
    Ok(standing)
}

/// The pair of a directory whose other names lie beside it.
fn beside_each(place: &Path, ends: &[String; 3]) -> Result<Pair> {
    let names = ends.each_ref().map(|end| beside(place, end));
    pair(place.to_owned(), names)
}

/// The pairs outside of the data directory: where the link of pg_wal leads, and the tablespaces of both clusters.
fn others(old: &Old, new: &New<'_>, ends: &[String; 3]) -> Result<Vec<Pair>> {
    let mut others = Vec::new();
    if let Some((_, real)) = &old.wal {
        wal::stage(&old.waiting(), real)?;
        others.push(beside_each(real, ends)?);
    }
    let [waiting, replaced, undone] = ends;
    let names = [
        waiting.clone(),
        format!("pitr-{replaced}"),
        format!("pitr-{undone}"),
    ];
    let of_new = new.tablespaces.iter();
    let of_new = of_new.filter_map(|one| one.real.parent().map(Path::to_owned));
    let spaces: BTreeSet<PathBuf> = old.tablespaces.iter().cloned().chain(of_new).collect();
    for space in spaces {
        let names = names
            .each_ref()
            .map(|end| space.join(end).join(&old.version));
        others.push(pair(space.join(&old.version), names)?);
    }
    Ok(others)
}

/// Closes a restored cluster that an earlier version left open. One on which a server has run is refused: it is not the backup any more.
fn close_waiting(waiting: &Path) -> Result<()> {
    let open = waiting.join(CONTROL);
    if inode_of(&open)?.is_none() {
        return Ok(());
    }
    // A server renames the label as soon as it recovers.
    if inode_of(&waiting.join("backup_label"))?.is_none() {
        return Err(err!(
            Refused,
            "a server has run in \"{}\", which was to take the place of the old cluster",
            waiting.display()
        )
        .hint("The old cluster is in its place as before. Remove that directory, then run the same command again."));
    }
    self::waiting::close(waiting)
}

/// The bytes of a cluster's pg_control, whichever name it has.
fn control_of(data: &Path) -> Result<Option<Vec<u8>>> {
    match read_limited(&data.join(CONTROL))? {
        Some(bytes) => Ok(Some(bytes)),
        None => read_limited(&data.join(CLOSED)),
    }
}

/// The time in names, such as `20261120T064049Z`; a number follows where a name of that second is taken.
fn free_stamp(data: &Path, now: TimestampTz) -> String {
    let digits = now.to_string();
    let digits = digits.chars().filter(|c| c.is_ascii_digit() || *c == 'T');
    let stamp: String = digits.take("20261120T064049".len()).chain(['Z']).collect();
    let is_taken = |stamp: &String| {
        let mut names = ["replaced", "undone"].into_iter();
        names
            .any(|name| std::fs::symlink_metadata(beside(data, &format!("{name}-{stamp}"))).is_ok())
    };
    let mut numbered = (2..1000).map(|n| format!("{stamp}-{n}"));
    match is_taken(&stamp) {
        false => stamp,
        true => numbered.find(|one| !is_taken(one)).unwrap_or(stamp),
    }
}

fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// Root would follow names that the server's user exchanges meanwhile.
fn check_user() -> Result<()> {
    match rustix::process::geteuid().is_root() {
        true => Err(err!(
            Refused,
            "root does not exchange directories of the server's user"
        )
        .hint(
            "Nothing was changed. Run the command as the server's user: sudo -u postgres pitr …",
        )),
        false => Ok(()),
    }
}

/// Requires that no server runs in a data directory, as far as its files tell.
fn check_stopped(data: &Path) -> Result<()> {
    match inode_of(&data.join("postmaster.pid"))? {
        None => Ok(()),
        Some(_) => Err(err!(
            Refused,
            "a server may run in \"{}\": postmaster.pid is there",
            data.display()
        )
        .hint("Nothing was changed. Stop the server. Where it was killed, and runs nowhere else, in no container either, remove postmaster.pid.")),
    }
}
