//! Names of keys: which of them say that their value is a secret, and which that it is none.

use super::has_any;

/// The verdict that a key's name alone allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The value is no secret, however random it looks.
    Plain,
    /// The name says nothing.
    Unknown,
    /// The value is a secret when it does not look like a setting.
    Weak,
    /// The value is a secret when it is not a path, a number or a switch.
    Strong,
    /// The value is a secret, whatever it looks like.
    Password,
}

/// Words that make the value a password.
const PASSWORDS: &str = "password passwords passwd passphrase passcode passwort pass pwd pw kennwort wachtwoord motdepasse mdp contraseña contrasena senha hasło haslo \
    heslo lösenord losenord passord adgangskode kodeord salasana jelszo jelszó parola parool şifre sifre lozinka geslo slaptazodis clave passe sandi pswd psw passw paswd \
    pword passwrd пароль 密码 密碼 口令 パスワード 비밀번호";
/// Words that make the value a secret.
const STRONG: &str = "authtok secret secrets token tokens apikey credential credentials dsn psk bearer authorization webhook sas mnemonic totp otp masterauth authkey hmac \
    sharedkey connectionstring connstr kek dek community communities cleartext puk geheimnis geheim schluessel schlüssel zugangscode jeton clé cle clef chiave chave klucz sleutel \
    passkey pat setcookie accesscode";
/// Words that may do so.
const WEAK: &str = "auth cookie salt seed signing signature sig pin encryption private jwt pepper session creds cred";
/// A last word of these makes the value a setting about the secret, and not the secret.
const ABOUT: &str = "file files path paths dir directory name names ttl timeout expiry expires expiration expire lifetime age length len size min max count limit \
    enabled enable disabled disable required require policy policies type types method methods algorithm algorithms algo alg encryption mode \
    endpoint host hosts port header headers field prefix suffix format version issuer audience scope scopes realm provider server attempts \
    retries interval rotation ref arn command cmd hint env var user username login email domain class backend plugin group groups role roles \
    location strategy basic authentication days hours minutes seconds secs ms delay store manager service samesite secure httponly bits rounds \
    cost iterations query engine region bucket uri url validity window threshold level source reset change changes renewal cache driver \
    delegation title description db database namespace template id ids support fail failure request requests response page cipher ciphers \
    scheme regex rule rules maps at hasher hashers hashing strength identifier identifiers within validator validators zone prompt complexity history \
    quality lockout urls uris label labels selector generator hook attempt time timestamp date created updated flow model serializer encoder encoders audiences issuers \
    warning warnings warn duration subentry eval dialog module modules chat process helper helpers link links mount engines mounts event events supported flag flags dn rdn attr attrs \
    attribute attributes map mapping mappings context toggle logins grace sync program programs params param parameter parameters filter filters notice message messages usage permission \
    permissions subject subjects option options setting settings configmap status state checker handler handlers listener factory resolver converter extractor validation verification \
    action actions alias aliases bytes chars characters charset pattern patterns digits minute second hour day week month year quota quotas budget reuse column columns table schema placeholder \
    caption tooltip error errors sensitive kind protocol protocols address addr reqd";
/// A last word of these makes the value a setting where all values beside it are secrets.
const SETTINGS: &str = "file files path paths dir name names user username login email host hostname port url uri id backend source target type ttl mode enabled driver \
    engine provider external region version server method interval timeout arn ref kwargs level adapter encoding charset pool size format";
/// A last word of these makes random characters harmless.
const IDENTITIES: &str = "id ids uuid guid hash digest sha sha1 sha256 sha512 md5 commit revision rev checksum checksums etag fingerprint thumbprint image tag \
    integrity version build reference path file dir directory host hostname arn identifier serial name ref cert certificate ca crt pub label digests \
    resolved head recipient ami uid kid oid snapshot sentinel replica myid trace span request correlation traceparent traceid spanid zone \
    verification measurement dnskey cdnskey tlsa sshfp anchor anchors release md5sum sha1sum sha224sum sha256sum sha512sum cksum sum shasum blake2 blake3 volume subnet subnets gateway \
    distribution tenant subscription workspace lineage manifest layer blob crc32 crc32c narhash deployment pipeline branch";
/// Words before "code" that make it a secret.
const CODES: &str =
    "recovery backup unlock access security activation auth pairing setup scratch door alarm";
/// First words that make the value a setting.
const FIRST_ABOUT: &str =
    "allow require requires disable show hide forgot force max min num total count";
/// Endings that a name may have without a sign before them: `passwordeval`.
const ENDINGS: &str = "eval cmd command file path dialog type url uri ttl field header name names expiry length policy age file helper flags dn hash authentication changed change";
/// Words before "key" that make it a secret.
const KEYS: &str = "api access secret private encryption signing master auth account shared service deploy app license ssh session crypt hmac aes storage admin \
    client root server jwt cipher decryption webhook write read ingest integration preshared ssl tls backup wrapping unseal recovery agent \
    activation instance rest cookie csrf authentication wep wpa sec network nonce validation fernet libsodium gossip consumer merchant product enrollment setup join device";
/// Words before "key" that make it none.
const PLAIN_KEYS: &str = "primary foreign partition sort cache object index group host map hash row site verify trusted authorized column unique lookup search event metric label tag public \
    publishable config sharding shard dedup idempotency translation message dict json field order hot meta known project issue locale feature property attribute topology natural candidate sonar";

/// Whether a list, with spaces between its words, has this one.
pub(super) fn has(list: &str, word: &str) -> bool {
    list.split(' ').any(|one| one == word)
}

/// Cuts a name into words: at what is no letter or digit, and where upper case begins.
fn words(key: &str) -> Vec<String> {
    let key = super::ending(key);
    let mut words = vec![String::new()];
    let mut before: Option<char> = None;
    let mut chars = key.chars().peekable();
    while let Some(c) = chars.next() {
        let next_is_lower = chars.peek().is_some_and(|n| n.is_ascii_lowercase());
        let is_boundary = c.is_ascii_uppercase()
            && before.is_some_and(|b| {
                b.is_ascii_lowercase()
                    || b.is_ascii_digit()
                    || (b.is_ascii_uppercase() && next_is_lower)
            });
        if !c.is_alphanumeric() || is_boundary {
            words.push(String::new());
        }
        if c.is_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.extend(c.to_lowercase());
        }
        before = Some(c);
    }
    words.retain(|word| !word.is_empty());
    words
}

fn is_password_word(word: &str) -> bool {
    let word = word.trim_end_matches(|c: char| c.is_ascii_digit());
    has(PASSWORDS, word)
        || has_any(
            word,
            &["password", "passwd", "passphrase", "passwort", "kennwort"],
        )
        || (word.ends_with("pass") && !["bypass", "compass", "trespass"].contains(&word))
        || (word.ends_with("pwd") && word != "cwd")
        || (word.len() > 3 && word.ends_with("pw"))
}

fn is_strong_word(word: &str) -> bool {
    let word = word.trim_end_matches(|c: char| c.is_ascii_digit());
    has(STRONG, word)
        || has_any(
            word,
            &[
                "secret",
                "apikey",
                "accesskey",
                "privatekey",
                "credential",
                "authtoken",
            ],
        )
        || (word.ends_with("token") && word != "notoken")
        || word.ends_with("community")
        || (word.len() > 3 && word.ends_with("key") && KEYS.split(' ').any(|k| word.starts_with(k)))
}

/// Cuts such words as `passwordfile` in two, which say what the one says about the other.
fn cut(words: Vec<String>) -> Vec<String> {
    let cut_one = |word: String| {
        let begins = [
            "password",
            "passwd",
            "passphrase",
            "passwort",
            "pwd",
            "pass",
            "secret",
            "token",
            "credentials",
            "credential",
        ];
        let rest = begins
            .iter()
            .find_map(|begin| word.split_once(begin))
            .map(|(_, rest)| rest.to_owned())
            .filter(|rest| has(ENDINGS, rest));
        match rest {
            Some(rest) => {
                let first = word.trim_end_matches(rest.as_str()).to_owned();
                vec![first, rest]
            }
            None => vec![word],
        }
    };
    words.into_iter().flat_map(cut_one).collect()
}

/// Whether a key has the word for a password not at its end, and may be a setting of it.
pub fn is_qualified(key: &str) -> bool {
    let words = words(key);
    words.last().is_some_and(|last| !is_password_word(last))
}

/// Whether the value of a key is a number that a human enters at a door, a device or a card.
pub fn is_pin(key: &str) -> bool {
    let words = words(key);
    words
        .last()
        .is_some_and(|last| ["pin", "pins", "puk", "pincode", "cvv"].contains(&last.as_str()))
}

/// Whether a key names an object that holds a secret, as the charts of Helm do: `customUsersSecret`, `example.io/auth-secret`.
pub fn names_object(key: &str, value: &str) -> bool {
    let words = words(key);
    let Some((last, before)) = words.split_last() else {
        return false;
    };
    let previous = before.last().map_or("", String::as_str);
    let is_own = has(
        "client app application consumer shared webhook cookie session jwt api oauth hmac csrf form signing encryption bot master access refresh macaroon registration",
        previous,
    );
    let is_name = value.contains('-')
        && value.split('-').all(|part| {
            let letters = part.trim_end_matches(|c: char| c.is_ascii_digit());
            !letters.is_empty()
                && part.len() - letters.len() <= 1
                && letters.bytes().all(|b| b.is_ascii_lowercase())
        });
    let is_holder = has(
        "tls cert certificate password credentials creds user users pull key keys ca config env existing token tokens account license ssh git repo repository registry bucket backup storage \
         auth database db admin",
        previous,
    );
    let ends = [
        "-secret",
        "-secrets",
        "-tls",
        "-creds",
        "-credentials",
        "-auth",
        "-token",
        "-cert",
        "-key",
        "-keys",
        "-password",
        "-passwords",
        "-users",
        "-env",
        "-config",
        "-license",
        "-ca",
    ];
    let is_object = is_holder || ends.iter().any(|end| value.ends_with(end));
    last == "secret" && is_name && (key.contains('/') || !before.is_empty() && !is_own && is_object)
}

/// Whether a key may have both a user and a password.
pub fn is_login(key: &str) -> bool {
    let words = words(key);
    let logins = [
        "auth",
        "basicauth",
        "userpass",
        "credentials",
        "creds",
        "login",
        "userpwd",
    ];
    words
        .last()
        .is_some_and(|last| logins.contains(&last.as_str()))
        && !words.iter().any(|w| is_password_word(w) && w.len() < 8)
}

/// Whether a key has more than one secret, or the names of some.
pub fn is_plural(key: &str) -> bool {
    let words = words(key);
    words
        .last()
        .is_some_and(|last| ["secrets", "keys", "tokens", "credentials"].contains(&last.as_str()))
}

/// Whether all that is in a group of this name is secret.
pub fn is_group(name: &str) -> bool {
    ["secrets", "passwords", "tokens", "credentials"].contains(&name)
}

/// Whether a member named "key" of an object of this name is a secret: `jwt: {key: …}`.
pub fn has_secret_key(above: &str) -> bool {
    words(above).last().is_some_and(|last| has(KEYS, last))
}

/// Whether a key beside secrets is a setting.
pub fn is_about(key: &str) -> bool {
    words(key).last().is_some_and(|last| has(SETTINGS, last))
}

/// Judges a key by its name.
pub fn judge(key: &str) -> Verdict {
    let words = cut(words(key));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Some((&last, before)) = words.split_last() else {
        return Verdict::Unknown;
    };
    let previous = before.last().copied().unwrap_or_default();
    let has_password = words.iter().any(|w| is_password_word(w));
    let is_public = ["public", "publishable", "pub", "publickey", "pubkey"]
        .iter()
        .any(|w| words.contains(w))
        && !matches!(last, "salt" | "secret");
    // The hash of a file, and an object that is there already, by its name.
    let is_named =
        words.first() == Some(&"checksum") || words.first() == Some(&"existing") && !has_password;
    let is_off = words.first() == Some(&"no") && words.len() == 2
        || matches!(
            words.as_slice(),
            [.., "initial", "cluster", "token"] | ["initial", "token"]
        );
    // Directives that pass a request on, names of objects, and hashes of public keys.
    let is_other = matches!(
        words.as_slice(),
        [
            "proxy" | "fastcgi" | "uwsgi" | "grpc" | "scgi" | "memcached",
            "pass"
        ]
    ) || matches!(
        words.as_slice(),
        ["nopasswd"]
            | ["pgpass"]
            | [.., "askpass"]
            | ["load", "credential"]
            | ["auth", "user", "pass"]
            | ["existing", "secret"]
            | ["pin", "sha256"]
            | ["secretary"]
    );
    if is_public && !has_password || is_named || is_off || is_other {
        return Verdict::Plain;
    }
    let numbered = last.trim_end_matches(|c: char| c.is_ascii_digit());
    let is_key = matches!(numbered, "key" | "keys")
        || (matches!(last, "data" | "value" | "pem" | "base64" | "b64") && previous == "key");
    let is_code = matches!(last, "code" | "codes") && has(CODES, previous);
    let verdict = if words.iter().any(|w| is_password_word(w)) {
        Verdict::Password
    } else if words.iter().any(|w| is_strong_word(w))
        || words.windows(2).any(|pair| {
            pair == ["connection", "string"]
                || pair == ["conn", "str"]
                || pair == ["clear", "text"]
                || pair == ["secure", "string"]
                || pair == ["erlang", "cookie"]
                || pair == ["release", "cookie"]
        })
        || is_code
        || matches!(last, "salt" | "pepper") && words.len() > 1 && !words.contains(&"cache")
        || is_key && before.iter().any(|w| has(KEYS, w))
    {
        Verdict::Strong
    } else if is_key && before.iter().any(|w| has(PLAIN_KEYS, w)) {
        return Verdict::Plain;
    } else if is_key || words.iter().any(|w| has(WEAK, w)) {
        Verdict::Weak
    } else {
        Verdict::Unknown
    };
    // Beside a secret these words say which one it is, and not what about it.
    if last == "id" && previous == "secret" {
        return Verdict::Strong;
    }
    if verdict == Verdict::Password
        && matches!(
            last,
            "db" | "database" | "cache" | "email" | "reset" | "key"
        )
    {
        return Verdict::Weak;
    }
    // The cookie that holds a token has a name.
    if verdict == Verdict::Strong && last == "cookie" && !matches!(previous, "erlang" | "release") {
        return Verdict::Weak;
    }
    let is_identity = matches!(
        last,
        "fingerprint" | "thumbprint" | "checksum" | "etag" | "uuid"
    );
    if verdict == Verdict::Weak && is_identity {
        return Verdict::Plain;
    }
    let is_first_about = words.first().is_some_and(|first| has(FIRST_ABOUT, first));
    // The name of a secret ends so: it may begin with what it is for, as the one of a page for forgotten passwords.
    let is_of_secret = words.len() > 2 && matches!(last, "password" | "secret" | "token" | "key");
    if verdict > Verdict::Unknown && words.len() > 1 && is_first_about && !is_of_secret {
        return Verdict::Plain;
    }
    // A word of its own, such as dsn, is not about anything.
    if verdict > Verdict::Unknown && words.len() > 1 && has(ABOUT, last) {
        return Verdict::Plain;
    }
    match verdict {
        Verdict::Unknown if has(IDENTITIES, last) => Verdict::Plain,
        Verdict::Unknown
            if matches!(previous, "sha" | "md") && last.bytes().all(|b| b.is_ascii_digit()) =>
        {
            Verdict::Plain
        }
        verdict => verdict,
    }
}

/// Whether a name ends in a password, and is none of a package, which has hyphens.
pub(super) fn is_password(key: &str) -> bool {
    let words = words(key);
    !key.contains('-') && words.last().is_some_and(|word| is_password_word(word))
}

/// Whether a text fits a pattern in which `*` stands for anything.
pub fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// As [`matches()`]; case does not count.
pub fn fits(pattern: &str, name: &str) -> bool {
    matches(&pattern.to_lowercase(), &name.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_is_secret() {
        for (verdict, names) in [
            (
                Verdict::Password,
                "password DB_PASSWORD PGPASSWORD MYSQL_PWD MAIL_PASS requirepass dbPassword sslpassword ldapbindpasswd auth-pass smtp.pass password_hash \
                 keyPassphrase rootpw_pw Kennwort mdp POSTGRES_PASSWORD insecure-password FORGOT_PASSWORD_SECRET",
            ),
            (
                Verdict::Strong,
                "API_KEY apiKey STRIPE_SECRET_KEY aws_secret_access_key token GITHUB_TOKEN accessToken DSN SENTRY_DSN private_key PrivateKey client-key-data \
                 connectionString WEBHOOK secretKeyBase clientSecret masterauth SLACK_WEBHOOK PresharedKey AccountKey _authToken jwtKey snmp_community clear-text PublicLinkSalt wep_key0 maxMindLicenseKey REQUIRE_JWT_SECRET",
            ),
            (
                Verdict::Weak,
                "auth COOKIE salt signing DEPLOYER_KEY key adminPasswordKey CACHE_KEY_SALT routing_key",
            ),
            (
                Verdict::Plain,
                "PASSWORD_FILE password_encryption TOKEN_TTL SECRET_NAME public_key PublicKey primary_key cache_key CLIENT_ID image git_commit auth_basic \
                 PasswordAuthentication ssl_key_file auth_type no-password WEBHOOK_URL host DB_HOST password_min_length tokenEndpoint secret_name AWS_ACCESS_KEY_ID checksum/secret \
                 existingSecret SSH_ASKPASS PASSWORD_HASHER password_strength recaptchaSiteKey traceparent \
                 forgot_password require_token maxTokens max_password_age",
            ),
            (
                Verdict::Unknown,
                "port bypass max_connections compass tokenizer passive keyboard monkey",
            ),
        ] {
            for name in names.split_whitespace() {
                assert_eq!(judge(name), verdict, "{name}");
            }
        }
    }

    #[test]
    fn patterns_have_stars() {
        assert!(fits("STRIPE_*", "stripe_key") && fits("*", "") && fits("a*b*c", "aXbYc"));
        assert!(!fits("STRIPE_*", "my_stripe_key") && !fits("ab", "abc") && !fits("a*b*c", "acb"));
        assert!(!fits("aa*aa", "aaa"));
    }
}
