//! A server at a moment where nothing can be mounted, or of a backup that is partial: what one database needs is copied first.
//!
//! The other databases lie there as files of zeros. A database whose files were made of theirs during the replay would be hollow without
//! anybody noticing, so the database must be one that the backup itself has.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::folder::Folder;
use super::{Asked, Making, Running, ready, wanted};
use crate::err;
use crate::error::{Code, Result};
use crate::operate::mounted;
use crate::operate::private_tablespaces;
use crate::operate::quarantine::Quarantined;
use crate::operate::restore;
use crate::operate::restoring::Prepared;
use crate::operate::session::Session;
use crate::restore::databases::Wanted;

/// Copies what a database needs, and does `work` with a server on it. `why` says why it is not mounted.
///
/// # Errors
/// Those of the plan and of a restore; `OutOfReach`; `Server` where the server does not recover; `Refused` for a database whose content may
/// come from one that was not copied; those of `work`.
pub(super) fn with_server<T>(
    session: &Session,
    (asked, why): (&Asked, &str),
    (folder, database): (&Folder, &str),
    work: impl FnOnce(&mut Running<'_>) -> Result<T>,
) -> Result<T> {
    let started = Instant::now();
    session.note(&format!("{why}, so the database is copied first"));
    session.host.progress.phase("plan", None);
    let places = (&*folder.data(), &*folder.tablespaces());
    let whole = restore::Asked {
        is_hollow: false,
        ..wanted(&asked.target, places)
    };
    let prepared = prepare(session, whole, database)?;
    private_tablespaces::check(&prepared.made, &session.environment)?;
    let mut making = Making::begin((session, asked, folder), &prepared, started)?;
    let spares = prepared.opened.spares(session);
    let (source, host) = (prepared.source(&spares), &session.host);
    mounted::while_claimed(&source, &prepared.job, host, || {
        let restored = prepared.run(session, None)?;
        let real = copied(folder, &prepared);
        // Other databases are files of zeros, where no script can run.
        if let Some(scripts) = &mut making.scripts
            && !prepared.left_out_oids().is_empty()
        {
            scripts.only = Some(database.to_owned());
        }
        let tablespaces = making.tablespaces(&prepared)?;
        let mut server =
            making.recover((&prepared, &tablespaces), (&restored.report.settings, host))?;
        if !prepared.left_out_oids().is_empty() {
            check_real(&mut server, &real, database)?;
        }
        work(&mut Running {
            server: &mut server,
            state: &mut making.state,
            programs: &making.programs,
            brought: prepared.brought(),
        })
    })
}

/// Decides the restore of one database; of all where the backup does not know it by this name.
fn prepare(session: &Session, whole: restore::Asked, database: &str) -> Result<Box<Prepared>> {
    let one = restore::Asked {
        databases: Some(Wanted::Only(vec![database.to_owned()])),
        ..whole.clone()
    };
    match ready(session, &one) {
        Err(e) if e.code() == Code::NotFound => ready(session, &whole),
        prepared => prepared,
    }
}

/// The databases whose content was copied, by their oid, before anything was replayed.
fn copied(folder: &Folder, prepared: &Prepared) -> BTreeSet<u32> {
    let names = |path: &Path| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let spaces = names(&folder.tablespaces());
    let mut homes: Vec<PathBuf> = spaces.iter().flat_map(|space| names(space)).collect();
    homes.push(folder.data().join("base"));
    let all = homes.iter().flat_map(|home| names(home));
    let oids = all.filter_map(|path| path.file_name()?.to_str()?.parse().ok());
    let left_out = prepared.left_out_oids();
    oids.filter(|oid| !left_out.contains(oid)).collect()
}

/// Requires that the database of this name is one of those that were copied. One that the moment does not have is told when it is asked for.
fn check_real(server: &mut Quarantined, real: &BTreeSet<u32>, database: &str) -> Result<()> {
    let mut sql = server.connect("template1")?;
    let all = sql.query("select oid::text, datname from pg_catalog.pg_database")?;
    for row in 0..all.rows.len() {
        let oid = all.text(row, 0)?.and_then(|oid| oid.parse().ok());
        let is_meant = all.text(row, 1)? == Some(database);
        if is_meant && !oid.is_some_and(|oid| real.contains(&oid)) {
            return Err(err!(
                Refused,
                "database \"{database}\" of that moment is not the one of the backup: its files may come from one that was not copied"
            )
            .hint("Nothing was carried. Restore the whole cluster beside it: pitr restore with the same target."));
        }
    }
    Ok(())
}
