//! `rckpt core`: a process of a checkpoint as a core file for debuggers.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::image::core_file;
use crate::image::reader::Trust;
use crate::job::directory::find;
use crate::model::code::requests;
use crate::model::id::Pid;
use crate::sys::whole_file::NewFile;

use super::failure::Failure;
use super::progress::Progress;
use super::{options, output};

/// Write a process of a checkpoint as a core file, for gdb and other debuggers
#[derive(clap::Args)]
pub struct Arguments {
    /// A job's directory, or one checkpoint in it
    dir: PathBuf,
    /// The checkpoint (default: the latest)
    #[arg(long, value_name = "GEN")]
    at: Option<String>,
    /// The process, by its id in the job (default: the root)
    #[arg(long, value_name = "PID")]
    pid: Option<i32>,
    /// The core file, which must not exist yet (default: core.PID)
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// What was written, as JSON.
#[derive(Serialize)]
struct Report {
    path: String,
    pid: i32,
    program: String,
    threads: usize,
    bytes: u64,
}

/// Writes the core file.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { dir, at, pid, output, json } = arguments;
    // Looking starts nothing, so it does not matter whose the checkpoint is.
    let mut reader = find(&dir, at.as_deref(), Trust::Anybody)?.read(Trust::Anybody)?;
    let pid = pid.map_or(reader.job().root, Pid);
    let all = core_file::page_bytes(&reader, pid);
    let all = all.map_err(|error| Failure::environment(error.code(), error))?;
    let progress = Progress::begin("writing the core file", Some(all));
    if let Some(watch) = progress.watch() {
        reader.watch(watch);
    }
    let job = reader.job();
    let path = output.unwrap_or_else(|| format!("core.{pid}").into());
    // It holds what the image does, which others may not read.
    let new = NewFile::begin(&path, 0o600).map_err(|error| cannot_make(&path, &error))?;
    let written = core_file::write(&reader, pid, &new.file);
    progress.end();
    let summary = written.map_err(|error| Failure::environment(error.code(), error))?;
    new.publish().map_err(|error| cannot_make(&path, &error))?;
    let executable = job.processes.iter().find(|process| process.pid == pid).and_then(|process| {
        let space = job.address_spaces.get(usize::try_from(process.mm.0).ok()?)?;
        job.inodes.get(usize::try_from(space.executable.0).ok()?)
    });
    let program = executable.map(|inode| inode.path.to_string()).unwrap_or_default();
    let path = path.display().to_string();
    if json {
        let (threads, bytes) = (summary.threads, summary.length);
        output::print_json(&Report { path, pid: pid.0, program, threads, bytes })?;
    } else {
        output::print(format_args!(
            "{path}: process {pid}, {} {}, {} (holes included); gdb {program} {path}\n",
            summary.threads,
            if summary.threads == 1 { "thread" } else { "threads" },
            options::size(summary.length)
        ))?;
    }
    Ok(0)
}

fn cannot_make(path: &Path, error: &io::Error) -> Failure {
    Failure::environment(
        requests::CANNOT_WRITE_FILE,
        format_args!("make the core file {}: {error}", path.display()),
    )
}
