//! `pitr repo rewrap`: who may read an encrypted repository from now on. No data is touched.

use std::path::PathBuf;

use super::Context;
use super::repo_keys::Passphrase;
use crate::error::Result;
use crate::exit;
use crate::operate::rewrap::{self, Asked};

/// The arguments of `pitr repo rewrap`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Give access to the recipient whose .pub file this is. May be given several times
    #[arg(long, value_name = "FILE")]
    pub add: Vec<PathBuf>,

    /// Give access to a recipient with a passphrase
    #[arg(long, value_name = "NAME")]
    pub add_passphrase: Option<String>,

    #[command(flatten)]
    pub source: Passphrase,

    /// Withdraw a recipient's access. May be given several times
    #[arg(long, value_name = "NAME")]
    pub withdraw: Vec<String>,

    /// The key file of a recipient who keeps access, to prove that it opens the repository. May be given several times
    #[arg(long, value_name = "FILE")]
    pub proof: Vec<PathBuf>,
}

/// Runs the command on each repository.
pub fn run(args: &Args, cx: &Context) -> Result<u8> {
    let asked = Asked {
        add: args.add.clone(),
        add_passphrase: args.add_passphrase.clone(),
        source: (&args.source).into(),
        withdraw: args.withdraw.clone(),
        proof: args.proof.clone(),
    };
    let answers = rewrap::run(&cx.session, &asked)?;
    if cx.out.is_json() {
        cx.out
            .json(&serde_json::json!({ "repositories": answers }))?;
        return Ok(exit::SUCCESS);
    }
    for one in &answers {
        let recipients = one.recipients.join(", ");
        cx.out
            .line(&format!("Repository {} is read by: {recipients}", one.name))?;
    }
    Ok(exit::SUCCESS)
}
