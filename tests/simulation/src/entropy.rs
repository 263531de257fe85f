//! Entropy from the seed: what the standard library and most crates ask the system for.
//!
//! Hash maps, tokio's choice of branches and QUIC's connection ids draw their randomness with `getrandom`. This binary
//! defines that function itself: on a thread that runs a seed it answers from the seed, on any other from the system.
//! What goes around it (the random numbers of `ring` for TLS and for sealing) changes bytes and nothing else: the
//! certificates of the simulation have signatures of one length, so no datagram differs in size.

use std::cell::Cell;

thread_local! {
    /// Zero: the system answers.
    static STATE: Cell<u64> = const { Cell::new(0) };
}

/// From now on this thread's entropy comes from `seed`. A seed needs a thread of its own: what was drawn before stays.
pub fn enter(seed: u64) {
    STATE.set(seed | 1 << 63);
}

/// The system's function of this name, for everything that is linked into this binary.
///
/// # Safety
/// `buffer` must be valid for writes of `length` bytes, as the system's function demands.
#[expect(unsafe_code, reason = "the one place where a symbol of the C library is replaced")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, flags: u32) -> isize {
    let mut state = STATE.get();
    if state == 0 {
        // SAFETY: the arguments are the caller's, who keeps the contract of getrandom(2).
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize };
    }
    for at in 0..length {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        // SAFETY: `at` is below `length`, for which the caller vouches.
        unsafe { buffer.add(at).write((mixed >> 40) as u8) };
    }
    STATE.set(state | 1 << 63);
    length as isize
}
