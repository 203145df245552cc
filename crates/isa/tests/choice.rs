//! The choice of the instruction set, tested in a separate process for each value of the environment variable.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use oq_isa::{Isa, VARIABLE};

/// Set in the child processes, which print the choice.
const CHILD: &str = "OMNIQUANT_TEST_CHOICE";

/// Runs this test again in a child process with that value of the variable; returns what it printed about [`Isa::chosen`].
fn choice(setting: Option<&str>) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "the_environment_variable_selects_the_instruction_set", "--nocapture"])
        .env(CHILD, "1")
        .env_remove(VARIABLE);
    if let Some(name) = setting {
        child.env(VARIABLE, name);
    }
    String::from_utf8(child.output().unwrap().stdout).unwrap()
}

#[track_caller]
fn check(setting: Option<&str>, expected: &str) {
    // The test runner may have printed the start of the line, and an error lists all names at its end.
    let output = choice(setting);
    let printed = output.lines().any(|line| line.ends_with(expected) || line.contains(&format!("{expected} ")));
    assert!(printed, "{setting:?}: {output}");
}

#[test]
fn the_environment_variable_selects_the_instruction_set() {
    if std::env::var_os(CHILD).is_some() {
        match Isa::chosen() {
            Ok(isa) => println!("chosen: {isa}"),
            Err(error) => println!("refused: {error}"),
        }
        return;
    }
    let fastest = format!("chosen: {}", Isa::fastest());
    check(None, &fastest);
    check(Some(""), &fastest);
    for isa in Isa::ALL {
        let refused = format!("refused: this processor cannot run kernel `{isa}`:");
        check(Some(isa.name()), &if isa.is_available() { format!("chosen: {isa}") } else { refused });
    }
    check(Some("mmx"), "refused: there is no kernel `mmx`: choose one of");
}
