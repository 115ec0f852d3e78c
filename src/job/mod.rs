//! A job under supervision: its directory of generations, the event loop, the control socket.
//!
//! [`supervisor`] is the loop that `run` and `restore` share; [`checkpoint`] takes one checkpoint
//! into a [`directory`]; [`control`] is how other rckpt commands reach a supervisor. Nothing here
//! prints: what people are told goes through [`report::Observer`].

pub mod alive;
pub mod background;
pub mod batch;
pub mod budget;
pub mod checkpoint;
pub mod claim;
pub mod control;
pub mod copy;
pub mod directory;
pub mod finish;
pub mod history;
pub mod hooks;
pub mod identity;
pub mod interval;
pub mod journal;
pub mod left;
mod lock;
pub mod places;
pub mod prediction;
pub mod record;
pub mod report;
pub mod request;
pub mod restore;
pub mod resume;
pub mod retention;
pub mod root;
pub mod run;
pub mod signals;
pub mod stale;
pub mod start;
pub mod supervisor;
pub mod terminal;
