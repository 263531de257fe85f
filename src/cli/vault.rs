//! `tidegate vault`: make a vault, look at one, get its catalog key back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::keyring::{self, Opened, VaultArgs};
use super::{Failure, Outcome};
use crate::fault::exit;
use crate::flow::{Clock, SystemClock};
use crate::keys::{Identity, Recipient, read_recipients};
use crate::types::{Id128, Micros, PointId};
use crate::vault::reader::{Catalog, Want};
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
}

#[derive(clap::Args)]
struct InitArgs {
    /// The vault: file:///path, az://account/container[/prefix] or http(s)://host:port/account/container[/prefix].
    #[arg(long, value_name = "URL", env = "TIDEGATE_VAULT")]
    vault: String,
    /// Public key (age1…) to which every key is wrapped; several may be given, each alone can restore.
    #[arg(long = "recipient", value_name = "AGE1")]
    recipients: Vec<Recipient>,
    /// File with such public keys, one per line.
    #[arg(long, value_name = "FILE")]
    recipients_file: Option<PathBuf>,
    /// Make a new recovery identity, write it to this file and wrap to it. Keep the file away from the gateways.
    #[arg(long, value_name = "FILE")]
    new_identity: Option<PathBuf>,
    /// Where to write the catalog key, which every gateway of the vault needs.
    #[arg(long, value_name = "FILE")]
    catalog_key: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
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
}

/// Runs the verb.
pub fn run(args: Args) -> Outcome {
    let runtime = keyring::runtime()?;
    match args.verb {
        Verb::Init(args) => runtime.block_on(init(args)),
        Verb::Status(args) => runtime.block_on(status(args)),
        Verb::CatalogKey(args) => runtime.block_on(catalog_key(args)),
    }
}

/// A key file is never overwritten: better to know before the vault exists.
fn must_be_free(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Err(Failure::usage(format!("{} exists already: a key file is never overwritten", path.display())));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder {
        Some(folder) if !folder.is_dir() => {
            Err(Failure::usage(format!("the directory {} for {} does not exist", folder.display(), path.display())))
        }
        _ => Ok(()),
    }
}

async fn init(args: InitArgs) -> Outcome {
    must_be_free(&args.catalog_key)?;
    let mut recipients = args.recipients;
    if let Some(file) = &args.recipients_file {
        recipients.extend(read_recipients(file).map_err(|error| Failure::of(&error))?);
    }
    let identity = args.new_identity.as_deref().map(|path| must_be_free(path).map(|()| (path, Identity::generate())));
    let identity = identity.transpose()?;
    recipients.extend(identity.as_ref().map(|(_, identity)| identity.recipient()));
    if recipients.is_empty() {
        return Err(Failure::usage(
            "a vault needs at least one recovery recipient, or nobody could restore from it: give --recipient age1… \
             (as `age-keygen` prints it), or --new-identity FILE to make one",
        ));
    }
    let store = create_store(&args.vault).await.map_err(|error| Failure::of(&error))?;
    // The identity is safe on disk before anything depends on it.
    if let Some((path, identity)) = &identity {
        identity.write(path).map_err(|error| Failure::of(&error))?;
    }
    let options = InitOptions { recipients, now: SystemClock::new().wall() };
    let (vault, key) = match Vault::init(store, &options).await {
        Ok(made) => made,
        Err(error) => {
            // It opens nothing: no vault was made with it.
            if let Some((path, _)) = &identity {
                let _ = std::fs::remove_file(path);
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
    print_init(&args.vault, &vault, &args.catalog_key, args.new_identity.as_deref(), args.json);
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
        println!(
            "identity     {} (keep it safe, and away from the gateways: without it nothing is restored)",
            path.display()
        );
    }
    recipients.iter().for_each(|recipient| println!("recipient    {recipient}"));
}

async fn catalog_key(args: CatalogKeyArgs) -> Outcome {
    must_be_free(&args.out)?;
    let opened = args.vault.open_with_key().await?;
    let key = opened.vault.need_key().map_err(|error| Failure::of(&error))?;
    key.write(&args.out).map_err(|error| Failure::of(&error))?;
    println!("catalog key  {} ({})", args.out.display(), key.kid());
    Ok(exit::OK)
}

/// What `status` found.
struct Status {
    opened: Opened,
    lanes: Vec<(ListedLane, u64, u64)>,
    disks: Vec<String>,
    newest: BTreeMap<String, (PointId, Micros)>,
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
    let disks = vault.disks().await?.iter().map(ToString::to_string).collect();
    let mut status = Status { lanes, disks, newest: BTreeMap::new(), findings: Vec::new(), opened: opened.clone() };
    if vault.catalog_key().is_some() {
        let catalog = Catalog::load(vault, &Want::default()).await?;
        status.findings = catalog.findings.iter().map(ToString::to_string).collect();
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
            })
        })
        .collect();
    json!({
        "vault": url, "id": vault.id(), "version": 1, "created": vault.head().created_micros.to_string(),
        "recipients": vault.first_recipients(), "catalog_kid": vault.head().catalog_kid.to_string(),
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
    vault.first_recipients().iter().for_each(|recipient| println!("recipient  {recipient}"));
    let batches: u64 = status.lanes.iter().map(|(_, batches, _)| batches).sum();
    let bytes: u64 = status.lanes.iter().map(|(_, _, bytes)| bytes).sum();
    println!("stored     {batches} batches, {:.1} MiB", mib(bytes));
    for (lane, batches, bytes) in &status.lanes {
        println!("lane       {}  {:<12} {batches:>6} batches {:>10.1} MiB", lane.lane, state(lane), mib(*bytes));
    }
    for disk in &status.disks {
        match status.newest.get(disk) {
            Some((point, label)) => println!("disk       {disk}  newest record {point} of {label}"),
            None => println!("disk       {disk}"),
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
