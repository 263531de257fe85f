//! Looking into restored images: file systems by their own checker, and whatever the user's program does.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use tokio::time::Instant;

use super::volumes::{self, Kind, Volume};

/// The most of a program's words that a report keeps: its last ones.
const SAID_BYTES_MAX: usize = 4 << 10;
/// The most that a program may say before the rest is not read any more by the end of its run.
const OUTPUT_BYTES_MAX: u64 = 16 << 20;
/// How often it is looked whether a program has ended.
const POLL: Duration = Duration::from_millis(50);
/// How long the last words of a program that has ended are waited for.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Where checkers stand, which the path of a plain user leaves out.
const SBIN: &str = "/usr/sbin:/sbin";

/// What a look at one volume found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case", tag = "result", content = "said")]
pub enum Verdict {
    /// Its checker found it whole.
    Whole,
    /// Its checker found something.
    Broken(String),
    /// Nothing looked at it, and why.
    NotLookedAt(String),
}

/// One volume and what was found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Looked {
    /// Where it begins on the disk.
    pub offset_bytes: u64,
    /// Its size.
    pub length_bytes: u64,
    /// What is in it.
    pub kind: Kind,
    /// What was found.
    pub verdict: Verdict,
}

/// Looks at every volume of an image, which may be changed by it: a journal is replayed first, as a mount does. Blocks.
///
/// # Errors
/// If the image cannot be read.
pub fn image(path: &Path, limit: Duration) -> io::Result<Vec<Looked>> {
    let file = File::open(path)?;
    let disk_bytes = file.metadata()?.len();
    let mut read = |at: u64, buf: &mut [u8]| file.read_exact_at(buf, at);
    let found = volumes::volumes(disk_bytes, &mut read)?;
    let looked = |volume: Volume| Looked {
        offset_bytes: volume.offset_bytes,
        length_bytes: volume.length_bytes,
        kind: volume.kind,
        verdict: look(path, &volume, limit),
    };
    Ok(found.into_iter().map(looked).collect())
}

fn look(path: &Path, volume: &Volume, limit: Duration) -> Verdict {
    match volume.kind {
        Kind::Ext => ext(path, volume.offset_bytes, limit),
        Kind::Swap | Kind::Empty => Verdict::NotLookedAt("there is nothing to look at".to_owned()),
        kind => Verdict::NotLookedAt(format!(
            "no checker of {} is called here: let your own program look (--check)",
            kind.as_str()
        )),
    }
}

/// First the journal, as a mount would; then the whole, without a change. Nothing is mended: a file system that a checker had to
/// mend is no proof.
fn ext(path: &Path, offset_bytes: u64, limit: Duration) -> Verdict {
    let at = if offset_bytes == 0 { path.to_owned() } else { at_offset(path, offset_bytes) };
    // Preening gives up where somebody would have to decide, and 1 says that the journal was replayed.
    for (arguments, codes) in [(&["-p", "-E", "journal_only"][..], 0..=1), (&["-fn"][..], 0..=0)] {
        match run(Command::new("e2fsck").args(arguments).arg(&at), limit) {
            Ok(ended) if ended.status.code().is_some_and(|code| codes.contains(&code)) => {}
            Ok(ended) => return Verdict::Broken(ended.said),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Verdict::NotLookedAt("e2fsck is not installed (Debian package e2fsprogs)".to_owned());
            }
            Err(error) => return Verdict::NotLookedAt(format!("e2fsck cannot be run: {error}")),
        }
    }
    Verdict::Whole
}

/// As e2fsck names a file system within a file.
fn at_offset(path: &Path, offset_bytes: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("?offset={offset_bytes}"));
    name.into()
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// The end of what it said.
    pub said: String,
}

/// Runs a program to its end, or ends it after `limit`. Blocks.
///
/// # Errors
/// If it cannot be started, or did not end by itself in time.
pub fn run(command: &mut Command, limit: Duration) -> io::Result<Ended> {
    let path = format!("{}:{SBIN}", std::env::var("PATH").unwrap_or_default());
    let (reader, writer) = io::pipe()?;
    let mut child =
        command.env("PATH", path).stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).spawn()?;
    // The command keeps its ends of the pipe until it is given others, and the reader would wait for them.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (told, heard) = sync_channel(1);
    std::thread::Builder::new().name("tg-drill".into()).spawn(move || {
        let mut said = Vec::new();
        let _ = reader.take(OUTPUT_BYTES_MAX).read_to_end(&mut said);
        let _ = told.send(said);
    })?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() >= limit {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it did not end within {} s, and was ended", limit.as_secs()),
            ));
        }
        std::thread::sleep(POLL);
    };
    // Whatever it started and left behind may hold the pipe, and is not waited for.
    let said = heard.recv_timeout(LAST_WORDS).unwrap_or_default();
    let said = &said[said.len().saturating_sub(SAID_BYTES_MAX)..];
    Ok(Ended { status, said: String::from_utf8_lossy(said).trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_is_heard_to_its_end_and_one_that_does_not_end_is_ended() {
        let ended = run(&mut shell("echo out; echo err >&2; exit 3"), Duration::from_secs(60)).unwrap();
        assert_eq!((ended.status.code(), ended.said.as_str()), (Some(3), "out\nerr"));
        let late = run(&mut shell("exec sleep 600"), Duration::from_millis(100)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        let long = run(&mut shell("yes | head -c 100000; echo end"), Duration::from_secs(60)).unwrap();
        assert!(long.said.ends_with("end") && long.said.len() <= SAID_BYTES_MAX);
    }

    #[test]
    fn a_file_system_is_looked_at_wherever_it_lies_and_a_broken_one_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        let limit = Duration::from_secs(60);
        File::create(&path).unwrap().set_len(16 << 20).unwrap();
        let made = run(Command::new("mkfs.ext4").arg("-q").arg(&path), limit).expect("tests/run installs e2fsprogs");
        assert!(made.status.success(), "{}", made.said);
        assert_eq!(image(&path, limit).unwrap()[0].verdict, Verdict::Whole);
        // The same as a partition: behind a table.
        let content = std::fs::read(&path).unwrap();
        let mut disk = vec![0; 1 << 20];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[450] = 0x83;
        disk[454..458].copy_from_slice(&2048_u32.to_le_bytes());
        disk[458..462].copy_from_slice(&(16_u32 << 11).to_le_bytes());
        disk.extend_from_slice(&content);
        std::fs::write(&path, &disk).unwrap();
        let looked = image(&path, limit).unwrap();
        assert_eq!((looked.len(), looked[0].offset_bytes, &looked[0].verdict), (1, 1 << 20, &Verdict::Whole));
        // The table of inodes is gone.
        disk[(1 << 20) + 4096..(1 << 20) + (1 << 20)].fill(0x5a);
        std::fs::write(&path, &disk).unwrap();
        assert!(matches!(image(&path, limit).unwrap()[0].verdict, Verdict::Broken(_)));
    }
}
