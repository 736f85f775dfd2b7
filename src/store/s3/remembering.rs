//! Credentials whose secrets are remembered when they are given out, so that they stay hidden.

use std::sync::Arc;

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};

use super::credential_process;
use crate::store::http::secrets::Secrets;

/// Gives out what another provider gives, and remembers what of it is secret.
#[derive(Debug)]
pub(in crate::store) struct Remembering {
    provider: SharedCredentialsProvider,
    secrets: Arc<Secrets>,
    /// The program that the provider runs, if its profile names one.
    program: Option<String>,
}

impl Remembering {
    pub(super) fn around(
        provider: SharedCredentialsProvider,
        secrets: &Arc<Secrets>,
        program: Option<String>,
    ) -> Remembering {
        Remembering {
            provider,
            secrets: Arc::clone(secrets),
            program,
        }
    }
}

impl ProvideCredentials for Remembering {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let given = self.provider.provide_credentials().await;
            let program = self.program.as_deref();
            let given = given.map_err(|e| credential_process::without_output(e, program))?;
            self.secrets.remember(given.secret_access_key());
            if let Some(token) = given.session_token() {
                self.secrets.remember(token);
            }
            Ok(given)
        })
    }

    /// Returns the credentials that a slow provider gave out last.
    fn fallback_on_interrupt(&self) -> Option<Credentials> {
        self.provider.fallback_on_interrupt()
    }
}
