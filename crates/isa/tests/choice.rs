//! Which instruction set is chosen, in a process of its own for each setting of the environment.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use oq_isa::{Isa, VARIABLE};

/// Set for the processes that say what was chosen.
const CHILD: &str = "OMNIQUANT_TEST_CHOICE";

/// What [`Isa::chosen`] returns in a process with that setting: this test, run again.
fn choice(setting: Option<&str>) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "the_environment_chooses", "--nocapture"]).env(CHILD, "1").env_remove(VARIABLE);
    if let Some(name) = setting {
        child.env(VARIABLE, name);
    }
    String::from_utf8(child.output().unwrap().stdout).unwrap()
}

#[track_caller]
fn check(setting: Option<&str>, expected: &str) {
    // The test runner may have begun the line, and all names may end it.
    let output = choice(setting);
    let said = output.lines().any(|line| line.ends_with(expected) || line.contains(&format!("{expected} ")));
    assert!(said, "{setting:?}: {output}");
}

#[test]
fn the_environment_chooses() {
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
