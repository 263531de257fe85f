//! The agent's metrics over HTTP, if the configuration asks for them: what only this machine knows of its disks and its
//! connection. It reads shared state and changes nothing; without it, a gateway still shows how far each disk is behind.
//!
//! A disk has lines of its own: there are as many as the configuration names.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use super::control::{AgentStatus, Control, DiskStatus, REFUSED};
use crate::flow::Drain;
use crate::telemetry::waits::{self, Guard};
use crate::telemetry::{names, process, recorder, text};
use crate::wire::Condition;

/// The page with its port open.
pub struct Page {
    listener: TcpListener,
    metrics: PrometheusHandle,
}

impl Page {
    /// Opens the port, and takes what is recorded from then on.
    ///
    /// # Errors
    /// The system's, if the port is not free.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let metrics = recorder::install().map_err(io::Error::other)?;
        for outcome in ["connected", "failed"] {
            metrics::counter!(names::AGENT_ATTEMPTS, "outcome" => outcome).increment(0);
        }
        for outcome in ["sent", "lost"] {
            metrics::counter!(names::TRACE_SPANS, "outcome" => outcome).increment(0);
        }
        metrics::gauge!(names::AGENT_RELOAD_REFUSED).set(0.0);
        tracing::info!(address = %listener.local_addr()?, "metrics page open");
        Ok(Self { listener, metrics })
    }

    /// Serves it until `drain`.
    pub async fn serve(self, control: Arc<Control>, mut drain: Drain) {
        let Self { listener, metrics } = self;
        let upkeep = recorder::upkeep(metrics.clone());
        let router = Router::new().route("/metrics", get(page)).with_state((control, metrics));
        let served = axum::serve(listener, router).with_graceful_shutdown(async move { drain.wait().await });
        tokio::select! {
            biased;
            ended = async { served.await } => if let Err(error) = ended {
                tracing::error!(%error, "the metrics page failed");
            },
            () = upkeep => {}
        }
    }
}

async fn page(State((control, metrics)): State<(Arc<Control>, PrometheusHandle)>) -> Response {
    let mut out = metrics.render();
    out.push_str(&process::lines());
    out.push_str(&waits::lines(&Guard::AGENT));
    out.push_str(&lines(&control.status()));
    connection_lines(&mut out, &control);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], out).into_response()
}

fn connection_lines(out: &mut String, control: &Control) {
    if let Some(disk) = control.disks.first() {
        let budget = &disk.shared.budget;
        let used_bytes = budget.limit_bytes().saturating_sub(budget.free_bytes());
        text::single(out, names::AGENT_MEMORY_BYTES, used_bytes as f64);
        text::single(out, names::AGENT_MEMORY_LIMIT_BYTES, budget.limit_bytes() as f64);
    }
    let client = control.link.borrow().client.clone();
    if let Some(path) = client.and_then(|client| client.path()) {
        text::single(out, names::AGENT_RTT_SECONDS, path.rtt.as_secs_f64());
        text::single(out, names::AGENT_SENT, path.sent as f64);
        text::single(out, names::AGENT_LOST, path.lost as f64);
    }
}

fn lines(status: &AgentStatus) -> String {
    let mut out = String::new();
    let yes = |is: bool| f64::from(u8::from(is));
    let version = text::labels(&[("agent", &status.agent), ("version", env!("CARGO_PKG_VERSION"))]);
    text::family(&mut out, names::AGENT_BUILD_INFO, [(version, 1.0)]);
    text::single(&mut out, names::AGENT_CONNECTED, yes(status.gateway.is_some()));
    text::single(&mut out, names::AGENT_FELL_BACK, yes(status.fell_back));
    let known = |value: &Option<String>| value.clone().unwrap_or_default();
    let connection = status.gateway.iter().map(|gateway| {
        let (address, transport) = (known(&status.address), known(&status.transport));
        (text::labels(&[("gateway", gateway), ("address", &address), ("transport", &transport)]), 1.0)
    });
    text::family(&mut out, names::AGENT_CONNECTION_INFO, connection);
    let states = Condition::ALL.map(Condition::as_str).into_iter().chain([REFUSED]);
    let state = |disk: &DiskStatus, word: &str| {
        (text::labels(&[("disk", disk.disk.as_str()), ("state", word)]), yes(disk.state == word))
    };
    let words = states.flat_map(|word| status.disks.iter().map(move |disk| state(disk, word)));
    text::family(&mut out, names::AGENT_DISK_STATE, words);
    let mut each = |name: &str, of: fn(&DiskStatus) -> f64| {
        let values = status.disks.iter().map(|disk| (text::labels(&[("disk", disk.disk.as_str())]), of(disk)));
        text::family(&mut out, name, values);
    };
    each(names::AGENT_DISK_RPO_SECONDS, |disk| disk.rpo_seconds);
    each(names::AGENT_DISK_QUEUE_BYTES, |disk| disk.queue_bytes as f64);
    each(names::AGENT_DISK_DIRTY_BYTES, |disk| disk.dirty_bytes as f64);
    each(names::AGENT_DISK_UNVAULTED_BYTES, |disk| disk.unvaulted_bytes as f64);
    each(names::AGENT_DISK_OVERFLOWS, |disk| disk.overflows as f64);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::DiskId;

    fn disk(name: &str, state: &str) -> DiskStatus {
        DiskStatus {
            disk: DiskId::new(name).expect("a name"),
            state: state.into(),
            size_bytes: 1 << 20,
            epoch: Some(1),
            seq: 9,
            journaled: 8,
            vaulted: 7,
            queue_bytes: 11,
            dirty_bytes: 13,
            unvaulted_bytes: 17,
            overflows: 2,
            rpo_seconds: 1.5,
            gateway: None,
            last_error: None,
        }
    }

    fn status(gateway: Option<&str>) -> AgentStatus {
        AgentStatus {
            agent: "host-1".into(),
            gateway: gateway.map(str::to_owned),
            address: gateway.map(|_| "g:9443".into()),
            why: None,
            transport: gateway.map(|_| "tcp".into()),
            fell_back: gateway.is_some(),
            ranked: Vec::new(),
            error: None,
            disks: vec![disk("a", "protected"), disk("b", REFUSED)],
        }
    }

    #[test]
    fn every_disk_has_one_state_and_its_figures() {
        let page = lines(&status(Some("gateway-1")));
        for line in [
            "tidegate_agent_connected 1",
            "tidegate_agent_fell_back 1",
            "tidegate_agent_connection_info{gateway=\"gateway-1\",address=\"g:9443\",transport=\"tcp\"} 1",
            "tidegate_agent_disk_state{disk=\"a\",state=\"protected\"} 1",
            "tidegate_agent_disk_state{disk=\"a\",state=\"fenced\"} 0",
            "tidegate_agent_disk_state{disk=\"b\",state=\"refused\"} 1",
            "tidegate_agent_disk_rpo_seconds{disk=\"a\"} 1.5",
            "tidegate_agent_disk_queue_bytes{disk=\"a\"} 11",
            "# TYPE tidegate_agent_disk_overflows_total counter",
            "tidegate_agent_disk_overflows_total{disk=\"b\"} 2",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing in\n{page}");
        }
        for disk in ["a", "b"] {
            let start = format!("tidegate_agent_disk_state{{disk=\"{disk}\",");
            let on = page.lines().filter(|line| line.starts_with(&start) && line.ends_with(" 1")).count();
            assert_eq!(on, 1, "{page}");
        }
    }

    #[test]
    fn without_a_gateway_nothing_is_said_of_a_connection() {
        let page = lines(&status(None));
        assert!(page.contains("tidegate_agent_connected 0\n"), "{page}");
        assert!(!page.contains("tidegate_agent_connection_info{"), "{page}");
    }
}
