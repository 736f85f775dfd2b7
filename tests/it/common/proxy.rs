//! A TCP proxy that does to a connection what networks do: it delays, throttles, falls silent, resets, cuts after a byte and in the
//! middle of a message. Every fault is counted when it happens, and tests assert on the count.
//!
//! Two threads carry each connection. They look at the rules between two pieces of at most 16 KiB and twenty times a second
//! while nothing comes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

/// How long a carrying thread waits for bytes before it looks at the rules again.
const TICK: Duration = Duration::from_millis(50);
const PIECE: usize = 16 << 10;

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the server to the client.
    ToClient,
    /// From the client to the server.
    ToServer,
}

/// How often each fault has happened, and what passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were accepted and carried.
    pub connections: u64,
    /// Connections that were refused by [`Proxy::refuse`].
    pub refused: u64,
    /// Pieces held back by [`Proxy::delay`].
    pub delayed: u64,
    /// Pieces slowed down by [`Proxy::throttle`].
    pub throttled: u64,
    /// Directions of a connection that fell silent by [`Proxy::stall`] while they were open.
    pub stalled: u64,
    /// Connections that were reset.
    pub resets: u64,
    /// Connections that ended after the byte of [`Proxy::cut_after`].
    pub cuts: u64,
    /// Connections that ended inside a message by [`Proxy::truncate`].
    pub truncated: u64,
    /// Bytes that reached the client.
    pub bytes_to_client: u64,
    /// Bytes that reached the server.
    pub bytes_to_server: u64,
}

#[derive(Default, Clone, Copy)]
struct Rules {
    delay: Duration,
    bytes_per_second: Option<u64>,
    /// The connection that passes so many more bytes ends there.
    cut_after: Option<u64>,
    /// The connection ends in the middle of its next message with a body of at least this size.
    truncate: Option<usize>,
}

/// The state that the proxy, its threads and the test share.
#[derive(Default)]
struct Shared {
    target: AtomicU16,
    refuse: AtomicBool,
    done: AtomicBool,
    rules: Mutex<[Rules; 2]>,
    counts: Mutex<Counts>,
    open: Mutex<Vec<Weak<Link>>>,
    accepted: AtomicU64,
}

/// A connection through the proxy.
struct Link {
    client: TcpStream,
    server: TcpStream,
    stalled: [AtomicBool; 2],
    dead: AtomicBool,
}

/// A listener on 127.0.0.1 that passes on to a port of 127.0.0.1. Dropped, it resets what is open.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl Proxy {
    /// Listens, and passes connections on to `port`.
    pub fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let own = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        shared.target.store(port, Ordering::SeqCst);
        let state = Arc::clone(&shared);
        std::thread::spawn(move || accept(&listener, &state));
        Proxy { port: own, shared }
    }

    /// Returns the port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns a libpq connection string. Without TLS: [`truncate`](Self::truncate) reads messages.
    pub fn conninfo(&self) -> String {
        format!(
            "host=127.0.0.1 port={} user=postgres sslmode=disable",
            self.port
        )
    }

    /// Sends later connections to another port, as when a name points elsewhere.
    pub fn retarget(&self, port: u16) {
        self.shared.target.store(port, Ordering::SeqCst);
    }

    /// Lets later connections end as soon as they are made, or not.
    pub fn refuse(&self, on: bool) {
        self.shared.refuse.store(on, Ordering::SeqCst);
    }

    /// Holds every piece back for so long; zero ends it.
    pub fn delay(&self, way: Way, delay: Duration) {
        lock(&self.shared.rules)[way as usize].delay = delay;
    }

    /// Lets so many bytes through in a second, on each connection; `None` ends it.
    pub fn throttle(&self, way: Way, bytes_per_second: Option<u64>) {
        lock(&self.shared.rules)[way as usize].bytes_per_second = bytes_per_second;
    }

    /// Makes the open connections half-open for good: in this direction neither bytes nor their end arrive, while both sides
    /// believe in the connection. Later ones work.
    pub fn stall(&self, way: Way) {
        let mut stalled = 0;
        for link in self.open() {
            if !link.dead.load(Ordering::SeqCst)
                && !link.stalled[way as usize].swap(true, Ordering::SeqCst)
            {
                stalled += 1;
            }
        }
        lock(&self.shared.counts).stalled += stalled;
    }

    /// Resets the open connections: both sides get an error, and bytes under way are lost.
    pub fn reset(&self) {
        for link in self.open() {
            if link.reset() {
                lock(&self.shared.counts).resets += 1;
            }
        }
    }

    /// Ends, after so many more bytes in this direction, the connection that carried the last of them. Happens once.
    pub fn cut_after(&self, way: Way, bytes: u64) {
        lock(&self.shared.rules)[way as usize].cut_after = Some(bytes);
    }

    /// Ends, in the middle of the body, the connection that carries the next message of at least `size` bytes. Happens once.
    pub fn truncate(&self, way: Way, size: usize) {
        lock(&self.shared.rules)[way as usize].truncate = Some(size.max(2));
    }

    /// Takes back every rule: delay, rate, refusal, and cuts that have not happened. Connections that fell silent stay
    /// so.
    pub fn calm(&self) {
        *lock(&self.shared.rules) = [Rules::default(); 2];
        self.refuse(false);
    }

    /// Returns what has happened so far.
    pub fn counts(&self) -> Counts {
        *lock(&self.shared.counts)
    }

    /// Returns how many connections are open.
    pub fn open_connections(&self) -> usize {
        let open = self.open();
        open.iter()
            .filter(|link| !link.dead.load(Ordering::SeqCst))
            .count()
    }

    fn open(&self) -> Vec<Arc<Link>> {
        lock(&self.shared.open)
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.done.store(true, Ordering::SeqCst);
        self.reset();
        // The accepting thread waits for a connection.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Link {
    /// Both sockets are closed without a FIN once the threads have let go of them. False if it was over already.
    fn reset(&self) -> bool {
        for socket in [&self.client, &self.server] {
            let _ = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
        }
        !self.dead.swap(true, Ordering::SeqCst)
    }

    /// Both sides see an orderly end.
    fn end(&self) {
        self.dead.store(true, Ordering::SeqCst);
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.server.shutdown(Shutdown::Both);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.done.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        if shared.refuse.load(Ordering::SeqCst) {
            lock(&shared.counts).refused += 1;
            continue;
        }
        // A server that is away looks like one through no proxy: the connection ends at once.
        let target = shared.target.load(Ordering::SeqCst);
        let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else {
            continue;
        };
        lock(&shared.counts).connections += 1;
        for socket in [&client, &server] {
            let _ = socket.set_nodelay(true);
            socket.set_read_timeout(Some(TICK)).unwrap();
        }
        let link = Arc::new(Link {
            client,
            server,
            stalled: Default::default(),
            dead: AtomicBool::new(false),
        });
        let mut open = lock(&shared.open);
        open.retain(|link| link.strong_count() > 0);
        open.push(Arc::downgrade(&link));
        drop(open);
        for way in [Way::ToClient, Way::ToServer] {
            let (link, shared) = (Arc::clone(&link), Arc::clone(shared));
            std::thread::spawn(move || carry(&link, way, &shared));
        }
    }
}

/// Carries one direction of a connection until it ends.
fn carry(link: &Link, way: Way, shared: &Shared) {
    let (mut from, mut to) = match way {
        Way::ToClient => (&link.server, &link.client),
        Way::ToServer => (&link.client, &link.server),
    };
    let mut framing = Framing::of(way);
    let mut piece = vec![0; PIECE];
    while !link.dead.load(Ordering::SeqCst) {
        if link.stalled[way as usize].load(Ordering::SeqCst) {
            std::thread::sleep(TICK);
            continue;
        }
        let bytes = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => &piece[..n],
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => {
                // A reset of one side is one of the other.
                link.reset();
                return;
            }
        };
        hold_back(bytes.len(), way, shared);
        // It may have fallen silent, or ended, while this piece was read.
        while link.stalled[way as usize].load(Ordering::SeqCst) && !link.dead.load(Ordering::SeqCst)
        {
            std::thread::sleep(TICK);
        }
        if link.dead.load(Ordering::SeqCst) {
            return;
        }
        let (pass, ends) = pass_of(bytes, &mut framing, way, shared);
        if to.write_all(&bytes[..pass]).is_err() {
            link.reset();
            return;
        }
        count_bytes(pass, way, shared);
        if ends {
            link.end();
            return;
        }
    }
    // A reset is no orderly end: it comes when the sockets are closed.
    if !link.dead.load(Ordering::SeqCst) {
        let _ = to.shutdown(Shutdown::Write);
    }
}

fn count_bytes(bytes: usize, way: Way, shared: &Shared) {
    let mut counts = lock(&shared.counts);
    match way {
        Way::ToClient => counts.bytes_to_client += bytes as u64,
        Way::ToServer => counts.bytes_to_server += bytes as u64,
    }
}

fn hold_back(bytes: usize, way: Way, shared: &Shared) {
    let rules = lock(&shared.rules)[way as usize];
    if !rules.delay.is_zero() {
        std::thread::sleep(rules.delay);
        lock(&shared.counts).delayed += 1;
    }
    if let Some(rate) = rules.bytes_per_second {
        std::thread::sleep(Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64));
        lock(&shared.counts).throttled += 1;
    }
}

/// How much of a piece passes, and whether the connection ends there.
fn pass_of(bytes: &[u8], framing: &mut Framing, way: Way, shared: &Shared) -> (usize, bool) {
    let mut rules = lock(&shared.rules);
    let rule = &mut rules[way as usize];
    let middle = framing.feed(bytes, rule.truncate);
    if let Some(at) = middle {
        rule.truncate = None;
        lock(&shared.counts).truncated += 1;
        return (at, true);
    }
    match rule.cut_after {
        Some(left) if left <= bytes.len() as u64 => {
            rule.cut_after = None;
            lock(&shared.counts).cuts += 1;
            (usize::try_from(left).expect("less than a piece"), true)
        }
        Some(left) => {
            rule.cut_after = Some(left - bytes.len() as u64);
            (bytes.len(), false)
        }
        None => (bytes.len(), false),
    }
}

/// The borders of messages. PostgreSQL: doc/src/sgml/protocol.sgml, "Message Formats": a type, a length that counts
/// itself.
struct Framing {
    /// The client's first message has no type.
    untyped: bool,
    header: Vec<u8>,
    body_left: usize,
}

impl Framing {
    fn of(way: Way) -> Framing {
        Framing {
            untyped: way == Way::ToServer,
            header: Vec::new(),
            body_left: 0,
        }
    }

    /// Follows the messages; returns where the first one that begins in `bytes` and is large enough is to be cut.
    fn feed(&mut self, bytes: &[u8], truncate: Option<usize>) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            if self.body_left > 0 {
                let step = self.body_left.min(bytes.len() - at);
                self.body_left -= step;
                at += step;
                continue;
            }
            self.header.push(bytes[at]);
            at += 1;
            let size = if self.untyped { 4 } else { 5 };
            if self.header.len() < size {
                continue;
            }
            let length = u32::from_be_bytes(self.header[size - 4..].try_into().unwrap()) as usize;
            self.header.clear();
            self.untyped = false;
            self.body_left = length.saturating_sub(4);
            if truncate.is_some_and(|least| self.body_left >= least) {
                // At least one byte of the body is missing, and one of it passes if it is here.
                return Some((at + self.body_left / 2).min(bytes.len()));
            }
        }
        None
    }
}
