//! Signatures of barriers, and what they prove: that the records up to them are the agent's, and that nothing which the agent was
//! told to be vaulted is gone.
//!
//! ```text
//!  opened messages ─► each barrier: block, certificate, signature, chain before ─► marks per epoch ─┐
//!  history (spans, gaps, chains at the ends of messages) ───────────────────────────────────────────┼─► findings
//!  what the operator brings: authority, heads ──────────────────────────────────────────────────────┘
//! ```
//!
//! - A signed barrier proves every record before it in its epoch, back to a hole that the keeper left: the chain runs through them.
//! - A barrier without a signature is nothing new before the disk's first signed one: its agent was older. Behind that it must be
//!   proven by a later signature, or it is a finding.
//! - A barrier says what its agent was told to be vaulted. A history that does not reach so far, or has a hole there, was shortened,
//!   unless a copy of the machine, whose signatures count as well, began a later epoch.
//! - Without the operator's authority a signature proves only that one key made all of them; that is told.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use object_store::path::Path;
use parking_lot::Mutex;

use super::list::Listing;
use super::{Level, Report, VerifyOptions, gap_range};
use crate::mutants::{self, Mutant};
use crate::restore::damage::{Damage, RecordRange};
use crate::restore::history::{Gap, History, Presence};
use crate::restore::open::Opened;
use crate::restore::signature;
use crate::signed::heads::DiskHead;
use crate::signed::{AgentCertificate, Authority, Head, Signed};
use crate::types::{Chain, Digest, DiskId, Epoch, Id128, Micros, PointId, RecordKind, RecordView, Seq};
use crate::vault::{Vault, VaultError, names};

/// Findings kept by name and disk; behind a forged record every signature is one.
const FINDINGS_MAX: usize = 100;
/// What to do about a history that is not proven.
const ADVICE: &str = "trust no point behind the last one that is proven before a restore of it was compared with the machine, and \
                      take the gateways' credentials away until it is clear who wrote this";

/// What the operator knows, and nobody who writes to the vault can change.
#[derive(Clone, Debug, Default)]
pub struct Witness {
    /// Who issues the agents' certificates.
    pub authority: Option<Authority>,
    /// What agents were told to be vaulted.
    pub heads: Vec<DiskHead>,
}

/// Who signed a disk's barriers.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct SignedReport {
    /// The newest barrier that is signed, and proves all before it.
    pub through: Option<String>,
    /// Barriers whose signature holds.
    pub barriers: u64,
    /// Barriers without one.
    pub unsigned: u64,
    /// The agents whose signatures hold.
    pub agents: BTreeSet<String>,
    /// Whether the authority that the operator gave issued all of their certificates.
    pub vouched: bool,
}

/// What is known of the barriers of all disks, filled while messages are opened.
pub(super) struct Book {
    vault: Id128,
    authority: Option<Authority>,
    disks: BTreeMap<DiskId, Page>,
    heads: Vec<DiskHead>,
}

#[derive(Default)]
struct Page {
    certificates: HashMap<Digest, AgentCertificate>,
    /// What the operator brought of this disk.
    heads: BTreeSet<PointId>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    epochs: BTreeMap<Epoch, Marks>,
    /// The highest that agents signed to have been told of each epoch, and the barrier that says so.
    told: BTreeMap<Epoch, (Head, PointId)>,
    /// The chain after each record that a head names.
    at_heads: BTreeMap<PointId, Chain>,
    /// Moments at which the authority vouched for a certificate: it does for all between them, too.
    vouched: HashMap<Digest, (Micros, Micros)>,
    agents: BTreeSet<String>,
    used: BTreeSet<Digest>,
    damage: Vec<Damage>,
    /// Findings about certificates that were not listed: one may have come since.
    unlisted: Vec<(Digest, Damage)>,
    /// Whether messages were left out or could not be opened.
    partial: bool,
}

#[derive(Default)]
struct Marks {
    signed: Vec<Seq>,
    unsigned: Vec<Seq>,
}

impl Book {
    pub(super) fn new(vault: Id128, listing: &Listing, witness: &Witness) -> Self {
        let page = |(disk, names): (&DiskId, &super::list::DiskNames)| {
            let heads = witness.heads.iter().filter(|head| head.disk == *disk).map(DiskHead::at).collect();
            (disk.clone(), Page { certificates: names.certificates.clone(), heads, seen: Mutex::default() })
        };
        let disks = listing.disks.iter().map(page).collect();
        Self { vault, authority: witness.authority.clone(), disks, heads: witness.heads.clone() }
    }

    /// Notes that a message of the disk was not read.
    pub(super) fn not_read(&self, disk: &DiskId) {
        if let Some(page) = self.disks.get(disk) {
            page.seen.lock().partial = true;
        }
    }

    /// Takes the barriers of an opened message.
    pub(super) fn take(&self, disk: &DiskId, object: &Path, opened: &Opened<'_>) {
        let Some(page) = self.disks.get(disk) else { return };
        let meta = opened.meta();
        let ends = |seq| PointId { epoch: meta.epoch, seq };
        let named = page.heads.range(ends(meta.first)..=ends(meta.last)).next().is_some();
        let barriers = meta.records.iter().any(|row| matches!(row.kind, RecordKind::Barrier(_)));
        if !named && !barriers {
            return;
        }
        let mut before = meta.chain_before;
        for view in opened.records() {
            if page.heads.contains(&view.head.point()) {
                page.seen.lock().at_heads.insert(view.head.point(), view.head.chain);
            }
            if matches!(view.head.kind, RecordKind::Barrier(_)) {
                self.take_barrier(page, disk, object, &view, before);
            }
            before = Some(view.head.chain);
        }
    }

    fn take_barrier(&self, page: &Page, disk: &DiskId, object: &Path, view: &RecordView<'_>, before: Option<Chain>) {
        let head = &view.head;
        let mut unlisted = None;
        let judged = Signed::of(view).map(|block| {
            let block = block.map_err(|error| error.to_string())?;
            unlisted = Some(block.certificate).filter(|digest| !page.certificates.contains_key(digest));
            self.judge_barrier(page, disk, view, &block, before).map(|agent| (agent, block))
        });
        let mut seen = page.seen.lock();
        match judged {
            None => seen.epochs.entry(head.epoch).or_default().unsigned.push(head.seq),
            Some(Ok((agent, block))) => {
                seen.epochs.entry(head.epoch).or_default().signed.push(head.seq);
                seen.agents.insert(agent);
                seen.used.insert(block.certificate);
                if let Some(told) = block.told {
                    let highest = seen.told.entry(told.at.epoch).or_insert((told, head.point()));
                    if highest.0.at < told.at {
                        *highest = (told, head.point());
                    }
                }
            }
            Some(Err(what)) => {
                if seen.damage.len() + seen.unlisted.len() < FINDINGS_MAX {
                    let range = range(disk, head.epoch, (head.seq, head.seq), Some(head.label));
                    let what = format!("the signature of this barrier is refused: {what}; {ADVICE}");
                    let damage = Damage { object: Some(object.to_string()), ..Damage::records(range, what) };
                    match unlisted {
                        Some(digest) => seen.unlisted.push((digest, damage)),
                        None => seen.damage.push(damage),
                    }
                }
            }
        }
    }

    /// The agent that signed a barrier.
    fn judge_barrier(
        &self,
        page: &Page,
        disk: &DiskId,
        view: &RecordView<'_>,
        block: &Signed,
        before: Option<Chain>,
    ) -> Result<String, String> {
        let signer = signature::judge(self.vault, &page.certificates, disk, view, block, before)?;
        let vouched = self.vouch(page, signer, view.head.label);
        vouched.map_err(|refused| format!("its certificate {}: {refused}", signer.digest))?;
        Ok(signer.agent.agent.clone())
    }

    fn vouch(&self, page: &Page, signer: &AgentCertificate, label: Micros) -> Result<(), crate::signed::Refused> {
        let Some(authority) = &self.authority else { return Ok(()) };
        let known = page.seen.lock().vouched.get(&signer.digest).copied();
        if known.is_some_and(|(first, last)| (first..=last).contains(&label)) {
            return Ok(());
        }
        authority.vouches(signer, label)?;
        let mut seen = page.seen.lock();
        let (first, last) = seen.vouched.entry(signer.digest).or_insert((label, label));
        (*first, *last) = (label.min(*first), label.max(*last));
        Ok(())
    }

    /// Says what all of it proves.
    pub(super) async fn judge(
        &self,
        vault: &Vault,
        lines: &[(DiskId, Line)],
        options: &VerifyOptions,
        report: &mut Report,
    ) -> Result<(), VaultError> {
        for (disk, line) in lines {
            let Some(page) = self.disks.get(disk) else { continue };
            let mut seen = std::mem::take(&mut *page.seen.lock());
            look_again(vault, disk, &mut seen, report).await?;
            if options.level >= Level::Data {
                let mut judged = Judged { disk, line, seen, vouched: self.authority.is_some() };
                judged.findings(report);
                self.judge_heads(disk, line, &judged.seen, report);
            } else {
                self.judge_heads(disk, line, &seen, report);
            }
        }
        let wanted = |disk: &DiskId| options.disk.as_ref().is_none_or(|only| only == disk);
        for head in self.heads.iter().filter(|head| wanted(&head.disk)) {
            if lines.iter().all(|(disk, _)| *disk != head.disk) {
                let what = format!(
                    "the vault does not know this disk, of which an agent was told that {} is vaulted; {ADVICE}",
                    head.at()
                );
                report.damage.push(Damage::records(range(&head.disk, head.epoch, (head.seq, head.seq), None), what));
            }
        }
        Ok(())
    }

    /// Whether all that an agent was told, by what the operator brought, is there.
    fn judge_heads(&self, disk: &DiskId, line: &Line, seen: &Seen, report: &mut Report) {
        let wanted = |head: &&DiskHead| head.disk == *disk && !mutants::on(Mutant::HeadsUnread);
        for head in self.heads.iter().filter(wanted) {
            let at = head.at();
            let chain = seen.at_heads.get(&at).copied().or_else(|| line.chain_at(at));
            let what = match line.reaches(at) {
                Err(what) => format!("an agent was told that {at} is vaulted, but {what}"),
                Ok(()) if head.seq > Seq::NONE && chain.is_some_and(|chain| chain != head.chain) => {
                    format!("the records up to {at} are not those that an agent was told to be vaulted")
                }
                Ok(()) => continue,
            };
            let first = line.through(at.epoch).map_or(at.seq, |through| through.next().min(at.seq));
            let records = range(disk, at.epoch, (first, at.seq), None);
            report.damage.push(Damage::records(records, format!("{what}; {ADVICE}")));
        }
    }
}

/// Asks for certificates that were not listed: an agent's new one is kept while a listing runs.
async fn look_again(vault: &Vault, disk: &DiskId, seen: &mut Seen, report: &mut Report) -> Result<(), VaultError> {
    let mut came = BTreeMap::new();
    for (digest, damage) in std::mem::take(&mut seen.unlisted) {
        let here = match came.get(&digest) {
            Some(here) => *here,
            None => vault.store().exists(&names::certificate(disk, digest)).await?,
        };
        came.insert(digest, here);
        if here {
            seen.partial = true;
        } else {
            seen.damage.push(damage);
        }
    }
    if came.values().any(|here| *here) {
        report.notes.push(format!("disk {disk}: its agent had a new certificate while this looked: look again"));
    }
    Ok(())
}

fn range(disk: &DiskId, epoch: Epoch, (first, last): (Seq, Seq), label: Option<Micros>) -> RecordRange {
    RecordRange { disk: disk.clone(), epoch, first, last, labels: [label, None] }
}

/// A disk's history, as far as signatures are about it.
pub(super) struct Line {
    /// Epochs of the lineage, in order: the last record that counts, if another epoch follows, and that of the usable prefix.
    spans: Vec<(Epoch, Option<Seq>, Seq)>,
    /// Stretches that nobody can read: the keeper let them go.
    holes: Vec<(Epoch, Seq, Seq)>,
    /// What is missing and was called late.
    late: Vec<Gap>,
    /// Whether something was found to be lost or contradictory already.
    damaged: bool,
    chains: HashMap<PointId, Chain>,
}

impl Line {
    pub(super) fn of(history: &History) -> Self {
        let spans = history.spans.iter().map(|span| (span.segment.epoch, span.segment.last, span.through)).collect();
        let gone = history.picks().filter(|(_, pick)| history.rows[pick.row].presence == Presence::LetGo);
        let holes = gone.map(|(epoch, pick)| (epoch, pick.first, pick.last)).collect();
        let late = history.gaps.iter().filter(|gap| !gap.lost).copied().collect();
        let ends = history.rows.iter().map(|row| &row.message);
        let ends = ends.map(|message| (PointId { epoch: message.epoch, seq: message.last }, message.chain_last));
        Self { spans, holes, late, damaged: history.damaged(), chains: ends.collect() }
    }

    fn chain_at(&self, at: PointId) -> Option<Chain> {
        self.chains.get(&at).copied()
    }

    fn through(&self, epoch: Epoch) -> Option<Seq> {
        self.spans.iter().find(|(known, ..)| *known == epoch).map(|(_, _, through)| *through)
    }

    /// Whether a record is in the usable history; if not, how that ends before it.
    fn reaches(&self, at: PointId) -> Result<(), String> {
        let PointId { epoch, seq } = at;
        match self.spans.iter().find(|(known, ..)| *known == epoch) {
            None => Err(match self.spans.last() {
                Some((newest, ..)) if *newest < epoch => format!("the newest epoch of the vault is {newest}"),
                Some((newest, ..)) => {
                    format!("the newest epoch of the vault, {newest}, does not come from epoch {epoch}")
                }
                None => "the vault has no epoch of the disk".to_owned(),
            }),
            Some((_, Some(last), _)) if *last < seq => {
                Err(format!("the vault's next epoch leaves epoch {epoch} behind e{epoch}-s{last}"))
            }
            Some((_, _, through)) if *through < seq => Err(format!("the vault's records end at e{epoch}-s{through}")),
            Some(_) => Ok(()),
        }
    }

    /// Whether nothing is let go between two records of an epoch.
    fn whole(&self, epoch: Epoch, first: Seq, last: Seq) -> bool {
        self.holes.iter().all(|(of, from, to)| *of != epoch || *to < first || *from > last)
    }
}

/// One disk, all of whose messages were read that are to be read.
struct Judged<'a> {
    disk: &'a DiskId,
    line: &'a Line,
    seen: Seen,
    vouched: bool,
}

impl Judged<'_> {
    fn findings(&mut self, report: &mut Report) {
        for marks in self.seen.epochs.values_mut() {
            for seqs in [&mut marks.signed, &mut marks.unsigned] {
                // What two gateways uploaded stands there twice.
                seqs.sort_unstable();
                seqs.dedup();
            }
        }
        std::mem::take(&mut self.seen.damage).into_iter().for_each(|damage| report.damaged(damage));
        if !self.seen.partial {
            self.unproven(report);
        }
        self.told(report);
        self.notes(report);
        let (signed, unsigned) = self.count();
        let summary = SignedReport {
            through: self.newest().map(|at| at.to_string()),
            barriers: signed,
            unsigned,
            agents: self.seen.agents.clone(),
            vouched: self.vouched && signed > 0,
        };
        if let Some(disk) = report.disks.iter_mut().find(|one| one.disk == *self.disk) {
            disk.signed = Some(summary);
        }
    }

    /// The barriers of the usable history, in order: signed, and not.
    fn counted(&self) -> impl Iterator<Item = (Epoch, &[Seq], &[Seq])> {
        self.line.spans.iter().filter_map(|(epoch, _, through)| {
            let marks = self.seen.epochs.get(epoch)?;
            let upto = |all: &[Seq]| all.partition_point(|seq| seq <= through);
            Some((*epoch, &marks.signed[..upto(&marks.signed)], &marks.unsigned[..upto(&marks.unsigned)]))
        })
    }

    fn count(&self) -> (u64, u64) {
        self.counted().fold((0, 0), |(signed, unsigned), (_, more, less)| {
            (signed + more.len() as u64, unsigned + less.len() as u64)
        })
    }

    fn newest(&self) -> Option<PointId> {
        self.counted().filter_map(|(epoch, signed, _)| Some(PointId { epoch, seq: *signed.last()? })).last()
    }

    /// Barriers behind the first signed one that no signature proves.
    fn unproven(&self, report: &mut Report) {
        let Some(first) = self.counted().find_map(|(epoch, signed, _)| Some(PointId { epoch, seq: *signed.first()? }))
        else {
            return;
        };
        let mut damage = Vec::new();
        for (epoch, signed, unsigned) in self.counted() {
            let told = self.seen.told.get(&epoch).map(|(head, _)| *head);
            let told = told.filter(|head| self.line.chain_at(head.at) == Some(head.chain)).map(|head| head.at.seq);
            let proven = |seq: Seq| {
                let next = signed.get(signed.partition_point(|one| *one < seq)).copied();
                [next, told.filter(|told| *told >= seq)].into_iter().flatten().any(|by| self.line.whole(epoch, seq, by))
            };
            let open = unsigned.iter().filter(|&&seq| PointId { epoch, seq } > first && !proven(seq));
            let open: Vec<Seq> = open.copied().collect();
            let [Some(from), Some(to)] = [open.first().copied(), open.last().copied()] else { continue };
            let what = format!(
                "{} of the barriers here are not signed, and no later signature proves them, though the disk's agent signs since \
                 {first}: either a gateway of an older release carried the disk, or somebody wrote them who is not its agent; {ADVICE}",
                open.len()
            );
            damage.push(Damage::records(range(self.disk, epoch, (from, to), None), what));
        }
        report.damage.extend(damage);
    }

    /// What agents signed to have been told must be there.
    fn told(&self, report: &mut Report) {
        let disk = self.disk;
        for (epoch, (head, by)) in &self.seen.told {
            let says = format!("with {by} an agent signed that {} is vaulted", head.at);
            for gap in self.line.late.iter().filter(|gap| gap.epoch == *epoch && gap.first <= head.at.seq) {
                let records = gap_range(disk, gap);
                let late = records.to_string();
                report.late.retain(|line| !line.starts_with(&late));
                let what = format!("these records are missing and were vaulted once: {says}");
                report.damage.push(Damage::records(records, what));
            }
            // Of what is lost or contradictory there are findings already.
            if self.line.damaged || self.line.late.iter().any(|gap| gap.epoch == *epoch) {
                continue;
            }
            let what = match self.line.reaches(head.at) {
                Ok(()) if self.line.chain_at(head.at).is_some_and(|chain| chain != head.chain) => {
                    format!("{says}, and these are not the records that it meant")
                }
                Ok(()) => continue,
                // A copy of the machine may begin an epoch below what the machine was told meanwhile; it has the same key.
                Err(what) if self.newest().is_some_and(|newest| newest.epoch > *epoch) => {
                    report.notes.push(format!(
                        "disk {disk}: {says}, but {what}; a copy of the machine, which signs as well, took over there"
                    ));
                    continue;
                }
                Err(what) => format!("{says}, but {what}"),
            };
            let records = range(disk, *epoch, (head.at.seq, head.at.seq), None);
            report.damage.push(Damage::records(records, format!("{what}; {ADVICE}")));
        }
    }

    fn notes(&self, report: &mut Report) {
        let disk = self.disk;
        let holes = self.line.holes.len();
        if self.newest().is_some() && holes > 0 {
            report.notes.push(format!(
                "disk {disk}: {holes} messages were let go by the keeper; what they wrote, and that the records before them are the \
                 agent's back to its last signature, the indexes alone say"
            ));
        }
        if !self.vouched && !self.seen.used.is_empty() {
            let all: Vec<String> = self.seen.used.iter().map(|digest| digest.to_string()[..16].to_owned()).collect();
            report.notes.push(format!(
                "disk {disk}: signed with certificate {} that nobody vouched for: give the authority that issues the agents' \
                 certificates with --ca",
                all.join(", ")
            ));
        }
    }
}
