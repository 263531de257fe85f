//! Where the traces of a verb go: flags first, then the verb's configuration file, then the usual variables.

use std::path::PathBuf;

use super::{Failure, Verb};
use crate::fault::chain_text;
use crate::telemetry::traces::settings::{BUILT, Endpoint, Environment, NOT_BUILT, Settings, headers};
use crate::telemetry::traces::{Service, Traces};

/// Options of every verb.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Send traces to this receiver of OTLP over HTTP, such as http://collector:4318: how long the steps of the verb took.
    /// The variables OTEL_EXPORTER_OTLP_… count too.
    #[arg(long, global = true, value_name = "URL")]
    otlp_endpoint: Option<Endpoint>,
    /// File with headers for it, such as a token: "Authorization: Bearer …", one a line.
    #[arg(long, global = true, value_name = "FILE")]
    otlp_headers_file: Option<PathBuf>,
}

impl Args {
    fn settings(&self) -> Result<Settings, Failure> {
        if self.otlp_endpoint.is_some() && !BUILT {
            return Err(Failure::usage(format!("--otlp-endpoint: {NOT_BUILT}")));
        }
        if let Some(Err(wrong)) = self.otlp_headers_file.as_deref().map(headers) {
            return Err(Failure::usage(format!("--otlp-headers-file: {}", chain_text(&wrong))));
        }
        let (endpoint, headers_file) = (self.otlp_endpoint.clone(), self.otlp_headers_file.clone());
        Ok(Settings { endpoint, headers_file, ..Settings::default() })
    }
}

/// What makes traces, and what its configuration file says of them.
pub(super) struct Traced {
    service: Service,
    file: Settings,
}

impl Traced {
    /// A verb without a file.
    pub(super) fn verb(name: &'static str) -> Self {
        Self { service: Service { name, instance: None }, file: Settings::default() }
    }

    /// One with a file, and its name in there. A file that cannot be read is told of by the verb itself.
    pub(super) fn with_file(name: &'static str, read: Option<(Option<String>, Settings)>) -> Self {
        let (instance, file) = read.unwrap_or_default();
        Self { service: Service { name, instance }, file }
    }
}

/// Starts sending the traces of a verb, if they go anywhere; beside them what the log should tell of that.
pub(super) fn start(args: &Args, verb: &Verb) -> Result<(Traces, Option<String>), Failure> {
    let flags = args.settings()?;
    let Some(Traced { service, file }) = verb.traced() else { return Ok((Traces::none(), None)) };
    let environment = match BUILT {
        true => Environment::read(|name| std::env::var(name).ok()),
        false => Environment::default(),
    };
    let said = flags.or(file);
    // Who is named by a flag or a file needs no variable.
    let mistake = environment.mistake.filter(|_| said.endpoint.is_none());
    let settings = said.or(environment.settings);
    let Some(endpoint) = settings.endpoint.clone().filter(|_| !environment.disabled) else {
        return Ok((Traces::none(), mistake));
    };
    match Traces::start(&endpoint, &settings, &service) {
        Ok(traces) => Ok((traces, None)),
        // Whatever is wrong with traces is no reason not to protect or restore anything.
        Err(wrong) => Ok((Traces::none(), Some(wrong))),
    }
}
