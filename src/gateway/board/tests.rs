use super::*;

fn report(disk: &str, rpo_micros: u64, condition: Condition) -> Report {
    let disk = DiskId::new(disk).expect("a name");
    Report { disk, condition, rpo_micros, dirty_bytes: 7, unvaulted_bytes: 11 }
}

/// `a` passed here, `b` and `c` are told of.
fn views() -> Vec<DiskView> {
    let mut views = vec![away(DiskId::new("a").expect("a name")), away(DiskId::new("c").expect("a name"))];
    put_report(&mut views, "x", &report("c", 2_000_000, Condition::Protected), Duration::from_secs(3));
    put_report(&mut views, "x", &report("b", 0, Condition::Copying), Duration::from_secs(90));
    views
}

#[test]
fn what_is_behind_grows_older_and_what_is_not_does_not() {
    let views = views();
    let shown: Vec<_> = views.iter().map(|view| (view.disk.as_str(), view.condition, view.rpo_seconds)).collect();
    assert_eq!(shown, [("a", "away", None), ("b", "copying", Some(0.0)), ("c", "protected", Some(5.0))]);
}

#[test]
fn only_the_disks_furthest_behind_have_lines_and_sums_are_over_all() {
    let text = lines(&views(), 1);
    for line in [
        "# TYPE tidegate_disk_rpo_seconds gauge",
        "tidegate_disk_rpo_seconds{disk=\"c\"} 5",
        "tidegate_disks_rpo_max_seconds 5",
        "tidegate_disks_dirty_bytes 14",
        "tidegate_disks_unvaulted_bytes 22",
        "tidegate_disks{condition=\"away\"} 1",
        "tidegate_disks{condition=\"copying\"} 1",
        "tidegate_disks{condition=\"fenced\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains("disk=\"b\""), "{text}");
}

#[test]
fn the_disk_whose_writes_pack_no_more_has_lines_and_one_that_never_packed_anything_has_none() {
    let mut views = views();
    (views[0].packed_ratio, views[0].anomaly) = (Some(3.0), 0.1);
    (views[1].packed_ratio, views[1].anomaly) = (Some(1.0), 0.9);
    let text = lines(&views, 1);
    for line in [
        "tidegate_disk_anomaly_ratio{disk=\"b\"} 0.9",
        "tidegate_disk_packed_ratio{disk=\"b\"} 1",
        "tidegate_disks_anomaly_max_ratio 0.9",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
    assert_eq!(text.matches("tidegate_disk_anomaly_ratio{").count(), 1, "{text}");
}

#[test]
fn an_event_that_goes_on_has_a_line_with_its_point_and_comes_before_those_that_are_over() {
    let mut views = views();
    let (habit, point) = crate::gateway::habit::tests::encrypted();
    let event = |disk: &str| habit.events().next().expect("an event").view(&DiskId::new(disk).expect("a name"));
    views[0].events = vec![EventView { over: Some("later".into()), ..event("a") }];
    views[1].events = vec![event("b")];
    let text = lines(&views, 0);
    let line = format!("tidegate_disk_anomaly_begin_timestamp_seconds{{disk=\"b\",point=\"{point}\"}} ");
    assert!(text.contains(&line), "{line} is missing in\n{text}");
    assert_eq!(text.matches("tidegate_disk_anomaly_begin_timestamp_seconds{").count(), 1, "{text}");
    let order: Vec<_> = newest_events(&views).iter().map(|event| event.over.is_some()).collect();
    assert_eq!(order, [false, true]);
}

#[test]
fn an_agent_that_has_left_tells_nothing_any_more() {
    let roll = Roll::default();
    let agent = AgentIdentity { vault: Id128([1; 16]), agent: "x".into(), disks: vec![] };
    let address = ([10, 0, 0, 1], 9).into();
    roll.report(&agent, report("b", 1, Condition::Waiting), Duration::ZERO);
    assert!(roll.agents.is_empty(), "only who has a seat is heard");
    roll.arrived(&agent, address, Transport::Quic, Duration::ZERO);
    roll.report(&agent, report("b", 1, Condition::Waiting), Duration::ZERO);
    roll.report(&agent, report("b", 2, Condition::Waiting), Duration::from_secs(1));
    assert_eq!(roll.agents.get("x").map(|seat| seat.told.len()), Some(1), "the newest word of each disk counts");
    roll.left(&agent);
    assert!(roll.agents.is_empty());
}
