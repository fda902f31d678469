//! A process of the fake agent: a task that does what its arguments say.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;

pub struct Process {
    pub arguments: Vec<String>,
    /// The guest's ends of stdin, stdout and stderr.
    pub streams: Mutex<[Option<UnixStream>; 3]>,
    pub exit: watch::Sender<Option<u32>>,
    /// The terminal's columns and rows.
    pub size: Option<watch::Sender<Option<(u32, u32)>>>,
    pub tree: String,
}

impl Process {
    /// Sets the exit status, unless the process has exited already.
    pub fn end(&self, status: u32) {
        self.exit.send_if_modified(|exit| {
            let first = exit.is_none();
            exit.get_or_insert(status);
            first
        });
        let streams = std::mem::take(&mut *self.streams.lock().unwrap());
        drop(streams);
    }

    /// Waits until the process has exited; returns its exit status.
    pub async fn exited(&self) -> u32 {
        let mut exit = self.exit.subscribe();
        exit.wait_for(Option::is_some).await.unwrap().unwrap_or_default()
    }
}

/// Runs the process until it exits or is killed.
pub async fn run(process: &Process, oom_kills: &watch::Sender<u64>) {
    let streams = std::mem::take(&mut *process.streams.lock().unwrap()).map(|stream| {
        stream.map(|stream| {
            stream.set_nonblocking(true).unwrap();
            tokio::net::UnixStream::from_std(stream).unwrap()
        })
    });
    let mut exit = process.exit.subscribe();
    let status = tokio::select! {
        status = act(process, streams, oom_kills) => status,
        _killed = exit.wait_for(Option::is_some) => return,
    };
    process.end(status);
}

async fn act(
    process: &Process,
    [stdin, stdout, stderr]: [Option<tokio::net::UnixStream>; 3],
    oom_kills: &watch::Sender<u64>,
) -> u32 {
    match *process.arguments.iter().map(String::as_str).collect::<Vec<_>>() {
        ["exit", status] => status.parse().unwrap(),
        ["print", out, err] => {
            stdout.unwrap().write_all(out.as_bytes()).await.unwrap();
            if let Some(mut stderr) = stderr {
                stderr.write_all(err.as_bytes()).await.unwrap();
            }
            0
        }
        ["cat"] => {
            tokio::io::copy(&mut stdin.unwrap(), &mut stdout.unwrap())
                .await
                .unwrap();
            0
        }
        ["flood"] => {
            let zeros = vec![0; 64 << 20];
            stdout.unwrap().write_all(&zeros).await.unwrap();
            0
        }
        ["ask"] => {
            let mut answer = Vec::new();
            stdin.unwrap().take(3).read_to_end(&mut answer).await.unwrap();
            u32::from(answer == b"yes")
        }
        ["list", directory] => {
            let names = sorted_names(&Path::new(&process.tree).join(directory));
            stdout.unwrap().write_all(names.as_bytes()).await.unwrap();
            0
        }
        // Waits until the terminal has this width, and writes its size.
        ["size", width] => {
            let width: u32 = width.parse().unwrap();
            let mut sizes = process.size.as_ref().unwrap().subscribe();
            let has_width = |size: &Option<(u32, u32)>| size.is_some_and(|size| size.0 == width);
            let (width, height) = sizes.wait_for(has_width).await.unwrap().unwrap();
            let size = format!("{width}x{height}").into_bytes();
            stdout.unwrap().write_all(&size).await.unwrap();
            0
        }
        // A process of the container is OOM-killed: this one if the next argument is "die".
        ["oom", then] => {
            oom_kills.send_modify(|kills| *kills += 1);
            if then != "die" {
                std::future::pending::<()>().await;
            }
            137
        }
        // Until it is killed.
        _ => {
            let _open = (stdin, stdout, stderr);
            std::future::pending().await
        }
    }
}

/// The names in a directory, sorted, separated by spaces.
fn sorted_names(directory: &Path) -> String {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names.join(" ")
}
