//! Configuration files: backed up, shown without their secrets, compared, and given back to those who hold the key.

pub mod backup;
pub mod in_place;
pub mod original;
pub mod recipients;
pub mod redacted;
pub mod scan;

use std::path::PathBuf;

use super::search::{self, Stored};
use super::server::Server;
use super::session::Session;
use crate::backup::configuration::collect::Wanted;
use crate::backup::configuration::paths::{self, Reader, Said};
use crate::backup::configuration::{NAME, Pair, Sealing};
use crate::config::{self, ConfigSet, DEFAULT_PATHS, Flags, Settings};
use crate::err;
use crate::error::Result;
use crate::repo::event::{self, Recorded};
use crate::repo::id::BackupId;
use crate::repo::keyring::{WriterFile, forbid_core_dumps, system_random};
use crate::secrets::Overrides;

/// Returns the section of the configuration for a name.
///
/// # Errors
/// `Config` when there is none, with the lines to add.
fn configured<'s>(settings: &'s Settings, name: &str) -> Result<&'s ConfigSet> {
    let found = settings.config.iter().find(|set| set.name == name);
    found.ok_or_else(|| {
        err!(Config, "no set of configuration \"{name}\" is configured").hint(format!(
            "Nothing was stored. Add to the configuration file: [config.{name}] and below it paths = [\"default\"]"
        ))
    })
}

/// The files of a set on this host.
fn wanted<'s>(session: &Session, settings: &'s Settings, set: &'s ConfigSet) -> Result<Wanted<'s>> {
    let all = unnarrowed(session, settings)?;
    let mut wanted = Wanted {
        exclude: &set.exclude,
        overrides: overrides(&all, set),
        forbidden: Some(forbidden(&all)),
        ..Wanted::default()
    };
    for path in &set.paths {
        match path == DEFAULT_PATHS {
            true => defaults(session, settings, set, &mut wanted)?,
            false => {
                let expanded = paths::expand(path);
                wanted.required.extend(expanded.found);
                wanted.left_out.extend(expanded.left_out);
            }
        }
    }
    Ok(wanted)
}

/// The settings with all repositories: a secret of one that `--repository` leaves out is a secret all the same.
fn unnarrowed(session: &Session, settings: &Settings) -> Result<Settings> {
    // Without a file there are no others.
    if settings.path.is_none() {
        return Ok(settings.clone());
    }
    let flags = Flags {
        repository: None,
        ..session.flags.clone()
    };
    Settings::load(&flags, &session.environment)
}

/// The operator's judgement, and the files that are secrets by the configuration, which is to be [`unnarrowed`].
fn overrides(settings: &Settings, set: &ConfigSet) -> Overrides {
    Overrides {
        secret: set.secret.clone(),
        plain: set.plain.clone(),
        files: own_secrets(settings),
    }
}

/// The files of the configuration that are nothing but a secret, by their names and by the places that these lead to.
fn own_secrets(settings: &Settings) -> Vec<String> {
    let servers = settings.redis.iter();
    let servers = servers.flat_map(|one| [&one.access, &one.sentinel.access]);
    let sinks = settings.alerts.iter();
    let sinks = sinks.flat_map(|one| [&one.url_file, &one.key_file, &one.password_file]);
    let repositories = settings.repositories.iter();
    let all = servers
        .map(|access| &access.password_file)
        .chain(sinks)
        .chain(repositories.map(|r| &r.sftp.passphrase_file))
        .chain([&settings.page.token_file]);
    let named = all.flatten();
    let places = named.flat_map(|path| [Some(path.clone()), path.canonicalize().ok()]);
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    places.flatten().map(text).collect()
}

/// Files that open a repository.
fn forbidden(settings: &Settings) -> Vec<PathBuf> {
    let repositories = settings.repositories.iter();
    let keys = repositories.filter_map(|r| r.encryption.as_ref());
    let files = keys.flat_map(|e| [&e.key_file, &e.passphrase_file, &e.secrets_key]);
    files.flatten().cloned().collect()
}

/// PostgreSQL's configuration, pitr's own, crontabs and units.
fn defaults(
    session: &Session,
    settings: &Settings,
    set: &ConfigSet,
    wanted: &mut Wanted<'_>,
) -> Result<()> {
    wanted.optional.extend(paths::of_host());
    wanted.optional.extend(settings.path.clone());
    let section = format!("config.{}", set.name);
    let cluster = match &set.cluster {
        Some(name) => Some(settings.cluster_named_in(&section, name, "pgdata")?),
        None if settings.clusters.len() > 1 => {
            return Err(err!(
                Config,
                "several clusters are configured, and [{section}] names none"
            )
            .hint("Nothing was stored. Add cluster = \"NAME\"."));
        }
        None => settings.clusters.first(),
    };
    let Some(cluster) = cluster else {
        return Ok(());
    };
    let conninfo = cluster.conninfo.as_ref().map(config::Secret::expose);
    let said = conninfo.map_or(Ok(None), said).unwrap_or_else(|e| {
        session.note(&format!("the server does not say where its configuration is, so its data directory is asked: {e}"));
        None
    });
    let Some(pgdata) = &cluster.pgdata else {
        session.warn(&format!(
            "cluster \"{}\" has no pgdata in the configuration, so its files are not backed up",
            cluster.name
        ));
        return Ok(());
    };
    match Reader::of(pgdata) {
        Ok(reader) => {
            let paths = paths::of_server(pgdata, &said.unwrap_or_default(), reader)?;
            wanted.of_server = Some((reader, paths.found));
            wanted.left_out.extend(paths.left_out);
        }
        Err(e) => wanted.left_out.push((pgdata.clone(), e.to_string())),
    }
    Ok(())
}

/// The server's word on its files.
fn said(conninfo: &str) -> Result<Option<Said>> {
    let mut server = Server::connect(conninfo)?;
    let rows = server.query("select current_setting('config_file'), current_setting('hba_file'), current_setting('ident_file')")?;
    let path = |column| -> Result<Option<PathBuf>> { Ok(rows.text(0, column)?.map(PathBuf::from)) };
    Ok(Some(Said {
        config_file: path(0)?,
        others: [path(1)?, path(2)?].into_iter().flatten().collect(),
    }))
}

/// The way in which originals are kept in a repository.
fn sealing(
    configured: &config::Repository,
    is_encrypted: bool,
    allow_plain: bool,
) -> Result<Sealing> {
    let repository = &configured.name;
    if let Some(path) = configured.secrets_file() {
        let (public, mac) = WriterFile::read_secrets(path)?.keys(path)?;
        return Ok(Sealing::Pair(Box::new(Pair {
            public,
            mac,
            random: system_random,
        })));
    }
    Ok(match (is_encrypted, allow_plain) {
        (true, _) => Sealing::Refused(format!(
            "Make a secrets pair with pitr repo keygen --secrets --dir DIR --recipient NAME --recipient escrow, and name it: secrets = \"DIR/secrets.key\" in [repositories.{repository}.encryption]."
        )),
        (false, true) => Sealing::Unsealed,
        (false, false) => Sealing::Refused(format!(
            "Repository \"{repository}\" is not encrypted: store secrets in one that is, with --repository NAME, or add --allow-plain-secrets."
        )),
    })
}

/// Finds the backup: the one that is named, else the newest that is neither damaged nor marked for deletion, in the first repository that has it.
fn find(session: &Session, name: &str, wanted: Option<&BackupId>) -> Result<Stored> {
    forbid_core_dumps()?;
    // A mark counts nothing against one that is named.
    let stays = |events: &[Recorded]| wanted.is_some() || !event::is_marked(events);
    let is_good = |events: &[Recorded]| event::damage(events).is_empty() && stays(events);
    let found = search::best(session, (NAME, name), |repository, scope| {
        search::named_or_newest(repository, scope, wanted, is_good)
    })?;
    found.ok_or_else(|| {
        search::lacking(&format!("configuration \"{name}\""), wanted).hint(format!(
            "pitr info shows what there is. Take one with pitr config backup {name}"
        ))
    })
}

/// A path as operators write it, as a backup has it.
fn stored_path(path: &str) -> Vec<u8> {
    path.trim_matches('/').as_bytes().to_vec()
}

fn shown_path(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

/// The identity of this host's configuration: the configured one, else that of the machine.
fn identity(set: &ConfigSet) -> Result<String> {
    match &set.identity {
        Some(own) => Ok(own.clone()),
        None => super::files::source::machine_id("config", &set.name),
    }
}
