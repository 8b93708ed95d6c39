//! The program: parses the command line, runs the command, and turns its end into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    ondine::cli::complete();
    match ondine::cli::Cli::from_command_line().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ondine: {error:#}");
            ondine::cli::exit_code(&error)
        }
    }
}
