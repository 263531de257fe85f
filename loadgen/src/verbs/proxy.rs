//! `loadgen proxy-udp` and `loadgen proxy-blob`.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use loadgen::blob::{BlobFaults, BlobProxy};
use loadgen::chance::Share;
use loadgen::udp::{UdpFaults, UdpProxy};
use tidegate::config::show_size;

use super::{Outcome, outage, size, time, watch};

/// Options of `loadgen proxy-udp`.
#[derive(clap::Args)]
pub struct UdpArgs {
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

/// Options of `loadgen proxy-blob`.
#[derive(clap::Args)]
pub struct BlobArgs {
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

fn show(name: &str, count: &AtomicU64) -> String {
    format!("{name} {}", count.load(Ordering::Relaxed))
}

/// Runs until the process is ended.
pub fn udp(args: &UdpArgs) -> Outcome {
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
        Some(all.join(", "))
    })
}

/// Runs until the process is ended.
pub fn blob(args: &BlobArgs) -> Outcome {
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
        Some(all.join(", "))
    })
}
