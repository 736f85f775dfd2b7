//! What the repositories hold of the WAL that is received, as far as streaming has to know; and the gaps that are recorded in them.

use std::collections::BTreeSet;

use super::journal::Position;
use super::position::Gap;
use crate::config;
use crate::err;
use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::timeline::TimelineId;
use crate::repo;
use crate::repo::event::{self, Event};
use crate::repo::increment::{self, OpenSegment};
use crate::repo::layout::ClusterLayout;
use crate::repo::repository::{Registration, Repository};
use crate::repo::run::Run;

/// The cluster that is received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its name in configuration and repositories.
    pub cluster: String,
    /// Of pg_control.
    pub system_identifier: u64,
    /// Segment size.
    pub segment_size: SegmentSize,
    /// PostgreSQL major.
    pub major: u32,
}

/// The repositories that count: the required ones, or all when none is.
pub struct Holdings {
    repositories: Vec<Repository>,
    layout: ClusterLayout,
    identity: Identity,
}

/// What is at the end of the repositories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reach {
    /// Where the last whole segment ends, of the repository that reaches least far.
    pub end: Option<Position>,
    /// The newest timeline of which any has something.
    pub newest_timeline: Option<TimelineId>,
}

/// The repositories that count.
fn counting(repositories: &[config::Repository]) -> Vec<&config::Repository> {
    let required: Vec<_> = repositories.iter().filter(|r| r.required).collect();
    match required.is_empty() {
        true => repositories.iter().collect(),
        false => required,
    }
}

fn open(repository: &config::Repository, nonce: u64) -> Result<Repository> {
    repo::open(&repository.location, nonce)
        .map_err(|e| e.context(format!("open repository \"{}\"", repository.name)))
}

/// The cluster as the first repository that can be read has it registered; `None` when the name has had several clusters, and only
/// the server can tell which it is.
///
/// # Errors
/// `NotFound` when no cluster of this name is registered; when no repository can be read, why the first one cannot.
pub fn registered(
    repositories: &[config::Repository],
    cluster: &str,
    nonce: u64,
) -> Result<Option<Identity>> {
    let mut failure = None;
    for configured in counting(repositories) {
        let read = open(configured, nonce).and_then(|r| r.registrations(cluster));
        match read {
            Ok(registrations) => return identity(&registrations, cluster),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    Err(failure.unwrap_or_else(|| err!(Config, "no repository is configured")))
}

fn identity(registrations: &[Registration], cluster: &str) -> Result<Option<Identity>> {
    match registrations {
        [] => Err(err!(
            NotFound,
            "cluster \"{cluster}\" is not registered in the repository"
        )
        .hint("Run \"pitr init\" first.")),
        [only] => Ok(Some(Identity {
            cluster: only.name.clone(),
            system_identifier: only.system_identifier,
            segment_size: SegmentSize::new(only.segment_size_bytes)?,
            major: only.major,
        })),
        _ => Ok(None),
    }
}

impl Holdings {
    /// Opens every repository that counts and checks that the cluster is registered.
    ///
    /// # Errors
    /// `WrongCluster` when it is not; what the stores say.
    pub fn open(
        repositories: &[config::Repository],
        identity: &Identity,
        nonce: u64,
    ) -> Result<Holdings> {
        let layout = ClusterLayout::new(&identity.cluster, identity.system_identifier)?;
        let mut opened = Vec::new();
        for configured in counting(repositories) {
            let repository = open(configured, nonce)?;
            repository.require(&layout)?;
            opened.push(repository);
        }
        if opened.is_empty() {
            return Err(err!(Config, "no repository is configured"));
        }
        Ok(Holdings {
            repositories: opened,
            layout,
            identity: identity.clone(),
        })
    }

    /// Where the repositories end.
    ///
    /// # Errors
    /// What the stores say.
    pub fn reach(&self) -> Result<Reach> {
        let mut reach = Reach::default();
        for (index, repository) in self.repositories.iter().enumerate() {
            let timelines = self.timelines(repository)?;
            reach.newest_timeline = reach.newest_timeline.max(timelines.last().copied());
            let mut end = None;
            for timeline in timelines.into_iter().rev() {
                end = self.last_segment_end(repository, timeline)?;
                if end.is_some() {
                    break;
                }
            }
            reach.end = match index {
                0 => end,
                _ => reach.end.min(end),
            };
        }
        Ok(reach)
    }

    fn timelines(&self, repository: &Repository) -> Result<BTreeSet<TimelineId>> {
        let listed = repository.store().list(&self.layout.wal())?;
        Ok(listed.iter().filter_map(|l| l.name.parse().ok()).collect())
    }

    fn last_segment_end(
        &self,
        repository: &Repository,
        timeline: TimelineId,
    ) -> Result<Option<Position>> {
        let store = repository.store();
        let mut logs: Vec<u32> = store
            .list(&self.layout.timeline(timeline))?
            .iter()
            .filter(|l| l.is_prefix && l.name.len() == 8)
            .filter_map(|l| u32::from_str_radix(&l.name, 16).ok())
            .collect();
        logs.sort_unstable();
        for log in logs.into_iter().rev() {
            let names = store.list(&self.layout.log(timeline, log))?;
            let names = names.iter().filter_map(|l| l.name.parse().ok());
            let last: Option<SegmentName> = names
                .filter(|n: &SegmentName| n.timeline == timeline && n.log == log)
                .max();
            if let Some(last) = last {
                let size = self.identity.segment_size;
                let lsn = last.number(size)?.range(size).end;
                return Ok(Some(Position { timeline, lsn }));
            }
        }
        Ok(None)
    }

    /// How far, from its start, every repository has a segment.
    ///
    /// # Errors
    /// What the stores say.
    pub fn covered(&self, name: SegmentName) -> Result<Lsn> {
        let segment = OpenSegment {
            name,
            size: self.identity.segment_size,
            major: self.identity.major,
        };
        let range = segment.range()?;
        let mut least = range.end;
        for repository in &self.repositories {
            if repository
                .store()
                .head(&self.layout.segment(name))?
                .is_some()
            {
                continue;
            }
            let increments = increment::list(repository, &self.layout, name)?;
            let run = Run::of(segment, &increments)?;
            least = least.min(run.map_or(range.start, |run| run.end()));
        }
        Ok(least)
    }

    /// Records a gap in every repository, unless it is recorded already. `event` has the fields of every event.
    ///
    /// # Errors
    /// What the stores say.
    pub fn record_gap(&self, gap: &Gap, event: &Event, nonce: u64) -> Result<()> {
        let subject = format!("wal-{}", gap.timeline);
        let event = Event {
            event: "gap".to_owned(),
            subject: subject.clone(),
            from_lsn: Some(gap.from),
            to_lsn: Some(gap.to),
            ..event.clone()
        };
        for repository in &self.repositories {
            let store = repository.store();
            let known = event::read_all(store, &self.layout, &subject)?;
            let same = |e: &Event| {
                e.event == event.event && (e.from_lsn, e.to_lsn) == (event.from_lsn, event.to_lsn)
            };
            if !known.iter().any(|recorded| same(&recorded.event)) {
                event::record(store, &self.layout, &event, nonce)
                    .map_err(|e: Error| e.context("record a gap"))?;
            }
        }
        Ok(())
    }
}
