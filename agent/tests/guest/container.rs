//! What a test asks the agent to create, and the host's ends of its streams.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::net::{UnixListener, UnixStream};

use serde_json::{Value, json};

use ttrpc::Code;

use super::{Guest, in_thread};

/// The commands in the containers' /bin.
const APPLETS: &str = "sh cat echo env sleep true touch mkdir id mknod head wc ls sort xargs tty stty readlink \
    grep rm mkfifo stat cut chmod uname ionice";

/// A command that does not end by itself.
pub const FOREVER: &[&str] = &["sleep", "1000000"];

/// A container to create.
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its spec, `spec.json` with the command; root and cgroup are filled in by [`Guest::create_as`].
    pub spec: Value,
    /// Whether standard input, output and error are wanted.
    pub streams: [bool; 3],
}

impl Container {
    /// A container with the spec in `spec.json`, `command`, and all three streams.
    pub fn new(id: &str, command: &[&str]) -> Self {
        let mut spec: Value = serde_json::from_str(include_str!("spec.json")).unwrap();
        spec["process"]["args"] = command.iter().copied().collect();
        Self {
            id: id.to_owned(),
            spec,
            streams: [true; 3],
        }
    }
}

/// The host's ends of a process's streams.
#[derive(Debug)]
pub struct Stdio {
    /// Standard input.
    pub stdin: UnixStream,
    outputs: [BufReader<UnixStream>; 2],
}

impl Stdio {
    /// Reads `outputs[index]` up to its end.
    async fn rest(&mut self, index: usize) -> String {
        let mut stream = BufReader::new(self.outputs[index].get_ref().try_clone().unwrap());
        let mut text = String::from_utf8(self.outputs[index].buffer().to_vec()).unwrap();
        in_thread(move || {
            stream.read_to_string(&mut text).unwrap();
            text
        })
        .await
    }

    /// Reads the rest of standard output.
    pub async fn stdout(&mut self) -> String {
        self.rest(0).await
    }

    /// Reads the rest of standard error.
    pub async fn stderr(&mut self) -> String {
        self.rest(1).await
    }

    /// Standard output, for reading bytes.
    pub fn output(&mut self) -> &mut BufReader<UnixStream> {
        &mut self.outputs[0]
    }

    /// Reads one line of standard output, with its newline.
    pub async fn line(&mut self) -> String {
        let placeholder = BufReader::new(UnixStream::pair().unwrap().0);
        let mut stream = std::mem::replace(&mut self.outputs[0], placeholder);
        let (line, stream) = in_thread(move || {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            (line, stream)
        })
        .await;
        self.outputs[0] = stream;
        line
    }
}

/// Accepts the wanted streams. A stream without a listener is one whose other end is closed.
pub fn accept(listeners: [Option<UnixListener>; 3]) -> Stdio {
    let [stdin, stdout, stderr] = listeners.map(|listener| match listener {
        Some(listener) => listener.accept().unwrap().0,
        None => UnixStream::pair().unwrap().0,
    });
    Stdio {
        stdin,
        outputs: [stdout, stderr].map(BufReader::new),
    }
}

/// A process object for an exec: `command` as root in `/`.
pub fn process(command: &[&str]) -> Value {
    serde_json::json!({"args": command, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}})
}

/// A root directory with busybox and the applets that the tests use.
pub fn busybox_root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for directory in ["bin", "etc", "proc", "sys", "dev", "run", "tmp"] {
        std::fs::create_dir(path.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", path.join("bin/busybox")).expect("package busybox-static");
    for applet in APPLETS.split_whitespace() {
        std::os::unix::fs::symlink("busybox", path.join("bin").join(applet)).unwrap();
    }
    std::fs::write(path.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    root
}

impl Guest {
    /// Starts a guest with the running container `a`, whose init is `command`.
    pub async fn running(command: &[&str]) -> Self {
        let mut guest = Self::start().await;
        guest.create("a", command).await.unwrap();
        guest.start_container("a").await.unwrap();
        guest
    }

    /// Runs `script` in a container whose spec was changed by `change`. Returns its standard output and
    /// error.
    pub async fn output(&mut self, id: &str, script: &str, change: impl FnOnce(&mut Value)) -> String {
        let mut container = Container::new(id, &["sh", "-c", &format!("exec 2>&1; {script}")]);
        change(&mut container.spec);
        let (_, mut stdio) = self.create_as(container).await.unwrap();
        self.start_container(id).await.unwrap();
        stdio.stdout().await
    }

    /// Creates a container whose spec was changed by `change`, which the agent must refuse. Returns the
    /// refusal.
    pub async fn refusal(&mut self, change: impl FnOnce(&mut Value)) -> (Code, String) {
        let mut container = Container::new("refused", &["true"]);
        change(&mut container.spec);
        let refusal = self.create_as(container).await.unwrap_err();
        self.expect_nothing_left("refused");
        refusal
    }
}

/// Appends `value` to the array at `pointer` (a JSON pointer) of a spec.
pub fn add(spec: &mut Value, pointer: &str, value: Value) {
    spec.pointer_mut(pointer)
        .unwrap()
        .as_array_mut()
        .unwrap()
        .push(value);
}

/// Gives a container a user namespace, whose root is 100,000 outside.
pub fn add_users(spec: &mut Value) {
    add(spec, "/linux/namespaces", json!({"type": "user"}));
    let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    spec["linux"]["uidMappings"] = ids.clone();
    spec["linux"]["gidMappings"] = ids;
}

/// Changes the owner of `path` and everything below it to uid and gid `id`; does not follow symbolic links.
pub fn chown(path: &std::path::Path, id: u32) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            chown(&entry.path(), id);
        }
        std::os::unix::fs::lchown(entry.path(), Some(id), Some(id)).unwrap();
    }
    std::os::unix::fs::lchown(path, Some(id), Some(id)).unwrap();
}
