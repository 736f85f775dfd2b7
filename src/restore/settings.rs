//! Settings that a restored directory is started with, and those it brought along that run code.
//!
//! PostgreSQL: src/backend/access/transam/xlogrecovery.c. In 13–17 assigning any recovery_target* while *another* one is set is an error,
//! even when the new value is empty; lines count in their order, the last of each name. So the targets that are not wanted are cleared
//! first, and the wanted one stands last.

use std::collections::BTreeMap;

use crate::archive::guard::WrittenSettings;
use crate::archive::server_conf::{Configuration, Line};
use crate::pg::conf::{self, Setting};
use crate::pg::parameters::Parameters;
use crate::pg::timeline::TimelineId;

/// PostgreSQL allows one of these to be set.
const TARGETS: &[&str] = &[
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

/// Settings that name a command or a library.
const RUNNING_CODE: &[&str] = &[
    "archive_command",
    "archive_library",
    "archive_cleanup_command",
    "dynamic_library_path",
    "extension_control_path",
    "jit_provider",
    "local_preload_libraries",
    "oauth_validator_libraries",
    "recovery_end_command",
    "restore_command",
    "session_preload_libraries",
    "shared_preload_libraries",
    "ssl_passphrase_command",
];

/// The configuration that came with the backup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Brought {
    /// postgresql.conf with what it includes, then postgresql.auto.conf.
    pub configuration: Configuration,
    /// Content of postgresql.auto.conf.
    pub auto: Vec<u8>,
    /// Whether the latter is there.
    pub has_auto: bool,
    /// Whether postgresql.conf is in the data directory; on some systems it lies elsewhere.
    pub has_main: bool,
    /// Likewise pg_hba.conf.
    pub has_hba: bool,
    /// Likewise pg_ident.conf.
    pub has_ident: bool,
    /// Whether there are tablespaces in place (15 and later).
    pub in_place_tablespaces: bool,
    /// Whether the cluster seems to have subscriptions of logical replication.
    pub has_subscriptions: bool,
}

/// The bytes of a whole number with a unit, MB without one.
///
/// PostgreSQL: src/backend/utils/misc/guc.c, `memory_unit_conversion_table`.
fn megabytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let shift = match unit.trim() {
        "B" => 0,
        "kB" => 10,
        "MB" | "" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1u64 << shift)
}

impl Brought {
    /// The value that counts, where one is set.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.configuration.value_of(name)
    }

    /// The value of a setting that is wanted: a parameter that the configuration has larger stays as it is there.
    fn at_least<'a>(&'a self, name: &str, wanted: &'a str) -> &'a str {
        let number = |text: &str| text.parse::<u32>().ok();
        match self.value(name).filter(|_| Parameters::is_name(name)) {
            Some(own) if number(own) > number(wanted) => own,
            _ => wanted,
        }
    }

    /// WAL that a server with this configuration may keep in pg_wal while it recovers, where it says so: restartpoints recycle beyond `max_wal_size`,
    /// and leave `wal_keep_size`.
    pub fn kept_wal_bytes(&self) -> Option<u64> {
        let bytes = ["max_wal_size", "wal_keep_size"].map(|name| megabytes(self.value(name)?));
        // No server takes more.
        bytes
            .into_iter()
            .flatten()
            .max()
            .map(|most| most.min(1 << 51))
    }

    /// A parameter as the configuration has it; PostgreSQL's own where it is not set.
    fn parameter(&self, name: &str) -> u32 {
        let own = self.value(name).and_then(|v| v.parse().ok());
        let defaults = Parameters::defaults();
        let default = || defaults.iter().find(|(n, _)| *n == name).map(|(_, v)| v);
        own.or_else(default).unwrap_or(0)
    }

    fn is_set(&self, name: &str) -> bool {
        self.value(name).is_some_and(|v| !v.is_empty())
    }

    /// Settings that run code once the server starts, as `file: name = 'value'`.
    pub fn running_code(&self) -> Vec<String> {
        running_code(&self.configuration)
    }
}

/// The settings of a configuration that run code, as `file: name = 'value'`.
pub fn running_code(configuration: &Configuration) -> Vec<String> {
    let lines = configuration.lines.iter();
    lines
        .filter(|line| {
            let Setting { name, value } = &line.setting;
            RUNNING_CODE.contains(&name.as_str()) && !value.is_empty()
        })
        .map(shown)
        .collect()
}

/// A line as people read it.
pub fn shown(line: &Line) -> String {
    let Setting { name, value } = &line.setting;
    format!("{}: {name} = '{value}'", line.file.display())
}

/// Completes the settings of a plan with those that the configuration which comes along makes necessary.
///
/// Settings that would spoil the recovery are neutralised: other targets, archive_cleanup_command (it would delete from
/// the archive that the copy came from) and recovery_min_apply_delay (it holds an archive recovery back as well).
///
/// If databases lie without content, replay meets pages of zeros that no record initialises. PostgreSQL takes them for
/// lost and panics as soon as it is consistent. So recovery only warns of such references
/// (src/backend/access/transam/xlogutils.c, `log_invalid_page`).
pub fn complete(
    settings: &mut BTreeMap<String, String>,
    (is_adopted, is_partial): (bool, bool),
    brought: &Brought,
) {
    for (name, value) in settings.iter_mut() {
        *value = brought.at_least(name, value).to_owned();
    }
    let mut add = |name: &str, value: &str| {
        let known = settings.entry(name.to_owned());
        known.or_insert_with(|| value.to_owned());
    };
    TARGETS.iter().for_each(|name| add(name, ""));
    add("archive_cleanup_command", "");
    if brought.in_place_tablespaces {
        add(IN_PLACE.0, IN_PLACE.1);
    }
    if is_partial {
        add("ignore_invalid_pages", "on");
    }
    // A configuration outside of the data directory, which is not seen here, may have it.
    add("recovery_min_apply_delay", "0");
    if !is_adopted {
        add(ARCHIVE_MODE, "off");
    }
}

/// The settings of a plan in the order in which they are written.
pub fn of_restore(settings: &BTreeMap<String, String>) -> WrittenSettings {
    let mut written = WrittenSettings::default();
    let is_target = |name: &str| TARGETS.contains(&name);
    let rank = |name: &str, value: &str| (!is_target(name), is_target(name) && !value.is_empty());
    let mut all: Vec<_> = settings.iter().collect();
    all.sort_by_key(|(name, value)| rank(name, value));
    for (name, value) in all {
        let list = match name == ARCHIVE_MODE {
            true => &mut written.until_adopted,
            false => &mut written.until_recovery_ended,
        };
        list.push(Setting::new(name, value));
    }
    written
}

/// Leaves out what `auto`, the operator's own postgresql.auto.conf, has with the same value: taken away with ours, the operator's line would go, too.
/// Targets are all written, for their order counts.
pub fn leave_own(written: &mut WrittenSettings, auto: &[u8]) {
    let own = conf::settings(auto).into_iter();
    let own: BTreeMap<_, _> = own.map(|s| (s.name, s.value)).collect();
    for list in [
        &mut written.until_recovery_ended,
        &mut written.until_adopted,
    ] {
        list.retain(|Setting { name, value }| {
            TARGETS.contains(&name.as_str()) || own.get(name) != Some(value)
        });
    }
}

/// The setting that keeps a copy from archiving until it is adopted.
const ARCHIVE_MODE: &str = "archive_mode";

/// A server without it panics as soon as it is consistent: "unexpected directory entry … found in pg_tblspc/" (measured on 15 and 17).
const IN_PLACE: (&str, &str) = ("allow_in_place_tablespaces", "on");

/// How a standby is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbySettings<'a> {
    /// `primary_conninfo`.
    pub primary_conninfo: &'a str,
    /// `primary_slot_name`.
    pub slot: Option<&'a str>,
    /// `restore_command`.
    pub restore_command: &'a str,
    /// `recovery_target_timeline`, where it is not the latest.
    pub timeline: Option<TimelineId>,
    /// Values that the WAL on the way requires of the settings, by name.
    pub parameters: &'a BTreeMap<String, u32>,
}

/// The settings of a standby; they stay, for it is the cluster.
pub fn of_standby(standby: &StandbySettings<'_>, brought: &Brought) -> Vec<Setting> {
    let mut settings = Vec::new();
    // Settings that an earlier restore or another standby has left behind.
    for name in TARGETS.iter().chain(&["recovery_end_command"]) {
        if brought.is_set(name) {
            settings.push(Setting::new(*name, ""));
        }
    }
    if brought.in_place_tablespaces {
        settings.push(Setting::new(IN_PLACE.0, IN_PLACE.1));
    }
    for (name, wanted) in standby.parameters {
        // They stay behind the recovery, so only those are written of which the configuration has less.
        if brought.parameter(name) < *wanted {
            settings.push(Setting::new(name, wanted.to_string()));
        }
    }
    let timeline = standby.timeline.map(|t| t.decimal().to_string());
    let timeline = timeline.as_deref().unwrap_or("latest");
    settings.push(Setting::new("recovery_target_timeline", timeline));
    settings.push(Setting::new("restore_command", standby.restore_command));
    settings.push(Setting::new("primary_conninfo", standby.primary_conninfo));
    match standby.slot {
        Some(slot) => settings.push(Setting::new("primary_slot_name", slot)),
        // A backup of another standby brings that one's slot.
        None if brought.is_set("primary_slot_name") => {
            settings.push(Setting::new("primary_slot_name", ""));
        }
        None => {}
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::guard::AUTO_CONF;

    /// A configuration of these lines.
    fn brought(main: &[&str], auto: &[&str]) -> Brought {
        let mut brought = Brought::default();
        for (file, lines) in [("postgresql.conf", main), (AUTO_CONF, auto)] {
            for setting in conf::settings(lines.join("\n").as_bytes()) {
                let file = file.into();
                brought.configuration.lines.push(Line { file, setting });
            }
        }
        brought
    }

    #[test]
    fn the_configuration_says_how_much_wal_recovery_keeps() {
        let kept = |lines: &[&str]| brought(lines, &[]).kept_wal_bytes();
        assert_eq!(kept(&["max_wal_size = 200GB"]), Some(200 << 30));
        assert_eq!(
            kept(&["max_wal_size = '2 GB'", "wal_keep_size = 4096"]),
            Some(4 << 30)
        );
        assert_eq!(kept(&["wal_keep_size = 512kB"]), Some(512 << 10));
        // A value that PostgreSQL reads otherwise, or refuses, says nothing.
        for other in ["1.5GB", "0x10", "GB", "", "7XB", "99999999999999999999"] {
            assert_eq!(
                kept(&[&format!("max_wal_size = '{other}'")]),
                None,
                "{other}"
            );
        }
        assert_eq!(kept(&["max_wal_size = 9999999TB"]), Some(1 << 51));
        assert_eq!(kept(&[]), None);
    }

    #[test]
    fn the_wanted_target_stands_last_and_the_others_are_cleared() {
        let mut wanted: BTreeMap<String, String> = [
            ("recovery_target_lsn", "0/5"),
            ("recovery_target_action", "promote"),
            ("restore_command", "x"),
        ]
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .into();
        let brought = brought(&["recovery_min_apply_delay = 5min"], &[]);
        let mut adopted = wanted.clone();
        complete(&mut wanted, (false, false), &brought);
        let written = of_restore(&wanted);
        let lines: Vec<String> = written
            .until_recovery_ended
            .iter()
            .map(|s| s.line().unwrap())
            .collect();
        assert_eq!(
            lines,
            [
                "recovery_target = ''",
                "recovery_target_name = ''",
                "recovery_target_time = ''",
                "recovery_target_xid = ''",
                "recovery_target_lsn = '0/5'",
                "archive_cleanup_command = ''",
                "recovery_min_apply_delay = '0'",
                "recovery_target_action = 'promote'",
                "restore_command = 'x'",
            ]
        );
        assert_eq!(written.until_adopted, [Setting::new("archive_mode", "off")]);
        let known = wanted.clone();
        complete(&mut wanted, (false, false), &brought);
        assert_eq!(
            wanted, known,
            "a restore that is resumed has the same settings"
        );
        complete(&mut adopted, (true, true), &brought);
        assert!(of_restore(&adopted).until_adopted.is_empty());
    }

    #[test]
    fn r207_recovery_is_never_held_back_by_the_delay_of_another_host() {
        let mut wanted = BTreeMap::new();
        complete(&mut wanted, (false, false), &Brought::default());
        let delay = wanted.get("recovery_min_apply_delay");
        assert_eq!(delay.map(String::as_str), Some("0"));
    }

    #[test]
    fn r183_lines_of_the_operator_are_not_taken_for_ours() {
        let set = |name: &str, value: &str| Setting::new(name, value);
        let all = WrittenSettings {
            until_recovery_ended: vec![set("recovery_target_lsn", "0/5"), set("a", "1")],
            until_adopted: vec![set(ARCHIVE_MODE, "off")],
            ..WrittenSettings::default()
        };
        let left = |auto: &str| {
            let mut written = all.clone();
            leave_own(&mut written, auto.as_bytes());
            let names = [written.until_recovery_ended, written.until_adopted].concat();
            names.into_iter().map(|s| s.name).collect::<Vec<_>>()
        };
        let names = ["recovery_target_lsn", "a", "archive_mode"];
        assert_eq!(left("b = 1\na = 2\n"), names);
        // The last line counts.
        assert_eq!(left("a = 1\na = 2\n"), names);
        assert_eq!(left("a = 2\na = '1'\narchive_mode = off\n"), names[..1]);
        assert_eq!(left("recovery_target_lsn = '0/5'\n"), names);
    }

    #[test]
    fn a_standby_sheds_what_another_one_was_told() {
        let brought = brought(
            &["shared_preload_libraries = 'x'", "archive_command = ''"],
            &[
                "primary_slot_name = 'other'",
                "recovery_target_xid = '7'",
                "primary_conninfo = 'host=a'",
            ],
        );
        let standby = StandbySettings {
            primary_conninfo: "host=b",
            slot: None,
            restore_command: "r",
            timeline: None,
            parameters: &BTreeMap::new(),
        };
        let names: Vec<String> = of_standby(&standby, &brought)
            .iter()
            .map(|s| format!("{}={}", s.name, s.value))
            .collect();
        assert_eq!(
            names,
            [
                "recovery_target_xid=",
                "recovery_target_timeline=latest",
                "restore_command=r",
                "primary_conninfo=host=b",
                "primary_slot_name=",
            ]
        );
        let asked = [("max_connections", 150), ("max_wal_senders", 10)];
        let asked = asked.map(|(n, v)| (n.to_owned(), v)).into();
        let raised = StandbySettings {
            parameters: &asked,
            ..standby.clone()
        };
        // Nobody sets the other one, and PostgreSQL's own value is enough.
        let more = Setting::new("max_connections", "150");
        let all = of_standby(&raised, &brought);
        assert!(all.contains(&more) && !all.iter().any(|s| s.name == "max_wal_senders"));
        let numbered = StandbySettings {
            timeline: TimelineId::new(10),
            ..standby
        };
        let number = Setting::new("recovery_target_timeline", "10");
        assert!(of_standby(&numbered, &brought).contains(&number));
        assert_eq!(
            brought.running_code(),
            ["postgresql.conf: shared_preload_libraries = 'x'"]
        );
    }
}
