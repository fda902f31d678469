//! A guest that gets 100 disks while it runs, one after the other, reads and writes each, and gives it back:
//! nothing of them is left in the VMM.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::disk::disk_with;
use super::exits::Exits;
use super::vm::DEADLINE;
use super::vsock::Conversation;
use super::workload::{self, Parameters};
use super::{Build, Options, Test, Workload, test};

/// The tests.
pub const TESTS: &[Test] = &[test(
    "100 disks are added to a running guest and removed",
    add_and_remove,
)];

/// For each number that it reads: finds the disk with that number, reads and writes it, and removes it.
pub const WORKLOAD: Workload = Workload {
    name: "late-disks",
    run: use_each,
};

const DISKS: u8 = 100;
const BLOCK: usize = 4096;

fn add_and_remove(build: &Build) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = |number: u8| directory.path().join(number.to_string());
    let mut arguments = vec!["--commands".to_owned()];
    for number in 1..=DISKS {
        fs::write(path(number), [number; 2 * BLOCK])?;
        // Half of them with each engine.
        let engine = if number % 2 == 0 { ",blocking" } else { "" };
        arguments.push("--late-disk".to_owned());
        arguments.push(format!("{}{engine}", path(number).display()));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut guest = build.boot(&Options {
        workload: WORKLOAD.name,
        arguments: &arguments,
        ..Options::default()
    })?;
    let mut orders = guest.connect()?;
    let pid = guest.vmm_pid();
    let before = in_use(pid, DISKS)?;
    let exits = Exits::of(pid)?;
    for number in 1..=DISKS {
        guest.command("attach-device")?;
        guest.wait_for("added a device in PCI slot", DEADLINE)?;
        order(&mut orders, number).with_context(|| format!("disk {number}"))?;
        guest.command("detach-device")?;
        guest.wait_for("removed the device in PCI slot", DEADLINE)?;
        let after = in_use(pid, DISKS - number)?;
        // A thread that was joined is listed until the kernel has finished its exit.
        ensure!(
            after.0 == before.0 && after.1 <= before.1 + 1,
            "after disk {number}: descriptors and threads {after:?}, before {before:?}"
        );
        check_written(&path(number), number)?;
    }
    if let (Some(before), Some(after)) = (exits, Exits::of(pid)?) {
        println!("        per disk: {}", after.since(&before, DISKS.into()));
    }
    drop(orders);
    guest.finish(DEADLINE)?;
    Ok(())
}

/// The VMM's descriptors and threads, without the files of `left` disks that are still to come.
fn in_use(pid: u32, left: u8) -> Result<(usize, usize)> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let is_of_the_kernel = |task: &fs::DirEntry| {
        // io_uring's own threads end some time after their ring.
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        name.starts_with("iou-")
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
    let threads = tasks.filter(|task| !is_of_the_kernel(task)).count();
    Ok((descriptors - usize::from(left), threads))
}

/// Sends `number` to the guest and waits until it has used that disk.
fn order(orders: &mut UnixStream, number: u8) -> Result<()> {
    orders.write_all(&[number])?;
    let mut answer = [0];
    orders.read_exact(&mut answer)?;
    ensure!(answer == [number], "the guest answered {answer:?}");
    Ok(())
}

fn check_written(path: &Path, number: u8) -> Result<()> {
    let expected = [[number; BLOCK], [!number; BLOCK]].concat();
    ensure!(fs::read(path)? == expected, "the file of disk {number}");
    Ok(())
}

fn use_each(_: &Parameters) -> Result<Value> {
    let mut conversation = Conversation::accept()?;
    let orders = &mut conversation.stream;
    let mut number = [0];
    while orders.read(&mut number)? == 1 {
        use_disk(number[0])?;
        orders.write_all(&number)?;
    }
    Ok(json!({}))
}

fn use_disk(number: u8) -> Result<()> {
    workload::scan_pci_bus()?;
    let disk = disk_with(&format!("disk-{number}"))?;
    let file = File::options()
        .read(true)
        .write(true)
        .open(format!("/dev/{disk}"))?;
    let mut found = [0; BLOCK];
    file.read_exact_at(&mut found, 0)?;
    ensure!(found == [number; BLOCK], "{disk} has other content");
    file.write_all_at(&[!number; BLOCK], BLOCK as u64)?;
    // Closing it writes what is cached.
    drop(file);
    let function = fs::canonicalize(format!("/sys/block/{disk}/device/.."))?;
    fs::write(function.join("remove"), "1").context("removing the function")?;
    ensure!(
        !Path::new("/sys/block").join(&disk).exists(),
        "{disk} is still there"
    );
    Ok(())
}
