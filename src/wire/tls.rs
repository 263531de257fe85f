//! TLS files.

use std::path::PathBuf;

use crate::fault::{Classify, Fault};

/// The three files that each side needs, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate of the private authority that both sides trust.
    pub ca: PathBuf,
    /// This side's certificate (and intermediates, if any).
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// TLS files that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Classify for TlsError {
    fn fault(&self) -> Fault {
        Fault::Reject
    }
}
