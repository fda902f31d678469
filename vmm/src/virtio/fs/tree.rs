//! The file system that the guest sees: virtiofsd's passthrough, with two things added. What the guest may cache is
//! chosen by the place in the tree ([`super::place`]), and arguments that the library would trust are checked. Called by the library's
//! server on the worker's thread.

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

use super::checks::{MAX_XATTR, checked, offset, open_flags, refused};
use super::place::{LONG, Place, number, placed};

/// For a file of a root file system: its pages outlive its closing, and closing it asks nothing (every write has gone
/// through by then, and locks stay in the guest).
const KEPT: OpenOptions = OpenOptions::KEEP_CACHE.union(OpenOptions::NOFLUSH);

/// See the module.
pub struct Tree {
    files: PassthroughFs,
}

impl Tree {
    /// Serves `root`. `proc_self_fd` is that directory; at most `open_files` are open for the guest.
    pub fn new(root: PathBuf, proc_self_fd: File, open_files: u64) -> Result<Self, String> {
        let root_dir = root
            .into_os_string()
            .into_string()
            .map_err(|root| format!("{}: not UTF-8", root.display()))?;
        let config = Config {
            // The library's own choice is replaced for each entry.
            entry_timeout: Duration::ZERO,
            attr_timeout: Duration::ZERO,
            cache_policy: CachePolicy::Auto,
            // The host sees every write when it is made.
            writeback: false,
            root_dir,
            xattr: true,
            proc_sfd_rawfd: Some(proc_self_fd),
            announce_submounts: true,
            // open_by_handle_at would reach files outside of the tree.
            inode_file_handles: InodeFileHandlesMode::Never,
            readdirplus: true,
            killpriv_v2: true,
            posix_acl: NegotiationMode::Auto,
            guest_fd_limit: open_files,
            ..Config::default()
        };
        let files = PassthroughFs::new(config).map_err(|error| error.to_string())?;
        Ok(Self { files })
    }
}

/// Requests that need nothing but the library's inode number.
macro_rules! pass {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty;)*) => {$(
        fn $name(&self, ctx: Context, inode: u64 $(, $argument: $kind)*) -> io::Result<$result> {
            self.files.$name(ctx, number(inode) $(, $argument)*)
        }
    )*};
}

impl FileSystem for Tree {
    type Inode = u64;
    type Handle = u64;
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        // Without submounts inode numbers of different mounts would meet. Our guest's kernel has them.
        if !capable.contains(FsOptions::SUBMOUNTS) {
            return Err(refused(libc::EPROTO));
        }
        // A link's target never changes: another one is another inode.
        Ok(self.files.init(capable)? | FsOptions::CACHE_SYMLINKS)
    }

    fn destroy(&self) {
        self.files.destroy();
    }

    fn lookup(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        match self.files.lookup(ctx, number(parent), checked(name)?) {
            Ok(entry) => Ok(placed(entry, parent, name)),
            // Inode 0: the guest may remember that there is no such name.
            Err(error)
                if Place::of(parent) == Place::Rootfs && error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(Entry {
                    inode: 0,
                    generation: 0,
                    attr: Attr::default(),
                    attr_timeout: Duration::ZERO,
                    entry_timeout: LONG,
                })
            }
            Err(error) => Err(error),
        }
    }

    fn forget(&self, ctx: Context, inode: u64, count: u64) {
        self.files.forget(ctx, number(inode), count);
    }

    fn batch_forget(&self, ctx: Context, requests: Vec<(u64, u64)>) {
        let requests = requests.into_iter().map(|(inode, count)| (number(inode), count));
        self.files.batch_forget(ctx, requests.collect());
    }

    fn getattr(&self, ctx: Context, inode: u64, handle: Option<u64>) -> io::Result<(Attr, Duration)> {
        let (attr, _) = self.files.getattr(ctx, number(inode), handle)?;
        Ok((attr, Place::of(inode).timeout()))
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
            offset(attr.size)?;
        }
        let (attr, _) = self.files.setattr(ctx, number(inode), attr, handle, valid)?;
        Ok((attr, Place::of(inode).timeout()))
    }

    fn symlink(
        &self,
        ctx: Context,
        linkname: &CStr,
        parent: u64,
        name: &CStr,
        extensions: Extensions,
    ) -> io::Result<Entry> {
        checked(name)?;
        let entry = self
            .files
            .symlink(ctx, linkname, number(parent), name, extensions)?;
        Ok(placed(entry, parent, name))
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
        checked(name)?;
        let entry = self
            .files
            .mknod(ctx, number(parent), name, mode, rdev, umask, extensions)?;
        Ok(placed(entry, parent, name))
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
        checked(name)?;
        let entry = self
            .files
            .mkdir(ctx, number(parent), name, mode, umask, extensions)?;
        Ok(placed(entry, parent, name))
    }

    fn link(&self, ctx: Context, inode: u64, newparent: u64, newname: &CStr) -> io::Result<Entry> {
        checked(newname)?;
        let entry = self.files.link(ctx, number(inode), number(newparent), newname)?;
        Ok(placed(entry, newparent, newname))
    }

    fn unlink(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.files.unlink(ctx, number(parent), checked(name)?)
    }

    fn rmdir(&self, ctx: Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.files.rmdir(ctx, number(parent), checked(name)?)
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
        let (oldname, newname) = (checked(oldname)?, checked(newname)?);
        self.files
            .rename(ctx, number(olddir), oldname, number(newdir), newname, flags)
    }

    fn open(
        &self,
        ctx: Context,
        inode: u64,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        let (handle, mut options) = self
            .files
            .open(ctx, number(inode), kill_priv, open_flags(flags)?)?;
        if Place::of(inode) == Place::Rootfs {
            options |= KEPT;
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
        checked(name)?;
        let creating = libc::O_CREAT.cast_unsigned();
        let flags = open_flags(flags & !creating)? | creating & flags;
        let (entry, handle, mut options) = self.files.create(
            ctx,
            number(parent),
            name,
            mode,
            kill_priv,
            flags,
            umask,
            extensions,
        )?;
        if Place::of(parent) == Place::Rootfs {
            options |= KEPT;
        }
        Ok((placed(entry, parent, name), handle, options))
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
            number(inode),
            handle,
            w,
            size,
            offset(at)?,
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
        let at = offset(at)?;
        self.files.write(
            ctx,
            number(inode),
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
        self.files
            .fallocate(ctx, number(inode), handle, mode, offset(at)?, offset(length)?)
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
        let (from, to) = (offset(offset_in)?, offset(offset_out)?);
        let (inode_in, inode_out) = (number(inode_in), number(inode_out));
        self.files.copyfilerange(
            ctx, inode_in, handle_in, from, inode_out, handle_out, to, len, flags,
        )
    }

    fn opendir(&self, ctx: Context, inode: u64, flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        let (handle, mut options) = self.files.opendir(ctx, number(inode), open_flags(flags)?)?;
        if Place::of(inode) == Place::Rootfs {
            options |= OpenOptions::KEEP_CACHE | OpenOptions::CACHE_DIR;
        }
        Ok((handle, options))
    }

    /// The guest asks with the size of its buffer; ours has no use for more than the longest value.
    fn getxattr(&self, ctx: Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        let reply = self.files.getxattr(ctx, number(inode), name, size.min(MAX_XATTR));
        reply.map_err(|error| {
            // To Linux's FUSE a file system without ACLs is one that has none set; another error would fail
            // every access that looks at them.
            let acl = name.to_bytes().starts_with(b"system.posix_acl_");
            if acl && error.raw_os_error() == Some(libc::EOPNOTSUPP) {
                refused(libc::ENODATA)
            } else {
                error
            }
        })
    }

    fn listxattr(&self, ctx: Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        self.files.listxattr(ctx, number(inode), size.min(MAX_XATTR))
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
            .setxattr(ctx, number(inode), name, value, flags, extra_flags)
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
            number(inode),
            flags,
            handle,
            flush,
            flock_release,
            lock_owner,
        )
    }

    pass! {
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
