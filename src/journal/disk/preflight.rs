//! What this machine allows the journal to do, found out at boot by doing it.

use std::fmt;

/// The backend that drives a journal's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// io_uring.
    Ring,
    /// Plain calls on the shard's thread.
    Std,
}

impl Backend {
    /// Its word in logs and labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Std => "std",
        }
    }
}

/// The graded answer of the preflight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preflight {
    /// What the journal uses.
    pub backend: Backend,
    /// Whether writes bypass the page cache (O_DIRECT).
    pub direct: bool,
    /// Release of the running kernel.
    pub kernel: String,
    /// Median time of one 4 KiB write with its sync, microseconds.
    pub sync_micros: u64,
    /// Why this backend and not a better one; empty if there is none better.
    pub remarks: Vec<String>,
}

impl fmt::Display for Preflight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direct = if self.direct { "O_DIRECT" } else { "page cache" };
        let (backend, micros) = (self.backend.as_str(), self.sync_micros);
        write!(f, "{backend}, {direct}, kernel {}, sync {micros} us", self.kernel)?;
        self.remarks.iter().try_for_each(|remark| write!(f, "; {remark}"))
    }
}
