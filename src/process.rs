//! Other processes, as far as `/proc` tells.

/// How far up a command may be below the server: a shell, or a few scripts, lie between.
const GENERATIONS: usize = 16;

/// Whether the process is there and has not ended.
pub fn is_alive(pid: i32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// Whether a process has surely ended, as far as this process can see: one that belongs to another user is there, also where `/proc` hides it.
#[cfg(feature = "full")]
pub fn has_ended(pid: u32) -> bool {
    let Ok(number) = i32::try_from(pid) else {
        return false;
    };
    let is_zombie = state_and_parent(number).is_some_and(|(state, _)| matches!(state, 'Z' | 'X'));
    let is_gone = rustix::process::Pid::from_raw(number)
        .is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH));
    is_zombie || is_gone
}

/// The tick of the system at which a process began: with its number it names the process for as long as the system runs.
#[cfg(feature = "full")]
pub fn started_at(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    // proc_pid_stat(5): field 22, and the rest begins with field 3.
    rest.split(' ').nth(19)?.parse().ok()
}

/// A process, which a number alone does not name: numbers come again.
#[cfg(feature = "full")]
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    pid: u32,
    /// The tick of [`started_at`].
    tick: Option<u64>,
}

#[cfg(feature = "full")]
impl Identity {
    /// That of a process.
    pub fn of(pid: u32) -> Identity {
        Identity {
            pid,
            tick: started_at(pid),
        }
    }

    /// Whether it goes on, or nobody can tell.
    pub fn is_alive(&self) -> bool {
        match (self.tick, started_at(self.pid)) {
            (Some(then), Some(now)) => then == now && !has_ended(self.pid),
            // Hidden by the system: only its end is proof.
            _ => !has_ended(self.pid),
        }
    }
}

/// The name of this process among all that ever run on one machine: its start, its namespaces of process numbers and of time, the number and the tick at which the
/// process began. `None` where the system does not tell.
#[cfg(feature = "full")]
pub fn own_name() -> Option<String> {
    let pid = std::process::id();
    let (place, tick) = (place()?, started_at(pid)?);
    Some(format!("{place} {pid} {tick}"))
}

/// Whether [`own_name`] was given to a process that has surely ended: one of this start of this machine, seen from the same namespaces.
#[cfg(feature = "full")]
pub fn has_named_ended(name: &str) -> bool {
    let numbers = place().and_then(|place| name.strip_prefix(&format!("{place} ")));
    let Some((pid, tick)) = numbers.and_then(|numbers| numbers.split_once(' ')) else {
        return false;
    };
    let (Ok(pid), Ok(tick)) = (pid.parse(), tick.parse()) else {
        return false;
    };
    let tick = Some(tick);
    !Identity { pid, tick }.is_alive()
}

/// The place in which a number and a tick name one process. `None` where `/proc` is that of another namespace.
#[cfg(feature = "full")]
fn place() -> Option<String> {
    let own = |name: &str| std::fs::read_link(format!("/proc/self{name}")).ok();
    if own("")?.to_str()? != std::process::id().to_string() {
        return None;
    }
    let numbers = own("/ns/pid")?;
    // Ticks count from another beginning in each; older systems have one.
    let ticks = own("/ns/time").unwrap_or_default();
    let (boot, numbers, ticks) = (boot_id()?, numbers.to_str()?, ticks.to_str()?);
    Some(format!("{} {numbers} {ticks}", boot.trim()))
}

/// Whether the process has started, by however many others, the one that asks.
pub fn is_ancestor(pid: i32) -> bool {
    let mut at = rustix::process::getppid().map_or(0, |p| p.as_raw_nonzero().get());
    for _ in 0..GENERATIONS {
        if at == pid {
            return true;
        }
        match state_and_parent(at) {
            Some((_, parent)) if parent > 1 || (parent == 1 && pid == 1) => at = parent,
            _ => return false,
        }
    }
    false
}

/// The parent of a process of this host.
#[cfg(feature = "full")]
pub fn parent_of(pid: u32) -> Option<u32> {
    let (_, parent) = state_and_parent(i32::try_from(pid).ok()?)?;
    u32::try_from(parent).ok()
}

/// Which start of the machine this is, as the system writes it; `None` where it does not say.
pub fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    (!id.trim().is_empty()).then_some(id)
}

/// proc_pid_stat(5): the name, in parentheses, may hold anything.
fn state_and_parent(pid: i32) -> Option<(char, i32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    let mut words = rest.split(' ');
    let state = words.next()?.chars().next()?;
    Some((state, words.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "full")]
    fn a_number_that_came_again_is_another_process() {
        let own = Identity::of(std::process::id());
        assert!(own.is_alive());
        let before = Identity {
            tick: Some(1),
            ..own
        };
        assert!(!before.is_alive());
    }

    #[test]
    #[cfg(feature = "full")]
    fn only_a_process_of_this_place_is_known_to_have_ended() {
        let own = own_name().unwrap();
        assert!(!has_named_ended(&own));
        let (place, tick) = own.rsplit_once(' ').unwrap();
        let other = |tick: u64| format!("{place} {tick}");
        let tick: u64 = tick.parse().unwrap();
        assert!(has_named_ended(&other(tick - 1)));
        let gone = other(tick - 1);
        // Another start of the machine, another namespace, and no name at all.
        let elsewhere = [
            gone.replacen(|c: char| c.is_ascii_hexdigit(), "x", 1),
            gone.replacen("pid:[", "pid:[1", 1),
            gone.replacen(' ', "", 1),
            format!("{place} x"),
            String::new(),
        ];
        assert!(elsewhere.iter().all(|name| !has_named_ended(name)));
    }

    #[test]
    #[cfg(feature = "full")]
    fn the_parent_of_a_process_is_known() {
        assert_eq!(
            parent_of(std::process::id()),
            Some(std::os::unix::process::parent_id())
        );
        assert_eq!(parent_of(0), None);
    }

    #[test]
    fn parents_are_ancestors_and_children_are_not() {
        let own = i32::try_from(std::process::id()).unwrap();
        let parent = rustix::process::getppid().unwrap().as_raw_nonzero().get();
        assert!(is_alive(own) && is_ancestor(parent) && !is_ancestor(own));
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(is_alive(pid) && !is_ancestor(pid) && !has_ended(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_alive(pid) && has_ended(child.id()));
        assert!(!has_ended(std::process::id()));
    }
}
