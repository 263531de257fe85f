//! What each codec that a gateway offers costs, and how much smaller it makes the payload, in messages of a gateway's size.

use serde::Serialize;
use tidegate::limits::MESSAGE_BYTES_TARGET;
use tidegate::pipeline::codec::{Codec, Packer, Packing, unpack};

use super::{GIB, LimitError, Watch};
use crate::payload::Pool;

/// Levels of zstd that are measured: those that `codec = "auto"` uses, and one that only a patient operator would.
const LEVELS: [u8; 7] = [1, 2, 3, 5, 6, 9, 12];

/// One codec.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CodecCost {
    /// As in the gateway's configuration.
    pub codec: String,
    /// How much smaller it makes the payload. Messages that do not become smaller count as they are.
    pub ratio: f64,
    /// Processor time to pack a GiB of payload.
    pub pack_cpu_seconds_per_gib: f64,
    /// Processor time to unpack it again.
    pub unpack_cpu_seconds_per_gib: f64,
}

/// Measures all codecs on about `bytes` of the pool, taken from all parts of it. Blocks.
///
/// # Errors
/// [`LimitError`] if something does not come back as it was.
pub fn codecs(pool: &Pool, bytes: u64) -> Result<Vec<CodecCost>, LimitError> {
    let stride = (pool.bytes().len() as u64 / bytes.max(1)).max(1) as usize;
    let messages: Vec<&[u8]> = pool.bytes().chunks(MESSAGE_BYTES_TARGET).step_by(stride).collect();
    let packings = [Packing::Lz4].into_iter().chain(LEVELS.map(Packing::Zstd));
    packings.map(|packing| measure(packing, &messages).map_err(LimitError::of("a codec"))).collect()
}

fn measure(packing: Packing, messages: &[&[u8]]) -> Result<CodecCost, String> {
    let plain_bytes: u64 = messages.iter().map(|message| message.len() as u64).sum();
    let (mut packer, mut out) = (Packer::default(), Vec::new());
    // The buffers' first use costs page faults that no later one does.
    packer.pack(packing, messages.first().copied().unwrap_or_default(), 0, &mut out);
    let mut packed: Vec<(Codec, Vec<u8>)> = Vec::with_capacity(messages.len());
    let mut packing_cpu = std::time::Duration::ZERO;
    for message in messages {
        let watch = Watch::start();
        let codec = packer.pack(packing, message, 0, &mut out);
        packing_cpu += watch.stop(0).cpu;
        packed.push((codec, if codec == Codec::Raw { message.to_vec() } else { out.clone() }));
    }
    let watch = Watch::start();
    for ((codec, bytes), message) in packed.iter().zip(messages) {
        unpack(*codec, bytes, message.len(), &mut out).map_err(|error| error.to_string())?;
    }
    let unpacking = watch.stop(plain_bytes);
    let packed_bytes: u64 = packed.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let per_gib = GIB / plain_bytes.max(1) as f64;
    Ok(CodecCost {
        codec: packing.to_string(),
        ratio: plain_bytes as f64 / packed_bytes.max(1) as f64,
        pack_cpu_seconds_per_gib: packing_cpu.as_secs_f64() * per_gib,
        unpack_cpu_seconds_per_gib: unpacking.cpu.as_secs_f64() * per_gib,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::Source;

    #[test]
    fn every_codec_is_measured_and_lz4_makes_what_was_made_for_it_as_small_as_was_asked() {
        let pool = Pool::fill(&Source::Ratio(3.0), 8 << 20, 1).expect("made");
        let costs = codecs(&pool, 2 << 20).expect("measured");
        let names: Vec<&str> = costs.iter().map(|cost| cost.codec.as_str()).collect();
        assert_eq!(names, ["lz4", "zstd:1", "zstd:2", "zstd:3", "zstd:5", "zstd:6", "zstd:9", "zstd:12"]);
        assert!((costs[0].ratio - 3.0).abs() < 0.4, "{costs:?}");
        assert!(costs.iter().all(|cost| cost.ratio > 2.5 && cost.pack_cpu_seconds_per_gib > 0.0), "{costs:?}");
    }
}
