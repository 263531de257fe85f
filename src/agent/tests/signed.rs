//! Barriers that the agent signs, and gateways that do not take such.

use super::*;
use crate::signed::{AgentCertificate, Signed};
use crate::types::RecordView;
use crate::wire::ForkReason;

fn certificate(world: &World) -> AgentCertificate {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let own = CertificateDer::from_pem_file(&world.config.tls.cert).expect("certificate");
    AgentCertificate::read(vec![own.to_vec()]).expect("an agent's")
}

/// Of each barrier whether it is signed; a signature must hold.
fn signed(world: &World, certificate: &AgentCertificate) -> Vec<bool> {
    let disk = DiskId::new("d1").expect("name");
    let judge = |record: &Vec<u8>| {
        let (view, _) = RecordView::split(record).expect("record");
        view.check_digest().expect("digest");
        let Some(block) = Signed::of(&view) else { return false };
        assert!(block.expect("a block").holds(certificate, &disk, &view), "{}", view.head.point());
        true
    };
    world.host.disk("d1").barriers().iter().map(judge).collect()
}

async fn more_barriers(world: &World, than: usize) {
    until("barriers", || world.host.disk("d1").barriers().len() > than + 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_barrier_is_signed_and_says_what_its_agent_was_told() {
    let world = World::new(&["d1"]).await;
    let agent = world.start_agent();
    world.compare(&agent).await;
    let guest = Guest::start(&agent.disks()[0], 41);
    more_barriers(&world, world.host.disk("d1").barriers().len()).await;
    guest.stop().await;
    world.compare(&agent).await;
    let all = signed(&world, &certificate(&world));
    assert!(all.len() > 4 && all.iter().all(|signed| *signed), "{all:?}");
    let barriers = world.host.disk("d1").barriers();
    let told = |record: &Vec<u8>| {
        let (view, _) = RecordView::split(record).expect("record");
        let told = Signed::of(&view).expect("signed").expect("a block").told?;
        assert!(told.at < view.head.point(), "{told:?} of {}", view.head.point());
        Some(told.at)
    };
    let told: Vec<_> = barriers.iter().filter_map(told).collect();
    assert!(!told.is_empty() && told.is_sorted(), "{told:?}");
    assert!(agent.stop().await, "left clean");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_gateway_gets_barriers_without_signatures_and_a_newer_one_after_it_gets_signed_ones() {
    let mut world = World::new(&["d1"]).await;
    world.kill_gateway();
    world.start_older_gateway().await;
    let agent = world.start_agent();
    world.compare(&agent).await;
    let guest = Guest::start(&agent.disks()[0], 42);
    more_barriers(&world, 0).await;
    world.kill_gateway();
    let certificate = certificate(&world);
    let older = signed(&world, &certificate);
    assert!(older.iter().all(|signed| !signed), "{older:?}");
    world.start_gateway().await;
    // What was made for the older one, until it was known to be gone, is sent again as it is.
    until("a signed barrier", || signed(&world, &certificate).last() == Some(&true)).await;
    more_barriers(&world, world.host.disk("d1").barriers().len()).await;
    guest.stop().await;
    world.compare(&agent).await;
    let all = signed(&world, &certificate);
    assert!(all.is_sorted() && all.len() > older.len() + 3, "signed from some one on: {all:?}");
    assert_eq!(world.host.disk("d1").epochs(), [(1, ForkReason::NewDisk)], "the epoch went on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_goes_back_to_an_older_gateway_and_is_protected_there() {
    let mut world = World::new(&["d1"]).await;
    let agent = world.start_agent();
    world.compare(&agent).await;
    let guest = Guest::start(&agent.disks()[0], 43);
    for _ in 0..3 {
        more_barriers(&world, world.host.disk("d1").barriers().len()).await;
        world.kill_gateway();
        world.start_older_gateway().await;
        more_barriers(&world, world.host.disk("d1").barriers().len()).await;
        world.kill_gateway();
        world.start_gateway().await;
    }
    guest.stop().await;
    world.compare(&agent).await;
    let all = signed(&world, &certificate(&world));
    assert!(all.contains(&true) && all.contains(&false), "{all:?}");
}
