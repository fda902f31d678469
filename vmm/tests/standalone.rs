//! The standalone mode of `nacre-vmm`, with guests of a few instructions: exit codes and messages. The tests
//! need /dev/kvm and print a message if they are skipped. As root they run with the jail, otherwise without.
#![allow(missing_docs, reason = "a test")]

mod guest;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::process::{Command, Output, Stdio};

use guest::{PANIC, POWER_OFF, RESET, kernel, kvm, write_port};

/// Runs the VMM with `kernel` until it exits.
fn run(kernel: &File, arguments: &[&str]) -> Output {
    command(kernel, arguments).output().unwrap()
}

/// The VMM with `kernel`, which also serves as the initramfs, since it must be some file. It is passed as a
/// /proc/PID/fd path of this process, and must stay open until the guest runs.
fn command(kernel: &File, arguments: &[&str]) -> Command {
    let path = format!("/proc/{}/fd/{}", std::process::id(), kernel.as_raw_fd());
    let mut command = Command::new(env!("CARGO_BIN_EXE_nacre-vmm"));
    if !nix::unistd::geteuid().is_root() {
        command.arg("--no-jail");
    }
    command
        .args(["--memory-mib", "64"])
        .args(["--kernel", &path, "--initrd", &path])
        .args(arguments);
    command
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

#[test]
fn a_new_generation_id_reaches_the_running_guest() {
    if kvm().is_none() {
        return println!("skipped: no /dev/kvm");
    }
    let print = |byte| {
        let mut instructions = write_port((0x3f8, byte));
        instructions.pop(); // hlt
        instructions
    };
    let code = [
        b"\x48\x8b\x1c\x25\x00\xf0\x0f\x00".to_vec(), // mov rbx, [0xff000]
        print(b'r'),
        print(b'\n'),
        b"\xb9\xff\xff\xff\xff".to_vec(),             // mov ecx, 2^32 - 1
        b"\x48\x3b\x1c\x25\x00\xf0\x0f\x00".to_vec(), // again: cmp rbx, [0xff000]
        b"\x75\x0c\xff\xc9\x75\xf2".to_vec(),         // jne changed; dec ecx; jnz again
        write_port(PANIC),
        write_port(POWER_OFF), // changed:
    ]
    .concat();
    let kernel = kernel(&code);
    let mut vmm = command(&kernel, &["--commands"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(vmm.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let before: Vec<String> = lines.by_ref().take_while(|line| line != "r").collect();
    let mut commands = vmm.stdin.take().unwrap();
    commands.write_all(b"snapshot\nrenew-generation-id\n").unwrap();
    let after: Vec<String> = lines.collect();
    assert_eq!(vmm.wait().unwrap().code(), Some(0), "{before:?} {after:?}");
    assert!(after[0].contains("unknown command \"snapshot\""), "{after:?}");
    assert!(after[1].contains("new generation id"), "{after:?}");
}
