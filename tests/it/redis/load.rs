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
