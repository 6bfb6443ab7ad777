//! Names of refs, checked as `git check-ref-format` checks them.

use std::fmt;

/// What kind of ref a name is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefKind {
    Branch,
    Tag,
    Remote,
}

impl RefKind {
    /// Returns the folder below `refs/`.
    pub fn folder(self) -> &'static str {
        match self {
            RefKind::Branch => "branches",
            RefKind::Tag => "tags",
            RefKind::Remote => "remotes",
        }
    }

    /// Returns the word for people.
    pub fn word(self) -> &'static str {
        match self {
            RefKind::Branch => "branch",
            RefKind::Tag => "tag",
            RefKind::Remote => "remote branch",
        }
    }
}

/// A full name: `refs/branches/main`, `refs/tags/v1`, `refs/remotes/origin/main`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefName(String);

/// The name cannot be one of a ref.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{name}' is not a valid name: it {rule}")]
pub struct BadName {
    pub name: String,
    pub rule: &'static str,
}

impl RefName {
    /// Returns the full name of the ref of `kind` that is called `short`.
    pub fn new(kind: RefKind, short: &str) -> Result<RefName, BadName> {
        // As git, which would not know which of the two is meant.
        let is_head = kind == RefKind::Branch && short == "HEAD";
        match broken_rule(short).or(is_head.then_some("stands for the branch that is the current one")) {
            Some(rule) => Err(BadName { name: short.to_owned(), rule }),
            None => Ok(RefName(format!("refs/{}/{short}", kind.folder()))),
        }
    }

    /// Returns the full name of the branch `short`.
    pub fn branch(short: &str) -> Result<RefName, BadName> {
        RefName::new(RefKind::Branch, short)
    }

    /// Returns the full name of the tag `short`.
    pub fn tag(short: &str) -> Result<RefName, BadName> {
        RefName::new(RefKind::Tag, short)
    }

    /// Reads a full name, which begins with `refs/`.
    pub fn full(name: &str) -> Result<RefName, BadName> {
        let kinds = [RefKind::Branch, RefKind::Tag, RefKind::Remote];
        let found = kinds.into_iter().find_map(|kind| {
            let short = name.strip_prefix("refs/")?.strip_prefix(kind.folder())?.strip_prefix('/')?;
            Some(RefName::new(kind, short))
        });
        let rule = "does not begin with refs/branches/, refs/tags/ or refs/remotes/";
        found.unwrap_or_else(|| Err(BadName { name: name.to_owned(), rule }))
    }

    /// Returns the kind.
    pub fn kind(&self) -> RefKind {
        match self.0.split('/').nth(1) {
            Some("branches") => RefKind::Branch,
            Some("tags") => RefKind::Tag,
            _ => RefKind::Remote,
        }
    }

    /// Returns the name without its first two parts.
    pub fn short(&self) -> &str {
        self.0.splitn(3, '/').nth(2).unwrap_or_default()
    }

    /// Returns the full name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Returns the rule that a name breaks, as the end of a sentence that begins with "it".
fn broken_rule(name: &str) -> Option<&'static str> {
    let has = |forbidden: &str| name.contains(|c: char| forbidden.contains(c));
    Some(match name {
        "" => "is empty",
        "@" => "is '@', which means HEAD",
        _ if name.contains(|c: char| c.is_ascii_control() || c == '\u{7f}') => "has a control character",
        _ if has(" ") => "has a space",
        _ if has("~^:?*[\\") => "has one of ~ ^ : ? * [ \\",
        _ if name.contains("..") => "has '..'",
        _ if name.contains('@') => "has an '@', which begins an LSN or a time in a revision",
        _ if name.starts_with('-') => "begins with '-'",
        _ if name.ends_with('.') => "ends with '.'",
        _ => name.split('/').find_map(|part| match part {
            "" => Some("has an empty part before, between or after slashes"),
            _ if part.starts_with('.') => Some("has a part that begins with '.'"),
            _ if part.ends_with(".lock") => Some("has a part that ends with '.lock'"),
            _ if part.len() > 250 => Some("has a part longer than 250 bytes"),
            _ => None,
        })?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_git_takes() {
        for name in ["main", "feature/x", "bücher", "v1.2", "a-b_c", "HEAD2", "0", "日本"] {
            assert_eq!(RefName::branch(name).map(|name| name.short().to_owned()), Ok(name.to_owned()));
        }
    }

    #[test]
    fn refuses_what_git_refuses_and_says_why() {
        for (name, rule) in [
            ("", "is empty"),
            ("@", "is '@'"),
            ("a b", "space"),
            ("a..b", "'..'"),
            ("a~1", "one of"),
            ("a@{1", "'@'"),
            (".a", "begins with '.'"),
            ("a/.b", "begins with '.'"),
            ("a/", "empty part"),
            ("/a", "empty part"),
            ("a//b", "empty part"),
            ("a.lock", "'.lock'"),
            ("-a", "begins with '-'"),
            ("a\n", "control"),
            ("a.", "ends with '.'"),
        ] {
            let error = RefName::branch(name).unwrap_err();
            assert!(error.rule.contains(rule), "{name:?}: {}", error.rule);
        }
        assert!(RefName::full("refs/heads/x").is_err());
        assert_eq!(RefName::full("refs/remotes/origin/x").unwrap().short(), "origin/x");
    }
}
