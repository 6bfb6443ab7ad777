//! Connection strings of libpq (`src/interfaces/libpq/fe-connect.c`), as far as a branch can stand in one: libpq itself
//! refuses the word.

use percent_encoding::percent_decode_str;

/// Returns whether a text is a connection string rather than a database's name, by libpq's own rule.
pub fn is_conninfo(text: &str) -> bool {
    is_uri(text) || text.contains('=')
}

fn is_uri(text: &str) -> bool {
    text.starts_with("postgresql://") || text.starts_with("postgres://")
}

/// Takes the parameter `branch` out of a connection string; returns it and the rest. What is no connection string is
/// left for libpq to complain about.
pub fn take_branch(text: &str) -> (Option<String>, String) {
    if is_uri(text) { from_uri(text) } else { from_pairs(text) }
}

fn from_uri(text: &str) -> (Option<String>, String) {
    let Some((base, query)) = text.split_once('?') else { return (None, text.to_owned()) };
    let (own, others): (Vec<&str>, Vec<&str>) = query.split('&').partition(|pair| pair.starts_with("branch="));
    let value = own.last().and_then(|pair| pair.strip_prefix("branch="));
    let branch = value.map(|value| percent_decode_str(value).decode_utf8_lossy().into_owned());
    let rest = if others.is_empty() { base.to_owned() } else { format!("{base}?{}", others.join("&")) };
    (branch, rest)
}

/// `name = value` with white space between pairs; a value may stand in single quotes, and a backslash takes the
/// meaning from what follows it.
fn from_pairs(text: &str) -> (Option<String>, String) {
    let (mut branch, mut rest, mut left) = (None, String::new(), text);
    while let Some((name, value, length)) = pair(left) {
        if name == "branch" {
            branch = Some(value);
        } else {
            rest.push_str(&left[..length]);
        }
        left = &left[length..];
    }
    rest.push_str(left);
    (branch, rest.trim().to_owned())
}

/// Returns the first pair of `text` and its length in bytes.
fn pair(text: &str) -> Option<(&str, String, usize)> {
    let (name, after) = text.split_once('=')?;
    let after_space = after.trim_start();
    let mut at = text.len() - after_space.len();
    let is_quoted = after_space.starts_with('\'');
    at += usize::from(is_quoted);
    let (mut value, mut chars) = (String::new(), text[at..].char_indices());
    let end = loop {
        match chars.next() {
            Some((_, '\\')) => value.extend(chars.next().map(|(_, char)| char)),
            Some((offset, '\'')) if is_quoted => break at + offset + 1,
            Some((offset, char)) if !is_quoted && char.is_whitespace() => break at + offset,
            Some((_, char)) => value.push(char),
            None => break text.len(),
        }
    };
    Some((name.trim(), value, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn takes(text: &str, branch: Option<&str>, rest: &str) {
        assert_eq!(take_branch(text), (branch.map(str::to_owned), rest.to_owned()));
    }

    #[test]
    fn a_branch_is_taken_out_and_the_rest_stays() {
        takes("dbname=postgres branch=heikki", Some("heikki"), "dbname=postgres");
        takes("branch = 'main@{1 hour ago}' user=me", Some("main@{1 hour ago}"), "user=me");
        takes(r"password='it\'s = x' branch=a\ b host=h", Some("a b"), r"password='it\'s = x' host=h");
        takes("dbname=x", None, "dbname=x");
        takes("options='-c branch=x'", None, "options='-c branch=x'");
        takes("postgresql:///db?branch=a%2Fb&user=u", Some("a/b"), "postgresql:///db?user=u");
        takes("postgres://h/db?branch=x", Some("x"), "postgres://h/db");
        takes("postgres://h/db", None, "postgres://h/db");
        takes("branch='unended", Some("unended"), "");
    }
}
