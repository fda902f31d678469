//! The guest's requests as the library's server passes them on, on the worker's thread: each is checked, its
//! numbers are translated to the library's, and the library carries it out. Implements [`Tree`]'s file
//! system.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{Attr, SetattrIn};
use virtiofsd::soft_idmap::Id as _;

use super::checks::{MAX_XATTR, checked_name, checked_offset, checked_open_flags, errno};
use super::handles::{Access, OpenFile, guest_handle, library_handle};
use super::privileges::without_fsetid;
use super::streams::{Entries, ReadDirectory};
use super::subtree::{ROOTFS_TIMEOUT, Subtree, guest_entry, library_inode, new_guest_entry};
use super::tree::{Tree, access_of};

/// Requests that are forwarded with the library's inode number and otherwise unchanged.
macro_rules! forward {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty;)*) => {$(
        fn $name(&self, ctx: Context, inode: u64 $(, $argument: $kind)*) -> io::Result<$result> {
            self.files.$name(ctx, library_inode(inode) $(, $argument)*)
        }
    )*};
}

impl FileSystem for Tree {
    type Inode = u64;
    type Handle = u64;
    type DirIter = Entries;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        // Without submounts, files of different mounts could share an inode number. The guest's kernel
        // supports them.
        if !capable.contains(FsOptions::SUBMOUNTS) {
            return Err(errno(libc::EPROTO));
        }
        self.handles.clear();
        // The target of a link never changes: a replaced link is another inode.
        Ok(self.files.init(capable)? | FsOptions::CACHE_SYMLINKS)
    }

    fn destroy(&self) {
        self.files.destroy();
        self.handles.clear();
    }

    fn lookup(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        match self.files.lookup(ctx, library_inode(parent), checked_name(name)?) {
            Ok(entry) => {
                let subtree = self.subtree(ctx, parent, name, entry.inode);
                Ok(guest_entry(entry, parent, subtree))
            }
            // A negative entry: the guest caches that the name does not exist.
            Err(error) if Subtree::of(parent).is_rootfs() && error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(Entry {
                    inode: 0,
                    generation: 0,
                    attr: Attr::default(),
                    attr_timeout: Duration::ZERO,
                    entry_timeout: ROOTFS_TIMEOUT,
                })
            }
            Err(error) => Err(error),
        }
    }

    fn forget(&self, ctx: Context, inode: u64, count: u64) {
        self.handles.forget(&self.files, ctx, library_inode(inode));
        self.files.forget(ctx, library_inode(inode), count);
    }

    fn batch_forget(&self, ctx: Context, requests: Vec<(u64, u64)>) {
        for (inode, count) in requests {
            self.forget(ctx, inode, count);
        }
    }

    fn getattr(&self, ctx: Context, inode: u64, _handle: Option<u64>) -> io::Result<(Attr, Duration)> {
        let (attr, _) = self.files.getattr(ctx, library_inode(inode), None)?;
        Ok((attr, Subtree::of(inode).timeout()))
    }

    fn setattr(
        &self,
        ctx: Context,
        inode: u64,
        attr: SetattrIn,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(Attr, Duration)> {
        if valid.contains(SetattrValid::SIZE) {
            checked_offset(attr.size)?;
        }
        let (timeout, inode) = (Subtree::of(inode).timeout(), library_inode(inode));
        let handle = handle.and_then(library_handle);
        let kills = valid.contains(SetattrValid::SIZE | SetattrValid::KILL_SUIDGID);
        let valid = valid.difference(SetattrValid::KILL_SUIDGID);
        let change = || self.files.setattr(ctx, inode, attr, handle, valid);
        Ok((without_fsetid(kills, change)?.0, timeout))
    }

    fn symlink(
        &self,
        ctx: Context,
        linkname: &CStr,
        parent: u64,
        name: &CStr,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        checked_name(name)?;
        let entry = self
            .files
            .symlink(ctx, linkname, library_inode(parent), name, extensions)?;
        Ok(new_guest_entry(entry, parent, name))
    }

    fn mknod(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        checked_name(name)?;
        let entry = self
            .files
            .mknod(ctx, library_inode(parent), name, mode, rdev, umask, extensions)?;
        Ok(new_guest_entry(entry, parent, name))
    }

    fn mkdir(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        checked_name(name)?;
        let entry = self
            .files
            .mkdir(ctx, library_inode(parent), name, mode, umask, extensions)?;
        Ok(new_guest_entry(entry, parent, name))
    }

    fn link(&self, ctx: Context, inode: u64, newparent: u64, newname: &CStr) -> io::Result<Entry> {
        checked_name(newname)?;
        let entry = self
            .files
            .link(ctx, library_inode(inode), library_inode(newparent), newname)?;
        Ok(new_guest_entry(entry, newparent, newname))
    }

    fn unlink(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.files.unlink(ctx, library_inode(parent), checked_name(name)?)
    }

    fn rmdir(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.files.rmdir(ctx, library_inode(parent), checked_name(name)?)
    }

    fn rename(
        &self,
        ctx: Context,
        olddir: u64,
        oldname: &CStr,
        newdir: u64,
        newname: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        let (oldname, newname) = (checked_name(oldname)?, checked_name(newname)?);
        self.files.rename(
            ctx,
            library_inode(olddir),
            oldname,
            library_inode(newdir),
            newname,
            flags,
        )
    }

    fn open(
        &self,
        ctx: Context,
        inode: u64,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        let subtree = Subtree::of(inode);
        let inode = library_inode(inode);
        let (flags, access) = access_of(subtree, checked_open_flags(flags)?);
        let open = || self.files.open(ctx, inode, false, flags);
        let (handle, options) = without_fsetid(kill_priv, open)?;
        let handle = handle.ok_or_else(|| errno(libc::EBADF))?;
        let file = OpenFile {
            inode,
            handle,
            access,
        };
        Ok(self.hand_out(ctx, subtree, file, options))
    }

    fn create(
        &self,
        ctx: Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        kill_priv: bool,
        flags: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions)> {
        checked_name(name)?;
        let subtree = Subtree::of(parent).child(name);
        let creating = libc::O_CREAT.cast_unsigned();
        let (flags, access) = access_of(subtree, checked_open_flags(flags & !creating)? | creating & flags);
        let parent_inode = library_inode(parent);
        let create = || {
            self.files
                .create(ctx, parent_inode, name, mode, false, flags, umask, extensions)
        };
        let (entry, handle, options) = without_fsetid(kill_priv, create)?;
        let file = OpenFile {
            inode: entry.inode,
            handle: handle.ok_or_else(|| errno(libc::EBADF))?,
            access,
        };
        let (handle, options) = self.hand_out(ctx, subtree, file, options);
        Ok((guest_entry(entry, parent, subtree), handle, options))
    }

    fn read<W: ZeroCopyWriter>(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        w: W,
        size: u32,
        at: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        let at = checked_offset(at)?;
        let (inode, handle) = self.open_file(ctx, inode, handle, Access::Read)?;
        self.files
            .read(ctx, inode, handle, w, size, at, lock_owner, flags)
    }

    fn write<R: ZeroCopyReader>(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        r: R,
        size: u32,
        at: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<usize> {
        let at = checked_offset(at)?;
        let (inode, handle) = self.open_file(ctx, inode, handle, Access::Write)?;
        without_fsetid(kill_priv, || {
            self.files.write(
                ctx,
                inode,
                handle,
                r,
                size,
                at,
                lock_owner,
                delayed_write,
                false,
                flags,
            )
        })
    }

    /// The request has no flag for set-user-ID bits, so they are cleared for every user but root.
    fn fallocate(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        mode: u32,
        at: u64,
        length: u64,
    ) -> io::Result<()> {
        let (at, length) = (checked_offset(at)?, checked_offset(length)?);
        let (inode, handle) = self.open_file(ctx, inode, handle, Access::Write)?;
        without_fsetid(!ctx.uid.is_root(), || {
            self.files.fallocate(ctx, inode, handle, mode, at, length)
        })
    }

    /// As [`Self::fallocate`].
    fn copyfilerange(
        &self,
        ctx: Context,
        inode_in: u64,
        handle_in: u64,
        offset_in: u64,
        inode_out: u64,
        handle_out: u64,
        offset_out: u64,
        len: u64,
        flags: u64,
    ) -> io::Result<usize> {
        let (from, to) = (checked_offset(offset_in)?, checked_offset(offset_out)?);
        let (inode_in, handle_in) = self.open_file(ctx, inode_in, handle_in, Access::Read)?;
        let (inode_out, handle_out) = self.open_file(ctx, inode_out, handle_out, Access::Write)?;
        without_fsetid(!ctx.uid.is_root(), || {
            self.files.copyfilerange(
                ctx, inode_in, handle_in, from, inode_out, handle_out, to, len, flags,
            )
        })
    }

    fn opendir(&self, ctx: Context, inode: u64, flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        let (handle, mut options) =
            self.files
                .opendir(ctx, library_inode(inode), checked_open_flags(flags)?)?;
        if Subtree::of(inode).is_rootfs() {
            options |= OpenOptions::KEEP_CACHE | OpenOptions::CACHE_DIR;
        }
        Ok((handle.map(guest_handle), options))
    }

    /// The guest sends the size of its buffer; the library would allocate as much, so it is bounded.
    fn getxattr(&self, ctx: Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        let reply = self
            .files
            .getxattr(ctx, library_inode(inode), name, size.min(MAX_XATTR));
        reply.map_err(|error| {
            // Linux's FUSE takes ENODATA for a file without an ACL; EOPNOTSUPP would fail every access that
            // checks the ACL.
            let acl = name.to_bytes().starts_with(b"system.posix_acl_");
            if acl && error.raw_os_error() == Some(libc::EOPNOTSUPP) {
                errno(libc::ENODATA)
            } else {
                error
            }
        })
    }

    fn listxattr(&self, ctx: Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        self.files
            .listxattr(ctx, library_inode(inode), size.min(MAX_XATTR))
    }

    fn setxattr(
        &self,
        ctx: Context,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
        extra_flags: SetxattrFlags,
    ) -> io::Result<()> {
        self.files
            .setxattr(ctx, library_inode(inode), name, value, flags, extra_flags)
    }

    fn release(
        &self,
        ctx: Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        flock_release: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        let Some(handle) = library_handle(handle) else {
            return Ok(());
        };
        let inode = library_inode(inode);
        self.files
            .release(ctx, inode, flags, handle, flush, flock_release, lock_owner)
    }

    fn flush(&self, ctx: Context, inode: u64, handle: u64, lock_owner: u64) -> io::Result<()> {
        library_handle(handle).map_or(Ok(()), |handle| {
            self.files.flush(ctx, library_inode(inode), handle, lock_owner)
        })
    }

    fn fsync(&self, ctx: Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        let (inode, handle) = self.open_file(ctx, inode, handle, Access::Read)?;
        self.files.fsync(ctx, inode, datasync, handle)
    }

    fn lseek(&self, ctx: Context, inode: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        let (inode, handle) = self.open_file(ctx, inode, handle, Access::Read)?;
        self.files.lseek(ctx, inode, handle, offset, whence)
    }

    fn readdir(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
    ) -> io::Result<Self::DirIter> {
        let request = ReadDirectory {
            inode: library_inode(inode),
            guest_handle: handle,
            handle: library_handle(handle),
            size,
            offset,
        };
        self.handles.list(&self.files, ctx, request)
    }

    fn fsyncdir(&self, ctx: Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        // Any descriptor of the directory serves.
        let (inode, handle) = self.open_file(ctx, inode, handle, Access::Read)?;
        self.files.fsyncdir(ctx, inode, datasync, handle)
    }

    fn releasedir(&self, ctx: Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        self.handles.release_directory(handle);
        let Some(handle) = library_handle(handle) else {
            return Ok(());
        };
        self.files.releasedir(ctx, library_inode(inode), flags, handle)
    }

    forward! {
        readlink() -> Vec<u8>;
        statfs() -> libc::statvfs64;
        removexattr(name: &CStr) -> ();
        access(mask: u32) -> ();
        syncfs() -> ();
    }
}
