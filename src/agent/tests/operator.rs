//! What an operator sees and asks for: points, groups, fences, disks that are refused, the control socket.

use super::*;
use crate::agent::control::{Request, Response, answer, socket_path};
use crate::agent::points::{self, PointError, PointRequest};
use crate::types::{BarrierKind, PointId};
use crate::wire::ForkReason;

fn request(name: &str, timeout: Duration) -> PointRequest {
    PointRequest { kind: BarrierKind::Crash, name: name.into(), wait: true, timeout }
}

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn points_on_demand_are_the_disk_at_that_moment() {
    let mut world = World::new(&["d1"]).await;
    let agent = world.start_agent();
    let mut copies: Vec<(PointId, Vec<u8>)> = Vec::new();
    for round in 0..5 {
        let guest = Guest::start(&agent.disks()[0], round);
        guest.goes_on(40).await;
        guest.stop().await;
        let made = points::make(agent.disks(), &request(&format!("p{round}"), LONG)).await.expect("a point");
        assert!(made[0].vaulted);
        copies.push((made[0].id(), world.on_disk(0)));
        if round == 2 {
            world.kill_gateway();
            world.start_gateway().await;
        }
    }
    let disk = world.host.disk("d1");
    let offered = disk.points();
    for (round, (point, copy)) in copies.iter().enumerate() {
        assert!(disk.image(DISK_BYTES, Some(*point)) == *copy, "{point} is another image");
        assert!(offered.iter().any(|(at, _, name, _)| at == point && *name == format!("p{round}")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_one_instant_of_all_its_disks() {
    let world = World::new(&["a", "b"]).await;
    let agent = world.start_agent();
    world.compare(&agent).await;
    let stop = Arc::new(AtomicBool::new(false));
    let doors: Vec<_> = agent.disks().iter().map(|disk| Splitter::new(Arc::clone(disk))).collect();
    let stopped = Arc::clone(&stop);
    // Every number is on `a` before it is written to `b`.
    let writer = std::thread::spawn(move || {
        let mut number = 0_u64;
        while !stopped.load(Ordering::SeqCst) {
            number += 1;
            doors.iter().for_each(|door| {
                door.write(4096, number.to_le_bytes().to_vec().into(), false).expect("write");
            });
        }
    });
    let mut groups = std::collections::BTreeSet::new();
    for round in 0..20 {
        let made = points::make(agent.disks(), &request("group", LONG)).await.expect("a group");
        let numbers: Vec<u64> = made
            .iter()
            .map(|point| {
                let image = world.host.disk(point.disk.as_str()).image(DISK_BYTES, Some(point.id()));
                u64::from_le_bytes(image[4096..4104].try_into().expect("8 bytes"))
            })
            .collect();
        assert!(numbers[0] == numbers[1] || numbers[0] == numbers[1] + 1, "round {round}: {numbers:?}");
        assert_eq!(made[0].group, made[1].group);
        groups.insert(made[0].group);
    }
    assert_eq!(groups.len(), 20);
    stop.store(true, Ordering::SeqCst);
    writer.join().expect("writer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_point_that_is_not_vaulted_in_time_is_said_to_be_so() {
    let mut world = World::new(&["d1"]).await;
    world.kill_gateway();
    let agent = world.start_agent();
    let none = points::make(agent.disks(), &request("", SHORT)).await.expect_err("no epoch yet");
    assert!(matches!(none, PointError::NotMade { .. }), "{none}");
    world.start_gateway().await;
    world.compare(&agent).await;
    world.host.vault(false);
    let late = points::make(agent.disks(), &request("late", SHORT)).await.expect_err("not vaulted");
    let PointError::NotVaulted { points: made } = late else { panic!("{late}") };
    assert_eq!((made.len(), made[0].vaulted), (1, false));
    let quick = PointRequest { wait: false, ..request("quick", SHORT) };
    assert!(!points::make(agent.disks(), &quick).await.expect("made")[0].vaulted);
    world.host.vault(true);
    assert!(points::make(agent.disks(), &request("in time", LONG)).await.expect("vaulted")[0].vaulted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_agent_stops_replicating_for_good_and_its_guest_goes_on() {
    let world = World::new(&["d1"]).await;
    let agent = world.start_agent();
    world.compare(&agent).await;
    world.host.disk("d1").take_over();
    let state = |agent: &Agent| agent.control().status().disks[0].state.clone();
    until("the fence", || state(&agent) == "fenced").await;
    let guest = Guest::start(&agent.disks()[0], 9);
    guest.goes_on(50).await;
    guest.stop().await;
    let error = points::make(agent.disks(), &request("", LONG)).await.expect_err("fenced");
    assert!(matches!(error, PointError::Fenced { .. }), "{error}");
    agent.stop().await;

    let agent = world.start_agent();
    assert_eq!(state(&agent), "fenced", "remembered");
    assert_eq!(world.host.disk("d1").newest_records(), 0, "nothing for the other's epoch");
    world.crash(agent).await;

    let agent = world.start_agent_with(Overrides { take_over: true, resync: false }).expect("agent");
    world.compare(&agent).await;
    assert_eq!(world.host.disk("d1").epochs()[2], (3, ForkReason::Operator));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_of_another_size_is_refused_and_the_others_go_on() {
    let world = World::new(&["a", "b"]).await;
    let agent = world.start_agent();
    world.compare(&agent).await;
    agent.stop().await;
    let file = std::fs::File::options().write(true).open(world.path(0)).expect("image");
    file.set_len(DISK_BYTES as u64 + 4096).expect("grown");
    let agent = world.start_agent();
    let status = agent.control().status();
    let refused = status.disks.iter().find(|disk| disk.state == "refused").expect("a refused disk");
    assert!(refused.last_error.as_ref().is_some_and(|error| error.contains("new id")), "{refused:?}");
    until("the other disk", || agent.control().status().disks[0].state == "protected").await;
    let request = Request::Point {
        disks: vec![refused.disk.clone()],
        name: String::new(),
        kind: BarrierKind::Crash,
        wait: true,
        timeout_ms: 1000,
    };
    let Response::Failed(failed) = answer(agent.control(), request).await else { panic!("a point of it") };
    assert!(!failed.try_again && failed.text.contains("not protected"), "{}", failed.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_on_one_state_directory_or_disk_are_told_apart() {
    let mut world = World::new(&["d1"]).await;
    let agent = world.start_agent();
    let Err(error) = world.start_agent_with(Overrides::default()) else { panic!("two agents") };
    assert!(matches!(error, AgentError::State(_)), "{error}");
    world.config.state_dir = world.folder.path().join("other");
    let Err(error) = world.start_agent_with(Overrides::default()) else { panic!("one disk twice") };
    assert!(matches!(&error, AgentError::NoDisk { first, .. } if first.contains("in use")), "{error}");
    drop(agent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_socket_answers_line_by_line_and_refuses_what_it_does_not_understand() {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let world = World::new(&["d1"]).await;
    let agent = world.start_agent();
    world.compare(&agent).await;
    let stream = tokio::net::UnixStream::connect(socket_path(&world.config.state_dir)).await.expect("socket");
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let asked = "{\"op\":\"point\",\"disks\":[\"d1\"],\"name\":\"n\",\"kind\":\"app\",\"wait\":true,\"timeout_ms\":20000}\n\
        {\"op\":\"point\",\"disks\":[\"nope\"],\"kind\":\"crash\",\"wait\":true,\"timeout_ms\":1}\n\
        {\"op\":\"point\",\"disks\":[\"d1\"],\"kind\":\"sync-end\",\"wait\":true,\"timeout_ms\":1}\nnonsense\n{\"op\":\"status\"}\n";
    write.write_all(asked.as_bytes()).await.expect("asked");
    let mut next = async || {
        let line = lines.next_line().await.expect("read").expect("a line");
        serde_json::from_str::<Response>(&line).expect("an answer")
    };
    let Response::Points(made) = next().await else { panic!("no point") };
    assert_eq!((made[0].kind, made[0].name.as_str(), made[0].vaulted), (BarrierKind::App, "n", true));
    let point: PointId = made[0].id.parse().expect("a point id");
    assert!(world.host.disk("d1").points().iter().any(|(at, kind, ..)| *at == point && *kind == BarrierKind::App));
    for expected in ["no disk nope; it has d1", "kind must be", "not understood"] {
        let Response::Failed(failed) = next().await else { panic!("answered") };
        assert!(failed.text.contains(expected), "{}", failed.text);
    }
    let Response::Status(status) = next().await else { panic!("no status") };
    assert_eq!((status.disks[0].state.as_str(), status.gateway.as_deref()), ("protected", Some("g1")));
    assert_eq!(status.disks[0].dirty_bytes, 0);
}

#[test]
fn replication_steps_back_once_and_takes_nobody_along() {
    let own = rustix::process::getpriority_process(None).expect("known");
    let step_back = crate::agent::stepping_back();
    let lower = std::thread::spawn(move || {
        step_back();
        // As a thread does that such a thread starts.
        step_back();
        rustix::process::getpriority_process(None)
    });
    let lower = lower.join().expect("no panic").expect("known");
    assert_eq!((lower, rustix::process::getpriority_process(None)), ((own + 5).min(19), Ok(own)));
}
