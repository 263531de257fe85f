//! How small each disk's writes become, and whether that has changed: encrypted data packs no more, so a disk whose usual
//! saving is gone may be one that somebody encrypts. Pure bookkeeping, by the disk's own past alone.
//!
//! ```text
//!  x̄(S)     = Σ stored·w / Σ plain·w        w = e^(−plaintext written since ÷ S)
//!  saving   = 1 − x̄(S)                      late: S = 32 MiB    usual: S = 8 GiB
//!  anomaly  = (usual − late) ÷ usual        between 0 and 1
//!           = 0                             while less than 128 MiB are known, or the usual saving is below a tenth
//! ```
//!
//! So 0 says that packing saves what it always did, 1 that it saves nothing any more, whatever the disk holds. A disk whose
//! writes never packed has no saving to lose, and with `codec = "none"` there is none: both show 0 for ever. What goes on
//! becomes the usual: after some GiB of it the anomaly ends.

/// Plaintext over which "of late" fades: some seconds of a busy disk.
const LATE_BYTES: f64 = (32 << 20) as f64;
/// Plaintext over which the usual fades: more than anybody encrypts before the alert was heard.
const USUAL_BYTES: f64 = (8_u64 << 30) as f64;
/// Nothing is said of a disk before so much of it has been seen.
const KNOWN_BYTES: f64 = (128 << 20) as f64;
/// A smaller usual saving is no sign of anything when it goes.
const SAVING_MIN: f64 = 0.1;

/// A fading sum over what was written.
#[derive(Debug, Clone, Copy, Default)]
struct Fading {
    plain_bytes: f64,
    stored_bytes: f64,
}

impl Fading {
    fn add(&mut self, plain_bytes: f64, stored_bytes: f64, scale_bytes: f64) {
        let kept = (-plain_bytes / scale_bytes).exp();
        self.plain_bytes = self.plain_bytes * kept + plain_bytes;
        self.stored_bytes = self.stored_bytes * kept + stored_bytes;
    }

    fn saving(&self) -> f64 {
        if self.plain_bytes > 0.0 { (1.0 - self.stored_bytes / self.plain_bytes).max(0.0) } else { 0.0 }
    }
}

/// What is known of one disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct Packed {
    late: Fading,
    usual: Fading,
    seen_bytes: f64,
}

impl Packed {
    /// Learns that so much plaintext was stored in so many bytes.
    pub fn note(&mut self, plain_bytes: u64, stored_bytes: u64) {
        let (plain_bytes, stored_bytes) = (plain_bytes as f64, stored_bytes as f64);
        self.late.add(plain_bytes, stored_bytes, LATE_BYTES);
        self.usual.add(plain_bytes, stored_bytes, USUAL_BYTES);
        self.seen_bytes += plain_bytes;
    }

    /// Plaintext over stored bytes of late; none before anything was written.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        (self.late.stored_bytes > 0.0).then(|| self.late.plain_bytes / self.late.stored_bytes)
    }

    /// What packing usually saves, as a share of the plaintext; none while too little is known, or if it is too small to be missed.
    #[must_use]
    pub fn usual_saving(&self) -> Option<f64> {
        let usual = self.usual.saving();
        (self.seen_bytes >= KNOWN_BYTES && usual >= SAVING_MIN).then_some(usual)
    }

    /// The share of the usual saving that is gone.
    #[must_use]
    pub fn anomaly(&self) -> f64 {
        let Some(usual) = self.usual_saving() else { return 0.0 };
        ((usual - self.late.saving()) / usual).clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn written(parts: &[(u64, f64)]) -> Packed {
        let mut packed = Packed::default();
        for (mib, ratio) in parts {
            for _ in 0..*mib {
                packed.note(MIB, (MIB as f64 / ratio) as u64);
            }
        }
        packed
    }

    #[test]
    fn a_disk_that_is_encrypted_stands_out_within_seconds_and_for_gigabytes() {
        let before = written(&[(1024, 3.0)]);
        assert!(before.anomaly() < 0.01, "{before:?}");
        let begun = written(&[(1024, 3.0), (64, 1.0)]);
        assert!(begun.anomaly() > 0.8 && begun.ratio().is_some_and(|ratio| ratio < 1.2), "{begun:?}");
        assert!(written(&[(1024, 3.0), (2048, 1.0)]).anomaly() > 0.95);
    }

    #[test]
    fn it_ends_when_the_disk_is_itself_again_and_when_the_change_has_become_usual() {
        assert!(written(&[(1024, 3.0), (64, 1.0), (256, 3.0)]).anomaly() < 0.05);
        assert!(written(&[(1024, 3.0), (32 << 10, 1.0)]).anomaly() < 0.01);
    }

    #[test]
    fn nothing_is_said_of_what_never_packed_or_is_hardly_known() {
        assert!(written(&[(1024, 1.0)]).anomaly() < 0.01);
        assert!(written(&[(1024, 1.05), (512, 1.0)]).anomaly() < 0.01, "5 % are no saving");
        assert!(written(&[(60, 3.0), (60, 1.0)]).anomaly() < 0.01, "too little is known");
        assert_eq!(Packed::default().ratio(), None);
    }

    #[test]
    fn ordinary_changes_of_what_is_written_stay_below_what_alerts_look_at() {
        let packed = written(&[(1024, 2.5), (256, 1.6)]);
        assert!(packed.anomaly() < 0.5, "{packed:?}");
    }
}
