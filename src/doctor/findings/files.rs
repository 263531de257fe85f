//! The durable directory, disks, certificates, key files.

use super::super::facts::{Facts, Place, PlaceSeen, Role, Tls};
use super::{Finding, Grade, percentile, time};
use crate::config::show_size;
use crate::types::Micros;
use crate::wire::Identity;

/// Above this the acks of small writes wait for the disk and not for the network.
const COMMIT_P50_WARN_MICROS: u64 = 20_000;
/// A disk that now and then takes so long is shared, worn, or behind a network.
const COMMIT_P99_WARN_MICROS: u64 = 100_000;
/// As the alert on certificates, twice over: issuing is done by hand.
const CERTIFICATE_WARN_DAYS: u64 = 30;
const DAY_MICROS: u64 = 86_400_000_000;

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut out = place(facts);
    out.extend(facts.disks.iter().map(|disk| match &disk.size_bytes {
        Ok(bytes) => Finding::ok("disk", format!("{}: {}, {}", disk.disk, disk.path, show_size(*bytes))),
        Err(text) => Finding::fail(
            "disk",
            format!("{}: {} cannot be opened: {text}", disk.disk, disk.path),
            "name an image or device that the agent may read and write; in the unit, ReadWritePaths= and DeviceAllow=",
        ),
    }));
    out.extend(certificates(facts));
    out.extend(facts.secrets.iter().map(|file| {
        let shown = format!("{} {}", file.what, file.path);
        match &file.mode {
            Err(text) => Finding::fail(
                "key-file",
                format!("{shown}: {text}"),
                "give the right file, readable by the service's user",
            ),
            Ok(mode) if mode & 0o077 != 0 => Finding::warn(
                "key-file",
                format!("{shown} has mode {:o}", mode & 0o777),
                format!("others may read a secret: chmod 600 {}", file.path),
            ),
            Ok(mode) => Finding::ok("key-file", format!("{shown}, mode {:o}", mode & 0o777)),
        }
    }));
    out
}

const fn place_check(role: Role) -> (&'static str, &'static str, &'static str) {
    match role {
        Role::Gateway => ("journal-directory", "journal-space", "journal-latency"),
        Role::Agent => ("state-directory", "state-space", "state-latency"),
    }
}

fn place(facts: &Facts) -> Vec<Finding> {
    let (directory, space, latency) = place_check(facts.role);
    let Place { dir, looked_at, seen } = &facts.place;
    let seen = match seen {
        Ok(seen) => seen,
        Err(text) => {
            return vec![Finding::fail(
                directory,
                format!("{dir}: {text}"),
                "make the directory, on a local disk, owned by the service's user (install -d -o tidegate -m 750)",
            )];
        }
    };
    let missing =
        if dir == looked_at { String::new() } else { format!(" (does not exist yet; looked at {looked_at})") };
    let mut out = vec![file_system(directory, &format!("{dir}{missing}"), seen.file_system)];
    if seen.preflight.as_ref().is_some_and(|preflight| !preflight.direct) && out[0].grade == Grade::Ok {
        let advice = "writes take the way through the page cache, at more memory and processor time: use ext4 or XFS";
        out[0] = Finding::warn(directory, format!("{}; no O_DIRECT", out[0].measured), advice);
    }
    out.push(free_space(space, seen, facts.demand.space_bytes));
    out.extend(commit_latency(latency, seen));
    out
}

/// Magic numbers of statfs(2).
fn file_system(check: &'static str, place: &str, magic: u64) -> Finding {
    let not_durable = "it keeps nothing over a restart: take a local disk with ext4 or XFS";
    let remote =
        "every ack would wait for a network, and locks and syncs are another machine's word: take a local disk";
    let untried = "ext4 and XFS are tried; this one is not";
    let (name, grade, advice) = match magic as u32 {
        0xEF53 => ("ext4", Grade::Ok, ""),
        0x5846_5342 => ("XFS", Grade::Ok, ""),
        0x0102_1994 => ("tmpfs", Grade::Fail, not_durable),
        0x8584_58F6 => ("ramfs", Grade::Fail, not_durable),
        0x9123_683E => ("btrfs", Grade::Warn, untried),
        0x2FC1_2FC1 => ("ZFS", Grade::Warn, untried),
        0xF2F5_2010 => ("F2FS", Grade::Warn, untried),
        0x794C_7630 => ("overlay", Grade::Warn, "it goes away with the container: mount a volume there"),
        0x6969 => ("NFS", Grade::Warn, remote),
        0xFF53_4D42 | 0xFE53_4D42 => ("SMB", Grade::Warn, remote),
        0x6573_5546 => ("FUSE", Grade::Warn, untried),
        0x00C3_6400 => ("CephFS", Grade::Warn, remote),
        _ => ("", Grade::Warn, untried),
    };
    let name = if name.is_empty() { format!("file system {magic:#x}") } else { name.to_owned() };
    Finding { grade, advice: advice.into(), ..Finding::ok(check, format!("{place}: {name}")) }
}

fn free_space(check: &'static str, seen: &PlaceSeen, wanted_bytes: u64) -> Finding {
    let have_bytes = seen.free_bytes.saturating_add(seen.own_bytes);
    let measured = format!(
        "{} free, {} in use here, {} configured",
        show_size(seen.free_bytes),
        show_size(seen.own_bytes),
        show_size(wanted_bytes)
    );
    if have_bytes >= wanted_bytes {
        return Finding::ok(check, measured);
    }
    Finding::fail(
        check,
        measured,
        "the disk is full before the configured capacity is: a larger disk, or a smaller `capacity`",
    )
}

fn commit_latency(check: &'static str, seen: &PlaceSeen) -> Option<Finding> {
    if seen.commit_micros.is_empty() {
        return None;
    }
    let (p50, p99) = (percentile(&seen.commit_micros, 50), percentile(&seen.commit_micros, 99));
    let measured = format!(
        "write and sync of {}: p50 {}, p99 {} ({} times)",
        show_size(seen.commit_bytes),
        time(p50),
        time(p99),
        seen.commit_micros.len()
    );
    Some(if p50 > COMMIT_P50_WARN_MICROS || p99 > COMMIT_P99_WARN_MICROS {
        let advice = "every ack waits for this: take a disk with power-loss protection, and none that others keep busy";
        Finding::warn(check, measured, advice)
    } else {
        Finding::ok(check, measured)
    })
}

fn certificates(facts: &Facts) -> Vec<Finding> {
    let tls = match &facts.tls {
        Ok(tls) => tls,
        Err(text) => {
            let advice = "look at the files of the section [tls]: all three are made by `tidegate pki`";
            return vec![Finding::fail("certificate", text, advice)];
        }
    };
    vec![identity(facts, tls), chain(facts.role, tls), ends(facts.now, tls)]
}

fn identity(facts: &Facts, tls: &Tls) -> Finding {
    let issue = "issue the right one with `tidegate pki issue`";
    let shown = format!("{} of {}", tls.cert, tls.identity);
    let (right_role, named) = match (&tls.identity, facts.role) {
        (Identity::Gateway(gateway), Role::Gateway) => (true, gateway.gateway.as_str()),
        (Identity::Agent(agent), Role::Agent) => (true, agent.agent.as_str()),
        _ => (false, ""),
    };
    if !right_role {
        return Finding::fail("certificate", format!("{shown} is for another role"), issue);
    }
    if named != facts.id {
        return Finding::fail("certificate", format!("{shown}, the configuration says id = {:?}", facts.id), issue);
    }
    let vault = facts.store.as_ref().and_then(|store| store.vault.as_ref().ok());
    if let Some(vault) = vault.filter(|vault| **vault != tls.identity.vault().to_string()) {
        let advice =
            "certificates and vault belong together: issue one with the authority of this vault, or correct vault.url";
        return Finding::fail("certificate", format!("{shown}, the vault is {vault}"), advice);
    }
    if !tls.disks_missing.is_empty() {
        let disks = tls.disks_missing.join(", ");
        return Finding::fail(
            "certificate",
            format!("{shown} does not name the disks {disks}"),
            "issue it again with --disk for each of them",
        );
    }
    Finding::ok("certificate", shown)
}

fn chain(role: Role, tls: &Tls) -> Finding {
    match &tls.chain {
        Err(text) => Finding::fail("certificate-chain", text, "the other side will refuse it"),
        Ok(()) if role == Role::Agent => Finding::ok("certificate-chain", "issued by the authority, key fits"),
        Ok(()) => {
            Finding::ok("certificate-chain", format!("issued by the authority, key fits; for {}", tls.names.join(", ")))
        }
    }
}

fn ends(now: Micros, tls: &Tls) -> Finding {
    let (end, whose) = if tls.authority_not_after < tls.not_after {
        (tls.authority_not_after, "authority")
    } else {
        (tls.not_after, "certificate")
    };
    let days = end.0.saturating_sub(now.0) / DAY_MICROS;
    let measured = format!("{whose} ends on {end}, in {days} days");
    let advice = match whose {
        "authority" => "make a new authority and issue all certificates again",
        _ => "issue it again with `tidegate pki issue … --force`, and restart the service",
    };
    if end <= now {
        Finding::fail("certificate-end", format!("{whose} ended on {end}"), advice)
    } else if days < CERTIFICATE_WARN_DAYS {
        Finding::warn("certificate-end", measured, advice)
    } else {
        Finding::ok("certificate-end", measured)
    }
}
