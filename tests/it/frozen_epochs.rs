//! A repository with two epochs of one key set, as the first program with `pitr repo rotate` wrote it (`testdata/repositories/epochs`).

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{Program, Sandbox, pitr};
use crate::frozen::without_size;
use crate::rotation::epochs;
use crate::sealed::refused;

#[test]
fn a_frozen_repository_with_two_epochs_is_read() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/repositories/epochs");
    let sandbox = Sandbox::new("frozen");
    let tar = std::fs::read(source.join("repository.tar")).unwrap();
    let unpack = Program::new("tar").words("-x -C").arg(sandbox.path());
    unpack.stdin(tar).succeed();
    let repository = sandbox.join("repository");
    let [first, second] = epochs(&repository);
    assert!(first > 2 && second > 2, "{first} {second}");
    let on = |keys: &[(&str, &str)]| {
        let mut config = format!(
            "[clusters.main]\n[repositories.frozen]\nurl = \"file://{}\"\n[repositories.frozen.encryption]\n",
            repository.display()
        );
        for (word, name) in keys {
            let key = sandbox.file(name, std::fs::read(source.join(name)).unwrap());
            config += &format!("{word} = \"{}\"\n", key.display());
        }
        let config = sandbox.file(format!("{}.toml", keys[0].1), config);
        pitr().arg("--config").arg(config)
    };
    let expected = std::fs::read(source.join("expected.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_slice(&expected).unwrap();
    assert_eq!(expected.len(), 2);
    for reader in ["ops.key", "escrow.key", "auditor.key"] {
        for (id, files) in &expected {
            let to = sandbox.join(format!("{reader}-{id}"));
            let restore =
                on(&[("key_file", reader)]).args(["files", "restore", "docs", "--backup", id]);
            let run = restore.arg("--to").arg(&to).run();
            if reader == "auditor.key" {
                refused(&run, 1, "no keys of epoch 2 for recipient \"auditor\"");
                continue;
            }
            assert!([0, 6].contains(&run.code()), "{run}");
            for (name, content) in files {
                assert_eq!(std::fs::read_to_string(to.join(name)).unwrap(), *content);
            }
        }
    }
    let verify = on(&[("key_file", "ops.key")]).arg("verify").succeed();
    let text = std::fs::read_to_string(source.join("verify.txt")).unwrap();
    assert_eq!(without_size(&verify.stdout), without_size(&text));
    // Both files for hosts are those of the key set.
    for writer in ["writer.key", "writer-2.key"] {
        let doctor = on(&[("key_set", writer)]).arg("doctor").run();
        doctor.expect_stdout("escrow, ops");
    }
}
