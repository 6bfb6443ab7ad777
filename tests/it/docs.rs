//! What people read says what the program does.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use zenith::cli::{COMMANDS, clap};

use crate::support::Env;

#[allow(dead_code)]
#[path = "../../examples/man.rs"]
mod man;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

#[test]
fn man_pages_are_what_the_definitions_say() {
    let pages = man::pages();
    for (name, text) in &pages {
        let stored = fs::read_to_string(root().join("man").join(name)).unwrap_or_default();
        assert!(stored == *text, "man/{name} is stale: run 'make man'");
    }
    let known: BTreeSet<String> = pages.into_iter().map(|(name, _)| name).collect();
    for entry in fs::read_dir(root().join("man")).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        assert!(
            known.contains(&name) || name.ends_with(".5") || name.ends_with(".7"),
            "man/{name} is of no command: remove it"
        );
    }
}

#[test]
fn every_example_is_a_command_that_parses() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let mut examples: Vec<String> = readme.lines().map(str::to_owned).collect();
    for command in &COMMANDS {
        let help = (command.clap)().get_after_long_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains(&format!("zenith {}", command.name)), "zenith {} has no example of itself", command.name);
        examples.extend(help.lines().map(str::to_owned));
    }
    let mut checked = 0;
    for line in examples {
        let line = line.trim().trim_start_matches("$ ");
        let Some(at) = line.find("zenith ").filter(|at| *at == 0 || line[..*at].ends_with(['|', ' ', '(', '"'])) else {
            continue;
        };
        if at > 0 && !line.contains('|') && !line.contains("$(") {
            continue;
        }
        let words = words(&without_substitutions(&line[at..]));
        if words.iter().any(|word| word.contains('<'))
            || !COMMANDS.iter().any(|command| Some(&command.name.to_owned()) == words.get(1))
        {
            continue;
        }
        if let Err(error) = clap().try_get_matches_from(&words) {
            assert!(!error.use_stderr(), "{line}\n{error}");
        }
        checked += 1;
    }
    assert!(checked > 60, "only {checked} examples were checked");
}

/// Puts a word where a shell would put what a command prints.
fn without_substitutions(line: &str) -> String {
    match line.split_once("$(").and_then(|(before, rest)| Some((before, rest.split_once(')')?.1))) {
        Some((before, after)) => format!("{before}printed{after}"),
        None => line.to_owned(),
    }
}

/// Splits a line as a shell does, as far as examples go.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for letter in line.chars() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (None, '\'' | '"') => quote = Some(letter),
            (None, '#' | '|' | '>' | ';' | ')' | '`') => break,
            (None, ' ') => words.push(String::new()),
            (_, letter) => words.last_mut().unwrap().push(letter),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn man_pages_render_without_warnings() {
    if Command::new("groff").arg("--version").output().is_err() {
        println!("SKIPPED: groff is not installed");
        return;
    }
    for entry in fs::read_dir(root().join("man")).unwrap().flatten() {
        let output =
            Command::new("groff").args(["-t", "-man", "-ww", "-Tutf8", "-z"]).arg(entry.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.is_empty(), "{}: {said}", entry.path().display());
    }
}

#[test]
fn bash_completes_commands_and_branches() {
    let env = Env::init();
    env.run(["branch", "feature-x"]).ok();
    let completed = |words: &[&str]| {
        let mut command = env.command(["--"]);
        command
            .args(words)
            .env("COMPLETE", "bash")
            .env("_CLAP_IFS", "\n")
            .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string());
        let output = command.output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(completed(&["zenith", "rest"]).contains("restore"));
    assert!(completed(&["zenith", "start", "fea"]).contains("feature-x"));
    for shell in ["bash", "zsh", "fish"] {
        let script = env.run(["completions", shell]).ok();
        assert!(script.contains("COMPLETE"), "{script}");
        if Command::new(shell).arg("--version").output().is_err() {
            println!("SKIPPED: {shell} is not installed; its script was not read by it");
            continue;
        }
        let file = env.path().join(format!("completions.{shell}"));
        fs::write(&file, script).unwrap();
        let status = Command::new(shell).arg("-n").arg(&file).status().unwrap();
        assert!(status.success(), "{shell} cannot read its completion script");
    }
}

#[test]
fn help_is_grouped_and_mistyped_commands_are_guessed() {
    let env = Env::new();
    let help = env.run(["help"]).ok();
    for text in ["start a repository", "run PostgreSQL on any version", "init", "restore"] {
        assert!(help.contains(text), "{help}");
    }
    assert!(!help.contains("hash-wal"));
    assert!(env.run(["help", "-a"]).ok().contains("hash-wal"));
    let bare: [&str; 0] = [];
    assert_eq!(env.run(bare).code, 1);
    env.run(["brnach"]).fails(2, &["'brnach' is not a zenith command", "'branch'"]);
    env.run(["branch", "--nonsense"]).fails(2, &["--nonsense"]);
    assert!(env.run(["help", "branch"]).ok().contains("Examples:"));
}
