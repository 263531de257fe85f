//! The agent's side: connections to one gateway, all of one session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::time::{sleep, timeout};

use super::conn::{Conn, tune};
use super::tls::Tls;
use super::{Ending, Session, SessionEnd, Side};
use crate::types::Id128;
use crate::wire::messages::{Join, JoinAs, Message};
use crate::wire::net::Net;

/// Pause before a gateway that hung up without a word is asked again. It had no place for one more handshake.
const BUSY_PAUSE: Duration = Duration::from_millis(250);

/// Makes the connections of one session.
pub(in crate::wire) struct Dialer {
    pub(in crate::wire) remote: SocketAddr,
    /// The name that the gateway's certificate must have.
    pub(in crate::wire) name: ServerName<'static>,
    pub(in crate::wire) tls: Arc<rustls::ClientConfig>,
    pub(in crate::wire) net: Net,
    /// Name of the session.
    pub(in crate::wire) session: Id128,
    /// Silence after which the session counts as lost.
    pub(in crate::wire) idle_timeout: Duration,
    /// For a connection and its handshake.
    pub(in crate::wire) step_timeout: Duration,
    /// The certificate with which the session began.
    pub(in crate::wire) gateway: Option<CertificateDer<'static>>,
}

impl Dialer {
    /// Begins the session. To be bounded by the caller: a gateway without a place is asked again and again.
    pub(in crate::wire) async fn dial(mut self) -> Result<Session, SessionEnd> {
        let conn = self.connect(JoinAs::Control).await?;
        self.gateway = conn.peer_certificates().first().cloned();
        let idle_timeout = self.idle_timeout;
        Ok(Session::new(conn, Ending::new(), idle_timeout, Side::Agent(self)))
    }

    /// Makes a further connection.
    pub(super) async fn dial_stream(&self) -> Result<Conn, SessionEnd> {
        let late = |_| SessionEnd::Lost(format!("no further connection within {} s", self.step_timeout.as_secs()));
        let conn = timeout(self.step_timeout, self.connect(JoinAs::Stream)).await.map_err(late)??;
        // Behind one address may stand several gateways: a disk's data go to the one that said hello, or nowhere.
        if conn.peer_certificates().first() != self.gateway.as_ref() {
            return Err(SessionEnd::Lost("another gateway answers at the same address".to_owned()));
        }
        Ok(conn)
    }

    async fn connect(&self, join_as: JoinAs) -> Result<Conn, SessionEnd> {
        loop {
            match self.connect_once(join_as).await {
                Err(SessionEnd::Busy) => sleep(BUSY_PAUSE).await,
                other => return other,
            }
        }
    }

    async fn connect_once(&self, join_as: JoinAs) -> Result<Conn, SessionEnd> {
        let lost = |error: &dyn std::fmt::Display| SessionEnd::Lost(error.to_string());
        let socket = self.net.connect_tcp(self.remote).await.map_err(|error| lost(&error))?;
        tune(&socket, self.idle_timeout).map_err(|error| lost(&error))?;
        let connection = UnbufferedClientConnection::new(Arc::clone(&self.tls), self.name.clone());
        let conn = Conn::handshake(socket, Tls::client(connection.map_err(|error| lost(&error))?), None).await?;
        // It goes out with the first frame of the stream.
        conn.write_later(Message::Join(Join { session: self.session, join_as }).encode())?;
        Ok(conn)
    }
}
