//! The URI form of connection settings: `postgresql://[user[:password]@][host[:port],…][/dbname][?keyword=value&…]`.
//!
//! PostgreSQL: src/interfaces/libpq/fe-connect.c, conninfo_uri_parse_options.

use super::conninfo::{Settings, config, keyword};
use crate::error::{Error, Result};
use crate::text::percent_decoded;

pub(super) fn parse(text: &str) -> Result<Settings> {
    let rest = text
        .split_once("://")
        .map(|(_, rest)| rest)
        .unwrap_or_default();
    let (rest, query) = rest
        .split_once('?')
        .map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let (authority, dbname) = rest
        .split_once('/')
        .map_or((rest, None), |(a, d)| (a, Some(d)));
    let (userinfo, hosts) = authority
        .rsplit_once('@')
        .map_or((None, authority), |(u, h)| (Some(u), h));
    let mut settings = Settings::new();
    let mut put = |name: &'static str, value: &str| -> Result<()> {
        if !value.is_empty() {
            settings.insert(name, decode(value)?);
        }
        Ok(())
    };
    if let Some(userinfo) = userinfo {
        let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
        put("user", user)?;
        put("password", password)?;
    }
    put("dbname", dbname.unwrap_or_default())?;
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = host_and_port(host)?;
        names.push(name);
        ports.push(port);
    }
    // A list of nothing but empty names means the default; commas stay, they count the hosts.
    put("host", names.join(",").as_str())?;
    if ports.iter().any(|port| !port.is_empty()) {
        put("port", ports.join(",").as_str())?;
    }
    for pair in query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
    {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(broken("a parameter has no \"=\""));
        };
        let (name, value) = (decode(name)?, decode(value)?);
        match (name.as_str(), value.as_str()) {
            ("ssl", "true") => settings.insert("sslmode", "require".to_owned()),
            _ => settings.insert(keyword(&name)?, value),
        };
    }
    Ok(settings)
}

fn host_and_port(text: &str) -> Result<(&str, &str)> {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else {
            return Err(broken("an IPv6 address has no \"]\""));
        };
        return match after.strip_prefix(':') {
            Some(port) => Ok((address, port)),
            None if after.is_empty() => Ok((address, "")),
            None => Err(broken("something follows an IPv6 address")),
        };
    }
    Ok(text.split_once(':').unwrap_or((text, "")))
}

fn broken(what: &str) -> Error {
    config(format!("connection URI cannot be read: {what}"))
}

fn decode(text: &str) -> Result<String> {
    // As libpq, this refuses a zero byte, too.
    let bytes = percent_decoded(text).filter(|_| !text.contains("%00"));
    let wrong = || broken("a percent sign is not followed by two hexadecimal digits");
    String::from_utf8(bytes.ok_or_else(wrong)?).map_err(|_| broken("it is not UTF-8"))
}
