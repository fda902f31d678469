//! The little of HTTP that a peer's API takes: a request, perhaps with a body of JSON, and its answer.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Most bytes of an answer's body.
const MAX_BODY: u64 = 64 << 10;

/// Sends a request on a new connection, and waits for its answer.
///
/// # Errors
/// With the answer's body, if its status is not a success.
pub fn request(mut stream: UnixStream, method: &str, path: &str, body: Option<&Value>) -> Result<()> {
    let request = message(method, path, body);
    let context = || format!("{method} {path}");
    // At once: the server reads what there is.
    stream.write_all(request.as_bytes()).with_context(context)?;
    let (status, body) = answer(BufReader::new(stream)).with_context(context)?;
    ensure!((200..300).contains(&status), "{method} {path}: {status} {body}");
    Ok(())
}

/// The text of a request.
fn message(method: &str, path: &str, body: Option<&Value>) -> String {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    let Some(body) = body.map(Value::to_string) else {
        return format!("{head}\r\n");
    };
    let length = body.len();
    format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// The status and the body of an answer.
fn answer(mut reader: impl BufRead) -> Result<(u16, String)> {
    let mut line = || -> Result<String> {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line)? > 0, "the answer is cut off");
        Ok(line.trim_end().to_owned())
    };
    let first = line()?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("no status: {first}"))?;
    let mut length = 0;
    loop {
        let header = line()?;
        match header.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().with_context(|| header.clone())?;
            }
            Some(_) => {}
            None => break,
        }
    }
    ensure!(length <= MAX_BODY, "the answer has {length} bytes");
    let mut body = String::new();
    reader.take(length).read_to_string(&mut body)?;
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_a_body_or_none() {
        let body = serde_json::json!({"a": 1});
        let text = message("PUT", "/x", Some(&body));
        assert!(
            text.starts_with("PUT /x HTTP/1.1\r\n") && text.ends_with("Content-Length: 7\r\n\r\n{\"a\":1}")
        );
        let text = message("PUT", "/x", None);
        assert_eq!(text, "PUT /x HTTP/1.1\r\nHost: localhost\r\n\r\n");
    }

    #[test]
    fn an_answer_has_a_status_and_a_body_or_none() {
        let text = "HTTP/1.1 400 \r\nServer: x\r\ncontent-length: 5\r\n\r\nwrong and more";
        assert_eq!(answer(text.as_bytes()).unwrap(), (400, "wrong".to_owned()));
        let text = "HTTP/1.1 204 \r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(answer(text.as_bytes()).unwrap(), (204, String::new()));
        for broken in ["", "HTTP/1.1 204 \r\n", "HTTP/1.1\r\n\r\n", "a b\r\n\r\n"] {
            assert!(answer(broken.as_bytes()).is_err(), "{broken:?}");
        }
    }
}
