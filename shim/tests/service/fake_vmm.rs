//! A VMM without a VM: receives its configuration, makes the mount namespace that the shim moves mounts into,
//! and runs the fake agent. The kernel's extra parameters choose its behaviour.
#![allow(unsafe_code, reason = "descriptor 3 is the protocol's")]

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;

use nacre_protocol::agent::create_agent;
use nacre_protocol::console::Writer;
use nacre_protocol::control::{
    Answer, CONTROL_FD, Channel, Configure, Descriptors, DeviceConfig, ErrorText, FromVmm, Outcome, Request,
    Step, ToVmm,
};
use nacre_protocol::stream_table::StreamTable;
use nacre_protocol::vsock::AGENT_PORT;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::fake_agent::FakeAgent;
use crate::fake_memory;

/// Saves what is not a guest, to the directory after `--save`.
pub fn save(arguments: &[String]) {
    let mut words = arguments.iter().skip_while(|word| *word != "--save");
    let directory = std::path::Path::new(words.nth(1).unwrap());
    std::fs::DirBuilder::new().mode(0o700).create(directory).unwrap();
    for name in ["state", "memory"] {
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600);
        file.open(directory.join(name))
            .unwrap()
            .write_all(b"fake")
            .unwrap();
    }
}

pub fn main() {
    assert_inherits_nothing_else();
    // SAFETY: the shim hands the control socket over at this number; nothing else here uses it.
    let channel = Channel::new(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) });
    let (message, fds) = channel.receive::<ToVmm>().unwrap();
    let ToVmm::Configure(configure) = message else {
        panic!("{message:?}")
    };
    let (console, stream_table) = take_files(&configure, fds);
    let mut console = Writer::new(console);
    console.write(b"Linux version of a fake\n").unwrap();
    eprintln!("fake VMM of {}", configure.pod);
    if behave(&channel, &configure, &mut console) {
        return;
    }
    enter_namespaces();
    fake_memory::boot(configure.memory_mib);
    // It is attached when the pod grows.
    let is_mem = |device: &DeviceConfig| matches!(device, DeviceConfig::Mem { .. });
    assert!(!configure.devices.iter().any(is_mem));
    channel
        .send(&FromVmm::Step(Step::now("fake step").unwrap()), &[])
        .unwrap();
    channel.send(&FromVmm::Running, &[]).unwrap();
    if configure.extra_cmdline == "fake=silent" {
        // Blocks until the shim closes the socket or kills this process.
        drop(channel.receive::<ToVmm>());
        return;
    }
    serve(channel, &configure, stream_table);
}

/// The console's ring and the stream table. Fails unless the message names each descriptor once.
fn take_files(configure: &Configure, fds: Vec<OwnedFd>) -> (File, StreamTable) {
    let mut fds = Descriptors::new(fds);
    for (field, index) in [
        ("kvm", configure.kvm),
        ("kernel", configure.kernel),
        ("initrd", configure.initrd),
    ] {
        drop(fds.take(field, index).unwrap());
    }
    let console = fds.take("console_ring", configure.console_ring).unwrap();
    let stream_table = configure.devices.iter().find_map(|device| match device {
        DeviceConfig::Vsock { stream_table } => Some(*stream_table),
        DeviceConfig::Fs { .. }
        | DeviceConfig::Mem { .. }
        | DeviceConfig::Net { .. }
        | DeviceConfig::Blk { .. } => None,
    });
    for device in &configure.devices {
        if let DeviceConfig::Net { taps, .. } = device {
            taps.iter().for_each(|tap| drop(fds.take("taps", *tap).unwrap()));
        }
    }
    if let Some(files) = configure.template {
        drop(fds.take("template: state", files.state).unwrap());
        drop(fds.take("template: memory", files.memory).unwrap());
    }
    let stream_table = fds.take("stream_table", stream_table.unwrap()).unwrap();
    fds.finish().unwrap();
    configure.check_devices().unwrap();
    (console.into(), StreamTable::new(stream_table.into()))
}

/// A VMM must get the standard streams and the control socket, and none of the descriptors that containerd
/// may have leaked to the shim (A9). The tests' own program leaks one, see `main`.
fn assert_inherits_nothing_else() {
    let listed = std::fs::read_dir("/proc/self/fd").unwrap();
    let mut open: Vec<i32> = listed
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    open.sort_unstable();
    // The last one is the directory that was just read.
    open.pop();
    assert_eq!(open, [0, 1, 2, CONTROL_FD]);
}

/// Behaves as the extra kernel parameters ask; true if the VMM is to exit then.
fn behave(channel: &Channel, configure: &Configure, console: &mut Writer) -> bool {
    match configure.extra_cmdline.as_str() {
        "fake=fail" => {
            let failed = FromVmm::Failed {
                step: "load kernel".into(),
                error: "it has no PVH entry".into(),
                hint: Some("build it with CONFIG_PVH".into()),
            };
            channel.send(&failed, &[]).unwrap();
            true
        }
        "fake=panic" => {
            enter_namespaces();
            channel.send(&FromVmm::Running, &[]).unwrap();
            console.write(b"Kernel panic - not syncing: no init\n").unwrap();
            channel.send(&FromVmm::Ended(Outcome::Panic), &[]).unwrap();
            true
        }
        "fake=template-fails" if configure.template.is_some() => {
            enter_namespaces();
            channel.send(&FromVmm::Running, &[]).unwrap();
            channel.send(&FromVmm::Ended(Outcome::Panic), &[]).unwrap();
            true
        }
        "fake=template-refused" | "fake=template-refused-now" if configure.template.is_some() => {
            let refused = FromVmm::TemplateRefused {
                reason: "a reason".into(),
                is_transient: configure.extra_cmdline.ends_with("now"),
            };
            channel.send(&refused, &[]).unwrap();
            false
        }
        "fake=nonsense" => {
            channel.send(&"Nonsense", &[]).unwrap();
            std::thread::park();
            true
        }
        _ => false,
    }
}

fn enter_namespaces() {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .unwrap();
    mount(
        Some("none"),
        "/mnt",
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    nix::unistd::chdir("/mnt").unwrap();
    nix::unistd::pivot_root(".", ".").unwrap();
    umount2(".", MntFlags::MNT_DETACH).unwrap();
    nix::unistd::chdir("/").unwrap();
    // As the VMM does: the guest can't change the root, the shim makes its mount points through a clone.
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>).unwrap();
}

fn serve(channel: Channel, configure: &Configure, stream_table: StreamTable) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let channel = Arc::new(channel);
    runtime.block_on(async {
        let name = format!("nacre-fake-{}-{}", configure.pod, std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let agents_end = UnixStream::connect_addr(&address).unwrap();
        let listener = ttrpc::asynchronous::transport::Listener::try_from(listener).unwrap();
        let agent = FakeAgent::new(
            Arc::clone(&channel),
            stream_table,
            configure.extra_cmdline.clone(),
        );
        let mut server = ttrpc::asynchronous::Server::new()
            .add_listener(listener)
            .register_service(create_agent(Arc::new(agent)));
        server.start().await.unwrap();
        channel
            .send(
                &FromVmm::Connection {
                    host_port: AGENT_PORT,
                    guest_port: 1,
                },
                &[agents_end.as_raw_fd()],
            )
            .unwrap();
        drop(agents_end);
        let control = Arc::clone(&channel);
        tokio::task::spawn_blocking(move || {
            while let Ok((message, _)) = control.receive::<ToVmm>() {
                let ToVmm::Request { id, request } = message else {
                    continue;
                };
                let result = if let Request::PlugMemory { mib } = request {
                    let plugged = fake_memory::plug(mib);
                    plugged.map(|()| Answer::Done).map_err(ErrorText::new)
                } else if let Request::Attach {
                    device: DeviceConfig::Mem { max_mib },
                } = request
                {
                    let attached = fake_memory::attach(max_mib);
                    attached
                        .map(|()| Answer::Attached { slot: 4 })
                        .map_err(ErrorText::new)
                } else if matches!(request, Request::Exits) {
                    Ok(Answer::Exits([("io".to_owned(), 3)].into()))
                } else if matches!(request, Request::AttachCommon) {
                    Ok(Answer::Done)
                } else {
                    continue;
                };
                control.send(&FromVmm::Answer { id, result }, &[]).unwrap();
            }
            // The shim has closed its end: exit, as the VMM does.
            std::process::exit(0);
        })
        .await
        .unwrap();
    });
}
