//! A checkpoint that an earlier rckpt has taken is brought back, wherever these tests run: that of the
//! program in `tests/golden/counter`, which lies beside it.
//!
//! It is taken anew, as long as nothing is released, by a run of this test with `RCKPT_TEST_WRITE_GOLDEN=1`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::unistd::geteuid;
use serde_json::Value;

use crate::harness::process::{self, PATIENCE, poll};
use crate::harness::workplace::{User, Workplace};

/// Asks for the checkpoint to be taken.
const WRITE: &str = "RCKPT_TEST_WRITE_GOLDEN";

/// What a generation consists of, below the job's directory.
const FILES: [&str; 3] = ["job.json", "gen-000001/image.rckpt", "gen-000001/pages.rckpt"];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/counter")
}

/// Puts the program, and a copy of the checkpoint unless there is to be a new one, where the user is.
fn set_up(place: &Workplace, with_checkpoint: bool) {
    let put = |from: &Path, name: &str, mode: u32| {
        place.write("new", "");
        let new = place.path("new");
        fs::copy(from, &new).expect("copy a golden file");
        fs::set_permissions(&new, Permissions::from_mode(mode)).expect("make it so");
        fs::rename(new, place.path(name)).expect("put it in its place");
    };
    put(&golden().join("counter"), "counter", 0o755);
    if with_checkpoint {
        for directory in ["job", "job/gen-000001"] {
            let path = place.make_directory(directory);
            fs::set_permissions(path, Permissions::from_mode(0o700)).expect("make it so");
        }
        for name in FILES {
            put(&golden().join("job").join(name), &format!("job/{name}"), 0o600);
        }
        symlink("gen-000001", place.path("job/latest")).expect("name the latest");
    }
}

fn take(place: &Workplace) {
    set_up(place, false);
    let mut command = place.command("/usr/bin/env");
    command.args(["-i", "./counter"]).stdout(Stdio::null()).stderr(Stdio::null());
    let child = place.start(command);
    assert!(poll(PATIENCE, || place.has("ready").then_some(())).is_some(), "it is not ready");
    place.tell(&["dump", &child.to_string(), "--dir", "job", "--kill"]);
    process::kill_descendants();
    fs::create_dir_all(golden().join("job/gen-000001")).expect("make the golden directory");
    for name in FILES {
        let (from, to) = (place.path("job").join(name), golden().join("job").join(name));
        fs::copy(from, to).expect("keep a golden file");
    }
}

/// Where the job's program was.
fn former_place(place: &Workplace) -> String {
    let report: Value =
        serde_json::from_str(&place.tell(&["inspect", "job", "--json"])).expect("it is JSON");
    let text = report.to_string();
    let end = text.find("/counter\"").expect("the program is in the report");
    let start = text[..end].rfind('"').expect("it is a string");
    text[start + 1..end].to_owned()
}

#[test]
fn earlier_checkpoints_are_brought_back() {
    if std::env::var_os(WRITE).is_some() {
        take(&Workplace::new(User::Plain));
    }
    let place = Workplace::new(User::Plain);
    set_up(&place, true);
    // As long as nothing is released, it is taken anew when the layout changes.
    let verified = place.ask(&["verify", "--deep", "job"]);
    assert_eq!(verified.status, Some(0), "see docs/DEVELOPING.md, the format: {verified:?}");
    assert!(place.tell(&["inspect", "job"]).contains(" counter"));

    let moved = format!("{}={}", former_place(&place), place.path("").display());
    let moved = moved.trim_end_matches('/');
    let planned = place.ask(&["restore", "job", "--dry-run", "--map", moved]);
    if planned.status != Some(0) {
        // It was taken by a certain user on a certain processor, and that is told before anything else.
        let another_user = !geteuid().is_root() && planned.words.contains("restore as that user");
        let another_processor = planned.words.contains("restore it on a machine");
        assert!(another_user || another_processor, "{planned:?}");
        return;
    }
    assert!(planned.output.contains("(counter)"), "{planned:?}");
    let child = place.start(place.rckpt(&["restore", "job", "--map", moved]));
    place.write("ping", "");
    assert!(poll(PATIENCE, || (!place.has("ping")).then_some(())).is_some(), "it does not run");
    place.write("go", "");
    assert_eq!(process::exit_status(child, PATIENCE), Some(0), "{}", place.text("stderr"));
    assert_eq!(place.text("verdict"), "PASS\n");
}
