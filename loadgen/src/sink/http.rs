//! Requests to answers.

use std::ops::Range;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use percent_encoding::percent_decode_str;

use super::Shared;
use super::batch;
use super::blobs::{Blob, Block, Conditions, Refusal};
use super::gate::Gate;
use super::listing::{self, Asked};
use super::sign::Unsigned;

/// Longest body that is taken: the largest batch and room for larger ones to come.
const BODY_BYTES_MAX: u64 = 256 << 20;
/// Version of the service that answers claim.
const SERVICE_VERSION: &str = "2023-11-03";

pub(super) async fn serve(gate: Gate, shared: Arc<Shared>) {
    let router = Router::new().fallback(handle).with_state(shared);
    // It serves until it is dropped, and has no error of its own.
    let _ = axum::serve(gate, router).await;
}

/// An error as the service tells it.
pub(super) struct Failure(StatusCode, &'static str, &'static str);

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoContainer => Self(StatusCode::NOT_FOUND, "ContainerNotFound", "The container does not exist."),
            Refusal::NoBlob => Self(StatusCode::NOT_FOUND, "BlobNotFound", "The blob does not exist."),
            Refusal::ContainerExists => {
                Self(StatusCode::CONFLICT, "ContainerAlreadyExists", "The container exists already.")
            }
            Refusal::BlobExists => Self(StatusCode::CONFLICT, "BlobAlreadyExists", "The blob exists already."),
            Refusal::Condition => {
                Self(StatusCode::PRECONDITION_FAILED, "ConditionNotMet", "The condition of the request is not met.")
            }
            Refusal::BlockList => {
                Self(StatusCode::BAD_REQUEST, "InvalidBlockList", "The list names a block that is not there.")
            }
            Refusal::TooManyBlocks => {
                Self(StatusCode::CONFLICT, "BlockCountExceedsLimit", "The blob has too many blocks.")
            }
            Refusal::Full => {
                Self(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "The sink's memory is full: see --memory.")
            }
        }
    }
}

impl From<Unsigned> for Failure {
    fn from(unsigned: Unsigned) -> Self {
        match unsigned {
            Unsigned::Missing => {
                Self(StatusCode::UNAUTHORIZED, "NoAuthenticationInformation", "Sign requests with the shared key.")
            }
            Unsigned::Wrong => {
                Self(StatusCode::FORBIDDEN, "AuthenticationFailed", "The signature is not that of the account's key.")
            }
        }
    }
}

pub(super) const NOT_KNOWN: Failure =
    Failure(StatusCode::NOT_IMPLEMENTED, "NotImplemented", "The sink does not know this request.");
const TOO_LONG: Failure = Failure(StatusCode::PAYLOAD_TOO_LARGE, "RequestBodyTooLarge", "The body is too long.");
const BROKEN: Failure = Failure(StatusCode::BAD_REQUEST, "IncompleteBody", "The body did not come whole.");
const BUSY: Failure = Failure(StatusCode::SERVICE_UNAVAILABLE, "ServerBusy", "The server is busy.");
const THROWN_AWAY: Failure =
    Failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "The sink has thrown this body away.");
const NO_RANGE: Failure = Failure(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange", "The range is outside the blob.");
const BAD_RANGE: Failure = Failure(StatusCode::BAD_REQUEST, "InvalidHeaderValue", "The range is not understood.");

pub(super) fn answer(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert("x-ms-version", HeaderValue::from_static(SERVICE_VERSION));
    response
}

fn failed(method: &Method, failure: &Failure) -> Response {
    let Failure(status, code, text) = *failure;
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>{code}</Code><Message>{text}</Message></Error>"
    );
    let body = if *method == Method::HEAD { Body::empty() } else { Body::from(body) };
    let mut response = answer(status, body);
    response.headers_mut().insert("x-ms-error-code", HeaderValue::from_static(code));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response
}

async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    // Also what is refused is read to its end, so that the refusal comes as an answer and not as a broken pipe.
    let body = read_body(&shared, &parts.headers, body).await;
    let outcome = async {
        let (body, bytes) = body?;
        let signed = if shared.sky.weather().refusing {
            Err(Unsigned::Wrong)
        } else {
            shared.account.check(&parts.method, &parts.uri, &parts.headers)
        };
        signed.inspect_err(|_| shared.count(|counts| counts.refused += 1))?;
        tokio::time::sleep(shared.sky.weather().latency()).await;
        if shared.sky.refuses() {
            shared.count(|counts| counts.busy += 1);
            return Err(BUSY);
        }
        carry_out(&shared, &parts, body, bytes).await
    };
    let mut response = outcome.await.unwrap_or_else(|failure| failed(&parts.method, &failure));
    date(&shared, response.headers_mut());
    response
}

/// The time as the store has it; its server names the machine's own unless a date is there.
fn date(shared: &Shared, headers: &mut HeaderMap) {
    let ahead_seconds = shared.sky.weather().clock_ahead_seconds;
    if ahead_seconds != 0.0 {
        let date = listing::http_date(shared.now_seconds() + ahead_seconds as i64);
        headers.extend(HeaderValue::try_from(date).ok().map(|date| (header::DATE, date)));
    }
}

/// The body, if it is kept, and its length.
async fn read_body(shared: &Shared, headers: &HeaderMap, body: Body) -> Result<(Option<Bytes>, u64), Failure> {
    let stated = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let kept = stated.is_none_or(|bytes| bytes <= shared.limits.discard_above_bytes.min(BODY_BYTES_MAX));
    // Room once and for all: growing would copy a batch several times.
    let mut whole = BytesMut::with_capacity(if kept { stated.unwrap_or(0) as usize } else { 0 });
    let mut stream = body.into_data_stream();
    let mut bytes = 0_u64;
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|_| BROKEN)?;
        bytes += piece.len() as u64;
        shared.sky.take_turn(piece.len()).await;
        if kept && bytes <= BODY_BYTES_MAX {
            whole.extend_from_slice(&piece);
        }
    }
    shared.count(|counts| counts.received_bytes += bytes);
    if bytes > BODY_BYTES_MAX {
        return Err(TOO_LONG);
    }
    Ok((kept.then(|| whole.freeze()), bytes))
}

/// What a request's query says.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(parts: &Parts) -> Self {
        let query = parts.uri.query().unwrap_or_default();
        Self(url::form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

async fn carry_out(shared: &Shared, parts: &Parts, body: Option<Bytes>, bytes: u64) -> Result<Response, Failure> {
    let query = Query::of(parts);
    let path = parts.uri.path().strip_prefix('/').and_then(|path| path.strip_prefix(shared.account.name()));
    let Some(path) = path.and_then(|path| path.strip_prefix('/')) else {
        shared.count(|counts| counts.others += 1);
        return Err(NOT_KNOWN);
    };
    let (container, name) = path.split_once('/').unwrap_or((path, ""));
    if name.is_empty() {
        if parts.method == Method::POST && query.get("comp") == Some("batch") {
            return batch::carry_out(shared, parts, &body.ok_or(THROWN_AWAY)?);
        }
        return of_container(shared, parts, &query, container).await;
    }
    let name = percent_decode_str(name).decode_utf8_lossy();
    match (&parts.method, query.get("comp")) {
        (&Method::PUT, None) => put(shared, parts, container, &name, body, bytes),
        (&Method::PUT, Some("block")) => {
            shared.count(|counts| counts.puts += 1);
            let id = query.get("blockid").ok_or(NOT_KNOWN)?;
            shared.blobs.put_block(container, &name, id, Block { body, bytes }, shared.limits.memory_bytes)?;
            Ok(answer(StatusCode::CREATED, Body::empty()))
        }
        (&Method::PUT, Some("blocklist")) => {
            shared.count(|counts| counts.puts += 1);
            let ids = listing::block_ids(&body.ok_or(THROWN_AWAY)?).ok_or(Refusal::BlockList)?;
            let (body, bytes) = shared.blobs.take_blocks(container, &name, &ids)?;
            store(shared, parts, container, &name, body, bytes)
        }
        (&Method::GET, None) => get(shared, parts, container, &name).await,
        (&Method::HEAD, None) => {
            shared.count(|counts| counts.heads += 1);
            let blob = shared.blobs.get(container, &name)?;
            Ok(described(StatusCode::OK, &blob, blob.bytes, Body::empty()))
        }
        (&Method::DELETE, None) => {
            shared.count(|counts| counts.deletes += 1);
            shared.blobs.delete(container, &name)?;
            Ok(answer(StatusCode::ACCEPTED, Body::empty()))
        }
        _ => {
            shared.count(|counts| counts.others += 1);
            Err(NOT_KNOWN)
        }
    }
}

async fn of_container(shared: &Shared, parts: &Parts, query: &Query, container: &str) -> Result<Response, Failure> {
    if query.get("comp") == Some("list") && parts.method == Method::GET && !container.is_empty() {
        return list(shared, query, container).await;
    }
    shared.count(|counts| counts.others += 1);
    if query.get("restype") != Some("container") || query.get("comp").is_some() || container.is_empty() {
        return Err(NOT_KNOWN);
    }
    let status = match parts.method {
        Method::PUT => shared.blobs.create_container(container).map(|()| StatusCode::CREATED)?,
        Method::DELETE => shared.blobs.delete_container(container).map(|()| StatusCode::ACCEPTED)?,
        Method::GET | Method::HEAD => shared.blobs.has_container(container).map(|()| StatusCode::OK)?,
        _ => return Err(NOT_KNOWN),
    };
    Ok(answer(status, Body::empty()))
}

async fn list(shared: &Shared, query: &Query, container: &str) -> Result<Response, Failure> {
    shared.count(|counts| counts.lists += 1);
    let here = shared.limits.page_names_max.max(1);
    let page_max = query.get("maxresults").and_then(|text| text.parse().ok()).unwrap_or(here).clamp(1, here);
    let asked = Asked {
        endpoint: shared.account.name(),
        container,
        prefix: query.get("prefix").unwrap_or_default(),
        delimiter: query.get("delimiter").filter(|delimiter| !delimiter.is_empty()),
        marker: query.get("marker").unwrap_or_default(),
        page_max,
    };
    let from = asked.marker.max(query.get("startFrom").unwrap_or_default());
    let page = shared.blobs.list(container, asked.prefix, asked.delimiter, from, page_max)?;
    let body = listing::xml(&asked, &page);
    shared.sky.take_turn(body.len()).await;
    let mut response = answer(StatusCode::OK, Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    Ok(response)
}

fn conditions(headers: &HeaderMap) -> Conditions {
    let text = |name: header::HeaderName| Some(headers.get(name)?.to_str().ok()?.to_owned());
    Conditions { if_match: text(header::IF_MATCH), if_none_match: text(header::IF_NONE_MATCH) }
}

fn put(
    shared: &Shared,
    parts: &Parts,
    container: &str,
    name: &str,
    body: Option<Bytes>,
    bytes: u64,
) -> Result<Response, Failure> {
    shared.count(|counts| counts.puts += 1);
    let kind = parts.headers.get("x-ms-blob-type").and_then(|kind| kind.to_str().ok());
    if kind != Some("BlockBlob") {
        return Err(NOT_KNOWN);
    }
    store(shared, parts, container, name, body, bytes)
}

fn store(
    shared: &Shared,
    parts: &Parts,
    container: &str,
    name: &str,
    body: Option<Bytes>,
    bytes: u64,
) -> Result<Response, Failure> {
    let blob = Blob { body, bytes, version: 0, modified_seconds: shared.now_seconds() };
    let stored = shared.blobs.put(container, name, &conditions(&parts.headers), blob, shared.limits.memory_bytes)?;
    let mut response = answer(StatusCode::CREATED, Body::empty());
    describe(response.headers_mut(), &stored);
    Ok(response)
}

async fn get(shared: &Shared, parts: &Parts, container: &str, name: &str) -> Result<Response, Failure> {
    shared.count(|counts| counts.gets += 1);
    let blob = shared.blobs.get(container, name)?;
    conditions(&parts.headers).allow_get(&blob)?;
    let body = blob.body.clone().ok_or(THROWN_AWAY)?;
    let asked = parts.headers.get("x-ms-range").or_else(|| parts.headers.get(header::RANGE));
    let asked = asked.map(|value| value.to_str().unwrap_or_default());
    let range = asked.map(|text| range(text, blob.bytes)).transpose()?;
    let sent = range.clone().map_or(0..blob.bytes, |range| range);
    shared.sky.take_turn((sent.end - sent.start) as usize).await;
    shared.count(|counts| counts.sent_bytes += sent.end - sent.start);
    let piece = body.slice(sent.start as usize..sent.end as usize);
    let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut response = described(status, &blob, sent.end - sent.start, Body::from(piece));
    if range.is_some() {
        let text = format!("bytes {}-{}/{}", sent.start, sent.end - 1, blob.bytes);
        response.headers_mut().extend(HeaderValue::try_from(text).ok().map(|value| (header::CONTENT_RANGE, value)));
    }
    Ok(response)
}

fn described(status: StatusCode, blob: &Blob, bytes: u64, body: Body) -> Response {
    let mut response = answer(status, body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, bytes.into());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert("x-ms-blob-type", HeaderValue::from_static("BlockBlob"));
    describe(headers, blob);
    response
}

fn describe(headers: &mut HeaderMap, blob: &Blob) {
    let texts = [(header::ETAG, blob.etag()), (header::LAST_MODIFIED, listing::http_date(blob.modified_seconds))];
    headers.extend(texts.into_iter().filter_map(|(name, text)| Some((name, HeaderValue::try_from(text).ok()?))));
}

/// `bytes=FIRST-[LAST]` of a blob of so many bytes.
fn range(text: &str, bytes: u64) -> Result<Range<u64>, Failure> {
    let (first, last) = text.strip_prefix("bytes=").and_then(|text| text.split_once('-')).ok_or(BAD_RANGE)?;
    let first: u64 = first.trim().parse().map_err(|_| BAD_RANGE)?;
    let last = match last.trim() {
        "" => u64::MAX,
        last => last.parse().map_err(|_| BAD_RANGE)?,
    };
    if first >= bytes || last < first {
        return Err(NO_RANGE);
    }
    Ok(first..last.saturating_add(1).min(bytes))
}
