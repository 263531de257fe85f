//! Bodies of a batch's size, PUT by the client that a vault uses, into a sink that throws them away.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tidegate::limits::BATCH_BYTES_TARGET;
use tidegate::vault::url::create_store;

use super::{Plan, Watch, Work};
use crate::sink::{Account, Limits, Sink, Weather};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Longest that one PUT may take.
const PUT_TIME_MAX: Duration = Duration::from_secs(60);

pub(super) fn put(plan: &Plan) -> Result<Work, Failure> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let limits = Limits { discard_above_bytes: 0, ..Limits::default() };
    let sink = Sink::start(any, None, Account::default(), limits, Weather::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let size = BATCH_BYTES_TARGET.min(plan.pool.bytes().len());
    let count = plan.bytes.div_ceil(size as u64);
    runtime.block_on(async {
        let store = create_store(&sink.vault_url("limit")).await?;
        // The first request also makes the connection.
        store.put_new(&"first".into(), plan.pool.bytes().slice(..size).into(), PUT_TIME_MAX).await?;
        let watch = Watch::start();
        for number in 0..count {
            let body = plan.pool.bytes().slice(..size).into();
            store.put_new(&format!("{number}").into(), body, PUT_TIME_MAX).await?;
        }
        Ok(watch.stop(count * size as u64))
    })
}
