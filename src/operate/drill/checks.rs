//! The operator's own queries, each with the value that it has to return.
//!
//! ```text
//! -- database: shop
//! -- expect: 3
//! select count(*) from warehouses;
//! ```

use std::path::Path;

use super::Checked;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::operate::quarantine::Quarantined;
use crate::operate::server::Server;
use crate::operate::session::Session;
use crate::repo::drilled::Phase;

/// A longer file is none of checks.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Characters of a query that name it.
const NAME_CHARACTERS: usize = 60;
/// The database of queries for which the file names none.
const DATABASE: &str = "postgres";

/// A query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The database in which it runs.
    pub database: String,
    /// The query, without its semicolon.
    pub query: String,
    /// The value of its first row's first column; none where it only has to run.
    pub expected: Option<String>,
}

impl Check {
    fn name(&self) -> String {
        let words: Vec<&str> = self.query.split_whitespace().collect();
        let line = words.join(" ");
        match line.chars().count() > NAME_CHARACTERS {
            true => line.chars().take(NAME_CHARACTERS).chain(['…']).collect(),
            false => line,
        }
    }
}

/// Reads a file of checks.
///
/// # Errors
/// `Usage` where it cannot be read or understood.
pub fn read(path: &Path) -> Result<Vec<Check>> {
    let doing = || format!("read checks \"{}\"", path.display());
    let failed = |e| Error::from_io(doing(), e).with_code(Code::Usage);
    if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
        return Err(err!(Usage, "it has more than 1 MiB").context(doing()));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    parse(&text).map_err(|e| e.context(doing()))
}

/// Reads checks: a query ends with a semicolon at the end of a line.
///
/// # Errors
/// `Usage`.
pub fn parse(text: &str) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    let mut database = DATABASE.to_owned();
    let mut expected: Option<String> = None;
    let mut query = String::new();
    for (at, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if let Some(comment) = trimmed.strip_prefix("--").filter(|_| query.is_empty()) {
            let comment = comment.trim();
            if let Some(value) = comment.strip_prefix("expect:") {
                if expected.is_some() {
                    let at = at + 1;
                    return Err(err!(Usage, "line {at}: a second value for one query"));
                }
                expected = Some(value.trim().to_owned());
            } else if let Some(name) = comment.strip_prefix("database:") {
                database = name.trim().to_owned();
            }
            continue;
        }
        if trimmed.is_empty() && query.is_empty() {
            continue;
        }
        query.push_str(line);
        query.push('\n');
        if let Some(whole) = query.trim_end().strip_suffix(';') {
            checks.push(Check {
                database: database.clone(),
                query: whole.trim().to_owned(),
                expected: expected.take(),
            });
            query.clear();
        }
    }
    match (query.is_empty(), expected.is_none(), checks.is_empty()) {
        (true, true, false) => Ok(checks),
        (true, true, true) => Err(err!(Usage, "it has no query")),
        (true, false, _) => Err(err!(Usage, "a value stands above no query")),
        (false, ..) => Err(err!(
            Usage,
            "the last query has no semicolon at the end of a line"
        )),
    }
}

/// Runs the checks, each in a transaction that may only read.
///
/// # Errors
/// `Interrupted`; errors of the session that are not the server's word about a query.
pub(super) fn run(
    session: &Session,
    server: &mut Quarantined,
    checks: &[Check],
) -> Result<Vec<Checked>> {
    let mut done = Vec::new();
    for check in checks {
        session.host.check_stop()?;
        let asked = server
            .connect(&check.database)
            .and_then(|mut sql| ask(&mut sql, check));
        let found = match asked {
            Err(_) if session.host.is_stopping() => {
                return session.host.check_stop().map(|()| done);
            }
            Err(e) if matches!(e.code(), Code::Server | Code::Denied) => Some(e.to_string()),
            asked => asked?,
        };
        done.push(Checked {
            phase: Phase::Checks,
            name: check.name(),
            passed: found.is_none(),
            found,
        });
    }
    Ok(done)
}

/// Asks a query; returns what is wrong, if anything is.
fn ask(sql: &mut Server, check: &Check) -> Result<Option<String>> {
    sql.query("begin transaction read only")?;
    let rows = sql.query(&check.query)?;
    let value = match rows.rows.first() {
        None => "no row".to_owned(),
        Some(_) => rows.text(0, 0)?.unwrap_or("null").to_owned(),
    };
    let expected = check.expected.as_ref().filter(|e| **e != value);
    Ok(expected.map(|expected| format!("it returned {value}, {expected} was expected")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_queries_with_values_and_databases() {
        let text = "-- the shop\n-- database: shop\n\n-- expect: 3\nselect count(*)\n  from w;\nselect 1;\n-- database: other\n-- expect:\nselect '';\n";
        let check = |database: &str, query: &str, expected: Option<&str>| Check {
            database: database.into(),
            query: query.into(),
            expected: expected.map(Into::into),
        };
        let checks = parse(text).unwrap();
        assert_eq!(
            checks,
            [
                check("shop", "select count(*)\n  from w", Some("3")),
                check("shop", "select 1", None),
                check("other", "select ''", Some("")),
            ]
        );
        assert_eq!(checks[0].name(), "select count(*) from w");
        assert!(check("a", &"x".repeat(100), None).name().ends_with('…'));
    }

    #[test]
    fn a_file_that_is_not_whole_is_refused() {
        for (text, why) in [
            ("", "no query"),
            ("-- expect: 3\n", "above no query"),
            ("select 1", "no semicolon"),
            ("-- expect: 1\n-- expect: 2\nselect 1;", "line 2"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.code(), Code::Usage);
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
