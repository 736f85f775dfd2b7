//! `pitr query`.

use super::Context;
use super::clone::{MomentArgs, enter};
use super::output::{Table, members};
use crate::error::Result;
use crate::operate::clone::folder::State;
use crate::operate::query;
use crate::wire::client::Rows;

/// Ask an earlier moment a question in SQL
///
/// Makes a clone of the moment, runs the statement there as a superuser, prints the rows, and throws the clone away. The rows
/// that the statement writes are lost with it. Names and times mean what they mean to that superuser in the database: its search_path, TimeZone
/// and DateStyle hold, and are printed.
///
/// Example: pitr query "select count(*) from orders" --database shop --target-time "2026-03-01 12:00:00+01"
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The statement; of several, the rows of the last one are printed
    pub sql: String,

    /// The database
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    pub database: String,

    /// Print the rows as CSV, with a line of names
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,

    #[command(flatten)]
    pub moment: MomentArgs,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let asked = args.moment.asked()?;
    let below = enter(&args.moment.place, cx)?;
    let what = (args.database.as_str(), args.sql.as_str());
    let answer = query::run(&cx.session, &asked, &below, what)?;
    let rows = &answer.rows;
    let cells = cells(rows)?;
    let shown = members! {
        'a;
        clone: &'a State = &answer.state;
        search_path: &'a str = &answer.search_path;
        time_zone: &'a str = &answer.time_zone;
        date_style: &'a str = &answer.date_style;
        columns: &'a [String] = &rows.columns;
        rows: &'a [Vec<Option<String>>] = &cells;
    };
    cx.answered(&shown, || {
        cx.session.note(&format!(
            "search_path {}; TimeZone {}; DateStyle {}",
            answer.search_path, answer.time_zone, answer.date_style
        ));
        if args.csv {
            // Programs read it: a value stays as it is, and a null at the end is a line.
            return cx.raw(&csv(&rows.columns, &cells));
        }
        let heads = rows.columns.iter().map(String::as_str);
        let cells = cells.iter();
        let cells = cells.map(|row| row.iter().map(|cell| cell.as_deref().unwrap_or("")));
        match rows.columns.is_empty() {
            true => Ok(()),
            false => cx.table(&Table::under(heads).rows(cells)),
        }
    })
}

fn cells(rows: &Rows) -> Result<Vec<Vec<Option<String>>>> {
    let row = |row: usize| {
        let cell = |column: usize| Ok(rows.text(row, column)?.map(str::to_owned));
        (0..rows.columns.len()).map(cell).collect()
    };
    (0..rows.rows.len()).map(row).collect()
}

/// RFC 4180; a null is an empty field without quotes, an empty text has them, as in PostgreSQL's own CSV.
fn csv(columns: &[String], rows: &[Vec<Option<String>>]) -> String {
    let field = |value: Option<&str>| match value {
        None => String::new(),
        Some(text) if text.is_empty() || text.contains(['"', ',', '\n', '\r']) => {
            format!("\"{}\"", text.replace('"', "\"\""))
        }
        Some(text) => text.to_owned(),
    };
    let line = |fields: Vec<String>| format!("{}\n", fields.join(","));
    let mut text = line(columns.iter().map(|name| field(Some(name))).collect());
    for row in rows {
        text.push_str(&line(
            row.iter().map(|cell| field(cell.as_deref())).collect(),
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::csv;

    #[test]
    fn csv_tells_null_from_empty_and_quotes_what_needs_it() {
        let row = ["a,b", "say \"x\"", "plain", ""].map(|text| Some(text.to_owned()));
        let mut row = row.to_vec();
        row.push(None);
        let columns: Vec<String> = "vwxyz".chars().map(String::from).collect();
        assert_eq!(
            csv(&columns, &[row]),
            "v,w,x,y,z\n\"a,b\",\"say \"\"x\"\"\",plain,\"\",\n"
        );
    }
}
