//! cpsync [--filter "PROGRAM ARG..."] [--no-sync] SOURCE TARGET
//!
//! The yardstick of the comparison: copies a file, makes content, name and directory durable, and does nothing else. With a filter the
//! copy is what the program makes of it (standard input to standard output).

use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

fn copy(filter: Option<&str>, sync: bool, source: &str, target: &str) -> std::io::Result<()> {
    let temporary = format!("{target}.tmp");
    match filter {
        None => {
            std::fs::copy(source, &temporary)?;
        }
        Some(filter) => {
            let mut words = filter.split(' ');
            let status = Command::new(words.next().unwrap_or_default())
                .args(words)
                .stdin(Stdio::from(File::open(source)?))
                .stdout(Stdio::from(File::create(&temporary)?))
                .status()?;
            if !status.success() {
                return Err(std::io::Error::other("the filter failed"));
            }
        }
    }
    if sync {
        File::options().write(true).open(&temporary)?.sync_all()?;
    }
    std::fs::rename(&temporary, target)?;
    if sync {
        let parent = Path::new(target).parent().unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let (mut filter, mut sync) = (None, true);
    while arguments.first().is_some_and(|a| a.starts_with("--")) {
        match arguments.remove(0).as_str() {
            "--filter" if !arguments.is_empty() => filter = Some(arguments.remove(0)),
            "--no-sync" => sync = false,
            _ => return ExitCode::from(2),
        }
    }
    let [source, target] = arguments.as_slice() else {
        return ExitCode::from(2);
    };
    match copy(filter.as_deref(), sync, source, target) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cpsync: {error}");
            ExitCode::FAILURE
        }
    }
}
