//! TCP ports of this host that servers listen on, as the kernel lists them: nobody is connected to.

use std::collections::BTreeSet;

/// PostgreSQL's, where no setting names another.
pub const DEFAULT: u16 = 5432;

/// The ports that are taken: by a TCP socket that listens, or by a server's Unix socket. Empty where the kernel does not tell.
pub fn taken() -> BTreeSet<u16> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let tcp = [read("/proc/net/tcp"), read("/proc/net/tcp6")];
    let mut ports: BTreeSet<u16> = tcp
        .iter()
        .flat_map(|t| t.lines())
        .filter_map(tcp_port)
        .collect();
    ports.extend(read("/proc/net/unix").lines().filter_map(unix_port));
    ports
}

/// The first port behind `port` that is not taken.
pub fn free_after(port: u16, taken: &BTreeSet<u16>) -> Option<u16> {
    (port.saturating_add(1)..u16::MAX).find(|p| !taken.contains(p))
}

/// `sl local_address rem_address st …`, where state 0A is LISTEN.
fn tcp_port(line: &str) -> Option<u16> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, state) = (fields.next()?, fields.nth(1)?);
    let (_, port) = local.rsplit_once(':')?;
    u16::from_str_radix(port, 16).ok().filter(|_| state == "0A")
}

fn unix_port(line: &str) -> Option<u16> {
    line.rsplit_once(".s.PGSQL.")?.1.trim_end().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_are_read() {
        let line = "   0: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000";
        assert_eq!(tcp_port(line), Some(5432));
        assert_eq!(tcp_port(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(tcp_port("  sl  local_address rem_address   st"), None);
        let line = "0000: 00000002 00000000 00010000 0001 01 29 /run/postgresql/.s.PGSQL.5433";
        assert_eq!(unix_port(line), Some(5433));
        assert_eq!(
            unix_port("Num RefCount Protocol Flags Type St Inode Path"),
            None
        );
        assert_eq!(free_after(5432, &BTreeSet::from([5433])), Some(5434));
        let own = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        assert!(taken().contains(&own.local_addr().unwrap().port()));
    }
}
