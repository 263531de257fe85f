//! Of a message that stands in several places: which of them counts. Pure: the rows of a disk and what is known of their batches in, a role for
//! each row out.
//!
//! ```text
//!  sealed here      moved there                              and moved once more
//!  Taken            Ripens   (younger than `delete_after`)
//!  Spare            Taken    (older, its lane ended)          Ripens
//!                   Spare                                     Taken
//! ```
//!
//! - Only what is the same in every word of the index, but for the place, is one message. Whether it is so byte for byte is looked at before
//!   anything of it is marked, and before it is deleted (`proof`).
//! - A copy counts only in a lane that its keeper has ended: that is its last step, when everything was read back.
//! - A batch of which everything needed has a copy that ripens is marked meanwhile, and goes when the mark and the copies are old enough
//!   (`marks`). A mark on the place where a message was sealed changes nothing here.
//! - A copy that is marked counts for none, so of two places one is always without a mark.

use std::collections::{HashMap, HashSet};

use crate::restore::history::{Presence, Row};
use crate::types::{Epoch, Id128, Seq};
use crate::vault::index::MessageMeta;

/// What a place is worth.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Worth {
    /// A copy that its keeper did not come to an end with, that is marked, or to which no route of the disk leads.
    Loose,
    /// A copy that readers who began a while ago do not know.
    Young,
    /// Where the message was sealed.
    First,
    /// A copy that every reader may rely on.
    Ripe,
}

/// What is known of the place of a row.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// The batch in which it stands.
    pub batch: (Id128, u64),
    /// When that appeared, by the store's clock.
    pub appeared_micros: i64,
    /// What it is worth, if it can be read.
    pub worth: Worth,
}

/// What a row is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It is needed if its records are.
    Taken,
    /// As long as the other row is needed: later it is taken in its place.
    Ripens(usize),
    /// For nothing: the other row is the same. `proof`: only if that is so byte for byte.
    Spare {
        /// The row that is taken.
        of: usize,
        /// Whether that is a copy, which nobody has opened.
        proof: bool,
    },
}

type Key = (Id128, u64, Epoch, Seq);

/// Tells for each row of a disk what it is for.
#[must_use]
pub fn roles(rows: &[Row], standing: impl Fn(&Row) -> Standing) -> Vec<Role> {
    let mut roles = vec![Role::Taken; rows.len()];
    let key = |message: &MessageMeta, (lane, n)| -> Key { (lane, n, message.epoch, message.first) };
    let moved: HashSet<Key> = rows
        .iter()
        .filter_map(|row| row.message.origin.map(|origin| key(&row.message, (origin.lane, origin.n))))
        .collect();
    if moved.is_empty() {
        return roles;
    }
    let mut places: HashMap<Key, Vec<usize>> = HashMap::new();
    for (index, row) in rows.iter().enumerate() {
        let sealed = row.message.origin.map_or_else(|| standing(row).batch, |origin| (origin.lane, origin.n));
        let key = key(&row.message, sealed);
        if moved.contains(&key) {
            places.entry(key).or_default().push(index);
        }
    }
    for places in places.into_values() {
        let first = places.iter().copied().find(|index| rows[*index].message.origin.is_none()).unwrap_or(places[0]);
        let same = |index: &usize| {
            rows[*index].presence == Presence::Here && is_same(&rows[*index].message, &rows[first].message)
        };
        let here: Vec<(usize, Standing)> =
            places.iter().copied().filter(same).map(|index| (index, standing(&rows[index]))).collect();
        let best = |(_, place): &&(usize, Standing)| (place.worth, place.appeared_micros, place.batch);
        let Some(&(taken, taken_place)) = here.iter().max_by_key(best) else { continue };
        for (index, place) in here {
            roles[index] = match place.worth {
                _ if index == taken => Role::Taken,
                Worth::Young => Role::Ripens(taken),
                _ => Role::Spare { of: taken, proof: taken_place.worth != Worth::First },
            };
        }
    }
    roles
}

/// Whether two rows are of one sealed message.
fn is_same(one: &MessageMeta, other: &MessageMeta) -> bool {
    let words = |message: &MessageMeta| {
        (
            message.last,
            message.stored_bytes,
            message.plain_bytes,
            message.codec,
            message.chain_before,
            message.chain_last,
        )
    };
    let times = |message: &MessageMeta| (message.epoch, message.first, message.received_first, message.received_last);
    words(one) == words(other) && times(one) == times(other) && one.records == other.records
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::tests::ModelDisk;
    use crate::types::Micros;
    use crate::vault::index::Origin;

    const FIRST: (Id128, u64) = (Id128([1; 16]), 7);

    fn disk() -> ModelDisk {
        let mut disk = ModelDisk::new(64 << 10);
        for at in 0..8_u64 {
            disk.write(at * 4096, vec![at as u8 | 1; 4096]);
        }
        disk
    }

    fn row(disk: &ModelDisk, object: u32, presence: Presence, moved: bool) -> Row {
        let mut message = disk.message(Epoch(1), 1, 4);
        message.origin = moved.then_some(Origin { lane: FIRST.0, n: FIRST.1, put_by: Micros(5) });
        message.offset_bytes += u64::from(object);
        Row { object, confirmed: true, presence, message }
    }

    /// The roles of the message where it was sealed and of copies, by what these are worth and when they appeared.
    fn found(disk: &ModelDisk, first: Presence, copies: &[(Worth, i64)]) -> Vec<Role> {
        let mut rows = vec![row(disk, 0, first, false)];
        rows.extend((1..=copies.len() as u32).map(|object| row(disk, object, Presence::Here, true)));
        roles(&rows, |row| match row.object.checked_sub(1) {
            None => Standing { batch: FIRST, appeared_micros: 1, worth: Worth::First },
            Some(at) => {
                let (worth, appeared_micros) = copies[at as usize];
                Standing { batch: (Id128([2; 16]), u64::from(row.object)), appeared_micros, worth }
            }
        })
    }

    #[test]
    fn of_the_places_of_a_message_one_is_taken_and_young_copies_wait_for_their_turn() {
        let (disk, here, gone) = (disk(), Presence::Here, Presence::LetGo);
        let found = |first, copies: &[_]| found(&disk, first, copies);
        let (ripe, young, loose) = (Worth::Ripe, Worth::Young, Worth::Loose);
        let spare = |of, proof| Role::Spare { of, proof };
        assert_eq!(found(here, &[]), [Role::Taken]);
        assert_eq!(found(here, &[(young, 9)]), [Role::Taken, Role::Ripens(0)]);
        assert_eq!(found(here, &[(loose, 9)]), [Role::Taken, spare(0, false)], "its keeper died");
        assert_eq!(found(here, &[(ripe, 9)]), [spare(1, true), Role::Taken]);
        assert_eq!(found(here, &[(ripe, 9), (ripe, 8)]), [spare(1, true), Role::Taken, spare(1, true)], "two keepers");
        assert_eq!(
            found(here, &[(ripe, 9), (young, 20)]),
            [spare(1, true), Role::Taken, Role::Ripens(1)],
            "moved again"
        );
        assert_eq!(found(gone, &[(ripe, 9), (young, 20)]), [Role::Taken, Role::Taken, Role::Ripens(1)]);
        assert_eq!(found(gone, &[(ripe, 9), (ripe, 20)]), [Role::Taken, spare(2, true), Role::Taken]);
        assert_eq!(found(gone, &[(loose, 9)]), [Role::Taken, Role::Taken], "it is all that is left");
        assert_eq!(found(gone, &[(loose, 9), (young, 3)]), [Role::Taken, spare(2, true), Role::Taken]);
        assert_eq!(found(Presence::Missing, &[(young, 3)]), [Role::Taken, Role::Taken]);
    }

    #[test]
    fn what_differs_in_a_word_is_no_copy_and_neither_is_what_was_sealed_elsewhere() {
        let disk = disk();
        let spoils: [fn(&mut MessageMeta); 5] = [
            |message| message.stored_bytes += 1,
            |message| message.records[2].extents.clear(),
            |message| message.received_last = Micros(1),
            |message| message.origin = Some(Origin { lane: FIRST.0, n: 8, put_by: Micros(5) }),
            |message| message.origin = None,
        ];
        for (number, spoil) in spoils.into_iter().enumerate() {
            let mut rows = vec![row(&disk, 0, Presence::Here, false), row(&disk, 1, Presence::Here, true)];
            spoil(&mut rows[1].message);
            let found = roles(&rows, |row| {
                let (worth, lane) =
                    if row.object == 0 { (Worth::First, FIRST.0) } else { (Worth::Ripe, Id128([2; 16])) };
                Standing { batch: (lane, 7), appeared_micros: 1, worth }
            });
            assert_eq!(found, [Role::Taken, Role::Taken], "{number}");
        }
    }
}
