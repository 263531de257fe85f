//! A client's byte stream through the handshake and the request decoder, and the same bytes as a server's replies.

#![no_main]

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tidegate::nbd::handshake::{Handshake, Step};
use tidegate::nbd::proto::{self, Fields, OptionHead, OptionReplyHead, ReplyHead, Request};
use tidegate::nbd::{Export, StatusExtent, ZeroFlags};

/// An export of which only the description is used.
struct Described(&'static str);

impl Export for Described {
    fn name(&self) -> &str {
        self.0
    }
    fn size_bytes(&self) -> u64 {
        1 << 20
    }
    fn read_only(&self) -> bool {
        false
    }
    fn multi_conn(&self) -> bool {
        true
    }
    fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Ok(())
    }
    fn write(&self, _: u64, _: Bytes, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn zero(&self, _: u64, _: u64, _: ZeroFlags) -> io::Result<()> {
        Ok(())
    }
    fn trim(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn block_status(&self, _: u64, _: u64) -> io::Result<Vec<StatusExtent>> {
        Ok(Vec::new())
    }
}

fn as_client(bytes: &[u8]) {
    let exports: Vec<Arc<dyn Export>> = vec![Arc::new(Described("a")), Arc::new(Described("b"))];
    let mut fields = Fields(bytes);
    let Some(mut state) = fields.u32().and_then(|flags| Handshake::start(&exports, flags)) else { return };
    let mut out = Vec::new();
    loop {
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
            Step::Transmit(agreed) => {
                assert!(agreed.export < exports.len());
                break;
            }
        }
    }
    while let Some(Ok(request)) = fields.bytes(proto::REQUEST_BYTES).map(Request::decode) {
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
}

fuzz_target!(|bytes: &[u8]| {
    as_client(bytes);
    let _ = ReplyHead::decode(bytes);
    let _ = OptionReplyHead::decode(bytes);
    let data = Bytes::copy_from_slice(bytes);
    let pieces = proto::encode_structured_read(1, 2, &data, bytes.first().is_some_and(|byte| byte & 1 == 1));
    assert!(pieces.iter().map(Bytes::len).sum::<usize>() <= data.len() + 64 + data.len() / 1024);
});
