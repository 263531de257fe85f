//! A week of writes under a policy of one hour of barriers, by the clocks of life, with a keeper that dies again and again.

use std::collections::BTreeMap;

use super::moving::noise;
use super::*;
use crate::keeper::config::Work;
use crate::restore::history::History;
use crate::vault::rng::Rng;

/// Half an hour each.
const ROUNDS: u64 = 7 * 24 * 2;
const ROUNDS_OF_A_DAY: u64 = 48;
/// What a disk writes in a round: some blocks and a barrier.
const RECORDS: u64 = 5;
const BLOCK_BYTES: usize = 2048;
const HOUR: Duration = Duration::from_secs(3600);

/// How a week goes.
#[derive(Clone, Copy)]
struct Life {
    /// Blocks of each disk.
    slots: u64,
    /// Records of one message.
    step: u64,
    /// Whether the keeper moves messages.
    moves: bool,
}

struct Week {
    site: Site,
    chance: Rng,
    life: Life,
}

impl Week {
    async fn new(life: Life) -> Self {
        let store = FaultStore::new();
        let mut site = Site::over(Arc::clone(&store) as _, store, Vec::new(), 1, 1, 1).await;
        site.policies.default = Policy { every: Term::For(HOUR), app: NONE, ..app_points() };
        site.work = Work { moves: life.moves, ..Work::default() };
        site.set_time(Micros(1_800_000_000_000_000));
        site.vault.turn_by(&*site.clock).await;
        for name in ["sda", "sdb", "sdc", "sdd"] {
            let disk = ModelDisk::named(name, life.slots << 12);
            site.vault.fill(&[&disk], RECORDS, 1).await;
            site.disks.push(disk);
        }
        Self { site, chance: Rng::seeded(11), life }
    }

    /// Half an hour: every disk writes at random, and all of it is one batch.
    async fn write(&mut self, round: u64) {
        let (first, end) = (round * RECORDS + 1, (round + 1) * RECORDS);
        for disk in &mut self.site.disks {
            disk.wait(1800);
            for _ in 1..RECORDS {
                disk.write(self.chance.below(self.life.slots) << 12, noise(&mut self.chance, BLOCK_BYTES));
            }
            disk.barrier(if round == 0 { BarrierKind::SyncEnd } else { BarrierKind::Crash }, "");
        }
        self.site.set_time(self.now());
        let mut batch = Vec::new();
        for disk in &self.site.disks {
            for first in (first..=end).step_by(self.life.step as usize) {
                batch.push((disk, disk.message(Epoch(1), first, end.min(first + self.life.step - 1))));
            }
        }
        self.site.vault.put_batch(&batch).await;
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

    /// A keeper that dies before or after some step that changes the vault, or comes to its end.
    async fn die(&mut self) {
        let steps = if self.life.moves { 60 } else { 24 };
        let (step, after) = (self.chance.below(steps) as usize, self.chance.below(2) == 0);
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

    /// Bytes of the blocks that the images at these points consist of, each once.
    fn live(&self, kept: impl Fn(&ModelDisk) -> Vec<PointId>) -> u64 {
        let mut bytes = 0;
        for disk in &self.site.disks {
            let kept = kept(disk);
            let (mut owners, mut live) = (BTreeMap::new(), BTreeSet::new());
            for record in &disk.records[&Epoch(1)] {
                owners.extend(record.extents.iter().map(|extent| (extent.offset_bytes, record.head.seq)));
                if kept.iter().any(|point| point.seq == record.head.seq) {
                    live.extend(owners.iter().map(|(offset_bytes, seq)| (*offset_bytes, *seq)));
                }
            }
            bytes += (live.len() * BLOCK_BYTES) as u64;
        }
        bytes
    }

    /// A week with keepers that die, and what is stored, needed and live in the end.
    async fn run(&mut self) -> Sizes {
        for round in 0..ROUNDS {
            if round > 0 && round.is_multiple_of(ROUNDS_OF_A_DAY) {
                self.turn(round / ROUNDS_OF_A_DAY).await;
            }
            self.write(round).await;
            match round % 8 {
                1 | 3 | 5 => self.die().await,
                7 => drop(self.site.once().await.unwrap()),
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

    async fn sizes(&self, kept: impl Fn(&ModelDisk) -> Vec<PointId>) -> Sizes {
        let plan = self.site.plan(self.site.clock.wall()).await;
        let waits = plan.unneeded.bytes + plan.marked.bytes;
        let sizes = Sizes { stored: plan.stored.bytes, waits, needed: plan.needed_bytes, live: self.live(kept) };
        println!(
            "slots {}, step {}, moves {}: {} batches, {} bytes, {:.2} times the {} needed, {:.2} times the {} live; {waits} wait; {:.2} times without them",
            self.life.slots,
            self.life.step,
            self.life.moves,
            plan.stored.batches,
            sizes.stored,
            sizes.stored as f64 / sizes.needed as f64,
            sizes.needed,
            sizes.stored as f64 / sizes.live as f64,
            sizes.live,
            (sizes.stored - waits) as f64 / sizes.needed as f64,
        );
        sizes
    }
}

/// Bytes in the end.
struct Sizes {
    stored: u64,
    /// Of what is stored: what goes once `delete_after` has passed.
    waits: u64,
    needed: u64,
    live: u64,
}

/// `tenths` of `of`.
fn tenths(tenths: u64, of: u64) -> u64 {
    of * tenths / 10
}

#[tokio::test(start_paused = true)]
async fn a_week_of_writes_under_an_hour_of_barriers_has_every_kept_point_whatever_step_keepers_die_at() {
    let mut week = Week::new(Life { slots: 64, step: RECORDS, moves: false }).await;
    week.run().await;
    let batches = week.site.batches().await.len() as u64;
    // The open lane of the day, and marks that wait, are whole; so it is more than in a vault at rest.
    assert!(batches < ROUNDS / 2, "{batches} of {ROUNDS} batches stay");
    week.rest().await;
}

/// Messages of one write each: what stays is what is needed, and what sparse batches may have besides.
#[tokio::test(start_paused = true)]
async fn a_week_in_which_messages_move_has_every_kept_point_and_little_that_is_not_needed() {
    let mut week = Week::new(Life { slots: 512, step: 1, moves: true }).await;
    let sizes = week.run().await;
    let stays = sizes.stored - sizes.waits;
    assert!(stays <= tenths(13, sizes.needed), "{stays} stay, {} needed", sizes.needed);
    let sizes = week.rest().await;
    assert!(sizes.stored <= tenths(13, sizes.needed), "{} stored, {} needed", sizes.stored, sizes.needed);
    assert!(sizes.stored <= tenths(15, sizes.live), "{} stored, {} live", sizes.stored, sizes.live);
}
