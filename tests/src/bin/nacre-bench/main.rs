//! The benchmark: Nacre, runc and a shim that runs nothing, in one run under the containerd at
//! CONTAINERD_ADDRESS, on a host with working KVM (`tests/lab/run --cri -- target/debug/nacre-bench`). Prints
//! progress on standard error and the results on standard output; writes `results.json`, `results.md`, plots and
//! `index.html` under `target/bench`.
//!
//! Times under emulation mean something only as ratios within one run, so the runtimes take turns.

mod concurrent;
mod containers;
mod crirun;
mod exec_exits;
mod files;
mod files_vmm;
mod guest_io;
mod host;
mod installed;
mod memory;
mod network;
mod order;
mod origin;
mod page;
mod plot;
mod pods_memory;
mod published;
mod restore;
mod results;
mod rounds;
mod runtimes;
mod start;
mod statistics;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use nacre_tests::guests;

use page::Plotted;
use published::{RATIOS, RESULTS, Row};
use results::Results;
use runtimes::MeasuredRuntimes;

/// A part of the benchmark, for `--only`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Start and end of a container, beside runc, with and without templates.
    Start,
    /// The same of a container with a memory and a CPU limit.
    StartLimited,
    /// A container in the background, until it is started, beside runc.
    CreateStart,
    /// An exec, beside runc, and its VM exits.
    Exec,
    /// The steps of a start, and the VM exits of its boot.
    Boot,
    /// Guests without containerd: boot, vsock round trips, virtio-fs requests.
    Guest,
    /// A guest that boots, and one that continues from a snapshot, beside QEMU, Firecracker and Cloud Hypervisor.
    Restore,
    /// A pod by containerd's CRI, beside runc.
    Pod,
    /// TCP and datagrams with a pod, beside runc and QEMU.
    Network,
    /// Files in a container, beside runc. Not part of a whole run.
    Files,
    /// Files in a guest without containerd, beside QEMU with virtiofsd, QEMU with a disk, and runc. Not part of a whole
    /// run.
    FilesVmm,
    /// 20 containers at once, beside runc.
    Concurrent20,
    /// 100 containers at once, beside runc. Not part of a whole run.
    Concurrent100,
    /// Memory of the host by the number of pods, beside runc. Not part of a whole run.
    PodsMemory,
    /// Memory of an idle pod.
    Memory,
    /// Sizes of the installed files.
    Sizes,
}

/// Measures Nacre beside runc: start and end of a container, an exec, the steps of a start, memory, sizes.
#[derive(Parser)]
struct Arguments {
    /// How many rounds of containers, and of execs.
    #[arg(long, default_value_t = 20)]
    pairs: usize,
    /// How many starts are measured step by step.
    #[arg(long, default_value_t = 5)]
    starts: usize,
    /// How many rounds of guests without containerd.
    #[arg(long, default_value_t = 5)]
    guests: usize,
    /// How many pods the part `pods-memory` starts, if the host has memory for them.
    #[arg(long, default_value_t = 50)]
    pods: usize,
    /// The QEMU of the parts `restore` and `files-vmm`.
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// The virtiofsd of the part `files-vmm`; Debian's, if none is named.
    #[arg(long, value_name = "PROGRAM")]
    virtiofsd: Option<PathBuf>,
    /// The Firecracker of the part `restore`.
    #[arg(long, value_name = "PROGRAM", default_value = "firecracker")]
    firecracker: PathBuf,
    /// The Cloud Hypervisor of the part `restore`.
    #[arg(long, value_name = "PROGRAM", default_value = "cloud-hypervisor")]
    cloud_hypervisor: PathBuf,
    /// Measure only these parts.
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// Also measure the build of Nacre installed at this prefix, and compare the two.
    #[arg(long, value_name = "PREFIX")]
    other: Option<PathBuf>,
    /// Directory of results.json, results.md, the plots and index.html.
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
    /// Measure nothing, but put the rows and plots of earlier runs, which are in these directories, into
    /// docs/benchmarks/, and render docs/benchmarks.md.
    #[arg(long, value_name = "DIRECTORY", num_args = 1..)]
    publish: Vec<PathBuf>,
    /// Serve traffic; the part `network` runs this in pods.
    #[arg(long, hide = true)]
    serve: bool,
    /// The same as /init of a guest, whose link has this address.
    #[arg(long, hide = true)]
    serve_as_guest: Option<Ipv4Addr>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nacre-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if let Some(address) = arguments.serve_as_guest {
        return network::qemu::serve_as_guest(address);
    }
    if arguments.serve {
        return network::traffic::serve();
    }
    if !arguments.publish.is_empty() {
        return published::publish(&arguments.publish, Path::new("docs"));
    }
    ensure!(
        arguments.pairs > 0 && arguments.starts > 0 && arguments.guests > 0,
        "--pairs, --starts and --guests must be at least 1"
    );
    ensure!(
        arguments.pods >= pods_memory::FEWEST_PODS || !arguments.only.contains(&Part::PodsMemory),
        "--pods must be at least {}: the memory of fewer is lost in what else changes that of the host",
        pods_memory::FEWEST_PODS
    );
    std::fs::create_dir_all(&arguments.output)
        .with_context(|| format!("creating {}", arguments.output.display()))?;
    let runtimes = MeasuredRuntimes::find(arguments.other.as_deref())?;
    installed::warn_if_unoptimised(&runtimes)?;
    // Before what takes long.
    let host = host::measured(&runtimes.nacre.prefix)?;
    let mut results = Results::default();
    let mut plotted = Plotted::default();
    let measured = measure(arguments, &runtimes, &mut results, &mut plotted);
    // What was measured before a part failed is kept.
    println!("{}", results.table());
    write(&arguments.output, &results, &plotted, &host)?;
    measured
}

/// Writes the files of a run, which was measured as `measured` says, into `directory`, and prints their names.
fn write(directory: &Path, results: &Results, plotted: &Plotted, measured: &str) -> Result<()> {
    let rows: Vec<Row> = results
        .0
        .iter()
        .map(|measure| Row::new(measure, measured))
        .collect();
    let mut files = plotted.files();
    files.extend(published::ratios(&rows).map(|plot| (RATIOS, plot)));
    let has_plot = |name: &str| files.iter().any(|(file, _)| *file == name);
    let page = published::page(&rows, "", has_plot);
    files.extend([
        (RESULTS, published::json(&rows)?),
        ("results.md", page),
        ("index.html", page::html(results, plotted)),
    ]);
    for (name, text) in files {
        let file = directory.join(name);
        published::write(&file, &text)?;
        println!("{}", file.display());
    }
    Ok(())
}

/// Measures the parts that `arguments` want, and what can be plotted of them.
fn measure(
    arguments: &Arguments,
    runtimes: &MeasuredRuntimes,
    results: &mut Results,
    plotted: &mut Plotted,
) -> Result<()> {
    let wants = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    for build in runtimes.builds() {
        build.make_template()?;
    }
    if wants(Part::Start) {
        plotted.rounds.push(rounds::starts(runtimes, arguments.pairs)?);
    }
    let count = arguments.pairs.div_ceil(2);
    if wants(Part::StartLimited) {
        plotted.rounds.push(rounds::limited_starts(runtimes, count)?);
    }
    if wants(Part::CreateStart) {
        plotted.rounds.push(rounds::create_starts(runtimes, count)?);
    }
    if wants(Part::Exec) {
        plotted.rounds.push(rounds::execs(runtimes, arguments.pairs)?);
    }
    for rounds in &plotted.rounds {
        rounds.report(results);
    }
    if wants(Part::Exec) {
        exec_exits::measure(runtimes, results)?;
    }
    if wants(Part::Boot) {
        let starts = plotted.starts.insert(start::measure(runtimes, arguments.starts)?);
        starts.report(results)?;
    }
    if wants(Part::Guest) {
        guest_io::measure(runtimes, arguments.guests, results)?;
    }
    if wants(Part::Restore) {
        let programs = restore::Programs {
            qemu: &arguments.qemu,
            firecracker: &arguments.firecracker,
            cloud_hypervisor: &arguments.cloud_hypervisor,
        };
        restore::measure(runtimes, programs, 2 * arguments.guests, results)?;
    }
    if wants(Part::Pod) {
        crirun::measure(&runtimes.nacre, arguments.pairs, results)?;
    }
    if wants(Part::Network) {
        network::measure(runtimes, arguments.guests, results)?;
    }
    if wants(Part::Concurrent20) {
        concurrent::measure(runtimes, 20, 2, results)?;
    }
    if wants(Part::Memory) {
        memory::measure(runtimes, results)?;
    }
    if wants(Part::Sizes) {
        installed::measure(runtimes, results)?;
    }
    longer_parts(arguments, runtimes, results, plotted)
}

/// Measures the parts that are not in a whole run.
fn longer_parts(
    arguments: &Arguments,
    runtimes: &MeasuredRuntimes,
    results: &mut Results,
    plotted: &mut Plotted,
) -> Result<()> {
    let wants = |part| arguments.only.contains(&part);
    if wants(Part::Files) {
        files::measure(arguments.guests, results)?;
    }
    if wants(Part::FilesVmm) {
        let programs = files_vmm::Programs::new(&arguments.qemu, arguments.virtiofsd.as_deref());
        let build = guests::Build::at(&runtimes.nacre.prefix)?;
        files_vmm::measure(&build, &programs, arguments.guests, results)?;
    }
    if wants(Part::Concurrent100) {
        concurrent::measure(runtimes, 100, 1, results)?;
    }
    if wants(Part::PodsMemory) {
        plotted.growths = pods_memory::measure(runtimes, arguments.pods, results)?;
    }
    Ok(())
}
