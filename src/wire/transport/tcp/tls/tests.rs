use std::io::{Read as _, Write as _};
use std::sync::Arc;

use super::*;
use crate::wire::tests::support::{Pki, clock};
use crate::wire::tls::{Explanation, Material};

struct Site {
    _pki: Pki,
    gateway: Material,
    agent: Material,
}

impl Site {
    fn new() -> Self {
        let pki = Pki::new();
        let load = |files| Material::load(&files, &clock(0)).expect("files");
        Self { gateway: load(pki.gateway()), agent: load(pki.agent("a1", &["d1"])), _pki: pki }
    }

    fn server(&self) -> Tls {
        let config = self.gateway.server_config(&Explanation::default()).expect("config");
        Tls::server(UnbufferedServerConnection::new(Arc::new(config)).expect("connection"))
    }

    fn client_config(&self) -> Arc<rustls::ClientConfig> {
        Arc::new(self.agent.client_config(&Explanation::default()).expect("config"))
    }

    fn client(&self) -> Tls {
        let name = "127.0.0.1".try_into().expect("name");
        Tls::client(UnbufferedClientConnection::new(self.client_config(), name).expect("connection"))
    }

    /// TLS's own buffered client, which can do what ours never does.
    fn other_client(&self) -> rustls::ClientConnection {
        rustls::ClientConnection::new(self.client_config(), "127.0.0.1".try_into().expect("name")).expect("connection")
    }
}

/// Gives `bytes` to a side as a socket would, in reads of at most `cut` bytes.
fn give(to: &mut Tls, bytes: &[u8], cut: usize) -> Result<Vec<u8>, Error> {
    let (mut scratch, mut all) = (vec![0; TAIL_BYTES_MAX + cut], Vec::new());
    for piece in bytes.chunks(cut) {
        let tail_bytes = to.put_tail(&mut scratch);
        let end = tail_bytes + piece.len();
        scratch[tail_bytes..end].copy_from_slice(piece);
        let mut plain = BytesMut::new();
        to.take(&mut scratch[..end], &mut plain)?;
        all.extend_from_slice(&plain);
    }
    Ok(all)
}

fn take_unsent(from: &mut Tls) -> Vec<u8> {
    let bytes = from.unsent().to_vec();
    from.sent(bytes.len());
    bytes
}

/// What arrives on both sides until nothing more is on its way.
fn pump(client: &mut Tls, server: &mut Tls, cut: usize) -> (Vec<u8>, Vec<u8>) {
    let (mut at_client, mut at_server) = (Vec::new(), Vec::new());
    client.take(&mut [], &mut BytesMut::new()).expect("it begins");
    loop {
        let (to_server, to_client) = (take_unsent(client), take_unsent(server));
        if to_server.is_empty() && to_client.is_empty() {
            return (at_client, at_server);
        }
        at_server.extend(give(server, &to_server, cut).expect("taken"));
        at_client.extend(give(client, &to_client, cut).expect("taken"));
    }
}

fn write(to: &mut Tls, pieces: &[&[u8]]) {
    let mut pieces: Vec<Bytes> = pieces.iter().map(|piece| Bytes::copy_from_slice(piece)).collect();
    let more = to.write(&mut &mut pieces[..], usize::MAX).expect("written");
    assert!(!more && pieces.iter().all(Bytes::is_empty));
}

#[test]
fn plaintext_arrives_whole_however_the_network_cuts_it() {
    let site = Site::new();
    let large: Vec<u8> = (0..300_000_u32).map(|number| (number * 7) as u8).collect();
    for cut in [1_usize, 7, 1000, 16_401, 200_000] {
        let (mut client, mut server) = (site.client(), site.server());
        pump(&mut client, &mut server, cut);
        assert_eq!((client.phase(), server.phase()), (Phase::Open, Phase::Open));
        // Small, empty and large pieces in one go: the small ones share TLS records.
        let pieces =
            [&b"head"[..], b"", b"table", &large, b"x", &large[..SMALL_BYTES], &large[..SMALL_BYTES - 1], b"end"];
        let sent_bytes = if cut < 10 { &pieces[..3] } else { &pieces[..] };
        write(&mut client, sent_bytes);
        write(&mut server, &[b"ack"]);
        let (at_client, at_server) = pump(&mut client, &mut server, cut);
        assert_eq!(at_client, b"ack");
        assert!(at_server == sent_bytes.concat(), "cut into {cut} bytes");
        assert!(server.tail.is_empty() && client.tail.is_empty(), "nothing is held");
    }
}

#[test]
fn no_more_is_encrypted_than_may_wait() {
    let site = Site::new();
    let (mut client, mut server) = (site.client(), site.server());
    pump(&mut client, &mut server, 4096);
    let mut pieces = [Bytes::from(vec![7; 1 << 20]), Bytes::from_static(b"end")];
    let (mut rest, mut arrived) = (&mut pieces[..], 0);
    while client.write(&mut rest, 64 << 10).expect("written") {
        assert!(client.unsent().len() <= 2 * (64 << 10) + 4096, "{} bytes wait", client.unsent().len());
        arrived += pump(&mut client, &mut server, 1 << 20).1.len();
    }
    arrived += pump(&mut client, &mut server, 1 << 20).1.len();
    assert_eq!(arrived, (1 << 20) + 3);
}

#[test]
fn each_direction_ends_by_itself() {
    let site = Site::new();
    let (mut client, mut server) = (site.client(), site.server());
    pump(&mut client, &mut server, 4096);
    write(&mut client, &[b"last"]);
    client.write_end().expect("ended");
    assert_eq!(pump(&mut client, &mut server, 4096).1, b"last");
    assert_eq!((client.phase(), server.phase()), (Phase::Open, Phase::HalfOpen));
    write(&mut server, &[b"acks go on"]);
    server.write_end().expect("ended");
    assert_eq!(pump(&mut client, &mut server, 4096).0, b"acks go on");
    assert_eq!(client.phase(), Phase::HalfOpen);
}

fn exchange(client: &mut rustls::ClientConnection, server: &mut Tls) {
    loop {
        let mut to_server = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut to_server).expect("written");
        }
        let to_client = take_unsent(server);
        if to_server.is_empty() && to_client.is_empty() {
            return;
        }
        give(server, &to_server, 1 << 20).expect("taken");
        let mut unread = &to_client[..];
        while !unread.is_empty() {
            client.read_tls(&mut unread).expect("read");
            client.process_new_packets().expect("good");
        }
    }
}

#[test]
fn keys_are_renewed_when_the_other_side_asks_and_writes_go_on_in_the_midst_of_it() {
    let site = Site::new();
    let (mut client, mut server) = (site.other_client(), site.server());
    exchange(&mut client, &mut server);
    for cut_at in [1, 5, 20, 26] {
        client.refresh_traffic_keys().expect("open");
        client.writer().write_all(b"new keys").expect("written");
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("written");
        }
        let (first, rest) = bytes.split_at(cut_at);
        assert_eq!(give(&mut server, first, 1 << 20).expect("a part"), b"");
        // TLS remembers places in what has come: a write in between must not confuse it.
        write(&mut server, &[b"ack"]);
        assert_eq!(give(&mut server, rest, 1 << 20).expect("the rest"), b"new keys");
        write(&mut server, &[b" again"]);
        exchange(&mut client, &mut server);
        let mut acks = [0; 9];
        client.reader().read_exact(&mut acks).expect("under the server's new keys too");
        assert_eq!(&acks, b"ack again");
    }
}

#[test]
fn what_is_no_tls_ends_with_an_error_that_stays() {
    let site = Site::new();
    for noise in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0x16, 3, 1, 0xff, 0xff], &[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff]]
    {
        let mut server = site.server();
        let first = give(&mut server, noise, 3);
        let again = give(&mut server, &[1; 70_000], 70_000);
        // A header that promises much may wait for it; then it is too much.
        assert!(first.is_err() || again.is_err(), "{noise:?}");
        assert!(server.write_end().is_err());
        assert!(give(&mut server, b"more", 4).is_err());
    }
}

#[test]
fn a_flipped_bit_is_noticed_and_the_other_side_is_told() {
    let site = Site::new();
    let (mut client, mut server) = (site.client(), site.server());
    pump(&mut client, &mut server, 4096);
    write(&mut client, &[b"precious"]);
    let mut bytes = take_unsent(&mut client);
    bytes[9] ^= 4;
    assert!(matches!(give(&mut server, &bytes, 4096), Err(Error::DecryptError)));
    let alert = take_unsent(&mut server);
    assert!(matches!(give(&mut client, &alert, 4096), Err(Error::AlertReceived(_))), "{} bytes", alert.len());
}
