//! Files that are nothing but a secret: what they are called says it, and their text has a single line.

use super::Overrides;
use super::format::{Format, base};
use super::names::{self, Verdict, has};
use super::values::{is_public_data, is_reference};

/// Endings of such files, as in `cache.pass`.
const ENDINGS: &str = "pass pw pwd passwd password passphrase pin psk token secret key";
/// Endings of files whose texts have names of their own for what is in them.
const SETTINGS: &str = "conf cfg cnf ini toml yml yaml json jsonc json5 jsonl tfstate tfvars hcl tf xml properties env sh bash zsh py rb pl php js ts go rs java sql csv tsv md rst html htm \
    service timer socket mount slice path target network netdev link rules acl lua erl ex exs cron crontab log j2 tmpl tpl erb pub crt cer pem asc";
/// Folders of such files.
const FOLDERS: &[&str] = &["secrets", "credentials"];

/// The only line of a text that is the secret of a file of this name; none where the file is another one.
pub(super) fn line<'t>(
    name: &str,
    (text, format): (&'t str, Format),
    overrides: &Overrides,
) -> Option<&'t str> {
    let is_open = match format {
        // Names with "redis" in them count as settings of one.
        Format::Other | Format::Redis => true,
        // A line without a user.
        Format::Logins => !text.contains(':'),
        _ => false,
    };
    if !is_open || !is_named(name, overrides) {
        return None;
    }
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.next().filter(|_| lines.next().is_none())?;
    let is_other = is_reference(line)
        || is_public_data(line)
        || line.starts_with("-----BEGIN ")
        // PAM has files for passwords, too.
        || line.contains(" pam_");
    (!is_other).then_some(line)
}

/// Pure: whether a file of this name is nothing but a secret.
fn is_named(name: &str, overrides: &Overrides) -> bool {
    let base = base(name);
    let base = base.trim_start_matches('.');
    let (stem, ending) = base.rsplit_once('.').unwrap_or((base, ""));
    if has(SETTINGS, ending) || stem.is_empty() {
        return false;
    }
    // The file of a password is not about one.
    let own = stem.trim_end_matches("file").trim_end_matches(['-', '_']);
    let names = [base, stem, own];
    let fits = |patterns: &[String]| {
        let fits = |name: &&str| patterns.iter().any(|p| names::fits(p, name));
        names.iter().any(fits)
    };
    if fits(&overrides.plain) {
        return false;
    }
    let above = name.rsplit('/').nth(1).unwrap_or_default();
    let is_strong = |name: &&str| names::judge(name) >= Verdict::Strong;
    fits(&overrides.secret)
        || FOLDERS.contains(&above.to_ascii_lowercase().as_str())
        || has(ENDINGS, ending) && names::judge(base) != Verdict::Plain
        || names.iter().any(is_strong)
}
