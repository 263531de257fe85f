//! A receiver of OTLP over HTTP that reads of each span what a test asks for. It knows the wire's form and no library.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A span that arrived.
#[derive(Clone, Debug, Default)]
pub struct Span {
    pub service: String,
    pub name: String,
    pub trace: Vec<u8>,
    pub id: Vec<u8>,
    /// Empty for the first of a trace.
    pub parent: Vec<u8>,
    pub attributes: BTreeMap<String, String>,
    pub failed: bool,
}

/// What has arrived.
#[derive(Debug, Default)]
pub struct Arrived {
    pub spans: Vec<Span>,
    /// Request line and headers of each request.
    pub heads: Vec<String>,
}

pub struct Receiver {
    pub url: String,
    pub arrived: Arc<Mutex<Arrived>>,
}

impl Receiver {
    /// Listens for as long as the process lives.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let arrived = Arc::new(Mutex::new(Arrived::default()));
        let into = Arc::clone(&arrived);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let into = Arc::clone(&into);
                std::thread::spawn(move || serve(stream, &into));
            }
        });
        Self { url, arrived }
    }

    /// The spans of a service so far.
    pub fn of(&self, service: &str) -> Vec<Span> {
        self.arrived.lock().unwrap().spans.iter().filter(|span| span.service == service).cloned().collect()
    }
}

/// Answers the requests of one connection.
fn serve(mut stream: TcpStream, into: &Mutex<Arrived>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap();
            }
            head += &line;
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let spans = request(&body);
        let mut into = into.lock().unwrap();
        into.spans.extend(spans);
        into.heads.push(head);
        drop(into);
        let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn number(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return value;
        }
    }
    panic!("a number without end");
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken
}

/// The fields of a message of Protocol Buffers, by their numbers.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Value<'_>)> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let key = number(&mut bytes);
        let value = match key & 7 {
            0 => Value::Number(number(&mut bytes)),
            1 => Value::Number(u64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
            2 => {
                let length = number(&mut bytes) as usize;
                Value::Bytes(take(&mut bytes, length))
            }
            5 => Value::Number(u32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap()).into()),
            other => panic!("a field of kind {other}"),
        };
        out.push((key >> 3, value));
    }
    out
}

/// The messages that stand in a field.
fn inside(bytes: &[u8], field: u64) -> Vec<&[u8]> {
    let inner = fields(bytes).into_iter().filter(|(number, _)| *number == field);
    inner.filter_map(|(_, value)| if let Value::Bytes(bytes) = value { Some(bytes) } else { None }).collect()
}

fn text(bytes: &[u8], field: u64) -> String {
    inside(bytes, field).first().map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default()
}

/// Name and value of an attribute.
fn attribute(bytes: &[u8]) -> (String, String) {
    let value = inside(bytes, 2).first().map(|any| fields(any)).unwrap_or_default();
    let value = value.first().map(|(_, value)| match value {
        Value::Number(number) => number.to_string(),
        Value::Bytes(text) => String::from_utf8_lossy(text).into_owned(),
    });
    (text(bytes, 1), value.unwrap_or_default())
}

/// All spans of a request.
fn request(body: &[u8]) -> Vec<Span> {
    let mut out = Vec::new();
    for of_resource in inside(body, 1) {
        let resource: BTreeMap<String, String> =
            inside(of_resource, 1).into_iter().flat_map(|resource| inside(resource, 1)).map(attribute).collect();
        let service = resource.get("service.name").cloned().unwrap_or_default();
        for span in inside(of_resource, 2).into_iter().flat_map(|scope| inside(scope, 2)) {
            let id = |field| inside(span, field).first().map(|id| id.to_vec()).unwrap_or_default();
            let status = inside(span, 15).first().map(|status| fields(status)).unwrap_or_default();
            out.push(Span {
                service: service.clone(),
                name: text(span, 5),
                trace: id(1),
                id: id(2),
                parent: id(4),
                attributes: inside(span, 9).into_iter().map(attribute).collect(),
                failed: status.iter().any(|(field, value)| *field == 3 && matches!(value, Value::Number(2))),
            });
        }
    }
    out
}
