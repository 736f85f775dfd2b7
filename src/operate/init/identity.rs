//! The identity of the cluster: by pg_control, by the running server, or by both, which must agree.

use std::path::{Path, PathBuf};

use super::Wanted;
use crate::archive::datadir::DataDirectory;
use crate::archive::pid_file::PidFile;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::operate::owner::User;
use crate::operate::server::Server;
use crate::operate::session::Session;
use crate::wire::conninfo;

/// The identity of the cluster.
pub struct Identity {
    /// From pg_control.
    pub system_identifier: u64,
    /// PostgreSQL major.
    pub major: u32,
    /// WAL segment size.
    pub segment_size_bytes: u64,
    /// Page size of data.
    pub block_size_bytes: u32,
    /// Page size of WAL.
    pub wal_block_size_bytes: u32,
    /// Whether wal_level is logical.
    pub logical: bool,
    /// The data directory, where it can be read from here.
    pub pgdata: Option<PathBuf>,
    /// Settings that reach the running server.
    pub conninfo: Option<String>,
}

pub(super) fn identity(wanted: &Wanted, session: &Session) -> Result<Identity> {
    let from_files = match wanted.pgdata.as_deref().map(identity_of_files) {
        // A newer major: its server says what pg_control does not tell here.
        Some(Err(e)) if e.code() == Code::Unsupported => return of_newer(wanted, e),
        from_files => from_files.transpose()?,
    };
    let Some(conninfo) = &wanted.conninfo else {
        return from_files.ok_or_else(|| {
            err!(Usage, "neither --pgdata nor --conninfo is given").hint(
                "Name the data directory (--pgdata DIR) or say how to connect (--conninfo STRING).",
            )
        });
    };
    let asked = identity_of_server(conninfo);
    let with_conninfo = |files| Identity {
        conninfo: Some(conninfo.clone()),
        ..files
    };
    match (from_files, asked) {
        (None, asked) => asked,
        (Some(files), Err(e)) => {
            // Peer authentication lets the server's user in, and no other.
            match User::owner_of(files.pgdata.as_deref().unwrap_or(Path::new(""))) {
                Ok(user) if e.code() == Code::Denied && rustix::process::geteuid().is_root() => {
                    session.note(&format!(
                        "the server was not asked, which lets {} in and not root: sudo -u {0} pitr doctor asks it",
                        user.name()
                    ));
                }
                _ => session.warn(&format!("the server could not be asked: {e}")),
            }
            Ok(with_conninfo(files))
        }
        (Some(files), Ok(server)) => {
            check_same(files.system_identifier, &server)?;
            Ok(with_conninfo(files))
        }
    }
}

/// The identity of a cluster whose pg_control cannot be read, as its running server tells it; the front of the file must agree.
fn of_newer(wanted: &Wanted, e: Error) -> Result<Identity> {
    let Some(pgdata) = wanted.pgdata.as_deref() else {
        return Err(e);
    };
    let conninfo = wanted.conninfo.clone().or_else(|| running_at(pgdata));
    let (Some(head), Some(conninfo)) = (DataDirectory::at(pgdata).control_head()?, conninfo) else {
        return Err(e.hint("Nothing was written. Install a newer pitr; or start the server, which then says what it is, and run the command again."));
    };
    let server = identity_of_server(&conninfo)?;
    check_same(head.system_identifier, &server)?;
    Ok(Identity {
        pgdata: Some(pgdata.to_owned()),
        ..server
    })
}

fn check_same(of_files: u64, server: &Identity) -> Result<()> {
    if of_files == server.system_identifier {
        return Ok(());
    }
    Err(err!(
        WrongCluster,
        "the data directory has system identifier {of_files}, the server that was connected to {}",
        server.system_identifier
    )
    .hint("Nothing was written. Correct --pgdata or --conninfo, so that both mean one cluster."))
}

fn identity_of_files(pgdata: &Path) -> Result<Identity> {
    let directory = DataDirectory::at(pgdata);
    directory.check_guard()?;
    let control = directory.control()?.ok_or_else(|| {
        err!(
            Usage,
            "\"{}\" is not a data directory: it has no global/pg_control",
            pgdata.display()
        )
        .hint("Nothing was written. Name the directory that PostgreSQL shows for \"show data_directory\".")
    })?;
    Ok(Identity {
        system_identifier: control.system_identifier,
        major: control.major.number(),
        segment_size_bytes: control.wal_segment_size.bytes(),
        block_size_bytes: control.block_size,
        wal_block_size_bytes: control.wal_block_size,
        // PostgreSQL: src/include/access/xlog.h, WalLevel.
        logical: control.settings.wal_level == 2,
        pgdata: Some(pgdata.to_owned()),
        conninfo: running_at(pgdata),
    })
}

/// How to reach the server that runs on a data directory.
fn running_at(pgdata: &Path) -> Option<String> {
    let file = PidFile::read(pgdata).ok()?;
    let (port, socket) = (file.port?, file.socket_directory?);
    port.parse::<u16>().ok()?;
    let word = |t: &str| match t.contains([' ', '\'', '\\']) {
        true => conninfo::quoted(t),
        false => t.to_owned(),
    };
    (!socket.is_empty()).then(|| format!("host={} port={port} user=postgres", word(&socket)))
}

fn identity_of_server(conninfo: &str) -> Result<Identity> {
    let mut server = Server::connect(conninfo)?;
    // A setting that this role may not see is not in pg_settings.
    let setting =
        |name: &str| format!("(select setting from pg_catalog.pg_settings where name = '{name}')");
    let rows = server.query(&format!(
        "select system_identifier, {}, {}, {}, {}, {} from pg_catalog.pg_control_system()",
        setting("wal_segment_size"),
        setting("block_size"),
        setting("wal_block_size"),
        setting("wal_level"),
        setting("data_directory"),
    ))?;
    let pgdata = rows.text(0, 5)?.map(PathBuf::from);
    Ok(Identity {
        system_identifier: rows.value(0, 0)?,
        major: server.session().version_num() / 10_000,
        segment_size_bytes: rows.value(0, 1)?,
        block_size_bytes: rows.value(0, 2)?,
        wal_block_size_bytes: rows.value(0, 3)?,
        logical: rows.text(0, 4)? == Some("logical"),
        // The server may be on another machine.
        pgdata: pgdata.filter(|p| p.join("PG_VERSION").exists()),
        conninfo: Some(conninfo.to_owned()),
    })
}

pub(super) fn check_identity(identity: &Identity) -> Result<()> {
    for (what, size) in [
        ("data", identity.block_size_bytes),
        ("WAL", identity.wal_block_size_bytes),
    ] {
        if size != 8192 {
            return Err(err!(
                Unsupported,
                "the cluster's {what} pages have {size} bytes, only 8192 are supported"
            )
            .hint("Nothing was written. This server was built with another block size than PostgreSQL's own."));
        }
    }
    Ok(())
}
