//! Every bound of the system, by name and with its reason, and the relations between them checked at compile time.
//!
//! Bounds that an operator may change live in the configuration; their defaults are here too.

/// Longest disk, agent or gateway name: a DNS label, so that names fit host names and metric labels.
pub const NAME_BYTES_MAX: usize = 63;
/// Longest name of a recovery point: fits one line of a terminal.
pub const POINT_NAME_BYTES_MAX: usize = 128;

/// Largest payload of one record. Larger guest writes become several records: a disk promises atomicity of sectors
/// only, and a record must fit one message.
pub const RECORD_PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Most extents of one record: a payload of 1 MiB in 512-byte writes fits twice.
pub const RECORD_EXTENTS_MAX: usize = 4096;
/// Most rows of 16 bytes that the signature of a barrier takes: the block's fixed part and the longest signature, of P-384.
pub const SIGNATURE_ROWS_MAX: usize = 14;
/// Largest record as bytes.
pub const RECORD_BYTES_MAX: usize =
    crate::types::RECORD_HEAD_BYTES + RECORD_EXTENTS_MAX * crate::types::EXTENT_BYTES + RECORD_PAYLOAD_BYTES_MAX;

/// Largest frame body on the wire: one record of the largest size.
pub const FRAME_BODY_BYTES_MAX: usize = RECORD_BYTES_MAX;
/// Largest body of any frame that is not a record: control frames are small.
pub const CONTROL_BODY_BYTES_MAX: usize = 16 << 10;
/// Most disks (streams) of one agent connection.
pub const DISKS_PER_AGENT_MAX: usize = 256;
/// Largest disk: 64 TiB, the largest that common hypervisors offer.
pub const DISK_BYTES_MAX: u64 = 64 << 40;

/// Alignment of journal offsets, lengths and buffers: the strictest logical block size in common use.
pub const BLOCK_BYTES: usize = 4096;
/// Largest commit (one write and one sync): the buffer of a shard. Larger ones only lengthen the ack.
pub const COMMIT_BYTES_MAX: usize = 4 << 20;
/// Default size of a journal segment: the unit of release and of zeroing.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;

/// Plaintext at which a message is closed. Larger messages compress little better, smaller ones cost an index row.
pub const MESSAGE_BYTES_TARGET: usize = 512 << 10;
/// Largest plaintext of a message: an almost full one plus the largest record.
pub const MESSAGE_BYTES_MAX: usize = MESSAGE_BYTES_TARGET + RECORD_BYTES_MAX;
/// Sealed size at which a batch is closed.
pub const BATCH_BYTES_TARGET: usize = 16 << 20;
/// Default age at which a batch is closed: the larger part of the RPO.
pub const BATCH_AGE_MS_DEFAULT: u64 = 1000;
/// Batches that one lane index covers.
pub const LANE_INDEX_BATCHES: u64 = 1024;
/// A lane's key serves at most this long.
pub const LANE_AGE_SECONDS_MAX: u64 = 24 * 3600;
/// Most recipients of a vault: a wrapped key has 200 bytes for each, and every lane has one.
pub const RECIPIENTS_MAX: usize = 64;
/// Most lists of recipients, with objects under such names that are none: a change a day for ten years. A process reads each once.
pub const RECIPIENT_LISTS_MAX: u64 = 4096;
/// Of those that were refused after the present list, so many are read again at each look, as a store may have answered wrongly once: a
/// minute's work that noise does not make long.
pub const RECIPIENT_LISTS_JUDGED_AGAIN: u64 = 16;
/// What an older catalog key sealed or authenticated counts if it appeared, by the store's clock, no later than so long after the list
/// of recipients that made another one the present key. Long enough for every gateway to end what it has under way, short enough to be
/// waited for after a leak.
pub const CATALOG_KEY_GRACE_SECONDS: u64 = 3600;
/// How far the store's time of a list that replaces a catalog key may be from the time at which it was made. What is further apart was copied,
/// or made by a wrong clock (stores refuse requests that are a quarter of an hour off), and its time ends no key's.
pub const CATALOG_KEY_CLOCKS_APART_SECONDS_MAX: u64 = 900;
/// Oldest look at the lists of recipients by which anything is written under the catalog key that was the present one then.
pub const LISTS_AGE_SECONDS_MAX: u64 = 600;
/// Oldest look by which something that was written is taken for what will count: half the grace, so that clocks, slow requests
/// and a store that tells whole seconds have the other half.
pub const LISTS_AGE_SECONDS_ACK_MAX: u64 = CATALOG_KEY_GRACE_SECONDS / 2;
/// Most wraps made anew of one lane's key, with objects under such names that are none.
pub const REWRAPS_MAX: u64 = 4096;
/// Most lanes that the word of a shredded disk names: those of sixty years of one gateway, and 40 bytes each stay within a control object. Of
/// more, those that are left are named when these have lost their keys.
pub const SHRED_LANES_MAX: usize = 24_000;
/// Largest control object (vault, key, lane, epoch, disk description) that is read.
pub const CONTROL_OBJECT_BYTES_MAX: u64 = 1 << 20;

/// A dirty map covers the disk in chunks of this size.
pub const CHUNK_BYTES: u64 = 64 << 10;
/// Most runs of chunks that a gateway names to an agent that forks: 256 KiB at either end, for each disk that is being
/// opened. Random writes of some seconds fit exactly; where more was written, the smallest gaps are compared too.
pub const TOUCHED_RUNS_MAX: usize = 32 << 10;

const _: () = assert!(3 * LISTS_AGE_SECONDS_MAX <= LISTS_AGE_SECONDS_ACK_MAX, "a write has time for all its tries");
const _: () = assert!(RECORD_BYTES_MAX + 2 * BLOCK_BYTES < COMMIT_BYTES_MAX, "a record must fit one commit");
const _: () = assert!(SEGMENT_BYTES_DEFAULT >= 4 * COMMIT_BYTES_MAX as u64, "a segment holds several commits");
const _: () =
    assert!(SHRED_LANES_MAX as u64 * 40 + 4096 < CONTROL_OBJECT_BYTES_MAX, "the word of a shredded disk is read");
const _: () = assert!(MESSAGE_BYTES_MAX < BATCH_BYTES_TARGET, "a batch holds several messages");
const _: () = assert!((RECORD_PAYLOAD_BYTES_MAX as u64).is_multiple_of(CHUNK_BYTES), "copying reads whole chunks");
