//! What an end-to-end test runs in a container: prints what makes its guest a machine of its own as a line of JSON,
//! and then the wall clock, in ns since 1970, for each line that it reads.

use std::io::stdin;

use nacre_tests::identity::{Identity, clock_ns};

fn main() -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(&Identity::read()?)?);
    for line in stdin().lines() {
        line?;
        println!("{}", clock_ns()?);
    }
    Ok(())
}
