//! Opening disks against a vault that other gateways write too.

use std::ops::Range;
use std::path::Path;

use super::bandwidth::calendar::Setting;
use super::disks::Disks;
use super::host::GatewayHost;
use super::lanes::Lanes;
use super::lookout::Lookout;
use super::overload::Overload;
use super::runs::{Mark, Session, Span};
use super::*;
use crate::flow::watch;
use crate::journal::{BackendChoice, JournalConfig};
use crate::limits::CHUNK_BYTES;
use crate::restore::tests::{ModelDisk, TestVault};
use crate::types::{Chain, DiskId, Epoch, Id128, Micros, PointId};
use crate::vault::objects::ShredObject;
use crate::wire::{AgentIdentity, Code, DiskRefusal, ForkReason, Host as _, OpenDisk, OpenedDisk, Want};

/// Gateway g2 in front of a vault that g1 has filled.
struct World {
    host: Arc<GatewayHost>,
    vault: TestVault,
    disk: ModelDisk,
    _window: watch::Sender<u64>,
}

fn disk_of(records: u64) -> ModelDisk {
    let mut disk = ModelDisk::new(1 << 20);
    for number in 0..records {
        disk.write((number % 64) * 4096, vec![number as u8; 512]);
    }
    disk
}

async fn world(dir: &Path, records: u64) -> World {
    let disk = disk_of(records);
    let mut vault = TestVault::in_memory().await;
    vault.fill(&[&disk], 5, 1).await;
    let config = JournalConfig {
        shards: 1,
        segment_bytes: 16 << 20,
        backend: BackendChoice::Std,
        ..JournalConfig::new(dir.to_owned(), 64 << 20)
    };
    let opened = tokio::task::spawn_blocking(move || Journal::open(&config, "g2")).await;
    let (journal, _) = opened.expect("no panic").expect("journal");
    let (window_sender, window) = watch::channel(8 << 20);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let host = Arc::new(GatewayHost {
        hello: HelloInfo { gateway: "g2".into(), vault: vault.vault.id() },
        journal,
        vault: Arc::new(vault.vault.clone()),
        disks: Arc::new(Disks::default()),
        window,
        clock: Arc::clone(&clock),
        overload: Overload::new(),
        live: Live::new(&GatewayConfig::parse(Path::new("gateway.toml"), config::DEFAULT_FILE).expect("valid"), &clock),
        lanes: Lanes::default(),
        roll: Arc::default(),
    });
    World { host, vault, disk, _window: window_sender }
}

/// Names it to gateways as the fork of one request.
const FORK_NONCE: Id128 = Id128([7; 16]);

async fn open(host: &GatewayHost, disk: &DiskId, want: Want) -> Result<OpenedDisk<sink::JournalSink>, DiskRefusal> {
    let disks = vec![disk.clone()];
    let agent = AgentIdentity { vault: host.hello.vault, agent: "a1".into(), disks };
    let nonce = if matches!(want, Want::Fork { .. }) { FORK_NONCE } else { Id128::NONE };
    host.open_disk(&agent, OpenDisk { disk: disk.clone(), size_bytes: 1 << 20, nonce, want }).await
}

impl World {
    fn chain(&self, seq: u64) -> Chain {
        self.disk.chain_at(PointId { epoch: Epoch(1), seq: Seq(seq) })
    }

    fn mark(&self, seq: u64) -> Mark {
        Mark { seq: Seq(seq), chain: Some(self.chain(seq)) }
    }

    async fn open(&self, want: Want) -> Result<OpenedDisk<sink::JournalSink>, DiskRefusal> {
        open(&self.host, &self.disk.id, want).await
    }

    async fn resume(&self, floor: u64, chain: Chain, first_held: u64) -> Result<Seq, DiskRefusal> {
        let (floor, first_held) = (Seq(floor), Seq(first_held));
        let opened = self.open(Want::Resume { epoch: Epoch(1), floor, floor_chain: chain, first_held }).await?;
        Ok(opened.next_seq)
    }
}

#[tokio::test]
async fn an_epoch_goes_on_where_the_vault_has_come_by_way_of_another_gateway() {
    let folder = tempfile::tempdir().expect("folder");
    let world = world(folder.path(), 30).await;
    assert_eq!(world.resume(12, world.chain(12), 20).await, Ok(Seq(31)));
    let gone = world.resume(12, world.chain(12), 33).await;
    assert!(
        matches!(gone, Err(DiskRefusal::MustFork { .. })),
        "31 and 32 were with the gateway that was lost: {gone:?}"
    );
}

#[tokio::test]
async fn an_agent_that_was_rolled_back_writes_no_second_account_although_this_gateway_knows_no_better() {
    let folder = tempfile::tempdir().expect("folder");
    let world = world(folder.path(), 30).await;
    // Carried here up to 10, then by g1 up to 30; the agent comes back as it was at 10.
    let run = world.host.disks.slot(&world.disk.id).run_or_new(Epoch(1));
    run.set_base(world.mark(10));
    assert_eq!(world.resume(10, world.chain(10), 11).await, Ok(Seq(31)), "the agent sees that its state is old");
}

#[tokio::test]
async fn an_agent_that_was_rolled_back_with_its_memory_writes_no_second_account_either() {
    let folder = tempfile::tempdir().expect("folder");
    let world = world(folder.path(), 30).await;
    world.host.disks.slot(&world.disk.id).run_or_new(Epoch(1)).set_base(world.mark(10));
    assert_eq!(world.resume(10, world.chain(10), 5).await, Ok(Seq(31)), "it holds 5 to 10 and more as they were then");
}

#[tokio::test]
async fn a_disk_that_was_shredded_is_neither_resumed_nor_begun_anew() {
    let folder = tempfile::tempdir().expect("folder");
    let world = world(folder.path(), 30).await;
    let (disk, lanes) = (world.disk.id.clone(), vec![world.vault.lane.id()]);
    let word = ShredObject { disk, made_micros: Micros(1), lanes, reason: "end of contract".into() };
    world.vault.vault.put_object(&vault::names::shred(&world.disk.id), &word).await.expect("written");
    let resumed = world.resume(30, world.chain(30), 31).await.expect_err("shredded");
    let forked = world.open(Want::Fork { reason: ForkReason::UncleanStart, floor: None }).await.map(|_| ());
    for refused in [resumed, forked.expect_err("shredded")] {
        assert_eq!((refused.code(), refused.code().fault()), (Code::Shredded, Fault::Reject), "{refused}");
        let text = refused.to_string();
        assert!(text.contains("end of contract") && text.contains("another name"), "{text}");
    }
    let epochs = world.vault.vault.epochs(&world.disk.id).await.expect("listed");
    assert_eq!(epochs.len(), 1, "and no epoch was begun");
}

#[tokio::test]
async fn another_account_of_a_record_is_refused_as_a_conflict() {
    let folder = tempfile::tempdir().expect("folder");
    let world = world(folder.path(), 30).await;
    for floor in [20, 30] {
        let refused = world.resume(floor, Chain([9; 32]), floor + 1).await.expect_err("another history");
        assert_eq!(refused.code(), Code::Conflict, "{refused}");
    }
    // Known here, and with records still held by the agent: the vault is not asked.
    world.host.disks.slot(&world.disk.id).run_or_new(Epoch(1)).set_base(world.mark(30));
    let refused = world.resume(30, Chain([9; 32]), 5).await.expect_err("another history");
    assert_eq!(refused.code(), Code::Conflict, "{refused}");
    let floor = Some((PointId { epoch: Epoch(1), seq: Seq(20) }, Chain([9; 32])));
    let opened = world.open(Want::Fork { reason: ForkReason::DiskChanged, floor }).await.expect("opened");
    assert_eq!(opened.epoch, Epoch(2));
    let epoch = world.vault.vault.newest_epoch(&world.disk.id).await.expect("read").expect("an epoch");
    assert_eq!(epoch.chain_at_fork, world.chain(30), "what is vaulted stays");
}

#[tokio::test]
async fn a_fork_of_an_agent_whose_account_is_one_of_two_goes_back_to_where_they_part() {
    // Its floor, and what this gateway itself knows to be vaulted of its account.
    for (floor, mark) in [(30, None), (30, Some(30)), (10, Some(30))] {
        let folder = tempfile::tempdir().expect("folder");
        let mut world = world(folder.path(), 30).await;
        let mut copy = disk_of(20);
        copy.write(0, vec![99; 512]);
        world.vault.put_batch(&[(&copy, copy.message(Epoch(1), 21, 21))]).await;
        let refused = world.resume(30, world.chain(30), 31).await.expect_err("neither account is believed");
        assert_eq!(refused.code(), Code::Conflict, "{refused}");
        if let Some(mark) = mark {
            world.host.disks.slot(&world.disk.id).run_or_new(Epoch(1)).set_base(world.mark(mark));
        }
        let floor = Some((PointId { epoch: Epoch(1), seq: Seq(floor) }, world.chain(floor)));
        let opened = world.open(Want::Fork { reason: ForkReason::UncleanStart, floor }).await.expect("opened");
        assert_eq!((opened.epoch, opened.touched), (Epoch(2), vec![0..16]));
        let epoch = world.vault.vault.newest_epoch(&world.disk.id).await.expect("read").expect("an epoch");
        assert_eq!((epoch.fork_seq, epoch.chain_at_fork), (Seq(20), world.chain(20)));
    }
}

#[tokio::test]
async fn a_fork_continues_where_the_vault_ends_whatever_the_agent_knows() {
    let folder = tempfile::tempdir().expect("folder");
    let world = world(folder.path(), 30).await;
    let floor = Some((PointId { epoch: Epoch(1), seq: Seq(12) }, world.chain(12)));
    let opened = world.open(Want::Fork { reason: ForkReason::GatewayLost, floor }).await.expect("opened");
    assert_eq!((opened.epoch, opened.next_seq), (Epoch(2), Seq(1)));
    let epoch = world.vault.vault.newest_epoch(&world.disk.id).await.expect("read").expect("an epoch");
    assert_eq!((epoch.fork_seq, epoch.chain_at_fork), (Seq(30), world.chain(30)));
    assert_eq!(epoch.gateway, "g2");
}

/// Vaulted by way of g1: records 1 to 30 in the first two chunks, and in each of the chunks 4, 8 and 12 one record of 31 to 33.
async fn spread(dir: &Path) -> World {
    let mut world = world(dir, 30).await;
    for chunk in [4, 8, 12] {
        world.disk.write(chunk * CHUNK_BYTES + 512, vec![1; 512]);
    }
    world.vault.put_batch(&[(&world.disk, world.disk.message(Epoch(1), 31, 33))]).await;
    world
}

impl World {
    /// What an agent with that floor is told to compare when it forks.
    async fn touched(&self, epoch: u64, floor: u64, chain: Chain) -> Vec<Range<u32>> {
        let floor = Some((PointId { epoch: Epoch(epoch), seq: Seq(floor) }, chain));
        self.open(Want::Fork { reason: ForkReason::UncleanStart, floor }).await.expect("opened").touched
    }
}

#[tokio::test]
async fn a_fork_names_the_chunks_that_were_written_behind_the_agents_back() {
    for (floor, touched) in
        [(33, vec![]), (32, vec![12..13]), (30, vec![4..5, 8..9, 12..13]), (0, vec![0..2, 4..5, 8..9, 12..13])]
    {
        let folder = tempfile::tempdir().expect("folder");
        let world = spread(folder.path()).await;
        assert_eq!(world.touched(1, floor, world.chain(floor)).await, touched, "floor {floor}");
    }
    // This gateway knows how far the epoch is vaulted, but not what the agent knows of it.
    let folder = tempfile::tempdir().expect("folder");
    let world = spread(folder.path()).await;
    world.host.disks.slot(&world.disk.id).run_or_new(Epoch(1)).set_base(world.mark(33));
    assert_eq!(world.touched(1, 31, world.chain(31)).await, [8..9, 12..13]);
}

#[tokio::test]
async fn a_fork_whose_agent_shares_no_known_place_with_the_vault_is_told_the_whole_disk() {
    let whole = [0..16_u32];
    let folder = tempfile::tempdir().expect("folder");
    let world = spread(folder.path()).await;
    let without = world.open(Want::Fork { reason: ForkReason::UncleanStart, floor: None }).await.expect("opened");
    assert_eq!(without.touched, whole);
    for (epoch, floor, chain) in [(1, 33, Chain([9; 32])), (1, 0, Chain([9; 32])), (7, 20, Chain([9; 32]))] {
        let folder = tempfile::tempdir().expect("folder");
        let world = spread(folder.path()).await;
        assert_eq!(world.touched(epoch, floor, chain).await, whole, "e{epoch}-s{floor}");
    }
    // Vaulted as far as this gateway knows, and not to be found.
    let folder = tempfile::tempdir().expect("folder");
    let mut world = spread(folder.path()).await;
    world.disk.write(4096, vec![2; 512]);
    world.host.disks.slot(&world.disk.id).run_or_new(Epoch(1)).set_base(world.mark(34));
    assert_eq!(world.touched(1, 31, world.chain(31)).await, whole);
}

#[tokio::test]
async fn an_epoch_without_records_between_floor_and_fork_hides_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let mut world = spread(folder.path()).await;
    // Begun for an agent that crashed before it had remembered it.
    world.disk.fork(Seq(33));
    world.disk.epochs[1].nonce = Id128([8; 16]);
    world.vault.vault.create_epoch(&world.disk.epochs[1]).await.expect("created");
    assert_eq!(world.touched(1, 31, world.chain(31)).await, [8..9, 12..13]);
    let newest = world.vault.vault.newest_epoch(&world.disk.id).await.expect("read").expect("an epoch");
    assert_eq!(newest.epoch, Epoch(3));

    for (floor, touched) in [(31, vec![8..9, 12..13]), (33, vec![])] {
        let folder = tempfile::tempdir().expect("folder");
        let world = spread(folder.path()).await;
        let chain = world.chain(floor);
        world.touched(1, floor, chain).await;
        assert_eq!(world.touched(1, floor, chain).await, touched, "the answer was lost, and it was asked for again");
        let newest = world.vault.vault.newest_epoch(&world.disk.id).await.expect("read").expect("an epoch");
        assert_eq!(newest.epoch, Epoch(2));
    }
}

#[tokio::test]
async fn an_agent_that_knows_more_than_what_a_fork_left_compares_the_whole_disk() {
    for used in [false, true] {
        let folder = tempfile::tempdir().expect("folder");
        let mut world = spread(folder.path()).await;
        let chain = world.chain(33);
        // A copy of the machine forked while 33 was on its way.
        world.disk.fork(Seq(32));
        world.disk.epochs[1].nonce = Id128([8; 16]);
        world.vault.vault.create_epoch(&world.disk.epochs[1]).await.expect("created");
        if used {
            world.disk.write(0, vec![3; 512]);
            world.vault.put_batch(&[(&world.disk, world.disk.message(Epoch(2), 1, 1))]).await;
        }
        assert_eq!(world.touched(1, 33, chain).await, [0..16_u32], "used: {used}");
    }
}

#[tokio::test]
async fn an_agent_whose_epoch_is_not_the_newest_is_fenced() {
    let folder = tempfile::tempdir().expect("folder");
    let world = world(folder.path(), 30).await;
    let floor = Some((PointId { epoch: Epoch(1), seq: Seq(30) }, world.chain(30)));
    world.open(Want::Fork { reason: ForkReason::Operator, floor }).await.expect("opened");
    let clone = world.resume(30, world.chain(30), 31).await;
    assert_eq!(clone, Err(DiskRefusal::Fenced { newest: Epoch(2) }), "what it wrote would never count");
}

/// Records 31 to 30 + `more` stand in the journal; of those below, which are vaulted, this gateway knows only up to `mark`.
fn journaled_above_a_gap(world: &mut World, mark: Option<u64>, more: u64) -> Span {
    for number in 0..more {
        world.disk.write(number * 4096, vec![0xee; 512]);
    }
    let span = Span { first: Seq(31), last: Seq(30 + more), chain_last: world.chain(30 + more) };
    let run = world.host.disks.slot(&world.disk.id).run_or_new(Epoch(1));
    run.found_in_journal(span);
    if let Some(mark) = mark {
        run.set_base(world.mark(mark));
    }
    span
}

#[tokio::test]
async fn a_fork_waits_for_what_is_journaled_above_records_that_only_the_vault_knows() {
    for mark in [None, Some(20)] {
        let folder = tempfile::tempdir().expect("folder");
        let mut world = world(folder.path(), 30).await;
        let span = journaled_above_a_gap(&mut world, mark, 5);
        let run = world.host.disks.slot(&world.disk.id).run_or_new(Epoch(1));
        let floor = Some((PointId { epoch: Epoch(1), seq: Seq(12) }, world.chain(12)));
        let fork = world.open(Want::Fork { reason: ForkReason::UncleanStart, floor });
        tokio::pin!(fork);
        let early = tokio::time::timeout(Duration::from_millis(300), &mut fork).await;
        assert!(early.is_err(), "forked although records 31 to 35 are journaled here and not vaulted");
        run.span_vaulted(span);
        fork.await.expect("opened");
        let epoch = world.vault.vault.newest_epoch(&world.disk.id).await.expect("read").expect("an epoch");
        assert_eq!((epoch.fork_seq, epoch.chain_at_fork), (Seq(35), world.chain(35)));
    }
}

/// While a fork under [`FORK_NONCE`] waits here for the vault, another gateway begins an epoch under `nonce`, and vaults
/// records of it if `used`. Returns what comes of the fork, and the vault's newest epoch then.
async fn overtaken(nonce: Id128, used: bool) -> (Result<Epoch, DiskRefusal>, Epoch) {
    let folder = tempfile::tempdir().expect("folder");
    let mut world = world(folder.path(), 30).await;
    let span = journaled_above_a_gap(&mut world, None, 5);
    let run = world.host.disks.slot(&world.disk.id).run_or_new(Epoch(1));
    world.disk.fork(Seq(30));
    world.disk.epochs[1].nonce = nonce;
    for number in 0..3 {
        world.disk.write(number * 4096, vec![3; 512]);
    }
    let want = Want::Fork { reason: ForkReason::GatewayLost, floor: None };
    let fork = open(&world.host, &world.disk.id, want);
    tokio::pin!(fork);
    let early = tokio::time::timeout(Duration::from_millis(300), &mut fork).await;
    assert!(early.is_err(), "records 31 to 35 are journaled here and not vaulted");
    world.vault.vault.create_epoch(&world.disk.epochs[1]).await.expect("created elsewhere");
    if used {
        world.vault.put_batch(&[(&world.disk, world.disk.message(Epoch(2), 1, 3))]).await;
    }
    run.span_vaulted(span);
    let answer = fork.await.map(|opened| opened.epoch);
    let newest = world.vault.vault.newest_epoch(&world.disk.id).await.expect("read").expect("an epoch");
    (answer, newest.epoch)
}

#[tokio::test]
async fn a_fork_that_was_answered_elsewhere_begins_no_second_epoch() {
    let (answer, newest) = overtaken(FORK_NONCE, true).await;
    assert!(matches!(answer, Err(DiskRefusal::MustFork { .. })), "{answer:?}");
    assert_eq!(newest, Epoch(2), "another one would fence the agent, and cut off what is vaulted");
    let (answer, newest) = overtaken(FORK_NONCE, false).await;
    assert_eq!((answer, newest), (Ok(Epoch(2)), Epoch(2)), "only the answer was lost");
}

/// A machine that sleeps for an hour whenever it is asked how long it has been there.
struct Sleeper(SystemClock, std::sync::atomic::AtomicU64);

impl Clock for Sleeper {
    fn wall(&self) -> Micros {
        self.0.wall()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn boot(&self) -> Duration {
        Duration::from_secs(3600 * self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
    }
}

#[tokio::test]
async fn an_epoch_is_never_forked_from_a_look_from_before_the_machine_slept() {
    let folder = tempfile::tempdir().expect("folder");
    let mut world = world(folder.path(), 30).await;
    let clock = Arc::new(Sleeper(SystemClock::new(), std::sync::atomic::AtomicU64::new(0)));
    Arc::get_mut(&mut world.host).expect("not shared yet").clock = clock;
    let answer =
        world.open(Want::Fork { reason: ForkReason::GatewayLost, floor: None }).await.map(|opened| opened.epoch);
    assert!(matches!(answer, Err(DiskRefusal::Refused { .. })), "{answer:?}");
    let newest = world.vault.vault.newest_epoch(&world.disk.id).await.expect("read").expect("an epoch");
    assert_eq!(newest.epoch, Epoch(1), "what the keeper took for settled may lie above the fork");
}

#[tokio::test]
async fn a_fork_that_another_epoch_overtook_is_to_be_asked_for_again() {
    let (answer, newest) = overtaken(Id128([8; 16]), true).await;
    assert_eq!(answer.expect_err("overtaken").code(), Code::Unavailable);
    assert_eq!(newest, Epoch(2));
}

#[tokio::test]
async fn a_fork_does_not_wait_for_records_that_another_gateway_forked_away() {
    let folder = tempfile::tempdir().expect("folder");
    let mut world = world(folder.path(), 30).await;
    journaled_above_a_gap(&mut world, Some(30), 5);
    world.disk.fork(Seq(30));
    world.vault.vault.create_epoch(&world.disk.epochs[1]).await.expect("created elsewhere");
    let opened = world.open(Want::Fork { reason: ForkReason::UncleanStart, floor: None }).await.expect("opened");
    assert_eq!(opened.epoch, Epoch(3));
    assert!(world.host.disks.slot(&world.disk.id).run(Epoch(1)).is_none());
}

#[tokio::test]
async fn a_gap_that_no_agent_closes_is_closed_from_the_vault() {
    let folder = tempfile::tempdir().expect("folder");
    let mut world = world(folder.path(), 30).await;
    let span = journaled_above_a_gap(&mut world, Some(20), 5);
    let slot = world.host.disks.slot(&world.disk.id);
    let run = slot.run_or_new(Epoch(1));
    run.span_vaulted(span);
    assert!(run.has_gap());
    lookout::close_gap(&world.host, &slot).await.expect("read");
    assert!(!run.has_gap());
    assert_eq!(run.vaulted_mark(), Some(world.mark(35)));
}

#[tokio::test]
async fn a_lane_whose_registration_is_lost_does_not_keep_its_disks_from_going_on() {
    let folder = tempfile::tempdir().expect("folder");
    let world = world(folder.path(), 30).await;
    let lane = vault::names::lane(world.vault.lane.id());
    world.vault.tamper(&lane, |_| None).await;
    world.host.disks.slot(&world.disk.id).run_or_new(Epoch(1)).set_base(world.mark(10));
    assert_eq!(world.resume(10, world.chain(10), 11).await, Ok(Seq(31)));
}

#[tokio::test]
async fn an_epoch_goes_on_above_records_that_only_the_vault_knows() {
    let folder = tempfile::tempdir().expect("folder");
    let mut world = world(folder.path(), 30).await;
    journaled_above_a_gap(&mut world, Some(20), 5);
    assert_eq!(world.resume(20, world.chain(20), 36).await, Ok(Seq(36)), "the agent holds nothing below 36 any more");
}

#[tokio::test]
async fn a_newer_epoch_from_elsewhere_ends_session_and_runs_within_a_look() {
    let folder = tempfile::tempdir().expect("folder");
    let mut world = world(folder.path(), 30).await;
    let slot = world.host.disks.slot(&world.disk.id);
    slot.run_or_new(Epoch(1)).set_base(world.mark(30));
    let session = Session::new();
    slot.take_over(session.clone());
    let mut lookout = Lookout::new(Arc::clone(&world.host));
    lookout.first_round().await;
    assert!(slot.run(Epoch(1)).is_some() && session.fenced.borrow().is_none());

    world.disk.fork(Seq(25));
    let (disk, now) = (&world.disk.id, world.host.clock.wall());
    world.vault.vault.announce_epoch(disk, Epoch(2), now).await.expect("announced");
    lookout.round().await;
    assert!(slot.run(Epoch(1)).is_some(), "an announcement alone is none");
    world.vault.vault.create_epoch(&world.disk.epochs[1]).await.expect("created elsewhere");
    lookout.round().await;
    assert!(slot.runs().is_empty());
    assert_eq!(*session.fenced.borrow(), Some(Epoch(2)));
}

#[tokio::test]
async fn a_round_costs_one_listing_and_a_start_looks_at_every_disk() {
    let folder = tempfile::tempdir().expect("folder");
    let mut world = world(folder.path(), 30).await;
    let slot = world.host.disks.slot(&world.disk.id);
    slot.run_or_new(Epoch(1)).set_base(world.mark(30));
    world.disk.fork(Seq(25));
    world.vault.vault.create_epoch(&world.disk.epochs[1]).await.expect("created elsewhere, and never announced");
    let mut lookout = Lookout::new(Arc::clone(&world.host));
    lookout.round().await;
    assert!(slot.run(Epoch(1)).is_some(), "nobody asked for this disk");
    lookout.first_round().await;
    assert!(slot.runs().is_empty());
}

#[tokio::test]
async fn an_epoch_is_announced_before_it_begins() {
    let folder = tempfile::tempdir().expect("folder");
    let world = world(folder.path(), 30).await;
    let floor = Some((PointId { epoch: Epoch(1), seq: Seq(30) }, world.chain(30)));
    world.open(Want::Fork { reason: ForkReason::Operator, floor }).await.expect("forked");
    let hour = vault::names::hour(world.host.clock.wall());
    let announced = world.vault.vault.announced_epochs(hour).await.expect("listed");
    assert_eq!(announced, [(world.disk.id.clone(), Epoch(2))]);
}

#[tokio::test]
async fn a_disk_that_comes_again_owes_its_limit_what_it_took_before() {
    let folder = tempfile::tempdir().expect("folder");
    let world = world(folder.path(), 30).await;
    let limit = Setting::BytesPerSecond(1 << 20);
    world.host.live.bandwidth.set([Setting::Unsaid, Setting::Unsaid, limit], Duration::from_secs(3600));
    let open = || world.open(Want::Fork { reason: ForkReason::UncleanStart, floor: None });
    let first = open().await.expect("opened");
    first.pace.charge(60 << 20);
    drop(first);
    let owed = open().await.expect("opened").pace.opens_in();
    assert!(owed.is_some_and(|owed| owed > Duration::from_secs(50)), "{owed:?}");
}
