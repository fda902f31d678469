//! System calls of the main thread once the VM runs: the control socket, the console's input when the VMM
//! runs standalone, and the VM's exit.
//!
//! It also adds devices to the running VM (virtio-net, virtio-blk, virtio-mem, virtio-rng, virtio-balloon), each
//! with a worker. A thread inherits the filters of the thread that creates it and adds those of its own profile. It
//! may then make only calls that are in both tables, so this one also has what these workers need; the profile has the
//! table of virtio-blk itself. It can't create a process.

use super::{Call, KVM_SET_USER_MEMORY_REGION, KVM_SIGNAL_MSI, any, one_of, options, unsupported};

/// `_IOW(KVMIO, 0x79, struct kvm_ioeventfd)`.
const KVM_IOEVENTFD: u64 = 0x4040_ae79;
/// `_IO(0x12, 104)`.
const BLKSSZGET: u64 = 0x1268;
/// `_IO(0x12, 123)`.
const BLKPBSZGET: u64 = 0x127b;
/// The flags with which the C library creates a thread: it shares everything with its process.
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;

pub const CALLS: &[Call] = &[
    any(
        libc::SYS_poll,
        "waits for the control socket, the VM's exit, a key on the terminal",
    ),
    any(libc::SYS_recvmsg, "receives from the control socket"),
    any(libc::SYS_sendmsg, "sends on the control socket"),
    any(
        libc::SYS_pread64,
        "reads KVM's statistics, for the counts of VM exits",
    ),
    one_of(
        libc::SYS_ioctl,
        1,
        &[
            KVM_SIGNAL_MSI,
            KVM_SET_USER_MEMORY_REGION,
            KVM_IOEVENTFD,
            libc::TUNGETIFF,
            libc::FIONBIO,
            libc::TUNSETVNETHDRSZ,
            libc::TUNSETOFFLOAD,
            libc::TUNSETQUEUE,
            BLKSSZGET,
            BLKPBSZGET,
        ],
        "interrupts the driver of the serial port and of virtio-mem; maps memory that is plugged in; adds a network device or a disk: notifications, the tap, block sizes",
    ),
    any(libc::SYS_pwrite64, "writes the console's last line to its ring"),
    // A device that is added later.
    any(libc::SYS_eventfd2, "notifications of an added device"),
    unsupported(
        libc::SYS_clone3,
        "a filter can't see its flags; the C library then calls clone",
    ),
    one_of(
        libc::SYS_clone,
        0,
        &[THREAD],
        "creates the worker's thread of an added device",
    ),
    any(libc::SYS_set_robust_list, "start of a thread"),
    any(libc::SYS_rseq, "start of a thread"),
    options(
        libc::SYS_prctl,
        &[
            (libc::PR_SET_NAME as u64, None),
            (libc::PR_SET_NO_NEW_PRIVS as u64, Some(1)),
        ],
        "start of a thread; precedes its seccomp filter",
    ),
    any(libc::SYS_capget, "start of a worker: drops its capabilities"),
    any(libc::SYS_capset, "as capget; can't exceed the permitted set"),
    any(
        libc::SYS_seccomp,
        "start of a worker: adds its own filter, which can't allow more",
    ),
    any(libc::SYS_epoll_create1, "start of a worker"),
    any(libc::SYS_epoll_ctl, "an added worker"),
    any(libc::SYS_epoll_wait, "an added worker"),
    any(libc::SYS_readv, "the worker of virtio-net"),
    one_of(
        libc::SYS_sched_setscheduler,
        1,
        &[libc::SCHED_OTHER as u64, libc::SCHED_BATCH as u64],
        "the worker of virtio-net",
    ),
    any(libc::SYS_fstat, "an added disk: whether its file can be one"),
    any(libc::SYS_lseek, "an added disk: its size"),
    any(
        libc::SYS_io_uring_setup,
        "an added disk: its ring, which is restricted before it is enabled",
    ),
    any(
        libc::SYS_io_uring_register,
        "an added disk: the restrictions of its ring",
    ),
];
