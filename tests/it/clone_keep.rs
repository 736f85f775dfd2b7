//! How clones end: by themselves, or not at all where somebody wants to keep them.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::clone::{Cloned, client, id};
use crate::common::{Client, PATIENCE, files_below, free_port, wait_until};
use crate::require_fuse;

/// A byte in the middle of the largest pack.
pub struct Spoilt {
    pack: PathBuf,
    at: u64,
    was: u8,
}

impl Spoilt {
    /// Finds the byte, and changes it. In place: a clone may have the pack open.
    pub fn now(cloned: &Cloned) -> Spoilt {
        let repository = cloned.site.repository();
        let packs = files_below(repository).into_iter();
        let packs = packs.filter(|name| name.contains("/packs/"));
        let pack = packs.map(|name| repository.join(name));
        let pack = pack.max_by_key(|path| std::fs::metadata(path).unwrap().len());
        let pack = pack.unwrap();
        let whole = std::fs::read(&pack).unwrap();
        let at = whole.len() / 2;
        let spoilt = Spoilt {
            pack,
            at: at as u64,
            was: whole[at],
        };
        spoilt.write(!spoilt.was);
        spoilt
    }

    /// Gives the pack its byte back.
    pub fn mend(self) {
        self.write(self.was);
    }

    fn write(&self, byte: u8) {
        let file = std::fs::File::options().write(true).open(&self.pack);
        file.unwrap().write_all_at(&[byte], self.at).unwrap();
    }
}

impl Cloned {
    /// The first clone of the list.
    pub fn listed(&self) -> serde_json::Value {
        let listed = self.below(&["list", "--json"]).run().success().json();
        listed[0].clone()
    }

    pub fn wait_stage(&self, stage: &str) {
        wait_until(PATIENCE, &format!("the clone is {stage}"), || {
            self.listed()["stage"] == stage
        });
    }
}

#[test]
fn k31_a_wish_to_keep_a_clone_outlasts_its_time_also_where_the_copy_fails() {
    require_fuse!("k31_a_wish_to_keep_a_clone_outlasts_its_time_also_where_the_copy_fails");
    const LASTS: Duration = Duration::from_secs(5);
    let cloned = Cloned::new(17);
    let run = cloned.clone().args(["--for", "5s"]).run().success();
    let ready = Instant::now();
    assert!(run.json()["ends"].is_string(), "{run}");
    let id = id(&run);
    let clone = client(&run);
    clone.sql("create table mine as select 1");
    let spoilt = Spoilt::now(&cloned);
    cloned.below(&["keep", &id]).run().success();
    wait_until(PATIENCE, "the copy has failed", || {
        cloned.listed()["not_kept"].is_string()
    });
    std::thread::sleep((LASTS + Duration::from_secs(2)).saturating_sub(ready.elapsed()));
    let listed = cloned.listed();
    assert_eq!(listed["stage"], "ready", "{listed}");
    assert!(listed["ends"].is_null() && listed["not_kept"].is_string());
    assert_eq!(clone.query_one_string("select count(*) from mine"), "1");
    // It was to be kept, so it is not thrown away without a word.
    let stop = cloned.below(&["stop", &id]).run().expect_code(8);
    stop.expect_stderr("--confirm");
    spoilt.mend();
    cloned.below(&["keep", &id]).run().success();
    cloned.wait_stage("whole");
    drop(clone);
    cloned.below(&["stop", &id]).run().success();
}

#[test]
fn k31_a_clone_whose_time_is_over_is_thrown_away() {
    require_fuse!("k31_a_clone_whose_time_is_over_is_thrown_away");
    let cloned = Cloned::new(17);
    let run = cloned.clone().args(["--for", "2s"]).run().success();
    assert_eq!(client(&run).query_one_string("select count(*) from t"), "31000");
    wait_until(PATIENCE, "nothing is left", || cloned.left().is_empty());
    let keep = cloned.below(&["keep", &id(&run)]).run();
    keep.expect_code(2).expect_stderr("no clone");
}

#[test]
fn k32_a_clone_with_a_port_asks_for_the_clusters_passwords_there() {
    require_fuse!("k32_a_clone_with_a_port_asks_for_the_clusters_passwords_there");
    let (site, cluster) = crate::common::Site::with_cluster(17);
    cluster.sql("create role looker login superuser password 'geheim'");
    let cloned = Cloned::of(site, cluster);
    let (port, _lock) = free_port();
    let number = port.to_string();
    let run = cloned.clone().args(["--port", &number]).run().success();
    let connect = |password: &str| {
        let info = format!("host=127.0.0.1 port={port} user=looker dbname=postgres {password}");
        Client::connect(&info)
    };
    let by_network = connect("password=geheim").unwrap();
    assert_eq!(by_network.query_one_string("select count(*) from t"), "31000");
    assert_eq!(by_network.query_one_string("show listen_addresses"), "127.0.0.1");
    for wrong in ["", "password=falsch"] {
        assert!(connect(wrong).is_err(), "{wrong}");
    }
    // The folder's own socket has the same number.
    let connection = run.json()["connection"].as_str().unwrap().to_owned();
    assert!(connection.contains(&format!("port={port}")), "{connection}");
    client(&run).query_one_string("select 1");
    drop(by_network);
    cloned.below(&["stop", &id(&run)]).run().success();
    assert!(cloned.left().is_empty());
}
