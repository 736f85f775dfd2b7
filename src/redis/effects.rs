//! A history without the commands that change nothing: servers never write `PING` and `REPLCONF` into an append-only file.

use super::command::{Effect, Reader};
use crate::error::Result;

/// A command is held back until its end shows that it changes something, or until it is longer than this.
const HELD_BYTES_MAX: usize = 4096;

/// Passes on the commands of a history that change something.
pub struct Effects {
    reader: Reader,
    /// The beginning of a command.
    held: Vec<u8>,
    /// The present command is passed on as it comes.
    is_passing: bool,
    /// Commands that change keys.
    writes: u64,
    /// The greatest number of a database that was named.
    last_db: u32,
}

impl Effects {
    /// Begins with a command.
    pub fn new(position: u64, db: Option<u32>) -> Effects {
        Effects {
            reader: Reader::new(position, db),
            held: Vec::new(),
            is_passing: false,
            writes: 0,
            last_db: db.unwrap_or(0),
        }
    }

    /// Passes bytes on to `out`.
    ///
    /// # Errors
    /// `Damaged` for bytes that are no commands; those of `out`.
    pub fn pass(&mut self, bytes: &[u8], out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let start = self.reader.position();
        let mut ends = Vec::new();
        let last_db = &mut self.last_db;
        self.reader.read(bytes, &mut |command| {
            ends.push((command.end, command.effect));
            *last_db = (*last_db).max(command.greatest_db());
            Ok(())
        })?;
        // Commands that are passed on together need no copy.
        let mut run = 0..0;
        let mut at = 0;
        for (end, effect) in ends {
            let end = usize::try_from(end - start).unwrap_or(usize::MAX);
            if effect != Effect::None || self.is_passing {
                if run.end != at {
                    put(bytes, run, out)?;
                    run = at..at;
                }
                // The first command alone has such bytes.
                put(&self.held, 0..self.held.len(), out)?;
                run.end = end;
            }
            self.writes += u64::from(effect == Effect::Write);
            self.held.clear();
            self.is_passing = false;
            at = end;
        }
        if self.is_passing {
            return out(bytes);
        }
        put(bytes, run, out)?;
        self.held
            .extend_from_slice(bytes.get(at..).unwrap_or_default());
        if self.held.len() > HELD_BYTES_MAX {
            self.is_passing = true;
            out(&std::mem::take(&mut self.held))?;
        }
        Ok(())
    }

    /// Commands that change keys, so far.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// The greatest number of a database that was named so far.
    pub fn last_db(&self) -> u32 {
        self.last_db
    }

    /// Whether all commands so far are whole, and no transaction is open.
    pub fn is_at_cut(&self) -> bool {
        self.reader.is_at_cut()
    }
}

fn put(
    bytes: &[u8],
    part: std::ops::Range<usize>,
    out: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    match bytes.get(part) {
        Some(part) if !part.is_empty() => out(part),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::resp;

    #[test]
    fn what_changes_nothing_is_left_out_however_the_bytes_come() {
        let long = vec![b'x'; 10_000];
        let commands: [&[&[u8]]; 7] = [
            &[b"PING"],
            &[b"SET", b"a", &long],
            &[b"REPLCONF", b"GETACK", b"*"],
            &[b"MULTI"],
            &[b"SWAPDB", b"3", b"40"],
            &[b"EXEC"],
            &[b"PING"],
        ];
        let all: Vec<u8> = commands.iter().flat_map(|c| resp::command(c)).collect();
        let wanted = [1, 3, 4, 5];
        let expected: Vec<u8> = wanted
            .iter()
            .flat_map(|n| resp::command(commands[*n]))
            .collect();
        for size in [1, 7, 100, 5000, all.len()] {
            let (mut effects, mut found) = (Effects::new(0, None), Vec::new());
            for piece in all.chunks(size) {
                effects
                    .pass(piece, &mut |bytes| {
                        found.extend_from_slice(bytes);
                        Ok(())
                    })
                    .unwrap();
            }
            assert_eq!(found, expected, "{size}");
            assert_eq!((effects.writes(), effects.is_at_cut()), (1, true));
            assert_eq!(effects.last_db(), 40);
        }
    }
}
