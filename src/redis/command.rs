//! The commands of a history, as a server sends them to its replicas, cut out of bytes that end anywhere. Pure.
//!
//! Redis: src/replication.c (replicationFeedReplicas), src/networking.c (processMultibulkBuffer).

use serde::{Deserialize, Serialize};

use crate::err;
use crate::error::Result;

/// So many words of a command are kept: its name, and what tells one request from another. `COPY from to REPLACE DB n` is the longest that counts.
const WORDS_KEPT: usize = 6;
/// So many bytes of a word are kept.
const WORD_BYTES_KEPT: usize = 64;
/// No length is longer in decimal digits, with the sign before it and the line end.
const LINE_BYTES_MAX: usize = 24;
/// No command has more words: a master is held to no smaller number (src/networking.c).
const WORDS_MAX: u64 = i32::MAX as u64;
/// No word is longer; `proto-max-bulk-len` is 512 MiB unless somebody raised it.
const WORD_BYTES_MAX: u64 = 1 << 40;

/// The effect of a command, as far as a plan needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing that is stored: `PING`, `REPLCONF`, `PUBLISH`, `CLUSTER`.
    None,
    /// The database of what follows.
    Select,
    /// A transaction begins or ends.
    Transaction,
    /// `FLUSHALL`: all databases are emptied.
    FlushAll,
    /// `FLUSHDB`: one is.
    FlushDb,
    /// `SWAPDB`: two databases change places.
    Swap,
    /// `FUNCTION`: the libraries of functions change.
    Function,
    /// Keys change.
    Write,
}

/// One command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command<'a> {
    /// The position of its first byte.
    pub start: u64,
    /// The position behind its last byte.
    pub end: u64,
    /// Its name in capital letters, and the beginnings of its first arguments.
    pub words: &'a [&'a [u8]],
    pub effect: Effect,
    /// The database that is selected behind it; none before the first `SELECT`.
    pub db: Option<u32>,
    /// Whether a transaction is open behind it.
    pub is_in_transaction: bool,
}

impl Command<'_> {
    /// The greatest number of a database that it names; 0 where it names none.
    pub fn greatest_db(&self) -> u32 {
        let from = |at: usize| self.words.get(at..).unwrap_or_default();
        let named = |words: &[&[u8]]| words.iter().filter_map(|word| database(word)).max();
        let found = match (self.effect, self.words.first().copied()) {
            (Effect::Select | Effect::Swap, _) => named(from(1)),
            (Effect::Write, Some(b"MOVE")) => named(from(2)),
            (Effect::Write, Some(b"COPY")) => {
                let options = from(3).windows(2);
                options.filter_map(database_of_option).max()
            }
            _ => None,
        };
        found.unwrap_or(0)
    }

    /// Whether the server asks how far its replica is.
    pub fn asks_for_acknowledgement(&self) -> bool {
        let [name, option, ..] = self.words else {
            return false;
        };
        *name == b"REPLCONF" && option.eq_ignore_ascii_case(b"GETACK")
    }
}

/// The bytes that come next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Expected {
    /// The rest of a line that says how many words a command has.
    Count(Vec<u8>),
    /// The rest of a line that says how long a word is.
    Length(Vec<u8>),
    /// So many bytes of a word, its line end among them.
    Word(u64),
}

/// A reader of a history. Its state is that behind the last byte that it was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reader {
    /// The position of the next byte.
    position: u64,
    /// The position of the first byte of the command that is being read.
    start: u64,
    expected: Expected,
    /// Words of this command that have to come, the current one among them.
    words_left: u64,
    words: Vec<Vec<u8>>,
    /// Whether the current word is the last of `words`, and not one that is passed over.
    is_kept: bool,
    db: Option<u32>,
    is_in_transaction: bool,
    /// Behind the last command outside of a transaction.
    cut: u64,
}

impl Reader {
    /// A reader that begins with a command at `position`, outside of a transaction.
    pub fn new(position: u64, db: Option<u32>) -> Reader {
        Reader {
            position,
            start: position,
            expected: Expected::Count(Vec::new()),
            words_left: 0,
            words: Vec::new(),
            is_kept: false,
            db,
            is_in_transaction: false,
            cut: position,
        }
    }

    /// The position of the next byte.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The position at which the history may end: behind the last command outside of a transaction, or where the reader began.
    pub fn cut(&self) -> u64 {
        self.cut
    }

    /// The database that is selected.
    pub fn db(&self) -> Option<u32> {
        self.db
    }

    /// Whether a command begins at the position, outside of a transaction.
    pub fn is_at_cut(&self) -> bool {
        self.cut == self.position
    }

    /// Whether a command begins at the position.
    pub fn is_between_commands(&self) -> bool {
        self.start == self.position
    }

    /// Reads on. Each command that ends in `bytes` goes to `out`.
    ///
    /// # Errors
    /// `Damaged` for bytes that are no commands, those of `out`.
    pub fn read(
        &mut self,
        mut bytes: &[u8],
        out: &mut dyn FnMut(&Command<'_>) -> Result<()>,
    ) -> Result<()> {
        while !bytes.is_empty() {
            if self.is_between_commands()
                && let Some((words, length)) = whole(bytes)
            {
                self.position += length as u64;
                self.end_command(words, out)?;
                bytes = bytes.get(length..).unwrap_or_default();
                continue;
            }
            let taken = match &mut self.expected {
                Expected::Word(left) => {
                    let taken = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(bytes.len());
                    let (now, _) = bytes.split_at(taken);
                    // The last two bytes of a word are its line end.
                    let text = usize::try_from(left.saturating_sub(2)).unwrap_or(usize::MAX);
                    if self.is_kept {
                        let text = now.get(..text.min(taken)).unwrap_or_default();
                        keep(self.words.last_mut(), text);
                    }
                    *left -= taken as u64;
                    let is_end = *left == 0;
                    self.position += taken as u64;
                    if is_end {
                        self.end_word(out)?;
                    }
                    taken
                }
                Expected::Count(line) | Expected::Length(line) => {
                    let (taken, is_end) = until_line_feed(bytes);
                    line.extend_from_slice(bytes.get(..taken).unwrap_or_default());
                    self.position += taken as u64;
                    if line.len() > LINE_BYTES_MAX {
                        return Err(self.no_command());
                    }
                    if is_end {
                        self.end_line()?;
                    }
                    taken
                }
            };
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    fn end_line(&mut self) -> Result<()> {
        let expected = std::mem::replace(&mut self.expected, Expected::Count(Vec::new()));
        match expected {
            Expected::Count(line) => {
                let count = number(b'*', &line).filter(|n| (1..=WORDS_MAX).contains(n));
                self.words_left = count.ok_or_else(|| self.no_command())?;
                self.words.clear();
                self.expected = Expected::Length(Vec::new());
            }
            Expected::Length(line) => {
                let length = number(b'$', &line).filter(|n| *n <= WORD_BYTES_MAX);
                let length = length.ok_or_else(|| self.no_command())?;
                self.is_kept = self.words.len() < WORDS_KEPT;
                if self.is_kept {
                    self.words.push(Vec::new());
                }
                self.expected = Expected::Word(length + 2);
            }
            Expected::Word(_) => {}
        }
        Ok(())
    }

    fn end_word(&mut self, out: &mut dyn FnMut(&Command<'_>) -> Result<()>) -> Result<()> {
        self.words_left -= 1;
        if self.words_left > 0 {
            self.expected = Expected::Length(Vec::new());
            return Ok(());
        }
        self.expected = Expected::Count(Vec::new());
        self.is_kept = false;
        let parts = std::mem::take(&mut self.words);
        let mut words = Words::default();
        parts.iter().for_each(|word| words.add(word));
        self.end_command(words, out)
    }

    /// The position is that behind a command with these first words.
    fn end_command(
        &mut self,
        words: Words<'_>,
        out: &mut dyn FnMut(&Command<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut capitals = [0; WORD_BYTES_KEPT];
        let mut words = words;
        let [name, ..] = &mut words.kept;
        capitals
            .iter_mut()
            .zip(*name)
            .for_each(|(capital, byte)| *capital = byte.to_ascii_uppercase());
        *name = capitals.get(..name.len()).unwrap_or_default();
        let words = words.all();
        let effect = effect(words);
        match effect {
            Effect::Select => {
                let db = words.get(1).and_then(|word| database(word));
                self.db = Some(db.ok_or_else(|| self.no_command())?);
            }
            Effect::Transaction => {
                self.is_in_transaction = words.first().is_some_and(|name| *name == b"MULTI");
            }
            _ => {}
        }
        let command = Command {
            start: self.start,
            end: self.position,
            words,
            effect,
            db: self.db,
            is_in_transaction: self.is_in_transaction,
        };
        self.start = self.position;
        if !self.is_in_transaction {
            self.cut = self.position;
        }
        out(&command)
    }

    fn no_command(&self) -> crate::error::Error {
        err!(
            Damaged,
            "the history has no command at position {}",
            self.start
        )
    }
}

/// The first words of a command, and the first bytes of each.
#[derive(Default)]
struct Words<'a> {
    kept: [&'a [u8]; WORDS_KEPT],
    count: usize,
}

impl<'a> Words<'a> {
    fn add(&mut self, word: &'a [u8]) {
        if let Some(place) = self.kept.get_mut(self.count) {
            *place = word.get(..WORD_BYTES_KEPT).unwrap_or(word);
            self.count += 1;
        }
    }

    fn all(&self) -> &[&'a [u8]] {
        self.kept.get(..self.count).unwrap_or_default()
    }
}

/// The first words of a command that lies at the start of `bytes` as a whole, and its length. `None` leaves a command in parts to the slow way, and
/// what is no command, of which that way knows what is wrong.
fn whole(bytes: &[u8]) -> Option<(Words<'_>, usize)> {
    let (count, mut at) = number_at(bytes, 0, b'*')?;
    if !(1..=WORDS_MAX).contains(&count) {
        return None;
    }
    let mut words = Words::default();
    for _ in 0..count {
        let (length, from) = number_at(bytes, at, b'$')?;
        let to = from.checked_add(usize::try_from(length).ok()?)?;
        words.add(bytes.get(from..to)?);
        at = to.checked_add(2).filter(|end| *end <= bytes.len())?;
    }
    Some((words, at))
}

/// The number of the line at a place, and the place behind the line.
fn number_at(bytes: &[u8], at: usize, first: u8) -> Option<(u64, usize)> {
    let rest = bytes.get(at..)?;
    let (taken, is_end) = until_line_feed(rest);
    let line = rest
        .get(..taken)
        .filter(|_| is_end && taken <= LINE_BYTES_MAX)?;
    Some((number(first, line)?, at + taken))
}

/// Adds bytes to a word, as far as they are kept.
fn keep(word: Option<&mut Vec<u8>>, bytes: &[u8]) {
    if let Some(word) = word {
        let room = WORD_BYTES_KEPT.saturating_sub(word.len());
        word.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
    }
}

fn until_line_feed(bytes: &[u8]) -> (usize, bool) {
    match bytes
        .iter()
        .take(LINE_BYTES_MAX + 1)
        .position(|b| *b == b'\n')
    {
        Some(at) => (at + 1, true),
        None => (bytes.len().min(LINE_BYTES_MAX + 1), false),
    }
}

/// The number of a line: its first byte, decimal digits, and the line end.
fn number(first: u8, line: &[u8]) -> Option<u64> {
    decimal(line.strip_prefix(&[first])?.strip_suffix(b"\r\n")?)
}

/// The number of a database.
fn database(word: &[u8]) -> Option<u32> {
    decimal(word).and_then(|number| u32::try_from(number).ok())
}

/// The database of two words of `COPY`, where they are the option `DB n`.
fn database_of_option(pair: &[&[u8]]) -> Option<u32> {
    match pair {
        [option, number] if option.eq_ignore_ascii_case(b"DB") => database(number),
        _ => None,
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

fn effect(words: &[&[u8]]) -> Effect {
    match words.first().copied() {
        // `CLUSTER` is for replicas alone: a server without a cluster would not load it.
        Some(b"PING" | b"REPLCONF" | b"PUBLISH" | b"SPUBLISH" | b"CLUSTER") => Effect::None,
        Some(b"SELECT") => Effect::Select,
        Some(b"MULTI" | b"EXEC" | b"DISCARD") => Effect::Transaction,
        Some(b"FLUSHALL") => Effect::FlushAll,
        Some(b"FLUSHDB") => Effect::FlushDb,
        Some(b"SWAPDB") => Effect::Swap,
        Some(b"FUNCTION") => Effect::Function,
        _ => Effect::Write,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::resp;

    /// Commands with their positions, as one reading of all bytes gives them.
    type One = (u64, u64, Vec<Vec<u8>>, Effect, Option<u32>, bool);
    type Seen = Vec<One>;

    fn seen(reader: &mut Reader, bytes: &[u8], seen: &mut Seen) -> Result<()> {
        reader.read(bytes, &mut |c| {
            let words = c.words.iter().map(|word| word.to_vec()).collect();
            seen.push((c.start, c.end, words, c.effect, c.db, c.is_in_transaction));
            Ok(())
        })
    }

    fn history(commands: &[&[&[u8]]]) -> Vec<u8> {
        commands
            .iter()
            .flat_map(|words| resp::command(words))
            .collect()
    }

    #[test]
    fn database_and_transaction_are_known_at_every_command() {
        let commands: &[&[&[u8]]] = &[
            &[b"ping"],
            &[b"select", b"5"],
            &[b"MULTI"],
            &[b"SET", b"a", b"\r\n*1\r\n$4\r\nEXEC\r\n"],
            &[b"FLUSHALL"],
            &[b"EXEC"],
            &[b"REPLCONF", b"getack", b"*"],
        ];
        let (mut reader, mut all) = (Reader::new(100, None), Vec::new());
        seen(&mut reader, &history(commands), &mut all).unwrap();
        let of = |f: fn(&One) -> bool| all.iter().map(f).collect::<Vec<bool>>();
        assert_eq!(of(|c| c.5), [false, false, true, true, true, false, false]);
        assert_eq!(of(|c| c.4 == Some(5))[..3], [false, true, true]);
        assert_eq!(of(|c| c.3 == Effect::FlushAll)[4..], [true, false, false]);
        assert_eq!(all[0].0, 100);
        assert!(reader.is_at_cut());
        assert_eq!(reader.position(), 100 + history(commands).len() as u64);
    }

    #[test]
    fn a_history_that_is_cut_anywhere_reads_the_same() {
        let long = vec![b'x'; 200];
        let commands: &[&[&[u8]]] = &[
            &[b"SELECT", b"3"],
            &[b"RPUSH", b"key", &long, &long, b"", b"a", b"b"],
            &[b"MULTI"],
            &[b"INCR", b"n"],
            &[b"EXEC"],
        ];
        let bytes = history(commands);
        let (mut whole, mut expected) = (Reader::new(0, None), Vec::new());
        seen(&mut whole, &bytes, &mut expected).unwrap();
        for at in 0..=bytes.len() {
            let (mut reader, mut found) = (Reader::new(0, None), Vec::new());
            seen(&mut reader, &bytes[..at], &mut found).unwrap();
            // The state goes through the journal in between.
            let text = serde_json::to_string(&reader).unwrap();
            let mut reader: Reader = serde_json::from_str(&text).unwrap();
            let outside = |c: &&One| !c.5;
            let cut = found.iter().rfind(outside).map_or(0, |c| c.1);
            assert_eq!(reader.cut(), cut, "at {at}");
            seen(&mut reader, &bytes[at..], &mut found).unwrap();
            assert_eq!((&reader, &found), (&whole, &expected), "at {at}");
        }
        let kept = &expected[1].2;
        assert_eq!(kept.len(), WORDS_KEPT);
        assert_eq!(kept[2], vec![b'x'; WORD_BYTES_KEPT]);
    }

    #[test]
    fn the_greatest_database_of_a_command_is_known_whatever_names_it() {
        let greatest = |words: &[&[u8]]| {
            let mut found = Vec::new();
            let mut out = |command: &Command<'_>| {
                found.push(command.greatest_db());
                Ok(())
            };
            let bytes = resp::command(words);
            Reader::new(0, None).read(&bytes, &mut out).unwrap();
            // Byte by byte it is read the slow way.
            let mut slow = Reader::new(0, None);
            for byte in bytes.chunks(1) {
                slow.read(byte, &mut out).unwrap();
            }
            assert_eq!(found.len(), 2);
            assert_eq!(found[0], found[1], "{words:?}");
            found[0]
        };
        let named: [(&[&[u8]], u32); 9] = [
            (&[b"SELECT", b"20"], 20),
            (&[b"SWAPDB", b"3", b"20"], 20),
            (&[b"move", b"30", b"20"], 20),
            (&[b"COPY", b"30", b"40", b"DB", b"20"], 20),
            (&[b"copy", b"30", b"40", b"db", b"20", b"REPLACE"], 20),
            (&[b"COPY", b"30", b"40", b"replace", b"Db", b"20"], 20),
            (&[b"COPY", b"DB", b"40"], 0),
            (&[b"COPY", b"30", b"DB", b"REPLACE"], 0),
            (&[b"SET", b"key", b"value", b"DB", b"20"], 0),
        ];
        for (words, expected) in named {
            assert_eq!(greatest(words), expected, "{words:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_commands_are_damage() {
        for bytes in [
            &b"PING\r\n"[..],
            b"*0\r\n",
            b"*-1\r\n",
            b"*1\n",
            b"*1\r\n:5\r\n",
            b"*1\r\n$-1\r\n",
            b"*2\r\n$6\r\nSELECT\r\n$1\r\nx\r\n",
            b"*2147483648\r\n",
            b"*11111111111111111111111111111111",
        ] {
            let mut reader = Reader::new(0, None);
            let error = reader.read(bytes, &mut |_| Ok(())).unwrap_err();
            assert_eq!(error.code(), crate::error::Code::Damaged, "{bytes:?}");
        }
    }
}
