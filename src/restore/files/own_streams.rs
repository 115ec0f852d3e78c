//! What the caller's own standard streams are like before a restore touches them: where they stand, and
//! whether calls on them wait. Both are the caller's, too, who goes on with them when the restore fails.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::decide::Connection;
use crate::model::file::Stream;
use crate::sys::{descriptor, terminal};

/// The streams that are there.
#[derive(Debug, Default)]
pub(super) struct OwnStreams(Vec<State>);

/// What a stream is like.
#[derive(Debug)]
struct State {
    stream: Stream,
    flags: i32,
    /// Where it stands, and where the restore has it go on.
    moved: Option<(u64, u64)>,
}

impl OwnStreams {
    /// Looks at those that are open. A restore touches no others.
    pub fn look_at(connections: &BTreeMap<Stream, Connection>) -> Self {
        let state = |stream| {
            let own = duplicate(stream).ok()?;
            let moved = match connections.get(&stream) {
                Some(Connection::OwnAt { position }) => Some((position_of(&own).ok()?, *position)),
                _ => None,
            };
            Some(State { stream, flags: descriptor::status_flags(&own).ok()?, moved })
        };
        let streams = [Stream::Input, Stream::Output, Stream::Error];
        Self(streams.into_iter().filter_map(state).collect())
    }

    /// Has them be as they were, as far as nobody else has moved them since.
    ///
    /// # Errors
    /// Which one could not be put back, and why.
    pub fn put_back(&self) -> Result<(), (Stream, Errno)> {
        self.0.iter().try_for_each(|state| put_back(state).map_err(|errno| (state.stream, errno)))
    }
}

fn put_back(state: &State) -> Result<(), Errno> {
    let own = duplicate(state.stream)?;
    if !terminal::is_terminal(&own) && descriptor::status_flags(&own)? != state.flags {
        descriptor::set_status_flags(&own, state.flags)?;
    }
    match state.moved {
        Some((before, set)) if position_of(&own)? == set => descriptor::set_position(&own, before),
        _ => Ok(()),
    }
}

fn duplicate(stream: Stream) -> Result<OwnedFd, Errno> {
    match stream {
        Stream::Input => descriptor::duplicate_above(io::stdin().as_fd(), 3),
        Stream::Output => descriptor::duplicate_above(io::stdout().as_fd(), 3),
        Stream::Error => descriptor::duplicate_above(io::stderr().as_fd(), 3),
    }
}

fn position_of(own: &OwnedFd) -> Result<u64, Errno> {
    lseek(own, 0, Whence::SeekCur).map(i64::unsigned_abs)
}
