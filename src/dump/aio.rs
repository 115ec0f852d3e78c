//! Collects contexts of asynchronous I/O (io_setup(2)): their rings, and the events that wait in them.
//!
//! The kernel tells nobody how many requests are under way in a context. While the process stands still it
//! submits none, and those to disks soon end: a ring whose end does not move for a while is taken to be at
//! rest, and the user is told what that rests on.

use std::thread::sleep;
use std::time::Duration;

use super::error::CollectError;
use super::refusal::{MappingRefusal, Obstacle};
use crate::model::address::RemoteAddr;
use crate::model::id::Bytes;
use crate::model::memory::{AddressSpace, AioContext, Backing, Prot, Vma};
use crate::model::number::{to_u64, to_usize};
use crate::tracer::injection::Call;
use crate::tracer::tree::{Process, Tree};

/// How long the end of a ring must not move.
const QUIET: Duration = Duration::from_millis(5);

/// `struct aio_ring` before its events (fs/aio.c), in words of 32 bits.
const HEADER_WORDS: usize = 8;
const HEADER_SIZE: usize = HEADER_WORDS * 4;
const MAGIC: u32 = 0xa10a_10a1;
/// Bytes of a `struct io_event`.
const EVENT_SIZE: usize = 32;

/// Fills in the contexts of a process, whose mappings are known, and gives what its user should know.
///
/// # Errors
/// When its memory cannot be read, or it cannot be asked. What cannot be saved becomes an obstacle.
pub(super) fn collect(
    tree: &mut Tree,
    place: usize,
    space: &mut AddressSpace,
    obstacles: &mut Vec<Obstacle>,
) -> Result<Option<String>, CollectError> {
    let is_ring = |vma: &&Vma| vma.backing == Backing::AioRing;
    let rings: Vec<Vma> = space.vmas.iter().filter(is_ring).cloned().collect();
    if rings.is_empty() {
        return Ok(None);
    }
    let pid = tree.processes()[place].task();
    let mut headers = Vec::new();
    for ring in &rings {
        headers.push(header(&tree.processes()[place], ring.range.start)?);
    }
    let live = ask(tree, place, &rings)?;
    sleep(QUIET);
    for ((ring, before), live) in rings.iter().zip(headers).zip(live) {
        let process = &tree.processes()[place];
        let kind = if !live || !is_whole(ring, &before) {
            MappingRefusal::AioRing
        } else if header(process, ring.range.start)? != before {
            MappingRefusal::AioUnderWay
        } else {
            space.aio.push(context(process, ring.range.start, &before)?);
            continue;
        };
        let name = Bytes::from(&b"[aio]"[..]);
        obstacles.push(Obstacle::Mapping { pid, range: ring.range, name, kind });
    }
    Ok(Some(format!(
        "process {pid} has an asynchronous I/O context (io_setup): nobody can see whether requests are \
         under way in it that take longer than {} ms; if so, they are lost by a restore",
        QUIET.as_millis()
    )))
}

/// What a ring says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    places: u32,
    head: u32,
    tail: u32,
    magic: u32,
    incompatible: u32,
    length: u32,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_SIZE]) -> Self {
        let mut words = [0; HEADER_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        let [_, places, head, tail, magic, _, incompatible, length] = words;
        // Programs take events by setting the head, and the kernel forgives them one too large.
        let wrap = |place: u32| place.checked_rem(places).unwrap_or_default();
        Self { places, head: wrap(head), tail: wrap(tail), magic, incompatible, length }
    }
}

/// Whether a mapping shows all of a ring that is understood.
fn is_whole(ring: &Vma, header: &Header) -> bool {
    let places = ring.range.len() / to_u64(EVENT_SIZE) - 1;
    header.magic == MAGIC
        && header.incompatible == 0
        && to_usize(u64::from(header.length)) == HEADER_SIZE
        && u64::from(header.places) == places
        && ring.prot == Prot::READ | Prot::WRITE
}

fn header(process: &Process, start: RemoteAddr) -> Result<Header, CollectError> {
    let mut bytes = [0; HEADER_SIZE];
    read(process, start, &mut bytes)?;
    Ok(Header::parse(&bytes))
}

fn context(
    process: &Process,
    start: RemoteAddr,
    header: &Header,
) -> Result<AioContext, CollectError> {
    let Header { places, head, tail, .. } = *header;
    let mut events = Vec::new();
    for number in 0..AioContext::waiting(places, head, tail) {
        let place = to_usize(u64::from((head + number) % places));
        let mut bytes = [0; EVENT_SIZE];
        let offset = to_u64(HEADER_SIZE + place * EVENT_SIZE);
        read(process, RemoteAddr(start.0 + offset), &mut bytes)?;
        let mut event = [0; 4];
        for (word, bytes) in event.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        events.push(event);
    }
    Ok(AioContext { start, places, head, tail, events })
}

fn read(process: &Process, address: RemoteAddr, bytes: &mut [u8]) -> Result<(), CollectError> {
    process.memory.read(address, bytes).map_err(|source| CollectError::Memory {
        operation: "read an asynchronous I/O ring",
        pid: process.task(),
        source,
    })
}

/// Which rings are those of contexts of the process: it asks each for no events.
fn ask(tree: &mut Tree, place: usize, rings: &[Vma]) -> Result<Vec<bool>, CollectError> {
    let pid = tree.processes()[place].task();
    let failed = |source| CollectError::Inject { pid, source };
    let mut injector = tree.inject(place).map_err(failed)?;
    let mut live = Vec::new();
    for ring in rings {
        let area = injector.scratch().start.0;
        let call = Call::new(libc::SYS_io_getevents, &[ring.range.start.0, 0, 0, area, 0]);
        live.push(injector.call(&call).map_err(failed)? == Ok(0));
    }
    injector.finish().map_err(failed)?;
    Ok(live)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_tells_its_ends() {
        let check = |head: u32, tail: u32, expected: (u32, u32, u32)| {
            let words = [7, 127, head, tail, MAGIC, 1, 0, 32];
            let bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
            let header = Header::parse(bytes.first_chunk().unwrap());
            let waiting = AioContext::waiting(header.places, header.head, header.tail);
            assert_eq!((header.head, header.tail, waiting), expected);
        };
        check(0, 0, (0, 0, 0));
        check(3, 10, (3, 10, 7));
        check(120, 2, (120, 2, 9));
        check(127, 5, (0, 5, 5));
    }
}
