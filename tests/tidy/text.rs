//! Reads Rust as text: what is code, what a comment or a string, where a block ends.

use std::ops::Range;

pub(super) fn first_word(text: &str) -> &str {
    let end = text
        .find(|it: char| !(it.is_alphanumeric() || it == '_'))
        .unwrap_or(text.len());
    &text[..end]
}

/// Where `word` stands by itself, not as a part of a longer one.
pub(super) fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let joins = |it: char| it.is_alphanumeric() || it == '_';
    text.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |at| {
            let before = text[..*at].chars().next_back();
            let after = text[at + word.len()..].chars().next();
            let goes_on = word.ends_with(joins) && after.is_some_and(joins);
            let began = word.starts_with(joins) && before.is_some_and(joins);
            !began && !goes_on
        })
}

pub(super) fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// The next `{ ... }` after `at`, braces included; none if a `;` ends the item before.
pub(super) fn braces(code: &str, at: usize) -> Option<Range<usize>> {
    let (mut inside, mut depth, mut start) = (0_i32, 0, None);
    for (offset, letter) in code[at..].char_indices() {
        match letter {
            '(' | '[' if start.is_none() => inside += 1,
            ')' | ']' if start.is_none() => inside -= 1,
            ';' if start.is_none() && inside == 0 => return None,
            '{' => {
                start.get_or_insert(at + offset);
                depth += 1;
            }
            '}' => {
                depth -= 1;
                if depth <= 0 {
                    return start.map(|start| start..at + offset + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// The code with what is compiled only for tests blanked out.
pub(super) fn without_tests(name: &str, code: &str) -> String {
    let file = name.rsplit('/').next().unwrap_or(name);
    if name.contains("/tests/") || file == "tests.rs" || file.ends_with("_tests.rs") {
        return String::new();
    }
    let mut code = code.to_owned();
    for (at, _) in code.clone().match_indices("#[cfg(") {
        let end = at + code[at..].find(']').map_or(0, |it| it + 1);
        let condition = &code[at..end];
        if words(condition, "test").next().is_none() || condition.contains("not(") {
            continue;
        }
        if let Some(body) = braces(&code, end) {
            let blanked = code[body.clone()].replace(|it| it != '\n', " ");
            code.replace_range(body, &blanked);
        }
    }
    code
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Part {
    Code,
    Comment,
    String,
}

/// The text with some of its parts replaced by spaces, line by line where it was. Quotes stay.
pub(super) fn blank(text: &str, parts: &[Part]) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    let mut after_word = false;
    while let Some(first) = rest.chars().next() {
        let (part, length) = lex(rest, after_word);
        let (piece, behind) = rest.split_at(length);
        if parts.contains(&part) {
            let quotes = part == Part::String;
            let last = piece.len() - 1;
            out.extend(piece.bytes().enumerate().map(|(at, byte)| match byte {
                b'\n' => '\n',
                b'"' if quotes && (at == 0 || at == last) => '"',
                _ => ' ',
            }));
        } else {
            out.push_str(piece);
        }
        after_word = part == Part::Code && (first.is_alphanumeric() || first == '_');
        rest = behind;
    }
    out
}

/// What begins here, and how many bytes it has.
fn lex(rest: &str, after_word: bool) -> (Part, usize) {
    let until = |end: Option<usize>| end.unwrap_or(rest.len());
    if rest.starts_with("//") {
        return (Part::Comment, until(rest.find('\n')));
    }
    if rest.starts_with("/*") {
        return (Part::Comment, block_comment(rest));
    }
    if !after_word {
        let marked = rest.trim_start_matches(['b', 'c']);
        let hashes = marked
            .strip_prefix('r')
            .map(|it| it.len() - it.trim_start_matches('#').len());
        if let Some(hashes) = hashes
            && marked[1 + hashes..].starts_with('"')
        {
            let open = rest.len() - marked.len() + 2 + hashes;
            let close = format!("\"{}", "#".repeat(hashes));
            let end = rest[open..].find(&close).map(|it| open + it + close.len());
            return (Part::String, until(end));
        }
    }
    if rest.starts_with('"') {
        return (Part::String, quoted(rest, '"'));
    }
    let first = rest.chars().next().map_or(1, char::len_utf8);
    let mut after_quote = rest.strip_prefix('\'').unwrap_or_default().chars();
    match (after_quote.next(), after_quote.next()) {
        (Some('\\'), _) | (Some(_), Some('\'')) => (Part::String, quoted(rest, '\'')),
        _ => (Part::Code, first), // a lifetime among them
    }
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut letters = rest.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        if letter == '\\' {
            letters.next();
        } else if letter == quote {
            return at + 1;
        }
    }
    rest.len()
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while let Some(letter) = rest[at..].chars().next() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += letter.len_utf8();
        }
    }
    rest.len()
}
