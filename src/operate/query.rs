//! A look at a moment: one statement on a clone, which is thrown away.
//!
//! The statement finds tables and reads times as a session of the database would. Nothing of pitr relies on that search path: its own
//! statements name the schema of everything.

use std::path::Path;

use super::clone::{self, Asked, folder::State};
use super::rescue::tables::set_config;
use super::server::Server;
use super::session::Session;
use crate::error::{Code, Error, Result};
use crate::restore::settings::Brought;
use crate::wire::client::Rows;
use crate::wire::sql::{is_own_limit, is_too_long};

/// The search path of a cluster that sets none.
const PATH_USUAL: &str = "\"$user\", public";
/// Settings that roles and databases have. One of the role in the database counts most, then one of the role, then one of the database.
///
/// PostgreSQL: src/backend/utils/init/postinit.c, `process_settings`.
const OWN: &str = "select distinct on (c.name) c.name, c.value from pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) config, lateral (select pg_catalog.lower(pg_catalog.split_part(config, '=', 1)), pg_catalog.substr(config, pg_catalog.strpos(config, '=') + 1)) c (name, value) where s.setdatabase in (0, (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())) and s.setrole in (0, (select r.oid from pg_catalog.pg_roles r where r.rolname = current_user)) order by c.name, s.setrole = 0, s.setdatabase = 0";
/// The hint for an answer that is longer than pitr takes.
const TOO_LONG: &str = "The clone was thrown away, and the same statement ends the same way. Ask for fewer rows or columns, or for a part of them.\nA whole table comes back with pitr rescue. pitr clone leads psql to the moment, whose answers have no limit.";
const SHOWN: &str = "select pg_catalog.current_setting('search_path'), pg_catalog.current_setting('TimeZone'), pg_catalog.current_setting('DateStyle')";

/// The result of a statement.
pub struct Answer {
    /// Its rows; of several statements those of the last one.
    pub rows: Rows,
    /// The clone.
    pub state: State,
    /// The search path under which the statement began.
    pub search_path: String,
    /// Likewise the time zone.
    pub time_zone: String,
    /// Likewise the way in which dates are read and written.
    pub date_style: String,
}

/// Runs statements in a database of a clone below a directory.
///
/// # Errors
/// Those of [`clone::for_a_while`]; `Server` for what the statement does wrong.
pub fn run(
    session: &Session,
    asked: &Asked,
    below: &Path,
    (database, sql): (&str, &str),
) -> Result<Answer> {
    clone::for_a_while(session, asked, (database, below), |_, running| {
        let mut server = running.server.connect(database)?;
        settle(session, &mut server, running.brought)?;
        let shown = server.query(SHOWN)?;
        Ok(Answer {
            rows: server.query(sql).map_err(explained)?,
            state: running.state.clone(),
            search_path: shown.value(0, 0)?,
            time_zone: shown.value(0, 1)?,
            date_style: shown.value(0, 2)?,
        })
    })
}

/// Says what helps where the answer is one that pitr does not take, and where the server is gone.
fn explained(e: Error) -> Error {
    if e.code() == Code::Unreachable {
        return e.hint("The server of the copy has ended, or has ended the session, and the copy is thrown away. Run the command again. Where the statement takes more memory than there is, ask for a part.");
    }
    match is_own_limit(&e) {
        true if is_too_long(&e) => e.hint(TOO_LONG),
        true => e.hint(
            "The clone was thrown away. Ask for the bytes: encode(textsend(VALUE::text), 'hex')",
        ),
        false => e,
    }
}

/// Gives a session the settings that decide which table a name means, and which time a text.
fn settle(session: &Session, server: &mut Server, brought: &Brought) -> Result<()> {
    let own = server.query(OWN)?;
    let mut set: Vec<(&str, &str)> = Vec::new();
    for row in 0..own.rows.len() {
        let name = own.text(row, 0)?.unwrap_or_default();
        set.push((name, own.text(row, 1)?.unwrap_or_default()));
    }
    let value_of = |name: &str| {
        let own = set.iter().find(|(of, _)| *of == name);
        own.map(|(_, value)| *value).or_else(|| brought.value(name))
    };
    for name in ["timezone", "datestyle"] {
        let set = value_of(name).map_or(Ok(()), |value| set_config(server, name, value));
        if let Err(e) = set {
            session.warn(&format!("{name} is not as in the cluster: {e}"));
        }
    }
    set_config(server, "search_path", &safe(value_of("search_path")))
}

/// A search path that finds the tables of another one, and never a function or an operator in the place of PostgreSQL's own: the owner of a database may
/// put such schemas first, and the statement is a superuser's.
fn safe(path: Option<&str>) -> String {
    match path.unwrap_or(PATH_USUAL).trim() {
        "" => "pg_catalog".to_owned(),
        path => format!("pg_catalog, {path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::safe;

    #[test]
    fn the_schema_of_postgresql_comes_first() {
        assert_eq!(safe(None), "pg_catalog, \"$user\", public");
        assert_eq!(safe(Some(" ")), "pg_catalog");
        let safe = safe(Some("evil, pg_catalog"));
        assert_eq!(safe, "pg_catalog, evil, pg_catalog");
    }
}
