//! The server does not answer, or its data directory is gone: what there is to recover from, and how to go on.

use super::Findings;
use crate::config::{Cluster, Repository as Configured, Settings};
use crate::operate::human;
use crate::operate::session::Session;
use crate::wal::inventory::Inventory;

/// Says so for the first of the repositories that could be opened.
pub(super) fn look(
    found: &mut Findings,
    opened: &[&Configured],
    settings: &Settings,
    cluster: &Cluster,
    session: &Session,
) {
    found.begin("if the server is lost");
    let name = cluster.name.as_str();
    let flags = session.options((settings.clusters.len() > 1).then_some(name));
    for configured in opened {
        // The finding about the repository has reported why it cannot be read, or verify reports it.
        let inventory = session
            .open(configured)
            .and_then(|repository| Inventory::read(&repository, name, None));
        let Ok(inventory) = inventory else { continue };
        let usable = inventory.backups.iter().filter(|b| b.damage.is_none());
        let count = usable.clone().count() as u64;
        let Some(newest) = usable.max_by_key(|b| b.stop_time) else {
            continue;
        };
        let held = human::count(count, "undamaged backup");
        return found.warn(
            "backups to restore",
            format!("{held} in \"{}\", the newest {}", configured.name, newest.id),
            "neither server nor data directory are needed for that",
            format!(
                "pitr info{flags} shows what can be reached, pitr plan{flags} what a restore would do, pitr restore{flags} --to DIR does it"
            ),
        );
    }
    found.fail(
        "backups to restore",
        "none",
        "no repository that can be read holds an undamaged backup",
        "keep what is left of the server; pitr verify says what is wrong with the backups there are",
    );
}
