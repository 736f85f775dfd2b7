//! Replaces text that differs from run to run by names in brackets, and leaves everything else as it is.
//!
//! Names with a number are given in order of appearance, so that equal values stay equal: `[backup-1]`, `[lsn-2]`.
//! Lines of a table depend on the width of the replaced text: after it two spaces and more become two. Replaced text at
//! the end of its line has no such effect.

use std::collections::BTreeMap;

/// How much is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// A frozen repository: its ids, times, positions and sizes are those of its file.
    Frozen,
    /// A server that runs now: its ids, times, positions and sizes are new each time.
    Live,
}

/// Replaces, and remembers what it has seen.
pub struct Redactor {
    data: Data,
    literals: Vec<(String, String)>,
    seen: BTreeMap<&'static str, Vec<String>>,
    unnumbered: Vec<&'static str>,
}

/// A part of a line that is replaced.
struct Found {
    length: usize,
    name: String,
    /// A number stands at the right of its column: the spaces before it vary, too.
    is_number: bool,
}

impl Redactor {
    /// Replaces these texts wherever they stand as a word or the beginning of a path, the longest first.
    pub fn new(data: Data, literals: &[(String, String)]) -> Redactor {
        let mut literals = literals.to_vec();
        literals.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        Redactor {
            data,
            literals,
            seen: BTreeMap::new(),
            unnumbered: Vec::new(),
        }
    }

    /// Adds a text to be replaced.
    pub fn add(&mut self, text: impl Into<String>, name: &str) {
        self.literals.push((text.into(), name.to_owned()));
        let literals = &mut self.literals;
        literals.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
    }

    /// Gives values of this kind the same name, whether they are equal or not.
    pub fn forget(&mut self, kind: &'static str) {
        self.unnumbered.push(kind);
    }

    /// Returns the text with everything replaced. Spaces at the ends of lines go.
    pub fn text(&mut self, text: &str) -> String {
        let mut out = String::new();
        let mut block = Vec::new();
        for line in text.lines() {
            if line.trim().is_empty() {
                flush(&mut out, &mut block);
                out.push('\n');
            } else {
                block.push(self.line(line));
            }
        }
        flush(&mut out, &mut block);
        out
    }

    /// Returns the line and the column from which on its spaces vary.
    fn line(&mut self, line: &str) -> (String, Option<usize>) {
        let mut out = String::new();
        let mut varies_from = None;
        let mut at = 0;
        while let Some(c) = line[at..].chars().next() {
            let Some(found) = self.find(line, at) else {
                out.push(c);
                at += c.len_utf8();
                continue;
            };
            let before = out.trim_end_matches(' ');
            let is_column = out.len() >= before.len() + 2;
            at += found.length;
            let fixed = match found.is_number && is_column {
                true => Some(before),
                false => line[at..].contains("  ").then_some(out.as_str()),
            };
            if let Some(fixed) = fixed {
                let column = fixed.chars().count();
                varies_from = varies_from.or(Some(column));
            }
            out.push_str(&found.name);
        }
        (out.trim_end().to_owned(), varies_from)
    }

    /// Returns the value that begins at this place of the line, if any.
    fn find(&mut self, line: &str, at: usize) -> Option<Found> {
        let before = line[..at].chars().next_back();
        let rest = &line[at..];
        if let Some(found) = self.literal(before, rest) {
            return Some(found);
        }
        // When verify read something is today in a frozen repository, too.
        let is_todays = ["the longest ago ", "\"oldest\": \""];
        if self.data == Data::Frozen && is_todays.iter().any(|w| line[..at].ends_with(w)) {
            return moment(rest);
        }
        // Inside of a word nothing begins.
        if before.is_some_and(|c| c.is_ascii_alphanumeric()) || self.data == Data::Frozen {
            return None;
        }
        if let Some(length) = spool(rest) {
            return Some(found(length, "[spool]".into()));
        }
        self.number_after_word(&line[..at], rest)
            .or_else(|| self.id(before, rest))
            .or_else(|| moment(rest))
            .or_else(|| amount(before, rest))
            .or_else(|| unit(&line[..at], rest))
    }

    fn literal(&self, before: Option<char>, rest: &str) -> Option<Found> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let fits = |text: &str| {
            let after = rest[text.len()..].chars().next();
            let begins = !text.starts_with(is_word) || !before.is_some_and(is_word);
            begins && !(text.ends_with(is_word) && after.is_some_and(is_word))
        };
        let (text, name) = (self.literals.iter())
            .find(|(text, _)| rest.starts_with(text.as_str()) && fits(text))?;
        Some(found(text.len(), name.clone()))
    }

    /// `transaction 745`, `pid 4711`, and numbers of JSON by their keys.
    fn number_after_word(&mut self, line: &str, rest: &str) -> Option<Found> {
        let length = run(rest, |c| c.is_ascii_digit());
        let ends = |word: &str| line.ends_with(word);
        if length == 0 {
            return None;
        }
        if [
            "transaction ",
            "transactions ",
            "--target-xid ",
            "\"xid\": ",
        ]
        .into_iter()
        .any(ends)
        {
            let name = self.numbered("xid", &rest[..length]);
            return Some(found(length, name));
        }
        if ends("snapshot ") || ends("\"snapshot\": \"") {
            let length = run(rest, |c| c.is_ascii_digit() || c == ':' || c == ',');
            return Some(found(length, "[snapshot]".into()));
        }
        let amounts = ["_bytes\": ", "_ms\": ", "\"file_count\": "];
        // How many files a server has, and how many objects they become, differs from one minor release to the next.
        let counted = [" files", " objects", " B-tree indexes"];
        let is_counted = counted.iter().any(|noun| rest[length..].starts_with(noun));
        if is_counted || amounts.into_iter().any(ends) {
            return Some(found(length, "[number]".into()));
        }
        if ends("PostgreSQL 17.") {
            return Some(found(length, "[minor]".into()));
        }
        let is_process = ends("process id ") || ends("\"pid\": ");
        is_process.then(|| found(length, "[pid]".into()))
    }

    /// Backups, segments, positions, system identifiers and hashes.
    fn id(&mut self, before: Option<char>, rest: &str) -> Option<Found> {
        let word = &rest[..run(rest, |c| c.is_ascii_alphanumeric())];
        if shape(word, "00000000T000000Z") && rest[word.len()..].starts_with('-') {
            let length = run(rest, |c| c.is_ascii_alphanumeric() || c == '-');
            return Some(found(length, self.numbered("backup", &rest[..length])));
        }
        if shape(rest, "00000000T000000.000000Z-") {
            let length = run(rest, |c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
            return Some(found(length, self.numbered("event", &rest[..length])));
        }
        let is_upper = |c: char| c.is_ascii_digit() || ('A'..='F').contains(&c);
        if word.len() == 24 && word.chars().all(is_upper) {
            return Some(found(24, self.numbered("segment", word)));
        }
        if (18..=20).contains(&word.len()) && word.chars().all(|c| c.is_ascii_digit()) {
            return Some(found(word.len(), self.numbered("system", word)));
        }
        let is_lower = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if word.len() >= 16 && word.chars().all(is_lower) {
            return Some(found(word.len(), self.numbered("hash", &word[..16])));
        }
        let high = run(rest, is_upper);
        let low = match rest[high..].strip_prefix('/') {
            Some(low) => run(low, is_upper),
            None => 0,
        };
        let length = high + 1 + low;
        let is_path = before.is_some_and(|c| c == '/');
        let is_lsn = !is_path
            && (1..=8).contains(&high)
            && (1..=8).contains(&low)
            && ends_word(rest, length);
        is_lsn.then(|| found(length, self.numbered("lsn", &rest[..length])))
    }

    fn numbered(&mut self, kind: &'static str, value: &str) -> String {
        if self.unnumbered.contains(&kind) {
            return format!("[{kind}]");
        }
        let seen = self.seen.entry(kind).or_default();
        let index = seen.iter().position(|v| v == value);
        let index = index.unwrap_or_else(|| {
            seen.push(value.to_owned());
            seen.len() - 1
        });
        format!("[{kind}-{}]", index + 1)
    }
}

fn found(length: usize, name: String) -> Found {
    Found {
        length,
        name,
        is_number: false,
    }
}

/// How many bytes from the beginning on are such characters, all of them ASCII.
fn run(text: &str, is_one: impl Fn(char) -> bool) -> usize {
    text.chars().take_while(|c| is_one(*c)).count()
}

fn ends_word(rest: &str, length: usize) -> bool {
    !rest[length..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
}

/// Whether the text begins like this: 0 is any digit, everything else itself.
fn shape(text: &str, like: &str) -> bool {
    let mut chars = text.chars();
    like.chars().all(|l| {
        let c = chars.next();
        c.is_some_and(|c| if l == '0' { c.is_ascii_digit() } else { c == l })
    })
}

/// The length of the name of a cluster's spool, in which the path of its configuration is hashed.
fn spool(rest: &str) -> Option<usize> {
    let hash = rest.strip_prefix("main-")?;
    let length = run(hash, |c| c.is_ascii_hexdigit() || c == '-');
    (length > 16).then_some("main-".len() + length)
}

/// `2026-11-20 06:40:49Z`, `2026-11-20T06:40:49.123456Z`, `2026-11-20 06:40:49+00`.
fn moment(rest: &str) -> Option<Found> {
    let forms = ["0000-00-00 00:00:00", "0000-00-00T00:00:00"];
    if !forms.into_iter().any(|form| shape(rest, form)) {
        return None;
    }
    let mut length = forms[0].len();
    if let Some(fraction) = rest[length..].strip_prefix('.') {
        length += 1 + run(fraction, |c| c.is_ascii_digit());
    }
    let zone = &rest[length..];
    length += match zone.chars().next() {
        Some('Z') => 1,
        Some('+' | '-') => 1 + run(&zone[1..], |c| c.is_ascii_digit() || c == ':'),
        _ => 0,
    };
    Some(found(length, "[time]".into()))
}

/// `9.3 MiB`, `12 ms`, `1 min 5 s`, and a number with a decimal, as tables have it.
fn amount(before: Option<char>, rest: &str) -> Option<Found> {
    let digits = run(rest, |c| c.is_ascii_digit());
    let rest_of = rest[digits..].strip_prefix('.');
    let decimals = rest_of.map_or(0, |r| run(r, |c| c.is_ascii_digit()));
    // A version has more points than one, and a name may end with a number.
    if digits == 0 || before.is_some_and(|c| c == '.' || c == '-' || c == '[') {
        return None;
    }
    let number = match decimals {
        0 => digits,
        n => digits + 1 + n,
    };
    let after = &rest[number..];
    let unit = after
        .strip_prefix(' ')
        .map_or("", |r| &r[..run(r, |c| c.is_ascii_alphabetic())]);
    if ["B", "KiB", "MiB", "GiB"].contains(&unit) {
        return Some(found(number + 1 + unit.len(), "[size]".into()));
    }
    if ["ms", "s", "min"].contains(&unit) {
        let mut length = number + 1 + unit.len();
        // The second unit of two.
        let second = rest[length..].strip_prefix(' ').unwrap_or("");
        let more = run(second, |c| c.is_ascii_digit());
        if unit == "min" && more > 0 && second[more..].starts_with(" s") {
            length += 1 + more + 2;
        }
        return Some(found(length, "[duration]".into()));
    }
    let is_number = decimals == 1 && !after.starts_with('.') && ends_word(rest, number);
    is_number.then(|| Found {
        length: number,
        name: "[number]".into(),
        is_number: true,
    })
}

/// The unit in the head of a column, which follows from the largest size in it.
fn unit(line: &str, rest: &str) -> Option<Found> {
    let word = &rest[..run(rest, |c| c.is_ascii_alphabetic())];
    let is_head = ["size ", "stored "].iter().any(|head| line.ends_with(head));
    let is_unit = ["B", "KiB", "MiB", "GiB"].contains(&word);
    (is_head && is_unit).then(|| Found {
        length: word.len(),
        name: "[unit]".into(),
        is_number: false,
    })
}

/// Writes lines that stand together, and narrows the spaces behind the first column that varies in any of them.
fn flush(out: &mut String, block: &mut Vec<(String, Option<usize>)>) {
    let from = block.iter().filter_map(|(_, from)| *from).min();
    for (line, _) in block.drain(..) {
        match from {
            Some(from) => out.push_str(&narrowed(&line, from)),
            None => out.push_str(&line),
        }
        out.push('\n');
    }
}

fn narrowed(line: &str, from: usize) -> String {
    let chars: Vec<char> = line.chars().collect();
    let indent = chars.iter().take_while(|c| **c == ' ').count();
    let mut out = String::new();
    let mut at = 0;
    while at < chars.len() {
        let spaces = chars[at..].iter().take_while(|c| **c == ' ').count();
        let is_column = spaces >= 2 && at >= indent && at + spaces > from;
        if is_column {
            out.push_str("  ");
        } else {
            out.extend(&chars[at..at + spaces.max(1)]);
        }
        at += spaces.max(1);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> Redactor {
        let literals = [("/tmp/x", "[sandbox]"), ("21003", "[port]")];
        let literals = literals.map(|(a, b)| (a.to_owned(), b.to_owned()));
        Redactor::new(Data::Live, &literals)
    }

    #[test]
    fn equal_values_keep_equal_names() {
        let text = "20261121T143019Z-482913-full up to 0/13003E8, 20261121T143022Z-full up to 0/13003E8 of /tmp/x/repo and 20261121T143019Z-482913-full\n";
        assert_eq!(
            live().text(text),
            "[backup-1] up to [lsn-1], [backup-2] up to [lsn-1] of [sandbox]/repo and [backup-1]\n"
        );
    }

    #[test]
    fn what_is_no_value_of_a_run_stays() {
        for text in [
            "exit status 5, 2 segments, 12 rows, PostgreSQL 17, sha256, 1/2/3 and/or pg_wal/archive_status",
            "add it: max_wal_senders = '10', 24h, 10.0.0.1, port 5432",
            "{\n    \"a\":   1\n}",
        ] {
            assert_eq!(live().text(text), format!("{text}\n"));
        }
    }

    #[test]
    fn numbers_of_a_run_are_replaced_by_the_words_around_them() {
        assert_eq!(
            live().text("snapshot 741:743:741,742 of \"snapshot\": \"741:741:\", \"pid\": 4711, 272 B-tree indexes"),
            "snapshot [snapshot] of \"snapshot\": \"[snapshot]\", \"pid\": [pid], [number] B-tree indexes\n"
        );
    }

    #[test]
    fn times_sizes_and_lengths_of_time_are_replaced_whole() {
        assert_eq!(
            live().text("9.3 MiB in 1 min 5 s (2026-11-21T14:30:20.53Z), 12 ms, port=21003, 2026-11-21 14:30:20+00'"),
            "[size] in [duration] ([time]), [duration], port=[port], [time]'\n"
        );
    }

    #[test]
    fn columns_behind_what_varies_are_two_spaces_apart() {
        let table = "backup                 timeline  size MiB\n20261121T143019Z-full         1       7.9\n\na      b\n";
        assert_eq!(
            live().text(table),
            "backup  timeline  size [unit]\n[backup-1]  1  [number]\n\na      b\n"
        );
    }
}
