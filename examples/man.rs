//! Writes the man pages from the clap definitions: `make man`.

use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use zenith::cli::{COMMANDS, Group, clap};

fn main() -> std::io::Result<()> {
    for (name, text) in pages() {
        std::fs::write(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("man").join(name), text)?;
    }
    Ok(())
}

/// Returns the file name and the text of each page.
pub fn pages() -> Vec<(String, String)> {
    let mut program = clap();
    program.build();
    let mut pages = vec![("zenith.1".to_owned(), program_page(&program))];
    for command in &COMMANDS {
        let found = program.find_subcommand(command.name).expect("invariant: built from the table");
        pages.push((format!("zenith-{}.1", command.name), command_page(found)));
    }
    pages
}

fn command_page(command: &clap::Command) -> String {
    let name = format!("zenith-{}", command.get_name());
    // What all commands take stands in zenith(1).
    let own = |argument: ::clap::Arg| if argument.is_global_set() { argument.hide(true) } else { argument };
    let definition = command.clone().disable_help_subcommand(true).name(name.clone()).mut_args(own);
    let man = Man::new(definition.clone())
        .title(name.to_uppercase())
        .section("1")
        .date("")
        .source("zenith")
        .manual("zenith manual");
    let mut out = Vec::new();
    man.render_title(&mut out).unwrap();
    man.render_name_section(&mut out).unwrap();
    man.render_synopsis_section(&mut out).unwrap();
    man.render_description_section(&mut out).unwrap();
    man.render_options_section(&mut out).unwrap();
    let mut roff = Roff::new();
    for action in definition.get_subcommands() {
        if action.get_name() == "help" {
            continue;
        }
        if action.get_name() == definition.get_subcommands().next().unwrap().get_name() {
            roff.control("SH", ["ACTIONS"]);
        }
        let mut words = vec![bold(format!("{} {}", command.get_name(), action.get_name()))];
        for argument in action.get_positionals() {
            words.push(roman(" "));
            words.push(italic(format!("[{}]", argument.get_id().as_str().to_uppercase())));
        }
        roff.control("TP", []);
        roff.text(words);
        roff.text([roman(action.get_about().map(ToString::to_string).unwrap_or_default())]);
        let own = |argument: &&clap::Arg| !argument.is_hide_set() && !argument.is_global_set();
        let named = |argument: &&clap::Arg| !argument.is_positional() && argument.get_id() != "help";
        let options = action.get_arguments().filter(own).filter(named);
        for option in options {
            let mut words = Vec::new();
            if let Some(short) = option.get_short() {
                words.extend([bold(format!("-{short}")), roman(", ")]);
            }
            words.extend(option.get_long().map(|long| bold(format!("--{long}"))));
            if option.get_action().takes_values() {
                let name = option.get_value_names().map(|names| names[0].to_string()).unwrap_or_default();
                words.extend([roman(" "), italic(name)]);
            }
            roff.control("RS", []);
            roff.control("TP", []);
            roff.text(words);
            roff.text([roman(option.get_help().map(ToString::to_string).unwrap_or_default())]);
            roff.control("RE", []);
        }
    }
    if let Some(text) = command.get_after_long_help() {
        section_of_code(&mut roff, "EXAMPLES", text.to_string().trim_start_matches("Examples:\n"));
    }
    exit_status(&mut roff);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([
        bold("zenith"),
        roman("(1), "),
        bold("zenith-repository"),
        roman("(5), "),
        bold("zenith-objects"),
        roman("(5)"),
    ]);
    roff.control("SH", ["ZENITH"]);
    roff.text([roman("Part of the "), bold("zenith"), roman("(1) suite.")]);
    String::from_utf8(out).unwrap() + &roff.to_roff()
}

fn exit_status(roff: &mut Roff) {
    roff.control("SH", ["EXIT STATUS"]);
    for (code, what) in [
        ("0", "Done."),
        ("1", "Refused or not found: the message says what, and the hint what to type next."),
        ("2", "The words of the command are wrong."),
        ("3", "Stored data is damaged or missing."),
        ("130", "Interrupted; the repository is sound, and the command can be repeated."),
    ] {
        roff.control("TP", []);
        roff.text([bold(code)]);
        roff.text([roman(what)]);
    }
}

fn section_of_code(roff: &mut Roff, title: &str, text: &str) {
    roff.control("SH", [title]);
    roff.control("nf", []);
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
}

fn program_page(program: &clap::Command) -> String {
    let man = Man::new(program.clone()).title("ZENITH").section("1").date("").source("zenith").manual("zenith manual");
    let mut out = Vec::new();
    man.render_title(&mut out).unwrap();
    man.render_name_section(&mut out).unwrap();
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([bold("zenith"), roman(" [options] <command> [arguments]")]);
    out.extend(roff.to_roff().into_bytes());
    man.render_description_section(&mut out).unwrap();
    man.render_options_section(&mut out).unwrap();
    String::from_utf8(out).unwrap() + &commands_and_prose(program)
}

fn commands_and_prose(program: &clap::Command) -> String {
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    for group in Group::ALL {
        roff.control("SS", [group.title()]);
        for command in COMMANDS.iter().filter(|command| command.group == group) {
            let about =
                program.find_subcommand(command.name).and_then(|found| found.get_about()).map(ToString::to_string);
            roff.control("TP", []);
            roff.text([bold(format!("zenith-{}", command.name)), roman("(1)")]);
            roff.text([roman(about.unwrap_or_default())]);
        }
    }
    roff.control("SH", ["REVISIONS"]);
    roff.text([roman(
        "A revision names a timeline and an LSN on it. It begins with a name and may go on with steps, which apply \
         from left to right.",
    )]);
    for (form, what) in REVISIONS {
        roff.control("TP", []);
        roff.text([bold(*form)]);
        roff.text([roman(*what)]);
    }
    roff.control("PP", []);
    roff.text([roman(
        "An LSN amid a record stands for the end of the last whole record before it. A name that is a tag and a \
         branch is the tag. Times without a zone are of the local one.",
    )]);
    roff.control("SH", ["OUTPUT"]);
    roff.text([roman(
        "Standard output carries the answer and nothing else; what happens, progress and hints go to standard error. \
         Commands with --json print one line of JSON whose keys are stable.",
    )]);
    roff.control("SH", ["ENVIRONMENT"]);
    for (name, what) in [
        ("ZENITH_DIR", "The repository, as --repo."),
        ("ZENITH_PG_BIN", "The folder of PostgreSQL's programs, as --pg-bin."),
        (
            "ZENITH_TRACE_SYNC",
            "A file to which each sync is noted, a line with the path of what was synced; for tests.",
        ),
        ("NO_COLOR", "No colours, if set."),
    ] {
        roff.control("TP", []);
        roff.text([bold(name)]);
        roff.text([roman(what)]);
    }
    roff.control("SH", ["FILES"]);
    roff.control("TP", []);
    roff.text([bold(".zenith")]);
    roff.text([roman("The repository; found from the current folder upwards. See zenith-repository(5).")]);
    exit_status(&mut roff);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([
        bold("zenith-repository"),
        roman("(5), "),
        bold("zenith-objects"),
        roman("(5), "),
        bold("psql"),
        roman("(1), "),
        bold("git"),
        roman("(1)"),
    ]);
    roff.to_roff()
}

const REVISIONS: &[(&str, &str)] = &[
    (
        "main, HEAD, @",
        "A branch, or the one that HEAD names: the end of its sealed WAL. Commands for people seal what a running server has flushed first.",
    ),
    ("v1", "A tag: the position that it names."),
    ("origin/main", "A branch of another repository, as it was when last seen."),
    ("refs/branches/main", "Any ref by its full name."),
    ("76cf99e0", "A timeline, by four or more of its first digits."),
    ("main@0/15ECF68", "An LSN on the branch's timeline or on one that it comes from."),
    (
        "main@{2026-11-20 12:00:00+01}",
        "What had been committed by that time: the position before the first later commit.",
    ),
    ("main@{5 minutes ago}, main@{yesterday}, main@{now}", "The same, counted from now."),
    ("main@{1}", "What the branch named one change ago, by its log, without what is gone; see zenith-reflog(1)."),
    ("main~2", "Where the timeline forked, two epochs back. Every run of a writable server is an epoch."),
];
