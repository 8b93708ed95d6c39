//! The language of comments, in whole files: the first words of doc comments, and the width of all comments.

use proc_macro2::{LineColumn, TokenStream, TokenTree};

use super::files::all_files;

/// Columns of a comment at most.
pub const COMMENT_COLUMNS_MAX: usize = 110;
/// First words that do not name the subject of a doc comment.
const NO_SUBJECT: [&str; 8] = ["What ", "Who ", "Whether ", "How ", "It ", "When ", "Such ", "All that "];

#[test]
fn doc_comments_name_their_subject() {
    let found = all_files().into_iter().flat_map(|(file, text)| {
        let lines: Vec<&str> = text.lines().collect();
        let firsts = doc_comments(&file, &text);
        let bad = firsts.into_iter().filter_map(move |line| {
            let words = lines[line - 1].trim_start().trim_start_matches(['/', '!']).trim_start();
            NO_SUBJECT.iter().any(|word| words.starts_with(word)).then(|| format!("{file}:{line}: {words}"))
        });
        bad.collect::<Vec<_>>()
    });
    hold("opens without its subject", found);
}

#[test]
fn comments_are_narrow() {
    let found = all_files().into_iter().flat_map(|(file, text)| {
        let strings = strings(&file, &text);
        let wide = text.lines().enumerate().filter_map(|(at, line)| {
            let comment = comment_column(line, at + 1, &strings)?;
            let columns = line.chars().count();
            (columns > COMMENT_COLUMNS_MAX)
                .then(|| format!("{file}:{}: {columns} columns: {}", at + 1, &line[comment..]))
        });
        wide.collect::<Vec<_>>()
    });
    hold("is too wide", found);
}

#[track_caller]
fn hold(fault: &str, found: impl Iterator<Item = String>) {
    let found: Vec<String> = found.collect();
    assert!(found.is_empty(), "a comment {fault}:\n{}", found.join("\n"));
}

/// The first line of each doc comment, and of what stands below each heading in one.
fn doc_comments(file: &str, text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().collect();
    let mut docs: Vec<LineColumn> = Vec::new();
    literals(tokens(file, text), &mut |start, _| {
        if is_doc(&lines, start) {
            docs.push(start);
        }
    });
    docs.sort_by_key(|start| start.line);
    let kind = |line: usize| lines[line - 1].trim_start().chars().take(3).collect::<String>();
    let goes_on =
        |before: &LineColumn, line: usize| before.line + 1 == line && kind(before.line) == kind(line);
    let is_heading = |before: &LineColumn| {
        lines[before.line - 1].trim_start().trim_start_matches(['/', '!']).trim_start().starts_with("# ")
    };
    let opens = |before: &LineColumn, line: usize| !goes_on(before, line) || is_heading(before);
    let firsts = docs.iter().enumerate().filter(|(at, start)| *at == 0 || opens(&docs[at - 1], start.line));
    firsts.map(|(_, start)| start.line).collect()
}

/// Where each string, byte string and character literal begins and ends.
fn strings(file: &str, text: &str) -> Vec<(LineColumn, LineColumn)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut strings = Vec::new();
    literals(tokens(file, text), &mut |start, end| {
        if !is_doc(&lines, start) {
            strings.push((start, end));
        }
    });
    strings
}

/// A doc comment is a literal, too, whose place is that of the comment.
fn is_doc(lines: &[&str], start: LineColumn) -> bool {
    let rest: String = lines[start.line - 1].chars().skip(start.column).take(3).collect();
    rest == "///" || rest == "//!"
}

/// The byte at which a comment begins on this line, or goes on from the line's start.
fn comment_column(line: &str, number: usize, strings: &[(LineColumn, LineColumn)]) -> Option<usize> {
    let within = |column: usize| {
        strings.iter().any(|(start, end)| {
            (start.line, start.column) <= (number, column) && (number, column) < (end.line, end.column)
        })
    };
    line.match_indices("//").map(|(byte, _)| byte).find(|byte| !within(line[..*byte].chars().count()))
}

#[track_caller]
fn tokens(file: &str, text: &str) -> TokenStream {
    // A shebang or a byte order mark is no token; no file has one.
    text.parse().unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Calls `found` with the start and the end of each literal, those within macros included.
fn literals(tokens: TokenStream, found: &mut dyn FnMut(LineColumn, LineColumn)) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => literals(group.stream(), found),
            TokenTree::Literal(literal) => found(literal.span().start(), literal.span().end()),
            TokenTree::Ident(_) | TokenTree::Punct(_) => {}
        }
    }
}

#[test]
fn comments_are_found_wherever_they_are() {
    let text = "//! One\n//! two\n\n/// Three\n#[derive(Debug)]\nstruct A {\n    /// Four\n    b: u8, // five\n}\n\
                m! {\n    /// Six\n    c: \"/// no\",\n}\nconst D: &str = \"a\n/// nor this\";\n\
                /// Seven\n///\n/// # Errors\n/// Eight\n/// nine\nfn e() {}\n";
    assert_eq!(doc_comments("a.rs", text), [1, 4, 7, 11, 16, 19]);
    let strings = strings("a.rs", text);
    let commented =
        |number: usize| comment_column(text.lines().nth(number - 1).expect("a line"), number, &strings);
    assert_eq!([8, 12, 15].map(commented), [Some(11), None, None]);
}
