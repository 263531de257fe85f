//! Containers and blobs. Pure: no network, no clock.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use parking_lot::Mutex;

/// What is known of a blob.
#[derive(Clone, Debug)]
pub(super) struct Blob {
    /// The body, unless it was thrown away.
    pub(super) body: Option<Bytes>,
    pub(super) bytes: u64,
    /// Different for every put.
    pub(super) version: u64,
    pub(super) modified_seconds: i64,
}

impl Blob {
    pub(super) fn etag(&self) -> String {
        format!("\"0x{:X}\"", self.version)
    }
}

/// What a request asks of the blob that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Conditions {
    pub(super) if_match: Option<String>,
    pub(super) if_none_match: Option<String>,
}

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    NoContainer,
    NoBlob,
    ContainerExists,
    BlobExists,
    Condition,
    /// A list names a block that was not sent, or is none.
    BlockList,
    /// More blocks than a blob may have.
    TooManyBlocks,
    Full,
}

/// Blocks that a blob may have, as in the service.
const BLOCKS_MAX: usize = 50_000;

/// A block that was sent and is in no blob yet.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// The body, unless it was thrown away.
    pub(super) body: Option<Bytes>,
    pub(super) bytes: u64,
}

impl Block {
    fn kept_bytes(&self) -> u64 {
        self.body.as_ref().map_or(0, Bytes::len) as u64
    }
}

impl Conditions {
    /// Whether `found` may be replaced.
    fn allow_put(&self, found: Option<&Blob>) -> Result<(), Refusal> {
        if let (Some("*"), Some(_)) = (self.if_none_match.as_deref(), found) {
            return Err(Refusal::BlobExists);
        }
        let is = |wanted: &String| found.is_some_and(|blob| wanted == "*" || *wanted == blob.etag());
        if self.if_match.as_ref().is_some_and(|wanted| !is(wanted)) || self.if_none_match.as_ref().is_some_and(is) {
            return Err(Refusal::Condition);
        }
        Ok(())
    }

    /// Whether `found` is what a reader wants.
    pub(super) fn allow_get(&self, found: &Blob) -> Result<(), Refusal> {
        let is = |wanted: &String| wanted == "*" || *wanted == found.etag();
        if self.if_match.as_ref().is_some_and(|wanted| !is(wanted)) || self.if_none_match.as_ref().is_some_and(is) {
            return Err(Refusal::Condition);
        }
        Ok(())
    }
}

type Names = BTreeMap<String, Blob>;

#[derive(Default)]
struct State {
    containers: BTreeMap<String, Names>,
    /// Blocks by container and name of their blob to be, then by their own.
    blocks: BTreeMap<(String, String), BTreeMap<String, Block>>,
    versions: u64,
    blobs: u64,
    stored_bytes: u64,
    kept_bytes: u64,
}

/// All of them.
#[derive(Default)]
pub(super) struct Blobs(Mutex<State>);

/// One page of a listing.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) blobs: Vec<(String, Blob)>,
    pub(super) prefixes: Vec<String>,
    pub(super) next: Option<String>,
}

impl Blobs {
    /// Blobs, and bytes of their bodies.
    pub(super) fn size(&self) -> (u64, u64) {
        let state = self.0.lock();
        (state.blobs, state.stored_bytes)
    }

    pub(super) fn create_container(&self, name: &str) -> Result<(), Refusal> {
        let mut state = self.0.lock();
        if state.containers.contains_key(name) {
            return Err(Refusal::ContainerExists);
        }
        state.containers.insert(name.to_owned(), Names::new());
        Ok(())
    }

    pub(super) fn delete_container(&self, name: &str) -> Result<(), Refusal> {
        let mut state = self.0.lock();
        let names = state.containers.remove(name).ok_or(Refusal::NoContainer)?;
        names.values().for_each(|blob| state.forget(blob));
        let (gone, left) = std::mem::take(&mut state.blocks).into_iter().partition(|((of, _), _)| of == name);
        state.blocks = left;
        gone.values().for_each(|blocks: &BTreeMap<_, _>| state.forget_blocks(blocks));
        Ok(())
    }

    pub(super) fn has_container(&self, name: &str) -> Result<(), Refusal> {
        if self.0.lock().containers.contains_key(name) { Ok(()) } else { Err(Refusal::NoContainer) }
    }

    /// Puts a blob; its version.
    pub(super) fn put(
        &self,
        container: &str,
        name: &str,
        conditions: &Conditions,
        mut blob: Blob,
        memory_bytes: u64,
    ) -> Result<Blob, Refusal> {
        let mut state = self.0.lock();
        let names = state.containers.get(container).ok_or(Refusal::NoContainer)?;
        let found = names.get(name);
        conditions.allow_put(found)?;
        let freed_bytes = found.and_then(|blob| blob.body.as_ref()).map_or(0, Bytes::len) as u64;
        let added_bytes = blob.body.as_ref().map_or(0, Bytes::len) as u64;
        if state.kept_bytes - freed_bytes + added_bytes > memory_bytes {
            return Err(Refusal::Full);
        }
        state.versions += 1;
        state.blobs += 1;
        state.stored_bytes += blob.bytes;
        state.kept_bytes += added_bytes;
        blob.version = state.versions;
        let names = state.containers.get_mut(container).ok_or(Refusal::NoContainer)?;
        if let Some(old) = names.insert(name.to_owned(), blob.clone()) {
            state.forget(&old);
        }
        Ok(blob)
    }

    /// Keeps a block of a blob that is not there before its list comes.
    pub(super) fn put_block(
        &self,
        container: &str,
        name: &str,
        id: &str,
        block: Block,
        memory_bytes: u64,
    ) -> Result<(), Refusal> {
        let mut state = self.0.lock();
        if !state.containers.contains_key(container) {
            return Err(Refusal::NoContainer);
        }
        if state.kept_bytes + block.kept_bytes() > memory_bytes {
            return Err(Refusal::Full);
        }
        let blocks = state.blocks.entry((container.to_owned(), name.to_owned())).or_default();
        if blocks.len() == BLOCKS_MAX {
            return Err(Refusal::TooManyBlocks);
        }
        let added_bytes = block.kept_bytes();
        let freed_bytes = blocks.insert(id.to_owned(), block).map_or(0, |old| old.kept_bytes());
        state.kept_bytes += added_bytes - freed_bytes;
        Ok(())
    }

    /// Takes the blocks of a list, in its order: the body that they make, unless part of it was thrown away, and its
    /// length. Blocks that are not in the list are forgotten.
    pub(super) fn take_blocks(
        &self,
        container: &str,
        name: &str,
        ids: &[String],
    ) -> Result<(Option<Bytes>, u64), Refusal> {
        let mut state = self.0.lock();
        let key = (container.to_owned(), name.to_owned());
        let blocks = state.blocks.get(&key).ok_or(Refusal::BlockList)?;
        let listed = ids.iter().map(|id| blocks.get(id)).collect::<Option<Vec<_>>>().ok_or(Refusal::BlockList)?;
        let bytes = listed.iter().map(|block| block.bytes).sum();
        let bodies: Option<Vec<&[u8]>> = listed.iter().map(|block| block.body.as_deref()).collect();
        let body = bodies.map(|bodies| Bytes::from(bodies.concat()));
        let blocks = state.blocks.remove(&key).unwrap_or_default();
        state.forget_blocks(&blocks);
        Ok((body, bytes))
    }

    pub(super) fn get(&self, container: &str, name: &str) -> Result<Blob, Refusal> {
        let state = self.0.lock();
        let names = state.containers.get(container).ok_or(Refusal::NoContainer)?;
        names.get(name).cloned().ok_or(Refusal::NoBlob)
    }

    pub(super) fn delete(&self, container: &str, name: &str) -> Result<(), Refusal> {
        let mut state = self.0.lock();
        let names = state.containers.get_mut(container).ok_or(Refusal::NoContainer)?;
        let old = names.remove(name).ok_or(Refusal::NoBlob)?;
        state.forget(&old);
        Ok(())
    }

    /// Names from `from` on that begin with `prefix`; with a delimiter what lies below one is told once, as a prefix.
    pub(super) fn list(
        &self,
        container: &str,
        prefix: &str,
        delimiter: Option<&str>,
        from: &str,
        page_max: usize,
    ) -> Result<Page, Refusal> {
        let state = self.0.lock();
        let names = state.containers.get(container).ok_or(Refusal::NoContainer)?;
        let mut page = Page::default();
        let mut at = Bound::Included(from.max(prefix).to_owned());
        while let Some((name, blob)) = names.range((at, Bound::Unbounded)).next() {
            if !name.starts_with(prefix) {
                break;
            }
            if page.blobs.len() + page.prefixes.len() == page_max {
                page.next = Some(name.clone());
                break;
            }
            let below = delimiter.and_then(|delimiter| {
                let end = name[prefix.len()..].find(delimiter)? + prefix.len() + delimiter.len();
                Some(&name[..end])
            });
            at = match below {
                Some(folder) => {
                    page.prefixes.push(folder.to_owned());
                    after_all(folder)
                }
                None => {
                    page.blobs.push((name.clone(), Blob { body: None, ..blob.clone() }));
                    Bound::Excluded(name.clone())
                }
            };
        }
        Ok(page)
    }
}

/// The first place after every name that begins with `folder`.
fn after_all(folder: &str) -> Bound<String> {
    // No name holds the last character of all, so that it closes the range.
    Bound::Excluded(format!("{folder}{}", char::MAX))
}

impl State {
    fn forget(&mut self, blob: &Blob) {
        self.blobs -= 1;
        self.stored_bytes -= blob.bytes;
        self.kept_bytes -= blob.body.as_ref().map_or(0, Bytes::len) as u64;
    }

    fn forget_blocks(&mut self, blocks: &BTreeMap<String, Block>) {
        self.kept_bytes -= blocks.values().map(Block::kept_bytes).sum::<u64>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(text: &'static str) -> Blob {
        let body = Bytes::from_static(text.as_bytes());
        Blob { bytes: body.len() as u64, body: Some(body), version: 0, modified_seconds: 1 }
    }

    fn put(blobs: &Blobs, name: &str, conditions: &Conditions) -> Result<Blob, Refusal> {
        blobs.put("c", name, conditions, blob("body"), 1000)
    }

    fn with(names: &[&str]) -> Blobs {
        let blobs = Blobs::default();
        blobs.create_container("c").expect("new");
        names.iter().for_each(|name| drop(put(&blobs, name, &Conditions::default()).expect("stored")));
        blobs
    }

    #[test]
    fn conditions_decide_who_may_replace_a_blob() {
        let blobs = with(&["a"]);
        let first = blobs.get("c", "a").expect("there").etag();
        let new = Conditions { if_none_match: Some("*".into()), if_match: None };
        assert_eq!(put(&blobs, "a", &new).map(drop), Err(Refusal::BlobExists));
        let same = Conditions { if_match: Some(first), if_none_match: None };
        assert!(put(&blobs, "a", &same).is_ok());
        assert_eq!(put(&blobs, "a", &same).map(drop), Err(Refusal::Condition), "it has another version now");
        assert_eq!(put(&blobs, "b", &same).map(drop), Err(Refusal::Condition), "nothing is there");
        assert!(put(&blobs, "b", &new).is_ok());
    }

    #[test]
    fn a_full_memory_refuses_and_keeps_what_it_has() {
        let blobs = with(&["a", "b"]);
        let none = Conditions::default();
        assert_eq!(blobs.put("c", "d", &none, blob("four"), 11).map(drop), Err(Refusal::Full));
        assert!(blobs.put("c", "a", &none, blob("1234567"), 11).is_ok(), "what is replaced gives its room");
        assert_eq!(blobs.size(), (2, 11));
        blobs.delete("c", "b").expect("there");
        blobs.delete_container("c").expect("there");
        assert_eq!(blobs.size(), (0, 0));
    }

    #[test]
    fn a_block_list_makes_a_body_of_blocks_in_its_order() {
        let blobs = with(&[]);
        let block = |text: &'static str| Block { bytes: 2, body: Some(Bytes::from_static(text.as_bytes())) };
        let ids = |ids: &[&str]| ids.iter().map(|&id| id.to_owned()).collect::<Vec<_>>();
        assert_eq!(blobs.put_block("other", "a", "1", block("ab"), 6), Err(Refusal::NoContainer));
        for (id, text) in [("1", "xx"), ("2", "cd"), ("1", "ab"), ("3", "ef")] {
            blobs.put_block("c", "a", id, block(text), 6).expect("stored");
        }
        assert_eq!(
            blobs.put_block("c", "b", "1", block("gh"), 6),
            Err(Refusal::Full),
            "what is sent again takes its place"
        );
        assert_eq!(blobs.take_blocks("c", "a", &ids(&["2", "4"])), Err(Refusal::BlockList));
        assert_eq!(blobs.take_blocks("c", "a", &ids(&["2", "1"])), Ok((Some(Bytes::from_static(b"cdab")), 4)));
        assert_eq!(blobs.take_blocks("c", "a", &ids(&["3"])), Err(Refusal::BlockList), "what no list named is gone");
        blobs.put_block("c", "b", "1", Block { body: None, bytes: 9 }, 6).expect("stored");
        blobs.put_block("c", "b", "2", block("ab"), 6).expect("stored");
        assert_eq!(blobs.take_blocks("c", "b", &ids(&["1", "2"])), Ok((None, 11)), "one was thrown away");
        blobs.put_block("c", "b", "2", block("ab"), 2).expect("stored, as all room is free again");
        blobs.delete_container("c").expect("there");
        blobs.create_container("c").expect("new");
        blobs.put_block("c", "b", "3", block("ab"), 2).expect("stored, as all room is free again");
    }

    #[test]
    fn pages_of_a_listing_join_without_gap_or_repetition() {
        let names = ["a/1", "a/2", "b", "b/1/x", "b/1/y", "b/2", "c"];
        let blobs = with(&names);
        for page_max in 1..=8 {
            for delimiter in [None, Some("/")] {
                let (mut found, mut from) = (Vec::new(), String::new());
                loop {
                    let page = blobs.list("c", "", delimiter, &from, page_max).expect("listed");
                    assert!(page.blobs.len() + page.prefixes.len() <= page_max);
                    found.extend(page.blobs.into_iter().map(|(name, _)| name));
                    found.extend(page.prefixes);
                    match page.next {
                        Some(next) => from = next,
                        None => break,
                    }
                }
                found.sort();
                let wanted: &[&str] = if delimiter.is_some() { &["a/", "b", "b/", "c"] } else { &names };
                assert_eq!(found, wanted, "{page_max}");
            }
        }
        let page = blobs.list("c", "b/", Some("/"), "", 100).expect("listed");
        assert_eq!((page.prefixes, page.blobs.len()), (vec!["b/1/".to_owned()], 1));
    }
}
