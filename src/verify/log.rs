//! The log of an aux scope: each object against its key and its checksums.

use std::collections::BTreeMap;

use super::About;
use super::check::Check;
use super::depth::Depth;
use crate::error::Result;
use crate::pg::segment::SegmentNumber;
use crate::repo::container::Container;
use crate::repo::json;
use crate::repo::log_keys::{self, LogKeys};
use crate::repo::runbook;
use crate::repo::runs::Runs;
use crate::store::{self, Key};

/// Checks all objects of a log, and returns the whole segments. Less than [`Depth::Everything`] reads the ends of those, which say what they are, and
/// [`Depth::Fast`] the ends of all containers.
pub(super) fn check(check: &Check<'_>, depth: &Depth) -> Result<BTreeMap<String, Runs>> {
    let objects = log_keys::objects(check.store, &check.scope)?;
    let segments = objects.whole();
    if objects.containers.is_empty() && objects.small.is_empty() {
        return Ok(segments);
    }
    let phase = format!("verify the log of {}", check.scope.prefix());
    check.host.progress.phase(&phase, None);
    for name in objects.unknown {
        check.warn(format!("\"{name}\" is no object of this format"));
    }
    for key in &objects.small {
        check.host.check_stop()?;
        let read = small(check, key, &|bytes| log_keys::check_small(key, bytes));
        settle(check, key, read)?;
    }
    for key in &objects.containers {
        check.host.check_stop()?;
        let is_whole = match depth {
            Depth::Everything => true,
            Depth::Oldest(_) => log_keys::parse_whole(key).is_none(),
            Depth::Fast => false,
        };
        read_container(check, key, is_whole)?;
    }
    Ok(segments)
}

/// Reads segments of a log.
pub(super) fn read(check: &Check<'_>, logs: &BTreeMap<String, Runs>) -> Result<()> {
    for (replid, runs) in logs {
        let keys = LogKeys::new(&check.scope, replid);
        for number in runs.iter().flat_map(|(first, last)| first.0..=last.0) {
            check.host.check_stop()?;
            let key = keys.whole(number.saturating_mul(log_keys::SEGMENT_BYTES))?;
            read_container(check, &key, true)?;
        }
    }
    Ok(())
}

/// The stored length of a segment of a log; 0 where it is gone.
pub(super) fn bytes(check: &Check<'_>, replid: &str, number: SegmentNumber) -> Result<u64> {
    let position = number.0.saturating_mul(log_keys::SEGMENT_BYTES);
    let key = LogKeys::new(&check.scope, replid).whole(position)?;
    Ok(check.store.head(&key)?.map_or(0, |meta| meta.size_bytes))
}

fn read_container(check: &Check<'_>, key: &Key, is_whole: bool) -> Result<()> {
    let read = container(check, key, is_whole);
    let is_sound = matches!(read, Ok(Some(_)));
    settle(check, key, read)?;
    if let (true, Some((replid, number))) = (is_whole && is_sound, log_keys::parse_whole(key)) {
        check.read_log(replid, number);
    }
    Ok(())
}

/// Checks the recovery instructions of a set, which are short.
pub(super) fn check_runbooks(check: &Check<'_>) -> Result<()> {
    for listed in check.store.list(&runbook::folder(&check.scope))? {
        check.host.check_stop()?;
        let at = format!("{}/{}", runbook::folder(&check.scope), listed.name);
        if listed.is_prefix || !runbook::is_name(&listed.name) {
            check.warn(format!("\"{at}\" is no object of this format"));
            continue;
        }
        let key = Key::new(at)?;
        let read = text(check, &key);
        settle(check, &key, read)?;
    }
    Ok(())
}

fn text(check: &Check<'_>, key: &Key) -> Result<Option<u64>> {
    let Some(object) = check.store.open(key)? else {
        return Ok(None);
    };
    let container = Container::open_under(key, object)?;
    let bytes = container.stored_bytes();
    container.check_stored()?;
    if !container.is_opaque() {
        runbook::check(key, container)?;
    }
    Ok(Some(bytes))
}

/// Counts what was read; what came and went meanwhile is nothing.
pub(super) fn settle(check: &Check<'_>, key: &Key, read: Result<Option<u64>>) -> Result<()> {
    if let Some(Some(bytes)) = check.settle(read, key.as_str(), About::Other)? {
        check.count(bytes);
    }
    Ok(())
}

/// Reads a small object, and has `decode` check it where it can be read.
pub(super) fn small(
    check: &Check<'_>,
    key: &Key,
    decode: &dyn Fn(&[u8]) -> Result<()>,
) -> Result<Option<u64>> {
    let Some(object) = check.store.open(key)? else {
        return Ok(None);
    };
    if let Some(opaque) = object.opaque() {
        opaque.check_stored()?;
        return Ok(Some(object.size_bytes()));
    }
    let bytes = store::read(object.as_ref(), key, json::LIMIT_BYTES)?;
    decode(&bytes)?;
    Ok(Some(bytes.len() as u64))
}

fn container(check: &Check<'_>, key: &Key, is_whole: bool) -> Result<Option<u64>> {
    let Some(container) = Container::stored(check.store, key)? else {
        return Ok(None);
    };
    log_keys::check(&container, key)?;
    match (is_whole, container.is_opaque()) {
        (true, false) => container.read_body(&mut |_| Ok(()))?,
        (true, true) => container.check_stored()?,
        (false, _) => return Ok(Some(0)),
    }
    Ok(Some(container.stored_bytes()))
}
