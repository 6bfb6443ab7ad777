//! What becomes of a cluster's own settings, which were meant for the place where it ran: one table, which is also
//! the manual's, zenith-settings(5). A test compares it with `pg_settings` of real servers, so that each setting
//! of each version is in it.
//!
//! A setting that a server's version does not know ends its start, so each rule says which versions know it.

/// What zenith does with a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It has zenith's value, whatever the cluster or the branch's own settings say.
    Forced(Value),
    /// A value that would keep the server from starting here gives way to another one, unless it is the branch's own.
    Instead { of: &'static str, with: &'static str },
    /// It is at least what the WAL that the server replays was written with. A server that only reads always demands that,
    /// one that writes only if it has something to replay, or prepared transactions.
    AtLeast,
    /// It has this value in a copy of a cluster that lives elsewhere, unless the branch is live.
    Dropped(Value),
    /// It stays as it is.
    Kept,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    Fixed(&'static str),
    /// Each server has its own: see [`Settings`](super::settings::Settings).
    OfServer,
}

use Class::{AtLeast, Dropped, Forced, Instead, Kept};
use Value::{Fixed, OfServer};

/// A line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The setting, or where the rule keeps them several ones: words that may end in `*`.
    pub name: &'static str,
    /// The major versions that know it, first and last.
    pub versions: (u32, u32),
    pub class: Class,
    /// For the manual.
    pub why: &'static str,
}

const OLDEST: u32 = 14;
const NEWEST: u32 = 18;

const fn rule(name: &'static str, class: Class, why: &'static str) -> Rule {
    Rule { name, versions: (OLDEST, NEWEST), class, why }
}

const fn since(first: u32, rule: Rule) -> Rule {
    Rule { versions: (first, rule.versions.1), ..rule }
}

const fn until(last: u32, rule: Rule) -> Rule {
    Rule { versions: (rule.versions.0, last), ..rule }
}

/// Libraries whose background workers act on other places, or by the clock: a copy of a cluster would do the
/// original's work a second time. Without them the server starts all the same; calling their functions fails.
pub const SCHEDULERS: [&str; 14] = [
    "bdr",
    "citus",
    "pg_auto_failover",
    "pg_cron",
    "pg_failover_slots",
    "pg_net",
    "pg_partman_bgw",
    "pg_task",
    "pgactive",
    "pgautofailover",
    "pglogical",
    "powa",
    "repmgr",
    "spock",
];

/// The rules. Of two for one setting the first counts.
pub const RULES: &[Rule] = &[
    // Where the server is.
    rule(
        "data_directory",
        Forced(OfServer),
        "in the file it beats the command line: the server would run on another cluster's files",
    ),
    rule("config_file", Forced(OfServer), "the one in the data directory, which a branch has its own version of"),
    rule("hba_file", Forced(OfServer), "who may connect was written for another place; zenith has rules of its own"),
    rule("ident_file", Forced(OfServer), "belongs to hba_file"),
    rule("external_pid_file", Forced(Fixed("")), "two servers would write the same file"),
    rule("port", Forced(OfServer), "each branch has its own"),
    rule("listen_addresses", Forced(OfServer), "a loopback address or none; the page server listens for others"),
    rule("unix_socket_directories", Forced(OfServer), "a folder that only its owner can enter"),
    rule("unix_socket_permissions", Forced(Fixed("0700")), "as above"),
    rule("unix_socket_group", Forced(Fixed("")), "as above; the group may not exist here"),
    rule("bonjour", Forced(Fixed("off")), "a branch is not announced to the network"),
    rule("cluster_name", Forced(OfServer), "the branch, as the process list shows it"),
    until(14, rule("stats_temp_directory", Forced(Fixed("pg_stat_tmp")), "two servers would write the same folder")),
    rule(
        "ssl",
        Forced(Fixed("off")),
        "servers listen on loopback only, the page server has TLS; the certificate's files may not be here",
    ),
    until(16, rule("db_user_namespace", Forced(Fixed("off")), "zenith's own user would get another name")),
    rule("pre_auth_delay", Forced(Fixed("0")), "for debugging: every connection would wait"),
    rule("post_auth_delay", Forced(Fixed("0")), "for debugging: every connection would wait"),
    // What is durable.
    rule(
        "fsync",
        Forced(OfServer),
        "only WAL that is durable is sealed; off in a server that only reads, whose files are temporary",
    ),
    rule("full_page_writes", Forced(Fixed("on")), "recovery needs whole pages after a crash"),
    rule(
        "data_sync_retry",
        Forced(Fixed("off")),
        "after a sync that failed, the kernel may have dropped what was written",
    ),
    rule(
        "ignore_invalid_pages",
        Forced(Fixed("off")),
        "a leftover from a rescue; recovery would pass over damage in silence",
    ),
    rule(
        "recovery_init_sync_method",
        Forced(OfServer),
        "the default opens every file before recovery; zenith syncs its own files",
    ),
    since(16, rule("debug_io_direct", Forced(Fixed("")), "for debugging; not all file systems can")),
    rule(
        "wal_level",
        Instead { of: "minimal", with: "replica" },
        "WAL of the level minimal has not all that a branch needs",
    ),
    rule(
        "allow_in_place_tablespaces",
        Forced(Fixed("on")),
        "tablespaces are folders in the data directory: no two servers share one",
    ),
    // The WAL is sealed, and goes nowhere else.
    rule(
        "archive_mode",
        Forced(OfServer),
        "a segment is recycled only after it is sealed; off in a server that only reads",
    ),
    rule("archive_command", Forced(OfServer), "seals; the cluster's own archive is not written to"),
    since(15, rule("archive_library", Forced(Fixed("")), "it would take the place of archive_command")),
    rule("archive_timeout", Forced(Fixed("0")), "WAL is sealed wherever it ends"),
    rule("archive_cleanup_command", Forced(Fixed("")), "would delete from the cluster's archive"),
    rule("restore_command", Forced(Fixed("")), "all WAL that there is lies in the repository"),
    rule(
        "recovery_end_command",
        Forced(OfServer),
        "was meant for another place; a server that only reads ends itself by it when somebody promotes it",
    ),
    rule("recovery_target", Forced(Fixed("")), "a start goes to the end of the WAL that it was given"),
    rule("recovery_target_action", Forced(Fixed("pause")), "as above"),
    rule("recovery_target_inclusive", Forced(Fixed("on")), "as above"),
    rule("recovery_target_lsn", Forced(Fixed("")), "as above"),
    rule("recovery_target_name", Forced(Fixed("")), "as above"),
    rule("recovery_target_time", Forced(Fixed("")), "as above"),
    rule("recovery_target_timeline", Forced(Fixed("current")), "as above"),
    rule("recovery_target_xid", Forced(Fixed("")), "as above"),
    rule("recovery_min_apply_delay", Forced(Fixed("0")), "a moment would come late"),
    // It is no standby of another server.
    rule("hot_standby", Forced(Fixed("on")), "a server that only reads lets readers in"),
    rule("primary_conninfo", Forced(Fixed("")), "a branch is no standby of another server"),
    rule("primary_slot_name", Forced(Fixed("")), "as above"),
    until(15, rule("promote_trigger_file", Forced(Fixed("")), "as above")),
    since(17, rule("sync_replication_slots", Forced(Fixed("off")), "as above")),
    // The log.
    rule("logging_collector", Forced(Fixed("off")), "the log is the instance's: zenith pg log"),
    rule("log_destination", Forced(Fixed("stderr")), "as above"),
    // What the machine may not have.
    rule("huge_pages", Instead { of: "on", with: "try" }, "where there are none the server would not start"),
    rule(
        "dynamic_shared_memory_type",
        Instead { of: "mmap", with: "posix" },
        "shared memory does not belong in the data directory's file system",
    ),
    since(
        18,
        rule(
            "io_method",
            Instead { of: "io_uring", with: "worker" },
            "containers often forbid it, and the server would not start",
        ),
    ),
    rule("max_connections", AtLeast, "with less room than who wrote the WAL had, PostgreSQL cannot replay it"),
    rule("max_worker_processes", AtLeast, "with less room than who wrote the WAL had, PostgreSQL cannot replay it"),
    rule("max_wal_senders", AtLeast, "with less room than who wrote the WAL had, PostgreSQL cannot replay it"),
    rule(
        "max_prepared_transactions",
        AtLeast,
        "with less room than who wrote the WAL had, PostgreSQL cannot replay it",
    ),
    rule(
        "max_locks_per_transaction",
        AtLeast,
        "with less room than who wrote the WAL had, PostgreSQL cannot replay it",
    ),
    // The world outside.
    rule(
        "max_logical_replication_workers",
        Dropped(Fixed("0")),
        "subscriptions would take the rows from the original's slot",
    ),
    rule("synchronous_standby_names", Dropped(Fixed("")), "commits would wait for standbys that follow the original"),
    since(
        17,
        rule("synchronized_standby_slots", Dropped(Fixed("")), "logical replication would wait for such standbys"),
    ),
    rule(
        "shared_preload_libraries",
        Dropped(OfServer),
        "without the known schedulers, which would do the original's work again",
    ),
    rule(
        "timescaledb.max_background_workers",
        Dropped(Fixed("0")),
        "the same for timescaledb, which cannot be left out",
    ),
    // All others.
    rule(
        "max_replication_slots max_active_replication_origins max_slot_wal_keep_size idle_replication_slot_timeout",
        Kept,
        "slots are kept while a branch goes on, and never copied to another",
    ),
    rule(
        "session_preload_libraries local_preload_libraries",
        Kept,
        "a library that is not installed here refuses every session; zenith's own sessions load none",
    ),
    rule(
        "dynamic_library_path extension_control_path extension_destdir jit_provider",
        Kept,
        "where extensions are; the branch's own settings can name another place",
    ),
    rule("wal_* max_wal_size min_wal_size", Kept, "how WAL is written does not change what is sealed"),
    rule("checkpoint_* commit_delay", Kept, "when to write is the cluster's own matter"),
    rule(
        "hot_standby_feedback max_standby_archive_delay max_standby_streaming_delay wal_receiver_* recovery_prefetch log_recovery_conflict_waits trace_recovery_messages",
        Kept,
        "of no effect, or harmless, where nothing is streamed",
    ),
    rule(
        "max_sync_workers_per_subscription max_parallel_apply_workers_per_subscription",
        Kept,
        "of no effect without subscriptions' workers",
    ),
    rule("log_* syslog_* event_source", Kept, "what is logged is the cluster's own matter; where to is zenith's"),
    rule(
        "ssl_* krb_* gss_* oauth_* bonjour_name",
        Kept,
        "of no effect: zenith's rules for who may connect do not use them",
    ),
    rule("authentication_timeout password_encryption restrict_nonsystem_relation_kind", Kept, "as in any server"),
    rule(
        "superuser_reserved_connections reserved_connections",
        Kept,
        "zenith itself connects as a superuser now and then",
    ),
    rule(
        "shared_buffers huge_page_size shared_memory_* min_dynamic_shared_memory max_files_per_process max_stack_depth *_buffers",
        Kept,
        "sizes; give a branch on a smaller machine its own: zenith config branch.NAME.postgres.shared_buffers 128MB",
    ),
    rule(
        "autovacuum* vacuum_* old_snapshot_threshold bgwriter_* track_* compute_query_id temp_file_limit",
        Kept,
        "a branch looks after its own tables",
    ),
    rule(
        "max_pred_locks_* max_notify_queue_pages deadlock_timeout io_* file_extend_method summarize_wal",
        Kept,
        "the cluster's own matter",
    ),
    rule(
        "restart_after_crash remove_temp_files_after_crash send_abort_for_* backtrace_functions jit_*",
        Kept,
        "what happens after a backend has crashed",
    ),
    rule(
        "zero_damaged_pages ignore_checksum_failure ignore_system_indexes allow_system_table_mods debug_* trace_*",
        Kept,
        "tools for a rescue, each for sessions that want them",
    ),
    rule(
        "allow_alter_system event_triggers session_replication_role lc_messages lo_compat_privileges update_process_title",
        Kept,
        "the cluster's own matter; zenith's sessions fire no event triggers",
    ),
];

impl Rule {
    /// Returns whether it is for that setting.
    pub fn is_for(&self, name: &str) -> bool {
        self.name.split(' ').any(|word| match (word.strip_suffix('*'), word.strip_prefix('*')) {
            (Some(start), _) => name.starts_with(start),
            (_, Some(end)) => name.ends_with(end),
            _ => name == word,
        })
    }

    /// Returns whether servers of that major version know the setting.
    pub fn is_known_to(&self, major: u32) -> bool {
        (self.versions.0..=self.versions.1).contains(&major)
    }
}

/// Returns the rule for a setting, if it is one of the server's rather than of sessions.
pub fn rule_for(name: &str) -> Option<&'static Rule> {
    let name = name.to_ascii_lowercase();
    RULES.iter().find(|rule| rule.is_for(&name))
}

/// Returns the words of `shared_preload_libraries` without known schedulers, and what was left out.
pub fn without_schedulers(libraries: &str) -> (String, Vec<String>) {
    let names = libraries.split(',').map(|name| name.trim().trim_matches('"')).filter(|name| !name.is_empty());
    let is_scheduler = |name: &&str| {
        let file = name.rsplit('/').next().unwrap_or(name);
        SCHEDULERS.contains(&file.trim_end_matches(".so"))
    };
    let (out, kept): (Vec<&str>, Vec<&str>) = names.partition(is_scheduler);
    (kept.join(","), out.into_iter().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_for_what_they_say() {
        assert_eq!(rule_for("log_line_prefix").unwrap().class, Kept);
        assert!(matches!(rule_for("LOG_destination").unwrap().class, Forced(_)));
        assert_eq!(rule_for("multixact_offset_buffers").unwrap().class, Kept);
        assert!(rule_for("work_mem").is_none());
    }

    #[test]
    fn schedulers_are_left_out_and_others_stay() {
        let (kept, out) = without_schedulers("pg_stat_statements, \"pg_cron\",$libdir/citus.so, auto_explain");
        assert_eq!(kept, "pg_stat_statements,auto_explain");
        assert_eq!(out, ["pg_cron", "$libdir/citus.so"]);
        assert_eq!(without_schedulers(""), (String::new(), Vec::new()));
    }
}
