//! The configuration file and its environment: settings or a message, however they are written.

#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use pitr::config::{Environment, Flags, Settings};
use pitr::wire::conninfo::{self, ConnInfo};
use pitr_fuzz::{Input, within};

const CEILING: usize = 64 << 20;

static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().unwrap());
    within(CEILING, || run(data, folder.path().join("pitr.toml")));
});

fn run(data: &[u8], path: PathBuf) {
    let mut input = Input::new(data);
    let choice = input.choice(4);
    let mut variables = Vec::new();
    for _ in 0..input.choice(4) {
        let name = text(input.piece());
        let prefix = ["PITR_CLUSTERS_", "PITR_REPOSITORIES_", "PITR_", "PG"][usize::from(choice)];
        variables.push((
            format!("{prefix}{}", name.replace(['\0', '='], "")),
            text(input.piece()),
        ));
    }
    if choice == 3 {
        return conninfo(&text(input.rest()), variables);
    }
    std::fs::write(&path, input.rest()).unwrap();
    let flags = Flags {
        config: Some(path),
        cluster: (choice == 1).then(|| "main".to_owned()),
        repository: (choice == 2).then(|| "file:///var/backups/pitr".to_owned()),
    };
    let environment = Environment::new(variables, Some("/".into()));
    match Settings::load(&flags, &environment) {
        Ok(settings) => {
            let _ = settings.cluster();
            let _ = settings.cluster_if_named();
            for repository in &settings.repositories {
                let _ = format!("{repository:?} {}", repository.location);
            }
        }
        Err(error) => {
            let _ = format!("{error} {:?}", error.hint_text());
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Connection settings: a message never holds what may be a password.
fn conninfo(text: &str, variables: Vec<(String, String)>) {
    let environment = conninfo::Environment {
        variables: variables.into_iter().collect(),
        home: None,
        user: Some("u".to_owned()),
    };
    if let Ok(info) = ConnInfo::resolve(text, &environment) {
        let _ = info.display_hosts();
    }
    let secret = format!("password=hunter2hunter2 {text}");
    if let Err(error) = ConnInfo::resolve(&secret, &environment) {
        assert!(!format!("{error:?} {error} {:?}", error.hint_text()).contains("hunter2hunter2"));
    }
}
