//! Every metric by name, kind, unit and help. Names follow the OpenMetrics conventions: base units, `_total` for counters.
//!
//! Stages record with `metrics::counter!(names::X)`; [`describe`] gives the exporter the help texts.

macro_rules! metric_names {
    ($($(#[doc = $help:expr])+ $kind:ident $const:ident = $name:literal;)*) => {
        $( $(#[doc = $help])+ pub const $const: &str = $name; )*

        /// All metrics: (name, kind, help).
        pub const ALL: &[(&str, &str, &str)] = &[
            $( ($name, stringify!($kind), concat!($($help),+)), )*
        ];

        /// Registers the help texts with the installed recorder.
        pub fn describe() {
            $( metric_names!(@describe $kind $name, concat!($($help),+)); )*
        }
    };
    (@describe counter $name:literal, $help:expr) => { metrics::describe_counter!($name, $help) };
    (@describe gauge $name:literal, $help:expr) => { metrics::describe_gauge!($name, $help) };
    (@describe histogram $name:literal, $help:expr) => { metrics::describe_histogram!($name, $help) };
}

metric_names! {
    /// Record bytes read off the wire.
    counter RECEIVED_BYTES = "tidegate_received_bytes_total";
    /// Records read off the wire.
    counter RECEIVED_RECORDS = "tidegate_received_records_total";
    /// Record bytes made durable on the gateway's disk.
    counter JOURNALED_BYTES = "tidegate_journaled_bytes_total";
    /// Records made durable on the gateway's disk.
    counter JOURNALED_RECORDS = "tidegate_journaled_records_total";
    /// Record bytes made durable in the vault.
    counter VAULTED_BYTES = "tidegate_vaulted_bytes_total";
    /// Records made durable in the vault.
    counter VAULTED_RECORDS = "tidegate_vaulted_records_total";
    /// Journal bytes freed because all their records are vaulted.
    counter RELEASED_BYTES = "tidegate_released_bytes_total";
    /// Records whose journal space was freed.
    counter RELEASED_RECORDS = "tidegate_released_records_total";
    /// Acks sent to agents, by level.
    counter ACKS_SENT = "tidegate_acks_sent_total";
    /// Seconds from receiving a record until its ack may be sent, by level: journaled, vaulted.
    histogram ACK_SECONDS = "tidegate_ack_seconds";
    /// How many wait now, by the guard that they wait for.
    gauge WAITING = "tidegate_waiting";
    /// How often somebody began to wait, by guard.
    counter WAITS = "tidegate_waits_total";
    /// Seconds that all waiters together have waited, by guard; also those of waits that are not over.
    counter WAIT_SECONDS = "tidegate_wait_seconds_total";
    /// Journal bytes in use.
    gauge JOURNAL_USED_BYTES = "tidegate_journal_used_bytes";
    /// Journal bytes that the configuration allows.
    gauge JOURNAL_CAPACITY_BYTES = "tidegate_journal_capacity_bytes";
    /// Age of the oldest record in the journal that is not vaulted, at most; 0 if there is none.
    gauge JOURNAL_OLDEST_SECONDS = "tidegate_journal_oldest_seconds";
    /// Seconds of one journal commit: write and sync.
    histogram JOURNAL_COMMIT_SECONDS = "tidegate_journal_commit_seconds";
    /// Bytes of one journal commit.
    histogram JOURNAL_COMMIT_BYTES = "tidegate_journal_commit_bytes";
    /// Which disk backend the journal uses: 1 for the one in the label.
    gauge JOURNAL_BACKEND_INFO = "tidegate_journal_backend_info";
    /// Messages waiting for or in compression and sealing.
    gauge PIPELINE_QUEUE_MESSAGES = "tidegate_pipeline_queue_messages";
    /// Bytes of messages waiting for or in compression and sealing.
    gauge PIPELINE_QUEUE_BYTES = "tidegate_pipeline_queue_bytes";
    /// Messages sealed, by codec.
    counter PIPELINE_MESSAGES = "tidegate_pipeline_messages_total";
    /// Records sealed.
    counter PIPELINE_RECORDS = "tidegate_pipeline_records_total";
    /// Batches closed, by reason: bytes, age, asked.
    counter PIPELINE_BATCHES = "tidegate_pipeline_batches_total";
    /// Messages kept raw untried, because the last one of their disk and a sample of them did not become smaller.
    counter PIPELINE_SKIPPED = "tidegate_pipeline_skipped_messages_total";
    /// How hard messages are packed at present: -1 not at all, 0 by LZ4, else the level of zstd.
    gauge PIPELINE_PACKING_LEVEL = "tidegate_pipeline_packing_level";
    /// Plaintext bytes sealed, by codec.
    counter PIPELINE_PLAIN_BYTES = "tidegate_pipeline_plain_bytes_total";
    /// Bytes after compression and sealing, by codec: plaintext over these is the ratio.
    counter PIPELINE_SEALED_BYTES = "tidegate_pipeline_sealed_bytes_total";
    /// Blob requests by operation and outcome.
    counter BLOB_REQUESTS = "tidegate_blob_requests_total";
    /// Blob requests under way, by operation.
    gauge BLOB_RUNNING = "tidegate_blob_requests_running";
    /// Seconds of a blob request by operation.
    histogram BLOB_REQUEST_SECONDS = "tidegate_blob_request_seconds";
    /// Blob requests tried again.
    counter BLOB_RETRIES = "tidegate_blob_retries_total";
    /// Batches that may be uploaded at the same time at present.
    gauge UPLOAD_WINDOW_BATCHES = "tidegate_upload_window_batches";
    /// Batches waiting for or in upload.
    gauge UPLOAD_QUEUE_BATCHES = "tidegate_upload_queue_batches";
    /// Sealed bytes waiting for or in upload.
    gauge UPLOAD_QUEUE_BYTES = "tidegate_upload_queue_bytes";
    /// 1 while uploads wait for somebody to change something, such as a credential or a catalog key that was replaced.
    gauge UPLOAD_PARKED = "tidegate_upload_parked";
    /// Bytes of vaulted batches as they are stored: packed, sealed, with their indexes.
    counter VAULTED_STORED_BYTES = "tidegate_vaulted_stored_bytes_total";
    /// Agents connected.
    gauge AGENT_SESSIONS = "tidegate_agent_sessions";
    /// Of them those over TCP.
    gauge AGENT_SESSIONS_TCP = "tidegate_agent_sessions_tcp";
    /// Of the agents connected those whose clock is more than two seconds off this gateway's.
    gauge AGENTS_SKEWED = "tidegate_agents_skewed";
    /// The store's clock minus this machine's in seconds, as its last answer said: 0 within the second that it names.
    gauge STORE_CLOCK_AHEAD_SECONDS = "tidegate_store_clock_ahead_seconds";
    /// Disk streams open.
    gauge DISK_STREAMS = "tidegate_disk_streams";
    /// Bytes of the sessions' memory that disks have for records on their way.
    gauge RECORD_MEMORY_BYTES = "tidegate_record_memory_bytes";
    /// Disks that wait for memory before they may send their next record.
    gauge RECORD_MEMORY_WAITING = "tidegate_record_memory_waiting_disks";
    /// 1 while each datagram is kept in a buffer of its own, because the process holds more than its memory.
    gauge RECEIVE_APART = "tidegate_receive_apart";
    /// Round trip times of the connections over QUIC: their median, 90th and 99th percentile, and the longest.
    gauge QUIC_RTT_SECONDS = "tidegate_quic_rtt_seconds";
    /// Congestion windows of the same: bytes that this gateway may have on its way to an agent, by the same percentiles.
    gauge QUIC_WINDOW_BYTES = "tidegate_quic_window_bytes";
    /// Packets sent over QUIC by this gateway.
    counter QUIC_SENT = "tidegate_quic_packets_sent_total";
    /// Of them those that were lost.
    counter QUIC_LOST = "tidegate_quic_packets_lost_total";
    /// Times at which a connection over QUIC met congestion.
    counter QUIC_CONGESTION = "tidegate_quic_congestion_events_total";
    /// Sessions or streams refused, by reason.
    counter REFUSED = "tidegate_refused_total";
    /// Agents asked to go to another gateway: at a drain and when overloaded.
    counter REDIRECTS = "tidegate_redirects_total";
    /// 1 while this gateway asks agents to go elsewhere because it is overloaded.
    gauge OVERLOADED = "tidegate_overloaded";
    /// Times that two different accounts of one record were met, by where that was seen: session, vault.
    counter CONFLICTS = "tidegate_conflicts_total";
    /// Number of the list of recipients that the gateway saw last; 0 for those with whom the vault was made.
    gauge RECIPIENTS_LIST = "tidegate_recipients_list";
    /// 1 while the vault's recipients are none that the configuration pins: nothing new is wrapped to them.
    gauge RECIPIENTS_UNPINNED = "tidegate_recipients_unpinned";
    /// Runs of epochs that went on at another gateway, given up here.
    counter RUNS_RETIRED = "tidegate_runs_retired_total";
    /// Epochs created, by reason.
    counter EPOCHS_CREATED = "tidegate_epochs_created_total";
    /// Seconds until the journal is full if it goes on to grow as of late; infinite if it does not grow.
    gauge JOURNAL_FULL_IN_SECONDS = "tidegate_journal_full_in_seconds";
    /// Seconds until the journal's backlog is gone if it goes on to shrink as of late; infinite if it does not shrink.
    gauge JOURNAL_DRAINED_IN_SECONDS = "tidegate_journal_drained_in_seconds";
    /// Disks by what their replication does: protected, copying, overflowed, waiting, fenced, or away without an agent here.
    gauge DISKS = "tidegate_disks";
    /// Of the disks furthest behind: age of the oldest write that no recovery point in the vault has.
    gauge DISK_RPO_SECONDS = "tidegate_disk_rpo_seconds";
    /// Of the same disks: bytes that the agent has still to copy.
    gauge DISK_DIRTY_BYTES = "tidegate_disk_dirty_bytes";
    /// Of the same disks: bytes sent and not vaulted, in whole chunks.
    gauge DISK_UNVAULTED_BYTES = "tidegate_disk_unvaulted_bytes";
    /// Of the disks with the largest anomaly: plaintext over stored bytes of late.
    gauge DISK_PACKED_RATIO = "tidegate_disk_packed_ratio";
    /// Of the same disks: the share of the usual saving by packing that is gone of late; 0 as ever, 1 nothing packs any more.
    gauge DISK_ANOMALY_RATIO = "tidegate_disk_anomaly_ratio";
    /// Of each disk whose writes pack no more: since when, in seconds since 1970. The last point before stands in the label.
    gauge DISK_ANOMALY_BEGIN_SECONDS = "tidegate_disk_anomaly_begin_timestamp_seconds";
    /// The largest anomaly of all disks.
    gauge DISKS_ANOMALY_MAX_RATIO = "tidegate_disks_anomaly_max_ratio";
    /// The largest of all disks' ages of the oldest write that no recovery point in the vault has.
    gauge DISKS_RPO_MAX_SECONDS = "tidegate_disks_rpo_max_seconds";
    /// Bytes that agents have still to copy, of all disks.
    gauge DISKS_DIRTY_BYTES = "tidegate_disks_dirty_bytes";
    /// Bytes sent and not vaulted, of all disks.
    gauge DISKS_UNVAULTED_BYTES = "tidegate_disks_unvaulted_bytes";
    /// Bytes of memory that the process should hold at the most: what is configured, and what it needs besides.
    gauge MEMORY_LIMIT_BYTES = "tidegate_memory_limit_bytes";
    /// Processors that the process may use.
    gauge PROCESSORS = "tidegate_processors";
    /// 1, with the version in the label.
    gauge BUILD_INFO = "tidegate_build_info";
    /// When the gateway's certificate ends, in seconds since 1970.
    gauge CERTIFICATE_ENDS_SECONDS = "tidegate_certificate_ends_timestamp_seconds";
    /// Times that configuration and certificates were read again, by outcome: ok, or failed with nothing changed.
    counter RELOADS = "tidegate_reloads_total";
    /// 1 while the configuration and certificates that were read again last are refused: what ran before runs on.
    gauge RELOAD_REFUSED = "tidegate_reload_refused";
    /// Bandwidth limit in force in bytes per second, by limit: upload, receive, disk (each); infinite without one.
    gauge BANDWIDTH_LIMIT = "tidegate_bandwidth_limit_bytes_per_second";
    /// Bytes that wait for a bandwidth limit, by limit.
    gauge BANDWIDTH_HELD_BYTES = "tidegate_bandwidth_held_bytes";
    /// Spans of traces that ended, by outcome: sent to their receiver, or lost because it is away or they were too many.
    counter TRACE_SPANS = "tidegate_trace_spans_total";
    /// Bytes of memory that the process holds.
    gauge PROCESS_RESIDENT_BYTES = "process_resident_memory_bytes";
    /// Seconds of processor time that the process has used.
    counter PROCESS_CPU_SECONDS = "process_cpu_seconds_total";
    /// When the process started, in seconds since 1970.
    gauge PROCESS_START_SECONDS = "process_start_time_seconds";
    /// Files and sockets that the process has open.
    gauge PROCESS_OPEN_FDS = "process_open_fds";
    /// 1, with the agent's name and version in the labels.
    gauge AGENT_BUILD_INFO = "tidegate_agent_build_info";
    /// 1 while the agent is connected to a gateway.
    gauge AGENT_CONNECTED = "tidegate_agent_connected";
    /// 1, with gateway, address and transport of the connection in the labels; none without a connection.
    gauge AGENT_CONNECTION_INFO = "tidegate_agent_connection_info";
    /// 1 while TLS over TCP carries the connection because QUIC does not get through.
    gauge AGENT_FELL_BACK = "tidegate_agent_fell_back";
    /// 1 while the configuration and certificates that were read again last are not usable.
    gauge AGENT_RELOAD_REFUSED = "tidegate_agent_reload_refused";
    /// Attempts to connect to a gateway, by outcome: connected, failed.
    counter AGENT_ATTEMPTS = "tidegate_agent_connection_attempts_total";
    /// Round trip time of the connection; none over TCP.
    gauge AGENT_RTT_SECONDS = "tidegate_agent_rtt_seconds";
    /// Packets sent to the gateway over QUIC since the connection began.
    counter AGENT_SENT = "tidegate_agent_packets_sent_total";
    /// Of them those that were lost.
    counter AGENT_LOST = "tidegate_agent_packets_lost_total";
    /// Memory that changes on their way to the gateway hold, of all disks.
    gauge AGENT_MEMORY_BYTES = "tidegate_agent_memory_bytes";
    /// The most that they may.
    gauge AGENT_MEMORY_LIMIT_BYTES = "tidegate_agent_memory_limit_bytes";
    /// 1 for the state that each disk is in, 0 for the others: protected, copying, overflowed, waiting, fenced, refused.
    gauge AGENT_DISK_STATE = "tidegate_agent_disk_state";
    /// Age of the oldest write that no recovery point in the vault has, as the agent knows it; 0 if there is none.
    gauge AGENT_DISK_RPO_SECONDS = "tidegate_agent_disk_rpo_seconds";
    /// Memory that records of the disk hold.
    gauge AGENT_DISK_QUEUE_BYTES = "tidegate_agent_disk_queue_bytes";
    /// Bytes of the disk still to be copied.
    gauge AGENT_DISK_DIRTY_BYTES = "tidegate_agent_disk_dirty_bytes";
    /// Bytes sent and not vaulted, in whole chunks.
    gauge AGENT_DISK_UNVAULTED_BYTES = "tidegate_agent_disk_unvaulted_bytes";
    /// How often the disk's queue was full, so that changes were only marked.
    counter AGENT_DISK_OVERFLOWS = "tidegate_agent_disk_overflows_total";
    /// NBD connections open.
    gauge NBD_CONNECTIONS = "tidegate_nbd_connections";
    /// NBD requests answered, by command.
    counter NBD_REQUESTS = "tidegate_nbd_requests_total";
    /// NBD requests answered with an error, by command.
    counter NBD_ERRORS = "tidegate_nbd_errors_total";
    /// Seconds from reading an NBD request to its answer, by command.
    histogram NBD_REQUEST_SECONDS = "tidegate_nbd_request_seconds";
    /// When a restore ended well last, in seconds since 1970; 0 if none did.
    gauge RESTORE_LAST_SUCCESS_SECONDS = "tidegate_restore_last_success_timestamp_seconds";
    /// When one ended last, well or not.
    gauge RESTORE_LAST_RUN_SECONDS = "tidegate_restore_last_run_timestamp_seconds";
    /// How long the last one took.
    gauge RESTORE_RUN_SECONDS = "tidegate_restore_run_seconds";
    /// Bytes that the last one read from the vault.
    gauge RESTORE_RUN_BYTES = "tidegate_restore_run_bytes";
    /// Damaged ranges that the last one met.
    gauge RESTORE_RUN_DAMAGE = "tidegate_restore_run_damage";
    /// When an export of a point was last seen at work, in seconds since 1970.
    gauge EXPORT_SEEN_SECONDS = "tidegate_export_last_seen_timestamp_seconds";
    /// Bytes of the point that its guest has read since it began.
    gauge EXPORT_GUEST_BYTES = "tidegate_export_guest_read_bytes";
    /// Bytes that it has read from the vault for them.
    gauge EXPORT_VAULT_BYTES = "tidegate_export_vault_read_bytes";
    /// Requests to the vault for them.
    gauge EXPORT_VAULT_REQUESTS = "tidegate_export_vault_requests";
    /// Reads of the guest that failed, because of damage or of a vault that was away for too long.
    gauge EXPORT_FAILED_READS = "tidegate_export_failed_reads";
    /// Bytes that the guest has written, and that no copy of the disk has yet.
    gauge EXPORT_OVERLAY_BYTES = "tidegate_export_overlay_bytes";
    /// Share of the disk that its copy has, 0 to 1; none without a copy.
    gauge EXPORT_COPIED_RATIO = "tidegate_export_copied_ratio";
    /// When a drill passed last, in seconds since 1970; 0 if none did.
    gauge DRILL_LAST_SUCCESS_SECONDS = "tidegate_drill_last_success_timestamp_seconds";
    /// When one ended last, whatever it found.
    gauge DRILL_LAST_RUN_SECONDS = "tidegate_drill_last_run_timestamp_seconds";
    /// What would have been lost: age of the oldest point of the last one.
    gauge DRILL_RPO_SECONDS = "tidegate_drill_rpo_seconds";
    /// How long the last one took until everything was restored and looked at, or its machine was up.
    gauge DRILL_RTO_SECONDS = "tidegate_drill_rto_seconds";
    /// What was not as it should be at the last one.
    gauge DRILL_FAILURES = "tidegate_drill_failures";
    /// When a verification found the vault whole last, in seconds since 1970; 0 if none did.
    gauge VERIFY_LAST_SUCCESS_SECONDS = "tidegate_verify_last_success_timestamp_seconds";
    /// When one ended last, whatever it found.
    gauge VERIFY_LAST_RUN_SECONDS = "tidegate_verify_last_run_timestamp_seconds";
    /// How long the last one took.
    gauge VERIFY_RUN_SECONDS = "tidegate_verify_run_seconds";
    /// Bytes of the objects that the last one looked at.
    gauge VERIFY_RUN_BYTES = "tidegate_verify_run_bytes";
    /// Damage that the last one found.
    gauge VERIFY_RUN_DAMAGE = "tidegate_verify_run_damage";
    /// Of it what is of each disk alone; what a damaged batch held may be anybody's.
    gauge VERIFY_DISK_DAMAGE = "tidegate_verify_disk_damage";
    /// With --state: when the round of runs began that open everything together, in seconds since 1970.
    gauge VERIFY_ROUND_BEGIN_SECONDS = "tidegate_verify_round_begin_timestamp_seconds";
    /// With --state: share of the messages that the round has opened.
    gauge VERIFY_ROUND_RATIO = "tidegate_verify_round_seen_ratio";
    /// When a run of the keeper ended well last, in seconds since 1970; 0 if none did.
    gauge KEEPER_LAST_SUCCESS_SECONDS = "tidegate_keeper_last_success_timestamp_seconds";
    /// When one ended last, well or not.
    gauge KEEPER_LAST_RUN_SECONDS = "tidegate_keeper_last_run_timestamp_seconds";
    /// How long the last one took.
    gauge KEEPER_RUN_SECONDS = "tidegate_keeper_run_seconds";
    /// Bytes of the batches that the last one deleted.
    gauge KEEPER_RUN_DELETED_BYTES = "tidegate_keeper_run_deleted_bytes";
    /// Bytes of the batches that are marked, and go later.
    gauge KEEPER_MARKED_BYTES = "tidegate_keeper_marked_bytes";
    /// Bytes of all batches in the vault.
    gauge KEEPER_STORED_BYTES = "tidegate_keeper_stored_bytes";
    /// Bytes of the messages that kept points need.
    gauge KEEPER_NEEDED_BYTES = "tidegate_keeper_needed_bytes";
    /// Bytes of the batches that the last one wrote with messages that it moved out of sparse ones.
    gauge KEEPER_RUN_MOVED_BYTES = "tidegate_keeper_run_moved_bytes";
    /// Bytes in sparse batches that moving what is needed of them would free; 0 if nothing is moved.
    gauge KEEPER_SAVING_BYTES = "tidegate_keeper_saving_bytes";
    /// Disks and lanes of which nothing goes because something of them is damaged.
    gauge KEEPER_HELD_BACK = "tidegate_keeper_held_back";
}

/// Who shows a metric.
#[must_use]
pub fn shown_by(name: &str) -> &'static str {
    let of_gateway = ["tidegate_agent_sessions", "tidegate_agent_sessions_tcp"].contains(&name);
    let starts = |start: &str| name.starts_with(start);
    if name.starts_with("process_") || starts("tidegate_wait") || starts("tidegate_trace_") {
        "gateway, agent"
    } else if !of_gateway && (starts("tidegate_agent_") || starts("tidegate_nbd_")) {
        "agent"
    } else if starts("tidegate_restore_") {
        "restore"
    } else if starts("tidegate_export_") {
        "export"
    } else if starts("tidegate_drill_") {
        "drill"
    } else if starts("tidegate_verify_") {
        "verify"
    } else if starts("tidegate_keeper_") {
        "keeper"
    } else {
        "gateway"
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_unique_and_counters_end_in_total() {
        let mut seen = std::collections::HashSet::new();
        for (name, kind, help) in super::ALL {
            assert!(seen.insert(name), "{name} stands twice");
            assert_eq!(*kind == "counter", name.ends_with("_total"), "{name}");
            assert!(help.trim().ends_with('.'), "{name}: help is no sentence");
        }
    }
}
