//! Crashes against a model: what was acked survives, what is found was sent, whatever the disk does.

use super::*;
use crate::journal::disk::sim::{Faults, Survival, draw};

/// One disk's history as its agent knows it.
struct Model {
    source: Source,
    /// Acked as journaled, over all lives.
    acked: u64,
    vaulted: u64,
}

struct World {
    rng: u64,
    disk: SimDisk,
    config: JournalConfig,
    models: Vec<Model>,
    /// A full journal had to release segments before it could note that: they may be reported as lost.
    unmarked: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let shards = 1 + (draw(&mut rng) % 2) as u16;
        let models = ["a", "b", "c"].map(|name| Model { source: Source::new(name), acked: 0, vaulted: 0 });
        let config = small(shards, 6 * u64::from(shards));
        Self { rng, disk: SimDisk::new(seed), config, models: models.into(), unmarked: false }
    }

    fn below(&mut self, bound: u64) -> u64 {
        draw(&mut self.rng) % bound
    }

    /// Opens, compares with the model, takes the agents back to what survived.
    fn restart(&mut self, what: &str) -> Journal {
        let (journal, report) = open(&self.disk, &self.config);
        let (found, damage) = read_all(&journal);
        assert!(damage.is_empty(), "{what}: {damage:?}");
        let ordinary = |one: &Damage| one.kind == DamageKind::TornTail || self.unmarked && one.offset_bytes == 0;
        assert!(report.damage.iter().all(ordinary), "{what}: {:?}", report.damage);
        for model in &mut self.models {
            let source = &mut model.source;
            let run = report.runs.get(&(source.disk.clone(), source.epoch)).cloned().unwrap_or_default();
            let mark = run.vaulted_mark.map_or(0, |(seq, _)| seq.0);
            assert!(mark <= model.vaulted, "{what}: a mark that nobody set");
            // The resume rule: from the vaulted floor that the agent may know, on through what is journaled here.
            let mut last = mark;
            for range in &run.journaled {
                if range.first.0 <= last.max(model.vaulted) + 1 {
                    last = last.max(range.last.0);
                    assert_eq!(range.chain_last, source.chain_at(range.last.0), "{what}");
                }
            }
            let last = last.max(model.vaulted);
            let acked = model.acked;
            assert!(
                last >= acked,
                "{what}: disk {} acked {acked}, has {last}: {run:?}, {:?}",
                source.disk,
                report.damage
            );
            for seq in model.vaulted + 1..=model.acked {
                let key = (source.disk.clone(), 1, seq);
                let bytes = found.get(&key).unwrap_or_else(|| panic!("{what}: acked {key:?} is lost"));
                assert_eq!(*bytes, source.records[seq as usize - 1].bytes, "{what}");
            }
            for (key, bytes) in found.iter().filter(|(key, _)| key.0 == source.disk) {
                assert_eq!(*bytes, source.records[key.2 as usize - 1].bytes, "{what}: {key:?}");
            }
            // What the gateway found counts as acked from here on: it answers the agent with it.
            source.records.truncate(last as usize);
            source.journaled = Arc::new(Watermark::new(last));
            model.acked = last;
        }
        journal
    }

    /// Some work, ended at a random moment.
    fn live(&mut self, journal: &Journal) {
        let steps = 5 + self.below(60);
        let holds = self.below(3) == 0;
        let runtime = runtime();
        for step in 0..steps {
            if holds && step == steps / 2 {
                self.disk.hold_syncs();
            }
            let index = self.below(3) as usize;
            let payload_bytes = 1 + self.below(7000) as usize;
            let vault_at = self.below(10);
            let settle = self.below(6) == 0 && !holds;
            let model = &mut self.models[index];
            let sample = model.source.make(payload_bytes);
            let append = model.source.append(journal, &sample);
            let taken = runtime.block_on(async { tokio::time::timeout(Duration::from_millis(4), append).await });
            if !matches!(taken, Ok(Ok(()))) {
                model.source.records.pop();
            }
            if settle && matches!(taken, Ok(Ok(()))) {
                let settled = model.source.settled();
                let _ = runtime.block_on(async { tokio::time::timeout(Duration::from_millis(10), settled).await });
            }
            let acked = model.source.journaled.get();
            if vault_at < 3 && acked > model.vaulted {
                model.vaulted = acked - (acked - model.vaulted) / 2;
                model.source.vault(journal, model.vaulted);
            }
        }
    }

    /// Ends this life; what was acked up to now is what the model holds the journal to.
    fn end(&mut self, journal: Journal) {
        let unmarked = |shard: &Arc<shard::Shard>| shard.unmarked.load(std::sync::atomic::Ordering::Relaxed) > 0;
        self.unmarked |= journal.engine.shards.iter().any(unmarked);
        let survivals = [Survival::None, Survival::Prefix, Survival::Subset, Survival::All];
        let survival = survivals[self.below(4) as usize];
        let block_bytes = [512, 4096][self.below(2) as usize];
        let acked = |model: &Model| model.source.journaled.get();
        match self.below(4) {
            0 => {
                self.disk.release_syncs();
                journal.close();
                self.models.iter_mut().for_each(|model| model.acked = acked(model));
            }
            1 => {
                // The process dies, later the power fails before anything else is written.
                self.models.iter_mut().for_each(|model| model.acked = acked(model));
                self.disk = self.disk.kill();
                let journal = self.restart("after a kill");
                self.disk = self.disk.crash(survival, block_bytes);
                drop(journal);
            }
            _ => {
                // Read first: a commit may still become durable between the look and the cut.
                self.models.iter_mut().for_each(|model| model.acked = acked(model));
                self.disk = self.disk.crash(survival, block_bytes);
            }
        }
        drop(journal);
    }
}

fn run(seed: u64, faults: Faults) {
    let mut world = World::new(seed);
    for life in 0..5 {
        let what = format!("seed {seed}, life {life}");
        world.disk.set_faults(Faults::default());
        let journal = world.restart(&what);
        world.disk.set_faults(faults);
        world.live(&journal);
        world.end(journal);
    }
    world.disk.set_faults(Faults::default());
    world.restart(&format!("seed {seed}, at the end"));
}

/// More worlds than in the ordinary run: `TIDEGATE_CRASH_SEEDS=1000`.
fn seeds(usual: u64) -> u64 {
    std::env::var("TIDEGATE_CRASH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn every_acked_record_survives_every_crash() {
    for seed in 0..seeds(25) {
        run(seed, Faults::default());
    }
}

#[test]
fn every_acked_record_survives_crashes_on_a_disk_that_fails() {
    let faults = Faults { write_fails: 3, write_short: 10, sync_fails: 5, ..Faults::default() };
    for seed in 10_000..10_000 + seeds(25) {
        run(seed, faults);
    }
}

#[test]
fn a_failed_sync_is_not_repeated_but_its_commit_goes_to_another_segment() {
    let disk = SimDisk::new(5);
    let config = small(1, 8);
    let (journal, _) = open(&disk, &config);
    let mut source = Source::new("a");
    runtime().block_on(async {
        source.send(&journal, 3000).await;
        source.settled().await;
        disk.set_faults(Faults { sync_fails: 100, ..Faults::default() });
        disk.hold_syncs();
        source.send(&journal, 3000).await;
        while disk.syncs_waiting() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (_, syncs_before) = disk.counts();
        disk.release_syncs();
        while disk.counts().1 == syncs_before {
            tokio::task::yield_now().await;
        }
        disk.set_faults(Faults::default());
        // Either the next segment took it, or three failed before the fault was lifted.
        let _ = tokio::time::timeout(Duration::from_secs(5), async {
            while journal.failure().is_none() && source.journaled.get() < 2 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    });
    assert!(journal.failure().is_some() || source.journaled.get() == 2);
    if source.journaled.get() == 2 {
        assert_eq!(seqs(&read_all(&journal).0, &source), [1, 2]);
    }
    drop(journal);
    let (journal, report) = open(&disk.crash(Survival::None, 4096), &config);
    assert!(report.damage.iter().all(|one| one.kind == DamageKind::TornTail), "{:?}", report.damage);
    assert!(seqs(&read_all(&journal).0, &source).starts_with(&[1]));
}

#[test]
fn a_disk_that_takes_nothing_fails_the_journal_and_its_callers() {
    let disk = SimDisk::new(6);
    let (journal, _) = open(&disk, &small(1, 8));
    disk.set_faults(Faults { write_fails: 100, ..Faults::default() });
    runtime().block_on(async {
        let mut source = Source::new("a");
        source.send(&journal, 3000).await;
        while journal.failure().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let failure = journal.failure().expect("a failure");
        assert!(failure.contains("injected write failure"), "{failure}");
        let sample = source.make(10);
        assert!(matches!(source.append(&journal, &sample).await, Err(AppendError::Failed { .. })));
        assert_eq!(source.journaled.get(), 0, "nothing was acked");
    });
    assert!(matches!(runtime().block_on(journal.reader(0).next(Duration::from_secs(10))), Err(ReadError::Closed)));
}

#[test]
fn a_disk_that_turns_read_only_fails_the_journal_and_says_what_to_do() {
    let disk = SimDisk::new(7);
    let (journal, _) = open(&disk, &small(1, 8));
    let mut source = Source::new("a");
    runtime().block_on(async {
        source.send(&journal, 3000).await;
        source.settled().await;
        disk.set_faults(Faults { read_only: true, ..Faults::default() });
        source.send(&journal, 3000).await;
        while journal.failure().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let failure = journal.failure().expect("a failure");
    assert!(
        failure.contains("read-only") && failure.contains("shard-00/seg-") && failure.contains("again"),
        "{failure}"
    );
    assert_eq!(source.journaled.get(), 1, "what was acked before stays so");
}
