//! Namespaces of its own: what a clone mounts nobody else sees, and it is gone with the last process of the clone.
//!
//! `unshare` of util-linux makes them, for an ordinary user too: it begins a user namespace in which this user may mount. A host
//! that does not allow that has fusermount3, and everybody sees the mount.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::config::{Environment, roots};
use crate::err;
use crate::error::{Error, Result};
use crate::operate::session::Session;
use crate::store::s3;

/// Set in the environment of a process that is inside.
const INSIDE: &str = "PITR_IN_NAMESPACE";
const UNSHARE: [&str; 6] = [
    "unshare",
    "--user",
    "--map-current-user",
    "--mount",
    "--keep-caps",
    "--",
];
/// The server loses what the namespace gives, and ends with the process that mounts its files.
const SETPRIV: [&str; 5] = [
    "setpriv",
    "--inh-caps=-all",
    "--ambient-caps=-all",
    "--pdeathsig=QUIT",
    "--",
];
/// The same outside of namespaces, where it has nothing to lose.
const WITH_PARENT: [&str; 3] = ["setpriv", "--pdeathsig=QUIT", "--"];
/// A program that works on the live server ends with the process that asked for that.
const TIED: [&str; 3] = ["setpriv", "--pdeathsig=TERM", "--"];
const NO_NETWORK: [&str; 3] = ["unshare", "--net", "--"];
/// The same for a process that has no namespaces yet. It gets no rights in them.
const NO_NETWORK_ALONE: [&str; 5] = ["unshare", "--user", "--map-current-user", "--net", "--"];

/// Whether this process has namespaces of its own.
pub fn is_inside(environment: &Environment) -> bool {
    environment.get(INSIDE).is_some()
}

fn works(words: &[&str]) -> bool {
    let Some((first, rest)) = words.split_first() else {
        return false;
    };
    let mut command = Command::new(first);
    command.args(rest).arg("true");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let status = command.stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// This program with these arguments, inside where the host allows it.
///
/// # Errors
/// `Io`.
pub fn command(
    session: &Session,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Command> {
    let program = std::env::current_exe().map_err(|e| Error::from_io("find this program", e))?;
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut command = match works(&UNSHARE) {
        true => {
            let [first, rest @ ..] = UNSHARE;
            let mut command = Command::new(first);
            command.args(rest).arg(program).env(INSIDE, "yes");
            command.env(roots::VARIABLE, roots::noted(trusted(session, &arguments)));
            command
        }
        false => Command::new(program),
    };
    command.args(arguments);
    Ok(command)
}

/// Goes inside: runs the same command line again in the place of this process, where the host allows it and it is not inside yet.
///
/// # Errors
/// `Io`; returns without one where there is nothing to do.
pub fn enter(session: &Session) -> Result<()> {
    if is_inside(&session.environment) || !works(&UNSHARE) {
        return Ok(());
    }
    let e = command(session, std::env::args_os().skip(1))?.exec();
    Err(err!(Io, "this program could not be run again").source(e))
}

/// The files and directories of which has to be known inside whether only this user and root may change them: nobody can tell there what is
/// root's. A configuration that cannot be read names none of them, and the program inside tells its error.
fn trusted(session: &Session, arguments: &[OsString]) -> Vec<PathBuf> {
    let mut trusted = places(session, arguments);
    let Ok(settings) = session.settings() else {
        return trusted;
    };
    let repositories = settings.repositories.iter();
    for encryption in repositories.filter_map(|one| one.encryption.as_ref()) {
        let commands = [&encryption.key_command, &encryption.passphrase_command];
        trusted.extend(commands.into_iter().flatten().map(PathBuf::from));
        trusted.extend(encryption.files().map(PathBuf::from));
    }
    let clusters = settings.clusters.into_iter();
    trusted.extend(clusters.flat_map(|one| one.clone_dir.into_iter().chain(one.drill_dir)));
    trusted.extend(settings.path);
    trusted.extend(s3::usual_files());
    trusted
}

/// The directories below which tablespaces may lie, but for configured ones: each on the command line, and that of temporary files.
fn places(session: &Session, arguments: &[OsString]) -> Vec<PathBuf> {
    let value = |argument: &OsString| {
        let bytes = argument.as_bytes();
        let value = bytes.iter().position(|b| *b == b'=').map_or(0, |at| at + 1);
        let path = OsStr::from_bytes(bytes.get(value..).unwrap_or_default());
        session.environment.absolute(Path::new(path))
    };
    let named = arguments.iter().map(value);
    named.chain([session.host.scratch.clone()]).collect()
}

/// The words before a server's own that take the network away, outside of namespaces; none where the host does not allow it.
pub fn without_network() -> Vec<String> {
    where_it_works(&NO_NETWORK_ALONE)
}

/// The words before a program that let it end with this process, however that ends; none where the host lacks setpriv.
pub fn tied() -> Vec<String> {
    where_it_works(&TIED)
}

fn where_it_works(words: &[&str]) -> Vec<String> {
    let words = if works(words) { words } else { &[] };
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// The words before the server of scripts, which has no network; none where the host does not allow that.
pub fn before_scripts(environment: &Environment) -> Option<Vec<String>> {
    let words = match is_inside(environment) {
        true if !works(&NO_NETWORK) => Vec::new(),
        true => before_server(environment, false),
        false => without_network(),
    };
    (!words.is_empty()).then_some(words)
}

/// The words before the server's own; without a network where it needs none.
pub fn before_server(environment: &Environment, needs_network: bool) -> Vec<String> {
    if !is_inside(environment) {
        return where_it_works(&WITH_PARENT);
    }
    let mut words: Vec<&str> = Vec::new();
    if !needs_network && works(&NO_NETWORK) {
        words.extend(NO_NETWORK);
    }
    words.extend(SETPRIV);
    words.into_iter().map(str::to_owned).collect()
}
