//! A week of writes under a policy of one hour of barriers, by the clocks of life, with a keeper that dies again and again.
//!
//! Two lives: one is a machine's, which is copied whole and then writes mostly the same few places; in the other each disk is written anywhere, so
//! much that everything is new after three days. Sizes are told against the blocks that the kept images consist of, each once, and against the
//! messages that hold them.

use std::collections::BTreeMap;

use super::moving::noise;
use super::*;
use crate::keeper::config::Work;
use crate::limits::BATCH_BYTES_TARGET;
use crate::restore::history::History;
use crate::vault::rng::Rng;

/// Half an hour each.
const ROUNDS: u64 = 7 * 24 * 2;
const ROUNDS_OF_A_DAY: u64 = 48;
/// What a disk writes in a round: some blocks and a barrier.
const RECORDS: u64 = 5;
const BLOCK_BYTES: usize = 2048;
const HOUR: Duration = Duration::from_secs(3600);

/// A machine is copied in records of so many blocks, messages of so many records, and batches of so many messages of all disks. In life these are of
/// 1 MiB, 1 MiB and 16 MiB: here the disks are small.
const COPY_BLOCKS: u64 = 16;
const COPY_STEP: u64 = 4;
const COPY_BATCH: usize = 4;
/// Of batches of moved messages, as much smaller than in life.
const MOVED_BATCH_BYTES: usize = 256 << 10;
/// Of so many writes of a machine one goes anywhere, the others into its hot part.
const COLD_ONE_IN: u64 = 10;
/// The hot part is a twentieth of the disk, in so many stretches.
const HOT_SHARE: u64 = 20;
const HOT_STRETCHES: u64 = 4;

/// What the disks write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Writes {
    /// From nothing on, anywhere.
    Anywhere,
    /// All of it once, and then mostly the hot part.
    Machine,
}

/// How a week goes.
#[derive(Clone, Copy, Debug)]
struct Life {
    writes: Writes,
    /// Blocks of each disk.
    blocks: u64,
    /// Records of one message.
    step: u64,
    /// Whether the keeper moves messages.
    moves: bool,
    /// Into batches of so many bytes.
    batch_bytes: usize,
}

impl Life {
    /// Which block is written next.
    fn block(&self, chance: &mut Rng) -> u64 {
        if self.writes == Writes::Anywhere || chance.below(COLD_ONE_IN) == 0 {
            return chance.below(self.blocks);
        }
        let at = chance.below(self.blocks / HOT_SHARE);
        let (stretch, at) = (at % HOT_STRETCHES, at / HOT_STRETCHES);
        // None begins where a message of the copy does.
        self.blocks / HOT_STRETCHES * stretch + COPY_BLOCKS + at
    }
}

struct Week {
    site: Site,
    chance: Rng,
    life: Life,
    /// The last record of the full copy.
    copied: Seq,
    /// Keepers that were made to die so far.
    deaths: u64,
    /// What all objects took, and what was live, after each run of a keeper that lived.
    course: Vec<(u64, u64)>,
}

impl Week {
    async fn new(life: Life) -> Self {
        let store = FaultStore::new();
        let mut site = Site::over(Arc::clone(&store) as _, store, Vec::new(), 1, 1, 1).await;
        site.policies.default = Policy { every: Term::For(HOUR), app: NONE, ..app_points() };
        site.work = Work { moves: life.moves, batch_bytes: life.batch_bytes, ..Work::default() };
        site.set_time(Micros(1_800_000_000_000_000));
        site.vault.turn_by(&*site.clock).await;
        for name in ["sda", "sdb", "sdc", "sdd"] {
            let disk = ModelDisk::named(name, life.blocks * BLOCK_BYTES as u64);
            site.vault.fill(&[&disk], RECORDS, 1).await;
            site.disks.push(disk);
        }
        let mut week = Self { site, chance: Rng::seeded(11), life, copied: Seq::NONE, deaths: 0, course: Vec::new() };
        if life.writes == Writes::Machine {
            week.copy().await;
        }
        week
    }

    /// Copies the disks as they are, in large messages of blocks that follow each other.
    async fn copy(&mut self) {
        for disk in &mut self.site.disks {
            disk.barrier(BarrierKind::SyncBegin, "");
            for block in (0..self.life.blocks).step_by(COPY_BLOCKS as usize) {
                let bytes = noise(&mut self.chance, COPY_BLOCKS as usize * BLOCK_BYTES);
                disk.write(block * BLOCK_BYTES as u64, bytes);
            }
            disk.barrier(BarrierKind::SyncEnd, "");
        }
        self.copied = self.site.disks[0].head().seq;
        self.site.set_time(self.now());
        self.put(Seq(1), COPY_STEP, COPY_BATCH).await;
    }

    /// Half an hour: every disk writes, and all of it is one batch.
    async fn write(&mut self) {
        let first = self.site.disks[0].head().seq.next();
        let kind = if first == Seq(1) { BarrierKind::SyncEnd } else { BarrierKind::Crash };
        for disk in &mut self.site.disks {
            disk.wait(1800);
            for _ in 1..RECORDS {
                let block = self.life.block(&mut self.chance);
                disk.write(block * BLOCK_BYTES as u64, noise(&mut self.chance, BLOCK_BYTES));
            }
            disk.barrier(kind, "");
        }
        self.site.set_time(self.now());
        self.put(first, self.life.step, usize::MAX).await;
    }

    /// Vaults every disk's records from `first` on, in messages of `step` records and batches of `per_batch` messages.
    async fn put(&mut self, first: Seq, step: u64, per_batch: usize) {
        let end = self.site.disks[0].head().seq.0;
        let mut messages = Vec::new();
        for first in (first.0..=end).step_by(step as usize) {
            for disk in &self.site.disks {
                messages.push((disk, disk.message(Epoch(1), first, end.min(first + step - 1))));
            }
        }
        for batch in messages.chunks(per_batch) {
            self.site.vault.put_batch(batch).await;
        }
    }

    fn now(&self) -> Micros {
        self.site.disks[0].records[&Epoch(1)].last().unwrap().head.label
    }

    /// Another lane; every second one ends in order.
    async fn turn(&mut self, day: u64) {
        if day.is_multiple_of(2) {
            self.site.vault.put_lane_index(1, self.site.vault.next_batch - 1).await;
            self.site.vault.end().await;
        }
        self.site.vault.turn_by(&*self.site.clock).await;
    }

    /// A keeper that dies before or after some step that changes the vault, or comes to its end. In a week each step has its turn.
    async fn die(&mut self) {
        let steps = if self.life.moves { 60 } else { 24 };
        // Prime to the number of steps: they come mixed.
        let number = self.deaths * 47 % (2 * steps);
        self.deaths += 1;
        let (step, after) = ((number / 2) as usize, number.is_multiple_of(2));
        at_step(&self.site.store, step, move |first| if first && after { Fate::AnswerLost } else { Fate::Status(403) });
        let _ = self.site.once().await;
        self.site.store.plan(|_, _| Fate::Good);
    }

    /// The barriers of the last hour, and the newest.
    fn kept(&self, disk: &ModelDisk) -> Vec<PointId> {
        let from = self.now().0 - HOUR.as_micros() as u64;
        let records = disk.records[&Epoch(1)].iter();
        let barriers = records.filter(|record| record.extents.is_empty() && record.head.label.0 >= from);
        barriers.map(|record| PointId { epoch: Epoch(1), seq: record.head.seq }).collect()
    }

    /// The points that the policy keeps now, each with the image that a restore gives.
    async fn check(&self) {
        for disk in &self.site.disks {
            let history: History = self.site.history(disk).await;
            let points = points::list(&history);
            let kept = self.kept(disk);
            assert!(kept.len() >= 2, "{kept:?}");
            for point in kept {
                assert!(points.iter().any(|offered| offered.id == point), "{point} of {} is not offered", disk.id);
                let image = self.site.image(disk, point).await;
                assert!(image == Some(disk.image_at(point)), "{point} of {}", disk.id);
            }
        }
    }

    fn live_bytes(&self, kept: impl Fn(&ModelDisk) -> Vec<PointId>) -> u64 {
        let blocks = self.site.disks.iter().map(|disk| live(disk, &kept(disk)).len());
        blocks.sum::<usize>() as u64 * BLOCK_BYTES as u64
    }

    /// Of the full copy: bytes of the blocks that are live, and of all blocks of the messages that hold one.
    fn of_copy(&self) -> (u64, u64) {
        let (mut live_blocks, mut messages) = (0, BTreeSet::new());
        for disk in &self.site.disks {
            let live = live(disk, &self.kept(disk));
            for (at, _) in live.iter().filter(|(_, seq)| *seq <= self.copied) {
                live_blocks += 1;
                messages.insert((&disk.id, at / (COPY_BLOCKS * COPY_STEP * BLOCK_BYTES as u64)));
            }
        }
        let blocks = messages.len() as u64 * COPY_BLOCKS * COPY_STEP;
        (live_blocks * BLOCK_BYTES as u64, blocks * BLOCK_BYTES as u64)
    }

    /// Bytes of all objects.
    async fn total(&self) -> u64 {
        let objects = self.site.vault.vault.store().list(None).await.unwrap();
        objects.iter().map(|one| one.size_bytes).sum()
    }

    /// A week with keepers that die, and what is stored, needed and live in the end.
    async fn run(&mut self) -> Sizes {
        for round in 0..ROUNDS {
            if round > 0 && round.is_multiple_of(ROUNDS_OF_A_DAY) {
                self.turn(round / ROUNDS_OF_A_DAY).await;
            }
            self.write().await;
            match round % 8 {
                1 | 3 | 5 => self.die().await,
                7 => {
                    self.site.once().await.unwrap();
                    self.course.push((self.total().await, self.live_bytes(|disk| self.kept(disk))));
                }
                _ => {}
            }
            if round % 24 == 13 {
                self.check().await;
            }
        }
        self.check().await;
        self.sizes(|disk| self.kept(disk)).await
    }

    /// Then nobody writes any more, and a keeper that lives has two days: what is kept is the last state.
    async fn rest(&mut self) -> Sizes {
        self.site.vault.end().await;
        let mut moved = 0;
        for _ in 0..48 {
            self.site.wait(HOUR);
            moved += self.site.once().await.unwrap().moved.bytes;
        }
        for disk in &self.site.disks {
            assert!(self.site.image(disk, disk.head()).await == Some(disk.image_at(disk.head())));
        }
        println!("moved at rest: {moved} bytes");
        self.sizes(|disk| vec![disk.head()]).await
    }

    /// The most that was stored at once since `day`, as it was compared with what was live.
    fn peak(&self, day: u64) -> (u64, u64) {
        let from = (day * ROUNDS_OF_A_DAY / 8) as usize;
        let ratio = |(total, live): &(u64, u64)| *total as f64 / *live as f64;
        let since = &self.course[from..];
        let mean = since.iter().map(ratio).sum::<f64>() / since.len() as f64;
        let peak = *since.iter().max_by(|a, b| ratio(a).total_cmp(&ratio(b))).unwrap();
        println!("since day {day}: {mean:.3} times what is live on average, {:.3} at most", ratio(&peak));
        peak
    }

    async fn sizes(&self, kept: impl Fn(&ModelDisk) -> Vec<PointId>) -> Sizes {
        let plan = self.site.plan(self.site.clock.wall()).await;
        let waits = plan.unneeded.bytes + plan.marked.bytes;
        let (total, stored) = (self.total().await, plan.stored.bytes);
        let sizes = Sizes { total, stored, waits, needed: plan.needed_bytes, live: self.live_bytes(kept) };
        let Life { writes, blocks, step, moves, .. } = self.life;
        let over = |bytes: u64, of: u64| bytes as f64 / of as f64;
        println!(
            "{writes:?}, {blocks} blocks, {step} records a message, moves {moves}: {} batches\n\
             all objects {total}: {:.3} times the {} live, {:.3} times the {} needed\n\
             batches {stored}: {:.3} and {:.3}; without the {waits} that wait {:.3} and {:.3}; needed {:.3} times what is live",
            plan.stored.batches,
            over(total, sizes.live),
            sizes.live,
            over(total, sizes.needed),
            sizes.needed,
            over(stored, sizes.live),
            over(stored, sizes.needed),
            over(stored - waits, sizes.live),
            over(stored - waits, sizes.needed),
            over(sizes.needed, sizes.live),
        );
        sizes
    }
}

/// Bytes in the end.
struct Sizes {
    /// Of every object.
    total: u64,
    /// Of the batches.
    stored: u64,
    /// Of those: what goes once `delete_after` has passed.
    waits: u64,
    /// Of the messages that are needed.
    needed: u64,
    /// Of the blocks that are live, or kept history.
    live: u64,
}

/// The blocks that the images at these points consist of, each once, with the records that they are from.
fn live(disk: &ModelDisk, kept: &[PointId]) -> BTreeSet<(u64, Seq)> {
    let (mut owners, mut live) = (BTreeMap::new(), BTreeSet::new());
    for record in &disk.records[&Epoch(1)] {
        for extent in &record.extents {
            let blocks = (extent.offset_bytes..extent.end_bytes()).step_by(BLOCK_BYTES);
            owners.extend(blocks.map(|at| (at, record.head.seq)));
        }
        if kept.iter().any(|point| point.seq == record.head.seq) {
            live.extend(owners.iter().map(|(at, seq)| (*at, *seq)));
        }
    }
    live
}

/// `tenths` of `of`.
fn tenths(tenths: u64, of: u64) -> u64 {
    of * tenths / 10
}

/// The week that is promised: everything that stands in the vault, also what waits for its deletion, at any time of the week.
#[tokio::test(start_paused = true)]
async fn a_machines_week_takes_at_most_1_3_times_its_live_and_kept_blocks_whatever_step_keepers_die_at() {
    let life =
        Life { writes: Writes::Machine, blocks: 4096, step: RECORDS, moves: true, batch_bytes: MOVED_BATCH_BYTES };
    let mut week = Week::new(life).await;
    let sizes = week.run().await;
    let (live, whole) = week.of_copy();
    println!("of the full copy {live} bytes are live, {whole} are in messages that are needed");
    assert!(sizes.total <= tenths(13, sizes.live), "{} stored, {} live", sizes.total, sizes.live);
    let (total, live) = week.peak(0);
    assert!(total <= tenths(13, live), "{total} stored, {live} live");
}

#[tokio::test(start_paused = true)]
async fn a_week_of_writes_under_an_hour_of_barriers_has_every_kept_point_whatever_step_keepers_die_at() {
    let life =
        Life { writes: Writes::Anywhere, blocks: 64, step: RECORDS, moves: false, batch_bytes: BATCH_BYTES_TARGET };
    let mut week = Week::new(life).await;
    week.run().await;
    let batches = week.site.batches().await.len() as u64;
    // The open lane of the day, and marks that wait, are whole; so it is more than in a vault at rest.
    assert!(batches < ROUNDS / 2, "{batches} of {ROUNDS} batches stay");
    week.rest().await;
}

/// Messages of one write each: what stays is what is needed, and what sparse batches may have besides.
#[tokio::test(start_paused = true)]
async fn a_week_in_which_messages_move_has_every_kept_point_and_little_that_is_not_needed() {
    let life = Life { writes: Writes::Anywhere, blocks: 512, step: 1, moves: true, batch_bytes: BATCH_BYTES_TARGET };
    let mut week = Week::new(life).await;
    let sizes = week.run().await;
    week.peak(4);
    let stays = sizes.stored - sizes.waits;
    assert!(stays <= tenths(13, sizes.needed), "{stays} stay, {} needed", sizes.needed);
    let sizes = week.rest().await;
    assert!(sizes.stored <= tenths(13, sizes.needed), "{} stored, {} needed", sizes.stored, sizes.needed);
    assert!(sizes.stored <= tenths(15, sizes.live), "{} stored, {} live", sizes.stored, sizes.live);
}

/// The same in a vault of many batches, where what waits is bounded: a tenth of the vault, and what was marked without a move.
#[tokio::test(start_paused = true)]
async fn what_waits_for_its_deletion_is_bounded_where_much_is_written() {
    let life = Life { writes: Writes::Anywhere, blocks: 512, step: 1, moves: true, batch_bytes: MOVED_BATCH_BYTES };
    let mut week = Week::new(life).await;
    let sizes = week.run().await;
    assert!(sizes.waits <= tenths(2, sizes.stored), "{} of {} wait", sizes.waits, sizes.stored);
    assert!(sizes.stored <= tenths(22, sizes.needed), "{} stored, {} needed", sizes.stored, sizes.needed);
    let (total, live) = week.peak(4);
    assert!(total <= tenths(27, live), "{total} stored, {live} live");
}
