//! Standard streams: which descriptions lead to where the job's input, output and errors came from
//! and went to outside the job.
//!
//! Under supervision these are the descriptions of the supervisor's own 0, 1 and 2. Without one, the
//! root's 0, 1 and 2 are, as far as they are terminals, or pipes and sockets that lead outside; a
//! regular file there is a file like any other.

use std::cmp::Ordering;

use nix::unistd::Pid;

use super::classify::Class;
use super::pipe::PipeTable;
use super::scan::{Description, Entry, FileStat, descriptor_path};
use super::socket::SocketTable;
use super::terminal::TerminalTable;
use super::{
    CollectFilesError, Collector, Failure, RefusalKind, Scope, Warning, call_failed, duplicate,
};
use crate::model::file::{Stream, StreamTarget};
use crate::model::id::Bytes;
use crate::sys::{descriptor, terminal};

const STREAMS: [Stream; 3] = [Stream::Input, Stream::Output, Stream::Error];

/// What tells which pipes, sockets and terminals are the job's own.
type Surveyed<'a> = (&'a PipeTable<'a>, &'a SocketTable, &'a TerminalTable);

/// One of the standard streams, at the process that it is known from.
#[derive(Clone, Copy, Debug)]
struct Known {
    stream: Stream,
    /// That process, and the number there.
    at: (Pid, i32),
    stat: FileStat,
    /// O_RDONLY, O_WRONLY or O_RDWR.
    access: i32,
}

/// The standard streams of the job.
#[derive(Debug)]
pub(super) struct Streams(Vec<Known>);

impl Streams {
    /// Finds the job's streams.
    pub fn find(
        scope: &Scope<'_>,
        descriptions: &[Description],
        classes: &[Class],
        surveyed: Surveyed<'_>,
    ) -> Result<Self, CollectFilesError> {
        let mut known = Vec::new();
        for (stream, number) in STREAMS.into_iter().zip(0..) {
            let pid = scope.supervisor.unwrap_or(scope.root);
            let path = descriptor_path(pid, number);
            // A stream that is closed is none.
            let Ok(metadata) = std::fs::metadata(&path) else { continue };
            let stat = FileStat::from(&metadata);
            let at = (pid, number);
            if scope.supervisor.is_none()
                && !leads_outside(at, stat, descriptions, classes, surveyed)
            {
                continue;
            }
            known.push(Known { stream, at, stat, access: access(pid, number)? });
        }
        Ok(Self(known))
    }

    /// Which streams a description is; empty for most. Descriptions of the same terminal, pipe or
    /// socket that were opened separately (/dev/stdout) count as well.
    pub fn of(&self, found: &Description, class: &Class) -> Result<Vec<Stream>, CollectFilesError> {
        let (pid, number) = found.holder;
        let mut streams = Vec::new();
        if matches!(class, Class::Device | Class::Path) {
            return Ok(streams);
        }
        let of_file: Vec<&Known> =
            self.0.iter().filter(|known| known.stat.identity() == found.stat.identity()).collect();
        for known in &of_file {
            let order = descriptor::compare_files(known.at, found.holder)
                .map_err(|source| CollectFilesError::CompareDescriptors { pid, number, source })?;
            if order == Ordering::Equal {
                streams.push(known.stream);
            }
        }
        if streams.is_empty() && matches!(class, Class::Terminal | Class::Pipe | Class::Socket) {
            let fits = |known: &&Known| *class != Class::Pipe || known.access == found.access();
            streams.extend(of_file.into_iter().filter(fits).map(|known| known.stream));
        }
        Ok(streams)
    }
}

/// Divides the descriptors of a description among the streams that it is. At the restore the three
/// may lead to different places although they led to one: descriptors 0, 1 and 2 go to the stream of
/// their number, others to where the program most likely means to write.
pub(super) fn split(streams: &[Stream], found: &Description) -> Vec<(Stream, Vec<Entry>)> {
    let preference = if found.access() == libc::O_RDONLY {
        [Stream::Input, Stream::Output, Stream::Error]
    } else {
        [Stream::Output, Stream::Error, Stream::Input]
    };
    let usual = preference.into_iter().find(|stream| streams.contains(stream));
    let mut parts: Vec<(Stream, Vec<Entry>)> = Vec::new();
    for entry in &found.entries {
        let own = STREAMS
            .into_iter()
            .zip(0..)
            .find(|(stream, number)| *number == entry.number && streams.contains(stream));
        let Some(stream) = own.map(|(stream, _)| stream).or(usual) else { continue };
        match parts.iter_mut().find(|(other, _)| *other == stream) {
            Some((_, entries)) => entries.push(entry.clone()),
            None => parts.push((stream, vec![entry.clone()])),
        }
    }
    // One that is only on its way to somebody has no numbers.
    if let Some(stream) = usual.filter(|_| parts.is_empty()) {
        parts.push((stream, Vec::new()));
    }
    parts
}

/// What a stream leads to.
pub(super) fn target(
    collector: &mut Collector,
    found: &Description,
) -> Result<StreamTarget, Failure> {
    if found.stat.file_type() == libc::S_IFREG && found.link.starts_with(b"/") {
        match collector.intern_description(found) {
            Ok(inode) => {
                return Ok(StreamTarget::Regular { inode, position: found.position() });
            }
            // Whoever called rckpt opened it where its user may not look. A restore connects the
            // stream to its own caller's, which does not need the path.
            Err(Failure::Refused(RefusalKind::NotReachable)) => {
                let (pid, number) = found.holder;
                let path = Bytes::from(&found.link[..]);
                let inode =
                    collector.inodes.intern_stream(found.stat, path.clone(), found.holder)?;
                collector.warnings.push(Warning::StreamNotReachable { pid, number, path });
                return Ok(StreamTarget::Regular { inode, position: found.position() });
            }
            Err(failure) => return Err(failure),
        }
    }
    if found.stat.file_type() == libc::S_IFCHR {
        let file = duplicate(found)?;
        if let Ok(termios) = terminal::modes(&file) {
            let window = terminal::window_size(&file).map_err(call_failed(found, "TIOCGWINSZ"))?;
            return Ok(StreamTarget::Terminal {
                termios: termios.to_vec(),
                window: window.to_vec(),
            });
        }
    }
    Ok(StreamTarget::Other(Bytes::from(&found.link[..])))
}

/// Whether a descriptor of the root of an unsupervised job leads out of it.
fn leads_outside(
    at: (Pid, i32),
    stat: FileStat,
    descriptions: &[Description],
    classes: &[Class],
    (pipes, sockets, terminals): Surveyed<'_>,
) -> bool {
    let same = |found: &Description| {
        found.stat.identity() == stat.identity()
            && (found.holder == at || found.entries.iter().any(|entry| entry.number == at.1))
    };
    descriptions.iter().zip(classes).any(|(found, class)| {
        same(found)
            && match class {
                Class::Terminal => !terminals.is_own(found),
                Class::ControllingTerminal => true,
                Class::Pipe => pipes.leads_outside(found),
                Class::Socket => sockets.leads_outside(found),
                _ => false,
            }
    })
}

fn access(pid: Pid, number: i32) -> Result<i32, CollectFilesError> {
    let path = std::path::PathBuf::from(format!("/proc/{pid}/fdinfo/{number}"));
    let content = match std::fs::read(&path) {
        Ok(content) => content,
        Err(source) => return Err(CollectFilesError::ReadProc { path, source }),
    };
    let info = crate::sys::fdinfo::parse(&content)
        .map_err(|source| CollectFilesError::ParseFdInfo { pid, number, source })?;
    Ok(info.flags.cast_signed() & libc::O_ACCMODE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time::TimeSpec;
    use crate::sys::fdinfo::FdInfo;

    fn description(flags: i32, numbers: &[i32]) -> Description {
        let info = FdInfo { flags: flags.cast_unsigned(), ..FdInfo::default() };
        Description {
            holder: (Pid::from_raw(1), numbers[0]),
            stat: FileStat {
                device: 0,
                number: 0,
                mode: libc::S_IFCHR,
                rdev: 0,
                size: 0,
                links: 1,
                mtime: TimeSpec::default(),
            },
            link: b"/dev/pts/0".to_vec(),
            info: info.clone(),
            entries: numbers
                .iter()
                .map(|number| Entry { table: 0, number: *number, info: info.clone() })
                .collect(),
        }
    }

    fn check(flags: i32, streams: &[Stream], numbers: &[i32], expected: &[(Stream, &[i32])]) {
        let parts: Vec<(Stream, Vec<i32>)> = split(streams, &description(flags, numbers))
            .into_iter()
            .map(|(stream, entries)| (stream, entries.iter().map(|entry| entry.number).collect()))
            .collect();
        let expected: Vec<(Stream, Vec<i32>)> =
            expected.iter().map(|(stream, numbers)| (*stream, numbers.to_vec())).collect();
        assert_eq!(parts, expected);
    }

    #[test]
    fn one_terminal_becomes_three_streams_again() {
        check(
            libc::O_RDWR,
            &STREAMS,
            &[0, 1, 2, 255],
            &[(Stream::Input, &[0]), (Stream::Output, &[1, 255]), (Stream::Error, &[2])],
        );
    }

    #[test]
    fn one_stream_keeps_all_its_descriptors() {
        check(libc::O_WRONLY, &[Stream::Output], &[1, 2, 9], &[(Stream::Output, &[1, 2, 9])]);
        check(libc::O_RDONLY, &[Stream::Input], &[0, 5], &[(Stream::Input, &[0, 5])]);
    }
}
