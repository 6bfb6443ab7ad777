//! Reads PostgreSQL's configuration files, as the server does (`src/backend/utils/misc/guc-file.l`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::objects::regular;

/// How deep files may include each other.
const DEPTH: u32 = 10;
/// Longer files are no configuration, bytes.
const LONGEST: u64 = 16 << 20;

/// Settings by their names, in lower case.
pub type Values = BTreeMap<String, String>;

/// What a line of a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// Name and value.
    Setting(String, String),
    Include(Include, String),
}

/// How other files are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    File,
    IfExists,
    Dir,
}

/// Returns the settings that the files of a data directory make, those that include others too. What cannot be
/// read is passed over: the server says so when it starts.
pub fn read(data_dir: &Path) -> Values {
    let mut values = read_one(&data_dir.join("postgresql.conf"));
    // ALTER SYSTEM has the last word.
    values.extend(read_one(&data_dir.join("postgresql.auto.conf")));
    values
}

/// Returns the settings that one file makes.
pub fn read_one(path: &Path) -> Values {
    let (mut values, mut left) = (Values::new(), MOST_FILES);
    read_file(path, &mut values, 0, &mut left);
    values
}

/// Files that are read of a configuration at most: those that include each other twice are twice as many at each depth.
pub const MOST_FILES: usize = 1000;

fn read_file(path: &Path, values: &mut Values, depth: u32, left: &mut usize) {
    if depth > DEPTH || *left == 0 {
        return;
    }
    *left -= 1;
    for line in text(path).unwrap_or_default().lines().filter_map(parse) {
        match line {
            Line::Setting(name, value) => {
                values.insert(name, value);
            }
            Line::Include(kind, target) => {
                included(path, kind, &target).iter().for_each(|path| read_file(path, values, depth + 1, left));
            }
        }
    }
}

/// Returns the text of a configuration file, if it is an ordinary file of an ordinary length.
pub fn text(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    let usual = metadata.is_file() && metadata.len() <= LONGEST;
    usual.then(|| regular::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))?
}

/// Returns the files that an include in the file at `path` names, in the order in which they count.
pub fn included(path: &Path, kind: Include, target: &str) -> Vec<PathBuf> {
    let target = path.parent().unwrap_or(Path::new("")).join(target);
    if kind != Include::Dir {
        return vec![target];
    }
    let names =
        fs::read_dir(&target).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".conf") && !name.starts_with('.')).collect();
    names.sort_unstable();
    names.into_iter().map(|name| target.join(name)).collect()
}

/// Reads a line; `None` where it says nothing.
pub fn parse(line: &str) -> Option<Line> {
    let line = line.trim_start();
    let end = line.find(|c: char| !(c.is_alphanumeric() || "_.$".contains(c)))?;
    let (name, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        Some(quoted) => unquoted(quoted),
        None => rest.split(|c: char| c.is_whitespace() || c == '#').next().unwrap_or_default().to_owned(),
    };
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        "" => None,
        "include" => Some(Line::Include(Include::File, value)),
        "include_if_exists" => Some(Line::Include(Include::IfExists, value)),
        "include_dir" => Some(Line::Include(Include::Dir, value)),
        _ => Some(Line::Setting(name, value)),
    }
}

/// Reads up to the closing quote: `''` and backslashes as the server takes them.
fn unquoted(text: &str) -> String {
    let (mut value, mut letters) = (String::new(), text.chars().peekable());
    while let Some(letter) = letters.next() {
        match letter {
            '\'' if letters.peek() == Some(&'\'') => {
                letters.next();
                value.push('\'');
            }
            '\'' => break,
            '\\' => match letters.next() {
                Some('n') => value.push('\n'),
                Some('t') => value.push('\t'),
                Some('r') => value.push('\r'),
                Some('b') => value.push('\u{8}'),
                Some('f') => value.push('\u{c}'),
                Some(first) if first.is_digit(8) => {
                    let mut code = first.to_digit(8).unwrap_or(0);
                    for _ in 0..2 {
                        let Some(next) = letters.peek().and_then(|digit| digit.to_digit(8)) else { break };
                        code = code * 8 + next;
                        letters.next();
                    }
                    value.extend(char::from_u32(code));
                }
                other => value.extend(other),
            },
            other => value.push(other),
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(line: &str) -> (String, String) {
        match parse(line) {
            Some(Line::Setting(name, value)) => (name, value),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn reads_lines_as_the_server_does() {
        for (line, name, value) in [
            ("Port = 5432 # the port", "port", "5432"),
            ("  work_mem 4MB", "work_mem", "4MB"),
            ("a.b='it''s \\'\\101\\n' # x", "a.b", "it's 'A\n"),
            ("log_line_prefix = '# %m'", "log_line_prefix", "# %m"),
            ("x=", "x", ""),
            ("x = 'never closed", "x", "never closed"),
        ] {
            assert_eq!(setting(line), (name.to_owned(), value.to_owned()), "{line}");
        }
        for line in ["", "   ", "# port = 1", "=5", "'x'"] {
            assert_eq!(parse(line), None, "{line}");
        }
        assert_eq!(parse("include_dir 'conf.d'"), Some(Line::Include(Include::Dir, "conf.d".into())));
    }

    #[test]
    fn the_last_one_counts_through_includes_that_go_round() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        fs::create_dir(dir.path().join("conf.d")).unwrap();
        write("postgresql.conf", "port=1\nwork_mem=1MB\ninclude_dir='conf.d'\ninclude 'more'\n");
        write("conf.d/b.conf", "port=3\n");
        write("conf.d/a.conf", "port=2\ninclude '../postgresql.conf'\n");
        write("conf.d/ignored", "port=9\n");
        write("more", "fsync=off\n");
        write("postgresql.auto.conf", "fsync='on'\n");
        let values = read(dir.path());
        assert_eq!(
            (values["port"].as_str(), values["fsync"].as_str(), values["work_mem"].as_str()),
            ("3", "on", "1MB")
        );
    }
}
