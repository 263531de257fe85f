//! `tidegate vault shred`: destroy one disk for good, by its keys.

use serde_json::json;

use super::super::keyring::{Opened, VaultArgs};
use super::super::{Failure, Outcome};
use super::mib;
use crate::fault::exit;
use crate::flow::{Clock, SystemClock};
use crate::keeper::shred::{self, Shredded, Wish};
use crate::types::DiskId;
use crate::vault::names;

/// Longest reason: a line for people.
const REASON_BYTES_MAX: usize = 200;

/// Options of `tidegate vault shred`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    /// The disk.
    #[arg(long)]
    disk: DiskId,
    /// The disk's name once more, instead of typing it when asked.
    #[arg(long, value_name = "DISK")]
    yes_destroy: Option<DiskId>,
    /// Why: whoever asks for the disk is told so.
    #[arg(long, value_name = "TEXT", default_value = "asked for")]
    reason: String,
    /// Go on although some of its data is from before disks had keys: that stays open to whoever opens its lanes.
    #[arg(long)]
    leave_older: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Lets the disk's name be given a second time.
    fn confirm(&self) -> Result<(), Failure> {
        let disk = &self.disk;
        let typed = match &self.yes_destroy {
            Some(name) => name.to_string(),
            None => {
                let terminal = console::Term::stderr();
                if !terminal.is_term() {
                    return Err(Failure::usage(format!(
                        "nothing brings a shredded disk back: if that is what you want, give --yes-destroy {disk}"
                    )));
                }
                terminal.write_line(
                    "Nothing brings back any point of this disk after this, not even the recovery identity.",
                )?;
                terminal.write_str("Type its name to destroy it: ")?;
                terminal.read_line()?
            }
        };
        if typed.trim() == disk.as_str() {
            return Ok(());
        }
        Err(Failure::usage(format!("{:?} is not {disk}: nothing was done", typed.trim())))
    }
}

/// Runs the verb.
pub(super) async fn run(args: Args) -> Outcome {
    if args.reason.len() > REASON_BYTES_MAX {
        return Err(Failure::usage(format!("a reason has at most {REASON_BYTES_MAX} bytes")));
    }
    args.confirm()?;
    let Opened { vault, .. } = args.vault.open_with_key().await?;
    let (disk, reason, now) = (args.disk.clone(), args.reason.clone(), SystemClock::new().wall());
    let wish = Wish { disk, reason, leave_older: args.leave_older, now };
    let done = shred::shred(&vault, &wish).await.map_err(|error| Failure::of(&error))?;
    if args.json {
        println!("{}", as_json(&args.vault.vault, &done));
    } else {
        print_text(&done);
    }
    Ok(exit::OK)
}

fn as_json(url: &str, done: &Shredded) -> serde_json::Value {
    let Shredded { word, destroyed, routes, older } = done;
    json!({
        "vault": url, "disk": word.disk, "object": names::shred(&word.disk).to_string(), "made": word.made_micros.to_string(),
        "reason": word.reason, "keys_destroyed": destroyed, "routes_read_back": routes,
        "older_lanes": older.lanes, "older_batches": older.batches, "older_bytes": older.bytes,
    })
}

fn print_text(done: &Shredded) {
    let Shredded { word, destroyed, routes, older } = done;
    println!("disk      {}", word.disk);
    println!("shredded  at {} ({}), see {}", word.made_micros, word.reason, names::shred(&word.disk));
    println!("keys      {destroyed} destroyed now; {routes} routes read back, none has a key");
    if older.batches > 0 {
        println!(
            "LEFT      {} batches of {} lanes hold {:.1} MiB of it from before disks had keys: they open as before",
            older.batches,
            older.lanes,
            mib(older.bytes)
        );
    }
    println!(
        "note      whoever kept a copy of the routes opens the disk with it: backups and replicas of the vault, and what the container \
         keeps of deleted objects (soft delete, versions, immutability), until that ends"
    );
    println!("next      the keeper lets its batches go, as nothing opens what they hold of it");
}
