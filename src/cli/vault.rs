//! `tidegate vault`: make a vault, look at one, get its catalog key back, say who can open it.

mod hold;
mod recipients;
mod rotate;
mod shred;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::keyring::{self, Opened, VaultArgs, must_be_free};
use super::passphrase::NewIdentityArgs;
use super::{Failure, Outcome};
use crate::fault::exit;
use crate::flow::{Clock, SystemClock};
use crate::keys::{Recipient, read_recipients};
use crate::types::{Id128, Micros, PointId};
use crate::vault::reader::{Catalog, Want};
use crate::vault::recipients::Lists;
use crate::vault::store::Listed;
use crate::vault::url::create_store;
use crate::vault::{InitOptions, Vault, lane::ListedLane, names};

/// Options of `tidegate vault`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Make a new vault in an empty directory, container or prefix.
    Init(InitArgs),
    /// Show what a vault holds.
    Status(StatusArgs),
    /// Write the vault's catalog key to a file, for one more gateway or after its loss.
    CatalogKey(CatalogKeyArgs),
    /// Show who can open a vault, let somebody in, or take somebody off the list.
    ///
    /// A list of recipients is added, nothing that stands is changed. Gateways see it within a minute and go on with lane keys that
    /// are wrapped to the new recipients alone.
    Recipients(recipients::Args),
    /// Wrap the keys of older lanes to recipients who came later.
    ///
    /// `recipients add` does it too; this finishes what was interrupted, and takes in lanes that were opened meanwhile. Asked again, it
    /// does only what is left. Exit code 1 if keys are left that this identity does not open.
    Rewrap(recipients::RewrapArgs),
    /// Put another catalog key in the place of the present one, in two steps, so that no gateway stops.
    ///
    /// After a leak, take the store's credential away first: that keeps out who has the key. See docs/OPERATING.md, "A leaked catalog key, a
    /// stolen gateway".
    Rotate(rotate::Args),
    /// Keep a point for up to a week, whatever the policy of retention says.
    ///
    /// Needs a key that opens indexes and a credential that may write. Asked again, the point is kept longer.
    Hold(hold::Args),
    /// Destroy one disk for good: its keys, and with them everything that was sealed with them.
    ///
    /// Other disks stay as they are, also in batches that they share with it. Restores, exports and drills of the disk are refused from
    /// then on, gateways open it no more, and the keeper lets its batches go. Needs a key that opens indexes and a credential that may
    /// delete. Asked again after a failure, it does what is left. Nothing helps against copies that somebody kept: see
    /// docs/OPERATING.md, "Destroy one disk for good".
    ///
    /// Exit code 0, 1 if something stands against it, 2 for a wrong call, 75 while the disk is pinned or a lane of it may be in use.
    Shred(shred::Args),
}

#[derive(clap::Args)]
struct InitArgs {
    /// The vault: file:///path, az://account/container[/prefix] or http(s)://host:port/account/container[/prefix].
    #[arg(long, value_name = "URL", env = "TIDEGATE_VAULT")]
    vault: String,
    #[command(flatten)]
    recipients: RecipientArgs,
    #[command(flatten)]
    new_identity: NewIdentityArgs,
    /// Where to write the catalog key, which every gateway of the vault needs.
    #[arg(long, value_name = "FILE")]
    catalog_key: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Public keys on the command line.
#[derive(clap::Args)]
struct RecipientArgs {
    /// Public key (age1…) to which every key is wrapped; several may be given, each alone can restore.
    #[arg(long = "recipient", value_name = "AGE1")]
    recipients: Vec<Recipient>,
    /// File with such public keys, one per line.
    #[arg(long, value_name = "FILE")]
    recipients_file: Option<PathBuf>,
}

impl RecipientArgs {
    fn all(&self) -> Result<Vec<Recipient>, Failure> {
        let mut all = self.recipients.clone();
        if let Some(file) = &self.recipients_file {
            all.extend(read_recipients(file).map_err(|error| Failure::of(&error))?);
        }
        Ok(all)
    }
}

#[derive(clap::Args)]
struct StatusArgs {
    #[command(flatten)]
    vault: VaultArgs,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct CatalogKeyArgs {
    #[command(flatten)]
    vault: VaultArgs,
    /// Where to write the catalog key.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: Args) -> Outcome {
    let runtime = keyring::runtime()?;
    match args.verb {
        Verb::Init(args) => runtime.block_on(init(args)),
        Verb::Status(args) => runtime.block_on(status(args)),
        Verb::CatalogKey(args) => runtime.block_on(catalog_key(args)),
        Verb::Recipients(args) => runtime.block_on(recipients::run(args)),
        Verb::Rewrap(args) => runtime.block_on(recipients::rewrap(args)),
        Verb::Rotate(args) => runtime.block_on(rotate::run(args)),
        Verb::Hold(args) => runtime.block_on(hold::run(args)),
        Verb::Shred(args) => runtime.block_on(shred::run(args)),
    }
}

async fn init(args: InitArgs) -> Outcome {
    must_be_free(&args.catalog_key)?;
    let mut recipients = args.recipients.all()?;
    let identity = args.new_identity.make()?;
    recipients.extend(identity.as_ref().map(|new| new.identity.recipient()));
    if recipients.is_empty() {
        return Err(Failure::usage(
            "a vault needs at least one recovery recipient, or nobody could restore from it: give --recipient age1… \
             (as `age-keygen` prints it), or --new-identity FILE to make one",
        ));
    }
    let store = create_store(&args.vault).await.map_err(|error| Failure::of(&error))?;
    // The identity is safe on disk before anything depends on it.
    if let Some(new) = &identity {
        new.write()?;
    }
    let options = InitOptions { recipients, now: SystemClock::new().wall() };
    let (vault, key) = match Vault::init(store, &options).await {
        Ok(made) => made,
        Err(error) => {
            // It opens nothing: no vault was made with it.
            if let Some(new) = &identity {
                new.discard();
            }
            return Err(Failure::of(&error));
        }
    };
    key.write(&args.catalog_key).map_err(|error| {
        let failure = Failure::of(&error);
        let text = format!(
            "the vault {} was made, but its catalog key was not written: {}; get it by `tidegate vault catalog-key`",
            vault.id(),
            failure.text
        );
        Failure { text, code: failure.code }
    })?;
    print_init(&args.vault, &vault, &args.catalog_key, identity.as_ref().map(|new| new.path.as_path()), args.json);
    Ok(exit::OK)
}

fn print_init(url: &str, vault: &Vault, catalog_key: &Path, identity: Option<&Path>, as_json: bool) {
    let recipients: Vec<String> = vault.first_recipients().iter().map(ToString::to_string).collect();
    if as_json {
        let out = json!({
            "vault": url, "id": vault.id(), "catalog_kid": vault.head().catalog_kid.to_string(),
            "recipients": recipients, "catalog_key_file": catalog_key, "identity_file": identity,
        });
        println!("{out}");
        return;
    }
    println!("vault        {url}");
    println!("id           {}", vault.id());
    println!("catalog key  {} ({})", catalog_key.display(), vault.head().catalog_kid);
    if let Some(path) = identity {
        println!("identity     {} (keep it twice, apart, and away from the gateways)", path.display());
    }
    recipients.iter().for_each(|recipient| println!("recipient    {recipient}"));
    println!(
        "note         if all identities of these recipients are lost, nothing can be restored, by nobody: let a second one in with \
         `tidegate vault recipients add`, and prove each by a restore as soon as there is a point"
    );
}

async fn catalog_key(args: CatalogKeyArgs) -> Outcome {
    must_be_free(&args.out)?;
    let opened = args.vault.open_with_key().await?;
    let key = opened.vault.need_key().map_err(|error| Failure::of(&error))?;
    key.write(&args.out).map_err(|error| Failure::of(&error))?;
    if args.json {
        println!("{}", json!({"catalog_key_file": args.out, "catalog_kid": key.kid().to_string()}));
    } else {
        println!("catalog key  {} ({})", args.out.display(), key.kid());
    }
    Ok(exit::OK)
}

/// What `status` found.
struct Status {
    opened: Opened,
    lists: Lists,
    lanes: Vec<(ListedLane, u64, u64)>,
    disks: Vec<String>,
    newest: BTreeMap<String, (PointId, Micros)>,
    /// When disks were shredded, and why.
    shredded: BTreeMap<String, (Micros, String)>,
    findings: Vec<String>,
}

async fn status(args: StatusArgs) -> Outcome {
    let opened = args.vault.open().await?;
    let status = gather(opened).await.map_err(|error| Failure::of(&error))?;
    if args.json {
        println!("{}", status_json(&args.vault.vault, &status));
    } else {
        print_status(&args.vault.vault, &status);
    }
    Ok(if status.findings.is_empty() { exit::OK } else { exit::DAMAGE })
}

async fn gather(opened: Opened) -> Result<Status, crate::vault::VaultError> {
    let vault = &opened.vault;
    let mut sizes: BTreeMap<Id128, (u64, u64)> = BTreeMap::new();
    for Listed { path, size_bytes, .. } in vault.store().list(Some(&names::all_batches())).await? {
        if let Some(lane) = names::lane_of_batch(&path) {
            let (batches, bytes) = sizes.entry(lane).or_default();
            (*batches, *bytes) = (*batches + 1, *bytes + size_bytes);
        }
    }
    let listed = vault.lanes().await?;
    let size = |lane: Id128| sizes.get(&lane).copied().unwrap_or_default();
    let lanes = listed.into_iter().map(|one| (one, size(one.lane).0, size(one.lane).1)).collect();
    let known = vault.disks().await?;
    let disks = known.iter().map(ToString::to_string).collect();
    let lists = vault.lists().await?;
    let findings = lists.refused.iter().map(ToString::to_string).collect();
    let (newest, shredded) = (BTreeMap::new(), BTreeMap::new());
    let mut status = Status { lanes, lists, disks, newest, shredded, findings, opened: opened.clone() };
    if vault.catalog_key().is_some() {
        let words = vault.shreds(&known).await?;
        status.shredded.extend(words.into_iter().map(|word| (word.disk.to_string(), (word.made_micros, word.reason))));
        let catalog = Catalog::load(vault, &Want::default()).await?;
        status.findings.extend(catalog.findings.iter().map(ToString::to_string));
        for part in catalog.batches.iter().flat_map(|batch| &batch.index.disks) {
            for message in &part.messages {
                let Some(record) = message.records.last() else { continue };
                let point = PointId { epoch: message.epoch, seq: record.seq };
                let newest = status.newest.entry(part.disk.to_string()).or_insert((point, record.label));
                if newest.0 < point {
                    *newest = (point, record.label);
                }
            }
        }
    }
    Ok(status)
}

fn state(lane: &ListedLane) -> &'static str {
    match (lane.registered, lane.sealed.is_some(), lane.ended) {
        (false, _, _) => "unregistered",
        (true, true, _) => "sealed",
        (true, false, true) => "ended",
        (true, false, false) => "open",
    }
}

fn status_json(url: &str, status: &Status) -> serde_json::Value {
    let vault = &status.opened.vault;
    let lanes: Vec<_> = status
        .lanes
        .iter()
        .map(|(lane, batches, bytes)| {
            json!({"lane": lane.lane, "state": state(lane), "batches": batches, "bytes": bytes})
        })
        .collect();
    let disks: Vec<_> = status
        .disks
        .iter()
        .map(|disk| {
            let newest = status.newest.get(disk);
            json!({
                "disk": disk, "newest_record": newest.map(|(point, _)| point.to_string()),
                "newest_time": newest.map(|(_, label)| label.to_string()),
                "shredded": status.shredded.get(disk).map(|(made, _)| made.to_string()),
            })
        })
        .collect();
    json!({
        "vault": url, "id": vault.id(), "version": 1, "created": vault.head().created_micros.to_string(),
        "recipients": status.lists.present().recipients, "recipients_list": status.lists.present().n,
        "catalog_kid": status.lists.present().catalog_kid.to_string(),
        "staged_catalog_kid": status.lists.staged().map(|staged| staged.kid.to_string()),
        "key_at_hand": vault.catalog_key().is_some(), "lanes": lanes, "disks": disks,
        "batches": status.lanes.iter().map(|(_, batches, _)| batches).sum::<u64>(),
        "bytes": status.lanes.iter().map(|(_, _, bytes)| bytes).sum::<u64>(),
        "findings": status.findings,
    })
}

fn print_status(url: &str, status: &Status) {
    let vault = &status.opened.vault;
    println!("vault      {url}");
    println!("id         {} (format version 1, made {})", vault.id(), vault.head().created_micros);
    status.lists.present().recipients.iter().for_each(|recipient| println!("recipient  {recipient}"));
    println!("catalog    key {}", status.lists.present().catalog_kid);
    if let Some(staged) = status.lists.staged() {
        println!(
            "staged     catalog key {} of {}: `tidegate vault rotate activate` is the next step",
            staged.kid, staged.made
        );
    }
    let batches: u64 = status.lanes.iter().map(|(_, batches, _)| batches).sum();
    let bytes: u64 = status.lanes.iter().map(|(_, _, bytes)| bytes).sum();
    println!("stored     {batches} batches, {:.1} MiB", mib(bytes));
    for (lane, batches, bytes) in &status.lanes {
        println!("lane       {}  {:<12} {batches:>6} batches {:>10.1} MiB", lane.lane, state(lane), mib(*bytes));
    }
    for disk in &status.disks {
        match (status.shredded.get(disk), status.newest.get(disk)) {
            (Some((made, reason)), _) => println!("disk       {disk}  shredded at {made} ({reason})"),
            (None, Some((point, label))) => println!("disk       {disk}  newest record {point} of {label}"),
            (None, None) => println!("disk       {disk}"),
        }
    }
    if vault.catalog_key().is_none() {
        println!(
            "note       no key at hand: give --identity or --catalog-key for the newest records and a check of the indexes"
        );
    }
    status.findings.iter().for_each(|finding| println!("damage     {finding}"));
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
