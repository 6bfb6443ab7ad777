//! Who is at the other end of a connection.
//!
//! A unix socket says so itself (SO_PEERCRED). For a connection over the loopback address the kernel is asked who
//! owns the client's end of it (`sock_diag(7)`, `include/uapi/linux/inet_diag.h`).

use std::net::SocketAddr;

use tokio::net::UnixStream;

/// Returns the user at the other end of a unix socket.
pub fn of_unix(stream: &UnixStream) -> Option<u32> {
    stream.peer_cred().ok().map(|credentials| credentials.uid())
}

/// Returns the user who owns the socket that is bound to `client` and connected to `server`, both on the
/// loopback address; `None` where that cannot be told, or is nobody of this machine.
#[cfg(target_os = "linux")]
pub fn of_loopback(client: SocketAddr, server: SocketAddr) -> Option<u32> {
    linux::owner(canonical(client), canonical(server)).ok().flatten()
}

#[cfg(not(target_os = "linux"))]
pub fn of_loopback(_: SocketAddr, _: SocketAddr) -> Option<u32> {
    None
}

/// Returns an IPv4 address for one that is written as IPv6.
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
    const TCP_ESTABLISHED: u32 = 1 << 1;
    /// Lengths of `nlmsghdr`, `inet_diag_req_v2`, and where `idiag_uid` lies in `inet_diag_msg`.
    const HEADER: usize = 16;
    const REQUEST: usize = 56;
    const UID: usize = HEADER + 64;

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
        bytes.extend_from_slice(&TCP_ESTABLISHED.to_ne_bytes());
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

    /// Returns the owner, if the answer is a socket and no error.
    fn uid(answer: &[u8]) -> Option<u32> {
        let kind = answer.get(4..6)?;
        if kind != SOCK_DIAG_BY_FAMILY.to_ne_bytes() {
            return None;
        }
        Some(u32::from_ne_bytes(answer.get(UID..UID + 4)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn our_own_sockets_are_ours() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_server, address) = listener.accept().unwrap();
        let own = nix::unistd::geteuid().as_raw();
        assert_eq!(of_loopback(address, listener.local_addr().unwrap()), Some(own));
        drop(client);
        let nobody: SocketAddr = "127.0.0.1:1".parse().unwrap();
        assert_eq!(of_loopback(nobody, listener.local_addr().unwrap()), None);
    }
}
