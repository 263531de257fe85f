//! What messages supply, kept in memory under a bound: the longest unused goes first. Pure.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

/// What an entry takes beside its bytes, roughly.
const ENTRY_BYTES: u64 = 128;

#[derive(Debug)]
struct Entry {
    bytes: Bytes,
    /// When it was last used, in uses.
    used: u64,
}

/// Bytes of messages, by the messages' numbers.
#[derive(Debug)]
pub struct Cache {
    entries: HashMap<u32, Entry>,
    /// The messages by when they were last used.
    order: BTreeMap<u64, u32>,
    uses: u64,
    held_bytes: u64,
    bytes_max: u64,
}

impl Cache {
    /// An empty one of at most `bytes_max`.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        Self { entries: HashMap::new(), order: BTreeMap::new(), uses: 0, held_bytes: 0, bytes_max }
    }

    /// Whether a message is held; that is no use of it.
    #[must_use]
    pub fn has(&self, message: u32) -> bool {
        self.entries.contains_key(&message)
    }

    /// What a message supplies, if it is held.
    pub fn get(&mut self, message: u32) -> Option<Bytes> {
        let entry = self.entries.get_mut(&message)?;
        self.order.remove(&entry.used);
        self.uses += 1;
        entry.used = self.uses;
        self.order.insert(self.uses, message);
        Some(entry.bytes.clone())
    }

    /// Keeps what a message supplies, and lets others go for it. One that is larger than all may be is not kept.
    pub fn put(&mut self, message: u32, bytes: Bytes) {
        let need_bytes = bytes.len() as u64 + ENTRY_BYTES;
        if need_bytes > self.bytes_max || self.has(message) {
            return;
        }
        while self.held_bytes + need_bytes > self.bytes_max
            && let Some((_, oldest)) = self.order.pop_first()
        {
            let gone = self.entries.remove(&oldest).map_or(0, |entry| entry.bytes.len() as u64);
            self.held_bytes -= gone + ENTRY_BYTES;
        }
        self.uses += 1;
        self.held_bytes += need_bytes;
        self.order.insert(self.uses, message);
        self.entries.insert(message, Entry { bytes, used: self.uses });
    }

    /// Bytes that it holds.
    #[must_use]
    pub const fn held_bytes(&self) -> u64 {
        self.held_bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_unused_goes_first() {
        let mut cache = Cache::new(3 * (100 + ENTRY_BYTES));
        for message in 0..3 {
            cache.put(message, vec![message as u8; 100].into());
        }
        assert!(cache.get(0).is_some());
        cache.put(3, vec![3; 100].into());
        assert!(cache.has(0) && !cache.has(1) && cache.has(2) && cache.has(3));
        cache.put(9, vec![0; 10_000].into());
        assert!(!cache.has(9) && cache.has(0), "what is larger than all may be pushes nothing out");
        assert_eq!(cache.get(2).as_deref(), Some(&[2; 100][..]));
    }

    proptest! {
        #[test]
        fn it_never_holds_more_than_it_may(steps in prop::collection::vec((0..20_u32, 0..400_usize, any::<bool>()), 0..200)) {
            let mut cache = Cache::new(2000);
            for (message, length, get) in steps {
                if get {
                    if let Some(bytes) = cache.get(message) {
                        prop_assert!(bytes.iter().all(|byte| u32::from(*byte) == message));
                    }
                } else {
                    cache.put(message, vec![message as u8; length].into());
                }
                let held: u64 = cache.entries.values().map(|entry| entry.bytes.len() as u64 + ENTRY_BYTES).sum();
                prop_assert_eq!(held, cache.held_bytes());
                prop_assert!(held <= 2000);
                prop_assert_eq!(cache.entries.len(), cache.order.len());
            }
        }
    }
}
