//! Load and faults for Tidegate gateways.

mod verbs;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tidegate::fault::exit;

#[derive(Parser)]
#[command(name = "loadgen", version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Stand between agents and a gateway and treat datagrams as bad networks do.
    ProxyUdp(verbs::proxy::UdpArgs),
    /// Stand between a gateway and a blob endpoint and treat requests as bad stores do.
    ProxyBlob(verbs::proxy::BlobArgs),
    /// Be a blob endpoint that costs little.
    Sink(verbs::sink::Args),
    /// Be many agents, and measure what they wait for.
    Run(Box<verbs::run::Args>),
    /// Measure the primitives that a gateway is made of, each alone.
    Limit(verbs::limit::Args),
    /// Measure what each codec of a gateway costs and saves with your payload.
    Codecs(verbs::codecs::Args),
    /// Measure a gateway against its primitives: several rounds, medians, one table.
    Bench(verbs::bench::Args),
    /// Measure everything that has a target, and print it as one Markdown table.
    Table(verbs::table::Args),
    /// Make a vault as it is after months, and measure what the first byte of one disk costs in it, before and after folding.
    Vault(verbs::vault::Args),
    /// Draw what run or bench told, as one page.
    Report(verbs::report::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::ProxyUdp(args) => verbs::proxy::udp(&args),
        Verb::ProxyBlob(args) => verbs::proxy::blob(&args),
        Verb::Sink(args) => verbs::sink::run(&args),
        Verb::Run(args) => verbs::run::run(&args),
        Verb::Limit(args) => verbs::limit::run(&args),
        Verb::Codecs(args) => verbs::codecs::run(&args),
        Verb::Bench(args) => verbs::bench::run(&args),
        Verb::Table(args) => verbs::table::run(&args),
        Verb::Vault(args) => verbs::vault::run(&args),
        Verb::Report(args) => verbs::report::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("loadgen: {}", tidegate::fault::chain_text(&*error));
        ExitCode::from(exit::ERROR)
    })
}
