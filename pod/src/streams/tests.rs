//! Streams between real FIFOs and a socketpair in the guest's place.

use super::*;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const CONTAINER: LoggedContainer<'_> = LoggedContainer {
    namespace: "test",
    id: "c",
};

fn make_fifo(path: &Path) -> String {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    path.display().to_string()
}

fn bytes(count: usize) -> Vec<u8> {
    let mut state = 1_u32;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .collect()
}

/// Opens the streams and connects the guest's ends: stdin, stdout, stderr as far as they are wanted.
fn open(paths: &StdioPaths) -> (Streams, Vec<UnixStream>) {
    let Opened {
        streams,
        stdio,
        expected,
    } = Streams::open(paths, CONTAINER).unwrap();
    let sent = [stdio.stdin, stdio.stdout, stdio.stderr];
    let wanted: Vec<u64> = expected.iter().map(|(address, _)| address.to_bits()).collect();
    assert_eq!(
        sent.into_iter().filter(|bits| *bits != 0).collect::<Vec<_>>(),
        wanted
    );
    let guests = expected
        .into_iter()
        .map(|(_, sender)| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            sender.send(ours.into()).unwrap();
            theirs
        })
        .collect();
    (streams, guests)
}

async fn all_written(streams: &Streams) {
    let mut outputs = streams.outputs();
    tokio::time::timeout(Duration::from_secs(20), outputs.written())
        .await
        .unwrap();
}

#[tokio::test]
async fn output_arrives_whole_through_a_fifo() {
    let directory = tempfile::tempdir().unwrap();
    let stdout = make_fifo(&directory.path().join("out"));
    let reader = std::thread::spawn({
        let stdout = stdout.clone();
        move || std::fs::read(stdout).unwrap()
    });
    let (streams, mut guests) = open(&StdioPaths {
        stdout,
        ..StdioPaths::default()
    });
    let sent = bytes(3 << 20);
    let mut guest = guests.remove(0);
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || guest.write_all(&sent).unwrap()
    });
    all_written(&streams).await;
    drop(streams);
    writer.join().unwrap();
    assert!(reader.join().unwrap() == sent);
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_the_writer() {
    let directory = tempfile::tempdir().unwrap();
    let stdout = make_fifo(&directory.path().join("out"));
    let (streams, mut guests) = open(&StdioPaths {
        stdout: stdout.clone(),
        ..StdioPaths::default()
    });
    let mut guest = guests.remove(0);
    guest.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let writer = std::thread::spawn(move || {
        let mut written = 0;
        while let Ok(count) = guest.write(&[7; 65536]) {
            written += count;
        }
        (written, guest)
    });
    let mut outputs = streams.outputs();
    let end = tokio::time::timeout(Duration::from_secs(2), outputs.written()).await;
    assert!(end.is_err(), "the copy ended though the guest's end is open");
    let (written, guest) = writer.join().unwrap();
    assert!(written < 1 << 20, "{written} bytes went somewhere");
    drop(guest);
    let reader = std::thread::spawn(move || std::fs::read(stdout).unwrap().len());
    all_written(&streams).await;
    drop(streams);
    assert_eq!(reader.join().unwrap(), written);
}

#[tokio::test]
async fn output_without_a_reader_waits_for_one() {
    let directory = tempfile::tempdir().unwrap();
    let stdout = make_fifo(&directory.path().join("out"));
    let (streams, mut guests) = open(&StdioPaths {
        stdout: stdout.clone(),
        ..StdioPaths::default()
    });
    guests.remove(0).write_all(b"before anybody reads").unwrap();
    all_written(&streams).await;
    // The copy is over, but the streams are held: a reader that comes now still finds the bytes.
    let mut reader = open_reader(&stdout);
    let mut read = [0; 20];
    reader.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"before anybody reads");
}

fn open_reader(fifo: &str) -> File {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    options.open(fifo).unwrap()
}

async fn is_written_soon(streams: &Streams) -> bool {
    let mut outputs = streams.outputs();
    let written = tokio::time::timeout(Duration::from_millis(200), outputs.written()).await;
    written.is_ok()
}

/// containerd closes its end when it knows of the exit, which is reported when output counts as written.
#[tokio::test]
async fn output_is_written_when_its_reader_has_read_it() {
    let directory = tempfile::tempdir().unwrap();
    let stdout = make_fifo(&directory.path().join("out"));
    let (streams, mut guests) = open(&StdioPaths {
        stdout: stdout.clone(),
        ..StdioPaths::default()
    });
    let mut reader = open_reader(&stdout);
    std::fs::remove_file(&stdout).unwrap();
    let sent = bytes(60_000);
    guests.remove(0).write_all(&sent).unwrap();
    let mut read = vec![0; sent.len()];
    for part in read.chunks_mut(20_000) {
        assert!(!is_written_soon(&streams).await, "it is not read yet");
        reader.read_exact(part).unwrap();
    }
    all_written(&streams).await;
    assert!(read == sent);
    // The writing end is closed: the reader is at the end.
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}

#[tokio::test]
async fn output_whose_reader_goes_away_is_written_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let stdout = make_fifo(&directory.path().join("out"));
    let (streams, mut guests) = open(&StdioPaths {
        stdout: stdout.clone(),
        ..StdioPaths::default()
    });
    let reader = open_reader(&stdout);
    guests.remove(0).write_all(b"kept").unwrap();
    assert!(!is_written_soon(&streams).await, "there is a reader");
    drop(reader);
    all_written(&streams).await;
    let mut kept = String::new();
    open_reader(&stdout).read_to_string(&mut kept).unwrap();
    assert_eq!(kept, "kept");
}

#[tokio::test]
async fn input_ends_with_closeio_and_the_client_not_with_the_client_alone() {
    let directory = tempfile::tempdir().unwrap();
    let stdin = make_fifo(&directory.path().join("in"));
    let (mut streams, mut guests) = open(&StdioPaths {
        stdin: stdin.clone(),
        ..StdioPaths::default()
    });
    let mut guest = guests.remove(0);
    let sent = bytes(1 << 20);
    let first = sent.clone();
    let path = stdin.clone();
    let client = std::thread::spawn(move || std::fs::write(path, first).unwrap());
    let half = sent.len();
    let reader = std::thread::spawn(move || {
        let mut read = vec![0; half];
        guest.read_exact(&mut read).unwrap();
        guest.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let silent = guest.read(&mut [0; 1]).is_err();
        guest.set_read_timeout(None).unwrap();
        (read, silent, guest)
    });
    let (read, silent, mut guest) = tokio::task::spawn_blocking(move || reader.join().unwrap())
        .await
        .unwrap();
    client.join().unwrap();
    assert!(read == sent);
    assert!(silent, "the first client's end was taken for the end");
    let client = std::thread::spawn(move || std::fs::write(stdin, b"again").unwrap());
    tokio::task::spawn_blocking(move || client.join().unwrap())
        .await
        .unwrap();
    streams.close_stdin();
    let rest = tokio::task::spawn_blocking(move || {
        let mut rest = Vec::new();
        guest.read_to_end(&mut rest).unwrap();
        rest
    });
    assert_eq!(rest.await.unwrap(), b"again");
}

#[tokio::test]
async fn a_file_is_appended_to_and_other_schemes_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log");
    std::fs::write(&file, "old ").unwrap();
    let (streams, mut guests) = open(&StdioPaths {
        stdout: format!("file://{}", file.display()),
        ..StdioPaths::default()
    });
    guests.remove(0).write_all(b"new").unwrap();
    all_written(&streams).await;
    assert_eq!(std::fs::read(&file).unwrap(), b"old new");
    let paths = StdioPaths {
        stderr: "ftp:///x".into(),
        ..StdioPaths::default()
    };
    let error = Streams::open(&paths, CONTAINER).unwrap_err().to_string();
    assert!(error.contains("ftp"), "{error}");
    let error = Streams::open(
        &StdioPaths {
            stdout: "/no/such/fifo".into(),
            ..StdioPaths::default()
        },
        CONTAINER,
    )
    .unwrap_err();
    assert!(error.to_string().contains("/no/such/fifo"));
}

/// It never closes its descriptor 5, and goes on when there is nothing to be read: it is ended all the same.
#[tokio::test]
async fn a_program_that_goes_on_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("log");
    let pid = directory.path().join("pid");
    std::fs::write(
        &program,
        "#!/bin/sh\necho $$ > $2.new\nmv $2.new $2\nexec sleep 1000000\n",
    )
    .unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (streams, guests) = open(&StdioPaths {
        stdout: format!("binary://{}?to={}", program.display(), pid.display()),
        ..StdioPaths::default()
    });
    let written = async {
        while !pid.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), written)
        .await
        .unwrap();
    let pid = std::fs::read_to_string(&pid).unwrap();
    drop((streams, guests));
    let process = std::path::PathBuf::from(format!("/proc/{}", pid.trim()));
    let ended = async {
        while process.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(40), ended)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_program_takes_both_outputs_and_is_told_whose_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("log");
    let script = "#!/bin/sh\nexec 5>&-\n{ echo $CONTAINER_NAMESPACE/$CONTAINER_ID $#; cat <&3; cat <&4; } > $2\nmv $2 $2.done\n";
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let log = directory.path().join("out");
    let (streams, mut guests) = open(&StdioPaths {
        stdout: format!("binary://{}?to={}", program.display(), log.display()),
        ..StdioPaths::default()
    });
    guests.remove(0).write_all(b"output\n").unwrap();
    guests.remove(0).write_all(b"error\n").unwrap();
    all_written(&streams).await;
    drop(streams);
    let done = directory.path().join("out.done");
    tokio::time::timeout(Duration::from_secs(20), async {
        while !done.exists() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(
        std::fs::read_to_string(done).unwrap(),
        "test/c 2\noutput\nerror\n"
    );
    let missing = StdioPaths {
        stdout: "binary:///no/such/logger".into(),
        ..StdioPaths::default()
    };
    let error = Streams::open(&missing, CONTAINER).unwrap_err().to_string();
    assert!(error.contains("/no/such/logger"), "{error}");
}
