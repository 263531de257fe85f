//! The sink over its sockets.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};

use axum::http::{HeaderMap, Method, Uri};

use super::*;

fn sink(limits: Limits) -> Sink {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Sink::start(any, Some(any), Account::default(), limits, Weather::default()).expect("a sink")
}

/// One request over a connection of its own: what came back, empty if it broke.
fn raw(address: SocketAddr, head: &str, body: &[u8]) -> String {
    let Ok(mut stream) = TcpStream::connect(address) else { return String::new() };
    let mut answer = String::new();
    // The store may be away.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn ask(sink: &Sink, method: &Method, target: &str, more: &[(&'static str, &str)], body: &[u8]) -> String {
    let uri: Uri = target.parse().expect("a target");
    let mut headers = HeaderMap::new();
    let length = body.len().to_string();
    let own = [("x-ms-version", "2023-11-03"), ("content-length", &length)];
    for (name, value) in own.into_iter().chain(more.iter().copied()) {
        headers.insert(name, value.parse().expect("a value"));
    }
    let signature = Account::default().sign(method, &uri, &headers);
    let mut head =
        format!("{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: {signature}\r\n");
    for (name, value) in &headers {
        head += &format!("{name}: {}\r\n", value.to_str().expect("text"));
    }
    raw(sink.address(), &(head + "\r\n"), body)
}

fn put(sink: &Sink, target: &str, body: &[u8]) -> String {
    ask(sink, &Method::PUT, target, &[("x-ms-blob-type", "BlockBlob")], body)
}

fn container(sink: &Sink) -> &'static str {
    let made = ask(sink, &Method::PUT, "/devstoreaccount1/c?restype=container", &[], b"");
    assert!(made.starts_with("HTTP/1.1 201"), "{made}");
    "/devstoreaccount1/c"
}

#[test]
fn a_blob_is_put_read_in_parts_described_and_deleted() {
    let sink = sink(Limits::default());
    let blob = format!("{}/a%20b/c", container(&sink));
    assert!(put(&sink, &blob, b"tidegate").starts_with("HTTP/1.1 201"));
    let part = ask(&sink, &Method::GET, &blob, &[("range", "bytes=2-60")], b"");
    assert!(part.starts_with("HTTP/1.1 206") && part.contains("bytes 2-7/8") && part.ends_with("degate"), "{part}");
    assert!(ask(&sink, &Method::GET, &blob, &[("range", "bytes=8-9")], b"").starts_with("HTTP/1.1 416"));
    let head = ask(&sink, &Method::HEAD, &blob, &[], b"");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length: 8"), "{head}");
    let listed = ask(&sink, &Method::GET, "/devstoreaccount1/c?restype=container&comp=list&prefix=a%20b%2F", &[], b"");
    assert!(listed.contains("<Name>a b/c</Name>"), "{listed}");
    assert!(ask(&sink, &Method::DELETE, &blob, &[], b"").starts_with("HTTP/1.1 202"));
    assert!(ask(&sink, &Method::GET, &blob, &[], b"").contains("BlobNotFound"));
    assert!(put(&sink, "/devstoreaccount1/other/x", b"y").contains("ContainerNotFound"));
    assert!(ask(&sink, &Method::PUT, &format!("{blob}?comp=lease"), &[], b"x").starts_with("HTTP/1.1 501"));
}

#[test]
fn a_blob_is_put_in_blocks() {
    let sink = sink(Limits::default());
    let blob = format!("{}/x", container(&sink));
    for (id, body) in [("MQ%3D%3D", b"gate"), ("Mg%3D%3D", b"tide")] {
        let put = ask(&sink, &Method::PUT, &format!("{blob}?comp=block&blockid={id}"), &[], body);
        assert!(put.starts_with("HTTP/1.1 201"), "{put}");
    }
    assert!(ask(&sink, &Method::GET, &blob, &[], b"").contains("BlobNotFound"), "no list has come yet");
    let list = |list: &str| ask(&sink, &Method::PUT, &format!("{blob}?comp=blocklist"), &[], list.as_bytes());
    for wrong in
        ["", "<BlockList><Latest>Mw==</Latest></BlockList>", "<BlockList><Committed>Mg==</Committed></BlockList>"]
    {
        assert!(list(wrong).contains("InvalidBlockList"), "{wrong}");
    }
    let right =
        "<?xml version=\"1.0\"?>\n<BlockList>\n <Latest>Mg==</Latest>\n<Uncommitted>MQ==</Uncommitted></BlockList>";
    assert!(list(right).starts_with("HTTP/1.1 201"));
    assert!(ask(&sink, &Method::GET, &blob, &[], b"").ends_with("tidegate"));
}

#[test]
fn what_is_not_signed_with_the_key_is_refused() {
    let sink = sink(Limits::default());
    let answer = raw(sink.address(), "GET /devstoreaccount1/c/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"");
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    let forged = "GET /devstoreaccount1/c/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                  authorization: SharedKey devstoreaccount1:bm8=\r\n\r\n";
    let answer = raw(sink.address(), forged, b"");
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("AuthenticationFailed"), "{answer}");
    assert_eq!(sink.counts().refused, 2);
}

#[test]
fn bodies_that_are_thrown_away_are_counted_and_never_read_back_as_something_else() {
    let sink = sink(Limits { discard_above_bytes: 4, ..Limits::default() });
    let path = container(&sink);
    put(&sink, &format!("{path}/small"), b"four");
    put(&sink, &format!("{path}/large"), b"five!");
    assert!(ask(&sink, &Method::GET, &format!("{path}/small"), &[], b"").ends_with("four"));
    assert!(ask(&sink, &Method::GET, &format!("{path}/large"), &[], b"").starts_with("HTTP/1.1 500"));
    assert!(ask(&sink, &Method::HEAD, &format!("{path}/large"), &[], b"").contains("content-length: 5"));
    assert_eq!((sink.counts().blobs, sink.counts().stored_bytes), (2, 9));
}

#[test]
fn the_weather_changes_while_it_runs() {
    let sink = sink(Limits::default());
    let path = container(&sink);
    let blob = format!("{path}/x");
    let control = sink.control().expect("a control");
    let change = |text: &str| {
        let head = format!("PUT / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", text.len());
        raw(control, &head, text.as_bytes())
    };
    assert!(change(r#"{"busy_percent": 100}"#).contains("\"busy_percent\":100.0"));
    assert!(put(&sink, &blob, b"x").contains("ServerBusy"));
    assert_eq!(sink.counts().blobs, 0, "a refused request is not done");
    assert!(change(r#"{"busy_percent": 0, "away": true}"#).starts_with("HTTP/1.1 200"));
    assert_eq!(put(&sink, &blob, b"x"), "");
    assert!(change(r#"{"away": false, "latency_ms": 100, "bytes_per_second": 1000000}"#).starts_with("HTTP/1.1 200"));
    let clock = SystemClock::new();
    assert!(put(&sink, &blob, &[7; 50_000]).starts_with("HTTP/1.1 201"));
    let took = clock.monotonic();
    assert!(took >= std::time::Duration::from_millis(150), "100 ms and 50 kB over 1 MB/s took {took:?}");
    assert!(change(r#"{"refusing": true, "clock_ahead_seconds": -86400}"#).starts_with("HTTP/1.1 200"));
    let refused = put(&sink, &blob, b"x");
    assert!(refused.starts_with("HTTP/1.1 403") && refused.contains("AuthenticationFailed"), "{refused}");
    let date = refused.lines().find_map(|line| line.strip_prefix("date: ")).expect("a date");
    let told = jiff::fmt::rfc2822::parse(date).expect("a date").timestamp().as_second();
    let behind = clock.wall().0 as i64 / 1_000_000 - told;
    assert!((86_400..86_460).contains(&behind), "{behind} s behind");
    assert_eq!(refused.matches("\ndate: ").count(), 1, "{refused}");
    assert!(change(r#"{"refusing": false, "clock_ahead_seconds": 0}"#).starts_with("HTTP/1.1 200"));
    assert!(change("{\"rain\": 1}").starts_with("HTTP/1.1 400"));
    assert_eq!(sink.weather(), Weather { latency_ms: 100.0, bytes_per_second: 1_000_000, ..Weather::default() });
    assert!(sink.counts().broken > 0);
}
