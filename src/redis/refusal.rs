//! The errors of a server, with what helps. Pure.
//!
//! Redis: src/server.c (processCommand, createSharedObjects), src/acl.c, src/networking.c (acceptCommonHandler), src/replication.c (syncCommand).

use crate::err;
use crate::error::{Code, Error};

/// How much of a server's words is repeated.
const SHOWN_CHARS: usize = 200;

/// The rights that a backup needs.
const RIGHTS: &str = "+psync +replconf +ping +info";

/// The rights that a restore into the server needs besides.
const RIGHTS_INTO: &str = "+replicaof +slaveof +config|get +config|set +pubsub|numsub +bgsave";

/// Explains an error that a server gives in reply to `command`. `user` is the configured one.
pub(super) fn explain(command: &str, said: &str, user: Option<&str>) -> Error {
    let word = said.split([' ', '\r', '\n']).next().unwrap_or_default();
    let shown_user = user.unwrap_or("default");
    if command == "AUTH" {
        return explain_auth(word, said, shown_user);
    }
    match word {
        "NOAUTH" => err!(Denied, "the server wants a password before {command}").hint(
            "Add password_file, and user where the server has ACL users.",
        ),
        "NOPERM" if !matches!(command, "PSYNC" | "REPLCONF" | "PING" | "INFO") => {
            err!(Denied, "user \"{shown_user}\" may not run {command}").hint(format!(
                "A restore into the server needs these rights: ACL SETUSER {shown_user} {RIGHTS_INTO}\nBefore Redis 7: +replicaof +slaveof +config +pubsub +bgsave"
            ))
        }
        "NOPERM" => err!(Denied, "user \"{shown_user}\" may not run {command}").hint(format!(
            "PSYNC hands out the whole data set: give it to a user of its own.\nGive the right on the server: ACL SETUSER {shown_user} {RIGHTS}"
        )),
        "LOADING" => err!(Unreachable, "the server is still loading its data set").hint(
            "Run the command again once INFO persistence says loading:0.",
        ),
        "MASTERDOWN" | "NOMASTERLINK" => {
            err!(Unreachable, "the server is a replica that has lost its master").hint(
                "Mend the replica (INFO replication says master_link_status), or name the master as address.",
            )
        }
        "BUSY" => err!(Unreachable, "a script keeps the server busy")
            .hint("Run the command again when the script has ended, or end it: SCRIPT KILL"),
        "DENIED" => err!(Denied, "the server is in protected mode, and takes connections of its own host alone").hint(
            "Give the server a password, or run pitr on its host.",
        ),
        _ if said.starts_with("ERR unknown command") && command != "PSYNC" => {
            err!(Server, "the server does not know {command}").hint(format!(
                "{command} was renamed, or a managed service or a proxy withholds it."
            ))
        }
        _ if said.starts_with("ERR unknown command") => {
            err!(Server, "the server does not know {command}").hint(format!(
                "{command} was renamed, or a managed service or a proxy withholds it. A base without PSYNC, by BGSAVE and its file, is not there yet.\nOn a server of your own remove rename-command {command} from its configuration, and start it again. Else use the service's own snapshots."
            ))
        }
        _ if said.starts_with("ERR max number of clients") => {
            err!(Unreachable, "the server has as many clients as it takes")
                .hint("Raise maxclients, or run the command again later.")
        }
        _ => err!(Server, "the server refuses {command}: {}", shown(said))
            .hint("The log of the server may say more."),
    }
}

/// The server's words are not repeated: one that does not know AUTH repeats its arguments.
fn explain_auth(word: &str, said: &str, user: &str) -> Error {
    let text = said.to_ascii_lowercase();
    if text.contains("without any password") || text.contains("no password is set") {
        return err!(Config, "the server has no password for the default user")
            .hint("Remove password_file, or name the ACL user that has the password.");
    }
    if text.contains("wrong number of arguments") {
        return err!(
            Config,
            "the server knows no users: it is older than Redis 6"
        )
        .hint("Remove user; password_file stays.");
    }
    if text.starts_with("err unknown command") {
        return err!(Server, "the server does not know AUTH")
            .hint("AUTH was renamed, or address names another kind of server.");
    }
    if text.starts_with("err max number of clients") || word == "DENIED" {
        return explain("PING", said, Some(user));
    }
    let code = match word {
        "WRONGPASS" | "ERR" | "NOAUTH" => Code::Denied,
        _ => Code::Server,
    };
    Error::new(
        code,
        format!("the server does not take user \"{user}\" with this password"),
    )
    .hint("Correct user and password_file: the password is the file's first line.")
}

/// A server's words, fit for a line of ours.
fn shown(said: &str) -> String {
    let shown: String = said.chars().take(SHOWN_CHARS).collect();
    format!("\"{}\"", shown.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_code_and_its_next_step() {
        for (command, said, code, message, next) in [
            (
                "PING",
                "NOAUTH Authentication required.",
                Code::Denied,
                "wants a password",
                "password_file",
            ),
            (
                "PSYNC",
                "NOPERM this user has no permissions to run the 'psync' command",
                Code::Denied,
                "user \"pitr\" may not run PSYNC",
                "ACL SETUSER pitr +psync +replconf +ping +info",
            ),
            (
                "PING",
                "LOADING Redis is loading the dataset in memory",
                Code::Unreachable,
                "still loading",
                "loading:0",
            ),
            (
                "PSYNC",
                "NOMASTERLINK Can't SYNC while not connected with my master",
                Code::Unreachable,
                "has lost its master",
                "master_link_status",
            ),
            (
                "PSYNC",
                "ERR unknown command 'PSYNC', with args beginning with: '?' '-1'",
                Code::Server,
                "does not know PSYNC",
                "not there yet",
            ),
            (
                "REPLICAOF",
                "NOPERM this user has no permissions to run the 'replicaof' command",
                Code::Denied,
                "user \"pitr\" may not run REPLICAOF",
                "+replicaof",
            ),
            (
                "CONFIG",
                "ERR unknown command 'CONFIG', with args beginning with: 'SET' 'masterauth'",
                Code::Server,
                "does not know CONFIG",
                "was renamed",
            ),
            (
                "PING",
                "DENIED Redis is running in protected mode because",
                Code::Denied,
                "protected mode",
                "on its host",
            ),
            (
                "INFO",
                "ERR something\u{7} else",
                Code::Server,
                "ERR something\\u{7} else",
                "log of the server",
            ),
        ] {
            let e = explain(command, said, Some("pitr"));
            assert_eq!(e.code(), code, "{said}");
            assert!(e.to_string().contains(message), "{e}");
            let hint = e.hint_text().unwrap();
            assert!(hint.contains(next), "{hint}");
        }
    }

    #[test]
    fn the_answer_to_a_password_is_never_repeated() {
        for (said, message) in [
            (
                "ERR unknown command `AUTH`, with args beginning with: `pitr`, `s3cret`",
                "does not know AUTH",
            ),
            (
                "WRONGPASS invalid username-password pair s3cret",
                "with this password",
            ),
            (
                "ERR AUTH <password> called without any password configured s3cret",
                "no password",
            ),
            (
                "ERR wrong number of arguments for 'auth' s3cret",
                "older than Redis 6",
            ),
            ("s3cret", "with this password"),
        ] {
            let e = explain("AUTH", said, None);
            assert!(e.to_string().contains(message), "{e}");
            let all = format!("{e:?} {}", e.hint_text().unwrap());
            assert!(!all.contains("s3cret"), "{all}");
        }
    }
}
