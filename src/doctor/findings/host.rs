//! Kernel, limits, sockets, memory, clock.

use super::super::facts::{Facts, Role, TimeService};
use super::Finding;
use crate::config::show_size;
use crate::journal::Backend;

/// Oldest kernel that Tidegate is tried on.
const KERNEL_TRIED: (u32, u32) = (5, 15);
/// From here to [`MEMLOCK_COUNTS_AGAIN`] rings do not count against locked memory.
const MEMLOCK_COUNTS_NOT: (u32, u32) = (5, 12);
/// See [`MEMLOCK_COUNTS_NOT`].
const MEMLOCK_COUNTS_AGAIN: (u32, u32) = (6, 14);
/// A store's date says the second only, and its answer was some time on its way.
const CLOCK_WARN_MICROS: u64 = 5_000_000;
/// Azure refuses every request of a clock that is further off.
const CLOCK_FAIL_MICROS: u64 = 900_000_000;

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut out = vec![kernel(facts)];
    if facts.role == Role::Gateway {
        out.extend(io_uring(facts));
        out.push(memlock(facts));
    }
    out.push(open_files(facts));
    out.push(memory(facts));
    out.extend(udp(facts));
    out.push(clock(facts));
    out
}

/// The first two numbers of a release such as `6.1.0-18-amd64`.
fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn kernel(facts: &Facts) -> Finding {
    let kernel = &facts.host.kernel;
    match release(kernel) {
        Some(release) if release >= KERNEL_TRIED => Finding::ok("kernel", kernel),
        Some(_) => Finding::warn(
            "kernel",
            kernel,
            format!(
                "kernels before {}.{} are not tried: take a newer one, best 6.1 or later",
                KERNEL_TRIED.0, KERNEL_TRIED.1
            ),
        ),
        None => {
            Finding::warn("kernel", format!("{kernel:?} is no release that is understood"), "Tidegate is for Linux")
        }
    }
}

/// What the journal would use; none if its directory cannot be written, which is told elsewhere.
fn io_uring(facts: &Facts) -> Option<Finding> {
    let preflight = facts.place.seen.as_ref().ok()?.preflight.as_ref()?;
    let measured = preflight.to_string();
    let configured = preflight.remarks.iter().any(|remark| remark.contains("is configured"));
    Some(if preflight.backend == Backend::Ring || configured {
        Finding::ok("io_uring", measured)
    } else {
        Finding::warn(
            "io_uring",
            measured,
            "plain calls are used instead, for large writes too: allow io_uring_setup, io_uring_enter and \
             io_uring_register (deploy/container/seccomp.json), and set kernel.io_uring_disabled = 0",
        )
    })
}

fn memlock(facts: &Facts) -> Finding {
    let wanted_bytes = facts.demand.memlock_bytes;
    let Some(limit_bytes) = facts.host.memlock_bytes else { return Finding::ok("memlock", "unlimited") };
    let counts = release(&facts.host.kernel)
        .is_none_or(|release| !(MEMLOCK_COUNTS_NOT..MEMLOCK_COUNTS_AGAIN).contains(&release));
    let measured = format!("{} of this process", show_size(limit_bytes));
    if limit_bytes >= wanted_bytes {
        Finding::ok("memlock", measured)
    } else if counts {
        Finding::warn(
            "memlock",
            measured,
            format!(
                "rings need {}: LimitMEMLOCK=64M in the unit, or --ulimit memlock of the container",
                show_size(wanted_bytes)
            ),
        )
    } else {
        Finding::ok("memlock", format!("{measured}; this kernel does not count rings against it"))
    }
}

fn open_files(facts: &Facts) -> Finding {
    let wanted = facts.demand.files;
    match facts.host.open_files {
        Some(limit) if limit < wanted => Finding::warn(
            "open-files",
            format!("hard limit {limit} of this process, {wanted} wanted"),
            "raise it (LimitNOFILE= of the service, ulimit -Hn), or lower session.agents_max; agents over QUIC need none",
        ),
        Some(limit) => Finding::ok("open-files", format!("hard limit {limit}, {wanted} wanted")),
        None => Finding::ok("open-files", "unlimited"),
    }
}

fn memory(facts: &Facts) -> Finding {
    let needed_bytes = facts.demand.memory_bytes;
    let (limit, total) = (facts.host.memory_limit_bytes, facts.host.memory_total_bytes);
    let Some(least_bytes) = [limit, total].into_iter().flatten().min() else {
        return Finding::warn("memory", "neither limit nor size is known", "look whether /proc is mounted");
    };
    let whose = if limit == Some(least_bytes) { "limit of the control group" } else { "of the machine" };
    let measured = format!("{} {whose}, {} needed", show_size(least_bytes), show_size(needed_bytes));
    if least_bytes < needed_bytes {
        Finding::fail(
            "memory",
            measured,
            "lower `memory` in the configuration, or raise the limit: the kernel will kill the process",
        )
    } else if least_bytes < needed_bytes / 4 * 5 {
        Finding::warn("memory", measured, "leave a quarter more: connections and allocators need some")
    } else {
        Finding::ok("memory", measured)
    }
}

fn udp(facts: &Facts) -> Vec<Finding> {
    let udp = match &facts.host.udp {
        Ok(udp) => udp,
        Err(text) => {
            return vec![Finding::fail(
                "udp-buffers",
                format!("no UDP socket: {text}"),
                "QUIC needs UDP: look what forbids it",
            )];
        }
    };
    let wanted_bytes = facts.demand.socket_buffer_bytes;
    let measured = format!(
        "receive {}, send {}, {} wanted",
        show_size(udp.receive_bytes),
        show_size(udp.send_bytes),
        show_size(wanted_bytes)
    );
    let buffers = if udp.receive_bytes.min(udp.send_bytes) < wanted_bytes {
        let advice = format!(
            "bursts will lose datagrams: printf 'net.core.rmem_max={wanted_bytes}\\nnet.core.wmem_max={wanted_bytes}\\n' \
             >/etc/sysctl.d/tidegate.conf; sysctl --system"
        );
        Finding::warn("udp-buffers", measured, advice)
    } else {
        Finding::ok("udp-buffers", measured)
    };
    let measured = format!("{} datagrams per send, {} per receive", udp.send_segments, udp.receive_segments);
    let offload = if udp.send_segments > 1 && udp.receive_segments > 1 {
        Finding::ok("udp-offload", measured)
    } else {
        Finding::warn(
            "udp-offload",
            measured,
            "without segmentation offload each datagram is a system call: take a kernel of 5.0 or later, and see whether a \
             sandbox refuses UDP_SEGMENT and UDP_GRO",
        )
    };
    vec![buffers, offload]
}

fn clock(facts: &Facts) -> Finding {
    let service = match &facts.host.time {
        TimeService::Synchronised(name) => format!("synchronised by {name}"),
        TimeService::Running(name) => format!("{name} runs"),
        TimeService::Unknown => "no time service was seen".to_owned(),
    };
    let ahead = facts.store.as_ref().and_then(|store| store.ahead_micros);
    let advice = "set the time service right (timedatectl, chronyc tracking): labels of points come from this clock, and above \
                  900 s the store refuses every request";
    let Some(ahead_micros) = ahead else {
        return if facts.host.time == TimeService::Unknown {
            let advice = "run systemd-timesyncd, chrony or ntpd here or on the container's host: labels of points come from this clock";
            Finding::warn("clock", service, advice)
        } else {
            Finding::ok("clock", service)
        };
    };
    let seconds = ahead_micros as f64 / 1e6;
    let measured = format!("{service}; the store's clock is {seconds:+.0} s ahead of this one");
    match ahead_micros.unsigned_abs() {
        CLOCK_FAIL_MICROS.. => Finding::fail("clock", measured, advice),
        CLOCK_WARN_MICROS.. => Finding::warn("clock", measured, advice),
        // Whoever keeps it, it is right: in a container that is the host.
        _ => Finding::ok("clock", measured),
    }
}
