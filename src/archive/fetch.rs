//! One WAL file out of repositories, for restore_command.
//!
//! Delivered means: every byte checked, the right size, the right cluster, written beside the target and renamed.
//! "Absent" is the answer only when it is proven, because PostgreSQL takes it for the end of the WAL and promotes.
//! Everything else is an error. A tail, too, is delivered only under proof, because WAL ends there.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::asking::{Asking, Inquiry, is_proof};
use super::damage::{self, Damage};
use super::datadir::DataDirectory;
use super::life;
use super::offer::Offer;
use super::own;
use super::push::{is_ancestor, is_same_history, own_history, read_history, sound_history};
use crate::durable::Delivery;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::page::WalIdentity;
use crate::pg::segment::{SegmentName, SegmentSize, WalFileName};
use crate::pg::time::TimestampTz;
use crate::pg::timeline::{History, TimelineId};
use crate::progress::Progress;
use crate::repo::container::{Container, Kind};
use crate::repo::decision::Decisions;
use crate::repo::event;
use crate::repo::healed;
use crate::repo::layout::ClusterLayout;
use crate::repo::lives::Followed;
use crate::repo::repository::Repository;
use crate::store::{Key, Object};
use crate::wal::increment;
use crate::wal::increments;
use crate::wal::last;
use crate::wal::path::Path;

/// How long one may be silent where another has answered: then that one is asked again, and who is not required is done without.
const LEFT_BEHIND: Duration = Duration::from_secs(10);
/// How long one is listened for that was left behind before.
const MOMENT: Duration = Duration::from_secs(1);

/// The result of fetching a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// It is at the target, whole and checked.
    Delivered,
    /// Only a part of the segment is archived: that part is at the target, checked, padded and marked.
    DeliveredTail {
        /// The position at which its WAL ends.
        valid_end: Lsn,
    },
    /// It is proven that the archive does not have it, and that no later WAL of the same path is there.
    ProvenAbsent,
}

/// The file to fetch and the place to put it.
#[derive(Clone)]
pub struct Fetch {
    /// The cluster's name.
    pub cluster: String,
    /// Its system identifier, if the data directory or the operator gives it.
    pub system_identifier: Option<u64>,
    /// The file wanted.
    pub name: WalFileName,
    /// Which segments of a forked timeline are read.
    pub followed: Followed,
    /// The path at which PostgreSQL wants it (`%p`).
    pub target: PathBuf,
    /// Random, for temporary names, and for what is recorded.
    pub nonce: u64,
    /// The current time, for what is recorded.
    pub clock: fn() -> TimestampTz,
    /// Told of every piece that arrives.
    pub progress: Arc<dyn Progress>,
    /// Tells a watch how far it is.
    pub inquiry: Inquiry,
}

/// A repository in which to look for the file.
pub struct Place {
    /// The location, for messages.
    pub name: String,
    /// Whether this repository has to prove absence.
    pub is_required: bool,
    /// How long the repository may be silent before the next one is asked, too.
    pub patience: Duration,
    pub open: Box<dyn FnOnce() -> Result<Repository> + Send>,
}

/// Fetches from the first repository that has the file and proves it; absence must be proven by every one.
///
/// One required repository that could not be asked makes absence unprovable. So does any repository that has the file
/// damaged, or later WAL. A silent repository is passed over for the next. It is waited for if its answer is needed,
/// but not for ever if another one has answered. A repeated call with the same `questions` asks those again and goes on
/// waiting for the silent one. If no repository answers, the function does not return; the caller has to limit the
/// time. A damaged copy is recorded in the repository that holds it, and reported if another copy was delivered.
///
/// While [`Inquiry::is_waiting`] a thread still hangs in a repository, and may have begun to deliver.
///
/// # Errors
/// `Gap` when later WAL of the same path exists; `Damaged` when the only copies are; `TargetWrite`; `WrongCluster`; `Unreachable` when a
/// required repository is silent; and what kept one from answering.
pub fn fetch(what: &Fetch, places: Vec<Place>, questions: &mut Questions) -> Result<Fetched> {
    let mut answers = Answers::default();
    let fetched = ask_all(what, places, questions, &mut answers)
        .and_then(|()| answers.conclude(what, questions));
    if let (WalFileName::Segment(name), [_, ..]) = (what.name, &*answers.damaged) {
        damage::record(name, answers.damaged, (what.clock)(), what.nonce);
    }
    fetched
}

/// Asks one after the other until one has delivered, or all that are needed have answered, or no more is to be heard for now.
fn ask_all(
    what: &Fetch,
    places: Vec<Place>,
    questions: &mut Questions,
    answers: &mut Answers,
) -> Result<()> {
    questions.begin_round(&places);
    let mut later = Vec::new();
    for place in places {
        if questions.open.iter().any(|q| q.name == place.name) {
            later.push(place);
            continue;
        }
        let patience = place.patience;
        let number = questions.ask(what, place)?;
        while questions.open.iter().any(|q| q.number == number)
            && let Some(answer) = questions.asking.answer(patience)?
        {
            answers.hear(what, answer, questions, &mut later)?;
            if answers.is_delivered {
                return Ok(());
            }
        }
    }
    while !questions.open.is_empty() && !answers.is_delivered {
        match questions.asking.answer(questions.patience())? {
            Some(answer) => answers.hear(what, answer, questions, &mut later)?,
            None if answers.is_any => return Ok(()),
            // There is nobody to be asked again.
            None => {}
        }
    }
    Ok(())
}

/// The questions to repositories, round after round: a repository that hangs in a question gets no other one.
#[derive(Default)]
pub struct Questions {
    asking: Asking<(u64, Asked)>,
    /// Those without an answer.
    open: Vec<Question>,
    count: u64,
}

struct Question {
    number: u64,
    /// Who is asked.
    name: String,
    is_required: bool,
    since: Instant,
    /// The question was asked in an earlier round.
    is_old: bool,
}

impl Questions {
    /// The configuration may have changed since the last round.
    fn begin_round(&mut self, places: &[Place]) {
        for question in &mut self.open {
            question.is_old = true;
            question.is_required = places
                .iter()
                .any(|p| p.is_required && p.name == question.name);
        }
    }

    fn ask(&mut self, what: &Fetch, place: Place) -> Result<u64> {
        self.count += 1;
        let number = self.count;
        let own = Fetch {
            // A name for each temporary file: who hangs may go on to write his.
            nonce: what.nonce.wrapping_add(number),
            progress: self.asking.listening(
                Arc::clone(&what.progress),
                what.inquiry.clone(),
                &place.name,
            ),
            ..what.clone()
        };
        let open = place.open;
        self.asking.ask(move || {
            let asked = open().and_then(|r| Ok((look_in(&own, &r)?, r)));
            (number, asked)
        })?;
        what.inquiry.asks(&place.name);
        self.open.push(Question {
            number,
            name: place.name,
            is_required: place.is_required,
            since: Instant::now(),
            is_old: false,
        });
        Ok(number)
    }

    fn answered(&mut self, what: &Fetch, number: u64) -> Result<Question> {
        let Some(found) = self.open.iter().position(|q| q.number == number) else {
            return Err(err!(Internal, "an answer of somebody who was not asked"));
        };
        let question = self.open.swap_remove(found);
        what.inquiry.answered(&question.name);
        Ok(question)
    }

    fn patience(&self) -> Duration {
        match self.open.iter().all(|q| q.is_old) {
            true => MOMENT,
            false => LEFT_BEHIND,
        }
    }

    /// For how long one has not answered whose word is needed.
    fn silence(&self) -> Option<Duration> {
        let needed = self.open.iter().filter(|q| q.is_required);
        needed.map(|q| q.since.elapsed()).max()
    }
}

/// The answers of the repositories in a round.
#[derive(Default)]
struct Answers {
    is_any: bool,
    is_delivered: bool,
    unproven: Option<Error>,
    is_proven: bool,
    longest: Option<(Repository, Box<Offer>)>,
    damaged: Vec<Damage>,
}

impl Answers {
    /// Whoever says to a question of an earlier round that there is nothing is asked anew: it may have come since. `later` are those who are
    /// still to be asked.
    fn hear(
        &mut self,
        what: &Fetch,
        (number, asked): (u64, Asked),
        questions: &mut Questions,
        later: &mut Vec<Place>,
    ) -> Result<()> {
        let question = questions.answered(what, number)?;
        if question.is_old && matches!(asked, Ok((Found::Absent | Found::Tail(_), _))) {
            return match later.iter().position(|p| p.name == question.name) {
                Some(at) => questions.ask(what, later.swap_remove(at)).map(drop),
                None => Ok(()),
            };
        }
        self.is_any = true;
        self.take(what, &question, asked)
    }

    fn take(&mut self, what: &Fetch, question: &Question, asked: Asked) -> Result<()> {
        let is_required = question.is_required;
        match asked {
            Ok((Found::Delivered, repository)) => {
                damage::tell(&*what.progress, &self.damaged, &repository);
                self.is_delivered = true;
            }
            Ok((Found::Damaged(layout, e, is_medium), repository)) => {
                self.damaged.push(Damage {
                    repository,
                    layout,
                    detail: e.to_string(),
                    is_passing: e.is_frozen() || is_medium,
                });
                self.cannot_tell(what, question, e);
            }
            Ok((Found::Absent, _)) => self.is_proven |= is_required,
            Ok((Found::Tail(offer), repository)) => {
                self.is_proven |= is_required;
                let is_longer =
                    |(_, other): &(_, Box<Offer>)| offer.valid_end() > other.valid_end();
                if self.longest.as_ref().is_none_or(is_longer) {
                    self.longest = Some((repository, offer));
                }
            }
            // The target's own trouble does not go away with another repository.
            Err(e) if e.code() == Code::TargetWrite => return Err(e),
            Err(e) if is_required || is_proof(e.code()) => self.cannot_tell(what, question, e),
            Err(_) => {}
        }
        Ok(())
    }

    fn cannot_tell(&mut self, what: &Fetch, question: &Question, e: Error) {
        what.inquiry.cannot_tell(&question.name, &e);
        // Two errors compete: one that is a proof is kept.
        if !self.unproven.as_ref().is_some_and(|e| is_proof(e.code())) {
            self.unproven = Some(e);
        }
    }

    fn conclude(&mut self, what: &Fetch, questions: &Questions) -> Result<Fetched> {
        if self.is_delivered {
            return Ok(Fetched::Delivered);
        }
        if let Some(silence) = questions.silence() {
            return Err(what.inquiry.cut_off(silence));
        }
        match (self.unproven.take(), &self.longest) {
            // A repository that could not answer may have more than the others.
            (Some(e), _) => Err(e),
            (None, Some((repository, offer))) if self.is_proven => {
                deliver_tail(what, repository, offer)
            }
            (None, None) if self.is_proven => Ok(Fetched::ProvenAbsent),
            _ => Err(err!(
                Config,
                "no required repository is configured, so absence cannot be proven"
            )),
        }
    }
}

/// The result of asking one repository.
type Asked = Result<(Found, Repository)>;

/// The finding of one repository.
enum Found {
    Delivered,
    /// The whole copy failed its check, or its medium did not give it (`true`).
    Damaged(ClusterLayout, Error, bool),
    Tail(Box<Offer>),
    Absent,
}

fn look_in(what: &Fetch, repository: &Repository) -> Result<Found> {
    let layout = what
        .followed
        .apply(repository, layout_of(what, repository)?)?;
    if is_of_other_server(what, repository, &layout) {
        return Ok(Found::Absent);
    }
    let key = layout.wal_file(what.name);
    let store = repository.store();
    let opened = match store.open(&key) {
        Err(e) => match healed(&key, repository, &e) {
            Some(copy) => Some(copy),
            // A sealed object is proven here already, a plain one where it is read. A mount that fails as a whole shows the error of a
            // medium here, too, and that is none of this object.
            None if e.code() == Code::Damaged => {
                return Ok(Found::Damaged(layout, damaged(&key, repository, e), false));
            }
            None => return Err(e),
        },
        Ok(opened) => opened,
    };
    let object = match opened {
        Some(object) => object,
        None => {
            let instead = without(what, repository, &layout);
            let is_asked_again = match &instead {
                // A network filesystem may have answered from what it remembered of a moment ago; the listings since have made it look.
                Ok(_) => !store.is_remote(),
                // It may have arrived, with what follows it, since it was asked for: then there is no hole, and no tail any more.
                Err(e) => matches!(e.code(), Code::Gap | Code::Damaged),
            };
            let arrived = match is_asked_again {
                true => store.open(&key)?,
                false => None,
            };
            match arrived {
                Some(object) => object,
                None => return instead,
            }
        }
    };
    let hand_out = |object| -> Result<bool> {
        let stored = Stored::open(object, what.name, &layout)?;
        if let WalFileName::Segment(name) = what.name {
            life::check_fetched(&what.target, &stored.container, name)?;
        }
        deliver(what, |sink| stored.read(sink))?;
        is_of_life(what, None)
    };
    let read = match hand_out(object) {
        Err(e) => match healed(&key, repository, &e) {
            Some(copy) => hand_out(copy),
            None => Err(e),
        },
        read => read,
    };
    match read {
        Ok(true) => Ok(Found::Delivered),
        Ok(false) => Ok(Found::Absent),
        Err(e) => {
            // A mount that went away, say, is no damage of this one object.
            let is_medium = e.is_medium();
            let is_known = e.code() == Code::Damaged || is_medium;
            match damaged(&key, repository, e) {
                e if is_known => Ok(Found::Damaged(layout, e, is_medium)),
                e => Err(e),
            }
        }
    }
}

/// Whether the server, or the one that it follows, was promoted to a timeline by itself, and the repository has another one under that number.
///
/// PostgreSQL puts a history that it is given in the place of its own file, and from then on says of its own WAL that it is the other server's: that
/// would be archived behind the other one's. Told that there is none, it reads its own. A segment of the other server holds what never happened here.
///
/// PostgreSQL: src/backend/access/transam/timeline.c, readTimeLineHistory, restoreTimeLineHistoryFiles.
fn is_of_other_server(what: &Fetch, repository: &Repository, layout: &ClusterLayout) -> bool {
    let (WalFileName::History(timeline) | WalFileName::Segment(SegmentName { timeline, .. })) =
        what.name
    else {
        return false;
    };
    // A person who names that very file wants it, or wants it replaced.
    if is_named_itself(&what.target, what.name) {
        return false;
    }
    // A process that fetches many segments from an object store reads it once.
    let read = || sound_history(repository, layout, timeline);
    let is_other = is_other_history(&what.target, what.name, read);
    if is_other {
        what.progress.warn(&format!(
            "this server has another history of timeline {0} than the archive: two servers were promoted to that number. It goes on by its own \"{1}\"",
            timeline.decimal(),
            timeline.history_file_name()
        ));
    }
    is_other
}

/// Whether the target bears the name of the WAL file: then a person or pg_rewind asks. A server names a file that it renames.
pub fn is_named_itself(target: &FilePath, name: WalFileName) -> bool {
    target.file_name().and_then(OsStr::to_str) == Some(&name.to_string())
}

/// Whether the server has another history beside a file than `read` finds in the repository, of the timeline that was asked for. A segment is that of
/// the repository all the same where a later timeline that the server knows leads through it.
fn is_other_history(
    beside: &FilePath,
    name: WalFileName,
    read: impl FnOnce() -> Result<Option<History>>,
) -> bool {
    let timeline = name.timeline();
    if timeline == TimelineId::FIRST {
        return false;
    }
    let Some(own) = own_history(beside, timeline) else {
        return false;
    };
    // A history file that cannot be read is met again, and reported, when it is delivered.
    let Ok(Some(known)) = read() else {
        return false;
    };
    let is_segment = matches!(name, WalFileName::Segment(_));
    !(is_same_history(&own, &known) || is_segment && is_led_through(beside, &known))
}

/// Whether a history of a later timeline beside a file leads through this one.
fn is_led_through(beside: &FilePath, known: &History) -> bool {
    let directory = DataDirectory::of_wal_file(beside);
    let Ok(entries) = std::fs::read_dir(directory.wal()) else {
        return false;
    };
    let later = entries
        .flatten()
        .filter_map(|entry| match entry.file_name().to_str()?.parse() {
            Ok(WalFileName::History(later)) => own_history(beside, later),
            _ => None,
        });
    let mut later = later.filter(|later| later.timeline() > known.timeline());
    later.any(|later| is_ancestor(known, &later))
}

/// Copies a segment that `repository` has whole, every byte checked as when it is delivered, for later; `false` when it is not there, or is not that of
/// the server's history, `beside` which it is put. Nothing is proven by that, and nothing looked for besides.
///
/// # Errors
/// `Damaged`, also for a segment of another size; what the repository and the sink say.
pub fn copy(
    name: SegmentName,
    size: SegmentSize,
    (repository, layout): (&Repository, &ClusterLayout),
    beside: &FilePath,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<bool> {
    let known = || sound_history(repository, layout, name.timeline);
    if is_other_history(beside, WalFileName::Segment(name), known) {
        return Ok(false);
    }
    let key = layout.segment(name);
    let Some(object) = repository.store().open(&key)? else {
        return Ok(false);
    };
    let is_damaged = |e| damaged(&key, repository, e);
    let file = WalFileName::Segment(name);
    let stored = Stored::open(object, file, layout).map_err(is_damaged)?;
    life::check_copied(repository, layout, &stored.container, name)?;
    let raw_bytes = stored.container.identity().raw_bytes;
    if raw_bytes != size.bytes() {
        return Err(err!(
            Damaged,
            "object \"{key}\" holds {raw_bytes} bytes, segments have {}",
            size.bytes()
        ));
    }
    stored.read(sink).map_err(is_damaged)?;
    Ok(true)
}

/// The whole copy of a file in a repository, and known to be what its key says.
struct Stored {
    container: Container,
    name: WalFileName,
}

impl Stored {
    fn open(object: Box<dyn Object>, name: WalFileName, layout: &ClusterLayout) -> Result<Stored> {
        let container = Container::open(object)?;
        check_identity(&container, layout, name)?;
        Ok(Stored { container, name })
    }

    fn read(&self, sink: Sink<'_>) -> Result<()> {
        let mut is_first = true;
        self.container.read_body(&mut |piece| {
            if std::mem::take(&mut is_first) {
                check_first_page(piece, &self.container, self.name)?;
            }
            sink(piece)
        })
    }
}

/// Returns the finding for a file that is not stored: a tail, or proven absence.
fn without(what: &Fetch, repository: &Repository, layout: &ClusterLayout) -> Result<Found> {
    not_deleted(what, repository, layout)?;
    let WalFileName::Segment(segment) = what.name else {
        prove_absence(what, repository, layout)?;
        return Ok(Found::Absent);
    };
    life_begins(segment, repository, layout)?;
    let tail = Offer::find(repository, layout, segment)?.map(Box::new);
    let tail = match tail {
        Some(tail) if tail.goes_on() => return Ok(Found::Tail(tail)),
        tail => tail,
    };
    let gap = match prove_absence(what, repository, layout) {
        Ok(()) => return Ok(tail.map_or(Found::Absent, Found::Tail)),
        Err(e) if e.code() == Code::Gap => e,
        Err(e) => return Err(e),
    };
    // It may have been completed, and the next one begun, since it was read. And recovery to a target may need it, and cannot take
    // its end for that of the WAL.
    match Offer::find(repository, layout, segment)? {
        Some(tail) if tail.goes_on() || has_target(what) => Ok(Found::Tail(Box::new(tail))),
        _ => Err(gap),
    }
}

/// Requires that the file was not deleted: a deleted file is no end of the WAL, even if nothing later is left.
fn not_deleted(what: &Fetch, repository: &Repository, layout: &ClusterLayout) -> Result<()> {
    if !matches!(what.name, WalFileName::Segment(_) | WalFileName::History(_)) {
        return Ok(());
    }
    let key = layout.wal_file(what.name);
    let Some(deleted) = repository.store().deleted(&key)? else {
        return Ok(());
    };
    let at = deleted.at.map(|at| format!(" at {at}")).unwrap_or_default();
    let by = deleted.by.map(|by| format!(" by {by}")).unwrap_or_default();
    let left = match deleted.is_kept {
        Some(true) => "an older version is there",
        _ => "whether an older version is there was not found out",
    };
    Err(err!(
        Gap,
        "\"{}\" was deleted from \"{}\"{by}{at}: a delete marker hides it, {left}",
        what.name,
        repository.store().location()
    )
    .hint("Recovery stops, for the WAL does not end here. Remove the delete marker of the object in the store (list-object-versions shows its version id, delete-object with that id removes it), and see who deletes there."))
}

/// A life of which nothing is stored is no end of the WAL: its first segment was stored before it was followed.
fn life_begins(wanted: SegmentName, repository: &Repository, layout: &ClusterLayout) -> Result<()> {
    let Some(life) = layout.lives().of(wanted) else {
        return Ok(());
    };
    let store = repository.store();
    let home = layout.home_of(wanted);
    for inner in store
        .list(home.prefix())?
        .into_iter()
        .filter(|l| l.is_prefix)
    {
        let prefix = format!("{}/{}", home.prefix(), inner.name);
        if !store.list(&prefix)?.is_empty() {
            return Ok(());
        }
    }
    Err(err!(
        Gap,
        "\"{wanted}\" belongs to the life of the timeline that begins with \"{}\", of which nothing is stored",
        layout.segment(life.segment)
    )
    .hint("Recovery stops, for the WAL does not end here. Bring it back from another repository: pitr repo sync."))
}

fn has_target(what: &Fetch) -> bool {
    DataDirectory::of_wal_file(&what.target).has_recovery_target()
}

fn deliver_tail(what: &Fetch, repository: &Repository, offer: &Offer) -> Result<Fetched> {
    if offer.is_known_to(&what.target)? {
        return Ok(Fetched::ProvenAbsent);
    }
    deliver(what, |sink| offer.read(repository, sink))?;
    let is_of_life = is_of_life(what, Some(offer.valid_end()))?;
    Ok(match (is_of_life, offer.is_complete()) {
        (false, _) => Fetched::ProvenAbsent,
        (true, true) => Fetched::Delivered,
        (true, false) => Fetched::DeliveredTail {
            valid_end: offer.valid_end(),
        },
    })
}

/// The identifier is that of pg_control beside the target; a bare directory has none, then the only registration decides.
fn layout_of(what: &Fetch, repository: &Repository) -> Result<ClusterLayout> {
    if let Some(identifier) = what.system_identifier {
        let layout = ClusterLayout::new(&what.cluster, identifier)?;
        repository.require_readable(&layout)?;
        return Ok(layout);
    }
    match repository.registrations(&what.cluster)?.as_slice() {
        [only] => ClusterLayout::new(&what.cluster, only.system_identifier),
        [] => Err(err!(
            WrongCluster,
            "cluster \"{}\" is not registered in \"{}\"",
            what.cluster,
            repository.store().location()
        )),
        _ => Err(err!(
            WrongCluster,
            "cluster \"{}\" has several system identifiers, and there is no pg_control beside the target",
            what.cluster
        )
        .hint("Give the path inside the data directory; \"pitr wal fetch\" takes --system-identifier.")),
    }
}

/// The object must be the one of its key.
///
/// # Errors
/// `WrongCluster` and `Damaged`, saying what it holds.
pub fn check_identity(
    container: &Container,
    layout: &ClusterLayout,
    name: WalFileName,
) -> Result<()> {
    let identity = container.identity();
    if identity.system_identifier != layout.system_identifier() {
        return Err(err!(
            WrongCluster,
            "it holds WAL of system identifier {}, expected {}",
            identity.system_identifier,
            layout.system_identifier()
        ));
    }
    if container.kind() != Kind::of(name) || identity.name != name.to_string() {
        return Err(err!(
            Damaged,
            "it holds \"{}\"",
            identity.name.escape_debug()
        ));
    }
    let is_wal = matches!(name, WalFileName::Segment(_) | WalFileName::Partial(_));
    if is_wal && identity.raw_bytes != identity.segment_size_bytes {
        return Err(err!(
            Damaged,
            "it holds {} bytes, no whole segment",
            identity.raw_bytes
        ));
    }
    Ok(())
}

type Sink<'s> = &'s mut dyn FnMut(&[u8]) -> Result<()>;

fn deliver(what: &Fetch, read: impl FnOnce(Sink<'_>) -> Result<()>) -> Result<()> {
    let shown = what.target.display();
    let failed = |e: std::io::Error| {
        err!(TargetWrite, "could not write \"{shown}\"").source(e)
            .hint("Recovery stops here and can be started again. Free space or correct the permissions of the data directory.")
    };
    let mut delivery = Delivery::create(&what.target, what.nonce).map_err(failed)?;
    read(&mut |piece| {
        what.progress.advance(piece.len() as u64);
        delivery.write_all(piece).map_err(failed)
    })?;
    delivery.finish().map_err(failed)
}

/// Returns whether the delivered segment is of the life that the server has in its own pg_wal, if that can be
/// determined. A segment of another life is removed from the target.
///
/// PostgreSQL prefers the archive's segment to its own, also when it reads the last record again in a promotion. A
/// standby that gets "absent" as the answer goes on with its own WAL. Archive recovery would take the end of its own
/// WAL for the end of all WAL: it is stopped.
///
/// # Errors
/// `Gap` where archive recovery asks for WAL of another life.
///
/// PostgreSQL: src/backend/access/transam/xlogrecovery.c, `XLogFileReadAnyTLI`, `FinishWalRecovery`.
fn is_of_life(what: &Fetch, end: Option<Lsn>) -> Result<bool> {
    let WalFileName::Segment(name) = what.name else {
        return Ok(true);
    };
    let Some(at) = own::take_back_other(&what.target, name, end) else {
        return Ok(true);
    };
    let told = format!(
        "the archive's segment \"{name}\" differs from the one in pg_wal from {at} on: another server wrote it"
    );
    if !DataDirectory::of_wal_file(&what.target).has("standby.signal") {
        return Err(err!(Gap, "{told}").hint("Recovery stops, for it would go on with the WAL of another life of the cluster. See \"pitr wal conflicts\" and \"pitr timeline list\"."));
    }
    what.progress.warn(&format!(
        "{told}. This server goes on with its own WAL. See \"pitr wal conflicts\" and \"pitr timeline list\""
    ));
    Ok(false)
}

/// The WAL itself must be that of its name: PostgreSQL takes a wrong page address for the end of the WAL, and promotes.
///
/// # Errors
/// `Damaged`.
fn check_first_page(piece: &[u8], container: &Container, name: WalFileName) -> Result<()> {
    let WalFileName::Segment(name) = name else {
        return Ok(());
    };
    let wrong = |e: Error| err!(Damaged, "its first page is not that of \"{name}\"").source(e);
    let page = WalIdentity::read(piece).map_err(wrong)?;
    page.matches(name).map_err(wrong)?;
    let expected = container.identity().system_identifier;
    if page.system_identifier != expected {
        return Err(err!(
            Damaged,
            "its first page has system identifier {}, expected {expected}",
            page.system_identifier
        ));
    }
    Ok(())
}

/// The healed copy of an object that was found damaged, if there is a whole one.
fn healed(key: &Key, repository: &Repository, e: &Error) -> Option<Box<dyn Object>> {
    let store = repository.store();
    let is_damaged = healed::is_of_the_object(e);
    if !is_damaged || store.healed_copies(key).ok()?.is_empty() {
        return None;
    }
    let copy = store.open(key).ok()?;
    let is_another = || store.healed_in_use().iter().any(|(of, _)| of == key);
    copy.filter(|_| is_another())
}

/// A copy that cannot be read is as good as a damaged one: the object was there, and another repository may have a whole one. One that is
/// frozen says itself what is to be done.
fn damaged(key: &Key, repository: &Repository, e: Error) -> Error {
    if !matches!(e.code(), Code::Damaged | Code::Io) || e.is_frozen() {
        return e;
    }
    err!(Damaged, "object \"{key}\" in \"{}\" is damaged", repository.store().location())
        .source(e)
        .hint("Nothing was handed to PostgreSQL. Run \"pitr verify\" to see what else is; a copy in another repository or in a node's pg_wal can replace it.")
}

/// Proves that the end of the WAL, not a hole, is where the file is missing.
///
/// The store has said "absent" in a session that read the marker. Left to show: nothing later on the same path.
///
/// # Errors
/// `Gap` when there is.
fn prove_absence(what: &Fetch, repository: &Repository, layout: &ClusterLayout) -> Result<()> {
    match what.name {
        WalFileName::Segment(segment) => {
            let registration = repository.require_readable(layout)?;
            let size = SegmentSize::new(registration.segment_size_bytes)?;
            no_hole(what, (segment, size), repository, layout)
        }
        WalFileName::History(timeline) => {
            // Answering "absent" would let the server take this number a second time.
            if timeline.get() > 1 && last::of_any(repository, layout, timeline)?.is_some() {
                return Err(err!(
                    Gap,
                    "the history file of timeline {} is missing although its WAL is archived",
                    timeline.decimal()
                )
                .hint("Recovery stops, for the server would take this timeline number twice. Push the file from any node's pg_wal: \"pitr wal push\"."));
            }
            nothing_later(timeline, what, repository, layout)
        }
        WalFileName::Partial(_) | WalFileName::BackupHistory { .. } => Ok(()),
    }
}

/// A later timeline proves that this one was: numbers are given one after the other, and the server would take this one again.
///
/// A timeline below the target timeline that is not among its ancestors is requested only to be copied.
///
/// PostgreSQL: src/backend/access/transam/timeline.c, findNewestTimeLine, restoreTimeLineHistoryFiles.
fn nothing_later(
    timeline: TimelineId,
    what: &Fetch,
    repository: &Repository,
    layout: &ClusterLayout,
) -> Result<()> {
    if timeline == TimelineId::FIRST {
        return Ok(());
    }
    let followed = DataDirectory::of_wal_file(&what.target).target_timeline();
    let is_passed = followed.is_some_and(|followed| timeline < followed);
    for listed in repository.store().list(&layout.wal())? {
        let Ok(later) = listed.name.parse::<TimelineId>() else {
            continue;
        };
        if later <= timeline {
            continue;
        }
        let how = match read_history(repository, layout, later)? {
            Some(history) if history.switch_point(timeline).is_some() => "descends from it",
            _ if is_passed => continue,
            Some(_) => "exists",
            None if last::of_any(repository, layout, later)?.is_some() => "exists",
            None => continue,
        };
        return Err(err!(
            Gap,
            "the history file of timeline {} is missing although timeline {} {how}",
            timeline.decimal(),
            later.decimal()
        )
        .hint("Recovery stops, for the server would take this timeline number twice. Push the file from any node's pg_wal: \"pitr wal push\"."));
    }
    Ok(())
}

fn no_hole(
    what: &Fetch,
    (wanted, size): (SegmentName, SegmentSize),
    repository: &Repository,
    layout: &ClusterLayout,
) -> Result<()> {
    let number = wanted.number(size)?;
    // Before a timeline's own beginning its segments never existed: PostgreSQL asks the parent's next.
    if let Some(history) = read_history(repository, layout, wanted.timeline)?
        && Path::new(history, size).holder(number) != wanted.timeline
    {
        return Ok(());
    }
    if let Some(last) = last::of_any(repository, layout, wanted.timeline)?
        && last.number(size).is_ok_and(|n| n > number)
    {
        return Err(gap(wanted, last, size));
    }
    not_lost(wanted, size, repository, layout)?;
    // Read with the first descendant: most timelines have none.
    let mut counted = None;
    for listed in repository.store().list(&layout.wal())? {
        let Ok(child) = listed.name.parse::<TimelineId>() else {
            continue;
        };
        if child <= wanted.timeline {
            continue;
        }
        let Some(history) = read_history(repository, layout, child)? else {
            continue;
        };
        let leaving = history
            .switch_point(wanted.timeline)
            .zip(history.next_of(wanted.timeline));
        // The segment that holds the switch point need not exist on the parent: it may have ended as a partial.
        let end = number.range(size).end;
        let Some((left, leaver)) = leaving else {
            continue;
        };
        if !Path::new(history.clone(), size).leads_through(wanted.timeline, end) {
            continue;
        }
        let counted = match &mut counted {
            Some(counted) => counted,
            none => none.insert(Counted::read(what, wanted.timeline, repository, layout)?),
        };
        if counted.has(&history)
            && let Some(last) = last::of_any(repository, layout, child)?
        {
            let first = (SegmentName::of(leaver, left, size), size);
            let is_abandoned = || {
                let decisions = Decisions::read(repository, layout)?;
                Ok(decisions.abandoned().any(|d| d.timeline == leaver))
            };
            let parent = wanted.timeline;
            if !life::is_left_in_other(repository, layout, first, parent, &is_abandoned)? {
                return Err(gap(wanted, last, size));
            }
        }
    }
    Ok(())
}

/// The descendants of a timeline whose WAL shows that recovery on it has not come to its end. A plan goes by the same.
enum Counted {
    /// Recovery follows a timeline by its number: what lies on the way to that one.
    Ancestors(TimelineId, Option<History>),
    /// All but these, which were abandoned, and what descends from them.
    AllBut(Vec<TimelineId>),
}

impl Counted {
    fn read(
        what: &Fetch,
        timeline: TimelineId,
        repository: &Repository,
        layout: &ClusterLayout,
    ) -> Result<Counted> {
        if let Some(followed) = DataDirectory::of_wal_file(&what.target).target_timeline() {
            let history = read_history(repository, layout, followed)?;
            return Ok(Counted::Ancestors(followed, history));
        }
        let decisions = Decisions::read(repository, layout)?;
        let abandoned: Vec<_> = decisions.abandoned().map(|d| d.timeline).collect();
        let own = read_history(repository, layout, timeline)?;
        // Recovery on an abandoned timeline has its descendants before it.
        let is_on_abandoned = descends(timeline, own.as_ref(), &abandoned);
        Ok(Counted::AllBut(match is_on_abandoned {
            true => Vec::new(),
            false => abandoned,
        }))
    }

    fn has(&self, descendant: &History) -> bool {
        let child = descendant.timeline();
        match self {
            Counted::Ancestors(followed, history) => {
                child == *followed || history.as_ref().is_some_and(|h| h.contains(child))
            }
            Counted::AllBut(abandoned) => !descends(child, Some(descendant), abandoned),
        }
    }
}

/// Whether a timeline is one of these, or descends from one.
fn descends(timeline: TimelineId, history: Option<&History>, from: &[TimelineId]) -> bool {
    let is_there = |t: &TimelineId| *t == timeline || history.is_some_and(|h| h.contains(*t));
    from.iter().any(is_there)
}

/// WAL that is recorded as lost, or that increments leave out, was there: so this is not the end.
fn not_lost(
    wanted: SegmentName,
    size: SegmentSize,
    repository: &Repository,
    layout: &ClusterLayout,
) -> Result<()> {
    let start = wanted.start_lsn(size)?;
    let subject = event::timeline_subject(wanted.timeline);
    let events = event::read_all(repository.store(), layout, &subject)?;
    let mut lost = event::gaps(&events, layout, wanted.timeline, size);
    lost.extend(increments::hole(
        start,
        &increment::list(repository, layout, wanted)?,
    ));
    match lost.iter().find(|lost| lost.end > start) {
        None => Ok(()),
        Some(lost) => Err(err!(
            Gap,
            "segment \"{wanted}\" is not whole, and WAL from {} to {} is lost",
            lost.start,
            lost.end
        )
        .hint("Recovery stops here instead of promoting with lost data. Plan a target before it: \"pitr plan\"; a base backup taken since leads to what follows.")),
    }
}

fn gap(wanted: SegmentName, later: SegmentName, size: SegmentSize) -> Error {
    let lsn = wanted.start_lsn(size).unwrap_or_default();
    err!(
        Gap,
        "segment \"{wanted}\" is missing although \"{later}\" is archived: WAL is lost from {lsn} on"
    )
    .hint(format!(
        "Recovery stops before {lsn} instead of promoting with lost data. Look for the segment in any node's pg_wal (\"pitr wal backfill --from DIR\"), or plan another target: \"pitr plan\"."
    ))
}
