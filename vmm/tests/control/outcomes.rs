//! What a guest of a few instructions comes to, and what it prints.

use nacre_protocol::console::last_lines;
use nacre_protocol::control::Outcome;

use super::guest::{PANIC, POWER_OFF, RESET, write_port};
use super::*;

/// Runs a guest with `code`, checks the messages before the last one, and returns the outcome in that.
fn outcome(code: &[u8]) -> Option<Outcome> {
    if kvm().is_none() {
        println!("skipped: no /dev/kvm");
        return None;
    }
    let vmm = Vmm::start()?;
    vmm.configure(configure(), &kernel(code));
    let messages = vmm.messages();
    let running = messages.iter().position(|message| *message == FromVmm::Running);
    let running = running.unwrap_or_else(|| panic!("never ran: {messages:?}"));
    let mut last = 0;
    for message in &messages[..running] {
        let FromVmm::Step(step) = message else {
            panic!("{message:?} before Running")
        };
        assert!(step.done_ns >= last, "{messages:?}");
        last = step.done_ns;
    }
    let [FromVmm::Ended(outcome)] = &messages[running + 1..] else {
        panic!("{messages:?}")
    };
    assert!(vmm.close().success());
    Some(outcome.clone())
}

#[test]
fn power_off_reset_and_panic_are_different_outcomes() {
    let off = outcome(&write_port(POWER_OFF));
    if off.is_none() {
        return;
    }
    assert_eq!(off, Some(Outcome::PowerOff));
    assert!(matches!(outcome(&write_port(RESET)), Some(Outcome::Reset { .. })));
    assert_eq!(outcome(&write_port(PANIC)), Some(Outcome::Panic));
}

#[test]
fn a_line_of_the_guest_is_in_the_console_s_ring_at_once() {
    let print = b"line\n".iter().flat_map(|byte| {
        let mut instructions = write_port((0x3f8, *byte));
        instructions.pop(); // hlt
        instructions
    });
    let Some(vmm) = Vmm::running(&[&print.collect::<Vec<_>>(), IDLE_GUEST].concat()) else {
        return;
    };
    while vmm.reads() == 0 {}
    assert_eq!(last_lines(&vmm.console, 5).unwrap(), ["line"]);
    assert!(vmm.close().success());
}

/// A jump to an address without memory, from which KVM can't fetch an instruction.
#[test]
fn a_guest_that_kvm_can_t_run_is_a_fault_with_its_place() {
    let jump = [0xb8, 0, 0, 0, 0x20, 0xff, 0xe0]; // mov eax, 0x20000000; jmp rax
    let Some(outcome) = outcome(&jump) else {
        return;
    };
    let Outcome::Fault { part, error } = outcome else {
        panic!("{outcome}")
    };
    assert_eq!(part, "vCPU 0");
    assert!(error.ends_with(" at RIP 0x20000000"), "{error}");
}
