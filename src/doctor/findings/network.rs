//! The vault, gateways, ports, and the daemon itself.

use super::super::facts::{Daemon, Facts, Port, PortState, Reached, Receiver, Role, Store, Trouble};
use super::{Finding, percentile, time};

/// The vaulted ack waits for one upload at least; a read that takes so long says that it will be late.
const READ_P50_WARN_MICROS: u64 = 250_000;
/// One slow answer among many is seldom this slow.
const READ_MAX_WARN_MICROS: u64 = 2_000_000;

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut out: Vec<Finding> = facts.store.iter().flat_map(store).collect();
    let any = facts.gateways.iter().any(|reached| reached.answer.is_ok());
    out.extend(facts.gateways.iter().map(|reached| gateway(reached, any)));
    out.extend(facts.ports.iter().map(|port| self::port(facts, port)));
    out.extend(daemon(facts));
    out.extend(facts.traces.as_ref().map(traces));
    out
}

/// Nothing depends on traces, so nothing about them is a failure.
fn traces(receiver: &Receiver) -> Finding {
    let endpoint = &receiver.endpoint;
    match &receiver.answer {
        Ok(()) => Finding::ok("traces", format!("{endpoint} takes them")),
        Err(why) => {
            let advice =
                "correct otlp_endpoint or otlp_headers_file, or start the receiver; until then traces are dropped";
            Finding::warn("traces", format!("{endpoint}: {why}"), advice)
        }
    }
}

fn store(store: &Store) -> Vec<Finding> {
    let mut out = Vec::new();
    let right = |check: &'static str, what: &str, tried: &Option<Result<(), Trouble>>| {
        Some(match tried.as_ref()? {
            Ok(()) => Finding::ok(check, what),
            Err(trouble) => failed(check, trouble),
        })
    };
    match &store.vault {
        Ok(vault) => {
            out.push(Finding::ok("vault-read", format!("{} is vault {vault}, opened with the catalog key", store.url)))
        }
        Err(trouble) => out.push(failed("vault-read", trouble)),
    }
    out.extend(right("vault-list", "may be listed", &store.lists));
    out.extend(right(
        "vault-create",
        "objects may be created: a PUT of a name that is taken was refused for that alone",
        &store.creates,
    ));
    if !store.read_micros.is_empty() {
        let (p50, most) = (percentile(&store.read_micros, 50), store.read_micros.last().copied().unwrap_or_default());
        let measured =
            format!("small reads: p50 {}, longest {} ({} times)", time(p50), time(most), store.read_micros.len());
        out.push(if p50 > READ_P50_WARN_MICROS || most > READ_MAX_WARN_MICROS {
            let advice = "recovery points are late by this much: look at the way to the store, or take a nearer region";
            Finding::warn("vault-latency", measured, advice)
        } else {
            Finding::ok("vault-latency", measured)
        });
    }
    out
}

fn failed(check: &'static str, trouble: &Trouble) -> Finding {
    let advice = if trouble.passing {
        "the store is not reached for now: look at network, proxy and firewall, and try again"
    } else {
        "correct url, catalog_key or the credential in the environment (AZURE_STORAGE_…): reading, listing and creating are needed"
    };
    Finding::fail(check, &trouble.text, advice).passing(trouble.passing)
}

/// One way to a gateway; `any` tells whether one of all ways is open.
fn gateway(reached: &Reached, any: bool) -> Finding {
    let shown = format!("{} over {}", reached.address, reached.transport);
    match &reached.answer {
        Ok(micros) => {
            Finding::ok("gateway", format!("{shown} answers and believes this certificate, in {}", time(*micros)))
        }
        Err(trouble) if any && trouble.passing => {
            let advice = "the agent can do without this way, as long as another one answers";
            Finding::warn("gateway", &trouble.text, advice)
        }
        Err(trouble) => {
            let advice = "no gateway, no protection: changes are only marked until one answers";
            Finding::fail("gateway", &trouble.text, advice).passing(trouble.passing)
        }
    }
}

fn port(facts: &Facts, port: &Port) -> Finding {
    let shown = format!("{} {}", port.what, port.address);
    let ours = match &facts.daemon {
        Daemon::Away => false,
        Daemon::Runs => true,
        Daemon::Answers { gateway, .. } => gateway.is_empty() || *gateway == facts.id,
    };
    match &port.state {
        PortState::Free if ours && facts.role == Role::Gateway => {
            let advice = "the running daemon has another configuration: restart it";
            Finding::warn("port", format!("{shown}: free, although the daemon runs"), advice)
        }
        PortState::Free => Finding::ok("port", format!("{shown}: free")),
        PortState::InUse if ours => Finding::ok("port", format!("{shown}: in use by the running daemon")),
        PortState::InUse => {
            let advice = "another process has it (ss -lntup shows which): stop that one, or configure another address";
            Finding::fail("port", format!("{shown}: in use"), advice)
        }
        PortState::Refused(text) => Finding::fail(
            "port",
            format!("{shown}: {text}"),
            "configure an address of this machine that the service may open",
        ),
    }
}

fn daemon(facts: &Facts) -> Option<Finding> {
    Some(match &facts.daemon {
        Daemon::Away => return None,
        Daemon::Runs => Finding::ok("daemon", "runs"),
        Daemon::Answers { gateway, .. } if !gateway.is_empty() && *gateway != facts.id => Finding::fail(
            "daemon",
            format!("the admin port is that of gateway {gateway}, the configuration says id = {:?}", facts.id),
            "give this gateway an admin_listen of its own",
        ),
        Daemon::Answers { ready: false, reason, .. } => {
            Finding::warn("daemon", format!("runs, not ready: {reason}"), "wait, or look at its log").passing(true)
        }
        Daemon::Answers { trouble, .. } if !trouble.is_empty() => {
            Finding::fail("daemon", format!("ready, in trouble: {trouble}"), "docs/RUNBOOK.md says what to do")
        }
        Daemon::Answers { .. } => Finding::ok("daemon", "runs, ready for agents"),
    })
}
