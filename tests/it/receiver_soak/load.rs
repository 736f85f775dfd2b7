//! Clients that commit rows and remember what was acknowledged to them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::common::random::Random;
use crate::common::{Client, Cluster};

pub const CLIENTS: u32 = 4;

/// The work of one client.
#[derive(Default)]
pub struct Ledger {
    /// Its number, that of its rows.
    pub client: u32,
    /// Numbers of the rows whose commit was acknowledged.
    pub acknowledged: BTreeSet<u64>,
    /// Numbers below this were tried.
    pub tried: u64,
}

#[derive(Default)]
struct Shared {
    conninfo: Mutex<String>,
    rest: Duration,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    broken: AtomicU64,
}

/// The clients at work.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Ledger>>,
    churn: JoinHandle<()>,
}

/// Makes the tables.
pub const TABLES: &str = "create table ledger (client int, number bigint, filler text, primary key (client, number)); \
     create table bulk (id bigint, filler text)";

impl Load {
    /// Starts the clients, and one that makes WAL of other shapes: long records, checkpoints, segments cut short.
    pub fn start(cluster: &Cluster, random: &mut Random) -> Load {
        Load::start_at(cluster.conninfo("postgres"), 0, Duration::ZERO, random)
    }

    /// The same by a connection string, with clients that are numbered from `first` on and rest after each commit.
    pub fn start_at(conninfo: String, first: u32, rest: Duration, random: &mut Random) -> Load {
        let shared = Arc::new(Shared {
            conninfo: Mutex::new(conninfo),
            rest,
            ..Shared::default()
        });
        let clients = (first..first + CLIENTS)
            .map(|client| {
                let (shared, random) = (Arc::clone(&shared), random.fork());
                std::thread::spawn(move || commit_rows(client, &shared, random))
            })
            .collect();
        let (churned, mut random) = (Arc::clone(&shared), random.fork());
        let churn = std::thread::spawn(move || {
            while let Some(client) = connect(&churned) {
                while !churned.stop.load(Ordering::SeqCst)
                    && client.try_sql(&odd_statement(&mut random)).is_ok()
                {
                    std::thread::sleep(Duration::from_millis(random.below(300) as u64));
                }
            }
        });
        Load {
            shared,
            clients,
            churn,
        }
    }

    /// Sends later connections to another server.
    pub fn redirect(&self, cluster: &Cluster) {
        *self.shared.conninfo.lock().unwrap() = cluster.conninfo("postgres");
    }

    /// Returns how many commits were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// Returns how many commits ended without an answer.
    pub fn broken(&self) -> u64 {
        self.shared.broken.load(Ordering::SeqCst)
    }

    /// Lets every client finish what it is doing; returns what they did, by client.
    pub fn stop(self) -> Vec<Ledger> {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.churn.join().expect("the client does not panic");
        self.clients
            .into_iter()
            .map(|client| client.join().expect("a client does not panic"))
            .collect()
    }
}

/// Connects as soon as the server lets it; `None` once the load is to stop.
fn connect(shared: &Shared) -> Option<Client> {
    while !shared.stop.load(Ordering::SeqCst) {
        let conninfo = shared.conninfo.lock().unwrap().clone();
        if let Ok(client) = Client::connect(&conninfo) {
            return Some(client);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

fn commit_rows(client: u32, shared: &Shared, mut random: Random) -> Ledger {
    let mut ledger = Ledger {
        client,
        ..Ledger::default()
    };
    while let Some(connection) = connect(shared) {
        while !shared.stop.load(Ordering::SeqCst) {
            let count = if random.one_in(8) {
                1 + random.below(5) as u64
            } else {
                1
            };
            let numbers = ledger.tried..ledger.tried + count;
            // Whatever comes of it, no number is used twice.
            ledger.tried = numbers.end;
            if connection
                .try_sql(&transaction(client, numbers.clone(), &mut random))
                .is_err()
            {
                shared.broken.fetch_add(1, Ordering::SeqCst);
                break;
            }
            ledger.acknowledged.extend(numbers);
            shared.acknowledged.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(shared.rest);
        }
    }
    ledger
}

fn transaction(client: u32, numbers: std::ops::Range<u64>, random: &mut Random) -> String {
    let rows: Vec<String> = numbers
        .map(|number| {
            let filler = "x".repeat(random.below(1500));
            format!("insert into ledger values ({client}, {number}, '{filler}')")
        })
        .collect();
    format!("begin; {}; commit", rows.join("; "))
}

fn odd_statement(random: &mut Random) -> String {
    match random.below(8) {
        0 => "checkpoint".into(),
        1 | 2 => "select pg_switch_wal()".into(),
        // A record longer than a segment of 1 MiB, and one that mostly crosses into the next.
        3 => message(1100 + random.below(1000)),
        4 => message(10 + random.below(500)),
        5 => "truncate bulk".into(),
        _ => format!(
            "insert into bulk select g, md5(random()::text) from generate_series(1, {}) g",
            1 + random.below(3000)
        ),
    }
}

fn message(kib: usize) -> String {
    format!(
        "select pg_logical_emit_message(true, 'soak', repeat(md5(random()::text), {}))",
        kib * 32
    )
}
