//! A disk cut into units of equal size. Those that hold something stand in the file one after the other, in their order.

/// Units that follow each other on the disk, and so in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    /// Number of the first on the disk.
    first: u64,
    /// How many.
    count: u64,
    /// Number of the first among those that hold something.
    rank: u64,
}

/// Where the units stand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Units {
    unit_bytes: u64,
    runs: Vec<Run>,
    /// Where the content of the first begins in the file.
    first_bytes: u64,
    /// From one to the next in the file: more than a unit where something stands between them.
    stride_bytes: u64,
}

/// The ranges of a disk that are not among `zeroes`, as offset and length.
pub(super) fn content(disk_bytes: u64, zeroes: &[(u64, u64)]) -> impl Iterator<Item = (u64, u64)> {
    let starts = std::iter::once(0).chain(zeroes.iter().map(|&(offset, length)| offset + length));
    let ends = zeroes.iter().map(|&(offset, _)| offset).chain(std::iter::once(disk_bytes));
    starts.zip(ends).filter(|(start, end)| start < end).map(|(start, end)| (start, end - start))
}

impl Units {
    /// Cuts, and finds the units in which `content` (ascending, disjoint) lies. They have no place yet.
    pub(super) fn of(unit_bytes: u64, content: impl Iterator<Item = (u64, u64)>) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        let mut count = 0;
        for (offset, length) in content {
            let (mut first, end) = (offset / unit_bytes, (offset + length).div_ceil(unit_bytes));
            if let Some(last) = runs.last_mut() {
                let last_end = last.first + last.count;
                first = first.max(last_end);
                if first == last_end {
                    let more = end.saturating_sub(first);
                    last.count += more;
                    count += more;
                    continue;
                }
            }
            runs.push(Run { first, count: end - first, rank: count });
            count += end - first;
        }
        Self { unit_bytes, runs, first_bytes: 0, stride_bytes: unit_bytes }
    }

    /// Gives them their places.
    pub(super) fn placed(mut self, first_bytes: u64, stride_bytes: u64) -> Self {
        (self.first_bytes, self.stride_bytes) = (first_bytes, stride_bytes);
        self
    }

    /// How many hold something.
    pub(super) fn count(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.rank + run.count)
    }

    /// Where the content of the unit of this rank begins in the file.
    pub(super) const fn at(&self, rank: u64) -> u64 {
        self.first_bytes + rank * self.stride_bytes
    }

    /// Where a byte of the disk stands in the file, and how many from there on stand as on the disk.
    pub(super) fn place(&self, offset_bytes: u64) -> Option<(u64, u64)> {
        let (unit, within) = (offset_bytes / self.unit_bytes, offset_bytes % self.unit_bytes);
        let run = self.runs[..self.runs.partition_point(|run| run.first <= unit)].last()?;
        let into = unit - run.first;
        if into >= run.count {
            return None;
        }
        let units = if self.stride_bytes == self.unit_bytes { run.count - into } else { 1 };
        Some((self.at(run.rank + into) + within, units * self.unit_bytes - within))
    }

    /// Calls `each` with number and rank of the units from `first` up to `end` that hold something.
    pub(super) fn each(&self, first: u64, end: u64, mut each: impl FnMut(u64, u64)) {
        let from = self.runs.partition_point(|run| run.first + run.count <= first);
        for run in self.runs[from..].iter().take_while(|run| run.first < end) {
            for unit in run.first.max(first)..(run.first + run.count).min(end) {
                each(unit, run.rank + (unit - run.first));
            }
        }
    }

    /// Numbers of the groups of `per_group` units in which at least one holds something, ascending.
    pub(super) fn groups(&self, per_group: u64) -> Vec<u64> {
        let mut groups: Vec<u64> = Vec::new();
        for run in &self.runs {
            let next = groups.last().map_or(0, |last| last + 1);
            groups.extend((run.first / per_group).max(next)..(run.first + run.count).div_ceil(per_group));
        }
        groups
    }
}
