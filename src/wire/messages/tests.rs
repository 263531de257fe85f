use proptest::prelude::*;

use super::*;
use crate::wire::frame::Decoder;

fn disk() -> DiskId {
    DiskId::new("web-1.sda").expect("name")
}

/// One of everything, for the fixture and for the tests of cut and lengthened bodies.
fn samples() -> Vec<(&'static str, Message)> {
    let vault = Id128(*b"vault-id-16bytes");
    let chain = Chain([0xc4; 32]);
    let open = |want| Message::OpenDisk(OpenDisk { disk: disk(), size_bytes: 8 << 30, nonce: Id128([9; 16]), want });
    let point = PointId { epoch: Epoch(3), seq: Seq(4711) };
    let refused = |code| Refused { code, text: "size differs: 8 GiB ≠ 4 GiB".into() };
    vec![
        (
            "hello",
            Message::Hello(Hello {
                protocol_min: 1,
                protocol_max: 1,
                vault,
                agent: "a1".into(),
                software: "tidegate 0.1.0".into(),
            }),
        ),
        (
            "hello-ok",
            Message::HelloOk(HelloOk { protocol: 1, vault, gateway: "g1".into(), software: "tidegate 0.1.0".into() }),
        ),
        ("refused", Message::Refused(refused(Code::Protocol))),
        ("ping", Message::Ping(Ping { token: 123_456_789, offset_micros: -2_500_000, uncertainty_micros: 700 })),
        (
            "pong",
            Message::Pong(Pong {
                token: 123_456_789,
                received: Micros(1_800_000_000_000_000),
                sent: Micros(1_800_000_000_000_007),
            }),
        ),
        ("redirect", Message::Redirect(Redirect { gateways: vec!["g2.example:9443".into(), "[::1]:9443".into()] })),
        ("join", Message::Join(Join { session: Id128([0x5e; 16]), join_as: JoinAs::Stream })),
        ("close", Message::Close(refused(Code::Draining))),
        (
            "report",
            Message::Report(Report {
                disk: disk(),
                condition: Condition::Overflowed,
                rpo_micros: 90_000_000,
                dirty_bytes: 3 << 20,
                unvaulted_bytes: 128 << 10,
            }),
        ),
        (
            "open-disk-resume",
            open(Want::Resume { epoch: Epoch(3), floor: Seq(4711), floor_chain: chain, first_held: Seq(4712) }),
        ),
        ("open-disk-fork-new", open(Want::Fork { reason: ForkReason::NewDisk, floor: None })),
        ("open-disk-fork", open(Want::Fork { reason: ForkReason::UncleanStart, floor: Some((point, chain)) })),
        (
            "disk-opened",
            Message::DiskOpened(DiskOpened {
                epoch: Epoch(3),
                next_seq: Seq(4712),
                chain: Some(chain),
                journaled: Seq(4711),
                vaulted: Seq(4000),
                credit_bytes: 4 << 20,
            }),
        ),
        (
            "disk-opened-no-chain",
            Message::DiskOpened(DiskOpened {
                epoch: Epoch(3),
                next_seq: Seq(1),
                chain: None,
                journaled: Seq(0),
                vaulted: Seq(0),
                credit_bytes: 0,
            }),
        ),
        ("disk-refused", Message::DiskRefused(refused(Code::NotAuthorised))),
        ("credit", Message::Credit(Credit { granted_bytes: 64 << 20 })),
        ("ack", Message::Ack(Ack { journaled: Seq(5000), vaulted: Seq(4800) })),
        ("fenced", Message::Fenced(Fenced { newest: Epoch(4) })),
        ("close-disk", Message::CloseDisk(CloseDisk { last: Seq(5000) })),
        ("touched", Message::Touched(Touched { runs: vec![2..3, 64..128, 1 << 29..1 << 30] })),
        ("ask", Message::Ask(Ask { wanted_bytes: (1 << 26) + 4096 })),
    ]
}

fn frame_of(bytes: Bytes) -> Frame {
    let mut decoder = Decoder::new();
    decoder.push(bytes);
    decoder.next_frame().expect("good frame").expect("whole frame")
}

fn frame(kind: Kind, body: &[u8]) -> Frame {
    Frame { kind, body_crc: 0, body_bytes: body.len(), body: vec![Bytes::copy_from_slice(body)] }
}

#[test]
fn every_message_has_the_bytes_of_the_fixture() {
    let fixture = include_str!("../../../tests/fixtures/v1/wire-frames.txt");
    let lines: Vec<String> = samples()
        .into_iter()
        .map(|(name, message)| {
            let hex: String = message.encode().iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{name} {hex}\n")
        })
        .collect();
    assert_eq!(lines.concat(), fixture, "the layout changed: that needs a new protocol version and a new fixture");
    for ((name, message), line) in samples().into_iter().zip(fixture.lines()) {
        let hex = line.strip_prefix(name).expect("in order").trim();
        let bytes: Vec<u8> =
            (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex")).collect();
        assert_eq!(Message::decode(frame_of(bytes.into())), Ok(message), "{name}");
    }
}

#[test]
fn every_kind_but_the_record_stands_in_the_fixture() {
    let kinds: Vec<Kind> = samples().iter().map(|(_, message)| message.kind()).collect();
    assert!(Kind::ALL.iter().all(|kind| *kind == Kind::Record || kinds.contains(kind)));
}

#[test]
fn a_body_that_is_cut_or_too_long_is_no_message() {
    for (name, message) in samples() {
        let kind = message.kind();
        let body = message.encode().slice(frame::HEADER_BYTES..);
        for bytes in 0..body.len() {
            let result = Message::decode(frame(kind, &body[..bytes]));
            assert!(result.is_err(), "{name} cut to {bytes}: {result:?}");
        }
        let long = [&body[..], &[0]].concat();
        assert!(
            matches!(Message::decode(frame(kind, &long)), Err(MessageError::Long { extra_bytes: 1, .. })),
            "{name}"
        );
    }
}

#[test]
fn fields_out_of_range_are_refused_by_name() {
    let ack = Message::Ack(Ack { journaled: Seq(3), vaulted: Seq(4) }).encode();
    assert_eq!(Message::decode(frame_of(ack)), Err(MessageError::Field { kind: Kind::Ack, field: "vaulted" }));
    let open = |size_bytes, want| {
        let message = Message::OpenDisk(OpenDisk { disk: disk(), size_bytes, nonce: Id128::NONE, want });
        Message::decode(frame_of(message.encode()))
    };
    let fork = Want::Fork { reason: ForkReason::Operator, floor: None };
    let field = |field| Err(MessageError::Field { kind: Kind::OpenDisk, field });
    assert_eq!(open(0, fork), field("size"));
    assert_eq!(open(limits::DISK_BYTES_MAX + 1, fork), field("size"));
    let resume = |epoch, first_held| Want::Resume {
        epoch: Epoch(epoch),
        floor: Seq::NONE,
        floor_chain: Chain::GENESIS,
        first_held: Seq(first_held),
    };
    assert_eq!(open(1, resume(0, 1)), field("want"));
    assert_eq!(open(1, resume(1, 0)), field("want"));
    let long_text = [&[3, 0, 0, 0][..], &u16::MAX.to_le_bytes(), &[b'x'; 70_000]].concat();
    assert_eq!(
        Message::decode(frame(Kind::Refused, &long_text)),
        Err(MessageError::Field { kind: Kind::Refused, field: "text" })
    );
    let many = [&u16::MAX.to_le_bytes()[..], &[0; 100]].concat();
    assert_eq!(
        Message::decode(frame(Kind::Redirect, &many)),
        Err(MessageError::Field { kind: Kind::Redirect, field: "gateways" })
    );
}

#[test]
fn runs_of_chunks_that_are_empty_unordered_joined_or_beyond_every_disk_are_refused() {
    let decode = |runs: Vec<Range<u32>>| {
        let body = Message::Touched(Touched { runs }).encode().slice(frame::HEADER_BYTES..);
        Message::decode(frame(Kind::Touched, &body))
    };
    let field = |field| Err(MessageError::Field { kind: Kind::Touched, field });
    assert_eq!(decode(vec![]), field("runs"));
    assert_eq!(decode((0..=TOUCHED_RUNS_PER_FRAME as u32).map(|run| 2 * run..2 * run + 1).collect()), field("runs"));
    let last = 1 << 30;
    for wrong in [vec![4..4], vec![4..5, 2..3], vec![4..5, 5..6], vec![4..6, 5..7], vec![last - 1..last + 1]] {
        assert_eq!(decode(wrong), field("chunks"));
    }
    let overflow = [&[1, 0][..], &u32::MAX.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
    assert_eq!(Message::decode(frame(Kind::Touched, &overflow)), field("chunks"));
}

#[test]
fn a_text_too_long_is_cut_between_characters() {
    let text = format!("{}ä", "x".repeat(TEXT_BYTES_MAX - 1));
    let message = Message::Refused(Refused { code: Code::Internal, text });
    let Ok(Message::Refused(refused)) = Message::decode(frame_of(message.encode())) else { panic!("no refusal") };
    assert_eq!(refused.text, "x".repeat(TEXT_BYTES_MAX - 1));
}

#[test]
fn codes_are_unique_and_read_back() {
    let mut numbers: Vec<u32> = Code::ALL.iter().map(|code| code.number()).collect();
    assert!(Code::ALL.iter().all(|code| Code::from_number(code.number()) == *code));
    numbers.dedup();
    assert_eq!(numbers.len(), Code::ALL.len());
    assert_eq!(Code::from_number(9999), Code::Other(9999));
}

fn name() -> impl Strategy<Value = String> {
    prop::collection::vec(0_usize..38, 1..64).prop_map(|picks| {
        let letters = b"abcdefghijklmnopqrstuvwxyz0123456789.-";
        let text: String = picks.iter().map(|&pick| char::from(letters[pick])).collect();
        format!("x{}", &text[1..])
    })
}

fn want() -> impl Strategy<Value = Want> {
    let chain = any::<[u8; 32]>().prop_map(Chain);
    let resume =
        (1..u64::MAX, 0..u64::MAX, chain.clone(), 1..u64::MAX).prop_map(|(epoch, floor, floor_chain, held)| {
            Want::Resume { epoch: Epoch(epoch), floor: Seq(floor), floor_chain, first_held: Seq(held) }
        });
    let floor = (any::<u64>(), any::<u64>(), chain)
        .prop_map(|(epoch, seq, chain)| (PointId { epoch: Epoch(epoch), seq: Seq(seq) }, chain));
    let fork = (prop::sample::select(ForkReason::ALL.to_vec()), prop::option::of(floor))
        .prop_map(|(reason, floor)| Want::Fork { reason, floor });
    prop_oneof![resume, fork]
}

proptest! {
    #[test]
    fn open_disk_survives_the_wire(name in name(), size_bytes in 1..limits::DISK_BYTES_MAX, nonce: [u8; 16], want in want()) {
        let disk = DiskId::new(&name).expect("name");
        let message = Message::OpenDisk(OpenDisk { disk, size_bytes, nonce: Id128(nonce), want });
        prop_assert_eq!(Message::decode(frame_of(message.encode())), Ok(message));
    }

    #[test]
    fn numbers_and_texts_survive_the_wire(a: u64, b: u64, text in ".{0,200}", agent in name(), code: u32, chain in prop::option::of(any::<[u8; 32]>())) {
        for message in [
            Message::Ping(Ping { token: a, offset_micros: b.cast_signed(), uncertainty_micros: code }),
            Message::Pong(Pong { token: a, received: Micros(b), sent: Micros(a) }),
            Message::Credit(Credit { granted_bytes: a }),
            Message::Ack(Ack { journaled: Seq(a.max(b)), vaulted: Seq(a.min(b)) }),
            Message::Fenced(Fenced { newest: Epoch(a) }),
            Message::CloseDisk(CloseDisk { last: Seq(b) }),
            Message::Ask(Ask { wanted_bytes: b }),
            Message::DiskRefused(Refused { code: Code::from_number(code), text: text.clone() }),
            Message::Hello(Hello { protocol_min: a as u16, protocol_max: b as u16, vault: Id128([7; 16]), agent, software: text.clone() }),
            Message::DiskOpened(DiskOpened { epoch: Epoch(a), next_seq: Seq(b), chain: chain.map(Chain), journaled: Seq(a), vaulted: Seq(b), credit_bytes: a }),
            Message::Redirect(Redirect { gateways: vec![text; 3] }),
        ] {
            prop_assert_eq!(Message::decode(frame_of(message.encode())), Ok(message));
        }
    }

    #[test]
    fn random_bodies_are_decoded_or_refused_but_never_more(kind in prop::sample::select(Kind::ALL.to_vec()), body in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = Message::decode(frame(kind, &body)) {
            prop_assert_eq!(message.encode().slice(frame::HEADER_BYTES..), body);
        }
    }
}
