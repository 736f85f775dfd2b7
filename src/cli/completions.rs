//! `pitr completions`: what a shell completes.

use clap_complete::Shell;

use super::Context;
use crate::error::Result;
use crate::exit;

/// Print the completions of a shell
///
/// For bash: pitr completions bash > /usr/share/bash-completion/completions/pitr
#[derive(clap::Args, Debug)]
pub struct Args {
    /// bash, elvish, fish, powershell or zsh
    #[arg(value_name = "SHELL", hide_possible_values = true)]
    shell: Shell,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let whole = super::command_line();
    // A command that the help does not show is not completed either.
    let shown = whole.get_subcommands().filter(|c| !c.is_hide_set());
    let mut line = clap::Command::new("pitr")
        .disable_help_subcommand(true)
        .args(whole.get_arguments())
        .subcommands(shown);
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut line, "pitr", &mut text);
    cx.raw(&String::from_utf8_lossy(&text))?;
    Ok(exit::SUCCESS)
}
