//! A configured cluster: its nodes are asked for the shards, which keep the names that repositories and journals have, and each shard is followed to the owner of its slots.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::sentinels::none_leads;
use super::{connect_to, identity, kept_names, shards};
use crate::config::{self, Redis, RedisAddress, Settings};
use crate::err;
use crate::error::{Code, Error, Result};
use crate::operate::session::Session;
use crate::pg::time::TimestampTz;
use crate::redis::connection::Tick;
use crate::redis::nodes::{self, Known, Node};
use crate::redis::resp::{self, Reply};
use crate::redis::source::Source;
use crate::redis::version::Flavor;
use crate::repo::slot_map::{self, Range, Seen, SlotMap};

/// A node answers at once, or not at all.
const PATIENCE: Duration = Duration::from_secs(5);
/// A node that did not is left alone for a while: it holds up those that do.
const REST: Duration = Duration::from_secs(10);
/// Names that were read so long ago are new enough for another one to be given.
const FRESH: Duration = Duration::from_secs(15);
/// Names of shards are kept with a time that is so old at most.
const KEEP_EVERY: Duration = Duration::from_secs(60);
/// How often names are read again where a repository does not answer.
const READ_AGAIN: Duration = Duration::from_secs(30);
/// So often all owners have to agree that a shard has no slots any more.
const ROUNDS_MIN: u32 = 2;
/// The first releases that move slots by themselves; Valkey tells of it.
const ATOMIC_REDIS: (u32, u32) = (8, 4);
const ATOMIC_VALKEY: (u32, u32) = (9, 0);

/// A shard that has slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shard {
    pub name: String,
    pub map: SlotMap,
    /// The place where its owner listens; none where the cluster does not say.
    pub place: Option<RedisAddress>,
}

/// The shards of which several nodes told.
pub(super) struct Learned {
    /// Those that there are now.
    pub shards: Vec<Shard>,
    /// The words of their owners themselves.
    pub seen: Vec<(String, Seen)>,
    /// Why an owner of slots has no name.
    pub nameless: Option<Error>,
}

/// The present knowledge of a cluster.
pub(super) struct Live<'s> {
    session: &'s Session,
    pub section: &'s Redis,
    repositories: &'s [config::Repository],
    /// The operator said that other nodes than before go on with it.
    pub takes_over: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Its id; none before a shard has a name.
    cluster: Option<String>,
    /// All shards that ever were, as they were seen last.
    known: Vec<Known>,
    /// Until when shards had been seen when their names were read.
    seen_before: BTreeMap<String, TimestampTz>,
    /// Names of scopes that may be shards, and lack the record of slots that says so.
    unrecorded: Vec<String>,
    /// Those that have slots.
    shards: Vec<Shard>,
    /// The places where nodes listened last.
    places: Vec<RedisAddress>,
    /// The first repository that did not answer, and why: it may have names of shards.
    unread: Option<(String, String)>,
    /// When names were read.
    read: Option<Instant>,
    /// Whether an owner waits for a name, or a journal for the knowledge of its shard.
    wants_names: bool,
    /// The file of names, and what it holds.
    kept: Option<Kept>,
    /// How often all owners lacked a shard.
    lacked: BTreeMap<String, u32>,
}

/// The file of names.
struct Kept {
    path: PathBuf,
    shards: Vec<Known>,
    written: Option<Instant>,
}

/// The account of one node.
pub(super) struct Account {
    asked: RedisAddress,
    /// When it was asked.
    time: TimestampTz,
    nodes: Vec<Node>,
    /// Its history, and the one that this goes on from.
    replids: Vec<String>,
    /// Its slots; none of a replica.
    own: Option<SlotMap>,
}

impl Account {
    fn id(&self) -> &str {
        nodes::asked(&self.nodes).unwrap_or_default()
    }

    /// Whether it says itself that it owns slots.
    pub fn owns(&self, node: &str) -> bool {
        let own = self.own.as_ref();
        own.is_some_and(|own| own.node == node && !own.owned.is_empty())
    }
}

impl<'s> Live<'s> {
    /// A cluster whose shards have the names that they have in the repositories that answer, and in the journal's directory.
    ///
    /// # Errors
    /// Those of files.
    pub fn new(
        session: &'s Session,
        section: &'s Redis,
        settings: &'s Settings,
        takes_over: bool,
    ) -> Result<Live<'s>> {
        let mut known = kept_names::read(section)?;
        for one in &mut known {
            one.lingers = !one.map.owned.is_empty();
        }
        let mut state = State::default();
        state.merge(known);
        let live = Live {
            session,
            section,
            repositories: &settings.repositories,
            takes_over,
            state: Mutex::new(state),
        };
        live.read_names();
        for name in live.state(|state| state.unrecorded.clone()) {
            session.warn(&shards::unrecorded(&name));
        }
        Ok(live)
    }

    fn state<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps the names in a file from now on.
    pub fn keep_names(&self, path: PathBuf) {
        let kept = Kept {
            path,
            shards: Vec::new(),
            written: None,
        };
        self.state(|state| state.kept = Some(kept));
    }

    /// Asks for the names that all repositories have by now.
    pub fn want_names(&self) {
        self.state(|state| state.wants_names = true);
    }

    /// Reads them where somebody waits for that, unless it was a moment ago. Returns whether it did.
    pub fn read_wanted_names(&self) -> bool {
        let is_wanted = self.state(|state| std::mem::take(&mut state.wants_names));
        if is_wanted {
            self.read_names();
        }
        is_wanted
    }

    fn read_names(&self) {
        let is_due = self.state(|state| {
            let rest = match state.unread {
                None => FRESH,
                Some(_) => READ_AGAIN,
            };
            state.read.is_none_or(|read| read.elapsed() >= rest)
        });
        if !is_due {
            return;
        }
        let (mut unread, mut unrecorded) = (None, Vec::new());
        for configured in self.repositories {
            let opened = self.session.open(configured);
            let name = &self.section.name;
            match opened.and_then(|repository| shards::stored(&repository, name)) {
                Ok(stored) => {
                    self.state(|state| state.merge(stored.known));
                    unrecorded.extend(stored.unrecorded);
                }
                Err(e) => {
                    unread.get_or_insert((configured.name.clone(), e.to_string()));
                }
            }
        }
        self.state(|state| {
            let is_known = |name: &String| state.known.iter().any(|known| known.name == *name);
            unrecorded.retain(|name| !is_known(name));
            state.unrecorded = unrecorded;
            state.unread = unread;
            state.read = Some(Instant::now());
        });
    }

    /// Until when a shard had been seen before this process looked.
    pub fn seen_before(&self, shard: &str) -> Option<TimestampTz> {
        self.state(|state| state.seen_before.get(shard).copied())
    }

    /// Names of all shards that ever were.
    pub fn all(&self) -> Vec<String> {
        self.state(|state| state.known.iter().map(|known| known.name.clone()).collect())
    }

    /// The last look at a shard; one that a wrong clock dated is of now.
    pub fn last_look(&self, shard: &str) -> Option<Seen> {
        let now = self.session.host.now();
        self.state(|state| {
            let known = state.known.iter().find(|known| known.name == shard)?;
            let time = known.time.min(now);
            let map = SlotMap {
                run: None,
                since: time,
                again: false,
                offset: None,
                ..known.map.clone()
            };
            Some((time, map))
        })
    }

    /// The shards that have slots, as they were seen last.
    pub fn shards(&self) -> Vec<Shard> {
        self.state(|state| state.shards.clone())
    }

    /// A section that stands for one of the shards.
    pub fn section_of(&self, shard: &str) -> Redis {
        let digits = nodes::digits(&self.section.name, shard).unwrap_or(shard);
        let cluster = self.state(|state| {
            let known = state.known.iter().find(|known| known.name == shard);
            let of_shard = known.map(|known| known.map.cluster.clone());
            of_shard.or_else(|| state.cluster.clone())
        });
        let cluster = cluster.unwrap_or_default();
        Redis {
            name: shard.to_owned(),
            address: None,
            identity: Some(format!("{}:{cluster}#{digits}", identity(self.section))),
            ..self.section.clone()
        }
    }

    fn has_tls(&self) -> bool {
        self.section.access.tls.ca_file.is_some()
    }

    /// Requires that an account is one to go by.
    fn check(&self, account: &Account) -> Result<()> {
        let nodes = &account.nodes;
        if !nodes::has_owners(nodes) {
            return Err(
                err!(Unreachable, "it is alone: no node that it knows owns slots").hint(
                    "It belongs to no cluster, or to none any more. Name other nodes in addresses.",
                ),
            );
        }
        if nodes::is_cut_off(nodes) {
            return Err(err!(Unreachable, "it takes most masters for failed"));
        }
        let is_same = self.state(|state| nodes::is_same(nodes, &state.known));
        if is_same || self.takes_over {
            return Ok(());
        }
        Err(err!(
            Refused,
            "it is a node of another cluster: it knows no node of most shards that are stored as [redis.{}]",
            self.section.name
        )
        .hint(format!(
            "Nothing was stored. Correct addresses; or, where it is the successor, go on under this name: pitr redis backup {} --confirm",
            self.section.name
        )))
    }

    /// As [`Live::learn`]; names are read where one is needed.
    pub fn learn_all(&self, accounts: &[Account]) -> Learned {
        let learned = self.learn(accounts);
        match self.read_wanted_names() {
            true => self.learn(accounts),
            false => learned,
        }
    }

    /// Finds the shards in accounts, and remembers them. An owner's word on itself outranks that of another node. Nobody waits here for a repository.
    pub fn learn(&self, accounts: &[Account]) -> Learned {
        let Some(first) = accounts.first() else {
            return Learned {
                shards: self.shards(),
                seen: Vec::new(),
                nameless: None,
            };
        };
        let has_tls = self.has_tls();
        let mut owners = nodes::owners((&first.nodes, &first.asked), has_tls);
        for other in accounts {
            let own = nodes::owners((&other.nodes, &other.asked), has_tls);
            let own = own.into_iter().filter(|owner| owner.map.node == other.id());
            owners.retain(|owner| owner.map.node != other.id());
            owners.extend(own);
        }
        let account_of = |node: &str| accounts.iter().find(|account| account.id() == node);
        let heard: Vec<nodes::Heard<'_>> = owners
            .iter()
            .map(|owner| nodes::Heard {
                node: &owner.map.node,
                owned: &owner.map.owned,
                replids: account_of(&owner.map.node).map(|account| account.replids.as_slice()),
            })
            .collect();
        let drawn_id = || {
            let ids: Vec<&str> = heard.iter().map(|owner| owner.node).collect();
            slot_map::cluster_id(&ids)
        };
        let learned = self.state(|state| {
            let names = nodes::names(&heard, &state.known).into_iter();
            let names: Vec<Option<String>> = names.map(|name| name.map(str::to_owned)).collect();
            let own = |known: &&Known| names.iter().flatten().any(|name| *name == known.name);
            let newest = state.known.iter().filter(own);
            let newest = newest.max_by_key(|known| known.time);
            let newest = newest.map(|known| known.map.cluster.clone());
            let cluster = newest.or_else(|| state.cluster.clone());
            let cluster = cluster.unwrap_or_else(drawn_id);
            let (mut shards, mut seen, mut nameless) = (Vec::new(), Vec::new(), None);
            for (owner, name) in owners.iter().zip(names) {
                let node = &owner.map.node;
                let account = account_of(node);
                let drawn = || {
                    let others = owners.iter().filter(|other| other.map.node != *node);
                    let others = others.map(|other| other.map.owned.as_slice());
                    require_sole(&owner.map, others)?;
                    new_name(state, &self.section.name, node, account.is_some())
                };
                let name = match name.map_or_else(drawn, Ok) {
                    Ok(name) => name,
                    Err(e) => {
                        nameless = Some(e);
                        continue;
                    }
                };
                let before = state.known.iter().position(|known| known.name == name);
                let before = before.map(|n| state.known.swap_remove(n));
                let former = before.as_ref().map(|known| &known.map);
                let own = account.and_then(|account| account.own.clone());
                let map = SlotMap {
                    cluster: former.map_or(&cluster, |former| &former.cluster).clone(),
                    ..match own.clone() {
                        Some(own) => own,
                        None => SlotMap {
                            replid: former.map_or_else(String::new, |former| former.replid.clone()),
                            since: first.time,
                            ..owner.map.clone()
                        },
                    }
                };
                let time = account.map_or(first.time, |account| account.time);
                if own.is_some() {
                    seen.push((name.clone(), (time, map.clone())));
                }
                state.known.push(Known {
                    name: name.clone(),
                    time,
                    map: map.clone(),
                    lingers: true,
                });
                shards.push(Shard {
                    name,
                    map,
                    place: owner.place.clone(),
                });
            }
            if !shards.is_empty() {
                state.cluster = Some(cluster);
            }
            state.places = nodes::places(&first.nodes, &first.asked, has_tls);
            // One that no node names is there until a word of its former owner, or of all, ends it.
            let found = shards.clone();
            let is_lost = |one: &Shard| found.iter().all(|shard: &Shard| shard.name != one.name);
            let carried = state.shards.iter().filter(|one| is_lost(one)).cloned();
            shards.extend(carried);
            state.shards = shards;
            Learned {
                shards: found,
                seen,
                nameless,
            }
        });
        self.write_names();
        learned
    }

    /// Shards that have no slots any more, with the maps that say so. The former owner says it, or all owners do twice, while no node names any other owner.
    pub fn gone(&self, accounts: &[Account], learned: &Learned) -> Vec<(String, Seen)> {
        let Some(time) = accounts.iter().map(|account| account.time).min() else {
            return Vec::new();
        };
        let is_found = |node: &String| learned.shards.iter().any(|shard| shard.map.node == *node);
        let agrees = |account: &Account| {
            let owners = nodes::owners((&account.nodes, &account.asked), self.has_tls());
            owners.iter().all(|owner| is_found(&owner.map.node))
        };
        let all_agree = accounts.iter().all(agrees);
        let gone = self.state(|state| {
            let mut gone = Vec::new();
            for known in &mut state.known {
                let is_there = learned.shards.iter().any(|shard| shard.name == known.name);
                if is_there || !known.lingers {
                    state.lacked.remove(&known.name);
                    continue;
                }
                let mut own = accounts.iter();
                let own = own.find(|account| account.id() == known.map.node);
                let rounds = state.lacked.entry(known.name.clone()).or_default();
                *rounds = if all_agree { *rounds + 1 } else { 0 };
                if own.is_some_and(agrees) || *rounds >= ROUNDS_MIN {
                    known.lingers = false;
                    known.time = time;
                    known.map = known.map.emptied(time);
                    state.shards.retain(|shard| shard.name != known.name);
                    gone.push((known.name.clone(), (time, known.map.clone())));
                }
            }
            gone
        });
        if !gone.is_empty() {
            self.write_names();
        }
        gone
    }

    fn write_names(&self) {
        let nonce = self.session.host.random();
        let failed = self.state(|state| {
            let kept = state.kept.as_mut()?;
            let is_same = |one: &Known| {
                let mut known = kept.shards.iter();
                known.any(|known| known.name == one.name && known.map.is_same(&one.map))
            };
            let is_new = kept.written.is_some_and(|at| at.elapsed() < KEEP_EVERY);
            if is_new && kept.shards.len() == state.known.len() && state.known.iter().all(is_same) {
                return None;
            }
            kept.written = Some(Instant::now());
            match kept_names::write(&kept.path, &state.known, nonce) {
                Ok(()) => {
                    kept.shards.clone_from(&state.known);
                    None
                }
                Err(e) => {
                    kept.shards.clear();
                    Some(e)
                }
            }
        });
        if let Some(e) = failed {
            self.session
                .warn(&format!("names of shards are not kept: {e}"));
        }
    }

    /// Connects to the owner of a shard's slots, as it was seen last.
    ///
    /// # Errors
    /// Those of the server; `Unreachable` where the owner is none any more, or not known.
    pub fn connect(&self, shard: &str, tick: Tick<'_>) -> Result<Source> {
        let mut shards = self.shards().into_iter();
        let found = shards.find(|one| one.name == shard);
        let (node, place) = found
            .and_then(|found| Some((found.map.node, found.place?)))
            .ok_or_else(|| {
                err!(
                    Unreachable,
                    "no node of the cluster owns slots of shard {shard} now"
                )
                .hint("CLUSTER NODES on a node says who owns which slots.")
            })?;
        let mut source = connect_to(self.section, &place, tick)?;
        let account = ask(&mut source, self.session.host.now(), tick)?;
        match account.owns(&node) {
            true => Ok(source),
            false => Err(err!(
                Unreachable,
                "{place} owns the slots of shard {shard} no more"
            )
            .hint("Run the command again: a failover may be under way.")),
        }
    }
}

impl State {
    /// Brings what is known of shards together: what is newest counts.
    fn merge(&mut self, more: Vec<Known>) {
        for one in more {
            // Later ones are those of other hosts.
            if self.read.is_none() {
                let before = self.seen_before.entry(one.name.clone()).or_insert(one.time);
                *before = one.time.max(*before);
            }
            match self.known.iter_mut().find(|known| known.name == one.name) {
                Some(known) => {
                    let lingers = known.lingers || one.lingers;
                    if one.time > known.time {
                        *known = one;
                    }
                    known.lingers = lingers;
                }
                None => self.known.push(one),
            }
        }
    }
}

/// Requires that no account names another owner of the same slots: the node may be the shard that the other one was.
fn require_sole<'o>(map: &SlotMap, mut others: impl Iterator<Item = &'o [Range]>) -> Result<()> {
    match others.any(|other| nodes::overlap(&map.owned, other)) {
        false => Ok(()),
        true => Err(err!(
            Unreachable,
            "the slots of node {} have no shard yet: another node is said to own some of them, too",
            map.node
        )
        .hint("A failover may be under way. It is looked again each second.")),
    }
}

/// The name of a shard that nobody knew.
fn new_name(state: &mut State, cluster: &str, node: &str, is_asked: bool) -> Result<String> {
    if !is_asked {
        return Err(err!(
            Unreachable,
            "the slots of node {node} have no shard yet: it does not answer"
        ));
    }
    // Another host may have given it a name meanwhile.
    let is_fresh = state.read.is_some_and(|read| read.elapsed() < FRESH);
    if !is_fresh || state.unread.is_some() {
        state.wants_names = true;
    }
    if let Some((unread, why)) = &state.unread {
        return Err(err!(
            Unreachable,
            "the slots of node {node} have no shard yet: repository \"{unread}\" may know it by a name, and cannot be read: {why}"
        )
        .hint("A shard gets a new name when all repositories answer: else its history would be stored under two."));
    }
    if !is_fresh {
        return Err(err!(
            Unreachable,
            "the slots of node {node} have no shard yet: the names in the repositories are read"
        ));
    }
    let is_taken = |name: &str| {
        let known = state.known.iter().any(|known| known.name == name);
        known || state.unrecorded.iter().any(|unrecorded| unrecorded == name)
    };
    nodes::new_name(cluster, node, &is_taken)
}

/// Connections to nodes, for questions.
pub(super) struct Nodes<'l> {
    live: &'l Live<'l>,
    kept: BTreeMap<String, Source>,
    failed: BTreeMap<String, Instant>,
}

/// Accounts, and what those said that gave none.
type Asked = (Vec<Account>, Vec<(RedisAddress, Error)>);

impl<'l> Nodes<'l> {
    /// None yet.
    pub fn new(live: &'l Live<'l>) -> Nodes<'l> {
        Nodes {
            live,
            kept: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }

    /// Asks all owners of slots. The first account leads to the others; all are of one cluster.
    ///
    /// # Errors
    /// `Unreachable`, or the one error that all nodes led to; those of `tick`.
    pub fn all(&mut self, tick: Tick<'_>) -> Result<Vec<Account>> {
        let live = self.live;
        let mut asked: Asked = (Vec::new(), Vec::new());
        for shard in live.shards() {
            self.add(shard.place, &mut asked, tick)?;
        }
        let section = live.section;
        let own = section.address.iter().chain(&section.addresses).cloned();
        let more = own.chain(live.state(|state| state.places.clone()));
        for place in more {
            if asked.0.is_empty() {
                self.add(Some(place), &mut asked, tick)?;
            }
        }
        let Some(first) = asked.0.first() else {
            let search = format!("no node tells the shards of cluster \"{}\"", section.name);
            return Err(none_leads(&search, &asked.1));
        };
        for owner in nodes::owners((&first.nodes, &first.asked), live.has_tls()) {
            if asked.0.iter().all(|account| account.id() != owner.map.node) {
                self.add(owner.place, &mut asked, tick)?;
            }
        }
        let mut accounts = asked.0;
        let first = accounts.first().map(|first| first.id().to_owned());
        let first = first.as_deref();
        accounts.retain(|account| first.is_some_and(|id| nodes::has(&account.nodes, id)));
        Ok(accounts)
    }

    fn add(
        &mut self,
        place: Option<RedisAddress>,
        (accounts, failures): &mut Asked,
        tick: Tick<'_>,
    ) -> Result<()> {
        let Some(place) = place.filter(|place| failures.iter().all(|(p, _)| p != place)) else {
            return Ok(());
        };
        let key = place.to_string();
        if self.failed.get(&key).is_some_and(|at| at.elapsed() < REST) {
            let e = err!(Unreachable, "it did not answer a moment ago");
            failures.push((place, e));
            return Ok(());
        }
        match self.ask(&place, tick) {
            Ok(account) => {
                if accounts.iter().all(|one| one.id() != account.id()) {
                    accounts.push(account);
                }
            }
            Err(e) if e.code() == Code::Interrupted => return Err(e),
            Err(e) => {
                self.failed.insert(key, Instant::now());
                failures.push((place, e));
            }
        }
        Ok(())
    }

    fn ask(&mut self, place: &RedisAddress, tick: Tick<'_>) -> Result<Account> {
        let live = self.live;
        let key = place.to_string();
        let now = || live.session.host.now();
        let kept = self.kept.remove(&key);
        let again = kept.and_then(|mut kept| Some((ask(&mut kept, now(), tick).ok()?, kept)));
        let (account, source) = match again {
            Some(again) => again,
            None => {
                let section = Redis {
                    stall_timeout: live.section.stall_timeout.min(PATIENCE),
                    ..live.section.clone()
                };
                let mut source = connect_to(&section, place, tick)?;
                (ask(&mut source, now(), tick)?, source)
            }
        };
        self.kept.insert(key, source);
        live.check(&account)?;
        Ok(account)
    }
}

/// Asks for the nodes, for its histories, and for slots that it moves by itself. `time` is now.
fn ask(source: &mut Source, time: TimestampTz, tick: Tick<'_>) -> Result<Account> {
    let answer = source.connection.ask(&[b"CLUSTER", b"NODES"], tick)?;
    let Reply::Bulk(Some(text)) = answer else {
        return Err(resp::no_sense(b"no bulk string"));
    };
    let nodes = nodes::parse(&String::from_utf8_lossy(&text))?;
    let info = source.ask("replication", tick)?;
    let fields = ["master_replid", "master_replid2"].into_iter();
    let replids = fields.filter_map(|name| info.field(name));
    // One that has no second history says zeros.
    let replids = replids.filter(|id| !id.bytes().all(|b| b == b'0'));
    let replids: Vec<String> = replids.map(str::to_owned).collect();
    let mut own = nodes::own(&nodes);
    if let Some(own) = &mut own {
        own.since = time;
        own.replid = info.field("master_replid").unwrap_or_default().to_owned();
        own.offset = info.number("master_repl_offset");
        let (flavor, release) = (source.version.flavor, source.version.release);
        own.atomic_seen = match flavor {
            Flavor::Redis => release < ATOMIC_REDIS,
            Flavor::Valkey if release < ATOMIC_VALKEY => true,
            Flavor::Valkey => {
                let words: [&[u8]; 2] = [b"CLUSTER", b"GETSLOTMIGRATIONS"];
                nodes::add_migrations(own, &source.connection.ask(&words, tick)?)?;
                true
            }
        };
    }
    Ok(Account {
        asked: source.connection.address().clone(),
        time,
        nodes,
        replids,
        own,
    })
}

/// Says which shard failed.
pub(super) fn of_shard(shard: &str, error: Error) -> Error {
    match error.code() {
        Code::Interrupted => error,
        _ => error.context(format!("shard {shard}")),
    }
}
