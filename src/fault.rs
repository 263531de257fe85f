//! How a failure is to be met. Every public error type of the crate classifies itself, once.
//!
//! The log line is written where the failure is handled, never on the way there.

/// The four ways to meet a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Passing: try again with back-off; nothing is lost meanwhile.
    Retry,
    /// The other side (peer, user, configuration) is wrong: refuse, say why, go on.
    Reject,
    /// Stored or received bytes are not what was written: report by name and range, go on with the rest.
    Corrupt,
    /// This process can no longer keep its promises: stop.
    Fatal,
}

/// Implemented by every error that crosses a stage.
pub trait Classify: std::error::Error {
    /// How this failure is to be met.
    fn fault(&self) -> Fault;
}

/// Exit codes of the command line, the same for every verb.
pub mod exit {
    /// Done.
    pub const OK: u8 = 0;
    /// Failed.
    pub const ERROR: u8 = 1;
    /// Called wrongly, or the configuration is wrong.
    pub const USAGE: u8 = 2;
    /// Stored data is damaged.
    pub const DAMAGE: u8 = 3;
    /// A passing failure: try again.
    pub const TRY_AGAIN: u8 = 75;
}

/// An error with everything below it, in one line: `upload of b/… failed: timed out`.
#[must_use]
pub fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // A transparent wrapper repeats its source's words.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
