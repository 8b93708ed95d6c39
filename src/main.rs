//! The program: parses the command line, runs the command, and turns its end into an exit code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    ondine::cli::complete();
    match ondine::cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ondine: {error:#}");
            ondine::cli::exit_code(&error)
        }
    }
}
