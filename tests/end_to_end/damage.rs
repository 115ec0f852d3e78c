//! Damaged, incomplete and mixed-up checkpoints are refused by `verify` and by `restore`, with the file
//! named, and nothing of the job is started.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::unistd::Pid;

use crate::harness::moments::Moments;
use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::rounds::{Case, Running, Start};
use crate::harness::workplace::{User, Workplace};

/// How many times as much is damaged; the long form of these tests asks for a hundred and more.
const ROUNDS: &str = "RCKPT_TEST_ROUNDS";

fn rounds(short: u64) -> u64 {
    short * std::env::var(ROUNDS).map_or(1, |rounds| rounds.parse().expect("a number of rounds"))
}

/// A job that was saved three times, each on top of the one before, and is gone. Brought back it would
/// look at itself at once, and say what it found.
fn chain() -> Workplace {
    chain_of(User::Plain)
}

fn chain_of(user: User) -> Workplace {
    let place = Workplace::new(user);
    let job = Running::start(&place, &Case::new("motion_mix"), Start::Alone);
    for words in [&[][..], &[], &["--kill"]] {
        job.ping();
        job.dump(words);
    }
    job.lose();
    place.write("go", "");
    place
}

/// The files of a generation that a restore reads. How it was made is told to people alone.
fn files(place: &Workplace, generation: &str) -> Vec<PathBuf> {
    let list = fs::read_dir(place.path("job").join(generation)).expect("list a generation");
    let paths = list.flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = paths.filter(|path| !path.ends_with("made.json")).collect();
    files.sort();
    files
}

fn name_of(file: &Path) -> String {
    file.file_name().expect("it has a name").to_string_lossy().into_owned()
}

/// Neither `verify` nor `restore` takes it, both name the file, and nothing is started.
fn check_refused(place: &Workplace, generation: &str, file: &str, what: &str) {
    let path = format!("job/{generation}");
    let verified = place.ask(&["verify", "--deep", &path]);
    let told = format!("{}{}", verified.output, verified.words);
    assert!(verified.status == Some(1) && told.contains(file), "{what}: {verified:?}");
    let restored = place.ask(&["restore", &path]);
    assert_eq!(restored.status, Some(125), "{what}: {restored:?}");
    assert!(restored.words.contains(file), "{what}: {restored:?}");
    for words in [told, restored.words] {
        assert!(!words.contains("panicked"), "{what}: {words}");
    }
    assert!(!place.has("verdict"), "{what}: it ran: {}", place.text("verdict"));
    let left = process::descendants(Pid::this());
    assert!(left.is_empty(), "{what}: left: {left:?}");
}

/// A generation is whole, and restores.
fn check_sound(place: &Workplace, generation: &str) {
    let answer = place.ask(&["restore", &format!("job/{generation}")]);
    assert_eq!(answer.status, Some(0), "{answer:?}");
    assert_eq!(place.text("verdict"), "PASS\n");
}

/// A place below `end`, from the numbers that moments are made of.
fn place_below(moments: &mut Moments, end: u64) -> u64 {
    let whole = std::time::Duration::from_secs(1 << 20);
    let part = moments.below(whole).as_nanos() * u128::from(end) / whole.as_nanos();
    u64::try_from(part).expect("it is below").min(end.saturating_sub(1))
}

#[test]
fn flipped_bits() {
    let place = chain();
    let mut moments = Moments::new();
    let mut unused = 0;
    for round in 0..rounds(12) {
        for file in files(&place, "gen-000003") {
            let opened = OpenOptions::new().read(true).write(true).open(&file).expect("open it");
            let length = opened.metadata().expect("look at it").len();
            let at = place_below(&mut moments, length);
            let mut byte = [0];
            opened.read_exact_at(&mut byte, at).expect("read it");
            opened.write_all_at(&[byte[0] ^ 1 << (round % 8)], at).expect("damage it");
            let name = name_of(&file);
            let what = format!("bit {} of byte {at} of {name}", round % 8);
            // Of an earlier generation's page data a part may be in use no more, which nobody reads.
            let of_a_parent = name.starts_with("pages-");
            if of_a_parent && place.ask(&["verify", "job/gen-000003"]).status == Some(0) {
                unused += 1;
            } else {
                check_refused(&place, "gen-000003", &name, &what);
            }
            opened.write_all_at(&byte, at).expect("mend it");
        }
    }
    println!("{} bits, {unused} of them in what is not used", rounds(12) * 3);
    check_sound(&place, "gen-000003");
}

/// Also the chunks whose pages a process would have from its parent, so that nobody needs them: the job
/// has memory of one pattern, which is stored for parent and children alike.
#[test]
fn a_bit_in_every_chunk() {
    let place = chain();
    let file = place.path("job/gen-000001/pages.rckpt");
    let opened = OpenOptions::new().read(true).write(true).open(&file).expect("open it");
    let length = opened.metadata().expect("look at it").len();
    // A chunk and its hashes take more.
    for at in (100..length).step_by(4000) {
        let mut byte = [0];
        opened.read_exact_at(&mut byte, at).expect("read it");
        opened.write_all_at(&[byte[0] ^ 1], at).expect("damage it");
        check_refused(&place, "gen-000001", "pages.rckpt", &format!("bit 0 of byte {at}"));
        opened.write_all_at(&byte, at).expect("mend it");
    }
    check_sound(&place, "gen-000001");
}

/// Everything in a directory but for a checkpoint's: names, contents, and times of change.
fn state_of(directory: &Path) -> Vec<(PathBuf, Vec<u8>, SystemTime)> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(path).expect("list a directory").flatten() {
            let (path, facts) = (entry.path(), entry.metadata().expect("look at a file"));
            if facts.is_dir() {
                open.push(path);
            } else if facts.is_file() {
                let time = facts.modified().expect("there is a time");
                found.push((path.clone(), fs::read(path).expect("read a file"), time));
            }
        }
    }
    found.sort();
    found
}

/// Flips a bit in the middle of a file, of which later checkpoints have a sound copy.
fn damage(place: &Workplace, file: &str) {
    let file = place.path(file);
    let mut bytes = fs::read(&file).expect("read it");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    put(place, &file, &bytes);
}

/// Puts another file in the place of one. The mode and owner are those of the file that was there.
fn put(place: &Workplace, file: &Path, bytes: &[u8]) {
    place.write("new", "");
    fs::write(place.path("new"), bytes).expect("write it");
    let mine = Permissions::from_mode(0o600);
    fs::set_permissions(place.path("new"), mine).expect("make it mine");
    fs::rename(place.path("new"), file).expect("put it there");
}

/// A restore cuts off what was written after the checkpoint, and then finds the checkpoint damaged. What
/// was cut off is back, and so a later checkpoint, which needs it, is sound.
fn puts_back_what_was_cut_off(user: User) {
    let place = chain_of(user);
    damage(&place, "job/gen-000001/pages.rckpt");
    let lines = || {
        let facts = fs::metadata(place.path("lines")).expect("look at it");
        (place.text("lines"), facts.modified().expect("there is a time"), facts.ino())
    };
    let before = lines();
    let refused = place.ask(&["restore", "job/gen-000001"]);
    assert_eq!(refused.status, Some(125), "{refused:?}");
    assert!(refused.words.contains("its files are as they were"), "{refused:?}");
    assert_eq!(lines(), before);
    assert!(!place.has("job/displaced"));
    check_sound(&place, "gen-000003");
}

#[test]
fn what_was_cut_off_is_put_back() {
    puts_back_what_was_cut_off(User::Plain);
}

#[test]
fn what_was_cut_off_by_the_caller_is_put_back() {
    puts_back_what_was_cut_off(User::Caller);
}

/// A job that is saved twice, has large memory, and does all sorts of things to files in between.
const BUSY_WITH_FILES: &str = "import os, time
def come(name):
    while not os.path.exists(name):
        time.sleep(0.01)
def change(name, text):
    with open(name, 'r+') as file:
        file.write(text)
log = open('log', 'w')
kept = open('out/kept', 'w+')
gone = open('out/gone', 'w+')
for file in (kept, gone):
    file.write('first\\n')
    file.flush()
for turn in ('one', 'two', 'three'):
    print(turn, file=log, flush=True)
    with open('out/log', 'a') as out:
        print(turn, file=out)
    memory = os.urandom(8 << 20)
    open('ready-' + turn, 'w').close()
    come('after-' + turn)
    change('out/kept', turn + '!')
    if turn == 'one' and os.path.exists('out/gone'):
        os.rename('out/gone', 'out/gone.old')
    open('out/new-' + turn, 'w').write(turn)
";

/// Starts it, or goes on with it.
fn start_busy(place: &Workplace) -> Pid {
    let words =
        ["run", "--dir", "job", "--resume", "--outputs", "out/log", "--outputs", "out/new*"];
    let words = [&words[..], &["--save-files", "out/kept", "--save-files", "out/gone*"]].concat();
    place.start(place.rckpt(&words).args(["--", "/usr/bin/python3", "busy.py"]))
}

/// Such a job, lost after its second checkpoint.
fn busy_with_files() -> Workplace {
    let place = Workplace::new(User::Plain);
    place.make_directory("out");
    place.write("busy.py", BUSY_WITH_FILES);
    let run = start_busy(&place);
    for turn in ["one", "two", "three"] {
        let ready = format!("ready-{turn}");
        let came = poll(PATIENCE, || place.has(&ready).then_some(()));
        assert!(came.is_some(), "no {ready}: {}", place.text("stderr"));
        if turn != "three" {
            place.tell(&["dump", &process::children(run)[0].to_string()]);
            place.write(&format!("after-{turn}"), "");
        }
    }
    process::kill_descendants();
    fs::remove_file(place.path("out/gone.old")).expect("remove a file");
    place
}

/// Files are cut back, set aside, made again and given another content; then the checkpoint is found damaged,
/// by a process that fills its own memory. Everything is as it was. Who goes on with the job goes on
/// from the checkpoint before.
#[test]
fn whatever_was_done_to_files_is_undone() {
    let place = busy_with_files();
    damage(&place, "job/gen-000002/pages.rckpt");
    let state = || (state_of(&place.path("out")), place.text("log"));
    let before = state();
    let refused = place.ask(&["restore", "job/gen-000002"]);
    assert_eq!(refused.status, Some(125), "{refused:?}");
    assert!(refused.words.contains("RCKPT-E0610"), "{refused:?}");
    assert_eq!(state(), before);
    assert!(!place.has("job/displaced"));

    for turn in ["one", "two", "three"] {
        place.write(&format!("after-{turn}"), "");
    }
    let run = start_busy(&place);
    assert_eq!(process::exit_status(run, PATIENCE), Some(0), "{}", place.text("stderr"));
    let words = place.text("stderr");
    assert!(words.contains("is damaged, and passed over"), "{words}");
    for name in ["log", "out/log"] {
        assert_eq!(place.text(name), "one\ntwo\nthree\n", "{name}");
    }
    assert!(!place.has("job/displaced/2"));
}

#[test]
fn files_that_are_cut_off() {
    let place = chain();
    let mut moments = Moments::new();
    for file in files(&place, "gen-000003") {
        let kept = fs::read(&file).expect("read it");
        let length = u64::try_from(kept.len()).expect("it is small");
        let places = (0..rounds(2)).map(|_| place_below(&mut moments, length));
        for at in [0, 1, length - 1].into_iter().chain(places) {
            let opened = OpenOptions::new().write(true).open(&file).expect("open it");
            opened.set_len(at).expect("cut it off");
            let name = name_of(&file);
            check_refused(&place, "gen-000003", &name, &format!("{name} cut to {at} bytes"));
            opened.write_all_at(&kept, 0).expect("mend it");
        }
    }
    check_sound(&place, "gen-000003");
}

#[test]
fn files_that_are_missing_or_of_another_checkpoint() {
    let place = chain();
    let second = place.another("of-another-job");
    let job = Running::start(&second, &Case::new("memory_private"), Start::Alone);
    job.dump(&["--kill"]);
    job.lose();
    let foreign = |name: &str| fs::read(second.path("job/gen-000001").join(name)).expect("read it");
    for file in files(&place, "gen-000003") {
        let (name, kept) = (name_of(&file), fs::read(&file).expect("read it"));
        fs::remove_file(&file).expect("remove it");
        check_refused(&place, "gen-000003", &name, &format!("without {name}"));
        let its_own = |generation: &str, name: &str| {
            fs::read(place.path("job").join(generation).join(name)).unwrap_or_default()
        };
        let others = match name.as_str() {
            // Records of an earlier generation name other page data, so that is what is missed.
            "image.rckpt" => vec![("pages", foreign("image.rckpt"))],
            "pages.rckpt" => vec![
                ("pages.rckpt", foreign("pages.rckpt")),
                ("pages.rckpt", its_own("gen-000001", "pages.rckpt")),
                ("pages.rckpt", its_own("gen-000003", "image.rckpt")),
            ],
            parent => vec![
                (parent, foreign("pages.rckpt")),
                (parent, its_own("gen-000003", "pages.rckpt")),
                (parent, its_own("gen-000003", "image.rckpt")),
            ],
        };
        for (named, bytes) in others {
            put(&place, &file, &bytes);
            check_refused(&place, "gen-000003", named, &format!("another {name}"));
        }
        put(&place, &file, &kept);
    }
    check_sound(&place, "gen-000003");
}
