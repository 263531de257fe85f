//! `deny.toml` enforced without cargo-deny, which takes longer to build than the whole product: licences, bans,
//! version floors and sources of every dependency. (The advisory database is the one part left to cargo-deny.)

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::process::Command;

fn read_toml(name: &str) -> toml::Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap().parse().unwrap()
}

/// (name, version, source) of every package in the lock file; members of the workspace have no source.
fn locked() -> Vec<(String, String, Option<String>)> {
    let lock = read_toml("Cargo.lock");
    let text = |package: &toml::Value, key: &str| package.get(key).map(|value| value.as_str().unwrap().to_owned());
    let packages = lock["package"].as_array().unwrap().iter();
    packages.map(|p| (text(p, "name").unwrap(), text(p, "version").unwrap(), text(p, "source"))).collect()
}

fn version(text: &str) -> [u64; 3] {
    let plain = text.split(['-', '+']).next().unwrap();
    let mut parts = plain.split('.').map(|part| part.parse().expect("a version is three numbers"));
    std::array::from_fn(|_| parts.next().expect("a version is three numbers"))
}

/// Whether `rule` (`name` or `name@<version`) refuses the package.
fn refuses(rule: &str, name: &str, found: &str) -> bool {
    match rule.split_once("@<") {
        None => rule == name,
        Some((banned, floor)) => banned == name && version(found) < version(floor),
    }
}

/// Whether the licence expression is satisfied by the allowed ones. Precedence: WITH, AND, OR; `/` is an old OR.
fn licence_allowed(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let passes = either(&tokens, &mut at, allowed);
    assert_eq!(at, tokens.len(), "cannot read the licence expression {expression:?}");
    passes
}

fn either(tokens: &[&str], at: &mut usize, allowed: &[&str]) -> bool {
    let mut passes = both(tokens, at, allowed);
    while tokens.get(*at) == Some(&"OR") {
        *at += 1;
        passes |= both(tokens, at, allowed);
    }
    passes
}

fn both(tokens: &[&str], at: &mut usize, allowed: &[&str]) -> bool {
    let mut passes = single(tokens, at, allowed);
    while tokens.get(*at) == Some(&"AND") {
        *at += 1;
        passes &= single(tokens, at, allowed);
    }
    passes
}

fn single(tokens: &[&str], at: &mut usize, allowed: &[&str]) -> bool {
    let token = tokens[*at];
    *at += 1;
    if token == "(" {
        let passes = either(tokens, at, allowed);
        assert_eq!(tokens.get(*at), Some(&")"));
        *at += 1;
        return passes;
    }
    if tokens.get(*at) == Some(&"WITH") {
        let whole = format!("{token} WITH {}", tokens[*at + 1]);
        *at += 2;
        return allowed.contains(&whole.as_str());
    }
    allowed.contains(&token)
}

#[test]
fn no_dependency_is_banned_or_below_its_floor() {
    let deny = read_toml("deny.toml");
    let rules = deny["bans"]["deny"].as_array().unwrap();
    assert!(rules.len() >= 15, "deny.toml has lost its rules");
    let mut refused = Vec::new();
    for (name, found, _) in locked() {
        for rule in rules {
            if refuses(rule["crate"].as_str().unwrap(), &name, &found) {
                refused.push(format!("{name} {found}: {} ({})", rule["crate"], rule["reason"]));
            }
        }
    }
    assert!(refused.is_empty(), "refused by deny.toml:\n{}", refused.join("\n"));
}

#[test]
fn every_dependency_comes_from_the_registry() {
    let deny = read_toml("deny.toml");
    let registries: Vec<String> = deny["sources"]["allow-registry"]
        .as_array()
        .unwrap()
        .iter()
        .map(|registry| format!("registry+{}", registry.as_str().unwrap()))
        .collect();
    let foreign: Vec<_> = locked()
        .into_iter()
        .filter(|(_, _, source)| source.as_ref().is_some_and(|source| !registries.contains(source)))
        .collect();
    assert!(foreign.is_empty(), "not from an allowed registry: {foreign:?}");
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let deny = read_toml("deny.toml");
    let allowed: Vec<&str> =
        deny["licenses"]["allow"].as_array().unwrap().iter().map(|licence| licence.as_str().unwrap()).collect();
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--all-features", "--filter-platform", &target])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "cargo metadata lists only {} packages", packages.len());
    let mut refused = Vec::new();
    for package in packages {
        let expression = package["license"].as_str().unwrap_or("none stated");
        if expression == "none stated" || !licence_allowed(expression, &allowed) {
            refused.push(format!("{} {}: {expression}", package["name"], package["version"]));
        }
    }
    assert!(refused.is_empty(), "licences that deny.toml does not allow:\n{}", refused.join("\n"));
}

#[test]
fn rules_and_licence_expressions_are_read_rightly() {
    assert!(refuses("bytes@<1.11.1", "bytes", "1.11.0"));
    assert!(!refuses("bytes@<1.11.1", "bytes", "1.11.1"));
    assert!(!refuses("bytes@<1.11.1", "bytesize", "1.0.0"));
    assert!(refuses("openssl", "openssl", "0.10.1"));
    let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"];
    for (expression, passes) in [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("MIT/Apache-2.0", true),
        ("GPL-2.0-only OR MIT", true),
        ("GPL-2.0-only AND MIT", false),
        ("GPL-2.0-only AND MIT OR Apache-2.0", true),
        ("(GPL-2.0-only OR MIT) AND Apache-2.0", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("MIT WITH LLVM-exception", false),
    ] {
        assert_eq!(licence_allowed(expression, &allowed), passes, "{expression}");
    }
}
