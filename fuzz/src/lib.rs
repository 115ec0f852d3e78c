//! The fuzz targets' common part. The targets themselves are a line each, in `fuzz_targets/`.

mod entry;

use std::path::Path;

pub use entry::{Bench, Reached, control, header};

impl Bench {
    /// Takes an image of those in `tests/golden`.
    pub fn golden(name: &str) -> Self {
        Self::new(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name))
    }
}
