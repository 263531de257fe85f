//! What the corpora start from: the fixtures of every format, and what the encoders write.

use std::path::Path;

use crate::keys::{CatalogKey, wrap};
use crate::pipeline::codec::{Packer, Packing};
use crate::types::{Id128, Micros, parse_hex};
use crate::wire::frame::HEADER_BYTES;
use crate::wire::pki::{self, IssueOptions};

type Seed = (&'static str, String, Vec<u8>);

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `bytes` behind the bytes that say how they are meant.
fn seed(target: &'static str, name: &str, mode: &[u8], bytes: &[u8]) -> Seed {
    (target, format!("seed-{name}"), [mode, bytes].concat())
}

/// Every seed: target, file name, bytes. Certificates and wrapped keys are random and stand in the corpus only.
pub(super) fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    wire(&mut seeds);
    nbd(&mut seeds);
    journal(&mut seeds);
    vault(&mut seeds);
    objects(&mut seeds);
    local(&mut seeds);
    words(&mut seeds);
    seeds
}

fn wire(seeds: &mut Vec<Seed>) {
    let text = String::from_utf8(fixture("v1/wire-frames.txt")).unwrap();
    let mut all = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, hex) = line.split_once(' ').unwrap();
        let pairs = hex.trim().as_bytes().chunks(2);
        let frame: Vec<u8> = pairs.map(|pair| parse_hex::<1>(std::str::from_utf8(pair).unwrap()).unwrap()[0]).collect();
        let body_bytes = (frame.len() - HEADER_BYTES) as u16;
        let [low, high] = body_bytes.to_le_bytes();
        let number = crate::wire::frame::Kind::ALL.iter().position(|kind| *kind as u8 == frame[0]).unwrap();
        seeds.push(seed("wire_frames", name, &[7, number as u8, low, high], &frame[HEADER_BYTES..]));
        all.extend_from_slice(&frame);
    }
    seeds.push(seed("wire_frames", "all", &[11], &all));
    let record = fixture("v1/record.bin");
    let [low, high] = (record.len() as u16).to_le_bytes();
    let framed = [&[9, low, high][..], &record].concat();
    seeds.push(seed("wire_frames", "two-records", &[3], &[&framed[..], &framed].concat()));
    seeds.push(seed("record", "fixture", &[], &record));
    seeds.push(seed("record", "two", &[], &[&record[..], &record].concat()));
    let signed = fixture("v2/record-signed.bin");
    seeds.push(seed("record", "signed", &[], &signed));
    let (view, _) = crate::types::RecordView::split(&signed).unwrap();
    seeds.push(seed("signed", "block", &[0], view.table));
    seeds.push(seed("signed", "heads", &[1], &fixture("v1/heads.json")));
}

fn nbd(seeds: &mut Vec<Seed>) {
    use crate::nbd::proto::{
        Command, GREETING_MAGIC, OPTION_MAGIC, OptionHead, Request, encode_error_chunk, encode_option_reply,
        encode_simple_reply, encode_status_chunk, encode_string, encode_structured_read, option, option_reply,
    };
    let name = |out: &mut Vec<u8>, number: u32, data: &[u8]| {
        OptionHead { option: number, data_bytes: data.len() as u32 }.encode(out);
        out.extend_from_slice(data);
    };
    let mut said = 3_u32.to_be_bytes().to_vec();
    name(&mut said, option::LIST, &[]);
    name(&mut said, option::STRUCTURED_REPLY, &[]);
    let mut context = Vec::new();
    encode_string(&mut context, "a");
    context.extend_from_slice(&1_u32.to_be_bytes());
    encode_string(&mut context, "base:allocation");
    name(&mut said, option::SET_META_CONTEXT, &context);
    let mut go = Vec::new();
    encode_string(&mut go, "a");
    go.extend_from_slice(&[0, 1, 0, 1]);
    name(&mut said, option::GO, &go);
    let commands = [Command::Read, Command::Write, Command::Flush, Command::Trim, Command::WriteZeroes];
    for (cookie, command) in (1..).zip(commands.into_iter().chain([Command::BlockStatus, Command::Disconnect])) {
        let length = if command == Command::Flush { 0 } else { 16 };
        said.extend_from_slice(&Request { flags: 0, command, cookie, offset: 0, length }.encode());
        said.extend_from_slice(if command == Command::Write { &[7; 16] } else { &[] });
    }
    seeds.push(seed("nbd_server", "session", &[], &said));
    let mut plain = 1_u32.to_be_bytes().to_vec();
    name(&mut plain, option::EXPORT_NAME, b"b");
    plain.extend_from_slice(&Request { flags: 1, command: Command::Read, cookie: 1, offset: 512, length: 64 }.encode());
    seeds.push(seed("nbd_server", "export-name", &[], &plain));

    let mut greeting = GREETING_MAGIC.to_be_bytes().to_vec();
    greeting.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    greeting.extend_from_slice(&[0, 3]);
    let info = [&[0, 0][..], &(1_u64 << 20).to_be_bytes(), &[1, 0xff]].concat();
    let mut structured = greeting.clone();
    encode_option_reply(&mut structured, option::STRUCTURED_REPLY, option_reply::ACK, &[]);
    encode_option_reply(
        &mut structured,
        option::SET_META_CONTEXT,
        option_reply::META_CONTEXT,
        b"\0\0\0\x01base:allocation",
    );
    encode_option_reply(&mut structured, option::SET_META_CONTEXT, option_reply::ACK, &[]);
    encode_option_reply(&mut structured, option::GO, option_reply::INFO, &info);
    encode_option_reply(&mut structured, option::GO, option_reply::ACK, &[]);
    let read: Vec<u8> = encode_structured_read(1, 512, &vec![5; 4096].into(), false).concat();
    let hole = encode_structured_read(1, 512, &vec![0; 4096].into(), true).concat();
    let status = encode_status_chunk(1, &[(512, 3), (1 << 19, 0)]);
    let failed = encode_error_chunk(1, crate::nbd::proto::ErrorCode::Io, "broken");
    for (number, (name, reply)) in
        [("read", &read[..]), ("status", &status), ("failed", &failed)].into_iter().enumerate()
    {
        seeds.push(seed("nbd_client", name, &[number as u8], &[&structured[..], reply].concat()));
    }
    seeds.push(seed("nbd_client", "whole", &[0], &[&structured[..], &hole].concat()));
    let mut simple = greeting;
    encode_option_reply(&mut simple, option::STRUCTURED_REPLY, option_reply::ERR_UNSUP, b"no");
    encode_option_reply(&mut simple, option::GO, option_reply::INFO, &info);
    encode_option_reply(&mut simple, option::GO, option_reply::ACK, &[]);
    simple.extend_from_slice(&encode_simple_reply(1, None));
    seeds.push(seed("nbd_client", "simple", &[0], &[&simple[..], &[9; 4096]].concat()));
}

fn journal(seeds: &mut Vec<Seed>) {
    let segment = fixture("v1/journal-seg-00000001");
    let cut = segment.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    seeds.push(seed("commit", "fixture", &[0], &segment[..cut]));
    seeds.push(seed("commit", "fixture-mended", &[9], &segment[..cut.min(4096)]));
    // See the target for what these bytes mean: commits of records and marks, a rewritten one, a torn one.
    let rows = [0, 0, 1, 1, 0, 0, 1, 2, 3, 0, 1, 1];
    let plain = [&[0, 1, 3][..], &rows, &[0, 1, 2, 0, 0, 1, 3, 4, 0, 1, 0]].concat();
    seeds.push(seed("journal", "two-commits", &[], &plain));
    seeds.push(seed("journal", "torn", &[], &[&plain[..], &[0x41, 1, 1, 0, 1, 1, 1, 16, 0, 7]].concat()));
    seeds.push(seed("journal", "rewritten", &[], &[&plain[..], &[1, 0, 1, 0, 0, 1, 3, 2, 1, 1, 5, 0, 1, 1]].concat()));
    seeds.push(seed("journal", "held", &[], &[&plain[..], &[0x82, 1, 2, 6, 0, 1, 2, 0x86, 0, 1, 0]].concat()));
    seeds.push(seed("journal", "largest-numbers", &[], &[0, 0xff, 1, 0, 0, 0xff, 0xfe, 0, 0xff, 0, 0, 1, 1, 1]));
}

fn vault(seeds: &mut Vec<Seed>) {
    let batch = fixture("v1/batch.bin");
    seeds.push(seed("batch", "fixture", &[0], &batch));
    seeds.push(seed("batch", "fixture-mended", &[3], &batch));
    seeds.push(seed("batch", "tail", &[4 << 2], &batch[4..]));
    let lanes = fixture("v1/index-lane.bin");
    seeds.push(seed("lane_index", "fixture", &[0], &lanes));
    seeds.push(seed("lane_index", "fixture-mended", &[1], &lanes));
    let folded = fixture("v1/index-folded.bin");
    seeds.push(seed("folded_index", "fixture", &[0], &folded));
    seeds.push(seed("folded_index", "fixture-mended", &[1], &folded));
    seeds.push(seed("folded_index", "rows", &[2], &crate::vault::index::tests::folded_rows()));
    seeds.push(seed("index", "tests", &[], &crate::vault::index::tests::sample().encode()));
    seeds.push(seed("index", "moved", &[], &fixture("v2/index.bin")));
    for name in ["message-lz4.bin", "message-raw.bin", "message-zstd.bin"] {
        seeds.push(seed("message", name, &[0, 2, 1], &fixture(&format!("v1/{name}"))));
    }
    seeds.push(seed("message", "message-disk.bin", &[0, 2, 0], &fixture("v2/message.bin")));
    for (name, packing) in [("packed", Packing::Lz4), ("packed-zstd", Packing::Zstd(3))] {
        let mut packed = Vec::new();
        let codec = Packer::default().pack(packing, &b"tidegate ".repeat(40), 0, &mut packed);
        let [low, high] = 360_u16.to_le_bytes();
        seeds.push(seed("message", name, &[low, high, codec as u8], &packed));
    }
}

fn objects(seeds: &mut Vec<Seed>) {
    ["v1", "v2", "v3"].into_iter().for_each(|version| objects_of(version, seeds));
}

fn objects_of(version: &str, seeds: &mut Vec<Seed>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(version).join("vault");
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let bytes = fixture(&format!("{version}/vault/{name}"));
        let Some(line) = bytes.split(|byte| *byte == b'\n').next().filter(|line| line.starts_with(b"{")) else {
            continue;
        };
        if name.starts_with("m~") || name.ends_with("~shred") {
            let kind = match name.split('~').nth(1) {
                _ if name.ends_with("~shred") => 5,
                Some("l") => 0,
                Some("p") => 1,
                Some("f") => 4,
                _ => 2,
            };
            let version = if version == "v1" { String::new() } else { format!("-{version}") };
            let name = format!("{}{version}", name.replace('~', "-"));
            seeds.push(seed("keeper", &name, &[kind], &bytes));
            seeds.push(seed("keeper", &format!("{name}-authentic"), &[0x80 | kind], line));
            continue;
        }
        if let Some(kind) = ["recipients~", "rewraps~"].iter().position(|folder| name.starts_with(folder)) {
            let name = name.replace('~', "-");
            seeds.push(seed("recipients", &name, &[kind as u8], &bytes));
            seeds.push(seed("recipients", &format!("{name}-authentic"), &[0x80 | kind as u8], line));
            let object: serde_json::Value = serde_json::from_slice(line).unwrap();
            let content = object["signed"].as_str().unwrap();
            seeds.push(seed("recipients", &format!("{name}-content"), &[0x40 | kind as u8], content.as_bytes()));
            continue;
        }
        if name.contains("~c~") && name.starts_with("d~") {
            seeds.push(seed("signed", "certificate", &[2], &bytes));
            seeds.push(seed("signed", "certificate-authentic", &[0x82], line));
            continue;
        }
        let kind = match name.split('~').collect::<Vec<_>>()[..] {
            ["vault" | "vault-with-signer"] => 0,
            ["lanes", lane] if lane.ends_with(".end") => 2,
            ["lanes", lane] if lane.ends_with(".seal") => 3,
            ["lanes", _] => 1,
            ["d", _, "disk"] => 4,
            ["d", _, "r", _] => 5,
            _ => 6,
        };
        let version = if version == "v1" { String::new() } else { format!("-{version}") };
        let name = format!("{}{version}", name.replace('~', "-"));
        seeds.push(seed("objects", &name, &[kind], &bytes));
        // The number in bits 0 to 6 with bit 7 set must give the same kind.
        let authentic = (0..=0x7f_u8).find(|low| (0x80 | low) % 7 == kind).unwrap() | 0x80;
        seeds.push(seed("objects", &format!("{name}-authentic"), &[authentic], line));
        if kind == 6 {
            let text = String::from_utf8(line.to_vec()).unwrap();
            let next = text.replace("\"epoch\":2", "\"epoch\":3").replace("\"previous\":1", "\"previous\":2");
            let first = text.replace("\"epoch\":2", "\"epoch\":1").replace("\"previous\":1", "\"previous\":null");
            seeds.push(seed("objects", "lineage", &[6], format!("{first}\n{text}\n{next}\n").as_bytes()));
        }
    }
}

fn local(seeds: &mut Vec<Seed>) {
    seeds.push(seed("config", "gateway", &[0], crate::gateway::config::DEFAULT_FILE.as_bytes()));
    seeds.push(seed("config", "agent", &[1], crate::agent::config::DEFAULT_FILE.as_bytes()));
    let short =
        "id='g'\n[tls]\nca='a'\ncert='b'\nkey='c'\n[vault]\nurl='file:///v'\ncatalog_key='k'\n[journal]\ndir='/j'\n";
    seeds.push(seed("config", "gateway-short", &[0], short.as_bytes()));
    seeds.push(seed("keeper", "config", &[3], crate::keeper::config::DEFAULT_FILE.as_bytes()));
    let hold = "[vault]\nurl='file:///v'\ncatalog_key='k'\n[policy]\nholds=['2026-11-01T00:00:00Z/2026-11-02T00:00:00Z']\n\
                [[disk]]\nname='a'\nmonths='forever'\n";
    seeds.push(seed("keeper", "config-hold", &[3], hold.as_bytes()));
    let state = fixture("agent/v1.state");
    seeds.push(seed("agent_state", "fixture", &[0], &state));
    seeds.push(seed("agent_state", "line", &[1], state.split(|byte| *byte == b'\n').next().unwrap()));
    let map = fixture("agent/v1.map");
    seeds.push(seed("activity", "fixture", &[0, 0], &map));
    seeds.push(seed("activity", "mended", &[0, 1], &map));
    seeds.push(seed("activity", "two-blocks", &[8, 1], &[&map[..], &[0xaa; 512], &[1; 512]].concat()));
    seeds.push(seed("resume", "done", &[33], b"done 0-3\ndone 7-9\ndone 15-15\n"));
    seeds.push(seed("resume", "beyond", &[9], b"done 0-3\ndone 3-4\n"));
    seeds.push(seed("resume", "other", &[8], b"tidegate-resume 1 x y z 1 2 00000000\n"));
    let verify = String::from_utf8(fixture("v1/verify.state")).unwrap();
    let bare: String = verify.lines().map(|line| format!("{}\n", line.rsplit_once(' ').unwrap().0)).collect();
    seeds.push(seed("verify_state", "fixture", &[0], verify.as_bytes()));
    seeds.push(seed("verify_state", "lines", &[1], bare.as_bytes()));
    let overlay = fixture("v1/overlay.bin");
    seeds.push(seed("overlay", "fixture", &[254], &overlay));
    seeds.push(seed("overlay", "log", &[30], &overlay[4096..]));
    seeds.push(seed("overlay", "mended", &[31], &[&overlay[4096..], &[1; 16]].concat()));
    let key = CatalogKey::from_secret([7; 32]);
    seeds.push(seed("keys", "catalog", &[], crate::keys::file::catalog_key_text(&key).as_bytes()));
    seeds.push(seed("keys", "fixture", &[], &fixture("v1/vault/recovery.key")));
    seeds.push(seed("keys", "locked", &[], &fixture("v1/vault/locked.key")));
}

fn words(seeds: &mut Vec<Seed>) {
    for (name, text) in [
        ("point", "e1-s4711"),
        ("id", "abababababababababababababababab"),
        ("kid", "0123456789abcdef"),
        ("disk", "web-1.sda"),
        ("unix", "unix:/run/d1.sock"),
        ("tcp", "tcp:[::1]:10809"),
        ("size", "64 MiB"),
        ("duration", "500 ms"),
        ("file", "file:///srv/vault"),
        ("az", "az://account/container/prefix"),
        ("http", "http://127.0.0.1:10000/devstoreaccount1/vault"),
        ("time", "2026-11-22T21:00:05.5+02:00"),
        ("local-time", "2026-11-22 21:00:05"),
        ("ago", "2 hours ago"),
        ("back", "-1 day"),
        ("batch", "b/aba/abababababababababababababababab/000000000007"),
        ("route", "d/web-1.sda/r/abababababababababababababababab"),
        ("status", "{\"op\":\"status\"}"),
        ("ask", "{\"op\":\"point\",\"disks\":[\"d1\"],\"name\":\"x\",\"kind\":\"app\",\"wait\":true,\"timeout_ms\":5}"),
    ] {
        seeds.push(seed("text", name, &[], text.as_bytes()));
    }
    let vault = "000102030405060708090a0b0c0d0e0f";
    let agent = format!("spiffe://{vault}/agent/a1\nspiffe://{vault}/agent/a1/disk/d1\nhttps://other.example/");
    seeds.push(seed("identity", "agent", &[], agent.as_bytes()));
    seeds.push(seed("identity", "gateway", &[], format!("spiffe://{vault}/gateway/g1").as_bytes()));
}

/// Certificates and wrapped keys are made of randomness: written once, and not compared.
pub(super) fn random() -> Vec<Seed> {
    let folder = tempfile::tempdir().unwrap();
    let options = IssueOptions { now: Micros(1_795_384_805_000_000), days: 30, force: false, keep_key: false };
    pki::init(folder.path(), Id128([0xa1; 16]), options).unwrap();
    let disk = crate::types::DiskId::new("d1").unwrap();
    let agent = pki::issue_agent(folder.path(), "a1", &[disk], options).unwrap();
    let pem = std::fs::read_to_string(agent.cert).unwrap();
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let identity = super::local::identity();
    let wrapped = wrap(&[identity.recipient()], &[9; 32]).unwrap();
    let recipients = format!("# people\n{}\n", identity.recipient());
    vec![
        seed("identity", "certificate", &[], &block.contents),
        seed("keys", "wrapped", &[], wrapped.as_bytes()),
        seed("keys", "recipients", &[], recipients.as_bytes()),
    ]
}
