//! QUIC in the words of the seam.

use rustls::pki_types::CertificateDer;

use super::{SessionEnd, StreamEnd};
use crate::wire::code::Code;

/// QUIC carries TLS alerts as error codes from here on.
const CRYPTO_ERRORS: u64 = 0x100;

fn alert(code: quinn::TransportErrorCode) -> Option<u8> {
    u64::from(code).checked_sub(CRYPTO_ERRORS).and_then(|alert| u8::try_from(alert).ok())
}

impl From<quinn::ConnectionError> for SessionEnd {
    fn from(error: quinn::ConnectionError) -> Self {
        match error {
            quinn::ConnectionError::LocallyClosed => Self::Local,
            quinn::ConnectionError::TransportError(error) if alert(error.code).is_some() => Self::Refused(error.reason),
            quinn::ConnectionError::ConnectionClosed(close)
                if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED =>
            {
                Self::Busy
            }
            quinn::ConnectionError::ConnectionClosed(close) => {
                alert(close.error_code).map_or_else(|| Self::Lost(close.to_string()), Self::Alert)
            }
            quinn::ConnectionError::ApplicationClosed(close) => Self::Closed {
                code: Code::from_var_int(close.error_code),
                text: String::from_utf8_lossy(&close.reason).into_owned(),
            },
            other => Self::Lost(other.to_string()),
        }
    }
}

impl From<quinn::ReadError> for StreamEnd {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::ConnectionLost(error) => Self::Session(error.into()),
            other => Self::Stream(other.to_string()),
        }
    }
}

impl From<quinn::WriteError> for StreamEnd {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::ConnectionLost(error) => Self::Session(error.into()),
            other => Self::Stream(other.to_string()),
        }
    }
}

/// The chain that TLS verified.
pub(super) fn peer_certificates(connection: &quinn::Connection) -> Vec<CertificateDer<'static>> {
    let identity = connection.peer_identity();
    identity.and_then(|identity| identity.downcast().ok()).map_or_else(Vec::new, |certificates| *certificates)
}
