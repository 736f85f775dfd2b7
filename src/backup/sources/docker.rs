//! Volumes of Docker: which there are, who uses them, and how those are at rest while they are read.
//!
//! Containers that were stopped or paused are started again by a program of its own, the guardian. It waits for the end of a pipe that this
//! process holds: so it does its work also when this process is killed. A note on the disk names them before; where the guardian was
//! killed, too, the next run does its work first.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::of;
use crate::config::Quiesce;
use crate::durable;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::program;

const DOCKER: &str = "docker";
/// More than docker says about volumes and containers.
const OUTPUT_LIMIT_BYTES: usize = 16 << 20;
/// The note of what is to be started again.
const NOTE: &str = "quiesced.json";

/// A volume whose directory can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    pub directory: PathBuf,
}

/// The engine that docker talks to.
pub struct Engine<'e> {
    /// Stop flag and random numbers.
    pub host: &'e Host,
}

impl Engine<'_> {
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut words = vec![DOCKER.to_owned()];
        words.extend(arguments.iter().map(|a| (*a).to_owned()));
        let mut command = program::command(&words)?;
        let stop = &mut || self.host.check_stop();
        let printed = program::output(&mut command, OUTPUT_LIMIT_BYTES, stop)?;
        String::from_utf8(printed)
            .map_err(|_| err!(SourceMissing, "\"{DOCKER}\" printed what is no text"))
    }

    fn lines(&self, arguments: &[&str]) -> Result<Vec<String>> {
        let printed = self.run(arguments)?;
        let lines = printed
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty());
        Ok(lines.map(str::to_owned).collect())
    }

    /// The id of the engine, which is the identity of its volumes.
    ///
    /// # Errors
    /// `SourceMissing` when docker fails; `Interrupted`.
    pub fn id(&self) -> Result<String> {
        let id = self.run(&["info", "--format", "{{.ID}}"])?;
        match id.trim() {
            "" => Err(err!(SourceMissing, "\"{DOCKER} info\" names no engine")),
            id => Ok(id.to_owned()),
        }
    }

    /// The volume of a name, or those with a label (`label=KEY` or `label=KEY=VALUE`), by name.
    ///
    /// # Errors
    /// `SourceMissing` where there is none, or docker fails; `Refused` for one whose directory is not on this host.
    pub fn volumes(&self, which: &str) -> Result<Vec<Volume>> {
        let names = match which.starts_with("label=") {
            false => vec![which.to_owned()],
            true => self.lines(&["volume", "ls", "--quiet", "--filter", which])?,
        };
        if names.is_empty() {
            let label = which.trim_start_matches("label=");
            return Err(err!(SourceMissing, "no volume has the label \"{label}\"")
                .hint("Nothing was stored.\nLook what there is: docker volume ls"));
        }
        let host = self.run(&[
            "context",
            "inspect",
            "--format",
            "{{.Endpoints.docker.Host}}",
        ])?;
        if !host.trim().starts_with("unix://") {
            return Err(elsewhere("the engine runs on another host"));
        }
        let mut arguments = vec!["volume", "inspect", "--format", "{{json .}}", "--"];
        arguments.extend(names.iter().map(String::as_str));
        let mut volumes = Vec::new();
        for line in self.lines(&arguments)? {
            volumes.push(volume(&line)?);
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// Brings the containers that use volumes to rest. They are started again when the result is dropped, at the latest.
    ///
    /// # Errors
    /// `SourceMissing` when docker fails; `Refused` for a container that a stop would remove; those of the note.
    pub fn quiesce(&self, volumes: &[Volume], how: Quiesce, place: &Path) -> Result<Quiet> {
        let mut containers = BTreeSet::new();
        for volume in volumes {
            let of = format!("volume={}", volume.name);
            let running = [
                "ps",
                "--quiet",
                "--no-trunc",
                "--filter",
                "status=running",
                "--filter",
                &of,
            ];
            containers.extend(self.lines(&running)?);
        }
        let containers: Vec<String> = containers.into_iter().collect();
        if containers.is_empty() {
            return Ok(Quiet::nothing());
        }
        if how == Quiesce::Stop {
            self.check_kept(&containers)?;
        }
        let note = Note { how, containers };
        let quiet = note.guarded(place, self.host)?;
        let verb = match how {
            Quiesce::Stop => "stop",
            Quiesce::Pause => "pause",
        };
        let mut arguments = vec![verb];
        arguments.extend(note.containers.iter().map(String::as_str));
        match self.run(&arguments) {
            Ok(_) => Ok(quiet),
            // Those that are at rest by now are started again.
            Err(e) => {
                quiet.end()?;
                Err(e)
            }
        }
    }

    /// Requires that a container is there after a stop.
    fn check_kept(&self, containers: &[String]) -> Result<()> {
        let format = "{{.HostConfig.AutoRemove}} {{.Name}}";
        let mut arguments = vec!["inspect", "--type", "container", "--format", format, "--"];
        arguments.extend(containers.iter().map(String::as_str));
        let lines = self.lines(&arguments)?;
        match lines.iter().find_map(|line| line.strip_prefix("true /")) {
            None => Ok(()),
            Some(name) => Err(err!(
                Refused,
                "container \"{name}\" is removed when it stops (--rm), and could not be started again"
            )
            .hint("Nothing was stopped.\nWrite quiesce = \"pause\", or run the container without --rm.")),
        }
    }

    /// Starts again what an earlier run brought to rest, where that run and its guardian were killed. Returns how many containers.
    ///
    /// # Errors
    /// `SourceMissing` when docker fails; those of the note.
    pub fn repair(&self, place: &Path) -> Result<usize> {
        let path = place.join(NOTE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            Err(e) => return Err(of(&path, e)),
        };
        let note: Note = serde_json::from_slice(&text).map_err(|e| {
            err!(
                SourceMissing,
                "\"{}\" cannot be understood: {e}",
                path.display()
            )
        })?;
        let quiet = note.guarded(place, self.host)?;
        quiet.end()?;
        Ok(note.containers.len())
    }
}

fn elsewhere(why: &str) -> Error {
    err!(Refused, "{why}: the directories of its volumes cannot be read here")
        .hint("Nothing was stored.\nRun pitr on the host of the engine, or let a command print the volume: source = \"command\".")
}

/// Reads what docker says about a volume.
fn volume(line: &str) -> Result<Volume> {
    let found: Value = serde_json::from_str(line).map_err(|e| {
        err!(
            SourceMissing,
            "\"{DOCKER} volume inspect\" printed no JSON: {e}"
        )
    })?;
    let text = |name: &str| found[name].as_str().unwrap_or_default();
    let (name, directory) = (text("Name"), PathBuf::from(text("Mountpoint")));
    let driver = text("Driver");
    if driver != "local" {
        return Err(elsewhere(&format!(
            "volume \"{name}\" is kept by the driver \"{driver}\""
        )));
    }
    // The engine mounts it while a container runs that uses it.
    if !found["Options"]["device"].is_null() {
        return Err(elsewhere(&format!(
            "volume \"{name}\" is mounted from elsewhere (driver_opts)"
        )));
    }
    match directory.is_absolute() && std::fs::read_dir(&directory).is_ok() {
        true => Ok(Volume {
            name: name.to_owned(),
            directory,
        }),
        false => Err(elsewhere(&format!(
            "volume \"{name}\" lies in \"{}\", which this user cannot read",
            directory.display()
        ))),
    }
}

/// The directory that has all of these volumes, and patterns of gitignore that leave everything else out.
///
/// # Errors
/// `Refused` when they lie in several directories.
pub fn root(volumes: &[Volume]) -> Result<(PathBuf, Vec<String>)> {
    if let [one] = volumes {
        return Ok((one.directory.clone(), Vec::new()));
    }
    let mut root: Option<&Path> = None;
    let mut patterns = vec!["/*".to_owned()];
    for volume in volumes {
        let of_volume = volume.directory.parent();
        let above = of_volume.and_then(Path::parent);
        let (Some(name), Some(above)) = (of_volume.and_then(Path::file_name), above) else {
            return Err(elsewhere("a volume lies at the root of the host"));
        };
        if root.is_some_and(|root| root != above) {
            return Err(elsewhere("the volumes lie in several directories"));
        }
        root = Some(above);
        let (name, data) = (
            name.to_string_lossy(),
            volume.directory.file_name().unwrap_or_default(),
        );
        let data = data.to_string_lossy();
        patterns.extend([
            format!("!/{name}"),
            format!("/{name}/*"),
            format!("!/{name}/{data}"),
        ]);
    }
    let root = root.ok_or_else(|| err!(Internal, "no volume has a directory"))?;
    Ok((root.to_owned(), patterns))
}

/// The containers that are to be started again, as a file names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    how: Quiesce,
    containers: Vec<String>,
}

impl Note {
    /// Notes it, and starts the guardian.
    fn guarded(&self, place: &Path, host: &Host) -> Result<Quiet> {
        let path = place.join(NOTE);
        let text = serde_json::to_vec(self);
        let text = text.map_err(|e| err!(Internal, "containers cannot be noted: {e}"))?;
        durable::replace(&path, &text, host.random()).map_err(|e| of(&path, e))?;
        let verb = match self.how {
            Quiesce::Stop => "start",
            Quiesce::Pause => "unpause",
        };
        // Each by itself: one that runs already, or was removed meanwhile, keeps no other from it. The note goes when all that are there run.
        let script = "cat >/dev/null\nfailed=0\nfor one in \"$@\"; do\n  docker \"$verb\" \"$one\" >/dev/null\n  case $(docker inspect --type container --format '{{.State.Running}} {{.State.Paused}}' \"$one\") in\n    'true false') continue ;;\n  esac\n  there=$(docker ps --all --quiet --no-trunc) || failed=1\n  case $there in *\"$one\"*) failed=1 ;; esac\ndone\n[ $failed = 1 ] || rm -f \"$note\"\nexit $failed";
        let mut command =
            program::command(&["/bin/sh", "-c", script, "guardian"].map(str::to_owned))?;
        command
            .args(&self.containers)
            .env("verb", verb)
            .env("note", &path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        let started = command.spawn();
        let child = started.map_err(|e| {
            Error::from_io("start the guardian of containers", e).with_code(Code::SourceMissing)
        })?;
        Ok(Quiet(Some((child, self.containers.clone()))))
    }
}

/// Containers at rest, and the guardian that starts them again.
pub struct Quiet(Option<(Child, Vec<String>)>);

impl Quiet {
    /// Nothing is at rest.
    pub fn nothing() -> Quiet {
        Quiet(None)
    }

    /// How many containers are at rest.
    pub fn count(&self) -> usize {
        self.0
            .as_ref()
            .map_or(0, |(_, containers)| containers.len())
    }

    /// Has the containers started again, and waits for that.
    ///
    /// # Errors
    /// `Partial` when one does not run.
    pub fn end(mut self) -> Result<()> {
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        let Some((mut guardian, containers)) = self.0.take() else {
            return Ok(());
        };
        // The end of the pipe is its sign.
        drop(guardian.stdin.take());
        let ended = guardian.wait();
        match ended.is_ok_and(|status| status.success()) {
            true => Ok(()),
            false => Err(err!(
                Partial,
                "not all containers that were brought to rest run again: {}",
                containers.join(", ")
            )
            .hint("Look at them: docker ps --all. The next run tries it again.")),
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // Whoever wants to hear of it ends it.
        let _ = self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_volumes_lie_side_by_side() {
        let place = tempfile::tempdir().unwrap();
        let volume = |name: &str| {
            let directory = place.path().join(name).join("_data");
            std::fs::create_dir_all(&directory).unwrap();
            let line = serde_json::json!({"Name": name, "Driver": "local", "Mountpoint": directory, "Options": null});
            super::volume(&line.to_string()).unwrap()
        };
        let one = volume("one");
        assert_eq!(
            root(std::slice::from_ref(&one)).unwrap(),
            (one.directory.clone(), Vec::new())
        );
        let (found, patterns) = root(&[one, volume("two")]).unwrap();
        assert_eq!(found, place.path());
        let selection = crate::tree::selection::Selection::new(&patterns).unwrap();
        for (path, is_out) in [
            ("one", false),
            ("one/_data", false),
            ("one/opts.json", true),
            ("three", true),
            ("two/_data", false),
            ("metadata.db", true),
        ] {
            assert_eq!(
                selection.excludes(path.as_bytes(), true).is_some(),
                is_out,
                "{path}"
            );
        }
        for wrong in [
            serde_json::json!({"Name": "x", "Driver": "rclone", "Mountpoint": "/x"}),
            serde_json::json!({"Name": "x", "Driver": "local", "Mountpoint": "/nowhere/x"}),
            serde_json::json!({"Name": "x", "Driver": "local", "Mountpoint": "/", "Options": {"device": ":/x", "type": "nfs"}}),
        ] {
            assert_eq!(
                super::volume(&wrong.to_string()).unwrap_err().code(),
                Code::Refused
            );
        }
    }
}
