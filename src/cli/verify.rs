//! `rckpt verify`: every checksum and cross-reference of the checkpoints in a directory.

use std::path::PathBuf;

use super::failure::Failure;

/// Check every checksum and cross-reference in DIR
#[derive(clap::Args)]
pub struct Arguments {
    /// A job's directory, or one checkpoint in it
    dir: PathBuf,
    /// Decode all page data, too
    #[arg(long)]
    deep: bool,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// Verifies.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { dir, deep, json } = arguments;
    Err(Failure::internal(format_args!(
        "verify {dir:?} (deep: {deep}, json: {json}): not built yet"
    )))
}
