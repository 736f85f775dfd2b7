//! `pitr rescue`.

use std::path::PathBuf;

use super::Context;
use super::clone::{MomentArgs, enter};
use crate::config::secret::Secret;
use crate::err;
use crate::error::Result;
use crate::operate::archive_command::shell_word;
use crate::operate::clone;
use crate::operate::human;
use crate::operate::rescue::{self, Asked, Mode, Report, To, What};

/// Bring tables of an earlier moment back, into the live server or into a file
///
/// Makes a clone of the moment, carries the tables from there, and throws the clone away. A table that is gone comes back with its indexes,
/// constraints, triggers, sequences and partitions, by pg_dump and pg_restore in one transaction. A table that the live server has is left
/// as it is, unless --as, --rows-missing-only or --replace says what becomes of it. Each of these takes one table that is not partitioned; a
/// partition is such a table. pitr find says when a table was dropped.
///
/// A dropped database comes back into a new one: createdb -T template0 shop, then pitr rescue --database shop --into "dbname=shop".
///
/// Example: pitr rescue --table public.orders --target-time "2026-03-01 12:00:00+01" --into "dbname=shop"
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Rescue this table, as SQL names it; may be given again
    #[arg(long, value_name = "NAME", conflicts_with = "schema")]
    pub table: Vec<String>,

    /// Rescue this schema with all that is in it; without --table and --schema it is the whole database
    #[arg(long, value_name = "NAME")]
    pub schema: Option<String>,

    /// The database at that moment; else that of --into
    #[arg(long, value_name = "NAME")]
    pub database: Option<String>,

    /// Bring it into this server, by a connection string; passwords belong into a password file
    #[arg(long, value_name = "CONNINFO", required_unless_present = "to", conflicts_with_all = ["to"])]
    pub into: Option<String>,

    /// Write it into this file, an archive for pg_restore
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,

    /// Put the rows into a new table of this name, as SQL names it
    #[arg(long = "as", value_name = "NAME", requires = "table", requires = "into", conflicts_with_all = ["to"])]
    pub new_name: Option<String>,

    /// Add only the rows whose primary key the live table does not have
    #[arg(long, requires = "table", requires = "into", conflicts_with_all = ["new_name", "to"])]
    pub rows_missing_only: bool,

    /// Replace all rows of the live table; needs --confirm
    #[arg(long, requires = "table", requires = "into", conflicts_with_all = ["new_name", "rows_missing_only", "to"])]
    pub replace: bool,

    /// Do what --replace says
    #[arg(long, requires = "replace")]
    pub confirm: bool,

    #[command(flatten)]
    pub moment: MomentArgs,
}

impl Args {
    fn what(&self) -> What {
        match (&self.schema, self.table.is_empty()) {
            (Some(schema), _) => What::Schema(schema.clone()),
            (None, false) => What::Tables(self.table.clone()),
            (None, true) => What::Database,
        }
    }

    /// Returns the options that lead to the same objects of the same moment, each with a space before it.
    fn words(&self) -> String {
        let moment = &self.moment;
        let path = |path: &Option<PathBuf>| path.as_ref().map(|p| p.display().to_string());
        let tables = self
            .table
            .iter()
            .map(|table| ("table", Some(table.clone())));
        let others = [
            ("schema", self.schema.clone()),
            ("bin", path(&moment.bin)),
            ("dir", path(&moment.place.dir)),
        ];
        let words = tables
            .chain(others)
            .filter_map(|(name, value)| Some(format!(" --{name} {}", shell_word(&value?))));
        words.collect::<String>() + &moment.target.words() + &moment.erasures.words()
    }

    fn to(&self, cx: &Context) -> Result<To> {
        if let Some(file) = &self.to {
            return Ok(To::File(cx.session.environment.absolute(file)));
        }
        let mode = match (&self.new_name, self.rows_missing_only, self.replace) {
            (Some(name), ..) => Mode::As(name.clone()),
            (None, true, _) => Mode::MissingRows,
            (None, false, true) if !self.confirm => {
                return Err(
                    err!(Refused, "--replace takes all rows of the live table away").hint(
                        "Nothing was done. Add --confirm, or put the table beside it: --as NAME",
                    ),
                );
            }
            (None, false, true) => Mode::Replace,
            (None, false, false) => Mode::Create,
        };
        Ok(To::Server {
            conninfo: Secret::new(self.into.clone().unwrap_or_default()),
            mode,
        })
    }
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let to = args.to(cx)?;
    let asked = Asked {
        clone: clone::Asked {
            clients: to.clients(),
            ..args.moment.asked()?
        },
        database: args.database.clone(),
        what: args.what(),
        to,
        words: args.words(),
    };
    let below = enter(&args.moment.place, cx)?;
    let report = rescue::run(&cx.session, &asked, &below)?;
    cx.answered(&report, || cx.line(text(&report).trim_end()))
}

fn text(report: &Report) -> String {
    let moment = &report.clone;
    let mut text = format!(
        "rescued from database \"{}\" at {}, by backup {}\n\n",
        report.database, moment.target, moment.backup
    );
    for table in &report.tables {
        let name = table.new_name.as_ref();
        let name = name.map_or_else(String::new, |name| format!(" as {name}"));
        let rows = match table.added_rows {
            Some(added) => format!("{added} of {}", human::count(table.rows, "row")),
            None => human::count(table.rows, "row"),
        };
        text.push_str(&format!("{}{name}: {rows}\n", table.table));
    }
    let objects = &report.large_objects;
    if objects.made > 0 || objects.same > 0 {
        text.push_str(&format!(
            "large objects that rows name: {} made, {} there already\n",
            objects.made, objects.same
        ));
    }
    if let Some(file) = &report.file {
        text.push_str(&format!(
            "\nwritten to \"{0}\"; to bring it back: pg_restore --dbname NAME \"{0}\"\n",
            file.display()
        ));
    }
    for note in &report.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}
