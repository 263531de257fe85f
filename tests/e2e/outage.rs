//! Promises 2 and 7: the vault is away, the guest does not notice, and nothing is missing afterwards.

use std::time::Duration;

use tidegate::cli::quickstart::child::wait_until;
use tidegate::flow::{Clock as _, SystemClock};

use crate::common::azurite::Azurite;
use crate::common::{Scene, Setting, ext4, turn_alone};

const OUTAGE: Duration = Duration::from_secs(60);
/// One look at the guest's progress.
const LOOK: Duration = Duration::from_secs(5);

#[test]
fn a_vault_that_is_away_for_a_minute_stalls_no_write_and_loses_nothing() {
    let _turn = turn_alone();
    let mut azurite = Azurite::start();
    let setting = Setting { vault: Some(azurite.vault_url("outage")), ..Setting::default() };
    let mut scene = Scene::new(setting, &["disk1"], ext4(256 << 20));
    let load = scene.load("disk1", 21, 16);
    scene.wait_copied("disk1");
    scene.keep("disk1", "before", Some(&load));
    scene.wait_vaulted();

    azurite.stop();
    let clock = SystemClock::new();
    let mut slowest_look = u64::MAX;
    while clock.monotonic() < OUTAGE {
        let before = load.done().written_bytes;
        wait_until(LOOK, || false);
        slowest_look = slowest_look.min(load.done().written_bytes - before);
        scene.assert_alive();
        if scene.kept.len() == 1 && clock.monotonic() > OUTAGE / 2 {
            scene.keep("disk1", "amid", Some(&load));
        }
    }
    let during = load.done();
    azurite.start_again();

    assert!(slowest_look > 0, "in {} s of the outage nothing was written", LOOK.as_secs());
    let slowest = Duration::from_micros(during.write_micros.max());
    assert!(slowest < OUTAGE / 6, "a write took {slowest:?} while the vault was away");
    assert_eq!(during.interruptions, 0);
    scene.write_more(&load, 16 << 20);
    scene.keep("disk1", "after", Some(&load));
    drop(load);
    scene.wait_vaulted();
    scene.stop();
    scene.assert_all_restore();
}
