//! TLS towards PostgreSQL and RabbitMQ: a rustls client configuration from files or the platform's roots.
//!
//! The crypto provider is named here, so nothing depends on a process-wide default having been installed.

pub mod peer;

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, ClientConfig, InvalidMessage, RootCertStore};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_cert::der::Decode;

use crate::config::Tls;

/// Why no TLS configuration could be made. One line: which file, what is wrong, what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or is not PEM.
    #[error("cannot read {what} from {} (tls.{key}): give a readable PEM file", file.display())]
    File {
        /// What was looked for.
        what: &'static str,
        /// Configuration key.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// What the reader said.
        #[source]
        source: pem::Error,
    },
    /// A PEM file without what was looked for.
    #[error("{} (tls.{key}) holds no {what}: give a PEM file that does", file.display())]
    Empty {
        /// What was looked for.
        what: &'static str,
        /// Configuration key.
        key: &'static str,
        /// The file.
        file: PathBuf,
    },
    /// A certificate that rustls does not accept.
    #[error("{} (tls.{key}) holds a certificate that cannot be used: replace it", file.display())]
    Certificate {
        /// Configuration key.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// What rustls said.
        #[source]
        source: rustls::Error,
    },
    /// The platform has no roots.
    #[error(
        "this system has no CA certificates ({0}): install the package ca-certificates, or set tls.ca_file"
    )]
    NoRoots(String),
    /// Only one half of a client certificate.
    #[error("tls.cert_file and tls.key_file belong together: set both or neither")]
    HalfIdentity,
    /// The provider offers no usable protocol version.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// A client configuration that verifies the server's certificate and name: with `ca_file` against those CAs alone,
/// else against the platform's; with `cert_file` and `key_file` it presents that client certificate.
///
/// Reads files: call it at the start of a session, not in a loop.
///
/// # Errors
///
/// A file is missing, not PEM, or empty; see [`TlsError`].
pub fn client_config(tls: &Tls) -> Result<ClientConfig, TlsError> {
    let roots = match &tls.ca_file {
        Some(file) => roots_of(file)?,
        None => native_roots()?,
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_root_certificates(roots);
    match (&tls.cert_file, &tls.key_file) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(cert), Some(key)) => {
            let chain = certificates(cert, "cert_file")?;
            let private = PrivateKeyDer::from_pem_file(key).map_err(|source| match source {
                pem::Error::NoItemsFound => {
                    TlsError::Empty { what: "private key", key: "key_file", file: key.clone() }
                }
                source => {
                    TlsError::File { what: "the private key", key: "key_file", file: key.clone(), source }
                }
            })?;
            builder.with_client_auth_cert(chain, private).map_err(|source| TlsError::Certificate {
                key: "cert_file",
                file: cert.clone(),
                source,
            })
        }
        _ => Err(TlsError::HalfIdentity),
    }
}

/// When the first of the configured certificates expires, in seconds since the epoch; `None` without readable files.
///
/// For the metric: a file that cannot be read is the connection's error to report.
pub fn not_after_s(tls: &Tls) -> Option<u64> {
    let files = [(&tls.ca_file, "ca_file"), (&tls.cert_file, "cert_file")];
    let chains = files.into_iter().filter_map(|(file, key)| certificates(file.as_ref()?, key).ok());
    chains.flatten().filter_map(|cert| expiry_s(&cert)).min()
}

fn expiry_s(cert: &CertificateDer<'_>) -> Option<u64> {
    let cert = x509_cert::Certificate::from_der(cert).ok()?;
    Some(cert.tbs_certificate.validity.not_after.to_unix_duration().as_secs())
}

/// What to do about a handshake that failed, if that is what `error` is about. `section` is the configuration's, such
/// as `rabbitmq.tls`.
pub fn remedy(error: &(dyn Error + 'static), section: &str) -> Option<String> {
    use CertificateError as Bad;
    let found = rustls_error(error)?;
    Some(match found {
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            format!("set {section}.ca_file to the CA that signed the server's certificate")
        }
        rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            "connect by a host name that stands in the server's certificate".to_owned()
        }
        rustls::Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            "renew the server's certificate".to_owned()
        }
        rustls::Error::InvalidCertificate(_) => "replace the server's certificate".to_owned(),
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::NoCertificate,
        ) => format!("the server asks for a client certificate: set {section}.cert_file and key_file"),
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError,
        ) => format!(
            "the server refuses the client certificate in {section}.cert_file: use one that its CA signed and that is valid"
        ),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "this port speaks no TLS: use the server's TLS port, or do without TLS".to_owned()
        }
        _ => format!("look at the server's TLS settings and at {section}"),
    })
}

/// The TLS library's error in a chain of causes.
fn rustls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        // An io::Error names the cause of what it wraps as its own, and so hides what it wraps.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

fn roots_of(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for cert in certificates(file, "ca_file")? {
        roots.add(cert).map_err(|source| TlsError::Certificate {
            key: "ca_file",
            file: file.to_owned(),
            source,
        })?;
    }
    Ok(roots)
}

fn native_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // A platform's bundle may hold certificates that nobody can parse; the others still count.
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let why = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
        return Err(TlsError::NoRoots(why));
    }
    Ok(roots)
}

fn certificates(file: &Path, key: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |source| TlsError::File { what: "certificates", key, file: file.to_owned(), source };
    let certs: Vec<_> = CertificateDer::pem_file_iter(file)
        .map_err(unreadable)?
        .collect::<Result<_, _>>()
        .map_err(unreadable)?;
    if certs.is_empty() {
        return Err(TlsError::Empty { what: "certificate", key, file: file.to_owned() });
    }
    Ok(certs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TlsMode;

    fn tls(ca: Option<PathBuf>, cert: Option<PathBuf>, key: Option<PathBuf>) -> Tls {
        Tls { mode: TlsMode::Verify, ca_file: ca, cert_file: cert, key_file: key }
    }

    fn written(name: &str, text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("statecast-tls-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn ca_and_client_certificate_are_read() {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let ca = written("ca.pem", &made.cert.pem());
        let key = written("key.pem", &made.signing_key.serialize_pem());
        let config = client_config(&tls(Some(ca.clone()), Some(ca.clone()), Some(key.clone()))).unwrap();
        assert!(config.client_auth_cert_resolver.has_certs());
        assert!(client_config(&tls(Some(ca.clone()), None, None)).is_ok());
        assert!(matches!(
            client_config(&tls(Some(ca.clone()), Some(ca.clone()), None)),
            Err(TlsError::HalfIdentity)
        ));
        let swapped = client_config(&tls(Some(ca.clone()), Some(ca.clone()), Some(ca.clone())));
        assert!(matches!(swapped, Err(TlsError::Empty { key: "key_file", .. })));
        for file in [ca, key] {
            std::fs::remove_file(file).unwrap();
        }
    }

    #[test]
    fn errors_name_file_and_key() {
        let missing = client_config(&tls(Some("/nonexistent/ca.pem".into()), None, None)).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "cannot read certificates from /nonexistent/ca.pem (tls.ca_file): give a readable PEM file"
        );
        let empty = written("empty.pem", "no certificate here\n");
        let error = client_config(&tls(Some(empty.clone()), None, None)).unwrap_err();
        assert!(error.to_string().contains("holds no certificate"), "{error}");
        std::fs::remove_file(empty).unwrap();
    }
}
