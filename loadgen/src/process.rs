//! What a process has used so far, by the kernel's accounting.

use std::io;

use serde::{Deserialize, Serialize};
use tidegate::telemetry::process::{field, times};

/// So far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// User and system time of all threads, those that ended too.
    pub cpu_seconds: f64,
    /// Memory that is resident now.
    pub memory_bytes: u64,
    /// The most that was resident since [`forget_peak`].
    pub memory_peak_bytes: u64,
    /// Times that a thread gave the processor up to wait; of the threads that live.
    pub waits: u64,
    /// Times that a thread had to give the processor up; of the threads that live.
    pub preemptions: u64,
    /// System calls that read or write files and sockets as files do; others are not counted by the kernel.
    pub calls: u64,
}

fn invalid(pid: u32, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/{what} is not understood"))
}

/// User and system time so far of all threads of a process, also of one that has ended, until its end was asked for.
///
/// # Errors
/// If it is gone.
pub fn cpu_seconds(pid: u32) -> io::Result<f64> {
    Ok(times(&pid.to_string())?.cpu_seconds)
}

/// Waits for the end of a child without asking how it ended, so that its accounts stay.
///
/// # Errors
/// If it is no child.
pub fn wait_ended(child: &std::process::Child) -> io::Result<()> {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    rustix::io::retry_on_intr(|| waitid(WaitId::Pid(Pid::from_child(child)), options))?;
    Ok(())
}

/// Reads the accounts of a process.
///
/// # Errors
/// If it is gone, or belongs to somebody else.
pub fn usage(pid: u32) -> io::Result<Usage> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |name| field(&status, name).map(|kib| kib << 10).ok_or_else(|| invalid(pid, "status"));
    let mut usage = Usage {
        cpu_seconds: cpu_seconds(pid)?,
        memory_bytes: kib("VmRSS")?,
        memory_peak_bytes: kib("VmHWM")?,
        ..Usage::default()
    };
    // Not everywhere, and never worth failing for.
    if let Ok(io) = std::fs::read_to_string(format!("/proc/{pid}/io")) {
        usage.calls = field(&io, "syscr").unwrap_or(0) + field(&io, "syscw").unwrap_or(0);
    }
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let Ok(status) = std::fs::read_to_string(thread.path().join("status")) else { continue };
        usage.waits += field(&status, "voluntary_ctxt_switches").unwrap_or(0);
        usage.preemptions += field(&status, "nonvoluntary_ctxt_switches").unwrap_or(0);
    }
    Ok(usage)
}

/// Processor time so far of the threads of this process whose names begin with `name`; those that ended do not count.
///
/// # Errors
/// If the kernel does not keep such accounts.
pub fn threads_cpu_seconds(name: &str) -> io::Result<f64> {
    let mut nanos = 0;
    for thread in std::fs::read_dir("/proc/self/task")?.flatten() {
        // A thread may end meanwhile.
        let Ok(found) = std::fs::read_to_string(thread.path().join("comm")) else { continue };
        if !found.starts_with(name) {
            continue;
        }
        let Ok(accounts) = std::fs::read_to_string(thread.path().join("schedstat")) else { continue };
        let used = accounts.split_whitespace().next().and_then(|text| text.parse::<u64>().ok());
        nanos += used.ok_or_else(|| invalid(std::process::id(), "task/…/schedstat"))?;
    }
    Ok(nanos as f64 / 1e9)
}

/// From now on the peak of memory counts anew.
///
/// # Errors
/// If the process is gone, or belongs to somebody else.
pub fn forget_peak(pid: u32) -> io::Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_something() {
        let before = usage(std::process::id()).expect("readable");
        let mut memory = vec![0_u8; 64 << 20];
        memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        let after = usage(std::process::id()).expect("readable");
        assert!(after.memory_peak_bytes >= before.memory_bytes + (32 << 20), "{before:?} {after:?}");
        assert!(after.cpu_seconds >= before.cpu_seconds && after.waits > 0);
        drop(memory);
        assert!(usage(0).is_err());
    }
}
