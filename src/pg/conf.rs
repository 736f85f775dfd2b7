//! Configuration files of the server (`postgresql.conf`, `postgresql.auto.conf`) as bytes: read, append, take away by name and value.
//!
//! PostgreSQL: src/backend/utils/misc/guc-file.l (`ParseConfigFp`, `DeescapeQuotedString`), guc.c
//! (`write_auto_conf_file`, `replace_auto_config_value`). The last of several lines with one name counts.

use crate::err;
use crate::error::Result;

/// Whether a value switches a setting off; none does not.
pub fn is_off(value: Option<&str>) -> bool {
    // PostgreSQL: src/backend/utils/adt/bool.c, parse_bool_with_len: any beginning that is unambiguous.
    let value = value.map(str::to_ascii_lowercase).unwrap_or_default();
    let begins = |word: &str, least: usize| value.len() >= least && word.starts_with(&value);
    begins("off", 2) || begins("false", 1) || begins("no", 1) || value == "0"
}

/// A setting as written in a file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Setting {
    /// Its name in lower case: PostgreSQL compares names without regard to case.
    pub name: String,
    /// Its value without quotes.
    pub value: String,
}

impl Setting {
    /// A setting of this name and value.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Setting {
        Setting {
            name: name.into(),
            value: value.into(),
        }
    }

    /// The line that sets it, without its end.
    ///
    /// # Errors
    /// `Usage` when the value holds a line feed, a carriage return or a zero byte: no file can carry it.
    pub fn line(&self) -> Result<String> {
        if self.value.contains(['\n', '\r', '\0']) {
            return Err(err!(
                Usage,
                "the value of setting \"{}\" holds a line break",
                self.name
            ));
        }
        let quoted = self.value.replace('\\', "\\\\").replace('\'', "''");
        Ok(format!("{} = '{quoted}'", self.name))
    }
}

/// All settings of a file, in order; lines that PostgreSQL would not understand are left out. Values that are not UTF-8 are read with
/// replacement characters.
pub fn settings(text: &[u8]) -> Vec<Setting> {
    lines(text).filter_map(parse_line).collect()
}

/// The value that counts for `name` in this file.
pub fn value_of(text: &[u8], name: &str) -> Option<String> {
    let found = |s: &Setting| s.name == name;
    settings(text).into_iter().rfind(found).map(|s| s.value)
}

/// The text with `added` behind it, below the comment line `# <comment>`.
///
/// # Errors
/// Those of [`Setting::line`].
pub fn append(text: &[u8], comment: &str, added: &[Setting]) -> Result<Vec<u8>> {
    let mut out = text.to_vec();
    if !out.is_empty() && !out.ends_with(b"\n") {
        out.push(b'\n');
    }
    out.extend_from_slice(format!("# {comment}\n").as_bytes());
    for setting in added {
        out.extend_from_slice(setting.line()?.as_bytes());
        out.push(b'\n');
    }
    Ok(out)
}

/// The text without the lines that set one of `unwanted` to exactly its value, and without the comment line `# <comment>`; `None` when
/// there is none of them.
///
/// ALTER SYSTEM writes the file anew and drops comments, so lines are known by name and value alone.
pub fn without(text: &[u8], comment: &str, unwanted: &[Setting]) -> Option<Vec<u8>> {
    let comment = format!("# {comment}");
    let is_unwanted = |line: &[u8]| {
        line.trim_ascii() == comment.as_bytes()
            || parse_line(line).is_some_and(|found| unwanted.contains(&found))
    };
    let mut out = Vec::with_capacity(text.len());
    let mut changed = false;
    for line in text.split_inclusive(|&b| b == b'\n') {
        if is_unwanted(line) {
            changed = true;
        } else {
            out.extend_from_slice(line);
        }
    }
    changed.then_some(out)
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&b| b == b'\n')
}

/// `name [=] value [# comment]`.
fn parse_line(line: &[u8]) -> Option<Setting> {
    let line = line.trim_ascii();
    let end = line
        .iter()
        .position(|&b| !is_name_byte(b))
        .unwrap_or(line.len());
    let (name, rest) = line.split_at_checked(end)?;
    let starts_well = name
        .first()
        .is_some_and(|&b| b.is_ascii_alphabetic() || b == b'_' || b >= 0x80);
    if !starts_well {
        return None;
    }
    let spaced = rest.trim_ascii_start();
    let value = match spaced.strip_prefix(b"=") {
        Some(value) => value.trim_ascii_start(),
        // Without the equals sign a space parts name and value.
        None if spaced.len() < rest.len() => spaced,
        None => return None,
    };
    Some(Setting {
        name: String::from_utf8_lossy(name).to_ascii_lowercase(),
        value: String::from_utf8_lossy(&parse_value(value)?).into_owned(),
    })
}

fn is_name_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'.') || b >= 0x80
}

fn parse_value(text: &[u8]) -> Option<Vec<u8>> {
    let Some(quoted) = text.strip_prefix(b"'") else {
        let end = text
            .iter()
            .position(|&b| b.is_ascii_whitespace() || b == b'#')
            .unwrap_or(text.len());
        return text
            .get(..end)
            .filter(|v| !v.is_empty())
            .map(<[u8]>::to_vec);
    };
    let mut value = Vec::new();
    let mut bytes = quoted.iter().copied().peekable();
    loop {
        match bytes.next()? {
            b'\'' if bytes.peek() == Some(&b'\'') => value.extend(bytes.next()),
            b'\'' => return Some(value),
            b'\\' => value.push(unescape(&mut bytes)?),
            other => value.push(other),
        }
    }
}

fn unescape(bytes: &mut std::iter::Peekable<impl Iterator<Item = u8>>) -> Option<u8> {
    Some(match bytes.next()? {
        b'b' => 8,
        b'f' => 12,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        digit @ b'0'..=b'7' => {
            let mut number = u32::from(digit - b'0');
            for _ in 0..2 {
                match bytes.peek() {
                    Some(&next @ b'0'..=b'7') => {
                        number = number * 8 + u32::from(next - b'0');
                        bytes.next();
                    }
                    _ => break,
                }
            }
            // As the C code does: the low byte.
            u8::try_from(number & 0xFF).unwrap_or(0)
        }
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> Option<(String, String)> {
        parse_line(line.as_bytes()).map(|s| (s.name, s.value))
    }

    #[test]
    fn lines_are_read_as_postgresql_does() {
        let is = |name: &str, value: &str| Some((name.to_owned(), value.to_owned()));
        assert_eq!(one("work_mem = 4MB"), is("work_mem", "4MB"));
        assert_eq!(one("  Work_Mem 4MB# a comment"), is("work_mem", "4MB"));
        assert_eq!(one("a.b='x y' # c"), is("a.b", "x y"));
        assert_eq!(
            one(r"a = 'it''s \'so\' \\ \n\101'"),
            is("a", "it's 'so' \\ \nA")
        );
        assert_eq!(one("a=''"), is("a", ""));
        assert_eq!(one("listen_addresses='*'"), is("listen_addresses", "*"));
        assert_eq!(one("include 'x.conf'"), is("include", "x.conf"));
        for nothing in ["", "# a = b", "a", "a =", "a = 'open", "= b", "1a = b"] {
            assert_eq!(one(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn what_is_appended_is_read_back_and_taken_away_again() {
        let old = b"# first\nwork_mem = '4MB'".as_slice();
        let mine = [
            Setting::new("restore_command", r#"/a\b 'c' "%f" %p"#),
            Setting::new("recovery_target_lsn", "0/3000060"),
        ];
        let new = append(old, "by pitr", &mine).unwrap();
        assert_eq!(settings(&new)[1..], mine);
        assert_eq!(
            without(&new, "by pitr", &mine).unwrap(),
            b"# first\nwork_mem = '4MB'\n"
        );
        // ALTER SYSTEM has rewritten the file; one value was changed by the operator.
        let theirs = "# Do not edit\nwork_mem = '4MB'\nrestore_command = '/a\\\\b ''c'' \"%f\" %p'\nrecovery_target_lsn = '0/5'\n";
        assert_eq!(
            without(theirs.as_bytes(), "by pitr", &mine).unwrap(),
            b"# Do not edit\nwork_mem = '4MB'\nrecovery_target_lsn = '0/5'\n"
        );
        assert_eq!(without(old, "by pitr", &mine), None);
        assert!(Setting::new("a", "b\nc").line().is_err());
    }

    #[test]
    fn the_last_line_counts() {
        let text = b"a = 1\nA = '2'\nb = 3\n";
        assert_eq!(value_of(text, "a").as_deref(), Some("2"));
        assert_eq!(value_of(text, "c"), None);
    }

    proptest::proptest! {
        #[test]
        fn any_value_comes_back(value in "[^\\x00\n\r]{0,40}") {
            let setting = Setting::new("x", value);
            let line = setting.line().unwrap();
            proptest::prop_assert_eq!(parse_line(line.as_bytes()), Some(setting));
        }

        #[test]
        fn any_bytes_are_lines_or_nothing(text in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80)) {
            let _ = settings(&text);
            let _ = without(&text, "c", &[]);
        }
    }
}
