//! `rckpt explain`: what a code means, and what to do about it.

use serde::Serialize;

use crate::model::code::{AREAS, Area, Code, requests};

use super::failure::Failure;
use super::output;

/// Say what the code of an error means, and what to do about it
#[derive(clap::Args)]
pub struct Arguments {
    /// The code, as RCKPT-E0401, E0401 or 401 (default: list all codes)
    #[arg(value_name = "CODE")]
    code: Option<String>,
    /// The whole catalogue as Markdown (docs/ERRORS.md)
    #[arg(long, conflicts_with = "code", hide = true)]
    markdown: bool,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

/// What the catalogue says, as JSON.
#[derive(Serialize)]
struct Explained {
    code: Code,
    title: &'static str,
    cause: &'static str,
    remedy: &'static str,
}

impl Explained {
    const fn of(code: Code) -> Self {
        Self { code, title: code.title(), cause: code.cause(), remedy: code.remedy() }
    }
}

/// Explains.
pub fn execute(arguments: Arguments) -> Result<u8, Failure> {
    let Arguments { code, markdown, json } = arguments;
    match code {
        Some(word) => {
            let code = Code::parse(&word).ok_or_else(|| unknown(&word))?;
            if json {
                output::print_json(&Explained::of(code))?;
            } else {
                output::print(paragraphs(code))?;
            }
        }
        None if json => output::print_json(&Code::all().map(Explained::of).collect::<Vec<_>>())?,
        None if markdown => output::print(catalogue())?,
        None => output::print(AREAS.map(list).join("\n"))?,
    }
    Ok(0)
}

fn unknown(word: &str) -> Failure {
    Failure::user(requests::UNKNOWN_CODE, format_args!("{word}: there is no such code"))
        .hint(requests::UNKNOWN_CODE.remedy())
}

fn paragraphs(code: Code) -> String {
    let (title, cause, remedy) = (code.title(), code.cause(), code.remedy());
    format!("{code}: {title}\n\nWhy: {cause}\n\nWhat to do: {remedy}.\n")
}

/// One line for each code of an area.
fn list(area: Area) -> String {
    let lines = area.codes.iter().map(|code| format!("  {code}  {}\n", code.title()));
    format!("{}\n{}", area.title, lines.collect::<String>())
}

/// docs/ERRORS.md.
fn catalogue() -> String {
    let mut text = INTRODUCTION.to_owned();
    for area in AREAS {
        text.push_str(&format!("\n## {}\n", area.title));
        for code in area.codes {
            let (title, cause, remedy) = (code.title(), code.cause(), code.remedy());
            text.push_str(&format!(
                "\n### {code}: {title}\n\n{cause}\n\n*What to do:* {remedy}.\n"
            ));
        }
    }
    text
}

const INTRODUCTION: &str = "\
# Errors

<!-- Made from src/model/code; to make it again: RCKPT_TEST_BLESS=1 cargo nextest run catalogue -->

Everything that rckpt refuses and everything that can go wrong has a code, which is printed with it and
does not change from one version to the next:

```text
rckpt: error[RCKPT-E0300]: the job cannot be saved as it is:
  RCKPT-E0407: process 4711, descriptor 5 (socket:[81234]): it is connected from 10.0.0.4:51312 to
  10.0.0.9:5432, outside the job (TCP); close the connection in the program, or restore it as reset
  (--tcp-close)
rckpt: hint: rckpt check PID tells this without taking a checkpoint
```

`rckpt explain RCKPT-E0407` prints what is below, `rckpt explain` lists all codes, and with `--json` a
command that fails prints `{\"error\": {\"code\": ..., \"details\": [...], \"message\": ..., \"hint\": ...}}`
on standard output. `DIR/events.jsonl` has the code of each checkpoint that failed.
";

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::catalogue;

    #[test]
    fn the_catalogue_in_the_manual_is_this_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ERRORS.md");
        if std::env::var_os("RCKPT_TEST_BLESS").is_some() {
            fs::write(&path, catalogue()).unwrap();
        }
        assert!(
            fs::read_to_string(&path).is_ok_and(|text| text == catalogue()),
            "docs/ERRORS.md is not what the code says; to make it again: \
             RCKPT_TEST_BLESS=1 cargo nextest run the_catalogue_in_the_manual"
        );
    }
}
