//! Values: which of them are secrets by their shape or their entropy, and which cannot be any.

use super::names::Verdict;
use super::references::{is_named_elsewhere, is_resource_id};
use super::{begins_with_any, has_any, is_made_of};

/// The shortest token whose entropy counts, where letters of both cases and digits alternate.
const MIXED_MIN: usize = 16;
/// The shortest other one.
const TOKEN_MIN: usize = 20;
/// The shortest one of hexadecimal digits.
const HEX_MIN: usize = 32;
/// Bits of a character from which on a token counts as random.
const BITS_MIN: f64 = 3.5;
/// Likewise of hexadecimal digits, which have four at most.
const HEX_BITS_MIN: f64 = 3.0;

/// Values that say that there is no value, or that switch something.
const WORDS: &[&str] = &[
    "",
    "true",
    "false",
    "yes",
    "no",
    "on",
    "off",
    "null",
    "nil",
    "none",
    "~",
    "required",
    "optional",
    "prompt",
    "ask",
    "always",
    "never",
    "auto",
    "default",
    "enabled",
    "disabled",
    "unset",
    "undefined",
    "{}",
    "[]",
    "prefer",
    "allow",
    "any",
    "inherit",
    "\"\"",
    "''",
    "0",
    "1",
    "read",
    "write",
];
/// Parts of names of algorithms and methods.
const METHODS: &str = "sha aes md5 rsa hs256 hs384 hs512 rs256 es256 scram ed25519 bcrypt argon x509 chacha hmac gcm tls oauth oidc ldap saml kerberos pbkdf trust \
    peer ident chap pap eap gtc ecdsa nistp x25519 poly1305 modp camellia";
/// Names of algorithms, the longer one first. They make up the list of a protocol, such as `aes256gcm16-modp2048`.
const ALGORITHMS: &str = "sntrup761 curve25519 mlkem768 ripemd160 poly1305 argon2id hellman exchange chacha20 ed25519 openssh x25519 blake2b blake2s sha512 sha384 sha256 \
    sha224 aes256 aes192 aes128 pbkdf2 bcrypt scrypt argon2 camellia diffie ecdsa nistp ed448 group blake3 modp hmac umac sha1 sha2 sha3 x448 3des kex rsa dsa sha aes gcm \
    ctr cbc ccm ecp prf md5 etm tls ssh cert dhe des";
/// Beginnings of values that name a place in a store of secrets.
const STORES: &[&str] = &[
    "!vault",
    "!secret ",
    "!Ref ",
    "!GetAtt ",
    "!ImportValue ",
    "!env ",
    "!ENV ",
    "!file ",
    "vault:",
    "op://",
    "env:",
    "arn:",
    "ref+",
    "keyring:",
    "file://",
    "ssm:",
    "sops:",
    "keychain:",
    "projects/",
    "@Microsoft.KeyVault(",
    "process.env.",
    "os.environ[",
    "Rails.application.credentials.",
    "var.",
    "local.",
    "data.",
    "module.",
    "secrets.",
    "settings.",
];
/// Parts of the schemes of such stores: `awskms://`, `hashivault://`.
const STORE_SCHEMES: &[&str] = &[
    "kms",
    "vault",
    "secret",
    "ssm",
    "doppler",
    "infisical",
    "keeper",
    "bws",
    "env",
];
/// Functions that read a value from elsewhere, by its name.
const GETTERS: &[&str] = &[
    "getenv",
    "env",
    "ENV",
    "fetch",
    "environ",
    "get",
    "read",
    "file",
    "lookup",
    "config",
    "credentials",
    "secret",
    "get_secret",
    "read_text",
    "readFileSync",
    "data",
    "parameter",
    "param",
    "getProperty",
    "file_get_contents",
    "ssm",
    "fetch_env",
    "Getenv",
    "LookupEnv",
    "findProperty",
    "gradleProperty",
    "GetEnvironmentVariable",
    "get_env",
    "getpass",
    "token_urlsafe",
    "token_hex",
    "getSecret",
    "get_password",
    "getPassword",
    "headers",
    "params",
    "cookies",
    "args",
    "settings",
    "options",
    "vars",
    "hostvars",
    "read_secret",
    "urandom",
    "generate",
    "uuid4",
    "query",
];
/// Commands that print a secret which lies elsewhere.
const READERS: &[&str] = &[
    "cat",
    "head",
    "pass",
    "gopass",
    "vault",
    "aws",
    "op",
    "gpg",
    "systemd-creds",
    "secret-tool",
];
/// Ends of names of files.
const EXTENSIONS: &str = "pem key crt cer csr p12 pfx jks keystore txt json yml yaml env gpg asc pub conf cfg ini pass pw passwd secret keytab der toml xml properties sock \
    age creds credentials cnf";
/// Units of a duration.
const UNITS: &str = "s sec secs second seconds m min mins minute minutes h hour hours d day days w week weeks month months y year years ms";
/// Beginnings of tokens of well-known services.
const PREFIXES: &[(&str, usize)] = &[
    ("AKIA", 20),
    ("ASIA", 20),
    ("ghp_", 20),
    ("gho_", 20),
    ("ghu_", 20),
    ("ghs_", 20),
    ("ghr_", 20),
    ("github_pat_", 30),
    ("glpat-", 20),
    ("gldt-", 20),
    ("xoxa-", 15),
    ("xoxb-", 15),
    ("xoxp-", 15),
    ("xoxr-", 15),
    ("xoxs-", 15),
    ("xapp-", 15),
    ("sk_live_", 16),
    ("sk_test_", 16),
    ("rk_live_", 16),
    ("rk_test_", 16),
    ("whsec_", 16),
    ("sk-", 24),
    ("AIza", 35),
    ("ya29.", 20),
    ("SG.", 20),
    ("npm_", 30),
    ("pypi-", 30),
    ("dop_v1_", 30),
    ("hvs.", 20),
    ("hvb.", 20),
    ("shpat_", 30),
    ("shpss_", 30),
    ("AGE-SECRET-KEY-", 40),
    ("key-", 32),
    ("EAACEdEose0cBA", 20),
    ("glsa_", 30),
    ("dckr_pat_", 20),
    ("tskey-", 20),
    ("sq0csp-", 20),
    ("sq0atp-", 20),
    ("figd_", 20),
    ("lin_api_", 20),
    ("nvapi-", 20),
    ("hf_", 30),
    ("glrt-", 20),
    ("glptt-", 20),
    ("glcbt-", 20),
    ("gloas-", 20),
    ("xoxe", 20),
    ("sk-ant-", 20),
    ("sk-proj-", 20),
    ("r8_", 30),
    ("gsk_", 30),
    ("xai-", 30),
    ("pplx-", 30),
    ("doo_v1_", 30),
    ("dor_v1_", 30),
    ("shpca_", 30),
    ("shppa_", 30),
    ("ATATT3", 30),
    ("ATBB", 30),
    ("ATCTT3", 30),
    ("PMAK-", 30),
    ("NRAK-", 20),
    ("NRJS-", 20),
    ("dt0c01.", 30),
    ("sntrys_", 30),
    ("sntryu_", 30),
    ("pul-", 40),
    ("dp.pt.", 30),
    ("dp.st.", 30),
    ("fo1_", 30),
    ("fm2_", 30),
    ("sbp_", 30),
    ("pscale_", 30),
    ("ntn_", 30),
    ("xkeysib-", 30),
    ("sgp_", 30),
    ("glc_", 30),
    ("GOCSPX-", 20),
    ("amzn.mws.", 20),
    ("dapi", 36),
    ("rubygems_", 30),
    ("nfp_", 30),
    ("rnd_", 20),
    ("HRKU-", 20),
    ("hvr.", 20),
    ("CCIPAT_", 20),
    ("bkua_", 20),
    ("FLWSECK", 20),
    ("sqp_", 30),
    ("squ_", 30),
    ("AKCp", 40),
    ("1//0", 30),
    ("tvly-", 20),
    ("ops_ey", 30),
    ("eyJ", 30),
];
/// Beginnings of stored passwords.
const HASHES: &[&str] = &[
    "$2a$",
    "$2b$",
    "$2y$",
    "$apr1$",
    "$1$",
    "$5$",
    "$6$",
    "$y$",
    "$argon2",
    "$scrypt$",
    "$pbkdf2",
    "SCRAM-SHA-256$",
    "SCRAM-SHA-1$",
    "$$apr1$$",
    "$$2a$$",
    "$$2b$$",
    "$$2y$$",
    "$$1$$",
    "$$5$$",
    "$$6$$",
    "$$y$$",
    "$$argon2",
    "$2$",
    "$2x$",
    "$7$",
    "$8$",
    "$9$",
    "$gy$",
    "$sha1$",
    "$md5",
    "$P$",
    "$H$",
    "$S$",
    "$SHA$",
    "$A$005$",
    "SCRAM-SHA-512$",
    "pbkdf2:sha",
    "pbkdf2_sha256$",
    "bcrypt$",
    "bcrypt_sha256$",
    "argon2$",
    "scrypt:",
    "grub.pbkdf2.",
    "{SSHA}",
    "{SHA}",
    "{PLAIN}",
];

/// The length of what is in quotes, behind the first one; two of them in a row are one of the value.
pub fn closing_quote(inner: &str, quote: char) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + inner.get(from..)?.find(quote)?;
        from = at + quote.len_utf8();
        match inner
            .get(from..)
            .is_some_and(|rest| rest.starts_with(quote))
        {
            true => from += quote.len_utf8(),
            false => return Some(at),
        }
    }
}

/// Whether a value is only named, and stands somewhere else: `${NAME}`, `{{ name }}`, `<name>`, `****`.
pub fn is_reference(value: &str) -> bool {
    let value = value.trim();
    let inner = |open: &str, close: &str| {
        value
            .strip_prefix(open)
            .and_then(|rest| rest.strip_suffix(close))
            .filter(|inner| !inner.contains(close))
    };
    let is_name = |text: &str| !text.is_empty() && is_made_of(text, b"_.-/ ");
    if is_named_elsewhere(value) {
        return true;
    }
    if let Some(command) = inner("$(", ")") {
        return !has_any(command, &["echo", "printf"]);
    }
    if value.starts_with("${{") && value.ends_with("}}")
        || [("((", "))"), ("%{", "}"), ("#{", "}"), ("%env(", ")%")]
            .iter()
            .any(|(open, close)| inner(open, close).is_some())
    {
        return true;
    }
    if let Some(command) = inner("`", "`") {
        // Some daemons have values in such quotes.
        return READERS.contains(&command.split(' ').next().unwrap_or_default());
    }
    if let Some(name) = inner("__", "__").or_else(|| inner("@", "@")) {
        return is_name(name) && !name.bytes().any(|b| b.is_ascii_lowercase());
    }
    if let Some(name) = inner("${", "}") {
        if name.contains("::") || STORES.iter().any(|s| name.starts_with(s)) || is_call(name) {
            return true;
        }
        // A default that is empty is none, and no default is the complaint that there is no value.
        let name = name.split_once(":?").map_or(name, |(name, _)| name);
        return is_name(name.trim_end_matches([':', '-']));
    }
    if inner("$__file{", "}").is_some() || inner("$__env{", "}").is_some() {
        return true;
    }
    let variables = [
        "$arg_",
        "$http_",
        "$cookie_",
        "$ssl_",
        "$upstream_",
        "$sent_http_",
    ];
    if variables.iter().any(|v| value.starts_with(v)) {
        return is_name(value.trim_start_matches('$'));
    }
    if inner("{{", "}}").is_some() || inner("<%=", "%>").is_some() {
        return true;
    }
    if let Some(name) = inner("<", ">").or_else(|| inner("%(", ")s")) {
        return is_name(name);
    }
    if let Some(name) = inner("%", "%") {
        return is_name(name) && !name.contains(' ');
    }
    if let Some(name) = value.strip_prefix('$') {
        return name.len() > 1
            && name
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    }
    let scheme = value.split_once("://").map_or("", |(scheme, _)| scheme);
    let is_parameter = matches!(value, "?" | ":password" | "@password")
        || value.len() == 2 && value.starts_with('%');
    (value.len() > 2 && value.bytes().all(|b| b == b'*' || b == b'x' || b == b'X'))
        || STORES.iter().any(|s| value.starts_with(s)) && !value.contains(char::is_whitespace)
        || value.starts_with('!') && STORES.iter().any(|s| value.starts_with(s))
        || is_name(scheme) && STORE_SCHEMES.iter().any(|s| scheme.contains(s))
        || is_parameter
        || is_call(value)
        || is_pattern(value)
        || is_file(value)
}

/// Whether it is a call that reads the value from elsewhere: `getenv('NAME')`. A second text would be a default.
pub fn is_call(value: &str) -> bool {
    let value = value.trim_start_matches("await ").trim_end_matches(';');
    let Some(open) = value.find(['(', '[']) else {
        return false;
    };
    let (callee, rest) = value.split_at(open);
    let is_read = has_any(value, &[".read_text()", ".read()", "readFileSync("]);
    let is_ident = |b: u8| b.is_ascii_alphanumeric() || b"_.:!".contains(&b);
    let last = callee.rsplit(['.', ':']).next().unwrap_or_default();
    let texts = rest.matches(['"', '\'']).count();
    let is_getter = GETTERS.contains(&last.trim_end_matches('!')) || callee == "env.str";
    callee.bytes().all(is_ident)
        && (is_getter || is_read)
        && rest.trim_end().ends_with([')', ']'])
        && (texts <= 2 || is_read)
        && (texts >= 2 || !rest.contains([',', ' ']))
}

/// Whether it is a regular expression.
fn is_pattern(value: &str) -> bool {
    value.starts_with(['(', '[', '^', '\\'])
        && ["\\S", "\\w", "\\d", ".*", ".+", "[^"]
            .iter()
            .any(|p| value.contains(p))
}

/// Whether it is the path of a file, with an end that says so.
fn is_file(value: &str) -> bool {
    let Some((path, extension)) = value.rsplit_once('.') else {
        return false;
    };
    EXTENSIONS.split(' ').any(|e| e == extension)
        && path.contains('/')
        && !path.contains("://")
        && path
            .split(['/', '.', '-', '_'])
            .all(|part| is_word_like(part) && is_made_of(part, b""))
}

fn is_number(value: &str) -> bool {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == '%');
    let unit = value.len() - digits.len();
    unit <= 7
        && digits.bytes().any(|b| b.is_ascii_digit())
        && digits
            .bytes()
            .all(|b| b.is_ascii_digit() || b".:-_+,TZ ".contains(&b))
        && (digits.len() <= 5 || unit == 0)
}

/// Whether it is a duration or a range: `6.hours`, `1.day.to_i`, `PT15M`, `10..128`.
fn is_duration(value: &str) -> bool {
    let value = value.trim_end_matches(".to_i");
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = value.split_at(digits);
    let unit = rest.trim_start_matches([' ', '.']);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let is_iso = value.strip_prefix('P').is_some_and(|rest| {
        rest.len() > 1
            && rest.len() < 10
            && rest.bytes().any(|b| b.is_ascii_digit())
            && rest
                .bytes()
                .all(|b| b.is_ascii_digit() || b"TYMWDHS".contains(&b))
    });
    is_iso
        || (1..=5).contains(&number.len())
            && (UNITS.split(' ').any(|u| u == unit) || rest.starts_with("..") && is_number(unit))
}

/// Whether a token is made of names of algorithms, digits, and what joins them.
pub fn is_algorithm(token: &str) -> bool {
    let mut rest = token.to_ascii_lowercase();
    for name in ALGORITHMS.split(' ') {
        rest = rest.replace(name, "");
    }
    rest.len() < token.len() && rest.bytes().filter(u8::is_ascii_alphabetic).count() <= 2
}

/// Whether it is a version of three numbers, or a time as in RFC 3339.
pub(super) fn is_version_or_time(value: &str) -> bool {
    let version = value.trim_start_matches(['~', '^', '=']);
    let mut parts = version.split('.');
    let is_numbers = |p: &str| (1..=4).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit());
    let is_version = (0..3).all(|_| parts.next().is_some_and(is_numbers)) && parts.next().is_none();
    let bytes = value.as_bytes();
    let is_time = bytes.len() >= 19
        && bytes.get(4) == Some(&b'-')
        && bytes.get(7) == Some(&b'-')
        && matches!(bytes.get(10), Some(b'T' | b' '))
        && bytes
            .iter()
            .all(|b| b.is_ascii_digit() || b"-:.TZ+ ".contains(b));
    is_version || is_time
}

/// Whether a text begins as a public key, a certificate or an image does.
pub fn is_public_data(text: &str) -> bool {
    let text = text.trim();
    let begins = [
        "iVBORw0KGgo",
        "/9j/4",
        "R0lGOD",
        "LS0tLS1CRUdJTiBDRVJUSUZJQ0FUR",
        "AwEAA",
        "AAAAC3NzaC1lZDI1NTE5",
        "AAAAB3NzaC1",
        "AAAAE2VjZHNhLXNoYTIt",
        "ssh-ed25519 AAAA",
        "ssh-rsa AAAA",
        "ecdsa-sha2-",
        "pk_live_",
        "pk_test_",
        "pk.eyJ",
    ];
    begins.iter().any(|b| text.starts_with(b)) && text.len() >= 24
}

/// The rest behind a variable at the beginning of a value.
fn behind_variable(value: &str) -> &str {
    let pairs = [("${", "}"), ("{{", "}}"), ("%", "%")];
    let rest = pairs
        .iter()
        .find_map(|(open, close)| Some(value.strip_prefix(open)?.split_once(close)?.1));
    rest.unwrap_or(value)
}

fn is_path(value: &str) -> bool {
    let value = behind_variable(value);
    let begins = begins_with_any(value, &["/", "./", "../", "~/", "file:", "C:\\", "unix:"]);
    begins && !value.contains(char::is_whitespace) && !value.bytes().any(|b| b"=+".contains(&b))
}

fn is_plain_url(value: &str) -> bool {
    value.contains("://") && !value.contains(['@', '?']) && !value.contains(char::is_whitespace)
}

/// Whether it is a URL with a signature, which is a secret by its own name.
fn is_signed_url(value: &str) -> bool {
    value.contains("://")
        && !value.contains(char::is_whitespace)
        && has_any(&value.to_ascii_lowercase(), &["sig=", "signature="])
}

/// Whether it is the name of a file with a key or a certificate, without a directory.
fn is_bare_file(value: &str) -> bool {
    value.rsplit_once('.').is_some_and(|(name, extension)| {
        matches!(
            extension,
            "pem" | "key" | "crt" | "cer" | "p12" | "pfx" | "jks" | "der" | "kdbx"
        ) && is_label_of(name)
    })
}

/// Whether it is a word such as `scram-sha-256`, `md5` or `lax`.
fn is_setting(value: &str) -> bool {
    let lower = value.to_ascii_lowercase();
    let is_word = lower
        .bytes()
        .all(|b| b.is_ascii_alphabetic() || b"_- .,".contains(&b));
    let is_method = value.len() < 24 && METHODS.split(' ').any(|m| lower.contains(m));
    (is_word && value.len() < 24) || is_method || is_algorithm(value) || is_duration(value)
}

/// Whether it is a name such as `app.kubernetes.io/name`: letters without a digit, and what joins them.
pub fn is_label(value: &str) -> bool {
    let is_joined = |b: u8| b.is_ascii_alphabetic() || b"._/-: ,=".contains(&b);
    value.bytes().all(is_joined)
        && value
            .split(['.', '/', '-', '_', ':', ' ', ',', '='])
            .all(is_word_like)
}

/// Whether it is the number of a public key, as GnuPG writes it.
fn is_key_id(value: &str) -> bool {
    value
        .strip_prefix("0x")
        .is_some_and(|id| [8, 16, 40].contains(&id.len()) && is_hex(id))
}

/// Whether it is the name of a host or a package, or a list of them.
fn is_host(value: &str) -> bool {
    value.split([',', '=']).all(|name| {
        name.contains('.') && is_label(&name.replace(|c: char| c.is_ascii_digit(), ""))
            || is_label(name)
    }) && value.matches('.').count() >= 2
}

/// Whether a value has settings of a connection, each with a name of its own.
fn is_connection(value: &str) -> bool {
    let is_name = |name: &str| {
        !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_alphabetic() || b"_ ".contains(&b))
    };
    let separator = if value.contains(';') { ';' } else { ' ' };
    let parts = value
        .split(separator)
        .map(str::trim)
        .filter(|p| !p.is_empty());
    let mut count = 0;
    parts.clone().all(|part| {
        count += 1;
        part.split_once('=')
            .is_some_and(|(name, value)| is_name(name) && !value.is_empty())
    }) && count >= 2
}

/// Whether it is the name of an object, which may have a number.
pub fn is_label_of(value: &str) -> bool {
    is_label(&value.trim().replace(|c: char| c.is_ascii_digit(), ""))
}

/// The length of the user and the colon in `user:password`.
pub fn user_before(value: &str) -> Option<usize> {
    let (user, password) = value.split_once(':')?;
    let is_user = |b: u8| b.is_ascii_alphanumeric() || b"_.-@".contains(&b);
    let is_named = !user.is_empty() && user.len() <= 40 && user.bytes().all(is_user);
    (is_named
        && !is_random(user)
        && !password.is_empty()
        && !password.contains(char::is_whitespace))
    .then_some(user.len() + 1)
}

/// Whether a value is a secret, of a key that is judged so.
pub fn is_secret(verdict: Verdict, value: &str) -> bool {
    let value = value.trim();
    let lower = value.to_ascii_lowercase();
    if WORDS.contains(&lower.as_str())
        && (verdict != Verdict::Password
            || !["0", "1", "default", "read", "write"].contains(&value))
    {
        return false;
    }
    if is_reference(value) || is_public_data(value) || is_version_or_time(value) {
        return false;
    }
    // Its password stands behind a name of its own.
    if verdict == Verdict::Strong
        && (is_connection(value) || lower.contains(';') && has_any(&lower, &["password=", "pwd="]))
    {
        return false;
    }
    match verdict {
        Verdict::Plain | Verdict::Unknown => false,
        Verdict::Password => true,
        Verdict::Strong => {
            !(is_number(value) && value.len() < 6
                || is_duration(value)
                || is_path(value)
                || is_bare_file(value)
                || is_signed_url(value)
                || is_plain_url(value) && !value.contains("hooks"))
        }
        Verdict::Weak => {
            let is_other =
                is_number(value) || is_path(value) || is_plain_url(value) || is_key_id(value);
            value.len() >= 6
                && !is_other
                && !is_setting(value)
                && !is_label(value)
                && !is_host(value)
        }
    }
}

/// Whether a token is a secret by how it begins.
pub fn has_shape(token: &str) -> bool {
    if PREFIXES
        .iter()
        .any(|(prefix, least)| token.len() >= *least && token.starts_with(prefix))
    {
        return !token.starts_with("eyJ") || token.contains('.');
    }
    let md5 = token
        .strip_prefix("md5")
        .is_some_and(|rest| rest.len() == 32 && is_hex(rest));
    md5 || HASHES
        .iter()
        .any(|prefix| token.starts_with(prefix) && token.len() >= prefix.len() + 8)
}

/// The length of a stored password in a line of fields: a colon ends it.
pub fn hash_length(text: &str) -> usize {
    let end = text.find(':').filter(|_| text.starts_with('$'));
    end.unwrap_or(text.len())
}

/// The offset at which a stored password begins in a token such as `name:$apr1$…`.
pub fn hash_in(token: &str) -> Option<usize> {
    token
        .match_indices([':', '"', '\''])
        .map(|(at, _)| at + 1)
        .take(4)
        .find(|at| token.get(*at..).is_some_and(has_shape))
}

/// Whether it is a number of at least four digits, which signs may group: `031-45-154`.
pub fn is_digits(value: &str) -> bool {
    let value = value.trim();
    (4..=14).contains(&value.len())
        && value
            .bytes()
            .all(|b| b.is_ascii_digit() || b == b'-' || b == b' ')
}

/// The text that a value has in Base64, if it is one.
pub fn decoded(value: &str) -> Option<String> {
    let body = value.trim().trim_end_matches('=');
    let mut out = Vec::with_capacity(body.len());
    let (mut bits, mut count) = (0_u32, 0_u32);
    for byte in body.bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(digit)) & 0xffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push(u8::try_from(bits >> count & 0xff).unwrap_or_default());
        }
    }
    let text = String::from_utf8(out).ok()?;
    let is_text = |c: char| !c.is_control() || c.is_ascii_whitespace();
    (!text.is_empty() && text.chars().all(is_text)).then_some(text)
}

/// Whether it is a user and a password in Base64.
pub fn is_encoded_login(value: &str) -> bool {
    let is_short = value.len() <= 400 && value.len() >= 8;
    is_short
        && decoded(value).is_some_and(|text| {
            text.is_ascii()
                && text.split_once(':').is_some_and(|(user, password)| {
                    !user.is_empty() && !password.is_empty() && !user.contains(char::is_whitespace)
                })
        })
}

/// Whether a value of a Secret of Kubernetes is a setting, in Base64: a port, a host, a switch, a certificate.
pub fn is_encoded_setting(value: &str) -> bool {
    decoded(value).is_some_and(|text| {
        let text = text.trim();
        let modes = [
            "verify-full",
            "verify-ca",
            "require",
            "prefer",
            "disable",
            "production",
        ];
        WORDS.contains(&text.to_ascii_lowercase().as_str())
            || modes.contains(&text)
            || is_number(text) && text.len() < 6
            || is_plain_url(text)
            || is_host(text)
            || text.starts_with("-----BEGIN CERTIFICATE")
    })
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_uuid(text: &str) -> bool {
    let mut parts = text.split('-');
    let lengths = [8, 4, 4, 4, 12];
    lengths
        .iter()
        .all(|n| parts.next().is_some_and(|p| p.len() == *n && is_hex(p)))
        && parts.next().is_none()
}

/// A part of a name: letters, digits, or letters and a few digits behind.
fn is_word_like(part: &str) -> bool {
    let letters = part.trim_end_matches(|c: char| c.is_ascii_digit());
    let digits = part.len() - letters.len();
    let is_case = letters.bytes().all(|b| b.is_ascii_lowercase())
        || letters.bytes().all(|b| b.is_ascii_uppercase())
        || letters
            .bytes()
            .skip(1)
            .filter(u8::is_ascii_uppercase)
            .count()
            * 5
            <= letters.len();
    let is_alphabetic = letters.bytes().all(|b| b.is_ascii_alphabetic());
    (is_alphabetic
        && is_case
        && letters.len() <= 18
        && (digits <= 5 || letters.is_empty() && digits <= 14))
        || part.len() <= 4
}

fn entropy(text: &str) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in text.bytes() {
        if let Some(count) = counts.get_mut(usize::from(byte)) {
            *count += 1;
        }
    }
    let length = f64::from(u32::try_from(text.len()).unwrap_or(u32::MAX)).max(1.0);
    let share = |count: u32| f64::from(count) / length;
    let bits = counts
        .iter()
        .filter(|n| **n > 0)
        .map(|n| share(*n) * share(*n).log2());
    -bits.sum::<f64>()
}

/// Whether a token is a path of lower-case words: an absolute one, or one of several folders. Base64 has capitals.
fn is_path_of_words(token: &str) -> bool {
    let has_folders = token.starts_with('/') || token.matches('/').count() >= 2;
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"/._-".contains(&b);
    let mut words = token.split(['-', '_', '/', '.']);
    has_folders && token.bytes().all(is_plain) && words.all(is_path_word)
}

/// Whether a word is one of a language, or is short and has few digits, in two places at most: `e2fsprogs`, `x86`, `k8s`. A longer one may be a token.
fn is_path_word(word: &str) -> bool {
    if is_word_like(word) {
        return true;
    }
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    let numbers = word.split(|c: char| !c.is_ascii_digit());
    let is_number = digits == word.len() && digits <= 14;
    let longest = if digits == 0 { 24 } else { 12 };
    word.len() <= longest
        && numbers.filter(|n| !n.is_empty()).count() <= 2
        && (digits <= 4 || is_number)
}

/// Whether a token of letters, digits and `+ / = _ -` is random.
pub fn is_random(token: &str) -> bool {
    if is_path_of_words(token) {
        return false;
    }
    let token = token.trim_matches(['=', '-', '_', '/', '+']);
    if token.len() < MIXED_MIN || is_uuid(token) || is_resource_id(token) {
        return false;
    }
    let mut parts = token
        .split(['-', '_', '/', '.', '=', '+'])
        .filter(|p| !p.is_empty());
    if parts.all(is_word_like) {
        return false;
    }
    if is_hex(token) {
        return token.len() >= HEX_MIN && entropy(token) >= HEX_BITS_MIN;
    }
    let (mut upper, mut lower, mut digits, mut changes) = (0, 0, 0, 0_usize);
    let mut before = 0;
    for byte in token.bytes() {
        let class = match byte {
            b'A'..=b'Z' => 1,
            b'a'..=b'z' => 2,
            b'0'..=b'9' => 3,
            _ => 4,
        };
        match class {
            1 => upper += 1,
            2 => lower += 1,
            3 => digits += 1,
            _ => {}
        }
        changes += usize::from(before != 0 && class != before);
        before = class;
    }
    let is_mixed = match (upper > 0, lower > 0, digits > 0) {
        (true, true, true) if token.len() < TOKEN_MIN => changes * 5 >= token.len() * 2,
        _ if token.len() < TOKEN_MIN => false,
        (true, true, true) => changes * 5 >= token.len(),
        (_, _, true) => changes >= 5 && changes * 6 >= token.len(),
        (true, true, false) => changes * 5 >= token.len() * 2,
        _ => false,
    };
    is_mixed && entropy(token) >= BITS_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_tokens_are_told_from_names() {
        for random in [
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "a8f5f167f44f4964e6c998dee827110c",
            "Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MA==",
            "q3Jd9fKx0vLm2Zp8Rt5Yw1Bn",
            "kP7xQ2mZ9vR4tY8w",
            "f7k2m9x4q1w8e5r3t6y0u2i7",
            "QmFzZTY0RW5jb2RlZFNlY3JldA",
            "/K7MDENG/bPxRfiCYwJalrXUtnFEMIEXAMPLEKEY",
            "/vxoloaqk1/zhdihl6zOJol+c2wq",
            "/run/f7k2m9x4q1w8e5r3t6y0u2i7",
            "/a8f5f167f44f4964e6c998dee827110c",
        ] {
            assert!(is_random(random), "{random}");
        }
        for name in [
            "max_parallel_maintenance_workers",
            "/usr/lib/postgresql/17/bin/postgres",
            "/usr/lib/x86_64-linux-gnu/e2fsprogs/e2scrub_all_cron",
            "11/dist-packages/s3cmd/k8s_x86_e2fsprogs_i386",
            "123e4567-e89b-12d3-a456-426614174000",
            "ec2-10-20-30-40-eu-central-1",
            "org/springframework/boot/autoconfigure",
            "2026-11-20T06-40-49-000000",
            "AbstractSingletonProxyFactoryBean",
            "Win32_ProcessStart2",
            "x86_64-linux-gnu17",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "registry-example-com/team/app-server",
            "x86_64-unknown-linux-gnu-gcc12",
        ] {
            assert!(!is_random(name), "{name}");
        }
    }

    #[test]
    fn values_are_judged_by_their_keys() {
        for (verdict, value, expected) in [
            (Verdict::Password, "x", true),
            (Verdict::Password, "${DB_PASSWORD}", false),
            (Verdict::Password, "${A:-geheim}", true),
            (Verdict::Password, "false", false),
            (Verdict::Password, "/etc/x", true),
            (Verdict::Password, "1234", true),
            (Verdict::Strong, "/etc/key", false),
            (Verdict::Strong, "3600", false),
            (Verdict::Strong, "https://h/x", false),
            (Verdict::Strong, "abc", true),
            (Verdict::Weak, "scram-sha-256", false),
            (Verdict::Weak, "md5", false),
            (Verdict::Weak, "k3v9x2m1", true),
            (Verdict::Password, "{{ vault_pw }}", false),
            (Verdict::Password, "<password>", false),
            (Verdict::Password, "$VAR_1", false),
            (Verdict::Password, "$ecret", true),
            (Verdict::Unknown, "x", false),
        ] {
            assert_eq!(is_secret(verdict, value), expected, "{verdict:?} {value}");
        }
        assert_eq!(hash_in("bob:$apr1$abc$defghijk"), Some(4));
        assert!(has_shape("md5a8f5f167f44f4964e6c998dee827110c") && !has_shape("md5sum"));
    }
}
