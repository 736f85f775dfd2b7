//! A set of files that is backed up beside clusters.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Hours, Location, Period, S3Settings, location};
use crate::err;
use crate::error::Result;

/// The place that a set of files comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory, absolute.
    Directory(PathBuf),
    /// The standard output of a command.
    Command,
    /// A Git repository, by its URL, which holds no secret.
    Git(String),
    /// The objects of a bucket, or of a prefix in it.
    Bucket {
        /// The bucket's name.
        bucket: String,
        /// Parts of a key with slashes between them; empty where it is the whole bucket.
        prefix: String,
    },
    /// Volumes of Docker: a name, or `label=KEY` or `label=KEY=VALUE`.
    Docker(String),
    /// The objects of a Kubernetes cluster, as kubectl shows them.
    Kubernetes,
    /// The state of a Terraform or OpenTofu directory, absolute.
    Terraform(PathBuf),
}

impl Default for Source {
    fn default() -> Source {
        Source::Directory(PathBuf::new())
    }
}

impl Source {
    /// Reads the value of `source`.
    ///
    /// # Errors
    /// `Config` for one that has no meaning, or a URL with a password.
    pub fn parse(text: &str) -> Result<Source> {
        match text.split_once(':') {
            _ if text == "command" => Ok(Source::Command),
            _ if text == "kubernetes" => Ok(Source::Kubernetes),
            Some(("git", url)) => git(url),
            Some(("s3", _)) => match Location::from_url(text)? {
                Location::S3 { bucket, prefix } => Ok(Source::Bucket { bucket, prefix }),
                _ => Err(err!(Config, "the source is no bucket")),
            },
            Some(("docker-volume", which)) => docker(which),
            Some(("terraform", path)) => location::absolute(Path::new(path)).map(Source::Terraform),
            _ if text.starts_with('/') => {
                location::absolute(Path::new(text)).map(Source::Directory)
            }
            _ => Err(err!(
                Config,
                "the source is no absolute path, and none of s3://BUCKET/PREFIX, command, git:URL, docker-volume:NAME, docker-volume:label=KEY=VALUE, kubernetes, terraform:/DIRECTORY"
            )),
        }
    }

    /// The word that names the kind of source; none of a directory.
    pub fn kind(&self) -> Option<&'static str> {
        match self {
            Source::Directory(_) => None,
            Source::Command => Some("command"),
            Source::Git(_) => Some("git"),
            Source::Bucket { .. } => Some("s3"),
            Source::Docker(_) => Some("docker-volume"),
            Source::Kubernetes => Some("kubernetes"),
            Source::Terraform(_) => Some("terraform"),
        }
    }
}

/// A URL that may be shown and be an argument: no error repeats one that may not.
fn git(url: &str) -> Result<Source> {
    let is_odd = |c: char| c.is_control() || c.is_whitespace();
    if url.is_empty() || url.starts_with('-') || url.contains("::") || url.contains(is_odd) {
        return Err(err!(Config, "\"git:\" is followed by no URL"));
    }
    if let Some((scheme, rest)) = url.split_once("://") {
        let host = rest.split('/').next().unwrap_or_default();
        let user = host.rsplit_once('@').map(|(user, _)| user);
        let is_web = scheme.starts_with("http");
        let has_secret = match user {
            Some(user) => is_web || user.contains(':'),
            None => is_web && rest.contains('?'),
        };
        if has_secret {
            return Err(err!(Config, "the URL of the source may hold a secret").hint(
                "Nothing was done.\nLeave user, password and token to a credential helper of Git, GIT_ASKPASS, or a key of ssh.",
            ));
        }
    }
    Ok(Source::Git(url.to_owned()))
}

/// Volumes that may be named in arguments.
fn docker(which: &str) -> Result<Source> {
    let (text, is_label) = match which.strip_prefix("label=") {
        Some(label) => (label, true),
        None => (which, false),
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let is_fine = |c: char| is_plain(c) || (is_label && "=/:".contains(c));
    let begins_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    match begins_well && text.chars().all(is_fine) {
        true => Ok(Source::Docker(which.to_owned())),
        false => Err(err!(
            Config,
            "\"docker-volume:\" is followed by no name of a volume, and no label=KEY=VALUE"
        )),
    }
}

/// How containers are brought to rest while their volumes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quiesce {
    /// They are stopped, and started again.
    Stop,
    /// Their processes are frozen.
    Pause,
}

/// Files with what is in them, under one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Its name, which is part of object keys.
    pub name: String,
    /// The place that they come from.
    pub source: Source,
    /// The program of a command with its arguments.
    pub command: Vec<String>,
    /// A program that reads the stream, too, and fails when it is no good; empty: none.
    pub check: Vec<String>,
    /// The name of the file that has the stream.
    pub file_name: Option<String>,
    /// A Git repository is stored as one file.
    pub bundle: bool,
    /// The large files of Git LFS are fetched, or left out; none: left out with a warning.
    pub lfs: Option<bool>,
    /// The context of kubectl; else its own choice.
    pub context: Option<String>,
    /// Secrets of Kubernetes are left out.
    pub without_secrets: bool,
    /// How containers are brought to rest; none: they go on.
    pub quiesce: Option<Quiesce>,
    /// The program that has the state; else `terraform`.
    pub program: Option<String>,
    /// A program that runs before the source is read; empty: none.
    pub before: Vec<String>,
    /// A program that runs after that, whatever became of it; empty: none.
    pub after: Vec<String>,
    /// Patterns of paths that are left out, in the syntax of gitignore; a later one goes before an earlier one.
    pub exclude: Vec<String>,
    /// A directory that has a file of one of these names is left out but for itself.
    pub exclude_if_present: Vec<String>,
    /// Directories that a `CACHEDIR.TAG` marks are left out but for themselves.
    pub exclude_caches: bool,
    /// Files of more bytes are left out.
    pub exclude_larger_than_bytes: Option<u64>,
    /// Other filesystems that are mounted below are left out but for their mount points.
    pub one_file_system: bool,
    /// How a bucket is reached.
    pub s3: S3Settings,
    /// The most bytes a second that are read from and written to a bucket.
    pub max_rate_bytes_per_s: Option<u64>,
    /// The hours in which that limit holds; else always.
    pub max_rate_hours: Option<Hours>,
    /// The identity of the source; else the host's machine id.
    pub identity: Option<String>,
    /// How old the newest backup may become before that is reported.
    pub max_backup_age: Option<Period>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart() {
        let read = |text: &str| Source::parse(text).ok();
        assert_eq!(read("/srv/x"), Some(Source::Directory("/srv/x".into())));
        for which in ["db", "label=backup", "label=com.example/backup=daily"] {
            let expected = Source::Docker(which.to_owned());
            assert_eq!(read(&format!("docker-volume:{which}")), Some(expected));
        }
        assert_eq!(read("command"), Some(Source::Command));
        assert_eq!(read("terraform:/x"), Some(Source::Terraform("/x".into())));
        let bucket = |prefix: &str| {
            let (bucket, prefix) = ("media".to_owned(), prefix.to_owned());
            Some(Source::Bucket { bucket, prefix })
        };
        assert_eq!(read("s3://media/up/"), bucket("up"));
        assert_eq!(read("s3://media"), bucket(""));
        for url in [
            "ssh://git@host/x.git",
            "git@host:x.git",
            "https://host/x",
            "/srv/x.git",
        ] {
            assert_eq!(
                read(&format!("git:{url}")),
                Some(Source::Git(url.to_owned()))
            );
        }
        for text in [
            "",
            "srv",
            "git:",
            "git:-x",
            "git:ext::sh",
            "s3://b",
            "s3://me:key@bucket/p",
            "s3://bucket/a//b",
            "terraform:x",
            "docker-volume:",
            "docker-volume:-v",
            "docker-volume:/x",
            "docker-volume:label=",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_url_with_a_secret_is_refused_and_not_repeated() {
        for url in [
            "https://tok3n@host/x",
            "https://me:tok3n@host/x",
            "ssh://me:tok3n@host/x",
            "http://host/x?key=tok3n",
        ] {
            let e = Source::parse(&format!("git:{url}")).unwrap_err();
            assert!(!format!("{e:?}").contains("tok3n"), "{e:?}");
        }
    }
}
