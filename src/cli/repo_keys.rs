//! `pitr repo keygen`: the keys of an encrypted repository.

use std::path::PathBuf;

use super::Context;
use crate::error::Result;
use crate::operate::keys::{self, Asked, Keys, Wrapping};

/// The source of a recipient's passphrase; never the command line itself.
#[derive(clap::Args, Debug, Default)]
pub struct Passphrase {
    /// Read the passphrase from this file; else from --passphrase-fd or $PITR_PASSPHRASE
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,

    /// Read the passphrase from this descriptor
    #[arg(long, value_name = "NUMBER")]
    pub passphrase_fd: Option<i32>,
}

/// The arguments of `pitr repo keygen`.
#[derive(clap::Args, Debug)]
#[command(group(clap::ArgGroup::new("wrapping").args(["kms", "wrap"])))]
pub struct KeygenArgs {
    /// Write the files into this directory
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,

    /// A recipient, who may read; gets a key file. May be given several times
    #[arg(long = "recipient", value_name = "NAME")]
    pub recipients: Vec<String>,

    /// A recipient whose pair was made elsewhere, by its .pub file. May be given several times
    #[arg(long, value_name = "FILE")]
    pub public: Vec<PathBuf>,

    /// A recipient whose key file is handed to COMMAND on standard input, or encrypted by AWS KMS; NAME.wrapped is what comes back
    #[arg(long, value_name = "NAME", requires = "wrapping")]
    pub wrapped: Option<String>,

    /// The key of AWS KMS that wraps the key of --wrapped: its id, ARN or alias
    #[arg(long, value_name = "KEY", requires = "wrapped")]
    pub kms: Option<String>,

    /// The command that wraps the key of --wrapped: an absolute path and its arguments, after --
    #[arg(last = true, value_name = "COMMAND", requires = "wrapped")]
    pub wrap: Vec<String>,

    /// A recipient whose key is written as shares alone, NAME.share-1 and on: for paper, and for the day on which no other key is left
    #[arg(long, value_name = "NAME", requires_all = ["shares", "threshold"])]
    pub split: Option<String>,

    /// How many shares --split makes, at most 16
    #[arg(long, value_name = "NUMBER", requires = "split")]
    pub shares: Option<u8>,

    /// How many of them open the key, at least 2
    #[arg(long, value_name = "NUMBER", requires = "split")]
    pub threshold: Option<u8>,

    /// A recipient with a passphrase instead of a key file
    #[arg(long, value_name = "NAME")]
    pub passphrase: Option<String>,

    #[command(flatten)]
    pub source: Passphrase,

    /// Only make the pairs of recipients, no key set
    #[arg(long, conflicts_with_all = ["public", "passphrase"])]
    pub pair_only: bool,

    /// Make the pair to which pitr config seals files with secrets, in place of a key set
    #[arg(long, conflicts_with_all = ["pair_only", "passphrase"])]
    pub secrets: bool,
}

impl From<&Passphrase> for keys::Passphrase {
    fn from(given: &Passphrase) -> keys::Passphrase {
        keys::Passphrase {
            file: given.passphrase_file.clone(),
            descriptor: given.passphrase_fd,
        }
    }
}

pub fn keygen(args: &KeygenArgs, cx: &Context) -> Result<u8> {
    let asked = Asked {
        dir: args.dir.clone(),
        recipients: args.recipients.clone(),
        public: args.public.clone(),
        wrapped: args.wrapped.clone().map(|name| match &args.kms {
            Some(key) => (name, Wrapping::Kms(key.clone())),
            None => (name, Wrapping::Command(args.wrap.clone())),
        }),
        split: args.split.as_ref().map(|name| keys::Split {
            recipient: name.clone(),
            shares: args.shares.unwrap_or_default(),
            threshold: args.threshold.unwrap_or_default(),
        }),
        passphrase: args.passphrase.clone(),
        source: (&args.source).into(),
        pair_only: args.pair_only,
        secrets: args.secrets,
    };
    let made = keys::keygen(&cx.session, &asked)?;
    cx.answered(&made, || print(args, &made, cx))
}

fn print(args: &KeygenArgs, made: &Keys, cx: &Context) -> Result<()> {
    cx.lines(made.files.iter().map(|path| format!("Wrote {path}")))?;
    if let Some(path) = &made.wrapped {
        let how = match &args.kms {
            Some(key) => format!("kms.key_id = \"{key}\" and kms.wrapped_file = \"/PATH/OF/IT\""),
            None => "key_command = [\"/PROGRAM\", …] prints the key".to_owned(),
        };
        cx.line(&format!(
            "\nNothing has unwrapped {path} yet. Where it is read: {how}; prove it with pitr doctor before you rely on it."
        ))?;
    }
    if let Some(threshold) = args.threshold {
        cx.line(&format!(
            "\nAny {threshold} of the {} shares open the key: print each share, and give each to another person. Then delete the files: together they are the key. \"pitr repo join\" gives the key back.",
            made.shares.len()
        ))?;
    }
    if let (true, Some(id), Some(writer)) = (args.secrets, &made.key_set, made.files.last()) {
        cx.line(&format!(
            "\nSecrets pair {id}. On hosts that back up configuration:\n\n[repositories.NAME.encryption]\nsecrets = \"{writer}\"\n\nKeep the recipients' .key files away from those hosts, and at least one in a safe: without any of them no file with a secret can be restored."
        ))?;
    } else if let (Some(id), Some(writer)) = (&made.key_set, made.files.last()) {
        cx.line(&format!(
            "\nKey set {id}. On hosts that write:\n\n[repositories.NAME.encryption]\nkey_set = \"{writer}\"\n\nOn hosts that read: key_file = \"…\", key_command = [\"/PROGRAM\", …], or passphrase_file of a recipient with a passphrase. Keep the recipients' .key files away from hosts that only write, and at least one in a safe:\nwithout any of them nothing can be restored."
        ))?;
    }
    Ok(())
}
