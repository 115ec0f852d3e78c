//! What a process that is being built does about estates, before or after its children are forked: it maps
//! those that it founds, drops what its parent had and it has not, and writes what it has of its own.
//!
//! It does as the plan says, and decides nothing.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::thread;

use nix::errno::Errno;
use thiserror::Error;

use super::huge;
use super::inheritance::{Estate, Extent, Inheritance, Pages, Work};
use super::opened::Opened;
use crate::image::reader::AHEAD;
use crate::image::{ReadError, Reader};
use crate::model::address::RemoteAddr;
use crate::model::id::Pid;
use crate::model::number::{PAGE_SIZE, to_usize};
use crate::sys::huge_pages;
use crate::sys::own_memory::{self, Holding, Source};

/// Why a process could not be given its estates.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum EstateError {
    #[error("mapping {length} bytes at {address} for process {pid} and its children: {source}")]
    Map { pid: Pid, address: RemoteAddr, length: u64, source: Errno },
    #[error("a file that process {pid} maps at {address} has not been opened")]
    FindFile { pid: Pid, address: RemoteAddr },
    #[error("dropping pages of process {pid} at {address}: {source}")]
    Drop { pid: Pid, address: RemoteAddr, source: Errno },
    #[error("page {page:#x} of process {pid} lies in no estate")]
    FindPage { pid: Pid, page: u64 },
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// The estates that a process has, by their numbers in the plan. A child has a copy of its own.
pub type Holdings = BTreeMap<usize, Holding>;

/// Pieces of memory that get pages of one chunk: the first page's place in it, and the memory.
type Pieces<'a> = Vec<(u64, &'a mut [u8])>;

/// How many chunks are read between two signs of life.
const SIGN_OF_LIFE: usize = 64;
/// Most threads in one process: others may be at the same.
const WORKERS_LIMIT: usize = 8;
/// Bytes of a piece whose pages are had in one call: fewer are had as quickly by faults.
const WORTH_POPULATING: usize = 64 << 10;
/// How many chunks or huge pages make another thread worth its while.
const PIECES_OF_WORKER: usize = 16;

/// Does `work` for process `pid`, which has `holdings` so far. `alive` is called now and then, from
/// any thread.
///
/// # Errors
/// When memory cannot be had, or the image not be read.
pub fn take(
    pid: Pid,
    work: &Work,
    site: (&Reader, &Inheritance, &Opened),
    holdings: &mut Holdings,
    alive: &(dyn Fn() + Sync),
) -> Result<(), EstateError> {
    let (reader, inheritance, opened) = site;
    for number in &work.founds {
        let Some(estate) = inheritance.estates.get(*number) else { continue };
        holdings.insert(*number, found(pid, estate, opened)?);
    }
    for (number, pages) in &work.drops {
        let address = RemoteAddr(pages.start * PAGE_SIZE);
        let (Some(estate), Some(holding)) =
            (inheritance.estates.get(*number), holdings.get_mut(number))
        else {
            return Err(EstateError::FindPage { pid, page: pages.start });
        };
        holding
            .forget(address.0 - estate.range.start.0, (pages.end - pages.start) * PAGE_SIZE)
            .map_err(|source| EstateError::Drop { pid, address, source })?;
    }
    put_huge_pages(work, &inheritance.estates, holdings);
    let chunks = pieces(pid, work, &inheritance.estates, holdings)?;
    Ok(fill(reader, chunks, alive)?)
}

/// Maps an estate, in its own place if that is free.
fn found(pid: Pid, estate: &Estate, opened: &Opened) -> Result<Holding, EstateError> {
    let address = estate.range.start;
    let source = match estate.file {
        None => Source::Nothing,
        Some((inode, offset)) => {
            let descriptor = opened.mapped.files.get(&(inode, false)).copied();
            let descriptor = descriptor.ok_or(EstateError::FindFile { pid, address })?;
            Source::File { descriptor, offset }
        }
    };
    let map = |range| Holding::map(range, source, estate.no_reserve);
    let mapped = match map(estate.range) {
        Err(Errno::EEXIST) => map(estate.spare_range()),
        outcome => outcome,
    };
    let length = estate.range.len();
    let mut holding = mapped.map_err(|source| EstateError::Map { pid, address, length, source })?;
    // Whether it can be heeded is found out when it is set for good.
    match estate.pages {
        Pages::Huge => holding.advise(true).unwrap_or_default(),
        Pages::Small => holding.advise(false).unwrap_or_default(),
        Pages::Any | Pages::Quick => {}
    }
    Ok(holding)
}

/// Has huge pages where those that `work` founds will be filled without a gap.
fn put_huge_pages(work: &Work, estates: &[Estate], holdings: &Holdings) {
    if !huge_pages::may_be_asked_for() {
        return;
    }
    for number in &work.founds {
        let (Some(estate), Some(holding)) = (estates.get(*number), holdings.get(number)) else {
            continue;
        };
        if estate.pages != Pages::Quick || holding.range() != estate.range {
            continue;
        }
        let own = work.writes.iter().filter(|(estate, _)| estate == number);
        let mut extents: Vec<Extent> = own.map(|(_, extent)| *extent).collect();
        extents.sort_by_key(|extent| extent.first_page);
        let start = estate.range.start.0;
        let offsets: Vec<u64> =
            huge::places(&extents).into_iter().map(|page| page * PAGE_SIZE - start).collect();
        huge::put(holding, &offsets, workers(offsets.len()));
    }
}

/// How many threads do `pieces` of work of one or two MiB.
fn workers(pieces: usize) -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    processors.min(pieces / PIECES_OF_WORKER + 1).min(WORKERS_LIMIT)
}

/// The memory that each chunk's pages go to.
fn pieces<'a>(
    pid: Pid,
    work: &Work,
    estates: &[Estate],
    holdings: &'a mut Holdings,
) -> Result<BTreeMap<usize, Pieces<'a>>, EstateError> {
    let mut by_estate: BTreeMap<usize, Vec<Extent>> = BTreeMap::new();
    for (estate, extent) in &work.writes {
        by_estate.entry(*estate).or_default().push(*extent);
    }
    let mut chunks: BTreeMap<usize, Pieces<'a>> = BTreeMap::new();
    for (number, holding) in holdings {
        let (Some(mut extents), Some(estate)) = (by_estate.remove(number), estates.get(*number))
        else {
            continue;
        };
        extents.sort_by_key(|extent| extent.first_page);
        let mut next = estate.range.start.0 / PAGE_SIZE;
        let mut rest = holding.bytes(0, estate.range.len()).unwrap_or_default();
        for extent in extents {
            let page = extent.first_page;
            let missing = EstateError::FindPage { pid, page };
            let piece = page
                .checked_sub(next)
                .and_then(|skipped| split(&mut rest, skipped))
                .and_then(|_| split(&mut rest, extent.pages));
            let piece = piece.ok_or(missing)?;
            next = page + extent.pages;
            chunks.entry(extent.chunk).or_default().push((extent.slot, piece));
        }
    }
    match by_estate.values().flatten().next() {
        Some(extent) => Err(EstateError::FindPage { pid, page: extent.first_page }),
        None => Ok(chunks),
    }
}

/// Takes `pages` pages off the front of `memory`.
fn split<'a>(memory: &mut &'a mut [u8], pages: u64) -> Option<&'a mut [u8]> {
    let length = to_usize(pages.checked_mul(PAGE_SIZE)?);
    let (front, rest) = std::mem::take(memory).split_at_mut_checked(length)?;
    *memory = rest;
    Some(front)
}

/// Reads `chunks` into their pieces, on several processors when there is much to read.
fn fill(
    reader: &Reader,
    chunks: BTreeMap<usize, Pieces<'_>>,
    alive: &(dyn Fn() + Sync),
) -> Result<(), ReadError> {
    let numbers: Vec<usize> = chunks.keys().copied().collect();
    let expect = |place: usize| {
        if let Some(chunk) = numbers.get(place).and_then(|number| reader.chunks().get(*number)) {
            reader.expect(chunk);
        }
    };
    (0..AHEAD).for_each(expect);
    let work_left = Mutex::new(chunks.into_iter().enumerate());
    let work = || -> Result<(), ReadError> {
        let mut buffers = Buffers::default();
        loop {
            let next = work_left.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((place, (number, pieces))) = next else { return Ok(()) };
            expect(place + AHEAD);
            put(reader, number, pieces, &mut buffers)?;
            if place % SIGN_OF_LIFE == SIGN_OF_LIFE - 1 {
                alive();
            }
        }
    };
    thread::scope(|scope| {
        // With fewer threads than wished for it takes longer, and that is all.
        let start = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        let started: Vec<_> = (1..workers(numbers.len())).map_while(start).collect();
        let own = work();
        started.into_iter().try_fold(own.map(drop)?, |(), worker| {
            worker.join().expect("a worker that panics is a defect")
        })
    })
}

/// Room to work in.
#[derive(Debug, Default)]
struct Buffers {
    plain: Vec<u8>,
    packed: Vec<u8>,
}

/// Reads a chunk, right into its place where it has one place.
fn put(
    reader: &Reader,
    number: usize,
    mut pieces: Pieces<'_>,
    buffers: &mut Buffers,
) -> Result<(), ReadError> {
    let Some(chunk) = reader.chunks().get(number) else { return Ok(()) };
    for (_, piece) in pieces.iter_mut().filter(|(_, piece)| piece.len() >= WORTH_POPULATING) {
        own_memory::populate(piece);
    }
    if let [(0, whole)] = pieces.as_mut_slice()
        && whole.len() == chunk.length()
    {
        return reader.decode_into(chunk, whole, &mut buffers.packed);
    }
    let plain = reader.decode(chunk, &mut buffers.plain)?;
    for (slot, piece) in pieces {
        let start = to_usize(slot * PAGE_SIZE);
        piece.copy_from_slice(&plain[start..start + piece.len()]);
    }
    Ok(())
}
