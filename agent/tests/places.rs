//! Where the mounts and the working directory of a container go, and what is left alone in a /dev that is
//! there already: seen from inside of containers that a standalone agent creates, as in `fields.rs`.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod guest;

use std::os::unix::fs::symlink;

use guest::container::{add, add_users, chown};
use guest::{Guest, run};
use serde_json::{Value, json};

fn bind(source: &std::path::Path, destination: &str) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind"]})
}

#[test]
fn mounts_go_where_links_lead() {
    run(async {
        let mut guest = Guest::start().await;
        let volume = tempfile::tempdir().unwrap();
        let file = volume.path().join("file");
        std::fs::write(&file, "content\n").unwrap();
        symlink("/made/dir", guest.rootfs.path().join("link")).unwrap();
        symlink("/made/file", guest.rootfs.path().join("other")).unwrap();
        let script = "cat /made/dir/file /made/file; readlink /link";
        let text = guest
            .output("a", script, |spec| {
                add(spec, "/mounts", bind(volume.path(), "/link"));
                add(spec, "/mounts", bind(&file, "/other"));
            })
            .await;
        assert_eq!(text, "content\ncontent\n/made/dir\n");
        symlink("loop", guest.rootfs.path().join("loop")).unwrap();
        let (code, text) = guest
            .refusal(|spec| add(spec, "/mounts", bind(&file, "/loop/x")))
            .await;
        assert_eq!(code, ttrpc::Code::INVALID_ARGUMENT);
        assert!(
            text.contains("mounts: destination /loop/x: Too many levels"),
            "{text}"
        );
    });
}

/// Also in a user namespace, where the program that makes it is not root outside.
#[test]
fn a_working_directory_is_made_in_a_tmpfs() {
    run(async {
        let mut guest = Guest::start().await;
        chown(guest.rootfs.path(), 100_000);
        for (id, has_users) in [("a", false), ("b", true)] {
            let text = guest
                .output(id, "readlink /proc/self/cwd; stat -c '%a %u' .", |spec| {
                    spec["process"]["cwd"] = json!("/run/app/state");
                    if has_users {
                        add_users(spec);
                    }
                })
                .await;
            assert_eq!(text, "/run/app/state\n755 0\n", "{id}");
        }
        let (_, text) = guest
            .refusal(|spec| {
                spec["process"]["cwd"] = json!("/full/x");
                let full = json!({"destination": "/full", "type": "tmpfs", "options": ["nr_inodes=1"]});
                add(spec, "/mounts", full);
            })
            .await;
        assert!(text.contains("process.cwd: creating /full/x"), "{text}");
    });
}

#[test]
fn a_directory_that_is_bound_to_dev_stays_as_it_is() {
    run(async {
        let mut guest = Guest::start().await;
        let dev = tempfile::tempdir().unwrap();
        for (name, minor) in [("null", 3), ("zero", 5)] {
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
            let device = nix::sys::stat::makedev(1, minor);
            let kind = nix::sys::stat::SFlag::S_IFCHR;
            nix::sys::stat::mknod(&dev.path().join(name), kind, mode, device).unwrap();
        }
        symlink("elsewhere", dev.path().join("fd")).unwrap();
        let script = "echo x > /dev/null && head -c 3 /dev/zero | wc -c; ls /dev";
        let text = guest
            .output("a", script, |spec| add(spec, "/mounts", bind(dev.path(), "/dev")))
            .await;
        assert_eq!(text, "3\nfd\nnull\nzero\n");
        assert_eq!(std::fs::read_dir(dev.path()).unwrap().count(), 3);
        let text = guest
            .output("b", "wc -c < /dev/random", |spec| {
                add(
                    spec,
                    "/mounts",
                    bind(std::path::Path::new("/etc/hostname"), "/dev/random"),
                );
            })
            .await;
        let length = std::fs::metadata("/etc/hostname").unwrap().len();
        assert_eq!(text.trim(), length.to_string());
        // Also where a link of the image leads.
        std::fs::remove_dir(guest.rootfs.path().join("dev")).unwrap();
        symlink("devices", guest.rootfs.path().join("dev")).unwrap();
        let text = guest
            .output("c", script, |spec| add(spec, "/mounts", bind(dev.path(), "/dev")))
            .await;
        assert_eq!(text, "3\nfd\nnull\nzero\n");
        assert_eq!(std::fs::read_dir(dev.path()).unwrap().count(), 3);
    });
}

#[test]
fn a_read_only_tmpfs_takes_mounts_and_the_working_directory() {
    run(async {
        let mut guest = Guest::start().await;
        let volume = tempfile::tempdir().unwrap();
        std::fs::write(volume.path().join("file"), "content\n").unwrap();
        let script =
            "cat /fixed/volume/file; echo x > /fixed/volume/new && echo written; pwd; touch /fixed/x 2>&1";
        for options in [["ro", "mode=755"], ["rro", "mode=755"]] {
            let id = options[0];
            let text = guest
                .output(id, script, |spec| {
                    let tmpfs = json!({"destination": "/fixed", "type": "tmpfs", "options": options});
                    add(spec, "/mounts", tmpfs);
                    add(spec, "/mounts", bind(volume.path(), "/fixed/volume"));
                    spec["process"]["cwd"] = json!("/fixed/work");
                })
                .await;
            let refused = "touch: /fixed/x: Read-only file system\n";
            assert_eq!(text, format!("content\nwritten\n/fixed/work\n{refused}"), "{id}");
        }
    });
}

fn copy_up(destination: &str, options: &[&str]) -> Value {
    let options = [&["tmpcopyup"], options].concat();
    json!({"destination": destination, "type": "tmpfs", "options": options})
}

/// Also in a user namespace, where ids are those of the container.
#[test]
fn a_tmpfs_has_a_copy_of_what_it_covers() {
    run(async {
        let mut guest = Guest::start().await;
        let app = guest.rootfs.path().join("app");
        std::fs::create_dir_all(app.join("sub/deep")).unwrap();
        std::fs::write(app.join("sub/file"), "of the image\n").unwrap();
        symlink("/app/sub", guest.rootfs.path().join("link")).unwrap();
        symlink("sub/file", app.join("short")).unwrap();
        chown(guest.rootfs.path(), 100_000);
        std::os::unix::fs::lchown(app.join("sub/deep"), Some(100_007), Some(100_008)).unwrap();
        let volume = tempfile::tempdir().unwrap();
        std::fs::write(volume.path().join("data"), "of the volume\n").unwrap();
        // In the user namespace, an owner that has no number there could not be given to the copy.
        chown(volume.path(), 100_000);
        std::os::unix::fs::lchown(volume.path(), Some(100_000), Some(100_000)).unwrap();
        for (id, has_users) in [("a", false), ("b", true)] {
            let script = "cd ..; cat short data/data; stat -c '%n %u:%g' sub sub/deep new; echo new > short; \
                cat /link/file; echo x > data/data";
            let text = guest
                .output(id, script, |spec| {
                    add(spec, "/mounts", bind(volume.path(), "/app/data"));
                    add(spec, "/mounts", copy_up("/app", &["size=1m"]));
                    spec["process"]["cwd"] = json!("/app/new");
                    if has_users {
                        add_users(spec);
                    }
                })
                .await;
            let (root, other) = if has_users {
                ("0:0", "7:8")
            } else {
                ("100000:100000", "100007:100008")
            };
            let want = format!("of the image\nof the volume\nsub {root}\nsub/deep {other}\nnew 0:0\nnew\n");
            assert_eq!(text, want, "{id}");
        }
        assert_eq!(
            std::fs::read_to_string(app.join("short")).unwrap(),
            "of the image\n"
        );
        assert_eq!(
            std::fs::read(volume.path().join("data")).unwrap(),
            b"of the volume\n"
        );
        assert!(!app.join("new").exists(), "made in the image");
    });
}

#[test]
fn a_copy_that_does_not_fit_is_refused() {
    run(async {
        let mut guest = Guest::start().await;
        let app = guest.rootfs.path().join("app");
        std::fs::create_dir(&app).unwrap();
        std::fs::write(app.join("large"), [1; 100_000]).unwrap();
        let (_, text) = guest
            .refusal(|spec| add(spec, "/mounts", copy_up("/app", &["size=64k"])))
            .await;
        assert!(
            text.contains("mounts: /app: tmpcopyup: copying /large: No space left on device"),
            "{text}"
        );
    });
}
