//! Errors of evaluators as they are shown: the message first, then its place in the source. Nix 2.20 and
//! later begin with the way there, most of which leads through our own expression.

/// Where our own expression is, which comes as an argument.
const OWN: [&str; 3] = ["«string»", "(string)", "«none»"];
/// Nix's indentation of all but the first line.
const INDENT: &str = "       ";
/// Start of a frame of the trace.
const FRAME: &str = "… ";
/// Start of the message.
const ERROR: &str = "error:";

/// The message, and then the frames of the trace that are in the source. Other text is unchanged.
pub(super) fn plain(text: &str) -> String {
    let text = anstream::adapter::strip_str(text).to_string();
    if !text.starts_with(ERROR) {
        return text;
    }
    let (mut message, mut frames) = (Vec::new(), vec![Vec::new()]);
    let mut in_message = true;
    for line in text.lines() {
        let trimmed = line.trim_start();
        let begins_frame = trimmed.starts_with(FRAME);
        if let Some(said) = trimmed.strip_prefix(ERROR).filter(|_| message.is_empty() || !in_message) {
            if message.is_empty() && !said.is_empty() {
                message.push(format!("{ERROR}{said}"));
            }
            in_message = true;
        } else if begins_frame || is_position(trimmed) {
            // A position that follows its frame's words, or else stands for itself.
            let is_whole = |frame: &Vec<&str>| frame.iter().any(|line| is_position(line.trim_start()));
            if begins_frame || in_message || frames.last().is_some_and(is_whole) {
                frames.push(Vec::new());
            }
            in_message = false;
            frames.last_mut().expect("there is one").push(line);
        } else if trimmed.is_empty() || trimmed.starts_with("(stack trace truncated") {
            // Says nothing of this error.
        } else if in_message && !is_excerpt(trimmed) {
            message.push(line.strip_prefix(INDENT).unwrap_or(line).to_owned());
        } else if let Some(frame) = frames.last_mut() {
            frame.push(line);
        }
    }
    let is_of_source = |frame: &Vec<&str>| {
        let mut positions = frame.iter().map(|line| line.trim_start()).filter(|line| is_position(line));
        positions.any(|at| !OWN.iter().any(|own| at.starts_with(&format!("at {own}"))))
    };
    let frames = frames.into_iter().filter(is_of_source).flatten().map(str::to_owned);
    message.into_iter().chain(frames).collect::<Vec<_>>().join("\n")
}

/// A place in a file: `at /path:3:14:`.
fn is_position(line: &str) -> bool {
    let place = line.strip_prefix("at ").and_then(|place| place.strip_suffix(':'));
    place.and_then(|place| place.rsplit_once(':')).is_some_and(|(_, column)| column.parse::<u32>().is_ok())
}

/// A line of the file there, with its number or a mark below it.
fn is_excerpt(line: &str) -> bool {
    let digits = line.trim_start_matches(|c: char| c.is_ascii_digit());
    digits.starts_with('|')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_comes_first_and_nothing_of_our_own_expression() {
        let new = "error:\n       … while calling the 'seq' builtin\n         at «string»:1:1:\n            1| x\n             | ^\n\n       \
                   … while calling the 'throw' builtin\n         at /srv/set.nix:2:5:\n            2| throw\n             | ^\n\n       \
                   (stack trace truncated; use '--show-trace' to show the full, detailed trace)\n\n       \
                   error: first\n       second";
        let told = plain(new);
        assert_eq!(
            told,
            "error: first\nsecond\n       … while calling the 'throw' builtin\n         at /srv/set.nix:2:5:\n            2| throw\n             | ^"
        );
    }

    #[test]
    fn an_older_release_tells_of_one_place() {
        let own =
            "error: attribute 'x' missing\n\n       at «string»:1:1:\n\n            1| a.x\n             | ^";
        assert_eq!(plain(own), "error: attribute 'x' missing");
        let of_source = own.replace("«string»", "/srv/set.nix");
        assert_eq!(plain(&of_source).lines().nth(1), Some("       at /srv/set.nix:1:1:"));
        let coloured = "\u{1b}[31;1merror:\u{1b}[0m words\nmore words";
        assert_eq!(plain(coloured), "error: words\nmore words");
        assert_eq!(plain("Killed"), "Killed");
    }
}
