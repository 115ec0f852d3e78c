//! The image in tests/golden/records, which has a record of every kind: written once by each released
//! version of the format, and read by every later one.
//!
//! It is written anew, as long as nothing is released, by a run of this test with `RCKPT_TEST_WRITE_GOLDEN=1`.

use std::fs;
use std::path::{Path, PathBuf};

use super::codec::Codec;
use super::reader::{Depth, Reader, Trust};
use super::sample;
use super::writer::{WriteOptions, Writer, ZeroPages};
use crate::model::id::ObjectId;

/// Asks for the image to be written.
const WRITE: &str = "RCKPT_TEST_WRITE_GOLDEN";

fn place() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/records")
}

/// Pages that can be compressed, a page that cannot, and one of a file's content.
fn write(directory: &Path) {
    if directory.exists() {
        fs::remove_dir_all(directory).unwrap();
    }
    fs::create_dir_all(directory).unwrap();
    let options = WriteOptions { codec: Codec::Lz4, workers: 1, ..WriteOptions::default() };
    let mut writer = Writer::create(directory, options).unwrap();
    let (start, _) = sample::MEMORY_PAGES;
    let mut read = |first: u64, buffer: &mut [u8]| {
        for (number, page) in (first..).zip(buffer.chunks_exact_mut(4096)) {
            match number {
                number if number == start + 300 => sample::noise(number, page),
                number => page.fill(number.to_le_bytes()[0] | 1),
            }
        }
        Ok(())
    };
    for (object, first, pages) in [(0, start, 256), (0, start + 300, 1), (1, 1, 1)] {
        writer.store(ObjectId(object), first, pages, ZeroPages::Drop, &mut read).unwrap();
    }
    writer.finish(&sample::job()).unwrap();
}

#[test]
fn the_golden_image_is_read_as_ever() {
    let directory = place();
    if std::env::var_os(WRITE).is_some() {
        write(&directory);
    }
    // As long as nothing is released, it is written anew when the layout changes.
    let reader = Reader::open_trusting(&directory, Trust::Anybody)
        .expect("it can be read; if the layout has changed, see docs/DEVELOPING.md, the format");
    assert_eq!(*reader.job(), sample::job(), "see docs/DEVELOPING.md, the format");
    let pages: u32 =
        reader.chunks().iter().flat_map(|chunk| &chunk.runs).map(|run| run.pages).sum();
    assert_eq!(pages, 258);
    reader.verify(Depth::Decoded, &|_| ()).unwrap();
}
