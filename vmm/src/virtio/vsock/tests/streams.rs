//! Streams as they are meant to be: data, credit, half-closes, ends.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::super::state::BUFFER;
use super::*;

#[test]
fn small_data_goes_both_ways() {
    let mut guest = Guest::new();
    let host = guest.connect(1024);
    guest.send_data(1024, b"from the guest");
    assert_eq!(read_exactly(&host, 14), b"from the guest");
    (&host).write_all(b"from the host").unwrap();
    assert_eq!(guest.receive_data(1024, 13), b"from the host");
    guest.is_quiet(1024);
}

#[test]
fn a_mebibyte_goes_to_the_host_and_credit_comes_back() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    let data = pattern(1 << 20);
    let want = data.clone();
    let reader = std::thread::spawn(move || assert_eq!(read_exactly(&host, want.len()), want));
    let mut sent = 0_u32;
    let mut forwarded = 0_u32;
    let mut updates = 0;
    for chunk in data.chunks(64 * 1024) {
        while sent - forwarded + chunk.len() as u32 > BUFFER {
            let (wire, _) = guest.receive();
            assert_eq!(wire.op, CREDIT_UPDATE);
            forwarded = wire.fwd_cnt;
            updates += 1;
        }
        guest.send_data(7, chunk);
        sent += chunk.len() as u32;
    }
    reader.join().unwrap();
    assert!((1..=8).contains(&updates), "{updates} credit updates for 1 MiB");
}

#[test]
fn a_mebibyte_goes_to_the_guest() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    let data = pattern(1 << 20);
    let sending = data.clone();
    let writer = std::thread::spawn(move || (&host).write_all(&sending).map(|()| host));
    assert_eq!(guest.receive_data(7, data.len()), data);
    drop(writer.join().unwrap().unwrap());
    let mut shut = 0;
    while shut != 3 {
        let (wire, _) = guest.receive();
        assert_eq!(wire.op, SHUTDOWN);
        shut |= wire.flags;
    }
}

/// As a busy guest does: packets as long as there is credit, receive buffers given back in batches.
#[test]
fn sixteen_mebibytes_go_both_ways_at_once() {
    const TOTAL: usize = 16 << 20;
    let mut guest = Guest::new();
    let host = guest.connect(7);
    let data = pattern(1 << 20);
    let (sending, expected) = (data.clone(), data.clone());
    let reading = host.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        for _ in 0..TOTAL >> 20 {
            (&host).write_all(&sending).unwrap();
        }
        host
    });
    let reader = std::thread::spawn(move || {
        for _ in 0..TOTAL >> 20 {
            assert_eq!(read_exactly(&reading, 1 << 20), expected);
        }
    });
    let (mut sent, mut forwarded, mut received, mut told) = (0_usize, 0_u32, 0_usize, 0_usize);
    while sent < TOTAL || received < TOTAL {
        while sent < TOTAL && (sent as u32).wrapping_sub(forwarded) <= BUFFER - 65536 {
            guest.send_data(7, &data[sent % (1 << 20)..][..65536]);
            sent += 65536;
        }
        let (wire, bytes) = guest.receive();
        forwarded = wire.fwd_cnt;
        assert!(wire.op == RW || wire.op == CREDIT_UPDATE, "{wire:?}");
        assert!(
            bytes
                .iter()
                .eq(data.iter().cycle().skip(received % (1 << 20)).take(bytes.len()))
        );
        received += bytes.len();
        if received - told > 64 * 1024 {
            told = received;
            guest.send(CREDIT_UPDATE, 7);
        }
    }
    reader.join().unwrap();
    drop(writer.join().unwrap());
}

#[test]
fn a_host_that_does_not_read_exhausts_the_credit_and_reading_gives_it_back() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    let data = pattern(4 << 20);
    let (mut sent, mut forwarded) = (0_u32, 0_u32);
    // Until neither the host's socket nor the buffer takes more: a request is then answered with no more room.
    loop {
        if sent - forwarded < BUFFER {
            let length = (BUFFER - (sent - forwarded)).min(64 * 1024);
            guest.send_data(7, &data[sent as usize..][..length as usize]);
            sent += length;
            continue;
        }
        guest.send(CREDIT_REQUEST, 7);
        let before = forwarded;
        let (wire, _) = guest.receive();
        forwarded = wire.fwd_cnt;
        if forwarded == before {
            break;
        }
    }
    assert!(sent < 2 << 20, "{sent} bytes fit");
    // The host reads everything; an update comes by itself.
    assert_eq!(read_exactly(&host, sent as usize), data[..sent as usize]);
    loop {
        let (wire, _) = guest.receive();
        assert_eq!(wire.op, CREDIT_UPDATE);
        if sent - wire.fwd_cnt < BUFFER / 2 {
            break;
        }
    }
    guest.send_data(7, b"goes on");
    assert_eq!(read_exactly(&host, 7), b"goes on");
}

#[test]
fn a_guest_without_room_gets_nothing_until_it_has_some() {
    let mut guest = Guest::new();
    guest.buf_alloc = 10;
    let host = guest.connect(7);
    (&host).write_all(b"0123456789abcdef").unwrap();
    let (wire, bytes) = guest.receive();
    assert_eq!((wire.op, &bytes[..]), (RW, &b"0123456789"[..]));
    let read = guest.fwd_cnt;
    guest.fwd_cnt = 0;
    guest.is_quiet(7);
    guest.fwd_cnt = read - 4;
    guest.send(CREDIT_UPDATE, 7);
    assert_eq!(guest.receive().1, b"abcdef"[..6]);
}

#[test]
fn the_guest_half_closes_and_still_reads() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    guest.send_data(7, b"question");
    guest.shut(7, 2);
    assert_eq!(read_exactly(&host, 8), b"question");
    at_end(&host);
    (&host).write_all(b"answer").unwrap();
    assert_eq!(guest.receive_data(7, 6), b"answer");
    guest.shut(7, 1);
    assert_eq!(guest.receive_op(), RST);
}

#[test]
fn a_guest_that_will_not_receive_stops_the_host() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    guest.shut(7, 1);
    let mut result = Ok(());
    // The shutdown reaches the host's end while it writes.
    for _ in 0..1000 {
        result = (&host).write_all(&[0; 4096]);
        if result.is_err() {
            break;
        }
    }
    assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    guest.send_data(7, b"still");
    assert_eq!(read_exactly(&host, 5), b"still");
}

#[test]
fn the_host_half_closes_and_still_reads() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    (&host).write_all(b"last").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive_data(7, 4), b"last");
    let (wire, _) = guest.receive();
    assert_eq!((wire.op, wire.flags), (SHUTDOWN, 2));
    guest.send_data(7, b"heard");
    assert_eq!(read_exactly(&host, 5), b"heard");
    guest.shut(7, 3);
    assert_eq!(guest.receive_op(), RST);
    at_end(&host);
}

#[test]
fn a_host_that_closes_is_told_after_its_data() {
    let mut guest = Guest::new();
    guest.buf_alloc = 8;
    let host = guest.connect(7);
    (&host).write_all(b"data before the end").unwrap();
    drop(host);
    let mut data = Vec::new();
    let mut shut = 0;
    while shut != 3 {
        let (wire, bytes) = guest.receive();
        data.extend(bytes);
        if wire.op == SHUTDOWN {
            shut |= wire.flags;
        } else {
            guest.send(CREDIT_UPDATE, 7);
        }
    }
    assert_eq!(data, b"data before the end");
    // Nobody hears it, but it is no error either.
    guest.send_data(7, b"late");
    guest.send(RST, 7);
    guest.connect(7);
}

#[test]
fn bytes_that_the_host_has_not_read_outlive_the_connection() {
    for close in [SHUTDOWN, RST] {
        let mut guest = Guest::new();
        let host = guest.connect(7);
        let data = pattern(BUFFER as usize);
        for chunk in data.chunks(64 * 1024) {
            guest.send_data(7, chunk);
        }
        let mut wire = guest.packet(close, 7);
        wire.flags = 3;
        guest.send_wire(&wire, &[]);
        if close == SHUTDOWN {
            while guest.receive_op() != RST {}
        } else {
            // Credit updates of before.
            while let Some(used) = guest.driver.take_used(0) {
                guest.take(used);
            }
        }
        // The guest may use the same ports at once.
        let again = guest.connect(7);
        assert_eq!(read_exactly(&host, data.len()), data);
        at_end(&host);
        guest.send_data(7, b"new");
        assert_eq!(read_exactly(&again, 3), b"new");
    }
}

#[test]
fn a_reset_of_the_device_ends_all_connections_and_it_works_again() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    guest.restart();
    at_end(&host);
    let host = guest.connect(7);
    guest.send_data(7, b"anew");
    assert_eq!(read_exactly(&host, 4), b"anew");
}

#[test]
fn a_stream_by_hand_reaches_the_guest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut guest = Guest::with(Some(listener));

    let mut by_hand = UnixStream::connect(&path).unwrap();
    by_hand.set_read_timeout(Some(DEADLINE)).unwrap();
    by_hand.write_all(b"CONNECT 52\nearly").unwrap();
    let (wire, _) = guest.receive();
    assert_eq!((wire.op, wire.dst_port), (REQUEST, 52));
    let mut answer = guest.packet(RESPONSE, wire.src_port);
    answer.src_port = 52;
    guest.send_wire(&answer, &[]);
    let greeting = format!("OK {}\n", wire.src_port);
    assert_eq!(read_exactly(&by_hand, greeting.len()), greeting.as_bytes());
    assert_eq!(guest.receive().1, b"early");
    answer.op = RW;
    answer.len = 5;
    guest.send_wire(&answer, b"hello");
    assert_eq!(read_exactly(&by_hand, 5), b"hello");

    for nonsense in [
        "CONNECT\n",
        "CONNECT x\n",
        "GET / HTTP/1.1\n",
        "CONNECT 1234567890123456789012345678901",
    ] {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(nonsense.as_bytes()).unwrap();
        assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)), "{nonsense}");
    }

    let refused = UnixStream::connect(&path).unwrap();
    refused.set_read_timeout(Some(DEADLINE)).unwrap();
    (&refused).write_all(b"CONNECT 53\n").unwrap();
    let (wire, _) = guest.receive();
    let mut answer = guest.packet(RST, wire.src_port);
    answer.src_port = 53;
    guest.send_wire(&answer, &[]);
    at_end(&refused);
}
