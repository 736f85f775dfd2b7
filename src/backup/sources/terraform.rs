//! The state of a Terraform or OpenTofu directory: `state pull`, as it is.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::objects::Objects;
use crate::err;
use crate::error::Result;
use crate::host::Host;
use crate::program;
use crate::tree::left_out::LeftOut;
use crate::tree::walk::Taken;

/// More than any state that a backend takes.
const STATE_LIMIT_BYTES: usize = 256 << 20;
/// The name of the file.
const FILE_NAME: &str = "terraform.tfstate";
/// The version of the format since Terraform 0.12.
const VERSION: u64 = 4;

/// Pulls the state of `directory`. The lineage of the state is the identity of the source.
///
/// # Errors
/// `SourceMissing` when the program fails, or prints no state; `Interrupted`.
pub fn pull(program: &str, directory: &Path, host: &Host) -> Result<Objects> {
    let directory = format!("-chdir={}", directory.display());
    let words = [program, &directory, "state", "pull"].map(str::to_owned);
    let mut command = program::command(&words)?;
    command.env("TF_IN_AUTOMATION", "1").env("TF_INPUT", "0");
    let printed = program::output(&mut command, STATE_LIMIT_BYTES, &mut || host.check_stop())?;
    read(program, printed)
}

/// Pure: the state that was printed.
fn read(program: &str, printed: Vec<u8>) -> Result<Objects> {
    let state: Value = serde_json::from_slice(&printed).unwrap_or_default();
    let number = |name: &str| state[name].as_u64();
    let (Some(VERSION), Some(serial), Some(lineage)) = (
        number("version"),
        number("serial"),
        state["lineage"].as_str().filter(|l| !l.is_empty()),
    ) else {
        return Err(err!(
            SourceMissing,
            "\"{program}\" printed no state of version {VERSION} with a lineage and a serial"
        )
        .hint("Nothing was stored.\nLook what \"state pull\" prints there: a directory that was not applied yet has no state."));
    };
    Ok(Objects {
        identity: format!("terraform:{lineage}"),
        facts: json!({
            "kind": "terraform",
            "lineage": lineage,
            "serial": serial,
            "program_version": state["terraform_version"],
        }),
        files: BTreeMap::from([(FILE_NAME.to_owned(), printed)]),
        left_out: LeftOut::default(),
        taken: Taken::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_has_a_lineage_and_a_serial() {
        let state = br#"{"version":4,"terraform_version":"1.9.8","serial":7,"lineage":"5a8e2e1c-0000-4c6e-9c0b-000000000000","outputs":{},"resources":[]}"#;
        let objects = read("terraform", state.to_vec()).unwrap();
        assert_eq!(objects.files[FILE_NAME], state);
        assert_eq!(objects.facts["serial"], 7);
        assert!(
            objects
                .identity
                .ends_with("5a8e2e1c-0000-4c6e-9c0b-000000000000")
        );
        for wrong in [
            &b""[..],
            b"{}",
            br#"{"version":4,"serial":1,"lineage":""}"#,
            br#"{"version":3,"serial":1,"lineage":"x"}"#,
            b"{\"version\":4,\"serial\":1,\"lineage\":\"x\"",
        ] {
            assert!(read("tofu", wrong.to_vec()).is_err());
        }
    }
}
