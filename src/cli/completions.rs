//! `rckpt completions`: what a shell needs to complete rckpt's arguments.

use clap::CommandFactory;
use clap_complete::Shell;

use super::failure::Failure;
use super::{CommandLine, output};

/// Print what a shell needs to complete rckpt's arguments
#[derive(clap::Args)]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

/// Prints the completions.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut CommandLine::command(), "rckpt", &mut text);
    output::print(String::from_utf8_lossy(&text))?;
    Ok(0)
}
