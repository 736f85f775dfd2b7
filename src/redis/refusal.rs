//! The errors of a server, with what helps. Pure.
//!
//! Redis: src/server.c (processCommand, createSharedObjects), src/acl.c, src/networking.c (acceptCommonHandler), src/replication.c (syncCommand).

use crate::err;
use crate::error::{Code, Error};

/// How much of a server's words is repeated.
const SHOWN_CHARS: usize = 200;

/// The rights that a backup needs.
const RIGHTS: &str = "+psync +replconf +ping +info";

/// The way out where `PSYNC` is out of reach.
const WITHOUT_PSYNC: &str = "Where pitr can read the server's files: source = \"bgsave\" or source = \"aof\" in [redis.NAME] takes the data set from them, without the log.";

/// The rights that a restore into the server needs besides.
const RIGHTS_INTO: &str = "+replicaof +slaveof +config|get +config|set +pubsub|numsub +bgsave";

/// The rights that a restore of keys needs besides those of a backup.
const RIGHTS_KEYS: &str = "~* +select +scan +dump +restore +pexpiretime +pttl +time";

/// The rights on a Sentinel.
const RIGHTS_SENTINEL: &str = "+sentinel|get-master-addr-by-name +sentinel|slaves";

/// The right that a cluster needs besides.
const RIGHTS_CLUSTER: &str = "+cluster|nodes, and from Valkey 9 on +cluster|getslotmigrations";

/// The commands of a restore of keys.
const COMMANDS_KEYS: [&str; 7] = [
    "SELECT",
    "SCAN",
    "DUMP",
    "RESTORE",
    "PEXPIRETIME",
    "PTTL",
    "TIME",
];

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
        "NOPERM" if COMMANDS_KEYS.contains(&command) => {
            err!(Denied, "user \"{shown_user}\" may not run {command}, or not with this key").hint(format!(
                "A restore of keys needs these rights: ACL SETUSER {shown_user} {RIGHTS_KEYS}\nBefore Redis 7: without +pexpiretime. The pattern behind ~ may be narrower."
            ))
        }
        "NOPERM" if command == "SENTINEL" => {
            err!(Denied, "user \"{shown_user}\" may not run SENTINEL").hint(format!(
                "Give the rights on each Sentinel: ACL SETUSER {shown_user} {RIGHTS_SENTINEL}"
            ))
        }
        "NOPERM" if command == "CLUSTER" => {
            err!(Denied, "user \"{shown_user}\" may not run CLUSTER: {}", shown(said)).hint(format!(
                "Give the right on each node of the cluster: ACL SETUSER {shown_user} {RIGHTS_CLUSTER}"
            ))
        }
        "NOPERM" if !matches!(command, "PSYNC" | "REPLCONF" | "PING" | "INFO") => {
            err!(Denied, "user \"{shown_user}\" may not run {command}").hint(format!(
                "A restore into the server needs these rights: ACL SETUSER {shown_user} {RIGHTS_INTO}\nBefore Redis 7: +replicaof +slaveof +config +pubsub +bgsave"
            ))
        }
        "NOPERM" => err!(Denied, "user \"{shown_user}\" may not run {command}").hint(format!(
            "PSYNC hands out the whole data set: give it to a user of its own.\nGive the right on the server: ACL SETUSER {shown_user} {RIGHTS}\n{WITHOUT_PSYNC}"
        )),
        "LOADING" => err!(Unreachable, "the server is still loading its data set").hint(
            "Run the command again once INFO persistence says loading:0.",
        ),
        "MASTERDOWN" | "NOMASTERLINK" => {
            err!(Unreachable, "the server is a replica that has lost its master").hint(
                "Mend the replica (INFO replication says master_link_status), or name the master as address.",
            )
        }
        "MOVED" | "ASK" => err!(Refused, "the key belongs to another shard of the cluster: {}", shown(said))
            .hint("--into names one server. Name the section of the shard that has the key, or add one."),
        "CLUSTERDOWN" => err!(Unreachable, "the cluster does not serve the key: {}", shown(said))
            .hint("CLUSTER INFO on the server says what is missing. Mend the cluster, and run the command again."),
        "READONLY" => err!(Refused, "the server is a replica, which takes no writes")
            .hint("Name its master: the replica follows it."),
        "OOM" => err!(Refused, "the server has reached its maxmemory")
            .hint("Raise maxmemory, or delete keys, and run the command again."),
        "MISCONF" => err!(Unreachable, "the server takes no writes, for it could not save its data set")
            .hint("Its log says why. Mend that, and run the command again."),
        "NOREPLICAS" => err!(Unreachable, "the server takes no writes, for it has too few replicas (min-replicas-to-write)")
            .hint("Start its replicas, and run the command again."),
        "BUSYKEY" => err!(Refused, "the key is there by now: another client wrote it since it was looked for")
            .hint("Stop what writes there, and run the command again."),
        _ if command == "RESTORE" && (said.contains("DUMP payload") || said.contains("Bad data format")) => {
            err!(Refused, "the server cannot load the value: {}", shown(said))
                .hint("It was written by a newer server or another family, or by a module that this one has not. Put the programs of the server's own version first in PATH, or load the module.")
        }
        "BUSY" => err!(Unreachable, "a script keeps the server busy")
            .hint("Run the command again when the script has ended, or end it: SCRIPT KILL"),
        "DENIED" => err!(Denied, "the server is in protected mode, and takes connections of its own host alone").hint(
            "Give the server a password, or run pitr on its host.",
        ),
        _ if said.contains("cluster support disabled") => err!(Config, "the server is no node of a cluster")
            .hint("Remove cluster = true and name the server as address, or name nodes of a cluster."),
        _ if said.starts_with("ERR unknown command") && command == "SENTINEL" => {
            err!(Server, "it is no Sentinel")
                .hint("sentinel.addresses names Sentinels, which listen at port 26379 unless told otherwise. Name a server as address.")
        }
        _ if said.starts_with("ERR unknown command") && !matches!(command, "PSYNC" | "REPLCONF") => {
            err!(Server, "the server does not know {command}").hint(format!(
                "{command} was renamed, or a managed service or a proxy withholds it."
            ))
        }
        _ if said.starts_with("ERR unknown command") => {
            err!(Server, "the server does not know {command}").hint(format!(
                "{command} was renamed, or a managed service or a proxy withholds it. On a server of your own remove rename-command {command} from its configuration, and start it again.\n{WITHOUT_PSYNC}\nElse use the service's own snapshots."
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
                "source = \"bgsave\"",
            ),
            (
                "REPLICAOF",
                "NOPERM this user has no permissions to run the 'replicaof' command",
                Code::Denied,
                "user \"pitr\" may not run REPLICAOF",
                "+replicaof",
            ),
            (
                "SENTINEL",
                "NOPERM this user has no permissions to run the 'sentinel|slaves' command",
                Code::Denied,
                "user \"pitr\" may not run SENTINEL",
                "+sentinel|get-master-addr-by-name",
            ),
            (
                "SENTINEL",
                "ERR unknown command 'SENTINEL', with args beginning with: 'get-master-addr-by-name'",
                Code::Server,
                "no Sentinel",
                "26379",
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
                "DUMP",
                "NOPERM No permissions to access a key",
                Code::Denied,
                "may not run DUMP, or not with this key",
                "~* +select +scan +dump",
            ),
            (
                "DUMP",
                "MOVED 3999 127.0.0.1:6381",
                Code::Refused,
                "another shard of the cluster: \"MOVED 3999 127.0.0.1:6381\"",
                "section of the shard",
            ),
            (
                "DUMP",
                "CLUSTERDOWN Hash slot not served",
                Code::Unreachable,
                "does not serve the key",
                "CLUSTER INFO",
            ),
            (
                "RESTORE",
                "READONLY You can't write against a read only replica.",
                Code::Refused,
                "is a replica",
                "master",
            ),
            (
                "RESTORE",
                "OOM command not allowed when used memory > 'maxmemory'.",
                Code::Refused,
                "maxmemory",
                "Raise maxmemory",
            ),
            (
                "RESTORE",
                "MISCONF Redis is configured to save RDB snapshots",
                Code::Unreachable,
                "could not save",
                "log",
            ),
            (
                "RESTORE",
                "NOREPLICAS Not enough good replicas to write.",
                Code::Unreachable,
                "too few replicas",
                "Start its replicas",
            ),
            (
                "RESTORE",
                "BUSYKEY Target key name already exists.",
                Code::Refused,
                "another client wrote it",
                "Stop what writes",
            ),
            (
                "RESTORE",
                "ERR DUMP payload version or checksum are wrong",
                Code::Refused,
                "cannot load the value",
                "first in PATH",
            ),
            (
                "RESTORE",
                "ERR Bad data format",
                Code::Refused,
                "cannot load the value",
                "load the module",
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
