//! Values that stand somewhere else and are only named: variables, stores of secrets, attributes of resources, members of objects.

use std::ops::Range;

use super::names::{self, Verdict, has};
use super::{begins_with_any, is_made_of};
use crate::text::is_hex;

/// Names before a colon in `${…}` that tell where the value is.
const LOOKUPS: &str = "file env sys systemproperties secret secrets vault readfile readfilebase64 ssm aws-secret awssecret k8s kubernetes configmap sm azure gcp keyring keychain op dir directory \
    strimzifile docker sops parameter";
/// Beginnings of values that name a place in a store.
const STORES: &[&str] = &[
    "sm://",
    "ref:",
    "secretsmanager:",
    "aws-secretsmanager:",
    "awssm:",
    "gcpsm:",
    "akv:",
    "keyvault:",
    "conjur:",
    "1password:",
    "/run/secrets/",
    "/var/run/secrets/",
    "@/run/secrets/",
    "/run/credentials/",
    "each.value",
    "self.",
];
/// Beginnings of the types of resources of Terraform.
const RESOURCES: &[&str] = &[
    "random_",
    "aws_",
    "azurerm_",
    "azuread_",
    "google_",
    "kubernetes_",
    "vault_",
    "tls_",
    "hcloud_",
    "digitalocean_",
    "cloudflare_",
    "scaleway_",
    "openstack_",
    "onepassword_",
    "doppler_",
    "github_",
    "gitlab_",
    "postgresql_",
    "htpasswd_",
    "bcrypt_",
];
/// Functions of Terraform around such a value.
const WRAPPERS: &[&str] = &[
    "jsondecode(",
    "yamldecode(",
    "base64encode(",
    "base64decode(",
    "sensitive(",
    "nonsensitive(",
    "trimspace(",
    "bcrypt(",
    "sha256(",
    "lookup(",
    "one(",
    "try(",
    "coalesce(",
    "join(",
    "urlencode(",
];
/// Objects whose members come from elsewhere.
const OBJECTS: &str = "req request headers params cookies args config settings options ctx event body query secrets env environ vars hostvars node session self this opts conf cfg parameters \
    attributes";
/// Attributes of a name in a directory.
const ATTRIBUTES: &str = "cn ou dc o uid c l st mail sn dn cn=config";

fn is_ident(text: &str) -> bool {
    !text.is_empty() && !text.starts_with(|c: char| c.is_ascii_digit()) && is_made_of(text, b"_-")
}

/// Whether a value only names another one.
pub fn is_named_elsewhere(value: &str) -> bool {
    let value = value.trim_end_matches(';');
    is_lookup(value)
        || is_stored(value)
        || is_attribute(value)
        || is_member(value)
        || is_variable(value)
        || value == "%prompt"
        || is_cmdlet(value)
        || is_directory_name(value)
}

/// Whether it names a place in a store.
pub fn is_stored(value: &str) -> bool {
    STORES.iter().any(|s| value.starts_with(s)) && !value.contains(char::is_whitespace)
}

/// `${file:/path:key}`, `${?NAME}`, `$${NAME}`, `${NAME:?there is none}`, `@db.password@`.
fn is_lookup(value: &str) -> bool {
    let marked = value.strip_prefix('@').and_then(|v| v.strip_suffix('@'));
    if let Some(name) = marked {
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        return name.contains(['.', '_']) && name.bytes().all(is_name);
    }
    let inner = value.trim_start_matches('$');
    if inner.len() == value.len() {
        // A field of a text of Python.
        let field = value.strip_prefix('{').and_then(|v| v.strip_suffix('}'));
        return field.is_some_and(|name| {
            is_ident(name)
                && (name.contains('_') || !name.bytes().any(|b| b.is_ascii_lowercase()))
                && names::judge(name) >= Verdict::Strong
        });
    }
    let Some(inner) = inner.strip_prefix('{').and_then(|i| i.strip_suffix('}')) else {
        return false;
    };
    if let Some(name) = inner.strip_prefix('?') {
        return !name.contains(['$', '}']);
    }
    if value.starts_with("$$") && is_ident(&inner.replace('.', "_")) {
        return true;
    }
    let Some((scheme, rest)) = inner.split_once(':') else {
        return false;
    };
    let has_default = rest.contains(":-")
        || matches!(scheme.to_ascii_lowercase().as_str(), "env" | "sys") && rest.contains(':');
    has(LOOKUPS, &scheme.to_ascii_lowercase()) && !rest.is_empty() && !has_default
}

/// An attribute of a resource of Terraform, also in functions.
fn is_attribute(value: &str) -> bool {
    let mut inner = value;
    while let Some(rest) = WRAPPERS.iter().find_map(|w| inner.strip_prefix(w)) {
        inner = rest;
    }
    let is_other = begins_with_any(
        inner,
        &["var.", "local.", "data.", "module.", "each.", "file("],
    );
    let is_resource =
        RESOURCES.iter().any(|r| inner.starts_with(r)) && inner.matches('.').count() >= 2;
    let is_expression = |b: u8| b.is_ascii_alphanumeric() || b"._-()[]\"'*, $={}/".contains(&b);
    // Two texts may be a key and a default.
    let texts = inner.matches('"').count();
    let is_wrapped = inner.len() < value.len();
    (is_resource || is_wrapped && is_other) && texts <= 2 && inner.bytes().all(is_expression)
}

/// A member of an object or an array: `$_ENV['X']`, `req.headers['x']`, `$this->password`.
fn is_member(value: &str) -> bool {
    let body = value.strip_prefix("await ").unwrap_or(value);
    let name = body.trim_start_matches(['$', '@', '%', ':']);
    let is_marked = name.len() < body.len();
    let end = name
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(name.len());
    let (base, rest) = name.split_at(end);
    if base.is_empty() || rest.is_empty() || base.starts_with(|c: char| c.is_ascii_digit()) {
        return false;
    }
    let is_arrow = rest.starts_with("->");
    let is_index = rest.starts_with(['[', '{']) && rest.ends_with([']', '}']);
    let is_path = |b: u8| b.is_ascii_alphanumeric() || b"_.->[]{}'\"".contains(&b);
    let texts = rest.matches(['"', '\'']).count();
    let is_quoted = texts == 2 || texts == 0 && !rest.contains(['[', '{']) || is_marked;
    let last = rest
        .trim_end_matches(['\'', '"', ']'])
        .rsplit(['.', '\'', '"', '['])
        .next()
        .unwrap_or_default();
    let is_object = has(OBJECTS, &base.to_ascii_lowercase())
        && (rest.starts_with('.') && is_ident(last) || is_index && texts == 2);
    (is_marked && (is_arrow || is_index) || is_object) && is_quoted && rest.bytes().all(is_path)
}

/// A command of PowerShell that reads or makes it.
fn is_cmdlet(value: &str) -> bool {
    begins_with_any(value, &["Read-Host", "Get-", "Import-"])
        && !value.contains(['"', '\''])
        && value.contains(char::is_uppercase)
}

/// `$db_password`: a variable whose name says what it holds.
fn is_variable(value: &str) -> bool {
    let Some(name) = value.strip_prefix('$') else {
        return false;
    };
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    name.bytes().all(is_name) && names::judge(name) >= Verdict::Strong
        || matches!(name, "1" | "2" | "3" | "@" | "value" | "pw")
}

/// The name of an entry of a directory: `cn=reader,ou=services,dc=example`.
pub fn is_directory_name(value: &str) -> bool {
    let parts = value.split(',').map(str::trim);
    value.contains(',')
        && parts.clone().all(|part| {
            part.split_once('=').is_some_and(|(name, value)| {
                has(ATTRIBUTES, &name.trim().to_ascii_lowercase()) && !value.is_empty()
            })
        })
}

/// Whether it is the id of a resource of a cloud: `vol-0a1b2c3d4e5f67890`.
pub fn is_resource_id(value: &str) -> bool {
    value.split_once('-').is_some_and(|(kind, id)| {
        (1..=10).contains(&kind.len())
            && kind.bytes().all(|b| b.is_ascii_lowercase())
            && [8, 17].iter().any(|digits| is_hex(id, *digits))
    })
}

/// Finds a secret that a template has in itself: `{{ 'text' | hash }}`, `{{ name | default('text') }}`.
pub fn text_in_template(value: &str) -> Option<Range<usize>> {
    let inner = value.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    let start = value.find("{{")? + 2;
    let body = inner.trim_start();
    let first = inner.len() - body.len();
    let from = match body.starts_with(['"', '\'']) {
        true => first,
        false => {
            let call = inner.find("default(").map(|n| n + "default(".len())?;
            let rest = inner.get(call..)?;
            call + rest.len() - rest.trim_start().len()
        }
    };
    let rest = inner.get(from..)?;
    let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let length = rest.get(1..)?.find(quote)?;
    (length > 0).then_some(start + from + 1..start + from + 1 + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_elsewhere() {
        for value in [
            "${file:/etc/app.properties:key}",
            "${?DB_PASSWORD}",
            "$${default_password}",
            "@db.password@",
            "random_password.db.result",
            "jsondecode(data.aws_secretsmanager_secret_version.db.secret_string)[\"password\"]",
            "$_ENV['DB_PASSWORD'];",
            "req.headers['x-token']",
            "$this->password",
            "$db_password",
            "/run/secrets/db",
            "cn=reader,ou=services,dc=example",
        ] {
            assert!(is_named_elsewhere(value), "{value}");
        }
        for value in [
            "${DB_PASSWORD:geheim}",
            "${env:DB_PASSWORD:geheim}",
            "$ecret",
            "a.b.c",
            "coalesce(\"a\", \"b\")",
            "@pple@",
            "x=1,y=2",
            "selfmade",
            "$a[b",
        ] {
            assert!(!is_named_elsewhere(value), "{value}");
        }
    }

    #[test]
    fn a_template_may_hold_a_text() {
        let text = |value: &'static str| text_in_template(value).map(|span| &value[span]);
        assert_eq!(text("{{ 'abc' | hash }}"), Some("abc"));
        assert_eq!(
            text("{{ lookup('env', 'X') | default('def', true) }}"),
            Some("def")
        );
        assert_eq!(text("{{ name }}"), None);
        assert_eq!(text("{{ name | default('') }}"), None);
    }
}
