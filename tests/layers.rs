//! Holds the rule of the house: which room may import which, and where `unsafe` may stand.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms, by rank: each imports lower ranks only, so `sys` and `image`, and `dump` and
/// `restore`, do not know each other.
const RANKS: [(&str, u32); 9] = [
    ("model", 0),
    ("embed", 1),
    ("sys", 1),
    ("image", 1),
    ("tracer", 2),
    ("dump", 3),
    ("restore", 3),
    ("job", 4),
    ("cli", 5),
];

/// Every source file below `directory`, with its path relative to it.
fn sources(directory: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_path_buf()];
    while let Some(current) = open.pop() {
        for entry in fs::read_dir(&current).expect("the sources can be read") {
            let path = entry.expect("the sources can be read").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative =
                    path.strip_prefix(directory).expect("the sources can be read").to_path_buf();
                found.push((relative, fs::read_to_string(&path).expect("the sources can be read")));
            }
        }
    }
    found
}

/// A source without its line comments.
fn code(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    for line in text.lines() {
        code.push_str(line.split_once("//").map_or(line, |(before, _)| before));
        code.push('\n');
    }
    code
}

/// A code that nothing uses any more is to be taken out of the catalogue; its number stays free.
#[test]
fn every_code_of_the_catalogue_is_used() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let catalogue = Path::new("model/code");
    let areas = sources.iter().filter(|(path, _)| path.parent() == Some(catalogue));
    for (path, text) in areas {
        let area = path.file_stem().expect("it has a name").to_string_lossy();
        for (name, _) in text.lines().filter_map(|line| line.trim_start().split_once(" = ")) {
            if !name
                .chars()
                .all(|letter| letter.is_ascii_uppercase() || "_0123456789".contains(letter))
            {
                continue;
            }
            let words = format!("{area}::{name}");
            let is_used = |(path, text): &(PathBuf, String)| {
                path.parent() != Some(catalogue)
                    && text.match_indices(&words).any(|(at, _)| {
                        let after = text[at + words.len()..].chars().next();
                        !after.is_some_and(|letter| letter.is_alphanumeric() || letter == '_')
                    })
            };
            assert!(sources.iter().any(is_used), "nothing uses {words}");
        }
    }
}

/// The rooms that a source names by `crate::room` or `use crate::{room, ..}`.
fn imported_rooms(text: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        // `$crate::` in a macro and `rckpt_crate::` do not exist here; a name before it would tell.
        let rest = &text[at + "crate::".len()..];
        let names = match rest.strip_prefix('{') {
            Some(group) => top_level_names(group),
            None => vec![first_name(rest)],
        };
        rooms.extend(names);
    }
    rooms
}

fn first_name(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// The first name of each part of a group `{a::b, c::{d, e}, f}` whose brace has been read.
fn top_level_names(group: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0;
    let mut part = String::new();
    for letter in group.chars() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(first_name(std::mem::take(&mut part).trim_start())),
            _ if depth == 0 => part.push(letter),
            _ => (),
        }
    }
    names.push(first_name(part.trim_start()));
    names.retain(|name| !name.is_empty());
    names
}

#[test]
fn rooms_import_lower_ranks_only() {
    let ranks = BTreeMap::from(RANKS);
    let mut broken = Vec::new();
    let mut seen = 0;
    for (path, text) in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let top = path
            .components()
            .next()
            .and_then(|part| part.as_os_str().to_str())
            .expect("plain names")
            .to_owned();
        let room = top.strip_suffix(".rs").unwrap_or(&top);
        if room == "restorer_blob" {
            assert_eq!(imported_rooms(&code(&text)), [""; 0], "{path:?}: the blob stands alone");
            continue;
        }
        let Some(rank) = ranks.get(room) else {
            assert!(matches!(room, "lib" | "main"), "{path:?} lies in no known room");
            continue;
        };
        for other in imported_rooms(&code(&text)) {
            seen += 1;
            match ranks.get(other.as_str()) {
                Some(other_rank) if other_rank < rank || other == room => (),
                Some(_) => broken.push(format!("{}: {room} imports {other}", path.display())),
                None => broken.push(format!("{}: `crate::{other}` is no room", path.display())),
            }
        }
    }
    assert_eq!(broken, [""; 0]);
    assert!(seen > 0, "no import was found at all: this test no longer reads the sources right");
}

#[test]
fn unsafe_stands_in_sys_and_the_blob_only() {
    for (path, text) in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        if path.starts_with("sys") || path.starts_with("restorer_blob") {
            continue;
        }
        let text = code(&text);
        let words = |wanted: &str| {
            text.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
                .any(|word| word == wanted)
        };
        assert!(!words("unsafe") && !words("unsafe_code"), "{path:?} holds unsafe code");
    }
}

#[test]
fn every_file_says_what_it_owns() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for directory in ["src", "tests"] {
        for (path, text) in sources(&root.join(directory)) {
            assert!(text.starts_with("//! "), "{directory}/{path:?} does not say what it owns");
        }
    }
}

#[test]
fn nothing_is_left_for_later() {
    // Taken apart, so that this file does not find itself.
    let words = [
        concat!("to", "do!"),
        concat!("unimpl", "emented!"),
        concat!("FIX", "ME"),
        concat!("#[ig", "nore"),
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for directory in ["src", "tests"] {
        for (path, text) in sources(&root.join(directory)) {
            for word in words {
                assert!(!text.contains(word), "{directory}/{path:?} contains {word}");
            }
        }
    }
}

#[test]
fn imports_are_found() {
    let check =
        |text: &str, expected: &[&str]| assert_eq!(imported_rooms(text), expected, "{text}");
    check("use crate::sys::memory;", &["sys"]);
    check("use crate::{model::{id, job}, image};", &["model", "image"]);
    check("let a = crate::tracer::Tree::freeze();", &["tracer"]);
    check("use std::fs;", &[]);
}
