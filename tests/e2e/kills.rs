//! Promise 2: nothing acked is lost, whoever dies when.

use tidegate::cli::quickstart::load::Numbers;

use crate::common::{Scene, Setting, assert_file_system, ext4, succeed, turn};

/// Kills at random moments under load; the agent each fifth time, the gateway else. Before most kills a point is made
/// and its copy taken: acked but not yet vaulted, it must be there in the end.
fn kill_again_and_again(gateway_kills: u32, agent_kills: u32, setting: Setting) {
    let mut scene = Scene::new(setting, &["disk1"], ext4(256 << 20));
    let load = scene.load("disk1", 5, 48);
    scene.wait_copied("disk1");
    let mut numbers = Numbers::new(2026);
    let (mut gateways, mut agents) = (0, 0);
    while gateways < gateway_kills || agents < agent_kills {
        scene.write_more(&load, numbers.below(20 << 20));
        let round = gateways + agents;
        let of_agent = agents < agent_kills && (round % 5 == 4 || gateways == gateway_kills);
        if round % 3 != 1 {
            // No points are offered inside a copy, so one is made only after it.
            scene.wait_copied("disk1");
            scene.keep("disk1", &format!("round-{round}"), Some(&load));
            scene.write_more(&load, numbers.below(4 << 20));
        }
        if of_agent {
            scene.kill_agent();
            agents += 1;
        } else {
            scene.kill_gateway();
            gateways += 1;
        }
    }
    scene.write_more(&load, 8 << 20);
    assert!(load.done().interruptions <= u64::from(agents), "only a dead agent may interrupt the guest");
    scene.wait_copied("disk1");
    scene.keep("disk1", "end", Some(&load));
    drop(load);
    scene.wait_vaulted();
    scene.stop();
    scene.assert_all_restore();
    let last = scene.kept.last().unwrap();
    assert_file_system(&scene.assert_restores(last));
}

#[test]
fn twenty_gateways_and_five_agents_killed_under_load_lose_nothing() {
    let _turn = turn();
    kill_again_and_again(20, 5, Setting::default());
}

/// Stops or continues a process, as an operator's hand or a frozen virtual machine does.
fn signal(pid: u32, name: &str) {
    succeed("sh", &["-c", &format!("kill -{name} {pid}")]);
}

#[test]
fn a_gateway_that_dies_again_and_again_before_its_agent_comes_back_loses_nothing() {
    let _turn = turn();
    let mut scene = Scene::new(Setting::default(), &["disk1"], ext4(128 << 20));
    let load = scene.load("disk1", 6, 40);
    scene.wait_copied("disk1");
    for life in 0..4 {
        scene.write_more(&load, 12 << 20);
        scene.keep("disk1", &format!("life-{life}"), Some(&load));
        let agent = scene.agent.as_ref().unwrap().id();
        signal(agent, "STOP");
        // What the first life journaled is vaulted by the second, of which the agent hears nothing; the third has an
        // empty journal and must know all the same.
        scene.kill_gateway();
        if life % 2 == 0 {
            scene.wait_vaulted();
        }
        scene.kill_gateway();
        scene.kill_gateway();
        signal(agent, "CONT");
    }
    scene.write_more(&load, 12 << 20);
    scene.keep("disk1", "end", Some(&load));
    drop(load);
    scene.wait_vaulted();
    scene.stop();
    scene.assert_all_restore();
}
