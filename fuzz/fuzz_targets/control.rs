//! What comes over the control socket.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| rckpt_fuzz::control(data));
