//! The target of the file server: FUSE requests on a temporary directory that looks like the tree of a pod
//! with one container. Each input begins with the same files and an INIT request.

use std::cell::RefCell;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;

use super::session::{Attack, Session};
use crate::virtio::fs::{Config, Prepared, spawn};
use nacre_fuzzing::Input;

const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
/// Opcodes (linux/fuse.h).
const INIT: u32 = 26;
const OPCODES: u32 = 56;
/// Requests for which a full disk of the host would be a finding of the fuzzer's own.
const FALLOCATE: u32 = 43;
/// Most bytes that FALLOCATE adds.
const MAX_FALLOCATE: u64 = 1 << 20;

thread_local! {
    static FS: RefCell<(TempDir, Session)> = RefCell::new(session());
}

fn session() -> (TempDir, Session) {
    let root = tempfile::tempdir().unwrap();
    let config = Config {
        tag: "fuzz".to_owned(),
        root: root.path().to_owned(),
        prepared: Prepared::without_jail().unwrap(),
    };
    let session = Session::new(&[128, 512], |env| spawn(config, env).unwrap());
    (root, session)
}

/// The numbers that the server has given: inodes, and handles of open files.
struct FsAttack {
    inodes: Vec<u64>,
    handles: Vec<u64>,
    opcode: u32,
    unique: u64,
}

impl FsAttack {
    fn header(&mut self, opcode: u32, inode: u64, user: u32, body: &[u8]) -> Vec<u8> {
        self.opcode = opcode;
        self.unique += 1;
        let mut bytes = Vec::new();
        bytes.extend(((IN_HEADER + body.len()) as u32).to_le_bytes());
        bytes.extend(opcode.to_le_bytes());
        bytes.extend(self.unique.to_le_bytes());
        bytes.extend(inode.to_le_bytes());
        bytes.extend([user, user, 1, 0].map(u32::to_le_bytes).concat());
        bytes.extend(body);
        bytes
    }
}

impl Attack for FsAttack {
    const QUEUE: usize = 1;

    fn request(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let opcode = u32::from(input.u8()) % OPCODES;
        let node = input.u8();
        let inode = match node {
            255 => input.u64(),
            node => self.inodes[usize::from(node) % self.inodes.len()],
        };
        let options = input.u8();
        let mut body = input.sized();
        // Most requests on an open file begin with its handle.
        if options & 1 != 0
            && let Some(handle) = self
                .handles
                .get(usize::from(options >> 4) % self.handles.len().max(1))
            && body.len() >= 8
        {
            body[..8].copy_from_slice(&handle.to_le_bytes());
        }
        if opcode == FALLOCATE && body.len() >= 24 {
            for field in [8, 16] {
                let number = u64::from_le_bytes(body[field..field + 8].try_into().unwrap());
                let number = number % MAX_FALLOCATE;
                body[field..field + 8].copy_from_slice(&number.to_le_bytes());
            }
        }
        let user = u32::from(options >> 1 & 1);
        let mut bytes = self.header(opcode, inode, user, &body);
        if options & 4 != 0 {
            let (at, value) = (input.below(IN_HEADER), input.u8());
            bytes[at] = value;
        }
        bytes
    }

    fn replied(&mut self, reply: &[u8]) {
        let number = |at: usize| {
            let bytes = reply.get(at..at + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let is_error = reply.get(4..8).is_none_or(|error| error != [0; 4]);
        if is_error {
            return;
        }
        match self.opcode {
            // LOOKUP, SYMLINK, MKNOD, MKDIR, LINK
            1 | 6 | 8 | 9 | 13 => self.inodes.extend(number(OUT_HEADER).filter(|inode| *inode != 0)),
            // OPEN, OPENDIR
            14 | 27 => self.handles.extend(number(OUT_HEADER)),
            // CREATE: an entry, which has 128 bytes, and a handle
            35 => {
                self.inodes.extend(number(OUT_HEADER));
                self.handles.extend(number(OUT_HEADER + 128));
            }
            _ => {}
        }
    }
}

/// Makes the files that each input begins with.
fn populate(root: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(root)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(&path)?;
        } else {
            std::fs::remove_file(&path)?;
        }
    }
    let container = root.join("c");
    for directory in ["rootfs/d", "mounts/0", "kernel/0"] {
        std::fs::create_dir_all(container.join(directory))?;
    }
    std::fs::write(container.join("rootfs/f"), b"file")?;
    std::fs::write(container.join("mounts/0/f"), b"file")?;
    symlink("/etc", container.join("rootfs/l"))
}

pub fn fs(data: &[u8]) {
    FS.with_borrow_mut(|(root, session)| {
        populate(root.path()).unwrap();
        let mut input = Input(data);
        session.restart(input.u64());
        let mut attack = FsAttack {
            inodes: vec![1],
            handles: Vec::new(),
            opcode: 0,
            unique: 0,
        };
        start(session, &mut attack);
        session.run(&mut input, &mut attack);
        assert!(root.path().is_dir(), "a request has removed the root");
    });
}

/// A request whose bytes are known.
struct Fixed<'a>(Vec<u8>, &'a mut FsAttack);

impl Attack for Fixed<'_> {
    const QUEUE: usize = 1;

    fn request(&mut self, _input: &mut Input<'_>) -> Vec<u8> {
        self.0.clone()
    }

    fn replied(&mut self, reply: &[u8]) {
        self.1.replied(reply);
    }
}

/// INIT of version 7.37 with all flags, which drops what an earlier input left open, and lookups of the files.
fn start(session: &mut Session, attack: &mut FsAttack) {
    let mut init = [7_u32, 37, 0, u32::MAX].map(u32::to_le_bytes).concat();
    init.resize(64, 0);
    let bytes = attack.header(INIT, 0, 0, &init);
    send(session, attack, bytes);
    for (parent, name) in [
        (0, "c"),
        (1, "rootfs"),
        (1, "mounts"),
        (2, "f"),
        (2, "d"),
        (3, "0"),
        (6, "f"),
    ] {
        let Some(inode) = attack.inodes.get(parent).copied() else {
            continue;
        };
        let body = [name.as_bytes(), b"\0"].concat();
        let bytes = attack.header(1, inode, 0, &body);
        send(session, attack, bytes);
    }
    assert!(attack.inodes.len() > 7, "the file server does not answer");
}

fn send(session: &mut Session, attack: &mut FsAttack, bytes: Vec<u8>) {
    // A whole request, with 4096 bytes for the reply.
    session.request(&mut Input(&[0x20]), &mut Fixed(bytes, attack));
}
