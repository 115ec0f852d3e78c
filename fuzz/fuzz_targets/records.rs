//! Changes of an image that has records of every kind.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rckpt_fuzz::Bench;

static BENCH: LazyLock<Bench> = LazyLock::new(|| Bench::golden("records"));

fuzz_target!(|data: &[u8]| {
    BENCH.changed(data);
});
