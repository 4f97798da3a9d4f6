//! TLS towards the broker: trusted authorities, our certificate, and advice for failed handshakes.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Security of an `mqtts` connection. TLS 1.2 and 1.3; the broker's name is always checked.
#[derive(Debug, Clone, Default)]
pub struct TlsOptions {
    /// PEM file of trusted authorities; `None`: the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file with our certificate, followed by intermediate ones; `None`: we present none.
    pub cert_file: Option<PathBuf>,
    /// PEM file with its private key (PKCS#8, PKCS#1 or SEC1), not encrypted.
    pub key_file: Option<PathBuf>,
    /// Protocols offered by ALPN, the preferred first; if empty, the extension is not sent.
    pub alpn: Vec<String>,
}

/// Reads the files into a configuration for rustls.
///
/// # Errors
/// The key, the file, its fault and the remedy, without any of the file's contents.
pub fn client_config(options: &TlsOptions) -> Result<Arc<ClientConfig>, String> {
    // A second installation is refused, and harmless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = ClientConfig::builder().with_root_certificates(roots(options.ca_file.as_deref())?);
    let mut config = match (&options.cert_file, &options.key_file) {
        (Some(cert), Some(key)) => {
            let chain = certificates("mqtt.cert_file", cert)?;
            builder.with_client_auth_cert(chain, private_key(key)?).map_err(|error| {
                let (cert, key) = (cert.display(), key.display());
                format!(
                    "mqtt.cert_file {cert} and mqtt.key_file {key} do not go together: {error}; name a certificate and the key it was made with"
                )
            })?
        }
        (None, None) => builder.with_no_client_auth(),
        (Some(_), None) => {
            return Err("mqtt.cert_file is set and mqtt.key_file is not; a certificate needs its private key".into());
        }
        (None, Some(_)) => {
            return Err("mqtt.key_file is set and mqtt.cert_file is not; a private key needs its certificate".into());
        }
    };
    config.alpn_protocols = options.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect();
    Ok(Arc::new(config))
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca_file else {
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            return Err("this system trusts no authority; install ca-certificates, or name one with mqtt.ca_file".into());
        }
        return Ok(roots);
    };
    let (usable, _) = roots.add_parsable_certificates(certificates("mqtt.ca_file", path)?);
    if usable == 0 {
        let remedy = "name the file of the authority that signed the broker's certificate";
        return Err(format!("mqtt.ca_file {}: none of its certificates can be used; {remedy}", path.display()));
    }
    Ok(roots)
}

fn certificates(key: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(key, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let remedy = match key {
        "mqtt.ca_file" => "name the file of the authority that signed the broker's certificate",
        _ => "name our certificate's PEM file (-----BEGIN CERTIFICATE-----)",
    };
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{key} {}: the file holds no PEM certificate; {remedy}", path.display())),
        Err(_) => Err(format!("{key} {}: the PEM is damaged; {remedy}", path.display())),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let pem = read("mqtt.key_file", path)?;
    // The reason stays hidden: it could contain a line of the file.
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        let remedy = "write one, not encrypted, with `openssl pkey -in KEY -out FILE`, and let only the daemon read it";
        format!("mqtt.key_file {}: the file holds no readable PEM private key; {remedy}", path.display())
    })
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("cannot read {key} {}: {e}; check the path and its permissions", path.display()))
}

/// Advice for a failed handshake or connection, by rustls' reason.
pub fn remedy(reason: &str, options: &TlsOptions) -> Option<String> {
    let has = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    let ca =
        options.ca_file.as_ref().map_or("the system's authorities".to_owned(), |path| format!("mqtt.ca_file {}", path.display()));
    if has(&["CaUsedAsEndEntity"]) {
        return Some(
            "the broker shows the certificate of an authority as its own (self-signed, CA:TRUE); give it one that the authority has signed".into(),
        );
    }
    if has(&["UnknownIssuer", "BadSignature"]) {
        return Some(format!("{ca} did not sign the broker's certificate; name the authority that did with mqtt.ca_file"));
    }
    if has(&["NotValidForName", "certificate not valid for name"]) {
        return Some("the broker's certificate is for another name; write that name into mqtt.broker, or give the broker one with this name (subjectAltName)".into());
    }
    if has(&["CertificateRequired"]) || (options.cert_file.is_none() && has(&["alert: HandshakeFailure"])) {
        return Some("the broker asks for a client certificate; set mqtt.cert_file and mqtt.key_file".into());
    }
    if has(&[
        "alert: UnknownCA",
        "alert: BadCertificate",
        "alert: CertificateUnknown",
        "alert: CertificateExpired",
        "alert: DecryptError",
        "alert: CertificateRevoked",
    ]) {
        let cert = options.cert_file.as_ref().map_or("none".to_owned(), |path| path.display().to_string());
        return Some(format!(
            "the broker does not accept our certificate (mqtt.cert_file {cert}); have it signed by the authority that the broker trusts (mosquitto: cafile)"
        ));
    }
    if has(&["alert: ProtocolVersion", "peer is incompatible"]) {
        return Some(
            "the broker supports neither TLS 1.2 nor TLS 1.3 as we do; allow one of them there (mosquitto: tls_version)".into(),
        );
    }
    if has(&["alert: NoApplicationProtocol"]) {
        return Some("the broker supports none of the protocols in mqtt.alpn".into());
    }
    // Expired, or not valid yet.
    has(&[
        "invalid peer certificate: Expired",
        "invalid peer certificate: NotValidYet",
        "certificate expired",
        "certificate not valid yet",
    ])
    .then(|| "the broker's certificate has expired or is not valid yet; renew it, or set this machine's clock".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_file_is_named_but_not_quoted() {
        let dir = tempfile::tempdir().expect("a folder");
        let secret = dir.path().join("secret.pem");
        let text = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0LXNlY3JldA==\n-----END PRIVATE KEY-----\n";
        std::fs::write(&secret, text).expect("written");
        let options = |ca: Option<&str>, cert: Option<&str>, key: Option<&str>| TlsOptions {
            ca_file: ca.map(|name| dir.path().join(name)),
            cert_file: cert.map(|name| dir.path().join(name)),
            key_file: key.map(|name| dir.path().join(name)),
            alpn: vec![],
        };
        for (options, words) in [
            (options(Some("none.pem"), None, None), ["mqtt.ca_file", "none.pem", "permissions"]),
            (options(Some("secret.pem"), None, None), ["mqtt.ca_file", "secret.pem", "authority"]),
        ] {
            let error = client_config(&options).expect_err("refused");
            assert!(words.iter().all(|word| error.contains(word)) && !error.contains("c2VjcmV0"), "{error}");
        }
        let error = private_key(&dir.path().join("none.key")).expect_err("refused");
        assert!(error.contains("mqtt.key_file") && error.contains("none.key"), "{error}");
        let garbled = dir.path().join("garbled.pem");
        std::fs::write(&garbled, "-----BEGIN PRIVATE KEY-----\nc2VjcmV0 ???\n").expect("written");
        let error = private_key(&garbled).expect_err("refused");
        assert!(error.contains("garbled.pem") && error.contains("openssl pkey") && !error.contains("c2VjcmV0"), "{error}");
    }

    #[test]
    fn a_failed_handshake_names_the_key_to_check() {
        let options = TlsOptions { ca_file: Some("/etc/ca.pem".into()), ..TlsOptions::default() };
        for (reason, words) in [
            ("invalid peer certificate: UnknownIssuer", "mqtt.ca_file /etc/ca.pem did not sign"),
            ("received fatal alert: CertificateRequired", "mqtt.cert_file and mqtt.key_file"),
            ("received fatal alert: UnknownCA", "does not accept our certificate"),
            ("received fatal alert: NoApplicationProtocol", "mqtt.alpn"),
            ("received fatal alert: ProtocolVersion", "TLS 1.2"),
            ("invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))", "self-signed"),
            (
                "invalid peer certificate: certificate not valid for name \"localhost\"; certificate is only valid for DnsName(\"broker\")",
                "subjectAltName",
            ),
        ] {
            assert!(remedy(reason, &options).is_some_and(|remedy| remedy.contains(words)), "{reason}");
        }
        assert_eq!(remedy("Connection refused (os error 111)", &options), None);
    }
}
