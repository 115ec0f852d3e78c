//! Drives the built binary from outside, as a user would: jobs are started, dumped, lost and brought
//! back, and judge themselves (fixtures) or are judged by their output (programs).
//!
//! Runs as root or as any user. Root plays both parts itself: each test comes as the caller and as a
//! plain user without any privilege.

mod harness;

mod at_rest;
mod batch;
mod check;
mod containers;
mod crowd;
mod damage;
mod disks;
mod embedded;
mod endurance;
mod errors;
mod faults;
mod files;
mod golden;
mod guide;
mod harmless;
mod in_motion;
mod inside;
mod inspected;
mod interrupted;
mod judged;
mod kept;
mod life;
mod manual;
mod other_kernel;
mod pace;
mod packages;
mod power;
mod programs;
mod room;
mod scale;
mod slurm;
mod strangers;
mod studied;
mod supervision;
mod terminals;
mod tiers;
mod told;
mod tracking;
mod watched;
