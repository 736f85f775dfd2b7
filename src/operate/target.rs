//! A recovery target as it is asked for, and as it is understood once the zones are known.

use std::path::Path;

use crate::config::Environment;
use crate::error::{Code, Error, Result};
use crate::plan::target::{Inclusive, RecoveryTarget, Target, TargetTimeline};
use crate::plan::target_time::{TargetTime, WrittenTime, Zone, Zones};

/// A target whose words are right; a time may still depend on zones.
#[derive(Debug, Clone)]
pub struct AskedTarget {
    /// The point at which recovery stops.
    pub point: Point,
    /// Whether the target itself is replayed.
    pub inclusive: Inclusive,
    /// The timeline to follow.
    pub timeline: TargetTimeline,
    /// The zone of a time without one.
    pub timezone: Option<Zone>,
    /// The backup to start from, where the operator names it.
    pub backup: Option<String>,
    /// Whether a time or position behind the archived WAL means its end.
    pub allow_end: bool,
}

/// A point as it is written.
#[derive(Debug, Clone)]
pub enum Point {
    /// A time, perhaps without a zone.
    Time(WrittenTime),
    /// Any other target.
    Known(Target),
}

/// The recovery target, and the time as it was meant, to show it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedTarget {
    pub target: RecoveryTarget,
    /// The time of the target in the zone it was written in, where that is not UTC.
    pub local_time: Option<String>,
}

impl AskedTarget {
    /// The point itself, on the latest timeline, from the best backup.
    pub fn at(point: Point) -> AskedTarget {
        AskedTarget {
            point,
            inclusive: Inclusive::Yes,
            timeline: TargetTimeline::Latest,
            timezone: None,
            backup: None,
            allow_end: false,
        }
    }

    /// Finds the moment of a target time; other targets stay as they are.
    ///
    /// `configured` is the configuration's `timezone`, `cluster` the cluster's own as its backups record it.
    ///
    /// # Errors
    /// `Usage` with both readings when the time has two, or none; `Config` when the configured zone does not exist.
    pub fn resolve(
        &self,
        environment: &Environment,
        configured: Option<&str>,
        cluster: Option<&str>,
    ) -> Result<ResolvedTarget> {
        let (target, local_time) = match &self.point {
            Point::Known(target) => (target.clone(), None),
            Point::Time(written) => {
                let zones = Zones {
                    given: self.timezone,
                    configured: configured.map(configured_zone).transpose()?,
                    host: host_zone(environment),
                    cluster,
                };
                let time: TargetTime = written.resolve(&zones)?;
                let local = time
                    .zone
                    .show(time.at)
                    .filter(|shown| !shown.ends_with("+00:00"));
                (Target::Time(time.at), local)
            }
        };
        Ok(ResolvedTarget {
            target: RecoveryTarget {
                target,
                inclusive: self.inclusive,
                timeline: self.timeline,
            },
            local_time,
        })
    }
}

/// Reads the `timezone` of the configuration.
///
/// # Errors
/// `Config` when there is no such zone.
pub fn configured_zone(text: &str) -> Result<Zone> {
    text.parse().map_err(|e: Error| {
        e.with_code(Code::Config)
            .context("read \"timezone\" of the configuration")
    })
}

/// The zone of this host: `$TZ`, else that of /etc/localtime; none when it has no name here.
pub(super) fn host_zone(environment: &Environment) -> Option<Zone> {
    if let Some(tz) = environment.get("TZ") {
        let tz = tz.to_str()?;
        return Zone::from_setting(tz.strip_prefix(':').unwrap_or(tz));
    }
    // A host without the file has UTC: the C library's rule. One that has it under no name stays unknown.
    if !Path::new("/etc/localtime").exists() {
        return Zone::from_setting("UTC");
    }
    let name = iana_time_zone::get_timezone().ok()?;
    Zone::from_setting(&name)
}
