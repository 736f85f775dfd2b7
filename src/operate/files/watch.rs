//! Watches a directory, and takes a backup soon after something in it changed.
//!
//! Events only say that there is something to do: each backup walks the whole directory. So a lost event, a kill and a full queue cost time, and
//! no change. A walk every few minutes finds what no event tells (a store through a mapping). It leaves no backup where nothing changed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::source::cache;
use super::{Done, Wanted, backup};
use crate::backup::files::{Watched, selection};
use crate::backup::sources;
use crate::config::{MemberKind, SetMember, Source};
use crate::durable;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::fault;
use crate::operate::session::Session;
use crate::operate::sets::marks;
use crate::pg::time::TimestampTz;
use crate::repo::id::BackupId;
use crate::snapshot::frame::FrameCodec;
use crate::tree::watch::{Heard, Watch};

/// How long nothing may change before a backup begins.
const QUIET: Duration = Duration::from_secs(2);
/// How often the directory is looked at while nothing is heard.
const TICK: Duration = Duration::from_secs(1);
/// How often a walk looks for what no event tells.
const RESCAN: Duration = Duration::from_secs(600);
/// The first pause after a backup that failed; doubled by each one that follows.
const PAUSE: Duration = Duration::from_secs(5);
/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(60);
const STATE: &str = "state.json";
const MACHINE: &str = "watch";

/// A watch that is asked for.
#[derive(Debug, Clone)]
pub struct WatchWanted {
    /// Name of the set of files.
    pub name: String,
    /// A change is in a backup after this time, where a backup takes less than half of it.
    pub within: Duration,
    /// Cores that read and compress.
    pub jobs: usize,
    pub codec: FrameCodec,
}

/// The work of a watcher.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// Everything that is known is in a backup.
    Waiting,
    /// Something changed.
    #[default]
    Pending,
    /// A backup is under way.
    BackingUp,
    /// The directory is not there, has no file any more, or its filesystem is not mounted.
    SourceMissing,
}

/// The state of a watcher, as it last noted it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its work just then.
    pub activity: Activity,
    /// Since when there are changes in no backup, as far as it heard.
    pub changed_since: Option<TimestampTz>,
    /// Everything from before this moment is in a backup.
    pub covered_until: Option<TimestampTz>,
    /// The newest backup that it took.
    pub backup: Option<BackupId>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// How many directories are watched.
    pub directory_count: usize,
    /// Whether the kernel lets all of them be watched; else a walk looks often.
    pub is_complete: bool,
    /// How many things the last walk could not read.
    #[serde(default)]
    pub left_out_count: u64,
    /// The last warning since the watcher was started.
    #[serde(default)]
    pub warning: Option<String>,
    /// The filesystem of the directory when it was seen last, by any watcher.
    #[serde(default)]
    pub device: Option<u64>,
    /// When the last walk of any watcher that came to its end was begun.
    #[serde(default)]
    pub walked: Option<TimestampTz>,
}

impl State {
    /// Returns the state of a watcher that starts, and does not know what happened while none ran. It takes over what outlasts a watcher.
    fn begun(now: TimestampTz, before: Option<&State>) -> State {
        State {
            activity: Activity::Pending,
            changed_since: Some(now),
            is_complete: true,
            device: before.and_then(|state| state.device),
            walked: before.and_then(|state| state.walked),
            ..State::default()
        }
    }

    fn read(place: &Path) -> Option<State> {
        let text = std::fs::read(place.join(STATE)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Whether every change is in a backup, and nobody has to look at anything.
    pub fn is_well(&self) -> bool {
        self.error.is_none()
            && self.warning.is_none()
            && self.left_out_count == 0
            && self.activity != Activity::SourceMissing
    }
}

/// How far a name is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// Whether a watcher runs.
    pub is_running: bool,
    /// The state that it noted last.
    pub state: Option<State>,
    /// How long changes have been in no backup; none where that is not known.
    pub behind: Option<Duration>,
}

/// Returns how far the watcher of a name is behind.
///
/// # Errors
/// `Config`; those of the cache.
pub fn behind(session: &Session, name: &str) -> Result<Behind> {
    session.settings()?.files_named(name)?;
    let place = cache(session, MACHINE, name)?;
    let is_running = sources::is_locked(&place)?;
    let state = State::read(&place);
    let behind = state.as_ref().filter(|_| is_running).map(|state| {
        let micros = |since: TimestampTz| session.host.now().0.saturating_sub(since.0);
        let micros = state.changed_since.map_or(0, micros);
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    });
    Ok(Behind {
        is_running,
        state,
        behind,
    })
}

/// Watches until the operator stops it. Each backup that was taken goes to `tell`, and each walk with news for the operator.
///
/// # Errors
/// `Usage` for a source that is no directory; `Locked` while another watcher of the name runs; configuration that is wrong; those of `tell`.
pub fn watch(
    session: &Session,
    wanted: &WatchWanted,
    tell: &mut dyn FnMut(&Done) -> Result<()>,
) -> Result<()> {
    let settings = session.settings_with_repositories()?;
    let files = settings.files_named(&wanted.name)?;
    let Source::Directory(root) = &files.source else {
        return Err(
            err!(Usage, "the source of \"{}\" is no directory", wanted.name)
                .hint("Nothing was done. Let a timer run pitr files backup for it."),
        );
    };
    let place = cache(session, MACHINE, &wanted.name)?;
    let _alone = sources::lock(&place)?;
    let selection = selection(files)?;
    let mut watcher = Watcher {
        session,
        wanted,
        root,
        state: State::begun(session.host.now(), State::read(&place).as_ref()),
        place,
        pending: Some(Instant::now()),
        heard: None,
        walked: Instant::now(),
        completed: Instant::now(),
        failures: 0,
        retry: None,
    };
    // Until then the state is that of the watcher before.
    watcher.note()?;
    let mut watch: Option<Watch<'_>> = None;
    while !session.host.is_stopping() {
        if !watcher.is_source_there() {
            watch = None;
            watcher.missing()?;
            std::thread::sleep(TICK);
            continue;
        }
        watch = watch.filter(Watch::is_current);
        let Some(open) = &mut watch else {
            watch = watcher.begin(Watch::start(root, &selection))?;
            continue;
        };
        let heard = open.hear(watcher.patience())?;
        watcher.watched(open)?;
        if heard == Heard::Overflow {
            session.note("more changed at once than the kernel notes: the directory is walked");
        }
        match heard {
            Heard::Nothing => {}
            Heard::Changed => watcher.changed()?,
            Heard::Overflow | Heard::Gone => {
                watcher.changed()?;
                watch = None;
                continue;
            }
        }
        if watcher.is_due() {
            watcher.complete(open)?;
            watcher.back_up(tell)?;
        }
    }
    Ok(())
}

struct Watcher<'w> {
    session: &'w Session,
    wanted: &'w WatchWanted,
    root: &'w Path,
    place: PathBuf,
    state: State,
    /// When the first change was heard that is in no backup.
    pending: Option<Instant>,
    /// When the last one was.
    heard: Option<Instant>,
    /// When the directory was last walked.
    walked: Instant,
    /// When it was last looked for directories that are not watched.
    completed: Instant,
    failures: u32,
    /// Nothing is tried before.
    retry: Option<Instant>,
}

impl Watcher<'_> {
    /// Whether the directory can be read, and is no empty mount point.
    fn is_source_there(&self) -> bool {
        use std::os::unix::fs::MetadataExt;
        let Ok(found) = std::fs::metadata(self.root) else {
            return false;
        };
        match self.state.device {
            Some(device) if device != found.dev() => {
                std::fs::read_dir(self.root).is_ok_and(|mut entries| entries.next().is_some())
            }
            _ => found.is_dir(),
        }
    }

    fn missing(&mut self) -> Result<()> {
        if self.state.activity == Activity::SourceMissing {
            return Ok(());
        }
        self.session.warn(&format!(
            "\"{}\" is not there, or its filesystem is not mounted: no backup is taken until it is",
            self.root.display()
        ));
        self.pending.get_or_insert_with(Instant::now);
        let now = self.session.host.now();
        self.state.changed_since.get_or_insert(now);
        self.state.activity = Activity::SourceMissing;
        self.note()
    }

    /// Goes on with a new watch, and with a walk: nothing was heard before.
    fn begin<'s>(&mut self, started: Result<Watch<'s>>) -> Result<Option<Watch<'s>>> {
        let watch = match started {
            Ok(watch) => watch,
            // Gone between two looks.
            Err(e) if e.code() == Code::SourceMissing && !self.is_source_there() => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        self.state.device = Some(watch.device());
        self.watched(&watch)?;
        self.changed()?;
        Ok(Some(watch))
    }

    /// Takes down how much of the directory is watched. The limit may be reached at any time.
    fn watched(&mut self, watch: &Watch<'_>) -> Result<()> {
        self.state.directory_count = watch.directories();
        if self.state.is_complete == watch.is_complete() {
            return Ok(());
        }
        self.state.is_complete = watch.is_complete();
        if !watch.is_complete() {
            self.session.warn(&format!(
                "the kernel lets this user watch {} directories, and there are more: they are walked every {} s (fs.inotify.max_user_watches)",
                watch.directories(),
                self.rescan(false).as_secs()
            ));
        }
        self.note()
    }

    /// Watches, from time to time, what no event told of.
    fn complete(&mut self, watch: &mut Watch<'_>) -> Result<()> {
        if self.completed.elapsed() < self.rescan(self.state.is_complete) {
            return Ok(());
        }
        self.completed = Instant::now();
        watch.complete();
        self.watched(watch)
    }

    /// Notes that something changed.
    fn changed(&mut self) -> Result<()> {
        let now = Instant::now();
        self.heard = Some(now);
        self.pending.get_or_insert(now);
        if self.state.changed_since.is_some() && self.state.activity == Activity::Pending {
            return Ok(());
        }
        let now = self.session.host.now();
        self.state.changed_since.get_or_insert(now);
        self.state.activity = Activity::Pending;
        self.note()
    }

    fn rescan(&self, is_complete: bool) -> Duration {
        match is_complete {
            true => RESCAN,
            false => self.wanted.within / 2,
        }
    }

    /// How long an event is waited for.
    fn patience(&self) -> Duration {
        match self.pending {
            Some(_) => TICK.min(self.wanted.within / 8),
            None => TICK,
        }
    }

    fn is_due(&self) -> bool {
        if self.retry.is_some_and(|at| Instant::now() < at) {
            return false;
        }
        let quiet = QUIET.min(self.wanted.within / 4);
        let is_quiet = self.heard.is_none_or(|last| last.elapsed() >= quiet);
        let is_late = |first: Instant| first.elapsed() >= self.wanted.within / 2;
        match self.pending {
            Some(first) => is_quiet || is_late(first),
            None => self.walked.elapsed() >= self.rescan(self.state.is_complete),
        }
    }

    /// Takes a backup of what changed. One that fails is tried again.
    fn back_up(&mut self, tell: &mut dyn FnMut(&Done) -> Result<()>) -> Result<()> {
        let (began, moment) = (Instant::now(), self.session.host.now());
        // A walk that hangs sees nothing that no event tells.
        self.state.changed_since.get_or_insert(moment);
        self.state.activity = Activity::BackingUp;
        self.note()?;
        let member = SetMember {
            kind: MemberKind::Files,
            name: self.wanted.name.clone(),
        };
        let wanted = Wanted {
            name: self.wanted.name.clone(),
            label: String::new(),
            is_full: false,
            takes_over: false,
            watched: Some(Watched {
                walked: self.state.walked,
                marked: marks::newest_of(self.session, &member),
            }),
            jobs: self.wanted.jobs,
            codec: self.wanted.codec,
        };
        let taken = backup(self.session, &wanted);
        // Changes from now on are heard, and those of before are in it, or nothing is.
        self.walked = began;
        match taken {
            Ok(done) => {
                (self.failures, self.retry, self.pending, self.heard) = (0, None, None, None);
                self.walked(&done, moment);
                if self.has_news(&done) {
                    tell(&done)?;
                }
                self.state.left_out_count = done.taken.left_out.total();
            }
            Err(e) if e.code() == Code::Interrupted => {}
            Err(e) if self.state.covered_until.is_none() && is_for_good(&e) => return Err(e),
            Err(e) => {
                self.failures += 1;
                let pause = PAUSE.saturating_mul(1 << (self.failures - 1).min(8));
                let pause = pause.min(PAUSE_MAX);
                self.retry = Some(Instant::now() + fault::shortened(pause));
                self.pending.get_or_insert(began);
                self.state.activity = match e.code() {
                    Code::SourceMissing => Activity::SourceMissing,
                    _ => Activity::Pending,
                };
                self.session.warn(&format!("{e}; it is tried again"));
                self.state.error = Some(e.to_string());
            }
        }
        self.note()
    }

    /// Takes down what a walk from this moment on found.
    fn walked(&mut self, done: &Done, moment: TimestampTz) {
        let state = &mut self.state;
        (state.covered_until, state.walked) = (Some(moment), Some(moment));
        state.changed_since = None;
        state.error = None;
        state.activity = Activity::Waiting;
        if done.is_new {
            state.backup = Some(done.root.head.id.clone());
        }
        let after = done.after.as_ref().map(ToString::to_string);
        if let Some(last) = after.or_else(|| done.warnings.last().cloned()) {
            state.warning = Some(last);
        }
    }

    /// Whether the operator hears of a walk. Things that cannot be read are news once.
    fn has_news(&self, done: &Done) -> bool {
        done.is_new
            || done.after.is_some()
            || !done.warnings.is_empty()
            || done.taken.left_out.total() != self.state.left_out_count
    }

    fn note(&self) -> Result<()> {
        let text = serde_json::to_vec(&self.state);
        let text = text.map_err(|e| err!(Internal, "the state cannot be noted: {e}"))?;
        let path = self.place.join(STATE);
        let written = durable::replace(&path, &text, self.session.host.random());
        written.map_err(|e| Error::from_io(format!("write \"{}\"", path.display()), e))
    }
}

/// Whether an error waits for somebody who changes something, and not for time.
fn is_for_good(e: &Error) -> bool {
    matches!(e.code(), Code::Usage | Code::Config | Code::Refused)
}
