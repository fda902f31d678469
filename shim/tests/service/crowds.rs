//! Many processes at once, and more of their streams than a pod may have.

use anyhow::{Context as _, Result, ensure};
use nacre_protocol::vsock::MAX_STREAMS;
use ttrpc::Code;

use crate::Case;
use crate::cases;
use crate::execs::{end, sleeping};
use crate::pod::refused;
use crate::remote::Remote;

cases![
    two_hundred_execs_with_three_streams_run_at_once,
    more_streams_than_a_vm_may_have_are_refused,
];

async fn two_hundred_execs_with_three_streams_run_at_once() -> Result<()> {
    let (pod, client, init) = sleeping("crowd").await?;
    let (stdin, output) = (pod.fifo("in")?, pod.path().join("out"));
    let execs: Vec<Remote> = (0..200)
        .map(|n| Remote::exec(&client, "crowd", &format!("e{n}")))
        .collect();
    for exec in &execs {
        let mut request = exec.request(&["sleep"]);
        request.stdin = stdin.display().to_string();
        request.stdout = format!("file://{}", output.display());
        request.stderr = request.stdout.clone();
        exec.add(&request).await?;
        exec.start().await?;
    }
    for exec in &execs {
        ensure!(exec.state().await?.status.value() == 2, "it does not run");
    }
    end(&pod, client, init).await
}

async fn more_streams_than_a_vm_may_have_are_refused() -> Result<()> {
    let (pod, client, init) = sleeping("streams").await?;
    let fifo = pod.fifo("all")?.display().to_string();
    let exec = |n: usize| Remote::exec(&client, "streams", &format!("e{n}"));
    let run = async |n: usize| {
        let mut request = exec(n).request(&["sleep"]);
        request.stdin.clone_from(&fifo);
        request.stdout.clone_from(&fifo);
        request.stderr.clone_from(&fifo);
        exec(n).add(&request).await?;
        exec(n).start().await
    };
    let most = MAX_STREAMS / 3;
    for n in 0..most {
        run(n).await.with_context(|| format!("exec {n}"))?;
    }
    let (code, message) = refused(run(most).await)?;
    ensure!(
        code == Code::UNKNOWN && message.contains("3840 standard streams, the most"),
        "{code:?} {message}"
    );
    exec(0).kill(9).await?;
    exec(0).wait().await?;
    exec(0).delete().await?;
    run(most).await?;
    end(&pod, client, init).await
}
