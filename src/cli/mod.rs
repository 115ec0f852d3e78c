//! The command line: raw arguments become validated options, and those become one call.
//!
//! The only room that prints, and that turns the kind of an error into an exit status.

use std::process::ExitCode;

/// Runs the command that `arguments` (program name first) ask for.
pub fn run(arguments: std::env::ArgsOs) -> ExitCode {
    drop(arguments);
    ExitCode::from(2)
}
