//! Who signed a request: Azure's Shared Key, as its documentation describes it.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, Method, Uri, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

/// The account that emulators of the service have built in.
pub const ACCOUNT_DEFAULT: &str = "devstoreaccount1";
/// Its key, which their documentation publishes; gateways use it for this account when they are given no other.
pub const KEY_DEFAULT: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A key that is no base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadKeyError;

impl std::fmt::Display for BadKeyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the account's key is no base64")
    }
}

impl std::error::Error for BadKeyError {}

/// A storage account.
#[derive(Clone)]
pub struct Account {
    name: String,
    key: hmac::Key,
}

impl Default for Account {
    fn default() -> Self {
        Self { name: ACCOUNT_DEFAULT.into(), key: key(&STANDARD.decode(KEY_DEFAULT).unwrap_or_default()) }
    }
}

fn key(bytes: &[u8]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, bytes)
}

/// What is wrong with a request's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsigned {
    /// There is none of the kind that is checked here.
    Missing,
    /// It is not that of the account's key over this request.
    Wrong,
}

impl Account {
    /// An account with its key in base64.
    ///
    /// # Errors
    /// [`BadKeyError`].
    pub fn new(name: &str, key_base64: &str) -> Result<Self, BadKeyError> {
        let bytes = STANDARD.decode(key_base64.trim()).map_err(|_| BadKeyError)?;
        Ok(Self { name: name.to_owned(), key: key(&bytes) })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Unsigned> {
        let given =
            headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).ok_or(Unsigned::Missing)?;
        let given = given.strip_prefix("SharedKey ").ok_or(Unsigned::Missing)?;
        let (account, signature) = given.split_once(':').ok_or(Unsigned::Wrong)?;
        let signature = STANDARD.decode(signature).map_err(|_| Unsigned::Wrong)?;
        let text = self.text_to_sign(method, uri, headers);
        let signed = account == self.name && hmac::verify(&self.key, text.as_bytes(), &signature).is_ok();
        if signed { Ok(()) } else { Err(Unsigned::Wrong) }
    }

    #[cfg(test)]
    pub(super) fn sign(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> String {
        let text = self.text_to_sign(method, uri, headers);
        format!("SharedKey {}:{}", self.name, STANDARD.encode(hmac::sign(&self.key, text.as_bytes())))
    }

    fn text_to_sign(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> String {
        let mut text = format!("{method}\n");
        for name in [
            header::CONTENT_ENCODING,
            header::CONTENT_LANGUAGE,
            header::CONTENT_LENGTH,
            header::HeaderName::from_static("content-md5"),
            header::CONTENT_TYPE,
            header::DATE,
            header::IF_MODIFIED_SINCE,
            header::IF_MATCH,
            header::IF_NONE_MATCH,
            header::IF_UNMODIFIED_SINCE,
            header::RANGE,
        ] {
            let value = headers.get(&name).and_then(|value| value.to_str().ok()).unwrap_or_default();
            // An empty body is signed as no length at all.
            let empty = name == header::CONTENT_LENGTH && value == "0";
            text.push_str(if empty { "" } else { value });
            text.push('\n');
        }
        let own: BTreeMap<&str, &str> = headers
            .iter()
            .filter(|(name, _)| name.as_str().starts_with("x-ms-"))
            .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?.trim())))
            .collect();
        for (name, value) in own {
            text.push_str(&format!("{name}:{value}\n"));
        }
        text.push_str(&format!("/{}{}", self.name, uri.path()));
        let mut fields: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            fields.entry(name.to_lowercase()).or_default().push(value.into_owned());
        }
        for (name, mut values) in fields {
            values.sort();
            text.push_str(&format!("\n{name}:{}", values.join(",")));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request, as its documentation writes it out, and what it gives to sign.
    #[test]
    fn the_text_that_is_signed_is_the_documented_one() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-ms-version", "2015-02-21"),
            ("x-ms-date", "Fri, 26 Jun 2015 23:39:12 GMT"),
            ("content-length", "0"),
            ("host", "myaccount.blob.core.windows.net"),
        ] {
            headers.insert(header::HeaderName::from_static(name), value.parse().expect("a value"));
        }
        let account = Account::new("myaccount", "a2V5").expect("base64");
        let uri: Uri = "/mycontainer?restype=container&comp=metadata&timeout=20".parse().expect("a target");
        let text = "GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\nx-ms-version:2015-02-21\n\
                    /myaccount/mycontainer\ncomp:metadata\nrestype:container\ntimeout:20";
        assert_eq!(account.text_to_sign(&Method::GET, &uri, &headers), text);
    }

    #[test]
    fn a_signature_holds_for_its_key_and_request_only() {
        let account = Account::default();
        let uri: Uri = "/devstoreaccount1/c/a%20b?comp=x".parse().expect("a target");
        let mut headers = HeaderMap::new();
        headers.insert("x-ms-date", "today".parse().expect("a value"));
        assert_eq!(account.check(&Method::PUT, &uri, &headers), Err(Unsigned::Missing));
        let signature = account.sign(&Method::PUT, &uri, &headers);
        headers.insert(header::AUTHORIZATION, signature.parse().expect("a value"));
        assert_eq!(account.check(&Method::PUT, &uri, &headers), Ok(()));
        assert_eq!(account.check(&Method::GET, &uri, &headers), Err(Unsigned::Wrong));
        let other = Account::new(ACCOUNT_DEFAULT, "a2V5").expect("base64");
        assert_eq!(other.check(&Method::PUT, &uri, &headers), Err(Unsigned::Wrong));
        headers.insert("x-ms-date", "tomorrow".parse().expect("a value"));
        assert_eq!(account.check(&Method::PUT, &uri, &headers), Err(Unsigned::Wrong));
    }
}
