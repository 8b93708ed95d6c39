//! The log of a build as a page shows it: a window of numbered lines in the colours that the builder chose,
//! by the phases that it went through; or the lines that have a text. Reads a log of any length piece by
//! piece.

use std::collections::VecDeque;

use crate::build::entered_phase;

/// Lines of a window.
pub(super) const WINDOW_LINES: usize = 2_000;
/// Lines with the wanted text that are shown.
const FOUND_MAX: usize = 500;
/// Bytes of all lines of a window.
const WINDOW_BYTES_MAX: usize = 512 * 1024;
/// Bytes of a line that are shown.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// Text before the name of a phase, as the usual builder of package sets prints it.
const PHASE_LINE: &str = "Running phase: ";

/// A run of characters with one look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StyledRun {
    /// Classes of the style sheet.
    pub(super) look: String,
    pub(super) text: String,
}

/// A line.
#[derive(Clone, Debug)]
pub(super) struct LogLine {
    /// From 1.
    pub(super) number: usize,
    pub(super) runs: Vec<StyledRun>,
}

/// Lines of one phase.
#[derive(Clone, Debug, Default)]
pub(super) struct LogPhase {
    /// Empty before the first phase.
    pub(super) name: String,
    pub(super) lines: Vec<LogLine>,
}

/// Lines that are wanted of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The last ones.
    End,
    /// Those from this number on.
    From(usize),
    /// Those with this text, whatever its case.
    With(String),
}

/// Reader of a log, to which it is given piece by piece.
pub(super) struct LogWindow {
    wanted: Wanted,
    partial: Vec<u8>,
    /// Lines that were read.
    count: usize,
    lines: VecDeque<(usize, Vec<u8>)>,
    /// Bytes of these lines.
    bytes: usize,
}

impl LogWindow {
    pub(super) fn new(wanted: Wanted) -> Self {
        let wanted = match wanted {
            Wanted::With(text) => Wanted::With(text.to_lowercase()),
            other => other,
        };
        Self { wanted, partial: Vec::new(), count: 0, lines: VecDeque::new(), bytes: 0 }
    }

    /// Takes the next bytes of the log.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            self.extend(&rest[..end]);
            self.end_line();
            rest = &rest[end + 1..];
        }
        self.extend(rest);
    }

    /// More of a line than is shown is dropped.
    fn extend(&mut self, bytes: &[u8]) {
        let room = LINE_BYTES_MAX.saturating_sub(self.partial.len());
        self.partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn end_line(&mut self) {
        self.count += 1;
        let line = std::mem::take(&mut self.partial);
        let fits = |lines_max| self.lines.len() < lines_max && self.bytes + line.len() <= WINDOW_BYTES_MAX;
        let is_wanted = match &self.wanted {
            Wanted::End => true,
            // Without a gap: nothing follows a line that did not fit.
            Wanted::From(first) => self.count == first + self.lines.len() && fits(WINDOW_LINES),
            Wanted::With(text) => fits(FOUND_MAX) && plain(&line).to_lowercase().contains(text.as_str()),
        };
        if is_wanted {
            self.bytes += line.len();
            self.lines.push_back((self.count, line));
        }
        while self.lines.len() > WINDOW_LINES || self.bytes > WINDOW_BYTES_MAX {
            let Some((_, line)) = self.lines.pop_front() else { break };
            self.bytes -= line.len();
        }
    }

    /// The lines by their phases, the numbers of the first and the last of them, and the number of all.
    pub(super) fn finish(mut self) -> (Vec<LogPhase>, (usize, usize), usize) {
        if !self.partial.is_empty() {
            self.end_line();
        }
        let bounds = self.lines.front().zip(self.lines.back());
        let bounds = bounds.map_or((1, self.count), |((first, _), (last, _))| (*first, *last));
        let mut phases = vec![LogPhase::default()];
        for (number, line) in self.lines {
            if let Some(name) = phase_of(&line) {
                phases.push(LogPhase { name, lines: Vec::new() });
                continue;
            }
            if let Some(phase) = phases.last_mut() {
                phase.lines.push(LogLine { number, runs: runs(&line) });
            }
        }
        phases.retain(|phase| !phase.lines.is_empty() || !phase.name.is_empty());
        (phases, bounds, self.count)
    }
}

/// The phase that a line begins.
fn phase_of(line: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?.trim();
    let word = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if let Some(name) = line.strip_prefix(PHASE_LINE) {
        return Some(name.trim().to_owned()).filter(|name| !name.is_empty() && word(name));
    }
    entered_phase(line).filter(|name| word(name))
}

fn plain(line: &[u8]) -> String {
    runs(line).into_iter().map(|run| run.text).collect()
}

/// The look that escape codes have chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct TextStyle {
    /// 0 to 15; `None` for the usual one.
    colour: Option<u8>,
    bold: bool,
    faint: bool,
    underlined: bool,
}

impl TextStyle {
    fn classes(self) -> String {
        let mut classes = self.colour.map(|colour| format!("c{colour}")).unwrap_or_default();
        for (is_so, class) in [(self.bold, " b"), (self.faint, " f"), (self.underlined, " u")] {
            if is_so {
                classes += class;
            }
        }
        classes.trim_start().to_owned()
    }

    /// Applies the parameters of a sequence that ends in `m` (ECMA-48, 8.3.117).
    fn apply(&mut self, parameters: &str) {
        let mut numbers = parameters.split(';').map(|number| number.parse::<u16>().unwrap_or(0));
        while let Some(number) = numbers.next() {
            match number {
                0 => *self = Self::default(),
                1 => self.bold = true,
                2 => self.faint = true,
                4 => self.underlined = true,
                22 => (self.bold, self.faint) = (false, false),
                24 => self.underlined = false,
                30..=37 => self.colour = u8::try_from(number - 30).ok(),
                90..=97 => self.colour = u8::try_from(number - 82).ok(),
                39 => self.colour = None,
                // A colour of a larger palette: its parameters are passed over.
                38 | 48 => match numbers.next() {
                    Some(5) => drop(numbers.next()),
                    Some(2) => drop(numbers.by_ref().take(3).count()),
                    _ => {}
                },
                _ => {}
            }
        }
    }
}

/// A line without control characters, by the looks that its escape codes choose. No sequence reaches beyond
/// its line.
fn runs(line: &[u8]) -> Vec<StyledRun> {
    let text = String::from_utf8_lossy(line);
    // What came before a carriage return was overwritten.
    let text = text.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
    let (mut found, mut look, mut current) = (Vec::new(), TextStyle::default(), String::new());
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        if c != '\u{1b}' {
            match c {
                '\t' => current.push_str("    "),
                c if crate::escape::acts(c) => {}
                c => current.push(c),
            }
            continue;
        }
        match characters.next() {
            Some('[') => {
                let mut parameters = String::new();
                let end = loop {
                    match characters.next() {
                        Some(c @ '\u{40}'..='\u{7e}') => break Some(c),
                        Some(c) => parameters.push(c),
                        None => break None,
                    }
                };
                if end == Some('m') {
                    push_run(&mut found, look, &mut current);
                    look.apply(&parameters);
                }
            }
            // An operating system command ends with a bell, or with the string terminator.
            Some(']') => {
                while let Some(c) = characters.next() {
                    if c == '\u{7}' || (c == '\u{1b}' && characters.next_if_eq(&'\\').is_some()) {
                        break;
                    }
                }
            }
            _ => {}
        }
    }
    push_run(&mut found, look, &mut current);
    found
}

fn push_run(found: &mut Vec<StyledRun>, look: TextStyle, text: &mut String) {
    if !text.is_empty() {
        found.push(StyledRun { look: look.classes(), text: std::mem::take(text) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(log: &str, wanted: Wanted) -> (Vec<LogPhase>, (usize, usize), usize) {
        let mut window = LogWindow::new(wanted);
        log.as_bytes().chunks(7).for_each(|piece| window.push(piece));
        window.finish()
    }

    fn numbers(phases: &[LogPhase]) -> Vec<usize> {
        phases.iter().flat_map(|phase| &phase.lines).map(|line| line.number).collect()
    }

    #[test]
    fn escape_codes_become_looks_and_nothing_that_acts_is_left() {
        let line = "\u{1b}[31;1mred\u{1b}[0m plain \u{1b}[38;5;9;4munder\u{1b}]0;title\u{7}lined\u{1b}[39\u{9b}m\u{202e}";
        let found: Vec<(String, String)> =
            runs(line.as_bytes()).into_iter().map(|run| (run.look, run.text)).collect();
        let expected = [("c1 b", "red"), ("", " plain "), ("u", "underlined")];
        assert_eq!(found, expected.map(|(look, text)| (look.to_owned(), text.to_owned())));
        assert_eq!(plain(b"50%\r100%\r"), "100%");
        assert_eq!(plain(b"\x1b]0;never ended"), "");
    }

    #[test]
    fn lines_stand_in_their_phases_with_the_numbers_of_the_whole_log() {
        let log = "before\nRunning phase: buildPhase\none\ntwo\n@nix {\"action\":\"setPhase\",\"phase\":\"fixupPhase\"}\nend";
        let (phases, bounds, count) = read(log, Wanted::End);
        assert_eq!(bounds, (1, 6));
        let names: Vec<&str> = phases.iter().map(|phase| &*phase.name).collect();
        assert_eq!((names, count), (vec!["", "buildPhase", "fixupPhase"], 6));
        assert_eq!(numbers(&phases), [1, 3, 4, 6]);
        assert_eq!(numbers(&read(log, Wanted::From(4)).0), [4, 6]);
        assert_eq!(numbers(&read(log, Wanted::With("ONE".to_owned())).0), [3]);
        assert!(phase_of(b"Running phase: <script>").is_none());
    }

    #[test]
    fn a_log_of_any_length_takes_a_bounded_number_of_lines_and_bytes() {
        let (phases, bounds, count) = read(&"line\n".repeat(10_000), Wanted::End);
        assert_eq!(bounds, (8_001, 10_000));
        assert_eq!((numbers(&phases).len(), count), (WINDOW_LINES, 10_000));
        assert_eq!(numbers(&phases)[0], 8_001);
        let (phases, ..) = read(&"x".repeat(100_000), Wanted::End);
        assert_eq!(phases[0].lines[0].runs[0].text.len(), LINE_BYTES_MAX);
        let long = format!("{}\n", "x".repeat(LINE_BYTES_MAX)).repeat(100);
        let fitting = WINDOW_BYTES_MAX / LINE_BYTES_MAX;
        assert_eq!(numbers(&read(&long, Wanted::End).0), (101 - fitting..=100).collect::<Vec<_>>());
        assert_eq!(numbers(&read(&long, Wanted::From(3)).0), (3..3 + fitting).collect::<Vec<_>>());
    }
}
