//! The options of a mount (`mounts[].options[]`) as the kernel takes them: attributes of the mount, and
//! parameters of its file system. A pure function; the check of the spec has refused what has no effect in a
//! guest.

use super::mount_attributes::Change;

/// MOUNT_ATTR_* of linux/mount.h.
const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NO_SUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NO_DEV: u64 = libc::MOUNT_ATTR_NODEV;
const NO_EXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const NO_ATIME: u64 = libc::MOUNT_ATTR_NOATIME;
const STRICT_ATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
const NO_DIR_ATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
const NO_SYMLINKS: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;
/// A field of several bits; relatime is 0 in it.
const ATIME: u64 = libc::MOUNT_ATTR__ATIME;

/// The option for [`Options::copies_up`].
pub const COPY_UP: &str = "tmpcopyup";

/// What the host's mounts may not allow (`super::restrictions`).
const RESTRICTIONS: u64 = NO_EXEC | NO_SUID | NO_DEV | NO_SYMLINKS;

/// What the options of a mount ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Attributes of the mount itself.
    pub attributes: u64,
    /// The value of the field [`ATIME`], if an option names one.
    atime: Option<u64>,
    /// Attributes of the mount and of those below it.
    pub below: Change,
    /// A tmpfs gets a copy of what it covers.
    pub copies_up: bool,
    /// Parameters of the file system, each `NAME` or `NAME=VALUE`.
    pub parameters: Vec<String>,
}

impl Options {
    /// Reads options; a later one overrides an earlier one.
    pub fn parse<'a>(options: impl IntoIterator<Item = &'a str>) -> Self {
        let mut all = Self::default();
        for option in options {
            all.copies_up |= option == COPY_UP;
            let known = all.set_attribute(option) || all.set_below(option);
            if !known && !is_handled_elsewhere(option) {
                all.parameters.push(option.to_owned());
            }
        }
        all
    }

    /// The attributes of a new mount.
    pub fn of_new_mount(&self) -> u64 {
        self.attributes | self.atime.unwrap_or(0)
    }

    /// The change of the attributes of a copy of a mount. That of the mounts below it, [`Self::below_copy`],
    /// follows.
    pub fn of_copy(&self) -> Change {
        let attributes = self.attributes & !self.below.clear;
        Change {
            clear: self.atime.map_or(0, |_| ATIME),
            ..Change::set(attributes | self.atime.unwrap_or(0))
        }
    }

    /// The change of the attributes of a copy of a mount and of the mounts below it. It takes off nothing
    /// that the host's mounts do not allow: all that a mount of the guest does not allow.
    pub fn below_copy(&self) -> Change {
        Change {
            clear: self.below.clear & !RESTRICTIONS,
            ..self.below
        }
    }

    /// Takes out whether the mount itself is read-only.
    pub fn take_read_only(&mut self) -> bool {
        let attributes = self.attributes & !self.below.clear | self.below.set;
        self.attributes &= !READ_ONLY;
        self.below.set &= !READ_ONLY;
        attributes & READ_ONLY != 0
    }

    fn set_attribute(&mut self, option: &str) -> bool {
        match option {
            "ro" => self.attributes |= READ_ONLY,
            "rw" => self.attributes &= !READ_ONLY,
            "nosuid" => self.attributes |= NO_SUID,
            "suid" => self.attributes &= !NO_SUID,
            "nodev" => self.attributes |= NO_DEV,
            "dev" => self.attributes &= !NO_DEV,
            "noexec" => self.attributes |= NO_EXEC,
            "exec" => self.attributes &= !NO_EXEC,
            "nodiratime" => self.attributes |= NO_DIR_ATIME,
            "diratime" => self.attributes &= !NO_DIR_ATIME,
            "noatime" => self.atime = Some(NO_ATIME),
            "strictatime" => self.atime = Some(STRICT_ATIME),
            "relatime" => self.atime = Some(0),
            "atime" => self.forget_atime(NO_ATIME),
            "nostrictatime" => self.forget_atime(STRICT_ATIME),
            "norelatime" => self.forget_atime(0),
            _ => return false,
        }
        true
    }

    fn forget_atime(&mut self, value: u64) {
        self.atime = self.atime.filter(|atime| *atime != value);
    }

    fn set_below(&mut self, option: &str) -> bool {
        let (attribute, is_set) = match option {
            "rro" => (READ_ONLY, true),
            "rrw" => (READ_ONLY, false),
            "rnosuid" => (NO_SUID, true),
            "rsuid" => (NO_SUID, false),
            "rnodev" => (NO_DEV, true),
            "rdev" => (NO_DEV, false),
            "rnoexec" => (NO_EXEC, true),
            "rexec" => (NO_EXEC, false),
            "rnodiratime" => (NO_DIR_ATIME, true),
            "rdiratime" => (NO_DIR_ATIME, false),
            "rnoatime" => (NO_ATIME, true),
            "ratime" => (NO_ATIME, false),
            "rstrictatime" => (STRICT_ATIME, true),
            "rnostrictatime" => (STRICT_ATIME, false),
            "rrelatime" | "rnorelatime" => (0, true),
            // These have the same effect on a new mount, and also apply to what is below a bind mount.
            "rnosymfollow" | "nosymfollow" => (NO_SYMLINKS, true),
            "rsymfollow" | "symfollow" => (NO_SYMLINKS, false),
            _ => return false,
        };
        if attribute & !ATIME == 0 {
            // The kernel takes a value of this field only if all of it is cleared.
            self.below.clear |= ATIME;
            self.below.set &= !ATIME;
        }
        if is_set {
            self.below.set |= attribute;
        } else {
            self.below.clear |= attribute;
            self.below.set &= !attribute;
        }
        true
    }
}

/// Options that say what kind of mount it is or what is copied into it, that are applied to all mounts once they
/// exist (propagation), or that the host has applied (id maps).
fn is_handled_elsewhere(option: &str) -> bool {
    let plain = option.strip_prefix('r').unwrap_or(option);
    matches!(
        plain,
        "bind" | "private" | "shared" | "slave" | "unbindable" | "idmap"
    ) || matches!(option, "defaults" | "noiversion" | COPY_UP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_option_counts_and_the_rest_are_parameters() {
        let parse = |text: &str| Options::parse(text.split(' '));
        let options = parse("ro nosuid rw noexec size=1m sync nosuid suid bind rshared idmap defaults");
        assert_eq!(options.of_new_mount(), NO_EXEC);
        assert!(!options.copies_up && parse("tmpcopyup ro").copies_up);
        assert_eq!(options.parameters, ["size=1m", "sync"]);
        assert_eq!(options.of_copy(), Change::set(NO_EXEC));
        for (text, attributes, clear) in [
            ("noatime nodiratime", NO_ATIME | NO_DIR_ATIME, ATIME),
            ("strictatime", STRICT_ATIME, ATIME),
            ("relatime", 0, ATIME),
            ("noatime atime", 0, 0),
            ("strictatime nostrictatime", 0, 0),
            ("noatime norelatime", NO_ATIME, ATIME),
        ] {
            let copy = parse(text).of_copy();
            assert_eq!((copy.set, copy.clear), (attributes, clear), "{text}");
        }
    }

    #[test]
    fn read_only_is_taken_out() {
        for (text, want) in [
            ("ro", true),
            ("rro", true),
            ("ro rrw", false),
            ("rrw rro", true),
            ("ro rw", false),
            ("", false),
        ] {
            let mut options = Options::parse(text.split(' '));
            assert_eq!(options.take_read_only(), want, "{text}");
            assert_eq!((options.attributes, options.below.set), (0, 0), "{text}");
        }
    }

    #[test]
    fn a_copy_keeps_what_its_mount_does_not_allow() {
        let changes = |text: &str| {
            let options = Options::parse(text.split(' '));
            (options.of_copy(), options.below_copy())
        };
        let nothing = Change::default();
        assert_eq!(changes("rexec rsuid rdev rsymfollow"), (nothing, nothing));
        // Of the options of one mount, the recursive ones count last.
        assert_eq!(changes("noexec rexec"), (nothing, nothing));
        assert_eq!(changes("rexec noexec rnoexec"), (nothing, Change::set(NO_EXEC)));
        let writable = Change {
            clear: READ_ONLY,
            ..nothing
        };
        assert_eq!(changes("ro rrw nosuid"), (Change::set(NO_SUID), writable));
    }

    #[test]
    fn recursive_options_are_a_change_of_their_own() {
        let below = |text: &str| Options::parse(text.split(' ')).below;
        assert_eq!(below("rro"), Change::set(READ_ONLY));
        let change = |set, clear| Change {
            clear,
            ..Change::set(set)
        };
        assert_eq!(below("rro rrw"), change(0, READ_ONLY));
        assert_eq!(below("rnoatime"), change(NO_ATIME, ATIME));
        assert_eq!(below("rrelatime"), change(0, ATIME));
        assert_eq!(below("nosymfollow"), Change::set(NO_SYMLINKS));
        assert_eq!(below("ro"), Change::default());
    }
}
