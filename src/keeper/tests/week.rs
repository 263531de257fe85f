//! A week of writes under a policy of one hour of barriers, by the clocks of life, with a keeper that dies again and again.

use super::*;
use crate::keeper::config::Work;
use crate::restore::history::History;
use crate::vault::rng::Rng;

/// Half an hour each.
const ROUNDS: u64 = 7 * 24 * 2;
const ROUNDS_OF_A_DAY: u64 = 48;
const SLOTS: u64 = 64;
/// What a disk writes in a round: four blocks and a barrier, one message.
const RECORDS: u64 = 5;
const HOUR_MICROS: u64 = 3_600_000_000;

struct Week {
    site: Site,
    chance: Rng,
}

impl Week {
    async fn new() -> Self {
        let store = FaultStore::new();
        let mut site = Site::over(Arc::clone(&store) as _, store, Vec::new(), 1, 1, 1).await;
        let hour = Term::For(Duration::from_secs(3600));
        site.policies.default = Policy { every: hour, app: NONE, ..app_points() };
        site.work = Work::default();
        site.set_time(Micros(1_800_000_000_000_000));
        site.vault.turn_by(&*site.clock).await;
        for name in ["sda", "sdb", "sdc", "sdd"] {
            let disk = ModelDisk::named(name, SLOTS << 12);
            site.vault.fill(&[&disk], RECORDS, 1).await;
            site.disks.push(disk);
        }
        Self { site, chance: Rng::seeded(11) }
    }

    /// Half an hour: every disk writes at random, and all of it is one batch.
    async fn write(&mut self, round: u64) {
        let first = round * RECORDS + 1;
        for disk in &mut self.site.disks {
            disk.wait(1800);
            for _ in 1..RECORDS {
                disk.write(self.chance.below(SLOTS) << 12, vec![round as u8 | 1; 4096]);
            }
            disk.barrier(if round == 0 { BarrierKind::SyncEnd } else { BarrierKind::Crash }, "");
        }
        self.site.set_time(self.now());
        let disks = &self.site.disks;
        let batch: Vec<_> =
            disks.iter().map(|disk| (disk, disk.message(Epoch(1), first, first + RECORDS - 1))).collect();
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
        let (step, after) = (self.chance.below(24) as usize, self.chance.below(2) == 0);
        at_step(&self.site.store, step, move |first| if first && after { Fate::AnswerLost } else { Fate::Status(403) });
        let _ = self.site.once().await;
        self.site.store.plan(|_, _| Fate::Good);
    }

    /// The points that the policy keeps now, each with the image that a restore gives.
    async fn check(&self) {
        for disk in &self.site.disks {
            let history: History = self.site.history(disk).await;
            let points = points::list(&history);
            let from = self.now().0 - HOUR_MICROS;
            let written: Vec<PointId> = disk.records[&Epoch(1)]
                .iter()
                .filter(|record| record.extents.is_empty() && record.head.label.0 >= from)
                .map(|record| PointId { epoch: Epoch(1), seq: record.head.seq })
                .collect();
            assert!(written.len() >= 2, "{written:?}");
            for point in written {
                assert!(points.iter().any(|offered| offered.id == point), "{point} of {} is not offered", disk.id);
                let image = self.site.image(disk, point).await;
                assert!(image == Some(disk.image_at(point)), "{point} of {}", disk.id);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_week_of_writes_under_an_hour_of_barriers_has_every_kept_point_whatever_step_keepers_die_at() {
    let mut week = Week::new().await;
    let mut written = 0_u64;
    for round in 0..ROUNDS {
        if round > 0 && round.is_multiple_of(ROUNDS_OF_A_DAY) {
            week.turn(round / ROUNDS_OF_A_DAY).await;
        }
        week.write(round).await;
        written += 1;
        match round % 8 {
            1 | 3 | 5 => week.die().await,
            7 => drop(week.site.once().await.unwrap()),
            _ => {}
        }
        if round % 24 == 13 {
            week.check().await;
        }
    }
    week.check().await;
    let plan = week.site.plan(week.now()).await;
    let (stored, needed) = (plan.stored, plan.needed_bytes);
    let share = stored.bytes as f64 / needed as f64;
    println!(
        "{written} batches written, {} stay, {} bytes, {share:.2} times the {needed} needed",
        stored.batches, stored.bytes
    );
    // The open lane of the day, and marks that wait, are whole; so it is more than in a vault at rest.
    assert!(stored.batches < written / 2, "{} of {written} batches stay", stored.batches);
    // Two hours of a keeper that lives, without writes: what is kept is the last state.
    for _ in 0..4 {
        week.site.wait(Duration::from_secs(1800));
        week.site.once().await.unwrap();
    }
    for disk in &week.site.disks {
        assert!(week.site.image(disk, disk.head()).await == Some(disk.image_at(disk.head())));
    }
}
