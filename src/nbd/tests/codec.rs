//! The codec and the handshake without I/O, by properties.

use bytes::{Buf, Bytes};
use proptest::prelude::*;

use super::super::handshake::{Handshake, Security, Step};
use super::super::proto::{self, Fields, OptionReplyHead, chunk, option, option_reply};
use super::*;

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        Just(Command::Read),
        Just(Command::Write),
        Just(Command::Disconnect),
        Just(Command::Flush),
        Just(Command::Trim),
        Just(Command::WriteZeroes),
        Just(Command::BlockStatus),
        (8..u16::MAX).prop_map(Command::Other),
    ]
}

/// Data with zero runs of many lengths and alignments.
fn sparse() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec((any::<bool>(), 0..200_000_usize), 0..6)
        .prop_map(|runs| runs.into_iter().flat_map(|(zero, length)| vec![u8::from(!zero); length]).collect())
}

fn exports() -> Vec<Arc<dyn Export>> {
    vec![MemoryExport::new("a", 4096), MemoryExport::new("b", 8192)]
}

fn string(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    proto::encode_string(&mut out, text);
    out
}

/// The replies in `out`, as (type, data).
fn replies(mut out: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while !out.is_empty() {
        let head = OptionReplyHead::decode(out).unwrap();
        out.advance(proto::OPTION_REPLY_HEAD_BYTES);
        replies.push((head.reply, out.copy_to_bytes(head.data_bytes as usize).to_vec()));
    }
    replies
}

proptest! {
    #[test]
    fn a_request_is_read_back_as_it_was_written(
        flags: u16, command in command(), cookie: u64, offset: u64, length: u32,
    ) {
        let request = Request { flags, command, cookie, offset, length };
        prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
    }

    #[test]
    fn arbitrary_bytes_never_panic_a_decoder(bytes in prop::collection::vec(any::<u8>(), 0..64), magic in 0..4_usize) {
        let magics = [
            &proto::REQUEST_MAGIC.to_be_bytes()[..], &proto::CHUNK_MAGIC.to_be_bytes(),
            &proto::SIMPLE_REPLY_MAGIC.to_be_bytes(), &proto::OPTION_MAGIC.to_be_bytes(),
        ];
        let bytes = [magics[magic], &bytes].concat();
        let _ = (Request::decode(&bytes), ReplyHead::decode(&bytes));
        let _ = (OptionHead::decode(&bytes), OptionReplyHead::decode(&bytes), Fields(&bytes).string());
    }

    #[test]
    fn the_pieces_of_a_read_make_its_data_and_every_byte_once(data in sparse(), offset in 0..1_u64 << 60, whole: bool) {
        let data = Bytes::from(data);
        let pieces = proto::encode_structured_read(7, offset, &data, whole);
        let mut wire = Bytes::from(pieces.concat());
        let mut back = vec![0xee; data.len()];
        let (mut covered, mut done, mut chunks) = (0, false, 0);
        while wire.has_remaining() {
            prop_assert!(!done, "nothing follows the last chunk");
            let ReplyHead::Chunk { flags, kind, cookie, data_bytes } = ReplyHead::decode(&wire).unwrap() else {
                panic!("no chunk")
            };
            wire.advance(proto::CHUNK_HEAD_BYTES);
            prop_assert_eq!(cookie, 7);
            done = flags & chunk::DONE != 0;
            chunks += 1;
            let mut body = wire.split_to(data_bytes as usize);
            if kind == chunk::NONE {
                continue;
            }
            let at = (body.get_u64() - offset) as usize;
            prop_assert_eq!(at, covered, "in order, without gaps");
            if kind == chunk::OFFSET_HOLE {
                covered += body.get_u32() as usize;
                back[at..covered].fill(0);
            } else {
                prop_assert_eq!(kind, chunk::OFFSET_DATA);
                covered += body.len();
                back[at..covered].copy_from_slice(&body);
            }
        }
        prop_assert!(done);
        prop_assert!(!whole || chunks == 1, "a reply that may not be fragmented has one chunk");
        prop_assert!(back == data);
    }

    #[test]
    fn any_option_data_is_answered_or_closes(
        options in prop::collection::vec((0..14_u32, prop::collection::vec(any::<u8>(), 0..80)), 0..300),
    ) {
        let exports = exports();
        let mut state = Handshake::start(&exports, 3, Security::Open).unwrap();
        for (n, (number, data)) in options.into_iter().enumerate() {
            let mut out = Vec::new();
            let step = state.answer(number, &data, &mut out);
            prop_assert!(n < proto::OPTIONS_MAX as usize || step == Step::Close);
            match step {
                Step::Continue => prop_assert!(!replies(&out).is_empty()),
                Step::Transmit(agreed) => prop_assert!(agreed.export < exports.len()),
                Step::StartTls => prop_assert!(false, "TLS is not offered"),
                Step::Close => break,
            }
        }
    }

    #[test]
    fn an_error_text_is_cut_at_the_limit_of_the_protocol(text in "\\PC{0,40}", times in 0..400_usize) {
        let bytes = proto::encode_error_chunk(1, proto::ErrorCode::Io, &text.repeat(times));
        let mut fields = Fields(&bytes[proto::CHUNK_HEAD_BYTES..]);
        prop_assert_eq!(fields.u32(), Some(5));
        let length = usize::from(fields.u16().unwrap());
        prop_assert!(length <= proto::STRING_BYTES_MAX && std::str::from_utf8(fields.0).is_ok());
        prop_assert_eq!(length, fields.0.len());
    }
}

#[test]
fn unknown_client_flags_are_refused() {
    assert!(Handshake::start(&exports(), 4, Security::Open).is_none());
    assert!(Handshake::start(&exports(), 0, Security::Open).is_some());
}

#[test]
fn tls_and_unknown_options_are_unsupported_and_the_handshake_goes_on() {
    let exports = exports();
    let mut state = Handshake::start(&exports, 3, Security::Open).unwrap();
    for number in [option::STARTTLS, 11, 4, 77] {
        let mut out = Vec::new();
        assert_eq!(state.answer(number, b"any", &mut out), Step::Continue);
        assert_eq!(replies(&out)[0].0, option_reply::ERR_UNSUP);
    }
}

#[test]
fn where_tls_is_due_nothing_else_is_answered() {
    let exports = exports();
    let mut state = Handshake::start(&exports, 3, Security::TlsDue).unwrap();
    let go = [string("a"), 0_u16.to_be_bytes().to_vec()].concat();
    for (number, data) in [(option::GO, &go), (option::LIST, &Vec::new()), (option::STRUCTURED_REPLY, &Vec::new())] {
        let mut out = Vec::new();
        assert_eq!(state.answer(number, data, &mut out), Step::Continue);
        assert_eq!(replies(&out)[0].0, option_reply::ERR_TLS_REQD);
    }
    let mut out = Vec::new();
    assert_eq!(state.answer(option::STARTTLS, b"x", &mut out), Step::Continue);
    assert_eq!(replies(&out)[0].0, option_reply::ERR_INVALID);
    out.clear();
    assert_eq!(state.answer(option::STARTTLS, &[], &mut out), Step::StartTls);
    assert_eq!(replies(&out)[0].0, option_reply::ACK);
    let mut open = Handshake::start(&exports, 3, Security::TlsDue).unwrap();
    assert_eq!(open.answer(option::EXPORT_NAME, b"a", &mut out), Step::Close, "it has no reply that could say why");
    let mut state = Handshake::start(&exports, 3, Security::Tls).unwrap();
    out.clear();
    assert_eq!(state.answer(option::STARTTLS, &[], &mut out), Step::Continue);
    assert_eq!(replies(&out)[0].0, option_reply::ERR_INVALID, "once is enough");
    assert!(matches!(state.answer(option::GO, &go, &mut out), Step::Transmit(_)));
}

#[test]
fn allocation_holds_only_for_the_export_it_was_chosen_for() {
    let exports = exports();
    let query = |name: &str| [string(name), 1_u32.to_be_bytes().to_vec(), string(proto::CONTEXT_ALLOCATION)].concat();
    let go = |name: &str| [string(name), 0_u16.to_be_bytes().to_vec()].concat();
    for (chosen, used, allowed) in [("a", "a", true), ("a", "b", false)] {
        let mut state = Handshake::start(&exports, 3, Security::Open).unwrap();
        let mut out = Vec::new();
        state.answer(option::SET_META_CONTEXT, &query(chosen), &mut out);
        assert_eq!(replies(&out)[0].0, option_reply::ERR_INVALID, "structured replies come first");
        state.answer(option::STRUCTURED_REPLY, &[], &mut out);
        out.clear();
        state.answer(option::SET_META_CONTEXT, &query(chosen), &mut out);
        let kinds: Vec<u32> = replies(&out).iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [option_reply::META_CONTEXT, option_reply::ACK]);
        match state.answer(option::GO, &go(used), &mut out) {
            Step::Transmit(agreed) => assert!(agreed.structured && agreed.allocation == allowed),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_failed_choice_of_contexts_takes_the_earlier_one_back() {
    let exports = exports();
    let mut state = Handshake::start(&exports, 3, Security::Open).unwrap();
    let mut out = Vec::new();
    state.answer(option::STRUCTURED_REPLY, &[], &mut out);
    let query = [string("a"), 1_u32.to_be_bytes().to_vec(), string(proto::CONTEXT_ALLOCATION)].concat();
    state.answer(option::SET_META_CONTEXT, &query, &mut out);
    // A count of queries that lies.
    let lie = [string("a"), u32::MAX.to_be_bytes().to_vec(), string("base:allocation")].concat();
    out.clear();
    state.answer(option::SET_META_CONTEXT, &lie, &mut out);
    assert_eq!(replies(&out)[0].0, option_reply::ERR_INVALID);
    match state.answer(option::GO, &[string("a"), vec![0, 0]].concat(), &mut out) {
        Step::Transmit(agreed) => assert!(!agreed.allocation),
        other => panic!("{other:?}"),
    }
}

#[test]
fn listing_contexts_takes_a_namespace_and_choosing_does_not() {
    let exports = exports();
    let mut state = Handshake::start(&exports, 3, Security::Open).unwrap();
    state.answer(option::STRUCTURED_REPLY, &[], &mut Vec::new());
    let query = |texts: &[&str]| {
        let queries: Vec<u8> = texts.iter().flat_map(|text| string(text)).collect();
        [string("a"), (texts.len() as u32).to_be_bytes().to_vec(), queries].concat()
    };
    let mut count = |option, texts: &[&str]| {
        let mut out = Vec::new();
        state.answer(option, &query(texts), &mut out);
        replies(&out).len() - 1
    };
    assert_eq!(count(option::LIST_META_CONTEXT, &[]), 1);
    assert_eq!(count(option::LIST_META_CONTEXT, &["base:"]), 1);
    assert_eq!(count(option::LIST_META_CONTEXT, &["qemu:"]), 0);
    assert_eq!(count(option::SET_META_CONTEXT, &["base:"]), 0);
    assert_eq!(count(option::SET_META_CONTEXT, &[]), 0);
    assert_eq!(count(option::SET_META_CONTEXT, &["qemu:x", "base:allocation"]), 1);
}

#[test]
fn zeroes_are_found_wherever_the_last_byte_stands() {
    for length in [0, 1, 255, 256, 257, 4096] {
        let mut data = vec![0; length];
        assert!(proto::is_zero(&data));
        if let Some(last) = data.last_mut() {
            *last = 1;
            assert!(!proto::is_zero(&data));
        }
    }
}
