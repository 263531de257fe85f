//! `tidegate doctor`: looks at a host before a daemon is started there, and after.

use std::path::{Path, PathBuf};

use super::{Failure, Outcome, keyring};
use crate::agent::config::Config as AgentConfig;
use crate::doctor::{self, Finding, Grade, Role, worst_code};
use crate::gateway::config::GatewayConfig;

/// Options of `tidegate doctor`.
#[derive(clap::Args)]
pub struct Args {
    /// Whose host it is; auto takes it from the configuration.
    #[arg(value_enum, default_value_t)]
    kind: Kind,
    /// Configuration file of the gateway or agent.
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    config: PathBuf,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Kind {
    /// As the configuration says.
    #[default]
    Auto,
    /// `tidegate gateway`.
    Gateway,
    /// `tidegate agent`.
    Agent,
}

/// A configuration, of either kind.
pub(super) enum Loaded {
    /// Of a gateway.
    Gateway(Box<GatewayConfig>),
    /// Of an agent.
    Agent(Box<AgentConfig>),
}

impl Loaded {
    /// Reads a file; whose it is, its sections tell.
    pub(super) fn load(path: &Path, role: Option<Role>) -> Result<Self, Failure> {
        let role = match role {
            Some(role) => role,
            None => guess(path)?,
        };
        let usage = |error: crate::config::ConfigError| Failure::usage(error.to_string());
        Ok(match role {
            Role::Gateway => Self::Gateway(Box::new(GatewayConfig::load(path).map_err(usage)?)),
            Role::Agent => Self::Agent(Box::new(AgentConfig::load(path).map_err(usage)?)),
        })
    }

    /// Whose it is.
    pub(super) const fn role(&self) -> Role {
        match self {
            Self::Gateway(_) => Role::Gateway,
            Self::Agent(_) => Role::Agent,
        }
    }

    /// Looks at the host.
    pub(super) async fn examine(&self) -> Vec<Finding> {
        let facts = match self {
            Self::Gateway(config) => doctor::gateway(config).await,
            Self::Agent(config) => doctor::agent(config).await,
        };
        doctor::examine(&facts)
    }
}

/// Gateways have a journal, agents a state directory.
fn guess(path: &Path) -> Result<Role, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("{} cannot be read: {error}", path.display())))?;
    let table = text.parse::<toml::Table>().map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    match (table.contains_key("journal"), table.contains_key("state_dir") || table.contains_key("disk")) {
        (true, false) => Ok(Role::Gateway),
        (false, true) => Ok(Role::Agent),
        _ => Err(Failure::usage(format!(
            "{} is not clearly of a gateway or an agent: write `tidegate doctor gateway` or `tidegate doctor agent`",
            path.display()
        ))),
    }
}

/// Runs the verb.
pub fn run(args: &Args) -> Outcome {
    let role = match args.kind {
        Kind::Auto => None,
        Kind::Gateway => Some(Role::Gateway),
        Kind::Agent => Some(Role::Agent),
    };
    let loaded = Loaded::load(&args.config, role)?;
    let findings = keyring::runtime()?.block_on(loaded.examine());
    let code = worst_code(&findings);
    if args.json {
        println!("{}", findings_json(loaded.role(), &findings));
    } else {
        print!("{}", findings_text(&findings));
    }
    Ok(code)
}

/// The findings for programs.
pub(super) fn findings_json(role: Role, findings: &[Finding]) -> serde_json::Value {
    serde_json::json!({
        "kind": role, "version": env!("CARGO_PKG_VERSION"), "exit_code": worst_code(findings), "findings": findings,
    })
}

fn findings_text(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        out += &format!("{:<5} {:<18} {}\n", finding.grade.as_str(), finding.check, finding.measured);
        if !finding.advice.is_empty() {
            out += &format!("{:24} -> {}\n", "", finding.advice);
        }
    }
    let count = |grade| findings.iter().filter(|finding| finding.grade == grade).count();
    out += &format!("{} ok, {} warn, {} fail\n", count(Grade::Ok), count(Grade::Warn), count(Grade::Fail));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_a_file_is_its_sections_tell() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x.toml");
        for (text, role) in [("[journal]\n", Some(Role::Gateway)), ("state_dir = 'x'\n", Some(Role::Agent)), ("", None)]
        {
            std::fs::write(&path, text).expect("written");
            assert_eq!(guess(&path).ok(), role, "{text}");
        }
    }

    #[test]
    fn text_has_a_line_per_finding_and_what_to_do_below_it() {
        let finding = |grade, advice: &str| Finding {
            check: "kernel",
            grade,
            measured: "5.4".into(),
            advice: advice.into(),
            passing: false,
        };
        let text = findings_text(&[finding(Grade::Ok, ""), finding(Grade::Fail, "take a newer one")]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "ok    kernel             5.4");
        assert!(lines[2].ends_with("-> take a newer one"), "{text}");
        assert_eq!(lines[3], "1 ok, 0 warn, 1 fail");
    }
}
