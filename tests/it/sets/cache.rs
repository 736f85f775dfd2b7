//! The Redis server of a set: one that Sentinels watch, that loads other files, that takes long, or that has a module.

use super::back::{reconfigure, rescript, words, wrecked};
use super::shop::{REDIS, Shop};
use super::{TEN, wreck};
use crate::clock::preloaded;
use crate::common::{Program, Run, free_port, wait_until};
use crate::redis::sentinel::Sentinel;
use crate::redis::server::program;

fn refused(shop: &Shop, full: &[String], words_of_it: &str) {
    let run = shop.pitr(&words(full)).arg("--confirm").run();
    run.expect_code(8).expect_stderr(words_of_it);
    assert!(!shop.path("tmp/closed").exists(), "nothing was stopped");
}

fn restart(shop: &Shop) {
    for script in ["stop-redis", "start-redis"] {
        shop.script(script).success();
    }
    wait_until("Redis has loaded", || {
        let asked = Program::new(program(REDIS, "cli")).arg("-s");
        let asked = asked.arg(shop.path("tmp/r")).words("INFO persistence");
        asked.run().stdout.contains("\nloading:0")
    });
}

/// A server of the search path that is started with more words.
fn with_server(shop: &Shop, more: &str) -> String {
    let server = program(REDIS, "server");
    let text = format!("#!/bin/sh\nexec {} \"$@\" {more}\n", server.display());
    shop.sandbox.dir("bin");
    let path = shop.sandbox.file("bin/redis-server", text);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).unwrap();
    format!("{}:{}", shop.path("bin").display(), shop.search_path())
}

/// Sentinels would promote a replica while files are exchanged, and have the restored server copy it.
#[test]
fn r163_a_server_that_sentinels_watch_is_refused_before_anything_is_stopped() {
    let mut shop = Shop::open(17);
    let (port, _lock) = free_port();
    rescript(&shop, "start-redis", "--port 0", &format!("--port {port}"));
    restart(&shop);
    shop.wait_online();
    shop.json(&["redis", "backup", "shop"]);
    shop.write_counter(10);
    let mark = shop.mark();
    wreck(&shop);
    let full = ["recover", "full", "--set", "shop", "--mark", &mark];
    let full: Vec<String> = full.iter().map(|word| (*word).to_owned()).collect();
    let sentinel = Sentinel::at((REDIS, port), 1, "");
    wait_until("the Sentinel watches", || {
        let told = shop.redis(&["PUBSUB", "NUMSUB", "__sentinel__:hello"]);
        told.ends_with('1')
    });
    refused(&shop, &full, "SENTINEL REMOVE");
    let address = format!("address = \"unix:{}\"", shop.path("tmp/r").display());
    let named = format!(
        "sentinel.master = \"shop\"\nsentinel.addresses = [\"127.0.0.1:{}\"]",
        sentinel.port
    );
    reconfigure(&shop, &address, &named);
    refused(&shop, &full, "address in place of sentinel.master");
    // As the message says.
    reconfigure(
        &shop,
        &named,
        &format!(
            "{address}\nidentity = \"unix:{}\"",
            shop.path("tmp/r").display()
        ),
    );
    sentinel.ask(&["SENTINEL", "REMOVE", "shop"]);
    shop.pitr(&words(&full)).arg("--confirm").succeed();
    assert_eq!(shop.counters(), TEN);
    shop.stop_receiving();
}

/// A replica copies its master at each start, whatever its files hold.
#[test]
fn r163_a_server_that_is_a_replica_is_refused() {
    let (mut shop, wrecked, full) = wrecked();
    shop.redis(&["REPLICAOF", "127.0.0.1", "1"]);
    refused(&shop, &full, "is a replica of 127.0.0.1");
    shop.redis(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(shop.counters(), wrecked);
    shop.stop_receiving();
}

/// The server says nothing while it saves.
#[test]
fn r164_a_dump_that_takes_long_is_waited_for() {
    let mut shop = Shop::open(17);
    shop.write_counter(10);
    for n in 0..20 {
        shop.redis(&["SET", &format!("key:{n}"), "1"]);
    }
    let mark = shop.mark();
    let members = "\"main\", \"redis:shop\", \"files:uploads\", \"config:host\"";
    reconfigure(&shop, members, "\"redis:shop\"");
    let path = with_server(&shop, "--rdb-key-save-delay 200000");
    let test = [
        "recover", "test", "--set", "shop", "--mark", &mark, "--json",
    ];
    let run = shop.pitr(&test).env("PATH", path);
    let began = std::time::Instant::now();
    let told = run.env("PITR_FAULT_SECONDS", "1").succeed().json();
    assert_eq!(told["passed"], true, "{told:#}");
    assert!(began.elapsed().as_secs() >= 4, "the save was slow");
    shop.stop_receiving();
}

/// A server that loads another directory, or other names, would come up without what was restored.
#[test]
fn r165_a_server_that_loads_other_files_is_refused() {
    let mut shop = Shop::open(17);
    // A key that expires counts for nothing.
    shop.write_counter(10);
    shop.redis(&["EXPIRE", "counter", "100000"]);
    let mark = shop.mark();
    wreck(&shop);
    let full = ["recover", "full", "--set", "shop", "--mark", &mark];
    let full: Vec<String> = full.iter().map(|word| (*word).to_owned()).collect();
    let own = format!("data_directory = \"{}\"", shop.path("redis").display());
    let other = shop.sandbox.dir("other");
    let wrong = format!("data_directory = \"{}\"", other.display());
    reconfigure(&shop, &own, &wrong);
    refused(&shop, &full, "loads other files than those");
    reconfigure(&shop, &wrong, &own);
    let start = rescript(
        &shop,
        "start-redis",
        "--appendonly yes",
        "--appendonly yes --appendfilename my.aof",
    );
    restart(&shop);
    refused(&shop, &full, "appendfilename is \"my.aof\"");
    let dump = start.replace("--appendonly yes", "--appendonly no --dbfilename my.rdb");
    shop.sandbox.file("start-redis", dump);
    restart(&shop);
    refused(&shop, &full, "dbfilename is \"my.rdb\"");
    shop.sandbox.file("start-redis", &start);
    restart(&shop);
    // It is started elsewhere behind the exchange, where as many keys without an end are: none.
    rescript(
        &shop,
        "start-redis",
        &shop.path("redis").display().to_string(),
        &other.display().to_string(),
    );
    let run = shop.pitr(&words(&full)).arg("--confirm").run();
    run.expect_code(8)
        .expect_stderr("was started on other files than those that were restored");
    assert!(shop.path("tmp/closed").exists(), "the applications wait");
    shop.script("stop-redis").success();
    shop.sandbox.file("start-redis", start);
    shop.pitr(&words(&full)).arg("--confirm").succeed();
    assert_eq!(shop.counters(), TEN);
    shop.stop_receiving();
}

/// A module with a type of its own, which holds a number.
const MODULE: &str = r#"
#include <stdint.h>
#include <stdlib.h>
typedef int (*Get)(const char *, void *);
static void *type;
static uint64_t (*load_unsigned)(void *);
static void (*save_unsigned)(void *, uint64_t);
static void *(*open_key)(void *, void *, int);
static int (*set_value)(void *, void *, void *);
static int (*reply)(void *, const char *);
static int (*replicate)(void *);
static void *load(void *io, int version) { uint64_t *n = malloc(8); *n = load_unsigned(io); return n; }
static void save(void *io, void *value) { save_unsigned(io, *(uint64_t *)value); }
static void rewrite(void *io, void *key, void *value) {}
static struct { uint64_t version; void *methods[6]; } methods = { 1, { load, save, rewrite, 0, 0, free } };
static int make(void *ctx, void **argv, int argc) {
    uint64_t *n = malloc(8);
    *n = 7;
    set_value(open_key(ctx, argv[1], 3), type, n);
    replicate(ctx);
    return reply(ctx, "OK");
}
int RedisModule_OnLoad(void *ctx, void **argv, int argc) {
    Get get = ((void **)ctx)[0];
    void (*attributes)(void *, const char *, int, int);
    void *(*create_type)(void *, const char *, int, void *);
    int (*create_command)(void *, const char *, void *, const char *, int, int, int);
    get("RedisModule_SetModuleAttribs", &attributes);
    get("RedisModule_CreateDataType", &create_type);
    get("RedisModule_CreateCommand", &create_command);
    get("RedisModule_LoadUnsigned", &load_unsigned);
    get("RedisModule_SaveUnsigned", &save_unsigned);
    get("RedisModule_OpenKey", &open_key);
    get("RedisModule_ModuleTypeSetValue", &set_value);
    get("RedisModule_ReplyWithSimpleString", &reply);
    get("RedisModule_ReplicateVerbatim", &replicate);
    attributes(ctx, "pitrtest", 3, 1);
    type = create_type(ctx, "pitr-test", 0, &methods);
    return type == NULL || create_command(ctx, "pitrtest.make", make, "write", 1, 1, 1);
}
"#;

/// The server in quarantine would call the data set broken, with the applications still up, or down.
#[test]
fn r172_a_data_set_of_a_module_needs_a_server_with_that_module() {
    let mut shop = Shop::open(17);
    let module = preloaded(&shop.sandbox, MODULE).display().to_string();
    rescript(
        &shop,
        "start-redis",
        "--port 0",
        &format!("--port 0 --loadmodule {module}"),
    );
    restart(&shop);
    shop.wait_online();
    shop.redis(&["PITRTEST.MAKE", "of-module"]);
    shop.json(&["redis", "backup", "shop"]);
    shop.write_counter(10);
    let mark = shop.mark();
    wreck(&shop);
    let full = super::aside::full(&mark);
    let into = ["redis", "restore", "shop", "--into", "shop", "--dry-run"];
    let named = |run: Run| {
        assert!(!run.is_success(), "{run}");
        run.expect_stderr("module pitrtest, version 3")
            .expect_stderr("--loadmodule");
    };
    named(shop.pitr(&full).run());
    named(shop.pitr(&into).run());
    assert!(!shop.path("tmp/closed").exists(), "nothing was stopped");
    assert!(
        !shop.path("redis.pitr-new").exists(),
        "nothing was restored"
    );
    let test = ["recover", "test", "--set", "shop", "--mark", &mark];
    let tested = shop.pitr(&test).run();
    assert!(
        tested.to_string().contains("module pitrtest, version 3"),
        "{tested}"
    );
    // A server in quarantine that ends by itself says why: this one cannot load its module.
    let path = with_server(&shop, "--loadmodule /nowhere/module.so");
    let run = shop.pitr(&full).env("PATH", path).run();
    assert!(run.stderr.contains("/nowhere/module.so"), "{run}");
    // As the message says.
    let path = with_server(&shop, &format!("--loadmodule {module}"));
    shop.pitr(&full).env("PATH", path).succeed();
    assert_eq!(shop.counters(), TEN);
    assert_eq!(shop.redis(&["TYPE", "of-module"]), "pitr-test");
    shop.stop_receiving();
}
