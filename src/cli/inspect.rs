//! `rckpt inspect`: what is in a checkpoint.
//!
//! [`report`] makes a report of the records, [`render`] makes words of a report.

mod displaced;
mod render;
mod report;
mod socket;

use std::path::PathBuf;

use crate::image::reader::Trust;
use crate::job::directory::find;

use super::failure::Failure;
use super::output;
use crate::model::code::requests;

/// Show what is in a checkpoint: process tree, memory map, descriptors, sizes
#[derive(clap::Args)]
pub struct Arguments {
    /// A job's directory, or one checkpoint in it
    dir: PathBuf,
    /// The checkpoint (default: the latest)
    #[arg(long, value_name = "GEN")]
    at: Option<String>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// Inspects.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { dir, at, json } = arguments;
    // Looking starts nothing, so it does not matter whose the checkpoint is.
    let found = find(&dir, at.as_deref(), Trust::Anybody)?;
    let reader = found.read(Trust::Anybody)?;
    let mut report = report::report(&reader);
    if let Some(directory) = &found.directory {
        report.displaced = displaced::find(directory.path()).map_err(|error| {
            Failure::environment(
                requests::DIRECTORY_UNUSABLE,
                format_args!("look for what restores have set aside: {error}"),
            )
        })?;
    }
    if json {
        output::print_json(&report)?;
    } else {
        output::print(render::render(&report))?;
    }
    Ok(0)
}
