//! The restorer blob: the program that each restored process executes to become itself again.
//!
//! It interprets a script of system calls that the restoring rckpt wrote beside it, and knows nothing
//! of images or plans. It has no data, no relocations and no library, so that it runs wherever the
//! target's memory leaves a hole; build.rs refuses to embed it otherwise. Its tracer starts it by
//! setting registers: `rdi` is the address of the first step and `rsp` a stack inside the script.

#![no_std]
#![no_main]

mod layout;

use core::arch::asm;

use layout::{Step, TRAP_FAIL, TRAP_STOP, kind};

/// Carries out the steps from `step` on. It never returns: the tracer takes the task away while it
/// waits in its last [`kind::STOP`].
///
/// # Safety
/// `step` must be the first of a run of valid steps that ends in a [`kind::STOP`] from which the
/// tracer does not let the task go on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn run(mut step: *const Step) -> ! {
    loop {
        // SAFETY: the caller promises that `step` is valid.
        let current = unsafe { &*step };
        let result = match current.kind {
            kind::STOP => {
                trap(TRAP_STOP, step, 0);
                0
            }
            // SAFETY: `arguments[2]` is the first step of the thread, as the layout says.
            kind::SPAWN => unsafe { spawn(current) },
            // SAFETY: the address is that of a word in the script, says the layout; the rest is as below.
            kind::CALL_LOADED => unsafe {
                let mut loaded = *current;
                loaded.arguments[0] = *(loaded.arguments[0] as *const u64);
                call(&loaded)
            },
            // SAFETY: the script's author answers for what the call does to this address space.
            kind::CALL | kind::CALL_EXACT | kind::CALL_ANY => unsafe { call(current) },
            _ => 0,
        };
        let failed = match current.kind {
            kind::STOP | kind::CALL_ANY => false,
            kind::CALL => result > u64::MAX - 4095,
            kind::CALL_EXACT | kind::CALL_LOADED | kind::SPAWN => result != current.expected,
            _ => true,
        };
        if failed {
            trap(TRAP_FAIL, step, result);
        }
        step = step.wrapping_add(1);
    }
}

/// Makes the system call of `step`.
unsafe fn call(step: &Step) -> u64 {
    let [first, second, third, fourth, fifth, sixth] = step.arguments;
    let result;
    // SAFETY: a system call clobbers rax, rcx and r11 only; memory is assumed changed.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") step.number => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") fourth,
            in("r8") fifth,
            in("r9") sixth,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Makes a thread, which starts with its own steps on the stack that its `clone_args` name.
unsafe fn spawn(step: &Step) -> u64 {
    let [arguments, size, first_step, ..] = step.arguments;
    let result;
    // SAFETY: the parent comes back as from any system call. The child has an empty stack of its own
    // and every register of the parent, of which it only uses r12.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call {run}",
            "2:",
            run = sym run,
            in("r12") first_step,
            inlateout("rax") step.number => result,
            inlateout("rdi") arguments => _,
            in("rsi") size,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// Stops in front of the tracer.
fn trap(reason: u64, step: *const Step, result: u64) {
    // SAFETY: a breakpoint changes no register; the tracer may, and only when the task is not to come
    // back here.
    unsafe {
        asm!("int3", in("rax") reason, in("rdi") step, in("rsi") result, options(nostack));
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        trap(TRAP_FAIL, core::ptr::null(), 0);
    }
}
