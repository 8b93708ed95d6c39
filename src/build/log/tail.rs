//! The end of a log as text for people and programs: without escape codes and control characters.
//! Reads no more than a bounded number of bytes, from the end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Lines given at most.
pub(super) const LINES_MAX: usize = 1_000;
/// Bytes read at most.
const BYTES_MAX: u64 = 256 * 1024;

/// Beginning of a line of Nix's own in a log, as it is written there.
const PHASE: &str = "@nix {\"action\":\"setPhase\"";
/// The same, whatever the line says.
const NIX: &str = "@nix ";

/// The last lines of a file, `n` or [`LINES_MAX`] at most. The first is cut at its start where it would be
/// too long.
pub(super) fn last_lines(file: &File, n: usize) -> io::Result<Vec<String>> {
    let length = file.metadata()?.len();
    let start = length.saturating_sub(BYTES_MAX);
    // The log may grow meanwhile, or be cut by a full disk.
    let mut bytes = vec![0; usize::try_from(length - start).unwrap_or(usize::MAX)];
    let read = read_at(file, &mut bytes, start)?;
    let mut text = &bytes[..read];
    if start > 0
        && let Some(end) = text.iter().position(|byte| *byte == b'\n')
        && end + 1 < text.len()
    {
        text = &text[end + 1..];
    }
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let of_builder = text.rsplit(|byte| *byte == b'\n').filter(|line| !line.starts_with(PHASE.as_bytes()));
    let mut lines: Vec<String> = of_builder.take(n.min(LINES_MAX)).map(plain_line).collect();
    lines.reverse();
    Ok(lines)
}

fn read_at(file: &File, buffer: &mut [u8], start: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], start + read as u64)? {
            0 => break,
            more => read += more,
        }
    }
    Ok(read)
}

/// The line with which Nix notes in a log that a builder enters a phase.
pub(super) fn phase_line(name: &str) -> String {
    format!("{PHASE},\"phase\":{}}}", serde_json::Value::from(name))
}

/// The phase that a builder enters with a line of its log.
#[must_use]
pub fn entered_phase(line: &str) -> Option<String> {
    let message: serde_json::Value = narinfo::json::from_str(line.strip_prefix(NIX)?).ok()?;
    let phase = message.get("phase").filter(|_| message["action"] == "setPhase")?;
    phase.as_str().map(str::to_owned)
}

/// One line of a log as text for people and programs. Line by line, so that an escape sequence which never
/// ends takes no more than its line with it.
#[must_use]
pub fn plain_line(line: &[u8]) -> String {
    let line = String::from_utf8_lossy(line);
    let stripped = anstream::adapter::strip_str(&line).to_string();
    stripped.replace('\t', " ").chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8], n: usize) -> Vec<String> {
        let file = tempfile::tempfile().expect("a temporary file");
        file.write_all_at(text, 0).expect("written");
        last_lines(&file, n).expect("readable")
    }

    #[test]
    fn the_last_lines_come_in_order_with_or_without_a_line_end_behind_the_last() {
        assert_eq!(lines(b"one\ntwo\n\nthree\n", 3), ["two", "", "three"]);
        assert_eq!(lines(b"one\ntwo", 3), ["one", "two"]);
        assert_eq!(lines(b"one\ntwo", 0), [""; 0]);
        assert_eq!(lines(b"", 3), [""; 0]);
    }

    #[test]
    fn escape_codes_and_control_characters_are_removed_and_none_takes_a_later_line_with_it() {
        let log = "\u{1b}[31;1merror:\u{1b}[0m größe\ta\r\u{8}\u{7f}\u{9b}b\n\u{1b}]0;never ended\nafter\n";
        assert_eq!(lines(log.as_bytes(), 9), ["error: größe ab", "", "after"]);
        assert_eq!(lines(b"not utf-8: \xff!\n", 1), ["not utf-8: \u{fffd}!"]);
    }

    #[test]
    fn a_phase_is_read_as_it_was_written_and_is_no_line_of_the_builder() {
        for name in ["buildPhase", "a \"quoted\" one", ""] {
            assert_eq!(entered_phase(&phase_line(name)).as_deref(), Some(name));
        }
        for line in ["buildPhase", "@nix {\"action\":\"msg\",\"phase\":\"x\"}", "@nix {", "@nix {}"] {
            assert_eq!(entered_phase(line), None, "{line}");
        }
        let log = format!("one\n{}\ntwo\n{}\n", phase_line("a"), phase_line("b"));
        assert_eq!(lines(log.as_bytes(), 9), ["one", "two"]);
    }

    #[test]
    fn a_log_of_any_length_costs_a_bounded_number_of_lines_and_bytes() {
        let many = lines(&b"line\n".repeat(100_000), usize::MAX);
        assert_eq!((many.len(), &*many[0]), (LINES_MAX, "line"));
        let long = lines(&[b"first\n", &b"x".repeat(2 * BYTES_MAX as usize)[..], b"\n"].concat(), 5);
        assert_eq!(long, ["x".repeat(BYTES_MAX as usize - 1)]);
        let whole = lines(&[&b"y".repeat(2 * BYTES_MAX as usize)[..], b"\nwhole\n"].concat(), 5);
        assert_eq!(whole, ["whole"], "what was cut at its start is left out where there is something else");
    }
}
