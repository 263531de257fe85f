//! `tidegate point`: asks the agent of this machine over its control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Failure, Outcome};
use crate::agent::config::Config;
use crate::agent::control::{POINT_TIMEOUT_MAX, PointAnswer, Request, Response, socket_path};
use crate::config::parse_duration;
use crate::fault::exit;
use crate::types::{BarrierKind, DiskId};

/// Options of `tidegate point`.
#[derive(clap::Args)]
pub struct Args {
    /// Disk to make a point of. Several are taken at the same instant, as one group.
    #[arg(long, required = true, value_name = "DISK")]
    disk: Vec<DiskId>,
    /// A name to find the point by.
    #[arg(long, default_value = "")]
    name: String,
    /// What the point promises: as after a power cut, file systems frozen, or applications quiesced. Freezing is up to
    /// the caller.
    #[arg(long, value_enum, default_value = "crash")]
    kind: Kind,
    /// Do not wait until the point is in the vault.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait; exit code 75 after that.
    #[arg(long, default_value = "5 min", value_parser = timeout)]
    timeout: Duration,
    /// Print one JSON object per disk.
    #[arg(long)]
    json: bool,
    /// The agent's configuration file; says where its control socket is.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_AGENT_CONFIG", default_value = "/etc/tidegate/agent.toml")]
    config: PathBuf,
    /// The agent's control socket, instead of --config.
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    Crash,
    Fs,
    App,
}

fn timeout(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|timeout| *timeout <= POINT_TIMEOUT_MAX)
        .ok_or_else(|| "write for example \"30 s\", at most a day".into())
}

/// Runs the verb.
pub fn run(args: Args) -> Outcome {
    let socket = match &args.socket {
        Some(socket) => socket.clone(),
        None => {
            let config = Config::load(&args.config).map_err(|error| Failure::usage(error.to_string()))?;
            socket_path(&config.state_dir)
        }
    };
    let request = Request::Point {
        disks: args.disk,
        name: args.name,
        kind: match args.kind {
            Kind::Crash => BarrierKind::Crash,
            Kind::Fs => BarrierKind::Fs,
            Kind::App => BarrierKind::App,
        },
        wait: !args.no_wait,
        timeout_ms: args.timeout.as_millis() as u64,
    };
    // The agent keeps the time; a little more covers its answer.
    match ask(&socket, &request, args.timeout + Duration::from_secs(10))? {
        Response::Points(points) => {
            print(&points, args.json)?;
            Ok(exit::OK)
        }
        Response::Failed(failed) => {
            print(&failed.points, args.json)?;
            let code = if failed.try_again { exit::TRY_AGAIN } else { exit::ERROR };
            Err(Failure { text: failed.text, code })
        }
        Response::Status(_) | Response::Heads(_) => {
            Err(Failure::error("the agent answered with something else than a point"))
        }
    }
}

fn print(points: &[PointAnswer], json: bool) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for point in points {
        if json {
            writeln!(out, "{}", serde_json::to_string(point)?)?;
        } else {
            let vaulted = if point.vaulted { "in the vault" } else { "not in the vault yet" };
            writeln!(out, "{}  {}  {}  {vaulted}", point.disk, point.id, point.time)?;
        }
    }
    Ok(())
}

/// Asks a running agent one thing.
///
/// # Errors
/// A [`Failure`] that names the socket and the next step.
pub fn ask(socket: &Path, request: &Request, timeout: Duration) -> Result<Response, Failure> {
    let failure = |what: &str, error: std::io::Error| {
        let text =
            format!("{what} {}: {error}; check that the agent runs and that this user may reach it", socket.display());
        Failure { text, code: exit::TRY_AGAIN }
    };
    let mut stream = UnixStream::connect(socket).map_err(|error| failure("no agent at", error))?;
    stream.set_read_timeout(Some(timeout)).map_err(|error| failure("cannot use", error))?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(|error| failure("cannot ask the agent at", error))?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(|error| failure("no answer from the agent at", error))?;
    serde_json::from_str(&answer).map_err(|error| {
        Failure::error(format!("answer of the agent at {} is not understood: {error}", socket.display()))
    })
}
