//! Whether a server is the one whose WAL the journal ends with: before anything is taken from it, or acknowledged.
//!
//! A server that was set back to a snapshot writes other WAL under the same positions, and may be past the journal's end when it comes
//! back. So the segment in which the journal ends is asked for once more, without the slot, and compared byte by byte. Without a journal it is the
//! last segment of the repositories that is asked for, and its hash is compared: what a clone writes continues nothing that is archived.

use std::time::Duration;

use tokio::time::timeout;

use super::content::Received;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::journal::{Follower, Segment};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::pg::timeline::{History, TimelineId};
use crate::wire::client::Client;
use crate::wire::replication::{Positions, ReplicationStream, StartReplication, StreamEvent};

/// After this long without a word the connection is given up.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The steps for a server that went back, where it is the cluster from now on.
pub const IF_IT_IS_THE_CLUSTER: &str = "If it is the cluster from now on: select pg_switch_wal() there; pitr wal backfill --from PG_WAL, which the archive refuses; pitr wal conflicts; pitr wal resolve FILE --keep COPY, for the first refused copy; move the journal away; start the receiver; pitr backup.";

/// The result of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    /// The bytes are the same.
    Same,
    /// There is nothing to compare with.
    Nothing,
    /// They could not be had, for this reason.
    Unproven(String),
}

/// Compares what the server sends with the last segment that the journal holds of the server's history. Gives the connection back where it can
/// be used again.
///
/// # Errors
/// `Diverged` when bytes differ; `Unreachable` when the connection is lost; those of [`ReplicationStream::start`], but for WAL that the
/// server has removed.
pub async fn compare(
    client: Client,
    history: &History,
    follower: &Follower,
) -> Result<(Option<Client>, Compared)> {
    // `position` reports WAL that was received behind the place where the history leaves a timeline.
    let is_in_history = |segment: &Segment| {
        let timeline = segment.name.timeline;
        let switch = history.switch_point(timeline);
        segment.from < segment.to
            && history.contains(timeline)
            && switch.is_none_or(|switch| segment.from < switch)
    };
    let Some(segment) = follower.segments().into_iter().rfind(is_in_history) else {
        return Ok((Some(client), Compared::Nothing));
    };
    let name = segment.name;
    let mut held = match Received::open(follower, segment) {
        Ok(held) => held,
        Err(e) => return Ok((Some(client), Compared::Unproven(e.to_string()))),
    };
    let what = StartReplication {
        slot: None,
        timeline: name.timeline,
        from: segment.from,
    };
    let compared = async {
        let mut stream = timed(ReplicationStream::start(client, &what)).await?;
        let compared = compare_stream(&mut stream, &mut held, segment).await?;
        Ok::<_, Error>((stream, compared))
    };
    match compared.await {
        Ok((stream, compared)) => {
            // An error from here on only costs the connection.
            let client = timed(stream.finish()).await.ok().map(|(client, _)| client);
            Ok((client, compared))
        }
        Err(e) if matches!(e.code(), Code::Gap | Code::Server) => {
            Ok((None, Compared::Unproven(e.to_string())))
        }
        Err(e) => Err(e),
    }
}

/// The hash of a whole segment as the server has it; none where it has removed that segment. Gives the connection back where it can be used again.
///
/// # Errors
/// `Unreachable` when the connection is lost; those of [`ReplicationStream::start`], but for WAL that the server has removed.
pub async fn hash(
    client: Client,
    name: SegmentName,
    range: std::ops::Range<Lsn>,
) -> Result<(Option<Client>, std::result::Result<[u8; 32], String>)> {
    let mut hasher = blake3::Hasher::new();
    let mut sink = |wal: &[u8]| {
        hasher.update(wal);
        Ok(())
    };
    match ask_again(client, name.timeline, range, &mut sink).await {
        Ok(client) => Ok((client, Ok(*hasher.finalize().as_bytes()))),
        Err(e) if matches!(e.code(), Code::Gap | Code::Server) => Ok((None, Err(e.to_string()))),
        Err(e) => Err(e),
    }
}

/// Has the server send WAL that it has flushed, without the slot, and hands it to `sink` in order. Gives the connection back where it can be
/// used again.
///
/// # Errors
/// `Gap` when the server has removed it; `Unreachable` when the connection is lost; those of [`ReplicationStream::start`] and of `sink`.
pub async fn ask_again(
    client: Client,
    timeline: TimelineId,
    range: std::ops::Range<Lsn>,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Option<Client>> {
    let what = StartReplication {
        slot: None,
        timeline,
        from: range.start,
    };
    let mut stream = timed(ReplicationStream::start(client, &what)).await?;
    if !read_stream(&mut stream, range, sink).await? {
        return Err(err!(Server, "its timeline ends in that segment"));
    }
    // An error from here on only costs the connection.
    Ok(timed(stream.finish()).await.ok().map(|(client, _)| client))
}

async fn read_stream(
    stream: &mut ReplicationStream,
    range: std::ops::Range<Lsn>,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<bool> {
    let mut at = range.start;
    while at < range.end {
        match timed(stream.next_event()).await? {
            StreamEvent::Data(data) => {
                let wanted = data.end().min(range.end).0.saturating_sub(at.0);
                let sent = usize::try_from(wanted).ok();
                let sent = sent.and_then(|wanted| data.bytes.get(..wanted));
                sink(sent.unwrap_or(&data.bytes))?;
                at = data.end();
            }
            StreamEvent::Keepalive(alive) if alive.reply_requested => {
                // A sign of life that acknowledges nothing.
                let sent = stream.send_status(Positions::default(), false, alive.server_time);
                timed(sent).await?;
            }
            StreamEvent::Keepalive(_) => {}
            StreamEvent::Done => return Ok(false),
            StreamEvent::Shutdown => return Err(err!(Unreachable, "server has shut down")),
        }
    }
    Ok(true)
}

/// The server is not the one whose WAL is archived.
pub fn not_archived(name: SegmentName) -> Error {
    err!(
        Diverged,
        "server has other WAL than is archived as \"{name}\""
    )
    .hint(format!("Nothing was received, nothing acknowledged, and nothing that is there was touched. The server is a clone, or was set back to a snapshot: name the right server in conninfo. {IF_IT_IS_THE_CLUSTER}"))
}

async fn timed<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let silent = || {
        err!(
            Unreachable,
            "server has not said anything for {} s",
            SILENCE_MAX.as_secs()
        )
    };
    timeout(SILENCE_MAX, work)
        .await
        .unwrap_or_else(|_| Err(silent()))
}

async fn compare_stream(
    stream: &mut ReplicationStream,
    held: &mut Received,
    segment: Segment,
) -> Result<Compared> {
    let mut at = segment.from;
    let (mut own, mut unproven) = (Vec::new(), None);
    let mut compare = |sent: &[u8]| {
        own.resize(sent.len(), 0);
        if let Err(e) = held.fill(&mut own) {
            unproven = Some(e.to_string());
            return Err(e);
        }
        if let Some(offset) = own.iter().zip(sent).position(|(a, b)| a != b) {
            return Err(diverged(segment, Lsn(at.0 + offset as u64)));
        }
        at.0 += sent.len() as u64;
        Ok(())
    };
    // A timeline that ends before was the same up to there.
    let read = read_stream(stream, segment.from..segment.to, &mut compare).await;
    match unproven {
        Some(why) => Ok(Compared::Unproven(why)),
        None => read.map(|_| Compared::Same),
    }
}

fn diverged(segment: Segment, at: Lsn) -> Error {
    err!(
        Diverged,
        "server has other WAL than was received of timeline {}, from {at} on",
        segment.name.timeline.decimal()
    )
    .hint(format!("Nothing was received, nothing acknowledged, and nothing that is there was touched. The server was set back to a snapshot, or is a clone: name the right server in conninfo. {IF_IT_IS_THE_CLUSTER}"))
}
