//! `pitr man`: a manual page for each command, and for the two small programs.

use std::path::{Path, PathBuf};

use super::Context;
use crate::command::{archive, restore};
use crate::error::{Error, Result};
use crate::{exit, release};

/// Write the manual pages into a directory
///
/// A page for each command, such as pitr-wal-list.1, and one each for pitr-archive and for pitr-restore as PostgreSQL runs it.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// An existing directory
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let mut line = super::command_line();
    line.build();
    let mut count = commands(&line, "pitr", &args.directory)?;
    for (name, help) in [
        ("pitr-archive", archive::HELP),
        ("pitr-restore-command", restore::HELP),
    ] {
        write(&args.directory, name, small(name, help).as_bytes())?;
        count += 1;
    }
    cx.report(&format!(
        "{count} pages are in {}",
        args.directory.display()
    ))?;
    Ok(exit::SUCCESS)
}

/// Writes the page of a command and those of the commands below it; how many.
fn commands(command: &clap::Command, name: &str, directory: &Path) -> Result<usize> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone())
        .source(format!("pitr {}", release::NUMBER))
        .render(&mut text)
        .map_err(|e| Error::from_io("write a manual page", e))?;
    write(directory, name, &text)?;
    let below = command.get_subcommands().filter(|c| !c.is_hide_set());
    below
        .map(|c| commands(c, &format!("{name}-{}", c.get_name()), directory))
        .try_fold(1, |sum, count| Ok(sum + count?))
}

/// The page of a small program: its help as it is.
fn small(name: &str, help: &str) -> String {
    let title = name.to_uppercase();
    let (first, rest) = help.split_once("\n\n").unwrap_or((help, ""));
    let rest = rest
        .replace('\\', "\\e")
        .replace("\n.", "\n\\&.")
        .replace('-', "\\-");
    let version = release::NUMBER;
    format!(
        ".TH {title} 1 \"\" \"pitr {version}\"\n.SH NAME\n{name} \\- {first}\n.SH DESCRIPTION\n.nf\n{rest}.fi\n"
    )
}

fn write(directory: &Path, name: &str, text: &[u8]) -> Result<()> {
    let path = directory.join(format!("{name}.1"));
    std::fs::write(&path, text)
        .map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))
}
