//! TLS for `[https]`: certificates and the authority for clients, read again when the files change.

use std::fs;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsAcceptor;
use writ_core::config::{Https, HttpsCaller};

/// The files as they were last read.
pub(super) struct Identity {
    https: Https,
    read: Vec<Option<SystemTime>>,
    acceptor: TlsAcceptor,
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with which.
    pub(super) fn new(https: &Https) -> Result<Self, String> {
        Ok(Self { https: https.clone(), read: changed(https), acceptor: acceptor(https)? })
    }

    /// An acceptor with the files as they are now. Files that cannot be used leave the ones before in force, and say so.
    pub(super) fn acceptor(&mut self) -> TlsAcceptor {
        let now = changed(&self.https);
        if now != self.read {
            self.read = now;
            match acceptor(&self.https) {
                Ok(acceptor) => {
                    tracing::info!("the certificates of `[https]` were read again");
                    self.acceptor = acceptor;
                }
                Err(error) => {
                    tracing::error!(error, "the new certificates of `[https]` cannot be used; the old ones are");
                }
            }
        }
        self.acceptor.clone()
    }
}

fn changed(https: &Https) -> Vec<Option<SystemTime>> {
    let files = [Some(&https.certificate), Some(&https.key), https.client_ca.as_ref()];
    files.into_iter().flatten().map(|file| fs::metadata(file).and_then(|file| file.modified()).ok()).collect()
}

fn acceptor(https: &Https) -> Result<TlsAcceptor, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    let builder = match &https.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| format!("`{file}`: {error}"))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            // With tokens, a certificate is one of two ways to say who one is.
            let verifier = if https.tokens.is_some() { verifier.allow_unauthenticated() } else { verifier };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| format!("`{file}`: {error}"))?)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&https.key).map_err(|error| format!("`{}`: {error}", https.key))?;
    let mut config = builder
        .with_single_cert(certificates(&https.certificate)?, key)
        .map_err(|error| format!("`{}` and `{}`: {error}", https.certificate, https.key))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err(format!("`{file}` has no certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("`{file}`: {error}")),
    }
}

/// The declared caller that a verified certificate is: by `sha256-HEX` of all of it, or by a DNS name in it.
pub(super) fn caller_of<'a>(
    certificate: &CertificateDer<'_>,
    callers: impl Iterator<Item = (&'a String, &'a HttpsCaller)>,
) -> Option<String> {
    let fingerprint = hex(&Sha256::digest(certificate.as_ref()));
    let parsed = ParsedCertificate::try_from(certificate).ok();
    let is = |wanted: &str| match wanted.strip_prefix("sha256-") {
        Some(wanted) => wanted.eq_ignore_ascii_case(&fingerprint),
        None => ServerName::try_from(wanted).is_ok_and(|name| {
            parsed.as_ref().is_some_and(|parsed| rustls::client::verify_server_name(parsed, &name).is_ok())
        }),
    };
    let mut found = callers.filter(|(_, caller)| caller.certificate.as_deref().is_some_and(is));
    match (found.next(), found.next()) {
        (Some((name, _)), None) => Some(name.clone()),
        // Two callers in one certificate are none.
        _ => None,
    }
}

/// Bytes as lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
