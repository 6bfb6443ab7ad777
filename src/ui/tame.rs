//! Keeps what others wrote from steering the terminal.
//!
//! Names, messages, paths and errors may hold bytes of whoever made a repository or a server. As git does with
//! what a remote says, colours go through, and every other control character is shown instead of sent: `^[` for
//! escape, `^G` for a bell.

use std::io::{self, Write};

/// The longest colour sequence that goes through, bytes.
const LONGEST: usize = 32;
/// First byte of the control characters of UTF-8 that have two.
const C1: u8 = 0xC2;
const ESCAPE: u8 = 0x1B;

/// Passes text on, tamed.
pub struct Tame<W: Write> {
    inner: W,
    /// The beginning of a sequence whose rest is yet to come.
    pending: Vec<u8>,
}

/// Returns a text, tamed.
pub fn tamed(text: &str) -> String {
    let mut tame = Tame::new(Vec::new());
    let written = tame.write_all(text.as_bytes()).and_then(|()| tame.flush());
    written.expect("invariant: memory takes all");
    String::from_utf8_lossy(&tame.inner).into_owned()
}

impl<W: Write> Tame<W> {
    pub fn new(inner: W) -> Tame<W> {
        Tame { inner, pending: Vec::new() }
    }

    /// Shows the sequence at hand, which is none that goes through.
    fn give_up(&mut self) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        match pending.split_first() {
            Some((&ESCAPE, rest)) => {
                self.inner.write_all(b"^[")?;
                self.inner.write_all(rest)
            }
            _ => self.inner.write_all(&pending),
        }
    }

    fn put(&mut self, byte: u8) -> io::Result<()> {
        match (self.pending.as_slice(), byte) {
            ([], ESCAPE | C1) | ([ESCAPE], b'[') => {
                self.pending.push(byte);
                Ok(())
            }
            ([], b'\n' | b'\t' | b' '..=b'~' | 0x80..) => self.inner.write_all(&[byte]),
            ([], _) => self.inner.write_all(&[b'^', byte ^ 0x40]),
            ([C1], 0x80..=0x9F) => {
                self.pending.clear();
                self.inner.write_all("\u{FFFD}".as_bytes())
            }
            ([ESCAPE, b'[', ..], b'0'..=b'9' | b';') if self.pending.len() < LONGEST => {
                self.pending.push(byte);
                Ok(())
            }
            ([ESCAPE, b'[', ..], b'm') => {
                self.pending.push(byte);
                let colour = std::mem::take(&mut self.pending);
                self.inner.write_all(&colour)
            }
            _ => {
                self.give_up()?;
                self.put(byte)
            }
        }
    }
}

impl<W: Write> Write for Tame<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let plain = |byte: &u8| matches!(byte, b'\n' | b'\t' | b' '..=b'~' | 0x80..=0xC1 | 0xC3..);
        let mut rest = bytes;
        while let Some((first, after)) = rest.split_first() {
            let run = if self.pending.is_empty() { rest.iter().take_while(|byte| plain(byte)).count() } else { 0 };
            if run > 0 {
                self.inner.write_all(&rest[..run])?;
                rest = &rest[run..];
            } else {
                self.put(*first)?;
                rest = after;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.give_up()?;
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_letters_go_through() {
        for text in ["plain\n\ttext", "\x1b[1m\x1b[32mgreen\x1b[0m", "Bücher 日本 § »", "\x1b[38;5;200mx\x1b[m", ""]
        {
            assert_eq!(tamed(text), text);
        }
    }

    #[test]
    fn what_steers_a_terminal_is_shown() {
        for (text, shown) in [
            ("\x1b[2Jx", "^[[2Jx"),
            ("\x1b]0;title\x07", "^[]0;title^G"),
            ("\x1b\x1b[0m", "^[\x1b[0m"),
            ("a\rb\x08\x7f\0", "a^Mb^H^?^@"),
            ("\u{9b}2J", "\u{FFFD}2J"),
            ("end\x1b", "end^["),
            ("end\x1b[1", "end^[[1"),
        ] {
            assert_eq!(tamed(text), shown, "{text:?}");
        }
        let long = format!("\x1b[{}m", "1;".repeat(50));
        assert!(tamed(&long).starts_with("^[["));
    }

    #[test]
    fn sequences_may_come_in_pieces() {
        for text in ["\x1b[32mgreen", "\x1b[2J", "\u{9b}§"] {
            let mut tame = Tame::new(Vec::new());
            text.as_bytes().iter().for_each(|byte| tame.write_all(&[*byte]).unwrap());
            assert_eq!(tame.inner, tamed(text).as_bytes());
        }
    }
}
