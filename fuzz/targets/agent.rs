//! Runs the target `agent`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nacre_fuzzing::run(nacre_pod::fuzzing::TARGETS, "agent", data));
