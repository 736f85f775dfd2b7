//! The same of an encrypted repository, with its key and without.

use super::frozen::Stage;

#[test]
fn with_the_key() {
    let mut stage = Stage::new("frozen-encrypted", 18, "encrypted");
    for args in [
        &["info"][..],
        &["plan"],
        &["verify"],
        &["repo", "show"],
        &["wal", "list"],
    ] {
        stage.pitr(args);
    }
    stage.check();
}

#[test]
fn without_the_key() {
    let mut stage = Stage::new("frozen-encrypted-without-key", 18, "encrypted");
    stage.forget_key();
    for args in [
        &["info"][..],
        &["info", "--json"],
        &["plan"],
        &["verify"],
        &["repo", "show"],
        &["wal", "list"],
    ] {
        stage.pitr(args);
    }
    stage.say("the key file is not there");
    stage.lose_key();
    stage.pitr(&["plan"]);
    stage.check();
}
