//! The pipeline that page data goes through on its way into a generation, in bounded memory.
//!
//! The caller's thread fills buffers, worker threads compress them, one thread writes them in order.
//! A fixed number of buffers goes round and round, so that memory stays bounded and a slow disk holds
//! the caller back. What is in the buffers is the writer's business.

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::codec::{Codec, PAGE_HASH_LENGTH, Packer, PageHash, checksum};
use super::error::{Part, WriteError};
use super::format::PAGES_HEADER_LENGTH;
use super::index::{CHUNK_LENGTH, CHUNK_PAGES, Chunk, Run};
use super::queue::{Receiver, Sender, queue};
use super::writer::WriteOptions;
use crate::model::number::{PAGE_SIZE, page_align_up, to_u64, to_usize};

/// Most worker threads: each holds about 4 MiB, and a handful outruns any disk.
pub const WORKER_LIMIT: usize = 8;

/// Bytes after which the kernel is told to bring what was written to the disk, rather than letting
/// it pile up until the end.
const WRITE_BACK: u64 = 8 << 20;

const PAGE: usize = to_usize(PAGE_SIZE);

/// A set of buffers that goes round: filled by the caller, compressed by a worker, written, and
/// filled again.
pub(super) struct Slot {
    plain: Vec<u8>,
    packed: Vec<u8>,
    /// The hashes of the pages.
    hashes: Vec<u8>,
    runs: Vec<Run>,
}

impl Slot {
    fn new() -> Box<Self> {
        Box::new(Self {
            plain: vec![0; CHUNK_LENGTH],
            packed: Vec::new(),
            hashes: Vec::with_capacity(to_usize(u64::from(CHUNK_PAGES)) * PAGE_HASH_LENGTH),
            runs: Vec::new(),
        })
    }
}

/// A chunk that is being filled.
pub(super) struct Filling {
    slot: Box<Slot>,
    number: usize,
    pages: u32,
}

impl Filling {
    /// The chunk's number among those of the generation's own file.
    pub const fn number(&self) -> usize {
        self.number
    }

    /// Pages that it has.
    pub const fn pages(&self) -> u32 {
        self.pages
    }

    /// Pages that it has room for.
    pub const fn room(&self) -> u32 {
        CHUNK_PAGES - self.pages
    }

    /// The room behind its pages for `pages` more, at most [`Filling::room`].
    pub fn space(&mut self, pages: u32) -> &mut [u8] {
        let start = to_usize(u64::from(self.pages) * PAGE_SIZE);
        let length = to_usize(u64::from(pages) * PAGE_SIZE);
        &mut self.slot.plain[start..start + length]
    }

    /// Page `slot`, which it has or which was read into its room.
    pub fn page(&self, slot: u32) -> &[u8] {
        let start = to_usize(u64::from(slot) * PAGE_SIZE);
        &self.slot.plain[start..start + PAGE]
    }

    /// Takes page `from`, which was read into its room, as its next one: `run` without its place.
    pub fn take(&mut self, from: u32, hash: PageHash, run: Run) {
        let Slot { plain, hashes, runs, .. } = &mut *self.slot;
        if from != self.pages {
            let start = to_usize(u64::from(from) * PAGE_SIZE);
            plain.copy_within(start..start + PAGE, to_usize(u64::from(self.pages) * PAGE_SIZE));
        }
        hashes.extend_from_slice(&hash.0);
        Run::append(runs, Run { slot: self.pages, ..run });
        self.pages += 1;
    }
}

/// A chunk on its way: numbered by the caller, so that the file has the caller's order.
struct Numbered<T> {
    number: usize,
    slot: Box<Slot>,
    work: T,
}

/// What is to be packed: so many pages.
struct Filled {
    pages: u32,
}

/// What is to be written.
struct Packed {
    pages: u32,
    /// Bytes in the slot's packed buffer; `None`: store the plain ones.
    packed_length: Option<usize>,
    checksum: u64,
    stored_checksum: u64,
}

/// A file of page data that has been written, though maybe not to the disk.
pub(super) struct Written {
    pub file: File,
    pub length: u64,
    pub chunks: Vec<Chunk>,
    /// Whether it is to leave no trace in the page cache.
    pub gives_way: bool,
}

/// Something that each thread does once, as soon as it is told to.
#[derive(Clone, Default)]
struct Advice {
    told: Arc<OnceLock<fn()>>,
    followed: bool,
}

impl Advice {
    fn follow(&mut self) {
        if !self.followed
            && let Some(advice) = self.told.get()
        {
            advice();
            self.followed = true;
        }
    }
}

/// The threads and the queues between them. When one end of a queue is gone its other end fails,
/// so an error in the writing thread reaches the caller by itself, and nobody waits forever.
pub(super) struct Pipeline {
    filled: Sender<Numbered<Filled>>,
    free: Receiver<Box<Slot>>,
    slots_left: usize,
    next_number: usize,
    advice: Advice,
    workers: Vec<JoinHandle<()>>,
    writing: JoinHandle<Result<Written, WriteError>>,
}

impl Pipeline {
    pub fn start(file: File, path: PathBuf, options: WriteOptions) -> Result<Self, WriteError> {
        let workers = options.workers.clamp(1, WORKER_LIMIT);
        // One in each worker's hands and one waiting for it; one being filled, one being written.
        let slots = 2 * workers + 2;
        let (filled, to_pack) = queue();
        let (packed, to_write) = queue();
        let (emptied, free) = queue();
        let advice = Advice::default();
        let own = advice.clone();
        let rate = options.rate;
        let writing =
            spawn("rckpt-write", move || write_chunks(file, path, to_write, emptied, (own, rate)))?;
        let workers = (0..workers)
            .map(|_| {
                let (to_pack, packed, own) = (to_pack.clone(), packed.clone(), advice.clone());
                spawn("rckpt-pack", move || pack_chunks(options.codec, &to_pack, &packed, own))
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { filled, free, slots_left: slots, next_number: 0, advice, workers, writing })
    }

    /// Has every thread call `advice` before the next chunk; the first advice counts.
    pub fn advise(&self, advice: fn()) {
        self.advice.told.get_or_init(|| advice);
    }

    /// An empty chunk, waiting for one if all are under way; `None` when writing has failed. Only one
    /// is filled at a time.
    pub fn begin(&mut self) -> Option<Filling> {
        let slot = match self.free.try_receive() {
            Some(slot) => slot,
            None if self.slots_left > 0 => {
                self.slots_left -= 1;
                Slot::new()
            }
            None => self.free.receive()?,
        };
        Some(Filling { slot, number: self.next_number, pages: 0 })
    }

    /// Hands over a chunk; false when writing has failed.
    pub fn submit(&mut self, filling: Filling) -> bool {
        let Filling { slot, number, pages } = filling;
        self.next_number = number + 1;
        self.filled.send(Numbered { number, slot, work: Filled { pages } })
    }

    /// Waits for everything handed over to be written.
    pub fn finish(self) -> Result<Written, WriteError> {
        drop(self.filled);
        drop(self.free);
        for worker in self.workers {
            join(worker);
        }
        join(self.writing)
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, WriteError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|source| WriteError::StartThread { source })
}

/// The thread's result. Its panic is a bug in this file, and goes on in the caller.
fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn pack_chunks(
    codec: Codec,
    to_pack: &Receiver<Numbered<Filled>>,
    packed: &Sender<Numbered<Packed>>,
    mut advice: Advice,
) {
    let mut packer = Packer::new(codec);
    while let Some(Numbered { number, mut slot, work }) = to_pack.receive() {
        advice.follow();
        let plain = &slot.plain[..to_usize(u64::from(work.pages) * PAGE_SIZE)];
        let packed_length = packer.pack(plain, &mut slot.packed);
        let stored = packed_length.map_or(plain, |length| &slot.packed[..length]);
        let work = Packed {
            pages: work.pages,
            packed_length,
            checksum: checksum(&slot.hashes),
            stored_checksum: checksum(stored),
        };
        if !packed.send(Numbered { number, slot, work }) {
            // The writing thread has failed, and says why itself.
            return;
        }
    }
}

fn write_chunks(
    file: File,
    path: PathBuf,
    to_write: Receiver<Numbered<Packed>>,
    emptied: Sender<Box<Slot>>,
    (mut advice, rate): (Advice, Option<NonZeroU64>),
) -> Result<Written, WriteError> {
    let mut early = BTreeMap::new();
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut end = to_u64(PAGES_HEADER_LENGTH);
    let mut cache = Cache::default();
    let mut pacer = Pacer::default();
    while let Some(arrived) = to_write.receive() {
        advice.follow();
        early.insert(arrived.number, arrived);
        while let Some(Numbered { number, mut slot, work }) = early.remove(&chunks.len()) {
            let pages = work.pages;
            // Plain chunks start on a page. The hole before them reads as zeros.
            let (codec, offset, stored) = match work.packed_length {
                Some(length) => (Codec::Lz4, end, &slot.packed[..length]),
                None => {
                    let length = to_usize(u64::from(pages) * PAGE_SIZE);
                    (Codec::None, page_align_up(end), &slot.plain[..length])
                }
            };
            let write = |part, bytes: &[u8], offset| {
                file.write_all_at(bytes, offset).map_err(|source| WriteError::WriteFile {
                    path: path.clone(),
                    part,
                    source,
                })
            };
            if let Some(rate) = rate.filter(|_| advice.followed) {
                thread::sleep(pacer.delay(to_u64(stored.len()), rate, Instant::now()));
            }
            write(Part::Chunk(number), stored, offset)?;
            write(Part::Hashes(number), &slot.hashes, offset + to_u64(stored.len()))?;
            let chunk = Chunk {
                file: 0,
                offset,
                stored_length: u32::try_from(stored.len()).expect("a chunk has at most 1 MiB"),
                codec,
                pages,
                stored_checksum: work.stored_checksum,
                checksum: work.checksum,
                runs: slot.runs.as_slice().to_vec(),
            };
            end = chunk.end();
            chunks.push(chunk);
            slot.hashes.clear();
            slot.runs.clear();
            // Perhaps the caller fills no more; what is under way is still written.
            emptied.send(slot);
            cache.spare(&file, end, advice.followed);
        }
    }
    let gives_way = advice.told.get().is_some();
    Ok(Written { file, length: end, chunks, gives_way })
}

/// Keeps what is written from filling the page cache, which is the job's as long as it runs. What is written
/// of a job that stands still stays there: if it ends with this checkpoint, it is likely to come back soon.
#[derive(Default)]
struct Cache {
    /// Up to here the kernel has been told to write.
    begun: u64,
    /// Up to here it has been told to let go.
    dropped: u64,
}

impl Cache {
    /// Told whenever a file has grown to `end`, and whether the job runs.
    fn spare(&mut self, file: &File, end: u64, gives_way: bool) {
        if end - self.begun < WRITE_BACK {
            return;
        }
        // Of what is not on the disk yet, this advice makes the kernel begin to write; what is, it
        // drops (mm/fadvise.c). The stretch before has mostly come to the disk by now.
        forget(file, self.begun, end);
        if gives_way {
            forget(file, self.dropped, self.begun);
            self.dropped = self.begun;
        }
        self.begun = end;
    }
}

/// Spreads what is written over time, so that others get the rest of the disk.
#[derive(Debug, Default)]
struct Pacer {
    /// When what was written so far has had its time.
    due: Option<Instant>,
}

impl Pacer {
    /// How long to wait, at the time `now`, before `bytes` more are written, at most `rate` a second.
    fn delay(&mut self, bytes: u64, rate: NonZeroU64, now: Instant) -> Duration {
        let due = self.due.unwrap_or(now).max(now);
        // Microseconds: chunks are small, and a rate is at least a page a second.
        let took = Duration::from_micros(bytes.saturating_mul(1_000_000) / rate);
        self.due = due.checked_add(took);
        due.duration_since(now)
    }
}

/// Asks the kernel to let go of a file's bytes in memory. It may as well not do so.
pub(super) fn forget(file: &File, start: u64, end: u64) {
    let (Ok(start), Ok(length)) = (i64::try_from(start), i64::try_from(end - start)) else {
        return;
    };
    let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    posix_fadvise(file.as_fd(), start, length, advice).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::{Duration, Instant};

    use super::{Codec, Pacer, PageHash, Pipeline, Run, WriteOptions};
    use crate::model::id::ObjectId;

    #[test]
    fn what_is_written_is_spread_over_time() {
        let rate = NonZeroU64::new(1 << 20).unwrap();
        let begun = Instant::now();
        let at = |milliseconds| begun + Duration::from_millis(milliseconds);
        let mut pacer = Pacer::default();
        let mut check = |bytes: u64, milliseconds: u64, expected: u64| {
            let delay = pacer.delay(bytes, rate, at(milliseconds));
            assert_eq!(delay, Duration::from_millis(expected), "{bytes} at {milliseconds}");
        };
        check(1 << 20, 0, 0);
        check(1 << 19, 0, 1000);
        check(1 << 19, 1000, 500);
        check(1 << 20, 1800, 200);
        // A slow disk is no credit for later.
        check(1 << 20, 9000, 0);
        check(1 << 20, 9000, 1000);
    }

    #[test]
    fn a_full_disk_is_told_as_such() {
        // Every write to this device fails with ENOSPC; the pipeline has to hand that on.
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let options = WriteOptions { codec: Codec::None, workers: 2, rate: None };
        let mut pipeline = Pipeline::start(full, "pages.rckpt".into(), options).unwrap();
        let mut taken = 0;
        while let Some(mut filling) = pipeline.begin() {
            assert!(taken < 100, "nobody noticed that the disk is full");
            taken += 1;
            let run = Run { object: ObjectId(0), first_page: taken, pages: 1, slot: 0 };
            filling.take(0, PageHash::default(), run);
            if !pipeline.submit(filling) {
                break;
            }
        }
        let error = pipeline.finish().map(|_| ()).unwrap_err();
        assert!(error.is_out_of_space(), "{error}");
    }
}
