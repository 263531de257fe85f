//! What a restore says in the end: text, or one JSON object.

use std::time::Duration;

use serde_json::{Value, json};

use super::choice::Member;
use super::{Args, view};
use crate::cli::Failure;
use crate::config::show_size;
use crate::fault::{Classify, Fault, exit};
use crate::restore::damage::Damage;
use crate::restore::write::{RestoreError, Restored};

/// Damage that the text names one by one.
const DAMAGE_SHOWN: usize = 20;

/// What came of one disk.
pub(super) struct Told<'a> {
    pub(super) member: &'a Member,
    pub(super) took: Duration,
    /// What should be known of its vault.
    pub(super) warnings: Vec<String>,
    pub(super) outcome: Result<Restored, RestoreError>,
}

impl Told<'_> {
    pub(super) fn json(&self) -> Value {
        let Member { disk, point, to, .. } = self.member;
        let point = view::point_json(point);
        match &self.outcome {
            Ok(restored) => json!({
                "disk": disk,
                "point": point,
                "to": to,
                "disk_bytes": restored.disk_bytes,
                "virtual_bytes": restored.virtual_bytes,
                "data_bytes": restored.data_bytes,
                "read_bytes": restored.read_bytes,
                "same_bytes": restored.same_bytes,
                "messages": restored.messages,
                "resumed_messages": restored.resumed_messages,
                "seconds": self.took.as_secs_f64(),
                "warnings": self.warnings,
            }),
            Err(error) => json!({
                "disk": disk,
                "point": point,
                "to": to,
                "error": error.to_string(),
                "try_again": error.fault() == Fault::Retry,
                "damage": damage(error).iter().map(|damage| json!(damage)).collect::<Vec<_>>(),
            }),
        }
    }

    /// The lines of a disk that came back.
    pub(super) fn text(&self, args: &Args, restored: &Restored) -> String {
        let Member { disk, point, to, .. } = self.member;
        let mut text = format!(
            "disk {disk} is as it was at {} ({}, clock ±{} s): {} in {}, of which {} data; read {} in {:.1} s",
            point.label,
            point.id,
            view::uncertainty_seconds(point),
            show_size(restored.disk_bytes),
            to.display(),
            show_size(restored.data_bytes),
            show_size(restored.read_bytes),
            self.took.as_secs_f64()
        );
        if restored.resumed_messages > 0 {
            let (resumed, all) = (restored.resumed_messages, restored.messages);
            text.push_str(&format!("\n{resumed} of {all} messages were there from an earlier run"));
        }
        if args.onto.is_some() {
            let (same, all) = (restored.same_bytes, restored.disk_bytes);
            text.push_str(&format!(
                "\n{} of {} were right already and stayed as they are",
                show_size(same),
                show_size(all)
            ));
        }
        if restored.virtual_bytes > restored.disk_bytes {
            let more = show_size(restored.virtual_bytes - restored.disk_bytes);
            text.push_str(&format!("\na {} holds whole steps only: {more} of zeroes stand at its end", args.format));
        }
        if args.verify {
            text.push_str("\neverything that was written was read back");
        }
        text
    }

    /// Why a disk did not come back.
    pub(super) fn failure(&self, error: &RestoreError) -> Failure {
        let mut failure = Failure::of(error);
        let found = damage(error);
        for damage in found.iter().take(DAMAGE_SHOWN) {
            failure.text.push_str(&format!("\n  {damage}"));
        }
        if found.len() > DAMAGE_SHOWN {
            failure.text.push_str(&format!("\n  … and {} more (--json names them)", found.len() - DAMAGE_SHOWN));
        }
        if !found.is_empty() {
            failure.text.push_str(&format!(
                "\n  {} is no image and keeps what was sound. With the damaged objects brought back from a copy of the vault, \
                 the same command finishes it; `tidegate points` shows earlier points",
                self.member.to.display()
            ));
        }
        failure
    }
}

fn damage(error: &RestoreError) -> &[Damage] {
    if let RestoreError::Damaged { found, .. } = error { found } else { &[] }
}

/// The whole of it as one object; for a single disk that of the disk.
pub(super) fn all_json(args: &Args, told: &[Told<'_>], apart: Option<&String>, took: Duration) -> Value {
    if let ([only], true) = (told, args.names_one()) {
        return only.json();
    }
    json!({
        "disks": told.iter().map(Told::json).collect::<Vec<_>>(),
        "warnings": apart,
        "seconds": took.as_secs_f64(),
    })
}

/// One failure of several: each in its words, and what became of the others, of which so many lack nothing but their names.
pub(super) fn joined(mut failures: Vec<Failure>, nameless: usize) -> Failure {
    let damaged = failures.iter().any(|failure| failure.code == exit::DAMAGE);
    let code = if damaged { exit::DAMAGE } else { failures.first().map_or(exit::ERROR, |failure| failure.code) };
    if nameless == 0 && failures.len() == 1 {
        return failures.remove(0);
    }
    let mut text = failures.into_iter().map(|failure| failure.text).collect::<Vec<_>>().join("\n");
    if nameless > 0 {
        text.push_str(&format!(
            "\n{nameless} other disks are whole and get their names with these: run the same command again, or with --disk for \
             each that is wanted alone"
        ));
    }
    Failure { text, code }
}
