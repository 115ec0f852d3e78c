//! Building fixtures: small C programs that judge themselves (fixtures/fixture.h).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use xxhash_rust::xxh3::xxh3_64;

use super::workplace::publish;

/// How a C program is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linking {
    /// With shared libraries.
    Dynamic,
    /// Alone.
    Static,
}

/// The built fixture of that name.
pub fn fixture(name: &str, linking: Linking) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut headers: Vec<PathBuf> = fs::read_dir(&directory)
        .expect("list the fixtures")
        .map(|entry| entry.expect("list the fixtures").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "h"))
        .collect();
    headers.sort_unstable();
    let headers: Vec<&Path> = headers.iter().map(PathBuf::as_path).collect();
    build(&directory.join(format!("{name}.c")), &headers, linking)
}

/// Builds one C source; what is built is kept until the source, or a header, changes.
pub fn build(source: &Path, headers: &[&Path], linking: Linking) -> PathBuf {
    let mut content = fs::read(source).unwrap_or_else(|error| panic!("{source:?}: {error}"));
    for header in headers {
        content.extend(fs::read(header).expect("read a header"));
    }
    let stem = source.file_stem().and_then(|stem| stem.to_str()).expect("sources have plain names");
    let suffix = if linking == Linking::Static { "-static" } else { "" };
    publish(&format!("{stem}{suffix}-{:016x}", xxh3_64(&content)), |path| {
        let mut compiler = Command::new("gcc");
        compiler.args(["-O2", "-g1", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-pthread"]);
        match linking {
            Linking::Static => compiler.arg("-static"),
            // Larger than what is read without being copied: so each fixture is seen both ways.
            Linking::Dynamic => compiler.arg("-DBALLAST"),
        };
        let built = compiler.arg("-o").arg(path).arg(source).status().expect("run gcc");
        assert!(built.success(), "{source:?} does not build");
    })
}
