//! Blob Batch: many deletions in one request, as the store client sends each of them.
//!
//! ```text
//!  --<boundary>                                  --<boundary>
//!  Content-ID: 0                                 Content-ID: 0
//!                                         ─►
//!  DELETE /<container>/<name> HTTP/1.1           HTTP/1.1 202 Accepted
//! ```

use axum::body::Body;
use axum::http::header;
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use percent_encoding::percent_decode_str;

use super::Shared;
use super::blobs::Refusal;
use super::http::{Failure, NOT_KNOWN, answer};

/// Most parts of one request, as the service has it.
const PARTS_MAX: usize = 256;
const BOUNDARY: &str = "batchresponse_sink";

/// Carries out a batch whose parts are all deletions. Parts are taken as signed: the request around them is.
pub(super) fn carry_out(shared: &Shared, parts: &Parts, body: &[u8]) -> Result<Response, Failure> {
    let boundary = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let boundary = boundary.and_then(|value| value.split_once("boundary=")).ok_or(NOT_KNOWN)?.1;
    let text = std::str::from_utf8(body).map_err(|_| NOT_KNOWN)?;
    let marker = format!("--{boundary}");
    let mut out = String::new();
    for (number, part) in text.split(marker.as_str()).skip(1).enumerate() {
        if part.starts_with("--") {
            break;
        }
        if number == PARTS_MAX {
            return Err(NOT_KNOWN);
        }
        let line = |start: &str| part.lines().find_map(|line| line.strip_prefix(start));
        let target = line("DELETE /").and_then(|line| line.split_once(' ')).ok_or(NOT_KNOWN)?.0;
        let id =
            part.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-id: ").map(str::to_owned));
        let id = id.ok_or(NOT_KNOWN)?;
        shared.count(|counts| counts.deletes += 1);
        let status = match delete(shared, target) {
            Ok(()) => StatusCode::ACCEPTED,
            Err(Refusal::NoBlob | Refusal::NoContainer) => StatusCode::NOT_FOUND,
            Err(_) => StatusCode::CONFLICT,
        };
        out += &format!(
            "--{BOUNDARY}\r\nContent-Type: application/http\r\nContent-ID: {id}\r\n\r\nHTTP/1.1 {status}\r\n\r\n"
        );
    }
    if out.is_empty() {
        return Err(NOT_KNOWN);
    }
    out += &format!("--{BOUNDARY}--\r\n");
    let mut response = answer(StatusCode::ACCEPTED, Body::from(out));
    let kind = format!("multipart/mixed; boundary={BOUNDARY}");
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::try_from(kind).map_err(|_| NOT_KNOWN)?);
    Ok(response)
}

fn delete(shared: &Shared, target: &str) -> Result<(), Refusal> {
    let path = target.split('?').next().unwrap_or_default();
    let own = path.strip_prefix(shared.account.name()).and_then(|path| path.strip_prefix('/'));
    let (container, name) = own.unwrap_or(path).split_once('/').ok_or(Refusal::NoBlob)?;
    let name = percent_decode_str(name).decode_utf8_lossy();
    shared.blobs.delete(container, &name)
}
