//! Everything that somebody who helps wants to see of a host, in one file that may be given away.
//!
//! ```text
//!  configuration, doctor, admin port, journal, host, logs ──► collect ──► redact ──► archive ──► FILE.tar.gz
//!                                                              reads       pure       the only way into the file
//! ```
//!
//! Invariants:
//! - No byte gets into the file but through [`redact`]: what this host's secrets are is read first, and every place where one
//!   stands is blotted out, whatever part it is in. What looks like a secret goes too.
//! - Bounded: each part by [`PART_BYTES_MAX`], of which the end is kept; a large journal is left out, and that is said.
//! - A part that cannot be had is named with the reason; the others are there.
//!
//! It holds no data of disks. Names of machines, disks, files and addresses are in it, for without them nobody can help.

pub mod archive;
pub mod collect;
pub mod redact;

/// Most bytes of one part; of a longer one the end is kept, where the news is.
pub const PART_BYTES_MAX: usize = 4 << 20;

/// One file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its name inside.
    pub name: String,
    /// Its text, secrets and all.
    pub text: String,
}

impl Part {
    /// A part, cut to [`PART_BYTES_MAX`] between two lines.
    #[must_use]
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let (name, mut text) = (name.into(), text.into());
        if text.len() > PART_BYTES_MAX {
            let least = text.len() - PART_BYTES_MAX;
            // A line that was cut may have lost what tells a secret: whole lines only.
            let line = text.as_bytes()[least..].iter().position(|&byte| byte == b'\n');
            let cut = line.map_or(text.len(), |at| least + at + 1);
            text = format!("[{cut} bytes before this are left out]\n{}", &text[cut..]);
        }
        Self { name, text }
    }
}

/// What was collected.
#[derive(Debug, Clone, Default)]
pub struct Collected {
    /// The parts.
    pub parts: Vec<Part>,
    /// What could not be had, and why.
    pub left_out: Vec<(String, String)>,
}

impl Collected {
    /// Adds a part, or why it is not there.
    pub fn add(&mut self, name: &str, got: Result<String, String>) {
        match got {
            Ok(text) => self.parts.push(Part::new(name, text)),
            Err(why) => self.left_out.push((name.to_owned(), why)),
        }
    }
}
