//! Base backups.
//!
//! Write order (format, section 10): `begin` reserves the id → claim → packs → layers → the server's manifest → WAL from start to stop
//! LSN proven present and the server's own → history file → the root, which is the commit point. Each is durable before the next. Killed before the last,
//! nothing is visible, and the next backup goes on from the packs ([`resume`]) before the janitor removes what is left. Those of a full one wait for the
//! next full one. So it is with a backup that fails, but for one that ran the repository full: that removes its packs and layers itself, so that WAL
//! has room again.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::archive::push::push_history;
use crate::config;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::host::Host;
use crate::pg::label::BackupLabel;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentNumber, SegmentSize};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::plan::cluster;
use crate::progress::Progress;
use crate::repo;
use crate::repo::claim::Claim;
use crate::repo::container::Identity;
use crate::repo::deletion;
use crate::repo::event::Writer;
use crate::repo::id::BackupId;
use crate::repo::layout::ClusterLayout;
use crate::repo::relations::{Draft, ListOfRelations};
use crate::repo::repository::Repository;
use crate::repo::root::cluster::{DamagedPage, Method, PARTIAL, Tablespace};
use crate::repo::root::outline::Outline;
use crate::repo::root::{BackupKind, BackupRoot, ClusterContent, Map};
use crate::snapshot::filekey::{ClusterNaming, Naming};
use crate::snapshot::flatten::{LAYERS, flatten};
use crate::snapshot::frame::FrameCodec;
use crate::snapshot::leftovers::Leftovers;
use crate::snapshot::writer::{self, SnapshotWriter, Written};
use crate::store::{Published, Store};
use crate::ticking::ticking;
use crate::wire::basebackup::{BackupStart, BaseBackupOptions, StartCheckpoint};
use crate::wire::server_error::sqlstate;

pub mod archiving;
pub mod attempt;
pub mod backoff;
mod beside;
pub mod compact;
pub mod configuration;
pub mod content;
pub mod damage;
pub mod files;
pub mod incremental;
mod keeper;
pub mod kind;
pub mod live;
pub mod local;
pub mod producer;
pub mod proof;
#[cfg(test)]
mod proof_tests;
pub mod rate;
pub mod relations;
pub mod reservation;
pub mod resume;
pub mod seen;
pub mod source;
pub mod sources;
mod stored;
pub mod stream;
pub mod turn;
pub mod wal;
pub mod witness;

use attempt::{Attempt, Commit, Discarded};
use backoff::{Backoff, HeldBack};
use incremental::Prior;
use kind::Wish;
use producer::{Produced, Producer, Watch, Work};
use proof::{Landmarks, Prover};
use rate::Rate;
use resume::{Resumed, TakenOver};
use source::{Lister, ServerFacts, Source, WalSource};
use witness::{Listener, Witness};

const LABEL_LIMIT_BYTES: usize = 1023;
/// How often the connections to the server are used during a wait.
const PING: Duration = Duration::from_secs(10);

/// How a backup is taken.
#[derive(Debug, Clone)]
pub struct Options {
    /// The operator's name for it: one line.
    pub label: String,
    /// How it begins.
    pub checkpoint: StartCheckpoint,
    /// Most bytes read in a second.
    pub max_rate_bytes_per_s: Option<u64>,
    /// Limits of the server's load beyond which the backup slows down.
    pub backoff: config::Backoff,
    /// Cores that read and compress.
    pub jobs: usize,
    /// How long to wait for WAL.
    pub wal_wait: Duration,
    /// Codec of frames; none = LZ4 for a full one, zstd for the few pages of an incremental (decision 0078).
    pub codec: Option<FrameCodec>,
    /// The kind that is asked for; without a wish a full one.
    pub wish: Option<Wish>,
    /// How long to wait for another backup of the cluster that runs.
    pub wait: Duration,
    /// Whether it goes on from interrupted backups, and leaves its packs for the next one where it fails.
    pub resume: bool,
}

/// A backup that was taken.
#[derive(Debug)]
pub struct Taken {
    pub root: BackupRoot,
    /// Why it is of its kind, where something else than the command line decided it.
    pub why: Option<String>,
    /// Cost of slowing down for the server; none if that is not configured.
    pub held_back: Option<HeldBack>,
    /// The interrupted backups that it went on from.
    pub taken_over: Vec<TakenOver>,
}

/// Takes a backup of the server behind `source` into `repository`, as cluster `cluster`. `producer` reads its files.
///
/// On `Ok` the backup is committed; whether it is damaged stands in its root.
///
/// # Errors
/// `Usage` for options; `Locked` while another backup of the cluster runs; `Refused` when nothing can bring the WAL of the backup; `WrongCluster` when the server's system identifier is not registered; `Server`, `Denied` as the connection
/// fails; `Damaged` when what arrived is not what the server sent; `Deadline` when WAL did not come; `Interrupted`; what the store
/// says. Nothing of the backup is visible then.
pub fn take(
    repository: &Repository,
    cluster: &str,
    source: &mut dyn Source,
    producer: &mut dyn Producer,
    options: &Options,
    host: &Host,
) -> Result<Taken> {
    let request = request(options)?;
    let recalling = repository.recalling();
    let reading = recalling.as_ref().unwrap_or(repository);
    let mut facts = source.facts()?;
    let layout = ClusterLayout::new(cluster, facts.system_identifier)?;
    check_registration(repository, &layout, &facts)?;
    let begun = Instant::now();
    let mut unusable: Option<String> = None;
    loop {
        let left = options.wait.saturating_sub(begun.elapsed());
        if wait_for_turn((repository, &layout), source, left, host)? {
            facts = source.facts()?;
        }
        let layout = repository.read_lives(&layout)?;
        archiving::check(source, &facts, host.progress.as_ref())?;
        let history = check_timeline(repository, &layout, source, &facts, host.progress.as_ref())?;
        producer.prepare(source, &facts)?;
        let places = (reading, &layout);
        let chosen = match &unusable {
            Some(why) => kind::full(host, why.clone()),
            None => kind::choose(places, (source, producer), &history, options.wish, host)?,
        };
        let (prior, mut prior_claim) = chosen.prior.map(|p| (p.root, p.claim)).unzip();
        let taken = Taking {
            repository,
            reading,
            layout: &layout,
            facts: &facts,
            options,
            host,
            history,
        }
        .run(
            (source, producer),
            &request,
            (prior.as_ref(), prior_claim.as_mut()),
        );
        if let (Err(e), Some(root), Some(claim)) = (&taken, &prior, &mut prior_claim) {
            let mut tick = || host.check_stop().and_then(|()| claim.keep());
            unusable = incremental::unusable::why(places, root, e, host, &mut tick);
        }
        if let Some(claim) = prior_claim {
            claim.release(host.progress.as_ref());
        }
        match taken {
            Ok(Some(taken)) => {
                return Ok(Taken {
                    why: chosen.why,
                    ..taken
                });
            }
            Ok(None) => turn::stand_back(host),
            Err(e) if prior.is_none() || unusable.is_none() => return Err(e),
            Err(_) => {
                source.start_over()?;
                facts = source.facts()?;
            }
        }
    }
}

/// Requires that the server is the one that is registered.
fn check_registration(
    repository: &Repository,
    layout: &ClusterLayout,
    facts: &ServerFacts,
) -> Result<()> {
    let registration = repository.require(layout)?;
    let layout = repository.read_lives(layout)?;
    let sizes = repository.segment_sizes(&layout, &registration)?;
    if registration.major == facts.major.number() && sizes.contains(&facts.segment_size.bytes()) {
        return Ok(());
    }
    Err(err!(
        WrongCluster,
        "the server is PostgreSQL {} with segments of {} bytes, cluster \"{}\" is registered as {} with {}",
        facts.major.number(),
        facts.segment_size.bytes(),
        layout.name(),
        registration.major,
        registration.segment_size_bytes
    )
    .hint("Nothing was stored. A registered system identifier keeps its major version and its segment size: after pg_resetwal --wal-segsize give the cluster a new name, \"pitr init --cluster NAME\"."))
}

/// Waits for the end of another backup; whether there was one. The connections are used meanwhile, so that nothing between takes them for dead.
fn wait_for_turn(
    (repository, layout): (&Repository, &ClusterLayout),
    source: &mut dyn Source,
    limit: Duration,
    host: &Host,
) -> Result<bool> {
    let mut used = Instant::now();
    let mut tick = || {
        if used.elapsed() >= PING {
            source.keep_alive();
            used = Instant::now();
        }
        Ok(())
    };
    turn::wait((repository.store(), layout), limit, host, &mut tick)
}

/// A backup whose server, registration and prior are settled.
struct Taking<'a> {
    repository: &'a Repository,
    /// The same, in which this host reads what it kept of a prior.
    reading: &'a Repository,
    layout: &'a ClusterLayout,
    facts: &'a ServerFacts,
    options: &'a Options,
    host: &'a Host,
    history: History,
}

impl Taking<'_> {
    /// Reserves the id, takes the backup, and takes back what was stored when it fails. `None`, and nothing was begun on the server, where another
    /// backup was begun at the same time.
    fn run(
        &self,
        (source, producer): (&mut dyn Source, &mut dyn Producer),
        request: &BaseBackupOptions,
        (prior, mut prior_claim): (Option<&BackupRoot>, Option<&mut Claim<'_>>),
    ) -> Result<Option<Taken>> {
        let (repository, layout, host) = (self.repository, self.layout, self.host);
        let store = repository.store();
        let mut prior = prior
            .map(|root| {
                let mut tick = || prior_claim.as_mut().map_or(Ok(()), |claim| claim.keep());
                let open = || Prior::open((self.reading, layout, root), &self.history, host);
                ticking(&mut tick, open)
            })
            .transpose()?;
        // The server sends files in the order of its directories. A local backup asks in that of the map.
        if let Some(prior) = &mut prior
            && producer.method() == Method::Local
        {
            prior.snapshot.look_up_in_order();
        }
        let kind = match prior {
            Some(_) => BackupKind::Incremental,
            None => BackupKind::Full,
        };
        let id = reservation::reserve(store, layout, kind, None, host)?;
        let mut claim = Claim::take((store, layout), Writer::of(host), &id, "backup", None)?;
        let is_alone = turn::is_alone(store, layout, &id, host);
        if !matches!(is_alone, Ok(true)) {
            claim.release(host.progress.as_ref());
            return is_alone.map(|_| None);
        }
        let mut backup = Backup {
            repository,
            layout,
            facts: self.facts,
            options: self.options,
            host,
            attempt: Attempt::new((store, layout), &id, host),
            prior: prior.as_ref(),
            others: Others {
                prior: prior_claim,
                left: Vec::new(),
            },
            held_back: None,
            listed: None,
            taken_over: Vec::new(),
        };
        let result = backup.run(source, producer, request, &mut claim);
        resume::release(std::mem::take(&mut backup.others.left), host);
        match result {
            Ok(root) => {
                claim.release(host.progress.as_ref());
                Ok(Some(Taken {
                    root,
                    why: None,
                    held_back: backup.held_back,
                    taken_over: backup.taken_over,
                }))
            }
            Err(e) => Err(self.failed(&backup.attempt, claim, e)),
        }
    }

    /// Leaves packs of a backup that failed to the next one, or takes them back, and says so.
    fn failed(&self, attempt: &Attempt<'_>, claim: Claim<'_>, e: Error) -> Error {
        let (progress, id) = (self.host.progress.as_ref(), claim.id().clone());
        let place = (self.repository.store(), &**self.layout);
        let keeps_packs = self.options.resume
            && resume::may_resume(&e)
            && resume::can_read_own(place, &id, Naming::Cluster(naming(self.facts)));
        let discarded = attempt.discard(&claim, keeps_packs);
        match discarded {
            Discarded::ForNext(_) => claim.leave(progress),
            _ => claim.release(progress),
        }
        // With "full_every" a plain "pitr backup" may take an incremental, which leaves the packs of a full one alone.
        let goes_on = match id.is_incremental() {
            true => "The next backup goes on from there: pitr backup",
            false => "The next full backup goes on from there: pitr backup --full",
        };
        let next = match discarded {
            Discarded::All => "what it had stored is deleted again.\nThe next backup begins from the start: pitr backup".to_owned(),
            Discarded::ForNext(kept) => {
                format!("the packs that it had stored, {kept}, stay for a day.\n{goes_on}")
            }
            Discarded::Left(left) => format!("packs that it had stored, {left}, are still there: another backup may use them, or they could not be deleted. pitr expire deletes them later.\nTake the backup again: pitr backup"),
            Discarded::Unknown => "whether what it had stored is still there is not known: the repository does not answer. pitr expire deletes it later.\nTake the backup again: pitr backup".to_owned(),
            Discarded::Nothing if e.code() == Code::Interrupted => {
                return err!(Interrupted, "backup \"{id}\" was interrupted")
                    .hint("It may be complete, and nothing of it is deleted.\nLook whether it is there: pitr info");
            }
            Discarded::Nothing => return e,
        };
        if e.code() == Code::Interrupted {
            return err!(Interrupted, "backup \"{id}\" was interrupted")
                .hint(format!("Nothing of it is visible, and {next}"));
        }
        if discarded != Discarded::All {
            progress.note(&format!(
                "nothing of backup \"{id}\" is visible, and {next}"
            ));
        }
        e
    }
}

/// Requires that the server's timeline is the cluster, or may be, and returns its history. A standby that has yet to follow its primary is only warned of.
fn check_timeline(
    repository: &Repository,
    layout: &ClusterLayout,
    source: &mut dyn Source,
    facts: &ServerFacts,
    progress: &dyn Progress,
) -> Result<History> {
    let history = match facts.timeline {
        TimelineId::FIRST => History::root(TimelineId::FIRST),
        timeline => {
            let content = source.history(timeline);
            History::parse(
                timeline,
                &content.map_err(|e| without_history(timeline, e))?,
            )?
        }
    };
    let cluster = cluster::decide_in([repository], layout, &history)?;
    match cluster.require(facts.timeline) {
        Ok(None) => {}
        Ok(Some(warning)) => progress.warn(&warning),
        Err(e) if facts.in_recovery == Some(true) => progress.warn(&e.to_string()),
        Err(e) => return Err(e.with_code(Code::Refused)),
    }
    Ok(history)
}

/// Explains the answer of a server that has no history file of its timeline. No recovery could follow that timeline.
fn without_history(timeline: TimelineId, e: Error) -> Error {
    if sqlstate(&e) != Some("58P01") {
        return e;
    }
    let file = format!("pg_wal/{}", timeline.history_file_name());
    e.with_code(Code::Refused).hint(format!(
        "Nothing was stored. Where pg_resetwal -l began timeline {}, it has no parent. Say so in a file, in the data directory as the server's user, and archive it: echo '# no parent' > {file} && pitr wal push {file}",
        timeline.decimal()
    ))
}

/// The options with which the server is asked for a backup.
fn request(options: &Options) -> Result<BaseBackupOptions> {
    let label = &options.label;
    if label.len() > LABEL_LIMIT_BYTES || label.chars().any(char::is_control) {
        return Err(err!(
            Usage,
            "a label is one line of at most {LABEL_LIMIT_BYTES} bytes"
        ));
    }
    let max_rate_kib_per_s = match options.max_rate_bytes_per_s {
        None => None,
        Some(bytes) => {
            let kib = u32::try_from(bytes / 1024).ok();
            let kib = kib.filter(|kib| (32..=1_048_576).contains(kib));
            let refused = || err!(Usage, "a rate is at least 32KiB and at most 1GiB a second");
            Some(kib.ok_or_else(refused)?)
        }
    };
    Ok(BaseBackupOptions {
        label: if label.is_empty() {
            "pitr".into()
        } else {
            label.clone()
        },
        checkpoint: options.checkpoint,
        estimate_size: true,
        max_rate_kib_per_s,
    })
}

/// Keeps the claim, and has the first WAL listened to, while files are copied.
struct Watcher<'w, 'c, 'a, 'p> {
    claim: &'w mut Claim<'c>,
    others: &'w mut Others<'a, 'p>,
    segment_size: SegmentSize,
    beside: Option<Box<dyn WalSource + Send>>,
    lister: Option<Lister>,
    listing: Option<JoinHandle<Result<Draft>>>,
    over: Arc<AtomicBool>,
    listener: Option<Listener>,
    backoff: Option<Backoff>,
    rate: &'w Rate,
    progress: &'w dyn Progress,
}

impl Watch for Watcher<'_, '_, '_, '_> {
    fn began(&mut self, start: &BackupStart) -> Result<()> {
        let (timeline, lsn) = (start.timeline, start.start_lsn);
        self.claim.protect_from(timeline.get(), lsn)?;
        // A list that cannot be made never fails a backup.
        self.listing = self.lister.take().and_then(|lister| {
            let named = std::thread::Builder::new().name("relations".into());
            named.spawn(lister).ok()
        });
        if let Some(beside) = self.beside.take() {
            let first = SegmentNumber::of(lsn, self.segment_size).range(self.segment_size);
            let over = Arc::clone(&self.over);
            self.listener = Some(Listener::start(beside, over, timeline, first)?);
        }
        Ok(())
    }

    fn tick(&mut self) -> Result<()> {
        self.claim.keep()?;
        if let Some(backoff) = &mut self.backoff {
            backoff.tick(self.rate, self.progress);
        }
        self.others.keep()
    }
}

/// Keeps all claims while a map is walked, unless the operator stops that.
fn keep(host: &Host, claim: &mut Claim<'_>, others: &mut Others<'_, '_>) -> Result<()> {
    host.check_stop()?;
    claim.keep()?;
    others.keep()
}

/// Warns that a backup has no list of relations: no restore needs it.
fn unlisted(host: &Host, e: &Error) {
    let progress = &host.progress;
    progress.warn(&format!("the list of relations is not stored: {e}"));
}

/// The damaged pages that can be listed. A backup is marked without the list as well: nothing but an end of the run fails it here.
fn located(
    (store, layout): (&dyn Store, &ClusterLayout),
    (root, warnings): (&BackupRoot, &[String]),
    host: &Host,
    tick: &mut dyn FnMut() -> Result<()>,
) -> Result<(Vec<DamagedPage>, u64)> {
    host.progress.phase("locate damaged pages", None);
    let error = match damage::locate((store, layout), root, warnings, tick) {
        Ok(located) => return Ok(located),
        Err(e) => e,
    };
    tick()?;
    host.progress.warn(&match error.code() {
        Code::Key => "this host cannot read the backup back: the damaged pages are not listed. \"pitr verify\" on one that can names them".to_owned(),
        _ => format!("the damaged pages are not listed, \"pitr verify\" names them: {error}"),
    });
    Ok((Vec::new(), 0))
}

/// How paths and keys of the server's files lead to one another.
fn naming(facts: &ServerFacts) -> ClusterNaming {
    ClusterNaming {
        major: facts.major.number(),
        catalog_version: facts.catalog_version,
    }
}

/// The claims on backups of which a new one takes something over.
struct Others<'a, 'c> {
    prior: Option<&'a mut Claim<'c>>,
    /// On those that were interrupted.
    left: Vec<Claim<'a>>,
}

impl Others<'_, '_> {
    fn keep(&mut self) -> Result<()> {
        self.left.iter_mut().try_for_each(Claim::keep)?;
        self.prior.as_mut().map_or(Ok(()), |prior| prior.keep())
    }

    fn check(&self) -> Result<()> {
        self.left.iter().try_for_each(Claim::check)?;
        self.prior.as_ref().map_or(Ok(()), |prior| prior.check())
    }
}

/// One backup under way.
struct Backup<'a, 'c> {
    repository: &'a Repository,
    layout: &'a ClusterLayout,
    facts: &'a ServerFacts,
    options: &'a Options,
    host: &'a Host,
    attempt: Attempt<'a>,
    /// Prior of an incremental.
    prior: Option<&'a Prior<'a>>,
    others: Others<'a, 'c>,
    held_back: Option<HeldBack>,
    /// The server's relations, where they could be listed.
    listed: Option<Draft>,
    /// The interrupted backups that it went on from.
    taken_over: Vec<TakenOver>,
}

impl<'a> Backup<'a, '_> {
    /// Claims what interrupted backups left, and reads it back. The connections are used meanwhile.
    fn resume(
        &mut self,
        source: &mut dyn Source,
        claim: &mut Claim<'_>,
    ) -> Result<Option<Leftovers<'a>>> {
        if !self.options.resume {
            return Ok(None);
        }
        let (host, own) = (self.host, claim.id().clone());
        let mut used = Instant::now();
        let mut tick = || {
            if used.elapsed() >= PING {
                source.keep_alive();
                used = Instant::now();
            }
            keep(host, claim, &mut self.others)
        };
        let how = (Naming::Cluster(naming(self.facts)), self.options.jobs);
        let place = (self.repository.store(), self.layout);
        let resumed = Resumed::hold(place, &own, how, host, &mut tick)?;
        Ok(resumed.map(|resumed| {
            let (leftovers, claims) = resumed.split();
            self.others.left = claims;
            leftovers
        }))
    }

    fn run(
        &mut self,
        source: &mut dyn Source,
        producer: &mut dyn Producer,
        request: &BaseBackupOptions,
        claim: &mut Claim<'_>,
    ) -> Result<BackupRoot> {
        let store = self.repository.store();
        let host = self.host;
        self.host.progress.note(&format!(
            "backup \"{}\" of cluster \"{}\" begins with a checkpoint on \"{}\"",
            claim.id(),
            self.layout.name(),
            self.facts.host
        ));
        let leftovers = self.resume(source, claim)?;
        let start_time = source.clock().unwrap_or_else(|| host.now());
        let copied = self.copy((source, producer), request, claim, leftovers.as_ref())?;
        let (produced, written, listener) = copied;
        fault::pause("backup-stopped");
        let stop_time = source.clock().unwrap_or_else(|| host.now());
        self.check(&produced)?;
        let needed = wal::Needed {
            timeline: produced.end.timeline,
            start_lsn: produced.start.start_lsn,
            stop_lsn: produced.end.stop_lsn,
            segment_size: self.facts.segment_size,
        };
        let witness = Witness::new(
            listener,
            needed.timeline,
            needed.bounds(),
            needed.stop_lsn,
            needed.segment_size,
        );
        let prover = Prover::new(
            (self.repository, self.layout),
            self.facts.major.number(),
            needed,
            witness,
            source,
            host.progress.as_ref(),
        )?;
        let landmarks = Landmarks {
            checkpoint: produced.label.checkpoint,
            control: (
                produced.control.checkpoint,
                produced.control.checkpoint_copy.redo,
            ),
            from_standby: BackupLabel::from_standby(&produced.label),
        };

        let times = (start_time, stop_time);
        let mut root = self.root(producer.method(), &produced, written, times)?;
        if let Some(prior) = self.prior {
            incremental::check_bounds(&prior.root.content, &root.content)?;
        }
        let is_shared = root.map.packs.iter().any(|pack| pack.key.id != *claim.id());
        // A host that cannot read its backups back reads what it has kept of them.
        let readable = self.prior.map_or(store, |prior| prior.repository.store());
        if self.prior.is_some() || is_shared {
            let nothing = Map {
                shards: Vec::new(),
                packs: Vec::new(),
            };
            let own = (root.head.clone(), nothing);
            let before = self.prior.map(|p| (&p.root.head, &p.root.map));
            (root.head, root.map) = incremental::complete(
                (readable, self.layout),
                before.unwrap_or((&own.0, &own.1)),
                (root.head, root.map),
                Naming::Cluster(ClusterNaming::from(&root.content)),
                &mut || keep(host, claim, &mut self.others),
            )?;
        }
        if let Some(leftovers) = &leftovers {
            self.taken_over = resume::taken_over(leftovers, &root.map.packs);
        }
        let timeline = produced.end.timeline;
        if let Some(manifest) = produced.manifest {
            let hash = manifest.hash;
            let object = manifest.finish(&produced.control, timeline.get())?;
            if object.publish()? == Published::Exists {
                return Err(err!(Conflict, "the backup has a server manifest already"));
            }
            root.content.server_manifest = Some(hash.to_hex().to_string());
            let stored = stored::length(store, &self.layout.server_manifest(claim.id()))?;
            root.head.stored_bytes += stored.unwrap_or(0);
        }
        let listed = self.listed.take();
        root.content.relations = listed
            .and_then(|mut listed| self.write_relations(claim.id(), &root.content, &mut listed));
        (root.content.damage, root.content.damage_count) =
            (produced.damage.pages, produced.damage.count);
        claim.keep()?;

        let circumstances = wal::Circumstances {
            from_standby: root.content.from_standby,
            archive_off: self.facts.archive_mode.as_deref() == Some("off"),
        };
        let (limit, layout) = (self.options.wal_wait, self.layout);
        let mut waiter = wal::Waiter {
            repository: self.repository,
            major: self.facts.major.number(),
            layout,
            host,
            source: &mut *source,
            circumstances,
            prover,
        };
        let others = &mut self.others;
        let mut tick = || keep(host, claim, others);
        deletion::wait(
            (store, layout),
            host.clock.as_ref(),
            host.progress.as_ref(),
            &mut tick,
        )?;
        waiter.wait(&needed, limit, &mut tick)?;
        waiter.source.let_wal_go();
        root.content.wal_proof = Some(waiter.prover.finish(&landmarks)?);
        if produced.end.checksum_failure {
            root.content.damage_reported_by_server = true;
            // The server keeps nothing for this any more.
            let mut tick = || keep(host, claim, &mut self.others);
            let named = (&root, &produced.end.warnings[..]);
            let located = located((readable, layout), named, host, &mut tick)?;
            (root.content.damage, root.content.damage_count) = located;
        } else {
            root.content.cut_pages = damage::cut_pages(&root.content, &produced.end.warnings);
        }
        if timeline.get() > 1 {
            root.content.set_history(&self.history(source, timeline)?);
        }
        host.check_stop()?;
        let mut tick = || keep(host, claim, &mut self.others);
        self.attempt.extend_locks(&root.map, &mut tick)?;
        if is_shared {
            resume::check_packs(store, layout, &root.map.packs)?;
        }
        claim.check()?;
        self.others.check()?;
        let commit = RootOfCluster {
            store,
            layout,
            root: &root,
        };
        let prior = self.prior.map(|prior| &prior.root.head.id);
        self.attempt.commit(&commit, prior)?;
        let completed = Outline::of(&root).map(|root| Writer::of(host).completed(&root));
        self.attempt.record_completed(completed);
        // Who takes full backups alone has no use for the state.
        let warn = |why: &str| match self.options.wish {
            None | Some(Wish::Full) => {}
            Some(_) => host.progress.warn(why),
        };
        incremental::state::settle((self.repository, layout), &root, &warn);
        Ok(root)
    }

    /// Writes the list of relations; `None` where it cannot be kept, which fails no backup.
    fn write_relations(
        &self,
        id: &BackupId,
        content: &ClusterContent,
        listed: &mut Draft,
    ) -> Option<ListOfRelations> {
        let identity = Identity {
            hash: [0; 32],
            raw_bytes: 0,
            system_identifier: content.system_identifier,
            timeline: content.timeline,
            major: content.major,
            segment_size_bytes: content.wal_segment_size_bytes,
            name: String::new(),
            from_lsn: 0,
            to_lsn: 0,
        };
        let place = (&**self.layout, id);
        let written = repo::relations::write(self.repository.store(), place, listed, &identity);
        written.inspect_err(|e| unlisted(self.host, e)).ok()
    }

    /// Copies the files into packs and the map into layers.
    fn copy(
        &mut self,
        (source, producer): (&mut dyn Source, &mut dyn Producer),
        request: &BaseBackupOptions,
        claim: &mut Claim<'_>,
        leftovers: Option<&Leftovers<'a>>,
    ) -> Result<(Produced, Written, Option<Listener>)> {
        let store = self.repository.store();
        let host = self.host;
        let naming = naming(self.facts);
        let id = claim.id().clone();
        let codec = self.options.codec.unwrap_or(match self.prior {
            Some(_) => FrameCodec::Zstd(1),
            None => FrameCodec::Lz4,
        });
        let mut options = writer::Options::new(codec, self.options.jobs, host.scratch.clone());
        options.sinks = producer.sinks(self.options.jobs);
        let mut flat_bytes = 0;
        if let Some(prior) = self.prior {
            let places = (store, &**self.layout);
            let flat = flatten(
                &prior.snapshot,
                places,
                &id,
                fault::lowered(LAYERS),
                options.shard_files,
                &mut || keep(host, claim, &mut self.others),
            )?;
            (options.prior, options.layers) = (flat.shards, flat.layers);
            flat_bytes = flat.stored_bytes;
        }
        // The server of a stream keeps the operator's limit by itself.
        let rate = Rate::new(match producer.method() {
            Method::Stream => None,
            Method::Local => self.options.max_rate_bytes_per_s,
        });
        let limits = self.options.backoff;
        let probe = match limits.is_none() {
            true => None,
            false => source.probe(self.facts.segment_size),
        };
        let over = Arc::new(AtomicBool::new(false));
        let mut watcher = Watcher {
            claim,
            others: &mut self.others,
            segment_size: self.facts.segment_size,
            beside: Some(source.beside(Arc::clone(&over))),
            lister: source.relations(),
            listing: None,
            over,
            listener: None,
            backoff: Backoff::start(limits, probe)?,
            rate: &rate,
            progress: host.progress.as_ref(),
        };
        let (produced, mut written) = std::thread::scope(|threads| {
            let place = (store, &**self.layout);
            let writer = SnapshotWriter::start_upon(threads, place, &id, &options, leftovers);
            let work = Work {
                threads,
                writer: &writer,
                naming,
                facts: self.facts,
                options: self.options,
                request,
                host,
                store,
                layout: self.layout,
                id: &id,
                prior: self.prior,
                rate: &rate,
                watch: &mut watcher,
            };
            let produced = producer.produce(source, work)?;
            host.check_stop()?;
            host.progress.phase("write the map", None);
            Ok::<_, Error>((produced, writer.finish()?))
        })?;
        written.stored_bytes += flat_bytes;
        let backoff = watcher.backoff.take();
        self.held_back = backoff.map(|backoff| backoff.finish(&rate));
        self.listed = watcher.listing.take().and_then(|listing| {
            host.progress.phase("list the relations", None);
            let listed = listing.join().ok()?;
            listed.inspect_err(|e| unlisted(host, e)).ok()
        });
        Ok((produced, written, watcher.listener))
    }

    /// Whether label, control file, manifest and the server's answers speak of one backup of this cluster.
    fn check(&self, produced: &Produced) -> Result<()> {
        let Produced {
            start,
            end,
            label,
            control,
            manifest,
            ..
        } = produced;
        let disagree = |what: String| {
            Err(Error::new(Code::Damaged, what)
                .hint("Nothing was committed. Take the backup again."))
        };
        if end.timeline != start.timeline {
            return Err(err!(
                Server,
                "the server went from timeline {} to {} during the backup",
                start.timeline.decimal(),
                end.timeline.decimal()
            )
            .hint("A standby was promoted or followed a promotion. Nothing was committed; take the backup again."));
        }
        let manifest = manifest.as_ref().map(|manifest| &manifest.end);
        if control.system_identifier != self.facts.system_identifier
            || manifest
                .and_then(|end| end.system_identifier)
                .is_some_and(|id| id != self.facts.system_identifier)
        {
            return disagree("the files are those of another cluster".into());
        }
        if control.block_size != 8192 || control.wal_block_size != 8192 {
            return Err(err!(
                Unsupported,
                "the server has pages of {} and {} bytes; only 8192 is supported",
                control.block_size,
                control.wal_block_size
            ));
        }
        if control.wal_segment_size != self.facts.segment_size
            || control.major != self.facts.major
            || control.catalog_version != self.facts.catalog_version
        {
            return disagree("pg_control and the server's settings disagree".into());
        }
        let timeline = label.start_timeline.unwrap_or(start.timeline);
        if label.start.lsn != start.start_lsn || timeline != start.timeline {
            return disagree(format!(
                "backup_label begins at {}, the backup at {}",
                label.start.lsn, start.start_lsn
            ));
        }
        let Some(ranges) = manifest.map(|end| &end.wal_ranges) else {
            return Ok(());
        };
        let first = ranges.first().map(|range| range.start);
        let last = ranges.last().map(|range| range.end);
        if first != Some(start.start_lsn) || last != Some(end.stop_lsn) {
            return disagree("the server's manifest names other WAL than its answers".into());
        }
        Ok(())
    }

    fn root(
        &self,
        method: Method,
        produced: &Produced,
        written: Written,
        times: (TimestampTz, TimestampTz),
    ) -> Result<BackupRoot> {
        let Produced {
            start,
            end,
            label,
            control,
            ..
        } = produced;
        let prior = self.prior.map(|prior| &prior.root.head.id);
        let (mut head, map) = self
            .attempt
            .head_and_map(&self.options.label, prior, times, written);
        if !produced.left_out.is_empty() {
            head.features.push(PARTIAL.to_owned());
        }
        Ok(BackupRoot {
            head,
            map,
            content: ClusterContent {
                method,
                cluster: self.layout.name().to_owned(),
                system_identifier: self.layout.system_identifier(),
                major: control.major.number(),
                server_version_num: self.facts.version_num,
                catalog_version: control.catalog_version,
                start_lsn: start.start_lsn,
                stop_lsn: end.stop_lsn,
                consistent_lsn: self
                    .prior
                    .map_or(Lsn::INVALID, |p| p.root.content.consistent_lsn)
                    .max(consistent_lsn(produced)),
                checkpoint_lsn: label.checkpoint,
                start_timeline: start.timeline.get(),
                timeline: end.timeline.get(),
                history: None,
                history_hex: None,
                from_standby: BackupLabel::from_standby(label),
                data_checksums: control.checksums_enabled(),
                wal_segment_size_bytes: control.wal_segment_size.bytes(),
                block_size_bytes: control.block_size,
                relseg_blocks: control.relation_segment_blocks,
                timezone: self.facts.timezone.clone(),
                tablespaces: tablespaces(produced),
                server_manifest: None,
                relations: None,
                wal_proof: None,
                whole_scan_time: self
                    .prior
                    .and_then(|prior| prior.scan_time(produced.has_scanned, times.0)),
                left_out_databases: produced.left_out.clone(),
                oldest_content: self
                    .prior
                    .and_then(|prior| prior.root.content.oldest_content.clone()),
                damage: Vec::new(),
                damage_count: 0,
                damage_reported_by_server: false,
                cut_pages: Vec::new(),
            },
        })
    }

    /// Makes sure that the repository has the timeline's history file, and returns its content.
    fn history(&self, source: &mut dyn Source, timeline: TimelineId) -> Result<Bytes> {
        let content = source.history(timeline)?;
        push_history(self.repository, self.layout, timeline, &content)?;
        Ok(content)
    }
}

struct RootOfCluster<'a> {
    store: &'a dyn Store,
    layout: &'a ClusterLayout,
    root: &'a BackupRoot,
}

impl Commit for RootOfCluster<'_> {
    fn write(&self) -> Result<Published> {
        self.root.commit(self.store, self.layout)
    }

    fn is_stored(&self) -> Result<bool> {
        let stored = BackupRoot::read(self.store, self.layout, &self.root.head.id)?;
        Ok(stored.is_some_and(|stored| stored.head.nonce == self.root.head.nonce))
    }
}

/// Returns the position at which PostgreSQL calls the restored cluster consistent: at the end record of the backup, which is its stop LSN;
/// of a backup from a standby, which has no such record, at the minRecoveryPoint of its control file. That file is sent last, so no page of
/// the backup is newer.
///
/// PostgreSQL: src/backend/access/transam/xlogrecovery.c (InitWalRecovery, `backupFromStandby`; CheckRecoveryConsistency),
/// src/backend/backup/basebackup.c (perform_base_backup).
fn consistent_lsn(produced: &Produced) -> Lsn {
    let stop = produced.end.stop_lsn;
    match BackupLabel::from_standby(&produced.label) {
        true => produced
            .control
            .min_recovery_point
            .max(produced.label.checkpoint)
            .min(stop),
        false => stop,
    }
}

/// Tablespaces outside the data directory; those inside it are plain directories.
fn tablespaces(produced: &Produced) -> Vec<Tablespace> {
    let all = produced.start.tablespaces.iter();
    all.filter(|t| t.location.first() == Some(&b'/'))
        .map(|tablespace| Tablespace {
            oid: tablespace.oid,
            location: PathBuf::from(OsString::from_vec(tablespace.location.clone())),
        })
        .collect()
}
