//! Looks whether the server that an adopted copy would replace still runs.

use std::path::Path;

use super::server::Server;
use super::session::Session;
use crate::archive::datadir::DataDirectory;
use crate::config;
use crate::err;
use crate::error::{Code, Result};

/// Requires that no other server of the cluster runs beside a copy, unless that is confirmed. The copy is recognised by
/// its directory and its system identifier.
///
/// # Errors
/// `Refused` when one runs.
pub fn check(
    session: &Session,
    (copy, identifier): (&Path, u64),
    cluster: &config::Cluster,
    is_confirmed: bool,
) -> Result<()> {
    let rivals = find(copy, identifier, cluster);
    if rivals.is_empty() {
        return Ok(());
    }
    let rivals = rivals.join(", and ");
    if is_confirmed {
        session.warn(&format!(
            "{rivals}: it archives under the same name \"{}\". Stop it, or give up the timeline of one: pitr timeline list",
            cluster.name
        ));
        return Ok(());
    }
    Err(err!(Refused, "{rivals}").hint(format!(
        "Nothing was changed. With this copy adopted, both archive as \"{}\": the copy's timeline is the cluster, plans follow it, and what the other server commits from now on lies on a branch. Stop the other server first, or adopt the copy under a name of its own with pitr adopt --as NAME.\nTo adopt it all the same, add --confirm; then pitr timeline list shows both, and pitr timeline abandon N --reason TEXT gives one up.",
        cluster.name
    )))
}

/// A server of the cluster beside the copy, or what may be one, in words.
fn find(copy: &Path, identifier: u64, configured: &config::Cluster) -> Vec<String> {
    let old = configured.pgdata.as_deref();
    let of_directory = old.and_then(|old| in_directory(copy, old, identifier));
    let conninfo = configured.conninfo.as_ref();
    let of_server = conninfo.and_then(|c| answering(copy, c.expose(), identifier));
    of_directory.into_iter().chain(of_server).collect()
}

/// The server that runs in the configured data directory.
fn in_directory(copy: &Path, old: &Path, identifier: u64) -> Option<String> {
    let directory = DataDirectory::at(old);
    if is_same(copy, old) {
        return None;
    }
    let (pid, _) = directory.server()?;
    let pid = rustix::process::Pid::from_raw(pid)?;
    let is_gone = rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH);
    let other = directory.control().ok().flatten();
    let is_other = other.is_some_and(|other| other.system_identifier != identifier);
    (!is_gone && !is_other).then(|| {
        format!(
            "a server runs in \"{}\" with process id {}",
            old.display(),
            pid.as_raw_nonzero()
        )
    })
}

/// The server that answers at the configured place, unless it is the copy itself.
fn answering(copy: &Path, conninfo: &str, identifier: u64) -> Option<String> {
    let mut server = match Server::connect(conninfo) {
        Ok(server) => server,
        // Nobody listens, or nothing is configured that could.
        Err(e) if matches!(e.code(), Code::Unreachable | Code::Config) => return None,
        Err(e) => {
            return Some(format!(
                "a server answers at the configured conninfo, and what it is cannot be told: {e}"
            ));
        }
    };
    let host = server.session().host().to_owned();
    let rows = server.query(
        "select system_identifier, pg_catalog.pg_is_in_recovery(), \
         (select setting from pg_catalog.pg_settings where name = 'data_directory') \
         from pg_catalog.pg_control_system()",
    );
    let text = |column| Some(rows.as_ref().ok()?.text(0, column).ok()??.to_owned());
    if let Some(told) = text(0).and_then(|t| t.parse::<u64>().ok())
        && told != identifier
    {
        return None;
    }
    if text(2).is_some_and(|directory| is_same(copy, Path::new(&directory))) {
        return None;
    }
    let role = match text(1).as_deref() {
        Some("t") => "a standby of the cluster",
        Some(_) => "the cluster's primary",
        None => "a server whose role cannot be told",
    };
    Some(format!("{role} answers at \"{host}\""))
}

/// Whether two paths lead to the same directory.
pub fn is_same(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
