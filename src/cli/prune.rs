//! `rckpt prune`: removes old checkpoints of a job.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::Serialize;

use crate::image::reader::Trust;
use crate::job::directory::JobDirectory;
use crate::job::retention;

use super::failure::Failure;
use super::{options, output};

/// Remove all but the newest checkpoints of a job
#[derive(clap::Args)]
pub struct Arguments {
    /// The job's directory
    dir: PathBuf,
    /// How many checkpoints to keep
    #[arg(long, value_name = "N", value_parser = options::count)]
    keep: NonZeroUsize,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// What is gone, as JSON.
#[derive(Serialize)]
struct Report {
    removed: Vec<String>,
}

/// Prunes, and prints what is gone.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { dir, keep, json } = arguments;
    let directory = JobDirectory::open(&dir, Trust::Own)?;
    let mut removed = retention::by_number(&directory, keep)?;
    if let Some(local) = directory.local(Trust::Own)? {
        removed.extend(retention::by_number(&local, keep)?);
    }
    let removed: Vec<String> =
        removed.iter().map(|generation| generation.path.display().to_string()).collect();
    if json {
        output::print_json(&Report { removed })?;
    } else if removed.is_empty() {
        output::tell(format_args!(
            "there is nothing to remove: {} has at most {keep}",
            dir.display()
        ));
    } else {
        for path in removed {
            output::print(format_args!("removed {path}\n"))?;
        }
    }
    Ok(0)
}
