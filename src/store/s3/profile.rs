//! The profile files: credentials, and programs that are run for them (`credential_process`).
//!
//! They are read here and handed over as text, so that what was checked is what is used: a program is run only if nobody but this user and
//! root can have named it. A secret in another user's file is no such danger, and root reads the file of the server's user.

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};

use crate::config::account::Account;
use crate::config::{S3Settings, trust};
use crate::err;
use crate::error::{Error, Result};
use crate::store::http::{credentials_file, credentials_text};

/// The variable that names a file, and its usual place below the home directory.
type Names = (&'static str, &'static str);
const CONFIG: Names = ("AWS_CONFIG_FILE", ".aws/config");
const CREDENTIALS: Names = ("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");

/// The profile files of this process, which may name programs; they need not be there.
pub fn usual_files() -> impl Iterator<Item = PathBuf> {
    [CONFIG, CREDENTIALS].into_iter().filter_map(place)
}

/// Reads the profile files of these settings: the configured one for credentials, else the usual ones.
///
/// # Errors
/// `Config` when the configured file cannot be read or is open to others, or a file names a program and another user may have written it.
pub(super) fn files(settings: &S3Settings) -> Result<EnvConfigFiles> {
    let config = usual(CONFIG)?;
    let credentials = match &settings.credentials_file {
        Some(file) => configured(file)?,
        None => usual(CREDENTIALS)?,
    };
    Ok(EnvConfigFiles::builder()
        .with_contents(EnvConfigFileKind::Config, config)
        .with_contents(EnvConfigFileKind::Credentials, credentials)
        .build())
}

/// We may read the credentials, and nobody else. The client would say neither why it could not nor, the second time, what.
fn configured(path: &Path) -> Result<String> {
    let (text, metadata) = credentials_file(path)?;
    check_programs(path, &text, &metadata)?;
    Ok(text)
}

/// The file that a variable names, else the one below the home directory; empty where it cannot be read, as for every client of Amazon's.
fn usual(names: Names) -> Result<String> {
    let path = place(names);
    let Some(path) = path else {
        return Ok(String::new());
    };
    let opened = File::open(&path).and_then(|file| Ok((file.metadata()?, credentials_text(file)?)));
    let Ok((metadata, text)) = opened else {
        return Ok(String::new());
    };
    check_programs(&path, &text, &metadata)?;
    Ok(text)
}

fn place((variable, below_home): Names) -> Option<PathBuf> {
    let home = || std::env::home_dir().filter(|home| home.is_absolute());
    match std::env::var_os(variable).map(PathBuf::from) {
        Some(named) => match named.strip_prefix("~") {
            Ok(rest) => home().map(|home| home.join(rest)),
            Err(_) => Some(named),
        },
        None => home().map(|home| home.join(below_home)),
    }
}

/// Requires that only this user and root may write a file that names programs.
fn check_programs(path: &Path, text: &str, metadata: &Metadata) -> Result<()> {
    if !text.to_ascii_lowercase().contains("credential_process") {
        return Ok(());
    }
    let shown = path.display();
    let (own, owner) = (rustix::process::geteuid().as_raw(), metadata.uid());
    let refused = |why: String| -> Error {
        err!(Config, "\"{shown}\" names a credential_process, and {why}")
    };
    if !trust::is_own(metadata) {
        let (owner, own) = (Account::name_of(owner), Account::name_of(own));
        let error = refused(format!("belongs to user \"{owner}\""));
        return Err(error.hint(format!(
            "The program would run as user \"{own}\" and is not run. Run pitr as that user: sudo -u {owner}"
        )));
    }
    match metadata.mode() & 0o022 {
        0 => Ok(()),
        _ => Err(
            refused("other users may change it".to_owned()).hint(format!(
                "The program is not run. Take the right away: chmod go-w {shown}"
            )),
        ),
    }
}
