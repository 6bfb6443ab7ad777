//! Who is at the other end of a connection: asked of the kernel, never of the client.
//!
//! A unix socket says so itself (SO_PEERCRED). For a connection over the loopback address the kernel is asked who
//! owns the client's end of it (`sock_diag(7)`, `include/uapi/linux/inet_diag.h`).
//!
//! The kernel has no owner any more for a socket that its process has closed: it says uid 0 and inode 0, whoever that
//! was. So only an established connection with an inode has an owner, and all else is nobody's. A session asks twice:
//! when it comes, and once its server takes it for the owner's, before that gets a single byte from the client.

use std::fmt;
use std::net::SocketAddr;

use nix::unistd::geteuid;
use tokio::net::{TcpStream, UnixStream};

use crate::plumbing::postgres::account::postgres;

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The OS user; `None` where the kernel does not say that, or it is nobody of this machine.
    pub uid: Option<u32>,
    /// From where; `None` for a unix socket.
    pub address: Option<SocketAddr>,
}

impl Peer {
    /// A peer of whom nothing is known.
    pub const NOBODY: Peer = Peer { uid: None, address: None };

    /// Returns who is at the other end of a unix socket.
    pub fn of_unix(stream: &UnixStream) -> Peer {
        Peer { uid: stream.peer_cred().ok().map(|credentials| credentials.uid()), address: None }
    }

    /// Returns who is at the other end of a TCP connection.
    pub fn of_tcp(stream: &TcpStream) -> Peer {
        let Ok(address) = stream.peer_addr() else { return Peer::NOBODY };
        Peer { uid: owner(stream, address), address: Some(address) }
    }

    /// Returns whether it is the user as whom this process runs, whose the repository is; or root, who became that user.
    pub fn is_owner(&self) -> bool {
        let own = geteuid();
        let is_root = || self.uid == Some(0) && postgres().is_some_and(|user| user.uid == own);
        self.uid == Some(own.as_raw()) || is_root()
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.uid {
            Some(uid) => write!(f, "user {uid}")?,
            None => write!(f, "unknown user")?,
        }
        self.address.map_or(Ok(()), |address| write!(f, " at {address}"))
    }
}

/// Returns the OS user whose connection it is.
#[cfg(target_os = "linux")]
fn owner(stream: &TcpStream, client: SocketAddr) -> Option<u32> {
    let (client, server) = (canonical(client), canonical(stream.local_addr().ok()?));
    if !client.ip().is_loopback() {
        return None;
    }
    let uid = linux::owner(client, server).ok().flatten()?;
    // As long as our own end is established, nobody else can have the client's address and port.
    linux::owner(server, client).ok().flatten().map(|_| uid)
}

#[cfg(not(target_os = "linux"))]
fn owner(_: &TcpStream, _: SocketAddr) -> Option<u32> {
    None
}

/// Returns an IPv4 address for one that is written as IPv6.
#[cfg(target_os = "linux")]
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::net::{IpAddr, SocketAddr};
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
    };

    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST: u16 = 1;
    const TCP: u8 = 6;
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    const TCP_ESTABLISHED: u8 = 1;
    /// Lengths of `nlmsghdr`, `inet_diag_req_v2`, and where `idiag_state`, `idiag_uid` and `idiag_inode` lie in
    /// `inet_diag_msg`.
    const HEADER: usize = 16;
    const REQUEST: usize = 56;
    const STATE: usize = HEADER + 1;
    const UID: usize = HEADER + 64;
    const INODE: usize = HEADER + 68;

    /// Asks for the one socket with these addresses.
    pub fn owner(own: SocketAddr, peer: SocketAddr) -> io::Result<Option<u32>> {
        let netlink =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, Some(SockProtocol::NetlinkSockDiag))?;
        sendto(netlink.as_raw_fd(), &request(own, peer), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = [0; 1024];
        let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        Ok(uid(&answer[..length]))
    }

    fn request(own: SocketAddr, peer: SocketAddr) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + REQUEST);
        bytes.extend_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
        bytes.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        bytes.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]); // sequence and port
        bytes.extend_from_slice(&[if own.is_ipv4() { AF_INET } else { AF_INET6 }, TCP, 0, 0]);
        bytes.extend_from_slice(&(1u32 << TCP_ESTABLISHED).to_ne_bytes());
        bytes.extend_from_slice(&own.port().to_be_bytes());
        bytes.extend_from_slice(&peer.port().to_be_bytes());
        for address in [own, peer] {
            let mut field = [0; 16];
            match address.ip() {
                IpAddr::V4(ip) => field[..4].copy_from_slice(&ip.octets()),
                IpAddr::V6(ip) => field.copy_from_slice(&ip.octets()),
            }
            bytes.extend_from_slice(&field);
        }
        bytes.extend_from_slice(&[0; 4]); // any interface
        bytes.extend_from_slice(&[0xff; 8]); // any cookie
        bytes
    }

    /// Returns the owner, if the answer is a socket that has one. The kernel looks for other states than the one that
    /// was asked for, too.
    pub(super) fn uid(answer: &[u8]) -> Option<u32> {
        let number = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
        let is_socket = answer.get(4..6)? == SOCK_DIAG_BY_FAMILY.to_ne_bytes();
        let has_owner = *answer.get(STATE)? == TCP_ESTABLISHED && number(INODE)? != 0;
        number(UID).filter(|_| is_socket && has_owner)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Returns both ends of a connection.
    async fn connected() -> (std::net::TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        (client, TcpStream::from_std(server).unwrap())
    }

    #[tokio::test]
    async fn our_own_sockets_are_ours_until_they_are_closed() {
        let (client, server) = connected().await;
        assert!(Peer::of_tcp(&server).is_owner());
        drop(client);
        assert_eq!(Peer::of_tcp(&server).uid, None);
    }

    #[tokio::test]
    async fn a_connection_that_one_side_has_ended_is_nobodys() {
        let (client, server) = connected().await;
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(Peer::of_tcp(&server).uid, None);
    }

    #[test]
    fn an_answer_without_an_owner_names_nobody() {
        let answer = |state: u8, inode: u32| {
            let mut bytes = vec![0; 100];
            bytes[4..6].copy_from_slice(&20u16.to_ne_bytes());
            bytes[17] = state;
            bytes[84..88].copy_from_slice(&inode.to_ne_bytes());
            bytes
        };
        assert_eq!(linux::uid(&answer(1, 7)), Some(0));
        // Established and closed by its process; waiting for the end; listening.
        assert_eq!(linux::uid(&answer(1, 0)), None);
        assert_eq!(linux::uid(&answer(4, 0)), None);
        assert_eq!(linux::uid(&answer(10, 7)), None);
        for length in 0..88 {
            assert_eq!(linux::uid(&answer(1, 7)[..length]), None);
        }
    }
}
