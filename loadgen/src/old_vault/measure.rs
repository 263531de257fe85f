//! What an old vault costs whoever recovers one disk of it, and what folding costs.

use std::collections::BTreeSet;
use std::time::Duration;

use tidegate::flow::{Clock as _, DrainTrigger, SystemClock};
use tidegate::keeper::fold;
use tidegate::restore::open::{MessagePlace, Scratch};
use tidegate::restore::plan::Plan;
use tidegate::restore::source::{self, Source};
use tidegate::restore::{pin, points};
use tidegate::vault::Vault;
use tidegate::vault::reader::Want;
use tokio::time::Instant;

use super::write::{OldVault, place};
use super::{Cost, Failed};

/// What was read of the disk.
#[derive(Clone, Debug)]
pub struct FirstByte {
    /// What it cost until the first bytes of the disk were there.
    pub cost: Cost,
    /// Recovery points that were offered.
    pub points: usize,
}

/// What folding cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Folded {
    /// Lanes that were folded as a whole.
    pub lanes: u64,
    /// Objects that were written.
    pub objects: u64,
    /// What it cost.
    pub cost: Cost,
}

/// Does what `tidegate export` does until the first bytes of the disk at its newest point can be given to a guest: opens the vault, reads what
/// it says of the disk, plans, pins, and reads one message. With or without folded indexes.
///
/// # Errors
/// A failed request, or bytes that are not those that were written.
pub async fn first_byte(old: &OldVault, folded: bool, latency: Duration) -> Result<FirstByte, Failed> {
    let store = old.store.measured(latency);
    let started = Instant::now();
    let vault = Vault::open_with_identity(place(&store), &old.identity).await?;
    let disk = old.disk();
    let want = Want { folded, ..Want::disk(&disk) };
    let catalog = source::load(&vault, &want).await?;
    if let Some(finding) = catalog.findings.first() {
        return Err(finding.to_string().into());
    }
    let history = source::history(&catalog, &disk, &vault.epochs(&disk).await?);
    let offered = points::list(&history);
    let newest = offered.last().ok_or("no point is offered")?.id;
    let (source, _) = Source::open(&vault, &old.identity, &catalog)?;
    let plan = Plan::build(&history, newest).ok_or("the point cannot be planned")?;
    pin::pin(&vault, &disk, newest, SystemClock::new().wall(), "export").await?;
    let messages = plan.reads.iter().flat_map(|read| read.messages.iter().map(move |message| (read.object, message)));
    let mut owners =
        messages.flat_map(|(object, message)| message.owned.iter().map(move |owned| (object, message.row, owned)));
    let (object, row, owned) =
        owners.find(|(.., owned)| owned.offset_bytes == 0).ok_or("nobody wrote the first byte")?;
    let meta = &history.rows[row].message;
    let range = meta.offset_bytes..meta.offset_bytes + u64::from(meta.stored_bytes);
    let sealed = vault.store().get_range(source.path(object), range).await?;
    source.make_ready(object, &disk, meta).await?;
    let under = source.sealed(object, &disk, meta);
    let key = under.key.map_err(|what| what.to_string())?;
    let opened =
        MessagePlace { vault: vault.id(), object: &under.object, key: &key, disk: &disk, disk_bytes: plan.disk_bytes };
    let mut scratch = Scratch::default();
    let opened = scratch.open(&opened, meta, &sealed)?;
    let bytes = opened.extent(owned.seq, owned.extent).ok_or("the extent is not there")?;
    let cost = store.cost(started.elapsed());
    if bytes != old.first_bytes() {
        return Err("the first bytes are not those that were written".into());
    }
    Ok(FirstByte { cost, points: offered.len() })
}

/// Folds every lane as a keeper does, without judging first: a verdict over many disks takes longer than all else.
///
/// # Errors
/// A failed request, or a lane that is not folded as a whole.
pub async fn fold(old: &OldVault, tell: impl Fn(u64)) -> Result<Folded, Failed> {
    let store = old.store.measured(Duration::ZERO);
    let started = Instant::now();
    let vault = Vault::open_with_identity(place(&store), &old.identity).await?;
    let (_trigger, stop) = DrainTrigger::new();
    let (mut folded, wanted) = (Folded::default(), old.lanes.iter().copied().collect::<BTreeSet<_>>());
    for listed in vault.lanes().await?.iter().filter(|listed| wanted.contains(&listed.lane)) {
        let report = fold::lane(&vault, listed, fold::Limits::default(), &stop).await?;
        folded.lanes += report.lanes_folded;
        folded.objects += report.folded_written;
        if let Some(note) = report.notes.first() {
            return Err(note.clone().into());
        }
        tell(folded.lanes);
    }
    if folded.lanes != wanted.len() as u64 {
        return Err(format!("{} of {} lanes were folded", folded.lanes, wanted.len()).into());
    }
    Ok(Folded { cost: store.cost(started.elapsed()), ..folded })
}
