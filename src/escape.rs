//! Escapes for text from outside that goes into a log, an answer or a terminal. The one place that knows
//! which characters act on what shows them.

use std::fmt::{self, Display, Write};

/// Marks that change the order in which text is shown, or where a line of it ends, without being control
/// characters.
const MARKS: [char; 14] = [
    '\u{61c}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}', '\u{202a}', '\u{202b}', '\u{202c}',
    '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}',
];

/// Text as one line: line ends are escaped, too.
pub struct Line<T>(pub T);

/// Text that keeps its line ends and tabs; all else that acts is escaped.
pub struct Lines<T>(pub T);

/// A writer that escapes characters that act.
pub struct Escaping<W> {
    to: W,
    keeps_lines: bool,
}

impl<W: Write> Escaping<W> {
    /// Writes lines as escapes, too.
    pub fn line(to: W) -> Self {
        Self { to, keeps_lines: false }
    }
}

impl<W: Write> Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The fast path: nearly all text is plain, and some of it is sent a hundred thousand times a second.
        if text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return self.to.write_str(text);
        }
        let mut written = 0;
        for (at, c) in text.char_indices().filter(|(_, c)| acts(*c)) {
            if self.keeps_lines && matches!(c, '\n' | '\t') {
                continue;
            }
            self.to.write_str(&text[written..at])?;
            write!(self.to, "{}", c.escape_default())?;
            written = at + c.len_utf8();
        }
        self.to.write_str(&text[written..])
    }
}

impl<T: Display> Display for Line<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping { to: formatter, keeps_lines: false }, "{}", self.0)
    }
}

impl<T: Display> Display for Lines<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping { to: formatter, keeps_lines: true }, "{}", self.0)
    }
}

/// The same JSON, with escapes for characters that act and that JSON allows.
#[must_use]
pub fn json(text: String) -> String {
    // The fast path: nearly all answers are plain, and some have millions of bytes.
    if text.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)) {
        return text;
    }
    let is_left = |c: char| acts(c) && !c.is_ascii_whitespace();
    // Outside of strings there are none, and each is one UTF-16 unit.
    let escaped = |c: char| if is_left(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// A text in one line, its white space collapsed, truncated with an ellipsis after `chars_max` characters.
#[must_use]
pub fn in_one_line(text: &str, chars_max: usize) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(chars_max) {
        line.truncate(end);
        line.push('…');
    }
    line
}

/// True for a character that acts on what shows it.
#[must_use]
pub fn acts(c: char) -> bool {
    c.is_control() || MARKS.contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: &str = "a\u{1b}[31m\r\n\tb\0\u{7f}\u{9b}0m\u{202e}\u{2066}\u{85}\u{2028}é水🌊";

    #[test]
    fn nothing_that_acts_is_left_and_all_else_stays() {
        let line = Line(BAD).to_string();
        assert_eq!(
            line,
            "a\\u{1b}[31m\\r\\n\\tb\\u{0}\\u{7f}\\u{9b}0m\\u{202e}\\u{2066}\\u{85}\\u{2028}é水🌊"
        );
        let lines = Lines(BAD).to_string();
        assert_eq!(lines.matches(acts).collect::<String>(), "\n\t");
        assert_eq!(Lines("two\nlines").to_string(), "two\nlines");
    }

    #[test]
    fn json_is_the_same_without_what_acts() {
        let text = json(serde_json::to_string_pretty(&[BAD]).expect("JSON"));
        assert_eq!(text.matches(acts).collect::<String>(), "\n\n", "{text}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&text).expect("JSON"), [BAD]);
    }

    #[test]
    fn what_is_cut_shows_it() {
        assert_eq!(
            in_one_line("builder failed with exit code 1;\n  last 2 lines:\n", 100),
            "builder failed with exit code 1; last 2 lines:"
        );
        assert_eq!(in_one_line("äbc", 3), "äbc");
        assert_eq!(in_one_line("äbcd", 3), "äbc…");
    }
}
