//! Planted faults: each rule must catch what it is for, and let pass what only looks like it.

use super::{text::*, *};

/// The faults of a file that holds `body` behind its opening line.
fn faults(name: &str, body: &str) -> Vec<String> {
    check(name, &format!("//! A file with a fault in it.\n{body}"))
}

#[track_caller]
fn caught(name: &str, body: &str, line: usize, rule: &str) {
    let found = faults(name, body);
    assert_eq!(found.len(), 1, "{name}: {body}\n{found:#?}");
    assert!(
        found[0].starts_with(&format!("{name}:{line}: ")),
        "{found:?}"
    );
    assert!(found[0].contains(rule), "{found:?}");
}

#[track_caller]
fn passes(name: &str, body: &str) {
    assert_eq!(faults(name, body), [""; 0], "{name}: {body}");
}

#[test]
fn a_file_without_its_opening_line() {
    for text in ["use std::fmt;\n", "// A comment.\n", "//!\n", ""] {
        let found = check("src/bond/mod.rs", text);
        assert!(
            found.len() == 1 && found[0].contains("does not open"),
            "{found:?}"
        );
    }
}

#[test]
fn imports_from_the_same_or_a_higher_floor() {
    caught(
        "src/bond/mod.rs",
        "use crate::mesh::Mesh;",
        2,
        "from `mesh`",
    );
    caught(
        "src/net/mod.rs",
        "\nuse crate::storage::Store;",
        3,
        "from `storage`",
    );
    caught(
        "src/raft/core.rs",
        "fn f(it: crate::group::Group) {}",
        2,
        "from `group`",
    );
    caught(
        "src/bond/a.rs",
        "use crate::{\n    error,\n    raft::{A, b::C},\n};",
        2,
        "`raft`",
    );
    caught(
        "src/bond/a.rs",
        "use super::super::node::Node;",
        2,
        "from `node`",
    );
    caught(
        "src/bond/mod.rs",
        "use super::{error::Cause, mesh::Mesh};",
        2,
        "from `mesh`",
    );
    caught("src/config.rs", "use super::mesh;", 2, "from `mesh`");
    caught(
        "src/net/a.rs",
        "mod t {\n    use super::super::super::raft::R;\n}",
        3,
        "`raft`",
    );
    caught(
        "src/mesh/mod.rs",
        "use crate::Group;",
        2,
        "hides which floor",
    );
    caught(
        "src/sync/live.rs",
        "use crate::raft::Raft;",
        2,
        "may not see `raft`",
    );
    caught("src/extra.rs", "", 1, "no floor");
}

#[test]
fn imports_from_lower_floors_and_within_a_module() {
    passes(
        "src/mesh/mod.rs",
        "use crate::{bond::{Bond, mesh}, mesh::dialer, net};",
    );
    passes(
        "src/mesh/a.rs",
        "use super::raft; // a child of mesh that happens to be called so",
    );
    passes(
        "src/net/a.rs",
        "/// See [`crate::raft`].\nmod t {\n    use super::super::raft;\n}",
    );
    passes("src/lib.rs", "pub use crate::{group::Group, node::Node};");
    passes("src/sync/live.rs", "use crate::log_store::Reader;");
}

#[test]
fn a_foreign_crate_away_from_home() {
    caught(
        "src/group/mod.rs",
        "use openraft::Raft;",
        2,
        "`openraft` is at home",
    );
    caught(
        "src/storage/memory.rs",
        "fn f(db: &rocksdb::DB) {}",
        2,
        "`rocksdb` is at home",
    );
    caught(
        "src/mesh/mod.rs",
        "use {iroh::Endpoint, std::fmt};",
        2,
        "`iroh` is at home",
    );
    caught(
        "src/mesh/mod.rs",
        "use iroh as wire;",
        2,
        "`iroh` is at home",
    );
    passes("src/raft/core.rs", "use openraft::Raft;");
    passes("src/net/quic.rs", "use iroh::Endpoint;");
    passes(
        "src/mesh/mod.rs",
        "use crate::net::iroh::Quic; // iroh::Endpoint\nlet iroh = 1;",
    );
    passes("src/lib.rs", "#[cfg(feature = \"rocksdb\")]\nfn f() {}");
}

#[test]
fn files_functions_and_lines_that_are_too_long() {
    let long = "// a line\n".repeat(FILE_LINES_MAX);
    caught("src/bond/a.rs", &long, FILE_LINES_MAX + 1, "is longer");
    passes("src/bond/a.rs", &"// a line\n".repeat(FILE_LINES_MAX - 1));

    let body = |lines: usize| format!("\nfn work(x: [u8; 2]) {{\n{}}}\n", "f();\n".repeat(lines));
    caught(
        "src/bond/a.rs",
        &body(FUNCTION_LINES_MAX - 1),
        3,
        "`work` has 71 lines",
    );
    passes("src/bond/a.rs", &body(FUNCTION_LINES_MAX - 2));
    passes(
        "src/bond/a.rs",
        &format!("fn f() {{\n{}}}\n", "// why\n\n".repeat(60)),
    );
    passes(
        "src/bond/a.rs",
        &format!("trait T {{\nfn f();\n{}}}\n", "type A;\n".repeat(80)),
    );

    let wide = format!("// {}", "ü".repeat(COLUMNS_MAX - 2));
    caught("tests/a.rs", &wide, 2, "is wider");
    passes("tests/a.rs", &wide.replacen('ü', "", 1));
}

#[test]
fn leftovers() {
    for word in LEFTOVERS {
        caught("benches/a.rs", &format!("// {word}: later"), 2, word);
        passes(
            "benches/a.rs",
            &format!("let it = \"{word}\"; // {word}S are none"),
        );
    }
    caught("tests/a.rs", "fn f() {\n    dbg!(1);\n}", 3, "dbg!");
    caught("src/net/a.rs", "let it = /* soon */ todo!();", 2, "todo!");
    passes(
        "src/net/a.rs",
        "// dbg!(it) shows it\nlet it = r#\"dbg!(\"it\")\"#;",
    );
}

#[test]
fn queues_without_a_limit() {
    for queue in [
        "tokio::sync::mpsc::unbounded_channel()",
        "futures_channel::mpsc::unbounded()",
        "it::<UnboundedSender<u8>>()",
        "std::sync::mpsc::channel()",
        "std::sync::mpsc::channel::<Vec<u8>>()",
    ] {
        caught(
            "src/net/a.rs",
            &format!("let it = {queue};"),
            2,
            "without a limit",
        );
    }
    passes(
        "src/net/a.rs",
        "mpsc::channel(64); mpsc::channel::<Vec<u8>>(64);",
    );
    passes("src/net/a.rs", "oneshot::channel(); Bound::Unbounded;");
}

#[test]
fn unwraps_outside_of_tests() {
    let body = "fn f() {\n    g().unwrap();\n}\n";
    caught("src/net/a.rs", body, 3, ".unwrap()");
    caught(
        "src/net/a.rs",
        &format!("#[cfg(not(test))]\n{body}"),
        4,
        ".unwrap()",
    );
    caught(
        "src/net/a.rs",
        &format!("#[cfg(test)]\nmod a;\n{body}"),
        5,
        ".unwrap()",
    );
    passes(
        "src/net/a.rs",
        &format!("#[cfg(test)]\nmod tests {{\n{body}}}"),
    );
    passes(
        "src/net/a.rs",
        &format!("#[cfg(all(test, feature = \"x\"))]\nmod t {{\n{body}}}"),
    );
    passes("src/net/tests.rs", body);
    passes("tests/a.rs", body);
    passes(
        "src/net/a.rs",
        "f().unwrap_or(0); /// ```\n/// g().unwrap();\n/// ```\n",
    );
    caught("src/net/mod.rs", "#![allow(dead_code)]", 2, "hides");
}

#[test]
fn junk_drawers() {
    caught("src/net/util.rs", "", 1, "`util`");
    caught("tests/common/mod.rs", "", 1, "`common`");
    caught("src/net/mod.rs", "mod helpers;", 2, "`helpers`");
    caught("src/net/mod.rs", "pub(crate) mod types {}", 2, "`types`");
    passes("src/net/mod.rs", "mod utility_of_an_option; // util");
}

#[test]
fn strings_and_comments_are_told_from_code() {
    let text = "a(\"//\\\"x\", 'x', '\\'', b\"x\", r#\"x\"x\"#, &'x y) /* x /* x */ x */ z // x\nw";
    let both = blank(text, &[Part::String, Part::Comment]);
    assert_eq!(both.len(), text.len());
    assert_eq!(
        words(&both, "x")
            .map(|at| &text[at - 1..at])
            .collect::<Vec<_>>(),
        ["'"]
    );
    assert!(
        both.contains("y) ") && both.contains(" z ") && both.ends_with("\nw"),
        "{both}"
    );
    assert!(blank(text, &[Part::String]).contains("// x\nw"));
}
