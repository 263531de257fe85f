//! Control objects that are signed besides their MAC.
//!
//! ```text
//! {"format":…,"version":1,"signed":"{…}","signature":"128 hexadecimal digits"}\n
//! MAC, as of every control object
//! ```
//!
//! `signed` is the content as JSON text. What the signature covers is `tidegate 1 signed`, the vault's id, the object's name and that
//! text, with a line end between each: it holds for one place of one vault, whatever version the object has and whatever fields a
//! later release adds. So a reader tells a newer release's object, which it must not step over, from one that only says so.

use std::marker::PhantomData;

use object_store::path::Path;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{ControlObject, ObjectError, decode, decode_unchecked, malformed, split};
use crate::keys::{CatalogKey, Signature, SigningKey, VerifyingKey};
use crate::types::Id128;

/// What every signed text begins with.
const PURPOSE: &str = "tidegate 1 signed";

/// What is signed.
pub trait SignedContent: Serialize + DeserializeOwned {
    /// The version of the object that this very content makes: an older one, where that says everything, is read by older builds too.
    fn version(&self) -> u32 {
        1
    }
}

/// A content and the signature that it came with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Signed<T> {
    signed: String,
    signature: Signature,
    /// As it is to be written; of one that was read, the first.
    #[serde(skip, default = "first_version")]
    pub(super) version: u32,
    #[serde(skip)]
    content: PhantomData<T>,
}

fn first_version() -> u32 {
    1
}

/// As much of it as every version has.
#[derive(Deserialize)]
struct Envelope {
    signed: String,
    signature: Signature,
}

/// Why a signed object does not count.
#[derive(Debug)]
pub enum SignedError {
    /// Whoever could sign it did, with a newer release: it must not be stepped over.
    Newer(ObjectError),
    /// It is nothing that counts, with the reason.
    Refused(String),
}

impl<T: SignedContent> Signed<T> {
    /// Signs a content for its place.
    ///
    /// # Errors
    /// [`ObjectError::Malformed`] if the content cannot be expressed, which no type of this module does.
    pub fn new(key: &SigningKey, vault: Id128, path: &Path, content: &T) -> Result<Self, ObjectError> {
        let signed = serde_json::to_string(content).map_err(|error| malformed(path, &error))?;
        let signature = key.sign(&text(vault, path, &signed));
        Ok(Self { signed, signature, version: content.version(), content: PhantomData })
    }

    /// Opens the bytes of a signed object: its signature by the key that must have made it, then everything else. Without the catalog
    /// key the MAC is not checked.
    ///
    /// # Errors
    /// [`SignedError`].
    pub fn open(
        catalog: Option<&CatalogKey>,
        key: &VerifyingKey,
        vault: Id128,
        path: &Path,
        bytes: &[u8],
    ) -> Result<T, SignedError>
    where
        Self: ControlObject,
    {
        let refused = |error: ObjectError| SignedError::Refused(error.to_string());
        let (line, _) = split(path, bytes).map_err(refused)?;
        let envelope: Envelope = serde_json::from_slice(line).map_err(|error| refused(malformed(path, &error)))?;
        if !key.signed(&text(vault, path, &envelope.signed), &envelope.signature) {
            return Err(SignedError::Refused("it is not signed by the key that could".to_owned()));
        }
        let checked: Result<Self, ObjectError> = match catalog {
            Some(catalog) => decode(catalog, path, bytes),
            None => decode_unchecked(path, bytes),
        };
        match checked {
            Ok(checked) => serde_json::from_str(&checked.signed).map_err(|error| refused(malformed(path, &error))),
            Err(error @ ObjectError::Version { .. }) => Err(SignedError::Newer(error)),
            Err(error) => Err(refused(error)),
        }
    }
}

fn text(vault: Id128, path: &Path, signed: &str) -> Vec<u8> {
    format!("{PURPOSE}\n{vault}\n{path}\n{signed}").into_bytes()
}
