//! Nobody is taken over: no file that somebody else may change decides what a command runs, and no restore writes outside of its place.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::common::{Program, Run, Sandbox, Site, Stop, fault, majors, pitr, user};
use crate::restore::{AT_END, Scene, rows};
use crate::{require_root, require_strace};

/// A directory of the unprivileged user with a `pitr.toml` that names a program for credentials.
struct Trap {
    sandbox: Sandbox,
    config: PathBuf,
}

impl Trap {
    fn set() -> Trap {
        let sandbox = Sandbox::new("trap");
        let program = sandbox.file(
            "program",
            format!("id -u > {}/ran\n", sandbox.path().display()),
        );
        let line = format!("credential_process = /bin/sh {}", program.display());
        let credentials = sandbox.file("credentials", format!("[default]\n{line}\n"));
        let text = format!(
            "[clusters.main]\n[repositories.far]\nurl = \"s3://bucket/prefix\"\nregion = \"x\"\n\
             endpoint = \"http://127.0.0.1:9\"\nretry_budget = \"1s\"\ncredentials_file = \"{}\"\n",
            credentials.display()
        );
        let config = sandbox.file("pitr.toml", text);
        Trap { sandbox, config }
    }

    /// `pitr info` in the trap's directory, as the user of the tests: root where they run as root.
    fn info(&self) -> Program {
        pitr().arg("info").privileged().dir(self.sandbox.path())
    }

    /// Whether the program of the trap was run.
    fn has_sprung(&self) -> bool {
        self.sandbox.join("ran").exists()
    }

    /// Fails unless the file is refused by name, its program was not run, and `--config` is named as the way.
    fn refused(&self, program: &Program, cause: &str) {
        let run = program.exits(3);
        assert!(!self.has_sprung(), "the program was run\n{run}");
        let named = self.config.display().to_string();
        for part in [cause, &named, "--config"] {
            assert!(run.stderr.contains(part), "expected {part}\n{run}");
        }
    }
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn b1_root_believes_no_configuration_of_another_user_in_the_working_directory() {
    require_root!("b1_root_believes_no_configuration_of_another_user_in_the_working_directory");
    let trap = Trap::set();
    trap.refused(&trap.info(), "belongs to user \"nobody\"");
    // Its own file in a directory of somebody else is no better: that user can put another in its place.
    std::os::unix::fs::chown(&trap.config, Some(0), Some(0)).unwrap();
    trap.refused(&trap.info(), "belongs to user \"nobody\"");
    // A link of root's to that place leads there.
    let own = tempfile::tempdir_in("/root").unwrap();
    std::os::unix::fs::symlink(&trap.config, own.path().join("pitr.toml")).unwrap();
    let run = pitr().arg("info").privileged().dir(own.path()).exits(3);
    assert!(run.stderr.contains("belongs to user \"nobody\""), "{run}");
    assert!(!trap.has_sprung(), "{run}");
}

#[test]
fn b1_root_believes_no_configuration_below_a_home_that_is_not_its_own() {
    require_root!("b1_root_believes_no_configuration_below_a_home_that_is_not_its_own");
    let trap = Trap::set();
    let home = trap.sandbox.dir("home");
    trap.sandbox.dir("home/.config/pitr");
    let moved = home.join(".config/pitr/pitr.toml");
    std::fs::rename(&trap.config, &moved).unwrap();
    let trap = Trap {
        config: moved,
        ..trap
    };
    let info = trap.info().dir("/").env("HOME", &home);
    trap.refused(&info, "belongs to user \"nobody\"");
}

#[test]
fn b1_no_configuration_is_believed_that_others_may_change() {
    let trap = Trap::set();
    let info = || pitr().arg("info").dir(trap.sandbox.path());
    mode(&trap.config, 0o664);
    trap.refused(&info(), "may be changed by other users");
    mode(&trap.config, 0o600);
    // Also a sticky directory lets everybody put the file there.
    for open in [0o1777, 0o775, 0o757] {
        mode(trap.sandbox.path(), open);
        trap.refused(&info(), "may be changed by other users");
    }
    // A directory above a directory of ours may be sticky, as /tmp is, but not open.
    mode(trap.sandbox.path(), 0o1777);
    let inner = trap.sandbox.dir("inner");
    let moved = inner.join("pitr.toml");
    std::fs::rename(&trap.config, &moved).unwrap();
    let trap = Trap {
        config: moved,
        ..trap
    };
    let info = || pitr().arg("info").dir(&inner);
    mode(trap.sandbox.path(), 0o777);
    trap.refused(&info(), "may be changed by other users");
    mode(trap.sandbox.path(), 0o1777);
    let run: Run = info().run();
    assert_ne!(run.code(), 3, "{run}");
    let ran = std::fs::metadata(trap.sandbox.join("ran")).unwrap();
    assert_eq!(ran.uid(), user::ids().0, "the user's own program is run");
}

#[test]
fn b1_a_file_that_is_refused_is_never_passed_over_for_the_next() {
    let trap = Trap::set();
    mode(&trap.config, 0o666);
    let home = trap.sandbox.dir("home");
    trap.sandbox.dir("home/.config/pitr");
    trap.sandbox
        .file("home/.config/pitr/pitr.toml", "[clusters.other]\n");
    let info = pitr()
        .arg("info")
        .dir(trap.sandbox.path())
        .env("HOME", &home);
    trap.refused(&info, "may be changed by other users");
    // A file that is named with --config is believed.
    let run = info.arg("--config").arg(&trap.config).run();
    assert_ne!(run.code(), 3, "{run}");
    assert!(trap.has_sprung(), "{run}");
}

#[test]
fn b1_init_writes_no_configuration_where_none_is_believed() {
    let sandbox = Sandbox::new("open");
    mode(sandbox.path(), 0o777);
    let run = pitr()
        .words("init --repository")
        .arg(sandbox.join("repo"))
        .dir(sandbox.path())
        .exits(3);
    assert!(run.stderr.contains("--config"), "{run}");
    assert!(
        !sandbox.join("pitr.toml").exists() && !sandbox.join("repo").exists(),
        "{run}"
    );
}

#[test]
fn b1_root_runs_no_program_that_another_user_names_for_credentials() {
    require_root!("b1_root_runs_no_program_that_another_user_names_for_credentials");
    let trap = Trap::set();
    let info = pitr().words("info --config").arg(&trap.config).privileged();
    let credentials = trap.sandbox.join("credentials");
    let refused = |run: Run| {
        assert!(!trap.has_sprung(), "the program was run\n{run}");
        assert_ne!(run.code(), 0, "{run}");
        assert!(run.stderr.contains("credential_process"), "{run}");
        assert!(run.stderr.contains("sudo -u nobody"), "{run}");
    };
    refused(info.run());
    // Nor through the default files of a home that is another's.
    trap.sandbox.dir("home/.aws");
    std::fs::rename(&credentials, trap.sandbox.join("home/.aws/credentials")).unwrap();
    let text = std::fs::read_to_string(&trap.config).unwrap();
    let text = text.lines().filter(|l| !l.starts_with("credentials_file"));
    std::fs::write(&trap.config, text.collect::<Vec<_>>().join("\n")).unwrap();
    let info = info.env("HOME", trap.sandbox.join("home"));
    refused(info.run());
    // Its own it runs.
    std::os::unix::fs::chown(trap.sandbox.join("home/.aws/credentials"), Some(0), None).unwrap();
    let run = info.run();
    assert!(trap.has_sprung(), "{run}");
}

#[test]
fn b2_a_tablespace_returns_to_its_old_place_only_when_that_is_confirmed() {
    let mut scene = Scene::new(majors()[0]);
    scene.cluster.stop(Stop::Immediate);
    let gone = scene.space.with_file_name("gone");
    std::fs::rename(&scene.space, &gone).unwrap();
    scene.site.sandbox().dir("copy");
    let restore = |args: &[&str]| {
        let restore = scene.site.pitr().restore_to(scene.to());
        restore.args(args).run()
    };
    let place = format!("in \"{}\"", scene.space.display());
    let run = restore(&[])
        .expect_code(8)
        .expect_stderr(&place)
        .expect_stderr("--confirm");
    assert!(!scene.to().exists() && !scene.space.exists(), "{run}");
    let run = restore(&["--dry-run"]).success();
    let place = format!(
        "goes to \"{}\", as in the backup: needs --confirm",
        scene.space.display()
    );
    assert!(
        run.stdout.contains(&place) && !scene.space.exists(),
        "{run}"
    );
    restore(&["--confirm"]).success();
    let mut copy = scene.open();
    copy.start();
    copy.wait_promoted();
    assert_eq!(rows(&copy), AT_END);
    let location = "select pg_tablespace_location(oid) from pg_tablespace where spcname = 'ts'";
    assert_eq!(copy.value(location), scene.space.to_str().unwrap());
    assert_eq!(copy.value("select count(*) from s"), "5000");
}

#[test]
fn b3_a_link_that_is_planted_meanwhile_gives_nothing_of_roots_away() {
    require_root!("b3_a_link_that_is_planted_meanwhile_gives_nothing_of_roots_away");
    require_strace!("b3_a_link_that_is_planted_meanwhile_gives_nothing_of_roots_away");
    let (site, cluster) = Site::with_cluster(majors()[0]);
    let space = cluster.sandbox().dir("space");
    cluster.make_tablespace("ts", &space);
    site.pitr().words("backup --quiet").succeed();
    cluster.archive_now();
    let roots = tempfile::tempdir_in("/root").unwrap();
    let victim = roots.path().join("data");
    // The moment when the restore has looked at the place and made nothing yet: it asks for the free space.
    let restored = |n: usize, plant: &dyn Fn(&Path)| {
        let folder = site.sandbox().dir(n.to_string());
        let mapping = format!("{}={}", space.display(), folder.join("space").display());
        let program = site.pitr().words("restore --target-immediate --to");
        let program = program
            .arg(folder.join("data"))
            .args(["--tablespace-mapping", &mapping]);
        let run = fault::pause(&program.privileged(), "statfs,fstatfs", || plant(&folder));
        assert_ne!(run.code(), 0, "{run}");
        let left: Vec<_> = std::fs::read_dir(roots.path()).unwrap().flatten().collect();
        for entry in left {
            let uid = entry.metadata().unwrap().uid();
            assert_eq!(uid, 0, "{} was given away\n{run}", entry.path().display());
            assert_eq!(entry.path(), victim, "it was made\n{run}");
            assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 0, "{run}");
        }
    };
    let link = |to: &Path, at: PathBuf| std::os::unix::fs::symlink(to, at).unwrap();
    let above = |folder: &Path| {
        std::fs::rename(folder, folder.with_extension("away")).unwrap();
        link(roots.path(), folder.to_owned());
    };
    std::fs::create_dir(&victim).unwrap();
    restored(1, &|folder| link(&victim, folder.join("data")));
    restored(2, &|folder| link(&victim, folder.join("space")));
    restored(3, &above);
    std::fs::remove_dir(&victim).unwrap();
    restored(4, &above);
}

#[test]
fn b4_nothing_is_restored_into_a_data_directory() {
    let mut scene = Scene::new(majors()[0]);
    let pgdata = scene.cluster.pgdata().to_owned();
    let mapping = |to: PathBuf| format!("{}={}", scene.space.display(), to.display());
    let outside = scene.site.sandbox().dir("outside");
    let refused = || {
        for below in ["sub", "base/new", "pg_wal/a"] {
            let to = pgdata.join(below);
            let (space, copy) = (mapping(outside.join("space")), mapping(to.clone()));
            let restore = || scene.site.pitr().words("restore --to");
            let standby = scene.site.pitr().words("standby --primary-conninfo host=x");
            for program in [
                restore().arg(&to).args(["--tablespace-mapping", &space]),
                standby
                    .arg("--to")
                    .arg(&to)
                    .args(["--tablespace-mapping", &space]),
                restore()
                    .arg(outside.join("data"))
                    .args(["--tablespace-mapping", &copy]),
            ] {
                let run = program.exits(8);
                let named = format!("inside data directory \"{}\"", pgdata.display());
                assert!(run.stderr.contains(&named), "{run}");
                assert!(!to.exists() && !outside.join("data").exists(), "{run}");
            }
        }
    };
    refused();
    scene.cluster.stop(Stop::Fast);
    refused();
}
