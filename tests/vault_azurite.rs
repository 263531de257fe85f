//! The vault against a real blob service.

#[path = "common/azurite.rs"]
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
mod azurite;
#[path = "common/store_suite.rs"]
mod store_suite;

use azurite::Azurite;

impl store_suite::BlobService for Azurite {
    fn start() -> Self {
        Self::start()
    }

    fn vault_url(&self, container: &str) -> String {
        self.vault_url(container)
    }

    fn stop(&mut self) {
        self.stop();
    }

    fn start_again(&mut self) {
        self.start_again();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn create_only_puts_ranges_and_listings_behave_as_the_vault_needs() {
    store_suite::create_only_puts_ranges_and_listings_behave_as_the_vault_needs::<Azurite>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_one_of_many_racers_creates_an_object() {
    store_suite::exactly_one_of_many_racers_creates_an_object::<Azurite>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_goes_away_and_comes_back_loses_nothing_and_needs_nobody() {
    store_suite::a_store_that_goes_away_and_comes_back_loses_nothing_and_needs_nobody::<Azurite>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_container_and_an_empty_one_are_told_apart() {
    store_suite::a_missing_container_and_an_empty_one_are_told_apart::<Azurite>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_names_the_credential_that_was_refused_and_never_shows_it() {
    store_suite::the_command_names_the_credential_that_was_refused_and_never_shows_it::<Azurite>().await;
}
