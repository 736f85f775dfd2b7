//! The connection to an object store: TLS, credentials, region. One for all repositories of a process that are configured
//! alike, so that connections and credentials are kept from one open to the next.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig, imds};
use aws_runtime::env_config::file::EnvConfigFiles;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::ConnectorError;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_types::service_config::ServiceConfigKey;

use super::clock::Clock;
use super::credential_process;
use super::guard::Guard;
use super::profile;
use super::remembering::Remembering;
use super::sums::Sums;
use crate::config::{S3Settings, check_endpoint};
use crate::err;
use crate::error::{Code, Error, Result, causes};
use crate::store::http::calm::Calm;
use crate::store::http::secrets::Secrets;
pub(super) use crate::store::runtime::wait;

/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The service's id, from which variables and keys of profiles are named.
const S3: &str = "S3";
/// The region for which requests are signed if none is configured and the server is not Amazon's.
const DEFAULT_REGION: &str = "us-east-1";

/// The state that all users of one server with one set of credentials share.
pub(super) struct Link {
    pub(super) settings: S3Settings,
    pub(super) clock: Arc<Clock>,
    pub(super) calm: Calm,
    pub(super) sums: Sums,
    pub(super) secrets: Arc<Secrets>,
    connected: Mutex<Connected>,
    /// Held by the one who renews, so that many who fail together ask for credentials once.
    renewing: tokio::sync::Mutex<()>,
    /// When fresh credentials were last refused without a word, too.
    refused: Mutex<Option<Instant>>,
}

/// So long another refusal without a word is taken for one of rights: a host that only writes meets them in rows.
const REFUSED_FOR: Duration = Duration::from_secs(60);

/// A client, and which one in the row of those that replaced each other.
#[derive(Debug, Clone)]
pub(super) struct Connected {
    pub(super) client: Client,
    generation: u64,
}

impl Link {
    /// The link for these settings, made where there is none yet.
    ///
    /// # Errors
    /// `Config` for settings that cannot be used, or that lack a region; `Unreachable` when who knows the region does not say it.
    pub(super) fn open(settings: &S3Settings) -> Result<Arc<Link>> {
        static LINKS: Mutex<Vec<Arc<Link>>> = Mutex::new(Vec::new());
        let known = |links: &[Arc<Link>]| links.iter().find(|l| l.settings == *settings).cloned();
        if let Some(link) = known(&locked(&LINKS)) {
            return Ok(link);
        }
        // Not under the lock: finding a region may ask the machine's provider, which can take seconds.
        let (clock, secrets) = <(Arc<Clock>, Arc<Secrets>)>::default();
        let (client, sums) = {
            let (settings, clock, secrets) =
                (settings.clone(), Arc::clone(&clock), Arc::clone(&secrets));
            wait(async move { connect(&settings, None, &clock, &secrets).await })??
        };
        let mut links = locked(&LINKS);
        if let Some(link) = known(&links) {
            return Ok(link);
        }
        let link = Arc::new(Link {
            settings: settings.clone(),
            clock,
            calm: Calm::default(),
            sums,
            secrets,
            connected: Mutex::new(Connected {
                client,
                generation: 0,
            }),
            renewing: tokio::sync::Mutex::new(()),
            refused: Mutex::new(None),
        });
        links.push(Arc::clone(&link));
        Ok(link)
    }

    pub(super) fn client(&self) -> Client {
        self.connected().client
    }

    pub(super) fn connected(&self) -> Connected {
        locked(&self.connected).clone()
    }

    /// Remembers that fresh credentials are refused without a word, too.
    pub(super) fn note_refused(&self) {
        *locked(&self.refused) = Some(Instant::now());
    }

    /// Whether that was just now: then others would be refused likewise.
    pub(super) fn is_refused(&self) -> bool {
        locked(&self.refused).is_some_and(|at| at.elapsed() < REFUSED_FOR)
    }

    /// Begins anew with fresh credentials, and in `region` where one is given; everybody goes on with that. Nothing is done where
    /// somebody else has since `used` was in use.
    pub(super) async fn renew(&self, region: Option<String>, used: &Connected) -> Result<()> {
        let _alone = self.renewing.lock().await;
        let current = self.connected();
        let here = current.client.config().region().map(ToString::to_string);
        if current.generation != used.generation
            && region.as_ref().is_none_or(|r| here.as_ref() == Some(r))
        {
            return Ok(());
        }
        let region = region.or(here);
        let (client, _) = connect(&self.settings, region, &self.clock, &self.secrets).await?;
        self.replace(client);
        Ok(())
    }

    /// Gives up the connections of a client that got no answer. One over which nothing comes back is else used for every request until
    /// the system gives it up, which takes a quarter of an hour: over HTTP/2 the end of a request is not the end of its connection.
    pub(super) fn reconnect(&self, used: &Connected) {
        if self.connected().generation != used.generation {
            return;
        }
        // Certificates that cannot be read just then are no reason to fail: the connections there are may still do.
        if let Ok(http) = http_client(&self.settings) {
            let config = used.client.config().to_builder().http_client(http);
            self.replace(Client::from_conf(config.build()));
        }
    }

    fn replace(&self, client: Client) {
        let mut connected = locked(&self.connected);
        *connected = Connected {
            client,
            generation: connected.generation + 1,
        };
    }
}

/// Locks a mutex. The value that a panic left is still a client or a list of links.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The client, and what is known of the checksums of the store that it asks: Amazon's own, unless settings, environment or profile name another.
async fn connect(
    settings: &S3Settings,
    region: Option<String>,
    clock: &Arc<Clock>,
    secrets: &Arc<Secrets>,
) -> Result<(Client, Sums)> {
    let chain = Chain::load(settings, region, S3).await?;
    let (loaded, endpoint) = (&chain.loaded, &chain.endpoint);
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .build();
    let mut config = aws_sdk_s3::config::Builder::from(loaded)
        .force_path_style(settings.path_style)
        // Ours: they know which requests may have taken effect (`request`).
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // Ours, too: known before a body is sent, and sent in its head.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .interceptor(Arc::clone(clock).interceptor())
        .interceptor(Guard);
    if let Some(provider) = chain.credentials(secrets) {
        config = config.credentials_provider(provider);
    }
    let sums = Sums::of(endpoint.as_deref());
    if let Some(endpoint) = endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok((Client::from_conf(config.build()), sums))
}

/// The region, the credentials and the server of a service, from the configuration or by the usual chain.
pub(in crate::store) struct Chain {
    pub(in crate::store) loaded: SdkConfig,
    /// The server, unless it is Amazon's.
    pub(in crate::store) endpoint: Option<String>,
}

impl Chain {
    /// Looks for them; `service` is the service's id.
    ///
    /// # Errors
    /// `Config` for settings that cannot be used, or that lack a region; `Unreachable` when who knows the region does not say it.
    pub(in crate::store) async fn load(
        settings: &S3Settings,
        region: Option<String>,
        service: &'static str,
    ) -> Result<Chain> {
        let files = profile::files(settings)?;
        let http = http_client(settings)?;
        let loaded = load(settings, files, region, &http).await;
        if loaded.region().is_none() {
            return Err(no_region(&http).await);
        }
        let endpoint = match (&settings.endpoint, endpoint_of(&loaded, service)) {
            (Some(endpoint), _) => Some(endpoint.clone()),
            (None, Some(found)) => Some(check_endpoint(&found, settings.allow_http)?),
            (None, None) => None,
        };
        Ok(Chain { loaded, endpoint })
    }

    /// The credentials, which are remembered as secrets when they are given out.
    pub(in crate::store) fn credentials(&self, secrets: &Arc<Secrets>) -> Option<Remembering> {
        let provider = self.loaded.credentials_provider()?;
        let program = profile_program(&self.loaded);
        Some(Remembering::around(provider, secrets, program))
    }
}

/// The server that environment or profile name: for this service alone, else for all of them, as the client itself looks for it.
fn endpoint_of(loaded: &SdkConfig, service: &'static str) -> Option<String> {
    let of_service = setting(loaded, service, "AWS_ENDPOINT_URL", "endpoint_url");
    of_service.or_else(|| loaded.endpoint_url().map(str::to_owned))
}

/// Returns the program that the profile runs for its credentials. A profile that takes a role with the credentials of
/// another profile names it there.
fn profile_program(loaded: &SdkConfig) -> Option<String> {
    // Only this line knows the variable: the client wants one for each setting.
    let command = setting(loaded, S3, "AWS_CREDENTIAL_PROCESS", "credential_process")?;
    credential_process::program_of(&command)
}

fn setting(
    loaded: &SdkConfig,
    service: &'static str,
    variable: &str,
    of_profile: &str,
) -> Option<String> {
    let key = ServiceConfigKey::builder()
        .service_id(service)
        .env(variable)
        .profile(of_profile)
        .build()
        .ok()?;
    loaded.service_config()?.load_config(key)
}

/// The usual chain: environment, profile, web identity, container, machine. A profile or credentials file that is configured comes before
/// all of it: PostgreSQL runs its commands with an environment of its own.
async fn load(
    settings: &S3Settings,
    files: EnvConfigFiles,
    region: Option<String>,
    http: &SharedHttpClient,
) -> SdkConfig {
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http.clone())
        .profile_files(files.clone());
    let of_environment = || {
        ["AWS_REGION", "AWS_DEFAULT_REGION"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
    };
    // The end of the chain asks the machine's provider for the region, and waits long where there is none.
    let region = region
        .or_else(|| settings.region.clone())
        .or_else(of_environment)
        .or_else(|| {
            settings
                .endpoint
                .as_ref()
                .map(|_| DEFAULT_REGION.to_owned())
        });
    if let Some(region) = region {
        loader = loader.region(Region::new(region));
    }
    if settings.credentials_file.is_some() || settings.profile.is_some() {
        let around = ProviderConfig::default().with_http_client(http.clone());
        let mut provider = ProfileFileCredentialsProvider::builder()
            .configure(&around)
            .profile_files(files);
        if let Some(name) = &settings.profile {
            provider = provider.profile_name(name);
            loader = loader.profile_name(name);
        }
        loader = loader.credentials_provider(provider.build());
    }
    loader.load().await
}

/// Returns the error for an unknown region. If the machine has a provider that knows it, the error may pass; else the
/// operator has to set the region.
async fn no_region(http: &SharedHttpClient) -> Error {
    let code = match has_provider(http).await {
        true => Code::Unreachable,
        false => Code::Config,
    };
    Error::new(code, "no region is known").hint(
        "Set region in the repository's section, or AWS_REGION. The machine's own provider was asked last, and did not say one.",
    )
}

/// Whether anything answers where a machine of Amazon's has its provider.
async fn has_provider(http: &SharedHttpClient) -> bool {
    let is_disabled = std::env::var("AWS_EC2_METADATA_DISABLED");
    if is_disabled.is_ok_and(|v| v.eq_ignore_ascii_case("true")) {
        return false;
    }
    let around = ProviderConfig::default().with_http_client(http.clone());
    let builder = imds::Client::builder().configure(&around).max_attempts(1);
    let answer = builder
        .build()
        .get("/latest/meta-data/placement/region")
        .await;
    !answer.is_err_and(|e| causes(&e).any(|cause| cause.is::<ConnectorError>()))
}

fn http_client(settings: &S3Settings) -> Result<SharedHttpClient> {
    let trust = match &settings.ca_file {
        None => TrustStore::default(),
        Some(file) => {
            let doing = || format!("read certificates \"{}\"", file.display());
            let pem = std::fs::read(file)
                .map_err(|e| Error::from_io(doing(), e).with_code(Code::Config))?;
            check_certificates(&pem).map_err(|e| e.context(doing()))?;
            TrustStore::empty().with_pem_certificate(pem)
        }
    };
    let context = TlsContext::builder()
        .with_trust_store(trust)
        .build()
        .map_err(|e| err!(Config, "could not set up TLS: {e}"))?;
    Ok(aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(context)
        .build_https())
}

/// The client takes what it is given for good, and panics when it is not.
fn check_certificates(pem: &[u8]) -> Result<()> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let added = certificate
            .map_err(|e| e.to_string())
            .and_then(|c| roots.add(c).map_err(|e| e.to_string()));
        added.map_err(|e| err!(Config, "it holds something else than certificates: {e}"))?;
        count += 1;
    }
    match count {
        0 => Err(err!(Config, "it holds no certificate")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_certificates_are_taken() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        check_certificates(made.cert.pem().as_bytes()).unwrap();
        for wrong in [
            "",
            "x",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            assert!(check_certificates(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_client_is_replaced_once_for_all_who_saw_it_fail() {
        let settings = S3Settings {
            endpoint: Some("http://127.0.0.1:1".into()),
            ..S3Settings::default()
        };
        let link = Link::open(&settings).unwrap();
        let first = link.connected();
        let region = |link: &Link| link.client().config().region().map(ToString::to_string);
        let renew = |region: Option<&str>, used: &Connected| {
            let (link, region, used) = (Arc::clone(&link), region.map(str::to_owned), used.clone());
            wait(async move { link.renew(region, &used).await })
                .unwrap()
                .unwrap();
        };
        link.reconnect(&first);
        assert_eq!(link.connected().generation, first.generation + 1);
        link.reconnect(&first);
        renew(None, &first);
        assert_eq!(link.connected().generation, first.generation + 1);
        let second = link.connected();
        renew(None, &second);
        assert_eq!(link.connected().generation, second.generation + 1);
        // Fresh credentials of somebody else do not lead to the bucket's region.
        renew(Some("eu-west-1"), &second);
        assert_eq!(region(&link).as_deref(), Some("eu-west-1"));
        let moved = link.connected();
        renew(Some("eu-west-1"), &second);
        renew(None, &second);
        link.reconnect(&moved);
        assert_eq!(link.connected().generation, moved.generation + 1);
        assert_eq!(region(&link).as_deref(), Some("eu-west-1"));
    }

    /// Returns the URL of a request for an object.
    fn asked(path_style: bool) -> String {
        use aws_credential_types::Credentials;
        use aws_sdk_s3::presigning::PresigningConfig;
        let settings = S3Settings {
            endpoint: Some("https://s3.example.com:9000".into()),
            path_style,
            ..S3Settings::default()
        };
        let client = Link::open(&settings).unwrap().client();
        let keys = Credentials::new("AKID", "a-secret-key", None, None, "test");
        let config = client.config().to_builder().credentials_provider(keys);
        let client = Client::from_conf(config.build());
        let request = client.get_object().bucket("backups").key("pg/pitr.json");
        wait(async move {
            let valid = PresigningConfig::expires_in(Duration::from_secs(60)).unwrap();
            let signed = request.presigned(valid).await.unwrap();
            signed.uri().to_owned()
        })
        .unwrap()
    }

    #[test]
    fn a_bucket_stands_in_the_hosts_name_unless_it_is_to_stand_in_the_path() {
        for (path_style, expected) in [
            (false, "https://backups.s3.example.com:9000/pg/pitr.json?"),
            (true, "https://s3.example.com:9000/backups/pg/pitr.json?"),
        ] {
            let asked = asked(path_style);
            assert!(asked.starts_with(expected), "{asked}");
        }
    }
}
