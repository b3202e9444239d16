//! TensorBoard event files: protobuf `Event` records framed as TFRecords.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::{Error, Result};

/// Writes scalars into a new event file of a folder.
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventWriter {
    /// Starts a file. `from_step` > 0 tells TensorBoard to forget what older files of the folder say about that step
    /// and later ones: the run was resumed there.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be created.
    pub fn create(folder: &Path, from_step: u64) -> Result<EventWriter> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let seconds = now() as u64;
        // TensorBoard reads a folder's files in the order of their names.
        let path = (0..)
            .map(|i| folder.join(format!("events.out.tfevents.{seconds:010}.moco-train.{}.{i}", std::process::id())))
            .find(|p| !p.exists())
            .expect("one of the numbers is free");
        let file = BufWriter::new(File::create_new(&path).map_err(Error::io(&path))?);
        let mut writer = EventWriter { path, file };
        writer.write(Event { file_version: Some("brain.Event:2".into()), ..Event::at(0) })?;
        if from_step > 0 {
            let log = SessionLog { status: SESSION_START, ..SessionLog::default() };
            writer.write(Event { session_log: Some(log), ..Event::at(from_step) })?;
        }
        writer.flush()?;
        Ok(writer)
    }

    /// Adds scalars at a step.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let value = values
            .iter()
            .map(|(tag, value)| SummaryValue { tag: (*tag).to_string(), simple_value: Some(*value as f32) })
            .collect();
        self.write(Event { summary: Some(Summary { value }), ..Event::at(step) })
    }

    /// Hands everything to the system.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(Error::io(&self.path))
    }

    fn write(&mut self, event: Event) -> Result<()> {
        let data = event.encode_to_vec();
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend_from_slice(&length);
        record.extend_from_slice(&masked_crc32c(&length).to_le_bytes());
        record.extend_from_slice(&data);
        record.extend_from_slice(&masked_crc32c(&data).to_le_bytes());
        self.file.write_all(&record).map_err(Error::io(&self.path))
    }
}

/// `SessionLog::SessionStatus::START` of TensorFlow's event.proto.
const SESSION_START: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

impl Event {
    fn at(step: u64) -> Event {
        Event { wall_time: now(), step: step as i64, ..Event::default() }
    }
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
    #[prost(string, tag = "2")]
    checkpoint_path: String,
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// TFRecord's checksum: CRC-32C, rotated and offset so that a file of records can itself be checksummed.
fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let (mut value, mut bit) = (i as u32, 0);
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0x82f6_3b78 } else { value >> 1 };
                bit += 1;
            }
            table[i] = value;
            i += 1;
        }
        table
    };
    !data.iter().fold(!0u32, |crc, byte| crc >> 8 ^ TABLE[((crc ^ *byte as u32) & 0xff) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check value of CRC-32C over the digits 1 to 9 (RFC 3720, appendix B.4 uses the same polynomial).
    #[test]
    fn checksum_is_crc32c() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn records_can_be_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path(), 7).unwrap();
        writer.scalars(8, &[("train/loss", 2.5), ("train/lr", 0.03)]).unwrap();
        writer.flush().unwrap();
        let bytes = std::fs::read(&writer.path).unwrap();
        let (mut events, mut rest) = (vec![], &bytes[..]);
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(masked_crc32c(&rest[..8]).to_le_bytes(), rest[8..12]);
            let data = &rest[12..12 + length];
            assert_eq!(masked_crc32c(data).to_le_bytes(), rest[12 + length..16 + length]);
            events.push(Event::decode(data).unwrap());
            rest = &rest[16 + length..];
        }
        assert_eq!(events.len(), 3);
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!((events[1].step, events[1].session_log.as_ref().unwrap().status), (7, SESSION_START));
        let values = &events[2].summary.as_ref().unwrap().value;
        assert_eq!((events[2].step, values[0].tag.as_str(), values[0].simple_value), (8, "train/loss", Some(2.5)));
    }
}
