//! Heartbeats reach a real server while all is well, and never while something is critical.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use crate::alert::{posted, reply};
use crate::alert_conditions::{later, observe, site};

/// A service that waits for beats.
pub struct Service {
    pub port: u16,
    status: Arc<Mutex<u16>>,
    beats: Arc<Mutex<Vec<String>>>,
}

impl Service {
    pub fn start() -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let service = Service {
            port: listener.local_addr().unwrap().port(),
            status: Arc::new(Mutex::new(200)),
            beats: Arc::default(),
        };
        let (status, beats) = (Arc::clone(&service.status), Arc::clone(&service.beats));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                if let Some((path, body)) = posted(&stream) {
                    assert!(body.is_empty());
                    beats.lock().unwrap().push(path);
                    reply(stream, *status.lock().unwrap());
                }
            }
        });
        service
    }

    fn answer_with(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }

    pub fn expect(&self, count: usize) {
        let beats = std::mem::take(&mut *self.beats.lock().unwrap());
        assert_eq!(beats, vec!["/ping/s3cret"; count]);
    }
}

#[test]
fn beats_come_each_hour_and_with_each_success_and_never_while_something_is_critical() {
    let service = Service::start();
    let (site, cluster, sink) = site("");
    site.add(&format!(
        "[alerts.beat]\nkind = \"heartbeat\"\nurl = \"http://127.0.0.1:{}/ping/s3cret\"\n",
        service.port
    ));
    // Nothing is backed up yet.
    observe(&site.pitr());
    service.expect(0);
    sink.expect("main/recovery/newest backup", &[("new", "critical")]);
    let backup = || {
        site.pitr().words("backup --quiet").succeed();
        cluster.archive_now();
        observe(&site.pitr());
    };
    backup();
    service.expect(1);
    observe(&site.pitr());
    service.expect(0);
    backup();
    service.expect(1);
    let at = |seconds: u64| later(&site.pitr(), seconds);
    observe(&at(1800));
    service.expect(0);
    observe(&at(3700));
    service.expect(1);

    // A service that is out of order is a condition, and is asked again by each look.
    let id = "alerts/beat";
    service.answer_with(503);
    observe(&at(7500));
    observe(&at(7560));
    service.expect(2);
    sink.expect(id, &[("new", "high")]);
    let (_, _, summary) = sink.heard(id).pop().unwrap();
    assert!(
        summary.contains("503") && !summary.contains("s3cret"),
        "{summary}"
    );
    service.answer_with(200);
    observe(&at(7620));
    observe(&at(7680));
    service.expect(1);
    sink.expect(id, &[("new", "high"), ("resolved", "high")]);

    std::fs::rename(site.repository(), site.sandbox().join("away")).unwrap();
    observe(&at(20_000));
    service.expect(0);
    let test = ["alert", "test", "--sink", "beat"];
    site.pitr().args(test).succeed();
    service.expect(1);
}
