//! What an end-to-end test runs in a container: reads a TLS server's certificate as a line of JSON, prints what
//! makes its guest a machine of its own as another, and then the wall clock, in ns since 1970, for each further line
//! that it reads.

use std::io::stdin;

use anyhow::Context as _;
use nacre_tests::identity::{Identity, clock_ns};

fn main() -> anyhow::Result<()> {
    let mut lines = stdin().lines();
    let certificate = lines.next().context("no certificate")??;
    let identity = Identity::read(&serde_json::from_str(&certificate)?)?;
    println!("{}", serde_json::to_string(&identity)?);
    for line in lines {
        line?;
        println!("{}", clock_ns()?);
    }
    Ok(())
}
