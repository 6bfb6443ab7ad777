//! `zenith pageserver`: runs the daemon that starts servers when somebody connects.

use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use crate::cli::{Cx, os_user};
use crate::error::{CmdResult, CommandError};
use crate::objects::Repo;
use crate::objects::format::Others;
use crate::plumbing::instance;
use crate::plumbing::instance::mount::background;
use crate::plumbing::pageserver::{self, Addresses, Error, Options, PageServer, log_file};
use crate::plumbing::postgres::account::Account;
use crate::plumbing::postgres::server::{Status, tail};

/// Run a server that starts branches when somebody connects
///
/// Connect to its address and name a branch: its PostgreSQL is started on the way, and stopped again
/// when nobody has used it for a while (proxy.idle_timeout). The branch try is named by the first of
/// these that there is: a parameter branch=try, which drivers other than libpq pass on; the options
/// '-c zenith.branch=try' or '-c branch=try', as in PGOPTIONS; the user NAME@try; the TLS server name
/// try.localhost; the database NAME@try. Without any it is HEAD. Any revision will do: main@0/15ECF68,
/// a tag or main@{1 hour ago} is shown read-only.
///
/// Connections of the user who owns the repository need no password. All others are sent away, unless
/// proxy.others is scram: then PostgreSQL asks them for the password of a role.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith pageserver start\n  \
    psql -h 127.0.0.1 'dbname=postgres user=postgres options=-czenith.branch=try'\n  \
    psql -h 127.0.0.1 -U postgres 'postgres@main@{1 hour ago}'\n  zenith pageserver status --json\n")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Start it, in the background unless told otherwise
    Start(StartArgs),
    /// Stop it; the servers that run go on
    Stop,
    /// Stop it and start it again; the servers that run go on
    Restart(StartArgs),
    /// Say where it listens and what runs
    Status {
        /// Print one line of JSON: running, pid, listen, http, page, socket_dir and log
        #[arg(long)]
        json: bool,
    },
    /// Print its log
    Logs {
        /// Go on printing what comes
        #[arg(short, long)]
        follow: bool,
        /// So many of the last lines
        #[arg(short = 'n', long, value_name = "LINES", default_value = "100")]
        lines: usize,
    },
    /// Print a unit for systemd, or on macOS a property list for launchd, that runs it
    Unit {
        /// For which of the two
        #[arg(long, value_enum)]
        r#for: Option<Manager>,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Manager {
    Systemd,
    Launchd,
}

#[derive(Debug, Clone, clap::Args)]
struct StartArgs {
    /// Stay in the foreground and log to standard error
    #[arg(long)]
    foreground: bool,
    /// Where PostgreSQL's clients connect; otherwise proxy.listen, which is 127.0.0.1:5432 at first
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where status and metrics are; otherwise proxy.http, which is 127.0.0.1:64000 at first
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Listen on an address that other machines reach; use TLS there
    #[arg(long)]
    allow_remote: bool,
    /// As the background process that start makes
    #[arg(long, hide = true)]
    daemon: bool,
}

impl StartArgs {
    fn options(&self, repo: &Repo) -> Options {
        let proxy = &repo.config().proxy;
        Options {
            listen: self.listen.unwrap_or(proxy.listen),
            http: self.http.unwrap_or(proxy.http),
            allow_remote: self.allow_remote,
            to_terminal: !self.daemon,
        }
    }
}

/// Starts the daemon as a process of its own, and waits until it listens.
fn start_in_background(repo: &Repo, args: &StartArgs) -> Result<Addresses, CommandError> {
    if let Some((pid, _)) = pageserver::running(repo)? {
        return Err(Error::Runs(pid).into());
    }
    std::fs::create_dir_all(pageserver::dir(repo))?;
    let log = log_file(repo);
    let log_start = std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
    let mut command = background(repo, &log)?;
    command.args(["pageserver", "start", "--daemon"]).args(args.allow_remote.then_some("--allow-remote"));
    for (name, address) in [("--listen", args.listen), ("--http", args.http)] {
        if let Some(address) = address {
            command.arg(name).arg(address.to_string());
        }
    }
    // A start holds a segment of WAL for a moment: with few heaps, and large blocks apart, that memory goes back.
    command.env("MALLOC_ARENA_MAX", "2").env("MALLOC_MMAP_THRESHOLD_", "1048576");
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut answer = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut answer)?;
    }
    match pageserver::running(repo)? {
        Some((_, addresses)) if answer.trim() == "ready" => Ok(addresses),
        _ => {
            let _ = child.wait();
            let said = tail(&log, log_start);
            let said = said.trim_start_matches("error: ").to_owned();
            Err(CommandError::refused(if said.is_empty() { "the page server did not start".to_owned() } else { said }))
        }
    }
}

fn run_here(cx: &mut Cx, repo: Repo, args: &StartArgs) -> CmdResult {
    let options = args.options(&repo);
    let (binaries, account) = (cx.binaries(Some(&repo))?, Account::detect()?);
    let is_daemon = args.daemon;
    let out = &mut cx.out;
    let place = repo.dir().display().to_string();
    PageServer { repo, binaries, account, who: os_user(), options }.serve(|addresses| {
        match is_daemon {
            true => writeln!(out, "ready")?,
            false => introduce(out, addresses, &place)?,
        }
        out.flush()
    })
}

/// Says what one needs to use it.
fn introduce(out: &mut dyn Write, addresses: &Addresses, place: &str) -> std::io::Result<()> {
    let (http, listen) = (addresses.http, addresses.listen);
    writeln!(out, "Starting pageserver at '{http}' in {place}")?;
    writeln!(out, "PostgreSQL on {listen}, and as a unix socket in {}", addresses.socket_dir.display())?;
    writeln!(out, "  {}", example(addresses))
}

/// Returns a command that connects.
fn example(addresses: &Addresses) -> String {
    let (host, port) = (addresses.listen.ip(), addresses.listen.port());
    format!("psql \"host={host} port={port} user=postgres dbname=postgres options='-c zenith.branch=main'\"")
}

fn start(cx: &mut Cx, repo: Repo, args: &StartArgs) -> CmdResult {
    let options = args.options(&repo);
    options.check()?;
    let listen = options.listen;
    if !listen.ip().is_loopback() && !args.daemon {
        cx.ui.warning(format!(
            "{listen} can be reached from other machines; whoever connects without TLS sends what they ask for the world to read"
        ));
        if repo.config().proxy.others == Others::Refuse {
            cx.ui.warning("other machines are sent away as long as proxy.others is refuse".to_owned());
        }
    }
    if args.foreground || args.daemon {
        return run_here(cx, repo, args);
    }
    let addresses = start_in_background(&repo, args)?;
    Ok(introduce(&mut cx.out, &addresses, &repo.dir().display().to_string())?)
}

fn stop(cx: &mut Cx, repo: &Repo) -> Result<bool, CommandError> {
    let Some(_) = pageserver::stop(repo)? else { return Ok(false) };
    writeln!(cx.out, "pageserver stopped")?;
    let running = instance::list(repo)?.iter().filter(|instance| instance.status(repo) != Status::Stopped).count();
    if running > 0 {
        let servers = if running == 1 { "server goes" } else { "servers go" };
        cx.ui.status(format!("{running} {servers} on (use \"zenith stop --all\" to stop them)"));
    }
    Ok(true)
}

#[derive(serde::Serialize)]
struct Row {
    running: bool,
    pid: Option<i32>,
    listen: Option<String>,
    http: Option<String>,
    /// The page's address, with the token.
    page: Option<String>,
    socket_dir: Option<String>,
    log: String,
}

fn status(cx: &mut Cx, repo: &Repo, json: bool) -> CmdResult {
    let running = pageserver::running(repo)?;
    let log = log_file(repo).display().to_string();
    if json {
        let (pid, addresses) = running.unzip();
        return cx.json(&Row {
            running: pid.is_some(),
            pid,
            listen: addresses.as_ref().map(|addresses| addresses.listen.to_string()),
            http: addresses.as_ref().map(|addresses| addresses.http.to_string()),
            page: addresses.as_ref().map(Addresses::page),
            socket_dir: addresses.map(|addresses| addresses.socket_dir.display().to_string()),
            log,
        });
    }
    let Some((pid, addresses)) = running else {
        writeln!(cx.out, "pageserver is not running")?;
        cx.ui.status("use \"zenith pageserver start\" to start it");
        return Ok(());
    };
    writeln!(cx.out, "pageserver runs as process {pid}")?;
    writeln!(cx.out, "PostgreSQL on {}, and as a unix socket in {}", addresses.listen, addresses.socket_dir.display())?;
    writeln!(cx.out, "status, metrics and a page on {}", addresses.page())?;
    writeln!(cx.out, "  {}", example(&addresses))?;
    Ok(())
}

fn logs(cx: &mut Cx, repo: &Repo, follow: bool, lines: usize) -> CmdResult {
    let path = log_file(repo);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    for line in &all[all.len().saturating_sub(lines)..] {
        writeln!(cx.out, "{line}")?;
    }
    let mut end = text.len() as u64;
    if !follow {
        return Ok(());
    }
    loop {
        cx.out.flush()?;
        std::thread::sleep(Duration::from_millis(200));
        crate::progress::Progress::check(&cx.ui)?;
        let Ok(mut file) = std::fs::File::open(&path) else { continue };
        // It was put away, and a new one begun.
        if file.metadata()?.len() < end {
            end = 0;
        }
        file.seek(SeekFrom::Start(end))?;
        end += std::io::copy(&mut file, &mut cx.out)?;
    }
}

/// Returns a word of a systemd unit's command line (systemd.syntax(7), systemd.service(5)).
fn systemd_word(text: &str) -> String {
    let replace = |text: String, (from, to): (&str, &str)| text.replace(from, to);
    let escapes = [("\\", "\\\\"), ("\"", "\\\""), ("%", "%%"), ("$", "$$")];
    format!("\"{}\"", escapes.into_iter().fold(text.to_owned(), replace))
}

fn unit(cx: &mut Cx, repo: &Repo, manager: Option<Manager>) -> CmdResult {
    let here = if cfg!(target_os = "macos") { Manager::Launchd } else { Manager::Systemd };
    let program = std::env::current_exe()?;
    let (program, place) = (program.display().to_string(), repo.dir().display().to_string());
    match manager.unwrap_or(here) {
        Manager::Systemd => writeln!(
            cx.out,
            "# ~/.config/systemd/user/zenith.service; then: systemctl --user enable --now zenith\n\
             [Unit]\nDescription=zenith page server of {}\n\n\
             [Service]\nEnvironment=MALLOC_ARENA_MAX=2 MALLOC_MMAP_THRESHOLD_=1048576\nExecStart={} --repo {} pageserver start --foreground\n\
             # The servers that it started go on without it.\nKillMode=process\nRestart=on-failure\n\n\
             [Install]\nWantedBy=default.target",
            place.replace('%', "%%"),
            systemd_word(&program),
            systemd_word(&place),
        )?,
        Manager::Launchd => {
            let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;");
            let words = [&program, "--repo", &place, "pageserver", "start", "--foreground"];
            let words: String = words.iter().map(|word| format!("    <string>{}</string>\n", escape(word))).collect();
            writeln!(
                cx.out,
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
                 <!-- ~/Library/LaunchAgents/org.zenith.pageserver.plist; then: launchctl load it -->\n\
                 <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
                 <plist version=\"1.0\">\n<dict>\n  <key>Label</key>\n  <string>org.zenith.pageserver</string>\n  \
                 <key>ProgramArguments</key>\n  <array>\n{words}  </array>\n  <key>RunAtLoad</key>\n  <true/>\n  \
                 <!-- The servers that it started go on without it. -->\n  <key>AbandonProcessGroup</key>\n  <true/>\n\
                 </dict>\n</plist>"
            )?;
        }
    }
    Ok(())
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    match args.action {
        Action::Start(args) => start(cx, repo, &args),
        Action::Stop => match stop(cx, &repo)? {
            true => Ok(()),
            false => Err(Error::Stopped.into()),
        },
        Action::Restart(args) => {
            // What would be refused must not cost the one that runs.
            args.options(&repo).check()?;
            stop(cx, &repo)?;
            start(cx, repo, &args)
        }
        Action::Status { json } => status(cx, &repo, json),
        Action::Logs { follow, lines } => logs(cx, &repo, follow, lines),
        Action::Unit { r#for: manager } => unit(cx, &repo, manager),
    }
}
