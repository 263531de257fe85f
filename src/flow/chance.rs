//! Where random bytes come from: the system's generator, or inside a simulation its seed.

use ring::rand::SecureRandom;

/// The system gave no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoEntropy;

/// Fills `bytes`.
///
/// # Errors
/// [`NoEntropy`] if the operating system's generator fails.
pub fn fill_random(bytes: &mut [u8]) -> Result<(), NoEntropy> {
    #[cfg(any(test, feature = "sim"))]
    if super::sim::fill(bytes) {
        return Ok(());
    }
    ring::rand::SystemRandom::new().fill(bytes).map_err(|_| NoEntropy)
}
