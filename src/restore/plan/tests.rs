//! A plan, carried out, equals replaying every record from the first.

use proptest::prelude::*;

use super::*;
use crate::restore::tests::{self as model, ModelDisk};
use crate::types::{BarrierKind, Epoch, Extent, RecordKind};

/// Carries a plan out on the model's own payloads.
fn carry_out(disk: &ModelDisk, history: &History, plan: &Plan) -> Vec<u8> {
    let mut image = vec![0xEE; plan.disk_bytes as usize];
    for &(offset, length) in &plan.zeroes {
        image[offset as usize..(offset + length) as usize].fill(0);
    }
    for message in plan.reads.iter().flat_map(|read| &read.messages) {
        let epoch = history.rows[message.row].message.epoch;
        for owned in &message.owned {
            let record = &disk.records[&epoch][owned.seq.0 as usize - 1];
            let before: u32 = record.extents[..owned.extent as usize].iter().map(Extent::payload_bytes).sum();
            let from = (before + owned.skip_bytes) as usize;
            let data = &record.payload[from..from + owned.length_bytes as usize];
            let at = owned.offset_bytes as usize;
            assert!(image[at..at + data.len()].iter().all(|&byte| byte == 0xEE), "written twice");
            image[at..at + data.len()].copy_from_slice(data);
        }
    }
    image
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn a_plan_carried_out_equals_replaying_everything(steps in model::steps(), step in 1..9_u64, pick in 0.0..1.0) {
        let disk = model::model(&steps);
        let history = History::build(&disk.epochs, disk.rows(step));
        prop_assert!(!history.damaged());
        for span in &history.spans {
            let seq = Seq((span.through.0 as f64 * pick) as u64);
            let target = PointId { epoch: span.segment.epoch, seq };
            let plan = Plan::build(&history, target).expect("inside the history");
            prop_assert_eq!(carry_out(&disk, &history, &plan), disk.image_at(target));
            let mut rows: Vec<usize> =
                plan.reads.iter().flat_map(|read| &read.messages).map(|message| message.row).collect();
            rows.sort_unstable();
            rows.dedup();
            prop_assert_eq!(rows.len(), plan.reads.iter().map(|read| read.messages.len()).sum::<usize>());
        }
    }
}

#[test]
fn a_target_beyond_the_usable_history_has_no_plan() {
    let mut disk = ModelDisk::new(4096);
    disk.write(0, vec![1; 512]);
    let history = History::build(&disk.epochs, disk.rows(1));
    assert!(Plan::build(&history, PointId { epoch: Epoch(1), seq: Seq(2) }).is_none());
    assert!(Plan::build(&history, PointId { epoch: Epoch(2), seq: Seq(0) }).is_none());
}

#[test]
fn overwritten_messages_are_not_read_and_neighbours_share_a_read() {
    let mut disk = ModelDisk::new(4096);
    disk.write(0, vec![1; 4096]);
    disk.write(0, vec![2; 2048]);
    disk.write(2048, vec![3; 2048]);
    disk.barrier(BarrierKind::Crash, "");
    let mut rows = disk.rows(1);
    let mut at = 64;
    for row in &mut rows {
        row.object = 0;
        row.message.offset_bytes = at;
        at += u64::from(row.message.stored_bytes);
    }
    let history = History::build(&disk.epochs, rows);
    let plan = Plan::build(&history, disk.head()).expect("whole");
    assert_eq!(plan.reads.len(), 1);
    let rows: Vec<usize> = plan.reads[0].messages.iter().map(|message| message.row).collect();
    assert_eq!(rows, [1, 2], "the first record is wholly overwritten, the barrier owns nothing");
    assert!(plan.zeroes.is_empty());
}

#[test]
fn a_million_small_extents_are_planned_in_one_pass() {
    let mut disk = ModelDisk::new(1 << 30);
    let mut state = 1_u64;
    for _ in 0..4_000 {
        let extents = (0..256)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let offset_bytes = (state >> 20) % (1 << 18) * 4096;
                Extent { offset_bytes, length_bytes: 4096, kind: ExtentKind::Data }
            })
            .collect();
        // The payload is never looked at here, so it is left out.
        disk.push(RecordKind::Write, extents, Vec::new());
    }
    let history = History::build(&disk.epochs, disk.rows(16));
    let plan = Plan::build(&history, disk.head()).expect("whole");
    let zero_bytes: u64 = plan.zeroes.iter().map(|(_, length)| length).sum();
    assert_eq!(plan.data_bytes() + zero_bytes, 1 << 30);
    // 1,024,000 random picks of 262,144 blocks leave about one block in fifty untouched.
    assert!(zero_bytes > 0 && zero_bytes < 1 << 26);
}
