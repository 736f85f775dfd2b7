//! Mistakes on the command line and in the configuration.

use super::Scene;
use super::frozen::Stage;
use super::redact::Data;
use crate::common::{Sandbox, pitr, pitr_archive};
use crate::frozen::Frozen;

#[test]
fn wrong_arguments() {
    let mut stage = Stage::new("bad-arguments", 18, "plain");
    for args in [
        &["inof"][..],
        &["info", "--colour"],
        &["info", "--cluster", "mian"],
        &["info", "--cluster", "Main"],
        &["info", "--repository", "frozne"],
        &["info", "--repository", "/nowhere/repo"],
        &["info", "--repository", "backups"],
        &["info", "--system-identifier", "42"],
        &["info", "--json", "--cluster", "mian"],
        &["plan", "--target-time", "yesterday"],
        &["plan", "--target-time", "2026-11-21"],
        &["plan", "--target-time", "2026-13-01 00:00:00Z"],
        &[
            "plan",
            "--target-time",
            "2026-10-25 02:30:00",
            "--timezone",
            "Europe/Berlin",
        ],
        &[
            "plan",
            "--target-time",
            "2026-03-29 02:30:00",
            "--timezone",
            "Europe/Berlin",
        ],
        &[
            "plan",
            "--target-time",
            "2026-11-21 14:30:25",
            "--timezone",
            "Mars/Olympus",
        ],
        &["plan", "--target-lsn", "0x1234"],
        &["plan", "--target-xid", "many"],
        &["plan", "--target-timeline", "newest"],
        &["plan", "--target-name", "payday", "--target-immediate"],
        &[
            "plan",
            "--target-xid",
            "766",
            "--target-lsn",
            "0/F00778",
            "--json",
        ],
        &["plan", "--backup", "first"],
        &["plan", "--exclusive"],
        &["restore"],
        &["wal", "show", "nonsense"],
        &["expire", "--keep", "0"],
        &["expire", "--keep", "1", "--dry-run", "--confirm"],
        &["expire", "--grace", "soon"],
        &["verify", "--backup", "20200101T000000Z-full"],
        &["backup", "--compression", "gzip"],
        &["backup", "--max-rate", "fast"],
        &["timeline", "abandon", "two", "--reason", "x"],
        &["repo", "sync", "--from", "a", "--to", "b"],
        &["repo", "rewrap"],
        &["wal", "backfill", "--from", "/"],
        &["wal", "resolve", "000000010000000000000009"],
        // The configuration names neither journal nor data directory.
        &["receive"],
        &["adopt"],
    ] {
        stage.pitr(args);
    }
    stage.check();
}

#[test]
fn wrong_places() {
    let mut stage = Stage::new("bad-places", 18, "plain");
    let folder = stage.path().to_owned();
    let to = |name: &str| folder.join(name);
    let restore = stage.program().words("restore --to");
    stage.say("The directory holds the repository.");
    stage.run(&restore.clone().arg(to("repository")));
    stage.say("It is a file.");
    stage.run(&restore.clone().arg(to("pitr.toml")));
    stage.say("Its parent is not there.");
    stage.run(&restore.clone().arg(to("a/b/c")));
    stage.run(&restore.clone().arg("/proc/pitr"));
    stage.run(&restore.arg("relative").words("--target-name holiday"));
    stage.say("There is nothing to replace, or to undo.");
    let replace = stage.program().words("restore --replace --to");
    stage.run(&replace.clone().arg(to("nowhere")));
    stage.run(&replace.arg(to("repository")));
    let undo = stage.program().words("restore --undo --to");
    stage.run(&undo.clone().arg(to("nowhere")));
    stage.run(&undo.arg(to("nowhere")).arg("--delta"));
    let adopt = stage.program().words("adopt --pgdata");
    stage.run(&adopt.clone().arg(to("nowhere")));
    stage.run(&adopt.arg(to("repository")));
    let push = stage.program().words("wal push");
    stage.run(&push.clone().arg(to("000000010000000000000099")));
    stage.say("It is a segment of another cluster.");
    let name = "000000010000000000000008";
    let other = Frozen::new(18, "encrypted");
    let fetch = other.pitr().args(["wal", "fetch", name]);
    fetch.arg(to(name)).succeed();
    stage.run(&push.arg(to(name)));
    let config = to("pitr.toml");
    stage.run(&pitr_archive().arg("--config").arg(config).arg(to(name)));
    stage.check();
}

#[test]
fn one_of_several() {
    let mut stage = Stage::new("bad-choice", 18, "plain");
    stage.add_to_configuration("\n[clusters.other]\n");
    for args in [
        &["info"][..],
        &["plan"],
        &["wal", "list"],
        &["verify", "--backup", "20261121T143022Z-full"],
        // These go through all of them, and through other content.
        &["expire", "--keep", "1"],
        &["verify"],
        &["plan", "--cluster", "other"],
    ] {
        stage.pitr(args);
    }
    stage.check();
}

#[test]
fn wrong_configurations() {
    let sandbox = Sandbox::new("config");
    let mut scene = Scene::new(
        "bad-configuration",
        Data::Frozen,
        &[(sandbox.path(), "[sandbox]")],
    );
    let info = pitr().arg("info").dir(sandbox.path());
    scene.say("There is no configuration.");
    scene.run(&info);
    scene.run(&info.clone().words("--config none.toml"));
    let url = format!("url = \"file://{}\"", sandbox.join("repo").display());
    let repository = format!("[clusters.main]\n\n[repositories.local]\n{url}\n");
    for (what, text) in [
        (
            "A bracket is missing in line 3.",
            "[clusters.main]\npgdata = '/d'\n[repositories.local\n",
        ),
        (
            "A key is misspelt in line 2.",
            "[clusters.main]\npgdta = '/d'\n",
        ),
        (
            "A value is of the wrong kind.",
            "[clusters.main]\npgdata = 17\n",
        ),
        ("The URL is none.", "[repositories.r]\nurl = 'backups'\n"),
        (
            "There is a section that does not exist.",
            "[server]\nhost = 'db1'\n",
        ),
        ("It is empty.", ""),
        ("It has a cluster and no repository.", "[clusters.main]\n"),
        ("It has a repository that is not there.", &repository),
    ] {
        sandbox.file("pitr.toml", text);
        scene.say(what);
        scene.run(&info);
    }
    scene.check();
}
