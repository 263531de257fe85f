//! `tidegate plan`: how many gateways, how large, and what they cost, by what machines write.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Failure, Outcome, keyring};
use crate::config::{parse_duration, parse_size};
use crate::fault::exit;
use crate::flow::{Clock, SystemClock};
use crate::sizing::demand::{parse_bit_rate, parse_rate};
use crate::sizing::observe::{Counters, Seen, read_diskstats, read_trace};
use crate::sizing::{Capacity, Choices, Demand, Prices, Sizing, size};

/// Largest trace that is read.
const TRACE_BYTES_MAX: u64 = 1 << 30;
/// Between two looks at the counters.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Options of `tidegate plan`.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("from").required(true).args(["churn", "observe", "trace"]))]
pub struct Args {
    /// What all machines write together, on the mean: "2 TB/day", "24 MiB/s".
    #[arg(long, value_name = "RATE", value_parser = rate)]
    churn: Option<f64>,
    /// Watch this machine's devices for so long; it stands for each of --machines.
    #[arg(long, value_name = "TIME", value_parser = observed)]
    observe: Option<Duration>,
    /// Devices to watch, such as sda; may be given several times [default: every physical or virtual disk].
    #[arg(long, value_name = "NAME", conflicts_with_all = ["churn", "trace"])]
    device: Vec<String>,
    /// A trace of one disk, lines of seconds,offset,length[,w|z]; it stands for each disk of each machine.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Machines.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    machines: u64,
    /// Disks of each machine.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    disks: u64,
    /// What is to be copied of each disk at first [default with --observe: the devices' sizes; else no first copy is told].
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    disk_size: Option<u64>,
    /// Bytes of the mean write, where only --churn is known.
    #[arg(long, value_name = "SIZE", value_parser = bytes, default_value = "16 KiB")]
    write_size: u64,
    /// The busiest time over the mean [default: as observed; 4 with --churn].
    #[arg(long, value_name = "FACTOR", value_parser = factor)]
    peak_factor: Option<f64>,
    /// How long the busiest time lasts.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "1 h")]
    peak_lasts: Duration,
    /// Outage of the store, or of the way to it, that the journals ride out.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "4 h")]
    outage: Duration,
    /// How long catching up after it may take.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "12 h")]
    catch_up: Duration,
    /// How long history is kept.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "14 d")]
    keep: Duration,
    /// Processors of one gateway.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1024))]
    gateway_cores: u64,
    /// `memory` of a gateway's configuration.
    #[arg(long, value_name = "SIZE", value_parser = bytes, default_value = "512 MiB")]
    gateway_memory: u64,
    /// Uplink that there is, to be held against what is needed: "1 Gbit/s".
    #[arg(long, value_name = "RATE", value_parser = bit_rate)]
    uplink: Option<f64>,
    /// How many times smaller data becomes, instead of the measured value (`loadgen codecs` tells).
    #[arg(long, value_name = "FACTOR", value_parser = factor)]
    compress: Option<f64>,
    /// What one answer of the store takes more than one on the same machine (`tidegate doctor` measures it).
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "20 ms")]
    store_latency: Duration,
    /// Price table (deploy/prices.example.toml); without one no price is told.
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    /// Report of `loadgen bench --json`, whose figures replace those of docs/PERFORMANCE.md.
    #[arg(long, value_name = "FILE")]
    bench: Option<PathBuf>,
    /// Show the formula of every figure, and where the measured values come from.
    #[arg(long)]
    explain: bool,
    /// Print the result as JSON; formulas and sources are always in it.
    #[arg(long)]
    json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    parse_rate(text).ok_or_else(|| "expected a rate such as \"2 TB/day\" or \"24 MiB/s\"".to_owned())
}

fn bit_rate(text: &str) -> Result<f64, String> {
    parse_bit_rate(text).filter(|bits| *bits > 0.0).ok_or_else(|| "expected a rate such as \"1 Gbit/s\"".to_owned())
}

fn bytes(text: &str) -> Result<u64, String> {
    parse_size(text)
        .filter(|bytes| (1..=1 << 50).contains(bytes))
        .ok_or_else(|| "expected a size such as \"100 GiB\"".to_owned())
}

fn time(text: &str) -> Result<Duration, String> {
    let most = Duration::from_secs(10 * 366 * 86_400);
    parse_duration(text)
        .filter(|time| *time <= most)
        .ok_or_else(|| "expected a time such as \"4 h\", at most ten years".to_owned())
}

fn observed(text: &str) -> Result<Duration, String> {
    let bounds = Duration::from_secs(1)..=Duration::from_secs(31 * 86_400);
    parse_duration(text)
        .filter(|time| bounds.contains(time))
        .ok_or_else(|| "expected a time from \"1 s\" to \"31 d\"".to_owned())
}

fn factor(text: &str) -> Result<f64, String> {
    let factor = text.trim().parse().ok().filter(|factor| (1.0..=1000.0).contains(factor));
    factor.ok_or_else(|| "expected a number from 1 to 1000".to_owned())
}

/// Runs the verb.
pub fn run(args: &Args) -> Outcome {
    let prices = args.prices.as_deref().map(Prices::load).transpose();
    let prices = prices.map_err(|error| Failure::usage(error.to_string()))?;
    let mut capacity = Capacity::default();
    if let Some(file) = &args.bench {
        capacity = capacity.with_bench(file).map_err(|error| Failure::usage(error.to_string()))?;
    }
    if let Some(ratio) = args.compress {
        capacity.compress_ratio.value = ratio;
        capacity.compress_ratio.source = "--compress".to_owned();
    }
    let choices = Choices {
        peak_lasts: args.peak_lasts,
        outage: args.outage,
        catch_up: args.catch_up,
        keep: args.keep,
        gateway_cores: args.gateway_cores,
        gateway_memory_bytes: args.gateway_memory,
        uplink_bits: args.uplink,
        store_latency: args.store_latency,
    };
    let demand = demand(args)?;
    let sizing = size(&demand, &choices, &capacity, prices.as_ref());
    if args.json {
        let out = serde_json::json!({
            "demand": demand, "figures": sizing.figures, "problems": sizing.problems, "capacity": capacity, "prices": prices,
        });
        println!("{out}");
    } else {
        print!("{}", text(&demand, &sizing, args.explain.then_some(&capacity)));
    }
    Ok(if sizing.problems.is_empty() { exit::OK } else { exit::ERROR })
}

fn demand(args: &Args) -> Result<Demand, Failure> {
    let of = |churn: f64, writes: f64, peak: f64, disk_bytes: Option<u64>| Demand {
        machines: args.machines,
        disks_per_machine: args.disks,
        disk_bytes: args.disk_size.or(disk_bytes),
        churn_bytes_per_second: churn,
        writes_per_second: writes,
        peak_factor: args.peak_factor.unwrap_or(peak),
    };
    if let Some(churn) = args.churn {
        return Ok(of(churn, churn / args.write_size as f64, 4.0, None));
    }
    if let Some(file) = &args.trace {
        let seen = trace(file)?;
        let disks = (args.machines * args.disks) as f64;
        return Ok(of(seen.bytes_per_second() * disks, seen.writes_per_second() * disks, seen.peak_factor(), None));
    }
    let devices = devices(&args.device)?;
    let seen = watch(&devices, args.observe.unwrap_or(LOOK_EVERY))?;
    let machines = args.machines as f64;
    // Sizes are of the whole machine, whatever number of disks is planned for it.
    let size_bytes: u64 = devices.iter().filter_map(|device| device_bytes(device)).sum();
    let each = size_bytes / args.disks;
    Ok(of(seen.bytes_per_second() * machines, seen.writes_per_second() * machines, seen.peak_factor(), Some(each)))
}

fn trace(file: &Path) -> Result<Seen, Failure> {
    let wrong = |problem: String| Failure::usage(format!("trace {}: {problem}", file.display()));
    let bytes = std::fs::metadata(file).map_err(|error| wrong(error.to_string()))?.len();
    if bytes > TRACE_BYTES_MAX {
        return Err(wrong(format!("it has {bytes} bytes, more than {TRACE_BYTES_MAX}: cut out the busiest days")));
    }
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    read_trace(&text).map_err(wrong)
}

fn counters() -> Result<BTreeMap<String, Counters>, Failure> {
    let text = std::fs::read_to_string("/proc/diskstats");
    Ok(read_diskstats(&text.map_err(|error| Failure::error(format!("/proc/diskstats cannot be read: {error}")))?))
}

/// Those asked for, or every device that has hardware or a hypervisor behind it: what lies on top of these would count twice.
fn devices(asked: &[String]) -> Result<Vec<String>, Failure> {
    let known = counters()?;
    if let Some(missing) = asked.iter().find(|name| !known.contains_key(*name)) {
        let names: Vec<_> = known.keys().map(String::as_str).collect();
        return Err(Failure::usage(format!(
            "there is no device {missing:?}; /proc/diskstats has {}",
            names.join(", ")
        )));
    }
    if !asked.is_empty() {
        return Ok(asked.to_vec());
    }
    let found: Vec<_> =
        known.into_keys().filter(|name| Path::new("/sys/block").join(name).join("device").exists()).collect();
    if found.is_empty() {
        return Err(Failure::usage("no disk was found in /sys/block: name what to watch with --device"));
    }
    Ok(found)
}

/// The size of a device or partition.
fn device_bytes(device: &str) -> Option<u64> {
    let text = std::fs::read_to_string(Path::new("/sys/class/block").join(device).join("size")).ok()?;
    text.trim().parse::<u64>().ok().map(|sectors| sectors * 512)
}

/// Watches the devices; a bar on a terminal shows how long it still takes.
fn watch(devices: &[String], length: Duration) -> Result<Seen, Failure> {
    let bar = if std::io::stderr().is_terminal() {
        let bar = ProgressBar::with_draw_target(Some(length.as_secs()), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("watching {msg} {bar:40} {pos}/{len} s") {
            bar.set_style(style);
        }
        bar.set_message(devices.join(", "));
        bar
    } else {
        ProgressBar::hidden()
    };
    let seen = keyring::runtime()?.block_on(watch_for(devices, length, &bar));
    bar.finish_and_clear();
    seen
}

async fn watch_for(devices: &[String], length: Duration, bar: &ProgressBar) -> Result<Seen, Failure> {
    let sum = |all: &BTreeMap<String, Counters>| {
        let of = devices.iter().filter_map(|device| all.get(device));
        of.fold(Counters::default(), |sum, one| Counters {
            writes: sum.writes + one.writes,
            bytes: sum.bytes + one.bytes,
        })
    };
    let clock = SystemClock::new();
    let first = sum(&counters()?);
    let (mut last, mut seconds) = (first, BTreeMap::new());
    loop {
        tokio::time::sleep(LOOK_EVERY.min(length)).await;
        let (now, elapsed) = (sum(&counters()?), clock.monotonic());
        // A device that went away takes its count with it.
        *seconds.entry(elapsed.as_secs()).or_insert(0) += now.bytes.saturating_sub(last.bytes);
        last = now;
        bar.set_position(elapsed.as_secs());
        if elapsed >= length {
            return Ok(Seen::of(&seconds, elapsed.as_secs_f64(), last.writes.saturating_sub(first.writes)));
        }
    }
}

fn text(demand: &Demand, sizing: &Sizing, explain: Option<&Capacity>) -> String {
    let mut out = format!(
        "{} machines with {} disks each write {:.2} MB/s in {:.0} writes/s, {:.2} times that at the busiest time\n\n",
        demand.machines,
        demand.disks_per_machine,
        demand.churn_bytes_per_second / 1e6,
        demand.writes_per_second,
        demand.peak_factor
    );
    for figure in &sizing.figures {
        out += &format!("{:<58} {}\n", figure.meaning, figure.shown);
        if explain.is_some() {
            out += &format!("    = {}\n", figure.formula);
        }
    }
    if let Some(capacity) = explain {
        out += "\nmeasured:\n";
        for (what, measured) in [
            ("CPU s per GiB", &capacity.cpu_seconds_per_gib),
            ("CPU s per record, few records", &capacity.cpu_seconds_per_sparse_record),
            ("few records, per second and gateway", &capacity.sparse_records_per_second),
            ("CPU s per record, many records", &capacity.cpu_seconds_per_dense_record),
            ("times smaller", &capacity.compress_ratio),
            ("requests per GiB", &capacity.requests_per_gib),
            ("requests per second and gateway", &capacity.requests_per_second),
            ("agents per gateway", &capacity.agents_per_gateway),
            ("memory bytes per agent", &capacity.memory_bytes_per_agent),
            ("s until vaulted, p50", &capacity.vaulted_seconds_p50),
            ("s until vaulted, p99", &capacity.vaulted_seconds_p99),
            ("s until journaled, p99", &capacity.journaled_seconds_p99),
        ] {
            out += &format!("    {:<36} {:<12.6} {}\n", what, measured.value, measured.source);
        }
    }
    for problem in &sizing.problems {
        out += &format!("PROBLEM {problem}\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(arguments: &[&str]) -> Result<Args, String> {
        Cli::try_parse_from([&["plan"], arguments].concat()).map(|cli| cli.args).map_err(|error| error.to_string())
    }

    #[test]
    fn one_way_to_know_what_is_written_is_needed_and_no_more() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["--churn", "2 TB/day", "--observe", "60 s"]).is_err());
        assert!(parse(&["--churn", "2 TB/day", "--device", "sda"]).is_err());
        for wrong in [["--churn", "2 TB"], ["--observe", "0 s"], ["--churn", "1 Gbit/s"]] {
            assert!(parse(&wrong).is_err(), "{wrong:?}");
        }
        let args = parse(&["--churn", "16 MiB/s", "--machines", "225", "--disks", "2"]).expect("a call");
        let demand = demand(&args).expect("figures");
        assert_eq!((demand.writes_per_second, demand.peak_factor, demand.disk_bytes), (1024.0, 4.0, None));
    }

    #[test]
    fn a_trace_stands_for_each_disk() {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), "0,0,4096\n9,0,4096\n").expect("written");
        let path = file.path().to_str().expect("path");
        let args = parse(&["--trace", path, "--machines", "10", "--disks", "3"]).expect("a call");
        let demand = demand(&args).expect("a trace");
        assert!((demand.churn_bytes_per_second - 8192.0 / 10.0 * 30.0).abs() < 1e-6, "{demand:?}");
        assert!((demand.writes_per_second - 6.0).abs() < 1e-9, "{demand:?}");
        std::fs::write(file.path(), "rubbish").expect("written");
        let failure = super::demand(&args).expect_err("no trace");
        assert!(failure.code == exit::USAGE && failure.text.contains("line 1"), "{}", failure.text);
    }

    #[test]
    fn every_figure_is_in_the_text_and_its_formula_if_asked_for() {
        let args = parse(&["--churn", "2 TB/day", "--disk-size", "100 GiB"]).expect("a call");
        let demand = demand(&args).expect("figures");
        let sizing = size(&demand, &Choices::default(), &Capacity::default(), None);
        let (short, long) = (text(&demand, &sizing, None), text(&demand, &sizing, Some(&Capacity::default())));
        for figure in &sizing.figures {
            assert!(short.contains(figure.meaning) && !short.contains(&figure.formula), "{}", figure.name);
            assert!(long.contains(&figure.formula), "{}", figure.name);
        }
        assert!(long.contains("loadgen bench"), "where measured values come from is said");
    }
}
