//! The program `zenith`: parses, runs, and turns what went wrong into text and an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    zenith::cli::main(std::env::args_os())
}
