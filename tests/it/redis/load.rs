//! Random histories: every type, times to live, transactions, scripts, and what changes whole databases.

use std::fmt::Write;

use crate::common::random::Random;

/// Adds random commands, one in a line, that any server since Redis 6 takes.
pub fn commands(random: &mut Random, count: usize) -> String {
    let mut out = String::new();
    for _ in 0..count {
        if random.one_in(40) {
            let _ = writeln!(out, "SELECT {}", random.pick(&[0, 1, 5, 15]));
        }
        if random.one_in(60) {
            out.push_str("MULTI\n");
            for _ in 0..1 + random.below(4) {
                command(random, &mut out);
            }
            out.push_str("EXEC\n");
            continue;
        }
        command(random, &mut out);
    }
    out
}

fn command(random: &mut Random, out: &mut String) {
    let (n, m) = (random.below(300), random.below(100_000));
    let _ = match random.below(24) {
        0 => writeln!(out, "SET string:{n} value-{m}"),
        1 => writeln!(
            out,
            "SET string:{n} {}",
            "long ".repeat(m % 400).trim_end().replace(' ', "-") + "x"
        ),
        2 => writeln!(out, "SET fleeting:{n} {m} PX {}", 1 + m % 3000),
        3 => writeln!(out, "SET lasting:{n} {m} EX {}", 1000 + m),
        4 => writeln!(out, "INCRBY number:{n} {m}"),
        5 => writeln!(out, "INCRBYFLOAT float:{n} 0.{m}"),
        6 => writeln!(out, "APPEND string:{n} more{m}"),
        7 => writeln!(out, "SETBIT bits:{n} {m} 1"),
        8 => writeln!(out, "RPUSH list:{n} a{m} b{m} c"),
        9 => writeln!(out, "LPOP list:{n}"),
        10 => writeln!(out, "HSET hash:{n} field{} {m}", m % 50),
        11 => writeln!(out, "HDEL hash:{n} field{}", m % 50),
        12 => writeln!(out, "SADD set:{n} {m} word{m}"),
        13 => writeln!(out, "SADD ints:{n} {m}"),
        14 => writeln!(out, "SPOP set:{n}"),
        15 => writeln!(out, "ZADD zset:{n} {} member{}", m as f64 / 7.0, m % 200),
        16 => writeln!(out, "ZREMRANGEBYRANK zset:{n} 0 0"),
        17 => writeln!(out, "XADD stream:{n} * field {m} other word"),
        18 => writeln!(out, "XTRIM stream:{n} MAXLEN 20"),
        19 => writeln!(out, "PFADD log:{n} {m}"),
        20 => writeln!(out, "GEOADD geo:{n} {}.5 45.{} place{m}", m % 90, m % 99),
        21 => writeln!(out, "EXPIRE hash:{n} {}", 1 + m % 90),
        22 => writeln!(
            out,
            "EVAL \"redis.call('set', KEYS[1], ARGV[1]); return redis.call('incr', KEYS[2])\" 2 script:{n} counter:{n} {m}"
        ),
        _ => match random.below(12) {
            0 => writeln!(out, "SWAPDB 1 5"),
            1 => writeln!(out, "XGROUP CREATE stream:{n} group{m} 0 MKSTREAM"),
            2 => writeln!(out, "DEL string:{n} list:{n}"),
            3 => writeln!(out, "RENAME counter:{n} renamed:{n}")
                .and_then(|()| writeln!(out, "SET counter:{n} 1")),
            _ => writeln!(out, "UNLINK hash:{n}"),
        },
    };
}

/// The commands of a history for the server of this name: those above, and besides what newer servers know, what fails, and what empties whole databases.
pub fn history(random: &mut Random, count: usize, name: &str) -> String {
    let mut out = String::new();
    for _ in 0..count {
        match random.below(100) {
            0..=54 => out += &commands(random, 1),
            55..=84 => wide(random, &mut out),
            85..=97 => newer(random, name, &mut out),
            98 => transaction(random, &mut out),
            _ => rare(random, &mut out),
        }
    }
    out
}

/// Commands of each server, some of which are refused for the type of a key.
fn wide(random: &mut Random, out: &mut String) {
    let (n, m) = (random.below(60), random.below(100_000));
    let other = random.below(60);
    let _ = match random.below(34) {
        0 => writeln!(out, "GETSET string:{n} {m}"),
        1 => writeln!(out, "SETRANGE string:{n} {} part{m}", m % 300),
        2 => writeln!(out, "MSET string:{n} {m} string:{other} x lasting:{n} {m}"),
        3 => writeln!(out, "PERSIST fleeting:{n}"),
        4 => writeln!(out, "PEXPIREAT string:{n} 1000000000000"),
        5 => writeln!(out, "EXPIREAT lasting:{n} {}", 4_000_000_000_u64 + m as u64),
        6 => writeln!(out, "LINSERT list:{n} BEFORE c before{m}"),
        7 => writeln!(out, "LREM list:{n} 1 c"),
        8 => writeln!(out, "LSET list:{n} 0 first{m}"),
        9 => writeln!(out, "RPOPLPUSH list:{n} list:{other}"),
        10 => writeln!(out, "LTRIM list:{n} 0 {}", m % 40),
        11 => writeln!(out, "HINCRBY hash:{n} counted {m}"),
        12 => writeln!(out, "HINCRBYFLOAT hash:{n} floated 0.{m}"),
        13 => writeln!(out, "SMOVE set:{n} set:{other} {m}"),
        14 => writeln!(out, "SUNIONSTORE set:u{n} set:{n} ints:{other}"),
        15 => writeln!(out, "SINTERSTORE set:i{n} set:u{n} set:{n}"),
        16 => writeln!(out, "SDIFFSTORE set:d{n} set:u{n} ints:{other}"),
        17 => writeln!(out, "ZINCRBY zset:{n} 0.{m} member{}", m % 200),
        18 => writeln!(
            out,
            "ZUNIONSTORE zset:u{n} 2 zset:{n} zset:{other} WEIGHTS 2 1"
        ),
        19 => writeln!(out, "ZPOPMIN zset:{n} 2"),
        20 => writeln!(out, "ZREMRANGEBYSCORE zset:{n} 0 {}", m % 400),
        21 => writeln!(out, "PFMERGE log:m{n} log:{n} log:{other}"),
        22 => writeln!(out, "BITOP XOR bits:x{n} bits:{n} bits:{other}"),
        23 => writeln!(out, "BITFIELD bits:{n} SET u8 {} {}", m % 900, m % 256),
        24 => writeln!(out, "XGROUP CREATE stream:{n} readers 0 MKSTREAM"),
        25 => writeln!(
            out,
            "XREADGROUP GROUP readers me{} COUNT 3 STREAMS stream:{n} >",
            m % 3
        ),
        26 => writeln!(out, "XCLAIM stream:{n} readers other 0 {m}-0 FORCE"),
        27 => writeln!(out, "SORT list:{n} ALPHA STORE list:s{n}"),
        28 => writeln!(out, "MOVE string:{n} {}", random.pick(&[1, 5, 15])),
        29 => writeln!(out, "RENAMENX string:{n} string:r{n}"),
        30 => writeln!(
            out,
            "EVAL \"redis.call('select', 5); redis.call('rpush', KEYS[1], ARGV[1]); redis.call('select', 1); return redis.call('sadd', KEYS[2], ARGV[1])\" 2 list:{n} set:{n} {m}"
        ),
        // A script that fails leaves its effects.
        31 => writeln!(
            out,
            "EVAL \"redis.call('set', KEYS[1], ARGV[1]); return redis.call('lpush', KEYS[1], 'x')\" 1 string:{n} {m}"
        ),
        32 => writeln!(out, "PUBLISH channel {m}"),
        _ => writeln!(out, "EXPIRE list:{n} {}", 1 + m % 4),
    };
}

/// Commands that not every server knows.
fn newer(random: &mut Random, name: &str, out: &mut String) {
    let (n, m) = (random.below(60), random.below(100_000));
    let other = random.below(60);
    if name == "redis-6" {
        return wide(random, out);
    }
    let has_field_ends = matches!(name, "redis-8" | "valkey-9");
    // DEBUG DIGEST of Valkey leaves out fields whose time is over, although they are there.
    let end = if name == "valkey-9" { 1_000_000 } else { 1 } + m % 3000;
    let _ = match random.below(if has_field_ends { 22 } else { 18 }) {
        0 => writeln!(out, "COPY string:{n} string:c{n} REPLACE"),
        1 => writeln!(
            out,
            "COPY hash:{n} hash:c{n} DB {} REPLACE",
            random.pick(&[1, 5])
        ),
        2 => writeln!(out, "LMOVE list:{n} list:{other} LEFT RIGHT"),
        3 => writeln!(out, "GETDEL string:{n}"),
        4 => writeln!(out, "GETEX string:{n} PX {}", 1 + m % 3000),
        5 => writeln!(out, "SET string:{n} {m} GET KEEPTTL"),
        6 => writeln!(out, "ZRANGESTORE zset:r{n} zset:{n} 0 5"),
        7 => writeln!(out, "ZDIFFSTORE zset:d{n} 2 zset:{n} zset:{other}"),
        8 => writeln!(
            out,
            "GEOSEARCHSTORE geo:s{n} geo:{n} FROMLONLAT 15 45 BYRADIUS 3000 km"
        ),
        9 => writeln!(out, "XAUTOCLAIM stream:{n} readers third 0 0 COUNT 2"),
        10 => writeln!(out, "LMPOP 2 list:{n} list:{other} LEFT COUNT 2"),
        11 => writeln!(out, "ZMPOP 1 zset:{n} MAX COUNT 2"),
        12 => writeln!(out, "EXPIRE lasting:{n} {} GT", 1000 + m),
        13 | 14 => writeln!(
            out,
            "FUNCTION LOAD REPLACE \"#!lua name=lib{0}\\nredis.register_function('put{0}', function(keys, args) redis.call('set', keys[1], args[1]) return redis.call('incrby', keys[2], {m}) end)\"",
            n % 6
        ),
        15 => writeln!(out, "FUNCTION DELETE lib{}", n % 6),
        16 | 17 => writeln!(out, "FCALL put{} 2 string:{n} counter:{n} {m}", n % 6),
        18 => writeln!(
            out,
            "HPEXPIRE hash:{n} {} FIELDS 2 field{} counted",
            end,
            m % 50
        ),
        19 => writeln!(
            out,
            "HEXPIRE hash:{n} {} FIELDS 1 field{}",
            1000 + m,
            m % 50
        ),
        20 => writeln!(out, "HPERSIST hash:{n} FIELDS 1 field{}", m % 50),
        _ => writeln!(
            out,
            "HSETEX hash:{n} PX {} FIELDS 1 field{} {m}",
            end,
            m % 50
        ),
    };
}

/// A transaction over databases, one that is discarded, or one of which a command fails.
fn transaction(random: &mut Random, out: &mut String) {
    let n = random.below(60);
    out.push_str("MULTI\n");
    let _ = writeln!(out, "SELECT {}", random.pick(&[0, 1, 5, 15]));
    for _ in 0..random.below(5) {
        wide(random, out);
    }
    let _ = writeln!(
        out,
        "SET string:{n} x\nLPUSH string:{n} wrong\nSADD set:{n} right"
    );
    let end = *random.pick(&["EXEC\n", "EXEC\n", "DISCARD\n"]);
    out.push_str(end);
}

/// Whole databases change.
fn rare(random: &mut Random, out: &mut String) {
    let line = match random.below(10) {
        0 => "FLUSHALL",
        1 => "FLUSHALL ASYNC",
        2 => "SELECT 5\nFLUSHDB",
        3 => "FLUSHDB ASYNC",
        4 => "MULTI\nSWAPDB 0 1\nSET swapped 1\nEXEC",
        5 => "SELECT 15\nSWAPDB 0 15",
        _ => "SWAPDB 1 5",
    };
    let _ = writeln!(out, "{line}");
}
