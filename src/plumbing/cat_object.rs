//! `zenith cat-object`: prints objects.

use std::borrow::Cow;
use std::io::Write;

use crate::command::Cx;
use crate::error::CmdResult;
use crate::objects::map::Map;
use crate::objects::snapshot::{Content, Node, Snapshot};
use crate::objects::store::Object;
use crate::objects::{Kind, wal};

/// Print an object's content, kind or length
///
/// Prints the content as it is stored, byte for byte. With -p, prints maps, snapshots and WAL as text.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "Examples:\n  zenith cat-object -t 4f2a11c0\n  zenith cat-object -p 4f2a11c0\n")]
pub struct Args {
    /// Print the kind: frame, map, snapshot or wal
    #[arg(short = 't', long = "kind", group = "what")]
    kind: bool,
    /// Print the length of the content in bytes
    #[arg(short = 's', long, group = "what")]
    size: bool,
    /// Print the content as text for people
    #[arg(short = 'p', long, group = "what")]
    pretty: bool,
    /// Print the bytes that it takes in the store, and the frames that it is stored against
    #[arg(long, group = "what")]
    stored: bool,
    /// Print nothing; exit with 0 if the object is there and sound
    #[arg(short = 'e', long, group = "what")]
    exists: bool,
    /// An object id, or 4 or more of its first digits
    #[arg(value_name = "OBJECT")]
    object: String,
}

pub fn run(cx: &mut Cx, args: Args) -> CmdResult {
    let repo = cx.take_repo()?;
    let store = repo.store();
    let id = store.resolve_prefix(&args.object)?;
    if args.stored {
        let stored = store.stored(&id)?;
        write!(cx.out, "{}", stored.stored)?;
        stored.bases.iter().try_for_each(|base| write!(cx.out, " {base}"))?;
        return Ok(writeln!(cx.out)?);
    }
    let Object { kind, content } = store.read(&id)?;
    if args.exists {
        return Ok(());
    }
    if args.kind {
        return Ok(writeln!(cx.out, "{}", kind.name())?);
    }
    if args.size {
        return Ok(writeln!(cx.out, "{}", content.len())?);
    }
    if !args.pretty || kind == Kind::Frame {
        cx.print_bytes();
        return Ok(cx.out.write_all(&content)?);
    }
    match kind {
        Kind::Map => print_map(cx, &store.map(&id)?),
        Kind::Snapshot => print_snapshot(cx, &store.snapshot(&id)?),
        Kind::Frame | Kind::Wal => {
            let (start, bytes) = wal::decode(&content).unwrap_or_default();
            Ok(writeln!(cx.out, "start {start}\nend {}", start.plus(bytes.len() as u64))?)
        }
    }
}

fn print_map(cx: &mut Cx, map: &Map) -> CmdResult {
    writeln!(cx.out, "length {}", map.length)?;
    if let Some((base, depth)) = &map.base {
        writeln!(cx.out, "base {base}\ndepth {depth}")?;
    }
    for extent in &map.extents {
        let frame = map.frames[extent.frame as usize];
        writeln!(cx.out, "blocks {}+{} {frame} {}", extent.block, extent.count, extent.offset)?;
    }
    Ok(())
}

fn print_snapshot(cx: &mut Cx, snapshot: &Snapshot) -> CmdResult {
    writeln!(cx.out, "timeline {}", snapshot.timeline)?;
    writeln!(
        cx.out,
        "start {}\ncheckpoint {}\nconsistent {}",
        snapshot.start, snapshot.checkpoint, snapshot.consistent
    )?;
    let time = jiff::Timestamp::from_microsecond(snapshot.time_us).unwrap_or_default();
    writeln!(cx.out, "time {time}")?;
    writeln!(cx.out, "system {}\npostgres {}", snapshot.system_identifier, snapshot.postgres_major)?;
    if let Some(parent) = &snapshot.parent {
        writeln!(cx.out, "parent {parent}")?;
    }
    writeln!(cx.out)?;
    list_entries(cx, snapshot)
}

/// Returns a path as git prints it on a line: between double quotes and with backslashes where it has control
/// characters, quotes, backslashes, or bytes that are no UTF-8.
fn quoted(path: &[u8]) -> Cow<'_, str> {
    let is_plain = |text: &&str| !text.contains(|c: char| c.is_control() || matches!(c, '"' | '\\'));
    match std::str::from_utf8(path) {
        Ok(text) if is_plain(&text) => Cow::Borrowed(text),
        _ => {
            let escape = |byte: &u8| match byte {
                b'\n' => "\\n".to_owned(),
                b'\t' => "\\t".to_owned(),
                b'"' | b'\\' => format!("\\{}", char::from(*byte)),
                b' '..=b'~' => char::from(*byte).to_string(),
                _ => format!("\\{byte:03o}"),
            };
            Cow::Owned(format!("\"{}\"", path.iter().map(escape).collect::<String>()))
        }
    }
}

/// Prints a line for each path: mode, length, object, path.
pub fn list_entries(cx: &mut Cx, snapshot: &Snapshot) -> CmdResult {
    for entry in &snapshot.entries {
        let path = quoted(&entry.path);
        let mode = entry.mode;
        match &entry.node {
            Node::Dir => writeln!(cx.out, "04{mode:04o} {:>12} {:<64} {path}", "-", "-")?,
            Node::Symlink { target } => {
                writeln!(cx.out, "12{mode:04o} {:>12} {:<64} {path} -> {}", "-", "-", quoted(target))?;
            }
            Node::File { length, content } => {
                let object = match content {
                    Content::Empty => "-".to_owned(),
                    Content::Frame(id) | Content::Map(id) => id.to_string(),
                };
                writeln!(cx.out, "10{mode:04o} {length:>12} {object:<64} {path}")?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_path_is_one_line_whatever_is_in_it() {
        for (path, printed) in [
            (&b"base/1"[..], "base/1"),
            ("b\u{fc}cher x".as_bytes(), "b\u{fc}cher x"),
            (b"a\nb", "\"a\\nb\""),
            (b"\x1B[2J\xFF\"\\", "\"\\033[2J\\377\\\"\\\\\""),
        ] {
            assert_eq!(quoted(path), printed);
        }
    }
}
