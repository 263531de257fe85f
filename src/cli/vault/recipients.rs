//! `tidegate vault recipients` and `tidegate vault rewrap`: who can open a vault.

use serde_json::json;

use super::super::keyring::{Opened, VaultArgs};
use super::super::passphrase::{NewIdentity, NewIdentityArgs};
use super::super::{Failure, Outcome};
use super::RecipientArgs;
use crate::fault::{Classify, Fault, chain_text, exit};
use crate::flow::{Clock, SystemClock};
use crate::keys::{Identity, Recipient};
use crate::types::Id128;
use crate::vault::recipients::{LaneOpenToOthers, Lists, Wraps, pin_of};
use crate::vault::{Vault, VaultError};

/// Looks for lanes that are left: the second finds what came while the first worked.
const ROUNDS: usize = 4;

/// Options of `tidegate vault recipients`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Show the recipients, and whether each opens every lane.
    ///
    /// Exit code 3 if lists or wrapped keys stand there that are not believed.
    List(ListArgs),
    /// Let somebody in: wrap to them what is written from now on, and the keys of all older lanes.
    ///
    /// Needs the identity of a present recipient.
    Add(AddArgs),
    /// Take somebody off the list: lanes that gateways open from now on are not wrapped to them.
    ///
    /// What was written before stays open to them for ever, in the vault and in every copy of it; and so do the indexes of what comes
    /// later (names of disks, times, places, no data), until `vault rotate` replaces the catalog key. If an identity has leaked, see
    /// docs/OPERATING.md, "A leaked identity". Needs the identity of somebody who stays.
    Remove(RemoveArgs),
}

#[derive(clap::Args)]
struct ListArgs {
    #[command(flatten)]
    vault: VaultArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct AddArgs {
    #[command(flatten)]
    vault: VaultArgs,
    #[command(flatten)]
    recipients: RecipientArgs,
    #[command(flatten)]
    new_identity: NewIdentityArgs,
    #[command(flatten)]
    how: How,
}

#[derive(clap::Args)]
struct RemoveArgs {
    #[command(flatten)]
    vault: VaultArgs,
    #[command(flatten)]
    recipients: RecipientArgs,
    #[command(flatten)]
    how: How,
}

/// Options of `tidegate vault rewrap`.
#[derive(clap::Args)]
pub(super) struct RewrapArgs {
    #[command(flatten)]
    vault: VaultArgs,
    #[command(flatten)]
    how: How,
}

#[derive(clap::Args)]
struct How {
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub(super) async fn run(args: Args) -> Outcome {
    match args.verb {
        Verb::List(args) => list(args).await,
        Verb::Add(args) => add(args).await,
        Verb::Remove(args) => remove(args).await,
    }
}

/// The vault, and the identity without which nothing is changed.
async fn open(args: &VaultArgs) -> Result<(Vault, Identity), Failure> {
    let Opened { vault, identity } = args.open_with_key().await?;
    let identity = identity.ok_or_else(|| {
        Failure::usage(
            "who can open a vault is changed by who can open it: give the identity of a present recipient with --identity \
             FILE or TIDEGATE_IDENTITY",
        )
    })?;
    Ok((vault, identity))
}

fn texts(recipients: &[Recipient]) -> Vec<String> {
    recipients.iter().map(ToString::to_string).collect()
}

async fn list(args: ListArgs) -> Outcome {
    let Opened { vault, .. } = args.vault.open_with_key().await?;
    let lists = vault.lists().await.map_err(|error| Failure::of(&error))?;
    let wraps = vault.wraps(&lists).await.map_err(|error| Failure::of(&error))?;
    let refused: Vec<String> = lists.refused.iter().chain(&wraps.refused).map(ToString::to_string).collect();
    let closed = |one: &Recipient| wraps.behind.iter().filter(|lane| lane.missing.contains(one)).count();
    let present = lists.present();
    if args.json {
        let earlier: Vec<_> = lists
            .all()
            .map(|list| json!({"list": list.n, "made": list.made.to_string(), "recipients": texts(&list.recipients)}))
            .collect();
        let recipients: Vec<_> =
            present.recipients.iter().map(|one| json!({"recipient": one, "lanes_closed": closed(one)})).collect();
        let out = json!({
            "vault": args.vault.vault, "list": present.n, "made": present.made.to_string(), "recipients": recipients,
            "pin": pin_of(&present.recipients),
            "lanes": wraps.lanes, "lanes_open_to_others": open_json(&wraps), "lists": earlier, "findings": refused,
        });
        println!("{out}");
    } else {
        println!("vault      {}", args.vault.vault);
        println!("list       {} of {}", present.n, present.made);
        println!("pin        {}", pin_of(&present.recipients));
        for one in &present.recipients {
            match closed(one) {
                0 => println!("recipient  {one}  is named by the keys of all {} lanes", wraps.lanes),
                closed => println!("recipient  {one}  is not named by the keys of {closed} of {} lanes", wraps.lanes),
            }
        }
        for lane in &wraps.open_to_others {
            let (gateway, others) = (&lane.gateway, lane.others.join(", "));
            let (lane, created, is_late) = (lane.lane, lane.created, lane.is_late);
            let late = if is_late { ", AFTER the list: upgrade or restart this gateway" } else { "" };
            println!("open       lane {lane} of gateway {gateway}, begun {created}, to {others}{late}");
        }
        if !wraps.open_to_others.is_empty() {
            println!(
                "note       a gateway that runs ends such a lane soon after a minute; of one that was killed it stays"
            );
        }
        if !wraps.behind.is_empty() {
            println!("next       tidegate vault rewrap --identity FILE, with an identity that opens them");
        }
        refused.iter().for_each(|one| println!("damage     {one}"));
    }
    Ok(if refused.is_empty() { exit::OK } else { exit::DAMAGE })
}

fn open_json(wraps: &Wraps) -> Vec<serde_json::Value> {
    let one = |lane: &LaneOpenToOthers| {
        let created = lane.created.to_string();
        json!({
            "lane": lane.lane, "gateway": lane.gateway, "created": created, "open_to": lane.others, "late": lane.is_late,
        })
    };
    wraps.open_to_others.iter().map(one).collect()
}

async fn add(args: AddArgs) -> Outcome {
    let (vault, identity) = open(&args.vault).await?;
    let lists = vault.lists().await.map_err(|error| Failure::of(&error))?;
    let new = if args.how.dry_run { None } else { args.new_identity.make()? };
    let given = args.recipients.all()?.into_iter().chain(new.as_ref().map(|new| new.identity.recipient()));
    let mut added: Vec<Recipient> = Vec::new();
    for one in given {
        if !lists.present().recipients.contains(&one) && !added.contains(&one) {
            added.push(one);
        }
    }
    let to_be_made = args.new_identity.new_identity.as_deref().filter(|_| args.how.dry_run);
    if let Some(path) = to_be_made {
        super::must_be_free(path)?;
    }
    if added.is_empty() && to_be_made.is_none() {
        return Err(Failure::usage(
            "nobody is to be added: give --recipient age1… of somebody who is no recipient yet, or --new-identity FILE (`tidegate \
             vault rewrap` finishes what was interrupted)",
        ));
    }
    let recipients = [lists.present().recipients.as_slice(), &added].concat();
    if args.how.dry_run {
        let wraps = vault.wraps(&lists).await.map_err(|error| Failure::of(&error))?;
        // Of a key that is still to be made nobody knows what will stand there.
        let pin = to_be_made.is_none().then(|| pin_of(&recipients));
        let told = Change { verb: "add", changed: added, lists, pin, rewrapped: wraps.lanes, left: Vec::new() };
        return Ok(told.print(&args.vault.vault, &args.how));
    }
    // Safe on disk before anything is wrapped to it.
    if let Some(new) = &new {
        new.write()?;
    }
    let now = SystemClock::new().wall();
    let lists = match vault.change_recipients(&identity, &lists, &recipients, now).await {
        Ok(lists) => lists,
        Err(error) => return Err(not_added(&error, new.as_ref())),
    };
    let (rewrapped, left) = rewrap_all(&vault, &identity, &lists, &added).await?;
    let pin = Some(pin_of(&lists.present().recipients));
    let told = Change { verb: "add", changed: added, lists, pin, rewrapped, left };
    Ok(told.print(&args.vault.vault, &args.how))
}

/// Where nothing was written, nothing is wrapped to the new identity. If an answer was lost the list may stand all the same: then
/// the identity is kept.
fn not_added(error: &VaultError, new: Option<&NewIdentity>) -> Failure {
    let mut failure = Failure::of(error);
    match new {
        Some(new) if error.is_unwritten() => new.discard(),
        Some(new) => failure.text.push_str(&format!(
            "; {} is kept: if `tidegate vault recipients list` does not show {}, add it with --recipient",
            new.path.display(),
            new.identity.recipient()
        )),
        None => {}
    }
    failure
}

async fn remove(args: RemoveArgs) -> Outcome {
    let (vault, identity) = open(&args.vault).await?;
    let lists = vault.lists().await.map_err(|error| Failure::of(&error))?;
    let removed = args.recipients.all()?;
    if removed.is_empty() {
        return Err(Failure::usage("nobody is to be removed: give --recipient age1…"));
    }
    if let Some(stranger) = removed.iter().find(|one| !lists.present().recipients.contains(one)) {
        return Err(Failure::usage(format!(
            "{stranger} is not a recipient of this vault: `tidegate vault recipients list` shows who is"
        )));
    }
    let left: Vec<Recipient> =
        lists.present().recipients.iter().filter(|one| !removed.contains(one)).cloned().collect();
    if left.is_empty() {
        return Err(Failure::usage(
            "nobody would be left, and nothing that is written then could be restored: add somebody first",
        ));
    }
    let lists = if args.how.dry_run {
        lists
    } else {
        vault
            .change_recipients(&identity, &lists, &left, SystemClock::new().wall())
            .await
            .map_err(|error| Failure::of(&error))?
    };
    let told =
        Change { verb: "remove", changed: removed, lists, pin: Some(pin_of(&left)), rewrapped: 0, left: Vec::new() };
    Ok(told.print(&args.vault.vault, &args.how))
}

/// Runs `tidegate vault rewrap`.
pub(super) async fn rewrap(args: RewrapArgs) -> Outcome {
    let (vault, identity) = open(&args.vault).await?;
    let lists = vault.lists().await.map_err(|error| Failure::of(&error))?;
    let (rewrapped, left) = if args.how.dry_run {
        (vault.wraps(&lists).await.map_err(|error| Failure::of(&error))?.behind.len() as u64, Vec::new())
    } else {
        rewrap_all(&vault, &identity, &lists, &[]).await?
    };
    let pin = Some(pin_of(&lists.present().recipients));
    let told = Change { verb: "rewrap", changed: Vec::new(), lists, pin, rewrapped, left };
    Ok(told.print(&args.vault.vault, &args.how))
}

/// Wraps the keys of all lanes that some present recipient cannot open; how many, and which are left.
async fn rewrap_all(
    vault: &Vault,
    identity: &Identity,
    lists: &Lists,
    added: &[Recipient],
) -> Result<(u64, Vec<(Id128, String)>), Failure> {
    let (mut done, mut left) = (0, Vec::new());
    // A gateway that had read the old list may have opened a lane meanwhile, and somebody else may wrap too: so again.
    for _ in 0..ROUNDS {
        let Wraps { behind, .. } = vault.wraps(lists).await.map_err(|error| halfway(&error, added))?;
        left.clear();
        let mut again = false;
        for lane in &behind {
            match vault.rewrap(identity, lists, lane, SystemClock::new().wall()).await {
                Ok(()) => (done, again) = (done + 1, true),
                Err(error @ VaultError::Taken { .. }) => {
                    again = true;
                    left.push((lane.lane, chain_text(&error)));
                }
                Err(error @ VaultError::ListTaken { .. }) => return Err(halfway(&error, added)),
                Err(error) if matches!(error.fault(), Fault::Corrupt | Fault::Reject) => {
                    left.push((lane.lane, chain_text(&error)));
                }
                Err(error) => return Err(halfway(&error, added)),
            }
        }
        if !again {
            break;
        }
    }
    Ok((done, left))
}

/// A failure after the list was written.
fn halfway(error: &VaultError, added: &[Recipient]) -> Failure {
    let mut failure = Failure::of(error);
    if !added.is_empty() {
        failure.text.push_str(
            "; the new recipients are on the list, but do not open every older lane yet: finish with `tidegate vault rewrap`",
        );
    }
    failure
}

/// What was done, or would be.
struct Change {
    verb: &'static str,
    changed: Vec<Recipient>,
    /// As they are now.
    lists: Lists,
    /// What a gateway's configuration pins the recipients by, when it is done.
    pin: Option<String>,
    rewrapped: u64,
    /// Lanes whose key this identity could not wrap anew, and why.
    left: Vec<(Id128, String)>,
}

impl Change {
    fn print(&self, url: &str, how: &How) -> u8 {
        if how.json {
            self.print_json(url, how.dry_run);
        } else {
            self.print_text(url, how.dry_run);
        }
        if self.left.is_empty() { exit::OK } else { exit::ERROR }
    }

    fn print_json(&self, url: &str, dry_run: bool) {
        let left: Vec<_> = self.left.iter().map(|(lane, why)| json!({"lane": lane, "reason": why})).collect();
        let present = self.lists.present();
        let out = json!({
            "vault": url, "verb": self.verb, "dry_run": dry_run, "changed": texts(&self.changed), "list": present.n,
            "recipients": texts(&present.recipients), "pin": self.pin, "rewrapped_lanes": self.rewrapped, "lanes_left": left,
        });
        println!("{out}");
    }

    fn print_text(&self, url: &str, dry_run: bool) {
        println!("vault      {url}");
        let would = if dry_run { "would be " } else { "" };
        let done = if self.verb == "add" { "added" } else { "removed" };
        self.changed.iter().for_each(|one| println!("{:<10} {one}", format!("{would}{done}")));
        let present = self.lists.present();
        println!("list       {} of {}{}", present.n, present.made, if dry_run { ", as it is" } else { "" });
        present.recipients.iter().for_each(|one| println!("recipient  {one}"));
        if let Some(pin) = &self.pin {
            println!(
                "pin        {pin}{}",
                if dry_run { ", as it would be: `recipients_pin` of the gateways" } else { "" }
            );
        }
        if self.verb != "remove" {
            println!("lanes      {} {would}wrapped anew", self.rewrapped);
        }
        for (lane, why) in &self.left {
            println!("left       lane {lane}: {why}");
        }
        match (self.verb, dry_run) {
            (_, true) => {}
            ("add", _) => {
                println!("next       try a restore with the new identity, then keep it apart from the others")
            }
            ("remove", _) => println!(
                "note       what was written until now stays open to them, and so do indexes; gateways take new lane keys within a \
                 minute, see `tidegate vault recipients list`"
            ),
            _ => {}
        }
    }
}
