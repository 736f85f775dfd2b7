//! TCP ports of this host that servers listen on, as the kernel lists them: nobody is connected to.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::rival::is_same;

/// PostgreSQL's, where no setting names another.
pub const DEFAULT: u16 = 5432;

/// Ports that sockets listen on. Empty where the kernel does not tell.
pub struct Taken {
    tcp: BTreeSet<u16>,
    /// Unix sockets of PostgreSQL's servers, with their directories.
    unix: Vec<(PathBuf, u16)>,
}

/// Places where a server listens; `None`: its settings do not say.
pub struct Listens<'a> {
    /// `listen_addresses`: empty for no TCP at all.
    pub addresses: Option<&'a str>,
    /// `unix_socket_directories`: empty for no Unix socket.
    pub directories: Option<&'a str>,
}

impl Taken {
    /// Asks the kernel.
    pub fn look() -> Taken {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let tcp = [read("/proc/net/tcp"), read("/proc/net/tcp6")];
        Taken {
            tcp: tcp
                .iter()
                .flat_map(|t| t.lines())
                .filter_map(tcp_port)
                .collect(),
            unix: read("/proc/net/unix")
                .lines()
                .filter_map(unix_socket)
                .collect(),
        }
    }

    /// Whether a server that listens there could not start on this port.
    pub fn keeps_out(&self, port: u16, server: &Listens<'_>) -> bool {
        let has_tcp = server.addresses.is_none_or(|a| !a.trim().is_empty());
        let is_its = |directory: &Path| {
            let mut own = server.directories.into_iter().flat_map(|d| d.split(','));
            server.directories.is_none() || own.any(|own| is_same(Path::new(own.trim()), directory))
        };
        (has_tcp && self.tcp.contains(&port))
            || self
                .unix
                .iter()
                .any(|(at, taken)| *taken == port && is_its(at))
    }

    /// The first port behind `port` on which nobody listens, whatever the server's settings.
    pub fn free_after(&self, port: u16) -> Option<u16> {
        let is_taken = |p: &u16| self.tcp.contains(p) || self.unix.iter().any(|(_, t)| t == p);
        (port.saturating_add(1)..u16::MAX).find(|p| !is_taken(p))
    }
}

/// `sl local_address rem_address st …`, where state 0A is LISTEN.
fn tcp_port(line: &str) -> Option<u16> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, state) = (fields.next()?, fields.nth(1)?);
    let (_, port) = local.rsplit_once(':')?;
    u16::from_str_radix(port, 16).ok().filter(|_| state == "0A")
}

/// `address refs protocol flags type state inode path`.
fn unix_socket(line: &str) -> Option<(PathBuf, u16)> {
    let (before, port) = line.rsplit_once(".s.PGSQL.")?;
    let (_, directory) = before.split_once(" /")?;
    Some((
        Path::new("/").join(directory),
        port.trim_end().parse().ok()?,
    ))
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
        let line = "0000: 00000002 00000000 00010000 0001 01 29 /no run/postgresql/.s.PGSQL.5433";
        let socket = (PathBuf::from("/no run/postgresql/"), 5433);
        assert_eq!(unix_socket(line), Some(socket));
        let head = "Num RefCount Protocol Flags Type St Inode Path";
        assert_eq!(unix_socket(head), None);
        let own = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = own.local_addr().unwrap().port();
        assert!(Taken::look().tcp.contains(&port));
    }

    #[test]
    fn a_port_is_taken_for_those_who_would_listen_in_the_same_place() {
        let taken = Taken {
            tcp: BTreeSet::from([5432]),
            unix: vec![(PathBuf::from("/no/run/"), 5433)],
        };
        let listens = |addresses, directories| Listens {
            addresses,
            directories,
        };
        let keeps_out = |port, server: Listens<'_>| taken.keeps_out(port, &server);
        assert!(keeps_out(5432, listens(None, Some(""))));
        assert!(keeps_out(5432, listens(Some("localhost"), Some(""))));
        assert!(!keeps_out(5432, listens(Some(" "), None)));
        assert!(keeps_out(5433, listens(Some(""), None)));
        assert!(keeps_out(5433, listens(Some(""), Some("/tmp, /no/run"))));
        assert!(!keeps_out(5433, listens(None, Some("/tmp"))));
        assert!(!keeps_out(5433, listens(None, Some(""))));
        assert_eq!(taken.free_after(5431), Some(5434));
    }
}
