//! `pitr clone`: a moment as a running server before anything is copied, on real servers.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::common::s3::peer::Peer;
use crate::common::{
    Client, Cluster, Program, Run, Sandbox, Site, bin, files_below, pitr, user, wait_until,
};
use crate::s3_cycle::Bucketed;
use crate::sealed::Sealed;
use crate::{per_major, require_root};

/// statfs(2).
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;

/// Lets an ordinary user open the device of mounts, as hosts with udev do; whether one can.
pub fn can_mount() -> bool {
    let device = Path::new("/dev/fuse");
    if user::is_root() {
        std::fs::set_permissions(device, PermissionsExt::from_mode(0o666)).unwrap();
    }
    std::fs::File::options()
        .read(true)
        .write(true)
        .open(device)
        .is_ok()
}

/// Ends the test as skipped where this user may not mount.
#[macro_export]
macro_rules! require_fuse {
    ($name:expr) => {
        if !$crate::clone::can_mount() {
            $crate::skip!($name, "needs /dev/fuse");
        }
    };
}

/// A cluster with a backup, rows behind it, and a table that is dropped then.
pub struct Cloned {
    pub site: Site,
    pub cluster: Cluster,
    pub folder: Sandbox,
    /// Just before the table was dropped.
    pub before: String,
}

/// Everything that is compared: rows of all tables.
pub const SUM: &str =
    "select count(*) || ' ' || coalesce(sum(hashtext(t::text)::bigint), 0) from t";

/// Computes from nothing what `SUM` is at the moment.
const OF_THE_MOMENT: &str = "select count(*) || ' ' || sum(hashtext(t::text)::bigint) from (select g as id, case when g % 100 = 0 then 'changed' when g > 30000 then 'later' else repeat(md5(g::text), 20) end as b from generate_series(1, 31000) g) t";

impl Cloned {
    pub fn new(major: u32) -> Cloned {
        let (site, cluster) = Site::with_cluster(major);
        Cloned::of(site, cluster)
    }

    /// As [`Cloned::new`], after some statements.
    pub fn with(major: u32, statements: &str) -> Cloned {
        let (site, cluster) = Site::with_cluster(major);
        cluster.sql(statements);
        Cloned::of(site, cluster)
    }

    pub fn of(site: Site, cluster: Cluster) -> Cloned {
        cluster.sql(
            "create table t as select g as id, repeat(md5(g::text), 20) as b from generate_series(1, 30000) g; alter table t add primary key (id); create table big as select g as id, repeat('x', 500) as b from generate_series(1, 40000) g",
        );
        site.pitr().words("backup --quiet").succeed();
        cluster.sql("insert into t select g, 'later' from generate_series(30001, 31000) g; update t set b = 'changed' where id % 100 = 0");
        let before = cluster.value("select pg_current_wal_insert_lsn()");
        cluster.sql("drop table t");
        cluster.archive_now();
        Cloned {
            site,
            cluster,
            folder: Sandbox::on_disk("c"),
            before,
        }
    }

    pub fn bin(&self) -> PathBuf {
        let initdb = bin(self.cluster.major(), "initdb").unwrap();
        initdb.parent().unwrap().to_owned()
    }

    /// The search path, with the client programs of the major: some majors have them apart from the server here.
    pub fn search_path(&self) -> String {
        let client = bin(self.cluster.major(), "pg_dump");
        let client = client.map(|path| format!("{}:", path.parent().unwrap().display()));
        format!(
            "{}/usr/bin:/bin:/usr/sbin:/sbin",
            client.unwrap_or_default()
        )
    }

    pub fn at_moment(&self, program: Program) -> Program {
        let program = program.env("PATH", self.search_path());
        program
            .args(["--target-lsn", &self.before, "--dir"])
            .arg(self.folder.path())
            .arg("--bin")
            .arg(self.bin())
    }

    pub fn clone(&self) -> Program {
        self.at_moment(self.site.pitr().words("clone --json"))
    }

    pub fn below(&self, arguments: &[&str]) -> Program {
        let program = self.site.pitr().arg("clone").args(arguments);
        program.arg("--dir").arg(self.folder.path())
    }

    pub fn left(&self) -> Vec<String> {
        files_below(self.folder.path())
    }
}

/// A client of a clone.
pub fn client(run: &Run) -> Client {
    let json = run.json();
    let connection = json["connection"].as_str().unwrap();
    Client::connect(connection).unwrap()
}

fn k41_a_clone_has_the_rows_of_its_moment_and_takes_writes(major: u32) {
    if !can_mount() {
        refused(major);
        crate::skip!(
            "k41_a_clone_has_the_rows_of_its_moment_and_takes_writes",
            "needs /dev/fuse"
        );
    }
    let cloned = Cloned::new(major);
    let run = cloned.clone().succeed();
    let clone = client(&run);
    assert_eq!(clone.value("select count(*) from t"), "31000");
    assert_eq!(
        clone.value("select count(*) from t where b = 'changed'"),
        "310"
    );
    assert_eq!(clone.value("select count(*) from big"), "40000");
    clone.sql("update t set b = 'mine' where id <= 500; create table own as select * from t; truncate big");
    clone.sql("vacuum t");
    clone.sql("checkpoint");
    assert_eq!(
        clone.value("select count(*) from own where b = 'mine'"),
        "500"
    );
    assert_eq!(clone.value("select count(*) from big"), "0");
    let listed = cloned.below(&["list", "--json"]).succeed().json();
    assert_eq!(listed[0]["id"].as_str().unwrap(), run.id());
    assert_eq!(listed[0]["stage"], "ready");
    drop(clone);
    let id = run.id();
    cloned.below(&["stop", &id]).succeed();
    assert!(cloned.left().is_empty(), "{:?}", cloned.left());
    cloned.site.pitr().words("verify --quiet").succeed();
}
per_major!(k41_a_clone_has_the_rows_of_its_moment_and_takes_writes);

/// Checks every index and, where amcheck of the major can, every heap with its TOAST.
fn assert_sound(clone: &Client, major: u32) {
    clone.sql("create extension amcheck");
    let indexes = "select count(*) from (select bt_index_check(c.oid, true) from pg_class c join pg_am a on a.oid = c.relam where a.amname = 'btree' and c.relkind = 'i' and c.relpersistence = 'p') checked";
    let count: u32 = clone.value(indexes).parse().unwrap();
    assert!(count > 100, "{count} indexes");
    if major >= 14 {
        let heaps = "select count(*) from pg_class c, lateral verify_heapam(c.oid, check_toast := true) where c.relkind in ('r', 't', 'm') and c.relpersistence = 'p'";
        assert_eq!(clone.value(heaps), "0");
    }
}

fn k41_a_clone_has_the_same_rows_and_amcheck_finds_nothing_wrong(major: u32) {
    require_fuse!("k41_a_clone_has_the_same_rows_and_amcheck_finds_nothing_wrong");
    let cloned = Cloned::new(major);
    let run = cloned.clone().succeed();
    let clone = client(&run);
    let live = &cloned.cluster;
    assert_eq!(clone.value(SUM), live.value(OF_THE_MOMENT));
    let big = "select count(*) || ' ' || sum(hashtext(big::text)::bigint) from big";
    assert_eq!(clone.value(big), live.value(big));
    assert_sound(&clone, major);
    drop(clone);
    cloned.below(&["stop", &run.id()]).succeed();
}
per_major!(k41_a_clone_has_the_same_rows_and_amcheck_finds_nothing_wrong);

fn refused(major: u32) {
    let cloned = Cloned::new(major);
    let run = cloned.clone().exits(8);
    run.expect_stderr("/dev/fuse").expect_stderr("pitr restore");
    assert!(cloned.left().is_empty());
}

fn k42_a_kept_clone_becomes_a_plain_data_directory(major: u32) {
    require_fuse!("k42_a_kept_clone_becomes_a_plain_data_directory");
    let cloned = Cloned::new(major);
    let run = cloned.clone().succeed();
    let id = run.id();
    let clone = client(&run);
    clone.sql("insert into t values (99999, 'kept')");
    cloned.below(&["keep", &id]).succeed();
    cloned.wait_stage("whole");
    let sum = clone.value(SUM);
    drop(clone);
    let stopped = cloned.below(&["stop", &id, "--json"]).succeed();
    let data = stopped.json()["data"].as_str().unwrap().to_owned();
    let own = Cluster::open(major, &data).start();
    assert_eq!(own.value(SUM), sum);
    assert_eq!(own.value("select b from t where id = 99999"), "kept");
    assert_eq!(own.value("select count(*) from big"), "40000");
    assert_eq!(own.value("show archive_mode"), "off");
}
per_major!(k42_a_kept_clone_becomes_a_plain_data_directory, v13 v17 v19);

/// Whether a process is there.
fn is_alive(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok())
}

#[test]
fn k43_a_clone_that_was_killed_is_gone_and_the_next_list_cleans_up() {
    require_fuse!("k43_a_clone_that_was_killed_is_gone_and_the_next_list_cleans_up");
    let cloned = Cloned::new(17);
    let before = cloned.site.files();
    let run = cloned.clone().succeed();
    let pid = i32::try_from(run.json()["pid"].as_i64().unwrap()).unwrap();
    let clone = client(&run);
    let server: i32 = clone.value("select pg_backend_pid()").parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    wait_until("the server has ended", || !is_alive(server));
    wait_until("nothing is left", || {
        let listed = cloned.below(&["list", "--json"]).succeed().json();
        listed.as_array().unwrap().is_empty() && cloned.left().is_empty()
    });
    // Nothing of the original was touched but for claims.
    let mut after = cloned.site.files();
    after.retain(|name| before.contains(name));
    assert_eq!(after, before);
    assert_eq!(cloned.cluster.value("select count(*) from big"), "40000");
}

fn k44_a_question_is_asked_of_a_moment(major: u32) {
    require_fuse!("k44_a_question_is_asked_of_a_moment");
    let cloned = Cloned::new(major);
    let query = |more: &[&str]| {
        let program = cloned.at_moment(cloned.site.pitr().arg("query"));
        program.args(more).run()
    };
    let csv = query(&["select id, null as n, b from t where id > 30998", "--csv"]).success();
    assert_eq!(
        csv.stdout, "id,n,b\n30999,,later\n31000,,changed\n",
        "{csv}"
    );
    // Values come as they are, and a null at the end is a line.
    let sql = "select E'a\\tb\\rc' as x union all select null";
    let csv = query(&[sql, "--csv"]).success();
    assert_eq!(csv.stdout, "x\n\"a\tb\rc\"\n\n", "{csv}");
    let json = query(&["select count(*) from t", "--json"])
        .success()
        .json();
    assert_eq!(json["rows"][0][0], "31000");
    let section = "[repositories.local]\n";
    let limited = format!("{section}max_rate = \"1GB\"\n");
    cloned.site.edit(section, &limited);
    query(&["select 1 from nowhere"])
        .expect_code(1)
        .expect_stderr("shared with the other")
        .expect_stderr("nowhere");
    // One that is too long is no server that may answer later.
    query(&["select repeat('x', 70000000)"])
        .expect_code(1)
        .expect_stderr("an answer has more than 64 MiB")
        .expect_stderr("pitr rescue");
    assert!(cloned.left().is_empty(), "{:?}", cloned.left());
}
per_major!(k44_a_question_is_asked_of_a_moment, v13 v18);

fn k56_a_question_finds_the_tables_and_the_days_of_its_database(major: u32) {
    require_fuse!("k56_a_question_finds_the_tables_and_the_days_of_its_database");
    let (site, cluster) = Site::with_cluster(major);
    cluster.sql("create schema shop; create table shop.orders (id int); create table public.orders (id int); insert into shop.orders values (1)");
    // The owner of a database may put functions before those of PostgreSQL.
    cluster.sql("create function shop.upper(text) returns text language sql as $$select 'evil'$$; alter database postgres set search_path = shop, pg_catalog, public");
    cluster.sql("alter database postgres set datestyle = 'ISO, MDY'; alter role postgres set datestyle = 'SQL, DMY'");
    cluster.sql("alter system set timezone = 'America/New_York'");
    let cloned = Cloned::of(site, cluster);
    let query = |more: &[&str]| {
        let sql = "select count(*), date_trunc('day', timestamptz '2026-03-01 02:00+00') as day, upper('x') from orders";
        let program = cloned.site.pitr().args(["query", sql]);
        cloned.at_moment(program).args(more).succeed()
    };
    let json = query(&["--json"]).json();
    let row = serde_json::json!(["1", "28/02/2026 00:00:00 EST", "X"]);
    assert_eq!(json["rows"][0], row, "{json}");
    assert_eq!(json["search_path"], "pg_catalog, shop, pg_catalog, public");
    assert_eq!(json["time_zone"], "America/New_York");
    assert_eq!(json["date_style"], "SQL, DMY");
    let csv = query(&["--csv"]);
    let line = "1,28/02/2026 00:00:00 EST,X\n";
    assert!(csv.stdout.ends_with(line), "{csv}");
    csv.expect_stderr("search_path pg_catalog, shop, pg_catalog, public; TimeZone America/New_York; DateStyle SQL, DMY");
}
per_major!(k56_a_question_finds_the_tables_and_the_days_of_its_database, v13 v18);

/// A cluster in which a table with all that may belong to one is dropped.
pub fn dropped(major: u32) -> Cloned {
    let (site, cluster) = Site::with_cluster(major);
    cluster.sql("create schema shop; create table shop.kinds (id int primary key, name text); insert into shop.kinds values (1, 'a'), (2, 'b');
        create table shop.orders (id bigserial primary key, kind int references shop.kinds, \"Note\" text not null default 'x', check (id > 0));
        create index on shop.orders (kind, \"Note\");
        insert into shop.orders (kind, \"Note\") select g % 2 + 1, 'note ' || g from generate_series(1, 5000) g;
        create table shop.lines (id int primary key, o bigint references shop.orders);
        create table shop.parts (at int, v text) partition by range (at);
        create table shop.parts_1 partition of shop.parts for values from (0) to (100);
        create table shop.parts_2 partition of shop.parts for values from (100) to (200);
        insert into shop.parts select g, 'v' || g from generate_series(0, 199) g;
        create index on shop.parts (v)");
    site.pitr().words("backup --quiet").succeed();
    cluster.sql("insert into shop.orders (kind) select 1 from generate_series(1, 10)");
    let before = cluster.value("select pg_current_wal_insert_lsn()");
    cluster.sql("drop table shop.orders cascade; drop table shop.parts");
    cluster.archive_now();
    Cloned {
        site,
        cluster,
        folder: Sandbox::new("c"),
        before,
    }
}

pub fn rescue(cloned: &Cloned, more: &[&str]) -> Run {
    rescuing(cloned, more).run()
}

pub fn rescuing(cloned: &Cloned, more: &[&str]) -> Program {
    let into = cloned.cluster.conninfo("postgres");
    let program = cloned.at_moment(cloned.site.pitr().words("rescue --json --into").arg(into));
    program.args(more)
}

fn k45_a_dropped_table_comes_back_with_all_that_belongs_to_it(major: u32) {
    require_fuse!("k45_a_dropped_table_comes_back_with_all_that_belongs_to_it");
    let cloned = dropped(major);
    let run = rescue(
        &cloned,
        &["--table", "shop.orders", "--table", "shop.parts"],
    )
    .success();
    let json = run.json();
    assert_eq!(json["tables"][0]["rows"], 5010, "{run}");
    let notes = json["notes"].to_string();
    assert!(
        notes.contains("alter table shop.lines add constraint"),
        "{run}"
    );
    let live = &cloned.cluster;
    let one = |sql: &str| live.value(sql);
    assert_eq!(one("select count(*) from shop.orders"), "5010");
    assert_eq!(one("select count(*) from shop.parts"), "200");
    assert_eq!(one("select count(*) from shop.parts_2"), "100");
    assert_eq!(
        one("select count(*) from pg_indexes where tablename = 'orders'"),
        "2"
    );
    let constraints = "select count(*) from pg_constraint where conrelid = 'shop.orders'::regclass and contype in ('p', 'f', 'c')";
    assert_eq!(one(constraints), "3");
    // The sequence goes on where it was.
    let next = one("insert into shop.orders (kind) values (1) returning id || \"Note\"");
    let next: u32 = next.strip_suffix('x').unwrap().parse().unwrap();
    // A server that recovered leaves out up to 32 values.
    assert!((5011..=5043).contains(&next), "{next}");
    let line = notes.split(": ").nth(1).unwrap();
    live.sql(line.split(';').next().unwrap());
    assert!(cloned.left().is_empty(), "{:?}", cloned.left());
    let gone = rescue(&cloned, &["--table", "shop.nothing"]).expect_code(2);
    gone.expect_stdout("no table shop.nothing");
}
// Nobody has client programs of 14 for these hosts: `rescue::k21` is about such a host.
per_major!(k45_a_dropped_table_comes_back_with_all_that_belongs_to_it, v13 v15 v16 v17 v18 v19);

/// A foreign key of the dropped table leads to a table that is locked: whoever came later would wait behind `pg_restore`.
#[test]
fn k15_a_locked_table_holds_a_dropped_one_up_for_ten_seconds() {
    require_fuse!("k15_a_locked_table_holds_a_dropped_one_up_for_ten_seconds");
    let cloned = dropped(17);
    let live = &cloned.cluster;
    let holder = live.client();
    holder.sql("begin; lock table shop.kinds in share row exclusive mode");
    let own = holder.value("select pg_backend_pid()");
    let orders = ["--table", "shop.orders"];
    let run = rescue(&cloned, &orders).expect_code(7);
    assert_eq!(run.json()["code"], "locked", "{run}");
    run.expect_stdout(&format!("(process {own})"));
    let there = "select count(*) from pg_class where relname = 'orders'";
    assert_eq!(live.value(there), "0");
    let left = "select count(*) from pg_stat_activity where application_name like 'pitr_rescue%'";
    wait_until("no session is left", || live.value(left) == "0");
    holder.sql("rollback");
    rescue(&cloned, &orders).success();
    let rows = live.value("select count(*) from shop.orders");
    assert_eq!(rows, "5010");
}

#[test]
fn k06_a_table_that_is_there_is_touched_only_as_the_operator_says() {
    require_fuse!("k06_a_table_that_is_there_is_touched_only_as_the_operator_says");
    let cloned = Cloned::new(17);
    let live = &cloned.cluster;
    live.sql("create table t (id int primary key, b text); insert into t select g, 'new' from generate_series(1, 100) g");
    rescue(&cloned, &["--table", "t"])
        .expect_code(8)
        .expect_stdout("--rows-missing-only");
    rescue(&cloned, &["--table", "t", "--replace"]).expect_code(8);
    assert_eq!(live.value(SUM), live.value(SUM));
    let beside = rescue(&cloned, &["--table", "t", "--as", "t_before"]).success();
    assert_eq!(beside.json()["tables"][0]["rows"], 31000);
    assert_eq!(live.value("select count(*) from t_before"), "31000");
    assert_eq!(live.value("select count(*) from t"), "100");
    let missing = rescue(&cloned, &["--table", "t", "--rows-missing-only"]).success();
    assert_eq!(missing.json()["tables"][0]["added_rows"], 30900);
    assert_eq!(live.value("select count(*) from t where b = 'new'"), "100");
    rescue(&cloned, &["--table", "t", "--replace", "--confirm"]).success();
    let differs = "select count(*) from (select * from t except select * from t_before) d";
    assert_eq!(live.value(differs), "0");
    assert_eq!(live.value("select count(*) from t"), "31000");
    // A table that has fewer columns takes nothing.
    live.sql("alter table t drop column b");
    rescue(&cloned, &["--table", "t", "--replace", "--confirm"])
        .expect_code(8)
        .expect_stdout("no column b");
    assert_eq!(live.value("select count(*) from t"), "31000");
    let file = cloned.folder.join("t.dump");
    let to = cloned.at_moment(
        cloned
            .site
            .pitr()
            .words("rescue --database postgres --to")
            .arg(&file),
    );
    let to = to.arg("--table").arg("t");
    to.succeed();
    to.exits(8);
    live.sql("drop table t");
    let restore = live
        .tool("pg_restore")
        .args(["-d", &live.conninfo("postgres")]);
    restore.arg(&file).succeed();
    assert_eq!(live.value("select count(*) from t"), "31000");
}

#[test]
fn k07_damaged_content_is_an_error_and_never_wrong_rows() {
    require_fuse!("k07_damaged_content_is_an_error_and_never_wrong_rows");
    let (site, cluster) = Site::with_cluster(17);
    // It does not compress, so most of the pack is this table, and what lies in the middle of it.
    cluster.sql("create table noise as select g, (select string_agg(md5((g * 100 + n)::text), '') from generate_series(1, 50) n) as b from generate_series(1, 15000) g");
    let cloned = Cloned::of(site, cluster);
    let packs = files_below(cloned.site.repository());
    let pack = packs.iter().filter(|name| name.contains("/packs/"));
    let pack = pack.max_by_key(|name| {
        std::fs::metadata(cloned.site.repository().join(name))
            .unwrap()
            .len()
    });
    let pack = cloned.site.repository().join(pack.unwrap());
    let mut bytes = std::fs::read(&pack).unwrap();
    let run = cloned.clone().succeed();
    let clone = client(&run);
    // Catalogs may lie in the damaged part, too: this server has what the last question needs.
    assert_eq!(clone.value("select 1"), "1");
    for at in (bytes.len() / 4..bytes.len() * 3 / 4).step_by(4096) {
        bytes[at] ^= 1;
    }
    // In place: the clone has the pack open.
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(&pack).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    let failed = clone
        .try_sql("select sum(hashtext(noise::text)) from noise")
        .unwrap_err();
    assert!(
        crate::common::text_of(&failed).contains("Input/output error"),
        "{failed:?}"
    );
    assert_eq!(clone.value("select 1"), "1");
    drop(clone);
    cloned.below(&["stop", &run.id()]).succeed();
}

#[test]
fn k08_tablespaces_are_mounted_too() {
    require_fuse!("k08_tablespaces_are_mounted_too");
    let (site, cluster) = Site::with_cluster(18);
    let space = Sandbox::new("space");
    cluster.sql(&format!(
        "create tablespace fast location '{}'",
        space.path().display()
    ));
    cluster.sql("create table s (id int primary key using index tablespace fast, b text) tablespace fast; insert into s select g, repeat('s', 300) from generate_series(1, 20000) g");
    let cloned = Cloned::of(site, cluster);
    let run = cloned.clone().succeed();
    let clone = client(&run);
    assert_eq!(
        clone.value("select count(*) || ' ' || sum(length(b)) from s"),
        "20000 6000000"
    );
    clone.sql("insert into s select g from generate_series(30000, 31000) g");
    clone.sql("vacuum full s");
    drop(clone);
    cloned.below(&["stop", &run.id()]).succeed();
    assert_eq!(cloned.cluster.value("select count(*) from s"), "20000");
}

fn k08_an_encrypted_repository_gives_a_clone(major: u32) {
    require_fuse!("k08_an_encrypted_repository_gives_a_clone");
    let (sealed, cluster) = Sealed::archived(major);
    cluster.sql("create table t as select g as id, repeat(md5(g::text), 20) as b from generate_series(1, 20000) g");
    sealed.on("writer").words("backup --quiet").succeed();
    cluster.sql("insert into t select g, 'later' from generate_series(20001, 20100) g");
    cluster.archive_now();
    let folder = Sandbox::new("c");
    let programs = bin(major, "initdb").unwrap();
    let clone = sealed.on("reader").words("clone --json --dir");
    let clone = clone.arg(folder.path()).arg("--bin");
    let run = clone.arg(programs.parent().unwrap()).succeed();
    let clone = client(&run);
    let sum = cluster.value(SUM);
    assert_eq!(clone.value(SUM), sum);
    assert_sound(&clone, major);
    drop(clone);
    let stop = sealed
        .on("reader")
        .args(["clone", "stop", &run.id(), "--dir"]);
    stop.arg(folder.path()).succeed();
    assert!(files_below(folder.path()).is_empty());
}
per_major!(k08_an_encrypted_repository_gives_a_clone, v13 v17 v19);

/// Inside a namespace all users but its own look like 65534, who runs most tests: so another one asks here.
#[test]
fn k57_what_only_root_may_change_is_trusted_in_a_clone_too() {
    require_root!("k57_what_only_root_may_change_is_trusted_in_a_clone_too");
    require_fuse!("k57_what_only_root_may_change_is_trusted_in_a_clone_too");
    let (sealed, cluster) = Sealed::archived(17);
    let space = Sandbox::new("space");
    cluster.make_tablespace("fast", &space.dir("ts"));
    cluster.sql("create table t tablespace fast as select 1 as id");
    sealed.on("writer").words("backup --quiet").succeed();
    let folder = Sandbox::new("c");
    let others = sealed.sandbox.file("others", "");
    let give = |path: &Path, user: &str| {
        let chown = Program::new("chown").args(["-R", user]).arg(path);
        chown.privileged().succeed();
    };
    let question = |key: &str| {
        let command = format!("key_command = [\"/bin/cat\", \"{key}\"]");
        sealed.configure(&cluster, "pitr", &command);
        give(sealed.sandbox.path(), "7:7");
        give(folder.path(), "7:7");
        give(&others, "8:8");
        let programs = bin(17, "initdb").unwrap();
        let program = pitr().dir(sealed.sandbox.path()).arg("query");
        let program = program.arg("--dir").arg(folder.path()).arg("--bin");
        let program = program.arg(programs.parent().unwrap());
        let program = program.arg("select 'here' from t").privileged();
        let user = ["--reuid=7", "--regid=7", "--clear-groups"];
        program.under(["setpriv"].into_iter().chain(user)).run()
    };
    question(&sealed.key("ops")).success().expect_stdout("here");
    let refused = question(&others.display().to_string());
    refused.expect_code(1).expect_stderr("belongs to user");
}

#[test]
fn k08_a_bucket_gives_a_clone() {
    require_fuse!("k08_a_bucket_gives_a_clone");
    let builder = Cluster::small(18);
    let (site, cluster) = Bucketed::with_cluster(builder, Peer::start(), "");
    cluster.sql("create table t as select g as id, repeat(md5(g::text), 20) as b from generate_series(1, 20000) g");
    site.backup();
    cluster.sql("insert into t select g, 'later' from generate_series(20001, 20100) g");
    cluster.archive_now();
    let folder = Sandbox::new("c");
    let programs = bin(18, "initdb").unwrap();
    let clone = site.pitr().words("clone --json --dir");
    let clone = clone.arg(folder.path()).arg("--bin");
    let run = clone.arg(programs.parent().unwrap()).succeed();
    let sum = cluster.value(SUM);
    assert_eq!(client(&run).value(SUM), sum);
    let stop = site.pitr().args(["clone", "stop", &run.id(), "--dir"]);
    stop.arg(folder.path()).succeed();
    assert!(files_below(folder.path()).is_empty());
}

/// A directory of root's alone, and in it one that root mounts on for the server's user.
pub struct Place {
    pub root: tempfile::TempDir,
    pub at: PathBuf,
}

impl Place {
    pub fn new() -> Place {
        let root = tempfile::Builder::new().prefix("pitr-mount-").tempdir();
        let root = root.unwrap();
        let mode = PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(root.path(), mode).unwrap();
        let at = root.path().join("m");
        std::fs::create_dir(&at).unwrap();
        user::own(&at);
        Place { root, at }
    }
}

#[test]
fn k09_a_moment_is_mounted_for_a_server_of_the_operator() {
    require_root!("k09_a_moment_is_mounted_for_a_server_of_the_operator");
    require_fuse!("k09_a_moment_is_mounted_for_a_server_of_the_operator");
    let (site, cluster) = Site::with_cluster(17);
    let space = Sandbox::new("space");
    let place = space.path().display().to_string();
    cluster.sql(&format!("create tablespace fast location '{place}'"));
    cluster.sql("create table s tablespace fast as select g from generate_series(1, 5000) g");
    let cloned = Cloned::of(site, cluster);
    let place = Place::new();
    let at = place.at.clone();
    let mount = cloned.site.pitr().privileged().arg("mount").arg(&at);
    let mount = mount.args(["--json", "--target-lsn", &cloned.before]);
    let running = mount.spawn();
    wait_until("it is mounted", || running.stdout().contains("}"));
    let shown: serde_json::Value = serde_json::from_str(&running.stdout()).unwrap();
    let data = PathBuf::from(shown["data"].as_str().unwrap());
    let control = cloned.cluster.tool("pg_controldata").arg(&data).run();
    let identifier = cloned.cluster.system_identifier().to_string();
    control.success().expect_stdout(&identifier);
    // WAL is written into a plain directory, and not through FUSE.
    let is_fuse = |of: &Path| rustix::fs::statfs(of).unwrap().f_type == FUSE_SUPER_MAGIC;
    assert!(is_fuse(&data) && !is_fuse(&data.join("pg_wal")));
    let mut own = Cluster::open(17, &data).promoted();
    assert_eq!(own.value("select count(*) from t"), "31000");
    assert_eq!(own.value("select count(*) from s"), "5000");
    own.stop(crate::common::Stop::Fast);
    drop(own);
    running.ended_by(Signal::INT).success();
    assert_eq!(std::fs::read_dir(&at).unwrap().count(), 0);
    // A directory that holds something is left alone.
    std::fs::write(at.join("x"), "").unwrap();
    mount.exits(8);
    assert!(at.join("x").exists());
}

/// A program on a host without FUSE: its /dev, in namespaces of its own, has nothing but what programs cannot do without.
pub fn without_fuse(cloned: &Cloned, program: Program) -> Program {
    let devices = cloned.folder.dir("dev");
    let script = "cd \"$0\"; mkdir -p shm; for d in null zero random urandom; do : >$d; mount --bind /dev/$d $d; done
        mount --rbind /dev/shm shm; mount --rbind . /dev; test ! -e /dev/fuse && exec \"$@\"";
    let alone = "unshare --user --map-current-user --keep-caps --mount -- sh -euc";
    let words = alone
        .split(' ')
        .chain([script])
        .map(std::ffi::OsString::from);
    program.under(words.chain([devices.into_os_string()]))
}

fn k10_without_mounts_the_database_is_copied_first(major: u32) {
    let cloned = dropped(major);
    let live = &cloned.cluster;
    let bare = |words: &[&str]| {
        let program = cloned.site.pitr().words("rescue --json --into");
        let program = cloned.at_moment(program.arg(live.conninfo("postgres")));
        without_fuse(&cloned, program.args(words))
    };
    let run = bare(&["--table", "shop.orders", "--table", "shop.parts"]).run();
    let run = run.success().expect_stderr("copied first");
    assert_eq!(run.json()["tables"][0]["rows"], 5010, "{run}");
    let one = |sql: &str| live.value(sql);
    assert_eq!(one("select count(*) from shop.orders"), "5010");
    assert_eq!(one("select count(*) from shop.parts_2"), "100");
    let query = cloned
        .site
        .pitr()
        .args(["query", "select count(*) from shop.orders"]);
    let query = without_fuse(&cloned, cloned.at_moment(query)).run();
    query.success().expect_stdout("5010");
    // A clone and a mount have to be mounted.
    let clone = without_fuse(&cloned, cloned.clone()).exits(8);
    clone.expect_stdout("pitr restore");
    let left: Vec<String> = cloned
        .left()
        .into_iter()
        .filter(|name| !name.starts_with("dev/"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
per_major!(k10_without_mounts_the_database_is_copied_first, v13 v15 v16 v17 v18 v19);

#[test]
fn k10_a_database_that_may_be_hollow_is_refused() {
    let (site, cluster) = Site::with_cluster(17);
    cluster.sql("create database pattern");
    let pattern = Client::connect(&cluster.conninfo("pattern")).unwrap();
    pattern.sql("create table t as select g as id from generate_series(1, 5000) g");
    drop(pattern);
    cluster.sql("create database shop");
    cluster.sql("create database own");
    site.pitr().words("backup --quiet").succeed();
    // The files of the new one are copies of files that a restore of "shop" alone has not.
    cluster.sql("drop database shop");
    cluster.sql("create database shop template pattern strategy file_copy");
    let before = cluster.value("select pg_current_wal_insert_lsn()");
    cluster.archive_now();
    let cloned = Cloned {
        site,
        cluster,
        folder: Sandbox::on_disk("c"),
        before,
    };
    let ask = |database: &str| {
        let query = cloned.site.pitr().args([
            "query",
            "select count(*) from pg_class where relname = 't'",
            "--database",
            database,
        ]);
        without_fuse(&cloned, cloned.at_moment(query)).run()
    };
    let run = ask("shop").expect_code(8);
    run.expect_stderr("is not the one of the backup");
    ask("pattern").success().expect_stdout("1");
    // The backup does not know it: everything is copied.
    cloned.cluster.sql("alter database own rename to renamed");
    let before = cloned.cluster.value("select pg_current_wal_insert_lsn()");
    cloned.cluster.archive_now();
    let cloned = Cloned { before, ..cloned };
    let query = cloned.site.pitr().args([
        "query",
        "select count(*) from pg_class where relname = 't'",
        "--database",
        "renamed",
    ]);
    without_fuse(&cloned, cloned.at_moment(query))
        .succeed()
        .expect_stdout("0");
}

#[test]
fn k11_a_kept_clone_is_nobodys_leftover_and_one_that_is_wanted_is_not_thrown_away() {
    require_fuse!("k11_a_kept_clone_is_nobodys_leftover_and_one_that_is_wanted_is_not_thrown_away");
    let cloned = Cloned::new(17);
    let id = cloned.clone().succeed().id();
    cloned.below(&["keep", &id]).succeed();
    let stop = cloned.below(&["stop", &id]);
    // Either it is whole already, or it is not lost without a word.
    wait_until("it is stopped as whole", || {
        let run = stop.run();
        assert!(matches!(run.code(), 0 | 8), "{run}");
        run.is_success()
    });
    let folder = cloned.folder.join(format!("pitr-clone-{id}"));
    assert!(folder.join("tree/data/PG_VERSION").exists());
    // As a power cut leaves it that undoes the last step.
    let lock = folder.join("clone.lock");
    std::fs::write(&lock, "").unwrap();
    user::own(&lock);
    cloned.below(&["list"]).succeed();
    assert!(folder.join("tree/data/PG_VERSION").exists() && !lock.exists());
    cloned.below(&["stop", &id]).exits(8);
}

#[test]
fn k11_a_live_table_that_does_not_take_all_rows_keeps_its_own() {
    require_fuse!("k11_a_live_table_that_does_not_take_all_rows_keeps_its_own");
    let cloned = Cloned::with(
        17,
        "create table g (id int primary key, a int, double int generated always as (a * 2) stored); insert into g select n, n from generate_series(1, 100) n",
    );
    let live = &cloned.cluster;
    let one = |sql: &str| live.value(sql);
    live.sql("alter table g alter double drop expression");
    live.sql("update g set double = 7");
    rescue(&cloned, &["--table", "g", "--replace", "--confirm"]).success();
    assert_eq!(one("select sum(double) from g"), "10100");
    live.sql("create function drops() returns trigger language plpgsql as 'begin if new.id > 90 then return null; end if; return new; end'; create trigger drops before insert on g for each row execute function drops()");
    live.sql("update g set a = -1");
    rescue(&cloned, &["--table", "g", "--replace", "--confirm"])
        .expect_code(1)
        .expect_stdout("took 90 of 100 rows");
    assert_eq!(one("select count(*) || ' ' || sum(a) from g"), "100 -100");
    // One that changes rows, before they are there or when the transaction ends.
    live.sql("drop trigger drops on g; create function touches() returns trigger language plpgsql as 'begin new.a := 0; return new; end'; create trigger touches before insert on g for each row execute function touches()");
    let replace = ["--table", "g", "--replace", "--confirm"];
    rescue(&cloned, &replace)
        .expect_code(1)
        .expect_stdout("does not have 100 of 100 rows as they were, and has 100 others")
        .expect_stderr("triggers of the live table run as rows arrive: touches");
    live.sql("drop trigger touches on g; create function later() returns trigger language plpgsql as 'begin update g set a = 0 where id = new.id and id = 7; return null; end'; create constraint trigger later after insert on g deferrable initially deferred for each row execute function later()");
    rescue(&cloned, &replace)
        .expect_code(1)
        .expect_stdout("does not have 1 of 100 rows as they were, and has 1 others");
    assert_eq!(one("select count(*) || ' ' || sum(a) from g"), "100 -100");
}

fn k47_rows_that_a_live_table_does_not_take_as_they_are_are_not_missing_any_more(major: u32) {
    require_fuse!("k47_rows_that_a_live_table_does_not_take_as_they_are_are_not_missing_any_more");
    let cloned = Cloned::with(
        major,
        "create table g (id int primary key, a real, at timestamptz, j json); insert into g select n, n / 3.0, 'epoch', json_build_object('n', n) from generate_series(1, 100) n",
    );
    let live = &cloned.cluster;
    let one = |sql: &str| live.value(sql);
    live.sql("delete from g where id % 2 = 0; update g set a = -1; alter table g alter a type double precision; alter table g add noted text default 'new'");
    let missing = ["--table", "g", "--rows-missing-only"];
    live.sql("create function drops() returns trigger language plpgsql as 'begin return null; end'; create trigger drops before insert on g for each row execute function drops()");
    rescue(&cloned, &missing)
        .expect_code(1)
        .expect_stdout("took 0 of 50 rows");
    live.sql("drop trigger drops on g; create function moves() returns trigger language plpgsql as 'begin new.id := new.id + 1000; return new; end'; create trigger moves before insert on g for each row execute function moves()");
    rescue(&cloned, &missing)
        .expect_code(1)
        .expect_stdout("does not have 50 of 50 rows as they were");
    assert_eq!(one("select count(*) || ' ' || sum(a) from g"), "50 -50");
    // One that writes elsewhere is named, and so are columns that the moment lacks.
    live.sql("drop trigger moves on g; create table heard (id int); create function hears() returns trigger language plpgsql as 'begin insert into heard values (new.id); return new; end'; create trigger hears before insert on g for each row execute function hears()");
    let run = rescue(&cloned, &missing).success();
    assert_eq!(run.json()["tables"][0]["added_rows"], 50, "{run}");
    run.expect_stdout("triggers of the live table run as rows arrive: hears")
        .expect_stdout("columns that the moment lacks get their defaults");
    assert_eq!(one("select count(*) from heard"), "50");
    assert_eq!(one("select count(*) from g where a = -1"), "50");
    let run = rescue(&cloned, &["--table", "g", "--replace", "--confirm"]).success();
    run.expect_stdout("columns that the moment lacks lose their values");
    assert_eq!(
        one("select count(*) from g where a > 0 and noted = 'new'"),
        "100"
    );
}
per_major!(k47_rows_that_a_live_table_does_not_take_as_they_are_are_not_missing_any_more, v13 v18);
