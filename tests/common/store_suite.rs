//! What a vault needs of a blob service, run over every service that the tests know.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use object_store::PutPayload;
use object_store::path::Path;
use tidegate::fault::{Classify, Fault};
use tidegate::flow::{Clock, SystemClock};
use tidegate::keys::Identity;
use tidegate::pipeline::BatchObject;
use tidegate::pipeline::codec::Codec;
use tidegate::types::{Chain, DiskId, Epoch, Id128, Micros, RecordKind, Seq};
use tidegate::vault::batch::{BatchBuilder, BatchHeader, FinishedBatch};
use tidegate::vault::fault::BlobCause;
use tidegate::vault::index::{MessageMeta, RecordMeta};
use tidegate::vault::lane::Lane;
use tidegate::vault::put::{Created, PutError, create_only};
use tidegate::vault::reader::{Catalog, Want};
use tidegate::vault::upload_queue::QueueLimits;
use tidegate::vault::uploader::{UploadEvent, Uploader, UploaderConfig};
use tidegate::vault::url::{create_store, open_store};
use tidegate::vault::{InitOptions, Vault, names};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// A blob service of its own for one test; dropped, it is gone.
pub trait BlobService {
    /// Starts an empty one.
    fn start() -> Self;
    /// URL of a vault in a container of this name.
    fn vault_url(&self, container: &str) -> String;
    /// Nobody reaches it from here on.
    fn stop(&mut self);
    /// It is there again, with what it held.
    fn start_again(&mut self);
}

const LIMIT: Duration = Duration::from_secs(30);

async fn new_vault(url: &str) -> (Vault, Identity) {
    let identity = Identity::generate();
    let options = InitOptions { recipients: vec![identity.recipient()], now: SystemClock::new().wall() };
    let store = create_store(url).await.unwrap();
    (Vault::init(store, &options).await.unwrap().0, identity)
}

/// A batch of one disk whose only message covers one record.
fn batch(vault: &Vault, lane: Id128, n: u64, filler_bytes: usize) -> BatchObject {
    let record = RecordMeta {
        seq: Seq(n),
        label: Micros(1_800_000_000_000_000 + n),
        uncertainty_micros: 1,
        kind: RecordKind::Copy,
        group: Id128::NONE,
        name: None,
        extents: Vec::new(),
    };
    let message = MessageMeta {
        epoch: Epoch(1),
        first: Seq(n),
        last: Seq(n),
        offset_bytes: 0,
        stored_bytes: 0,
        plain_bytes: 128,
        codec: Codec::Raw,
        chain_before: None,
        chain_last: Chain([n as u8; 32]),
        received_first: Micros(1_800_000_000_000_000),
        received_last: Micros(1_800_000_000_000_000),
        origin: None,
        records: vec![record],
    };
    let mut builder = BatchBuilder::new(BatchHeader { vault: vault.id(), lane, n });
    builder.push(&DiskId::new("d1").unwrap(), message, vec![n as u8; filler_bytes].into());
    let name = names::batch_name(lane, n);
    let FinishedBatch { body, index, sealed_index } = builder.finish(vault.need_key().unwrap(), &name, n - 1).unwrap();
    BatchObject { vault: vault.id(), lane, n, name, body, index, sealed_index, records: 1, plain_bytes: 128 }
}

pub async fn create_only_puts_ranges_and_listings_behave_as_the_vault_needs<S: BlobService>() {
    let service = S::start();
    let store = create_store(&service.vault_url("primitives/some/prefix")).await.unwrap();
    let path = Path::from("b/000/x/1");
    let body = || PutPayload::from_static(b"tidegate");
    assert_eq!(create_only(&store, &path, body(), LIMIT).await.unwrap(), Created::Now);
    assert_eq!(create_only(&store, &path, body(), LIMIT).await.unwrap(), Created::Before);
    let other = create_only(&store, &path, PutPayload::from_static(b"tidegatE"), LIMIT).await.unwrap_err();
    assert!(matches!(other, PutError::Taken { .. }), "{other}");
    assert_eq!(&store.get_range(&path, 2..6).await.unwrap()[..], b"dega");
    assert_eq!(store.get_range(&path, 2..60).await.unwrap_err().fault(), Fault::Corrupt);
    assert!(store.exists(&path).await.unwrap());
    assert!(!store.exists(&Path::from("b/000/x/2")).await.unwrap());
    assert_eq!(store.get(&Path::from("nothing"), 10).await.unwrap(), None);
    let listed = store.list(Some(&Path::from("b"))).await.unwrap();
    assert_eq!((listed.len(), listed[0].path.clone(), listed[0].size_bytes), (1, path.clone(), 8));
    assert_eq!(store.modified(&path).await.unwrap(), Some(listed[0].modified_micros));
    assert_eq!(store.folders(&Path::from("b")).await.unwrap(), ["000"]);
    store.delete(&path).await.unwrap();
    assert!(!store.exists(&path).await.unwrap());
    // Two keepers may delete the same.
    store.delete(&path).await.unwrap();
    assert_eq!(create_only(&store, &path, body(), LIMIT).await.unwrap(), Created::Now);
}

pub async fn exactly_one_of_many_racers_creates_an_object<S: BlobService>() {
    let service = S::start();
    let store = create_store(&service.vault_url("race")).await.unwrap();
    let mut racers = tokio::task::JoinSet::new();
    for racer in 0..8_u8 {
        let store = store.clone();
        racers.spawn(async move { create_only(&store, &Path::from("epoch"), vec![racer; 100].into(), LIMIT).await });
    }
    let results = racers.join_all().await;
    assert_eq!(results.iter().filter(|result| matches!(result, Ok(Created::Now))).count(), 1, "{results:?}");
    assert_eq!(results.iter().filter(|result| matches!(result, Err(PutError::Taken { .. }))).count(), 7, "{results:?}");
}

pub async fn a_store_that_goes_away_and_comes_back_loses_nothing_and_needs_nobody<S: BlobService>() {
    let mut service = S::start();
    let (vault, identity) = new_vault(&service.vault_url("outage")).await;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let lane = Lane::open(&vault, "gw-1", &*clock).await.unwrap();
    let (sender, mut events) = mpsc::channel(16);
    let pauses = QueueLimits { pause_max: Duration::from_millis(500), ..QueueLimits::default() };
    let config = UploaderConfig { queue: pauses, ..UploaderConfig::default() };
    let uploader = Uploader::start(
        vault.clone(),
        &lane,
        config,
        &tidegate::flow::Pace::default(),
        clock,
        &Handle::current(),
        sender,
    );
    let collector = tokio::spawn(async move {
        let mut acked = Vec::new();
        while let Some(event) = events.recv().await {
            if let UploadEvent::Vaulted(vaulted) = event {
                acked.push(vaulted.n);
            }
        }
        acked
    });
    for n in 1..=10 {
        uploader.submit(batch(&vault, lane.id(), n, 1 << 20)).await.unwrap();
    }
    service.stop();
    for n in 11..=20 {
        uploader.submit(batch(&vault, lane.id(), n, 300 << 10)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(uploader.confirmed_through().get() <= 10, "nothing is confirmed while the store is away");
    service.start_again();
    assert_eq!(uploader.finish().await.unwrap(), 20);
    assert_eq!(collector.await.unwrap(), (1..=20).collect::<Vec<_>>());

    let reader = Vault::open_with_identity(vault.store().clone(), &identity).await.unwrap();
    let catalog = Catalog::load(&reader, &Want::disk(&DiskId::new("d1").unwrap())).await.unwrap();
    assert_eq!(catalog.findings, []);
    assert_eq!(catalog.batches.len(), 20);
    let key = reader.open_lane_key(catalog.lane(lane.id()).unwrap(), &identity).unwrap();
    assert_eq!(key.expose(), lane.key().expose());
}

pub async fn a_missing_container_and_an_empty_one_are_told_apart<S: BlobService>() {
    let service = S::start();
    let cause = |error: tidegate::vault::VaultError| match error {
        tidegate::vault::VaultError::Get(tidegate::vault::store::GetError::Blob(blob)) => blob.cause,
        other => panic!("{other}"),
    };
    let missing = Vault::open_without_key(open_store(&service.vault_url("nowhere")).unwrap()).await.unwrap_err();
    let text = missing.to_string();
    assert!(text.contains("no container") && text.contains("nowhere"), "{text}");
    assert_eq!(cause(missing), BlobCause::NoContainer);

    create_store(&service.vault_url("empty")).await.unwrap();
    let empty = Vault::open_without_key(open_store(&service.vault_url("empty")).unwrap()).await.unwrap_err();
    assert!(empty.to_string().contains("no vault"), "{empty}");
}

/// Runs the command with a credential of its own.
fn status(url: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["vault", "status", "--vault", url]).envs(variables.iter().copied());
    command.output().unwrap()
}

pub async fn the_command_names_the_credential_that_was_refused_and_never_shows_it<S: BlobService>() {
    let service = S::start();
    let url = service.vault_url("credentials");
    new_vault(&url).await;
    let good = status(&url, &[]);
    assert!(good.status.success(), "{good:?}");
    let secret = "c2VjcmV0LXRoYXQtaXMtd3Jvbmc=";
    let wrong = status(&url, &[("AZURE_STORAGE_ACCOUNT_KEY", secret)]);
    let text = String::from_utf8(wrong.stderr).unwrap();
    assert_eq!(wrong.status.code(), Some(1), "{text}");
    assert!(text.contains("AZURE_STORAGE_ACCOUNT_KEY") && text.contains("denied"), "{text}");
    assert!(!text.contains(secret), "{text}");
    let sas = "sv=2020-01-01&ss=b&srt=sco&sp=rl&sig=c2VjcmV0";
    let wrong = status(&url, &[("AZURE_STORAGE_SAS_TOKEN", sas)]);
    let text = String::from_utf8(wrong.stderr).unwrap();
    assert!(text.contains("AZURE_STORAGE_SAS_TOKEN") && !text.contains("c2VjcmV0"), "{text}");
    drop(service);
    let gone = status(&url, &[]);
    let text = String::from_utf8(gone.stderr).unwrap();
    assert_eq!(gone.status.code(), Some(75), "{text}");
    assert!(text.contains("cannot be reached"), "{text}");
}
