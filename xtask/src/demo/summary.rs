//! The table at the end: what was made and where, and what was measured.

use std::path::Path;
use std::time::Duration;

/// Collects the table's lines.
#[derive(Default)]
pub struct Summary {
    made: Vec<[String; 3]>,
    measured: Vec<[String; 2]>,
}

impl Summary {
    /// A file or folder, with a remark.
    pub fn made(&mut self, what: &str, path: &Path, remark: &str) {
        self.made.push([what.into(), path.display().to_string(), remark.into()]);
    }

    /// A figure.
    pub fn measured(&mut self, what: &str, value: &str) {
        self.measured.push([what.into(), value.into()]);
    }

    /// Prints both tables.
    pub fn print(&self, elapsed: Duration) {
        println!("\n{}", table(&self.made));
        println!("{}", table(&self.measured));
        println!("all of it took {:.0} s", elapsed.as_secs_f64());
    }
}

fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_are_aligned() {
        let rows = [["é".to_string(), "b".into()], ["long".into(), "c".into()]];
        assert_eq!(table(&rows), "é     b\nlong  c\n");
    }
}
