//! Connections over TCP, from their handshake to the session that they begin or join.
//!
//! An unfinished handshake holds a place of its network. From the handshake on a connection holds a place of its
//! certificate, which has as many as it may have streams, until it has said what it is; so an agent's silent
//! connections take nobody else's places.

use tokio::time::timeout;

use super::{Came, Close, check_identity, log_handshake_failure, log_late, log_refusal, streams_max};
use crate::wire::code::Code;
use crate::wire::messages::{Join, JoinAs, Message, Refused};
use crate::wire::server::Server;
use crate::wire::server::admission::{HELLOS_PER_AGENT_MAX, Network, Place};
use crate::wire::tls::Explanation;
use crate::wire::transport::tcp::{Arrival, JoinError};
use crate::wire::transport::{Session, identity_of};

impl From<JoinError> for Close {
    fn from(error: JoinError) -> Self {
        let code = match &error {
            JoinError::Frame(_) => Code::Frame,
            JoinError::Message(_) | JoinError::First | JoinError::Taken => Code::Message,
            JoinError::Left(_) => Code::Done,
            JoinError::Unknown => Code::Unavailable,
            JoinError::Full => Code::Busy,
        };
        Self::new(code, error.to_string())
    }
}

/// Handshake and join. The session that it began; `None` if it joined one, or was refused.
pub(super) async fn connect<H>(server: &Server<H>, came: Came, handshake: Place<Network>) -> Option<Session> {
    let address = came.address;
    let arrival = shake_hands(server, came).await?;
    match join(server, arrival, handshake).await {
        Ok(session) => session.map(Session::Tcp),
        Err((Close(code, text), arrival)) => {
            log_refusal(address, code, &text);
            arrival.refuse(&Message::Refused(Refused { code, text })).await;
            None
        }
    }
}

async fn shake_hands<H>(server: &Server<H>, Came { socket, address, place }: Came) -> Option<Arrival> {
    let (explanation, material) = (Explanation::default(), server.listener.material());
    let config = match material.server_config(&explanation) {
        Ok(config) => config.into(),
        Err(error) => {
            tracing::error!(%error, "TLS cannot be set up for a connection");
            return None;
        }
    };
    let shaking = Arrival::handshake(socket, config, server.listener.idle_timeout(), place);
    match timeout(server.limits.step_timeout, shaking).await {
        Ok(Ok(arrival)) => Some(arrival),
        Ok(Err(end)) => {
            log_handshake_failure(address, material.explain(end, &explanation));
            None
        }
        Err(_) => {
            log_late(address);
            None
        }
    }
}

async fn join<H>(
    server: &Server<H>,
    arrival: Arrival,
    handshake: Place<Network>,
) -> Result<Option<crate::wire::transport::tcp::Session>, (Close, Arrival)> {
    let agent = match check_identity(server, identity_of(&arrival.peer_certificates())) {
        Ok(agent) => agent,
        Err(close) => return Err((close, arrival)),
    };
    let places_max = streams_max(server, &agent) as usize + HELLOS_PER_AGENT_MAX;
    let Some(_place) = server.joins.take_among(&agent.agent, places_max) else {
        let text = format!("agent {} has too many connections that have not said what they are", agent.agent);
        return Err((Close::new(Code::Busy, text), arrival));
    };
    drop(handshake);
    let Join { session, join_as } = match timeout(server.limits.step_timeout, arrival.join()).await {
        Ok(Ok(join)) => join,
        Ok(Err(error)) => return Err((error.into(), arrival)),
        Err(_) => return Err((Close::new(Code::Timeout, "no join frame came in time"), arrival)),
    };
    let joined = match join_as {
        JoinAs::Control => server.sessions.begin(arrival, session, server.listener.idle_timeout()).map(Some),
        JoinAs::Stream => server.sessions.attach(arrival, session).map(|()| None),
    };
    joined.map_err(|refused| {
        let (error, arrival) = *refused;
        (error.into(), arrival)
    })
}
