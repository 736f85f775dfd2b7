//! The histories of a campaign that passed, in a file: broken off, it goes on there.

use std::io::Write as _;
use std::path::PathBuf;

pub struct Progress(Option<PathBuf>);

impl Progress {
    /// The file that this variable names.
    pub fn of(variable: &str) -> Progress {
        Progress(std::env::var_os(variable).map(PathBuf::from))
    }

    /// Whether an earlier run has done this: its file has a line for each.
    pub fn has(&self, line: &str) -> bool {
        let text = self
            .0
            .as_ref()
            .and_then(|path| std::fs::read_to_string(path).ok());
        text.is_some_and(|text| text.lines().any(|l| l == line))
    }

    pub fn add(&self, line: &str) {
        if let Some(path) = &self.0 {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let file = std::fs::File::options()
                .create(true)
                .append(true)
                .open(path);
            writeln!(file.unwrap(), "{line}").unwrap();
        }
    }
}
