//! Traces: the steps of what is long and single reach a receiver with their parents, and one that is away changes nothing.

use std::process::Command;

use crate::common::{folder, program, tidegate};

#[cfg(feature = "otlp")]
mod receiver;
#[cfg(feature = "otlp")]
mod sent;

/// What `tidegate config check` says of a gateway's file with this section.
fn checked(section: &str) -> serde_json::Value {
    let folder = folder();
    let file = folder.path().join("gateway.toml");
    std::fs::write(&file, format!("id = 'gw1'\npeers = ['nowhere']\n[telemetry]\n{section}\n")).unwrap();
    let (code, out, _) = tidegate(&["config", "check", "--kind", "gateway", "--json", file.to_str().unwrap()]);
    assert_eq!(code, 2, "{out}");
    serde_json::from_str(&out).unwrap()
}

#[test]
fn mistakes_about_traces_stand_beside_all_others() {
    // Beside the file, and no file of headers.
    let told = checked("otlp_endpoint = 'collector'\notlp_sample = 3\notlp_headers_file = 'gateway.toml'");
    for part in ["telemetry.otlp_endpoint", "telemetry.otlp_sample", "line 1 of", "peers:", "journal.dir"] {
        assert!(told["mistakes"].to_string().contains(part), "{part} is not in {told}");
    }
}

#[cfg(not(feature = "otlp"))]
#[test]
fn a_build_that_sends_no_traces_refuses_an_endpoint_by_name_and_leaves_variables_alone() {
    let endpoint = "http://127.0.0.1:4318";
    let told = checked(&format!("otlp_endpoint = '{endpoint}'"))["mistakes"].to_string();
    assert!(told.contains("telemetry.otlp_endpoint") && told.contains("--features otlp"), "{told}");
    let (code, _, err) = tidegate(&["keeper", "print-config", "--otlp-endpoint", endpoint]);
    assert!(code == 2 && err.contains("--features otlp"), "{code}: {err}");
    let mut command = Command::new(program());
    command.args(["keeper", "print-config"]).env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    let output = command.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[cfg(feature = "otlp")]
#[test]
fn variables_that_are_wrong_are_told_and_stop_nothing() {
    let mut command = Command::new(program());
    command.args(["keeper", "print-config"]).env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317");
    let output = command.env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc").output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && err.contains("OTEL_EXPORTER_OTLP_PROTOCOL"), "{output:?}");
}
