//! `pitr-archive %p`: success only when the file is durable in every required repository.

use std::path::Path;

use super::Arguments;
use crate::archive::push::{Push, Pushed, Warnings, push};
use crate::config::Environment;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::pg::segment::WalFileName;
use crate::repo;
use crate::repo::container::Codec;

/// Help text of the program.
pub const HELP: &str = "\
Archive one WAL file; the archive_command of PostgreSQL

Usage: pitr-archive [--config FILE] [--cluster NAME] %p

Exit status 0 only when the file is durable in every required repository;
otherwise 1 to 125, and PostgreSQL offers the file again.

  archive_command = '/usr/bin/pitr-archive --config /etc/pitr/pitr.toml %p'
";

/// The codec of WAL bodies (decisions/0001-hash-and-codec.md).
pub const CODEC: Codec = Codec::Lz4;

/// What archiving a file came to; either way it is durable in every required repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archived {
    /// Whether it is new to one of the repositories.
    pub is_new: bool,
    /// What should be known besides.
    pub warnings: Warnings,
}

/// Archives the one file that the arguments name, in required repositories first; `acknowledged` is called once the file is durable in
/// all of those. What comes then may fail or hang without anything being lost.
///
/// # Errors
/// What [`push`] says; `Partial` when one required repository of several failed.
pub fn run(
    arguments: &Arguments,
    environment: &Environment,
    nonce: u64,
    acknowledged: &dyn Fn(),
) -> Result<Archived> {
    fault::point("archive");
    let path = match arguments.files.as_slice() {
        [path] if !path.is_empty() => Path::new(path),
        [] | [_] => {
            return Err(
                err!(Usage, "no file given").hint("archive_command must be 'pitr-archive %p'.")
            );
        }
        more => {
            return Err(err!(Usage, "one argument expected, got {}", more.len())
                .hint("archive_command must be 'pitr-archive %p'."));
        }
    };
    let name = name_of(path)?;
    let settings = super::settings(&arguments.flags, environment)?;
    let cluster = super::cluster_name(&settings, nonce)?;
    let mut repositories: Vec<_> = settings.repositories.iter().collect();
    repositories.sort_by_key(|r| !r.required);
    let mut left = repositories.iter().filter(|r| r.required).count();
    let mut warnings = Warnings::new();
    let mut stored = 0_usize;
    let mut is_new = false;
    let mut failed: Option<Error> = None;
    for configured in repositories {
        if left == 0 && failed.is_none() && stored > 0 {
            acknowledged();
        }
        let required = configured.required;
        left -= usize::from(required);
        let pushed = repo::open(&configured.location, nonce).and_then(|repository| {
            push(&Push {
                repository: &repository,
                cluster: &cluster,
                path,
                name,
                codec: CODEC,
            })
        });
        match pushed {
            Ok((pushed, more)) => {
                stored += 1;
                is_new |= pushed == Pushed::Stored;
                warnings.extend(more);
            }
            Err(e) if required && failed.is_none() => failed = Some(e),
            Err(e) => warnings.push(format!("not stored in every repository: {e}")),
        }
    }
    match failed {
        Some(e) if stored > 0 && !matches!(e.code(), Code::Conflict | Code::TimelineReused) => Err(err!(
            Partial,
            "\"{name}\" is not stored in every required repository"
        )
        .source(e)
        .hint("PostgreSQL keeps the file and offers it again; what is stored already is not stored twice.")),
        Some(e) => Err(e),
        None if stored > 0 => Ok(Archived { is_new, warnings }),
        None => Err(err!(Unreachable, "\"{name}\" could not be stored in any repository")
            .hint(format!("PostgreSQL keeps the file and offers it again. {}", warnings.join("; ")))),
    }
}

fn name_of(path: &Path) -> Result<WalFileName> {
    let name = path.file_name().unwrap_or(path.as_os_str());
    let Some(text) = name.to_str() else {
        return Err(err!(
            WalName,
            "\"{}\" is not a WAL, history or backup file name",
            name.display()
        ));
    };
    text.parse()
}
