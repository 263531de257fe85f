//! The admin port: the status page, health, readiness, status and metrics over HTTP. It reads shared state, and changes nothing
//! but limits of bandwidth, for a while and for callers on this machine: see [`super::bandwidth::door`]. It answers under the
//! gateway's own names only: see [`super::admin_names`].

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use metrics_exporter_prometheus::PrometheusHandle;

use super::admin_names::{self, AdminNames};
use super::bandwidth::{Bandwidth, door};
use super::board::{Board, Status};
use super::findings::{self, Finding, Scene};
use super::page;
use super::stages::{Figures, Meter, SAMPLE_EVERY, Stages};
use crate::flow::{Clock, Drain};
use crate::telemetry::supervisor::DaemonState;
use crate::telemetry::waits::{self, Guard};
use crate::telemetry::{latency, process};

/// An event loop that has not turned for this long counts as hung. Far above any pause of a busy machine, far below
/// what an operator would wait.
pub const HUNG_AFTER: Duration = Duration::from_secs(30);

/// What the admin port shows, shared with the parts that set it.
pub struct Health {
    clock: Arc<dyn Clock>,
    /// Monotonic milliseconds of the feeder's last turn.
    feeder_turn_ms: AtomicU64,
    vault_ready: AtomicBool,
    draining: AtomicBool,
    /// Why the gateway is not ready, in words.
    reason: parking_lot::Mutex<String>,
    /// What waits for somebody to help, in words; empty if nothing does.
    trouble: parking_lot::Mutex<String>,
    unpinned: parking_lot::Mutex<String>,
    /// Which disk backend the journal uses and why.
    backend: parking_lot::Mutex<String>,
    board: OnceLock<Arc<Board>>,
    /// What passed of late.
    meter: parking_lot::Mutex<Meter>,
}

impl Health {
    /// Not ready yet.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let now_ms = clock.monotonic().as_millis() as u64;
        Self {
            clock,
            feeder_turn_ms: AtomicU64::new(now_ms),
            vault_ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            reason: parking_lot::Mutex::new("starting".into()),
            trouble: parking_lot::Mutex::default(),
            unpinned: parking_lot::Mutex::default(),
            backend: parking_lot::Mutex::default(),
            board: OnceLock::new(),
            meter: parking_lot::Mutex::default(),
        }
    }

    /// The feeder turned once more.
    pub fn feeder_turned(&self) {
        self.feeder_turn_ms.store(self.clock.monotonic().as_millis() as u64, Ordering::Relaxed);
    }

    /// Says which disk backend is used.
    pub fn set_backend(&self, text: String) {
        *self.backend.lock() = text;
    }

    /// Says what waits for somebody to help; empty when it is over. The gateway stays alive and ready meanwhile.
    pub fn set_trouble(&self, text: String) {
        *self.trouble.lock() = text;
    }

    /// Says that the vault's recipients are not pinned, and what to do; empty if they are.
    pub fn set_unpinned(&self, text: String) {
        *self.unpinned.lock() = text;
    }

    /// What was said last of the vault's recipients.
    #[must_use]
    pub fn unpinned(&self) -> String {
        self.unpinned.lock().clone()
    }

    /// What can be said from now on of disks and agents.
    pub fn set_board(&self, board: Arc<Board>) {
        // There is one gateway in a process, and it has one.
        let _ = self.board.set(board);
    }

    /// The vault and its lane are open: agents may come.
    pub fn set_ready(&self) {
        self.vault_ready.store(true, Ordering::Relaxed);
        self.reason.lock().clear();
    }

    /// Not ready, and why.
    pub fn set_waiting(&self, reason: String) {
        *self.reason.lock() = reason;
    }

    /// The gateway stops: no new agents.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
        *self.reason.lock() = "draining".into();
    }

    /// As the service manager sees it.
    pub(super) fn daemon_state(&self, stopping: bool) -> DaemonState {
        let ready = self.ready() && !stopping;
        let words = match (stopping, ready) {
            (true, _) => "draining".to_owned(),
            (false, true) if self.trouble.lock().is_empty() => "ready for agents".to_owned(),
            (false, true) => self.trouble.lock().clone(),
            (false, false) => self.reason.lock().clone(),
        };
        DaemonState { ready, stopping, alive: self.alive(), words }
    }

    /// Whether agents may come, and the service manager knows it or is about to.
    pub(super) fn is_serving(&self) -> bool {
        self.ready()
    }

    fn alive(&self) -> bool {
        let now_ms = self.clock.monotonic().as_millis() as u64;
        let turned_ms = self.feeder_turn_ms.load(Ordering::Relaxed);
        !self.vault_ready.load(Ordering::Relaxed) || now_ms.saturating_sub(turned_ms) < HUNG_AFTER.as_millis() as u64
    }

    fn ready(&self) -> bool {
        self.vault_ready.load(Ordering::Relaxed) && !self.draining.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Admin {
    health: Arc<Health>,
    metrics: PrometheusHandle,
}

impl Admin {
    fn metrics_text(&self) -> String {
        let mut text = self.metrics.render();
        text.push_str(&process::lines());
        text.push_str(&latency::lines());
        text.push_str(&waits::lines(&Guard::GATEWAY));
        text
    }

    /// Reads the metrics now and then, until `stop`.
    async fn sample(&self, mut stop: Drain) {
        loop {
            // Without latencies and waits, whose locks those share that do the work.
            let figures = Figures::read(&(self.metrics.render() + &process::lines()));
            let backlog_bytes = self.health.board.get().map(|board| board.backlog_bytes());
            self.health.meter.lock().take(self.health.clock.monotonic(), figures, backlog_bytes);
            tokio::select! {
                biased;
                () = stop.wait() => return,
                () = tokio::time::sleep(SAMPLE_EVERY) => {}
            }
        }
    }
}

/// `/v1/status`: what the board says of disks and journal, what passes each stage, and what is to be known of both.
#[derive(serde::Serialize)]
struct Whole {
    #[serde(flatten)]
    status: Status,
    /// Which disk backend the journal uses and why.
    journal_backend: String,
    /// What passes each stage; none in the first seconds.
    stages: Option<Stages>,
    /// The gravest first, never empty.
    findings: Vec<Finding>,
}

/// Serves the admin port until the drain is over.
///
/// # Errors
/// The socket's error if serving fails.
pub(super) async fn serve(
    listener: tokio::net::TcpListener,
    health: Arc<Health>,
    bandwidth: Arc<Bandwidth>,
    names: Arc<AdminNames>,
    metrics: PrometheusHandle,
    mut stop: Drain,
) -> std::io::Result<()> {
    let admin = Admin { health, metrics };
    let limits = door::routes(bandwidth, listener.local_addr()?.ip());
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .route("/v1/status", get(status))
        .route("/v1/disks", get(disks))
        .route("/v1/agents", get(agents))
        .with_state(admin.clone())
        .merge(limits)
        .merge(page::routes())
        .layer(middleware::from_fn_with_state(names, admin_names::check));
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let sampled = stop.clone();
    let served =
        async { axum::serve(listener, service).with_graceful_shutdown(async move { stop.wait().await }).await };
    tokio::pin!(served);
    tokio::select! {
        biased;
        result = &mut served => return result,
        () = admin.sample(sampled) => {}
    }
    served.await
}

async fn healthz(State(admin): State<Admin>) -> Response {
    let alive = admin.health.alive();
    let body = serde_json::json!({
        "status": if alive { "ok" } else { "hung" },
        "journal_backend": *admin.health.backend.lock(),
        "trouble": *admin.health.trouble.lock(),
    });
    (if alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body)).into_response()
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let ready = admin.health.ready();
    let reason = admin.health.reason.lock().clone();
    let body = serde_json::json!({ "ready": ready, "reason": if ready { "" } else { reason.as_str() } });
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body)).into_response()
}

async fn metrics_text(State(admin): State<Admin>) -> Response {
    let mut text = admin.metrics_text();
    if let Some(board) = admin.health.board.get() {
        text.push_str(&board.lines());
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn status(State(admin): State<Admin>) -> Response {
    let health = &admin.health;
    let (ready, reason) = (health.ready(), health.reason.lock().clone());
    let (trouble, unpinned) = (health.trouble.lock().clone(), health.unpinned());
    let stages = health.meter.lock().stages();
    from_board(health, |board| {
        let status = board.status(ready, &reason, &trouble);
        let scene = Scene { status: &status, stages: stages.as_ref(), unpinned: &unpinned, now: health.clock.wall() };
        let findings = findings::find(&scene);
        Whole { journal_backend: health.backend.lock().clone(), stages, findings, status }
    })
}

async fn disks(State(admin): State<Admin>) -> Response {
    from_board(&admin.health, Board::disks)
}

async fn agents(State(admin): State<Admin>) -> Response {
    from_board(&admin.health, Board::agents)
}

/// What the board says; before there is one, why.
fn from_board<T: serde::Serialize>(health: &Health, of: impl FnOnce(&Board) -> T) -> Response {
    match health.board.get() {
        Some(board) => Json(of(board)).into_response(),
        None => {
            let version = env!("CARGO_PKG_VERSION");
            let body = serde_json::json!({ "ready": false, "reason": *health.reason.lock(), "version": version });
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}
