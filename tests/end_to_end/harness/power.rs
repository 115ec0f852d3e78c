//! What is on a disk after a power failure, made from the steps that a command took: anything that POSIX
//! leaves open (fsync(2)).
//!
//! What was brought to the disk is there. Of all else that was done before the failure each step by itself
//! may have got there or not: a name in a directory, a length, bytes of a file; bytes may also be there in
//! part, or be zeros. Nothing is taken for granted that a journal of the file system would hold together.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use super::moments::Moments;
use super::storage::{Bytes, Step};

/// A file, a directory or a link, whatever its names are.
type Node = usize;

/// The root of all.
const ROOT: Node = 0;

/// What a node holds.
#[derive(Clone, Debug, Hash)]
enum Content {
    File(Vec<u8>),
    Directory(BTreeMap<OsString, Node>),
    Link(PathBuf),
}

/// A change of a node, which gets to the disk or not.
#[derive(Clone, Debug)]
enum Change {
    Data {
        at: usize,
        bytes: Vec<u8>,
    },
    Length(usize),
    /// A name leads to a node, or to none.
    Name(OsString, Option<Node>),
    /// A name goes, and another leads to what it led to.
    Move(OsString, OsString, Node),
}

#[derive(Debug)]
struct Recorded {
    node: Node,
    change: Change,
    /// The step that it is, or is part of.
    step: usize,
    /// The step from whose end on it is on the disk.
    on_disk: Option<usize>,
}

/// What becomes of a change that nobody has brought to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It is there.
    There,
    /// It is not.
    Missing,
    /// Of bytes: they are zeros.
    Zeros,
    /// Of bytes: the first half is there.
    Half,
}

/// A power failure.
#[derive(Clone, Debug)]
pub struct Failure {
    /// How many steps had been taken.
    pub steps: usize,
    /// What became of each change that was under way then, by its number.
    fates: BTreeMap<usize, Fate>,
}

/// A disk as it was before a command, and what the command did.
#[derive(Debug)]
pub struct Disk {
    before: Vec<Content>,
    changes: Vec<Recorded>,
    /// How many steps there are.
    pub steps: usize,
}

impl Disk {
    /// What is in the directory `root` now is on the disk.
    pub fn new(root: &Path) -> Self {
        let mut before = Vec::new();
        read(root, &mut before, &mut HashMap::new());
        Self { before, changes: Vec::new(), steps: 0 }
    }

    /// Has these steps been taken, as far as they are about what is below `root`.
    pub fn record(&mut self, root: &Path, steps: &[Step]) {
        let mut live = Live { nodes: self.before.clone(), root };
        for (number, step) in steps.iter().enumerate() {
            if let Step::Sync { path, since } = step {
                let Some(node) = live.node(path) else { continue };
                let synced = |it: &&mut Recorded| {
                    it.node == node && it.step < *since && it.on_disk.is_none()
                };
                for it in self.changes.iter_mut().filter(synced) {
                    it.on_disk = Some(number);
                }
                continue;
            }
            for (node, change) in live.changes(step) {
                apply(&mut live.nodes, node, &change);
                self.changes.push(Recorded { node, change, step: number, on_disk: None });
            }
        }
        self.before.extend(live.nodes.into_iter().skip(self.before.len()).map(|node| match node {
            Content::File(_) => Content::File(Vec::new()),
            Content::Directory(_) => Content::Directory(BTreeMap::new()),
            link @ Content::Link(_) => link,
        }));
        self.steps = steps.len();
    }

    /// The power failures to be looked at, after each number of steps: all there, nothing there, each change
    /// by itself there, missing, and in part; and `more` chosen at random.
    pub fn failures(&self, moments: &mut Moments, more: usize) -> Vec<Failure> {
        let mut failures = Vec::new();
        for steps in 0..=self.steps {
            let open: Vec<usize> = self
                .changes
                .iter()
                .enumerate()
                .filter(|(_, it)| it.step < steps && it.on_disk.is_none_or(|done| done >= steps))
                .map(|(number, _)| number)
                .collect();
            let all = |fate: Fate| open.iter().map(|number| (*number, fate)).collect();
            let mut add = |fates: BTreeMap<usize, Fate>| failures.push(Failure { steps, fates });
            for rest in [Fate::There, Fate::Missing] {
                add(all(rest));
                for number in &open {
                    for fate in self.fates(*number).iter().filter(|fate| **fate != rest) {
                        let mut fates: BTreeMap<usize, Fate> = all(rest);
                        fates.insert(*number, *fate);
                        add(fates);
                    }
                }
            }
            for _ in 0..if open.len() > 1 { more } else { 0 } {
                let any = |number: &usize, moments: &mut Moments| {
                    let fates = self.fates(*number);
                    (*number, fates[moments.number_below(fates.len())])
                };
                add(open.iter().map(|number| any(number, moments)).collect());
            }
        }
        failures
    }

    /// What can become of a change.
    fn fates(&self, number: usize) -> &'static [Fate] {
        match self.changes[number].change {
            Change::Data { .. } => &[Fate::There, Fate::Missing, Fate::Zeros, Fate::Half],
            _ => &[Fate::There, Fate::Missing],
        }
    }

    /// What is there after a power failure.
    pub fn after(&self, failure: &Failure) -> Remains {
        let mut nodes = self.before.clone();
        for (number, it) in self.changes.iter().enumerate() {
            if it.step >= failure.steps {
                break;
            }
            match (failure.fates.get(&number).copied().unwrap_or(Fate::There), &it.change) {
                (Fate::Missing, _) => {}
                (Fate::Zeros, Change::Data { at, bytes }) => {
                    let bytes = vec![0; bytes.len()];
                    apply(&mut nodes, it.node, &Change::Data { at: *at, bytes });
                }
                (Fate::Half, Change::Data { at, bytes }) => {
                    let bytes = bytes[..bytes.len() / 2].to_vec();
                    apply(&mut nodes, it.node, &Change::Data { at: *at, bytes });
                }
                (_, change) => apply(&mut nodes, it.node, change),
            }
        }
        Remains { nodes }
    }
}

/// Files as they are found after a power failure.
pub struct Remains {
    nodes: Vec<Content>,
}

impl Remains {
    /// A number that is the same for the same files, and hardly for others.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash_node(ROOT, &mut hasher);
        hasher.finish()
    }

    fn hash_node(&self, node: Node, hasher: &mut DefaultHasher) {
        match &self.nodes[node] {
            Content::Directory(entries) => {
                for (name, node) in entries {
                    name.hash(hasher);
                    self.hash_node(*node, hasher);
                }
                entries.len().hash(hasher);
            }
            other => other.hash(hasher),
        }
    }

    /// Makes them, in a new directory; each of several names of a file gets a file of its own.
    pub fn put(&self, directory: &Path) {
        self.put_node(ROOT, directory);
    }

    fn put_node(&self, node: Node, path: &Path) {
        match &self.nodes[node] {
            Content::Directory(entries) => {
                DirBuilder::new().mode(0o700).create(path).expect("make a directory");
                for (name, node) in entries {
                    self.put_node(*node, &path.join(name));
                }
            }
            Content::File(bytes) => {
                let mut options = OpenOptions::new();
                let file = options.write(true).create_new(true).mode(0o600).open(path);
                file.and_then(|mut file| file.write_all(bytes)).expect("make a file");
            }
            Content::Link(target) => symlink(target, path).expect("make a link"),
        }
    }
}

/// Reads what is at `path` into a new node. Files with several names have one node.
fn read(path: &Path, nodes: &mut Vec<Content>, known: &mut HashMap<u64, Node>) -> Option<Node> {
    let metadata = path.symlink_metadata().expect("look at it");
    if let Some(node) = known.get(&metadata.ino()) {
        return Some(*node);
    }
    let node = nodes.len();
    if metadata.is_dir() {
        nodes.push(Content::Directory(BTreeMap::new()));
        let entries = fs::read_dir(path).expect("list a directory").flatten();
        let entries = entries
            .filter_map(|entry| Some((entry.file_name(), read(&entry.path(), nodes, known)?)))
            .collect();
        nodes[node] = Content::Directory(entries);
    } else if metadata.is_symlink() {
        nodes.push(Content::Link(fs::read_link(path).expect("read a link")));
    } else if metadata.is_file() {
        nodes.push(Content::File(fs::read(path).expect("read a file")));
        known.insert(metadata.ino(), node);
    } else {
        return None;
    }
    Some(node)
}

/// Files as whoever uses them sees them, whatever is on the disk.
struct Live<'a> {
    nodes: Vec<Content>,
    root: &'a Path,
}

impl Live<'_> {
    /// What is at `path`, if that is below the root.
    fn node(&self, path: &Path) -> Option<Node> {
        path.strip_prefix(self.root).ok()?.components().try_fold(ROOT, |node, name| {
            match (&self.nodes[node], name) {
                (Content::Directory(entries), Component::Normal(name)) => {
                    entries.get(name).copied()
                }
                _ => None,
            }
        })
    }

    /// The directory that a path is in, and its name there.
    fn place(&self, path: &Path) -> Option<(Node, OsString)> {
        Some((self.node(path.parent()?)?, path.file_name()?.to_owned()))
    }

    /// A name for something new.
    fn name(&mut self, path: &Path, content: Content) -> Vec<(Node, Change)> {
        let Some((directory, name)) = self.place(path) else { return Vec::new() };
        self.nodes.push(content);
        vec![(directory, Change::Name(name, Some(self.nodes.len() - 1)))]
    }

    /// What a step changes.
    fn changes(&mut self, step: &Step) -> Vec<(Node, Change)> {
        match step {
            Step::Create(path) => self.name(path, Content::File(Vec::new())),
            Step::MakeDirectory(path) => self.name(path, Content::Directory(BTreeMap::new())),
            Step::Symlink(target, path) => self.name(path, Content::Link(target.clone())),
            Step::Write { path, at, bytes: Bytes(bytes) } => {
                let at = usize::try_from(*at).expect("it is small");
                let data = Change::Data { at, bytes: bytes.clone() };
                self.node(path).map(|node| (node, data)).into_iter().collect()
            }
            Step::Length(path, length) => {
                let length = Change::Length(usize::try_from(*length).expect("it is small"));
                self.node(path).map(|node| (node, length)).into_iter().collect()
            }
            Step::Remove(path) => {
                let place = self.place(path).into_iter();
                place.map(|(directory, name)| (directory, Change::Name(name, None))).collect()
            }
            Step::Link(from, to) => {
                let both = self.node(from).zip(self.place(to)).into_iter();
                let named = |(node, (directory, name))| (directory, Change::Name(name, Some(node)));
                both.map(named).collect()
            }
            Step::Rename(from, to) => {
                let (Some((home, from)), Some((there, to)), Some(node)) =
                    (self.place(from), self.place(to), self.node(from))
                else {
                    return Vec::new();
                };
                assert_eq!(home, there, "{step:?} is not foreseen");
                vec![(home, Change::Move(from, to, node))]
            }
            Step::Mode(_) | Step::Sync { .. } => Vec::new(),
        }
    }
}

fn apply(nodes: &mut [Content], node: Node, change: &Change) {
    match (&mut nodes[node], change) {
        (Content::File(file), Change::Data { at, bytes }) => {
            file.resize(file.len().max(at + bytes.len()), 0);
            file[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        (Content::File(file), Change::Length(length)) => file.resize(*length, 0),
        (Content::Directory(entries), Change::Name(name, Some(node))) => {
            entries.insert(name.clone(), *node);
        }
        (Content::Directory(entries), Change::Name(name, None)) => {
            entries.remove(name);
        }
        (Content::Directory(entries), Change::Move(from, to, node)) => {
            entries.remove(from);
            entries.insert(to.clone(), *node);
        }
        (content, change) => panic!("{change:?} of {content:?}"),
    }
}
