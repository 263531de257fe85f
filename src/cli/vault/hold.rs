//! `tidegate vault hold`: keep a point for a while, whatever the policy says.

use std::time::Duration;

use serde_json::json;

use super::super::asked::asked;
use super::super::keyring::{Opened, VaultArgs};
use super::super::points as view;
use super::super::restore::choose;
use super::super::{Failure, Outcome};
use crate::config::parse_duration;
use crate::fault::exit;
use crate::flow::{Clock, SystemClock};
use crate::keeper::pins::PIN_MAX;
use crate::restore::pin;
use crate::types::DiskId;
use crate::vault::reader::Want;

/// Options of `tidegate vault hold`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    /// The disk.
    #[arg(long)]
    disk: DiskId,
    /// The last point at or before this time: 2026-11-22T21:00:05Z, "2026-11-22 21:00:05" (local), now, "-10 min".
    #[arg(
        long,
        value_name = "TIME",
        allow_hyphen_values = true,
        conflicts_with = "point",
        required_unless_present = "point"
    )]
    at: Option<String>,
    /// The point, by its id (e1-s4711) or its name.
    #[arg(long, value_name = "POINT")]
    point: Option<String>,
    /// For how long, a week at most: asked again, it is kept longer.
    #[arg(long = "for", value_name = "TIME", value_parser = span, default_value = "7 d")]
    span: Duration,
    /// What for: the keeper's report says so.
    #[arg(long, value_name = "TEXT", default_value = "hold")]
    reason: String,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Longest reason: a line for people.
const REASON_BYTES_MAX: usize = 200;

fn span(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Some(span) if span > PIN_MAX => {
            Err("a pin holds for 7 d at most; for longer write `holds` into keeper.toml".into())
        }
        Some(span) if !span.is_zero() => Ok(span),
        _ => Err("expected a time such as 36 h or 7 d".into()),
    }
}

/// Runs the verb.
pub(super) async fn run(args: Args) -> Outcome {
    let asked = asked(args.at.as_deref(), args.point.as_deref())?;
    if args.reason.len() > REASON_BYTES_MAX {
        return Err(Failure::usage(format!("a reason has at most {REASON_BYTES_MAX} bytes")));
    }
    let Opened { vault, .. } = args.vault.open_with_key().await?;
    let loaded = view::load(&vault, &args.disk, &Want::disk(&args.disk)).await?;
    let point = choose(&args.disk, &loaded, &asked)?;
    let now = SystemClock::new().wall();
    let pinned = pin::pin_always(&vault, &args.disk, point.id, now, args.span, &args.reason).await;
    let pinned = pinned.map_err(|error| Failure::of(&error))?;
    let until = pin::ends(now, args.span);
    if args.json {
        let point = view::point_json(&point);
        println!("{}", json!({"disk": args.disk, "point": point, "pin": pinned, "until": until.to_string()}));
    } else {
        println!("disk   {}", args.disk);
        println!("point  {}", view::point_line(&point));
        println!("kept   until {until} at least, by pin {pinned}");
        println!("next   for longer: holds = [\"{}/{}\"] in the policy of keeper.toml", point.label, point.label);
    }
    Ok(exit::OK)
}
