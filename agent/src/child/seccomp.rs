//! Compiles the seccomp filter of a spec (`linux.seccomp`) by libseccomp. Called by [`super::filter`]; never
//! asks for a listener, which the check of the spec refuses.

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};

fn at(step: &str) -> impl Fn(SeccompError) -> String {
    move |error| format!("{step}: {error}")
}

/// Compiles `filter`.
///
/// # Errors
/// The step that failed, and why.
pub fn compile(filter: &LinuxSeccomp) -> Result<ScmpFilterContext, String> {
    let default = action(filter.default_action(), filter.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).map_err(at("defaultAction"))?;
    for flag in filter.flags().iter().flatten() {
        match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => context.set_ctl_log(true),
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => context.set_ctl_tsync(true),
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => context.set_ctl_ssb(true),
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => context.set_ctl_waitkill(true),
        }
        .map_err(at("flags"))?;
    }
    let named = filter.architectures().as_deref().unwrap_or_default();
    let lacks_x32 = named.contains(&Arch::ScmpArchX86) && named.contains(&Arch::ScmpArchX32);
    if lacks_x32 {
        // The guest's kernel has no x32: with x86-64 and x86, the filter has all that it has. A third one
        // takes libseccomp more time than the two together. A call by a number of x32 has no rule then.
        context.set_act_badarch(default).map_err(at("architectures"))?;
    }
    let is_left_out = |name: &Arch| lacks_x32 && *name == Arch::ScmpArchX32;
    for name in named.iter().filter(|name| !is_left_out(name)) {
        context
            .add_arch(architecture(*name))
            .map_err(at("architectures"))?;
    }
    // The spec says whether the process gets no_new_privs.
    context.set_ctl_nnp(false).map_err(at("no_new_privs"))?;
    for calls in filter.syscalls().iter().flatten() {
        let wanted = action(calls.action(), calls.errno_ret())?;
        // libseccomp refuses a rule with the default action, which has no effect.
        if wanted != default {
            add_rules(&mut context, calls, wanted)?;
        }
    }
    Ok(context)
}

fn add_rules(
    context: &mut ScmpFilterContext,
    calls: &LinuxSyscall,
    action: ScmpAction,
) -> Result<(), String> {
    let arguments = calls.args().as_deref().unwrap_or_default();
    let comparisons: Vec<ScmpArgCompare> = arguments.iter().map(comparison).collect();
    let repeats = |(at, argument): (usize, &LinuxSeccompArg)| {
        arguments
            .iter()
            .take(at)
            .any(|other| other.index() == argument.index())
    };
    let has_repeated_index = arguments.iter().enumerate().any(repeats);
    for name in calls.names() {
        // The kernel has no system call of an unknown name, so that nothing is to be filtered.
        let Ok(call) = ScmpSyscall::from_name(name) else {
            continue;
        };
        let added = if has_repeated_index {
            // A rule compares each argument once. As runc does: a rule for each comparison.
            comparisons.iter().try_for_each(|comparison| {
                let one = std::slice::from_ref(comparison);
                context.add_rule_conditional(action, call, one).map(drop)
            })
        } else {
            context.add_rule_conditional(action, call, &comparisons).map(drop)
        };
        added.map_err(at(name))?;
    }
    Ok(())
}

fn comparison(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let operator = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => ScmpCompareOp::Less,
        LinuxSeccompOperator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
        LinuxSeccompOperator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
        LinuxSeccompOperator::ScmpCmpGt => ScmpCompareOp::Greater,
        // The specification has the mask in `value`, as runc does.
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            let mask = ScmpCompareOp::MaskedEqual(argument.value());
            return ScmpArgCompare::new(index(argument), mask, argument.value_two().unwrap_or(0));
        }
    };
    ScmpArgCompare::new(index(argument), operator, argument.value())
}

/// The check has ensured 0..=5.
fn index(argument: &LinuxSeccompArg) -> u32 {
    u32::try_from(argument.index()).unwrap_or(u32::MAX)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, String> {
    let errno = errno.map_or(Ok(libc::EPERM), i32::try_from);
    let errno = errno.map_err(|error| format!("errnoRet: {error}"))?;
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno),
        LinuxSeccompAction::ScmpActTrace => {
            ScmpAction::Trace(u16::try_from(errno).map_err(|error| format!("errnoRet: {error}"))?)
        }
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActNotify => return Err("SCMP_ACT_NOTIFY needs a listener".to_owned()),
    })
}

fn architecture(name: Arch) -> ScmpArch {
    match name {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn compiled(syscalls: serde_json::Value) -> Result<String, String> {
        text(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": syscalls}))
    }

    fn text(filter: serde_json::Value) -> Result<String, String> {
        let context = compile(&serde_json::from_value(filter).unwrap())?;
        let mut file = tempfile::tempfile().unwrap();
        context.export_pfc(&file).unwrap();
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        std::io::Read::read_to_string(&mut file, &mut text).unwrap();
        Ok(text)
    }

    #[test]
    fn a_mask_is_in_value_and_the_expected_bits_are_in_value_two() {
        let args = json!([{"index": 0, "value": 0xf0, "valueTwo": 0x20, "op": "SCMP_CMP_MASKED_EQ"}]);
        let text = compiled(json!([{"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": args}]));
        let text = text.unwrap();
        assert!(text.contains("& 0x000000f0 == 32"), "{text}");
    }

    #[test]
    fn unknown_calls_and_the_default_action_have_no_rule() {
        let empty = compiled(json!([])).unwrap();
        let rules = json!([{"names": ["no_such_call"], "action": "SCMP_ACT_KILL"},
            {"names": ["mkdir"], "action": "SCMP_ACT_ALLOW"}]);
        assert_eq!(compiled(rules).unwrap(), empty);
    }

    #[test]
    fn calls_of_an_architecture_without_rules_are_invalid_unless_it_is_x32() {
        let of = |names: &[&str]| {
            let filter = json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": names,
                "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]});
            text(filter).unwrap()
        };
        let usual = of(&["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
        let architectures = usual.matches("# filter for arch").count();
        assert_eq!(architectures, 2, "{usual}");
        let (_, invalid) = usual.split_once("# invalid architecture action").unwrap();
        assert!(invalid.trim().starts_with("action ERRNO(1)"), "{usual}");
        for names in [&["SCMP_ARCH_X86_64"][..], &["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]] {
            let filter = of(names);
            let (_, invalid) = filter.split_once("# invalid architecture action").unwrap();
            assert!(invalid.trim().starts_with("action KILL"), "{filter}");
        }
    }

    #[test]
    fn two_comparisons_of_one_argument_are_two_rules() {
        let args = json!([{"index": 0, "value": 7, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 9, "op": "SCMP_CMP_EQ"}]);
        let text = compiled(json!([{"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": args}]));
        let text = text.unwrap();
        assert!(text.contains("== 7") && text.contains("== 9"), "{text}");
    }
}
