//! `rckpt man`: the manual, as roff for `man -l -`.

use std::io;

use clap::CommandFactory;
use clap_mangen::Man;

use super::failure::Failure;
use super::{CommandLine, output};
use crate::model::code::supervising;

/// Print the manual (`rckpt man | man -l -`)
#[derive(clap::Args)]
pub struct Arguments {}

/// Prints one page for rckpt itself and one section after the other for its commands.
pub fn execute(Arguments {}: Arguments) -> Result<u8, Failure> {
    let mut text = Vec::new();
    render(&mut text).map_err(|error| {
        Failure::internal(supervising::INTERNAL, format_args!("write the manual: {error}"))
    })?;
    output::print(String::from_utf8_lossy(&text))?;
    Ok(0)
}

fn render(text: &mut Vec<u8>) -> io::Result<()> {
    let mut command = CommandLine::command();
    command.build();
    Man::new(command.clone()).render(text)?;
    for subcommand in command.get_subcommands() {
        let name = format!("rckpt {}", subcommand.get_name());
        Man::new(subcommand.clone().bin_name(name)).render(text)?;
    }
    Ok(())
}
