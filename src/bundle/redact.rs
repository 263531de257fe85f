//! Blots out secrets: those of this host that are known, wherever they stand, and whatever looks like one. Pure.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// What stands in place of a secret.
pub const BLOT: &str = "[secret]";

/// Shorter texts are no secrets of ours, and would blot out half of everything.
const KNOWN_BYTES_MIN: usize = 12;
/// A run of base64 of this length, with capitals, small letters and digits in it, is taken for a key: 256 bits are 43.
const BASE64_RUN_MIN: usize = 43;
/// A run of hexadecimal digits of this length is taken for a key: 256 bits.
const HEX_RUN_MIN: usize = 64;

/// The secrets of a host, and how to blot them out.
#[derive(Default)]
pub struct Redactor {
    /// Longest first, so that a part of one does not spoil the whole.
    known: Vec<String>,
}

impl Redactor {
    /// Knows these secrets: contents of key files and of variables.
    #[must_use]
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let mut known = BTreeSet::new();
        for secret in secrets {
            // Each line and word alone too: a text may be broken elsewhere, or quoted on one line.
            for piece in std::iter::once(secret).chain(secret.lines()).chain(secret.split_whitespace()) {
                let piece = piece.trim();
                if piece.len() >= KNOWN_BYTES_MIN && !piece.starts_with("-----") && !is_plain_word(piece) {
                    known.insert(piece.to_owned());
                    known.insert(percent_decoded(piece));
                    known.insert(percent_encoded(piece));
                }
            }
        }
        let mut known: Vec<_> = known.into_iter().collect();
        known.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self { known }
    }

    /// The text without secrets.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        let mut out = private_keys(text);
        for secret in &self.known {
            if out.contains(secret.as_str()) {
                out = out.replace(secret.as_str(), BLOT);
            }
        }
        for mark in MARKS {
            out = after_mark(&out, mark);
        }
        runs(&user_information(&out))
    }
}

/// Words that stand in key files beside the secret, and everywhere else.
fn is_plain_word(piece: &str) -> bool {
    piece.starts_with("tidegate-catalog-key")
        || piece.starts_with('#')
        || piece.len() < 24 && piece.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-' || byte == b'_')
}

fn percent_decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after
            .get(..2)
            .and_then(|two| std::str::from_utf8(two).ok())
            .and_then(|two| u8::from_str_radix(two, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &after[2..];
            }
            _ => {
                out.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn percent_encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string never fails.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Blots out what stands between the first and the last line of a private key, on one line or many; without an end, all
/// that follows.
fn private_keys(text: &str) -> String {
    const BEGIN: &str = "-----BEGIN ";
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(BEGIN) {
        let head = &rest[at + BEGIN.len()..];
        let label = head.find("-----").filter(|&end| end < 64).map(|end| &head[..end]);
        let Some(label) = label.filter(|label| label.contains("PRIVATE KEY")) else {
            out.push_str(&rest[..at + BEGIN.len()]);
            rest = head;
            continue;
        };
        out.push_str(&rest[..at]);
        out.push_str(BLOT);
        let end = format!("-----END {label}-----");
        rest = head.find(&end).map_or("", |found| &head[found + end.len()..]);
    }
    out + rest
}

/// What comes before a secret, and which characters end it.
struct Mark {
    /// In small letters; capitals in the text do not matter.
    before: &'static str,
    ends: &'static [char],
}

const VALUE_ENDS: &[char] = &['&', ';', ' ', '\t', '\n', '\r', '"', '\'', '<', '>', ',', ')', '\\'];
const QUOTED_ENDS: &[char] = &['"', '\n', '\r'];

const MARKS: &[Mark] = &[
    Mark { before: "sig=", ends: VALUE_ENDS },
    Mark { before: "sig%3d", ends: VALUE_ENDS },
    Mark { before: "accountkey=", ends: VALUE_ENDS },
    Mark { before: "sharedaccesssignature=", ends: &[';', ' ', '\n', '\r', '"', '\''] },
    Mark { before: "bearer ", ends: VALUE_ENDS },
    Mark { before: "sharedkey ", ends: VALUE_ENDS },
    Mark { before: "age-secret-key-1", ends: VALUE_ENDS },
    Mark { before: "client_secret=", ends: VALUE_ENDS },
    Mark { before: "password=", ends: VALUE_ENDS },
    Mark { before: "password = \"", ends: QUOTED_ENDS },
    Mark { before: "secret = \"", ends: QUOTED_ENDS },
    Mark { before: "token = \"", ends: QUOTED_ENDS },
    Mark { before: "account_key = \"", ends: QUOTED_ENDS },
    Mark { before: "access_key = \"", ends: QUOTED_ENDS },
];

fn after_mark(text: &str, mark: &Mark) -> String {
    // ASCII only, so that offsets in both are the same.
    let lower = text.to_ascii_lowercase();
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    while let Some(found) = lower[at..].find(mark.before) {
        let from = at + found + mark.before.len();
        let length = text[from..].find(mark.ends).unwrap_or(text.len() - from);
        out.push_str(&text[at..from]);
        if length > 0 {
            out.push_str(BLOT);
        }
        at = from + length;
    }
    out.push_str(&text[at..]);
    out
}

/// `https://user:password@host`: what stands before the `@` of an address.
fn user_information(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("://") {
        let after = &rest[at + 3..];
        let authority =
            &after[..after.find(|c: char| c.is_whitespace() || "/?#\"'<>".contains(c)).unwrap_or(after.len())];
        out.push_str(&rest[..at + 3]);
        match authority.rfind('@') {
            Some(end) => {
                out.push_str(BLOT);
                rest = &after[end..];
            }
            None => rest = after,
        }
    }
    out + rest
}

/// Blots out long runs of base64 and hexadecimal digits.
fn runs(text: &str) -> String {
    let in_run = |c: char| c.is_ascii_alphanumeric() || "+/=_-".contains(c);
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(start) = rest.find(in_run) {
        out.push_str(&rest[..start]);
        let run = &rest[start..];
        let run = &run[..run.find(|c| !in_run(c)).unwrap_or(run.len())];
        out.push_str(if is_key(run) { BLOT } else { run });
        rest = &rest[start + run.len()..];
    }
    out + rest
}

fn is_key(run: &str) -> bool {
    if run.len() >= HEX_RUN_MIN && run.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return true;
    }
    // A path has short names between its slashes, an identifier its dashes: no key has so many of either.
    let longest = run.split(['/', '-', '_']).map(str::len).max().unwrap_or_default();
    let has = |of: fn(&u8) -> bool| run.as_bytes().iter().any(of);
    let mixed = has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_digit);
    let padded = run.ends_with('=') && run.len().is_multiple_of(4);
    run.len() >= BASE64_RUN_MIN && mixed && (longest >= 20 || padded || run.contains('+'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT_KEY: &str =
        "Zm9vYmFyYmF6K3F1eC9xdXV4Y29yZ2UrZ3JhdWx0L2dhcnBseXdhbGRvZnJlZHBsdWdoeHl6enl0aHVkMDEyMzQ1Njc4OQ==";
    const SAS: &str = "sv=2024-11-04&ss=b&srt=co&sp=rlc&se=2026-12-31T00:00:00Z&sig=hUnTeR2%2Babc%2Fdef%3D";
    const PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIHUnTeR2abcdefghijklmnopqrstuvwxyz01234\n-----END PRIVATE KEY-----";
    const CATALOG: &str = "tidegate-catalog-key-1 00112233445566778899aabbccddeeff 0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";

    fn blind() -> Redactor {
        Redactor::default()
    }

    #[track_caller]
    fn assert_gone(text: &str, secret: &str) {
        let out = blind().redact(text);
        assert!(!out.contains(secret) && out.contains(BLOT), "{secret} is in {out}");
    }

    #[test]
    fn what_looks_like_a_secret_goes_without_being_known() {
        assert_gone(&format!("AccountKey={ACCOUNT_KEY};x=1"), ACCOUNT_KEY);
        assert_gone(&format!("# {ACCOUNT_KEY}"), ACCOUNT_KEY);
        assert_gone(&format!("https://a.blob.core.windows.net/c?{SAS} failed"), "hUnTeR2");
        assert_gone(&format!("{{\"url\":\"{}\"}}", SAS.replace('&', "\\u0026")), "hUnTeR2");
        assert_gone(PEM, "HUnTeR2");
        assert_gone(&PEM.replace('\n', "\\n"), "HUnTeR2");
        assert_gone(&PEM.replace('\n', "\n# "), "HUnTeR2");
        assert_gone(&PEM[..70], "HUnTeR2");
        assert_gone(&PEM.replace("PRIVATE", "EC PRIVATE"), "HUnTeR2");
        assert_gone(CATALOG, "0f1e2d3c4b5a");
        assert_gone("AGE-SECRET-KEY-1QQQQQQQQHUNTER2QQQQQQ", "HUNTER2");
        assert_gone("Authorization: Bearer eyJ0.hunter2.x", "hunter2");
        assert_gone("http://me:hunter2@proxy:3128/", "hunter2");
        assert_gone("password = \"hunter2\"", "hunter2");
    }

    #[test]
    fn what_is_known_goes_wherever_it_stands_and_however_it_is_written() {
        let redactor = Redactor::new(["correct horse battery", "Abc+def/0123==", PEM]);
        for text in [
            "x correct horse battery y",
            "key=Abc%2Bdef%2F0123%3D%3D",
            "\"Abc+def/0123==\"",
            "MC4CAQAwBQYDK2VwBCIEIHUnTeR2abcdefghijklmnopqrstuvwxyz01234",
        ] {
            let out = redactor.redact(text);
            assert!(out.contains(BLOT) && !out.contains("0123") && !out.contains("horse"), "{out}");
        }
        assert_eq!(redactor.redact("horses for courses"), "horses for courses");
    }

    #[test]
    fn what_helps_stays() {
        let text = "listen = \"[::]:9443\" # two\nurl = \"az://account/container/prefix\"\ndir = \"/var/lib/tidegate/gateway/journal/shard-00/0000000000000001.seg\"\n\
            tidegate_blob_requests_total{operation=\"put\",outcome=\"ok\"} 1234567890123\n-----BEGIN CERTIFICATE-----\n\
            lane 000102030405060708090a0b0c0d0e0f point e3-s4711 2026-11-29T11:17:07.000000Z\n\
            key = \"pki/gateway-gw1.key\"\ncatalog_key = \"catalog.key\"\nwho@example.org\n";
        assert_eq!(blind().redact(text), text);
        let long = "/Users/Someone/Documents/Projects2024/Replication/Gateways/Configuration/gateway.toml";
        assert_eq!(blind().redact(long), long);
        // Beside the secret of a key file stand words that are no secret.
        let known = Redactor::new([CATALOG, "# made by tidegate\n"]);
        assert_eq!(known.redact("tidegate-catalog-key-1 made by tidegate"), "tidegate-catalog-key-1 made by tidegate");
    }
}
