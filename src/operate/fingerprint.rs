//! A short hash of what the hosts of a cluster are to agree about in their configurations.
//!
//! Hosts have paths, connections, keys and credentials of their own. They are to agree about what was promised, what is kept, and where it goes.

use crate::config::{Cluster, Settings};
use crate::text::hex;

/// Bytes of the hash that are shown.
const SHOWN: usize = 8;

/// The hash of a cluster's promises, rules and repositories. No secret goes into it.
pub(super) fn of(settings: &Settings, cluster: &Cluster) -> String {
    let mut lines = vec![
        format!("objectives {:?}", cluster.objectives),
        format!(
            "ages {:?} {:?} {:?}",
            cluster.max_backup_age, cluster.max_drill_age, cluster.full_every
        ),
        format!(
            "replay {:?} {:?}",
            cluster.max_replay, cluster.max_wal_bytes
        ),
        format!(
            "standbys {:?} {:?}",
            cluster.standby_outage, cluster.promote_unreachable
        ),
        format!("acknowledge {:?}", cluster.receive.acknowledge),
        format!("retention {:?}", cluster.retention.or(&settings.retention)),
    ];
    // Each host may try them in another order.
    let mut repositories: Vec<String> = settings
        .repositories
        .iter()
        .map(|one| {
            format!(
                "repository {} {} {} {:?}",
                one.name, one.location, one.required, one.retention
            )
        })
        .collect();
    repositories.sort();
    lines.extend(repositories);
    let hash = blake3::hash(lines.join("\n").as_bytes());
    hex(hash.as_bytes().get(..SHOWN).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::config::{Environment, Flags};

    /// The fingerprint of the only cluster of a configuration.
    fn fingerprint(text: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pitr.toml");
        std::fs::write(&path, text).unwrap();
        // A file with a password is read only where nobody else can.
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let flags = Flags {
            config: Some(path),
            ..Flags::default()
        };
        let settings = Settings::load(&flags, &Environment::default()).unwrap();
        of(&settings, &settings.clusters[0])
    }

    #[test]
    fn hosts_may_differ_in_paths_and_connections_and_not_in_promises() {
        let text = |conninfo: &str, order: [&str; 2], rpo: &str, keep: u32| {
            let [one, two] =
                order.map(|name| format!("[repositories.{name}]\nurl = \"file:///{name}\"\n"));
            format!(
                "[clusters.main]\nconninfo = \"{conninfo}\"\nrpo = \"{rpo}\"\n{one}{two}[retention]\nkeep_last = {keep}\n"
            )
        };
        let first = fingerprint(&text("host=a password=x", ["near", "far"], "5m", 3));
        assert_eq!(first.len(), 16);
        let same = fingerprint(&text("host=b password=y", ["far", "near"], "300s", 3));
        assert_eq!(first, same);
        let promise = fingerprint(&text("host=a password=x", ["near", "far"], "6m", 3));
        assert_ne!(first, promise);
        let rule = fingerprint(&text("host=a password=x", ["near", "far"], "5m", 4));
        assert_ne!(first, rule);
        let place = fingerprint(&text("host=a password=x", ["near", "off"], "5m", 3));
        assert_ne!(first, place);
    }
}
