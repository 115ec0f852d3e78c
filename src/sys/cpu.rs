//! What this CPU's extended state looks like: CPUID and XGETBV.

#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};

const LEAF_FEATURES: u32 = 1;
const LEAF_XSTATE: u32 = 0xd;
const ECX_OSXSAVE: u32 = 1 << 27;

/// The parts of the extended state that the kernel has switched on (XCR0); zero without XSAVE.
#[must_use]
pub fn xcr0() -> u64 {
    if __cpuid(LEAF_FEATURES).ecx & ECX_OSXSAVE == 0 {
        return 0;
    }
    let (low, high): (u32, u32);
    // SAFETY: XGETBV with index 0 is allowed to user programs when OSXSAVE is set, as checked, and
    // only writes the two registers.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Offset and size in bytes of each component of the extended state in the standard format, by its
/// number from 2 on up to the highest that is switched on; zero for one that does not exist.
#[must_use]
pub fn xstate_components() -> Vec<(u32, u32)> {
    let enabled = xcr0();
    let highest = 64 - enabled.leading_zeros();
    (2..highest)
        .map(|component| {
            if enabled >> component & 1 == 0 {
                return (0, 0);
            }
            let leaf = __cpuid_count(LEAF_XSTATE, component);
            (leaf.ebx, leaf.eax)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_follow_each_other() {
        let enabled = xcr0();
        let components = xstate_components();
        if enabled >> 2 & 1 == 1 {
            // AVX has been at 576 since its beginning.
            assert_eq!(components[0], (576, 256));
        }
        assert!(components.iter().all(|(offset, size)| *size == 0 || *offset >= 576));
    }
}
