//! The settings that a cluster brings along were meant for another place.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zenith::plumbing::postgres::account::Account;
use zenith::plumbing::postgres::policy::{Class, RULES, Value, rule_for};

use crate::support::{Env, checked, majors, pg_bin, pg_program};

/// Makes a cluster outside of any repository, whose superuser has that name.
fn plain_cluster(bin: &Path, dir: &Path, superuser: &str) {
    let mut initdb = Account::detect().unwrap().command(&bin.join("initdb"));
    checked(initdb.args(["-U", superuser, "-N", "-A", "trust", "-E", "UTF8", "--locale=C", "-D"]).arg(dir));
}

fn append(path: &Path, text: &str) {
    fs::write(path, fs::read_to_string(path).unwrap_or_default() + text).unwrap();
}

#[test]
fn every_setting_of_every_version_is_in_the_table() {
    for (major, bin) in majors() {
        let env = Env::with_bin(&bin);
        env.run(["init"]).ok();
        env.run(["start"]).ok();
        let of_server =
            "select name from pg_settings where context not in ('internal', 'user') and name not like '%.%'";
        let of_server = env.sql("main", of_server);
        let all = env.sql("main", "select name from pg_settings");
        let known: Vec<&str> = all.lines().collect();
        assert!(of_server.lines().count() > 150);
        for name in of_server.lines() {
            let rule = rule_for(name).unwrap_or_else(|| panic!("PostgreSQL {major}: '{name}' is not in the table"));
            assert!(rule.is_known_to(major), "PostgreSQL {major} knows '{name}'");
        }
        let own = RULES.iter().filter(|rule| rule.class != Class::Kept && !rule.name.contains('.'));
        for rule in own.filter(|rule| rule.is_known_to(major)) {
            assert!(known.contains(&rule.name), "PostgreSQL {major} does not know '{}'", rule.name);
        }
    }
}

/// Returns a value that would do harm, for each setting that zenith looks after.
fn hostile(name: &str, original: &Path, has_ssl: bool) -> Option<String> {
    let value = match name {
        "data_directory" => original.to_str().unwrap(),
        "hba_file" | "ident_file" => "/nowhere/file",
        "external_pid_file" => "/nowhere/pid",
        "port" => "1",
        "listen_addresses" => "192.0.2.1",
        "unix_socket_directories" | "stats_temp_directory" => "/nowhere",
        "unix_socket_permissions" => "0777",
        "unix_socket_group" => "no_such_group",
        "cluster_name" => "production",
        "ssl" if has_ssl => "on",
        "db_user_namespace" | "data_sync_retry" | "ignore_invalid_pages" | "logging_collector" => "on",
        "sync_replication_slots" => "on",
        "pre_auth_delay" | "post_auth_delay" => "60",
        "fsync" | "full_page_writes" | "allow_in_place_tablespaces" | "hot_standby" | "archive_mode" => "off",
        "recovery_init_sync_method" => "fsync",
        "debug_io_direct" => "wal",
        "wal_level" => "minimal",
        "default_transaction_isolation" => "serializable",
        "archive_command" | "restore_command" | "archive_cleanup_command" | "recovery_end_command" => "false",
        "archive_library" => "basic_archive",
        "archive_timeout" => "1s",
        "recovery_target" => "immediate",
        "recovery_target_action" => "shutdown",
        "recovery_target_inclusive" => "off",
        "recovery_target_timeline" => "77",
        "recovery_min_apply_delay" => "1h",
        "primary_conninfo" => "host=192.0.2.1",
        "primary_slot_name" => "a_slot",
        "promote_trigger_file" => "/nowhere/promote",
        "log_destination" => "csvlog",
        "huge_pages" => "on",
        "dynamic_shared_memory_type" => "mmap",
        "max_wal_senders" => "0",
        "max_connections" => "20",
        "max_worker_processes" => "3",
        "max_prepared_transactions" => "1",
        "max_locks_per_transaction" => "20",
        "max_logical_replication_workers" => "4",
        "synchronous_standby_names" => "*",
        "synchronized_standby_slots" => "a_slot",
        "shared_preload_libraries" => "pg_cron, pg_net",
        // Refused by a server that runs elsewhere too, or by such a build: nobody can bring them.
        "config_file" | "bonjour" | "io_method" | "timescaledb.max_background_workers" | "ssl" => return None,
        // Of those there can be one only.
        "recovery_target_lsn" | "recovery_target_name" | "recovery_target_time" | "recovery_target_xid" => return None,
        _ => panic!("'{name}' is in the table: what would a hostile value of it be?"),
    };
    Some(value.to_owned())
}

/// Returns all files below a folder with their content.
fn contents(dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            contents(&path, found);
        } else {
            found.insert(path.clone(), fs::read(path).unwrap_or_default());
        }
    }
}

#[test]
fn a_cluster_with_hostile_settings_starts_where_it_should_and_leaves_the_original_alone() {
    for (major, bin) in majors() {
        let env = Env::with_bin(&bin);
        let original = env.path().join("original");
        plain_cluster(&bin, &original, "postgres");
        // Without TLS built in, ssl = on is refused wherever it stands.
        let program = fs::read(bin.join("postgres")).unwrap();
        let message = b"could not load server certificate file";
        let has_ssl = program.windows(message.len()).any(|window| window == message);
        let rules = RULES.iter().filter(|rule| rule.class != Class::Kept && rule.is_known_to(major));
        let lines =
            rules.filter_map(|rule| Some(format!("{} = '{}'\n", rule.name, hostile(rule.name, &original, has_ssl)?)));
        let lines: Vec<String> = lines.collect();
        append(&original.join("postgresql.conf"), &lines.concat());
        for file in
            ["standby.signal", "recovery.signal", "recovery.conf", "promote", "tablespace_map.old", "backup_label.old"]
        {
            fs::write(original.join(file), "").unwrap();
        }
        // Links lead to the original's files, too.
        let elsewhere = env.path().join("elsewhere");
        fs::rename(original.join("pg_xact"), &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, original.join("pg_xact")).unwrap();
        std::os::unix::fs::symlink("/nowhere", original.join("log")).unwrap();
        let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
        contents(&original, &mut before);

        env.run(["init", "--from", "original"]).ok();
        env.run(["start"]).ok();
        let here = env.sql("main", "show data_directory");
        assert!(here.contains("/.zenith/datadirs/"), "PostgreSQL {major} runs in {here}");
        env.sql("main", "create table t as select 1 i");
        assert_eq!(env.sql("main", "select count(*) from t, pg_is_in_recovery() r where not r"), "1");
        for rule in RULES.iter().filter(|rule| rule.is_known_to(major) && !rule.name.contains('.')) {
            let (Class::Forced(Value::Fixed(wanted)) | Class::Dropped(Value::Fixed(wanted))) = rule.class else {
                continue;
            };
            let is =
                env.sql("main", &format!("select coalesce(setting, '') from pg_settings where name = '{}'", rule.name));
            assert_eq!(is, wanted, "PostgreSQL {major}: {}", rule.name);
        }
        assert_eq!(env.sql("main", "show wal_level"), "replica");
        assert_eq!(env.sql("main", "show shared_preload_libraries"), "");
        // A moment of it, too, and again after a crash.
        env.run(["start", "--read-only", "main@{now}"]).ok();
        assert_eq!(env.sql("main@{now}", "select count(*) from t"), "1");
        env.run(["stop", "--mode", "immediate"]).ok();
        env.run(["start"]).ok();
        assert_eq!(env.sql("main", "select count(*) from t"), "1");
        contents(&original, &mut after);
        assert!(before == after, "PostgreSQL {major} changed the original");
    }
}

#[test]
fn a_recovery_target_that_was_left_in_a_cluster_counts_for_nothing() {
    for (name, value) in [("lsn", "0/1"), ("name", "never"), ("time", "2001-01-01 00:00:00+00"), ("xid", "3")] {
        let env = Env::new();
        let original = env.path().join("original");
        plain_cluster(&pg_bin(), &original, "postgres");
        append(&original.join("postgresql.conf"), &format!("recovery_target_{name} = '{value}'\n"));
        fs::write(original.join("recovery.signal"), "").unwrap();
        env.run(["init", "--from", "original"]).ok();
        env.run(["start"]).ok();
        env.sql("main", "create table t as select 1 i");
        env.run(["start", "--read-only", "main@{now}"]).ok();
        env.run(["stop", "--mode", "immediate"]).ok();
        env.run(["start"]).ok();
        assert_eq!(env.sql("main", "select count(*) from t"), "1", "{name}");
    }
}

/// Settings that stay as they are, as far from what is usual as they go.
const STRANGE: [&str; 33] = [
    "bytea_output = escape",
    "checkpoint_completion_target = 0",
    "checkpoint_timeout = 30",
    "client_encoding = latin1",
    "client_min_messages = error",
    "datestyle = 'German, DMY'",
    "deadlock_timeout = 1",
    "default_table_access_method = heap",
    "default_tablespace = nowhere",
    "default_transaction_deferrable = on",
    "default_transaction_isolation = serializable",
    "default_transaction_read_only = on",
    "extra_float_digits = -15",
    "idle_in_transaction_session_timeout = 100",
    "ignore_system_indexes = on",
    "intervalstyle = sql_standard",
    "lock_timeout = 1",
    "log_line_prefix = 'FATAL: '",
    "log_min_error_statement = panic",
    "log_min_messages = panic",
    "max_wal_size = 32MB",
    "min_wal_size = 32MB",
    "quote_all_identifiers = on",
    "restart_after_crash = off",
    "search_path = nowhere",
    "session_replication_role = replica",
    "standard_conforming_strings = off",
    "statement_timeout = 300",
    "temp_file_limit = 0",
    "timezone = 'Pacific/Apia'",
    "wal_consistency_checking = all",
    "wal_init_zero = off",
    "wal_recycle = off",
];

#[test]
fn a_cluster_with_strange_settings_that_are_kept_goes_through_all_of_it() {
    // The machine's own and the newest: what such settings do is much the same in all.
    let all = majors();
    for (major, bin) in all.iter().take(1).chain(all.iter().skip(1).last()) {
        let env = Env::with_bin(bin);
        let original = env.path().join("original");
        plain_cluster(bin, &original, "postgres");
        append(&original.join("postgresql.conf"), &(STRANGE.join("\n") + "\n"));
        env.run(["init", "--from", "original"]).ok();
        let writing = |statement: &str| format!("begin read write; {statement}; commit");
        env.run(["start"]).ok();
        env.sql("main", &writing("create table public.t as select generate_series(1, 1000) i"));
        env.run(["tag", "v1"]).ok();
        env.run(["snapshot"]).ok();
        env.sql("main", &writing("delete from public.t where i > 10"));
        env.run(["branch", "try"]).ok();
        env.run(["start", "try"]).ok();
        env.sql("try", &writing("insert into public.t values (0)"));
        env.run(["start", "--read-only", "v1"]).ok();
        for (branch, rows) in [("v1", "1000"), ("try", "11"), ("main", "10")] {
            assert_eq!(env.sql(branch, "select count(*) from public.t"), rows, "PostgreSQL {major}: {branch}");
        }
        env.run(["stop", "--all", "--mode", "immediate"]).ok();
        env.run(["start"]).ok();
        kill(Pid::from_raw(env.postmaster("main")), Signal::SIGKILL).unwrap();
        env.run(["start"]).ok();
        env.run(["restart"]).ok();
        assert_eq!(env.sql("main", "select count(*) from public.t"), "10", "PostgreSQL {major}");
        env.run(["stop"]).ok();
        env.run(["fsck"]).ok();
    }
}

#[test]
fn what_is_forced_cannot_be_set_for_a_branch() {
    let env = Env::init();
    env.run(["config", "branch.main.postgres.data_directory", "/"]).fails(1, &["zenith sets 'data_directory' itself"]);
    env.run(["config", "branch.main.postgres.Fsync", "off"]).fails(1, &["zenith sets"]);
    env.run(["config", "branch.main.postgres.work_mem", "7MB"]).ok();
}

#[test]
fn debians_layout_starts_with_the_configuration_from_etc() {
    let env = Env::new();
    let (data, etc) = (env.path().join("var/15/main"), env.path().join("etc/postgresql/15/main"));
    fs::create_dir_all(env.path().join("var/15")).unwrap();
    fs::create_dir_all(etc.join("conf.d")).unwrap();
    plain_cluster(&pg_bin(), &data, "postgres");
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(data.join(name), etc.join(name)).unwrap();
    }
    let (data_text, etc_text) = (data.display(), etc.display());
    append(
        &etc.join("postgresql.conf"),
        &format!(
            "data_directory = '{data_text}'\nhba_file = '{etc_text}/pg_hba.conf'\nident_file = '{etc_text}/pg_ident.conf'\n\
             external_pid_file = '/var/run/postgresql/15-main.pid'\ninclude_dir = 'conf.d'\nwork_mem = 5MB\n"
        ),
    );
    fs::write(etc.join("conf.d/own.conf"), "maintenance_work_mem = 77MB\n").unwrap();
    let opts = format!(
        "/usr/lib/postgresql/15/bin/postgres \"-D\" \"{data_text}\" \"-c\" \"config_file={etc_text}/postgresql.conf\"\n"
    );
    fs::write(data.join("postmaster.opts"), opts).unwrap();
    let ran = env.run(["init", "--from", "var/15/main"]);
    assert!(ran.err.contains("configuration was copied"), "{}", ran.err);
    ran.ok();
    fs::remove_dir_all(env.path().join("etc")).unwrap();
    env.run(["start"]).ok();
    assert_eq!(
        env.sql("main", "select current_setting('work_mem') || current_setting('maintenance_work_mem')"),
        "5MB77MB"
    );
    assert!(env.sql("main", "show config_file").ends_with("/data/postgresql.conf"));
    // Where nothing says where it is, PostgreSQL's defaults count, or what the user names.
    fs::remove_file(data.join("postmaster.opts")).unwrap();
    env.run(["init", "--from", "var/15/main", "bare"]).ok();
    env.run(["--repo", "bare/.zenith", "start"]).ok();
    env.run(["--repo", "bare/.zenith", "stop"]).ok();
    // As Debian makes it, the folder for one's own files is empty.
    fs::create_dir_all(env.path().join("named/conf.d")).unwrap();
    fs::write(env.path().join("named/postgresql.conf"), "include_dir = 'conf.d'\nwork_mem = 9MB\n").unwrap();
    env.run(["init", "--from", "var/15/main", "--config", "named", "third"]).ok();
    env.run(["--repo", "third/.zenith", "start"]).ok();
    let shown = env.run(["--repo", "third/.zenith", "psql", "main", "--", "-XqAtc", "show work_mem"]).ok();
    assert_eq!(shown, "9MB");
    env.run(["--repo", "third/.zenith", "stop"]).ok();
    env.run(["init", "--from", "var/15/main", "--config", "var", "fourth"]).fails(1, &["no postgresql.conf in"]);
}

/// Returns a program that talks to the server of a branch.
fn client(env: &Env, branch: &str, name: &str) -> std::process::Command {
    let mut command = pg_program(name);
    command.envs(env.server_env(branch));
    command
}

#[test]
fn a_base_backup_of_a_running_server_becomes_a_repository() {
    let env = Env::init();
    env.run(["config", "branch.main.replication", "true"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select generate_series(1, 1000) i");
    let data = PathBuf::from(env.sql("main", "show data_directory"));
    // The hint of a refused start names what works.
    env.run(["init".as_ref(), "--from".as_ref(), data.as_os_str(), "x".as_ref()]).fails(1, &["| zenith init --from -"]);
    if !pg_bin().join("pg_basebackup").exists() {
        println!("SKIPPED: no pg_basebackup");
        return;
    }
    let backup = env.path().join("backup.tar");
    let output = client(&env, "main", "pg_basebackup").args(["-D", "-", "-F", "tar", "-X", "fetch"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::write(&backup, &output.stdout).unwrap();
    let from_stream = |target: &str| {
        let mut command = env.command(["init", "--from", "-", target]);
        command.stdin(fs::File::open(&backup).unwrap()).output().unwrap()
    };
    let made = from_stream("copy");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    env.run(["--repo", "copy/.zenith", "start"]).ok();
    let count = |repo: &str| env.run(["--repo", repo, "psql", "main", "--", "-XqAtc", "select count(*) from t"]).ok();
    assert_eq!(count("copy/.zenith"), "1000");
    assert!(!env.path().join("copy/.zenith/config").metadata().unwrap().permissions().readonly());
    env.run(["--repo", "copy/.zenith", "fsck"]).ok();
    env.run(["--repo", "copy/.zenith", "stop"]).ok();
    // Without its WAL it is none.
    checked(client(&env, "main", "pg_basebackup").args(["-X", "none", "-D"]).arg(env.path().join("bare")));
    env.run(["init", "--from", "bare", "third"]).fails(1, &["is not in its WAL", "pg_basebackup -X fetch"]);
    // A folder will do too; what is cut off will not.
    checked(client(&env, "main", "pg_basebackup").arg("-D").arg(env.path().join("folder")));
    env.run(["init", "--from", "folder", "second"]).ok();
    env.run(["--repo", "second/.zenith", "start"]).ok();
    assert_eq!(count("second/.zenith"), "1000");
    env.run(["--repo", "second/.zenith", "stop"]).ok();
    fs::write(&backup, &output.stdout[..output.stdout.len() / 2]).unwrap();
    assert_eq!(from_stream("third").status.code(), Some(1));
    assert!(!env.path().join("third/.zenith").exists());
}

#[test]
fn a_cluster_without_a_role_postgres_is_branched_while_it_runs() {
    for (major, bin) in majors() {
        let env = Env::with_bin(&bin);
        plain_cluster(&bin, &env.path().join("original"), "the chief");
        // Nor is the question who is superuser stopped by what the cluster says of sessions.
        let conf = env.path().join("original/postgresql.conf");
        let hostile =
            "statement_timeout = 1\nlock_timeout = 1\nlocal_preload_libraries = 'not_here'\nsearch_path = 'x'\n";
        let text = fs::read_to_string(&conf).unwrap();
        fs::write(&conf, format!("{text}\n{hostile}")).unwrap();
        env.run(["init", "--from", "original"]).ok();
        let soften = |branch: &str| {
            for (name, value) in
                [("statement_timeout", "0"), ("local_preload_libraries", ""), ("search_path", "public")]
            {
                env.run(["config", &format!("branch.{branch}.postgres.{name}"), value]).ok();
            }
        };
        soften("main");
        assert_eq!(env.run(["config", "postgres.superuser"]).ok(), "the chief", "PostgreSQL {major}");
        env.run(["start"]).ok();
        assert_eq!(env.sql("main", "select current_user"), "the chief");
        assert!(env.run(["url"]).ok().contains("the%20chief"));
        env.sql("main", "create table t as select 1 i");
        env.run(["branch", "try"]).ok();
        env.run(["snapshot"]).ok();
        // Nor may zenith's own sessions be stopped by what the cluster says of sessions.
        let hostile = "alter role \"the chief\" set statement_timeout = '1ms'; \
                       alter role \"the chief\" set idle_session_timeout = '1ms'; \
                       alter database postgres set session_preload_libraries = 'not_here'";
        env.sql("main", hostile);
        env.run(["tag", "v1"]).ok();
        env.run(["snapshot"]).ok();
        soften("try");
        env.run(["start", "try"]).ok();
        assert_eq!(env.sql("try", "select count(*) from t"), "1");
        env.run(["stop", "--all"]).ok();
    }
}

#[test]
fn slots_are_kept_over_stop_and_start_with_the_wal_that_they_need_and_not_copied() {
    for (major, bin) in majors() {
        let env = Env::with_bin(&bin);
        env.run(["init"]).ok();
        env.run(["config", "branch.main.postgres.wal_level", "logical"]).ok();
        env.run(["start"]).ok();
        env.sql("main", "create table t (i int)");
        env.sql("main", "create publication p for all tables");
        env.sql("main", "select pg_create_logical_replication_slot('decoded', 'pgoutput')");
        env.sql("main", "select pg_create_physical_replication_slot('physical', true)");
        env.sql("main", "insert into t select generate_series(1, 10)");
        let changes = "select count(*) from pg_logical_slot_peek_binary_changes('decoded', null, null, \
                       'proto_version', '1', 'publication_names', 'p') where get_byte(data, 0) = ascii('I')";
        assert_eq!(env.sql("main", changes), "10");
        // Many segments later, two of its runs on.
        for run in 1..3 {
            env.sql("main", "select pg_switch_wal()");
            env.sql("main", &format!("insert into t values ({run})"));
            env.run(["snapshot"]).ok();
            env.sql("main", "select pg_switch_wal()");
            env.run(["stop"]).ok();
            env.run(["start"]).ok();
            assert_eq!(env.sql("main", changes), (10 + run).to_string(), "PostgreSQL {major}, run {run}");
        }
        let slots = "select string_agg(slot_name || ' ' || coalesce(wal_status, 'lost'), ', ' order by slot_name) from pg_replication_slots";
        assert!(!env.sql("main", slots).contains("lost"), "PostgreSQL {major}: {}", env.sql("main", slots));
        env.run(["restart"]).ok();
        assert_eq!(env.sql("main", changes), "12");
        // After a crash, too.
        env.run(["stop", "--mode", "immediate"]).ok();
        env.run(["start"]).ok();
        assert_eq!(env.sql("main", changes), "12");
        env.run(["branch", "try"]).ok();
        env.run(["start", "try"]).ok();
        assert_eq!(env.sql("try", "select count(*) from pg_replication_slots"), "0");
        assert_eq!(env.sql("try", "select count(*) from t"), "12");
        // A slot that was dropped does not come back, though nothing else happened in that run.
        env.run(["restart"]).ok();
        env.sql("main", "select pg_drop_replication_slot('physical')");
        env.run(["restart"]).ok();
        assert_eq!(env.sql("main", "select string_agg(slot_name, ',') from pg_replication_slots"), "decoded");
        env.run(["fsck"]).ok();
    }
}

#[test]
fn the_slots_that_a_server_left_last_count() {
    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "select pg_create_physical_replication_slot('a', true)");
    let slots = "select string_agg(slot_name, ',') from pg_replication_slots";
    for (before, change, after) in [
        ("a", "select pg_drop_replication_slot('a'), pg_create_physical_replication_slot('b', true)", "b"),
        ("b", "select pg_drop_replication_slot('b')", ""),
    ] {
        // What a stop leaves that fails after it has put the slots away: the next start goes on with the same epoch.
        let timeline = env.run(["rev-parse", "main"]).ok()[..32].to_owned();
        let put_away = env.repo().join("timelines").join(timeline).join("slots/replslot").join(before);
        fs::create_dir_all(&put_away).unwrap();
        let state = env.datadir("main").join("data/pg_replslot").join(before).join("state");
        fs::copy(state, put_away.join("state")).unwrap();
        env.sql("main", "create table t (i int); drop table t");
        env.sql("main", change);
        env.run(["restart"]).ok();
        assert_eq!(env.sql("main", slots), after);
    }
}

/// Waits until a query has that answer.
#[track_caller]
fn wait_for(env: &Env, branch: &str, query: &str, wanted: &str) {
    let mut last = String::new();
    for _ in 0..600 {
        last = env.sql(branch, query);
        if last == wanted {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("{query}: {last} instead of {wanted}");
}

#[test]
fn a_fork_of_a_subscriber_leaves_the_originals_rows_alone() {
    let publisher = Env::init();
    publisher.run(["config", "branch.main.postgres.wal_level", "logical"]).ok();
    publisher.run(["start"]).ok();
    publisher.sql("main", "create table t (i int primary key)");
    publisher.sql("main", "create publication p for table t");
    publisher.sql("main", "select pg_create_logical_replication_slot('s', 'pgoutput')");
    let server: BTreeMap<&str, String> = publisher.server_env("main").into_iter().collect();
    let conninfo = format!("host={} port={} user=postgres dbname=postgres", server["PGHOST"], server["PGPORT"]);

    let env = Env::init();
    env.run(["start"]).ok();
    env.sql("main", "create table t (i int primary key)");
    env.sql(
        "main",
        &format!(
            "create subscription s connection '{conninfo}' publication p with (create_slot = false, copy_data = false)"
        ),
    );
    publisher.sql("main", "insert into t values (1)");
    wait_for(&env, "main", "select count(*) from t", "1");
    // A fork beside it, and one while the original is away.
    env.run(["branch", "fork"]).ok();
    env.run(["start", "fork"]).ok();
    env.run(["stop", "main"]).ok();
    wait_for(&publisher, "main", "select active from pg_replication_slots", "f");
    publisher.sql("main", "insert into t values (2)");
    let workers = "select count(*) from pg_stat_activity where backend_type like 'logical replication%'";
    assert_eq!(env.sql("fork", workers), "0");
    assert_eq!(publisher.sql("main", "select active from pg_replication_slots"), "f");
    // The publisher may be restarted meanwhile: its slot stays.
    publisher.run(["restart"]).ok();
    env.run(["start", "main"]).ok();
    wait_for(&env, "main", "select count(*) from t", "2");
    assert_eq!(env.sql("fork", "select count(*) from t"), "1");
    // What it has not confirmed, the publisher would send to whoever comes next.
    let inserted = publisher.sql("main", "select pg_current_wal_lsn()");
    let confirmed = format!("select confirmed_flush_lsn >= '{inserted}' from pg_replication_slots");
    wait_for(&publisher, "main", &confirmed, "t");
    env.run(["stop", "main"]).ok();
    // Live is what the user says is live; a branch of the same name made later is not.
    env.run(["stop", "fork"]).ok();
    env.run(["start", "fork", "--live"]).ok();
    wait_for(&env, "fork", "select count(*) from t", "1");
    wait_for(&env, "fork", &format!("select ({workers}) > 0"), "t");
    env.run(["stop", "fork"]).ok();
    env.run(["branch", "-d", "fork"]).ok();
    env.run(["branch", "fork"]).ok();
    env.run(["start", "fork"]).ok();
    assert_eq!(env.sql("fork", workers), "0");
    env.run(["stop", "fork"]).ok();
}

#[test]
fn a_moment_has_the_settings_of_its_branch() {
    let env = Env::init();
    env.run(["config", "branch.main.postgres.max_connections", "150"]).ok();
    env.run(["start"]).ok();
    env.sql("main", "create table t as select 1 i");
    env.run(["tag", "v1"]).ok();
    env.run(["start", "--read-only", "main@{now}"]).ok();
    assert_eq!(env.sql("main@{now}", "select current_setting('max_connections') || count(*) from t"), "1501");
    env.run(["stop"]).ok();
    // The files know it, too, where no branch says so.
    env.run(["tag", "v2"]).ok();
    env.run(["start", "--read-only", "v2"]).ok();
    assert_eq!(env.sql("v2", "select count(*) from t"), "1");
}

#[test]
fn a_library_that_is_not_installed_is_named_with_what_to_do() {
    let env = Env::init();
    env.run(["config", "branch.main.postgres.shared_preload_libraries", "not_here"]).ok();
    env.run(["start"]).fails(1, &["not_here", "shared_preload_libraries ''"]);
    env.run(["config", "branch.main.postgres.shared_preload_libraries", ""]).ok();
    env.run(["start"]).ok();
}

#[test]
fn prepared_transactions_outlive_a_fork_a_moment_and_a_crash_whatever_the_settings_say() {
    for (major, bin) in majors() {
        let env = Env::with_bin(&bin);
        env.run(["init"]).ok();
        let set = |value: &str| env.run(["config", "branch.main.postgres.max_prepared_transactions", value]).ok();
        env.run(["start"]).ok();
        env.sql("main", "create table t (i int)");
        set("10");
        env.run(["restart"]).ok();
        env.sql("main", "begin; insert into t values (1); prepare transaction 'p'");
        let prepared = "select count(*) from pg_prepared_xacts";
        // A branch has no settings of the one that it comes from.
        env.run(["branch", "try"]).ok();
        env.run(["start", "try"]).ok();
        assert_eq!(env.sql("try", prepared), "1", "PostgreSQL {major}");
        env.sql("try", "commit prepared 'p'");
        assert_eq!(env.sql("try", "select count(*) from t"), "1");
        env.run(["stop", "try"]).ok();
        set("0");
        env.run(["start", "--read-only", "main@{now}"]).ok();
        assert_eq!(env.sql("main@{now}", "select count(*) from t"), "0");
        // After a stop that replays, after a crash, and after a stop in order.
        env.run(["stop", "main", "--mode", "immediate"]).ok();
        env.run(["start"]).ok();
        kill(Pid::from_raw(env.postmaster("main")), Signal::SIGKILL).unwrap();
        env.run(["start"]).ok();
        env.run(["restart", "main"]).ok();
        assert_eq!(env.sql("main", prepared), "1", "PostgreSQL {major}");
        // Once it is not needed any more, the setting counts.
        env.sql("main", "rollback prepared 'p'");
        env.run(["restart", "main"]).ok();
        assert_eq!(env.sql("main", "show max_prepared_transactions"), "0", "PostgreSQL {major}");
    }
}
