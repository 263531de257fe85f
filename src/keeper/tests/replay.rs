//! An older word of the keeper put back in the place of a newer one.

use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::*;
use crate::keeper::policy::Held;

/// Every manifest that stands, by its name.
async fn manifests(site: &Site) -> Vec<(Path, Vec<u8>)> {
    let store = site.vault.vault.store();
    let mut all = Vec::new();
    for lane in site.vault.vault.lanes().await.unwrap() {
        for listed in store.list(Some(&names::manifests(lane.lane))).await.unwrap() {
            let bytes = store.inner().get(&listed.path).await.unwrap().bytes().await.unwrap();
            all.push((listed.path, bytes.to_vec()));
        }
    }
    all
}

#[tokio::test(start_paused = true)]
async fn an_older_manifest_put_back_is_found_by_the_batches_that_it_does_not_let_go() {
    let mut site = busy_site().await;
    // Keeps more at first, so that the first manifests let less go.
    let label = |at: usize| site.disks[0].records[&Epoch(1)][at].head.label;
    let held = Held { from: label(10), until: label(25) };
    site.policies.default = Policy { holds: vec![held], ..app_points() };
    site.settle().await;
    let older = manifests(&site).await;
    site.policies.default = app_points();
    site.settle().await;
    let options = || {
        let limits = fetch::FetchLimits { memory_bytes: 1 << 20, jobs: 2, workers: 1 };
        VerifyOptions { level: Level::Data, sample: Quota::All, draw: None, disk: None, limits }
    };
    let (vault, identity) = (&site.vault.vault, &site.vault.identity);
    assert_eq!(verify(vault, Some(identity), &options(), Arc::default()).await.unwrap().outcome, "ok");
    let newer = manifests(&site).await;
    assert_ne!(older, newer, "the policy made a difference");
    for (path, _) in &newer {
        vault.store().delete(path).await.unwrap();
    }
    for (path, bytes) in &older {
        vault.store().inner().put(path, bytes.clone().into()).await.unwrap();
    }
    let report = verify(vault, Some(identity), &options(), Arc::default()).await.unwrap();
    let texts: Vec<String> = report.damage.iter().map(ToString::to_string).collect();
    let named =
        |text: &String| text.contains("is missing: it was vaulted once") && text.contains("records of disk sda, sdb");
    assert!(texts.iter().any(named), "{texts:#?}");
}
