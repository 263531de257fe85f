//! The vault against the load generator's sink: figures that are measured over it count only if it behaves as the real
//! service does.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "common/store_suite.rs"]
mod store_suite;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Output};

use loadgen::sink::{Account, Limits, Sink, Weather};

struct Service(Sink);

impl store_suite::BlobService for Service {
    fn start() -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self(Sink::start(any, None, Account::default(), Limits::default(), Weather::default()).unwrap())
    }

    fn vault_url(&self, container: &str) -> String {
        self.0.vault_url(container)
    }

    fn stop(&mut self) {
        self.0.set(Weather { away: true, ..Weather::default() });
    }

    fn start_again(&mut self) {
        self.0.set(Weather::default());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn create_only_puts_ranges_and_listings_behave_as_the_vault_needs() {
    store_suite::create_only_puts_ranges_and_listings_behave_as_the_vault_needs::<Service>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_one_of_many_racers_creates_an_object() {
    store_suite::exactly_one_of_many_racers_creates_an_object::<Service>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_goes_away_and_comes_back_loses_nothing_and_needs_nobody() {
    store_suite::a_store_that_goes_away_and_comes_back_loses_nothing_and_needs_nobody::<Service>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_container_and_an_empty_one_are_told_apart() {
    store_suite::a_missing_container_and_an_empty_one_are_told_apart::<Service>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_names_the_credential_that_was_refused_and_never_shows_it() {
    store_suite::the_command_names_the_credential_that_was_refused_and_never_shows_it::<Service>().await;
}

fn tidegate(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments).envs(variables.iter().copied()).output().unwrap()
}

#[test]
fn the_commands_make_a_vault_in_it_and_a_wrong_key_is_refused() {
    let service = <Service as store_suite::BlobService>::start();
    let url = service.0.vault_url("commands/in/a/prefix");
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (identity, catalog) = (file("recovery.key"), file("catalog.key"));
    let init = ["vault", "init", "--vault", &url, "--new-identity", &identity, "--catalog-key", &catalog];
    let wrong = [("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0LXRoYXQtaXMtd3Jvbmc=")];
    let refused = tidegate(&init, &wrong);
    assert!(!refused.status.success(), "{refused:?}");
    assert_eq!(service.0.counts().blobs, 0);
    assert!(service.0.counts().refused > 0);
    let _ = (std::fs::remove_file(&identity), std::fs::remove_file(&catalog));
    let made = tidegate(&init, &[]);
    assert!(made.status.success(), "{made:?}");
    let status = ["vault", "status", "--vault", &url, "--catalog-key", &catalog];
    assert!(tidegate(&status, &[]).status.success());
    let refused = tidegate(&status, &wrong);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("AZURE_STORAGE_ACCOUNT_KEY") && text.contains("denied"), "{text}");
}
