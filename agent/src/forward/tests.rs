//! Forwarded connections between real TCP servers and a Unix socket in the host's place.

use super::*;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};

const STREAM: StreamAddress = StreamAddress {
    host_port: 0x1_0005,
    guest_port: 0x1_0006,
};

fn request(family: Family, port: u16) -> ForwardRequest {
    ForwardRequest {
        family: family.into(),
        port: port.into(),
        stream: STREAM.to_bits(),
        ..ForwardRequest::default()
    }
}

/// Forwards a connection of `family` to `port` while `host` has the host's end of the stream; returns the
/// results of both.
fn forwarded<T: Send + 'static>(
    family: Family,
    port: u16,
    host: impl FnOnce(UnixStream) -> T + Send + 'static,
) -> (Result<(), Error>, T) {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join(STREAM.host_port.to_string())).unwrap();
    let dialer = Dialer::Unix(directory.path().to_owned());
    let host = std::thread::spawn(move || host(listener.accept().unwrap().0));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let result = runtime.block_on(async move {
        let result = forward(&dialer, &request(family, port)).await;
        let ended = async {
            while !host.is_finished() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ended)
            .await
            .unwrap();
        (result, host.join().unwrap())
    });
    drop(directory);
    result
}

/// A server on `address` that runs `serve` for one connection.
fn server(address: IpAddr, serve: impl FnOnce(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || serve(listener.accept().unwrap().0));
    port
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect()
}

#[test]
fn requests_are_checked() {
    let target = Target::parse(&request(Family::IPV6, 80)).unwrap();
    assert_eq!((target.addresses, target.port), ([IPV6, IPV4], 80));
    for (family, port, stream, named) in [
        (Family::FAMILY_UNSPECIFIED, 80, STREAM.to_bits(), "address family"),
        (Family::IPV4, 0, STREAM.to_bits(), "got 0"),
        (Family::IPV4, 65536, STREAM.to_bits(), "got 65536"),
        (Family::IPV4, 80, 7, "0x7"),
    ] {
        let request = ForwardRequest {
            family: family.into(),
            port,
            stream,
            ..ForwardRequest::default()
        };
        let error = Target::parse(&request).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn both_directions_arrive_whole_and_end_on_their_own() {
    let reply = pattern(3 << 20);
    let sent = reply.clone();
    let port = server(IPV4, move |mut client| {
        let mut request = Vec::new();
        client.read_to_end(&mut request).unwrap();
        assert!(request == pattern(1 << 20));
        client.write_all(&sent).unwrap();
    });
    let (result, got) = forwarded(Family::IPV4, port, |mut host| {
        host.write_all(&pattern(1 << 20)).unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
        let mut got = Vec::new();
        host.read_to_end(&mut got).unwrap();
        got
    });
    result.unwrap();
    assert!(got == reply);
}

#[test]
fn a_server_of_the_other_family_is_found() {
    let port = server(IPV6, |mut client| client.write_all(b"six").unwrap());
    let (result, got) = forwarded(Family::IPV4, port, |mut host| {
        let mut got = String::new();
        host.read_to_string(&mut got).unwrap();
        got
    });
    result.unwrap();
    assert_eq!(got, "six");
}

#[test]
fn a_refused_connection_is_an_error_and_opens_no_stream() {
    let port = TcpListener::bind((IPV4, 0)).unwrap().local_addr().unwrap().port();
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let dialer = Dialer::Unix(directory.path().to_owned());
    let result = runtime.block_on(forward(&dialer, &request(Family::IPV4, port)));
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&port.to_string()), "{error}");
}

/// As a container that has hung, whose kernel drops further connections.
#[test]
fn a_server_that_does_not_accept_is_unreachable_after_the_deadline() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(IPV4, 0)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let error = runtime.block_on(async {
        let listener = socket.listen(1).unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = Target::parse(&request(Family::IPV4, port)).unwrap();
        let mut waiting = Vec::new();
        loop {
            match target.connect_within(Duration::from_millis(200)).await {
                Ok(connection) => waiting.push(connection),
                Err(error) => break error,
            }
        }
    });
    assert!(
        matches!(&error, Error::Unreachable { source, .. } if source.kind() == io::ErrorKind::TimedOut),
        "{error}"
    );
}

/// The host would take the end of the stream for the end of the data.
#[test]
fn the_stream_of_a_reset_connection_stays_open_until_the_host_closes_it() {
    let port = server(IPV4, |mut client| {
        client.write_all(b"half").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
        sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    });
    let (result, ()) = forwarded(Family::IPV4, port, |mut host| {
        host.read_exact(&mut [0; 4]).unwrap();
        host.write_all(b"ping").unwrap();
        host.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let error = host.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    });
    assert!(matches!(result, Err(Error::Reset { .. })), "{result:?}");
}

#[test]
fn a_host_that_closes_the_stream_resets_the_server() {
    let (seen, reset) = std::sync::mpsc::channel();
    let port = server(IPV4, move |mut client| {
        let error = loop {
            if let Err(error) = client.write(&[7; 4096]) {
                break error.kind();
            }
        };
        seen.send(error).unwrap();
    });
    let (result, ()) = forwarded(Family::IPV4, port, drop);
    assert!(matches!(result, Err(Error::Reset { .. })), "{result:?}");
    let error = reset.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(matches!(
        error,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    ));
}
