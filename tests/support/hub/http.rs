//! As much of HTTP/1.1 as two clients need.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

/// A request, read whole.
pub(super) struct Request {
    pub(super) method: String,
    /// Without the query, not unescaped.
    pub(super) path: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// An answer; the body is left out for HEAD.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// The connection is closed after this many bytes of the body.
    pub(super) break_after: Option<usize>,
}

impl Answer {
    pub(super) fn new(status: u16, body: Vec<u8>) -> Answer {
        Answer { status, headers: Vec::new(), body, break_after: None }
    }

    pub(super) fn json(value: &Value) -> Answer {
        Answer::new(200, value.to_string().into_bytes()).with("Content-Type", "application/json")
    }

    pub(super) fn error(status: u16, code: &str, message: &str) -> Answer {
        let answer = Answer::new(status, json!({ "error": message }).to_string().into_bytes());
        let answer = answer.with("Content-Type", "application/json").with("X-Error-Message", message);
        if code.is_empty() { answer } else { answer.with("X-Error-Code", code) }
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<String>) -> Answer {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// The next request of a connection; none at its end.
pub(super) fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let mut request = Request { method, path, headers, body: Vec::new() };
    if request.header("expect").is_some() {
        (&mut &*stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    if request.header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let len = u64::from_str_radix(line.trim(), 16).ok()?;
            reader.by_ref().take(len).read_to_end(&mut request.body).ok()?;
            reader.read_line(&mut line).ok()?;
            if len == 0 {
                break;
            }
        }
    } else if let Some(len) = request.header("content-length") {
        let len: u64 = len.parse().ok()?;
        reader.take(len).read_to_end(&mut request.body).ok()?;
    }
    Some(request)
}

/// Sends an answer; none if the connection is over.
pub(super) fn write(mut stream: &TcpStream, request: &Request, answer: Answer) -> Option<()> {
    let mut head = format!("HTTP/1.1 {} Stand-in\r\nContent-Length: {}\r\n", answer.status, answer.body.len());
    answer.headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    head += "\r\n";
    stream.write_all(head.as_bytes()).ok()?;
    if request.method == "HEAD" {
        return Some(());
    }
    let end = answer.break_after.unwrap_or(answer.body.len()).min(answer.body.len());
    stream.write_all(&answer.body[..end]).ok()?;
    stream.flush().ok()?;
    if answer.break_after.is_some() {
        let _ = stream.shutdown(std::net::Shutdown::Both);
        return None;
    }
    Some(())
}

/// Undoes percent-encoding.
pub(super) fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'%').then(|| tail.get(..2)).flatten();
        let value = escaped.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(value.unwrap_or(*first));
        rest = if value.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
