//! The standalone mode of `nacre-vmm`, with guests of a few instructions: exit codes and messages. The tests
//! need /dev/kvm and print a message if they are skipped. As root they run with the jail, otherwise without.
#![allow(missing_docs, reason = "a test")]

mod guest;

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::process::{Command, Output};

use guest::{PANIC, POWER_OFF, RESET, kernel, kvm, write_port};

/// Runs the VMM with `kernel`; the files are passed as /proc/PID/fd paths of this process.
fn run(kernel: &File, arguments: &[&str]) -> Output {
    let mut initrd = tempfile::tempfile().unwrap();
    initrd.write_all(b"initrd").unwrap();
    let path = |file: &File| format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let mut command = Command::new(env!("CARGO_BIN_EXE_nacre-vmm"));
    if !nix::unistd::geteuid().is_root() {
        command.arg("--no-jail");
    }
    command
        .args(["--memory-mib", "64"])
        .args(["--kernel", &path(kernel), "--initrd", &path(&initrd)])
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn the_exit_code_is_the_outcome() {
    if kvm().is_none() {
        return println!("skipped: no /dev/kvm");
    }
    for (write, code, message) in [
        (POWER_OFF, 0, "the guest powered off"),
        (RESET, 10, "the guest reset itself"),
        (PANIC, 11, "the guest's kernel panicked"),
    ] {
        let output = run(&kernel(&write_port(write)), &["--exits"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(
            stderr.contains(message) && stderr.contains("port write"),
            "{stderr}"
        );
    }
}

#[test]
fn console_output_is_complete_when_the_process_has_exited() {
    if kvm().is_none() {
        return println!("skipped: no /dev/kvm");
    }
    let mut code = Vec::new();
    for byte in *b"ab" {
        let mut instructions = write_port((0x3f8, byte));
        instructions.pop(); // hlt
        code.extend(instructions);
    }
    code.extend(write_port(POWER_OFF));
    let output = run(&kernel(&code), &["--console"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ab");
}

#[test]
fn an_invalid_kernel_fails_with_a_hint() {
    if kvm().is_none() {
        return println!("skipped: no /dev/kvm");
    }
    let output = run(&File::open("/bin/sh").unwrap(), &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("PVH") && stderr.contains("hint: "), "{stderr}");
}
