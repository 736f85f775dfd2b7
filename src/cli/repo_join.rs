//! `pitr repo join`: a recipient's key from its shares.

use std::io::{IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use super::Context;
use crate::error::Result;
use crate::operate::shares;

/// The arguments of `pitr repo join`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Files with one share or several, which nobody else may read; - or none is standard input
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Write the key file here, mode 0600: a directory in memory, such as below /run, is best
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let is_input = |path: &PathBuf| path == Path::new("-");
    let files = args.files.iter().filter(|path| !is_input(path));
    let files: Vec<PathBuf> = files.cloned().collect();
    let mut stdin = std::io::stdin();
    let reads = args.files.is_empty() || args.files.iter().any(is_input);
    if reads && stdin.is_terminal() {
        cx.note("Type the shares, each with all its lines; end with Ctrl-D.");
    }
    let input = reads.then_some(&mut stdin as &mut dyn Read);
    let written = shares::join(&cx.session, &files, input, &args.out)?;
    let of = match &written.key_set {
        Some(id) => format!("of key set {id}"),
        None => "of no key set".to_owned(),
    };
    cx.answered(&written, || {
        cx.line(&format!(
            "Wrote {0}, the key of recipient \"{1}\", {of}\n\nkey_file = \"{0}\" opens the repository. Delete the file after the restore, and make new shares: this host has seen the key.",
            written.file, written.recipient
        ))
    })
}
