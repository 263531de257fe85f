//! Clients that break rules. Whatever they do, the next good client is served.

use super::*;

fn short() -> ServerLimits {
    let quickly = Duration::from_millis(200);
    ServerLimits { handshake_timeout: quickly, stall_timeout: quickly, ..quick() }
}

fn assert_still_serves(running: &Running) {
    let mut client = running.client("m");
    client.write(4096, b"good", true).unwrap();
    let mut back = [0; 4];
    client.read(4096, &mut back).unwrap();
    assert_eq!(&back, b"good");
    client.disconnect().unwrap();
}

/// Whether the server ends the connection, by an end or a reset, after whatever it still says.
fn ends(stream: &mut UnixStream) -> bool {
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

/// A small generator with a fixed seed: the same bytes in each run.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..count).map(|_| next()).collect()
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    OptionHead { option: number, data_bytes: data.len() as u32 }.encode(&mut out);
    out.extend_from_slice(data);
    out
}

#[test]
fn random_bytes_at_each_stage_harm_only_their_own_connection() {
    let running = Running::start(vec![MemoryExport::new("m", 1 << 20)], short());
    let flags = 3_u32.to_be_bytes();
    for seed in 0..40 {
        let garbage = noise(seed, 300);
        // As client flags; as an option; as option data; as a request; as a request after a good one.
        let mut stages = vec![garbage.clone(), [&flags[..], &garbage].concat()];
        for number in 0..12 {
            stages.push([&flags[..], &option(number, &garbage)].concat());
        }
        let name = option(proto::option::EXPORT_NAME, b"m");
        stages.push([&flags[..], &name, &garbage].concat());
        stages.push([&flags[..], &name, &request(Command::Read, 1, 0, 512), &garbage].concat());
        let magic = proto::REQUEST_MAGIC.to_be_bytes();
        stages.push([&flags[..], &name, &magic, &garbage[..24]].concat());
        for bytes in stages {
            let mut stream = running.raw();
            // The server may close before all is sent.
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            assert!(ends(&mut stream), "seed {seed}");
        }
    }
    assert_still_serves(&running);
}

#[test]
fn a_giant_option_is_refused_before_it_is_read() {
    let running = Running::start(vec![MemoryExport::new("m", 1 << 20)], quick());
    let mut stream = running.raw();
    let mut out = 3_u32.to_be_bytes().to_vec();
    OptionHead { option: proto::option::GO, data_bytes: u32::MAX }.encode(&mut out);
    stream.write_all(&out).unwrap();
    stream.read_exact(&mut [0; proto::GREETING_BYTES]).unwrap();
    let mut head = [0; proto::OPTION_REPLY_HEAD_BYTES];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(proto::OptionReplyHead::decode(&head).unwrap().reply, proto::option_reply::ERR_TOO_BIG);
    assert!(ends(&mut stream));
    assert_still_serves(&running);
}

#[test]
fn thousands_of_options_end_the_handshake() {
    let running = Running::start(vec![MemoryExport::new("m", 1 << 20)], quick());
    let mut stream = running.raw();
    let mut out = 3_u32.to_be_bytes().to_vec();
    for _ in 0..5000 {
        out.extend_from_slice(&option(proto::option::LIST, &[]));
    }
    let _ = stream.write_all(&out);
    assert!(ends(&mut stream));
    assert_still_serves(&running);
}

#[test]
fn a_handshake_that_drips_is_cut_off() {
    let running = Running::start(vec![MemoryExport::new("m", 1 << 20)], short());
    let mut stream = running.raw();
    stream.write_all(&3_u32.to_be_bytes()).unwrap();
    let drip = option(proto::option::GO, &[0; 4000]);
    let mut bytes = drip.iter();
    // Were only silence limited, each byte would buy more time.
    wait_until("the server gives up", || match bytes.next() {
        Some(byte) => stream.write_all(&[*byte]).is_err(),
        None => false,
    });
    assert_still_serves(&running);
}

#[test]
fn half_a_write_is_dropped_with_its_connection_and_never_reaches_the_export() {
    let export = MemoryExport::new("m", 1 << 20);
    let running = Running::start(vec![export.clone()], short());
    let mut left = running.raw_requests("m");
    left.write_all(&request(Command::Write, 1, 0, 8192)).unwrap();
    left.write_all(&[7; 5000]).unwrap();
    drop(left);
    let mut silent = running.raw_requests("m");
    silent.write_all(&request(Command::Write, 1, 0, 8192)).unwrap();
    silent.write_all(&[7; 5000]).unwrap();
    assert!(ends(&mut silent), "the one that stays is cut off");
    let mut half = running.raw_requests("m");
    half.write_all(&request(Command::Read, 1, 0, 8192)[..20]).unwrap();
    drop(half);
    assert_still_serves(&running);
    assert!(export.calls().iter().all(|call| !call.ends_with(" 0")), "{:?}", export.calls());
}

#[test]
fn a_write_above_the_limit_ends_the_connection_and_a_read_above_it_is_an_error() {
    let running = Running::start(vec![MemoryExport::new("m", 48 << 20)], quick());
    let mut stream = running.raw_requests("m");
    stream.write_all(&request(Command::Read, 1, 0, (32 << 20) + 1)).unwrap();
    assert_eq!(simple_reply(&mut stream), (1, proto::ErrorCode::Overflow as u32));
    stream.write_all(&request(Command::Write, 2, 0, u32::MAX)).unwrap();
    assert!(ends(&mut stream));
    assert_still_serves(&running);
}

#[test]
fn a_refused_write_is_skipped_and_the_next_request_found() {
    let running = Running::start(vec![MemoryExport::new("m", 1 << 20)], quick());
    let mut stream = running.raw_requests("m");
    stream.write_all(&request(Command::Write, 1, 1 << 20, 300_000)).unwrap();
    stream.write_all(&noise(1, 300_000)).unwrap();
    stream.write_all(&request(Command::Other(99), 2, 0, 0)).unwrap();
    stream.write_all(&request(Command::BlockStatus, 3, 0, 512)).unwrap();
    stream.write_all(&request(Command::Flush, 4, 0, 1)).unwrap();
    stream.write_all(&request(Command::Read, 5, 0, 0)).unwrap();
    assert_eq!(simple_reply(&mut stream), (1, 28));
    for cookie in 2..5 {
        assert_eq!(simple_reply(&mut stream), (cookie, 22));
    }
    assert_eq!(simple_reply(&mut stream), (5, 0));
}

#[test]
fn a_client_that_reads_no_replies_stops_itself_and_not_the_memory() {
    let export = MemoryExport::new("m", 48 << 20);
    let limits = ServerLimits { payload_bytes_per_connection_max: 64 << 20, ..quick() };
    let running = Running::start(vec![export.clone()], limits);
    let mut stream = running.raw_requests("m");
    for cookie in 0..50 {
        stream.write_all(&request(Command::Read, cookie, 0, 32 << 20)).unwrap();
    }
    wait_until("two reads fit", || export.calls().len() == 2);
    assert_still_serves(&running);
    std::thread::sleep(Duration::from_millis(100));
    let reads = export.calls().iter().filter(|call| *call == "read 0").count();
    assert_eq!(reads, 2, "further reads wait for the budget");
    let mut data = vec![0; 32 << 20];
    let mut answered = std::collections::BTreeSet::new();
    for _ in 0..50 {
        let (cookie, error) = simple_reply(&mut stream);
        assert_eq!(error, 0);
        stream.read_exact(&mut data).unwrap();
        // In any order: two run side by side, and one of them may be held up for long.
        assert!(answered.insert(cookie));
    }
    assert!(answered.into_iter().eq(0..50));
}

#[test]
fn connections_beyond_the_limit_are_closed_and_places_come_back() {
    let running = Running::start(vec![MemoryExport::new("m", 1 << 20)], ServerLimits { connections_max: 2, ..quick() });
    let (one, two) = (running.client("m"), running.client("m"));
    assert!(Client::connect(&running.listen, "m").is_err());
    drop((one, two));
    wait_until("a place is free", || Client::connect(&running.listen, "m").is_ok());
}
