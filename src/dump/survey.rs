//! What a checkpoint of a job would come to, as far as looking tells: how much there is to be copied and
//! written, how long the job stood still for being looked at, and how well a few of its pages pack.
//!
//! It measures. What follows for a checkpoint's size and time is not decided here.

use std::io;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::collect::Collected;
use super::memory::Part;
use super::snapshot;
use crate::image::codec::{Codec, Packer};
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::memory::Vma;
use crate::model::number::{PAGE_SIZE, to_u64, to_usize};
use crate::sys::memory::{PageMap, PageRun, PageState, RemoteMemory};
use crate::sys::procfs;
use crate::tracer::tree::Tree;

/// Pages that are read in one place.
const SPOT: u64 = 64;
/// Places that are read.
const SPOTS: u64 = 16;
/// Runs of pages that are remembered; of more, only some are.
const RUNS: usize = 1 << 16;

/// What was found out about a job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// Processes.
    pub processes: usize,
    /// Threads.
    pub threads: usize,
    /// How long the job stood still.
    pub frozen: Duration,
    /// Bytes of private memory that go into a full checkpoint, before zeros are left out.
    pub memory: u64,
    /// Those of them that fork would not copy, which are written while the job stands still.
    pub held: u64,
    /// Bytes of shared memory, deleted files and the like, holes included where they are not known.
    pub contents: u64,
    /// Processes that would be copied.
    pub copied: usize,
    /// Bytes of their page tables.
    pub page_tables: u64,
    /// Why nothing would be copied, so that the job stood still until all is written.
    pub stands_still: Option<String>,
    /// A few of its pages.
    pub sample: Sample,
}

/// What a few pages of the job came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Pages that were read.
    pub pages: u64,
    /// Those that hold nothing but zeros.
    pub zeros: u64,
    /// Bytes of the others once they are packed.
    pub packed: u64,
    /// How long reading them took.
    pub reading: Duration,
    /// How long packing them took.
    pub packing: Duration,
}

/// A job that has been looked at and is let go: what is needed to look at some of its pages.
pub(super) struct Surveyor {
    survey: Survey,
    spaces: Vec<Space>,
}

/// An address space.
struct Space {
    pid: Pid,
    memory: RemoteMemory,
    page_map: PageMap,
    /// Private mappings, and whether fork leaves them out.
    parts: Vec<(AddrRange, bool)>,
}

impl Surveyor {
    /// Counts, while the job still stands still since `begun`. What cannot be looked at any more because
    /// it has ended counts as nothing.
    pub fn begin(collected: &Collected, tree: &Tree, begun: Instant) -> Self {
        let processes = &collected.job.processes;
        let (copied, reason) = snapshot::foresee(collected);
        let task = |space: &usize| tree.processes()[collected.holders[*space]].task();
        let tables = |space: &usize| procfs::status(task(space)).map_or(0, |it| it.page_tables);
        let spaces = collected.job.address_spaces.iter().enumerate();
        let spaces = spaces.filter_map(|(number, space)| {
            let pid = task(&number);
            Some(Space {
                pid,
                memory: RemoteMemory::open(pid).ok()?,
                page_map: PageMap::open(pid).ok()?,
                parts: space.vmas.iter().filter(is_private).map(part).collect(),
            })
        });
        Self {
            survey: Survey {
                processes: processes.len(),
                threads: processes.iter().map(|process| process.threads.len()).sum(),
                contents: collected.contents.iter().map(|content| content.allocated()).sum(),
                page_tables: copied.iter().map(tables).sum(),
                copied: if reason.is_some() { 0 } else { copied.len() },
                stands_still: reason,
                ..Survey::default()
            },
            spaces: spaces.collect(),
        }
        .frozen_since(begun)
    }

    /// The same, for a job that stood still from `begun` to this moment.
    fn frozen_since(mut self, begun: Instant) -> Self {
        self.survey.frozen = begun.elapsed();
        self
    }

    /// Looks at pages of the job, which runs again. What ends meanwhile counts as far as it was seen.
    pub fn finish(mut self) -> Survey {
        let (mut memory, mut held) = (0_u64, 0_u64);
        let mut runs = Vec::new();
        let mut stride = 1;
        let mut seen = 0_usize;
        for (number, space) in self.spaces.iter().enumerate() {
            for (range, left_out) in &space.parts {
                // One that has ended shows no more pages.
                let counted = visit(&space.page_map, *range, &mut |run| {
                    let bytes = run.range.len();
                    memory += bytes;
                    held += if *left_out { bytes } else { 0 };
                    if seen.is_multiple_of(stride) {
                        runs.push((number, run.range));
                    }
                    seen += 1;
                    if runs.len() >= RUNS {
                        runs = runs.iter().copied().step_by(2).collect();
                        stride *= 2;
                    }
                });
                counted.unwrap_or_default();
            }
        }
        let shared: u64 = self.spaces.iter().map(|space| doubles(space.pid)).sum();
        self.survey.memory = memory.saturating_sub(shared);
        self.survey.held = if self.survey.stands_still.is_some() { memory } else { held };
        self.survey.sample = self.sample(&runs);
        self.survey
    }

    /// Reads pages at even distances of `runs`.
    fn sample(&self, runs: &[(usize, AddrRange)]) -> Sample {
        let mut sample = Sample::default();
        let mut packer = Packer::new(Codec::Lz4);
        let mut packed = Vec::new();
        let pages: u64 = runs.iter().map(|(_, range)| range.pages()).sum();
        let distance = (pages / SPOTS).max(SPOT);
        // Pages up to the next place.
        let mut left = 0;
        for (space, range) in runs {
            let mut at = left;
            while at < range.pages() {
                let start = RemoteAddr(range.start.0 + at * PAGE_SIZE);
                let length = SPOT.min(range.pages() - at);
                let mut bytes = vec![0; to_usize(length * PAGE_SIZE)];
                let begun = Instant::now();
                if self.spaces[*space].memory.read(start, &mut bytes).is_ok() {
                    sample.reading += begun.elapsed();
                    sample.add(&bytes, &mut packer, &mut packed);
                }
                at += distance.max(length);
            }
            left = at - range.pages();
        }
        sample
    }
}

impl Sample {
    /// Takes some more pages into account.
    fn add(&mut self, bytes: &[u8], packer: &mut Packer, packed: &mut Vec<u8>) {
        let pages = bytes.chunks(to_usize(PAGE_SIZE));
        self.pages += to_u64(pages.len());
        let full = pages.filter(|page| page.iter().any(|byte| *byte != 0));
        let plain: Vec<u8> = full.flatten().copied().collect();
        self.zeros += to_u64((bytes.len() - plain.len()) / to_usize(PAGE_SIZE));
        let begun = Instant::now();
        let length = packer.pack(&plain, packed);
        self.packing += begun.elapsed();
        self.packed += to_u64(length.unwrap_or(plain.len()));
    }
}

/// Visits the pages of `range` that go into an image.
fn visit(page_map: &PageMap, range: AddrRange, count: &mut dyn FnMut(PageRun)) -> io::Result<()> {
    let not_stored = PageState::FILE | PageState::ZERO | PageState::GUARD;
    page_map.visit::<io::Error>(range, PageState::PRESENT | PageState::SWAPPED, &mut |run| {
        if !run.state.intersects(not_stored) {
            count(run);
        }
        Ok(())
    })
}

fn is_private(vma: &&Vma) -> bool {
    vma.backing.is_private()
}

fn part(vma: &Vma) -> (AddrRange, bool) {
    (vma.range, Part::NotInherited.has(vma))
}

/// Bytes of a process's private memory that it has in common with relatives, less its own part of each:
/// they are stored once. 0 where that is not told.
fn doubles(pid: Pid) -> u64 {
    let Ok(text) = procfs::read(pid, "smaps_rollup") else { return 0 };
    let Ok(status) = procfs::status(pid) else { return 0 };
    let own = procfs::rollup_of_anonymous(&text);
    own.map_or(0, |own| status.anonymous.saturating_sub(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_judged() {
        let mut sample = Sample::default();
        let (mut packer, mut packed) = (Packer::new(Codec::Lz4), Vec::new());
        let mut bytes = vec![0; to_usize(3 * PAGE_SIZE)];
        bytes[5000] = 1;
        sample.add(&bytes, &mut packer, &mut packed);
        assert_eq!((sample.pages, sample.zeros), (3, 2));
        assert!(sample.packed > 0 && sample.packed < 100, "{}", sample.packed);
    }
}
