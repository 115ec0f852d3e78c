//! The program is one file that runs wherever the kernel does: it asks for no loader and no library.

use goblin::elf::Elf;

#[test]
fn program_is_static() {
    let bytes = std::fs::read(env!("CARGO_BIN_EXE_rckpt")).expect("read the program");
    let program = Elf::parse(&bytes).expect("it is an ELF file");
    assert_eq!((program.interpreter, program.libraries.len()), (None, 0));
}
