//! What the end-to-end tests stand on: a directory of their own for each, users, processes, fixtures.
//!
//! Nothing here knows what a checkpoint looks like: it only runs commands and looks at what the
//! kernel shows of processes.

pub mod faults;
pub mod fixture;
pub mod moments;
pub mod power;
pub mod process;
pub mod rounds;
pub mod slurm;
pub mod stepping;
pub mod storage;
pub mod workplace;
