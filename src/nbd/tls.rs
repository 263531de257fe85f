//! TLS for a server whose clients have to show who they are.
//!
//! Both sides have certificates of one authority, as everywhere in this system, and a client is let in if its certificate is
//! an agent's that names the disk. So nobody reads a disk by a certificate that was made for another one.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, Join};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::Export;
use crate::fault::{Classify, Fault};
use crate::flow::Clock;
use crate::types::DiskId;
use crate::wire::tls::{DiskClients, TlsError, TlsFiles};

/// Why a client was not let in.
#[derive(Debug, thiserror::Error)]
pub enum TlsRefusal {
    /// The certificates of this side.
    #[error(transparent)]
    Files(#[from] TlsError),
    /// The handshake failed.
    #[error("TLS with a client failed: {why}")]
    Handshake {
        /// What was wrong with the client's certificate, or what TLS said.
        why: String,
    },
    /// The client may not use this disk.
    #[error(
        "a client was refused: its certificate is of {found}, which does not name disk {disk}; issue one with `tidegate pki issue agent --disk {disk}`"
    )]
    NotAllowed {
        /// Whose certificate it is.
        found: String,
        /// The disk.
        disk: String,
    },
}

impl Classify for TlsRefusal {
    fn fault(&self) -> Fault {
        Fault::Reject
    }
}

/// The certificates of a server, and of whom it lets in.
pub struct ServerTls(DiskClients);

impl ServerTls {
    /// Reads the files: the authority, and this side's certificate and key.
    ///
    /// # Errors
    /// [`TlsError`] names the file.
    pub fn load(files: &TlsFiles, clock: &Arc<dyn Clock>) -> Result<Self, TlsError> {
        DiskClients::load(files, clock).map(Self)
    }

    /// Encrypts a connection, if the client may use all of `exports`.
    pub(super) async fn accept<R, W>(
        &self,
        read: R,
        write: W,
        exports: &[Arc<dyn Export>],
    ) -> Result<TlsStream<Join<R, W>>, TlsRefusal>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let (config, explanation) = self.0.config()?;
        let accepted = TlsAcceptor::from(Arc::new(config)).accept(tokio::io::join(read, write)).await;
        let why = |error: io::Error| {
            let why = explanation.lock().take().unwrap_or_else(|| error.to_string());
            TlsRefusal::Handshake { why }
        };
        let stream = accepted.map_err(why)?;
        let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
        for export in exports {
            let disk = DiskId::new(export.name()).ok();
            let found = DiskClients::admit(certificates, disk.as_ref());
            found.map_err(|found| TlsRefusal::NotAllowed { found, disk: export.name().to_owned() })?;
        }
        Ok(stream)
    }
}
