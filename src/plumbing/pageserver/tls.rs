//! The proxy's certificate: the user's, or one that is made at the first start and signs itself.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::Error;
use crate::objects::durable;
use crate::objects::file_error::cannot;

/// What PostgreSQL's clients ask for over TLS.
const ALPN: &[u8] = b"postgresql";
/// Names in the certificate that is made here: a branch is a name below localhost.
const NAMES: [&str; 3] = ["localhost", "*.localhost", "127.0.0.1"];

/// Where certificate and key lie.
#[derive(Debug, Clone)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Reads the certificate; makes one in `dir` first if the user names none and there is none.
pub fn acceptor(own: Option<Files>, dir: &Path) -> Result<TlsAcceptor, Error> {
    let files = match own {
        Some(files) => files,
        None => made(dir)?,
    };
    let bad = |path: &Path| {
        let path = path.to_owned();
        move |source: rustls::pki_types::pem::Error| Error::Certificate { path, source: Box::new(source) }
    };
    let chain = CertificateDer::pem_file_iter(&files.certificate).map_err(bad(&files.certificate))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(bad(&files.certificate))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(bad(&files.key))?;
    let unusable =
        |source: rustls::Error| Error::Certificate { path: files.certificate.clone(), source: Box::new(source) };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = versions.map_err(unusable)?.with_no_client_auth().with_single_cert(chain, key);
    let mut config = config.map_err(unusable)?;
    // A client that offers other protocols is none of PostgreSQL's; one that offers none is let in.
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Returns the certificate in `dir`; makes it if there is none.
fn made(dir: &Path) -> Result<Files, Error> {
    let files = Files { certificate: dir.join("server.crt"), key: dir.join("server.key") };
    // Those of an earlier program may have been cut off by a crash.
    let is_whole = |path: &Path| fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() > 0);
    if is_whole(&files.certificate) && is_whole(&files.key) {
        return Ok(files);
    }
    let fail = |source| Error::Certificate { path: files.certificate.clone(), source: Box::new(source) };
    let made = rcgen::generate_simple_self_signed(NAMES.map(str::to_owned)).map_err(fail)?;
    // The certificate last: without it both are made anew.
    write(&files.key, &made.signing_key.serialize_pem(), 0o600).map_err(cannot::<Error>("write", &files.key))?;
    write(&files.certificate, &made.cert.pem(), 0o666).map_err(cannot::<Error>("write", &files.certificate))?;
    Ok(files)
}

/// Writes a file with a mode of which the umask takes what it takes, durably: there is the whole of it or none.
fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mode = fs::Permissions::from_mode(mode);
    let mut file = tempfile::Builder::new().prefix("tls-").permissions(mode).tempfile_in(dir)?;
    file.write_all(text.as_bytes())?;
    durable::replace_with(file, path)
}
