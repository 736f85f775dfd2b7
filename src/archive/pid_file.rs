//! `postmaster.pid` of a data directory. A server that starts has not written all of its lines yet, and one that was killed leaves it behind.
//!
//! PostgreSQL: src/include/utils/pidfile.h.

use std::path::Path;

use super::datadir::read_small;

/// The lines of the file, as far as they are there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PidFile {
    /// The server's process id; a single-user backend's is negative.
    pub pid: Option<i32>,
    /// The data directory as the server names it.
    pub data_directory: Option<String>,
    /// The time at which the server was started, in seconds since 1970.
    pub started: Option<String>,
    /// The port that it listens on.
    pub port: Option<String>,
    /// The directory of its first socket; empty where it has none.
    pub socket_directory: Option<String>,
    /// The state of the server: `ready`, `standby`, `starting` or `stopping`.
    pub status: Option<String>,
}

impl PidFile {
    /// Reads the file of a data directory; neither a fifo nor a file without end holds the reader up.
    ///
    /// # Errors
    /// Those of the system.
    pub fn read(data: &Path) -> std::io::Result<PidFile> {
        read_small(&data.join("postmaster.pid")).map(|text| PidFile::parse(&text))
    }

    /// Takes its text apart.
    pub fn parse(text: &str) -> PidFile {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let line = |at: usize| lines.get(at).map(|line| (*line).to_owned());
        PidFile {
            pid: lines.first().and_then(|line| line.parse().ok()),
            data_directory: line(1),
            started: line(2),
            port: line(3),
            socket_directory: line(4),
            status: line(7),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_pid_file_are_read_as_far_as_they_are_there() {
        let text = "77\n/data\n1700000000\n5432\n/tmp\n*\n 1 2\nready   \n";
        let file = PidFile::parse(text);
        let line = |text: &str| Some(text.to_owned());
        assert_eq!(file.pid, Some(77));
        assert_eq!(file.data_directory, line("/data"));
        assert_eq!(file.started, line("1700000000"));
        assert_eq!(file.port, line("5432"));
        assert_eq!(file.socket_directory, line("/tmp"));
        assert_eq!(file.status, line("ready"));
        let begun = PidFile::parse("-77\n/data\n");
        assert_eq!((begun.pid, begun.started), (Some(-77), None));
        assert_eq!(PidFile::parse(""), PidFile::default());
        let empty = tempfile::tempdir().unwrap();
        assert!(PidFile::read(empty.path()).is_err());
    }
}
