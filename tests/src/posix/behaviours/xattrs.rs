//! Extended attributes and access control lists. Most depend on the file system: tmpfs has no `user.*` before
//! Linux 6.6, so under an overlay on it they are refused.

use std::os::unix::fs::FileExt as _;

use anyhow::Result;
use rustix::fs::{
    CWD, FileType, Mode, OFlags, XattrFlags, getxattr, lgetxattr, listxattr, lsetxattr, mknodat, removexattr,
    setxattr, symlink,
};

use super::super::Behaviour;
use super::super::process::as_user;
use super::sys::{OTHER, USER, chmod, chown, content, may, mkdir, mode, must, open, put, said, shown, words};

const NONE: XattrFlags = XattrFlags::empty();
const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn set(name: &str, attribute: &str, value: &[u8]) -> String {
    said(setxattr(name, attribute, value, NONE))
}

fn get(name: &str, attribute: &str) -> String {
    let mut value = vec![0; 70_000];
    shown(getxattr(name, attribute, &mut value).map(|length| match length {
        0..40 => String::from_utf8_lossy(&value[..length]).into_owned(),
        _ => format!("{length} bytes"),
    }))
}

/// The names of all attributes but SELinux's, sorted.
fn names(name: &str) -> String {
    let mut list = vec![0; 70_000];
    shown(listxattr(name, &mut list).map(|length| {
        let text = String::from_utf8_lossy(&list[..length]).into_owned();
        let mut names: Vec<&str> = text
            .split('\0')
            .filter(|name| !name.is_empty() && *name != "security.selinux")
            .collect();
        names.sort_unstable();
        format!("[{}]", names.join(","))
    }))
}

/// An access control list as the kernel takes it: version 2, then entries of tag, permissions and id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

const ANY: u32 = u32::MAX;
const OWNER: u16 = 1;
const NAMED_USER: u16 = 2;
const GROUP: u16 = 4;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;

/// Nobody but root and `uid`, who may do `permissions`.
fn acl_for(uid: u32, permissions: u16) -> Vec<u8> {
    acl(&[
        (OWNER, 6, ANY),
        (NAMED_USER, permissions, uid),
        (GROUP, 0, ANY),
        (MASK, 7, ANY),
        (OTHERS, 0, ANY),
    ])
}

fn file() -> Result<()> {
    put("f", b"content")
}

/// A file capability: version 2, CAP_NET_RAW permitted and effective.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

pub const BEHAVIOURS: &[Behaviour] = &[
    may("a user attribute is set, read, listed and removed", || {
        file()?;
        let (set, get, list) = (set("f", "user.a", b"value"), get("f", "user.a"), names("f"));
        words([set, get, list, said(removexattr("f", "user.a")), names("f")])
    }),
    may("a user attribute that is replaced", || {
        file()?;
        set("f", "user.a", b"long value");
        set("f", "user.a", b"short");
        Ok(get("f", "user.a"))
    }),
    may("XATTR_CREATE and XATTR_REPLACE", || {
        file()?;
        words([
            said(setxattr("f", "user.a", b"1", XattrFlags::REPLACE)),
            said(setxattr("f", "user.a", b"1", XattrFlags::CREATE)),
            said(setxattr("f", "user.a", b"2", XattrFlags::CREATE)),
            said(setxattr("f", "user.a", b"3", XattrFlags::REPLACE)),
            get("f", "user.a"),
        ])
    }),
    may("a user attribute that is missing", || {
        file()?;
        words([get("f", "user.no"), said(removexattr("f", "user.no"))])
    }),
    may("sizes of buffers for attributes", || {
        file()?;
        set("f", "user.a", b"value");
        words([
            shown(getxattr("f", "user.a", &mut [0_u8; 0])),
            shown(getxattr("f", "user.a", &mut [0_u8; 3])),
            shown(listxattr("f", &mut [0_u8; 0])),
            shown(listxattr("f", &mut [0_u8; 3])),
        ])
    }),
    may("an empty value and one of 1,000 bytes", || {
        file()?;
        set("f", "user.empty", b"");
        let large = set("f", "user.large", &[b'x'; 1000]);
        words([get("f", "user.empty"), large, get("f", "user.large")])
    }),
    may("the largest value of an attribute", || {
        file()?;
        words([
            set("f", "user.a", &vec![b'x'; 65_536]),
            set("f", "user.a", &vec![b'x'; 65_537]),
        ])
    }),
    may("the longest name of an attribute", || {
        file()?;
        let name = |length: usize| format!("user.{}", "n".repeat(length - 5));
        words([
            set("f", &name(255), b"v"),
            set("f", &name(256), b"v"),
            set("f", "user.", b"v"),
        ])
    }),
    may("a value of any bytes", || {
        file()?;
        set("f", "user.a", b"a\0b\xffc");
        let mut value = [0; 16];
        Ok(shown(
            getxattr("f", "user.a", &mut value).map(|length| format!("{:?}", &value[..length])),
        ))
    }),
    may("user attributes of what is no file", || {
        mkdir("d", 0o755)?;
        symlink("d", "s")?;
        mknodat(CWD, "p", FileType::Fifo, Mode::RUSR, 0)?;
        words([
            set("d", "user.a", b"v"),
            said(lsetxattr("s", "user.a", b"v", NONE)),
            set("p", "user.a", b"v"),
            shown(lgetxattr("s", "user.a", &mut [0_u8; 8])),
        ])
    }),
    may("user attributes and the mode", || {
        file()?;
        set("f", "user.a", b"v");
        let read_only = as_user(USER, USER, &[], || {
            words([get("f", "user.a"), set("f", "user.a", b"w")])
        })?;
        chmod("f", 0o600)?;
        let none = as_user(USER, USER, &[], || Ok(get("f", "user.a")))?;
        words([read_only, none])
    }),
    must("namespaces that do not exist", "EOPNOTSUPP EOPNOTSUPP", || {
        file()?;
        words([set("f", "nacre.a", b"v"), set("f", "nothing", b"v")])
    }),
    may("a file capability", || {
        file()?;
        let set = set("f", "security.capability", &CAPABILITY);
        let mut value = [0; 64];
        let got = shown(getxattr("f", "security.capability", &mut value));
        words([set, got, names("f")])
    }),
    may("a write removes a file capability", || {
        file()?;
        set("f", "security.capability", &CAPABILITY);
        open("f", OFlags::WRONLY)?.write_all_at(b"x", 0)?;
        Ok(names("f"))
    }),
    may("chown removes a file capability", || {
        file()?;
        set("f", "security.capability", &CAPABILITY);
        chown("f", 5, 6)?;
        Ok(names("f"))
    }),
    must("a file capability that is set by a user", "EPERM", || {
        file()?;
        chown("f", USER, USER)?;
        as_user(USER, USER, &[], || {
            Ok(set("f", "security.capability", &CAPABILITY))
        })
    }),
    may("trusted and other security attributes", || {
        file()?;
        words([
            set("f", "trusted.a", b"v"),
            get("f", "trusted.a"),
            set("f", "security.nacre", b"v"),
            get("f", "security.nacre"),
            names("f"),
        ])
    }),
    may("an access control list gives access", || {
        file()?;
        let set = set("f", ACCESS, &acl_for(USER, 4));
        let access = || words([content("f"), said(open("f", OFlags::WRONLY))]);
        words([
            set,
            mode("f"),
            as_user(USER, USER, &[], access)?,
            as_user(OTHER, OTHER, &[], access)?,
        ])
    }),
    may("an access control list takes access", || {
        put("f", b"content")?;
        chmod("f", 0o666)?;
        let list = acl(&[
            (OWNER, 6, ANY),
            (NAMED_USER, 0, USER),
            (GROUP, 6, ANY),
            (MASK, 6, ANY),
            (OTHERS, 6, ANY),
        ]);
        let set = set("f", ACCESS, &list);
        let read = || Ok(content("f"));
        words([
            set,
            as_user(USER, USER, &[], read)?,
            as_user(OTHER, OTHER, &[], read)?,
        ])
    }),
    may("chmod changes the mask of an access control list", || {
        file()?;
        set("f", ACCESS, &acl_for(USER, 6));
        chmod("f", 0o600)?;
        words([mode("f"), as_user(USER, USER, &[], || Ok(content("f")))?])
    }),
    may("an access control list that is only a mode", || {
        file()?;
        let set = set(
            "f",
            ACCESS,
            &acl(&[(OWNER, 6, ANY), (GROUP, 4, ANY), (OTHERS, 0, ANY)]),
        );
        words([set, mode("f"), names("f")])
    }),
    may("a default access control list is inherited", || {
        mkdir("d", 0o755)?;
        let set = set("d", DEFAULT, &acl_for(USER, 6));
        put("d/f", b"content")?;
        mkdir("d/e", 0o777)?;
        words([
            set,
            mode("d/f"),
            mode("d/e"),
            names("d/f"),
            names("d/e"),
            as_user(USER, USER, &[], || Ok(content("d/f")))?,
        ])
    }),
    may("access control lists that are refused", || {
        file()?;
        let missing = acl(&[(OWNER, 6, ANY), (GROUP, 4, ANY)]);
        words([
            set("f", ACCESS, &missing),
            set("f", ACCESS, b"xy"),
            set("f", DEFAULT, &acl_for(USER, 6)),
            as_user(USER, USER, &[], || Ok(set("f", ACCESS, &acl_for(USER, 6))))?,
        ])
    }),
    may("a file without an access control list", || {
        file()?;
        words([get("f", ACCESS), said(removexattr("f", ACCESS)), names("f")])
    }),
];
