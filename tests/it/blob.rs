//! Azure Blob Storage and Google Cloud Storage: faults on a server of the harness, contract and whole cycles on emulators of others, which
//! `PITR_TEST_AZURE` and `PITR_TEST_GCS` name (`make on-azure on-gcs`).

use std::io::Write as _;
use std::time::Duration;

use pitr::error::Code;
use pitr::store::blob::BlobStore;
use pitr::store::conformance::CLAUSES;
use pitr::store::{Published, Store, get, put};

use crate::common::Sandbox;
use crate::common::blob::{ACCOUNT_KEY, Peer, Service, TOKEN};
use crate::common::blob_server::{BlobServer, Fault};
use crate::common::s3::{key, large};

const BOTH: [Service; 2] = [Service::Azure, Service::Google];

/// A store on a server of the harness.
struct Place {
    server: BlobServer,
    store: BlobStore,
    peer: Peer,
    sandbox: Sandbox,
}

impl Place {
    fn new(service: Service) -> Place {
        let (server, sandbox) = (BlobServer::start(), Sandbox::new("blob"));
        let peer = Peer {
            service,
            endpoint: format!("http://127.0.0.1:{}", server.port),
            bucket: "box".to_owned(),
        };
        let store = peer.store(&sandbox, "a", |settings| {
            settings.stall_timeout = Duration::from_secs(2);
            settings.retry_budget = Duration::from_secs(6);
        });
        Place {
            server,
            store,
            peer,
            sandbox,
        }
    }

    /// The begin of the request that creates a small object.
    fn creates(&self) -> &'static str {
        match self.peer.service {
            Service::Azure => "PUT",
            Service::Google => "POST",
        }
    }

    /// The begin of the request that reads.
    fn reads(&self, name: &str) -> String {
        match self.peer.service {
            Service::Azure => format!("GET /devstoreaccount1/box/a/{name}"),
            Service::Google => format!("GET /storage/v1/b/box/o/a/{name}"),
        }
    }

    /// The begin of the request that names a large object.
    fn ends(&self) -> &'static str {
        match self.peer.service {
            Service::Azure => "PUT /devstoreaccount1/box/a/packs/x?comp=blocklist",
            // The first part goes there, too.
            Service::Google => "PUT /session/0",
        }
    }
}

fn put_large(store: &BlobStore, at: &str) -> pitr::error::Result<Published> {
    let mut object = store.create(&key(at)).unwrap();
    object
        .write_all(&large())
        .map_err(|e| pitr::error::Error::from_io("write", e))?;
    object.publish()
}

fn try_promises(store: &BlobStore) {
    let mut broken = Vec::new();
    for (n, clause) in CLAUSES.iter().enumerate() {
        match (clause.check)(store, &format!("clause-{n}")) {
            Ok(()) => println!("kept    {}", clause.name),
            Err(e) => {
                println!("BROKEN  {}: {e}", clause.name);
                broken.push(clause.name);
            }
        }
    }
    let found = store.probe(1);
    println!("{found:?}");
    assert!(broken.is_empty(), "{broken:?}");
    assert!(found.unwrap(), "these credentials may delete");
    let left = store.irregular().unwrap();
    assert!(left.is_empty(), "{left:?}");
    assert!(store.clock().unwrap().is_some());
}

#[test]
fn both_services_keep_every_promise() {
    for service in BOTH {
        try_promises(&Place::new(service).store);
    }
}

fn on_an_emulator(service: Service) {
    let Some(peer) = Peer::of(service) else {
        println!("not run: {} names no server", service.variable());
        return;
    };
    let sandbox = Sandbox::new("blob");
    try_promises(&peer.store(&sandbox, "a/b", |_| {}));
}

#[test]
fn azure_keeps_every_promise() {
    on_an_emulator(Service::Azure);
}

#[test]
fn google_keeps_every_promise() {
    on_an_emulator(Service::Google);
}

#[test]
fn s01_busy_and_silent_servers_are_asked_again() {
    for service in BOTH {
        let place = Place::new(service);
        for (status, code) in [(503, "ServerBusy"), (500, "InternalError"), (429, "")] {
            place
                .server
                .fail(place.creates(), Fault::Answers(status, code, String::new()));
        }
        place.server.fail(place.creates(), Fault::Silent);
        let put = put(&place.store, &key("x"), b"one");
        assert_eq!(put.unwrap(), Published::Created);
        assert_eq!(place.server.fired(), 4);
        let read = place.reads("x");
        place.server.fail(
            &read,
            Fault::Answers(502, "", "<html>bad gateway</html>".into()),
        );
        assert_eq!(get(&place.store, &key("x"), 9).unwrap().unwrap(), b"one");
        assert_eq!(place.server.fired(), 1);
    }
}

#[test]
fn s02_an_answer_that_breaks_off_is_no_shorter_object() {
    for service in BOTH {
        let place = Place::new(service);
        assert_eq!(
            put_large(&place.store, "packs/x").unwrap(),
            Published::Created
        );
        let read = place.reads("packs/x");
        for _ in 0..3 {
            place.server.fail(&read, Fault::Cuts);
        }
        let all = get(&place.store, &key("packs/x"), 64 << 20)
            .unwrap()
            .unwrap();
        assert!(all == large());
        assert_eq!(place.server.fired(), 3);
    }
}

#[test]
fn s04_a_lost_answer_leaves_the_object_ones_own() {
    for service in BOTH {
        let place = Place::new(service);
        place.server.fail(place.creates(), Fault::LosesReply);
        let ours = put(&place.store, &key("x"), b"one");
        assert_eq!(ours.unwrap(), Published::Created, "{service:?}");
        place.server.fail(place.creates(), Fault::Overtaken);
        let theirs = put(&place.store, &key("y"), b"two");
        assert_eq!(theirs.unwrap(), Published::Exists, "{service:?}");
        assert_eq!(place.server.fired(), 2);
        place.server.fail(place.ends(), Fault::LosesReply);
        place.server.fail(place.ends(), Fault::LosesReply);
        let large = put_large(&place.store, "packs/x");
        assert_eq!(large.unwrap(), Published::Created, "{service:?}");
        let read = get(&place.store, &key("packs/x"), 64 << 20).unwrap();
        assert!(read.unwrap() == self::large());
        let left = place.server.fired();
        assert_eq!(left, 2, "{service:?}");
    }
}

/// Google says how much it has stored, and the rest is sent.
#[test]
fn s02_a_part_of_which_half_is_stored_is_gone_on_with() {
    let place = Place::new(Service::Google);
    place.server.fail("PUT /session/0", Fault::TakesHalf);
    let large = put_large(&place.store, "packs/x");
    assert_eq!(large.unwrap(), Published::Created);
    assert_eq!(place.server.fired(), 1);
    let read = get(&place.store, &key("packs/x"), 64 << 20).unwrap();
    assert!(read.unwrap() == self::large());
}

/// All bytes are stored, and the answer to the last part says that the upload is still open.
#[test]
fn s32_an_upload_that_google_keeps_open_is_no_object() {
    let place = Place::new(Service::Google);
    let keeps_open = |number: u32, times: u32| {
        let session = format!("PUT /session/{number}");
        for _ in 0..times {
            place.server.fail_after(1, &session, Fault::KeepsOpen);
        }
    };
    keeps_open(0, 1);
    let large = put_large(&place.store, "packs/x");
    assert_eq!(large.unwrap(), Published::Created);
    assert_eq!(place.server.fired(), 1);
    let read = get(&place.store, &key("packs/x"), 64 << 20).unwrap();
    assert!(read.unwrap() == self::large());
    // It is never ended.
    keeps_open(1, 100);
    let error = put_large(&place.store, "packs/y").unwrap_err();
    assert_eq!(error.code(), Code::Unreachable, "{error}");
    assert!(place.store.head(&key("packs/y")).unwrap().is_none());
}

/// It answers 410 of an upload that it completed, and of one that it gave up.
#[test]
fn s26_an_upload_that_google_gave_up_is_not_taken_for_an_object() {
    let place = Place::new(Service::Google);
    // The first part arrives; the last one does not, and the session is gone when it comes again.
    for fault in [
        Fault::Answers(503, "", String::new()),
        Fault::Answers(410, "", String::new()),
    ] {
        place.server.fail_after(1, "PUT /session/0", fault);
    }
    let error = put_large(&place.store, "packs/x").unwrap_err();
    assert_eq!(error.code(), Code::Unreachable, "{error}");
    assert_eq!(place.server.fired(), 2);
    assert!(place.store.head(&key("packs/x")).unwrap().is_none());
    assert_eq!(
        put_large(&place.store, "packs/x").unwrap(),
        Published::Created
    );
}

#[test]
fn s27_a_strangers_name_is_passed_over_and_told() {
    for service in BOTH {
        let place = Place::new(service);
        put(&place.store, &key("events/one"), b"one").unwrap();
        for name in ["events/not a key", "events/an~odd/one"] {
            place.server.plant(&format!("a/{name}"), b"x");
        }
        let listed = place.store.list("events").unwrap();
        let names: Vec<_> = listed.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["one"], "{service:?}");
        let mut strange: Vec<_> = place.store.irregular().unwrap();
        strange.sort_by(|a, b| a.path.cmp(&b.path));
        let strange: Vec<_> = strange
            .iter()
            .map(|one| (one.path.as_str(), one.is_unfinished))
            .collect();
        assert_eq!(
            strange,
            [("events/an~odd/one", false), ("events/not a key", false)]
        );
    }
}

#[test]
fn s07_only_the_service_calls_an_object_absent() {
    let azure = Place::new(Service::Azure);
    let answers = |code| Fault::Answers(404, code, String::new());
    for (code, means) in [
        ("ContainerNotFound", Code::NoRepository),
        ("", Code::Unreachable),
    ] {
        azure.server.fail("GET", answers(code));
        let error = azure.store.open(&key("x")).err().unwrap();
        assert_eq!(error.code(), means, "{error}");
        assert_eq!(azure.server.fired(), 1);
    }
    assert!(azure.store.open(&key("x")).unwrap().is_none());
    // Google's answer is the same for an object and for a bucket: a listing tells.
    let google = Place::new(Service::Google);
    assert!(google.store.open(&key("x")).unwrap().is_none());
    let list = "GET /storage/v1/b/box/o?";
    google.server.fail(list, answers(""));
    let error = google.store.open(&key("x")).err().unwrap();
    assert_eq!(error.code(), Code::NoRepository, "{error}");
    put(&google.store, &key("x"), b"one").unwrap();
    google.server.fail(&google.reads("x"), answers(""));
    let found = google.store.open(&key("x"));
    assert_eq!(
        found.err().unwrap().code(),
        Code::Unreachable,
        "it is listed"
    );
    assert_eq!(google.server.fired(), 2);
}

#[test]
fn s09_refused_credentials_are_looked_for_again_and_never_shown() {
    for (service, secret) in [(Service::Azure, ACCOUNT_KEY), (Service::Google, TOKEN)] {
        let place = Place::new(service);
        let refused = |body: &str| match service {
            Service::Azure => Fault::Answers(403, "AuthenticationFailed", body.to_owned()),
            Service::Google => Fault::Answers(401, "", body.to_owned()),
        };
        place.server.fail(place.creates(), refused(""));
        let once = put(&place.store, &key("x"), b"one");
        assert_eq!(once.unwrap(), Published::Created);
        // A server may repeat what it was sent.
        let body = format!("<Error><Message>you sent {secret}</Message></Error>");
        place.server.fail(place.creates(), refused(&body));
        place.server.fail(place.creates(), refused(&body));
        let error = put(&place.store, &key("y"), b"one").unwrap_err();
        assert_eq!(error.code(), Code::Denied, "{error}");
        assert!(!error.to_string().contains(secret), "{error}");
        assert!(error.to_string().contains("[secret]"), "{error}");
        assert_eq!(place.server.fired(), 3);
    }
}

#[test]
fn s09_a_refusal_is_final() {
    for service in BOTH {
        let place = Place::new(service);
        let begin = place.creates();
        place.server.fail(
            begin,
            Fault::Answers(403, "AuthorizationFailure", String::new()),
        );
        place.server.log();
        let error = put(&place.store, &key("x"), b"one").unwrap_err();
        assert_eq!(error.code(), Code::Denied, "{error}");
        assert!(error.hint_text().is_some());
        assert_eq!((place.server.log().len(), place.server.fired()), (1, 1));
    }
}

#[test]
fn s01_a_server_that_is_away_is_out_of_reach() {
    for service in BOTH {
        let place = Place::new(service);
        let store = place.peer.store(&place.sandbox, "a", |settings| {
            settings.endpoint = Some("http://127.0.0.1:1".into());
            settings.retry_budget = Duration::from_secs(1);
        });
        let error = store.open(&key("x")).err().unwrap();
        assert_eq!(error.code(), Code::Unreachable, "{error}");
    }
}

#[test]
fn s05_a_service_that_replaces_is_refused() {
    for service in BOTH {
        let place = Place::new(service);
        place.server.replace();
        let error = place.store.probe(9).unwrap_err();
        assert_eq!(error.code(), Code::Refused, "{error}");
        // The trial leaves nothing.
        assert!(place.store.irregular().unwrap().is_empty());
    }
}
