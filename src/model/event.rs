//! Descriptors that tell of events: what an epoll or inotify instance watches.

use serde::{Deserialize, Serialize};

use super::id::{InodeId, OpenFileId};

/// One thing that an epoll instance watches. The kernel knows it by the open file description and by
/// the number that `epoll_ctl` was given, which may have been closed or used for another file since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpollItem {
    /// The description.
    pub file: OpenFileId,
    /// The number that it was added by; never negative.
    pub number: i32,
    /// EPOLL* bits. One with EPOLLONESHOT that has fired keeps only those of [`EPOLL_MODES`].
    pub events: u32,
    /// What `epoll_wait` gives along with an event.
    pub data: u64,
    /// Events of an edge-triggered item that the file shows and the program has been told of, so that
    /// it must not be told of them again.
    pub told: u32,
}

/// Bits of [`EpollItem::events`] that say how to watch rather than what for: EPOLLEXCLUSIVE,
/// EPOLLWAKEUP, EPOLLONESHOT, EPOLLET (`EP_PRIVATE_BITS`, fs/eventpoll.c).
pub const EPOLL_MODES: u32 = 0xf << 28;

impl EpollItem {
    /// Whether it has fired once and tells nothing until it is armed again (EPOLLONESHOT).
    #[must_use]
    pub const fn is_disarmed(&self) -> bool {
        self.events & !EPOLL_MODES == 0
    }
}

/// How an epoll instance polls network devices (`struct epoll_params`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusyPoll {
    /// `busy_poll_usecs`.
    pub microseconds: u32,
    /// `busy_poll_budget`: packets at once.
    pub budget: u16,
    /// `prefer_busy_poll`.
    pub preferred: bool,
}

/// A file or directory that an inotify instance watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileWatch {
    /// The number that `inotify_add_watch` gave it; positive.
    pub number: i32,
    /// What is watched.
    pub inode: InodeId,
    /// IN_* bits.
    pub mask: u32,
}
