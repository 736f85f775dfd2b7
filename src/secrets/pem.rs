//! PEM blocks: private keys are secrets, certificates and public keys are none.

use super::{Finds, Rule, lines};

const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";
/// The beginning of a share of a repository's key (`seal::share`), and that of its last line.
const SHARE: [&str; 2] = ["pitr key share, version ", "check "];
/// Blocks that anybody may read.
const PUBLIC: &[&str] = &[
    "CERTIFICATE",
    "CERTIFICATE REQUEST",
    "NEW CERTIFICATE REQUEST",
    "TRUSTED CERTIFICATE",
    "X509 CRL",
    "PUBLIC KEY",
    "RSA PUBLIC KEY",
    "SSH2 PUBLIC KEY",
    "DH PARAMETERS",
    "EC PARAMETERS",
    "PGP PUBLIC KEY BLOCK",
    "PGP SIGNATURE",
    "PKCS7",
];

/// Adds each block that is not public, from its first to its last line. One without an end goes to the end of the text.
pub(super) fn scan(finds: &mut Finds<'_>) {
    let mut open: Option<usize> = None;
    let mut blocks = Vec::new();
    for (at, line) in lines(finds.text) {
        // Each line may hold whole blocks, with their line feeds written as \n.
        let mut from = 0;
        while let Some(rest) = line.get(from..) {
            let wanted = if open.is_some() { END } else { BEGIN };
            let Some(mark) = rest.find(wanted) else {
                break;
            };
            let label_at = from + mark + wanted.len();
            let label = line.get(label_at..).unwrap_or_default();
            let label = label.split("-----").next().unwrap_or_default();
            let end = (label_at + label.len() + 5).min(line.len());
            match open {
                Some(start) => {
                    blocks.push(start..at + end);
                    open = None;
                }
                None if PUBLIC.contains(&label) => {}
                None => open = Some(at + from + mark),
            }
            from = end;
        }
    }
    if let Some(start) = open {
        blocks.push(start..finds.text.len());
    }
    others(finds, &mut blocks);
    for block in blocks {
        finds.add(block, "", Rule::Pem);
    }
}

/// Shares of a repository's key, and private keys of PuTTY and of SSH's commercial kin, whose borders are others.
fn others(finds: &Finds<'_>, blocks: &mut Vec<std::ops::Range<usize>>) {
    let mut private = 0_usize;
    let mut open: Option<usize> = None;
    let mut shared: Option<usize> = None;
    for (at, line) in lines(finds.text) {
        let end = at + line.len();
        if let Some(start) = shared {
            if line.trim_start().starts_with(SHARE[1]) {
                blocks.push(start..end);
                shared = None;
            }
        } else if let Some(title) = line.find(SHARE[0]) {
            shared = Some(at + title);
        } else if private > 0 {
            private -= 1;
            blocks.push(at..end);
        } else if let Some(count) = line.strip_prefix("Private-Lines:") {
            private = count.trim().parse().unwrap_or(0);
        } else if line.starts_with("---- BEGIN ") && line.contains("PRIVATE") {
            open = Some(at);
        } else if line.starts_with("---- END ")
            && let Some(start) = open.take()
        {
            blocks.push(start..end);
        }
    }
    for start in [open, shared].into_iter().flatten() {
        blocks.push(start..finds.text.len());
    }
}

/// Whether a line begins or ends a block that anybody may read.
pub(super) fn public_border(line: &str) -> Option<bool> {
    let borders = [(BEGIN, true), (END, false)];
    // The last border of the line counts.
    borders
        .iter()
        .filter_map(|(border, begins)| {
            let at = line.rfind(border)?;
            let label = line.get(at + border.len()..)?.split("-----").next()?;
            PUBLIC.contains(&label).then_some((at, *begins))
        })
        .max()
        .map(|(_, begins)| begins)
}
