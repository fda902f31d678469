//! A TLS 1.3 handshake over loopback TCP, and the bytes of it that must differ between any two guests.
//! `nacre-identity` is client and server; `nacre-e2e` makes the certificate.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, Stream};
use serde::{Deserialize, Serialize};

use crate::identity::hex;

/// The name that the client asks for.
const NAME: &str = "clone.example";
/// What the client sends, and the server returns, once both have the keys.
const MESSAGE: &[u8; 4] = b"ping";
/// No read waits longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// A certificate becomes valid so long before it is made: not in a guest whose clock is still that of its template.
const BEFORE: Duration = Duration::from_secs(1);
/// It expires so long after it is made.
const AFTER: Duration = Duration::from_secs(10 * 60);

/// ContentType of a record with handshake messages, RFC 8446 section 5.1.
const HANDSHAKE: u8 = 22;
/// ExtensionType of a key share, RFC 8446 section 4.2.
const KEY_SHARE: [u8; 2] = [0, 51];

/// A server's self-signed certificate and its private key, in DER.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Certificate {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Certificate {
    /// One that is valid now, by this machine's clock, and for the name that the client asks for.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn new() -> Result<Self> {
        let now = SystemTime::now();
        Self::valid(NAME, now - BEFORE, now + AFTER)
    }

    fn valid(name: &str, from: SystemTime, until: SystemTime) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([name.to_owned()])?;
        (params.not_before, params.not_after) = (from.into(), until.into());
        Ok(Self {
            certificate: params.self_signed(&key)?.der().to_vec(),
            key: key.serialize_der(),
        })
    }
}

/// Connects a client to a server with `certificate`, sends a message each way, and returns the ClientHello and the
/// ServerHello. The client trusts the certificate if it is valid by this machine's clock.
///
/// # Errors
/// If an end refuses the other.
pub fn handshake(certificate: &Certificate) -> Result<[Hello; 2]> {
    let (mut client, mut server) = ends(certificate)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_read_timeout(Some(PATIENCE))?;
    far.set_read_timeout(Some(PATIENCE))?;

    client.write_tls(&mut near)?;
    let client_hello = waiting(&far, Sender::Client).context("the ClientHello")?;
    server.read_tls(&mut far)?;
    server.process_new_packets()?;
    while server.wants_write() {
        server.write_tls(&mut far)?;
    }
    let server_hello = waiting(&near, Sender::Server).context("the ServerHello")?;
    client.complete_io(&mut near).context("the client")?;
    server.complete_io(&mut far).context("the server")?;

    let mut message = *MESSAGE;
    Stream::new(&mut client, &mut near).write_all(&message)?;
    Stream::new(&mut server, &mut far).read_exact(&mut message)?;
    Stream::new(&mut server, &mut far).write_all(&message)?;
    Stream::new(&mut client, &mut near).read_exact(&mut message)?;
    ensure!(message == *MESSAGE, "the message came back as {message:?}");
    Ok([client_hello, server_hello])
}

fn ends(certificate: &Certificate) -> Result<(ClientConnection, ServerConnection)> {
    let key = PrivatePkcs8KeyDer::from(certificate.key.clone());
    let certificate = CertificateDer::from(certificate.certificate.clone());
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone())?;
    let client = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = ServerConfig::builder().with_no_client_auth();
    let server = server.with_single_cert(vec![certificate], key.into())?;
    Ok((
        ClientConnection::new(Arc::new(client), ServerName::try_from(NAME)?)?,
        ServerConnection::new(Arc::new(server))?,
    ))
}

/// The hello that can be read from `socket`, where it stays.
fn waiting(socket: &TcpStream, sender: Sender) -> Result<Hello> {
    let mut bytes = [0; 4096];
    let length = socket.peek(&mut bytes)?;
    hello(&bytes[..length], sender)
}

/// Whose hello it is; the value is its HandshakeType.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Client = 1,
    Server = 2,
}

/// What an end draws for a handshake, as it was on the wire, in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// 32 bytes.
    pub random: String,
    /// The public key of the key exchange.
    pub key_share: String,
}

/// Parses the first message of `stream`, RFC 8446 sections 4.1.2 and 4.1.3. Returns the first of several key shares.
fn hello(mut stream: &[u8], sender: Sender) -> Result<Hello> {
    let header = take(&mut stream, 3)?;
    ensure!(header.first() == Some(&HANDSHAKE), "a record {header:?}");
    let mut record = vector(&mut stream, 2)?;
    let kind = take(&mut record, 1)?;
    ensure!(kind == [sender as u8], "a message of type {kind:?}");
    let mut body = vector(&mut record, 3)?;
    take(&mut body, 2).context("the version")?;
    let random = hex(take(&mut body, 32)?);
    vector(&mut body, 1).context("the session id")?;
    match sender {
        Sender::Client => {
            vector(&mut body, 2).context("the cipher suites")?;
            vector(&mut body, 1).context("the compression methods")?;
        }
        Sender::Server => drop(take(&mut body, 3).context("the cipher suite and the compression method")?),
    }
    let mut extensions = vector(&mut body, 2)?;
    while !extensions.is_empty() {
        let number = take(&mut extensions, 2)?;
        let mut content = vector(&mut extensions, 2)?;
        if number == KEY_SHARE {
            if sender == Sender::Client {
                content = vector(&mut content, 2)?;
            }
            take(&mut content, 2).context("the group")?;
            return Ok(Hello {
                random,
                key_share: hex(vector(&mut content, 2)?),
            });
        }
    }
    bail!("no key share")
}

/// Takes `length` bytes off the front of `input`.
fn take<'a>(input: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    input
        .split_off(..length)
        .with_context(|| format!("{length} bytes are not there"))
}

/// Takes a vector off the front of `input`, whose length is in the first `width` bytes.
fn vector<'a>(input: &mut &'a [u8], width: usize) -> Result<&'a [u8]> {
    let digits = take(input, width)?;
    let length = digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit));
    take(input, length)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_hellos_have_anything_in_common() -> Result<()> {
        let certificate = Certificate::new()?;
        let hellos = [handshake(&certificate)?, handshake(&certificate)?].concat();
        let drawn: BTreeSet<_> = hellos
            .iter()
            .flat_map(|hello| [&hello.random, &hello.key_share])
            .collect();
        assert_eq!(drawn.len(), 8);
        assert!(drawn.iter().all(|digits| digits.len() == 64), "{drawn:?}");
        Ok(())
    }

    #[test]
    fn the_client_verifies_time_and_name() -> Result<()> {
        let (now, day) = (SystemTime::now(), Duration::from_secs(24 * 60 * 60));
        for (name, from, until, refusal) in [
            (NAME, now - day, now - BEFORE, "expired"),
            (NAME, now + AFTER, now + day, "not valid yet"),
            ("other.example", now - day, now + day, "not valid for name"),
        ] {
            let refused = handshake(&Certificate::valid(name, from, until)?).unwrap_err();
            assert!(format!("{refused:#}").contains(refusal), "{refused:#}");
        }
        Ok(())
    }

    /// A ServerHello without a session id, in a record.
    fn server_hello(extensions: &[u8]) -> Result<Vec<u8>> {
        let length = u8::try_from(extensions.len())?;
        let body = [&[3, 3], &[7; 32][..], &[0, 19, 1, 0, 0, length], extensions].concat();
        let length = u8::try_from(body.len())?;
        Ok([&[HANDSHAKE, 3, 3, 0, length + 4, 2, 0, 0, length], &body[..]].concat())
    }

    #[test]
    fn a_hello_is_parsed_if_it_is_whole() -> Result<()> {
        let version = [0, 43, 0, 2, 3, 4];
        let share = [0, 51, 0, 6, 0, 29, 0, 2, 0xab, 0xcd];
        let whole = server_hello(&[&version[..], &share].concat())?;
        assert_eq!(
            hello(&whole, Sender::Server)?,
            Hello {
                random: "07".repeat(32),
                key_share: "abcd".to_owned()
            }
        );
        for length in 0..whole.len() {
            assert!(hello(&whole[..length], Sender::Server).is_err(), "{length} bytes");
        }
        assert!(hello(&whole, Sender::Client).is_err());
        assert!(hello(&server_hello(&version)?, Sender::Server).is_err());
        Ok(())
    }
}
