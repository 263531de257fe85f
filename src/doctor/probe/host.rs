//! Kernel, limits, memory and clock, from the kernel's own files.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use super::super::facts::{Host, TimeService, Udp};
use crate::wire::net;

pub(super) fn look(socket_buffer_bytes: u32) -> Host {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let udp = net::look_at_udp(socket_buffer_bytes).map(|seen| Udp {
        receive_bytes: seen.receive_bytes,
        send_bytes: seen.send_bytes,
        send_segments: seen.send_segments,
        receive_segments: seen.receive_segments,
    });
    Host {
        kernel: kernel.trim().to_owned(),
        memlock_bytes: getrlimit(Resource::Memlock).current,
        open_files: getrlimit(Resource::Nofile).maximum,
        udp: udp.map_err(|error| error.to_string()),
        memory_limit_bytes: memory_limit(),
        memory_total_bytes: fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(memory_total),
        time: time_service(),
    }
}

/// Of `/proc/meminfo`.
fn memory_total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// The least limit of this process's control group and of those above it.
fn memory_limit() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_files(&text)
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
        .filter(|bytes| *bytes < 1 << 60)
        .min()
}

/// Files that may hold a limit, by `/proc/self/cgroup`: of the second version, and of the first.
fn limit_files(text: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        // In a container the path may be the host's, and the container's own group is the root.
        for above in Path::new(path).ancestors() {
            out.push(Path::new(root).join(above.strip_prefix("/").unwrap_or(above)).join(file));
        }
    }
    out
}

fn time_service() -> TimeService {
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return TimeService::Synchronised("systemd-timesyncd");
    }
    let running = [
        ("/run/chrony/chronyd.pid", "chrony"),
        ("/run/chronyd.pid", "chrony"),
        ("/run/ntpd.pid", "ntpd"),
        ("/run/openntpd.pid", "openntpd"),
        ("/dev/ptp_hyperv", "the hypervisor's clock"),
    ];
    let found = running.iter().find(|(file, _)| Path::new(file).exists());
    found.map_or(TimeService::Unknown, |(_, name)| TimeService::Running(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_looked_for_in_the_own_group_and_in_those_above_it() {
        let files = limit_files("0::/a/b\n3:cpu,memory:/x\n2:cpuset:/y\nnonsense\n");
        let wanted = [
            "/sys/fs/cgroup/a/b/memory.max",
            "/sys/fs/cgroup/a/memory.max",
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/memory/x/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        ];
        assert_eq!(files, wanted.map(PathBuf::from));
        assert_eq!(memory_total("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2 << 20));
    }

    #[tokio::test]
    async fn this_machine_tells_kernel_memory_and_sockets() {
        let host = look(64 << 10);
        assert!(!host.kernel.is_empty() && host.memory_total_bytes.is_some_and(|bytes| bytes > 1 << 20), "{host:?}");
        let udp = host.udp.expect("a UDP socket");
        assert!(udp.receive_bytes >= 64 << 10 && udp.send_segments >= 1 && udp.receive_segments >= 1, "{udp:?}");
    }
}
