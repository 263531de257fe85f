//! Which packing a message gets: what the configuration says, or what the ladder has found out; and no packing where a
//! sample says that it would not pay.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use parking_lot::Mutex;

use super::codec::{Codec, Packing, ZSTD_LEVEL_MAX};
use super::ladder::Ladder;
use super::message::Scratch;
use super::probe::History;
use crate::flow::Tally;
use crate::telemetry::names;
use crate::types::DiskId;

/// What the configuration says of packing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecChoice {
    /// Always this.
    Fixed(Packing),
    /// As dear as uplink and processors let it be.
    Auto,
}

impl Default for CodecChoice {
    fn default() -> Self {
        Self::Fixed(Packing::Lz4)
    }
}

impl FromStr for CodecChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let level = |digits: &str| digits.parse::<u8>().ok().filter(|level| (1..=ZSTD_LEVEL_MAX).contains(level));
        match text {
            "auto" => Some(Self::Auto),
            "none" => Some(Self::Fixed(Packing::None)),
            "lz4" => Some(Self::Fixed(Packing::Lz4)),
            _ => text.strip_prefix("zstd:").and_then(level).map(|level| Self::Fixed(Packing::Zstd(level))),
        }
        .ok_or_else(|| format!("{text:?} is no codec: lz4, zstd:1 to zstd:{ZSTD_LEVEL_MAX}, none or auto"))
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

impl fmt::Display for CodecChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(packing) => packing.fmt(f),
            Self::Auto => f.write_str("auto"),
        }
    }
}

/// What all threads of a pipeline know of the choice.
pub(super) struct Chooser {
    fixed: Packing,
    ladder: Option<Mutex<Ladder>>,
    history: History,
}

/// How one message is packed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chosen {
    packing: Packing,
    skipped: bool,
    /// When its thread began with it, if anybody wants to know.
    begun: Option<Duration>,
}

impl Chooser {
    pub(super) fn new(choice: CodecChoice, threads: usize) -> Self {
        let (fixed, ladder) = match choice {
            CodecChoice::Fixed(packing) => (packing, None),
            CodecChoice::Auto => (Packing::Lz4, Some(Mutex::new(Ladder::new(threads)))),
        };
        let chooser = Self { fixed, ladder, history: History::default() };
        show(chooser.fixed);
        chooser
    }

    /// Chooses for a message of `disk`, whose lane has this uplink, and tells `scratch`.
    pub(super) fn choose(&self, disk: &DiskId, plain: &[u8], uplink: &Tally, scratch: &mut Scratch) -> Chosen {
        let begun = self.ladder.as_ref().map(|_| uplink.now());
        let packing = self.packing(begun, uplink);
        let skipped =
            packing != Packing::None && self.history.doubts(disk, plain.len()) && !scratch.sample_pays(packing, plain);
        scratch.packing = if skipped { Packing::None } else { packing };
        Chosen { packing, skipped, begun }
    }

    fn packing(&self, begun: Option<Duration>, uplink: &Tally) -> Packing {
        let (Some(ladder), Some(begun)) = (&self.ladder, begun) else { return self.fixed };
        let mut ladder = ladder.lock();
        if let Some(step) = ladder.look(begun, uplink.total()) {
            show(step.packing);
            let percent = |share: f64| (share * 100.0) as u32;
            tracing::info!(
                codec = %step.packing,
                held_up_percent = percent(step.held_up),
                busy_percent = percent(step.busy),
                "messages are packed another way"
            );
        }
        ladder.packing()
    }

    /// Learns what came of it.
    pub(super) fn done(&self, disk: &DiskId, chosen: Chosen, codec: Codec, uplink: &Tally) {
        if chosen.skipped {
            self.history.skipped(disk);
            metrics::counter!(names::PIPELINE_SKIPPED).increment(1);
        } else if chosen.packing != Packing::None {
            self.history.tried(disk, codec != Codec::Raw);
        }
        if let (Some(ladder), Some(begun)) = (&self.ladder, chosen.begun) {
            ladder.lock().worked(uplink.now().saturating_sub(begun));
        }
    }
}

fn show(packing: Packing) {
    let level = match packing {
        Packing::None => -1.0,
        Packing::Lz4 => 0.0,
        Packing::Zstd(level) => f64::from(level),
    };
    metrics::gauge!(names::PIPELINE_PACKING_LEVEL).set(level);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_codec_that_the_configuration_may_name_is_read_and_nothing_else() {
        for (text, packing) in [
            ("none", Packing::None),
            ("lz4", Packing::Lz4),
            ("zstd:1", Packing::Zstd(1)),
            ("zstd:19", Packing::Zstd(19)),
        ] {
            assert_eq!(text.parse(), Ok(CodecChoice::Fixed(packing)));
            assert_eq!(packing.to_string(), text);
        }
        assert_eq!("auto".parse(), Ok(CodecChoice::Auto));
        for wrong in ["", "LZ4", "zstd", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd: 3", "gzip"] {
            let error = wrong.parse::<CodecChoice>().unwrap_err();
            assert!(error.contains("zstd:1 to zstd:19, none or auto"), "{error}");
        }
    }
}
