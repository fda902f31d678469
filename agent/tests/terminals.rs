//! Terminals of a container's init and of exec processes. As `containers.rs`, with a standalone agent.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod guest;

use std::io::Write as _;

use guest::container::{Container, FOREVER, process};
use guest::{Guest, run};
use serde_json::json;
use ttrpc::Code;

/// A container whose init runs `script` on a terminal of 91 columns and 37 rows.
fn with_terminal(id: &str, script: &str) -> Container {
    let mut container = Container::new(id, &["sh", "-c", script]);
    container.spec["process"]["terminal"] = true.into();
    container.spec["process"]["consoleSize"] = json!({"width": 91, "height": 37});
    container.streams = [true, true, false];
    container
}

#[test]
fn a_container_has_a_terminal() {
    run(async {
        let mut guest = Guest::start().await;
        let script = "tty; stty size; test -t 2 && echo all; test -c /dev/console && echo console; \
            read line; stty size; echo got $line";
        let (_, mut stdio) = guest.create_as(with_terminal("a", script)).await.unwrap();
        guest.start_container("a").await.unwrap();
        for want in ["/dev/pts/0\r\n", "37 91\r\n", "all\r\n", "console\r\n"] {
            assert_eq!(stdio.line().await, want);
        }
        guest.resize("a", "", 100, 50).await.unwrap();
        stdio.stdin.write_all(b"word\n").unwrap();
        assert_eq!(stdio.line().await, "word\r\n", "the echo");
        assert_eq!(stdio.stdout().await, "50 100\r\ngot word\r\n");
        assert_eq!(guest.wait("a").await.unwrap().exit_status, 0);
        assert_eq!(
            guest.resize("a", "", 100, 50).await.unwrap_err().0,
            Code::NOT_FOUND
        );
    });
}

#[test]
fn an_interrupt_character_becomes_sigint() {
    run(async {
        let mut guest = Guest::start().await;
        let script = "trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 1; done";
        let (_, mut stdio) = guest.create_as(with_terminal("a", script)).await.unwrap();
        guest.start_container("a").await.unwrap();
        assert_eq!(stdio.line().await, "ready\r\n");
        stdio.stdin.write_all(&[3]).unwrap();
        assert!(stdio.stdout().await.contains("interrupted\r\n"));
        assert_eq!(guest.wait("a").await.unwrap().exit_status, 3);
    });
}

#[test]
fn an_exec_owns_its_terminal() {
    run(async {
        let mut guest = Guest::running(FOREVER).await;
        let mut object = process(&["sh", "-c", "stty size; echo to the name > $(tty); exit 5"]);
        object["terminal"] = true.into();
        object["consoleSize"] = json!({"width": 80, "height": 24});
        object["user"] = json!({"uid": 1000, "gid": 1000});
        let (_, mut stdio) = guest
            .exec_as("a", "x", object, [true, true, false])
            .await
            .unwrap();
        assert_eq!(stdio.stdout().await, "24 80\r\nto the name\r\n");
        assert_eq!(guest.wait_exec("a", "x").await.unwrap().exit_status, 5);
        guest.exec("a", "y", FOREVER).await.unwrap();
        assert_eq!(
            guest.resize("a", "y", 1, 1).await.unwrap_err().0,
            Code::FAILED_PRECONDITION
        );
        assert_eq!(
            guest.resize("a", "y", 70000, 1).await.unwrap_err().0,
            Code::INVALID_ARGUMENT
        );
    });
}
