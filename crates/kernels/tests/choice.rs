//! Which kernel is chosen, in a process of its own for each setting of the environment.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use oq_kernels::{KERNEL_VARIABLE, KERNELS, Kernel};

/// Prints what [`Kernel::chosen`] returns.
#[test]
#[ignore = "the other test runs it with settings of its own"]
fn print_choice() {
    match Kernel::chosen() {
        Ok(kernel) => println!("chosen: {}", kernel.name),
        Err(error) => println!("refused: {error}"),
    }
}

fn choice(setting: Option<&str>) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "print_choice", "--ignored", "--nocapture"]).env_remove(KERNEL_VARIABLE);
    if let Some(name) = setting {
        child.env(KERNEL_VARIABLE, name);
    }
    String::from_utf8(child.output().unwrap().stdout).unwrap()
}

#[track_caller]
fn check(setting: Option<&str>, expected: &str) {
    let output = choice(setting);
    assert!(output.contains(expected), "{setting:?}: {output}");
}

#[test]
fn the_environment_chooses() {
    let fastest = format!("chosen: {}", KERNELS.iter().find(|kernel| kernel.is_available()).unwrap().name);
    check(None, &fastest);
    check(Some(""), &fastest);
    for kernel in KERNELS {
        let verb = if kernel.is_available() { "chosen: " } else { "refused: this processor cannot run kernel `" };
        check(Some(kernel.name), &format!("{verb}{}", kernel.name));
    }
    check(Some("mmx"), "refused: there is no kernel `mmx`: choose one of ");
}
