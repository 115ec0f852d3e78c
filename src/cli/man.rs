//! `rckpt man`: the manual, as roff for `man -l -`, or as the files that a machine keeps.
//!
//! Names, options and what they mean come from the definition of the command line, so they cannot drift.

use std::io;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_mangen::Man;

use super::failure::Failure;
use super::{CommandLine, output};
use crate::model::code::{requests, supervising};
use crate::sys::whole_file;

/// Print the manual (`rckpt man | man -l -`)
#[derive(clap::Args)]
pub struct Arguments {
    /// Write its pages into DIR instead: rckpt.1, rckpt-run.1, and one for each other command
    #[arg(long, value_name = "DIR")]
    pages: Option<PathBuf>,
}

/// What the first page says besides the commands.
const MORE: &str = include_str!("man_more.roff");

/// A page of the manual.
struct Page {
    name: String,
    text: Vec<u8>,
}

/// Prints rckpt's own page and those of its commands one after the other, or writes them.
pub fn execute(Arguments { pages: directory }: Arguments) -> Result<u8, Failure> {
    let pages = pages().map_err(|error| {
        Failure::internal(supervising::INTERNAL, format_args!("write the manual: {error}"))
    })?;
    match directory {
        Some(directory) => write(&directory, &pages)?,
        None => {
            let text: Vec<u8> = pages.into_iter().flat_map(|page| page.text).collect();
            output::print(String::from_utf8_lossy(&text))?;
        }
    }
    Ok(0)
}

fn write(directory: &Path, pages: &[Page]) -> Result<(), Failure> {
    for Page { name, text } in pages {
        let path = directory.join(format!("{name}.1"));
        whole_file::replace(&path, text, None).map_err(|error| {
            Failure::environment(
                requests::CANNOT_WRITE_FILE,
                format_args!("write {}: {error}", path.display()),
            )
        })?;
    }
    Ok(())
}

/// rckpt's own page, and one for each command.
fn pages() -> io::Result<Vec<Page>> {
    let mut command = CommandLine::command();
    command.build();
    let mut first = render(&command)?;
    first.extend_from_slice(MORE.as_bytes());
    let mut pages = vec![Page { name: "rckpt".to_owned(), text: first }];
    for subcommand in command.get_subcommands() {
        let name = format!("rckpt-{}", subcommand.get_name());
        let called = name.replacen('-', " ", 1);
        let text = render(&subcommand.clone().bin_name(called))?;
        pages.push(Page { name, text });
    }
    Ok(pages)
}

fn render(command: &clap::Command) -> io::Result<Vec<u8>> {
    let page = Man::new(command.clone())
        .manual("rckpt")
        .source(concat!("rckpt ", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    text.extend_from_slice(synopsis(command).as_bytes());
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut text)?;
    }
    Ok(text)
}

/// How a command is called, in one line, as its help says it.
fn synopsis(command: &clap::Command) -> String {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim().trim_start_matches("Usage: ").replace('-', r"\-");
    format!(".SH SYNOPSIS\n{usage}\n")
}

#[cfg(test)]
mod tests {
    use super::pages;

    #[test]
    fn each_command_has_a_page_that_says_how_it_is_called() {
        let pages = pages().expect("they can be written");
        let check = |name: &str, expected: &str| {
            let page = pages.iter().find(|page| page.name == name).expect("there is one");
            let text = String::from_utf8_lossy(&page.text);
            assert!(text.contains(expected), "no {expected:?} in {text}");
        };
        check("rckpt", "rckpt [OPTIONS] <COMMAND>");
        check("rckpt", "SH \"EXIT STATUS\"");
        check("rckpt-run", r"rckpt run [OPTIONS] \-\- <CMD>...");
        check("rckpt-dump", "rckpt dump [OPTIONS] [PID]");
    }
}
