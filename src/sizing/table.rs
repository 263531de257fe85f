//! The sizing table of docs/OPERATING.md, made from the formulas, so that it says what `tidegate plan` says.

use std::fmt::Write as _;

use super::{Capacity, Choices, Demand, size};

/// Machines, and what they write together in a day, in GB.
const ROWS: [(u64, f64); 6] = [(10, 50.0), (85, 250.0), (150, 1e3), (225, 2e3), (1_000, 1e4), (5_000, 5e4)];
/// Bytes of the mean write, and the busiest time over the mean: the defaults of `tidegate plan --churn`.
const WRITE_BYTES: f64 = 16_384.0;
const PEAK_FACTOR: f64 = 4.0;

/// The table, in Markdown.
#[must_use]
pub fn table() -> String {
    let mut out = String::from(
        "| machines | writes a day | gateways of 4 cores | cores in use | memory of each | journal of each, 4 h outage | uplink | requests a month | stored, 14 days without the first copy |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for (machines, gb_per_day) in ROWS {
        let churn = gb_per_day * 1e9 / 86_400.0;
        let demand = Demand {
            machines,
            disks_per_machine: 1,
            disk_bytes: None,
            churn_bytes_per_second: churn,
            writes_per_second: churn / WRITE_BYTES,
            peak_factor: PEAK_FACTOR,
        };
        let sizing = size(&demand, &Choices::default(), &Capacity::default(), None);
        let shown = |name: &str| {
            let figure = sizing.figures.iter().find(|figure| figure.name == name);
            figure.map(|figure| figure.shown.as_str()).unwrap_or_default()
        };
        let a_day =
            if gb_per_day < 1e3 { format!("{gb_per_day:.0} GB") } else { format!("{:.0} TB", gb_per_day / 1e3) };
        // Writing to a string never fails.
        let _ = writeln!(
            out,
            "| {machines} | {a_day} | {:.0} | {} | {} | {} | {} | {} | {} |",
            sizing.value("gateways").unwrap_or_default(),
            shown("cores"),
            shown("memory_bytes_per_gateway"),
            shown("journal_bytes_per_gateway"),
            shown("uplink_bits_per_second"),
            shown("requests_per_month"),
            shown("stored_bytes"),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &str = "<!-- sizing table: made by TIDEGATE_BLESS=1 cargo test --lib sizing::table -->\n";
    const END: &str = "<!-- end of the sizing table -->\n";

    #[test]
    fn the_operating_document_has_the_table_that_the_formulas_give() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPERATING.md");
        let text = std::fs::read_to_string(&path).expect("docs/OPERATING.md");
        let (head, rest) = text.split_once(BEGIN).expect("the table's first mark");
        let (found, tail) = rest.split_once(END).expect("the table's last mark");
        if std::env::var_os("TIDEGATE_BLESS").is_some() {
            std::fs::write(&path, format!("{head}{BEGIN}{}{END}{tail}", table())).expect("written");
            return;
        }
        assert!(found == table(), "docs/OPERATING.md is out of date: TIDEGATE_BLESS=1 cargo test --lib sizing::table");
    }
}
