//! `loadgen vault`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use loadgen::old_vault::measure::{first_byte, fold};
use loadgen::old_vault::store::OldStore;
use loadgen::old_vault::write::OldVault;
use loadgen::old_vault::{Cost, Failed, Shape};
use loadgen::process;
use object_store::local::LocalFileSystem;
use tidegate::config::show_size;

use super::{Outcome, time};

/// Options of `loadgen vault`.
#[derive(clap::Args)]
pub struct Args {
    /// Folder for the vault; made, and deleted in the end.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Disks.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=99_999))]
    disks: u32,
    /// Days, each with a lane of its own.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Seconds between two batches.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3600))]
    batch_seconds: u32,
    /// Each disk writes in one of so many batches.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    every: u32,
    /// Time that each request of the store takes.
    #[arg(long, value_name = "DURATION", value_parser = time, default_value = "10 ms")]
    latency: Duration,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// Makes, measures and deletes it.
pub fn run(args: &Args) -> Outcome {
    std::fs::create_dir(&args.dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let told = runtime.block_on(measure(args));
    std::fs::remove_dir_all(&args.dir)?;
    told.map_err(|error| error as Box<dyn std::error::Error>)?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(args: &Args) -> Result<(), Failed> {
    let Args { disks, days, batch_seconds, every, .. } = *args;
    let shape = Shape { disks, days, batch_seconds, every, describe_all: false };
    let inner = LocalFileSystem::new_with_prefix(&args.dir)?;
    let tell = |what: &str, count: u64| eprintln!("{what} {count}");
    let old =
        OldVault::write(OldStore::new(Arc::new(inner)), shape, |day| tell("written: day", u64::from(day) + 1)).await?;
    process::forget_peak(std::process::id())?;
    let before = first_byte(&old, false, args.latency).await?;
    let before_peak = peak()?;
    process::forget_peak(std::process::id())?;
    let folded = fold(&old, |lanes| tell("folded: lanes", lanes)).await?;
    let folded_peak = peak()?;
    process::forget_peak(std::process::id())?;
    let after = first_byte(&old, true, args.latency).await?;
    let after_peak = peak()?;
    if args.json {
        let told = serde_json::json!({
            "disks": disks, "days": days, "batch_seconds": batch_seconds, "every": every,
            "batches": u64::from(days) * shape.batches_of_day(),
            "messages": old.messages, "lane_index_bytes": old.index_bytes, "points": after.points,
            "latency_seconds": args.latency.as_secs_f64(),
            "before": before.cost, "before_peak_bytes": before_peak,
            "folded": folded, "folded_peak_bytes": folded_peak,
            "after": after.cost, "after_peak_bytes": after_peak,
        });
        println!("{told}");
        return Ok(());
    }
    println!(
        "{disks} disks, {days} days, {} batches, {} messages, lane indexes of {}",
        u64::from(days) * shape.batches_of_day(),
        old.messages,
        show_size(old.index_bytes)
    );
    tell_cost("first byte, before", &before.cost, before_peak);
    tell_cost("folding", &folded.cost, folded_peak);
    println!("  {} lanes, {} objects", folded.lanes, folded.objects);
    tell_cost("first byte, after", &after.cost, after_peak);
    println!("  {} points offered", after.points);
    Ok(())
}

fn peak() -> Result<u64, Failed> {
    Ok(process::usage(std::process::id())?.memory_peak_bytes)
}

fn tell_cost(what: &str, cost: &Cost, peak_bytes: u64) {
    let Cost { requests, pages, names, bytes, depth, seconds } = cost;
    println!(
        "{what}: {requests} requests ({pages} pages of listings, {names} names), {} read, {depth} one after another, {seconds:.2} s; \
         memory {}",
        show_size(*bytes),
        show_size(peak_bytes)
    );
}
