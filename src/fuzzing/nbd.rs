//! Both sides of NBD against a peer that says anything.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::nbd::client::Client;
use crate::nbd::execute::{self, Bounds, ReplyBytes};
use crate::nbd::handshake::{Agreed, Handshake, Security, Step};
use crate::nbd::proto::{self, Command, Fields, OptionHead, OptionReplyHead, ReplyHead, Request};
use crate::nbd::{Export, StatusExtent, ZeroFlags};

const EXPORT_BYTES: u64 = 1 << 20;
/// Larger reads are checked but not done: they would only slow the fuzzer down.
const READ_BYTES_MAX: u32 = 64 << 10;

/// An export in which nothing is stored.
struct Nothing(&'static str);

impl Export for Nothing {
    fn name(&self) -> &str {
        self.0
    }
    fn size_bytes(&self) -> u64 {
        EXPORT_BYTES
    }
    fn read_only(&self) -> bool {
        false
    }
    fn multi_conn(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        assert!(offset + buf.len() as u64 <= EXPORT_BYTES);
        buf.fill(offset as u8);
        Ok(())
    }
    fn write(&self, offset: u64, data: Bytes, _: bool) -> io::Result<()> {
        assert!(offset + data.len() as u64 <= EXPORT_BYTES);
        Ok(())
    }
    fn zero(&self, offset: u64, length: u64, _: ZeroFlags) -> io::Result<()> {
        assert!(offset + length <= EXPORT_BYTES);
        Ok(())
    }
    fn trim(&self, offset: u64, length: u64, _: bool) -> io::Result<()> {
        assert!(offset + length <= EXPORT_BYTES);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn block_status(&self, offset: u64, length: u64) -> io::Result<Vec<StatusExtent>> {
        assert!(offset + length <= EXPORT_BYTES);
        Ok(vec![StatusExtent { length, hole: false, zero: false }])
    }
}

/// What a client sends, from its flags on: options, then requests with their payload. To a server that wants TLS and to one
/// that does not.
pub(super) fn server(input: &[u8]) {
    let exports: Vec<Arc<dyn Export>> = vec![Arc::new(Nothing("a")), Arc::new(Nothing("b"))];
    let mut fields = Fields(input);
    let Some(flags) = fields.u32() else { return };
    session(&exports, flags, Fields(fields.0), Security::Open);
    session(&exports, flags, fields, Security::TlsDue);
}

fn session(exports: &[Arc<dyn Export>], flags: u32, mut fields: Fields<'_>, security: Security) {
    let Some(mut state) = Handshake::start(exports, flags, security) else { return };
    let (mut out, mut encrypted) = (Vec::new(), security == Security::Open);
    let agreed = loop {
        let Some(Ok(head)) = fields.bytes(proto::OPTION_HEAD_BYTES).map(OptionHead::decode) else { return };
        if head.data_bytes > proto::OPTION_BYTES_MAX {
            return;
        }
        let Some(data) = fields.bytes(head.data_bytes as usize) else { return };
        out.clear();
        match state.answer(head.option, data, &mut out) {
            // Two exports and short texts: a reply cannot be longer than this, whatever was asked.
            Step::Continue => assert!(!out.is_empty() && out.len() < 1024),
            Step::Close => return,
            Step::StartTls => {
                assert!(!encrypted, "TLS begins once, where it is due");
                encrypted = true;
                state = Handshake::start(exports, flags, Security::Tls).unwrap();
            }
            Step::Transmit(agreed) => break agreed,
        }
    };
    assert!(encrypted, "no request before TLS where it is due");
    assert!(agreed.export < exports.len());
    requests(&*exports[agreed.export], agreed, fields);
}

fn requests(export: &dyn Export, agreed: Agreed, mut fields: Fields<'_>) {
    let bounds = Bounds { size_bytes: EXPORT_BYTES, read_only: false, fast_zero: false, agreed };
    while let Some(Ok(request)) = fields.bytes(proto::REQUEST_BYTES).map(Request::decode) {
        assert_eq!(Request::decode(&request.encode()), Ok(request));
        let payload_bytes = if request.command == Command::Write { request.length } else { 0 };
        let Some(data) = fields.bytes(payload_bytes as usize) else { return };
        let reply = match execute::check(&request, &bounds) {
            Err(failure) => failure.reply(&request, agreed),
            Ok(()) if request.command == Command::Read && request.length > READ_BYTES_MAX => continue,
            Ok(()) => match execute::execute(export, agreed, &request, Bytes::copy_from_slice(data)) {
                Ok(reply) => reply,
                Err(failure) => failure.reply(&request, agreed),
            },
        };
        check_reply(&request, reply);
    }
}

/// The reply as its client reads it: it names the request, and its chunks fill it.
fn check_reply(request: &Request, reply: ReplyBytes) {
    let bytes = match reply {
        ReplyBytes::Simple(bytes) => bytes.to_vec(),
        ReplyBytes::Whole(bytes) => bytes.to_vec(),
        ReplyBytes::Pieces(pieces) => pieces.concat(),
    };
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let head = ReplyHead::decode(rest).unwrap();
        let (cookie, skip) = match head {
            ReplyHead::Simple { cookie, .. } => (cookie, rest.len()),
            ReplyHead::Chunk { cookie, data_bytes, .. } => (cookie, proto::CHUNK_HEAD_BYTES + data_bytes as usize),
        };
        assert_eq!(cookie, request.cookie);
        rest = &rest[skip..];
    }
}

/// What a server sends: first byte the operation, then greeting, option replies and replies as they are.
pub(super) fn client(input: &[u8]) {
    let _ = ReplyHead::decode(input);
    let _ = OptionReplyHead::decode(input);
    let Some((mode, said)) = super::mode(input) else { return };
    // All of it must fit the socket's buffer: nobody reads on the other side.
    let said = &said[..said.len().min(32 << 10)];
    let Ok((mut server, stream)) = UnixStream::pair() else { return };
    stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    server.write_all(said).unwrap();
    server.shutdown(Shutdown::Write).unwrap();
    let Ok(mut client) = Client::over(stream, "a") else { return };
    let mut buf = vec![0; 4096];
    match mode % 4 {
        0 => drop(client.read(512, &mut buf)),
        1 => drop(client.block_status(0, EXPORT_BYTES)),
        2 => drop(client.write(0, &buf, true)),
        _ => drop(client.flush()),
    }
}
