//! The program: parses the command line, runs the command, and turns its end into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    ondine::cli::complete();
    ondine::cli::Cli::from_command_line().run()
}
