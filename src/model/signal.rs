//! Signals: sets, dispositions and what is pending.

use serde::{Deserialize, Serialize};

use super::address::RemoteAddr;

/// A set of signals in the kernel's layout: bit `n - 1` is signal `n`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SignalSet(pub u64);

impl SignalSet {
    /// Whether signal `number` (1..=64) is in the set.
    #[must_use]
    pub const fn contains(self, number: u32) -> bool {
        number >= 1 && number <= 64 && self.0 >> (number - 1) & 1 == 1
    }

    /// The numbers in the set, ascending.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        (1..=64).filter(move |number| self.contains(*number))
    }
}

/// A handler installed with `rt_sigaction`, or SIG_IGN; signals not listed have the default action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalAction {
    /// The signal, 1..=64.
    pub signal: u32,
    /// Address of the handler; 1 is SIG_IGN.
    pub handler: RemoteAddr,
    /// SA_* bits.
    pub flags: u64,
    /// Address of the trampoline that returns from the handler (SA_RESTORER).
    pub restorer: RemoteAddr,
    /// Signals blocked while the handler runs.
    pub mask: SignalSet,
}

/// Bytes in the kernel's `siginfo_t`.
pub const SIGINFO_SIZE: usize = 128;

/// One queued signal: the kernel's `siginfo_t` as it was, 128 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingSignal {
    /// The raw `siginfo_t`; always [`SIGINFO_SIZE`] bytes, checked when an image is read.
    pub siginfo: Vec<u8>,
}

/// An alternate signal stack (`stack_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalStack {
    /// Lowest address.
    pub base: RemoteAddr,
    /// SS_* bits, SS_DISABLE when there is none.
    pub flags: u32,
    /// Bytes.
    pub size: u64,
}
