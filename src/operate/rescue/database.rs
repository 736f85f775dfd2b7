//! Whole databases: the way back of one that was dropped, and the properties that no archive of its content carries.

use super::tables::literal;
use super::{Asked, What};
use crate::config::secret::Secret;
use crate::error::{Error, Result};
use crate::operate::archive_command::shell_word;
use crate::operate::server::Server;
use crate::operate::session::Session;
use crate::wire::conninfo::{ConnInfo, Environment, HostAddress, quoted};
use crate::wire::server_error::sqlstate;

/// `undefined_database`.
const NO_DATABASE: &str = "3D000";

/// Whether a server said that it has no database of the name.
pub fn is_missing(e: &Error) -> bool {
    sqlstate(e) == Some(NO_DATABASE)
}

/// Returns a hint with the two commands that bring back the database that a connection string names and the server does not have.
pub fn way_back(session: &Session, asked: &Asked, conninfo: &Secret) -> Option<String> {
    let given = conninfo.expose();
    let info = ConnInfo::resolve(given, &Environment::of_process()).ok()?;
    let host = info.hosts.first()?;
    let place = match &host.address {
        HostAddress::Socket(directory) => directory.display().to_string(),
        HostAddress::Tcp { name, .. } => name.clone(),
    };
    let name = info.dbname.as_ref().unwrap_or(&info.user);
    let database = asked.database.as_ref().unwrap_or(name);
    let alone = ConnInfo::resolve(given, &Environment::default());
    // A password belongs on no screen, and into no shell history.
    let into = match alone.is_ok_and(|alone| alone.password.is_some()) {
        true => format!(
            "host={} port={} user={} dbname={}",
            quoted(&place),
            host.port,
            quoted(&info.user),
            quoted(name)
        ),
        false => given.to_owned(),
    };
    let options = session.options(session.flags.cluster.as_deref());
    Some(format!(
        "Nothing was done. A dropped database comes back into a new one.\ncreatedb -h {} -p {} -U {} -T template0 {} && pitr rescue{options} --database {} --into {}{}",
        shell_word(&place),
        host.port,
        shell_word(&info.user),
        shell_word(name),
        shell_word(database),
        shell_word(&into),
        asked.words
    ))
}

/// Settings whose values are lists of names: they are no single text.
const LISTS: &str =
    "'search_path', 'temp_tablespaces', 'session_preload_libraries', 'local_preload_libraries'";

/// Properties of the database at the moment, as lines for people: settings and rights, of which an archive has none. `{name}` is the name
/// that it has now.
const PROPERTIES: [&str; 3] = [
    "select pg_catalog.format('a setting was not carried: alter %s set %s = %s;', case s.setrole when 0 then 'database ' || {name} else pg_catalog.format('role %s in database %s', pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(s.setrole)), {name}) end, c.name, case when c.name in ({lists}) then c.value else pg_catalog.quote_literal(c.value) end) from pg_catalog.pg_db_role_setting s join pg_catalog.pg_database d on d.oid = s.setdatabase, pg_catalog.unnest(s.setconfig) config, lateral (select pg_catalog.split_part(config, '=', 1), pg_catalog.substr(config, pg_catalog.strpos(config, '=') + 1)) c (name, value) where d.datname = pg_catalog.current_database() order by 1",
    "select pg_catalog.format('a right was not carried: grant %s on database %s to %s%s;', a.privilege_type, {name}, pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)), case when a.is_grantable then ' with grant option' else '' end) from pg_catalog.pg_database d, pg_catalog.aclexplode(d.datacl) a where d.datname = pg_catalog.current_database() and a.grantee not in (0, d.datdba) order by 1",
    "select pg_catalog.format('a right was not carried: revoke %s on database %s from public;', p.name, {name}) from pg_catalog.pg_database d, (values ('CONNECT'), ('TEMPORARY')) p (name) where d.datname = pg_catalog.current_database() and d.datacl is not null and not exists (select from pg_catalog.aclexplode(d.datacl) a where a.grantee = 0 and a.privilege_type = p.name) order by 1",
];

/// Encoding, collation, character type and owner, which a database has from its making.
const MADE_WITH: &str = "select pg_catalog.pg_encoding_to_char(encoding), datcollate, datctype, pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(datdba)), pg_catalog.quote_ident(datname) from pg_catalog.pg_database where datname = pg_catalog.current_database()";

/// Lists settings and rights of the database at the moment, for one that is called `name` now.
///
/// # Errors
/// Those of [`Server::query`].
pub fn properties(source: &mut Server, name: &str) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for sql in PROPERTIES {
        let sql = sql.replace("{lists}", LISTS);
        let found = source.query(&sql.replace("{name}", literal(name).trim_start()))?;
        notes.extend(found.texts(0)?);
    }
    Ok(notes)
}

/// Lists everything of the database at the moment that the live one has otherwise.
///
/// # Errors
/// Those of [`Server::query`].
pub fn lacking(source: &mut Server, live: &mut Server, what: &What) -> Result<Vec<String>> {
    if *what != What::Database {
        return Ok(Vec::new());
    }
    let made = |server: &mut Server| -> Result<[String; 5]> {
        let rows = server.query(MADE_WITH)?;
        let mut made = <[String; 5]>::default();
        for (column, value) in made.iter_mut().enumerate() {
            *value = rows.value(0, column)?;
        }
        Ok(made)
    };
    let [encoding, collation, character_type, owner, _] = made(source)?;
    let [now_encoding, now_collation, now_type, now_owner, name] = made(live)?;
    let mut notes = Vec::new();
    if (&encoding, &collation, &character_type) != (&now_encoding, &now_collation, &now_type) {
        notes.push(format!(
            "the database had encoding {encoding}, collation {collation} and character type {character_type}, this one has {now_encoding}, {now_collation} and {now_type}: createdb has -E, --lc-collate and --lc-ctype"
        ));
    }
    if owner != now_owner {
        notes.push(format!(
            "the owner was another one: alter database {name} owner to {owner};"
        ));
    }
    notes.extend(properties(source, &name)?);
    Ok(notes)
}
