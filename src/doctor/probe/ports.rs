//! Addresses that the daemon opens, and the daemon behind them.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::super::facts::{Daemon, Port, PortState};
use crate::agent::config::Config as AgentConfig;
use crate::gateway::config::GatewayConfig;
use crate::nbd::Listen;
use crate::vault::url::install_crypto;

/// The admin port answers from memory.
const ADMIN_PATIENCE: Duration = Duration::from_secs(3);

fn state<T>(opened: io::Result<T>) -> PortState {
    match opened {
        Ok(_) => PortState::Free,
        Err(error) if error.kind() == ErrorKind::AddrInUse => PortState::InUse,
        Err(error) => PortState::Refused(error.to_string()),
    }
}

fn udp(what: &str, address: SocketAddr) -> Port {
    Port { what: format!("{what} (UDP)"), address: address.to_string(), state: state(UdpSocket::bind(address)) }
}

fn tcp(what: &str, address: SocketAddr) -> Port {
    Port { what: format!("{what} (TCP)"), address: address.to_string(), state: state(TcpListener::bind(address)) }
}

fn unix(what: &str, path: &Path) -> Port {
    let state = match UnixStream::connect(path) {
        Ok(_) => PortState::InUse,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => PortState::Free,
        Err(error) if error.kind() == ErrorKind::NotFound => match path.parent() {
            // The agent makes the socket, not its folder.
            Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
                PortState::Refused(format!("the directory {} does not exist", folder.display()))
            }
            _ => PortState::Free,
        },
        Err(error) => PortState::Refused(error.to_string()),
    };
    Port { what: what.to_owned(), address: format!("unix:{}", path.display()), state }
}

pub(super) fn gateway(config: &GatewayConfig) -> Vec<Port> {
    let mut out = vec![udp("listen", config.listen)];
    out.extend(config.listen_tcp.map(|address| tcp("listen_tcp", address)));
    out.push(tcp("admin_listen", config.admin_listen));
    out
}

pub(super) fn agent(config: &AgentConfig) -> Vec<Port> {
    let listen = |disk: &crate::agent::config::DiskConfig| {
        let what = format!("listen of {}", disk.id);
        match &disk.listen {
            Listen::Unix(path) => unix(&what, path),
            Listen::Tcp(address) => tcp(&what, *address),
        }
    };
    config.disks.iter().map(listen).collect()
}

/// Asks the admin port who is there.
pub(super) async fn daemon(config: &GatewayConfig) -> Daemon {
    install_crypto();
    let asked = async {
        let client = reqwest::Client::builder().timeout(ADMIN_PATIENCE).no_proxy().build()?;
        client.get(format!("http://{}/v1/status", config.admin_listen)).send().await?.bytes().await
    };
    let Ok(body) = asked.await else { return Daemon::Away };
    let Ok(status) = serde_json::from_slice::<serde_json::Value>(&body) else { return Daemon::Away };
    let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
    let Some(ready) = status["ready"].as_bool() else { return Daemon::Away };
    Daemon::Answers { gateway: text("gateway"), ready, reason: text("reason"), trouble: text("trouble") }
}
