//! Processes that stand still for a while, or stop and start in order.

use std::time::Duration;

use tidegate::cli::quickstart::child::{Child, wait_until};

use crate::common::{PATIENCE, Scene, Setting, empty, succeed, turn};

const DISK_BYTES: u64 = 96 << 20;

/// Stops or continues a process, as an operator's hand or a frozen virtual machine does.
pub fn signal(child: &Child, name: &str) {
    succeed("sh", &["-c", &format!("kill -{name} {}", child.id())]);
}

#[test]
fn a_gateway_that_stands_still_for_half_a_minute_stalls_no_write_and_loses_nothing() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], empty(DISK_BYTES));
    let load = scene.load("disk1", 61, 8);
    scene.wait_copied("disk1");
    scene.keep("disk1", "before", Some(&load));
    signal(scene.gateway.as_ref().unwrap(), "STOP");
    let mut least = u64::MAX;
    for second in 0..30 {
        let before = load.done().written_bytes;
        wait_until(Duration::from_secs(1), || false);
        least = least.min(load.done().written_bytes - before);
        if second == 2 {
            scene.keep("disk1", "amid", Some(&load));
        }
    }
    signal(scene.gateway.as_ref().unwrap(), "CONT");
    assert!(least > 0, "the guest stood still with the gateway");
    scene.wait_copied("disk1");
    scene.write_more(&load, 4 << 20);
    scene.keep("disk1", "after", Some(&load));
    assert_eq!(load.done().interruptions, 0);
    drop(load);
    scene.wait_vaulted();
    scene.stop();
    scene.assert_all_restore();
}

#[test]
fn an_agent_that_was_stopped_in_order_goes_on_in_the_same_epoch_without_a_copy() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], empty(DISK_BYTES));
    let load = scene.load("disk1", 62, 16);
    scene.wait_copied("disk1");
    scene.write_more(&load, 8 << 20);
    scene.keep("disk1", "before", Some(&load));
    let epoch = scene.site.status("disk1").unwrap().epoch;
    assert!(load.pause(PATIENCE));
    let ended = scene.agent.take().unwrap().terminate(PATIENCE).unwrap();
    assert!(ended.success(), "{ended}");
    scene.agent = Some(scene.site.start_agent().unwrap());
    let status = scene.site.status("disk1").unwrap();
    assert_eq!(status.dirty_bytes, 0, "a clean stop needs no copy: {status:?}");
    load.resume();
    scene.write_more(&load, 8 << 20);
    scene.wait("the connection", |scene| scene.site.status("disk1").is_some_and(|now| now.epoch.is_some()));
    assert_eq!(scene.site.status("disk1").unwrap().epoch, epoch, "a clean stop forks nothing");
    scene.keep("disk1", "after", Some(&load));
    drop(load);
    scene.wait_vaulted();
    scene.stop();
    scene.assert_all_restore();
}
