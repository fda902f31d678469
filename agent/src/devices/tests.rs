//! Runs the compiled programs in an interpreter of the few instructions that they use.

use super::*;

fn run(program: &[u64], access: u32, kind: u32, major: u32, minor: u32) -> bool {
    let context = [access << 16 | kind, major, minor];
    let mut registers = [u64::MAX; 8];
    let mut at = 0_usize;
    loop {
        let word = program[at];
        at += 1;
        let byte = |shift: u32| u8::try_from(word >> shift & 0xff).unwrap();
        let (destination, source) = (usize::from(byte(8) & 15), usize::from(byte(8) >> 4));
        let offset = usize::try_from(word >> 16 & 0xffff).unwrap();
        let immediate = word >> 32;
        // The kernel sign-extends an immediate to 64 bits.
        let wide = if immediate >> 31 == 1 {
            immediate | 0xffff_ffff_0000_0000
        } else {
            immediate
        };
        match byte(0) {
            LOAD_WORD => registers[destination] = u64::from(context[offset / 4]),
            MOVE => registers[destination] = wide,
            MOVE_REGISTER => registers[destination] = registers[source],
            AND => registers[destination] &= wide,
            SHIFT_RIGHT => registers[destination] >>= immediate,
            JUMP_IF_EQUAL if registers[destination] == wide => at += offset,
            JUMP_IF_NOT_EQUAL if registers[destination] != wide => at += offset,
            JUMP_IF_EQUAL | JUMP_IF_NOT_EQUAL => {}
            EXIT => return registers[usize::from(RESULT)] == 1,
            operation => panic!("operation {operation:#x}"),
        }
    }
}

fn rules(json: &str) -> Vec<LinuxDeviceCgroup> {
    serde_json::from_str(json).unwrap()
}

#[test]
fn without_rules_the_default_devices_are_allowed_and_nothing_else() {
    let program = program(&[]).unwrap();
    for (major, minor) in [
        (1, 3),
        (1, 5),
        (1, 7),
        (1, 8),
        (1, 9),
        (5, 0),
        (5, 2),
        (136, 0),
        (136, 9),
    ] {
        assert!(
            run(&program, READ | WRITE, CHARACTER, major, minor),
            "{major}:{minor}"
        );
    }
    assert!(!run(&program, READ, CHARACTER, 1, 11), "/dev/kmsg");
    assert!(
        !run(&program, READ, BLOCK, 1, 3),
        "a block device with null's numbers"
    );
    assert!(run(&program, MKNOD, BLOCK, 8, 0), "a node may be made");
    assert!(!run(&program, MKNOD | READ, BLOCK, 8, 0), "but not used");
    assert!(!run(&program, READ, BLOCK, 8, 0));
}

#[test]
fn rules_of_containerds_default_spec() {
    let rules = rules(
        r#"[{"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"}]"#,
    );
    let program = program(&rules).unwrap();
    assert!(run(&program, READ, CHARACTER, 10, 229));
    assert!(!run(&program, READ | WRITE, CHARACTER, 10, 229));
    assert!(!run(&program, READ, CHARACTER, 10, 200));
}

#[test]
fn permissions_of_several_rules_add_up_and_the_last_match_decides() {
    let added = program(&rules(
        r#"[{"allow": true, "type": "b", "major": 8, "access": "r"},
            {"allow": true, "type": "b", "major": 8, "minor": 1, "access": "w"}]"#,
    ))
    .unwrap();
    assert!(run(&added, READ | WRITE, BLOCK, 8, 1));
    assert!(!run(&added, READ | WRITE, BLOCK, 8, 2));
    let taken_back = program(&rules(
        r#"[{"allow": true, "type": "a", "access": "rwm"},
            {"allow": false, "type": "b", "major": 8, "minor": -1, "access": "w"}]"#,
    ))
    .unwrap();
    assert!(run(&taken_back, READ, BLOCK, 8, 2));
    assert!(!run(&taken_back, READ | WRITE, BLOCK, 8, 2));
    assert!(run(&taken_back, READ | WRITE, BLOCK, 7, 2));
}

#[test]
fn a_privileged_container_needs_no_program() {
    let program = program(&rules(
        r#"[{"allow": false, "access": "rwm"}, {"allow": true, "access": "rwm"}]"#,
    ))
    .unwrap();
    assert!(program.is_empty());
}

#[test]
fn rules_without_effect_are_left_out() {
    let parsed = |json| {
        rules(json)
            .iter()
            .map(|rule| parse(rule).unwrap())
            .collect::<Vec<_>>()
    };
    let default = parsed(
        r#"[{"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            {"allow": true, "type": "c", "major": 5, "minor": 1, "access": "rwm"}]"#,
    );
    let effective = effective(&default);
    assert_eq!(effective.len(), DEFAULTS.len() + 1);
    assert_eq!(effective.first(), Some(&character(5, Some(1))));
    let kept = super::effective(&parsed(
        r#"[{"allow": true, "type": "b", "major": 8, "access": "rw"},
            {"allow": false, "type": "b", "major": 8, "minor": 1, "access": "w"}]"#,
    ));
    assert_eq!(kept.len(), DEFAULTS.len() + 2);
}

#[test]
fn a_rule_that_the_check_refuses_is_an_error() {
    for json in [
        r#"[{"allow": true, "type": "p", "access": "r"}]"#,
        r#"[{"allow": true, "type": "c", "major": -7, "access": "r"}]"#,
        r#"[{"allow": true, "type": "c", "major": 4294967296, "access": "r"}]"#,
        r#"[{"allow": true, "type": "c", "access": "rx"}]"#,
    ] {
        let error = program(&rules(json)).unwrap_err().to_string();
        assert!(error.starts_with("spec: linux.resources.devices: "), "{error}");
    }
}
