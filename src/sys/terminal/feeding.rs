//! How bytes are put into a terminal's queue so that they arrive there as they are: a pure function of
//! its modes.

use crate::model::terminal::{Termios, assembles_lines};

/// Flag words and control characters of `struct termios2` that are looked at here
/// (include/uapi/asm-generic/termbits.h).
const INPUT_FLAGS: usize = 0;
const OUTPUT_FLAGS: usize = 4;
const LOCAL_FLAGS: usize = 12;
const LINE_DISCIPLINE: usize = 16;
const CHARACTERS: usize = 17;
const CHARACTER_COUNT: usize = 19;
const EOF: usize = CHARACTERS + 4;
const ERASE: usize = CHARACTERS + 2;
const TIME: usize = CHARACTERS + 5;
const MIN: usize = CHARACTERS + 6;
const STOP: usize = CHARACTERS + 9;
const END_OF_LINE: usize = CHARACTERS + 11;
const LITERAL_NEXT: usize = CHARACTERS + 15;
const END_OF_LINE_2: usize = CHARACTERS + 16;
const ICANON: u32 = 0o2;
const ECHO: u32 = 0o10;
const IEXTEN: u32 = 0o100_000;
const EXTPROC: u32 = 0o200_000;
const IXON: u32 = 0o2000;

/// The STOP character that [`Feeding::stop`] has.
pub const STOP_KEY: u8 = 0o23;
fn word(termios: &Termios, offset: usize) -> u32 {
    let bytes = [offset, offset + 1, offset + 2, offset + 3].map(|place| termios[place]);
    u32::from_ne_bytes(bytes)
}

fn set_word(termios: &mut Termios, offset: usize, value: u32) {
    termios[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
}

/// The line discipline; 0 is the terminals' own (N_TTY).
#[must_use]
pub const fn line_discipline(termios: &Termios) -> u8 {
    termios[LINE_DISCIPLINE]
}

/// How a queue is put (back) into a terminal: its modes meanwhile, in which nothing happens to any
/// byte, and the characters that have a meaning in them nevertheless.
///
/// Whether the terminal assembles lines is the same in all of these modes as in its own: to change it
/// would make one line of all that is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feeding {
    /// The terminal's own modes.
    pub own: Termios,
    /// The modes to feed it in.
    pub modes: Termios,
    /// Those in which the STOP character is obeyed.
    pub stop: Termios,
    /// Those in which all that is queued can be read, lines or not.
    pub bare: Termios,
    /// Whether it assembles lines.
    pub lines: bool,
    /// Ends a line without a character.
    pub end_of_file: u8,
    /// Takes the meaning from the next character.
    pub literal_next: u8,
    /// Takes the last character back.
    pub erase: u8,
}

impl Feeding {
    /// The way to feed a terminal with the modes `own`.
    #[must_use]
    pub fn new(own: &Termios) -> Self {
        let lines = assembles_lines(own);
        let ends = [own[END_OF_LINE], own[END_OF_LINE_2]];
        let mut free = (1..=u8::MAX).filter(|byte| *byte != b'\n' && !ends.contains(byte));
        let mut character = || free.next().unwrap_or_default();
        let (end_of_file, literal_next, erase) = (character(), character(), character());

        let mut modes = *own;
        let kept = word(own, LOCAL_FLAGS) & (ICANON | EXTPROC);
        set_word(&mut modes, INPUT_FLAGS, 0);
        set_word(&mut modes, OUTPUT_FLAGS, 0);
        modes[CHARACTERS..CHARACTERS + CHARACTER_COUNT].fill(0);
        modes[MIN] = 1;
        set_word(&mut modes, LOCAL_FLAGS, kept);
        if lines {
            // What is echoed tells that it has arrived.
            set_word(&mut modes, LOCAL_FLAGS, kept | IEXTEN | ECHO);
            modes[EOF] = end_of_file;
            modes[LITERAL_NEXT] = literal_next;
            modes[ERASE] = erase;
            [modes[END_OF_LINE], modes[END_OF_LINE_2]] = ends;
        }
        let mut stop = modes;
        set_word(&mut stop, INPUT_FLAGS, IXON);
        set_word(&mut stop, LOCAL_FLAGS, kept);
        stop[STOP] = STOP_KEY;
        let mut bare = modes;
        set_word(&mut bare, LOCAL_FLAGS, 0);
        bare[TIME] = 0;
        bare[MIN] = 1;
        Self { own: *own, modes, stop, bare, lines, end_of_file, literal_next, erase }
    }

    /// Whether a character ends lines by itself.
    #[must_use]
    pub const fn ends_line(&self, character: u8) -> bool {
        character == b'\n'
            || character != 0
                && (character == self.own[END_OF_LINE] || character == self.own[END_OF_LINE_2])
    }

    /// Writes into `typed` what has to be typed for `text` to be queued: as a line of its own, or as
    /// the beginning of one. Returns the bytes written and how many of them will be echoed; `None`
    /// when there is no room.
    #[must_use]
    pub fn type_text(&self, text: &[u8], complete: bool, typed: &mut [u8]) -> Option<Typed> {
        let mut result = Typed { length: 0, echoed: text.len() };
        let mut put = |byte: u8| {
            *typed.get_mut(result.length)? = byte;
            result.length += 1;
            Some(())
        };
        let (body, end) = match text.split_last() {
            Some((last, body)) if complete && self.ends_line(*last) => (body, Some(*last)),
            _ => (text, complete.then_some(self.end_of_file)),
        };
        for byte in body {
            let meant = [self.end_of_file, self.literal_next, self.erase].contains(byte);
            if meant || self.ends_line(*byte) {
                put(self.literal_next)?;
            }
            put(*byte)?;
        }
        if let Some(end) = end {
            put(end)?;
        }
        Some(result)
    }
}

/// What [`Feeding::type_text`] has written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Typed {
    /// Bytes to type.
    pub length: usize,
    /// Bytes that the terminal will echo.
    pub echoed: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::terminal::TERMIOS2_SIZE;

    fn termios(local: u32, end_of_line: u8) -> Termios {
        let mut termios = [0; TERMIOS2_SIZE];
        set_word(&mut termios, LOCAL_FLAGS, local);
        termios[END_OF_LINE] = end_of_line;
        termios
    }

    #[test]
    fn whether_lines_are_assembled_stays_as_it_is() {
        for local in [0, ICANON | ECHO, ICANON | EXTPROC, EXTPROC] {
            let own = termios(local, 0);
            let feeding = Feeding::new(&own);
            assert_eq!(assembles_lines(&feeding.modes), assembles_lines(&own));
            assert_eq!(assembles_lines(&feeding.stop), assembles_lines(&own));
            assert!(!assembles_lines(&feeding.bare));
        }
    }

    #[test]
    fn what_has_a_meaning_is_typed_literally() {
        let feeding = Feeding::new(&termios(ICANON, b';'));
        let check = |text: &[u8], complete, expected: &[u8]| {
            let mut typed = [0; 32];
            let result = feeding.type_text(text, complete, &mut typed).unwrap();
            assert_eq!(&typed[..result.length], expected, "{}", text.escape_ascii());
            assert_eq!(result.echoed, text.len());
        };
        let (eof, next) = (feeding.end_of_file, feeding.literal_next);
        check(b"line\n", true, b"line\n");
        check(b"item;", true, b"item;");
        check(b"cut", true, &[b'c', b'u', b't', eof]);
        check(b"", true, &[eof]);
        check(b"begun", false, b"begun");
        check(b"a\nb\n", true, &[b'a', next, b'\n', b'b', b'\n']);
        check(&[eof, next, b';'], false, &[next, eof, next, next, next, b';']);
        assert_eq!(feeding.type_text(b"too long", true, &mut [0; 4]), None);
    }
}
