//! The certificate files that a configuration names, and how long their content is valid.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use crate::config::{Cluster, Settings};
use crate::pg::time::TimestampTz;
use crate::wire::conninfo::{ConnInfo, Environment, RootCertificates};

/// The files of certificates that a configuration names, each with the first end of validity in it. One that cannot be read is left out.
pub(super) fn expiries(settings: &Settings) -> Vec<(PathBuf, TimestampTz)> {
    let mut files = shown(settings);
    files.extend(trusted(settings));
    known(files)
}

/// As [`expiries`], of the certificates that this host shows alone. An authority that ended among many is no trouble yet.
pub(super) fn expiries_of_shown(settings: &Settings) -> Vec<(PathBuf, TimestampTz)> {
    known(shown(settings))
}

fn known(files: BTreeSet<PathBuf>) -> Vec<(PathBuf, TimestampTz)> {
    let files = files.into_iter();
    files
        .filter_map(|path| {
            let end = expiry(&path)?;
            Some((path, end))
        })
        .collect()
}

/// Files of the certificates that this host shows.
fn shown(settings: &Settings) -> BTreeSet<PathBuf> {
    let accesses = settings.redis.iter();
    let accesses = accesses.flat_map(|redis| [&redis.access, &redis.sentinel.access]);
    let clusters = settings.clusters.iter();
    accesses
        .filter_map(|access| access.tls.cert_file.clone())
        .chain(settings.agent.tls.cert_file.clone())
        .chain(clusters.filter_map(|cluster| of_connection(cluster).0))
        .collect()
}

/// Files of the authorities that this host trusts.
fn trusted(settings: &Settings) -> BTreeSet<PathBuf> {
    let accesses = settings.redis.iter();
    let accesses = accesses.flat_map(|redis| [&redis.access, &redis.sentinel.access]);
    let clusters = settings.clusters.iter();
    let repositories = settings.repositories.iter();
    accesses
        .filter_map(|access| access.tls.ca_file.clone())
        .chain(settings.agent.tls.client_ca_file.clone())
        .chain(repositories.filter_map(|one| one.s3.ca_file.clone()))
        .chain(clusters.filter_map(|cluster| of_connection(cluster).1))
        .collect()
}

/// Those that the settings of a connection to a server name: the one that is shown, and the authorities.
fn of_connection(cluster: &Cluster) -> (Option<PathBuf>, Option<PathBuf>) {
    let Some(conninfo) = &cluster.conninfo else {
        return (None, None);
    };
    let Ok(info) = ConnInfo::resolve(conninfo.expose(), &Environment::of_process()) else {
        return (None, None);
    };
    // Others, which libpq finds by itself, may be there without need.
    let own = info.client_certificate.filter(|files| files.explicit);
    let own = own.map(|files| files.certificate);
    let root = match info.root_certificates {
        Some(RootCertificates::File {
            path,
            explicit: true,
        }) => Some(path),
        _ => None,
    };
    (own, root)
}

fn expiry(path: &Path) -> Option<TimestampTz> {
    let all = CertificateDer::pem_file_iter(path).ok()?;
    let ends = all.map(|one| {
        let parsed = Certificate::from_der(&one.ok()?).ok()?;
        let end = parsed.tbs_certificate.validity.not_after;
        let seconds = i64::try_from(end.to_unix_duration().as_secs()).ok()?;
        TimestampTz::from_unix_seconds(seconds)
    });
    // One that cannot be read may be the first to end.
    ends.collect::<Option<Vec<_>>>()?.into_iter().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_of_validity_in_a_file_counts_and_what_is_no_certificate_is_left_out() {
        let made = |year: i32| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(vec!["db".into()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 5, 1);
            params.self_signed(&key).unwrap().pem()
        };
        let directory = tempfile::tempdir().unwrap();
        let expiry_of = |text: &str| {
            let path = directory.path().join("file.pem");
            std::fs::write(&path, text).unwrap();
            expiry(&path)
        };
        let wanted = "2031-05-01T00:00:00Z".parse::<TimestampTz>().unwrap();
        assert_eq!(expiry_of(&(made(2040) + &made(2031))), Some(wanted));
        assert_eq!(expiry_of("no certificate"), None);
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(expiry_of(&(made(2031) + broken)), None);
        assert_eq!(expiry(&directory.path().join("none")), None);
    }
}
