//! The gateway's side of the wire: accept, check, hand records to the host, acknowledge.
//!
//! ```text
//!  serve ──► one task per connection ──► one task per disk stream
//!            handshake, hello, pings      OpenDisk ─► host ─► records in ─► sink
//!                                                     └────► acks, credit out
//! ```
//!
//! Tasks own what they use: a connection's end drops its disk tasks and with them their sinks, and a newer connection
//! of the same agent waits for that before it opens disks. Drain: new connections are refused, agents are redirected, disk
//! streams read no further record, go on with acks until everything taken is vaulted (or the grace is over), then
//! connections close.

pub(super) mod admission;
mod disk;
mod memory;
mod paths;
mod session;
mod skew;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::admission::{HELLOS_PER_AGENT_MAX, Network, Pace, Places};
use self::memory::Memory;
use super::code::Code;
use super::endpoint::Listener;
use super::host::{HelloInfo, Host};
use super::transport::Session;
use super::transport::tcp::Sessions;
use crate::flow::{Clock, Drain, watch};
use crate::limits;
use crate::telemetry::names;
use crate::wire::PROTOCOL_MAX;

/// Connections over TCP between their handshake and their join frame: after an outage all disks come at once.
const JOINS_MAX: usize = 4096;
/// Pause after a connection could not be accepted, for want of file descriptors most often.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two lines that say that connections over TCP are not taken.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Bounds of a server; the defaults have their reasons beside them.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Agents connected at the same time. A connection costs some 100 KiB before it carries anything.
    pub connections_max: usize,
    /// Connections over TCP at the same time, finished or not: each is an open file of the process.
    pub tcp_connections_max: usize,
    /// Handshakes at the same time; above it new ones must prove their address first (stateless retry), because a
    /// handshake costs signatures and its sender's address may be forged.
    pub handshakes_max: usize,
    /// Handshakes that were begun and not finished: what comes above them is not answered, and asks again by itself.
    pub unfinished_max: usize,
    /// The same from one network: many agents may stand behind its address, but they are not all the others.
    pub unfinished_per_network_max: usize,
    /// Disk streams of one connection.
    pub disks_max: usize,
    /// For TLS, hello, and the first frame of a disk stream, each: an honest agent needs a few round trips.
    pub step_timeout: Duration,
    /// Record bytes that may be on their way from all agents, beside a base for each open disk: the memory of the sessions.
    pub memory_bytes: u64,
    /// The part of that for one agent.
    pub agent_memory_bytes: u64,
    /// How long a drain goes on acknowledging what was received before connections are closed.
    pub drain_grace: Duration,
    /// The highest version of the protocol that it speaks.
    pub protocol_max: u16,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            tcp_connections_max: 8192,
            handshakes_max: 64,
            unfinished_max: 512,
            unfinished_per_network_max: 128,
            disks_max: limits::DISKS_PER_AGENT_MAX,
            step_timeout: Duration::from_secs(10),
            memory_bytes: 128 << 20,
            agent_memory_bytes: 32 << 20,
            drain_grace: Duration::from_secs(10),
            protocol_max: PROTOCOL_MAX,
        }
    }
}

/// What every task of a server shares.
struct Server<H> {
    listener: Listener,
    host: Arc<H>,
    hello: HelloInfo,
    limits: ServerLimits,
    clock: Arc<dyn Clock>,
    drain: Drain,
    seats: Seats,
    /// Connections between handshake and hello, per agent.
    hellos: Arc<Places<String>>,
    /// Connections over TCP that have not said yet which session they belong to, per agent.
    joins: Arc<Places<String>>,
    /// The sessions over TCP.
    sessions: Arc<Sessions>,
    pace: Pace,
    memory: Arc<Memory>,
}

/// Serves agents until `drain` starts and then until everything received is vaulted or the grace is over. Returns
/// when every connection is closed.
pub async fn serve<H: Host>(
    mut listener: Listener,
    host: Arc<H>,
    limits: ServerLimits,
    clock: Arc<dyn Clock>,
    drain: Drain,
) {
    let tcp = listener.take_tcp();
    let hello = host.hello();
    if listener.identity().vault != hello.vault {
        let (certificate, vault) = (listener.identity().vault, hello.vault);
        tracing::error!(
            "this gateway writes vault {vault}, but its certificate is of vault {certificate}: every agent will refuse \
             it; issue one from the authority of vault {vault} with `tidegate pki issue`"
        );
    }
    let handshakes: Arc<Places<Network>> =
        Arc::new(Places::shared_when_crowded(limits.unfinished_max, limits.unfinished_per_network_max));
    let server = Arc::new(Server {
        seats: Seats::default(),
        hellos: Arc::new(Places::new(limits.connections_max.max(limits.unfinished_max), HELLOS_PER_AGENT_MAX)),
        joins: Arc::new(Places::new(JOINS_MAX, usize::MAX)),
        sessions: Arc::default(),
        pace: Pace::new(),
        memory: Arc::new(Memory::new(limits.memory_bytes, limits.agent_memory_bytes, host.ways())),
        drain,
        listener,
        host,
        hello,
        limits,
        clock,
    });
    let (address, tcp_address) = (server.listener.local_addr(), tcp.as_ref().and_then(|tcp| tcp.local_addr().ok()));
    tracing::info!(
        %address,
        tcp = tcp_address.map_or_else(|| "off".to_owned(), |tcp| tcp.to_string()),
        gateway = server.hello.gateway,
        "agents may connect"
    );
    let over_tcp = async {
        if let Some(listener) = tcp {
            accept_tcp(&server, listener, &handshakes).await;
        }
    };
    let served = async {
        tokio::join!(accept_quic(&server, &handshakes), over_tcp);
    };
    tokio::select! {
        biased;
        () = served => {}
        () = paths::watch(&server) => {}
    }
}

async fn accept_quic<H: Host>(server: &Arc<Server<H>>, handshakes: &Arc<Places<Network>>) {
    let endpoint = server.listener.endpoint().clone();
    let mut drain = server.drain.clone();
    let mut tasks = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            biased;
            () = drain.wait() => break,
            Some(_) = tasks.join_next() => continue,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        let many = handshakes.count() >= server.limits.handshakes_max;
        if many && !incoming.remote_address_validated() && incoming.may_retry() {
            // The retry holds no state here; an honest agent comes back with the proof within a round trip.
            let _ = incoming.retry();
            continue;
        }
        let Some(handshake) = handshakes.take(&Network::of(incoming.remote_address().ip())) else {
            count_refused(Code::Busy);
            // Not refused: whoever is honest sends its first datagram again, and finds a place.
            incoming.ignore();
            continue;
        };
        tasks.spawn(session::run_quic(Arc::clone(server), incoming, handshake));
    }
    endpoint.set_server_config(None);
    while tasks.join_next().await.is_some() {}
    endpoint.close(Code::Draining.var_int(), b"the gateway stops");
    // The last close frames go out; a lost peer must not hold the gateway up.
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
}

async fn accept_tcp<H: Host>(server: &Arc<Server<H>>, listener: TcpListener, handshakes: &Arc<Places<Network>>) {
    let places = Arc::new(Semaphore::new(server.limits.tcp_connections_max));
    let (mut full, mut failing) = (Told::default(), Told::default());
    let mut drain = server.drain.clone();
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.wait() => break,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, address)) => {
                let place = Arc::clone(&places).try_acquire_owned().ok();
                if place.is_none() {
                    full.tell(server.clock.monotonic(), || {
                        let connections_max = server.limits.tcp_connections_max;
                        tracing::warn!(
                            connections_max,
                            "no further connection over TCP is taken: raise the limit of open files of this gateway"
                        );
                    });
                }
                match place.zip(handshakes.take(&Network::of(address.ip()))) {
                    Some((place, handshake)) => {
                        let came = session::Came { socket, address, place };
                        tasks.spawn(session::run_tcp(Arc::clone(server), came, handshake));
                    }
                    // Whoever is honest and hears nothing but the end tries again, and finds a place.
                    None => count_refused(Code::Busy),
                }
            }
            Err(error) => {
                failing.tell(server.clock.monotonic(), || {
                    tracing::warn!(%error, "no connection over TCP can be accepted");
                });
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Who still waits to be accepted learns at once that nobody will.
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

/// When something was told last: one line now and then, not one for each of its victims.
#[derive(Default)]
struct Told(Option<Duration>);

impl Told {
    fn tell(&mut self, now: Duration, tell: impl FnOnce()) {
        if self.0.is_none_or(|last| now.saturating_sub(last) >= TELL_EVERY) {
            self.0 = Some(now);
            tell();
        }
    }
}

fn count_refused(code: Code) {
    metrics::counter!(names::REFUSED, "reason" => code.as_str()).increment(1);
}

/// A gauge that is one higher while this lives.
struct Gauged(metrics::Gauge);

impl Gauged {
    fn new(name: &'static str) -> Self {
        let gauge = metrics::gauge!(name);
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Gauged {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// One seat per agent: a newer connection takes the place of the older one, which is most often dead already but has
/// not been idle long enough to be noticed.
#[derive(Default)]
struct Seats {
    taken: Mutex<HashMap<String, SeatEntry>>,
    numbers: AtomicU64,
}

/// Every seat is taken by another agent.
struct NoSeat;

struct SeatEntry {
    number: u64,
    session: Session,
    ended: watch::Receiver<()>,
}

/// Held by a connection's task until its disk streams are gone.
struct Seat<'a> {
    seats: &'a Seats,
    agent: String,
    number: u64,
    _ending: watch::Sender<()>,
}

impl Seats {
    /// Whether `agent` would find a seat among `seats_max`: a free one or its own.
    fn may_take(&self, agent: &str, seats_max: usize) -> bool {
        let taken = self.taken.lock();
        taken.len() < seats_max || taken.contains_key(agent)
    }

    async fn take(
        &self,
        agent: &str,
        session: &Session,
        seats_max: usize,
        patience: Duration,
    ) -> Result<Seat<'_>, NoSeat> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (ending, ended) = watch::channel(());
        let entry = SeatEntry { number, session: session.clone(), ended };
        let older = {
            let mut taken = self.taken.lock();
            if taken.len() >= seats_max && !taken.contains_key(agent) {
                return Err(NoSeat);
            }
            taken.insert(agent.to_owned(), entry)
        };
        let seat = Seat { seats: self, agent: agent.to_owned(), number, _ending: ending };
        if let Some(mut older) = older {
            older.session.close(Code::Superseded, "a newer connection of this agent took its place");
            // An error is the end: the older task dropped its side.
            let _ = tokio::time::timeout(patience, older.ended.changed()).await;
        }
        Ok(seat)
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock();
        if taken.get(&self.agent).is_some_and(|entry| entry.number == self.number) {
            taken.remove(&self.agent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tests::support::MemoryHost;

    /// Ten thousand idle agents have so many of each for as long as they are there. What only a begin or an end needs belongs on the
    /// heap, and what only a moment needs is not kept over a wait.
    #[test]
    fn the_task_of_a_session_and_that_of_a_disk_stay_small() {
        const fn of_four<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        const fn of_three<A, B, C, F>(_: fn(A, B, C) -> F) -> usize {
            size_of::<F>()
        }
        let (session, disk) = (of_three(session::run_quic::<MemoryHost>), of_four(disk::run::<MemoryHost>));
        // Some bytes above what they are: 5,088 and 6,984.
        assert!(session <= 5632 && disk <= 7680, "a session has {session} bytes, a disk {disk}");
    }
}
