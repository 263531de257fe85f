//! `tidegate pki`.

use std::path::{Path, PathBuf};

use super::{Failure, Outcome};
use crate::fault::exit;
use crate::flow::{Clock, SystemClock};
use crate::types::{DiskId, Id128};
use crate::wire::pki::{self, AUTHORITY_DAYS_DEFAULT, IssueOptions, Issued, LEAF_DAYS_DEFAULT};

/// Options of `tidegate pki`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Make the private certificate authority of a vault.
    Init {
        #[command(flatten)]
        common: Common,
        /// The vault's id: 32 hexadecimal digits, as `tidegate vault init` prints it.
        #[arg(long, value_name = "ID")]
        vault_id: Id128,
    },
    /// Issue a certificate from the authority in the folder.
    Issue {
        #[command(flatten)]
        common: Common,
        /// Renew: a new certificate for the key that is there, which takes the place of the old one. The key need not be
        /// copied again, so a gateway takes it up by a reload.
        #[arg(long, conflicts_with = "force")]
        keep_key: bool,
        #[command(subcommand)]
        holder: Holder,
    },
}

#[derive(clap::Args)]
struct Common {
    /// Folder of the authority; certificates and keys are written there.
    // Global options cannot be required by the parser; `folder` requires it.
    #[arg(long, value_name = "DIR", global = true)]
    dir: Option<PathBuf>,
    /// Days of validity [default: 3650 for the authority, 397 for others].
    #[arg(long, global = true)]
    days: Option<u32>,
    /// Replace files that exist.
    #[arg(long, global = true)]
    force: bool,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Holder {
    /// For an agent: names the disks that it may write.
    Agent {
        /// The agent's id.
        #[arg(long)]
        id: String,
        /// A disk that it may write; may be given several times.
        #[arg(long = "disk", value_name = "DISK", required = true)]
        disks: Vec<DiskId>,
    },
    /// For a gateway: names the hosts under which agents reach it.
    Gateway {
        /// The gateway's id.
        #[arg(long)]
        id: String,
        /// DNS name or IP address under which agents reach it; may be given several times.
        #[arg(long = "host", value_name = "HOST", required = true)]
        hosts: Vec<String>,
    },
}

impl Common {
    fn folder(&self) -> Result<&Path, Failure> {
        self.dir.as_deref().ok_or_else(|| Failure::usage("which folder holds the authority? Give --dir DIR"))
    }

    fn options(&self, days_default: u32) -> IssueOptions {
        let now = SystemClock::new().wall();
        IssueOptions { now, days: self.days.unwrap_or(days_default), force: self.force, keep_key: false }
    }
}

/// Runs the verb.
pub fn run(args: Args) -> Outcome {
    let (common, issued) = match args.verb {
        Verb::Init { common, vault_id } => {
            let issued = pki::init(common.folder()?, vault_id, common.options(AUTHORITY_DAYS_DEFAULT));
            (common, issued)
        }
        Verb::Issue { common, keep_key, holder } => {
            let (dir, options) = (common.folder()?, IssueOptions { keep_key, ..common.options(LEAF_DAYS_DEFAULT) });
            let issued = match holder {
                Holder::Agent { id, disks } => pki::issue_agent(dir, &id, &disks, options),
                Holder::Gateway { id, hosts } => pki::issue_gateway(dir, &id, &hosts, options),
            };
            (common, issued)
        }
    };
    let issued = issued.map_err(|error| Failure::of(&error))?;
    show(&issued, common.json)?;
    Ok(exit::OK)
}

fn show(issued: &Issued, json: bool) -> Result<(), Failure> {
    if json {
        println!("{}", serde_json::to_string(issued)?);
        return Ok(());
    }
    println!("identity     {}", issued.identity);
    println!("certificate  {}", issued.cert.display());
    println!("key          {}  (keep it secret)", issued.key.display());
    println!("authority    {}", issued.ca.display());
    println!("valid until  {}", issued.not_after);
    Ok(())
}
