//! Which points are in use. A pin that is not understood may mean any point: until it ends, nothing goes.

use std::time::Duration;

use object_store::path::Path;

use crate::fault::{self, Classify, Fault};
use crate::restore::pin::PIN_FOR;
use crate::types::DiskId;
use crate::vault::objects::PinObject;
use crate::vault::store::Listed;
use crate::vault::{Vault, VaultError, names};

/// A pin holds nothing longer than this after it appeared, whatever it says: its maker's clock may be wrong.
pub const PIN_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Most pins that are read: as many restores at once are more than anybody runs. With more, nothing goes.
const PINS_MAX: usize = 10_000;

/// A pin.
#[derive(Clone, Debug)]
pub struct Pin {
    /// Its name in the vault.
    pub path: Path,
    /// What it says; none if that cannot be told.
    pub object: Option<PinObject>,
    /// When it ends, by the store's clock, in microseconds since 1970.
    pub ends_micros: i64,
}

/// The pins of a vault.
#[derive(Clone, Debug, Default)]
pub struct Pins {
    /// All of them, also those that have ended.
    pub all: Vec<Pin>,
    /// Why nothing may go, if there is a reason.
    pub holds_all: Option<String>,
}

impl Pins {
    /// What holds on a disk.
    pub fn of<'a>(&'a self, disk: &'a DiskId, now_micros: i64) -> impl Iterator<Item = &'a PinObject> {
        let holds = self.all.iter().filter(move |pin| pin.ends_micros > now_micros);
        holds.filter_map(|pin| pin.object.as_ref()).filter(move |pin| pin.disk == *disk)
    }

    /// Whether the vault had a pin of that name when they were read.
    #[must_use]
    pub fn knows(&self, path: &Path) -> bool {
        self.all.binary_search_by(|pin| pin.path.cmp(path)).is_ok()
    }
}

fn plus(micros: i64, span: Duration) -> i64 {
    micros.saturating_add(span.as_micros() as i64)
}

/// Reads the pins of a vault.
///
/// # Errors
/// A failed request.
pub async fn read(vault: &Vault, now_micros: i64) -> Result<Pins, VaultError> {
    let listed = vault.store().list(Some(&names::pins())).await?;
    let mut pins = Pins::default();
    let mut read = 0;
    for one in listed {
        let latest_micros = plus(one.modified_micros, PIN_MAX);
        if latest_micros <= now_micros {
            pins.all.push(Pin { path: one.path, object: None, ends_micros: latest_micros });
            continue;
        }
        read += 1;
        if read > PINS_MAX {
            pins.holds_all =
                Some(format!("there are more than {PINS_MAX} pins: nobody reads so many points at a time"));
            pins.all.push(Pin { path: one.path, object: None, ends_micros: latest_micros });
            continue;
        }
        if let Some(pin) = read_one(vault, &one, &mut pins.holds_all).await? {
            pins.all.push(pin);
        }
    }
    Ok(pins)
}

/// One pin; none if it is gone meanwhile.
async fn read_one(vault: &Vault, one: &Listed, holds_all: &mut Option<String>) -> Result<Option<Pin>, VaultError> {
    let latest_micros = plus(one.modified_micros, PIN_MAX);
    let why = match vault.get_object::<PinObject>(&one.path).await {
        Ok(None) => return Ok(None),
        Ok(Some(object)) if names::pin(object.pin) == one.path => {
            // Its maker's clock may be behind by more than the pin is long: by the store's it holds at least what a restore asks for.
            let until_micros = i64::try_from(object.until_micros.0).unwrap_or(i64::MAX);
            let ends_micros = until_micros.max(plus(one.modified_micros, PIN_FOR)).min(latest_micros);
            return Ok(Some(Pin { path: one.path.clone(), object: Some(object), ends_micros }));
        }
        Ok(Some(_)) => format!("{} says another id than its name", one.path),
        Err(error) if error.fault() != Fault::Retry => fault::chain_text(&error),
        Err(error) => return Err(error),
    };
    holds_all.get_or_insert_with(|| format!("a pin cannot be read, and may mean any point: {why}"));
    Ok(Some(Pin { path: one.path.clone(), object: None, ends_micros: latest_micros }))
}
