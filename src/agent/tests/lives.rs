//! Lives of agents and gateways: copies, reconnects, forks, overflows, crashes.

use super::*;
use crate::agent::placement::{self, Why};
use crate::agent::tracker::Mode;
use crate::nbd::client::Client;
use crate::types::BarrierKind;
use crate::wire::{ForkReason, Want};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_over_nbd_beside_the_initial_copy_arrive_as_they_are_on_the_disk() {
    let mut world = World::new(&["d1"]).await;
    world.config.copy_rate_bytes = 32 << 20;
    let agent = world.start_agent();
    let listen = world.config.disks[0].listen.clone();
    tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(&listen, "d1").expect("client");
        assert_eq!(client.size_bytes(), DISK_BYTES as u64);
        let mut dice = Dice(5);
        for _ in 0..300 {
            let offset = dice.roll(DISK_BYTES as u64 / 4096 - 64) * 4096;
            let data = vec![dice.roll(256) as u8; 4096 * (1 + dice.roll(40) as usize)];
            client.write(offset, &data, dice.roll(10) == 0).expect("write");
            let mut back = vec![0; data.len()];
            client.read(offset, &mut back).expect("read");
            assert_eq!(back, data);
        }
        client.flush().expect("flush");
        client.disconnect().expect("end");
    })
    .await
    .expect("guest");
    world.compare(&agent).await;
    assert_eq!(world.host.disk("d1").epochs(), [(1, ForkReason::NewDisk)]);
    assert!(agent.stop().await, "left clean");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_gateway_holds_no_guest_up_and_the_epoch_goes_on_when_it_is_back() {
    let mut world = World::new(&["d1"]).await;
    let agent = world.start_agent();
    let guest = Guest::start(&agent.disks()[0], 1);
    for _ in 0..3 {
        guest.goes_on(50).await;
        world.kill_gateway();
        guest.goes_on(100).await;
        world.start_gateway().await;
    }
    guest.stop().await;
    world.compare(&agent).await;
    assert_eq!(world.host.disk("d1").epochs().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_lost_its_journal_gets_everything_not_vaulted_again() {
    let mut world = World::new(&["d1"]).await;
    let agent = world.start_agent();
    world.compare(&agent).await;
    world.host.vault(false);
    let guest = Guest::start(&agent.disks()[0], 2);
    guest.goes_on(100).await;
    world.kill_gateway();
    world.host.lose_journal();
    world.host.vault(true);
    guest.goes_on(20).await;
    world.start_gateway().await;
    guest.goes_on(20).await;
    guest.stop().await;
    world.compare(&agent).await;
    assert_eq!(world.host.disk("d1").epochs(), [(1, ForkReason::NewDisk), (2, ForkReason::GatewayLost)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overflow_is_marked_and_copied_in_the_same_epoch() {
    let world = World::new(&["d1"]).await;
    let agent = world.start_agent();
    world.compare(&agent).await;
    world.host.window.send_replace(0);
    let guest = Guest::start(&agent.disks()[0], 3);
    let disk = &agent.disks()[0];
    until("an overflow", || disk.tracker().overflows() > 0).await;
    guest.goes_on(50).await;
    assert!(disk.tracker().queue().bytes() <= 8 << 20);
    world.host.window.send_replace(64 << 20);
    guest.stop().await;
    world.compare(&agent).await;
    assert_eq!(world.host.disk("d1").epochs().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_agent_sends_what_was_active_and_no_more() {
    let world = World::new(&["d1"]).await;
    let agent = world.start_agent();
    world.compare(&agent).await;
    agent.disks()[0].settle().expect("settled");
    world.host.vault(false);
    let splitter = Splitter::new(Arc::clone(&agent.disks()[0]));
    splitter.write(9 << 20, vec![7; 1 << 20].into(), false).expect("write");
    drop(splitter);
    world.crash(agent).await;
    // As if the last write had reached the disk, but no gateway.
    world.host.lose_journal();
    world.host.vault(true);
    overwrite(&world.path(0), 9 << 20, b"after the crash");
    let before = world.host.disk("d1").newest_records();

    let agent = world.start_agent();
    let marked = agent.disks()[0].tracker().dirty().must_send().len() * crate::limits::CHUNK_BYTES;
    assert_eq!(marked, 4 << 20, "one region");
    world.compare(&agent).await;
    assert_eq!(world.host.disk("d1").copied_bytes(DISK_BYTES as u64), 4 << 20, "the gateway had nothing to add");
    assert_eq!(world.host.disk("d1").epochs(), [(1, ForkReason::NewDisk), (2, ForkReason::UncleanStart)]);
    let opens = world.host.disk("d1").opens.lock();
    assert!(
        matches!(opens.last().expect("an open").want, Want::Fork { floor: Some((point, _)), .. } if point.seq.0 <= before)
    );
}

impl World {
    /// A machine made of this one as it is at this moment: disks and state, but not what the agent has in memory.
    fn copy_of_machine(&self) -> Config {
        let folder = self.folder.path().join("copy");
        let state_dir = folder.join("state");
        std::fs::create_dir_all(&state_dir).expect("folder");
        for name in
            std::fs::read_dir(&self.config.state_dir).expect("state").map(|entry| entry.expect("file").file_name())
        {
            if name.to_str().is_some_and(|name| name.ends_with(".state") || name.ends_with(".map")) {
                std::fs::copy(self.config.state_dir.join(&name), state_dir.join(&name)).expect("copied");
            }
        }
        let disks = self.config.disks.iter().map(|disk| {
            let path = folder.join(disk.path.file_name().expect("a name"));
            std::fs::copy(&disk.path, &path).expect("copied");
            DiskConfig { path, listen: Listen::Unix(folder.join("nbd.sock")), ..disk.clone() }
        });
        Config { state_dir, disks: disks.collect(), ..self.config.clone() }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_running_machine_keeps_nothing_that_the_original_wrote_since() {
    let mut world = World::new(&["d1"]).await;
    let agent = world.start_agent();
    world.compare(&agent).await;
    let disk = &agent.disks()[0];
    let write = |offset: u64, length: usize| {
        Splitter::new(Arc::clone(disk)).write(offset, vec![7; length].into(), false).expect("write");
    };
    // Of all that is vaulted when the copy is made, nothing is active any more, but the last of it.
    disk.settle().expect("settled");
    assert_eq!(disk.activity.active_regions(), 0);
    write(1 << 20, 4096);
    until("everything vaulted", || disk.all_vaulted()).await;
    let copy = world.copy_of_machine();
    write(9 << 20, 4096);
    write(20 << 20, 128 << 10);
    until("everything vaulted", || disk.all_vaulted()).await;
    world.crash(agent).await;

    world.config = copy;
    let copy = world.start_agent();
    world.compare(&copy).await;
    assert_eq!(world.host.disk("d1").epochs().len(), 2);
    let copied = world.host.disk("d1").copied_bytes(DISK_BYTES as u64);
    assert!(copied <= (4 << 20) + 3 * (64 << 10), "more than its own active region and three chunks: {copied}");
    // What it was told is remembered.
    world.crash(copy).await;
    let copy = world.start_agent();
    world.compare(&copy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_whose_answer_was_lost_is_told_the_same_again() {
    let mut world = World::new(&["d1"]).await;
    let agent = world.start_agent();
    world.compare(&agent).await;
    agent.disks()[0].settle().expect("settled");
    let copy = world.copy_of_machine();
    let splitter = Splitter::new(Arc::clone(&agent.disks()[0]));
    splitter.write(9 << 20, vec![7; 4096].into(), false).expect("write");
    drop(splitter);
    until("everything vaulted", || agent.disks()[0].all_vaulted()).await;
    world.crash(agent).await;
    world.config = copy;
    world.host.disk("d1").lose_answer.store(true, Ordering::SeqCst);
    let copy = world.start_agent();
    world.compare(&copy).await;
    assert_eq!(world.host.disk("d1").epochs().len(), 2, "the answer was lost, and the same epoch was opened");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_crash_again_and_again_under_load_and_nothing_is_lost() {
    let world = World::new(&["d1"]).await;
    for life in 0..4 {
        let agent = world.start_agent();
        let guest = Guest::start(&agent.disks()[0], life);
        guest.goes_on(if life % 2 == 0 { 30 } else { 300 }).await;
        let _ = agent.disks()[0].settle();
        guest.goes_on(30).await;
        guest.stop().await;
        world.crash(agent).await;
    }
    let agent = world.start_agent();
    world.compare(&agent).await;
    assert!(agent.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_stop_is_resumed_in_the_same_epoch_without_copying() {
    let world = World::new(&["d1"]).await;
    let agent = world.start_agent();
    let guest = Guest::start(&agent.disks()[0], 4);
    guest.goes_on(100).await;
    guest.stop().await;
    assert!(agent.stop().await, "left clean");
    let agent = world.start_agent();
    assert!(agent.disks()[0].tracker().dirty().must_send().is_empty());
    // What is written before is marked, and copied of course.
    until("the epoch", || agent.disks()[0].tracker().mode() == Mode::Recording).await;
    let guest = Guest::start(&agent.disks()[0], 5);
    guest.goes_on(50).await;
    guest.stop().await;
    world.compare(&agent).await;
    assert_eq!(world.host.disk("d1").epochs().len(), 1);
    assert!(agent.stop().await);
    let ends = world.host.disk("d1").points().iter().filter(|(_, kind, ..)| *kind == BarrierKind::SyncEnd).count();
    assert_eq!(ends, 1, "copied once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_changed_behind_the_agents_back_is_compared_as_a_whole() {
    let world = World::new(&["d1"]).await;
    let agent = world.start_agent();
    world.compare(&agent).await;
    assert!(agent.stop().await);
    overwrite(&world.path(0), 20 << 20, b"changed");
    let agent = world.start_agent();
    assert_eq!(agent.disks()[0].tracker().dirty().must_send().len() * crate::limits::CHUNK_BYTES, DISK_BYTES as u64);
    world.compare(&agent).await;
    assert_eq!(world.host.disk("d1").epochs()[1], (2, ForkReason::DiskChanged));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_state_directory_costs_a_copy_and_nothing_else() {
    let world = World::new(&["d1"]).await;
    let agent = world.start_agent();
    world.compare(&agent).await;
    world.crash(agent).await;
    std::fs::remove_dir_all(&world.config.state_dir).expect("lost");
    overwrite(&world.path(0), 1 << 20, &vec![0; 1 << 20]);
    let agent = world.start_agent();
    world.compare(&agent).await;
    assert_eq!(world.host.disk("d1").epochs().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lost_answer_to_a_fork_makes_no_second_epoch() {
    let world = World::new(&["d1"]).await;
    world.host.disk("d1").lose_answer.store(true, Ordering::SeqCst);
    let agent = world.start_agent();
    world.compare(&agent).await;
    assert_eq!(world.host.disk("d1").epochs().len(), 1);
    assert_eq!(world.host.disk("d1").opens.lock().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_starts_without_a_gateway_serves_its_guest_and_catches_up() {
    let mut world = World::new(&["d1"]).await;
    world.kill_gateway();
    let agent = world.start_agent();
    let guest = Guest::start(&agent.disks()[0], 6);
    guest.goes_on(200).await;
    world.start_gateway().await;
    guest.stop().await;
    world.compare(&agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_goes_to_the_next_gateway_when_its_own_is_lost_and_back_in_the_same_epoch() {
    let mut world = World::new(&["d1", "d2"]).await;
    let any: SocketAddr = "127.0.0.1:0".parse().expect("address");
    let other_tls = another_gateway(&world.folder.path().join("pki"), "g2");
    let other = Serving::start(&world.host, &other_tls, any).await;
    world.config.gateways.push(Gateway::new(other.address.to_string()));
    let ranked = placement::rank(&world.config.id, &world.config.gateways);
    let mut servings: Vec<(Serving, TlsFiles)> =
        world.serving.take().map(|serving| (serving, world.gateway_tls.clone())).into_iter().collect();
    servings.push((other, other_tls));
    servings.sort_by_key(|(serving, _)| ranked.iter().position(|address| *address == serving.address.to_string()));
    let agent = world.start_agent();
    let at = |at: usize| {
        let status = agent.control().status();
        status.address.as_ref() == Some(&ranked[at]) && status.disks.iter().all(|disk| disk.gateway.is_some())
    };
    until("the first choice", || at(0)).await;
    let guest = Guest::start(&agent.disks()[0], 9);
    guest.goes_on(50).await;
    let (first, first_tls) = servings.remove(0);
    let address = first.address;
    drop(first);
    until("the next gateway", || at(1)).await;
    assert_eq!(agent.control().status().why.as_deref(), Some(Why::FailOver.as_str()));
    guest.goes_on(50).await;
    let _first = Serving::start(&world.host, &first_tls, address).await;
    until("the first choice again", || at(0)).await;
    guest.goes_on(50).await;
    guest.stop().await;
    world.compare(&agent).await;
    // Both speak for one host, so nothing was lost, and no move forks.
    assert_eq!(world.host.disk("d1").epochs(), [(1, ForkReason::NewDisk)]);
    assert_eq!(world.host.disk("d2").epochs(), [(1, ForkReason::NewDisk)]);
    assert!(agent.stop().await, "left clean");
}
