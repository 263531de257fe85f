//! The gateway daemon: wires stages 2 to 5 together. The only file that knows them all.
//!
//! ```text
//!  agents ═QUIC═► wire ──► host ──► journal ──► feeder ──► pipeline ──► uploader ──► vault
//!                 tg-net   (runs)   tg-journal-N  tg-feed    tg-cpu-N     tg-vault
//!                   ▲                    │ journaled                         │ vaulted
//!                   └──── acks ──────────┴───────────────────────────────────┘
//! ```
//!
//! # What holds
//!
//! - A record is in the journal before anybody is told so, and stays there until it is vaulted with all before it.
//! - Memory: four quarters of `memory`: the journal's cache, the pipeline, uploads, credit given to agents. Backlog
//!   beyond that stands in the journal only and is read from there again.
//! - Pressure runs backwards: uploads full → the feeder waits → the journal fills → credit shrinks → agents mark
//!   their dirty maps. Nobody in that chain drops anything.
//!
//! # Start
//!
//! Files and ports first, so that mistakes end the process at once; then the admin port, so that waiting can be seen;
//! then the journal's replay; then the vault, for which the gateway waits as long as it takes.
//!
//! # Reload
//!
//! SIGHUP: certificates and some limits are read again, see `reload`. No session notices.
//!
//! # Stop
//!
//! SIGTERM: agents are told to go, what was received is vaulted as far as the grace time allows, so that each disk goes on
//! in its epoch at another gateway; the lane is ended. What is left stands in the journal and goes out at the next start.
//!
//! # Crash
//!
//! The journal's replay gives the runs back. Everything unreleased is uploaded again in a new lane; records that were
//! vaulted before are then there twice, byte for byte the same, which readers take as one.

pub mod admin;
mod admin_names;
pub mod bandwidth;
pub mod board;
pub mod config;
mod disks;
mod events;
mod feeder;
pub(crate) mod files;
pub mod findings;
pub mod habit;
mod host;
pub mod lanes;
pub mod live;
mod lookout;
pub mod outlook;
mod overload;
mod packed;
mod page;
mod recipients;
mod reload;
mod runs;
mod sink;
pub mod stages;
mod window;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::runtime::Handle;
use tracing::field::Empty;
use tracing::{Instrument, info_span};

use crate::fault::{Classify, Fault, chain_text};
use crate::flow::{Clock, Drain, DrainTrigger, SystemClock, blocking};
use crate::journal::{Journal, ReplayReport};
use crate::keys::CatalogKey;
use crate::telemetry::traces::within;
use crate::telemetry::{names, recorder, supervisor};
use crate::types::Seq;
use crate::vault::{self, Vault};
use crate::wire::{self, HelloInfo, Listener, Net, ServerLimits, Tuning};
use admin::Health;
use admin_names::AdminNames;
use board::Board;
use config::GatewayConfig;
use disks::Disks;
use events::EventWatch;
use feeder::Feeder;
use host::GatewayHost;
use lanes::Lanes;
use live::Live;
use lookout::Lookout;
use overload::Overload;
use reload::Reload;
use runs::{Mark, Span};

/// Wait between two attempts to open the vault: long enough not to hammer, short enough not to be noticed.
const VAULT_RETRY: Duration = Duration::from_secs(2);
/// Bytes that one disk stream may have on its way: carries 800 Mbit/s over 10 ms, and bounds what a stalled disk holds.
const QUIC_STREAM_WINDOW_BYTES: u64 = 1 << 20;
/// What the process needs beside its configured memory: code, stacks, receive buffers, what allocators keep.
pub(crate) const MEMORY_BESIDES_BYTES: u64 = 64 << 20;
/// How often somebody looks whether the journal failed.
const FAILURE_LOOK: Duration = Duration::from_millis(500);
/// How often the drain looks whether everything is vaulted.
const DRAIN_LOOK: Duration = Duration::from_millis(50);

/// Why a gateway does not run.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Another part said why, in full.
    #[error("{text}")]
    Stage {
        /// What could not be done, why, and what to do.
        text: String,
        /// How to meet it.
        fault: Fault,
    },
    /// The system refused a resource.
    #[error("{what}")]
    System {
        /// What was asked of it.
        what: String,
        /// Its answer.
        source: std::io::Error,
    },
}

impl Classify for GatewayError {
    fn fault(&self) -> Fault {
        match self {
            Self::Stage { fault, .. } => *fault,
            Self::System { .. } => Fault::Fatal,
        }
    }
}

impl GatewayError {
    fn of(error: &(impl Classify + 'static)) -> Self {
        Self::Stage { text: chain_text(error), fault: error.fault() }
    }

    fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    fn config(text: String) -> Self {
        Self::Stage { text, fault: Fault::Reject }
    }
}

/// Runs the gateway, configured by `config` as read from `file`, until a signal asks it to stop. Blocks.
///
/// # Errors
/// [`GatewayError`] names the file, address or object and the next step.
pub fn run(config: GatewayConfig, file: PathBuf) -> Result<(), GatewayError> {
    let net = runtime("tg-net", config.pipeline_threads)?;
    let vault_runtime = runtime("tg-vault", 2)?;
    let metrics = install_metrics()?;
    let result = net.block_on(serve(config, file, vault_runtime.handle().clone(), metrics));
    // Both runtimes may hold blocking calls that a dead disk or blob store never answers; the journal has everything.
    vault_runtime.shutdown_timeout(Duration::from_secs(2));
    net.shutdown_timeout(Duration::from_secs(2));
    result
}

fn runtime(name: &'static str, threads: u16) -> Result<tokio::runtime::Runtime, GatewayError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(usize::from(threads.max(1))).thread_name(name).enable_all();
    builder.build().map_err(GatewayError::system(format!("the runtime {name} cannot be started")))
}

fn install_metrics() -> Result<PrometheusHandle, GatewayError> {
    let handle = recorder::install().map_err(|error| GatewayError::config(format!("metrics: {error}")))?;
    // What has not happened yet is there from the start, so that its absence says something.
    for name in [
        names::AGENT_SESSIONS,
        names::AGENT_SESSIONS_TCP,
        names::AGENTS_SKEWED,
        names::DISK_STREAMS,
        names::RECEIVE_APART,
        names::RECIPIENTS_UNPINNED,
        names::RECORD_MEMORY_BYTES,
        names::RECORD_MEMORY_WAITING,
        names::UPLOAD_PARKED,
    ] {
        metrics::gauge!(name).set(0.0);
    }
    for outcome in ["sent", "lost"] {
        metrics::counter!(names::TRACE_SPANS, "outcome" => outcome).increment(0);
    }
    for name in [names::RELEASED_RECORDS, names::PIPELINE_SKIPPED, names::REDIRECTS, names::RUNS_RETIRED] {
        metrics::counter!(name).increment(0);
    }
    // An increase is seen only of a count that was there before: the first conflict is one to be called for.
    for seen in ["session", "vault"] {
        metrics::counter!(names::CONFLICTS, "seen" => seen).increment(0);
    }
    Ok(handle)
}

async fn serve(
    config: GatewayConfig,
    file: PathBuf,
    vault_runtime: Handle,
    metrics: PrometheusHandle,
) -> Result<(), GatewayError> {
    let reloads = reload::signals().map_err(GatewayError::system("SIGHUP cannot be caught"))?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let key = CatalogKey::read(&config.catalog_key).map_err(|error| GatewayError::of(&error))?;
    let listener = listen(&config, &clock)?;
    describe_process(&config, &listener);
    tokio::spawn(recorder::upkeep(metrics.clone()));
    let (stop_admin, admin_stopped) = DrainTrigger::new();
    let health = Arc::new(Health::new(Arc::clone(&clock)));
    let live = Live::new(&config, &clock);
    let names = AdminNames::new(listener.credentials().clone(), Arc::clone(&live));
    let admin = start_admin(&config, &health, &live, names, metrics, admin_stopped).await?;
    let (trigger, drain) = DrainTrigger::new();
    tokio::spawn(wait_for_signal(trigger.clone()));
    let reload = Reload {
        file,
        running: config.clone(),
        credentials: listener.credentials().clone(),
        live: Arc::clone(&live),
        health: Arc::clone(&health),
    };
    tokio::spawn(reload.run(reloads));
    let seen = Arc::clone(&health);
    tokio::spawn(supervisor::tell(config.drain_grace, drain.clone(), move |stopping| seen.daemon_state(stopping)));

    let gateway = Opening { config, clock, health, live, vault_runtime, listener, trigger, drain };
    let result = gateway.run(key).await;
    stop_admin.start();
    if let Err(error) = admin.await {
        tracing::warn!(%error, "the admin port did not stop cleanly");
    }
    result
}

/// Opens the ports for agents.
fn listen(config: &GatewayConfig, clock: &Arc<dyn Clock>) -> Result<Listener, GatewayError> {
    // What is not read yet waits with the agent rather than here: windows of QUIC stay below those of credit.
    let stream_window_bytes = config.window_bytes.min(QUIC_STREAM_WINDOW_BYTES) as u32;
    let mtu_max_bytes = config.datagram_max_bytes;
    let tuning = Tuning { stream_window_bytes, mtu_max_bytes, ..Tuning::default() };
    let listener = Listener::bind(config.listen, &config.tls, &tuning, clock, &Net::system())
        .map_err(|error| GatewayError::of(&error))?;
    let listener = match config.listen_tcp {
        // With the port that the system chose, if 0 was asked for.
        Some(same) if same == config.listen => listener.with_tcp_at_same(&Net::system()),
        Some(address) => listener.with_tcp(address, &Net::system()),
        None => Ok(listener),
    };
    let listener = listener.map_err(|error| GatewayError::of(&error))?;
    if listener.identity().gateway != config.id {
        let (named, id) = (&listener.identity().gateway, &config.id);
        let cert = config.tls.cert.display();
        return Err(GatewayError::config(format!(
            "{cert} is the certificate of gateway {named}, the configuration says id = {id:?}"
        )));
    }
    Ok(listener)
}

/// What does not change in a life, for the metrics; and the watch over the memory.
fn describe_process(config: &GatewayConfig, listener: &Listener) {
    tokio::spawn(listener.apart().watch(config.memory_bytes + MEMORY_BESIDES_BYTES));
    metrics::gauge!(names::MEMORY_LIMIT_BYTES).set((config.memory_bytes + MEMORY_BESIDES_BYTES) as f64);
    metrics::gauge!(names::PROCESSORS)
        .set(std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64));
    metrics::gauge!(names::BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    metrics::gauge!(names::CERTIFICATE_ENDS_SECONDS).set(listener.credentials().ends().0 as f64 / 1e6);
}

async fn start_admin(
    config: &GatewayConfig,
    health: &Arc<Health>,
    live: &Arc<Live>,
    names: Arc<AdminNames>,
    metrics: PrometheusHandle,
    stopped: Drain,
) -> Result<tokio::task::JoinHandle<()>, GatewayError> {
    let what = format!("the admin port {} cannot be opened", config.admin_listen);
    let listener = tokio::net::TcpListener::bind(config.admin_listen).await.map_err(GatewayError::system(what))?;
    tracing::info!(address = %config.admin_listen, "admin port open");
    let (health, bandwidth) = (Arc::clone(health), Arc::clone(&live.bandwidth));
    Ok(tokio::spawn(async move {
        if let Err(error) = admin::serve(listener, health, bandwidth, names, metrics, stopped).await {
            tracing::error!(%error, "the admin port failed");
        }
    }))
}

async fn wait_for_signal(trigger: DrainTrigger) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be caught: stop this process with SIGKILL, the journal keeps what it holds");
        return;
    };
    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("asked to stop");
    trigger.start();
}

/// A gateway whose journal and vault are still to be opened.
struct Opening {
    config: GatewayConfig,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    live: Arc<Live>,
    vault_runtime: Handle,
    listener: Listener,
    trigger: DrainTrigger,
    drain: Drain,
}

impl Opening {
    async fn run(mut self, key: CatalogKey) -> Result<(), GatewayError> {
        let span = info_span!("start gateway", gateway = self.config.id);
        let Some((journal, report, vault)) = within(span, self.open(&key)).await? else { return Ok(()) };
        let Self { config, clock, health, live, vault_runtime, listener, trigger, drain } = self;
        let parts =
            Parts { config, clock, health, live, vault_runtime, vault, journal, report, listener, trigger, drain };
        parts.run().await
    }

    /// Opens journal and vault; `None` if the drain came first.
    async fn open(&mut self, key: &CatalogKey) -> Result<Option<(Journal, ReplayReport, Arc<Vault>)>, GatewayError> {
        let replay = info_span!("replay journal", commits = Empty, bytes = Empty, backend = Empty);
        let (journal, report) = within(replay, self.open_journal()).await?;
        match within(info_span!("open vault"), self.open_vault(key)).await? {
            Some(vault) => Ok(Some((journal, report, vault))),
            None => {
                journal.stop().await;
                Ok(None)
            }
        }
    }

    async fn open_journal(&self) -> Result<(Journal, ReplayReport), GatewayError> {
        self.health.set_waiting("replaying the journal".into());
        let (config, id) = (self.config.journal.clone(), self.config.id.clone());
        let opened = blocking(move || Journal::open(&config, &id)).await;
        let (journal, report) = opened
            .map_err(|error| GatewayError::config(format!("opening the journal panicked: {error}")))?
            .map_err(|error| GatewayError::of(&error))?;
        for damage in &report.damage {
            tracing::error!(%damage, "journal damage: skipped, what agents still hold comes again");
        }
        self.health.set_backend(report.backend.to_string());
        let span = tracing::Span::current();
        span.record("commits", report.commits).record("bytes", report.bytes);
        span.record("backend", tracing::field::display(&report.backend));
        tracing::info!(commits = report.commits, bytes = report.bytes, backend = %report.backend, "journal open");
        Ok((journal, report))
    }

    /// Opens the vault, waiting for it as long as it takes; `None` if the drain came first.
    async fn open_vault(&mut self, key: &CatalogKey) -> Result<Option<Arc<Vault>>, GatewayError> {
        let store = vault::url::open_store_on(&self.config.vault_url, &self.vault_runtime);
        let store = store.map_err(|error| GatewayError::of(&error))?;
        loop {
            let error = match Vault::open(store.clone(), key.clone()).await {
                Ok(vault) => return Ok(Some(Arc::new(vault))),
                Err(error) if error.fault() == Fault::Retry => error,
                Err(error) => return Err(GatewayError::of(&error)),
            };
            let reason = format!("waiting for the vault: {}", chain_text(&error));
            tracing::warn!("{reason}");
            self.health.set_waiting(reason);
            tokio::select! {
                biased;
                () = self.drain.wait() => return Ok(None),
                () = tokio::time::sleep(VAULT_RETRY) => {}
            }
        }
    }
}

/// Everything that a gateway is made of, opened. The daemon brings real parts, a simulation its own.
pub struct Parts {
    /// Sizes and times; addresses and paths in it are not looked at any more.
    pub config: GatewayConfig,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What the admin port shows.
    pub health: Arc<Health>,
    /// What of the configuration may change meanwhile.
    pub live: Arc<Live>,
    /// Where requests to the store run.
    pub vault_runtime: Handle,
    /// The second durable home.
    pub vault: Arc<Vault>,
    /// The first durable home.
    pub journal: Journal,
    /// What was in it.
    pub report: ReplayReport,
    /// Where agents connect.
    pub listener: Listener,
    /// Asks for the drain; used here if the journal fails.
    pub trigger: DrainTrigger,
    /// Its signal.
    pub drain: Drain,
}

impl Parts {
    /// Runs the gateway until the drain and through it.
    ///
    /// # Errors
    /// [`GatewayError`] if the parts do not belong together, or the journal failed.
    pub async fn run(self) -> Result<(), GatewayError> {
        let disks = Arc::new(Disks::default());
        take_replayed(&disks, &self.report);
        self.check_vault()?;
        self.vault.set_clock(Arc::clone(&self.clock));
        let feeder = Feeder::start(&self, &disks)?;
        let Self { config, clock, health, live, vault, journal, listener, trigger, drain, .. } = self;
        let window = window::start(&live, &journal, drain.clone());
        tokio::spawn(Arc::clone(&live.bandwidth).run(drain.clone()));
        let overload = Overload::new();
        let host = Arc::new(GatewayHost {
            hello: HelloInfo { gateway: config.id.clone(), vault: vault.id() },
            journal: journal.clone(),
            vault: Arc::clone(&vault),
            disks: Arc::clone(&disks),
            window,
            clock: Arc::clone(&clock),
            overload: Arc::clone(&overload),
            live: Arc::clone(&live),
            lanes: Lanes::default(),
            roll: Arc::default(),
        });
        let names = (config.id.clone(), vault.id());
        let (books, roll, time) = (Arc::clone(&disks), Arc::clone(&host.roll), Arc::clone(&clock));
        let limits = Arc::clone(&live.bandwidth);
        let lines_max = config.disk_lines_max as usize;
        let board = Arc::new(Board::new(names, books, roll, journal.clone(), limits, time, lines_max));
        health.set_board(Arc::clone(&board));
        tokio::spawn(board.run(drain.clone()));
        let (connections_max, drain_grace) = (config.agents_max as usize, config.drain_grace);
        let memory_bytes = config.memory_quarter_bytes();
        // One agent may have a quarter of it on its way: it is not all the others.
        let agent_memory_bytes = memory_bytes / 4;
        let limits = ServerLimits {
            connections_max,
            tcp_connections_max: files::connections_max(listener.tcp_addr().is_some(), config.agents_max),
            drain_grace,
            memory_bytes,
            agent_memory_bytes,
            ..ServerLimits::default()
        };
        let (books, time) = (Arc::clone(&disks), Arc::clone(&clock));
        tokio::spawn(overload.run(live, journal.clone(), books, time, drain.clone()));
        // Beside everything else: it only saves uploads that nobody needs.
        tokio::spawn(Lookout::new(Arc::clone(&host)).run(drain.clone()));
        let events = EventWatch { disks: Arc::clone(&disks), vault: Arc::clone(&vault), clock: Arc::clone(&clock) };
        tokio::spawn(events.run(drain.clone()));
        let drained_since = tokio::spawn(drain_began(drain.clone(), Arc::clone(&clock), config.id.clone()));
        health.set_ready();
        tracing::info!(address = %listener.local_addr(), gateway = %config.id, vault = %vault.id(), "ready for agents");
        let watch = tokio::spawn(watch_journal(journal.clone(), trigger.clone()));
        wire::serve(listener, host, limits, Arc::clone(&clock), drain.clone()).await;
        watch.abort();
        let asked = drain.started();
        // However it ended, everything else ends too.
        trigger.start();
        health.set_draining();
        // What the agents' streams have left of the grace is for disks whose agents were not here.
        let (spent, span) = match drained_since.await {
            Ok((since, span)) => (clock.monotonic().saturating_sub(since), span),
            Err(_) => (Duration::ZERO, tracing::Span::none()),
        };
        let grace = drain_grace.saturating_sub(spent).max(DRAIN_LOOK * 2);
        let failure = stop(&disks, feeder, journal, grace).instrument(span).await;
        let unasked = (!asked).then(|| "the UDP endpoint ended by itself".to_owned());
        match failure.or(unasked) {
            None => Ok(()),
            Some(text) => Err(GatewayError::Stage { text, fault: Fault::Fatal }),
        }
    }

    fn check_vault(&self) -> Result<(), GatewayError> {
        let (named, id) = (self.listener.identity().vault, self.vault.id());
        if named == id {
            return Ok(());
        }
        let (cert, url) = (self.config.tls.cert.display(), &self.config.vault_url);
        Err(GatewayError::config(format!("{cert} is for vault {named}, {url} is vault {id}")))
    }
}

/// When the drain began, and the span of it, which ends when it is dropped.
async fn drain_began(mut drain: Drain, clock: Arc<dyn Clock>, gateway: String) -> (Duration, tracing::Span) {
    drain.wait().await;
    (clock.monotonic(), info_span!("drain gateway", gateway))
}

/// Stops what lies behind the agents' streams; tells if the journal had failed.
async fn stop(disks: &Disks, feeder: Feeder, journal: Journal, grace: Duration) -> Option<String> {
    wait_vaulted(disks, &journal, grace).instrument(info_span!("wait until vaulted")).await;
    feeder.stop().instrument(info_span!("stop uploads")).await;
    let failure = journal.failure().map(|text| format!("the journal failed: {text}"));
    journal.stop().instrument(info_span!("stop journal")).await;
    failure
}

/// Waits until everything journaled is vaulted, for the grace time at most.
async fn wait_vaulted(disks: &Disks, journal: &Journal, grace: Duration) {
    let all_vaulted = async {
        // What a journal that failed had taken and not written is not vaulted ever.
        let is_behind = |run: &runs::Run| match journal.failure() {
            None => run.behind(),
            Some(_) => run.behind() && run.journaled.get() > run.vaulted.get(),
        };
        let behind = || disks.all().iter().flat_map(|slot| slot.runs()).any(|run| is_behind(&run));
        while behind() {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    };
    if tokio::time::timeout(grace, all_vaulted).await.is_err() {
        tracing::warn!("the drain's grace is over: the rest stays in the journal and goes out at the next start");
    }
}

/// Stops the gateway when its journal can no longer keep promises: its supervisor starts it anew, replay decides.
async fn watch_journal(journal: Journal, trigger: DrainTrigger) {
    loop {
        tokio::time::sleep(FAILURE_LOOK).await;
        if let Some(failure) = journal.failure() {
            tracing::error!(%failure, "the journal failed: stopping");
            trigger.start();
            return;
        }
    }
}

/// Gives what the journal's replay found back to the registry.
fn take_replayed(disks: &Disks, report: &ReplayReport) {
    let whole = report.damage.iter().all(|damage| damage.kind == crate::journal::DamageKind::TornTail);
    for ((disk, epoch), state) in &report.runs {
        let run = disks.slot(disk).run_or_new(*epoch);
        let base = match (state.vaulted_mark, state.journaled.first()) {
            (Some((seq, chain)), _) => Some(Mark { seq, chain: Some(chain) }),
            // Only vaulted records are ever released, so what lies below the oldest one here is vaulted; unless
            // damage took some of it.
            (None, Some(range)) if whole || range.first == Seq(1) => {
                Some(Mark { seq: Seq(range.first.0 - 1), chain: None })
            }
            _ => None,
        };
        for range in &state.journaled {
            run.found_in_journal(Span { first: range.first, last: range.last, chain_last: range.chain_last });
        }
        if let Some(base) = base {
            run.set_base(base);
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod whole;
