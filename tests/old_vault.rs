//! Recovery in an old vault: what the first byte of one disk costs does not grow with other disks, nor with what the lanes hold of them.
//!
//! `loadgen vault` does the same in a vault of any size; see docs/PERFORMANCE.md.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use loadgen::old_vault::measure::{FirstByte, first_byte, fold};
use loadgen::old_vault::store::OldStore;
use loadgen::old_vault::write::OldVault;
use loadgen::old_vault::{Cost, Shape};
use object_store::memory::InMemory;

/// Of each request, as of a blob store that is near.
const LATENCY: Duration = Duration::from_millis(10);
/// A batch a minute, and each disk in one of twenty.
const SHAPE: Shape = Shape { disks: 200, days: 3, batch_seconds: 60, every: 20, describe_all: true };

/// The first byte without folded indexes and with them.
async fn both(shape: Shape) -> (Cost, Cost) {
    let old = OldVault::write(OldStore::new(Arc::new(InMemory::new())), shape, |_| {}).await.unwrap();
    let before = first_byte(&old, false, LATENCY).await.unwrap();
    let unfolded = first_byte(&old, true, LATENCY).await.unwrap();
    assert_eq!(unfolded.points, before.points, "without a folded index the lanes' own are read");
    let folded = fold(&old, |_| {}).await.unwrap();
    assert_eq!(folded.objects, u64::from(shape.disks) * u64::from(shape.days));
    let FirstByte { cost: after, points } = first_byte(&old, true, LATENCY).await.unwrap();
    assert_eq!(points, before.points, "the same points");
    (before.cost, after)
}

#[tokio::test(start_paused = true)]
async fn the_first_byte_of_a_disk_costs_the_same_however_many_other_disks_the_vault_holds() {
    let (few_before, few) = both(Shape { disks: 20, ..SHAPE }).await;
    let (many_before, many) = both(SHAPE).await;
    assert!(many_before.bytes > 3 * few_before.bytes, "{few_before:?} {many_before:?}");
    // Wrapped keys have other lengths in every run, some hundred bytes of each.
    assert!(many.bytes < few.bytes + few.bytes / 10, "{few:?} {many:?}");
    assert!(many.bytes * 10 < many_before.bytes, "{many_before:?} {many:?}");
    assert_eq!((many.requests, many.pages, many.depth), (few.requests, few.pages, few.depth));
}

#[tokio::test(start_paused = true)]
async fn the_first_byte_of_a_disk_costs_the_same_however_many_batches_the_lanes_have() {
    let (_, slow) = both(SHAPE).await;
    // Ten times the batches, in as many of which the disk writes as before.
    let (fast_before, fast) = both(Shape { batch_seconds: 6, every: 200, ..SHAPE }).await;
    assert!(fast_before.names > 3 * 14_400 && fast_before.requests > 60, "{fast_before:?}");
    assert!(fast.names < 100 && fast.bytes < slow.bytes + slow.bytes / 10, "{slow:?} {fast:?}");
    assert_eq!((fast.requests, fast.pages, fast.depth), (slow.requests, slow.pages, slow.depth));
}

#[tokio::test(start_paused = true)]
async fn a_month_is_read_in_less_than_a_second_at_ten_milliseconds_a_request() {
    let (before, after) = both(Shape { disks: 40, days: 30, describe_all: true, ..SHAPE }).await;
    assert!(after.seconds < 1.0 && after.depth < 20, "{after:?}");
    assert!(after.seconds < before.seconds, "{before:?} {after:?}");
    // For each lane its registration and its folded index, and a few for the whole.
    assert!(after.requests <= 2 * 30 + 20, "{after:?}");
}
