//! `pitr backup --method local` through the real program: files read beside a running server.

use crate::backup::root;
use crate::per_major;
use crate::restore::{Scene, go_the_whole_way};

fn a_local_backup_goes_the_whole_way(major: u32) {
    let jobs = if major % 2 == 0 { "4" } else { "1" };
    let scene = Scene::taken(major, &["--method", "local", "--jobs", jobs]);
    let root = root(&scene.site, &scene.backup);
    assert_eq!(
        root.content.method,
        pitr::repo::root::cluster::Method::Local
    );
    assert_eq!(root.content.server_manifest, None);
    scene.site.pitr().arg("verify").run().success();
    go_the_whole_way(&scene);
}
per_major!(a_local_backup_goes_the_whole_way);
