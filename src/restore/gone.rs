//! Which bytes of a disk were set by records that cannot be read any more. Pure.

use std::collections::BTreeMap;

use crate::types::{Extent, ExtentKind};

/// Ranges of the disk, start to end, disjoint: their bytes are gone.
#[derive(Debug, Default)]
pub(super) struct Gone(BTreeMap<u64, u64>);

impl Gone {
    /// Whether every byte of the image can be had.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A record sets an extent; `let_go` tells whether its bytes are gone. Zeroes stand in the index, and never are.
    pub(super) fn set(&mut self, extent: &Extent, let_go: bool) {
        let (start, end) = (extent.offset_bytes, extent.end_bytes());
        if start >= end {
            return;
        }
        if let Some((&before, &before_end)) = self.0.range(..start).next_back()
            && before_end > start
        {
            self.0.insert(before, start);
            if before_end > end {
                self.0.insert(end, before_end);
            }
        }
        while let Some((&inside, &inside_end)) = self.0.range(start..end).next() {
            self.0.remove(&inside);
            if inside_end > end {
                self.0.insert(end, inside_end);
            }
        }
        if let_go && extent.kind == ExtentKind::Data {
            self.0.insert(start, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_are_gone_from_where_they_were_let_go_until_they_are_set_anew(
            steps in prop::collection::vec((0..64_u64, 1..40_u32, any::<bool>(), any::<bool>()), 0..60),
        ) {
            let (mut gone, mut model) = (Gone::default(), [false; 128]);
            for (offset_bytes, length_bytes, data, let_go) in steps {
                let kind = if data { ExtentKind::Data } else { ExtentKind::Zero };
                gone.set(&Extent { offset_bytes, length_bytes, kind }, let_go);
                model[offset_bytes as usize..offset_bytes as usize + length_bytes as usize].fill(data && let_go);
                let mut bytes = [false; 128];
                gone.0.iter().for_each(|(&start, &end)| bytes[start as usize..end as usize].fill(true));
                prop_assert_eq!(bytes, model);
            }
        }
    }
}
