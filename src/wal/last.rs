//! The last segment of a timeline that is stored, by few listings.

use crate::error::Result;
use crate::pg::segment::{SegmentName, WalFileName};
use crate::pg::timeline::TimelineId;
use crate::repo::layout::{ClusterLayout, Home};
use crate::repo::repository::Repository;
use crate::wal::increment;

/// Returns the last whole segment of a timeline.
///
/// # Errors
/// Errors of the store.
pub fn whole(
    repository: &Repository,
    layout: &ClusterLayout,
    timeline: TimelineId,
) -> Result<Option<SegmentName>> {
    Names::list(repository, layout, timeline)?.last_whole()
}

/// Returns the last segment of a timeline of which anything is stored: all of it, a partial, or an increment.
///
/// # Errors
/// Errors of the store.
pub fn of_any(
    repository: &Repository,
    layout: &ClusterLayout,
    timeline: TimelineId,
) -> Result<Option<SegmentName>> {
    let names = Names::list(repository, layout, timeline)?;
    Ok(names.last_whole()?.max(names.last_part()?))
}

/// The directories in the homes of a timeline, one level deep.
struct Names<'a> {
    repository: &'a Repository,
    layout: &'a ClusterLayout,
    timeline: TimelineId,
    /// Directories of whole segments, ascending by log id.
    logs: Vec<(u32, Home)>,
    /// Homes with partials, and homes with increments.
    partials: Vec<Home>,
    open: Vec<Home>,
}

impl Names<'_> {
    fn list<'a>(
        repository: &'a Repository,
        layout: &'a ClusterLayout,
        timeline: TimelineId,
    ) -> Result<Names<'a>> {
        let mut names = Names {
            repository,
            layout,
            timeline,
            logs: Vec::new(),
            partials: Vec::new(),
            open: Vec::new(),
        };
        for home in layout.homes(timeline) {
            for listed in repository.store().list(home.prefix())? {
                match listed.name.as_str() {
                    "partial" => names.partials.push(home.clone()),
                    "open" => names.open.push(home.clone()),
                    log if listed.is_prefix && log.len() == 8 => {
                        let log = u32::from_str_radix(log, 16).ok();
                        names.logs.extend(log.map(|log| (log, home.clone())));
                    }
                    _ => {}
                }
            }
        }
        names.logs.sort_by_key(|(log, _)| *log);
        Ok(names)
    }

    /// The segments below a prefix that belong to this home.
    fn own(&self, home: &Home, prefix: &str) -> Result<Vec<SegmentName>> {
        let listed = self.repository.store().list(prefix)?;
        let names = listed
            .iter()
            .filter_map(|l| l.name.parse::<SegmentName>().ok());
        let is_own =
            |n: &SegmentName| n.timeline == self.timeline && self.layout.home_of(*n) == *home;
        Ok(names.filter(is_own).collect())
    }

    fn last_whole(&self) -> Result<Option<SegmentName>> {
        let mut last = None;
        for (log, home) in self.logs.iter().rev() {
            // Another home may have later segments of the same log id.
            if last.is_some_and(|last: SegmentName| last.log > *log) {
                break;
            }
            let names = self.own(home, &home.log(*log))?;
            last = last.max(names.into_iter().filter(|n| n.log == *log).max());
        }
        Ok(last)
    }

    fn last_part(&self) -> Result<Option<SegmentName>> {
        let mut parts = Vec::new();
        for home in &self.partials {
            parts.extend(self.own(home, &home.partials())?);
        }
        for home in &self.open {
            parts.extend(self.own(home, &home.open_segments())?);
        }
        parts.sort_unstable();
        while let Some(name) = parts.pop() {
            // A directory whose increments were all deleted says nothing.
            let partial = self.layout.wal_file(WalFileName::Partial(name));
            if self.repository.store().head(&partial)?.is_some()
                || !increment::list(self.repository, self.layout, name)?.is_empty()
            {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}
