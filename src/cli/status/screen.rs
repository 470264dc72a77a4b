//! A terminal that is drawn over again and again, and given back as it was.
//!
//! Lines are placed by number, so a terminal with too few rows keeps the first ones, and one that is resized is right again with the next
//! drawing: its size is never asked for.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

/// The terminal's other screen, without a cursor, until dropped.
pub(super) struct Screen(());

impl Screen {
    pub(super) fn open() -> Screen {
        // The other screen, no cursor, and long lines cut instead of continued.
        raw("\x1b[?1049h\x1b[?25l\x1b[?7l");
        Screen(())
    }

    /// Shows this text and nothing else.
    pub(super) fn draw(&self, text: &str) {
        raw(&drawing(text));
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        raw("\x1b[?7h\x1b[?25h\x1b[?1049l");
    }
}

fn drawing(text: &str) -> String {
    let mut codes = String::new();
    for (n, line) in text.lines().enumerate() {
        // Writing into a String cannot fail. What lies below the last row is drawn there, one over the other.
        let _ = write!(codes, "\x1b[{};1H{line}\x1b[K", n + 1);
    }
    codes + "\x1b[J"
}

/// A terminal that is gone has nobody before it.
fn raw(codes: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(codes.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_row_and_nothing_older_stays() {
        assert_eq!(drawing("a\nb\n"), "\u{1b}[1;1Ha\u{1b}[K\u{1b}[2;1Hb\u{1b}[K\u{1b}[J");
    }
}
