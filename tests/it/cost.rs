//! `pitr repo cost` through the real program: every object is counted once, and prices are those of the configuration.

use serde_json::Value;

use crate::common::s3::peer::Peer;
use crate::common::{Cluster, Site, list_of};
use crate::s3_cycle::Bucketed;

fn number(value: &Value, name: &str) -> u64 {
    let number = value[name].as_u64();
    number.unwrap_or_else(|| panic!("no {name} in {value}"))
}

/// Objects and bytes of a kind.
fn kind(cost: &Value, kind: &str) -> (u64, u64) {
    let parts = cost["parts"].as_array().unwrap().iter();
    let of_kind = parts.filter(|part| part["kind"] == kind);
    of_kind.fold((0, 0), |(count, bytes), part| {
        let amount = (number(part, "object_count"), number(part, "stored_bytes"));
        (count + amount.0, bytes + amount.1)
    })
}

#[test]
fn a_directory_is_counted_file_by_file() {
    let (site, cluster) = Site::with_cluster(17);
    cluster.sql("create table t as select g as a from generate_series(1, 10000) g");
    site.pitr().words("backup --quiet").succeed();
    cluster.archive_now();
    let cost = || site.pitr().words("repo cost --json").run();
    let shown = cost().success().json()["repositories"][0].clone();
    let files = site.files();
    let length = |file: &String| site.repository().join(file).metadata().unwrap().len();
    assert_eq!(
        number(&shown, "object_count"),
        files.len() as u64,
        "{files:#?}"
    );
    let bytes: u64 = files.iter().map(length).sum();
    assert_eq!(number(&shown, "stored_bytes"), bytes);
    for (name, part) in [
        ("wal", "/wal/"),
        ("packs", "/packs/"),
        ("layers", "/layers/"),
        ("roots", "/backups/"),
        ("events", "/events/"),
    ] {
        let own: Vec<_> = files.iter().filter(|f| f.contains(part)).collect();
        let bytes: u64 = own.iter().map(|f| length(f)).sum();
        assert_eq!(kind(&shown, name), (own.len() as u64, bytes), "{name}");
        assert!(!own.is_empty(), "{name}");
    }
    assert!(shown["month_price"].is_null() && shown["put_price"].is_null());
    // Everything is of this month: it doubles.
    assert_eq!(number(&shown, "next_month_bytes"), 2 * bytes);

    let config = std::fs::read_to_string(site.config()).unwrap();
    let price = "price = { currency = \"EUR\", storage = \"1024\", put = \"1000\" }\n";
    std::fs::write(site.config(), format!("{config}{price}")).unwrap();
    let shown = cost().success().json()["repositories"][0].clone();
    let cents = (u128::from(bytes) * 1024 * 1_000_000_000 / (1 << 30)).div_ceil(10_000_000);
    let text = |cents: u128| format!("{}.{:02}", cents / 100, cents % 100);
    // Each kind is rounded down by less than a billionth.
    let month = shown["month_price"].as_str().unwrap();
    assert!(
        [text(cents), text(cents - 1)].contains(&month.to_owned()),
        "{month}"
    );
    assert_eq!(shown["put_price"], format!("{}.00", files.len()));
    let run = site.pitr().words("repo cost").succeed();
    run.expect_stdout("a month in EUR")
        .expect_stdout("if as much is stored again");

    // One that is away is named, and the others are shown.
    let more = "\n[repositories.gone]\nurl = \"file:///nonexistent/r\"\nrequired = false\n";
    std::fs::write(site.config(), format!("{config}{more}")).unwrap();
    let run = cost().expect_code(10);
    assert_eq!(run.json()["repositories"].as_array().unwrap().len(), 1);
}

#[test]
fn a_bucket_is_counted_by_storage_class() {
    let mut cluster = Cluster::small(16).create();
    let more = "storage_class = { wal = \"STANDARD_IA\" }\nprice = { standard = \"1000\" }\n";
    let site = Bucketed::new(&cluster, Peer::own(), more);
    site.attach(&cluster);
    cluster.start();
    site.backup();
    // The label of the backup is archived before this.
    cluster.archive_now();
    let run = site.pitr().words("repo cost --json").succeed();
    let shown = run.json()["repositories"][0].clone();
    let keys = site.peer.server().keys();
    let ours = keys.iter().filter(|key| !key.contains(".tmp."));
    let count = ours.count() as u64;
    assert_eq!(number(&shown, "object_count"), count, "{keys:#?}");
    // As many requests as stored objects, where none takes parts.
    let puts: u64 = list_of(&shown["parts"])
        .iter()
        .map(|p| number(p, "put_requests"))
        .sum();
    assert_eq!((puts, number(&shown, "put_requests")), (puts, puts));
    assert!(puts >= count, "{shown}");
    assert!(kind(&shown, "wal").0 > 0 && kind(&shown, "packs").0 > 0);
    let parts = shown["parts"].as_array().unwrap();
    let class = |kind: &str| {
        let part = parts.iter().find(|part| part["kind"] == kind).unwrap();
        (part["class"].clone(), part["month_price"].is_null())
    };
    assert_eq!(class("wal"), ("STANDARD_IA".into(), true), "{shown}");
    assert!(!class("packs").1, "{shown}");
    // A class without a price: the whole is not known.
    assert!(shown["month_price"].is_null());
}

#[test]
fn a_price_is_a_decimal_number() {
    let (site, _cluster) = Site::with_cluster(15);
    let config = std::fs::read_to_string(site.config()).unwrap();
    for (wrong, why) in [
        ("price = { storage = \"cheap\" }", "is not a price"),
        ("price = { storage = 1 }", "needs a string"),
        ("price = { gold = \"1\" }", "does not exist"),
    ] {
        std::fs::write(site.config(), format!("{config}{wrong}\n")).unwrap();
        let run = site.pitr().words("repo cost").exits(3);
        assert!(run.stderr.contains(why), "{run}");
    }
}
