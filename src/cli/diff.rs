//! `rckpt diff`: what changed from one checkpoint of a job to another.
//!
//! [`compare`] makes a report of two generations, [`render`] makes words of it.

mod compare;
mod render;

use std::path::{Path, PathBuf};

use crate::image::reader::Trust;
use crate::job::directory::{FindError, Found, find};
use crate::model::code::requests;
use crate::model::number::to_u64;

use super::failure::Failure;
use super::output;
use super::progress::Progress;

/// Show what changed from one checkpoint of a job to another
#[derive(clap::Args)]
pub struct Arguments {
    /// A job's directory, or the earlier checkpoint itself
    #[arg(value_name = "DIR|GEN1")]
    first: PathBuf,
    /// The later checkpoint itself
    #[arg(value_name = "GEN2", conflicts_with_all = ["from", "to"])]
    second: Option<PathBuf>,
    /// The earlier checkpoint in DIR (default: the one before the other)
    #[arg(long, value_name = "GEN")]
    from: Option<String>,
    /// The later checkpoint in DIR (default: the latest)
    #[arg(long, value_name = "GEN")]
    to: Option<String>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// Compares.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { first, second, from, to, json } = arguments;
    let (earlier, later) = match second {
        // Looking starts nothing, so it does not matter whose the checkpoints are.
        Some(second) => (find(&first, None, Trust::Anybody)?, find(&second, None, Trust::Anybody)?),
        None => in_directory(&first, from.as_deref(), to.as_deref())?,
    };
    let (earlier, later) = (earlier.read(Trust::Anybody)?, later.read(Trust::Anybody)?);
    let chunks = earlier.chunks().iter().chain(later.chunks());
    let progress = Progress::begin("comparing", Some(chunks.map(|it| to_u64(it.length())).sum()));
    let mut done = 0;
    let report = compare::compare(&earlier, &later, &mut |more| {
        done += more;
        progress.reach(done);
    });
    progress.end();
    let report = report?;
    if json {
        output::print_json(&report)?;
    } else {
        output::print(render::render(&report))?;
    }
    Ok(0)
}

/// Two checkpoints of one directory.
fn in_directory(
    path: &Path,
    from: Option<&str>,
    to: Option<&str>,
) -> Result<(Found, Found), Failure> {
    let later = find(path, to, Trust::Anybody)?;
    if let Some(from) = from {
        return Ok((find(path, Some(from), Trust::Anybody)?, later));
    }
    let alone = || {
        let name = later.generation.path.display();
        let message = format_args!("there is no checkpoint before {name} to compare it with");
        Failure::user(requests::NOTHING_TO_COMPARE, message)
            .hint("rckpt list DIR shows what is there; rckpt diff GEN1 GEN2 compares any two")
    };
    let Some(directory) = &later.directory else { return Err(alone()) };
    let all = directory.all_generations(Trust::Anybody).map_err(FindError::from)?;
    let before = all.into_iter().rfind(|other| other.number < later.generation.number);
    let before = before.ok_or_else(alone)?;
    Ok((find(&before.path, None, Trust::Anybody)?, later))
}
