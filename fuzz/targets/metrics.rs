//! Runs the target `metrics`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nacre_fuzzing::run(
    containerd_shim_nacre_v2::fuzzing::TARGETS,
    "metrics",
    data
));
