//! What the restorer blob reads: the layout shared by the blob and by the room that writes it.
//!
//! `core` only. Addresses are the target's own; every structure lies 8-byte aligned in the script,
//! the writable segment that the restored process's temporary executable carries next to the code.

/// What one step of a script does.
pub mod kind {
    /// Make the system call; any result in -4095..=-1 is a failure.
    pub const CALL: u64 = 1;
    /// Make the system call; any result but `expected` is a failure.
    pub const CALL_EXACT: u64 = 2;
    /// Make the system call; its result does not matter.
    pub const CALL_ANY: u64 = 3;
    /// `clone3` a thread: `arguments[0]` is the address of its `clone_args`, `[1]` their size, `[2]`
    /// the address of the thread's first step. A result other than `expected` is a failure.
    pub const SPAWN: u64 = 4;
    /// Make the system call with the word at address `arguments[0]` instead of `arguments[0]`; any result
    /// but `expected` is a failure.
    pub const CALL_LOADED: u64 = 6;
    /// Tell the tracer, which goes on with the next step when it is ready.
    pub const STOP: u64 = 5;
}

/// Value of `rax` at the breakpoint of a [`kind::STOP`]; `rdi` holds the step's address.
pub const TRAP_STOP: u64 = 0x7263_6b70_0000_0001;
/// Value of `rax` at the breakpoint after a failed step: `rdi` holds the step's address, `rsi` the
/// result of its system call.
pub const TRAP_FAIL: u64 = 0x7263_6b70_0000_0002;

/// One step.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// One of [`kind`].
    pub kind: u64,
    /// System call number.
    pub number: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
    /// The result that is right.
    pub expected: u64,
}

/// Bytes in a [`Step`].
pub const STEP_SIZE: usize = 72;

const _: () = assert!(size_of::<Step>() == STEP_SIZE);
const _: () = assert!(align_of::<Step>() == 8);
