//! Terminals: `ctr run -t` and `ctr task exec -t`, driven as by a person.

use anyhow::Result;

use super::{Behaviour, Seen, calls};
use crate::containerd::Runtime;
use crate::containerd::ctr::{IMAGE, Run, fresh_id, remove_detached};
use crate::containerd::terminal::Terminal;

const TERMINAL: &[&str] = &["process.terminal"];
const RESIZE: &[&str] = &["process.terminal", "Task.ResizePty"];
const EXEC: &[&str] = &["process.terminal", "Task.Exec"];

pub const BEHAVIOURS: &[Behaviour] = &[
    calls("terminal: what it is", TERMINAL, kind),
    calls("terminal: its settings", TERMINAL, settings),
    calls("terminal: the size at start and after a change", RESIZE, size),
    calls("terminal: ^C", TERMINAL, |runtime| key(runtime, "\u{3}")),
    calls("terminal: ^\\", TERMINAL, |runtime| key(runtime, "\u{1c}")),
    calls("terminal: ^D", TERMINAL, end_of_file),
    calls("terminal: jobs, ^Z and fg", TERMINAL, jobs),
    calls("terminal: raw mode", TERMINAL, raw),
    calls("terminal: much output", TERMINAL, much),
    calls("terminal: standard error is the terminal too", TERMINAL, errors),
    calls(
        "terminal: the exit code",
        &["process.terminal", "Task.Wait"],
        exit_code,
    ),
    calls("exec on a terminal: what it is", EXEC, |runtime| {
        executed(runtime, KIND, |_| Ok(()))
    }),
    calls(
        "exec on a terminal: the size and a change",
        &["Task.Exec", "Task.ResizePty"],
        |runtime| executed(runtime, SIZE, change_size),
    ),
    calls("exec on a terminal: ^C", EXEC, |runtime| {
        executed(runtime, KEY, |terminal| press(terminal, "\u{3}"))
    }),
    calls("exec on a terminal: ^D", EXEC, |runtime| {
        executed(runtime, "echo up; cat; echo end; exit 4", type_and_end)
    }),
    calls("exec on a terminal: it stays open for a child", EXEC, |runtime| {
        executed(runtime, "(sleep 1; echo late) & echo early; wait", |_| Ok(()))
    }),
];

/// ctr tells the size after the start, and complains where the process has ended by then.
const SIZED: &str = "until [ \"$(stty size 2>/dev/null)\" = '24 80' ]; do sleep 0.05; done; ";
const KIND: &str = "tty; test -t 0 && test -t 1 && test -t 2 && echo terminal; echo $TERM; \
    cut -d ' ' -f 5-8 /proc/$$/stat | tr -d '0-9' | wc -w; stat -c '%a %u:%g %t,%T' $(tty) /dev/console; echo x > /dev/tty; ls -l /proc/$$/fd | wc -l";
const SIZE: &str = "trap 'stty size; exit 3' WINCH; echo up; while :; do sleep 0.1; done";
const KEY: &str = "ulimit -c 0; trap 'echo INT; exit 5' INT; trap 'echo QUIT; exit 6' QUIT; echo up; while :; do read line; done";

/// `sh -c script` on a terminal, with someone at it.
fn sit(runtime: Runtime, script: &str, hands: impl FnOnce(&mut Terminal) -> Result<()>) -> Result<Seen> {
    let id = fresh_id("terminal");
    let script = format!("{SIZED}{script}");
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
    shown(Terminal::ctr(&run)?, hands)
}

fn shown(mut terminal: Terminal, hands: impl FnOnce(&mut Terminal) -> Result<()>) -> Result<Seen> {
    hands(&mut terminal)?;
    let (code, stdout) = terminal.finish()?;
    Ok(Seen {
        code,
        stdout,
        stderr: String::new(),
    })
}

fn executed(runtime: Runtime, script: &str, hands: impl FnOnce(&mut Terminal) -> Result<()>) -> Result<Seen> {
    let id = fresh_id("terminal");
    Run {
        command: &["sleep", "1000000"],
        runtime,
        ..Run::default()
    }
    .detach(&id)?;
    let script = format!("{SIZED}{script}");
    let exec = ["task", "exec", "-t", "--exec-id", "x", &id, "sh", "-c", &script];
    let seen = Terminal::ctr(&exec).and_then(|terminal| shown(terminal, hands));
    remove_detached(&id)?;
    seen
}

fn kind(runtime: Runtime) -> Result<Seen> {
    sit(runtime, KIND, |_| Ok(()))
}

fn settings(runtime: Runtime) -> Result<Seen> {
    sit(runtime, "stty -a 2>/dev/null | tail -n +2", |_| Ok(()))
}

fn size(runtime: Runtime) -> Result<Seen> {
    sit(runtime, SIZE, change_size)
}

fn change_size(terminal: &mut Terminal) -> Result<()> {
    terminal.expect("up")?;
    terminal.resize(41, 101)?;
    terminal.expect("41 101")
}

fn press(terminal: &mut Terminal, key: &str) -> Result<()> {
    // The end of the line too: what is typed is shown at once.
    terminal.expect("up")?;
    terminal.expect("\n")?;
    terminal.send(key)
}

fn key(runtime: Runtime, key: &str) -> Result<Seen> {
    sit(runtime, KEY, |terminal| press(terminal, key))
}

fn end_of_file(runtime: Runtime) -> Result<Seen> {
    sit(runtime, "echo up; cat; echo end; exit 4", type_and_end)
}

fn type_and_end(terminal: &mut Terminal) -> Result<()> {
    terminal.expect("up")?;
    terminal.expect("\n")?;
    terminal.send("a line\r")?;
    // Once by the terminal, once by cat.
    terminal.expect("a line")?;
    terminal.expect("a line")?;
    terminal.expect("\n")?;
    terminal.send("\u{4}")
}

fn jobs(runtime: Runtime) -> Result<Seen> {
    sit(runtime, "PS1='ready ' exec sh -i", |terminal| {
        terminal.expect("[6n")?;
        // A line that is typed while the shell has the terminal to itself would reach cat without its end.
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

fn raw(runtime: Runtime) -> Result<Seen> {
    sit(
        runtime,
        "stty raw -echo; echo up; dd bs=1 count=5 2>/dev/null | od -An -c",
        |terminal| {
            terminal.expect("up")?;
            terminal.send("\u{3}\u{4}\r\u{1a}x")
        },
    )
}

fn much(runtime: Runtime) -> Result<Seen> {
    sit(runtime, "seq 1 20000", |_| Ok(()))
}

fn errors(runtime: Runtime) -> Result<Seen> {
    sit(runtime, "echo out; echo err >&2; no-such-command", |_| Ok(()))
}

fn exit_code(runtime: Runtime) -> Result<Seen> {
    sit(runtime, "exit 33", |_| Ok(()))
}
