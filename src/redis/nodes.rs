//! The nodes of a cluster as one of them names them, and its shards. Pure.
//!
//! Redis: src/cluster.c, later src/cluster_legacy.c (clusterGenNodeDescription).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::resp::{self, Reply};
use crate::config::{RedisAddress, SHARD_DIGITS as NAME_DIGITS};
use crate::err;
use crate::error::Result;
use crate::pg::time::TimestampTz;
use crate::repo::slot_map::{Moving, Range, SLOT_MAX, SlotMap};
use crate::text::is_hex;

pub use crate::config::shard_digits as digits;

/// An id has so many.
const ID_DIGITS: usize = 40;
/// States of a migration that is over (Valkey: src/cluster_migrateslots.c, slotMigrationJobStateToString).
const OVER: [&str; 3] = ["success", "failed", "cancelled"];

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its id: 40 hexadecimal digits.
    pub id: String,
    /// The host name that it announces.
    hostname: Option<String>,
    /// Its address; empty for the node that was asked, where it does not know it.
    host: String,
    /// The port for clients.
    port: u16,
    /// Whether it is the one that was asked.
    is_asked: bool,
    /// The node that it follows; none of a master.
    master: Option<String>,
    /// Whether the node that was asked takes it for failed, or doubts it.
    is_failed: bool,
    owned: Vec<Range>,
    migrating: Vec<Moving>,
    importing: Vec<Moving>,
}

/// Reads the answer to `CLUSTER NODES`.
///
/// # Errors
/// `Server` for what is none.
pub fn parse(text: &str) -> Result<Vec<Node>> {
    let lines = text.lines().filter(|line| !line.is_empty());
    let mut nodes = Vec::new();
    for line in lines {
        // A node that is met belongs to no shard yet. One without an address owns its slots still.
        let flags = line.split_ascii_whitespace().nth(2).unwrap_or_default();
        if !flags.split(',').any(|flag| flag == "handshake") {
            nodes.push(node(line).ok_or_else(|| resp::no_sense(line.as_bytes()))?);
        }
    }
    match nodes.iter().any(|node| node.is_asked) {
        true => Ok(nodes),
        false => Err(resp::no_sense(b"no node that says that it is itself")),
    }
}

fn node(line: &str) -> Option<Node> {
    let mut words = line.split_ascii_whitespace();
    let id = words.next().filter(|id| is_id(id))?;
    let (place, more) = words.next()?.split_once('@')?;
    let (host, port) = place.rsplit_once(':')?;
    let hostname = more
        .split(',')
        .nth(1)
        .filter(|name| !name.is_empty() && !name.contains('='));
    let flags: Vec<&str> = words.next()?.split(',').collect();
    let has = |flag: &str| flags.contains(&flag);
    let master = words.next().filter(|id| is_id(id));
    let mut node = Node {
        id: id.to_owned(),
        hostname: hostname.map(str::to_owned),
        host: host.trim_matches(['[', ']']).to_owned(),
        port: port.parse().ok()?,
        is_asked: has("myself"),
        master: master.map(str::to_owned).filter(|_| !has("master")),
        is_failed: has("fail") || has("fail?"),
        owned: Vec::new(),
        migrating: Vec::new(),
        importing: Vec::new(),
    };
    // The time of the ping, that of the answer, the epoch, the state of the link.
    for word in words.skip(4) {
        let inner = word.strip_prefix('[').and_then(|w| w.strip_suffix(']'));
        let Some(inner) = inner else {
            let (first, last) = word.split_once('-').unwrap_or((word, word));
            node.owned.push((slot(first)?, slot(last)?));
            continue;
        };
        let (to, from) = (inner.split_once("->-"), inner.split_once("-<-"));
        let (moves, (number, other)) = match (to, from) {
            (Some(pair), _) => (&mut node.migrating, pair),
            (None, Some(pair)) => (&mut node.importing, pair),
            (None, None) => return None,
        };
        let number = slot(number)?;
        moves.push((number, number, is_id(other).then(|| other.to_owned())?));
    }
    node.owned = joined(node.owned);
    node.migrating = joined_moves(node.migrating);
    node.importing = joined_moves(node.importing);
    Some(node)
}

fn is_id(text: &str) -> bool {
    is_hex(text, ID_DIGITS)
}

fn slot(text: &str) -> Option<u16> {
    text.parse().ok().filter(|slot| *slot <= SLOT_MAX)
}

/// The same slots ascending, without ranges that touch.
pub fn joined(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.sort_unstable();
    let mut joined: Vec<Range> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// The same with ranges as long as they can be, by node.
fn joined_moves(moves: Vec<Moving>) -> Vec<Moving> {
    let mut by_node: BTreeMap<String, Vec<Range>> = BTreeMap::new();
    for (first, last, node) in moves {
        by_node.entry(node).or_default().push((first, last));
    }
    let by_node = by_node.into_iter();
    let all = by_node.flat_map(|(node, ranges)| {
        let ranges = joined(ranges).into_iter();
        ranges.map(move |(first, last)| (first, last, node.clone()))
    });
    all.collect()
}

impl Node {
    /// The place where it listens, as seen from here: by name, where TLS may have to prove it. `asked` is where it was asked itself.
    fn address(&self, asked: &RedisAddress, has_tls: bool) -> Option<RedisAddress> {
        let name = self.hostname.as_ref().filter(|_| has_tls);
        let host = name.unwrap_or(&self.host);
        if self.is_asked && host.is_empty() {
            return Some(asked.clone());
        }
        let text = match host.contains(':') {
            true => format!("[{host}]:{}", self.port),
            false => format!("{host}:{}", self.port),
        };
        RedisAddress::parse(&text).ok()
    }
}

/// The owners of slots.
fn owning(nodes: &[Node]) -> impl Iterator<Item = &Node> {
    let all = nodes.iter();
    all.filter(|node| node.master.is_none() && !node.owned.is_empty())
}

/// Whether anybody owns slots there: a node alone belongs to no cluster, or to none any more.
pub fn has_owners(nodes: &[Node]) -> bool {
    owning(nodes).next().is_some()
}

/// Whether the node that was asked takes most owners of slots for failed: it is cut off, and its account is old.
pub fn is_cut_off(nodes: &[Node]) -> bool {
    let failed = owning(nodes).filter(|owner| owner.is_failed).count();
    failed * 2 > owning(nodes).count()
}

/// Whether nodes of most shards that had slots are there: it is the same cluster.
pub fn is_same(nodes: &[Node], known: &[Known]) -> bool {
    let is_there = |id: &String| nodes.iter().any(|node| node.id == *id);
    let live = known.iter().filter(|known| known.is_live());
    let (mut all, mut found) = (0, 0);
    for one in live {
        all += 1;
        found += usize::from(one.map.nodes.iter().any(is_there));
    }
    all == 0 || found * 2 > all
}

/// A shard as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    pub name: String,
    /// When it was seen.
    pub time: TimestampTz,
    pub map: SlotMap,
    /// Whether a repository has it with slots still.
    #[serde(skip)]
    pub lingers: bool,
}

impl Known {
    fn is_live(&self) -> bool {
        !self.map.owned.is_empty()
    }
}

/// An owner of slots, as one node names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its slots, its id, and its replicas.
    pub map: SlotMap,
    /// The place where it listens; none where the cluster does not say.
    pub place: Option<RedisAddress>,
}

/// The owners in an account of nodes. `asked` is the node that gave it.
pub fn owners((nodes, asked): (&[Node], &RedisAddress), has_tls: bool) -> Vec<Owner> {
    let owner = |node: &Node| Owner {
        map: map(nodes, node),
        place: node.address(asked, has_tls),
    };
    owning(nodes).map(owner).collect()
}

/// An owner, as far as it told of itself.
#[derive(Debug, Clone, Copy)]
pub struct Heard<'o> {
    /// Its id.
    pub node: &'o str,
    /// Its slots.
    pub owned: &'o [Range],
    /// Its history, and the one that it goes on from; none where it did not answer.
    pub replids: Option<&'o [String]>,
}

impl Heard<'_> {
    fn has_history(&self, place: usize, replid: &str) -> bool {
        let own = self.replids.and_then(|replids| replids.get(place));
        own.is_some_and(|own| own == replid && !replid.is_empty())
    }
}

/// Whether an owner may have the name of a shard that was known.
type Rule<'r> = &'r dyn Fn(&Known, &Heard<'_>) -> bool;

/// Names of owners by the shards that are known. The rules in their order:
/// 1. An owner that does not answer keeps the name that it had.
/// 2. The owner that has a shard's history has its name.
/// 3. An owner that goes on from it has the name, if the former owner is none any more, and it has most of the slots itself. A replica that was reset goes on from its
///    master's history, too, and is not its shard.
/// 4. The former owner has the name; then a node that was the shard's replica, and has most of the slots.
///
/// Shards that have slots come before those that had some; of these rules 2 and the first half of 4 hold. The one with more of the
/// slots comes before others that may have the name, then the one with the lower id: all hosts find the same.
pub fn names<'k>(owners: &[Heard<'_>], known: &'k [Known]) -> Vec<Option<&'k str>> {
    let is_silent =
        |known: &Known, owner: &Heard<'_>| owner.replids.is_none() && known.map.node == owner.node;
    let has_it = |known: &Known, owner: &Heard<'_>| owner.has_history(0, &known.map.replid);
    let has_most = |known: &Known, owner: &Heard<'_>| {
        2 * common(owner.owned, &known.map.owned) > count(&known.map.owned)
    };
    let goes_on = |known: &Known, owner: &Heard<'_>| {
        owner.has_history(1, &known.map.replid)
            && owners.iter().all(|one| one.node != known.map.node)
            && has_most(known, owner)
    };
    let was_owner = |known: &Known, owner: &Heard<'_>| known.map.node == owner.node;
    let was_node = |known: &Known, owner: &Heard<'_>| {
        known.map.nodes.iter().any(|node| node == owner.node) && has_most(known, owner)
    };
    let live: [Rule<'_>; 5] = [&is_silent, &has_it, &goes_on, &was_owner, &was_node];
    let gone: [Rule<'_>; 2] = [&has_it, &was_owner];
    let mut shards: Vec<&Known> = known.iter().collect();
    shards.sort_unstable_by_key(|shard| &shard.name);
    let mut names: Vec<Option<&str>> = vec![None; owners.len()];
    for (is_live, rules) in [(true, &live[..]), (false, &gone[..])] {
        for rule in rules {
            for shard in shards.iter().filter(|shard| shard.is_live() == is_live) {
                if names.contains(&Some(shard.name.as_str())) {
                    continue;
                }
                let nameless = names.iter().zip(owners).enumerate();
                let may_have = nameless
                    .filter(|(_, (name, owner))| name.is_none() && rule(shard, owner))
                    .map(|(n, (_, owner))| (n, owner));
                let best = may_have.max_by_key(|(_, owner)| {
                    (common(owner.owned, &shard.map.owned), Reverse(owner.node))
                });
                if let Some(name) = best.and_then(|(n, _)| names.get_mut(n)) {
                    *name = Some(&shard.name);
                }
            }
        }
    }
    names
}

fn count(ranges: &[Range]) -> u32 {
    let each = ranges.iter();
    each.map(|(first, last)| u32::from(*last) + 1 - u32::from(*first))
        .sum()
}

/// How many slots are in both.
fn common(one: &[Range], other: &[Range]) -> u32 {
    let pairs = one.iter().flat_map(|a| other.iter().map(move |b| (a, b)));
    let both = pairs.filter_map(|(a, b)| {
        let (first, last) = (a.0.max(b.0), a.1.min(b.1));
        (first <= last).then(|| u32::from(last - first) + 1)
    });
    both.sum()
}

/// Whether some slots are in both.
pub fn overlap(one: &[Range], other: &[Range]) -> bool {
    common(one, other) > 0
}

/// A name for a new shard: digits of its owner's id that no other shard has.
///
/// # Errors
/// `Refused` where all are taken.
pub fn new_name(cluster: &str, id: &str, is_taken: &dyn Fn(&str) -> bool) -> Result<String> {
    let parts = (0..=ID_DIGITS - NAME_DIGITS).filter_map(|n| id.get(n..n + NAME_DIGITS));
    let mut names = parts.map(|part| format!("{cluster}.{part}"));
    let free = names.find(|name| !is_taken(name));
    free.ok_or_else(|| {
        err!(
            Refused,
            "no digits of node {id} are free for the name of its shard"
        )
    })
}

/// Ids of the nodes that follow one.
fn replicas(nodes: &[Node], owner: &Node) -> Vec<String> {
    let own = nodes
        .iter()
        .filter(|node| node.master.as_ref() == Some(&owner.id));
    let mut ids: Vec<String> = own.map(|node| node.id.clone()).collect();
    ids.sort_unstable();
    ids
}

fn map(nodes: &[Node], owner: &Node) -> SlotMap {
    let mut ids = vec![owner.id.clone()];
    ids.extend(replicas(nodes, owner));
    SlotMap {
        node: owner.id.clone(),
        nodes: ids,
        owned: owner.owned.clone(),
        migrating: owner.migrating.clone(),
        importing: owner.importing.clone(),
        ..SlotMap::default()
    }
}

/// Whether a node is among them.
pub fn has(nodes: &[Node], id: &str) -> bool {
    nodes.iter().any(|node| node.id == id)
}

/// The id of the node that was asked.
pub fn asked(nodes: &[Node]) -> Option<&str> {
    let asked = nodes.iter().find(|node| node.is_asked);
    asked.map(|node| node.id.as_str())
}

/// The slots of the node that was asked, which alone knows of those on their way; none where it is a replica.
pub fn own(nodes: &[Node]) -> Option<SlotMap> {
    let mut own = nodes
        .iter()
        .filter(|node| node.is_asked && node.master.is_none());
    own.next().map(|owner| map(nodes, owner))
}

/// Places of all nodes, to ask them next time.
pub fn places(nodes: &[Node], asked: &RedisAddress, has_tls: bool) -> Vec<RedisAddress> {
    let places = nodes.iter().filter(|node| !node.is_failed);
    places
        .filter_map(|node| node.address(asked, has_tls))
        .collect()
}

/// Adds the migrations that a server makes by itself, from its answer to `CLUSTER GETSLOTMIGRATIONS`, to its slots.
///
/// # Errors
/// `Server` for what is none.
pub fn add_migrations(map: &mut SlotMap, answer: &Reply) -> Result<()> {
    let Reply::Array(jobs) = answer else {
        return Err(resp::no_sense(b"no array"));
    };
    for job in jobs {
        let (operation, ranges, node) = match migration(job) {
            Some(None) => continue,
            Some(Some(job)) => job,
            None => return Err(resp::no_sense(b"no slot migration")),
        };
        let moves = match operation {
            "EXPORT" => &mut map.migrating,
            _ => &mut map.importing,
        };
        let node = if is_id(node) { node } else { &map.node };
        moves.extend(
            ranges
                .into_iter()
                .map(|(first, last)| (first, last, node.to_owned())),
        );
    }
    map.migrating = joined_moves(std::mem::take(&mut map.migrating));
    map.importing = joined_moves(std::mem::take(&mut map.importing));
    Ok(())
}

/// A migration: its direction, its slots, and the other node.
type Migration<'r> = (&'r str, Vec<Range>, &'r str);

/// Reads a migration; nothing of one that is over, and none where it makes no sense.
fn migration(job: &Reply) -> Option<Option<Migration<'_>>> {
    let Reply::Array(words) = job else {
        return None;
    };
    let field = |name: &str| {
        let mut pairs = words.chunks_exact(2);
        pairs.find_map(|pair| match pair {
            [key, value] if text(key) == Some(name) => text(value),
            _ => None,
        })
    };
    if OVER.contains(&field("state")?) {
        return Some(None);
    }
    let operation = field("operation")?;
    let other = match operation {
        "EXPORT" => "target_node",
        "IMPORT" => "source_node",
        _ => return None,
    };
    let ranges = field("slot_ranges")?.split_ascii_whitespace().map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        slot(first).zip(slot(last))
    });
    let ranges: Option<Vec<Range>> = ranges.collect();
    Some(Some((operation, ranges?, field(other).unwrap_or_default())))
}

fn text(reply: &Reply) -> Option<&str> {
    match reply {
        Reply::Line(text) => Some(text),
        Reply::Bulk(Some(bytes)) => std::str::from_utf8(bytes).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: char) -> String {
        digit.to_string().repeat(ID_DIGITS)
    }

    fn at() -> RedisAddress {
        RedisAddress::parse("10.0.0.9:7000").unwrap()
    }

    fn line(digit: char, rest: &str) -> String {
        format!("{} {rest}", id(digit))
    }

    fn master(digit: char, flags: &str, slots: &str) -> String {
        format!(
            "{} 10.0.0.{}:7000@17000 {flags} - 0 0 1 connected {slots}",
            id(digit),
            digit as u32
        )
    }

    fn replica(digit: char, of: char) -> String {
        let master = id(of);
        line(
            digit,
            &format!("10.0.1.1:7000@17000,cache.example slave {master} 0 0 1 connected"),
        )
    }

    fn read(lines: &[String]) -> Vec<Node> {
        parse(&lines.join("\n")).unwrap()
    }

    /// The owners of these lines by the names that they get, `-` for none.
    fn named(lines: &[String], histories: &[(char, &str)], known: &[Known]) -> Vec<String> {
        let nodes = read(lines);
        let owners = owners((&nodes, &at()), false);
        let heard = |owner: &Owner| -> Option<Vec<String>> {
            let own = histories
                .iter()
                .find(|(digit, _)| id(*digit) == owner.map.node);
            own.map(|(_, all)| all.chars().map(id).collect())
        };
        let replids: Vec<Option<Vec<String>>> = owners.iter().map(heard).collect();
        let owners: Vec<Heard<'_>> = owners
            .iter()
            .zip(&replids)
            .map(|(owner, replids)| Heard {
                node: &owner.map.node,
                owned: &owner.map.owned,
                replids: replids.as_deref(),
            })
            .collect();
        let names = names(&owners, known);
        names
            .into_iter()
            .map(|name| name.unwrap_or("-").to_owned())
            .collect()
    }

    /// A shard that was known: its name, its nodes, its history, and its slots.
    fn known(name: &str, nodes: &str, replid: char, owned: &[Range]) -> Known {
        let nodes: Vec<String> = nodes.chars().map(id).collect();
        Known {
            name: name.to_owned(),
            time: TimestampTz::default(),
            map: SlotMap {
                node: nodes[0].clone(),
                nodes,
                replid: id(replid),
                owned: owned.to_vec(),
                ..SlotMap::default()
            },
            lingers: false,
        }
    }

    const SOME: &[Range] = &[(0, 100)];

    #[test]
    fn nodes_of_every_version_are_read() {
        // Redis 6, 7.0 with a host name, 7.2 with fields besides, and one that does not know its own address.
        let nodes = read(&[
            format!(
                "{} 127.0.0.1:7001@17001 master - 0 1 2 connected 5461-10922 [77->-{1}] [78->-{1}] [93-<-{2}]",
                id('a'),
                id('b'),
                id('c')
            ),
            line(
                'b',
                "::1:7002@17002,two.example master,fail? - 0 1 3 connected 10923-16000",
            ),
            format!(
                "{} :7000@17000,,tls-port=0,shard-id={} myself,master - 0 0 1 connected 0-5 7 8-5460",
                id('c'),
                id('d')
            ),
            line(
                'd',
                &format!("127.0.0.1:7003@17003 slave {} 0 1 2 connected", id('a')),
            ),
            line('e', ":0@0 master,noaddr - 0 0 0 disconnected 16001-16383"),
            line('f', "127.0.0.1:7009@17009 handshake - 0 0 0 disconnected"),
        ]);
        assert_eq!(nodes.len(), 5);
        assert_eq!(nodes[0].migrating, [(77, 78, id('b'))]);
        assert_eq!(nodes[0].importing, [(93, 93, id('c'))]);
        assert_eq!(nodes[2].owned, [(0, 5), (7, 5460)]);
        let address = |n: usize, tls| nodes[n].address(&at(), tls).unwrap().to_string();
        assert_eq!(address(0, true), "127.0.0.1:7001");
        assert_eq!(address(1, false), "[::1]:7002");
        assert_eq!(address(1, true), "two.example:7002");
        assert_eq!(address(2, false), "10.0.0.9:7000");
        let owners = owners((&nodes, &at()), false);
        assert_eq!(owners.len(), 4);
        assert_eq!(owners[0].map.nodes, [id('a'), id('d')]);
        // It owns its slots without an address, too.
        assert_eq!(owners[3].place.as_ref(), None);
        assert_eq!(owners[3].map.owned[0].0, 16_001);
        assert_eq!(
            own(&nodes).map(|map| map.owned),
            Some(vec![(0, 5), (7, 5460)])
        );
        assert_eq!(asked(&nodes), Some(id('c').as_str()));
        assert!(!is_cut_off(&nodes));
    }

    #[test]
    fn what_is_no_account_of_nodes_is_an_error() {
        for text in [
            "",
            "ERR no",
            &master('a', "master", "0-5"),
            &master('a', "myself,master", "0-16384"),
            &master('a', "myself,master", "[5-?-x]"),
            &master('a', "myself,master", "x"),
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_shard_keeps_its_name_by_its_nodes() {
        let before = [known("s.a", "ab", '1', SOME), known("s.c", "c", '3', SOME)];
        let names = |lines: &[String]| named(lines, &[], &before);
        // A failover, and slots that moved.
        let c = master('c', "master", "51-16383");
        let lines = [
            master('b', "myself,master", "0-50"),
            replica('a', 'b'),
            c.clone(),
        ];
        assert_eq!(names(&lines), ["s.a", "s.c"]);
        // Both nodes of a shard own slots: the former owner keeps the name.
        let both = [
            master('b', "myself,master", "0-25"),
            master('a', "master", "26-50"),
            c,
        ];
        assert_eq!(names(&both), ["-", "s.a", "s.c"]);
    }

    #[test]
    fn who_goes_on_with_the_history_of_a_shard_is_that_shard() {
        let before = [known("s.a", "a", '1', SOME), known("s.c", "c", '3', SOME)];
        // A replica that nobody had seen was promoted.
        let late = [
            master('d', "myself,master", "0-100"),
            master('c', "master", "101-16383"),
        ];
        assert_eq!(named(&late, &[('d', "71")], &before), ["s.a", "s.c"]);
        // All slots went to another node, and the former owner follows it: that is a move.
        let moved = [
            master('d', "myself,master", "0-100"),
            replica('a', 'd'),
            master('c', "master", "101-16383"),
        ];
        assert_eq!(named(&moved, &[('d', "7")], &before), ["-", "s.c"]);
        // Who has the history itself outranks the node.
        assert_eq!(
            named(&late, &[('d', "3"), ('c', "9")], &before),
            ["s.c", "-"]
        );
    }

    #[test]
    fn a_replica_that_was_reset_is_not_the_shard_of_its_former_master() {
        let before = [known("s.a", "ae", '1', SOME), known("s.c", "c", '3', SOME)];
        let e = master('e', "master", "90-100");
        let a = master('a', "master", "0-89");
        let c = master('c', "myself,master", "101-16383");
        let e_first = [e.clone(), a.clone(), c.clone()];
        let a_first = [a, e, c.clone()];
        for told in [&[('e', "71"), ('a', "1")][..], &[('e', "71")]] {
            assert_eq!(named(&e_first, told, &before), ["-", "s.a", "s.c"]);
            assert_eq!(named(&a_first, told, &before), ["s.a", "-", "s.c"]);
        }
        // It has other slots than the shard that went.
        let other = [master('e', "master", "200-300"), c.clone()];
        let names = named(&other, &[('e', "71")], &[known("s.a", "a", '1', SOME)]);
        assert_eq!(names, ["-", "-"]);
        // Another replica took over meanwhile: it has most of the slots, also where nothing else tells.
        let before = [known("s.a", "abe", '1', SOME), known("s.c", "c", '3', SOME)];
        let e = master('e', "master", "90-100");
        let b = master('b', "master", "0-89");
        for told in [&[('e', "71"), ('b', "81")][..], &[('e', "71"), ('b', "89")]] {
            let e_first = [e.clone(), b.clone(), c.clone()];
            let b_first = [b.clone(), e.clone(), c.clone()];
            assert_eq!(named(&e_first, told, &before), ["-", "s.a", "s.c"]);
            assert_eq!(named(&b_first, told, &before), ["s.a", "-", "s.c"]);
        }
        // Few of the slots make no shard.
        let few = [e, master('d', "master", "0-89"), c];
        assert_eq!(named(&few, &[('e', "71")], &before), ["-", "-", "s.c"]);
    }

    #[test]
    fn shards_that_have_slots_outrank_those_that_had() {
        let before = [known("s.a", "ab", '1', &[]), known("s.c", "cb", '3', SOME)];
        let lines = [master('b', "myself,master", "0-16383")];
        assert_eq!(named(&lines, &[], &before), ["s.c"]);
        let lines = [master('a', "myself,master", "0-16383")];
        assert_eq!(named(&lines, &[], &before), ["s.a"], "it has slots again");
    }

    #[test]
    fn a_cluster_is_the_same_by_most_of_its_shards() {
        let before = [
            known("s.a", "ab", '1', SOME),
            known("s.c", "c", '3', SOME),
            known("s.d", "d", '4', &[]),
        ];
        let nodes = |lines: &[String]| is_same(&read(lines), &before);
        let a = master('a', "myself,master", "0-16383");
        assert!(!nodes(std::slice::from_ref(&a)), "half are not most");
        assert!(nodes(&[a.clone(), master('c', "master", "")]));
        assert!(is_same(&read(&[a]), &[]), "nothing is known");
    }

    #[test]
    fn a_node_that_is_cut_off_or_alone_is_not_believed() {
        let nodes = read(&[
            master('a', "myself,master", "0-100"),
            master('b', "master,fail?", "101-200"),
            master('c', "master,fail", "201-300"),
        ]);
        assert!(is_cut_off(&nodes));
        let alone = read(&[master('a', "myself,master", "")]);
        assert!(!has_owners(&alone));
    }

    #[test]
    fn names_of_shards_have_digits_of_a_node() {
        let id = "0123456789abcdef0123456789abcdef01234567";
        let new = |taken: &[&str]| new_name("shop", id, &|name| taken.contains(&name));
        assert_eq!(new(&[]).unwrap(), "shop.0123456789ab");
        assert_eq!(new(&["shop.0123456789ab"]).unwrap(), "shop.123456789abc");
        assert!(new_name("shop", id, &|_| true).is_err());
        assert_eq!(digits("shop", "shop.0123456789ab"), Some("0123456789ab"));
        for other in [
            "shop",
            "shop.0123",
            "shop.0123456789AB",
            "shops.0123456789ab",
            "shop.0123456789ab.x",
        ] {
            assert_eq!(digits("shop", other), None, "{other}");
        }
    }

    #[test]
    fn migrations_of_the_server_itself_are_added() {
        let bulk = |text: &str| Reply::Bulk(Some(text.as_bytes().to_vec()));
        let job = |operation: &str, state: &str, ranges: &str| {
            let pairs = [
                ("name", "x"),
                ("operation", operation),
                ("slot_ranges", ranges),
                ("target_node", &id('b')),
                ("source_node", &id('c')),
                ("state", state),
            ];
            let words = pairs
                .iter()
                .flat_map(|(key, value)| [bulk(key), bulk(value)]);
            Reply::Array(words.collect())
        };
        let mut map = known("s.a", "a", '1', SOME).map;
        let jobs = Reply::Array(vec![
            job("EXPORT", "replicating", "0-3 7"),
            job("EXPORT", "success", "90-91"),
            job("IMPORT", "cleaning-up", "200-201"),
        ]);
        add_migrations(&mut map, &jobs).unwrap();
        assert_eq!(map.migrating, [(0, 3, id('b')), (7, 7, id('b'))]);
        assert_eq!(map.importing, [(200, 201, id('c'))]);
        for wrong in [
            bulk("x"),
            Reply::Array(vec![bulk("x")]),
            Reply::Array(vec![job("EXPORT", "replicating", "0-x")]),
            Reply::Array(vec![job("OTHER", "replicating", "0-1")]),
        ] {
            assert!(add_migrations(&mut map, &wrong).is_err(), "{wrong:?}");
        }
    }
}
