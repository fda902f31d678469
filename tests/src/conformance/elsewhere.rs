//! Tests outside of the comparison with runc, and the fields and calls that they cover. `super` joins them
//! into docs/conformance.md, and a test checks that each of them exists.

/// A test and what it covers.
pub struct Test {
    /// Path of its file in the checkout.
    pub file: &'static str,
    /// Name of its function, or its name in a table of tests.
    pub name: &'static str,
    /// Paths of fields (`process.cwd`) and names of calls (`Task.Update`).
    pub covers: &'static [&'static str],
}

/// File and name of the test that covers every refused field.
pub const EVERY_REFUSED_FIELD: (&str, &str) = (
    "protocol/src/spec/tests/fields.rs",
    "each_refused_field_is_reported_with_its_reason",
);
/// File and name of the test that covers every ignored field.
pub const EVERY_IGNORED_FIELD: (&str, &str) = (
    "protocol/src/spec/tests/fields.rs",
    "each_ignored_field_is_reported_and_removed",
);

const FIELDS: &str = "agent/tests/fields.rs";
const PROCESS_FIELDS: &str = "agent/tests/process_fields.rs";
const CONTAINERS: &str = "agent/tests/containers.rs";
const TERMINALS: &str = "agent/tests/terminals.rs";
const LIMITS: &str = "agent/src/cgroup/limits/tests.rs";
const HOOKS: &str = "pod/src/hooks/tests.rs";
const TASKS: &str = "shim/tests/service/tasks.rs";
const SHIM_HOOKS: &str = "shim/tests/service/hooks.rs";
const LIVES: &str = "shim/tests/service/lives.rs";
const CHECKED: &str = "protocol/src/spec/tests/checked.rs";
const BUNDLE: &str = "pod/src/bundle/tests.rs";

const fn test(file: &'static str, name: &'static str, covers: &'static [&'static str]) -> Test {
    Test { file, name, covers }
}

/// All tests outside of the comparison with runc that docs/conformance.md names.
pub const TESTS: &[Test] = &[
    test(
        BUNDLE,
        "id_maps_of_mounts_are_the_host_s",
        &[
            "mounts.uidMappings.containerID",
            "mounts.uidMappings.hostID",
            "mounts.uidMappings.size",
            "mounts.gidMappings.containerID",
            "mounts.gidMappings.hostID",
            "mounts.gidMappings.size",
        ],
    ),
    test(
        FIELDS,
        "user_namespace",
        &[
            "linux.uidMappings.containerID",
            "linux.uidMappings.hostID",
            "linux.uidMappings.size",
            "linux.gidMappings.containerID",
            "linux.gidMappings.hostID",
            "linux.gidMappings.size",
        ],
    ),
    test(
        FIELDS,
        "user_namespace_with_several_ranges",
        &["linux.uidMappings.size"],
    ),
    test(
        FIELDS,
        "time_namespace_offsets",
        &[
            "linux.timeOffsets.boottime.secs",
            "linux.timeOffsets.boottime.nanosecs",
            "linux.timeOffsets.monotonic.secs",
            "linux.timeOffsets.monotonic.nanosecs",
        ],
    ),
    test(
        FIELDS,
        "start_container_hooks_run_in_the_container_before_its_command",
        &[
            "hooks.startContainer.path",
            "hooks.startContainer.args",
            "hooks.startContainer.env",
            "hooks.startContainer.timeout",
        ],
    ),
    test(FIELDS, "options_of_mounts", &["mounts.options"]),
    test(FIELDS, "rootfs_propagation", &["linux.rootfsPropagation"]),
    test(
        FIELDS,
        "namespaces_of_another_container",
        &["linux.namespaces.type", "linux.namespaces.path"],
    ),
    test(
        FIELDS,
        "devices_are_created_or_refused",
        &[
            "linux.devices.type",
            "linux.devices.path",
            "linux.devices.major",
            "linux.devices.minor",
            "linux.devices.fileMode",
            "linux.devices.uid",
            "linux.devices.gid",
        ],
    ),
    test(
        FIELDS,
        "a_privileged_container_gets_the_devices_that_the_guest_has",
        &["linux.devices.path"],
    ),
    test(
        PROCESS_FIELDS,
        "process_attributes",
        &[
            "process.rlimits.type",
            "process.rlimits.hard",
            "process.rlimits.soft",
            "process.capabilities.bounding",
            "process.capabilities.effective",
            "process.capabilities.permitted",
            "process.capabilities.inheritable",
            "process.capabilities.ambient",
        ],
    ),
    test(
        PROCESS_FIELDS,
        "process_scheduling",
        &[
            "process.scheduler.policy",
            "process.scheduler.nice",
            "process.scheduler.priority",
            "process.scheduler.flags",
            "process.scheduler.runtime",
            "process.scheduler.deadline",
            "process.scheduler.period",
            "process.ioPriority.class",
            "process.ioPriority.priority",
        ],
    ),
    test(
        PROCESS_FIELDS,
        "cpu_affinity_of_an_exec_process",
        &["process.execCPUAffinity.initial", "process.execCPUAffinity.final"],
    ),
    test(
        FIELDS,
        "sysctls_personality_and_masked_paths",
        &[
            "linux.personality.domain",
            "linux.sysctl",
            "linux.maskedPaths",
            "linux.readonlyPaths",
        ],
    ),
    test(
        PROCESS_FIELDS,
        "seccomp_actions",
        &[
            "linux.seccomp.architectures",
            "linux.seccomp.syscalls.names",
            "linux.seccomp.syscalls.action",
            "linux.seccomp.syscalls.errnoRet",
        ],
    ),
    test(
        PROCESS_FIELDS,
        "seccomp_argument_conditions_and_flags",
        &[
            "linux.seccomp.flags",
            "linux.seccomp.syscalls.args.index",
            "linux.seccomp.syscalls.args.value",
            "linux.seccomp.syscalls.args.valueTwo",
            "linux.seccomp.syscalls.args.op",
        ],
    ),
    test(
        PROCESS_FIELDS,
        "seccomp_default_action",
        &["linux.seccomp.defaultAction", "linux.seccomp.defaultErrnoRet"],
    ),
    test(
        CONTAINERS,
        "the_kernel_accepts_programs_of_all_kinds_of_rules",
        &[
            "linux.resources.devices.allow",
            "linux.resources.devices.type",
            "linux.resources.devices.major",
            "linux.resources.devices.minor",
            "linux.resources.devices.access",
        ],
    ),
    test(
        CONTAINERS,
        "limits_are_written_to_the_containers_cgroup",
        &[
            "linux.resources.hugepageLimits.pageSize",
            "linux.resources.hugepageLimits.limit",
            "linux.resources.unified",
        ],
    ),
    test(
        TERMINALS,
        "a_container_has_a_terminal",
        &[
            "process.terminal",
            "process.consoleSize.height",
            "process.consoleSize.width",
        ],
    ),
    test(
        LIMITS,
        "settings_are_applied_in_order_until_one_fails",
        &["linux.resources.memory.checkBeforeUpdate"],
    ),
    test(
        LIMITS,
        "each_resource_becomes_files_of_cgroup_v2",
        &[
            "linux.resources.cpu.burst",
            "linux.resources.cpu.idle",
            "linux.resources.cpu.period",
        ],
    ),
    test(
        BUNDLE,
        "cpus_are_the_vm_s_and_the_pod_s_first_container_s",
        &["linux.resources.cpu.cpus"],
    ),
    test(
        "pod/src/vm/affinity.rs",
        "a_process_runs_on_the_given_cpus_only",
        &["linux.resources.cpu.cpus"],
    ),
    test(
        "protocol/src/spec/tests/specs.rs",
        "missing_fields_are_refused",
        &["ociVersion"],
    ),
    test(
        HOOKS,
        "a_hook_gets_the_state_its_arguments_and_its_environment",
        &["hooks.prestart.path", "hooks.prestart.args", "hooks.prestart.env"],
    ),
    test(
        HOOKS,
        "a_late_hook_is_killed_and_a_hook_s_children_are_not_waited_for",
        &["hooks.prestart.timeout"],
    ),
    test(
        SHIM_HOOKS,
        "hooks_run_around_the_container",
        &["hooks.prestart.path"],
    ),
    test(
        HOOKS,
        "a_hook_gets_the_state_its_arguments_and_its_environment",
        &[
            "hooks.createRuntime.path",
            "hooks.createRuntime.args",
            "hooks.createRuntime.env",
        ],
    ),
    test(
        HOOKS,
        "a_late_hook_is_killed_and_a_hook_s_children_are_not_waited_for",
        &["hooks.createRuntime.timeout"],
    ),
    test(
        SHIM_HOOKS,
        "hooks_run_around_the_container",
        &["hooks.createRuntime.path"],
    ),
    test(
        HOOKS,
        "a_hook_gets_the_state_its_arguments_and_its_environment",
        &[
            "hooks.poststart.path",
            "hooks.poststart.args",
            "hooks.poststart.env",
        ],
    ),
    test(
        HOOKS,
        "a_late_hook_is_killed_and_a_hook_s_children_are_not_waited_for",
        &["hooks.poststart.timeout"],
    ),
    test(
        SHIM_HOOKS,
        "hooks_run_around_the_container",
        &["hooks.poststart.path"],
    ),
    test(
        HOOKS,
        "a_hook_gets_the_state_its_arguments_and_its_environment",
        &["hooks.poststop.path", "hooks.poststop.args", "hooks.poststop.env"],
    ),
    test(
        HOOKS,
        "a_late_hook_is_killed_and_a_hook_s_children_are_not_waited_for",
        &["hooks.poststop.timeout"],
    ),
    test(
        SHIM_HOOKS,
        "hooks_run_around_the_container",
        &["hooks.poststop.path"],
    ),
    test(
        CHECKED,
        "the_resources_of_an_update_are_checked",
        &["Task.Update"],
    ),
    test(CHECKED, "the_process_of_an_exec_is_checked", &["Task.Exec"]),
    test(LIVES, "a_life_and_its_events", &["Task.Connect", "Task.Shutdown"]),
    test(TASKS, "a_checkpoint_is_refused", &["Task.Checkpoint"]),
    test(
        "pod/src/annotations.rs",
        "both_cri_services_name_the_role_of_a_container",
        &["annotations"],
    ),
];
