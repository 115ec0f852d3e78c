//! Builds the restorer blob (src/restorer_blob) and embeds it as flat, position-independent code.
//!
//! The blob is a freestanding program for the same processor, so the compiler that builds rckpt
//! builds it too, with `core` alone. Everything that would tie it to one address or need a loader is
//! refused here: relocations, writable data, an interpreter.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use goblin::elf::Elf;
use goblin::elf::program_header::{PF_W, PT_INTERP, PT_LOAD};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=src/restorer_blob");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let program = out.join("restorer_blob.elf");
    compile(&program)?;
    let (code, entry) = flatten(&fs::read(&program)?)?;
    fs::write(out.join("restorer_blob.bin"), &code)?;
    fs::write(out.join("restorer_blob_entry.rs"), format!("{entry:#x}"))?;
    Ok(())
}

/// Compiles the blob to an ELF file.
fn compile(program: &Path) -> Result<(), Box<dyn Error>> {
    let status = Command::new(env::var("RUSTC")?)
        .args(["--edition", "2024", "--crate-name", "restorer_blob", "--crate-type", "bin"])
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .args(["-C", "panic=abort", "-C", "opt-level=s", "-C", "codegen-units=1"])
        .args(["-C", "relocation-model=pic", "-C", "force-unwind-tables=no"])
        .args(["-C", "strip=symbols", "-C", "default-linker-libraries=no"])
        .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib"])
        .args(["-C", "link-arg=-static-pie", "-C", "link-arg=-Wl,--no-dynamic-linker"])
        .args(["-C", "link-arg=-Wl,-e,run", "-C", "link-arg=-Wl,--build-id=none"])
        .args(["-C", "link-arg=-Wl,-z,norelro,-z,noseparate-code,--gc-sections"])
        .args(["-W", "missing_docs", "-D", "warnings", "-F", "unsafe_op_in_unsafe_fn"])
        .arg("-o")
        .arg(program)
        .arg("src/restorer_blob/main.rs")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()?;
    status.success().then_some(()).ok_or_else(|| "the restorer blob does not compile".into())
}

/// Lays the loadable segments out flat, as they will lie in memory. Returns the bytes and the offset
/// of the entry point in them.
fn flatten(bytes: &[u8]) -> Result<(Vec<u8>, u64), Box<dyn Error>> {
    let elf = Elf::parse(bytes)?;
    let relocations = elf.dynrelas.len() + elf.dynrels.len() + elf.pltrelocs.len();
    if relocations != 0 {
        return Err(format!("the restorer blob has {relocations} relocations").into());
    }
    let mut code = Vec::new();
    for header in &elf.program_headers {
        if header.p_type == PT_INTERP {
            return Err("the restorer blob asks for a dynamic loader".into());
        }
        if header.p_type != PT_LOAD {
            continue;
        }
        if header.p_flags & PF_W != 0 && !only_dynamic_section(&elf, header) {
            return Err("the restorer blob has writable data".into());
        }
        let start = usize::try_from(header.p_vaddr)?;
        let file = bytes.get(header.file_range()).ok_or("a segment lies outside of the file")?;
        code.resize(code.len().max(start + file.len()), 0);
        code[start..start + file.len()].copy_from_slice(file);
    }
    Ok((code, elf.entry))
}

/// Whether a writable segment holds nothing but the linker's own dynamic section, which nobody reads
/// in a program without a loader.
fn only_dynamic_section(elf: &Elf<'_>, segment: &goblin::elf::ProgramHeader) -> bool {
    elf.section_headers
        .iter()
        .filter(|section| {
            segment.vm_range().contains(&usize::try_from(section.sh_addr).unwrap_or(0))
        })
        .filter(|section| section.sh_size > 0)
        .all(|section| section.sh_type == goblin::elf::section_header::SHT_DYNAMIC)
}
