//! The store on S3 over a slow link: it takes its time, and everything arrives. And a link that is kept slow on purpose.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pitr::config::S3Settings;
use pitr::store::pace::Pace;
use pitr::store::pace::store::PacedStore;
use pitr::store::s3::S3Store;
use pitr::store::{Key, Published, get, put};

use crate::common::proxy::{Proxy, Way};
use crate::common::s3::peer::Peer;
use crate::common::s3::{BUCKET, KEY};
use crate::common::{Sandbox, Still, Stop, pitr, wait_until};
use crate::fetch::mode;
use crate::s3_cycle::Offline;

/// As long as the largest body of one request, and of no pattern.
fn long() -> Vec<u8> {
    let mut state = 1_u64;
    let words = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 32).to_le_bytes()
    });
    words.flatten().take(16 << 20).collect()
}

/// The end of a URL.
pub fn port_of(endpoint: &str) -> u16 {
    let (_, port) = endpoint.rsplit_once(':').unwrap();
    port.parse().unwrap()
}

#[test]
fn f20_what_moves_slowly_arrives_whatever_time_it_takes() {
    const STALL: Duration = Duration::from_secs(5);
    const BYTES_PER_SECOND: u64 = 1_500_000;
    let (peer, sandbox) = (Peer::own(), Sandbox::new("slow"));
    let proxy = Proxy::to(port_of(&peer.endpoint()));
    let settings = S3Settings {
        endpoint: Some(format!("http://127.0.0.1:{}", proxy.port())),
        stall_timeout: STALL,
        ..peer.settings(&sandbox, KEY)
    };
    let store = S3Store::open(BUCKET, "", &settings, 7).unwrap();
    let (up, down) = (Key::new("wal/up").unwrap(), Key::new("wal/down").unwrap());
    let content = long();
    peer.server().plant(down.as_str(), &content);
    for way in [Way::ToServer, Way::ToClient] {
        proxy.throttle(way, Some(BYTES_PER_SECOND));
    }
    let timed = |work: &dyn Fn()| {
        let begun = Instant::now();
        work();
        let took = begun.elapsed();
        assert!(took > STALL * 3 / 2, "{took:?} is not slow");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            timed(&|| assert_eq!(put(&store, &up, &content).unwrap(), Published::Created));
        });
        timed(&|| assert!(get(&store, &down, 1 << 30).unwrap().unwrap() == content));
    });
    assert!(proxy.counts().throttled > 0);
    assert!(peer.server().object(up.as_str()) == content);
    // A link over which nothing comes any more is given up, and says how far it was.
    let hasty = S3Settings {
        retry_budget: Duration::ZERO,
        ..settings
    };
    let store = S3Store::open(BUCKET, "", &hasty, 7).unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| get(&store, &down, 1 << 30));
        let before = proxy.counts().bytes_to_client;
        wait_until("it has begun", || {
            proxy.counts().bytes_to_client > before + (1 << 20)
        });
        proxy.stall(Way::ToClient);
        let error = reader.join().unwrap().unwrap_err().to_string();
        assert!(error.contains("bytes have passed, the last"), "{error}");
    });
    assert!(proxy.counts().stalled > 0);
}

#[test]
fn f20_whoever_waits_for_a_slow_store_is_told_how_far_it_is() {
    let mut still = Still::new(17, 16, 1);
    // Rows without a pattern: more bytes than a store is asked for at once.
    still.cluster.start();
    let client = still.cluster.client();
    client.sql(
        "create table noise as select string_agg(md5(random()::text), '') from generate_series(1, 40) s, generate_series(1, 8000) g group by g",
    );
    let sql = "select pg_walfile_name(pg_switch_wal())";
    still.segments = vec![client.value(sql)];
    drop(client);
    still.cluster.stop(Stop::Immediate);
    let off = Offline::on(still, "");
    off.push(0).succeed();
    let name = &off.still.segments[0];
    let stored = off.server().object(&off.server().key(name)).len();
    assert!(stored > 4 << 20, "{stored}");
    let proxy = Proxy::to(port_of(&off.server().endpoint()));
    let text = std::fs::read_to_string(&off.config).unwrap();
    let slow = text.replace(
        &off.server().endpoint(),
        &format!("http://127.0.0.1:{}", proxy.port()),
    );
    let slow = off.still.site.sandbox().file("slow.toml", slow);
    proxy.throttle(Way::ToClient, Some(400_000));
    // A standby that has only the archive waits, however busy the machine is.
    mode(&off.still, "standby.signal", false);
    let fetch = off.fetch_with(&slow, name);
    let mut running = fetch
        .env("PITR_CLUSTERS_MAIN_PREFETCH_SEGMENTS", "0")
        .env("PITR_FAULT_SECONDS", "1")
        .spawn();
    let told = format!("still fetching \"{name}\": ");
    wait_until("it is told how far it is", || {
        let told = running.stderr().contains(&told);
        assert!(told || !running.is_done(), "{}", running.stderr());
        told
    });
    proxy.calm();
    assert!(proxy.counts().throttled > 0);
    let run = running.wait().success();
    let (_, rest) = run.stderr.split_once(&told).unwrap();
    let (bytes, _) = rest.split_once(" bytes so far").unwrap();
    let bytes: u64 = bytes.parse().unwrap();
    assert!((1..16 << 20).contains(&bytes), "{run}");
    let fetched = std::fs::read(off.still.wal("RECOVERYXLOG")).unwrap();
    assert!(fetched == std::fs::read(off.still.wal(name)).unwrap());
}

#[test]
fn max_rate_is_kept_by_what_goes_and_by_what_comes() {
    let (peer, sandbox) = (Peer::own(), Sandbox::new("rate"));
    let settings = peer.settings(&sandbox, KEY);
    let store = S3Store::open(BUCKET, "", &settings, 7).unwrap();
    let pace = Pace::new(&Arc::default()).own(1 << 20);
    let store = PacedStore::new(Box::new(store), Arc::new(pace));
    let begun = Instant::now();
    for n in 0..4 {
        let key = Key::new(format!("x{n}")).unwrap();
        put(&store, &key, &vec![n; 1 << 20]).unwrap();
        assert_eq!(get(&store, &key, 2 << 20).unwrap().unwrap().len(), 1 << 20);
    }
    // Eight bodies of a second each, of which a burst passes at once.
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(7), "{took:?}");
}

#[test]
fn max_rate_of_the_configuration_never_holds_wal_back() {
    let off = Offline::of(8, "");
    let backfill = |config: &std::path::Path| {
        let run = pitr().arg("--config").arg(config);
        let run = run.words("wal backfill --from");
        let begun = Instant::now();
        run.arg(off.still.wal("")).succeed();
        begun.elapsed()
    };
    let text = std::fs::read_to_string(&off.config).unwrap();
    // A segment alone would take minutes.
    let limited = format!("{text}max_rate = 1\n");
    let limited = off.still.site.sandbox().file("limited.toml", limited);
    let took = backfill(&limited);
    assert!(took < Duration::from_secs(60), "{took:?}");
    let server = off.server();
    let stored = server.keys();
    for name in &off.still.segments {
        assert_eq!(stored.iter().filter(|k| k.ends_with(name)).count(), 1);
        let target = off.still.site.sandbox().join(name);
        let fetch = pitr().arg("--config").arg(&limited);
        fetch.args(["wal", "fetch", name]).arg(&target).succeed();
        assert!(std::fs::read(&target).unwrap() == std::fs::read(off.still.wal(name)).unwrap());
    }
}
