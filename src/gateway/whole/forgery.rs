//! A thief with everything that a gateway has, and every lane's key, who may overwrite and delete in the store: what the agents
//! signed gives them away. The vaults are made by a gateway and an agent.

use bytes::BytesMut;
use std::path::PathBuf;

use object_store::ObjectStoreExt;
use object_store::path::Path as ObjectPath;

use super::*;
use crate::agent::disk::Overrides;
use crate::pipeline::codec::Codec;
use crate::pipeline::message::{self, MessageContext};
use crate::restore::fetch::FetchLimits;
use crate::restore::signature::{self, Standing};
use crate::restore::source::{self, Source};
use crate::restore::verify::{Level, Report, VerifyOptions, Witness, verify_with};
use crate::signed::heads::DiskHead;
use crate::signed::testing::AgentKey;
use crate::signed::{Authority, Signed};
use crate::types::{Chain, Epoch, PointId, RecordHead, RecordKind, RecordView, record_digest};
use crate::vault::batch::{BatchBuilder, BatchHeader};
use crate::vault::index::{BatchIndex, MessageMeta, RecordMeta};
use crate::vault::lane::Lane;
use crate::vault::names;
use crate::vault::objects::{self, LaneEndObject};
use crate::vault::reader::Want;

fn disk(name: &str) -> DiskId {
    DiskId::new(name).expect("a name")
}

/// A vault, and what its operator has.
struct Made {
    folder: tempfile::TempDir,
    vault: Vault,
    identity: Identity,
    heads: Vec<DiskHead>,
}

impl Made {
    fn ca(&self) -> PathBuf {
        self.folder.path().join("pki/ca.crt")
    }
}

fn two_disks(dir: &Path, tls: &TlsFiles, gateway: SocketAddr) -> Config {
    let mut config = agent_config(dir, tls, gateway);
    let mut second = config.disks[0].clone();
    second.id = disk("d2");
    second.listen = crate::nbd::Listen::Unix(dir.join("nbd2"));
    config.disks.push(second);
    config
}

/// Two disks; the first has two epochs.
fn made() -> Made {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().to_owned();
    let (vault, identity, heads) = run_in(7, &path, async |dir: &Path| {
        let Site { parts, vault, identity, clock, wires, agent_tls } = site(dir).await;
        let (address, trigger) = (parts.listener.local_addr(), parts.trigger.clone());
        let gateway = tokio::task::spawn_local(parts.run());
        let config = two_disks(dir, &agent_tls, address);
        let sources = ["d1", "d2"].map(|name| (disk(name), Arc::new(MemSource::new(name, DISK_BYTES))));
        let mut heads = Vec::new();
        for life in 0..2_u8 {
            let resync = Overrides { resync: life == 1, take_over: false };
            let agent = Agent::from_parts(agent::Parts {
                config: &config,
                overrides: &BTreeMap::from([(disk("d1"), resync)]),
                clock: Arc::clone(&clock),
                net: wires.net("10.0.0.2".parse().expect("address")),
                sources: sources.iter().map(|(id, source)| (id.clone(), Ok(Arc::clone(source) as _))).collect(),
            })
            .expect("the agent starts");
            let guests = agent.splitters();
            for number in 0..60_u64 {
                let content = Bytes::from(vec![number as u8 + 1 + 100 * life; 4096]);
                guests[number as usize % 2].write(number % 30 * 65_536, content, false).expect("written");
                tokio::time::sleep(Duration::from_millis(97)).await;
            }
            // Until all that was made is known to be vaulted.
            tokio::time::sleep(Duration::from_secs(10)).await;
            heads = agent.disks().iter().map(|one| DiskHead::new(one.id.clone(), one.told().expect("told"))).collect();
            assert!(agent.stop().await, "left clean");
        }
        trigger.start();
        gateway.await.expect("no panic").expect("a clean end");
        (vault, identity, heads)
    });
    Made { folder, vault, identity, heads }
}

/// One record in a thief's hands.
#[derive(Clone)]
struct Stolen {
    head: RecordHead,
    table: Vec<u8>,
    payload: Vec<u8>,
}

impl Stolen {
    fn is_barrier(&self) -> bool {
        matches!(self.head.kind, RecordKind::Barrier(_))
    }

    fn bytes(&self) -> Vec<u8> {
        [&self.head.encode()[..], &self.table, &self.payload].concat()
    }
}

struct Message {
    disk: DiskId,
    meta: MessageMeta,
    records: Vec<Stolen>,
}

struct Batch {
    path: ObjectPath,
    index: BatchIndex,
    messages: Vec<Message>,
}

/// What the thief knows of a vault: all of it.
struct Thief<'a> {
    made: &'a Made,
    source: Source,
    batches: Vec<Batch>,
}

impl<'a> Thief<'a> {
    async fn new(made: &'a Made) -> Self {
        let catalog = source::load(&made.vault, &Want::default()).await.expect("a catalog");
        let (source, damage) = Source::open(&made.vault, &made.identity, &catalog).expect("keys");
        assert!(damage.is_empty(), "{damage:?}");
        let mut batches = Vec::new();
        for (object, batch) in catalog.batches.iter().enumerate() {
            let path = batch.object.clone();
            let bytes = made.vault.store().inner().get(&path).await.expect("there").bytes().await.expect("read");
            let mut messages = Vec::new();
            for part in &batch.index.disks {
                for meta in &part.messages {
                    let context = context(&made.vault, path.as_ref(), &part.disk, meta);
                    source.make_ready(object as u32, &part.disk, meta).await.expect("read");
                    let key = source.sealed(object as u32, &part.disk, meta).key.expect("a key");
                    let from = meta.offset_bytes as usize;
                    let sealed = &bytes[from..from + meta.stored_bytes as usize];
                    let mut plain = Vec::new();
                    message::open(&key, &context, sealed, &mut plain).expect("opens");
                    messages.push(Message { disk: part.disk.clone(), meta: meta.clone(), records: records(&plain) });
                }
            }
            batches.push(Batch { path, index: batch.index.clone(), messages });
        }
        Self { made, source, batches }
    }

    /// All records of an epoch of a disk, in order.
    fn epoch(&mut self, of: &str, epoch: u64) -> Vec<&mut Stolen> {
        let (of, epoch) = (disk(of), Epoch(epoch));
        let messages = self.batches.iter_mut().flat_map(|batch| &mut batch.messages);
        let messages = messages.filter(|message| message.disk == of && message.meta.epoch == epoch);
        let mut records: Vec<_> = messages.flat_map(|message| &mut message.records).collect();
        records.sort_by_key(|record| record.head.seq);
        records
    }

    /// Makes digests and chains of an epoch fit what its records are now, and then all rows.
    async fn mend(&mut self, of: &str, epoch: u64) {
        let epochs = self.made.vault.epochs(&disk(of)).await.expect("epochs");
        let mut chain = epochs.iter().find(|begun| begun.epoch == Epoch(epoch)).expect("the epoch").first_chain();
        let mut before = BTreeMap::new();
        for record in self.epoch(of, epoch) {
            before.insert(record.head.seq, chain);
            record.head.payload_bytes = record.payload.len() as u32;
            record.head.digest = record_digest(&record.table, [&record.payload[..]]);
            record.head = record.head.sealed_after(chain);
            chain = record.head.chain;
        }
        for message in self.batches.iter_mut().flat_map(|batch| &mut batch.messages) {
            if message.disk != disk(of) || message.meta.epoch != Epoch(epoch) {
                continue;
            }
            let row = |record: &Stolen| {
                let view = RecordView { head: record.head, table: &record.table, payload: &record.payload };
                let extents = view.head.decode_extents(view.table, 1 << 40).expect("extents");
                RecordMeta::new(&view.head, extents, view.barrier_name().map(str::to_owned))
            };
            message.meta.records = message.records.iter().map(row).collect();
            message.meta.chain_before = Some(before[&message.meta.first]);
            message.meta.chain_last = message.records.last().expect("a record").head.chain;
        }
    }

    /// Seals all batches anew in the place of the old ones, saying that so much of their lanes was confirmed.
    async fn reseal(&self, confirmed: impl Fn(&BatchIndex) -> u64) {
        let vault = &self.made.vault;
        let mut scratch = message::Scratch::default();
        for (object, batch) in self.batches.iter().enumerate() {
            let header = BatchHeader { vault: vault.id(), lane: batch.index.lane, n: batch.index.n };
            let mut builder = BatchBuilder::new(header);
            for Message { disk, meta, records } in &batch.messages {
                let plain: Vec<u8> = records.iter().flat_map(Stolen::bytes).collect();
                let meta = MessageMeta { plain_bytes: plain.len() as u32, codec: Codec::Raw, ..meta.clone() };
                let context = context(vault, batch.path.as_ref(), disk, &meta);
                let key = self.source.sealed(object as u32, disk, &meta).key.expect("a key");
                let (info, sealed) =
                    message::seal(&key, &context, &plain, &mut scratch, BytesMut::with_capacity).expect("sealed");
                builder.push(disk, MessageMeta { codec: info.codec, ..meta }, sealed.freeze());
            }
            let key = vault.catalog_key().expect("at hand");
            let body = builder.finish(key, batch.path.as_ref(), confirmed(&batch.index)).expect("sealed").body;
            vault.store().inner().put(&batch.path, body).await.expect("put");
        }
        // They say what was there before; without them the batches are read.
        let lanes: std::collections::BTreeSet<_> = self.batches.iter().map(|batch| batch.index.lane).collect();
        for lane in lanes {
            for index in vault.store().list(Some(&names::lane_indexes(lane))).await.expect("listed") {
                vault.store().inner().delete(&index.path).await.expect("deleted");
            }
        }
    }

    /// Takes a batch away. The lane's end is forged, so that it says nothing of the batch.
    async fn drop_batch(&self, at: usize, last_left: u64) {
        let Batch { path, index, .. } = &self.batches[at];
        let vault = &self.made.vault;
        vault.store().inner().delete(path).await.expect("deleted");
        let end = names::lane_end(index.lane);
        if last_left == 0 {
            vault.store().inner().delete(&end).await.expect("deleted");
            return;
        }
        let object = LaneEndObject { lane: index.lane, last_batch: last_left };
        let bytes = objects::encode(vault.catalog_key().expect("at hand"), &end, &object).expect("encoded");
        vault.store().inner().put(&end, bytes.into()).await.expect("put");
    }
}

fn context<'c>(vault: &Vault, object: &'c str, disk: &'c DiskId, meta: &MessageMeta) -> MessageContext<'c> {
    let (codec, plain_bytes) = (meta.codec, meta.plain_bytes);
    let (epoch, first, last) = (meta.epoch, meta.first, meta.last);
    MessageContext { vault: vault.id(), object, disk, epoch, first, last, codec, plain_bytes }
}

fn records(mut plain: &[u8]) -> Vec<Stolen> {
    let mut records = Vec::new();
    while let Ok((view, rest)) = RecordView::split(plain) {
        records.push(Stolen { head: view.head, table: view.table.to_vec(), payload: view.payload.to_vec() });
        plain = rest;
    }
    records
}

async fn check(made: &Made, level: Level, witness: &Witness) -> Report {
    let limits = FetchLimits { memory_bytes: 1 << 20, jobs: 2, workers: 1 };
    let options =
        VerifyOptions { level, sample: crate::restore::verify::sample::Quota::All, draw: None, disk: None, limits };
    verify_with(&made.vault, Some(&made.identity), &options, witness, Arc::default()).await.expect("verified")
}

fn witness(made: &Made, heads: bool) -> Witness {
    let authority = Some(Authority::load(&made.ca()).expect("authority"));
    Witness { authority, heads: if heads { made.heads.clone() } else { Vec::new() } }
}

/// A finding that says all of this.
fn found(report: &Report, words: &[&str]) -> bool {
    let says = |text: &String| words.iter().all(|word| text.contains(word));
    let found = report.damage.iter().map(ToString::to_string).any(|text| says(&text));
    if !found {
        eprintln!("{words:?} is not among {:#?}", report.damage.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
    found
}

/// A vault is made, something is done to it, and it is looked at with all that its operator has.
fn after(attack: impl AsyncFnOnce(&Made)) -> (Made, Report) {
    let made = made();
    let report = outside(async {
        attack(&made).await;
        check(&made, Level::Data, &witness(&made, true)).await
    });
    (made, report)
}

fn outside<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(work)
}

#[test]
fn an_honest_vault_is_clean_and_says_who_signed_it() {
    let made = made();
    outside(async {
        for level in [Level::List, Level::Index, Level::Data] {
            let report = check(&made, level, &witness(&made, true)).await;
            assert_eq!((report.outcome, report.notes.len(), report.late.len()), ("ok", 0, 0), "{report:#?}");
        }
        let report = check(&made, Level::Data, &witness(&made, true)).await;
        for disk in &report.disks {
            let signed = disk.signed.as_ref().expect("at this level");
            assert_eq!(
                (signed.unsigned, signed.vouched, signed.through.as_ref()),
                (0, true, disk.newest_point.as_ref())
            );
            assert_eq!(signed.agents.iter().collect::<Vec<_>>(), ["a1"]);
        }
        assert_eq!(made.heads.iter().map(|head| head.epoch.0).collect::<Vec<_>>(), [2, 1]);
        let report = check(&made, Level::Data, &Witness::default()).await;
        assert_eq!((report.outcome, report.notes.len()), ("ok", 2), "{:?}", report.notes);
        assert!(report.notes[0].contains("nobody vouched for"), "{:?}", report.notes);
    });
}

#[test]
fn the_last_batch_dropped_is_found_by_who_has_the_heads() {
    let (made, report) = after(async |made| {
        let thief = Thief::new(made).await;
        let last = thief.batches.len() - 1;
        thief.reseal(|index| index.confirmed_through).await;
        thief.drop_batch(last, thief.batches[last - 1].index.n).await;
    });
    assert!(found(&report, &["an agent was told that e", "is vaulted, but the vault's records end at e"]));
    outside(async {
        let report = check(&made, Level::Index, &witness(&made, true)).await;
        assert!(found(&report, &["an agent was told that e"]), "without the identity, too");
        let report = check(&made, Level::Data, &witness(&made, false)).await;
        assert_eq!(report.outcome, "ok", "nothing in the vault tells of its end: {:?}", report.damage);
    });
}

#[test]
fn a_batch_in_the_middle_dropped_is_found_whatever_the_indexes_say() {
    let (made, report) = after(async |made| {
        let thief = Thief::new(made).await;
        // As if nothing had ever been confirmed, so that what is missing looks merely late.
        thief.reseal(|_| 0).await;
        let of_d2 = |batch: &Batch| batch.messages.iter().any(|message| message.disk == disk("d2"));
        let of_d2: Vec<usize> = (0..thief.batches.len()).filter(|&at| of_d2(&thief.batches[at])).collect();
        thief.drop_batch(of_d2[of_d2.len() / 2], 0).await;
    });
    assert!(found(&report, &["disk d", "these records are missing and were vaulted once", "an agent signed that e"]));
    let without = outside(check(&made, Level::Data, &witness(&made, false)));
    assert!(found(&without, &["were vaulted once: with e"]), "no heads are needed");
}

#[test]
fn swapped_records_are_found_though_everything_else_was_made_to_fit() {
    let (_, report) = after(async |made| {
        let mut thief = Thief::new(made).await;
        let mut records = thief.epoch("d2", 1);
        let writes: Vec<usize> = (0..records.len()).filter(|&at| records[at].head.kind == RecordKind::Write).collect();
        let [first, .., last] = writes[..] else { panic!("too few writes") };
        let payload = records[first].payload.clone();
        assert_ne!(payload, records[last].payload);
        records[first].payload = std::mem::replace(&mut records[last].payload, payload);
        drop(records);
        thief.mend("d2", 1).await;
        thief.reseal(|index| index.confirmed_through).await;
    });
    assert!(found(
        &report,
        &["disk d2, records e1-s", "behind other records than those that stand before it", "trust no point"]
    ));
    assert!(!found(&report, &["disk d1,"]));
}

#[test]
fn signatures_that_were_taken_off_are_missed() {
    let (_, report) = after(async |made| {
        let mut thief = Thief::new(made).await;
        let mut records = thief.epoch("d1", 2);
        let half = records.len() / 2;
        for record in &mut records[half..] {
            if record.is_barrier() {
                record.head.extent_count = 0;
                record.table.clear();
            } else {
                record.payload.fill(0xee);
            }
        }
        drop(records);
        thief.mend("d1", 2).await;
        thief.reseal(|index| index.confirmed_through).await;
    });
    assert!(found(
        &report,
        &["disk d1, records e2-s", "are not signed, and no later signature proves them", "trust no point"]
    ));
    assert!(found(&report, &["are not those that an agent was told to be vaulted"]));
}

#[test]
fn a_thief_with_an_authority_of_their_own_is_found_by_who_has_the_right_one() {
    let (made, report) = after(async |made| {
        let elsewhere = tempfile::tempdir().expect("folder");
        let key = AgentKey::issue(elsewhere.path(), made.vault.id(), "a1", &["d1", "d2"]);
        made.vault.keep_certificate(&disk("d2"), "a1", &key.chain).await.expect("kept");
        let mut thief = Thief::new(made).await;
        let mut records = thief.epoch("d2", 1);
        let mut chain = Chain::GENESIS;
        for record in &mut records {
            if record.is_barrier() {
                let told = Signed::decode(&record.table).expect("a block").told;
                record.table.clear();
                record.head.extent_count = 0;
                let signed = key.signer.sign(&disk("d2"), &mut record.head, &record.payload, chain, told);
                record.table = signed.expect("signed");
            } else if !record.payload.is_empty() {
                record.payload.fill(0xee);
            }
            record.head.digest = record_digest(&record.table, [&record.payload[..]]);
            record.head = record.head.sealed_after(chain);
            chain = record.head.chain;
        }
        drop(records);
        thief.mend("d2", 1).await;
        thief.reseal(|index| index.confirmed_through).await;
    });
    assert!(found(&report, &["disk d2, records e1-s", "the authority in", "did not issue it"]));
    let without = outside(check(&made, Level::Data, &Witness { authority: None, heads: Vec::new() }));
    let note = |note: &String| note.contains("disk d2") && note.contains("nobody vouched for");
    assert!(without.notes.iter().any(note), "{:?}", without.notes);
}

#[test]
fn a_signature_from_another_disk_or_epoch_is_refused() {
    for (from, to) in [(("d2", 1), ("d1", 2)), (("d1", 1), ("d1", 2))] {
        let (_, report) = after(async |made| {
            let mut thief = Thief::new(made).await;
            let block = |records: Vec<&mut Stolen>| {
                records.iter().rfind(|record| record.is_barrier()).expect("a barrier").table.clone()
            };
            let block = block(thief.epoch(from.0, from.1));
            let mut records = thief.epoch(to.0, to.1);
            records.iter_mut().rfind(|record| record.is_barrier()).expect("a barrier").table = block;
            drop(records);
            thief.mend(to.0, to.1).await;
            thief.reseal(|index| index.confirmed_through).await;
        });
        let place = format!("disk {}, records e{}-s", to.0, to.1);
        assert!(found(&report, &[&place, "signed no such barrier in this place"]), "{from:?} to {to:?}");
    }
}

#[test]
fn an_epoch_forged_below_what_was_vaulted_is_found() {
    let (_, report) = after(async |made| {
        let epochs = made.vault.epochs(&disk("d2")).await.expect("epochs");
        let thief = &mut Thief::new(made).await;
        let at = thief.epoch("d2", 1)[4].head;
        let forged = objects::EpochObject {
            epoch: Epoch(2),
            previous: Some(Epoch(1)),
            fork_seq: at.seq,
            chain_at_fork: at.chain,
            ..epochs[0].clone()
        };
        made.vault.create_epoch(&forged).await.expect("created");
    });
    assert!(found(
        &report,
        &["disk d2, records e1-s", "an agent signed that e1-s", "the vault's next epoch leaves epoch 1"]
    ));
}

#[test]
fn a_disk_that_was_taken_away_whole_is_missed_by_who_has_the_heads() {
    let (_, report) = after(async |made| {
        let mut thief = Thief::new(made).await;
        for batch in &mut thief.batches {
            batch.messages.retain(|message| message.disk != disk("d2"));
        }
        thief.reseal(|index| index.confirmed_through).await;
        let store = made.vault.store();
        for object in store.list(Some(&ObjectPath::from("d/d2"))).await.expect("listed") {
            store.inner().delete(&object.path).await.expect("deleted");
        }
    });
    assert!(found(&report, &["disk d2, records e1-s", "the vault does not know this disk"]));
}

#[test]
fn a_certificate_that_was_taken_away_or_replaced_is_missed() {
    let (_, report) = after(async |made| {
        let store = made.vault.store();
        let kept = store.list(Some(&names::certificates(&disk("d1")))).await.expect("listed");
        assert_eq!(kept.len(), 1, "one for both epochs");
        store.inner().delete(&kept[0].path).await.expect("deleted");
    });
    assert!(found(&report, &["disk d1, records e1-s1 to e1-s1", "the vault has no certificate"]));
}

#[test]
fn an_older_list_of_recipients_put_back_is_found_by_a_lane_of_the_newer_one() {
    let made = made();
    let (report, again) = outside(async {
        let vault = &made.vault;
        let guest = Identity::generate();
        let both = vec![made.identity.recipient(), guest.recipient()];
        let now = Micros(1_800_000_900_000_000);
        let lists = vault.lists().await.expect("read");
        vault.change_recipients(&made.identity, &lists, &both, now).await.expect("let in");
        let lists = vault.lists().await.expect("read");
        vault.change_recipients(&made.identity, &lists, &both[..1], now).await.expect("removed");
        let fresh = || Vault::open_with_identity(vault.store().clone(), &made.identity);
        let newest = fresh().await.expect("opens");
        Lane::open(&newest, "g1", &SystemClock::new()).await.expect("a lane of the newest list");
        let limits = FetchLimits { memory_bytes: 1 << 20, jobs: 2, workers: 1 };
        let options = VerifyOptions {
            level: Level::Data,
            sample: crate::restore::verify::sample::Quota::All,
            draw: None,
            disk: None,
            limits,
        };
        let look = async || {
            let vault = fresh().await.expect("opens");
            let witness = witness(&made, true);
            verify_with(&vault, Some(&made.identity), &options, &witness, Arc::default()).await.expect("verified")
        };
        let before = look().await;
        vault.store().inner().delete(&names::recipients_list(2)).await.expect("deleted");
        (before, look().await)
    });
    assert_eq!(report.outcome, "ok", "{:?}", report.damage);
    assert!(found(&again, &["recipients/00000002", "gone"]));
}

/// How a point stands by its signature.
async fn standing(made: &Made, of: &str, point: PointId, ca: Option<&Path>) -> Standing {
    let disk = disk(of);
    let catalog = source::load(&made.vault, &Want::disk(&disk)).await.expect("a catalog");
    let history = source::history(&catalog, &disk, &made.vault.epochs(&disk).await.expect("epochs"));
    let (source, _) = Source::open(&made.vault, &made.identity, &catalog).expect("keys");
    let authority = ca.map(|ca| Authority::load(ca).expect("authority"));
    signature::standing(&source, &history, &disk, point, authority.as_ref()).await.expect("looked")
}

#[test]
fn a_restore_says_which_signature_proves_its_point_and_misses_one_that_was_taken_off() {
    let made = made();
    outside(async {
        let mut thief = Thief::new(&made).await;
        let (points, head) = {
            let records = thief.epoch("d1", 2);
            let barrier = |at: usize| records.get(at).is_some_and(|record| record.is_barrier());
            let write =
                (0..records.len()).find(|&at| !barrier(at) && barrier(at + 1)).expect("a write before a barrier");
            (records[write].head.point(), records.last().expect("records").head.point())
        };
        let next = PointId { seq: points.seq.next(), ..points };
        let by = |by: PointId, vouched: bool| Standing::Signed { by, agent: "a1".into(), vouched };
        assert_eq!(standing(&made, "d1", points, Some(&made.ca())).await, by(next, true));
        assert_eq!(standing(&made, "d1", next, None).await, by(next, false));
        let elsewhere = tempfile::tempdir().expect("folder");
        AgentKey::issue(elsewhere.path(), made.vault.id(), "a1", &["d1"]);
        let refused = standing(&made, "d1", next, Some(&elsewhere.path().join("ca.crt"))).await;
        assert!(matches!(&refused, Standing::Unproven { what } if what.contains("did not issue it")), "{refused:?}");
        for record in thief.epoch("d1", 2).into_iter().filter(|record| record.head.seq >= next.seq) {
            if record.is_barrier() {
                record.head.extent_count = 0;
                record.table.clear();
            }
        }
        thief.mend("d1", 2).await;
        thief.reseal(|index| index.confirmed_through).await;
        let missed = standing(&made, "d1", head, None).await;
        assert!(
            matches!(&missed, Standing::Unproven { what } if what.contains("nor a barrier behind it")),
            "{missed:?}"
        );
    });
}
