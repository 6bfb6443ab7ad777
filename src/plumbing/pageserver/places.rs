//! Where the page server listens: what is taken, and what is free instead.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener};

use super::{Addresses, Error, Options};
use crate::error::CommandError;
use crate::objects::Repo;
use crate::plumbing::instance::{self, Instance};
use crate::plumbing::postgres::settings::{answers, socket_path};

/// So many ports are tried where one is taken.
const MOST_TRIED: usize = 1000;

/// Where to listen.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub address: SocketAddr,
    /// Nobody chose the address: the next free port does as well.
    pub or_next: bool,
}

/// A server of the repository: its port is that of a unix socket, which lies beside that of the page server.
pub(super) struct Server {
    port: u16,
    branch: String,
    socket: PathBuf,
}

impl Server {
    fn has(&self, port: u16) -> bool {
        self.port == port && answers(&self.socket)
    }
}

/// Returns the servers of the repository, those that do not run too.
pub(super) fn servers(repo: &Repo, socket_dir: &Path) -> Result<Vec<Server>, CommandError> {
    let server = |instance: Instance| {
        let port = instance.config.port;
        Server { port, branch: instance.config.branch, socket: socket_path(socket_dir, port) }
    };
    Ok(instance::list(repo)?.into_iter().map(server).collect())
}

/// Refuses places that others have: to be asked before the page server that has `own` is stopped for one with `options`.
pub fn check_places(repo: &Repo, options: &Options, own: &Addresses) -> Result<(), CommandError> {
    let is_own = |place: &Place| [own.listen.port(), own.http.port()].contains(&place.address.port());
    let servers = servers(repo, &instance::socket_dir(repo)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(Error::Failed)?;
    for (option, place, servers) in [("listen", options.listen, &servers[..]), ("http", options.http, &[])] {
        if !is_own(&place) {
            runtime.block_on(listen(option, place, servers))?;
        }
    }
    Ok(())
}

/// Listens at a place that the setting `proxy.{option}` names, and that none of `servers` has.
pub(super) async fn listen(option: &'static str, place: Place, servers: &[Server]) -> Result<TcpListener, Error> {
    let address = place.address;
    let by = match servers.iter().find(|server| server.has(address.port())) {
        Some(server) => format!("the server of '{}'", server.branch),
        None => match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => "another program".to_owned(),
            Err(source) => return Err(Error::Listen { address: address.to_string(), source }),
        },
    };
    match next_free(address, servers).await {
        Some(next) if place.or_next => Ok(next),
        next => Err(Error::Taken { address, by, option, next: next.and_then(|next| next.local_addr().ok()) }),
    }
}

/// Listens on the next free port behind that of `address` that is none of the servers', whether they run or not.
async fn next_free(address: SocketAddr, servers: &[Server]) -> Option<TcpListener> {
    let ports = address.port().checked_add(1)?..=u16::MAX;
    let is_free = |port: &u16| servers.iter().all(|server| server.port != *port);
    for port in ports.filter(is_free).take(MOST_TRIED) {
        if let Ok(listener) = TcpListener::bind((address.ip(), port)).await {
            return Some(listener);
        }
    }
    None
}

/// Listens on the unix socket of a port, in the folder of all of them.
pub(super) fn listen_unix(dir: &Path, port: u16) -> Result<UnixListener, Error> {
    let path = socket_path(dir, port);
    // Left by a daemon that was killed: this one holds the lock.
    if !answers(&path) {
        let _ = fs::remove_file(&path);
    }
    let failed = |source| Error::Listen { address: path.display().to_string(), source };
    UnixListener::bind(&path).map_err(failed)
}
