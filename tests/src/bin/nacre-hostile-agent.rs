//! /init of the guests whose agent lies: `nacre-e2e` boots them. The lies are in `nacre_tests::hostile`.

fn main() -> anyhow::Result<()> {
    nacre_tests::hostile::agent::run_as_init()
}
