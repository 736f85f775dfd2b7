//! `pitr help`: the help of a command, or a page of the documentation.

use super::Context;
use crate::err;
use crate::error::Result;
use crate::exit;

/// Print the help of a command, or a page: targets, statuses, configuration
///
/// targets: what a restore may aim at, and what each target means. statuses: the exit statuses of the three programs.
/// configuration: every key of the configuration file.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The command, or the page
    #[arg(value_name = "COMMAND|PAGE")]
    words: Vec<String>,
}

/// The pages, as the documentation has them.
const PAGES: [(&str, &str); 3] = [
    ("targets", include_str!("../../docs/targets.md")),
    ("statuses", include_str!("../../docs/exit-status.md")),
    ("configuration", include_str!("../../docs/configuration.md")),
];

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    if let [word] = args.words.as_slice()
        && let Some((_, page)) = PAGES.iter().find(|(name, _)| name == word)
    {
        cx.raw(page)?;
        return Ok(exit::SUCCESS);
    }
    let mut line = super::command_line();
    line.build();
    let mut command = &mut line;
    for word in &args.words {
        command = command.find_subcommand_mut(word).ok_or_else(|| {
            err!(
                Usage,
                "\"{}\" is neither a command nor a page",
                word.escape_debug()
            )
            .hint("pitr --help lists the commands; the pages are targets, statuses and configuration.")
        })?;
    }
    cx.raw(&command.render_long_help().to_string())?;
    Ok(exit::SUCCESS)
}
