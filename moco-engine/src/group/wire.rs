//! Messages between processes: what they are for, how long they are, their bytes.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;

/// What a message is for: processes that are out of step notice it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Gather = 1,
    First,
    Mean,
    Exchange,
}

/// Most bytes of a message, against allocating what a stranger claims.
const LONGEST: u64 = 1 << 36;

pub(super) fn send(line: &mut TcpStream, kind: Kind, bytes: &[u8]) -> Result<()> {
    let mut head = [kind as u8; 9];
    head[1..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    line.write_all(&head)?;
    line.write_all(bytes)
}

pub(super) fn receive(line: &mut TcpStream, kind: Kind) -> Result<Vec<u8>> {
    let len = head(line, kind)?;
    let mut bytes = vec![];
    line.take(len).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == len { Ok(bytes) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// Receives into `bytes` if it is as long as the message; the message's length.
pub(super) fn receive_into(line: &mut TcpStream, kind: Kind, bytes: &mut [u8]) -> Result<usize> {
    let len = head(line, kind)?;
    if len == bytes.len() as u64 {
        line.read_exact(bytes)?;
    }
    Ok(len as usize)
}

fn head(line: &mut TcpStream, kind: Kind) -> Result<u64> {
    let mut head = [0; 9];
    line.read_exact(&mut head)?;
    let [got, len @ ..] = head;
    let len = u64::from_le_bytes(len);
    if got != kind as u8 || len > LONGEST {
        let message = format!("expected a message of kind {kind:?}, got kind {got} of {len} bytes");
        return Err(Error::new(ErrorKind::InvalidData, message));
    }
    Ok(len)
}

/// Byte strings behind each other, each after its length.
pub(super) fn join<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut whole = vec![];
    for part in parts {
        whole.extend((part.len() as u64).to_le_bytes());
        whole.extend(part);
    }
    whole
}

/// What [`join`] has joined.
pub(super) fn split(mut whole: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut parts = vec![];
    while !whole.is_empty() {
        let part = whole.split_first_chunk::<8>().and_then(|(len, rest)| {
            let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
            rest.split_at_checked(len)
        });
        let (part, rest) = part.ok_or(ErrorKind::InvalidData)?;
        parts.push(part.to_vec());
        whole = rest;
    }
    Ok(parts)
}
