//! `zenith pageserver`: runs the daemon that starts servers when somebody connects.

mod logs;

use std::io::Write;
use std::net::SocketAddr;
use std::process::Stdio;

use crate::command::{Cx, os_user};
use crate::error::{CmdResult, CommandError};
use crate::objects::format::{Others, Proxy};
use crate::objects::setting::{ADDRESS, parse_address};
use crate::objects::{Repo, folder};
use crate::plumbing::instance;
use crate::plumbing::instance::mount::{answer_of, background};
use crate::plumbing::pageserver::{self, Addresses, Error, Options, PageServer, Place, log_file};
use crate::plumbing::postgres::account::Account;
use crate::plumbing::postgres::process::own_program;
use crate::plumbing::postgres::server::{Status, let_run, tail};
use crate::ui::Ui;

/// Run a server that starts branches when somebody connects
///
/// Connect to its address and name a branch: its PostgreSQL is started on the way, and stopped again
/// when nobody has used it for a while (proxy.idle_timeout). The branch try is named by the first of
/// these that there is: a parameter branch=try, which drivers other than libpq pass on; the options
/// '-c zenith.branch=try' or '-c branch=try', as in PGOPTIONS; the user NAME@try; the TLS server name
/// try.localhost; the database NAME@try. Without any it is HEAD, or nothing if proxy.default is none.
/// zenith-clients(7) has a string for each client. Any revision will do: main@0/15ECF68, a tag or
/// main@{1 hour ago} is shown read-only.
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
        /// Print the lines as they are stored: JSON
        #[arg(long)]
        json: bool,
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
    /// Where PostgreSQL's clients connect: 127.0.0.1:5433, localhost:5433 or 5433; otherwise
    /// proxy.listen, which is 127.0.0.1:5432 at first, or where that is taken the next free port
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    listen: Option<SocketAddr>,
    /// Where status and metrics are; otherwise proxy.http, which is 127.0.0.1:64000 at first, or where
    /// that is taken the next free port
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    http: Option<SocketAddr>,
    /// Listen on an address that other machines reach; use TLS there
    #[arg(long)]
    allow_remote: bool,
    /// As the background process that start makes
    #[arg(long, hide = true)]
    daemon: bool,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    parse_address(text).ok_or_else(|| format!("not {ADDRESS}"))
}

/// Returns where to listen: where the user says, else where the config does, which at first says what nobody chose.
fn place(wanted: Option<SocketAddr>, configured: SocketAddr, default: SocketAddr) -> Place {
    Place { address: wanted.unwrap_or(configured), or_next: wanted.is_none() && configured == default }
}

impl StartArgs {
    fn options(&self, repo: &Repo) -> Options {
        let (proxy, default) = (&repo.config().proxy, Proxy::default());
        Options {
            listen: place(self.listen, proxy.listen, default.listen),
            http: place(self.http, proxy.http, default.http),
            allow_remote: self.allow_remote,
            to_terminal: !self.daemon,
        }
    }
}

/// Starts the daemon as a process of its own, and waits until it listens.
fn start_in_background(repo: &Repo, args: &StartArgs) -> Result<Addresses, CommandError> {
    folder::make_in_place(&pageserver::dir(repo))?;
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
    // One that answers nothing has ended, and said why.
    answer_of(&mut child)?;
    let_run(child);
    // If not this one, another one may have been faster.
    match pageserver::running(repo)? {
        Some((_, addresses)) => Ok(addresses),
        None => {
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
    let (out, ui) = (&mut cx.out, &cx.ui);
    let (place, head) = (repo.dir().display().to_string(), repo.refs().head()?);
    let config = Repo::open(repo.dir())?;
    PageServer { repo, binaries, account, who: os_user(), options }.serve(|addresses| {
        match is_daemon {
            // Who started it remembers.
            true => writeln!(out, "ready")?,
            false => {
                introduce(out, addresses, &place, head.short())?;
                let moved = Moved::look(&options, addresses);
                moved.remember(&config, ui).map_err(|error| std::io::Error::other(error.text()))?;
            }
        }
        out.flush()
    })
}

/// Ports that were taken and the next ones that were not: they stay, so that connection strings do.
struct Moved(Vec<(&'static str, SocketAddr, SocketAddr)>);

impl Moved {
    fn look(options: &Options, addresses: &Addresses) -> Moved {
        let places = [("proxy.listen", options.listen, addresses.listen), ("proxy.http", options.http, addresses.http)];
        let moved = places.into_iter().filter(|(_, place, address)| place.or_next && place.address != *address);
        Moved(moved.map(|(key, place, address)| (key, place.address, address)).collect())
    }

    fn remember(&self, repo: &Repo, ui: &Ui) -> CmdResult {
        for (key, taken, address) in &self.0 {
            super::config::set(repo, key, Some(&address.to_string()))?;
            ui.status(format!("{taken} is taken; {key} is {address} from now on"));
        }
        Ok(())
    }
}

/// Says what one needs to use it.
fn introduce(out: &mut dyn Write, addresses: &Addresses, place: &str, head: &str) -> std::io::Result<()> {
    let (http, listen) = (addresses.http, addresses.listen);
    writeln!(out, "Starting pageserver at '{http}' in {place}")?;
    writeln!(out, "PostgreSQL on {listen}, and as a unix socket in {}", addresses.socket_dir.display())?;
    writeln!(out, "  {}", example(addresses, head))
}

/// Returns a command that connects.
fn example(addresses: &Addresses, head: &str) -> String {
    format!("psql {}", addresses.url(head))
}

fn start(cx: &mut Cx, repo: Repo, args: &StartArgs) -> CmdResult {
    let options = args.options(&repo);
    options.check()?;
    let listen = options.listen.address;
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
    if let Some((pid, addresses)) = pageserver::running(&repo)? {
        return runs_already(cx, &repo, args, pid, &addresses);
    }
    let addresses = start_in_background(&repo, args)?;
    if !cx.ui.is_quiet() {
        introduce(&mut cx.out, &addresses, &repo.dir().display().to_string(), repo.refs().head()?.short())?;
    }
    Moved::look(&args.options(&repo), &addresses).remember(&repo, &cx.ui)
}

/// A page server that runs is what was wanted, if it listens where it should.
fn runs_already(cx: &mut Cx, repo: &Repo, args: &StartArgs, pid: i32, addresses: &Addresses) -> CmdResult {
    // Port 0 is any.
    let is_at = |wanted: Option<SocketAddr>, found: SocketAddr| {
        wanted.is_none_or(|wanted| wanted.ip() == found.ip() && [0, found.port()].contains(&wanted.port()))
    };
    if !is_at(args.listen, addresses.listen) || !is_at(args.http, addresses.http) {
        let error = CommandError::refused(format!(
            "the page server runs already, as process {pid}, on {} and {}",
            addresses.listen, addresses.http
        ));
        return Err(error.hint("have it listen there: zenith pageserver restart with the same options"));
    }
    if cx.ui.is_quiet() {
        return Ok(());
    }
    cx.ui.status(format!("the page server runs already, as process {pid}"));
    print_running(cx, repo, pid, addresses)
}

/// Says where it is.
fn print_running(cx: &mut Cx, repo: &Repo, pid: i32, addresses: &Addresses) -> CmdResult {
    writeln!(cx.out, "pageserver runs as process {pid}")?;
    writeln!(cx.out, "PostgreSQL on {}, and as a unix socket in {}", addresses.listen, addresses.socket_dir.display())?;
    writeln!(cx.out, "status, metrics and a page on {}", addresses.page())?;
    writeln!(cx.out, "  {}", example(addresses, repo.refs().head()?.short()))?;
    Ok(())
}

fn stop(cx: &mut Cx, repo: &Repo) -> Result<bool, CommandError> {
    let Some(_) = pageserver::stop(repo)? else { return Ok(false) };
    cx.say("pageserver stopped")?;
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
    print_running(cx, repo, pid, &addresses)
}

/// Returns a word of a systemd unit's command line (systemd.syntax(7), systemd.service(5)).
fn systemd_word(text: &str) -> String {
    let replace = |text: String, (from, to): (&str, &str)| text.replace(from, to);
    let escapes = [("\\", "\\\\"), ("\"", "\\\""), ("%", "%%"), ("$", "$$")];
    format!("\"{}\"", escapes.into_iter().fold(text.to_owned(), replace))
}

fn unit(cx: &mut Cx, repo: &Repo, manager: Option<Manager>) -> CmdResult {
    let here = if cfg!(target_os = "macos") { Manager::Launchd } else { Manager::Systemd };
    let program = own_program()?;
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
    // It starts servers.
    cx.changes |= matches!(args.action, Action::Start(_) | Action::Restart(_));
    let repo = cx.take_repo()?;
    match args.action {
        Action::Start(args) => start(cx, repo, &args),
        Action::Stop => match stop(cx, &repo)? {
            true => Ok(()),
            false => Err(Error::Stopped.into()),
        },
        Action::Restart(args) => {
            // What would be refused must not cost the one that runs.
            let options = args.options(&repo);
            options.check()?;
            if let Some((_, own)) = pageserver::running(&repo)? {
                pageserver::check_places(&repo, &options, &own)?;
            }
            stop(cx, &repo)?;
            start(cx, repo, &args)
        }
        Action::Status { json } => status(cx, &repo, json),
        Action::Logs { follow, lines, json } => logs::print(cx, &repo, follow, lines, json),
        Action::Unit { r#for: manager } => unit(cx, &repo, manager),
    }
}
