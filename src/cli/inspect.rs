//! `rckpt inspect`: what is in a checkpoint.
//!
//! [`report`] makes a report of the records, [`render`] makes words of a report, [`page`] a page for a browser.

pub mod descriptors;
mod displaced;
mod fate;
pub mod memory;
mod objects;
mod page;
mod render;
mod report;
mod sharing;
mod socket;
mod timers;

use std::path::PathBuf;

use crate::image::reader::Trust;
use crate::job::directory::{Found, find};
use crate::job::history::{self, Past};
use crate::job::restore::foresee;
use crate::model::code::requests;
use crate::sys::whole_file;

use self::report::Report;
use super::failure::Failure;
use super::output;

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
    /// Write one page for a browser, with pictures and the job's history, to FILE
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    html: Option<PathBuf>,
}

/// Inspects.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { dir, at, json, html } = arguments;
    // Looking starts nothing, so it does not matter whose the checkpoint is.
    let found = find(&dir, at.as_deref(), Trust::Anybody)?;
    let report = whole_report(&found)?;
    if let Some(path) = html {
        whole_file::replace(&path, page::page(&report).as_bytes(), None).map_err(|error| {
            Failure::environment(
                requests::CANNOT_WRITE_FILE,
                format_args!("write the page {}: {error}", path.display()),
            )
        })?;
        output::print(format_args!("{}\n", path.display()))?;
    } else if json {
        output::print_json(&report)?;
    } else {
        output::print(render::render(&report))?;
    }
    Ok(0)
}

/// The report of a checkpoint with all that lies around it.
fn whole_report(found: &Found) -> Result<Report, Failure> {
    let reader = found.read(Trust::Anybody)?;
    let mut report = report::report(&reader);
    let (decisions, problems) = foresee(found, &reader);
    report.files = fate::fates(reader.job(), &decisions, &problems);
    report.making = history::of_generation(reader.directory()).unwrap_or_else(|error| {
        output::say(format_args!("how this checkpoint was made is not known: {error}"));
        None
    });
    if let Some(directory) = &found.directory {
        report.displaced = displaced::find(directory.path()).map_err(|error| {
            Failure::environment(
                requests::DIRECTORY_UNUSABLE,
                format_args!("look for what restores have set aside: {error}"),
            )
        })?;
        report.history = history::of_job(directory)?;
    }
    if let (Some(made), true) = (&report.making, report.history.checkpoints.is_empty()) {
        let name = history::name_of(&report.path);
        report.history.checkpoints = vec![Past { name, present: true, made: made.clone() }];
    }
    Ok(report)
}
