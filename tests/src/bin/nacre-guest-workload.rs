//! /init of the guests that `nacre-guests` and `nacre-bench` boot. The workloads are in
//! `nacre_tests::guests`.

fn main() {
    nacre_tests::guests::workload::run_as_init();
}
