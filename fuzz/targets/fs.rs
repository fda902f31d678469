//! Runs the target `fs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nacre_fuzzing::run(nacre_vmm::fuzzing::TARGETS, "fs", data));
