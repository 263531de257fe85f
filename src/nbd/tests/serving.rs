//! Ordinary clients.

use std::os::unix::fs::PermissionsExt;

use super::super::{ClientError, FileExport};
use super::*;

fn code(error: ClientError) -> u32 {
    match error {
        ClientError::Request { code, .. } => code,
        other => panic!("{other}"),
    }
}

fn image(directory: &tempfile::TempDir, size_bytes: u64) -> PathBuf {
    let path = directory.path().join("disk.img");
    std::fs::File::create(&path).unwrap().set_len(size_bytes).unwrap();
    path
}

#[test]
fn a_raw_file_is_served_whole_over_unix_socket_and_tcp() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(&directory, (40 << 20) + 512);
    for tcp in [false, true] {
        let export: Arc<dyn Export> = Arc::new(FileExport::open("disk", &path, false).unwrap());
        let listen = match tcp {
            true => Listen::Tcp("127.0.0.1:0".parse().unwrap()),
            false => Listen::Unix(directory.path().join("s")),
        };
        let server = Server::bind(listen, vec![export], quick()).unwrap();
        let listen = server.listen().clone();
        let (trigger, drain) = DrainTrigger::new();
        let thread = run(server, drain);
        let mut client = Client::connect(&listen, "disk").unwrap();
        assert_eq!(client.size_bytes(), (40 << 20) + 512);
        assert!(client.multi_conn() && !client.read_only());
        let pattern: Vec<u8> = (0..(33 << 20) + 77_u32).map(|n| (n / 7) as u8 | 1).collect();
        client.write(3, &pattern, true).unwrap();
        client.write_zeroes(1 << 20, 1 << 20, ZeroFlags::default()).unwrap();
        client.trim(4 << 20, 1 << 20, false).unwrap();
        client.flush().unwrap();
        let mut back = vec![9; pattern.len()];
        client.read(3, &mut back).unwrap();
        let mut expected = pattern;
        expected[(1 << 20) - 3..][..1 << 20].fill(0);
        // Not promised by the protocol, but by a file with holes.
        expected[(4 << 20) - 3..][..1 << 20].fill(0);
        assert!(back == expected, "what was read is not what was written");
        let status = client.block_status(0, client.size_bytes()).unwrap();
        assert_eq!(status.iter().map(|extent| extent.length).sum::<u64>(), client.size_bytes());
        client.disconnect().unwrap();
        trigger.start();
        thread.join().unwrap().unwrap();
        assert!(!directory.path().join("s").exists(), "the socket is removed");
        std::fs::write(&path, []).unwrap();
        image(&directory, (40 << 20) + 512);
    }
}

#[test]
fn exports_are_listed_and_an_unknown_one_is_refused_by_name() {
    let running = Running::start(vec![MemoryExport::new("a", 4096), MemoryExport::new("b", 8192)], quick());
    assert_eq!(Client::list(&running.listen).unwrap(), ["a", "b"]);
    assert_eq!(running.client("b").size_bytes(), 8192);
    match Client::connect(&running.listen, "c") {
        Err(ClientError::Refused { export, code, .. }) => {
            assert_eq!((export.as_str(), code), ("c", proto::option_reply::ERR_UNKNOWN));
        }
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn a_write_that_was_flushed_on_one_connection_is_read_on_another() {
    let directory = tempfile::tempdir().unwrap();
    let export = FileExport::open("disk", &image(&directory, 1 << 20), false).unwrap();
    let running = Running::start(vec![Arc::new(export)], quick());
    let mut clients = [running.client("disk"), running.client("disk"), running.client("")];
    for round in 0..60_u8 {
        let data = vec![round + 1; 4096];
        let writer = usize::from(round % 3);
        clients[writer].write(u64::from(round) * 4096, &data, false).unwrap();
        clients[writer].flush().unwrap();
        for reader in &mut clients {
            let mut back = vec![0; 4096];
            reader.read(u64::from(round) * 4096, &mut back).unwrap();
            assert_eq!(back, data);
        }
    }
}

#[test]
fn a_slow_request_is_overtaken_by_a_later_one() {
    let export = MemoryExport::new("m", 1 << 20);
    let running = Running::start(vec![export.clone()], quick());
    export.hold(0);
    let mut stream = running.raw_requests("m");
    stream.write_all(&request(Command::Write, 1, 0, 4)).unwrap();
    stream.write_all(b"slow").unwrap();
    stream.write_all(&request(Command::Flush, 2, 0, 0)).unwrap();
    assert_eq!(simple_reply(&mut stream), (2, 0));
    export.free(0);
    assert_eq!(simple_reply(&mut stream), (1, 0));
}

#[test]
fn a_request_is_answered_though_the_next_one_has_not_come_whole() {
    let running = Running::start(vec![MemoryExport::new("m", 4096)], quick());
    // One that would be done, and one that is refused; the payload of either is still on its way.
    for (cookie, offset, error) in [(10, 0, 0), (20, 4096, 28)] {
        let mut stream = running.raw_requests("m");
        let first = request(Command::Flush, cookie, 0, 0);
        let next = request(Command::Write, cookie + 1, offset, 512);
        stream.write_all(&[first, next].concat()).unwrap();
        assert_eq!(simple_reply(&mut stream), (cookie, 0));
        stream.write_all(&[7; 512]).unwrap();
        assert_eq!(simple_reply(&mut stream), (cookie + 1, error));
    }
}

#[test]
fn replies_that_the_socket_does_not_take_at_once_arrive_whole_and_one_after_the_other() {
    let (count, length) = (12_u32, 256_u32 << 10);
    let export = MemoryExport::new("m", (count * length) as usize);
    for number in 0..count {
        let at = (number * length) as usize;
        export.data.lock()[at..at + length as usize].fill(number as u8 + 1);
    }
    let running = Running::start(vec![export], quick());
    let mut stream = running.raw_requests("m");
    for number in 0..count {
        let offset = u64::from(number * length);
        stream.write_all(&request(Command::Read, number.into(), offset, length)).unwrap();
    }
    let mut left: HashSet<u64> = (0..u64::from(count)).collect();
    while !left.is_empty() {
        let (cookie, error) = simple_reply(&mut stream);
        assert!(error == 0 && left.remove(&cookie), "{cookie} {error}");
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data).unwrap();
        assert!(data.iter().all(|byte| u64::from(*byte) == cookie + 1), "{cookie}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_flush_reaches_the_export_after_every_write_that_was_answered() {
    let export = MemoryExport::new("m", 1 << 20);
    let running = Running::start(vec![export.clone()], quick());
    let (mut one, mut two) = (running.client("m"), running.client("m"));
    for n in 0..20 {
        one.write(n * 512, &[1; 512], n % 2 == 0).unwrap();
        two.flush().unwrap();
        let calls = export.calls();
        let last_two = &calls[calls.len() - 2..];
        let write = if n % 2 == 0 { "write-fua" } else { "write" };
        assert_eq!(last_two, [format!("{write} {}", n * 512), format!("flush {}", u64::MAX)]);
    }
}

#[test]
fn an_export_that_hangs_leaves_the_others_their_threads_and_memory() {
    let (hung, well) = (MemoryExport::new("hung", 64 << 20), MemoryExport::new("well", 64 << 20));
    let running = Running::start(vec![hung.clone(), well], quick());
    hung.hold(0);
    let mut stuck = running.raw_requests("hung");
    for cookie in 0..20 {
        stuck.write_all(&request(Command::Read, cookie, 0, 32 << 20)).unwrap();
    }
    wait_until("all threads of the export hang", || !hung.calls().is_empty());
    let mut client = running.client("well");
    let mut buf = vec![1; 40 << 20];
    client.read(0, &mut buf).unwrap();
    assert!(proto::is_zero(&buf));
    hung.free(0);
}

#[test]
fn errors_have_the_code_and_text_of_their_cause_and_the_connection_goes_on() {
    let running = Running::start(vec![MemoryExport::new("m", 1 << 20)], quick());
    let mut client = running.client("m");
    assert_eq!(code(client.read((1 << 20) - 1, &mut [0; 2]).unwrap_err()), 22);
    assert_eq!(code(client.read(u64::MAX, &mut [0; 2]).unwrap_err()), 22);
    assert_eq!(code(client.write(1 << 20, &[1], false).unwrap_err()), 28);
    assert_eq!(code(client.write_zeroes(1, 1 << 20, ZeroFlags::default()).unwrap_err()), 28);
    assert_eq!(code(client.read(PANIC_AT, &mut [0; 2]).unwrap_err()), 5);
    // Not offered by this export.
    let fast = ZeroFlags { fast: true, ..ZeroFlags::default() };
    assert_eq!(code(client.write_zeroes(0, 1, fast).unwrap_err()), 22);
    let trimmed = client.trim(0, 512, false).unwrap_err();
    assert!(trimmed.to_string().contains("no room for holes"), "{trimmed}");
    assert_eq!(code(trimmed), 28);
    let no_hole = ZeroFlags { no_hole: true, fua: true, ..ZeroFlags::default() };
    client.write_zeroes(0, 512, no_hole).unwrap();
    let status = client.block_status(0, 1000).unwrap();
    assert_eq!(status, [StatusExtent { length: 1000, hole: false, zero: true }], "joined and cut");
}

#[test]
fn a_read_only_export_refuses_every_change() {
    let export = Arc::new(MemoryExport { read_only: true, ..MemoryExport::plain("m", 4096) });
    let running = Running::start(vec![export.clone()], quick());
    let mut client = running.client("m");
    assert!(client.read_only());
    assert_eq!(code(client.write(0, &[1; 4096], false).unwrap_err()), 1);
    assert_eq!(code(client.write_zeroes(0, 1, ZeroFlags::default()).unwrap_err()), 1);
    assert_eq!(code(client.trim(0, 1, false).unwrap_err()), 1);
    client.flush().unwrap();
    client.read(0, &mut [0; 4096]).unwrap();
    assert!(export.calls().iter().all(|call| call.starts_with("read") || call.starts_with("flush")));
}

#[test]
fn a_drain_answers_what_is_in_flight_and_takes_nothing_more() {
    let export = MemoryExport::new("m", 1 << 20);
    let mut running = Running::start(vec![export.clone()], ServerLimits { drain_timeout: PATIENCE, ..quick() });
    export.hold(0);
    let mut stream = running.raw_requests("m");
    stream.write_all(&request(Command::Read, 7, 0, 4)).unwrap();
    wait_until("the read hangs", || !export.calls().is_empty());
    running.trigger.start();
    // Once nobody can connect any more, the drain has begun.
    wait_until("the server stops listening", || UnixStream::connect(running.socket()).is_err());
    export.free(0);
    assert_eq!(simple_reply(&mut stream), (7, 0));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, [0; 4], "the data, then the end");
    running.stop().unwrap();
    assert!(!running.socket().exists());
}

#[test]
fn a_drain_is_not_held_up_by_an_export_that_hangs() {
    let export = MemoryExport::new("m", 1 << 20);
    let limits = ServerLimits { drain_timeout: Duration::from_millis(50), ..quick() };
    let mut running = Running::start(vec![export.clone()], limits);
    export.hold(0);
    let mut stream = running.raw_requests("m");
    stream.write_all(&request(Command::Read, 7, 0, 4)).unwrap();
    wait_until("the read hangs", || !export.calls().is_empty());
    running.stop().unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "cut without an answer: the read did not succeed");
    export.free(0);
}

#[test]
fn a_disconnect_is_followed_by_the_answers_that_are_due() {
    let export = MemoryExport::new("m", 1 << 20);
    let running = Running::start(vec![export.clone()], quick());
    export.hold(0);
    let mut stream = running.raw_requests("m");
    stream.write_all(&request(Command::Read, 7, 0, 1)).unwrap();
    stream.write_all(&request(Command::Disconnect, 8, 0, 0)).unwrap();
    wait_until("the read hangs", || !export.calls().is_empty());
    export.free(0);
    assert_eq!(simple_reply(&mut stream), (7, 0));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, [0]);
}

#[test]
fn a_socket_is_private_and_taken_over_only_from_the_dead() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("nbd.sock");
    let bind = || Server::bind(Listen::Unix(path.clone()), vec![], ServerLimits::default());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a dead server leaves its socket behind");
    let first = bind().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let second = bind().err().unwrap();
    assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    assert!(second.to_string().contains("nbd.sock"), "{second}");
    drop(first);
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    assert!(bind().is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn addresses_are_read_and_shown_alike() {
    for text in ["unix:/run/disk.sock", "tcp:127.0.0.1:10809", "tcp:[::1]:1"] {
        assert_eq!(text.parse::<Listen>().unwrap().to_string(), text);
    }
    assert_eq!("127.0.0.1:1".parse::<Listen>().unwrap().to_string(), "tcp:127.0.0.1:1");
    let long = format!("unix:/{}", "x".repeat(107));
    for text in ["", "unix:", "unix:///run/x", "tcp:nowhere", "localhost:10809", "/run/x", &long] {
        assert!(text.parse::<Listen>().is_err(), "{text}");
    }
}
