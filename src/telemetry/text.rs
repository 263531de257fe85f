//! Metrics as Prometheus reads them, for figures that are looked up when somebody asks instead of being recorded.

use std::fmt::Write;

use super::names;

/// Adds one metric: what it is, and a line for each of `values`, whose labels come in braces or are empty.
pub fn family(out: &mut String, name: &str, values: impl IntoIterator<Item = (String, f64)>) {
    head(out, name);
    for (labels, value) in values {
        // Writing to a string never fails.
        let _ = writeln!(out, "{name}{labels} {}", number(value));
    }
}

/// Adds one metric without labels.
pub fn single(out: &mut String, name: &str, value: f64) {
    family(out, name, [(String::new(), value)]);
}

/// Adds what a metric is.
pub fn head(out: &mut String, name: &str) {
    let known = names::ALL.iter().find(|(known, ..)| *known == name);
    let (kind, help) = known.map_or(("untyped", ""), |(_, kind, help)| (kind, help.trim()));
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Labels in braces. Values keep no character that would end them early.
#[must_use]
pub fn labels(pairs: &[(&str, &str)]) -> String {
    let mut out = String::from("{");
    for (at, (name, value)) in pairs.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let _ = write!(out, "{comma}{name}=\"");
        for letter in value.chars() {
            match letter {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                other => out.push(other),
            }
        }
        out.push('"');
    }
    out.push('}');
    out
}

/// A number in the words of the format.
#[must_use]
pub fn number(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_says_what_it_is_once_and_its_labels_cannot_break_out() {
        let mut out = String::new();
        let values = [(labels(&[("disk", "a"), ("why", "x\"}\n1")]), 1.5), (String::new(), f64::INFINITY)];
        family(&mut out, names::DISK_RPO_SECONDS, values);
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines[0].starts_with("# HELP tidegate_disk_rpo_seconds Of the disks"), "{out}");
        assert_eq!(lines[1], "# TYPE tidegate_disk_rpo_seconds gauge");
        assert_eq!(lines[2], "tidegate_disk_rpo_seconds{disk=\"a\",why=\"x\\\"}\\n1\"} 1.5");
        assert_eq!(lines[3], "tidegate_disk_rpo_seconds +Inf");
    }
}
