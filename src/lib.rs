//! rckpt saves a running tree of Linux processes from outside, as an ordinary user, and brings it
//! back later.
//!
//! Another program that is to save and restore jobs finds all that it needs in [`embed`]: [`dump()`],
//! [`restore()`], and [`image::Reader`] to look into a checkpoint.
//!
//! The rooms form layers, and each imports lower ranks only:
//! `model 0 < sys, image 1 < tracer 2 < dump, restore 3 < job 4 < cli 5`, with two more bans: `sys`
//! and `image` do not know each other, nor do `dump` and `restore`. `tests/layers.rs` holds the rule.

pub mod cli;
pub mod dump;
pub mod embed;
pub mod image;
pub mod job;
pub mod model;
pub mod restore;
pub mod sys;
pub mod tracer;

pub use embed::{dump, restore};
