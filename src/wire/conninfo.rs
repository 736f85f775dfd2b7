//! Connection settings as libpq understands them: keyword/value strings, `postgresql://` URIs, services, `PG…` variables, defaults.
//!
//! A setting is looked for in the string, then in the service, then in the environment; then libpq's default holds. Settings that
//! would weaken security if they were passed over are refused when they ask for something this client cannot do; settings that only
//! tune are accepted and have no effect.
//!
//! PostgreSQL: src/interfaces/libpq/fe-connect.c (conninfo_parse, conninfo_uri_parse, conninfo_add_defaults, parseServiceFile).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::Secret;
use crate::config::account::Account;
use crate::err;
use crate::error::{Error, Result};

/// How long a connection attempt may take for each address when `connect_timeout` is not set. libpq would wait for ever.
const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Socket directories tried without a host: Debian's and PostgreSQL's own.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];
const HOST_COUNT_MAX: usize = 64;

/// The treatment of a keyword.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// It has its effect.
    Works,
    /// It only tunes; accepted without effect.
    Ignored,
    /// Accepted with one of these values, because then there is nothing to do; refused otherwise.
    Only(&'static [&'static str]),
}

/// Every keyword of libpq 13–18 with its environment variable.
const KEYWORDS: &[(&str, &str, Use)] = &[
    ("host", "PGHOST", Use::Works),
    ("hostaddr", "PGHOSTADDR", Use::Works),
    ("port", "PGPORT", Use::Works),
    ("dbname", "PGDATABASE", Use::Works),
    ("user", "PGUSER", Use::Works),
    ("password", "PGPASSWORD", Use::Works),
    ("passfile", "PGPASSFILE", Use::Works),
    ("service", "PGSERVICE", Use::Works),
    ("servicefile", "PGSERVICEFILE", Use::Works),
    ("options", "PGOPTIONS", Use::Works),
    ("application_name", "PGAPPNAME", Use::Works),
    ("fallback_application_name", "", Use::Works),
    ("connect_timeout", "PGCONNECT_TIMEOUT", Use::Works),
    ("target_session_attrs", "PGTARGETSESSIONATTRS", Use::Works),
    ("channel_binding", "PGCHANNELBINDING", Use::Works),
    ("sslmode", "PGSSLMODE", Use::Works),
    ("sslrootcert", "PGSSLROOTCERT", Use::Works),
    ("sslcert", "PGSSLCERT", Use::Works),
    ("sslkey", "PGSSLKEY", Use::Works),
    ("keepalives", "", Use::Works),
    ("keepalives_idle", "", Use::Works),
    ("keepalives_interval", "", Use::Works),
    ("keepalives_count", "", Use::Works),
    ("tcp_user_timeout", "", Use::Works),
    ("replication", "", Use::Ignored),
    ("authtype", "PGAUTHTYPE", Use::Ignored),
    ("tty", "PGTTY", Use::Ignored),
    ("client_encoding", "PGCLIENTENCODING", Use::Ignored),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS", Use::Ignored),
    ("krbsrvname", "PGKRBSRVNAME", Use::Ignored),
    ("gsslib", "PGGSSLIB", Use::Ignored),
    ("gssdelegation", "PGGSSDELEGATION", Use::Ignored),
    ("sslcompression", "PGSSLCOMPRESSION", Use::Ignored),
    ("sslsni", "PGSSLSNI", Use::Ignored),
    ("sslkeylogfile", "", Use::Ignored),
    (
        "min_protocol_version",
        "PGMINPROTOCOLVERSION",
        Use::Only(&["3.0"]),
    ),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION", Use::Ignored),
    (
        "gssencmode",
        "PGGSSENCMODE",
        Use::Only(&["disable", "prefer"]),
    ),
    (
        "sslnegotiation",
        "PGSSLNEGOTIATION",
        Use::Only(&["postgres"]),
    ),
    ("sslpassword", "", Use::Only(&[""])),
    ("scram_client_key", "", Use::Only(&[""])),
    ("scram_server_key", "", Use::Only(&[""])),
    ("oauth_issuer", "", Use::Only(&[""])),
    ("oauth_client_id", "", Use::Only(&[""])),
    ("oauth_client_secret", "", Use::Only(&[""])),
    ("oauth_scope", "", Use::Only(&[""])),
    (
        "sslcertmode",
        "PGSSLCERTMODE",
        Use::Only(&["allow", "disable"]),
    ),
    ("sslcrl", "PGSSLCRL", Use::Only(&[""])),
    ("sslcrldir", "PGSSLCRLDIR", Use::Only(&[""])),
    ("requirepeer", "PGREQUIREPEER", Use::Only(&[""])),
    ("require_auth", "PGREQUIREAUTH", Use::Only(&[""])),
    (
        "ssl_min_protocol_version",
        "PGSSLMINPROTOCOLVERSION",
        Use::Only(&["", "TLSv1", "TLSv1.1", "TLSv1.2"]),
    ),
    (
        "ssl_max_protocol_version",
        "PGSSLMAXPROTOCOLVERSION",
        Use::Only(&["", "TLSv1.3"]),
    ),
];

/// Whether and how the connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Never encrypted.
    Disable,
    /// Encrypted only if the server insists.
    Allow,
    /// Encrypted if the server can.
    Prefer,
    /// Encrypted; the certificate is checked only if a root certificate file exists.
    Require,
    /// Encrypted; the certificate comes from a known authority.
    VerifyCa,
    /// Encrypted; the certificate comes from a known authority and names the host.
    VerifyFull,
}

/// Whether authentication is bound to the TLS channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBindingMode {
    /// Never.
    Disable,
    /// If the server can.
    Prefer,
    /// Always; otherwise the connection fails.
    Require,
}

/// Which servers of several hosts are acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetSession {
    /// Any.
    Any,
    /// One that takes writes.
    ReadWrite,
    /// One that takes no writes.
    ReadOnly,
    /// One that is not in recovery.
    Primary,
    /// One in recovery.
    Standby,
    /// One in recovery if there is one, else any.
    PreferStandby,
}

/// The source of the trusted root certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCertificates {
    /// A PEM file; `explicit` if it was named and therefore has to exist.
    File {
        /// The file.
        path: PathBuf,
        /// Whether it was named by the user.
        explicit: bool,
    },
    /// The authorities that the system trusts.
    System,
}

/// One place to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// How it is reached.
    pub address: HostAddress,
    /// TCP port, and suffix of the socket's name.
    pub port: u16,
}

/// How a host is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostAddress {
    /// A directory with the server's socket.
    Socket(PathBuf),
    /// A name or address, and the address to use instead of looking the name up.
    Tcp {
        /// The name that certificates and the password file are compared with.
        name: String,
        /// `hostaddr`.
        address: Option<IpAddr>,
    },
}

impl Host {
    /// The host as messages name it: `db1:5432`, `/var/run/postgresql:5432`.
    pub fn display(&self) -> String {
        match &self.address {
            HostAddress::Socket(directory) => format!("{}:{}", directory.display(), self.port),
            HostAddress::Tcp { name, .. } if name.contains(':') => {
                format!("[{name}]:{}", self.port)
            }
            HostAddress::Tcp { name, .. } => format!("{name}:{}", self.port),
        }
    }

    /// The socket's path, for a host reached by one.
    pub fn socket_path(&self) -> Option<PathBuf> {
        match &self.address {
            HostAddress::Socket(directory) => {
                Some(directory.join(format!(".s.PGSQL.{}", self.port)))
            }
            HostAddress::Tcp { .. } => None,
        }
    }

    /// The host as the password file names it: the default socket directories are `localhost`.
    pub(super) fn passfile_name(&self) -> String {
        match &self.address {
            HostAddress::Socket(directory)
                if SOCKET_DIRECTORIES.iter().any(|d| directory == Path::new(d)) =>
            {
                "localhost".to_owned()
            }
            HostAddress::Socket(directory) => directory.display().to_string(),
            HostAddress::Tcp { name, .. } => name.clone(),
        }
    }
}

/// Keep-alive probes of a TCP connection; `None` leaves the system's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive {
    /// Whether probes are sent at all.
    pub enabled: bool,
    /// Silence before the first probe.
    pub idle: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
    /// Lost probes before the connection is dead.
    pub count: Option<u32>,
    /// How long sent data may stay unacknowledged.
    pub user_timeout: Option<Duration>,
}

/// Everything needed to connect. It holds a password, so it is never printed.
#[derive(Clone)]
pub struct ConnInfo {
    /// Hosts in the order they are tried; at least one.
    pub hosts: Vec<Host>,
    /// The role.
    pub user: String,
    /// The database; replication connections do without.
    pub dbname: Option<String>,
    /// The password, if it was given with the settings.
    pub password: Option<Secret>,
    /// The password file.
    pub passfile: Option<PathBuf>,
    /// `options`: settings of the session as command line options of the server.
    pub options: Option<String>,
    /// How the session is named in pg_stat_activity and pg_stat_replication.
    pub application_name: String,
    /// Limit of an attempt at one address; `None` waits for ever.
    pub connect_timeout: Option<Duration>,
    /// Which servers are acceptable.
    pub target_session: TargetSession,
    /// Whether authentication is bound to the TLS channel.
    pub channel_binding: ChannelBindingMode,
    /// Whether and how the connection is encrypted.
    pub sslmode: SslMode,
    /// The source of the trusted root certificates; `None` if there is no home directory.
    pub root_certificates: Option<RootCertificates>,
    /// The client's own certificate and key; files that need not exist unless named.
    pub client_certificate: Option<ClientCertificate>,
    /// Keep-alive probes.
    pub keep_alive: KeepAlive,
}

/// Files of a client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// PEM file of the certificate chain.
    pub certificate: PathBuf,
    /// PEM file of the key, without passphrase.
    pub key: PathBuf,
    /// Whether the certificate was named by the user and has to exist.
    pub explicit: bool,
}

/// The outside world that settings come from, as a value.
#[derive(Clone, Default)]
pub struct Environment {
    /// Environment variables.
    pub variables: BTreeMap<String, String>,
    /// The home directory.
    pub home: Option<PathBuf>,
    /// The operating system's name of the user, the default role.
    pub user: Option<String>,
}

impl Environment {
    /// The process's own environment. Variables that are not Unicode are left out.
    pub fn of_process() -> Self {
        let variables: BTreeMap<_, _> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let account = Account::of_process();
        let (user, home) = account.map(|a| (a.name, a.home)).unzip();
        let variable = |name: &str| variables.get(name).cloned();
        Environment {
            home: variable("HOME").map(PathBuf::from).or(home),
            user: user
                .or_else(|| variable("USER"))
                .or_else(|| variable("LOGNAME")),
            variables,
        }
    }
}

pub(super) type Settings = BTreeMap<&'static str, String>;

impl ConnInfo {
    /// Reads a conninfo string or URI and fills in service, environment and defaults.
    ///
    /// # Errors
    /// `Config` if the text cannot be parsed, a keyword or value is not known, or a service is not there. The message never holds the
    /// text itself.
    pub fn resolve(text: &str, environment: &Environment) -> Result<Self> {
        let settings = settings(text, environment)?;
        build(&settings, environment)
    }

    /// The hosts as messages name them.
    pub fn display_hosts(&self) -> String {
        let hosts: Vec<_> = self.hosts.iter().map(Host::display).collect();
        hosts.join(", ")
    }
}

/// Reads a connection string, and fills in service and environment.
pub(super) fn settings(text: &str, environment: &Environment) -> Result<Settings> {
    let mut settings = if text.starts_with("postgresql://") || text.starts_with("postgres://") {
        super::uri::parse(text)?
    } else {
        parse_pairs(text)?
    };
    add_service(&mut settings, environment)?;
    for (keyword, variable, _) in KEYWORDS {
        if let Some(value) = environment.variables.get(*variable)
            && !settings.contains_key(keyword)
        {
            settings.insert(keyword, value.clone());
        }
    }
    Ok(settings)
}

/// A value of a connection string, in quotes.
pub fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

pub(super) fn config(message: String) -> Error {
    Error::new(crate::error::Code::Config, message)
}

pub(super) fn keyword(name: &str) -> Result<&'static str> {
    let found = KEYWORDS.iter().find(|(keyword, ..)| *keyword == name);
    if let Some((keyword, ..)) = found {
        return Ok(keyword);
    }
    let error = config(format!(
        "invalid connection option \"{}\"",
        name.escape_debug()
    ));
    let near = |keyword: &&str| strsim::damerau_levenshtein(keyword, name);
    match KEYWORDS
        .iter()
        .map(|(keyword, ..)| *keyword)
        .min_by_key(near)
    {
        Some(nearest) if near(&nearest) <= 3 => {
            Err(error.hint(format!("Did you mean \"{nearest}\"?")))
        }
        _ => Err(error),
    }
}

/// Reads `keyword = value` pairs. Values may be in single quotes; a backslash takes the next character as it is.
fn parse_pairs(text: &str) -> Result<Settings> {
    let mut settings = Settings::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(settings);
        }
        let mut name = String::new();
        while let Some(c) = chars.next_if(|&c| c != '=' && !c.is_ascii_whitespace()) {
            name.push(c);
        }
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        if chars.next() != Some('=') {
            // The word may be a password whose quotes were forgotten, so it is not repeated.
            return Err(config(
                "missing \"=\" after a word in the connection string".to_owned(),
            ));
        }
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match chars.peek() {
                None if quoted => {
                    return Err(config(
                        "unterminated quoted string in the connection string".to_owned(),
                    ));
                }
                None => break,
                Some('\'') if quoted => {
                    chars.next();
                    break;
                }
                Some(c) if !quoted && c.is_ascii_whitespace() => break,
                Some('\\') => {
                    chars.next();
                    value.extend(chars.next());
                }
                Some(_) => value.extend(chars.next()),
            }
        }
        settings.insert(keyword(&name)?, value);
    }
}

/// Adds the settings of the service, where one is named.
fn add_service(settings: &mut Settings, environment: &Environment) -> Result<()> {
    let variable = |name: &str| environment.variables.get(name).cloned();
    let Some(service) = settings
        .get("service")
        .cloned()
        .or_else(|| variable("PGSERVICE"))
    else {
        return Ok(());
    };
    let named = settings
        .get("servicefile")
        .cloned()
        .or_else(|| variable("PGSERVICEFILE"));
    let own = named.map(PathBuf::from).or_else(|| {
        environment
            .home
            .as_ref()
            .map(|home| home.join(".pg_service.conf"))
    });
    let system = PathBuf::from(
        variable("PGSYSCONFDIR").unwrap_or_else(|| "/etc/postgresql-common".to_owned()),
    );
    for path in own.into_iter().chain([system.join("pg_service.conf")]) {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(Error::from_io(
                    format!("read service file \"{}\"", path.display()),
                    error,
                ));
            }
        };
        if let Some(found) = service_section(&text, &service)
            .map_err(|e| e.context(format!("read service file \"{}\"", path.display())))?
        {
            for (name, value) in found {
                settings.entry(name).or_insert(value);
            }
            return Ok(());
        }
    }
    Err(config(format!(
        "definition of service \"{}\" not found",
        service.escape_debug()
    )))
}

fn service_section(text: &str, service: &str) -> Result<Option<Settings>> {
    let (mut inside, mut found) = (false, None);
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            if inside {
                break;
            }
            inside = name.strip_suffix(']') == Some(service);
            if inside {
                found = Some(Settings::new());
            }
        } else if inside && let Some(settings) = &mut found {
            let Some((name, value)) = line.split_once('=') else {
                return Err(config("a line has no \"=\"".to_owned()));
            };
            settings
                .entry(keyword(name.trim())?)
                .or_insert_with(|| value.trim().to_owned());
        }
    }
    Ok(found)
}

/// Refuses what would be passed over at the cost of security.
fn check_refused(settings: &Settings) -> Result<()> {
    for (keyword, _, usage) in KEYWORDS {
        if let (Use::Only(values), Some(value)) = (usage, settings.get(keyword))
            && !values.contains(&value.as_str())
        {
            return Err(config(format!("connection option \"{keyword}\" is not supported with this value"))
                .hint("Remove the option, also from the service file and the environment, or set it to its default."));
        }
    }
    Ok(())
}

fn build(settings: &Settings, environment: &Environment) -> Result<ConnInfo> {
    check_refused(settings)?;
    let get = |name: &str| {
        settings
            .get(name)
            .filter(|value| !value.is_empty())
            .cloned()
    };
    let user = get("user").or_else(|| environment.user.clone());
    let root_certificates = match get("sslrootcert") {
        Some(value) if value == "system" => Some(RootCertificates::System),
        Some(path) => Some(RootCertificates::File {
            path: path.into(),
            explicit: true,
        }),
        None => default_file(environment, "root.crt").map(|path| RootCertificates::File {
            path,
            explicit: false,
        }),
    };
    let sslmode = sslmode(
        get("sslmode").as_deref(),
        root_certificates == Some(RootCertificates::System),
    )?;
    Ok(ConnInfo {
        hosts: hosts(get("host"), get("hostaddr"), get("port"))?,
        user: user.ok_or_else(|| {
            config("no user name is given, and the operating system names none".to_owned())
        })?,
        dbname: get("dbname"),
        password: get("password").map(Secret::new),
        passfile: get("passfile")
            .map(PathBuf::from)
            .or_else(|| environment.home.as_ref().map(|home| home.join(".pgpass"))),
        options: get("options"),
        application_name: get("application_name")
            .or_else(|| get("fallback_application_name"))
            .unwrap_or_else(|| "pitr".to_owned()),
        connect_timeout: match seconds("connect_timeout", get("connect_timeout"))? {
            None => Some(CONNECT_TIMEOUT_DEFAULT),
            // libpq: zero and less wait for ever, one second is taken as two.
            Some(timeout) if timeout.is_zero() => None,
            Some(timeout) => Some(timeout.max(Duration::from_secs(2))),
        },
        target_session: target_session(get("target_session_attrs").as_deref())?,
        channel_binding: channel_binding(get("channel_binding").as_deref())?,
        sslmode,
        root_certificates,
        client_certificate: client_certificate(get("sslcert"), get("sslkey"), environment),
        keep_alive: keep_alive(&get)?,
    })
}

fn default_file(environment: &Environment, name: &str) -> Option<PathBuf> {
    environment
        .home
        .as_ref()
        .map(|home| home.join(".postgresql").join(name))
}

fn client_certificate(
    cert: Option<String>,
    key: Option<String>,
    environment: &Environment,
) -> Option<ClientCertificate> {
    let explicit = cert.is_some();
    Some(ClientCertificate {
        certificate: cert
            .map(PathBuf::from)
            .or_else(|| default_file(environment, "postgresql.crt"))?,
        key: key
            .map(PathBuf::from)
            .or_else(|| default_file(environment, "postgresql.key"))?,
        explicit,
    })
}

fn sslmode(value: Option<&str>, system: bool) -> Result<SslMode> {
    let mode = match value {
        None if system => SslMode::VerifyFull,
        None | Some("prefer") => SslMode::Prefer,
        Some("disable") => SslMode::Disable,
        Some("allow") => SslMode::Allow,
        Some("require") => SslMode::Require,
        Some("verify-ca") => SslMode::VerifyCa,
        Some("verify-full") => SslMode::VerifyFull,
        Some(other) => return Err(invalid("sslmode", other)),
    };
    if system && mode != SslMode::VerifyFull {
        return Err(config("weak sslmode may not be used with sslrootcert=system".to_owned())
            .hint("Use sslmode=verify-full, or name the authority's certificate file with sslrootcert."));
    }
    Ok(mode)
}

fn channel_binding(value: Option<&str>) -> Result<ChannelBindingMode> {
    match value {
        None | Some("prefer") => Ok(ChannelBindingMode::Prefer),
        Some("disable") => Ok(ChannelBindingMode::Disable),
        Some("require") => Ok(ChannelBindingMode::Require),
        Some(other) => Err(invalid("channel_binding", other)),
    }
}

fn target_session(value: Option<&str>) -> Result<TargetSession> {
    match value {
        None | Some("any") => Ok(TargetSession::Any),
        Some("read-write") => Ok(TargetSession::ReadWrite),
        Some("read-only") => Ok(TargetSession::ReadOnly),
        Some("primary") => Ok(TargetSession::Primary),
        Some("standby") => Ok(TargetSession::Standby),
        Some("prefer-standby") => Ok(TargetSession::PreferStandby),
        Some(other) => Err(invalid("target_session_attrs", other)),
    }
}

fn keep_alive(get: &dyn Fn(&str) -> Option<String>) -> Result<KeepAlive> {
    let timing = |name: &str| -> Result<Option<Duration>> {
        Ok(seconds(name, get(name))?.filter(|time| !time.is_zero()))
    };
    let count = number("keepalives_count", get("keepalives_count"))?;
    let user_timeout_ms = number("tcp_user_timeout", get("tcp_user_timeout"))?;
    Ok(KeepAlive {
        enabled: number("keepalives", get("keepalives"))? != Some(0),
        idle: timing("keepalives_idle")?,
        interval: timing("keepalives_interval")?,
        count: count
            .and_then(|count| u32::try_from(count).ok())
            .filter(|&count| count > 0),
        user_timeout: user_timeout_ms
            .and_then(|ms| u64::try_from(ms).ok())
            .filter(|&ms| ms > 0)
            .map(Duration::from_millis),
    })
}

fn invalid(name: &str, value: &str) -> Error {
    config(format!(
        "invalid {name} value: \"{}\"",
        value.escape_debug()
    ))
}

fn number(name: &str, value: Option<String>) -> Result<Option<i32>> {
    value
        .map(|value| value.trim().parse().map_err(|_| invalid(name, &value)))
        .transpose()
}

/// Whole seconds; negative ones count as zero.
fn seconds(name: &str, value: Option<String>) -> Result<Option<Duration>> {
    let seconds = number(name, value)?;
    Ok(seconds.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0))))
}

/// Pairs up the lists of `host`, `hostaddr` and `port`, as libpq does.
fn hosts(
    host: Option<String>,
    hostaddr: Option<String>,
    port: Option<String>,
) -> Result<Vec<Host>> {
    let split = |list: Option<String>| -> Vec<String> {
        list.map(|list| list.split(',').map(|item| item.trim().to_owned()).collect())
            .unwrap_or_default()
    };
    let (names, addresses, ports) = (split(host), split(hostaddr), split(port));
    let count = names.len().max(addresses.len());
    let fits = |list: &[String], single: bool| {
        list.is_empty() || list.len() == count || (single && list.len() == 1)
    };
    if !fits(&names, false)
        || !fits(&addresses, false)
        || (count > 0 && !fits(&ports, true))
        || (count == 0 && ports.len() > 1)
    {
        return Err(config(format!(
            "cannot match {} host names, {} host addresses and {} ports",
            names.len(),
            addresses.len(),
            ports.len()
        )));
    }
    if count > HOST_COUNT_MAX {
        return Err(config(format!("{count} hosts are too many")));
    }
    let port_of = |index: usize| match ports
        .get(index)
        .or_else(|| ports.first())
        .filter(|port| !port.is_empty())
    {
        None => Ok(5432),
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(config(format!(
                "invalid port number: \"{}\"",
                text.escape_debug()
            ))),
        },
    };
    let mut hosts = Vec::new();
    for index in 0..count.max(1) {
        let name = names.get(index).filter(|name| !name.is_empty());
        let address = addresses.get(index).filter(|address| !address.is_empty());
        let port = port_of(index)?;
        for address in host_addresses(name, address)? {
            hosts.push(Host { address, port });
        }
    }
    Ok(hosts)
}

fn host_addresses(name: Option<&String>, address: Option<&String>) -> Result<Vec<HostAddress>> {
    if let Some(text) = address {
        let address = text.parse().map_err(|_| invalid("hostaddr", text))?;
        let name = name.unwrap_or(text).clone();
        return Ok(vec![HostAddress::Tcp {
            name,
            address: Some(address),
        }]);
    }
    match name {
        None => Ok(SOCKET_DIRECTORIES
            .iter()
            .map(|d| HostAddress::Socket(PathBuf::from(d)))
            .collect()),
        Some(name) if name.starts_with('/') => Ok(vec![HostAddress::Socket(PathBuf::from(name))]),
        Some(name) if name.starts_with('@') => Err(err!(
            Config,
            "sockets in the abstract namespace are not supported"
        )),
        Some(name) => Ok(vec![HostAddress::Tcp {
            name: name.clone(),
            address: None,
        }]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment {
            variables: variables
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            home: Some(PathBuf::from("/home/ann")),
            user: Some("ann".to_owned()),
        }
    }

    fn resolve(text: &str) -> Result<ConnInfo> {
        ConnInfo::resolve(text, &environment(&[]))
    }

    fn tcp(name: &str, port: u16) -> Host {
        Host {
            address: HostAddress::Tcp {
                name: name.to_owned(),
                address: None,
            },
            port,
        }
    }

    #[test]
    fn defaults_are_libpqs() {
        let info = resolve("").unwrap();
        assert_eq!((info.user.as_str(), info.dbname), ("ann", None));
        assert_eq!(info.sslmode, SslMode::Prefer);
        let sockets: Vec<_> = info.hosts.iter().filter_map(Host::socket_path).collect();
        let folders = ["/var/run/postgresql", "/tmp"];
        let expected = folders.map(|folder| Path::new(folder).join(".s.PGSQL.5432"));
        assert_eq!(sockets, expected);
        assert_eq!(info.passfile, Some(PathBuf::from("/home/ann/.pgpass")));
        let root = RootCertificates::File {
            path: "/home/ann/.postgresql/root.crt".into(),
            explicit: false,
        };
        assert_eq!(info.root_certificates, Some(root));
    }

    #[test]
    fn pairs_uris_and_environment_say_the_same() {
        let pairs = r"host=db1,db2 port = 5433 user='a b' password='it\'s' dbname=x\ y sslmode=verify-full connect_timeout=1";
        let uri = "postgresql://a%20b:it%27s@db1,db2/x%20y?port=5433&sslmode=verify-full&connect_timeout=1";
        let variables = environment(&[
            ("PGHOST", "db1,db2"),
            ("PGPORT", "5433"),
            ("PGUSER", "a b"),
            ("PGPASSWORD", "it's"),
            ("PGDATABASE", "x y"),
            ("PGSSLMODE", "verify-full"),
            ("PGCONNECT_TIMEOUT", "1"),
        ]);
        for info in [
            resolve(pairs),
            resolve(uri),
            ConnInfo::resolve("", &variables),
        ] {
            let info = info.unwrap();
            assert_eq!(info.hosts, [tcp("db1", 5433), tcp("db2", 5433)]);
            assert_eq!(info.user, "a b");
            assert_eq!(info.dbname.as_deref(), Some("x y"));
            assert_eq!(info.password.unwrap().expose(), "it's");
            assert_eq!(info.sslmode, SslMode::VerifyFull);
            assert_eq!(info.connect_timeout, Some(Duration::from_secs(2)));
        }
        let info = ConnInfo::resolve("host=db3 user=bob", &variables).unwrap();
        assert_eq!(info.display_hosts(), "db3:5433");
        assert_eq!(info.user, "bob");
    }

    #[test]
    fn hosts_are_paired_with_ports_and_addresses() {
        let hosts = |text: &str| resolve(text).unwrap().hosts;
        let three = [tcp("db1", 1), tcp("fe80::1", 2), tcp("db3", 5432)];
        assert_eq!(hosts("postgresql://db1:1,[fe80::1]:2,db3"), three);
        let socket = hosts("postgres://%2Frun%2Fpg/db")[0].socket_path();
        assert_eq!(socket, Some("/run/pg/.s.PGSQL.5432".into()));
        let addressed = hosts("host=db1 hostaddr=10.0.0.1");
        let expected = HostAddress::Tcp {
            name: "db1".into(),
            address: Some("10.0.0.1".parse().unwrap()),
        };
        assert_eq!(addressed[0].address, expected);
        assert_eq!(addressed[0].display(), "db1:5432");
        for bad in [
            "host=a,b port=1,2,3",
            "host=a,b hostaddr=10.0.0.1",
            "port=0",
            "port=x",
            "host=@x",
            "hostaddr=db1",
        ] {
            let error = resolve(bad).err().unwrap();
            assert_eq!(error.code(), Code::Config, "{bad}");
        }
    }

    #[test]
    fn mistakes_are_named_without_repeating_secrets() {
        let error = resolve("hots=db1").err().unwrap();
        assert_eq!(error.hint_text(), Some("Did you mean \"host\"?"));
        for text in [
            "password=a secret",
            "password='secret",
            "postgresql://u:secret%zz@h/",
            "postgresql://u:secret@[::1/",
            "host=h password=secret sslmode=secure",
        ] {
            let error = resolve(text).err().unwrap();
            assert_eq!(error.code(), Code::Config);
            let said = format!("{error} {:?} {:?}", error, error.hint_text());
            assert!(!said.contains("secret"), "{text}");
        }
    }

    #[test]
    fn what_would_weaken_security_is_refused() {
        for bad in [
            "sslrootcert=system sslmode=require",
            "require_auth=scram-sha-256",
            "gssencmode=require",
            "sslcrl=/x",
            "requirepeer=postgres",
        ] {
            assert!(resolve(bad).is_err(), "{bad}");
        }
        let info = resolve("sslrootcert=system keepalives_idle=30 krbsrvname=postgres").unwrap();
        assert_eq!(info.sslmode, SslMode::VerifyFull);
        assert_eq!(info.keep_alive.idle, Some(Duration::from_secs(30)));
    }

    #[test]
    fn service_fills_what_the_string_leaves_open() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("services");
        let text = "# all\n[other]\nhost=no\n[backup]\nhost = db9\nuser=svc\n\n[last]\nhost=no\n";
        std::fs::write(&path, text).unwrap();
        let path = path.display().to_string();
        let variables =
            environment(&[("PGSERVICEFILE", &path), ("PGUSER", "env"), ("PGPORT", "7")]);
        let info = ConnInfo::resolve("service=backup user=own", &variables).unwrap();
        assert_eq!(info.display_hosts(), "db9:7");
        assert_eq!(info.user, "own");
        let info = ConnInfo::resolve("service=backup", &variables).unwrap();
        assert_eq!(info.user, "svc");
        assert!(ConnInfo::resolve("service=none", &variables).is_err());
    }
}
