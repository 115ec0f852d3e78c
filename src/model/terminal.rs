//! Pseudo-terminals whose both ends are in the job, and what is queued in them.

use serde::{Deserialize, Serialize};

use super::id::{Bytes, Pid};

/// Bytes in `struct termios2` (include/uapi/asm-generic/termbits.h): four flag words, the line
/// discipline, 19 control characters, two speeds.
pub const TERMIOS2_SIZE: usize = 44;

/// Bytes in `struct winsize`: rows, columns, and pixels both ways.
pub const WINSIZE_SIZE: usize = 8;

/// `struct termios2`, raw.
pub type Termios = [u8; TERMIOS2_SIZE];

/// Whether a terminal assembles lines (ICANON), and does so itself (no EXTPROC).
#[must_use]
pub fn assembles_lines(termios: &Termios) -> bool {
    const LOCAL_FLAGS: usize = 12;
    const ICANON: u32 = 0o2;
    const EXTPROC: u32 = 0o200_000;
    let bytes = [0, 1, 2, 3].map(|place| termios[LOCAL_FLAGS + place]);
    u32::from_ne_bytes(bytes) & (ICANON | EXTPROC) == ICANON
}

/// Bytes that may wait in each direction: the kernel's own buffers hold less.
pub const QUEUE_LIMIT: usize = 32 * 1024;

/// Which end of a pseudo-terminal a description is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TerminalEnd {
    /// Opened through `/dev/ptmx`.
    Master,
    /// Opened by its name.
    Slave,
    /// The slave, opened through `/dev/tty`.
    SlaveAsControlling,
}

/// What a pseudo-terminal's ends are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TerminalState {
    /// The slave has never been opened.
    Fresh,
    /// Both ends are open.
    Open,
    /// The slave has been open, and nobody has it open any more: the master reads EIO.
    SlaveClosed,
    /// The master is closed: every slave is hung up, and the terminal has no name any more.
    HungUp,
}

/// Why a terminal's output stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Flow {
    /// It does not.
    Running,
    /// By the STOP character (Ctrl-S).
    StoppedByKey,
    /// By `tcflow(TCOOFF)`.
    StoppedByProgram,
}

/// What waits to be read from the slave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TerminalInput {
    /// Bytes, when the terminal does not assemble lines.
    Raw(Bytes),
    /// Lines, when it does (ICANON).
    Lines {
        /// What each `read` would give, oldest first: one that does not end in a character that
        /// ends lines was ended by the end-of-file character.
        complete: Vec<Bytes>,
        /// What has been typed of the next line.
        begun: Bytes,
    },
}

impl TerminalInput {
    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Raw(bytes) => bytes.0.len(),
            Self::Lines { complete, begun } => {
                complete.iter().map(|line| line.0.len()).sum::<usize>() + begun.0.len()
            }
        }
    }

    /// Whether nothing waits, not even an end of file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Raw(bytes) => bytes.0.is_empty(),
            Self::Lines { complete, begun } => complete.is_empty() && begun.0.is_empty(),
        }
    }
}

/// A pseudo-terminal that the job has made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PseudoTerminal {
    /// N of `/dev/pts/N`.
    pub index: u32,
    /// The path by which the master was opened.
    pub master: Bytes,
    /// What its ends are like.
    pub state: TerminalState,
    /// `struct termios2` of the slave (44 bytes); empty when it is hung up.
    pub termios: Vec<u8>,
    /// `struct winsize` (8 bytes); empty when it is hung up.
    pub window: Vec<u8>,
    /// TIOCPKT: the master is told about the slave's modes.
    pub packet_mode: bool,
    /// TIOCSPTLCK: the slave cannot be opened.
    pub locked: bool,
    /// TIOCEXCL: the slave cannot be opened again.
    pub exclusive: bool,
    /// Whether its output stands still.
    pub flow: Flow,
    /// Owner of the node under /dev/pts.
    pub uid: u32,
    /// Group of that node.
    pub gid: u32,
    /// Permission bits of that node.
    pub mode: u32,
    /// The session, led by a process of the job, that it controls.
    pub session: Option<Pid>,
    /// The foreground process group of that session.
    pub foreground: Option<Pid>,
    /// What waits to be read from the slave.
    pub input: TerminalInput,
    /// What waits to be read from the master.
    pub output: Bytes,
}

/// Everything about terminals that belongs to no description.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminals {
    /// Those that the job has made.
    pub own: Vec<PseudoTerminal>,
    /// The foreground process group of the outer terminal, when that is one of the job's.
    pub outer_foreground: Option<Pid>,
}
