//! Writes the man pages from the clap definitions: `make man`.

use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use zenith::cli::{COMMANDS, clap};
use zenith::command::Group;
use zenith::plumbing::postgres::policy::{Class, RULES, SCHEDULERS, Value};

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
    pages.push(("zenith-settings.5".to_owned(), settings_page()));
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

/// Returns zenith-settings(5): the table that the program goes by.
fn settings_page() -> String {
    let mut roff = Roff::new();
    roff.control("TH", ["ZENITH-SETTINGS", "5", "", "zenith", "zenith manual"]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("zenith-settings - what becomes of a cluster's own settings and files")]);
    roff.control("SH", ["DESCRIPTION"]);
    paragraphs(&mut roff, SETTINGS);
    type Takes = fn(Class) -> bool;
    let groups: [(&str, &str, Takes); 6] = [
        ("FORCED", "Has zenith's value in every server. zenith config refuses to set it for a branch.", |class| {
            matches!(class, Class::Forced(_))
        }),
        ("GIVES WAY", "The value named is replaced, unless it is the branch's own setting.", |class| {
            matches!(class, Class::Instead { .. })
        }),
        (
            "GIVES WAY IN A SERVER THAT ONLY READS",
            "The value named is replaced there, also where it is the branch's own setting.",
            |class| matches!(class, Class::Reading { .. }),
        ),
        (
            "RAISED FOR A REPLAY",
            "In a server that only reads, or that has WAL to replay or prepared transactions, at least what the WAL was \
             written with; the next start that has none of these goes by the setting again.",
            |class| matches!(class, Class::AtLeast),
        ),
        (
            "DROPPED ON A COPY",
            "Has this value unless the branch is live, or has an own setting of that name.",
            |class| matches!(class, Class::Dropped(_)),
        ),
        ("KEPT", "Stays as it is in the cluster's files.", |class| matches!(class, Class::Kept)),
    ];
    for (title, what, takes) in groups {
        roff.control("SH", [title]);
        roff.text([roman(what)]);
        for rule in RULES.iter().filter(|rule| takes(rule.class)) {
            roff.control("TP", []);
            let value = match rule.class {
                Class::Forced(Value::Fixed(value)) | Class::Dropped(Value::Fixed(value)) => format!(" = '{value}'"),
                Class::Instead { of, with } | Class::Reading { of, with } => format!(": {of} becomes {with}"),
                _ => String::new(),
            };
            let versions = match rule.versions {
                (14, 18) => String::new(),
                (14, last) => format!(" (until {last})"),
                (first, _) => format!(" (since {first})"),
            };
            roff.text([bold(rule.name.replace(' ', ", ")), roman(value + &versions)]);
            let mut why = rule.why.to_owned() + ".";
            if rule.name == "shared_preload_libraries" {
                why = format!("{why} They are: {}.", SCHEDULERS.join(", "));
            }
            roff.text([roman(why)]);
        }
        if title == "KEPT" {
            roff.control("TP", []);
            roff.text([bold("all others")]);
            roff.text([roman("What every session can set for itself, as work_mem.")]);
        }
    }
    roff.control("SH", ["FILES"]);
    for (name, what) in SETTINGS_FILES {
        roff.control("TP", []);
        roff.text([bold(*name)]);
        roff.text([roman(*what)]);
    }
    roff.control("SH", ["REPLICATION"]);
    paragraphs(&mut roff, REPLICATION);
    roff.control("SH", ["REPLICATION SLOTS"]);
    paragraphs(&mut roff, SLOTS);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([
        bold("zenith-config"),
        roman("(1), "),
        bold("zenith-start"),
        roman("(1), "),
        bold("zenith-init"),
        roman("(1)"),
    ]);
    roff.to_roff()
}

fn paragraphs(roff: &mut Roff, texts: &[&str]) {
    for (number, text) in texts.iter().enumerate() {
        if number > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(*text)]);
    }
}

const SETTINGS: &[&str] = &[
    "A cluster's configuration was written for the place where it ran. A branch is a copy of it, often on the same machine as the \
     original and beside other copies. So zenith gives some settings values of its own on the server's command line; the files \
     stay as they are. Its own come last and win; those of zenith config branch.NAME.postgres.SETTING come before them, and win over the files.",
    "A branch is a copy unless it is live. The first branch of a cluster that zenith init has made is live; that of a cluster \
     taken with init --from is not, nor is one that zenith branch makes: the original, elsewhere or beside it, goes on with its work, \
     and two that take rows from one replication slot, or run one job list, harm each other. zenith start --live makes a branch \
     live for good, zenith config branch.NAME.live false makes it a copy again from its next start.",
    "Not stopped is what a session does itself: dblink, foreign tables, COPY TO PROGRAM, functions that send mail. Nor can ALTER DATABASE ... SET and \
     ALTER ROLE ... SET be looked at; they cannot change what is forced. The sessions that zenith itself opens have their own values for what could \
     stop them: no time-outs, no libraries, no event triggers.",
];

const REPLICATION: &[&str] = &[
    "A run of a server in which nothing was committed is taken back when it ends, and the next one writes its own WAL at the same LSNs. Who \
     had received the first would have another history without a word. So servers let no physical replication in (a standby, \
     pg_receivewal, pg_basebackup), unless the branch is meant for that: zenith config branch.NAME.replication true, which counts from its next \
     start. All runs of such a branch stay. Logical replication is let in everywhere; who streams WAL over a connection to a database \
     (replication=database) has to set it, too.",
    "A standby, or an archive of WAL, follows such a branch over clean stops and over crashes from which its server recovers on its own files. It \
     has to be made anew where the branch gets another history at LSNs that it had before, as PostgreSQL's own timeline stays the same: \
     after zenith branch -f, and after a server that was not shut down and whose files were not gone on with (stop --mode immediate, \
     a stop after a crash, start --eager): what was sent behind the last whole record is written anew then.",
];

const SLOTS: &[&str] = &[
    "Replication slots are kept while a branch goes on: a stop puts them away with the branch's timeline, and its next start takes \
     them up again, with the WAL that they need. So a subscriber of a branch, or a standby where those are let in, goes on after a restart. A run of a server that has a slot is never taken back.",
    "They are never copied: a branch made of another, a moment, a restored version and an imported cluster begin without. A data directory that \
     is lost in a crash takes its slots with it.",
];

const SETTINGS_FILES: &[(&str, &str)] = &[
    (
        "postgresql.conf, postgresql.auto.conf, folders and files that they include",
        "Part of the data directory, so each branch has its own version. Where an imported cluster keeps them elsewhere (Debian: /etc/postgresql), zenith init and write-snapshot copy them into it, and included files from outside the folder too.",
    ),
    ("pg_hba.conf, pg_ident.conf", "Part of the data directory, for restore; zenith's servers do not use them."),
    (
        "standby.signal, recovery.signal, recovery.conf, promote",
        "Left out: a branch is not a standby, and is not restored from an archive.",
    ),
    (
        "backup_label, backup_label.old, tablespace_map, tablespace_map.old, backup_manifest",
        "Left out after they were read: each start writes its own.",
    ),
    ("postmaster.pid, postmaster.opts, current_logfiles", "Left out: they are of one run."),
    ("pg_replslot", "Left out of snapshots; see below."),
    ("pg_wal, pg_tblspc", "What links there point to becomes part of the data directory."),
    (
        "symbolic links elsewhere",
        "To a file: its content takes its place. To a folder: its content, if it is one of PostgreSQL's own, else it is left out. So no server writes to a folder outside its data directory.",
    ),
    ("server.crt, server.key, log", "Kept, and not used."),
];

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
