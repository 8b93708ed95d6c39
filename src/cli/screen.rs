//! Output for people, the one way that all commands have: tables, bars, sizes, times. Colours and bars are
//! for terminals alone; what a script reads has none.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};

use super::output::write;
use crate::escape::{Line, in_one_line};

/// Unix seconds of a moment in the year 9999, with which the calendar of RFC 3339 ends.
const YEAR_9999: u64 = 253_400_000_000;
/// Characters of a bar.
const BAR_WIDTH: u64 = 20;
/// Columns between two columns of a table.
const GAP: u16 = 2;
/// Switches a terminal to a screen of its own without a cursor, and back.
const WHOLE_SCREEN: &str = "\u{1b}[?1049h\u{1b}[?25l";
const FORMER_SCREEN: &str = "\u{1b}[?25h\u{1b}[?1049l";

/// The abilities of the output.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Screen {
    is_terminal: bool,
    colours: bool,
}

/// Meaning of a text, which a colour shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Warning,
    Bad,
    Dim,
}

/// A cell of a table.
#[derive(Clone, Debug)]
pub(super) struct TableField {
    text: String,
    tone: Tone,
    is_number: bool,
}

/// The whole screen of a terminal, given back when this is dropped.
pub(super) struct WholeScreen(());

impl Drop for WholeScreen {
    fn drop(&mut self) {
        // A terminal that is gone needs it no more.
        let _ = write(format_args!("{FORMER_SCREEN}"));
    }
}

impl TableField {
    /// A text; what acts on a terminal is escaped.
    pub(super) fn text(text: impl Display) -> Self {
        Self { text: Line(text).to_string(), tone: Tone::Plain, is_number: false }
    }

    /// A long text in one line, of so many characters at most.
    pub(super) fn short(text: &str, chars_max: usize) -> Self {
        Self::text(in_one_line(text, chars_max))
    }

    /// A number or a size, aligned at its end.
    pub(super) fn number(number: impl Display) -> Self {
        Self { is_number: true, ..Self::text(number) }
    }

    /// A text that may be absent.
    pub(super) fn option(text: Option<impl Display>) -> Self {
        text.map_or_else(|| Self::text("-"), Self::text)
    }

    /// The same in another tone.
    pub(super) fn tone(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }
}

impl Screen {
    /// Standard output. The variables NO_COLOR and TERM=dumb turn colours off.
    pub(super) fn stdout() -> Self {
        let is_terminal = io::stdout().is_terminal();
        let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { is_terminal, colours: is_terminal && !is_set("NO_COLOR") && !is_dumb }
    }

    /// A heading of a part of the output.
    pub(super) fn heading(self, text: &str) -> String {
        self.toned(text, "1")
    }

    /// A text in its tone.
    pub(super) fn say(self, text: &str, tone: Tone) -> String {
        match tone {
            Tone::Plain => text.to_owned(),
            Tone::Good => self.toned(text, "32"),
            Tone::Warning => self.toned(text, "33"),
            Tone::Bad => self.toned(text, "31"),
            Tone::Dim => self.toned(text, "2"),
        }
    }

    fn toned(self, text: &str, code: &str) -> String {
        if self.colours { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Rows below headings, each row in a line; on a terminal long fields are wrapped to its width.
    pub(super) fn table(self, headings: &[&str], rows: impl IntoIterator<Item = Vec<TableField>>) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let arrangement =
            if self.is_terminal { ContentArrangement::Dynamic } else { ContentArrangement::Disabled };
        table.set_content_arrangement(arrangement);
        match self.colours {
            true => table.enforce_styling(),
            false => table.force_no_tty(),
        };
        table.set_header(headings.iter().map(|heading| Cell::new(heading).add_attribute(Attribute::Bold)));
        let mut numbers = vec![true; headings.len()];
        let mut count = 0;
        for row in rows {
            count += 1;
            numbers.iter_mut().zip(&row).for_each(|(all, field)| *all &= field.is_number);
            table.add_row(row.into_iter().map(cell));
        }
        for (column, is_number) in table.column_iter_mut().zip(numbers) {
            column.set_padding((0, GAP));
            if is_number && count > 0 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.trim_fmt() + "\n"
    }

    /// A moment, from Unix seconds: on a terminal how long ago it was or how soon it comes, else in UTC.
    pub(super) fn moment(self, unix: u64) -> String {
        if !self.is_terminal {
            return time(unix);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        match now.checked_sub(unix) {
            Some(past) => format!("{} ago", in_one_unit(past)),
            None => format!("in {}", in_one_unit(unix - now)),
        }
    }

    /// A derivation, by its base name: on a terminal its name alone, by which commands find it, too.
    pub(super) fn derivation(self, base_name: &str) -> &str {
        if self.is_terminal { name(base_name) } else { base_name }
    }

    /// So much of a whole as a bar on a terminal, and in figures.
    pub(super) fn bar(self, part: u64, whole: u64) -> String {
        let part = part.min(whole);
        if !self.is_terminal {
            return format!("{part}/{whole}");
        }
        let filled = (part * BAR_WIDTH).checked_div(whole).unwrap_or_default();
        let bar: String = (0..BAR_WIDTH).map(|at| if at < filled { '█' } else { '░' }).collect();
        format!("{bar} {part}/{whole}")
    }

    /// Takes the whole screen of the terminal until the result is dropped.
    pub(super) fn take_whole(self) -> io::Result<WholeScreen> {
        let mut out = io::stdout();
        out.write_all(WHOLE_SCREEN.as_bytes())?;
        out.flush()?;
        Ok(WholeScreen(()))
    }

    /// Draws a text from the upper left corner of the screen on, without a flicker.
    pub(super) fn draw(self, text: &str) -> io::Result<()> {
        let height = terminal_height();
        let lines: String =
            text.lines().take(height).map(|line| format!("{line}\u{1b}[K\r\n")).collect::<String>();
        let mut out = io::stdout().lock();
        write!(out, "\u{1b}[H{}\u{1b}[J", lines.trim_end_matches("\r\n"))?;
        out.flush()
    }
}

/// Lines of the terminal.
fn terminal_height() -> usize {
    rustix::termios::tcgetwinsize(io::stdout()).map_or(usize::MAX, |size| usize::from(size.ws_row).max(1))
}

fn cell(field: TableField) -> Cell {
    let cell = Cell::new(field.text);
    match field.tone {
        Tone::Plain => cell,
        Tone::Good => cell.fg(Color::Green),
        Tone::Warning => cell.fg(Color::Yellow),
        Tone::Bad => cell.fg(Color::Red),
        Tone::Dim => cell.add_attribute(Attribute::Dim),
    }
}

/// A moment in UTC, from Unix seconds.
pub(super) fn time(unix: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix.min(YEAR_9999))).to_string()
}

/// Seconds in the largest unit of which there are two.
fn in_one_unit(seconds: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(86_400, "d"), (3_600, "h"), (60, "m")];
    let unit = UNITS.into_iter().find(|(length, _)| seconds >= 2 * length);
    unit.map_or_else(|| format!("{seconds}s"), |(length, name)| format!("{}{name}", seconds / length))
}

/// Bytes as people read them.
pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// Seconds as people read them.
pub(super) fn seconds(seconds: u64) -> String {
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// Name of a derivation or a store path, without its hash and the ending of a derivation.
pub(super) fn name(base_name: &str) -> &str {
    let name = base_name.split_once('-').map_or(base_name, |(_, name)| name);
    name.strip_suffix(".drv").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_its_columns_aligned_and_no_colours_for_a_script() {
        let rows = [("a", 5, Tone::Bad), ("long\u{1b}[31mer", 1234, Tone::Plain)];
        let rows = rows
            .map(|(name, count, tone)| vec![TableField::text(name).tone(tone), TableField::number(count)]);
        let table = Screen::default().table(&["NAME", "COUNT"], rows);
        assert_eq!(table, "NAME              COUNT\na                     5\nlong\\u{1b}[31mer   1234\n");
        assert_eq!(Screen::default().bar(3, 10), "3/10");
    }

    #[test]
    fn a_terminal_gets_bars_and_colours() {
        let screen = Screen { is_terminal: true, colours: true };
        assert_eq!(screen.bar(5, 10), "██████████░░░░░░░░░░ 5/10");
        assert_eq!(screen.bar(5, 0), "░░░░░░░░░░░░░░░░░░░░ 0/0");
        assert!(screen.table(&["A"], [vec![TableField::text("b").tone(Tone::Good)]]).contains("\u{1b}["));
        assert_eq!(screen.heading("A"), "\u{1b}[1mA\u{1b}[0m");
        assert_eq!(screen.derivation("0-a-1.drv"), "a-1");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a moment").as_secs();
        assert_eq!(screen.moment(now - 7_300), "2h ago");
        assert_eq!(screen.moment(now + 90 * 86_400 + 60), "in 90d");
    }

    #[test]
    fn names_times_and_sizes_are_those_that_people_read() {
        assert_eq!(name("0123-hello-2.12.drv"), "hello-2.12");
        assert_eq!(name("hello"), "hello");
        assert_eq!(time(86_400), "1970-01-02T00:00:00Z");
        assert_eq!(time(u64::MAX), time(YEAR_9999));
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(seconds(75), "1m 15s");
        assert_eq!([0, 119, 120, 7_199, 172_800].map(in_one_unit), ["0s", "119s", "2m", "119m", "2d"]);
    }
}
