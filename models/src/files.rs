//! Files written whole or not at all, and their hashes.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Writes a file so that a reader, or a crash at any moment, sees the old content or the new one, never a part:
/// into a temporary sibling, flushed to the disk, then renamed over `path`.
///
/// # Errors
/// [`Error::Io`] naming `path`; whatever `fill` returns. The temporary file is removed.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    write_seekable_atomically(path, |file| {
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        fill(&mut writer)?;
        writer.flush()
    })
}

/// As [`write_atomically`], for formats that go back to fill in lengths.
pub(crate) fn write_seekable_atomically(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let failed = |cause| Error::Io { path: path.to_owned(), cause };
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    if path.is_dir() {
        return Err(failed(io::Error::other("is a folder; give the name of a file")));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".moco-").suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // What the umask leaves of it, as for any new file; a temporary file is private otherwise.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let mut temporary = builder.tempfile_in(&folder).map_err(failed)?;
    fill(temporary.as_file_mut()).map_err(failed)?;
    temporary.as_file().sync_all().map_err(failed)?;
    temporary.persist(path).map_err(|e| failed(e.error))?;
    #[cfg(unix)]
    File::open(&folder).and_then(|f| f.sync_all()).map_err(failed)?;
    Ok(())
}

/// SHA-256 of a file's bytes, in lower-case hexadecimal.
///
/// # Errors
/// [`Error::Io`] naming `path`.
pub fn sha256_of_file(path: &Path) -> Result<String> {
    let failed = |cause| Error::Io { path: path.to_owned(), cause };
    let mut file = File::open(path).map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).map_err(failed)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&block[..n]),
        }
    }
}

pub(crate) fn sha256_of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_atomically(&path, |w| w.write_all(b"old")).unwrap();
        let error = write_atomically(&path, |w| {
            w.write_all(b"new")?;
            Err(io::Error::other("disk full"))
        })
        .unwrap_err();
        assert!(error.to_string().contains("disk full"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_and_a_folder_in_the_way_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("no/such/file");
        assert!(write_atomically(&missing, |_| Ok(())).unwrap_err().to_string().contains("no/such/file"));
        assert!(write_atomically(folder.path(), |_| Ok(())).unwrap_err().to_string().contains("folder"));
    }

    #[test]
    fn sha256_is_the_published_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        fs::write(&path, "abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_of_file(&path).unwrap(), expected);
        assert_eq!(sha256_of_bytes(b"abc"), expected);
    }
}
