//! The operator's own queries, each with the value that it has to return.
//!
//! ```text
//! -- database: shop
//! -- expect: 3
//! select count(*) from warehouses;
//! -- expect: reltuples of orders ~ 5 %
//! select count(*) from orders;
//! ```

use std::path::Path;

use super::amcheck::name_of;
use super::{Checked, Findings};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::operate::quarantine::{Quarantined, is_not_checked};
use crate::operate::server::Server;
use crate::operate::session::Session;
use crate::repo::drilled::Phase;
use crate::wire::server_error;
use crate::wire::sql::{is_own_limit, is_too_long};

/// A longer file is none of checks.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Characters of a query that name it.
const NAME_CHARACTERS: usize = 60;
/// The database of queries for which the file names none.
const DATABASE: &str = "postgres";

/// A query.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// The database in which it runs.
    pub database: String,
    /// The query, without its semicolon.
    pub query: String,
    /// The value of its first row's first column; none where it only has to run.
    pub expected: Option<Expected>,
}

/// The value that a query has to return.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// This very text.
    Text(String),
    /// A number that differs from the figure by so many percent of it at most.
    About(Figure, f64),
}

/// The figure that a number is compared with.
#[derive(Debug, Clone, PartialEq)]
pub enum Figure {
    /// The operator's own.
    Number(f64),
    /// The rows of a table, as its catalog had them at the moment: by the last ANALYZE or VACUUM before it.
    Reltuples(String),
}

impl Expected {
    /// Reads the words behind "expect:".
    fn parse(words: &str) -> std::result::Result<Expected, &'static str> {
        let figure = words.split_once('~').map_or(words, |(figure, _)| figure);
        let table = figure.trim().strip_prefix("reltuples of ").map(str::trim);
        let behind = words.rsplit_once('~').map(|(_, behind)| behind.trim());
        let Some(percent) = behind.and_then(|behind| behind.strip_suffix('%')) else {
            return match table {
                Some(_) => Err("reltuples is an estimate, and needs a tolerance"),
                None => Ok(Expected::Text(words.to_owned())),
            };
        };
        let percent = percent.trim().parse::<f64>().ok();
        let percent = percent.filter(|p| p.is_finite() && *p >= 0.0);
        let figure = match table {
            Some(table) => Some(Figure::Reltuples(table.to_owned())),
            None => number(figure).map(Figure::Number),
        };
        match (figure, percent) {
            (Some(figure), Some(percent)) => Ok(Expected::About(figure, percent)),
            _ => Err("a tolerance needs a figure before it and percent behind it"),
        }
    }
}

/// A number as people and servers write it.
fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|n: &f64| n.is_finite())
}

/// Judges a value by a figure; returns what is wrong, if anything is.
fn about(value: &str, figure: f64, percent: f64) -> Option<String> {
    let is_near = |value: f64| (value - figure).abs() <= figure.abs() * percent / 100.0;
    match number(value) {
        Some(value) if is_near(value) => None,
        _ => Some(format!(
            "it returned {value}, {figure} was expected, within {percent} %"
        )),
    }
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

/// Whether the words of a comment look like one of the two directives.
fn is_like_directive(words: &str) -> bool {
    let words = words.trim_start_matches(|c: char| !c.is_alphabetic());
    let word = words.split(|c: char| !c.is_alphabetic()).next();
    let word = word.unwrap_or_default().to_lowercase();
    ["expect", "expects", "expected", "database", "databases"].contains(&word.as_str())
}

fn not_a_directive(line: usize) -> Error {
    err!(Usage, "line {line}: this comment looks like \"-- expect: VALUE\" or \"-- database: NAME\", and is not written or placed as one")
        .hint("Nothing was done. Both stand on a line of their own above the query, in lower case, with a colon. Reword a comment that is none.")
}

/// Takes a query that ends at the end of its last line; none where it goes on. `first` is the line at which it begins.
fn whole(query: &str, first: usize) -> Result<Option<&str>> {
    let line = |at: usize| first + query.get(..at).unwrap_or_default().matches('\n').count();
    let (comments, end) = lexed(query);
    for (at, comment) in comments {
        if comment.lines().any(is_like_directive) {
            return Err(not_a_directive(line(at)));
        }
        if comment.trim_end().ends_with(';') {
            let line = line(at);
            return Err(err!(
                Usage,
                "line {line}: the semicolon in this comment does not end the query"
            ));
        }
    }
    let Some((query, behind)) = end.and_then(|at| query.split_at_checked(at)) else {
        return Ok(None);
    };
    if behind.trim() != ";" {
        let line = line(query.len());
        return Err(err!(
            Usage,
            "line {line}: something stands behind the semicolon that ends a query"
        ));
    }
    Ok(Some(query.trim()))
}

/// The comments of a query, and its first semicolon outside of quotes.
fn lexed(query: &str) -> (Vec<(usize, &str)>, Option<usize>) {
    let mut comments = Vec::new();
    let mut at = 0;
    while let Some(rest) = query.get(at..).filter(|rest| !rest.is_empty()) {
        let before = query.get(..at).unwrap_or_default();
        let length = if rest.starts_with("--") {
            let length = rest.find('\n').unwrap_or(rest.len());
            comments.push((at, rest.get(..length).unwrap_or(rest)));
            length
        } else if rest.starts_with("/*") {
            let length = block(rest);
            comments.push((at, rest.get(..length).unwrap_or(rest)));
            length
        } else if rest.starts_with(['\'', '"']) {
            quoted(rest, before.ends_with(['e', 'E']))
        } else if let Some(tag) = dollar(rest, before) {
            let inside = rest.get(tag.len()..).unwrap_or_default();
            let end = inside.find(tag).map(|end| end + 2 * tag.len());
            end.unwrap_or(rest.len())
        } else if rest.starts_with(';') {
            return (comments, Some(at));
        } else {
            rest.chars().next().map_or(1, char::len_utf8)
        };
        at += length;
    }
    (comments, None)
}

/// The length of a comment in asterisks, which may hold others.
fn block(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let step = match rest.get(..2) {
            Some("/*") => (1, 2),
            Some("*/") => (-1, 2),
            _ => (0, rest.chars().next().map_or(1, char::len_utf8)),
        };
        depth += step.0;
        at += step.1;
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of a text or name in quotes. A quote that is doubled begins another one, which is as good.
fn quoted(text: &str, has_escapes: bool) -> usize {
    let mut characters = text.char_indices();
    let quote = characters.next().map(|(_, quote)| quote);
    while let Some((at, character)) = characters.next() {
        if has_escapes && character == '\\' {
            characters.next();
        } else if Some(character) == quote {
            return at + 1;
        }
    }
    text.len()
}

/// The tag with which a text in dollars begins, as `$body$`.
fn dollar<'a>(text: &'a str, before: &str) -> Option<&'a str> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    if before.ends_with(|c| is_part(c) || c == '$') {
        return None;
    }
    let name = text.strip_prefix('$')?;
    let end = name
        .find(|c| !is_part(c))
        .filter(|end| name.get(*end..).is_some_and(|n| n.starts_with('$')))?;
    let is_parameter = name.starts_with(|c: char| c.is_ascii_digit());
    text.get(..end + 2).filter(|_| !is_parameter)
}

/// Reads checks: a query ends with a semicolon at the end of a line. A comment that only looks like a directive is refused: a check without
/// its value would pass.
///
/// # Errors
/// `Usage`.
pub fn parse(text: &str) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    let mut database = DATABASE.to_owned();
    let mut expected: Option<Expected> = None;
    let mut query = String::new();
    let mut first = 1;
    for (at, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if let Some(comment) = trimmed.strip_prefix("--").filter(|_| query.is_empty()) {
            let comment = comment.trim();
            if let Some(value) = comment.strip_prefix("expect:") {
                if expected.is_some() {
                    let at = at + 1;
                    return Err(err!(Usage, "line {at}: a second value for one query"));
                }
                let value = Expected::parse(value.trim());
                expected = Some(value.map_err(|why| {
                    err!(Usage, "line {}: {why}", at + 1)
                        .hint("Nothing was done. Write \"-- expect: 3000 ~ 5 %\" or \"-- expect: reltuples of public.orders ~ 5 %\".")
                })?);
            } else if let Some(name) = comment.strip_prefix("database:") {
                database = name.trim().to_owned();
            } else if is_like_directive(comment) {
                return Err(not_a_directive(at + 1));
            }
            continue;
        }
        if trimmed.is_empty() && query.is_empty() {
            continue;
        }
        if query.is_empty() {
            first = at + 1;
        }
        query.push_str(line);
        query.push('\n');
        if !line.contains(';') {
            continue;
        }
        if let Some(whole) = whole(&query, first)? {
            checks.push(Check {
                database: database.clone(),
                query: whole.to_owned(),
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
    left_out: &[u32],
) -> Result<Findings> {
    let mut done = Findings::default();
    let lacking = lacking(server, left_out)?;
    for check in checks {
        session.host.check_stop()?;
        let (name, database) = (check.name(), &check.database);
        if lacking.contains(database) {
            done.notes.push(format!("check \"{name}\": the content of database {database} is left out of the backup, so it was not checked"));
            continue;
        }
        let asked = server
            .connect(&check.database)
            .and_then(|mut sql| ask(&mut sql, check));
        let asked = match asked {
            Err(_) if session.host.is_stopping() => {
                return session.host.check_stop().map(|()| done);
            }
            // Bytes that are not UTF-8 in a row of any other database are damage.
            Err(e) if is_not_checked(&e) && (is_too_long(&e) || !is_own_limit(&e)) => {
                Asked::NoFigure(e.to_string())
            }
            Err(e) if is_untranslatable(&e) => Asked::NoFigure(e.to_string()),
            Err(e) if matches!(e.code(), Code::Server | Code::Denied) => {
                Asked::Found(Some(e.to_string()))
            }
            asked => asked?,
        };
        match asked {
            Asked::NoFigure(why) => {
                let note = format!("check \"{name}\" could not be made: {why}");
                done.notes.push(note);
            }
            Asked::Found(found) => done.checks.push(Checked::new(Phase::Checks, name, found)),
        }
    }
    Ok(done)
}

/// Whether the server has a character for which another encoding has none, as UTF-8 for some bytes of a single-byte one: they are valid there.
///
/// PostgreSQL: src/backend/utils/errcodes.txt (`untranslatable_character`).
fn is_untranslatable(e: &Error) -> bool {
    server_error::sqlstate(e) == Some("22P05")
}

/// The names of databases without content.
fn lacking(server: &mut Quarantined, left_out: &[u32]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    if left_out.is_empty() {
        return Ok(names);
    }
    let mut sql = server.connect("template1")?;
    for oid in left_out {
        names.extend(name_of(&mut sql, *oid)?);
    }
    Ok(names)
}

/// The answer to a query.
enum Asked {
    /// Judged: what is wrong, if anything is.
    Found(Option<String>),
    /// Not judged, because nothing tells the figure.
    NoFigure(String),
}

/// Asks a query.
fn ask(sql: &mut Server, check: &Check) -> Result<Asked> {
    // Such a database holds bytes of any encoding, and the server would refuse to send them as UTF-8.
    let is_of_bytes = sql.query("show server_encoding")?.text(0, 0)? == Some("SQL_ASCII");
    if is_of_bytes {
        sql.query("set client_encoding = 'SQL_ASCII'")?;
    }
    sql.query("begin transaction read only")?;
    let rows = match sql.query(&check.query) {
        Err(e) if is_of_bytes && is_own_limit(&e) && !is_too_long(&e) => {
            return Ok(Asked::NoFigure(
                "its answer is not UTF-8, as it may be in a database in SQL_ASCII".into(),
            ));
        }
        rows => rows?,
    };
    let value = match rows.rows.first() {
        None => "no row".to_owned(),
        Some(_) => rows.text(0, 0)?.unwrap_or("null").to_owned(),
    };
    Ok(Asked::Found(match &check.expected {
        None => None,
        Some(Expected::Text(expected)) => {
            (*expected != value).then(|| format!("it returned {value}, {expected} was expected"))
        }
        Some(Expected::About(Figure::Number(figure), percent)) => about(&value, *figure, *percent),
        Some(Expected::About(Figure::Reltuples(table), percent)) => match reltuples(sql, table)? {
            None => {
                return Ok(Asked::NoFigure(format!(
                    "at this moment {table} had never been analyzed, so no figure of its rows is known: run ANALYZE on the cluster"
                )));
            }
            Some(figure) => about(&value, figure, *percent)
                .map(|found| format!("{found} (reltuples of {table})")),
        },
    }))
}

/// The rows of a table by its catalog; none where nobody has counted. That is -1, and before 14 it is 0 with no page.
///
/// PostgreSQL: src/include/catalog/pg_class.h (`reltuples`).
fn reltuples(sql: &mut Server, table: &str) -> Result<Option<f64>> {
    let name = table.replace('\'', "''");
    let rows = sql.query(&format!(
        "select reltuples::float8, relpages from pg_catalog.pg_class where oid = '{name}'::pg_catalog.regclass"
    ))?;
    let figure = rows.text(0, 0)?.and_then(number);
    let is_unknown =
        |figure: &f64| *figure < 0.0 || *figure == 0.0 && matches!(rows.text(0, 1), Ok(Some("0")));
    Ok(figure.filter(|figure| !is_unknown(figure)))
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
            expected: expected.map(|text| Expected::Text(text.into())),
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
    fn a_tolerance_is_percent_of_a_number_or_of_the_rows_in_the_catalog() {
        let of = |words: &str| Expected::parse(words);
        let number = Expected::About(Figure::Number(3000.0), 5.0);
        assert_eq!(of("3000 ~ 5 %"), Ok(number.clone()));
        assert_eq!(of("3000~5%"), Ok(number));
        let table = Figure::Reltuples("public.\"Or ders\"".into());
        let rows = Expected::About(table, 0.5);
        assert_eq!(of("reltuples of public.\"Or ders\" ~ 0.5 %"), Ok(rows));
        for text in ["a ~ b", "100 %", "", "~", "it's ~ 5"] {
            assert_eq!(of(text), Ok(Expected::Text(text.into())));
        }
        for wrong in [
            "reltuples of t",
            "x ~ 5 %",
            "~ 5 %",
            "3 ~ %",
            "3 ~ -1 %",
            "3 ~ NaN %",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
        let error = parse("-- all\n-- expect: reltuples of t\nselect 1;").unwrap_err();
        assert_eq!(error.code(), Code::Usage);
        assert!(error.to_string().contains("line 2"), "{error}");
        assert_eq!(about("2850", 3000.0, 5.0), None);
        assert_eq!(about("3150", 3000.0, 5.0), None);
        assert!(about("2849", 3000.0, 5.0).is_some());
        // A heap that was lost counts 0 rows.
        assert!(about("0", 3000.0, 50.0).unwrap().contains("within 50 %"));
        for no_number in ["null", "no row", "NaN", "inf"] {
            assert!(about(no_number, 0.0, 100.0).is_some());
        }
    }

    #[test]
    fn a_comment_that_only_looks_like_a_directive_is_refused_with_its_line() {
        for (text, line) in [
            ("-- Expect: 3\nselect 1;", 1),
            ("-- x\n-- expect 3\nselect 1;", 2),
            ("-- expect : 3\nselect 1;", 1),
            ("--- expected: 3\nselect 1;", 1),
            ("-- DATABASE shop\nselect 1;", 1),
            ("select 1\n-- expect: 3\n;", 2),
            ("select 1 -- expect: 3\n;", 1),
            ("select 1;\n/* expect: 3 */ select 1;", 2),
            ("/*\n * database: shop\n */\nselect 1;", 1),
            ("select 1; -- expect: 3\n", 1),
            ("select 1; select 2;", 1),
            ("select 1\n from t; -- all\nselect 2;", 2),
            ("select 1 -- all;\nselect 2;", 1),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.code(), Code::Usage);
            assert!(
                error.to_string().contains(&format!("line {line}:")),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn quotes_hide_semicolons_and_comments() {
        for query in [
            "select 'a;\n-- expect: 3' as \"database;\"",
            "select $x$; -- expect: 3 $$ $x$, 'it''s;', E'\\';'",
            "select $$;$$ /* one /* two */ ; */, $1",
            "select a$b, ';ä'",
            "select\n database, -- of the shop\n expect from t",
        ] {
            let checks = parse(&format!("{query};\nselect 2;")).unwrap();
            assert_eq!(checks.len(), 2, "{query}");
            assert_eq!(checks[0].query, query);
        }
        assert!(parse("select 'open;\n").is_err() && parse("select $$ open;").is_err());
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
