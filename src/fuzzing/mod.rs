//! What every decoder must bear: any bytes at all. One function per format, called by the fuzzer (`fuzz/`) and, with the
//! bytes that it once found interesting (`fuzz/corpus/`), by an ordinary test.
//!
//! Each target holds its decoder to the same rules:
//!
//! - it never panics, and never allocates by a count that the bytes do not back;
//! - what it takes, its encoder gives back: byte for byte where the format is canonical, as the same value elsewhere;
//! - what it refuses, it refuses with its own error.
//!
//! Formats with checksums are entered in two ways: with the bytes as they are, and with their checksums set right, or the
//! fuzzer would spend its life in front of them. The first byte of an input says which (see each target).
//!
//! Nothing of this is part of a release: the module exists in tests and with the feature `fuzzing`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is what the fuzzer looks for")]

mod journal;
mod local;
mod nbd;
mod signed;
mod text;
mod vault;
mod wire;

/// A decoder's target: takes any bytes, panics if a rule is broken.
pub type Target = fn(&[u8]);

/// Every target by the name of its folder in `fuzz/corpus/` and of its binary in `fuzz/fuzz_targets/`.
pub const TARGETS: [(&str, Target); 24] = [
    ("wire_frames", wire::frames),
    ("record", wire::record),
    ("nbd_server", nbd::server),
    ("nbd_client", nbd::client),
    ("journal", journal::segments),
    ("commit", journal::commit),
    ("batch", vault::batch),
    ("index", vault::index),
    ("lane_index", vault::lane_index),
    ("folded_index", vault::folded_index),
    ("objects", vault::objects),
    ("keeper", vault::keeper),
    ("recipients", vault::recipients),
    ("signed", signed::signed),
    ("message", vault::message),
    ("keys", local::keys),
    ("config", local::config),
    ("agent_state", local::state),
    ("activity", local::activity),
    ("resume", local::resume),
    ("overlay", local::overlay),
    ("verify_state", local::verify_state),
    ("identity", text::certificate),
    ("text", text::words),
];

/// Runs the target of that name.
///
/// # Panics
/// If a rule is broken, or there is no such target.
pub fn run(name: &str, bytes: &[u8]) {
    let (_, target) = TARGETS.into_iter().find(|(known, _)| *known == name).expect("a target of that name");
    target(bytes);
}

/// Splits the first byte off, which says how the rest is meant.
fn mode(input: &[u8]) -> Option<(u8, &[u8])> {
    input.split_first().map(|(first, rest)| (*first, rest))
}

#[cfg(test)]
mod seeds;
#[cfg(test)]
mod tests;
