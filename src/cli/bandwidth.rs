//! `tidegate bandwidth`: how many bytes per second a running gateway lets through, and limits set by hand for a while.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use super::admin::{AdminArgs, PATIENCE};
use super::{Failure, Outcome};
use crate::config::parse_duration;
use crate::fault::{chain_text, exit};
use crate::gateway::bandwidth::door::Wish;
use crate::gateway::bandwidth::settings;

/// Options of `tidegate bandwidth`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    admin: AdminArgs,
    /// Print the limits as JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Show what is in force, by what, until when, and what waits for it.
    Show,
    /// Set limits for a while, on the gateway's own machine. Those not given stay as they are.
    Set {
        /// What batches send to the vault: "50 MiB/s", "400 Mbit/s", or "none".
        #[arg(long, value_name = "RATE", value_parser = rate)]
        upload: Option<String>,
        /// What comes from all agents together.
        #[arg(long, value_name = "RATE", value_parser = rate)]
        receive: Option<String>,
        /// What comes from one disk, each.
        #[arg(long, value_name = "RATE", value_parser = rate)]
        disk: Option<String>,
        /// For how long, such as "90 min", at most "7 d"; what is to stay belongs into the configuration.
        #[arg(long = "for", value_name = "TIME", value_parser = time)]
        time: Duration,
    },
    /// End what was set by hand: the configuration and its calendar count again.
    Reset,
}

fn rate(text: &str) -> Result<String, String> {
    settings::setting(text).map(|_| text.to_owned())
}

fn time(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).filter(|time| time.as_secs() > 0);
    time.ok_or_else(|| format!("{text:?} is no time of a second or more: write for example \"90 min\""))
}

/// Runs the verb.
pub fn run(args: Args) -> Outcome {
    let admin = args.admin.address()?;
    let (method, wish) = match args.action.unwrap_or(Action::Show) {
        Action::Show => (Method::GET, None),
        Action::Reset => (Method::DELETE, None),
        Action::Set { upload, receive, disk, time } => {
            if upload.is_none() && receive.is_none() && disk.is_none() {
                return Err(Failure::usage("which limit is to be set? Give --upload, --receive or --disk"));
            }
            (Method::POST, Some(Wish { upload, receive, disk, seconds: time.as_secs() }))
        }
    };
    // The client wants one, also where nothing is encrypted.
    crate::vault::url::install_crypto();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let limits = runtime.block_on(ask(admin, method, wish.as_ref()))?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{limits}")?;
        return Ok(exit::OK);
    }
    for limit in limits.as_array().into_iter().flatten() {
        let holds = if limit["holds"].as_bool() == Some(true) { "  <- holds things up" } else { "" };
        writeln!(
            out,
            "{:<8} {}{holds}",
            limit["limit"].as_str().unwrap_or("?"),
            limit["words"].as_str().unwrap_or("?")
        )?;
    }
    Ok(exit::OK)
}

async fn ask(admin: SocketAddr, method: Method, wish: Option<&Wish>) -> Result<Value, Failure> {
    let url = format!("http://{admin}/v1/bandwidth");
    let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build()?;
    let mut request = client.request(method, &url);
    if let Some(wish) = wish {
        let body = serde_json::to_vec(wish)?;
        request = request.header(reqwest::header::CONTENT_TYPE, "application/json").body(body);
    }
    let answered = async {
        let answer = request.send().await?;
        Ok((answer.status(), answer.bytes().await?))
    };
    let (status, body) = answered.await.map_err(|error: reqwest::Error| {
        let text = chain_text(&error.without_url());
        Failure::error(format!(
            "no gateway answers at {url}: {text}; is it running, and is this its admin_listen? (--admin, --config)"
        ))
    })?;
    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status.is_success() && answer.is_array() {
        return Ok(answer);
    }
    let text = answer["error"]
        .as_str()
        .map_or_else(|| format!("{url} answers {status}: is it a gateway of this version?"), str::to_owned);
    Err(Failure::error(text))
}
