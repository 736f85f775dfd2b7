//! Each finding has a next command, and each alert an explanation.

use serde_json::Value;

use crate::common::{Site, paths_below, pitr};

/// The problems of each cluster, and of other content: what is wrong, and the next command.
fn problems(info: &Value) -> Vec<(String, String)> {
    let clusters = info["clusters"].as_array().unwrap().iter();
    let scopes = info["scopes"].as_array().unwrap().iter();
    let all = clusters.chain(scopes);
    let all = all.flat_map(|one| one["problems"].as_array().unwrap());
    let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
    all.map(|one| (text(one, "message"), text(one, "next")))
        .collect()
}

#[test]
fn j67_each_finding_of_info_names_the_next_command() {
    let (site, cluster) = Site::with_cluster(17);
    let offsite = site.sandbox().join("offsite");
    let source = site.sandbox().dir("source");
    site.keep_state();
    site.add(&format!(
        "[repositories.offsite]\nurl = \"file://{}\"\nrequired = false\n[files.www]\nsource = \"{}\"\n",
        offsite.display(),
        source.display(),
    ));
    site.add_to_cluster("max_drill_age = \"1d\"\ncopies = \"3-2-1\"\n");
    let info = || problems(&site.pitr().words("info --json").run().json());
    site.pitr().words("init --quiet").succeed();
    let none = info();
    let of = |all: &[(String, String)], part: &str| -> String {
        let found = all.iter().find(|(message, _)| message.contains(part));
        found.unwrap_or_else(|| panic!("{part}: {all:?}")).1.clone()
    };
    assert_eq!(of(&none, "there is no backup: nothing"), "pitr backup");
    assert_eq!(of(&none, "no undamaged backup"), "pitr files backup www");
    site.pitr().words("backup --quiet").succeed();
    let names: Vec<String> = (0..4).map(|_| cluster.archive_now()).collect();
    std::fs::remove_file(site.object(&names[1])).unwrap();
    std::fs::remove_dir_all(&offsite).unwrap();
    let broken = info();
    assert_eq!(of(&broken, "missing, "), "pitr wal gaps --heal");
    assert_eq!(
        of(&broken, "max_drill_age"),
        "pitr drill --repository local"
    );
    assert_eq!(of(&broken, "copies are fewer"), "pitr repo sync");
    assert_eq!(of(&broken, "\"offsite\" is away"), "pitr doctor");
    let root = paths_below(&site.cluster_folder().join("backups"));
    let root = root.iter().find(|path| path.ends_with("backup.json"));
    if let Some(root) = root {
        std::fs::remove_file(root).unwrap();
        assert_eq!(of(&info(), "its root is lost"), "pitr verify --heal");
    }
    for (message, next) in [none, broken, info()].concat() {
        assert!(!next.is_empty(), "{message}");
    }
    // Each command names its cluster where several are configured. People are not told twice what the message says.
    site.add("[clusters.other]\npgdata = \"/nowhere\"\n");
    let named = info();
    assert_eq!(
        of(&named, "missing, "),
        "pitr --cluster main wal gaps --heal"
    );
    let text = site.pitr().arg("info").run().stdout;
    for next in [
        "next: pitr --cluster main wal gaps --heal",
        "pitr files backup www",
    ] {
        assert_eq!(text.matches(next).count(), 1, "{text}");
    }
}

#[test]
fn j68_an_alert_is_explained_without_configuration_or_network() {
    let explain = |words: &[&str]| pitr().arg("explain").args(words.iter().copied()).run();
    let gap = explain(&["main/recovery/gap"]).success();
    gap.expect_stdout("PitrGap")
        .expect_stdout("next:   pitr wal gaps --heal");
    let json = explain(&["PitrGap", "--json"]).success().json();
    assert_eq!(json["conditions"][0], "NAME/recovery/gap");
    let all = explain(&["--json"]).success().json();
    assert!(all["alerts"].as_array().unwrap().len() > 50, "{all:#}");
    explain(&[]).success().expect_stdout("PitrMetricsMissing");
    explain(&["nonsense"])
        .expect_code(2)
        .expect_stderr("no alert has the name");
}
