//! Bringing a job back: a pure plan first, then process tree, descriptors, memory, threads, go.
//!
//! docs/RESTORE-STAGES.md tells the stages in order. `births`, `blob` and `script` are pure; `tree`
//! runs in the processes that are to become the job; `control` is the tracer's side.

pub mod births;
pub mod blob;
pub mod opened;
pub mod script;
