//! The position at which a receiver goes on. Pure.
//!
//! Redis: src/replication.c (masterTryPartialResynchronization).

use super::info::Info;
use super::record::State;

/// The next step of a receiver that is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask for the bytes behind those that are held.
    GoOn,
    /// Ask for all: nothing is held, or what follows is not to be had any more. The text says why.
    Begin(Option<&'static str>),
    /// Ask for the bytes of its present history behind so many of the one that is held: the rest of that one is not in it.
    Leave {
        /// The history's first bytes that both have.
        fork: u64,
    },
    /// The server has fewer bytes of this history than were received from it.
    WentBack { has: u64 },
    /// Not now: it is loading, or has lost its own master.
    Wait(&'static str),
}

/// Decides it by what is held, and by what the server says about itself.
pub fn action(held: Option<&State>, info: &Info) -> Action {
    if info.is_on("loading") {
        return Action::Wait("it is loading its data set");
    }
    if info
        .field("master_link_status")
        .is_some_and(|status| status != "up")
    {
        return Action::Wait("it is a replica that has lost its master");
    }
    let Some(held) = held else {
        return Action::Begin(None);
    };
    let position = held.reader.position();
    let number = |name: &str| info.field(name).and_then(|text| text.parse::<u64>().ok());
    let own = info.field("master_replid") == Some(&held.replid);
    let end = number("master_repl_offset");
    if own && let Some(has) = end.filter(|end| *end < position) {
        return match info.field("role") {
            Some("slave") => Action::Wait("it is a replica that has not yet what was received"),
            _ => Action::WentBack { has },
        };
    }
    let former = info.field("master_replid2") == Some(&held.replid);
    if !own && !former {
        return Action::Begin(Some("the server goes on with another history"));
    }
    // `second_repl_offset` is the first byte that the former history does not have; positions count the bytes before.
    let second = number("second_repl_offset").filter(|second| *second > 0);
    let fork = match (own, second) {
        (true, _) => None,
        (false, Some(second)) => Some(second - 1).filter(|fork| *fork < position),
        (false, None) => {
            return Action::Begin(Some("the server does not say where its history begins"));
        }
    };
    let position = fork.unwrap_or(position);
    let go_on = fork.map_or(Action::GoOn, |fork| Action::Leave { fork });
    // Bytes are counted from one there.
    let first =
        number("repl_backlog_first_byte_offset").filter(|_| info.is_on("repl_backlog_active"));
    match first {
        Some(first) if first <= position.saturating_add(1) => go_on,
        Some(_) => Action::Begin(Some("the server's backlog does not reach back so far")),
        // Nothing is lost by asking where nothing came since.
        None if end == Some(position) => go_on,
        None => Action::Begin(Some("the server has no backlog")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(position: u64) -> State {
        State::sample(&"a".repeat(40), position)
    }

    fn asked(position: u64, lines: &[&str]) -> Action {
        let mut info = Info::default();
        info.add(&lines.join("\r\n"));
        action(Some(&held(position)), &info)
    }

    #[test]
    fn what_the_server_still_has_is_asked_for() {
        let own = format!("master_replid:{}", "a".repeat(40));
        let former = format!("master_replid2:{}", "a".repeat(40));
        let active = "repl_backlog_active:1";
        let first = "repl_backlog_first_byte_offset:101";
        let end = "master_repl_offset:500";
        assert_eq!(asked(100, &[&own, active, first, end]), Action::GoOn);
        assert_eq!(asked(500, &[&own, active, first, end]), Action::GoOn);
        assert_eq!(asked(500, &[&own, end]), Action::GoOn);
        assert_eq!(
            asked(501, &[&own, active, first, end]),
            Action::WentBack { has: 500 }
        );
        let begins = |action| matches!(action, Action::Begin(Some(_)));
        assert!(begins(asked(99, &[&own, active, first, end])));
        assert!(begins(asked(99, &[&own, end])));
        assert!(begins(asked(100, &[active, first, end])));
        let second = "second_repl_offset:301";
        let failed_over = [former.as_str(), second, active, first, end];
        assert_eq!(asked(300, &failed_over), Action::GoOn);
        assert_eq!(asked(301, &failed_over), Action::Leave { fork: 300 });
        assert!(begins(asked(
            301,
            &[
                &former,
                second,
                active,
                "repl_backlog_first_byte_offset:302",
                end
            ]
        )));
        assert!(begins(asked(301, &[&former, active, first, end])));
        assert!(matches!(
            asked(501, &[&own, "role:slave", active, first, end]),
            Action::Wait(_)
        ));
        assert_eq!(
            asked(100, &["loading:1", &own]),
            Action::Wait("it is loading its data set")
        );
        assert_eq!(action(None, &Info::default()), Action::Begin(None));
    }
}
