//! The answers of a Sentinel: where a master is, and its replicas.
//!
//! Redis: src/sentinel.c (sentinelCommand, addReplySentinelRedisInstance).

use std::collections::BTreeMap;

use super::connection::{Connection, Tick};
use super::resp::{self, Reply};
use crate::config::RedisAddress;
use crate::error::Result;

/// Flags of a replica that is of no use now.
const UNFIT: [&str; 3] = ["s_down", "o_down", "disconnected"];

/// Asks for the address of a master; none where the Sentinel does not know the name.
///
/// # Errors
/// Those of the Sentinel, explained, and of the connection; those of `tick`.
pub fn master(
    connection: &mut Connection,
    name: &str,
    tick: Tick<'_>,
) -> Result<Option<RedisAddress>> {
    let words: [&[u8]; 3] = [b"SENTINEL", b"get-master-addr-by-name", name.as_bytes()];
    match connection.ask(&words, tick)? {
        Reply::Bulk(None) => Ok(None),
        reply => address(&reply).map(Some),
    }
}

/// Asks for the replicas of a master that follow it, those with the most of its history at the front. `SLAVES` is the name that every version knows.
///
/// # Errors
/// As [`master`].
pub fn replicas(
    connection: &mut Connection,
    name: &str,
    tick: Tick<'_>,
) -> Result<Vec<RedisAddress>> {
    let words: [&[u8]; 3] = [b"SENTINEL", b"slaves", name.as_bytes()];
    let Reply::Array(replies) = connection.ask(&words, tick)? else {
        return Err(resp::no_sense(b"no array"));
    };
    let mut fit: Vec<(u64, RedisAddress)> = replies.iter().filter_map(replica).collect();
    fit.sort_by_key(|(offset, _)| std::cmp::Reverse(*offset));
    Ok(fit.into_iter().map(|(_, address)| address).collect())
}

/// Reads pairs of names and values; none of one that is of no use. A receiver is listed as a replica, too, without a port.
fn replica(reply: &Reply) -> Option<(u64, RedisAddress)> {
    let Reply::Array(words) = reply else {
        return None;
    };
    let words: Option<Vec<&str>> = words.iter().map(text).collect();
    let words = words?;
    let pairs = words
        .chunks_exact(2)
        .filter_map(|pair| Some((*pair.first()?, *pair.get(1)?)));
    let fields: BTreeMap<&str, &str> = pairs.collect();
    let is_unfit = |flags: &&str| flags.split(',').any(|flag| UNFIT.contains(&flag));
    fields.get("flags").filter(|flags| !is_unfit(flags))?;
    fields
        .get("master-link-status")
        .filter(|status| **status == "ok")?;
    let offset = fields.get("slave-repl-offset")?.parse().ok()?;
    Some((offset, place(fields.get("ip")?, fields.get("port")?)?))
}

fn address(reply: &Reply) -> Result<RedisAddress> {
    let found = match reply {
        Reply::Array(pair) => match pair.as_slice() {
            [host, port] => text(host).zip(text(port)),
            _ => None,
        },
        _ => None,
    };
    let found = found.and_then(|(host, port)| place(host, port));
    found.ok_or_else(|| resp::no_sense(b"no host and port"))
}

fn place(host: &str, port: &str) -> Option<RedisAddress> {
    let text = match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    };
    RedisAddress::parse(&text).ok()
}

fn text(reply: &Reply) -> Option<&str> {
    match reply {
        Reply::Bulk(Some(bytes)) => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(words: &[&str]) -> Reply {
        let bulk = |word: &&str| Reply::Bulk(Some(word.as_bytes().to_vec()));
        Reply::Array(words.iter().map(bulk).collect())
    }

    #[test]
    fn an_address_is_read_and_nonsense_is_none() {
        for (words, shown) in [
            (["10.0.0.1", "6379"], "10.0.0.1:6379"),
            (["fe80::1", "7000"], "[fe80::1]:7000"),
            (["cache.example", "1"], "cache.example:1"),
        ] {
            assert_eq!(address(&array(&words)).unwrap().to_string(), shown);
        }
        for words in [
            &["10.0.0.1"][..],
            &["", "6379"],
            &["10.0.0.1", "0"],
            &["a b", "1"],
        ] {
            assert!(address(&array(words)).is_err(), "{words:?}");
        }
        assert!(address(&Reply::Line("OK".to_owned())).is_err());
    }

    #[test]
    fn replicas_that_follow_are_fit() {
        let told = |flags: &str, status: &str, port: &str| {
            replica(&array(&[
                "ip",
                "10.0.0.2",
                "port",
                port,
                "flags",
                flags,
                "master-link-status",
                status,
                "slave-repl-offset",
                "70",
            ]))
        };
        let fit = told("slave", "ok", "6379").unwrap();
        assert_eq!((fit.0, fit.1.to_string()), (70, "10.0.0.2:6379".to_owned()));
        assert!(told("slave,s_down", "ok", "6379").is_none());
        assert!(told("s_down,slave,disconnected", "ok", "6379").is_none());
        assert!(told("slave", "err", "6379").is_none());
        assert!(told("slave", "ok", "0").is_none());
        assert!(replica(&Reply::Line("OK".to_owned())).is_none());
    }
}
