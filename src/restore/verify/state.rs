//! What a verifier remembers from run to run: how far its round has come, and what it found damaged. A small file of its own host;
//! nobody else needs it, and without it the round begins anew.
//!
//! ```text
//! tidegate-verify 1 <vault> <key of the ring> <next place> <round> <began> <last whole> <crc>\n
//! damaged <place> <crc>\n
//! ```

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::Sampled;
use super::sample::{Draw, SEED_BYTES};
use crate::fault::{Classify, Fault};
use crate::flow::platter;
use crate::keys::{self, RandomError};
use crate::restore::resume::{checked, with_crc};
use crate::types::{Id128, Micros};

/// The first word of the file.
const FORMAT: &str = "tidegate-verify";
/// Places of damage that are remembered: as long as one of them is not whole no run calls the vault whole.
pub const DAMAGED_MAX: usize = 1000;
/// More is no file of ours.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Why there is no state to go on from.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file is something else.
    #[error("{} is not a verifier's state: name another file with --state", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// It is of another vault.
    #[error("{} is the state of a verifier of vault {found}: give each vault a file of its own with --state", path.display())]
    OtherVault {
        /// The file.
        path: PathBuf,
        /// The vault.
        found: Id128,
    },
    /// A newer release wrote it.
    #[error("{} was written by a newer release: use that, or name another file with --state", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
    },
    /// No random bytes for the key of a ring.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// It cannot be read or written.
    #[error("the verifier's state {} cannot be used", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Classify for StateError {
    fn fault(&self) -> Fault {
        match self {
            Self::Random(error) => error.fault(),
            _ => Fault::Reject,
        }
    }
}

/// The state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// The vault.
    pub vault: Id128,
    /// Where the next run begins.
    pub draw: Draw,
    /// Number of the round, from 1.
    pub round: u64,
    /// When the round began.
    pub began: Micros,
    /// When the last round ended that opened everything.
    pub whole: Option<Micros>,
}

/// What the bytes of a file are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A state.
    State(State),
    /// One that was torn or altered.
    Damaged,
    /// One of a newer release.
    Newer,
    /// Nothing of ours.
    Foreign,
}

impl State {
    /// A verifier's first.
    ///
    /// # Errors
    /// [`StateError::Random`].
    pub fn new(vault: Id128, now: Micros) -> Result<Self, StateError> {
        Ok(Self { vault, draw: Draw::new(keys::random()?), round: 1, began: now, whole: None })
    }

    /// Reads a state; none if there is no file. Of one that was torn or altered too, which is said: its round begins anew.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn read(path: &Path, vault: Id128) -> Result<Option<Self>, StateError> {
        let path = || path.to_owned();
        let mut bytes = Vec::new();
        let read = File::open(path()).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Io { path: path(), source }),
            Ok(_) => {}
        }
        match decode(&bytes) {
            Found::State(state) if state.vault == vault => Ok(Some(state)),
            Found::State(Self { vault: found, .. }) => Err(StateError::OtherVault { path: path(), found }),
            Found::Damaged => Ok(None),
            Found::Newer => Err(StateError::Newer { path: path() }),
            Found::Foreign => Err(StateError::Foreign { path: path() }),
        }
    }

    /// Learns what a run opened.
    pub fn advance(&mut self, sampled: &Sampled, now: Micros) {
        self.draw.again = sampled.damaged.iter().copied().take(DAMAGED_MAX).collect();
        self.draw.from = sampled.next.unwrap_or(0);
        if sampled.next.is_none() {
            (self.round, self.began, self.whole) = (self.round + 1, now, Some(now));
        }
    }

    /// Writes it in the place of the one before, durably.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn write(&self, path: &Path) -> Result<(), StateError> {
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let written = (|| {
            let mut file = File::create(&new)?;
            file.write_all(encode(self).as_bytes())?;
            platter::sync_all(&file, &new)?;
            std::fs::rename(&new, path)?;
            platter::sync_folder(folder)
        })();
        written.map_err(|source| StateError::Io { path: path.to_owned(), source })
    }
}

pub(crate) fn encode(state: &State) -> String {
    let State { vault, draw, round, began, whole } = state;
    let seed: String = draw.seed.iter().map(|byte| format!("{byte:02x}")).collect();
    let (from, whole) = (draw.from, whole.unwrap_or(Micros(0)));
    let mut out = with_crc(&format!("{FORMAT} 1 {vault} {seed} {from:016x} {round} {} {}", began.0, whole.0));
    draw.again.iter().for_each(|place| out.push_str(&with_crc(&format!("damaged {place:016x}"))));
    out
}

pub(crate) fn decode(bytes: &[u8]) -> Found {
    let text = String::from_utf8_lossy(bytes);
    let mut words = text.split(' ');
    match (words.next(), words.next()) {
        _ if bytes.is_empty() => return Found::Damaged,
        (Some(FORMAT), Some("1")) => {}
        (Some(FORMAT), Some(version)) if version.parse::<u64>().is_ok_and(|version| version > 1) => {
            return Found::Newer;
        }
        _ => return Found::Foreign,
    }
    state(&text).map_or(Found::Damaged, Found::State)
}

fn state(text: &str) -> Option<State> {
    let mut lines = text.split_inclusive('\n');
    let words: Vec<&str> = checked(lines.next()?)?.split(' ').collect();
    let [_, _, vault, seed, from, round, began, whole] = words[..] else { return None };
    let mut again = BTreeSet::new();
    for line in lines {
        again.insert(place(checked(line)?.strip_prefix("damaged ")?)?);
        if again.len() > DAMAGED_MAX {
            return None;
        }
    }
    let whole = Some(Micros(whole.parse().ok()?)).filter(|whole| *whole > Micros(0));
    let draw = Draw { seed: bytes_of(seed)?, from: place(from)?, again };
    Some(State {
        vault: vault.parse().ok()?,
        draw,
        round: round.parse().ok()?,
        began: Micros(began.parse().ok()?),
        whole,
    })
}

fn place(text: &str) -> Option<u64> {
    let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u64::from_str_radix(text, 16).ok())?
}

fn bytes_of(text: &str) -> Option<[u8; SEED_BYTES]> {
    let mut bytes = [0; SEED_BYTES];
    let is_hex = text.len() == 2 * SEED_BYTES && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    for (at, byte) in bytes.iter_mut().enumerate().filter(|_| is_hex) {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    is_hex.then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> State {
        let draw = Draw { seed: [7; SEED_BYTES], from: 9 << 40, again: BTreeSet::from([3, u64::MAX]) };
        State { vault: Id128([5; 16]), draw, round: 4, began: Micros(17), whole: Some(Micros(11)) }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let vault = Id128([5; 16]);
        assert_eq!(State::read(&path, vault).unwrap(), None);
        some().write(&path).unwrap();
        assert_eq!(State::read(&path, vault).unwrap(), Some(some()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let other = State::read(&path, Id128([6; 16])).unwrap_err();
        assert!(other.to_string().contains(&vault.to_string()), "{other}");
    }

    #[test]
    fn the_file_is_that_of_the_format() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1/verify.state");
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(decode(&bytes), Found::State(some()));
        assert_eq!(encode(&some()).as_bytes(), bytes);
    }

    #[test]
    fn what_is_torn_begins_anew_and_what_is_not_ours_is_left_alone() {
        let text = encode(&some());
        for cut in 1..text.len() {
            let found = decode(&text.as_bytes()[..cut]);
            assert_eq!(matches!(found, Found::State(_)), text[..cut].ends_with('\n'), "{cut}: {found:?}");
        }
        assert_eq!(decode(text.replace("damaged 0", "damaged 1").as_bytes()), Found::Damaged);
        assert_eq!(decode(b""), Found::Damaged);
        assert_eq!(decode(b"root:x:0:0:root:/root:/bin/bash\n"), Found::Foreign);
        assert_eq!(decode(text.replacen(" 1 ", " 2 ", 1).as_bytes()), Found::Newer);
    }

    #[test]
    fn the_next_run_goes_on_and_the_round_ends() {
        let mut state = some();
        let sampled = |next, damaged: &[u64]| {
            let damaged = damaged.iter().copied().collect();
            Sampled { seen_messages: 5, messages: 9, runs_left: 1, next, damaged }
        };
        state.advance(&sampled(Some(77), &[8]), Micros(20));
        assert_eq!((state.draw.from, state.round, state.draw.again.len()), (77, 4, 1));
        state.advance(&sampled(None, &[]), Micros(30));
        assert_eq!((state.draw.from, state.round, state.began, state.whole), (0, 5, Micros(30), Some(Micros(30))));
    }
}
