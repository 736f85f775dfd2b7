//! The store on S3: its contract, and the faults of the fault matrix, section 5.3, on the store itself.

use std::io::Write as _;
use std::time::Duration;

use pitr::config::{LockMode, ObjectLock, S3Settings, Sse, StorageClasses};
use pitr::error::Code;
use pitr::store::conformance::CLAUSES;
use pitr::store::s3::S3Store;
use pitr::store::s3::class::Thaw;
use pitr::store::{Frozen, Published, Store, get, put};

use crate::common::Sandbox;
use crate::common::authority::Authority;
use crate::common::proxy::{Proxy, Way};
use crate::common::s3::peer::{Peer, keys};
use crate::common::s3::tls::{Says, Tls};
use crate::common::s3::{BUCKET, Fault, KEY, Place, SECRET, WRITER, key, large};

fn put_large(store: &S3Store, at: &str) -> pitr::error::Result<Published> {
    let mut object = store.create(&key(at)).unwrap();
    object
        .write_all(&large())
        .map_err(|e| pitr::error::Error::from_io("write", e))?;
    object.publish()
}

#[test]
fn an_object_store_keeps_every_promise() {
    let (peer, sandbox) = (Peer::start(), Sandbox::new("s3"));
    if let Some(server) = &peer.own {
        server.behave(|m| m.page_keys = 2);
    }
    let store = peer.store(&sandbox, "a/b");
    // All of them are tried: the lines are a store's row in docs/stores.md.
    let mut broken = Vec::new();
    for (n, clause) in CLAUSES.iter().enumerate() {
        match (clause.check)(&store, &format!("clause-{n}")) {
            Ok(()) => println!("kept    {}", clause.name),
            Err(e) => {
                println!("BROKEN  {}: {e}", clause.name);
                broken.push(clause.name);
            }
        }
    }
    // And whether it is one in which a repository may be.
    let found = store.probe(1);
    println!("{found:?}");
    assert!(broken.is_empty(), "{broken:?}");
    let left = store.irregular().unwrap();
    assert!(left.is_empty(), "what was given up is taken back: {left:?}");
    let all = peer.store(&sandbox, "");
    assert!(keys(&all).iter().all(|k| k.starts_with("a/b/")));
    assert_eq!(found.unwrap().may_delete, Some(true));
}

#[test]
fn an_object_is_read_in_few_requests() {
    let place = Place::new();
    let store = place.store();
    assert_eq!(put_large(&store, "packs/x").unwrap(), Published::Created);
    place.server.clear_log();
    let object = store.open(&key("packs/x")).unwrap().unwrap();
    let all = large();
    let mut buffer = vec![0; 50_000];
    for (n, piece) in all.chunks(50_000).enumerate() {
        let buffer = &mut buffer[..piece.len()];
        object.read_at(buffer, n as u64 * 50_000).unwrap();
        assert!(buffer == piece);
    }
    let asked = place.server.log().len();
    assert!(asked <= 7, "9 MB in {asked} requests");
    place.server.clear_log();
    assert_eq!(
        put(&store, &key("small"), b"x").unwrap(),
        Published::Created
    );
    assert_eq!(get(&store, &key("small"), 10).unwrap().unwrap(), b"x");
    // Between them the store was asked once whether it compares checksums.
    assert_eq!(place.server.log().len(), 3, "{:?}", place.server.log());
    place.server.clear_log();
    assert_eq!(put(&store, &key("y"), b"x").unwrap(), Published::Created);
    assert_eq!(place.server.log().len(), 1, "{:?}", place.server.log());
}

#[test]
fn what_the_store_does_not_confirm_is_read_back() {
    let place = Place::new();
    let store = place.store();
    place.server.behave(|m| m.omits_sums = true);
    for (name, requests) in [("x", 2), ("packs/x", 5)] {
        place.server.clear_log();
        match name {
            "x" => assert_eq!(put(&store, &key(name), b"one").unwrap(), Published::Created),
            _ => assert_eq!(put_large(&store, name).unwrap(), Published::Created),
        }
        let log = place.server.log();
        assert_eq!(log.len(), requests, "{log:?}");
        assert!(log.last().is_some_and(|l| l.starts_with("GET")), "{log:?}");
    }
    assert_eq!(put(&store, &key("empty"), b"").unwrap(), Published::Created);
    place.server.behave(|m| m.spoils = true);
    let error = put(&store, &key("y"), b"one").unwrap_err();
    assert_eq!(error.code(), Code::ReadBack, "{error}");
}

#[test]
fn over_tls_a_body_is_part_of_the_signature_only_where_nothing_else_proves_it() {
    let authority = Authority::new();
    let over_tls = || {
        let place = Place::new();
        let says = Says {
            subject: "the store",
            host: "localhost",
            year: 2100,
        };
        let tls = Tls::before(&place.server, &authority, &says);
        let store = place.open(|s| {
            s.endpoint = Some(tls.endpoint());
            s.ca_file = Some(place.sandbox.file("ca.pem", &authority.pem));
        });
        (place, tls, store)
    };
    let unsigned = |place: &Place| {
        let log = place.server.log();
        log.iter().filter(|l| l.ends_with(" unsigned")).count()
    };
    let create = |store: &S3Store, name: &str| {
        assert_eq!(put(store, &key(name), b"one").unwrap(), Published::Created);
    };
    // That the store compares checksums is known behind the second object.
    let (place, _tls, store) = over_tls();
    for (name, expected) in [("a", 0), ("b", 0), ("c", 1), ("d", 2)] {
        create(&store, name);
        assert_eq!(unsigned(&place), expected, "{:?}", place.server.log());
    }
    assert_eq!(put_large(&store, "packs/x").unwrap(), Published::Created);
    assert_eq!(unsigned(&place), 4, "{:?}", place.server.log());
    // Refused once, and not asked for again.
    place.server.behave(|m| m.wants_signed = true);
    for name in ["e", "f"] {
        create(&store, name);
        assert_eq!(unsigned(&place), 5, "{:?}", place.server.log());
    }
    assert_eq!(put_large(&store, "packs/y").unwrap(), Published::Created);
    assert_eq!(unsigned(&place), 5, "{:?}", place.server.log());
    // The same with a part.
    let (place, _tls, store) = over_tls();
    for name in ["a", "b", "c"] {
        create(&store, name);
    }
    place.server.behave(|m| m.wants_signed = true);
    assert_eq!(put_large(&store, "packs/x").unwrap(), Published::Created);
    assert_eq!(unsigned(&place), 2, "{:?}", place.server.log());
    // Nothing is proven by a store that compares nothing, nor kept on its way without TLS.
    let (place, _tls, store) = over_tls();
    place.server.behave(|m| m.ignores_sums = true);
    for name in ["a", "b", "c"] {
        create(&store, name);
    }
    assert_eq!(unsigned(&place), 0, "{:?}", place.server.log());
    let place = Place::new();
    let store = place.store();
    for name in ["a", "b", "c"] {
        create(&store, name);
    }
    assert_eq!(unsigned(&place), 0, "{:?}", place.server.log());
}

#[test]
fn s01_what_passes_is_tried_again() {
    let place = Place::new();
    let store = place.store();
    for (n, fault) in [
        Fault::Error(500, "InternalError"),
        Fault::Error(502, ""),
        Fault::Error(503, "SlowDown"),
        Fault::Stranger(503),
        Fault::Error(400, "RequestTimeout"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = key(&format!("x{n}"));
        for method in ["PUT", "GET"] {
            let fired = place.server.fault(method, 2, fault.clone());
            match method {
                "PUT" => assert_eq!(put(&store, &name, b"one").unwrap(), Published::Created),
                _ => assert_eq!(get(&store, &name, 10).unwrap().unwrap(), b"one"),
            }
            assert_eq!(fired.times(), 2, "{method} {fault:?}");
        }
    }
    assert_eq!(place.server.keys().len(), 5, "nothing is there twice");
    let fired = place
        .server
        .fault("list-type=2", 2, Fault::Error(503, "SlowDown"));
    assert_eq!(store.list("").unwrap().len(), 5);
    assert_eq!(fired.times(), 2);
    let lasting = place
        .server
        .fault("PUT", u64::MAX, Fault::Error(503, "SlowDown"));
    let error = put(&place.hasty(), &key("y"), b"").unwrap_err();
    assert_eq!(error.code(), Code::Unreachable, "{error}");
    assert!(
        lasting.times() > 0 && error.to_string().contains("SlowDown"),
        "{error}"
    );
}

#[test]
fn s02_a_connection_that_breaks_is_never_success() {
    let place = Place::new();
    let store = place.open(|s| s.stall_timeout = Duration::from_secs(3));
    let content: Vec<u8> = (0..200_000_u32).map(|n| (n % 253) as u8).collect();
    let reset = place.server.fault("PUT", 2, Fault::Reset);
    assert_eq!(
        put(&store, &key("x"), &content).unwrap(),
        Published::Created
    );
    assert_eq!(reset.times(), 2);
    for fault in [
        Fault::Reset,
        Fault::Truncated(1000),
        Fault::Truncated(0),
        Fault::Stalled,
    ] {
        let fired = place.server.fault("GET", 1, fault.clone());
        assert!(get(&store, &key("x"), 1 << 20).unwrap().unwrap() == content);
        assert_eq!(fired.times(), 1, "{fault:?}");
    }
    let always = place.server.fault("PUT", u64::MAX, Fault::Reset);
    let error = put(&place.hasty(), &key("y"), b"").unwrap_err();
    assert_eq!(error.code(), Code::Unreachable, "{error}");
    assert!(always.times() > 0);
    place.server.heal();
    assert!(store.open(&key("y")).unwrap().is_none());
}

#[test]
fn s02_an_upload_that_is_cut_in_the_middle_is_repeated() {
    let place = Place::new();
    let endpoint = place.server.endpoint();
    let (_, port) = endpoint.rsplit_once(':').unwrap();
    let proxy = Proxy::to(port.parse().unwrap());
    let store = place.open(|s| s.endpoint = Some(format!("http://127.0.0.1:{}", proxy.port())));
    let content: Vec<u8> = (0..200_000_u32).map(|n| (n % 253) as u8).collect();
    proxy.cut_after(Way::ToServer, 100_000);
    let name = key("wal/x");
    assert_eq!(put(&store, &name, &content).unwrap(), Published::Created);
    assert_eq!(proxy.counts().cuts, 1);
    assert!(get(&store, &name, 1 << 20).unwrap().unwrap() == content);
    // In a part, of which the first has 8 MiB.
    proxy.cut_after(Way::ToServer, 1_000_000);
    assert_eq!(put_large(&store, "packs/x").unwrap(), Published::Created);
    assert_eq!(proxy.counts().cuts, 2);
    assert!(get(&store, &key("packs/x"), 1 << 24).unwrap().unwrap() == large());
    assert_eq!(place.server.open_uploads(), 0);
    // If every attempt breaks, nothing is there and no answer claims so.
    proxy.refuse(true);
    proxy.reset();
    let hasty = place.open(|s| {
        s.endpoint = Some(format!("http://127.0.0.1:{}", proxy.port()));
        s.retry_budget = Duration::from_millis(300);
    });
    let error = put(&hasty, &key("wal/y"), &content).unwrap_err();
    assert_eq!(error.code(), Code::Unreachable, "{error}");
    assert!(proxy.counts().refused > 0);
    assert_eq!(place.server.keys().len(), 2);
}

#[test]
fn s03_an_error_in_the_body_of_a_success_is_an_error() {
    let place = Place::new();
    let store = place.store();
    for (line, at) in [
        ("POST /bucket/a/b/packs/x?uploadId", "packs/x"),
        ("PUT /bucket/a/b/packs/y?part", "packs/y"),
    ] {
        let fired = place
            .server
            .fault(line, 1, Fault::ErrorIn200("InternalError"));
        assert_eq!(put_large(&store, at).unwrap(), Published::Created);
        assert_eq!(fired.times(), 1, "{line}");
    }
    let fired = place
        .server
        .fault("PUT", 1, Fault::ErrorIn200("InternalError"));
    assert_eq!(
        put(&store, &key("small"), b"x").unwrap(),
        Published::Created
    );
    assert_eq!(
        (
            fired.times(),
            get(&store, &key("small"), 10).unwrap().unwrap()
        ),
        (1, b"x".to_vec())
    );
    for line in ["PUT", "POST", "GET"] {
        place.server.heal();
        let fired = place
            .server
            .fault(line, u64::MAX, Fault::ErrorIn200("InternalError"));
        let error = match line {
            "PUT" => put(&place.hasty(), &key("z"), b"x").unwrap_err(),
            "POST" => put_large(&place.hasty(), "packs/z").unwrap_err(),
            _ => get(&place.hasty(), &key("small"), 1000).unwrap_err(),
        };
        assert!(fired.times() > 0, "{line}");
        assert!(
            matches!(error.code(), Code::Unreachable | Code::Io),
            "{line}: {error}"
        );
    }
}

#[test]
fn s04_a_lost_answer_is_success_only_when_the_object_is_ours() {
    let place = Place::new();
    let store = place.store();
    let lost = place.server.fault("PUT", 1, Fault::NoAnswer);
    assert_eq!(put(&store, &key("x"), b"one").unwrap(), Published::Created);
    assert_eq!(lost.times(), 1);
    let lost = place
        .server
        .fault("POST /bucket/a/b/packs/x?uploadId", 1, Fault::NoAnswer);
    assert_eq!(put_large(&store, "packs/x").unwrap(), Published::Created);
    assert_eq!(lost.times(), 1);
    // The same, but the name was taken before: by the same bytes, which the store cannot know.
    let lost = place.server.fault("PUT", 1, Fault::NoAnswer);
    assert_eq!(put(&store, &key("x"), b"one").unwrap(), Published::Exists);
    assert_eq!(lost.times(), 1);
    assert!(get(&store, &key("packs/x"), 1 << 24).unwrap().unwrap() == large());
}

#[test]
fn s24_a_host_that_only_writes_finds_its_own_object_in_the_listing() {
    let id = "clusters/main/7/packs/20261128T000000Z-000001-full";
    let tombstone = [b'x'; 300];
    let place = Place::new();
    let server = &place.server;
    for line in ["HEAD", "GET /bucket/a/b/clusters"] {
        server.fault(line, u64::MAX, Fault::Error(403, "AccessDenied"));
    }
    let store = place.store();
    let manifest = id.replace("packs", "backups") + "/manifest";
    let layer = id.replace("packs", "layers") + "/000000";
    let root = [b'r'; 3000];
    for (key_of, bytes) in [
        (&format!("{id}/000000"), &b"small"[..]),
        (&layer, b"layer"),
        (&manifest, &root),
    ] {
        let lost = server.fault("PUT", 1, Fault::NoAnswer);
        let published = put(&store, &key(key_of), bytes);
        assert_eq!(published.unwrap(), Published::Created, "{key_of}");
        assert_eq!(lost.times(), 1);
        assert!(server.object(&format!("a/b/{key_of}")) == bytes, "{key_of}");
    }
    let line = format!("POST /bucket/a/b/{id}/000001?uploadId");
    let lost = server.fault(&line, 1, Fault::NoAnswer);
    let published = put_large(&store, &format!("{id}/000001"));
    assert_eq!((published.unwrap(), lost.times()), (Published::Created, 1));
    // A tombstone took the place of the root: no length is believed that could be one's, and another length is another object.
    for (n, root, expected) in [
        (2, &root[..], Ok(Published::Exists)),
        (3, &tombstone[..], Err(Code::Denied)),
    ] {
        let manifest = manifest.replace("000001", &format!("00000{n}"));
        server.plant(&format!("a/b/{manifest}"), &tombstone);
        let lost = server.fault("PUT", 1, Fault::NoAnswer);
        let published = put(&store, &key(&manifest), root).map_err(|e| e.code());
        assert_eq!((published, lost.times()), (expected, 1), "{manifest}");
    }
    // Outside of backups anybody may have written the same length.
    server.plant("a/b/clusters/main/7/wal/x", b"one");
    server.fault("PUT", 1, Fault::NoAnswer);
    let error = put(&store, &key("clusters/main/7/wal/x"), b"one").unwrap_err();
    assert_eq!(error.code(), Code::Denied, "{error}");
}

#[test]
fn s25_credentials_that_run_out_are_renewed_for_answers_without_a_word() {
    let place = Place::new();
    let store = place.store();
    put(&store, &key("x"), b"one").unwrap();
    let file = place.settings(KEY).credentials_file.unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let with = |token: &str| {
        std::fs::write(&file, format!("{text}aws_session_token = {token}\n")).unwrap();
    };
    for token in ["one", "two"] {
        place.server.behave(|m| m.token = Some(token.to_owned()));
        with(token);
        place.server.clear_log();
        // The answer to HEAD has no body that could say it.
        assert_eq!(store.thaw_state("x").unwrap(), Thaw::Thawed(None));
        assert_eq!(place.server.log().len(), 2, "{:?}", place.server.log());
    }
    // A refusal that stays is one of rights: each request is tried once more with fresh credentials, and not for a minute.
    let refused = place
        .server
        .fault("HEAD", u64::MAX, Fault::Error(403, "AccessDenied"));
    for tried in [2, 3, 4] {
        assert_eq!(store.thaw_state("x").unwrap_err().code(), Code::Denied);
        assert_eq!(refused.times(), tried);
    }
}

#[test]
fn s05_a_store_that_overwrites_is_refused_unless_that_is_wanted() {
    for (n, how) in ["replaces objects", "win", "uploaded in parts"]
        .into_iter()
        .enumerate()
    {
        let place = Place::new();
        place.server.behave(|m| match n {
            0 => m.overwrites = true,
            1 => m.both_win = Some("race-"),
            _ => m.completes_over = true,
        });
        let error = place.store().probe(1).unwrap_err();
        assert_eq!(error.code(), Code::Refused, "{error}");
        assert!(error.to_string().contains(how), "{error}");
        let wanted = place.open(|s| s.unsafe_overwrite = true);
        let found = wanted.probe(2).unwrap();
        assert!(
            found.weaknesses.iter().any(|w| w.contains(how)),
            "{found:?}"
        );
        assert_eq!(
            place.server.keys(),
            Vec::<String>::new(),
            "the trial leaves nothing"
        );
        assert_eq!(place.server.open_uploads(), 0);
    }
}

#[test]
fn s05_with_unsafe_overwrite_a_name_is_looked_at_first() {
    let place = Place::new();
    place.server.behave(|m| m.overwrites = true);
    let store = place.open(|s| s.unsafe_overwrite = true);
    assert_eq!(put(&store, &key("x"), b"one").unwrap(), Published::Created);
    assert_eq!(put(&store, &key("x"), b"two").unwrap(), Published::Exists);
    assert_eq!(put_large(&store, "packs/x").unwrap(), Published::Created);
    assert_eq!(put_large(&store, "packs/x").unwrap(), Published::Exists);
    assert_eq!(get(&store, &key("x"), 10).unwrap().unwrap(), b"one");
}

#[test]
fn s05_with_unsafe_overwrite_who_is_overwritten_has_not_created() {
    let place = Place::new();
    place.server.behave(|m| m.overwrites = true);
    let store = place.open(|s| s.unsafe_overwrite = true);
    // The first of a process, another, and one in parts.
    for at in ["wal/x", "wal/y", "packs/z"] {
        let line = match at {
            "packs/z" => "POST /bucket/a/b/packs/z?uploadId",
            _ => "PUT",
        };
        let overtaken = place.server.fault(line, 1, Fault::Overtaken(b"another's"));
        let published = match at {
            "packs/z" => put_large(&store, at),
            at => put(&store, &key(at), b"ours"),
        };
        assert_eq!(published.unwrap(), Published::Exists, "{at}");
        assert_eq!(overtaken.times(), 1, "{at}");
        let kept = get(&store, &key(at), 100).unwrap().unwrap();
        assert_eq!(kept, b"another's", "{at}");
    }
    // One whose bytes were changed on their way is nobody's.
    place
        .server
        .behave(|m| (m.ignores_sums, m.spoils) = (true, true));
    let error = put(&store, &key("wal/spoilt"), b"ours").unwrap_err();
    assert_eq!(error.code(), Code::ReadBack, "{error}");
}

#[test]
fn a_store_that_only_sends_checksums_back_confirms_nothing() {
    let place = Place::new();
    place.server.behave(|m| m.ignores_sums = true);
    let store = place.store();
    for name in ["x", "y", "z"] {
        place.server.clear_log();
        assert_eq!(put(&store, &key(name), b"one").unwrap(), Published::Created);
        let log = place.server.log();
        assert!(log.last().is_some_and(|l| l.starts_with("GET")), "{log:?}");
    }
    let mut keys = place.server.keys();
    keys.sort();
    assert_eq!(
        keys,
        ["a/b/x", "a/b/y", "a/b/z"],
        "the question leaves nothing"
    );
}

#[test]
fn s07_a_store_that_shows_late_what_it_holds_is_refused() {
    for (n, how) in ["lists late", "does not show"].into_iter().enumerate() {
        let place = Place::new();
        place.server.behave(|m| match n {
            0 => m.lists_late = true,
            _ => m.reads_late = true,
        });
        for unsafely in [false, true] {
            let store = place.open(|s| s.unsafe_overwrite = unsafely);
            let error = store.probe(1).unwrap_err();
            assert_eq!(error.code(), Code::Refused, "{error}");
            assert!(error.to_string().contains(how), "{error}");
            place.server.behave(|m| m.lists_late = false);
            store.aside(1).clear().unwrap();
            place.server.behave(|m| m.lists_late = n == 0);
        }
    }
    let place = Place::new();
    place.server.behave(|m| m.shows_deleted = true);
    let found = place.store().probe(1).unwrap();
    let is_told = |w: &String| w.contains("was deleted");
    assert!(found.weaknesses.iter().any(is_told), "{found:?}");
}

#[test]
fn a_sound_store_passes_the_trial_and_it_shows_who_may_delete() {
    let place = Place::new();
    let found = place.store().probe(1).unwrap();
    assert_eq!(
        (found.weaknesses.len(), found.may_delete),
        (0, Some(true)),
        "{found:?}"
    );
    place.server.behave(|m| m.ignores_sums = true);
    let settings = place.settings(WRITER);
    let writer = S3Store::open(BUCKET, "a/b", &settings, 7).unwrap();
    let found = writer.probe(2).unwrap();
    assert_eq!(
        (found.weaknesses.len(), found.may_delete),
        (1, Some(false)),
        "{found:?}"
    );
    // A leftover that it could not delete counts as no object, and a user who may delete takes it away.
    assert!(writer.list("").unwrap().is_empty() && writer.first_key().unwrap().is_none());
    let left = place.store().irregular().unwrap();
    assert!(
        !left.is_empty() && left.iter().all(|l| l.is_unfinished),
        "{left:?}"
    );
    for one in &left {
        assert!(place.store().discard(&one.path).unwrap());
    }
    assert!(place.server.keys().is_empty());
}

#[test]
fn s06_a_conflict_of_conditions_is_tried_again() {
    let place = Place::new();
    let store = place.store();
    for line in ["PUT", "POST /bucket/a/b/packs/x?uploadId"] {
        let fired = place
            .server
            .fault(line, 2, Fault::Error(409, "ConditionalRequestConflict"));
        let published = match line {
            "PUT" => put(&store, &key("x"), b"one"),
            _ => put_large(&store, "packs/x"),
        };
        assert_eq!((published.unwrap(), fired.times()), (Published::Created, 2));
    }
}

#[test]
fn s08_a_clock_that_is_off_is_learnt_from_the_answer() {
    let place = Place::new();
    place
        .server
        .behave(|m| m.clock_ahead = Duration::from_secs(20 * 60));
    let store = place.store();
    assert_eq!(put(&store, &key("x"), b"one").unwrap(), Published::Created);
    assert_eq!(get(&store, &key("x"), 10).unwrap().unwrap(), b"one");
    let clock = store.clock().unwrap().unwrap();
    let ahead = clock.0 / 1_000_000 + 946_684_800 - chrono::Utc::now().timestamp();
    assert!((600..1800).contains(&ahead), "{ahead} s");
    let fired = place
        .server
        .fault("GET", u64::MAX, Fault::Error(403, "RequestTimeTooSkewed"));
    let error = get(&store, &key("x"), 10).unwrap_err();
    assert_eq!((error.code(), fired.times()), (Code::Denied, 2), "{error}");
    assert!(error.to_string().contains("its clock is "), "{error}");
}

#[test]
fn s12_a_frozen_object_is_named_with_its_own_class() {
    let place = Place::new();
    let store = place.store();
    for (name, class) in [
        ("packs/b/1", "STANDARD"),
        ("packs/b/2", "GLACIER"),
        ("packs/b/3", "DEEP_ARCHIVE"),
    ] {
        assert_eq!(put(&store, &key(name), b"x").unwrap(), Published::Created);
        assert_eq!(place.server.reclassify(name, class), 1);
    }
    let frozen = |names: &[&str]| {
        let wanted = |key: &str| names.iter().any(|name| key.ends_with(name));
        store.frozen("packs/b", &wanted).unwrap()
    };
    let told = |frozen: Option<Frozen>| frozen.map(|f| (f.key, f.class, f.count));
    let two = ("packs/b/2".to_owned(), "GLACIER".to_owned(), 2);
    assert_eq!(told(frozen(&["1", "2", "3"])), Some(two));
    let three = ("packs/b/3".to_owned(), "DEEP_ARCHIVE".to_owned(), 1);
    assert_eq!(told(frozen(&["3", "9"])), Some(three));
    assert_eq!(frozen(&["1"]), None);
}

#[test]
fn s10_a_bucket_in_another_region_is_followed_once() {
    let place = Place::new();
    place.server.behave(|m| m.region = "eu-west-1");
    let store = place.store();
    assert_eq!(put(&store, &key("x"), b"one").unwrap(), Published::Created);
    place.server.clear_log();
    assert_eq!(get(&store, &key("x"), 10).unwrap().unwrap(), b"one");
    assert_eq!(place.server.log().len(), 1, "it is remembered");
    place
        .server
        .fault("GET", u64::MAX, Fault::Error(301, "PermanentRedirect"));
    let error = get(&store, &key("x"), 10).unwrap_err();
    assert_eq!(error.code(), Code::Config, "{error}");
}

#[test]
fn only_the_stores_own_word_is_absence() {
    let place = Place::new();
    let store = place.hasty();
    put(&store, &key("there"), b"x").unwrap();
    assert!(store.open(&key("none")).unwrap().is_none());
    assert!(store.head(&key("none")).unwrap().is_none());
    for (fault, code) in [
        (Fault::Error(404, "NoSuchBucket"), Code::NoRepository),
        (Fault::Error(404, ""), Code::Unreachable),
        (Fault::Stranger(404), Code::Unreachable),
        (Fault::Error(403, "AccessDenied"), Code::Denied),
        (Fault::Error(403, "InvalidAccessKeyId"), Code::Denied),
        (Fault::Error(500, "InternalError"), Code::Unreachable),
        (Fault::Stranger(200), Code::Unreachable),
        (Fault::Reset, Code::Unreachable),
        (Fault::NoAnswer, Code::Unreachable),
    ] {
        place.server.heal();
        let fired = place.server.fault("GET", u64::MAX, fault.clone());
        for name in ["none", "there"] {
            let name = key(name);
            let Err(error) = store.open(&name) else {
                panic!("{fault:?}: {name} was answered")
            };
            assert_eq!(error.code(), code, "{fault:?}: {error}");
            let text = format!("{error:?} {:?}", error.hint_text());
            assert!(!text.contains(SECRET), "{text}");
        }
        assert!(fired.times() > 0, "{fault:?}");
        let list = store.list("").map(|l| l.len());
        assert!(list.is_err(), "{fault:?}: {list:?}");
    }
    place.server.heal();
    let wrong = S3Settings {
        endpoint: Some("http://127.0.0.1:1".into()),
        retry_budget: Duration::from_millis(500),
        ..place.settings(KEY)
    };
    let away = S3Store::open(BUCKET, "", &wrong, 7).unwrap();
    let error = away.head(&key("there")).unwrap_err();
    assert_eq!(error.code(), Code::Unreachable, "{error}");
    let other = S3Store::open("other", "", &place.settings(KEY), 7).unwrap();
    let error = other.head(&key("there")).unwrap_err();
    assert_eq!(error.code(), Code::NoRepository, "{error}");
    let unknown = S3Store::open(BUCKET, "", &place.settings("AKIDNOBODY"), 7).unwrap();
    let error = unknown.head(&key("there")).unwrap_err();
    assert_eq!(error.code(), Code::Denied, "{error}");
}

#[test]
fn what_is_not_what_was_asked_for_is_an_error() {
    let place = Place::new();
    let store = place.hasty();
    put(&store, &key("x"), &vec![7; 300_000]).unwrap();
    put(&store, &key("small"), b"one").unwrap();
    place.server.behave(|m| m.ignores_ranges = true);
    let error = get(&store, &key("x"), 1 << 20).unwrap_err();
    assert_eq!(error.code(), Code::Unreachable, "{error}");
    assert!(error.to_string().contains("ignores ranges"), "{error}");
    // All there is, in one answer, is what was asked for.
    assert_eq!(get(&store, &key("small"), 10).unwrap().unwrap(), b"one");
}

#[test]
fn uploads_that_nobody_ends_are_found_and_taken_back() {
    let place = Place::new();
    let store = place.store();
    let aborts = place
        .server
        .fault("DELETE", u64::MAX, Fault::Error(403, "AccessDenied"));
    let mut object = store.create(&key("packs/x")).unwrap();
    object.write_all(&large()).unwrap();
    drop(object);
    assert_eq!((aborts.times(), place.server.open_uploads()), (1, 1));
    place.server.heal();
    place.server.plant("a/b/not a key", b"x");
    place.server.age_uploads(Duration::from_secs(2 * 86_400));
    let found = store.irregular().unwrap();
    let unfinished: Vec<bool> = found.iter().map(|f| f.is_unfinished).collect();
    assert_eq!(unfinished, [false, true], "{found:?}");
    assert!(found[1].modified < store.clock().unwrap().unwrap());
    assert!(store.discard("not a key").is_err());
    assert!(store.discard(&found[1].path).unwrap());
    assert!(!store.discard(&found[1].path).unwrap(), "gone already");
    assert_eq!(place.server.open_uploads(), 0);
}

/// A healed copy is the last of its folder, and was locked when it was written: that tells nothing of the old ones.
#[test]
fn s34_a_young_object_does_not_stand_for_the_old_ones_of_its_folder() {
    let place = Place::new();
    let store = place.open(|s| {
        s.object_lock = Some(ObjectLock {
            mode: LockMode::Governance,
            period: Duration::from_secs(30 * 86_400),
        });
    });
    store.list("").unwrap();
    let packs = |n: u32| format!("clusters/a/7/packs/b/{n:06}");
    for n in 0..40 {
        put(&store, &key(&packs(n)), b"x").unwrap();
    }
    place.server.age(20);
    put(&store, &key(&format!("{}.heal-1", packs(39))), b"x").unwrap();
    let extend = || store.extend_locks("clusters/a/7/packs/b", &mut || Ok(()));
    assert_eq!(extend().unwrap(), 40);
    place.server.clear_log();
    assert_eq!(extend().unwrap(), 0);
    let log = place.server.log();
    assert_eq!(log.len(), 2, "a listing, and the last old one: {log:?}");
}

/// A backup renews its claims meanwhile, and the operator can end it. The last old one, which comes behind all others, shows that some are left.
#[test]
fn s41_locks_are_extended_side_by_side_and_the_wish_to_stop_is_heard() {
    let place = Place::new();
    let store = place.open(|s| {
        s.object_lock = Some(ObjectLock {
            mode: LockMode::Governance,
            period: Duration::from_secs(30 * 86_400),
        });
    });
    store.list("").unwrap();
    let folder = "clusters/a/7/packs/b";
    for n in 0..40 {
        put(&store, &key(&format!("{folder}/{n:06}")), b"x").unwrap();
    }
    place.server.age(20);
    let mut ticks = 0;
    let stopped = store.extend_locks(folder, &mut || {
        ticks += 1;
        match ticks < 3 {
            true => Ok(()),
            false => Err(pitr::error::Error::new(Code::Interrupted, "stop")),
        }
    });
    assert_eq!(stopped.unwrap_err().code(), Code::Interrupted);
    let puts = || {
        let log = place.server.log();
        log.into_iter().filter(|l| l.starts_with("PUT")).collect()
    };
    place.server.clear_log();
    let left = store.extend_locks(folder, &mut || Ok(())).unwrap();
    assert!((1..40).contains(&left), "{left}");
    let puts: Vec<String> = puts();
    assert_eq!(puts.len() as u64, left);
    assert!(puts.last().unwrap().contains("/000039"), "{puts:?}");
}

/// A console makes a "folder" of an object whose key is the prefix alone: a repository may lie below it, also an encrypted one.
#[test]
fn the_folder_that_a_console_made_is_empty() {
    let place = Place::new();
    let store = place.store();
    place.server.plant("a/b/", b"");
    assert_eq!(store.first_key().unwrap(), None);
    put(&store, &key("x"), b"x").unwrap();
    assert_eq!(store.first_key().unwrap().as_deref(), Some("x"));
}

#[test]
fn objects_are_written_as_configured() {
    let place = Place::new();
    let store = place.open(|s| {
        s.storage_class = StorageClasses {
            wal: Some("STANDARD_IA".into()),
            packs: Some("GLACIER_IR".into()),
            manifests: None,
        };
        s.sse = Some(Sse::Kms);
        s.sse_kms_key_id = Some("alias/backup".into());
        s.object_lock = Some(ObjectLock {
            mode: LockMode::Compliance,
            period: Duration::from_secs(30 * 86_400),
        });
    });
    store.list("").unwrap();
    put(&store, &key("clusters/events/7/wal/1/x"), b"x").unwrap();
    put(&store, &key("clusters/events/7/wal/1/open/x"), b"x").unwrap();
    put(&store, &key("clusters/events/7/backups/b/manifest"), b"x").unwrap();
    put_large(&store, "clusters/events/7/packs/b/000000").unwrap();
    let with = |name: &str, header: &str| {
        let headers = place.server.written_with(&format!("a/b/{name}"));
        headers.get(header).cloned()
    };
    for (name, class, locked) in [
        ("clusters/events/7/wal/1/x", Some("STANDARD_IA"), true),
        ("clusters/events/7/wal/1/open/x", Some("STANDARD_IA"), false),
        ("clusters/events/7/backups/b/manifest", None, true),
        ("clusters/events/7/packs/b/000000", Some("GLACIER_IR"), true),
    ] {
        assert_eq!(
            with(name, "x-amz-storage-class").as_deref(),
            class,
            "{name}"
        );
        assert_eq!(
            with(name, "x-amz-server-side-encryption").as_deref(),
            Some("aws:kms"),
            "{name}"
        );
        let key_id = with(name, "x-amz-server-side-encryption-aws-kms-key-id");
        assert_eq!(key_id.as_deref(), Some("alias/backup"), "{name}");
        let until = with(name, "x-amz-object-lock-retain-until-date");
        assert_eq!(until.is_some(), locked, "{name}");
        if let Some(until) = until {
            let until = chrono::DateTime::parse_from_rfc3339(&until).unwrap();
            let days = (until.to_utc() - chrono::Utc::now()).num_days();
            assert!((29..=30).contains(&days), "{name}: {days}");
            assert_eq!(
                with(name, "x-amz-object-lock-mode").as_deref(),
                Some("COMPLIANCE")
            );
        }
    }
    // A trial leaves nothing that stays locked, or is paid for longer.
    place
        .server
        .fault("DELETE", u64::MAX, Fault::Error(403, "AccessDenied"));
    let found = store.probe(1).unwrap();
    assert_eq!(found.may_delete, Some(false));
    let left = place.server.keys();
    let left: Vec<_> = left.iter().filter(|k| k.contains(".tmp.probe")).collect();
    assert!(!left.is_empty());
    for key in left {
        let headers = place.server.written_with(key);
        let is_dress = |name: &&String| name.contains("lock") || name.contains("storage-class");
        assert_eq!(headers.keys().find(is_dress), None, "{key}");
    }
    // A lock that cannot be dated is no lock: nothing is stored without it.
    place.server.heal();
    place
        .server
        .behave(|m| m.clock_ahead = Duration::from_secs(3 * 86_400));
    store.list("").unwrap();
    let error = put(&store, &key("clusters/a/7/backups/b/manifest"), b"x").unwrap_err();
    assert!(error.to_string().contains("cannot be locked"), "{error}");
}

#[test]
fn c08_an_answer_to_a_completion_that_cannot_be_read_is_settled_by_whose_the_object_is() {
    let place = Place::new();
    // As some servers answer: the object is there, and the document has another name.
    let other = Fault::Renamed(
        "CompleteMultipartUploadResult",
        "CompleteMultipartUploadResponse",
    );
    let fired = place
        .server
        .fault("POST /bucket/a/b/packs/x?uploadId", 1, other);
    assert_eq!(
        put_large(&place.once(), "packs/x").unwrap(),
        Published::Created
    );
    assert_eq!(fired.times(), 1);
    let stored = get(&place.store(), &key("packs/x"), 10 << 20)
        .unwrap()
        .unwrap();
    assert!(stored == large());
    // Not completed, and not understood: what came is shown, at once.
    let page = Fault::Says(200, "<Surprise><Detail>not today</Detail></Surprise>");
    let fired = place
        .server
        .fault("POST /bucket/a/b/packs/y?uploadId", u64::MAX, page);
    let error = put_large(&place.store(), "packs/y").unwrap_err();
    assert_eq!(
        (error.code(), fired.times()),
        (Code::Unreachable, 1),
        "{error}"
    );
    assert!(error.to_string().contains("not today"), "{error}");
    // Another writer's object is not taken for this one.
    let other = S3Store::open(BUCKET, "a/b", &place.settings(KEY), 99).unwrap();
    assert_eq!(
        put(&other, &key("packs/z"), b"other").unwrap(),
        Published::Created
    );
    let page = Fault::Says(200, "<Surprise/>");
    let fired = place
        .server
        .fault("POST /bucket/a/b/packs/z?uploadId", 1, page);
    assert_eq!(
        put_large(&place.store(), "packs/z").unwrap(),
        Published::Exists
    );
    assert_eq!(fired.times(), 1);
}
