//! Tests of a pod's size: its VM grows and shrinks with the limits of its containers and with their need, and
//! what the guest, `nacre ps` and Stats say agrees.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::api::{Empty, StatsRequest, StatsResponse, UpdateTaskRequest};
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use nacre_tests::containerd::bundle::Bundle;
use nacre_tests::containerd::ctr::{DEADLINE, Run, ctr, fresh_id, remove_detached, shell};
use nacre_tests::containerd::task;
use nacre_tests::installation::Config;
use serde_json::{Value, json};

use crate::operator::{nacre, pod};
use crate::templates::origin_of;
use crate::{Test, test};

pub const TESTS: &[Test] = &[
    test("a pod is resized up and down while a load runs in it", resized),
    test(
        "a pod without limits gets the memory that it needs, and gives it back",
        on_demand,
    ),
    test(
        "an OOM kill is one in a container with a limit, in a pod that could grow",
        own_oom,
    ),
    test("limits that the VM can't fulfil are refused", refused),
    test(
        "a pod without limits has as many vCPUs as it may have",
        free_vcpus,
    ),
    test(
        "a pod with limits continues from the template of those without",
        from_the_usual_template,
    ),
    test(
        "a pod gets the devices that no boot needs when its container runs",
        common_devices,
    ),
];

const GIB: u64 = 1 << 30;

/// Prints the vCPUs that are online and the memory in MiB.
const SIZE: &str = "nproc; awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo";

/// A pod of one container that is removed on [`Pod::remove`].
struct Pod {
    id: String,
    /// Its root file system.
    _bundle: Bundle,
    execs: u32,
}

impl Pod {
    /// Runs `script` with these `linux.resources`.
    fn start(word: &str, resources: &Value, script: &str) -> Result<Self> {
        let id = fresh_id(word);
        let bundle = Bundle::new(&["sh", "-c", script], |spec| {
            spec["linux"]["resources"]["memory"] = resources["memory"].clone();
            spec["linux"]["resources"]["cpu"] = resources["cpu"].clone();
        })?;
        Run {
            config: Some(&bundle.config()?),
            ..Run::default()
        }
        .detach(&id)?;
        Ok(Self {
            id,
            _bundle: bundle,
            execs: 0,
        })
    }

    /// The output of `script` in the container.
    fn exec(&mut self, script: &str) -> Result<String> {
        self.execs += 1;
        let exec = format!("x{}", self.execs);
        let output = ctr(["task", "exec", "--exec-id", &exec, &self.id, "sh", "-c", script])?;
        Ok(output.success()?.trim().to_owned())
    }

    /// The vCPUs that are online and the memory in MiB, as the guest counts them.
    fn guest(&mut self) -> Result<(u64, u64)> {
        let text = self.exec(SIZE)?;
        Self::size(&text)
    }

    /// What [`SIZE`] has printed.
    fn size(text: &str) -> Result<(u64, u64)> {
        let mut numbers = text.lines().map(str::parse);
        let mut next = || numbers.next().context("too few lines")?.context("no number");
        let vcpus: u64 = next()?;
        Ok((vcpus, next()?))
    }

    fn update(&self, resources: &Value) -> Result<Result<Empty, ttrpc::Status>> {
        let request = UpdateTaskRequest {
            id: self.id.clone(),
            resources: MessageField::some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
                value: resources.to_string().into_bytes(),
                ..Any::default()
            }),
            ..UpdateTaskRequest::default()
        };
        task::call(&self.id, "Update", &request)
    }

    fn stats(&self) -> Result<Metrics> {
        let request = StatsRequest {
            id: self.id.clone(),
            ..StatsRequest::default()
        };
        let response: Result<StatsResponse, ttrpc::Status> = task::call(&self.id, "Stats", &request)?;
        let response = response.map_err(|status| anyhow::anyhow!("Stats: {status:?}"))?;
        Ok(Metrics::parse_from_bytes(&response.stats.value)?)
    }

    fn remove<T>(self, result: Result<T>) -> Result<T> {
        let removed = remove_detached(&self.id);
        let value = result?;
        removed?;
        Ok(value)
    }
}

fn limits(memory: u64, cpus: u64) -> Value {
    json!({"memory": {"limit": memory}, "cpu": {"quota": cpus * 100_000, "period": 100_000}})
}

/// Uses one CPU.
const LOAD: &str = "while :; do :; done";

/// Waits in a container until the guest has the devices that come after the boot.
pub const AWAIT_COMMON_DEVICES: &str = "cd /sys/bus/virtio/drivers; \
    until [ -e virtio_balloon/virtio* ] && [ -e virtio_rng/virtio* ]; do usleep 50000; done; \
    cat /sys/class/misc/hw_random/rng_current";

fn common_devices() -> Result<()> {
    let printed = shell("common", AWAIT_COMMON_DEVICES)?.success()?;
    ensure!(printed.starts_with("virtio_rng."), "printed {printed:?}");
    Ok(())
}

fn from_the_usual_template() -> Result<()> {
    nacre(&["template", "build"])?;
    let usual = Pod::start("usual", &json!({}), "sleep 1000000")?;
    let from = origin_of(&usual.id);
    let from = usual.remove(from)?;
    ensure!(from.starts_with("template "), "{from}");
    // Each has at its first instruction what it may use.
    for memory in [GIB, 5 * GIB / 2] {
        let script = format!("({SIZE}) >/new; mv /new /size; sleep 1000000");
        let mut limited = Pod::start("limited", &limits(memory, 1), &script)?;
        let seen = origin_of(&limited.id).and_then(|origin| {
            let size = limited.exec("until [ -e /size ]; do usleep 1000; done; cat /size")?;
            Ok((origin, Pod::size(&size)?))
        });
        let (origin, (vcpus, memory_mib)) = limited.remove(seen)?;
        ensure!(origin == from, "{origin}, not {from}");
        ensure!(
            vcpus == 1 && memory_mib >= memory >> 20,
            "{vcpus} vCPUs and {memory_mib} MiB for {memory} bytes"
        );
    }
    Ok(())
}

fn resized() -> Result<()> {
    let _config = Config::with("max_vcpus = 4\n")?;
    let mut pod = Pod::start("resized", &limits(GIB, 2), LOAD)?;
    let seen = up_and_down(&mut pod);
    pod.remove(seen)
}

fn up_and_down(pod: &mut Pod) -> Result<()> {
    let at_boot = pod.guest()?;
    ensure!(at_boot.0 == 2 && at_boot.1 >= 1024, "at boot: {at_boot:?}");
    agrees(pod, at_boot, GIB)?;
    let mut used = pod.stats()?.cpu.usage_usec;
    for (memory, cpus) in [(2 * GIB, 4), (GIB, 2), (2 * GIB, 4), (GIB, 2)] {
        let updated = pod.update(&limits(memory, cpus))?;
        ensure!(updated.is_ok(), "{memory} bytes and {cpus} CPUs: {updated:?}");
        let size = if memory > GIB {
            pod.guest()?
        } else {
            given_back(pod, at_boot.1)?
        };
        ensure!(
            size.0 == cpus && size.1 >= memory >> 20,
            "{memory} bytes and {cpus} CPUs: the guest has {size:?}"
        );
        agrees(pod, size, memory)?;
        let later = pod.stats()?.cpu.usage_usec;
        ensure!(later > used, "the load stands still at {later} µs");
        used = later;
    }
    Ok(())
}

/// Waits until the guest has no more memory than at boot. It gives memory back when it has moved what is in
/// it. Returns its size then.
fn given_back(pod: &mut Pod, at_boot_mib: u64) -> Result<(u64, u64)> {
    let until = Instant::now() + DEADLINE;
    loop {
        let size = pod.guest()?;
        if size.1 <= at_boot_mib {
            return Ok(size);
        }
        ensure!(Instant::now() < until, "memory was not given back: {size:?}");
    }
}

/// Compares what the guest has with `nacre ps` and with Stats.
fn agrees(container: &Pod, (vcpus, memory_mib): (u64, u64), limit: u64) -> Result<()> {
    let listed = pod(&container.id)?;
    ensure!(listed["size"]["vcpus"] == vcpus, "{vcpus} vCPUs: {listed:#}");
    // The guest's kernel counts neither itself nor the descriptions of pages.
    let vm_mib = listed["size"]["memory_mib"].as_u64().context("no memory_mib")?;
    ensure!(
        (memory_mib..memory_mib + memory_mib / 32 + 64).contains(&vm_mib),
        "{memory_mib} MiB: {listed:#}"
    );
    let stats = container.stats()?;
    ensure!(
        stats.memory.usage_limit == limit,
        "a limit of {limit}: {:?}",
        stats.memory
    );
    ensure!(
        stats.memory.usage > 0 && stats.cpu.usage_usec > 0 && stats.pids.current > 0,
        "{stats:?}"
    );
    Ok(())
}

/// More than a pod without limits has at boot, in one allocation.
const ALLOCATE: &str = "dd if=/dev/zero of=/dev/null bs=600M count=1 2>&1 | tail -n 1";

fn on_demand() -> Result<()> {
    let mut pod = Pod::start("demand", &json!({}), "sleep 1000000")?;
    let seen = grows_and_shrinks(&mut pod);
    pod.remove(seen)
}

fn grows_and_shrinks(container: &mut Pod) -> Result<()> {
    let at_boot = container.guest()?.1;
    ensure!(at_boot < 600, "at boot: {at_boot} MiB");
    let said = container.exec(ALLOCATE)?;
    ensure!(said.starts_with("1+0 records out"), "dd: {said}");
    let grown = container.guest()?.1;
    ensure!(grown > 600, "{grown} MiB after an allocation of 600 MiB");
    let mib = |pod: &Value| pod["size"]["memory_mib"].as_u64();
    let listed = pod(&container.id)?;
    ensure!(
        mib(&listed).is_some_and(|mib| mib > grown),
        "{grown} MiB: {listed:#}"
    );
    given_back(container, at_boot)?;
    let listed = pod(&container.id)?;
    ensure!(
        mib(&listed) == Some(512),
        "after the memory was given back: {listed:#}"
    );
    Ok(())
}

fn own_oom() -> Result<()> {
    // Below what the guest has at boot, so that only the limit can be the cause.
    let mut pod = Pod::start("own-oom", &limits(128 << 20, 1), "sleep 1000000")?;
    let seen = oom(&mut pod);
    pod.remove(seen)
}

fn oom(pod: &mut Pod) -> Result<()> {
    let lift = json!({"cpu": {"quota": -1}});
    ensure!(pod.update(&lift)?.is_ok(), "the update of the CPU limit failed");
    let before = pod.guest()?.1;
    let said = pod.exec("dd if=/dev/zero of=/dev/null bs=200M count=1; echo $?")?;
    ensure!(said.ends_with("137"), "dd: {said}");
    let events = pod.stats()?.memory_events.oom_kill;
    ensure!(events == 1, "{events} OOM kills");
    let after = pod.guest()?.1;
    ensure!(
        after == before,
        "the VM grew from {before} to {after} MiB for an OOM kill"
    );
    Ok(())
}

fn refused() -> Result<()> {
    let _config = Config::with("max_vcpus = 1\nmax_memory_percent = 1\n")?;
    let mut pod = Pod::start("refused", &limits(GIB / 2, 1), "sleep 1000000")?;
    let seen = beyond(&mut pod);
    pod.remove(seen)
}

fn beyond(pod: &mut Pod) -> Result<()> {
    let before = (pod.guest()?, pod.stats()?.memory.usage_limit);
    let status = match pod.update(&limits(GIB, 1))? {
        Ok(_) => anyhow::bail!("a limit beyond the VM's maximum was accepted"),
        Err(status) => status,
    };
    ensure!(status.code() == ttrpc::Code::INVALID_ARGUMENT, "{status:?}");
    for word in ["linux.resources.memory.limit", "1073741824", "max_memory_percent"] {
        ensure!(status.message().contains(word), "{word}: {status:?}");
    }
    let after = (pod.guest()?, pod.stats()?.memory.usage_limit);
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(())
}

fn free_vcpus() -> Result<()> {
    let _config = Config::with("max_vcpus = 3\n")?;
    let output = nacre_tests::containerd::ctr::shell("vcpus", "nproc")?.success()?;
    ensure!(output == "3\n", "nproc: {output}");
    Ok(())
}
