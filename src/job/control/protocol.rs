//! What is said over the control socket: one request, one reply, each a single bounded message.
//!
//! A message is the magic, the protocol's version (16 bits, little-endian), and a postcard record.
//! The socket keeps messages apart (SOCK_SEQPACKET), so no length is sent. The version is not the
//! program's: it changes when a record does, from the first release on, of which this is the version. Until then
//! only supervisors that were built with the same records understand each other; others are told apart by
//! [`ProtocolError::Damaged`] as a rule.

use std::num::NonZeroU64;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::job::report::{Explanation, Taken};
use crate::model::code::{self, Code};
use crate::model::id::Bytes;

/// The version that this program speaks.
pub const VERSION: u16 = 1;
/// The longest message, in bytes. Longer ones are neither sent nor read.
pub const LARGEST: usize = 64 * 1024;

const MAGIC: &[u8; 6] = b"rckpt\0";
const HEADER: usize = MAGIC.len() + size_of::<u16>();

/// What becomes of a job after its checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Then {
    /// It runs on.
    Continue,
    /// It is ended, in one step with the checkpoint.
    Kill,
    /// It is left stopped.
    Stop,
}

/// A checkpoint that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// What becomes of the job.
    pub then: Then,
    /// Where it goes, absolute; `None`: the job's own directory.
    pub directory: Option<Bytes>,
    /// Whether page data is compressed; `None`: as the supervisor was told at its start.
    pub compress: Option<bool>,
    /// Bytes a second that are written at most while the job runs; `None`: as the supervisor was told.
    pub rate: Option<NonZeroU64>,
    /// Outputs named in addition to those that the supervisor knows, absolute.
    pub outputs: Vec<Bytes>,
    /// Whether TCP connections to outside the job are given up, beside what the supervisor was told.
    pub tcp_close: bool,
    /// The same for connections of unix sockets.
    pub ext_unix: bool,
    /// Files to be saved whole, in addition to those that the supervisor knows, absolute.
    pub save: Vec<Bytes>,
    /// Whether to find out by itself which should be.
    pub saves_by_itself: bool,
}

/// What is asked of a supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// How the job is: answered with [`Reply::Status`].
    Status,
    /// Take a checkpoint: answered with [`Reply::Taken`] when it is complete.
    Dump(Order),
    /// The same, asked by a process of the job itself. It cannot hold the connection open while it
    /// is saved, so this is answered with [`Reply::Accepted`] at once, and the checkpoint begins
    /// when the asker has closed the connection.
    DumpFromInside(Order),
    /// Begin no checkpoint until [`Request::Release`], which must come as often: answered with
    /// [`Reply::Done`].
    Hold {
        /// After so many seconds it counts as released.
        seconds: Option<u64>,
    },
    /// Takes one [`Request::Hold`] back: answered with [`Reply::Done`].
    Release,
    /// What became of a [`Request::DumpFromInside`]: [`Reply::Pending`], or as for `Dump`.
    Outcome {
        /// As accepted.
        ticket: u64,
    },
}

/// What a supervisor says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// How the job is.
    Status(Status),
    /// The checkpoint is complete.
    Taken(Taken),
    /// It will be taken; ask later.
    Accepted {
        /// By which to ask.
        ticket: u64,
        /// This supervisor, told from one that brought the job back later.
        instance: Bytes,
    },
    /// It is not complete yet.
    Pending,
    /// It is done.
    Done,
    /// The request was not granted, and nothing was tried.
    Refused(Refusal),
    /// The checkpoint failed; the job runs on.
    Failed(Explanation),
}

/// Why a request was not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum Refusal {
    /// A checkpoint of the job is being taken.
    #[error("a checkpoint of the job is being taken already")]
    Busy,
    /// The job is being ended.
    #[error("the job is being ended")]
    Ending,
    /// The asker does not belong to the job, though it says so.
    #[error("the process that asks does not belong to the job")]
    NotInside,
    /// The asker belongs to the job and must say so.
    #[error("the process that asks belongs to the job itself")]
    Inside,
    /// There never was such a ticket, or it is forgotten.
    #[error("no such ticket")]
    UnknownTicket,
    /// The job has put off all checkpoints, its own among them.
    #[error("checkpoints of the job are held off (rckpt hold) until rckpt release")]
    Held,
    /// There is nothing to release.
    #[error("checkpoints of the job are not held off")]
    NotHeld,
    /// The message could not be read.
    #[error("the request could not be read")]
    Unreadable,
}

impl Refusal {
    /// Its code.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Busy => code::attaching::CHECKPOINT_UNDER_WAY,
            Self::Ending => code::attaching::JOB_ENDING,
            Self::NotInside | Self::Inside | Self::UnknownTicket | Self::Unreadable => {
                code::attaching::MISUNDERSTOOD
            }
            Self::Held => code::attaching::HELD,
            Self::NotHeld => code::attaching::NOT_HELD,
        }
    }
}

/// How a job is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The job's identity.
    pub job: Bytes,
    /// The supervisor, told from others of the same job.
    pub instance: Bytes,
    /// Where its checkpoints go.
    pub directory: Bytes,
    /// The root process's number as the supervisor sees it.
    pub root: i32,
    /// The supervisor's number as it sees itself.
    pub supervisor: i32,
    /// The command line, cut to fit in a message.
    pub command: Vec<Bytes>,
    /// When the supervisor started, in seconds since 1970.
    pub started: i64,
    /// Seconds between checkpoints, when they are taken regularly.
    pub every: Option<u64>,
    /// When the next one is taken by the clock, in seconds since 1970.
    pub next: Option<i64>,
    /// The checkpoint that this supervisor took last.
    pub last: Option<Taken>,
    /// Whether one is being taken now.
    pub busy: bool,
    /// How far that one is: bytes of memory dealt with, and those expected in all, about (0: not known yet).
    pub progress: (u64, u64),
    /// Whether they are held off.
    pub held: bool,
    /// Variables of the batch system that are another in the job's environment than in the
    /// supervisor's.
    pub stale: Vec<Bytes>,
}

/// Why a message could not be made or read.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// It does not begin as one of ours.
    #[error("not a message of rckpt")]
    Magic,
    /// Its sender speaks another version.
    #[error("the other side speaks version {theirs} of the protocol, this rckpt version {VERSION}")]
    Version {
        /// The sender's version.
        theirs: u16,
    },
    /// It is longer than [`LARGEST`].
    #[error("a message of more than {LARGEST} bytes")]
    TooLong,
    /// Its record is damaged, or bytes follow it.
    #[error("a message that this rckpt does not understand: the other one is of another version")]
    Damaged,
}

/// The message for a record.
pub fn encode(record: &impl Serialize) -> Result<Vec<u8>, ProtocolError> {
    let mut message = MAGIC.to_vec();
    message.extend_from_slice(&VERSION.to_le_bytes());
    let message = postcard::to_extend(record, message).map_err(|_| ProtocolError::Damaged)?;
    if message.len() > LARGEST { Err(ProtocolError::TooLong) } else { Ok(message) }
}

/// The record in a message.
pub fn decode<T: DeserializeOwned>(message: &[u8]) -> Result<T, ProtocolError> {
    if message.len() > LARGEST {
        return Err(ProtocolError::TooLong);
    }
    let rest = message.strip_prefix(MAGIC).ok_or(ProtocolError::Magic)?;
    let (version, record) = rest.split_first_chunk().ok_or(ProtocolError::Magic)?;
    let theirs = u16::from_le_bytes(*version);
    if theirs != VERSION {
        return Err(ProtocolError::Version { theirs });
    }
    match postcard::take_from_bytes(record) {
        Ok((value, [])) => Ok(value),
        _ => Err(ProtocolError::Damaged),
    }
}

/// As many leading words of a command line as fit in `limit` bytes, the last one cut if need be.
#[must_use]
pub fn shorten(command: &[Bytes], limit: usize) -> Vec<Bytes> {
    let mut left = limit;
    let mut words = Vec::new();
    for word in command {
        if left == 0 {
            break;
        }
        let kept = word.0.len().min(left);
        words.push(Bytes(word.0[..kept].to_vec()));
        left = left.saturating_sub(kept + 1);
    }
    words
}

const _: () = assert!(HEADER == 8);

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::Duration;

    use xxhash_rust::xxh3::xxh3_64;

    use super::{
        Bytes, LARGEST, Order, ProtocolError, Refusal, Reply, Request, Status, Taken, Then,
        VERSION, decode, encode, shorten,
    };

    fn order(outputs: usize) -> Order {
        Order {
            then: Then::Kill,
            directory: Some(Bytes(b"/scratch/\xff".to_vec())),
            compress: Some(false),
            rate: NonZeroU64::new(1 << 20),
            outputs: vec![Bytes(vec![b'x'; 1000]); outputs],
            tcp_close: true,
            ext_unix: false,
            save: Vec::new(),
            saves_by_itself: false,
        }
    }

    #[test]
    fn what_is_said_is_heard() {
        for request in [
            Request::Status,
            Request::Dump(order(3)),
            Request::DumpFromInside(order(0)),
            Request::Outcome { ticket: u64::MAX },
        ] {
            assert_eq!(decode(&encode(&request).unwrap()), Ok(request));
        }
        let reply = Reply::Refused(Refusal::Busy);
        assert_eq!(decode(&encode(&reply).unwrap()), Ok(reply));
    }

    /// After the first release a change here takes another [`VERSION`].
    #[test]
    fn the_bytes_of_messages_are_those_of_their_version() {
        let taken = Taken {
            path: b"/15"[..].into(),
            pause: Duration::from_millis(16),
            elapsed: Duration::from_secs(17),
            bytes: 18,
            raw_bytes: 19,
            kept_bytes: 20,
            parent: Some("21".to_owned()),
            processes: 22,
            threads: 23,
            warnings: vec!["24".to_owned()],
            hint: Some("25".to_owned()),
            at: 26,
        };
        let status = Status {
            job: Bytes(b"1".to_vec()),
            instance: Bytes(b"2".to_vec()),
            directory: Bytes(b"/3".to_vec()),
            root: 4,
            supervisor: 5,
            command: vec![Bytes(b"6".to_vec())],
            started: 7,
            every: Some(8),
            next: Some(9),
            last: Some(taken),
            busy: true,
            progress: (10, 11),
            held: false,
            stale: vec![Bytes(b"12".to_vec())],
        };
        let requests = [
            Request::Status,
            Request::Dump(order(1)),
            Request::Hold { seconds: Some(13) },
            Request::Release,
            Request::Outcome { ticket: 14 },
        ];
        let mut bytes = encode(&Reply::Status(status)).unwrap();
        for request in requests {
            bytes.extend(encode(&request).unwrap());
        }
        assert_eq!((VERSION, xxh3_64(&bytes)), (1, 13_715_210_006_029_527_334));
    }

    #[test]
    fn messages_are_bounded() {
        assert!(encode(&Request::Dump(order(64))).is_ok());
        assert_eq!(encode(&Request::Dump(order(66))), Err(ProtocolError::TooLong));
        let long = vec![0; LARGEST + 1];
        assert_eq!(decode::<Request>(&long), Err(ProtocolError::TooLong));
    }

    #[test]
    fn damaged_messages_are_told_and_never_panic() {
        let check = |message: &[u8], expected: ProtocolError| {
            assert_eq!(decode::<Request>(message), Err(expected), "{message:?}");
        };
        let good = encode(&Request::Dump(order(1))).unwrap();
        check(b"", ProtocolError::Magic);
        check(b"GET / HTTP/1.1", ProtocolError::Magic);
        check(&good[..7], ProtocolError::Magic);
        check(b"rckpt\0\x02\x01rest", ProtocolError::Version { theirs: 0x102 });
        check(&[&good[..], b"x"].concat(), ProtocolError::Damaged);
        for end in 8..good.len() {
            check(&good[..end], ProtocolError::Damaged);
        }
        // A length far beyond the message must not be believed.
        check(b"rckpt\0\x01\0\x01\x00\x01\xff\xff\xff\xff\xff\x7f", ProtocolError::Damaged);
    }

    #[test]
    fn command_lines_are_shortened() {
        let words = |words: &[&str]| -> Vec<Bytes> {
            words.iter().map(|word| Bytes::from(word.as_bytes())).collect()
        };
        let check = |limit: usize, expected: &[&str]| {
            assert_eq!(shorten(&words(&["python3", "train.py", "-v"]), limit), words(expected));
        };
        check(100, &["python3", "train.py", "-v"]);
        check(12, &["python3", "trai"]);
        check(8, &["python3"]);
        check(3, &["pyt"]);
        check(0, &[]);
    }
}
