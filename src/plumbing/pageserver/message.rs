//! The few messages of the protocol that the proxy writes or looks at: errors, and the end of a login.
//!
//! # Format
//! A message is a byte that says what, a length (4 bytes, big-endian, itself included) and a body; see the chapter
//! "Message Formats" of PostgreSQL's manual.

/// What a client is told instead of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// See the appendix "PostgreSQL Error Codes".
    pub sqlstate: &'static str,
    pub message: String,
    pub hint: Option<String>,
    /// It says something of the repository, which is only the owner's to know.
    is_private: bool,
}

/// Names no database that there is.
pub const UNKNOWN_BRANCH: &str = "3D000";
/// The server cannot be had now.
pub const CANNOT_CONNECT_NOW: &str = "57P03";
/// Something failed outside of PostgreSQL.
pub const SYSTEM_ERROR: &str = "58000";
pub const TOO_MANY_CONNECTIONS: &str = "53300";
pub const PROTOCOL_VIOLATION: &str = "08P01";
pub const NOT_AUTHORIZED: &str = "28000";
/// Somebody ends the page server.
pub const ADMIN_SHUTDOWN: &str = "57P01";

impl Refusal {
    pub fn new(sqlstate: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { sqlstate, message: message.into(), hint: None, is_private: false }
    }

    /// Keeps what it says from all but the owner.
    pub fn private(self) -> Refusal {
        Refusal { is_private: true, ..self }
    }

    /// Returns what others than the owner are told.
    pub fn for_others(self) -> Refusal {
        if !self.is_private {
            return self;
        }
        let message = match self.sqlstate {
            UNKNOWN_BRANCH => "there is no such branch or revision",
            _ => "the branch's server cannot be had; its owner finds the reason in the page server's log",
        };
        Refusal::new(self.sqlstate, message)
    }

    pub fn hint(self, hint: impl Into<String>) -> Refusal {
        Refusal { hint: Some(hint.into()), ..self }
    }

    /// Returns an `ErrorResponse` that ends the session.
    pub fn packet(&self) -> Vec<u8> {
        let fields = [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', self.sqlstate), (b'M', &self.message)];
        let mut packet = vec![b'E', 0, 0, 0, 0];
        for (name, value) in fields.into_iter().chain(self.hint.as_deref().map(|hint| (b'H', hint))) {
            packet.push(name);
            packet.extend(value.bytes().filter(|byte| *byte != 0));
            packet.push(0);
        }
        packet.push(0);
        let length = packet.len() as u32 - 1; // messages are short
        packet[1..5].copy_from_slice(&length.to_be_bytes());
        packet
    }
}

/// The longest body of `BackendKeyData`: a process id and a key of 256 bytes.
const LONGEST_KEY_DATA: usize = 260;

/// The body of `AuthenticationOk`.
const OK: [u8; 4] = [0; 4];

/// Follows what the server says until the session is ready, wherever the bytes are cut.
#[derive(Debug, Default)]
pub struct Login {
    /// Type and length of the message at hand, as far as they are there.
    header: Vec<u8>,
    /// Bytes of its body that are still to come.
    left: usize,
    /// The body, of a message that matters.
    body: Vec<u8>,
    is_over: bool,
}

/// What became of a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The process id and the key with which the session's queries are cancelled.
    Key(Vec<u8>),
    /// The client is in.
    Ready,
    /// It has to say something, such as a password.
    Asked,
    /// It is sent away.
    Refused,
}

impl Login {
    /// Takes what came next; returns what that says. Costs nothing once the session is ready.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Vec<Step> {
        let mut steps = Vec::new();
        while !self.is_over && !bytes.is_empty() {
            if self.header.len() < 5 {
                let (now, later) = bytes.split_at(bytes.len().min(5 - self.header.len()));
                self.header.extend_from_slice(now);
                bytes = later;
                if let Some((_, length)) = self.header.split_first_chunk::<1>()
                    && let Ok(length) = <[u8; 4]>::try_from(length)
                {
                    let length = u32::from_be_bytes(length) as usize;
                    // What is no message is the client's to complain about.
                    let Some(left) = length.checked_sub(4) else {
                        self.is_over = true;
                        break;
                    };
                    self.left = left;
                }
            }
            if self.header.len() == 5 {
                let (now, later) = bytes.split_at(bytes.len().min(self.left));
                if matches!(self.header[0], b'K' | b'R') && self.body.len() + now.len() <= LONGEST_KEY_DATA {
                    self.body.extend_from_slice(now);
                }
                self.left -= now.len();
                bytes = later;
                if self.left == 0 {
                    match self.header[0] {
                        b'K' => steps.push(Step::Key(std::mem::take(&mut self.body))),
                        b'R' if self.body != OK => steps.push(Step::Asked),
                        end @ (b'Z' | b'E') => {
                            steps.push(if end == b'Z' { Step::Ready } else { Step::Refused });
                            self.is_over = true;
                        }
                        _ => {}
                    }
                    self.body.clear();
                    self.header.clear();
                }
            }
        }
        if self.is_over {
            *self = Login { is_over: true, ..Login::default() };
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_error_is_one_that_clients_read() {
        let packet = Refusal::new("3D000", "no\0pe").hint("try").packet();
        assert_eq!(Refusal::new("3D000", "near main").hint("main").private().for_others().hint, None);
        assert_eq!(packet, b"E\0\0\0\x25SFATAL\0VFATAL\0C3D000\0Mnope\0Htry\0\0");
    }

    proptest! {
        #[test]
        fn the_key_is_found_wherever_bytes_are_cut(cuts in proptest::collection::vec(1usize..9, 60)) {
            let stream = [&b"R\0\0\0\x08\0\0\0\0"[..], b"S\0\0\0\x08a\0b\0", b"K\0\0\0\x0c\0\0\0\x07abcd", b"Z\0\0\0\x05I", b"K\0\0\0\x08xxxx"];
            let stream = stream.concat();
            let (mut login, mut at, mut steps) = (Login::default(), 0, Vec::new());
            for cut in cuts {
                let end = (at + cut).min(stream.len());
                steps.extend(login.feed(&stream[at..end]));
                at = end;
            }
            steps.extend(login.feed(&stream[at..]));
            prop_assert_eq!(steps, vec![Step::Key(b"\0\0\0\x07abcd".to_vec()), Step::Ready]);
        }

        #[test]
        fn what_ends_a_login_is_known(cut in 1usize..28) {
            let asks = b"R\0\0\0\x08\0\0\0\x0aE\0\0\0\x0cC57P01\0\0Z\0\0\0\x05I";
            let (first, second) = asks.split_at(cut);
            let mut login = Login::default();
            let steps = [login.feed(first), login.feed(second)].concat();
            prop_assert_eq!(steps, vec![Step::Asked, Step::Refused]);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            Login::default().feed(&bytes);
        }
    }
}
