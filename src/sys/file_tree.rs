//! Regular files by pattern, and digests of their content.
//!
//! Shell patterns (glob(7)) over names of any bytes: `*` and `?` and `[...]` within one component,
//! and a directory stands for everything below it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::descriptor;
use crate::model::number::{to_u64, to_usize};

/// Bytes of each end of a file that [`digest_ends`] looks at.
const END: u64 = 64 * 1024;

/// The regular files that `pattern` names, sorted: the file itself, all below it when it is a
/// directory, or those that match it. Nothing at or below a path in `excluded` counts. Symbolic links
/// are followed where the pattern names them, not below directories. No match is no error.
pub fn expand(pattern: &Path, excluded: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if exists(pattern)? {
        add(pattern, excluded, &mut found)?;
    } else {
        let components: Vec<Component<'_>> = pattern.components().collect();
        descend(PathBuf::new(), &components, excluded, &mut found)?;
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The 128-bit xxh3 digest of the first `size` bytes of a file, big-endian. Fails when the file is
/// shorter. The position of the description stays where it is.
pub fn digest_prefix(file: &File, size: u64) -> io::Result<[u8; 16]> {
    let mut hasher = Xxh3::new();
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < size {
        let wanted = usize::try_from(size - offset).unwrap_or(usize::MAX).min(buffer.len());
        let count = descriptor::read_at(file, offset, &mut buffer[..wanted])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&buffer[..count]);
        offset += to_u64(count);
    }
    Ok(hasher.digest128().to_be_bytes())
}

/// The 128-bit xxh3 digest of the ends of what a file holds in its first `size` bytes, big-endian:
/// [`END`] bytes at the start and at the end of them, or all where those meet. Fails when the file is
/// shorter.
pub fn digest_ends(file: &File, size: u64) -> io::Result<[u8; 16]> {
    let first = size.min(END);
    let last = (size - first).min(END);
    let mut hasher = Xxh3::new();
    for (offset, length) in [(0, first), (size - last, last)] {
        let mut buffer = vec![0; to_usize(length)];
        if descriptor::read_at(file, offset, &mut buffer)? < buffer.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&buffer);
    }
    Ok(hasher.digest128().to_be_bytes())
}

/// Matches the rest of a pattern below `base`.
fn descend(
    base: PathBuf,
    rest: &[Component<'_>],
    excluded: &[PathBuf],
    found: &mut Vec<PathBuf>,
) -> io::Result<()> {
    let Some((component, rest)) = rest.split_first() else {
        return add(&base, excluded, found);
    };
    let Component::Normal(pattern) = component else {
        return descend(base.join(component), rest, excluded, found);
    };
    if !is_pattern(pattern) {
        let path = base.join(pattern);
        return if exists(&path)? { descend(path, rest, excluded, found) } else { Ok(()) };
    }
    let directory = if base.as_os_str().is_empty() { Path::new(".") } else { &base };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name: OsString = entry?.file_name();
        if matches(pattern.as_bytes(), name.as_bytes()) {
            descend(base.join(name), rest, excluded, found)?;
        }
    }
    Ok(())
}

/// Adds a file, or everything below a directory.
fn add(path: &Path, excluded: &[PathBuf], found: &mut Vec<PathBuf>) -> io::Result<()> {
    if excluded.iter().any(|excluded| path.starts_with(excluded)) {
        return Ok(());
    }
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if is_absent(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    if metadata.is_file() {
        found.push(path.to_owned());
    } else if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_file() || kind.is_dir() {
                add(&entry.path(), excluded, found)?;
            }
        }
    }
    Ok(())
}

fn exists(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn is_pattern(component: &OsStr) -> bool {
    component.as_bytes().iter().any(|byte| b"*?[".contains(byte))
}

/// Whether a name matches a pattern of one component. As in shells, a leading dot must be matched by
/// a dot.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    matches_rest(pattern, name)
}

fn matches_rest(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at_pattern, mut at_name) = (0, 0);
    // Where to go on when what follows the last star does not match: one byte further.
    let mut retry = None;
    while at_name < name.len() {
        match step(&pattern[at_pattern..], name[at_name]) {
            Some(Step::Star) => {
                at_pattern += 1;
                retry = Some((at_pattern, at_name));
            }
            Some(Step::Byte(length)) => {
                at_pattern += length;
                at_name += 1;
            }
            None => {
                let Some((pattern_start, name_start)) = retry else { return false };
                retry = Some((pattern_start, name_start + 1));
                (at_pattern, at_name) = (pattern_start, name_start + 1);
            }
        }
    }
    pattern[at_pattern..].iter().all(|byte| *byte == b'*')
}

enum Step {
    /// A star comes next.
    Star,
    /// The byte matches this many bytes of the pattern.
    Byte(usize),
}

fn step(pattern: &[u8], byte: u8) -> Option<Step> {
    match pattern {
        [b'*', ..] => Some(Step::Star),
        [b'?', ..] => Some(Step::Byte(1)),
        [b'[', rest @ ..] => match bracket(rest, byte) {
            Some((length, true)) => Some(Step::Byte(length + 1)),
            Some((_, false)) => None,
            // Without a closing bracket it stands for itself.
            None => (byte == b'[').then_some(Step::Byte(1)),
        },
        [b'\\', escaped, ..] => (*escaped == byte).then_some(Step::Byte(2)),
        [literal, ..] => (*literal == byte).then_some(Step::Byte(1)),
        [] => None,
    }
}

/// Length of a bracket expression after its opening, and whether the byte is in it; `None` when it
/// is not closed.
fn bracket(pattern: &[u8], byte: u8) -> Option<(usize, bool)> {
    let negated = matches!(pattern.first(), Some(b'!' | b'^'));
    let start = usize::from(negated);
    // A closing bracket in the first place is a member.
    let end = start + 1 + pattern.get(start + 1..)?.iter().position(|found| *found == b']')?;
    let mut members = &pattern[start..end];
    let mut inside = false;
    while let [first, rest @ ..] = members {
        members = if let [b'-', last, rest @ ..] = rest {
            inside |= (first..=last).contains(&&byte);
            rest
        } else {
            inside |= *first == byte;
            rest
        };
    }
    Some((end + 1, inside != negated))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn check(pattern: &str, name: &str, expected: bool) {
        assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
    }

    #[test]
    fn ends_of_files_tell_growth_from_changes() {
        let file = tempfile::tempfile().unwrap();
        let end = to_usize(END);
        let content: Vec<u8> = (0..=u8::MAX).cycle().take(end * 3).collect();
        file.write_all_at(&content, 0).unwrap();
        for size in [0, 1, END, END + 1, 2 * END, 3 * END] {
            let before = digest_ends(&file, size).unwrap();
            file.write_all_at(b"more", END * 3).unwrap();
            assert_eq!(digest_ends(&file, size).unwrap(), before, "{size}");
            for at in [0, size.saturating_sub(1)] {
                file.write_all_at(&[!content[to_usize(at)]], at).unwrap();
                assert_eq!(
                    digest_ends(&file, size).unwrap() == before,
                    size == 0,
                    "{at} of {size}"
                );
                file.write_all_at(&content[to_usize(at)..=to_usize(at)], at).unwrap();
            }
        }
        assert!(digest_ends(&file, END * 3 + 5).is_err());
    }

    #[test]
    fn patterns_match_as_in_shells() {
        check("*.log", "a.log", true);
        check("*.log", ".log", false);
        check("*.log", "a.logs", false);
        check(".*", ".log", true);
        check("a?c", "abc", true);
        check("a?c", "ac", false);
        check("*a*b", "xaybzb", true);
        check("*a*b", "xaybz", false);
        check("out[0-9a]", "out7", true);
        check("out[0-9a]", "outa", true);
        check("out[!0-9]", "out7", false);
        check("out[]x]", "out]", true);
        check("out[", "out[", true);
        check("a\\*", "a*", true);
        check("a\\*", "ab", false);
        check("", "", true);
        check("*", "", true);
    }

    #[test]
    fn paths_patterns_and_directories_are_expanded() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path();
        fs::create_dir_all(base.join("run/deep")).unwrap();
        fs::create_dir_all(base.join("job")).unwrap();
        for name in ["a.log", "b.log", "c.txt", "run/x", "run/deep/y", "job/image"] {
            fs::write(base.join(name), "").unwrap();
        }
        std::os::unix::fs::symlink(base.join("a.log"), base.join("run/link")).unwrap();
        let check = |pattern: &str, expected: &[&str]| {
            let found = expand(&base.join(pattern), &[base.join("job")]).unwrap();
            let expected: Vec<PathBuf> = expected.iter().map(|name| base.join(name)).collect();
            assert_eq!(found, expected, "{pattern}");
        };
        check("a.log", &["a.log"]);
        check("*.log", &["a.log", "b.log"]);
        check("run", &["run/deep/y", "run/x"]);
        check("r*/d*", &["run/deep/y"]);
        check("*", &["a.log", "b.log", "c.txt", "run/deep/y", "run/x"]);
        check("absent", &[]);
        check("absent/*", &[]);
        check("a.log/*", &[]);
    }

    #[test]
    fn digests_cover_the_prefix_only() {
        let file = tempfile::tempfile().unwrap();
        let write = |bytes: &[u8], offset| {
            std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset).unwrap();
        };
        write(b"prefix", 0);
        let digest = digest_prefix(&file, 6).unwrap();
        write(b"more", 6);
        assert_eq!(digest_prefix(&file, 6).unwrap(), digest);
        write(b"P", 0);
        assert_ne!(digest_prefix(&file, 6).unwrap(), digest);
        assert!(digest_prefix(&file, 11).is_err());
    }
}
