//! The point where recovery should stop, as options: shared by `plan` and `restore`.

use clap::{ArgGroup, Args};

use crate::error::Result;
use crate::operate::archive_command::shell_word;
use crate::operate::target::{AskedTarget, Point};
use crate::plan::target::{Inclusive, Target};

/// The recovery target; without one, the end of the archived WAL on the latest timeline.
#[derive(Args, Debug, Clone, Default)]
#[command(
    next_help_heading = "Recovery target",
    group(ArgGroup::new("target").args(["target_time", "target_xid", "target_lsn", "target_name", "target_immediate"]))
)]
pub struct TargetArgs {
    /// Stop at this time, such as "2026-11-20 06:40:49+01" or "2026-11-20T05:40:49Z"
    ///
    /// Also "@1795153249" (seconds since 1970). A time without a zone is read in the zone of --timezone, else of the configuration, else of this
    /// host; it is refused when that is ambiguous.
    #[arg(long, value_name = "TIME")]
    pub target_time: Option<String>,

    /// Read --target-time in this zone, such as Europe/Berlin or +01:00
    #[arg(long, value_name = "ZONE", requires = "target_time", conflicts_with_all = ["target_xid", "target_lsn", "target_name", "target_immediate"])]
    pub timezone: Option<String>,

    /// Stop at the end of this transaction
    #[arg(long, value_name = "XID", allow_hyphen_values = true)]
    pub target_xid: Option<String>,

    /// Stop at this WAL position, such as 0/3000060
    #[arg(long, value_name = "LSN")]
    pub target_lsn: Option<String>,

    /// Stop at this restore point (pg_create_restore_point)
    #[arg(long, value_name = "NAME")]
    pub target_name: Option<String>,

    /// Stop as soon as the backup is consistent
    #[arg(long)]
    pub target_immediate: bool,

    /// Stop just before the target instead of just after it
    ///
    /// Means nothing to a restore point and to the end of the backup.
    #[arg(long, requires = "target", conflicts_with_all = ["target_name", "target_immediate"])]
    pub exclusive: bool,

    /// Take the end of the archived WAL for a time or LSN behind it, which is refused otherwise
    #[arg(long, requires = "target", conflicts_with_all = ["target_xid", "target_name", "target_immediate"])]
    pub allow_end: bool,

    /// Follow this timeline: latest, current (the backup's own) or its number
    #[arg(long, value_name = "latest|current|N", default_value = "latest")]
    pub target_timeline: String,

    /// Read the WAL that was archived first, whatever pitr wal resolve decided
    ///
    /// Leads to the life of a timeline that lost its fork: to what was written before a machine was reverted, say.
    #[arg(long)]
    pub as_stored: bool,

    /// Start from this backup instead of the best one
    #[arg(long, value_name = "ID")]
    pub backup: Option<String>,
}

impl TargetArgs {
    /// Returns the options as they are typed, each with a space before it.
    pub fn words(&self) -> String {
        let timeline = Some(self.target_timeline.as_str());
        let values = [
            ("target-time", self.target_time.as_deref()),
            ("timezone", self.timezone.as_deref()),
            ("target-xid", self.target_xid.as_deref()),
            ("target-lsn", self.target_lsn.as_deref()),
            ("target-name", self.target_name.as_deref()),
            ("target-timeline", timeline.filter(|t| *t != "latest")),
            ("backup", self.backup.as_deref()),
        ];
        let switches = [
            ("target-immediate", self.target_immediate),
            ("exclusive", self.exclusive),
            ("allow-end", self.allow_end),
            ("as-stored", self.as_stored),
        ];
        let values = values
            .iter()
            .filter_map(|(name, value)| Some(format!(" --{name} {}", shell_word((*value)?))));
        let switches = switches.iter().filter(|(_, is_set)| *is_set);
        values
            .chain(switches.map(|(name, _)| format!(" --{name}")))
            .collect()
    }

    /// Reads the options, before anything is opened.
    ///
    /// # Errors
    /// `Usage` for what is not a time, zone, transaction id, LSN, name or timeline.
    pub fn parse(&self) -> Result<AskedTarget> {
        let point = if let Some(text) = &self.target_time {
            Point::Time(text.parse()?)
        } else if let Some(text) = &self.target_xid {
            Point::Known(Target::Xid(text.parse()?))
        } else if let Some(text) = &self.target_lsn {
            Point::Known(Target::Lsn(text.parse()?))
        } else if let Some(text) = &self.target_name {
            Point::Known(Target::Name(text.parse()?))
        } else if self.target_immediate {
            Point::Known(Target::Immediate)
        } else {
            Point::Known(Target::End)
        };
        Ok(AskedTarget {
            point,
            inclusive: match self.exclusive {
                true => Inclusive::No,
                false => Inclusive::Yes,
            },
            timeline: self.target_timeline.parse()?,
            timezone: self.timezone.as_deref().map(str::parse).transpose()?,
            backup: self.backup.clone(),
            allow_end: self.allow_end,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;
    use crate::error::Code;
    use crate::plan::target::{RecoveryTarget, TargetTimeline};
    use clap::{Parser, error::ErrorKind};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        target: TargetArgs,
    }

    fn parse(arguments: &[&str]) -> std::result::Result<TargetArgs, ErrorKind> {
        Line::try_parse_from([&["x"], arguments].concat())
            .map(|l| l.target)
            .map_err(|e| e.kind())
    }

    #[test]
    fn options_are_typed_again_as_they_were() {
        for line in [
            "",
            " --target-lsn 0/1 --target-timeline 3 --exclusive",
            " --target-time '2026-11-20 06:00' --timezone UTC --allow-end",
            " --target-immediate --as-stored",
        ] {
            let words: Vec<&str> = match line.split_once('\'') {
                None => line.split_whitespace().collect(),
                Some((before, rest)) => {
                    let (quoted, after) = rest.split_once('\'').unwrap();
                    let before = before.split_whitespace();
                    before
                        .chain([quoted])
                        .chain(after.split_whitespace())
                        .collect()
                }
            };
            assert_eq!(parse(&words).unwrap().words(), line);
        }
    }

    #[test]
    fn one_target_at_most_and_exclusive_needs_one() {
        assert_eq!(parse(&[]).unwrap().target_timeline, "latest");
        assert!(parse(&["--target-immediate"]).unwrap().target_immediate);
        assert!(
            parse(&["--target-lsn", "0/1", "--exclusive"])
                .unwrap()
                .exclusive
        );
        let zoned = ["--target-time", "2026-11-20 06:00", "--timezone", "UTC"];
        assert_eq!(parse(&zoned).unwrap().timezone.as_deref(), Some("UTC"));
        assert_eq!(
            parse(&["--target-xid", "-1"])
                .unwrap()
                .target_xid
                .as_deref(),
            Some("-1")
        );
        for (arguments, kind) in [
            (
                &["--target-time", "x", "--target-lsn", "0/1"][..],
                ErrorKind::ArgumentConflict,
            ),
            (
                &["--target-immediate", "--target-name", "n"],
                ErrorKind::ArgumentConflict,
            ),
            (&["--exclusive"], ErrorKind::MissingRequiredArgument),
            (
                &["--exclusive", "--target-name", "n"],
                ErrorKind::ArgumentConflict,
            ),
            (
                &["--exclusive", "--target-immediate"],
                ErrorKind::ArgumentConflict,
            ),
            (
                &["--exclusive", "--backup", "b"],
                ErrorKind::MissingRequiredArgument,
            ),
            (
                &["--timezone", "UTC", "--target-lsn", "0/1"],
                ErrorKind::ArgumentConflict,
            ),
            (&["--timezone", "UTC"], ErrorKind::MissingRequiredArgument),
        ] {
            assert_eq!(parse(arguments).unwrap_err(), kind, "{arguments:?}");
        }
    }

    #[test]
    fn options_become_a_target() {
        let environment = Environment::new([("TZ", ":Europe/Berlin")], None);
        let resolve = |arguments: &[&str]| {
            let parsed = parse(arguments).unwrap().parse()?;
            parsed.resolve(&environment, None, Some("Europe/Paris"))
        };
        assert_eq!(resolve(&[]).unwrap().target, RecoveryTarget::default());
        let time = resolve(&["--target-time", "2026-11-20 06:00", "--exclusive"]).unwrap();
        assert_eq!(
            time.target,
            RecoveryTarget {
                target: Target::Time("2026-11-20T05:00:00Z".parse().unwrap()),
                inclusive: Inclusive::No,
                timeline: TargetTimeline::Latest,
            }
        );
        assert_eq!(
            time.local_time.as_deref(),
            Some("2026-11-20 06:00:00+01:00")
        );
        let xid = resolve(&["--target-xid", "742", "--target-timeline", "3"]).unwrap();
        assert_eq!(xid.target.target, Target::Xid(742.into()));
        assert_eq!(xid.target.timeline.to_string(), "3");
        assert_eq!(xid.local_time, None);
        for arguments in [
            &["--target-time", "yesterday"][..],
            &["--target-time", "2026-11-20 06:00", "--timezone", "Mars"],
            &["--target-xid", "-1"],
            &["--target-lsn", "16/B374D8480"],
            &["--target-name", ""],
            &["--target-timeline", "latest1"],
            &["--target-time", "2026-10-25 02:30"],
        ] {
            assert_eq!(resolve(arguments).unwrap_err().code(), Code::Usage);
        }
    }

    #[test]
    fn a_configured_zone_that_does_not_exist_is_an_error_of_the_configuration() {
        let parsed = parse(&["--target-time", "2026-11-20 06:00"])
            .unwrap()
            .parse()
            .unwrap();
        let error = parsed
            .resolve(&Environment::default(), Some("Mars/Olympus"), None)
            .unwrap_err();
        assert_eq!(error.code(), Code::Config);
        assert_eq!(
            error.to_string(),
            "read \"timezone\" of the configuration: \"Mars/Olympus\" is not a time zone"
        );
    }
}
