//! A data set by the append-only file of a server: nothing is asked of it but where its files are, and it does not fork.
//!
//! All files of the manifest are opened, and the manifest is read again: if it is the same, they belonged together while they were opened. The bytes behind the
//! length that the last one had then belong to later moments. A rewrite takes names away, and no open file changes by it. So no setting has to be changed.
//!
//! A server that writes its first such file has former ones beside it: they are left alone while a rewrite runs, and their length is compared with what the server says.
//!
//! Redis: src/aof.c (aofLoadManifestFromFile, flushAppendOnlyFile, getBaseAndIncrAppendOnlyFilesSize), src/server.c (genRedisInfoString).

use std::path::Path;
use std::time::{Duration, Instant};

use super::command::Reader;
use super::connection::Tick;
use super::files::{self, Opened, Place};
use super::info::Info;
use super::rdb;
use super::saved::{idle, pause, run};
use super::source::Source;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::pg::time::TimestampTz;

/// A server holds commands back for so long at most where the disk is slow, and for a moment more here.
const HELD_BACK: Duration = Duration::from_secs(3);
/// So often the files may be others than those that the server tells of: one rewrite follows the other.
const ATTEMPTS_MAX: usize = 20;
/// No manifest is longer.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
const OTHER: &str = "source = \"bgsave\" does not need these files.";

/// The files as they were at one moment.
#[derive(Debug)]
pub struct Frozen {
    /// The file that begins with the data set.
    pub base: Opened,
    /// The length of the data set.
    pub base_bytes: u64,
    /// The commands behind it, and where they end.
    parts: Vec<(Opened, std::ops::Range<u64>)>,
    /// The length of the commands up to where they may end.
    pub tail_bytes: u64,
    /// This host's clock before the server was asked.
    pub requested: TimestampTz,
    /// The same when the length of all files was known.
    pub frozen: TimestampTz,
}

/// The files.
struct Found {
    base: Opened,
    increments: Vec<Opened>,
}

/// Opens the files.
///
/// # Errors
/// `Refused` for a server that writes none, or whose files are not on this host; `Unsupported` for files of a form that is not read; `Damaged`; those of the
/// server, of the system and of `tick`.
pub fn freeze(source: &mut Source, place: &Place, host: &Host, tick: Tick<'_>) -> Result<Frozen> {
    let (directory, name) = place.append_only(source, tick)?;
    let process = run(source, tick)?;
    place.require_process(&source.ask("server", tick)?)?;
    for _ in 0..ATTEMPTS_MAX {
        let requested = host.now();
        let before = settled(source, tick)?;
        let found = match source.version.has_directory() {
            true => manifested(&directory, &name, tick)?,
            false => single(&directory.join(&name))?,
        };
        let frozen = host.now();
        let after = source.ask("persistence", tick)?;
        if run(source, tick)? != process {
            return Err(err!(Unreachable, "another server answers than before"));
        }
        let Some(found) = found.filter(|found| is_told_of(found.bytes(), &before, &after)) else {
            std::thread::sleep(Duration::from_millis(400));
            pause(tick)?;
            continue;
        };
        return finish(found, (requested, frozen), tick);
    }
    Err(err!(
        Refused,
        "the append-only file in \"{}\" is not the one that the server writes",
        directory.display()
    )
    .hint(format!("The server runs elsewhere, or in a container: service.data_directory names its directory as this host sees it. Or the file was cut when the server started: redis-cli BGREWRITEAOF makes both agree.\n{OTHER}")))
}

/// Waits until what was answered is in the files, and returns what the server says of them.
fn settled(source: &mut Source, tick: Tick<'_>) -> Result<Info> {
    let since = Instant::now();
    loop {
        let info = idle(source, tick)?;
        if !info.is_on("aof_enabled") {
            return Err(err!(Refused, "the server writes no append-only file").hint(
                "appendonly yes makes it write one. source = \"bgsave\" takes a save in its place.",
            ));
        }
        for (status, doing) in [
            ("aof_last_write_status", "write"),
            ("aof_last_bgrewrite_status", "rewrite"),
        ] {
            if info.field(status).is_some_and(|said| said != "ok") {
                return Err(
                    err!(Server, "the server could not {doing} its append-only file").hint(
                        "Its log says why. Mend that; redis-cli BGREWRITEAOF writes it anew.",
                    ),
                );
            }
        }
        if info.field("aof_buffer_length") == Some("0") || since.elapsed() > HELD_BACK {
            return Ok(info);
        }
        pause(tick)?;
    }
}

/// Whether files of this length are those that the server tells of, before they were opened and after. A server that began empty does not count the first base.
fn is_told_of((base, increments): (u64, u64), before: &Info, after: &Info) -> bool {
    let number = |info: &Info, name: &str| info.field(name)?.parse::<u64>().ok();
    let current = |info| number(info, "aof_current_size");
    let of_base = number(before, "aof_base_size");
    let is_same_base = of_base == number(after, "aof_base_size");
    let counted = match of_base {
        Some(0) if increments > 0 => increments,
        _ => base + increments,
    };
    let bounds = current(before).zip(current(after));
    is_same_base && bounds.is_some_and(|(from, to)| (from..=to).contains(&counted))
}

impl Found {
    /// The length of the base, and that of the increments together.
    fn bytes(&self) -> (u64, u64) {
        let increments = self.increments.iter().map(Opened::bytes).sum();
        (self.base.bytes(), increments)
    }
}

/// Opens what the manifest names; none where it changed meanwhile.
fn manifested(directory: &Path, name: &str, tick: Tick<'_>) -> Result<Option<Found>> {
    let path = directory.join(format!("{name}.manifest"));
    let mut read = || match files::open(&path)? {
        Some(opened) => opened.text(MANIFEST_BYTES_MAX, tick).map(Some),
        None => Ok(None),
    };
    let Some(text) = read()? else {
        return Ok(None);
    };
    let (base, increments) = names(&text)?;
    let mut opened = Vec::new();
    for name in std::iter::once(&base).chain(&increments) {
        match files::open(&directory.join(name))? {
            Some(file) => opened.push(file),
            None => return Ok(None),
        }
    }
    if read()?.as_ref() != Some(&text) {
        return Ok(None);
    }
    let increments = opened.split_off(1);
    Ok(opened.pop().map(|base| Found { base, increments }))
}

/// The names of the base and of the increments in a manifest, in their order.
fn names(text: &str) -> Result<(String, Vec<String>)> {
    let (mut base, mut increments) = (None, Vec::new());
    for line in text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        let words: Vec<&str> = line.split(' ').collect();
        let value = |key: &str| {
            let mut pairs = words.chunks(2).filter(|pair| pair.first() == Some(&key));
            pairs.next().and_then(|pair| pair.get(1).copied())
        };
        let found = value("file").filter(|name| files::is_name(name) && !name.starts_with('"'));
        let number = value("seq").and_then(|seq| seq.parse::<u64>().ok());
        let (Some(name), Some(number)) = (found, number) else {
            return Err(form(
                "its manifest has a line of a form that pitr does not read",
            ));
        };
        match value("type") {
            // A base of commands: the server was told to write no RDB file there.
            Some("b") if name.ends_with(".aof") => return Err(no_base()),
            Some("b") if base.is_none() => base = Some(name.to_owned()),
            Some("i") if increments.iter().all(|(other, _)| *other != number) => {
                increments.push((number, name.to_owned()));
            }
            Some("h") => {}
            _ => {
                return Err(form(
                    "its manifest names a kind of file that pitr does not read",
                ));
            }
        }
    }
    increments.sort();
    let increments = increments.into_iter().map(|(_, name)| name).collect();
    base.map(|base| (base, increments)).ok_or_else(no_base)
}

/// Opens the one file that there is before Redis 7.
fn single(path: &Path) -> Result<Option<Found>> {
    let opened = files::open(path)?;
    Ok(opened.map(|base| Found {
        base,
        increments: Vec::new(),
    }))
}

/// Finds where the data set and the commands end.
fn finish(
    found: Found,
    (requested, frozen): (TimestampTz, TimestampTz),
    tick: Tick<'_>,
) -> Result<Frozen> {
    let Found { base, increments } = found;
    let (base_bytes, mut parts) = match increments.is_empty() {
        // The one file of a server before Redis 7 goes on behind the data set.
        true => {
            let end = end_of_base(&base, tick)?;
            (end, vec![(reopened(&base)?, end..base.bytes())])
        }
        false => (base.bytes(), Vec::new()),
    };
    parts.extend(increments.into_iter().map(|opened| {
        let range = 0..opened.bytes();
        (opened, range)
    }));
    let mut frozen = Frozen {
        base,
        base_bytes,
        parts,
        tail_bytes: 0,
        requested,
        frozen,
    };
    let mut reader = Reader::new(0, None);
    let mut ends = 0;
    let read = frozen.parts.iter().try_for_each(|(opened, range)| {
        // No command goes on in the next file.
        if reader.cut() != ends {
            return Err(err!(
                Damaged,
                "a file before \"{}\" ends inside of a command",
                opened.path.display()
            ));
        }
        ends += range.end - range.start;
        let mut take = |bytes: &[u8]| reader.read(bytes, &mut |_| Ok(()));
        opened.pass(range.clone(), tick, &mut take)
    });
    read.map_err(|e| match e.code() {
        Code::Damaged => e.context("read the append-only file").hint(format!(
            "Annotations are not read (aof-timestamp-enabled yes). Else redis-check-aof says what is wrong with it.\n{OTHER}"
        )),
        _ => e,
    })?;
    frozen.tail_bytes = reader.cut();
    Ok(frozen)
}

/// The end of the data set with which a file begins.
fn end_of_base(base: &Opened, tick: Tick<'_>) -> Result<u64> {
    let mut search = rdb::End::at_start();
    let mut found = None;
    let most = base.bytes();
    let mut at = 0;
    while at < most && found.is_none() {
        let to = (at + (1 << 20)).min(most);
        base.pass(at..to, tick, &mut |bytes| {
            found = found.or_else(|| search.find(bytes));
            Ok(())
        })?;
        at = to;
    }
    found.ok_or_else(no_base)
}

/// A second descriptor of the same file.
fn reopened(opened: &Opened) -> Result<Opened> {
    let file = opened.file.try_clone();
    Ok(Opened {
        file: file.map_err(|e| files::unreadable(&opened.path, e))?,
        path: opened.path.clone(),
        metadata: opened.metadata.clone(),
    })
}

fn form(message: &'static str) -> Error {
    err!(
        Unsupported,
        "the append-only file cannot be taken: {message}"
    )
    .hint(OTHER)
}

fn no_base() -> Error {
    err!(Refused, "the append-only file does not begin with a data set and its checksum")
        .hint(format!("With aof-use-rdb-preamble yes and rdbchecksum yes, as is usual, redis-cli BGREWRITEAOF makes it so.\n{OTHER}"))
}

impl Frozen {
    /// Hands on the commands up to where they may end.
    ///
    /// # Errors
    /// Those of [`Opened::pass`].
    pub fn tail(&self, tick: Tick<'_>, out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut left = self.tail_bytes;
        self.parts(tick, &mut |bytes| {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            left -= most as u64;
            match bytes.get(..most) {
                Some(bytes) if most > 0 => out(bytes),
                _ => Ok(()),
            }
        })
    }

    fn parts(&self, tick: Tick<'_>, out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        for (opened, range) in &self.parts {
            opened.pass(range.clone(), tick, out)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_names_the_base_and_what_follows_it() {
        let text = "# a comment\nfile appendonly.aof.3.incr.aof seq 3 type i startoffset 7\nfile appendonly.aof.2.base.rdb seq 2 type b\nfile old seq 1 type h\nfile appendonly.aof.10.incr.aof seq 10 type i\n";
        let (base, increments) = names(text).unwrap();
        assert_eq!(base, "appendonly.aof.2.base.rdb");
        assert_eq!(
            increments,
            ["appendonly.aof.3.incr.aof", "appendonly.aof.10.incr.aof"]
        );
        for odd in [
            "",
            "file a seq 1 type i\n",
            "file ../a seq 1 type b\n",
            "file /a seq 1 type b\n",
            "file \"a b\" seq 1 type b\n",
            "file a seq x type b\n",
            "file a seq 1 type z\n",
            "file . seq 1 type b\n",
            "file a seq 1 type b\nfile b seq 2 type b\n",
            "file a seq 1 type b\nfile b seq 2 type i\nfile c seq 2 type i\n",
            "file appendonly.aof.1.base.aof seq 1 type b\n",
        ] {
            assert!(names(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn files_count_when_the_server_tells_of_their_length() {
        let told = |base: u64, current: u64| {
            let mut info = Info::default();
            info.add(&format!(
                "aof_base_size:{base}\r\naof_current_size:{current}\r\n"
            ));
            info
        };
        let is = |bytes, before: (u64, u64), after: (u64, u64)| {
            is_told_of(bytes, &told(before.0, before.1), &told(after.0, after.1))
        };
        assert!(is((50, 40), (50, 90), (50, 90)));
        assert!(is((50, 45), (50, 90), (50, 99)));
        assert!(!is((50, 50), (50, 90), (50, 99)));
        assert!(!is((50, 39), (50, 90), (50, 99)));
        assert!(!is((50, 45), (50, 90), (60, 99)));
        // A server that began empty; and the one file of an older one.
        assert!(is((88, 40), (0, 40), (0, 40)));
        assert!(!is((88, 40), (0, 128), (0, 128)));
        assert!(is((128, 0), (0, 128), (0, 128)));
        assert!(!is_told_of((0, 0), &Info::default(), &Info::default()));
    }
}
