//! Alerts reach a mail server over TLS and with a login: Debian's aiosmtpd, which refuses both where they are wrong.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::alert::Host;
use crate::common::authority::{Authority, LATER};
use crate::common::{Run, Sandbox};

const PASSWORD: &str = "pa55 of the mail";
/// Arguments: kind of TLS, certificate, key, the file of letters, the password. It prints its port.
const SERVER: &str = r#"
import asyncio, ssl, sys
from aiosmtpd.smtp import SMTP, AuthResult
kind, certificate, key, letters, password = sys.argv[1:]
class Letters:
    async def handle_DATA(self, server, session, envelope):
        with open(letters, 'ab') as file:
            file.write(envelope.content)
        return '250 taken'
def judge(server, session, envelope, mechanism, data):
    return AuthResult(handled=False, success=data.login == b'pitr' and data.password == password.encode())
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
login = dict(authenticator=judge, auth_required=True)
wanted = dict(
    smtps=dict(auth_require_tls=False, **login),
    starttls=dict(tls_context=context, require_starttls=True, **login),
    plain=dict(),
)[kind]
async def serve():
    make = lambda: SMTP(Letters(), **wanted)
    outer = context if kind == 'smtps' else None
    server = await asyncio.get_running_loop().create_server(make, '127.0.0.1', 0, ssl=outer)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(serve())
"#;

/// A server, which ends with the test.
struct Server {
    child: Child,
    port: u16,
    sandbox: Sandbox,
}

impl Server {
    fn start(kind: &str) -> Server {
        let sandbox = Sandbox::new("mail");
        let authority = Authority::new();
        let own = authority.signs("localhost", LATER);
        sandbox.file("root.pem", &authority.pem);
        let files = [
            sandbox.file("server.pem", own.pem),
            sandbox.file("server.key", own.key),
            sandbox.dir("letters").join("all"),
        ];
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", SERVER, kind])
            .args(files)
            .arg(PASSWORD)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut port = String::new();
        let mut told = BufReader::new(child.stdout.take().unwrap());
        told.read_line(&mut port).unwrap();
        let port = port.trim().parse().expect("the port of the server");
        Server {
            child,
            port,
            sandbox,
        }
    }

    fn root(&self) -> PathBuf {
        self.sandbox.join("root.pem")
    }

    fn letters(&self) -> String {
        std::fs::read_to_string(self.sandbox.join("letters/all")).unwrap_or_default()
    }

    /// Sends the test by a URL with the port of this server; the password lies in a file.
    fn test(&self, url: (&str, &str), password: &str, root: Option<PathBuf>) -> Run {
        let file = self.sandbox.file("password", format!("{password}\n"));
        let host = Host::new(&format!(
            "[alerts.mail]\nkind = \"email\"\nsmtp = \"{}://localhost:{}{}\"\nfrom = \"pitr@example.org\"\nto = [\"dba@example.org\"]\nuser = \"pitr\"\npassword_file = \"{}\"\n",
            url.0,
            self.port,
            url.1,
            file.display()
        ));
        let test = host.pitr().words("alert test");
        let run = match root {
            Some(root) => test.env("SSL_CERT_FILE", root.to_str().unwrap()).run(),
            None => test.run(),
        };
        let all = format!("{}{}", run.stdout, run.stderr);
        assert!(!all.contains(password), "{run}");
        run
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn letters_go_over_tls_with_a_login_and_a_wrong_one_is_refused() {
    for (kind, url) in [
        ("smtps", ("smtps", "")),
        ("starttls", ("smtp", "?tls=required")),
    ] {
        let server = Server::start(kind);
        let root = || Some(server.root());
        server.test(url, PASSWORD, root()).success();
        let letters = server.letters();
        assert!(letters.contains("this is a test"), "{kind}: {letters}");
        let refused = [
            server.test(url, "another one", root()),
            // Nobody vouches for the certificate.
            server.test(url, PASSWORD, None),
        ];
        assert!(refused[0].stdout.contains("invalid"), "{}", refused[0]);
        for run in refused {
            assert!(
                run.code() != 0 && run.stdout.contains("mail: FAILED"),
                "{run}"
            );
        }
        assert_eq!(server.letters(), letters, "{kind}");
    }
}

#[test]
fn a_server_without_tls_never_hears_the_password() {
    let server = Server::start("plain");
    let run = server.test(("smtp", "?tls=required"), PASSWORD, Some(server.root()));
    assert!(
        run.code() != 0 && run.stdout.contains("mail: FAILED"),
        "{run}"
    );
    assert_eq!(server.letters(), "");
}
