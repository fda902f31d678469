//! Valid use of streams: data, credit, shutdown of one direction, close.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::super::state::BUF_ALLOC;
use super::*;

#[test]
fn small_data_goes_both_ways() {
    let mut guest = Guest::new();
    let host = guest.connect(1024);
    guest.send_data(1024, b"from the guest");
    assert_eq!(read_exactly(&host, 14), b"from the guest");
    (&host).write_all(b"from the host").unwrap();
    assert_eq!(guest.receive_data(1024, 13), b"from the host");
    guest.assert_quiet(1024);
}

#[test]
fn a_mebibyte_goes_to_the_host_and_credit_is_returned() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    let data = pattern(1 << 20);
    let want = data.clone();
    let reader = std::thread::spawn(move || assert_eq!(read_exactly(&host, want.len()), want));
    let mut sent = 0_u32;
    let mut forwarded = 0_u32;
    let mut updates = 0;
    for chunk in data.chunks(64 * 1024) {
        while sent - forwarded + chunk.len() as u32 > BUF_ALLOC {
            let (header, _) = guest.receive();
            assert_eq!(header.op, CREDIT_UPDATE);
            forwarded = header.fwd_cnt;
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
        let (header, _) = guest.receive();
        assert_eq!(header.op, SHUTDOWN);
        shut |= header.flags;
    }
}

/// As a busy guest does: sends while it has credit, and returns receive buffers in batches.
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
    let (mut sent, mut forwarded, mut received, mut advertised) = (0_usize, 0_u32, 0_usize, 0_usize);
    while sent < TOTAL || received < TOTAL {
        while sent < TOTAL && (sent as u32).wrapping_sub(forwarded) <= BUF_ALLOC - 65536 {
            guest.send_data(7, &data[sent % (1 << 20)..][..65536]);
            sent += 65536;
        }
        let (header, bytes) = guest.receive();
        forwarded = header.fwd_cnt;
        assert!(header.op == RW || header.op == CREDIT_UPDATE, "{header:?}");
        assert!(
            bytes
                .iter()
                .eq(data.iter().cycle().skip(received % (1 << 20)).take(bytes.len()))
        );
        received += bytes.len();
        if received - advertised > 64 * 1024 {
            advertised = received;
            guest.send(CREDIT_UPDATE, 7);
        }
    }
    reader.join().unwrap();
    drop(writer.join().unwrap());
}

#[test]
fn a_host_that_does_not_read_exhausts_the_credit() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    let data = pattern(4 << 20);
    let (mut sent, mut forwarded) = (0_u32, 0_u32);
    // Until neither the host's socket nor the buffer takes more: fwd_cnt then no longer grows.
    loop {
        if sent - forwarded < BUF_ALLOC {
            let length = (BUF_ALLOC - (sent - forwarded)).min(64 * 1024);
            guest.send_data(7, &data[sent as usize..][..length as usize]);
            sent += length;
            continue;
        }
        guest.send(CREDIT_REQUEST, 7);
        let before = forwarded;
        let (header, _) = guest.receive();
        forwarded = header.fwd_cnt;
        if forwarded == before {
            break;
        }
    }
    assert!(sent < 2 << 20, "{sent} bytes fit");
    // Once the host has read everything, the device sends a credit update unasked.
    assert_eq!(read_exactly(&host, sent as usize), data[..sent as usize]);
    loop {
        let (header, _) = guest.receive();
        assert_eq!(header.op, CREDIT_UPDATE);
        if sent - header.fwd_cnt < BUF_ALLOC / 2 {
            break;
        }
    }
    guest.send_data(7, b"goes on");
    assert_eq!(read_exactly(&host, 7), b"goes on");
}

#[test]
fn a_guest_without_buffer_space_gets_no_data_until_it_has_some() {
    let mut guest = Guest::new();
    guest.buf_alloc = 10;
    let host = guest.connect(7);
    (&host).write_all(b"0123456789abcdef").unwrap();
    let (header, bytes) = guest.receive();
    assert_eq!((header.op, &bytes[..]), (RW, &b"0123456789"[..]));
    let read = guest.fwd_cnt;
    guest.fwd_cnt = 0;
    guest.assert_quiet(7);
    guest.fwd_cnt = read - 4;
    guest.send(CREDIT_UPDATE, 7);
    assert_eq!(guest.receive().1, b"abcdef"[..6]);
}

#[test]
fn a_guest_that_shut_down_sending_can_still_receive() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    guest.send_data(7, b"question");
    guest.shut_down(7, 2);
    assert_eq!(read_exactly(&host, 8), b"question");
    assert_at_end(&host);
    (&host).write_all(b"answer").unwrap();
    assert_eq!(guest.receive_data(7, 6), b"answer");
    guest.shut_down(7, 1);
    assert_eq!(guest.receive_op(), RST);
}

#[test]
fn a_guest_that_shut_down_receiving_stops_the_host() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    guest.shut_down(7, 1);
    let mut result = Ok(());
    // The shutdown takes effect while the host writes.
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
fn a_host_that_shut_down_sending_can_still_receive() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    (&host).write_all(b"last").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive_data(7, 4), b"last");
    let (header, _) = guest.receive();
    assert_eq!((header.op, header.flags), (SHUTDOWN, 2));
    guest.send_data(7, b"reply");
    assert_eq!(read_exactly(&host, 5), b"reply");
    guest.shut_down(7, 3);
    assert_eq!(guest.receive_op(), RST);
    assert_at_end(&host);
}

#[test]
fn the_guest_gets_the_data_and_then_the_shutdown_of_a_host_that_closed() {
    let mut guest = Guest::new();
    guest.buf_alloc = 8;
    let host = guest.connect(7);
    (&host).write_all(b"data before the end").unwrap();
    drop(host);
    let mut data = Vec::new();
    let mut shut = 0;
    while shut != 3 {
        let (header, bytes) = guest.receive();
        data.extend(bytes);
        if header.op == SHUTDOWN {
            shut |= header.flags;
        } else {
            guest.send(CREDIT_UPDATE, 7);
        }
    }
    assert_eq!(data, b"data before the end");
    // Data for a host that has closed is dropped without an error.
    guest.send_data(7, b"late");
    guest.send(RST, 7);
    guest.connect(7);
}

#[test]
fn the_host_can_read_buffered_data_after_the_guest_closed() {
    for close in [SHUTDOWN, RST] {
        let mut guest = Guest::new();
        let host = guest.connect(7);
        let data = pattern(BUF_ALLOC as usize);
        for chunk in data.chunks(64 * 1024) {
            guest.send_data(7, chunk);
        }
        let mut header = guest.packet(close, 7);
        header.flags = 3;
        guest.send_packet(&header, &[]);
        if close == SHUTDOWN {
            while guest.receive_op() != RST {}
        } else {
            // Credit updates that were pending.
            while let Some(used) = guest.driver.take_used(0) {
                guest.take(used);
            }
        }
        // The guest may use the same ports again at once.
        let again = guest.connect(7);
        assert_eq!(read_exactly(&host, data.len()), data);
        assert_at_end(&host);
        guest.send_data(7, b"new");
        assert_eq!(read_exactly(&again, 3), b"new");
    }
}

#[test]
fn a_device_reset_closes_all_connections_and_the_device_works_again() {
    let mut guest = Guest::new();
    let host = guest.connect(7);
    guest.restart();
    assert_at_end(&host);
    let host = guest.connect(7);
    guest.send_data(7, b"data");
    assert_eq!(read_exactly(&host, 4), b"data");
}

#[test]
fn a_client_of_the_listener_is_connected_to_the_guest() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut guest = Guest::with_listener(Some(listener));

    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"CONNECT 52\nearly").unwrap();
    let (header, _) = guest.receive();
    assert_eq!((header.op, header.dst_port), (REQUEST, 52));
    let mut answer = guest.packet(RESPONSE, header.src_port);
    answer.src_port = 52;
    guest.send_packet(&answer, &[]);
    let ok_line = format!("OK {}\n", header.src_port);
    assert_eq!(read_exactly(&client, ok_line.len()), ok_line.as_bytes());
    assert_eq!(guest.receive().1, b"early");
    answer.op = RW;
    answer.len = 5;
    guest.send_packet(&answer, b"hello");
    assert_eq!(read_exactly(&client, 5), b"hello");

    for invalid in [
        "CONNECT\n",
        "CONNECT x\n",
        "GET / HTTP/1.1\n",
        "CONNECT 1234567890123456789012345678901",
    ] {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(invalid.as_bytes()).unwrap();
        assert!(matches!(stream.read(&mut [0; 8]), Ok(0) | Err(_)), "{invalid}");
    }

    let refused = UnixStream::connect(&path).unwrap();
    refused.set_read_timeout(Some(DEADLINE)).unwrap();
    (&refused).write_all(b"CONNECT 53\n").unwrap();
    let (header, _) = guest.receive();
    let mut answer = guest.packet(RST, header.src_port);
    answer.src_port = 53;
    guest.send_packet(&answer, &[]);
    assert_at_end(&refused);
}

#[test]
fn a_pause_loses_no_byte_in_either_direction() {
    let mut guest = Guest::new();
    let mut stream = guest.connect(7);
    for round in 0..20_u8 {
        let paused = guest.device.pause().unwrap();
        stream.write_all(&[round; 100]).unwrap();
        let at = guest.free_tx.pop().unwrap();
        let mut header = guest.packet(RW, 7);
        header.len = 8;
        guest.driver.set_bytes(at, &header.bytes());
        guest.driver.set_bytes(at + 64, &[round; 8]);
        guest
            .driver
            .offer(1, &[readable(at, HEADER_LENGTH), readable(at + 64, 8)]);
        guest.driver.kick(1);
        assert_eq!(guest.device.pause().unwrap(), paused, "the device went on");
        assert!(guest.driver.take_used(0).is_none() && guest.driver.take_used(1).is_none());
        guest.device.resume().unwrap();
        assert_eq!(guest.receive_data(7, 100), [round; 100]);
        assert_eq!(read_exactly(&stream, 8), [round; 8]);
        guest.driver.wait_used(1);
        guest.free_tx.push(at);
    }
}
