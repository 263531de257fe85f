//! Who may take how much of this gateway, and for how long: the bounds that hold whatever peers do.
//!
//! ```text
//!  incoming ──► handshake ─────────► hello ────────────► agent
//!               a place of its       a place of its      a seat: a stream per disk, and the window of data
//!               network              certificate
//! ```
//!
//! What is not known yet is cheap and few: before the hello a connection has one stream and a window of
//! [`STRANGER_WINDOW_BYTES`], and places are counted by what a peer cannot choose freely, its network first, its
//! certificate as soon as there is one. So neither half-open handshakes nor one agent's hundred connections keep
//! others from coming in.
//!
//! What a known agent may leave here is bounded by its one seat: unread bytes by the connection's window, a begun record
//! per stream by the disks that its certificate names, openings by [`Pace`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::types::DiskId;

/// Unread bytes of a connection whose agent has not said hello: a hello takes less than 2 KiB.
pub(in crate::wire) const STRANGER_WINDOW_BYTES: u32 = 16 << 10;
/// Connections of one certificate between handshake and hello. An honest agent has one, two when its first was lost.
pub(super) const HELLOS_PER_AGENT_MAX: usize = 4;
/// Streams besides two for each disk that the certificate names: the control stream, and a few for disks that it does not
/// name, which are refused with a text.
pub(super) const STREAMS_SPARE: u32 = 8;
/// Bits of an IPv6 address that a site is given: who has them chooses the others.
const NETWORK_BITS_V6: u32 = 48;

/// An address, or all those that its owner has by having one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Network(IpAddr);

impl Network {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let prefix = address.to_bits() >> (128 - NETWORK_BITS_V6) << (128 - NETWORK_BITS_V6);
                Self(IpAddr::V6(prefix.into()))
            }
            v4 @ IpAddr::V4(_) => Self(v4),
        }
    }
}

/// Counted places, so many in all and so many per key. Holds a key only while one of its places is taken.
pub(super) struct Places<K> {
    taken: Mutex<(BTreeMap<K, usize>, usize)>,
    all_max: usize,
    key_max: usize,
    /// While fewer than this are taken in all, a key may have more than its own.
    crowded_from: usize,
}

/// A place; free again when dropped.
pub(super) struct Place<K: Ord> {
    places: Arc<Places<K>>,
    key: K,
}

impl<K: Ord + Clone> Places<K> {
    pub(super) const fn new(all_max: usize, key_max: usize) -> Self {
        Self { taken: Mutex::new((BTreeMap::new(), 0)), all_max, key_max, crowded_from: 0 }
    }

    /// The same, but the bound of a key counts only once half of all places are taken: many honest ones behind one
    /// address come together after an outage.
    pub(super) const fn shared_when_crowded(all_max: usize, key_max: usize) -> Self {
        Self { taken: Mutex::new((BTreeMap::new(), 0)), all_max, key_max, crowded_from: all_max / 2 }
    }

    /// How many are taken.
    pub(super) fn count(&self) -> usize {
        self.taken.lock().1
    }

    /// A place for `key`, if there is one in all and for it.
    pub(super) fn take(self: &Arc<Self>, key: &K) -> Option<Place<K>> {
        self.take_among(key, self.key_max)
    }

    /// A place for `key`, if there is one in all and it has fewer than `key_max`.
    pub(super) fn take_among(self: &Arc<Self>, key: &K, key_max: usize) -> Option<Place<K>> {
        let mut taken = self.taken.lock();
        let (keys, all) = &mut *taken;
        if *all >= self.all_max {
            return None;
        }
        match keys.entry(key.clone()) {
            Entry::Occupied(count) if *count.get() >= key_max && *all >= self.crowded_from => return None,
            Entry::Occupied(mut count) => *count.get_mut() += 1,
            Entry::Vacant(_) if key_max == 0 => return None,
            Entry::Vacant(free) => drop(free.insert(1)),
        }
        *all += 1;
        Some(Place { places: Arc::clone(self), key: key.clone() })
    }
}

impl<K: Ord> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        let (keys, all) = &mut *taken;
        *all -= 1;
        if let Some(count) = keys.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                keys.remove(&self.key);
            }
        }
    }
}

/// How often one disk may be opened: each opening asks the vault, and a fork leaves an object there for ever.
pub(super) struct Pace {
    disks: Mutex<Paced>,
}

/// Per disk, the moment up to which its openings have used time up.
#[derive(Default)]
struct Paced {
    used: BTreeMap<DiskId, Duration>,
    swept: Duration,
}

/// Openings at once: an agent that tries its gateways after an outage, many times over.
const OPENS_BURST: u32 = 32;
/// One more after so long: no slower than an agent comes back, and at worst some 43,000 epochs per disk and day.
const OPENS_EVERY: Duration = Duration::from_secs(2);
/// Disks that are remembered, and how often those that may open at once anyway are forgotten. More disks than this open
/// within that time only after an outage, and then the ones above it are let in.
const PACED_DISKS_MAX: usize = 1 << 16;
const SWEEP_EVERY: Duration = Duration::from_secs(10);

impl Pace {
    pub(super) const fn new() -> Self {
        Self { disks: Mutex::new(Paced { used: BTreeMap::new(), swept: Duration::ZERO }) }
    }

    /// Whether `disk` may be opened at the monotonic time `now`: `None`, and it counts as opened, or how long to wait
    /// before asking again. Who gives up meanwhile has used nothing, so an agent in a crash loop is not shut out.
    pub(super) fn turn(&self, disk: &DiskId, now: Duration) -> Option<Duration> {
        let mut paced = self.disks.lock();
        if now >= paced.swept + SWEEP_EVERY {
            paced.swept = now;
            paced.used.retain(|_, used| *used > now);
        }
        if paced.used.len() >= PACED_DISKS_MAX && !paced.used.contains_key(disk) {
            return None;
        }
        let used = paced.used.entry(disk.clone()).or_insert(now);
        let next = (*used).max(now) + OPENS_EVERY;
        let wait = next.saturating_sub(now + OPENS_EVERY * OPENS_BURST);
        if wait.is_zero() {
            *used = next;
        }
        Some(wait).filter(|wait| !wait.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_cannot_take_the_places_of_others() {
        let places = Arc::new(Places::new(5, 3));
        let held: Vec<_> = (0..10).filter_map(|_| places.take(&"a")).collect();
        assert_eq!((held.len(), places.count()), (3, 3));
        let (b, c) = (places.take(&"b"), places.take(&"c"));
        assert!(b.is_some() && c.is_some() && places.take(&"d").is_none(), "five in all");
        drop(held);
        drop((b, c));
        assert_eq!(places.count(), 0);
        assert!(places.taken.lock().0.is_empty(), "no key is remembered");
    }

    #[test]
    fn many_behind_one_address_find_places_while_others_need_none() {
        let places = Arc::new(Places::shared_when_crowded(10, 3));
        let held: Vec<_> = (0..10).filter_map(|_| places.take(&"a")).collect();
        assert_eq!(held.len(), 5, "half of all");
        let others: Vec<_> = (0..10).filter_map(|_| places.take(&"b")).collect();
        assert_eq!(others.len(), 3);
        assert!(places.take(&"c").is_some());
    }

    #[test]
    fn addresses_that_one_sender_can_choose_freely_are_one_network() {
        let of = |text: &str| Network::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:ffff:ffff:ffff:ffff:ffff"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:2:2::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn a_storm_of_openings_is_slowed_down_and_other_disks_are_not() {
        let pace = Pace::new();
        let disk = |name: &str| DiskId::new(name).unwrap();
        let now = Duration::from_secs(100);
        for _ in 0..OPENS_BURST {
            assert_eq!(pace.turn(&disk("d1"), now), None);
        }
        assert_eq!(pace.turn(&disk("d1"), now), Some(OPENS_EVERY));
        assert_eq!(pace.turn(&disk("d1"), now), Some(OPENS_EVERY), "waiting costs nothing");
        assert_eq!(pace.turn(&disk("d2"), now), None);
        assert_eq!(pace.turn(&disk("d1"), now + OPENS_EVERY), None, "one more");
        assert_eq!(pace.turn(&disk("d1"), now + OPENS_EVERY), Some(OPENS_EVERY));
    }

    #[test]
    fn the_memory_of_the_pace_is_bounded() {
        let pace = Pace::new();
        for number in 0..2 * PACED_DISKS_MAX as u32 {
            pace.turn(&DiskId::new(&format!("d{number}")).unwrap(), Duration::from_micros(number.into()));
        }
        assert_eq!(pace.disks.lock().used.len(), PACED_DISKS_MAX);
        pace.turn(&DiskId::new("late").unwrap(), SWEEP_EVERY + OPENS_EVERY * 2);
        assert_eq!(pace.disks.lock().used.len(), 1);
    }
}
