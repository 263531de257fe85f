//! The file: a tar in gzip, readable by its owner alone, never over another one.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::Collected;
use super::redact::Redactor;
use crate::types::Micros;

/// The folder that everything is in.
const FOLDER: &str = "tidegate-bundle";

/// Writes what was collected, without secrets, and a list of what is not there. Returns names and sizes.
///
/// # Errors
/// What the operating system answers; `AlreadyExists` if there is such a file. A half-made file is removed.
pub fn write(file: &Path, collected: &Collected, redactor: &Redactor, now: Micros) -> io::Result<Vec<(String, u64)>> {
    let out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    let written = pack(out, collected, redactor, now);
    if written.is_err() {
        // It would be taken for a whole one.
        let _ = fs::remove_file(file);
    }
    written
}

fn pack(out: fs::File, collected: &Collected, redactor: &Redactor, now: Micros) -> io::Result<Vec<(String, u64)>> {
    let mut archive = tar::Builder::new(GzEncoder::new(out, Compression::default()));
    let mut list = Vec::new();
    let left_out: String = collected.left_out.iter().map(|(what, why)| format!("{what}: {why}\n")).collect();
    let parts = collected.parts.iter().map(|part| (part.name.as_str(), part.text.as_str()));
    for (name, text) in parts.chain([("left-out.txt", left_out.as_str())]) {
        let text = redactor.redact(text);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now.0 / 1_000_000);
        archive.append_data(&mut header, format!("{FOLDER}/{name}"), text.as_bytes())?;
        list.push((name.to_owned(), text.len() as u64));
    }
    let mut out = archive.into_inner()?.finish()?;
    out.flush()?;
    out.sync_all()?;
    Ok(list)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::bundle::{PART_BYTES_MAX, Part};

    #[test]
    fn what_is_packed_comes_out_without_secrets_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("b.tar.gz");
        let mut collected = Collected::default();
        collected.add("config.toml", Ok("url = 'x' # hunter2hunter2".into()));
        collected.add("status.json", Err("nobody answers with hunter2hunter2".into()));
        let redactor = Redactor::new(["hunter2hunter2"]);
        let list = write(&file, &collected, &redactor, Micros(1_000_000)).expect("written");
        assert_eq!(list.len(), 2);
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(&file).expect("file")));
        let mut found = Vec::new();
        for entry in archive.entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            let name = entry.path().expect("a name").display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("text");
            assert!(!text.contains("hunter2"), "{text}");
            found.push(name);
        }
        assert_eq!(found, ["tidegate-bundle/config.toml", "tidegate-bundle/left-out.txt"]);
        let again = write(&file, &collected, &redactor, Micros(0)).expect_err("it is there");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).expect("file").permissions());
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn of_a_part_that_is_too_long_the_end_is_kept() {
        let lines = "key=ä\n".repeat(PART_BYTES_MAX / 4);
        let part = Part::new("log", format!("{lines}end"));
        assert!(part.text.len() < PART_BYTES_MAX + 100 && part.text.ends_with("end"), "{}", part.text.len());
        let mut said = part.text.lines();
        assert!(said.next().is_some_and(|line| line.starts_with('[')));
        assert_eq!(said.next(), Some("key=ä"), "a line that is cut tells no secret by its name");
        // One line that is longer than all is left out whole.
        assert_eq!(Part::new("log", "x".repeat(2 * PART_BYTES_MAX)).text.lines().count(), 1);
    }
}
