//! Lanes under a catalog key that was replaced: thinned, folded and moved as all others are.

use super::site::busy_site;
use super::*;
use crate::keys::CatalogKey;
use crate::limits::CATALOG_KEY_GRACE_SECONDS;
use crate::vault::Vault;
use crate::vault::lane::Lane;

/// Puts another catalog key in the place of the present one; the site goes on with it.
async fn rotate(site: &mut Site) -> CatalogKey {
    let (vault, identity) = (&site.vault.vault, &site.vault.identity);
    let now = site.clock.wall();
    let (key, lists) = vault.stage_catalog_key(identity, &vault.lists().await.unwrap(), now).await.unwrap();
    vault.activate_catalog_key(identity, &lists, now).await.unwrap();
    site.vault.vault = Vault::open(vault.store().clone(), key.clone()).await.unwrap();
    key
}

#[tokio::test]
async fn lanes_under_a_key_that_was_replaced_are_thinned_as_if_it_stood() {
    for (fold, moves) in [(false, false), (true, false), (false, true)] {
        let mut site = busy_site().await;
        (site.work.fold, site.work.moves) = (fold, moves);
        let kept = site.kept_of_all().await;
        let needed = site.needed(&kept).await;
        rotate(&mut site).await;
        // Nothing that is made with the old key counts any more, lane indexes neither.
        site.wait(Duration::from_secs(2 * CATALOG_KEY_GRACE_SECONDS));
        let written = site.once().await.unwrap();
        assert!(written.lanes_sealed > 0, "{written:?}");
        site.settle().await;
        site.check(&kept).await;
        if !moves {
            assert_eq!(site.batches().await, needed, "as before");
        }
        let options = VerifyOptions {
            level: Level::Data,
            sample: Quota::All,
            draw: None,
            disk: None,
            limits: fetch::FetchLimits { memory_bytes: 1 << 20, jobs: 4, workers: 2 },
        };
        let report = verify(&site.vault.vault, Some(&site.vault.identity), &options, Arc::default()).await.unwrap();
        assert_eq!(report.damage.len(), 0, "{:?}", report.damage);
    }
}

#[tokio::test]
async fn a_keeper_that_has_the_old_key_alone_ends_its_run_and_deletes_nothing() {
    let mut site = busy_site().await;
    let old = site.vault.vault.clone();
    site.once().await.unwrap();
    let before = site.batches().await;
    rotate(&mut site).await;
    Lane::open(&site.vault.vault, "gw-2", &crate::flow::SystemClock::new()).await.unwrap();
    old.lists().await.unwrap();
    let new = std::mem::replace(&mut site.vault.vault, old);
    let ended = site.once().await.unwrap_err();
    assert!(ended.to_string().contains("was replaced"), "{ended}");
    site.vault.vault = new;
    assert_eq!(site.batches().await, before);
}
