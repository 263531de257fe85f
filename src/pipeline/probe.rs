//! Messages that are not worth packing, told from a sample of them.
//!
//! What is packed or encrypted already does not become smaller, and trying costs: by LZ4 a tenth of what packing costs,
//! by zstd a third of it. A disk whose last message was kept raw is in doubt, and of each further message only a sample
//! is packed: sixteen pieces, spread so that no period of the data can hide from them. Only if that does not pay either,
//! the message is kept raw untried.
//!
//! A sample may miss what is worth packing: something that repeats at a distance, or a small part of the message. So a
//! message of a disk that is not in doubt is always tried, and of a disk in doubt each sixteenth: a mistake costs the
//! store at most fifteen messages that could have been smaller, never anything else.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU8, Ordering};

use super::codec::packing_pays;
use crate::types::DiskId;

/// Pieces of a sample.
const PIECES: usize = 16;
/// The sample is this part of a message.
const SAMPLE_ONE_PART_IN: usize = 16;
/// Pieces are not larger than this, however large the message: enough for LZ4 to find what repeats nearby.
const PIECE_BYTES_MAX: usize = 4096;
/// Smaller messages are tried: their pieces would be too short to tell anything.
const SAMPLED_BYTES_MIN: usize = 128 << 10;
/// Of a disk in doubt each message of this number is tried.
const TRY_EVERY: u8 = 16;
/// Outcomes remembered. Disks that fall on the same place share their doubt, which costs them samples and no more.
const PLACES: usize = 4096;

/// What became of the last messages of every disk.
pub struct History {
    /// 0: the last message tried became smaller, or there was none. Otherwise: messages kept raw since, and the one tried.
    kept_raw: Box<[AtomicU8]>,
}

impl Default for History {
    fn default() -> Self {
        Self { kept_raw: (0..PLACES).map(|_| AtomicU8::new(0)).collect() }
    }
}

impl History {
    fn place(&self, disk: &DiskId) -> &AtomicU8 {
        let mut hasher = DefaultHasher::new();
        disk.hash(&mut hasher);
        &self.kept_raw[hasher.finish() as usize % PLACES]
    }

    /// Whether a message of `plain_bytes` is to be tried only if its sample pays.
    #[must_use]
    pub fn doubts(&self, disk: &DiskId, plain_bytes: usize) -> bool {
        plain_bytes >= SAMPLED_BYTES_MIN && (1..TRY_EVERY).contains(&self.place(disk).load(Ordering::Relaxed))
    }

    /// A message was tried.
    pub fn tried(&self, disk: &DiskId, became_smaller: bool) {
        self.place(disk).store(u8::from(!became_smaller), Ordering::Relaxed);
    }

    /// A message was kept raw untried. Threads that do this at the same moment may count one too few.
    pub fn skipped(&self, disk: &DiskId) {
        let place = self.place(disk);
        place.store(place.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
    }
}

/// Copies the pieces of `plain` into `sample`, whose content is replaced.
pub fn take_sample(plain: &[u8], sample: &mut Vec<u8>) {
    sample.clear();
    let stride = plain.len() / PIECES;
    let piece_bytes = (stride / SAMPLE_ONE_PART_IN).min(PIECE_BYTES_MAX);
    let room = (stride - piece_bytes) as f64;
    for (number, part) in plain.chunks_exact(stride.max(1)).take(PIECES).enumerate() {
        // Steps of the golden ratio fall evenly everywhere and never into the same beat as the data.
        let at = ((number as f64 * 0.618_033_988_75).fract() * room) as usize;
        sample.extend_from_slice(&part[at..at + piece_bytes]);
    }
}

/// Whether the message may be worth packing if its sample of `sample_bytes` became `packed_bytes`. Half of the saving that
/// a message must bring: pieces have less in front of them that they could refer to.
#[must_use]
pub const fn sample_pays(sample_bytes: usize, packed_bytes: usize) -> bool {
    packing_pays(sample_bytes, packed_bytes.saturating_sub(sample_bytes / 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing::{disk, noise};

    #[test]
    fn a_sample_is_a_sixteenth_of_a_message_at_most_and_comes_from_everywhere() {
        let mut sample = Vec::new();
        for plain_bytes in [SAMPLED_BYTES_MIN, 512 << 10, 600_001, 8 << 20] {
            let plain: Vec<u8> = (0..plain_bytes).map(|at| (at * 16 / plain_bytes) as u8).collect();
            take_sample(&plain, &mut sample);
            assert!(sample.len() >= 8 << 10 && sample.len() <= plain_bytes / 16, "{plain_bytes}: {}", sample.len());
            let seen: std::collections::BTreeSet<u8> = sample.iter().copied().collect();
            assert!(seen.len() >= 15, "{plain_bytes}: {seen:?}");
        }
        take_sample(b"short", &mut sample);
    }

    #[test]
    fn a_period_of_the_data_does_not_hide_from_the_pieces() {
        // Records of which only the first eighth can be packed, of every usual size.
        for period_bytes in [4096, 8192, 32 << 10, 64 << 10, 128 << 10] {
            let mut plain = noise(1, 512 << 10);
            for record in plain.chunks_mut(period_bytes) {
                record[..period_bytes / 8].fill(0);
            }
            let mut sample = Vec::new();
            take_sample(&plain, &mut sample);
            let zeroes = sample.iter().filter(|byte| **byte == 0).count();
            assert!(zeroes > sample.len() / 32, "period {period_bytes}: {zeroes} of {}", sample.len());
        }
    }

    #[test]
    fn a_disk_in_doubt_is_tried_each_sixteenth_time_and_doubt_ends_with_success() {
        let (history, noisy, other) = (History::default(), disk("noisy"), disk("other"));
        let mut tried = 0;
        for _ in 0..160 {
            if history.doubts(&noisy, 512 << 10) {
                history.skipped(&noisy);
            } else {
                history.tried(&noisy, false);
                tried += 1;
            }
        }
        assert_eq!(tried, 10);
        assert!(!history.doubts(&other, 512 << 10));
        assert!(!history.doubts(&noisy, SAMPLED_BYTES_MIN - 1), "small messages are tried");
        history.tried(&noisy, true);
        assert!(!history.doubts(&noisy, 512 << 10));
    }

    #[test]
    fn a_sample_need_save_only_half_of_what_a_message_must() {
        assert!(sample_pays(32_000, 31_500) && !packing_pays(32_000, 31_500));
        assert!(!sample_pays(32_000, 31_501));
    }
}
