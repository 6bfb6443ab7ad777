//! Root where user namespaces are forbidden: PostgreSQL runs as the OS user `postgres`.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use nix::unistd::{User, geteuid};

use crate::support::{Env, checked};

/// Runs the rest of its words as root of a user namespace in which no further one can be made. Who enters it has no
/// rights there before all numbers are mapped, and gets them with the next program.
const WITHOUT_NAMESPACES: &str = r#"
    go=$1/go inner='echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    shift
    mkfifo "$go"
    own=$(readlink /proc/self/ns/user)
    unshare --user sh -c 'read _ < "$0"; exec sh -c "$@"' "$go" "$inner" sh "$@" &
    while [ "$(readlink /proc/$!/ns/user)" = "$own" ]; do sleep 0.01; done
    echo 0 0 65536 > /proc/$!/uid_map
    echo 0 0 65536 > /proc/$!/gid_map
    echo > "$go"
    rm "$go"
    wait $!
"#;

/// A life with a crash in it.
const LIFE: &str = r#"
    set -e
    "$0" init
    "$0" start
    "$0" psql -- -XqAtc "create table t as select 1 as a"
    "$0" stop
    "$0" branch try
    "$0" start try
    "$0" psql try -- -XqAtc "insert into t values (2)"
    kill -9 $(head -n 1 .zenith/datadirs/*/data/postmaster.pid)
    "$0" start try
    "$0" start --read-only main
    "$0" psql try -- -XqAtc "select pg_switch_wal()" > /dev/null
    "$0" psql try -- -XqAtc "select 'try has ' || count(*) from t"
    "$0" psql main -- -XqAtc "select 'main has ' || count(*) from t"
    ps -o user= -p $(head -qn 1 .zenith/datadirs/*/data/postmaster.pid | paste -sd ,)
    "$0" stop --all
    "$0" fsck
    echo "not postgres's: $(find .zenith ! -user postgres | head -n 3)."
    # What the servers' user puts into the repository leads root nowhere.
    echo secret > of-root
    chmod 600 of-root
    for place in instances/pg1/log instances/pg1/lock instances/pg2/log config.lock; do
        setpriv --reuid=postgres --regid=postgres --clear-groups ln -sf "$PWD/of-root" ".zenith/$place"
    done
    "$0" start main 2>&1 || true
    "$0" start try 2>&1 || true
    "$0" config snapshot.wal_threshold 1GB 2>&1 || true
    "$0" stop --all 2>&1 || true
    echo "of root: $(cat of-root)."
    # A link that leads to another folder of root's gives that away to nobody, nor does a folder that only looks like a repository.
    mkdir -p theirs victim && chmod 700 victim && echo secret > victim/config && echo > victim/HEAD
    chown postgres theirs
    setpriv --reuid=postgres --regid=postgres --clear-groups ln -s "$PWD/victim" theirs/.zenith
    (cd theirs && "$0" stop 2>&1 || true; "$0" --repo .zenith stop 2>&1 || true)
    "$0" init another > /dev/null
    setpriv --reuid=postgres --regid=postgres --clear-groups ln -sfn "$PWD/another/.zenith" theirs/.zenith
    (cd theirs && "$0" branch x 2>&1 || true)
    echo "still root's: $(find victim another ! -user root | head -n 3)."
    # Nor one that lies where others can put something in its place.
    mkdir open && chmod 777 open && "$0" init open > /dev/null
    "$0" -C open start 2>&1 || true
    # What comes from elsewhere is looked into by the servers' user.
    pg=$(ls -d /usr/lib/postgresql/*/bin | tail -n 1)
    install -d -o postgres -m 700 cluster
    setpriv --reuid=postgres --regid=postgres --clear-groups "$pg/initdb" -D cluster -U boss > /dev/null
    "$0" init --from cluster imported > /dev/null
    "$0" -C imported start
    "$0" -C imported psql -- -XqAtc "select 'user is ' || current_user"
    "$0" -C imported stop
    ls -a imported
"#;

#[test]
fn root_without_user_namespaces_has_a_whole_life() {
    if !geteuid().is_root() || !matches!(User::from_name("postgres"), Ok(Some(_))) {
        println!("SKIPPED: this is about root, and the OS user postgres");
        return;
    }
    let env = Env::new();
    // The OS user has to get there.
    std::fs::set_permissions(env.path(), Permissions::from_mode(0o755)).unwrap();
    let mut bash = Command::new("bash");
    bash.args(["-c", WITHOUT_NAMESPACES, "bash"]).arg(env.path()).args(["sh", "-c", LIFE]);
    let program = env.command(["version"]);
    bash.arg(program.get_program()).current_dir(env.path());
    bash.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let said = checked(&mut bash);
    for line in [
        "try has 2",
        "main has 1",
        "postgres\npostgres",
        "not postgres's: .",
        "of root: secret.",
        "still root's: .",
        "lies where others than root",
        "user is boss",
    ] {
        assert!(said.contains(line), "{line:?} is not in:\n{said}");
    }
}
