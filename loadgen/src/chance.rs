//! Shares of events that go wrong, drawn from a seed.

use tidegate::cli::quickstart::load::Numbers;

/// Parts that a share is told apart by.
const PARTS: u64 = 1_000_000;

/// A share between 0 and 1.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug, Default)]
pub struct Share(f64);

impl Share {
    /// None of all.
    pub const NONE: Self = Self(0.0);

    /// From percent, cut to 0 to 100.
    #[must_use]
    pub const fn percent(percent: f64) -> Self {
        Self(percent.clamp(0.0, 100.0) / 100.0)
    }

    /// In percent.
    #[must_use]
    pub const fn as_percent(self) -> f64 {
        self.0 * 100.0
    }

    /// Whether this one is among them.
    pub fn hits(self, numbers: &mut Numbers) -> bool {
        (numbers.below(PARTS) as f64) < self.0 * PARTS as f64
    }
}

impl std::str::FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.trim().strip_suffix('%').unwrap_or(text).trim();
        match number.parse::<f64>() {
            Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(Self::percent(percent)),
            _ => Err(format!("{text:?} is no share: write for example 2%")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_hits_as_often_as_it_says() {
        let mut numbers = Numbers::new(1);
        let mut hits = |share: Share| (0..10_000).filter(|_| share.hits(&mut numbers)).count();
        assert_eq!(hits(Share::NONE), 0);
        assert_eq!(hits(Share::percent(100.0)), 10_000);
        let quarter = hits("25 %".parse().expect("a share"));
        assert!((2_000..3_000).contains(&quarter), "{quarter}");
        assert!("101%".parse::<Share>().is_err() && "some".parse::<Share>().is_err());
    }
}
