//! The raw parts of an image: headers, and entries of the table of sections.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| rckpt_fuzz::header(data));
