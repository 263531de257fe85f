//! What a recovery finds in the vault: the merge rule, as `restore::history` has it.

use crate::Break;
use crate::state::{ALL, Image, Mark, Object, Record, Sync, Vault, bit};

/// The outcome of a recovery.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The newest record that is usable.
    pub head: Mark,
    /// How far each epoch is usable, from epoch 1.
    pub through: Vec<Mark>,
    /// The image before the first record of each epoch, where it is known.
    pub starts: Vec<Option<Image>>,
    /// The image at the head.
    pub image: Image,
    /// The image at each recovery point that is offered.
    pub points: Vec<Image>,
    /// Whether the head is a point.
    pub whole: bool,
    /// Whether something that counts contradicts itself.
    pub conflict: bool,
    /// The keeper's base is on the lineage.
    pub base_good: bool,
}

impl Vault {
    /// The number of the newest epoch.
    #[must_use]
    pub const fn newest(&self) -> u8 {
        self.epochs.len() as u8
    }

    /// Chunks that are written between a floor and `at`, where the newest epoch ends; all, if that cannot be known.
    #[must_use]
    pub fn touched(&self, floor: Mark, at: Mark) -> u8 {
        let fork = self.epochs[usize::from(at.epoch) - 1].fork;
        match floor.epoch {
            epoch if epoch == at.epoch => self.written(epoch, floor.seq + 1, at.seq),
            // Nothing came of the newest epoch.
            epoch if epoch + 1 == at.epoch && at.seq == 0 && floor.seq <= fork => {
                self.written(epoch, floor.seq + 1, fork)
            }
            _ => ALL,
        }
    }

    /// Chunks that records of `epoch` in `first..=last` write; all, if one of them is not there any more.
    fn written(&self, epoch: u8, first: u8, last: u8) -> u8 {
        (first..=last).fold(0, |bits, seq| {
            let records = self.objects.iter().map(|object| object.record);
            let mut same = records.filter(|record| (record.epoch, record.seq) == (epoch, seq)).peekable();
            if same.peek().is_none() { ALL } else { same.fold(bits, |bits, record| bits | bit(record.chunk)) }
        })
    }

    /// The record that a recovery takes for (epoch, seq); an error if two accounts differ.
    fn pick(&self, epoch: u8, seq: u8, how: Break) -> Result<Option<Record>, ()> {
        // What came into a lane after the keeper had listed it does not count, whether or not it is deleted yet.
        let counts = |object: &&Object| !object.late || how == Break::LateCounts;
        let is = |object: &&Object| object.record.epoch == epoch && object.record.seq == seq && counts(object);
        let mut found = self.objects.iter().filter(is).map(|object| object.record);
        let Some(first) = found.next() else { return Ok(None) };
        if how != Break::FirstWins && found.any(|other| other != first) { Err(()) } else { Ok(Some(first)) }
    }

    /// Recovers from the vault alone.
    #[must_use]
    pub fn recover(&self, how: Break) -> Recovered {
        let start = self.base.map_or(Mark { epoch: 1, seq: 0, chain: self.epochs[0].chain }, |base| base.at);
        let mut image = self.base.map_or([0; 2], |base| base.image);
        let mut found = Recovered {
            head: start,
            through: Vec::new(),
            starts: Vec::new(),
            image,
            points: Vec::new(),
            whole: true,
            conflict: false,
            base_good: true,
        };
        let limit_of = |epoch: u8| match self.epochs.get(usize::from(epoch)) {
            Some(_) if how == Break::ForksIgnored => u8::MAX,
            Some(next) => next.fork,
            None => u8::MAX,
        };
        if start.seq > limit_of(start.epoch) {
            found.base_good = false;
            return found;
        }
        let mut usable = true;
        for epoch in 1..=self.newest() {
            let mut at = Mark { epoch, seq: 0, chain: self.epochs[usize::from(epoch) - 1].chain };
            if epoch < start.epoch {
                // Folded: what is below the base is in it.
                found.through.push(Mark { seq: u8::MAX, ..at });
                found.starts.push(None);
                continue;
            }
            found.starts.push(usable.then_some(image));
            let mut span = epoch > 1;
            if epoch == start.epoch && self.base.is_some() {
                at = start;
                span &= start.seq == 0;
            }
            let limit = limit_of(epoch);
            while usable && at.seq < limit {
                match self.pick(epoch, at.seq + 1, how) {
                    Ok(Some(record)) if record.follows(at.chain) || how == Break::FirstWins => {
                        at = Mark { epoch, seq: record.seq, chain: record.chain };
                        if let Some(cell) = image.get_mut(usize::from(record.chunk)) {
                            *cell = record.value;
                        }
                        span = record.sync == Sync::Begin || span && record.sync != Sync::End;
                        if !span {
                            found.points.push(image);
                        }
                    }
                    Ok(None) => break,
                    Ok(Some(_)) | Err(()) => {
                        found.conflict = true;
                        break;
                    }
                }
            }
            found.through.push(at);
            if usable {
                (found.head, found.whole, found.image) = (at, !span, image);
            }
            usable &= limit == u8::MAX || at.seq >= limit;
        }
        found
    }
}
