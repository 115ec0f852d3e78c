//! What figures are compared with, done by this process itself: copying memory, and copying a file with
//! everything brought to the disk.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

/// Bytes that are moved at once.
const BLOCK: usize = 1 << 20;

/// Milliseconds that it takes to copy so many bytes into memory that was never touched.
pub fn copy_in_memory(bytes: u64) -> f64 {
    let block = vec![1_u8; BLOCK];
    let length = usize::try_from(bytes).expect("it fits in memory");
    let begun = Instant::now();
    let mut copy: Vec<u8> = Vec::with_capacity(length);
    while copy.len() < length {
        copy.extend_from_slice(&block[..BLOCK.min(length - copy.len())]);
    }
    let took = begun.elapsed();
    std::hint::black_box(&copy);
    took.as_secs_f64() * 1e3
}

/// Milliseconds that `cp` of a file of so many bytes, which is in memory, and `sync` take.
pub fn copy_on_disk(place: &Path, bytes: u64) -> f64 {
    let (source, target) = (place.join("floor-source"), place.join("floor-target"));
    let mut file = File::create(&source).expect("make a file");
    let mut block = vec![0_u8; BLOCK];
    let mut left = bytes;
    File::open("/dev/urandom").and_then(|mut it| it.read_exact(&mut block)).expect("random bytes");
    while left > 0 {
        let length = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
        file.write_all(&block[..length]).expect("write a file");
        left -= u64::try_from(length).expect("a small number");
    }
    file.sync_all().expect("bring a file to the disk");
    let begun = Instant::now();
    let mut source_file = File::open(&source).expect("open a file");
    let mut target_file = File::create(&target).expect("make a file");
    loop {
        let length = source_file.read(&mut block).expect("read a file");
        if length == 0 {
            break;
        }
        target_file.write_all(&block[..length]).expect("write a file");
    }
    target_file.sync_all().expect("bring a file to the disk");
    let took = begun.elapsed();
    fs::remove_file(&source).and_then(|()| fs::remove_file(&target)).expect("remove the files");
    took.as_secs_f64() * 1e3
}
