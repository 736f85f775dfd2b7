//! A standby that has not replayed the target yet: it recovers to the target in its place, and no byte of a backup is copied.
//!
//! Recovery goes on from its last restartpoint with the WAL of the repository, in quarantine (`operate::aside`), and the directory keeps a guard until it is
//! adopted. Pages and the states of transactions behind the target must not be on disk. A standby that was shut down has replayed up to the minimum recovery
//! point of its pg_control, as far as anything of it is on disk (src/backend/access/transam/xlog.c, `CreateRestartPoint`); of one that was killed nothing tells it.
//! That holds with hot_standby: without it the state of a transaction reaches the disk before that point does (xact.c, `xact_redo_commit`).
//!
//! The plan is one whose backup began before the restartpoint: all WAL from there to the target is proven. That the standby is of that WAL, `pitr-restore` checks
//! (`archive::own`).
//!
//! Order of what is written: the record, the guard, the settings, `recovery.signal`; then `standby.signal` goes.

use std::path::{Path, PathBuf};

use super::aside;
use super::choice::{Question, Unless};
use super::erasure::apply;
use super::opened::{self, Opened};
use super::quarantine;
use super::reading::Reading;
use super::restoring::path_text;
use super::server::Server;
use super::session::Session;
use super::target::{AskedTarget, Point};
use crate::archive::datadir::{DataDirectory, GUARD};
use crate::archive::guard::{self, AUTO_CONF, COMMENT, Guard, SETTINGS, Which};
use crate::archive::server_conf;
use crate::durable;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::host::Host;
use crate::pg::conf;
use crate::pg::control::{ClusterState, ControlFile};
use crate::pg::lsn::Lsn;
use crate::pg::timeline::TimelineId;
use crate::plan::recovery::{Action, Plan};
use crate::plan::target::Target;
use crate::repo::event::PROGRAM;
use crate::repo::lives::Followed;
use crate::restore::job::{Job, Purpose, Request};
use crate::restore::replace::waiting;
use crate::restore::settings::{self, Brought};

const UNCHANGED: &str = "Nothing was changed.";
const FROM_BACKUP: &str = "Nothing was changed. Restore from a backup: pitr restore --aside";
const STANDBY: &str = "standby.signal";
const RECOVERY: &str = "recovery.signal";

/// The operator's request.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The standby's data directory.
    pub to: PathBuf,
    /// The recovery target.
    pub target: AskedTarget,
    /// Whether it is only looked at: the server may run.
    pub dry_run: bool,
}

/// A standby that can recover to the target.
pub struct Prepared {
    /// The repository whose WAL is replayed.
    pub opened: Opened,
    /// The plan. Its backup is not copied.
    pub plan: Plan,
    /// The end of what the standby has replayed, as far as it is known while it runs.
    pub replayed: Lsn,
    /// The restartpoint, from which recovery begins.
    pub restartpoint: Lsn,
    job: Job,
    data: PathBuf,
    is_begun: bool,
}

impl Prepared {
    /// The WAL between the restartpoint and the target.
    pub fn bytes_to_replay(&self) -> u64 {
        let end = self.plan.stop.as_ref().map(|stop| stop.recovery_end_lsn);
        end.map_or(0, |end| end.0.saturating_sub(self.restartpoint.0))
    }

    /// The standby's data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }
}

/// Decides and checks, up to the first write.
///
/// # Errors
/// `Refused` for root, for what is no standby of the cluster that was shut down, and for one that recovers to another target; `OutOfReach` where the standby has
/// passed the target, or nothing leads there; those of the repositories.
pub fn prepare(session: &Session, asked: &Asked) -> Result<Prepared> {
    check_target(&asked.target)?;
    let data = data_directory(&session.environment.absolute(&asked.to))?;
    let directory = DataDirectory::at(&data);
    let reading = Reading::open(session)?;
    let first = opened::open(session, reading)?;
    let resolved = first
        .reading
        .resolve(session, &first.inventory, &asked.target)?;
    let request = Request {
        to: path_text(&data)?,
        cluster: first.layout.name().to_owned(),
        repository: session.flags.repository.clone(),
        backup: asked.target.backup.clone(),
        as_stored: session.followed == Followed::AsStored,
        delta: false,
        databases: None,
        tablespace_mappings: Vec::new(),
        purpose: Purpose::Restore {
            target: resolved.target,
            action: Action::Promote,
            adopt: false,
        },
    };
    let begun = begun(&directory, &request)?;
    let control = control_of(&directory)?;
    if control.system_identifier != first.inventory.system_identifier {
        return Err(err!(
            Refused,
            "\"{}\" is a data directory of system identifier {}, the repository has {}",
            data.display(),
            control.system_identifier,
            first.inventory.system_identifier
        )
        .hint(UNCHANGED));
    }
    let restartpoint = control.checkpoint_copy.redo;
    quarantine::programs(&session.environment, control.major.number(), None)?;
    if let Some(job) = begun {
        let plan = job.plan.clone();
        let plan = plan.ok_or_else(|| err!(Internal, "a recovery without a plan"))?;
        if directory.has("postmaster.pid") && !asked.dry_run {
            return Err(runs(&directory));
        }
        if control.state == ClusterState::ShutDownInRecovery {
            check_position(&plan, control.min_recovery_point)?;
        }
        return Ok(Prepared {
            opened: first.where_it_began(session, &job)?,
            plan,
            replayed: control.min_recovery_point,
            restartpoint,
            job,
            data,
            is_begun: true,
        });
    }
    let replayed = replayed(&first, (&directory, &control), asked.dry_run)?;
    let (opened, mut plan) = planned(session, first, (asked, &control))?;
    check_position(&plan, replayed)?;
    let brought = brought(&directory)?;
    settings::complete(&mut plan.recovery_settings, (false, false), &brought);
    let backup = plan.backup.as_ref().map(|backup| backup.id.clone());
    let backup = backup.ok_or_else(|| err!(Internal, "a plan without a backup"))?;
    let (job, _) = opened.job(session, request, &backup, Some(plan.clone()))?;
    Ok(Prepared {
        opened,
        plan,
        replayed,
        restartpoint,
        job,
        data,
        is_begun: false,
    })
}

/// A standby is consistent already, and has no label.
fn check_target(target: &AskedTarget) -> Result<()> {
    match &target.point {
        Point::Known(Target::Immediate) => Err(err!(
            Usage,
            "--target-immediate is the end of a backup, and no backup is restored"
        )
        .hint(UNCHANGED)),
        _ => Ok(()),
    }
}

/// The data directory without links, in which no server of ours is left.
fn data_directory(to: &Path) -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Err(
            err!(Refused, "PostgreSQL refuses to run as root").hint(format!(
                "{UNCHANGED} Run it as the server's user: sudo -u postgres pitr restore --from-standby"
            )),
        );
    }
    let data = to.canonicalize();
    let data = data.map_err(|e| Error::from_io(format!("look at \"{}\"", to.display()), e))?;
    apply::end_left_behind(&data)?;
    Ok(data)
}

fn control_of(directory: &DataDirectory) -> Result<ControlFile> {
    directory.control()?.ok_or_else(|| {
        let shown = directory.path().display();
        err!(
            Refused,
            "\"{shown}\" is no data directory: it has no pg_control"
        )
        .hint(UNCHANGED)
    })
}

/// Returns the job of an earlier run; none where nothing was begun.
fn begun(directory: &DataDirectory, request: &Request) -> Result<Option<Job>> {
    let shown = directory.path().display();
    let is_ours = guard::written(directory).is_ok_and(|record| record.was_standby);
    if directory.has(STANDBY) && !is_ours && directory.wal().join(GUARD).exists() {
        return Err(err!(
            Refused,
            "\"{shown}\" is a restored copy with a guard, and not a standby of the cluster"
        )
        .hint(UNCHANGED));
    }
    if directory.has(STANDBY) {
        return Ok(None);
    }
    let record = guard::written(directory).ok();
    let job = record
        .filter(|record| record.was_standby)
        .map(|record| record.job);
    let job: Option<Job> = job.and_then(|job| serde_json::from_value(job).ok());
    match job {
        Some(job) if job.request == *request => Ok(Some(job)),
        Some(_) => Err(err!(
            Refused,
            "\"{shown}\" is a standby whose recovery was begun with another target"
        )
        .hint(format!("{UNCHANGED} Run the command that began it. While it is not promoted yet, it can be taken back: pitr restore --from-standby --undo --to DIR --confirm"))),
        _ => Err(
            err!(Refused, "\"{shown}\" is no standby: it has no standby.signal").hint(format!(
                "{UNCHANGED} Restore beside it from a backup: pitr restore --aside"
            )),
        ),
    }
}

/// Returns the end of what the standby has replayed; a lower bound where its server runs and does not answer.
fn replayed(
    opened: &Opened,
    (directory, control): (&DataDirectory, &ControlFile),
    may_run: bool,
) -> Result<Lsn> {
    let shown = directory.path().display();
    let recorded = control.min_recovery_point;
    let is_hot = server_conf::value_of(directory.path(), "hot_standby");
    if conf::is_off(is_hot.as_deref()) {
        return Err(err!(
            Refused,
            "the standby in \"{shown}\" has hot_standby off: nothing tells which transactions reached its disk"
        )
        .hint(FROM_BACKUP));
    }
    if control.is_backup_unfinished {
        return Err(err!(
            Refused,
            "the standby in \"{shown}\" has not replayed to the end of the backup that it was made from"
        )
        .hint(format!("{UNCHANGED} Start it, and shut it down once it takes connections.")));
    }
    if directory.has("postmaster.pid") {
        if !may_run {
            return Err(runs(directory));
        }
        return Ok(asked_of_server(opened, directory).map_or(recorded, |lsn| lsn.max(recorded)));
    }
    if control.state != ClusterState::ShutDownInRecovery {
        return Err(err!(
            Refused,
            "the standby in \"{shown}\" was not shut down in order: pg_control says {}",
            control.state.name()
        )
        .hint(format!("{UNCHANGED} Nothing tells what it has replayed. Start it, and shut it down: pg_ctl stop -m fast. Its recovery_min_apply_delay holds meanwhile.")));
    }
    Ok(recorded)
}

fn runs(directory: &DataDirectory) -> Error {
    let shown = directory.path().display();
    err!(Refused, "a server may run in \"{shown}\": postmaster.pid is there").hint(format!(
        "{UNCHANGED} Shut the standby down: pg_ctl stop -m fast. Where it was killed, start it before, so that it can be shut down in order."
    ))
}

/// Asks the server in a data directory what it has replayed; none where it does not answer, or another one does.
fn asked_of_server(opened: &Opened, directory: &DataDirectory) -> Option<Lsn> {
    let conninfo = opened.reading.cluster.as_ref()?.conninfo.as_ref()?;
    let mut server = Server::connect(conninfo.expose()).ok()?;
    let sql = "select current_setting('data_directory'), pg_last_wal_replay_lsn()::text";
    let rows = server.query(sql).ok()?;
    let data = rows.text(0, 0).ok()??;
    let is_same = Path::new(data).canonicalize().ok()? == directory.path();
    let lsn = rows.text(0, 1).ok()??;
    lsn.parse().ok().filter(|_| is_same)
}

/// Plans the way from the restartpoint: with the newest backup that began before it.
fn planned(
    session: &Session,
    first: Opened,
    (asked, control): (&Asked, &ControlFile),
) -> Result<(Opened, Plan)> {
    let restartpoint = control.checkpoint_copy.redo;
    let (opened, plan) = answered(session, first, &asked.target)?;
    if begins(&plan).is_some_and(|start| start <= restartpoint) {
        return on_the_way(control, &plan).map(|()| (opened, plan));
    }
    let mut older: Vec<_> = opened.inventory.backups.iter().collect();
    older.retain(|backup| backup.start_lsn <= restartpoint && asked.target.backup.is_none());
    older.sort_by_key(|backup| std::cmp::Reverse(backup.start_lsn));
    let older: Vec<String> = older.iter().map(|backup| backup.id.to_string()).collect();
    let mut why = None;
    for backup in older {
        let target = AskedTarget {
            backup: Some(backup),
            ..asked.target.clone()
        };
        let again = opened::open(session, Reading::open(session)?)?;
        let found = answered(session, again, &target);
        let found =
            found.and_then(|(opened, plan)| on_the_way(control, &plan).map(|()| (opened, plan)));
        match found {
            Err(e) if e.code() == Code::OutOfReach => {
                why.get_or_insert(e);
            }
            found => return found,
        }
    }
    Err(why.unwrap_or_else(|| {
        err!(
            OutOfReach,
            "the standby's restartpoint {restartpoint} lies before every backup, so its WAL is not proven"
        )
        .hint(FROM_BACKUP)
    }))
}

fn answered(session: &Session, opened: Opened, target: &AskedTarget) -> Result<(Opened, Plan)> {
    let question = Question {
        target,
        action: Action::Promote,
        is_carried_out: true,
    };
    let chosen = question.answer(session, opened)?;
    match chosen.unless {
        None => Ok((chosen.opened, chosen.plan)),
        Some(Unless::NotKnown(e)) => Err(e),
        Some(Unless::OutOfReach { why, next }) => {
            let next = next.map(|next| format!("\n{next}")).unwrap_or_default();
            Err(err!(OutOfReach, "{why}").hint(format!("{UNCHANGED}{next}")))
        }
    }
}

fn begins(plan: &Plan) -> Option<Lsn> {
    plan.backup.as_ref().map(|backup| backup.start_lsn)
}

/// Requires that the restartpoint, and what was replayed behind it, lie on the way of the plan.
fn on_the_way(control: &ControlFile, plan: &Plan) -> Result<()> {
    let begins = &control.checkpoint_copy;
    let (mut all, min) = (
        vec![(begins.timeline, begins.redo)],
        control.min_recovery_point,
    );
    all.extend(
        control
            .min_recovery_timeline
            .map(|timeline| (timeline, min)),
    );
    let has = |(timeline, lsn): &(TimelineId, Lsn)| {
        plan.timelines.iter().any(|part| {
            let is_before_end = part.to_lsn.is_none_or(|to| *lsn <= to);
            part.timeline == *timeline && part.from_lsn <= *lsn && is_before_end
        })
    };
    // `check_position` refuses a position behind the end.
    let end = plan.stop.as_ref().map(|stop| stop.recovery_end_lsn);
    all.retain(|(_, lsn)| end.is_none_or(|end| *lsn <= end));
    match all.iter().find(|one| !has(one)) {
        None => Ok(()),
        Some((timeline, lsn)) => Err(err!(
            OutOfReach,
            "the standby's position {lsn} on timeline {} does not lie before the target on its way",
            timeline.decimal()
        )
        .hint(FROM_BACKUP)),
    }
}

/// Requires that the standby has not passed the end of recovery.
fn check_position(plan: &Plan, replayed: Lsn) -> Result<()> {
    let end = plan.stop.as_ref().map(|stop| stop.recovery_end_lsn);
    let end = end.ok_or_else(|| err!(Internal, "a plan without an end"))?;
    match replayed <= end {
        true => Ok(()),
        false => Err(err!(
            OutOfReach,
            "the standby has replayed up to {replayed}, and recovery would have to end at {end}"
        )
        .hint(format!(
            "{UNCHANGED} What is replayed stays. Restore from a backup: pitr restore --aside"
        ))),
    }
}

/// The configuration that the standby has.
fn brought(directory: &DataDirectory) -> Result<Brought> {
    let data = directory.path();
    let mut brought = Brought::default();
    let disk = server_conf::Disk;
    let configuration = &mut brought.configuration;
    configuration.add(&data.join("postgresql.conf"), &disk)?;
    configuration.add(&data.join(AUTO_CONF), &disk)?;
    let entries = std::fs::read_dir(data.join("pg_tblspc")).into_iter();
    let mut spaces = entries.flatten().flatten();
    brought.in_place_tablespaces =
        spaces.any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(brought)
}

/// Lets the standby recover to the target, and leaves it shut down, with a guard.
///
/// # Errors
/// `TargetWrite`; those of a recovery aside.
pub fn recover(session: &Session, prepared: &Prepared) -> Result<()> {
    let data = &prepared.data;
    if prepared.is_begun && waiting::is_recovered(data)? {
        return Ok(());
    }
    let directory = DataDirectory::at(data);
    aside::require_private(session, control_of(&directory)?.major.number())?;
    if !prepared.is_begun {
        write(&directory, &prepared.job, &session.host)?;
    }
    fault::point("standby-written");
    aside::recover(session, data, &prepared.plan)?;
    let slots = quarantine::slots(data);
    if !slots.is_empty() {
        session.warn(&format!(
            "it has the replication slots of the standby ({}): drop those that may be behind the target before anybody follows them",
            slots.join(", ")
        ));
    }
    Ok(())
}

fn write(directory: &DataDirectory, job: &Job, host: &Host) -> Result<()> {
    let put = |path: &Path, bytes: &[u8]| put(path, bytes, host);
    // An attempt that was killed before it began may have written some.
    clear(directory, host)?;
    let plan = job.plan.as_ref();
    let wanted = plan.ok_or_else(|| err!(Internal, "a recovery without a plan"))?;
    let auto = directory.path().join(AUTO_CONF);
    let before = guard::read_limited(&auto)?.unwrap_or_default();
    let mut written = settings::of_restore(&wanted.recovery_settings);
    settings::leave_own(&mut written, &before);
    written.job = json(job)?;
    written.was_standby = true;
    let guard = Guard {
        note: "This data directory was a standby, and recovers to a target. It must not archive until \"pitr adopt\" removes this file.".into(),
        cluster: job.request.cluster.clone(),
        system_identifier: job.system_identifier,
        repository: job.repository.clone(),
        backup: job.backup.to_string(),
        restored: host.now(),
        program: PROGRAM.into(),
    };
    let (data, wal) = (directory.path(), directory.wal());
    put(&wal.join(SETTINGS), json(&written)?.to_string().as_bytes())?;
    put(&wal.join(GUARD), json(&guard)?.to_string().as_bytes())?;
    let all = [
        &written.until_recovery_ended[..],
        &written.until_adopted[..],
    ];
    let text = conf::append(&before, COMMENT, &all.concat())?;
    durable::rewrite(&auto, &text, host.random()).map_err(|e| failed(&auto, &e))?;
    put(&data.join(RECOVERY), b"")?;
    remove(&data.join(STANDBY))
}

fn json(value: &impl serde::Serialize) -> Result<serde_json::Value> {
    serde_json::to_value(value)
        .map_err(|e| err!(Internal, "could not serialize a record").source(e))
}

fn failed(path: &Path, e: &std::io::Error) -> Error {
    err!(TargetWrite, "could not write \"{}\": {e}", path.display())
}

fn put(path: &Path, bytes: &[u8], host: &Host) -> Result<()> {
    durable::replace(path, bytes, host.random()).map_err(|e| failed(path, &e))
}

fn remove(path: &Path) -> Result<()> {
    durable::remove(path).map_err(|e| failed(path, &e))
}

/// Makes a standby of it again that follows as before, where that is confirmed. Whether there was anything to take back.
///
/// # Errors
/// `Refused` while a server runs there, and once it was promoted; `TargetWrite`.
pub fn give_back(session: &Session, to: &Path, is_confirmed: bool) -> Result<bool> {
    let data = data_directory(&session.environment.absolute(to))?;
    let directory = DataDirectory::at(&data);
    let shown = data.display();
    let is_ours = guard::written(&directory).is_ok_and(|record| record.was_standby);
    if !is_ours {
        return Ok(false);
    }
    if directory.has("postmaster.pid") {
        return Err(err!(Refused, "a server may run in \"{shown}\"").hint(UNCHANGED));
    }
    let is_recovering = matches!(
        control_of(&directory)?.state,
        ClusterState::InArchiveRecovery | ClusterState::ShutDownInRecovery
    );
    let has_signal = directory.has(RECOVERY) || directory.has(STANDBY);
    if !is_recovering || !has_signal || has_new_history(&directory)? {
        return Err(err!(
            Refused,
            "\"{shown}\" was promoted, or is about to be, and is no standby any more"
        )
        .hint(format!(
            "{UNCHANGED} To have a standby again, make a new one: pitr standby"
        )));
    }
    if !is_confirmed {
        return Ok(true);
    }
    let host = &session.host;
    put(&data.join(STANDBY), b"", host)?;
    remove(&data.join(RECOVERY))?;
    clear(&directory, host)?;
    Ok(true)
}

/// Takes away what a recovery has written that was not begun, or is given up. The record goes last: by it the next run sees that this one was killed. The
/// settings that end recovery go before the guard.
fn clear(directory: &DataDirectory, host: &Host) -> Result<()> {
    guard::take_away(directory, Which::Recovery, host.random())?;
    guard::remove_guard(directory)?;
    fault::point("standby-unguarded");
    guard::take_away(directory, Which::All, host.random())?;
    Ok(())
}

/// Whether a server has written the history of a new timeline: a standby would follow it.
fn has_new_history(directory: &DataDirectory) -> Result<bool> {
    let written = guard::written(directory)?.job;
    let job: Job = serde_json::from_value(written)
        .map_err(|e| err!(Damaged, "the record of the recovery cannot be read").source(e))?;
    let newest = job.plan.and_then(|plan| plan.target_timeline);
    let entries = std::fs::read_dir(directory.wal());
    let entries = entries.map_err(|e| Error::from_io("read pg_wal", e))?;
    let names = entries.flatten().map(|entry| entry.file_name());
    let timelines = names.filter_map(|name| {
        let name = name.to_str()?.strip_suffix(".history")?.to_owned();
        TimelineId::new(u32::from_str_radix(&name, 16).ok()?)
    });
    Ok(timelines
        .into_iter()
        .any(|one| newest.is_some_and(|newest| one > newest)))
}
