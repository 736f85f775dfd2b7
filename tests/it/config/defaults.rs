//! The default set of a host: crontabs of each distribution, units, pitr's own configuration, and PostgreSQL's with its includes.

use super::World;
use crate::common::{append, edit, files_below};
use crate::require_root;

/// Puts directories of the test over the host's, for one command.
const PLACES: &str =
    "mount --bind \"$1/etc\" /etc; mount --bind \"$1/spool\" /var/spool; shift; exec \"$@\"";

#[test]
fn the_default_set_has_crontabs_units_and_configurations() {
    require_root!("the_default_set_has_crontabs_units_and_configurations");
    let world = World::new();
    let places = [
        "etc/crontab",
        "etc/cron.d/backup",
        "etc/systemd/system/pitr-backup.timer",
        "etc/systemd/system/postgresql@.service.d/limits.conf",
        "var/spool/cron/crontabs/debian",
        "var/spool/cron/tabs/suse",
        "var/spool/cron/redhat",
    ];
    for place in places {
        world.write(&place.replace("var/", ""), b"PATH=/usr/bin\n");
    }
    for place in ["etc/passwd", "etc/hostname", "spool/mail/root"] {
        world.write(place, b"none of it\n");
    }
    let data = world.cluster.pgdata();
    let include = "include_dir 'conf.d'\ninclude_if_exists 'more/one.conf'\n";
    let main = data.join("postgresql.conf");
    append(&main, include);
    for (name, text) in [("conf.d/a.conf", "port = 5433\n"), ("more/one.conf", "")] {
        let path = data.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let host = format!("[\"{}\"]", world.text("host"));
    edit(world.path("writer.toml"), &host, "[\"default\"]");

    let sandbox = world.text("");
    let elsewhere = ["unshare", "-m", "sh", "-ec", PLACES, "sh", &sandbox];
    let backup = world.on("writer", &["config", "backup", "host"]);
    backup.under(elsewhere).succeed();
    world.restores("lead", "back", &[]);
    let of_server = [
        "postgresql.conf",
        "postgresql.auto.conf",
        "pg_hba.conf",
        "pg_ident.conf",
        "conf.d/a.conf",
        "more/one.conf",
    ];
    let paths = of_server
        .map(|name| data.join(name))
        .into_iter()
        .chain([world.path("writer.toml")]);
    let paths = paths.map(|path| path.strip_prefix("/").unwrap().to_str().unwrap().to_owned());
    let mut expected: Vec<String> = places.map(str::to_owned).into_iter().chain(paths).collect();
    expected.sort();
    assert_eq!(files_below(&world.path("back")), expected);
}
