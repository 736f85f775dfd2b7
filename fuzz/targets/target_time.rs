//! Recovery targets as people type them: one reading or none, and what is handed to PostgreSQL reads as the same moment.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pitr::pg::time::TimestampTz;
use pitr::plan::target::{RestorePointName, Target, TargetTimeline, TargetXid};
use pitr::plan::target_time::{WrittenTime, Zone, Zones, for_postgresql};
use pitr_fuzz::{Input, within};

const CEILING: usize = 8 << 20;

fuzz_target!(|data: &[u8]| within(CEILING, || run(data)));

fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let zone = |input: &mut Input<'_>| {
        let text = input.bytes(20).to_vec();
        let text = String::from_utf8_lossy(&text).into_owned();
        let text = text.trim_end().to_owned();
        let zone = text.parse::<Zone>().ok();
        if let Some(zone) = zone {
            assert_eq!(zone.to_string().parse::<Zone>().unwrap(), zone);
        }
        (zone.or_else(|| Zone::from_setting(&text)), text)
    };
    let use_zones = input.choice(4);
    let (first, setting) = zone(&mut input);
    let known = [
        Some("Europe/Berlin"),
        Some("America/St_Johns"),
        Some("Pacific/Apia"),
        None,
    ];
    let other = known[usize::from(use_zones)].map(|name| name.parse().unwrap());
    let zones = Zones {
        given: if use_zones == 0 { first } else { None },
        configured: if use_zones == 1 { first } else { None },
        host: other,
        cluster: (use_zones == 2).then_some(setting.as_str()),
    };
    moment(TimestampTz(input.u64().cast_signed()), first);
    let Ok(text) = std::str::from_utf8(input.rest()) else {
        return;
    };
    if let Ok(written) = text.parse::<WrittenTime>() {
        match written.resolve(&zones) {
            Ok(time) => moment(time.at, Some(time.zone)),
            Err(error) => assert!(error.hint_text().is_some(), "a refusal says what to write"),
        }
    }
    names(text);
}

/// A finite moment printed for PostgreSQL is that moment.
fn moment(at: TimestampTz, zone: Option<Zone>) {
    let shown = zone.and_then(|zone| zone.show(at));
    for text in [Some(for_postgresql(at)), shown].into_iter().flatten() {
        if let Ok(read) = text.parse::<WrittenTime>() {
            assert_eq!(read.resolve(&Zones::default()).unwrap().at, at, "{text}");
        }
    }
    let _ = Target::Time(at).setting();
}

fn names(text: &str) {
    if let Ok(xid) = text.parse::<TargetXid>() {
        assert_eq!(xid.to_string().parse::<TargetXid>().unwrap(), xid);
        assert!(xid.xid() >= 3);
    }
    if let Ok(name) = text.parse::<RestorePointName>() {
        assert_eq!(name.as_str(), text);
        let shown = Target::Name(name).to_string();
        assert!(!shown.contains(char::is_control));
    }
    if let Ok(timeline) = text.parse::<TargetTimeline>() {
        assert_eq!(
            timeline.to_string().parse::<TargetTimeline>().unwrap(),
            timeline
        );
    }
}
