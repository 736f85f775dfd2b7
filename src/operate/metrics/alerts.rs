//! Metrics of alert sinks.

use std::path::Path;

use super::exposition::{Exposition, families};
use super::flag;
use crate::config::Settings;
use crate::operate::failing_sinks;

families! {
    FAILING: Gauge "pitr_alert_sink_failing" "Whether the last delivery to an alert sink failed.";
}

/// Adds them. Without the agent's file nothing is known.
pub(super) fn add(all: &mut Exposition, settings: &Settings, state_dir: &Path) {
    let Ok(failing) = failing_sinks::read(settings, state_dir) else {
        return;
    };
    for sink in &settings.alerts {
        let labels = [("sink", sink.name.as_str())];
        all.add(&FAILING, &labels, flag(failing.contains_key(&sink.name)));
    }
}
