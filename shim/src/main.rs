//! The program: all of it is in the library of the same name, so that the fuzzer can call parts of it.

use std::process::ExitCode;

fn main() -> ExitCode {
    containerd_shim_nacre_v2::main()
}
