//! The only place that prints: data on standard output; errors, notes and progress on standard error.
//!
//! A closed pipe is not an error: who reads no further (`| head`) has seen enough. Names that come from outside are printed with
//! their control characters escaped, so that they can neither move the cursor nor forge a line.

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use comfy_table::{CellAlignment, ContentArrangement, presets};
use serde::Serialize;

use super::terminal::{TerminalProgress, standard_error};
use crate::error::{Code, Error, Result};
use crate::exit::{self, Program};
use crate::progress::Progress;
use crate::text::escaped;

/// An answer with these members, each with its type, in this order: `json!` would sort them.
macro_rules! members {
    ($life:lifetime; $($(#[$attribute:meta])* $name:ident: $type:ty = $value:expr;)*) => {{
        #[derive(serde::Serialize)]
        struct Members<$life> {
            $($(#[$attribute])* $name: $type,)*
        }
        Members { $($name: $value,)* }
    }};
}
pub(super) use members;

/// Standard output and standard error, and how to write to them.
pub struct Output {
    json: bool,
    quiet: bool,
    progress: Arc<TerminalProgress>,
    /// Something is on standard output already: a JSON error would be a second document.
    written: AtomicBool,
}

impl Output {
    /// Output in the given form; bars are drawn only on a terminal that wants them.
    pub fn new(json: bool, quiet: bool, environment: &crate::config::Environment) -> Output {
        let plain = environment.get("NO_COLOR").is_some()
            || environment.get("TERM").is_none_or(|t| t == "dumb");
        let bars = !plain && !quiet && std::io::stderr().is_terminal();
        Output {
            json,
            quiet,
            progress: Arc::new(TerminalProgress::new(quiet, bars)),
            written: AtomicBool::new(false),
        }
    }

    /// Whether the answer is wanted as JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether notes and progress are unwanted.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Progress on standard error.
    pub fn progress(&self) -> Arc<TerminalProgress> {
        Arc::clone(&self.progress)
    }

    /// Prints a line of data, or several.
    ///
    /// # Errors
    /// `Io` or `Full` when standard output cannot be written; a closed pipe is no error.
    pub fn line(&self, text: &str) -> Result<()> {
        self.raw(&format!("{}\n", escaped(text)))
    }

    /// Prints lines of data, each as [`Output::line`] does.
    pub fn lines(&self, lines: impl IntoIterator<Item = impl AsRef<str>>) -> Result<()> {
        lines
            .into_iter()
            .try_for_each(|line| self.line(line.as_ref()))
    }

    /// Prints the text of a file: tabs are part of its lines.
    pub fn text(&self, text: &str) -> Result<()> {
        self.raw(&format!("{}\n", with_tabs(text)))
    }

    /// Prints the report of what a command did, which nobody needs with `--quiet` when all went well.
    pub fn report(&self, text: &str) -> Result<()> {
        match self.quiet {
            true => Ok(()),
            false => self.line(text),
        }
    }

    /// Prints text for a program, as it is.
    pub(super) fn raw(&self, text: &str) -> Result<()> {
        self.bytes(text.as_bytes())
    }

    /// Prints a value as JSON.
    pub fn json(&self, value: &impl Serialize) -> Result<()> {
        self.raw(&Output::pretty(value)?)
    }

    /// The text of a value as JSON.
    pub(super) fn pretty(value: &impl Serialize) -> Result<String> {
        let text = serde_json::to_string_pretty(value);
        let text = text.map_err(|e| crate::err!(Internal, "write JSON").source(e))?;
        Ok(text + "\n")
    }

    /// Prints an answer: the value as JSON where that is wanted, else what `show` prints for people.
    pub fn answer(&self, value: &impl Serialize, show: impl FnOnce() -> Result<()>) -> Result<()> {
        match self.json {
            true => self.json(value),
            false => show(),
        }
    }

    /// Prints the answer with which a command ends well, as [`Output::answer`] does.
    pub fn answered(
        &self,
        value: &impl Serialize,
        show: impl FnOnce() -> Result<()>,
    ) -> Result<u8> {
        self.answer(value, show).map(|()| exit::SUCCESS)
    }

    /// Prints a table, in a form that fits into the terminal, where standard output is one.
    pub fn table(&self, table: &Table) -> Result<()> {
        self.raw(&Output::fitted(table))
    }

    /// The text of a table, in a form that fits into the terminal, where standard output is one.
    pub(super) fn fitted(table: &Table) -> String {
        let terminal = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
        let columns = terminal.map(|size| usize::from(size.ws_col));
        table.fitting(columns.filter(|n| *n > 0))
    }

    /// Prints a note on standard error, unless unwanted.
    pub fn note(&self, message: &str) {
        self.progress.note(message);
    }

    /// Prints a warning on standard error.
    pub fn warn(&self, message: &str) {
        self.progress.warn(message);
    }

    /// Prints warnings on standard error.
    pub fn warn_all(&self, messages: impl IntoIterator<Item = impl AsRef<str>>) {
        messages
            .into_iter()
            .for_each(|message| self.warn(message.as_ref()));
    }

    /// Prints an error, and returns the status that follows from it.
    ///
    /// With `--json` it is one object: on standard output, or on standard error when there is an answer on the former.
    pub fn error(&self, error: &Error) -> u8 {
        let status = exit::status(Program::Pitr, error.code());
        self.progress.end();
        if self.json {
            self.error_object(error.code(), &error.to_string(), error.hint_text(), status);
        } else {
            standard_error(&human_error(error));
        }
        status
    }

    /// Prints what is wrong with the command line, as clap words it, and returns the status that follows.
    pub(super) fn usage(&self, error: &clap::Error) -> u8 {
        let status = exit::status(Program::Pitr, Code::Usage);
        if self.json {
            let text = error.render().to_string();
            let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
            let message = lines.next().unwrap_or_default();
            let hint: Vec<_> = lines.collect();
            let message = message.strip_prefix("error: ").unwrap_or(message);
            self.error_object(Code::Usage, message, Some(&hint.join(" ")), status);
        } else if error.print().is_err() {
            // Standard error is gone; the status still tells.
        }
        status
    }

    fn error_object(&self, code: Code, message: &str, hint: Option<&str>, exit: u8) {
        let object = serde_json::json!({
            "code": exit::name(code),
            "message": message,
            "hint": hint,
            "exit": exit,
        });
        let text = format!("{object:#}\n");
        if self.written.load(Ordering::Relaxed) || self.raw(&text).is_err() {
            standard_error(&text);
        }
    }

    /// Prints bytes for a program, as they are.
    pub(super) fn bytes(&self, bytes: &[u8]) -> Result<()> {
        // An answer comes after the work: no bar stands in it.
        self.progress.end();
        self.written.store(true, Ordering::Relaxed);
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(e) if e.kind() != ErrorKind::BrokenPipe => {
                Err(Error::from_io("write standard output", e))
            }
            _ => Ok(()),
        }
    }
}

/// The text of a file, in which only tabs and line feeds move the cursor.
pub(super) fn with_tabs(text: &str) -> String {
    let parts: Vec<String> = text.split('\t').map(escaped).collect();
    parts.join("\t")
}

/// The error as people read it: cause, impact, next command.
///
/// The last line of a hint is the next command, the lines before it are the impact.
pub fn human_error(error: &Error) -> String {
    let mut text = format!(
        "error {}: {}\n",
        exit::name(error.code()),
        escaped(&error.to_string())
    );
    let lines: Vec<&str> = error.hint_text().unwrap_or_default().lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let label = match index + 1 == lines.len() {
            true => "next:   ",
            false => "impact: ",
        };
        text.push_str(&format!("  {label}{}\n", escaped(line)));
    }
    text
}

/// Rows under column heads, without lines drawn between them.
pub struct Table {
    inner: comfy_table::Table,
    width: usize,
}

impl Table {
    /// A table under these heads, which have ` | ` between them. `>` marks a column of numbers: they stand on the right, and its head names their unit.
    pub fn of(heads: &str) -> Table {
        Table::new(heads.split(" | ").map(|head| match head.strip_prefix('>') {
            Some(head) => (head, CellAlignment::Right),
            None => (head, CellAlignment::Left),
        }))
    }

    /// A table of texts under heads that come from elsewhere.
    pub fn under<'a>(heads: impl Iterator<Item = &'a str>) -> Table {
        Table::new(heads.map(|head| (head, CellAlignment::Left)))
    }

    fn new<'a>(columns: impl Iterator<Item = (&'a str, CellAlignment)>) -> Table {
        let (heads, sides): (Vec<&str>, Vec<CellAlignment>) = columns.unzip();
        let width = heads.len();
        let mut inner = comfy_table::Table::new();
        inner
            .load_preset(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(heads);
        for (column, side) in inner.column_iter_mut().zip(sides) {
            column.set_padding((0, 2)).set_cell_alignment(side);
        }
        Table { inner, width }
    }

    /// The table with these rows behind its own.
    pub fn rows<T: AsRef<str>, R: IntoIterator<Item = T>>(
        mut self,
        rows: impl IntoIterator<Item = R>,
    ) -> Table {
        rows.into_iter().for_each(|row| self.row(row));
        self
    }

    /// Adds a row of as many cells as there are columns.
    pub fn row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let mut cells: Vec<String> = cells
            .into_iter()
            .map(|c| escaped(&c.as_ref().replace('\n', "\\n")))
            .collect();
        cells.resize(self.width, String::new());
        self.inner.add_row(cells);
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.inner.row_iter().next().is_none()
    }

    /// The table as text, each line ended.
    pub fn render(&self) -> String {
        let mut text = self.inner.trim_fmt();
        text.push('\n');
        text
    }

    /// The table as text, each line ended: rows as lines where these fit into so many columns, else each row as a list of its cells.
    pub(super) fn fitting(&self, columns: Option<usize>) -> String {
        let text = self.render();
        let is_wide = |columns| text.lines().any(|line| line.chars().count() > columns);
        match columns {
            Some(columns) if is_wide(columns) => self.lists(columns),
            _ => text,
        }
    }

    fn lists(&self, columns: usize) -> String {
        let head = self.inner.header().into_iter();
        let heads: Vec<String> = head
            .flat_map(|row| row.cell_iter().map(|c| c.content()))
            .collect();
        let indent = heads.iter().map(|h| h.chars().count()).max().unwrap_or(0) + 2;
        let rows = self.inner.row_iter().map(|row| {
            let cells = row.cell_iter().map(|c| c.content());
            let filled = heads.iter().zip(cells).filter(|(_, c)| !c.is_empty());
            filled
                .map(|(head, cell)| {
                    let cell = wrapped(&cell, indent, columns);
                    format!("{head:indent$}{cell}\n")
                })
                .collect::<String>()
        });
        rows.collect::<Vec<_>>().join("\n")
    }
}

/// The text in lines of at most `columns`, all but the first indented. A word that is longer than a line has one of its own.
fn wrapped(text: &str, indent: usize, columns: usize) -> String {
    let mut lines = String::new();
    let mut used = indent;
    for word in text.split(' ') {
        let length = word.chars().count();
        if used > indent && used + 1 + length > columns {
            lines.push_str(&format!("\n{:indent$}", ""));
            used = indent;
        } else if used > indent {
            lines.push(' ');
            used += 1;
        }
        lines.push_str(word);
        used += length;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::err;

    #[test]
    fn errors_say_what_happened_what_it_means_and_what_to_do() {
        let error = err!(
            OutOfReach,
            "time \"2026-11-20 06:00:00Z\" lies before the first backup"
        )
        .hint("Nothing was written.\nRun pitr info to see the windows.");
        assert_eq!(
            human_error(&error),
            "error out_of_reach: time \"2026-11-20 06:00:00Z\" lies before the first backup\n  impact: Nothing was written.\n  next:   Run pitr info to see the windows.\n"
        );
        let error = err!(Io, "read x").hint("Try again.");
        assert_eq!(
            human_error(&error),
            "error io: read x\n  next:   Try again.\n"
        );
        assert_eq!(human_error(&err!(Io, "read x")), "error io: read x\n");
    }

    #[test]
    fn files_cannot_draw_on_a_terminal() {
        let text = String::from_utf8_lossy(b"a\t1\nb\x1b[2J\r\x9b\n");
        assert_eq!(with_tabs(&text), "a\t1\nb\\u{1b}[2J\\u{d}\u{fffd}\n");
    }

    #[test]
    fn tables_are_aligned_and_draw_no_boxes() {
        let mut table = Table::of("backup | >MiB | note");
        assert!(table.is_empty());
        table.row(["20261120T064049Z-full", "5.0", ""]);
        table.row(["b", "1024.5", "damaged\nx"]);
        assert!(!table.is_empty());
        assert_eq!(
            table.render(),
            "backup                    MiB  note\n20261120T064049Z-full     5.0\nb                      1024.5  damaged\\nx\n"
        );
    }

    #[test]
    fn a_table_that_is_wider_than_the_terminal_is_a_list_of_cells() {
        let mut table = Table::of("backup | >MiB | note");
        table.row(["20261120T064049Z-full", "5.0", ""]);
        table.row(["b", "7.0", "kept: the last good one of all"]);
        assert_eq!(table.fitting(None), table.render());
        let widest = table.render().lines().map(str::len).max().unwrap();
        assert_eq!(table.fitting(Some(widest)), table.render());
        assert_eq!(
            table.fitting(Some(30)),
            "backup  20261120T064049Z-full\nMiB     5.0\n\nbackup  b\nMiB     7.0\nnote    kept: the last good\n        one of all\n"
        );
    }
}
