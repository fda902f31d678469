//! The file system that the guest sees: virtiofsd's passthrough, with two additions. What the guest may cache
//! depends on the subtree ([`super::subtree`]), and arguments that the library would trust are checked
//! ([`super::checks`]). Called by the library's server on the worker's thread.

use std::error::Error;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{Attr, SetattrIn};
use virtiofsd::passthrough::{CachePolicy, Config, InodeFileHandlesMode, NegotiationMode, PassthroughFs};

use super::checks::{MAX_XATTR, checked_name, checked_offset, checked_open_flags, errno};
use super::subtree::{ROOTFS_TIMEOUT, Subtree, guest_entry, library_inode};

/// How a file of a root file system is opened: the guest keeps its cached pages after close, and sends no
/// FLUSH on close (every write has reached the host by then, and locks stay in the guest).
const ROOTFS_OPEN: OpenOptions = OpenOptions::KEEP_CACHE.union(OpenOptions::NOFLUSH);

/// Implements the library's [`FileSystem`] on top of its [`PassthroughFs`].
pub struct Tree {
    files: PassthroughFs,
}

impl Tree {
    /// Serves `root`. `proc_self_fd` is a descriptor of /proc/self/fd. The guest gets ENFILE beyond
    /// `max_open_files`.
    ///
    /// # Errors
    /// If `root` is not UTF-8 or the library can't start.
    pub fn new(
        root: PathBuf,
        proc_self_fd: File,
        max_open_files: u64,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let root_dir = root
            .into_os_string()
            .into_string()
            .map_err(|root| format!("{}: not UTF-8", root.display()))?;
        let config = Config {
            // [`guest_entry`] replaces the library's timeouts.
            entry_timeout: Duration::ZERO,
            attr_timeout: Duration::ZERO,
            cache_policy: CachePolicy::Auto,
            // Each write reaches the host before write(2) returns in the guest.
            writeback: false,
            root_dir,
            xattr: true,
            proc_sfd_rawfd: Some(proc_self_fd),
            announce_submounts: true,
            // open_by_handle_at can open files outside of the tree.
            inode_file_handles: InodeFileHandlesMode::Never,
            readdirplus: true,
            killpriv_v2: true,
            posix_acl: NegotiationMode::Auto,
            guest_fd_limit: max_open_files,
            ..Config::default()
        };
        Ok(Self {
            files: PassthroughFs::new(config)?,
        })
    }
}

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
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        // Without submounts, files of different mounts could share an inode number. The guest's kernel
        // supports them.
        if !capable.contains(FsOptions::SUBMOUNTS) {
            return Err(errno(libc::EPROTO));
        }
        // The target of a link never changes: a replaced link is another inode.
        Ok(self.files.init(capable)? | FsOptions::CACHE_SYMLINKS)
    }

    fn destroy(&self) {
        self.files.destroy();
    }

    fn lookup(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        match self.files.lookup(ctx, library_inode(parent), checked_name(name)?) {
            Ok(entry) => Ok(guest_entry(entry, parent, name)),
            // A negative entry: the guest caches that the name does not exist.
            Err(error)
                if Subtree::of(parent) == Subtree::Rootfs && error.raw_os_error() == Some(libc::ENOENT) =>
            {
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
        self.files.forget(ctx, library_inode(inode), count);
    }

    fn batch_forget(&self, ctx: Context, requests: Vec<(u64, u64)>) {
        let requests = requests
            .into_iter()
            .map(|(inode, count)| (library_inode(inode), count));
        self.files.batch_forget(ctx, requests.collect());
    }

    fn getattr(&self, ctx: Context, inode: u64, handle: Option<u64>) -> io::Result<(Attr, Duration)> {
        let (attr, _) = self.files.getattr(ctx, library_inode(inode), handle)?;
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
        let (attr, _) = self
            .files
            .setattr(ctx, library_inode(inode), attr, handle, valid)?;
        Ok((attr, Subtree::of(inode).timeout()))
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
        Ok(guest_entry(entry, parent, name))
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
        Ok(guest_entry(entry, parent, name))
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
        Ok(guest_entry(entry, parent, name))
    }

    fn link(&self, ctx: Context, inode: u64, newparent: u64, newname: &CStr) -> io::Result<Entry> {
        checked_name(newname)?;
        let entry = self
            .files
            .link(ctx, library_inode(inode), library_inode(newparent), newname)?;
        Ok(guest_entry(entry, newparent, newname))
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
        let (handle, mut options) =
            self.files
                .open(ctx, library_inode(inode), kill_priv, checked_open_flags(flags)?)?;
        match Subtree::of(inode) {
            Subtree::Rootfs => options |= ROOTFS_OPEN,
            Subtree::Kernel => options |= OpenOptions::DIRECT_IO,
            Subtree::Root | Subtree::Container | Subtree::Mounts | Subtree::HostMount => {}
        }
        Ok((handle, options))
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
        let creating = libc::O_CREAT.cast_unsigned();
        let flags = checked_open_flags(flags & !creating)? | creating & flags;
        let (entry, handle, mut options) = self.files.create(
            ctx,
            library_inode(parent),
            name,
            mode,
            kill_priv,
            flags,
            umask,
            extensions,
        )?;
        if Subtree::of(parent) == Subtree::Rootfs {
            options |= ROOTFS_OPEN;
        }
        Ok((guest_entry(entry, parent, name), handle, options))
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
        self.files.read(
            ctx,
            library_inode(inode),
            handle,
            w,
            size,
            checked_offset(at)?,
            lock_owner,
            flags,
        )
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
        self.files.write(
            ctx,
            library_inode(inode),
            handle,
            r,
            size,
            at,
            lock_owner,
            delayed_write,
            kill_priv,
            flags,
        )
    }

    fn fallocate(
        &self,
        ctx: Context,
        inode: u64,
        handle: u64,
        mode: u32,
        at: u64,
        length: u64,
    ) -> io::Result<()> {
        self.files.fallocate(
            ctx,
            library_inode(inode),
            handle,
            mode,
            checked_offset(at)?,
            checked_offset(length)?,
        )
    }

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
        let (inode_in, inode_out) = (library_inode(inode_in), library_inode(inode_out));
        self.files.copyfilerange(
            ctx, inode_in, handle_in, from, inode_out, handle_out, to, len, flags,
        )
    }

    fn opendir(&self, ctx: Context, inode: u64, flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        let (handle, mut options) =
            self.files
                .opendir(ctx, library_inode(inode), checked_open_flags(flags)?)?;
        if Subtree::of(inode) == Subtree::Rootfs {
            options |= OpenOptions::KEEP_CACHE | OpenOptions::CACHE_DIR;
        }
        Ok((handle, options))
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
        self.files.release(
            ctx,
            library_inode(inode),
            flags,
            handle,
            flush,
            flock_release,
            lock_owner,
        )
    }

    forward! {
        readlink() -> Vec<u8>;
        flush(handle: u64, lock_owner: u64) -> ();
        fsync(datasync: bool, handle: u64) -> ();
        statfs() -> libc::statvfs64;
        removexattr(name: &CStr) -> ();
        readdir(handle: u64, size: u32, offset: u64) -> Self::DirIter;
        fsyncdir(datasync: bool, handle: u64) -> ();
        releasedir(flags: u32, handle: u64) -> ();
        access(mask: u32) -> ();
        lseek(handle: u64, offset: u64, whence: u32) -> u64;
        syncfs() -> ();
    }
}
