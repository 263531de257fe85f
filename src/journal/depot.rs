//! Where segment files come from and go to: a helper keeps one prepared segment ready for each shard.
//!
//! A segment file is made once, filled with zeroes and used again and again: blocks that were written once take half
//! the time to sync. Its name is its number, `seg-<number>`; used again it gets a new, higher name, durably, before
//! the shard sees it. So what an earlier life left in it never looks like a commit of the present one. The numbers are
//! those of the whole journal: a file that went to another shard keeps its old number from being given out again.
//!
//! A shard that wants a segment gets, in this order: a free file of its own, a new file if the capacity allows one, a
//! free file of another shard. If there is none it is starved, which is an ordinary state: the journal is full.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tracing::{debug, warn};

use super::disk::Files;
use super::ledger::Freed;
use super::space::SpaceBoard;
use crate::flow::Strand;
use crate::mutants::{self, Mutant};

/// A segment file ready to be written from its start.
#[derive(Debug)]
pub struct Prepared {
    /// Its number.
    pub segment: u64,
    /// Its file.
    pub path: PathBuf,
    /// The file's length.
    pub file_bytes: u64,
}

/// How long the helper waits before it tries again what the operating system refused.
const RETRY: Duration = Duration::from_millis(500);

/// How many segments in a row may fail to be prepared, with [`RETRY`] between them, before the disk counts as lost. A full
/// disk is none of that: it is an ordinary state, however long it lasts.
pub(super) const REFUSED_MAX: u32 = 8;

#[derive(Debug)]
struct ShardStock {
    dir: PathBuf,
    free: Vec<PathBuf>,
    wants: bool,
}

#[derive(Debug)]
struct Stock {
    shards: Vec<ShardStock>,
    next_segment: u64,
    /// Files that exist, in use or free.
    files: u64,
    /// Whose turn it is, so that shards are served in turn.
    turn: usize,
    /// Segments in a row that could not be prepared, for another reason than room.
    refused: u32,
    /// The last of them, when they were too many.
    lost: Option<String>,
    stopped: bool,
}

/// The stock of segment files.
#[derive(Debug)]
pub struct Depot {
    stock: Mutex<Stock>,
    /// Wakes the helper, of which there is one.
    changed: Notify,
    segment_bytes: u64,
    files_max: u64,
}

/// What a shard starts with.
#[derive(Debug)]
pub struct ShardFiles {
    /// Its directory.
    pub dir: PathBuf,
    /// Files that hold nothing.
    pub free: Vec<PathBuf>,
    /// Files that hold something.
    pub held: u64,
    /// The first unused segment number.
    pub next_segment: u64,
}

enum Source {
    Own(PathBuf),
    New,
    Other(PathBuf),
}

enum Step {
    Prepared,
    /// The operating system refused.
    Refused,
    /// Nothing is wanted, or nothing can be had.
    Idle,
    Stopped,
}

struct Task {
    shard: usize,
    source: Source,
    to: PathBuf,
    segment: u64,
}

/// The file name of a segment.
#[must_use]
pub fn segment_name(segment: u64) -> String {
    format!("seg-{segment:08}")
}

/// The number in a segment's file name.
#[must_use]
pub fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("seg-")?;
    // The largest number has none after it; no journal comes that far.
    digits.parse().ok().filter(|number| *number < u64::MAX && segment_name(*number) == name)
}

impl Depot {
    /// A depot for files of `segment_bytes`, `files_max` of them at most, with what each shard has.
    #[must_use]
    pub fn new(segment_bytes: u64, files_max: u64, shards: Vec<ShardFiles>) -> Self {
        let files = shards.iter().map(|shard| shard.held + shard.free.len() as u64).sum();
        let next_segment = shards.iter().map(|shard| shard.next_segment).max().unwrap_or(1);
        let shards =
            shards.into_iter().map(|shard| ShardStock { dir: shard.dir, free: shard.free, wants: true }).collect();
        let stock = Stock { shards, next_segment, files, turn: 0, refused: 0, lost: None, stopped: false };
        Self { stock: Mutex::new(stock), changed: Notify::new(), segment_bytes, files_max }
    }

    /// A shard took its prepared segment: it wants the next one.
    pub fn want(&self, shard: u16) {
        self.stock.lock().shards[usize::from(shard)].wants = true;
        self.changed.notify_one();
    }

    /// Takes back files that nothing needs.
    pub fn give_back(&self, shard: u16, freed: Vec<Freed>, files: &dyn Files) {
        for freed in freed {
            let usable = freed.reusable && freed.file_bytes == self.segment_bytes;
            if usable {
                self.stock.lock().shards[usize::from(shard)].free.push(freed.path);
            } else {
                if let Err(error) = files.remove(&freed.path) {
                    warn!(file = %freed.path.display(), %error, "a segment file that is not used again stays behind");
                }
                self.stock.lock().files -= 1;
            }
        }
        self.changed.notify_one();
    }

    /// Why no segment can be had any more, if that is so: the file and what the operating system said.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        self.stock.lock().lost.clone()
    }

    fn note_refused(&self, task: &Task, error: &io::Error) {
        let no_room = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        if no_room && !mutants::on(Mutant::NoRoomIsFailure) {
            return;
        }
        let mut stock = self.stock.lock();
        stock.refused += 1;
        if stock.refused >= REFUSED_MAX {
            stock.lost = Some(format!("{}: {error}", task.to.display()));
        }
    }

    fn heard_good(&self) {
        let mut stock = self.stock.lock();
        (stock.refused, stock.lost) = (0, None);
    }

    /// Ends the helper.
    pub fn stop(&self) {
        self.stock.lock().stopped = true;
        self.changed.notify_one();
    }

    fn next_task(&self, stock: &mut Stock, space: &SpaceBoard) -> Option<Task> {
        let (count, turn) = (stock.shards.len(), stock.turn);
        for shard in (0..count).map(|step| (turn + step) % count) {
            if !stock.shards[shard].wants {
                continue;
            }
            let Some(source) = self.source(stock, shard) else {
                space.set_starved(shard as u16, true);
                continue;
            };
            let segment = stock.next_segment;
            stock.next_segment += 1;
            let own = &mut stock.shards[shard];
            own.wants = false;
            let to = own.dir.join(segment_name(segment));
            stock.turn = (shard + 1) % count;
            return Some(Task { shard, source, to, segment });
        }
        None
    }

    fn source(&self, stock: &mut Stock, shard: usize) -> Option<Source> {
        if let Some(path) = stock.shards[shard].free.pop() {
            return Some(Source::Own(path));
        }
        if stock.files < self.files_max {
            stock.files += 1;
            return Some(Source::New);
        }
        stock.shards.iter_mut().find_map(|other| other.free.pop()).map(Source::Other)
    }

    fn undo(&self, task: Task) {
        let mut stock = self.stock.lock();
        stock.shards[task.shard].wants = true;
        match task.source {
            Source::New => stock.files -= 1,
            Source::Own(path) | Source::Other(path) => stock.shards[task.shard].free.push(path),
        }
    }

    /// One step of the helper: prepares one segment if one is wanted.
    fn step(&self, files: &dyn Files, space: &SpaceBoard, out: &[mpsc::Sender<Prepared>]) -> Step {
        let task = {
            let mut stock = self.stock.lock();
            if stock.stopped {
                return Step::Stopped;
            }
            match self.next_task(&mut stock, space) {
                Some(task) => task,
                None => return Step::Idle,
            }
        };
        match prepare(&task, files, self.segment_bytes) {
            Ok(()) => {
                self.heard_good();
                self.deliver(&task, space, out);
                Step::Prepared
            }
            Err(error) => {
                warn!(file = %task.to.display(), %error, "a segment cannot be prepared; trying again");
                space.set_starved(task.shard as u16, true);
                self.note_refused(&task, &error);
                self.undo(task);
                Step::Refused
            }
        }
    }

    /// The helper: prepares what is wanted until it is stopped. Blocks while the disk works.
    pub async fn run(&self, files: &dyn Files, space: &SpaceBoard, out: &[mpsc::Sender<Prepared>]) {
        loop {
            match self.step(files, space, out) {
                Step::Prepared => {}
                Step::Stopped => return,
                Step::Idle => self.changed.notified().await,
                Step::Refused => {
                    // Whatever changes may help sooner.
                    let _ = tokio::time::timeout(RETRY, self.changed.notified()).await;
                }
            }
        }
    }

    fn deliver(&self, task: &Task, space: &SpaceBoard, out: &[mpsc::Sender<Prepared>]) {
        space.set_starved(task.shard as u16, false);
        debug!(file = %task.to.display(), "segment prepared");
        let prepared = Prepared { segment: task.segment, path: task.to.clone(), file_bytes: self.segment_bytes };
        // It has room: a shard asks for one at a time. A shard that is gone leaves the file for the next start.
        let _ = out[task.shard].try_send(prepared);
    }
}

fn prepare(task: &Task, files: &dyn Files, segment_bytes: u64) -> io::Result<()> {
    match &task.source {
        Source::New => files.create_zeroed(&task.to, segment_bytes),
        Source::Own(from) | Source::Other(from) => files.rename(from, &task.to),
    }
}

/// Starts the helper.
///
/// # Errors
/// If its thread cannot be started.
pub fn start(
    depot: &Arc<Depot>,
    files: Arc<dyn Files>,
    space: Arc<SpaceBoard>,
    out: Vec<mpsc::Sender<Prepared>>,
) -> io::Result<Strand> {
    let depot = Arc::clone(depot);
    Strand::start("tg-journal-prep", move || async move { depot.run(&*files, &space, &out).await })
}

/// The directory of a shard.
#[must_use]
pub fn shard_dir(dir: &Path, shard: u16) -> PathBuf {
    dir.join(format!("shard-{shard:02}"))
}
