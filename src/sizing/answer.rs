//! The formulas. Pure, and each says what it did.

use std::time::Duration;

use super::capacity::{Capacity, GIB, LOAD};
use super::demand::{Choices, Demand};
use super::prices::Prices;
use crate::config::show_size;

/// Days of a month in all figures.
const MONTH_DAYS: f64 = 30.0;
const DAY_SECONDS: f64 = 86_400.0;
/// What the process needs beside its configured memory.
const MEMORY_BESIDES_BYTES: f64 = 64.0 * 1024.0 * 1024.0;
/// Fill above which agents get less credit (`high_water_percent`).
const HIGH_WATER: f64 = 0.8;
/// Least capacity that a configuration may have.
const JOURNAL_BYTES_MIN: f64 = 256.0 * 1024.0 * 1024.0;
/// Most gateways that are tried: each brings more processors than its own records cost, so this is never reached by a demand
/// that anybody has.
const GATEWAYS_MAX: u64 = 1 << 20;

/// One figure.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Figure {
    /// Its name for programs, with its unit last.
    pub name: &'static str,
    /// Its value.
    pub value: f64,
    /// It, as people read it.
    pub shown: String,
    /// What it is.
    pub meaning: &'static str,
    /// How it came about, with numbers.
    pub formula: String,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Sizing {
    /// In the order in which they build upon one another.
    pub figures: Vec<Figure>,
    /// What does not fit.
    pub problems: Vec<String>,
}

impl Sizing {
    /// The value of a figure, if there is such a one.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
    }

    fn add(&mut self, name: &'static str, meaning: &'static str, value: f64, shown: String, formula: String) -> f64 {
        self.figures.push(Figure { name, value, shown, meaning, formula });
        value
    }
}

fn rate(bytes_per_second: f64) -> String {
    match bytes_per_second {
        rate if rate >= 1e9 => format!("{:.2} GB/s", rate / 1e9),
        rate if rate >= 1e6 => format!("{:.1} MB/s", rate / 1e6),
        rate => format!("{:.1} kB/s", rate / 1e3),
    }
}

fn bits(bits_per_second: f64) -> String {
    match bits_per_second {
        bits if bits >= 1e9 => format!("{:.2} Gbit/s", bits / 1e9),
        bits => format!("{:.1} Mbit/s", bits / 1e6),
    }
}

fn span(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.2} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / DAY_SECONDS),
    }
}

fn bytes(value: f64) -> String {
    show_size(value as u64)
}

fn hours(duration: Duration) -> f64 {
    duration.as_secs_f64() / 3600.0
}

/// Sizes an installation.
#[must_use]
pub fn size(demand: &Demand, choices: &Choices, capacity: &Capacity, prices: Option<&Prices>) -> Sizing {
    let mut out = Sizing { figures: Vec::new(), problems: Vec::new() };
    let rates = rates(&mut out, demand, choices);
    let gateways = gateways(&mut out, demand, choices, capacity, &rates);
    memory(&mut out, demand, choices, capacity, gateways);
    journal(&mut out, demand, choices, gateways);
    let uplink_bits = uplink(&mut out, choices, capacity, &rates);
    let month = month(&mut out, demand, choices, capacity, gateways);
    if let Some(prices) = prices {
        price(&mut out, prices, &month, gateways);
    }
    recovery_point(&mut out, choices, capacity);
    initial_copy(&mut out, demand, choices, capacity, gateways, uplink_bits);
    out
}

/// What has to be carried, in bytes of writes per second.
struct Rates {
    churn: f64,
    carried: f64,
    writes: f64,
}

fn rates(out: &mut Sizing, demand: &Demand, choices: &Choices) -> Rates {
    let churn = demand.churn_bytes_per_second;
    let peak = out.add(
        "peak_bytes_per_second",
        "writes at the busiest time",
        churn * demand.peak_factor,
        rate(churn * demand.peak_factor),
        format!("churn {} x peak factor {:.2}", rate(churn), demand.peak_factor),
    );
    let behind = churn * (1.0 + hours(choices.outage) / hours(choices.catch_up).max(1.0 / 60.0));
    let carried = peak.max(behind);
    out.add(
        "carried_bytes_per_second",
        "what gateways and uplink must carry",
        carried,
        rate(carried),
        format!(
            "the larger of the peak {} and, after an outage, churn {} x (1 + outage {:.1} h / catch-up {:.1} h) = {}",
            rate(peak),
            rate(churn),
            hours(choices.outage),
            hours(choices.catch_up),
            rate(behind)
        ),
    );
    Rates { churn, carried, writes: demand.writes_per_second * demand.peak_factor }
}

/// Processors that `gateways` use while they carry everything.
fn cores_used(rates: &Rates, capacity: &Capacity, gateways: u64) -> f64 {
    let sparse = rates.writes.min(capacity.sparse_records_per_second.value * gateways as f64);
    rates.carried / GIB * capacity.cpu_seconds_per_gib.value
        + sparse * capacity.cpu_seconds_per_sparse_record.value
        + (rates.writes - sparse) * capacity.cpu_seconds_per_dense_record.value
}

/// Returns how many gateways carry everything; one more stands by.
fn gateways(out: &mut Sizing, demand: &Demand, choices: &Choices, capacity: &Capacity, rates: &Rates) -> u64 {
    let by_agents = (demand.machines as f64 / capacity.agents_per_gateway.value).ceil() as u64;
    let usable = choices.gateway_cores as f64 * LOAD;
    let fits = |gateways: &u64| cores_used(rates, capacity, *gateways) <= usable * *gateways as f64;
    let by_bytes = (rates.carried / GIB * capacity.cpu_seconds_per_gib.value / usable).ceil() as u64;
    let by_cores = (by_bytes.clamp(1, GATEWAYS_MAX)..=GATEWAYS_MAX).find(fits).unwrap_or(GATEWAYS_MAX);
    let carrying = by_agents.max(by_cores).max(1);
    let used = cores_used(rates, capacity, carrying);
    let cores = used / LOAD;
    out.add(
        "cores",
        "processors that the carrying gateways need together",
        cores,
        format!("{cores:.2}"),
        format!(
            "({} x {:.2} CPU s/GiB + {:.0} writes/s, the first {:.0} at {:.0} µs, the others at {:.0} µs) = {used:.2}, over {LOAD} load",
            rate(rates.carried),
            capacity.cpu_seconds_per_gib.value,
            rates.writes,
            capacity.sparse_records_per_second.value * carrying as f64,
            capacity.cpu_seconds_per_sparse_record.value * 1e6,
            capacity.cpu_seconds_per_dense_record.value * 1e6,
        ),
    );
    out.add(
        "gateways",
        "gateways, one of which may be missing",
        (carrying + 1) as f64,
        format!("{} of {} cores ({carrying} carry, 1 spare)", carrying + 1, choices.gateway_cores),
        format!(
            "the larger of {by_cores} by processors ({cores:.2} / {} cores each) and {by_agents} by agents ({} / {:.0}), and 1",
            choices.gateway_cores, demand.machines, capacity.agents_per_gateway.value
        ),
    );
    carrying
}

fn memory(out: &mut Sizing, demand: &Demand, choices: &Choices, capacity: &Capacity, carrying: u64) {
    let agents = (demand.machines as f64 / carrying as f64).ceil();
    let (configured, each) = (choices.gateway_memory_bytes as f64, capacity.memory_bytes_per_agent.value);
    let needed = configured + MEMORY_BESIDES_BYTES + agents * each;
    out.add(
        "memory_bytes_per_gateway",
        "memory of each gateway",
        needed,
        bytes(needed),
        format!(
            "memory = {} + {} + {agents:.0} agents x {}",
            bytes(configured),
            bytes(MEMORY_BESIDES_BYTES),
            bytes(each)
        ),
    );
    let all = needed * (carrying + 1) as f64;
    out.add(
        "memory_bytes",
        "memory of all gateways",
        all,
        bytes(all),
        format!("{} x {} gateways", bytes(needed), carrying + 1),
    );
}

fn journal(out: &mut Sizing, demand: &Demand, choices: &Choices, carrying: u64) {
    let (churn, outage) = (demand.churn_bytes_per_second, choices.outage.as_secs_f64());
    let peak_seconds = choices.peak_lasts.as_secs_f64().min(outage);
    let backlog = churn * (outage + (demand.peak_factor - 1.0).max(0.0) * peak_seconds);
    let all = (backlog / HIGH_WATER).max(JOURNAL_BYTES_MIN * carrying as f64);
    out.add(
        "journal_bytes",
        "journal of the carrying gateways together",
        all,
        bytes(all),
        format!(
            "(churn {} x {:.1} h, {:.1} h of it at {:.2} times that) = {}, over high water {HIGH_WATER}",
            rate(churn),
            hours(choices.outage),
            peak_seconds / 3600.0,
            demand.peak_factor,
            bytes(backlog)
        ),
    );
    let each = all / carrying as f64;
    out.add(
        "journal_bytes_per_gateway",
        "capacity of each journal",
        each,
        bytes(each),
        format!("{} / {carrying} gateways, as one may be missing", bytes(all)),
    );
}

fn uplink(out: &mut Sizing, choices: &Choices, capacity: &Capacity, rates: &Rates) -> f64 {
    let ratio = capacity.compress_ratio.value;
    let needed = rates.carried / ratio * 8.0;
    out.add(
        "uplink_bits_per_second",
        "uplink to the store",
        needed,
        bits(needed),
        format!("{} / {ratio:.2} times smaller x 8", rate(rates.carried)),
    );
    let Some(given) = choices.uplink_bits else { return needed };
    if given < needed {
        let holds = given * ratio / 8.0;
        let what = if holds < rates.churn {
            "not even the mean of what is written gets through: journals will fill, and disks stay unprotected"
        } else {
            "the mean gets through; at the busiest time, or after an outage, points grow old for longer than planned"
        };
        out.problems.push(format!(
            "the uplink of {} carries {} of the {} needed: {what}",
            bits(given),
            rate(holds),
            rate(rates.carried)
        ));
    }
    given
}

struct Month {
    requests: f64,
    stored_bytes: f64,
}

fn month(out: &mut Sizing, demand: &Demand, choices: &Choices, capacity: &Capacity, carrying: u64) -> Month {
    let (churn, ratio) = (demand.churn_bytes_per_second, capacity.compress_ratio.value);
    let seconds = MONTH_DAYS * DAY_SECONDS;
    let (idle, per_gib) = (capacity.requests_per_second.value, capacity.requests_per_gib.value);
    let requests = seconds * idle * (carrying + 1) as f64 + churn * seconds / GIB * per_gib;
    out.add(
        "requests_per_month",
        "requests to the store, per month",
        requests,
        format!("{:.2} million", requests / 1e6),
        format!(
            "{MONTH_DAYS:.0} days x ({idle:.1}/s x {} gateways + {} x {per_gib:.0}/GiB)",
            carrying + 1,
            rate(churn)
        ),
    );
    let copied = (demand.machines * demand.disks_per_machine) as f64 * demand.disk_bytes.unwrap_or_default() as f64;
    let history = churn * choices.keep.as_secs_f64();
    let stored = (copied + history) / ratio;
    let unknown = if demand.disk_bytes.is_none() { " (--disk-size was not given)" } else { "" };
    out.add(
        "stored_bytes",
        "stored, once the time that is kept has passed",
        stored,
        bytes(stored),
        format!(
            "(first copy {}{unknown} + {:.1} days x {}) / {ratio:.2} times smaller",
            bytes(copied),
            choices.keep.as_secs_f64() / DAY_SECONDS,
            rate(churn)
        ),
    );
    Month { requests, stored_bytes: stored }
}

fn price(out: &mut Sizing, prices: &Prices, month: &Month, carrying: u64) {
    let stored = month.stored_bytes / GIB * prices.gib_month;
    let requests = month.requests / 1e4 * prices.requests_10k;
    let machines = (carrying + 1) as f64 * prices.gateway_month;
    let all = stored + requests + machines;
    let currency = &prices.currency;
    out.add(
        "price_per_month",
        "price per month",
        all,
        format!("{all:.2} {currency}"),
        format!(
            "{:.0} GiB x {} + {:.0} x 10,000 requests x {} + {} gateways x {} = {stored:.2} + {requests:.2} + {machines:.2} {currency}; \
             every request at the price of one that writes; prices: {}",
            month.stored_bytes / GIB,
            prices.gib_month,
            month.requests / 1e4,
            prices.requests_10k,
            carrying + 1,
            prices.gateway_month,
            prices.source
        ),
    );
}

fn recovery_point(out: &mut Sizing, choices: &Choices, capacity: &Capacity) {
    let latency = choices.store_latency.as_secs_f64();
    let (p50, p99) = (capacity.vaulted_seconds_p50.value + latency, capacity.vaulted_seconds_p99.value + latency);
    let of =
        |measured: f64| format!("{measured:.2} s measured at {LOAD} load with batch_age 1 s + store {latency:.3} s");
    out.add(
        "rpo_seconds_p50",
        "age of the newest vaulted write, half of the time",
        p50,
        span(p50),
        of(capacity.vaulted_seconds_p50.value),
    );
    out.add("rpo_seconds_p99", "the same, 99 % of the time", p99, span(p99), of(capacity.vaulted_seconds_p99.value));
    let journaled = capacity.journaled_seconds_p99.value;
    out.add(
        "journaled_seconds_p99",
        "until a write is on the gateway's disk, 99 % of the time",
        journaled,
        span(journaled),
        "measured at half load".to_owned(),
    );
}

fn initial_copy(
    out: &mut Sizing,
    demand: &Demand,
    choices: &Choices,
    capacity: &Capacity,
    carrying: u64,
    uplink_bits: f64,
) {
    let Some(disk_bytes) = demand.disk_bytes else { return };
    let all = (demand.machines * demand.disks_per_machine) as f64 * disk_bytes as f64;
    let cores = (carrying * choices.gateway_cores) as f64 * LOAD;
    let by_cores = cores / capacity.cpu_seconds_per_gib.value * GIB;
    let by_uplink = uplink_bits / 8.0 * capacity.compress_ratio.value;
    let free = by_cores.min(by_uplink) - demand.churn_bytes_per_second;
    if free <= 0.0 {
        out.problems.push(format!(
            "the first copy never ends: gateways carry {}, the uplink {}, and {} are written meanwhile",
            rate(by_cores),
            rate(by_uplink),
            rate(demand.churn_bytes_per_second)
        ));
        return;
    }
    out.add(
        "initial_copy_seconds",
        "first copy of all disks",
        all / free,
        span(all / free),
        format!(
            "{} over the smaller of processors {} and uplink {}, less churn {}; machines and their network may be slower",
            bytes(all),
            rate(by_cores),
            rate(by_uplink),
            rate(demand.churn_bytes_per_second)
        ),
    );
}

#[cfg(test)]
mod tests;
