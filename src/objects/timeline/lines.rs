//! Text files that are only ever appended to, a line at a time.
//!
//! A last line without a newline is what a crash left of an append that was not acknowledged. It does not count, and who
//! appends removes it.

use std::fs::File;
use std::path::PathBuf;

use super::Error;
use crate::objects::durable;
use crate::objects::file_error::cannot;

/// Returns the whole lines of such a file, with their numbers, counted from 1; `None` for one that is no text.
pub fn whole_lines(text: &[u8]) -> impl Iterator<Item = (usize, Option<&str>)> {
    let whole = &text[..length(text)];
    let lines = whole.split_inclusive(|&byte| byte == b'\n').map(|line| &line[..line.len() - 1]);
    lines.enumerate().map(|(number, line)| (number + 1, std::str::from_utf8(line).ok()))
}

/// Returns how many bytes the whole lines have.
fn length(text: &[u8]) -> usize {
    text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1)
}

/// Such a file, open for appending.
#[derive(Debug)]
pub struct Lines {
    file: File,
    /// Of its whole lines, bytes.
    length: u64,
    path: PathBuf,
}

impl Lines {
    /// Takes a file whose content is `text`, and makes its last line durable: whoever wrote it may have been killed before its
    /// sync, or that failed, and here it is believed. Those before were made durable like this when the next one was appended.
    pub fn secure(file: File, text: &[u8], path: PathBuf) -> Result<Lines, Error> {
        let length = length(text);
        if text.is_empty() {
            // It says nothing that somebody could believe.
            return Ok(Lines { file, length: 0, path });
        }
        if length < text.len() {
            file.set_len(length as u64).map_err(cannot::<Error>("truncate", &path))?;
        }
        let last = text[..length.saturating_sub(1)].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        durable::write_at(&file, last as u64, &text[last..length]).map_err(cannot::<Error>("write", &path))?;
        Ok(Lines { file, length: length as u64, path })
    }

    /// Appends a line, durably; after an error it is not there.
    pub fn append(&mut self, line: &str) -> Result<(), Error> {
        let text = format!("{line}\n");
        durable::append_to(&self.file, self.length, text.as_bytes()).map_err(cannot::<Error>("write", &self.path))?;
        self.length += text.len() as u64;
        Ok(())
    }
}
