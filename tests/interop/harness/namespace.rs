//! A network namespace of a test's own, in which it runs itself again.

use std::{env, process::Command};

/// Set where a namespace has been entered.
const INSIDE: &str = "QUORATE_INTEROP_INSIDE";

/// Runs a test of this program in a new namespace, once a shell has set that up; where none can be
/// made like that, says so and runs nothing.
///
/// # Panics
/// The test has failed.
pub(crate) fn run(setup: &str, test: &str) {
    let own = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "sh", "-c", script]);
        command
    };
    let possible = own(setup).output();
    if !possible.is_ok_and(|it| it.status.success()) {
        eprintln!("skipped: no such network namespace can be made here: {setup}");
        return;
    }
    let exe = env::current_exe().expect("a test is a program");
    let script = format!("{setup} && exec \"$0\" {test} --exact --ignored --nocapture");
    let status = own(&script).arg(exe).env(INSIDE, test).status();
    assert!(status.expect("it starts").success());
}

/// Whether this is a test that [`run`] runs.
pub(crate) fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}
