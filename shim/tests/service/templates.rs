//! Templates that a VMM refuses, or that a guest does not continue from. The fake VMM saves two files that are no
//! snapshot, and the kernel's extra parameters choose what it does with them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::shim_async::TaskClient;
use nacre_protocol::state::{self, STATE_ROOT, TEMPLATES_DIR, TIMELINE_FILE, Timeline};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::Case;
use crate::cases;
use crate::pod::{Pod, refused, soon};

cases![
    a_template_from_which_a_guest_does_not_continue_is_removed_and_the_next_pod_boots,
    a_template_that_is_refused_is_removed,
    a_template_that_can_t_be_used_at_the_moment_stays,
];

/// How long a file system may be mounted on the store before the template in it is found.
const LOOKS_AGAIN: Duration = Duration::from_millis(200);

/// A template of the installation of a pod; what is left of it is removed on drop.
struct Template {
    directory: PathBuf,
}

impl Template {
    /// Runs the first pod, and waits until its template is made.
    async fn of_first_life(pod: &mut Pod) -> Result<Self> {
        let store = Path::new(STATE_ROOT).join(TEMPLATES_DIR);
        nacre_pod::state::make_directory(&store)?;
        let made = inotify::init(CreateFlags::CLOEXEC)?;
        let kernel = pod.path().join("share/nacre/vmlinux");
        let client = pod.run_start().await?;
        let origin = live(pod, &client).await?;
        let waited = tokio::task::spawn_blocking(move || {
            let until = Instant::now() + Duration::from_secs(20);
            loop {
                // Each time, since the first template of a host has a file system mounted on the store.
                inotify::add_watch(&made, &store, WatchFlags::MOVED_TO)?;
                // Templates of other installations may be there, too.
                if let Some(directory) = find(&store, &kernel)? {
                    return Ok(Self { directory });
                }
                ensure!(Instant::now() < until, "no template is made");
                let mut polled = [PollFd::new(&made, PollFlags::IN)];
                if poll(&mut polled, Some(&Timespec::try_from(LOOKS_AGAIN)?))? == 1 {
                    rustix::io::read(&made, &mut [0_u8; 4096])?;
                }
            }
        });
        let template = waited.await??;
        end(pod, client).await?;
        ensure!(
            origin == "boot: there is no template for this kind of pod yet",
            "{origin}"
        );
        Ok(template)
    }

    fn key(&self) -> String {
        self.directory
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    fn record(&self) -> PathBuf {
        self.directory.with_extension("failed")
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        // What a test expects to be gone is not there.
        drop(std::fs::remove_dir_all(&self.directory));
        drop(std::fs::remove_file(self.record()));
    }
}

/// The template in `store` of a guest with the kernel at `kernel`.
fn find(store: &Path, kernel: &Path) -> Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(store)? {
        let directory = entry?.path();
        let Ok(kind) = std::fs::read(directory.join("kind.json")) else {
            continue;
        };
        let kind: serde_json::Value = serde_json::from_slice(&kind)?;
        if directory.extension().is_none() && kind["kernel"]["path"] == kernel.to_string_lossy().as_ref() {
            return Ok(Some(directory));
        }
    }
    Ok(None)
}

/// Creates and starts the pod's container; returns where its guest came from.
async fn live(pod: &Pod, client: &TaskClient) -> Result<String> {
    client.create(soon(), &pod.creation()).await?;
    pod.start_task(client).await?;
    let timeline = std::fs::read(state::pod_dir(&pod.key()).join(TIMELINE_FILE))?;
    let timeline: Timeline = serde_json::from_slice(&timeline)?;
    timeline.origin.context("no origin")
}

async fn end(pod: &Pod, client: TaskClient) -> Result<()> {
    pod.kill(&client, 9).await?;
    pod.wait(&client).await?;
    pod.delete(&client).await?;
    pod.finish(client).await
}

/// Where the guest of a pod of this installation comes from now.
async fn next_origin(pod: &mut Pod) -> Result<String> {
    let client = pod.run_start().await?;
    let origin = live(pod, &client).await?;
    end(pod, client).await?;
    Ok(origin)
}

async fn prepare(id: &str, parameter: &str) -> Result<Pod> {
    let config = format!("templates = true\nkernel_params = \"{parameter}\"\n");
    Pod::prepare(id, &config, |_| {}).await
}

async fn a_template_from_which_a_guest_does_not_continue_is_removed_and_the_next_pod_boots() -> Result<()> {
    let mut pod = prepare("template-fails", "fake=template-fails").await?;
    let template = Template::of_first_life(&mut pod).await?;
    let client = pod.run_start().await?;
    let (_, message) = refused(client.create(soon(), &pod.creation()).await)?;
    ensure!(message.contains("panic"), "{message}");
    let failure = pod.failure()?;
    ensure!(
        failure.timeline.origin == Some(format!("template {}", template.key())),
        "{failure:?}"
    );
    pod.finish(client).await?;
    ensure!(!template.directory.exists(), "the template is left");
    let record = std::fs::read_to_string(template.record())?;
    ensure!(
        record.starts_with("a guest did not continue from the template of this kind of pod: ")
            && record.contains("panic"),
        "{record}"
    );
    let origin = next_origin(&mut pod).await?;
    ensure!(origin == format!("boot: {record}"), "{origin}");
    ensure!(!template.directory.exists(), "another one was made");
    Ok(())
}

async fn a_template_that_is_refused_is_removed() -> Result<()> {
    let mut pod = prepare("template-refused", "fake=template-refused").await?;
    let template = Template::of_first_life(&mut pod).await?;
    let origin = next_origin(&mut pod).await?;
    let expected = format!("boot: template {} can't be used: a reason", template.key());
    ensure!(origin == expected, "{origin}");
    ensure!(!template.directory.exists() && !template.record().exists());
    Ok(())
}

async fn a_template_that_can_t_be_used_at_the_moment_stays() -> Result<()> {
    let mut pod = prepare("template-now", "fake=template-refused-now").await?;
    let template = Template::of_first_life(&mut pod).await?;
    for _ in 0..2 {
        let origin = next_origin(&mut pod).await?;
        let expected = format!("boot: template {} can't be used now: a reason", template.key());
        ensure!(origin == expected, "{origin}");
        ensure!(template.directory.exists());
    }
    Ok(())
}
