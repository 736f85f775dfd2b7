//! The repositories: there, ours, writable and durable, apart from the data, with room, and with something to recover from.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::server::Seen;
use super::{Findings, archiver, busiest_hour, certificates, recipients};
use crate::archive::datadir::DataDirectory;
use crate::config::{Cluster, Location, Repository as Configured, Settings};
use crate::error::{Code, Error, Result};
use crate::operate::away::PATIENCE;
use crate::operate::finding::{Finding, Level};
use crate::operate::owner::{Access, User};
use crate::operate::proven::{self, Proven};
use crate::operate::room::free_percent;
use crate::operate::session::Session;
use crate::operate::{backup_age, conflicts, human, lag, receiver};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::plan::base;
use crate::plan::cluster::{self, DECIDE, Side, Tree};
use crate::plan::gap;
use crate::repo::drilled;
use crate::repo::event;
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::Repository;
use crate::repo::scope;
use crate::store::Store as _;
use crate::store::probe::probe;
use crate::store::s3::tiering::TAG;
use crate::store::s3::{self, S3Store};
use crate::store::sftp::SftpStore;
use crate::wal::inventory::{Backup, Inventory, Timeline};
use crate::wal::rollup::Rollup;

/// A server's disk with less room than this is nearly full; its whole size is not asked for.
const LITTLE_BYTES: u64 = 1 << 30;
/// A segment of a cluster that was made without `--wal-segsize` has this size.
const SEGMENT_BYTES: u64 = 16 << 20;
/// A filesystem with fewer free inodes than this is nearly full.
const LITTLE_INODES: u64 = 1000;

/// Looks at each; returns those that could be opened.
pub(super) fn look<'a>(
    found: &mut Findings,
    settings: &'a Settings,
    cluster: Option<&Cluster>,
    pgdata: Option<&Path>,
    seen: &Seen,
    session: &Session,
) -> Vec<&'a Configured> {
    let mut opened = Vec::new();
    let mut readers = Vec::new();
    let mut identifier = None;
    let mut has_room = false;
    found.begin("repository");
    if settings.repositories.is_empty() {
        found.fail(
            "repositories",
            "none",
            "nothing can be archived",
            "add [repositories.NAME] with its url, or run pitr init",
        );
    }
    for configured in &settings.repositories {
        let Some(repository) = open(found, configured, session) else {
            continue;
        };
        opened.push(configured);
        found.ok(&configured.name, configured.location.to_string());
        place(found, configured, pgdata, session);
        let has_server = cluster.is_some_and(|c| c.pgdata.is_some() || c.conninfo.is_some());
        let own_readers = recipients::look(found, configured, &repository, has_server);
        readers.extend(own_readers);
        let Some(cluster) = cluster else { continue };
        let registered = registered(found, cluster, &repository, pgdata, seen);
        match registered {
            Ok(Some(layout)) => {
                let name = &configured.name;
                let (new_backup, lost_wal) = helps(settings, configured);
                let helps = (new_backup.as_str(), lost_wal.as_str());
                identifier = Some(layout.system_identifier());
                let about = (cluster, seen);
                let about_it = (cluster, name.as_str());
                if let Err(e) = newest_drill(found, about_it, &repository, &layout, session) {
                    found.error("drill", &e);
                }
                match content(found, about, &repository, &layout, helps, session) {
                    Ok((inventory, timeline)) if configured.required => {
                        archived(found, &inventory, pgdata, seen);
                        let local = pgdata.filter(|_| !has_room);
                        has_room |= local.is_some();
                        let looked = local.map(|pgdata| {
                            busiest_hour::look(found, &repository, (&inventory, timeline), pgdata)
                        });
                        if let Some(Err(e)) = looked {
                            found.error("room of pg_wal", &e);
                        }
                    }
                    Ok(_) => {}
                    Err(e) if is_beyond(configured, &e) => found.warn(
                        "content",
                        "not judged here",
                        format!("this host only writes: {e}"),
                        "pitr doctor on a host that has a reader's key",
                    ),
                    Err(e) => found.error("content", &e),
                }
            }
            Ok(None) => {}
            Err(e) => found.error("cluster", &e),
        }
    }
    recipients::compare(found, &readers);
    if let (Some(cluster), Some(identifier)) = (cluster, identifier) {
        lag(found, settings, cluster, identifier, session);
    }
    opened
}

/// Returns what helps where a repository has no recent backup, and what helps where it lacks WAL.
fn helps(settings: &Settings, configured: &Configured) -> (String, String) {
    let name = &configured.name;
    let mut others = settings.repositories.iter().filter(|r| r.name != *name);
    // Objects are copied as they are stored: between repositories of the same keys.
    let comes_by_sync = others.any(|r| r.encryption == configured.encryption);
    let backup = match settings.repositories.len() {
        1 => "pitr backup".to_owned(),
        _ => format!("pitr backup --repository {name}"),
    };
    let by_sync = match comes_by_sync {
        true => format!("pitr repo sync --to {name} where another repository has it; "),
        false => String::new(),
    };
    let lost_wal = format!(
        "{by_sync}pitr wal backfill --from the pg_wal of a node that still has it, else take a backup: {backup}; this ends once the backups before the gap have expired"
    );
    let new_backup = match comes_by_sync {
        true => format!("{backup}, or pitr repo sync --to {name}"),
        false => backup,
    };
    (new_backup, lost_wal)
}

/// Whether the rights of a host that only writes do not reach so far.
fn is_beyond(configured: &Configured, e: &Error) -> bool {
    configured.only_writes() && matches!(e.code(), Code::Denied | Code::Key)
}

/// Opens a repository; `None` if that fails, which becomes a finding.
fn open(found: &mut Findings, configured: &Configured, session: &Session) -> Option<Repository> {
    if let Err(e) = session.require_answer(configured, PATIENCE) {
        found.fail(
            &configured.name,
            configured.location.to_string(),
            e.to_string(),
            "look at the mount: a dead NFS server, a stuck FUSE program, a failing disk",
        );
        return None;
    }
    match session.open(configured) {
        Ok(repository) => return Some(repository),
        Err(e) if configured.required => found.error(&configured.name, &e),
        Err(e) => found.warn(
            &configured.name,
            configured.location.to_string(),
            e.to_string(),
            match e.hint_text() {
                Some(hint) => {
                    format!("{hint} It is not required: archiving goes on without it.")
                }
                None => "it is not required: archiving goes on without it".to_owned(),
            },
        ),
    }
    None
}

/// Checks how far each is behind the others. Those that cannot be opened have a finding already.
fn lag(
    found: &mut Findings,
    settings: &Settings,
    cluster: &Cluster,
    system_identifier: u64,
    session: &Session,
) {
    let name = cluster.name.as_str();
    for lag in lag::look(session, settings, name, system_identifier) {
        if lag.away.is_some() {
            continue;
        }
        let shown = format!("{} against the others", lag.name);
        let concerns = lag.concerns();
        if concerns.is_empty() {
            found.ok(&shown, lag.value());
        }
        for concern in concerns {
            found.all.push(Finding {
                name: shown.clone(),
                ..concern
            });
        }
    }
}

/// A look at the store of a bucket, by a connection of its own.
type Look = fn(&mut Findings, &Configured, Result<S3Store>, &Session);

/// Rules of the bucket that delete what only expire may delete. Who may not read them learns nothing of them.
fn rules(found: &mut Findings, _: &Configured, store: Result<S3Store>, _: &Session) {
    let rules = store.and_then(|s| s.rules()).unwrap_or_default();
    for rule in rules.harmful {
        found.warn(
            "lifecycle",
            rule,
            "WAL and backups go, or cannot be read at once, without pitr knowing: a gap, and a restore that waits for hours",
            "let the rule leave out this prefix, and delete by pitr expire alone",
        );
    }
    for class in rules.lacking {
        found.warn(
            "lifecycle",
            format!("no rule moves to {class} what is tagged {TAG}={class}"),
            "what has aged stays where it is, and costs what it did",
            "put the rules into the bucket that pitr repo lifecycle prints",
        );
    }
}

/// Requests are signed with this host's time, and locks and ages count from the store's.
fn store_clock(found: &mut Findings, _: &Configured, store: Result<S3Store>, session: &Session) {
    match store.and_then(|store| s3::clock_differs(&store, || session.host.now())) {
        Ok(None) => found.ok("store's clock", "within a minute of this host's"),
        Ok(Some(seconds)) => found.warn(
            "store's clock",
            s3::shown_difference(seconds),
            "requests are signed with this host's time: the store refuses them, each process learns the difference and signs again; of times and ages nobody knows which is right",
            "correct the clock that is wrong: timedatectl set-ntp true",
        ),
        Err(e) => found.error("store's clock", &e),
    }
}

/// Backups extend the locks of what they need of earlier ones, and have to look at them for that.
fn lock(found: &mut Findings, configured: &Configured, store: Result<S3Store>, session: &Session) {
    if configured.s3.object_lock.is_none() {
        return;
    }
    match store.and_then(|store| store.locked_until(&scope::marker())) {
        Ok(Some(end)) if end > session.host.now() => {
            found.ok("locks", format!("pitr.json is locked until {}", human::time(end)));
        }
        Ok(_) => found.warn(
            "locks",
            "pitr.json is not locked",
            "whoever may delete objects in the bucket can remove the repository's marker, and each object whose lock no later backup has extended",
            "take a backup, which locks what it needs, and look again",
        ),
        Err(e) if e.code() == Code::Denied => found.warn(
            "locks",
            "this host may not look at them",
            "its backups cannot extend the locks of earlier ones: these can be deleted once their first locks end, though later ones need them",
            "give it s3:GetObjectRetention, as the policy of pitr init --role has it",
        ),
        Err(e) => found.error("locks", &e),
    }
}

/// A certificate that ends keeps everybody from the store.
fn certificate(found: &mut Findings, _: &Configured, store: Result<S3Store>, session: &Session) {
    let end = match store.and_then(|store| store.certificate_end()) {
        Ok(None) => return,
        Ok(Some(end)) => end,
        Err(e) => return found.error("certificate", &e),
    };
    let value = format!("the store's ends {}", human::time(end));
    let cause = "from then on nobody who verifies it reaches the store: nothing is archived, and nothing restored";
    let next = "renew the certificate of the store";
    certificates::judge(found, ("certificate", end), value, (cause, next), session);
}

fn place(found: &mut Findings, configured: &Configured, pgdata: Option<&Path>, session: &Session) {
    if let Location::S3 { bucket, prefix } = &configured.location {
        for look in [rules as Look, store_clock, lock, certificate] {
            let store = S3Store::open(bucket, prefix, &configured.s3, session.host.random());
            look(found, configured, store, session);
        }
    }
    match configured.location.directory() {
        Some(path) => directory(found, path, pgdata, session),
        None if matches!(configured.location, Location::Sftp { .. }) => {
            server(found, configured, session);
        }
        None if configured.s3.unsafe_overwrite => found.warn(
            "creating",
            "unsafe_overwrite = true",
            "two writers at the same time can replace archived WAL",
            "use a store that honours If-None-Match, and remove the key: pitr repo check",
        ),
        None => {}
    }
}

/// A directory on a server: tried, and how full.
fn server(found: &mut Findings, configured: &Configured, session: &Session) {
    let nonce = session.host.random();
    let store = SftpStore::open(&configured.location, &configured.sftp, nonce);
    let tried = store.and_then(|store| {
        store.probe(session.host.random())?;
        store.room()
    });
    let free = match tried {
        Err(e) => return found.error("writable and durable", &e),
        Ok(room) => {
            let known = room.filter(|room| room.total_bytes > 0);
            known.map(|room| room.free_bytes)
        }
    };
    found.ok("writable and durable", "yes");
    match free {
        None => {}
        Some(free @ ..LITTLE_BYTES) => found.warn(
            "space",
            format!("{} free", human::size(free)),
            "archiving stops when it is full, and pg_wal grows",
            "pitr expire --dry-run, or more room on the server",
        ),
        Some(free) => found.ok("space", format!("{} free", human::size(free))),
    }
}

/// The directory itself: tried, on which disk, how full.
fn directory(found: &mut Findings, path: &Path, pgdata: Option<&Path>, session: &Session) {
    let shown = path.display().to_string();
    match probe(path, session.host.random()) {
        Err(e) => found.error("writable and durable", &e),
        Ok(weak) if weak.is_empty() => found.ok("writable and durable", "yes"),
        Ok(weak) => found.warn(
            "writable and durable",
            "yes, but",
            format!("the filesystem {}", weak.join("; ")),
            "prefer a local filesystem such as ext4 or xfs",
        ),
    }
    if let Some(user) = pgdata.and_then(|p| User::owner_of(p).ok())
        && let Some(at) = user.kept_out_by(path, Access::Use)
    {
        let user = user.name();
        found.fail(
            "usable by the server",
            "no",
            format!("user \"{user}\" is kept out by \"{}\"", at.display()),
            format!("chown -R {user} {shown}"),
        );
    }
    let device = |p: &Path| std::fs::metadata(p).map(|m| m.dev()).ok();
    let own = device(path);
    match pgdata.and_then(device) {
        Some(data) if own == Some(data) => found.warn(
            "disk",
            "that of the data directory",
            "one broken disk takes the cluster and its archive",
            "keep a repository on another disk or machine",
        ),
        _ if own == path.parent().and_then(device) => {
            found.ok("disk", "part of the filesystem around it");
        }
        _ => found.ok("disk", "a filesystem of its own, mounted"),
    }
    let Ok(stat) = rustix::fs::statvfs(path) else {
        return;
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let total = stat.f_blocks.saturating_mul(stat.f_frsize);
    let inodes = (stat.f_files > 0).then_some(stat.f_favail);
    space(found, (free, total), inodes);
}

/// Judges the room of a filesystem, by its free and all bytes, and its free inodes where it counts them.
fn space(found: &mut Findings, (free, total): (u64, u64), inodes: Option<u64>) {
    let value = format!("{} of {} free", human::size(free), human::size(total));
    let cause = "archiving stops when it is full, and pg_wal grows";
    let fix = "make room: pitr expire --confirm; else add space, or keep fewer backups: pitr expire --keep N --dry-run";
    let Some(percent) = free_percent(free, total) else {
        return;
    };
    match percent {
        0..=1 => found.fail("space", value, cause, fix),
        2..=9 => found.warn("space", value, cause, fix),
        _ if free < SEGMENT_BYTES => found.warn(
            "space",
            value,
            "that is less than a WAL segment of the usual size: archiving stops when one does not fit, and pg_wal grows",
            fix,
        ),
        _ => match inodes.filter(|inodes| *inodes < LITTLE_INODES) {
            Some(inodes) => found.warn(
                "space",
                format!("{inodes} inodes free"),
                "archiving stops when there is none",
                fix,
            ),
            None => found.ok("space", value),
        },
    }
}

/// Whether the server that is looked at is the one that is registered here.
fn registered(
    found: &mut Findings,
    cluster: &Cluster,
    repository: &Repository,
    pgdata: Option<&Path>,
    seen: &Seen,
) -> Result<Option<ClusterLayout>> {
    let identifier = match (seen.system_identifier, pgdata) {
        (None, Some(pgdata)) => {
            let control = DataDirectory::at(pgdata).control_head()?;
            control.map(|control| control.system_identifier)
        }
        (told, _) => told,
    };
    let Some(identifier) = identifier else {
        found.warn(
            "cluster",
            cluster.name.as_str(),
            "neither server nor data directory tell its system identifier",
            if pgdata.is_some_and(super::is_gone) || seen.is_silent {
                "start the server; if it is lost: pitr info, pitr plan, pitr restore --to DIR"
            } else {
                "set pgdata or conninfo in the configuration"
            },
        );
        return Ok(None);
    };
    let layout = ClusterLayout::new(cluster.name.as_str(), identifier)?;
    let registration = repository.require(&layout)?;
    let (name, major) = (&cluster.name, registration.major);
    let shown = format!("{name}, system identifier {identifier}, PostgreSQL {major}");
    found.ok("cluster", shown);
    Ok(Some(layout))
}

/// Whether there is something to recover from, and whether anything is missing from it; and the timeline that is the cluster.
fn content(
    found: &mut Findings,
    (cluster, seen): (&Cluster, &Seen),
    repository: &Repository,
    layout: &ClusterLayout,
    (new_backup, lost_wal): (&str, &str),
    session: &Session,
) -> Result<(Inventory, Option<TimelineId>)> {
    conflicts(found, repository, layout)?;
    let inventory = Inventory::read(repository, layout.name(), Some(layout.system_identifier()))?;
    if !inventory.forged.is_empty() {
        found.warn(
            "events",
            human::count(inventory.forged.len() as u64, "forged event"),
            "somebody without the MAC key of the key set writes to the store; what they say does not count",
            "pitr verify names them",
        );
    }
    if let Some(first) = inventory.lost.first() {
        found.fail(
            "lost backups",
            human::count(inventory.lost.len() as u64, "backup"),
            format!("backup {first} was complete, and its root is not there: it cannot be restored"),
            format!("pitr repo sync, where another repository has it; else give it up: pitr expire --give-up {first}"),
        );
    }
    let rollup = Rollup::new(repository, &inventory, None)?;
    let side = Side {
        inventory: &inventory,
        wal: &rollup,
    };
    let decided = timelines(found, side, seen)?;
    let timeline = decided.timeline();
    newest_backup(found, cluster, (side, timeline), new_backup, session)?;
    proven_backups(found, &inventory);
    gaps(
        found,
        repository,
        (&inventory, &decided.abandoned),
        lost_wal,
    )?;
    Ok((inventory, timeline))
}

/// Whether the repository holds what the server says is archived: the loss of its newest WAL leaves no gap to be seen.
fn archived(found: &mut Findings, inventory: &Inventory, pgdata: Option<&Path>, seen: &Seen) {
    // Segments that no backup needs may be gone.
    let Some(oldest) = inventory.backups.iter().map(|b| b.start_lsn).min() else {
        return;
    };
    let size = inventory.segment_size;
    let mut names = match pgdata {
        Some(pgdata) if !seen.leaves_archiving => archiver::newest_done(pgdata),
        _ => Vec::new(),
    };
    let last = seen.last_archived.as_deref();
    names.extend(last.and_then(|name| name.parse::<SegmentName>().ok()));
    names.sort_unstable();
    names.dedup();
    let Some(newest) = names.last().copied() else {
        return;
    };
    let history = inventory.history(seen.timeline.unwrap_or(newest.timeline));
    let stored = (&inventory.timelines, history.as_ref().ok());
    names.retain(|name: &SegmentName| {
        let is_lost = name.number(size).is_ok_and(|number| {
            number >= SegmentNumber::of(oldest, size) && !is_stored(stored, size, (*name, number))
        });
        is_lost && !gap::is_needless(inventory, *name)
    });
    let Some(first) = names.first() else {
        return found.ok(
            "archived WAL",
            format!("up to {newest}, as the server says"),
        );
    };
    let wal = pgdata.map(|p| p.join("pg_wal"));
    let fix = match wal.filter(|wal| names.iter().all(|n| wal.join(n.to_string()).exists())) {
        Some(wal) => format!("the server has it still: pitr wal backfill --from {}", wal.display()),
        None => "where another repository has it: pitr repo sync; else pitr wal backfill --from the pg_wal of a node that still has it, and a new backup: pitr backup".to_owned(),
    };
    found.fail(
        "archived WAL",
        format!("{} missing, the first {first}", human::count(names.len() as u64, "segment")),
        "the server says that it is archived and will not offer it again: the repository has lost it, or was put back from an older copy; recovery ends before it",
        fix,
    );
}

/// Whether a segment that the server says is archived is stored. A recovery ends a timeline with a padded file that PostgreSQL marks as archived: of it
/// the server's history needs the WAL up to the switch, which the next timeline has once more.
fn is_stored(
    (timelines, history): (&BTreeMap<TimelineId, Timeline>, Option<&History>),
    size: SegmentSize,
    (name, number): (SegmentName, SegmentNumber),
) -> bool {
    let has = |id| {
        timelines
            .get(&id)
            .is_some_and(|t| t.segments.contains(number))
    };
    if has(name.timeline) {
        return true;
    }
    let switch = history.and_then(|h| h.switch_point(name.timeline));
    let (Some(history), Some(switch)) = (history, switch) else {
        return false;
    };
    let of_switch = SegmentNumber::of(switch, size);
    let reaches = |t: &Timeline| {
        let reach = t.tails.get(&number);
        t.partials.contains(&name) || reach.is_some_and(|reach| *reach >= switch)
    };
    let ancestors = history.ancestors().iter().map(|a| a.timeline);
    let path = ancestors.chain([history.timeline()]);
    let mut later = path.skip_while(|id| *id != name.timeline).skip(1);
    number >= of_switch && timelines.get(&name.timeline).is_some_and(reaches)
        || number == of_switch && later.any(has)
}

/// Which timeline is the cluster, and whether the server is on it.
fn timelines(found: &mut Findings, side: Side<'_>, seen: &Seen) -> Result<cluster::Cluster> {
    let decided = cluster::decide_by(&[side])?;
    match (decided.timeline(), decided.undecided()) {
        (Some(timeline), _) => found.ok("timeline", timeline.decimal().to_string()),
        (None, Some(why)) => found.warn("timeline", "undecided", why, DECIDE),
        (None, None) => found.ok("timeline", "none yet: nothing is archived"),
    }
    for beside in decided.describe_beside() {
        found.warn("timelines", "two go on", beside, DECIDE);
    }
    let tree = Tree::of(side.inventory);
    let of_server = seen.timeline.filter(|t| tree.timelines().any(|k| k == *t));
    if let Some(timeline) = of_server.filter(|_| !seen.in_recovery)
        && let Err(e) = decided.require(timeline)
    {
        found.fail(
            "timeline of the server",
            timeline.decimal().to_string(),
            format!("{e}: so says this repository alone, and plans from it follow another timeline. pitr backup and pitr receive ask all repositories, and refuse this server where none says otherwise"),
            e.hint_text().unwrap_or_default().replace("Nothing was stored. ", ""),
        );
    }
    Ok(decided)
}

/// Whether WAL was refused that has the name of other WAL.
fn conflicts(found: &mut Findings, repository: &Repository, layout: &ClusterLayout) -> Result<()> {
    let layout = repository.read_lives(layout)?;
    match conflicts::waiting(repository.store(), &layout)?.len() {
        0 => found.ok("conflicts", "none"),
        n => found.fail(
            "conflicts",
            match n {
                1 => "1 refused copy".to_owned(),
                n => format!("{n} refused copies"),
            },
            "two servers have written WAL of one name: split brain, or a clone without a guard",
            "pitr wal conflicts",
        ),
    }
    Ok(())
}

/// Whether there is a backup, and a recent one.
fn newest_backup(
    found: &mut Findings,
    cluster: &Cluster,
    (side, timeline): (Side<'_>, Option<TimelineId>),
    new_backup: &str,
    session: &Session,
) -> Result<()> {
    let now = session.host.now();
    let newest = newest_leading(side, timeline, now)?;
    let age = newest
        .and_then(|b| now.duration_since(b.stop_time))
        .unwrap_or_default();
    if let Some(ahead) = newest.filter(|b| backup_age::is_ahead(b.stop_time, now)) {
        let value = format!("{}, dated {}", ahead.id, ahead.stop_time);
        found.fail("newest backup", value, backup_age::AHEAD, new_backup);
        return Ok(());
    }
    let limit = cluster.max_backup_age.map(|p| p.duration());
    let value = newest.map(|b| format!("{}, {} old", b.id, human::duration(age)));
    match (value, limit.filter(|limit| age > *limit)) {
        (None, _) => found.fail(
            "newest backup",
            "none",
            "without a backup nothing can be recovered",
            new_backup,
        ),
        (Some(value), Some(limit)) => {
            let cause = format!("max_backup_age is {}", human::duration(limit));
            found.fail("newest backup", value, cause, new_backup);
        }
        (Some(value), None) => found.ok("newest backup", value),
    }
    Ok(())
}

/// The newest undamaged backup from which recovery gets to the timeline.
fn newest_leading<'a>(
    side: Side<'a>,
    timeline: Option<TimelineId>,
    now: TimestampTz,
) -> Result<Option<&'a Backup>> {
    let Side { inventory, wal } = side;
    let mut usable: Vec<&Backup> = inventory.backups.iter().collect();
    usable.retain(|b| b.damage.is_none());
    let known = timeline.filter(|t| inventory.history(*t).is_ok());
    usable.sort_by_key(|b| {
        let on_way = known.map(|_| (b.timeline, b.stop_lsn));
        (on_way, !backup_age::is_ahead(b.stop_time, now), b.stop_time)
    });
    for backup in usable.into_iter().rev() {
        let leads = known.map(|t| base::leads(inventory, wal, backup, t));
        if leads.transpose()?.unwrap_or(true) {
            return Ok(Some(backup));
        }
    }
    Ok(None)
}

/// When recovery was last tried.
fn newest_drill(
    found: &mut Findings,
    (cluster, name): (&Cluster, &str),
    repository: &Repository,
    layout: &ClusterLayout,
    session: &Session,
) -> Result<()> {
    let proven = Proven {
        repository: name.to_owned(),
        drills: drilled::standing(repository.store(), layout, &event::host())?,
    };
    let limit = cluster.max_drill_age.map(|age| age.duration());
    let next = proven::next(name);
    match proven::judge(&proven, limit, session.host.now()) {
        Some((Level::Fail, value)) => found.fail("drill", "failed", value, next),
        Some((_, value)) => found.warn("drill", "due", value, next),
        None => {
            let line = proven::line(std::slice::from_ref(&proven));
            line.into_iter().for_each(|line| found.ok("drill", line));
        }
    }
    Ok(())
}

/// How many backups carry no proof that their WAL is their own server's: an older version took them.
fn proven_backups(found: &mut Findings, inventory: &Inventory) {
    let all = inventory.backups.len();
    let unproven = inventory.backups.iter().filter(|b| b.wal_proof.is_none());
    match unproven.count() {
        0 => {}
        n => found.ok(
            "proof of WAL",
            format!("{n} of {all} backups carry none: an older version took them, and of them a clone's WAL is not noticed"),
        ),
    }
}

/// Whether WAL is missing, apart from that of timelines that were given up.
fn gaps(
    found: &mut Findings,
    repository: &Repository,
    (inventory, abandoned): (&Inventory, &BTreeSet<TimelineId>),
    lost_wal: &str,
) -> Result<()> {
    let oldest = inventory.backups.iter().map(|b| b.start_lsn).min();
    let mut gaps = gap::gaps(inventory, oldest.unwrap_or(Lsn(0)));
    gaps.retain(|gap| !abandoned.contains(&gap.timeline));
    match gaps.as_slice() {
        [] => found.ok("gaps", "none"),
        [first, ..] => found.fail(
            "gaps",
            human::count(gaps.len() as u64, "gap"),
            format!(
                "{} of timeline {} missing, from {} to {}: recovery from an older backup stops there",
                human::count(first.segments, "segment"),
                first.timeline.decimal(),
                first.from_lsn,
                first.to_lsn
            ),
            lost_wal,
        ),
    }
    for lost in receiver::recorded_gaps(repository, inventory, abandoned)? {
        found.fail(
            "recorded gap",
            lost,
            "neither server nor this repository had it when the receiver went on: recovery from an older backup stops there",
            lost_wal,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::timeline::tli;
    use crate::repo::runs::Runs;

    #[test]
    fn t81_a_padded_segment_that_recovery_left_behind_is_not_lost() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let at = |number: u64, more: u64| Lsn((number << 20) + more);
        let history = History::root(tli(1)).child(tli(2), at(9, 500), b"recovered");
        let first = |reach: Option<Lsn>| Timeline {
            segments: Runs::from_numbers((2..9).collect()),
            tails: reach
                .map(|reach| (SegmentNumber(9), reach))
                .into_iter()
                .collect(),
            ..Timeline::default()
        };
        let second = |numbers: Vec<u64>| Timeline {
            segments: Runs::from_numbers(numbers),
            ..Timeline::default()
        };
        let is_stored = |first: Timeline, numbers: Vec<u64>, (timeline, number): (u32, u64)| {
            let timelines = BTreeMap::from([(tli(1), first), (tli(2), second(numbers))]);
            let number = SegmentNumber(number);
            let name = number.name(tli(timeline), size).unwrap();
            super::is_stored((&timelines, Some(&history)), size, (name, number))
        };
        let left = (1, 9);
        assert!(!is_stored(first(None), vec![], left), "nothing has it");
        // Increments that reach the switch, a partial, or the next timeline's copy.
        assert!(is_stored(first(Some(at(9, 500))), vec![], left));
        assert!(!is_stored(first(Some(at(9, 499))), vec![], left));
        let name = SegmentNumber(9).name(tli(1), size).unwrap();
        let mut partial = first(Some(at(9, 0)));
        partial.partials.insert(name);
        assert!(is_stored(partial, vec![], left));
        assert!(is_stored(first(None), vec![9, 10], left));
        // WAL before the switch, or on the server's own timeline, has to be there whole.
        let mut hole = first(None);
        hole.segments = Runs::from_numbers((2..8).collect());
        hole.tails.insert(SegmentNumber(8), at(9, 0));
        assert!(!is_stored(hole, vec![8, 9], (1, 8)));
        let mut tail = second(vec![9]);
        tail.tails.insert(SegmentNumber(10), at(11, 0));
        let timelines = BTreeMap::from([(tli(1), first(None)), (tli(2), tail)]);
        let number = SegmentNumber(10);
        let name = number.name(tli(2), size).unwrap();
        let stored = (&timelines, Some(&history));
        assert!(!super::is_stored(stored, size, (name, number)));
    }

    #[test]
    fn a_filesystem_without_room_for_a_segment_is_not_well() {
        let level = |free: u64, total: u64, inodes| {
            let mut found = Findings::default();
            space(&mut found, (free, total), inodes);
            found.all[0].level
        };
        let mib = 1 << 20;
        assert_eq!(level(mib, 6 * mib, None), Level::Warn);
        assert_eq!(level(16 * mib, 64 * mib, None), Level::Ok);
        assert_eq!(level(16 * mib, 64 * mib, Some(999)), Level::Warn);
        assert_eq!(level(mib, 1000 * mib, None), Level::Fail);
        assert_eq!(level(90 * mib, 1000 * mib, None), Level::Warn);
        assert_eq!(level(1 << 63, 1 << 63, None), Level::Ok);
        assert_eq!(level(1 << 57, 1 << 63, None), Level::Fail);
        let mut found = Findings::default();
        space(&mut found, (0, 0), None);
        assert!(found.all.is_empty(), "it tells no size");
    }
}
