//! AWS KMS: encrypts a recipient's key file under a key that never leaves it, and decrypts it. Region and credentials come by the chain of S3's.
//!
//! No answer of it is more than a failure of the key: nothing tells from it whether a file is in the archive.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_sdk_kms::Client;
use aws_sdk_kms::config::StalledStreamProtectionConfig;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use zeroize::Zeroizing;

use super::http::secrets::Secrets;
use super::runtime::wait;
use super::s3::client::Chain;
use crate::config::{Kms, S3Settings};
use crate::err;
use crate::error::{Error, Result, causes};

/// How long a request may take, with the search for credentials and all repetitions.
const PATIENCE: Duration = Duration::from_secs(10);
/// The service's id, from which variables and keys of profiles are named.
const SERVICE: &str = "KMS";
/// The encryption context. The KMS decrypts nothing that was encrypted with another one, or without; a policy can ask for it.
const PURPOSE: (&str, &str) = ("pitr", "recipient-key");

/// Encrypts a key file.
///
/// # Errors
/// `Key`.
pub fn encrypt(kms: &Kms, plain: &[u8]) -> Result<Vec<u8>> {
    let plain = Blob::new(plain);
    ask(kms, "kms:Encrypt", |client, key| async move {
        let (name, purpose) = PURPOSE;
        let request = client.encrypt().key_id(key).plaintext(plain);
        let answer = request.encryption_context(name, purpose).send().await?;
        Ok(answer.ciphertext_blob.map(Blob::into_inner))
    })
}

/// Decrypts a key file. The answer's copies in the client's buffers are not overwritten.
///
/// # Errors
/// `Key`.
pub fn decrypt(kms: &Kms, wrapped: Vec<u8>) -> Result<Zeroizing<Vec<u8>>> {
    let wrapped = Blob::new(wrapped);
    ask(kms, "kms:Decrypt", |client, key| async move {
        let (name, purpose) = PURPOSE;
        let request = client.decrypt().key_id(key).ciphertext_blob(wrapped);
        let answer = request.encryption_context(name, purpose).send().await?;
        let plain = answer.plaintext.map(Blob::into_inner);
        Ok(plain.map(Zeroizing::new))
    })
}

/// Sends a request, which needs a right, and repeats it where it is throttled.
fn ask<T, E, F>(
    kms: &Kms,
    right: &str,
    request: impl FnOnce(Client, String) -> F + Send + 'static,
) -> Result<T>
where
    T: Send + 'static,
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    F: Future<Output = std::result::Result<Option<T>, SdkError<E>>> + Send,
{
    let key = kms.key_id.clone().unwrap_or_default();
    let (link, id) = (kms.link.clone(), key.clone());
    let asked = wait(async move {
        let secrets = Arc::<Secrets>::default();
        let answer = tokio::time::timeout(PATIENCE, async {
            let client = connect(&link, &id, &secrets).await?;
            let answer = request(client, id).await;
            answer.map_err(|e| err!(Key, "{}", secrets.scrub(&said(&e))))
        });
        let late = |_| {
            let seconds = PATIENCE.as_secs();
            Err(err!(Key, "it has not answered within {seconds} s"))
        };
        answer.await.unwrap_or_else(late)
    });
    let answer = asked.flatten().and_then(|answer| {
        answer.ok_or_else(|| err!(Key, "it answers without what it was asked for"))
    });
    answer.map_err(|e| failed(e, &key, right))
}

async fn connect(link: &S3Settings, key: &str, secrets: &Arc<Secrets>) -> Result<Client> {
    let region = link.region.clone().or_else(|| region_of(key));
    let chain = Chain::load(link, region, SERVICE).await?;
    let mut config = aws_sdk_kms::config::Builder::from(&chain.loaded)
        .retry_config(RetryConfig::standard())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Some(provider) = chain.credentials(secrets) {
        config = config.credentials_provider(provider);
    }
    if let Some(endpoint) = chain.endpoint {
        config = config.endpoint_url(endpoint);
    }
    Ok(Client::from_conf(config.build()))
}

/// The region in the ARN of a key.
fn region_of(key: &str) -> Option<String> {
    let region = key.strip_prefix("arn:")?.split(':').nth(2)?;
    (!region.is_empty()).then(|| region.to_owned())
}

/// The words of the KMS, else those of the client.
fn said<E: ProvideErrorMetadata + StdError + Send + Sync + 'static>(error: &SdkError<E>) -> String {
    let texts = match error
        .as_service_error()
        .and_then(|e| Some((e.code()?, e.message())))
    {
        Some((code, message)) => vec![code.to_owned(), message.unwrap_or_default().to_owned()],
        None => causes(error).map(ToString::to_string).collect(),
    };
    texts.join(": ")
}

fn failed(error: Error, key: &str, right: &str) -> Error {
    let hint = error.hint_text().map_or_else(
        || format!("Nothing that is encrypted was opened or made. Look at the key as the user of pitr: aws kms describe-key --key-id {key}. Its credentials need {right} on it, with the encryption context pitr=recipient-key."),
        str::to_owned,
    );
    let failed = err!(Key, "AWS KMS does nothing with the key \"{key}\": {error}");
    failed.hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arn_has_its_region() {
        let arn = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd";
        assert_eq!(region_of(arn).as_deref(), Some("eu-central-1"));
        for other in [
            "alias/pitr",
            "1234abcd",
            "arn:aws:kms",
            "arn:aws:kms::1:key/a",
        ] {
            assert_eq!(region_of(other), None, "{other}");
        }
    }
}
