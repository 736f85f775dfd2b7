//! moto's servers of AWS, started by `scripts/s3-server`: S3, IAM, KMS. pip fetches them once.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use super::s3::KEY;
use super::{Sandbox, wait_within};

/// Fetching moto and the program aws, once, takes a minute.
const INSTALLATION: Duration = Duration::from_secs(600);

/// The servers, and the program aws.
pub struct Moto {
    child: Child,
    pub endpoint: String,
    /// A command that runs the program aws.
    pub aws: String,
}

/// A user of IAM with a pair of keys.
pub struct User {
    pub key: String,
    pub secret: String,
}

impl Moto {
    pub fn start(sandbox: &Sandbox) -> Moto {
        Moto::with(sandbox, &[])
    }

    /// With these variables, which `scripts/moto-server.py` knows.
    pub fn with(sandbox: &Sandbox, env: &[(&str, &str)]) -> Moto {
        let told = sandbox.join("moto");
        let tell = "echo \"$PITR_TEST_S3 $PITR_TEST_AWS\" >\"$0.new\"; mv \"$0.new\" \"$0\"; exec sleep 3600";
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/s3-server");
        let child = Command::new(script)
            .args(["moto", "sh", "-c", tell])
            .arg(&told)
            .envs(env.iter().copied())
            .process_group(0)
            .spawn()
            .unwrap();
        wait_within(INSTALLATION, "moto starts", || told.exists());
        let text = std::fs::read_to_string(&told).unwrap();
        let (endpoint, aws) = text.trim().split_once(' ').unwrap();
        Moto {
            child,
            endpoint: endpoint.to_owned(),
            aws: aws.to_owned(),
        }
    }

    /// Makes a bucket; only before the server judges.
    pub fn make_bucket(&self, name: &str) {
        self.ask("PUT", &format!("/{name}"), "s3", "");
    }

    /// Makes a user with a pair of keys; only before the server judges.
    pub fn make_user(&self, name: &str) -> User {
        self.iam("CreateUser", &[("UserName", name)]);
        let answer = self.iam("CreateAccessKey", &[("UserName", name)]);
        let field = |name: &str| {
            let (_, rest) = answer.split_once(&format!("<{name}>")).unwrap();
            rest.split('<').next().unwrap().to_owned()
        };
        User {
            key: field("AccessKeyId"),
            secret: field("SecretAccessKey"),
        }
    }

    /// Gives a user a policy, byte for byte; only before the server judges.
    pub fn put_policy(&self, user: &str, policy: &str) {
        let fields = [
            ("UserName", user),
            ("PolicyName", "pitr"),
            ("PolicyDocument", policy),
        ];
        self.iam("PutUserPolicy", &fields);
    }

    /// From now on signatures and policies count.
    pub fn judge(&self) {
        let answer = self.ask("POST", "/moto-api/reset-auth", "s3", "0");
        assert!(answer.contains("\"inf\""), "{answer}");
    }

    fn iam(&self, action: &str, fields: &[(&str, &str)]) -> String {
        let mut form = format!("Action={action}&Version=2010-05-08");
        for (name, value) in fields {
            form += &format!("&{name}=");
            for byte in value.bytes() {
                form += &format!("%{byte:02X}");
            }
        }
        self.ask("POST", "/", "iam", &form)
    }

    /// A request whose signature nobody looks at yet.
    fn ask(&self, method: &str, path: &str, service: &str, body: &str) -> String {
        let host = self.endpoint.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(host).unwrap();
        let kind = match service {
            "iam" => "application/x-www-form-urlencoded",
            _ => "text/plain",
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: AWS4-HMAC-SHA256 Credential={KEY}/20260101/us-east-1/{service}/aws4_request\r\n\
             Content-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answer
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}
