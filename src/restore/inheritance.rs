//! Which memory the processes of a job have from those that forked them, so that pages which parent and
//! child shared before the checkpoint are shared again.
//!
//! Pure. Private memory can be shared by forking alone. So where a child has much in common with its
//! parent, the parent maps and fills it before the child is forked (an *estate*), the child changes what
//! it had changed, and so on with its own children.
//!
//! Large memory that is nobody else's is an estate, too, founded once the children are there: a process
//! fills its own memory sooner than another can. All the rest is mapped when the process has executed its
//! restorer, and filled from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::blob;
use crate::image::Chunk;
use crate::image::codec::PageHash;
use crate::model::address::{AddrRange, RemoteAddr};
use crate::model::births::{Birth, Role};
use crate::model::id::{InodeId, ObjectId};
use crate::model::job::Job;
use crate::model::memory::{AddressSpace, Backing, Vma, VmaFlags};
use crate::model::number::{PAGE_SIZE, to_usize};

/// Pages that a process must have in common with its parent to have them from it: 1 MiB.
const WORTH: u64 = 256;
/// Pages that they must have in common in a mapping.
const WORTH_OF_MAPPING: u64 = 16;
/// One page in so many of those that a child has in a mapping must be its parent's.
const WORTH_OF_PART: u64 = 8;

/// Pages with data in a mapping that a process fills by itself, if nobody shares it: 4 MiB.
const WORTH_ALONE: u64 = 1024;

/// Consecutive pages of an address space, and where in the image their content lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first, by its address.
    pub first_page: u64,
    /// How many.
    pub pages: u64,
    /// The chunk, by its number in the index.
    pub chunk: usize,
    /// The first page's place in it.
    pub slot: u64,
}

impl Extent {
    const fn pages(&self) -> Range<u64> {
        self.first_page..self.first_page + self.pages
    }

    /// What of it lies in `pages`.
    fn within(&self, pages: &Range<u64>) -> Option<Self> {
        let own = self.pages();
        let (start, end) = (own.start.max(pages.start), own.end.min(pages.end));
        let slot = self.slot + start.saturating_sub(self.first_page);
        (start < end).then(|| Self { first_page: start, pages: end - start, slot, ..*self })
    }

    /// Where `page` of it is stored.
    fn place_of(&self, page: u64) -> (usize, u64) {
        (self.chunk, self.slot + (page - self.first_page))
    }
}

/// Gives the hashes of the pages of a chunk, in their order; nothing when nobody knows them.
pub type Hashes<'a> = &'a dyn Fn(usize) -> Vec<PageHash>;

/// Tells which pages have the same content, be it stored once or more often.
struct Comparison<'a> {
    hashes: Hashes<'a>,
    known: BTreeMap<usize, Vec<PageHash>>,
}

impl Comparison<'_> {
    /// Chunks whose hashes are known at a time: 16 MiB of them.
    const KNOWN: usize = 4096;

    /// The pages of `one` that are the same in `other`.
    fn common(&mut self, one: &Extent, other: &Extent) -> Vec<Range<u64>> {
        let (start, end) =
            (one.first_page.max(other.first_page), one.pages().end.min(other.pages().end));
        if start >= end {
            return Vec::new();
        }
        if one.place_of(start) == other.place_of(start) {
            return std::iter::once(start..end).collect();
        }
        self.learn(one.chunk);
        self.learn(other.chunk);
        let same = |page: &u64| {
            let [own, other] = [one, other].map(|extent| {
                let (chunk, slot) = extent.place_of(*page);
                self.known.get(&chunk)?.get(to_usize(slot))
            });
            own.is_some() && own == other
        };
        let pages: Vec<u64> = (start..end).filter(same).collect();
        pages
            .chunk_by(|page, next| page + 1 == *next)
            .filter_map(|pages| Some(*pages.first()?..pages.last()? + 1))
            .collect()
    }

    fn learn(&mut self, chunk: usize) {
        if self.known.len() >= Self::KNOWN {
            self.known.clear();
        }
        self.known.entry(chunk).or_insert_with(|| (self.hashes)(chunk));
    }
}

/// Memory that its founder maps and fills before it forks, and that those who keep parts of it have
/// until they are rebuilt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Estate {
    /// Where its parts belong.
    pub range: AddrRange,
    /// Of a private mapping of a file: the file, and the offset of the first byte.
    pub file: Option<(InodeId, u64)>,
    /// MAP_NORESERVE.
    pub no_reserve: bool,
    /// Where it can lie meanwhile when rckpt itself has something at `range`.
    pub spare: u64,
    /// Whether only its founder has it.
    pub alone: bool,
    /// What pages it may consist of.
    pub pages: Pages,
}

/// What is known about the size of an estate's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Its members do not agree, or it shows a file: as they come.
    Any,
    /// The program has said nothing: any that are quickly had.
    Quick,
    /// The program wants huge ones (MADV_HUGEPAGE).
    Huge,
    /// The program wants none that are huge (MADV_NOHUGEPAGE).
    Small,
}

/// A mapping that a process does not make anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Which estate it is a part of.
    pub estate: usize,
    /// Where it is.
    pub range: AddrRange,
}

impl Kept {
    /// Its pages, by their addresses.
    #[must_use]
    pub fn pages(&self) -> Range<u64> {
        pages(&self.range)
    }
}

/// What a process has of estates, and does about them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Its mappings that lie in estates, ascending.
    pub keeps: Vec<Kept>,
    /// What it does between its birth and the births of its children.
    pub early: Work,
    /// What it does after those, about estates that only it has.
    pub late: Work,
}

/// What is done about estates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Those to be founded.
    pub founds: Vec<usize>,
    /// Pages that its parent had there and it has not: page numbers, with the estate.
    pub drops: Vec<(usize, Range<u64>)>,
    /// Pages that it has and its parent had not, or with another content, with the estate; by chunk.
    pub writes: Vec<(usize, Extent)>,
}

impl Share {
    fn work(&mut self, alone: bool) -> &mut Work {
        if alone { &mut self.late } else { &mut self.early }
    }

    /// Whether it keeps `range`.
    #[must_use]
    pub fn has(&self, range: &AddrRange) -> bool {
        self.keeps.binary_search_by_key(&range.start, |kept| kept.range.start).is_ok()
    }
}

/// All estates of a job, and who does what about them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inheritance {
    /// The estates.
    pub estates: Vec<Estate>,
    /// By the process's index in the job; those that have nothing to do with estates are left out.
    pub shares: BTreeMap<usize, Share>,
    /// Pages that need no memory of their own, because another process has them.
    pub shared_pages: u64,
}

impl Inheritance {
    /// The chunks, by their numbers in the index, of which somebody writes pages into an estate.
    #[must_use]
    pub fn chunks_read(&self) -> BTreeSet<usize> {
        let works = self.shares.values().flat_map(|share| [&share.early, &share.late]);
        works.flat_map(|work| &work.writes).map(|(_, extent)| extent.chunk).collect()
    }
}

/// Decides who has what from whom.
#[must_use]
pub fn decide(job: &Job, births: &[Birth], chunks: &[Chunk], hashes: Hashes<'_>) -> Inheritance {
    let mut parents = BTreeMap::new();
    note_parents(births, None, &mut parents);
    let pairs = parents.iter().filter_map(|(heir, parent)| Some((*heir, (*parent)?)));
    let candidates: Vec<Link> =
        pairs.flat_map(|(heir, giver)| candidates(job, heir, giver)).collect();
    let mut involved = large(job, &parents, chunks);
    involved.extend(candidates.iter().flat_map(|link| [link.heir.0, link.giver.0]));
    if involved.is_empty() {
        return Inheritance::default();
    }
    let contents = contents(job, &involved, chunks);
    let mut comparison = Comparison { hashes, known: BTreeMap::new() };
    let links = worthwhile(job, candidates, &contents, &mut comparison);
    let mut groups = unite(job, &links);
    groups.extend(alone(job, &groups, &contents));
    let mut planner = Planner { job, parents, contents, decided: Inheritance::default() };
    for group in planner.without_conflicts(groups) {
        planner.found(&group);
    }
    planner.compare(&mut comparison);
    planner.decided
}

/// Processes with so many pages that they may well fill some by themselves.
fn large(job: &Job, parents: &BTreeMap<usize, Option<usize>>, chunks: &[Chunk]) -> BTreeSet<usize> {
    let mut sizes: BTreeMap<ObjectId, u64> = BTreeMap::new();
    for run in chunks.iter().flat_map(|chunk| &chunk.runs) {
        *sizes.entry(run.object).or_default() += u64::from(run.pages);
    }
    let size = |process: usize| sizes.get(&space(job, process)?.object).copied();
    parents.keys().copied().filter(|process| size(*process).unwrap_or(0) >= WORTH_ALONE).collect()
}

/// Mappings with many pages that are in none of `groups`, each as a group of its own.
fn alone(job: &Job, groups: &[Group], contents: &BTreeMap<usize, Vec<Extent>>) -> Vec<Group> {
    let taken: BTreeSet<Place> = groups.iter().flat_map(|group| &group.members).copied().collect();
    let mut found = Vec::new();
    for (process, extents) in contents {
        let vmas = space(job, *process).map_or(&[][..], |space| &space.vmas);
        for (number, vma) in vmas.iter().enumerate() {
            let place = (*process, number);
            if !is_alike(vma, vma) || taken.contains(&place) {
                continue;
            }
            let present: u64 = clip(extents, &pages(&vma.range)).map(|extent| extent.pages).sum();
            if present >= WORTH_ALONE {
                found.push(Group { members: BTreeSet::from([place]), common: 0 });
            }
        }
    }
    found
}

/// The process from whose memory each process is forked, be it through stand-ins.
fn note_parents(
    births: &[Birth],
    parent: Option<usize>,
    parents: &mut BTreeMap<usize, Option<usize>>,
) {
    for birth in births {
        let own = match birth.role {
            Role::Process(index) => {
                parents.insert(index, parent);
                Some(index)
            }
            Role::StandIn => parent,
        };
        note_parents(&birth.earlier, own, parents);
        note_parents(&birth.later, own, parents);
    }
}

/// A mapping of a process: index of the process, and of the mapping in its address space.
type Place = (usize, usize);

/// Mappings of a process and of its parent that may have pages in common.
#[derive(Clone, Copy, Debug)]
struct Link {
    heir: Place,
    giver: Place,
    /// Pages in common.
    common: u64,
}

fn space(job: &Job, process: usize) -> Option<&AddressSpace> {
    let process = job.processes.get(process).filter(|process| !process.is_zombie())?;
    job.address_spaces.get(to_usize(u64::from(process.mm.0)))
}

fn vma(job: &Job, (process, vma): Place) -> Option<&Vma> {
    space(job, process)?.vmas.get(vma)
}

fn pages(range: &AddrRange) -> Range<u64> {
    range.start.0 / PAGE_SIZE..range.end.0 / PAGE_SIZE
}

/// Pairs of mappings in the same place that show the same.
fn candidates(job: &Job, heir: usize, giver: usize) -> Vec<Link> {
    let mut links = Vec::new();
    let (Some(own), Some(other)) = (space(job, heir), space(job, giver)) else { return links };
    let mut first = 0;
    for (number, vma) in own.vmas.iter().enumerate() {
        let skipped = other.vmas[first..].iter().take_while(|it| it.range.end <= vma.range.start);
        first += skipped.count();
        for (place, counterpart) in other.vmas.iter().enumerate().skip(first) {
            if !counterpart.range.overlaps(&vma.range) {
                break;
            }
            if is_alike(vma, counterpart) {
                links.push(Link { heir: (heir, number), giver: (giver, place), common: 0 });
            }
        }
    }
    let overlap = |link: &Link| {
        let ranges = vma(job, link.heir).zip(vma(job, link.giver));
        ranges.map_or(0, |(own, other)| {
            let end = own.range.end.min(other.range.end);
            (end.0 - own.range.start.max(other.range.start).0) / PAGE_SIZE
        })
    };
    if links.iter().map(overlap).sum::<u64>() < WORTH {
        links.clear();
    }
    links
}

/// Whether pages of one can be pages of the other.
fn is_alike(one: &Vma, other: &Vma) -> bool {
    let alike = match (one.backing, other.backing) {
        (Backing::Anonymous, Backing::Anonymous) => true,
        (
            Backing::File { inode, offset, shared: false },
            Backing::File { inode: other_inode, offset: other_offset, shared: false },
        ) => {
            let starts = one.range.start.0.checked_sub(offset);
            inode == other_inode && starts == other.range.start.0.checked_sub(other_offset)
        }
        _ => false,
    };
    // Stacks grow as they are touched, and the pool's pages are the pool's.
    let special = VmaFlags::GROWS_DOWN | VmaFlags::HUGETLB;
    let plain = |vma: &Vma| !vma.flags.intersects(special) && vma.policy.is_none();
    let reserved = |vma: &Vma| !vma.flags.contains(VmaFlags::NO_RESERVE);
    alike && plain(one) && plain(other) && reserved(one) == reserved(other)
}

/// Where the image has the pages of the processes `involved`, ascending by page.
fn contents(
    job: &Job,
    involved: &BTreeSet<usize>,
    chunks: &[Chunk],
) -> BTreeMap<usize, Vec<Extent>> {
    let by_object: BTreeMap<ObjectId, usize> = involved
        .iter()
        .filter_map(|process| Some((space(job, *process)?.object, *process)))
        .collect();
    let mut contents: BTreeMap<usize, Vec<Extent>> =
        involved.iter().map(|process| (*process, Vec::new())).collect();
    for (chunk, runs) in chunks.iter().map(|chunk| &chunk.runs).enumerate() {
        for run in runs {
            let owner = by_object.get(&run.object);
            if let Some(extents) = owner.and_then(|process| contents.get_mut(process)) {
                let (pages, slot) = (u64::from(run.pages), u64::from(run.slot));
                extents.push(Extent { first_page: run.first_page, pages, chunk, slot });
            }
        }
    }
    for extents in contents.values_mut() {
        extents.sort_by_key(|extent| extent.first_page);
    }
    contents
}

/// What of `extents` (ascending) lies in `pages`.
fn clip<'a>(extents: &'a [Extent], pages: &'a Range<u64>) -> impl Iterator<Item = Extent> + 'a {
    let first = extents.partition_point(|extent| extent.pages().end <= pages.start);
    extents[first..]
        .iter()
        .take_while(|extent| extent.first_page < pages.end)
        .filter_map(|extent| extent.within(pages))
}

/// The links between mappings that have enough in common.
fn worthwhile(
    job: &Job,
    links: Vec<Link>,
    contents: &BTreeMap<usize, Vec<Extent>>,
    comparison: &mut Comparison<'_>,
) -> Vec<Link> {
    let mut worth: Vec<Link> = Vec::new();
    for mut link in links {
        let Some((own, other)) = vma(job, link.heir).zip(vma(job, link.giver)) else { continue };
        let (own, other) = (pages(&own.range), pages(&other.range));
        let both = own.start.max(other.start)..own.end.min(other.end);
        let mut present = 0;
        for extent in clip(&contents[&link.heir.0], &both) {
            present += extent.pages;
            link.common += clip(&contents[&link.giver.0], &extent.pages())
                .flat_map(|other| comparison.common(&extent, &other))
                .map(|pages| pages.end - pages.start)
                .sum::<u64>();
        }
        if link.common >= WORTH_OF_MAPPING && link.common >= present / WORTH_OF_PART {
            worth.push(link);
        }
    }
    let mut sums: BTreeMap<usize, u64> = BTreeMap::new();
    for link in &worth {
        *sums.entry(link.heir.0).or_default() += link.common;
    }
    worth.retain(|link| sums[&link.heir.0] >= WORTH);
    worth
}

/// Mappings that hang together by links.
#[derive(Clone, Debug, Default)]
struct Group {
    members: BTreeSet<Place>,
    common: u64,
}

impl Group {
    /// Whether it is a single mapping.
    fn is_alone(&self) -> bool {
        self.members.len() == 1
    }

    fn range(&self, job: &Job) -> AddrRange {
        let ranges = || self.members.iter().filter_map(|place| Some(vma(job, *place)?.range));
        let start = ranges().map(|range| range.start).min().unwrap_or_default();
        let end = ranges().map(|range| range.end).max().unwrap_or_default();
        AddrRange { start, end }
    }
}

/// Puts together what links connect.
fn unite(job: &Job, links: &[Link]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut group_of: BTreeMap<Place, usize> = BTreeMap::new();
    for link in links {
        let known = [link.heir, link.giver].map(|place| group_of.get(&place).copied());
        let into = match known {
            [Some(one), Some(other)] => {
                if one != other {
                    let moved = std::mem::take(&mut groups[other]);
                    group_of.extend(moved.members.iter().map(|place| (*place, one)));
                    groups[one].members.extend(moved.members);
                    groups[one].common += moved.common;
                }
                one
            }
            [Some(group), None] | [None, Some(group)] => group,
            [None, None] => {
                groups.push(Group::default());
                groups.len() - 1
            }
        };
        groups[into].members.extend([link.heir, link.giver]);
        groups[into].common += link.common;
        group_of.extend([(link.heir, into), (link.giver, into)]);
    }
    groups.retain(|group| !group.range(job).is_empty());
    groups
}

struct Planner<'a> {
    job: &'a Job,
    /// Every process that is born, and its parent.
    parents: BTreeMap<usize, Option<usize>>,
    contents: BTreeMap<usize, Vec<Extent>>,
    decided: Inheritance,
}

impl Planner<'_> {
    fn parent(&self, process: usize) -> Option<usize> {
        self.parents.get(&process).copied().flatten()
    }

    /// Whether `one` is `other`, or descends from it.
    fn descends(&self, one: usize, other: usize) -> bool {
        let mut process = Some(one);
        while let Some(current) = process {
            if current == other {
                return true;
            }
            process = self.parent(current);
        }
        false
    }

    /// The member of a group from which all others descend.
    fn founder(&self, group: &Group) -> Option<usize> {
        // Every process comes after its parent.
        let first = group.members.first()?.0;
        group.members.iter().all(|place| self.descends(place.0, first)).then_some(first)
    }

    /// The groups whose estates do not get into each other's way: the larger one of two that would.
    fn without_conflicts(&self, mut groups: Vec<Group>) -> Vec<Group> {
        groups.sort_by_key(|group| std::cmp::Reverse(group.common));
        let mut taken: Vec<(usize, AddrRange)> = Vec::new();
        groups.retain(|group| {
            let Some(founder) = self.founder(group) else { return false };
            let range = group.range(self.job);
            // What a process founds for itself, it founds when its children are there.
            let reaches = |other: usize| {
                self.descends(founder, other) || !group.is_alone() && self.descends(other, founder)
            };
            let conflict =
                taken.iter().any(|(other, taken)| taken.overlaps(&range) && reaches(*other));
            if !conflict && !group.is_alone() {
                taken.push((founder, range));
            }
            !conflict
        });
        groups
    }

    /// Makes a group's estate.
    fn found(&mut self, group: &Group) {
        let range = group.range(self.job);
        let lowest = group.members.iter().filter_map(|place| vma(self.job, *place));
        let (Some(lowest), Some(founder)) =
            (lowest.min_by_key(|vma| vma.range.start), self.founder(group))
        else {
            return;
        };
        let Some(spare) = self.spare(range.len()) else { return };
        let file = match lowest.backing {
            Backing::File { inode, offset, .. } => Some((inode, offset)),
            _ => None,
        };
        let no_reserve = lowest.flags.contains(VmaFlags::NO_RESERVE);
        let estate = self.decided.estates.len();
        let (alone, pages) = (group.is_alone(), self.pages(group));
        self.decided.estates.push(Estate { range, file, no_reserve, spare, alone, pages });
        self.decided.shares.entry(founder).or_default().work(alone).founds.push(estate);
        for place in &group.members {
            let Some(range) = vma(self.job, *place).map(|vma| vma.range) else { continue };
            let share = self.decided.shares.entry(place.0).or_default();
            share.keeps.push(Kept { estate, range });
        }
    }

    /// What its members say about the size of a group's pages.
    fn pages(&self, group: &Group) -> Pages {
        let said = group.members.iter().filter_map(|place| {
            let (vma, space) = (vma(self.job, *place)?, space(self.job, place.0)?);
            let huge = vma.flags.contains(VmaFlags::HUGE_PAGE);
            let small = vma.flags.contains(VmaFlags::NO_HUGE_PAGE);
            Some(match vma.backing {
                Backing::Anonymous if huge => Pages::Huge,
                Backing::Anonymous if small => Pages::Small,
                Backing::Anonymous if space.thp_disabled == 0 => Pages::Quick,
                _ => Pages::Any,
            })
        });
        said.reduce(|one, other| if one == other { one } else { Pages::Any }).unwrap_or(Pages::Any)
    }

    /// A place that no process of the job uses.
    fn spare(&self, length: u64) -> Option<u64> {
        let spaces = self.job.address_spaces.iter().flat_map(|space| &space.vmas);
        let mut ranges: Vec<AddrRange> = spaces.map(|vma| vma.range).collect();
        ranges.extend(
            self.decided.estates.iter().flat_map(|estate| [estate.range, estate.spare_range()]),
        );
        ranges.sort();
        blob::hole(&ranges, length)
    }

    /// Finds out how what each process keeps differs from what it is born with.
    fn compare(&mut self, comparison: &mut Comparison<'_>) {
        let processes: Vec<usize> = self.decided.shares.keys().copied().collect();
        for process in &processes {
            if let Some(share) = self.decided.shares.get_mut(process) {
                share.keeps.sort_by_key(|kept| kept.range.start);
            }
        }
        for process in processes {
            let mut share = self.decided.shares[&process].clone();
            for Kept { estate, range } in share.keeps.clone() {
                let alone = self.decided.estates[estate].alone;
                let Work { drops, writes, .. } = share.work(alone);
                let range = pages(&range);
                let found = self.born_with(process, estate, &range);
                let wanted: Vec<Extent> = clip(&self.contents[&process], &range).collect();
                for extent in &found {
                    let rest = without(extent.pages(), wanted.iter().map(Extent::pages));
                    drops.extend(rest.into_iter().map(|pages| (estate, pages)));
                }
                for extent in &wanted {
                    let wanted = extent.pages();
                    let there = clip(&found, &wanted);
                    let same = there.flat_map(|there| comparison.common(extent, &there));
                    let rest = without(extent.pages(), same);
                    let written: u64 = rest.iter().map(|pages| pages.end - pages.start).sum();
                    self.decided.shared_pages += extent.pages - written;
                    writes.extend(
                        rest.iter().filter_map(|pages| Some((estate, extent.within(pages)?))),
                    );
                }
            }
            for work in [&mut share.early, &mut share.late] {
                work.writes.sort_by_key(|(_, extent)| (extent.chunk, extent.slot));
            }
            self.decided.shares.insert(process, share);
        }
    }

    /// What lies in `range` of an estate when `process` is born: what the nearest of its ancestors that
    /// keeps a page has made of it.
    fn born_with(&self, process: usize, estate: usize, range: &Range<u64>) -> Vec<Extent> {
        let mut found = Vec::new();
        let founded = |share: &Share| {
            share.early.founds.contains(&estate) || share.late.founds.contains(&estate)
        };
        if range.is_empty() || self.decided.shares.get(&process).is_some_and(founded) {
            return found;
        }
        let Some(parent) = self.parent(process) else { return found };
        let keeps = self.decided.shares.get(&parent).map_or(&[][..], |share| &share.keeps);
        let mut next = range.start;
        for kept in keeps.iter().filter(|kept| kept.estate == estate) {
            let kept = pages(&kept.range);
            let (start, end) = (kept.start.max(next), kept.end.min(range.end));
            if start >= end {
                continue;
            }
            found.extend(self.born_with(parent, estate, &(next..start)));
            found.extend(clip(&self.contents[&parent], &(start..end)));
            next = end;
        }
        found.extend(self.born_with(parent, estate, &(next..range.end)));
        found
    }
}

impl Estate {
    /// The spare place as a range.
    #[must_use]
    pub fn spare_range(&self) -> AddrRange {
        let end = self.spare + self.range.len();
        AddrRange { start: RemoteAddr(self.spare), end: RemoteAddr(end) }
    }
}

/// What is left of `pages` without `others`, which ascend.
#[must_use]
pub fn without(pages: Range<u64>, others: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut rest = Vec::new();
    let mut next = pages.start;
    for other in others {
        if next < other.start.min(pages.end) {
            rest.push(next..other.start.min(pages.end));
        }
        next = next.max(other.end);
    }
    if next < pages.end {
        rest.push(next..pages.end);
    }
    rest
}

#[cfg(test)]
mod tests;
