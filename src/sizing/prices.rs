//! A price table, as the operator writes it: there is none in the program.

use std::path::Path;

use crate::config::{ConfigError, Reader};

/// What the store's and the gateways' owner charges.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Prices {
    /// Name of the currency.
    pub currency: String,
    /// Where the figures come from.
    pub source: String,
    /// Per GiB stored and month.
    pub gib_month: f64,
    /// Per 10,000 requests that write or list.
    pub requests_10k: f64,
    /// Per gateway and month: machine and journal disk.
    pub gateway_month: f64,
}

impl Prices {
    /// Reads a table.
    ///
    /// # Errors
    /// [`ConfigError`] with every mistake at once.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::read(Reader::load(path)?, path)
    }

    fn read(mut reader: Reader, path: &Path) -> Result<Self, ConfigError> {
        let (currency, source) = (reader.required_text("currency"), reader.required_text("source"));
        let mut price = |key: &str| {
            let value = reader.decimal(key);
            let given = reader.has(key);
            match value {
                None if !given => {
                    reader.mistake(key, "is missing: write 0 for what costs nothing");
                    None
                }
                Some(value) if !(value.is_finite() && value >= 0.0) => {
                    reader.mistake(key, "a price is zero or more");
                    None
                }
                value => value,
            }
        };
        let (gib_month, requests_10k, gateway_month) =
            (price("gib_month"), price("requests_10k"), price("gateway_month"));
        reader.finish(path)?;
        let missing = || ConfigError { path: path.to_owned(), mistakes: vec!["a required value is missing".into()] };
        Ok(Self {
            currency: currency.ok_or_else(missing)?,
            source: source.ok_or_else(missing)?,
            gib_month: gib_month.ok_or_else(missing)?,
            requests_10k: requests_10k.ok_or_else(missing)?,
            gateway_month: gateway_month.ok_or_else(missing)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Prices, ConfigError> {
        let path = Path::new("prices.toml");
        Prices::read(Reader::parse(path, text)?, path)
    }

    #[test]
    fn the_example_table_is_valid() {
        let prices = read(include_str!("../../deploy/prices.example.toml")).expect("valid");
        assert!(prices.gib_month > 0.0 && prices.requests_10k > 0.0 && !prices.source.is_empty());
    }

    #[test]
    fn a_price_that_is_missing_negative_or_unknown_is_named_and_none_is_invented() {
        let error = read("currency='EUR'\ngib_month=-1\nrequests_10k='x'\ngib_mont=2\n").expect_err("mistakes");
        for part in
            ["source", "gib_month: a price", "requests_10k: expected a number", "gateway_month: is missing", "gib_mont"]
        {
            assert!(error.to_string().contains(part), "{part} is not in {error}");
        }
        let whole =
            read("currency='EUR'\nsource='me'\ngib_month=1\nrequests_10k=0.5\ngateway_month=0\n").expect("valid");
        assert_eq!((whole.gib_month, whole.requests_10k), (1.0, 0.5));
    }
}
