//! One request of HTTP/1.1 over whatever stream there is: TLS, TCP, or a Unix socket.

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Asks, and reads until the other side closes. `null` for a body that is not JSON.
pub(super) async fn ask<S>(
    mut stream: S,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, Value)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| *name == "Host") {
        request.push_str("Host: localhost\r\n");
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    request.push_str(body);
    stream.write_all(request.as_bytes()).await.expect("is sent");
    stream.flush().await.expect("is sent");
    let mut answer = Vec::new();
    // The end of TLS may be missing, which is no loss: the length is checked by who parses the body.
    let _ended = stream.read_to_end(&mut answer).await.is_ok();
    let answer = String::from_utf8(answer).expect("a text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}
