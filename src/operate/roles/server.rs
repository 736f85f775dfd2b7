//! The rights of a role at the server: those that `pitr init --role` prints, compared with those of the role in `conninfo`.

use super::{MARK, MONITOR, Role};
use crate::config::{Cluster, Settings};
use crate::error::{Code, Result};
use crate::operate::finding::Findings;
use crate::operate::server::Server;

/// Memberships that no work of pitr needs: they run programs, touch files, or reach all rows.
const FAR_REACHING: &str = "'pg_execute_server_program', 'pg_write_server_files', 'pg_read_server_files', 'pg_write_all_data', 'pg_read_all_data'";
/// The one that dumps need, and nothing else.
const READS_ALL: &str = "pg_read_all_data";

/// The rights of the role that `conninfo` names, as the catalogs have them.
struct Granted {
    role: String,
    is_superuser: bool,
    replicates: bool,
    monitors: bool,
    marks: bool,
    /// Attributes and memberships that no work of pitr needs.
    far_reaching: Vec<String>,
}

/// Compares the role of a cluster's connection with what the role of the host needs.
pub(super) fn look(found: &mut Findings, settings: &Settings, cluster: &Cluster, role: Role) {
    let name = format!("server of {}", cluster.name);
    let conninfo = cluster.conninfo.as_ref();
    if conninfo.is_none() && !role.needs_server() {
        return found.ok(&name, format!("{} needs none", role.one()));
    }
    match granted(conninfo.map_or("", |c| c.expose())) {
        Ok(mut granted) => {
            if !settings.logical.is_empty() {
                granted.far_reaching.retain(|right| right != READS_ALL);
            }
            judge(found, &name, &granted, role);
        }
        // A host that needs no server can do all its work while there is none.
        Err(e) if e.code() == Code::Unreachable && !role.needs_server() => {
            found.ok(
                &name,
                format!("it does not answer, and {} needs none", role.one()),
            );
        }
        Err(e) => found.error(&name, &e),
    }
}

fn granted(conninfo: &str) -> Result<Granted> {
    let mut server = Server::connect(conninfo)?;
    let rows = server.query(&format!(
        "select r.rolname, r.rolsuper, r.rolreplication, pg_catalog.pg_has_role(r.oid, 'pg_monitor', 'usage'), \
         pg_catalog.has_function_privilege(r.oid, 'pg_catalog.pg_create_restore_point(text)', 'execute'), \
         pg_catalog.concat_ws(',', case when r.rolcreaterole then 'createrole' end, case when r.rolcreatedb then 'createdb' end, \
         case when r.rolbypassrls then 'bypassrls' end, (select pg_catalog.string_agg(g.rolname, ',' order by g.rolname) \
         from pg_catalog.pg_roles g where g.rolname in ({FAR_REACHING}) and pg_catalog.pg_has_role(r.oid, g.oid, 'member'))) \
         from pg_catalog.pg_roles r where r.rolname = current_user"
    ))?;
    let is = |column| -> Result<bool> { Ok(rows.text(0, column)? == Some("t")) };
    let far = rows.text(0, 5)?.unwrap_or_default();
    let far = far.split(',').filter(|right| !right.is_empty());
    Ok(Granted {
        role: rows.text(0, 0)?.unwrap_or_default().to_owned(),
        is_superuser: is(1)?,
        replicates: is(2)?,
        monitors: is(3)?,
        marks: is(4)?,
        far_reaching: far.map(str::to_owned).collect(),
    })
}

fn judge(found: &mut Findings, name: &str, granted: &Granted, role: Role) {
    let quoted = format!("\"{}\"", granted.role.replace('"', "\"\""));
    let value = |what: &str| format!("role {quoted} {what}");
    let own = format!(
        "name another role in conninfo, with the rights that this prints: pitr init --role {}",
        role.name()
    );
    if granted.is_superuser {
        let cause = format!(
            "whoever takes over this {} can do everything in the server, and run programs as its user",
            role.name()
        );
        return found.warn(name, value("is a superuser"), cause, own);
    }
    let before = found.all.len();
    if role.needs_server() {
        lacking(found, name, granted, &quoted);
    } else if granted.replicates {
        found.warn(
            name,
            value("may replicate"),
            format!("{} needs no right to copy the whole cluster", role.one()),
            "take conninfo from the configuration of this host",
        );
    }
    if !granted.far_reaching.is_empty() {
        let rights = granted.far_reaching.join(", ");
        let cause = format!("no work of {} needs this", role.one());
        found.warn(name, value(&format!("has {rights}")), cause, own);
    }
    if found.all.len() == before {
        found.ok(name, value(&format!("has the rights of {}", role.one())));
    }
}

/// Reports what the role of a host that backs up lacks, each with the statement that grants it.
fn lacking(found: &mut Findings, name: &str, granted: &Granted, quoted: &str) {
    let value = |what: &str| format!("role {quoted} {what}");
    if !granted.replicates {
        found.fail(
            name,
            value("may not replicate"),
            "pitr backup and pitr receive need the right to replicate",
            format!("alter role {quoted} replication"),
        );
    }
    if !granted.monitors {
        found.fail(
            name,
            value("may not monitor"),
            "settings, slots and the archiver are seen in part",
            format!("grant {MONITOR} to {quoted}"),
        );
    }
    if !granted.marks {
        found.warn(
            name,
            value("may not make restore points"),
            "pitr mark does not work",
            format!("grant execute on function {MARK} to {quoted}"),
        );
    }
}
