//! `loadgen sink`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use loadgen::chance::Share;
use loadgen::sink::{
    ACCOUNT_DEFAULT, Account, Limits, MEMORY_BYTES_DEFAULT, PAGE_NAMES_MAX_DEFAULT, Sink, SinkCounts, Weather,
};
use tidegate::config::show_size;

use super::{Outcome, outage, size, time, watch};

/// Options of `loadgen sink`.
#[derive(clap::Args)]
pub struct Args {
    /// Where gateways come to; port 0 lets the system choose.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:10000")]
    listen: SocketAddr,
    /// Where the weather is told and changed (HTTP: GET / tells, PUT / with a JSON object changes). None unless given.
    #[arg(long, value_name = "ADDRESS")]
    control: Option<SocketAddr>,
    /// Name of the storage account.
    #[arg(long, default_value = ACCOUNT_DEFAULT)]
    account: String,
    /// File with the account's key in base64 [default: the published key of emulators].
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Memory for bodies; when it is full, puts are refused.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value_t = MEMORY_BYTES_DEFAULT)]
    memory: u64,
    /// Throw longer bodies away: for figures only, nothing can be restored.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    discard_above: Option<u64>,
    /// Names on one page of a listing.
    #[arg(long, value_name = "NAMES", default_value_t = PAGE_NAMES_MAX_DEFAULT)]
    page: usize,
    /// How much longer each request takes, for example "40 ms".
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "0 ms")]
    latency: Duration,
    /// What all bodies together may carry per second, for example "10 MiB". 0 for no bound.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "0")]
    bandwidth: u64,
    /// Requests that are answered 503 Server Busy, for example 5%.
    #[arg(long, value_name = "SHARE", default_value = "0%")]
    busy: Share,
    /// The store is away for LENGTH from START after the start: "30 s+10 min". May be given more than once.
    #[arg(long = "outage", value_name = "START+LENGTH", value_parser = outage)]
    outages: Vec<(Duration, Duration)>,
    /// Print one JSON object with the addresses, and nothing more.
    #[arg(long)]
    json: bool,
}

/// Runs until the process is ended.
pub fn run(args: &Args) -> Outcome {
    let account = match &args.key_file {
        None if args.account == ACCOUNT_DEFAULT => Account::default(),
        None => return Err(format!("give the key of {} by --key-file", args.account).into()),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            Account::new(&args.account, &text)?
        }
    };
    let limits = Limits {
        memory_bytes: args.memory,
        discard_above_bytes: args.discard_above.unwrap_or(u64::MAX),
        page_names_max: args.page,
    };
    let weather = Weather {
        latency_ms: args.latency.as_secs_f64() * 1000.0,
        bytes_per_second: args.bandwidth,
        busy_percent: args.busy.as_percent(),
        ..Weather::default()
    };
    if let Some(mistake) = weather.mistake() {
        return Err(mistake.into());
    }
    let sink = Sink::start(args.listen, args.control, account, limits, weather)
        .map_err(|error| format!("{} cannot be listened on: {error}", args.listen))?;
    announce(args, &sink);
    let mut was_away = false;
    let look = |now: Duration| {
        let away = args.outages.iter().any(|(start, length)| (*start..*start + *length).contains(&now));
        if away != was_away {
            was_away = away;
            sink.set(Weather { away, ..sink.weather() });
        }
    };
    let quiet = args.json;
    watch(look, || if quiet { None } else { Some(shown(&sink.counts())) })
}

fn announce(args: &Args, sink: &Sink) {
    if args.json {
        let control = sink.control().map(|address| address.to_string());
        println!("{}", serde_json::json!({"address": sink.address().to_string(), "control": control}));
    } else {
        println!("vault URLs: {}", sink.vault_url("CONTAINER"));
        sink.control().iter().for_each(|control| println!("control: http://{control}/"));
    }
}

fn shown(counts: &SinkCounts) -> String {
    format!(
        "put {}, get {}, head {}, list {}, other {}, refused {}, busy {}, came {}, stored {} in {} blobs",
        counts.puts,
        counts.gets,
        counts.heads,
        counts.lists,
        counts.deletes + counts.others,
        counts.refused,
        counts.busy,
        show_size(counts.received_bytes),
        show_size(counts.stored_bytes),
        counts.blobs
    )
}
