//! `pitr metrics` tells of what has to be trusted: keys, certificates, clocks, the audit log, and one configuration for all hosts.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::audit::World;
use crate::common::{keep_state, user};
use crate::metrics::{metrics, site, value};
use crate::sealed::Sealed;

#[test]
fn recipients_are_counted_and_a_key_is_proven_by_reading_everything() {
    let (sealed, _cluster) = Sealed::archived(17);
    for host in ["writer", "reader"] {
        keep_state(&sealed.config(host), &sealed.sandbox.dir(host));
    }
    let recipients = "pitr_key_recipients{repo=\"local\"}";
    let verified = "pitr_key_last_verified_timestamp_seconds{repo=\"local\"}";
    sealed.on("writer").words("backup --quiet").succeed();
    // A host that only writes counts them, too.
    let on_writer = || sealed.on("writer").arg("metrics").run().stdout;
    let text = on_writer();
    assert_eq!(value(&text, recipients), Some(2.0), "{text}");
    let text = metrics(&sealed.on("reader"));
    assert_eq!(value(&text, recipients), Some(2.0), "{text}");
    assert_eq!(value(&text, verified), None, "{text}");
    sealed.on("reader").words("verify --quiet").succeed();
    let text = metrics(&sealed.on("reader"));
    assert!(value(&text, verified).unwrap() > 1e9, "{text}");
    // A host that only writes proves no key.
    sealed.on("writer").words("verify --quiet").run();
    assert_eq!(value(&on_writer(), verified), None);
    // A recipient whose object is damaged can read nothing.
    let kept = sealed.repository.join("keys/1");
    let escrow = std::fs::read_dir(&kept).unwrap().map(|e| e.unwrap().path());
    let escrow = escrow.filter(|path| path.to_string_lossy().contains("escrow"));
    let escrow: Vec<_> = escrow.collect();
    assert_eq!(escrow.len(), 1, "{escrow:?}");
    std::fs::remove_file(&escrow[0]).unwrap();
    std::fs::write(&escrow[0], "damaged").unwrap();
    user::own(&escrow[0]);
    let text = metrics(&sealed.on("reader"));
    assert_eq!(value(&text, recipients), Some(1.0), "{text}");
}

#[test]
fn a_plain_repository_has_no_keys_and_its_clock_is_compared_with_this_hosts() {
    let (site, _cluster) = site(17);
    let offset = "pitr_repo_clock_offset_seconds{repo=\"local\"}";
    let text = metrics(&site.pitr());
    assert!(!text.contains("pitr_key_"), "{text}");
    assert!(value(&text, offset).unwrap().abs() < 5.0, "{text}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = now.as_secs();
    // This host's clock is an hour ahead.
    let clock = format!("{},{now},1", now + 3600);
    let ahead = metrics(&site.pitr().env("PITR_FAULT_CLOCK", clock));
    let behind = value(&ahead, offset).unwrap();
    assert!((-3660.0..-3540.0).contains(&behind), "{ahead}");
    std::fs::rename(site.repository(), site.sandbox().join("away")).unwrap();
    let text = site.pitr().arg("metrics").run().stdout;
    assert_eq!(value(&text, offset), None, "{text}");
}

#[test]
fn changed_records_and_the_last_anchor_are_told() {
    let world = World::new();
    let broken = || {
        let text = world.pitr("host", &["metrics"]).run().stdout;
        let anchor = value(&text, "pitr_audit_last_anchor_timestamp_seconds");
        (value(&text, "pitr_audit_broken"), anchor)
    };
    world.backup().success();
    world.backup().success();
    assert_eq!(broken(), (None, None), "nobody looked");
    world.pitr("host", &["audit", "anchor"]).succeed();
    assert_eq!(world.problems(&[]).0, 0);
    let (found, anchor) = broken();
    assert_eq!(found, Some(0.0));
    assert!(anchor.unwrap() > 1e9);
    let record = &world.chain("one")[3];
    let kept = std::fs::read(record).unwrap();
    std::fs::remove_file(record).unwrap();
    assert_eq!(world.problems(&[]).0, 4);
    assert!(broken().0.unwrap() > 0.0);
    // A repository that cannot be read proves nothing: what was found stands.
    let one = world.sandbox.join("one");
    std::fs::rename(&one, world.sandbox.join("gone")).unwrap();
    world.problems(&[]);
    assert!(broken().0.unwrap() > 0.0);
    std::fs::rename(world.sandbox.join("gone"), &one).unwrap();
    std::fs::write(record, kept).unwrap();
    user::own(record);
    assert_eq!(world.problems(&[]).0, 0);
    assert_eq!(broken().0, Some(0.0));
}

/// The fingerprint of the configuration of the only cluster.
fn fingerprint(text: &str) -> String {
    let series = "pitr_config_fingerprint_info{cluster=\"main\",fingerprint=\"";
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    let (hash, rest) = line.unwrap().split_once('"').unwrap();
    assert_eq!(rest, "} 1");
    hash.to_owned()
}

#[test]
fn a_promise_changes_the_fingerprint_and_certificates_have_an_end() {
    let (site, cluster) = site(17);
    let first = metrics(&site.pitr());
    assert!(!first.contains("pitr_cert_expiry"), "{first}");
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["db".into()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2031, 5, 1);
    let pem = params.self_signed(&key).unwrap().pem();
    let file = site.sandbox().file("root.pem", pem);
    let own = cluster.conninfo("postgres");
    let secured = format!("{own} sslrootcert={}", file.display());
    site.edit(&own, &secured);
    let text = metrics(&site.pitr());
    let series = format!(
        "pitr_cert_expiry_timestamp_seconds{{file=\"{}\"}}",
        file.display()
    );
    assert_eq!(value(&text, &series), Some(1_935_360_000.0), "{text}");
    assert_eq!(
        fingerprint(&text),
        fingerprint(&first),
        "each host connects as it can"
    );
    site.add_to_cluster("rto = \"4h\"\n");
    assert_ne!(fingerprint(&metrics(&site.pitr())), fingerprint(&first));
}
