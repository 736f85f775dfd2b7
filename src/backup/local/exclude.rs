//! Names that a base backup leaves out.
//!
//! PostgreSQL: src/backend/backup/basebackup.c (13, 14: src/backend/replication), excludeDirContents, excludeFiles, sendDir;
//! src/backend/storage/file/reinit.c; looks_like_temp_rel_name in src/backend/storage/file/fd.c.

/// Directories that are kept without their content.
const EMPTIED: [&[u8]; 7] = [
    b"pg_stat_tmp",
    b"pg_replslot",
    b"pg_dynshmem",
    b"pg_notify",
    b"pg_serial",
    b"pg_snapshots",
    b"pg_subtrans",
];

/// Files of the running server, and of another backup.
const FILES: [&[u8]; 8] = [
    b"postgresql.auto.conf.tmp",
    b"current_logfiles.tmp",
    b"backup_label",
    b"tablespace_map",
    b"backup_manifest",
    b"postmaster.pid",
    b"postmaster.opts",
    b".DS_Store",
];

/// Beginnings of names of temporary files and of relation caches.
const PREFIXES: [&[u8]; 2] = [b"pgsql_tmp", b"pg_internal.init"];

/// Whether a file or directory of this name stays out, wherever it is.
pub fn is_excluded(name: &[u8]) -> bool {
    FILES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a directory of this name is kept without its content.
pub fn is_emptied(name: &[u8]) -> bool {
    EMPTIED.contains(&name)
}

/// Whether a name in the directory of a database is that of a temporary relation: `t<backend>_<relation>`, a fork, a segment.
pub fn is_temporary_relation(name: &[u8]) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let Some(rest) = std::str::from_utf8(name)
        .ok()
        .and_then(|n| n.strip_prefix('t'))
    else {
        return false;
    };
    let (rest, segment) = match rest.split_once('.') {
        Some((rest, segment)) => (rest, Some(segment)),
        None => (rest, None),
    };
    let mut parts = rest.split('_');
    parts.next().is_some_and(is_number)
        && parts.next().is_some_and(is_number)
        && parts
            .next()
            .is_none_or(|fork| matches!(fork, "fsm" | "vm" | "init"))
        && parts.next().is_none()
        && segment.is_none_or(is_number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_relations_are_told_from_others() {
        for name in [
            "t3_16384",
            "t3_16384_fsm",
            "t12_1_vm.1",
            "t0_1.22",
            "t1_2_init",
        ] {
            assert!(is_temporary_relation(name.as_bytes()), "{name}");
        }
        for name in [
            "16384",
            "t",
            "t3",
            "t3_",
            "t_3",
            "t3_x",
            "t3_1_main",
            "t3_1_fsm_vm",
            "t3_1.",
            "t3_1.x",
            "u3_1",
            "t3_1_",
        ] {
            assert!(!is_temporary_relation(name.as_bytes()), "{name}");
        }
        assert!(!is_temporary_relation(b"t3_\xff"));
    }

    #[test]
    fn names_of_the_running_server_stay_out() {
        for name in [
            "postmaster.pid",
            "pg_internal.init",
            "pg_internal.init.77",
            "pgsql_tmp",
            "pgsql_tmp12.0",
        ] {
            assert!(is_excluded(name.as_bytes()), "{name}");
        }
        for name in [
            "postmaster.pid.old",
            "backup_label.old",
            "pg_control",
            "current_logfiles",
            "pg_wal",
        ] {
            assert!(!is_excluded(name.as_bytes()), "{name}");
        }
        assert!(is_emptied(b"pg_replslot") && !is_emptied(b"pg_xact"));
    }
}
