//! The objects of a Kubernetes cluster, as `kubectl` shows them: one file for each, keys sorted.
//!
//! A path is `NAMESPACE/KIND.GROUP/NAME.json`, with `_cluster` for objects of no namespace. The fields that the cluster makes by itself lie
//! beside, below `_made/`: an `apply` of what is left needs none of them, and they change all the time.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::objects::Objects;
use crate::err;
use crate::error::{Code, Error, Result};
use crate::host::Host;
use crate::program;
use crate::tree::left_out::{LeftOut, Part};
use crate::tree::walk::Taken;

/// More than the objects of one resource may be.
const LIST_LIMIT_BYTES: usize = 1 << 30;
/// The namespace whose id is that of the cluster.
const OLDEST_NAMESPACE: &str = "kube-system";
/// Resources that say what happens, and not what is wanted.
const FLEETING: [&str; 4] = [
    "events",
    "events.events.k8s.io",
    "leases.coordination.k8s.io",
    "componentstatuses",
];
/// The group of resources that are measured, and stored nowhere.
const MEASURED: &str = ".metrics.k8s.io";
/// Resources whose status leads to data that lies elsewhere.
const WITH_STATUS: [&str; 3] = ["PersistentVolume", "PersistentVolumeClaim", "Service"];
/// Members of `metadata` that the cluster makes.
const MADE: [&str; 5] = [
    "managedFields",
    "resourceVersion",
    "uid",
    "generation",
    "creationTimestamp",
];
/// Longest name of a file on Linux.
const FILE_NAME_BYTES: usize = 255;

/// The cluster that is asked.
pub struct Cluster<'a> {
    /// The context of kubectl; else its own choice.
    pub context: Option<&'a str>,
    /// Secrets are taken, too.
    pub with_secrets: bool,
    /// The wish to stop.
    pub host: &'a Host,
}

impl Cluster<'_> {
    /// Reads every object that can be listed. A resource that this user may not list is left out, and named.
    ///
    /// # Errors
    /// `SourceMissing` when kubectl fails, or answers with what is no list; `Interrupted`.
    pub fn read(&self) -> Result<Objects> {
        let namespace = self.ask(&["get", "namespace", OLDEST_NAMESPACE, "-o", "json"])?;
        let namespace: Value = serde_json::from_slice(&namespace).unwrap_or_default();
        let uid = namespace["metadata"]["uid"].as_str().ok_or_else(|| {
            err!(
                SourceMissing,
                "kubectl shows no namespace \"{OLDEST_NAMESPACE}\" with an id"
            )
        })?;
        let known = self.ask(&["api-resources", "--verbs=list,get", "-o", "name"])?;
        let known = String::from_utf8_lossy(&known).into_owned();
        let is_taken = |name: &&str| {
            let is_secret = *name == "secrets";
            !FLEETING.contains(name)
                && !name.ends_with(MEASURED)
                && (self.with_secrets || !is_secret)
        };
        let mut files = BTreeMap::new();
        let mut left_out = LeftOut::default();
        for resource in known.split_whitespace().filter(is_taken) {
            match self.list(resource) {
                Ok(list) => take(resource, list, &mut files, &mut left_out)?,
                Err(e) if is_refusal(&e) => {
                    left_out.add(resource.as_bytes(), Part::Entry, e);
                }
                Err(e) => return Err(e),
            }
        }
        if files.is_empty() {
            return Err(err!(
                SourceMissing,
                "kubectl lists no object that this user may read"
            ));
        }
        Ok(Objects {
            files,
            left_out,
            identity: format!("kubernetes:{uid}"),
            facts: json!({
                "kind": "kubernetes",
                "cluster_uid": uid,
                "with_secrets": self.with_secrets,
            }),
            taken: Taken::default(),
        })
    }

    fn list(&self, resource: &str) -> Result<Value> {
        let printed = self.ask(&["get", resource, "-A", "-o", "json", "--chunk-size=500"])?;
        let list: Value = serde_json::from_slice(&printed).unwrap_or_default();
        match list["items"].is_array() {
            true => Ok(list),
            // Half a list would look like a whole one.
            false => Err(err!(
                Unsupported,
                "kubectl answers with no list of \"{resource}\""
            )
            .hint("Nothing was stored.")),
        }
    }

    fn ask(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let mut words = vec!["kubectl".to_owned()];
        words.extend(self.context.map(|context| format!("--context={context}")));
        words.extend(arguments.iter().map(|&word| word.to_owned()));
        let mut command = program::command(&words)?;
        program::output(&mut command, LIST_LIMIT_BYTES, &mut || {
            self.host.check_stop()
        })
    }
}

/// Whether the cluster answered that this resource is not for this user. Any other failure may hide objects.
fn is_refusal(e: &Error) -> bool {
    let text = e.to_string();
    let says = |part: &&str| text.contains(*part);
    e.code() == Code::SourceMissing && ["(Forbidden)", "(MethodNotAllowed)"].iter().any(says)
}

/// Takes the objects of a list apart into files.
fn take(
    resource: &str,
    mut list: Value,
    files: &mut BTreeMap<String, Vec<u8>>,
    left_out: &mut LeftOut,
) -> Result<()> {
    let items = list["items"].as_array_mut().map(std::mem::take);
    for object in items.unwrap_or_default() {
        // For a list without objects some versions of kubectl print the list itself as one.
        let is_list = object["kind"]
            .as_str()
            .is_some_and(|kind| kind.ends_with("List"));
        if is_list && object["metadata"]["name"].is_null() {
            continue;
        }
        let Some(path) = path(&object) else {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let shown = format!("{resource}/{}", name.escape_debug());
            left_out.add(
                shown.as_bytes(),
                Part::Entry,
                "its name is no name of a file",
            );
            continue;
        };
        let (wanted, made) = apart(object);
        if made.as_object().is_some_and(|made| !made.is_empty()) {
            files.insert(format!("_made/{path}"), text(&made)?);
        }
        files.insert(path, text(&wanted)?);
    }
    Ok(())
}

/// Pure: the path of an object; none where its names cannot be those of files.
fn path(object: &Value) -> Option<String> {
    let metadata = &object["metadata"];
    let namespace = metadata["namespace"].as_str().unwrap_or("_cluster");
    let kind = object["kind"].as_str()?;
    let kind = match object["apiVersion"].as_str()?.split_once('/') {
        Some((group, _)) => format!("{kind}.{group}"),
        None => kind.to_owned(),
    };
    let file = format!("{}.json", metadata["name"].as_str()?);
    let is_name = |part: &str| {
        let is_odd = part.is_empty() || part.starts_with('.') || part.contains(['/', '\0']);
        !is_odd && part.len() <= FILE_NAME_BYTES
    };
    let is_path = [namespace, &kind, &file].into_iter().all(is_name);
    is_path.then(|| format!("{namespace}/{kind}/{file}"))
}

/// Pure: the object as it is wanted, and what the cluster made of it.
fn apart(mut object: Value) -> (Value, Value) {
    let mut made = Map::new();
    let keeps_status = object["kind"]
        .as_str()
        .is_some_and(|kind| WITH_STATUS.contains(&kind));
    if let Some(object) = object.as_object_mut().filter(|_| !keeps_status) {
        made.extend(object.remove_entry("status"));
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        let taken = MADE.iter().filter_map(|name| metadata.remove_entry(*name));
        let taken: Map<String, Value> = taken.collect();
        if !taken.is_empty() {
            made.insert("metadata".to_owned(), taken.into());
        }
    }
    (object, made.into())
}

/// Keys come sorted: the map of JSON values is ordered.
fn text(value: &Value) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::new(Code::Internal, "write an object as JSON").source(e))?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: &str, name: &str) -> Value {
        json!({
            "kind": kind, "apiVersion": "apps/v1", "spec": {"b": 1, "a": 2}, "status": {"x": 1},
            "metadata": {"name": name, "namespace": "shop", "uid": "u", "managedFields": [], "labels": {"l": "v"}},
        })
    }

    #[test]
    fn an_object_is_taken_apart_and_its_keys_are_sorted() {
        let mut files = BTreeMap::new();
        let mut left_out = LeftOut::default();
        let list = json!({"items": [object("Deployment", "web"), object("Deployment", "../x")]});
        take("deployments.apps", list, &mut files, &mut left_out).unwrap();
        let names: Vec<_> = files.keys().map(String::as_str).collect();
        let path = "shop/Deployment.apps/web.json";
        assert_eq!(names, [&format!("_made/{path}"), path]);
        assert_eq!(left_out.total(), 1);
        let read = |path: &str| String::from_utf8(files[path].clone()).unwrap();
        let wanted = read(path);
        assert!(wanted.find("\"a\"").unwrap() < wanted.find("\"b\"").unwrap());
        assert!(wanted.contains("labels") && !wanted.contains("uid") && !wanted.contains("status"));
        let made = read(&format!("_made/{path}"));
        assert!(made.contains("uid") && made.contains("status") && made.contains("managedFields"));
    }

    #[test]
    fn a_volume_keeps_its_status() {
        let (wanted, made) = apart(object("PersistentVolumeClaim", "data"));
        assert_eq!(wanted["status"]["x"], 1);
        assert!(made["metadata"]["uid"].is_string());
        let long = object("Deployment", &"n".repeat(251));
        assert_eq!(path(&long), None);
    }
}
