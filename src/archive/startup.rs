//! The activity of a running server's startup process, as its title shows it: whether recovery has ended, and a
//! timeline is being chosen.
//!
//! A standby whose stream runs is promoted before it asks for any file, and the file `promote` is gone by then. Only
//! the title distinguishes a promotion from one of the standby's checks for later timelines. While the server recovers,
//! the title names a segment. After recovery has ended it does not, from PostgreSQL 15 on (measured; 13 and 14 leave
//! the last segment there).
//!
//! PostgreSQL: src/backend/access/transam/xlog.c, StartupXLOG ("Reset ps status display", before findNewestTimeLine); xlogrecovery.c,
//! XLogFileRead ("waiting for %s", "recovering %s").

use std::path::Path;

use super::pid_file::PidFile;
use super::server_conf;

/// Whether it is seen that the server has ended recovery, and looks for the number of a timeline that nobody has taken.
///
/// Up to PostgreSQL 14, where titles are off, or where /proc shows no children, nothing is seen.
pub fn is_choosing_timeline(root: &Path) -> bool {
    let file = PidFile::read(root).unwrap_or_default();
    let Some(postmaster) = consistent(&file) else {
        return false;
    };
    let path = format!("/proc/{postmaster}/task/{postmaster}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    let is_plain = |pid: &str| {
        let title = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        is_plain_startup(&String::from_utf8_lossy(&title))
    };
    children.split_whitespace().any(is_plain)
        && server_conf::value_of(root, "update_process_title").is_none_or(|v| is_on(&v))
}

/// The process id of a server that has reached consistency; before that the title says nothing.
fn consistent(file: &PidFile) -> Option<u32> {
    let pid = u32::try_from(file.pid?).ok()?;
    matches!(file.status.as_deref()?, "ready" | "standby").then_some(pid)
}

/// `postgres: startup`, also behind the name of the cluster, and nothing behind it.
fn is_plain_startup(title: &str) -> bool {
    let title = title.trim_matches(['\0', ' ']);
    let rest = title.strip_prefix("postgres: ");
    rest.and_then(|r| r.rsplit(": ").next()) == Some("startup")
}

/// PostgreSQL: src/backend/utils/adt/bool.c, parse_bool_with_len: any beginning of "false" and "no", "of" and "off", "0".
fn is_on(value: &str) -> bool {
    let value = value.to_lowercase();
    let is_off = !value.is_empty()
        && ("false".starts_with(&value)
            || "no".starts_with(&value)
            || matches!(value.as_str(), "of" | "off" | "0"));
    !is_off
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_without_a_segment_is_a_choice() {
        for title in [
            "postgres: startup \0\0\0",
            "postgres: startup",
            "postgres: main: startup ",
            "postgres: a: b: startup\0",
        ] {
            assert!(is_plain_startup(title), "{title:?}");
        }
        for title in [
            "postgres: startup recovering 000000010000000000000003",
            "postgres: main: startup waiting for 000000010000000000000003\0",
            "postgres: walreceiver streaming 0/3000000",
            "postgres: startup: checkpointer ",
            "/usr/lib/postgresql/17/bin/postgres\0-D\0startup",
            "",
        ] {
            assert!(!is_plain_startup(title), "{title:?}");
        }
    }

    #[test]
    fn only_a_consistent_server_is_looked_at() {
        let of = |text: &str| consistent(&PidFile::parse(text));
        let file = |status: &str| format!("77\n/data\n1700000000\n5432\n/tmp\n*\n 1 2\n{status}\n");
        assert_eq!(of(&file("ready   ")), Some(77));
        assert_eq!(of(&file("standby ")), Some(77));
        for status in ["starting", "stopping", ""] {
            assert_eq!(of(&file(status)), None, "{status}");
        }
        assert_eq!(of("77\n/data\n"), None);
        assert_eq!(of(""), None);
        assert!(is_on("on") && is_on("1") && is_on("yes"));
        assert!(!is_on("off") && !is_on("f") && !is_on("N") && !is_on("0"));
    }
}
