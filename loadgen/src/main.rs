//! Load and faults for Tidegate gateways.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::{Parser, Subcommand};
use loadgen::blob::{BlobFaults, BlobProxy};
use loadgen::chance::Share;
use loadgen::udp::{UdpFaults, UdpProxy};
use tidegate::config::{parse_duration, parse_size, show_size};
use tidegate::flow::{Clock as _, SystemClock};

/// How often the counts are printed.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// How often outages and rebindings are looked at.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Parser)]
#[command(name = "loadgen", version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Stand between agents and a gateway and treat datagrams as bad networks do.
    ProxyUdp(UdpArgs),
    /// Stand between a gateway and a blob endpoint and treat requests as bad stores do.
    ProxyBlob(BlobArgs),
}

#[derive(clap::Args)]
struct UdpArgs {
    /// Where agents come to.
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// The gateway.
    #[arg(long, value_name = "ADDRESS")]
    to: SocketAddr,
    /// Datagrams that are lost, for example 2%.
    #[arg(long, value_name = "SHARE", default_value = "0%")]
    loss: Share,
    /// Datagrams that come twice.
    #[arg(long, value_name = "SHARE", default_value = "0%")]
    duplicate: Share,
    /// Datagrams that are overtaken by later ones.
    #[arg(long, value_name = "SHARE", default_value = "0%")]
    reorder: Share,
    /// How long each datagram takes, for example "40 ms".
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "0 ms")]
    delay: Duration,
    /// How much longer some take, at most.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "0 ms")]
    jitter: Duration,
    /// Longer datagrams vanish: an MTU black hole. 0 for no bound.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    mtu: usize,
    /// Come from another port this often, as behind an address translator that forgets.
    #[arg(long, value_name = "TIME", value_parser = time)]
    rebind_every: Option<Duration>,
    /// Decides which datagrams suffer.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(clap::Args)]
struct BlobArgs {
    /// Where gateways come to: put this address into the vault's URL.
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// The blob endpoint, plain HTTP.
    #[arg(long, value_name = "ADDRESS")]
    to: SocketAddr,
    /// How much longer each request takes, for example "40 ms".
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "0 ms")]
    latency: Duration,
    /// What all requests together may carry per second, for example "10 MiB".
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "0")]
    bandwidth: u64,
    /// Requests that are answered 503 Server Busy, for example 5%.
    #[arg(long, value_name = "SHARE", default_value = "0%")]
    busy: Share,
    /// Requests at the same time beyond which 503 is the answer. 0 for no bound.
    #[arg(long, value_name = "N", default_value_t = 0)]
    parallel_max: u64,
    /// Requests that are done and never answered.
    #[arg(long, value_name = "SHARE", default_value = "0%")]
    lost_answers: Share,
    /// The store is away for LENGTH from START after the start: "30 s+10 min". May be given more than once.
    #[arg(long = "outage", value_name = "START+LENGTH", value_parser = outage)]
    outages: Vec<(Duration, Duration)>,
    /// Decides which requests suffer.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn time(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write for example \"40 ms\"".into())
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "write for example \"10 MiB\"".into())
}

fn outage(text: &str) -> Result<(Duration, Duration), String> {
    let (start, length) = text.split_once('+').ok_or("write for example \"30 s+10 min\"")?;
    Ok((time(start.trim())?, time(length.trim())?))
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::ProxyUdp(args) => proxy_udp(&args),
        Verb::ProxyBlob(args) => proxy_blob(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadgen: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show(name: &str, count: &AtomicU64) -> String {
    format!("{name} {}", count.load(Ordering::Relaxed))
}

/// Calls `look` with the time since the start, and `report` now and then. Runs until the process is ended.
fn watch(mut look: impl FnMut(Duration), report: impl Fn() -> String) {
    let clock = SystemClock::new();
    let mut reports = 0;
    loop {
        std::thread::sleep(LOOK);
        let now = clock.monotonic();
        look(now);
        if now > REPORT_EVERY * (reports + 1) {
            reports += 1;
            println!("{:>6} s  {}", now.as_secs(), report());
        }
    }
}

fn proxy_udp(args: &UdpArgs) -> std::io::Result<()> {
    let faults = UdpFaults {
        loss: args.loss,
        duplicate: args.duplicate,
        reorder: args.reorder,
        delay: args.delay,
        jitter: args.jitter,
        datagram_bytes_max: args.mtu,
        cut: false,
    };
    let proxy = UdpProxy::start(args.listen, args.to, faults, args.seed)?;
    println!("{} to {}: {faults:?}", proxy.address(), args.to);
    let mut rebindings = 0;
    let look = |now: Duration| {
        if args.rebind_every.is_some_and(|every| now > every * (rebindings + 1)) {
            rebindings += 1;
            proxy.rebind();
        }
    };
    let counts = proxy.counts();
    watch(look, || {
        let all = [
            show("passed", &counts.passed),
            show("lost", &counts.lost),
            show("duplicated", &counts.duplicated),
            show("reordered", &counts.reordered),
            show("bound", &counts.bound),
        ];
        all.join(", ")
    });
    Ok(())
}

fn proxy_blob(args: &BlobArgs) -> std::io::Result<()> {
    let faults = BlobFaults {
        latency: args.latency,
        bytes_per_second: args.bandwidth,
        busy: args.busy,
        parallel_max: args.parallel_max,
        lost_answers: args.lost_answers,
        away: false,
    };
    let proxy = BlobProxy::start(args.listen, args.to, faults, args.seed)?;
    println!("{} to {}: {faults:?}", proxy.address(), args.to);
    let look = |now: Duration| {
        let away = args.outages.iter().any(|(start, length)| (*start..*start + *length).contains(&now));
        if away != proxy.faults().away {
            println!("{:>6} s  the store is {}", now.as_secs(), if away { "away" } else { "back" });
            proxy.set(BlobFaults { away, ..faults });
        }
    };
    let counts = proxy.counts();
    watch(look, || {
        let sent = format!("sent {}", show_size(counts.sent_bytes.load(Ordering::Relaxed)));
        let all = [
            show("passed", &counts.passed),
            show("busy", &counts.busy),
            show("answers lost", &counts.lost_answers),
            show("broken", &counts.broken),
            sent,
        ];
        all.join(", ")
    });
    Ok(())
}
