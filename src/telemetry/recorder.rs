//! What takes the figures that the stages record, and gives them to the page.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::names;

/// How often what was recorded into histograms is summed up.
const UPKEEP: Duration = Duration::from_secs(5);

/// Installs the process's recorder with the help texts. What is recorded before is lost.
///
/// # Errors
/// [`BuildError`] if the process has one already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    // Factors of about 1.5 keep a percentile within the error that an alert can bear.
    let seconds: Vec<f64> = (0..40).map(|step| 20e-6 * 1.5_f64.powi(step)).take_while(|&bound| bound < 120.0).collect();
    let bytes: Vec<f64> = (12..=24).map(|bits| f64::from(1_u32 << bits)).collect();
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &seconds)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".into()), &bytes)?;
    let handle = builder.install_recorder()?;
    names::describe();
    Ok(handle)
}

/// Sums histograms up now and then, for ever. Without it every value stays in memory until somebody looks at the page, which
/// nobody may ever do.
pub async fn upkeep(handle: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        handle.run_upkeep();
    }
}
