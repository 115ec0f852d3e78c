//! `rckpt verify`: every checksum and cross-reference of the checkpoints in a directory.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::image::reader::{Depth, Reader, Trust};
use crate::job::directory::{FindError, Found, Generation, GenerationError, JobDirectory, find};
use crate::model::code::Code;
use crate::model::number::to_u64;

use super::failure::{Failure, chain};
use super::progress::Progress;
use super::{options, output};

/// Check every checksum and cross-reference in DIR
#[derive(clap::Args)]
pub struct Arguments {
    /// A job's directory, or one checkpoint in it
    dir: PathBuf,
    /// Decode all page data, too
    #[arg(long)]
    deep: bool,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Serialize)]
struct Report {
    whole: usize,
    damaged: usize,
    checkpoints: Vec<Checkpoint>,
}

#[derive(Serialize)]
struct Checkpoint {
    path: String,
    latest: bool,
    whole: bool,
    /// What is wrong with it, in the catalogue and in words.
    code: Option<Code>,
    problem: Option<String>,
    /// Bytes on the disk, all of which were read.
    bytes: Option<u64>,
}

/// Verifies.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { dir, deep, json } = arguments;
    let depth = if deep { Depth::Decoded } else { Depth::Stored };
    let report = verify(&dir, depth)?;
    if json {
        output::print_json(&report)?;
    } else {
        output::print(render(&report))?;
    }
    Ok(if report.damaged == 0 { 0 } else { 1 })
}

/// Checks the checkpoint that `path` names, or all in the job's directory that it names. Nothing is
/// started, so it does not matter whose they are.
fn verify(path: &Path, depth: Depth) -> Result<Report, Failure> {
    let found = find(path, None, Trust::Anybody)?;
    let whole_directory = match &found.directory {
        // The path named the directory, not the checkpoint that was found in it.
        Some(directory) => path.canonicalize().is_ok_and(|path| path == directory.path()),
        None => false,
    };
    let latest = match &found.directory {
        Some(directory) => directory.latest_of_all(Trust::Anybody)?,
        None => None,
    };
    let checkpoints = match (&found.directory, whole_directory) {
        (Some(directory), true) => all(directory, latest.as_ref(), depth)?,
        _ => {
            let Found { generation, .. } = &found;
            let read = found.read(Trust::Anybody);
            vec![checkpoint(generation, latest.as_ref(), read, depth)]
        }
    };
    let whole = checkpoints.iter().filter(|checkpoint| checkpoint.whole).count();
    Ok(Report { whole, damaged: checkpoints.len() - whole, checkpoints })
}

fn all(
    directory: &JobDirectory,
    latest: Option<&Generation>,
    depth: Depth,
) -> Result<Vec<Checkpoint>, FindError> {
    let generations = directory.all_generations(Trust::Anybody)?;
    let check = |generation: &Generation| {
        checkpoint(generation, latest, directory.read(generation, Trust::Anybody), depth)
    };
    Ok(generations.iter().map(check).collect())
}

fn checkpoint(
    generation: &Generation,
    latest: Option<&Generation>,
    read: Result<Reader, GenerationError>,
    depth: Depth,
) -> Checkpoint {
    let verified = read.and_then(|reader| {
        let (all, chunks) = (reader.page_bytes(), to_u64(reader.chunks().len()).max(1));
        let progress = Progress::begin("checking", Some(all));
        let reached = |done: usize| progress.reach(all / chunks * to_u64(done));
        let checked = reader.verify(depth, &reached);
        progress.end();
        checked?;
        Ok(reader.stored_bytes())
    });
    Checkpoint {
        path: generation.path.display().to_string(),
        latest: latest == Some(generation),
        whole: verified.is_ok(),
        code: verified.as_ref().err().map(GenerationError::code),
        problem: verified.as_ref().err().map(|error| chain(error)),
        bytes: verified.ok(),
    }
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    for checkpoint in &report.checkpoints {
        let name = &checkpoint.path;
        let latest = if checkpoint.latest { ", the latest" } else { "" };
        let line = match (&checkpoint.problem, checkpoint.bytes) {
            (Some(problem), _) => writeln!(text, "{name}: DAMAGED{latest}: {problem}"),
            (None, bytes) => {
                writeln!(text, "{name}: whole{latest} ({})", options::size(bytes.unwrap_or(0)))
            }
        };
        line.expect("a string takes everything");
    }
    text
}
