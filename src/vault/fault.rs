//! What went wrong with a blob request: every error of the store becomes one of a few cases, each with its next step.
//!
//! `object_store` folds most answers into `Generic` and every 409 into `AlreadyExists`, and keeps its own error types
//! private. What can be known is in the chain of sources: the HTTP status and the service's error code in the text of
//! one of them, the transport's kind in another. A test holds that text down.

use std::error::Error as StdError;
use std::time::Duration;

use object_store::client::{HttpError, HttpErrorKind};

use crate::fault::{Classify, Fault};

/// Why a blob request failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BlobCause {
    /// No object of that name.
    NotFound,
    /// No container (or directory) at the URL.
    NoContainer,
    /// The name is taken, or the service answered 409 for a reason of its own: only reading back tells.
    AlreadyExists,
    /// A policy forbids to write or change the object.
    Immutable,
    /// The credential was not accepted.
    Unauthenticated,
    /// The credential is known but may not do this, or a firewall rule is in the way.
    Forbidden,
    /// The service asks to slow down (429, 503, "server busy").
    Throttled,
    /// The service failed (other 5xx).
    ServerError(u16),
    /// No answer in time.
    Timeout,
    /// The host's name is not known.
    Dns,
    /// The host cannot be reached, or the connection broke.
    Connection,
    /// The TLS certificate of the endpoint is not trusted.
    Tls,
    /// The disk under a directory vault is full.
    StorageFull,
    /// Any other HTTP status.
    Status(u16),
    /// Anything else.
    Other,
}

/// A failed blob request.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {object} failed: {}", self.explained())]
pub struct BlobError {
    /// `put`, `get`, `list` or `delete`.
    pub operation: &'static str,
    /// The object's name within the vault.
    pub object: String,
    /// Which case it is.
    pub cause: BlobCause,
    /// The service's own error code, such as `AuthenticationFailed`; empty if none came.
    pub code: String,
    /// Where the vault is, and with which credential it was asked. Never a secret.
    pub place: String,
    /// One line of the underlying error. The error itself is not kept as a source: its text may hold whole answers of
    /// the service, and with a SAS token the URL.
    detail: String,
}

impl BlobError {
    /// Classifies an error of the store.
    #[must_use]
    pub fn new(operation: &'static str, object: &str, place: &str, error: &object_store::Error) -> Self {
        let (cause, code) = classify(error);
        let detail = one_line(error);
        Self { operation, object: object.to_owned(), cause, code, place: place.to_owned(), detail }
    }

    /// No answer within the driver's own limit.
    #[must_use]
    pub fn timeout(operation: &'static str, object: &str, place: &str, after: Duration) -> Self {
        Self {
            operation,
            object: object.to_owned(),
            cause: BlobCause::Timeout,
            code: String::new(),
            place: place.to_owned(),
            detail: format!("no answer within {after:?}"),
        }
    }

    /// An answer that stands for a passing trouble of the service, such as 503, where the client library calls no answer
    /// an error.
    pub(super) fn answered(operation: &'static str, object: &str, place: &str, status: u16) -> Self {
        let cause = match status {
            429 | 503 => BlobCause::Throttled,
            500.. => BlobCause::ServerError(status),
            _ => BlobCause::Status(status),
        };
        let detail = format!("the answer was {status}");
        Self { operation, object: object.to_owned(), cause, code: String::new(), place: place.to_owned(), detail }
    }

    /// Whether another try, with nothing changed by anybody, may well succeed.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self.cause {
            BlobCause::Throttled
            | BlobCause::ServerError(_)
            | BlobCause::Timeout
            | BlobCause::Connection
            | BlobCause::Dns => true,
            // Azurite answers so while its memory is full, and a lost answer looks the same: reading back decides.
            BlobCause::AlreadyExists => true,
            BlobCause::Status(status) => status == 408,
            BlobCause::NotFound
            | BlobCause::NoContainer
            | BlobCause::Immutable
            | BlobCause::Unauthenticated
            | BlobCause::Forbidden
            | BlobCause::Tls
            | BlobCause::StorageFull
            | BlobCause::Other => false,
        }
    }

    /// Whether the service, or the way to it, is overloaded: send less at a time.
    #[must_use]
    pub fn is_overload(&self) -> bool {
        matches!(self.cause, BlobCause::Throttled | BlobCause::Timeout)
    }

    /// The word for metrics and logs.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match self.cause {
            BlobCause::NotFound => "not_found",
            BlobCause::NoContainer => "no_container",
            BlobCause::AlreadyExists => "exists",
            BlobCause::Immutable => "immutable",
            BlobCause::Unauthenticated => "unauthenticated",
            BlobCause::Forbidden => "forbidden",
            BlobCause::Throttled => "throttled",
            BlobCause::ServerError(_) => "server_error",
            BlobCause::Timeout => "timeout",
            BlobCause::Dns | BlobCause::Connection | BlobCause::Tls => "connection",
            BlobCause::StorageFull => "storage_full",
            BlobCause::Status(_) | BlobCause::Other => "other",
        }
    }

    fn explained(&self) -> String {
        let place = &self.place;
        let code = if self.code.is_empty() { String::new() } else { format!(" ({})", self.code) };
        match self.cause {
            BlobCause::NotFound => format!("there is no such object in {place}"),
            BlobCause::NoContainer => {
                format!("there is no container or directory at {place}{code}: check the URL, or create it first")
            }
            BlobCause::AlreadyExists => format!("{place} says that the name is taken{code}"),
            BlobCause::Immutable => {
                format!(
                    "an immutability policy or lease of {place} forbids it{code}: nothing may overwrite vault objects"
                )
            }
            BlobCause::Unauthenticated => {
                format!("{place} did not accept the credential{code}: check that it is right and not expired")
            }
            BlobCause::Forbidden => format!(
                "{place} denied it{code}: check the key or token, its permissions (read, list, create), the clock of \
                 this machine and the account's network rules"
            ),
            BlobCause::Throttled => format!("{place} asks to slow down{code}; it is tried again"),
            BlobCause::ServerError(status) => format!("{place} answered {status}{code}; try again"),
            BlobCause::Timeout => format!("no answer in time from {place}; try again"),
            BlobCause::Dns => format!("the host name of {place} is not known: check the account name and the DNS"),
            BlobCause::Connection => format!("{place} cannot be reached ({}): check that it runs", self.detail),
            BlobCause::Tls => {
                format!("the TLS certificate of {place} is not trusted ({}): check SSL_CERT_FILE", self.detail)
            }
            BlobCause::StorageFull => format!("no space is left at {place}: free some; it goes on by itself"),
            BlobCause::Status(status) => format!("{place} answered {status}{code}"),
            BlobCause::Other => format!("{}, at {place}", self.detail),
        }
    }
}

impl Classify for BlobError {
    fn fault(&self) -> Fault {
        if self.is_passing() {
            return Fault::Retry;
        }
        match self.cause {
            BlobCause::StorageFull => Fault::Retry,
            _ => Fault::Reject,
        }
    }
}

/// What tells whether the same request may be sent again.
pub(super) trait Passing: std::fmt::Display {
    /// See [`BlobError::is_passing`].
    fn is_passing(&self) -> bool;
}

impl Passing for BlobError {
    fn is_passing(&self) -> bool {
        self.is_passing()
    }
}

fn sources(error: &object_store::Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    std::iter::successors(Some(error as &(dyn StdError + 'static)), |error| (**error).source())
}

/// The service's error code: `<Code>…</Code>` of the answer's body.
fn service_code(text: &str) -> Option<&str> {
    let code = text.split_once("<Code>")?.1.split_once("</Code>")?.0;
    (code.len() <= 80 && code.bytes().all(|b| b.is_ascii_alphanumeric())).then_some(code)
}

/// Of an answer, or of the part of an answer that tells of one deletion.
fn http_status(text: &str) -> Option<u16> {
    let rest = text.split_once("non-2xx status code: ").or_else(|| text.split_once(" (code: "))?.1;
    rest.get(..3)?.parse().ok()
}

/// The most telling line of an error: the innermost source, cut, and without anything that looks like a signature.
fn one_line(error: &object_store::Error) -> String {
    let text = sources(error).last().map(ToString::to_string).unwrap_or_default();
    let line: String = text.lines().next().unwrap_or_default().chars().take(200).collect();
    if line.contains("sig=") || line.contains("Signature") { "details withheld".into() } else { line }
}

fn classify(error: &object_store::Error) -> (BlobCause, String) {
    let text = error.to_string();
    let code = service_code(&text).unwrap_or_default().to_owned();
    let cause = match error {
        object_store::Error::NotFound { source, .. } => {
            let directory_gone = !text.contains("status code") && source.to_string().contains("root");
            if code == "ContainerNotFound" || code == "ContainerBeingDeleted" || directory_gone {
                BlobCause::NoContainer
            } else {
                BlobCause::NotFound
            }
        }
        object_store::Error::AlreadyExists { .. } => from_conflict(&code),
        object_store::Error::Precondition { .. } => BlobCause::AlreadyExists,
        object_store::Error::Unauthenticated { .. } => BlobCause::Unauthenticated,
        object_store::Error::PermissionDenied { .. } => BlobCause::Forbidden,
        _ => http_status(&text).map_or_else(|| from_transport(error), from_status),
    };
    (cause, code)
}

fn from_conflict(code: &str) -> BlobCause {
    match code {
        "BlobImmutableDueToPolicy" | "LeaseIdMissing" | "SnapshotsPresent" => BlobCause::Immutable,
        "ContainerBeingDeleted" | "ContainerDisabled" => BlobCause::NoContainer,
        _ => BlobCause::AlreadyExists,
    }
}

fn from_status(status: u16) -> BlobCause {
    match status {
        429 | 503 => BlobCause::Throttled,
        500..=599 => BlobCause::ServerError(status),
        401 => BlobCause::Unauthenticated,
        403 => BlobCause::Forbidden,
        404 => BlobCause::NotFound,
        _ => BlobCause::Status(status),
    }
}

fn from_transport(error: &object_store::Error) -> BlobCause {
    let mut cause = BlobCause::Other;
    for source in sources(error) {
        if let Some(http) = source.downcast_ref::<HttpError>() {
            cause = match http.kind() {
                HttpErrorKind::Timeout => return BlobCause::Timeout,
                _ => BlobCause::Connection,
            };
        }
        if let Some(io) = source.downcast_ref::<std::io::Error>() {
            match io.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => return BlobCause::StorageFull,
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                    return BlobCause::Forbidden;
                }
                std::io::ErrorKind::TimedOut => return BlobCause::Timeout,
                _ => {}
            }
        }
        let text = source.to_string();
        if text.contains("dns error") || text.contains("failed to lookup address") {
            return BlobCause::Dns;
        }
        if text.contains("certificate") {
            return BlobCause::Tls;
        }
    }
    cause
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "Test", source: text.to_owned().into() }
    }

    #[test]
    fn statuses_are_found_in_the_text_and_sorted_into_passing_and_lasting() {
        let shown = |status: &str| {
            let text = format!("Server returned non-2xx status code: {status}: <Error><Code>Busy</Code></Error>");
            BlobError::new("put", "b/x", "az://a/c", &generic(&text))
        };
        let busy = shown("503 Service Unavailable");
        assert_eq!(busy.cause, BlobCause::Throttled);
        assert!(busy.is_passing() && busy.is_overload());
        assert!(busy.to_string().contains("(Busy)"), "{busy}");
        assert_eq!(shown("500 Internal Server Error").cause, BlobCause::ServerError(500));
        assert_eq!(shown("403 Forbidden").fault(), Fault::Reject);
        assert_eq!(shown("400 Bad Request").cause, BlobCause::Status(400));
        let part = generic("Bulk delete request failed for key b/x: Forbidden (code: 403)");
        assert_eq!(BlobError::new("delete", "b/x", "az://a/c", &part).cause, BlobCause::Forbidden);
    }

    #[test]
    fn signatures_never_reach_an_error_text() {
        let error = BlobError::new("get", "vault", "az://a/c", &generic("at https://a/c?sv=1&sig=abcdef refused"));
        assert!(!error.to_string().contains("abcdef"), "{error}");
    }

    #[test]
    fn a_full_disk_parks_and_a_forbidden_directory_is_no_passing_failure() {
        let io = |kind| object_store::Error::Generic {
            store: "LocalFileSystem",
            source: Box::new(std::io::Error::from(kind)),
        };
        let full = BlobError::new("put", "b/x", "file:///v", &io(std::io::ErrorKind::StorageFull));
        assert_eq!(
            (full.cause.clone(), full.is_passing(), full.fault()),
            (BlobCause::StorageFull, false, Fault::Retry)
        );
        let denied = BlobError::new("put", "b/x", "file:///v", &io(std::io::ErrorKind::PermissionDenied));
        assert_eq!(denied.cause, BlobCause::Forbidden);
    }
}
