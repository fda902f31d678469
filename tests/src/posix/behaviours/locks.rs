//! Locks: flock(2), and those of fcntl(2) for a process and for an open file.

use std::fs::File;
use std::io::{Read as _, Write as _};

use anyhow::Result;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{FlockOperation, OFlags, flock};

use super::super::Behaviour;
use super::super::process::{Child, in_child};
use super::sys::{must, open, put, said, words};

/// fcntl(2)'s description of a lock on `length` bytes from `start`.
fn range(kind: i32, start: i64, length: i64) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: 0,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

const READ: i32 = libc::F_RDLCK;
const WRITE: i32 = libc::F_WRLCK;
const UNLOCK: i32 = libc::F_UNLCK;

/// Sets a lock of this process.
fn lock(file: &File, kind: i32, start: i64, length: i64) -> String {
    let errors = said(fcntl(file, FcntlArg::F_SETLK(&range(kind, start, length))));
    errors.replace("EACCES", "EAGAIN")
}

/// Sets a lock of this open file.
fn lock_open_file(file: &File, kind: i32, start: i64, length: i64) -> String {
    said(fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind, start, length))))
}

fn flock_now(file: &File, operation: FlockOperation) -> String {
    said(flock(file, operation)).replace("EAGAIN", "EWOULDBLOCK")
}

fn file() -> Result<File> {
    put("f", b"0123456789")?;
    Ok(open("f", OFlags::RDWR)?)
}

fn again() -> Result<File> {
    Ok(open("f", OFlags::RDWR)?)
}

use FlockOperation::{
    LockExclusive, LockShared, NonBlockingLockExclusive as Exclusive, NonBlockingLockShared as Shared, Unlock,
};

pub const BEHAVIOURS: &[Behaviour] = &[
    must(
        "flock between two open files",
        "ok EWOULDBLOCK EWOULDBLOCK ok",
        || {
            let (one, other) = (file()?, again()?);
            let held = flock_now(&one, Exclusive);
            let refused = [flock_now(&other, Exclusive), flock_now(&other, Shared)].join(" ");
            flock(&one, Unlock)?;
            words([held, refused, flock_now(&other, Exclusive)])
        },
    ),
    must("shared flocks", "ok ok EWOULDBLOCK", || {
        let (one, other, third) = (file()?, again()?, again()?);
        words([
            flock_now(&one, Shared),
            flock_now(&other, Shared),
            flock_now(&third, Exclusive),
        ])
    }),
    must("an flock is changed", "ok ok EWOULDBLOCK ok ok", || {
        let (one, other) = (file()?, again()?);
        words([
            flock_now(&one, Shared),
            flock_now(&one, Exclusive),
            flock_now(&other, Shared),
            flock_now(&one, Shared),
            flock_now(&other, Shared),
        ])
    }),
    must("flock in another process", "EWOULDBLOCK ok", || {
        let one = file()?;
        flock(&one, LockExclusive)?;
        let refused = in_child(|| Ok(flock_now(&again()?, Exclusive)))?;
        drop(one);
        words([refused, in_child(|| Ok(flock_now(&again()?, Exclusive)))?])
    }),
    must(
        "an flock belongs to the open file, not to the descriptor",
        "ok EWOULDBLOCK ok",
        || {
            let one = file()?;
            flock(&one, LockExclusive)?;
            let copy = one.try_clone()?;
            let same = flock_now(&copy, Exclusive);
            drop(one);
            let other = again()?;
            let refused = flock_now(&other, Exclusive);
            drop(copy);
            words([same, refused, flock_now(&other, Exclusive)])
        },
    ),
    must("a child can give up its parent's flock", "EWOULDBLOCK ok", || {
        let (one, other) = (file()?, again()?);
        flock(&one, LockExclusive)?;
        let before = flock_now(&other, Exclusive);
        in_child(|| Ok(said(flock(&one, Unlock))))?;
        words([before, flock_now(&other, Exclusive)])
    }),
    must("an flock ends with its process", "ok ok", || {
        drop(file()?);
        let child = in_child(|| {
            let held = again()?;
            let seen = flock_now(&held, Exclusive);
            std::mem::forget(held);
            Ok(seen)
        })?;
        words([child, flock_now(&again()?, Exclusive)])
    }),
    must("flock waits for another process", "held then ok", || {
        let one = file()?;
        flock(&one, LockExclusive)?;
        let (mut started, ready) = std::io::pipe()?;
        let child = Child::start(|| {
            let other = again()?;
            (&ready).write_all(b"r")?;
            flock(&other, LockShared)?;
            Ok("ok".to_owned())
        })?;
        drop(ready);
        started.read_exact(&mut [0])?;
        let held = in_child(|| Ok(flock_now(&again()?, Exclusive)))?;
        // The child has a descriptor of the same open file, so closing this one would not end the lock.
        flock(&one, Unlock)?;
        words([held.replace("EWOULDBLOCK", "held then"), child.finish()?])
    }),
    must("locks of processes by range", "ok EAGAIN ok ok EAGAIN", || {
        let one = file()?;
        let held = lock(&one, WRITE, 2, 3);
        let child = in_child(|| {
            let other = again()?;
            words([
                lock(&other, WRITE, 4, 4),
                lock(&other, WRITE, 5, 2),
                lock(&other, READ, 0, 2),
                lock(&other, READ, 0, 3),
            ])
        })?;
        words([held, child])
    }),
    must("read and write locks of processes", "ok ok EAGAIN", || {
        let one = file()?;
        let held = lock(&one, READ, 0, 0);
        let child = in_child(|| {
            let other = again()?;
            words([lock(&other, READ, 0, 0), lock(&other, WRITE, 0, 1)])
        })?;
        words([held, child])
    }),
    must("a lock beyond the end of a file", "ok EAGAIN ok", || {
        let one = file()?;
        let held = lock(&one, WRITE, 1 << 40, 0);
        let child = in_child(|| {
            let other = again()?;
            words([
                lock(&other, WRITE, (1 << 40) + 5, 1),
                lock(&other, WRITE, 0, 1 << 40),
            ])
        })?;
        words([held, child])
    }),
    must("a lock is split", "EAGAIN ok EAGAIN", || {
        let one = file()?;
        lock(&one, WRITE, 0, 10);
        lock(&one, UNLOCK, 4, 2);
        in_child(|| {
            let other = again()?;
            words([
                lock(&other, WRITE, 0, 4),
                lock(&other, WRITE, 4, 2),
                lock(&other, WRITE, 6, 1),
            ])
        })
    }),
    must("who holds a lock", "yes 2 3", || {
        let one = file()?;
        lock(&one, WRITE, 2, 3);
        let parent = nix::unistd::getpid().as_raw();
        in_child(|| {
            let mut asked = range(READ, 0, 0);
            fcntl(again()?, FcntlArg::F_GETLK(&mut asked))?;
            let own = super::sys::yes(asked.l_pid == parent);
            words([own, asked.l_start.to_string(), asked.l_len.to_string()])
        })
    }),
    must("a process's own locks do not conflict", "ok ok", || {
        let (one, other) = (file()?, again()?);
        words([lock(&one, WRITE, 0, 0), lock(&other, WRITE, 0, 0)])
    }),
    must(
        "closing any descriptor of a file ends a process's locks",
        "EAGAIN ok",
        || {
            let one = file()?;
            lock(&one, WRITE, 0, 0);
            let probe = || in_child(|| Ok(lock(&again()?, WRITE, 0, 0)));
            let before = probe()?;
            drop(again()?);
            let after = probe()?;
            drop(one);
            words([before, after])
        },
    ),
    must("a child has none of its parent's locks", "EAGAIN", || {
        let one = file()?;
        lock(&one, WRITE, 0, 0);
        in_child(|| Ok(lock(&one, WRITE, 0, 0)))
    }),
    must("a lock waits for another process", "EAGAIN ok", || {
        let one = file()?;
        lock(&one, WRITE, 0, 0);
        let (mut started, ready) = std::io::pipe()?;
        let child = Child::start(|| {
            let other = again()?;
            let refused = lock(&other, WRITE, 0, 1);
            (&ready).write_all(b"r")?;
            let waited = said(fcntl(&other, FcntlArg::F_SETLKW(&range(WRITE, 0, 1))));
            words([refused, waited])
        })?;
        drop(ready);
        started.read_exact(&mut [0])?;
        lock(&one, UNLOCK, 0, 0);
        child.finish()
    }),
    must("locks need the access mode", "EBADF EBADF ok", || {
        drop(file()?);
        words([
            lock(&open("f", OFlags::RDONLY)?, WRITE, 0, 0),
            lock(&open("f", OFlags::WRONLY)?, READ, 0, 0),
            flock_now(&open("f", OFlags::RDONLY)?, Exclusive),
        ])
    }),
    must("locks of open files", "ok EAGAIN ok ok EAGAIN", || {
        let (one, other) = (file()?, again()?);
        let seen = [
            lock_open_file(&one, WRITE, 0, 5),
            lock_open_file(&other, WRITE, 4, 2),
            lock_open_file(&other, WRITE, 5, 5),
            lock_open_file(&one, READ, 0, 5),
            lock(&other, WRITE, 0, 1),
        ];
        words(seen)
    }),
    must("flock and locks of processes are independent", "ok ok", || {
        let one = file()?;
        let held = flock_now(&one, Exclusive);
        words([held, in_child(|| Ok(lock(&again()?, WRITE, 0, 0)))?])
    }),
    must("a lock survives a rename of its file", "EAGAIN", || {
        let one = file()?;
        lock(&one, WRITE, 0, 0);
        rustix::fs::rename("f", "g")?;
        in_child(|| Ok(lock(&open("g", OFlags::RDWR)?, WRITE, 0, 0)))
    }),
];
