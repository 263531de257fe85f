//! The way out: spans of this process become those of OpenTelemetry, and are posted as protobuf over HTTP.

use std::time::Duration;

use opentelemetry::trace::{Status, TracerProvider as _};
use opentelemetry::{Key, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::{Layer, Registry};

use super::Service;
use super::queue::Queue;
use super::settings::{Endpoint, Settings, headers};
use crate::fault::chain_text;
use crate::vault::url::install_crypto;

/// Which spans are sent if nobody says so: all of this program's, and what it logs inside of them.
const FILTER_DEFAULT: &str = "tidegate=info";
/// A receiver that takes longer for a batch is as good as away.
const SEND_PATIENCE: Duration = Duration::from_secs(5);
/// Lines of the log that a span keeps: the first say how it began, and a run of hours logs without end.
const EVENTS_PER_SPAN_MAX: u32 = 64;
/// What finds the traces of this program among others.
const SCOPE: &str = env!("CARGO_PKG_NAME");

/// Where spans go.
pub struct Way {
    provider: SdkTracerProvider,
    filter: Targets,
}

impl Way {
    pub fn open(endpoint: &Endpoint, settings: &Settings, service: &Service) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| format!("traces cannot be sent to {endpoint}: {error}");
        install_crypto();
        let headers = settings.headers_file.as_deref().map(headers).transpose();
        let headers = headers.map_err(|error| failed(&chain_text(&error)))?;
        let client = reqwest::Client::builder()
            .default_headers(headers.unwrap_or_default())
            .timeout(SEND_PATIENCE)
            // What lets in there is shown to nobody else.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| failed(&error))?;
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(endpoint.as_str())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(SEND_PATIENCE)
            .build()
            .map_err(|error| failed(&error))?;
        let resource = resource(service);
        opentelemetry_sdk::trace::SpanExporter::set_resource(&mut exporter, &resource);
        let queue = Queue::start(exporter, endpoint.to_string()).map_err(|error| failed(&error))?;
        let mut builder = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_max_events_per_span(EVENTS_PER_SPAN_MAX)
            .with_span_processor(queue);
        if let Some(ppm) = settings.sample_ppm {
            let share = Sampler::TraceIdRatioBased(f64::from(ppm) / 1e6);
            // A span of a trace that is sent is sent.
            builder = builder.with_sampler(Sampler::ParentBased(Box::new(share)));
        }
        let filter = settings.filter.as_deref().unwrap_or(FILTER_DEFAULT).parse::<Targets>();
        let filter = filter.map_err(|error| failed(&error))?;
        Ok(Self { provider: builder.build(), filter })
    }

    pub fn layer(&self) -> Box<dyn Layer<Registry> + Send + Sync> {
        let layer = tracing_opentelemetry::layer().with_tracer(self.provider.tracer(SCOPE));
        let layer = layer.with_location(false).with_threads(false).with_tracked_inactivity(false);
        layer.with_filter(self.filter.clone()).boxed()
    }

    pub fn stop(self, patience: Duration) {
        // What was not sent by then is lost, which its absence tells.
        let _ = self.provider.shutdown_with_timeout(patience);
    }

    pub fn note_failure(span: &Span, text: String) {
        span.set_status(Status::error(text));
    }
}

/// What tells this process from others. The usual variables win.
fn resource(service: &Service) -> Resource {
    let own = |key: &'static str, value: Option<String>| value.map(|value| KeyValue::new(key, value));
    let said = Resource::builder().build();
    let is_said = |attribute: &KeyValue| {
        let value = said.get(&attribute.key).map(|value| value.to_string());
        value.is_some_and(|value| attribute.key != Key::new("service.name") || !value.starts_with("unknown_service"))
    };
    let attributes = [
        own("service.name", Some(service.name.to_owned())),
        own("service.version", Some(env!("CARGO_PKG_VERSION").to_owned())),
        own("service.instance.id", service.instance.clone()),
    ];
    let unsaid = attributes.into_iter().flatten().filter(|attribute| !is_said(attribute));
    Resource::builder().with_attributes(unsaid).build()
}
