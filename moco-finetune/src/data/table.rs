//! Tables of labels: a CSV file whose first column names image files.
//!
//! Two forms, told apart by the header: `file,label` with the names of classes in one cell, separated by `;` or `|`; and
//! one column a class with 1 or 0 (or nothing) in it. Files are named below the table's folder or its `images/`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::DataOptions;
use super::boxes::class_number;
use super::folder::Labelled;
use super::layout::Found;
use super::notes::Problems;
use super::pictures::{Pictures, below};
use crate::{Error, Result};

/// Bytes of a table.
const MAX_BYTES: u64 = 256 << 20;

/// Names of the second column that make it hold names of classes.
const LABEL_COLUMNS: [&str; 6] = ["label", "labels", "class", "classes", "tags", "category"];

/// Parts of a folder: `train.csv`, `val.csv` …, or `labels.csv` for all.
pub(super) fn parts(folder: &Path) -> Vec<(String, PathBuf)> {
    let names = ["train", "val", "valid", "validation", "test", "labels"];
    let files = names.map(|name| (name.to_owned(), folder.join(format!("{name}.csv"))));
    files.into_iter().filter(|(_, path)| path.is_file()).collect()
}

/// Opens a table.
pub(super) fn open(path: &Path, options: &DataOptions) -> Result<Found> {
    let table = Table::read(path)?;
    let mut problems = Problems::default();
    let named = table.header.get(1).is_some_and(|name| LABEL_COLUMNS.contains(&name.to_lowercase().as_str()));
    let (classes, labels) = match named && table.header.len() == 2 {
        true => from_names(&table, options, &mut problems),
        false => from_columns(&table, options, &mut problems),
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    let folders = match &options.images {
        Some(images) => vec![folder.join(images)],
        None => vec![folder.to_owned(), folder.join("images")],
    };
    let (mut paths, mut lines) = (Vec::new(), BTreeMap::new());
    for row in &table.rows {
        let name = row.cells[0].trim();
        if let Some(first) = lines.insert(name.to_owned(), row.line) {
            problems.add(format!("line {}: `{name}` stands in line {first} already", row.line));
        }
        match file_in(&folders, name) {
            Ok(path) => paths.push(path),
            Err(reason) => problems.add(format!("line {}: {reason}", row.line)),
        }
    }
    let multi_label = options.multi_label.unwrap_or_else(|| labels.iter().any(|labels| labels.len() != 1));
    if !multi_label {
        for (row, labels) in table.rows.iter().zip(&labels).filter(|(_, labels)| labels.len() != 1) {
            let text =
                format!("line {}: {} classes where one is expected (multi_label = false)", row.line, labels.len());
            problems.add(text);
        }
    }
    if classes.len() < if multi_label { 1 } else { 2 } {
        problems.add(format!("{} class(es): nothing can be told apart", classes.len()));
    }
    problems.finish(path)?;
    let pictures = Pictures::look(folder, paths, options);
    Ok(Found::new(Labelled { pictures, classes, labels, multi_label }, "table", Vec::new()))
}

struct Table {
    header: Vec<String>,
    rows: Vec<Row>,
}

struct Row {
    line: u64,
    cells: Vec<String>,
}

impl Table {
    fn read(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let len = std::fs::metadata(path).map_err(io)?.len();
        if len > MAX_BYTES {
            return Err(Error::format(path, format!("{len} bytes, above the limit of {MAX_BYTES} for a table")));
        }
        let bytes = std::fs::read(path).map_err(io)?;
        let delimiter = if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv")) { b'\t' } else { b',' };
        let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(&bytes[..]);
        let bad = |error: csv::Error| Error::format(path, error.to_string());
        let header: Vec<String> = reader.headers().map_err(bad)?.iter().map(|name| name.trim().to_owned()).collect();
        if header.len() < 2 {
            let reason = "line 1: expected a header of `file,label`, or `file` and one column a class";
            return Err(Error::format(path, reason));
        }
        let mut rows = Vec::new();
        for record in reader.records() {
            let record = record.map_err(bad)?;
            let line = record.position().map_or(0, csv::Position::line);
            rows.push(Row { line, cells: record.iter().map(str::to_owned).collect() });
        }
        if rows.is_empty() {
            return Err(Error::format(path, "no line after the header"));
        }
        Ok(Self { header, rows })
    }
}

fn from_names(table: &Table, options: &DataOptions, problems: &mut Problems) -> (Vec<String>, Vec<Vec<usize>>) {
    let split = |cell: &str| -> Vec<String> {
        cell.split([';', '|']).map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    let names: Vec<Vec<String>> = table.rows.iter().map(|row| split(&row.cells[1])).collect();
    let classes: Vec<String> = match options.classes.is_empty() {
        false => options.classes.clone(),
        true => names.iter().flatten().cloned().collect::<BTreeSet<_>>().into_iter().collect(),
    };
    let mut labels = Vec::new();
    for (row, names) in table.rows.iter().zip(&names) {
        let mut numbers = BTreeSet::new();
        for name in names {
            match class_number(name, &classes) {
                Ok(number) if numbers.insert(number) => {}
                Ok(_) => problems.add(format!("line {}: the class `{name}` stands there twice", row.line)),
                Err(reason) => problems.add(format!("line {}: {reason}", row.line)),
            }
        }
        labels.push(numbers.into_iter().collect());
    }
    (classes, labels)
}

fn from_columns(table: &Table, options: &DataOptions, problems: &mut Problems) -> (Vec<String>, Vec<Vec<usize>>) {
    let columns = &table.header[1..];
    for (i, name) in columns.iter().enumerate() {
        if name.is_empty() || columns[..i].contains(name) {
            problems.add(format!("line 1: the column `{name}` has no name, or stands there twice"));
        }
    }
    let classes = if options.classes.is_empty() { columns.to_vec() } else { options.classes.clone() };
    // Columns that are no wanted class (a patient's number, a date) are passed over if classes were named.
    let mut column_of = Vec::new();
    for class in &classes {
        match columns.iter().position(|column| column == class) {
            Some(column) => column_of.push(column + 1),
            None => problems.add(format!("line 1: no column for the class `{class}`")),
        }
    }
    let mut labels = Vec::new();
    for row in &table.rows {
        let mut numbers = Vec::new();
        for (number, &column) in column_of.iter().enumerate() {
            match row.cells[column].trim() {
                "1" | "1.0" => numbers.push(number),
                "0" | "0.0" | "" => {}
                other => problems.add(format!(
                    "line {}, column `{}`: `{other}` is neither 0 nor 1; columns that are no classes are passed over \
                     when classes are named (classes = …)",
                    row.line, table.header[column]
                )),
            }
        }
        labels.push(numbers);
    }
    (classes, labels)
}

fn file_in(folders: &[PathBuf], name: &str) -> std::result::Result<PathBuf, String> {
    for folder in folders {
        let path = below(folder, name)?;
        if path.is_file() {
            return Ok(path);
        }
    }
    let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    Err(format!("there is no file `{name}` in {}", folders.join(" or ")))
}
