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
    /// So it is in a server that only reads, whoever set the value.
    Reading { of: &'static str, with: &'static str },
    /// It is at least what the WAL that the server replays was written with. A server that only reads always demands
    /// that, one that writes only if it has something to replay, or prepared transactions.
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

use Class::{AtLeast, Dropped, Forced, Instead, Kept, Reading};
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

const fn forced(name: &'static str, value: &'static str, why: &'static str) -> Rule {
    rule(name, Forced(Fixed(value)), why)
}

const fn of_server(name: &'static str, why: &'static str) -> Rule {
    rule(name, Forced(OfServer), why)
}

const fn instead(name: &'static str, of: &'static str, with: &'static str, why: &'static str) -> Rule {
    rule(name, Instead { of, with }, why)
}

const fn at_least(name: &'static str) -> Rule {
    rule(name, AtLeast, "with less room than who wrote the WAL had, PostgreSQL cannot replay it")
}

const fn dropped(name: &'static str, value: &'static str, why: &'static str) -> Rule {
    rule(name, Dropped(Fixed(value)), why)
}

const fn kept(names: &'static str, why: &'static str) -> Rule {
    rule(names, Kept, why)
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
    of_server(
        "data_directory",
        "in the file it beats the command line: the server would run on another cluster's files",
    ),
    of_server("config_file", "the one in the data directory, which a branch has its own version of"),
    of_server("hba_file", "who may connect was written for another place; zenith has rules of its own"),
    of_server("ident_file", "belongs to hba_file"),
    forced("external_pid_file", "", "two servers would write the same file"),
    of_server("port", "each branch has its own"),
    of_server("listen_addresses", "a loopback address or none; the page server listens for others"),
    of_server("unix_socket_directories", "a folder that only its owner can enter"),
    forced("unix_socket_permissions", "0700", "as above"),
    forced("unix_socket_group", "", "as above; the group may not exist here"),
    forced("bonjour", "off", "a branch is not announced to the network"),
    of_server("cluster_name", "the branch, as the process list shows it"),
    until(14, forced("stats_temp_directory", "pg_stat_tmp", "two servers would write the same folder")),
    forced(
        "ssl",
        "off",
        "servers listen on loopback only, the page server has TLS; the certificate's files may not be here",
    ),
    until(16, forced("db_user_namespace", "off", "zenith's own user would get another name")),
    forced("pre_auth_delay", "0", "for debugging: every connection would wait"),
    forced("post_auth_delay", "0", "for debugging: every connection would wait"),
    // What is durable.
    of_server(
        "fsync",
        "only WAL that is durable is sealed; off in a server that only reads, whose files are temporary",
    ),
    forced("full_page_writes", "on", "recovery needs whole pages after a crash"),
    forced("data_sync_retry", "off", "after a sync that failed, the kernel may have dropped what was written"),
    forced("ignore_invalid_pages", "off", "a leftover from a rescue; recovery would pass over damage in silence"),
    of_server("recovery_init_sync_method", "the default opens every file before recovery; zenith syncs its own files"),
    since(16, forced("debug_io_direct", "", "for debugging; not all file systems can")),
    instead("wal_level", "minimal", "replica", "WAL of the level minimal has not all that a branch needs"),
    forced(
        "allow_in_place_tablespaces",
        "on",
        "tablespaces are folders in the data directory: no two servers share one",
    ),
    // The WAL is sealed, and goes nowhere else.
    of_server("archive_mode", "a segment is recycled only after it is sealed; off in a server that only reads"),
    of_server("archive_command", "seals; the cluster's own archive is not written to"),
    since(15, forced("archive_library", "", "it would take the place of archive_command")),
    forced("archive_timeout", "0", "WAL is sealed wherever it ends"),
    forced("archive_cleanup_command", "", "would delete from the cluster's archive"),
    forced("restore_command", "", "all WAL that there is lies in the repository"),
    of_server(
        "recovery_end_command",
        "was meant for another place; a server that only reads ends itself by it when somebody promotes it",
    ),
    forced("recovery_target", "", "a start goes to the end of the WAL that it was given"),
    forced("recovery_target_action", "pause", "as above"),
    forced("recovery_target_inclusive", "on", "as above"),
    forced("recovery_target_lsn", "", "as above"),
    forced("recovery_target_name", "", "as above"),
    forced("recovery_target_time", "", "as above"),
    forced("recovery_target_timeline", "current", "as above"),
    forced("recovery_target_xid", "", "as above"),
    forced("recovery_min_apply_delay", "0", "a moment would come late"),
    // It is no standby of another server.
    forced("hot_standby", "on", "a server that only reads lets readers in"),
    forced("primary_conninfo", "", "a branch is no standby of another server"),
    forced("primary_slot_name", "", "as above"),
    until(15, forced("promote_trigger_file", "", "as above")),
    since(17, forced("sync_replication_slots", "off", "as above")),
    // The log.
    forced("logging_collector", "off", "the log is the instance's: instances/NAME/log in the repository"),
    forced("log_destination", "stderr", "as above"),
    // What the machine may not have.
    instead("huge_pages", "on", "try", "where there are none the server would not start"),
    instead(
        "dynamic_shared_memory_type",
        "mmap",
        "posix",
        "shared memory does not belong in the data directory's file system",
    ),
    since(18, instead("io_method", "io_uring", "worker", "containers often forbid it, and the server would not start")),
    rule(
        "default_transaction_isolation",
        Reading { of: "serializable", with: "repeatable read" },
        "PostgreSQL refuses serializable transactions there; what nobody writes to is the same either way",
    ),
    at_least("max_connections"),
    at_least("max_worker_processes"),
    at_least("max_wal_senders"),
    at_least("max_prepared_transactions"),
    at_least("max_locks_per_transaction"),
    // The world outside.
    dropped("max_logical_replication_workers", "0", "subscriptions would take the rows from the original's slot"),
    dropped("synchronous_standby_names", "", "commits would wait for standbys that follow the original"),
    since(17, dropped("synchronized_standby_slots", "", "logical replication would wait for such standbys")),
    rule(
        "shared_preload_libraries",
        Dropped(OfServer),
        "without the known schedulers, which would do the original's work again",
    ),
    dropped("timescaledb.max_background_workers", "0", "the same for timescaledb, which cannot be left out"),
    // All others.
    kept(
        "max_replication_slots max_active_replication_origins max_slot_wal_keep_size idle_replication_slot_timeout",
        "slots are kept while a branch goes on, and never copied to another",
    ),
    kept(
        "session_preload_libraries local_preload_libraries",
        "a library that is not installed here refuses every session; zenith's own sessions load none",
    ),
    kept(
        "dynamic_library_path extension_control_path extension_destdir jit_provider",
        "where extensions are; the branch's own settings can name another place",
    ),
    kept("wal_* max_wal_size min_wal_size", "how WAL is written does not change what is sealed"),
    kept("checkpoint_* commit_delay", "when to write is the cluster's own matter"),
    kept(
        "hot_standby_feedback max_standby_archive_delay max_standby_streaming_delay wal_receiver_* recovery_prefetch log_recovery_conflict_waits trace_recovery_messages",
        "of no effect, or harmless, where nothing is streamed",
    ),
    kept(
        "max_sync_workers_per_subscription max_parallel_apply_workers_per_subscription",
        "of no effect without subscriptions' workers",
    ),
    kept("log_* syslog_* event_source", "what is logged is the cluster's own matter; where to is zenith's"),
    kept("ssl_* krb_* gss_* oauth_* bonjour_name", "of no effect: zenith's rules for who may connect do not use them"),
    kept("authentication_timeout password_encryption restrict_nonsystem_relation_kind", "as in any server"),
    kept("superuser_reserved_connections reserved_connections", "zenith itself connects as a superuser now and then"),
    kept(
        "shared_buffers huge_page_size shared_memory_* min_dynamic_shared_memory max_files_per_process max_stack_depth *_buffers",
        "sizes; give a branch on a smaller machine its own: zenith config branch.NAME.postgres.shared_buffers 128MB",
    ),
    kept(
        "autovacuum* vacuum_* old_snapshot_threshold bgwriter_* track_* compute_query_id temp_file_limit",
        "a branch looks after its own tables",
    ),
    kept(
        "max_pred_locks_* max_notify_queue_pages deadlock_timeout io_* file_extend_method summarize_wal",
        "the cluster's own matter",
    ),
    kept(
        "restart_after_crash remove_temp_files_after_crash send_abort_for_* backtrace_functions jit_*",
        "what happens after a backend has crashed",
    ),
    kept(
        "zero_damaged_pages ignore_checksum_failure ignore_system_indexes allow_system_table_mods debug_* trace_*",
        "tools for a rescue, each for sessions that want them",
    ),
    kept(
        "allow_alter_system event_triggers session_replication_role lc_messages lo_compat_privileges update_process_title",
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
