//! The ends of keys in a history of a server before Redis 7: it tells its replicas how long a key has, counted from when the command arrives. Replayed
//! later, the key would have that time again. So each such command is followed by one that says when the key ends.
//!
//! Redis 6: src/expire.c (`expireGenericCommand`), src/t_string.c (`setGenericCommand`), src/cluster.c (`restoreCommand`): only the append-only file gets
//! the time of the end (src/aof.c, `catAppendOnlyExpireAtCommand`).

use super::log::Mark;
use super::resp;
use crate::err;
use crate::error::Result;

/// Words that are kept of a command: those of `SET` and `RESTORE` with all options are fewer.
const WORDS_KEPT: usize = 12;
/// Bytes that are kept of a word that is no key.
const WORD_BYTES_KEPT: usize = 32;
/// Bytes that are kept of a key. A longer one is passed on as it is.
const KEY_BYTES_KEPT: usize = 1 << 20;
/// The place of the key in these commands.
const KEY: usize = 1;

/// Adds the ends of keys to a history.
pub struct Ends {
    position: u64,
    /// The line that is being read; none within a word.
    line: Vec<u8>,
    /// Bytes of the present word that have to come, its line end among them.
    word_left: u64,
    words_left: u64,
    words: Vec<Vec<u8>>,
}

impl Ends {
    /// Begins with a command.
    pub fn new(position: u64) -> Ends {
        Ends {
            position,
            line: Vec::new(),
            word_left: 0,
            words_left: 0,
            words: Vec::new(),
        }
    }

    /// Passes bytes on to `out`, with the ends of the keys in them. `marks` tell when they arrived, in the order of their positions.
    ///
    /// # Errors
    /// `Damaged` for bytes that are no commands; those of `out`.
    pub fn pass(
        &mut self,
        bytes: &[u8],
        marks: &[Mark],
        out: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let (mut passed, mut at) = (0, 0);
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let taken = match self.word_left {
                0 => self.take_of_line(rest)?,
                _ => self.take_of_word(rest),
            };
            at += taken;
            self.position += taken as u64;
            let is_whole = self.words_left == 0 && self.word_left == 0 && self.line.is_empty();
            if is_whole && let Some(end) = self.end(marks) {
                out(bytes.get(passed..at).unwrap_or_default())?;
                out(&end)?;
                passed = at;
            }
        }
        out(bytes.get(passed..).unwrap_or_default())
    }

    fn take_of_line(&mut self, bytes: &[u8]) -> Result<usize> {
        let feed = bytes.iter().position(|byte| *byte == b'\n');
        let taken = feed.map_or(bytes.len(), |at| at + 1);
        self.line
            .extend_from_slice(bytes.get(..taken).unwrap_or_default());
        if feed.is_some() {
            let line = std::mem::take(&mut self.line);
            let number = std::str::from_utf8(line.get(1..).unwrap_or_default());
            let number = number.ok().and_then(|text| text.trim_end().parse().ok());
            let number: u64 = number.ok_or_else(|| {
                err!(
                    Damaged,
                    "the history has no command at position {}",
                    self.position
                )
            })?;
            if self.words_left == 0 {
                self.words_left = number;
                self.words.clear();
            } else {
                self.word_left = number.saturating_add(2);
                if self.words.len() < WORDS_KEPT {
                    self.words.push(Vec::new());
                }
            }
        }
        Ok(taken)
    }

    fn take_of_word(&mut self, bytes: &[u8]) -> usize {
        let taken = usize::try_from(self.word_left)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        // The last two bytes are the line end.
        let text = usize::try_from(self.word_left.saturating_sub(2)).unwrap_or(usize::MAX);
        let is_kept = self.words_left > 0 && self.words.len() <= WORDS_KEPT;
        let limit = match self.words.len().checked_sub(1) {
            // One byte more shows that it is longer.
            Some(KEY) => KEY_BYTES_KEPT + 1,
            _ => WORD_BYTES_KEPT,
        };
        if let Some(word) = self.words.last_mut().filter(|_| is_kept) {
            let room = limit.saturating_sub(word.len());
            let part = bytes.get(..text.min(taken).min(room)).unwrap_or_default();
            word.extend_from_slice(part);
        }
        self.word_left -= taken as u64;
        if self.word_left == 0 {
            self.words_left -= 1;
        }
        taken
    }

    /// The command that says when the key of the present one ends, where that says how long it has.
    fn end(&self, marks: &[Mark]) -> Option<Vec<u8>> {
        let words: Vec<&[u8]> = self.words.iter().map(Vec::as_slice).collect();
        let millis = lifetime(&words)?;
        let key = words.get(KEY).filter(|key| key.len() <= KEY_BYTES_KEPT)?;
        // An object may have as many marks as commands: they are not looked through for each.
        let at = marks.partition_point(|mark| mark.position < self.position);
        let arrived = marks.get(at)?;
        let end = (arrived.arrived_us / 1000).saturating_add(millis);
        let end = end.to_string();
        Some(resp::command(&[b"PEXPIREAT", key, end.as_bytes()]))
    }
}

/// Returns how many milliseconds a command gives to its key, counted from now; none where it tells no such thing.
fn lifetime(words: &[&[u8]]) -> Option<i64> {
    let number = |at: usize| -> Option<i64> {
        let text = std::str::from_utf8(words.get(at)?).ok()?;
        text.parse().ok()
    };
    let seconds = |at| number(at)?.checked_mul(1000);
    let place = |option: &[u8], from: usize| {
        let options = words.get(from..)?;
        let found = options
            .iter()
            .position(|word| word.eq_ignore_ascii_case(option));
        found.map(|at| from + at)
    };
    let is = |name: &[u8]| words.first().is_some_and(|w| w.eq_ignore_ascii_case(name));
    match () {
        () if is(b"EXPIRE") || is(b"SETEX") => seconds(2),
        () if is(b"PEXPIRE") || is(b"PSETEX") => number(2),
        () if is(b"SET") || is(b"GETEX") => {
            let from = if is(b"SET") { 3 } else { 2 };
            match (place(b"EX", from), place(b"PX", from)) {
                (Some(at), _) => seconds(at + 1),
                (None, Some(at)) => number(at + 1),
                (None, None) => None,
            }
        }
        () if is(b"RESTORE") || is(b"RESTORE-ASKING") => {
            let is_absolute = place(b"ABSTTL", 4).is_some();
            number(2).filter(|millis| *millis > 0 && !is_absolute)
        }
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(commands: &[&[&str]]) -> Vec<u8> {
        let one = |words: &&[&str]| {
            let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            resp::command(&words)
        };
        commands.iter().flat_map(one).collect()
    }

    #[test]
    fn what_has_so_long_ends_at_a_time_however_the_bytes_come() {
        let long = "x".repeat(10_000);
        let given: [&[&str]; 10] = [
            &["SELECT", "3"],
            &["SET", "a", &long, "EX", "100"],
            &["set", "b", "EX", "px", "1500", "nx"],
            &["SET", "c", "EX"],
            &["MULTI"],
            &["Expire", "a b", "7"],
            &["EXEC"],
            &["PSETEX", "d", "20", &long],
            &["RESTORE", "e", "900", &long, "REPLACE", "ABSTTL"],
            &["RESTORE", "f", "900", &long],
        ];
        let mut expected = Vec::new();
        for (n, end) in [
            (0, None),
            (1, Some(("a", 101_000))),
            (2, Some(("b", 2500))),
            (3, None),
            (4, None),
            (5, Some(("a b", 8000))),
            (6, None),
            (7, Some(("d", 1020))),
            (8, None),
            (9, Some(("f", 1900))),
        ] {
            expected.extend(lines(&[given[n]]));
            if let Some((key, at)) = end {
                expected.extend(lines(&[&["PEXPIREAT", key, &at.to_string()]]));
            }
        }
        let all = lines(&given);
        let marks = [Mark {
            position: 50 + all.len() as u64,
            arrived_us: 1_000_999,
        }];
        for size in [1, 7, 100, 5000, all.len()] {
            let (mut ends, mut found) = (Ends::new(50), Vec::new());
            for piece in all.chunks(size) {
                let put = &mut |bytes: &[u8]| {
                    found.extend_from_slice(bytes);
                    Ok(())
                };
                ends.pass(piece, &marks, put).unwrap();
            }
            assert!(found == expected, "{size}");
        }
        assert!(
            Ends::new(0)
                .pass(b"+OK\r\n", &marks, &mut |_| Ok(()))
                .is_err()
        );
    }

    #[test]
    fn each_key_ends_by_the_first_mark_behind_its_command() {
        let one = lines(&[&["SETEX", "a", "1", "x"]]);
        let length = one.len() as u64;
        // Two marks before it, one at its end, and one that comes too late.
        let mark = |position, arrived_us| Mark {
            position,
            arrived_us,
        };
        let marks = [
            mark(10, 1_000),
            mark(50, 2_000),
            mark(50 + length, 5_000_000),
            mark(51 + length, 9_000_000),
        ];
        let found = |marks: &[Mark]| {
            let (mut ends, mut found) = (Ends::new(50), Vec::new());
            let put = &mut |bytes: &[u8]| {
                found.extend_from_slice(bytes);
                Ok(())
            };
            ends.pass(&one, marks, put).unwrap();
            found
        };
        let end = lines(&[&["PEXPIREAT", "a", "6000"]]);
        assert_eq!(found(&marks), [one.clone(), end].concat());
        assert_eq!(found(&marks[..2]), one);
    }
}
