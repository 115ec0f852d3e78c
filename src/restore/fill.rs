//! Puts page data where it belongs: into the memory of the processes being rebuilt, and into the
//! files that had no other place.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use thiserror::Error;

use super::control::{ControlError, Rebuilt};
use super::inheritance::{Inheritance, Share, without};
use crate::image::reader::AHEAD;
use crate::image::{Chunk, ReadError, Reader, Run};
use crate::model::address::RemoteAddr;
use crate::model::id::{ObjectId, Pid};
use crate::model::job::Job;
use crate::model::number::PAGE_SIZE;
use crate::sys::memory::RemoteMemory;

/// Why page data could not be put in place.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum FillError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("writing the memory of process {pid} at {address}: {source}")]
    WriteMemory { pid: Pid, address: RemoteAddr, source: io::Error },
    #[error("writing the content of object {object} at {offset}: {source}")]
    WriteContent { object: ObjectId, offset: u64, source: io::Error },
    #[error("duplicating a descriptor: {source}")]
    Duplicate { source: io::Error },
    #[error("object {object} of the image belongs to nothing that is restored")]
    FindObject { object: ObjectId },
}

/// A file that gets the content of an inode.
#[derive(Debug)]
pub struct Target {
    /// The file.
    pub file: OwnedFd,
    /// Where the first page goes in it.
    pub base: u64,
}

/// Where an object's pages go.
enum Place<'a> {
    /// What is in its share of estates is there already.
    Memory(Pid, &'a RemoteMemory, Option<&'a Share>),
    Content(File, u64),
}

/// Writes every page of the image that is not there yet to its place, on all processors. `rebuilt` are
/// the processes by their indices in the job.
///
/// # Errors
/// The first failure.
pub fn fill(
    reader: &Reader,
    job: &Job,
    rebuilt: &BTreeMap<usize, Rebuilt<'_>>,
    inheritance: &Inheritance,
    contents: &BTreeMap<ObjectId, Target>,
) -> Result<(), FillError> {
    let mut targets = BTreeMap::new();
    for (index, process) in rebuilt {
        let record = process.process();
        let space = &job.address_spaces[super::tree::index_of(record.mm.0)];
        let share = inheritance.shares.get(index);
        targets.insert(space.object, Place::Memory(record.pid, process.memory()?, share));
    }
    for (object, Target { file, base }) in contents {
        let file = file.try_clone().map_err(|source| FillError::Duplicate { source })?;
        targets.insert(*object, Place::Content(File::from(file), *base));
    }
    // What is there already has been read and checked by those who put it there. But a page that a process
    // has from its parent, because both have the same content, may be stored for each of them: a chunk of
    // such pages only is read here and goes nowhere, so that no damage is passed over.
    let read = inheritance.chunks_read();
    let chunks: Vec<(&Chunk, Vec<Run>)> = reader
        .chunks()
        .iter()
        .enumerate()
        .map(|(number, chunk)| (number, chunk, missing(chunk, &targets)))
        .filter(|(number, _, missing)| !missing.is_empty() || !read.contains(number))
        .map(|(_, chunk, missing)| (chunk, missing))
        .collect();
    for (chunk, _) in chunks.iter().take(AHEAD) {
        reader.expect(chunk);
    }
    let next = AtomicUsize::new(0);
    let workers = thread::available_parallelism().map_or(1, usize::from).min(chunks.len().max(1));
    let work = || -> Result<(), FillError> {
        let mut buffer = Vec::new();
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some((chunk, runs)) = chunks.get(place) else { return Ok(()) };
            if let Some((later, _)) = chunks.get(place + AHEAD) {
                reader.expect(later);
            }
            put(reader.decode(chunk, &mut buffer)?, runs, &targets)?;
        }
    };
    thread::scope(|scope| {
        // With fewer threads than wished for it takes longer, and that is all.
        let start = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        let started: Vec<_> = (1..workers).map_while(start).collect();
        let own = work();
        started
            .into_iter()
            .try_fold(own?, |(), worker| worker.join().expect("a worker that panics is a defect"))
    })
}

/// Puts those of a chunk's pages in their places that `runs` name.
fn put(
    pages: &[u8],
    runs: &[Run],
    targets: &BTreeMap<ObjectId, Place<'_>>,
) -> Result<(), FillError> {
    for run in runs {
        let bytes = run.bytes_in(pages);
        let position = run.first_page.saturating_mul(PAGE_SIZE);
        match targets.get(&run.object) {
            Some(Place::Memory(pid, memory, _)) => {
                let address = RemoteAddr(position);
                memory.write(address, bytes).map_err(|source| FillError::WriteMemory {
                    pid: *pid,
                    address,
                    source,
                })?;
            }
            Some(Place::Content(file, base)) => {
                file.write_all_at(bytes, base.saturating_add(position)).map_err(|source| {
                    FillError::WriteContent { object: run.object, offset: position, source }
                })?
            }
            None => return Err(FillError::FindObject { object: run.object }),
        }
    }
    Ok(())
}

/// What of a chunk is not in its place yet.
fn missing(chunk: &Chunk, targets: &BTreeMap<ObjectId, Place<'_>>) -> Vec<Run> {
    let missing_of = |run: &Run| {
        let Some(Place::Memory(_, _, Some(share))) = targets.get(&run.object) else {
            return vec![*run];
        };
        let kept = share.keeps.iter().map(|kept| kept.pages());
        let rest = without(run.first_page..run.end_page(), kept);
        rest.into_iter().filter_map(|pages| run.within(&pages)).collect()
    };
    chunk.runs.iter().flat_map(missing_of).collect()
}
