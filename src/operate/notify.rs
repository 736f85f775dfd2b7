//! Telling systemd how a service is doing: `sd_notify` over the socket that `$NOTIFY_SOCKET` names.
//!
//! It is a courtesy: without the variable, or when nobody listens, nothing happens.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use crate::config::Environment;

/// The way to the service manager, if there is one.
pub struct Notify(Option<(UnixDatagram, SocketAddr)>);

impl Notify {
    /// Takes the socket from the environment.
    pub fn new(environment: &Environment) -> Notify {
        let address = environment
            .get("NOTIFY_SOCKET")
            .and_then(|name| match name.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
                _ => SocketAddr::from_pathname(Path::new(name)).ok(),
            });
        Notify(address.and_then(|address| Some((UnixDatagram::unbound().ok()?, address))))
    }

    /// Sends assignments, one a line: `READY=1`, `STATUS=…`, `STOPPING=1`.
    pub fn send(&self, text: &str) {
        if let Some((socket, address)) = &self.0 {
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn what_is_sent_arrives_by_path_and_by_abstract_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("pitr-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&abstract_address).unwrap();
        for (socket, value) in [
            (by_path, path.as_os_str().to_owned()),
            (by_name, OsStr::new(&format!("@{name}")).to_owned()),
        ] {
            let environment = Environment::new([("NOTIFY_SOCKET", value.as_os_str())], None);
            Notify::new(&environment).send("READY=1\nSTATUS=x");
            let mut buffer = [0; 100];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1\nSTATUS=x");
        }
        Notify::new(&Environment::new(
            [("NOTIFY_SOCKET", OsStr::new("/nowhere"))],
            None,
        ))
        .send("x");
        Notify::new(&Environment::default()).send("x");
    }
}
