//! Tells the gateway how each disk stands, so that whoever asks a gateway sees what only this agent knows.
//!
//! A disk with nothing behind is told once; one that is behind, as often as the gateway's picture of it should be fresh.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::control::{Control, report};
use crate::types::DiskId;
use crate::wire::{Client, Report};

/// How fresh a gateway's picture is: an operator looks at figures that are a few seconds old.
const INTERVAL: Duration = Duration::from_secs(5);

/// Tells, for ever.
pub async fn run(control: Arc<Control>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = Told::default();
    loop {
        ticks.tick().await;
        let Some(client) = control.link.borrow().client.clone() else { continue };
        let reports = control.disks.iter().map(|disk| report(disk)).collect();
        let due = told.due(&client, reports);
        if !due.is_empty() {
            client.report(due);
        }
    }
}

/// What the gateway of the present connection knows.
#[derive(Default)]
struct Told {
    client: Weak<Client>,
    last: BTreeMap<DiskId, Report>,
}

impl Told {
    fn due(&mut self, client: &Arc<Client>, reports: Vec<Report>) -> Vec<Report> {
        if self.client.as_ptr() != Arc::as_ptr(client) {
            self.client = Arc::downgrade(client);
            self.last.clear();
        }
        changed(&mut self.last, reports)
    }
}

/// Those that differ from what was told last; ages grow, so what is behind always does.
fn changed(last: &mut BTreeMap<DiskId, Report>, reports: Vec<Report>) -> Vec<Report> {
    let is_new = |report: &Report| last.get(&report.disk) != Some(report);
    let due: Vec<Report> = reports.into_iter().filter(is_new).collect();
    last.extend(due.iter().map(|report| (report.disk.clone(), report.clone())));
    due
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Condition;

    fn told(disk: &str, rpo_micros: u64) -> Report {
        let disk = DiskId::new(disk).expect("a name");
        Report { disk, condition: Condition::Protected, rpo_micros, dirty_bytes: 0, unvaulted_bytes: rpo_micros }
    }

    #[test]
    fn a_disk_with_nothing_new_is_told_once_and_its_recovery_too() {
        let mut last = BTreeMap::new();
        let mut tell = |a, b| -> Vec<u64> {
            let reports = vec![told("a", a), told("b", b)];
            changed(&mut last, reports).into_iter().map(|report| report.rpo_micros).collect()
        };
        assert_eq!(tell(0, 7), [0, 7]);
        assert_eq!(tell(0, 9), [9]);
        assert_eq!(tell(0, 0), [0], "that it is well again");
        assert!(tell(0, 0).is_empty());
    }
}
