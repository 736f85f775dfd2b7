//! `pitr init --role`: the rights of a host, to be given by somebody else.

use super::Context;
use crate::error::Result;
use crate::operate::roles::{self, Profile, Role};

pub(super) fn print(role: Role, cx: &Context) -> Result<u8> {
    let profile = roles::profile(&cx.session, role)?;
    cx.answered(&profile, || show(cx, &profile))
}

fn show(cx: &Context, profile: &Profile) -> Result<()> {
    for one in &profile.repositories {
        cx.line(&format!("repository {} ({})", one.repository, one.url))?;
        if let Some(policy) = &one.policy {
            cx.json(policy)?;
        }
        if let Some(directory) = &one.directory {
            cx.line(&format!("  {directory}"))?;
        }
    }
    section(cx, "server, as a superuser", &profile.sql)?;
    section(cx, "keys of an encrypted repository", &profile.keys)?;
    section(cx, "files", &profile.files)?;
    let name = profile.role.name();
    cx.note(&format!(
        "on the host itself, \"pitr doctor --role {name}\" compares"
    ));
    Ok(())
}

fn section(cx: &Context, title: &str, lines: &[impl AsRef<str>]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    cx.line(title)?;
    cx.lines(lines.iter().map(|line| format!("  {}", line.as_ref())))
}
