//! Holds the shape of the code: floors, homes of crates, sizes, names, leftovers.
//!
//! A fault names file, line and rule. The tables here change only together with the picture of the
//! floors in `lib.rs` and `ARCHITECTURE.md`. The rules read the text, not the syntax tree: enough
//! for code that rustfmt has laid out, and each rule has a planted fault in `tidy/planted.rs` that
//! it must catch.

#[path = "tidy/planted.rs"]
mod planted;
#[path = "tidy/text.rs"]
mod text;

use std::{
    fs,
    path::{Path, PathBuf},
};

use text::{Part, blank, braces, first_word, line_of, without_tests, words};

/// The floor that each module of the crate stands on. A module imports only from lower floors;
/// modules of one floor are blind to each other.
const FLOORS: &[(&str, u8)] = &[
    ("config", 0),
    ("error", 0),
    ("fuzz", 0),
    ("identity", 0),
    ("metrics", 0),
    ("task", 0),
    ("machine", 1),
    ("net", 1),
    ("storage", 1),
    ("bond", 2),
    ("mesh", 3),
    ("raft", 4),
    ("group", 5),
    ("log_store", 6),
    ("sync", 7),
    ("streams", 8),
    ("node", 9),
];

/// Modules that may not even see all lower floors. What outsiders reach must have no way to
/// consensus.
const SEES_ONLY: &[(&str, &[&str])] = &[(
    "sync",
    &[
        "config",
        "error",
        "fuzz",
        "identity",
        "metrics",
        "task",
        "net",
        "log_store",
    ],
)];

/// The only places in `src/` that may name a foreign crate.
const HOMES: &[(&str, &[&str])] = &[
    ("openraft", &["src/raft/"]),
    ("rocksdb", &["src/storage/rocks.rs"]),
    (
        "iroh",
        &[
            "src/net/quic.rs",
            "src/node",
            "src/sync/wire",
            "src/sync/client/quic.rs",
        ],
    ),
    ("iroh_gossip", &["src/sync/wire"]),
    (
        "ed25519_dalek",
        &[
            "src/log_store/operation",
            "src/sync/discovery",
            "src/sync/wire",
        ],
    ),
    (
        "blake3",
        &["src/log_store/", "src/raft/validate.rs", "src/sync/"],
    ),
    (
        "cbor_core",
        &["src/streams/message.rs", "src/log_store/operation/fuzz.rs"],
    ),
    ("minicbor", &["src/log_store/operation", "src/sync/"]),
    ("axum", &["src/sync/client/http/"]),
    ("http_body", &["src/sync/client/http/"]),
    ("hyper", &["src/sync/client/http/"]),
    ("hyper_util", &["src/sync/client/http/"]),
    ("rustls", &["src/sync/client/http/"]),
    ("tokio_rustls", &["src/sync/client/http/"]),
];

const FILE_LINES_MAX: usize = 600;
/// Lines with code on them; blank lines and comments are free.
const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 100;

/// Nowhere, comments included.
const LEFTOVERS: &[&str] = &["TODO", "FIXME", "XXX", "HACK"];
/// Nowhere in code.
const FORBIDDEN: &[(&str, &str)] = &[
    ("dbg!", "is for the desk"),
    ("todo!", "is for the desk"),
    ("unimplemented!", "is for the desk"),
    ("unbounded_channel", "grows without a limit"),
    ("UnboundedSender", "grows without a limit"),
    ("UnboundedReceiver", "grows without a limit"),
    ("mpsc::unbounded", "grows without a limit"),
    ("channel::unbounded", "grows without a limit"),
    ("flume::unbounded", "grows without a limit"),
];
/// Not in `src/`, outside its tests.
const FORBIDDEN_IN_PRODUCT: &[(&str, &str)] = &[
    (
        ".unwrap()",
        "says nothing when it fails: return the error, or `expect` with the reason",
    ),
    ("allow(dead_code)", "hides what nobody uses"),
];

/// Names that say nothing about what is inside.
const JUNK_DRAWERS: &[&str] = &[
    "common", "helper", "helpers", "manager", "misc", "prelude", "shared", "stuff", "types",
    "util", "utils",
];

#[test]
fn the_tree_is_tidy() {
    // Asked when it runs: a build that is kept may have been made of another clone.
    let root = std::env::var_os("CARGO_MANIFEST_DIR");
    let root = &PathBuf::from(root.expect("cargo says where the sources are"));
    let mut faults = Vec::new();
    let mut names = Vec::new();
    for folder in ["src", "tests", "examples", "benches"] {
        for path in rust_files(&root.join(folder)) {
            let name = path
                .strip_prefix(root)
                .expect("it is below")
                .to_string_lossy();
            let name = name.replace('\\', "/");
            let text = fs::read_to_string(&path).expect("a source file is readable text");
            faults.extend(check(&name, &text));
            names.push(name);
        }
    }
    assert!(
        names.iter().any(|name| name == "src/lib.rs"),
        "nothing was checked: {names:?}"
    );
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.expect("a folder is readable").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// All faults of one file. `name` is its path from the root of the repository, with `/`.
fn check(name: &str, text: &str) -> Vec<String> {
    let said = blank(text, &[Part::String]);
    let code = blank(text, &[Part::String, Part::Comment]);
    let mut faults = Vec::new();
    check_file(name, text, &mut faults);
    check_lines(name, text, &said, &mut faults);
    check_functions(name, &code, &mut faults);
    check_words(name, &code, FORBIDDEN, &mut faults);
    check_std_channels(name, &code, &mut faults);
    if name.starts_with("src/") {
        check_words(
            name,
            &without_tests(name, &code),
            FORBIDDEN_IN_PRODUCT,
            &mut faults,
        );
        check_floors(name, &code, &mut faults);
        check_homes(name, &code, &mut faults);
    }
    check_inline_modules(name, &code, &mut faults);
    faults
}

fn check_file(name: &str, text: &str, faults: &mut Vec<String>) {
    if !text.starts_with("//! ") {
        faults.push(format!(
            "{name}:1: does not open with a `//! ` line that says what it is"
        ));
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        faults.push(format!(
            "{name}:{lines}: is longer than {FILE_LINES_MAX} lines"
        ));
    }
    let parts = name.strip_suffix(".rs").unwrap_or(name).split('/');
    for part in parts.filter(|part| JUNK_DRAWERS.contains(part)) {
        faults.push(format!(
            "{name}:1: the name `{part}` says nothing about what is inside"
        ));
    }
}

fn check_lines(name: &str, text: &str, said: &str, faults: &mut Vec<String>) {
    for (number, line) in (1..).zip(text.lines()) {
        if line.chars().count() > COLUMNS_MAX {
            faults.push(format!(
                "{name}:{number}: is wider than {COLUMNS_MAX} columns"
            ));
        }
    }
    for leftover in LEFTOVERS {
        for at in words(said, leftover) {
            faults.push(format!(
                "{name}:{}: a leftover `{leftover}`",
                line_of(said, at)
            ));
        }
    }
}

fn check_functions(name: &str, code: &str, faults: &mut Vec<String>) {
    for at in words(code, "fn") {
        let rest = code[at + 2..].trim_start();
        let called = first_word(rest);
        let Some(body) = (!called.is_empty()).then(|| braces(code, at)).flatten() else {
            continue;
        };
        let lines = code[at..body.end]
            .lines()
            .filter(|line| !line.trim().is_empty())
            .count();
        if lines > FUNCTION_LINES_MAX {
            let line = line_of(code, at);
            faults.push(format!(
                "{name}:{line}: `{called}` has {lines} lines, over {FUNCTION_LINES_MAX}"
            ));
        }
    }
}

fn check_words(name: &str, code: &str, forbidden: &[(&str, &str)], faults: &mut Vec<String>) {
    for (word, why) in forbidden {
        for at in words(code, word) {
            faults.push(format!("{name}:{}: `{word}` {why}", line_of(code, at)));
        }
    }
}

/// `mpsc::channel` takes its limit; the one of the standard library takes none and has none.
fn check_std_channels(name: &str, code: &str, faults: &mut Vec<String>) {
    for at in words(code, "mpsc::channel") {
        let call = &code[at + "mpsc::channel".len()..];
        let call = match call.strip_prefix("::<") {
            Some(of) => of.find(">(").map_or("", |end| &of[end + 1..]),
            None => call,
        };
        if call.starts_with("()") {
            let line = line_of(code, at);
            faults.push(format!(
                "{name}:{line}: `mpsc::channel()` grows without a limit"
            ));
        }
    }
}

fn check_inline_modules(name: &str, code: &str, faults: &mut Vec<String>) {
    for at in words(code, "mod") {
        let called = first_word(code[at + 3..].trim_start());
        if JUNK_DRAWERS.contains(&called) {
            let line = line_of(code, at);
            faults.push(format!(
                "{name}:{line}: the name `{called}` says nothing about it"
            ));
        }
    }
}

fn check_floors(name: &str, code: &str, faults: &mut Vec<String>) {
    let module = module_path(name);
    let Some(own) = module.first() else { return }; // lib.rs sees all floors
    let Some(floor) = floor_of(own) else {
        faults.push(format!("{name}:1: the module `{own}` stands on no floor"));
        return;
    };
    if name.contains("/tests/") {
        return; // tests of a floor may look down on it from above
    }
    for (at, used) in used_from_the_root(&module, code) {
        let line = line_of(code, at);
        let narrow = SEES_ONLY.iter().find(|(it, _)| it == own);
        let fault = match floor_of(&used) {
            _ if used == *own => continue,
            None => format!("`crate::{used}` hides which floor it is from"),
            Some(other) if other >= floor => format!("`{own}` may not import from `{used}`"),
            Some(_) => match narrow {
                Some((_, seen)) if !seen.contains(&used.as_str()) => {
                    format!("`{own}` may not see `{used}`, though it is lower")
                }
                _ => continue,
            },
        };
        faults.push(format!("{name}:{line}: {fault}"));
    }
}

fn check_homes(name: &str, code: &str, faults: &mut Vec<String>) {
    for (foreign, homes) in HOMES {
        if homes.iter().any(|home| name.starts_with(home)) {
            continue;
        }
        for at in words(code, foreign) {
            let (before, after) = (&code[..at], &code[at + foreign.len()..]);
            let path = after.starts_with("::") && !before.ends_with("::");
            let import = before.trim_end().ends_with("use") || before.ends_with("crate ");
            if path || import {
                let line = line_of(code, at);
                faults.push(format!(
                    "{name}:{line}: `{foreign}` is at home only in {homes:?}"
                ));
            }
        }
    }
}

fn floor_of(module: &str) -> Option<u8> {
    FLOORS
        .iter()
        .find(|(it, _)| *it == module)
        .map(|(_, floor)| *floor)
}

/// `src/bond/worker.rs` is `bond`, `worker`; `src/bond/mod.rs` is `bond`; `src/lib.rs` is the root.
fn module_path(name: &str) -> Vec<&str> {
    let path = name.strip_prefix("src/").unwrap_or(name);
    let path = path.strip_suffix(".rs").unwrap_or(path);
    let parts = path.split('/');
    parts
        .filter(|part| !["mod", "lib"].contains(part))
        .collect()
}

/// What code names directly below the crate's root, by `crate::` or by enough `super::`, and where.
fn used_from_the_root(module: &[&str], code: &str) -> Vec<(usize, String)> {
    let inline: Vec<_> = words(code, "mod")
        .filter_map(|at| braces(code, at))
        .collect();
    let mut found = Vec::new();
    for at in words(code, "crate") {
        if let Some(rest) = code[at + 5..].strip_prefix("::") {
            found.extend(first_segments(rest).into_iter().map(|it| (at, it)));
        }
    }
    for at in words(code, "super").filter(|at| !code[..*at].ends_with("super::")) {
        let deep = module.len() + inline.iter().filter(|body| body.contains(&at)).count();
        let (mut rest, mut up) = (&code[at..], 0);
        while let Some(it) = rest.strip_prefix("super::") {
            (rest, up) = (it, up + 1);
        }
        if up >= deep {
            found.extend(first_segments(rest).into_iter().map(|it| (at, it)));
        }
    }
    found
}

/// The first segments of a path, or of each path of a group: `{a, b::{c, d}}` has `a` and `b`.
fn first_segments(path: &str) -> Vec<String> {
    let Some(group) = path.strip_prefix('{') else {
        return vec![first_word(path).to_owned()];
    };
    let (mut depth, mut starts, mut found) = (0, true, Vec::new());
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => starts = true,
            _ if starts && depth == 0 && !letter.is_whitespace() => {
                found.push(first_word(&group[at..]).to_owned());
                starts = false;
            }
            _ => {}
        }
    }
    found
}
