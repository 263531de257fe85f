//! Open files: connections over TCP are files, and must leave enough of them for the journal and the uploads.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that are no connections: segments and their threads, uploads, the admin port, certificates that are read.
const OTHERS: u64 = 1024;
/// What an agent over TCP has at least: its control connection, and one for a disk.
const CONNECTIONS_PER_AGENT: u64 = 2;

/// Raises the soft limit of open files to the hard one, and says how many connections over TCP fit below it. Where they are
/// fewer than all agents need, that is said, if there is `tcp`.
pub fn connections_max(tcp: bool, agents_max: u32) -> usize {
    let files_max = raise();
    let connections_max = share(files_max);
    let wanted = u64::from(agents_max) * CONNECTIONS_PER_AGENT;
    if tcp && connections_max < wanted {
        tracing::warn!(
            files_max,
            connections_max,
            agents_max,
            "the hard limit of open files is too low for all agents over TCP with one disk each: raise it (LimitNOFILE= of \
             the service, ulimit -Hn), or lower session.agents_max; agents over QUIC are not affected"
        );
    } else {
        tracing::info!(files_max, connections_max, "connections over TCP are bounded by the limit of open files");
    }
    usize::try_from(connections_max).unwrap_or(usize::MAX).min(tokio::sync::Semaphore::MAX_PERMITS)
}

/// The limit of open files at which all agents may come, also over TCP if there is `tcp`.
pub const fn wanted(tcp: bool, agents_max: u32) -> u64 {
    if tcp { OTHERS + agents_max as u64 * CONNECTIONS_PER_AGENT } else { OTHERS }
}

/// The limit that holds from here on.
fn raise() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: maximum, maximum };
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, wanted)
    {
        tracing::info!(%error, "the soft limit of open files stays as it is");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The connections among so many files: all but [`OTHERS`], and half of them where there are few.
const fn share(files_max: u64) -> u64 {
    let (most, half) = (files_max.saturating_sub(OTHERS), files_max / 2);
    if most > half { most } else { half }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_journal_and_uploads_however_few_there_are() {
        assert_eq!(share(1024), 512);
        assert_eq!(share(20_000), 20_000 - OTHERS);
        assert_eq!(share(u64::MAX), u64::MAX - OTHERS);
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        // By one: other tests have files open.
        let lower = Rlimit { current: current.or(maximum).map(|files| files - 1), maximum };
        setrlimit(Resource::Nofile, lower).expect("lowered");
        assert_eq!(raise(), maximum.unwrap_or(u64::MAX));
    }
}
