//! Who has what memory from whom, in small jobs of few mappings.

use super::{Inheritance, Work, decide};
use crate::image::codec::PageHash;
use crate::image::{Chunk, Codec, Run};
use crate::model::address::AddrRange;
use crate::model::births;
use crate::model::id::{Bytes, FdTableId, FsId, InodeId, MmId, ObjectId, Pid};
use crate::model::job::Job;
use crate::model::memory::{AddressSpace, Backing, Prot, Vma, VmaFlags};
use crate::model::process::{Credentials, Process, ProcessState};

/// A private anonymous mapping of pages `first..end`.
fn anonymous(first: u64, end: u64) -> Vma {
    Vma {
        range: AddrRange::new(first << 12, end << 12).unwrap(),
        prot: Prot::READ | Prot::WRITE,
        flags: VmaFlags::ACCOUNTED,
        backing: Backing::Anonymous,
        name: None,
        policy: None,
    }
}

fn file(first: u64, end: u64, offset: u64) -> Vma {
    let backing = Backing::File { inode: InodeId(3), offset, shared: false };
    Vma { backing, ..anonymous(first, end) }
}

/// A job of processes given as their parents' indices and mappings; the first is the root. Process `n`
/// has the id `100 + n`, and its pages are object `n`.
fn job(processes: &[(usize, &[Vma])]) -> Job {
    let mut job = Job { root: Pid(100), objects: 10, ..Job::default() };
    for (index, (parent, vmas)) in (0..).zip(processes) {
        let parent = i32::try_from(*parent).unwrap();
        let index_signed = i32::try_from(index).unwrap();
        job.address_spaces.push(AddressSpace {
            vmas: vmas.to_vec(),
            object: ObjectId(index),
            ..AddressSpace::default()
        });
        job.processes.push(Process {
            pid: Pid(100 + index_signed),
            ppid: if index == 0 { Pid(9) } else { Pid(100 + parent) },
            pgid: Pid(9),
            sid: Pid(5),
            exit_signal: libc::SIGCHLD,
            state: ProcessState::Alive,
            threads: Vec::new(),
            main_ended: None,
            name: Bytes::default(),
            mm: MmId(index),
            fd_table: FdTableId(index),
            fs: FsId(index),
            shares_actions: false,
            actions: Vec::new(),
            pending: Vec::new(),
            interval_timers: Default::default(),
            posix_timers: Vec::new(),
            limits: Vec::new(),
            credentials: Credentials::default(),
            personality: 0,
            child_subreaper: false,
            oom_score_adj: 0,
            tsc_mode: 0,
            cpuid_faults: false,
            autogroup_nice: None,
            controlling_terminal: false,
        });
    }
    job
}

/// Runs as (object, first page, pages, chunk, slot).
fn chunks(runs: &[(u32, u64, u32, usize, u32)]) -> Vec<Chunk> {
    let count = runs.iter().map(|run| run.3 + 1).max().unwrap_or(0);
    let runs_of = |number: usize| {
        runs.iter()
            .filter(|run| run.3 == number)
            .map(|&(object, first_page, pages, _, slot)| Run {
                object: ObjectId(object),
                first_page,
                pages,
                slot,
            })
            .collect()
    };
    let chunk = |number| Chunk {
        file: 0,
        offset: 4096,
        stored_length: 4096,
        codec: Codec::None,
        pages: 4096,
        stored_checksum: 0,
        checksum: 0,
        runs: runs_of(number),
    };
    (0..count).map(chunk).collect()
}

/// What is decided when every page of the chunks differs from all others, but those of chunk 9 are all
/// alike.
fn decided(job: &Job, runs: &[(u32, u64, u32, usize, u32)]) -> Inheritance {
    let hashes = |chunk: usize| {
        let hash = |slot: u8, word: u8| {
            PageHash([u8::try_from(chunk).unwrap(), slot, word, 0].repeat(4).try_into().unwrap())
        };
        match chunk {
            9 => vec![PageHash::default(); 4096],
            _ => (0..=u8::MAX).flat_map(|word| (0..16).map(move |slot| hash(slot, word))).collect(),
        }
    };
    decide(job, &births::plan(job).unwrap(), &chunks(runs), &hashes)
}

/// Writes what was decided: for each process what it keeps (`first-end`), founds (`+first-end`), drops
/// (`~first-end`) and writes (`=first-end@chunk/slot`), all in pages, and behind `|` what it does after
/// the births of its children.
fn shape(inheritance: &Inheritance) -> String {
    let mut text = String::new();
    for (process, share) in &inheritance.shares {
        text.push_str(&format!("{process}:"));
        for kept in &share.keeps {
            let pages = kept.pages();
            text.push_str(&format!(" {:x}-{:x}", pages.start, pages.end));
        }
        for (work, mark) in [(&share.early, ""), (&share.late, " |")] {
            if *work != Work::default() {
                text.push_str(mark);
            }
            for estate in &work.founds {
                let range = inheritance.estates[*estate].range;
                text.push_str(&format!(" +{:x}-{:x}", range.start.0 >> 12, range.end.0 >> 12));
            }
            for (_, pages) in &work.drops {
                text.push_str(&format!(" ~{:x}-{:x}", pages.start, pages.end));
            }
            for (_, extent) in &work.writes {
                let end = extent.first_page + extent.pages;
                let (first, chunk, slot) = (extent.first_page, extent.chunk, extent.slot);
                text.push_str(&format!(" ={first:x}-{end:x}@{chunk}/{slot:x}"));
            }
        }
        text.push(';');
    }
    text
}

#[test]
fn a_child_changes_only_what_differs() {
    let memory = [anonymous(0x1000, 0x2000)];
    let pool = job(&[(0, &memory), (0, &memory), (0, &memory)]);
    let inheritance = decided(
        &pool,
        &[
            (0, 0x1000, 0x400, 0, 0),
            // The same but for two pages of its own in the middle, and one at the end that it lacks.
            (1, 0x1000, 0x100, 0, 0),
            (1, 0x1100, 2, 1, 7),
            (1, 0x1102, 0x2fd, 0, 0x102),
            // The same, and a page more.
            (2, 0x1000, 0x400, 0, 0),
            (2, 0x1500, 1, 1, 0),
        ],
    );
    assert_eq!(
        shape(&inheritance),
        "0: 1000-2000 +1000-2000 =1000-1400@0/0;\
         1: 1000-2000 ~13ff-1400 =1100-1102@1/7;\
         2: 1000-2000 =1500-1501@1/0;"
    );
    assert_eq!(inheritance.shared_pages, 0x3fd + 0x400);
}

#[test]
fn little_in_common_is_not_worth_it() {
    let check = |common: u32, own: u32, expected: bool| {
        let memory = [anonymous(0x1000, 0x9000)];
        let pair = job(&[(0, &memory), (0, &memory)]);
        let end = 0x1000 + u64::from(common);
        let inheritance = decided(
            &pair,
            &[(0, 0x1000, common, 0, 0), (1, 0x1000, common, 0, 0), (1, end, own, 1, 0)],
        );
        assert_eq!(inheritance.shares.contains_key(&0), expected, "{common} {own}");
    };
    check(255, 1, false);
    check(256, 1, true);
    check(256, 1790, true);
    check(256, 1800, false);
}

#[test]
fn large_memory_is_filled_by_its_own_process() {
    let memory = [anonymous(0x1000, 0x3000), anonymous(0x4000, 0x5000), file(0x6000, 0x7000, 0)];
    let pair = job(&[(0, &memory), (0, &memory)]);
    let inheritance = decided(
        &pair,
        &[
            (0, 0x1000, 0x400, 0, 0),
            (0, 0x4000, 0x3ff, 1, 0),
            // The child shares nothing with its parent.
            (1, 0x1000, 0x400, 2, 0),
            (1, 0x2000, 0x400, 3, 0),
            (1, 0x6000, 0x400, 3, 0x400),
        ],
    );
    assert_eq!(
        shape(&inheritance),
        "0: 1000-3000 | +1000-3000 =1000-1400@0/0;\
         1: 1000-3000 6000-7000 | +1000-3000 +6000-7000 =1000-1400@2/0 =2000-2400@3/0 \
         =6000-6400@3/400;"
    );
    assert_eq!(inheritance.shared_pages, 0);
}

#[test]
fn what_counts_is_content_rather_than_where_it_is_stored() {
    let memory = [anonymous(0x1000, 0x2000)];
    let pair = job(&[(0, &memory), (0, &memory)]);
    let inheritance = decided(
        &pair,
        &[(0, 0x1000, 0x200, 9, 0), (1, 0x1000, 0x180, 9, 0x300), (1, 0x1180, 1, 1, 0)],
    );
    assert_eq!(
        shape(&inheritance),
        "0: 1000-2000 +1000-2000 =1000-1200@9/0;1: 1000-2000 ~1181-1200 =1180-1181@1/0;"
    );
}

#[test]
fn mappings_must_be_alike() {
    let check = |one: Vma, other: Vma, expected: &str| {
        let pair = job(&[(0, &[one][..]), (0, &[other][..])]);
        let inheritance = decided(&pair, &[(0, 0x1000, 0x200, 0, 0), (1, 0x1000, 0x200, 0, 0)]);
        assert_eq!(shape(&inheritance), expected);
    };
    let memory = anonymous(0x1000, 0x2000);
    check(memory.clone(), file(0x1000, 0x2000, 0), "");
    check(file(0x1000, 0x2000, 4096), file(0x1000, 0x2000, 0), "");
    check(
        file(0x1000, 0x2000, 4096),
        file(0x0fff, 0x1800, 0),
        "0: 1000-2000 +fff-2000 =1000-1200@0/0;1: fff-1800;",
    );
    check(memory.clone(), Vma { flags: VmaFlags::GROWS_DOWN, ..memory.clone() }, "");
    check(memory.clone(), Vma { flags: VmaFlags::NO_RESERVE, ..memory.clone() }, "");
    // Other access is no obstacle.
    check(
        memory.clone(),
        Vma { prot: Prot::READ, ..memory },
        "0: 1000-2000 +1000-2000 =1000-1200@0/0;1: 1000-2000;",
    );
}

#[test]
fn grandchildren_inherit_what_their_parents_have_made_of_it() {
    let whole = [anonymous(0x1000, 0x2000)];
    // The child gave the end back.
    let start = [anonymous(0x1000, 0x1800)];
    let line = job(&[(0, &whole), (0, &start), (1, &whole)]);
    let inheritance = decided(
        &line,
        &[
            (0, 0x1000, 0x1000, 0, 0),
            (1, 0x1000, 0x400, 0, 0),
            (1, 0x1400, 0x400, 1, 0),
            (2, 0x1000, 0x400, 0, 0),
            (2, 0x1400, 0x400, 1, 0),
            (2, 0x1800, 0x100, 0, 0x800),
        ],
    );
    assert_eq!(
        shape(&inheritance),
        "0: 1000-2000 +1000-2000 =1000-2000@0/0;\
         1: 1000-1800 =1400-1800@1/0;\
         2: 1000-2000 ~1900-2000;"
    );
}

#[test]
fn of_two_estates_in_one_place_the_larger_one_stays() {
    // The child has a file where a part of its parent's memory is, and gives that to its own child.
    let memory = [anonymous(0x1000, 0x3000)];
    let both = [anonymous(0x1000, 0x2000), file(0x2000, 0x3000, 0)];
    let line = job(&[(0, &memory), (0, &both), (1, &both)]);
    let inheritance = decided(
        &line,
        &[
            (0, 0x1000, 0x800, 0, 0),
            (1, 0x1000, 0x800, 0, 0),
            (2, 0x1000, 0x800, 0, 0),
            (1, 0x2000, 0x200, 1, 0),
            (2, 0x2000, 0x200, 1, 0),
        ],
    );
    assert_eq!(
        shape(&inheritance),
        "0: 1000-3000 +1000-3000 =1000-1800@0/0;1: 1000-2000;2: 1000-2000;"
    );
    let spare = inheritance.estates[0].spare_range();
    assert!(memory.iter().all(|vma| !vma.range.overlaps(&spare)));
}
