use proptest::prelude::*;

use super::*;

const KIB: f64 = 1024.0;

fn demand() -> Demand {
    Demand {
        machines: 225,
        disks_per_machine: 2,
        disk_bytes: Some(100 << 30),
        churn_bytes_per_second: 2e12 / DAY_SECONDS,
        writes_per_second: 2e12 / DAY_SECONDS / (16.0 * KIB),
        peak_factor: 4.0,
    }
}

fn prices() -> Prices {
    Prices {
        currency: "EUR".into(),
        source: "a test".into(),
        gib_month: 0.02,
        requests_10k: 0.05,
        gateway_month: 100.0,
    }
}

fn sized(demand: &Demand, choices: &Choices) -> Sizing {
    size(demand, choices, &Capacity::default(), Some(&prices()))
}

fn value(sizing: &Sizing, name: &str) -> f64 {
    sizing.value(name).unwrap_or_else(|| panic!("{name} is not in {sizing:?}"))
}

#[test]
fn the_site_of_two_terabytes_a_day_is_sized_as_by_hand() {
    let sizing = sized(&demand(), &Choices::default());
    let near = |name: &str, wanted: f64| {
        let found = value(&sizing, name);
        assert!((found - wanted).abs() < wanted * 0.01, "{name}: {found}, by hand {wanted}");
    };
    near("peak_bytes_per_second", 92.6e6);
    // 0.0862 GiB/s x 1.895 + 1,087 x 155 µs + 4,564 x 4.3 µs, over 0.7.
    near("cores", 0.502);
    near("gateways", 2.0);
    // 23.15 MB/s x (4 h + 3 x 1 h) over 0.8.
    near("journal_bytes", 23.148e6 * 7.0 * 3600.0 / 0.8);
    near("uplink_bits_per_second", 92.6e6 / 2.565 * 8.0);
    near("requests_per_month", 2_592_000.0 * 1.4 * 2.0 + 6e13 / GIB * 51.0);
    near("stored_bytes", (450.0 * 100.0 * GIB + 28e12) / 2.565);
    assert!(sizing.problems.is_empty(), "{:?}", sizing.problems);
    let stored = value(&sizing, "stored_bytes") / GIB * 0.02;
    near("price_per_month", stored + value(&sizing, "requests_per_month") / 1e4 * 0.05 + 200.0);
}

#[test]
fn nothing_written_still_needs_two_gateways_and_nothing_divides_by_zero() {
    let still =
        Demand { churn_bytes_per_second: 0.0, writes_per_second: 0.0, disk_bytes: Some(0), machines: 1, ..demand() };
    let choices =
        Choices { catch_up: Duration::ZERO, outage: Duration::ZERO, keep: Duration::ZERO, ..Choices::default() };
    let sizing = sized(&still, &choices);
    assert_eq!(value(&sizing, "gateways"), 2.0);
    assert!(sizing.figures.iter().all(|figure| figure.value.is_finite() && figure.value >= 0.0), "{sizing:?}");
}

#[test]
fn without_a_price_table_there_is_no_price_and_without_a_size_no_copy() {
    let unknown = Demand { disk_bytes: None, ..demand() };
    let sizing = size(&unknown, &Choices::default(), &Capacity::default(), None);
    assert_eq!((sizing.value("price_per_month"), sizing.value("initial_copy_seconds")), (None, None));
}

#[test]
fn an_uplink_that_is_too_small_is_a_problem_and_so_is_a_copy_without_end() {
    let with = |bits: f64| sized(&demand(), &Choices { uplink_bits: Some(bits), ..Choices::default() });
    assert!(with(1e9).problems.is_empty());
    let tight = with(200e6);
    assert!(tight.problems[0].contains("the mean gets through"), "{:?}", tight.problems);
    assert!(value(&tight, "initial_copy_seconds") > value(&with(1e9), "initial_copy_seconds"));
    let hopeless = with(50e6);
    assert_eq!(hopeless.problems.len(), 2, "{:?}", hopeless.problems);
    assert_eq!(hopeless.value("initial_copy_seconds"), None);
}

#[test]
fn many_idle_agents_need_gateways_too() {
    let many = Demand { machines: 25_000, churn_bytes_per_second: 1e3, writes_per_second: 1.0, ..demand() };
    assert_eq!(value(&sized(&many, &Choices::default()), "gateways"), 4.0);
}

#[test]
fn every_figure_says_how_it_came_about_and_names_are_unique() {
    let sizing = sized(&demand(), &Choices::default());
    let names: std::collections::BTreeSet<_> = sizing.figures.iter().map(|figure| figure.name).collect();
    assert_eq!(names.len(), sizing.figures.len());
    assert!(sizing.figures.iter().all(|figure| !figure.formula.is_empty() && !figure.shown.is_empty()));
    assert_eq!([rate(999.0), rate(23e6), rate(2e9)], ["1.0 kB/s", "23.0 MB/s", "2.00 GB/s"]);
    assert_eq!([bits(5e6), bits(1e9)], ["5.0 Mbit/s", "1.00 Gbit/s"]);
    assert_eq!([span(0.96), span(600.0), span(9000.0), span(200_000.0)], ["0.96 s", "10 min", "2.5 h", "2.3 days"]);
}

/// What is counted over all gateways.
const TOTALS: [&str; 9] = [
    "peak_bytes_per_second",
    "cores",
    "gateways",
    "memory_bytes",
    "journal_bytes",
    "uplink_bits_per_second",
    "requests_per_month",
    "stored_bytes",
    "price_per_month",
];

#[track_caller]
fn assert_not_less(more: &Sizing, than: &Sizing) {
    for name in TOTALS {
        let (larger, smaller) = (value(more, name), value(than, name));
        assert!(larger >= smaller * (1.0 - 1e-12), "{name}: {larger} for more, {smaller} for less");
    }
}

proptest! {
    #[test]
    fn more_never_needs_less(
        machines in 1_u64..40_000, churn in 0.0..5e10_f64, size_kib in 1.0..1024.0_f64, peak in 1.0..20.0_f64,
        cores in 1_u64..64, outage_h in 0_u64..200, by in 1.0..10.0_f64,
    ) {
        let of = |machines: u64, churn: f64, peak: f64| Demand {
            machines,
            churn_bytes_per_second: churn,
            writes_per_second: churn / (size_kib * KIB),
            peak_factor: peak,
            ..demand()
        };
        let choices = Choices { gateway_cores: cores, outage: Duration::from_secs(outage_h * 3600), ..Choices::default() };
        let base = sized(&of(machines, churn, peak), &choices);
        assert_not_less(&sized(&of(machines, churn * by, peak), &choices), &base);
        assert_not_less(&sized(&of((machines as f64 * by) as u64, churn, peak), &choices), &base);
        assert_not_less(&sized(&of(machines, churn, peak * by), &choices), &base);
        let longer = Choices { outage: choices.outage.mul_f64(by), ..choices };
        assert_not_less(&sized(&of(machines, churn, peak), &longer), &base);
    }
}
