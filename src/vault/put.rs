//! Writing an object that nothing may ever overwrite, and knowing afterwards whether it is there.
//!
//! An answer may be lost after the store applied the PUT, and the store says "already exists" for any 409, even if
//! nothing was stored. So that answer proves nothing: the object is read back and compared.
//!
//! - same bytes: the PUT, or an earlier try of it, succeeded;
//! - absent: the PUT failed, and may be tried again;
//! - other bytes: two writers share a name, which the naming rules out. That is a bug, and its lane stops.
//!
//! The comparison is of every byte, not of a digest: the body is still at hand.

use std::time::Duration;

use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{GetOptions, PutPayload};
use tokio::time::timeout;

use super::fault::{BlobCause, BlobError};
use super::store::VaultStore;
use crate::fault::{Classify, Fault};
use crate::mutants::{self, Mutant};

/// How an object came to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// This PUT stored it.
    Now,
    /// An earlier PUT of the same bytes had stored it.
    Before,
}

/// Why an object is not known to be stored.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The PUT, or the reading back, failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The store said "already exists", yet nothing is there.
    #[error("put {object} failed: {place} said that it exists already, but it does not; try again")]
    NotStored {
        /// The object.
        object: String,
        /// Where.
        place: String,
    },
    /// Another object has the name.
    #[error(
        "{object} exists in {place} with other content ({have_bytes} bytes, ours has {want_bytes}): never written twice"
    )]
    Taken {
        /// The object.
        object: String,
        /// Where.
        place: String,
        /// Size of what is there.
        have_bytes: u64,
        /// Size of what was to be written.
        want_bytes: u64,
    },
}

impl Classify for PutError {
    fn fault(&self) -> Fault {
        match self {
            Self::Blob(error) => error.fault(),
            Self::NotStored { .. } => Fault::Retry,
            Self::Taken { .. } => Fault::Fatal,
        }
    }
}

/// Stores `body` at `path` if nothing is there: one try, at most one reading back, each within `limit`.
///
/// # Errors
/// [`PutError`]; after `Blob` and `NotStored` the object may or may not be there, and the same call settles it.
pub async fn create_only(
    store: &VaultStore,
    path: &Path,
    body: PutPayload,
    limit: Duration,
) -> Result<Created, PutError> {
    match store.put_new(path, body.clone(), limit).await {
        Ok(()) => Ok(Created::Now),
        Err(error) if error.cause == BlobCause::AlreadyExists && mutants::on(Mutant::ExistsTrusted) => {
            Ok(Created::Before)
        }
        Err(error) if error.cause == BlobCause::AlreadyExists => prove(store, path, &body, limit).await,
        Err(error) => Err(error.into()),
    }
}

/// Reads `path` back and compares it with `body`.
async fn prove(store: &VaultStore, path: &Path, body: &PutPayload, limit: Duration) -> Result<Created, PutError> {
    let place = store.shown();
    let read = async {
        let result = store.inner().get_opts(path, GetOptions::default()).await?;
        let have_bytes = result.meta.size;
        if have_bytes != body.content_length() as u64 {
            return Ok((have_bytes, false));
        }
        let mut rest = Comparison::new(body);
        let mut pieces = result.into_stream();
        while let Some(piece) = pieces.next().await {
            if !rest.takes(&piece?) {
                return Ok((have_bytes, false));
            }
        }
        Ok((have_bytes, rest.is_done()))
    };
    let result: object_store::Result<_> = match timeout(limit, read).await {
        Ok(result) => result,
        Err(_) => return Err(BlobError::timeout("get", path.as_ref(), place, limit).into()),
    };
    let object = path.to_string();
    match result {
        Ok((_, true)) => Ok(Created::Before),
        Ok((have_bytes, false)) => {
            let want_bytes = body.content_length() as u64;
            Err(PutError::Taken { object, place: place.to_owned(), have_bytes, want_bytes })
        }
        Err(error) => {
            let error = BlobError::new("get", path.as_ref(), place, &error);
            match error.cause {
                BlobCause::NotFound => Err(PutError::NotStored { object, place: place.to_owned() }),
                _ => Err(error.into()),
            }
        }
    }
}

/// Compares a body in pieces with a stream in other pieces.
struct Comparison<'a> {
    pieces: std::slice::Iter<'a, bytes::Bytes>,
    rest: &'a [u8],
}

impl<'a> Comparison<'a> {
    fn new(body: &'a PutPayload) -> Self {
        Self { pieces: body.as_ref().iter(), rest: &[] }
    }

    /// Whether `have` is what follows.
    fn takes(&mut self, mut have: &[u8]) -> bool {
        while !have.is_empty() {
            if self.rest.is_empty() {
                match self.pieces.next() {
                    Some(piece) => self.rest = piece,
                    None => return false,
                }
                continue;
            }
            let length = have.len().min(self.rest.len());
            if have[..length] != self.rest[..length] {
                return false;
            }
            (have, self.rest) = (&have[length..], &self.rest[length..]);
        }
        true
    }

    fn is_done(&mut self) -> bool {
        self.rest.is_empty() && self.pieces.all(bytes::Bytes::is_empty)
    }
}

#[cfg(test)]
mod tests;
