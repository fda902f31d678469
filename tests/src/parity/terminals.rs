//! Behaviours of terminals: `ctr run -t` and `ctr task exec -t`, used like an interactive user does.

use anyhow::Result;

use super::{Behaviour, Outcome, calls};
use crate::containerd::Runtime;
use crate::containerd::ctr::{IMAGE, Run, fresh_id, remove_detached};
use crate::containerd::terminal::Terminal;

const TERMINAL: &[&str] = &["process.terminal"];
const RESIZE: &[&str] = &["process.terminal", "Task.ResizePty"];
const EXEC: &[&str] = &["process.terminal", "Task.Exec"];

pub const BEHAVIOURS: &[Behaviour] = &[
    calls("terminal: device and environment", TERMINAL, device),
    calls("terminal: stty settings", TERMINAL, settings),
    calls("terminal: initial size and resize", RESIZE, size),
    calls("terminal: ^C", TERMINAL, |runtime| key(runtime, "\u{3}")),
    calls("terminal: ^\\", TERMINAL, |runtime| key(runtime, "\u{1c}")),
    calls("terminal: ^D", TERMINAL, end_of_file),
    calls("terminal: job control with ^Z and fg", TERMINAL, job_control),
    calls("terminal: raw mode", TERMINAL, raw),
    calls("terminal: 20,000 lines of output", TERMINAL, long_output),
    calls("terminal: standard error goes to the terminal", TERMINAL, errors),
    calls(
        "terminal: exit code",
        &["process.terminal", "Task.Wait"],
        exit_code,
    ),
    calls("exec on a terminal: device and environment", EXEC, |runtime| {
        exec_on_terminal(runtime, KIND, |_| Ok(()))
    }),
    calls(
        "exec on a terminal: initial size and resize",
        &["Task.Exec", "Task.ResizePty"],
        |runtime| exec_on_terminal(runtime, SIZE, change_size),
    ),
    calls("exec on a terminal: ^C", EXEC, |runtime| {
        exec_on_terminal(runtime, KEY, |terminal| press(terminal, "\u{3}"))
    }),
    calls("exec on a terminal: ^D", EXEC, |runtime| {
        exec_on_terminal(runtime, "echo up; cat; echo end; exit 4", type_and_end)
    }),
    calls(
        "exec on a terminal: stays open for a child process",
        EXEC,
        |runtime| exec_on_terminal(runtime, "(sleep 1; echo late) & echo early; wait", |_| Ok(())),
    ),
];

/// Waits for the size, which ctr sets after Start. ctr reports an error if the process has exited by then.
const WAIT_FOR_SIZE: &str = "until [ \"$(stty size 2>/dev/null)\" = '24 80' ]; do sleep 0.05; done; ";
/// A pipe to wc would be among the descriptors as long as the shell has not closed it.
const KIND: &str = "tty; test -t 0 && test -t 1 && test -t 2 && echo terminal; echo $TERM; \
    cut -d ' ' -f 5-8 /proc/$$/stat | tr -d '0-9' | wc -w; stat -c '%a %u:%g %t,%T' $(tty) /dev/console; echo x > /dev/tty; ls -l /proc/$$/fd >/fds; wc -l </fds";
const SIZE: &str = "trap 'stty size; exit 3' WINCH; echo up; while :; do sleep 0.1; done";
/// `wait` misses no signal. `read`, which was here, blocks if one arrives just before it.
const KEY: &str = "ulimit -c 0; trap 'echo INT; exit 5' INT; trap 'echo QUIT; exit 6' QUIT; echo up; sleep 1000 & while :; do wait; done";

/// Runs `sh -c script` in a container on a terminal while `interact` uses the terminal.
fn run_on_terminal(
    runtime: Runtime,
    script: &str,
    interact: impl FnOnce(&mut Terminal) -> Result<()>,
) -> Result<Outcome> {
    let id = fresh_id("terminal");
    let script = format!("{WAIT_FOR_SIZE}{script}");
    let run = [
        "run",
        "--rm",
        "-t",
        "--runtime",
        runtime.name(),
        IMAGE,
        &id,
        "sh",
        "-c",
        &script,
    ];
    interact_and_wait(Terminal::ctr(&run)?, interact)
}

/// Runs `interact`, then waits until the command on `terminal` exits.
fn interact_and_wait(
    mut terminal: Terminal,
    interact: impl FnOnce(&mut Terminal) -> Result<()>,
) -> Result<Outcome> {
    interact(&mut terminal)?;
    let (code, stdout) = terminal.wait_with_output()?;
    Ok(Outcome {
        code,
        stdout,
        stderr: String::new(),
    })
}

/// Runs `sh -c script` with `ctr task exec -t` in a detached container while `interact` uses the terminal.
fn exec_on_terminal(
    runtime: Runtime,
    script: &str,
    interact: impl FnOnce(&mut Terminal) -> Result<()>,
) -> Result<Outcome> {
    let id = fresh_id("terminal");
    Run {
        command: &["sleep", "1000000"],
        runtime,
        ..Run::default()
    }
    .detach(&id)?;
    let script = format!("{WAIT_FOR_SIZE}{script}");
    let exec = ["task", "exec", "-t", "--exec-id", "x", &id, "sh", "-c", &script];
    let outcome = Terminal::ctr(&exec).and_then(|terminal| interact_and_wait(terminal, interact));
    remove_detached(&id)?;
    outcome
}

fn device(runtime: Runtime) -> Result<Outcome> {
    run_on_terminal(runtime, KIND, |_| Ok(()))
}

fn settings(runtime: Runtime) -> Result<Outcome> {
    run_on_terminal(runtime, "stty -a 2>/dev/null | tail -n +2", |_| Ok(()))
}

fn size(runtime: Runtime) -> Result<Outcome> {
    run_on_terminal(runtime, SIZE, change_size)
}

fn change_size(terminal: &mut Terminal) -> Result<()> {
    terminal.expect("up")?;
    terminal.resize(41, 101)?;
    terminal.expect("41 101")
}

fn press(terminal: &mut Terminal, key: &str) -> Result<()> {
    // Wait for the end of the line, too: the terminal echoes a key immediately.
    terminal.expect("up")?;
    terminal.expect("\n")?;
    terminal.send(key)
}

fn key(runtime: Runtime, key: &str) -> Result<Outcome> {
    run_on_terminal(runtime, KEY, |terminal| press(terminal, key))
}

fn end_of_file(runtime: Runtime) -> Result<Outcome> {
    run_on_terminal(runtime, "echo up; cat; echo end; exit 4", type_and_end)
}

fn type_and_end(terminal: &mut Terminal) -> Result<()> {
    terminal.expect("up")?;
    terminal.expect("\n")?;
    terminal.send("a line\r")?;
    // The first is the terminal's echo, the second cat's output.
    terminal.expect("a line")?;
    terminal.expect("a line")?;
    terminal.expect("\n")?;
    terminal.send("\u{4}")
}

fn job_control(runtime: Runtime) -> Result<Outcome> {
    run_on_terminal(runtime, "PS1='ready ' exec sh -i", |terminal| {
        terminal.expect("[6n")?;
        // Wait until cat has started: the shell sets the terminal to raw mode, so that a line typed before
        // would reach cat without its end.
        terminal.send("echo he''re; cat\r")?;
        terminal.expect("here")?;
        terminal.expect("\n")?;
        terminal.send("one\r")?;
        terminal.expect("one")?;
        terminal.expect("one\r")?;
        terminal.expect("\n")?;
        terminal.send("\u{1a}")?;
        terminal.expect("[6n")?;
        terminal.send("jobs\r")?;
        terminal.expect("[6n")?;
        terminal.send("fg\r")?;
        terminal.expect("cat")?;
        terminal.expect("\n")?;
        terminal.send("two\r")?;
        terminal.expect("two")?;
        terminal.expect("two\r")?;
        terminal.expect("\n")?;
        terminal.send("\u{3}")?;
        terminal.expect("[6n")?;
        terminal.send("exit 8\r")
    })
}

fn raw(runtime: Runtime) -> Result<Outcome> {
    run_on_terminal(
        runtime,
        "stty raw -echo; echo up; dd bs=1 count=5 2>/dev/null | od -An -c",
        |terminal| {
            terminal.expect("up")?;
            terminal.send("\u{3}\u{4}\r\u{1a}x")
        },
    )
}

fn long_output(runtime: Runtime) -> Result<Outcome> {
    run_on_terminal(runtime, "seq 1 20000", |_| Ok(()))
}

fn errors(runtime: Runtime) -> Result<Outcome> {
    run_on_terminal(runtime, "echo out; echo err >&2; no-such-command", |_| Ok(()))
}

fn exit_code(runtime: Runtime) -> Result<Outcome> {
    run_on_terminal(runtime, "exit 33", |_| Ok(()))
}
