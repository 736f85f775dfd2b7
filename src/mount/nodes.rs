//! The kernel's numbers of files, and the paths that they stand for now.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The number of the root.
const ROOT: u64 = 1;

/// Numbers that the kernel knows. A file that was removed keeps its number until the kernel forgets it.
#[derive(Debug)]
pub struct Nodes {
    by_number: HashMap<u64, Node>,
    by_path: HashMap<PathBuf, u64>,
    next: u64,
}

#[derive(Debug)]
struct Node {
    /// None once it was removed.
    path: Option<PathBuf>,
    lookups: u64,
    /// Whether it was given a second name.
    is_linked: bool,
}

impl Nodes {
    /// The root alone, whose path is empty.
    pub fn new() -> Nodes {
        let root = Node {
            path: Some(PathBuf::new()),
            lookups: 1,
            is_linked: false,
        };
        Nodes {
            by_number: HashMap::from([(ROOT, root)]),
            by_path: HashMap::from([(PathBuf::new(), ROOT)]),
            next: ROOT + 1,
        }
    }

    /// The path of a number; none once it was removed.
    pub fn path(&self, number: u64) -> Option<&Path> {
        self.by_number.get(&number)?.path.as_deref()
    }

    /// The number of a path, which the kernel learns once more.
    pub fn look_up(&mut self, path: &Path) -> u64 {
        let known = self.by_path.get(path).copied();
        let number = known.unwrap_or(self.next);
        if known.is_none() {
            self.next += 1;
            self.by_path.insert(path.to_owned(), number);
        }
        let node = self.by_number.entry(number).or_insert_with(|| Node {
            path: Some(path.to_owned()),
            lookups: 0,
            is_linked: false,
        });
        node.lookups += 1;
        number
    }

    /// A second name of a file.
    pub fn linked(&mut self, number: u64, path: &Path) {
        if let Some(node) = self.by_number.get_mut(&number) {
            node.path = Some(path.to_owned());
            node.lookups += 1;
            node.is_linked = true;
            self.by_path.insert(path.to_owned(), number);
        }
    }

    /// The kernel forgets so many times that it learned a number.
    pub fn forget(&mut self, number: u64, times: u64) {
        let Some(node) = self.by_number.get_mut(&number) else {
            return;
        };
        node.lookups = node.lookups.saturating_sub(times);
        if node.lookups == 0 && number != ROOT {
            if let Some(path) = node.path.take()
                && self.by_path.get(&path) == Some(&number)
            {
                self.by_path.remove(&path);
            }
            if node.is_linked {
                self.by_path.retain(|_, known| *known != number);
            }
            self.by_number.remove(&number);
        }
    }

    /// A path was removed.
    pub fn removed(&mut self, path: &Path) {
        let Some(number) = self.by_path.remove(path) else {
            return;
        };
        let Some(node) = self.by_number.get_mut(&number) else {
            return;
        };
        if node.path.as_deref() != Some(path) {
            return;
        }
        // A file with another name lives on under that. The kernel remembers that name, and does not ask for it again.
        let mut names = self.by_path.iter();
        let other = match node.is_linked {
            true => names.find(|(_, known)| **known == number),
            false => None,
        };
        node.path = other.map(|(path, _)| path.clone());
    }

    /// A path has a new name, and so has all below it where it is a directory.
    pub fn renamed(&mut self, from: &Path, to: &Path, is_directory: bool) {
        if from == to {
            return;
        }
        self.removed(to);
        let moved: Vec<(PathBuf, u64)> = match is_directory {
            true => self
                .by_path
                .iter()
                .filter(|(path, _)| path.starts_with(from))
                .map(|(path, number)| (path.clone(), *number))
                .collect(),
            false => {
                let number = self.by_path.get(from);
                number
                    .map(|number| (from.to_owned(), *number))
                    .into_iter()
                    .collect()
            }
        };
        for (path, number) in moved {
            let below = path.strip_prefix(from).unwrap_or(&path);
            let new = match below.as_os_str().is_empty() {
                true => to.to_owned(),
                false => to.join(below),
            };
            self.by_path.remove(&path);
            self.by_path.insert(new.clone(), number);
            if let Some(node) = self.by_number.get_mut(&number) {
                node.path = Some(new);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_for_its_file_whatever_the_file_is_called() {
        let mut nodes = Nodes::new();
        let of = |nodes: &Nodes, number| nodes.path(number).map(Path::to_owned);
        let a = nodes.look_up(Path::new("d/a"));
        let b = nodes.look_up(Path::new("d/b"));
        assert_eq!(nodes.look_up(Path::new("d/a")), a);
        nodes.renamed(Path::new("d/a"), Path::new("d/b"), false);
        assert_eq!(of(&nodes, a), Some("d/b".into()));
        assert_eq!(of(&nodes, b), None);
        nodes.renamed(Path::new("d"), Path::new("e"), true);
        assert_eq!(of(&nodes, a), Some("e/b".into()));
        nodes.linked(a, Path::new("e/c"));
        nodes.removed(Path::new("e/b"));
        assert_eq!(of(&nodes, a), Some("e/c".into()));
        nodes.removed(Path::new("e/c"));
        // Another file of the same name has another number.
        assert_ne!(nodes.look_up(Path::new("e/c")), a);
        assert_eq!(of(&nodes, a), None);
        nodes.forget(a, 9);
        nodes.forget(b, 1);
        assert_eq!(of(&nodes, a), None);
        assert_eq!(of(&nodes, 1), Some(PathBuf::new()));
    }

    #[test]
    fn a_file_whose_second_name_was_removed_keeps_its_first() {
        let mut nodes = Nodes::new();
        let (a, b) = (Path::new("a"), Path::new("b"));
        let number = nodes.look_up(a);
        nodes.linked(number, b);
        nodes.removed(b);
        assert_eq!(nodes.path(number), Some(a));
        nodes.linked(number, b);
        nodes.renamed(Path::new("c"), b, false);
        assert_eq!(nodes.path(number), Some(a));
        nodes.removed(a);
        assert_eq!(nodes.path(number), None);
        // Nothing is left of a number that the kernel forgot.
        let number = nodes.look_up(a);
        nodes.linked(number, b);
        nodes.forget(number, 2);
        assert_ne!(nodes.look_up(a), number);
        assert_ne!(nodes.look_up(b), number);
    }
}
