//! Changes of the image of a real job, and the plan of its restore.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rckpt_fuzz::Bench;

static BENCH: LazyLock<Bench> = LazyLock::new(|| Bench::golden("counter/job/gen-000001"));

fuzz_target!(|data: &[u8]| {
    BENCH.changed(data);
});
