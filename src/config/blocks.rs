//! The part of a text that can be read although it is no TOML as a whole: blocks, each from one header to the next.
//!
//! Nothing is guessed. A parser that goes on behind an error makes up values that nobody wrote, and a sink would run its command with them.

use toml::de::{DeTable, Error};

/// A value across lines may have lines that look like headers: a block goes on over so many of them.
const JOINED: usize = 16;
/// Blocks that are left out because they do not go together with others.
const LEFT_OUT: usize = 16;

/// Blanks every block that is no TOML by itself; what is left keeps its position. None where that is no TOML either.
pub(super) fn sound(text: &str) -> Option<String> {
    let mut blocks = blocks(text);
    for _ in 0..LEFT_OUT {
        let whole = blocks.concat();
        let Some(e) = error(&whole) else {
            return Some(whole);
        };
        let at = e.span()?.start;
        let mut end = 0;
        let block = blocks.iter_mut().find(|block| {
            end += block.len();
            at < end
        });
        let block = block?;
        *block = blanked(block);
    }
    None
}

fn error(text: &str) -> Option<Error> {
    DeTable::parse(text).err()
}

/// Cuts a text into its blocks, those that are no TOML blanked.
fn blocks(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let is_header = |line: &&str| line.trim_start().starts_with('[');
    let mut pieces: Vec<String> = Vec::new();
    for line in &lines {
        match pieces.last_mut() {
            Some(piece) if !is_header(line) => piece.push_str(line),
            _ => pieces.push((*line).to_owned()),
        }
    }
    let mut found = Vec::new();
    let mut rest = pieces.as_slice();
    while let Some((first, after)) = rest.split_first() {
        let joined = (1..=JOINED.min(rest.len())).find_map(|count| {
            let (own, others) = rest.split_at_checked(count)?;
            let whole = own.concat();
            error(&whole).is_none().then_some((whole, others))
        });
        let (block, others) = joined.unwrap_or_else(|| (readable_lines(first), after));
        found.push(block);
        rest = others;
    }
    found
}

/// Keeps single lines of the agent's section alone, which tells where everything lies.
fn readable_lines(block: &str) -> String {
    let is_agent = block.trim_start().starts_with("[agent]");
    let lines = block.split_inclusive('\n');
    let lines = lines.map(|line| match is_agent && error(line).is_none() {
        true => line.to_owned(),
        false => blanked(line),
    });
    lines.collect()
}

fn blanked(text: &str) -> String {
    let blank = |byte| if byte == b'\n' { '\n' } else { ' ' };
    text.bytes().map(blank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines that are left.
    fn left(text: &str) -> Option<Vec<String>> {
        let sound = sound(text)?;
        assert_eq!(sound.len(), text.len());
        let lines = sound.lines().map(str::trim_end);
        let lines = lines.filter(|line| !line.is_empty());
        Some(lines.map(str::to_owned).collect())
    }

    #[test]
    fn of_a_wrong_text_whole_blocks_are_left_and_of_the_agents_its_lines() {
        let text = "[a.x]\nk = [\"p\", \"q, \"r\"]\n[a.y]\nk = [\"p\", \"q\"\n[agent]\ns = \"/s\"\ni = \"1m\n[a.z]\nk = 1\n";
        assert_eq!(
            left(text).unwrap(),
            ["[agent]", "s = \"/s\"", "[a.z]", "k = 1"]
        );
        let header = "[a.x\nk = 1\n[a.y]\nk = 2\n";
        assert_eq!(left(header).unwrap(), ["[a.y]", "k = 2"]);
        let quoted = "[a.x]\nk = \"\"\"\n[a.w]\nk = 7\n\"\"\"\n[a.y]\nk = ü\n[a.z]\nk = 2\n";
        let lines = [
            "[a.x]",
            "k = \"\"\"",
            "[a.w]",
            "k = 7",
            "\"\"\"",
            "[a.z]",
            "k = 2",
        ];
        assert_eq!(left(quoted).unwrap(), lines);
        // A name that stands twice: the first one counts.
        let twice = "[a.x]\nk = 1\n[a.y]\nk = 2\n[a.x]\nk = 3\n";
        assert_eq!(left(twice).unwrap(), ["[a.x]", "k = 1", "[a.y]", "k = 2"]);
        let many = "[a.x]\nk = 1\n".repeat(LEFT_OUT + 2);
        assert_eq!(left(&many), None);
        assert_eq!(left("").unwrap(), [""; 0]);
    }
}
