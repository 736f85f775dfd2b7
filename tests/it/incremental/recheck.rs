//! The pages that an incremental reads besides those that WAL names: 1 % of the rest of relations that changed.

use std::cell::Cell;

use super::{FULL, World, check_by, take, with_index};
use crate::common::{Cluster, Site};

/// Pages of the table whose changes are hidden.
const PAGES: u32 = 3000;

/// One segment whose index lacks every block, between others that are whole.
///
/// Each page that WAL does not name is looked at with a chance of 1 in 100, by a hash of date, file and block. So 3000 hidden pages are all
/// missed with a chance of 0.99^3000 = 8e-14; 1375 pages would do for one in a million (0.99^1375 = 1e-6).
#[test]
fn the_blocks_of_one_segment_that_its_index_hides_are_found_by_the_recheck() {
    let builder = Cluster::builder(17)
        .segment_size_mb(16)
        .without_fsync()
        .checksums(false)
        .option("full_page_writes", "off")
        .config("autovacuum", "off");
    let (site, cluster) = Site::with_cluster_of(builder);
    let world = World::around(site, cluster);
    let cluster = &world.cluster;
    // A page has 16 rows and room for one new version.
    cluster.sql(&format!(
        "create table spread (a int, b int, c text) with (fillfactor = 90);
         alter table spread alter c set storage plain;
         insert into spread select g, 0, repeat('x', 400) from generate_series(1, {PAGES} * 16) g;
         checkpoint"
    ));
    take(&world.site, &FULL).success();
    // The relation is active by what the segments around tell. A scan of it would prune pages, and so name them.
    cluster.sql("update spread set b = 1 where ctid = '(0,1)'");
    cluster.archive_now();
    cluster.sql("update spread set b = b + 1 where a % 16 = 8");
    let hidden = cluster.archive_now();
    cluster.sql("update spread set b = 1 where ctid = '(0,2)'");
    cluster.archive_now();
    let lacking = Cell::new(0);
    let spread = cluster.query_one_string("select pg_relation_filenode('spread')");
    assert!(with_index(&world.site.object(&hidden), |index| {
        let blocks = index.blocks.as_mut().unwrap();
        let is_own = |fork: (u32, u32, u32, u8)| fork.2.to_string() == spread && fork.3 == 0;
        let own = blocks.0.iter().filter(|one| is_own(one.fork));
        let runs = own.flat_map(|fork| fork.runs.iter().map(|run| run.1));
        lacking.set(runs.sum::<u32>());
        blocks.0.clear();
    }));
    assert!(lacking.get() >= PAGES, "{} pages", lacking.get());
    check_by(&world, Some("was changed at"));
}
