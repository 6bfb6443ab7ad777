//! What a client sends first: which branch it wants, and what PostgreSQL is to see of it.
//!
//! # Format
//! Every first packet is a length (4 bytes, big-endian, itself included, 8 to 10,000) and a code (4 bytes); see
//! `src/include/libpq/pqcomm.h` and the chapter "Message Formats" of PostgreSQL's manual.
//!
//! | code | what | rest |
//! | --- | --- | --- |
//! | 80877103 | asks for TLS | |
//! | 80877104 | asks for GSSAPI encryption | |
//! | 80877102 | cancels a query | process id (4 bytes), key (4 to 256 bytes) |
//! | major × 65536 + minor | begins a session | pairs of NUL-terminated names and values, then a NUL |
//!
//! A session names its branch in the parameter `branch` or `zenith.branch`, in `options` (`-c branch=NAME`, `-c
//! zenith.branch=NAME`, `branch=NAME`), as `user@NAME`, by the TLS server name `NAME.localhost`, or as
//! `database@NAME`; the first of these wins, and of one kind the last, in upper or lower case, as for any of PostgreSQL's
//! settings. All of it is taken out; PostgreSQL gets the branch that the session is on as the parameter
//! `zenith.branch`, which SQL can ask for.
//!
//! Some clients pass on a part of a URL as it is written there. So in `user@NAME` and `database@NAME` the branch may be
//! percent-encoded (`postgres@feature%2Fx`), and where the @ itself is (`postgres%40feature%2Fx`), the whole name was not decoded.

use percent_encoding::percent_decode;

/// The longest packet that PostgreSQL accepts, bytes.
pub const LONGEST: usize = 10_000;
/// The length and the code of a packet.
pub const HEADER: usize = 8;

const CANCEL: u32 = 80_877_102;
const TLS: u32 = 80_877_103;
const GSSAPI: u32 = 80_877_104;
/// The cancel keys of protocol 3.2 have up to so many bytes.
const LONGEST_KEY: usize = 256;

/// The setting that says on which branch a session is.
pub const BRANCH: &str = "zenith.branch";
const ENCODED_AT: &[u8] = b"%40";

/// A name and a value, in whatever encoding.
type Parameter = (Vec<u8>, Vec<u8>);

/// A first packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum First {
    Tls,
    Gssapi,
    /// The packet's bytes after the code: process id and key, as the server gave them out.
    Cancel(Vec<u8>),
    Session(Session),
}

/// A packet that breaks the protocol, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("invalid length of startup packet")]
    Length,
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    #[error("unsupported frontend protocol {0}.{1}: server supports 3.0 and later")]
    Protocol(u16, u16),
}

/// Parameters of a session, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    minor: u16,
    parameters: Vec<Parameter>,
}

/// Returns the length of the packet that begins with `header`, bytes.
pub fn length(header: [u8; 4]) -> Result<usize, Malformed> {
    let length = u32::from_be_bytes(header) as usize;
    if (HEADER..=LONGEST).contains(&length) { Ok(length) } else { Err(Malformed::Length) }
}

/// Returns the packet that asks a server to cancel the query of the session with this process id and key.
pub fn cancel_packet(key: &[u8]) -> Vec<u8> {
    let length = (HEADER + key.len()) as u32; // a key has at most 260 bytes
    [&length.to_be_bytes()[..], &CANCEL.to_be_bytes(), key].concat()
}

/// Reads a whole packet, its length included.
pub fn parse(packet: &[u8]) -> Result<First, Malformed> {
    let (header, rest) = packet.split_first_chunk::<4>().ok_or(Malformed::Length)?;
    if length(*header)? != packet.len() {
        return Err(Malformed::Length);
    }
    let (code, rest) = rest.split_first_chunk::<4>().ok_or(Malformed::Length)?;
    match u32::from_be_bytes(*code) {
        TLS if rest.is_empty() => Ok(First::Tls),
        GSSAPI if rest.is_empty() => Ok(First::Gssapi),
        CANCEL if (8..=4 + LONGEST_KEY).contains(&rest.len()) => Ok(First::Cancel(rest.to_vec())),
        TLS | GSSAPI | CANCEL => Err(Malformed::Length),
        code if code >> 16 == 3 => {
            Ok(First::Session(Session { minor: code as u16, parameters: parameters(rest)? })) // the low half
        }
        code => Err(Malformed::Protocol((code >> 16) as u16, code as u16)), // its halves
    }
}

fn parameters(mut rest: &[u8]) -> Result<Vec<Parameter>, Malformed> {
    let mut found = Vec::new();
    let mut text = || {
        let end = rest.iter().position(|byte| *byte == 0).ok_or(Malformed::Layout)?;
        let (text, after) = rest.split_at(end);
        rest = &after[1..];
        Ok((text.to_vec(), rest.is_empty()))
    };
    loop {
        match text()? {
            (name, true) if name.is_empty() => return Ok(found),
            (name, _) if name.is_empty() => return Err(Malformed::Layout),
            (name, _) => found.push((name, text()?.0)),
        }
    }
}

impl Session {
    /// Returns the value of a parameter, the last one, as PostgreSQL does.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.parameters.iter().rev().find(|(known, _)| known == name.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// Returns whether this is a connection for physical replication, rather than one to a database.
    pub fn is_for_replication(&self) -> bool {
        let is_other = |value: &[u8]| matches!(value, b"" | b"false" | b"off" | b"no" | b"0" | b"database");
        self.get("replication").is_some_and(|value| !is_other(value))
    }

    /// Takes out the branch that the session names, in the order of the module's text; `server_name` is that of
    /// TLS. Returns `None` where it names none.
    pub fn take_branch(&mut self, server_name: Option<&str>) -> Option<Vec<u8>> {
        let direct = self.take_parameter();
        let option = self.take_option();
        if let Some(name) = direct.or(option) {
            return Some(name);
        }
        if let Some(name) = self.split("user") {
            // libpq takes the user's name for that of the database where none is given.
            let both = |value: &[u8]| split_name(value).is_some_and(|(_, branch)| branch == name);
            if self.get("database").is_some_and(both) {
                self.split("database");
            }
            return Some(name);
        }
        let host = server_name.and_then(|name| name.strip_suffix(".localhost"));
        host.map(|name| name.as_bytes().to_vec()).or_else(|| self.split("database"))
    }

    fn take_parameter(&mut self) -> Option<Vec<u8>> {
        let taken = self.parameters.extract_if(.., |(name, _)| is_branch(name));
        taken.last().map(|(_, value)| value)
    }

    fn take_option(&mut self) -> Option<Vec<u8>> {
        let (_, options) = self.parameters.iter_mut().rev().find(|(name, _)| name == b"options")?;
        let words = words(options);
        let (mut kept, mut branch, mut at) = (Vec::new(), None, 0);
        while at < words.len() {
            let (setting, count): (&[u8], usize) = match words[at].as_slice() {
                b"-c" if at + 1 < words.len() => (&words[at + 1], 2),
                [b'-', b'c', setting @ ..] | [b'-', b'-', setting @ ..] => (setting, 1),
                word => (word, 1),
            };
            let equals = setting.iter().position(|byte| *byte == b'=');
            match equals.filter(|equals| is_branch(&setting[..*equals])) {
                Some(equals) => branch = Some(setting[equals + 1..].to_vec()),
                None => kept.extend_from_slice(&words[at..at + count]),
            }
            at += count;
        }
        if kept.len() < words.len() {
            *options = join(&kept);
        }
        branch
    }

    /// Splits what follows the first @ off the last parameter of that name.
    fn split(&mut self, name: &str) -> Option<Vec<u8>> {
        let (_, value) = self.parameters.iter_mut().rev().find(|(known, _)| known == name.as_bytes())?;
        let (kept, branch) = split_name(value)?;
        *value = kept;
        Some(branch)
    }

    /// Returns the packet for PostgreSQL, which also says on which branch or revision the session is. PostgreSQL takes
    /// parameters after `options`, so that is what `current_setting('zenith.branch')` says.
    pub fn packet_on(&self, branch: &str) -> Result<Vec<u8>, Malformed> {
        let mut session = self.clone();
        session.parameters.push((BRANCH.as_bytes().to_vec(), branch.as_bytes().to_vec()));
        Some(session.packet()).filter(|packet| packet.len() <= LONGEST).ok_or(Malformed::Length)
    }

    /// Returns the packet with the parameters as they are.
    pub fn packet(&self) -> Vec<u8> {
        let mut packet = vec![0; 4];
        packet.extend_from_slice(&(3 << 16 | u32::from(self.minor)).to_be_bytes());
        for (name, value) in &self.parameters {
            for text in [name, value] {
                packet.extend_from_slice(text);
                packet.push(0);
            }
        }
        packet.push(0);
        let length = packet.len() as u32; // at most what was read, and a branch's name
        packet[..4].copy_from_slice(&length.to_be_bytes());
        packet
    }
}

/// Returns whether a parameter or setting of that name names the branch.
fn is_branch(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"branch") || name.eq_ignore_ascii_case(BRANCH.as_bytes())
}

/// Splits `kept@branch`, of which the branch or all may be percent-encoded.
fn split_name(value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let at = value.iter().position(|byte| *byte == b'@');
    let encoded = value.windows(ENCODED_AT.len()).position(|bytes| bytes == ENCODED_AT);
    let (kept, branch) = match (at, encoded) {
        (Some(at), encoded) if encoded.is_none_or(|encoded| at < encoded) => {
            (value[..at].to_vec(), decoded(&value[at + 1..]))
        }
        (_, Some(encoded)) => (decoded(&value[..encoded]), decoded(&value[encoded + ENCODED_AT.len()..])),
        _ => return None,
    };
    Some((kept, branch)).filter(|(kept, branch)| !kept.is_empty() && !branch.is_empty())
}

/// Returns what is percent-encoded, but for NULs, which would end the name in the packet.
fn decoded(text: &[u8]) -> Vec<u8> {
    let decoded: Vec<u8> = percent_decode(text).collect();
    if decoded.contains(&0) { text.to_vec() } else { decoded }
}

/// Splits `options` as PostgreSQL does: at white space, unless a backslash stands before it
/// (`pg_split_opts` in `src/backend/utils/init/postinit.c`).
fn words(options: &[u8]) -> Vec<Vec<u8>> {
    let (mut words, mut word, mut is_inside) = (Vec::new(), Vec::new(), false);
    let mut bytes = options.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte.is_ascii_whitespace() || byte == 0x0b {
            if std::mem::take(&mut is_inside) {
                words.push(std::mem::take(&mut word));
            }
            continue;
        }
        is_inside = true;
        match byte {
            b'\\' => word.extend(bytes.next()),
            byte => word.push(byte),
        }
    }
    if is_inside {
        words.push(word);
    }
    words
}

/// Does the opposite.
fn join(words: &[Vec<u8>]) -> Vec<u8> {
    let quoted = |word: &Vec<u8>| {
        let quote = |byte: &u8| (byte.is_ascii_whitespace() || matches!(byte, b'\\' | 0x0b)).then_some(b'\\');
        word.iter().flat_map(|byte| quote(byte).into_iter().chain([*byte])).collect::<Vec<u8>>()
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(&b' ')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn session(parameters: &[(&str, &str)]) -> Session {
        let parameters = parameters.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        Session { minor: 0, parameters: parameters.collect() }
    }

    #[track_caller]
    fn takes(before: &[(&str, &str)], server_name: Option<&str>, branch: Option<&str>, after: &[(&str, &str)]) {
        let mut session_ = session(before);
        let taken = session_.take_branch(server_name).map(|name| String::from_utf8(name).unwrap());
        assert_eq!(taken.as_deref(), branch);
        assert_eq!(session_, session(after));
    }

    #[test]
    fn a_branch_is_named_in_every_way() {
        let plain = [("user", "u"), ("database", "d")];
        takes(&plain, None, None, &plain);
        takes(&[("user", "u"), ("branch", "b"), ("database", "d")], Some("x.localhost"), Some("b"), &plain);
        takes(&[("user", "u@b"), ("database", "d")], None, Some("b"), &plain);
        takes(&[("user", "u@b"), ("database", "u@b")], None, Some("b"), &[("user", "u"), ("database", "u")]);
        takes(&[("user", "u"), ("database", "d@main@0/15ECF68")], None, Some("main@0/15ECF68"), &plain);
        takes(&plain, Some("b.localhost"), Some("b"), &plain);
        takes(&plain, Some("localhost"), None, &plain);
        let with = |options| [("user", "u"), ("options", options)];
        for options in ["-c branch=b", "-cbranch=b", "--branch=b", "branch=b", " -c  branch=b "] {
            takes(&with(options), None, Some("b"), &with(""));
        }
        takes(&with("-c zenith.branch=b -c work_mem=1MB"), None, Some("b"), &with("-c work_mem=1MB"));
        takes(&with("-c ZENITH.BRANCH=a -c zenith.Branch=b"), None, Some("b"), &with(""));
        takes(&with("-c branch=a -cBRANCH=b"), None, Some("b"), &with(""));
        takes(&with(r"-c a.b=x\ y -c branch=m@{1\ hour\ ago}"), None, Some("m@{1 hour ago}"), &with(r"-c a.b=x\ y"));
    }

    #[test]
    fn what_a_client_did_not_decode_is_decoded() {
        let plain = [("user", "u"), ("database", "d")];
        takes(&[("user", "u"), ("database", "d%40a%2Fb")], None, Some("a/b"), &plain);
        takes(&[("user", "u"), ("database", "d@a%2Fb")], None, Some("a/b"), &plain);
        takes(
            &[("user", "u%40main%40%7B1%20hour%20ago%7D"), ("database", "d")],
            None,
            Some("main@{1 hour ago}"),
            &plain,
        );
        takes(&[("user", "u%40b"), ("database", "u%40b")], None, Some("b"), &[("user", "u"), ("database", "u")]);
        takes(&[("user", "u"), ("database", "a%20b%40c")], None, Some("c"), &[("user", "u"), ("database", "a b")]);
        // Whoever decodes what a URL has says what is meant, and so do the other ways.
        takes(&[("user", "u"), ("database", "50%25@c")], None, Some("c"), &[("user", "u"), ("database", "50%25")]);
        takes(&[("user", "u"), ("database", "d"), ("branch", "a%2Fb")], None, Some("a%2Fb"), &plain);
        for odd in ["d%40a%00b", "d@a%00b", "d@a%zz%4"] {
            let name = odd.trim_start_matches("d%40").trim_start_matches("d@");
            takes(&[("user", "u"), ("database", odd)], None, Some(name), &plain);
        }
        for none in ["d%40", "%40b", "d%4", "d@", "@"] {
            takes(&[("user", "u"), ("database", none)], None, None, &[("user", "u"), ("database", none)]);
        }
    }

    #[test]
    fn of_one_kind_the_last_wins_in_any_case() {
        let plain = [("user", "u"), ("options", "")];
        takes(&[("user", "u"), ("options", "-c ZENITH.BRANCH=dev")], None, Some("dev"), &plain);
        takes(&[("user", "u"), ("options", "-c branch=a --Zenith.Branch=b")], None, Some("b"), &plain);
        takes(&[("BRANCH", "a"), ("user", "u"), ("zenith.branch", "b")], None, Some("b"), &[("user", "u")]);
        takes(
            &[("options", "-c branch=a"), ("user", "u"), ("branch", "b")],
            None,
            Some("b"),
            &[("options", ""), ("user", "u")],
        );
        let packet = session(&[("user", "u")]).packet_on("main").unwrap();
        let Ok(First::Session(told)) = parse(&packet) else { panic!("{packet:?}") };
        assert_eq!(told.get("zenith.branch"), Some(&b"main"[..]));
        assert_eq!(session(&[("user", "u")]).packet_on(&"x".repeat(LONGEST)), Err(Malformed::Length));
    }

    #[test]
    fn the_first_way_wins_and_the_others_stay() {
        takes(
            &[("user", "u@x"), ("branch", "b"), ("database", "d@y")],
            None,
            Some("b"),
            &[("user", "u@x"), ("database", "d@y")],
        );
    }

    #[test]
    fn packets_that_break_the_protocol() {
        let packet = |code: u32, rest: &[u8]| {
            let mut packet = (rest.len() as u32 + 8).to_be_bytes().to_vec();
            packet.extend_from_slice(&code.to_be_bytes());
            packet.extend_from_slice(rest);
            parse(&packet)
        };
        assert_eq!(packet(TLS, b""), Ok(First::Tls));
        assert_eq!(packet(TLS, b"x"), Err(Malformed::Length));
        assert_eq!(packet(2 << 16, b""), Err(Malformed::Protocol(2, 0)));
        assert_eq!(packet(3 << 16, b"user\0u\0"), Err(Malformed::Layout));
        assert_eq!(packet(3 << 16, b"user\0u\0\0x"), Err(Malformed::Layout));
        assert_eq!(packet(3 << 16, b"user\0u"), Err(Malformed::Layout));
        assert_eq!(packet(CANCEL, &[0; 8]), Ok(First::Cancel(vec![0; 8])));
        assert_eq!(packet(CANCEL, &[0; 261]), Err(Malformed::Length));
        assert!(length(10_001u32.to_be_bytes()).is_err() && length(7u32.to_be_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_not_ours_goes_through_untouched(
            parameters in proptest::collection::vec(("[a-z_.]{1,8}", "[^\0@]{0,12}"), 0..6), minor in 0u16..3
        ) {
            let is_other = |name: &str, value: &str| !name.contains("branch") && name != "options" && !value.contains("%40");
            let others = parameters.into_iter().filter(|(name, value)| is_other(name, value));
            let parameters = others.map(|(name, value)| (name.into_bytes(), value.into_bytes())).collect();
            let mut session = Session { minor, parameters };
            let packet = session.packet();
            prop_assert_eq!(parse(&packet), Ok(First::Session(session.clone())));
            prop_assert_eq!(session.take_branch(None), None);
            prop_assert_eq!(session.packet(), packet);
        }

        #[test]
        fn options_come_back(list in proptest::collection::vec(proptest::collection::vec(1u8.., 1..6), 0..6)) {
            prop_assert_eq!(words(&join(&list)), list);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            if let Ok(First::Session(mut session)) = parse(&bytes) {
                session.take_branch(Some("b.localhost"));
                prop_assert!(session.packet().len() <= LONGEST);
            }
        }
    }
}
