//! Signatures of barriers on the way back: judging one, and whether the point that is restored is proven by one.
//!
//! What a restore reads it checks record by record, and of the messages in between it believes the indexes. So this proves that the
//! agent made a point in this place of its history; that every record before it is the agent's, `verify` at level data proves, which
//! reads them all.

use std::collections::HashMap;

use object_store::path::Path;

use super::fetch::FetchError;
use super::history::{History, Pick, Presence};
use super::open::{MessagePlace, Scratch};
use super::source::Source;
use crate::fault::{Classify, Fault};
use crate::signed::{AgentCertificate, Authority, Signed};
use crate::types::{Chain, Digest, DiskId, Id128, PointId, RecordKind, RecordView, Seq};
use crate::vault::objects::CertificateObject;
use crate::vault::{Vault, VaultError, names};

/// Barriers looked at behind a point that is not signed itself: more of them in a row are no accident.
const BARRIERS_MAX: usize = 64;

/// Judges the block of a barrier of `disk` in vault `vault`, behind the chain `before`: whose it is. Whether anybody vouches for the
/// certificate is another question.
///
/// # Errors
/// Why it is refused, in words.
pub fn judge<'c>(
    vault: Id128,
    certificates: &'c HashMap<Digest, AgentCertificate>,
    disk: &DiskId,
    view: &RecordView<'_>,
    block: &Signed,
    before: Option<Chain>,
) -> Result<&'c AgentCertificate, String> {
    let certificate = block.certificate;
    let Some(signer) = certificates.get(&certificate) else {
        return Err(format!("the vault has no certificate {certificate} of this disk, by which it could be judged"));
    };
    let agent = &signer.agent.agent;
    if signer.agent.vault != vault || !signer.may_write(disk) {
        return Err(format!("it is of agent {agent}, whose certificate is not for this disk of this vault"));
    }
    if !block.holds(signer, disk, view) {
        return Err(format!("agent {agent} signed no such barrier in this place of this disk's history"));
    }
    if before.is_some_and(|before| before != block.before) {
        return Err(format!("agent {agent} signed it behind other records than those that stand before it here"));
    }
    signer.check_time(view.head.label).map_err(|refused| format!("its certificate {certificate}: {refused}"))?;
    Ok(signer)
}

/// What is known of a point.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It is signed, or a later barrier of its epoch is, which proves what stands before it.
    Signed {
        /// The barrier.
        by: PointId,
        /// Its agent.
        agent: String,
        /// Whether the authority that was given issued the certificate; without one nobody said so.
        vouched: bool,
    },
    /// No agent of the disk ever signed anything.
    Older,
    /// The disk's agent signs, and nothing proves this point.
    Unproven {
        /// What was found, in words.
        what: String,
    },
}

/// Looks for the signature that proves a point.
///
/// # Errors
/// If the store fails. What is damaged proves nothing.
pub async fn standing(
    source: &Source,
    history: &History,
    disk: &DiskId,
    point: PointId,
    authority: Option<&Authority>,
) -> Result<Standing, FetchError> {
    let certificates = certificates(&source.vault, disk).await?;
    if certificates.is_empty() {
        return Ok(Standing::Older);
    }
    for (pick, seq) in barriers_from(history, point).take(BARRIERS_MAX) {
        let at = PointId { epoch: point.epoch, seq };
        let unproven =
            |what: String| Ok(Standing::Unproven { what: format!("the signature of {at} is refused: {what}") });
        let Some(record) = read(source, history, disk, pick, seq).await? else { continue };
        let Ok((view, _)) = RecordView::split(&record.bytes) else { continue };
        let Some(block) = Signed::of(&view) else { continue };
        let judged = block.map_err(|error| error.to_string());
        let judged =
            judged.and_then(|block| judge(source.vault.id(), &certificates, disk, &view, &block, record.before));
        let signer = match judged {
            Ok(signer) => signer,
            Err(what) => return unproven(what),
        };
        if let Some(Err(refused)) = authority.map(|authority| authority.vouches(signer, view.head.label)) {
            return unproven(format!("its certificate {}: {refused}", signer.digest));
        }
        let agent = signer.agent.agent.clone();
        return Ok(Standing::Signed { by: at, agent, vouched: authority.is_some() });
    }
    let what = format!("neither {point} nor a barrier behind it in its epoch is signed, though the disk's agent signs");
    Ok(Standing::Unproven { what })
}

/// The certificates kept of a disk, without those that are damaged: what they signed is refused.
async fn certificates(vault: &Vault, disk: &DiskId) -> Result<HashMap<Digest, AgentCertificate>, FetchError> {
    let mut all = HashMap::new();
    for listed in vault.store().list(Some(&names::certificates(disk))).await? {
        let Some(digest) = names::digest_of_certificate(&listed.path) else { continue };
        match vault.get_object::<CertificateObject>(&listed.path).await {
            Ok(Some(object)) => drop(object.certificate(digest).map(|certificate| all.insert(digest, certificate))),
            Ok(None) => {}
            Err(VaultError::Get(error)) if error.fault() != Fault::Corrupt => return Err(error.into()),
            Err(_) => {}
        }
    }
    Ok(all)
}

/// The barriers of a point's epoch from it on that can be read, in order.
fn barriers_from(history: &History, point: PointId) -> impl Iterator<Item = (&Pick, Seq)> {
    let span = history.span_of(point.epoch);
    let picks = span.into_iter().flat_map(|span| &span.picks).filter(move |pick| pick.last >= point.seq);
    let here = picks.filter(move |pick| history.rows[pick.row].presence == Presence::Here);
    here.flat_map(move |pick| {
        let barriers = history.picked(pick).iter().filter(|row| matches!(row.kind, RecordKind::Barrier(_)));
        barriers.filter(move |row| row.seq >= point.seq).map(move |row| (pick, row.seq))
    })
}

struct Found {
    bytes: Vec<u8>,
    before: Option<Chain>,
}

/// One record, checked as a restore checks it; none if it cannot be had.
async fn read(
    source: &Source,
    history: &History,
    disk: &DiskId,
    pick: &Pick,
    seq: Seq,
) -> Result<Option<Found>, FetchError> {
    let row = &history.rows[pick.row];
    let (path, meta): (&Path, _) = (source.path(row.object), &row.message);
    source.make_ready(row.object, disk, meta).await?;
    let under = source.sealed(row.object, disk, meta);
    let Ok(key) = under.key else { return Ok(None) };
    let range = meta.offset_bytes..meta.offset_bytes + u64::from(meta.stored_bytes);
    let sealed = match source.vault.store().get_range(path, range).await {
        Ok(sealed) => sealed,
        Err(error) if error.is_not_found() || error.fault() == Fault::Corrupt => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let disk_bytes = history.disk_bytes();
    let place = MessagePlace { vault: source.vault.id(), object: &under.object, key: &key, disk, disk_bytes };
    let mut scratch = Scratch::default();
    let Ok(opened) = scratch.open(&place, meta, &sealed) else { return Ok(None) };
    let mut before = meta.chain_before;
    for view in opened.records() {
        if view.head.seq == seq {
            let bytes = [&view.head.encode()[..], view.table, view.payload].concat();
            return Ok(Some(Found { bytes, before }));
        }
        before = Some(view.head.chain);
    }
    Ok(None)
}
