use bytes::Bytes;
use object_store::ObjectStoreExt;

use super::*;
use crate::vault::testing::{Fate, FaultStore};

const LIMIT: Duration = Duration::from_millis(200);

fn body() -> PutPayload {
    // Pieces that do not line up with those of the answer.
    [&b"tide"[..], b"", b"gate"].into_iter().map(Bytes::from_static).collect()
}

fn fails_once(fate: Fate) -> impl FnMut(&'static str, &Path) -> Fate {
    let mut first = true;
    move |operation, _| if operation == "put" && std::mem::take(&mut first) { fate } else { Fate::Good }
}

#[tokio::test]
async fn a_put_whose_answer_was_lost_is_recognised_when_it_is_tried_again() {
    let path = Path::from("b/1");
    for fate in [Fate::AnswerLost, Fate::Hang] {
        let store = FaultStore::new();
        store.plan(fails_once(fate));
        let first = create_only(&store.place(), &path, body(), LIMIT).await.expect_err("no answer");
        assert_eq!(first.fault(), Fault::Retry, "{first}");
        assert_eq!(create_only(&store.place(), &path, body(), LIMIT).await.expect("stored"), Created::Before);
    }
}

#[tokio::test]
async fn already_exists_is_not_believed_when_nothing_is_there() {
    let (store, path) = (FaultStore::new(), Path::from("b/1"));
    store.plan(fails_once(Fate::Status(409)));
    let error = create_only(&store.place(), &path, body(), LIMIT).await.expect_err("nothing was stored");
    assert!(matches!(error, PutError::NotStored { .. }), "{error}");
    assert_eq!(error.fault(), Fault::Retry);
    assert_eq!(create_only(&store.place(), &path, body(), LIMIT).await.expect("stored"), Created::Now);
}

#[tokio::test]
async fn other_content_under_the_name_is_never_taken_for_ours_or_overwritten() {
    let path = Path::from("b/1");
    for other in ["tidegatE", "tidegat", "tidegate1", ""] {
        let store = FaultStore::new();
        store.inner_put(&path, other).await;
        let error = create_only(&store.place(), &path, body(), LIMIT).await.expect_err("taken");
        assert!(matches!(error, PutError::Taken { want_bytes: 8, .. }), "{error}");
        assert_eq!(error.fault(), Fault::Fatal);
        let kept = store.place().inner().get(&path).await.expect("there").bytes().await.expect("read");
        assert_eq!(kept, other);
    }
}

#[tokio::test]
async fn a_failed_reading_back_says_nothing_about_the_object() {
    let (store, path) = (FaultStore::new(), Path::from("b/1"));
    store.inner_put(&path, "tidegate").await;
    store.plan(|operation, _| if operation == "get" { Fate::Status(503) } else { Fate::Good });
    let error = create_only(&store.place(), &path, body(), LIMIT).await.expect_err("not known");
    assert_eq!(error.fault(), Fault::Retry, "{error}");
}

#[tokio::test]
async fn each_answer_of_the_service_gets_its_class() {
    for (status, fault) in [(401, Fault::Reject), (403, Fault::Reject), (500, Fault::Retry), (503, Fault::Retry)] {
        let store = FaultStore::new();
        store.plan(fails_once(Fate::Status(status)));
        let error = create_only(&store.place(), &Path::from("b/1"), body(), LIMIT).await.expect_err("refused");
        assert_eq!(error.fault(), fault, "{error}");
    }
}
