//! `metrics.jsonl`: one JSON object a line, one line a step, plus one for each evaluation and health report.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::health::HealthReport;
use crate::{Error, Result};

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Record {
    /// A training step.
    Step(StepRecord),
    /// A kNN evaluation.
    Eval(EvalRecord),
    /// A report on the features.
    Health(HealthReport),
}

impl Record {
    /// Steps done when it was written.
    pub fn step(&self) -> u64 {
        match self {
            Record::Step(r) => r.step,
            Record::Eval(r) => r.step,
            Record::Health(r) => r.step,
        }
    }
}

/// A training step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Steps done, this one included: the first line says 1.
    pub step: u64,
    /// Epoch it belongs to, from 0.
    pub epoch: u64,
    /// Loss as it is minimised, in nats.
    pub loss: f64,
    /// Share of the queries whose positive is the most similar of K + 1.
    pub acc1: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Images of the step.
    pub images: usize,
    /// Images per second, waiting for data included.
    pub images_per_s: f64,
    /// Share of the step's time in which it waited for data.
    pub data_wait: f64,
    /// Mean similarity of positives.
    pub pos_sim: f64,
    /// Mean similarity of negatives.
    pub neg_sim: f64,
}

/// A kNN evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: u64,
    /// What was evaluated, `knn`.
    pub metric: String,
    /// Top-1 accuracy, 0 to 1.
    pub value: f64,
    /// Seconds it took.
    pub seconds: f64,
}

/// Appends to `metrics.jsonl`.
pub struct MetricsWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl MetricsWriter {
    /// Opens the file and drops what was written after `step`: a resumed run does these steps again.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Format`] naming the line that is not a record of a step up to `step`.
    pub fn open(path: &Path, step: u64) -> Result<MetricsWriter> {
        let mut keep = 0;
        if path.exists() {
            let text = std::fs::read(path).map_err(Error::io(path))?;
            for (i, line) in text.split_inclusive(|b| *b == b'\n').enumerate() {
                // Lines up to the checkpoint were synced before it; a torn line can only come later.
                match serde_json::from_slice::<Record>(line) {
                    Ok(record) if record.step() <= step && line.ends_with(b"\n") => keep += line.len(),
                    Ok(_) => break,
                    Err(e) if line.ends_with(b"\n") => {
                        return Err(Error::format(path, format!("line {}: {e}", i + 1)));
                    }
                    Err(_) => break,
                }
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(Error::io(path))?;
        file.set_len(keep as u64).map_err(Error::io(path))?;
        Ok(MetricsWriter { path: path.to_path_buf(), file: BufWriter::new(file) })
    }

    /// Adds a line and hands it to the system.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record).map_err(|e| Error::format(&self.path, e.to_string()))?;
        line.push(b'\n');
        self.file.write_all(&line).and_then(|()| self.file.flush()).map_err(Error::io(&self.path))
    }

    /// Waits until all lines are on the disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&mut self) -> Result<()> {
        self.file.flush().and_then(|()| self.file.get_ref().sync_data()).map_err(Error::io(&self.path))
    }
}

/// Reads all records of a `metrics.jsonl`; an incomplete last line, as a kill leaves it, is left out.
///
/// # Errors
/// [`Error::Io`], or [`Error::Format`] naming the line.
pub fn read_metrics(path: &Path) -> Result<Vec<Record>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let complete = text.split_inclusive('\n').filter(|l| l.ends_with('\n')).enumerate();
    complete
        .map(|(i, line)| serde_json::from_str(line).map_err(|e| Error::format(path, format!("line {}: {e}", i + 1))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> Record {
        Record::Step(StepRecord {
            step,
            epoch: 0,
            loss: 1.5,
            acc1: 0.25,
            lr: 0.1,
            images: 8,
            images_per_s: 3.0,
            data_wait: 0.0,
            pos_sim: 0.5,
            neg_sim: 0.1,
        })
    }

    fn steps(path: &Path) -> Vec<u64> {
        read_metrics(path).unwrap().iter().map(Record::step).collect()
    }

    #[test]
    fn resuming_drops_later_lines_and_a_torn_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut writer = MetricsWriter::open(&path, 0).unwrap();
        (1..=5).for_each(|s| writer.write(&step(s)).unwrap());
        drop(writer);
        let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"kind\":\"step\",\"st").unwrap();
        assert_eq!(steps(&path), [1, 2, 3, 4, 5]);
        let mut writer = MetricsWriter::open(&path, 3).unwrap();
        writer.write(&step(4)).unwrap();
        assert_eq!(steps(&path), [1, 2, 3, 4]);
    }

    #[test]
    fn a_foreign_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"kind\":\"lunch\"}\n").unwrap();
        assert!(MetricsWriter::open(&path, 3).err().unwrap().to_string().contains("line 1"));
    }
}
