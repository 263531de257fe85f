//! The vault's catalog key is replaced while a gateway and an agent work.

use std::collections::BTreeSet;

use super::*;
use crate::agent::points::PointRequest;
use crate::keys::{CatalogKey, KeyId};
use crate::restore::fetch::FetchLimits;
use crate::restore::verify::sample::Quota;
use crate::restore::verify::{Level, Report, VerifyOptions, verify};

/// A gateway and an agent at work.
struct Life {
    vault: Vault,
    identity: Identity,
    health: Arc<Health>,
    trigger: DrainTrigger,
    gateway: tokio::task::JoinHandle<Result<(), GatewayError>>,
    agent: Option<Agent>,
    next: CatalogKey,
}

/// They start when a key was staged: the gateway with its file, or with the old one.
async fn begin(dir: &Path, with_next: bool) -> Life {
    let Site { mut parts, vault, identity, clock, wires, agent_tls } = site(dir).await;
    let lists = vault.lists().await.expect("read");
    let (next, _) = vault.stage_catalog_key(&identity, &lists, clock.wall()).await.expect("staged");
    let key = if with_next { next.clone() } else { vault.catalog_key().expect("made with it").clone() };
    parts.vault = Arc::new(Vault::open(vault.store().clone(), key).await.expect("the vault opens"));
    let (address, trigger, health) = (parts.listener.local_addr(), parts.trigger.clone(), Arc::clone(&parts.health));
    let gateway = tokio::task::spawn_local(parts.run());
    let source = Arc::new(MemSource::new("d1", DISK_BYTES));
    let agent = Agent::from_parts(agent::Parts {
        config: &agent_config(dir, &agent_tls, address),
        overrides: &BTreeMap::new(),
        clock,
        net: wires.net("10.0.0.2".parse().expect("address")),
        sources: BTreeMap::from([(disk_id(), Ok(source as Arc<dyn Export>))]),
    })
    .expect("the agent starts");
    Life { vault, identity, health, trigger, gateway, agent: Some(agent), next }
}

impl Life {
    fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("it works")
    }

    /// Stops the agent; whether it left everything vaulted.
    async fn leave(&mut self) -> bool {
        self.agent.take().expect("it works").stop().await
    }

    async fn write(&self, seconds: u64) {
        let guest = self.agent().splitters().remove(0);
        for number in 0..seconds * 4 {
            let content = Bytes::from(vec![(number % 250) as u8 + 1; 4096]);
            guest.write(number % 30 * 65_536, content, false).expect("written");
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Whether a point of now is vaulted within a minute.
    async fn vaults(&self) -> bool {
        let timeout = Duration::from_secs(60);
        let request = PointRequest { kind: BarrierKind::Crash, name: String::new(), wait: true, timeout };
        agent::points::make(self.agent().disks(), &request).await.is_ok_and(|points| points[0].vaulted)
    }

    async fn activate(&self) {
        let vault = Vault::open_with_identity(self.vault.store().clone(), &self.identity).await.expect("opened");
        let lists = vault.lists().await.expect("read");
        vault.activate_catalog_key(&self.identity, &lists, SystemClock::new().wall()).await.expect("activated");
    }

    async fn reader(&self) -> Vault {
        Vault::open_with_identity(self.vault.store().clone(), &self.identity).await.expect("opened")
    }

    async fn verify(&self) -> Report {
        let limits = FetchLimits { memory_bytes: 1 << 20, jobs: 4, workers: 1 };
        let options = VerifyOptions { level: Level::Index, sample: Quota::All, draw: None, disk: None, limits };
        verify(&self.reader().await, Some(&self.identity), &options, Arc::default()).await.expect("verified")
    }

    async fn stop(self) {
        self.trigger.start();
        self.gateway.await.expect("no panic").expect("a clean end");
    }
}

#[test]
fn a_gateway_that_has_both_keys_goes_over_by_itself_and_loses_nothing() {
    run(11, async |dir: &Path| {
        let mut life = begin(dir, true).await;
        life.write(5).await;
        assert!(life.vaults().await);
        life.activate().await;
        // It goes on meanwhile, and another lane takes over.
        life.write(90).await;
        assert!(life.vaults().await);
        let reader = life.reader().await;
        let mut kids: BTreeSet<KeyId> = BTreeSet::new();
        for lane in reader.lanes().await.expect("listed") {
            kids.insert(reader.lane(lane.lane).await.expect("read").catalog_kid);
        }
        assert_eq!(kids, BTreeSet::from([life.vault.head().catalog_kid, life.next.kid()]));
        let open = reader.open_lanes().await.expect("read");
        assert!(open.iter().all(|lane| lane.catalog_kid == life.next.kid()), "{open:?}");
        assert!(life.leave().await, "everything is vaulted: left clean");
        let report = life.verify().await;
        assert_eq!((report.outcome, report.damage.len()), ("ok", 0), "{:?}", report.damage);
        life.stop().await;
    });
}

#[test]
fn a_gateway_that_has_the_old_key_alone_stops_vaulting_with_a_clear_word_and_keeps_its_journal() {
    run(12, async |dir: &Path| {
        let mut life = begin(dir, false).await;
        life.write(5).await;
        assert!(life.vaults().await, "nothing has changed for it");
        life.activate().await;
        life.write(90).await;
        let reader = life.reader().await;
        let before = reader.lanes().await.expect("listed").len();
        assert!(!life.vaults().await);
        let words = life.health.daemon_state(false).words;
        assert!(words.contains("was replaced") && words.contains("catalog-key --identity"), "{words}");
        assert_eq!(reader.lanes().await.expect("listed").len(), before, "it opens no lane any more");
        let report = life.verify().await;
        assert_eq!((report.outcome, report.damage.len()), ("ok", 0), "{:?}", report.damage);
        assert!(!life.leave().await, "what is journaled alone is not vaulted");
        life.stop().await;
    });
}
