//! `tidegate vault rotate`: another catalog key in the place of the present one, in two steps.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::super::keyring::{VaultArgs, must_be_free};
use super::super::{Failure, Outcome};
use crate::fault::exit;
use crate::flow::{Clock, SystemClock};
use crate::keys::{CatalogKey, Identity};
use crate::vault::recipients::Lists;
use crate::vault::rotation::{Activated, OpenLane};
use crate::vault::{Vault, VaultError};

/// How long `--wait` waits: a gateway sees a list within a minute, and then ends what it has under way.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// How often it looks.
const WAIT_LOOK: Duration = Duration::from_secs(2);

/// Options of `tidegate vault rotate`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Make the next catalog key, and write its file, for all gateways and keepers.
    ///
    /// Nothing changes for anybody yet: who has the new file reads and writes as with the old one. Gateways and keepers of releases that do not
    /// know such lists of recipients open no lane any more, so upgrade all of them first. Asked again, the same key's file is written. Needs
    /// the identity of a present recipient.
    Stage(StageArgs),
    /// Make the staged key the present one: gateways that have it go over within a minute, all others stop.
    ///
    /// What appears under the old key an hour later counts for nobody; exit code 1 if the clocks of this machine and of the store are too far apart
    /// for that. Asked again, it shows how far the gateways are, and seals lanes that were
    /// left open under an older key. Needs the identity of a present recipient.
    Activate(ActivateArgs),
}

#[derive(clap::Args)]
struct StageArgs {
    #[command(flatten)]
    vault: VaultArgs,
    /// Where to write the next catalog key.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct ActivateArgs {
    #[command(flatten)]
    vault: VaultArgs,
    /// Wait up to five minutes until no lane is open under an older key. Exit code 1 if one still is.
    #[arg(long)]
    wait: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub(super) async fn run(args: Args) -> Outcome {
    match args.verb {
        Verb::Stage(args) => stage(args).await,
        Verb::Activate(args) => activate(args).await,
    }
}

/// The vault as its recipients open it: whatever file of a catalog key lies about may be an older one.
async fn open(args: &VaultArgs) -> Result<(Vault, Identity, Lists), Failure> {
    let store = args.store()?;
    let identity = args.keyring(&store)?.identity.ok_or_else(|| {
        Failure::usage(
            "a vault's catalog key is replaced by who can open the vault: give the identity of a present recipient with --identity \
             FILE or TIDEGATE_IDENTITY",
        )
    })?;
    let opened = async {
        let vault = Vault::open_with_identity(store, &identity).await?;
        let lists = vault.lists().await?;
        Ok::<_, VaultError>((vault, lists))
    };
    let (vault, lists) = opened.await.map_err(|error| Failure::of(&error))?;
    Ok((vault, identity, lists))
}

async fn stage(args: StageArgs) -> Outcome {
    must_be_free(&args.out)?;
    let (vault, identity, lists) = open(&args.vault).await?;
    let is_new = lists.staged().is_none();
    let staged = vault.stage_catalog_key(&identity, &lists, SystemClock::new().wall()).await;
    let (key, lists) = staged.map_err(|error| Failure::of(&error))?;
    let written = key.write(&args.out).and_then(|()| CatalogKey::read(&args.out));
    if let Err(error) = written {
        let failure = Failure::of(&error);
        let text =
            format!("catalog key {} is staged, but its file was not written: {}; ask again", key.kid(), failure.text);
        return Err(Failure { text, ..failure });
    }
    let present = lists.present();
    if args.json {
        let out = json!({
            "vault": args.vault.vault, "verb": "stage", "list": present.n, "catalog_kid": present.catalog_kid.to_string(),
            "staged_catalog_kid": key.kid().to_string(), "catalog_key_file": args.out, "new": is_new,
        });
        println!("{out}");
        return Ok(exit::OK);
    }
    println!("vault      {}", args.vault.vault);
    println!("list       {} of {}", present.n, present.made);
    println!("present    catalog key {}", present.catalog_kid);
    println!("staged     catalog key {}{}", key.kid(), if is_new { "" } else { ", as before" });
    println!("file       {}", args.out.display());
    println!(
        "next       put this file in the place of the old one on every gateway and keeper, and restart them one by one; then `tidegate \
         vault rotate activate`"
    );
    Ok(exit::OK)
}

/// What `activate` found and did.
struct Done {
    lists: Lists,
    activated: Activated,
    is_new: bool,
    /// Lanes that were sealed.
    sealed: Vec<OpenLane>,
    /// Lanes that are still open under an older key.
    open: Vec<OpenLane>,
}

async fn activate(args: ActivateArgs) -> Outcome {
    let (vault, identity, lists) = open(&args.vault).await?;
    let done = activated(&vault, &identity, lists, args.wait).await.map_err(|error| Failure::of(&error))?;
    if args.json {
        done.print_json(&args.vault.vault);
    } else {
        done.print(&args.vault.vault);
    }
    let is_done = done.activated.counts_until.is_some() && (done.open.is_empty() || !args.wait);
    Ok(if is_done { exit::OK } else { exit::ERROR })
}

async fn activated(vault: &Vault, identity: &Identity, lists: Lists, wait: bool) -> Result<Done, VaultError> {
    let staged = lists.staged();
    let (mut sealed, mut lists) = (Vec::new(), lists);
    if let Some(staged) = staged {
        // Whoever opened a lane by an older list may not understand what follows. Once more afterwards: one may have been opened meanwhile.
        sealed.extend(seal(vault, "catalog key", |lane| lane.list < staged.list).await?);
        lists = vault.activate_catalog_key(identity, &lists, SystemClock::new().wall()).await?;
        sealed.extend(seal(vault, "catalog key", |lane| lane.list < staged.list).await?);
    }
    let place = || vault.store().shown().to_owned();
    let activated = lists.activated().ok_or_else(|| VaultError::NothingStaged { place: place() })?;
    let present = lists.present().catalog_kid;
    if activated.counts_until.is_some_and(|until| SystemClock::new().wall() > until) {
        // Nothing more of them counts, so nobody writes them.
        sealed.extend(seal(vault, "catalog key", |lane| lane.catalog_kid != present).await?);
    }
    let mut waited = Duration::ZERO;
    loop {
        let mut open = vault.open_lanes().await?;
        open.retain(|lane| lane.catalog_kid != present);
        if open.is_empty() || !wait || waited >= WAIT_MAX {
            return Ok(Done { lists, activated, is_new: staged.is_some(), sealed, open });
        }
        tokio::time::sleep(WAIT_LOOK).await;
        waited += WAIT_LOOK;
    }
}

/// Seals the open lanes that are to be.
async fn seal(vault: &Vault, reason: &str, which: impl Fn(&OpenLane) -> bool) -> Result<Vec<OpenLane>, VaultError> {
    let mut lanes = vault.open_lanes().await?;
    lanes.retain(which);
    for lane in &lanes {
        vault.seal_lane(lane.lane, SystemClock::new().wall(), reason).await?;
    }
    Ok(lanes)
}

impl Done {
    fn print_json(&self, url: &str) {
        let lanes = |lanes: &[OpenLane]| -> Vec<serde_json::Value> {
            let one = |lane: &OpenLane| {
                json!({
                    "lane": lane.lane, "gateway": lane.gateway, "created": lane.created.to_string(),
                    "catalog_kid": lane.catalog_kid.to_string(),
                })
            };
            lanes.iter().map(one).collect()
        };
        let out = json!({
            "vault": url, "verb": "activate", "new": self.is_new, "list": self.activated.list, "made": self.activated.made.to_string(),
            "catalog_kid": self.lists.present().catalog_kid.to_string(), "replaced_catalog_kid": self.activated.older.to_string(),
            "older_counts_until": self.activated.counts_until.map(|until| until.to_string()), "sealed_lanes": lanes(&self.sealed),
            "open_lanes": lanes(&self.open),
        });
        println!("{out}");
    }

    fn print(&self, url: &str) {
        let Activated { list, made, .. } = self.activated;
        println!("vault      {url}");
        println!("present    catalog key {}, by list {list} of {made}", self.lists.present().catalog_kid);
        println!("replaced   {}", self.activated);
        for lane in &self.sealed {
            println!("sealed     lane {} of gateway {}, begun {}", lane.lane, lane.gateway, lane.created);
        }
        for lane in &self.open {
            println!(
                "open       lane {} of gateway {}, begun {}, under catalog key {}",
                lane.lane, lane.gateway, lane.created, lane.catalog_kid
            );
        }
        if self.open.is_empty() {
            println!("next       none: no lane is open under an older key; remove the old key's files");
        } else {
            println!(
                "next       gateways that have the new key end these lanes within a minute: ask again; one that is still here then has not \
                 got the new file, or was killed"
            );
        }
    }
}
