//! Who may talk to whom: every refusal names the certificate on both sides.

use super::support::*;
use crate::types::{Epoch, Id128};
use crate::wire::pki;
use crate::wire::*;

use crate::fault::chain_text;

async fn refused(addr: &str, files: &TlsFiles, moved: i64) -> ConnectError {
    let attempt = tokio::time::timeout(PATIENCE, try_connect(addr, files, moved)).await;
    attempt.expect("answered in time").err().expect("refused")
}

/// The same, until the gateway has said so too: what the agent tells it is one datagram, which a busy machine may lose.
async fn refused_and_told(addr: &str, files: &TlsFiles, moved: i64, log: &Log, words: &[&str]) -> ConnectError {
    for _ in 0..5 {
        let error = refused(addr, files, moved).await;
        if log.has_within(PATIENCE / 4, words).await {
            return error;
        }
    }
    panic!("no line with {words:?} in\n{}", log.text());
}

over_both! {
    an_agent_of_another_authority_is_refused_with_a_text_on_both_sides,
    a_gateway_of_another_authority_is_refused_with_a_text_on_both_sides,
    an_expired_agent_is_told_the_day_and_the_file,
    an_expired_gateway_is_refused_with_a_text_on_both_sides,
    a_gateway_under_another_name_is_refused,
    a_gateway_does_not_take_another_gateway_for_an_agent,
    an_agent_of_another_vault_is_refused_with_a_text_on_both_sides,
    another_agents_disk_is_refused_by_name_and_the_own_goes_on,
    certificates_that_are_replaced_count_for_whoever_comes_next_and_who_is_there_stays,
}

async fn an_agent_of_another_authority_is_refused_with_a_text_on_both_sides() {
    let (log, pki, other) = (Log::start(), Pki::new(), Pki::new());
    let server = start(&pki.gateway(), &MemoryHost::with([]), 0);
    // It trusts the gateway's authority, but its own certificate is from elsewhere.
    let files = TlsFiles { ca: pki.path().join("ca.crt"), ..other.agent("a1", &["d1"]) };
    let error = refused(&server.addr, &files, 0).await;
    let text = error.to_string();
    assert!(matches!(error, ConnectError::AgentCertificate { .. }), "{error:?}");
    assert!(text.contains("agent-a1.crt") && text.contains("does not trust"), "{text}");
    log.has(&["agent refused", "/agent/a1", "was issued by", "ca.crt"]).await;
}

async fn a_gateway_of_another_authority_is_refused_with_a_text_on_both_sides() {
    let (log, pki, other) = (Log::start(), Pki::new(), Pki::new());
    let server = start(&other.gateway(), &MemoryHost::with([]), 0);
    let told = ["an agent refused this gateway", "gateway-g1.crt", "does not trust"];
    let error = refused_and_told(&server.addr, &pki.agent("a1", &["d1"]), 0, &log, &told).await;
    let text = error.to_string();
    assert!(matches!(error, ConnectError::GatewayCertificate { .. }), "{error:?}");
    assert!(text.contains("/gateway/g1") && text.contains("pki init"), "{text}");
}

async fn an_expired_agent_is_told_the_day_and_the_file() {
    let (log, pki) = (Log::start(), Pki::new());
    // The gateway's clock is 20 days ahead: within its own certificate, beyond the agent's.
    let server = start(&pki.gateway(), &MemoryHost::with([]), days(20));
    let agent = pki::issue_agent(pki.path(), "a1", &[disk("d1")], pki::IssueOptions { days: 10, ..options() });
    let agent = agent.expect("issued");
    let error = refused(&server.addr, &files(&agent), 0).await;
    let text = error.to_string();
    assert!(matches!(error, ConnectError::AgentCertificate { .. }), "{error:?}");
    let day = agent.not_after.to_string();
    let day = &day[..10];
    assert!(text.contains("agent-a1.crt") && text.contains("expired on") && text.contains(day), "{text}");
    log.has(&["agent refused", "/agent/a1", "expired on", day, "pki issue"]).await;
}

async fn an_expired_gateway_is_refused_with_a_text_on_both_sides() {
    let (log, pki) = (Log::start(), Pki::new());
    let hosts = ["127.0.0.1".to_owned()];
    let gateway = pki::issue_gateway(pki.path(), "g1", &hosts, pki::IssueOptions { days: 10, ..options() });
    let server = start(&files(&gateway.expect("issued")), &MemoryHost::with([]), 0);
    let told = ["an agent refused this gateway", "gateway-g1.crt", "expired on"];
    let error = refused_and_told(&server.addr, &pki.agent("a1", &["d1"]), days(20), &log, &told).await;
    let text = error.to_string();
    assert!(matches!(error, ConnectError::GatewayCertificate { .. }), "{error:?}");
    assert!(text.contains("/gateway/g1") && text.contains("expired on"), "{text}");
}

async fn a_gateway_under_another_name_is_refused() {
    let pki = Pki::new();
    let server = start(&pki.gateway(), &MemoryHost::with([]), 0);
    let port = server.addr.rsplit_once(':').expect("port").1;
    let error = refused(&format!("localhost:{port}"), &pki.agent("a1", &["d1"]), 0).await;
    let text = error.to_string();
    assert!(text.contains("does not name \"localhost\"") && text.contains("--host localhost"), "{text}");
}

#[tokio::test]
async fn certificates_of_the_other_role_are_refused_on_this_side_already() {
    let pki = Pki::new();
    let gateway = pki.gateway();
    let error = refused("127.0.0.1:9", &gateway, 0).await;
    let text = chain_text(&error);
    assert!(text.contains("gateway-g1.crt") && text.contains("an agent needs its own"), "{text}");
    let agent = pki.agent("a1", &["d1"]);
    let any = "127.0.0.1:0".parse().expect("address");
    let error = Listener::bind(any, &agent, &Tuning::default(), &clock(0), &Net::system()).err().expect("refused");
    assert!(error.to_string().contains("a gateway needs its own"), "{error}");
}

async fn a_gateway_does_not_take_another_gateway_for_an_agent() {
    let (log, pki) = (Log::start(), Pki::new());
    let server = start(&pki.gateway(), &MemoryHost::with([]), 0);
    let both = pki.any("both", &[format!("spiffe://{VAULT}/gateway/g2")]);
    let raw = Raw::connect(&server.addr, &both).await;
    let (code, text) = raw.closed().await;
    assert_eq!(code, Code::Role);
    assert!(text.contains("/gateway/g2") && text.contains("not an agent's"), "{text}");
    log.has(&["agent refused", "/gateway/g2"]).await;
}

/// A listener whose certificate is whatever the test wants: TLS is in order, the role is not.
fn impostor(files: &TlsFiles) -> (String, quinn::Endpoint) {
    use quinn::crypto::rustls::QuicServerConfig;
    let material = tls::Material::load(files, &clock(0)).expect("files");
    let config = material.server_config(&tls::Explanation::default()).expect("config");
    let crypto = QuicServerConfig::try_from(config).expect("config");
    let config = quinn::ServerConfig::with_crypto(std::sync::Arc::new(crypto));
    let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().expect("address")).expect("listening");
    (endpoint.local_addr().expect("address").to_string(), endpoint)
}

#[tokio::test]
async fn an_agent_talks_only_to_a_gateway_of_its_vault() {
    let pki = Pki::new();
    let agent = pki.agent("a1", &["d1"]);
    let other_vault = Id128([0xb2; 16]);
    for (file, uri, word) in [
        ("other-agent", format!("spiffe://{VAULT}/agent/a2"), "which is no gateway"),
        ("other-vault", format!("spiffe://{other_vault}/gateway/g9"), "gateway g9 of vault b2"),
        ("nobody", "https://example.invalid/".to_owned(), "names no identity"),
    ] {
        // The impostor cannot read its own identity in the last case, so its files are loaded as they are.
        let files = pki.any(file, &[uri]);
        if file == "nobody" {
            let error = tls::Material::load(&files, &clock(0)).err().expect("refused");
            assert!(chain_text(&error).contains(word), "{error}");
            continue;
        }
        let (addr, endpoint) = impostor(&files);
        let accepting = tokio::spawn(async move {
            let connection = endpoint.accept().await.expect("incoming").await.expect("handshake");
            connection.closed().await
        });
        let error = refused(&addr, &agent, 0).await;
        assert!(matches!(error, ConnectError::GatewayCertificate { .. }), "{error:?}");
        assert!(error.to_string().contains(word), "{error}");
        let closed = accepting.await.expect("accepted").to_string();
        assert!(closed.contains(word), "the other side reads: {closed}");
    }
}

async fn an_agent_of_another_vault_is_refused_with_a_text_on_both_sides() {
    let (log, pki) = (Log::start(), Pki::new());
    let server = start(&pki.gateway(), &MemoryHost::with([]), 0);
    let other = Id128([0xb2; 16]);
    let raw = Raw::connect(&server.addr, &pki.any("other", &[format!("spiffe://{other}/agent/a1")])).await;
    let (code, text) = raw.closed().await;
    assert_eq!(code, Code::Vault);
    assert!(text.contains(&other.to_string()) && text.contains(&VAULT.to_string()), "{text}");
    log.has(&["agent refused", "agent a1", &other.to_string()]).await;
}

async fn another_agents_disk_is_refused_by_name_and_the_own_goes_on() {
    let (log, pki) = (Log::start(), Pki::new());
    let host = MemoryHost::with([("d1", MemoryDisk::new()), ("d2", MemoryDisk::new())]);
    let server = start(&pki.gateway(), &host, 0);
    let client = connect(&server, &pki.agent("a1", &["d1"])).await;
    let error = client.open_disk(fork("d2")).await.err().expect("refused");
    let text = error.to_string();
    assert!(matches!(error, OpenDiskError::Refused { code: Code::NotAuthorised, .. }), "{error:?}");
    assert!(text.contains("agent a1") && text.contains("disk d2") && text.contains("d1"), "{text}");
    assert!(host.disk("d2").opens.lock().is_empty(), "the host was asked");
    log.has(&["disk stream ended", "d2", "not-authorised"]).await;
    let (_, _, opened) = client.open_disk(fork("d1")).await.expect("the own disk");
    assert_eq!(opened.epoch, Epoch(1));
}

async fn certificates_that_are_replaced_count_for_whoever_comes_next_and_who_is_there_stays() {
    let (old, new) = (Pki::new(), Pki::new());
    let host = MemoryHost::with([("d1", MemoryDisk::new()), ("d3", MemoryDisk::new())]);
    let (gateway, second) = (old.gateway(), old.agent("a2", &["d2"]));
    let server = start(&gateway, &host, 0);
    let client = connect(&server, &old.agent("a1", &["d1"])).await;
    let (mut sender, mut events, opened) = client.open_disk(fork("d1")).await.expect("opened");
    let mut source = Source::new(&opened);
    sender.send(source.record(100)).await.expect("sent");
    acked(&mut events, 1).await;

    // What is refused changes nothing.
    let other = files(&pki::issue_gateway(new.path(), "g2", &["127.0.0.1".into()], options()).expect("issued"));
    // The new authority's certificate came, and its own certificate not yet: every agent would refuse it.
    let third = Pki::new();
    let early = files(&pki::issue_gateway(third.path(), "g1", &["127.0.0.1".into()], options()).expect("issued"));
    let early = TlsFiles { ca: gateway.ca.clone(), ..early };
    let broken = TlsFiles { ca: "/nowhere/ca".into(), key: "/nowhere/key".into(), ..gateway };
    let all = [
        (other, vec!["/gateway/g2"]),
        (early, vec!["is not of the authority in"]),
        (broken, vec!["/nowhere/ca", "/nowhere/key"]),
    ];
    for (files, words) in all {
        let mistakes = server.credentials.check(&files).err().expect("refused");
        assert_eq!(mistakes.len(), words.len(), "all at once: {mistakes:?}");
        for (mistake, word) in mistakes.iter().zip(words) {
            assert!(chain_text(mistake).contains(word), "{mistake}");
        }
    }
    connect(&server, &second).await.close().await;

    let ends = server.credentials.ends();
    let longer = pki::IssueOptions { days: 60, ..options() };
    let renewed = pki::issue_gateway(new.path(), "g1", &["127.0.0.1".into()], longer).expect("issued");
    server.credentials.replace(server.credentials.check(&files(&renewed)).expect("usable"));
    assert!(server.credentials.ends() > ends);
    // The old authority counts no more, on either side.
    refused(&server.addr, &second, 0).await;
    let newer = connect(&server, &new.agent("a3", &["d3"])).await;
    newer.open_disk(fork("d3")).await.expect("opened");
    sender.send(source.record(100)).await.expect("the session that was there goes on");
    acked(&mut events, 2).await;
}

#[tokio::test]
async fn files_that_do_not_fit_are_named() {
    let pki = Pki::new();
    let agent = pki.agent("a1", &["d1"]);
    let other = pki.agent("a2", &["d1"]);
    let missing = TlsFiles { key: "/nowhere/key".into(), ..agent.clone() };
    let no_pem = TlsFiles { cert: agent.key.clone(), ..agent.clone() };
    let mixed = TlsFiles { key: other.key, ..agent };
    for (files, word) in [(missing, "/nowhere/key"), (no_pem, "holds no certificate"), (mixed, "agent-a2.key")] {
        let error = refused("127.0.0.1:9", &files, 0).await;
        assert!(matches!(error, ConnectError::Tls(_)), "{error:?}");
        assert!(chain_text(&error).contains(word), "{}", chain_text(&error));
    }
}

#[test]
fn a_certificate_for_all_hosts_of_a_domain_is_judged_as_one_of_them() {
    let pki = Pki::new();
    let files = pki.any("all", &[format!("spiffe://{VAULT}/gateway/g1"), "*.example.org".into()]);
    let examined = tls::examine(&files, &clock(0)).expect("read");
    assert_eq!((examined.chain, examined.names), (Ok(()), vec!["*.example.org".into(), "127.0.0.1".into()]));
}
