//! Where traces go and which: said by flags, by a configuration file or by the ecosystem's usual variables. Pure but for the
//! file of headers.
//!
//! Each value comes from the first of the three that says it. The variables are for every program of a machine, so what is
//! wrong with them is told and stops nothing; a build that sends no traces leaves them alone.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tracing_subscriber::filter::Targets;
use url::Url;

use crate::config::Reader;

/// Whether this build can send traces.
pub const BUILT: bool = cfg!(feature = "otlp");
/// What to do with a build that cannot.
pub const NOT_BUILT: &str = "this build sends no traces: take the program of the Debian packages or the container, \
    build it with --features otlp, or leave this out";

/// What receivers call the place for traces.
const TRACES_PATH: &str = "/v1/traces";
/// A file of headers is a few lines; what comes after is not looked at.
const HEADERS_BYTES_MAX: u64 = 64 << 10;

/// Where traces are posted to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(String);

impl Endpoint {
    /// The place as it is.
    fn exact(text: &str) -> Result<Url, String> {
        let url = Url::parse(text).map_err(|error| format!("{text:?} is no URL ({error}): write http://host:4318"))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            // Not shown: it may be a secret.
            return Err(
                "the URL must hold no user, password or query: credentials belong into otlp_headers_file".into()
            );
        }
        match url.scheme() {
            "http" | "https" if url.has_host() => Ok(url),
            other => {
                Err(format!("{other} is no way to a receiver of OTLP: write http://host:4318 or https://host:4318"))
            }
        }
    }

    /// The URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Endpoint {
    type Err = String;

    /// A receiver's URL, with or without the path of traces.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut url = Self::exact(text)?;
        let path = url.path().trim_end_matches('/').to_owned();
        if !path.ends_with(TRACES_PATH) {
            url.set_path(&format!("{path}{TRACES_PATH}"));
        }
        Ok(Self(url.into()))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What one of the three says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Where traces go; nowhere without.
    pub endpoint: Option<Endpoint>,
    /// File with what a request shows to be let in. It is read when traces are started, by whoever may read it.
    pub headers_file: Option<PathBuf>,
    /// Which spans and events, by module and level; text that [`Targets`] understands.
    pub filter: Option<String>,
    /// How many of a million traces are sent.
    pub sample_ppm: Option<u32>,
}

impl Settings {
    /// Those of the section `[telemetry]`.
    pub fn read(reader: &mut Reader) -> Self {
        reader.section("telemetry", |section| {
            let endpoint = section.parsed("otlp_endpoint", str::parse);
            if endpoint.is_some() && !BUILT {
                section.mistake("otlp_endpoint", NOT_BUILT);
            }
            let headers_file = section.path("otlp_headers_file");
            // Who looks at the file may not be who starts the daemon: one that cannot be read is no mistake here.
            if let Some(Err(wrong @ HeadersError::Form { .. })) = headers_file.as_deref().map(headers) {
                section.mistake("otlp_headers_file", wrong);
            }
            let filter = section.parsed("otlp_filter", |text| match text.parse::<Targets>() {
                Ok(_) => Ok(text.to_owned()),
                Err(error) => Err(format!("{text:?} is no filter ({error}): write for example \"tidegate=info\"")),
            });
            let sample_ppm = section.decimal("otlp_sample").and_then(|share| {
                let ppm = (0.0..=1.0).contains(&share).then(|| (share * 1e6).round() as u32);
                if ppm.is_none() {
                    section.mistake("otlp_sample", "expected a share from 0.0 to 1.0");
                }
                ppm
            });
            Self { endpoint, headers_file, filter, sample_ppm }
        })
    }

    /// What `others` says where this says nothing.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        Self {
            endpoint: self.endpoint.or(others.endpoint),
            headers_file: self.headers_file.or(others.headers_file),
            filter: self.filter.or(others.filter),
            sample_ppm: self.sample_ppm.or(others.sample_ppm),
        }
    }
}

/// Why a file of headers cannot be used. Never says what is in it.
#[derive(Debug, thiserror::Error)]
pub enum HeadersError {
    /// The system's answer.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is in it.
    #[error("line {line} of {} is no header: write for example \"Authorization: Bearer …\"", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
    },
}

/// The headers in a file: `Name: value`, one a line. Lines that begin with `#` say nothing. Values are marked as secret, so
/// that nobody shows them.
///
/// # Errors
/// [`HeadersError`] names file and line.
pub fn headers(path: &Path) -> Result<HeaderMap, HeadersError> {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(HEADERS_BYTES_MAX).read_to_string(&mut text));
    read.map_err(|source| HeadersError::Read { path: path.to_owned(), source })?;
    let mut headers = HeaderMap::new();
    for (line, text) in text.lines().enumerate().map(|(at, text)| (at + 1, text.trim())) {
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let wrong = || HeadersError::Form { path: path.to_owned(), line };
        let (name, value) = text.split_once(':').ok_or_else(wrong)?;
        let name: HeaderName = name.trim().parse().map_err(|_| wrong())?;
        let mut value: HeaderValue = value.trim().parse().map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

/// What the ecosystem's variables say. Headers, timeouts, samplers and names of the service are read by the library itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    /// Nothing is to be sent, whoever says where to.
    pub disabled: bool,
    /// Where to.
    pub settings: Settings,
    /// What is wrong with it.
    pub mistake: Option<String>,
}

impl Environment {
    /// Asks `variable` for each. Empty values count as absent.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let disabled = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.trim().eq_ignore_ascii_case("true"));
        if disabled || variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value.trim() == "none") {
            return Self { disabled, ..Self::default() };
        }
        let first = |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, variable(name)?)));
        let Some((name, value)) = first(["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"]) else {
            return Self::default();
        };
        let protocol = first(["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]);
        let endpoint = match (protocol, name) {
            (Some((name, other)), _) if other.trim() != "http/protobuf" => {
                Err(format!("{name} is {other:?}, and only http/protobuf is spoken here"))
            }
            // The place of traces is taken as it is, that of everything is where theirs begins.
            (_, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") => {
                Endpoint::exact(&value).map(|url| Endpoint(url.into())).map_err(|wrong| format!("{name}: {wrong}"))
            }
            _ => value.parse().map_err(|wrong| format!("{name}: {wrong}")),
        };
        match endpoint {
            Ok(endpoint) => {
                let settings = Settings { endpoint: Some(endpoint), ..Settings::default() };
                Self { settings, ..Self::default() }
            }
            Err(mistake) => Self { mistake: Some(format!("no traces are sent: {mistake}")), ..Self::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(text: &str) -> Result<Settings, crate::config::ConfigError> {
        let path = Path::new("/etc/tidegate/gateway.toml");
        let mut reader = Reader::parse(path, text)?;
        let settings = Settings::read(&mut reader);
        reader.finish(path).map(|()| settings)
    }

    #[test]
    fn an_endpoint_leads_to_the_place_of_traces_and_holds_no_secret() {
        for (given, place) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("https://c.example/otlp/", "https://c.example/otlp/v1/traces"),
            ("http://[::1]:4318/v1/traces", "http://[::1]:4318/v1/traces"),
        ] {
            assert_eq!(given.parse::<Endpoint>().map(|endpoint| endpoint.0), Ok(place.to_owned()));
        }
        for given in ["collector:4318", "grpc://c:4317", "nonsense", "http://"] {
            assert!(given.parse::<Endpoint>().is_err_and(|wrong| wrong.contains("http://host:4318")), "{given}");
        }
        for given in ["http://user:hunter2@c:4318", "http://c:4318?token=hunter2", "http://hunter2@c"] {
            let wrong = given.parse::<Endpoint>().expect_err("a secret");
            assert!(wrong.contains("otlp_headers_file") && !wrong.contains("hunter2"), "{wrong}");
        }
    }

    #[test]
    fn what_a_file_says_is_taken_and_every_mistake_is_told() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("headers");
        std::fs::write(&file, "# of the collector\n\nAuthorization: Bearer hunter2\nx-scope :a\n").expect("written");
        let text = format!(
            "[telemetry]\notlp_headers_file = {file:?}\notlp_filter = 'tidegate=info,tidegate::keeper=off'\notlp_sample = 0.25\n"
        );
        let settings = section(&text).expect("right");
        assert_eq!((settings.sample_ppm, settings.headers_file.as_ref()), (Some(250_000), Some(&file)));
        let found = headers(&file).expect("right");
        assert_eq!((found.len(), &found["authorization"]), (2, &HeaderValue::from_static("Bearer hunter2")));
        assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");
        assert_eq!(section("").expect("nothing is right too"), Settings::default());
        std::fs::write(&file, "Authorization Bearer hunter2\n").expect("written");
        let text = format!(
            "[telemetry]\notlp_endpoint = 'here'\notlp_headers_file = {file:?}\notlp_filter = '=='\notlp_sample = 2\notlp_endpont = 1\n"
        );
        let wrong = section(&text).expect_err("mistakes").to_string();
        for part in
            ["otlp_endpoint: \"here\"", "line 1 of", "otlp_filter: ", "otlp_sample: ", "did you mean otlp_endpoint"]
        {
            assert!(wrong.contains(part), "{part} is not in {wrong}");
        }
        assert!(!wrong.contains("hunter2"), "{wrong}");
        section("[telemetry]\notlp_headers_file = '/nowhere/headers'\n").expect("it may be there for the daemon");
        assert!(
            headers(Path::new("/nowhere/headers")).is_err_and(|away| away.to_string().contains("/nowhere/headers"))
        );
    }

    #[test]
    fn a_build_that_sends_none_refuses_an_endpoint_and_says_what_to_do() {
        let result = section("[telemetry]\notlp_endpoint = 'http://collector:4318'\n");
        match BUILT {
            true => assert!(result.is_ok_and(|settings| settings.endpoint.is_some())),
            false => assert!(result.is_err_and(|wrong| wrong.to_string().contains("--features otlp"))),
        }
    }

    #[test]
    fn the_usual_variables_count_where_nobody_else_says_anything() {
        let read = |pairs: &[(&str, &str)]| {
            Environment::read(|name| {
                pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let place = |read: Environment| read.settings.endpoint.map(|endpoint| endpoint.0);
        let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318");
        assert_eq!(place(read(&[general])).as_deref(), Some("http://c:4318/v1/traces"));
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t:4318/in");
        assert_eq!(place(read(&[general, own])).as_deref(), Some("http://t:4318/in"), "taken as it is");
        assert_eq!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), Environment::default());
        assert_eq!(place(read(&[general, ("OTEL_TRACES_EXPORTER", "none")])), None);
        assert!(read(&[general, ("OTEL_SDK_DISABLED", "TRUE")]).disabled);
        for wrong in [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "c:4318")] {
            let read = read(&[general, wrong]);
            assert!(read.mistake.as_ref().is_some_and(|mistake| mistake.contains(wrong.0)), "{read:?}");
            assert_eq!(place(read), None);
        }
        let flag = Settings { endpoint: "http://f:4318".parse().ok(), ..Settings::default() };
        let file = Settings { sample_ppm: Some(5), endpoint: "http://g:4318".parse().ok(), ..Settings::default() };
        let all = flag.clone().or(file).or(read(&[general]).settings);
        assert_eq!((all.endpoint, all.sample_ppm), (flag.endpoint, Some(5)));
    }
}
