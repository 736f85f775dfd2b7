//! A server without a network has another process fetch its WAL: it asks by a socket of the filesystem, which no namespace of networks hides.
//!
//! The question is the two words of restore_command that PostgreSQL fills in, each with a zero byte behind it. The answer is one byte, the
//! exit status. The process that answers knows the rest of the command, and takes nothing else from a server that is not trusted.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::error::{Error, Result};

/// The environment variable with the socket's path.
pub const SOCKET: &str = "PITR_RESTORE_SOCKET";
/// The environment variable with the process id of the server for which somebody else runs restore_command.
pub const ASKER: &str = "PITR_RESTORE_FOR";
/// A question is shorter: a name of WAL, and a path below the data directory.
const MOST: u64 = 4096;

/// Asks for a file; the exit status.
///
/// # Errors
/// Those of the socket, and an end without an answer.
pub fn ask(socket: &Path, files: &[OsString]) -> Result<u8> {
    let failed = |e| {
        Error::from_io(
            format!("have WAL fetched through \"{}\"", socket.display()),
            e,
        )
    };
    let exchange = || {
        let mut stream = UnixStream::connect(socket)?;
        let mut question = Vec::new();
        for file in files {
            question.extend_from_slice(file.as_bytes());
            question.push(0);
        }
        stream.write_all(&question)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        Ok(answer[0])
    };
    exchange().map_err(failed)
}

/// Reads a question: the name of the file and the path; none where it is not one.
///
/// # Errors
/// Those of the socket.
pub fn question(stream: &mut UnixStream) -> std::io::Result<Option<(OsString, OsString)>> {
    let mut bytes = Vec::new();
    stream.take(MOST).read_to_end(&mut bytes)?;
    let mut words = bytes.split(|byte| *byte == 0);
    let mut word = || words.next().map(|w| OsString::from_vec(w.to_vec()));
    let (name, path, end) = (word(), word(), word());
    let is_whole = end.is_some_and(|end| end.is_empty()) && words.next().is_none();
    Ok(name.zip(path).filter(|_| is_whole))
}

/// Whether a path is one of those that PostgreSQL has WAL restored to: `pg_wal/` and a name in capitals
/// (src/backend/access/transam/xlogarchive.c, `RestoreArchivedFile`).
pub fn is_destination(path: &str) -> bool {
    let name = path.strip_prefix("pg_wal/");
    name.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(bytes: &[u8]) -> Option<(OsString, OsString)> {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        near.write_all(bytes).unwrap();
        drop(near);
        question(&mut far).unwrap()
    }

    #[test]
    fn a_question_is_two_words_and_nothing_else() {
        assert_eq!(asked(b"a\0b\0"), Some(("a".into(), "b".into())));
        for bytes in [&b""[..], b"a", b"a\0b", b"a\0b\0c", b"a\0b\0c\0", b"a\0"] {
            assert_eq!(asked(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn wal_is_brought_to_where_postgresql_puts_it_alone() {
        for good in ["pg_wal/RECOVERYXLOG", "pg_wal/RECOVERYHISTORY"] {
            assert!(is_destination(good));
        }
        let bad = [
            "pg_wal/",
            "pg_wal/../X",
            "/pg_wal/X",
            "X",
            "pg_wal/$(X)",
            "pg_wal/X Y",
        ];
        for bad in bad {
            assert!(!is_destination(bad), "{bad}");
        }
    }
}
