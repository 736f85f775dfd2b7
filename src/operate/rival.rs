//! Looks whether the server that an adopted copy would replace still runs.

use std::path::Path;

use super::server::Server;
use super::session::Session;
use crate::archive::datadir::DataDirectory;
use crate::config;
use crate::err;
use crate::error::{Code, Result};

/// A copy that is to archive: it is recognised by its directory and its system identifier.
pub struct Newcomer<'a> {
    pub path: &'a Path,
    pub identifier: u64,
    /// The cluster's name under which it is to archive.
    pub name: &'a str,
}

/// Requires that no other server of the cluster runs beside a copy, unless that is confirmed. The servers are looked for where a cluster is
/// configured. One of another cluster than the copy's counts only if its system identifier is known to be the copy's.
///
/// # Errors
/// `Refused` when one runs.
pub fn check(
    session: &Session,
    copy: &Newcomer<'_>,
    cluster: &config::Cluster,
    is_confirmed: bool,
) -> Result<()> {
    let rivals = find(copy, cluster);
    if rivals.is_empty() {
        return Ok(());
    }
    let rivals = rivals.join(", and ");
    if is_confirmed {
        session.warn(&format!(
            "{rivals}: it archives under the same name \"{}\". Stop it, or give up the timeline of one: pitr timeline list",
            copy.name
        ));
        return Ok(());
    }
    Err(err!(Refused, "{rivals}").hint(format!(
        "Nothing was changed. With this copy adopted, both archive as \"{}\": the copy's timeline is the cluster, plans follow it, and what the other server commits from now on lies on a branch. Stop the other server first, or adopt the copy under a name of its own with pitr adopt --as NAME.\nTo adopt it all the same, add --confirm; then pitr timeline list shows both, and pitr timeline abandon N --reason TEXT gives one up.",
        copy.name
    )))
}

/// A server of the cluster beside the copy, or what may be one, in words.
fn find(copy: &Newcomer<'_>, configured: &config::Cluster) -> Vec<String> {
    let is_own = configured.name.as_str() == copy.name;
    let old = configured.pgdata.as_deref();
    let of_directory = old.and_then(|old| in_directory(copy, old, is_own));
    let conninfo = configured.conninfo.as_ref();
    let of_server = conninfo.and_then(|c| answering(copy, c.expose(), is_own));
    of_directory.into_iter().chain(of_server).collect()
}

/// Whether a server may be one of the copy's cluster; one that does not tell is only where that cluster is configured.
fn may_be(copy: &Newcomer<'_>, told: Option<u64>, is_own: bool) -> bool {
    told.map_or(is_own, |told| told == copy.identifier)
}

/// The server that runs in the configured data directory.
fn in_directory(copy: &Newcomer<'_>, old: &Path, is_own: bool) -> Option<String> {
    let directory = DataDirectory::at(old);
    if is_same(copy.path, old) {
        return None;
    }
    let (pid, _) = directory.server()?;
    let pid = rustix::process::Pid::from_raw(pid)?;
    let is_gone = rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH);
    let other = directory.control().ok().flatten();
    let told = other.map(|other| other.system_identifier);
    (!is_gone && may_be(copy, told, is_own)).then(|| {
        format!(
            "a server runs in \"{}\" with process id {}",
            old.display(),
            pid.as_raw_nonzero()
        )
    })
}

/// The server that answers at the configured place, unless it is the copy itself.
fn answering(copy: &Newcomer<'_>, conninfo: &str, is_own: bool) -> Option<String> {
    let mut server = match Server::connect(conninfo) {
        Ok(server) => server,
        // Nobody listens, or nothing is configured that could.
        Err(e) if matches!(e.code(), Code::Unreachable | Code::Config) => return None,
        Err(_) if !is_own => return None,
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
    let told = text(0).and_then(|t| t.parse::<u64>().ok());
    if !may_be(copy, told, is_own) {
        return None;
    }
    if text(2).is_some_and(|directory| is_same(copy.path, Path::new(&directory))) {
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
