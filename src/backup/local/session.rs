//! The SQL session that starts and stops a backup. Its end in between would abort the backup on the server.
//!
//! PostgreSQL: src/backend/access/transam/xlogfuncs.c (pg_backup_start, pg_backup_stop; 13, 14: pg_start_backup, pg_stop_backup).

use crate::backup::source::Source;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::pg::version::Major;
use crate::text::unhex;
use crate::wire::basebackup::{BaseBackupOptions, StartCheckpoint};

/// The answer to the stop of a backup.
pub struct Stopped {
    pub stop_lsn: Lsn,
    /// Content of `backup_label`.
    pub label: Vec<u8>,
    /// Content of `tablespace_map`; empty without tablespaces.
    pub map: Vec<u8>,
}

/// The two functions with their arguments' types.
fn functions(major: Major) -> [&'static str; 2] {
    match major {
        Major::V13 | Major::V14 => [
            "pg_catalog.pg_start_backup(text, boolean, boolean)",
            "pg_catalog.pg_stop_backup(boolean, boolean)",
        ],
        _ => [
            "pg_catalog.pg_backup_start(text, boolean)",
            "pg_catalog.pg_backup_stop(boolean)",
        ],
    }
}

/// Requires the right to start and to stop a backup.
///
/// # Errors
/// `Denied`, naming what to grant; those of the server.
pub fn check_rights(source: &mut dyn Source, major: Major) -> Result<()> {
    for function in functions(major) {
        let rows = source.query(&format!(
            "select has_function_privilege('{function}', 'execute'), current_user"
        ))?;
        if rows.text(0, 0)? != Some("t") {
            let user = rows.text(0, 1)?.unwrap_or_default();
            let [start, stop] = functions(major);
            return Err(err!(Denied, "user \"{user}\" may not call {function}").hint(format!(
                "Nothing was stored. Grant it in the database that conninfo names: GRANT EXECUTE ON FUNCTION {start}, {stop} TO \"{user}\";"
            )));
        }
    }
    Ok(())
}

/// Starts a backup, and returns its start LSN. Nothing may end the session for being slow or idle. A spread checkpoint takes as long as
/// `checkpoint_timeout`: `tick` is called meanwhile.
///
/// # Errors
/// Those of the server, and of `tick`.
pub fn start(
    source: &mut dyn Source,
    (major, request): (Major, &BaseBackupOptions),
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<Lsn> {
    source.query("set standard_conforming_strings = on")?;
    source.query("set statement_timeout = 0")?;
    if major >= Major::V14 {
        source.query("set idle_session_timeout = 0")?;
    }
    if major >= Major::V17 {
        source.query("set transaction_timeout = 0")?;
    }
    let label = request.label.replace('\'', "''");
    let is_fast = request.checkpoint == StartCheckpoint::Fast;
    let command = match major {
        Major::V13 | Major::V14 => format!("select pg_start_backup('{label}', {is_fast}, false)"),
        _ => format!("select pg_backup_start('{label}', {is_fast})"),
    };
    let rows = source.query_long(&command, tick);
    rows.map_err(refused)?.value(0, 0)
}

/// Stops the backup.
///
/// # Errors
/// Those of the server: it names a promotion, and WAL without full pages.
pub fn stop(source: &mut dyn Source, major: Major) -> Result<Stopped> {
    let function = match major {
        Major::V13 | Major::V14 => "pg_stop_backup(false, false)",
        _ => "pg_backup_stop(false)",
    };
    // A path may have bytes of any encoding: they pass as they are.
    source.query("set client_encoding = 'SQL_ASCII'")?;
    let rows = source.query(&format!(
        "select lsn, encode(textsend(labelfile), 'hex'), encode(textsend(spcmapfile), 'hex') from {function}"
    ));
    let rows = rows.map_err(refused)?;
    source.query("reset client_encoding")?;
    let bytes = |column: usize| Ok::<_, Error>(rows.text(0, column)?.and_then(unhex));
    Ok(Stopped {
        stop_lsn: rows.value(0, 0)?,
        label: bytes(1)?.ok_or_else(|| err!(Server, "the server gave no backup label"))?,
        map: bytes(2)?.unwrap_or_default(),
    })
}

/// The timeline when the backup has stopped: on a primary it cannot have changed.
///
/// # Errors
/// Those of the server.
pub fn timeline(source: &mut dyn Source, at_start: TimelineId) -> Result<TimelineId> {
    let rows = source.query("select min_recovery_end_timeline from pg_control_recovery()")?;
    let recovered = TimelineId::new(rows.value(0, 0)?);
    Ok(recovered.map_or(at_start, |timeline| timeline.max(at_start)))
}

fn refused(e: Error) -> Error {
    match e.code() {
        Code::Server => e.hint("Nothing was committed."),
        _ => e,
    }
}
