//! Who may see the status page, and who may start jobs from it.
//!
//! With an authority of clients, everybody: no connection is made without a certificate of it. With a token, everybody who shows it: as a
//! bearer, or as the cookie that the login form sets. Without both, who comes over the loopback
//! address and names it as such: a page of the internet can make a browser come there under a name of its own, and must read nothing.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, COOKIE, HOST, ORIGIN};

use crate::config::Page;
use crate::config::agent::AgentTls;
use crate::config::secret::check_closed;
use crate::err;
use crate::error::{Code, Error, Result};

/// The cookie of who has logged in.
const COOKIE_NAME: &str = "pitr_page";
/// A shorter token could be guessed.
const TOKEN_MIN: usize = 24;
/// Longer files are no tokens.
const TOKEN_MAX: usize = 256;
/// The purpose for which the cookie is derived.
const PURPOSE: &str = "pitr 2026-11-25 cookie of the status page";

/// The door of the page.
pub(super) struct Door {
    keys: Option<Keys>,
    is_local: bool,
    is_encrypted: bool,
    /// Every client shows a certificate. A connection from before that was wanted may be without one.
    knows_clients: bool,
    has_actions: bool,
}

/// Hashes: they compare in constant time.
struct Keys {
    token: blake3::Hash,
    cookie: blake3::Hash,
}

/// Whether somebody may come in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Yes.
    In,
    /// After a login.
    Login,
    /// No, for this reason.
    Closed(&'static str),
}

impl Door {
    /// Makes the door of a page at this address.
    ///
    /// # Errors
    /// `Config` for a token that others may read, or that is none.
    pub(super) fn new(page: &Page, tls: &AgentTls, listen: SocketAddr) -> Result<Door> {
        let keys = page.token_file.as_deref().map(keys).transpose()?;
        Ok(Door {
            keys,
            is_local: listen.ip().is_loopback(),
            is_encrypted: tls.cert_file.is_some(),
            knows_clients: tls.client_ca_file.is_some(),
            has_actions: page.has_actions,
        })
    }

    /// Whether the token would cross a network.
    pub(super) fn is_exposed(&self) -> bool {
        self.keys.is_some() && !self.is_local && !self.is_encrypted
    }

    /// Whether jobs may be started from it.
    pub(super) fn has_actions(&self) -> bool {
        self.has_actions && (self.keys.is_some() || self.knows_clients)
    }

    /// Whether a request may see the page; `has_certificate` where its connection has shown one.
    pub(super) fn admit(&self, headers: &HeaderMap, has_certificate: bool) -> Admission {
        match &self.keys {
            _ if self.knows_clients && has_certificate => Admission::In,
            _ if self.knows_clients => Admission::Closed(
                "this connection was made before certificates of clients were asked for: connect again",
            ),
            Some(keys) if keys.open_for(headers) => Admission::In,
            Some(_) => Admission::Login,
            None if !self.is_local => Admission::Closed(
                "without token_file in [page], or tls.client_ca_file in [agent], it is served at the loopback address alone",
            ),
            None if !names_this_host(headers) => Admission::Closed(
                "without token_file in [page] it is asked for as localhost or 127.0.0.1 alone",
            ),
            None => Admission::In,
        }
    }

    /// The cookie for one who gives this token.
    pub(super) fn cookie(&self, token: &str) -> Option<String> {
        let keys = self.keys.as_ref()?;
        let cookie = keys.cookie.to_hex();
        let secure = if self.is_encrypted { "; Secure" } else { "" };
        (blake3::hash(token.as_bytes()) == keys.token)
            .then(|| format!("{COOKIE_NAME}={cookie}; Path=/; HttpOnly; SameSite=Strict{secure}"))
    }

    /// Whether a request that changes something was made by the page itself, or by no browser: a browser says where it comes from.
    pub(super) fn is_own(headers: &HeaderMap) -> bool {
        let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
        match text(ORIGIN.as_str()) {
            Some(origin) => {
                let place = origin.split_once("://").map(|(_, place)| place);
                place.is_some() && place == text(HOST.as_str())
            }
            None => text("sec-fetch-site").is_none_or(|site| site == "same-origin"),
        }
    }
}

impl Keys {
    fn open_for(&self, headers: &HeaderMap) -> bool {
        let bearers = headers.get_all(AUTHORIZATION).iter();
        let mut bearers = bearers.filter_map(|v| v.to_str().ok()?.strip_prefix("Bearer "));
        let cookies = headers.get_all(COOKIE).iter();
        let cookies = cookies.filter_map(|v| v.to_str().ok());
        let mut cookies = cookies
            .flat_map(|line| line.split(';'))
            .filter_map(|one| one.trim().strip_prefix(COOKIE_NAME)?.strip_prefix('='));
        bearers.any(|token| blake3::hash(token.as_bytes()) == self.token)
            || cookies.any(|c| blake3::Hash::from_hex(c).is_ok_and(|c| c == self.cookie))
    }
}

fn keys(path: &Path) -> Result<Keys> {
    let failed = |e| {
        err!(
            Config,
            "the token of the page cannot be read from \"{}\"",
            path.display()
        )
        .source(e)
    };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    check_closed(Code::Config, "token file", path, &metadata)?;
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let token = text.trim_end();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !(TOKEN_MIN..=TOKEN_MAX).contains(&token.len()) || !token.chars().all(is_plain) {
        return Err(no_token(path));
    }
    Ok(Keys {
        token: blake3::hash(token.as_bytes()),
        cookie: blake3::Hash::from(blake3::derive_key(PURPOSE, token.as_bytes())),
    })
}

fn no_token(path: &Path) -> Error {
    err!(
        Config,
        "\"{}\" holds no token: 24 to 256 letters, digits, \"-\", \"_\" and \".\"",
        path.display()
    )
    .hint("Write one: openssl rand -hex 32")
}

/// Whether the name by which it was asked for cannot be one that the internet gave to this address.
fn names_this_host(headers: &HeaderMap) -> bool {
    let host = headers
        .get(HOST)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let name = |name: &str| name.parse::<axum::http::HeaderName>().unwrap();
        let pairs = pairs.iter();
        pairs
            .map(|(n, value)| (name(n), value.parse().unwrap()))
            .collect()
    }

    fn is_closed(door: &Door, host: &str) -> bool {
        let admitted = door.admit(&headers(&[("host", host)]), false);
        matches!(admitted, Admission::Closed(_))
    }

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn door(token: Option<(&str, u32)>, listen: &str) -> Result<Door> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        if let Some((text, mode)) = token {
            write(&path, text, mode);
        }
        let page = Page {
            token_file: token.map(|_| path),
            has_actions: true,
            ..Page::default()
        };
        Door::new(&page, &AgentTls::default(), listen.parse().unwrap())
    }

    #[test]
    fn without_a_token_only_this_host_comes_in_and_starts_nothing() {
        let local = door(None, "127.0.0.1:9870").unwrap();
        assert!(!local.has_actions());
        for host in [
            "localhost:9870",
            "127.0.0.1:9870",
            "[::1]:9870",
            "LOCALHOST",
        ] {
            let admitted = local.admit(&headers(&[("host", host)]), false);
            assert_eq!(admitted, Admission::In, "{host}");
        }
        for host in ["evil.example:9870", "127.0.0.1.evil.example", ""] {
            assert!(is_closed(&local, host), "{host}");
        }
        let open = door(None, "0.0.0.0:9870").unwrap();
        assert!(is_closed(&open, "127.0.0.1"));
    }

    #[test]
    fn with_a_token_who_has_it_comes_in() {
        let line = format!("{TOKEN}\n");
        let door = door(Some((&line, 0o600)), "0.0.0.0:9870").unwrap();
        assert!(door.is_exposed() && door.has_actions());
        let bearer = |token: &str| {
            let token = format!("Bearer {token}");
            door.admit(&headers(&[("authorization", &token)]), false)
        };
        assert_eq!(bearer(TOKEN), Admission::In);
        for wrong in ["", "0", &TOKEN[1..], "0123456789abcdef0123456789abcdeF"] {
            assert_eq!(bearer(wrong), Admission::Login, "{wrong}");
            assert_eq!(door.cookie(wrong), None);
        }
        let set = door.cookie(TOKEN).unwrap();
        assert!(set.contains("HttpOnly; SameSite=Strict") && !set.contains(TOKEN));
        let cookie = set.split(';').next().unwrap();
        let with = |cookie: &str| door.admit(&headers(&[("cookie", cookie)]), false);
        assert_eq!(with(&format!("a=b; {cookie}")), Admission::In);
        assert_eq!(with("pitr_page=00"), Admission::Login);
    }

    #[test]
    fn tls_keeps_the_token_and_a_certificate_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        write(&path, TOKEN, 0o600);
        let mut page = Page {
            token_file: Some(path),
            has_actions: true,
            ..Page::default()
        };
        let mut tls = AgentTls {
            cert_file: Some("/c".into()),
            key_file: Some("/k".into()),
            client_ca_file: None,
        };
        let listen = "0.0.0.0:9870".parse().unwrap();
        let sealed = Door::new(&page, &tls, listen).unwrap();
        assert!(!sealed.is_exposed());
        assert!(sealed.cookie(TOKEN).unwrap().ends_with("; Secure"));
        let any = headers(&[("host", "db.example")]);
        assert_eq!(sealed.admit(&any, false), Admission::Login);
        page.token_file = None;
        let closed = Door::new(&page, &tls, listen).unwrap();
        assert!(is_closed(&closed, "db.example"));
        assert!(!closed.has_actions());
        tls.client_ca_file = Some("/a".into());
        let mutual = Door::new(&page, &tls, listen).unwrap();
        assert_eq!(mutual.admit(&any, true), Admission::In);
        assert!(mutual.has_actions());
        // A connection from before, with the right token or without.
        let old = mutual.admit(&any, false);
        assert!(matches!(old, Admission::Closed(why) if why.contains("connect again")));
        page.token_file = Some(folder.path().join("token"));
        let both = Door::new(&page, &tls, listen).unwrap();
        let token = headers(&[("authorization", &format!("Bearer {TOKEN}"))]);
        assert!(matches!(both.admit(&token, false), Admission::Closed(_)));
        assert_eq!(both.admit(&any, true), Admission::In);
    }

    #[test]
    fn a_token_that_others_read_or_that_is_short_is_refused() {
        for (text, mode) in [
            (TOKEN, 0o644),
            ("short", 0o600),
            ("", 0o600),
            ("a b c d e f g h i j k l m n o p", 0o600),
        ] {
            let e = door(Some((text, mode)), "127.0.0.1:9870").err().unwrap();
            assert_eq!(e.code(), Code::Config, "{text} {mode:o}");
            assert!(text.is_empty() || !e.to_string().contains(text), "{e}");
        }
    }

    #[test]
    fn only_the_page_itself_and_no_other_page_starts_jobs() {
        let own = |pairs: &[(&'static str, &str)]| Door::is_own(&headers(pairs));
        assert!(own(&[("host", "h:1"), ("origin", "http://h:1")]));
        let proxied = own(&[("host", "h"), ("origin", "https://h")]);
        assert!(proxied, "behind a proxy");
        assert!(own(&[("host", "h:1")]), "no browser");
        assert!(own(&[("host", "h:1"), ("sec-fetch-site", "same-origin")]));
        assert!(!own(&[("host", "h:1"), ("origin", "http://evil.example")]));
        assert!(!own(&[("host", "h:1"), ("origin", "null")]));
        assert!(!own(&[("host", "h:1"), ("sec-fetch-site", "cross-site")]));
    }
}
