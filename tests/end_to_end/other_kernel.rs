//! Checkpoints as if another kernel had taken them.

use std::fs;
use std::path::Path;

use rckpt::image::WriteOptions;
use rckpt::image::reader::Reader;
use rckpt::image::writer::Writer;
use rckpt::model::address::RemoteAddr;
use rckpt::model::job::Job;
use rckpt::model::memory::Backing;

use crate::harness::rounds::{Case, Running, Start};
use crate::harness::workplace::{User, Workplace};

/// The newest checkpoint in `directory`, from which no thread would go on inside the vDSO.
fn outside_of_vdso(directory: &Path) -> Option<Reader> {
    let latest = fs::canonicalize(directory.join("latest")).expect("there is a checkpoint");
    let reader = Reader::open(&latest).expect("open the checkpoint");
    let job = reader.job();
    let inside = |address: u64| {
        let vmas = job.address_spaces.iter().flat_map(|space| &space.vmas);
        let mut code = vmas.filter(|vma| vma.backing == Backing::Vdso);
        code.any(|vma| vma.range.contains(RemoteAddr(address)))
    };
    let mut threads = job.processes.iter().flat_map(|process| &process.threads);
    let caught = threads.any(|thread| inside(thread.registers.rip));
    (!caught).then_some(reader)
}

/// Makes the checkpoint `new` out of another one, with `change` in its records.
fn forge(reader: Reader, new: &Path, change: impl FnOnce(&mut Job)) {
    let mut job = reader.job().clone();
    change(&mut job);
    let runs: Vec<_> = reader.chunks().iter().flat_map(|chunk| chunk.runs.clone()).collect();
    fs::create_dir(new).expect("make a directory");
    let options = WriteOptions::default();
    let mut writer = Writer::create_on(new, options, Some(reader)).expect("begin a checkpoint");
    for run in runs {
        let pages = u64::from(run.pages);
        writer.keep(run.object, run.object, run.first_page, pages).expect("keep pages");
    }
    writer.finish(&job).expect("complete the checkpoint");
}

/// What calls the old vDSO is answered by the new one, and the job can be saved from there, too.
#[test]
fn another_vdso() {
    let place = Workplace::new(User::Caller);
    let mut job = Running::start(&place, &Case::new("motion_vdso"), Start::Alone);
    for number in [500, 900] {
        let reader = (0..20).find_map(|_| {
            job.dump(&[]);
            outside_of_vdso(&place.path("job"))
        });
        job.lose();
        let reader = reader.expect("it is not always inside");
        let name = format!("job/gen-{number:06}");
        forge(reader, &place.path(&name), |job| {
            *job.vdso.bytes.last_mut().expect("there is one") ^= 1;
        });
        fs::remove_file(place.path("job/latest")).expect("it is a link");
        let target = Path::new(&name).file_name().expect("it has one");
        std::os::unix::fs::symlink(target, place.path("job/latest")).expect("link it");
        job.restore();
    }
    job.judge();
}
