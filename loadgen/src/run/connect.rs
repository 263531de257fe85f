//! Bringing all agents to the gateway and all disks to their beginning.

use std::sync::Arc;
use std::time::Duration;

use tidegate::cli::quickstart::load::Numbers;
use tidegate::fault::chain_text;
use tidegate::flow::{Clock as _, SystemClock};
use tidegate::types::Id128;
use tidegate::wire::{Client, ForkReason, Net, OpenDisk, Tuning, Want};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::certificates::{self, Agent};
use super::disk::{Common, Disk, Orders};
use super::pace::Pace;
use super::profile::Pattern;
use super::writer::Image;
use super::{Plan, RunError};

/// Handshakes at the same time: below what a gateway takes at once.
const HANDSHAKES_MAX: usize = 32;
/// Tries of one agent; a gateway that many come to may refuse the first ones.
const TRIES: u32 = 5;
const TRY_PAUSE: Duration = Duration::from_millis(500);

/// Connects everybody; returns when every disk is at its beginning and vaulted so far.
pub(super) async fn connect(plan: &Plan, common: &Arc<Common>) -> Result<Vec<Disk>, RunError> {
    let (authority, agents, disks) = (plan.authority.clone(), plan.agents, plan.disks);
    let mark = format!("l{:x}", SystemClock::new().wall().0 / 1000);
    let made = tokio::task::spawn_blocking(move || certificates::make(&authority, &mark, agents, disks)).await;
    let (folder, agents) = made.map_err(|error| RunError(error.to_string()))??;
    let (places, plan) = (Arc::new(Semaphore::new(HANDSHAKES_MAX)), Arc::new(plan.clone()));
    let mut tasks = JoinSet::new();
    for (number, agent) in agents.into_iter().enumerate() {
        let (places, plan, common) = (Arc::clone(&places), Arc::clone(&plan), Arc::clone(common));
        tasks.spawn(async move {
            let place = places.acquire_owned().await;
            let disks = connect_agent(&plan, number, &agent, &common).await?;
            drop(place);
            // Beyond the place: the gateway may vault the beginnings of many at once.
            begin(disks).await
        });
    }
    let mut all = Vec::with_capacity(plan.agents * plan.disks);
    let everybody = async {
        while let Some(done) = tasks.join_next().await {
            all.extend(done.map_err(|error| RunError(error.to_string()))??);
        }
        Ok(all)
    };
    let connected = timeout(plan.patience, everybody).await;
    drop(folder);
    connected.unwrap_or_else(|_| Err(RunError(format!("not all agents were connected within {:?}", plan.patience))))
}

async fn begin(mut disks: Vec<Disk>) -> Result<Vec<Disk>, RunError> {
    for disk in &mut disks {
        let begun = disk.begin().await;
        begun.map_err(|text| RunError(format!("disk {}: {text}", disk.id)))?;
    }
    Ok(disks)
}

async fn connect_agent(plan: &Plan, number: usize, agent: &Agent, common: &Arc<Common>) -> Result<Vec<Disk>, RunError> {
    let tuning = Tuning { transport: plan.transport, mtu_max_bytes: plan.mtu_max_bytes, ..Tuning::default() };
    let (clock, net) = (Arc::new(SystemClock::new()), Net::system());
    let mut tries = 1;
    let client = loop {
        match Client::connect_with(&plan.gateway, &agent.files, &tuning, Arc::clone(&clock) as _, &net).await {
            Ok(client) => break Arc::new(client),
            Err(error) if tries == TRIES => return Err(RunError(format!("agent {number}: {}", chain_text(&error)))),
            Err(_) => tokio::time::sleep(TRY_PAUSE * tries).await,
        }
        tries += 1;
    };
    let mut disks = Vec::with_capacity(plan.disks);
    for (at, id) in agent.disks.iter().enumerate() {
        let random = tidegate::keys::random::<16>().map_err(|error| RunError(error.to_string()))?;
        let want = Want::Fork { reason: ForkReason::NewDisk, floor: None };
        let open = OpenDisk { disk: id.clone(), size_bytes: plan.disk_bytes, nonce: Id128(random), want };
        let stream = client.open_disk(open).await;
        let stream = stream.map_err(|error| RunError(format!("disk {id}: {}", chain_text(&error))))?;
        let orders = orders(plan, number * plan.disks + at);
        disks.push(Disk::new(id.clone(), Arc::clone(&client), stream, orders, common));
    }
    Ok(disks)
}

/// What the disk of this number is to do.
pub(crate) fn orders(plan: &Plan, number: usize) -> Orders {
    let mut numbers = Numbers::new(plan.seed ^ (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let disks = (plan.agents * plan.disks) as f64;
    let bytes_per_second = plan.bytes_per_second as f64 / disks;
    // Somewhere within the time of one write, but never so late that nothing would come before the end.
    let profile = plan.profile.of_disk(number);
    let apart = if bytes_per_second > 0.0 { profile.typical_bytes() as f64 / bytes_per_second } else { 0.0 };
    let apart = plan.duration.map_or(apart, |duration| apart.min(duration.as_secs_f64() / 2.0));
    let phase = Duration::from_secs_f64(apart * numbers.below(1000) as f64 / 1000.0);
    let pace = Pace { bytes_per_second, ramp: plan.ramp, burst: profile.burst(), phase };
    let pattern = Pattern::new(profile, numbers.next(), plan.disk_bytes, plan.zero, Arc::clone(&plan.trace));
    let image = plan.keep_images.then(|| Image::new(plan.disk_bytes));
    Orders { number, profile, pattern, pace, image }
}
