//! Repositories with erasures, as the first program with `pitr erasure` wrote them (`testdata/repositories/erasures-*`): listed, read and verified.

use std::path::Path;

use serde_json::Value;

use crate::common::{Program, Sandbox, pitr};
use crate::frozen::without_size;

fn erasures_are_read(form: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/repositories");
    let source = root.join(format!("erasures-{form}"));
    let sandbox = Sandbox::new("frozen");
    let tar = std::fs::read(source.join("repository.tar")).unwrap();
    let unpack = Program::new("tar").words("-x -C").arg(sandbox.path());
    unpack.stdin(tar).succeed();
    let mut config = format!(
        "[clusters.main]\n[repositories.frozen]\nurl = \"file://{}\"\n",
        sandbox.join("repository").display(),
    );
    if form == "encrypted" {
        let key = std::fs::read(root.join("keys/ops.key")).unwrap();
        let key = sandbox.file("ops.key", key);
        config += &format!(
            "[repositories.frozen.encryption]\nkey_file = \"{}\"\n",
            key.display()
        );
    }
    let config = sandbox.file("pitr.toml", config);
    let read = |args: &[&str]| {
        let program = pitr().arg("--config").arg(&config).args(args);
        program.succeed()
    };
    let expected = std::fs::read(source.join("expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let list = ["erasure", "list", "--json"];
    let listed = read(&list).json();
    assert_eq!(listed, expected["listed"], "{listed:#}");
    let shown = expected["shown"].as_object().unwrap();
    assert_eq!(shown.len(), 3);
    for (id, erasure) in shown {
        let show = ["erasure", "show", id, "--json"];
        let found = read(&show).json();
        assert_eq!(found, *erasure, "{found:#}");
    }
    let verify = read(&["verify"]);
    let text = std::fs::read_to_string(source.join("verify.txt")).unwrap();
    assert_eq!(without_size(&verify.stdout), without_size(&text));
}

#[test]
fn frozen_erasures_are_read() {
    erasures_are_read("plain");
    erasures_are_read("encrypted");
}
